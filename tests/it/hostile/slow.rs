//! What does it cost to be slow, or many? Each caller is cut off by time, count or rate, and a well-behaved partner is
//! served beside it all the while.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use super::WellBehaved;
use crate::world::backend::one_person;
use crate::world::frames::{
    self, DATA, END_HEADERS, END_STREAM, HEADERS, Heard, PRIORITISED, PRIORITY, WINDOW_SIZE, block, frame, request,
    settings, window_update,
};
use crate::world::line::{self, Line};
use crate::world::pki::pki;
use crate::world::process::run;
use crate::world::{ALPHA, ALPHA_TOO, BETA, Setup, World, eventually, read_to_close};

const GET: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn handshakes(world: &World, result: &str) -> f64 {
    world.metric(&format!("dwarpal_handshakes_total{{result=\"{result}\"}}"))
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!("dwarpal_connections_refused_total{{reason=\"{reason}\"}}"))
}

fn cut(world: &World, reason: &str) -> f64 {
    world.metric(&format!("dwarpal_connections_cut_total{{reason=\"{reason}\"}}"))
}

fn in_flight(world: &World) -> f64 {
    world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}")
}

// ---- streams that the gateway itself has to reset

/// Head of a POST without its end.
fn post(stream: u32, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    frame(HEADERS, END_HEADERS, stream, &block(&[&pseudo[..], fields].concat()))
}

/// A name, and what it sends on a stream.
type Attack = (&'static str, fn(u32) -> Vec<u8>);

/// A request, and then a frame that makes the gateway reset it (CVE-2025-8671): as the client resets nothing, a count of
/// its resets counts nothing.
fn made_you_reset() -> Vec<Attack> {
    vec![
        ("a window that overflows", |stream| {
            [request(stream, "GET", "/rest/reset"), window_update(stream, 0x7fff_ffff)].concat()
        }),
        ("more data than its length", |stream| {
            [post(stream, "/v1/mobile", &[("content-length", "1")]), frame(DATA, 0, stream, b"{}")].concat()
        }),
        ("less data than its length", |stream| {
            [post(stream, "/v1/mobile", &[("content-length", "9")]), frame(DATA, END_STREAM, stream, b"{}")].concat()
        }),
        ("second headers that are no trailers", |stream| {
            let headers = frame(HEADERS, END_HEADERS, stream, &block(&[("x-kept", "a")]));
            [post(stream, "/v1/mobile", &[("content-type", "application/json")]), headers].concat()
        }),
        ("a field of connections", |stream| post(stream, "/rest/reset", &[("connection", "close")])),
        ("headers that depend on themselves", |stream| {
            let fields =
                block(&[(":method", "GET"), (":scheme", "https"), (":authority", "localhost"), (":path", "/x")]);
            let priority = [&stream.to_be_bytes()[..], &[0]].concat();
            frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, stream, &[priority, fields].concat())
        }),
        ("a priority that depends on itself", |stream| {
            let priority = [&stream.to_be_bytes()[..], &[0]].concat();
            [request(stream, "GET", "/rest/reset"), frame(PRIORITY, 0, stream, &priority)].concat()
        }),
    ]
}

#[test]
fn streams_that_the_gateway_has_to_reset_are_counted_and_cut_off() {
    const RESETS_MAX: usize = 64;
    const CALM: u32 = 11;
    let world = World::new();
    let mut partner = WellBehaved::new(&world);
    for (name, attack) in made_you_reset() {
        // All at once.
        let mut line = frames::connect(&world, &pki().alpha, ALPHA);
        // The gateway may close before it was all sent.
        let _ = line.try_send((0..1_000).flat_map(|at| attack(2 * at + 1)).collect::<Vec<_>>());
        partner.is_served();
        let mut heard = Heard::default();
        heard.until(&mut line, |_| false);
        assert_eq!(heard.goaway, Some(CALM), "{name}: {heard:?}");
        // One after the other, each when the one before is over.
        let mut line = frames::connect(&world, &pki().alpha, ALPHA);
        let mut heard = Heard::default();
        world.backend.forget();
        for stream in (0..1_000).map(|at| 2 * at + 1) {
            if heard.closed || line.try_send(attack(stream)).is_err() {
                break;
            }
            heard.until(&mut line, |heard| heard.is_over(stream) || heard.goaway.is_some());
        }
        heard.until(&mut line, |_| false);
        let resets = heard.streams.values().filter(|stream| stream.reset.is_some()).count();
        assert_eq!((heard.goaway, resets), (Some(CALM), RESETS_MAX), "{name}");
        partner.is_served();
        let asked = world.backend.count() - 1;
        assert!(asked <= RESETS_MAX + 1, "{name}: {asked} of 1,000 requests got through to the backend");
    }
    eventually("nothing is left in flight", || in_flight(&world) == 0.0);
}

