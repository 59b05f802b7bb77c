//! Who gets through the handshake? Certificates by openssl, shown by curl and `openssl s_client`.

use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dwarpal::clock::{Clock, Timestamp};
use rustls::crypto::aws_lc_rs;

use crate::world::backend::one_person;
use crate::world::line::{self, Answer};
use crate::world::pki::{
    Authority, FAR_AWAY, FARTHER_AWAY, LONG_AGO, Leaf, NOT_SO_LONG_AGO, Profile, client, named, pki,
};
use crate::world::process::{Ran, run};
use crate::world::{ALPHA, BETA, GAMMA, Setup, World, eventually, read_to_close};

const WHOAMI: &str = "/.well-known/dwarpal/whoami";
const ALPHA_URI: &str = "URI:spiffe://partners.test/alpha";
const HANDSHAKES: &str = "dwarpal_handshakes_total";

/// Authorities of these tests alone, so that their lists are nobody else's.
struct Authorities {
    /// In the place of the partners' authority.
    own: Authority,
    below: Authority,
    /// Trusted under another name.
    other: Authority,
    /// Not trusted.
    foreign: Authority,
}

fn authorities() -> &'static Authorities {
    static AUTHORITIES: OnceLock<Authorities> = OnceLock::new();
    AUTHORITIES.get_or_init(|| {
        let directory = &pki().directory;
        let own = Authority::root(directory, "own");
        let below = own.intermediate("below");
        own.list("current", LONG_AGO, FARTHER_AWAY);
        own.list("expired", LONG_AGO, NOT_SO_LONG_AGO);
        below.list("current", LONG_AGO, FARTHER_AWAY);
        let other = Authority::root(directory, "other");
        other.list("current", LONG_AGO, FARTHER_AWAY);
        Authorities { own, below, other, foreign: Authority::root(directory, "foreign") }
    })
}

/// A gateway that trusts the authority `own`, with these revocation lists of it.
fn trusting(lists: &[&str]) -> Setup {
    let own = &authorities().own;
    let directory = pki().directory.display();
    let lists: Vec<_> = lists.iter().map(|list| format!("\"{}\"", own.directory.join(list).display())).collect();
    Setup::new()
        .gateway(&format!("{directory}/partners/ca.pem"), &own.certificate().display().to_string())
        .gateway(&format!("\"{directory}/partners/current.crl\""), &lists.join(", "))
}

/// Asks who it is taken for; the error is what curl says of the failed handshake.
fn knock(world: &World, leaf: &Leaf) -> Result<Answer, String> {
    let fetched = world.curl_as(leaf, WHOAMI, &[]);
    fetched.answer.ok_or(fetched.stderr)
}

/// Knocks with a certificate that has to be refused for one reason, by one alert. The client waits for it: the alert is
/// lost on a client that was quick to send its request, since TCP resets a connection that is closed upon unread bytes.
#[track_caller]
fn assert_shut_out(world: &World, leaf: &Leaf, reason: &str, alert: &str) {
    let series = format!("{HANDSHAKES}{{result=\"{reason}\"}}");
    let before = world.metric(&series);
    let seen = said(&s_client(world, leaf, &["-ign_eof"], ""));
    assert!(seen.contains(&format!("alert {alert}")), "{reason}: {seen}");
    eventually(&format!("{reason} is counted"), || world.metric(&series) == before + 1.0);
    let answer = knock(world, leaf);
    assert!(answer.is_err(), "{reason}: {answer:?}");
    eventually(&format!("{reason} is counted"), || world.metric(&series) == before + 2.0);
}

#[track_caller]
fn assert_let_in(world: &World, leaf: &Leaf) {
    let answer = knock(world, leaf).unwrap_or_else(|error| panic!("{error}\n{}", world.metrics()));
    assert_eq!((answer.status, answer.json()["partner"].as_str()), (200, Some("alpha")), "{answer:?}");
}

