//! From the backend's answer to what the partner gets: nothing of a failure, only known headers, people counted.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::time::Instant;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::answer::{Body, Held};
use super::forward::Answered;
use super::headers;
use super::paced::{Bounds, Fault, Paced};
use crate::audit::event::Backend;
use crate::metrics::Outcome;
use crate::policy::reason::Reason;
use crate::policy::route::{LookupRoute, PassRoute, Route, RouteKind};

/// An answer for the partner.
pub struct Disclosure {
    pub response: Response<Body>,
    /// Of a lookup; `None` for other routes.
    pub outcome: Option<Outcome>,
    pub backend_time: std::time::Duration,
    /// What the backend answered to a lookup, if it answered.
    pub backend: Option<Backend>,
}

/// A refusal after the backend was asked.
pub struct Withheld {
    pub reason: Reason,
    pub outcome: Option<Outcome>,
    pub backend_time: std::time::Duration,
    /// What the backend answered to a lookup, if it answered.
    pub backend: Option<Backend>,
}

/// `people_max`: the most people that an answer may hold, where a budget counts them.
pub async fn disclose(
    route: &Route,
    method: &Method,
    answered: Answered,
    held: Held,
    people_max: Option<u32>,
    bounds: Bounds,
) -> Result<Disclosure, Withheld> {
    let before = answered.backend_time;
    let begun = Instant::now();
    let status = answered.response.status().as_u16();
    match &route.kind {
        RouteKind::Pass(declared) => match pass(declared, method, answered, held, bounds) {
            Ok(response) => Ok(Disclosure { response, outcome: None, backend_time: before, backend: None }),
            Err(reason) => Err(Withheld { reason, outcome: None, backend_time: before, backend: None }),
        },
        RouteKind::Lookup(declared) => {
            let disclosed = lookup(declared, method, answered, held, people_max, bounds).await;
            let backend_time = before + begun.elapsed();
            match disclosed {
                Ok((response, outcome)) => {
                    let people = if let Outcome::Hit { people } = outcome { Some(people) } else { None };
                    let backend = Some(Backend { status, people });
                    Ok(Disclosure { response, outcome: Some(outcome), backend_time, backend })
                }
                Err(reason) => {
                    let miss = reason == Reason::NoMatch;
                    let outcome = if miss { Outcome::Miss } else { Outcome::Error };
                    let backend = Some(Backend { status, people: miss.then_some(0) });
                    Err(Withheld { reason, outcome: Some(outcome), backend_time, backend })
                }
            }
        }
    }
}

