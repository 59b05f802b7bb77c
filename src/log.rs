//! Structured log lines on standard error: JSON, or for people. They hold tokens and names, never an identifier.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

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
