//! Traces of lookups: whole, by the line, cut short, altered where nobody may look, and malformed.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const PARTNERS: &str = r#"{"partners":[
 {"name":"icmr","kind":"research","cidrs":["10.20.0.0/27"],"routes":["lookup-by-aadhaar","lookup-by-mobile"],
  "actors":false,"contracted_per_day":8000,"consent_required":false},
 {"name":"circus","kind":"nobody-knows","cidrs":["10.20.1.0/27"],"routes":["lookup-by-mobile","verify-certificate"],
  "actors":true,"contracted_per_day":20,"consent_required":false}]}"#;

/// A world in a directory: eight days of an honest partner, then a scan of neighbours, and all that is refused at the door.
struct World(TempDir);

impl World {
    fn new() -> World {
        let world = World(TempDir::new().expect("directory"));
        let listed = |id: &str| format!(r#"{{"subjects":[{{"kind":"mobile","id":"{id}"}}]}}"#);
        world.write("partners.json", PARTNERS);
        world.write("protected.json", &listed("6800000001"));
        world.write("canaries.json", &listed("6800000002"));
        world.write("trace.jsonl", &trace());
        world
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let world = self.0.path().display().to_string();
        let out = self.path("out").display().to_string();
        let command = Command::new(env!("CARGO_BIN_EXE_dwarpal"))
            .args(["replay", "--world", &world, "--out", &out])
            .args(arguments)
            .output();
        command.expect("a command that runs")
    }

    /// Verdicts and alerts.
    fn replay(&self) -> (String, String) {
        let output = self.run(&[]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let read = |name: &str| fs::read_to_string(self.path("out").join(name)).expect(name);
        (read("verdicts.jsonl"), read("alerts.jsonl"))
    }
}

fn event(seq: usize, minute: usize, partner: &str, source: &str, route: &str, id: &str, backend: &str) -> String {
    let (day, hour, minute) = (1 + minute / 1_440, minute / 60 % 24, minute % 60);
    format!(
        r#"{{"seq":{seq},"time":"2026-03-{day:02}T{hour:02}:{minute:02}:00.5Z","partner":"{partner}","actor":null,"source":"{source}","route":"{route}","subject":{{"kind":"mobile","id":"{id}"}},"consent":false,"backend":{backend}}}"#
    )
}

const FOUND: &str = r#"{"status":200,"records":2}"#;
const MISSED: &str = r#"{"status":404,"records":0}"#;

fn trace() -> String {
    let mut lines = Vec::new();
    let mut add = |minute, partner, source, route, id: &str, backend| {
        lines.push(event(lines.len(), minute, partner, source, route, id, backend));
    };
    let by_mobile = "lookup-by-mobile";
    for at in 0..400 {
        // Spread over all of 64 to 67, so that none are neighbours.
        let id = format!("{}", 6_400_000_000u64 + (at as u64 * 7_654_321) % 400_000_000);
        add(at * 28, "icmr", "10.20.0.5", by_mobile, &id, if at % 20 == 0 { MISSED } else { FOUND });
    }
    let late = 400 * 28;
    add(late, "nobody", "10.20.0.5", by_mobile, "6412345678", FOUND);
    add(late, "icmr", "10.99.0.5", by_mobile, "6412345678", FOUND);
    add(late, "icmr", "10.20.0.5", "verify-certificate", "6412345678", FOUND);
    add(late, "icmr", "10.20.0.5", "no-such-route", "6412345678", FOUND);
    add(late, "icmr", "10.20.0.5", by_mobile, "641234567", r#"{"status":400,"records":0}"#);
    add(late, "circus", "10.20.1.5", "verify-certificate", "6500000000", FOUND);
    for at in 0..200 {
        let id = format!("{}", 6_700_123_000u64 + at);
        add(late + 1, "icmr", "10.20.0.5", by_mobile, &id, if at % 8 == 0 { FOUND } else { MISSED });
    }
    lines.join("\n") + "\n"
}

fn reasons(verdicts: &str) -> Vec<&str> {
    verdicts.lines().map(|line| line.rsplit('"').nth(1).expect("a reason")).collect()
}

#[test]
fn every_event_has_its_verdict_and_a_scan_is_held() {
    let (verdicts, alerts) = World::new().replay();
    let reasons = reasons(&verdicts);
    assert_eq!(reasons.len(), trace().lines().count());
    assert!(reasons[..400].iter().all(|reason| *reason == "allowed"), "honest lookups: {reasons:?}");
    assert_eq!(
        reasons[400..406],
        ["identity-unknown", "network-not-allowed", "no-grant", "no-route", "identifier-format", "allowed",]
    );
    let scan = &reasons[406..];
    let allowed = scan.iter().filter(|reason| **reason == "allowed").count();
    assert!(allowed <= 40, "{allowed} of a scan were let through");
    assert!(scan.ends_with(&["held-partner"; 50]));
    let told = alerts.lines().find(|line| line.contains(r#""partner":"icmr""#)).expect("an alert");
    for member in ["time", "partner", "actor", "detector", "severity", "why"] {
        assert!(told.contains(&format!("\"{member}\":")), "{told}");
    }
    assert!(!alerts.contains("67001"), "an alert names somebody: {alerts}");
}

#[test]
fn what_comes_later_changes_no_verdict() {
    let world = World::new();
    let (whole, _) = world.replay();
    let prefix: Vec<_> = trace().lines().take(470).map(str::to_owned).collect();
    world.write("trace.jsonl", &prefix.join("\n"));
    let (cut, _) = world.replay();
    assert_eq!(cut.lines().collect::<Vec<_>>(), whole.lines().take(470).collect::<Vec<_>>());
}

#[test]
fn the_answer_to_a_refused_lookup_is_never_looked_at() {
    let world = World::new();
    let (verdicts, alerts) = world.replay();
    let denied = |line: &str| line.contains("\"deny\"");
    let trace = trace();
    let altered = trace.lines().zip(verdicts.lines()).map(|(event, verdict)| match denied(verdict) {
        true if event.contains(FOUND) => event.replace(FOUND, MISSED),
        true => event.replace(MISSED, r#"{"status":200,"records":3}"#),
        false => event.to_owned(),
    });
    let altered: Vec<_> = altered.collect();
    world.write("trace.jsonl", &altered.join("\n"));
    assert_eq!(world.replay(), (verdicts, alerts));
}

#[test]
fn a_stream_is_answered_line_by_line_as_the_whole() {
    let world = World::new();
    let (verdicts, alerts) = world.replay();
    let directory = world.0.path().display().to_string();
    let out = world.path("streamed").display().to_string();
    let mut child = Command::new(env!("CARGO_BIN_EXE_dwarpal"))
        .args(["replay", "--stream", "--world", &directory, "--out", &out])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a command that runs");
    let mut input = child.stdin.take().expect("a pipe");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut streamed = String::new();
    for (seq, line) in trace().lines().enumerate() {
        // Every other event comes without its answer, which is told only if it was allowed.
        let (event, backend) = line.split_once(r#","backend":"#).expect("an answer");
        let held_back = seq % 2 == 1;
        let sent = if held_back { format!("{event}}}") } else { line.to_owned() };
        writeln!(input, "{sent}").expect("read");
        let start = streamed.len();
        output.read_line(&mut streamed).expect("a verdict before the next event");
        if held_back && streamed[start..].contains("\"allow\"") {
            writeln!(input, r#"{{"seq":{seq},"backend":{backend}"#).expect("read");
        }
    }
    drop(input);
    assert!(child.wait().expect("ended").success());
    assert_eq!(streamed, verdicts);
    let read = |name: &str| fs::read_to_string(Path::new(&out).join(name)).expect(name);
    assert_eq!((read("verdicts.jsonl"), read("alerts.jsonl")), (verdicts, alerts));
}

#[test]
fn a_line_that_cannot_be_read_is_named_with_its_key() {
    let world = World::new();
    let good = event(0, 0, "icmr", "10.20.0.5", "lookup-by-mobile", "6412345678", FOUND);
    for (from, to, expected) in [
        ("{\"seq\"", "{\"seqq\"", "trace.jsonl:2: seq: missing"),
        ("\"seq\":0", "\"seq\":-1", "trace.jsonl:2: seq: not a whole number"),
        ("2026-03-01T", "2026-03-01 at ", "trace.jsonl:2: time: not a time"),
        ("\"10.20.0.5\"", "\"10.20.0\"", "trace.jsonl:2: source: not an IP address"),
        ("\"id\":\"6412345678\"", "\"id\":6412345678", "trace.jsonl:2: subject.id: not text"),
        ("\"consent\":false", "\"consent\":\"no\"", "trace.jsonl:2: consent: not true"),
        ("\"status\":200", "\"status\":\"ok\"", "trace.jsonl:2: backend: not an object"),
        ("\"seq\":0", "\"seq\":0,\"seq\":1", "trace.jsonl:2: a key stands twice"),
        ("}}", "}", "trace.jsonl:2: not one JSON object"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good);
        world.write("trace.jsonl", &format!("{good}\n{bad}\n"));
        let output = world.run(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("6412345678"), "{said}");
    }
    for wrong in [&["--without", "luck"][..], &["--set", "luck=1"], &["--set", "warn"]] {
        assert_eq!(world.run(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_configuration_plays_a_trace_too() {
    let world = World::new();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let (config, out) = (config.display().to_string(), world.path("out").display().to_string());
    let events = [
        event(0, 0, "icmr", "10.20.0.5", "lookup-by-mobile", "6412345678", FOUND)
            .replace("\"actor\":null", "\"actor\":\"hw-1042\""),
        event(1, 0, "icmr", "10.99.0.5", "lookup-by-mobile", "6412345678", FOUND),
        event(2, 0, "icmr", "10.20.0.5", "no-such-route", "6412345678", FOUND),
    ];
    world.write("trace.jsonl", &events.join("\n"));
    let output = Command::new(env!("CARGO_BIN_EXE_dwarpal"))
        .args(["replay", "--config", &config, "--out", &out])
        .arg(world.path("trace.jsonl"))
        .output()
        .expect("a command that runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let verdicts = fs::read_to_string(world.path("out").join("verdicts.jsonl")).expect("verdicts");
    assert_eq!(reasons(&verdicts), ["allowed", "network-not-allowed", "no-route"]);
}
