//! The operator's side of the ladder: who is held, at once and until when; what the partner is told of it, and how fast.

use std::time::{Duration, Instant};

use dwarpal::clock::Clock;
use dwarpal::detect::{Alert, Interest, Level, Severity, Step};
use dwarpal::subject::{Kind, Subject};
use serde_json::{Value, json};

use crate::evidence::running::{entries_from, log_of};
use crate::world::backend::{Exchange, one_person};
use crate::world::line::Answer;
use crate::world::pki::pki;
use crate::world::{BETA, Setup, World, eventually, process};

const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";
const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
const HOUR: Duration = Duration::from_secs(3_600);

fn lookup(number: &str, actor: &str) -> String {
    let body = format!(r#"{{"mobile":"{number}","purpose":"care"}}"#);
    let actor = if actor.is_empty() { String::new() } else { format!("x-actor: {actor}\r\n") };
    let head = "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}{actor}content-length: {}\r\n\r\n{body}", body.len())
}

#[track_caller]
fn command(world: &World, arguments: &[&str], expected: i32) -> String {
    let (code, out, error) = world.command(arguments);
    assert_eq!(code, expected, "{arguments:?}: {out}{error}");
    out + &error
}

/// The entries of one kind so far, once there are so many.
fn logged(world: &World, event: &str, count: usize) -> Vec<Value> {
    let mut found = Vec::new();
    eventually(&format!("{count} entries of {event}"), || {
        found = entries_from(&log_of(world), 0);
        found.retain(|entry| entry["event"] == event);
        found.len() >= count
    });
    found
}

fn slow(exchange: &mut Exchange) {
    exchange.read_body();
    std::thread::park_timeout(Duration::from_millis(120));
    one_person(exchange);
}

#[test]
fn a_contained_partner_is_held_at_once_on_open_connections_and_released_at_once() {
    let mut world = Setup::new().spawn(one_person);
    let mut open = world.alpha();
    assert_eq!(open.ask(lookup("6412345678", "")).status, 200);
    let told = command(
        &world,
        &["contain", "alpha", "--level", "known-only", "--for", "2h", "--reason", "INC-7: unusual misses"],
        0,
    );
    assert!(told.starts_with("alpha: known-only (was open) until 2"), "{told}");
    let asked = world.backend.count();
    let held = open.ask(lookup("6412345678", ""));
    assert_eq!((held.status, held.problem().as_str()), (403, "held"));
    assert_eq!(world.ask(lookup("6412345679", "hw-1")).problem(), "held");
    // What asks for nobody goes on, and so do others.
    assert_eq!((open.ask(REST).status, open.ask(WHOAMI).status), (200, 200));
    assert_eq!(world.line(&pki().beta, BETA).ask(WHOAMI).status, 200);
    assert_eq!(world.backend.count(), asked + 1, "nobody who is held reaches the backend");
    assert_eq!(world.metric("dwarpal_containment_level{partner=\"alpha\"}"), 1.0);

    // Neither a reload nor the end of the process changes anything about it.
    command(&world, &["reload"], 0);
    assert_eq!(open.ask(lookup("6412345678", "")).problem(), "held");
    // What the log says of it comes to the disk within its interval.
    assert_eq!((logged(&world, "containment", 1).len(), logged(&world, "denied", 3).len()), (1, 3));
    world.kill_and_restart();
    assert_eq!(world.ask(lookup("6412345678", "")).problem(), "held");
    let told = command(&world, &["standing"], 0);
    assert!(told.starts_with("alpha: known-only since 2"), "{told}");
    assert!(told.contains(", by an operator (uid ") && told.ends_with("): INC-7: unusual misses\n"), "{told}");
    assert_eq!(command(&world, &["standing", "beta"], 0), "beta: open\n");
    let line: Value = serde_json::from_str(&command(&world, &["standing", "alpha", "--json"], 0)).expect("JSON");
    assert_eq!(
        (&line["level"], &line["automatic"], &line["actor"]),
        (&json!("known-only"), &json!(false), &json!(null))
    );

    // One step further, and a freeze beside it: the stricter holds.
    let told = command(&world, &["contain", "alpha", "--level", "consent-only", "--for", "1h", "--reason", "more"], 0);
    assert!(told.starts_with("alpha: consent-only (was known-only) until 2"), "{told}");
    assert_eq!(world.metric("dwarpal_containment_level{partner=\"alpha\"}"), 2.0);
    command(&world, &["freeze", "alpha", "--reason", "and frozen"], 0);
    assert_eq!(world.metric("dwarpal_containment_level{partner=\"alpha\"}"), 3.0);
    let told = command(&world, &["standing", "alpha"], 0);
    assert!(told.contains("alpha: frozen since") && told.contains("until it is thawed"), "{told}");
    assert!(told.contains("alpha: consent-only since"), "{told}");
    let told = command(&world, &["release", "alpha", "--reason", "a mistake"], 0);
    assert_eq!(told, "alpha: open (was consent-only)\nalpha is still frozen; `dwarpal thaw alpha` ends that\n");
    world.alpha().assert_closed();
    command(&world, &["thaw", "alpha"], 0);
    assert_eq!(world.ask(lookup("6412345678", "")).status, 200);
    assert_eq!(command(&world, &["release", "alpha", "--reason", "again"], 0), "alpha was not contained\n");
    assert_eq!(logged(&world, "containment", 3).len(), 3);
    world.kill_and_restart();
    assert_eq!(world.ask(lookup("6412345678", "")).status, 200);
    assert_eq!(command(&world, &["standing"], 0), "open to all 3 partners\n");

    let steps = logged(&world, "containment", 3);
    let said: Vec<_> = steps.iter().map(|step| (&step["from"], &step["to"], &step["reason"])).collect();
    let expected = [
        (json!("open"), json!("known-only"), json!("INC-7: unusual misses")),
        (json!("known-only"), json!("consent-only"), json!("more")),
        (json!("consent-only"), json!("open"), json!("a mistake")),
    ];
    assert_eq!(said, expected.iter().map(|(from, to, why)| (from, to, why)).collect::<Vec<_>>());
    assert!(steps.iter().all(|step| step["automatic"] == false && step["by"].as_str().is_some()));
    assert!(steps[0]["until"].is_string() && steps[2]["until"].is_null());
    let denied = logged(&world, "denied", 4);
    let held: Vec<_> = denied.iter().filter(|entry| entry["reason"] == "held-partner").collect();
    let footing = json!({ "partner": "known-only", "actor": "open", "consent": false, "known": false });
    assert!(held.len() >= 4 && held.iter().all(|entry| entry["footing"] == footing), "{held:?}");
}

