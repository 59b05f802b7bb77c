//! `dwarpal audit who`: who asked for this person? Every lookup, or none, and how much that answer is worth.

use std::io::{self, Read, Write, stdin};

use clap::Args;
use serde_json::{Value, json};

use super::super::{NO, YES, counted};
use super::{Answer, Failure, Period, Place, stdout};
use crate::audit::event::{Closed, EndedBy, Event, Request, Step, Verdict};
use crate::audit::index::{Glance, Key};
use crate::audit::layout::SEGMENT;
use crate::audit::note::Checkpoint;
use crate::audit::read::Log;
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::config::settings::Overrides;
use crate::subject::epochs::{EpochKeys, EpochState, Keyring};
use crate::subject::{Kind, Mark, Subject};

#[derive(Args)]
pub struct Who {
    /// What the id is: mobile, aadhaar, vid, abha, beneficiary, epic, passport or pan
    #[arg(long, value_parser = kind)]
    kind: Kind,
    /// Only `-`: the id is read from standard input, since command lines are seen by others and kept in histories
    #[arg(long, allow_hyphen_values = true, value_name = "-")]
    id: String,
    /// An end user as a partner names it: says which lookups were made for that one
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    #[command(flatten)]
    period: Period,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::parse(text).ok_or_else(|| format!("it is one of {}", Kind::ALL.map(Kind::as_str).join(", ")))
}

/// No notation of any id has half of it.
const ID_BYTES_MAX: u64 = 1_024;

pub fn run(arguments: Who) -> Answer {
    if arguments.id != "-" {
        // It is not repeated: that would put it into one more place.
        let what = "an id on the command line is seen by every user of this machine and kept in the shell's history; \
                    give it on standard input, with --id -";
        return Err(Failure::Senseless(what.to_owned()));
    }
    let keys = keys(&arguments.place)?;
    let mut raw = String::new();
    stdin()
        .take(ID_BYTES_MAX)
        .read_to_string(&mut raw)
        .map_err(|error| Failure::Senseless(format!("the id cannot be read: {error}")))?;
    let subject = Subject::parse(arguments.kind, raw.trim_ascii());
    let subject = subject.map_err(|invalid| Failure::Senseless(format!("standard input: the {invalid}")))?;
    drop(raw);
    let mut log = arguments.place.open()?;
    let actors: Vec<Mark> = match &arguments.actor {
        Some(actor) => keys.all().map(|key| key.actor(actor)).collect(),
        None => Vec::new(),
    };
    let covered = Covered::of(&mut log, &arguments.period, &keys)?;
    let mut lookups = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    for key in keys.all() {
        let token = Key::Token(Mark::from_bytes(key.token(&subject).key()));
        for segment in &covered.segments {
            for (index, entry) in log.find_in(token, *segment)? {
                let time = Glance::of(&entry).ok().and_then(|glance| glance.time);
                if time.is_none_or(|time| arguments.period.holds(time)) && seen.insert(index) {
                    lookups.push((index, entry));
                }
            }
        }
    }
    lookups.sort_by_key(|(index, _)| *index);
    let lookups = lookups.into_iter().map(|(index, entry)| Lookup::of(&mut log, index, entry));
    let lookups = lookups.collect::<Result<Vec<_>, Failure>>()?;
    let warnings: Vec<_> = log.unusable_indexes().iter().map(ToString::to_string).collect();
    let mut out = stdout();
    match arguments.json {
        true => writeln!(out, "{}", as_json(&lookups, &covered, &actors, arguments.kind))?,
        false => {
            say(&mut out, &lookups, &actors)?;
            covered.say(&mut out, lookups.is_empty())?;
        }
    }
    out.flush()?;
    for warning in warnings {
        eprintln!("warning: {warning}: entries were read in its place; `dwarpal audit index` makes it again");
    }
    Ok(if lookups.is_empty() { NO } else { YES })
}

/// The keys that are still there, of the gateway that the log is of.
fn keys(place: &Place) -> Result<EpochKeys, Failure> {
    let (ring, shown) = match &place.gateway.data {
        Some(data) => (Keyring::new(data, None), data.clone()),
        None => {
            let config = config::load(&place.gateway.config, &Overrides::default())?;
            (config.settings.keyring(), config.settings.directory.clone())
        }
    };
    let keys = ring.read().map_err(|error| Failure::file(&shown, error))?;
    if keys.all().next().is_none() {
        return Err(Failure::file(&shown, "there is no epoch key, without which nobody can be found"));
    }
    Ok(keys)
}

