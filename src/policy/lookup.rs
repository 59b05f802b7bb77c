//! Who is asked for, why and by whom? Reads a lookup from a request by what its route declares; no IO.

use std::fmt;
use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::charge::Person;
use super::path::CanonicalPath;
use super::reason::Reason;
use super::route::{Location, LookupRoute, Route, RouteKind};
use super::shape::{Field, Scalar};
use crate::subject::{EpochKey, Invalid, Kind, Subject, Token, resembles_subject};

/// The parts of a request that a lookup is read from.
pub struct Asked<'a> {
    pub path: &'a CanonicalPath<'a>,
    pub captures: &'a [Range<usize>],
    pub query: Option<&'a str>,
    /// The value of a header by its lower-case name.
    pub header: &'a dyn Fn(&str) -> HeaderValue<'a>,
    /// Whole body; empty where there was none.
    pub body: &'a [u8],
}

/// A header that is meant to stand once at the most.
pub enum HeaderValue<'a> {
    Absent,
    Text(&'a str),
    /// More than one, or not visible ASCII.
    Unreadable,
}

/// A lookup that was read: what policy may know of it, and what the backend will get.
pub struct Lookup {
    pub subject: Subject,
    pub token: Token,
    /// Under the key of the epoch before, while people are still counted under it.
    pub previous: Option<Token>,
    /// Number of the token's epoch.
    pub epoch: u32,
    pub purpose: Option<String>,
    pub actor: Option<Actor>,
    /// The actor as counted.
    pub counted_actor: Option<Person>,
    /// Written anew from what was parsed, with the canonical identifier.
    pub body: Option<Vec<u8>>,
    /// Path and query, likewise.
    pub target: String,
}

/// Why a lookup could not be read, and who is said to have asked.
#[derive(Debug)]
pub struct Misread {
    pub reason: Reason,
    pub actor: Option<Actor>,
}

impl From<Reason> for Misread {
    fn from(reason: Reason) -> Misread {
        Misread { reason, actor: None }
    }
}

/// All that policy may know of a lookup: what can be recorded, so that its verdict can be found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    pub kind: Kind,
    pub allocated: Option<bool>,
    pub person: Person,
    pub purpose: Option<&'a str>,
    pub actor: Option<Person>,
}

impl Lookup {
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            kind: self.subject.kind(),
            allocated: self.subject.allocated(),
            person: Person { key: self.token.key(), previous: self.previous.map(|token| token.key()) },
            purpose: self.purpose.as_deref(),
            actor: self.counted_actor,
        }
    }
}

/// The end user at the partner, as asserted by the partner: an opaque id that is no person's identifier.
#[derive(Clone, PartialEq, Eq)]
pub struct Actor(String);

impl Actor {
    pub fn parse(text: &str) -> Option<Actor> {
        let opaque = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b'-'));
        (opaque && !resembles_subject(text)).then(|| Actor(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").field("subject", &self.subject).field("token", &self.token).finish_non_exhaustive()
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Actor(…)")
    }
}

/// Whether a lookup's body, if it has one, may be read at all: only where the route declares one, and there is one way to
/// read its bytes, JSON in UTF-8, not encoded.
pub fn body_readable<'a>(
    route: &LookupRoute,
    present: bool,
    header: &dyn Fn(&str) -> HeaderValue<'a>,
) -> Result<(), Reason> {
    if route.body.is_none() {
        return if present { Err(Reason::BodyNotExpected) } else { Ok(()) };
    }
    if !matches!(header("content-encoding"), HeaderValue::Absent) {
        return Err(Reason::ContentEncoding);
    }
    let HeaderValue::Text(content_type) = header("content-type") else { return Err(Reason::ContentType) };
    let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let utf8 = parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()).all(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or_default();
        name.eq_ignore_ascii_case("charset") && value.trim_matches('"').eq_ignore_ascii_case("utf-8")
    });
    let json = essence.trim().eq_ignore_ascii_case("application/json");
    if json && utf8 { Ok(()) } else { Err(Reason::ContentType) }
}