#[test]
fn an_actor_is_held_alone_through_a_rotation_until_its_time_is_over() {
    let clock = Clock::manual(Clock::system().now());
    let world = Setup::new().start_by(clock.clone(), one_person);
    let told = command(
        &world,
        &["contain", "alpha", "--actor", "hw-1042", "--level", "consent-only", "--for", "2h", "--reason", "INC-8"],
        0,
    );
    assert!(told.starts_with("alpha, actor ") && told.contains(" (as asserted by alpha): consent-only"), "{told}");
    let of = |actor: &str| world.ask(lookup("6412345678", actor)).status;
    assert_eq!([of("hw-1042"), of("hw-1043"), of("")], [403, 200, 200]);
    assert_eq!(world.metric("dwarpal_containment_level{partner=\"alpha\"}"), 0.0);
    command(&world, &["audit", "epochs", "rotate", "--reason", "as planned"], 0);
    assert_eq!([of("hw-1042"), of("hw-1043")], [403, 200]);
    let told = command(&world, &["standing"], 0);
    assert!(!told.contains("hw-1042") && told.contains("as asserted by alpha"), "{told}");

    clock.advance(2 * HOUR - Duration::from_secs(1));
    assert_eq!(of("hw-1042"), 403, "never before its time");
    clock.advance(Duration::from_secs(1));
    assert_eq!(of("hw-1042"), 200);
    let steps = logged(&world, "containment", 2);
    assert_eq!((&steps[1]["to"], &steps[1]["automatic"]), (&json!("open"), &json!(true)));
    assert_eq!((&steps[1]["by"], &steps[1]["actor"]), (&json!("gateway"), &steps[0]["actor"]));
    let steps = |to, by| format!("dwarpal_containment_steps_total{{by=\"{by}\",partner=\"alpha\",to=\"{to}\"}}");
    assert_eq!(world.metric(&steps("consent-only", "operator")), 1.0);
    assert_eq!(world.metric(&steps("open", "expiry")), 1.0);
    let held: Vec<_> = logged(&world, "denied", 3);
    assert!(held.iter().all(|entry| entry["reason"] == "held-actor" && entry["footing"]["actor"] == "consent-only"));

    // Given before the rotation, taken back after it.
    command(&world, &["contain", "alpha", "--actor", "hw-1", "--level", "frozen", "--for", "1h", "--reason", "x"], 0);
    assert_eq!(of("hw-1"), 403);
    let told = command(&world, &["release", "alpha", "--actor", "hw-1", "--reason", "x"], 0);
    assert!(told.contains("as asserted by alpha): open (was frozen)"), "{told}");
    assert_eq!(of("hw-1"), 200);
}