#[test]
fn each_flaw_of_a_certificate_has_its_reason() {
    let Authorities { own, foreign, .. } = authorities();
    let world = trusting(&["current.crl"]).start(one_person);
    let usual = named(ALPHA_URI);
    let without = |line: &str| usual.replace(line, "");
    let usage = "extendedKeyUsage = clientAuth\n";
    let issue = |name: &str, extensions: &str| own.issue(name, &client(extensions));
    let period = |name: &str, from, until| own.issue(name, &Profile { extensions: &usual, from, until });
    for (leaf, reason, alert) in [
        (Leaf::self_signed(own, ALPHA_URI), "issuer-unknown", "unknown ca"),
        (foreign.client("alpha", ALPHA_URI), "issuer-unknown", "unknown ca"),
        (period("expired", LONG_AGO, NOT_SO_LONG_AGO), "certificate-expired", "certificate expired"),
        (period("early", FAR_AWAY, FARTHER_AWAY), "certificate-not-yet-valid", "certificate expired"),
        (issue("server-usage", &usual.replace("clientAuth", "serverAuth")), "purpose-wrong", "unsupported certificate"),
        (issue("no-usage", &without(usage)), "purpose-wrong", "unsupported certificate"),
        (
            issue("other-usage", &usual.replace("clientAuth", "emailProtection")),
            "purpose-wrong",
            "unsupported certificate",
        ),
        (issue("authority-as-client", &usual.replace("CA:FALSE", "CA:TRUE")), "chain-invalid", "access denied"),
    ] {
        assert_shut_out(&world, &leaf, reason, alert);
    }
    assert_let_in(&world, &issue("fine", &usual));
    assert_let_in(&world, &issue("both-usages", &usual.replace("clientAuth", "clientAuth, serverAuth")));
    world.backend.assert_untouched();
}

#[test]
fn a_name_before_one_that_cannot_be_read_proves_nothing() {
    let own = &authorities().own;
    let world = trusting(&["current.crl"]).start(one_person);
    // Alpha's name, and these bytes behind it in the same list.
    let followed_by = |file: &str, rest: &[u8]| {
        let name = ALPHA_URI.strip_prefix("URI:").expect("a URI").as_bytes();
        let names = [&[0x86, name.len() as u8][..], name, rest].concat();
        let names = [&[0x30, names.len() as u8][..], &names].concat();
        let hex: Vec<_> = names.iter().map(|byte| format!("{byte:02x}")).collect();
        own.client(file, &format!("DER:{}", hex.join(":")))
    };
    assert_let_in(&world, &followed_by("two-names", &[0x82, 1, b'a']));
    for (at, leaf) in
        [followed_by("half-a-name", &[0x82, 9, b'a']), followed_by("no-name", &[0x82, 1, 0xff])].iter().enumerate()
    {
        // curl would not show such a certificate.
        let seen = said(&s_client(&world, leaf, &["-ign_eof"], ""));
        assert!(seen.contains("alert bad certificate"), "{seen}");
        let series = format!("{HANDSHAKES}{{result=\"certificate-malformed\"}}");
        eventually("it is counted", || world.metric(&series) == at as f64 + 1.0);
    }
    world.backend.assert_untouched();
}

#[test]
fn nobody_gets_in_without_a_certificate() {
    let world = World::new();
    let provider = aws_lc_rs::default_provider();
    let refused = match line::attempt(world.address, None, ALPHA, b"http/1.1", provider) {
        // In TLS 1.3 a client learns of it with its first read.
        Ok(mut line) => line.more().expect_err("an alert"),
        Err(error) => error,
    };
    assert!(refused.to_string().contains("CertificateRequired"), "{refused}");
    eventually("it is counted", || world.metric(&format!("{HANDSHAKES}{{result=\"certificate-missing\"}}")) == 1.0);
}

