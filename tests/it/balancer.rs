//! Whose address counts behind a balancer? The PROXY protocol, spoken byte by byte and by HAProxy.

use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustls::crypto::aws_lc_rs::default_provider;

use crate::world::backend::one_person;
use crate::world::line::{self, Line};
use crate::world::pki::pki;
use crate::world::{ALPHA, ALPHA_TOO, BETA, NOWHERE, Setup, World, eventually, read_to_close};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// In nobody's network, and a configured balancer.
const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);

fn setup() -> Setup {
    behind("header_timeout = \"10s\"")
}

/// Behind a balancer, with these bounds.
fn behind(bounds: &str) -> Setup {
    let table = format!("[listen.proxy_protocol]\nfrom = [\"{BALANCER}/32\"]\n{bounds}\n[tls]\n");
    Setup::new().gateway("[tls]\n", &table)
}

fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family][..], &length, rest].concat()
}

/// A header for a caller over IPv4, with attachments.
fn from(source: Ipv4Addr, attachments: &[u8]) -> Vec<u8> {
    let ports = [0xc0, 1, 0x20, 0xfb];
    header(0x21, 0x11, &[&source.octets()[..], &[127, 0, 0, 1], &ports, attachments].concat())
}

/// A header for a caller over IPv6.
fn from_v6(source: Ipv6Addr) -> Vec<u8> {
    header(0x21, 0x21, &[&source.octets()[..], &Ipv6Addr::LOCALHOST.octets(), &[0xc0, 1, 0x20, 0xfb]].concat())
}

fn balancer(world: &World) -> TcpStream {
    line::tcp(BALANCER, world.address).expect("the kernel accepts")
}

/// Alpha's connection through the balancer, which sends these bytes first, in pieces of some size.
fn through(world: &World, first: &[u8], piece: usize) -> std::io::Result<Line> {
    let mut stream = balancer(world);
    for bytes in first.chunks(piece) {
        stream.write_all(bytes)?;
    }
    line::over(stream, Some(&pki().alpha), b"http/1.1", default_provider())
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!("dwarpal_connections_refused_total{{reason=\"{reason}\"}}"))
}

/// The connection ends without a byte, and is counted for this reason.
#[track_caller]
fn assert_turned_away(world: &World, first: &[u8], reason: &str) {
    let before = refused(world, reason);
    let mut stream = balancer(world);
    let _ = stream.write_all(first);
    match read_to_close(&mut stream) {
        Ok(bytes) => assert_eq!(bytes, b"", "{reason}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{reason}: {error}"),
    }
    eventually(reason, || refused(world, reason) == before + 1.0);
}

#[test]
fn the_address_in_the_header_is_the_callers() {
    let network =
        "\n[[network]]\ncidr = \"2001:db8::5/128\"\nowner = \"o\"\nticket = \"T-2\"\nreason = \"a test\"\n[limits]\n";
    let world = setup().partner("alpha", "\n[limits]\n", network).start(one_person);
    let v6: Ipv6Addr = "2001:db8::5".parse().expect("an address");
    for (first, source) in [
        (from(ALPHA_TOO, &[]), ALPHA_TOO.to_string()),
        (from_v6(v6), v6.to_string()),
        (from_v6(ALPHA_TOO.to_ipv6_mapped()), ALPHA_TOO.to_string()),
        // A server name, a no-op, and 900 bytes that mean nothing here.
        (from(ALPHA_TOO, &[&[2, 0, 1, b'x', 4, 0, 0, 0xee, 3, 132][..], &[0; 900]].concat()), ALPHA_TOO.to_string()),
        (from(ALPHA_TOO, &[3, 0, 4, 0x28, 0x7a, 0xe7, 0x33]), ALPHA_TOO.to_string()),
    ] {
        for piece in [1, 17, first.len()] {
            let mut line = through(&world, &first, piece).unwrap_or_else(|error| panic!("{source}: {error}"));
            let answer = line.ask(WHOAMI);
            assert_eq!((answer.status, answer.json()["source"].as_str()), (200, Some(source.as_str())));
        }
    }
    // Some partner's network, but not this one's.
    let mut line = through(&world, &from(BETA, &[]), 64).expect("beta's network is known");
    line.ask(WHOAMI).assert_refused(403, "network-not-allowed");
    // The backend learns the same address.
    let mut line = through(&world, &from(ALPHA_TOO, &[]), 64).expect("handshake");
    assert_eq!(line.ask("GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n").status, 200);
    let seen = world.backend.only().headers;
    assert!(seen.contains(&("x-forwarded-for".to_owned(), ALPHA_TOO.to_string())), "{seen:?}");
}

