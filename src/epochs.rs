//! When does the next epoch begin, and when does an old one's key end? By time, and by command.

use std::io;
use std::path::PathBuf;
use std::sync::PoisonError;

use crate::audit::event::{self, Event};
use crate::gateway::Gateway;
use crate::subject::epochs::{Destruction, EpochChange, EpochError};

/// What came of destroying a key.
#[derive(Debug)]
pub enum Destroyed {
    Wholly,
    /// Nobody uses it any more, but a file with it is still there.
    Remains {
        path: PathBuf,
        source: io::Error,
    },
}

impl Gateway {
    /// The one place through which every change of an epoch goes: after it is on the disk and before anybody is counted by
    /// it; for the end of a key, after it is gone.
    pub(crate) fn epoch_changed(&self, change: &EpochChange) {
        let EpochChange { what, number, id, by, reason } = change;
        tracing::warn!(epoch = number, id, by, reason, "epoch {}", what.as_str());
        self.audit.note(&Event::Epoch(event::Epoch {
            v: event::VERSION,
            time: self.clock.now(),
            change: what.as_str().into(),
            number: *number,
            id: id.into(),
            by: by.into(),
            reason: event::clipped(reason).into(),
        }));
    }

    /// Begins the next epoch. Waits for the disk.
    pub fn rotate_epochs(&self, by: &str, reason: &str) -> Result<u32, EpochError> {
        let _one = self.changing_epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let settings = &self.snapshot().settings;
        let (now, overlap) = (self.clock.now(), settings.epochs.overlap);
        let (epochs, changes) = settings.keyring().rotate(&self.epochs(), now, overlap, by, reason)?;
        changes.iter().for_each(|change| self.epoch_changed(change));
        let number = epochs.current().number();
        self.swap_epochs(epochs);
        Ok(number)
    }

    /// Destroys the key of an epoch that is over. Waits for the disk.
    pub fn destroy_epoch(&self, number: u32, by: &str, reason: &str) -> Result<Destroyed, EpochError> {
        let _one = self.changing_epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let keyring = self.snapshot().settings.keyring();
        let Destruction { keys, outcome } = keyring.destroy(&self.epochs(), number, self.clock.now(), by, reason)?;
        self.swap_epochs(keys);
        Ok(match outcome {
            Ok(change) => {
                self.epoch_changed(&change);
                Destroyed::Wholly
            }
            Err((path, source)) => {
                tracing::error!(epoch = number, by, reason, path = %path.display(), error = %source, "a key is still there");
                Destroyed::Remains { path, source }
            }
        })
    }

    /// Begins the next epoch where its time has come. What fails is tried again, and said once until it is better.
    pub(crate) fn rotate_when_due(&self, failing: &mut bool) {
        let settings = &self.snapshot().settings;
        if !settings.keyring().is_due(&self.epochs(), self.clock.now(), settings.epochs.rotate) {
            *failing = false;
            return;
        }
        match self.rotate_epochs("gateway", "its time had come") {
            Ok(_) => *failing = false,
            Err(error) if !*failing => {
                *failing = true;
                tracing::error!(%error, "the next epoch cannot begin; the old one goes on");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use crate::clock::Timestamp;
    use crate::policy::charge::{Charge, Person, Rate, Receipt};
    use crate::policy::shadow::Shadow;
    use crate::state::State;
    use crate::state::store::Ledger;
    use crate::subject::epochs::{EpochKeys, Keyring};
    use crate::subject::{EpochKey, Kind, Subject};

    /// A gateway's state and keys, without the gateway.
    struct Counter {
        home: TempDir,
        /// `None` while it is opened again.
        state: Option<State>,
        keyring: Keyring,
        keys: EpochKeys,
    }

    const PEOPLE: usize = 3;

    impl Counter {
        fn new(now: Timestamp) -> Counter {
            let home = TempDir::new().expect("directory");
            let keyring = Keyring::new(home.path(), None);
            let keys = keyring.open(now, Duration::ZERO).expect("keys").0;
            let state = Some(State::open(&home.path().join("state")).expect("state").0);
            Counter { home, state, keyring, keys }
        }

        fn ask(&self, person: usize, rate: Rate, now: Timestamp) -> Receipt {
            let subject = Subject::parse(Kind::Mobile, &format!("641234567{person}")).expect("a mobile");
            let key = |key: &EpochKey| key.token(&subject).key();
            let person = Person {
                key: key(self.keys.current()),
                previous: self.keys.previous(now).map(|previous| key(previous)),
            };
            let state = self.state.as_ref().expect("open");
            let mut ledger = Ledger::default();
            let charges = std::iter::once(Charge::SubjectRate(person, rate));
            // The overlap needs room for everybody once; but after a kill the disk may still have those who were moved twice.
            let partner = state.partner(&"alpha".into());
            let (receipt, _) = partner.charge(charges, Shadow::default(), 2 * PEOPLE, now, &mut ledger);
            state.keep(&mut ledger).expect("kept");
            receipt
        }

        fn rotate(&mut self, overlap: Duration, now: Timestamp) {
            // Refused while two epochs are counted: then there is nothing to be seen.
            if let Ok((keys, _)) = self.keyring.rotate(&self.keys, now, overlap, "uid 0", "a test") {
                self.keys = keys;
            }
        }

        fn restart(&mut self, in_order: bool, overlap: Duration, now: Timestamp) {
            let state = self.state.take().expect("open");
            if in_order {
                state.rewrite(now).expect("kept");
            }
            drop(state);
            self.state = Some(State::open(&self.home.path().join("state")).expect("state").0);
            self.keys = self.keyring.open(now, overlap).expect("keys").0;
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// Somebody is asked for, so many seconds later.
        Ask {
            person: usize,
            after: u64,
        },
        Restart {
            in_order: bool,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            12 => (0..PEOPLE, prop_oneof![0u64..60, 0u64..900, 0u64..20_000])
                .prop_map(|(person, after)| Event::Ask { person, after }),
            1 => any::<bool>().prop_map(|in_order| Event::Restart { in_order }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(500), ..ProptestConfig::default() })]
        #[test]
        fn a_rotation_flips_no_verdict(
            events in proptest::collection::vec(event(), 1..120),
            rotations in proptest::collection::vec(0usize..120, 1..4),
            count in 1u32..7,
            burst in 1u32..5,
        ) {
            let rate = Rate { count, period: Duration::from_secs(3_600), burst };
            // Not a second more than the configuration demands.
            let overlap = rate.refill();
            let mut now = Timestamp::from_unix_seconds(1_800_000_000);
            let (mut plain, mut rotated) = (Counter::new(now), Counter::new(now));
            for (at, event) in events.iter().enumerate() {
                if rotations.contains(&at) {
                    rotated.rotate(overlap, now);
                }
                match *event {
                    Event::Ask { person, after } => {
                        now = now.plus(Duration::from_secs(after));
                        let verdicts = (plain.ask(person, rate, now), rotated.ask(person, rate, now));
                        prop_assert_eq!(verdicts.0, verdicts.1, "event {}", at);
                    }
                    Event::Restart { in_order } => {
                        plain.restart(in_order, overlap, now);
                        rotated.restart(in_order, overlap, now);
                    }
                }
            }
            if rotations.iter().any(|at| *at < events.len()) {
                prop_assert!(rotated.keys.current().number() > 1, "nothing was tried");
            }
        }
    }
}
