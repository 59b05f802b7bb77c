//! Is this head one that every parser reads alike? From hyper's request to the facts that policy decides on.

use std::borrow::Cow;

use hyper::header;
use hyper::http::request::Parts;
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Method, Version};

use super::headers;
use super::wire::Violation;
use super::wire::http1::REFUSED_METHOD;
use crate::policy::head::{fields_allowed, host_of, method_allowed};
use crate::policy::lookup::HeaderValue;
use crate::policy::reason::Reason;

/// A request whose head passed.
pub struct Intake {
    pub method: Method,
    /// Lower case, without port.
    pub host: String,
    pub headers: HeaderMap,
    /// Names that `Connection` nominates.
    pub nominated: Vec<String>,
}

/// What the connection says of its requests.
pub struct Line<'a> {
    /// Server name of the handshake, lower case.
    pub server_name: Option<&'a str>,
    /// What the wire found wrong with the current message.
    pub violation: Option<Violation>,
    pub fields_max: usize,
    /// Names, values and 32 bytes a field (RFC 9113 section 6.5.2).
    pub head_bytes_max: usize,
}

/// The intake, and the target in origin form.
pub fn intake(parts: Parts, line: &Line) -> Result<(Intake, String), Reason> {
    if parts.method.as_str() == REFUSED_METHOD {
        return Err(line.violation.map_or(Reason::MalformedRequest, violation_reason));
    }
    method_allowed(parts.method.as_str())?;
    let fields = &parts.headers;
    if fields.len() > line.fields_max {
        return Err(Reason::HeadTooLarge);
    }
    let size: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
    if size > line.head_bytes_max {
        return Err(Reason::HeadTooLarge);
    }
    if parts.version == Version::HTTP_2 {
        one_reading(fields)?;
    }
    fields_allowed(|name| single(fields, name))?;
    let nominated = headers::nominated(fields)?;
    if parts.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTPS) {
        return Err(Reason::MalformedRequest);
    }
    let host = host(&parts.uri, fields, parts.version)?;
    if line.server_name.is_some_and(|name| name != host) {
        return Err(Reason::HostMismatch);
    }
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let (target, host) = (target.to_owned(), host.into_owned());
    Ok((Intake { method: parts.method, host, headers: parts.headers, nominated }, target))
}

/// What the wire checks of every HTTP/1 field, of those of HTTP/2, whose bytes only h2 sees: h2 takes values with white
/// space at an end (malformed by RFC 9113 section 8.2.1) and knows nothing of readers that take `_` for `-`.
fn one_reading(fields: &HeaderMap) -> Result<(), Reason> {
    let padded = |value: &header::HeaderValue| {
        let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        blank(value.as_bytes().first()) || blank(value.as_bytes().last())
    };
    if fields.values().any(padded) {
        return Err(Reason::MalformedRequest);
    }
    if fields.keys().any(|name| matches!(name.as_str(), "content_length" | "transfer_encoding")) {
        return Err(Reason::AmbiguousFraming);
    }
    Ok(())
}

/// The one host of a request. HTTP/2 says it in `:authority`; a `Host` beside it has to agree (RFC 9113 section 8.3.1).
fn host<'a>(uri: &'a hyper::Uri, fields: &'a HeaderMap, version: Version) -> Result<Cow<'a, str>, Reason> {
    let mut hosts = fields.get_all(header::HOST).iter();
    let (named, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Reason::MalformedRequest);
    }
    let named = named.map(|host| host.to_str().map_err(|_| Reason::MalformedRequest)).transpose()?;
    let authority = uri.authority().map(|authority| authority.as_str());
    let text = match (authority, named) {
        (Some(authority), Some(named)) if !authority.eq_ignore_ascii_case(named) => {
            return Err(Reason::MalformedRequest);
        }
        // The wire refuses absolute targets of HTTP/1; were one to come through, it would name a second host.
        (Some(_), _) if version != Version::HTTP_2 => return Err(Reason::MalformedRequest),
        (Some(authority), _) => authority,
        (None, Some(named)) => named,
        (None, None) => return Err(Reason::HostMismatch),
    };
    host_of(text).ok_or(Reason::MalformedRequest)
}

/// The value of a header that is meant to stand once.
pub fn single<'a>(fields: &'a HeaderMap, name: &str) -> HeaderValue<'a> {
    let mut values = fields.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => HeaderValue::Absent,
        (Some(value), None) => value.to_str().map_or(HeaderValue::Unreadable, HeaderValue::Text),
        (Some(_), Some(_)) => HeaderValue::Unreadable,
    }
}

fn violation_reason(violation: Violation) -> Reason {
    use Violation as V;
    match violation {
        V::HeadTooLarge | V::TooManyFields | V::FieldNameTooLong | V::TrailersTooLarge | V::TargetTooLong => {
            Reason::HeadTooLarge
        }
        _ if violation.is_framing() => Reason::AmbiguousFraming,
        _ => Reason::MalformedRequest,
    }
}
