//! `dwarpal audit show` and `tail`: what do entries say?

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::super::{NO, YES};
use super::proofs::Wanted;
use super::{Answer, Failure, Place, json_line, stdout};
use crate::audit::event::Event;
use crate::audit::index::Glance;
use crate::audit::layout::{BUNDLE, SEGMENT};
use crate::audit::read::Log;

#[derive(Args)]
pub struct Show {
    /// A decision's id, or an entry's index
    #[arg(value_name = "ID|INDEX")]
    what: String,
    /// The entries as they were logged, a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Tail {
    /// Only entries about this partner
    #[arg(long)]
    partner: Option<String>,
    /// Goes on with entries as they come
    #[arg(long)]
    follow: bool,
    /// How many of the last entries
    #[arg(long, default_value_t = 10, value_name = "COUNT")]
    lines: usize,
    /// The entries as they were logged, a JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

pub fn show(arguments: Show) -> Answer {
    let wanted = Wanted::parse(&arguments.what)?;
    let mut log = arguments.place.open()?;
    let mut found = wanted.find(&mut log)?;
    if found.is_empty() {
        eprintln!("the log has no entry {} (any more)", arguments.what);
        return Ok(NO);
    }
    let credential = found.iter().find_map(|(index, entry)| match Event::from_json(entry) {
        Ok(Event::Disclosure(request) | Event::Denied(request)) => Some((*index, request.credential.into_owned())),
        _ => None,
    });
    if let Some((index, fingerprint)) = credential {
        found.extend(certificate(&mut log, index, &fingerprint)?);
        found.sort_by_key(|(index, _)| *index);
    }
    let mut out = stdout();
    for (index, entry) in &found {
        match arguments.json {
            true => json_line(&mut out, *index, entry)?,
            false => in_full(&mut out, *index, entry)?,
        }
    }
    out.flush()?;
    Ok(YES)
}

/// The entry that says what this certificate says: the last before the request, in its segment.
fn certificate(log: &mut Log, before: u64, fingerprint: &str) -> Result<Option<(u64, Vec<u8>)>, Failure> {
    for number in (before / SEGMENT * SEGMENT / BUNDLE..=before / BUNDLE).rev() {
        let Some(bundle) = log.bundle(number)? else { return Ok(None) };
        let found = bundle.entries().rev().find(|(index, entry)| {
            let about =
                |event| matches!(event, Ok(Event::Credential(credential)) if credential.fingerprint == fingerprint);
            *index < before && entry.starts_with(br#"{"event":"credential""#) && about(Event::from_json(entry))
        });
        if let Some((index, entry)) = found {
            return Ok(Some((index, entry.to_vec())));
        }
    }
    Ok(None)
}

/// What people want to know first; the rest comes after in the order of its names.
const FIRST: [&str; 20] = [
    "event",
    "time",
    "id",
    "partner",
    "route",
    "purpose",
    "verdict",
    "reason",
    "shadow",
    "actor",
    "consent",
    "subject",
    "fields",
    "answer",
    "by",
    "step",
    "bytes",
    "source",
    "credential",
    "fingerprint",
];

fn in_full(out: &mut impl Write, index: u64, entry: &[u8]) -> io::Result<()> {
    writeln!(out, "entry {index}")?;
    let Ok(Value::Object(members)) = serde_json::from_slice(entry) else {
        return writeln!(out, "  cannot be read: no JSON object");
    };
    let place = |name: &str| FIRST.iter().position(|first| *first == name).unwrap_or(FIRST.len());
    let mut names: Vec<&String> = members.keys().collect();
    names.sort_by_key(|name| (place(name), name.as_str()));
    for name in names {
        match &members[name] {
            Value::Null => {}
            Value::String(text) => writeln!(out, "  {name:<10} {}", text.escape_debug())?,
            value => writeln!(out, "  {name:<10} {value}")?,
        }
    }
    Ok(())
}

const POLL: Duration = Duration::from_millis(200);

pub fn tail(arguments: Tail) -> Answer {
    let mut log = arguments.place.open()?;
    let wanted = |entry: &[u8]| match &arguments.partner {
        Some(partner) => Glance::of(entry).is_ok_and(|glance| glance.partner.as_deref() == Some(partner)),
        None => true,
    };
    let mut out = stdout();
    let mut next = log.size()?;
    let mut last = Vec::new();
    for number in (0..next.div_ceil(BUNDLE)).rev() {
        if last.len() >= arguments.lines {
            break;
        }
        let Some(bundle) = log.bundle(number)? else { break };
        let found = bundle.entries().rev().filter(|(index, entry)| *index < next && wanted(entry));
        last.extend(found.take(arguments.lines - last.len()).map(|(index, entry)| (index, entry.to_vec())));
    }
    for (index, entry) in last.iter().rev() {
        line(&mut out, *index, entry, arguments.json)?;
    }
    out.flush()?;
    if !arguments.follow {
        return Ok(YES);
    }
    loop {
        thread::sleep(POLL);
        let size = log.size()?;
        log.each::<Failure>(next..size, |index, entry| match wanted(entry) {
            true => Ok(line(&mut out, index, entry, arguments.json)?),
            false => Ok(()),
        })?;
        out.flush()?;
        next = next.max(size);
    }
}

fn line(out: &mut impl Write, index: u64, entry: &[u8], json: bool) -> io::Result<()> {
    if json {
        return json_line(out, index, entry);
    }
    let Ok(Value::Object(members)) = serde_json::from_slice(entry) else {
        return writeln!(out, "{index}: cannot be read: no JSON object");
    };
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    write!(out, "{:<30} {index} {}", text("time").unwrap_or("-"), text("event").unwrap_or("-").escape_debug())?;
    for name in ["partner", "route", "purpose", "verdict", "reason", "by", "command", "cause", "change", "id"] {
        if let Some(value) = text(name) {
            write!(out, " {}", value.escape_debug())?;
        }
    }
    writeln!(out)
}
