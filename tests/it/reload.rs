//! What changes while the gateway runs, and what survives when it does not? Reload, revocation, freeze, restart.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use dwarpal::clock::Clock;
use dwarpal::reload::Reload;

use crate::world::backend::{Exchange, one_person};
use crate::world::frames;
use crate::world::line::Line;
use crate::world::pki::{Authority, FARTHER_AWAY, LONG_AGO, Leaf, Profile, named, pki};
use crate::world::{ALPHA, BETA, GAMMA, NOWHERE, Setup, World, eventually, line};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";
const SERVED: &str = "dwarpal_generation";
/// From a change that is served to the end of the connections that it is about.
const CUT_WITHIN: Duration = Duration::from_secs(2);

fn mobile(number: &str) -> String {
    let body = format!(r#"{{"mobile":"{number}","purpose":"care"}}"#);
    let length = body.len();
    format!(
        "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[track_caller]
fn swapped(reload: Reload) -> (u64, Vec<String>) {
    match reload {
        Reload::Swapped { generation, changed, .. } => (generation, changed),
        Reload::Refused { problems, .. } => panic!("{problems:#?}"),
    }
}

#[track_caller]
fn refused(reload: Reload) -> (String, Option<u64>) {
    match reload {
        Reload::Refused { problems, renewed } => {
            (problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), renewed)
        }
        swapped => panic!("{swapped:?}"),
    }
}

/// The gateway ends this connection in time, and nothing comes on it any more.
#[track_caller]
fn assert_cut(line: &mut Line, since: Instant) {
    line.until_closed();
    assert!(since.elapsed() < CUT_WITHIN, "{:?}", since.elapsed());
}

// ---- reload

#[test]
fn a_reload_serves_the_new_configuration_and_disturbs_nobody() {
    let setup = Setup::new();
    let world = setup.clone().start(one_person);
    let (mut alpha, mut beta) = (world.alpha(), world.line(&pki().beta, BETA));
    assert_eq!((alpha.ask(WHOAMI).status, beta.ask(WHOAMI).status), (200, 200));
    // Gamma may come from another address, and from there only.
    world.configure(&setup.clone().partner("gamma", "127.0.0.4/32", "127.0.0.9/32"));
    assert_eq!(swapped(world.gateway().reload()), (2, vec!["gamma".to_owned()]));
    assert_eq!(world.line(&pki().gamma, NOWHERE).ask(REST).status, 200);
    assert!(line::attempt(world.address, Some(&pki().gamma), GAMMA, b"http/1.1", default_provider()).is_err());
    let since = Instant::now();
    while since.elapsed() < CUT_WITHIN {
        assert_eq!((alpha.ask(REST).status, beta.ask(WHOAMI).status), (200, 200), "on the connections of before");
    }
    assert_eq!(world.metric(SERVED), 2.0);
    assert_eq!(world.metric("dwarpal_reloads_total{result=\"swapped\"}"), 1.0);
    // Nothing was changed: nobody is named.
    assert_eq!(swapped(world.gateway().reload()), (3, Vec::new()));
}

fn default_provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

#[test]
fn signal_command_and_a_changed_file_all_reload() {
    let setup = Setup::new();
    let mut world = setup.clone().spawn(one_person);
    world.process().hang_up();
    eventually("the signal is heard", || world.metric(SERVED) == 2.0);

    let (code, out, error) = world.command(&["reload"]);
    assert_eq!((code, out.trim()), (0, "generation 3 is served; changed: no partner"), "{error}");

    world.configure(&setup.clone().partner("gamma", "127.0.0.4/32", "127.0.0.9/32"));
    eventually("the file is seen", || world.metric(SERVED) == 4.0);
    let line = world.process().logged(|line| line["message"] == "reloaded" && line["generation"] == 4);
    assert_eq!(line["changed"], "gamma");
}

#[test]
fn what_is_wrong_leaves_the_old_configuration_serving() {
    let setup = Setup::new();
    let mut world = setup.clone().spawn(one_person);
    let broken = setup.clone().partner("gamma", "cidr = \"127.0.0.4/32\"", "cidr = \"127.0.0.4/33\"").partner(
        "beta",
        "name = \"beta\"",
        "name = \"beta\"\nnmae = \"b\"",
    );
    world.configure(&broken);
    let (code, out, error) = world.command(&["reload"]);
    assert_eq!((code, out.as_str()), (3, ""));
    for said in ["partners/gamma.toml", "partners/beta.toml", "nmae", "refused; generation 1 goes on as before"] {
        assert!(error.contains(said), "{said} in: {error}");
    }
    assert_eq!(world.line(&pki().gamma, GAMMA).ask(REST).status, 200);
    world.process().logged(|line| line["message"] == "reload refused" && line["problems"] == 2);
    assert_eq!(world.metric("dwarpal_reloads_total{result=\"refused\"}"), 1.0);
    assert_eq!(world.metric(SERVED), 1.0);

    // Syntax, files that are gone, and what only a restart can change.
    for (change, said) in [
        (setup.clone().section("\n[[broken\n"), "not valid TOML"),
        (
            setup
                .clone()
                .gateway("connections_max = 1000", "connections_max = 1000\nworkers = 2")
                .gateway("workers = 1\n", ""),
            "listen.workers",
        ),
        (setup.clone().gateway("directory = \"data\"", "directory = \"elsewhere\""), "data.directory"),
        (
            setup
                .clone()
                .gateway("PKI/gateway.key".replace("PKI", &pki().directory.display().to_string()).as_str(), "gone.key"),
            "tls.key",
        ),
    ] {
        world.configure(&change);
        let data = world.directory().join("data");
        let (code, _, error) = world.command(&["reload", "--data", &data.display().to_string()]);
        assert!(code == 3 && error.contains(said), "{said} in: {code} {error}");
    }
    world.configure(&setup);
    assert_eq!(world.command(&["reload"]).0, 0);
}

#[test]
fn a_case_that_fails_holds_a_reload_up_unless_it_failed_before() {
    let case = |name: &str, expect: &str| {
        format!(
            "[[case]]\nname = \"{name}\"\npartner = \"gamma\"\nsource = \"127.0.0.4\"\nrequest = \"GET /rest/x\"\nexpect = \"{expect}\"\n"
        )
    };
    let setup = Setup::new();
    let world = setup.clone().start(one_person);
    let cases = world.directory().join("cases");
    fs::create_dir(&cases).expect("directory");
    let write = |text: &str| fs::write(cases.join("gamma.toml"), text).expect("written");
    write(&case("gamma is let in", "deny"));
    let (problems, _) = refused(world.gateway().reload());
    assert!(problems.contains("gamma is let in") && problems.contains("expected deny, got allow"), "{problems}");
    write(&case("gamma is let in", "allow"));
    let generation = swapped(world.gateway().reload()).0;
    // The change that breaks it is refused …
    world.configure(&setup.clone().partner("gamma", "127.0.0.4/32", "127.0.0.9/32"));
    assert!(refused(world.gateway().reload()).0.contains("network-not-allowed"));
    assert_eq!(world.gateway().snapshot().generation, generation);
    // … but not one by which nothing gets worse: the case fails because time has passed, and that is said.
    let expired =
        setup.clone().partner("gamma", "cidr = \"127.0.0.4/32\"", "cidr = \"127.0.0.4/32\"\nexpires = 2021-06-30");
    write("");
    world.configure(&expired);
    swapped(world.gateway().reload());
    write(&case("gamma is kept out", "deny"));
    swapped(world.gateway().reload());
}

// ---- what is withdrawn

#[test]
fn whoever_loses_network_identity_or_grant_is_held_to_it_and_cut() {
    let setup = Setup::new();
    let uri = "uri = \"spiffe://partners.test/alpha\"";
    let rest = "[[grant]]\nroute = \"rest\"\n";
    for (change, status, code, reason) in [
        (setup.clone().partner("alpha", "127.0.0.1/32", "127.0.0.5/32"), 403, "network-not-allowed", "network"),
        (
            setup.clone().partner("alpha", uri, "uri = \"spiffe://partners.test/other\""),
            403,
            "identity-unknown",
            "identity",
        ),
        (setup.clone().partner("alpha", rest, ""), 403, "no-grant", "grant"),
    ] {
        let world = setup.clone().start(one_person);
        let (mut idle, mut asking) = (world.alpha(), world.alpha());
        let mut h2 = frames::connect(&world, &pki().alpha, ALPHA);
        h2.send(frames::request(1, "GET", "/rest/x"));
        let mut other = world.line(&pki().beta, BETA);
        assert_eq!((idle.ask(REST).status, asking.ask(REST).status, other.ask(WHOAMI).status), (200, 200, 200));
        world.configure(&change);
        swapped(world.gateway().reload());
        let since = Instant::now();
        asking.ask(REST).assert_refused(status, code);
        assert_cut(&mut idle, since);
        let mut kinds = Vec::new();
        while let Some((kind, ..)) = frames::next(&mut h2) {
            kinds.push(kind);
        }
        assert!(kinds.contains(&frames::GOAWAY), "{kinds:?}");
        assert!(since.elapsed() < CUT_WITHIN, "{:?}", since.elapsed());
        let cut = format!("dwarpal_connections_cut_total{{reason=\"{reason}-withdrawn\"}}");
        eventually("it is counted", || world.metric(&cut) >= 2.0);
        assert_eq!(other.ask(WHOAMI).status, 200, "another partner notices nothing");
    }
}

#[test]
fn an_answer_under_way_does_not_outlive_the_right_to_it() {
    let setup = Setup::new();
    let world = setup.clone().start(|exchange| {
        exchange.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
        exchange.write([b'x'; 1000]);
        exchange.hold();
    });
    let world_address = world.address;
    let mut line = world.alpha();
    line.send(REST);
    assert_eq!(line.head().status, 200);
    world.configure(&setup.partner("alpha", "127.0.0.1/32", "127.0.0.5/32"));
    swapped(world.gateway().reload());
    let since = Instant::now();
    assert_cut(&mut line, since);
    assert_eq!(world_address, world.address);
}

/// Says a little of a long answer, and no more.
fn endless(exchange: &mut Exchange) {
    exchange.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
    exchange.write([b'x'; 1000]);
    exchange.hold();
}

#[test]
fn a_connection_from_before_its_partner_existed_is_cut_like_any_other() {
    let setup = Setup::new().partner("alpha", "\nconnections_max = 1000", "\nconnections_max = 1");
    let uri = "spiffe://partners.test/alpha";
    let nobody = setup.clone().partner("alpha", uri, "spiffe://partners.test/nobody-yet");
    type Change<'a> = &'a dyn Fn(&World);
    let reload = |setup: Setup| {
        move |world: &World| {
            world.configure(&setup);
            swapped(world.gateway().reload());
        }
    };
    let freeze = |world: &World| {
        assert_eq!(world.command(&["freeze", "alpha", "--reason", "a test"]).0, 0);
    };
    let network = reload(setup.clone().partner("alpha", "127.0.0.1/32", "127.0.0.5/32"));
    let grant = reload(setup.clone().partner("alpha", "[[grant]]\nroute = \"rest\"\n", ""));
    let identity = reload(nobody.clone());
    let changes: [(Change, &str); 4] = [
        (&freeze, "partner-frozen"),
        (&network, "network-withdrawn"),
        (&grant, "grant-withdrawn"),
        (&identity, "identity-withdrawn"),
    ];
    for (change, reason) in changes {
        let world = nobody.clone().start(endless);
        let (mut line, mut second) = (world.alpha(), world.alpha());
        eventually("both are nobody's", || world.metric("dwarpal_handshakes_total{result=\"ok\"}") == 2.0);
        reload(setup.clone())(&world);
        line.send(REST);
        assert_eq!(line.head().status, 200);
        // It takes one of its partner's places since that is known.
        second.ask(REST).assert_refused(429, "too-many-connections");
        change(&world);
        assert_cut(&mut line, Instant::now());
        let cut = format!("dwarpal_connections_cut_total{{reason=\"{reason}\"}}");
        eventually(reason, || world.metric(&cut) >= 1.0);
    }
}

#[test]
fn the_slowest_cut_leaves_time_to_spare() {
    let setup = Setup::new();
    let world = setup.clone().start(endless);
    // Connections are looked after at times of their own: one of these has to wait for nearly a whole tick.
    let mut lines = Vec::new();
    for _ in 0..40 {
        lines.push(world.alpha());
        thread::park_timeout(Duration::from_millis(25));
    }
    for line in &mut lines {
        line.send(REST);
        assert_eq!(line.head().status, 200);
    }
    world.configure(&setup.partner("alpha", "127.0.0.1/32", "127.0.0.5/32"));
    swapped(world.gateway().reload());
    let since = Instant::now();
    for line in &mut lines {
        line.until_closed();
    }
    assert!(since.elapsed() < CUT_WITHIN.mul_f32(0.85), "{:?}", since.elapsed());
}

#[test]
fn what_ends_by_a_date_is_cut_as_well() {
    let day = Duration::from_secs(24 * 3_600);
    let now = Clock::system().now();
    let tomorrow = now.plus(day).to_string();
    let date = &tomorrow[..10];
    let digits: String = tomorrow.chars().filter(char::is_ascii_digit).take(14).collect();
    let (names, until) = (named("URI:spiffe://partners.test/alpha"), format!("{digits}Z"));
    let short = Profile { extensions: &names, from: LONG_AGO, until: &until };
    let short = pki().partners.issue("alpha-until-tomorrow", &short);
    let cidr = "cidr = \"127.0.0.1/32\"";
    let setup = Setup::new();
    for (setup, leaf, reason) in [
        (setup.clone().partner("alpha", cidr, &format!("{cidr}\nexpires = {date}")), &pki().alpha, "network-withdrawn"),
        (
            setup.clone().partner("alpha", "name = \"alpha\"", &format!("name = \"alpha\"\nvalid_until = {date}")),
            &pki().alpha,
            "partner-not-valid",
        ),
        (setup.clone(), &short, "certificate-expired"),
    ] {
        let clock = Clock::manual(now);
        let world = setup.start_by(clock.clone(), endless);
        let (mut line, mut other) = (world.line(leaf, ALPHA), world.line(&pki().beta, BETA));
        line.send(REST);
        assert_eq!((line.head().status, other.ask(WHOAMI).status), (200, 200));
        clock.advance(3 * day);
        assert_cut(&mut line, Instant::now());
        let cut = format!("dwarpal_connections_cut_total{{reason=\"{reason}\"}}");
        eventually(reason, || world.metric(&cut) == 1.0);
        assert_eq!(other.ask(WHOAMI).status, 200, "another partner notices nothing");
    }
}

/// A gateway that trusts an authority of its own, whose list is a file that the test replaces.
fn revocable(name: &str) -> (Authority, Leaf, Setup) {
    let authority = Authority::root(&pki().directory, name);
    let leaf = authority.client("alpha", "URI:spiffe://partners.test/alpha");
    authority.list("current", LONG_AGO, FARTHER_AWAY);
    let directory = pki().directory.display();
    let setup = Setup::new()
        .gateway(&format!("{directory}/partners/ca.pem"), &authority.certificate().display().to_string())
        .gateway(
            &format!("{directory}/partners/current.crl"),
            &authority.directory.join("current.crl").display().to_string(),
        );
    (authority, leaf, setup)
}

#[test]
fn a_revocation_cuts_open_connections_and_lets_no_new_one_in() {
    let (authority, leaf, setup) = revocable("revoked-later");
    let other = authority.client("other", "URI:spiffe://partners.test/alpha");
    let world = setup.clone().start(one_person);
    let (mut idle, mut asking) = (world.line(&leaf, ALPHA), world.line(&leaf, ALPHA));
    let mut same_partner = world.line(&other, ALPHA);
    for line in [&mut idle, &mut asking, &mut same_partner] {
        assert_eq!(line.ask(REST).status, 200);
    }
    authority.revoke(&leaf);
    authority.list("current", LONG_AGO, FARTHER_AWAY);
    // Somebody is in the middle of editing: that must not hold the list up.
    world.configure(&setup.clone().section("\n[[broken\n"));
    let (problems, renewed) = refused(world.gateway().reload());
    assert!(problems.contains("TOML") && renewed == Some(2), "{problems} {renewed:?}");
    let since = Instant::now();
    asking.ask(REST).assert_refused(403, "certificate-refused");
    assert_cut(&mut idle, since);
    let refused = line::attempt(world.address, Some(&leaf), ALPHA, b"http/1.1", default_provider());
    let refused = refused.and_then(|mut line| line.more()).expect_err("an alert");
    assert!(refused.to_string().contains("CertificateRevoked"), "{refused}");
    assert_eq!(same_partner.ask(REST).status, 200, "its other certificate still counts");
    assert_eq!(world.metric("dwarpal_reloads_total{result=\"renewed\"}"), 1.0);
}

#[test]
fn a_bad_file_holds_up_no_revocation_in_another() {
    let (authority, leaf, setup) = revocable("revoked-beside");
    let other = Authority::root(&pki().directory, "beside");
    let list = other.list("current", LONG_AGO, FARTHER_AWAY);
    let keys = tempfile::TempDir::new().expect("directory");
    let key = keys.path().join("gateway.key");
    let good = pki().directory.join("gateway.key");
    fs::copy(&good, &key).expect("copied");
    let issuer = format!(
        "\n[[issuer]]\nname = \"beside\"\ncertificates = \"{}\"\ncrls = [\"{}\"]\n",
        other.certificate().display(),
        list.display()
    );
    let setup = setup.gateway(&good.display().to_string(), &key.display().to_string()).section(&issuer);
    let world = setup.start(one_person);
    let mut line = world.line(&leaf, ALPHA);
    assert_eq!(line.ask(REST).status, 200);
    // Somebody else's list is garbage, the key is another's, and this one's list revokes.
    fs::write(&list, "garbage").expect("written");
    fs::copy(&pki().alpha.key, &key).expect("copied");
    authority.revoke(&leaf);
    authority.list("current", LONG_AGO, FARTHER_AWAY);
    let (problems, renewed) = refused(world.gateway().reload());
    assert!(problems.contains("issuer.crls") && problems.contains("tls.certificate"), "{problems}");
    assert_eq!(renewed, Some(2));
    line.ask(REST).assert_refused(403, "certificate-refused");
}

#[test]
fn a_revocation_cuts_nobodys_connections_as_well() {
    let (authority, _, setup) = revocable("revoked-stranger");
    let leaf = authority.client("nobody", "URI:spiffe://partners.test/nobody");
    let world = setup.start(one_person);
    let mut line = world.line(&leaf, ALPHA);
    authority.revoke(&leaf);
    authority.list("current", LONG_AGO, FARTHER_AWAY);
    swapped(world.gateway().reload());
    assert_cut(&mut line, Instant::now());
}

#[test]
fn a_new_ca_bundle_lets_the_old_one_go() {
    let (_, leaf, setup) = revocable("replaced");
    let world = setup.clone().start(one_person);
    let mut line = world.line(&leaf, ALPHA);
    assert_eq!(line.ask(REST).status, 200);
    world.configure(&Setup::new());
    swapped(world.gateway().reload());
    let since = Instant::now();
    assert_cut(&mut line, since);
    assert_eq!(world.alpha().ask(REST).status, 200);
}

#[test]
fn a_new_certificate_of_the_gateway_is_shown_to_new_connections() {
    let directory = tempfile::TempDir::new().expect("directory");
    let own = |name: &str| directory.path().join(name).display().to_string();
    let (certificate, key) = (own("gateway.pem"), own("gateway.key"));
    let issue = |name: &str| {
        let extensions = "basicConstraints = CA:FALSE\nextendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n";
        let leaf = pki().partners.issue(name, &crate::world::pki::client(extensions));
        fs::copy(&leaf.certificate, &certificate).expect("copied");
        fs::copy(&leaf.key, &key).expect("copied");
        leaf.der()
    };
    let shown = |line: &Line| line.session().peer_certificates().expect("a chain")[0].to_vec();
    let first = issue("gateway-first");
    let pki_directory = pki().directory.display();
    let setup = Setup::new()
        .gateway(&format!("{pki_directory}/gateway.pem"), &certificate)
        .gateway(&format!("{pki_directory}/gateway.key"), &key);
    let world = setup.start(one_person);
    let mut before = world.alpha();
    assert_eq!(shown(&before), first);
    let second = issue("gateway-second");
    eventually("the file is seen", || shown(&world.alpha()) == second);
    assert_eq!(before.ask(REST).status, 200, "the old connection goes on");
}

// ---- freeze

#[test]
fn a_frozen_partner_gets_nothing_until_it_is_thawed() {
    let mut world = Setup::new().spawn(one_person);
    let (mut idle, mut asking) = (world.alpha(), world.alpha());
    assert_eq!((idle.ask(REST).status, asking.ask(REST).status), (200, 200));
    let (code, out, error) = world.command(&["freeze", "alpha", "--reason", "it asks for too many"]);
    let since = Instant::now();
    assert_eq!((code, out.as_str()), (0, "alpha is frozen\n"), "{error}");
    let held = asking.ask(REST);
    assert_eq!((held.status, held.problem().as_str()), (403, "held"));
    assert_eq!(held.values("proxy-status"), [""; 0], "how it came to be held is nobody's business");
    assert_cut(&mut idle, since);
    assert_eq!(world.line(&pki().beta, BETA).ask(WHOAMI).status, 200);
    let asked = world.backend.count();

    // At the handshake, and each time later than the last.
    let knock = |world: &World| {
        let begun = Instant::now();
        world.alpha().assert_closed();
        begun.elapsed()
    };
    let waits = [knock(&world), knock(&world), knock(&world)];
    for (wait, least) in waits.iter().zip([250, 500, 1_000]) {
        assert!(*wait >= Duration::from_millis(least), "{waits:?}");
    }
    let refused = "dwarpal_handshakes_total{result=\"partner-frozen\"}";
    eventually("they are counted", || world.metric(refused) == 3.0);
    assert_eq!(world.metric("dwarpal_partner_frozen{partner=\"alpha\"}"), 1.0);
    let logged = world.process().logged(|line| line["message"] == "handshake refused");
    assert!(logged["subject"].as_str().is_some_and(|subject| subject.contains("alpha")), "{logged}");

    // A reload and the end of the process change nothing about it.
    assert_eq!(world.command(&["reload"]).0, 0);
    world.alpha().assert_closed();
    world.kill_and_restart();
    world.alpha().assert_closed();
    assert_eq!(world.backend.count(), asked);
    let (_, status, _) = world.command(&["status"]);
    assert!(status.contains("frozen: alpha") && status.contains("it asks for too many"), "{status}");

    assert_eq!(world.command(&["thaw", "alpha"]), (0, "alpha is thawed\n".to_owned(), String::new()));
    assert_eq!(world.alpha().ask(REST).status, 200);
    world.kill_and_restart();
    assert_eq!(world.alpha().ask(REST).status, 200);
    assert_eq!(world.command(&["thaw", "alpha"]).1, "alpha was not frozen\n");
    let (code, _, error) = world.command(&["freeze", "alhpa", "--reason", "x"]);
    assert!(code == 1 && error.contains("no partner alhpa; there are: alpha, beta, gamma"), "{error}");
}

#[test]
fn a_freeze_waits_for_nothing_that_hangs_and_for_no_drain() {
    let setup = Setup::new().gateway("drain_timeout = \"0s\"", "drain_timeout = \"20s\"");
    let mut world = setup.spawn(|exchange| {
        exchange.write("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n");
        exchange.write([b'x'; 1000]);
        exchange.hold();
    });
    let data = world.directory().join("data").display().to_string();
    let freeze =
        |world: &World, partner: &str| world.command(&["freeze", partner, "--reason", "a test", "--data", &data]);
    // A file that hangs whoever reads it, as one on a network file system may; and a broken configuration.
    let hanging = world.directory().join("partners/hanging.toml");
    assert!(std::process::Command::new("mkfifo").arg(&hanging).status().expect("mkfifo").success());
    let pid = world.process().child.id().to_string();
    let signal = |name: &str| std::process::Command::new("kill").args([name, &pid]).status().expect("kill").success();
    assert!(signal("-HUP"));
    let begun = Instant::now();
    assert_eq!(freeze(&world, "beta"), (0, "beta is frozen\n".to_owned(), String::new()));
    fs::write(world.directory().join("gateway.toml"), "[[broken\n[data]\ndirectory = \"data\"\n").expect("written");
    let (code, _, error) = world.command(&["freeze", "beta", "--reason", "again"]);
    assert!(code == 0 || error.contains("--data"), "{code} {error}");
    // While it drains as well: an answer is under way.
    let mut slow = world.alpha();
    slow.send(REST);
    assert_eq!(slow.head().status, 200);
    assert!(signal("-TERM"));
    world.process().logged(|line| line["message"] == "draining");
    assert_eq!(freeze(&world, "alpha"), (0, "alpha is frozen\n".to_owned(), String::new()));
    assert_cut(&mut slow, Instant::now());
    assert_eq!(world.process().ended(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    // What looks at the world afterwards reads its configuration, and would hang as well.
    fs::remove_file(hanging).expect("removed");
}

#[test]
fn journals_of_crashes_do_not_pile_up() {
    let mut world = Setup::new().spawn(one_person);
    for _ in 0..3 {
        assert_eq!(world.ask(REST).status, 200);
        world.kill_and_restart();
    }
    assert_eq!(world.ask(REST).status, 200);
    let state = world.directory().join("data/state");
    let journals = || {
        let names = fs::read_dir(&state).expect("listed").map(|entry| entry.expect("an entry").file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".journal")).count()
    };
    eventually("one is left", || journals() == 1);
}

#[test]
fn commands_need_a_gateway_and_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let world = Setup::new().spawn(one_person);
    let data = world.directory().join("data");
    let mode = |path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(data.join("control.sock")), mode(data)), (0o600, 0o700));
    let elsewhere = tempfile::TempDir::new().expect("directory");
    let (code, _, error) = world.command(&["status", "--data", &elsewhere.path().display().to_string()]);
    assert!(code == 4 && error.contains("is the gateway running"), "{code} {error}");
    // Two gateways never share what partners have used up.
    let (code, _, error) = world.command(&["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]);
    assert!(code == 4 && error.contains("another gateway uses this directory"), "{code} {error}");
}

// ---- restart

#[test]
fn limits_and_last_matches_survive_reload_and_sigkill() {
    let setup = Setup::new()
        .partner("alpha", "subject = \"100000/s\"", "subject = \"3/d burst 1\"")
        .partner("beta", "requests = \"100000/s\"", "requests = \"1/h burst 2\"")
        .partner("gamma", "source = \"100000/s\"", "source = \"1/h burst 1\"");
    let mut world = setup.clone().spawn(one_person);
    assert_eq!(world.ask(mobile("6412345678")).status, 200);
    for _ in 0..2 {
        assert_eq!(world.line(&pki().beta, BETA).ask(WHOAMI).status, 200);
    }
    assert_eq!(world.line(&pki().gamma, GAMMA).ask(REST).status, 200);
    let matched = "dwarpal_network_last_match_timestamp_seconds{network=\"127.0.0.1/32\",partner=\"alpha\"}";
    let before = world.metric(matched);
    assert!(before > 0.0);
    let check = |world: &World| {
        world.ask(mobile("+91 64123 45678")).assert_refused(429, "rate-limited");
        world.line(&pki().beta, BETA).ask(WHOAMI).assert_refused(429, "rate-limited");
        world.line(&pki().gamma, GAMMA).ask(REST).assert_refused(429, "rate-limited");
        assert_eq!(world.ask(REST).status, 200);
    };
    assert_eq!(world.command(&["reload"]).0, 0);
    assert_eq!(world.metric(matched), before);
    check(&world);
    world.kill_and_restart();
    assert!(world.metric(matched) >= before - 60.0, "kept to the minute");
    check(&world);
    // In peace as well.
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    world.restart();
    assert!(world.metric(matched) >= before);
    check(&world);
    // And no identifier is in any of its files.
    let mut files: Vec<_> = vec![world.directory().join("data")];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).expect("listed").map(|entry| entry.expect("an entry").path()));
        } else if path.is_file() {
            let bytes = fs::read(&path).expect("read");
            assert!(!bytes.windows(10).any(|ten| ten == b"6412345678"), "{}", path.display());
        }
    }
}

