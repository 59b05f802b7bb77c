//! The live path. One request, step by step: intake, identify, admit, entitle, charge, lookup, charge, forward, disclose,
//! record, answer.

pub mod answer;
pub mod connection;
pub mod disclose;
pub mod forward;
pub mod headers;
pub mod intake;
pub mod listen;
pub mod lookup;
pub mod paced;
pub mod proxy_protocol;
pub mod record;
pub mod tls;
pub mod upstream;
pub mod whoami;
pub mod wire;

use std::rc::Rc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Request, Response};
use tokio::time::Instant;

use crate::audit::event::Step;
use crate::metrics::Outcome;
use crate::policy::head::Target;
use crate::policy::lookup::{Lookup, pass_target};
use crate::policy::reason::Reason;
use crate::policy::route::RouteKind;
use crate::policy::{Denial, Head};
use crate::snapshot::Snapshot;
use answer::{Body, Held};
use connection::Peer;
use forward::{Errand, Payload};
use intake::Intake;
use paced::Unread;
use record::Record;
use upstream::Refusal;

/// Answers one request: with the backend's answer, the gateway's own, or a refusal. Always with a decision id.
pub async fn handle(request: Request<Incoming>, peer: Rc<Peer>) -> Response<Body> {
    let snapshot = peer.gateway().snapshot();
    let (parts, body) = request.into_parts();
    let mut record = Record::begin(&peer, &parts.headers);
    let mut body = Unread::new(&parts, body);
    let outcome = exchange(parts, &mut body, &peer, &snapshot, &mut record).await;
    // Record: durable before the first byte of a lookup's answer leaves.
    let mut response = match record.evidence(outcome, &snapshot).await {
        Ok(response) => {
            record.allowed(&snapshot, response.status());
            response
        }
        Err(denial) => {
            // What a refused request used up is kept too; it is refused in any case.
            let _ = peer.keep();
            record.refused(&snapshot, &denial);
            record.wait_if_held(&snapshot, &denial).await;
            let mut response = answer::refuse(&denial, record.decision, peer.closes_after(denial.reason, &body), body);
            if denial.reason == Reason::NoMatch {
                record.closes(&mut response, false);
            }
            response
        }
    };
    answer::sign(response.headers_mut(), record.decision);
    peer.watch(response.body(), record.deadline);
    response
}

