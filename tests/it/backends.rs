//! What may a backend do to a partner? Several servers that come and go, answers of every bad kind, TLS, HTTP/2.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use dwarpal::clock::{Clock, Timestamp};
use dwarpal::proxy::upstream::{Outgoing, Pools, Upload, Upstream};
use dwarpal::state::State;

use crate::world::backend::{Backend, Exchange, ONE_PERSON, one_person};
use crate::world::frames::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RESET, SETTINGS, frame};
use crate::world::mortal::Mortal;
use crate::world::pki::{Authority, FAR_AWAY, LONG_AGO, Leaf, NOT_SO_LONG_AGO, Profile, client, pki};
use crate::world::{PATIENCE, Setup, World, dwarpal, eventually};

fn get(target: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n\r\n")
}

fn post(target: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

fn lookup() -> String {
    post("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#)
}

/// More keys for the backend of the usual configuration, before its tables.
fn with_keys(setup: Setup, keys: &str) -> Setup {
    setup.gateway("host = \"registry.internal\"\n", &format!("host = \"registry.internal\"\n{keys}\n"))
}

fn impatient() -> Setup {
    Setup::new().gateway("answer_timeout = \"10s\"", "answer_timeout = \"400ms\"")
}

/// The usual configuration before these servers.
fn before(servers: &[SocketAddr]) -> Setup {
    let servers: Vec<_> = servers.iter().map(|server| format!("\"{server}\"")).collect();
    Setup::new().gateway("address = \"BACKEND\"", &format!("servers = [{}]", servers.join(", ")))
}

/// A port that is taken and on which nobody listens.
fn deaf() -> (tokio::net::TcpSocket, SocketAddr) {
    let taken = tokio::net::TcpSocket::new_v4().expect("socket");
    taken.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let address = taken.local_addr().expect("address");
    (taken, address)
}

fn series(world: &World, name: &str, server: SocketAddr) -> f64 {
    world.metric(&format!("{name}{{backend=\"registry\",server=\"{server}\"}}"))
}

// ---- the zoo

/// What a server does after it has said its bytes.
#[derive(Clone, Copy, Debug)]
enum Then {
    Close,
    Reset,
    /// Nothing more, whatever comes.
    Hold,
    /// Whatever is asked next: the answer was whole.
    GoOn,
    /// The same bytes, for ever.
    Flood(&'static [u8]),
    Dribble(&'static [u8]),
}
use Then::*;

/// What is said, and what is done then.
type Script = (Vec<u8>, Then);

struct Row {
    name: &'static str,
    bytes: Vec<u8>,
    then: Then,
    status: u16,
    code: &'static str,
}

fn row(name: &'static str, bytes: impl AsRef<[u8]>, then: Then, status: u16) -> Row {
    let code = match status {
        504 => "backend-timeout",
        404 => "no-match",
        _ => "backend-failed",
    };
    Row { name, bytes: bytes.as_ref().to_vec(), then, status, code }
}

/// An answer of JSON with more header lines and another body than it should have.
fn json(status: &str, fields: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nx-secret: secret\r\n{fields}\r\n{body}")
}

/// One person, with a length; what is wrong is in front of it.
fn person(fields: &str) -> String {
    json("200 OK", &format!("content-length: {}\r\n{fields}", ONE_PERSON.len()), ONE_PERSON)
}

/// Answers with a head that nobody may take for one, on any route.
fn bad_heads() -> Vec<Row> {
    let ok = |line: &str| format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{line}\r\n\r\nsecret");
    let long = format!("HTTP/1.1 200 OK\r\nx-secret: {}\r\n\r\n", "x".repeat(70_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x-secret: 1\r\n".repeat(120));
    let h2_settings: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    let tls_alert: &[u8] = b"\x15\x03\x01\0\x02\x02\x46";
    vec![
        row("garbage", "secret garbage\r\n\r\n", Close, 502),
        row("binary garbage", b"\0\xff\xfe secret \x01\r\n\r\n", Close, 502),
        row("HTTP/0.9", "<html>secret</html>", Close, 502),
        row("HTTP/2.0 in text", "HTTP/2.0 200 OK\r\n\r\nsecret", Close, 502),
        row("a version from the future", "HTTP/9.9 200 OK\r\n\r\nsecret", Close, 502),
        row("frames of HTTP/2", h2_settings, Hold, 502),
        row("TLS", tls_alert, Hold, 502),
        row("another protocol", "220 secret ESMTP\r\n", Hold, 502),
        row("no status", "HTTP/1.1 \r\n\r\n", Close, 502),
        row("a status of two digits", "HTTP/1.1 20 secret\r\n\r\n", Close, 502),
        row("a status of five digits", "HTTP/1.1 20000 secret\r\n\r\n", Close, 502),
        row("status 000", "HTTP/1.1 000 secret\r\ncontent-length: 0\r\n\r\n", Close, 502),
        row("status 600", "HTTP/1.1 600 secret\r\ncontent-length: 0\r\n\r\n", Hold, 502),
        row("status 999", "HTTP/1.1 999 secret\r\ncontent-length: 0\r\n\r\n", Hold, 502),
        row("a head that is too large", long, Hold, 502),
        row("too many fields", many, Hold, 502),
        row("fields without end", "HTTP/1.1 200 OK\r\n", Flood(b"x-secret: secret\r\n"), 502),
        row("length and coding", ok("content-length: 6\r\ntransfer-encoding: chunked"), Hold, 502),
        row("coding and length", ok("transfer-encoding: chunked\r\ncontent-length: 6"), Hold, 502),
        row("two lengths that differ", ok("content-length: 6\r\ncontent-length: 5"), Hold, 502),
        row("two lengths that agree", ok("content-length: 6\r\ncontent-length: 6"), Hold, 502),
        row("a list of lengths", ok("content-length: 6, 6"), Hold, 502),
        row("a negative length", ok("content-length: -6"), Hold, 502),
        row("a length with a sign", ok("content-length: +6"), Hold, 502),
        row("a length in hexadecimal", ok("content-length: 0x6"), Hold, 502),
        row("a length and a word", ok("content-length: 6 secret"), Hold, 502),
        row("no length in the length", ok("content-length:"), Hold, 502),
        row("a length beyond all numbers", ok("content-length: 99999999999999999999999999"), Hold, 502),
        row("another coding first", ok("transfer-encoding: gzip, chunked"), Hold, 502),
        row("an unknown coding", ok("transfer-encoding: xchunked"), Hold, 502),
        row("no coding by name", ok("transfer-encoding: identity"), Hold, 502),
        row("two codings", ok("transfer-encoding: chunked\r\ntransfer-encoding: chunked"), Hold, 502),
        row("a coding in HTTP/1.0", "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", Hold, 502),
        row("a folded field", ok("x-a: b\r\n secret: c"), Hold, 502),
        row("a NUL in a value", ok("x-a: b\0secret"), Hold, 502),
        row("a CR in a value", ok("x-a: b\rsecret: c"), Hold, 502),
        row("a space before the colon", ok("x-secret : b"), Hold, 502),
        row("no name", ok(": secret"), Hold, 502),
        row("no colon", ok("secret"), Hold, 502),
        row("a name with a space", ok("x secret: b"), Hold, 502),
        row("closed at once", "", Close, 502),
        row("reset at once", "", Reset, 502),
        row("closed in mid-head", "HTTP/1.1 200 OK\r\nx-sec", Close, 502),
        row("reset in mid-head", "HTTP/1.1 200 OK\r\nx-sec", Reset, 502),
        row("silence", "", Hold, 504),
        row("silence in mid-head", "HTTP/1.1 200 OK\r\nx-sec", Hold, 504),
        row("a head that dribbles", "HTTP/1.1 200 OK\r\n", Dribble(b"x-secret: 1\r\n"), 504),
        row("100 and silence", "HTTP/1.1 100 Continue\r\n\r\n", Hold, 504),
        row("100 and gone", "HTTP/1.1 100 Continue\r\n\r\n", Close, 502),
        row("100 without end", "", Flood(b"HTTP/1.1 100 Continue\r\nx-secret: 1\r\n\r\n"), 502),
        row("103 without end", "", Flood(b"HTTP/1.1 103 Early Hints\r\nlink: </secret>\r\n\r\n"), 502),
        row("101", "HTTP/1.1 101 Secret\r\nupgrade: secret\r\nconnection: upgrade\r\n\r\nsecret", Hold, 502),
        row("101 as if nothing was", "HTTP/1.1 101 Secret\r\ncontent-length: 6\r\n\r\nsecret", Close, 502),
        row("204 with a length", "HTTP/1.1 204 Secret\r\ncontent-length: 6\r\n\r\nsecret", Hold, 502),
        row(
            "204 with chunks",
            "HTTP/1.1 204 Secret\r\ntransfer-encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
            Hold,
            502,
        ),
        row("205 with a body", "HTTP/1.1 205 Secret\r\ncontent-length: 6\r\n\r\nsecret", Hold, 502),
        row("500", json("500 6412345678", "x-id: 6412345678\r\ncontent-length: 10\r\n", "6412345678"), GoOn, 502),
        row("502", json("502 Secret", "content-length: 6\r\n", "secret"), GoOn, 502),
        row("503", json("503 Secret", "retry-after: 7\r\ncontent-length: 6\r\n", "secret"), GoOn, 502),
        row("504", json("504 Secret", "", "secret"), Close, 502),
    ]
}

/// Answers to a lookup that are not what its route declares.
fn bad_answers() -> Vec<Row> {
    let chunked = |chunks: &str| json("200 OK", "transfer-encoding: chunked\r\n", chunks);
    let extension = "x".repeat(20_000);
    let whole = |body: &str| json("200 OK", &format!("content-length: {}\r\n", body.len()), body);
    let typed = |fields: &str| {
        let length = ONE_PERSON.len();
        format!("HTTP/1.1 200 OK\r\nx-secret: 1\r\ncontent-length: {length}\r\n{fields}\r\n{ONE_PERSON}")
    };
    vec![
        row("a chunk of no size", chunked("zz\r\nsecret\r\n0\r\n\r\n"), Hold, 502),
        row("a chunk of a size with a sign", chunked("+6\r\nsecret\r\n0\r\n\r\n"), Hold, 502),
        row("a chunk of a size beyond all numbers", chunked("fffffffffffffffff\r\nsecret"), Hold, 502),
        row("a chunk with an extension too long", chunked(&format!("6;{extension}\r\nsecret\r\n0\r\n\r\n")), Hold, 502),
        row("a chunk without its end", chunked("6\r\nsecret0\r\n\r\n"), Hold, 502),
        row("closed in mid-chunk", chunked("ff\r\n{\"people\":[\"secret"), Close, 502),
        row("closed between chunks", chunked("6\r\nsecret\r\n"), Close, 502),
        row("closed in mid-body", json("200 OK", "content-length: 500\r\n", "{\"people\":[\"secret"), Close, 502),
        row("reset in mid-body", json("200 OK", "content-length: 500\r\n", "{\"people\":[\"secret"), Reset, 502),
        row("silence in mid-body", json("200 OK", "content-length: 500\r\n", "{\"people\":[\"secret"), Hold, 504),
        row("a body that dribbles", json("200 OK", "content-length: 9000\r\n", "{\"people\":["), Dribble(b" "), 504),
        row("a body without end", json("200 OK", "", "{\"people\":["), Flood(b"\"secret\",\"secret\","), 502),
        row("chunks without end", chunked(""), Flood(b"8\r\n\"secret\r\n"), 502),
        row("a body that is announced too large", json("200 OK", "content-length: 9000000\r\n", "secret"), Hold, 502),
        row("compressed", person("content-encoding: gzip\r\n"), Hold, 502),
        row("compressed by no method", person("content-encoding: identity\r\n"), Hold, 502),
        row("two types", person("content-type: text/html\r\n"), Hold, 502),
        row("no type", typed(""), Hold, 502),
        row("another type", typed("content-type: text/html\r\n"), Hold, 502),
        row("a type that only begins well", typed("content-type: application/jsonsecret\r\n"), Hold, 502),
        row("no JSON", whole("<html>secret</html>"), GoOn, 502),
        row("half JSON", whole("{\"people\":[\"secret\""), GoOn, 502),
        row("JSON and more", whole("{\"people\":[1]}{\"secret\":1}"), GoOn, 502),
        row("nothing", whole(""), GoOn, 502),
        row("no array", whole("{\"people\":{\"secret\":1}}"), GoOn, 502),
        row("an array elsewhere", whole("{\"secret\":[1]}"), GoOn, 502),
        row("two arrays", whole("{\"people\":[],\"people\":[\"secret\"]}"), GoOn, 502),
        row("a member of a person twice", whole("{\"people\":[{\"secret\":1,\"secret\":2}]}"), GoOn, 502),
        row("nested too deeply", whole(&format!("{{\"people\":[{}{}]}}", "[".repeat(200), "]".repeat(200))), GoOn, 502),
        row("a number out of range", whole("{\"people\":[{\"secret\":1e999}]}"), GoOn, 502),
        row("half a character", whole("{\"people\":[\"\\ud800 secret\"]}"), GoOn, 502),
        row("201", json("201 Created", "content-length: 6\r\n", "secret"), GoOn, 502),
        row("204", "HTTP/1.1 204 Secret\r\nx-secret: 1\r\n\r\n", GoOn, 502),
        row("206", json("206 Partial", "content-range: bytes 0-5/9\r\ncontent-length: 6\r\n", "secret"), GoOn, 502),
        row("301", json("301 Moved", "location: http://secret/\r\ncontent-length: 0\r\n", ""), GoOn, 502),
        row("304", "HTTP/1.1 304 Secret\r\netag: \"secret\"\r\n\r\n", GoOn, 502),
        row("400", json("400 6412345678", "x-id: 6412345678\r\ncontent-length: 10\r\n", "6412345678"), GoOn, 502),
        row("401", json("401 Secret", "www-authenticate: secret\r\ncontent-length: 0\r\n", ""), GoOn, 502),
        row("404", json("404 6412345678", "x-id: 6412345678\r\ncontent-length: 10\r\n", "6412345678"), GoOn, 404),
        row("429", json("429 Secret", "retry-after: 7\r\ncontent-length: 0\r\n", ""), GoOn, 502),
    ]
}

#[test]
fn what_a_backend_does_wrong_is_one_clean_refusal_and_spoils_nothing_for_the_next() {
    let (heads, answers) = (bad_heads(), bad_answers());
    assert!(heads.len() + answers.len() >= 30);
    let script: Arc<Mutex<Option<Script>>> = Arc::default();
    let next = script.clone();
    let world = impatient().gateway("rate_grace = \"10s\"", "rate_grace = \"1s\"").start(move |exchange| {
        exchange.read_body();
        let Some((bytes, then)) = next.lock().expect("script").take() else { return one_person(exchange) };
        exchange.write(&bytes);
        match then {
            Close => exchange.close_and_wait(),
            Reset => exchange.reset(),
            Hold => exchange.hold(),
            GoOn => {}
            Flood(bytes) => exchange.flood(&bytes.repeat(100), Duration::ZERO),
            Dribble(bytes) => exchange.flood(bytes, Duration::from_millis(20)),
        }
    });
    let mut line = world.alpha();
    let mut asked = 0;
    let pass = post("/rest/x", "hello");
    let rows = heads.iter().flat_map(|row| [(row, lookup()), (row, pass.clone())]);
    for (row, request) in rows.chain(answers.iter().map(|row| (row, lookup()))) {
        let Row { name, bytes, then, status, code } = row;
        *script.lock().expect("script") = Some((bytes.clone(), *then));
        let begun = Instant::now();
        let answer = line.ask(&request);
        let target = request.split(' ').nth(1).unwrap_or_default();
        assert_eq!((answer.status, answer.problem().as_str()), (*status, *code), "{name} {target}: {answer:?}");
        answer.assert_refused(*status, code);
        let shown = format!("{answer:?}{}", answer.text()).to_lowercase();
        assert!(!shown.contains("ecret") && !shown.contains("6412345678"), "{name}: {shown}");
        assert!(answer.values("retry-after").is_empty() && answer.values("location").is_empty(), "{name}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{name} took {:?}", begun.elapsed());
        asked += 1;
        // Nothing of it is left for the next request, and none was sent twice.
        let clean = line.ask(lookup());
        assert_eq!((clean.status, clean.text().as_str()), (200, ONE_PERSON), "after {name}");
        asked += 1;
        assert_eq!(world.backend.count(), asked, "after {name}");
    }
    eventually("nothing is left under way", || {
        series(&world, "dwarpal_backend_requests_in_flight", world.backend.address) == 0.0
    });
    assert_eq!(world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}"), 0.0);
}

#[test]
fn a_passed_answer_that_goes_wrong_after_its_head_is_never_made_to_look_whole() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for (name, bytes, then) in [
        ("a chunk of no size", format!("{chunked}4\r\nhalf\r\nzz\r\n"), Hold),
        ("a chunk without its end", format!("{chunked}4\r\nhalfx"), Hold),
        ("closed in mid-chunk", format!("{chunked}ff\r\nhalf"), Close),
        ("closed between chunks", format!("{chunked}4\r\nhalf\r\n"), Close),
        ("reset in mid-body", "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf".to_owned(), Reset),
        ("silence in mid-body", "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf".to_owned(), Hold),
        ("a body that dribbles", "HTTP/1.1 200 OK\r\ncontent-length: 900000\r\n\r\nhalf".to_owned(), Dribble(b"x")),
        ("a body without end", "HTTP/1.1 200 OK\r\n\r\nhalf".to_owned(), Flood(b"xxxxxxxxxxxxxxxxx")),
    ] {
        let world = Setup::new().gateway("rate_grace = \"10s\"", "rate_grace = \"1s\"").start(move |exchange| {
            exchange.read_body();
            exchange.write(&bytes);
            match then {
                Close => exchange.close_and_wait(),
                Reset => exchange.reset(),
                Hold | GoOn => exchange.hold(),
                Flood(bytes) => exchange.flood(&bytes.repeat(1_000), Duration::ZERO),
                Dribble(bytes) => exchange.flood(bytes, Duration::from_millis(20)),
            }
        });
        let mut line = world.alpha();
        line.send(get("/files/a"));
        let answer = line.answer(false);
        // A reset may overtake what was sent before it.
        let lost = answer.status == 502 && matches!(then, Reset);
        assert!(lost || (answer.status == 200 && !answer.whole), "{name}: {answer:?}");
        assert!(answer.body.len() <= 2 << 20, "{name}: {}", answer.body.len());
    }
}

#[test]
fn what_a_server_says_unasked_is_never_the_next_partners_answer() {
    const POISON: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 23\r\n\r\n{\"people\":[\"poisoned\"]}";
    let length = ONE_PERSON.len();
    let whole =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{ONE_PERSON}");
    let head = "HEAD /files/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
    let table = [
        ("behind an answer", whole.clone(), lookup(), 200),
        (
            "behind a chunked answer",
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{length:x}\r\n{ONE_PERSON}\r\n0\r\n\r\n"
            ),
            lookup(),
            200,
        ),
        ("as the body of an answer to HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n".into(), head, 200),
        ("behind 204", "HTTP/1.1 204 No Content\r\n\r\n".into(), get("/rest/x"), 204),
        ("behind 304", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n".into(), get("/rest/x"), 304),
        ("behind an error that is read", json("404 Not Found", "content-length: 2\r\n", "{}"), lookup(), 404),
    ];
    for (name, first, request, status) in table {
        for together in [true, false] {
            // The poison comes in one piece with the answer, or once the partner has read that.
            let (go, wait) = mpsc::channel::<()>();
            let (written, done) = mpsc::channel::<()>();
            let (wait, first, once) = (Mutex::new(wait), first.clone(), AtomicBool::new(false));
            let world = Setup::new().start(move |exchange| {
                exchange.read_body();
                if once.swap(true, Ordering::SeqCst) {
                    return one_person(exchange);
                }
                if together {
                    exchange.write(format!("{first}{POISON}"));
                } else {
                    exchange.write(&first);
                    let _ = wait.lock().expect("wait").recv_timeout(PATIENCE);
                    exchange.write(POISON);
                }
                written.send(()).expect("sent");
                exchange.hold();
            });
            let mut line = world.alpha();
            assert_eq!(line.ask(&request).status, status, "{name}");
            let _ = go.send(());
            done.recv_timeout(PATIENCE).expect("the server has said it");
            // At once: the kernel has it, and whether the gateway's event loop was told makes no difference.
            for _ in 0..3 {
                let answer = line.ask(lookup());
                assert_eq!((answer.status, answer.text().as_str()), (200, ONE_PERSON), "{name}, together: {together}");
            }
            assert_eq!(world.backend.connections(), 2, "{name}: the poisoned one was not used again");
        }
    }
}

// ---- several servers

/// How many requests each of these got.
fn counts(backends: &[&Backend]) -> Vec<usize> {
    backends.iter().map(|backend| backend.count()).collect()
}

#[test]
fn servers_take_turns_and_a_busy_one_gets_none() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let one = Backend::start(move |exchange| {
        if exchange.request.target() == "/rest/held" {
            let _ = held.lock().expect("held").recv_timeout(PATIENCE);
        }
        one_person(exchange);
    });
    let other = Backend::start(|exchange| {
        if exchange.request.target() == "/rest/held" {
            exchange.answer("200 OK", "x-other: 1\r\n", b"");
        } else {
            one_person(exchange);
        }
    });
    let world = before(&[one.address, other.address]).start(one_person);
    let mut line = world.alpha();
    for _ in 0..20 {
        assert_eq!(line.ask(lookup()).status, 200);
    }
    assert_eq!(counts(&[&one, &other]), [10, 10]);
    // One of two in turn gets to the first server and stays there.
    let mut busy = world.alpha();
    while one.count() == 10 {
        busy.send(get("/rest/held"));
        eventually("it is somewhere", || one.count() + other.count() > 20);
        if one.count() == 10 {
            assert_eq!(busy.answer(false).header("x-other"), "1");
        }
    }
    let (first, second) = (one.count(), other.count());
    eventually("it is counted", || series(&world, "dwarpal_backend_requests_in_flight", one.address) == 1.0);
    for _ in 0..10 {
        assert_eq!(line.ask(lookup()).status, 200);
    }
    assert_eq!(counts(&[&one, &other]), [first, second + 10], "the least busy is asked");
    release.send(()).expect("held");
    assert_eq!(busy.answer(false).status, 200);
    world.backend.assert_untouched();
}

#[test]
fn a_request_that_reached_no_server_is_tried_once_at_another() {
    let (_taken, nobody) = deaf();
    let well = Backend::start(one_person);
    let world = with_keys(before(&[nobody, well.address]), "eject_percent_max = 0").start(one_person);
    let mut line = world.alpha();
    for _ in 0..10 {
        assert_eq!(line.ask(lookup()).status, 200);
        // A body that is passed on has not begun either.
        assert_eq!(line.ask(post("/rest/x", "hello")).text(), "5");
    }
    assert_eq!(well.count(), 20);
    let retries = series(&world, "dwarpal_backend_retries_total", well.address);
    assert!((5.0..=15.0).contains(&retries), "half of them began at the wrong server: {retries}");
    let page = world.metrics();
    let failures = format!(
        "dwarpal_backend_failures_total{{backend=\"registry\",reason=\"backend-unreachable\",server=\"{nobody}\"}}"
    );
    assert!(page.contains(&failures), "{page}");
    // No third try, and none at all where there is no other server.
    let (_taken_too, nobody_too) = deaf();
    for servers in [&[nobody, nobody_too][..], &[nobody]] {
        let world = before(servers).start(one_person);
        world.ask(lookup()).assert_refused(502, "backend-failed");
    }
}

#[test]
fn a_request_that_a_server_may_have_read_is_never_sent_twice() {
    for then in [Close, Reset, Hold] {
        let spoil = move |exchange: &mut Exchange| {
            exchange.read_body();
            match then {
                Close => exchange.close(),
                Reset => exchange.reset(),
                _ => exchange.hold(),
            }
        };
        let (one, other) = (Backend::start(spoil), Backend::start(spoil));
        let setup = before(&[one.address, other.address]);
        let world = setup.gateway("answer_timeout = \"10s\"", "answer_timeout = \"300ms\"").start(one_person);
        let answer = world.ask(lookup());
        assert!(matches!(answer.status, 502 | 504), "{answer:?}");
        assert_eq!(one.count() + other.count(), 1, "{then:?}");
    }
}

#[test]
fn a_server_that_fails_again_and_again_is_left_alone_for_a_while() {
    let spoilt = Arc::new(AtomicBool::new(true));
    let spoils = spoilt.clone();
    let one = Backend::start(move |exchange| {
        exchange.read_body();
        if spoils.load(Ordering::SeqCst) {
            exchange.answer("503 Service Unavailable", "", b"secret");
        } else {
            one_person(exchange);
        }
    });
    let other = Backend::start(one_person);
    // Connections of partners are spread over the workers; what these know of a server is one.
    let setup = before(&[one.address, other.address]).gateway("workers = 1", "workers = 3");
    let world = with_keys(setup, "eject_after = 3\neject_for = \"1s\"").start(one_person);
    let mut lines: Vec<_> = (0..6).map(|_| world.alpha()).collect();
    let mut failed = 0;
    for at in 0..30 {
        let answer = lines[at % 6].ask(lookup());
        if answer.status != 200 {
            answer.assert_refused(502, "backend-failed");
            failed += 1;
        }
    }
    assert_eq!((failed, one.count()), (3, 3), "three in a row, and no more");
    assert_eq!(series(&world, "dwarpal_backend_ejections_total", one.address), 1.0);
    assert_eq!(series(&world, "dwarpal_backend_up", other.address), 1.0);
    spoilt.store(false, Ordering::SeqCst);
    eventually("it is asked again", || lines[0].ask(lookup()).status == 200 && one.count() > 3);
    assert_eq!(series(&world, "dwarpal_backend_up", one.address), 1.0);
}

#[test]
fn a_truncated_body_counts_against_its_server_and_an_error_of_the_request_does_not() {
    let one = Backend::start(|exchange| {
        exchange.read_body();
        exchange.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{");
        exchange.close();
    });
    let other = Backend::start(|exchange| {
        exchange.read_body();
        exchange.answer("500 Internal Server Error", "", b"secret");
    });
    let setup = before(&[one.address, other.address]);
    let world = with_keys(setup, "eject_after = 2\neject_for = \"1h\"").start(one_person);
    let mut line = world.alpha();
    for _ in 0..20 {
        line.ask(lookup()).assert_refused(502, "backend-failed");
    }
    assert_eq!(counts(&[&one, &other]), [2, 18]);
    assert_eq!(series(&world, "dwarpal_backend_up", one.address), 0.0);
    assert_eq!(series(&world, "dwarpal_backend_up", other.address), 1.0);
}

#[test]
fn a_partner_that_takes_all_the_time_takes_no_server_out() {
    let (one, other) = (Backend::start(one_person), Backend::start(one_person));
    let setup = before(&[one.address, other.address]).gateway("request_timeout = \"30s\"", "request_timeout = \"1s\"");
    let world = with_keys(setup, "eject_after = 1\neject_for = \"1h\"").start(one_person);
    for _ in 0..2 {
        let mut line = world.alpha();
        line.send("POST /rest/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhe");
        let answer = line.answer(false);
        assert!(matches!(answer.status, 408 | 504), "{answer:?}");
    }
    assert_eq!(one.count() + other.count(), 2);
    for backend in [&one, &other] {
        assert_eq!(series(&world, "dwarpal_backend_up", backend.address), 1.0);
    }
}

#[test]
fn where_every_server_is_out_all_are_tried() {
    let spoil = |exchange: &mut Exchange| {
        exchange.read_body();
        exchange.answer("503 Service Unavailable", "", b"");
    };
    let (one, other) = (Backend::start(spoil), Backend::start(spoil));
    let setup = before(&[one.address, other.address]);
    let world = with_keys(setup, "eject_after = 1\neject_for = \"1h\"\neject_percent_max = 100").start(one_person);
    let mut line = world.alpha();
    for _ in 0..20 {
        line.ask(lookup()).assert_refused(502, "backend-failed");
    }
    assert_eq!(
        series(&world, "dwarpal_backend_up", one.address) + series(&world, "dwarpal_backend_up", other.address),
        0.0
    );
    assert_eq!(counts(&[&one, &other]), [10, 10]);
}

#[test]
fn health_checks_take_a_server_out_and_bring_it_back() {
    let well = Arc::new(AtomicBool::new(true));
    let checked = Arc::new(AtomicUsize::new(0));
    let (answers, checks) = (well.clone(), checked.clone());
    let asked = Arc::new(AtomicUsize::new(0));
    let got = asked.clone();
    let one = Backend::start(move |exchange| {
        if exchange.request.target() == "/healthz?deep=1" {
            assert_eq!(exchange.request.header("host"), "registry.internal");
            checks.fetch_add(1, Ordering::SeqCst);
            let status = if answers.load(Ordering::SeqCst) { "204 No Content" } else { "200 OK" };
            exchange.write(format!("HTTP/1.1 {status}\r\n\r\n"));
            return exchange.close();
        }
        got.fetch_add(1, Ordering::SeqCst);
        one_person(exchange);
    });
    let other = Backend::start(|exchange| match exchange.request.target() {
        "/healthz?deep=1" => exchange.write("HTTP/1.1 204 No Content\r\n\r\n"),
        _ => one_person(exchange),
    });
    let health = "[backend.health]\npath = \"/healthz?deep=1\"\ninterval = \"300ms\"\ntimeout = \"300ms\"\nhealthy_after = 2\n\
                  unhealthy_after = 2\nstatus = 204";
    let setup = before(&[one.address, other.address]);
    let world = setup
        .gateway(
            "idle_timeout = \"30s\"\n\n[[route]]\nname = \"mobile\"",
            &format!("idle_timeout = \"30s\"\n{health}\n[[route]]\nname = \"mobile\""),
        )
        .start(one_person);
    let mut line = world.alpha();
    let up = || series(&world, "dwarpal_backend_up", one.address);
    for round in 0..2 {
        eventually("it is asked", || line.ask(lookup()).status == 200 && asked.load(Ordering::SeqCst) > 5 * round);
        assert_eq!(up(), 1.0);
        well.store(false, Ordering::SeqCst);
        eventually("it is found unwell", || up() == 0.0);
        assert_eq!(series(&world, "dwarpal_backend_up", other.address), 1.0);
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..10 {
            assert_eq!(line.ask(lookup()).status, 200);
        }
        assert_eq!(asked.load(Ordering::SeqCst), before, "nothing is sent to a server that is unwell");
        well.store(true, Ordering::SeqCst);
        eventually("it is found well", || up() == 1.0);
    }
    let page = world.metrics();
    for result in ["ok", "failed"] {
        let series = format!(
            "dwarpal_backend_checks_total{{backend=\"registry\",result=\"{result}\",server=\"{}\"}}",
            one.address
        );
        assert!(page.contains(&series), "{series}\n{page}");
    }
    assert!(checked.load(Ordering::SeqCst) > 4);
    world.backend.assert_untouched();
}

#[test]
fn checks_go_the_way_of_the_requests() {
    let own = backend_pki();
    let mutual = tls_server(server_config(&own.good, Some(&own.authority), &[b"http/1.1"]));
    let stranger = tls_server(server_config(&own.misnamed, None, &[]));
    let (plain_h2, _) = hyper_server(None);
    let (tls_h2, _) = hyper_server(Some(server_config(&own.good, None, &[b"h2"])));
    let certificate = own_certificate(&own.gateway);
    let anchor = "\n[[route]]\nname = \"mobile\"";
    let health = "[backend.health]\npath = \"/\"\ninterval = \"200ms\"\ntimeout = \"200ms\"\n";
    let h2 = |server| with_keys(before(&[server]), "protocol = \"h2\"");
    for (server, setup, result) in [
        (mutual.address, over_tls(before(&[mutual.address]), &own.authority, &certificate), "ok"),
        (stranger.address, over_tls(before(&[stranger.address]), &own.authority, ""), "failed"),
        (plain_h2, h2(plain_h2), "ok"),
        (tls_h2, over_tls(h2(tls_h2), &own.authority, ""), "ok"),
    ] {
        let world = setup.gateway(anchor, &format!("{health}{anchor}")).start(one_person);
        let checks = |result: &str| {
            let labels = format!("{{backend=\"registry\",result=\"{result}\",server=\"{server}\"}}");
            world.metric(&format!("dwarpal_backend_checks_total{labels}"))
        };
        eventually("it is checked", || checks(result) >= 2.0);
    }
}

#[test]
fn one_server_killed_and_back_under_load_loses_no_request_that_had_not_reached_it() {
    let any = ([127, 0, 0, 1], 0).into();
    let (mut one, other) = (Mortal::born(any), Mortal::born(any));
    let setup = with_keys(before(&[one.address, other.address]), "eject_after = 3\neject_for = \"300ms\"");
    let world = setup.start(one_person);
    let (stop, answers) = (AtomicBool::new(false), AtomicUsize::new(0));
    let failed: Mutex<BTreeSet<String>> = Mutex::default();
    let mut lost = BTreeSet::new();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut line = world.alpha();
                    while !stop.load(Ordering::SeqCst) {
                        let answer = line.ask(lookup());
                        if answer.status == 200 {
                            assert_eq!(answer.text(), ONE_PERSON);
                        } else {
                            answer.assert_refused(502, "backend-failed");
                            failed.lock().expect("failed").insert(answer.header("x-decision-id").to_owned());
                        }
                        answers.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        let more = |count: usize| {
            let from = answers.load(Ordering::SeqCst);
            eventually("requests are answered", || answers.load(Ordering::SeqCst) > from + count);
        };
        for _ in 0..3 {
            more(200);
            assert!(one.received() > 20 && other.received() > 20, "both are asked");
            one.kill();
            more(400);
            lost.append(&mut one.lost());
            one = Mortal::born(one.address);
            eventually("it is asked again", || one.received() > 20);
        }
        stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().expect("a client");
        }
    });
    let failed = failed.into_inner().expect("failed");
    assert!(failed.is_subset(&lost), "lost without need: {:?}", failed.difference(&lost));
    assert!(failed.len() <= 12, "at most what was under way at each death: {}", failed.len());
    assert!(other.lost().is_empty());
    assert!(series(&world, "dwarpal_backend_ejections_total", one.address) >= 1.0, "{}", world.metrics());
}

// ---- too much for a backend

#[test]
fn a_backend_that_fails_too_often_is_left_alone_and_probed() {
    let spoilt = Arc::new(AtomicBool::new(true));
    let spoils = spoilt.clone();
    let circuit =
        "[backend.circuit]\nfailure_percent = 50\nrequests_min = 4\nwindow = \"1min\"\nopen_for = \"500ms\"\n";
    let anchor = "\n[[route]]\nname = \"mobile\"";
    let world = Setup::new().gateway(anchor, &format!("{circuit}{anchor}")).start(move |exchange| {
        exchange.read_body();
        if spoils.load(Ordering::SeqCst) {
            exchange.close();
        } else {
            one_person(exchange);
        }
    });
    let mut line = world.alpha();
    let circuit = || world.metric("dwarpal_backend_circuit{backend=\"registry\"}");
    assert_eq!(circuit(), 0.0);
    for _ in 0..4 {
        line.ask(lookup()).assert_refused(502, "backend-failed");
    }
    for _ in 0..5 {
        let answer = line.ask(lookup());
        answer.assert_refused(503, "unavailable");
        assert_eq!(answer.header("retry-after"), "1");
    }
    assert_eq!((world.backend.count(), circuit()), (4, 2.0), "nobody is sent while it is open");
    assert!(world.metrics().contains("reason=\"backend-circuit-open\""));
    eventually("a probe is sent, and fails", || line.ask(lookup()).status == 502);
    assert_eq!(world.backend.count(), 5, "one probe");
    line.ask(lookup()).assert_refused(503, "unavailable");
    spoilt.store(false, Ordering::SeqCst);
    eventually("a probe is sent, and goes well", || line.ask(lookup()).status == 200);
    assert_eq!((world.backend.count(), circuit()), (6, 0.0));
    for _ in 0..5 {
        assert_eq!(line.ask(lookup()).status, 200);
    }
}

#[test]
fn a_partner_that_trickles_a_body_keeps_no_circuit_half_open() {
    let spoilt = Arc::new(AtomicBool::new(true));
    let spoils = spoilt.clone();
    let circuit =
        "[backend.circuit]\nfailure_percent = 50\nrequests_min = 4\nwindow = \"1min\"\nopen_for = \"500ms\"\n";
    let anchor = "\n[[route]]\nname = \"mobile\"";
    let world = Setup::new().gateway(anchor, &format!("{circuit}{anchor}")).start(move |exchange| {
        exchange.read_body();
        if spoils.load(Ordering::SeqCst) { exchange.close() } else { one_person(exchange) }
    });
    let mut line = world.alpha();
    for _ in 0..4 {
        line.ask(lookup()).assert_refused(502, "backend-failed");
    }
    line.ask(lookup()).assert_refused(503, "unavailable");
    spoilt.store(false, Ordering::SeqCst);
    let trickle = "POST /files/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\nx";
    let mut tricklers = Vec::new();
    let half_open = || world.metric("dwarpal_backend_circuit{backend=\"registry\"}") == 1.0;
    eventually("a trickled body is the probe", || {
        let mut trickler = world.alpha();
        trickler.send(trickle);
        tricklers.push(trickler);
        half_open()
    });
    assert_eq!(line.ask(lookup()).status, 200, "nobody waits for it");
    assert_eq!(world.metric("dwarpal_backend_circuit{backend=\"registry\"}"), 0.0);
}

#[test]
fn so_many_may_wait_for_a_server_and_the_next_is_told_at_once() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let setup =
        Setup::new().gateway("connections_max = 64", "connections_max = 1\npending_max = 1\nconnect_timeout = \"10s\"");
    let world = setup.start(move |exchange| {
        exchange.read_body();
        let _ = held.lock().expect("held").recv_timeout(PATIENCE);
        one_person(exchange);
    });
    let (mut first, mut second) = (world.alpha(), world.alpha());
    first.send(lookup());
    world.backend.requests(1);
    second.send(lookup());
    eventually("it waits", || series(&world, "dwarpal_backend_requests_in_flight", world.backend.address) == 2.0);
    let begun = Instant::now();
    world.ask(lookup()).assert_refused(503, "unavailable");
    assert!(begun.elapsed() < Duration::from_secs(5));
    release.send(()).expect("held");
    assert_eq!(first.answer(false).status, 200);
    release.send(()).expect("held");
    assert_eq!(second.answer(false).status, 200);
}

#[test]
fn an_idle_connection_is_closed_although_nobody_asks() {
    let (closed, gone) = mpsc::channel::<()>();
    let closed = Mutex::new(closed);
    let world = Setup::new()
        .gateway(
            "answer_timeout = \"10s\"\nidle_timeout = \"30s\"",
            "answer_timeout = \"10s\"\nidle_timeout = \"200ms\"",
        )
        .start(move |exchange| {
            one_person(exchange);
            exchange.hold();
            closed.lock().expect("closed").send(()).expect("sent");
        });
    assert_eq!(world.ask(lookup()).status, 200);
    gone.recv_timeout(Duration::from_secs(5)).expect("the gateway closes it");
}

#[test]
fn a_connection_is_not_used_under_other_settings_and_closed_when_its_backend_is_gone() {
    let world = World::new();
    let (gateway, backend) = (world.gateway(), &world.backend);
    let snapshot = gateway.snapshot();
    let now = &snapshot.upstreams[0];
    let mut settings = now.settings.clone();
    settings.host = "other.internal".to_owned();
    let later = Upstream::build(&settings, &State::default().backends, &mut Vec::new());
    let later = Arc::new(later.expect("nothing is wrong with it"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let pools = Pools::of(gateway.clone());
        let until = |count: usize| async move {
            let closed = async {
                while backend.open() != count {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(PATIENCE, closed).await.expect("as many connections as are of use");
        };
        let ask = async |upstream| {
            let mut request = hyper::Request::new(Outgoing::Empty);
            *request.uri_mut() = "/rest/x".parse().expect("a target");
            let deadline = tokio::time::Instant::now() + PATIENCE;
            let sent = pools.send(upstream, request, Upload::default(), deadline).await;
            let (response, lease) = sent.unwrap_or_else(|refusal| panic!("{refusal:?}"));
            http_body_util::BodyExt::collect(response.into_body()).await.expect("a body");
            lease.give_back();
        };
        ask(now).await;
        ask(now).await;
        assert_eq!((backend.connections(), backend.open()), (1, 1));
        ask(&later).await;
        assert_eq!(backend.connections(), 2, "not over the connection of before");
        until(1).await;
        // The snapshot knows nothing of these settings.
        pools.trim(&snapshot);
        until(0).await;
        ask(now).await;
        pools.trim(&snapshot);
        ask(now).await;
        assert_eq!(backend.connections(), 3);
    });
}

// ---- TLS

/// The authority of the backends, and certificates of every kind.
struct BackendPki {
    authority: Authority,
    good: Leaf,
    expired: Leaf,
    misnamed: Leaf,
    gateway: Leaf,
}

fn backend_pki() -> &'static BackendPki {
    static PKI: OnceLock<BackendPki> = OnceLock::new();
    PKI.get_or_init(|| {
        let authority = Authority::root(&pki().directory, "backends");
        let server = "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:registry.internal\n";
        let other = "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:other.internal\n";
        let good = authority.issue("good", &client(server));
        let past = Profile { extensions: server, from: LONG_AGO, until: NOT_SO_LONG_AGO };
        let expired = authority.issue("expired", &past);
        let misnamed = authority.issue("misnamed", &client(other));
        let gateway = authority.client("to-backends", "DNS:gateway.internal");
        BackendPki { authority, good, expired, misnamed, gateway }
    })
}

fn server_config(leaf: &Leaf, clients: Option<&Authority>, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(authority.certificate()).expect("root")).expect("root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("verifier"))
        }
    };
    let chain = vec![CertificateDer::from_pem_file(&leaf.certificate).expect("certificate")];
    let key = PrivateKeyDer::from_pem_file(&leaf.key).expect("key");
    let mut config = builder.with_single_cert(chain, key).expect("certificate and key");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A server that answers every request on a TLS connection with one person; how many requests it got, and the names of
/// the clients' certificates.
struct TlsServer {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
    clients: Arc<Mutex<Vec<usize>>>,
}

fn tls_server(config: Arc<ServerConfig>) -> TlsServer {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let server = TlsServer { address, requests: Arc::default(), clients: Arc::default() };
    let (requests, clients) = (server.requests.clone(), server.clients.clone());
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (config, requests, clients) = (config.clone(), requests.clone(), clients.clone());
            thread::spawn(move || {
                let session = ServerConnection::new(config).expect("session");
                let mut reader = BufReader::new(StreamOwned::new(session, stream));
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) == 0 {
                        return;
                    }
                    if let Some(text) = line.trim_end().strip_prefix("content-length: ") {
                        length = text.parse().expect("a length");
                    }
                    if line != "\r\n" {
                        continue;
                    }
                    let _ = reader.read_exact(&mut vec![0; length]);
                    requests.fetch_add(1, Ordering::SeqCst);
                    let shown = reader.get_ref().conn.peer_certificates().map_or(0, <[_]>::len);
                    clients.lock().expect("clients").push(shown);
                    let length = ONE_PERSON.len();
                    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json";
                    let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{ONE_PERSON}");
                    if reader.get_mut().write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    server
}

/// The keys of `[backend.tls]`.
fn over_tls(setup: Setup, ca: &Authority, more: &str) -> Setup {
    let ca = ca.certificate();
    let tls = format!("[backend.tls]\nca = \"{}\"\nname = \"registry.internal\"\n{more}", ca.display());
    let anchor = "\n[[route]]\nname = \"mobile\"";
    setup.gateway(anchor, &format!("{tls}\n{anchor}"))
}

fn own_certificate(leaf: &Leaf) -> String {
    format!("certificate = \"{}\"\nkey = \"{}\"\n", leaf.certificate.display(), leaf.key.display())
}

#[test]
fn a_server_is_believed_only_with_the_right_certificate() {
    let own = backend_pki();
    for (name, leaf, ca, status) in [
        ("good", &own.good, &own.authority, 200),
        ("expired", &own.expired, &own.authority, 502),
        ("misnamed", &own.misnamed, &own.authority, 502),
        ("of another authority", &own.good, &pki().partners, 502),
    ] {
        let server = tls_server(server_config(leaf, None, &[b"http/1.1"]));
        let world = over_tls(before(&[server.address]), ca, "").start(one_person);
        let mut line = world.alpha();
        for _ in 0..2 {
            let answer = line.ask(lookup());
            assert_eq!(answer.status, status, "{name}: {}", answer.text());
            if status != 200 {
                answer.assert_refused(502, "backend-failed");
            }
        }
        let got = server.requests.load(Ordering::SeqCst);
        assert_eq!(
            got,
            if status == 200 { 2 } else { 0 },
            "{name}: not a byte of a request before the certificate is seen"
        );
        if status != 200 {
            assert!(world.metrics().contains("reason=\"backend-tls\""), "{name}: {}", world.metrics());
        }
    }
    // Servers that speak no TLS, or nothing at all: the handshake has the time of the connection.
    let plain = Backend::start(one_person);
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    for (address, statuses) in [(plain.address, [502, 504]), (silent.local_addr().expect("address"), [504, 504])] {
        let setup = over_tls(before(&[address]), &own.authority, "");
        let setup = setup.gateway("answer_timeout = \"10s\"", "answer_timeout = \"10s\"\nconnect_timeout = \"300ms\"");
        let world = setup.start(one_person);
        let begun = Instant::now();
        let answer = world.ask(lookup());
        assert!(statuses.contains(&answer.status), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    assert_eq!(plain.count(), 0);
}

#[test]
fn a_servers_certificate_is_judged_by_the_gateways_clock() {
    let own = backend_pki();
    let extensions = "extendedKeyUsage = serverAuth\nsubjectAltName = DNS:registry.internal\n";
    let later = own.authority.issue("later", &Profile { extensions, from: NOT_SO_LONG_AGO, until: FAR_AWAY });
    let at = Timestamp::parse("2020-06-01T00:00:00Z").expect("a time");
    for (name, leaf, status) in [("valid then", &own.expired, 200), ("valid later", &later, 502)] {
        let server = tls_server(server_config(leaf, None, &[b"http/1.1"]));
        let setup = over_tls(before(&[server.address]), &own.authority, "");
        let world = setup.start_by(Clock::manual(at), one_person);
        assert_eq!(world.ask(lookup()).status, status, "{name}: {}", world.metrics());
    }
}

#[test]
fn the_gateway_shows_its_own_certificate_where_it_is_asked_for() {
    let own = backend_pki();
    let config = || server_config(&own.good, Some(&own.authority), &[]);
    let server = tls_server(config());
    let world = over_tls(before(&[server.address]), &own.authority, &own_certificate(&own.gateway)).start(one_person);
    assert_eq!(world.ask(lookup()).status, 200);
    assert_eq!(*server.clients.lock().expect("clients"), [1]);
    assert!(
        world.metric("dwarpal_certificate_not_after_timestamp_seconds{holder=\"backend\",name=\"registry\"}") > 0.0
    );
    // Without, or with one that the server does not know.
    for more in [String::new(), own_certificate(&pki().alpha)] {
        let server = tls_server(config());
        let world = over_tls(before(&[server.address]), &own.authority, &more).start(one_person);
        world.ask(lookup()).assert_refused(502, "backend-failed");
        assert_eq!(server.requests.load(Ordering::SeqCst), 0);
        assert!(world.metrics().contains("reason=\"backend-tls\""), "{}", world.metrics());
    }
}

#[test]
fn mistakes_about_a_backend_are_told_before_anything_is_served() {
    let own = backend_pki();
    let directory = tempfile::TempDir::new().expect("directory");
    let ca = own.authority.certificate().display().to_string();
    let tls = |ca: &str, more: &str| format!("[backend.tls]\nca = \"{ca}\"\nname = \"registry.internal\"\n{more}");
    let leaf = own.good.certificate.display().to_string();
    let mixed = Leaf { certificate: own.gateway.certificate.clone(), key: own.good.key.clone() };
    let anchor = "\n[[route]]\nname = \"mobile\"";
    for (tables, complaints) in [
        (tls("nowhere.pem", ""), &["backend.tls.ca", "nowhere.pem", "cannot be read"][..]),
        (tls(&leaf, ""), &["backend.tls.ca", "not a CA's"]),
        (
            tls(&ca, "certificate = \"nowhere.pem\"\nkey = \"nowhere.key\"\n"),
            &["backend.tls.certificate", "backend.tls.key"],
        ),
        (tls(&ca, "certificate = \"nowhere.pem\"\n"), &["backend[0].tls.key", "missing"]),
        (tls(&ca, &own_certificate(&mixed)), &["backend.tls.certificate", "does not belong to backend.tls.key"]),
        (tls(&ca, "verify = false\n"), &["backend[0].tls.verify", "unknown key"]),
        ("[backend.health]\npath = \"health\"\n".to_owned(), &["backend[0].health.path"]),
        (
            "[backend.health]\npath = \"/\"\ninterval = \"1s\"\ntimeout = \"2s\"\n".to_owned(),
            &["health.timeout", "longer than interval"],
        ),
        ("[backend.circuit]\nfailure_percent = 0\n".to_owned(), &["backend[0].circuit.failure_percent"]),
    ] {
        Setup::new().gateway(anchor, &format!("{tables}{anchor}")).write(directory.path(), None);
        let (code, _, stderr) = dwarpal(&["check", "."], directory.path());
        assert_eq!(code, 3, "{tables}\n{stderr}");
        for complaint in complaints {
            assert!(stderr.contains(complaint), "{complaint}\n{stderr}");
        }
    }
    for (keys, complaint) in [
        ("servers = []", "no server"),
        ("servers = [\"127.0.0.1:1\", \"127.0.0.1:1\"]", "the same server twice"),
        ("address = \"127.0.0.1:1\"\nservers = [\"127.0.0.1:2\"]", "remove one of the two"),
        ("address = \"127.0.0.1:1\"\nprotocol = \"h3\"", "it is \"http/1.1\" or \"h2\""),
        ("address = \"127.0.0.1:1\"\neject_percent_max = 101", "eject_percent_max"),
        ("", "missing"),
    ] {
        Setup::new().gateway("address = \"BACKEND\"", keys).write(directory.path(), None);
        let (code, _, stderr) = dwarpal(&["check", "."], directory.path());
        assert!(code == 3 && stderr.contains(complaint), "{keys}\n{stderr}");
    }
    // A warning where identifiers would cross a network in plain text, and none with TLS.
    let warned = |setup: Setup| {
        setup.write(directory.path(), None);
        let (code, _, stderr) = dwarpal(&["check", "."], directory.path());
        assert_eq!(code, 0, "{stderr}");
        stderr.contains("plain text")
    };
    let far = || Setup::new().gateway("address = \"BACKEND\"", "servers = [\"127.0.0.1:1\", \"10.0.0.1:9001\"]");
    assert!(warned(far()));
    assert!(!warned(over_tls(far(), &own.authority, "")));
    assert!(!warned(Setup::new()));
}

// ---- HTTP/2

/// A server of HTTP/2 by the letter: `script` gets each connection after its preface, and the connection's number.
fn h2_server(script: impl Fn(&mut Frames, usize) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let script = Arc::new(script);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let script = script.clone();
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                let _ = stream.set_nodelay(true);
                let mut frames = Frames { stream };
                let mut preface = [0; 24];
                if frames.stream.read_exact(&mut preface).is_ok() {
                    assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
                    script(&mut frames, number);
                }
            });
        }
    });
    address
}

/// The server's end of an HTTP/2 connection.
struct Frames {
    stream: TcpStream,
}

impl Frames {
    fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    fn greet(&mut self) {
        self.send(frame(SETTINGS, 0, 0, &[]));
    }

    /// The next frame's type, flags and stream. `None` when the gateway has ended the connection.
    fn next(&mut self) -> Option<(u8, u8, u32)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        self.stream.read_exact(&mut vec![0; length as usize]).ok()?;
        Some((head[3], head[4], u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]])))
    }

    /// The next request's stream, as soon as its head is there.
    fn head(&mut self) -> Option<u32> {
        let head = std::iter::from_fn(|| self.next()).find(|(kind, _, _)| *kind == HEADERS);
        head.map(|(_, _, stream)| stream)
    }

    /// The next request's stream, once its body is over.
    fn request(&mut self) -> Option<u32> {
        let ends = |(kind, flags, _): &(u8, u8, u32)| matches!(*kind, HEADERS | DATA) && flags & END_STREAM != 0;
        std::iter::from_fn(|| self.next()).find(ends).map(|(_, _, stream)| stream)
    }

    fn answer(&mut self, stream: u32) {
        let fields = [(":status", "200"), ("content-type", "application/json"), ("content-length", LENGTH)];
        self.send(frame(HEADERS, END_HEADERS, stream, &frames::block(&fields)));
        self.send(frame(DATA, END_STREAM, stream, ONE_PERSON.as_bytes()));
    }

    fn reset(&mut self, stream: u32, code: u8) {
        self.send(frame(RESET, 0, stream, &[0, 0, 0, code]));
    }

    /// This was the last stream that was looked at.
    fn go_away(&mut self, last: u8, code: u8) {
        self.send(frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, code]));
    }

    /// Answers everything from now on.
    fn serve(&mut self) {
        while let Some(stream) = self.request() {
            self.answer(stream);
        }
    }
}