#[test]
fn a_sigkill_under_load_forgets_nothing_that_was_answered() {
    let setup = Setup::new().gateway("workers = 1", "workers = 2").partner(
        "alpha",
        "subject = \"100000/s\"",
        "subject = \"1/d burst 1\"\nshadow = [\"containment\"]",
    );
    let mut world = setup.spawn(one_person);
    assert_eq!(world.command(&["freeze", "gamma", "--reason", "a test"]).0, 0);
    let pid = world.process().child.id().to_string();
    let answered: Vec<u64> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|nth| {
                let mut line = world.alpha();
                scope.spawn(move || {
                    let mut answered = Vec::new();
                    for number in 6_400_000_000 + nth * 10_000_000.. {
                        if line.try_send(mobile(&number.to_string())).is_err() || !line.arrives() {
                            return answered;
                        }
                        assert_eq!(line.answer(false).status, 200);
                        answered.push(number);
                    }
                    unreachable!("it is killed before the numbers end")
                })
            })
            .collect();
        eventually("requests are answered", || world.backend.count() > 500);
        assert!(std::process::Command::new("kill").args(["-KILL", &pid]).status().expect("kill").success());
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    });
    assert!(answered.len() > 400, "{}", answered.len());
    world.kill_and_restart();
    let mut line = world.alpha();
    for number in answered {
        let again = line.ask(mobile(&number.to_string()));
        assert_eq!((again.status, again.problem().as_str()), (429, "rate-limited"), "{number} is forgotten");
    }
    world.line(&pki().gamma, GAMMA).assert_closed();
    assert_eq!(line.ask(mobile("6512345678")).status, 200, "and nobody else is remembered");
}

