//! `dwarpal audit verify` and `index`: is the log what was signed, and are its indexes what its entries give?

use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;
use std::sync::Mutex;

use clap::Args;
use serde_json::json;

use super::super::{NO, YES, counted};
use super::{Answer, Gateway, read_file, stdout, vkey};
use crate::audit::read::Log;
use crate::audit::verify::{self, Question, Report};
use crate::clock::Timestamp;

#[derive(Args)]
pub struct Verify {
    /// The log's directory; that of the configuration by default
    #[arg(value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// The log's public key, or a file with it: from elsewhere than the log
    #[arg(long, value_name = "VKEY|FILE")]
    key: String,
    /// A checkpoint that was kept elsewhere: the log has to go on from it
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
    /// Public key of a witness that has to have cosigned; may be repeated
    #[arg(long, value_name = "VKEY|FILE")]
    witness: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Args)]
pub struct Index {
    /// The log's directory; that of the configuration by default
    #[arg(value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    gateway: Gateway,
}

pub fn verify(arguments: Verify) -> Answer {
    let directory = arguments.gateway.log(arguments.dir.as_deref())?;
    let key = vkey(&arguments.key)?;
    let since = arguments.since.as_deref().map(read_file).transpose()?;
    let witnesses = arguments.witness.iter().map(|witness| vkey(witness)).collect::<Result<Vec<_>, _>>()?;
    // Says so where there is no log at all.
    Log::open(&directory)?;
    let question = Question { directory: &directory, key: &key, since: since.as_deref(), witnesses: &witnesses };
    let bar = Bar::new();
    let report = verify::verify(&question, &|done, all| bar.show(done, all));
    bar.end();
    let mut out = stdout();
    match arguments.json {
        true => writeln!(out, "{}", as_json(&report))?,
        false => say(&mut out, &report, key.name())?,
    }
    out.flush()?;
    Ok(if report.faults.is_empty() { YES } else { NO })
}

fn say(out: &mut impl Write, report: &Report, signer: &str) -> std::io::Result<()> {
    for fault in &report.faults {
        writeln!(out, "damaged: {fault}")?;
    }
    if report.further_faults > 0 {
        writeln!(out, "damaged: and {} more", report.further_faults)?;
    }
    let Some(checkpoint) = &report.checkpoint else {
        return writeln!(out, "nothing is proved: no checkpoint here is signed by {signer}");
    };
    for range in &report.pruned {
        writeln!(out, "removed by retention: entries {} to {}; their hashes are here", range.start, range.end - 1)?;
    }
    for range in &report.pruned_unsigned {
        let (first, last) = (range.start, range.end - 1);
        writeln!(out, "removed: entries {first} to {last}; the entry that says so is not yet under a checkpoint")?;
    }
    if report.pending > 0 {
        writeln!(out, "not yet under a checkpoint: {}, each whole", entries(report.pending))?;
    }
    if report.torn_bytes > 0 {
        writeln!(out, "after the last whole entry: {} bytes, being written or torn by a crash", report.torn_bytes)?;
    }
    let size = checkpoint.size;
    if !report.faults.is_empty() {
        let faults = report.faults.len() + report.further_faults;
        return writeln!(out, "not whole: {} in a log of {}", counted(faults, "fault"), entries(size));
    }
    let last = match (size.checked_sub(1), report.newest) {
        (Some(last), Some(time)) => format!("whole up to entry {last}, of {time}"),
        (Some(last), None) => format!("whole up to entry {last}"),
        (None, _) => "whole: nothing is logged yet".to_owned(),
    };
    let since = report.continues.map_or(String::new(), |since| {
        format!("; its first {} are those of the checkpoint held elsewhere", entries(since))
    });
    let witnessed: String = report
        .witnesses
        .iter()
        .map(|(name, time)| format!("; seen by {name} at {}", Timestamp::from_unix_seconds(*time)))
        .collect();
    writeln!(out, "{last}, as signed by {signer}{since}{witnessed}")?;
    let held = match report.continues {
        Some(_) => "whether later entries were replaced before anybody held a checkpoint of them",
        None => "whether others were shown the same log (compare checkpoints: --since)",
    };
    let after = if report.pending > 0 { format!("the {} after it, ", entries(report.pending)) } else { String::new() };
    writeln!(out, "nothing is said about {after}what never was logged, or {held}")
}

fn entries(count: u64) -> String {
    if count == 1 { "1 entry".to_owned() } else { format!("{count} entries") }
}

fn as_json(report: &Report) -> serde_json::Value {
    let range = |range: &std::ops::Range<u64>| json!({ "from": range.start, "until": range.end });
    json!({
        "whole": report.faults.is_empty(),
        "origin": report.checkpoint.as_ref().map(|checkpoint| &checkpoint.origin),
        "size": report.checkpoint.as_ref().map(|checkpoint| checkpoint.size),
        "root": report.checkpoint.as_ref().map(|checkpoint| checkpoint.root.to_string()),
        "newest": report.newest,
        "continues": report.continues,
        "witnesses": report.witnesses.iter().map(|(name, time)| json!({ "name": name, "time": Timestamp::from_unix_seconds(*time) })).collect::<Vec<_>>(),
        "pruned": report.pruned.iter().map(range).collect::<Vec<_>>(),
        "pruned_unsigned": report.pruned_unsigned.iter().map(range).collect::<Vec<_>>(),
        "indexes": report.indexes,
        "pending": report.pending,
        "torn_bytes": report.torn_bytes,
        "faults": report.faults.iter().map(|fault| json!({ "file": fault.file, "entry": fault.entry, "what": fault.what })).collect::<Vec<_>>(),
        "further_faults": report.further_faults,
    })
}

pub fn index(arguments: Index) -> Answer {
    let mut log = Log::open(&arguments.gateway.log(arguments.dir.as_deref())?)?;
    let sealed = log.sealed()?;
    let mut made = Vec::new();
    for segment in &sealed {
        if log.rebuild_index(*segment)? {
            made.push(*segment);
        }
    }
    let mut out = stdout();
    match arguments.json {
        true => writeln!(out, "{}", json!({ "sealed": sealed.len(), "made": made }))?,
        false => writeln!(
            out,
            "{}, of which {} were made again",
            counted(sealed.len(), "index").replace("indexs", "indexes"),
            made.len()
        )?,
    }
    out.flush()?;
    Ok(YES)
}

/// How far the work is, where a person watches.
struct Bar {
    shown: Option<Mutex<u64>>,
}

const WIDTH: u64 = 40;

impl Bar {
    fn new() -> Bar {
        Bar { shown: stderr().is_terminal().then(|| Mutex::new(0)) }
    }

    fn show(&self, done: u64, all: u64) {
        let Some(shown) = &self.shown else { return };
        let percent = done * 100 / all.max(1);
        // Who comes while another one draws has nothing newer to say.
        let Ok(mut shown) = shown.try_lock() else { return };
        if percent > *shown {
            *shown = percent;
            let full = (percent * WIDTH / 100) as usize;
            eprint!("\r[{}{}] {percent:3} %", "#".repeat(full), " ".repeat(WIDTH as usize - full));
        }
    }

    fn end(&self) {
        if self.shown.is_some() {
            eprint!("\r{}\r", " ".repeat(WIDTH as usize + 10));
        }
    }
}
