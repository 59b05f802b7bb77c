//! Who may connect? One thread, runtime and listener a core; a connection goes to the worker with the fewest.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::connection;
use super::proxy_protocol::{self, Progress};
use super::tls::{Client, Refusal, canonical};
use super::upstream::Pools;
use crate::clock::Timestamp;
use crate::config::settings::Tls;
use crate::gateway::Gateway;
use crate::policy::admit::Standing;
use crate::policy::charge::site;
use crate::snapshot::Snapshot;
use crate::state::PartnerState;
use crate::state::store::Ledger;

/// One core's share of the gateway.
pub struct Worker {
    pub gateway: Arc<Gateway>,
    pub pools: Pools,
    /// What its requests used up and is not kept yet.
    pub ledger: RefCell<Ledger>,
    index: usize,
}

/// Connections that are open, of all workers.
#[derive(Debug, Default)]
pub struct Load {
    open: AtomicUsize,
    handshakes: AtomicUsize,
    /// Accepted from a balancer, whose header has not come yet.
    waiting: AtomicUsize,
    /// Workers that accept, or have yet to take what waits to be accepted.
    accepting: AtomicUsize,
    open_by_source: BySource,
    handshakes_by_source: BySource,
    workers: Vec<Share>,
}

/// How many each source has of something. A source is an IPv4 address or an IPv6 /64: nobody has less than that, and so
/// nobody gets more by using all of it.
#[derive(Debug, Default)]
struct BySource(Mutex<HashMap<IpAddr, usize>>);

impl BySource {
    /// Whether there was one left of `max`; it is to be given back.
    fn take(&self, source: IpAddr, max: usize) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(site(source)).or_default();
        let left = *count < max;
        *count += usize::from(left);
        left
    }

    fn give_back(&self, source: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&site(source)) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&site(source));
            }
        }
    }
}

#[derive(Debug)]
struct Share {
    open: AtomicUsize,
    beats: AtomicU64,
    hand_over: mpsc::UnboundedSender<Arrival>,
}

/// A connection that passed the gate. It counts until it is dropped.
pub struct Arrival {
    stream: std::net::TcpStream,
    source: IpAddr,
    place: Place,
}

struct Place {
    load: Arc<Load>,
    source: IpAddr,
    worker: usize,
}

const TRIM_EVERY: Duration = Duration::from_secs(1);

/// A worker's inbox: what other workers accepted for it.
pub type Inbox = mpsc::UnboundedReceiver<Arrival>;

impl Load {
    /// The load of so many workers, and an inbox for each. The inboxes are bounded by the cap on connections.
    pub fn of(workers: usize) -> (Load, Vec<Inbox>) {
        let mut load = Load::default();
        let mut inboxes = Vec::new();
        for _ in 0..workers {
            let (hand_over, inbox) = mpsc::unbounded_channel();
            load.workers.push(Share { open: AtomicUsize::new(0), beats: AtomicU64::new(0), hand_over });
            inboxes.push(inbox);
        }
        load.accepting = AtomicUsize::new(workers);
        (load, inboxes)
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether no connection is here, nor on its way in. Each step in counts a connection before the step before it
    /// forgets it, so they are asked in this order.
    pub fn is_over(&self) -> bool {
        [&self.accepting, &self.waiting, &self.open].iter().all(|count| count.load(Ordering::SeqCst) == 0)
    }

    /// How often the heart of each worker has beaten.
    pub fn beats(&self) -> Vec<u64> {
        self.workers.iter().map(|share| share.beats.load(Ordering::Relaxed)).collect()
    }

    /// Counts a connection in, or says why not.
    fn take(self: &Arc<Load>, source: IpAddr, open_max: usize, per_source_max: usize) -> Result<Place, &'static str> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= open_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err("connections-max");
        }
        if !self.open_by_source.take(source, per_source_max) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err("connections-per-source-max");
        }
        let least = self.workers.iter().enumerate().min_by_key(|(_, share)| share.open.load(Ordering::Relaxed));
        let worker = least.map_or(0, |(at, _)| at);
        self.workers[worker].open.fetch_add(1, Ordering::Relaxed);
        Ok(Place { load: self.clone(), source, worker })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.load.open.fetch_sub(1, Ordering::Relaxed);
        self.load.workers[self.worker].open.fetch_sub(1, Ordering::Relaxed);
        self.load.open_by_source.give_back(self.source);
    }
}

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 4_096;

