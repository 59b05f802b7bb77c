//! What becomes of hostile frames? Each row is a conversation on a connection of its own; where the connection is to
//! survive it, a request on a new stream tells.

use super::Class::{self, Cve, Cwe, Research, Rfc};
use super::http1::SPOOFED;
use super::{Expected, WellBehaved, assert_a_table, drive, seen_by_backend};
use crate::world::frames::{
    self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Heard, PADDED, PING, PREFACE, PRIORITISED,
    PRIORITY, PUSH_PROMISE, RESET, SETTINGS, TABLE_SIZE, WINDOW_SIZE, WINDOW_UPDATE, block, frame, huffman, integer,
    request, reset, settings, text, window_update,
};
use crate::world::pki::pki;
use crate::world::{ALPHA, World, eventually, line};

const SEQUEL: Class = Research("https://portswigger.net/research/http2");

pub struct Row {
    pub name: &'static str,
    class: Class,
    /// Cases of h2spec that the row covers.
    pub cases: &'static [&'static str],
    steps: Vec<Step>,
    outcome: Outcome,
}

enum Step {
    Send(Vec<u8>),
    /// Reads until this holds.
    Until(fn(&Heard) -> bool),
}

use Step::{Send, Until};

enum Outcome {
    /// Stream 1 is answered by 200, and the backend gets exactly this. The connection goes on.
    Served(Expected),
    /// Stream 1 is refused with this status and public code. The connection goes on.
    Refused(u16, &'static str),
    /// As before, and then the connection ends in order.
    Left(u16, &'static str),
    /// Stream 1 ends with this error, and the connection goes on. The backend hears nothing.
    Reset(u32),
    /// Nothing is said on stream 1, and the connection goes on.
    Ignored,
    /// The connection ends with this error.
    Cut(u32),
    /// The connection ends without a word.
    Closed,
    /// As before: the wire saw this violation.
    Dropped(&'static str),
    /// The connection ends in order after what was asked for: the backend gets exactly this.
    Last(Expected),
}

use Outcome::{Closed, Cut, Dropped, Ignored, Last, Left, Refused, Reset, Served};

// Error codes of RFC 9113 section 7.
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const REFUSED: u32 = 7;
const CANCEL: u32 = 8;
const CALM: u32 = 11;

fn row(
    name: &'static str,
    class: Class,
    cases: &'static [&'static str],
    sent: impl Into<Vec<u8>>,
    outcome: Outcome,
) -> Row {
    Row { name, class, cases, steps: vec![Send(sent.into())], outcome }
}

fn talk(
    name: &'static str,
    class: Class,
    cases: &'static [&'static str],
    steps: impl Into<Vec<Step>>,
    outcome: Outcome,
) -> Row {
    Row { name, class, cases, steps: steps.into(), outcome }
}

const PSEUDO: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/rest/x")];

/// Fields of a good GET, and these behind them.
fn good(fields: &[(&str, &str)]) -> Vec<u8> {
    block(&[&PSEUDO[..], fields].concat())
}

/// A whole request: the head of a GET with these fields.
fn get(fields: &[(&str, &str)]) -> Vec<u8> {
    whole(&good(fields))
}

fn whole(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, block)
}

/// A GET in which some pseudo fields say something else, or nothing.
fn but(changed: &[(&str, Option<&str>)]) -> Vec<u8> {
    let value = |name: &str| changed.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
    let fields = PSEUDO.iter().filter_map(|(name, usual)| Some((*name, value(name).unwrap_or(Some(*usual))?)));
    whole(&block(&fields.collect::<Vec<_>>()))
}

/// The head of a POST whose body follows.
fn post(fields: &[(&str, &str)]) -> Vec<u8> {
    head(1, "/rest/x", fields)
}

fn head(stream: u32, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    frame(HEADERS, END_HEADERS, stream, &block(&[&pseudo[..], fields].concat()))
}

/// The head of a lookup whose body never comes: the backend is not asked before it did.
fn lookup(stream: u32) -> Vec<u8> {
    head(stream, "/v1/mobile", &[("content-type", "application/json")])
}

fn data(bytes: &[u8]) -> Vec<u8> {
    frame(DATA, END_STREAM, 1, bytes)
}

/// Of a request that may have come so far before its stream was reset; such a one is not counted.
fn cancelled() -> Vec<u8> {
    request(1, "GET", "/rest/reset")
}

fn served(fields: &[(&str, &str)]) -> Outcome {
    Served(Expected::new("GET /rest/x", fields, b""))
}

/// A body without a length goes up in chunks.
fn posted(body: &[u8]) -> Outcome {
    Served(Expected::new("POST /rest/x", &[("transfer-encoding", "chunked")], body))
}

