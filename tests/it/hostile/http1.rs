//! What becomes of hostile bytes over HTTP/1.1? Each row is sent on a connection of its own, with a second request right
//! behind it: if the row's end is read in another way than the gateway reads it, that request tells.

use super::Class::{self, Cve, Cwe, Research, Rfc};
use super::{Expected, WellBehaved, assert_a_table, drive, seen_by_backend};
use crate::world::{World, eventually};

const DESYNC: Class = Research("https://portswigger.net/research/http-desync-attacks-request-smuggling-reborn");
const BROWSER_DESYNC: Class = Research("https://portswigger.net/research/browser-powered-desync-attacks");
const MUST_DIE: Class = Research("https://portswigger.net/research/http1-must-die");
const HIDDEN: Class = Research("https://portswigger.net/research/http-desync-attacks-what-happened-next");
const CHUNKS: Class = Research("https://w4ke.info/2025/06/18/funky-chunks.html");
const TE_ZERO: Class = Research("https://portswigger.net/research/top-10-web-hacking-techniques-of-2024");
const HOP_BY_HOP: Class = Research("https://nathandavison.com/blog/abusing-http-hop-by-hop-request-headers");
const LENS: Class =
    Research("https://portswigger.net/research/cracking-the-lens-targeting-https-hidden-attack-surface");
const PARSERS: Class = Research(
    "https://i.blackhat.com/us-18/Wed-August-8/us-18-Orange-Tsai-Breaking-Parser-Logic-Take-Your-Path-Normalization-Off-And-Pop-0days-Out-2.pdf",
);
const POISONING: Class = Research("https://portswigger.net/research/practical-web-cache-poisoning");
const JSON: Class = Research("https://bishopfox.com/blog/json-interoperability-vulnerabilities");
const H2C: Class = Research("https://bishopfox.com/blog/h2c-smuggling-request");
const UNICODE: Class =
    Research("https://portswigger.net/research/bypassing-character-blocklists-with-unicode-overflows");

struct Row {
    name: &'static str,
    class: Class,
    sent: Vec<u8>,
    outcome: Outcome,
}

enum Outcome {
    /// A refusal with this status and public code; the connection ends, and what follows is not answered.
    Refused(u16, &'static str),
    /// A refusal of a message that has one reading: what follows is answered.
    Kept(u16, &'static str),
    /// The backend gets exactly this, and what follows is answered.
    Served(Expected),
    /// The backend gets exactly this, and the connection ends.
    Last(Expected),
    /// The backend gets exactly this; what is behind it is refused, and the connection ends.
    Spoilt(Expected),
    /// The caller leaves before the message is whole, and the backend hears nothing.
    Abandoned,
}

/// Follows every row. It asks for the end of the connection, so that whatever came between is seen.
const NEXT: &str = "GET /rest/next HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
/// What an attacker would like to be a request of its own.
const SMUGGLED: &str = "GET /rest/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn row(name: &'static str, class: Class, sent: impl AsRef<[u8]>, outcome: Outcome) -> Row {
    Row { name, class, sent: sent.as_ref().into(), outcome }
}

/// Malformed, and the end of the connection.
fn bad(name: &'static str, class: Class, sent: impl AsRef<[u8]>) -> Row {
    row(name, class, sent, Outcome::Refused(400, "bad-request"))
}

fn kept(name: &'static str, class: Class, sent: impl AsRef<[u8]>, status: u16, code: &'static str) -> Row {
    row(name, class, sent, Outcome::Kept(status, code))
}

/// Reaches the backend as this line, these fields and this body.
fn served(
    name: &'static str,
    class: Class,
    sent: impl AsRef<[u8]>,
    line: &str,
    fields: &[(&str, &str)],
    body: &str,
) -> Row {
    row(name, class, sent, Outcome::Served(Expected::new(line, fields, body.as_bytes())))
}

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n")
}

/// A POST whose framing is up to the row.
fn post(fields: &str, body: &str) -> String {
    format!("POST /rest/x HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n{body}")
}

/// A POST of five bytes, framed as it should be.
fn hello(fields: &str) -> String {
    post(&format!("content-length: 5\r\n{fields}"), "hello")
}

/// A chunked POST, its chunks as they are given.
fn chunked(chunks: &str) -> String {
    post("transfer-encoding: chunked\r\n", chunks)
}

/// Bytes that are no text put in the place of `@`.
fn with(text: &str, bytes: &[u8]) -> Vec<u8> {
    let (before, after) = text.split_once('@').expect("a place");
    [before.as_bytes(), bytes, after.as_bytes()].concat()
}

