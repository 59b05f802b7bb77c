//! What does a request's head say? The parts that policy decides on, read strictly; shared by the live path and `explain`.

use std::borrow::Cow;

use super::lookup::HeaderValue;
use super::path::CanonicalPath;
use super::reason::Reason;

/// A request target in origin form.
#[derive(Debug)]
pub struct Target<'a> {
    pub path: CanonicalPath<'a>,
    pub query: Option<&'a str>,
}

impl<'a> Target<'a> {
    pub fn parse(target: &'a str, bytes_max: usize) -> Result<Target<'a>, Reason> {
        if target.len() > bytes_max {
            return Err(Reason::HeadTooLarge);
        }
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let clean = query.is_none_or(|query| query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));
        let path = CanonicalPath::parse(path).filter(|_| clean).ok_or(Reason::BadPath)?;
        Ok(Target { path, query })
    }
}

/// Fields by which a request asks for more than an answer.
pub fn fields_allowed<'a>(header: impl Fn(&str) -> HeaderValue<'a>) -> Result<(), Reason> {
    if !matches!(header("upgrade"), HeaderValue::Absent) {
        return Err(Reason::UpgradeRefused);
    }
    match header("expect") {
        HeaderValue::Absent => Ok(()),
        HeaderValue::Text(text) if text.eq_ignore_ascii_case("100-continue") => Ok(()),
        HeaderValue::Text(_) | HeaderValue::Unreadable => Err(Reason::ExpectationRefused),
    }
}

/// Methods that no configuration can let through.
pub fn method_allowed(method: &str) -> Result<(), Reason> {
    if matches!(method, "CONNECT" | "TRACE") { Err(Reason::MethodRefused) } else { Ok(()) }
}

/// Host of an authority: lower case, without port. `None` where it is malformed.
pub fn host_of(authority: &str) -> Option<Cow<'_, str>> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let fits = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
        Some(inner) => inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && host.bytes().all(named),
    };
    if !fits || port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return None;
    }
    let lower = !host.bytes().any(|byte| byte.is_ascii_uppercase());
    Some(if lower { Cow::Borrowed(host) } else { Cow::Owned(host.to_ascii_lowercase()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_lose_their_port_and_case() {
        for (authority, host) in [
            ("gateway.example", Some("gateway.example")),
            ("Gateway.Example:8443", Some("gateway.example")),
            ("127.0.0.1:1", Some("127.0.0.1")),
            ("[::1]:8443", Some("[::1]")),
            ("[::1]", Some("[::1]")),
            ("", None),
            (":8443", None),
            ("a:b", None),
            ("a:99999", None),
            ("a:+1", None),
            ("user@a", None),
            ("a b", None),
            ("a/b", None),
            ("[::1", None),
            ("::1", None),
            ("[x]", None),
        ] {
            assert_eq!(host_of(authority).as_deref(), host, "{authority}");
        }
    }

    #[test]
    fn targets_are_split_once() {
        let target = Target::parse("/a?b=c?d", 100).expect("fine");
        assert_eq!((target.path.as_str(), target.query), ("/a", Some("b=c?d")));
        for bad in ["*", "http://h/a", "/a#b", "/a?b#c", "/a?b c", ""] {
            assert_eq!(Target::parse(bad, 100).err(), Some(Reason::BadPath), "{bad}");
        }
        assert_eq!(Target::parse("/long", 4).err(), Some(Reason::HeadTooLarge));
    }
}
