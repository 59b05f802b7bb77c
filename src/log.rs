//! Structured log lines on standard error: JSON, or for people. They hold tokens and names, never an identifier.
//!
//! Nobody waits for standard error: it may be a pipe that is not read. Lines go through a queue with an end, and a thread
//! of its own writes them; what does not fit is lost and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::clock::Timestamp;
use crate::config::settings::{Log, LogFormat, LogLevel};

/// Sets up the process's log; the first call wins. Only the gateway's own events are written: libraries log what they
/// parse, and that would be partners' headers and bodies. Lines are kept until [`start`].
pub fn init(settings: Log) {
    let level = match settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let ours = Targets::new().with_target("dwarpal", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(|| &QUEUE).with_target(false);
    let registry = tracing_subscriber::registry();
    // A second call, as in tests that start several gateways, changes nothing.
    let _ = match settings.format {
        LogFormat::Json => {
            let json = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            registry.with(json.with_filter(ours)).try_init()
        }
        LogFormat::Human => registry.with(lines.with_ansi(false).with_filter(ours)).try_init(),
    };
}

/// Starts the thread that writes. It is confined as its starter is, so this comes after the sandbox.
pub fn start() -> io::Result<()> {
    let writer = std::thread::Builder::new().name("log".to_owned());
    writer.spawn(|| QUEUE.write_on(&mut io::stderr())).map(drop)
}

/// Waits until what was logged before is written, but not for a reader who has stopped reading.
pub fn flush() {
    QUEUE.flush(FLUSH_TIMEOUT);
}

/// Lines that did not fit, or could not be written.
pub fn lines_lost() -> u64 {
    QUEUE.lost.load(Ordering::Relaxed)
}

/// Some two thousand lines: seconds of refusals at the limits of [`LogLimit`], for a reader who is only slow.
const QUEUED_BYTES_MAX: usize = 1 << 20;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The process has one standard error, and so one queue.
static QUEUE: Queue = Queue::new(QUEUED_BYTES_MAX);

/// Lines on their way to standard error.
struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
    lost: AtomicU64,
}

struct Waiting {
    /// Whole lines.
    lines: Vec<u8>,
    /// Bytes that were ever put in, and of these the ones that are done with.
    queued: u64,
    done: u64,
}

impl Queue {
    const fn new(bytes_max: usize) -> Queue {
        let waiting = Waiting { lines: Vec::new(), queued: 0, done: 0 };
        Queue { bytes_max, waiting: Mutex::new(waiting), changed: Condvar::new(), lost: AtomicU64::new(0) }
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.lines.len() + line.len() > self.bytes_max {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.lines.extend_from_slice(line);
        waiting.queued += line.len() as u64;
        drop(waiting);
        self.changed.notify_all();
    }

    /// Writes what comes, for ever. Lines that cannot be written are lost; later ones may be luckier.
    fn write_on(&self, output: &mut impl Write) -> ! {
        let mut told = 0;
        loop {
            let written = self.write_once(output).is_ok();
            let lost = self.lost.load(Ordering::Relaxed);
            // Not to somebody who does not listen: this is a line as well.
            if written && lost > told {
                tracing::warn!(lines = lost - told, "log lines were lost: standard error is not read fast enough");
                told = lost;
            }
        }
    }

    /// Waits for lines and writes them.
    fn write_once(&self, output: &mut impl Write) -> io::Result<()> {
        let waiting = self.changed.wait_while(self.lock(), |waiting| waiting.lines.is_empty());
        let lines = std::mem::take(&mut waiting.unwrap_or_else(PoisonError::into_inner).lines);
        let written = output.write_all(&lines);
        if written.is_err() {
            let count = lines.iter().filter(|byte| **byte == b'\n').count();
            self.lost.fetch_add(count as u64, Ordering::Relaxed);
        }
        self.lock().done += lines.len() as u64;
        self.changed.notify_all();
        written
    }

    fn flush(&self, timeout: Duration) {
        let waiting = self.lock();
        let until = waiting.queued;
        let _ = self.changed.wait_timeout_while(waiting, timeout, |waiting| waiting.done < until);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call is one line: that is how tracing's subscriber writes.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// At most so many log lines a second of a kind that a stranger can cause; the rest is counted.
#[derive(Debug)]
pub struct LogLimit {
    lines_per_second_max: u32,
    second: Mutex<(u64, u32)>,
    unlogged: AtomicU64,
}

impl LogLimit {
    /// For what strangers in an allowed network can cause.
    pub fn of_connections() -> LogLimit {
        LogLimit::new(20)
    }

    /// For one partner's refused requests.
    pub fn of_requests() -> LogLimit {
        LogLimit::new(100)
    }

    fn new(lines_per_second_max: u32) -> LogLimit {
        LogLimit { lines_per_second_max, second: Mutex::default(), unlogged: AtomicU64::new(0) }
    }

    /// Calls `log` with the number of lines left out since the last, or leaves this one out too.
    pub fn note(&self, now: Timestamp, log: impl FnOnce(u64)) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if second.0 != now.unix_seconds() {
            *second = (now.unix_seconds(), 0);
        }
        second.1 += 1;
        let within = second.1 <= self.lines_per_second_max;
        drop(second);
        if within {
            log(self.unlogged.swap(0, Ordering::Relaxed));
        } else {
            self.unlogged.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_or_cannot_be_written_is_lost_and_counted() {
        let queue = Queue::new(10);
        let lost = || queue.lost.load(Ordering::Relaxed);
        for line in ["first\n", "second\n", "2nd\n"] {
            queue.put(line.as_bytes());
        }
        assert_eq!(lost(), 1);
        let mut written = Vec::new();
        assert!(queue.write_once(&mut written).is_ok());
        assert_eq!(String::from_utf8_lossy(&written), "first\n2nd\n");
        queue.put(b"a\n");
        queue.put(b"b\n");
        // It has room for one of them.
        assert!(queue.write_once(&mut [0; 2].as_mut_slice()).is_err());
        assert_eq!(lost(), 3);
        queue.flush(Duration::MAX);
    }

    #[test]
    fn a_flush_waits_for_a_writer_and_not_for_ever() {
        let queue = Queue::new(10);
        queue.flush(Duration::MAX);
        queue.put(b"line\n");
        queue.flush(Duration::from_millis(1));
        assert_eq!(queue.lock().done, 0, "nobody wrote");
        std::thread::scope(|scope| {
            scope.spawn(|| queue.write_once(&mut io::sink()));
            queue.flush(Duration::MAX);
            assert_eq!(queue.lock().done, 5);
        });
    }
}