/// So far a request's deadline is at the most, whatever the load.
const MISS_SEGMENTS: u64 = 4;

/// One time that somebody asked.
struct Lookup {
    index: u64,
    entry: Vec<u8>,
    /// The entry that says how the answer ended.
    closed: Option<(u64, Vec<u8>)>,
}

impl Lookup {
    fn of(log: &mut Log, index: u64, entry: Vec<u8>) -> Result<Lookup, Failure> {
        let request = match Event::from_json(&entry) {
            Ok(Event::Disclosure(request)) => Some((request.id, request.reason.is_some())),
            _ => None,
        };
        let Some((id, is_miss)) = request else { return Ok(Lookup { index, entry, closed: None }) };
        let mut closed = None;
        // It comes after the disclosure, almost always soon. A miss has none, unless its record came too late.
        let segments = log.size()?.div_ceil(SEGMENT);
        let until = if is_miss { segments.min(index / SEGMENT + MISS_SEGMENTS) } else { segments };
        for segment in index / SEGMENT..until {
            let found = log.find_in(Key::Decision(id), segment)?;
            closed = found.into_iter().find(|(_, entry)| matches!(Event::from_json(entry), Ok(Event::Closed(_))));
            if closed.is_some() {
                break;
            }
        }
        Ok(Lookup { index, entry, closed })
    }

    fn closed(&self) -> Option<Closed<'_>> {
        match Event::from_json(&self.closed.as_ref()?.1) {
            Ok(Event::Closed(closed)) => Some(closed),
            _ => None,
        }
    }

    /// Whether something was told to the partner, or may have been.
    fn was_answered(&self) -> bool {
        let disclosed = self.request().is_some_and(|(disclosed, _)| disclosed);
        disclosed && self.closed().is_none_or(|closed| closed.step == Step::Answer)
    }

    fn request(&self) -> Option<(bool, Box<Request<'_>>)> {
        match Event::from_json(&self.entry) {
            Ok(Event::Disclosure(request)) => Some((true, request)),
            Ok(Event::Denied(request)) => Some((false, request)),
            _ => None,
        }
    }
}

fn say(out: &mut impl Write, lookups: &[Lookup], actors: &[Mark]) -> io::Result<()> {
    if lookups.is_empty() {
        return writeln!(out, "none in this period");
    }
    for lookup in lookups {
        let Some((disclosed, request)) = lookup.request() else {
            writeln!(out, "entry {}: of a later version; `dwarpal audit show {}`", lookup.index, lookup.index)?;
            continue;
        };
        let or_none = |text: &Option<std::borrow::Cow<str>>| text.as_deref().unwrap_or("-").escape_debug().to_string();
        let (partner, route, purpose) = (or_none(&request.partner), or_none(&request.route), or_none(&request.purpose));
        writeln!(out, "{}  {partner}  {route} for {purpose}", request.time)?;
        writeln!(out, "    {}", became(disclosed, &request, lookup.closed().as_ref()))?;
        let actor = match request.actor {
            Some(mark) if actors.contains(&mark) => format!("{mark}, the one asked about, as asserted by the partner"),
            Some(mark) if actors.is_empty() => format!("{mark}, as asserted by the partner"),
            Some(mark) => format!("{mark}, another one, as asserted by the partner"),
            None => "not named".to_owned(),
        };
        writeln!(out, "    actor {actor}; consent {}", or_none(&request.consent))?;
        writeln!(out, "    decision {}, entry {}, from {}", request.id, lookup.index, request.source)?;
    }
    let answered = lookups.iter().filter(|lookup| lookup.was_answered()).count();
    writeln!(out, "{}, of which {answered} were answered", counted(lookups.len(), "lookup"))
}

