//! What verdict follows from recorded facts? The same core as the live path, asked again.

use std::time::Duration;

use super::event::{self, Found, OWN_ROUTE, Receipt, Request, Step, Verdict};
use crate::policy::charge::Person;
use crate::policy::identify::Credential;
use crate::policy::lookup::Facts;
use crate::policy::reason::Reason;
use crate::policy::route::RouteKind;
use crate::policy::shadow::Shadow;
use crate::policy::{Asked, Denial, Policy, Sender, charge};
use crate::subject::Kind;

/// The verdict and the reason that policy comes to on the facts of a recorded request, from a client with this certificate.
/// Under the policy of the request's generation, that is what was recorded. `Err` names a fact that this policy knows
/// nothing of.
pub fn replay(
    policy: &Policy,
    request: &Request,
    credential: &Credential,
) -> Result<(Verdict, Option<Reason>), String> {
    let asked = match request.route.as_deref() {
        None => Asked::Nothing,
        Some(OWN_ROUTE) => Asked::Own,
        Some(name) => Asked::Route(policy.route_named(name).ok_or_else(|| format!("no route {name}"))?),
    };
    let reason = match decide(policy, request, credential, asked)? {
        Ok(()) => request.found.filter(|found| is_after_permit(found.step)).map(|found| found.reason),
        Err(denial) => Some(denial.reason),
    };
    Ok((Verdict::of(reason), reason))
}

fn decide(
    policy: &Policy,
    request: &Request,
    credential: &Credential,
    asked: Asked,
) -> Result<Result<(), Denial>, String> {
    let sender = Sender { now: request.time, source: request.source, credential, standing: request.standing };
    let found = |step| request.found.filter(|found: &Found| found.step == step).map(|found| found.reason);
    let plan = match found(Step::Intake) {
        Some(reason) => policy.plan_refused(&sender, reason),
        None => policy.plan_way(&sender, asked),
    };
    if let Some(reason) = found(Step::Connections) {
        return Ok(Err(plan.refuse(reason, Duration::ZERO)));
    }
    let mut receipts = request.receipts.iter().map(receipt);
    let admission = match plan.settle(receipts.next().unwrap_or(charge::Receipt::Paid)) {
        Ok(admission) => admission,
        Err(denial) => return Ok(Err(denial)),
    };
    let Some(route) = admission.route() else { return Ok(Ok(())) };
    let wrong = found(Step::Lookup);
    let plan = match (&route.kind, &request.subject) {
        (RouteKind::Pass(_), _) => admission.plan_pass(wrong.map_or(Ok(()), Err)),
        (RouteKind::Lookup(_), Some(subject)) => {
            let kind = Kind::parse(&subject.kind).ok_or_else(|| format!("no kind {}", subject.kind))?;
            let allocated = subject.allocated;
            let previous = subject.previous.as_ref().map(|previous| *previous.token.as_bytes());
            let person = Person { key: *subject.token.as_bytes(), previous };
            let facts = Facts {
                kind,
                allocated,
                person,
                purpose: request.purpose.as_deref(),
                actor: request.actor.map(|mark| (*mark.as_bytes()).into()),
            };
            admission.plan_lookup(wrong.map_or(Ok(facts), Err))
        }
        (RouteKind::Lookup(_), None) => {
            let reason = wrong.ok_or_else(|| format!("a lookup of nobody on route {}", route.name))?;
            admission.plan_lookup(Err(reason))
        }
    };
    let paid = receipts.next().unwrap_or(charge::Receipt::Paid);
    let paid = match request.footing.map_or(Ok(()), |footing| footing.held()) {
        Ok(()) => paid,
        // Whatever the receipt says: who is held, pays nothing.
        Err(reason) => charge::Receipt::Refused { reason, retry_after: Duration::ZERO },
    };
    Ok(plan.settle(paid).map(|_| ()))
}

/// What happened to a request that was allowed.
fn is_after_permit(step: Step) -> bool {
    matches!(step, Step::Keep | Step::Forward | Step::Disclose | Step::Record | Step::Answer)
}

fn receipt(receipt: &Receipt) -> charge::Receipt {
    match receipt {
        Receipt::Paid => charge::Receipt::Paid,
        Receipt::Passed(reasons) => charge::Receipt::Passed(Shadow::from_iter(reasons.iter().copied())),
        Receipt::Refused(reason) => charge::Receipt::Refused { reason: *reason, retry_after: Duration::ZERO },
    }
}

/// The certificate that an entry tells of.
pub fn credential(entry: &event::Credential) -> Option<Credential> {
    Some(Credential {
        issuer: entry.issuer.as_ref().into(),
        uris: entry.uris.iter().map(|uri| uri.to_string()).collect(),
        dns_names: entry.dns_names.iter().map(|name| name.to_string()).collect(),
        spki: digest(&entry.spki)?,
        fingerprint: digest(&entry.fingerprint)?,
        not_after: entry.not_after,
    })
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    let mut bytes = [0; 32];
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
