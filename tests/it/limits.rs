//! Does every bound hold, on the wire and on the command line? Connections, rates, times, floods, draining.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::world::backend::one_person;
use crate::world::frames::{self, ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RESET, frame};
use crate::world::pki::pki;
use crate::world::{
    ALPHA, ALPHA_TOO, BETA, GAMMA, NOWHERE, PATIENCE, Setup, World, dwarpal, eventually, line, package, read_to_close,
};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";

// ---- connections

/// Connects, and gets not a byte of TLS before the connection ends.
#[track_caller]
fn assert_turned_away(world: &World, source: std::net::Ipv4Addr) {
    let mut stream = line::tcp(source, world.address).expect("the kernel accepts");
    // Closing upon the unread hello may reset the connection.
    let _ = std::io::Write::write_all(&mut stream, &[22, 3, 1, 0, 1, 1]);
    match read_to_close(&mut stream) {
        Ok(bytes) => assert_eq!(bytes, b"", "TLS spoken to {source}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!("dwarpal_connections_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn an_address_in_nobodys_network_is_turned_away_before_tls() {
    let world = World::new();
    assert_turned_away(&world, NOWHERE);
    eventually("it is counted", || refused(&world, "network-unknown") == 1.0);
    assert_eq!(world.line(&pki().alpha, ALPHA_TOO).ask(WHOAMI).status, 200);
    // Some partner's network, but not this one's: that needs the certificate.
    world.line(&pki().alpha, BETA).ask(WHOAMI).assert_refused(403, "network-not-allowed");
}

#[test]
fn a_network_that_expired_lets_nobody_in() {
    let expiry = "cidr = \"127.0.0.4/32\"\nexpires = 2021-06-30";
    let world = Setup::new().partner("gamma", "cidr = \"127.0.0.4/32\"", expiry).start(one_person);
    assert_turned_away(&world, GAMMA);
    assert_eq!(world.ask(WHOAMI).status, 200);
}

#[test]
fn connections_are_capped_and_places_come_back() {
    let world = Setup::new().gateway("connections_max = 1000", "connections_max = 2").start(one_person);
    let (mut first, mut second) = (world.alpha(), world.line(&pki().alpha, ALPHA_TOO));
    assert_turned_away(&world, BETA);
    eventually("it is counted", || refused(&world, "connections-max") == 1.0);
    assert_eq!((first.ask(WHOAMI).status, second.ask(WHOAMI).status), (200, 200));
    assert_eq!(world.metric("dwarpal_connections"), 2.0);
    first.hang_up();
    eventually("a place comes back", || world.metric("dwarpal_connections") == 1.0);
    assert_eq!(world.alpha().ask(WHOAMI).status, 200);
}

#[test]
fn connections_of_one_address_are_capped() {
    let setup = Setup::new().gateway("connections_per_source_max = 500", "connections_per_source_max = 1");
    let world = setup.start(one_person);
    let mut first = world.alpha();
    assert_turned_away(&world, ALPHA);
    eventually("it is counted", || refused(&world, "connections-per-source-max") == 1.0);
    assert_eq!(world.line(&pki().alpha, ALPHA_TOO).ask(WHOAMI).status, 200);
    assert_eq!(first.ask(WHOAMI).status, 200);
}

#[test]
fn connections_of_one_partner_are_capped() {
    let setup = Setup::new().partner("alpha", "connections_max = 1000", "connections_max = 1");
    let world = setup.start(one_person);
    let mut first = world.alpha();
    assert_eq!(first.ask(WHOAMI).status, 200);
    let mut second = world.line(&pki().alpha, ALPHA_TOO);
    let refused = second.ask(REST);
    refused.assert_refused(429, "too-many-connections");
    assert_eq!(refused.header("connection"), "close");
    second.assert_closed();
    assert_eq!(world.line(&pki().gamma, GAMMA).ask(REST).status, 200, "another partner has its own places");
    assert_eq!(first.ask(REST).status, 200);
    first.hang_up();
    eventually("the place comes back", || world.ask(REST).status == 200);
    assert!(world.metrics().contains("reason=\"connections-partner\""));
}

#[test]
fn a_stolen_certificate_takes_none_of_its_partners_places() {
    let setup = Setup::new().partner("alpha", "connections_max = 1000", "connections_max = 1");
    let world = setup.start(one_person);
    // From another partner's network it gets refusals, and no connection to keep.
    for _ in 0..3 {
        let mut stolen = world.line(&pki().alpha, BETA);
        let refused = stolen.ask(WHOAMI);
        refused.assert_refused(403, "network-not-allowed");
        assert_eq!(refused.header("connection"), "close");
        assert_eq!(world.ask(WHOAMI).status, 200);
        eventually("the place comes back", || world.metric("dwarpal_partner_connections{partner=\"alpha\"}") == 0.0);
    }
    let mut idle = world.line(&pki().alpha, BETA);
    assert_eq!(world.ask(WHOAMI).status, 200, "a connection from elsewhere that asks nothing takes no place either");
    idle.ask(WHOAMI).assert_refused(403, "network-not-allowed");
}

#[test]
fn one_address_cannot_hold_every_handshake() {
    let limits = "handshake_timeout = \"10s\"\nhandshakes_max = 4\nhandshakes_per_source_max = 2";
    let mut world = Setup::new().gateway("handshake_timeout = \"10s\"", limits).spawn(one_person);
    let begin = |source| line::tcp(source, world.address).expect("the kernel accepts");
    let mut stalled: Vec<_> = (0..2).map(|_| begin(BETA)).collect();
    // The third of them is closed without a word; others go on.
    let mut third = begin(BETA);
    assert_eq!(read_to_close(&mut third).unwrap_or_default(), b"");
    eventually("it is counted", || world.metric("dwarpal_handshakes_total{result=\"busy\"}") == 1.0);
    assert_eq!(world.line(&pki().alpha, ALPHA).ask(WHOAMI).status, 200);
    let logged = world.process().logged(|line| line["message"] == "handshake refused");
    assert_eq!((&logged["reason"], &logged["source"]), (&"busy".into(), &BETA.to_string().into()));
    stalled.clear();
    eventually("their places come back", || {
        let line = line::attempt(
            world.address,
            Some(&pki().beta),
            BETA,
            b"http/1.1",
            rustls::crypto::aws_lc_rs::default_provider(),
        );
        line.is_ok_and(|mut line| line.ask(WHOAMI).status == 200)
    });
}

// ---- rates

#[test]
fn rates_are_exact_over_all_workers() {
    let world = Setup::new()
        .gateway("workers = 1", "workers = 2")
        .partner("alpha", "requests = \"100000/s\"", "requests = \"1/h burst 40\"")
        .start(one_person);
    let answered = std::thread::scope(|scope| {
        let ask = || {
            let mut line = world.alpha();
            (0..10).map(|_| line.ask(REST).status).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("answers")).collect::<Vec<_>>()
    });
    let count = |status| answered.iter().filter(|other| **other == status).count();
    assert_eq!((count(200), count(429), world.backend.count()), (40, 40, 40));
    assert_eq!(world.line(&pki().gamma, GAMMA).ask(REST).status, 200, "another partner has a rate of its own");
}

#[test]
fn each_rate_has_its_own_bucket() {
    let asked = |setup: Setup, sources: &[std::net::Ipv4Addr], request: &str| {
        let world = setup.start(one_person);
        sources.iter().map(|source| world.line(&pki().alpha, *source).ask(request).status).collect::<Vec<_>>()
    };
    let source = Setup::new().partner("alpha", "source = \"100000/s\"", "source = \"1/h\"");
    assert_eq!(asked(source, &[ALPHA, ALPHA, ALPHA_TOO, ALPHA_TOO], REST), [200, 429, 200, 429]);
    let route = || Setup::new().partner("alpha", "route = \"rest\"\n", "route = \"rest\"\nrequests = \"1/h\"\n");
    assert_eq!(asked(route(), &[ALPHA, ALPHA_TOO], REST), [200, 429]);
    assert_eq!(asked(route(), &[ALPHA, ALPHA], WHOAMI), [200, 200]);
    // What is refused for want of a grant is paid for too.
    let partner = Setup::new().partner("alpha", "requests = \"100000/s\"", "requests = \"1/h burst 2\"");
    assert_eq!(asked(partner, &[ALPHA; 3], &REST.replace("rest", "nowhere")), [403, 403, 429]);
}

#[test]
fn a_rate_is_charged_before_the_body_is_read() {
    let setup = Setup::new().partner("alpha", "requests = \"100000/s\"", "requests = \"1/h\"");
    let world = setup.start(one_person);
    assert_eq!(world.ask(WHOAMI).status, 200);
    for fields in ["content-length: 3000", "transfer-encoding: chunked", "content-length: 3000\r\nexpect: 100-continue"]
    {
        // Not a byte of the body is ever sent.
        let head = format!(
            "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{fields}\r\n\r\n"
        );
        let refused = world.ask(head);
        assert_eq!(refused.interim, [0; 0]);
        refused.assert_refused(429, "rate-limited");
        assert_eq!(refused.header("retry-after").parse::<u64>().map(|wait| wait.div_ceil(60)), Ok(60));
    }
    world.backend.assert_untouched();
}

// ---- times

#[test]
fn a_head_that_dribbles_in_is_cut_off() {
    let setup = Setup::new().gateway("head_timeout = \"10s\"", "head_timeout = \"1s\"");
    let world = setup.start(one_person);
    let begun = Instant::now();
    let mut line = world.alpha();
    line.send("GET /rest/x HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    line.dribble(b'x');
    assert!(begun.elapsed() > Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    // Between requests as well, where the idle timeout is long.
    let mut line = world.alpha();
    assert_eq!(line.ask(WHOAMI).status, 200);
    line.send("GET /");
    line.dribble(b'x');
    // And one that never says anything.
    world.alpha().assert_closed();
    let cut = "dwarpal_connections_cut_total{reason=\"head-timeout\"}";
    eventually("they are counted", || world.metric(cut) == 3.0);
    world.backend.assert_untouched();
}

#[test]
fn an_idle_connection_ends_in_peace() {
    for protocol in [&b"http/1.1"[..], b"h2"] {
        let setup = Setup::new().gateway("idle_timeout = \"30s\"\nrequest", "idle_timeout = \"1s\"\nrequest");
        let world = setup.start(one_person);
        let begun = Instant::now();
        if protocol == b"h2" {
            let mut line = frames::connect(&world, &pki().alpha, ALPHA);
            line.send(frames::request(1, "GET", "/.well-known/dwarpal/whoami"));
            let mut kinds = Vec::new();
            while let Some((kind, flags, _, payload)) = frames::next(&mut line) {
                kinds.push(kind);
                if (kind, flags) == (frames::PING, 0) {
                    let _ = line.try_send(frame(frames::PING, ACK, 0, &payload));
                }
            }
            assert!(kinds.contains(&HEADERS) && kinds.contains(&frames::GOAWAY), "{kinds:?}");
        } else {
            let mut line = world.alpha();
            assert_eq!(line.ask(WHOAMI).status, 200);
            line.assert_closed();
        }
        assert!((Duration::from_secs(1)..Duration::from_secs(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_body_that_comes_too_slowly_is_a_408() {
    let world = Setup::new()
        .gateway("rate_min = \"256B\"", "rate_min = \"1KiB\"")
        .gateway("rate_grace = \"10s\"", "rate_grace = \"1s\"")
        .start(one_person);
    for (target, framing) in [
        ("/v1/mobile", "content-length: 1000\r\n\r\n{\"mobile\":"),
        ("/files/a", "content-length: 1000\r\n\r\nhello"),
        ("/rest/a", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ] {
        let begun = Instant::now();
        let mut line = world.alpha();
        line.send(format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{framing}"));
        let refused = line.answer(false);
        refused.assert_refused(408, "body-timeout");
        assert_eq!(refused.header("connection"), "close");
        line.assert_closed();
        assert!((Duration::from_secs(1)..Duration::from_secs(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_request_has_a_longest_life() {
    let (_release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let setup = Setup::new().gateway("request_timeout = \"30s\"", "request_timeout = \"1s\"");
    let world = setup.start(move |exchange| {
        exchange.read_body();
        let _ = held.lock().expect("held").recv_timeout(Duration::from_secs(10));
    });
    let begun = Instant::now();
    world.ask(REST).assert_refused(504, "backend-timeout");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
}

// ---- one reading only

#[test]
fn what_two_parsers_could_read_in_two_ways_is_refused_and_ends_the_connection() {
    const POST: &str = "POST /rest/x HTTP/1.1\r\nhost: localhost\r\n";
    let smuggled = "GET /rest/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let body = |fields: &str, body: &str| format!("{POST}{fields}\r\n{body}");
    let world = World::new();
    for (name, request) in [
        ("length and coding", body("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")),
        ("coding and length", body("transfer-encoding: chunked\r\ncontent-length: 5\r\n", "0\r\n\r\n")),
        ("two lengths", body("content-length: 5\r\ncontent-length: 6\r\n", "hello")),
        ("the same length twice", body("content-length: 5\r\ncontent-length: 5\r\n", "hello")),
        ("a list of lengths", body("content-length: 5, 5\r\n", "hello")),
        ("a signed length", body("content-length: +5\r\n", "hello")),
        ("a hexadecimal length", body("content-length: 0x5\r\n", "hello")),
        ("an underscored length", body("content_length: 5\r\n", "")),
        ("an underscored coding", body("transfer_encoding: chunked\r\n", "")),
        ("two codings", body("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")),
        ("another coding", body("transfer-encoding: gzip, chunked\r\n", "0\r\n\r\n")),
        ("identity", body("transfer-encoding: identity\r\ncontent-length: 5\r\n", "hello")),
        ("an obscured coding", body("transfer-encoding: xchunked\r\n", "0\r\n\r\n")),
        ("a space before the colon", body("transfer-encoding : chunked\r\n", "0\r\n\r\n")),
        ("a folded line", body("x-a: b\r\n transfer-encoding: chunked\r\n", "0\r\n\r\n")),
        ("a tab-folded line", body("x-a: b\r\n\tc\r\n", "")),
        ("a bare line feed", body("x-a: b\ntransfer-encoding: chunked\r\n", "0\r\n\r\n")),
        ("line feeds only", "GET /rest/x HTTP/1.1\nhost: localhost\n\n".to_owned()),
        ("a bare carriage return", body("x-a: b\rtransfer-encoding: chunked\r\n", "0\r\n\r\n")),
        ("a zero byte", body("x-a: b\0c\r\n", "")),
        ("no colon", body("x-a\r\n", "")),
        ("an empty name", body(": b\r\n", "")),
        ("two hosts", body("host: localhost\r\n", "")),
        ("no host", "GET /rest/x HTTP/1.1\r\n\r\n".to_owned()),
        (
            "coding in 1.0",
            "POST /rest/x HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
        ),
        ("another version", "GET /rest/x HTTP/1.2\r\nhost: localhost\r\n\r\n".to_owned()),
        ("no version", "GET /rest/x\r\n\r\n".to_owned()),
        ("an absolute target", "GET http://localhost/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("another's absolute target", "GET https://elsewhere/rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("two spaces", "GET  /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("a leading empty line", "\r\nGET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("a small method", "get /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("bytes beyond ASCII", "GET /rest/é HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned()),
        ("HTTP/2 without its ALPN", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
    ] {
        let mut line = world.alpha();
        let answer = line.ask(format!("{request}{smuggled}"));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        answer.assert_refused(400, "bad-request");
        assert_eq!(answer.header("connection"), "close", "{name}");
        line.assert_closed();
    }
    world.backend.assert_untouched();
}

#[test]
fn a_chunked_body_has_one_reading_too() {
    let head = "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                transfer-encoding: chunked\r\n\r\n";
    let json = r#"{"mobile":"6412345678","purpose":"care"}"#;
    let size = format!("{:x}", json.len());
    let world = World::new();
    for (name, body) in [
        ("an extension", format!("{size};a=b\r\n{json}\r\n0\r\n\r\n")),
        ("a bare line feed", format!("{size}\n{json}\r\n0\r\n\r\n")),
        ("a size of seventeen digits", format!("{:0>17}\r\n{json}\r\n0\r\n\r\n", size)),
        ("a sign", format!("+{size}\r\n{json}\r\n0\r\n\r\n")),
        ("a prefix", format!("0x{size}\r\n{json}\r\n0\r\n\r\n")),
        ("a space", format!("{size} \r\n{json}\r\n0\r\n\r\n")),
        ("no end of the chunk", format!("{size}\r\n{json}0\r\n\r\n")),
        ("framing in trailers", format!("{size}\r\n{json}\r\n0\r\ncontent-length: 5\r\n\r\n")),
    ] {
        let mut line = world.alpha();
        let answer = line.ask(format!("{head}{body}"));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        answer.assert_refused(400, "bad-request");
        line.assert_closed();
    }
    world.backend.assert_untouched();
    assert_eq!(world.ask(format!("{head}{size}\r\n{json}\r\n0\r\n\r\n")).status, 200);
}

#[test]
fn a_head_has_a_size() {
    let world = World::new();
    let fields = |count: usize| (0..count).map(|at| format!("x-{at}: a\r\n")).collect::<String>();
    let get = |target: &str, fields: &str| format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
    let long = "x".repeat(5_000);
    assert_eq!(world.ask(get("/rest/x", &fields(63))).status, 200);
    for request in [
        get("/rest/x", &fields(64)),
        get("/rest/x", &format!("x-a: {}\r\n", "x".repeat(17_000))),
        get(&format!("/rest/{long}"), ""),
        get("/rest/x", &format!("{long}: a\r\n")),
    ] {
        world.ask(request).assert_refused(431, "head-too-large");
    }
    assert_eq!(world.backend.count(), 1);
}

// ---- HTTP/2 floods

#[test]
fn floods_of_frames_are_cut_off_while_others_are_served() {
    let block =
        frames::block(&[(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/x")]);
    let world = World::new();
    let mut other = world.alpha();
    let mut other_h2 = frames::connect(&world, &pki().gamma, GAMMA);
    let many = |frame: Vec<u8>| frame.repeat(3_000);
    let opened = || {
        frame(
            HEADERS,
            END_HEADERS,
            1,
            &frames::block(&[
                (":method", "POST"),
                (":scheme", "https"),
                (":authority", "localhost"),
                (":path", "/rest/x"),
            ]),
        )
    };
    let unended = || [frame(HEADERS, END_STREAM, 1, &block), many(frame(CONTINUATION, 0, 1, &[]))].concat();
    let rapid_reset = || {
        let pair = |at: u32| {
            [frames::request(at * 2 + 1, "GET", "/rest/x"), frame(RESET, 0, at * 2 + 1, &[0, 0, 0, 8])].concat()
        };
        (0..1_000).flat_map(pair).collect::<Vec<_>>()
    };
    for (flood, reasons) in [
        (many(frame(frames::SETTINGS, 0, 0, &[])), &["settings-flood"][..]),
        (many(frame(frames::PING, 0, 0, &[0; 8])), &["ping-flood"]),
        (many(frame(frames::PING, ACK, 0, &[0; 8])), &["ack-flood"]),
        (many(frame(frames::PRIORITY, 0, 1, &[0, 0, 0, 0, 1])), &["priority-flood"]),
        (many(frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])), &["window-update-flood"]),
        (many(frame(0x77, 0, 0, &[])), &["other-frame-flood"]),
        ([opened(), many(frame(DATA, 0, 1, &[]))].concat(), &["empty-data-flood"]),
        (unended(), &["too-many-continuations"]),
        (
            [
                frame(HEADERS, END_STREAM, 1, &[0; 16_000]),
                frame(CONTINUATION, 0, 1, &[0; 16_384]),
                frame(CONTINUATION, 0, 1, &[0; 16_384]),
            ]
            .concat(),
            &["header-block-too-large"],
        ),
        (vec![0xff; 9], &["frame-too-long"]),
        (rapid_reset(), &["reset-flood"]),
    ] {
        let mut line = frames::connect(&world, &pki().alpha, ALPHA);
        // The gateway may close before it was all sent.
        let _ = line.try_send(flood);
        line.until_closed();
        let counted =
            |reason: &&str| world.metric(&format!("dwarpal_connections_cut_total{{reason=\"{reason}\"}}")) == 1.0;
        eventually(&format!("cut for {reasons:?}"), || reasons.iter().any(counted));
        assert_eq!(other.ask(WHOAMI).status, 200, "{reasons:?}");
    }
    assert!(world.backend.count() < 200, "{} requests of 1,000 that were reset got through", world.backend.count());
    other_h2.send(frames::request(1, "GET", "/.well-known/dwarpal/whoami"));
    let answered =
        std::iter::from_fn(|| frames::next(&mut other_h2)).any(|(kind, _, stream, _)| (kind, stream) == (HEADERS, 1));
    assert!(answered, "a connection that was open all the time");
    eventually("nothing is left over", || world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}") == 0.0);
}

// ---- the metrics listener

#[test]
fn the_metrics_listener_has_an_allowlist_of_its_own() {
    let setup = Setup::new().gateway("networks = [\"127.0.0.1/32\"]", "networks = [\"127.0.0.9/32\"]");
    let world = setup.start(one_person);
    for path in ["/metrics", "/livez", "/readyz"] {
        assert_eq!(world.observe(ALPHA, path), None, "{path}");
        let (status, body) = world.observe(NOWHERE, path).expect(path);
        assert_eq!(status, 200);
        assert_eq!(body.contains("dwarpal_build_info"), path == "/metrics", "{path}: {body}");
    }
    assert_eq!(world.observe(NOWHERE, "/").expect("an answer").0, 404);
}

#[test]
fn metrics_tell_requests_apart_by_what_is_configured_and_by_nothing_else() {
    let world = World::new();
    let mut line = world.alpha();
    let body = r#"{"mobile":"6412345678","purpose":"care"}"#;
    let lookup = |body: &str| {
        let length = body.len();
        format!(
            "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    assert_eq!(line.ask(lookup(body)).status, 200);
    assert_eq!(line.ask(lookup(&body.replace("64123", "54123"))).status, 422);
    assert_eq!(line.ask(REST.replace("/rest/x", "/sixfourone/6412345678")).status, 403);
    let page = world.metrics();
    for series in [
        r#"dwarpal_requests_total{partner="alpha",reason="none",route="mobile",verdict="allow"} 1"#,
        r#"dwarpal_requests_total{partner="alpha",reason="identifier-prefix",route="mobile",verdict="deny"} 1"#,
        r#"dwarpal_requests_total{partner="alpha",reason="no-route",route="none",verdict="deny"} 1"#,
        r#"dwarpal_people_answered_total{kind="mobile",partner="alpha"} 1"#,
        r#"dwarpal_answers_total{kind="mobile",outcome="hit",partner="alpha"} 1"#,
    ] {
        assert!(page.contains(series), "{series}\n{page}");
    }
    for never in ["6412345678", "5412345678", "sixfourone"] {
        assert!(!page.contains(never), "{never}\n{page}");
    }
}

// ---- the process

#[test]
fn sigterm_lets_requests_finish_and_then_ends_the_process() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let setup = Setup::new().gateway("drain_timeout = \"0s\"", "drain_timeout = \"15s\"");
    let mut world = setup.spawn(move |exchange| {
        exchange.read_body();
        if exchange.request.target() == "/rest/held" {
            let _ = held.lock().expect("held").recv_timeout(PATIENCE);
        }
        exchange.answer("200 OK", "", b"finished");
    });
    assert_eq!(world.observe(ALPHA, "/readyz"), Some((200, "ok\n".to_owned())));
    let mut idle = world.alpha();
    assert_eq!(idle.ask(WHOAMI).status, 200);
    let mut busy = world.alpha();
    busy.send(REST.replace("/rest/x", "/rest/held"));
    world.backend.requests(1);
    world.process().terminate();
    eventually("a balancer is told", || world.observe(ALPHA, "/readyz").is_none_or(|(status, _)| status == 503));
    assert_eq!(world.observe(ALPHA, "/livez").map(|(status, _)| status), Some(200), "alive until it ends");
    eventually("no new connections", || line::tcp(ALPHA, world.address).is_err());
    idle.assert_closed();
    release.send(()).expect("held");
    let answer = busy.answer(false);
    assert_eq!((answer.status, answer.text().as_str()), (200, "finished"));
    assert_eq!(world.process().ended(), Some(0), "{}", world.process().log());
}

#[test]
fn the_log_holds_no_identifier_and_no_body() {
    let mut world = Setup::new().gateway("level = \"info\"", "level = \"debug\"").spawn(one_person);
    let bodies =
        [r#"{"mobile":"6412345678","purpose":"care"}"#, r#"{"mobile":"6412345678","purpose":"secret"}"#, "6412345678"];
    for body in bodies {
        let length = body.len();
        world.ask(format!("POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"));
    }
    let last = world.ask("GET /v1/query?mobile=641234567 HTTP/1.1\r\nhost: localhost\r\nx-6412345678: secret\r\n\r\n");
    last.assert_refused(422, "identifier-invalid");
    let line = world.process().logged(|line| line["decision"] == last.header("x-decision-id"));
    assert_eq!((&line["partner"], &line["route"]), (&"alpha".into(), &"query".into()));
    assert_eq!((&line["verdict"], &line["reason"]), (&"deny".into(), &"identifier-format".into()));
    let log = world.process().log();
    assert!(log.lines().filter(|line| line.contains("\"decision\"")).count() == 4, "{log}");
    assert!(!log.contains("641234567") && !log.contains("secret"), "{log}");
}

#[test]
fn the_development_authority_is_trusted_on_loopback_only() {
    let development = TempDir::new().expect("directory");
    let made = dwarpal(&["pki", "dev", "--dir", "dev"], development.path());
    assert_eq!(made.0, 0, "{made:?}");
    let (shared, own) = (pki().directory.display(), development.path().join("dev"));
    let setup = || {
        Setup::new()
            .gateway(&format!("{shared}/partners/ca.pem"), &own.join("ca.pem").display().to_string())
            .gateway(&format!("{shared}/partners/current.crl"), &own.join("crl.pem").display().to_string())
    };
    drop(setup().start(one_person));
    let directory = TempDir::new().expect("directory");
    for address in ["0.0.0.0:0", "[::]:0"] {
        setup()
            .gateway("address = \"127.0.0.1:0\"\nhosts", &format!("address = \"{address}\"\nhosts"))
            .write(directory.path(), None);
        let (code, _, stderr) = dwarpal(&["serve", "--config", "."], directory.path());
        assert_eq!(code, 3, "{stderr}");
        assert!(stderr.contains("development CA") && stderr.contains(address), "{stderr}");
    }
}

#[test]
fn check_says_yes_no_or_refused() {
    let directory = TempDir::new().expect("directory");
    let check = |more: &[&str]| dwarpal(&[&["check", "."], more].concat(), directory.path());
    Setup::new().write(directory.path(), None);
    let (code, stdout, stderr) = check(&[]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("3 partners, 6 routes, 4 networks; 0 cases, 0 failed; "), "{stdout}");
    assert!(stderr.contains("warning: ") && stderr.contains("route.lookup.subject"), "{stderr}");
    assert_eq!(check(&["--strict"]).0, 1, "a warning is a no");

    std::fs::create_dir(directory.path().join("cases")).expect("directory");
    let case = |expect: &str| {
        let text = format!(
            "[[case]]\nname = \"a case\"\npartner = \"gamma\"\nsource = \"127.0.0.4\"\nrequest = \"GET /rest/x\"\nexpect = \"{expect}\"\n"
        );
        std::fs::write(directory.path().join("cases/some.toml"), text).expect("write");
    };
    case("allow");
    let (code, stdout, _) = check(&[]);
    assert!(code == 0 && stdout.contains("1 cases, 0 failed"), "{stdout}");
    case("deny");
    let (code, stdout, stderr) = check(&[]);
    assert!(
        code == 1 && stdout.contains("1 failed") && stderr.contains("a case: expected deny, got allow"),
        "{stderr}"
    );

    for (from, to, complaint) in [
        ("kind = \"aadhaar\"", "kind = \"adhaar\"", "route[1].lookup.kind"),
        ("rate_min = \"256B\"", "rate_minimum = \"256B\"", "rate_minimum"),
        ("ca.pem\"", "nothing.pem\"", "nothing.pem"),
    ] {
        Setup::new().gateway(from, to).write(directory.path(), None);
        let (code, _, stderr) = check(&[]);
        assert!(code == 3 && stderr.contains(complaint) && stderr.contains("error"), "{code} {stderr}");
        let (code, _, stderr) = dwarpal(&["serve", "--config", "."], directory.path());
        assert!(code == 3 && stderr.contains(complaint), "{code} {stderr}");
    }
    assert_eq!(dwarpal(&["chekc"], directory.path()).0, 2);
}

#[test]
fn explain_says_what_the_gateway_does_and_why() {
    let directory = TempDir::new().expect("directory");
    Setup::new().write(directory.path(), None);
    let explain = |arguments: &[&str]| {
        let (code, stdout, stderr) = dwarpal(&[&["explain", "--config", "."], arguments].concat(), directory.path());
        (code, stdout + &stderr)
    };
    let from = |partner: &'static str, source: &'static str| ["--partner", partner, "--source", source];
    let lookup = |body: &'static str| ["--body", body, "POST", "/v1/mobile"];
    for (code, verdict, arguments) in [
        (0, "verdict   allow", [&from("gamma", "127.0.0.4")[..], &["GET", "/rest/x"]].concat()),
        (1, "verdict   deny (network-not-allowed)", [&from("gamma", "127.0.0.1")[..], &["GET", "/rest/x"]].concat()),
        (1, "verdict   deny (no-grant)", [&from("gamma", "127.0.0.4")[..], &["GET", "/files/x"]].concat()),
        (
            0,
            "verdict   allow",
            [&from("alpha", "127.0.0.1")[..], &lookup(r#"{"mobile":"6412345678","purpose":"care"}"#)].concat(),
        ),
        (
            1,
            "verdict   deny (member-missing)",
            [&from("alpha", "127.0.0.1")[..], &lookup(r#"{"mobile":"6412345678"}"#)].concat(),
        ),
        (2, "no partner delta", [&from("delta", "127.0.0.1")[..], &["GET", "/rest/x"]].concat()),
    ] {
        let (exit, text) = explain(&arguments);
        assert_eq!(exit, code, "{text}");
        assert!(text.contains(verdict), "{verdict}\n{text}");
        assert!(!text.contains("6412345678"), "an identifier is never echoed: {text}");
        if code == 0 {
            assert!(text.contains("gateway.toml:") && text.contains("127.0.0."), "the lines that decided: {text}");
        }
    }
}

#[test]
fn the_demo_runs_through() {
    let directory = TempDir::new().expect("directory");
    // A copy, so that the demo makes its certificates beside it.
    let copied = std::process::Command::new("cp").arg("-r").arg(package("config")).arg(directory.path()).status();
    assert!(copied.expect("cp").success());
    let (code, stdout, stderr) = dwarpal(&["demo", "--once"], directory.path());
    assert_eq!(code, 0, "{stdout}{stderr}");
}