/// Reads what a lookup route declares, refuses the rest. `previous` is the key of the epoch before, while people are still
/// counted under it.
pub fn read(
    route: &LookupRoute,
    whole: &Route,
    asked: &Asked,
    key: &EpochKey,
    previous: Option<&EpochKey>,
) -> Result<Lookup, Misread> {
    let mut parameters = read_query(&route.parameters, asked.query)?;
    let mut members = match &route.body {
        Some(shape) => Some((shape, shape.read(asked.body)?)),
        None if asked.body.is_empty() => None,
        None => return Err(Reason::BodyNotExpected.into()),
    };
    let mut path = asked.path.as_str().to_owned();

    let found = |location: &Location| -> Result<Option<String>, Reason> {
        Ok(match location {
            Location::Body(pointer) => members.as_ref().and_then(|(shape, values)| {
                let index = shape.index(pointer)?;
                values.text(index).map(str::to_owned)
            }),
            Location::Query(name) => parameters.iter().find_map(|(field, value)| {
                let text = value.as_text()?;
                (field.name == *name).then(|| text.to_owned())
            }),
            Location::Path(name) => captured(whole, asked, name).map(|range| {
                let escaped = &asked.path.as_str()[range];
                percent_decode_str(escaped).decode_utf8_lossy().into_owned()
            }),
            Location::Header(name) => match (asked.header)(name) {
                HeaderValue::Absent => None,
                HeaderValue::Text(text) => Some(text.to_owned()),
                HeaderValue::Unreadable => return Err(Reason::MalformedRequest),
            },
        })
    };
    let raw = found(&route.subject)?;
    let purpose = route.purpose.as_ref().map(&found).transpose()?.flatten();
    let actor = route.actor.as_ref().map(&found).transpose()?.flatten();
    let actor = actor.map(|text| Actor::parse(&text).ok_or(Reason::ActorInvalid)).transpose()?;

    let misread = |reason| Misread { reason, actor: actor.clone() };
    let raw = raw.ok_or_else(|| misread(Reason::IdentifierMissing))?;
    // A second identifier in a declared member would reach the backend uncounted.
    let beside = |location: Location| location != route.subject;
    let stray = parameters
        .iter()
        .any(|(field, value)| beside(Location::Query(field.name.clone())) && resembles_subject(&value.to_string()))
        || members.as_ref().is_some_and(|(shape, values)| {
            let subject = match &route.subject {
                Location::Body(pointer) => shape.index(pointer),
                _ => None,
            };
            values.others(subject).any(|value| resembles_subject(&value.to_string()))
        });
    if stray {
        return Err(misread(Reason::IdentifierUndeclared));
    }
    let subject = Subject::parse(route.kind, &raw).map_err(|invalid| misread(refusal(invalid)))?;
    match &route.subject {
        Location::Body(pointer) => {
            if let Some((shape, values)) = &mut members
                && let Some(index) = shape.index(pointer)
            {
                values.set_text(index, subject.expose());
            }
        }
        Location::Query(name) => {
            if let Some((_, value)) = parameters.iter_mut().find(|(field, _)| field.name == *name) {
                *value = Scalar::Text(subject.expose().to_owned());
            }
        }
        Location::Path(name) => {
            if let Some(range) = captured(whole, asked, name) {
                path.replace_range(range, subject.expose());
            }
        }
        // The backend gets the canonical id from `forward`, which writes every header itself.
        Location::Header(_) => {}
    }
    let (token, epoch) = (key.token(&subject), key.number());
    let counted_actor = actor.as_ref().map(|actor| {
        let mark = |key: &EpochKey| *key.actor(actor.as_str()).as_bytes();
        Person { key: mark(key), previous: previous.map(mark) }
    });
    let previous = previous.map(|key| key.token(&subject));
    let body = members.map(|(shape, values)| shape.write(&values));
    let target = with_query(path, &parameters);
    Ok(Lookup { subject, token, previous, epoch, purpose, actor, counted_actor, body, target })
}

/// The path and query that the backend of a pass route gets: declared parameters only, written anew.
pub fn pass_target(fields: &[Field], path: &CanonicalPath, query: Option<&str>) -> Result<String, Reason> {
    let parameters = read_query(fields, query)?;
    Ok(with_query(path.as_str().to_owned(), &parameters))
}

/// The refusal of an identifier that does not parse.
pub fn refusal(invalid: Invalid) -> Reason {
    match invalid {
        Invalid::Empty => Reason::IdentifierMissing,
        Invalid::TooLong | Invalid::NotAscii | Invalid::Format => Reason::IdentifierFormat,
        Invalid::Prefix => Reason::IdentifierPrefix,
        Invalid::CheckDigit => Reason::IdentifierCheckDigit,
        Invalid::Palindrome => Reason::IdentifierPalindrome,
        Invalid::Masked => Reason::IdentifierMasked,
    }
}

fn captured(route: &Route, asked: &Asked, name: &str) -> Option<Range<usize>> {
    let at = route.pattern.capture(name)?;
    asked.captures.get(at).cloned()
}

/// Everything but unreserved characters (RFC 3986 section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

fn read_query<'f>(fields: &'f [Field], query: Option<&str>) -> Result<Vec<(&'f Field, Scalar)>, Reason> {
    let mut values: Vec<(&Field, Scalar)> = Vec::new();
    for pair in query.filter(|query| !query.is_empty()).into_iter().flat_map(|query| query.split('&')) {
        let (name, value) = pair.split_once('=').ok_or(Reason::BadPath)?;
        let name = decode(name).ok_or(Reason::BadPath)?;
        let value = decode(value).ok_or(Reason::BadPath)?;
        let field = fields.iter().find(|field| field.name == name).ok_or(Reason::ParameterUndeclared)?;
        if values.iter().any(|(other, _)| other.name == field.name) {
            return Err(Reason::ParameterDuplicate);
        }
        values.push((field, field.accepts.read(&value).ok_or(Reason::ParameterInvalid)?));
    }
    let absent = |field: &Field| !values.iter().any(|(present, _)| present.name == field.name);
    if fields.iter().any(|field| field.required && absent(field)) {
        return Err(Reason::ParameterMissing);
    }
    Ok(values)
}

/// Undoes form encoding. `None` for stray `%` and for what is not UTF-8: parsers disagree about both.
fn decode(text: &str) -> Option<String> {
    let escapes = text.match_indices('%');
    let hex = |at: usize| text.as_bytes().get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
    if !escapes.into_iter().all(|(at, _)| hex(at)) {
        return None;
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().ok().map(|decoded| decoded.into_owned())
}

fn with_query(mut path: String, parameters: &[(&Field, Scalar)]) -> String {
    for (at, (field, value)) in parameters.iter().enumerate() {
        path.push(if at == 0 { '?' } else { '&' });
        path.extend(utf8_percent_encode(&field.name, QUERY));
        path.push('=');
        path.extend(utf8_percent_encode(&value.to_string(), QUERY));
    }
    path
}

/// The lookup part of a route, if it is one.
pub fn lookup_route(route: &Route) -> Option<&LookupRoute> {
    match &route.kind {
        RouteKind::Lookup(lookup) => Some(lookup),
        RouteKind::Pass(_) => None,
    }
}
