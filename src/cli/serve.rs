//! `dwarpal serve`: runs the gateway until it is told to stop.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{FAILED, OverrideArguments, YES, complain};
use crate::clock::Clock;
use crate::config;
use crate::gateway::{Gateway, Running, StartError};
use crate::{log, service};

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

/// Waits for SIGTERM or SIGINT, then drains. A second signal ends the process at once.
fn until_told(running: Running) -> u8 {
    let workers = running.gateway.snapshot().settings.listen.workers;
    tracing::info!(address = %running.address, metrics = %running.metrics_address, workers, "serving");
    service::ready(&format!("serving {}", running.address));
    if let Err(error) = wait_for_signal() {
        eprintln!("error: cannot wait for signals: {error}");
        return FAILED;
    }
    tracing::info!("draining");
    service::stopping(running.gateway.snapshot().settings.http.drain_timeout);
    std::thread::spawn(|| {
        if wait_for_signal().is_ok() {
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

pub fn wait_for_signal() -> std::io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}
