//! What may an operator tell a running gateway? Commands over a Unix socket, whose permissions are the access control.
//!
//! One request a connection, one line of JSON each way. The answer is text for people and the exit code of the command
//! that asked, so that every client is a few lines.

pub mod containment;
mod epochs;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::alerts::{self, Tested};
use crate::audit::event::{self, Event};
use crate::clock::Timestamp;
use crate::containment::By;
use crate::gateway::Gateway;
use crate::policy::containment::Level;
use crate::reload::Reload;
use crate::state::orders::Freeze;
use crate::subject::mentions_subject;
use containment::{End, Whom};

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    Status,
    Reload,
    Freeze {
        partner: String,
        reason: String,
    },
    Thaw {
        partner: String,
    },
    /// Puts a partner, or one of its actors, on a step of the ladder for a time.
    Contain {
        partner: String,
        actor: Option<String>,
        level: Level,
        end: End,
        reason: String,
    },
    /// Takes that back before its time.
    Release {
        partner: String,
        actor: Option<String>,
        reason: String,
    },
    /// Who stands where; as a line of JSON each, or for people.
    Standing {
        partner: Option<String>,
        json: bool,
    },
    /// Signs the audit's tree as it is now.
    Checkpoint,
    /// Sends a test to every receiver of alerts.
    TestAlerts,
    /// Every epoch; as a line of JSON each, or for people.
    Epochs {
        json: bool,
    },
    RotateEpochs {
        reason: String,
    },
    DestroyEpoch {
        number: u32,
        reason: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub outcome: Outcome,
    /// For people, a line each.
    pub lines: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Done,
    /// There is nobody or nothing of that name.
    Unknown,
    /// It may not be done now.
    Denied,
    /// The configuration is refused.
    Refused,
    /// It could not be done, or not wholly.
    Failed,
}

/// Operators at the same time; more wait.
const CONNECTIONS_MAX: usize = 16;
const REQUEST_BYTES_MAX: u64 = 64 << 10;
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Takes the socket over from an earlier run: the lock on the state says that nobody else has it.
pub fn bind(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    // Its directory is the gateway's alone from the start (0700), so nobody is faster than this.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The thread of commands and of watching the configuration's files. What may take long or hang is done on others.
pub fn run(gateway: Arc<Gateway>, listener: std::os::unix::net::UnixListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = UnixListener::from_std(listener)?;
        tokio::spawn(gateway.clone().watch());
        // Through the drain as well: that is when a partner may have to be frozen.
        tokio::select! {
            () = take_commands(&listener, &gateway) => {}
            () = gateway.drained() => {}
        }
        Ok::<_, io::Error>(())
    })?;
    // A file or a disk that hangs must not hold up the end.
    runtime.shutdown_background();
    Ok(())
}

async fn take_commands(listener: &UnixListener, gateway: &Arc<Gateway>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let _ = serve(stream, gateway).await;
            drop(place);
        });
    }
}

async fn serve(mut stream: UnixStream, gateway: Arc<Gateway>) -> io::Result<()> {
    let by = stream.peer_cred().map_or("unknown".to_owned(), |peer| format!("uid {}", peer.uid()));
    let (read, mut write) = stream.split();
    let mut line = String::new();
    tokio::time::timeout(TIMEOUT, BufReader::new(read.take(REQUEST_BYTES_MAX)).read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Ok(command) => obeyed(command, by, gateway).await,
        Err(error) => Answer { outcome: Outcome::Failed, lines: vec![format!("not a command: {error}")] },
    };
    let mut text = serde_json::to_string(&answer).map_err(io::Error::other)?;
    text.push('\n');
    tokio::time::timeout(TIMEOUT, write.write_all(text.as_bytes())).await?
}

