//! Can an answer's head be read in one way only? hyper's client takes several that another reader would frame otherwise;
//! a connection on which two readers disagree gives one partner another's answer.

use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderMap};
use hyper::{Response, StatusCode, Version};

use crate::policy::reason::Reason;

/// 18 digits always fit in a u64, and are five orders of magnitude above any body that will be sent.
const LENGTH_DIGITS_MAX: usize = 18;

/// Refuses what hyper lets through. The connection is closed with the answer: its lease is not given back.
pub fn screen(response: &Response<Incoming>) -> Result<(), Reason> {
    let empty = response.body().is_end_stream();
    let clean = is_clean(response.status(), response.version(), response.headers(), empty);
    if clean { Ok(()) } else { Err(Reason::BackendProtocol) }
}

fn is_clean(status: StatusCode, version: Version, fields: &HeaderMap, empty: bool) -> bool {
    // 101 is the only 1xx that hyper hands on; the connection is no longer HTTP then. RFC 9110 section 15 ends at 599.
    if status.is_informational() || status.as_u16() > 599 {
        return false;
    }
    let Ok(length) = length(fields) else { return false };
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = match (codings.next(), codings.next()) {
        (None, _) => false,
        // hyper reads to the end of the connection what has another coding last, and `gzip, chunked` as chunked.
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => true,
        _ => return false,
    };
    // hyper believes the coding and ignores the length (RFC 9112 section 6.3).
    if chunked && (length.is_some() || version == Version::HTTP_2) {
        return false;
    }
    match status {
        // It has no body, whatever it says (RFC 9110 section 8.6); hyper takes what follows for the next answer.
        StatusCode::NO_CONTENT => !chunked && length.unwrap_or(0) == 0,
        // Some clients read none after it, and would take a body for the next answer (RFC 9110 section 15.3.6).
        StatusCode::RESET_CONTENT => empty,
        _ => true,
    }
}

/// The one announced length, in digits. hyper takes the same length twice, in two fields or in a list.
fn length(fields: &HeaderMap) -> Result<Option<u64>, ()> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let (length, None) = (lengths.next(), lengths.next()) else { return Err(()) };
    let Some(length) = length.map(|length| length.as_bytes()) else { return Ok(None) };
    if length.is_empty() || length.len() > LENGTH_DIGITS_MAX || !length.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    Ok(Some(length.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    #[test]
    fn only_heads_with_one_reading_pass() {
        for (status, fields, clean) in [
            (200, "", true),
            (200, "content-length: 5", true),
            (200, "content-length: 000000000000000005", true),
            (200, "transfer-encoding: chunked", true),
            (200, "transfer-encoding: Chunked", true),
            (404, "content-length: 5", true),
            (304, "content-length: 5", true),
            (204, "content-length: 0", true),
            (205, "content-length: 0", true),
            (599, "", true),
            (101, "", false),
            (600, "", false),
            (999, "", false),
            (200, "content-length: 5\ncontent-length: 5", false),
            (200, "content-length: 5\ncontent-length: 6", false),
            (200, "content-length: 5, 5", false),
            (200, "content-length: +5", false),
            (200, "content-length: -5", false),
            (200, "content-length: 0x5", false),
            (200, "content-length: ", false),
            (200, "content-length: 5555555555555555555", false),
            (200, "content-length: 5\ntransfer-encoding: chunked", false),
            (200, "transfer-encoding: chunked\ntransfer-encoding: chunked", false),
            (200, "transfer-encoding: chunked, chunked", false),
            (200, "transfer-encoding: gzip, chunked", false),
            (200, "transfer-encoding: identity", false),
            (200, "transfer-encoding: xchunked", false),
            (204, "content-length: 5", false),
            (204, "transfer-encoding: chunked", false),
            (205, "content-length: 5", false),
        ] {
            let mut headers = HeaderMap::new();
            for line in fields.lines() {
                let (name, value) = line.split_once(": ").unwrap();
                headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            }
            let status = StatusCode::from_u16(status).unwrap();
            let empty = fields == "content-length: 0";
            assert_eq!(is_clean(status, Version::HTTP_11, &headers, empty), clean, "{status} {fields}");
        }
    }
}
