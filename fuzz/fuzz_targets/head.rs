//! Does what the gate lets through of an HTTP/1 stream have one reading, however the stream was cut? And HTTP/2's meter?
//!
//! The first two bytes are the lengths of the pieces; the rest is the stream. An odd second byte narrows the limits.
#![no_main]

use std::cell::RefCell;
use std::convert::Infallible;

use dwarpal::clock::Timestamp;
use dwarpal::proxy::wire::http1::{Fate, Gate, HeadLimits, REFUSED_METHOD};
use dwarpal::proxy::wire::http2::{FrameLimits, Meter};
use dwarpal_fuzz::pieces;
use http_body_util::{BodyExt, Empty};
use httparse::Status;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

fuzz_target!(|data: &[u8]| {
    let [first, second, stream @ ..] = data else { return };
    let lengths = [usize::from(*first) + 1, usize::from(*second) + 1];
    let limits = match second % 2 {
        0 => HeadLimits::default(),
        _ => HeadLimits { head_bytes_max: 160, target_bytes_max: 24, fields_max: 5 },
    };
    let (released, fate) = release(limits, &[stream]);
    for cut in [pieces(stream, [1, 1]), pieces(stream, lengths)] {
        assert_eq!(release(limits, &cut), (released.clone(), fate), "the cut makes a difference");
    }

    let clean = without_stand_in(&released, fate);
    assert!(stream.starts_with(clean), "what is released is the beginning of the stream, byte by byte");
    let messages = read(clean, limits);
    let seen = RefCell::new(Vec::new());
    RUNTIME.with(|runtime| runtime.block_on(ask_hyper(&released, &seen)));
    compare(&messages, &seen.into_inner(), fate);

    meter(stream, lengths);
});

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().build().expect("a runtime");
}

fn release(limits: HeadLimits, pieces: &[&[u8]]) -> (Vec<u8>, Fate) {
    let mut gate = Gate::new(limits);
    let mut released = Vec::new();
    for piece in pieces {
        let fate = gate.fate();
        let in_place = gate.feed(piece);
        assert!(fate == Fate::Open || in_place == 0, "nothing follows a refusal");
        released.extend_from_slice(&piece[..in_place]);
        released.extend_from_slice(gate.ready());
        gate.consume(gate.ready().len());
    }
    (released, gate.fate())
}

/// A refused head is replaced by one with a method that nobody can send.
fn without_stand_in(released: &[u8], fate: Fate) -> &[u8] {
    let Fate::Refused(_) = fate else { return released };
    let start = format!("{REFUSED_METHOD} ");
    let at = released.windows(start.len()).rposition(|window| window == start.as_bytes());
    &released[..at.expect("a stand-in for the refused head")]
}

/// A message as httparse and the plain rules of RFC 9112 have it.
struct Message {
    method: String,
    target: String,
    body: Vec<u8>,
    whole: bool,
    /// It does not ask for anything that might end the connection.
    plain: bool,
}

/// Reads everything. Panics where there is anything but whole, unambiguous heads.
fn read(mut bytes: &[u8], limits: HeadLimits) -> Vec<Message> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Request::new(&mut fields);
        let Ok(Status::Complete(length)) = head.parse(bytes) else { panic!("a released head is whole and clean") };
        assert!(length <= limits.head_bytes_max && head.headers.len() <= limits.fields_max);
        assert!(!bytes[..length].windows(2).any(|two| (two[0] == b'\r') != (two[1] == b'\n')), "a line ends by CRLF");
        let named = |name: &str| {
            // As a reader that takes `_` for `-` would see it.
            let fields = head.headers.iter().filter(|field| field.name.replace('_', "-").eq_ignore_ascii_case(name));
            fields.map(|field| field.value.trim_ascii().to_vec()).collect::<Vec<_>>()
        };
        let (lengths, codings) = (named("content-length"), named("transfer-encoding"));
        assert!(lengths.len() + codings.len() <= 1, "the length is stated once");
        assert!(named("host").len() <= 1 && (head.version == Some(0) || named("host").len() == 1));
        let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
        assert!(target.len() <= limits.target_bytes_max);
        let unusual = ["connection", "upgrade", "expect", "http2-settings"];
        let plain = head.version == Some(1) && method != "CONNECT" && unusual.iter().all(|name| named(name).is_empty());
        bytes = &bytes[length..];
        let (body, whole) = match (lengths.first(), codings.first()) {
            (Some(length), _) => {
                let length = std::str::from_utf8(length).expect("digits").parse::<u64>().expect("a length");
                let here = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
                let body = bytes[..here].to_vec();
                bytes = &bytes[here..];
                (body, here as u64 == length)
            }
            (None, Some(coding)) => {
                assert!(coding.eq_ignore_ascii_case(b"chunked") && head.version == Some(1));
                chunked(&mut bytes)
            }
            (None, None) => (Vec::new(), true),
        };
        assert!(whole || bytes.is_empty(), "nothing follows a body that is not whole");
        messages.push(Message { method: method.to_owned(), target: target.to_owned(), body, whole, plain });
    }
    messages
}