/// The life of a request. Every `?` is a refusal; what is left at the end was allowed, forwarded and answered.
async fn exchange(
    parts: Parts,
    body: &mut Unread,
    peer: &Peer,
    snapshot: &Snapshot,
    record: &mut Record,
) -> Result<Response<Body>, Denial> {
    let settings = &snapshot.settings;
    let gateway = peer.gateway();
    let bounds = peer.bounds(settings, record.deadline);

    // Intake: one reading of the head. Then identify, admit, entitle.
    let sender = peer.sender(snapshot, record.now);
    record.stands(sender.standing);
    let trusted = peer.still_trusted(snapshot, record.now);
    let (intake, text) = match intake::intake(parts, &peer.line(settings)) {
        Ok((intake, text)) => (Ok(intake), text),
        Err(reason) => (Err(reason), String::new()),
    };
    let target = Target::parse(&text, settings.http.target_bytes_max);
    let mut plan = match (trusted, &intake, &target) {
        (Ok(()), Ok(Intake { host, method, .. }), Ok(Target { path, .. })) => {
            snapshot.policy.plan_head(&Head { sender, host, method: method.as_str(), path })
        }
        (Err(reason), ..) | (_, &Err(reason), _) | (.., &Err(reason)) => {
            snapshot.policy.plan_refused(&sender, record.found(Step::Intake, reason))
        }
    };
    if let Some(reason) = peer.over_capacity() {
        return Err(plan.refuse(record.found(Step::Connections, reason), Duration::from_secs(1)));
    }
    plan.would_refuse(peer.shadow());

    // Charge the request, before a byte of its body is read.
    let (receipt, hold) = peer.charge(snapshot, plan.partner(), plan.charges(), plan.shadow(), record.now);
    record.paid(&receipt);
    record.holds(hold);
    let admission = plan.settle(receipt)?;
    record.admitted(snapshot, admission.trail());
    let Some(route) = admission.route() else {
        peer.keep().map_err(|reason| Denial::after(admission.trail(), record.found(Step::Keep, reason)))?;
        return Ok(whoami::answer(admission, snapshot, peer));
    };

    // Lookup: who is asked for. Then charge the person.
    let (Ok(intake), Ok(target)) = (intake, target) else {
        return Err(Denial::after(admission.trail(), Reason::Internal));
    };
    let (method, host) = (intake.method.clone(), intake.host.clone());
    let (plan, payload) = match &route.kind {
        RouteKind::Pass(declared) => {
            let passed = pass_target(&declared.parameters, &target.path, target.query);
            let too_large = body.announces_more_than(declared.body_bytes_max);
            let passed = passed.and_then(|target| if too_large { Err(Reason::BodyTooLarge) } else { Ok(target) });
            let plan =
                admission.plan_pass(passed.as_ref().map(|_| ()).map_err(|reason| record.found(Step::Lookup, *reason)));
            let payload = passed.map(|target| {
                let Intake { headers, nominated, .. } = intake;
                Payload::Pass { target, headers, nominated, body: body.take() }
            });
            (plan, payload)
        }
        RouteKind::Lookup(declared) => {
            let (captures, now) = (admission.captures(), record.now);
            let read = lookup::read(declared, route, &intake.headers, body, &target, captures, gateway, now, bounds);
            let read = record.reading(read).await;
            record.looked_up(snapshot, declared.kind, &read);
            let read = read.map_err(|misread| misread.reason);
            let facts = read.as_ref().map(Lookup::facts).map_err(|reason| record.found(Step::Lookup, *reason));
            let plan = admission.plan_lookup(facts);
            (plan, read.map(|lookup| Payload::Lookup(Box::new(lookup))))
        }
    };
    let (receipt, mut reserved) = record.weigh(snapshot, &plan);
    record.paid(&receipt);
    let permit = plan.settle(receipt)?;
    record.permitted(snapshot, route, permit.trail());
    let trail = permit.trail().clone();
    let denied = |reason: Reason| Denial::after(&trail, reason);
    let payload = payload.map_err(denied)?;
    // What was paid outlives the process, before anybody gets anything for it.
    peer.keep().map_err(|reason| denied(record.found(Step::Keep, reason)))?;

    // Forward, and disclose what comes back.
    let (caller, decision, trace) = (&peer.caller, record.decision, &record.trace);
    let errand = Errand { method: method.clone(), host: &host, caller, decision, trace, bounds };
    let asked = Instant::now();
    let answered = forward::forward(permit, payload, errand, snapshot, peer.pools()).await;
    let answered = answered.map_err(|Refusal { reason, retry_after }| {
        reserved.disclosed(0, &mut peer.ledger());
        record.withheld(reason, asked.elapsed());
        record.found(Step::Forward, reason);
        Denial { retry_after, ..denied(reason) }
    })?;
    record.uploaded(answered.upload_time);
    let held = Held::new(record.take_hold(), gateway.clone(), route.name.clone());
    let disclosure = disclose::disclose(route, &method, answered, held, reserved.people_max(), bounds).await;
    let disclosure = disclosure.map_err(|withheld| {
        reserved.disclosed(0, &mut peer.ledger());
        record.backend(withheld.outcome, withheld.backend_time);
        record.answered(withheld.backend);
        denied(record.found(Step::Disclose, withheld.reason))
    })?;
    // An answer counts from here on, whatever becomes of it on its way.
    if let Some(Outcome::Hit { people }) = disclosure.outcome {
        reserved.disclosed(people, &mut peer.ledger());
    }
    record.backend(disclosure.outcome, disclosure.backend_time);
    record.answered(disclosure.backend);
    Ok(disclosure.response)
}
