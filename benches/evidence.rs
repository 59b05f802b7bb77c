//! What does a large log cost? Its size on the disk, verifying it, and asking it who looked somebody up.
//!
//! `cargo bench --bench evidence -- EVENTS DIRECTORY`: a million in a temporary directory by default; a directory stays.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../tests/it/evidence/generate.rs"]
mod generate;

use generate::{Crowd, Log, mobile};

const PEOPLE: u64 = 1_000_000;
const ROUNDS: usize = 5;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let events: u64 = arguments.next().map_or(1_000_000, |events| events.parse().expect("a number of events"));
    let kept = arguments.next().map(PathBuf::from);
    let temporary = tempfile::TempDir::new().expect("a directory");
    let data = kept.unwrap_or_else(|| temporary.path().to_owned());
    let begun = Instant::now();
    let mut log = Log::open(&data);
    log.fill(events, &Crowd::of(&data, PEOPLE));
    println!("{events} events written, published and sealed: {:?}", begun.elapsed());
    drop(log);
    let directory = data.join("audit");
    for part in ["tile/entries", "tile", "index", "journal", ""] {
        let bytes = bytes_below(&directory.join(part));
        println!("{:<14} {:>8} MiB, {:>4} bytes an event", format!("audit/{part}"), bytes >> 20, bytes / events);
    }
    let vkey = directory.join("vkey");
    let dwarpal = || Command::new(env!("CARGO_BIN_EXE_dwarpal"));
    let begun = Instant::now();
    let verified = dwarpal().args(["audit", "verify"]).arg(&directory).arg("--key").arg(&vkey).status().expect("run");
    assert!(verified.success());
    println!("verify: {:?}", begun.elapsed());
    for number in [0, 7] {
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let begun = Instant::now();
                let mut command = dwarpal();
                command.args(["audit", "who", "--kind", "mobile", "--id", "-", "--json"]);
                command.arg("--dir").arg(&directory).arg("--data").arg(&data);
                let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("run");
                let mut stdin = child.stdin.take().expect("piped");
                std::io::Write::write_all(&mut stdin, mobile(number).as_bytes()).expect("asked");
                drop(stdin);
                child.wait().expect("ended");
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("who, person {number}: {:?} (median of {ROUNDS})", times[ROUNDS / 2]);
    }
}

fn bytes_below(path: &Path) -> u64 {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| bytes_below(&entry.expect("an entry").path())).sum(),
        Err(_) => std::fs::metadata(path).map_or(0, |file| file.len()),
    }
}
