//! How did it come to this verdict? What each step found, kept with the decision and put into words on demand.

use super::networks::NetworkId;
use super::reason::Reason;
use super::route::{RouteId, RouteKind};
use super::shadow::Shadow;
use super::{PartnerId, Policy};
use crate::subject::Kind;

/// What one step found. Small and `Copy`: every live request carries its notes, few are ever read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    Identified {
        partner: PartnerId,
        identity: u16,
    },
    Admitted {
        partner: PartnerId,
        network: NetworkId,
    },
    Entitled {
        partner: PartnerId,
        route: RouteId,
        grant: u16,
    },
    /// A route matched, but the partner has no grant for it.
    Ungranted {
        route: RouteId,
    },
    /// The gateway's own route, which every identified and admitted partner has.
    OwnRoute,
    RequestCharged {
        partner: PartnerId,
        charges: u8,
    },
    LookedUp {
        kind: Kind,
        allocated: Option<bool>,
    },
    SubjectCharged {
        partner: PartnerId,
        grant: u16,
        /// Whether a budget of its actor was charged.
        has_actor: bool,
    },
    Refused(Reason),
}

/// The notes of one decision, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    notes: [Option<Note>; 8],
    /// What would have been refused, were nothing in shadow.
    shadow: Shadow,
}

impl Trail {
    pub fn push(&mut self, note: Note) {
        // Seven steps at the most, then a refusal: the array cannot be full.
        if let Some(free) = self.notes.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(note);
        }
    }

    pub fn notes(&self) -> impl Iterator<Item = Note> {
        self.notes.iter().flatten().copied()
    }

    pub fn would_refuse(&mut self, shadow: Shadow) {
        self.shadow.join(shadow);
    }

    /// What would have been refused, were nothing in shadow.
    pub fn shadow(&self) -> Shadow {
        self.shadow
    }

    /// The matched route, for metrics and logs.
    pub fn route(&self) -> Option<RouteId> {
        self.notes().find_map(|note| match note {
            Note::Entitled { route, .. } | Note::Ungranted { route } => Some(route),
            _ => None,
        })
    }

    /// Place of the grant among its partner's.
    pub fn grant(&self) -> Option<u16> {
        self.notes().find_map(|note| if let Note::Entitled { grant, .. } = note { Some(grant) } else { None })
    }

    /// Whether the gateway's own route was asked for.
    pub fn is_own_route(&self) -> bool {
        self.notes().any(|note| note == Note::OwnRoute)
    }

    pub fn network(&self) -> Option<(PartnerId, NetworkId)> {
        self.notes().find_map(|note| match note {
            Note::Admitted { partner, network } => Some((partner, network)),
            _ => None,
        })
    }

    pub fn partner(&self) -> Option<PartnerId> {
        self.notes().find_map(|note| match note {
            Note::Identified { partner, .. } => Some(partner),
            _ => None,
        })
    }

    /// One line a step: the step's name and what it found, with the place in the configuration that decided.
    pub fn lines(&self, policy: &Policy) -> Vec<(&'static str, String)> {
        let shadow = (!self.shadow.is_empty()).then(|| ("shadow", format!("would be refused: {}", self.shadow)));
        self.notes().map(|note| words(note, policy)).chain(shadow).collect()
    }
}

fn words(note: Note, policy: &Policy) -> (&'static str, String) {
    match note {
        Note::Identified { partner, identity } => {
            let partner = policy.partner(partner);
            let identity = &partner.identities[usize::from(identity)];
            ("identify", format!("{} is {} ({})", identity.proof, partner.name, identity.place))
        }
        Note::Admitted { partner, network } => {
            let network = policy.partner(partner).networks.network(network);
            let note = network.note;
            let expires = note.expires.map_or("never expires".to_owned(), |at| format!("expires {at}"));
            let (cidr, owner, ticket) = (network.cidr, &note.owner, &note.ticket);
            let (shadow, file, line) = (if note.shadow { " in shadow" } else { "" }, &note.file, network.line);
            ("admit", format!("network {cidr}{shadow}, owner {owner}, ticket {ticket}, {expires} ({file}:{line})"))
        }
        Note::Entitled { partner, route, grant } => {
            let grant = &policy.partner(partner).grants[usize::from(grant)];
            let route = policy.route(route);
            ("entitle", format!("route {} ({}), granted ({})", route.name, route.place, grant.place))
        }
        Note::Ungranted { route } => {
            let route = policy.route(route);
            ("entitle", format!("route {} ({}) exists, but this partner has no grant for it", route.name, route.place))
        }
        Note::OwnRoute => ("entitle", "the gateway's own route, open to every registered partner".to_owned()),
        Note::RequestCharged { partner, charges } => {
            let limits = &policy.partner(partner).limits;
            let (requests, source, in_flight) = (limits.requests, limits.source, limits.in_flight_max);
            let shadow = |reason| if limits.shadow.contains(reason) { " in shadow" } else { "" };
            let text = format!(
                "{charges} charges: partner {requests}{}, source {source}{}, {in_flight} in flight{}",
                shadow(Reason::RatePartner),
                shadow(Reason::RateSource),
                shadow(Reason::InFlightPartner)
            );
            ("charge", text)
        }
        Note::LookedUp { kind, allocated } => {
            let series = if allocated == Some(false) { ", of a series that is not allocated" } else { "" };
            ("lookup", format!("a well-formed {}{series}", kind.as_str()))
        }
        Note::SubjectCharged { partner, grant, has_actor } => {
            let partner = policy.partner(partner);
            let (budgets, grant) = (&partner.budgets, &partner.grants[usize::from(grant)]);
            let mut watched = partner.limits.shadow;
            watched.join(budgets.shadow);
            watched.join(grant.shadow);
            let shadow = |reason| if watched.contains(reason) { " in shadow" } else { "" };
            let mut text = format!("this person: {}{}", partner.limits.subject, shadow(Reason::RateSubject));
            for (whose, budget, reason) in [
                ("different people of the partner", budgets.partner, Reason::BudgetPartner),
                ("of the actor", budgets.actor.filter(|_| has_actor), Reason::BudgetActor),
                ("of the grant", grant.budgets, Reason::BudgetGrant),
                ("people disclosed", budgets.people, Reason::BudgetPeople),
            ] {
                if let Some(budget) = budget {
                    text += &format!("; {whose}: {budget}{}", shadow(reason));
                }
            }
            ("charge", text)
        }
        Note::Refused(reason) => ("refuse", format!("{}: {}", reason.code(), reason.row().text)),
    }
}

/// The words `lookup` or `pass`, for people.
pub fn route_kind(kind: &RouteKind) -> &'static str {
    match kind {
        RouteKind::Lookup(_) => "lookup",
        RouteKind::Pass(_) => "pass",
    }
}