// ---- slow callers

#[test]
fn heads_that_dribble_in_on_many_connections_are_all_cut_off() {
    const MANY: usize = 40;
    let world = Setup::new().gateway("head_timeout = \"10s\"", "head_timeout = \"1s\"").start(one_person);
    let mut partner = WellBehaved::new(&world);
    let mut lines: Vec<Line> = (0..MANY).map(|_| world.alpha()).collect();
    for line in &mut lines {
        line.send("GET /rest/x HTTP/1.1\r\nhost: localhost\r\nx-slow: ");
    }
    eventually("each of them is cut off", || {
        lines.iter_mut().for_each(|line| drop(line.try_send("x")));
        partner.is_served();
        cut(&world, "head-timeout") == MANY as f64
    });
    lines.iter_mut().for_each(Line::assert_closed);
    eventually("their places come back", || world.metric("dwarpal_connections") == 1.0);
}

#[test]
fn a_body_that_stops_over_http2_is_a_408_and_the_connection_goes_on() {
    let world = Setup::new()
        .gateway("rate_min = \"256B\"", "rate_min = \"1KiB\"")
        .gateway("rate_grace = \"10s\"", "rate_grace = \"1s\"")
        .start(one_person);
    let mut partner = WellBehaved::new(&world);
    let mut line = frames::connect(&world, &pki().alpha, ALPHA);
    line.send([post(1, "/v1/mobile", &[("content-type", "application/json")]), frame(DATA, 0, 1, b"{")].concat());
    line.send([post(3, "/files/a", &[]), frame(DATA, 0, 3, b"hello")].concat());
    partner.is_served();
    let mut heard = Heard::default();
    heard.until(&mut line, |heard| heard.is_over(1) && heard.is_over(3));
    assert_eq!((heard.streams[&1].status, heard.streams[&3].status), (408, 408), "{heard:?}");
    partner.is_served();
    eventually("nothing is left in flight", || in_flight(&world) == 0.0);
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let world = Setup::new()
        .gateway("request_timeout = \"30s\"", "request_timeout = \"3s\"")
        .gateway("idle_timeout = \"30s\"\nrequest", "idle_timeout = \"2s\"\nrequest")
        .start(one_person);
    let mut partner = WellBehaved::new(&world);
    // The window stays shut: nothing can be written, and so nothing waits to be read.
    let mut line = frames::connect(&world, &pki().alpha, ALPHA);
    line.send([settings(&[(WINDOW_SIZE, 0)]), request(1, "GET", "/files/megabyte")].concat());
    let mut heard = Heard::default();
    heard.until(&mut line, |heard| heard.streams.contains_key(&1));
    assert_eq!(heard.streams[&1].status, 200, "{heard:?}");
    eventually("its place and its backend connection are given up", || {
        partner.is_served();
        in_flight(&world) == 0.0
    });
    // The stream is still open: the connection has to go, in order or not.
    heard.until(&mut line, |_| false);
    assert_eq!((heard.goaway, heard.streams[&1].body.len()), (Some(0), 0), "{heard:?}");
    assert_eq!(cut(&world, "leave-timeout"), 1.0);
}

#[test]
fn a_peer_that_does_not_read_is_cut_off() {
    let world = Setup::new()
        .gateway("rate_min = \"256B\"", "rate_min = \"64KiB\"")
        .gateway("rate_grace = \"10s\"", "rate_grace = \"1s\"")
        .start(one_person);
    let mut partner = WellBehaved::new(&world);
    // More than the kernel's buffers hold.
    let asked: String = "GET /files/megabyte HTTP/1.1\r\nhost: localhost\r\n\r\n".repeat(50);
    let mut first = world.alpha();
    first.send(asked);
    let mut second = frames::connect(&world, &pki().alpha, ALPHA_TOO);
    let wide = [settings(&[(WINDOW_SIZE, 0x7fff_ffff)]), window_update(0, 0x7fff_0000)].concat();
    let asked = (0..50).flat_map(|at| request(2 * at + 1, "GET", "/files/megabyte")).collect();
    second.send([wide, asked].concat());
    eventually("both are cut off", || {
        partner.is_served();
        cut(&world, "slow-read") == 2.0
    });
    eventually("nothing is left in flight", || in_flight(&world) == 0.0);
    eventually("their places come back", || world.metric("dwarpal_connections") == 1.0);
}