/// Binds the address once and hands each worker a listener of its own on that socket. Not `SO_REUSEPORT`: it would let
/// a second gateway take half of the connections by mistake, and lose what waits in a queue whose worker is busy.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let first = socket.listen(BACKLOG)?.into_std()?;
    let mut listeners = Vec::new();
    for _ in 1..workers {
        listeners.push(first.try_clone()?);
    }
    listeners.push(first);
    Ok(listeners)
}

/// A worker's thread: runs until the gateway has drained.
pub fn run(gateway: Arc<Gateway>, index: usize, listener: std::net::TcpListener, inbox: Inbox) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::from_std(listener)?;
        let (pools, ledger) = (Pools::of(gateway.clone()), RefCell::default());
        let worker = Rc::new(Worker { pools, gateway, ledger, index });
        tokio::task::spawn_local(receive(inbox, worker.clone()));
        tokio::task::spawn_local(beat(worker.clone()));
        tokio::task::spawn_local(trim(worker.clone()));
        let stopped = worker.gateway.drained();
        tokio::select! {
            never = accept(listener, &worker) => match never {},
            () = stopped => Ok(()),
        }
    })
}

/// Closes connections to backends that nobody will use, whether or not requests come.
async fn trim(worker: Rc<Worker>) {
    loop {
        sleep(TRIM_EVERY).await;
        worker.pools.trim(&worker.gateway.snapshot());
    }
}

/// Accepts for all workers, and keeps what is its own share.
async fn accept(listener: TcpListener, worker: &Rc<Worker>) -> std::convert::Infallible {
    let mut spare = spare_of(&listener);
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else { std::future::pending().await };
        let accepted = tokio::select! {
            accepted = open.accept() => accepted,
            () = worker.gateway.draining() => {
                // Closed at once, so that a balancer or a successor gets the next connection.
                spare = None;
                if let Some(Ok(listener)) = listener.take().map(TcpListener::into_std) {
                    accept_rest(&listener, worker);
                }
                // Tasks run in the order in which they were begun: by then each of these connections is counted.
                let last = worker.gateway.clone();
                tokio::task::spawn_local(async move { last.load.accepting.fetch_sub(1, Ordering::SeqCst) });
                continue;
            }
        };
        match accepted {
            Ok((stream, address)) => welcome(stream, address, worker),
            Err(error) => {
                worker.gateway.metrics.connection_refused("accept-failed");
                worker.gateway.connection_lines.note(worker.gateway.clock.now(), |unlogged| {
                    tracing::warn!(%error, unlogged, "accept failed");
                });
                // No descriptor is left: the client would wait for as long as that lasts. The spare one is good for telling
                // it so, by closing. Somebody else may take it first; then, and after other errors, accepting rests.
                let exhausted = matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
                let told = exhausted
                    && spare.take().is_some()
                    && matches!(timeout(ACCEPT_RETRY, open.accept()).await, Ok(Ok(_)));
                if !told {
                    sleep(ACCEPT_RETRY).await;
                }
                spare = spare.or_else(|| spare_of(open));
            }
        }
    }
}

/// Takes what the kernel accepted before the listener is closed: these clients are connected, and would be reset. Who
/// connects without end is no reason to stay open.
fn accept_rest(listener: &std::net::TcpListener, worker: &Rc<Worker>) {
    for _ in 0..BACKLOG {
        let Ok((stream, address)) = listener.accept() else { return };
        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => welcome(stream, address, worker),
            Err(_) => worker.gateway.metrics.connection_refused("accept-failed"),
        }
    }
}

fn welcome(stream: TcpStream, address: SocketAddr, worker: &Rc<Worker>) {
    let (gateway, peer) = (&worker.gateway, canonical(address.ip()));
    match gateway.pressure.refuses(stream.as_raw_fd(), gateway.load.open()) {
        None => meet(stream, peer, worker),
        Some(reason) => turned_away(worker, peer, None, reason),
    }
}

/// A descriptor to give up when there is no other.
fn spare_of(listener: &TcpListener) -> Option<OwnedFd> {
    listener.as_fd().try_clone_to_owned().ok()
}

/// How long accepting rests when it can only fail.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

/// A balancer has to say for whom it connects before anything else counts; from anybody else that is not looked for.
fn meet(stream: TcpStream, peer: IpAddr, worker: &Rc<Worker>) {
    if worker.gateway.snapshot().settings.listen.proxy_protocol.expects(peer) {
        tokio::task::spawn_local(introduce(stream, peer, worker.clone()));
    } else if let Err(reason) = admit(stream, peer, worker) {
        turned_away(worker, peer, None, reason);
    }
}

