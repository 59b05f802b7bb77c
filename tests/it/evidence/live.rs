//! Does an answer wait for its record? The running gateway, before disks that hang, fail and fill.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;

use super::running::{
    FAIL, HANG, Interference, REST, about, assert_verified, copy, entries_from, log_of, mobile, of, post, reference,
    undeclared,
};
use crate::world::backend::{Exchange, one_person};
use crate::world::frames::{self, Heard};
use crate::world::line::{Answer, Line};
use crate::world::pki::pki;
use crate::world::{ALPHA, Setup, World, eventually};

const AADHAAR: [&str; 3] = ["999941057058", "999971658847", "999933119405"];

fn aadhaar(number: &str) -> String {
    post("/v1/aadhaar", &format!(r#"{{"aadhaar":"{number}","purpose":"care"}}"#))
}

/// Nobody is found under numbers that begin with 65.
fn some_people(exchange: &mut Exchange) {
    exchange.read_body();
    match exchange.request.text().contains("\"65") {
        true => exchange.answer("404 Not Found", "content-type: application/json\r\n", b"{}"),
        false => one_person(exchange),
    }
}

/// The order of system calls: the record is written and synced, then the first byte goes to the partner.
#[test]
fn not_a_byte_of_an_answer_leaves_before_its_record_is_on_the_disk() {
    let directory = tempfile::TempDir::new().expect("directory");
    let calls = directory.path().join("calls").display().to_string();
    let trace = "trace=write,writev,sendto,sendmsg,fdatasync";
    let starter = ["strace", "-D", "-f", "-qq", "-yy", "-s", "16384", "-o", &calls, "-e", trace];
    let setup = Setup::new().section("\n[audit]\ncheckpoint_interval = \"1d\"\n");
    let world = setup.spawn_under(&starter, &[], some_people);
    let mut line = world.alpha();
    assert_eq!(line.ask(mobile("6412345678")).status, 200);
    line.ask(mobile("6512345678")).assert_refused(404, "no-match");
    // This route counts nobody: its answer is passed on as it comes.
    assert_eq!(line.ask(reference(12_345_678_901_234)).status, 200);
    let mut second = frames::connect(&world, &pki().alpha, ALPHA);
    let mut heard = Heard::default();
    heard.until(&mut second, |heard| heard.settings_acks == 1);
    second.send(frames::request(1, "GET", "/v1/query?mobile=6412345678"));
    heard.until(&mut second, |heard| heard.is_over(1));
    assert_eq!(heard.streams[&1].status, 200);

    let (port, backend) = (world.address.port(), world.backend.address);
    let to_partner = |call: &str| call.contains(&format!("<TCP:[127.0.0.1:{port}->"));
    let journal = |call: &str| call.contains("/audit/journal/0000000000>");
    for request in world.backend.requests(4) {
        let decision = request.header("x-decision-id");
        let calls = fs::read_to_string(&calls).expect("calls");
        let calls: Vec<&str> = calls.lines().collect();
        let after = |from: usize, what: &str, is: &dyn Fn(&str) -> bool| {
            let found = calls[from..].iter().position(|call| is(call));
            from + found.unwrap_or_else(|| panic!("{what} of {decision} in\n{}", calls.join("\n")))
        };
        let asked =
            after(0, "its way to the backend", &|call| call.contains(decision) && call.contains(&backend.to_string()));
        let written = after(0, "its record", &|call| call.contains(decision) && journal(call));
        let sync = after(written, "the sync", &|call| call.contains("fdatasync(") && journal(call));
        let synced = match calls[sync].ends_with("<unfinished ...>") {
            false => sync,
            true => {
                let (writer, _) = calls[sync].split_once(' ').expect("a thread");
                after(sync, "the end of the sync", &|call| {
                    call.starts_with(&format!("{writer} ")) && call.contains("<... fdatasync resumed>")
                })
            }
        };
        let answered = after(asked, "its answer", &to_partner);
        assert!(calls[synced].ends_with("= 0"), "{}", calls[synced]);
        assert!(asked < written && synced < answered, "{asked} {written} {synced} {answered}\n{}", calls.join("\n"));
    }
}

#[test]
fn answers_wait_for_a_disk_that_hangs_and_are_refused_when_it_fails() {
    let interval = "subject = \"body:/aadhaar\"\ndurability = \"interval\"";
    let setup = Setup::new().gateway("subject = \"body:/aadhaar\"", interval);
    let mut world = setup.clone().spawn(one_person);
    let (mut waiting, mut other) = (world.alpha(), world.alpha());
    let mut told = BTreeSet::new();
    let mut ask = |line: &mut Line, request: String| {
        let answer = line.ask(request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        told.insert(answer.header("x-decision-id").to_owned());
    };
    ask(&mut waiting, mobile("6412345678"));

    // It hangs, for a while: one answer waits for it, those of the other route do not.
    let hangs = Interference::begin(&mut world, HANG);
    waiting.send(mobile("6412345678"));
    world.backend.requests(2);
    for number in AADHAAR {
        ask(&mut other, aadhaar(number));
    }
    assert_eq!(other.ask(REST).status, 200);
    assert!(waiting.is_silent(), "an answer left before its record was on the disk");
    hangs.end();
    let late = waiting.answer(false);
    assert_eq!(late.status, 200);

    // For longer than a request may take.
    world.configure(&setup.gateway("request_timeout = \"30s\"", "request_timeout = \"1s\""));
    assert_eq!(world.command(&["reload"]).0, 0);
    let hangs = Interference::begin(&mut world, HANG);
    let asked = world.backend.count();
    let given_up = world.ask(mobile("6412345678"));
    given_up.assert_refused(503, "unavailable");
    assert!(!given_up.text().contains("A Test"));
    assert_eq!(world.backend.count(), asked + 1);
    hangs.end();
    // The record came to the disk after all; so did that it was for nothing.
    let decision = given_up.header("x-decision-id");
    let closed = about(&world, "closed", decision);
    let ended = (&closed["by"], &closed["step"], &closed["bytes"]);
    assert_eq!(ended, (&"gateway".into(), &"record".into(), &0.into()), "{closed}");
    about(&world, "disclosure", decision);

    // It fails.
    let fails = Interference::begin(&mut world, FAIL);
    let asked = world.backend.count();
    for number in 1..=3 {
        let refused = world.ask(mobile("6412345678"));
        refused.assert_refused(503, "unavailable");
        assert!(!refused.text().contains("A Test"));
        assert_eq!(world.backend.count(), asked + number);
    }
    assert_eq!(world.ask(REST).status, 200, "what discloses nobody goes on");
    let (status, why) = world.observe(ALPHA, "/readyz").expect("it answers");
    assert!(status == 503 && why.contains("cannot be written"), "{status} {why}");
    world.process().logged(|line| line["reason"] == "audit-unavailable");
    assert!(world.metric("dwarpal_audit_failures_total") >= 1.0);
    fails.end();
    eventually("it gets better by itself", || world.observe(ALPHA, "/readyz").expect("it answers").0 == 200);
    ask(&mut other, aadhaar(AADHAAR[0]));
    // This connection is older than the shorter time.
    ask(&mut waiting, mobile("6412345678"));

    assert_eq!(world.command(&["audit", "checkpoint"]).0, 0);
    assert_verified(&world, &log_of(&world), None);
    let entries = entries_from(&log_of(&world), 0);
    told.insert(late.header("x-decision-id").to_owned());
    assert_told(&entries, &told);
    let gaps = of(&entries, "gap");
    assert_eq!(gaps.len(), 1, "{gaps:#?}");
    assert_eq!(gaps[0]["lookups_refused"], 3);
}

/// Every decision that an answer named is a disclosure, once.
#[track_caller]
fn assert_told(entries: &[serde_json::Value], told: &BTreeSet<String>) {
    let mut disclosures: Vec<&str> =
        of(entries, "disclosure").iter().map(|entry| entry["id"].as_str().expect("an id")).collect();
    disclosures.sort_unstable();
    for decision in told {
        let found = disclosures.iter().filter(|id| *id == decision).count();
        assert_eq!(found, 1, "{decision} was answered");
    }
}

/// What is missing in a log, by all its gaps: lookups, denials, ends.
fn missing(entries: &[serde_json::Value]) -> [u64; 3] {
    let sum = |what: &str| of(entries, "gap").iter().map(|gap| gap[what].as_u64().expect("a count")).sum();
    ["lookups_refused", "denied", "closed"].map(sum)
}

fn lost(world: &World, event: &str) -> u64 {
    world.metric(&format!("dwarpal_audit_lost_total{{event=\"{event}\"}}")) as u64
}

/// A disk of the log's own, so small that it can be filled.
#[test]
fn a_full_disk_refuses_lookups_and_loses_nothing_silently() {
    let disk = tempfile::TempDir::new().expect("directory");
    let log = disk.path().display().to_string();
    let mount = format!("mount -t tmpfs -o size=4m,mode=700 none {log} && exec \"$@\"");
    let section =
        format!("\n[audit]\ndirectory = \"{log}\"\nreserve_bytes = \"1MiB\"\ncheckpoint_interval = \"100ms\"\n");
    let starter = ["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"];
    let mut world = Setup::new().section(&section).spawn_under(&starter, &[], one_person);
    // Its disk, as the process sees it.
    let seen = std::path::PathBuf::from(format!("/proc/{}/root{log}", world.process().child.id()));
    let filler = seen.join("filler");
    let mut line = world.alpha();
    let mut told = BTreeSet::new();
    let mut refused = 0;
    let mut ask = |told: &mut BTreeSet<String>, refused: &mut u64| {
        let Answer { status, headers, .. } = line.ask(mobile("6412345678"));
        match status {
            200 => {
                let decision = headers.into_iter().find(|(name, _)| name == "x-decision-id").expect("a decision").1;
                told.insert(decision);
            }
            503 => *refused += 1,
            other => panic!("{other}"),
        }
        status
    };
    for _ in 0..3 {
        assert_eq!(ask(&mut told, &mut refused), 200);
    }
    let mut flooding = world.alpha();
    let mut deny = || flooding.ask(undeclared()).assert_refused(400, "body-invalid");
    deny();
    let recorded = || of(&entries_from(&seen, 0), "denied").len();
    eventually("a refusal is recorded", || recorded() == 1);

    // Less room than is kept for lookups: refusals are counted, lookups go on.
    fs::write(&filler, vec![0; 13 << 18]).expect("room for the filler");
    assert_eq!(ask(&mut told, &mut refused), 200, "from now on the writer knows");
    for _ in 0..20 {
        deny();
    }
    eventually("they are counted", || lost(&world, "denied") == 20);
    assert_eq!(ask(&mut told, &mut refused), 200);
    assert_eq!(recorded(), 1);

    // No room at all.
    let fill = || {
        let file = fs::OpenOptions::new().append(true).open(&filler);
        drop(file.and_then(|mut file| file.write_all(&vec![0; 4 << 20])));
    };
    eventually("no lookup is answered", || {
        fill();
        ask(&mut told, &mut refused) == 503
    });
    for _ in 0..5 {
        deny();
    }
    assert_eq!(world.ask(REST).status, 200, "what discloses nobody goes on");
    let (status, why) = world.observe(ALPHA, "/readyz").expect("it answers");
    assert!(status == 503 && why.contains("cannot be written"), "{status} {why}");

    fs::remove_file(&filler).expect("removed");
    eventually("it gets better by itself", || world.observe(ALPHA, "/readyz").expect("it answers").0 == 200);
    eventually("lookups are answered", || ask(&mut told, &mut refused) == 200);
    eventually("refusals are recorded", || {
        deny();
        recorded() > 1
    });
    eventually("all that is missing is told of", || {
        missing(&entries_from(&seen, 0)) == ["disclosure", "denied", "closed"].map(|event| lost(&world, event))
    });
    let [lookups, denied, _] = missing(&entries_from(&seen, 0));
    assert_eq!(lookups, refused);
    assert!(denied >= 25, "{denied}");
    assert_eq!(world.command(&["audit", "checkpoint"]).0, 0);
    assert_verified(&world, &seen, None);
    assert_told(&entries_from(&seen, 0), &told);
    // So that it is inspected like any other.
    copy(&seen, &log_of(&world));
}

#[test]
fn a_full_queue_refuses_lookups_and_loses_nothing_silently() {
    let section = "\n[audit]\nqueue_bytes_max = \"1MiB\"\ndurability = \"interval\"\nreserve_bytes = 0\n";
    let mut world = Setup::new().section(section).spawn(one_person);
    let hangs = Interference::begin(&mut world, HANG);
    let batch = |request: String| request.repeat(16);
    // Refusals may have half of the queue.
    let mut line = world.alpha();
    eventually("refusals are lost", || {
        line.send(batch(undeclared()));
        (0..16).for_each(|_| line.answer(false).assert_refused(400, "body-invalid"));
        lost(&world, "denied") > 0
    });
    assert_eq!((lost(&world, "closed"), lost(&world, "disclosure")), (0, 0));
    let (mut told, mut refused) = (BTreeSet::new(), 0);
    let mut ask = |line: &mut Line, told: &mut BTreeSet<String>| {
        line.send(batch(mobile("6412345678")));
        for _ in 0..16 {
            let answer = line.answer(false);
            match answer.status {
                200 => drop(told.insert(answer.header("x-decision-id").to_owned())),
                503 => refused += 1,
                other => panic!("{other}"),
            }
        }
        refused
    };
    eventually("no lookup is answered", || ask(&mut line, &mut told) > 0);
    assert!(told.len() > 100 && lost(&world, "closed") > 0, "{}", told.len());
    assert_eq!(world.ask(REST).status, 200, "what discloses nobody goes on");
    hangs.end();
    let refused = refused_so_far(&mut ask, &mut line, &mut told);
    eventually("all that is missing is told of", || {
        missing(&entries_from(&log_of(&world), 0))
            == ["disclosure", "denied", "closed"].map(|event| lost(&world, event))
    });
    // An answer of this route does not wait for its record; a checkpoint does.
    assert_eq!(world.command(&["audit", "checkpoint"]).0, 0);
    assert_verified(&world, &log_of(&world), None);
    let entries = entries_from(&log_of(&world), 0);
    assert_eq!(missing(&entries)[0], refused);
    assert_told(&entries, &told);
}

/// Asks on until a whole batch is answered.
fn refused_so_far(
    ask: &mut impl FnMut(&mut Line, &mut BTreeSet<String>) -> u64,
    line: &mut Line,
    told: &mut BTreeSet<String>,
) -> u64 {
    let mut refused = ask(line, told);
    eventually("lookups are answered again", || {
        let before = std::mem::replace(&mut refused, ask(line, told));
        before == refused
    });
    refused
}
