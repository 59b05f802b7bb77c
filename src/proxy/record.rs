//! What is remembered of one request, whatever became of it: one count, one log line, one entry of the audit, which is on the
//! disk before a lookup's answer leaves.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::{HeaderMap, Response, StatusCode};
use tokio::time::{Instant, sleep_until, timeout_at};
use uuid::Uuid;

use super::answer::{Body, Closing};
use super::connection::Peer;
use super::headers::{Trace, decision};
use crate::audit::Audit;
use crate::audit::event::{self, EndedBy, Event, Found, OWN_ROUTE, Step, UNKNOWN_PURPOSE, Verdict};
use crate::audit::queue::{Class, Unavailable};
use crate::clock::Timestamp;
use crate::detect;
use crate::log::LogLimit;
use crate::metrics::{Identifier, Metrics, Outcome};
use crate::policy::admit::Standing;
use crate::policy::charge::Receipt;
use crate::policy::containment::Footing;
use crate::policy::lookup::{Actor, Lookup, Misread};
use crate::policy::reason::Reason;
use crate::policy::route::{Durability, Route, RouteKind};
use crate::policy::shadow::Shadow;
use crate::policy::trail::Trail;
use crate::policy::{Denial, PartnerId, Plan};
use crate::snapshot::Snapshot;
use crate::state::Hold;
use crate::state::watched::Pending;
use crate::subject::{EpochKey, Kind, Mark};

/// One request under way. Dropped without an end, its partner went away: that is counted too.
pub struct Record {
    pub decision: Uuid,
    pub trace: Trace,
    /// Read once: all rules of one request see the same time.
    pub now: Timestamp,
    /// When the request has to be over, to its last byte.
    pub deadline: Instant,
    peer: Rc<Peer>,
    begun: Instant,
    partner: Option<(PartnerId, Arc<str>)>,
    route: Option<Arc<str>>,
    kind: Option<Kind>,
    facts: Facts,
    /// What the backend answered.
    answered: Option<event::Backend>,
    /// What the outcome of an allowed lookup is folded with.
    pending: Pending,
    /// Its places in flight, until its answer takes them over.
    hold: Hold,
    /// When a lookup was allowed: from then on its answer takes as long as the refusal of somebody who is held.
    allowed_at: Option<Instant>,
    /// How far it has come.
    step: Step,
    /// What would have been refused, were nothing in shadow.
    shadow: Shadow,
    /// Time that was not the gateway's: waiting for the partner's body, and for the backend.
    upload: Duration,
    backend: Option<Duration>,
    ended: bool,
}

/// What the audit holds of a request beside its course: all that its verdict follows from.
struct Facts {
    standing: Standing,
    is_own_route: bool,
    grant: Option<u16>,
    purpose: Option<Arc<str>>,
    actor: Option<Mark>,
    subject: Option<event::Subject<'static>>,
    found: Option<Found>,
    receipts: Vec<event::Receipt>,
    footing: Option<event::Footing>,
    /// What detectors are told of a lookup.
    asked: Option<Question>,
    /// The key that the marks of the subject are made with, and the digest of its answer.
    key: Option<Arc<EpochKey>>,
    /// Of a lookup that was allowed: how it came to that, and when its answer may leave.
    permitted: Option<(Trail, Durability)>,
}

/// Who is asked for, and by whom, as evidence has it.
struct Question {
    subject: Result<detect::Subject, Reason>,
    actor: Option<Named>,
}

/// An actor, in clear for as long as the request lasts.
struct Named {
    name: String,
    mark: Mark,
    previous: Option<Mark>,
}

