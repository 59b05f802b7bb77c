//! `dwarpal audit export`: how do the entries come into other programs? Files of one day each, in UTC.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::super::{YES, counted};
use super::{Answer, Failure, Period, Place, stdout};
use crate::audit::index::Glance;
use crate::audit::layout::SEGMENT;

#[derive(Args)]
pub struct Export {
    #[arg(long)]
    format: Format,
    /// Where the files go; those of the same days are replaced
    #[arg(long, value_name = "DIRECTORY")]
    out: PathBuf,
    /// One JSON object with the files
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    period: Period,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Csv,
}

/// Names of the columns, and where in an entry their values are. What no column holds is in `entry`, for events other than
/// lookups.
const COLUMNS: [(&str, &str); 28] = [
    ("time", "/time"),
    ("event", "/event"),
    ("id", "/id"),
    ("partner", "/partner"),
    ("route", "/route"),
    ("purpose", "/purpose"),
    ("verdict", "/verdict"),
    ("reason", "/reason"),
    ("actor", "/actor"),
    ("consent", "/consent"),
    ("kind", "/subject/kind"),
    ("epoch", "/subject/epoch"),
    ("token", "/subject/token"),
    ("block", "/subject/block"),
    ("series", "/subject/series"),
    ("source", "/source"),
    ("credential", "/credential"),
    ("generation", "/generation"),
    ("standing", "/standing"),
    ("status", "/backend/status"),
    ("people", "/backend/people"),
    ("answer_bytes", "/answer/bytes"),
    ("total_us", "/latency/total_us"),
    ("backend_us", "/latency/backend_us"),
    ("ended_by", "/by"),
    ("ended_in", "/step"),
    ("sent_bytes", "/bytes"),
    ("trace", "/trace"),
];

pub fn run(arguments: Export) -> Answer {
    let mut log = arguments.place.open()?;
    let size = log.size()?;
    let mut days = Days::new(&arguments.out, arguments.format)?;
    let (mut count, mut unreadable) = (0_u64, 0_u64);
    for segment in 0..size.div_ceil(SEGMENT) {
        let Some(header) = log.header(segment)? else { continue };
        if !arguments.period.touches(header.first, header.last) {
            continue;
        }
        log.each::<Failure>(segment * SEGMENT..((segment + 1) * SEGMENT).min(size), |index, entry| {
            let Some(time) = Glance::of(entry).ok().and_then(|glance| glance.time) else {
                unreadable += 1;
                return Ok(());
            };
            if !arguments.period.holds(time) {
                return Ok(());
            }
            count += 1;
            // RFC 3339 begins with the day.
            days.write(&time.to_string()[..10], index, entry)
        })?;
    }
    let files = days.finish()?;
    let mut out = stdout();
    match arguments.json {
        true => writeln!(out, "{}", json!({ "entries": count, "files": files, "unreadable": unreadable }))?,
        false => {
            files.iter().try_for_each(|file| writeln!(out, "{}", file.display()))?;
            eprintln!("{count} entries in {}", counted(files.len(), "file"));
        }
    }
    if unreadable > 0 {
        eprintln!("warning: {} without a readable time in no file", counted(unreadable as usize, "entry"));
    }
    out.flush()?;
    Ok(YES)
}

/// The files that are being written, under names that nobody takes for finished ones.
struct Days<'a> {
    directory: &'a Path,
    format: Format,
    open: BTreeMap<String, BufWriter<File>>,
    begun: Vec<String>,
}

/// Entries come almost in the order of their times.
const OPEN_MAX: usize = 8;

impl<'a> Days<'a> {
    fn new(directory: &'a Path, format: Format) -> Result<Days<'a>, Failure> {
        fs::create_dir_all(directory).map_err(|error| Failure::file(directory, error))?;
        Ok(Days { directory, format, open: BTreeMap::new(), begun: Vec::new() })
    }

    fn write(&mut self, day: &str, index: u64, entry: &[u8]) -> Result<(), Failure> {
        let path = self.temporary(day);
        let failed = |error| Failure::file(&path, error);
        if !self.open.contains_key(day) {
            if self.open.len() >= OPEN_MAX
                && let Some((_, mut oldest)) = self.open.pop_first()
            {
                oldest.flush().map_err(failed)?;
            }
            let fresh = !self.begun.iter().any(|begun| begun == day);
            // One that an earlier export left is begun anew.
            let mut options = OpenOptions::new();
            options.create(true).mode(0o600);
            let options = if fresh { options.write(true).truncate(true) } else { options.append(true) };
            let mut file = BufWriter::new(options.open(&path).map_err(failed)?);
            if fresh {
                self.begun.push(day.to_owned());
                if self.format == Format::Csv {
                    header(&mut file).map_err(failed)?;
                }
            }
            self.open.insert(day.to_owned(), file);
        }
        let Some(file) = self.open.get_mut(day) else { return Ok(()) };
        let written = match self.format {
            Format::Jsonl => json_row(file, index, entry),
            Format::Csv => csv_row(file, index, entry),
        };
        written.map_err(failed)
    }

    /// Gives the files their names, once all of them are whole.
    fn finish(mut self) -> Result<Vec<PathBuf>, Failure> {
        for (day, file) in &mut self.open {
            let path = self.directory.join(day);
            file.flush().map_err(|error| Failure::file(&path, error))?;
        }
        self.begun.sort();
        let mut files = Vec::new();
        for day in &self.begun {
            let file = self.directory.join(self.name(day));
            fs::rename(self.temporary(day), &file).map_err(|error| Failure::file(&file, error))?;
            files.push(file);
        }
        Ok(files)
    }

    fn name(&self, day: &str) -> String {
        match self.format {
            Format::Jsonl => format!("{day}.jsonl"),
            Format::Csv => format!("{day}.csv"),
        }
    }

    fn temporary(&self, day: &str) -> PathBuf {
        self.directory.join(format!(".{}.new", self.name(day)))
    }
}

/// The entry with its index as its first member.
fn json_row(out: &mut impl Write, index: u64, entry: &[u8]) -> io::Result<()> {
    write!(out, "{{\"index\":{index},")?;
    out.write_all(entry.strip_prefix(b"{").unwrap_or(entry))?;
    writeln!(out)
}

fn header(out: &mut impl Write) -> io::Result<()> {
    write!(out, "index")?;
    COLUMNS.iter().try_for_each(|(name, _)| write!(out, ",{name}"))?;
    writeln!(out, ",fields,entry")
}

fn csv_row(out: &mut impl Write, index: u64, entry: &[u8]) -> io::Result<()> {
    let value: Value = serde_json::from_slice(entry)?;
    write!(out, "{index}")?;
    for (_, pointer) in COLUMNS {
        match value.pointer(pointer) {
            None | Some(Value::Null) => write!(out, ",")?,
            Some(Value::String(text)) => write!(out, ",{}", quoted(text))?,
            // The subject of a certificate is no person.
            Some(value) if value.is_number() => write!(out, ",{value}")?,
            Some(value) => write!(out, ",{}", quoted(&value.to_string()))?,
        }
    }
    let fields = value.get("fields").and_then(Value::as_array);
    let fields = fields.map(|fields| fields.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
    write!(out, ",{}", fields.map_or(String::new(), |fields| quoted(&fields)))?;
    let request = matches!(value["event"].as_str(), Some("disclosure" | "denied" | "closed"));
    match request {
        true => writeln!(out, ","),
        false => writeln!(out, ",{}", quoted(&String::from_utf8_lossy(entry))),
    }
}

/// As RFC 4180 has it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}