/// Of the one person's body.
const LENGTH: &str = "50";
const REFUSED_STREAM: u8 = 7;
const INTERNAL_ERROR: u8 = 2;

fn h2_before(servers: &[SocketAddr]) -> Setup {
    with_keys(before(servers), "protocol = \"h2\"").gateway("answer_timeout = \"10s\"", "answer_timeout = \"500ms\"")
}

#[test]
fn requests_share_one_http2_connection_and_are_answered_in_any_order() {
    assert_eq!(ONE_PERSON.len().to_string(), LENGTH);
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let server = h2_server(move |frames, _| {
        count.fetch_add(1, Ordering::SeqCst);
        frames.greet();
        if let Some(first) = frames.request() {
            frames.answer(first);
        }
        // Three are open at the same time, and the last is answered first.
        let mut open: Vec<u32> = (0..3).map_while(|_| frames.request()).collect();
        while let Some(stream) = open.pop() {
            frames.answer(stream);
        }
        frames.serve();
    });
    let world = h2_before(&[server]).start(one_person);
    assert_eq!(world.ask(lookup()).text(), ONE_PERSON);
    let mut lines: Vec<_> = (0..3).map(|_| world.alpha()).collect();
    lines.iter_mut().for_each(|line| line.send(lookup()));
    for line in &mut lines {
        assert_eq!(line.answer(false).text(), ONE_PERSON);
    }
    assert_eq!(world.ask(get("/rest/x")).text(), ONE_PERSON);
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[test]
fn a_request_that_an_http2_server_has_not_touched_is_tried_once_more_and_no_other() {
    type Answers = fn(&mut Frames, usize);
    let table: [(&str, Answers, u16); 9] = [
        (
            "a stream refused",
            |frames, _| {
                if let Some(stream) = frames.request() {
                    frames.reset(stream, REFUSED_STREAM);
                }
                frames.serve();
            },
            200,
        ),
        (
            "streams refused again and again",
            |frames, _| {
                while let Some(stream) = frames.request() {
                    frames.reset(stream, REFUSED_STREAM);
                }
            },
            502,
        ),
        (
            "GOAWAY before the stream",
            |frames, number| {
                if number > 0 {
                    return frames.serve();
                }
                frames.request();
                frames.go_away(0, 0);
                while frames.request().is_some() {}
            },
            200,
        ),
        (
            "GOAWAY with the stream, and the end",
            |frames, number| {
                if number > 0 {
                    return frames.serve();
                }
                frames.request();
                frames.go_away(1, 0);
            },
            502,
        ),
        (
            "GOAWAY with the stream, and its answer",
            |frames, number| {
                if number > 0 {
                    return frames.serve();
                }
                if let Some(stream) = frames.request() {
                    frames.go_away(1, 0);
                    frames.answer(stream);
                }
            },
            200,
        ),
        (
            "a stream reset",
            |frames, _| {
                if let Some(stream) = frames.request() {
                    frames.reset(stream, INTERNAL_ERROR);
                }
                frames.serve();
            },
            502,
        ),
        (
            "the end of the connection",
            |frames, number| {
                if number > 0 {
                    return frames.serve();
                }
                frames.request();
            },
            502,
        ),
        (
            "a broken rule",
            |frames, number| {
                if number > 0 {
                    return frames.serve();
                }
                frames.request();
                frames.send(frame(DATA, END_STREAM, 1, b"secret"));
                while frames.request().is_some() {}
            },
            502,
        ),
        (
            "a body of another length",
            |frames, _| {
                if let Some(stream) = frames.request() {
                    let fields = [(":status", "200"), ("content-type", "application/json"), ("content-length", "5")];
                    frames.send(frame(HEADERS, END_HEADERS, stream, &frames::block(&fields)));
                    frames.send(frame(DATA, END_STREAM, stream, ONE_PERSON.as_bytes()));
                }
                frames.serve();
            },
            502,
        ),
    ];
    for (name, script, status) in table {
        let server = h2_server(move |frames, number| {
            frames.greet();
            script(frames, number);
        });
        let world = h2_before(&[server]).start(one_person);
        let mut line = world.alpha();
        let answer = line.ask(lookup());
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        if status == 200 {
            assert_eq!(answer.text(), ONE_PERSON, "{name}");
        } else {
            answer.assert_refused(status, "backend-failed");
        }
        if name != "streams refused again and again" {
            assert_eq!(line.ask(lookup()).status, 200, "after {name}");
        }
    }
}

#[test]
fn an_http2_server_that_renews_its_connections_under_load_loses_no_request() {
    // After a hundred answers it takes no more on this connection, whatever is on its way already.
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let server = h2_server(move |frames, _| {
        count.fetch_add(1, Ordering::SeqCst);
        frames.greet();
        let mut last = 0;
        for _ in 0..100 {
            let Some(stream) = frames.request() else { return };
            frames.answer(stream);
            last = stream;
        }
        frames.go_away(u8::try_from(last).expect("a small number"), 0);
        while frames.request().is_some() {}
    });
    let world =
        h2_before(&[server]).gateway("answer_timeout = \"500ms\"", "answer_timeout = \"10s\"").start(one_person);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut line = world.alpha();
                for at in 0..200 {
                    let answer = line.ask(lookup());
                    assert_eq!((answer.status, answer.text().as_str()), (200, ONE_PERSON), "request {at}");
                }
            });
        }
    });
    let connections = connections.load(Ordering::SeqCst);
    assert!((8..=16).contains(&connections), "{connections}");
}