fn all(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

fn priority(stream: u32, on: u32, weight: u8) -> Vec<u8> {
    frame(PRIORITY, 0, stream, &[&on.to_be_bytes()[..], &[weight]].concat())
}

fn over(heard: &Heard) -> bool {
    heard.is_over(1)
}

// ---- what well-behaved clients may do

#[rustfmt::skip]
fn lawful() -> Vec<Row> {
    let plain = || get(&[]);
    let field = |representation: &[u8]| whole(&[&good(&[])[..], representation].concat());
    let agent = || served(&[("user-agent", "h2spec")]);
    let kept = || served(&[("x-kept", "h2spec")]);
    let hpack = Rfc(7541, "6.2");
    let wide = || settings(&[(WINDOW_SIZE, 65_535)]);
    let (name, value) = (text("x-kept"), text("h2spec"));
    vec![
        row("a request", Rfc(9113, "8.1"), &["generic/1/1", "generic/3.2/1", "generic/4/1", "http2/3.5/1"], plain(), served(&[])),
        row("a request for the head alone", Rfc(9113, "8.1"), &["generic/4/2"], request(1, "HEAD", "/files/x"), Served(Expected::new("HEAD /files/x", &[], b""))),
        row("a body", Rfc(9113, "6.1"), &["generic/3.1/1", "generic/4/3"], all(&[&post(&[]), &data(b"hello")]), posted(b"hello")),
        row("a body in pieces", Rfc(9113, "6.1"), &["generic/3.1/2"], all(&[&post(&[]), &frame(DATA, 0, 1, b"hel"), &data(b"lo")]), posted(b"hello")),
        row("a padded body", Rfc(9113, "6.1"), &["generic/3.1/3"], all(&[&post(&[]), &frame(DATA, END_STREAM | PADDED, 1, b"\x05hello\0\0\0\0\0")]), posted(b"hello")),
        row("a body of the largest frame", Rfc(9113, "4.2"), &["http2/4.2/1"], all(&[&post(&[]), &data(&[b'x'; 16_384])]), posted(&[b'x'; 16_384])),
        row("a body with trailers", Rfc(9113, "8.1"), &["generic/4/4"], all(&[&post(&[]), &frame(DATA, 0, 1, b"hello"), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-kept", "late")]))]), posted(b"hello")),
        row("a body with its length", Rfc(9113, "8.1.1"), &[], all(&[&post(&[("content-length", "5")]), &data(b"hello")]), Served(Expected::new("POST /rest/x", &[("content-length", "5")], b"hello"))),
        row("padded headers", Rfc(9113, "6.2"), &["generic/3.2/2"], frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[&[3][..], &good(&[]), &[0; 3]].concat()), served(&[])),
        row("headers with a priority", Rfc(9113, "6.2"), &["generic/3.2/3"], frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, 1, &[&[0, 0, 0, 0, 255][..], &good(&[])].concat()), served(&[])),
        row("a priority of 1", Rfc(9113, "6.3"), &["generic/3.3/1"], all(&[&priority(1, 0, 0), &plain()]), served(&[])),
        row("a priority of 256", Rfc(9113, "6.3"), &["generic/3.3/2", "generic/2/1"], all(&[&priority(1, 0, 255), &plain()]), served(&[])),
        row("a priority that depends on another stream", Rfc(9113, "6.3"), &["generic/3.3/3"], all(&[&priority(1, 0, 255), &priority(3, 1, 255), &plain()]), served(&[])),
        row("a priority of its own", Rfc(9113, "6.3"), &["generic/3.3/4"], all(&[&priority(3, 0x8000_0001, 255), &plain()]), served(&[])),
        row("a priority of a later stream before an earlier one", Rfc(9113, "5.1.1"), &["generic/3.3/5"], all(&[&priority(5, 0, 255), &plain()]), served(&[])),
        talk("a priority of a stream that is over", Rfc(9113, "5.1"), &["generic/2/5"], [Send(plain()), Until(over), Send(priority(1, 0, 255))], served(&[])),
        row("a window for an answer", Rfc(9113, "5.1"), &["generic/2/2", "http2/6.9.1/1"], all(&[&settings(&[(WINDOW_SIZE, 0)]), &plain(), &window_update(1, 1), &wide()]), served(&[])),
        row("a priority while the answer waits", Rfc(9113, "5.1"), &["generic/2/3"], all(&[&settings(&[(WINDOW_SIZE, 0)]), &plain(), &priority(1, 0, 255), &window_update(1, 1), &wide()]), served(&[])),
        row("a reset while the answer waits", Rfc(9113, "5.1"), &["generic/2/4"], all(&[&cancelled(), &reset(1, CANCEL)]), Ignored),
        row("a reset of an upload", Rfc(9113, "6.4"), &["generic/3.4/1"], all(&[&lookup(1), &reset(1, CANCEL)]), Ignored),
        row("a reset of an unknown code", Rfc(9113, "7"), &["http2/7/2"], all(&[&lookup(1), &reset(1, 0xff)]), Ignored),
        talk("settings are acknowledged", Rfc(9113, "6.5.3"), &["generic/3.5/1", "http2/6.5.3/2"], [Send(settings(&[(3, 100)])), Until(|heard| heard.settings_acks == 2)], Ignored),
        row("settings that nobody knows", Rfc(9113, "6.5.2"), &["http2/6.5.2/5"], all(&[&settings(&[(0xff, 1)]), &plain()]), served(&[])),
        row("one setting twice: the last counts", Rfc(9113, "6.5.3"), &["http2/6.5.3/1"], all(&[&settings(&[(WINDOW_SIZE, 0), (WINDOW_SIZE, 1)]), &plain()]), served(&[])),
        talk("a window that opens after the request", Rfc(9113, "6.9.2"), &["http2/6.9.2/1"], [Send(all(&[&settings(&[(WINDOW_SIZE, 0)]), &plain()])), Until(|heard| heard.streams.contains_key(&1)), Send(settings(&[(WINDOW_SIZE, 1)]))], served(&[])),
        talk("a window below nothing", Rfc(9113, "6.9.2"), &["http2/6.9.2/2"], [
            Send(all(&[&settings(&[(WINDOW_SIZE, 3)]), &request(1, "GET", "/files/megabyte")])),
            Until(|heard| heard.streams.get(&1).is_some_and(|stream| stream.body.len() == 3)),
            Send(all(&[&settings(&[(WINDOW_SIZE, 2)]), &window_update(1, 2)])),
            // Three sent, two allowed, two more allowed: one is left.
            Until(|heard| heard.streams.get(&1).is_some_and(|stream| stream.body.len() == 4)),
            Send(all(&[&wide(), &window_update(0, 2_000_000), &window_update(1, 2_000_000)])),
        ], Served(Expected::new("GET /files/megabyte", &[], b""))),
        talk("a ping is answered", Rfc(9113, "6.7"), &["generic/3.7/1", "http2/6.7/1"], [Send(frame(PING, 0, 0, b"dwarpal!")), Until(|heard| heard.pongs == [b"dwarpal!"])], Ignored),
        talk("an answer to a ping is not answered", Rfc(9113, "6.7"), &["http2/6.7/2"], [Send(all(&[&frame(PING, ACK, 0, b"unasked!"), &frame(PING, 0, 0, b"dwarpal!")])), Until(|heard| heard.pongs == [b"dwarpal!"])], Ignored),
        talk("a goodbye", Rfc(9113, "6.8"), &["generic/3.8/1"], [Send(plain()), Until(over), Send(frame(GOAWAY, 0, 0, &[0; 8]))], Last(Expected::new("GET /rest/x", &[], b""))),
        talk("a goodbye of an unknown code", Rfc(9113, "7"), &["http2/7/1"], [Send(plain()), Until(over), Send(frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]))], Last(Expected::new("GET /rest/x", &[], b""))),
        row("a wider window for the connection", Rfc(9113, "6.9"), &["generic/3.9/1"], all(&[&window_update(0, 1), &plain()]), served(&[])),
        row("a wider window for a stream", Rfc(9113, "6.9"), &["generic/3.9/2"], all(&[&plain(), &window_update(1, 1)]), served(&[])),
        row("headers in two frames", Rfc(9113, "6.10"), &["generic/3.10/1"], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[])), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-kept", "h2spec")]))]), kept()),
        row("headers in three frames", Rfc(9113, "6.10"), &["generic/3.10/2", "http2/6.10/1"], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[])), &frame(CONTINUATION, 0, 1, &block(&[("x-kept", "h2spec")])), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-other", "b")]))]), kept()),
        row("a frame of an unknown type", Rfc(9113, "5.5"), &["http2/4.1/1", "http2/5.5/1"], all(&[&frame(0x16, 0, 0, &[0; 8]), &plain()]), served(&[])),
        row("a flag that nobody knows", Rfc(9113, "4.1"), &["http2/4.1/2"], all(&[&frame(PING, 0x16, 0, &[0; 8]), &plain()]), served(&[])),
        row("a reserved bit", Rfc(9113, "4.1"), &["http2/4.1/3"], all(&[&frame(PING, 0, 0x8000_0000, &[0; 8]), &plain()]), served(&[])),
        row("te: trailers", Rfc(9113, "8.2.2"), &[], get(&[("te", "trailers")]), served(&[])),
        row("an indexed field", Rfc(7541, "6.1"), &["generic/5/1"], field(&[0x90]), served(&[("accept-encoding", "gzip, deflate")])),
        row("a literal to be indexed, name indexed", hpack, &["generic/5/2"], field(&[&integer(0x40, 6, 58)[..], &value].concat()), agent()),
        row("a literal to be indexed, name indexed, compressed", hpack, &["generic/5/3"], field(&[&integer(0x40, 6, 58)[..], &huffman("h2spec")].concat()), agent()),
        row("a literal to be indexed", hpack, &["generic/5/4"], field(&[&[0x40][..], &name, &value].concat()), kept()),
        row("a literal to be indexed, compressed", hpack, &["generic/5/5"], field(&[&[0x40][..], &huffman("x-kept"), &huffman("h2spec")].concat()), kept()),
        row("a literal, name indexed", hpack, &["generic/5/6"], field(&[&integer(0, 4, 58)[..], &value].concat()), agent()),
        row("a literal, name indexed, compressed", hpack, &["generic/5/7"], field(&[&integer(0, 4, 58)[..], &huffman("h2spec")].concat()), agent()),
        row("a literal", hpack, &["generic/5/8"], field(&[&[0][..], &name, &value].concat()), kept()),
        row("a literal, compressed", hpack, &["generic/5/9"], field(&[&[0][..], &huffman("x-kept"), &huffman("h2spec")].concat()), kept()),
        row("a literal never to be indexed, name indexed", hpack, &["generic/5/10"], field(&[&integer(0x10, 4, 58)[..], &value].concat()), agent()),
        row("a literal never to be indexed, name indexed, compressed", hpack, &["generic/5/11"], field(&[&integer(0x10, 4, 58)[..], &huffman("h2spec")].concat()), agent()),
        row("a literal never to be indexed", hpack, &["generic/5/12"], field(&[&[0x10][..], &name, &value].concat()), kept()),
        row("a literal never to be indexed, compressed", hpack, &["generic/5/13"], field(&[&[0x10][..], &huffman("x-kept"), &huffman("h2spec")].concat()), kept()),
        row("a new size of the table", Rfc(7541, "6.3"), &["generic/5/14"], whole(&[&integer(0x20, 5, 128)[..], &good(&[])].concat()), served(&[])),
        row("two new sizes of the table", Rfc(7541, "6.3"), &["generic/5/15"], whole(&[&integer(0x20, 5, 128)[..], &integer(0x20, 5, 1_337), &good(&[])].concat()), served(&[])),
        row("a field from the table that was just put in", Rfc(7541, "2.3.2"), &[], field(&[&[0x40][..], &name, &value, &[0xbe]].concat()), served(&[("x-kept", "h2spec"), ("x-kept", "h2spec")])),
    ]
}