#[test]
fn a_damaged_snapshot_stops_the_start_and_a_torn_journal_does_not() {
    let mut world = Setup::new().spawn(one_person);
    assert_eq!(world.ask(REST).status, 200);
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    let state = world.directory().join("data/state");
    fs::write(state.join("limits.77.journal"), "1234567").expect("written");
    world.restart();
    let logged = world.process().logged(|line| line["message"] == "limits of an earlier run go on");
    assert_eq!(logged["torn_bytes"], 7);
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    let snapshot = state.join("limits.snapshot");
    let mut bytes = fs::read(&snapshot).expect("read");
    bytes[3] ^= 1;
    fs::write(&snapshot, bytes).expect("written");
    let (code, _, error) = world.command(&["serve"]);
    assert!(code == 4 && error.contains("limits.snapshot: it is damaged"), "{code} {error}");
}

#[test]
fn a_raised_limit_holds_at_once() {
    let slow = Setup::new().partner("alpha", "subject = \"100000/s\"", "subject = \"1/d\"");
    let world = slow.start(one_person);
    assert_eq!(world.ask(mobile("6412345678")).status, 200);
    world.ask(mobile("6412345678")).assert_refused(429, "rate-limited");
    world.configure(&Setup::new());
    swapped(world.gateway().reload());
    eventually("a hundred-thousandth of a second passes", || world.ask(mobile("6412345678")).status == 200);
}