/// Obeys, and puts into the audit who wanted what and what came of it. To be asked how things are is no event.
async fn obeyed(command: Command, by: String, gateway: Arc<Gateway>) -> Answer {
    let name = match &command {
        Command::Status => None,
        Command::Reload => Some("reload".to_owned()),
        Command::Freeze { partner, .. } => Some(format!("freeze {partner}")),
        Command::Thaw { partner } => Some(format!("thaw {partner}")),
        Command::Contain { partner, level, .. } => Some(format!("contain {partner} {level}")),
        Command::Release { partner, .. } => Some(format!("release {partner}")),
        Command::Standing { .. } => None,
        Command::Checkpoint => Some("checkpoint".to_owned()),
        Command::TestAlerts => Some("test alerts".to_owned()),
        Command::Epochs { .. } => None,
        Command::RotateEpochs { .. } => Some("rotate epochs".to_owned()),
        Command::DestroyEpoch { number, .. } => Some(format!("destroy epoch {number}")),
    };
    let reason = match &command {
        Command::Freeze { reason, .. }
        | Command::Contain { reason, .. }
        | Command::Release { reason, .. }
        | Command::RotateEpochs { reason }
        | Command::DestroyEpoch { reason, .. } => reason,
        _ => "",
    };
    let answer = if mentions_subject(reason) {
        let line = "the reason holds what looks like a person's number, and reasons are kept for years: leave it out";
        Answer { outcome: Outcome::Denied, lines: vec![line.to_owned()] }
    } else {
        obey(command, by.clone(), gateway.clone()).await
    };
    if let Some(name) = name {
        let outcome = match answer.outcome {
            Outcome::Done => "done",
            Outcome::Unknown => "unknown",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Denied => "denied",
        };
        // What nobody here is called may be anything, and is kept for years.
        let name = if answer.outcome == Outcome::Unknown { name.split(' ').take(1).collect() } else { name };
        let (v, time) = (event::VERSION, gateway.clock.now());
        let command = event::clipped(&name).into();
        gateway.audit.note(&Event::Command(event::Command {
            v,
            time,
            command,
            by: by.into(),
            outcome: outcome.into(),
        }));
    }
    answer
}

async fn obey(command: Command, by: String, gateway: Arc<Gateway>) -> Answer {
    match command {
        Command::Status => status(&gateway),
        Command::Reload => {
            tracing::info!(by, "told to reload");
            waited(move || reload(&gateway)).await
        }
        Command::Freeze { partner, reason } => {
            let freeze = Freeze { since: gateway.clock.now(), by: by.clone(), reason };
            set_freeze(&partner, Some(freeze), &by, gateway).await
        }
        Command::Thaw { partner } => set_freeze(&partner, None, &by, gateway).await,
        Command::Contain { partner, actor, level, end, reason } => {
            let whom = Whom { partner: &partner, actor: actor.as_deref() };
            containment::contain(whom, level, end, reason, by, gateway).await
        }
        Command::Release { partner, actor, reason } => {
            let whom = Whom { partner: &partner, actor: actor.as_deref() };
            containment::release(whom, reason, by, gateway).await
        }
        Command::Standing { partner, json } => containment::standing(&gateway, partner.as_deref(), json),
        Command::Checkpoint => checkpoint(gateway).await,
        Command::TestAlerts => test_alerts(&gateway).await,
        Command::Epochs { json } => epochs::list(&gateway, json),
        Command::RotateEpochs { reason } => waited(move || epochs::rotate(&gateway, &by, &reason)).await,
        Command::DestroyEpoch { number, reason } => {
            waited(move || epochs::destroy(&gateway, number, &by, &reason)).await
        }
    }
}

/// What waits for files, on a thread that may.
async fn waited(command: impl FnOnce() -> Answer + Send + 'static) -> Answer {
    let done = tokio::task::spawn_blocking(command).await;
    done.unwrap_or_else(|error| Answer { outcome: Outcome::Failed, lines: vec![error.to_string()] })
}

fn reload(gateway: &Gateway) -> Answer {
    match gateway.reload() {
        Reload::Swapped { generation, changed, warnings } => {
            let mut lines: Vec<_> = warnings.iter().map(|warning| format!("warning: {warning}")).collect();
            let changed = if changed.is_empty() { "no partner".to_owned() } else { changed.join(", ") };
            lines.push(format!("generation {generation} is served; changed: {changed}"));
            Answer { outcome: Outcome::Done, lines }
        }
        Reload::Refused { problems, renewed } => {
            let mut lines: Vec<_> = problems.iter().map(|problem| format!("error: {problem}")).collect();
            let generation = gateway.snapshot().generation;
            lines.push(match renewed {
                Some(_) => format!(
                    "refused; generation {generation} is the old configuration with certificates and lists read anew"
                ),
                None => format!("refused; generation {generation} goes on as before"),
            });
            Answer { outcome: Outcome::Refused, lines }
        }
    }
}

