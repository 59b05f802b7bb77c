//! The audit of a running gateway: what everybody hands their entries to, and the two threads behind it. One makes entries
//! durable, the other makes of them what others can verify; nobody who asks waits for that one.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connections::RefusedConnections;
use super::event::{self, Event, VERSION};
use super::journal::{Damage, Journal};
use super::publish::{self, Publisher};
use super::queue::{Class, Queue, Unavailable, Writer};
use super::read::Log;
use super::send::{self, Outbox, Signed};
use super::{index, key, layout};
use crate::clock::{Clock, Timestamp};
use crate::config::settings::Settings;
use crate::gateway::Gateway;

pub struct Audit {
    pub queue: Queue,
    pub refused: RefusedConnections,
    wanted: Mutex<Wanted>,
    rung: Condvar,
}

/// What is wanted of the publisher, and how far it is.
#[derive(Clone, Copy, Default)]
struct Wanted {
    /// Checkpoints that were asked for, and those that were answered, with the size of the last one.
    asked: u64,
    answered: u64,
    size: Option<u64>,
    /// Everything is written: one more checkpoint, and that was it.
    over: bool,
}

/// What was found on the disk at a start, for the threads.
pub struct Opened {
    directory: PathBuf,
    journal: Journal,
    publisher: Publisher,
    torn_bytes: u64,
    after_crash: bool,
}

/// The threads, until they are told to end.
pub struct Keeper {
    writer: JoinHandle<()>,
    publisher: JoinHandle<()>,
    sender: JoinHandle<io::Result<()>>,
}

/// How often the publisher looks whether there is anything to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// How often what is too old is looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(3_600);

impl Audit {
    /// Opens the log, or says why it cannot be.
    pub fn open(settings: &Settings, clock: Clock) -> Result<(Audit, Opened), String> {
        let directory = settings.audit_directory();
        let remembered = settings.state_directory().join("audit.checkpoint");
        let own = directory.join(layout::CHECKPOINT);
        let checkpoints = [own.as_path(), remembered.as_path()];
        let missing = checkpoints.map(|checkpoint| !checkpoint.exists());
        let signer = key::of_log(&settings.audit_key(), &settings.audit.origin, checkpoints).map_err(told)?;
        let publishing = publish::Settings { directory: directory.clone(), remembered, signer, index: index::build };
        let (journal, recovered, publisher) = super::open(publishing).map_err(told)?;
        let (size, torn_bytes) = (journal.size(), recovered.torn_bytes);
        if torn_bytes > 0 {
            tracing::warn!(size, torn_bytes, "a torn end of the audit's journal was cut off");
        }
        if size > 0 && missing.contains(&true) {
            let [audit, state] = missing.map(|missing| if missing { "missing" } else { "there" });
            tracing::warn!(
                size,
                audit,
                state,
                "checkpoints of the audit were missing and are signed anew: verify it since one that was kept elsewhere"
            );
        }
        let after_crash = journal.size() > 0 && !ends_in_order(&directory, journal.size());
        let queue = Queue::new(settings.audit.queue_bytes_max, clock);
        queue.open(journal.size());
        let (wanted, rung) = Default::default();
        let audit = Audit { queue, refused: RefusedConnections::default(), wanted, rung };
        Ok((audit, Opened { directory, journal, publisher, torn_bytes, after_crash }))
    }

    /// Puts something that the gateway or an operator did into the log, soon. What does not fit is told of in a gap.
    pub fn note(&self, event: &Event) {
        let _ = self.queue.put(Class::Other, None, event);
    }