#[test]
fn revocation_is_read_from_every_list() {
    // An authority of its own: what is revoked here, others hold to be valid.
    let authority = Authority::root(&pki().directory, "revoking");
    let first = authority.client("first", ALPHA_URI);
    let second = authority.client("second", ALPHA_URI);
    let fine = authority.client("fine", ALPHA_URI);
    authority.revoke(&first);
    let old = authority.list("old", LONG_AGO, FARTHER_AWAY);
    authority.forget_revocations();
    authority.revoke(&second);
    let new = authority.list("new", NOT_SO_LONG_AGO, FARTHER_AWAY);
    authority.forget_revocations();
    let expired = authority.list("expired", LONG_AGO, NOT_SO_LONG_AGO);
    let directory = pki().directory.display();
    let with = |lists: &[&std::path::Path]| {
        let lists: Vec<_> = lists.iter().map(|list| format!("\"{}\"", list.display())).collect();
        Setup::new()
            .gateway(&format!("{directory}/partners/ca.pem"), &authority.certificate().display().to_string())
            .gateway(&format!("\"{directory}/partners/current.crl\""), &lists.join(", "))
            .start(one_person)
    };
    let alert = "certificate revoked";
    for lists in [[&*old, &*new], [&*new, &*old]] {
        let world = with(&lists);
        assert_shut_out(&world, &first, "certificate-revoked", alert);
        assert_shut_out(&world, &second, "certificate-revoked", alert);
        assert_let_in(&world, &fine);
    }
    let world = with(&[&expired, &new]);
    assert_shut_out(&world, &second, "certificate-revoked", alert);
    assert_let_in(&world, &fine);
    assert_shut_out(&with(&[&expired]), &fine, "revocation-unknown", "unknown");
}

/// The system's clock may be set back, and a certificate that was let in a minute ago must not be of the future then.
#[test]
fn handshakes_go_by_the_gateways_clock() {
    let own = &authorities().own;
    let extensions = named(ALPHA_URI);
    let issue = |name, from, until| own.issue(name, &Profile { extensions: &extensions, from, until });
    let then = issue("valid-then", LONG_AGO, NOT_SO_LONG_AGO);
    let later = issue("valid-later", NOT_SO_LONG_AGO, FAR_AWAY);
    let at = Timestamp::parse("2020-06-01T00:00:00Z").expect("a time");
    let clock = Clock::manual(at);
    let world = trusting(&["current.crl"]).start_by(clock.clone(), one_person);
    assert_let_in(&world, &then);
    assert_shut_out(&world, &later, "certificate-not-yet-valid", "certificate expired");
    clock.advance(Clock::system().now().since(at));
    assert_shut_out(&world, &then, "certificate-expired", "certificate expired");
    assert_let_in(&world, &later);
}

#[test]
fn a_list_counts_through_its_grace_and_no_longer() {
    let own = &authorities().own;
    let leaf = own.client("in-time", ALPHA_URI);
    let now = Clock::system().now().unix_seconds();
    own.list("hour-late", LONG_AGO, &digits(Timestamp::from_unix_seconds(now - 3_600)));
    for (grace, counts) in [("24h", true), ("61min", true), ("59min", false), ("0s", false)] {
        let setup = trusting(&["hour-late.crl"]).gateway("crl_grace = \"24h\"", &format!("crl_grace = \"{grace}\""));
        let world = setup.start(one_person);
        match counts {
            true => assert_let_in(&world, &leaf),
            false => assert_shut_out(&world, &leaf, "revocation-unknown", "unknown"),
        }
    }
    // Another authority's list says nothing of this one's certificates.
    let foreign = format!("{}/other/current.crl", pki().directory.display());
    assert_shut_out(&trusting(&[&foreign]).start(one_person), &leaf, "revocation-unknown", "unknown");
}

/// As `openssl ca` takes a time: `YYYYMMDDHHMMSSZ`.
fn digits(time: Timestamp) -> String {
    let digits: String = time.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    format!("{digits}Z")
}

