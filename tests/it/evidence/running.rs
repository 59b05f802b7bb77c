//! What does a gateway's log hold while it runs, and how does its disk fail? Requests, entries, and a tracer's hand on the writer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use dwarpal::audit::read::{Fault, Log};
use serde_json::Value;

use crate::world::process::tracing;
use crate::world::{World, dwarpal, eventually};

pub const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";

pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

pub fn mobile(number: impl std::fmt::Display) -> String {
    post("/v1/mobile", &format!(r#"{{"mobile":"{number}","purpose":"care"}}"#))
}

/// A member that is not declared: refused for it.
pub fn undeclared() -> String {
    post("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care","aadhaar":"999941057058"}"#)
}

pub fn reference(number: u64) -> String {
    format!("GET /v1/people/{number} HTTP/1.1\r\nhost: localhost\r\nx-purpose: care\r\n\r\n")
}

/// Where a gateway has its log, unless its configuration says otherwise.
pub fn log_of(world: &World) -> PathBuf {
    world.directory().join("data/audit")
}

/// The entries of a log from some index on, which may still grow.
pub fn entries_from(log: &Path, from: u64) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut log = Log::open(log).unwrap_or_else(|fault| panic!("{fault}"));
    let read = log.each::<Fault>(from..u64::MAX, |_, entry| {
        entries.push(serde_json::from_slice(entry).expect("JSON"));
        Ok(())
    });
    read.unwrap_or_else(|fault| panic!("{fault}"));
    entries
}

/// Entries of one event, among others.
pub fn of<'e>(entries: &'e [Value], event: &str) -> Vec<&'e Value> {
    entries.iter().filter(|entry| entry["event"] == event).collect()
}

/// Waits until the log holds so many entries of an event.
#[track_caller]
pub fn logged(world: &World, event: &str, count: usize) -> Vec<Value> {
    let mut entries = Vec::new();
    eventually(&format!("{count} entries of {event}"), || {
        entries = entries_from(&log_of(world), 0);
        of(&entries, event).len() >= count
    });
    entries.retain(|entry| entry["event"] == event);
    assert_eq!(entries.len(), count, "{entries:#?}");
    entries
}

/// The entry of an event about this decision, once it is there.
#[track_caller]
pub fn about(world: &World, event: &str, decision: &str) -> Value {
    let mut found = None;
    eventually(&format!("{event} of {decision}"), || {
        let entries = entries_from(&log_of(world), 0);
        found = of(&entries, event).into_iter().find(|entry| entry["id"] == decision).cloned();
        found.is_some()
    });
    found.expect("found")
}

/// `dwarpal audit verify` is content, also with what goes on from a checkpoint that was copied before.
#[track_caller]
pub fn assert_verified(world: &World, log: &Path, since: Option<&Path>) {
    let log = log.display().to_string();
    let key = format!("{log}/vkey");
    let mut arguments = vec!["audit", "verify", &log, "--key", &key];
    let since = since.map(|since| since.display().to_string());
    if let Some(since) = &since {
        arguments.extend(["--since", since]);
    }
    let (code, out, error) = dwarpal(&arguments, world.directory());
    assert_eq!(code, 0, "{out}{error}");
}

/// Copies a directory with all that is below.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), &to).expect("copied")),
        }
    }
}

/// Something happens to each call by which the thread that writes the log brings it to the disk, and to no other thread's.
pub struct Interference {
    tracer: Child,
    thread: String,
}

/// It does not come back.
pub const HANG: &str = "delay_enter=100000000";
pub const FAIL: &str = "error=EIO";

impl Interference {
    pub fn begin(world: &mut World, what: &str) -> Interference {
        let thread = world.thread("audit-write");
        let inject = format!("inject=fdatasync:{what}");
        let strace = ["strace", "-qq", "-o", "/dev/null", "-p", &thread, "-e", "trace=fdatasync", "-e", &inject];
        let words = [tracing(), &strace].concat();
        let mut command = Command::new(words[0]);
        let tracer = command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
        let interference = Interference { tracer, thread };
        eventually("it is traced", || interference.is_traced());
        interference
    }

    fn is_traced(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).expect("status");
        !status.contains("\nTracerPid:\t0\n")
    }

    pub fn end(mut self) {
        let terminated = Command::new("kill").args(["-TERM", &self.tracer.id().to_string()]).status();
        assert!(terminated.expect("kill").success());
        let _ = self.tracer.wait();
        eventually("it is left alone", || !self.is_traced());
    }
}