    /// Has a checkpoint made at once and waits for it: entries under it. `None` where none came about in time.
    pub fn checkpoint_now(&self, timeout: Duration) -> Option<u64> {
        let begun = Instant::now();
        let mut wanted = self.lock();
        wanted.asked += 1;
        let mine = wanted.asked;
        self.rung.notify_all();
        while wanted.answered < mine && !wanted.over {
            let left = timeout.checked_sub(begun.elapsed())?;
            wanted = self.rung.wait_timeout(wanted, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        wanted.size.filter(|_| wanted.answered >= mine)
    }

    /// What is wanted now, or after a while.
    fn wait(&self) -> Wanted {
        let wanted = self.lock();
        if wanted.asked > wanted.answered || wanted.over {
            return *wanted;
        }
        *self.rung.wait_timeout(wanted, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0
    }

    fn answer(&self, asked: u64, size: Option<u64>) {
        let mut wanted = self.lock();
        (wanted.answered, wanted.size) = (asked, size);
        drop(wanted);
        self.rung.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whether the last entry says that its gateway stopped.
fn ends_in_order(directory: &std::path::Path, size: u64) -> bool {
    let last = Log::open(directory).and_then(|mut log| log.entry(size - 1));
    last.is_ok_and(|last| last.is_some_and(|last| matches!(Event::from_json(&last), Ok(Event::Stop(_)))))
}

impl Keeper {
    /// Starts the threads, and has the start itself recorded before anything else happens.
    pub fn start(gateway: &Arc<Gateway>, opened: Opened) -> Result<Keeper, String> {
        let Opened { directory, journal, publisher, torn_bytes, after_crash } = opened;
        let snapshot = gateway.snapshot();
        let settings = snapshot.settings.audit.clone();
        let started = event::Start {
            v: VERSION,
            time: gateway.clock.now(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: snapshot.generation,
            digest: (&*snapshot.digest).into(),
            torn_bytes,
            after_crash,
        };
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let writing = gateway.clone();
        let writer = thread("audit-write").spawn(move || {
            let written = |took: Duration, entries: u64| writing.metrics.audit_written(took, entries);
            let writer = Writer {
                queue: &writing.audit.queue,
                directory: &directory,
                interval: settings.interval,
                reserve_bytes: settings.reserve_bytes,
                written: &written,
            };
            writer.run(journal);
        });
        let writer = writer.map_err(|error| format!("thread: {error}"))?;
        let kept = gateway.audit.queue.keep_blocking(Class::Other, &Event::Start(started));
        kept.map_err(|Unavailable| "the audit cannot be written; the log lines say why".to_owned())?;
        let (outbox, sending) = send::outbox();
        let publishing = gateway.clone();
        let publisher = thread("audit-publish").spawn(move || Publishing::of(&publishing, publisher, outbox).run());
        let publisher = publisher.map_err(|error| format!("thread: {error}"))?;
        let sender = gateway.clone();
        let sender = thread("audit-send").spawn(move || sending.run(&sender));
        Ok(Keeper { writer, publisher, sender: sender.map_err(|error| format!("thread: {error}"))? })
    }

    /// Writes all there is, and signs it. Nobody may hand in anything any more.
    pub fn stop(self, gateway: &Gateway) -> io::Result<()> {
        let audit = &gateway.audit;
        let now = gateway.clock.now();
        audit.refused.take(now).iter().for_each(|event| audit.note(event));
        audit.note(&Event::Stop(event::Stop { v: VERSION, time: now }));
        audit.queue.close();
        let panicked = |_| io::Error::other("a thread of the audit panicked");
        self.writer.join().map_err(panicked)?;
        audit.lock().over = true;
        audit.rung.notify_all();
        self.publisher.join().map_err(panicked)?;
        self.sender.join().map_err(panicked)?
    }
}

/// The publisher's thread.
struct Publishing<'g> {
    gateway: &'g Gateway,
    publisher: Publisher,
    outbox: Outbox,
    /// Entries when the last checkpoint was made, its own event included.
    signed: u64,
    signed_at: Instant,
    minute: (Instant, Timestamp),
    pruned_at: Option<Instant>,
    /// What failed last, so that it is logged once.
    failing: Option<String>,
}

impl<'g> Publishing<'g> {
    fn of(gateway: &'g Gateway, publisher: Publisher, outbox: Outbox) -> Publishing<'g> {
        let signed = publisher.size();
        let minute = (Instant::now(), gateway.clock.now());
        Publishing {
            gateway,
            publisher,
            outbox,
            signed,
            signed_at: Instant::now(),
            minute,
            pruned_at: None,
            failing: None,
        }
    }

    fn run(mut self) {
        loop {
            let wanted = self.gateway.audit.wait();
            let asked = wanted.asked > wanted.answered;
            let size = match self.step(asked, wanted.over) {
                Ok(size) => {
                    if self.failing.take().is_some() {
                        tracing::info!("the audit is published again");
                    }
                    Some(size)
                }
                Err(damage) => {
                    self.complain(&damage);
                    None
                }
            };
            if asked {
                self.gateway.audit.answer(wanted.asked, size);
            }
            if wanted.over {
                return;
            }
            if let Err(damage) = self.look_after() {
                self.complain(&damage);
            }
        }
    }

    /// Publishes what has become durable, and signs it where that is due: entries under the newest checkpoint.
    fn step(&mut self, asked: bool, over: bool) -> Result<u64, Damage> {
        let (audit, settings) = (&self.gateway.audit, &self.gateway.snapshot().settings.audit);
        if self.minute.0.elapsed() >= MINUTE {
            audit.refused.take(self.minute.1).iter().for_each(|event| audit.note(event));
            self.minute = (Instant::now(), self.gateway.clock.now());
        }
        let due = self.signed_at.elapsed() >= settings.checkpoint_interval && audit.queue.durable() > self.signed;
        if (due || asked) && !over {
            // Should the rest fail, the next one is due after the interval: its events must not fill a log that nobody signs.
            self.signed_at = Instant::now();
            // Comes to nothing where the log cannot be written; what is there is signed all the same.
            let _ = audit.queue.keep_blocking(Class::Other, &Event::Checkpoint(self.checkpoint_event()));
        }
        self.publisher.catch_up(audit.queue.durable())?;
        if let Some(Signed { text, signatures }) = self.outbox.take() {
            self.publisher.add_signatures(&text, signatures)?;
        }
        if due || asked || over {
            self.publisher.checkpoint()?;
            (self.signed, self.signed_at) = (self.publisher.size(), Instant::now());
            let now = self.gateway.clock.now();
            let signed = &self.publisher.last().checkpoint;
            self.gateway.metrics.audit_checkpoint(signed.size, now);
            tracing::info!(size = signed.size, root = %signed.root, origin = signed.origin, "checkpoint");
            self.outbox.put(&self.publisher.last().note);
        }
        Ok(self.publisher.last().checkpoint.size)
    }

    fn checkpoint_event(&self) -> event::Checkpoint<'static> {
        let clock = self.gateway.clock_status.load();
        event::Checkpoint {
            v: VERSION,
            time: self.gateway.clock.now(),
            clock_synchronised: clock.synchronised,
            clock_offset_seconds: clock.offset,
            clock_max_error_seconds: clock.max_error,
            clock_stratum: clock.stratum,
            clock_source: clock.source.as_str().into(),
        }
    }

    /// Seals what is complete, prunes what is too old, and looks at a piece of what is there.
    fn look_after(&mut self) -> Result<(), Damage> {
        if let Some(segment) = self.publisher.seal()? {
            tracing::info!(segment, "a segment of the audit is sealed");
        }
        if self.pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
            self.pruned_at = Some(Instant::now());
            self.prune()?;
        }
        self.publisher.scrub_step().map(drop)
    }

    fn prune(&mut self) -> Result<(), Damage> {
        let retain = self.gateway.snapshot().settings.audit.retain;
        let now = self.gateway.clock.now();
        let before = Timestamp::from_nanos(now.as_nanos().saturating_sub(retain.as_nanos() as u64));
        let time_of = |entry: &[u8]| Event::from_json(entry).ok().map(|event| event.time());
        let segments = self.publisher.prunable(before, time_of)?;
        if segments.is_empty() {
            return Ok(());
        }
        if !self.gateway.clock_status.load().synchronised {
            // A clock that was set ahead by mistake would have evidence removed for good.
            tracing::warn!(
                "entries of the audit are older than audit.retain, and stay: nobody says that the clock is right"
            );
            return Ok(());
        }
        let Range { start, end } = segments;
        let (from, until) = (start * layout::SEGMENT, end * layout::SEGMENT);
        let pruned = event::Pruned { v: VERSION, time: now, from, until, before };
        // Only what the log itself says may go.
        if self.gateway.audit.queue.keep_blocking(Class::Other, &Event::Pruned(pruned)).is_ok() {
            self.publisher.prune(segments)?;
            tracing::info!(from, until, "entries of the audit were pruned");
        }
        Ok(())
    }

    fn complain(&mut self, damage: &Damage) {
        let damage = damage.to_string();
        if self.failing.as_ref() != Some(&damage) {
            tracing::error!(damage, "the audit cannot be published");
            self.gateway.metrics.audit_damage();
        }
        self.failing = Some(damage);
    }
}