#[test]
fn a_balancer_that_does_not_say_for_whom_is_turned_away() {
    let world = setup().start(one_person);
    let good = from(ALPHA, &[]);
    let short = [&good[..14], &[0, 11], &good[16..]].concat();
    let long = [&good[..14], &[4, 0], &good[16..]].concat();
    let hello = [22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3];
    for (first, reason) in [
        (&hello[..], "proxy-signature"),
        (b"PROXY TCP4 127.0.0.1 127.0.0.1 49153 8443\r\n", "proxy-signature"),
        (b"GET / HTTP/1.1\r\n\r\n", "proxy-signature"),
        (&header(0x11, 0x11, &[0; 12]), "proxy-version"),
        (&header(0x20, 0x00, &[]), "proxy-local"),
        (&header(0x20, 0x11, &good[16..]), "proxy-local"),
        (&header(0x2f, 0x11, &good[16..]), "proxy-command"),
        (&header(0x21, 0x00, &[]), "proxy-family"),
        (&header(0x21, 0x12, &good[16..]), "proxy-family"),
        (&header(0x21, 0x31, &[0; 216]), "proxy-family"),
        (&short, "proxy-length"),
        (&long, "proxy-too-long"),
        (&from(ALPHA, &[2, 0, 9, 0]), "proxy-attachment"),
        (&from(ALPHA, &[3, 0, 4, 0, 0, 0, 0]), "proxy-checksum"),
        (&from(NOWHERE, &[]), "network-unknown"),
        (&from(BALANCER, &[]), "network-unknown"),
    ] {
        assert_turned_away(&world, first, reason);
    }
    let mut gone = balancer(&world);
    gone.write_all(&good[..20]).expect("sent");
    drop(gone);
    eventually("it is counted", || refused(&world, "proxy-ended") == 1.0);
    assert_eq!(refused(&world, "proxy-timeout"), 0.0);
    world.backend.assert_untouched();
}

#[test]
fn a_header_comes_once_and_from_a_balancer_only() {
    let world = setup().start(one_person);
    let twice = [from(ALPHA, &[]), from(ALPHA, &[])].concat();
    assert!(through(&world, &twice, 64).is_err(), "the second is not TLS");
    // From an address that may call by itself, a header is not TLS either, and without one it is served.
    let mut stream = line::tcp(ALPHA, world.address).expect("connect");
    stream.write_all(&from(ALPHA_TOO, &[])).expect("sent");
    assert!(line::over(stream, Some(&pki().alpha), b"http/1.1", default_provider()).is_err());
    eventually("both are counted", || world.metric("dwarpal_handshakes_total{result=\"other\"}") == 2.0);
    assert_eq!(world.ask(WHOAMI).json()["source"], ALPHA.to_string());
    // Where no balancer is named, nobody's header is read.
    let world = World::new();
    let mut stream = line::tcp(ALPHA, world.address).expect("connect");
    stream.write_all(&from(ALPHA_TOO, &[])).expect("sent");
    assert!(line::over(stream, Some(&pki().alpha), b"http/1.1", default_provider()).is_err());
}

