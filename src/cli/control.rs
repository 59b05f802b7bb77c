//! `dwarpal reload`, `freeze`, `thaw`, `contain`, `release`, `standing` and `status`: what an operator tells the gateway that runs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::{FAILED, NO, REFUSED, YES, complain};
use crate::admin::containment::End;
use crate::admin::{Answer, Command, Outcome};
use crate::clock::Timestamp;
use crate::config;
use crate::config::reader::parse_duration;
use crate::config::settings::control_socket;
use crate::policy::containment::Level;

/// Which gateway: found by its data directory.
#[derive(Args)]
pub struct Target {
    /// Directory with gateway.toml, which names the data directory
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// The data directory, where `serve` was given one
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
}

#[derive(Args)]
pub struct Freeze {
    /// Name of the partner
    partner: String,
    /// Why, for the log and for whoever looks later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Thaw {
    /// Name of the partner
    partner: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Contain {
    #[command(flatten)]
    whom: Whom,
    /// What is held: all but people known before, all but lookups with consent, or everything
    #[arg(long, value_parser = level())]
    level: String,
    #[command(flatten)]
    end: Ends,
    /// Why, for the audit and for whoever looks later
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Release {
    #[command(flatten)]
    whom: Whom,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub struct Standing {
    /// Only this partner
    partner: Option<String>,
    /// A JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
struct Whom {
    /// Name of the partner
    partner: String,
    /// Only this end user of the partner, as the partner names it
    #[arg(long, value_name = "ACTOR")]
    actor: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Ends {
    /// How long, such as 30min, 2h or 7d
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    after: Option<Duration>,
    /// Until when, such as 2026-03-01T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

fn level() -> PossibleValuesParser {
    PossibleValuesParser::new([Level::KnownOnly, Level::ConsentOnly, Level::Frozen].map(Level::as_str))
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    parse_duration(text).ok_or("it is a duration such as 30min, 2h or 7d")
}

fn time(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse(text).ok_or("it is a time such as 2026-03-01T09:00:00Z")
}

/// A reload reads every allowlist and certificate, and runs every case.
const TIMEOUT: Duration = Duration::from_secs(60);

pub fn reload(target: Target) -> u8 {
    tell(&target, &Command::Reload)
}

pub fn status(target: Target) -> u8 {
    tell(&target, &Command::Status)
}

pub fn freeze(Freeze { partner, reason, target }: Freeze) -> u8 {
    tell(&target, &Command::Freeze { partner, reason })
}

pub fn thaw(Thaw { partner, target }: Thaw) -> u8 {
    tell(&target, &Command::Thaw { partner })
}

pub fn contain(Contain { whom, level, end, reason, target }: Contain) -> u8 {
    let Whom { partner, actor } = whom;
    // One of the two is there, and the level is one of its values: the parser saw to it.
    let end = match (end.after, end.until) {
        (_, Some(time)) => End::At(time),
        (after, None) => End::After(after.unwrap_or_default().as_millis() as u64),
    };
    let level = Level::parse(&level).unwrap_or(Level::Frozen);
    tell(&target, &Command::Contain { partner, actor, level, end, reason })
}

pub fn release(Release { whom, reason, target }: Release) -> u8 {
    let Whom { partner, actor } = whom;
    tell(&target, &Command::Release { partner, actor, reason })
}

pub fn standing(Standing { partner, json, target }: Standing) -> u8 {
    tell(&target, &Command::Standing { partner, json })
}

pub fn tell(target: &Target, command: &Command) -> u8 {
    tell_for(target, command, Reader::Person)
}

/// Who reads the answer.
#[derive(Clone, Copy)]
pub enum Reader {
    Person,
    /// A line of JSON on standard output, whatever came of it.
    Program,
}

pub fn tell_for(target: &Target, command: &Command, reader: Reader) -> u8 {
    // Only the one key that is needed: a reload of a broken configuration has to reach the gateway to be refused.
    let directory = match &target.data {
        Some(directory) => directory.clone(),
        None => match config::data_directory(&target.config) {
            Ok(directory) => directory,
            Err(problems) => return complain(&problems),
        },
    };
    let socket = control_socket(&directory);
    let answer = match ask(&socket, command) {
        Ok(answer) => answer,
        Err(error) => {
            eprintln!("error: {}: {error}; is the gateway running, and is this its data directory?", socket.display());
            return FAILED;
        }
    };
    let code = match answer.outcome {
        Outcome::Done => YES,
        Outcome::Unknown | Outcome::Denied => NO,
        Outcome::Refused => REFUSED,
        Outcome::Failed => FAILED,
    };
    if let Reader::Program = reader {
        println!("{}", serde_json::json!({ "outcome": answer.outcome, "lines": answer.lines }));
        return code;
    }
    for line in &answer.lines {
        if code == YES { println!("{line}") } else { eprintln!("{line}") }
    }
    code
}

fn ask(socket: &std::path::Path, command: &Command) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let line = serde_json::to_string(command).map_err(std::io::Error::other)?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).map_err(std::io::Error::other)
}
