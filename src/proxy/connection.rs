//! One partner's connection after its handshake: what all of its requests share, and when it has to end.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_rustls::server::TlsStream;

use super::answer::{Body, Remains};
use super::forward::Caller;
use super::headers;
use super::intake::Line;
use super::listen::Worker;
use super::paced::Bounds;
use super::tls::Client;
use super::upstream::Pools;
use super::wire::http1::HeadLimits;
use super::wire::http2::{Allowance, FrameLimits};
use super::wire::{Handle, Limits, Violation, Wire};
use crate::config::settings::{Http, Settings};
use crate::gateway::Gateway;
use crate::policy::reason::Reason;
use crate::state;

/// What the requests of one connection share.
pub struct Peer {
    pub source: IpAddr,
    pub client: Arc<Client>,
    pub caller: Caller,
    pub request_timeout: Duration,
    server_name: Option<String>,
    wire: Handle,
    worker: Rc<Worker>,
    /// The partner already had as many connections as it may.
    over_capacity: bool,
    _place: Option<state::Connection>,
    requests: Cell<u32>,
    ever: Cell<bool>,
    idle_since: Cell<Instant>,
    /// HTTP/2 bodies that the peer may stop reading without anybody noticing.
    watched: Option<RefCell<Vec<(Instant, Remains)>>>,
}

/// How often a connection is looked after: timeouts are exact to this.
const TICK: Duration = Duration::from_secs(1);

/// Serves a connection to its end.
pub async fn serve(stream: TlsStream<TcpStream>, source: IpAddr, client: Arc<Client>, worker: Rc<Worker>) {
    let gateway = worker.gateway.clone();
    let snapshot = gateway.snapshot();
    let http = snapshot.settings.http.clone();
    let http = &http;
    let session = stream.get_ref().1;
    let http2 = session.alpn_protocol() == Some(b"h2");
    let server_name = session.server_name().map(str::to_ascii_lowercase);
    let limits = limits(http);
    let (wire, handle) = if http2 { Wire::http2(stream, &limits) } else { Wire::http1(stream, &limits) };

    // A partner's connections are capped by whose they are now; each request is identified anew.
    let partner = snapshot.policy.identify(&client.credential, gateway.clock.now());
    let place = partner.and_then(|id| {
        let partner = snapshot.policy.partner(id);
        gateway.metrics.partner_certificate(&partner.name, client.credential.not_after);
        snapshot.state(id).connect(partner.limits.connections_max)
    });
    drop(snapshot);
    let caller = Caller {
        source: headers::address(source),
        subject: headers::printable(&client.subject),
        certificate: headers::client_cert(&client.certificate),
    };
    let peer = Rc::new(Peer {
        source,
        client,
        caller,
        request_timeout: http.request_timeout,
        server_name,
        wire: handle,
        worker,
        over_capacity: partner.is_some() && place.is_none(),
        _place: place,
        requests: Cell::new(0),
        ever: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        watched: http2.then(RefCell::default),
    });
    let service = service_fn({
        let peer = peer.clone();
        move |request| {
            let peer = peer.clone();
            async move { Ok::<_, Infallible>(super::handle(request, peer).await) }
        }
    });
    let io = TokioIo::new(wire);
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(http.streams_max)
            .max_header_list_size(http.head_bytes_max as u32)
            .max_pending_accept_reset_streams(http.resets_max)
            .max_local_error_reset_streams(http.resets_max)
            .max_send_buf_size(256 << 10)
            .keep_alive_interval(http.idle_timeout)
            .keep_alive_timeout(http.head_timeout);
        look_after(pin!(builder.serve_connection(io, service)), &peer, http).await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(http.idle_timeout)
            .max_headers(http.fields_max + 1)
            .max_buf_size((http.head_bytes_max + (16 << 10)).max(32 << 10));
        look_after(pin!(builder.serve_connection(io, service)), &peer, http).await;
    }
    if let Some(violation) = peer.wire.violation() {
        gateway.metrics.connection_cut(violation.as_str());
    }
}

/// Both kinds of hyper connections end their requests and then themselves when they are asked to.
trait Graceful: Future {
    fn shut_down(self: Pin<&mut Self>);
}

impl<I, S> Graceful for hyper::server::conn::http1::Connection<I, S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S> Graceful for hyper::server::conn::http2::Connection<I, S, Local>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection until it ends, falls silent, or the gateway stops.
async fn look_after<C: Graceful>(mut connection: Pin<&mut C>, peer: &Peer, http: &Http) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            // Errors of a connection are the peer's; what mattered about its requests was recorded with them.
            _ = connection.as_mut() => return,
            _ = tick.tick() => {}
        }
        peer.expire_bodies();
        match peer.silence(http) {
            Silence::Late(reason) => {
                peer.gateway().metrics.connection_cut(reason);
                return;
            }
            Silence::Idle if !leaving => {
                leaving = true;
                connection.as_mut().shut_down();
            }
            Silence::Idle | Silence::No => {}
        }
        if peer.gateway().is_draining() && !leaving {
            leaving = true;
            connection.as_mut().shut_down();
        }
    }
}

