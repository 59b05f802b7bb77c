//! Who am I taken for? The gateway's own answer to a partner.

use hyper::Response;
use hyper::body::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::json;

use super::answer::Body;
use super::connection::Peer;
use crate::policy::Admission;
use crate::policy::trail::{Note, route_kind};
use crate::snapshot::Snapshot;

/// The identity and network that matched, the routes that are granted, and when the certificate expires.
pub fn answer(admission: Admission, snapshot: &Snapshot, peer: &Peer) -> Response<Body> {
    let partner = admission.partner();
    let credential = &peer.client.credential;
    let mut identity = None;
    let mut network = None;
    for note in admission.trail().notes() {
        match note {
            Note::Identified { identity: at, .. } => {
                identity = Some(partner.identities[usize::from(at)].proof.to_string());
            }
            Note::Admitted { network: id, .. } => {
                let entry = partner.networks.network(id);
                let expires = entry.note.expires.map(|at| at.to_string());
                network = Some(json!({ "cidr": entry.cidr.to_string(), "expires": expires }));
            }
            _ => {}
        }
    }
    let routes: Vec<_> = partner
        .grants
        .iter()
        .map(|grant| {
            let route = snapshot.policy.route(grant.route);
            let purposes: Vec<&str> = grant.purposes.iter().map(|purpose| &**purpose).collect();
            let path = route.pattern.to_string();
            json!({ "name": &*route.name, "kind": route_kind(&route.kind), "methods": route.methods, "path": path, "purposes": purposes })
        })
        .collect();
    let document = json!({
        "partner": &*partner.name,
        "identity": identity,
        "source": peer.source.to_string(),
        "network": network,
        "certificate": {
            "subject": peer.client.subject,
            "issuer": &*credential.issuer,
            "not_after": credential.not_after.to_string(),
        },
        "routes": routes,
    });
    let mut response = Response::new(Body::whole(Bytes::from(document.to_string()), None));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