fn chunked(bytes: &mut &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let (used, size) = match httparse::parse_chunk_size(bytes).expect("a released chunk is clean") {
            Status::Complete(chunk) => chunk,
            Status::Partial => {
                assert!(bytes.len() <= 17, "an unfinished size is short");
                *bytes = &[];
                return (body, false);
            }
        };
        assert!(bytes[..used - 2].iter().all(u8::is_ascii_hexdigit), "a size is digits alone");
        *bytes = &bytes[used..];
        if size == 0 {
            if bytes.is_empty() {
                return (body, false);
            }
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let Ok(Status::Complete((used, fields))) = httparse::parse_headers(bytes, &mut fields) else {
                panic!("a released trailer section is whole and clean");
            };
            let framing = ["host", "content-length", "transfer-encoding"];
            let clean = |field: &httparse::Header| !framing.iter().any(|name| field.name.eq_ignore_ascii_case(name));
            assert!(fields.iter().all(clean), "a trailer frames nothing");
            *bytes = &bytes[used..];
            return (body, true);
        }
        let here = bytes.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        body.extend_from_slice(&bytes[..here]);
        *bytes = &bytes[here..];
        let end = bytes.len().min(2);
        assert!(here as u64 == size || end == 0);
        assert_eq!(bytes[..end], b"\r\n"[..end]);
        *bytes = &bytes[end..];
        if bytes.is_empty() {
            return (body, false);
        }
    }
}

/// What hyper's service was given: method, target, and the body where it was whole.
type Seen = (String, String, Option<Vec<u8>>);

async fn ask_hyper(bytes: &[u8], seen: &RefCell<Vec<Seen>>) {
    let service = service_fn(async |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        let body = body.collect().await.ok().map(|body| body.to_bytes().to_vec());
        let target = match head.method.as_str() {
            "CONNECT" => head.uri.to_string(),
            _ => head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        };
        seen.borrow_mut().push((head.method.to_string(), target, body));
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let stream = TokioIo::new(tokio::io::join(bytes, tokio::io::sink()));
    // As the gateway has it: hyper's own bounds are wider than the gate's.
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.half_close(true).max_headers(65).max_buf_size(32 << 10);
    let _ = builder.serve_connection(stream, service).await;
}

fn compare(messages: &[Message], seen: &[Seen], fate: Fate) {
    for (message, (method, target, body)) in messages.iter().zip(seen) {
        assert_eq!((&message.method, &message.target), (method, target));
        assert_eq!(message.whole.then_some(&message.body), body.as_ref(), "another body");
    }
    // hyper leaves off where a message ends the connection, and not before.
    let due = messages.iter().position(|message| !message.plain || !message.whole).map_or(messages.len(), |at| at + 1);
    assert!(seen.len() >= due, "hyper did not see a request that was released");
    match seen.get(messages.len()..) {
        None | Some([]) => {}
        Some([(method, _, _)]) => assert!(matches!(fate, Fate::Refused(_)) && method == REFUSED_METHOD),
        Some(_) => panic!("hyper saw a request that nobody released"),
    }
}

fn meter(stream: &[u8], lengths: [usize; 2]) {
    let limits = FrameLimits { header_block_bytes_max: 256, ..FrameLimits::default() };
    let start = || {
        let mut meter = Meter::new(&limits);
        assert_eq!(meter.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Timestamp::default()), Ok(()));
        meter
    };
    let now = Timestamp::from_unix_seconds(1);
    let whole = start().feed(stream, now);
    for cut in [pieces(stream, [1, 1]), pieces(stream, lengths)] {
        let mut meter = start();
        assert_eq!(cut.into_iter().try_for_each(|piece| meter.feed(piece, now)), whole, "the cut makes a difference");
        assert_eq!(meter.feed(&[], now), whole, "the first violation is the answer from then on");
    }
}