#[test]
fn an_http2_server_that_misbehaves_is_cut_off_in_time() {
    type Misbehaves = fn(&mut Frames);
    let table: [(&str, Misbehaves, u16, &str); 7] = [
        ("no word, not even SETTINGS", |frames| while frames.request().is_some() {}, 504, "backend-timeout"),
        (
            "SETTINGS and then nothing",
            |frames| {
                frames.greet();
                while frames.request().is_some() {}
            },
            504,
            "backend-timeout",
        ),
        (
            "HTTP/1.1",
            |frames| {
                frames.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 6\r\n\r\nsecret");
                while frames.request().is_some() {}
            },
            502,
            "backend-failed",
        ),
        ("the end", |_| {}, 502, "backend-failed"),
        (
            "interim answers without end",
            |frames| {
                frames.greet();
                if let Some(stream) = frames.request() {
                    let fields = frames::block(&[(":status", "103"), ("link", "</secret>")]);
                    while frames.send(frame(HEADERS, END_HEADERS, stream, &fields)) {}
                }
            },
            502,
            "backend-failed",
        ),
        (
            "settings without end",
            |frames| {
                frames.greet();
                frames.request();
                while frames.send(frame(SETTINGS, 0, 0, &[])) {}
            },
            502,
            "backend-failed",
        ),
        (
            "a status of 101",
            |frames| {
                frames.greet();
                if let Some(stream) = frames.request() {
                    frames.send(frame(HEADERS, END_HEADERS, stream, &frames::block(&[(":status", "101")])));
                }
                while frames.request().is_some() {}
            },
            504,
            "backend-timeout",
        ),
    ];
    for (name, script, status, code) in table {
        let server = h2_server(move |frames, _| script(frames));
        let world = h2_before(&[server]).start(one_person);
        let begun = Instant::now();
        let answer = world.ask(lookup());
        // A flood may also be cut off by the time that is left.
        let flood = name.ends_with("without end") && answer.status == 504;
        assert!(flood || (answer.status, answer.problem().as_str()) == (status, code), "{name}: {answer:?}");
        assert!(!format!("{answer:?}{}", answer.text()).contains("secret"), "{name}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{name} took {:?}", begun.elapsed());
    }
}

