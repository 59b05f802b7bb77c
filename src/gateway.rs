//! The running gateway: what its workers share, how it starts and how it stops.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use uuid::Uuid;

use crate::admin;
use crate::alerts::{self, Alerts};
use crate::audit::clock_sync::ClockStatus;
use crate::audit::{Audit, Keeper};
use crate::clock::Clock;
use crate::config::problem::Problem;
use crate::config::{Config, Origin};
use crate::containment::{By, Moved};
use crate::detect::{Alert, Step};
use crate::log::LogLimit;
use crate::metrics::Metrics;
use crate::net::observe;
use crate::pressure::Pressure;
use crate::proxy::listen::{self, Load};
use crate::snapshot::Snapshot;
use crate::state::State;
use crate::state::store::{Ledger, Recovered};
use crate::subject::epochs::EpochKeys;

/// What all workers share.
pub struct Gateway {
    snapshot: ArcSwap<Snapshot>,
    state: State,
    pub(crate) origin: Origin,
    /// One reload at a time: each compares what it read with what is served. The fingerprint of the files that the last
    /// one looked at; `None` before the first.
    pub(crate) reloading: Mutex<Option<u64>>,
    pub(crate) reload_asked: Notify,
    pub clock: Clock,
    pub metrics: Metrics,
    pub load: Arc<Load>,
    /// Log lines of refused connections, and of refused requests of nobody that is known.
    pub connection_lines: LogLimit,
    pub request_lines: LogLimit,
    pub pressure: Pressure,
    pub audit: Audit,
    pub alerts: Alerts,
    /// What was found out last about the system's clock.
    pub clock_status: ArcSwap<ClockStatus>,
    epochs: ArcSwap<EpochKeys>,
    /// One change of the epochs at a time.
    pub(crate) changing_epochs: Mutex<()>,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// No new connections; requests that are under way are finished.
    Draining,
    Stopped,
}

/// A gateway with its threads and the addresses it really listens on.
pub struct Running {
    pub gateway: Arc<Gateway>,
    pub address: SocketAddr,
    pub metrics_address: SocketAddr,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// Those of the audit, which have to outlive whoever writes to it.
    audit: Keeper,
}

/// Why a gateway did not start.
#[derive(Debug)]
pub enum StartError {
    Configuration(Vec<Problem>),
    /// What could not be done, with its cause.
    Failed(String),
}

/// How much a failing machine may forget of what was used up; a killed process forgets nothing.
const PERSIST_EVERY: Duration = Duration::from_secs(1);
/// Evidence is kept every so many of these times.
const EVIDENCE_EVERY: u32 = 30;
/// How often what was paid back is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