/// Passed through, but for a backend's failure, which is not for partners to read.
fn pass(
    declared: &PassRoute,
    method: &Method,
    answered: Answered,
    held: Held,
    bounds: Bounds,
) -> Result<Response<Body>, Reason> {
    let Answered { response, lease, .. } = answered;
    let (mut parts, incoming) = response.into_parts();
    if parts.status.is_server_error() {
        return Err(Reason::BackendError);
    }
    headers::strip_response(&mut parts.headers);
    // A path is the gateway's; anything with a host, as `//host` is too, would name the backend.
    let path = |location: &[u8]| location.starts_with(b"/") && !matches!(location.get(1), Some(b'/' | b'\\'));
    if parts.headers.get(header::LOCATION).is_some_and(|location| !path(location.as_bytes())) {
        parts.headers.remove(header::LOCATION);
    }
    if method != Method::HEAD {
        // hyper says the length of what is really sent.
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    let bounds = Bounds { bytes_max: declared.answer_bytes_max, ..bounds };
    let paced = Paced::new(incoming, bounds).map_err(|fault| fault_reason(&fault))?;
    // Written anew: the version and the reason phrase are the backend's own.
    let mut response = Response::new(Body::streamed(paced, lease, held));
    (*response.status_mut(), *response.headers_mut()) = (parts.status, parts.headers);
    Ok(response)
}

async fn lookup(
    declared: &LookupRoute,
    method: &Method,
    answered: Answered,
    held: Held,
    people_max: Option<u32>,
    bounds: Bounds,
) -> Result<(Response<Body>, Outcome), Reason> {
    let Answered { response, mut lease, .. } = answered;
    let (parts, incoming) = response.into_parts();
    let bounds = Bounds { bytes_max: declared.answer_bytes_max, ..bounds };
    let paced = |incoming: Incoming| Paced::new(incoming, bounds).map_err(|fault| fault_reason(&fault));
    if parts.status != StatusCode::OK {
        let miss = declared.miss.contains(&parts.status.as_u16());
        // A short error is read to its end, so that its connection serves the next request; a long one is not worth it.
        if incoming.size_hint().upper().is_some_and(|bytes| bytes <= 4_096) && paced(incoming)?.collect().await.is_ok()
        {
            lease.give_back();
        }
        return Err(if miss { Reason::NoMatch } else { Reason::BackendError });
    }
    // No encoding was accepted, and the header that would name it is not passed on.
    if parts.headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reason::BackendProtocol);
    }
    let fields = allowed_headers(&parts.headers, method);
    let (body, outcome) = match &declared.records {
        Some(pointer) if method != Method::HEAD => {
            if !is_json(&parts.headers) {
                return Err(Reason::BackendProtocol);
            }
            let read: Result<Bytes, Fault> = paced(incoming)?.collect().await;
            let bytes = read.map_err(|fault| {
                let reason = fault_reason(&fault);
                // The request's deadline is not the server's: the partner may have used it up.
                if tokio::time::Instant::now() < bounds.deadline {
                    lease.fail(reason);
                }
                reason
            })?;
            lease.give_back();
            let people = count(&bytes, pointer).ok_or(Reason::BackendProtocol)?;
            if people == 0 {
                return Err(Reason::NoMatch);
            }
            if people_max.is_some_and(|most| people > most) {
                return Err(Reason::BackendTooLarge);
            }
            (Body::whole(bytes, Some(held)), Outcome::Hit { people })
        }
        _ => (Body::streamed(paced(incoming)?, lease, held), Outcome::Hit { people: 1 }),
    };
    let mut response = Response::new(body);
    *response.headers_mut() = fields;
    Ok((response, outcome))
}

/// What is counted as JSON has to be JSON to the partner too.
fn is_json(fields: &HeaderMap) -> bool {
    let mut types = fields.get_all(header::CONTENT_TYPE).iter();
    let (Some(only), None) = (types.next(), types.next()) else { return false };
    let essence = only.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// A lookup's answer is about a person: what a cache or a browser could do with it is said here and nowhere else.
fn allowed_headers(fields: &HeaderMap, method: &Method) -> HeaderMap {
    let mut allowed = HeaderMap::with_capacity(6);
    let length = (method == Method::HEAD).then_some(header::CONTENT_LENGTH);
    let names = [header::CONTENT_TYPE, header::CONTENT_DISPOSITION, header::CONTENT_LANGUAGE];
    for name in names.into_iter().chain(length) {
        if let Some(value) = fields.get(&name) {
            allowed.insert(name, value.clone());
        }
    }
    allowed.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    allowed
}

fn fault_reason(fault: &Fault) -> Reason {
    match fault {
        Fault::TooLarge => Reason::BackendTooLarge,
        Fault::TooSlow => Reason::BackendTimeout,
        Fault::Broken(_) => Reason::BackendIncomplete,
    }
}

/// Length of the array that a JSON pointer leads to, without building the document. `None` where the answer has no array
/// there, or is not JSON that every reader reads alike: with a member twice, a number out of range, or nested so deeply
/// (128, serde_json's limit) that a reader may give up on it, the partner could see other people than were counted.
fn count(json: &[u8], pointer: &[String]) -> Option<u32> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let people = Counter { pointer }.deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    people
}

struct Counter<'a> {
    pointer: &'a [String],
}

impl<'de> DeserializeSeed<'de> for Counter<'_> {
    type Value = Option<u32>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<u32>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counter<'_> {
    type Value = Option<u32>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("objects down to an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<u32>, A::Error> {
        let Some((wanted, rest)) = self.pointer.split_first() else { return Err(A::Error::custom("not an array")) };
        let mut people = None;
        let mut names = Names::default();
        while let Some(Name(name)) = map.next_key()? {
            if name == wanted.as_str() {
                people = map.next_value_seed(Counter { pointer: rest })?;
            } else {
                map.next_value::<Plain>()?;
            }
            names.insert(name)?;
        }
        Ok(people)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Option<u32>, A::Error> {
        if !self.pointer.is_empty() {
            return Err(A::Error::custom("an array on the way"));
        }
        let mut people = 0;
        while sequence.next_element::<Plain>()?.is_some() {
            people += 1;
        }
        Ok(Some(people))
    }
}