fn lookup(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

const CARE: &str = r#"{"mobile":"6412345678","purpose":"care"}"#;

/// What the backend gets of every lookup of that person, however it was written.
fn looked_up() -> Outcome {
    let length = CARE.len().to_string();
    let fields = [
        ("accept", "application/json"),
        ("content-length", length.as_str()),
        ("content-type", "application/json"),
        ("x-purpose", "care"),
    ];
    Outcome::Served(Expected::new("POST /v1/mobile", &fields, CARE.as_bytes()))
}

const FIVE: &[(&str, &str)] = &[("content-length", "5")];
const CHUNKED: &[(&str, &str)] = &[("transfer-encoding", "chunked")];

// ---- where does a message end?

#[rustfmt::skip]
fn framing() -> Vec<Row> {
    let hidden = |fields: &str| post(fields, &format!("0\r\n\r\n{SMUGGLED}"));
    let length = SMUGGLED.len();
    let nested = post(&format!("content-length: {length}\r\n"), SMUGGLED);
    vec![
        bad("CL.TE", DESYNC, hidden("content-length: 6\r\ntransfer-encoding: chunked\r\n")),
        bad("TE.CL", DESYNC, hidden("transfer-encoding: chunked\r\ncontent-length: 4\r\n")),
        bad("CL.TE of equal ends", Rfc(9112, "6.3"), post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")),
        bad("TE.TE: a list that ends in identity", DESYNC, hidden("transfer-encoding: chunked, identity\r\n")),
        bad("TE.TE: chunked twice in a list", Rfc(9112, "7.1"), hidden("transfer-encoding: chunked, chunked\r\n")),
        bad("TE.TE: two fields", Cve("2020-8287"), hidden("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n")),
        bad("TE.TE: the second in capitals", DESYNC, hidden("transfer-encoding: chunked\r\nTRANSFER-ENCODING: x\r\n")),
        bad("TE.TE: an unknown coding", DESYNC, hidden("transfer-encoding: xchunked\r\n")),
        bad("TE.TE: a letter too few", DESYNC, hidden("transfer-encoding: chunke\r\n")),
        bad("TE.TE: quoted", DESYNC, hidden("transfer-encoding: \"chunked\"\r\n")),
        bad("TE.TE: a parameter", Rfc(9112, "7"), hidden("transfer-encoding: chunked;q=1\r\n")),
        bad("TE.TE: a comma behind", Cve("2022-32215"), hidden("transfer-encoding: chunked,\r\n")),
        bad("TE.TE: a comma before", DESYNC, hidden("transfer-encoding: ,chunked\r\n")),
        bad("TE.TE: gzip before it", Cve("2024-1135"), hidden("transfer-encoding: gzip, chunked\r\n")),
        bad("TE.TE: behind gzip", Rfc(9112, "6.1"), hidden("transfer-encoding: chunked, gzip\r\n")),
        bad("TE.TE: empty", DESYNC, hidden("transfer-encoding:\r\ncontent-length: 5\r\n")),
        bad("TE.TE: identity beside a length", Cve("2024-1135"), hidden("transfer-encoding: identity\r\ncontent-length: 5\r\n")),
        bad("TE.TE: a vertical tab before the value", Cve("2019-18277"), hidden("transfer-encoding: \x0bchunked\r\n")),
        bad("TE.TE: a form feed behind the value", DESYNC, hidden("transfer-encoding: chunked\x0c\r\n")),
        bad("TE.TE: a NUL behind the value", DESYNC, hidden("transfer-encoding: chunked\0\r\n")),
        bad("TE.TE: a space before the colon", Cve("2019-16276"), hidden("transfer-encoding : chunked\r\n")),
        bad("TE.TE: a tab before the colon", Rfc(9112, "5.1"), hidden("transfer-encoding\t: chunked\r\n")),
        bad("TE.TE: a space before the name", DESYNC, hidden(" transfer-encoding: chunked\r\n")),
        bad("TE.TE: folded onto the next line", Rfc(9112, "5.2"), hidden("transfer-encoding:\r\n chunked\r\n")),
        bad("TE.TE: behind a fold", DESYNC, hidden("x-a: b\r\n\ttransfer-encoding: chunked\r\n")),
        bad("TE.TE: behind a bare line feed", DESYNC, hidden("x-a: b\ntransfer-encoding: chunked\r\n")),
        bad("TE.TE: behind a bare carriage return", DESYNC, hidden("x-a: b\rtransfer-encoding: chunked\r\n")),
        bad("TE.TE: an underscore", Cwe(444), hidden("transfer_encoding: chunked\r\n")),
        bad("TE.TE: no colon", DESYNC, hidden("transfer-encoding chunked\r\n")),
        bad("TE.TE: a byte beyond ASCII in the name", DESYNC, with(&hidden("transfer-encoding@: chunked\r\n"), b"\xff")),
        bad("TE.TE: a byte beyond ASCII in the value", DESYNC, with(&hidden("transfer-encoding: @chunked\r\n"), b"\xa0")),
        served("TE.TE: a tab before the value is white space", Rfc(9112, "5.1"), post("transfer-encoding:\tchunked \t\r\n", "5\r\nhello\r\n0\r\n\r\n"), "POST /rest/x", CHUNKED, "hello"),
        served("TE.TE: case is no matter", Rfc(9112, "7"), post("TrAnSfEr-EnCoDiNg: ChUnKeD\r\n", "5\r\nhello\r\n0\r\n\r\n"), "POST /rest/x", CHUNKED, "hello"),
        bad("TE.0 in an OPTIONS", TE_ZERO, format!("OPTIONS /rest/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n")),
        kept("TE.0 with a clean coding is read to its end", TE_ZERO, format!("OPTIONS /rest/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{SMUGGLED}\r\n0\r\n\r\n"), 403, "no-grant"),
        bad("TE in HTTP/1.0", Rfc(9112, "6.1"), format!("POST /rest/x HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}")),
        served("CL.0: the body is a request", BROWSER_DESYNC, &nested, "POST /rest/x", &[("content-length", &length.to_string())], SMUGGLED),
        served("0.CL: a GET with a body", MUST_DIE, format!("GET /rest/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}"), "GET /rest/x", &[("content-length", &length.to_string())], SMUGGLED),
        kept("0.CL: a GET of a lookup with a body", MUST_DIE, format!("GET /v1/query?mobile=6412345678 HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{SMUGGLED}"), 400, "body-invalid"),
        kept("CL.0 on a path that is nobody's", BROWSER_DESYNC, nested.replace("/rest/x", "/nowhere"), 403, "no-grant"),
        bad("0.CL: the length in a field of another name", MUST_DIE, post("content_length: 5\r\n", SMUGGLED)),
        bad("CL.CL: two lengths", Rfc(9112, "6.3"), post("content-length: 5\r\ncontent-length: 6\r\n", "hello")),
        bad("CL.CL: the same length twice", Rfc(9110, "8.6"), post("content-length: 5\r\ncontent-length: 5\r\n", "hello")),
        bad("CL.CL: a list", Cve("2020-15810"), post("content-length: 5, 6\r\n", "hello")),
        bad("CL.CL: a list of equals", Rfc(9110, "8.6"), post("content-length: 5,5\r\n", "hello")),
        bad("a length with a sign", Rfc(9110, "8.6"), post("content-length: +5\r\n", "hello")),
        bad("a negative length", Cwe(444), post("content-length: -5\r\n", "hello")),
        bad("a hexadecimal length", Rfc(9110, "8.6"), post("content-length: 0x5\r\n", "hello")),
        bad("an empty length", Cve("2023-40225"), post("content-length:\r\n", "hello")),
        bad("a length with a space inside", Cve("2024-27982"), post("content-length: 1 5\r\n", "hello")),
        bad("a length with a space before the colon", Cve("2024-27982"), post("content-length : 5\r\n", "hello")),
        bad("a length with a fraction", Rfc(9110, "8.6"), post("content-length: 5.0\r\n", "hello")),
        bad("a length with an exponent", Rfc(9110, "8.6"), post("content-length: 5e0\r\n", "hello")),
        bad("a length with a separator", Rfc(9110, "8.6"), post("content-length: 1_0\r\n", "hello")),
        bad("a length beyond 64 bits", Cve("2021-40346"), post("content-length: 18446744073709551621\r\n", "hello")),
        bad("a length in digits of another script", Cwe(444), post("content-length: ५\r\n", "hello")),
        bad("a length behind a NUL", Cwe(444), post("content-length: \x005\r\n", "hello")),
        served("leading zeros are the same number", Rfc(9110, "8.6"), post("content-length: 005\r\n", "hello"), "POST /rest/x", FIVE, "hello"),
        row("a name so long that its length overflows", Cve("2021-40346"), post(&format!("content-length{}: 5\r\n", "a".repeat(270)), "hello"), Outcome::Refused(431, "head-too-large")),
        row("a lookup that ends before its length", Rfc(9112, "8"), "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{\"mobile\":\"6412345678\",\"purpose\":\"care\"}", Outcome::Abandoned),
        row("a lookup whose last chunk never comes", Rfc(9112, "8"), format!("POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n28\r\n{CARE}\r\n"), Outcome::Abandoned),
        row("a head that ends in the middle", Rfc(9112, "8"), "POST /rest/x HTTP/1.1\r\nhost: localhost\r\ncontent-le", Outcome::Abandoned),
        row("more than its length", Rfc(9112, "6.3"), hello("") + "x", Outcome::Spoilt(Expected::new("POST /rest/x", FIVE, b"hello"))),
    ]
}

#[rustfmt::skip]
fn chunks() -> Vec<Row> {
    // The route takes the body as it comes; what is behind the flaw must not be taken for a request.
    let broken = |name, class, chunks: &str| bad(name, class, chunked_lookup(chunks));
    let size = CARE.len();
    vec![
        broken("an extension", CHUNKS, &format!("{size:x};a=b\r\n{CARE}\r\n0\r\n\r\n")),
        broken("an extension with a line feed in it", Cve("2025-55315"), &format!("{size:x};\n{CARE}\r\n0\r\n\r\n")),
        broken("an extension in quotes with a line end", CHUNKS, &format!("{size:x};a=\"\r\n\"\r\n{CARE}\r\n0\r\n\r\n")),
        broken("an extension of the last chunk", CHUNKS, &format!("{size:x}\r\n{CARE}\r\n0;a\r\n\r\n")),
        broken("an extension without a name", CHUNKS, &format!("{size:x};\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a long extension", Cve("2023-39326"), &format!("{size:x};{}\r\n{CARE}\r\n0\r\n\r\n", "a".repeat(10_000))),
        broken("a size that ends in a bare line feed", Cve("2025-22871"), &format!("{size:x}\n{CARE}\r\n0\r\n\r\n")),
        broken("a size that ends in a bare carriage return", CHUNKS, &format!("{size:x}\r{CARE}\r\n0\r\n\r\n")),
        broken("data that ends in a bare line feed", CHUNKS, &format!("{size:x}\r\n{CARE}\n0\r\n\r\n")),
        broken("data that ends in nothing", Cve("2025-43859"), &format!("{size:x}\r\n{CARE}0\r\n\r\n")),
        broken("data that ends in two other bytes", Cve("2025-43859"), &format!("{size:x}\r\n{CARE}XX0\r\n\r\n")),
        broken("data longer than its size", CHUNKS, &format!("{size:x}\r\n{CARE}!\r\n0\r\n\r\n")),
        broken("a size with a prefix", Rfc(9112, "7.1"), &format!("0x{size:x}\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a size with a sign", Rfc(9112, "7.1"), &format!("+{size:x}\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a negative size", Rfc(9112, "7.1"), &format!("-1\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a space behind the size", Rfc(9112, "7.1"), &format!("{size:x} \r\n{CARE}\r\n0\r\n\r\n")),
        broken("a space before the size", Rfc(9112, "7.1"), &format!(" {size:x}\r\n{CARE}\r\n0\r\n\r\n")),
        broken("an empty size", Rfc(9112, "7.1"), &format!("\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a separator in the size", Rfc(9112, "7.1"), &format!("2_8\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a size beyond 64 bits", Cwe(190), &format!("100000000000000{size:02x}\r\n{CARE}\r\n0\r\n\r\n")),
        broken("a length among the trailers", Rfc(9110, "6.5.1"), &format!("{size:x}\r\n{CARE}\r\n0\r\ncontent-length: 5\r\n\r\n")),
        broken("a coding among the trailers", Rfc(9110, "6.5.1"), &format!("{size:x}\r\n{CARE}\r\n0\r\ntransfer-encoding: chunked\r\n\r\n")),
        broken("a host among the trailers", Rfc(9110, "6.5.1"), &format!("{size:x}\r\n{CARE}\r\n0\r\nhost: elsewhere\r\n\r\n")),
        broken("a bare line feed among the trailers", Cve("2025-53643"), &format!("{size:x}\r\n{CARE}\r\n0\r\na: b\n\r\n")),
        broken("a folded trailer", Rfc(9112, "5.2"), &format!("{size:x}\r\n{CARE}\r\n0\r\na: b\r\n c\r\n\r\n")),
        broken("a request among the trailers", Cve("2025-53643"), &format!("{size:x}\r\n{CARE}\r\n0\r\n{SMUGGLED}")),
        broken("trailers without end", Cwe(770), &format!("{size:x}\r\n{CARE}\r\n0\r\n{}", "a: b\r\n".repeat(2_000))),
        served("a size in capitals with zeros before it", Rfc(9112, "7.1"), chunked("00A\r\nhellohello\r\n0\r\n\r\n"), "POST /rest/x", CHUNKED, "hellohello"),
        served("a request inside a chunk", DESYNC, chunked(&format!("{:x}\r\n{SMUGGLED}\r\n0\r\n\r\n", SMUGGLED.len())), "POST /rest/x", CHUNKED, SMUGGLED),
        served("an end inside a chunk", DESYNC, chunked("a\r\n0\r\n\r\nGET /\r\n0\r\n\r\n"), "POST /rest/x", CHUNKED, "0\r\n\r\nGET /"),
        row("a lookup in chunks of one byte", Rfc(9112, "7.1"), chunked_lookup(&(CARE.chars().map(|c| format!("1\r\n{c}\r\n")).collect::<String>() + "0\r\n\r\n")), looked_up()),
    ]
}

fn chunked_lookup(chunks: &str) -> String {
    let head = "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    format!("{head}{chunks}")
}

// ---- lines and fields

#[rustfmt::skip]
fn lines() -> Vec<Row> {
    let fields = |count: usize| (0..count).map(|at| format!("x-{at}: a\r\n")).collect::<String>();
    // Names, values and 32 bytes a field, as RFC 9113 section 6.5.2 counts.
    let filled = |bytes: usize| get("/rest/x", &format!("x-a: {}\r\n", "x".repeat(bytes - "hostlocalhostx-a".len() - 64)));
    vec![
        bad("line feeds only", Rfc(9112, "2.2"), "GET /rest/x HTTP/1.1\nhost: localhost\n\n"),
        bad("an empty line before the request", Rfc(9112, "2.2"), format!("\r\n{}", get("/rest/x", ""))),
        bad("a bare line feed before the request", Rfc(9112, "2.2"), format!("\n{}", get("/rest/x", ""))),
        bad("a head that ends in a bare line feed", Rfc(9112, "2.2"), "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\n"),
        bad("a carriage return doubled", Rfc(9112, "2.2"), "GET /rest/x HTTP/1.1\r\r\nhost: localhost\r\n\r\n"),
        bad("white space before the first field", Rfc(9112, "2.2"), "GET /rest/x HTTP/1.1\r\n host: localhost\r\n\r\n"),
        bad("a folded value", Rfc(9112, "5.2"), get("/rest/x", "x-kept: a\r\n b\r\n")),
        bad("a folded value behind nothing", Rfc(9112, "5.2"), get("/rest/x", "x-kept:\r\n\tb\r\n")),
        bad("a space before the colon of a field", Rfc(9112, "5.1"), get("/rest/x", "x-kept : a\r\n")),
        bad("a field without a colon", Rfc(9112, "5"), get("/rest/x", "x-kept\r\n")),
        bad("a field without a name", Rfc(9112, "5.1"), get("/rest/x", ": a\r\n")),
        bad("a NUL in a value", Rfc(9110, "5.5"), get("/rest/x", "x-kept: a\0b\r\n")),
        bad("a bare carriage return in a value", Rfc(9112, "2.2"), get("/rest/x", "x-kept: a\rb\r\n")),
        bad("an escape in a value", Cwe(150), get("/rest/x", "x-kept: a\x1b[2Jb\r\n")),
        bad("a delete in a value", Rfc(9110, "5.5"), get("/rest/x", "x-kept: a\x7fb\r\n")),
        bad("a NUL in a name", Rfc(9110, "5.1"), get("/rest/x", "x-\0kept: a\r\n")),
        bad("a bracket in a name", Rfc(9110, "5.1"), get("/rest/x", "x[kept]: a\r\n")),
        bad("a slash in a name", Rfc(9110, "5.1"), get("/rest/x", "x/kept: a\r\n")),
        bad("a quote in a name", Rfc(9110, "5.1"), get("/rest/x", "\"x-kept\": a\r\n")),
        bad("a name beyond ASCII", Rfc(9110, "5.1"), with(&get("/rest/x", "x-k@pt: a\r\n"), "é".as_bytes())),
        bad("a byte order mark before the request", Cwe(444), with(&format!("@{}", get("/rest/x", "")), b"\xef\xbb\xbf")),
        served("bytes beyond ASCII in a value stay where they are", Rfc(9110, "5.5"), with(&get("/rest/x", "x-other: @\r\n"), b"\xff\xfe"), "GET /rest/x", &[], ""),
        served("an empty value is one", Rfc(9110, "5.5"), get("/rest/x", "x-kept:\r\n"), "GET /rest/x", &[("x-kept", "")], ""),
        served("white space around a value is none of it", Rfc(9110, "5.5"), get("/rest/x", "x-kept: \t a b \t\r\n"), "GET /rest/x", &[("x-kept", "a b")], ""),
        served("63 fields and the host", Cwe(770), get("/rest/x", &fields(63)), "GET /rest/x", &[], ""),
        row("64 fields and the host", Cwe(770), get("/rest/x", &fields(64)), Outcome::Refused(431, "head-too-large")),
        row("10,000 fields", Cwe(770), get("/rest/x", &fields(10_000)), Outcome::Refused(431, "head-too-large")),
        served("a head of just so many bytes", Cwe(770), filled(16 * 1024), "GET /rest/x", &[], ""),
        row("a head of one byte more", Cwe(770), filled(16 * 1024 + 1), Outcome::Refused(431, "head-too-large")),
        row("a head without end", Cwe(400), format!("GET /rest/x HTTP/1.1\r\nhost: localhost\r\nx-a: {}", "x".repeat(60_000)), Outcome::Refused(431, "head-too-large")),
        row("a name of 257 bytes", Cwe(770), get("/rest/x", &format!("{}: a\r\n", "x".repeat(257))), Outcome::Refused(431, "head-too-large")),
        row("a request line without end", Cwe(400), format!("GET /rest/{}", "x".repeat(60_000)), Outcome::Refused(431, "head-too-large")),
        // Versions and methods.
        bad("HTTP/0.9", Rfc(9112, "3"), "GET /rest/x\r\n\r\n"),
        bad("HTTP/1.2", Rfc(9112, "2.3"), "GET /rest/x HTTP/1.2\r\nhost: localhost\r\n\r\n"),
        bad("HTTP/2.0", Rfc(9112, "2.3"), "GET /rest/x HTTP/2.0\r\nhost: localhost\r\n\r\n"),
        bad("HTTP/3", Rfc(9112, "2.3"), "GET /rest/x HTTP/3\r\nhost: localhost\r\n\r\n"),
        bad("HTTP/01.1", Rfc(9112, "2.3"), "GET /rest/x HTTP/01.1\r\nhost: localhost\r\n\r\n"),
        bad("HTTP/1.10", Rfc(9112, "2.3"), "GET /rest/x HTTP/1.10\r\nhost: localhost\r\n\r\n"),
        bad("http/1.1", Rfc(9112, "2.3"), "GET /rest/x http/1.1\r\nhost: localhost\r\n\r\n"),
        bad("HTTP/1,1", Rfc(9112, "2.3"), "GET /rest/x HTTP/1,1\r\nhost: localhost\r\n\r\n"),
        bad("another protocol's version", Rfc(9112, "2.3"), "GET /rest/x ICY/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a space behind the version", Rfc(9112, "3"), "GET /rest/x HTTP/1.1 \r\nhost: localhost\r\n\r\n"),
        bad("the preface of HTTP/2", Rfc(9113, "3.4"), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        bad("two spaces", Rfc(9112, "3"), "GET  /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a tab for a space", Rfc(9112, "3"), "GET\t/rest/x\tHTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a space before the method", Rfc(9112, "3"), " GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a method in small letters", Rfc(9110, "9.1"), "get /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a method with a colon", Rfc(9110, "9.1"), "GET: /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a method of a kilobyte", Cwe(770), format!("{} /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", "G".repeat(1_024))),
        bad("no method", Rfc(9112, "3"), "/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a TLS record inside TLS", Cwe(20), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        kept("a method of one's own", Rfc(9110, "9.1"), "FOO /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", 403, "no-grant"),
        kept("TRACE", Rfc(9110, "9.3.8"), "TRACE /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", 405, "method-refused"),
        kept("TRACE with Max-Forwards", Rfc(9110, "7.6.2"), "TRACE /rest/x HTTP/1.1\r\nhost: localhost\r\nmax-forwards: 0\r\n\r\n", 405, "method-refused"),
        kept("DELETE where only GET is declared", Cwe(650), "DELETE /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", 403, "no-grant"),
        kept("DEBUG", Cwe(650), "DEBUG /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n", 403, "no-grant"),
        row("HTTP/1.0 with a host", Rfc(9112, "9.3"), "GET /rest/x HTTP/1.0\r\nhost: localhost\r\n\r\n", Outcome::Last(Expected::new("GET /rest/x", &[], b""))),
        kept("HTTP/1.0 without a host", Rfc(9112, "3.2"), "GET /rest/x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", 421, "host-mismatch"),
    ]
}

// ---- whom is it for?

#[rustfmt::skip]
fn targets() -> Vec<Row> {
    let connect = |target: &str| format!("CONNECT {target} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let hosted = |host: &str| format!("GET /rest/x HTTP/1.1\r\nhost: {host}\r\n\r\n");
    vec![
        bad("no host", Rfc(9112, "3.2"), "GET /rest/x HTTP/1.1\r\n\r\n"),
        bad("two hosts", Rfc(9112, "3.2"), get("/rest/x", "host: elsewhere.test\r\n")),
        bad("the same host twice", Rfc(9112, "3.2"), get("/rest/x", "Host: localhost\r\n")),
        bad("a second host with a space before the colon", LENS, get("/rest/x", "host : elsewhere.test\r\n")),
        bad("a second host on a folded line", LENS, get("/rest/x", " host: elsewhere.test\r\n")),
        bad("an absolute target", Rfc(9112, "3.2.2"), "GET https://localhost/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("another's absolute target", LENS, "GET https://elsewhere.test/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("an absolute target in plain text", LENS, "GET http://localhost/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a target with userinfo", LENS, "GET https://localhost@elsewhere.test/ HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a target that begins with @", LENS, "GET @elsewhere.test/ HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a target without a slash", LENS, "GET rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a target of another scheme", LENS, "GET file:///etc/passwd HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("an asterisk", Rfc(9112, "3.2.4"), "GET * HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        kept("OPTIONS of everything", Rfc(9112, "3.2.4"), "OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n", 400, "bad-request"),
        bad("a question mark first", LENS, "GET ?mobile=1 HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a space in the target", Cve("2023-25690"), "GET /rest/x y HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        bad("a second request in the target", Cve("2023-25690"), "GET /rest/x HTTP/1.1 /rest/y HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        kept("a second request in the target, escaped", Cve("2023-25690"), get("/rest/x%20HTTP/1.1%0d%0ahost:%20localhost%0d%0a%0d%0aGET%20/rest/smuggled", ""), 400, "bad-request"),
        kept("another host", Cwe(644), hosted("elsewhere.test"), 421, "host-mismatch"),
        kept("a host below ours", Cwe(644), hosted("localhost.elsewhere.test"), 421, "host-mismatch"),
        kept("a host above ours", Cwe(644), hosted("x.localhost"), 421, "host-mismatch"),
        bad("an empty host", Rfc(9112, "3.2"), hosted("")),
        bad("a list of hosts", Cwe(644), hosted("localhost, elsewhere.test")),
        bad("a host with userinfo", Cwe(644), hosted("localhost@elsewhere.test")),
        bad("a host with a path", Cwe(644), hosted("localhost/elsewhere.test")),
        bad("a host with a port of letters", Cwe(644), hosted("localhost:evil")),
        bad("a host with a port beyond 16 bits", Cwe(644), hosted("localhost:65536")),
        bad("a host with two ports", Cwe(644), hosted("localhost:80:90")),
        bad("a host with a space inside", Cwe(644), hosted("localhost elsewhere.test")),
        bad("a host with a query", Cwe(644), hosted("localhost?elsewhere.test")),
        bad("a host with a backslash", Cwe(644), hosted("localhost\\elsewhere.test")),
        bad("a host in another script", UNICODE, hosted("ⅼocalhost")),
        bad("a bracket too few", Cwe(644), hosted("[::1")),
        kept("a dot behind the host", Cwe(644), hosted("localhost."), 421, "host-mismatch"),
        served("a host in capitals with a port", Rfc(9110, "4.2.3"), hosted("LOCALHOST:8443"), "GET /rest/x", &[], ""),
        kept("CONNECT", Rfc(9110, "9.3.6"), connect("localhost:443"), 405, "method-refused"),
        kept("CONNECT elsewhere", Cwe(441), connect("elsewhere.test:25"), 405, "method-refused"),
        bad("CONNECT to a path", Rfc(9112, "3.2.3"), connect("/rest/x")),
        bad("CONNECT with userinfo", Rfc(9112, "3.2.3"), connect("user@localhost:443")),
        kept("CONNECT with a body", Rfc(9110, "9.3.6"), format!("CONNECT localhost:443 HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len()), 405, "method-refused"),
        // Other protocols, and expectations.
        kept("h2c", H2C, get("/rest/x", "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAA\r\n"), 400, "upgrade-refused"),
        kept("h2c without Connection", H2C, get("/rest/x", "upgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAA\r\n"), 400, "upgrade-refused"),
        kept("a WebSocket", Research("https://portswigger.net/web-security/websockets"), get("/rest/x", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"), 400, "upgrade-refused"),
        kept("a WebSocket of a wrong version", Research("https://github.com/0ang3el/websocket-smuggle"), get("/rest/x", "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 777\r\n"), 400, "upgrade-refused"),
        kept("an upgrade to TLS", Rfc(2817, "3"), get("/rest/x", "connection: upgrade\r\nupgrade: TLS/1.0\r\n"), 400, "upgrade-refused"),
        kept("two upgrades", H2C, get("/rest/x", "upgrade: a\r\nupgrade: h2c\r\n"), 400, "upgrade-refused"),
        served("an expectation that is met", Rfc(9110, "10.1.1"), hello("expect: 100-continue\r\n"), "POST /rest/x", FIVE, "hello"),
        served("an expectation in capitals", Rfc(9110, "10.1.1"), hello("Expect: 100-CONTINUE\r\n"), "POST /rest/x", FIVE, "hello"),
        kept("an obscured expectation", MUST_DIE, hello("expect: y 100-continue\r\n"), 417, "expectation-refused"),
        kept("an expectation twice", MUST_DIE, hello("expect: 100-continue\r\nexpect: 100-continue\r\n"), 417, "expectation-refused"),
        kept("a list of expectations", MUST_DIE, hello("expect: 100-continue, 100-continue\r\n"), 417, "expectation-refused"),
        bad("a folded expectation", MUST_DIE, hello("expect:\r\n 100-continue\r\n")),
        kept("another expectation", Rfc(9110, "10.1.1"), hello("expect: 200-ok\r\n"), 417, "expectation-refused"),
        kept("an empty expectation", MUST_DIE, hello("expect:\r\n"), 417, "expectation-refused"),
        served("an expectation without a body", MUST_DIE, get("/rest/x", "expect: 100-continue\r\n"), "GET /rest/x", &[], ""),
        bad("an expectation beside two framings", MUST_DIE, post("expect: 100-continue\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")),
    ]
}

// ---- who is calling?

/// Fields by which some backend or other learns who is calling, from where, or what to do instead.
pub const SPOOFED: &[(&str, Class)] = &[
    ("X-Partner", Cwe(290)),
    ("x-partner", Cwe(178)),
    ("X_Partner", Cwe(444)),
    ("x-PaRtNeR", Cwe(178)),
    ("X.Partner", Cwe(444)),
    ("X_Partner-Id", Cwe(290)),
    ("X-Actor", Cwe(290)),
    ("X_Actor", Cwe(444)),
    ("X-Purpose", Cwe(290)),
    ("X_Purpose", Cwe(444)),
    ("X-Decision-Id", Cwe(345)),
    ("X-Client-DN", Cwe(290)),
    ("X_CLIENT_DN", Cwe(444)),
    ("Client-Cert", Rfc(9440, "4")),
    ("Client_Cert", Cwe(444)),
    ("Client-Cert-Chain", Rfc(9440, "4")),
    ("X-Client-Cert", Cwe(290)),
    ("X-Client-Verify", Cwe(290)),
    ("X-SSL-Client-Cert", Cwe(290)),
    ("X-SSL-Client-S-DN", Cwe(290)),
    ("X-SSL-Client-Verify", Cwe(290)),
    ("SSL_CLIENT_VERIFY", Cwe(444)),
    ("SSL-Client-Cert", Cwe(290)),
    ("X-Forwarded-Client-Cert", Cwe(290)),
    ("X-Amzn-Mtls-Clientcert", Cwe(290)),
    ("X-Amzn-Mtls-Clientcert-Leaf", Cwe(290)),
    ("X-Amzn-Oidc-Identity", Cwe(290)),
    ("X-ARR-ClientCert", Cwe(290)),
    ("X-Goog-Authenticated-User-Email", Cwe(290)),
    ("X-Forwarded-For", Cwe(348)),
    ("X_Forwarded_For", Cwe(444)),
    ("X-Forwarded_For", Cwe(444)),
    ("X-Forwarded", Cwe(348)),
    ("Forwarded", Rfc(7239, "8.1")),
    ("X-Forwarded-Host", POISONING),
    ("X-Forwarded-Proto", POISONING),
    ("X-Forwarded-Port", POISONING),
    ("X-Forwarded-Prefix", POISONING),
    ("X-Forwarded-User", Cwe(290)),
    ("X-Forwarded-Uri", Cwe(290)),
    ("X-Real-IP", Cwe(348)),
    ("X_Real_IP", Cwe(444)),
    ("True-Client-IP", Cwe(348)),
    ("CF-Connecting-IP", Cwe(348)),
    ("Fastly-Client-IP", Cwe(348)),
    ("X-Azure-ClientIP", Cwe(348)),
    ("X-Client-IP", Cwe(348)),
    ("X-Cluster-Client-IP", Cwe(348)),
    ("X-Originating-IP", Cwe(348)),
    ("X-Remote-IP", Cwe(348)),
    ("X-Remote-Addr", Cwe(348)),
    ("X-Host", POISONING),
    ("X-User", Cwe(290)),
    ("X-Auth-Request-User", Cwe(290)),
    ("Remote-User", Cwe(290)),
    ("REMOTE_USER", Cwe(444)),
    ("X-Remote-User", Cwe(290)),
    ("X-Original-URL", Cve("2018-14773")),
    ("X-Original-Host", POISONING),
    ("X-Rewrite-URL", Cve("2018-14773")),
    ("X-HTTP-Method-Override", Cwe(650)),
    ("X-HTTP-Method", Cwe(650)),
    ("X-Method-Override", Cwe(650)),
    ("X-Envoy-External-Address", Cwe(348)),
    ("X-Envoy-Original-Path", Cwe(290)),
    ("X-Middleware-Subrequest", Cve("2025-29927")),
    ("X-Dwarpal-Verified", Cwe(290)),
    ("Via", Rfc(9110, "7.6.3")),
    ("Max-Forwards", Rfc(9110, "7.6.2")),
    ("Proxy", Cve("2016-5385")),
    ("Proxy-Authorization", Rfc(9110, "11.7.2")),
    ("Traceparent", Cwe(345)),
    ("Tracestate", Cwe(345)),
    ("Baggage", Cwe(345)),
    ("Cookie", Cwe(565)),
    ("Authorization", Cwe(290)),
];

#[rustfmt::skip]
fn identity() -> Vec<Row> {
    let chunk = |trailers: &str| chunked(&format!("5\r\nhello\r\n0\r\n{trailers}\r\n"));
    let mut rows = Vec::new();
    for (name, class) in SPOOFED {
        // Beside a field that the route declares, so that it is seen that fields do pass.
        let sent = get("/rest/x", &format!("{name}: spoofed\r\nx-kept: yes\r\n"));
        rows.push(served(name, *class, sent, "GET /rest/x", &[("x-kept", "yes")], ""));
    }
    rows.extend([
        served("an identity twice", Cwe(290), get("/rest/x", "x-partner: a\r\nX-Partner: b\r\nx_partner: c\r\n"), "GET /rest/x", &[], ""),
        served("identities among the trailers", Rfc(9110, "6.5.1"), chunk("x-partner: b\r\nX_Partner: b\r\nclient-cert: :AAAA:\r\nx-forwarded-for: 6.6.6.6\r\n"), "POST /rest/x", CHUNKED, "hello"),
        served("announced trailers", Rfc(9110, "6.6.2"), chunked("5\r\nhello\r\n0\r\nx-kept: late\r\n\r\n").replace("host: localhost\r\n", "host: localhost\r\ntrailer: x-kept\r\n"), "POST /rest/x", CHUNKED, "hello"),
        served("a declared field with an underscore", Cwe(444), get("/rest/x", "x-kept: yes\r\nx_kept: no\r\nx.kept: no\r\n"), "GET /rest/x", &[("x-kept", "yes")], ""),
        served("a declared field twice stays two", Cwe(235), get("/rest/x", "x-kept: a\r\nX-Kept: b\r\n"), "GET /rest/x", &[("x-kept", "a"), ("x-kept", "b")], ""),
        served("a trace that is none", Cwe(345), get("/rest/x", "traceparent: 00-6412345678\r\n"), "GET /rest/x", &[], ""),
        served("an address in a list", Cwe(348), get("/rest/x", "x-forwarded-for: 127.0.0.1, 10.0.0.1\r\nx-forwarded-for: 127.0.0.1\r\n"), "GET /rest/x", &[], ""),
        bad("an identity on a folded line", Cwe(290), get("/rest/x", "x-kept: a\r\n x-partner: beta\r\n")),
        bad("an identity behind a bare line feed", Cwe(93), get("/rest/x", "x-kept: a\nx-partner: beta\r\n")),
        bad("an identity behind a bare carriage return", Cwe(93), get("/rest/x", "x-kept: a\rx-partner: beta\r\n")),
        served("an identity behind an escaped line end", Cwe(93), get("/rest/x", "x-kept: a%0d%0ax-partner: beta\r\n"), "GET /rest/x", &[("x-kept", "a%0d%0ax-partner: beta")], ""),
    ]);
    for (name, nominated) in [
        ("Connection nominates X-Partner", "close, X-Partner"),
        ("Connection nominates x_partner", "x_partner"),
        ("Connection nominates X-Forwarded-For", "X-Forwarded-For"),
        ("Connection nominates X-Forwarded-Host", "keep-alive, x-forwarded-host"),
        ("Connection nominates Client-Cert", "CLIENT-CERT"),
        ("Connection nominates X-Client-DN", "x-client-dn"),
        ("Connection nominates X-Real-IP", "x-real-ip"),
        ("Connection nominates X-Actor", "x-actor"),
        ("Connection nominates X-Purpose", "x-purpose"),
        ("Connection nominates X-Decision-Id", "x-decision-id"),
        ("Connection nominates Host", "host"),
        ("Connection nominates Content-Length", "content-length"),
        ("Connection nominates Content-Type", "content-type"),
        ("Connection nominates Authorization", "authorization"),
        ("Connection nominates Transfer-Encoding", "transfer-encoding"),
        ("Connection nominates traceparent", "traceparent"),
    ] {
        let class = if name.contains("X-F") { Cve("2024-45410") } else { HOP_BY_HOP };
        rows.push(bad(name, class, hello(&format!("connection: {nominated}\r\n"))));
    }
    rows.extend([
        served("Connection nominates what is declared", HOP_BY_HOP, get("/rest/x", "connection: x-kept\r\nx-kept: a\r\nx-case: b\r\n"), "GET /rest/x", &[("x-case", "b")], ""),
        served("Connection nominates nothing", Rfc(9110, "7.6.1"), get("/rest/x", "connection: ,, ,\r\nx-kept: a\r\n"), "GET /rest/x", &[("x-kept", "a")], ""),
        served("two Connections", HOP_BY_HOP, get("/rest/x", "connection: keep-alive\r\nconnection: x-kept\r\nx-kept: a\r\n"), "GET /rest/x", &[], ""),
        bad("a Connection beyond ASCII", HOP_BY_HOP, with(&get("/rest/x", "connection: @\r\n"), b"\xff")),
    ]);
    rows
}

// ---- what is asked for?

#[rustfmt::skip]
fn paths() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, class, target) in [
        ("two dots", Cwe(22), "/rest/../v1/query"),
        ("one dot", Cwe(22), "/rest/./x"),
        ("dots at the end", Cwe(22), "/rest/.."),
        ("escaped dots", Cve("2021-41773"), "/rest/%2e%2e/x"),
        ("escaped dots in capitals", Cve("2021-41773"), "/rest/%2E%2E/x"),
        ("half-escaped dots", Cve("2021-41773"), "/rest/.%2e/x"),
        ("dots escaped twice", Cve("2021-42013"), "/rest/%%32%65%%32%65/x"),
        ("dots escaped twice, well-formed", Cve("2021-42013"), "/rest/%252e%252e/x"),
        ("dots and a semicolon", Cve("2020-5902"), "/rest/..;/x"),
        ("dots, a semicolon and a parameter", PARSERS, "/rest/..;a=b/x"),
        ("a path parameter", PARSERS, "/rest/x;jsessionid=1"),
        ("an escaped semicolon", PARSERS, "/rest/x%3bjsessionid=1"),
        ("an empty segment", Cwe(41), "/rest//x"),
        ("two slashes first", PARSERS, "//rest/x"),
        ("two slashes and a host", LENS, "//elsewhere.test/rest/x"),
        ("an escaped slash", Cwe(41), "/rest%2fx"),
        ("an escaped slash in capitals", Cwe(41), "/rest/a%2Fb"),
        ("an escaped slash behind dots", Cwe(22), "/rest/..%2fx"),
        ("a backslash", Cwe(41), "/rest/a\\b"),
        ("an escaped backslash", Cwe(41), "/rest/..%5cx"),
        ("an escaped NUL", Cwe(158), "/rest/x%00.json"),
        ("an escaped line end", Cwe(93), "/rest/x%0d%0ax-partner:%20beta"),
        ("an escaped line feed", Cwe(93), "/rest/x%0ax-partner:%20beta"),
        ("an escaped tab", Cwe(20), "/rest/x%09"),
        ("an escaped delete", Cwe(20), "/rest/x%7f"),
        ("an escaped per cent", Cwe(174), "/rest/x%2541"),
        ("a stray per cent", Rfc(3986, "2.1"), "/rest/x%"),
        ("an escape of one digit", Rfc(3986, "2.1"), "/rest/x%4"),
        ("an escape of letters", Rfc(3986, "2.1"), "/rest/x%zz"),
        ("an escape of IIS", PARSERS, "/rest/%u002e%u002e/x"),
        ("a pipe", Rfc(3986, "3.3"), "/rest/a|b"),
        ("braces", Rfc(3986, "3.3"), "/rest/{x}"),
        ("a caret", Rfc(3986, "3.3"), "/rest/a^b"),
        ("a quote", Rfc(3986, "3.3"), "/rest/\"x\""),
    ] {
        rows.push(kept(name, class, get(target, ""), 400, "bad-request"));
    }
    for (name, class, target) in [
        ("a fragment", Cve("2023-45539"), "/rest/x#/v1"),
        ("a fragment behind a query", Cve("2023-45539"), "/files/x?since=1#y"),
        ("a backtick", Rfc(3986, "3.3"), "/rest/a`b"),
        ("angle brackets", Rfc(3986, "3.3"), "/rest/<x>"),
        ("letters beyond ASCII", Rfc(3986, "2.1"), "/rest/é"),
        ("a control byte", Rfc(9112, "3"), "/rest/\x01"),
        ("a delete", Rfc(9112, "3"), "/rest/\x7f"),
    ] {
        rows.push(bad(name, class, get(target, "")));
    }
    for (name, class, target, seen) in [
        ("escaped letters are letters", Rfc(3986, "6.2.2.2"), "/%72%65st/%78", "/rest/x"),
        ("escapes in mixed case", Rfc(3986, "6.2.2.1"), "/rest/%c3%A9", "/rest/%C3%A9"),
        ("a tilde", Rfc(3986, "6.2.2.2"), "/rest/%7Euser", "/rest/~user"),
        ("three dots are a name", Cwe(22), "/rest/.../x", "/rest/.../x"),
        ("a trailing slash is another resource", Cwe(41), "/rest/x/", "/rest/x/"),
        ("an escaped space stays escaped", Rfc(3986, "2.4"), "/rest/a%20b", "/rest/a%20b"),
        ("an escaped question mark stays one", Rfc(3986, "2.2"), "/rest/a%3fb", "/rest/a%3Fb"),
        ("an escaped number sign stays one", Rfc(3986, "2.2"), "/rest/a%23b", "/rest/a%23b"),
        ("slashes of other scripts are letters", UNICODE, "/rest/..%ef%bc%8fx", "/rest/..%EF%BC%8Fx"),
        ("dots of other scripts are letters", UNICODE, "/rest/%ef%bc%8e%ef%bc%8e/x", "/rest/%EF%BC%8E%EF%BC%8E/x"),
        ("an asterisk is a name", Rfc(3986, "3.3"), "/rest/*", "/rest/*"),
        ("a colon is a name", Rfc(3986, "3.3"), "/rest/C:", "/rest/C:"),
    ] {
        rows.push(served(name, class, get(target, ""), &format!("GET {seen}"), &[], ""));
    }
    rows.extend([
        kept("an overlong slash", Cve("2000-0884"), get("/rest/..%c0%af/x", ""), 400, "bad-request"),
        kept("an overlong dot", Cve("2008-2938"), get("/rest/%c0%ae%c0%ae/x", ""), 400, "bad-request"),
        kept("an overlong slash of three bytes", Rfc(3629, "10"), get("/rest/..%e0%80%af/x", ""), 400, "bad-request"),
        kept("half a letter in a path", Rfc(3629, "3"), get("/rest/%c3/%a9", ""), 400, "bad-request"),
        kept("a surrogate in a path", Rfc(3629, "3"), get("/rest/%ed%a0%80", ""), 400, "bad-request"),
        kept("a path that is not UTF-8", Rfc(3986, "2.5"), get("/rest/%ff", ""), 400, "bad-request"),
        kept("a route in capitals", Cwe(178), get("/REST/x", ""), 403, "no-grant"),
        kept("below a route that ends", Cwe(22), get("/files/a/b", ""), 403, "no-grant"),
        kept("a slash behind a route that has none", Cwe(41), get("/files/a/", ""), 403, "no-grant"),
        kept("beside a route", Cwe(22), get("/rest", ""), 403, "no-grant"),
        kept("a prefix of a route", Cwe(22), get("/restx/x", ""), 403, "no-grant"),
        kept("the gateway's own paths are not the backend's", Cwe(425), get("/.well-known/dwarpal/else", ""), 403, "no-grant"),
        row("a path of seven kilobytes", Cwe(770), get(&format!("/rest/{}", "x".repeat(7_000)), ""), Outcome::Refused(431, "head-too-large")),
    ]);
    rows
}

#[rustfmt::skip]
fn queries() -> Vec<Row> {
    let query = |query: &str| get(&format!("/v1/query?{query}"), "");
    let found = |name, class, text: &str| {
        let fields = [("accept", "application/json"), ("x-purpose", "care")];
        served(name, class, query(text), "GET /v1/query?mobile=6412345678", &fields, "")
    };
    let mut rows = Vec::new();
    for (name, class, text) in [
        ("a parameter twice", Cwe(235), "mobile=6412345678&mobile=6512345678"),
        ("the same parameter twice", Cwe(235), "mobile=6412345678&mobile=6412345678"),
        ("a parameter twice, once escaped", Cwe(235), "mobile=6412345678&m%6fbile=6512345678"),
        ("an array", Cwe(235), "mobile[]=6412345678"),
        ("an array beside the parameter", Cwe(235), "mobile=6412345678&mobile[]=6512345678"),
        ("an array with an index", Cwe(235), "mobile[0]=6412345678"),
        ("an escaped array", Cwe(235), "mobile=6412345678&mobile%5b%5d=6512345678"),
        ("another parameter", Cwe(915), "mobile=6412345678&aadhaar=999941057058"),
        ("a parameter in capitals", Cwe(178), "MOBILE=6412345678"),
        ("a parameter in capitals beside it", Cwe(178), "mobile=6412345678&Mobile=6512345678"),
        ("a semicolon for an ampersand", Cve("2021-23336"), "mobile=6412345678;mobile=6512345678"),
        ("a parameter with a dot", Cwe(444), "mobile=6412345678&mobile.x=6512345678"),
        ("a parameter with a space behind", Cwe(444), "mobile=6412345678&mobile+=6512345678"),
        ("a parameter with a NUL behind", Cwe(158), "mobile=6412345678&mobile%00=6512345678"),
        ("an escaped ampersand", Cwe(235), "mobile=6412345678%26mobile=6512345678"),
        ("a query inside the query", Cwe(235), "mobile=6412345678?mobile=6512345678"),
        ("an operator", Cwe(943), "mobile[$ne]=1"),
        ("a parameter for a method", Cwe(650), "mobile=6412345678&_method=DELETE"),
        ("a parameter that nobody declared", Cwe(915), "mobile=6412345678&fields=all"),
        ("no query", Rfc(3986, "3.4"), ""),
        ("a value of another length", Cwe(770), "mobile=6412345678000000000000000"),
    ] {
        rows.push(kept(name, class, query(text), 400, "query-invalid"));
    }
    rows.extend([
        kept("a second parameter behind an empty one", Cwe(235), query("mobile=6412345678&&mobile=6512345678"), 400, "bad-request"),
        kept("an escape of letters in a query", Rfc(3986, "2.1"), query("mobile=%zz"), 400, "bad-request"),
        kept("a parameter without a value", Cwe(235), query("mobile"), 400, "bad-request"),
        found("a number in plain", Rfc(3986, "3.4"), "mobile=6412345678"),
        found("a number with escapes", Rfc(3986, "6.2.2.2"), "mobile=%36412345678"),
        found("a parameter's name with escapes", Rfc(3986, "6.2.2.2"), "m%6Fbile=6412345678"),
        found("a number with its country", Cwe(20), "mobile=%2B91+64123+45678"),
        kept("a value that is not UTF-8", Rfc(3986, "2.5"), get("/files/x?since=%ff", ""), 400, "bad-request"),
        kept("an overlong ampersand", Rfc(3629, "10"), get("/files/x?since=1%c0%a6x", ""), 400, "bad-request"),
        kept("a list of numbers", Cwe(20), query("mobile=6412345678,6512345678"), 422, "identifier-invalid"),
        kept("an empty number", Cwe(20), query("mobile="), 422, "identifier-invalid"),
        kept("a number in wide digits", UNICODE, query("mobile=%EF%BC%96%EF%BC%94"), 422, "identifier-invalid"),
        kept("a number and a pattern", Cwe(943), query("mobile=6412345678%25%25"), 422, "identifier-invalid"),
        kept("a number and a quote", Cwe(89), query("mobile=6412345678'--"), 422, "identifier-invalid"),
        kept("a number and a line end", Cwe(93), query("mobile=6412345678%0d%0a"), 400, "query-invalid"),
        kept("a reference with a second one", Cwe(20), get("/v1/people/12345678901234,12345678901235", "x-purpose: care\r\n"), 422, "identifier-invalid"),
        kept("a reference with an escaped slash", Cwe(22), get("/v1/people/12345678901234%2f..", "x-purpose: care\r\n"), 400, "bad-request"),
        bad("a purpose twice", Cwe(235), get("/v1/people/12345678901234", "x-purpose: care\r\nx-purpose: care\r\n")),
        kept("a purpose with an underscore", Cwe(444), get("/v1/people/12345678901234", "x_purpose: care\r\n"), 400, "purpose-missing"),
        kept("a purpose in capitals", Cwe(178), get("/v1/people/12345678901234", "x-purpose: CARE\r\n"), 403, "purpose-not-granted"),
    ]);
    rows
}

// ---- what does a body say?

#[rustfmt::skip]
fn bodies() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, class, body) in [
        ("a member twice", JSON, r#"{"mobile":"6412345678","mobile":"6512345678","purpose":"care"}"#),
        ("the same member twice", JSON, r#"{"mobile":"6412345678","mobile":"6412345678","purpose":"care"}"#),
        ("a member twice, once escaped", JSON, r#"{"mobile":"6412345678","m\u006fbile":"6512345678","purpose":"care"}"#),
        ("a purpose twice in a body", JSON, r#"{"mobile":"6412345678","purpose":"care","purpose":"public-health"}"#),
        ("a member in capitals", Cwe(178), r#"{"Mobile":"6412345678","purpose":"care"}"#),
        ("a member in capitals beside it", Cwe(178), r#"{"mobile":"6412345678","MOBILE":"6512345678","purpose":"care"}"#),
        ("a member with a NUL behind its name", Cwe(158), r#"{"mobile":"6412345678","mobile\u0000":"6512345678","purpose":"care"}"#),
        ("a member with a letter of another script", UNICODE, r#"{"mobile":"6412345678","mоbile":"6512345678","purpose":"care"}"#),
        ("a member with a lone surrogate in its name", JSON, r#"{"mobile":"6412345678","mobile\ud800":"6512345678","purpose":"care"}"#),
        ("a member with a space behind its name", JSON, r#"{"mobile":"6412345678","mobile ":"6512345678","purpose":"care"}"#),
        ("a member without a name", JSON, r#"{"":"6512345678","mobile":"6412345678","purpose":"care"}"#),
        ("a prototype", Cwe(1321), r#"{"mobile":"6412345678","purpose":"care","__proto__":{"mobile":"6512345678"}}"#),
        ("a type", Cwe(502), r#"{"@type":"java.lang.Class","mobile":"6412345678","purpose":"care"}"#),
        ("a member that nobody declared", Cwe(915), r#"{"mobile":"6412345678","purpose":"care","admin":true}"#),
        ("an array of one", JSON, r#"{"mobile":["6412345678"],"purpose":"care"}"#),
        ("an array of two", JSON, r#"{"mobile":["6412345678","6512345678"],"purpose":"care"}"#),
        ("a number for a string", JSON, r#"{"mobile":6412345678,"purpose":"care"}"#),
        ("a number with a fraction", JSON, r#"{"mobile":6412345678.0,"purpose":"care"}"#),
        ("a huge number", JSON, r#"{"mobile":1e400,"purpose":"care"}"#),
        ("an object for a string", Cwe(943), r#"{"mobile":{"$ne":""},"purpose":"care"}"#),
        ("a nested member of the same name", JSON, r#"{"mobile":{"mobile":"6412345678"},"purpose":"care"}"#),
        ("null", JSON, r#"{"mobile":null,"purpose":"care"}"#),
        ("true", JSON, r#"{"mobile":true,"purpose":"care"}"#),
        ("NaN", JSON, r#"{"mobile":NaN,"purpose":"care"}"#),
        ("a list of lookups", JSON, r#"[{"mobile":"6412345678","purpose":"care"},{"mobile":"6512345678","purpose":"care"}]"#),
        ("two documents", JSON, r#"{"mobile":"6412345678","purpose":"care"}{"mobile":"6512345678","purpose":"care"}"#),
        ("two documents on two lines", JSON, "{\"mobile\":\"6412345678\",\"purpose\":\"care\"}\n{\"mobile\":\"6512345678\",\"purpose\":\"care\"}"),
        ("something behind the document", JSON, r#"{"mobile":"6412345678","purpose":"care"};"#),
        ("a NUL behind the document", Cwe(158), "{\"mobile\":\"6412345678\",\"purpose\":\"care\"}\0"),
        ("a comma too many", JSON, r#"{"mobile":"6412345678","purpose":"care",}"#),
        ("a comment", JSON, r#"{"mobile":"6412345678",/*"mobile":"6512345678",*/"purpose":"care"}"#),
        ("a comment behind", JSON, "{\"mobile\":\"6412345678\",\"purpose\":\"care\"}//"),
        ("single quotes", JSON, "{'mobile':'6412345678','purpose':'care'}"),
        ("names without quotes", JSON, "{mobile:\"6412345678\",purpose:\"care\"}"),
        ("a string that is not closed", JSON, "{\"mobile\":\"6412345678"),
        ("a control byte in a string", Rfc(8259, "7"), "{\"mobile\":\"64123\t45678\",\"purpose\":\"care\"}"),
        ("an escape that is none", Rfc(8259, "7"), r#"{"mobile":"\x36412345678","purpose":"care"}"#),
        ("a lone surrogate", Rfc(8259, "8.2"), r#"{"mobile":"6412345678","purpose":"care","case":"\ud800"}"#),
        ("a byte order mark before a body", Rfc(8259, "8.1"), "\u{feff}{\"mobile\":\"6412345678\",\"purpose\":\"care\"}"),
        ("a form", Cwe(436), "mobile=6412345678&purpose=care"),
        ("XML", Cwe(611), "<mobile>6412345678</mobile>"),
        ("nothing but white space", JSON, "  \r\n\t "),
        ("white space of another script", JSON, "\u{a0}{\"mobile\":\"6412345678\",\"purpose\":\"care\"}"),
        ("a value that reads like a second person", Cwe(20), r#"{"mobile":"6412345678","purpose":"care","case":"6512345678"}"#),
        ("a value that reads like a second person, spaced", Cwe(20), r#"{"mobile":"6412345678","purpose":"care","case":"65123 45678"}"#),
        ("a NUL in a number", Cwe(158), r#"{"mobile":"6412345678\u0000","purpose":"care"}"#),
        ("a value longer than declared", Cwe(770), r#"{"mobile":"6412345678               ","purpose":"care"}"#),
    ] {
        rows.push(kept(name, class, lookup(body), 400, "body-invalid"));
    }
    for (name, class, body) in [
        ("wide digits", UNICODE, r#"{"mobile":"６４１２３４５６７８","purpose":"care"}"#),
        ("digits of Devanagari", UNICODE, r#"{"mobile":"६४१२३४५६७८","purpose":"care"}"#),
        ("escaped digits of Devanagari", UNICODE, r#"{"mobile":"\u096c412345678","purpose":"care"}"#),
        ("digits in circles", UNICODE, r#"{"mobile":"⑥④①②③④⑤⑥⑦⑧","purpose":"care"}"#),
        ("a mark of direction in a number", UNICODE, r#"{"mobile":"6412\u202e345678","purpose":"care"}"#),
        ("a space of no width in a number", UNICODE, r#"{"mobile":"6412\u200b345678","purpose":"care"}"#),
        ("two numbers in one string", Cwe(20), r#"{"mobile":"6412345678,6512345678","purpose":"care"}"#),
        ("a wild card", Cwe(943), r#"{"mobile":"64123%","purpose":"care"}"#),
        ("an empty string", Cwe(20), r#"{"mobile":"","purpose":"care"}"#),
        ("nothing but separators", Cwe(20), r#"{"mobile":" -- () ","purpose":"care"}"#),
    ] {
        rows.push(kept(name, class, lookup(body), 422, "identifier-invalid"));
    }
    for (name, class, body) in [
        ("escapes in the name of a member", JSON, r#"{"\u006d\u006f\u0062ile":"6412345678","purpose":"care"}"#),
        ("escapes in a number", JSON, r#"{"mobile":"\u0036412345678","purpose":"care"}"#),
        ("members in another order", JSON, r#"{"purpose":"care","mobile":"6412345678"}"#),
        ("white space everywhere", JSON, "\r\n{ \"mobile\" : \"6412345678\" ,\t\"purpose\" : \"care\" }\n"),
        ("separators up to the longest", Cwe(770), r#"{"mobile":"+91 (64123) - 45678     ","purpose":"care"}"#),
    ] {
        rows.push(row(name, class, lookup(body), looked_up()));
    }
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let typed = |content_type: &str| {
        let typed = format!("content-type: {content_type}\r\n");
        String::from_utf8(lookup(CARE)).expect("text").replace("content-type: application/json\r\n", &typed)
    };
    let encoded = |encoding: &str| typed(&format!("application/json\r\ncontent-encoding: {encoding}"));
    let wide: Vec<u8> = CARE.encode_utf16().flat_map(u16::to_le_bytes).collect();
    rows.extend([
        kept("a body in UTF-16", Rfc(8259, "8.1"), lookup(wide), 400, "body-invalid"),
        kept("a body that is not UTF-8", Rfc(8259, "8.1"), lookup(b"{\"mobile\":\"\xff\",\"purpose\":\"care\"}"), 400, "body-invalid"),
        kept("an overlong quote", Rfc(3629, "10"), lookup(b"{\"mobile\":\"6412345678\xc0\xa2,\"purpose\":\"care\"}"), 400, "body-invalid"),
        kept("arrays a thousand deep", Cwe(674), lookup(deep(1_000)), 400, "body-invalid"),
        row("arrays a hundred thousand deep", Cwe(674), lookup(deep(100_000)), Outcome::Refused(413, "body-too-large")),
        kept("a type of text", Cwe(436), typed("text/plain"), 415, "content-type"),
        kept("a type of forms", Cwe(436), typed("application/x-www-form-urlencoded"), 415, "content-type"),
        kept("a type that ends in JSON", Cwe(436), typed("application/problem+json"), 415, "content-type"),
        kept("a type in UTF-7", Cwe(436), typed("application/json; charset=utf-7"), 415, "content-type"),
        kept("a type in UTF-16", Cwe(436), typed("application/json; charset=utf-16"), 415, "content-type"),
        kept("a list of types", Cwe(436), typed("application/json, text/xml"), 415, "content-type"),
        kept("two types", Cwe(436), typed("application/json\r\ncontent-type: application/json"), 415, "content-type"),
        kept("an empty type", Cwe(436), typed(""), 415, "content-type"),
        row("a type in capitals", Rfc(9110, "8.3.1"), typed("Application/JSON; Charset=\"UTF-8\""), looked_up()),
        kept("gzip", Cwe(409), encoded("gzip"), 415, "content-encoding"),
        kept("identity as an encoding", Rfc(9110, "8.4.1"), encoded("identity"), 415, "content-encoding"),
        kept("two encodings", Cwe(409), encoded("gzip, br"), 415, "content-encoding"),
        kept("an empty encoding", Rfc(9110, "8.4"), encoded(""), 415, "content-encoding"),
        kept("a lookup with a query beside its body", Cwe(235), String::from_utf8(lookup(CARE)).expect("text").replace("/v1/mobile", "/v1/mobile?mobile=6512345678"), 400, "query-invalid"),
        kept("an actor who reads like a person", Cwe(20), typed("application/json\r\nx-actor: 6512345678"), 400, "actor-invalid"),
        bad("two actors", Cwe(235), typed("application/json\r\nx-actor: a\r\nx-actor: b")),
        kept("an actor with a line end", Cwe(93), typed("application/json\r\nx-actor: a%0d%0ab"), 400, "actor-invalid"),
        row("a body over its limit", Cwe(770), lookup(format!("{CARE}{}", " ".repeat(10_000))), Outcome::Refused(413, "body-too-large")),
    ]);
    rows
}

#[rustfmt::skip]
fn pipelines() -> Vec<Row> {
    let spoilt = |name, class, good: &str, bad: &str, expected| row(name, class, format!("{good}{bad}"), Outcome::Spoilt(expected));
    let posted = |fields| Expected::new("POST /rest/x", fields, b"hello");
    vec![
        spoilt("a bad head behind a good one", MUST_DIE, &get("/rest/x", ""), &post("content-length: 5\r\ncontent-length: 6\r\n", "hello"), Expected::new("GET /rest/x", &[], b"")),
        spoilt("a bad head behind a good body", HIDDEN, &hello(""), "GARBAGE\r\n\r\n", posted(FIVE)),
        spoilt("a bad head behind chunks", HIDDEN, &chunked("5\r\nhello\r\n0\r\n\r\n"), "x: y\r\n\r\n", posted(CHUNKED)),
        spoilt("an empty line behind a good body", Rfc(9112, "2.2"), &hello(""), "\r\n", posted(FIVE)),
        spoilt("a third request behind a bad second", MUST_DIE, &get("/rest/x", ""), &post("transfer-encoding: x\r\n", SMUGGLED), Expected::new("GET /rest/x", &[], b"")),
        served("a chunked body behind an expectation", MUST_DIE, post("expect: 100-continue\r\ntransfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), "POST /rest/x", CHUNKED, "hello"),
        row("an expectation of one who says that it will close", MUST_DIE, hello("expect: 100-continue\r\nconnection: close\r\n"), Outcome::Last(posted(FIVE))),
    ]
}

impl Row {
    fn run(&self, world: &World, partner: &mut WellBehaved) {
        world.backend.forget();
        let mut line = world.alpha();
        // The gateway may answer, and close, before all was sent.
        let _ = line.try_send([&self.sent[..], NEXT.as_bytes()].concat());
        let next = Expected::new("GET /rest/next", &[], b"");
        let mut seen = Vec::new();
        match &self.outcome {
            Outcome::Refused(status, code) => {
                let answer = line.answer(false);
                answer.assert_refused(*status, code);
                assert_eq!(answer.header("connection"), "close");
            }
            Outcome::Kept(status, code) => {
                line.answer(false).assert_refused(*status, code);
                assert_eq!(line.answer(false).status, 200);
                seen.push(next);
            }
            Outcome::Served(expected) => {
                assert_eq!((line.answer(false).status, line.answer(false).status), (200, 200));
                seen.extend([expected.clone(), next]);
            }
            Outcome::Last(expected) => {
                assert_eq!(line.answer(false).status, 200);
                seen.push(expected.clone());
            }
            Outcome::Spoilt(expected) => {
                assert_eq!(line.answer(false).status, 200);
                line.answer(false).assert_refused(400, "bad-request");
                seen.push(expected.clone());
            }
            Outcome::Abandoned => {}
        }
        match self.outcome {
            Outcome::Abandoned => line.hang_up(),
            _ => line.assert_closed(),
        }
        partner.is_served();
        assert_eq!(seen_by_backend(world), seen, "what reached the backend");
    }
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
    let tables = [framing(), chunks(), lines(), targets(), identity(), paths(), queries(), bodies(), pipelines()];
    assert_a_table(tables.iter().flatten().map(|row| (row.name, row.class)), 350);
}

#[test]
fn a_message_ends_in_one_place_or_is_refused() {
    table(&framing());
    table(&pipelines());
}

#[test]
fn chunks_are_read_strictly() {
    table(&chunks());
}

#[test]
fn lines_and_fields_are_read_strictly() {
    table(&lines());
}

#[test]
fn a_request_is_for_this_gateway_and_for_nothing_else() {
    table(&targets());
}

#[test]
fn nobody_else_says_who_is_calling() {
    table(&identity());
}

#[test]
fn a_path_has_one_reading() {
    table(&paths());
}

#[test]
fn a_query_has_one_reading() {
    table(&queries());
}

#[test]
fn a_body_has_one_reading() {
    table(&bodies());
}
