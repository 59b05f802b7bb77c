//! `dwarpal replay`: what would the gateway have done with a trace?

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{FAILED, SENSELESS, YES, complain};
use crate::clock::Timestamp;
use crate::config;
use crate::config::settings::Overrides;
use crate::detect::{Alert, Params, Severity};
use crate::policy::reason::Reason;
use crate::replay::trace::{self, Backend};
use crate::replay::{Replay, configured, tuning, world};

#[derive(Args)]
pub struct Arguments {
    /// JSON Lines, one lookup a line, in order of time; with --world, its trace.jsonl unless another is named
    trace: Option<PathBuf>,
    /// Directory of a configuration whose partners ask
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "world", required_unless_present = "world")]
    config: Option<PathBuf>,
    /// Folder with partners.json, protected.json and canaries.json: a policy is made from the contracts in it
    #[arg(long, value_name = "DIRECTORY")]
    world: Option<PathBuf>,
    /// Folder for verdicts.jsonl and alerts.jsonl; it is made if there is none
    #[arg(long, value_name = "DIRECTORY", required_unless_present = "stream")]
    out: Option<PathBuf>,
    /// Reads events on standard input and says each verdict on standard output before it reads on
    #[arg(long, conflicts_with = "trace")]
    stream: bool,
    /// Leaves a detector out; may be repeated
    #[arg(long, value_name = "DETECTOR")]
    without: Vec<String>,
    /// Sets a number of the detectors; may be repeated
    #[arg(long, value_name = "NAME=NUMBER")]
    set: Vec<String>,
}

/// Lines that are longer tell of no lookup.
const LINE_BYTES_MAX: usize = 64 * 1024;

pub fn run(arguments: Arguments) -> u8 {
    let mut params = Params::default();
    let without = arguments.without.iter().map(|name| (name, tuning::without(&mut params, name)));
    let wrong: Vec<_> = without.filter_map(|(name, result)| Some((name, result.err()?))).collect();
    let set = arguments.set.iter().map(|text| (text, tuning::set(&mut params, text)));
    let wrong = wrong.into_iter().chain(set.filter_map(|(text, result)| Some((text, result.err()?))));
    let mut wrong = wrong.peekable();
    if wrong.peek().is_some() {
        wrong.for_each(|(value, why)| eprintln!("error: {value}: {why}"));
        return SENSELESS;
    }
    let replay = match (&arguments.world, &arguments.config) {
        (Some(world), _) => world::open(world, params),
        (None, Some(directory)) => match config::load(directory, &Overrides::default()) {
            Ok(config) => Ok(configured(config, params)),
            Err(problems) => return complain(&problems),
        },
        (None, None) => Err("neither --config nor --world".to_owned()),
    };
    match replay.and_then(|replay| play(replay, &arguments)) {
        Ok(()) => YES,
        Err(why) => {
            eprintln!("error: {why}");
            FAILED
        }
    }
}

fn play(replay: Replay, arguments: &Arguments) -> Result<(), String> {
    let mut sink = Sink::open(arguments.out.as_deref(), arguments.stream)?;
    if arguments.stream {
        return each(replay, &mut Lines::new(io::stdin().lock(), "standard input"), &mut sink);
    }
    let path = match (&arguments.trace, &arguments.world) {
        (Some(trace), _) => trace.clone(),
        (None, Some(world)) => world.join("trace.jsonl"),
        (None, None) => return Err("no trace: name the file to be replayed".to_owned()),
    };
    let shown = path.display().to_string();
    let file = File::open(&path).map_err(|error| format!("{shown}: cannot be read: {error}"))?;
    each(replay, &mut Lines::new(BufReader::with_capacity(1 << 20, file), &shown), &mut sink)
}

fn each(mut replay: Replay, lines: &mut Lines<impl BufRead>, sink: &mut Sink) -> Result<(), String> {
    let mut alerts = Vec::new();
    while lines.advance()? {
        let event = trace::event(lines.text()?).map_err(|why| lines.complaint(&why))?;
        let (seq, backend) = (event.seq, event.backend);
        let allowed = replay.ask(&event, &mut alerts);
        sink.verdict(seq, allowed.as_ref().err().copied())?;
        if let Ok(allowed) = allowed {
            let backend = match backend {
                None if sink.is_stream() => Some(answer(lines, seq)?),
                known => known,
            };
            replay.answer(allowed, backend, &mut alerts);
        }
        for alert in alerts.drain(..) {
            sink.alert(&alert)?;
        }
    }
    sink.finish()
}

