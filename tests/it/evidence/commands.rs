//! What do the commands answer on a whole log?

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use dwarpal::audit::event::Event;
use dwarpal::audit::layout::SEGMENT;
use dwarpal::subject::epochs::Keyring;
use serde_json::Value;

use super::generate::{Crowd, Log, decision, mobile, signer, time_of};
use super::{Home, LARGE, PENDING, SIGNED, Said};

/// Entries of the large log as they were generated.
fn entries() -> Vec<Event<'static>> {
    let crowd = Crowd::of(LARGE.data(), 500);
    (0..SIGNED + PENDING).map(|index| crowd.entry(index)).collect()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_whole_log_verifies_and_says_what_that_is_worth() {
    let ran = LARGE.audit(&["verify", "@", "--key", "@key", "--since", "held"], "");
    assert_eq!(ran.code, Some(0), "{}{}", ran.said(), ran.complained());
    assert!(ran.said().contains("not yet under a checkpoint: 7 entries"), "{}", ran.said());
    assert!(ran.said().contains("whole up to entry 65835, of 2026-03-01T"), "{}", ran.said());
    assert!(ran.said().contains("its first 1000 entries are those of the checkpoint held elsewhere"), "{}", ran.said());
    assert!(ran.said().contains("nothing is said about the 7 entries after it"), "{}", ran.said());
    // Nobody watches: no bar.
    assert_eq!(ran.complained(), "");
    let ran = LARGE.audit(&["verify", "@", "--key", "@key", "--json"], "");
    let report = json(&ran.said());
    assert_eq!((&report["whole"], &report["size"], &report["indexes"]), (&true.into(), &SIGNED.into(), &1.into()));
    // The key may be a file; another key is another log.
    let vkey = LARGE.log().join("vkey");
    assert_eq!(LARGE.audit(&["verify", "@", "--key", vkey.to_str().expect("a path")], "").code, Some(0));
    let other =
        dwarpal::audit::note::Signer::from_seed(super::generate::ORIGIN, &[6; 32]).expect("a key").vkey().to_string();
    let ran = LARGE.audit(&["verify", "@", "--key", &other], "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.said().contains("the note is not signed by this key") && ran.said().contains("nothing is proved"));
    assert_eq!(LARGE.audit(&["verify", "@", "--key", "nonsense"], "").code, Some(2));
    assert_eq!(LARGE.audit(&["verify", "/nowhere", "--key", "@key"], "").code, Some(4));
}

#[test]
fn a_decision_is_proved_without_the_log() {
    let (index, id) = entries()
        .iter()
        .enumerate()
        .find_map(|(index, event)| match event {
            Event::Disclosure(request) if index > 3_000 => Some((index, request.id.to_string())),
            _ => None,
        })
        .expect("a disclosure");
    let home = Home { directory: tempfile::TempDir::new().expect("a directory") };
    let out = home.data().join("proofs");
    let ran = LARGE.audit(&["prove", &id, "--dir", "@", "--out", out.to_str().expect("a path")], "");
    assert_eq!(ran.code, Some(0), "{}", ran.complained());
    for (index, event) in [(index, "disclosure"), (index + 1, "closed")] {
        let (proof, entry) = (format!("proofs/{index}.tlog-proof"), format!("proofs/{index}.json"));
        assert!(ran.said().contains(&format!("{index}.tlog-proof: {event}")), "{}", ran.said());
        let text = fs::read_to_string(home.data().join(&proof)).expect("a proof");
        assert!(text.starts_with(&format!("c2sp.org/tlog-proof@v1\nindex {index}\n")));
        assert!(text.ends_with(&fs::read_to_string(LARGE.log().join("checkpoint")).expect("a checkpoint")));
        let ran = home.audit(&["check-proof", &proof, "--key", "@key", "--entry", &entry], "");
        assert_eq!(ran.code, Some(0), "{}{}", ran.said(), ran.complained());
        assert!(ran.said().contains(&format!("it is entry {index} of the first {SIGNED} entries")), "{}", ran.said());
        // Another entry, or a changed one, is not proved.
        let mut changed = fs::read(home.data().join(&entry)).expect("an entry");
        changed[40] ^= 1;
        fs::write(home.data().join("changed"), changed).expect("written");
        let ran = home.audit(&["check-proof", &proof, "--key", "@key", "--entry", "changed"], "");
        assert_eq!((ran.code, ran.said().contains("not proved")), (Some(1), true));
    }
    // One proof alone is what the specification says, and nothing else is on standard output.
    let ran = LARGE.audit(&["prove", "12", "--dir", "@"], "");
    let proof = dwarpal::audit::proof::Proof::parse(&ran.said()).expect("a proof");
    let crowd = Crowd::of(LARGE.data(), 500);
    proof.verify(&crowd.entry(12).to_json(), &signer().vkey()).expect("proved");
    // What is not signed yet is not proved, nor what is not there.
    let ran = LARGE.audit(&["prove", &SIGNED.to_string(), "--dir", "@"], "");
    assert_eq!((ran.code, ran.complained().contains("not under a checkpoint yet")), (Some(1), true));
    assert_eq!(LARGE.audit(&["prove", "99999999", "--dir", "@"], "").code, Some(1));
    assert_eq!(LARGE.audit(&["prove", "who?", "--dir", "@"], "").code, Some(2));
}

#[test]
fn checkpoints_and_sizes_are_consistent() {
    let ran = LARGE.audit(&["consistency", "held", "audit/checkpoint", "--key", "@key", "--dir", "@"], "");
    assert_eq!(ran.code, Some(0), "{}", ran.complained());
    assert!(ran.said().starts_with("old 1000\n"), "{}", ran.said());
    assert!(ran.said().ends_with(&fs::read_to_string(LARGE.log().join("checkpoint")).expect("a checkpoint")));
    // Sizes between and after checkpoints, too.
    for (old, new) in [("1", "2"), ("65535", "65536"), ("777", "65800"), ("65820", "65843"), ("0", "5"), ("9", "9")] {
        let ran = LARGE.audit(&["consistency", old, new, "--dir", "@", "--json"], "");
        assert_eq!((ran.code, &json(&ran.said())["consistent"]), (Some(0), &true.into()), "{old} {new}");
    }
    assert_eq!(LARGE.audit(&["consistency", "5", "4", "--dir", "@"], "").code, Some(2));
    let ran = LARGE.audit(&["consistency", "5", "70000", "--dir", "@"], "");
    assert_eq!(ran.code, Some(4));
    assert!(ran.complained().contains("70000: this log has only 65843 entries"), "{}", ran.complained());
}

#[test]
fn a_person_is_found_in_every_lookup_and_never_named() {
    let ring = Keyring::new(LARGE.data(), None);
    let key = ring.read().expect("keys").current().clone();
    let subject = dwarpal::subject::Subject::parse(dwarpal::subject::Kind::Mobile, &mobile(7)).expect("a number");
    let token = dwarpal::subject::Mark::from_bytes(key.token(&subject).key());
    let entries = entries();
    let expected: Vec<u64> = (0..)
        .zip(&entries)
        .filter(|(_, event)| event.tokens().any(|other| other == token))
        .map(|(index, _)| index)
        .collect();
    assert!(expected.len() > 20 && expected.iter().any(|index| *index >= SEGMENT));
    const WHO: [&str; 5] = ["who", "--kind", "mobile", "--id", "-"];
    let who =
        |more: &[&str], input: &str| LARGE.audit(&[&WHO[..], &["--dir", "@", "--data", "@data"], more].concat(), input);

    // Any notation of the number is the same person.
    let ran = who(&["--json"], &format!("+91 {}\n", mobile(7)));
    assert_eq!(ran.code, Some(0), "{}", ran.complained());
    let answer = json(&ran.said());
    let found: Vec<u64> = answer["lookups"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|lookup| lookup["index"].as_u64().expect("an index"))
        .collect();
    assert_eq!(found, expected);
    for lookup in answer["lookups"].as_array().expect("a list") {
        let disclosed = lookup["entry"]["event"] == "disclosure";
        assert_eq!(lookup["closed"]["id"] == lookup["entry"]["id"], disclosed, "{lookup}");
    }
    let plain = who(&[], &mobile(7)).said();
    for text in [&ran.said(), &plain] {
        assert!(!text.contains(&mobile(7)), "{text}");
    }
    let first = &entries[expected[0] as usize];
    assert!(plain.contains(&format!("decision {}, entry {}", first.id().expect("an id"), expected[0])), "{plain}");
    assert!(plain.contains("lookup-by-mobile for vaccination-status"));
    assert!(plain.contains("as asserted by the partner") && plain.contains("bytes were sent"), "{plain}");
    assert!(plain.contains(&format!("{SIGNED} entries, root ")) && plain.contains("7 entries are after it"), "{plain}");

    // A period cuts.
    let middle = time_of(expected[expected.len() / 2]).to_string();
    let early = json(&who(&["--json", "--until", &middle], &mobile(7)).said());
    let late = json(&who(&["--json", "--from", &middle], &mobile(7)).said());
    let count = |answer: &Value| answer["lookups"].as_array().expect("a list").len();
    assert_eq!((count(&early), count(&late)), (expected.len() / 2, expected.len() - expected.len() / 2));

    // Nobody asked for this one.
    let ran = who(&[], &mobile(0));
    assert_eq!(ran.code, Some(1));
    assert!(ran.said().starts_with("none in this period\nsearched: 2026-03-01T09:00:00Z to "), "{}", ran.said());
    assert!(ran.said().contains("checkpoint: gateway.example/evidence, 65836 entries"), "{}", ran.said());

    // Neither the command line nor an error ever names anybody.
    let ran = LARGE.audit(&["who", "--kind", "mobile", "--id", &mobile(7), "--dir", "@", "--data", "@data"], "");
    assert_eq!(ran.code, Some(2));
    assert!(ran.complained().contains("give it on standard input, with --id -"), "{}", ran.complained());
    assert!(!ran.complained().contains(&mobile(7)));
    let ran = who(&[], &mobile(7)[..9]);
    assert_eq!(ran.code, Some(2));
    assert!(!ran.complained().contains(&mobile(7)[..9]), "{}", ran.complained());
}

#[test]
fn an_actor_can_be_compared_with_its_mark() {
    let home = Home::small(300);
    let key = Keyring::new(home.data(), None).read().expect("keys").current().clone();
    let crowd = Crowd::of(home.data(), 20);
    let Some(Event::Disclosure(mut request)) =
        (0..300).map(|index| crowd.entry(index)).find(|event| matches!(event, Event::Disclosure(_)))
    else {
        panic!("a disclosure")
    };
    let subject = dwarpal::subject::Subject::parse(dwarpal::subject::Kind::Mobile, &mobile(0)).expect("a number");
    request.subject.as_mut().expect("a person").token = dwarpal::subject::Mark::from_bytes(key.token(&subject).key());
    request.actor = Some(key.actor("clerk-17"));
    request.id = decision(1_000_000);
    let mut log = Log::open(home.data());
    log.append(&[Event::Disclosure(request).to_json()]);
    for (actor, matches) in [("clerk-17", true), ("clerk-18", false)] {
        let ran = home.audit(
            &["who", "--kind", "mobile", "--id", "-", "--json", "--actor", actor, "--dir", "@", "--data", "@data"],
            &mobile(0),
        );
        assert_eq!(json(&ran.said())["lookups"][0]["actor_matches"], matches, "{}", ran.said());
        assert!(json(&ran.said())["lookups"][0]["closed"].is_null());
    }
    let ran = home.audit(&["who", "--kind", "mobile", "--id", "-", "--dir", "@", "--data", "@data"], &mobile(0));
    assert!(ran.said().contains("no record of its end, so it counts as wholly received"), "{}", ran.said());
}

#[test]
fn a_decision_is_shown_with_its_end_and_its_certificate() {
    let index = entries().iter().position(|event| matches!(event, Event::Disclosure(_))).expect("a disclosure");
    let ran = LARGE.audit(&["show", &decision(index as u64).to_string(), "--dir", "@"], "");
    assert_eq!(ran.code, Some(0), "{}", ran.complained());
    for part in ["event      credential", "event      disclosure", "event      closed", "subject    CN="] {
        assert!(ran.said().contains(part), "{part}: {}", ran.said());
    }
    let ran = LARGE.audit(&["show", &index.to_string(), "--dir", "@", "--json"], "");
    let crowd = Crowd::of(LARGE.data(), 500);
    // Byte for byte: it is what the log's hash is of.
    let entry = String::from_utf8(crowd.entry(index as u64).to_json()).expect("text");
    assert!(ran.said().contains(&format!("{{\"index\":{index},\"entry\":{entry}}}\n")), "{}", ran.said());
}

#[test]
fn the_end_of_the_log_is_shown_and_followed() {
    let home = Home::small(700);
    let ran = home.audit(&["tail", "--lines", "3", "--json", "--dir", "@"], "");
    let indexes: Vec<_> = ran.said().lines().map(|line| json(line)["index"].as_u64().expect("an index")).collect();
    assert_eq!(indexes, [697, 698, 699]);
    let ran = home.audit(&["tail", "--lines", "400", "--json", "--partner", "icmr", "--dir", "@"], "");
    let crowd = Crowd::of(home.data(), 20);
    let count = (0..700).filter(|index| crowd.entry(*index).partner() == Some("icmr")).count();
    assert!(count > 20 && ran.said().lines().all(|line| json(line)["entry"]["partner"] == "icmr"));
    assert_eq!(ran.said().lines().count(), count);

    let mut child = Command::new(env!("CARGO_BIN_EXE_dwarpal"))
        .args(["audit", "tail", "--follow", "--lines", "1", "--json", "--dir"])
        .arg(home.log())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || json(&lines.next().expect("a line").expect("text"))["index"].as_u64().expect("an index");
    assert_eq!(next(), 699);
    // As a gateway that starts again, and goes on.
    let mut log = Log::open(home.data());
    log.fill(705, &crowd);
    for index in 700..705 {
        assert_eq!(next(), index);
    }
    log.fill(1_100, &crowd);
    for index in 705..1_100 {
        assert_eq!(next(), index);
    }
    child.kill().expect("killed");
    child.wait().expect("gone");
}

#[test]
fn days_are_exported_whole() {
    let home = Home::small(300);
    let crowd = Crowd::of(home.data(), 20);
    let mut log = Log::open(home.data());
    // Two more days, not in order.
    let stop = |days: u64| {
        let time = time_of(0).plus(Duration::from_secs(days * 86_400));
        Event::Stop(dwarpal::audit::event::Stop { v: 1, time }).to_json()
    };
    log.append(&[stop(2), stop(1), stop(2)]);
    for format in ["jsonl", "csv"] {
        let ran = home.audit(&["export", "--format", format, "--out", "days", "--dir", "@"], "");
        assert_eq!(ran.code, Some(0), "{}", ran.complained());
        let names: Vec<_> =
            ran.said().lines().map(|line| line.rsplit('/').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(names, ["2026-03-01", "2026-03-02", "2026-03-03"].map(|day| format!("{day}.{format}")));
    }
    let read = |name: &str| fs::read_to_string(home.data().join("days").join(name)).expect("a file");
    let rows: Vec<_> = read("2026-03-01.jsonl").lines().map(json).collect();
    assert_eq!(rows.len(), 300);
    for (index, row) in (0..).zip(rows) {
        let mut expected: Value = serde_json::from_slice(&crowd.entry(index).to_json()).expect("json");
        expected["index"] = index.into();
        assert_eq!(row, expected);
    }
    assert_eq!(read("2026-03-03.jsonl").lines().count(), 2);
    let csv = read("2026-03-01.csv");
    assert_eq!(csv.lines().count(), 301);
    let header: Vec<_> = csv.lines().next().expect("a header").split(',').collect();
    assert_eq!((header[0], header[1], *header.last().expect("a column")), ("index", "time", "entry"));
    // Python reads it as it was meant.
    let script = "import csv,sys\nrows=list(csv.DictReader(open(sys.argv[1])))\nassert len(rows)==300\nprint(sum(r['event']=='disclosure' for r in rows), rows[0]['event'], len(rows[0]['entry'])>100, len({len(r) for r in rows}))";
    let ran =
        super::run(Command::new("python3").args(["-c", script]).arg(home.data().join("days/2026-03-01.csv")), b"");
    let disclosures = (0..300).filter(|index| matches!(crowd.entry(*index), Event::Disclosure(_))).count();
    assert_eq!(ran.said().trim(), format!("{disclosures} credential True 1"), "{}", ran.complained());
    // Nothing half-written is left, and a period leaves days out.
    let ran = home
        .audit(&["export", "--format", "csv", "--out", "later", "--from", "2026-03-02", "--dir", "@", "--json"], "");
    assert_eq!(json(&ran.said())["entries"], 3, "{}", ran.said());
    assert_eq!(fs::read_dir(home.data().join("later")).expect("a directory").count(), 2);
}

#[test]
fn an_index_that_is_gone_or_damaged_hides_nobody_and_is_made_again() {
    let home = LARGE.twin();
    let who = |home: &Home| {
        home.audit(&["who", "--kind", "mobile", "--id", "-", "--json", "--dir", "@", "--data", "@data"], &mobile(7))
    };
    let whole = fs::read(home.log().join("index/0000000000")).expect("an index");
    let right = who(&home).said();
    home.replace("index/0000000000", |bytes| bytes.iter_mut().skip(900).for_each(|byte| *byte ^= 1));
    let ran = who(&home);
    assert_eq!(ran.said(), right);
    assert!(ran.complained().contains("index/0000000000: a page's checksum is wrong"), "{}", ran.complained());
    fs::remove_file(home.log().join("index/0000000000")).expect("removed");
    assert_eq!(who(&home).said(), right);
    let ran = home.audit(&["index", "@", "--json"], "");
    assert_eq!(json(&ran.said())["made"], serde_json::json!([0]), "{}", ran.complained());
    assert_eq!(fs::read(home.log().join("index/0000000000")).expect("an index"), whole);
    assert_eq!(json(&home.audit(&["index", "@", "--json"], "").said())["made"], serde_json::json!([]));
}
