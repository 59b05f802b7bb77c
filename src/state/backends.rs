//! How is each server behind the gateway? What workers, health checks and generations of the configuration share about
//! backends: counts, health, ejection and the circuit breaker, found by the backend's name and the server's address.
//!
//! The path of a request that goes well touches atomics only. Locks are taken when something fails.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::settings::{self, Ejection, Health};

/// Those of all snapshots that are in use. What no snapshot names any more is forgotten.
#[derive(Debug, Default)]
pub struct Backends {
    entries: Mutex<HashMap<Arc<str>, Weak<BackendState>>>,
}

/// What is known of one backend as a whole.
#[derive(Debug)]
pub struct BackendState {
    pub breaker: Breaker,
    /// Locked to decide on an ejection too, so that two workers cannot eject more than the share that is allowed.
    servers: Mutex<HashMap<SocketAddr, Weak<ServerState>>>,
}

/// What is known of one server.
#[derive(Debug)]
pub struct ServerState {
    pub address: SocketAddr,
    /// The address as metrics and logs show it.
    pub label: Box<str>,
    in_flight: AtomicU32,
    /// Requests that failed since one went well.
    failures: AtomicU32,
    /// Nanoseconds since the epoch, as all times here; 0 is never.
    ejected_until: AtomicU64,
    /// When health checks brought it back.
    up_since: AtomicU64,
    /// Health checks say that it is not well.
    down: AtomicBool,
    /// Checks in a row that said the opposite of `down`.
    contrary: AtomicU32,
    check_due: AtomicU64,
}

/// A request at a server; dropping it counts it out.
#[derive(Debug)]
pub struct InFlight(Arc<ServerState>);

/// What a health check changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    Up,
    Down,
}

/// A server that is back gets at least this part of its share.
const WEIGHT_MIN: f64 = 0.1;

impl Backends {
    /// A backend seen for the first time starts with nothing known against it.
    pub fn backend(&self, name: &Arc<str>) -> Arc<BackendState> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = entries.get(name).and_then(Weak::upgrade) {
            return known;
        }
        entries.retain(|_, entry| entry.strong_count() > 0);
        let new = Arc::new(BackendState { breaker: Breaker::default(), servers: Mutex::default() });
        entries.insert(name.clone(), Arc::downgrade(&new));
        new
    }
}

impl BackendState {
    /// A server seen for the first time is taken for well.
    pub fn server(&self, address: SocketAddr) -> Arc<ServerState> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = servers.get(&address).and_then(Weak::upgrade) {
            return known;
        }
        servers.retain(|_, entry| entry.strong_count() > 0);
        let new = Arc::new(ServerState::new(address));
        servers.insert(address, Arc::downgrade(&new));
        new
    }

    /// Counts a failed request of a server, and ejects the server if that was one too many and enough others are left.
    /// `true` where it did.
    pub fn failed(&self, server: &ServerState, all: &[Arc<ServerState>], ejection: &Ejection, now: Timestamp) -> bool {
        let failures = server.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures < ejection.after {
            return false;
        }
        let _deciding = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let out = all.iter().filter(|other| other.is_ejected(now)).count();
        let share = (out + 1) * 100 <= all.len() * ejection.percent_max as usize;
        if server.is_ejected(now) || !share {
            return false;
        }
        server.failures.store(0, Ordering::Relaxed);
        server.ejected_until.store(now.plus(ejection.time).as_nanos(), Ordering::Relaxed);
        true
    }
}

