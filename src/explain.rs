//! What would the gateway say to this? Puts a question's facts through the same decision core as the live path.

use std::borrow::Cow;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::config::cases::{Case, Expect, Question};
use crate::config::settings::Settings;
use crate::policy::admit::Standing;
use crate::policy::fields::is_relied_on;
use crate::policy::head::{Target, fields_allowed, host_of, method_allowed};
use crate::policy::identify::{Credential, Proof};
use crate::policy::lookup::{self, Asked, HeaderValue, Lookup};
use crate::policy::reason::Reason;
use crate::policy::route::RouteKind;
use crate::policy::trail::Trail;
use crate::policy::{Denial, Head, Policy, Sender};
use crate::state::State;
use crate::state::store::Ledger;
use crate::subject::EpochKey;

/// The answer to a question: the reason for a denial, if it is one, and how it came about.
pub struct Explanation {
    pub denied: Option<Reason>,
    pub trail: Trail,
    /// What the backend would be asked for, with the identifier left out.
    pub forwarded: Option<String>,
}

impl Explanation {
    pub fn verdict(&self) -> String {
        self.denied.map_or("allow".to_owned(), |reason| format!("deny ({reason})"))
    }

    pub fn is(&self, expected: Expect) -> bool {
        match (expected, self.denied) {
            (Expect::Allow, None) => true,
            (Expect::Deny(None), Some(_)) => true,
            (Expect::Deny(Some(expected)), Some(reason)) => expected == reason,
            _ => false,
        }
    }
}

/// Why a case does not hold, if it does not.
pub fn case_failure(case: &Case, policy: &Policy, settings: &Settings, now: Timestamp) -> Option<String> {
    let explanation = match explain(policy, settings, &case.question, now) {
        Ok(explanation) => explanation,
        Err(why) => return Some(why),
    };
    if explanation.is(case.expect) {
        return None;
    }
    let expected = match case.expect {
        Expect::Allow => "allow".to_owned(),
        Expect::Deny(None) => "deny".to_owned(),
        Expect::Deny(Some(reason)) => format!("deny ({reason})"),
    };
    Some(format!("expected {expected}, got {}", explanation.verdict()))
}

/// Decides on a question as if it were the first request ever: nothing is used up yet. Fails only where the question
/// names a partner or an identity that does not exist.
pub fn explain(
    policy: &Policy,
    settings: &Settings,
    question: &Question,
    now: Timestamp,
) -> Result<Explanation, String> {
    let known = || policy.partners.iter().map(|partner| &*partner.name).collect::<Vec<_>>().join(", ");
    let partner = policy.partners.iter().find(|partner| *partner.name == *question.partner);
    let partner = partner.ok_or_else(|| format!("no partner {}; there are: {}", question.partner, known()))?;
    let identity = partner.identities.get(question.identity);
    let identity = identity.ok_or_else(|| format!("{} has {} identities", partner.name, partner.identities.len()))?;
    let now = question.at.unwrap_or(now);
    let issuers: Vec<_> = settings.tls.issuers.iter().map(|issuer| issuer.name.clone()).collect();
    let credential = credential(&identity.proof, &issuers, now);
    let state = State::default().partner(&partner.name);
    let mut forwarded = None;
    let outcome = decide(policy, question, &credential, now, &state, settings, &mut forwarded);
    Ok(match outcome {
        Ok(trail) => Explanation { denied: None, trail, forwarded },
        Err(denial) => Explanation { denied: Some(denial.reason), trail: denial.trail, forwarded: None },
    })
}