#[test]
fn a_chain_needs_a_list_of_each_of_its_authorities() {
    let below = &authorities().below;
    let leaf = below.client("deep", ALPHA_URI);
    let chained = leaf.chained(&[below]);
    let list = format!("{}/current.crl", below.directory.display());
    let both = trusting(&["current.crl", &list]).start(one_person);
    assert_let_in(&both, &chained);
    assert_shut_out(&both, &leaf, "issuer-unknown", "unknown ca");
    assert_shut_out(&trusting(&["current.crl"]).start(one_person), &chained, "revocation-unknown", "unknown");
    assert_shut_out(&trusting(&[&list]).start(one_person), &chained, "revocation-unknown", "unknown");
    // `leaf` asks for the list of the leaf's own authority only.
    let leaf_only = |lists: &[&str]| trusting(lists).gateway("revocation = \"chain\"", "revocation = \"leaf\"");
    assert_let_in(&leaf_only(&[&list]).start(one_person), &chained);
    assert_shut_out(&leaf_only(&["current.crl"]).start(one_person), &chained, "revocation-unknown", "unknown");
}

#[test]
fn a_revoked_intermediate_takes_its_leaves_with_it() {
    let root = Authority::root(&pki().directory, "root-of-revoked");
    let below = root.intermediate("revoked-below");
    let chained = below.client("leaf", ALPHA_URI).chained(&[&below]);
    root.revoke(&Leaf { certificate: below.certificate(), key: below.directory.join("ca.key") });
    let lists = [root.list("current", LONG_AGO, FARTHER_AWAY), below.list("current", LONG_AGO, FARTHER_AWAY)];
    let lists = lists.map(|list| format!("\"{}\"", list.display())).join(", ");
    let directory = pki().directory.display();
    let world = Setup::new()
        .gateway(&format!("{directory}/partners/ca.pem"), &root.certificate().display().to_string())
        .gateway(&format!("\"{directory}/partners/current.crl\""), &lists)
        .start(one_person);
    assert_shut_out(&world, &chained, "certificate-revoked", "certificate revoked");
}

#[test]
fn a_name_counts_only_under_the_issuer_that_it_was_agreed_for() {
    let Authorities { other, .. } = authorities();
    let directory = other.directory.display();
    let second = format!(
        "[[issuer]]\nname = \"elsewhere\"\ncertificates = \"{directory}/ca.pem\"\ncrls = [\"{directory}/current.crl\"]\n"
    );
    let world = Setup::new().section(&second).start(one_person);
    for names in [ALPHA_URI, "DNS:beta.partners.test"] {
        let answer = knock(&world, &other.client("pretender", names)).expect("a handshake: its issuer is trusted");
        answer.assert_refused(403, "identity-unknown");
    }
    assert_let_in(&world, &pki().alpha);
    // The same name, agreed under the other issuer.
    let setup = Setup::new().section(&second);
    let alpha = "uri = \"spiffe://partners.test/alpha\"\nissuer = \"partners\"";
    let world = setup.partner("alpha", alpha, &alpha.replace("partners\"", "elsewhere\"")).start(one_person);
    assert_let_in(&world, &other.client("agreed", ALPHA_URI));
    knock(&world, &pki().alpha).expect("a handshake").assert_refused(403, "identity-unknown");
}

