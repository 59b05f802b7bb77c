//! The decision core: facts in, verdict out. Pure: no IO, no clock, no locks.
//!
//! The live path, `explain`, `check` and the property tests all call the same three steps: [`Policy::plan_head`],
//! [`Admission::plan_lookup`] (or [`Admission::plan_pass`]) and the two `settle`s between which charges are paid.

pub mod admit;
pub mod charge;
pub mod containment;
pub mod contract;
pub mod entitle;
pub mod fields;
pub mod head;
pub mod identify;
pub mod lookup;
pub mod networks;
pub mod path;
pub mod reason;
pub mod route;
pub mod shadow;
pub mod shape;
pub mod trail;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use admit::{Hours, Standing};
use charge::{Charge, Rate, Receipt, Scope};
use contract::{Budgets, Contract};
use entitle::Grant;
use identify::{Credential, Identities, Identity};
use lookup::Facts;
use networks::Networks;
use path::CanonicalPath;
use reason::Reason;
use route::{Captures, Place, Route, RouteId, RouteKind, Router};
use shadow::Shadow;
use trail::{Note, Trail};

/// The gateway's own route: tells a partner who it is taken for.
pub const WHOAMI_PATH: &str = "/.well-known/dwarpal/whoami";

/// Index of a partner in its policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartnerId(pub u16);

/// An organisation's system that may call.
#[derive(Debug)]
pub struct Partner {
    pub name: Arc<str>,
    pub identities: Vec<Identity>,
    pub networks: Networks,
    /// First instant of the agreed period, and the first after it.
    pub valid_from: Option<Timestamp>,
    pub valid_until: Option<Timestamp>,
    pub hours: Option<Hours>,
    pub actor_required: bool,
    pub limits: Limits,
    pub limits_place: Place,
    /// `None`: only a partner that may look nobody up has none.
    pub contract: Option<Contract>,
    pub budgets: Budgets,
    pub grants: Vec<Grant>,
    pub place: Place,
}

impl Partner {
    /// Whether this is within the agreed period.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        let begun = self.valid_from.is_none_or(|from| from <= now);
        let ended = self.valid_until.is_some_and(|until| until <= now);
        begun && !ended
    }
}

/// What a partner may use up. Everything is stated: there is no default that lets anything through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub requests: Rate,
    /// Per source address of this partner.
    pub source: Rate,
    /// Per person that this partner looks up.
    pub subject: Rate,
    pub in_flight_max: u32,
    pub connections_max: u32,
    /// Which of these are only watched.
    pub shadow: Shadow,
}

/// Who may do what. An immutable value; asking it changes nothing.
#[derive(Debug)]
pub struct Policy {
    pub partners: Vec<Partner>,
    pub routes: Vec<Route>,
    pub(crate) router: Router,
    pub(crate) identities: Identities,
    /// Hosts that the gateway answers for: lower case, without port.
    pub hosts: Vec<String>,
}

/// Who sends a request, when and from where: known before its first byte.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    pub now: Timestamp,
    /// Canonical: an IPv4 address is never IPv6-mapped.
    pub source: IpAddr,
    pub credential: &'a Credential,
    /// Of the partner that [`Policy::identify`] finds for the credential.
    pub standing: Standing,
}

/// The facts of a request's head, and of the connection that brought it.
pub struct Head<'a> {
    pub sender: Sender<'a>,
    /// Lower case, without port.
    pub host: &'a str,
    pub method: &'a str,
    pub path: &'a CanonicalPath<'a>,
}

/// What a head asks for, once its method, host and path are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that exists.
    Nothing,
    /// The gateway's own route.
    Own,
    Route(RouteId),
}

/// The verdict on a head, but for the charges.
#[must_use]
pub struct HeadPlan<'p> {
    policy: &'p Policy,
    partner: Option<PartnerId>,
    charges: [Option<Charge<'p>>; 5],
    shadow: Shadow,
    then: Result<Way<'p>, Reason>,
    trail: Trail,
}

/// Where an admitted request may go.
enum Way<'p> {
    Granted { grant: &'p Grant, captures: Captures },
    Own,
}

/// A head that is allowed and paid for.
#[must_use]
pub struct Admission<'p> {
    policy: &'p Policy,
    partner: PartnerId,
    way: Way<'p>,
    trail: Trail,
}

/// The verdict on a whole request, but for the charges.
#[must_use]
pub struct Plan<'p> {
    charges: Charges<'p>,
    shadow: Shadow,
    then: Result<Permit<'p>, Reason>,
    trail: Trail,
}