/// The answer to an allowed lookup that came without one.
fn answer(lines: &mut Lines<impl BufRead>, seq: u64) -> Result<Backend, String> {
    if !lines.advance()? {
        return Err(lines.complaint(&format!("ends where the backend's answer to seq {seq} belongs")));
    }
    let answer = trace::answer(lines.text()?).map_err(|why| lines.complaint(&why))?;
    if answer.seq != seq {
        return Err(lines.complaint(&format!("seq: {} where the backend's answer to {seq} belongs", answer.seq)));
    }
    Ok(answer.backend)
}

/// Lines of bounded length, counted.
struct Lines<'a, R> {
    reader: R,
    name: &'a str,
    buffer: Vec<u8>,
    number: u64,
}

impl<'a, R: BufRead> Lines<'a, R> {
    fn new(reader: R, name: &'a str) -> Lines<'a, R> {
        Lines { reader, name, buffer: Vec::new(), number: 0 }
    }

    /// Goes to the next line that is not empty; false at the end.
    fn advance(&mut self) -> Result<bool, String> {
        loop {
            self.buffer.clear();
            self.number += 1;
            let mut limited = io::Read::take(&mut self.reader, LINE_BYTES_MAX as u64 + 1);
            let read = limited.read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|error| format!("{}:{}: cannot be read: {error}", self.name, self.number))?;
            if read > LINE_BYTES_MAX {
                return Err(self.complaint(&format!("longer than {LINE_BYTES_MAX} bytes")));
            }
            if read == 0 || !self.buffer.trim_ascii().is_empty() {
                return Ok(read > 0);
            }
        }
    }

    fn text(&self) -> Result<&str, String> {
        std::str::from_utf8(&self.buffer).map_err(|_| self.complaint("not UTF-8"))
    }

    fn complaint(&self, why: &str) -> String {
        format!("{}:{}: {why}", self.name, self.number)
    }
}

/// Where verdicts and alerts go.
struct Sink {
    verdicts: Option<BufWriter<File>>,
    alerts: Option<BufWriter<File>>,
    stream: Option<io::Stdout>,
}

#[derive(Serialize)]
struct Told<'a> {
    time: Timestamp,
    partner: &'a str,
    actor: Option<&'a str>,
    detector: &'a str,
    severity: Severity,
    why: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed: Option<u32>,
}

impl Sink {
    fn open(out: Option<&Path>, is_stream: bool) -> Result<Sink, String> {
        let file = |name| -> Result<Option<BufWriter<File>>, String> {
            let Some(out) = out else { return Ok(None) };
            let path = out.join(name);
            let failed = |error| format!("{}: cannot be written: {error}", path.display());
            fs::create_dir_all(out).map_err(failed)?;
            Ok(Some(BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?)))
        };
        let (verdicts, alerts) = (file("verdicts.jsonl")?, file("alerts.jsonl")?);
        Ok(Sink { verdicts, alerts, stream: is_stream.then(io::stdout) })
    }

    fn is_stream(&self) -> bool {
        self.stream.is_some()
    }

    fn verdict(&mut self, seq: u64, denied: Option<Reason>) -> Result<(), String> {
        // Codes are plain words; there is nothing to escape.
        let (verdict, reason) = denied.map_or(("allow", "allowed"), |reason| ("deny", reason.code()));
        if let Some(file) = &mut self.verdicts {
            writeln!(file, r#"{{"seq":{seq},"verdict":"{verdict}","reason":"{reason}"}}"#).map_err(unwritten)?;
        }
        if let Some(out) = &mut self.stream {
            let mut out = out.lock();
            writeln!(out, r#"{{"seq":{seq},"verdict":"{verdict}","reason":"{reason}"}}"#).map_err(unwritten)?;
            out.flush().map_err(unwritten)?;
        }
        Ok(())
    }

    fn alert(&mut self, alert: &Alert) -> Result<(), String> {
        let Some(file) = &mut self.alerts else { return Ok(()) };
        let Alert { time, partner, actor, detector, severity, why, moved: _, exposed } = alert;
        let told = Told {
            time: *time,
            partner,
            actor: actor.as_deref(),
            detector,
            severity: *severity,
            why,
            exposed: *exposed,
        };
        serde_json::to_writer(&mut *file, &told).map_err(|error| unwritten(error.into()))?;
        file.write_all(b"\n").map_err(unwritten)?;
        // Rare, and whoever drives a stream may look.
        if self.stream.is_some() { file.flush().map_err(unwritten) } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), String> {
        let files = [&mut self.verdicts, &mut self.alerts];
        files.into_iter().flatten().try_for_each(|file| file.flush()).map_err(unwritten)
    }
}

fn unwritten(error: io::Error) -> String {
    format!("verdicts and alerts cannot be written: {error}")
}
