//! Who may connect? One thread, runtime and listener a core; a connection goes to the worker with the fewest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::connection;
use super::tls::{Refusal, canonical};
use super::upstream::Pools;
use crate::gateway::Gateway;

/// One core's share of the gateway.
pub struct Worker {
    pub gateway: Arc<Gateway>,
    pub pools: Pools,
    index: usize,
}

/// Connections that are open, of all workers.
#[derive(Debug, Default)]
pub struct Load {
    open: AtomicUsize,
    handshakes: AtomicUsize,
    sources: Mutex<HashMap<IpAddr, usize>>,
    workers: Vec<Share>,
}

#[derive(Debug)]
struct Share {
    open: AtomicUsize,
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
            load.workers.push(Share { open: AtomicUsize::new(0), hand_over });
            inboxes.push(inbox);
        }
        (load, inboxes)
    }

    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Counts a connection in, or says why not.
    fn take(self: &Arc<Load>, source: IpAddr, open_max: usize, per_source_max: usize) -> Result<Place, &'static str> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= open_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err("connections-max");
        }
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = sources.entry(source).or_default();
        if *of_source >= per_source_max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err("connections-per-source-max");
        }
        *of_source += 1;
        drop(sources);
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
        let mut sources = self.load.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

/// Binds the address once and hands each worker a listener of its own on that socket. Not `SO_REUSEPORT`: it would let
/// a second gateway take half of the connections by mistake, and lose what waits in a queue whose worker is busy.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Vec<std::net::TcpListener>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let first = socket.listen(4_096)?.into_std()?;
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
        let worker = Rc::new(Worker { pools: Pools::of(gateway.clone()), gateway, index });
        tokio::task::spawn_local(receive(inbox, worker.clone()));
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
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else { std::future::pending().await };
        let accepted = tokio::select! {
            accepted = open.accept() => accepted,
            () = worker.gateway.draining() => {
                // Closed at once, so that a balancer or a successor gets the next connection.
                listener = None;
                continue;
            }
        };
        match accepted {
            Ok((stream, address)) => {
                let gateway = &worker.gateway;
                let source = canonical(address.ip());
                if let Err(reason) = admit(stream, source, worker) {
                    gateway.metrics.connection_refused(reason);
                    gateway.connection_lines.note(gateway.clock.now(), |unlogged| {
                        tracing::info!(%source, reason, unlogged, "connection refused");
                    });
                }
            }
            Err(error) => {
                // Out of file descriptors or memory: what is open goes on, and closing some of it makes room.
                worker.gateway.metrics.connection_refused("accept-failed");
                tracing::warn!(%error, "accept failed");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
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
    let settings = &snapshot.settings.tls;
    let load = &gateway.load;
    let under_way = Shaking::begin(load);
    if under_way.count > settings.handshakes_max {
        gateway.metrics.handshake(Refusal::Busy.code());
        return;
    }
    let Ok((config, attempt)) = snapshot.trust.attempt() else {
        gateway.metrics.handshake(Refusal::Other.code());
        return;
    };
    let accept = TlsAcceptor::from(config).accept(stream).into_fallible();
    let refusal = match timeout(settings.handshake_timeout, accept).await {
        Ok(Ok(stream)) => match attempt.client() {
            Some(client) => {
                gateway.metrics.handshake("ok");
                drop((under_way, snapshot, attempt));
                connection::serve(stream, source, client, worker).await;
                drop(place);
                return;
            }
            None => Refusal::CertificateMissing,
        },
        Ok(Err((error, stream))) => {
            linger(stream).await;
            attempt.refusal(&error)
        }
        Err(_) => Refusal::Timeout,
    };
    gateway.metrics.handshake(refusal.code());
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

/// One handshake in flight.
struct Shaking<'a> {
    load: &'a Load,
    count: usize,
}

impl<'a> Shaking<'a> {
    fn begin(load: &'a Load) -> Shaking<'a> {
        let count = load.handshakes.fetch_add(1, Ordering::Relaxed) + 1;
        Shaking { load, count }
    }
}

impl Drop for Shaking<'_> {
    fn drop(&mut self) {
        self.load.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}
