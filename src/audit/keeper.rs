//! The audit of a running gateway: what everybody hands their entries to, and the threads behind it.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::connections::RefusedConnections;
use super::event::{self, Event, VERSION};
use super::journal::Journal;
use super::queue::{Class, Queue, Unavailable, Writer};
use crate::clock::Clock;
use crate::config::settings::Settings;
use crate::gateway::Gateway;

pub struct Audit {
    pub queue: Queue,
    pub refused: RefusedConnections,
    bell: Bell,
}

/// What is wanted of the publisher, and how far it is.
#[derive(Default)]
struct Bell {
    wanted: Mutex<Wanted>,
    rung: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Wanted {
    /// Checkpoints that were asked for, and those that were answered, with the size of the last one.
    asked: u64,
    answered: u64,
    size: Option<u64>,
    over: bool,
}

/// What is found on the disk at a start, for the threads.
pub struct Log {
    directory: PathBuf,
    journal: Journal,
    torn_bytes: u64,
}

/// The threads, until they are told to end.
pub struct Keeper {
    writer: JoinHandle<()>,
}

impl Audit {
    /// Opens the log, or says why it cannot be.
    pub fn open(settings: &Settings, clock: Clock) -> Result<(Audit, Log), String> {
        let directory = settings.audit_directory();
        let (journal, recovered) = Journal::open(&directory, 0).map_err(|error| error.to_string())?;
        let queue = Queue::new(settings.audit.queue_bytes_max, clock);
        queue.open(journal.size());
        let audit = Audit { queue, refused: RefusedConnections::default(), bell: Bell::default() };
        Ok((audit, Log { directory, journal, torn_bytes: recovered.torn_bytes }))
    }

    /// Puts something that the gateway or an operator did into the log, soon. What does not fit is told of in a gap.
    pub fn note(&self, event: &Event) {
        let _ = self.queue.put(Class::Other, None, event);
    }

    /// Has a checkpoint made at once and waits for it: entries under it.
    pub fn checkpoint_now(&self, timeout: Duration) -> Option<u64> {
        let begun = Instant::now();
        let mut wanted = self.lock();
        wanted.asked += 1;
        let mine = wanted.asked;
        self.bell.rung.notify_all();
        while wanted.answered < mine && !wanted.over {
            let left = timeout.checked_sub(begun.elapsed())?;
            wanted = self.bell.rung.wait_timeout(wanted, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        wanted.size.filter(|_| wanted.answered >= mine)
    }

    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.bell.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    /// Starts the threads, and has the start itself recorded before anything else happens.
    pub fn start(gateway: Arc<Gateway>, log: Log) -> Result<Keeper, String> {
        let Log { directory, journal, torn_bytes } = log;
        let snapshot = gateway.snapshot();
        let settings = snapshot.settings.audit.clone();
        let started = event::Start {
            v: VERSION,
            time: gateway.clock.now(),
            version: env!("CARGO_PKG_VERSION").into(),
            generation: snapshot.generation,
            digest: (&*snapshot.digest).into(),
            torn_bytes,
            after_crash: false,
        };
        let writing = gateway.clone();
        let writer = std::thread::Builder::new().name("audit-write".to_owned()).spawn(move || {
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
        kept.map_err(|Unavailable| "the audit's log cannot be written; the log lines say why".to_owned())?;
        Ok(Keeper { writer })
    }

    /// Writes all there is. Nobody may hand in anything any more.
    pub fn stop(self, gateway: &Gateway) -> io::Result<()> {
        gateway.audit.note(&Event::Stop(event::Stop { v: VERSION, time: gateway.clock.now() }));
        gateway.audit.queue.close();
        self.writer.join().map_err(|_| io::Error::other("the audit's thread panicked"))
    }
}
