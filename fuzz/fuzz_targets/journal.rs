//! Are the facts of an earlier run read back as they were written, and is a damaged journal never more than its whole part?
//!
//! The input is a journal; a line that begins with `+` gets the checksum that it needs.
#![no_main]

use std::net::IpAddr;

use dwarpal::clock::Timestamp;
use dwarpal::state::store::{Fact, Ledger, Store, Whose};
use dwarpal_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

const JOURNAL: &str = "limits.1.journal";
const SNAPSHOT: &str = "limits.snapshot";

thread_local! {
    static SCRATCH: Scratch = Scratch::new();
}

fuzz_target!(|data: &[u8]| {
    let journal = with_checksums(data);
    let facts = read(JOURNAL, &journal).expect("a journal is read as far as it goes");
    for (line, written) in journal.split_inclusive(|byte| *byte == b'\n').zip(&facts.written) {
        let [words, again] = [line, written].map(|line| line.split(|byte| *byte == b' ').collect::<Vec<_>>());
        assert_eq!((words.len(), &words[1..3]), (again.len(), &again[1..3]), "a line says more than the fact");
        assert!(checked(&line[9..]).eq_ignore_ascii_case(line), "a wrong checksum is believed");
    }
    // Torn off anywhere, it is read as far as it goes.
    let torn = journal.get(..journal.len() / 2).unwrap_or_default();
    let before = read(JOURNAL, torn).expect("a torn journal too");
    assert_eq!(before.written, facts.written[..before.written.len()], "other facts come of a torn journal");

    // What was read is written as facts that read the same, as a journal and as a snapshot.
    let written = facts.written.concat();
    let again = read(JOURNAL, &written).expect("our own journal");
    assert_eq!((&again.written, again.torn_bytes), (&facts.written, 0));
    let end = format!("end {:08x} {}\n", crc32c::crc32c(&written), written.len());
    let snapshot = [&written, end.as_bytes()].concat();
    assert_eq!(read(SNAPSHOT, &snapshot).expect("our own snapshot").written, facts.written);
    // A snapshot is whole or nothing.
    for damaged in [&snapshot[..snapshot.len() - 1], &snapshot[1..], &journal] {
        let unread = read(SNAPSHOT, damaged);
        assert!(unread.is_none() || (damaged == journal && ends_well(&journal)), "a damaged snapshot is believed");
    }
});

/// Facts that were read, as lines of a journal.
struct Read {
    written: Vec<Vec<u8>>,
    torn_bytes: usize,
}

fn read(file: &str, bytes: &[u8]) -> Option<Read> {
    SCRATCH.with(|scratch| {
        let path = scratch.write(file, bytes);
        let mut written = Vec::new();
        let opened = Store::open(scratch.path(), |partner, fact, at| written.push(line(partner, fact, at)));
        std::fs::remove_file(path).expect("the file is still there");
        let (_store, recovered) = opened.map_err(|error| assert!(!error.to_string().is_empty())).ok()?;
        assert_eq!(recovered.facts, written.len());
        Some(Read { written, torn_bytes: recovered.torn_bytes })
    })
}

/// As the gateway writes it: a ledger of one fact, that a store appends.
fn line(partner: &str, fact: Fact, at: Timestamp) -> Vec<u8> {
    let mut ledger = Ledger::default();
    ledger.note(partner, fact, at);
    assert!(!ledger.is_empty());
    let text = match fact {
        Fact::Requests => "requests".to_owned(),
        Fact::Route(name) => format!("route {name}"),
        Fact::Source(IpAddr::V4(source)) => format!("source {source}"),
        Fact::Source(IpAddr::V6(source)) => format!("source {source}"),
        Fact::Subject(key) => format!("subject {}", hex(&key)),
        Fact::Network(cidr) => format!("network {cidr}"),
        Fact::Seen(whose, key) => {
            let whose = match whose {
                Whose::Partner => "partner".to_owned(),
                Whose::People => "people".to_owned(),
                Whose::Grant(route) => format!("grant {route}"),
                Whose::Actor(actor) => format!("actor {}", hex(&actor)),
            };
            format!("seen {whose} {}", hex(&key))
        }
    };
    checked(format!("{partner} {text} {}\n", at.as_nanos()).as_bytes())
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn checked(line: &[u8]) -> Vec<u8> {
    [format!("{:08x} ", crc32c::crc32c(line)).as_bytes(), line].concat()
}

fn with_checksums(data: &[u8]) -> Vec<u8> {
    let lines = data.split_inclusive(|byte| *byte == b'\n');
    lines.flat_map(|line| line.strip_prefix(b"+").map_or_else(|| line.to_vec(), checked)).collect()
}

/// Whether the last line is a snapshot's last.
fn ends_well(bytes: &[u8]) -> bool {
    let Some(text) = bytes.strip_suffix(b"\n") else { return false };
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    text[start..] == *format!("end {:08x} {start}", crc32c::crc32c(&bytes[..start])).as_bytes()
}