impl ServerState {
    fn new(address: SocketAddr) -> ServerState {
        ServerState {
            address,
            label: address.to_string().into(),
            in_flight: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            ejected_until: AtomicU64::new(0),
            up_since: AtomicU64::new(0),
            down: AtomicBool::new(false),
            contrary: AtomicU32::new(0),
            check_due: AtomicU64::new(0),
        }
    }

    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.clone())
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Neither ejected nor found unwell by its checks.
    pub fn is_usable(&self, now: Timestamp) -> bool {
        !self.down.load(Ordering::Relaxed) && !self.is_ejected(now)
    }

    pub fn is_ejected(&self, now: Timestamp) -> bool {
        now.as_nanos() < self.ejected_until.load(Ordering::Relaxed)
    }

    /// A request went well: what failed before it is forgiven.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Requests under way over the part of its share that the server may have: the least is asked next.
    pub fn load(&self, now: Timestamp, slow_start: Duration) -> f64 {
        let back = self.up_since.load(Ordering::Relaxed).max(self.ejected_until.load(Ordering::Relaxed));
        f64::from(self.in_flight() + 1) / weight(back, now, slow_start)
    }

    /// Whether a check is due now; if so, the next is due after `interval`. Otherwise when it is.
    pub fn check_due(&self, now: Timestamp, interval: Duration) -> Result<(), Timestamp> {
        let due = self.check_due.load(Ordering::Relaxed);
        // A configuration with a shorter interval must not wait for what a longer one planned.
        let due = due.min(now.plus(interval).as_nanos());
        if due > now.as_nanos() {
            return Err(Timestamp::from_nanos(due));
        }
        self.check_due.store(now.plus(interval).as_nanos(), Ordering::Relaxed);
        Ok(())
    }

    /// Takes note of a check. Only the thread that checks calls this.
    pub fn checked(&self, well: bool, health: &Health, now: Timestamp) -> Change {
        let down = self.down.load(Ordering::Relaxed);
        if well != down {
            self.contrary.store(0, Ordering::Relaxed);
            return Change::None;
        }
        let contrary = self.contrary.load(Ordering::Relaxed) + 1;
        if contrary < if well { health.healthy_after } else { health.unhealthy_after } {
            self.contrary.store(contrary, Ordering::Relaxed);
            return Change::None;
        }
        self.contrary.store(0, Ordering::Relaxed);
        if well {
            self.up_since.store(now.as_nanos(), Ordering::Relaxed);
        }
        self.down.store(!well, Ordering::Relaxed);
        if well { Change::Up } else { Change::Down }
    }

    /// No check is made any more: what the last ones said no longer counts.
    pub fn unchecked(&self) {
        self.down.store(false, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The part of its share that a server may have, so long after it came back.
fn weight(back: u64, now: Timestamp, slow_start: Duration) -> f64 {
    let since = now.since(Timestamp::from_nanos(back));
    if since >= slow_start {
        return 1.0;
    }
    (since.as_secs_f64() / slow_start.as_secs_f64()).max(WEIGHT_MIN)
}

/// A circuit that can be asked without a lock while nothing fails.
#[derive(Debug, Default)]
pub struct Breaker {
    /// The circuit is not just closed, there was no failure in this window either.
    troubled: AtomicBool,
    circuit: Mutex<Circuit>,
}

/// Whether a request may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    Pass,
    /// It may, and what becomes of it decides about all others.
    Probe,
    /// It may not; to be asked again after this time.
    Wait(Duration),
}

/// How the body of a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// It is here, or there is none: how long an answer takes is the backend's doing.
    Whole,
    /// Its partner sends it meanwhile, as slowly as it likes.
    Streamed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Closed,
    Open,
    HalfOpen,
}

impl Breaker {
    pub fn admit(&self, body: Body, now: impl FnOnce() -> Timestamp) -> Admit {
        if !self.troubled.load(Ordering::Relaxed) {
            return Admit::Pass;
        }
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner).admit(body, now())
    }

    /// Takes note of a request that went well.
    pub fn succeeded(&self, probe: bool, limits: &settings::Circuit, now: impl FnOnce() -> Timestamp) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        circuit.succeeded(probe, limits, now());
        self.troubled.store(circuit.is_troubled(), Ordering::Relaxed);
    }

    /// Takes note of one that did not; `true` where that opened the circuit.
    pub fn failed(&self, probe: bool, limits: &settings::Circuit, now: Timestamp) -> bool {
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = circuit.failed(probe, limits, now);
        self.troubled.store(circuit.is_troubled(), Ordering::Relaxed);
        opened
    }

    /// A probe came to nothing that would say anything: another request is to be one.
    pub fn abandoned(&self, body: Body) {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner).abandoned(body);
    }

    pub fn phase(&self) -> Phase {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner).phase
    }
}

/// The circuit breaker as a state machine. Time is an argument.
#[derive(Debug)]
struct Circuit {
    phase: Phase,
    /// Open until then.
    until: Timestamp,
    /// A window begins with a failure: without one there is nothing to count.
    window_began: Option<Timestamp>,
    requests: u32,
    failures: u32,
    /// Half-open, and a request with a whole body is tried. The backend's timeouts bound how long.
    probing: bool,
    /// Half-open, and not before then another request with a streamed body is tried. Nothing else ends its turn: neither
    /// its partner, who could hold it, nor its end, after which the same partner could be the first to take the next.
    streamed_probe_due: Timestamp,
}

/// To be asked again while a probe is under way, and between the probes with streamed bodies.
const PROBE_WAIT: Duration = Duration::from_secs(1);