// ---- handshakes and connections

/// Connections that begin a handshake and do not go on with it: every other one has said nothing at all.
fn stalled(world: &World, source: std::net::Ipv4Addr, count: usize) -> Vec<TcpStream> {
    let begin = |at: usize| {
        let mut stream = line::tcp(source, world.address).expect("the kernel accepts");
        if at % 2 == 1 {
            // A record of which most is missing.
            stream.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).expect("sent");
        }
        stream
    };
    (0..count).map(begin).collect()
}

#[test]
fn stalled_handshakes_of_one_source_keep_nobody_else_out() {
    let world = Setup::new()
        .gateway("connections_per_source_max = 500", "connections_per_source_max = 20")
        .gateway("handshake_timeout = \"10s\"", "handshake_timeout = \"2s\"")
        .start(one_person);
    let mut stalled = stalled(&world, ALPHA, 20);
    eventually("all of them wait", || world.metric("dwarpal_connections") == 20.0);
    let mut more = line::tcp(ALPHA, world.address).expect("the kernel accepts");
    assert_eq!(read_to_close(&mut more).unwrap_or_default(), b"");
    assert_eq!(refused(&world, "connections-per-source-max"), 1.0);
    // New connections from elsewhere, while they wait.
    WellBehaved::new(&world).is_served();
    assert_eq!(world.line(&pki().alpha, ALPHA_TOO).ask(GET).status, 200);
    assert!(handshakes(&world, "timeout") == 0.0, "they still wait");
    eventually("each of them is given up", || handshakes(&world, "timeout") == 20.0);
    for stream in &mut stalled {
        assert_eq!(read_to_close(stream).unwrap_or_default(), b"");
    }
    eventually("their places come back", || world.metric("dwarpal_connections") == 0.0);
    assert_eq!(world.alpha().ask(GET).status, 200);
}

#[test]
fn handshakes_at_once_have_a_cap_and_open_connections_do_not_feel_it() {
    let handshakes_max = "handshake_timeout = \"2s\"\nhandshakes_max = 8";
    let world = Setup::new().gateway("handshake_timeout = \"10s\"", handshakes_max).start(one_person);
    let mut partner = WellBehaved::new(&world);
    let stalled = stalled(&world, ALPHA, 8);
    eventually("all of them wait", || world.metric("dwarpal_connections") == 9.0);
    let mut more = line::tcp(BETA, world.address).expect("the kernel accepts");
    assert_eq!(read_to_close(&mut more).unwrap_or_default(), b"");
    assert_eq!(handshakes(&world, "busy"), 1.0);
    partner.is_served();
    drop(stalled);
    eventually("there is room again", || world.metric("dwarpal_connections") == 1.0);
    assert_eq!(world.alpha().ask(GET).status, 200);
    partner.is_served();
}

#[test]
fn a_flood_of_connections_from_one_source_is_its_own_problem() {
    const FLOOD: usize = 400;
    let setup = Setup::new().gateway("connections_per_source_max = 500", "connections_per_source_max = 10");
    let world = setup.start(one_person);
    let mut partner = WellBehaved::new(&world);
    let mut held = Vec::new();
    for at in 0..FLOOD {
        held.push(line::tcp(ALPHA, world.address).expect("the kernel accepts"));
        if at % 40 == 0 {
            partner.is_served();
        }
    }
    let turned_away = || refused(&world, "connections-per-source-max");
    eventually("all but ten are turned away", || turned_away() == (FLOOD - 10) as f64);
    assert_eq!(world.metric("dwarpal_connections"), 11.0);
    assert_eq!(world.line(&pki().alpha, ALPHA_TOO).ask(GET).status, 200, "another source has its own places");
    // Opened and closed, again and again.
    held.clear();
    for _ in 0..FLOOD {
        drop(line::tcp(ALPHA, world.address).expect("the kernel accepts"));
    }
    partner.is_served();
    eventually("their places come back", || world.metric("dwarpal_connections") == 1.0);
    assert_eq!(world.alpha().ask(GET).status, 200);
}