#[test]
fn partners_are_known_by_uri_name_or_key() {
    let pki = pki();
    let world = World::new();
    for (leaf, source, partner, proof) in [
        (&pki.alpha, ALPHA, "alpha", "spiffe://partners.test/alpha"),
        (&pki.beta, BETA, "beta", "DNS name beta.partners.test"),
        (&pki.gamma, GAMMA, "gamma", "public key sha256:"),
    ] {
        let answer = world.curl_as(leaf, WHOAMI, &["--interface", &source.to_string()]).answer().json();
        assert_eq!(answer["partner"], partner);
        assert!(answer["identity"].as_str().is_some_and(|identity| identity.contains(proof)), "{answer}");
    }
    // Whoever has no rights does not keep the connection either.
    let mut line = world.line(&pki.stranger, ALPHA);
    let refused = line.ask(format!("GET {WHOAMI} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    refused.assert_refused(403, "identity-unknown");
    assert_eq!(refused.header("connection"), "close");
    line.assert_closed();
    for (name, names) in [
        ("wildcard", "DNS:*.partners.test"),
        ("longer", "URI:spiffe://partners.test/alpha/x"),
        ("shorter", "URI:spiffe://partners.test/alph"),
        ("louder", "URI:spiffe://partners.test/ALPHA"),
        ("dns-for-uri", "DNS:partners.test"),
    ] {
        let leaf = pki.partners.client(name, names);
        knock(&world, &leaf).expect("a handshake").assert_refused(403, "identity-unknown");
    }
    // A common name is no identity.
    let leaf = pki.partners.issue("beta.partners.test", &client("extendedKeyUsage = clientAuth\n"));
    knock(&world, &leaf).expect("a handshake").assert_refused(403, "identity-unknown");
}

#[test]
fn a_partner_rotates_its_certificate_without_a_gap() {
    let pki = pki();
    let next = pki.partners.client("alpha-next", "URI:spiffe://partners.test/alpha-next");
    let world = Setup::new()
        .partner(
            "alpha",
            "[[identity]]\n",
            "[[identity]]\nuri = \"spiffe://partners.test/alpha-next\"\nissuer = \"partners\"\n[[identity]]\n",
        )
        .start(one_person);
    assert_let_in(&world, &pki.alpha);
    assert_let_in(&world, &next);
    knock(&World::new(), &next).expect("a handshake").assert_refused(403, "identity-unknown");
}

#[test]
fn a_certificate_of_two_partners_is_nobodys() {
    let names = format!("{ALPHA_URI}, URI:spiffe://partners.test/stranger");
    let one_of_two = pki().partners.client("alpha-and-nobody", &names);
    let names = format!("{ALPHA_URI}, DNS:beta.partners.test");
    let both = pki().partners.client("alpha-and-beta", &names);
    let world = World::new();
    assert_let_in(&world, &one_of_two);
    knock(&world, &both).expect("a handshake").assert_refused(403, "identity-unknown");
    let page = world.metrics();
    assert!(page.contains("reason=\"identity-ambiguous\""), "the operator sees more than the partner\n{page}");
}

/// `openssl s_client` with this on its standard input.
fn s_client(world: &World, leaf: &Leaf, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &world.address.to_string(), "-servername", "localhost"]);
    command.arg("-CAfile").arg(pki().partners.certificate()).arg("-cert").arg(&leaf.certificate);
    command.arg("-key").arg(&leaf.key).arg("-cert_chain").arg(&leaf.certificate).args(arguments);
    run(&mut command, input.as_bytes())
}

