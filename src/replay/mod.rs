//! What would the gateway have done? A trace of lookups through the live path's own core, state and detectors, by the clock of the
//! trace.
//!
//! The order is that of `proxy/`: admit and entitle, charge the request, read the lookup, fold the asked half with the person's
//! charges, and only for what was allowed the outcome. The answer to a lookup that was refused is never looked at.

pub mod trace;
pub mod tuning;
pub mod world;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::config::Config;
use crate::detect::{self, Alert, Fleet, Interest, Outcome, Params, Profile};
use crate::explain::credential;
use crate::policy::charge::{Person, SubjectKey};
use crate::policy::containment::Footing;
use crate::policy::identify::{Credential, Proof};
use crate::policy::lookup::{Actor, Facts, lookup_route, refusal};
use crate::policy::reason::Reason;
use crate::policy::route::RouteId;
use crate::policy::{Asked, Denial, PartnerId, Policy, Sender};
use crate::snapshot::profile;
use crate::state::store::Ledger;
use crate::state::watched::Pending;
use crate::state::{Hold, PartnerState, State};
use crate::subject::{EpochKey, Kind, Subject};
use trace::{Backend, Event};

/// What a trace is played to.
pub struct Replay {
    policy: Policy,
    partners: Vec<Party>,
    by_name: HashMap<Arc<str>, PartnerId>,
    /// By name; one entry where the route says of which kind its people are, else one for each kind.
    routes: HashMap<Arc<str>, Vec<RouteId>>,
    interests: HashMap<SubjectKey, Interest>,
    key: EpochKey,
    entries_max: usize,
    fleet: Fleet,
    now: Timestamp,
    ledger: Ledger,
}

struct Party {
    credential: Credential,
    profile: Arc<Profile>,
    state: Arc<PartnerState>,
}

/// An allowed lookup; its outcome comes next.
#[must_use]
pub struct Allowed {
    /// People that may be disclosed at the most, until it is known how many there were.
    reserved: Hold,
    pending: Pending,
    now: Timestamp,
}

impl Replay {
    /// Partners, their credentials and profiles are in the policy's order. `interests` are people in clear, which are kept as tokens
    /// of a key that ends with this replay.
    pub fn new(
        policy: Policy,
        parties: Vec<(Credential, Profile)>,
        interests: impl IntoIterator<Item = (Subject, Interest)>,
        entries_max: usize,
    ) -> Replay {
        let state = State::default();
        let key = EpochKey::of_replays();
        let named = |at: usize, name: &Arc<str>| (name.clone(), PartnerId(at as u16));
        let by_name = policy.partners.iter().enumerate().map(|(at, partner)| named(at, &partner.name)).collect();
        let partners = parties.into_iter().map(|(credential, profile)| {
            let state = state.partner(&profile.name);
            Party { credential, profile: Arc::new(profile), state }
        });
        let partners = partners.collect();
        let mut routes: HashMap<Arc<str>, Vec<RouteId>> = HashMap::new();
        for (at, route) in policy.routes.iter().enumerate() {
            routes.entry(route.name.clone()).or_default().push(RouteId(at as u16));
        }
        let interests = interests.into_iter();
        let interests = interests.map(|(subject, interest)| (key.token(&subject).key(), interest)).collect();
        let (fleet, now, ledger) = Default::default();
        Replay { policy, partners, by_name, routes, interests, key, entries_max, fleet, now, ledger }
    }

    /// The verdict on one event, from everything before it. Alerts are added to `alerts`.
    pub fn ask(&mut self, event: &Event, alerts: &mut Vec<Alert>) -> Result<Allowed, Reason> {
        // A gateway's clock does not go back either.
        self.now = self.now.max(event.time);
        let id = *self.by_name.get(&*event.partner).ok_or(Reason::IdentityUnknown)?;
        let asked = self.decide(id, event, alerts).map_err(|denial| denial.reason);
        // There is no disk behind this state.
        self.ledger.clear();
        asked
    }

    /// What became of a lookup that was allowed.
    pub fn answer(&mut self, allowed: Allowed, backend: Option<Backend>, alerts: &mut Vec<Alert>) {
        let Allowed { mut pending, mut reserved, now } = allowed;
        let outcome = outcome(backend);
        reserved.disclosed(if let Outcome::Found { people } = outcome { people } else { 0 }, &mut self.ledger);
        alerts.extend(pending.answered(outcome, now));
    }