/// What a lookup has to pay.
type Charges<'p> = [Option<Charge<'p>>; 5];

/// The right to forward one request. Only [`Plan::settle`] makes one; `forward` uses it up.
#[derive(Debug)]
pub struct Permit<'p> {
    route: &'p Route,
    partner: &'p Partner,
    purpose: Option<&'p str>,
    trail: Trail,
}

/// A refusal, with how it came about.
#[derive(Clone, Debug)]
pub struct Denial {
    pub reason: Reason,
    pub retry_after: Option<Duration>,
    pub trail: Trail,
}

impl Policy {
    pub fn partner(&self, id: PartnerId) -> &Partner {
        &self.partners[usize::from(id.0)]
    }

    pub fn route(&self, id: RouteId) -> &Route {
        &self.routes[usize::from(id.0)]
    }

    pub fn route_named(&self, name: &str) -> Option<RouteId> {
        self.routes.iter().position(|route| *route.name == *name).map(|at| RouteId(at as u16))
    }

    /// The partner that a credential belongs to.
    pub fn identify(&self, credential: &Credential, now: Timestamp) -> Option<PartnerId> {
        self.identities.find(credential, now).ok().map(|(partner, _)| partner)
    }

    /// Identify, admit, entitle. What the partner may be charged for is known as soon as it is admitted, so that
    /// requests without a grant use up its rate as well.
    pub fn plan_head<'p>(&'p self, head: &Head) -> HeadPlan<'p> {
        self.plan(&head.sender, |plan| {
            if !self.hosts.iter().any(|host| host == head.host) {
                return Err(Reason::HostMismatch);
            }
            self.find_way(head, plan)
        })
    }

    /// The plan for a head whose way is known already: as one that was recorded.
    pub fn plan_way<'p>(&'p self, sender: &Sender, asked: Asked) -> HeadPlan<'p> {
        self.plan(sender, |plan| self.entitle(asked, Captures::new(), plan))
    }

    /// The plan for a head that was refused before policy could read it. Its sender is charged all the same: otherwise
    /// malformed requests would be free.
    pub fn plan_refused<'p>(&'p self, sender: &Sender, reason: Reason) -> HeadPlan<'p> {
        self.plan(sender, |_| Err(reason))
    }

    fn plan<'p>(
        &'p self,
        sender: &Sender,
        then: impl FnOnce(&mut HeadPlan<'p>) -> Result<Way<'p>, Reason>,
    ) -> HeadPlan<'p> {
        let (charges, shadow, trail) = Default::default();
        let mut plan = HeadPlan { policy: self, partner: None, charges, shadow, then: Err(Reason::NoRoute), trail };
        plan.then = self.admit(sender, &mut plan).and_then(|()| then(&mut plan));
        plan
    }

    fn admit<'p>(&'p self, sender: &Sender, plan: &mut HeadPlan<'p>) -> Result<(), Reason> {
        let (id, identity) = self.identities.find(sender.credential, sender.now)?;
        let partner = self.partner(id);
        plan.partner = Some(id);
        plan.trail.push(Note::Identified { partner: id, identity });
        let limits = &partner.limits;
        // All that a stolen certificate can use up from elsewhere: the partner's own rate stays the partner's.
        plan.charges[0] = Some(Charge::SourceRate(charge::site(sender.source), limits.source));
        plan.shadow = limits.shadow;

        let (network, shadow) = admit::admit(partner, sender.standing, sender.source, sender.now)?;
        plan.trail.push(Note::Admitted { partner: id, network });
        plan.trail.would_refuse(shadow);
        plan.charges[1] = Some(Charge::InFlight(limits.in_flight_max));
        plan.charges[2] = Some(Charge::RequestRate(limits.requests));
        Ok(())
    }

    fn find_way<'p>(&'p self, head: &Head, plan: &mut HeadPlan<'p>) -> Result<Way<'p>, Reason> {
        if head.path.as_str() == WHOAMI_PATH && matches!(head.method, "GET" | "HEAD") {
            return self.entitle(Asked::Own, Captures::new(), plan);
        }
        match self.router.find(&self.routes, head.host, head.method, head.path) {
            Some((route, captures)) => self.entitle(Asked::Route(route), captures, plan),
            None => self.entitle(Asked::Nothing, Captures::new(), plan),
        }
    }

    fn entitle<'p>(&'p self, asked: Asked, captures: Captures, plan: &mut HeadPlan<'p>) -> Result<Way<'p>, Reason> {
        let route = match asked {
            Asked::Own => {
                plan.trail.push(Note::OwnRoute);
                return Ok(Way::Own);
            }
            Asked::Nothing => return Err(Reason::NoRoute),
            Asked::Route(route) => route,
        };
        let Some(id) = plan.partner else { return Err(Reason::IdentityUnknown) };
        let partner = self.partner(id);
        let Some(grant) = entitle::entitle(partner, route) else {
            plan.trail.push(Note::Ungranted { route });
            return Err(Reason::NoGrant);
        };
        let at = partner.grants.iter().position(|other| std::ptr::eq(other, grant)).unwrap_or_default();
        plan.trail.push(Note::Entitled { partner: id, route: grant.route, grant: at as u16 });
        let route = &*self.route(grant.route).name;
        plan.charges[3] = grant.requests.map(|rate| Charge::RouteRate(route, rate));
        plan.charges[4] = grant.in_flight_max.map(|max| Charge::RouteInFlight(route, max));
        plan.shadow.join(grant.shadow);
        Ok(Way::Granted { grant, captures })
    }
}

