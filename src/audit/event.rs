//! What does an entry of the log say? The schema, version 1: one JSON object an entry, told apart by `event`.
//!
//! Within a version, members are added and never change their meaning; readers skip what they do not know. Absent facts
//! are null or left out. People are tokens, actors are marks, both keyed (see `subject`); no identifier is ever in here.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::policy::admit::Standing;
use crate::policy::charge;
use crate::policy::containment::{self, Level};
use crate::policy::lookup::Lookup;
use crate::policy::reason::Reason;
use crate::subject::{Features, Mark, Token};

pub const VERSION: u8 = 1;
/// Stands where a route's name would for the gateway's own route.
pub const OWN_ROUTE: &str = "(own)";
/// Stands for a purpose that no grant of the configuration names: whatever it was, it may have been anything.
pub const UNKNOWN_PURPOSE: &str = "(unknown)";

/// One entry. Serialised, it is at most `layout::ENTRY_BYTES_MAX` bytes: every text in it is bounded where it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// A lookup that was allowed, before its answer: a hit, or a miss, which tells as much.
    #[serde(borrow)]
    Disclosure(Box<Request<'a>>),
    /// A request that was refused, or whose backend failed.
    #[serde(borrow)]
    Denied(Box<Request<'a>>),
    /// How a disclosed answer ended, or that its asker went away before there was one. A disclosure without it counts as
    /// wholly disclosed.
    #[serde(borrow)]
    Closed(Closed<'a>),
    /// What a client certificate says; once in each segment before the first request that it sent.
    #[serde(borrow)]
    Credential(Credential<'a>),
    /// Connections that came to no request, summed up over a minute.
    #[serde(borrow)]
    Connections(Connections<'a>),
    #[serde(borrow)]
    Reload(Reload<'a>),
    /// What an operator told the gateway.
    #[serde(borrow)]
    Command(Command<'a>),
    #[serde(borrow)]
    Freeze(Freeze<'a>),
    /// A partner or an actor moved on the ladder of containment.
    #[serde(borrow)]
    Containment(Containment<'a>),
    #[serde(borrow)]
    Epoch(Epoch<'a>),
    /// What operators were told of a partner or an actor.
    #[serde(borrow)]
    Alert(Alert<'a>),
    #[serde(borrow)]
    Start(Start<'a>),
    Stop(Stop),
    /// Something that is missing here, and how much of it.
    #[serde(borrow)]
    Gap(Gap<'a>),
    /// The tree up to the entry before this one, and how the clock was.
    #[serde(borrow)]
    Checkpoint(Checkpoint<'a>),
    /// Entries that were removed because their time was over; their hashes stay.
    Pruned(Pruned),
    /// Of a later version.
    #[serde(other)]
    Unknown,
}

/// The facts of one request, from which its verdict follows again under the same policy, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request<'a> {
    pub v: u8,
    /// When the request began, which is the time that all rules saw.
    pub time: Timestamp,
    /// Decision id, also in the answer.
    pub id: Uuid,
    /// Trace id of `traceparent`, 32 hex digits; absent where somebody's number could be read in it.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub trace: Option<Cow<'a, str>>,
    /// Of the configuration.
    pub generation: u64,
    /// SHA-256 of the client certificate in hex: what it says is in a `credential` event.
    #[serde(borrow)]
    pub credential: Cow<'a, str>,
    pub source: IpAddr,
    #[serde(borrow)]
    pub partner: Option<Cow<'a, str>>,
    pub standing: Standing,
    /// The route that matched; `(own)` for the gateway's own.
    #[serde(borrow)]
    pub route: Option<Cow<'a, str>>,
    /// Place of the grant among its partner's, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub grant: Option<u16>,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub purpose: Option<Cow<'a, str>>,
    /// Keyed mark of the end user as asserted by the partner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<Mark>,
    /// Id of a consent that was proved.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub consent: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub subject: Option<Subject<'a>>,
    /// What steps outside of the policy found wrong, if any did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub found: Option<Found>,
    /// Where those stood on the ladder who asked, where it was not open to both.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub footing: Option<Footing>,
    /// What was paid: for the request, then for the person.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub receipts: Vec<Receipt>,
    pub verdict: Verdict,
    /// The private reason for a refusal; `no-match` for a miss.
    #[serde(skip_serializing_if = "Option::is_none", default, with = "reason_code")]
    pub reason: Option<Reason>,
    /// What would have been refused, were nothing in shadow.
    #[serde(skip_serializing_if = "Vec::is_empty", default, with = "reason_codes")]
    pub shadow: Vec<Reason>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<Backend>,
    /// Members of the answer that the partner gets; absent: all that the backend gave.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub fields: Option<Vec<Cow<'a, str>>>,
    /// The answer's body, where it is known before it is sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub answer: Option<Answer>,
    pub latency: Latency,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Allow,
    Deny,
    /// The backend or the gateway failed: no verdict on the partner.
    Failed,
}

impl Verdict {
    /// A miss is an answer, and a failing backend or gateway is no verdict on the partner.
    pub fn of(refusal: Option<Reason>) -> Verdict {
        match refusal {
            None | Some(Reason::NoMatch) => Verdict::Allow,
            Some(reason) => match reason.row().public {
                "backend-failed" | "backend-timeout" | "unavailable" | "internal" => Verdict::Failed,
                _ => Verdict::Deny,
            },
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Allow => "allow",
            Verdict::Deny => "deny",
            Verdict::Failed => "failed",
        }
    }
}

/// Who was asked for, as far as detectors and auditors may know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject<'a> {
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    /// Id of the epoch key that the token and all marks of this entry are made with.
    #[serde(borrow)]
    pub epoch: Cow<'a, str>,
    /// The first 16 bytes of the subject's token.
    pub token: Mark,
    /// Its token under the epoch before, while the two overlap.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub previous: Option<Previous<'a>>,
    pub block: Mark,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub before: Option<Mark>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub after: Option<Mark>,
    pub offset: u16,
    pub series: Mark,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allocated: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub check_digit: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Previous<'a> {
    #[serde(borrow)]
    pub epoch: Cow<'a, str>,
    pub token: Mark,
}

/// What decides whether a lookup is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footing {
    #[serde(flatten)]
    pub levels: containment::Footing,
    /// The lookup came with a proof of consent, verified.
    pub consent: bool,
    /// The person was known to the partner before.
    pub known: bool,
}

impl Footing {
    pub fn held(&self) -> Result<(), Reason> {
        containment::held(self.levels, self.consent, self.known)
    }
}

/// A fact that policy takes as given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub step: Step,
    #[serde(with = "reason_code_always")]
    pub reason: Reason,
}

/// Where in a request's life something ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Trust, framing, host, path: before anything was charged.
    Intake,
    /// As many connections as the partner may have.
    Connections,
    /// Reading what was asked for.
    Lookup,
    /// Keeping what was paid.
    Keep,
    /// The backend.
    Forward,
    /// The backend's answer.
    Disclose,
    /// This log.
    Record,
    /// On the way to the partner.
    Answer,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Receipt {
    Paid,
    /// All but these, which are in shadow.
    #[serde(with = "reason_codes")]
    Passed(Vec<Reason>),
    #[serde(with = "reason_code_always")]
    Refused(Reason),
}

impl Receipt {
    pub fn of(receipt: &charge::Receipt) -> Receipt {
        match receipt {
            charge::Receipt::Paid => Receipt::Paid,
            charge::Receipt::Passed(shadow) => Receipt::Passed(shadow.reasons().collect()),
            charge::Receipt::Refused { reason, .. } => Receipt::Refused(*reason),
        }
    }
}

/// What the backend answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub status: u16,
    /// Records in the answer, one a person; absent where the route does not say how to count.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub people: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub bytes: u64,
    /// Keyed digest of the body that the partner got, so that a sample can be matched and none can be guessed.
    pub digest: Mark,
}

/// Where the time went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    pub total_us: u64,
    /// Waiting for the partner's body.
    pub upload_us: u64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Closed<'a> {
    pub v: u8,
    pub time: Timestamp,
    pub id: Uuid,
    #[serde(borrow)]
    pub partner: Option<Cow<'a, str>>,
    pub by: EndedBy,
    pub step: Step,
    /// Of the body, that left the gateway.
    pub bytes: u64,
    /// Of all these bytes, where the `disclosure` could not hold it yet.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub digest: Option<Mark>,
    pub total_us: u64,
}

/// Who ended an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndedBy {
    /// Nobody: the last byte was sent.
    Complete,
    Partner,
    Backend,
    /// A deadline of ours.
    Gateway,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Credential<'a> {
    pub v: u8,
    pub time: Timestamp,
    /// SHA-256 of the certificate, hex: what requests name.
    #[serde(borrow)]
    pub fingerprint: Cow<'a, str>,
    /// SHA-256 of its public key info, hex.
    #[serde(borrow)]
    pub spki: Cow<'a, str>,
    /// Configured name of the issuer.
    #[serde(borrow)]
    pub issuer: Cow<'a, str>,
    #[serde(borrow)]
    pub subject: Cow<'a, str>,
    #[serde(borrow, default)]
    pub uris: Vec<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub dns_names: Vec<Cow<'a, str>>,
    pub not_after: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connections<'a> {
    pub v: u8,
    /// Beginning of the minute.
    pub time: Timestamp,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    /// /24 of IPv4, /56 of IPv6; absent for all those that had no place of their own.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub prefix: Option<Cow<'a, str>>,
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reload<'a> {
    pub v: u8,
    pub time: Timestamp,
    pub swapped: bool,
    /// Of what is served now.
    pub generation: u64,
    /// SHA-256 over the configuration's files, hex.
    #[serde(borrow)]
    pub digest: Cow<'a, str>,
    #[serde(borrow, default)]
    pub changed: Vec<Cow<'a, str>>,
    /// Why it was refused.
    #[serde(borrow, skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<Cow<'a, str>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Command<'a> {
    pub v: u8,
    pub time: Timestamp,
    #[serde(borrow)]
    pub command: Cow<'a, str>,
    #[serde(borrow)]
    pub by: Cow<'a, str>,
    #[serde(borrow)]
    pub outcome: Cow<'a, str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Freeze<'a> {
    pub v: u8,
    pub time: Timestamp,
    #[serde(borrow)]
    pub partner: Cow<'a, str>,
    pub frozen: bool,
    #[serde(borrow)]
    pub by: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Containment<'a> {
    pub v: u8,
    pub time: Timestamp,
    #[serde(borrow)]
    pub partner: Cow<'a, str>,
    /// Mark of the actor, as asserted by the partner; absent: the partner itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<Mark>,
    pub from: Level,
    pub to: Level,
    /// When it falls back by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Timestamp>,
    #[serde(borrow)]
    pub by: Cow<'a, str>,
    /// By evidence or by the clock, not by an operator.
    pub automatic: bool,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch<'a> {
    pub v: u8,
    pub time: Timestamp,
    /// `created`, `retired` or `destroyed`.
    #[serde(borrow)]
    pub change: Cow<'a, str>,
    pub number: u32,
    #[serde(borrow)]
    pub id: Cow<'a, str>,
    #[serde(borrow)]
    pub by: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert<'a> {
    pub v: u8,
    pub time: Timestamp,
    /// The decision that it came with.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<Uuid>,
    /// `raised`, `escalated`, `repeated`, `counted` or `resolved`.
    #[serde(borrow)]
    pub change: Cow<'a, str>,
    #[serde(borrow)]
    pub partner: Cow<'a, str>,
    /// Keyed mark of the end user as asserted by the partner.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<Mark>,
    #[serde(borrow)]
    pub detector: Cow<'a, str>,
    #[serde(borrow)]
    pub severity: Cow<'a, str>,
    /// The top reasons with their numbers.
    #[serde(borrow, default)]
    pub why: Vec<Cow<'a, str>>,
    /// Where on the ladder it was moved from and to, and until when.
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub from: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none", default)]
    pub to: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<Timestamp>,
    /// People disclosed since it began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exposed: Option<u32>,
    /// How often detectors said so since `first`.
    pub count: u64,
    pub first: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start<'a> {
    pub v: u8,
    pub time: Timestamp,
    #[serde(borrow)]
    pub version: Cow<'a, str>,
    pub generation: u64,
    #[serde(borrow)]
    pub digest: Cow<'a, str>,
    /// Bytes of a torn end that were cut off: never acknowledged to anybody.
    pub torn_bytes: u64,
    /// Whether the run before ended without a `stop`.
    pub after_crash: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    pub v: u8,
    pub time: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap<'a> {
    pub v: u8,
    pub time: Timestamp,
    pub since: Timestamp,
    /// Why there is a gap.
    #[serde(borrow)]
    pub cause: Cow<'a, str>,
    /// Lookups that were refused for want of a record.
    pub lookups_refused: u64,
    /// Lookups that were answered, of which nothing is here: those of routes whose answers do not wait.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub disclosures: u64,
    /// Entries that are missing here, by their event.
    pub denied: u64,
    pub closed: u64,
    pub others: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint<'a> {
    pub v: u8,
    pub time: Timestamp,
    pub clock_synchronised: bool,
    /// Of the system clock against its source.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock_offset_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock_max_error_seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub clock_stratum: Option<u8>,
    #[serde(borrow)]
    pub clock_source: Cow<'a, str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pruned {
    pub v: u8,
    pub time: Timestamp,
    /// Indexes of the first entry and of the first after the last.
    pub from: u64,
    pub until: u64,
    /// All of them are older than this.
    pub before: Timestamp,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What there is room for of a text that nobody bounded.
pub fn clipped(text: &str) -> &str {
    match text.char_indices().nth(TEXT_CHARS_MAX) {
        Some((end, _)) => &text[..end],
        None => text,
    }
}

const TEXT_CHARS_MAX: usize = 1_000;

impl<'a> Event<'a> {
    /// One line of JSON, without its end.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Vec::with_capacity(1_024);
        // Nothing in here can fail to serialise: there are no maps with keys that are no texts.
        let _ = serde_json::to_writer(&mut json, self);
        json
    }

    pub fn from_json(json: &'a [u8]) -> Result<Event<'a>, serde_json::Error> {
        serde_json::from_slice(json)
    }

    pub fn time(&self) -> Timestamp {
        match self {
            Event::Disclosure(request) | Event::Denied(request) => request.time,
            Event::Closed(closed) => closed.time,
            Event::Credential(credential) => credential.time,
            Event::Connections(connections) => connections.time,
            Event::Reload(reload) => reload.time,
            Event::Command(command) => command.time,
            Event::Freeze(freeze) => freeze.time,
            Event::Containment(moved) => moved.time,
            Event::Epoch(epoch) => epoch.time,
            Event::Alert(alert) => alert.time,
            Event::Start(start) => start.time,
            Event::Stop(stop) => stop.time,
            Event::Gap(gap) => gap.time,
            Event::Checkpoint(checkpoint) => checkpoint.time,
            Event::Pruned(pruned) => pruned.time,
            Event::Unknown => Timestamp::default(),
        }
    }

    /// The decision that it is about.
    pub fn id(&self) -> Option<Uuid> {
        match self {
            Event::Disclosure(request) | Event::Denied(request) => Some(request.id),
            Event::Closed(closed) => Some(closed.id),
            Event::Alert(alert) => alert.id,
            _ => None,
        }
    }

    /// The tokens of the person who was asked for, one an epoch.
    pub fn tokens(&self) -> impl Iterator<Item = Mark> {
        let subject = match self {
            Event::Disclosure(request) | Event::Denied(request) => request.subject.as_ref(),
            _ => None,
        };
        let previous = subject.and_then(|subject| subject.previous.as_ref().map(|previous| previous.token));
        subject.map(|subject| subject.token).into_iter().chain(previous)
    }

    pub fn partner(&self) -> Option<&str> {
        match self {
            Event::Disclosure(request) | Event::Denied(request) => request.partner.as_deref(),
            Event::Closed(closed) => closed.partner.as_deref(),
            Event::Freeze(freeze) => Some(&freeze.partner),
            Event::Containment(moved) => Some(&moved.partner),
            Event::Alert(alert) => Some(&alert.partner),
            _ => None,
        }
    }
}

impl Subject<'_> {
    pub fn into_owned(self) -> Subject<'static> {
        let owned = |text: Cow<str>| Cow::Owned(text.into_owned());
        let previous = self.previous.map(|Previous { epoch, token }| Previous { epoch: owned(epoch), token });
        Subject { kind: owned(self.kind), epoch: owned(self.epoch), previous, ..self }
    }
}

impl<'a> Subject<'a> {
    /// Of a lookup and its features under the key of `epoch`; `previous` is its token and epoch before that.
    pub fn of(lookup: &Lookup, features: &Features, epoch: &'a str, previous: Option<(Token, &'a str)>) -> Subject<'a> {
        let neighbour = |mark| (mark != Mark::NONE).then_some(mark);
        Subject {
            kind: lookup.subject.kind().as_str().into(),
            epoch: epoch.into(),
            token: Mark::from_bytes(lookup.token.key()),
            previous: previous
                .map(|(token, epoch)| Previous { epoch: epoch.into(), token: Mark::from_bytes(token.key()) }),
            block: features.block,
            before: neighbour(features.before),
            after: neighbour(features.after),
            offset: features.offset,
            series: features.series,
            allocated: features.allocated,
            check_digit: features.check_digit,
        }
    }
}

/// Reasons by their private codes.
mod reason_code_always {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::policy::reason::Reason;

    pub fn serialize<S: Serializer>(reason: &Reason, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(reason.code())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        let code = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Reason::parse(&code).ok_or_else(|| D::Error::custom(format!("no reason {code}")))
    }
}

mod reason_code {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::policy::reason::Reason;

    pub fn serialize<S: Serializer>(reason: &Option<Reason>, serializer: S) -> Result<S::Ok, S::Error> {
        match reason {
            Some(reason) => serializer.serialize_str(reason.code()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reason>, D::Error> {
        let Some(code) = Option::<std::borrow::Cow<str>>::deserialize(deserializer)? else { return Ok(None) };
        Reason::parse(&code).map(Some).ok_or_else(|| D::Error::custom(format!("no reason {code}")))
    }
}

mod reason_codes {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    use crate::policy::reason::Reason;

    pub fn serialize<S: Serializer>(reasons: &[Reason], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(reasons.iter().map(|reason| reason.code()))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Reason>, D::Error> {
        let codes = Vec::<std::borrow::Cow<str>>::deserialize(deserializer)?;
        let parse = |code: &std::borrow::Cow<str>| {
            Reason::parse(code).ok_or_else(|| D::Error::custom(format!("no reason {code}")))
        };
        codes.iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request<'static> {
        let mark = |byte| Mark::from_bytes([byte; 16]);
        Request {
            v: VERSION,
            time: Timestamp::from_nanos(1_772_355_600_123_456_789),
            id: Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
            trace: Some("0af7651916cd43dd8448eb211c80319c".into()),
            generation: 3,
            credential: "ab".repeat(32).into(),
            source: IpAddr::from([10, 20, 0, 5]),
            partner: Some("icmr".into()),
            standing: Standing::Open,
            route: Some("lookup-by-mobile".into()),
            grant: Some(0),
            purpose: Some("vaccination-status".into()),
            actor: Some(mark(1)),
            consent: None,
            subject: Some(Subject {
                kind: "mobile".into(),
                epoch: "0011aabb".into(),
                token: mark(2),
                previous: Some(Previous { epoch: "99ff0011".into(), token: mark(3) }),
                block: mark(4),
                before: None,
                after: Some(mark(5)),
                offset: 678,
                series: mark(6),
                allocated: Some(false),
                check_digit: None,
            }),
            found: Some(Found { step: Step::Disclose, reason: Reason::NoMatch }),
            footing: Some(Footing {
                levels: containment::Footing { partner: Level::KnownOnly, actor: Level::Open },
                consent: true,
                known: false,
            }),
            receipts: vec![
                Receipt::Paid,
                Receipt::Passed(vec![Reason::RateSubject]),
                Receipt::Refused(Reason::RateRoute),
            ],
            verdict: Verdict::Allow,
            reason: Some(Reason::NoMatch),
            shadow: vec![Reason::RateSubject],
            backend: Some(Backend { status: 404, people: Some(0) }),
            fields: Some(vec!["/beneficiaries".into()]),
            answer: Some(Answer { bytes: 12, digest: mark(7) }),
            latency: Latency { total_us: 900, upload_us: 10, backend_us: Some(700) },
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let text = || Cow::Borrowed("text");
        let (v, time, id) = (VERSION, Timestamp::from_nanos(5), Uuid::from_u128(7));
        let events = [
            Event::Disclosure(Box::new(request())),
            Event::Denied(Box::new(Request {
                subject: None,
                partner: None,
                reason: None,
                receipts: Vec::new(),
                ..request()
            })),
            Event::Closed(Closed {
                v,
                time,
                id,
                partner: None,
                by: EndedBy::Partner,
                step: Step::Answer,
                bytes: 9,
                digest: Some(Mark::from_bytes([9; 16])),
                total_us: 1,
            }),
            Event::Credential(Credential {
                v,
                time,
                fingerprint: text(),
                spki: text(),
                issuer: text(),
                subject: "CN=a \"quoted\" name".into(),
                uris: vec![text()],
                dns_names: Vec::new(),
                not_after: time,
            }),
            Event::Connections(Connections { v, time, reason: text(), prefix: None, count: 3 }),
            Event::Reload(Reload {
                v,
                time,
                swapped: false,
                generation: 2,
                digest: text(),
                changed: vec![text()],
                problems: Vec::new(),
            }),
            Event::Command(Command { v, time, command: text(), by: text(), outcome: text() }),
            Event::Freeze(Freeze { v, time, partner: text(), frozen: true, by: text(), reason: text() }),
            Event::Containment(Containment {
                v,
                time,
                partner: text(),
                actor: Some(Mark::from_bytes([9; 16])),
                from: Level::Open,
                to: Level::KnownOnly,
                until: Some(time),
                by: text(),
                automatic: false,
                reason: text(),
            }),
            Event::Epoch(Epoch { v, time, change: text(), number: 1, id: text(), by: text(), reason: text() }),
            Event::Alert(Alert {
                v,
                time,
                id: Some(id),
                change: text(),
                partner: text(),
                actor: Some(Mark::from_bytes([9; 16])),
                detector: text(),
                severity: text(),
                why: vec![text()],
                from: Some(text()),
                to: Some(text()),
                until: Some(time),
                exposed: Some(18),
                count: 3,
                first: time,
            }),
            Event::Start(Start {
                v,
                time,
                version: text(),
                generation: 1,
                digest: text(),
                torn_bytes: 0,
                after_crash: true,
            }),
            Event::Stop(Stop { v, time }),
            Event::Gap(Gap {
                v,
                time,
                since: time,
                cause: text(),
                lookups_refused: 1,
                disclosures: 5,
                denied: 2,
                closed: 3,
                others: 4,
            }),
            Event::Checkpoint(Checkpoint {
                v,
                time,
                clock_synchronised: true,
                clock_offset_seconds: Some(-0.000_25),
                clock_max_error_seconds: None,
                clock_stratum: Some(3),
                clock_source: text(),
            }),
            Event::Pruned(Pruned { v, time, from: 0, until: 65_536, before: time }),
        ];
        for event in events {
            let json = event.to_json();
            assert_eq!(Event::from_json(&json).expect("readable"), event, "{}", String::from_utf8_lossy(&json));
            assert!(!json.contains(&b'\n'));
        }
    }

    #[test]
    fn a_disclosure_looks_as_documented() {
        let json = Event::Disclosure(Box::new(request())).to_json();
        let value: serde_json::Value = serde_json::from_slice(&json).expect("json");
        assert_eq!(value["event"], "disclosure");
        assert_eq!(value["time"], "2026-03-01T09:00:00.123456789Z");
        assert_eq!(value["subject"]["token"], "02".repeat(16));
        let footing = serde_json::json!({ "partner": "known-only", "actor": "open", "consent": true, "known": false });
        assert_eq!(value["footing"], footing);
        assert_eq!(value["receipts"][1]["passed"][0], "rate-subject");
        assert_eq!(value["reason"], "no-match");
        assert_eq!(value["source"], "10.20.0.5");
    }

    #[test]
    fn later_versions_are_skipped_and_members_added() {
        assert_eq!(Event::from_json(br#"{"event":"telepathy","v":9}"#).expect("readable"), Event::Unknown);
        let stop = br#"{"event":"stop","v":1,"time":"2026-03-01T09:00:00Z","mood":"good"}"#;
        assert!(matches!(Event::from_json(stop), Ok(Event::Stop(_))));
        assert!(Event::from_json(br#"{"event":"stop"}"#).is_err());
    }

    #[test]
    fn a_person_is_found_under_both_epochs() {
        let tokens: Vec<_> = Event::Denied(Box::new(request())).tokens().collect();
        assert_eq!(tokens, [Mark::from_bytes([2; 16]), Mark::from_bytes([3; 16])]);
    }
}
