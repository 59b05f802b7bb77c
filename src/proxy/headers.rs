//! Which headers pass, which are ours? Hop-by-hop fields, identity fields, trace context.

use std::net::IpAddr;

use aws_lc_rs::rand;
use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::policy::fields::{is_hop_by_hop, is_identity, is_relied_on, passes};
use crate::policy::reason::Reason;
use crate::subject::may_hold_number;

pub const DECISION_ID: HeaderName = HeaderName::from_static("x-decision-id");
pub const PARTNER: HeaderName = HeaderName::from_static("x-partner");
pub const PURPOSE: HeaderName = HeaderName::from_static("x-purpose");
pub const ACTOR: HeaderName = HeaderName::from_static("x-actor");
pub const CLIENT_DN: HeaderName = HeaderName::from_static("x-client-dn");
/// RFC 9440.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The names in `Connection`; what the gateway relies on must not be among them.
pub fn nominated(headers: &HeaderMap) -> Result<Vec<String>, Reason> {
    let mut names = Vec::new();
    for value in headers.get_all(header::CONNECTION) {
        let value = value.to_str().map_err(|_| Reason::MalformedRequest)?;
        for name in value.split(',').map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty()) {
            if is_relied_on(&name) {
                return Err(Reason::MalformedRequest);
            }
            names.push(name);
        }
    }
    Ok(names)
}

/// Keeps what a pass route lets through: the fields of content negotiation and those that the route declares.
pub fn strip_request(headers: &mut HeaderMap, nominated: &[String], declared: &[String]) {
    strip(headers, |name| {
        !(passes(name) || declared.iter().any(|declared| declared == name))
            || is_hop_by_hop(name)
            || is_identity(name)
            || nominated.iter().any(|nominated| nominated == name)
    });
}

/// Removes what is for this hop from a backend's answer, and what would speak for the gateway.
pub fn strip_response(headers: &mut HeaderMap) {
    let nominated: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    strip(headers, |name| {
        is_hop_by_hop(name)
            || is_identity(name)
            || matches!(name, "proxy-status" | "alt-svc" | "strict-transport-security")
            || nominated.iter().any(|nominated| nominated == name)
    });
}

fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| unwanted(name.as_str())).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The header of the trace to go on with for the next hop (W3C Trace Context). An invalid one starts a new trace.
pub struct Trace {
    pub id: [u8; 32],
    pub header: HeaderValue,
}

impl Trace {
    pub fn continued(headers: &HeaderMap, random: &[u8; 24]) -> Trace {
        let mut received = headers.get_all(TRACEPARENT).iter();
        let only = received.next().filter(|_| received.next().is_none());
        let (id, flags) = only.and_then(|value| parse_traceparent(value.as_bytes())).unwrap_or_else(|| {
            let mut id = [0; 32];
            hex_into(&random[..16], &mut id);
            (id, *b"00")
        });
        let mut span = [0; 16];
        hex_into(&random[16..], &mut span);
        let mut text = Vec::with_capacity(55);
        for part in [&b"00-"[..], &id, b"-", &span, b"-", &flags] {
            text.extend_from_slice(part);
        }
        let header = HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""));
        Trace { id, header }
    }

    pub fn id(&self) -> &str {
        std::str::from_utf8(&self.id).unwrap_or_default()
    }

    /// The id, where it can be kept: partners choose it, and could have somebody's number kept with it.
    pub fn kept_id(&self) -> Option<&str> {
        Some(self.id()).filter(|id| !may_hold_number(id))
    }
}

fn parse_traceparent(value: &[u8]) -> Option<([u8; 32], [u8; 2])> {
    let hex = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == b'0');
    let dashes = value.len() == 55 && value[..3] == *b"00-" && value[35] == b'-' && value[52] == b'-';
    let (id, span, flags) = dashes.then(|| (&value[3..35], &value[36..52], &value[53..55]))?;
    let valid = hex(id) && hex(span) && hex(flags) && !zero(id) && !zero(span);
    valid.then(|| Some((id.try_into().ok()?, flags.try_into().ok()?))).flatten()
}

