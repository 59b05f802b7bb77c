//! Is this path in the one canonical form? What is decided on here is what the backend gets.

use std::borrow::Cow;

/// A path that starts with `/`, has no empty, `.` or `..` segment (one trailing `/` aside) and escapes only what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath<'a>(Cow<'a, str>);

impl<'a> CanonicalPath<'a> {
    /// Reads the path part of a request target. `None` where two parsers could disagree about it: escaped `/`, `\`,
    /// `;`, `%`, NUL or control bytes, dot segments (also escaped), empty segments, stray bytes, escapes that are no
    /// UTF-8. Escapes of unreserved bytes are undone and hex digits made upper case (RFC 3986 section 6.2.2), so that one resource has one name.
    pub fn parse(path: &'a str) -> Option<CanonicalPath<'a>> {
        if !path.starts_with('/') {
            return None;
        }
        let canonical = if path.bytes().all(is_plain) { Cow::Borrowed(path) } else { Cow::Owned(unescape(path)?) };
        let segments = canonical[1..].split('/');
        let count = segments.clone().count();
        let clean = segments.enumerate().all(|(at, segment)| match segment {
            "." | ".." => false,
            "" => at + 1 == count, // `/` itself, or one trailing slash
            _ => true,
        });
        clean.then_some(CanonicalPath(canonical))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0[1..].split('/')
    }
}

/// Bytes that may stand in a path as they are: unreserved, and the sub-delimiters that no backend gives a meaning to.
/// `;` is missing on purpose: servlet containers cut path parameters there.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'/' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@')
}

/// RFC 3986 section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn unescape(path: &str) -> Option<String> {
    let mut canonical = String::with_capacity(path.len());
    let mut meant = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if !is_plain(byte) {
                return None;
            }
            canonical.push(char::from(byte));
            meant.push(byte);
            continue;
        }
        let high = char::from(bytes.next()?).to_digit(16)?;
        let low = char::from(bytes.next()?).to_digit(16)?;
        let decoded = (high * 16 + low) as u8;
        meant.push(decoded);
        match decoded {
            _ if is_unreserved(decoded) => canonical.push(char::from(decoded)),
            b'/' | b'\\' | b';' | b'%' | 0..=0x1f | 0x7f => return None,
            _ => canonical.push_str(&format!("%{decoded:02X}")),
        }
    }
    // A lenient decoder makes `/` of the overlong `%c0%af`, and something of every other byte that is no UTF-8.
    std::str::from_utf8(&meant).is_ok().then_some(canonical)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_resource_has_one_name() {
        for (path, canonical) in [
            ("/", Some("/")),
            ("/v1/lookup", Some("/v1/lookup")),
            ("/v1/lookup/", Some("/v1/lookup/")),
            ("/%76%31/look%75p", Some("/v1/lookup")),
            ("/a%c3%a9", Some("/a%C3%A9")),
            ("/a%20b", Some("/a%20b")),
            ("/a+b@c:d", Some("/a+b@c:d")),
            ("", None),
            ("v1", None),
            ("*", None),
            ("//v1", None),
            ("/v1//x", None),
            ("/v1/x//", None),
            ("/v1/../x", None),
            ("/v1/%2e%2E/x", None),
            ("/v1/.%2e/x", None),
            ("/v1/./x", None),
            ("/v1%2fx", None),
            ("/v1%2Fx", None),
            ("/v1%5cx", None),
            ("/v1\\x", None),
            ("/v1;a=b", None),
            ("/v1%3ba", None),
            ("/v1%00", None),
            ("/v1%0d%0a", None),
            ("/v1%252e", None),
            ("/v1%", None),
            ("/v1%4", None),
            ("/v1%zz", None),
            ("/v1%+1", None),
            ("/v1#x", None),
            ("/v1?x", None),
            ("/v1 x", None),
            ("/v1\"x", None),
            ("/vé", None),
            ("/%ef%bc%8f", Some("/%EF%BC%8F")),
            ("/%c0%af", None),
            ("/%e0%80%af", None),
            ("/%c0%ae%c0%ae", None),
            ("/%ff", None),
            ("/%c3", None),
            ("/%c3/%a9", None),
            ("/%ed%a0%80", None),
        ] {
            assert_eq!(CanonicalPath::parse(path).as_ref().map(CanonicalPath::as_str), canonical, "{path}");
        }
    }

    proptest! {
        #[test]
        fn the_canonical_form_of_a_canonical_form_is_itself(path in "/[a-zA-Z0-9%./;_+-]{0,20}") {
            if let Some(once) = CanonicalPath::parse(&path) {
                let twice = CanonicalPath::parse(once.as_str());
                prop_assert_eq!(twice.as_ref().map(CanonicalPath::as_str), Some(once.as_str()));
                prop_assert!(once.segments().all(|segment| segment != "." && segment != ".."));
            }
        }
    }
}
