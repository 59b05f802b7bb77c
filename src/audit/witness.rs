//! Who else knows how large the log was? Copies of each checkpoint off this machine, and cosignatures of witnesses
//! (C2SP tlog-witness).
//!
//! Nobody waits for this. What fails is said, counted, and tried again with the next checkpoint.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, JoinSet};

use super::note::{Checkpoint, Note, Signature};
use super::tree::Hash;
use crate::config::settings::{AuditCopies, Endpoint, Witness};
use crate::metrics::Metrics;
use crate::net::client::{self, Message};

/// Sends checkpoints to everybody who is configured.
#[derive(Debug, Default)]
pub struct Dispatcher {
    urls: Vec<Endpoint>,
    ca: Option<PathBuf>,
    files: Vec<CopyFile>,
    witnesses: Vec<Known>,
}

#[derive(Debug)]
struct CopyFile {
    path: PathBuf,
    /// A write that has not come back; the next would only wait behind it.
    under_way: Option<JoinHandle<io::Result<()>>>,
    /// The last write may have left half a checkpoint: the next begins after an empty line.
    torn: bool,
}

#[derive(Debug)]
struct Known {
    witness: Witness,
    /// Of the last checkpoint that it signed. Forgotten with the process: the witness then says it.
    size: u64,
}

/// A write to a file that hangs is waited for no longer than this.
const FILE_TIMEOUT: Duration = Duration::from_secs(10);
/// Of an answer: a few signatures.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// What came of something that was sent.
enum Sent {
    Copied(Arc<str>, Result<(), String>),
    Answered(usize, Result<(u16, Vec<u8>), String>),
}

impl Dispatcher {
    pub fn new(copies: &AuditCopies) -> Dispatcher {
        let mut dispatcher = Dispatcher::default();
        dispatcher.configure(copies);
        dispatcher
    }

    /// Takes over another configuration; what is known of a witness that stays is kept.
    pub fn configure(&mut self, copies: &AuditCopies) {
        let AuditCopies { files, urls, ca, witnesses } = copies.clone();
        (self.urls, self.ca) = (urls, ca);
        let mut before = std::mem::take(&mut self.files);
        self.files = files
            .into_iter()
            .map(|path| match before.iter().position(|file| file.path == path) {
                Some(at) => before.swap_remove(at),
                None => CopyFile { path, under_way: None, torn: false },
            })
            .collect();
        let before = std::mem::take(&mut self.witnesses);
        let size = |vkey| before.iter().find(|known| known.witness.vkey == vkey).map_or(0, |known| known.size);
        let known = |witness: Witness| Known { size: size(witness.vkey.clone()), witness };
        self.witnesses = witnesses.into_iter().map(known).collect();
    }

    /// Sends a checkpoint that the log has signed to all at the same time, and returns the witnesses' cosignatures, each
    /// verified. `proof` is the consistency proof from an earlier size to the checkpoint's. Takes two times the client's
    /// timeout at the most.
    pub async fn publish<E: Display>(
        &mut self,
        checkpoint: &Note,
        metrics: &Metrics,
        mut proof: impl FnMut(u64) -> Result<Vec<Hash>, E>,
    ) -> Vec<Signature> {
        let size = match Checkpoint::parse(checkpoint.text()) {
            Ok(checkpoint) => checkpoint.size,
            Err(flaw) => {
                tracing::error!(%flaw, "a checkpoint cannot be sent");
                return Vec::new();
            }
        };
        let note = checkpoint.to_string();
        let mut tasks = JoinSet::new();
        for endpoint in &self.urls {
            tasks.spawn(copy_to_url(endpoint.clone(), self.ca.clone(), note.clone()));
        }
        for (at, known) in self.witnesses.iter_mut().enumerate() {
            // A log that was set back: its witnesses will say so.
            let old = if known.size <= size { known.size } else { 0 };
            match proof(old) {
                Ok(proof) => _ = tasks.spawn(ask(at, known.witness.clone(), request(old, &proof, &note))),
                Err(error) => conclude(metrics, &known.witness, "failed", &format!("no proof from {old}: {error}")),
            }
        }
        let copied = copy_to_files(&mut self.files, &note, metrics);
        let (mut cosignatures, mut again) = (Vec::new(), vec![true; self.witnesses.len()]);
        let answered = async {
            while let Some(sent) = tasks.join_next().await {
                let (at, answer) = match sent {
                    Ok(Sent::Answered(at, answer)) => (at, answer),
                    Ok(Sent::Copied(target, outcome)) => {
                        report_copy(metrics, &target, &outcome);
                        continue;
                    }
                    Err(_) => continue,
                };
                let Known { witness, size: known_size } = &mut self.witnesses[at];
                let failed = match judge(witness, checkpoint, answer) {
                    Judged::Signed(signature) => {
                        *known_size = size;
                        metrics.audit_witness(&witness.name, "ok");
                        cosignatures.push(signature);
                        continue;
                    }
                    Judged::Knows(old) if old <= size && std::mem::take(&mut again[at]) => match proof(old) {
                        Ok(proof) => {
                            tasks.spawn(ask(at, witness.clone(), request(old, &proof, &note)));
                            continue;
                        }
                        Err(error) => ("failed", format!("no proof from {old}: {error}")),
                    },
                    Judged::Knows(old) => ("conflict", format!("it has signed size {old}, and this is {size}")),
                    Judged::Failed(result, why) => (result, why),
                };
                conclude(metrics, witness, failed.0, &failed.1);
            }
        };
        tokio::join!(answered, copied);
        cosignatures
    }
}