#[test]
fn an_http2_connection_on_which_a_request_failed_gets_no_other() {
    // The first connection hears everything and says nothing; those after it answer.
    let server = h2_server(|frames, number| {
        frames.greet();
        if number == 0 { while frames.request().is_some() {} } else { frames.serve() }
    });
    let world = h2_before(&[server]).start(one_person);
    let mut line = world.alpha();
    line.ask(lookup()).assert_refused(504, "backend-timeout");
    for _ in 0..3 {
        assert_eq!(line.ask(lookup()).text(), ONE_PERSON);
    }
}

#[test]
fn an_http2_server_that_answers_and_does_not_read_on_keeps_no_body() {
    let (closed, gone) = mpsc::channel();
    let closed = Mutex::new(closed);
    let server = h2_server(move |frames, number| {
        frames.greet();
        if number > 0 {
            return frames.serve();
        }
        // No window is ever opened for the body.
        let stream = frames.head().expect("a request");
        let fields = [(":status", "409"), ("content-length", "0")];
        frames.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &frames::block(&fields)));
        let _ = std::io::copy(&mut frames.stream, &mut std::io::sink());
        closed.lock().expect("closed").send(()).expect("sent");
    });
    let world = h2_before(&[server]).start(one_person);
    let mut line = world.alpha();
    line.send("POST /files/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000000\r\n\r\n");
    line.send(vec![b'x'; 200_000]);
    assert_eq!(line.answer(false).status, 409);
    gone.recv_timeout(Duration::from_secs(10)).expect("the gateway ends the connection");
    assert_eq!(world.ask(lookup()).text(), ONE_PERSON);
}