impl Record {
    pub fn begin(peer: &Rc<Peer>, headers: &HeaderMap) -> Record {
        let now = peer.gateway().clock.now();
        let begun = Instant::now();
        let (decision, random) = decision(now);
        peer.begins();
        Record {
            decision,
            trace: Trace::continued(headers, &random),
            now,
            deadline: begun + peer.request_timeout,
            peer: peer.clone(),
            begun,
            partner: None,
            route: None,
            kind: None,
            facts: Facts {
                standing: Standing::Open,
                is_own_route: false,
                grant: None,
                purpose: None,
                actor: None,
                subject: None,
                found: None,
                receipts: Vec::new(),
                footing: None,
                asked: None,
                key: None,
                permitted: None,
            },
            answered: None,
            pending: Pending::default(),
            hold: Hold::default(),
            allowed_at: None,
            step: Step::Intake,
            shadow: Shadow::default(),
            upload: Duration::ZERO,
            backend: None,
            ended: false,
        }
    }

    /// Its places in flight.
    pub fn holds(&mut self, hold: Hold) {
        self.hold = hold;
    }

    /// For its answer.
    pub fn take_hold(&mut self) -> Hold {
        std::mem::take(&mut self.hold)
    }

    pub fn partner_id(&self) -> Option<PartnerId> {
        self.partner.as_ref().map(|(id, _)| *id)
    }

    /// Where the partner stands, as its request's rules see it.
    pub fn stands(&mut self, standing: Standing) {
        self.facts.standing = standing;
    }

    /// What a step outside of the policy found wrong.
    pub fn found(&mut self, step: Step, reason: Reason) -> Reason {
        self.facts.found = Some(Found { step, reason });
        reason
    }

    /// What was paid, for the request first and then for the person.
    pub fn paid(&mut self, receipt: &Receipt) {
        self.facts.receipts.push(event::Receipt::of(receipt));
    }

    /// The partner is known and let in.
    pub fn admitted(&mut self, snapshot: &Snapshot, trail: &Trail) {
        self.step = Step::Lookup;
        self.learn(snapshot, trail);
        if let Some((partner, network)) = trail.network() {
            snapshot.matched(partner, network, self.now, &mut self.peer.ledger());
        }
    }

    /// All is decided and paid for.
    pub fn permitted(&mut self, snapshot: &Snapshot, route: &Route, trail: &Trail) {
        self.shadow.join(trail.shadow());
        self.step = Step::Forward;
        if let RouteKind::Lookup(declared) = &route.kind {
            let durability = declared.durability.unwrap_or(snapshot.settings.audit.durability);
            self.facts.permitted = Some((trail.clone(), durability));
            self.allowed_at = Some(Instant::now());
        }
    }

    /// Waits for something that the partner has to send.
    pub async fn reading<T>(&mut self, read: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let read = read.await;
        self.upload = begun.elapsed();
        read
    }

    pub fn looked_up(&mut self, snapshot: &Snapshot, kind: Kind, read: &Result<Lookup, Misread>) {
        self.kind = Some(kind);
        match read {
            Ok(lookup) => self.remember(snapshot, lookup),
            Err(Misread { reason, actor }) if reason.row().public == "identifier-invalid" => {
                let actor = actor.as_ref().map(|actor| self.named(actor));
                self.facts.actor = actor.as_ref().map(|actor| actor.mark);
                self.facts.asked = Some(Question { subject: Err(*reason), actor });
            }
            Err(_) => {}
        }
        let result = match read {
            Ok(lookup) if lookup.subject.allocated() == Some(false) => Identifier::Unallocated,
            Ok(_) => Identifier::Valid,
            Err(Misread { reason, .. }) if reason.row().public == "identifier-invalid" => Identifier::Refused(*reason),
            Err(_) => return,
        };
        self.metrics().identifier(self.partner_name(), kind.as_str(), result);
    }

