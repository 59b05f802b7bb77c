//! Evidence of misuse: what a partner asks, folded into what it may still ask. Pure: no IO, no locks, no clock; time is an
//! argument. The live path calls the two halves under the partner's lock, `replay` calls the very same ones.
//!
//! A lookup is folded twice. [`Watch::asked`] before it is forwarded, atomically with its verdict, so that parallel streams
//! cannot slip through; [`Watch::answered`] when its outcome is in, which only lookups have that were allowed.

use std::net::IpAddr;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::policy::charge::Person;
pub use crate::policy::containment::Level;
use crate::policy::reason::Reason;
use crate::subject::{Features, Kind, Mark};

pub mod contacts;
mod evidence;
mod fleet;
mod identifiers;
mod interest;
mod key_use;
mod ladder;
mod leeway;
mod misses;
mod novelty;
mod params;
mod pending;
#[cfg(test)]
mod tests;
mod volume;
mod watch;

pub use fleet::Fleet;
pub use ladder::Hold;
pub use params::{Detectors, Misses as MissParams, Params};
pub use watch::{Standing, Ticket, Watch};

/// What kind of caller a partner is by its contract; [`Class::Unknown`] has the strictest defaults that honour the contract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Class {
    #[default]
    Unknown,
    /// People for themselves, each with consent.
    CitizenApp,
    /// Named staff at a desk.
    Interactive,
    /// A system without people in front of it.
    Batch,
}

/// What the configuration says of a partner, as far as detectors may know it.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    pub name: Arc<str>,
    pub class: Class,
    /// Distinct people a day that the contract plans; 0 for none stated.
    pub people_per_day: u32,
    pub consent_required: bool,
    /// Whether requests name an actor.
    pub actors: bool,
    /// Never frozen automatically.
    pub critical: bool,
    /// The numbers that detectors decide by; `Default` is what ships.
    pub params: Arc<Params>,
}

/// Whether a person is on one of the operator's lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Interest {
    #[default]
    None,
    /// Each lookup is worth telling.
    Watched,
    /// Nobody's row, planted in the backend: whoever asks for it has it from a list. With the list's owner, if one is named.
    Canary(Option<Arc<str>>),
}

/// A lookup, before it is forwarded.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    pub now: Timestamp,
    pub kind: Kind,
    /// `Err`: the identifier does not parse, for this reason.
    pub subject: Result<Subject, Reason>,
    pub actor: Option<Actor<'a>>,
    pub source: IpAddr,
    /// A proof of consent, verified, came with it.
    pub consent: bool,
}

/// The end user at the partner, as asserted by the partner.
#[derive(Clone, Copy, Debug)]
pub struct Actor<'a> {
    /// What it is remembered by: its mark under this epoch's key, and under the one before while that overlaps.
    pub mark: Mark,
    pub previous: Option<Mark>,
    /// In clear, for the text of an alert; never kept.
    pub name: &'a str,
}

#[derive(Clone, Debug)]
pub struct Subject {
    pub person: Person,
    pub features: Features,
    /// Its series under the key before, while two are in use.
    pub previous_series: Option<Mark>,
    pub interest: Interest,
}

/// What became of an allowed lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// So many people's data were disclosed, at least one.
    Found { people: u32 },
    /// The backend knows nobody by this id.
    NotFound,
    /// The backend refused the id as impossible.
    Invalid,
    /// No answer, or one that says nothing about the person.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Info,
    Warning,
    Critical,
}

/// Something an operator should know. `why` can be forwarded as it is: it names nobody who was looked up.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    pub time: Timestamp,
    pub partner: Arc<str>,
    /// In clear, as asserted by the partner.
    pub actor: Option<String>,
    /// A stable name of the detector, such as `miss-evidence`.
    pub detector: &'static str,
    pub severity: Severity,
    /// The top reasons with their numbers, a sentence each.
    pub why: Vec<String>,
    /// Where the partner or the actor stands now, when this alert moved it.
    pub moved: Option<Step>,
    /// People disclosed from the change point on, when this alert is about containment.
    pub exposed: Option<u32>,
}

/// A move on the ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub from: Level,
    pub to: Level,
    /// When it falls back by itself.
    pub until: Option<Timestamp>,
}

/// What the asked half says: whether the lookup may go on, and what an operator is told.
#[derive(Debug)]
#[must_use]
pub struct Ruling {
    /// What [`Watch::answered`] needs; or why the lookup is refused.
    pub verdict: Result<Ticket, Reason>,
    pub alerts: Vec<Alert>,
}