impl Gateway {
    /// Starts a gateway: everything is read and bound before the first connection is accepted.
    pub fn start(config: Config, clock: Clock) -> Result<Running, StartError> {
        let (state, recovered) =
            State::open(&config.settings.state_directory()).map_err(|error| StartError::Failed(error.to_string()))?;
        if recovered != Recovered::default() {
            let Recovered { facts, torn_bytes } = recovered;
            tracing::info!(facts, torn_bytes, "limits of an earlier run go on");
        }
        let origin = config.origin.clone();
        let snapshot = Snapshot::build(config, &state).map_err(StartError::Configuration)?;
        let settings = snapshot.settings.clone();
        let address = settings.listen.address;
        let failed = |what: String| move |error: &dyn std::fmt::Display| StartError::Failed(format!("{what}: {error}"));
        let (epochs, epoch_changes) = settings
            .keyring()
            .open(clock.now(), settings.epochs.overlap)
            .map_err(|error| StartError::Failed(error.to_string()))?;
        let metrics = Metrics::new().map_err(|error| failed("metrics".to_owned())(&error))?;
        let workers = settings.listen.workers;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| failed("runtime".to_owned())(&error))?;
        let (listeners, observer) = {
            // Sockets of tokio are made inside a runtime, whichever.
            let _entered = runtime.enter();
            let listeners = listen::bind(address, workers)
                .map_err(|error| failed(format!("cannot listen on {address}"))(&error))?;
            let observed = settings.metrics.address;
            let observer = std::net::TcpListener::bind(observed)
                .map_err(|error| failed(format!("cannot listen on {observed} for metrics"))(&error))?;
            (listeners, observer)
        };
        let local = |listener: &std::net::TcpListener| {
            listener.local_addr().map_err(|error| failed("listener".to_owned())(&error))
        };
        let (address, metrics_address) = (local(&listeners[0])?, local(&observer)?);
        let socket = settings.control_socket();
        let commands = admin::bind(&socket)
            .map_err(|error| failed(format!("cannot take commands on {}", socket.display()))(&error))?;
        let (load, inboxes) = Load::of(workers);
        let pressure = Pressure::of(&settings);
        let (phase, _) = watch::channel(Phase::Serving);
        let (audit, log) = Audit::open(&settings, clock.clone()).map_err(StartError::Failed)?;
        let (alerts, raised) = Alerts::new(settings.alerts.queue_max, clock.clone());
        let gateway = Arc::new(Gateway {
            snapshot: ArcSwap::from_pointee(snapshot),
            state,
            origin,
            reloading: Mutex::new(None),
            reload_asked: Notify::new(),
            clock,
            metrics,
            load: Arc::new(load),
            connection_lines: LogLimit::of_connections(),
            request_lines: LogLimit::of_requests(),
            pressure,
            audit,
            alerts,
            clock_status: ArcSwap::default(),
            epochs: ArcSwap::from_pointee(epochs),
            changing_epochs: Mutex::new(()),
            phase,
        });
        gateway.fold_audit().map_err(|error| failed("evidence".to_owned())(&error))?;
        type Task = Box<dyn FnOnce(Arc<Gateway>) -> io::Result<()> + Send>;
        let mut tasks: Vec<(String, Task)> = Vec::new();
        for (index, (listener, inbox)) in listeners.into_iter().zip(inboxes).enumerate() {
            let task = move |gateway| listen::run(gateway, index, listener, inbox);
            tasks.push((format!("worker-{index}"), Box::new(task)));
        }
        tasks.push(("control".to_owned(), Box::new(move |gateway| admin::run(gateway, commands))));
        tasks.push(("alerts".to_owned(), Box::new(move |gateway| alerts::run(&gateway, raised))));
        tasks.push(("persist".to_owned(), Box::new(persist)));
        tasks.push(("observe".to_owned(), Box::new(move |gateway| observe::run(runtime, gateway, observer))));
        let keeper = Keeper::start(&gateway, log).map_err(StartError::Failed)?;
        epoch_changes.iter().for_each(|change| gateway.epoch_changed(change));
        let mut threads = Vec::new();
        for (name, task) in tasks {
            let gateway = gateway.clone();
            let spawned = std::thread::Builder::new().name(name).spawn(move || task(gateway));
            threads.push(spawned.map_err(|error| failed("thread".to_owned())(&error))?);
        }
        Ok(Running { gateway, address, metrics_address, threads, audit: keeper })
    }

    /// The snapshot of this moment. Load it once for each unit of work.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts another snapshot in the place of the one that is served.
    pub(crate) fn swap(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Tells operators of something, and of the step that it led to.
    pub fn raise(&self, alert: Alert, decision: Option<Uuid>) {
        if let Some(Step { from, to, until }) = alert.moved {
            let actor = alert.actor.as_ref().map(|actor| self.epochs().current().actor(actor));
            // Its reasons name the actor in clear; they are in the alert's own entry, without that.
            let (by, reason) = (By::Automatic, format!("alert {}", alert.detector));
            self.moved(&Moved { partner: &alert.partner, actor, from, to, until, by, reason: &reason });
        }
        self.alerts.raise(alert, decision);
    }

    /// Keeps what the ledger holds beyond this process; whoever asked must not go on after an error.
    pub fn keep(&self, ledger: &mut Ledger) -> io::Result<()> {
        self.state.keep(ledger)
    }

    /// The keys of this moment that turn people into tokens. Load them once for each unit of work.
    pub fn epochs(&self) -> Arc<EpochKeys> {
        self.epochs.load_full()
    }

    pub(crate) fn swap_epochs(&self, epochs: EpochKeys) {
        self.epochs.store(Arc::new(epochs));
    }

    /// Whether a balancer should send partners here. `Err` says why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        if self.is_draining() {
            Err("stopping")
        } else if self.state.is_broken() {
            Err("what partners use up cannot be kept on the disk")
        } else if self.audit.queue.is_broken() {
            Err("the audit's log cannot be written")
        } else if self.pressure.descriptors_short() {
            Err("new connections are shed: too few file descriptors")
        } else if self.pressure.memory_short(self.load.open()) {
            Err("new connections are shed: too little memory")
        } else {
            Ok(())
        }
    }

    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() != Phase::Serving
    }

    /// Brings to the disk what has to outlive the machine; ends with the gateway.
    async fn persist(&self) {
        let (mut rotation_fails, mut evidence_due) = (false, 0_u32);
        loop {
            tokio::select! {
                () = tokio::time::sleep(PERSIST_EVERY) => {}
                () = self.drained() => return,
            }
            self.rotate_when_due(&mut rotation_fails);
            self.expire_orders();
            evidence_due += 1;
            if evidence_due >= EVIDENCE_EVERY {
                evidence_due = 0;
                self.keep_evidence();
            }
            let broken = self.state.is_broken();
            // What failed was logged where it did.
            if self.state.persist(self.clock.now()).is_ok() && broken {
                tracing::info!("the state is kept again");
            }
        }
    }

    /// Resolves when the gateway begins to stop.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when no worker needs to run any more.
    pub async fn drained(&self) {
        self.reached(Phase::Stopped).await;
    }

    /// Forgets now and then what was paid back; ends with the gateway.
    pub async fn sweep(&self) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SWEEP_EVERY) => self.state.sweep(self.clock.now()),
                () = self.drained() => return,
            }
        }
    }

    async fn reached(&self, phase: Phase) {
        let mut phases = self.phase.subscribe();
        // The sender is a field of this gateway: it cannot be gone while this borrows it.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }

    fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }
}