    fn remember(&mut self, snapshot: &Snapshot, lookup: &Lookup) {
        let keys = self.peer.gateway().epochs();
        // The epoch may have changed since the lookup was read; its own key is there for as long as anybody is counted by it.
        let Some(key) = keys.all().find(|key| key.number() == lookup.epoch) else { return };
        let before = keys.all().find(|before| before.number() < lookup.epoch);
        let before = lookup.previous.zip(before);
        let previous = before.map(|(token, before)| (token, before.id()));
        let previous_series = before.map(|(_, before)| before.series(&lookup.subject));
        let features = key.features(&lookup.subject);
        self.facts.subject = Some(event::Subject::of(lookup, &features, key.id(), previous).into_owned());
        let person = lookup.facts().person;
        let subject =
            detect::Subject { person, features, previous_series, interest: snapshot.lists().interest(&lookup.subject) };
        let actor = lookup.actor.as_ref().map(|actor| self.named(actor));
        self.facts.actor = actor.as_ref().map(|actor| actor.mark);
        self.facts.asked = Some(Question { subject: Ok(subject), actor });
        // A purpose is a text of the partner's until the configuration knows it.
        let known = |asked: &String| {
            let purposes = self.partner_id().into_iter().flat_map(|id| &snapshot.policy.partner(id).grants);
            purposes.flat_map(|grant| &grant.purposes).find(|purpose| ***purpose == **asked).cloned()
        };
        let purpose = lookup.purpose.as_ref().map(|asked| known(asked).unwrap_or_else(|| UNKNOWN_PURPOSE.into()));
        self.facts.purpose = purpose;
        self.facts.key = Some(key.clone());
    }

    fn named(&self, actor: &Actor) -> Named {
        let keys = self.peer.gateway().epochs();
        let (name, mark) = (actor.as_str().to_owned(), keys.current().actor(actor.as_str()));
        Named { mark, previous: keys.previous(self.now).map(|key| key.actor(&name)), name }
    }

    /// Charges the person and folds the asked half of the evidence, as one step. A lookup that is refused whatever it pays is
    /// evidence only where its identifier is why.
    pub fn weigh(&mut self, snapshot: &Snapshot, plan: &Plan) -> (Receipt, Hold) {
        let (peer, now, id) = (self.peer.clone(), self.now, self.partner_id());
        let question = self.facts.asked.take();
        let actor = question.as_ref().and_then(|question| question.actor.as_ref());
        let (mark, previous) = (actor.map(|actor| actor.mark), actor.and_then(|actor| actor.previous));
        let levels = match id.filter(|_| self.kind.is_some() && plan.refusal().is_none()) {
            Some(id) => snapshot.state(id).hold(mark, previous, now),
            None => Footing::default(),
        };
        let footing = |known| event::Footing { levels, consent: false, known };
        self.facts.footing = (!levels.is_open()).then_some(footing(false));
        let mut reserved = Hold::default();
        let mut pay = || {
            let (receipt, hold) = peer.charge(snapshot, id, plan.charges(), plan.shadow(), now);
            reserved = hold;
            receipt
        };
        let (Some(question), Some(partner), Some(kind)) = (question, id, self.kind) else {
            // Nobody can say whether this person is known.
            let receipt = match footing(false).held() {
                Ok(()) => pay(),
                Err(reason) => Receipt::Refused { reason, retry_after: Duration::ZERO },
            };
            return (receipt, reserved);
        };
        if plan.refusal().is_some_and(|refusal| question.subject.as_ref().err() != Some(&refusal)) {
            let receipt = pay();
            return (receipt, reserved);
        }
        let Question { subject, actor } = question;
        let shadow = plan.shadow();
        let actor = actor.as_ref().map(|Named { name, mark, previous }| detect::Actor {
            mark: *mark,
            previous: *previous,
            name,
        });
        let asked = detect::Asked { now, kind, subject, actor, source: peer.source, consent: false };
        let (state, profile) = (snapshot.state(partner), snapshot.profile(partner));
        let (receipt, pending, alerts, known) = state.ask(profile, shadow, &asked, levels, pay);
        self.facts.footing = (!levels.is_open()).then_some(footing(known));
        self.pending = pending;
        self.raise(alerts);
        (receipt, reserved)
    }

    fn raise(&self, alerts: Vec<detect::Alert>) {
        for alert in alerts {
            self.peer.gateway().raise(alert, Some(self.decision));
        }
    }