fn hex_into(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

/// A decision id (UUIDv7, RFC 9562) and the random bytes for a trace, from one call for randomness.
pub fn decision(now: crate::clock::Timestamp) -> (Uuid, [u8; 24]) {
    let mut random = [0; 34];
    // The generator cannot fail once seeded (AWS-LC aborts instead); zeros would only make ids less distinct.
    let _ = rand::fill(&mut random);
    let mut unique = [0; 10];
    unique.copy_from_slice(&random[24..]);
    let id = uuid::Builder::from_unix_timestamp_millis(now.as_nanos() / 1_000_000, &unique).into_uuid();
    let mut trace = [0; 24];
    trace.copy_from_slice(&random[..24]);
    (id, trace)
}

/// A certificate as RFC 9440 section 2.1 has it: a byte sequence of RFC 9651.
pub fn client_cert(der: &[u8]) -> HeaderValue {
    let encoded = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    HeaderValue::from_str(&format!(":{encoded}:")).unwrap_or(HeaderValue::from_static(""))
}

/// Text from a certificate as a header value: what is not printable ASCII is replaced.
pub fn printable(text: &str) -> HeaderValue {
    let clean: String = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    HeaderValue::from_str(&clean).unwrap_or(HeaderValue::from_static(""))
}

pub fn address(source: IpAddr) -> HeaderValue {
    HeaderValue::from_str(&source.to_string()).unwrap_or(HeaderValue::from_static("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn connection_cannot_nominate_what_is_relied_on() {
        for value in ["x-partner", "close, X-Forwarded-For", "client_cert", "Host", "keep-alive,content-length"] {
            assert_eq!(nominated(&headers(&[("connection", value)])), Err(Reason::MalformedRequest), "{value}");
        }
        assert_eq!(
            nominated(&headers(&[("connection", "keep-alive, X-Mine,")])),
            Ok(vec!["keep-alive".into(), "x-mine".into()])
        );
    }

    #[test]
    fn a_trace_id_keeps_nobodys_number() {
        for (id, is_kept) in [
            ("4bf92f3577b34da6a3ce929d0e0e4736", true),
            ("01234501234abcdef0a0a0a0a0a0a001", true),
            ("00000000000000000000006412345678", false),
            ("a641234567800000000000000000000a", false),
            ("f999941057058fffffffffffffffffff", false),
            ("12999941057058345fffffffffffffff", false),
        ] {
            let value = HeaderValue::try_from(format!("00-{id}-00f067aa0ba902b7-01")).expect("a value");
            let trace = Trace::continued(&HeaderMap::from_iter([(TRACEPARENT, value)]), &[7; 24]);
            assert_eq!((trace.id(), trace.kept_id()), (id, Some(id).filter(|_| is_kept)));
        }
    }

    #[test]
    fn hop_by_hop_fields_stay_on_their_hop() {
        let mut request = headers(&[
            ("connection", "x-mine"),
            ("x-mine", "1"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("host", "h"),
            ("accept", "*/*"),
            ("x_real_ip", "1.2.3.4"),
            ("proxy-authorization", "x"),
            ("x-user", "root"),
            ("x-case", "7"),
            ("x-partner", "other"),
        ]);
        let declared = ["x-case".to_owned(), "x-mine".to_owned(), "x-partner".to_owned()];
        strip_request(&mut request, &["x-mine".into()], &declared);
        assert_eq!(request, headers(&[("accept", "*/*"), ("x-case", "7")]));
        let mut answer = headers(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("x-decision-id", "forged"),
            ("proxy-status", "x"),
            ("etag", "e"),
        ]);
        strip_response(&mut answer);
        assert_eq!(answer, headers(&[("etag", "e")]));
    }

    #[test]
    fn a_valid_trace_goes_on_and_another_begins_anew() {
        const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let random = [7; 24];
        let trace = Trace::continued(&headers(&[("traceparent", GOOD)]), &random);
        assert_eq!(trace.id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(trace.header, "00-4bf92f3577b34da6a3ce929d0e0e4736-0707070707070707-01");
        for bad in [
            "",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-6412345678",
        ] {
            let trace = Trace::continued(&headers(&[("traceparent", bad)]), &random);
            assert_eq!(trace.header, "00-07070707070707070707070707070707-0707070707070707-00", "{bad}");
        }
        let twice = headers(&[("traceparent", GOOD), ("traceparent", GOOD)]);
        assert_eq!(Trace::continued(&twice, &random).id(), "07070707070707070707070707070707");
    }
}
