//! Reads a lookup off the wire: the body, bounded in size and time, and then what the route declares of it.

use hyper::body::Body as _;
use hyper::{HeaderMap, header};

use super::intake::{Intake, single};
use super::paced::{Bounds, Paced};
use super::upstream::body_fault;
use crate::policy::head::Target;
use crate::policy::lookup::{self, Asked, Lookup};
use crate::policy::reason::Reason;
use crate::policy::route::{Captures, LookupRoute, Route};
use crate::subject::EpochKey;

/// `bounds` are those of the connection; the route's cap replaces theirs.
pub async fn read(
    declared: &LookupRoute,
    route: &Route,
    intake: Intake,
    captures: &Captures,
    key: &EpochKey,
    bounds: Bounds,
) -> Result<Lookup, Reason> {
    let Intake { target, headers, body, .. } = intake;
    let body = match &declared.body {
        None if body.is_end_stream() => None,
        None => return Err(Reason::BodyNotExpected),
        Some(_) => {
            json_only(&headers)?;
            let bounds = Bounds { bytes_max: declared.body_bytes_max, ..bounds };
            let paced = Paced::new(body, bounds).map_err(|fault| body_fault(&fault))?;
            Some(paced.collect().await.map_err(|fault| body_fault(&fault))?)
        }
    };
    let target = Target::parse(&target)?;
    let header = |name: &str| single(&headers, name);
    let body = body.as_deref().unwrap_or_default();
    let asked = Asked { path: &target.path, captures, query: target.query, header: &header, body };
    lookup::read(declared, route, &asked, key)
}

/// One way to read the bytes: JSON in UTF-8, not encoded.
fn json_only(headers: &HeaderMap) -> Result<(), Reason> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reason::ContentEncoding);
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    let only = types.next().filter(|_| types.next().is_none()).and_then(|value| value.to_str().ok());
    let (essence, parameters) = only.map_or(("", ""), |value| value.split_once(';').unwrap_or((value, "")));
    let utf8 = parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()).all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    let json = essence.trim().eq_ignore_ascii_case("application/json");
    if json && utf8 { Ok(()) } else { Err(Reason::ContentType) }
}