    /// What the backend answered.
    pub fn answered(&mut self, backend: Option<event::Backend>) {
        self.step = Step::Disclose;
        self.answered = backend;
    }

    /// The backend was asked and answered.
    pub fn backend(&mut self, outcome: Option<Outcome>, time: Duration) {
        self.backend = Some(time);
        if let Some(outcome) = outcome {
            let outcome = match outcome {
                Outcome::Hit { people: 0 } | Outcome::Miss => detect::Outcome::NotFound,
                Outcome::Hit { people } => detect::Outcome::Found { people },
                Outcome::Error => detect::Outcome::Unavailable,
            };
            let alerts = self.pending.answered(outcome, self.peer.gateway().clock.now());
            self.raise(alerts);
        }
        if let (Some(outcome), Some(kind)) = (outcome, self.kind) {
            self.metrics().answer(self.partner_name(), kind.as_str(), outcome);
        }
    }

    /// The partner's body was passed on as it came.
    pub fn uploaded(&mut self, time: Duration) {
        self.upload += time;
    }

    /// The backend could not be asked, or did not answer, for so long.
    pub fn withheld(&mut self, reason: Reason, time: Duration) {
        // A body that failed on its way is the partner's doing.
        if matches!(reason, Reason::BodyTooLarge | Reason::BodyTimeout | Reason::BodyIncomplete) {
            self.upload += time;
        } else {
            self.backend(self.kind.map(|_| Outcome::Error), time);
        }
    }

    pub fn allowed(&mut self, snapshot: &Snapshot, status: StatusCode) {
        self.end("allow", "none");
        self.passed(snapshot);
        tracing::debug!(
            decision = %self.decision,
            partner = self.partner_name(),
            route = self.route_name(),
            verdict = "allow",
            status = status.as_u16(),
            total_us = self.begun.elapsed().as_micros() as u64,
            backend_us = self.backend.map(|time| time.as_micros() as u64),
            "request"
        );
    }

    pub fn refused(&mut self, snapshot: &Snapshot, denial: &Denial) {
        self.learn(snapshot, &denial.trail);
        let reason = denial.reason;
        let verdict = Verdict::of(Some(reason)).as_str();
        self.end(verdict, reason.code());
        if verdict == "allow" {
            self.passed(snapshot);
            tracing::debug!(decision = %self.decision, partner = self.partner_name(), route = self.route_name(), verdict, reason = reason.code(), "request");
            return;
        }
        let peer = &self.peer;
        let violation = peer.violation(reason).map(|violation| violation.as_str());
        self.lines(snapshot).note(self.now, |unlogged| {
            tracing::info!(
                decision = %self.decision,
                partner = self.partner_name(),
                route = self.route_name(),
                source = %peer.source,
                subject = peer.client.subject,
                verdict,
                reason = reason.code(),
                violation,
                rule = rule(denial, snapshot),
                shadow = self.shadow_text(),
                unlogged,
                "request"
            );
        });
    }

    /// Has who is held wait as long as an answer would have taken, with the place in flight that it would have taken, so that
    /// nobody is told by the time. What is refused was recorded before; whoever goes away waits no longer.
    pub async fn wait_if_held(&self, snapshot: &Snapshot, denial: &Denial) {
        let Some((partner, _)) = self.partner.as_ref().filter(|_| denial.reason.is_held()) else { return };
        let Some(_waiting) = snapshot.state(*partner).wait() else { return };
        let wait = snapshot.wait_as_answered(denial.trail.route());
        sleep_until((Instant::now() + wait).min(self.deadline)).await;
    }