/// What an HTTP/2 server of another make understood of a request.
type Understood = (String, Option<String>, Vec<String>);

/// hyper's own server, in plain text or over TLS; answers with one person.
fn hyper_server(config: Option<Arc<ServerConfig>>) -> (SocketAddr, Arc<Mutex<Vec<Understood>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    let address = listener.local_addr().expect("address");
    let understood: Arc<Mutex<Vec<Understood>>> = Arc::default();
    let seen = understood.clone();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("listener");
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, config) = (seen.clone(), config.clone());
                let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                    let names = request.headers().keys().map(ToString::to_string).collect();
                    let authority = request.uri().authority().map(ToString::to_string);
                    seen.lock().expect("seen").push((request.uri().path().to_owned(), authority, names));
                    async move {
                        let body = http_body_util::Full::new(hyper::body::Bytes::from(ONE_PERSON));
                        hyper::Response::builder().header("content-type", "application/json").body(body)
                    }
                });
                tokio::spawn(async move {
                    let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                    match config {
                        None => _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await,
                        Some(config) => {
                            let accepted = tokio_rustls::TlsAcceptor::from(config).accept(stream).await;
                            let Ok(stream) = accepted else { return };
                            _ = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
                        }
                    }
                });
            }
        });
    });
    (address, understood)
}

