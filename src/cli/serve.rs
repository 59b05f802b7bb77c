//! `dwarpal serve`: runs the gateway until it is told to stop.

use std::io;
use std::path::PathBuf;

use clap::Args;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{FAILED, OverrideArguments, YES, complain};
use crate::clock::Clock;
use crate::config;
use crate::gateway::{Gateway, Running, StartError};
use crate::sandbox::{self, Sandbox};
use crate::snapshot::Snapshot;
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
    let code = serve(&arguments);
    log::flush();
    code
}

fn serve(arguments: &Arguments) -> u8 {
    // First of all: a signal that nobody waits for ends the process. One that comes during the start counts after it.
    let signals = match Signals::listen().and_then(Signals::with_hang_up) {
        Ok(signals) => signals,
        Err(error) => {
            eprintln!("error: cannot wait for signals: {error}");
            return FAILED;
        }
    };
    let config = match config::load_with(&arguments.config, &arguments.overrides.overrides(), Snapshot::file_problems) {
        Ok(config) => config,
        Err(problems) => return complain(&problems),
    };
    log::init(config.settings.log);
    raise_open_files(config.settings.listen.connections_max);
    let sandbox = sandbox::enter(&config, &arguments.config);
    // The process's second thread: no earlier, so that it is confined as well.
    let sandbox = match log::start().map_err(|error| format!("log: {error}")).and(sandbox) {
        Ok(sandbox) => sandbox,
        Err(what) => {
            eprintln!("error: {what}");
            return FAILED;
        }
    };
    match Gateway::start(config, Clock::system()) {
        Ok(running) => until_told(running, sandbox, signals),
        Err(StartError::Configuration(mut problems)) => {
            sandbox::explain(&mut problems);
            complain(&problems)
        }
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
        tracing::warn!(allowed, wanted, "too few open files for connections_max; new connections are shed before");
    }
}

/// Reloads upon SIGHUP, until SIGTERM or SIGINT; then drains. A second of these ends the process at once.
fn until_told(running: Running, sandbox: Sandbox, mut signals: Signals) -> u8 {
    let workers = running.gateway.snapshot().settings.listen.workers;
    let Sandbox { landlock, seccomp } = sandbox;
    running.gateway.metrics.sandbox("landlock", landlock.is_active());
    running.gateway.metrics.sandbox("seccomp", seccomp.is_active());
    let (address, metrics) = (running.address, running.metrics_address);
    tracing::info!(%address, %metrics, workers, %landlock, %seccomp, "serving");
    service::ready(&format!("serving {address}; landlock {landlock}, seccomp {seccomp}"));
    signals.wait(|| running.gateway.ask_for_reload());
    tracing::info!("draining");
    service::stopping(running.gateway.snapshot().settings.http.drain_timeout);
    std::thread::spawn(move || {
        signals.wait(|| ());
        tracing::warn!("a second signal: the process ends at once");
        log::flush();
        std::process::exit(i32::from(FAILED));
    });
    match running.stop() {
        Ok(()) => YES,
        Err(error) => {
            // By now standard error may be read by nobody.
            tracing::error!(%error, "did not end in order");
            FAILED
        }
    }
}

/// SIGTERM and SIGINT, and SIGHUP if it is asked for, from when this was made on.
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    pub fn listen() -> io::Result<Signals> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        drop(entered);
        Ok(Signals { runtime, terminate, interrupt, hang_up: None })
    }

    pub fn with_hang_up(mut self) -> io::Result<Signals> {
        let entered = self.runtime.enter();
        let hang_up = signal(SignalKind::hangup())?;
        drop(entered);
        self.hang_up = Some(hang_up);
        Ok(self)
    }

    /// Waits for the end, and calls `hung_up` for each SIGHUP before.
    pub fn wait(&mut self, hung_up: impl Fn()) {
        let Signals { runtime, terminate, interrupt, hang_up } = self;
        let mut hangs_up = async || match hang_up {
            Some(hang_up) => hang_up.recv().await,
            None => std::future::pending().await,
        };
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hangs_up() => hung_up(),
                }
            }
        });
    }
}
