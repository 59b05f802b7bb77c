//! Which alerts go on, and which of what detectors say is news? Pure: values in, values out, time is an argument.
//!
//! An alert is about a partner, or an actor of it, by one detector. It goes on until it did not come again for a while and
//! holds nobody on the ladder. Its first, what is worse than before and its end are news; the rest is counted (and, of what is
//! for information, written down).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::detect::{Level, Severity};
use crate::subject::Mark;

/// An alert that goes on, as it may be told to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Active {
    pub partner: String,
    /// As the configuration has actors called.
    pub actor: Option<String>,
    /// What the audit calls the actor.
    pub mark: Option<Mark>,
    pub detector: String,
    pub severity: Severity,
    pub why: Vec<String>,
    pub moved: Option<Moved>,
    pub exposed: Option<u32>,
    /// The last decision that it came with.
    pub decision: Option<Uuid>,
    pub first: Timestamp,
    pub last: Timestamp,
    /// When it was told last.
    pub told: Timestamp,
    pub count: u64,
}

/// A step on the ladder; what [`crate::detect::Step`] is in words that are kept and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moved {
    pub from: Level,
    pub to: Level,
    pub until: Option<Timestamp>,
}

/// What is new about an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Raised,
    /// More severe, or another step up the ladder.
    Escalated,
    /// It goes on, and was told long ago.
    Repeated,
    /// No news. An alert for information is about one lookup: each is written down, and receivers are not told.
    Counted,
    Resolved,
}

impl Change {
    pub const fn as_str(self) -> &'static str {
        match self {
            Change::Raised => "raised",
            Change::Escalated => "escalated",
            Change::Repeated => "repeated",
            Change::Counted => "counted",
            Change::Resolved => "resolved",
        }
    }
}

/// All alerts that go on, and those that ended not long ago.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    active: Vec<Active>,
    /// With the time of their end: an Alertmanager that was away learns of it.
    ended: Vec<(Active, Timestamp)>,
}

/// How long alerts go on, and how often they are told.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub repeat: Duration,
    pub quiet: Duration,
}

/// A partner chooses its actors' names, and so how many there are.
const ACTIVE_MAX: usize = 1_000;
/// Longer than an Alertmanager believes in what it was told last.
const ENDED_KEPT: Duration = Duration::from_secs(900);

impl Active {
    fn is_about(&self, other: &Active) -> bool {
        (&self.partner, &self.actor, &self.detector) == (&other.partner, &other.actor, &other.detector)
    }

    /// Whether it holds somebody on the ladder, and until when.
    fn holds(&self, now: Timestamp) -> bool {
        self.moved.is_some_and(|moved| moved.to > Level::Open && moved.until.is_none_or(|until| until > now))
    }

    fn is_over(&self, pace: Pace, now: Timestamp) -> bool {
        !self.holds(now) && self.last.plus(pace.quiet) <= now
    }
}

impl Ledger {
    /// Takes in what a detector said. `None`: it is no news, and only counted.
    pub fn fold(&mut self, said: Active, pace: Pace) -> Option<(Change, Active)> {
        let now = said.last;
        let Some(at) = self.active.iter().position(|known| known.is_about(&said)) else {
            self.make_room(said.severity, now);
            if self.active.len() < ACTIVE_MAX {
                self.active.push(said.clone());
            }
            return Some((Change::Raised, said));
        };
        let known = &mut self.active[at];
        let before = known.clone();
        let level = |one: &Active| one.moved.map_or(Level::Open, |moved| moved.to);
        let worse = said.severity > known.severity || said.moved.is_some() && level(&said) > level(known);
        known.count += 1;
        known.last = known.last.max(now);
        known.decision = said.decision.or(known.decision);
        known.exposed = said.exposed.max(known.exposed);
        let count = known.count;
        let each = (said.severity == Severity::Info).then(|| Active { count, first: known.first, ..said.clone() });
        known.moved = said.moved.or(known.moved);
        if said.severity >= known.severity {
            (known.severity, known.why) = (said.severity, said.why);
        }
        let change = match worse {
            true => Change::Escalated,
            false if known.told.plus(pace.repeat) <= now => Change::Repeated,
            false => return each.map(|each| (Change::Counted, each)),
        };
        known.told = now;
        let known = known.clone();
        if known.severity != before.severity {
            // Severity is a label: to an Alertmanager this is another alert.
            self.note_end(before, now);
        }
        Some((change, known))
    }

