//! `dwarpal audit …`: what do the entries of the log say, and what proves it? One file a question.

mod check;
mod entries;
mod epochs;
mod export;
mod proofs;
mod replay;
mod who;

use std::fmt;
use std::fs;
use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::control::{Reader, Target, tell_for};
use super::{FAILED, REFUSED, SENSELESS, YES, complain};
use crate::admin::Command;
use crate::audit::note::Vkey;
use crate::audit::read::{Fault, Log};
use crate::clock::Timestamp;
use crate::config;
use crate::config::problem::Problem;

#[derive(Subcommand)]
pub enum Audit {
    /// Reads and hashes everything again, and compares it with what was signed
    Verify(check::Verify),
    /// Prints what proves that an entry, or all entries of a decision, are in the log
    Prove(proofs::Prove),
    /// Checks such a proof, without the log
    CheckProof(proofs::CheckProof),
    /// Prints what proves that one checkpoint's log is the beginning of another's
    Consistency(proofs::Consistency),
    /// Says who asked for a person: every lookup, or none, and how much that is worth
    Who(who::Who),
    /// Shows all entries of a decision
    Show(entries::Show),
    /// Shows the last entries, and those that come
    Tail(entries::Tail),
    /// Writes the entries as files of one day each, for other programs
    Export(export::Export),
    /// Makes indexes again that are missing or damaged
    Index(check::Index),
    /// Decides every recorded request again, and compares
    Replay(replay::Replay),
    /// Has the running gateway sign its log as it is now
    Checkpoint(Sign),
    /// The keys that people are hidden under
    #[command(subcommand)]
    Epochs(epochs::Epochs),
}

#[derive(Args)]
pub struct Sign {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

fn reader(json: bool) -> Reader {
    if json { Reader::Program } else { Reader::Person }
}

pub fn run(command: Audit) -> u8 {
    let done = match command {
        Audit::Verify(arguments) => check::verify(arguments),
        Audit::Prove(arguments) => proofs::prove(arguments),
        Audit::CheckProof(arguments) => proofs::check(arguments),
        Audit::Consistency(arguments) => proofs::consistency(arguments),
        Audit::Who(arguments) => who::run(arguments),
        Audit::Show(arguments) => entries::show(arguments),
        Audit::Tail(arguments) => entries::tail(arguments),
        Audit::Export(arguments) => export::run(arguments),
        Audit::Index(arguments) => check::index(arguments),
        Audit::Replay(arguments) => replay::run(arguments),
        Audit::Checkpoint(Sign { json, target }) => Ok(tell_for(&target, &Command::Checkpoint, reader(json))),
        Audit::Epochs(command) => Ok(epochs::run(command)),
    };
    done.unwrap_or_else(|failure| failure.say())
}

/// Which log: its directory, or a configuration that names it.
#[derive(Args)]
pub struct Place {
    /// The log's directory; that of the configuration by default
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    gateway: Gateway,
}

#[derive(Args)]
pub struct Gateway {
    /// Directory with gateway.toml
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// The data directory, where `serve` was given one
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
}

impl Place {
    fn open(&self) -> Result<Log, Failure> {
        Ok(Log::open(&self.gateway.log(self.dir.as_deref())?)?)
    }
}

impl Gateway {
    /// The log's directory: the one given, or where this gateway has it.
    fn log(&self, given: Option<&Path>) -> Result<PathBuf, Failure> {
        match given {
            Some(directory) => Ok(directory.into()),
            None => Ok(config::audit_directory(&self.config, self.data.as_deref())?),
        }
    }
}

/// Why a command did not come to an answer.
#[derive(Debug)]
pub enum Failure {
    /// The log is damaged, or cannot be read.
    Log(Fault),
    Configuration(Vec<Problem>),
    /// Where the answer goes.
    Output(io::Error),
    /// A file beside the log, or what somebody gave as one.
    File(PathBuf, String),
    /// The question makes no sense.
    Senseless(String),
}

impl Failure {
    fn file(path: &Path, what: impl fmt::Display) -> Failure {
        Failure::File(path.into(), what.to_string())
    }

    /// Says it, and with which code the process ends.
    fn say(self) -> u8 {
        match self {
            // Whoever reads has seen enough.
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => return YES,
            Failure::Configuration(problems) => {
                complain(&problems);
                return REFUSED;
            }
            Failure::Senseless(what) => {
                eprintln!("error: {what}");
                return SENSELESS;
            }
            Failure::Log(fault) => eprintln!("error: {fault}; `dwarpal audit verify` looks at everything"),
            Failure::Output(error) => eprintln!("error: the output cannot be written: {error}"),
            Failure::File(path, what) => eprintln!("error: {}: {what}", path.display()),
        }
        FAILED
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Log(fault)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

impl From<Vec<Problem>> for Failure {
    fn from(problems: Vec<Problem>) -> Failure {
        Failure::Configuration(problems)
    }
}

type Answer = Result<u8, Failure>;

fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// An entry as it was logged, byte for byte, in a line of JSON with its index.
fn json_line(out: &mut impl Write, index: u64, entry: &[u8]) -> io::Result<()> {
    write!(out, "{{\"index\":{index},\"entry\":")?;
    out.write_all(entry)?;
    writeln!(out, "}}")
}

/// A file that somebody gave, far larger than anything that belongs there.
fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::file(path, error))
}

/// A key's text, or the path of a file with it.
fn vkey(text: &str) -> Result<Vkey, Failure> {
    let flawed = |flaw| Failure::Senseless(format!("--key: {flaw}"));
    let path = Path::new(text);
    if path.exists() {
        let bytes = read_file(path)?;
        let text = String::from_utf8_lossy(&bytes);
        return Vkey::parse(text.trim_end()).map_err(|flaw| Failure::file(path, flaw));
    }
    if !text.contains('+') {
        return Err(Failure::Senseless(format!(
            "--key: {text:?} is neither a file nor a key, which is NAME+ID+BASE64"
        )));
    }
    Vkey::parse(text.trim_end()).map_err(flawed)
}

/// A time, or the beginning of a day, in UTC.
fn time(text: &str) -> Result<Timestamp, String> {
    let whole = Timestamp::parse(text).or_else(|| Timestamp::parse(&format!("{text}T00:00:00Z")));
    whole.ok_or("it is a day such as 2026-03-01 or a time such as 2026-03-01T09:00:00Z".to_owned())
}

/// From when on and until before when.
#[derive(Args, Clone, Copy)]
pub struct Period {
    /// Only from then on, such as 2026-03-01 or 2026-03-01T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Timestamp>,
    /// Only before then
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

impl Period {
    fn holds(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }

    /// Whether any time from `first` to `last` is in it.
    fn touches(&self, first: Timestamp, last: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= last) && self.until.is_none_or(|until| first < until)
    }
}