// ---- frames that break a rule

#[rustfmt::skip]
fn broken() -> Vec<Row> {
    let unended = |stream: u32| frame(HEADERS, END_STREAM, stream, &good(&[]));
    let open = || lookup(1);
    let many: Vec<u8> = (0..129).flat_map(|at| lookup(2 * at + 1)).collect();
    let ends: Vec<u8> = (0..128).flat_map(|at| frame(DATA, END_STREAM, 2 * at + 1, b"{}")).collect();
    vec![
        row("a preface of another protocol", Rfc(9113, "3.4"), &["http2/3.5/2"], *b"INVALID CONNECTION PREFACE\r\n\r\n", Closed).without_preface(),
        row("HTTP/1.1 where HTTP/2 was agreed on", Rfc(9113, "3.4"), &[], *b"GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", Closed).without_preface(),
        row("the preface twice", Rfc(9113, "3.4"), &[], PREFACE, Dropped("frame-too-long")),
        row("a large frame of data", Rfc(9113, "4.2"), &["http2/4.2/2"], all(&[&open(), &frame(DATA, END_STREAM, 1, &[0; 16_385])]), Dropped("frame-too-long")),
        row("a large frame of headers", Rfc(9113, "4.2"), &["http2/4.2/3"], frame(HEADERS, END_HEADERS | END_STREAM, 1, &good(&[("x-kept", &"x".repeat(16_385))])), Dropped("frame-too-long")),
        row("a block that ends in the middle", Rfc(9113, "4.3"), &["http2/4.3/1"], frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x40]), Cut(PROTOCOL)),
        row("a priority inside a block", Rfc(9113, "4.3"), &["http2/4.3/2", "http2/6.2/1"], all(&[&unended(1), &priority(1, 0, 255)]), Cut(PROTOCOL)),
        row("another stream's headers inside a block", Rfc(9113, "4.3"), &["http2/4.3/3", "http2/6.2/2"], all(&[&unended(1), &unended(3)]), Cut(PROTOCOL)),
        row("data on a stream that nobody opened", Rfc(9113, "5.1"), &["http2/5.1/1", "http2/6.1/2"], data(b"test"), Cut(PROTOCOL)),
        row("a reset of a stream that nobody opened", Rfc(9113, "5.1"), &["http2/5.1/2", "http2/6.4/2"], reset(1, CANCEL), Cut(PROTOCOL)),
        row("a window for a stream that nobody opened", Rfc(9113, "5.1"), &["http2/5.1/3"], window_update(1, 100), Cut(PROTOCOL)),
        row("a continuation of nothing", Rfc(9113, "5.1"), &["http2/5.1/4"], frame(CONTINUATION, END_HEADERS, 1, &good(&[])), Cut(PROTOCOL)),
        row("data behind the end", Rfc(9113, "5.1"), &["http2/5.1/5"], all(&[&cancelled(), &data(b"test")]), Cut(PROTOCOL)),
        row("headers behind the end", Rfc(9113, "5.1"), &["http2/5.1/6"], all(&[&cancelled(), &cancelled()]), Cut(PROTOCOL)),
        row("a continuation behind the end", Rfc(9113, "5.1"), &["http2/5.1/7"], all(&[&cancelled(), &frame(CONTINUATION, END_HEADERS, 1, &good(&[]))]), Cut(PROTOCOL)),
        row("data behind one's own reset", Rfc(9113, "5.1"), &["http2/5.1/8"], all(&[&open(), &reset(1, CANCEL), &data(b"test")]), Reset(STREAM_CLOSED)),
        row("headers behind one's own reset", Rfc(9113, "5.1"), &["http2/5.1/9"], all(&[&open(), &reset(1, CANCEL), &get(&[])]), Cut(PROTOCOL)),
        row("a continuation behind one's own reset", Rfc(9113, "5.1"), &["http2/5.1/10"], all(&[&open(), &reset(1, CANCEL), &frame(CONTINUATION, END_HEADERS, 1, &good(&[]))]), Cut(PROTOCOL)),
        talk("data on a stream that is over", Rfc(9113, "5.1"), &["http2/5.1/11"], [Send(cancelled()), Until(over), Send(data(b"test"))], Reset(STREAM_CLOSED)),
        talk("headers on a stream that is over", Rfc(9113, "5.1"), &["http2/5.1/12"], [Send(cancelled()), Until(over), Send(get(&[]))], Cut(PROTOCOL)),
        talk("a continuation on a stream that is over", Rfc(9113, "5.1"), &["http2/5.1/13"], [Send(cancelled()), Until(over), Send(frame(CONTINUATION, END_HEADERS, 1, &good(&[])))], Cut(PROTOCOL)),
        row("an even stream", Rfc(9113, "5.1.1"), &["http2/5.1.1/1"], request(2, "GET", "/rest/x"), Cut(PROTOCOL)),
        row("a stream below the last one", Rfc(9113, "5.1.1"), &["http2/5.1.1/2"], all(&[&lookup(5), &request(3, "GET", "/rest/x")]), Cut(PROTOCOL)),
        talk("one stream more than announced", Rfc(9113, "5.1.2"), &["http2/5.1.2/1"], [Send(many), Until(|heard| heard.streams.get(&257).is_some_and(|stream| stream.reset == Some(REFUSED))), Send(ends), Until(|heard| (0..128).all(|at| heard.is_over(2 * at + 1)))], Refused(400, "body-invalid")),
        row("headers that depend on themselves", Rfc(7540, "5.3.1"), &["http2/5.3.1/1"], frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, 1, &[&[0, 0, 0, 1, 255][..], &good(&[])].concat()), Reset(PROTOCOL)),
        row("a priority that depends on itself", Rfc(7540, "5.3.1"), &["http2/5.3.1/2"], all(&[&get(&[]), &priority(1, 1, 255)]), Reset(PROTOCOL)),
        row("a ping of seven bytes", Rfc(9113, "5.4.1"), &["http2/5.4.1/1", "http2/5.4.1/2", "http2/6.7/4"], frame(PING, 0, 0, &[0; 7]), Cut(PROTOCOL)),
        row("a frame of an unknown type inside a block", Rfc(9113, "5.5"), &["http2/5.5/2"], all(&[&unended(1), &frame(0x16, 0, 0, &[0; 8])]), Cut(PROTOCOL)),
        row("data on stream 0", Rfc(9113, "6.1"), &["http2/6.1/1"], frame(DATA, END_STREAM, 0, b"test"), Cut(PROTOCOL)),
        row("data shorter than its padding", Rfc(9113, "6.1"), &["http2/6.1/3"], all(&[&open(), &frame(DATA, END_STREAM | PADDED, 1, b"\x09test")]), Cut(PROTOCOL)),
        row("data that is all padding but for nothing", Rfc(9113, "6.1"), &[], all(&[&post(&[]), &frame(DATA, END_STREAM | PADDED, 1, &[3, 0, 0, 0])]), posted(b"")),
        row("padded data without a length of its padding", Rfc(9113, "6.1"), &[], all(&[&open(), &frame(DATA, END_STREAM | PADDED, 1, b"")]), Cut(PROTOCOL)),
        row("headers on stream 0", Rfc(9113, "6.2"), &["http2/6.2/3"], request(0, "GET", "/rest/x"), Cut(PROTOCOL)),
        row("headers shorter than their padding", Rfc(9113, "6.2"), &["http2/6.2/4"], frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[&[255][..], &good(&[])].concat()), Cut(PROTOCOL)),
        row("headers shorter than their priority", Rfc(9113, "6.2"), &[], frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, 1, &[0; 4]), Cut(PROTOCOL)),
        row("a priority on stream 0", Rfc(9113, "6.3"), &["http2/6.3/1"], priority(0, 0, 255), Cut(PROTOCOL)),
        row("a priority of four bytes", Rfc(9113, "6.3"), &["http2/6.3/2"], all(&[&open(), &frame(PRIORITY, 0, 1, &[0x80, 0, 0, 1])]), Cut(PROTOCOL)),
        row("a reset of stream 0", Rfc(9113, "6.4"), &["http2/6.4/1"], reset(0, CANCEL), Cut(PROTOCOL)),
        row("a reset of three bytes", Rfc(9113, "6.4"), &["http2/6.4/3"], all(&[&open(), &frame(RESET, 0, 1, &[0; 3])]), Cut(PROTOCOL)),
        row("an acknowledgement with settings", Rfc(9113, "6.5"), &["http2/6.5/1"], frame(SETTINGS, ACK, 0, &[0, 3, 0, 0, 0, 100]), Cut(PROTOCOL)),
        row("settings of a stream", Rfc(9113, "6.5"), &["http2/6.5/2"], frame(SETTINGS, 0, 1, &[0, 3, 0, 0, 0, 100]), Cut(PROTOCOL)),
        row("settings of five bytes", Rfc(9113, "6.5"), &["http2/6.5/3"], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0]), Cut(PROTOCOL)),
        row("a setting of push that is no truth value", Rfc(9113, "6.5.2"), &["http2/6.5.2/1"], settings(&[(2, 2)]), Cut(PROTOCOL)),
        row("a setting of a window beyond 31 bits", Rfc(9113, "6.5.2"), &["http2/6.5.2/2", "http2/6.9.2/3"], settings(&[(WINDOW_SIZE, 0x8000_0000)]), Cut(PROTOCOL)),
        row("a setting of frames below the least", Rfc(9113, "6.5.2"), &["http2/6.5.2/3"], settings(&[(5, 16_383)]), Cut(PROTOCOL)),
        row("a setting of frames above the most", Rfc(9113, "6.5.2"), &["http2/6.5.2/4"], settings(&[(5, 1 << 24)]), Cut(PROTOCOL)),
        row("a ping of a stream", Rfc(9113, "6.7"), &["http2/6.7/3"], frame(PING, 0, 1, &[0; 8]), Cut(PROTOCOL)),
        row("a goodbye of a stream", Rfc(9113, "6.8"), &["http2/6.8/1"], frame(GOAWAY, 0, 1, &[0; 8]), Cut(PROTOCOL)),
        row("a goodbye of seven bytes", Rfc(9113, "6.8"), &[], frame(GOAWAY, 0, 0, &[0; 7]), Cut(PROTOCOL)),
        row("a window of nothing", Rfc(9113, "6.9"), &["http2/6.9/1"], window_update(0, 0), Cut(PROTOCOL)),
        row("a window of nothing for a stream", Rfc(9113, "6.9"), &["http2/6.9/2"], all(&[&open(), &window_update(1, 0)]), Cut(PROTOCOL)),
        row("a window of three bytes", Rfc(9113, "6.9"), &["http2/6.9/3"], frame(WINDOW_UPDATE, 0, 0, &[0; 3]), Cut(PROTOCOL)),
        row("windows beyond 31 bits", Rfc(9113, "6.9.1"), &["http2/6.9.1/2"], all(&[&window_update(0, 0x7fff_ffff), &window_update(0, 0x7fff_ffff)]), Cut(FLOW_CONTROL)),
        row("windows beyond 31 bits for a stream", Rfc(9113, "6.9.1"), &["http2/6.9.1/3"], all(&[&open(), &window_update(1, 0x7fff_ffff), &window_update(1, 0x7fff_ffff)]), Reset(FLOW_CONTROL)),
        row("a setting that makes an open window overflow", Rfc(9113, "6.9.2"), &[], all(&[&open(), &window_update(1, 0x7fff_0000), &settings(&[(WINDOW_SIZE, 0x7fff_ffff)])]), Cut(FLOW_CONTROL)),
        row("data inside a block", Rfc(9113, "6.10"), &["http2/6.10/2"], all(&[&unended(1), &frame(CONTINUATION, 0, 1, &block(&[("x-kept", "a")])), &data(b"test")]), Cut(PROTOCOL)),
        row("a continuation on stream 0", Rfc(9113, "6.10"), &["http2/6.10/3"], all(&[&unended(1), &frame(CONTINUATION, END_HEADERS, 0, &block(&[("x-kept", "a")]))]), Cut(PROTOCOL)),
        row("a continuation on another stream", Rfc(9113, "6.10"), &[], all(&[&unended(1), &frame(CONTINUATION, END_HEADERS, 3, &block(&[("x-kept", "a")]))]), Cut(PROTOCOL)),
        row("a continuation of headers that are complete", Rfc(9113, "6.10"), &["http2/6.10/4"], all(&[&open(), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-kept", "a")]))]), Cut(PROTOCOL)),
        row("a continuation of a continuation that is the last", Rfc(9113, "6.10"), &["http2/6.10/5"], all(&[&frame(HEADERS, 0, 1, &block(&[(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/v1/mobile")])), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-kept", "a")])), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-kept", "a")]))]), Cut(PROTOCOL)),
        row("a continuation behind data", Rfc(9113, "6.10"), &["http2/6.10/6"], all(&[&open(), &frame(DATA, 0, 1, b"test"), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-kept", "a")]))]), Cut(PROTOCOL)),
        row("a promise to push", Rfc(9113, "8.4"), &["http2/8.2/1"], all(&[&open(), &frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &good(&[])].concat())]), Cut(PROTOCOL)),
        // HPACK.
        row("an index that is not there", Rfc(7541, "2.3.3"), &["hpack/2.3.3/1"], whole(&[&good(&[])[..], &[0xc6]].concat()), Cut(PROTOCOL)),
        row("a name's index that is not there", Rfc(7541, "2.3.3"), &["hpack/2.3.3/2"], whole(&[&good(&[])[..], &[0x7f, 0x07, 0x00]].concat()), Cut(PROTOCOL)),
        row("a new size of the table behind a field", Rfc(7541, "4.2"), &["hpack/4.2/1"], whole(&[&good(&[])[..], &[0x21]].concat()), Cut(PROTOCOL)),
        row("padding of more than seven bits", Rfc(7541, "5.2"), &["hpack/5.2/1"], whole(&[&good(&[])[..], b"\x00\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff"].concat()), Cut(PROTOCOL)),
        row("padding of zeros", Rfc(7541, "5.2"), &["hpack/5.2/2"], whole(&[&good(&[])[..], b"\x00\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90"].concat()), Cut(PROTOCOL)),
        row("the end of a string inside it", Rfc(7541, "5.2"), &["hpack/5.2/3"], whole(&[&good(&[])[..], b"\x00\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f"].concat()), Cut(PROTOCOL)),
        row("index 0", Rfc(7541, "6.1"), &["hpack/6.1/1"], whole(&[&good(&[])[..], &[0x80]].concat()), Cut(PROTOCOL)),
        row("a table larger than announced", Rfc(7541, "6.3"), &["hpack/6.3/1"], whole(&[&integer(0x20, 5, 4_097)[..], &good(&[])].concat()), Cut(PROTOCOL)),
        row("a number without end", Rfc(7541, "5.1"), &[], whole(&[&good(&[])[..], &[0xff; 20]].concat()), Cut(PROTOCOL)),
        row("a string longer than its block", Rfc(7541, "5.2"), &[], whole(&[&good(&[])[..], &[0x00, 0x06], b"x-kept", &integer(0, 7, 10_000)].concat()), Cut(PROTOCOL)),
    ]
}

// ---- messages that break a rule

#[rustfmt::skip]
fn messages() -> Vec<Row> {
    let (a, b) = (post(&[]), frame(DATA, 0, 1, b"hello"));
    let trailers = |fields: &[(&str, &str)]| all(&[&a, &b, &frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))]);
    let looked = |trailers: &[(&str, &str)]| all(&[&lookup(1), &frame(DATA, 0, 1, b"{}"), &frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(trailers))]);
    let names: Vec<_> = SPOOFED.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    let spoofed: Vec<_> = names.iter().map(|name| (name.as_str(), "spoofed")).collect();
    let (some, others) = spoofed.split_at(40);
    let before = |field: (&str, &str)| whole(&block(&[&[field], &PSEUDO[..]].concat()));
    let long = |count: usize, size: usize| {
        let value = "x".repeat(size);
        let names: Vec<_> = (0..count).map(|at| format!("x-{at}")).collect();
        let fields: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        get(&fields)
    };
    vec![
        row("an unknown pseudo field", Rfc(9113, "8.3"), &["http2/8.1.2.1/1"], get(&[(":test", "ok")]), Cut(PROTOCOL)),
        row("a pseudo field of answers", Rfc(9113, "8.3"), &["http2/8.1.2.1/2"], whole(&block(&[&[(":status", "200")], &PSEUDO[..]].concat())), Reset(PROTOCOL)),
        // h2 drops it, and nothing of a trailer section is read or passed on.
        row("a pseudo field among the trailers", Rfc(9113, "8.1"), &["http2/8.1.2.1/3"], looked(&[(":method", "POST")]), Refused(400, "body-invalid")),
        row("a pseudo field behind a field", Rfc(9113, "8.3"), &["http2/8.1.2.1/4"], before(("x-kept", "a")), Reset(PROTOCOL)),
        row("connection", Rfc(9113, "8.2.2"), &["http2/8.1.2.2/1"], get(&[("connection", "keep-alive")]), Reset(PROTOCOL)),
        row("te: trailers and more", Rfc(9113, "8.2.2"), &["http2/8.1.2.2/2"], get(&[("te", "trailers, deflate;q=0.5")]), Reset(PROTOCOL)),
        row("keep-alive", Rfc(9113, "8.2.2"), &[], get(&[("keep-alive", "timeout=5")]), Reset(PROTOCOL)),
        row("proxy-connection", Rfc(9113, "8.2.2"), &[], get(&[("proxy-connection", "keep-alive")]), Reset(PROTOCOL)),
        row("upgrade", Rfc(9113, "8.2.2"), &[], get(&[("upgrade", "h2c")]), Reset(PROTOCOL)),
        row("an empty path", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/1"], but(&[(":path", Some(""))]), Reset(PROTOCOL)),
        row("no method", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/2"], but(&[(":method", None)]), Reset(PROTOCOL)),
        row("no scheme", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/3"], but(&[(":scheme", None)]), Reset(PROTOCOL)),
        row("no path", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/4"], but(&[(":path", None)]), Reset(PROTOCOL)),
        row("two methods", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/5"], before((":method", "POST")), Reset(PROTOCOL)),
        row("two schemes", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/6"], before((":scheme", "https")), Reset(PROTOCOL)),
        row("two paths", Rfc(9113, "8.3.1"), &["http2/8.1.2.3/7"], before((":path", "/rest/y")), Reset(PROTOCOL)),
        row("two authorities", Rfc(9113, "8.3.1"), &[], before((":authority", "elsewhere.test")), Reset(PROTOCOL)),
        row("a length that is not the data's", Rfc(9113, "8.1.1"), &["http2/8.1.2.6/1"], all(&[&head(1, "/v1/mobile", &[("content-length", "1"), ("content-type", "application/json")]), &data(b"{}")]), Reset(PROTOCOL)),
        row("a length that is not the sum of the data's", Rfc(9113, "8.1.1"), &["http2/8.1.2.6/2"], all(&[&head(1, "/v1/mobile", &[("content-length", "1"), ("content-type", "application/json")]), &frame(DATA, 0, 1, b"{"), &data(b"}")]), Reset(PROTOCOL)),
        row("a name in capitals", Rfc(9113, "8.2.1"), &["http2/8.1.2/1"], get(&[("X-KEPT", "a")]), Cut(PROTOCOL)),
        row("second headers that do not end the stream", Rfc(9113, "8.1"), &["http2/8.1/1"], all(&[&lookup(1), &frame(HEADERS, END_HEADERS, 1, &block(&[("x-kept", "a")]))]), Reset(PROTOCOL)),
        // H2.CL, H2.TE and what is like them.
        row("H2.CL: a length of nothing", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("content-length", "0"), ("content-type", "application/json")]), &data(b"GET /rest/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n")]), Reset(PROTOCOL)),
        row("H2.CL: a length of more", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("content-length", "50"), ("content-type", "application/json")]), &data(b"{}")]), Reset(PROTOCOL)),
        row("H2.CL: a length without data", SEQUEL, &[], get(&[("content-length", "5")]), Reset(PROTOCOL)),
        row("H2.CL: two lengths", Rfc(9110, "8.6"), &[], all(&[&head(1, "/v1/mobile", &[("content-length", "2"), ("content-length", "5"), ("content-type", "application/json")]), &data(b"{}")]), Reset(PROTOCOL)),
        row("H2.CL: a list of lengths", Rfc(9110, "8.6"), &[], all(&[&head(1, "/v1/mobile", &[("content-length", "2, 2"), ("content-type", "application/json")]), &data(b"{}")]), Reset(PROTOCOL)),
        row("H2.CL: a length with a sign", Rfc(9110, "8.6"), &[], all(&[&head(1, "/v1/mobile", &[("content-length", "+2"), ("content-type", "application/json")]), &data(b"{}")]), Reset(PROTOCOL)),
        row("H2.CL: a length with a line end", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("content-length", "2\r\n\r\nGET /rest/smuggled"), ("content-type", "application/json")]), &data(b"{}")]), Cut(PROTOCOL)),
        row("H2.TE: chunked", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("transfer-encoding", "chunked")])]), Reset(PROTOCOL)),
        row("H2.TE: with a space behind its name", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("transfer-encoding ", "chunked")])]), Cut(PROTOCOL)),
        row("H2.TE: with an underscore", SEQUEL, &[], all(&[&head(1, "/v1/mobile", &[("transfer_encoding", "chunked")])]), Left(400, "bad-request")),
        row("H2.TE: inside a name", SEQUEL, &[], get(&[("x-kept: a\r\ntransfer-encoding", "chunked")]), Cut(PROTOCOL)),
        row("H2.TE: inside a value", SEQUEL, &[], get(&[("x-kept", "a\r\ntransfer-encoding: chunked")]), Cut(PROTOCOL)),
        row("H2.TE: among the trailers", SEQUEL, &[], looked(&[("transfer-encoding", "chunked")]), Reset(PROTOCOL)),
        row("H2.X: a request inside a value", SEQUEL, &[], get(&[("x-kept", "a\r\n\r\nGET /rest/smuggled HTTP/1.1")]), Cut(PROTOCOL)),
        row("a bare line feed in a value", SEQUEL, &[], get(&[("x-kept", "a\nx-partner: beta")]), Cut(PROTOCOL)),
        row("a bare carriage return in a value", SEQUEL, &[], get(&[("x-kept", "a\rx-partner: beta")]), Cut(PROTOCOL)),
        row("a NUL in a value", Rfc(9113, "8.2.1"), &[], get(&[("x-kept", "a\0b")]), Cut(PROTOCOL)),
        row("a delete in a value", Rfc(9110, "5.5"), &[], get(&[("x-kept", "a\x7fb")]), Cut(PROTOCOL)),
        row("a space before a value", Rfc(9113, "8.2.1"), &[], get(&[("x-kept", " a")]), Left(400, "bad-request")),
        row("a tab behind a value", Rfc(9113, "8.2.1"), &[], get(&[("x-kept", "a\t")]), Left(400, "bad-request")),
        row("a colon in a name", SEQUEL, &[], get(&[("x-kept: a", "b")]), Cut(PROTOCOL)),
        row("a name without letters", Rfc(9113, "8.2.1"), &[], get(&[("", "b")]), Cut(PROTOCOL)),
        row("a space in a name", Rfc(9113, "8.2.1"), &[], get(&[("x kept", "b")]), Cut(PROTOCOL)),
        row("a name beyond ASCII", Rfc(9113, "8.2.1"), &[], get(&[("x-képt", "b")]), Cut(PROTOCOL)),
        // Pseudo fields that would be more than they are.
        row("a method with a request behind it", Cve("2021-33193"), &[], but(&[(":method", Some("GET /rest/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\nGET"))]), Cut(PROTOCOL)),
        row("a method with a space", Cve("2021-33193"), &[], but(&[(":method", Some("GET /rest/y HTTP/1.1"))]), Cut(PROTOCOL)),
        row("a method in small letters", Rfc(9110, "9.1"), &[], but(&[(":method", Some("get"))]), Refused(403, "no-grant")),
        row("TRACE", Rfc(9110, "9.3.8"), &[], but(&[(":method", Some("TRACE"))]), Refused(405, "method-refused")),
        row("CONNECT", Rfc(9113, "8.5"), &[], but(&[(":method", Some("CONNECT")), (":scheme", None), (":path", None)]), Refused(405, "method-refused")),
        row("CONNECT with a path", Rfc(9113, "8.5"), &[], but(&[(":method", Some("CONNECT"))]), Reset(PROTOCOL)),
        row("extended CONNECT", Rfc(8441, "4"), &[], whole(&block(&[&[(":protocol", "websocket"), (":method", "CONNECT")], &PSEUDO[1..]].concat())), Reset(PROTOCOL)),
        row("a protocol without CONNECT", Rfc(8441, "4"), &[], whole(&block(&[&[(":protocol", "websocket")], &PSEUDO[..]].concat())), Reset(PROTOCOL)),
        row("a path with a request behind it", SEQUEL, &[], but(&[(":path", Some("/rest/x HTTP/1.1\r\nx-partner: beta\r\n\r\nGET /rest/y"))]), Reset(PROTOCOL)),
        row("a path with a space", SEQUEL, &[], but(&[(":path", Some("/rest/x HTTP/1.1"))]), Reset(PROTOCOL)),
        row("a path without a slash", Rfc(9113, "8.3.1"), &[], but(&[(":path", Some("rest/x"))]), Reset(PROTOCOL)),
        row("a path that begins with @", SEQUEL, &[], but(&[(":path", Some("@elsewhere.test/"))]), Reset(PROTOCOL)),
        row("an absolute path", SEQUEL, &[], but(&[(":path", Some("https://elsewhere.test/rest/x"))]), Reset(PROTOCOL)),
        row("an asterisk for a path", Rfc(9113, "8.3.1"), &[], but(&[(":path", Some("*"))]), Refused(400, "bad-request")),
        row("dots in a path", Cwe(22), &[], but(&[(":path", Some("/rest/../v1/query"))]), Refused(400, "bad-request")),
        // The `http` crate cuts it off before anybody sees it; what is decided on is what the backend gets.
        row("a fragment in a path", Cve("2023-45539"), &[], but(&[(":path", Some("/rest/x#y"))]), served(&[])),
        row("an empty fragment in a path", Cve("2023-45539"), &[], but(&[(":path", Some("/rest/x#"))]), served(&[])),
        row("a path beyond ASCII", Rfc(3986, "2.1"), &[], but(&[(":path", Some("/rest/é"))]), Refused(400, "bad-request")),
        row("a backslash in a path", Cwe(41), &[], but(&[(":path", Some("/rest\\x"))]), Refused(400, "bad-request")),
        row("a scheme of plain text", SEQUEL, &[], but(&[(":scheme", Some("http"))]), Left(400, "bad-request")),
        row("a scheme with a host in it", SEQUEL, &[], but(&[(":scheme", Some("https://elsewhere.test/?"))]), Reset(PROTOCOL)),
        row("a scheme with a line end", SEQUEL, &[], but(&[(":scheme", Some("https\r\nx-partner: beta"))]), Reset(PROTOCOL)),
        row("another scheme", Rfc(9113, "8.3.1"), &[], but(&[(":scheme", Some("ftp"))]), Left(400, "bad-request")),
        row("another authority", Cwe(644), &[], but(&[(":authority", Some("elsewhere.test"))]), Refused(421, "host-mismatch")),
        row("an authority with userinfo", Rfc(9113, "8.3.1"), &[], but(&[(":authority", Some("localhost@elsewhere.test"))]), Left(400, "bad-request")),
        row("an authority with a path", Cwe(644), &[], but(&[(":authority", Some("localhost/elsewhere.test"))]), Reset(PROTOCOL)),
        row("an empty authority", Rfc(9113, "8.3.1"), &[], but(&[(":authority", Some(""))]), Reset(PROTOCOL)),
        row("neither authority nor host", Rfc(9113, "8.3.1"), &[], but(&[(":authority", None)]), Refused(421, "host-mismatch")),
        row("a host in the place of the authority", Rfc(9113, "8.3.1"), &[], whole(&block(&[PSEUDO[0], PSEUDO[1], PSEUDO[3], ("host", "localhost")])), served(&[])),
        row("a host that is the authority's", Rfc(9113, "8.3.1"), &[], get(&[("host", "localhost")]), served(&[])),
        row("a host that is not the authority's", Rfc(9113, "8.3.1"), &[], get(&[("host", "elsewhere.test")]), Left(400, "bad-request")),
        row("two hosts", Rfc(9113, "8.3.1"), &[], get(&[("host", "localhost"), ("host", "localhost")]), Left(400, "bad-request")),
        // Who is calling.
        row("an identity", Cwe(290), &[], get(&[("x-partner", "beta"), ("x_partner", "beta"), ("client-cert", ":AAAA:"), ("x-forwarded-for", "6.6.6.6"), ("x-client-dn", "CN=beta")]), served(&[])),
        row("every identity, half of them", Cwe(290), &[], get(some), served(&[])),
        row("every identity, the other half", Cwe(290), &[], get(others), served(&[])),
        row("every identity among the trailers", Rfc(9113, "8.1"), &[], trailers(some), posted(b"hello")),
        row("a nomination of an identity", Cve("2024-45410"), &[], get(&[("connection", "x-partner")]), Reset(PROTOCOL)),
        row("identities among the trailers", Rfc(9113, "8.1"), &[], trailers(&[("x-partner", "beta"), ("x_partner", "beta"), ("x-forwarded-for", "6.6.6.6")]), posted(b"hello")),
        row("a length among the trailers", Rfc(9110, "6.5.1"), &[], trailers(&[("content-length", "5")]), posted(b"hello")),
        row("an expectation", Rfc(9110, "10.1.1"), &[], get(&[("expect", "y 100-continue")]), Refused(417, "expectation-refused")),
        // Too much.
        row("64 fields", Cwe(770), &[], long(64, 1), served(&[])),
        row("65 fields", Cwe(770), &[], long(65, 1), Left(431, "head-too-large")),
        row("a list of 17 KiB", Cwe(770), &[], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[("x-a", &"x".repeat(9_000))])), &frame(CONTINUATION, END_HEADERS, 1, &block(&[("x-b", &"x".repeat(8_000))]))]), Left(431, "head-too-large")),
        row("a bomb: a large field, referred to again and again", Cve("2016-6581"), &[], whole(&[&good(&[])[..], &[0x40], &text("x-a"), &text(&"x".repeat(4_000)), &[0xbe; 8_000]].concat()), Cut(CALM)),
        row("a bomb of cookies", Cve("2016-6581"), &[], whole(&[&good(&[])[..], &integer(0x40, 6, 32), &text(&"x".repeat(4_000)), &[0xbe; 8_000]].concat()), Cut(CALM)),
        row("a bomb of empty fields", Cwe(409), &[], whole(&[&good(&[])[..], &[0x40], &text("a"), &text(""), &[0xbe; 15_000]].concat()), Cut(CALM)),
        row("a bomb that is compressed", Cwe(409), &[], whole(&[&good(&[])[..], &[0x00], &text("x-a"), &huffman(&"0".repeat(20_000))].concat()), Left(431, "head-too-large")),
        row("a block of 33 KiB", Cve("2024-27316"), &[], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[("x-a", &"x".repeat(16_000))])), &frame(CONTINUATION, 0, 1, &block(&[("x-b", &"x".repeat(16_000))])), &frame(CONTINUATION, 0, 1, &block(&[("x-c", &"x".repeat(1_000))]))]), Dropped("header-block-too-large")),
        row("nine continuations", Cve("2024-27316"), &[], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[])), &frame(CONTINUATION, 0, 1, &block(&[("x-a", "b")])).repeat(9)]), Dropped("too-many-continuations")),
        row("empty continuations", Cve("2019-9518"), &[], all(&[&frame(HEADERS, END_STREAM, 1, &good(&[])), &frame(CONTINUATION, 0, 1, &[]).repeat(9)]), Dropped("too-many-continuations")),
        row("empty data", Cve("2019-9518"), &[], all(&[&lookup(1), &frame(DATA, 0, 1, &[]).repeat(150)]), Dropped("empty-data-flood")),
        row("settings", Cve("2019-9515"), &[], settings(&[]).repeat(20), Dropped("settings-flood")),
        row("settings that change the table", Cve("2019-9515"), &[], settings(&[(TABLE_SIZE, 0), (TABLE_SIZE, 4_096)]).repeat(20), Dropped("settings-flood")),
        row("pings", Cve("2019-9512"), &[], frame(PING, 0, 0, &[0; 8]).repeat(40), Dropped("ping-flood")),
        row("answers to pings that nobody sent", Cwe(770), &[], frame(PING, ACK, 0, &[0; 8]).repeat(200), Dropped("ack-flood")),
        row("priorities", Cve("2019-9513"), &[], priority(1, 0, 255).repeat(200), Dropped("priority-flood")),
        row("frames of an unknown type", Cwe(770), &[], frame(0x42, 0, 0, &[0; 8]).repeat(200), Dropped("other-frame-flood")),
        row("windows", Cwe(770), &[], window_update(0, 1).repeat(3_000), Dropped("window-update-flood")),
        row("streams that are opened and reset", Cve("2023-44487"), &[], (0..200).flat_map(|at| all(&[&lookup(2 * at + 1), &reset(2 * at + 1, CANCEL)])).collect::<Vec<_>>(), Dropped("reset-flood")),
    ]
}