#[test]
fn a_partner_frozen_for_a_time_is_frozen_and_then_is_not() {
    let clock = Clock::manual(Clock::system().now());
    let world = Setup::new().start_by(clock.clone(), one_person);
    let until = clock.now().plus(HOUR).to_string();
    command(&world, &["contain", "alpha", "--level", "frozen", "--until", &until, "--reason", "INC-9"], 0);
    world.alpha().assert_closed();
    assert_eq!(world.metric("dwarpal_partner_frozen{partner=\"alpha\"}"), 1.0);
    assert_eq!(command(&world, &["thaw", "alpha"], 0), "alpha was not frozen\n");
    world.alpha().assert_closed();
    clock.advance(HOUR);
    assert_eq!(world.ask(REST).status, 200);
    assert_eq!(world.metric("dwarpal_partner_frozen{partner=\"alpha\"}"), 0.0);
}

#[test]
fn what_makes_no_sense_is_refused_and_holds_nobody() {
    let world = World::new();
    let contain = |more: &[&str], code| {
        let all = [&["contain", "alpha", "--reason", "INC-7"], more].concat();
        command(&world, &all, code)
    };
    for reason in ["asks for 6412345678", "asks for 64123 45678", "of +91-64123-45678"] {
        let all = ["contain", "alpha", "--level", "frozen", "--for", "2h", "--reason", reason];
        let told = command(&world, &all, 1);
        assert!(told.contains("a person's number") && !told.contains("6412"), "{told}");
        command(&world, &["release", "alpha", "--reason", reason], 1);
    }
    for actor in ["6412345678", "hw-6412345678", "two words", ""] {
        let told = contain(&["--actor", actor, "--level", "frozen", "--for", "2h"], 1);
        assert!(told.starts_with("--actor takes an opaque id") && !told.contains("6412"), "{told}");
    }
    assert!(contain(&["--level", "frozen", "--until", "2020-01-01T00:00:00Z"], 1).contains("is over"));
    assert!(contain(&["--level", "frozen", "--for", "0s"], 1).contains("is over"));
    let told = contain(&["--actor", "hw-1", "--level", "frozen", "--for", "32d"], 1);
    assert!(told.contains("epochs.overlap (31d)"), "{told}");
    contain(&["--level", "open", "--for", "2h"], 2);
    contain(&["--level", "frozen"], 2);
    contain(&["--level", "frozen", "--for", "2h", "--until", "2099-01-01T00:00:00Z"], 2);
    contain(&["--level", "frozen", "--for", "2 hours"], 2);
    let told = command(&world, &["contain", "alhpa", "--level", "frozen", "--for", "2h", "--reason", "x"], 1);
    assert!(told.contains("no partner alhpa; there are: alpha, beta, gamma"), "{told}");
    command(&world, &["release", "alhpa", "--reason", "x"], 1);
    command(&world, &["standing", "alhpa"], 1);
    assert_eq!(command(&world, &["standing", "--json"], 0), "");
    assert_eq!(world.ask(lookup("6412345678", "hw-1")).status, 200);
}

/// All that an answer says, but for what is its own.
fn shape(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let own = ["date", "x-decision-id"];
    let headers = answer.headers.iter().filter(|(name, _)| !own.contains(&name.as_str())).cloned().collect();
    let decision = answer.header("x-decision-id");
    (answer.status, headers, answer.text().replace(decision, "DECISION"))
}