    /// Those that are over.
    pub fn end(&mut self, pace: Pace, now: Timestamp) -> Vec<(Change, Active)> {
        self.ended.retain(|(_, end)| end.plus(ENDED_KEPT) > now);
        let over = self.active.extract_if(.., |one| one.is_over(pace, now)).collect();
        self.resolved(over, now)
    }

    /// A partner, or an actor of it, is let off the ladder: what held it there is over.
    pub fn release(&mut self, partner: &str, actor: Option<&str>, now: Timestamp) -> Vec<(Change, Active)> {
        let released = |one: &mut Active| one.partner == partner && one.actor.as_deref() == actor && one.holds(now);
        let over = self.active.extract_if(.., released).collect();
        self.resolved(over, now)
    }

    fn resolved(&mut self, over: Vec<Active>, now: Timestamp) -> Vec<(Change, Active)> {
        over.iter().for_each(|one| self.note_end(one.clone(), now));
        over.into_iter().map(|one| (Change::Resolved, one)).collect()
    }

    /// The least that is known makes room, if it is no more severe than what comes.
    fn make_room(&mut self, severity: Severity, now: Timestamp) {
        if self.active.len() < ACTIVE_MAX {
            return;
        }
        let rank = |one: &Active| (one.severity, one.holds(now), one.last);
        let least = (0..self.active.len()).min_by_key(|at| rank(&self.active[*at]));
        if let Some(at) = least.filter(|at| self.active[*at].severity <= severity) {
            let gone = self.active.swap_remove(at);
            self.note_end(gone, now);
        }
    }

    fn note_end(&mut self, one: Active, now: Timestamp) {
        self.ended.push((one, now));
        let too_many = self.ended.len().saturating_sub(ACTIVE_MAX);
        self.ended.drain(..too_many);
    }

    pub fn active(&self) -> &[Active] {
        &self.active
    }

    /// Those that ended not long ago, but for those that began again, with their ends.
    pub fn ended(&self) -> impl Iterator<Item = &(Active, Timestamp)> {
        let again = |one: &Active| self.active.iter().any(|now| now.is_about(one) && now.severity == one.severity);
        self.ended.iter().filter(move |(one, _)| !again(one))
    }

    pub fn is_empty(&self) -> bool {
        self.active.is_empty() && self.ended.is_empty()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const PACE: Pace = Pace { repeat: Duration::from_secs(3600), quiet: Duration::from_secs(900) };

    pub fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(1_800_000_000 + seconds)
    }

    pub fn said(actor: Option<&str>, severity: Severity, seconds: u64) -> Active {
        Active {
            partner: "icmr".to_owned(),
            actor: actor.map(str::to_owned),
            mark: actor.map(|_| Mark::from_bytes([7; 16])),
            detector: "miss-evidence".to_owned(),
            severity,
            why: vec!["31 of 40 people asked for do not exist".to_owned()],
            moved: None,
            exposed: None,
            decision: None,
            first: at(seconds),
            last: at(seconds),
            told: at(seconds),
            count: 1,
        }
    }

    fn held(to: Level, until: Option<u64>, mut said: Active) -> Active {
        said.moved = Some(Moved { from: Level::Open, to, until: until.map(at) });
        said
    }

    fn change(news: Option<(Change, Active)>) -> Option<(Change, u64)> {
        news.map(|(change, alert)| (change, alert.count))
    }

    use Severity::{Critical, Info, Warning};