impl Default for Circuit {
    fn default() -> Circuit {
        Circuit {
            phase: Phase::Closed,
            until: Timestamp::default(),
            window_began: None,
            requests: 0,
            failures: 0,
            probing: false,
            streamed_probe_due: Timestamp::default(),
        }
    }
}

impl Circuit {
    fn admit(&mut self, body: Body, now: Timestamp) -> Admit {
        match self.phase {
            Phase::Closed => return Admit::Pass,
            Phase::Open if now < self.until => return Admit::Wait(self.until.since(now)),
            Phase::Open | Phase::HalfOpen => self.phase = Phase::HalfOpen,
        }
        // Neither waits for the other: where only one kind comes, that kind has to be enough.
        match body {
            Body::Whole if self.probing => return Admit::Wait(PROBE_WAIT),
            Body::Whole => self.probing = true,
            Body::Streamed if now < self.streamed_probe_due => {
                return Admit::Wait(self.streamed_probe_due.since(now));
            }
            Body::Streamed => self.streamed_probe_due = now.plus(PROBE_WAIT),
        }
        Admit::Probe
    }

    fn succeeded(&mut self, probe: bool, limits: &settings::Circuit, now: Timestamp) {
        match (self.phase, probe) {
            (Phase::Closed, _) => self.count(limits, now),
            (Phase::HalfOpen, true) => *self = Circuit::default(),
            // It began before the circuit opened: it says nothing about now.
            (Phase::Open | Phase::HalfOpen, _) => {}
        }
    }

    fn failed(&mut self, probe: bool, limits: &settings::Circuit, now: Timestamp) -> bool {
        let opens = match (self.phase, probe) {
            (Phase::Closed, _) => {
                self.count(limits, now);
                self.window_began = self.window_began.or(Some(now));
                self.requests = self.requests.max(1);
                self.failures += 1;
                let share =
                    u64::from(self.failures) * 100 >= u64::from(self.requests) * u64::from(limits.failure_percent);
                self.requests >= limits.requests_min && share
            }
            (Phase::HalfOpen, true) => true,
            (Phase::Open | Phase::HalfOpen, _) => false,
        };
        if opens {
            *self = Circuit { phase: Phase::Open, until: now.plus(limits.open_time), ..Circuit::default() };
        }
        opens
    }

    fn abandoned(&mut self, body: Body) {
        if body == Body::Whole {
            self.probing = false;
        }
    }

    /// Counts a request into the window, or closes a window that is over.
    fn count(&mut self, limits: &settings::Circuit, now: Timestamp) {
        match self.window_began {
            Some(began) if now.since(began) < limits.window => self.requests += 1,
            _ => *self = Circuit::default(),
        }
    }