impl<'p> HeadPlan<'p> {
    /// The partner, once it is identified.
    pub fn partner(&self) -> Option<PartnerId> {
        self.partner
    }

    /// What has to be paid, as one group, whatever the verdict is.
    pub fn charges(&self) -> impl Iterator<Item = Charge<'p>> + Clone {
        self.charges.into_iter().flatten()
    }

    /// Which of these limits are only watched.
    pub fn shadow(&self) -> Shadow {
        self.shadow
    }

    /// Notes what a limit outside of the charges would have refused, were it not in shadow.
    pub fn would_refuse(&mut self, shadow: Shadow) {
        if self.partner.is_some() {
            self.trail.would_refuse(shadow);
        }
    }

    /// A refusal for a reason that lies outside of policy, and is not charged.
    pub fn refuse(self, reason: Reason, retry_after: Duration) -> Denial {
        deny(reason, Some(retry_after), self.trail)
    }

    pub fn settle(mut self, receipt: Receipt) -> Result<Admission<'p>, Denial> {
        let paid = self.charges().count() as u8;
        match receipt {
            Receipt::Refused { reason, retry_after } => return Err(deny(reason, Some(retry_after), self.trail)),
            Receipt::Passed(shadow) => self.trail.would_refuse(shadow),
            Receipt::Paid => {}
        }
        if let (Some(partner), 1..) = (self.partner, paid) {
            self.trail.push(Note::RequestCharged { partner, charges: paid });
        }
        match (self.then, self.partner) {
            (Ok(way), Some(partner)) => Ok(Admission { policy: self.policy, partner, way, trail: self.trail }),
            (Err(reason), _) => Err(deny(reason, None, self.trail)),
            (Ok(_), None) => Err(deny(Reason::IdentityUnknown, None, self.trail)),
        }
    }
}

