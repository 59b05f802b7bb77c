//! `dwarpal audit prove`, `check-proof` and `consistency`: what can be carried away and checked without this log?

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::super::{NO, YES};
use super::{Answer, Failure, Place, read_file, stdout, vkey};
use crate::audit::index::{Glance, Key};
use crate::audit::layout::SEGMENT;
use crate::audit::note::{Checkpoint, Note, Vkey};
use crate::audit::proof::Proof;
use crate::audit::read::{Fault, Log};
use crate::audit::tree::{self, ProofError};

#[derive(Args)]
pub struct Prove {
    /// A decision's id, or an entry's index
    #[arg(value_name = "ID|INDEX")]
    what: String,
    /// Writes INDEX.tlog-proof and INDEX.json, the entry byte for byte, into this directory
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// A JSON object an entry
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct CheckProof {
    /// A tlog-proof
    proof: PathBuf,
    /// The log's public key, or a file with it
    #[arg(long, value_name = "VKEY|FILE")]
    key: String,
    /// The entry, byte for byte; an end of line after it is passed over
    #[arg(long, value_name = "FILE")]
    entry: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Consistency {
    /// File of the earlier checkpoint, or its size
    #[arg(value_name = "OLD")]
    old: String,
    /// File of the later checkpoint, or its size
    #[arg(value_name = "NEW")]
    new: String,
    /// The log's public key, or a file with it: signatures of the files are checked
    #[arg(long, value_name = "VKEY|FILE")]
    key: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// What an argument stands for.
pub enum Wanted {
    Decision(Uuid),
    Entry(u64),
}

impl Wanted {
    pub fn parse(text: &str) -> Result<Wanted, Failure> {
        let wanted = text.parse().map(Wanted::Entry).ok().or_else(|| text.parse().map(Wanted::Decision).ok());
        wanted.ok_or_else(|| {
            Failure::Senseless(format!(
                "{text:?} is neither a decision's id, as in the answer's x-decision-id, nor an entry's index"
            ))
        })
    }

    /// The entries, in order.
    pub fn find(&self, log: &mut Log) -> Result<Vec<(u64, Vec<u8>)>, Failure> {
        let segments = log.size()?.div_ceil(SEGMENT);
        match self {
            Wanted::Decision(id) => Ok(log.find(Key::Decision(*id), 0..segments)?),
            Wanted::Entry(index) => Ok(log.entry(*index)?.map(|entry| (*index, entry)).into_iter().collect()),
        }
    }
}

pub fn prove(arguments: Prove) -> Answer {
    let wanted = Wanted::parse(&arguments.what)?;
    let mut log = arguments.place.open()?;
    let Some((checkpoint, note)) = log.checkpoint()? else {
        eprintln!("nothing can be proved: nothing of this log is under a checkpoint yet");
        return Ok(NO);
    };
    let found = wanted.find(&mut log)?;
    if found.is_empty() {
        eprintln!("the log has no entry {} (any more)", arguments.what);
        return Ok(NO);
    }
    let note = String::from_utf8_lossy(&note).into_owned();
    let mut code = YES;
    let mut out = stdout();
    for (index, entry) in found {
        let event = Glance::of(&entry).map_or("entry".to_owned(), |glance| glance.event.into_owned());
        if index >= checkpoint.size {
            eprintln!("entry {index}, {event}: not under a checkpoint yet; ask again in a few seconds");
            code = NO;
            continue;
        }
        let proof = inclusion(&mut log, index, &checkpoint, &entry, note.clone())?;
        if let Some(directory) = &arguments.out {
            write_file(&directory.join(format!("{index}.tlog-proof")), proof.to_string().as_bytes())?;
            write_file(&directory.join(format!("{index}.json")), &entry)?;
        }
        match (arguments.json, &arguments.out) {
            (true, _) => {
                let hashes: Vec<_> = proof.hashes.iter().map(ToString::to_string).collect();
                let entry = String::from_utf8_lossy(&entry);
                let line = json!({ "index": index, "event": event, "hashes": hashes, "checkpoint": note, "proof": proof.to_string(), "entry": entry });
                writeln!(out, "{line}")?;
            }
            (false, Some(directory)) => {
                writeln!(out, "{}: {event}", directory.join(format!("{index}.tlog-proof")).display())?
            }
            (false, None) => {
                out.flush()?;
                eprintln!("# entry {index}, {event}");
                write!(out, "{proof}")?;
            }
        }
        out.flush()?;
    }
    Ok(code)
}

/// A proof that has been checked: a damaged log gives none.
fn inclusion(log: &mut Log, index: u64, checkpoint: &Checkpoint, entry: &[u8], note: String) -> Result<Proof, Failure> {
    let hashes =
        tree::inclusion_proof(index, checkpoint.size, |level, index| log.hash(level, index)).map_err(faulty)?;
    let leaf = tree::leaf_hash(entry);
    tree::verify_inclusion(&leaf, index, checkpoint.size, &hashes, &checkpoint.root).map_err(|refuted| {
        Fault::of_entry(log.directory().display().to_string(), index, format!("cannot be proved: {refuted}"))
    })?;
    Ok(Proof { index, hashes, checkpoint: note })
}

fn faulty(error: ProofError<Fault>) -> Failure {
    match error {
        ProofError::OutOfRange(what) => Failure::Senseless(what.to_owned()),
        ProofError::Source(fault) => fault.into(),
    }
}

pub fn check(arguments: CheckProof) -> Answer {
    let key = vkey(&arguments.key)?;
    let text = read_file(&arguments.proof)?;
    let proof = std::str::from_utf8(&text).map_err(|_| "is not UTF-8".to_owned());
    let proof = proof.and_then(|text| Proof::parse(text).map_err(|flaw| flaw.to_string()));
    let proof = proof.map_err(|what| Failure::file(&arguments.proof, what));
    let proof = match proof {
        Ok(proof) => proof,
        Err(failure) => {
            failure.say();
            return Ok(NO);
        }
    };
    let entry = read_file(&arguments.entry)?;
    let verified = proof.verify(&entry, &key).or_else(|flaw| match entry.strip_suffix(b"\n") {
        Some(entry) => proof.verify(entry, &key),
        None => Err(flaw),
    });
    let mut out = stdout();
    let code = match &verified {
        Ok(checkpoint) => {
            match arguments.json {
                true => writeln!(
                    out,
                    "{}",
                    json!({ "proved": true, "index": proof.index, "origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.to_string() })
                )?,
                false => writeln!(
                    out,
                    "proved: it is entry {} of the first {} entries that {} has signed",
                    proof.index,
                    checkpoint.size,
                    key.name()
                )?,
            }
            YES
        }
        Err(flaw) => {
            match arguments.json {
                true => writeln!(out, "{}", json!({ "proved": false, "what": flaw.to_string() }))?,
                false => writeln!(out, "not proved: {flaw}")?,
            }
            NO
        }
    };
    out.flush()?;
    Ok(code)
}

/// A side of a consistency proof.
struct Side {
    checkpoint: Checkpoint,
    /// The note as it was given, or the text that would be signed.
    text: String,
}

impl Side {
    fn of(text: &str, key: Option<&Vkey>, log: &mut Log) -> Result<Side, Failure> {
        let path = Path::new(text);
        match (path.exists(), text.parse::<u64>()) {
            (false, Ok(size)) => {
                let there = log.size()?;
                if size > there {
                    return Err(Failure::file(path, format!("this log has only {there} entries")));
                }
                let root = tree::root_at(size, |level, index| log.hash(level, index)).map_err(faulty)?;
                let origin = log.checkpoint()?.map_or_else(|| "unsigned".to_owned(), |(newest, _)| newest.origin);
                let checkpoint = Checkpoint { origin, size, root, extensions: Vec::new() };
                let text = checkpoint.to_string();
                Ok(Side { checkpoint, text })
            }
            (true, _) => {
                let bytes = read_file(path)?;
                let read = match key {
                    Some(key) => Checkpoint::verified(&bytes, key),
                    None => Note::parse(&bytes).and_then(|note| Checkpoint::parse(note.text())),
                };
                let checkpoint = read.map_err(|flaw| Failure::file(path, flaw))?;
                Ok(Side { checkpoint, text: String::from_utf8_lossy(&bytes).into_owned() })
            }
            (false, Err(_)) => Err(Failure::Senseless(format!("{text:?} is neither a checkpoint's file nor a size"))),
        }
    }
}

pub fn consistency(arguments: Consistency) -> Answer {
    let key = arguments.key.as_deref().map(vkey).transpose()?;
    let mut log = arguments.place.open()?;
    let old = Side::of(&arguments.old, key.as_ref(), &mut log)?;
    let new = Side::of(&arguments.new, key.as_ref(), &mut log)?;
    let (older, newer) = (&old.checkpoint, &new.checkpoint);
    if newer.size > log.size()? {
        eprintln!("no proof: this log has fewer than the {} entries of the later checkpoint", newer.size);
        return Ok(NO);
    }
    let hashes =
        tree::consistency_proof(older.size, newer.size, |level, index| log.hash(level, index)).map_err(faulty)?;
    let verified = tree::verify_consistency(older.size, &older.root, newer.size, &newer.root, &hashes);
    let mut out = stdout();
    if arguments.json {
        let hashes: Vec<_> = hashes.iter().map(ToString::to_string).collect();
        let what = verified.err().map(|refuted| refuted.to_string());
        writeln!(
            out,
            "{}",
            json!({ "consistent": verified.is_ok(), "what": what, "old": older.size, "new": newer.size, "hashes": hashes, "signatures_checked": key.is_some() })
        )?;
    } else if verified.is_ok() {
        // What tlog-witness takes: size before, proof, checkpoint.
        writeln!(out, "old {}", older.size)?;
        hashes.iter().try_for_each(|hash| writeln!(out, "{hash}"))?;
        write!(out, "\n{}", new.text)?;
    }
    out.flush()?;
    match verified {
        Ok(()) => {
            let signatures = if key.is_some() { "" } else { "; signatures were not checked: --key" };
            eprintln!("consistent: the first {} of {} entries are the same{signatures}", older.size, newer.size);
            Ok(YES)
        }
        Err(refuted) => {
            eprintln!("not consistent: {refuted}");
            Ok(NO)
        }
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, bytes));
    written.map_err(|error| Failure::file(path, error))
}