    fn is_troubled(&self) -> bool {
        self.phase != Phase::Closed || self.window_began.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: settings::Circuit = settings::Circuit {
        failure_percent: 50,
        requests_min: 4,
        window: Duration::from_secs(10),
        open_time: Duration::from_secs(5),
    };

    fn second(at: u64) -> Timestamp {
        Timestamp::from_unix_seconds(at)
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A request that goes well, or fails.
        Well,
        Fails,
        /// A request that was admitted earlier fails now.
        OldFails,
        OldWell,
        /// The partner of the probe goes away.
        Abandons,
        Refused(u64),
    }
    use Event::*;

    /// What happens when, and how the circuit is then.
    type Case = (&'static str, &'static [(u64, Event)], Phase);

    #[test]
    fn the_circuit_opens_on_a_share_of_failures_and_closes_by_one_probe() {
        let table: &[Case] = &[
            ("nothing", &[], Phase::Closed),
            ("too few to judge", &[(100, Fails), (100, Fails), (100, Fails)], Phase::Closed),
            ("enough", &[(100, Fails), (100, Fails), (100, Fails), (100, Fails), (100, Refused(5))], Phase::Open),
            ("half of them", &[(100, Fails), (100, Well), (100, Well), (100, Fails), (101, Refused(4))], Phase::Open),
            ("less than half", &[(100, Fails), (100, Well), (100, Well), (100, Well), (100, Fails)], Phase::Closed),
            (
                "successes before the first failure are another window",
                &[(100, Well), (100, Well), (100, Well), (100, Fails), (100, Fails), (100, Fails), (100, Fails)],
                Phase::Open,
            ),
            ("a window ends", &[(100, Fails), (100, Fails), (100, Fails), (110, Fails)], Phase::Closed),
            (
                "a window ends, and another opens it",
                &[(100, Fails), (110, Fails), (111, Fails), (112, Fails), (113, Fails), (113, Refused(5))],
                Phase::Open,
            ),
            (
                "a probe closes it",
                &[(0, Fails), (0, Fails), (0, Fails), (0, Fails), (4, Refused(1)), (5, Well), (5, Fails), (5, Well)],
                Phase::Closed,
            ),
            (
                "a probe that fails opens it anew",
                &[(0, Fails), (0, Fails), (0, Fails), (0, Fails), (5, Fails), (6, Refused(4))],
                Phase::Open,
            ),
            (
                "requests from before say nothing",
                &[(0, Fails), (0, Fails), (0, Fails), (0, Fails), (4, OldWell), (4, OldFails), (4, Refused(1))],
                Phase::Open,
            ),
            (
                "a probe that nobody waits for makes the next one",
                &[(0, Fails), (0, Fails), (0, Fails), (0, Fails), (5, Abandons), (5, Well)],
                Phase::Closed,
            ),
        ];
        for (name, events, phase) in table {
            let mut circuit = Circuit::default();
            for (at, event) in events.iter().copied() {
                let now = second(at);
                match event {
                    OldFails => assert!(!circuit.failed(false, &LIMITS, now), "{name}"),
                    OldWell => circuit.succeeded(false, &LIMITS, now),
                    Refused(wait) => {
                        let wait = Admit::Wait(Duration::from_secs(wait));
                        assert_eq!(circuit.admit(Body::Whole, now), wait, "{name} at {at}");
                    }
                    Well | Fails | Abandons => {
                        let probe = match circuit.admit(Body::Whole, now) {
                            Admit::Pass => false,
                            Admit::Probe => {
                                let next = circuit.admit(Body::Whole, now);
                                assert_eq!(next, Admit::Wait(PROBE_WAIT), "{name}: one probe");
                                true
                            }
                            Admit::Wait(wait) => panic!("{name} at {at}: {event:?} waits {wait:?}"),
                        };
                        match event {
                            Well => circuit.succeeded(probe, &LIMITS, now),
                            Fails => _ = circuit.failed(probe, &LIMITS, now),
                            _ => circuit.abandoned(Body::Whole),
                        }
                    }
                }
            }
            assert_eq!(circuit.phase, *phase, "{name}");
        }
    }

    #[test]
    fn who_streams_a_body_keeps_nobody_from_probing() {
        let opened = || {
            let mut circuit = Circuit::default();
            (0..4).for_each(|_| _ = circuit.failed(false, &LIMITS, second(0)));
            circuit
        };
        let wait = Admit::Wait(PROBE_WAIT);
        let mut circuit = opened();
        assert_eq!(circuit.admit(Body::Streamed, second(4)), wait, "it is open to everybody");
        assert_eq!(circuit.admit(Body::Streamed, second(5)), Admit::Probe);
        assert_eq!(circuit.admit(Body::Streamed, second(5)), wait);
        circuit.abandoned(Body::Streamed);
        assert_eq!(circuit.admit(Body::Streamed, second(5)), wait, "nothing is won by going away and coming back");
        assert_eq!(circuit.admit(Body::Whole, second(5)), Admit::Probe, "it waits for no streamed body");
        circuit.abandoned(Body::Streamed);
        assert_eq!(circuit.admit(Body::Whole, second(5)), wait, "what became of another is nothing to it");
        assert_eq!(circuit.admit(Body::Streamed, second(6)), Admit::Probe, "whatever became of the one before");
        circuit.succeeded(true, &LIMITS, second(6));
        assert_eq!(circuit.phase, Phase::Closed);
        assert_eq!(circuit.admit(Body::Whole, second(6)), Admit::Pass);

        let mut circuit = opened();
        assert_eq!(circuit.admit(Body::Streamed, second(5)), Admit::Probe, "it may be all that ever comes");
        assert!(circuit.failed(true, &LIMITS, second(5)));
        assert_eq!(circuit.admit(Body::Whole, second(5)), Admit::Wait(LIMITS.open_time));
    }

    #[test]
    fn a_breaker_is_asked_without_its_lock_while_nothing_fails() {
        let breaker = Breaker::default();
        let never = || -> Timestamp { panic!("no clock, no lock") };
        assert_eq!(breaker.admit(Body::Whole, never), Admit::Pass);
        breaker.succeeded(false, &LIMITS, never);
        for at in 0..4 {
            assert_eq!(breaker.failed(false, &LIMITS, second(1)), at == 3);
        }
        assert_eq!(breaker.admit(Body::Whole, || second(1)), Admit::Wait(Duration::from_secs(5)));
        assert_eq!(breaker.admit(Body::Whole, || second(6)), Admit::Probe);
        breaker.succeeded(true, &LIMITS, || second(6));
        assert_eq!(breaker.admit(Body::Whole, never), Admit::Pass);
    }

    fn servers(count: u16) -> (Arc<BackendState>, Vec<Arc<ServerState>>) {
        let backend = Backends::default().backend(&"registry".into());
        let servers = (1..=count).map(|port| backend.server(([127, 0, 0, 1], port).into())).collect();
        (backend, servers)
    }

    const EJECTION: Ejection = Ejection { after: 3, time: Duration::from_secs(10), percent_max: 50 };

    #[test]
    fn failures_in_a_row_eject_a_server_for_a_while_and_never_too_many_of_them() {
        let fail = |backend: &BackendState, all: &[Arc<ServerState>], at: usize, now| {
            (0..3).filter(|_| backend.failed(&all[at], all, &EJECTION, now)).count()
        };
        for (count, ejectable) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
            let (backend, all) = servers(count);
            let now = second(100);
            let ejected: usize = (0..all.len()).map(|at| fail(&backend, &all, at, now)).sum();
            assert_eq!(ejected, ejectable, "of {count}");
            assert_eq!(all.iter().filter(|server| !server.is_usable(now)).count(), ejectable);
            assert!(all.iter().all(|server| server.is_usable(second(110))), "they come back");
        }
        let (backend, all) = servers(2);
        for _ in 0..10 {
            assert!(!backend.failed(&all[0], &all, &EJECTION, second(1)));
            assert!(!backend.failed(&all[0], &all, &EJECTION, second(1)));
            all[0].succeeded();
        }
        assert!(all[0].is_usable(second(1)), "never three in a row");
    }