impl<'p> Admission<'p> {
    pub fn partner(&self) -> &'p Partner {
        self.policy.partner(self.partner)
    }

    /// The route to take; `None`: the gateway answers itself.
    pub fn route(&self) -> Option<&'p Route> {
        match &self.way {
            Way::Granted { grant, .. } => Some(self.policy.route(grant.route)),
            Way::Own => None,
        }
    }

    pub fn captures(&self) -> &[std::ops::Range<usize>] {
        match &self.way {
            Way::Granted { captures, .. } => captures,
            Way::Own => &[],
        }
    }

    pub fn trail(&self) -> &Trail {
        &self.trail
    }

    /// The verdict on a lookup, from what was read of it.
    pub fn plan_lookup(self, lookup: Result<Facts, Reason>) -> Plan<'p> {
        let mut trail = self.trail.clone();
        let partner = self.partner();
        let mut shadow = partner.limits.shadow;
        shadow.join(partner.budgets.shadow);
        if let Way::Granted { grant, .. } = &self.way {
            shadow.join(grant.shadow);
        }
        let mut charges = Charges::default();
        let then = self.decide_lookup(lookup, &mut charges, &mut trail);
        Plan { charges, shadow, then, trail }
    }

    fn decide_lookup(
        self,
        lookup: Result<Facts, Reason>,
        charges: &mut Charges<'p>,
        trail: &mut Trail,
    ) -> Result<Permit<'p>, Reason> {
        let lookup = lookup?;
        let partner = self.partner();
        let Way::Granted { grant, .. } = self.way else { return Err(Reason::NoGrant) };
        let route = self.policy.route(grant.route);
        let RouteKind::Lookup(declared) = &route.kind else { return Err(Reason::Internal) };
        let Facts { kind, allocated, person, purpose, actor } = lookup;
        if kind != declared.kind {
            return Err(Reason::Internal);
        }
        trail.push(Note::LookedUp { kind, allocated });
        let purpose = match (purpose, &declared.purpose, grant.purposes.as_slice()) {
            (Some(asked), _, granted) => {
                granted.iter().find(|purpose| ***purpose == *asked).ok_or(Reason::PurposeNotGranted)?
            }
            // The route has no place for a purpose: the grant's only one is meant.
            (None, None, [only]) => only,
            (None, _, _) => return Err(Reason::PurposeMissing),
        };
        if partner.actor_required && actor.is_none() {
            return Err(Reason::ActorMissing);
        }
        let Budgets { partner: subjects, actor: of_actor, people, .. } = partner.budgets;
        let max_people = grant.max_people.unwrap_or(declared.max_people);
        *charges = [
            Some(Charge::SubjectRate(person, partner.limits.subject)),
            subjects.map(|budget| Charge::Budget(Scope::Partner, person, budget)),
            of_actor.zip(actor).map(|(budget, actor)| Charge::Budget(Scope::Actor(actor), person, budget)),
            grant.budgets.map(|budget| Charge::Budget(Scope::Grant(&route.name), person, budget)),
            people.map(|budget| Charge::Budget(Scope::People(max_people), person, budget)),
        ];
        Ok(Permit { route, partner, purpose: Some(purpose), trail: Trail::default() })
    }

    /// The verdict on a request that asks for nobody.
    pub fn plan_pass(self, target: Result<(), Reason>) -> Plan<'p> {
        let partner = self.partner();
        let then = match (target, self.route()) {
            (Err(reason), _) => Err(reason),
            (Ok(()), Some(route)) if matches!(route.kind, RouteKind::Pass(_)) => {
                Ok(Permit { route, partner, purpose: None, trail: Trail::default() })
            }
            (Ok(()), _) => Err(Reason::NoGrant),
        };
        Plan { charges: Charges::default(), shadow: Shadow::default(), then, trail: self.trail }
    }
}

impl<'p> Plan<'p> {
    /// What has to be paid once the person is known.
    pub fn charges(&self) -> impl Iterator<Item = Charge<'p>> + Clone {
        self.charges.into_iter().flatten()
    }

    /// Which of these limits are only watched.
    pub fn shadow(&self) -> Shadow {
        self.shadow
    }

    /// Why this is refused whatever is paid.
    pub fn refusal(&self) -> Option<Reason> {
        self.then.as_ref().err().copied()
    }

    pub fn settle(mut self, receipt: Receipt) -> Result<Permit<'p>, Denial> {
        if let Receipt::Passed(shadow) = receipt {
            self.trail.would_refuse(shadow);
        }
        match (self.then, receipt) {
            (Err(reason), _) => Err(deny(reason, None, self.trail)),
            (Ok(_), Receipt::Refused { reason, retry_after }) => Err(deny(reason, Some(retry_after), self.trail)),
            (Ok(permit), Receipt::Paid | Receipt::Passed(_)) => {
                let mut charges = self.charges.into_iter().flatten();
                let charged = charges.next().is_some();
                let has_actor = charges.any(|charge| matches!(charge, Charge::Budget(Scope::Actor(_), ..)));
                if let (true, Some(partner), Some(grant)) = (charged, self.trail.partner(), self.trail.grant()) {
                    self.trail.push(Note::SubjectCharged { partner, grant, has_actor });
                }
                Ok(Permit { trail: self.trail, ..permit })
            }
        }
    }
}

impl<'p> Permit<'p> {
    pub fn route(&self) -> &'p Route {
        self.route
    }

    pub fn partner(&self) -> &'p Partner {
        self.partner
    }

    pub fn purpose(&self) -> Option<&'p str> {
        self.purpose
    }

    pub fn trail(&self) -> &Trail {
        &self.trail
    }
}

impl Denial {
    /// A refusal before any rule of the policy was asked.
    pub fn outright(reason: Reason) -> Denial {
        deny(reason, None, Trail::default())
    }

    /// A refusal after policy had come so far.
    pub fn after(trail: &Trail, reason: Reason) -> Denial {
        deny(reason, None, trail.clone())
    }
}

fn deny(reason: Reason, retry_after: Option<Duration>, mut trail: Trail) -> Denial {
    trail.push(Note::Refused(reason));
    Denial { reason, retry_after, trail }
}