    #[test]
    fn the_first_what_is_worse_and_the_end_are_news_and_the_rest_is_counted() {
        let mut ledger = Ledger::default();
        let mut fold = |said| change(ledger.fold(said, PACE));
        assert_eq!(fold(said(None, Warning, 0)), Some((Change::Raised, 1)));
        assert_eq!(fold(said(None, Warning, 1)), None);
        assert_eq!(fold(said(Some("hw-1"), Warning, 1)), Some((Change::Raised, 1)), "somebody else");
        assert_eq!(fold(said(None, Critical, 2)), Some((Change::Escalated, 3)));
        assert_eq!(fold(said(None, Warning, 3)), None, "less than what is known");
        assert_eq!(fold(held(Level::KnownOnly, Some(60), said(None, Critical, 4))), Some((Change::Escalated, 5)));
        assert_eq!(fold(held(Level::KnownOnly, Some(90), said(None, Critical, 5))), None, "it only lasts longer");
        assert_eq!(fold(held(Level::Frozen, None, said(None, Critical, 6))), Some((Change::Escalated, 7)));
        assert_eq!(fold(said(None, Info, 7)), Some((Change::Counted, 8)), "about one lookup");
        assert_eq!(fold(said(None, Critical, 3605)), None);
        assert_eq!(fold(said(None, Critical, 3606)), Some((Change::Repeated, 10)));
    }

    #[test]
    fn it_is_over_when_it_is_quiet_and_holds_nobody() {
        let mut ledger = Ledger::default();
        let _ = ledger.fold(said(Some("hw-1"), Warning, 0), PACE);
        let _ = ledger.fold(held(Level::KnownOnly, Some(7_200), said(None, Critical, 0)), PACE);
        let _ = ledger.fold(held(Level::Frozen, None, said(Some("hw-2"), Critical, 0)), PACE);
        let ended = |news: Vec<(Change, Active)>| -> Vec<Option<String>> {
            assert!(news.iter().all(|(change, _)| *change == Change::Resolved));
            news.into_iter().map(|(_, alert)| alert.actor).collect()
        };
        let some = |name: &str| Some(name.to_owned());
        assert_eq!(ended(ledger.end(PACE, at(899))), []);
        assert_eq!(ended(ledger.end(PACE, at(900))), [some("hw-1")]);
        assert_eq!(ended(ledger.end(PACE, at(7_199))), []);
        assert_eq!(ended(ledger.end(PACE, at(7_200))), [None]);
        assert_eq!(ended(ledger.release("icmr", None, at(7_201))), []);
        assert_eq!(ended(ledger.release("other", Some("hw-2"), at(7_201))), []);
        assert_eq!(ended(ledger.release("icmr", Some("hw-2"), at(7_201))), [some("hw-2")]);
        assert!(ledger.active().is_empty());
        assert_eq!(ledger.ended().count(), 2, "the third ended long ago");
        let _ = ledger.end(PACE, at(9_000));
        assert!(ledger.is_empty());
    }

    #[test]
    fn what_escalates_ends_under_its_old_severity() {
        let mut ledger = Ledger::default();
        let _ = ledger.fold(said(None, Warning, 0), PACE);
        let _ = ledger.fold(said(None, Critical, 1), PACE);
        let ended: Vec<_> = ledger.ended().map(|(one, end)| (one.severity, *end)).collect();
        assert_eq!(ended, [(Warning, at(1))]);
        let _ = ledger.release("icmr", None, at(2));
        // Over and begun again, it has not ended.
        let _ = ledger.end(PACE, at(901));
        let _ = ledger.fold(said(None, Warning, 902), PACE);
        assert!(ledger.ended().all(|(one, _)| one.severity == Critical));
    }

    #[test]
    fn however_many_actors_there_are_room_is_bounded_and_the_worst_stay() {
        let mut ledger = Ledger::default();
        let _ = ledger.fold(said(None, Critical, 0), PACE);
        for number in 0..3 * ACTIVE_MAX {
            let news = ledger.fold(said(Some(&format!("hw-{number}")), Warning, 1 + number as u64), PACE);
            assert_eq!(change(news), Some((Change::Raised, 1)));
        }
        assert_eq!(ledger.active().len(), ACTIVE_MAX);
        assert!(ledger.ended.len() <= ACTIVE_MAX);
        assert_eq!(change(ledger.fold(said(None, Critical, 9_000), PACE)), Some((Change::Repeated, 2)));
    }
}