fn became(disclosed: bool, request: &Request, closed: Option<&Closed>) -> String {
    let reason = request.reason.map_or("-", |reason| reason.code());
    if !disclosed {
        return match request.verdict {
            Verdict::Failed => format!("not answered: {reason}"),
            _ => format!("refused: {reason}"),
        };
    }
    if let Some(Closed { by, step, .. }) = closed
        && *step != Step::Answer
    {
        return format!("not answered: ended by {} before there was an answer", who_ended(*by));
    }
    let people = request.backend.and_then(|backend| backend.people);
    let people = match (people, request.reason) {
        (Some(people), _) => format!("{people} {}", if people == 1 { "person" } else { "people" }),
        (None, Some(_)) => format!("nobody ({reason})"),
        (None, None) => "people not counted".to_owned(),
    };
    let fields = match &request.fields {
        Some(fields) => format!("fields {}", fields.join(" ")),
        None => "all that the backend gave".to_owned(),
    };
    let end = match closed {
        None => "no record of its end, so it counts as wholly received".to_owned(),
        Some(Closed { by: EndedBy::Complete, bytes, .. }) => format!("all {bytes} bytes were sent"),
        Some(Closed { by, bytes, .. }) => format!("ended by {} after {bytes} bytes", who_ended(*by)),
    };
    format!("disclosed: {people}; {fields}; {end}")
}

fn who_ended(by: EndedBy) -> &'static str {
    match by {
        EndedBy::Complete => "nobody",
        EndedBy::Partner => "the partner",
        EndedBy::Backend => "the backend",
        EndedBy::Gateway => "the gateway",
    }
}

/// What the answer rests on, and what it cannot say.
struct Covered {
    /// Those whose entries are here and touch the period.
    segments: Vec<u64>,
    /// Earliest and latest entry of these.
    times: Option<(Timestamp, Timestamp)>,
    size: u64,
    checkpoint: Option<Checkpoint>,
    /// What is missing, in words.
    missing: Vec<String>,
}

impl Covered {
    fn of(log: &mut Log, period: &Period, keys: &EpochKeys) -> Result<Covered, Failure> {
        let size = log.size()?;
        let checkpoint = log.checkpoint()?.map(|(checkpoint, _)| checkpoint);
        let mut covered = Covered { segments: Vec::new(), times: None, size, checkpoint, missing: Vec::new() };
        let mut epochs = std::collections::BTreeSet::new();
        let mut absent: Vec<(u64, u64)> = Vec::new();
        let mut pruned: Vec<(u64, u64)> = Vec::new();
        for segment in 0..size.div_ceil(SEGMENT) {
            let range = (segment * SEGMENT, ((segment + 1) * SEGMENT).min(size));
            let Some(header) = log.header(segment)? else {
                match absent.last_mut() {
                    Some(last) if last.1 == range.0 => last.1 = range.1,
                    _ => absent.push(range),
                }
                continue;
            };
            for place in &header.notable {
                let index = range.0 + u64::from(*place);
                let Some(entry) = log.entry(index)? else { continue };
                match Event::from_json(&entry) {
                    Ok(Event::Pruned(event)) => pruned.push((event.from, event.until)),
                    Ok(Event::Gap(gap)) if period.touches(gap.since, gap.time) => covered.missing.push(format!(
                        "from {} to {}: {} ({} refused for want of a record; entries lost: {} disclosed, {} denied, {} closed, {} others)",
                        gap.since, gap.time, gap.cause, counted(gap.lookups_refused as usize, "lookup"), gap.disclosures, gap.denied, gap.closed, gap.others
                    )),
                    _ => {}
                }
            }
            if !period.touches(header.first, header.last) {
                continue;
            }
            covered.segments.push(segment);
            epochs.extend(header.epochs);
            let (first, last) = covered.times.unwrap_or((header.first, header.last));
            covered.times = Some((first.min(header.first), last.max(header.last)));
            if header.unreadable > 0 {
                covered.missing.push(format!(
                    "{} of entries {} to {} cannot be read",
                    header.unreadable,
                    range.0,
                    range.1 - 1
                ));
            }
        }
        for (from, until) in absent {
            let why = match pruned.iter().any(|range| range.0 <= from && until <= range.1) {
                true => "were removed by retention",
                false => "are not here, and nothing says why: `dwarpal audit verify`",
            };
            covered.missing.push(format!("entries {from} to {} {why}", until - 1));
        }
        let now = Clock::system().now();
        for id in epochs.iter().filter(|id| !keys.all().any(|key| key.id() == *id)) {
            let epoch = keys.epochs().iter().find(|epoch| epoch.id == *id);
            let why = match epoch.map(|epoch| (epoch, keys.state(epoch.number, now))) {
                Some((epoch, Some(EpochState::Destroyed))) => {
                    let at =
                        epoch.destroyed.as_ref().map_or(String::new(), |destroyed| format!(" at {}", destroyed.at));
                    format!("was destroyed{at}")
                }
                _ => "is not here".to_owned(),
            };
            covered.missing.push(format!("people under epoch {id}: its key {why}, so nobody can be found there"));
        }
        Ok(covered)
    }

