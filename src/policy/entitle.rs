//! May this partner do that? From the route to the partner's grant.

use std::sync::Arc;

use super::Partner;
use super::charge::Rate;
use super::contract::Budget;
use super::route::{Place, RouteId};
use super::shadow::Shadow;

/// A partner's right to one route.
#[derive(Debug)]
pub struct Grant {
    pub route: RouteId,
    /// Purposes for which a lookup is granted; never empty for a lookup route.
    pub purposes: Vec<Arc<str>>,
    pub requests: Option<Rate>,
    pub in_flight_max: Option<u32>,
    /// Distinct subjects on this route.
    pub budgets: Option<Budget>,
    /// People that one answer may hold; `None`: what the route says.
    pub max_people: Option<u16>,
    /// Which of these limits are only watched.
    pub shadow: Shadow,
    pub place: Place,
}

/// The partner's grant for a route; without one the answer is no.
pub fn entitle(partner: &Partner, route: RouteId) -> Option<&Grant> {
    partner.grants.iter().find(|grant| grant.route == route)
}