/// Waits for a balancer's header, then treats the connection as one from the address in it.
async fn introduce(mut stream: TcpStream, balancer: IpAddr, worker: Rc<Worker>) {
    let snapshot = worker.gateway.snapshot();
    let rules = &snapshot.settings.listen.proxy_protocol;
    let waiting = Counted::begin(&worker.gateway.load.waiting);
    let introduced = if waiting.count > rules.waiting_max {
        Err("proxy-waiting-max")
    } else {
        let header = read_header(&mut stream, rules.header_bytes_max);
        timeout(rules.header_timeout, header).await.unwrap_or(Err("proxy-timeout"))
    };
    match introduced {
        Ok(source) => {
            if let Err(reason) = admit(stream, source, &worker) {
                turned_away(&worker, source, Some(balancer), reason);
            }
        }
        Err(reason) => turned_away(&worker, balancer, Some(balancer), reason),
    }
    drop(waiting);
}

/// Reads a header and not a byte more: what follows is TLS.
async fn read_header(stream: &mut TcpStream, bytes_max: usize) -> Result<IpAddr, &'static str> {
    let mut header = Vec::new();
    loop {
        let needed = match proxy_protocol::parse(&header, bytes_max).map_err(proxy_protocol::Refusal::code)? {
            Progress::Header { source, .. } => return Ok(source),
            Progress::NeedMore(needed) => needed,
        };
        match (&mut *stream).take((needed - header.len()) as u64).read_buf(&mut header).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err("proxy-ended"),
        }
    }
}

fn turned_away(worker: &Worker, source: IpAddr, balancer: Option<IpAddr>, reason: &'static str) {
    let gateway = &worker.gateway;
    gateway.metrics.connection_refused(reason);
    if matches!(reason, "proxy-local" | "proxy-ended") {
        // A balancer's health checks, every few seconds: nobody wanted in.
        tracing::debug!(%source, reason, "connection refused");
        return;
    }
    gateway.audit.refused.count(reason, source);
    gateway.connection_lines.note(gateway.clock.now(), |unlogged| {
        let balancer = balancer.map(tracing::field::display);
        tracing::info!(%source, balancer, reason, unlogged, "connection refused");
    });
}

/// The gate before TLS: some partner's network, and room.
fn admit(stream: TcpStream, source: IpAddr, worker: &Rc<Worker>) -> Result<(), &'static str> {
    let gateway = &worker.gateway;
    let snapshot = gateway.snapshot();
    if !snapshot.union.contains(source, gateway.clock.now()) {
        return Err("network-unknown");
    }
    let listen = &snapshot.settings.listen;
    let place = gateway.load.take(source, listen.connections_max, listen.connections_per_source_max)?;
    let _ = stream.set_nodelay(true);
    if place.worker == worker.index {
        tokio::task::spawn_local(handshake(stream, source, place, worker.clone()));
        return Ok(());
    }
    let share = &gateway.load.workers[place.worker].hand_over;
    let stream = stream.into_std().map_err(|_| "hand-over-failed")?;
    share.send(Arrival { stream, source, place }).map_err(|_| "hand-over-failed")
}

/// Shows that this worker's runtime still runs its tasks.
async fn beat(worker: Rc<Worker>) {
    loop {
        worker.gateway.load.workers[worker.index].beats.fetch_add(1, Ordering::Relaxed);
        sleep(BEAT_EVERY).await;
    }
}

/// Well below half of any watchdog's time.
const BEAT_EVERY: Duration = Duration::from_millis(250);

async fn receive(mut inbox: Inbox, worker: Rc<Worker>) {
    while let Some(Arrival { stream, source, place }) = inbox.recv().await {
        match TcpStream::from_std(stream) {
            Ok(stream) => drop(tokio::task::spawn_local(handshake(stream, source, place, worker.clone()))),
            Err(_) => worker.gateway.metrics.connection_refused("hand-over-failed"),
        }
    }
}