#[test]
fn an_http2_server_understands_the_request_in_plain_text_and_over_tls() {
    let own = backend_pki();
    let plain = hyper_server(None);
    let tls = hyper_server(Some(server_config(&own.good, None, &[b"h2"])));
    let worlds =
        [h2_before(&[plain.0]).start(one_person), over_tls(h2_before(&[tls.0]), &own.authority, "").start(one_person)];
    for (world, understood) in worlds.iter().zip([plain.1, tls.1]) {
        let mut line = world.alpha();
        assert_eq!(line.ask(lookup()).text(), ONE_PERSON);
        assert_eq!(line.ask(post("/rest/x?a=b", "hello")).status, 400, "undeclared");
        assert_eq!(line.ask(post("/rest/x", "hello")).text(), ONE_PERSON);
        let understood = understood.lock().expect("seen");
        let [(path, authority, names), (passed, _, _)] = &understood[..] else { panic!("{understood:?}") };
        assert_eq!((path.as_str(), passed.as_str()), ("/v1/mobile", "/rest/x"));
        assert_eq!(authority.as_deref(), Some("registry.internal"));
        assert!(names.iter().any(|name| name == "x-partner") && !names.iter().any(|name| name == "host"), "{names:?}");
    }
    // A server that agrees to HTTP/1.1 only, or to nothing, is not sent HTTP/2.
    for protocols in [&[b"http/1.1".as_slice()][..], &[]] {
        let server = tls_server(server_config(&own.good, None, protocols));
        let world = over_tls(h2_before(&[server.address]), &own.authority, "").start(one_person);
        world.ask(lookup()).assert_refused(502, "backend-failed");
        assert_eq!(server.requests.load(Ordering::SeqCst), 0);
    }
}
