//! Takes a permitted request to its backend. Needs the permit by value: one permit, one request.

use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response};
use tokio::time::Instant;
use uuid::Uuid;

use super::answer::sign;
use super::headers::{self, Trace};
use super::paced::{Bounds, Paced};
use super::upstream::{Lease, Outgoing, Pools, Refusal, Upload, body_fault, is_out_of_service, screen};
use crate::policy::Permit;
use crate::policy::lookup::Lookup;
use crate::policy::reason::Reason;
use crate::policy::route::{Location, RouteKind};
use crate::snapshot::Snapshot;

/// What a backend is sent, besides what the gateway says of the caller.
pub enum Payload {
    /// Written anew from what was parsed; no header of the partner goes with it.
    Lookup(Box<Lookup>),
    /// Those of the partner's headers that the route lets through, its body, and a target written anew.
    Pass { target: String, headers: HeaderMap, nominated: Vec<String>, body: Option<Incoming> },
}

/// What the gateway says of the caller: made once a connection, sent with every request.
pub struct Caller {
    pub source: HeaderValue,
    pub subject: HeaderValue,
    pub certificate: HeaderValue,
}

/// A backend's answer so far.
pub struct Answered {
    pub response: Response<Incoming>,
    pub lease: Lease,
    pub backend_time: Duration,
    /// Time in which the partner's body was still coming.
    pub upload_time: Duration,
}

/// One request on its way.
pub struct Errand<'a> {
    pub method: Method,
    pub host: &'a str,
    pub caller: &'a Caller,
    pub decision: Uuid,
    pub trace: &'a Trace,
    pub bounds: Bounds,
}

pub async fn forward(
    permit: Permit<'_>,
    payload: Payload,
    errand: Errand<'_>,
    snapshot: &Snapshot,
    pools: &Pools,
) -> Result<Answered, Refusal> {
    let route = permit.route();
    let upstream = &snapshot.upstreams[route.backend];
    let refused = |reason| Refusal { reason, retry_after: None };
    let upload = Upload::default();
    let (target, mut fields, body) = match payload {
        Payload::Lookup(lookup) => {
            let fields = lookup_headers(&permit, &lookup);
            let body = lookup.body.map_or(Outgoing::Empty, |body| Outgoing::Whole(Some(body.into())));
            (lookup.target, fields, body)
        }
        Payload::Pass { target, headers: mut fields, nominated, body } => {
            let RouteKind::Pass(declared) = &route.kind else { return Err(refused(Reason::Internal)) };
            headers::strip_request(&mut fields, &nominated, &declared.headers);
            let body = match body.filter(|body| !body.is_end_stream()) {
                None => Outgoing::Empty,
                Some(body) => {
                    let bounds = Bounds { bytes_max: declared.body_bytes_max, ..errand.bounds };
                    let paced = Paced::new(body, bounds).map_err(|fault| refused(body_fault(&fault)))?;
                    Outgoing::streamed(paced, upload.clone())
                }
            };
            (target, fields, body)
        }
    };
    identify(&mut fields, &permit, &errand);
    fields.insert(header::HOST, upstream.host.clone());
    let mut request = Request::new(body);
    *request.method_mut() = errand.method;
    *request.uri_mut() = target.parse().map_err(|_| refused(Reason::BadPath))?;
    *request.headers_mut() = fields;

    let begun = Instant::now();
    let (response, mut lease) = pools.send(upstream, request, upload, errand.bounds.deadline).await?;
    if let Err(reason) = screen(&response) {
        lease.fail(reason);
        return Err(refused(reason));
    }
    if is_out_of_service(response.status()) {
        lease.fail(Reason::BackendError);
    } else {
        lease.begun();
    }
    let total = begun.elapsed();
    let upload_time = lease.sent_at().map_or(Duration::ZERO, |at| at.duration_since(begun)).min(total);
    Ok(Answered { response, lease, backend_time: total - upload_time, upload_time })
}

fn lookup_headers(permit: &Permit, lookup: &Lookup) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(16);
    if lookup.body.is_some() {
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    let RouteKind::Lookup(declared) = &permit.route().kind else { return fields };
    if declared.records.is_some() {
        fields.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    }
    if let Location::Header(name) = &declared.subject
        && let (Ok(name), Ok(id)) = (header::HeaderName::try_from(name), HeaderValue::from_str(lookup.subject.expose()))
    {
        fields.insert(name, id);
    }
    if let Some(actor) = lookup.actor.as_ref().and_then(|actor| HeaderValue::from_str(actor.as_str()).ok()) {
        fields.insert(headers::ACTOR, actor);
    }
    fields
}

/// Ours, after everything of the partner's was removed.
fn identify(fields: &mut HeaderMap, permit: &Permit, errand: &Errand) {
    let caller = errand.caller;
    fields.insert(headers::FORWARDED_FOR, caller.source.clone());
    fields.insert(headers::FORWARDED_PROTO, HeaderValue::from_static("https"));
    fields.insert(headers::CLIENT_DN, caller.subject.clone());
    fields.insert(headers::CLIENT_CERT, caller.certificate.clone());
    fields.insert(headers::TRACEPARENT, errand.trace.header.clone());
    let named = [
        (headers::FORWARDED_HOST, Some(errand.host)),
        (headers::PARTNER, Some(&*permit.partner().name)),
        (headers::PURPOSE, permit.purpose()),
    ];
    for (name, text) in named {
        if let Some(text) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
            fields.insert(name, text);
        }
    }
    sign(fields, errand.decision);
}