#[test]
fn who_is_held_is_told_the_same_whatever_the_reason_and_as_late_as_an_answer() {
    let world = Setup::new().start(slow);
    let timed = |line: &mut crate::world::line::Line, request: String| {
        let begun = Instant::now();
        let answer = line.ask(request);
        (answer, begun.elapsed())
    };
    let mut line = world.alpha();
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let answered: Vec<_> = (0..8).map(|_| timed(&mut line, lookup("6412345678", "hw-1"))).collect();
    assert!(answered.iter().all(|(answer, _)| answer.status == 200));
    let answered = median(answered.iter().map(|(_, time)| *time).collect());

    let mut shapes = Vec::new();
    let hold = |arguments: &[&str]| {
        let all = [&["contain", "alpha", "--for", "1h", "--reason", "a test"], arguments].concat();
        command(&world, &all, 0);
    };
    // Of an actor, of the partner by each step, and frozen on a connection that was open before.
    for arguments in [
        &["--actor", "hw-1", "--level", "frozen"][..],
        &["--level", "known-only"],
        &["--level", "consent-only"],
        &["--level", "frozen"],
    ] {
        let mut line = world.alpha();
        assert_eq!(line.ask(REST).status, 200);
        hold(arguments);
        let count = if arguments == ["--level", "frozen"] { 1 } else { 5 };
        let held: Vec<_> = (0..count).map(|_| timed(&mut line, lookup("6412345678", "hw-1"))).collect();
        shapes.extend(held.iter().map(|(answer, _)| shape(answer)));
        let fastest = held.iter().map(|(_, time)| *time).min().expect("some");
        // Never faster than the backend; how much slower is this machine's business as well.
        assert!(fastest > Duration::from_millis(110), "{arguments:?}: {fastest:?}");
        assert!(fastest < 2 * answered + Duration::from_secs(2), "{arguments:?}: {fastest:?} beside {answered:?}");
    }
    let first = &shapes[0];
    assert!(shapes.iter().all(|shape| shape == first), "{shapes:#?}");
    let (status, headers, body) = first;
    assert_eq!((*status, body.contains("urn:dwarpal:reason:held")), (403, true));
    for told in ["proxy-status", "retry-after", "ratelimit", "ratelimit-policy", "connection"] {
        assert!(!headers.iter().any(|(name, _)| name == told), "{told} in {headers:?}");
    }
}

#[test]
fn a_held_request_keeps_its_place_until_it_is_answered_or_given_up() {
    let world = Setup::new().start(|exchange| {
        exchange.read_body();
        std::thread::park_timeout(Duration::from_secs(2));
        one_person(exchange);
    });
    assert_eq!(world.ask(lookup("6412345678", "")).status, 200);
    command(&world, &["contain", "alpha", "--level", "known-only", "--for", "1h", "--reason", "a test"], 0);
    let in_flight = || world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}");
    let begun = Instant::now();
    let mut line = world.alpha();
    line.send(lookup("6412345678", ""));
    eventually("it waits", || in_flight() == 1.0);
    // Recorded before it is told of, so that nobody hides it by going away.
    let denied = logged(&world, "denied", 1);
    assert_eq!(denied[0]["reason"], "held-partner");
    line.hang_up();
    eventually("its place is free", || in_flight() == 0.0);
    assert!(begun.elapsed() < Duration::from_millis(1_700), "{:?}", begun.elapsed());
    let refused = "dwarpal_requests_total{partner=\"alpha\",reason=\"held-partner\",route=\"mobile\",verdict=\"deny\"}";
    assert_eq!(world.metric(refused), 1.0);
}