    #[test]
    fn checks_take_a_server_out_and_bring_it_back_by_so_many_in_a_row() {
        let health = Health {
            path: "/".to_owned(),
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            healthy_after: 2,
            unhealthy_after: 3,
            status: 200,
        };
        let (_backend, all) = servers(1);
        let server = &all[0];
        let changes = |checks: &str| -> String {
            let change = |check| match server.checked(check == '+', &health, second(50)) {
                Change::None => '.',
                Change::Up => 'U',
                Change::Down => 'D',
            };
            checks.chars().map(change).collect()
        };
        assert_eq!(changes("++--+---"), ".......D");
        assert!(!server.is_usable(second(50)));
        assert_eq!(changes("--+-++--"), ".....U..");
        assert!(server.is_usable(second(50)));
        assert_eq!(server.check_due(second(50), health.interval), Ok(()));
        assert_eq!(server.check_due(second(52), health.interval), Err(second(55)));
        assert_eq!(server.check_due(second(52), Duration::from_secs(1)), Err(second(53)));
        assert_eq!(server.check_due(second(55), health.interval), Ok(()));
    }

    #[test]
    fn a_server_that_is_back_gets_its_share_little_by_little() {
        let minute = Duration::from_secs(60);
        let back = second(1_000).as_nanos();
        for (at, expected) in [(1_000, 0.1), (1_003, 0.1), (1_015, 0.25), (1_030, 0.5), (1_060, 1.0), (2_000, 1.0)] {
            assert!((weight(back, second(at), minute) - expected).abs() < 1e-9, "{at}");
        }
        assert_eq!(weight(back, second(1_000), Duration::ZERO), 1.0);
        assert_eq!(weight(0, second(1_000), minute), 1.0, "at the start of the gateway nothing came back");
    }

    #[test]
    fn what_is_known_of_a_server_outlives_a_snapshot_and_is_forgotten_with_its_last() {
        let backends = Backends::default();
        let name: Arc<str> = "registry".into();
        let address = ([127, 0, 0, 1], 9).into();
        let (backend, server) = (backends.backend(&name), backends.backend(&name).server(address));
        let held = server.begin();
        assert_eq!(backends.backend(&name).server(address).in_flight(), 1);
        assert_eq!(backends.backend(&"other".into()).server(address).in_flight(), 0);
        drop((held, server));
        let _ = backend.server(([127, 0, 0, 1], 10).into());
        assert_eq!(backend.servers.lock().unwrap().len(), 1, "the entry of the server that is gone went");
        drop(backend);
        let _ = backends.backend(&"another".into());
        assert_eq!(backends.entries.lock().unwrap().len(), 1);
    }
}