#[test]
fn a_header_that_does_not_come_is_not_waited_for() {
    let world = behind("header_timeout = \"300ms\"\nheader_bytes_max = \"60B\"").start(one_person);
    let begun = Instant::now();
    // Nothing, and a header without its last byte.
    assert_turned_away(&world, b"", "proxy-timeout");
    let good = from(ALPHA, &[]);
    assert_turned_away(&world, &good[..good.len() - 1], "proxy-timeout");
    assert!((600..8_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    // Longer than the bound of this gateway, by a byte.
    let padded = |length: u8| from(ALPHA, &[&[4, 0, length][..], &vec![0; usize::from(length)]].concat());
    assert_eq!(through(&world, &padded(29), 64).expect("60 bytes").ask(WHOAMI).status, 200);
    assert_turned_away(&world, &padded(30), "proxy-too-long");
}

#[test]
fn callers_are_capped_by_their_own_address_and_waiting_balancers_by_number() {
    let world = behind("header_timeout = \"20s\"\nwaiting_max = 3")
        .gateway("connections_per_source_max = 500", "connections_per_source_max = 1")
        .start(one_person);
    let mut open: Vec<Line> = [ALPHA, ALPHA_TOO]
        .map(|source| through(&world, &from(source, &[]), 64).expect("each address has its own place"))
        .into();
    assert_turned_away(&world, &from(ALPHA, &[]), "connections-per-source-max");
    let waiting: Vec<TcpStream> = (0..3).map(|_| balancer(&world)).collect();
    assert_turned_away(&world, b"", "proxy-waiting-max");
    assert_eq!(open.iter_mut().map(|line| line.ask(WHOAMI).status).collect::<Vec<_>>(), [200, 200]);
    assert_eq!(world.metric("dwarpal_connections"), 2.0, "who waits is not yet a connection");
    drop(waiting);
    eventually("they are gone", || refused(&world, "proxy-ended") == 3.0);
    open.remove(0).hang_up();
    eventually("there is room again", || through(&world, &from(ALPHA, &[]), 64).is_ok());
}

#[test]
fn a_balancer_has_to_be_named_narrowly() {
    let directory = tempfile::TempDir::new().expect("directory");
    for (networks, complaint) in [("\"10.0.0.0/16\"", "at most a /24"), ("\"x\"", "not an address")] {
        let table = format!("[listen.proxy_protocol]\nfrom = [{networks}]\n[tls]\n");
        Setup::new().gateway("[tls]\n", &table).write(directory.path(), None);
        let (code, _, stderr) = crate::world::dwarpal(&["check", "."], directory.path());
        assert!(code == 3 && stderr.contains(complaint), "{code} {stderr}");
    }
}

/// HAProxy, between a free port and the gateway.
struct Haproxy {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Haproxy {
    fn start(gateway: SocketAddr) -> Haproxy {
        let directory = tempfile::TempDir::new().expect("directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let configuration = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
             listen partners\n bind {free}\n\
             server gateway {gateway} source {BALANCER} send-proxy-v2 proxy-v2-options crc32c,unique-id check inter 50\n"
        );
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, configuration).expect("write");
        let mut command = Command::new("haproxy");
        command
            .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
            .arg("-db")
            .arg("-f")
            .arg(file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("haproxy");
        Haproxy { child, address: free, _directory: directory }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn haproxy_passes_callers_on_with_their_addresses() {
    let world = setup().start(one_person);
    let haproxy = Haproxy::start(world.address);
    eventually("HAProxy listens", || line::tcp(ALPHA, haproxy.address).is_ok());
    for source in [ALPHA, ALPHA_TOO] {
        let mut line = line::connect(haproxy.address, &pki().alpha, source, b"http/1.1");
        assert_eq!(line.ask(WHOAMI).json()["source"], source.to_string());
    }
    // Its health checks speak for nobody.
    eventually("a check was made", || refused(&world, "proxy-local") > 0.0);
    let stranger = line::attempt(haproxy.address, Some(&pki().alpha), NOWHERE, b"http/1.1", default_provider());
    assert!(stranger.is_err(), "the balancer's own address opens nothing");
    eventually("it is counted", || refused(&world, "network-unknown") == 1.0);
    assert_eq!(refused(&world, "proxy-checksum"), 0.0);
}
