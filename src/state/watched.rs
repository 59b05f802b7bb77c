//! What detectors know of a partner, folded under one lock with what it pays.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::mem;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::store::{StoreError, replace};
use super::{PartnerState, State};
use crate::clock::Timestamp;
use crate::detect::{Alert, Asked, Outcome, Profile, Ruling, Ticket, Watch};
use crate::policy::charge::Receipt;
use crate::policy::containment::{self, Footing};
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;

/// An allowed lookup whose outcome is not known yet. Dropped without one, it counts as a lookup that found somebody: whether
/// the answer arrived cannot be known.
#[derive(Debug, Default)]
#[must_use]
pub struct Pending(Option<Question>);

#[derive(Debug)]
struct Question {
    partner: Arc<PartnerState>,
    profile: Arc<Profile>,
    ticket: Ticket,
    asked: Timestamp,
}

/// Directory of the evidence, one file a partner, and the file that says how much of the audit is in it.
const DIRECTORY: &str = "evidence";
const FOLDED: &str = "folded";
const SUFFIX: &str = ".cbor";
/// Of the files' format.
const VERSION: u32 = 2;

impl State {
    /// Brings the evidence of partners that asked since the last time to the disk. `folded` entries of the audit are in it.
    pub fn keep_evidence(&self, folded: u64) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        let directory = store.directory().join(DIRECTORY);
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        for partner in self.partners() {
            if !partner.asked.swap(false, Ordering::AcqRel) {
                continue;
            }
            let mut bytes = Vec::new();
            let written = ciborium::into_writer(&(VERSION, &*partner.watch()), &mut bytes).map_err(io::Error::other);
            let kept = written.and_then(|()| replace(&directory.join(format!("{}{SUFFIX}", partner.name)), &bytes));
            if let Err(error) = kept {
                partner.asked.store(true, Ordering::Release);
                return Err(error);
            }
        }
        replace(&directory.join(FOLDED), format!("{folded}\n").as_bytes())?;
        self.evidence_folded.store(folded, Ordering::Release);
        Ok(())
    }

    /// How many entries of the audit the evidence on the disk has.
    pub fn evidence_folded(&self) -> u64 {
        self.evidence_folded.load(Ordering::Acquire)
    }

    /// Takes over what an earlier run knew of its partners. Going on without it would forget who was held, and why.
    pub(super) fn recall_evidence(&mut self, directory: &Path) -> Result<(), StoreError> {
        let directory = directory.join(DIRECTORY);
        let failed = |path: &Path, what: String| StoreError {
            path: path.to_owned(),
            what,
            hint: "mend it, or remove it: what this partner asked for until then is forgotten, and what held it",
        };
        let files = match fs::read_dir(&directory) {
            Ok(files) => files,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(&directory, error.to_string())),
        };
        for file in files {
            let path = file.map_err(|error| failed(&directory, error.to_string()))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let read = || fs::read(&path).map_err(|error| failed(&path, error.to_string()));
            let foreign = || failed(&path, "it is not what this gateway wrote".to_owned());
            if name == FOLDED {
                let text = String::from_utf8(read()?).map_err(|_| foreign())?;
                *self.evidence_folded.get_mut() = text.trim_end().parse().map_err(|_| foreign())?;
            } else if let Some(partner) = name.strip_suffix(SUFFIX) {
                let (version, watch): (u32, Watch) = ciborium::from_reader(&*read()?).map_err(|_| foreign())?;
                if version != VERSION {
                    return Err(foreign());
                }
                *self.partner(&partner.into()).watch() = watch;
            }
        }
        Ok(())
    }
}