/// The same as alpha, asking who it is.
fn s_client_asks(world: &World, arguments: &[&str]) -> String {
    let request = format!("GET {WHOAMI} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    said(&s_client(world, &pki().alpha, arguments, &request))
}

fn said(ran: &Ran) -> String {
    String::from_utf8_lossy(&[&ran.stdout[..], &ran.stderr[..]].concat()).into_owned()
}

#[test]
fn tls_1_2_is_spoken_only_where_it_is_configured() {
    let world = World::new();
    let refused = s_client_asks(&world, &["-tls1_2", "-ign_eof"]);
    assert!(refused.contains("alert protocol version") && !refused.contains("200 OK"), "{refused}");
    eventually("it is counted", || world.metric(&format!("{HANDSHAKES}{{result=\"protocol-unsupported\"}}")) == 1.0);

    let setup = Setup::new().gateway("min_version = \"1.3\"", "min_version = \"1.2\"");
    let world = setup.start(one_person);
    let spoken = s_client_asks(&world, &["-tls1_2", "-ign_eof"]);
    assert!(spoken.contains("200 OK") && spoken.contains("\"partner\":\"alpha\""), "{spoken}");
    for old in ["-tls1_1", "-tls1"] {
        let refused = s_client_asks(&world, &[old, "-ign_eof", "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(!refused.contains("200 OK"), "{refused}");
    }
}

#[test]
fn a_key_exchange_that_outlives_quantum_computers_is_offered() {
    let world = World::new();
    for group in [aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519] {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![group];
        let line = line::attempt(world.address, Some(&pki().alpha), ALPHA, b"http/1.1", provider);
        let mut line = line.unwrap_or_else(|error| panic!("{group:?}: {error}"));
        assert_eq!(line.ask(format!("GET {WHOAMI} HTTP/1.1\r\nhost: localhost\r\n\r\n")).status, 200);
        let chosen = line.session().negotiated_key_exchange_group().expect("a group");
        assert_eq!(chosen.name(), group.name());
    }
}

#[test]
fn no_session_is_ever_resumed() {
    let world = World::new();
    let session = world.directory().join("session");
    let path = session.display().to_string();
    let first = s_client_asks(&world, &["-tls1_3", "-ign_eof", "-sess_out", &path]);
    assert!(first.contains("200 OK"), "{first}");
    assert!(!first.contains("Post-Handshake New Session Ticket") && !session.exists(), "{first}");

    let setup = Setup::new().gateway("min_version = \"1.3\"", "min_version = \"1.2\"");
    let world = setup.start(one_person);
    let again = s_client_asks(&world, &["-tls1_2", "-reconnect"]);
    let count = |text: &str| again.lines().filter(|line| line.starts_with(text)).count();
    assert_eq!((count("New, "), count("Reused, ")), (6, 0), "{again}");
    assert!(!again.contains("TLS session ticket:"), "{again}");
}

#[test]
fn a_handshake_has_a_deadline() {
    let setup = Setup::new().gateway("handshake_timeout = \"10s\"", "handshake_timeout = \"1s\"");
    let world = setup.start(one_person);
    let begun = Instant::now();
    let mut silent = line::tcp(ALPHA, world.address).expect("connected");
    assert_eq!(read_to_close(&mut silent).expect("closed in order"), b"");
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    eventually("it is counted", || world.metric(&format!("{HANDSHAKES}{{result=\"timeout\"}}")) == 1.0);
}

#[test]
fn what_is_not_tls_is_refused() {
    let world = World::new();
    let mut plain = line::tcp(ALPHA, world.address).expect("connected");
    std::io::Write::write_all(&mut plain, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let answer = read_to_close(&mut plain).unwrap_or_default();
    assert!(!answer.starts_with(b"HTTP"), "{:?}", String::from_utf8_lossy(&answer));
    eventually("it is counted", || world.metric(&format!("{HANDSHAKES}{{result=\"other\"}}")) == 1.0);
}

#[test]
fn the_log_says_whose_certificate_was_refused() {
    let own = &authorities().own;
    let extensions = named(ALPHA_URI);
    let profile = Profile { extensions: &extensions, from: LONG_AGO, until: NOT_SO_LONG_AGO };
    let leaf = own.issue("logged", &profile);
    let mut world = trusting(&["current.crl"]).spawn(one_person);
    knock(&world, &leaf).expect_err("expired");
    let line = world.process().logged(|line| line["message"] == "handshake refused");
    assert_eq!(line["reason"], "certificate-expired");
    assert_eq!(line["subject"], "O=Test, CN=logged");
    assert_eq!(line["issuer"], "O=Test, CN=own");
    assert_eq!(line["source"], "127.0.0.1");
    let serial = line["serial"].as_str().expect("a serial number").replace(':', "").to_uppercase();
    assert_eq!(serial.trim_start_matches("00"), leaf.serial());
    assert_eq!(world.metric(&format!("{HANDSHAKES}{{result=\"certificate-expired\"}}")), 1.0, "counted before");
}