    fn decide(&mut self, id: PartnerId, event: &Event, alerts: &mut Vec<Alert>) -> Result<Allowed, Denial> {
        let Replay { policy, partners, routes, interests, key, entries_max, fleet, now, ledger, .. } = self;
        let (now, entries_max) = (*now, *entries_max);
        let party = &partners[usize::from(id.0)];
        let source: IpAddr = event.source.to_canonical();
        let sender = Sender { now, source, credential: &party.credential, standing: party.state.standing(now) };
        let plan = policy.plan_way(&sender, way(policy, routes, event));
        let (receipt, _hold) = party.state.charge(plan.charges(), plan.shadow(), entries_max, now, ledger);
        let admission = plan.settle(receipt)?;
        let Some(route) = admission.route() else { return Err(Denial::after(admission.trail(), Reason::NoRoute)) };
        let Some(declared) = lookup_route(route) else {
            // A trace tells of lookups; whatever else is a route has nobody in it.
            let plan = admission.plan_pass(Ok(()));
            plan.settle(crate::policy::charge::Receipt::Paid)?;
            return Ok(Allowed { pending: Pending::default(), reserved: Hold::default(), now });
        };

        let actor = match event.actor.as_deref() {
            Some(text) => Actor::parse(text).map(Some).ok_or(Reason::ActorInvalid),
            None => Ok(None),
        };
        let (read, named) = match actor {
            Ok(actor) => (Subject::parse(declared.kind, &event.subject.id).map_err(refusal), actor),
            Err(reason) => (Err(reason), None),
        };
        let evidence = read.as_ref().map(|subject| {
            let person = Person::from(key.token(subject).key());
            let interest = interests.get(&person.key).cloned().unwrap_or_default();
            detect::Subject { person, features: key.features(subject), previous_series: None, interest }
        });
        let evidence = evidence.map_err(|reason| *reason);
        // The trace does not tell the purpose: the one that is granted first is taken for it.
        let grants = &policy.partner(id).grants;
        let purpose = grants.iter().find(|grant| std::ptr::eq(policy.route(grant.route), route));
        let purpose = purpose.and_then(|grant| grant.purposes.first()).map(|purpose| &**purpose);
        let facts = match (&read, &evidence) {
            (Ok(subject), Ok(detect::Subject { person, .. })) => Ok(Facts {
                kind: subject.kind(),
                allocated: subject.allocated(),
                person: *person,
                purpose,
                actor: named.as_ref().map(|actor| Person::from(*key.actor(actor.as_str()).as_bytes())),
            }),
            (Err(reason), _) | (_, Err(reason)) => Err(*reason),
        };
        let plan = admission.plan_lookup(facts);
        let mut reserved = Hold::default();
        let mut pay = || {
            let (receipt, hold) = party.state.charge(plan.charges(), plan.shadow(), entries_max, now, ledger);
            reserved = hold;
            receipt
        };
        // As on the live path: what is refused whatever it pays is evidence only where its identifier is why.
        let is_evidence = match plan.refusal() {
            None => true,
            Some(reason) => evidence.as_ref().err() == Some(&reason) && reason.row().public == "identifier-invalid",
        };
        if !is_evidence {
            let receipt = pay();
            plan.settle(receipt)?;
            return Ok(Allowed { pending: Pending::default(), reserved, now });
        }
        let actor = named.as_ref().map(|actor| detect::Actor {
            mark: key.actor(actor.as_str()),
            previous: None,
            name: actor.as_str(),
        });
        let asked =
            detect::Asked { now, kind: declared.kind, subject: evidence, actor, source, consent: event.consent };
        let (shadow, nobodys) = (plan.shadow(), Footing::default());
        let (receipt, pending, mut told, _) = party.state.ask(&party.profile, shadow, &asked, nobodys, pay);
        alerts.append(&mut told);
        plan.settle(receipt)?;
        alerts.extend(fleet.asked(&party.profile, &asked));
        Ok(Allowed { pending, reserved, now })
    }
}

/// The route of an event: the one of its name, and where that has one for each kind, of its subject's kind.
fn way(policy: &Policy, routes: &HashMap<Arc<str>, Vec<RouteId>>, event: &Event) -> Asked {
    let Some(named) = routes.get(&*event.route) else { return Asked::Nothing };
    if let [only] = named.as_slice() {
        return Asked::Route(*only);
    }
    let kind = Kind::parse(&event.subject.kind);
    let of_kind = |id: &&RouteId| lookup_route(policy.route(**id)).is_some_and(|declared| Some(declared.kind) == kind);
    named.iter().find(of_kind).map_or(Asked::Nothing, |id| Asked::Route(*id))
}

/// A replay of what a configuration says of its partners, each known by the first of its identities.
pub fn configured(config: Config, params: Params) -> Replay {
    let Config { settings, policy, .. } = config;
    let issuers: Vec<_> = settings.tls.issuers.iter().map(|issuer| issuer.name.clone()).collect();
    let params = Arc::new(params);
    let parties = policy.partners.iter().map(|partner| {
        let proof = partner.identities.first().map(|identity| &identity.proof);
        let unknown = Proof::Spki { digest: [0; 32], issuer: None };
        // Whether its certificate had expired is not in a trace.
        let credential = credential(proof.unwrap_or(&unknown), &issuers, Timestamp::from_nanos(u64::MAX));
        (credential, Profile { params: params.clone(), ..profile(partner) })
    });
    let parties = parties.collect();
    Replay::new(policy, parties, [], settings.limiter_entries_max)
}

fn outcome(backend: Option<Backend>) -> Outcome {
    match backend {
        Some(Backend { status: 200, records: people @ 1.. }) => Outcome::Found { people },
        Some(Backend { status: 200 | 404, .. }) => Outcome::NotFound,
        Some(Backend { status: 400, .. }) => Outcome::Invalid,
        _ => Outcome::Unavailable,
    }
}