impl PartnerState {
    /// The asked half. `pay` takes the charges, and is not called for what is held. Evidence, verdict and charges are one step
    /// to all other lookups of this partner. Where containment is in shadow, what evidence would hold passes; nothing is learned from
    /// its outcome, as if it had been held. `ordered` is where operators have put those who ask, which is in no shadow. Returns also
    /// whether the partner knew this person before, which decides under some steps.
    pub fn ask(
        self: &Arc<Self>,
        profile: &Arc<Profile>,
        shadow: Shadow,
        asked: &Asked,
        ordered: Footing,
        pay: impl FnOnce() -> Receipt,
    ) -> (Receipt, Pending, Vec<Alert>, bool) {
        self.asked.store(true, Ordering::Release);
        let mut watch = self.watch();
        let Ruling { verdict, mut alerts } = watch.asked_under(ordered, profile, asked);
        // A first contact makes nobody known at once, so this is what was true before.
        let known = asked.subject.as_ref().is_ok_and(|subject| watch.knows(&subject.person));
        let by_order = containment::held(ordered, asked.consent, known);
        let ticket = match verdict {
            Ok(ticket) => ticket,
            Err(reason) if shadow.contains(Reason::HeldPartner) && asked.subject.is_ok() && by_order.is_ok() => {
                let passed = |others: Shadow| Receipt::Passed(others.reasons().chain([Reason::HeldPartner]).collect());
                let receipt = match pay() {
                    Receipt::Paid => passed(Shadow::default()),
                    Receipt::Passed(others) => passed(others),
                    refused => refused,
                };
                tracing::debug!(reason = reason.code(), "held, but for the shadow");
                return (receipt, Pending::default(), alerts, known);
            }
            Err(reason) => {
                return (Receipt::Refused { reason, retry_after: Duration::ZERO }, Pending::default(), alerts, known);
            }
        };
        let receipt = pay();
        if let Receipt::Refused { .. } = receipt {
            alerts.extend(watch.answered(profile, ticket, Outcome::Unavailable, asked.now));
            return (receipt, Pending::default(), alerts, known);
        }
        watch.paid(profile, &ticket);
        let (partner, profile) = (self.clone(), profile.clone());
        (receipt, Pending(Some(Question { partner, profile, ticket, asked: asked.now })), alerts, known)
    }

    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        // Folding does not panic; if it did, what was folded before still is the best that is known.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// The answered half. Only the first outcome counts.
    pub fn answered(&mut self, outcome: Outcome, now: Timestamp) -> Vec<Alert> {
        let Some(Question { partner, profile, ticket, .. }) = mem::take(&mut self.0) else { return Vec::new() };
        partner.asked.store(true, Ordering::Release);
        partner.watch().answered(&profile, ticket, outcome, now)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(Question { asked, .. }) = &self.0 {
            let asked = *asked;
            let _ = self.answered(Outcome::Found { people: 1 }, asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::detect::{Interest, Subject};
    use crate::policy::containment::Level;
    use crate::policy::reason::Reason;
    use crate::state::State;
    use crate::subject::{self, EpochKey, Kind};

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn who_is_held_by_order_gets_to_know_nobody() {
        let (partner, profile, key) =
            (State::default().partner(&"icmr".into()), Arc::new(Profile::default()), EpochKey::ephemeral());
        let person = subject::Subject::parse(Kind::Mobile, "6412345678").expect("a mobile");
        let mut now = Timestamp::from_unix_seconds(1_780_000_000);
        let mut ask = |later: Duration, level: Level, consent: bool| {
            now = now.plus(later);
            let subject = Subject {
                person: key.token(&person).key().into(),
                features: key.features(&person),
                previous_series: None,
                interest: Interest::None,
            };
            let source = [10, 20, 0, 5].into();
            let asked = Asked { now, kind: Kind::Mobile, subject: Ok(subject), actor: None, source, consent };
            let ordered = Footing { partner: level, ..Footing::default() };
            // That is about evidence: orders hold all the same.
            let shadow = Shadow::from_iter([Reason::HeldPartner]);
            let (receipt, mut pending, _, known) = partner.ask(&profile, shadow, &asked, ordered, || Receipt::Paid);
            let _ = pending.answered(Outcome::Found { people: 1 }, now);
            (if let Receipt::Refused { reason, .. } = receipt { Some(reason) } else { None }, known)
        };
        let held = Some(Reason::HeldPartner);
        assert_eq!(ask(DAY, Level::KnownOnly, false), (held, false));
        // However long ago it was asked for in vain.
        assert_eq!(ask(400 * DAY, Level::KnownOnly, false), (held, false));
        assert_eq!(ask(DAY, Level::ConsentOnly, false), (held, false));
        assert_eq!(ask(DAY, Level::Open, false), (None, false));
        assert_eq!(ask(DAY, Level::KnownOnly, false), (held, false), "only yesterday");
        assert_eq!(ask(DAY, Level::KnownOnly, true).0, None);
        assert_eq!(ask(DAY, Level::ConsentOnly, true).0, None);
        assert_eq!(ask(DAY, Level::Frozen, true).0, held);
    }
}