impl Row {
    fn without_preface(mut self) -> Row {
        self.steps.insert(0, Send(Vec::new()));
        self
    }

    /// Nobody is told of an error.
    pub fn goes_on(&self) -> bool {
        matches!(self.outcome, Served(_) | Refused(..) | Ignored)
    }

    /// The connection ends with the most general error, or with none.
    pub fn ends_otherwise(&self) -> bool {
        matches!(self.outcome, Cut(PROTOCOL) | Dropped(_) | Closed)
    }

    fn run(&self, world: &World, partner: &mut WellBehaved) {
        world.backend.forget();
        let dropped = |reason: &str| world.metric(&format!("dwarpal_connections_cut_total{{reason=\"{reason}\"}}"));
        let before = if let Dropped(reason) = self.outcome { dropped(reason) } else { 0.0 };
        let mut line = match &self.steps[0] {
            Send(nothing) if nothing.is_empty() => line::connect(world.address, &pki().alpha, ALPHA, b"h2"),
            _ => frames::connect(world, &pki().alpha, ALPHA),
        };
        let mut heard = Heard::default();
        for step in &self.steps {
            match step {
                // The gateway may close before all was sent.
                Send(bytes) => drop(line.try_send(bytes)),
                Until(holds) => heard.until(&mut line, holds),
            }
        }
        const NEXT: u32 = 1_001;
        let goes_on = self.goes_on() || matches!(self.outcome, Reset(_));
        if goes_on {
            line.send(request(NEXT, "GET", "/rest/next"));
            let answers = !matches!(self.outcome, Ignored);
            heard.until(&mut line, |heard| heard.is_over(NEXT) && (!answers || heard.is_over(1)));
            assert!(!heard.closed && heard.goaway.is_none(), "the connection goes on: {heard:?}");
            assert_eq!((heard.streams[&NEXT].status, &*heard.streams[&NEXT].body), (200, &b"0"[..]));
        } else {
            if let Last(_) = self.outcome {
                heard.until(&mut line, |heard| heard.is_over(1));
            }
            heard.until(&mut line, |_| false);
        }
        let said = heard.streams.get(&1);
        let code = |body: &[u8]| {
            let document: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
            document["type"].as_str().unwrap_or_default().replace("urn:dwarpal:reason:", "")
        };
        match (&self.outcome, said) {
            (Served(_) | Last(_), Some(said)) => {
                assert_eq!((said.status, said.ended, said.reset), (200, true, None), "{said:?}")
            }
            (Refused(status, public) | Left(status, public), Some(said)) => {
                assert_eq!((said.status, &*code(&said.body)), (*status, *public), "{heard:?}");
            }
            (Reset(error), Some(said)) => assert_eq!(said.reset, Some(*error), "{heard:?}"),
            (Ignored, None) => {}
            (Cut(error), _) => assert_eq!(heard.goaway, Some(*error), "{heard:?}"),
            (Closed, None) => assert_eq!(heard.goaway, None, "{heard:?}"),
            (Dropped(reason), _) => {
                assert_eq!(heard.goaway, None, "{heard:?}");
                eventually(&format!("cut for {reason}"), || dropped(reason) == before + 1.0);
            }
            _ => panic!("{heard:?}"),
        }
        if let Left(..) | Last(_) = self.outcome {
            assert_eq!(heard.goaway, Some(0), "the connection ends in order: {heard:?}");
        }
        drop(line);
        partner.is_served();
        let next = goes_on.then(|| Expected::new("GET /rest/next", &[], b""));
        let own = if let Served(own) | Last(own) = &self.outcome { Some(own.clone()) } else { None };
        let mut seen = seen_by_backend(world);
        seen.retain(|request| *request != Expected::new("GET /rest/reset", &[], b""));
        // A request that was asked for later may overtake one.
        seen.sort_by(|a, b| a.line.cmp(&b.line));
        let mut expected: Vec<_> = own.into_iter().chain(next).collect();
        expected.sort_by(|a, b| a.line.cmp(&b.line));
        assert_eq!(seen, expected, "what reached the backend");
    }
}

pub fn rows() -> Vec<Row> {
    let mut rows = lawful();
    rows.extend(broken());
    rows.extend(messages());
    rows
}

fn table(rows: &[Row]) {
    let world = World::new();
    let mut partner = WellBehaved::new(&world);
    drive(rows, |row| format!("{} ({})", row.name, row.class), |row| row.run(&world, &mut partner));
    let left = || world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}");
    eventually("nothing is left in flight", || left() == 0.0);
}

#[test]
fn every_row_has_a_name_and_a_class() {
    assert_a_table(rows().iter().map(|row| (row.name, row.class)), 190);
}

#[test]
fn what_the_standard_allows_is_served() {
    table(&lawful());
}

#[test]
fn frames_that_break_a_rule_end_their_stream_or_the_connection() {
    table(&broken());
}

#[test]
fn messages_that_break_a_rule_never_reach_the_backend() {
    table(&messages());
}