    /// Says what was let through and would not have been, were nothing in shadow.
    fn passed(&self, snapshot: &Snapshot) {
        let route = self.route.as_ref().and_then(|name| snapshot.policy.route_named(name));
        if let (Some(allowed), Some(route)) = (self.allowed_at, route) {
            snapshot.latencies(route).note(allowed.elapsed());
        }
        let Some(shadow) = self.shadow_text() else { return };
        self.lines(snapshot).note(self.now, |unlogged| {
            tracing::info!(
                decision = %self.decision,
                partner = self.partner_name(),
                route = self.route_name(),
                source = %self.peer.source,
                subject = self.peer.client.subject,
                verdict = "allow",
                shadow,
                unlogged,
                "shadow"
            );
        });
    }

    fn shadow_text(&self) -> Option<String> {
        (!self.shadow.is_empty()).then(|| self.shadow.to_string())
    }

    fn lines<'s>(&'s self, snapshot: &'s Snapshot) -> &'s LogLimit {
        snapshot.request_lines(self.partner_id()).unwrap_or(&self.peer.gateway().request_lines)
    }

    /// Puts the request into the audit. Of an allowed lookup, hit or miss, nobody is told anything before that has happened
    /// as its route asks for; where it cannot, the lookup is refused.
    pub async fn evidence(
        &mut self,
        outcome: Result<Response<Body>, Denial>,
        snapshot: &Snapshot,
    ) -> Result<Response<Body>, Denial> {
        let reason = outcome.as_ref().err().map(|denial| denial.reason);
        if let Err(denial) = &outcome {
            self.learn(snapshot, &denial.trail);
            if denial.reason == Reason::HostMismatch {
                self.found(Step::Intake, denial.reason);
            }
        }
        let permitted = self.facts.permitted.take().filter(|_| Verdict::of(reason) == Verdict::Allow);
        let Some((trail, durability)) = permitted else {
            if let Some(reason) = reason {
                let event = Event::Denied(Box::new(self.event(snapshot, Some(reason), None)));
                // What does not fit is counted there, and told of in a gap: a refusal needs no record to be one.
                let _ = self.audit().queue.put(Class::Denied, self.peer.certified(), &event);
            }
            return outcome;
        };
        self.step = Step::Record;
        let body = outcome.as_ref().ok().map(Response::body);
        let answer = body.zip(self.facts.key.as_ref()).and_then(|(body, key)| body.answer(key));
        let event = Event::Disclosure(Box::new(self.event(snapshot, reason, answer)));
        let (queue, certified) = (&self.audit().queue, self.peer.certified());
        let kept = match durability {
            Durability::Interval => queue.put(Class::Disclosure, certified, &event),
            Durability::BeforeAnswer => {
                let kept = queue.keep(Class::Disclosure, certified, &event);
                match timeout_at(self.deadline, kept).await {
                    Ok(kept) => kept,
                    Err(_) => {
                        // It may still come to the disk, and would count as wholly disclosed.
                        self.closed(EndedBy::Gateway);
                        Err(Unavailable)
                    }
                }
            }
        };
        drop(event);
        match (kept, outcome) {
            (Ok(()), Ok(mut response)) => {
                self.step = Step::Answer;
                self.closes(&mut response, answer.is_some());
                Ok(response)
            }
            (Ok(()), refused) => refused,
            (Err(Unavailable), outcome) => {
                if let Ok(mut response) = outcome {
                    response.body_mut().withdraw();
                }
                Err(Denial::after(&trail, self.found(Step::Record, Reason::AuditUnavailable)))
            }
        }
    }

    /// Has the audit told of the end of an answer, of which it has the digest already or not.
    pub fn closes(&self, response: &mut Response<Body>, digested: bool) {
        let (gateway, partner) = (self.peer.gateway().clone(), self.partner.as_ref().map(|(_, name)| name.clone()));
        let digest = self.facts.key.as_ref().filter(|_| !digested).map(|key| key.digester());
        response.body_mut().close_with(Closing::new(gateway, self.decision, partner, self.begun, digest));
    }