fn request(old: u64, proof: &[Hash], note: &str) -> String {
    let proof: String = proof.iter().map(|hash| format!("{hash}\n")).collect();
    format!("old {old}\n{proof}\n{note}")
}

async fn ask(at: usize, witness: Witness, request: String) -> Sent {
    let answer =
        client::post(&witness.url, "/add-checkpoint", witness.ca.as_deref(), Message::text(request), ANSWER_BYTES_MAX);
    Sent::Answered(at, answer.await.map(|(status, body)| (status, body.to_vec())))
}

enum Judged {
    Signed(Signature),
    /// It has signed another size last.
    Knows(u64),
    Failed(&'static str, String),
}

fn judge(witness: &Witness, checkpoint: &Note, answer: Result<(u16, Vec<u8>), String>) -> Judged {
    let (status, body) = match answer {
        Ok(answer) => answer,
        Err(why) => return Judged::Failed("failed", why),
    };
    let failed = |result, why: &str| Judged::Failed(result, why.to_owned());
    match status {
        200 => match cosignature(witness, checkpoint, &body) {
            Ok(signature) => Judged::Signed(signature),
            Err(why) => failed("invalid", why),
        },
        409 => {
            let text = std::str::from_utf8(&body).ok();
            let digits = text.and_then(|text| text.strip_suffix('\n'));
            let size = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
            match size.and_then(|size| size.parse().ok()) {
                Some(size) => Judged::Knows(size),
                None => failed("failed", "it answers 409 without a size"),
            }
        }
        403 => failed("refused", "it does not take this log's key for the log's"),
        404 => failed("unknown", "it does not know this log: ask who runs it to add the log's key"),
        422 => failed("rejected", "the proof does not lead from what it has signed to this checkpoint"),
        _ => Judged::Failed("failed", format!("it answers {status}")),
    }
}

/// The line by this witness, which may sign with several keys, if it is right.
fn cosignature(witness: &Witness, checkpoint: &Note, body: &[u8]) -> Result<Signature, &'static str> {
    let text = std::str::from_utf8(body).map_err(|_| "its answer is no text")?;
    let lines = text.strip_suffix('\n').ok_or("its answer's last line has no end")?;
    let mut found = None;
    for line in lines.split('\n') {
        let signature = Signature::parse(line).map_err(|flaw| flaw.0)?;
        if signature.name() != witness.vkey.name() || signature.key_id() != witness.vkey.key_id() {
            continue;
        }
        let mut note = Note::new(checkpoint.text()).map_err(|flaw| flaw.0)?;
        note.add(signature.clone()).map_err(|flaw| flaw.0)?;
        let _ = note.verified_by(&witness.vkey).map_err(|flaw| flaw.0)?;
        found = Some(signature);
    }
    found.ok_or("its answer is not signed by the key that is configured for it")
}

fn conclude(metrics: &Metrics, witness: &Witness, result: &'static str, why: &str) {
    metrics.audit_witness(&witness.name, result);
    tracing::warn!(witness = &*witness.name, url = &*witness.url.url, result, why, "a witness has not signed");
}

async fn copy_to_url(endpoint: Endpoint, ca: Option<PathBuf>, note: String) -> Sent {
    let outcome = match client::post(&endpoint, "", ca.as_deref(), Message::text(note), ANSWER_BYTES_MAX).await {
        Ok((200..300, _)) => Ok(()),
        Ok((status, _)) => Err(format!("it answers {status}")),
        Err(why) => Err(why),
    };
    Sent::Copied(endpoint.url, outcome)
}

/// On threads that may hang with their file system.
async fn copy_to_files(files: &mut [CopyFile], note: &str, metrics: &Metrics) {
    for file in files.iter_mut() {
        if file.under_way.as_ref().is_some_and(|write| !write.is_finished()) {
            continue;
        }
        let start = if std::mem::replace(&mut file.torn, true) { "\n\n" } else { "" };
        let (path, text) = (file.path.clone(), format!("{start}{note}\n"));
        file.under_way = Some(tokio::task::spawn_blocking(move || append(&path, &text)));
    }
    let until = tokio::time::Instant::now() + FILE_TIMEOUT;
    for file in files {
        let Some(write) = &mut file.under_way else { continue };
        let outcome = match tokio::time::timeout_at(until, &mut *write).await {
            Ok(Ok(written)) => written.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => {
                report_copy(metrics, &file.path.display().to_string(), &Err("the write does not come back".to_owned()));
                continue;
            }
        };
        (file.under_way, file.torn) = (None, outcome.is_err());
        report_copy(metrics, &file.path.display().to_string(), &outcome);
    }
}

/// Only ever appends, so that the file may be one that nobody can change.
fn append(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

fn report_copy(metrics: &Metrics, target: &str, outcome: &Result<(), String>) {
    metrics.audit_copy(target, if outcome.is_ok() { "ok" } else { "failed" });
    if let Err(why) = outcome {
        tracing::warn!(target, why, "a checkpoint was not copied");
    }
}
