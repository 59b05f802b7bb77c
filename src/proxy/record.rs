//! What is remembered of one request: one count, one log line, whatever became of it.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::{HeaderMap, StatusCode};
use tokio::time::Instant;
use uuid::Uuid;

use super::connection::Peer;
use super::headers::{Trace, decision};
use crate::clock::Timestamp;
use crate::log::LogLimit;
use crate::metrics::{Identifier, Metrics, Outcome};
use crate::policy::lookup::Lookup;
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;
use crate::policy::trail::Trail;
use crate::policy::{Denial, PartnerId};
use crate::snapshot::Snapshot;
use crate::subject::Kind;

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
    /// What would have been refused, were nothing in shadow.
    shadow: Shadow,
    /// Time that was not the gateway's: waiting for the partner's body, and for the backend.
    upload: Duration,
    backend: Option<Duration>,
    ended: bool,
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
            shadow: Shadow::default(),
            upload: Duration::ZERO,
            backend: None,
            ended: false,
        }
    }

    pub fn partner_id(&self) -> Option<PartnerId> {
        self.partner.as_ref().map(|(id, _)| *id)
    }

    /// The partner is known and let in.
    pub fn admitted(&mut self, snapshot: &Snapshot, trail: &Trail) {
        self.learn(snapshot, trail);
        if let Some((partner, network)) = trail.network() {
            snapshot.matched(partner, network, self.now, &mut self.peer.ledger());
        }
    }

    /// All is decided and paid for.
    pub fn permitted(&mut self, trail: &Trail) {
        self.shadow.join(trail.shadow());
    }

    /// Waits for something that the partner has to send.
    pub async fn reading<T>(&mut self, read: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let read = read.await;
        self.upload = begun.elapsed();
        read
    }

    pub fn looked_up(&mut self, kind: Kind, read: &Result<Lookup, Reason>) {
        self.kind = Some(kind);
        let result = match read {
            Ok(lookup) if lookup.subject.allocated() == Some(false) => Identifier::Unallocated,
            Ok(_) => Identifier::Valid,
            Err(reason) if reason.row().public == "identifier-invalid" => Identifier::Refused(*reason),
            Err(_) => return,
        };
        self.metrics().identifier(self.partner_name(), kind.as_str(), result);
    }

    /// The backend was asked and answered.
    pub fn backend(&mut self, outcome: Option<Outcome>, time: Duration) {
        self.backend = Some(time);
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
        // A miss is an answer, and a failing backend is no verdict on the partner.
        let verdict = match reason {
            Reason::NoMatch => "allow",
            _ if matches!(reason.row().public, "backend-failed" | "backend-timeout" | "unavailable" | "internal") => {
                "failed"
            }
            _ => "deny",
        };
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

    /// Says what was let through and would not have been, were nothing in shadow.
    fn passed(&self, snapshot: &Snapshot) {
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

    fn learn(&mut self, snapshot: &Snapshot, trail: &Trail) {
        self.shadow.join(trail.shadow());
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
        }
        self.peer.ends();
    }
}
