//! Structured log lines on standard error: JSON, or for people. They hold tokens and names, never an identifier.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

use crate::clock::Timestamp;
use crate::config::settings::{Log, LogFormat, LogLevel};

/// Sets up the process's log; the first call wins. Only the gateway's own events are written: libraries log what they
/// parse, and that would be partners' headers and bodies.
pub fn init(settings: Log) {
    let level = match settings.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let ours = Targets::new().with_target("dwarpal", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
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
