//! Reads a lookup off the wire: the body, bounded in size and time, and then what the route declares of it.

use std::ops::Range;

use hyper::HeaderMap;

use super::intake::single;
use super::paced::{Bounds, Unread};
use super::upstream::body_fault;
use crate::clock::Timestamp;
use crate::gateway::Gateway;
use crate::policy::head::Target;
use crate::policy::lookup::{self, Asked, Lookup, Misread};
use crate::policy::route::{LookupRoute, Route};

/// `bounds` are those of the connection; the route's cap replaces theirs.
#[expect(clippy::too_many_arguments, reason = "the facts of one request, each from another step")]
pub async fn read(
    declared: &LookupRoute,
    route: &Route,
    headers: &HeaderMap,
    body: &mut Unread,
    target: &Target<'_>,
    captures: &[Range<usize>],
    gateway: &Gateway,
    now: Timestamp,
    bounds: Bounds,
) -> Result<Lookup, Misread> {
    let header = |name: &str| single(headers, name);
    lookup::body_readable(declared, body.is_expected(), &header)?;
    let body = match &declared.body {
        None => None,
        Some(_) => {
            let bounds = Bounds { bytes_max: declared.body_bytes_max, ..bounds };
            Some(body.collect(bounds).await.map_err(|fault| body_fault(&fault))?)
        }
    };
    let body = body.as_deref().unwrap_or_default();
    let asked = Asked { path: &target.path, captures, query: target.query, header: &header, body };
    // Not before the body is there: nobody is to be counted under keys that were replaced meanwhile.
    let keys = gateway.epochs();
    lookup::read(declared, route, &asked, keys.current(), keys.previous(now).map(|key| &**key))
}
