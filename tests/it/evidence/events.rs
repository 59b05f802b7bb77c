//! Does the log say what happened? Every event, with its facts, from gateways that run.

use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::aws_lc_rs::default_provider;
use serde_json::{Value, json};

use super::running::{
    REST, about, assert_verified, entries_from, log_of, logged, mobile, of, post, reference, undeclared,
};
use crate::world::backend::{Exchange, ONE_PERSON, one_person};
use crate::world::pki::{Leaf, pki};
use crate::world::{ALPHA, ALPHA_TOO, BETA, NOWHERE, Setup, World, eventually, line};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fingerprint(leaf: &Leaf) -> String {
    hex(digest(&SHA256, &leaf.der()).as_ref())
}

/// Nobody is found under mobiles that begin with 65.
fn some_people(exchange: &mut Exchange) {
    exchange.read_body();
    match exchange.request.text().contains("\"65") {
        true => exchange.answer("404 Not Found", "content-type: application/json\r\n", b"{}"),
        false => one_person(exchange),
    }
}

#[test]
fn a_disclosure_says_who_asked_for_whom_and_what_came_of_it() {
    let world = Setup::new().start(some_people);
    let mut line = world.line(&pki().alpha, ALPHA_TOO);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let head = format!("x-actor: hw-1042\r\ntraceparent: 00-{trace}-b7ad6b7169203331-01\r\ncontent-type");
    let hit = line.ask(mobile("+91 64123 45678").replace("content-type", &head));
    assert_eq!(hit.status, 200);
    let hit = about(&world, "disclosure", hit.header("x-decision-id"));
    for (member, value) in [
        ("v", json!(1)),
        ("trace", json!(trace)),
        ("generation", json!(1)),
        ("credential", json!(fingerprint(&pki().alpha))),
        ("source", json!("127.0.0.2")),
        ("partner", json!("alpha")),
        ("standing", json!("open")),
        ("route", json!("mobile")),
        ("grant", json!(0)),
        ("purpose", json!("care")),
        ("receipts", json!(["paid", "paid"])),
        ("verdict", json!("allow")),
        ("backend", json!({"status": 200, "people": 1})),
    ] {
        assert_eq!(hit[member], value, "{member} of {hit}");
    }
    assert!(hit.get("reason").is_none() && hit.get("found").is_none(), "{hit}");
    let mark = |value: &Value| value.as_str().filter(|mark| mark.len() == 32).map(str::to_owned);
    let actor = mark(&hit["actor"]).expect("a mark");
    assert_eq!(hit["answer"]["bytes"], ONE_PERSON.len());
    let latency = &hit["latency"];
    let micros = |part: &str| latency[part].as_u64().unwrap_or_else(|| panic!("{part} of {latency}"));
    assert!(micros("total_us") >= micros("upload_us") + micros("backend_us") && micros("backend_us") > 0, "{latency}");
    let subject = &hit["subject"];
    assert_eq!((&subject["kind"], &subject["offset"]), (&json!("mobile"), &json!(678)));

    // The same person by the same user; another; and nobody.
    let again = line.ask(mobile("6412345678").replace("content-type", "x-actor: hw-1042\r\ncontent-type"));
    let again = about(&world, "disclosure", again.header("x-decision-id"));
    assert_eq!((&again["subject"], mark(&again["actor"])), (subject, Some(actor)));
    let other = line.ask(mobile("6412345679").replace("content-type", "x-actor: hw-1043\r\ncontent-type"));
    let other = about(&world, "disclosure", other.header("x-decision-id"));
    assert!(other["subject"]["token"] != subject["token"] && other["actor"] != hit["actor"]);
    assert_eq!(other["subject"]["block"], subject["block"]);
    let miss = line.ask(mobile("6512345678"));
    miss.assert_refused(404, "no-match");
    let miss = about(&world, "disclosure", miss.header("x-decision-id"));
    assert_eq!((&miss["verdict"], &miss["reason"]), (&json!("allow"), &json!("no-match")));
    assert_eq!(miss["backend"]["status"], 404);
    assert!(miss["subject"]["token"].is_string() && miss.get("answer").is_none(), "{miss}");

    // What is passed on as it comes is known at its end: the same bytes have the same digest, a keyed one.
    let streamed = line.ask(reference(12_345_678_901_234));
    let streamed = streamed.header("x-decision-id");
    assert!(about(&world, "disclosure", streamed).get("answer").is_none());
    let closed = about(&world, "closed", streamed);
    assert_eq!(closed["digest"], hit["answer"]["digest"]);
    assert!(
        !hex(digest(&SHA256, ONE_PERSON.as_bytes()).as_ref()).starts_with(closed["digest"].as_str().expect("a mark"))
    );

    // One certificate, before its first request.
    let entries = entries_from(&log_of(&world), 0);
    let credentials = of(&entries, "credential");
    assert_eq!(credentials.len(), 1);
    let place = |event: &str| entries.iter().position(|entry| entry["event"] == event);
    assert!(place("credential") < place("disclosure"));
    assert_eq!(credentials[0]["fingerprint"], hit["credential"]);
    assert_eq!(credentials[0]["spki"], hex(&BASE64_STANDARD.decode(pki().alpha.pin()).expect("base64")));
    assert_eq!(credentials[0]["uris"], json!(["spiffe://partners.test/alpha"]));
    assert_eq!(credentials[0]["issuer"], "partners");
    assert_eq!(credentials[0]["not_after"], "2090-01-01T00:00:00Z");
}