#[test]
fn lists_name_nobody_and_outlive_a_reload_with_their_mistakes_told() {
    let lists = "\n[lists]\nwatched = \"watched\"\ncanaries = \"canaries\"\n";
    let world = Setup::new().start(one_person);
    let add = |arguments: &[&str], ids: &str| {
        let all = [&["lists", "add"], arguments, &["--config", ".", "-"]].concat();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dwarpal"));
        let ran = process::run(command.args(all).current_dir(world.directory()), ids.as_bytes());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.code.expect("a code"), text(&ran.stdout) + &text(&ran.stderr))
    };
    let of = ["--kind", "mobile", "--list", "canaries", "--owner", "alpha", "--month", "2026-11"];
    let (code, told) = add(&of, "6412345678\n");
    assert!(code == 3 && told.contains("say canaries = \"FILE\" in [lists]"), "{told}");
    let setup = Setup::new().section(lists);
    world.configure(&setup);
    let told = command(&world, &["reload"], 3);
    assert!(told.contains("watched: cannot be read") && told.contains("`dwarpal lists add` makes it"), "{told}");
    let (code, told) = add(&of, "6412345678\n6412345\n");
    assert!(code == 2 && told.contains("standard input:2: no mobile") && !told.contains("6412345"), "{told}");
    let (code, told) = add(&of, "6412345678\n 64123 45679 \n6412345678\n");
    assert!(code == 0 && told.starts_with("2 added to "), "{told}");
    assert_eq!(add(&["--kind", "mobile", "--list", "watched"], "6412345670\n").0, 0);
    assert_eq!(add(&["--kind", "mobile", "--list", "watched", "--owner", "alpha"], "6412345670\n").0, 2);
    command(&world, &["reload"], 0);
    let told = command(&world, &["lists", "check"], 0);
    assert!(told.contains("canaries (") && told.contains("  mobile, of alpha, 2026-11: 2\n"), "{told}");
    let interest = |raw: &str| {
        let subject = Subject::parse(Kind::Mobile, raw).expect("a mobile");
        world.gateway().snapshot().lists().interest(&subject)
    };
    assert_eq!(interest("6412345678"), Interest::Canary(Some("alpha".into())));
    assert_eq!((interest("6412345670"), interest("6412345671")), (Interest::Watched, Interest::None));
    command(&world, &["audit", "epochs", "rotate", "--reason", "as planned"], 0);
    assert_eq!(interest("6412345679"), Interest::Canary(Some("alpha".into())));

    // A mistake is told by its line and leaves what is served as it is.
    let file = world.directory().join("canaries");
    let text = std::fs::read_to_string(&file).expect("a list");
    std::fs::write(&file, text.clone() + "mobile 6412345671\n").expect("written");
    for arguments in [&["reload"][..], &["lists", "check"]] {
        let told = command(&world, arguments, 3);
        assert!(
            told.contains("canaries:4: canaries: its second word is no token") && !told.contains("64123"),
            "{told}"
        );
    }
    assert_eq!(interest("6412345678"), Interest::Canary(Some("alpha".into())));
    std::fs::write(&file, text).expect("written");
    command(&world, &["reload"], 0);
    assert_eq!(world.ask(lookup("6412345678", "hw-1")).status, 200);
}

#[test]
fn what_evidence_took_is_shown_and_can_be_given_back() {
    let world = World::new();
    let (state, now) = (world.gateway().state().partner(&"alpha".into()), world.gateway().clock.now());
    state.watch().contain(None, Level::ConsentOnly, Some(now.plus(HOUR)), now);
    let held = world.ask(lookup("6412345678", "hw-1"));
    assert_eq!((held.status, held.problem().as_str()), (403, "held"));
    assert_eq!(world.metric("dwarpal_containment_level{partner=\"alpha\"}"), 2.0);
    let told = command(&world, &["standing", "alpha"], 0);
    assert!(
        told.starts_with("alpha: consent-only until 2") && told.contains(", automatically: the evidence"),
        "{told}"
    );
    let line: Value = serde_json::from_str(&command(&world, &["standing", "--json"], 0)).expect("JSON");
    assert_eq!((&line["automatic"], &line["level"]), (&json!(true), &json!("consent-only")));
    let told = command(&world, &["release", "alpha", "--reason", "explained"], 0);
    assert_eq!(told, "alpha: open (was consent-only)\n");
    assert_eq!(world.ask(lookup("6412345678", "hw-1")).status, 200);

    // A step that evidence takes is told of like any other.
    let alert = Alert {
        time: now,
        partner: "alpha".into(),
        actor: Some("hw-1".into()),
        detector: "miss-evidence",
        severity: Severity::Warning,
        why: vec!["20 of 24 people were unknown, asked for by hw-1".into()],
        moved: Some(Step { from: Level::Open, to: Level::KnownOnly, until: None }),
        exposed: None,
    };
    world.gateway().raise(alert, None);
    let steps = logged(&world, "containment", 2);
    assert_eq!((&steps[1]["automatic"], &steps[1]["to"]), (&json!(true), &json!("known-only")));
    assert_eq!(steps[1]["reason"], "alert miss-evidence");
    let steps = "dwarpal_containment_steps_total{by=\"automatic\",partner=\"alpha\",to=\"known-only\"}";
    assert_eq!(world.metric(steps), 1.0);
}