/// Any value, looked at and forgotten.
struct Plain;

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Plain, D::Error> {
        deserializer.deserialize_any(Plain)
    }
}

impl<'de> Visitor<'de> for Plain {
    type Value = Plain;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_str<E>(self, _: &str) -> Result<Plain, E> {
        Ok(Plain)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Plain, A::Error> {
        while let Some(Plain) = sequence.next_element()? {}
        Ok(Plain)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Plain, A::Error> {
        let mut names = Names::default();
        while let Some((Name(name), Plain)) = map.next_entry()? {
            names.insert(name)?;
        }
        Ok(Plain)
    }
}

/// A member's name; borrowed where it has no escapes, which serde's own `Cow` never is.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Name<'de>, D::Error> {
        struct Text;
        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// The members of one object so far. Few are compared one by one; a backend must not make that expensive by many.
#[derive(Default)]
struct Names<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

const FEW: usize = 16;

impl<'de> Names<'de> {
    fn insert<E: serde::de::Error>(&mut self, name: Cow<'de, str>) -> Result<(), E> {
        let new = !self.few.contains(&name) && (self.few.len() < FEW || self.many.insert(name.clone()));
        if self.few.len() < FEW {
            self.few.push(name);
        }
        if new { Ok(()) } else { Err(E::custom("the same member twice")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_counted_where_the_route_says() {
        let pointer = |text: &str| text.split('/').skip(1).map(str::to_owned).collect::<Vec<_>>();
        for (json, at, people) in [
            (r#"{"beneficiaries":[{"a":1},{"b":[2]}]}"#, "/beneficiaries", Some(2)),
            (r#"{"x":[1,2,3],"beneficiaries":[]}"#, "/beneficiaries", Some(0)),
            (r#"{"a":{"b":[1]}}"#, "/a/b", Some(1)),
            (r#"[1,2]"#, "", Some(2)),
            (r#"{"beneficiaries":{}}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":null}"#, "/beneficiaries", None),
            (r#"{"other":[1]}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":[],"beneficiaries":[1]}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":[1]} x"#, "/beneficiaries", None),
            (r#"{"beneficiaries":[1"#, "/beneficiaries", None),
            ("<html>", "/beneficiaries", None),
            ("", "/beneficiaries", None),
            (r#"{"beneficiaries":[{"a":1,"b":[{"c":null},true,-1,1.5,"x"]}]}"#, "/beneficiaries", Some(1)),
            (r#"{"beneficiaries":[{"a":1,"a":2}]}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":[{"a":1,"\u0061":2}]}"#, "/beneficiaries", None),
            (r#"{"x":{"y":[{"a":1,"a":2}]},"beneficiaries":[1]}"#, "/beneficiaries", None),
            (r#"{"x":1,"x":2,"beneficiaries":[1]}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":[1e999]}"#, "/beneficiaries", None),
            (r#"{"beneficiaries":["\ud800"]}"#, "/beneficiaries", None),
        ] {
            assert_eq!(count(json.as_bytes(), &pointer(at)), people, "{json}");
        }
        let nested = |depth: usize| format!("{{\"people\":[{}{}]}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(count(nested(100).as_bytes(), &pointer("/people")), Some(1));
        assert_eq!(count(nested(200).as_bytes(), &pointer("/people")), None);
        let members = |last: &str| (0..40).map(|at| format!("\"m{at}\":0,")).collect::<String>() + last;
        for (last, people) in [("m40", Some(1)), ("m39", None), ("m3", None)] {
            let json = format!("{{\"people\":[{{{}}}]}}", members(&format!("\"{last}\":0")));
            assert_eq!(count(json.as_bytes(), &pointer("/people")), people, "{json}");
        }
    }
}