fn decide(
    policy: &Policy,
    question: &Question,
    credential: &Credential,
    now: Timestamp,
    state: &Arc<crate::state::PartnerState>,
    settings: &Settings,
    forwarded: &mut Option<String>,
) -> Result<Trail, Denial> {
    let header = |name: &str| match question.headers.get(name) {
        None => HeaderValue::Absent,
        Some(text) if text.bytes().all(|byte| matches!(byte, b'\t' | b' '..=b'~')) => HeaderValue::Text(text),
        Some(_) => HeaderValue::Unreadable,
    };
    let first = policy.hosts.first().map_or("", String::as_str);
    let host = question.host.as_deref().map_or(Some(Cow::Borrowed(first)), host_of).ok_or(Reason::MalformedRequest);
    let read = method_allowed(&question.method)
        .and_then(|()| fields_allowed(header))
        .and_then(|()| match header("connection") {
            HeaderValue::Absent => Ok(()),
            HeaderValue::Text(text) if !text.split(',').any(|name| is_relied_on(&name.trim().to_ascii_lowercase())) => {
                Ok(())
            }
            HeaderValue::Text(_) | HeaderValue::Unreadable => Err(Reason::MalformedRequest),
        })
        .and_then(|()| Ok((host?, Target::parse(&question.target, settings.http.target_bytes_max)?)));
    let sender = Sender { now, source: question.source.to_canonical(), credential, standing: Standing::Open };
    let plan = match &read {
        Ok((host, Target { path, .. })) => policy.plan_head(&Head { sender, host, method: &question.method, path }),
        Err(reason) => policy.plan_refused(&sender, *reason),
    };
    let mut ledger = Ledger::default();
    let entries_max = settings.limiter_entries_max;
    let (receipt, _hold) = state.charge(plan.charges(), plan.shadow(), entries_max, now, &mut ledger);
    let admission = plan.settle(receipt)?;
    let Some(route) = admission.route() else { return Ok(admission.trail().clone()) };
    let Ok((_, target)) = read else { return Err(Denial::after(admission.trail(), Reason::Internal)) };

    let plan = match &route.kind {
        RouteKind::Pass(pass) => {
            let target = lookup::pass_target(&pass.parameters, &target.path, target.query);
            let too_large = question.body.len() as u64 > pass.body_bytes_max;
            admission.plan_pass(target.and(if too_large { Err(Reason::BodyTooLarge) } else { Ok(()) }))
        }
        RouteKind::Lookup(declared) => {
            // What curl would have to be told: a body is JSON unless the question says otherwise.
            let header = |name: &str| match header(name) {
                HeaderValue::Absent if name == "content-type" => HeaderValue::Text("application/json"),
                given => given,
            };
            let (path, query, body) = (&target.path, target.query, question.body.as_bytes());
            let asked = Asked { path, captures: admission.captures(), query, header: &header, body };
            let readable = lookup::body_readable(declared, !body.is_empty(), &header).and_then(|()| {
                let too_large = body.len() as u64 > declared.body_bytes_max;
                if too_large { Err(Reason::BodyTooLarge) } else { Ok(()) }
            });
            let read = readable.and_then(|()| {
                let read = lookup::read(declared, route, &asked, &EpochKey::ephemeral(), None);
                read.map_err(|misread| misread.reason)
            });
            admission.plan_lookup(read.as_ref().map(Lookup::facts).map_err(|reason| *reason))
        }
    };
    let (receipt, _) = state.charge(plan.charges(), plan.shadow(), entries_max, now, &mut ledger);
    let permit = plan.settle(receipt)?;
    let purpose = permit.purpose().map(|purpose| format!(", for {purpose}")).unwrap_or_default();
    *forwarded = Some(format!("{} to {}{purpose}", question.method, permit.route().name));
    Ok(permit.trail().clone())
}

/// A credential that shows one proof and nothing else.
pub(crate) fn credential(proof: &Proof, issuers: &[Arc<str>], now: Timestamp) -> Credential {
    let any = issuers.first().cloned().unwrap_or_else(|| "none".into());
    let mut credential = Credential {
        issuer: any,
        uris: Vec::new(),
        dns_names: Vec::new(),
        spki: [0; 32],
        fingerprint: [0; 32],
        not_after: now.plus(std::time::Duration::from_secs(86_400)),
    };
    match proof {
        Proof::Uri { issuer, uri } => {
            credential.issuer = issuer.clone();
            credential.uris.push(uri.clone());
        }
        Proof::Dns { issuer, name } => {
            credential.issuer = issuer.clone();
            credential.dns_names.push(name.clone());
        }
        Proof::Spki { digest, issuer } => {
            credential.spki = *digest;
            if let Some(issuer) = issuer {
                credential.issuer = issuer.clone();
            }
        }
    }
    credential
}