/// The thread of the disk, which may hang: that must hold up neither a freeze nor the metrics.
fn persist(gateway: Arc<Gateway>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(gateway.persist());
    Ok(())
}

impl Running {
    /// Stops accepting, lets requests finish for as long as the configuration says, and joins the threads.
    pub fn stop(self) -> io::Result<()> {
        let gateway = &self.gateway;
        gateway.enter(Phase::Draining);
        let drain_timeout = gateway.snapshot().settings.http.drain_timeout;
        let begun = std::time::Instant::now();
        while !gateway.load.is_over() && begun.elapsed() < drain_timeout {
            std::thread::sleep(Duration::from_millis(20));
        }
        let left = gateway.load.open();
        if left > 0 {
            tracing::warn!(connections = left, "drain timeout: connections are closed");
        }
        gateway.enter(Phase::Stopped);
        for thread in self.threads {
            thread.join().map_err(|_| io::Error::other("a thread panicked"))??;
        }
        self.audit.stop(gateway)?;
        gateway.keep_evidence();
        gateway.state.rewrite(gateway.clock.now())
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StartError::Configuration(problems) => {
                for (at, problem) in problems.iter().enumerate() {
                    if at > 0 {
                        writeln!(f)?;
                    }
                    write!(f, "{problem}")?;
                }
                Ok(())
            }
            StartError::Failed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for StartError {}