#[test]
fn a_denial_says_for_what_reason_and_holds_no_identifier() {
    let setup = Setup::new().partner("alpha", "subject = \"100000/s\"", "subject = \"1/d\"");
    let world = setup.start(one_person);
    let pki = pki();
    let purpose = |purpose: &str| post("/v1/mobile", &format!(r#"{{"mobile":"6412345671","purpose":"{purpose}"}}"#));
    let actor = mobile("6412345673").replace("content-type", "x-actor: hw-6412345674\r\ncontent-type");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(world.ask(mobile("6412345678")).status, 200);
    let alpha = &pki.alpha;
    let known = Some("alpha");
    for (leaf, source, request, reason, partner, route, subject) in [
        (alpha, ALPHA, mobile("6412345678"), "rate-subject", known, Some("mobile"), true),
        (alpha, BETA, mobile("6412345678"), "network-not-allowed", known, None, false),
        (&pki.stranger, ALPHA, mobile("6412345678"), "identity-unknown", None, None, false),
        (alpha, ALPHA, undeclared(), "member-undeclared", known, Some("mobile"), false),
        (alpha, ALPHA, mobile("5412345678"), "identifier-prefix", known, Some("mobile"), false),
        (alpha, ALPHA, actor, "actor-invalid", known, Some("mobile"), false),
        (alpha, ALPHA, purpose("6412345672"), "identifier-undeclared", known, Some("mobile"), false),
        (alpha, ALPHA, get("/people/6412345675"), "no-route", known, None, false),
        (&pki.beta, BETA, get("/rest/6412345676"), "no-grant", Some("beta"), Some("rest"), false),
        (alpha, ALPHA, get("/rest/x").replace("localhost", "6412345677"), "host-mismatch", known, None, false),
    ] {
        let answer = world.line(leaf, source).ask(&request);
        assert!(answer.status >= 400, "{request}");
        let denied = about(&world, "denied", answer.header("x-decision-id"));
        assert_eq!((&denied["verdict"], &denied["reason"]), (&json!("deny"), &json!(reason)), "{denied}");
        assert_eq!((denied["partner"].as_str(), denied["route"].as_str()), (partner, route), "{denied}");
        assert_eq!((&denied["source"], &denied["credential"]), (&json!(source), &json!(fingerprint(leaf))));
        assert_eq!(denied.get("subject").is_some(), subject, "{denied}");
        assert!(denied.get("backend").is_none() && denied.get("answer").is_none(), "{denied}");
    }
    // A purpose that nobody was granted may be anything.
    let answer = world.ask(purpose("curiosity"));
    answer.assert_refused(403, "purpose-not-granted");
    let denied = about(&world, "denied", answer.header("x-decision-id"));
    assert_eq!(denied["purpose"], "(unknown)");
    assert_eq!(of(&entries_from(&log_of(&world), 0), "disclosure").len(), 1);
}

/// The backend's answers, by the last digit of the number that is asked for.
fn endings(exchange: &mut Exchange) {
    let half = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 8\r\n\r\nhalf";
    match exchange.request.target().chars().last() {
        Some('1') => {
            exchange.write(half);
            exchange.hold();
        }
        Some('2') => {
            exchange.write(half);
            exchange.close();
        }
        Some('3') => exchange.hold(),
        Some('4') => exchange.answer("500 Internal Server Error", "", b"broken"),
        _ => one_person(exchange),
    }
}

#[test]
fn an_end_says_who_ended_it_and_where() {
    let world = Setup::new().gateway("request_timeout = \"30s\"", "request_timeout = \"3s\"").start(endings);
    let asked = |ending: u64| reference(12_345_678_901_230 + ending);
    let decision = |request: usize| {
        let requests = world.backend.requests(request);
        requests[request - 1].header("x-decision-id").to_owned()
    };
    let ended = |decision: &str| {
        let closed = about(&world, "closed", decision);
        assert_eq!(closed["partner"], "alpha");
        let text = |member: &str| closed[member].as_str().expect("text").to_owned();
        (text("by"), text("step"), closed["bytes"].as_u64().expect("bytes"))
    };
    let end = |by: &str, step: &str, bytes: u64| (by.to_owned(), step.to_owned(), bytes);
    let disclosed = |decision: &str| {
        of(&entries_from(&log_of(&world), 0), "disclosure").iter().any(|entry| entry["id"] == decision)
    };

    assert!(world.ask(asked(0)).whole);
    assert_eq!(ended(&decision(1)), end("complete", "answer", ONE_PERSON.len() as u64));

    let mut leaving = world.alpha();
    leaving.send(asked(1));
    assert_eq!(leaving.head().status, 200);
    assert!(leaving.exactly(4).is_some());
    leaving.hang_up();
    assert_eq!(ended(&decision(2)), end("partner", "answer", 4));

    assert!(!world.ask(asked(2)).whole);
    assert_eq!(ended(&decision(3)), end("backend", "answer", 4));

    assert!(!world.ask(asked(1)).whole);
    assert_eq!(ended(&decision(4)), end("gateway", "answer", 4));
    let answered = world.backend.requests(4);
    assert!(answered.iter().all(|request| disclosed(request.header("x-decision-id"))));

    // Gone before there was an answer: nothing was disclosed.
    let mut leaving = world.alpha();
    leaving.send(asked(3));
    let waiting = decision(5);
    leaving.hang_up();
    assert_eq!(ended(&waiting), end("partner", "forward", 0));
    assert!(!disclosed(&waiting));

    // A backend that fails discloses nothing, and says nothing of the partner.
    world.ask(asked(4)).assert_refused(502, "backend-failed");
    let failed = about(&world, "denied", &decision(6));
    assert_eq!((&failed["verdict"], &failed["reason"]), (&json!("failed"), &json!("backend-error")));
    assert_eq!(failed["backend"]["status"], 500);
}

/// The whole life of a process, as its log tells it.
#[test]
fn what_the_gateway_and_its_operators_did_is_told() {
    let setup = Setup::new();
    let mut world = setup.clone().spawn(one_person);
    let uid = format!(
        "uid {}",
        fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).expect("own")
    );
    let command = |world: &World, arguments: &[&str], code: i32| {
        let (ended, out, error) = world.command(arguments);
        assert_eq!(ended, code, "{arguments:?}: {out}{error}");
    };
    // Whoever has no certificate, and whoever is on nobody's list, comes to no request.
    for _ in 0..20 {
        let refused = line::attempt(world.address, Some(&pki().alpha), NOWHERE, b"http/1.1", default_provider());
        assert!(refused.is_err());
    }
    for _ in 0..3 {
        if let Ok(mut bare) = line::attempt(world.address, None, ALPHA, b"http/1.1", default_provider()) {
            bare.until_closed();
        }
    }
    eventually("they are counted", || {
        world.metric("dwarpal_connections_refused_total{reason=\"network-unknown\"}") == 20.0
            && world.metric("dwarpal_handshakes_total{result=\"certificate-missing\"}") == 3.0
    });

    command(&world, &["freeze", "gamma", "--reason", "INC-7 of 2026-11-24"], 0);
    command(&world, &["thaw", "gamma"], 0);
    for reason in ["asks for 6412345678", "asks for 64123 45678", "of +91-64123-45678"] {
        command(&world, &["freeze", "alpha", "--reason", reason], 1);
    }
    command(&world, &["thaw", "6412345678"], 1);
    assert_eq!(world.ask(WHOAMI).status, 200, "alpha is not frozen");
    command(&world, &["reload"], 0);
    world.configure(&setup.clone().partner("beta", "source = \"100000/s\"", "source = \"90000/s\""));
    command(&world, &["reload"], 0);
    fs::write(world.directory().join("partners/gamma.toml"), "version = 7\n").expect("written");
    command(&world, &["reload"], 3);
    world.configure(&setup);
    command(&world, &["reload"], 0);
    command(&world, &["audit", "epochs", "rotate", "--reason", "as planned"], 0);
    command(&world, &["audit", "checkpoint"], 0);
    command(&world, &["status"], 0);

    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    let log = log_of(&world);
    // The end is signed as well.
    let first = entries_from(&log, 0);
    assert_eq!(signed(&log), first.len() as u64);
    assert_eq!((&first[0]["event"], &first[first.len() - 1]["event"]), (&json!("start"), &json!("stop")));
    let ip = |entry: &&Value| (entry["reason"].clone(), entry["prefix"].clone(), entry["count"].clone());
    let connections: Vec<_> = of(&first, "connections").iter().map(ip).collect();
    let prefix = json!("127.0.0.0/24");
    let expected =
        [(json!("certificate-missing"), prefix.clone(), json!(3)), (json!("network-unknown"), prefix, json!(20))];
    assert_eq!(connections, expected);

    let freezes = of(&first, "freeze");
    let said = |entry: &Value| (entry["frozen"] == true, entry["reason"].clone(), entry["by"].clone());
    let said: Vec<_> = freezes.iter().map(|entry| said(entry)).collect();
    assert_eq!(said, [(true, json!("INC-7 of 2026-11-24"), json!(uid)), (false, json!(""), json!(uid))]);
    assert!(freezes.iter().all(|entry| entry["partner"] == "gamma"));
    let commands: Vec<_> =
        of(&first, "command").iter().map(|entry| (entry["command"].clone(), entry["outcome"].clone())).collect();
    let expected = [
        ("freeze gamma", "done"),
        ("thaw gamma", "done"),
        ("freeze alpha", "denied"),
        ("freeze alpha", "denied"),
        ("freeze alpha", "denied"),
        ("thaw", "unknown"),
        ("reload", "done"),
        ("reload", "done"),
        ("reload", "refused"),
        ("reload", "done"),
        ("rotate epochs", "done"),
        ("checkpoint", "done"),
    ];
    assert_eq!(commands, expected.map(|(command, outcome)| (json!(command), json!(outcome))));
    assert!(of(&first, "command").iter().all(|entry| entry["by"] == uid.as_str()));

    let started = &first[0];
    let reloads = of(&first, "reload");
    let told = |entry: &Value| (entry["swapped"] == true, entry["changed"].clone());
    let told: Vec<_> = reloads.iter().map(|entry| told(entry)).collect();
    let [nobody, beta] = [json!([]), json!(["beta"])];
    assert_eq!(told, [(true, nobody.clone()), (true, beta.clone()), (false, nobody), (true, beta)]);
    let digests: Vec<_> = reloads.iter().map(|entry| &entry["digest"]).collect();
    assert_eq!((digests[0], digests[3]), (&started["digest"], &started["digest"]));
    assert!(digests[1] == digests[2] && digests[1] != digests[0], "what is served is named");
    let problems = reloads[2]["problems"].as_array().expect("problems");
    assert!(problems[0].as_str().is_some_and(|problem| problem.contains("gamma.toml")), "{problems:?}");

    let epochs: Vec<_> =
        of(&first, "epoch").iter().map(|entry| (entry["change"].clone(), entry["number"].clone())).collect();
    assert!(epochs.contains(&(json!("created"), json!(2))), "{epochs:?}");
    assert!(of(&first, "epoch").iter().any(|entry| entry["reason"] == "as planned" && entry["by"] == uid.as_str()));
    let checkpoint = of(&first, "checkpoint")[0].clone();
    assert!(checkpoint["clock_synchronised"].is_boolean() && checkpoint["clock_source"].is_string(), "{checkpoint}");

    // Not a crash; then one.
    world.restart();
    world.kill_and_restart();
    let starts = logged(&world, "start", 3);
    assert_eq!(starts.iter().map(|start| start["after_crash"] == true).collect::<Vec<_>>(), [false, false, true]);
    assert!(
        starts
            .iter()
            .all(|start| start["digest"] == started["digest"] && start["version"] == env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(world.ask(REST).status, 200);
    assert_verified(&world, &log, None);
}

/// Entries under the newest checkpoint.
fn signed(log: &Path) -> u64 {
    let checkpoint = fs::read_to_string(log.join("checkpoint")).expect("a checkpoint");
    checkpoint.lines().nth(1).and_then(|size| size.parse().ok()).expect("a size")
}