async fn checkpoint(gateway: Arc<Gateway>) -> Answer {
    let made = tokio::task::spawn_blocking(move || gateway.audit.checkpoint_now(CHECKPOINT_TIMEOUT)).await;
    match made.ok().flatten() {
        Some(size) => {
            Answer { outcome: Outcome::Done, lines: vec![format!("a checkpoint of {size} entries is signed")] }
        }
        None => {
            let line = "no checkpoint came about; the log says why".to_owned();
            Answer { outcome: Outcome::Failed, lines: vec![line] }
        }
    }
}

async fn test_alerts(gateway: &Gateway) -> Answer {
    let tested = alerts::test(gateway).await;
    let failed = tested.iter().any(|one| one.outcome.is_err());
    let mut lines: Vec<_> = tested
        .iter()
        .map(|Tested { receiver, url, outcome }| match outcome {
            Ok(status) => format!("{receiver}: {url} answers {status}"),
            Err(why) => format!("{receiver}: {url} has not taken it: {why}"),
        })
        .collect();
    if lines.is_empty() {
        lines.push("no receiver is configured; alerts are in the log, the metrics and the audit".to_owned());
    }
    Answer { outcome: if failed { Outcome::Failed } else { Outcome::Done }, lines }
}

async fn set_freeze(partner: &str, freeze: Option<Freeze>, by: &str, gateway: Arc<Gateway>) -> Answer {
    let snapshot = gateway.snapshot();
    let known = snapshot.policy.partners.iter().find(|known| *known.name == *partner);
    let before = gateway.state().freeze_of(partner);
    // One that was frozen and then taken out of the configuration can still be thawed.
    let name = match (known, &before) {
        (Some(known), _) => known.name.clone(),
        (None, Some(_)) => partner.into(),
        (None, None) => {
            let names: Vec<_> = snapshot.policy.partners.iter().map(|partner| &*partner.name).collect();
            let line = format!("no partner {partner}; there are: {}", names.join(", "));
            return Answer { outcome: Outcome::Unknown, lines: vec![line] };
        }
    };
    let (done, reason) = match &freeze {
        Some(freeze) => ("frozen", freeze.reason.clone()),
        None => ("thawed", String::new()),
    };
    gateway.state().set_freeze(&name, freeze);
    gateway.audit.note(&Event::Freeze(event::Freeze {
        v: event::VERSION,
        time: gateway.clock.now(),
        partner: (&*name).into(),
        frozen: done == "frozen",
        by: by.into(),
        reason: event::clipped(&reason).into(),
    }));
    let to = if done == "frozen" { Level::Frozen } else { Level::Open };
    gateway.metrics.containment_step(&name, to, By::Operator(by).as_str());
    tracing::warn!(partner, by, reason, "partner {done}");
    // It holds. That it is on the disk, too, is what the operator waits for.
    let kept = tokio::task::spawn_blocking(move || gateway.state().keep_orders()).await;
    let kept = kept.unwrap_or_else(|error| Err(io::Error::other(error)));
    let mut lines = match (&before, done) {
        (None, "thawed") => vec![format!("{partner} was not frozen")],
        _ => vec![format!("{partner} is {done}")],
    };
    match kept {
        Ok(()) => Answer { outcome: Outcome::Done, lines },
        Err(error) => {
            tracing::error!(partner, %error, "this will not survive a restart");
            lines.push(format!("but it will not survive a restart: {error}"));
            Answer { outcome: Outcome::Failed, lines }
        }
    }
}

fn status(gateway: &Gateway) -> Answer {
    let snapshot = gateway.snapshot();
    let policy = &snapshot.policy;
    let (partners, routes) = (policy.partners.len(), policy.routes.len());
    let mut lines = vec![
        format!("generation {} with {partners} partners and {routes} routes", snapshot.generation),
        match gateway.readiness() {
            Ok(()) => "ready".to_owned(),
            Err(why) => format!("not ready: {why}"),
        },
        format!("{} connections open", gateway.load.open()),
    ];
    let frozen = gateway.state().frozen();
    lines.extend(frozen.iter().map(|(partner, Freeze { since, by, reason })| {
        let since = Timestamp::from_unix_seconds(since.unix_seconds());
        format!("frozen: {partner}, since {since}, by {by}: {reason}")
    }));
    Answer { outcome: Outcome::Done, lines }
}