#[test]
fn garbage_in_the_place_of_a_handshake_is_refused_at_once() {
    let setup = Setup::new().gateway("handshake_timeout = \"10s\"", "handshake_timeout = \"5s\"");
    let world = setup.start(one_person);
    let mut partner = WellBehaved::new(&world);
    let record = |kind: u8, length: u16, bytes: &[u8]| [&[kind, 3, 3][..], &length.to_be_bytes(), bytes].concat();
    let hello = |length: u16| [&[1, 0][..], &length.to_be_bytes(), &[3, 3], &[0; 64]].concat();
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP", GET.into()),
        ("HTTP/2", frames::PREFACE.into()),
        ("SSH", b"SSH-2.0-OpenSSH_9.9\r\n".to_vec()),
        ("PROXY", b"PROXY TCP4 127.0.0.2 127.0.0.1 1 2\r\n".to_vec()),
        ("PROXY in binary", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x02\x7f\0\0\x01\0\x01\0\x02".to_vec()),
        ("a hello of SSL 2", b"\x80\x2e\x01\x03\x01\x00\x15\x00\x00\x00\x10\x01\x00\x80\x03\x00\x80".to_vec()),
        ("zeros", vec![0; 20_000]),
        ("ones", vec![0xff; 20_000]),
        ("a record of 64 KiB", record(22, 0xffff, &[1; 100])),
        ("a record of no kind", record(99, 5, b"hello")),
        ("a heartbeat", record(24, 3, &[1, 0x40, 0])),
        ("data before the handshake", record(23, 5, b"hello")),
        ("an alert before the handshake", record(21, 2, &[2, 40]).repeat(100)),
        ("a hello whose length lies", record(22, 70, &hello(64))),
        ("a hello of nothing but zeros", record(22, 72, &[hello(68), vec![0; 2]].concat())),
        ("a certificate for a hello", record(22, 8, &[11, 0, 0, 4, 0, 0, 0, 0])),
        ("a change of ciphers first", record(20, 1, &[2])),
        ("empty records without end", record(22, 0, &[]).repeat(2_000)),
    ];
    for (name, bytes) in &table {
        let mut stream = line::tcp(ALPHA, world.address).expect("the kernel accepts");
        // The gateway may close before it was all sent.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let answer = read_to_close(&mut stream).unwrap_or_default();
        // Nothing, or one alert.
        assert!(answer.is_empty() || (answer[0] == 21 && answer.len() == 7), "{name}: {answer:x?}");
        partner.is_served();
    }
    let refusals =
        || handshakes(&world, "other") + handshakes(&world, "closed") + handshakes(&world, "protocol-unsupported");
    eventually("each is counted", || refusals() == table.len() as f64);
    world.backend.requests(table.len());
}

#[test]
fn connections_that_are_half_closed_keep_no_place() {
    let world = World::new();
    let mut partner = WellBehaved::new(&world);
    let beginnings: [&[u8]; 4] =
        [b"", b"GET /re", b"POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n", b"\xff"];
    let mut lines: Vec<Line> = (0..40).map(|_| world.alpha()).collect();
    for (line, beginning) in lines.iter_mut().zip(beginnings.iter().cycle()) {
        line.send(beginning);
        line.half_close();
    }
    // Nobody reads what the gateway still has to say, and nobody closes.
    eventually("their places come back", || {
        partner.is_served();
        world.metric("dwarpal_connections") == 1.0
    });
    assert_eq!(in_flight(&world), 0.0);
}

#[test]
fn keys_are_not_changed_for_ever() {
    let world = World::new();
    let mut partner = WellBehaved::new(&world);
    let mut line = world.alpha();
    let changed = (0..1_000).take_while(|_| line.change_keys().is_ok()).count();
    partner.is_served();
    let _ = line.try_send(GET);
    let answered = line.more();
    assert!(!matches!(answered, Ok(true)), "{changed} changes of keys, and then an answer");
    eventually("its place comes back", || world.metric("dwarpal_connections") == 1.0);
    partner.is_served();
}

#[test]
fn a_handshake_is_not_renegotiated() {
    let world = Setup::new().gateway("min_version = \"1.3\"", "min_version = \"1.2\"").start(one_person);
    let mut partner = WellBehaved::new(&world);
    let mut command = Command::new("openssl");
    command.args(["s_client", "-tls1_2", "-connect", &world.address.to_string(), "-servername", "localhost"]);
    command.arg("-CAfile").arg(pki().partners.certificate());
    command.arg("-cert").arg(&pki().alpha.certificate).arg("-key").arg(&pki().alpha.key);
    // A line that begins with R asks for a new handshake.
    let ran = run(&mut command, &b"R\n".repeat(5));
    let said = String::from_utf8_lossy(&[ran.stdout, ran.stderr].concat()).into_owned();
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    assert_eq!(handshakes(&world, "ok"), 2.0, "this one's, and the partner's");
    partner.is_served();
}