    fn say(&self, out: &mut impl Write, none: bool) -> io::Result<()> {
        match self.times {
            Some((first, last)) => writeln!(out, "searched: {first} to {last}, by what the log has of it")?,
            None => writeln!(out, "searched: nothing, the log has no entry in this period")?,
        }
        self.missing.iter().try_for_each(|missing| writeln!(out, "not searched: {missing}"))?;
        match &self.checkpoint {
            Some(Checkpoint { origin, size, root, .. }) => {
                let after = self.size.saturating_sub(*size);
                writeln!(out, "checkpoint: {origin}, {size} entries, root {root}; {after} entries are after it")?;
            }
            None => writeln!(out, "checkpoint: none yet, so nothing of this can be proved")?,
        }
        let worth = "worth: as much as the log, which `dwarpal audit verify` proves to be what was signed";
        match none {
            false => writeln!(out, "{worth}; each lookup by `dwarpal audit prove DECISION`"),
            true => writeln!(
                out,
                "{worth}; that what never passed this gateway or was not logged is not in it, nothing can prove"
            ),
        }
    }
}

fn as_json(lookups: &[Lookup], covered: &Covered, actors: &[Mark], kind: Kind) -> Value {
    let raw = |entry: &[u8]| serde_json::from_slice::<Value>(entry).unwrap_or_default();
    let lookups: Vec<_> = lookups
        .iter()
        .map(|lookup| {
            let actor = lookup.request().and_then(|(_, request)| request.actor);
            json!({
                "index": lookup.index,
                "entry": raw(&lookup.entry),
                "closed": lookup.closed.as_ref().map(|(_, entry)| raw(entry)),
                "actor_matches": actor.filter(|_| !actors.is_empty()).map(|mark| actors.contains(&mark)),
            })
        })
        .collect();
    json!({
        "kind": kind.as_str(),
        "lookups": lookups,
        "searched": covered.times.map(|(first, last)| json!({ "from": first, "until": last })),
        "not_searched": covered.missing,
        "size": covered.size,
        "checkpoint": covered.checkpoint.as_ref().map(|checkpoint| json!({ "origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.to_string() })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISS: &[u8] = br#"{"event":"disclosure","v":1,"time":"2026-03-01T09:00:00Z","id":"019ca8fd-4bfc-7000-80cd-1067dfbaa486","generation":1,"credential":"","source":"127.0.0.1","partner":"icmr","standing":"open","route":"r","verdict":"allow","reason":"no-match","backend":{"status":404,"people":0},"latency":{"total_us":1,"upload_us":1}}"#;

    fn lookup(step: Option<&str>) -> Lookup {
        let closed = |step| {
            let text = format!(
                r#"{{"event":"closed","v":1,"time":"2026-03-01T09:00:05Z","id":"019ca8fd-4bfc-7000-80cd-1067dfbaa486","partner":"icmr","by":"gateway","step":"{step}","bytes":0,"total_us":1}}"#
            );
            (1, text.into_bytes())
        };
        Lookup { index: 0, entry: MISS.to_vec(), closed: step.map(closed) }
    }

    #[test]
    fn what_was_withheld_after_its_record_does_not_count_as_answered() {
        for (step, answered, words) in [
            (None, true, "disclosed: 0 people"),
            (Some("answer"), true, "disclosed: 0 people"),
            (Some("record"), false, "not answered: ended by the gateway before there was an answer"),
        ] {
            let lookup = lookup(step);
            assert_eq!(lookup.was_answered(), answered, "{step:?}");
            let (disclosed, request) = lookup.request().expect("a request");
            let text = became(disclosed, &request, lookup.closed().as_ref());
            assert!(text.starts_with(words), "{text}");
        }
    }
}
