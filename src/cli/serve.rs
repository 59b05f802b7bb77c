//! `dwarpal serve`: runs the gateway until it is told to stop.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{FAILED, OverrideArguments, YES, complain};
use crate::clock::Clock;
use crate::config;
use crate::gateway::{Gateway, Running, StartError};
use crate::log;

#[derive(Args)]
pub struct Arguments {
    /// Directory with gateway.toml, partners/ and cases/
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    #[command(flatten)]
    overrides: OverrideArguments,
}

pub fn run(arguments: Arguments) -> u8 {
    let config = match config::load(&arguments.config, &arguments.overrides.overrides()) {
        Ok(config) => config,
        Err(problems) => return complain(&problems),
    };
    log::init(config.settings.log);
    raise_open_files(config.settings.listen.connections_max);
    match Gateway::start(config, Clock::system()) {
        Ok(running) => until_told(running),
        Err(StartError::Configuration(problems)) => complain(&problems),
        Err(StartError::Failed(what)) => {
            eprintln!("error: {what}");
            FAILED
        }
    }
}

/// Shells start programs with a soft limit of 1,024 open files; the hard limit is what the operator meant. Each partner's
/// connection may need one to a backend.
fn raise_open_files(connections_max: usize) {
    let allowed = rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap_or_default();
    let wanted = 2 * connections_max as u64 + 64;
    if allowed < wanted {
        tracing::warn!(allowed, wanted, "too few open files for connections_max; accepting will fail first");
    }
}

/// Reloads upon SIGHUP, until SIGTERM or SIGINT; then drains. A second of these ends the process at once.
fn until_told(running: Running) -> u8 {
    let workers = running.gateway.snapshot().settings.listen.workers;
    let told = until_end(async || {
        let mut hang_up = signal(SignalKind::hangup())?;
        // Only now: whoever reads this may signal at once, and a signal that is not waited for ends the process.
        tracing::info!(address = %running.address, metrics = %running.metrics_address, workers, "serving");
        loop {
            hang_up.recv().await;
            running.gateway.reload();
        }
    });
    if let Err(error) = told {
        eprintln!("error: cannot wait for signals: {error}");
        return FAILED;
    }
    tracing::info!("draining");
    std::thread::spawn(|| {
        if wait_for_end().is_ok() {
            std::process::exit(i32::from(FAILED));
        }
    });
    match running.stop() {
        Ok(()) => YES,
        Err(error) => {
            eprintln!("error: {error}");
            FAILED
        }
    }
}

/// Waits for SIGTERM or SIGINT.
pub fn wait_for_end() -> std::io::Result<()> {
    until_end(async || std::future::pending().await)
}

/// Does something else until SIGTERM or SIGINT.
fn until_end(meanwhile: impl AsyncFnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
            failed = meanwhile() => failed,
        }
    })
}
