//! May this partner do that? Method, host and path to a route, the route to the partner's grant.

use std::sync::Arc;

use super::charge::Rate;
use super::path::CanonicalPath;
use super::reason::Reason;
use super::route::{Captures, Place, RouteId};
use super::shadow::Shadow;
use super::{Partner, Policy};

/// A partner's right to one route.
#[derive(Debug)]
pub struct Grant {
    pub route: RouteId,
    /// Purposes for which a lookup is granted; never empty for a lookup route.
    pub purposes: Vec<Arc<str>>,
    pub requests: Option<Rate>,
    pub in_flight_max: Option<u32>,
    /// Which of these limits are only watched.
    pub shadow: Shadow,
    pub place: Place,
}

/// The grant that covers a request, or the reason why none does. Deny is what is left.
pub fn entitle<'p>(
    policy: &'p Policy,
    partner: &'p Partner,
    host: &str,
    method: &str,
    path: &CanonicalPath,
) -> Result<(&'p Grant, Captures), (Reason, Option<RouteId>)> {
    let (route, captures) = policy.router.find(&policy.routes, host, method, path).ok_or((Reason::NoRoute, None))?;
    let grant = partner.grants.iter().find(|grant| grant.route == route).ok_or((Reason::NoGrant, Some(route)))?;
    Ok((grant, captures))
}