enum Silence {
    No,
    /// Nothing was asked for the idle timeout: it may go in peace.
    Idle,
    /// A head was begun, or awaited, for longer than the head timeout.
    Late(&'static str),
}

impl Peer {
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.worker.gateway
    }

    pub fn pools(&self) -> &Pools {
        &self.worker.pools
    }

    pub fn bounds(&self, settings: &Settings, deadline: Instant) -> Bounds {
        let http = &settings.http;
        Bounds { bytes_max: 0, rate_min: http.rate_min, grace: http.rate_grace, deadline }
    }

    pub fn line<'a>(&'a self, settings: &Settings) -> Line<'a> {
        Line {
            server_name: self.server_name.as_deref(),
            violation: self.wire.violation(),
            fields_max: settings.http.fields_max,
            target_bytes_max: settings.http.target_bytes_max,
        }
    }

    pub fn over_capacity(&self) -> Option<Reason> {
        self.over_capacity.then_some(Reason::ConnectionsPartner)
    }

    /// What the wire saw, for refusals that it caused.
    pub fn violation(&self, reason: Reason) -> Option<Violation> {
        let wire = matches!(
            reason,
            Reason::MalformedRequest | Reason::AmbiguousFraming | Reason::HeadTooLarge | Reason::BodyIncomplete
        );
        self.wire.violation().filter(|_| wire)
    }

    /// After some refusals the connection is not worth keeping: what follows on it could be read in two ways, or it
    /// must not be held open by somebody without rights.
    pub fn closes_after(&self, reason: Reason) -> bool {
        let unsafe_to_go_on = matches!(
            reason,
            Reason::MalformedRequest
                | Reason::AmbiguousFraming
                | Reason::HeadTooLarge
                | Reason::BodyTooLarge
                | Reason::BodyTimeout
                | Reason::BodyIncomplete
                | Reason::IdentityUnknown
                | Reason::IdentityAmbiguous
                | Reason::CertificateExpired
                | Reason::ConnectionsPartner
        );
        // HTTP/2 has no such header (RFC 9113 section 8.2.2); its connections end by GOAWAY.
        unsafe_to_go_on && self.watched.is_none()
    }

    pub fn begins(&self) {
        self.requests.set(self.requests.get() + 1);
        self.ever.set(true);
    }

    pub fn ends(&self) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.idle_since.set(Instant::now());
    }

    /// Sees to it that an answer which the peer does not read is given up at the request's deadline.
    pub fn watch(&self, body: &Body, deadline: Instant) {
        if let Some(watched) = &self.watched {
            watched.borrow_mut().push((deadline, body.remains()));
        }
    }

    fn expire_bodies(&self) {
        let Some(watched) = &self.watched else { return };
        let now = Instant::now();
        watched.borrow_mut().retain(|(deadline, remains)| {
            if *deadline <= now {
                remains.expire();
            }
            *deadline > now && !remains.gone()
        });
        if !watched.borrow().is_empty() {
            self.idle_since.set(now);
        }
    }

    fn silence(&self, http: &Http) -> Silence {
        let now = Instant::now();
        let begun = self.wire.unfinished_since().filter(|_| self.requests.get() == 0);
        let awaited = (!self.ever.get()).then(|| self.idle_since.get());
        if begun.or(awaited).is_some_and(|since| now - since > http.head_timeout) {
            return Silence::Late("head-timeout");
        }
        let idle = self.requests.get() == 0 && now - self.idle_since.get() > http.idle_timeout;
        // HTTP/1 bodies that are still being sent keep the connection: writes have their own rate to keep.
        if idle && self.watched.is_some() { Silence::Idle } else { Silence::No }
    }
}

fn limits(http: &Http) -> Limits {
    let rate = NonZeroU32::new(http.rate_min).unwrap_or(NonZeroU32::MIN);
    let resets = Allowance { burst: http.resets_max as u32, per_second: (http.resets_max as u32 / 4).max(1) };
    Limits {
        head: HeadLimits {
            head_bytes_max: http.head_bytes_max,
            target_bytes_max: http.target_bytes_max,
            fields_max: http.fields_max,
        },
        frames: FrameLimits { resets, ..FrameLimits::default() },
        write_rate_min: rate,
        write_grace: http.rate_grace,
    }
}

/// hyper's HTTP/2 tasks run on the worker's own thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(task);
    }
}