/// A disk of its own, so small that it can be filled: what cannot be kept is not allowed, and it gets better by itself.
#[test]
fn a_full_disk_lets_nobody_in_until_there_is_room_again() {
    let disk = tempfile::TempDir::new().expect("directory");
    let data = disk.path().display().to_string();
    let mount = format!("mount -t tmpfs -o size=256k,mode=700 none {data} && exec \"$@\"");
    let setup = Setup::new().gateway("directory = \"data\"", &format!("directory = \"{data}\"")).partner(
        "alpha",
        "subject = \"100000/s\"",
        "subject = \"1/d\"",
    );
    let starter = ["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
    let mut world = setup.spawn_under(&starter, &[], one_person);
    assert_eq!(world.ask(mobile("6412345678")).status, 200);
    // Its disk, as the process sees it.
    let filler = format!("/proc/{}/root{data}/filler", world.process().child.id());
    let fill = || drop(fs::write(&filler, vec![0; 1 << 20]));
    eventually("there is no room left", || {
        fill();
        world.ask(REST).status == 503
    });
    let asked = world.backend.count();
    world.ask(REST).assert_refused(503, "unavailable");
    world.ask(mobile("6512345678")).assert_refused(503, "unavailable");
    assert_eq!(world.backend.count(), asked);
    let (status, why) = world.observe(ALPHA, "/readyz").expect("it answers");
    assert!(status == 503 && why.contains("cannot be kept"), "{status} {why}");
    eventually("it is seen", || world.metric("dwarpal_state_kept") == 0.0);
    world.process().logged(|line| line["message"].as_str().is_some_and(|text| text.contains("cannot be kept")));
    fs::remove_file(&filler).expect("removed");
    eventually("it gets better by itself", || world.ask(REST).status == 200);
    assert_eq!(world.metric("dwarpal_state_kept"), 1.0);
    // What was used up while nothing could be written is still used up.
    world.ask(mobile("6412345678")).assert_refused(429, "rate-limited");
}