    fn event<'r>(
        &'r self,
        snapshot: &Snapshot,
        reason: Option<Reason>,
        answer: Option<event::Answer>,
    ) -> event::Request<'r> {
        let facts = &self.facts;
        let micros = |time: Duration| time.as_micros() as u64;
        event::Request {
            v: event::VERSION,
            time: self.now,
            id: self.decision,
            trace: self.trace.kept_id().map(Into::into),
            generation: snapshot.generation,
            credential: self.peer.fingerprint().into(),
            source: self.peer.source,
            partner: self.partner.as_ref().map(|(_, name)| (&**name).into()),
            standing: facts.standing,
            route: if facts.is_own_route { Some(OWN_ROUTE.into()) } else { self.route.as_deref().map(Into::into) },
            grant: facts.grant,
            purpose: facts.purpose.as_deref().map(Into::into),
            actor: facts.actor,
            consent: None,
            subject: facts.subject.clone(),
            found: facts.found,
            footing: facts.footing,
            receipts: facts.receipts.clone(),
            verdict: Verdict::of(reason),
            reason,
            shadow: self.shadow.reasons().collect(),
            backend: self.answered,
            fields: None,
            answer,
            latency: event::Latency {
                total_us: micros(self.begun.elapsed()),
                upload_us: micros(self.upload),
                backend_us: self.backend.map(micros),
            },
        }
    }

    fn audit(&self) -> &Audit {
        &self.peer.gateway().audit
    }

    fn learn(&mut self, snapshot: &Snapshot, trail: &Trail) {
        self.shadow.join(trail.shadow());
        self.facts.is_own_route |= trail.is_own_route();
        self.facts.grant = self.facts.grant.or(trail.grant());
        if let (None, Some(id)) = (&self.partner, trail.partner()) {
            self.partner = Some((id, snapshot.policy.partner(id).name.clone()));
        }
        if let (None, Some(id)) = (&self.route, trail.route()) {
            self.route = Some(snapshot.policy.route(id).name.clone());
        }
    }

    fn metrics(&self) -> &Metrics {
        &self.peer.gateway().metrics
    }

    fn end(&mut self, verdict: &str, reason: &str) {
        self.ended = true;
        let metrics = self.metrics();
        metrics.request(self.partner_name(), self.route_name(), verdict, reason);
        self.count_shadow();
        let elsewhere = self.upload + self.backend.unwrap_or_default();
        metrics.latency(self.route_name(), self.begun.elapsed().saturating_sub(elsewhere), self.backend);
    }

    fn count_shadow(&self) {
        for reason in self.shadow.reasons() {
            self.metrics().shadow_refusal(self.partner_name(), reason);
        }
    }

    /// Who had been let in gets no answer.
    fn closed(&self, by: EndedBy) {
        let Some((_, partner)) = &self.partner else { return };
        let closed = event::Closed {
            v: event::VERSION,
            time: self.peer.gateway().clock.now(),
            id: self.decision,
            partner: Some((&**partner).into()),
            by,
            step: self.step,
            bytes: 0,
            digest: None,
            total_us: self.begun.elapsed().as_micros() as u64,
        };
        let _ = self.audit().queue.put(Class::Closed, None, &Event::Closed(closed));
    }

    fn partner_name(&self) -> &str {
        self.partner.as_ref().map_or("none", |(_, name)| name)
    }

    fn route_name(&self) -> &str {
        self.route.as_deref().unwrap_or("none")
    }
}

/// The last thing that policy found before it refused, with its place in the configuration. What a request was charged has
/// none: the grant or the network before it is the rule.
fn rule(denial: &Denial, snapshot: &Snapshot) -> Option<String> {
    let lines = denial.trail.lines(&snapshot.policy);
    let found = lines.iter().rev().find(|(step, _)| !matches!(*step, "refuse" | "charge" | "lookup" | "shadow"));
    found.map(|(step, text)| format!("{step}: {text}"))
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.ended {
            self.metrics().request(self.partner_name(), self.route_name(), "aborted", "partner-gone");
            self.count_shadow();
            self.closed(EndedBy::Partner);
        }
        self.peer.ends();
    }
}
