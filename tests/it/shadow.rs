//! Does what is in shadow count, and nothing else? Limits and networks on trial: let through, counted, logged, listed.

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use dwarpal::reload::Reload;

use crate::world::backend::one_person;
use crate::world::line::Line;
use crate::world::pki::pki;
use crate::world::{ALPHA, ALPHA_TOO, BETA, GAMMA, PATIENCE, Setup, World, dwarpal, eventually};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn lookup() -> String {
    let body = r#"{"mobile":"6412345678","purpose":"care"}"#;
    let length = body.len();
    format!(
        "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// Every shadow refusal that was counted, as `partner reason count`.
fn counted(world: &World) -> Vec<String> {
    let page = world.metrics();
    let series = page.lines().filter_map(|line| line.strip_prefix("dwarpal_shadow_refusals_total{partner=\""));
    series.map(|line| line.replace("\",reason=\"", " ").replace("\"}", "")).collect()
}

#[track_caller]
fn reloaded(world: &World, setup: &Setup) {
    world.configure(setup);
    let reload = world.gateway().reload();
    assert!(matches!(reload, Reload::Swapped { .. }), "{reload:?}");
}

// ---- limits

const RATES: [(&str, &str, &str); 4] = [
    ("rate-partner", "requests = \"100000/s\"", "requests = \"1/h\"\nshadow = [\"requests\"]"),
    ("rate-source", "source = \"100000/s\"", "source = \"1/h\"\nshadow = [\"source\"]"),
    ("rate-subject", "subject = \"100000/s\"", "subject = \"1/h\"\nshadow = [\"subject\"]"),
    ("rate-route", "route = \"mobile\"\n", "route = \"mobile\"\nrequests = \"1/h\"\nshadow = [\"requests\"]\n"),
];

fn enforced(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("shadow")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_rate_in_shadow_counts_what_it_would_refuse_and_lets_it_pass() {
    for (reason, from, to) in RATES {
        let ask = |setup: Setup| {
            let world = setup.start(one_person);
            let mut line = world.alpha();
            ((0..3).map(|_| line.ask(lookup()).status).collect::<Vec<_>>(), counted(&world), world.backend.count())
        };
        let asked = ask(Setup::new().partner("alpha", from, to));
        assert_eq!(asked, (vec![200; 3], vec![format!("alpha {reason} 2")], 3), "{reason}");
        let asked = ask(Setup::new().partner("alpha", from, &enforced(to)));
        assert_eq!(asked, (vec![200, 429, 429], vec![], 1), "{reason}, enforced");
    }
}

#[test]
fn places_in_flight_in_shadow_are_counted_and_given_back() {
    for (reason, from, to) in [
        ("in-flight-partner", "in_flight_max = 1000", "in_flight_max = 1\nshadow = [\"in_flight_max\"]"),
        (
            "in-flight-route",
            "route = \"rest\"\n",
            "route = \"rest\"\nin_flight_max = 1\nshadow = [\"in_flight_max\"]\n",
        ),
    ] {
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let world = Setup::new().partner("alpha", from, to).start(move |exchange| {
            exchange.read_body();
            let _ = held.lock().expect("held").recv_timeout(PATIENCE);
            exchange.answer("200 OK", "", b"finished");
        });
        let mut lines: Vec<Line> = (0..3).map(|_| world.alpha()).collect();
        for (at, line) in lines.iter_mut().enumerate() {
            line.send(REST);
            world.backend.requests(at + 1);
        }
        assert_eq!(world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}"), 3.0, "{reason}");
        (0..3).for_each(|_| release.send(()).expect("held"));
        assert!(lines.iter_mut().all(|line| line.answer(false).status == 200));
        eventually("all places are free", || world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}") == 0.0);
        assert_eq!(counted(&world), [format!("alpha {reason} 2")]);
        release.send(()).expect("held");
        assert_eq!(lines[0].ask(REST).status, 200);
        assert_eq!(counted(&world), [format!("alpha {reason} 2")], "alone again");
    }
}

#[test]
fn connections_in_shadow_stay_open_and_their_requests_are_counted() {
    let to = "connections_max = 1\nshadow = [\"connections_max\"]";
    let world = Setup::new().partner("alpha", "connections_max = 1000", to).start(one_person);
    let (mut first, mut second) = (world.alpha(), world.alpha());
    assert_eq!([first.ask(REST), second.ask(REST), second.ask(REST)].map(|answer| answer.status), [200; 3]);
    assert_eq!(world.metric("dwarpal_partner_connections{partner=\"alpha\"}"), 2.0);
    assert_eq!(counted(&world), ["alpha connections-partner 2"]);
    first.hang_up();
    eventually("its place is free", || world.metric("dwarpal_partner_connections{partner=\"alpha\"}") == 1.0);
    assert_eq!(world.alpha().ask(REST).status, 200);
    assert_eq!(counted(&world), ["alpha connections-partner 2"], "within the maximum");
}

#[test]
fn a_limit_in_shadow_takes_nothing_from_those_that_are_enforced() {
    let world = Setup::new()
        .partner("alpha", "requests = \"100000/s\"", "requests = \"1/h burst 3\"\nshadow = [\"source\", \"subject\"]")
        .partner("alpha", "source = \"100000/s\"", "source = \"1/h\"")
        .partner("alpha", "subject = \"100000/s\"", "subject = \"1/h burst 2\"")
        .start(one_person);
    let mut line = world.alpha();
    assert_eq!([(); 5].map(|()| line.ask(lookup()).status), [200, 200, 200, 429, 429]);
    // What an enforced limit refused was not let through by one in shadow.
    assert_eq!(counted(&world), ["alpha rate-source 2", "alpha rate-subject 1"]);
}

#[test]
fn what_was_used_up_in_shadow_counts_when_it_is_lifted() {
    for (reason, from, to) in RATES {
        let setup = Setup::new();
        let shadowed = setup.clone().partner("alpha", from, to);
        let world = shadowed.clone().start(one_person);
        let mut line = world.alpha();
        assert_eq!([(); 2].map(|()| line.ask(lookup()).status), [200, 200], "{reason}");
        reloaded(&world, &setup.clone().partner("alpha", from, &enforced(to)));
        line.ask(lookup()).assert_refused(429, "rate-limited");
        reloaded(&world, &shadowed);
        assert_eq!(line.ask(lookup()).status, 200, "{reason}");
        assert_eq!(counted(&world), [format!("alpha {reason} 2")]);
    }
}

#[test]
fn a_line_of_the_log_says_what_would_have_been_refused() {
    let mut world = Setup::new()
        .partner("alpha", "requests = \"100000/s\"", "requests = \"1/h\"\nshadow = [\"requests\", \"subject\"]")
        .partner("alpha", "subject = \"100000/s\"", "subject = \"1/h\"")
        .spawn(one_person);
    let mut line = world.alpha();
    let first = line.ask(lookup());
    let (passed, refused) = (line.ask(lookup()), line.ask(REST.replace("rest", "nowhere")));
    assert_eq!((first.status, passed.status), (200, 200));
    refused.assert_refused(403, "no-grant");
    let process = world.process();
    let of = |answer: &crate::world::line::Answer| {
        let decision = answer.header("x-decision-id").to_owned();
        process.logged(|line| line["decision"] == *decision)
    };
    let said = of(&passed);
    assert_eq!((&said["message"], &said["verdict"]), (&"shadow".into(), &"allow".into()), "{said}");
    assert_eq!((&said["partner"], &said["route"]), (&"alpha".into(), &"mobile".into()), "{said}");
    assert_eq!((&said["shadow"], &said["unlogged"]), (&"rate-partner, rate-subject".into(), &0.into()), "{said}");
    let said = of(&refused);
    assert_eq!((&said["message"], &said["reason"]), (&"request".into(), &"no-route".into()), "{said}");
    assert_eq!(said["shadow"], "rate-partner", "{said}");
    assert!(said["rule"].as_str().is_some_and(|rule| rule.starts_with("admit: ")), "{said}");
    let log = process.log();
    assert_eq!(log.lines().filter(|line| line.contains("\"decision\"")).count(), 2, "{log}");
    assert!(!log.contains("6412345678"), "{log}");
}

// ---- networks

#[test]
fn a_network_in_shadow_lets_in_and_counts_what_nothing_else_would() {
    let shadow = |cidr: &str| format!("cidr = \"{cidr}\"\nshadow = true");
    let world = Setup::new()
        // The first of alpha's addresses stands in a wider network, too; gamma has no other.
        .partner("alpha", "cidr = \"127.0.0.1/32\"", &shadow("127.0.0.1/32"))
        .partner("alpha", "cidr = \"127.0.0.2/32\"", "cidr = \"127.0.0.0/31\"")
        .partner("gamma", "cidr = \"127.0.0.4/32\"", &shadow("127.0.0.4/32"))
        .start(one_person);
    assert_eq!(world.alpha().ask(REST).status, 200);
    assert_eq!(counted(&world), [""; 0]);
    let mut gamma = world.line(&pki().gamma, GAMMA);
    assert_eq!([(); 2].map(|()| gamma.ask(REST).status), [200; 2]);
    assert_eq!(
        world.metric("dwarpal_partner_connections{partner=\"gamma\"}"),
        1.0,
        "its places are taken all the same"
    );
    gamma.ask("GET /files/x HTTP/1.1\r\nhost: localhost\r\n\r\n").assert_refused(403, "no-grant");
    let known = gamma.ask(WHOAMI);
    assert_eq!((known.status, &known.json()["network"]["cidr"]), (200, &"127.0.0.4/32".into()));
    assert!(!known.text().contains("shadow"), "{}", known.text());
    assert_eq!(counted(&world), ["gamma network-not-allowed 4"]);
    world.line(&pki().gamma, ALPHA).ask(REST).assert_refused(403, "network-not-allowed");
    assert_eq!(counted(&world), ["gamma network-not-allowed 4"], "what is refused in any case is not counted");
}

#[test]
fn connections_outlive_the_way_of_their_network_into_the_shadow() {
    let setup = Setup::new();
    let world = setup.clone().start(one_person);
    let mut stays = world.line(&pki().alpha, ALPHA_TOO);
    assert_eq!(stays.ask(WHOAMI).status, 200);
    let to = "cidr = \"127.0.0.2/32\"\nshadow = true";
    reloaded(&world, &setup.partner("alpha", "cidr = \"127.0.0.2/32\"", to));
    let since = Instant::now();
    // Longer than the connection is looked after, and cut.
    eventually("two seconds have passed", || {
        assert_eq!(stays.ask(WHOAMI).status, 200);
        since.elapsed() > Duration::from_secs(2)
    });
    assert!(world.metric("dwarpal_shadow_refusals_total{partner=\"alpha\",reason=\"network-not-allowed\"}") > 0.0);
}

// ---- the command line

#[test]
fn check_lists_what_is_in_shadow_and_warns_of_none_of_it() {
    let directory = TempDir::new().expect("directory");
    let check = |setup: &Setup| {
        setup.write(directory.path(), None);
        std::fs::write(directory.path().join("partners/beta.networks"), "\n127.0.0.7 # shadow=true\n").expect("write");
        dwarpal(&["check", "."], directory.path())
    };
    let file = "[[network_file]]\npath = \"beta.networks\"\nowner = \"o\"\nticket = \"T-2\"\nreason = \"r\"\n[limits]";
    let before = Setup::new().partner("beta", "[limits]", file);
    let setup = before
        .clone()
        .partner("alpha", "cidr = \"127.0.0.2/32\"", "cidr = \"127.0.0.2/32\"\nshadow = true")
        .partner("alpha", "[limits]", "[limits]\nshadow = [\"subject\", \"connections_max\"]")
        .partner("alpha", "route = \"rest\"\n", "route = \"rest\"\nin_flight_max = 4\nshadow = [\"in_flight_max\"]\n");
    let (code, stdout, stderr) = check(&setup);
    let lines: Vec<&str> = stdout.lines().collect();
    let text = std::fs::read_to_string(directory.path().join("partners/alpha.toml")).expect("alpha");
    let line = |of: &str| 1 + text[..text.find(of).expect(of)].matches('\n').count();
    let alpha = |of: &str, what: &str| format!("shadow: ./partners/alpha.toml:{}: {what}", line(of));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(
        lines[..5],
        [
            alpha("[[network]]\ncidr = \"127.0.0.2/32\"", "network 127.0.0.2/32 of alpha, owner o, ticket T-1"),
            alpha("[limits]", "limits.subject of alpha"),
            alpha("[limits]", "limits.connections_max of alpha"),
            alpha("[[grant]]\nroute = \"rest\"", "grant.in_flight_max of alpha for rest"),
            "shadow: ./partners/beta.networks:2: network 127.0.0.7/32 of beta, owner o, ticket T-2".to_owned(),
        ],
        "{stdout}"
    );
    let warnings = |summary: &str| summary.split("; ").find(|part| part.contains("warning")).map(str::to_owned);
    assert!(lines[5].ends_with(" in shadow") && lines[5].contains("; 5 in shadow"), "{stdout}");
    assert!(!stderr.contains("shadow"), "{stderr}");
    let (_, stdout, _) = check(&before);
    let summary = stdout.lines().last().expect("a summary");
    assert_eq!((warnings(summary), summary.contains("; 1 in shadow")), (warnings(lines[5]), true), "{stdout}");
}

#[test]
fn explain_says_what_would_be_refused() {
    let directory = TempDir::new().expect("directory");
    Setup::new()
        .partner("beta", "cidr = \"127.0.0.3/32\"", "cidr = \"127.0.0.3/32\"\nshadow = true")
        .partner("beta", "subject = \"100000/s\"", "subject = \"1/h\"\nshadow = [\"subject\", \"requests\"]")
        .write(directory.path(), None);
    let source = BETA.to_string();
    let asked = ["explain", "--config", ".", "--partner", "beta", "--source", &source, "-H", "x-purpose: care"];
    let path = "/v1/people/12345678901234";
    let (code, stdout, stderr) = dwarpal(&[&asked[..], &["GET", path]].concat(), directory.path());
    assert_eq!(code, 0, "{stdout}{stderr}");
    for line in [
        "admit     network 127.0.0.3/32 in shadow, owner o",
        "partner 100000/s burst 100000 in shadow, source 100000/s burst 100000, 1000 in flight",
        "charge    this person: 1/h burst 1 in shadow",
        "shadow    would be refused: network-not-allowed\n",
        "verdict   allow",
    ] {
        assert!(stdout.contains(line), "{line}\n{stdout}");
    }
}
