//! `dwarpal lists`: people whose lookups are told of. Ids come on standard input and rest as tokens.

use std::collections::BTreeMap;
use std::io::{self, Read, stdin};
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use super::{FAILED, REFUSED, SENSELESS, YES, complain, counted};
use crate::config;
use crate::config::settings::{Overrides, Settings};
use crate::lists::{self, List};
use crate::state::store::replace;
use crate::subject::{EpochKey, Kind, Subject};

#[derive(Subcommand)]
pub enum Command {
    /// Puts people on a list; a reload makes the running gateway look for them
    Add(Add),
    /// Reads the lists and says what is on them
    Check(Check),
}

#[derive(Args)]
pub struct Add {
    /// What the ids are: mobile, aadhaar, vid, abha, beneficiary, epic, passport or pan
    #[arg(long, value_parser = kind)]
    kind: Kind,
    /// Which list
    #[arg(long, value_parser = PossibleValuesParser::new(List::ALL.map(List::as_str)))]
    list: String,
    /// The partner that these canaries were given to
    #[arg(long, value_name = "PARTNER", value_parser = owner)]
    owner: Option<String>,
    /// The month of that, such as 2026-11
    #[arg(long, value_name = "MONTH", value_parser = month)]
    month: Option<String>,
    /// Only `-`: ids are read from standard input, one a line, since command lines are seen by others and kept in histories
    #[arg(allow_hyphen_values = true, value_name = "-")]
    ids: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Check {
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Place {
    /// Directory with gateway.toml, which names the lists and the data directory
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// The data directory, where `serve` was given one
    #[arg(long, value_name = "DIRECTORY")]
    data: Option<PathBuf>,
}

const INPUT_BYTES_MAX: u64 = 64 << 20;

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).ok_or_else(|| format!("it is one of {}", Kind::ALL.map(Kind::as_str).join(", ")))
}

fn owner(text: &str) -> Result<String, &'static str> {
    let plain =
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if plain { Ok(text.to_owned()) } else { Err("it is the name of a partner") }
}

fn month(text: &str) -> Result<String, &'static str> {
    if lists::is_month(text) { Ok(text.to_owned()) } else { Err("it is a month such as 2026-11") }
}

pub fn run(command: Command) -> u8 {
    let place = match &command {
        Command::Add(Add { place, .. }) | Command::Check(Check { place }) => place,
    };
    let overrides = Overrides { directory: place.data.clone(), ..Overrides::default() };
    let settings = match config::load(&place.config, &overrides) {
        Ok(config) => config.settings,
        Err(problems) => return complain(&problems),
    };
    match command {
        Command::Add(add) => self::add(&add, &settings),
        Command::Check(_) => check(&settings),
    }
}

fn add(add: &Add, settings: &Settings) -> u8 {
    if add.ids != "-" {
        // It is not repeated: that would put it into one more place.
        eprintln!(
            "error: an id on the command line is seen by every user of this machine: give them on standard input"
        );
        return SENSELESS;
    }
    let list = if add.list == List::Watched.as_str() { List::Watched } else { List::Canaries };
    if list == List::Watched && (add.owner.is_some() || add.month.is_some()) {
        eprintln!("error: --owner and --month are of canaries");
        return SENSELESS;
    }
    let Some(path) = settings.lists.of(list) else {
        eprintln!(
            "error: the configuration names no such list; say {} = \"FILE\" in [lists] of gateway.toml",
            add.list
        );
        return REFUSED;
    };
    let mut raw = String::new();
    if let Err(error) = stdin().take(INPUT_BYTES_MAX).read_to_string(&mut raw) {
        eprintln!("error: standard input: {error}");
        return SENSELESS;
    }
    let mut people = Vec::new();
    let mut wrong = 0;
    for (at, line) in raw.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match Subject::parse(add.kind, line.trim()) {
            Ok(subject) => people.push(subject),
            Err(_) => {
                wrong += 1;
                eprintln!("error: standard input:{}: no {}", at + 1, add.kind.as_str());
            }
        }
    }
    if wrong > 0 {
        eprintln!("{}; nothing was added", counted(wrong, "mistake"));
        return SENSELESS;
    }
    let failed = |what: String| {
        eprintln!("error: {what}");
        FAILED
    };
    let key_path = settings.list_key();
    // A key that was made anew would leave the lists that are there without use.
    let present = settings.lists.all().any(|(_, path)| path.exists());
    let key = if present { EpochKey::load(&key_path) } else { EpochKey::load_or_create(&key_path) };
    let key = match key {
        Ok(key) => key,
        Err(error) => return failed(format!("the key of the lists: {error}")),
    };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return failed(format!("{}: {error}", path.display())),
    };
    match lists::extended(&text, &key, &people, add.owner.as_deref(), add.month.as_deref()) {
        Ok((text, added)) => match replace(path, text.as_bytes()) {
            Ok(()) => {
                println!("{added} added to {}; {} were there", path.display(), people.len() - added);
                YES
            }
            Err(error) => failed(format!("{}: {error}", path.display())),
        },
        Err(mistakes) => {
            for (line, what) in mistakes {
                eprintln!("error: {}:{line}: {what}", path.display());
            }
            REFUSED
        }
    }
}

fn check(settings: &Settings) -> u8 {
    let mut problems = Vec::new();
    let Some(_) = lists::Lists::load(settings, &mut problems) else { return complain(&problems) };
    for (list, path) in settings.lists.all() {
        // It could be read just now.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let id = text.lines().next().and_then(|head| head.rsplit('=').next()).unwrap_or_default();
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for line in lists::parse(&text, id).0 {
            let of = |text: Option<&str>, what: &str| text.map_or(String::new(), |text| format!(", {what}{text}"));
            let name =
                format!("{}{}{}", line.kind.as_str(), of(line.owner.as_deref(), "of "), of(line.month.as_deref(), ""));
            *counts.entry(name).or_default() += 1;
        }
        let total: usize = counts.values().sum();
        println!("{} ({}): {total}", list.as_str(), path.display());
        for (name, count) in counts {
            println!("  {name}: {count}");
        }
    }
    YES
}
