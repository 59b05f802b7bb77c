//! What did detectors know when the gateway ended? The evidence that was kept last, and what the audit tells of since.

use std::time::{Duration, Instant};

use crate::audit::event::{self, Event, Step};
use crate::audit::read::{Fault, Log};
use crate::clock::Timestamp;
use crate::detect::{Actor, Asked, Interest, Outcome, Subject};
use crate::gateway::Gateway;
use crate::policy::charge::{Person, Receipt};
use crate::policy::lookup::lookup_route;
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;
use crate::snapshot::Snapshot;
use crate::subject::{Features, Kind, Mark};

/// More than this is not read again at a start: 20 seconds' worth at the most, and more than ever comes between two times that
/// evidence is kept.
const ENTRIES_MAX: u64 = 1_000_000;

impl Gateway {
    /// Keeps the evidence of every partner that asked since the last time. What is in the audit by now is folded already.
    pub(crate) fn keep_evidence(&self) {
        if let Err(error) = self.state().keep_evidence(self.audit.queue.durable()) {
            tracing::warn!(%error, "evidence is not kept: after a crash more of the audit is read");
        }
    }

    /// Folds what came into the audit after evidence was kept. To be called before anybody is served.
    pub(crate) fn fold_audit(&self) -> Result<(), String> {
        let snapshot = self.snapshot();
        let directory = snapshot.settings.audit_directory();
        let Ok(mut log) = Log::open(&directory) else { return Ok(()) };
        let begun = Instant::now();
        let size = log.size().map_err(|fault| fault.to_string())?;
        let from = self.state().evidence_folded().max(size.saturating_sub(ENTRIES_MAX));
        let mut folded = 0_u64;
        log.each::<Fault>(from..size, |_, entry| {
            // What is no entry of this version stops the start elsewhere, or is none that detectors know of.
            if let Ok(Event::Disclosure(request) | Event::Denied(request)) = Event::from_json(entry) {
                folded += u64::from(fold(&snapshot, &request).is_some());
            }
            Ok(())
        })
        .map_err(|fault| fault.to_string())?;
        if folded > 0 {
            let took_ms = begun.elapsed().as_millis() as u64;
            tracing::info!(lookups = folded, took_ms, "evidence of an earlier run goes on");
        }
        Ok(())
    }
}

/// Both halves of a recorded lookup. `None` for one that detectors were not told of.
fn fold(snapshot: &Snapshot, request: &event::Request) -> Option<()> {
    let name = request.partner.as_deref()?;
    let id = snapshot.policy.partners.iter().position(|partner| *partner.name == *name)?;
    let (state, profile) = (&snapshot.states[id], &snapshot.profiles[id]);
    let route = snapshot.policy.route_named(request.route.as_deref()?)?;
    let wrong = request.found.filter(|found| found.step == Step::Lookup).map(|found| found.reason);
    let (kind, subject) = match (&request.subject, wrong) {
        (Some(subject), None) => (Kind::parse(&subject.kind)?, Ok(asked_for(subject))),
        (_, Some(reason)) if reason.row().public == "identifier-invalid" => {
            (lookup_route(snapshot.policy.route(route))?.kind, Err(reason))
        }
        _ => return None,
    };
    // What policy refused by itself detectors were not asked about.
    let told = subject.is_err() || request.receipts.len() > 1;
    if !told {
        return None;
    }
    let actor = request.actor.map(|mark| Actor { mark, previous: None, name: "" });
    let asked = Asked { now: request.time, kind, subject, actor, source: request.source, consent: false };
    let refused = request.receipts.get(1).and_then(|receipt| match receipt {
        event::Receipt::Refused(reason) => Some(*reason),
        _ => None,
    });
    let pay = || match refused {
        Some(reason) => Receipt::Refused { reason, retry_after: Duration::ZERO },
        None => Receipt::Paid,
    };
    let ordered = request.footing.map(|footing| footing.levels).unwrap_or_default();
    let (_, mut pending, ..) = state.ask(profile, Shadow::default(), &asked, ordered, pay);
    let _ = pending.answered(outcome(request), later(request));
    Some(())
}

fn outcome(request: &event::Request) -> Outcome {
    match (request.backend, request.reason) {
        (Some(event::Backend { people: Some(0), .. }), _) | (_, Some(Reason::NoMatch)) => Outcome::NotFound,
        (Some(event::Backend { people: Some(people), .. }), None) => Outcome::Found { people },
        (_, None) => Outcome::Found { people: 1 },
        (_, Some(_)) => Outcome::Unavailable,
    }
}

fn later(request: &event::Request) -> Timestamp {
    request.time.plus(Duration::from_micros(request.latency.total_us))
}

/// On which list somebody is, the audit does not say: lists have a key of their own. That was told when it was asked.
fn asked_for(subject: &event::Subject) -> Subject {
    let previous = subject.previous.as_ref().map(|previous| *previous.token.as_bytes());
    let person = Person { key: *subject.token.as_bytes(), previous };
    let features = Features {
        block: subject.block,
        before: subject.before.unwrap_or(Mark::NONE),
        after: subject.after.unwrap_or(Mark::NONE),
        offset: subject.offset,
        series: subject.series,
        allocated: subject.allocated,
        check_digit: subject.check_digit,
    };
    Subject { person, features, previous_series: None, interest: Interest::None }
}