/// One handshake under one deadline; then the connection's life.
async fn handshake(stream: TcpStream, source: IpAddr, place: Place, worker: Rc<Worker>) {
    let gateway = worker.gateway.clone();
    let snapshot = gateway.snapshot();
    let settings = snapshot.settings.clone();
    let settings = &settings.tls;
    let Some(under_way) = Shaking::begin(&gateway.load, source, settings) else {
        gateway.metrics.handshake(Refusal::Busy.code());
        gateway.audit.refused.count(Refusal::Busy.code(), source);
        gateway.connection_lines.note(gateway.clock.now(), |unlogged| {
            tracing::info!(%source, reason = Refusal::Busy.code(), unlogged, "handshake refused");
        });
        return;
    };
    let Ok((config, attempt)) = snapshot.trust.attempt(&gateway.clock) else {
        gateway.metrics.handshake(Refusal::Other.code());
        return;
    };
    let accept = TlsAcceptor::from(config).accept(stream).into_fallible();
    let refusal = match timeout(settings.handshake_timeout, accept).await {
        Ok(Ok(stream)) => match attempt.client() {
            Some(client) => match frozen(&snapshot, &client, gateway.clock.now()) {
                None => {
                    gateway.metrics.handshake("ok");
                    drop((under_way, snapshot, attempt));
                    connection::serve(stream, source, client, worker).await;
                    drop(place);
                    return;
                }
                Some(state) => {
                    drop((under_way, snapshot));
                    turn_away(stream, &state, &gateway).await;
                    Refusal::PartnerFrozen
                }
            },
            None => Refusal::CertificateMissing,
        },
        Ok(Err((error, stream))) => {
            linger(stream).await;
            attempt.refusal(&error)
        }
        Err(_) => Refusal::Timeout,
    };
    gateway.metrics.handshake(refusal.code());
    gateway.audit.refused.count(refusal.code(), source);
    let presented = attempt.presented();
    let presented = presented.as_ref();
    // Anybody in an allowed network can fail handshakes as fast as it likes: the log has its own limit.
    gateway.connection_lines.note(gateway.clock.now(), |unlogged| {
        tracing::info!(
            %source,
            reason = refusal.code(),
            subject = presented.map(|certificate| certificate.subject.as_str()),
            serial = presented.map(|certificate| certificate.serial.as_str()),
            issuer = presented.map(|certificate| certificate.issuer.as_str()),
            unlogged,
            "handshake refused"
        );
    });
}

/// The state of the partner that a client belongs to, if it is frozen.
fn frozen(snapshot: &Snapshot, client: &Client, now: Timestamp) -> Option<Arc<PartnerState>> {
    let partner = snapshot.policy.identify(&client.credential, now)?;
    Some(snapshot.state(partner).clone()).filter(|state| state.standing(now) == Standing::Frozen)
}

/// Ends a frozen partner's connection before a byte of HTTP, each time later than the last: retries cost next to nothing.
async fn turn_away(mut stream: TlsStream<TcpStream>, state: &Arc<PartnerState>, gateway: &Gateway) {
    if let Some(knock) = state.knock(gateway.clock.now()) {
        tokio::select! {
            () = sleep(knock.delay) => {}
            () = gateway.draining() => {}
        }
    }
    let _ = timeout(LINGER_TIMEOUT, stream.shutdown()).await;
}

/// Sees to it that the alert arrives. A client that has sent its request already would have its connection reset by bytes
/// that nobody read, and would not learn why it was refused.
async fn linger(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let mut rest = [0; 4_096];
    let drained = async {
        for _ in 0..LINGER_READS_MAX {
            if !matches!(stream.read(&mut rest).await, Ok(1..)) {
                return;
            }
        }
    };
    let _ = timeout(LINGER_TIMEOUT, drained).await;
}

/// How long, and for how many reads, a refused client may go on sending.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const LINGER_READS_MAX: usize = 16;

/// A handshake under way. All together are bounded, and those of one source to a part of that: it takes no certificate to
/// begin one and never end it.
struct Shaking<'a> {
    load: &'a Load,
    source: IpAddr,
    _one: Counted<'a>,
}

impl<'a> Shaking<'a> {
    fn begin(load: &'a Load, source: IpAddr, settings: &Tls) -> Option<Shaking<'a>> {
        let one = Counted::begin(&load.handshakes);
        let fits = one.count <= settings.handshakes_max;
        let taken = fits && load.handshakes_by_source.take(source, settings.handshakes_per_source_max);
        taken.then_some(Shaking { load, source, _one: one })
    }
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.load.handshakes_by_source.give_back(self.source);
    }
}

/// One of so many, `count` with itself, until it is dropped.
struct Counted<'a> {
    counter: &'a AtomicUsize,
    count: usize,
}

impl<'a> Counted<'a> {
    fn begin(counter: &'a AtomicUsize) -> Counted<'a> {
        Counted { counter, count: counter.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::Release);
    }
}
