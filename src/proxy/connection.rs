//! One partner's connection after its handshake: what all of its requests share, and when it has to end.

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::convert::Infallible;
use std::future::Future;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_rustls::server::TlsStream;

use super::answer::{Body, Remains};
use super::forward::Caller;
use super::headers;
use super::intake::Line;
use super::listen::Worker;
use super::paced::{Bounds, Unread};
use super::tls::{Client, Verified};
use super::upstream::{Local, Pools};
use super::wire::http1::HeadLimits;
use super::wire::http2::{Allowance, FrameLimits};
use super::wire::{Handle, Limits, Violation, Wire};
use crate::audit::event::{self, Event};
use crate::audit::layout::ENTRY_BYTES_MAX;
use crate::audit::queue::Certified;
use crate::clock::Timestamp;
use crate::config::settings::{Http, Settings};
use crate::gateway::Gateway;
use crate::policy::admit::Standing;
use crate::policy::charge::{Charge, Receipt};
use crate::policy::identify::Credential;
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;
use crate::policy::{Partner, PartnerId, Sender};
use crate::snapshot::Snapshot;
use crate::state::store::Ledger;
use crate::state::{self, Hold, PartnerState};
use crate::subject::hex;

/// What the requests of one connection share.
pub struct Peer {
    pub source: IpAddr,
    pub client: Arc<Client>,
    pub caller: Caller,
    certified: Arc<Certified>,
    fingerprint: String,
    pub request_timeout: Duration,
    server_name: Option<String>,
    wire: Handle,
    worker: Rc<Worker>,
    /// The partner already had as many connections as it may.
    over_capacity: Cell<bool>,
    place: OnceCell<state::Connection>,
    requests: Cell<u32>,
    ever: Cell<bool>,
    idle_since: Cell<Instant>,
    http2: bool,
    /// Answers that the peer may stop reading without anybody noticing.
    watched: RefCell<Vec<(Instant, Remains)>>,
    /// Told when the connection is to end after the answers that are under way.
    leave: Notify,
    /// Whose connection it is, and what that partner has used up. Nobody's certificate may become a partner's by a
    /// reload; it stays the same partner's from then on.
    owner: OnceCell<(Arc<str>, Arc<PartnerState>)>,
    verified: Cell<Verified>,
    /// Generation of the configuration that this connection was last held against, and its owner's place in that.
    held_against: Cell<u64>,
    place_in_policy: Cell<PartnerId>,
}

/// How long a connection may take to send its first request while the gateway stops.
const FIRST_REQUEST_WITHIN: Duration = Duration::from_secs(1);
/// How often a connection is looked after: timeouts are exact to this.
const TICK: Duration = Duration::from_secs(1);
/// How long answers may still run on a connection that lost what it stood on. With the tick before it, that is a second
/// and a half of the two that are promised: the rest is for a busy machine. Looking more often would buy the same, but
/// every idle connection would pay for it.
const CUT_AFTER: Duration = Duration::from_millis(500);
/// Finished answers are forgotten each tick, and when there are this many.
const WATCHED_MAX: usize = 256;

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

    let (verified, held_against) = (Cell::new(client.verified()), Cell::new(snapshot.generation));
    let caller = Caller {
        source: headers::address(source),
        subject: headers::printable(&client.subject),
        certificate: headers::client_cert(&client.certificate),
    };
    let fingerprint = hex(&client.credential.fingerprint);
    let certified = Arc::new(certified(&client, &fingerprint, gateway.clock.now()));
    let peer = Rc::new(Peer {
        source,
        client,
        caller,
        certified,
        fingerprint,
        request_timeout: http.request_timeout,
        server_name,
        wire: handle,
        worker,
        over_capacity: Cell::default(),
        place: OnceCell::new(),
        requests: Cell::new(0),
        ever: Cell::new(false),
        idle_since: Cell::new(Instant::now()),
        http2,
        watched: RefCell::default(),
        leave: Notify::new(),
        owner: OnceCell::new(),
        verified,
        held_against,
        place_in_policy: Cell::new(PartnerId(0)),
    });
    // A partner's connections are capped by whose they are now; each request is identified anew.
    peer.identify(&snapshot, gateway.clock.now());
    drop(snapshot);
    let service = service_fn({
        let peer = peer.clone();
        move |request| {
            let peer = peer.clone();
            async move { Ok::<_, Infallible>(peer.answer(request).await) }
        }
    });
    let io = TokioIo::new(wire);
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(http.streams_max)
            // Intake refuses what is over the limit, with a decision; this only bounds what is decoded.
            .max_header_list_size(2 * http.head_bytes_max as u32 + (4 << 10))
            .max_pending_accept_reset_streams(http.resets_max)
            .max_local_error_reset_streams(http.resets_max)
            .max_send_buf_size(64 << 10)
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
    let mut leaving: Option<Instant> = None;
    let mut cut: Option<(Instant, Withdrawn)> = None;
    // Kept between the rounds: to wait for it anew at each tick would have all workers share one lock.
    let mut stopping = pin!(peer.gateway().draining());
    let mut draining: Option<Instant> = None;
    loop {
        let mut leave = false;
        tokio::select! {
            biased;
            // Errors of a connection are the peer's; what mattered about its requests was recorded with them.
            _ = connection.as_mut() => return,
            () = peer.leave.notified() => leave = true,
            () = stopping.as_mut(), if draining.is_none() => draining = Some(Instant::now()),
            () = at(cut) => return,
            _ = tick.tick() => {}
        }
        leave |= draining.is_some_and(|since| !peer.may_still_ask(since, http));
        if cut.is_none()
            && let Some(withdrawn) = peer.withdrawn()
        {
            peer.gateway().metrics.connection_cut(withdrawn.code());
            cut = Some((Instant::now() + CUT_AFTER, withdrawn));
            leave = true;
        }
        peer.expire_answers();
        match peer.silence(http) {
            Silence::Late(reason) => {
                peer.gateway().metrics.connection_cut(reason);
                return;
            }
            Silence::Idle => leave = true,
            Silence::No => {}
        }
        match leaving {
            None if leave => {
                leaving = Some(Instant::now());
                connection.as_mut().shut_down();
            }
            // Answers under way had their deadline; a peer that still holds the connection open gets no more.
            Some(since) if since.elapsed() > http.request_timeout => {
                peer.gateway().metrics.connection_cut("leave-timeout");
                return;
            }
            _ => {}
        }
    }
}

/// Waits for the time at which a connection is cut, if it is to be.
async fn at(cut: Option<(Instant, Withdrawn)>) {
    match cut {
        Some((time, _)) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What a connection stood on and does not any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Withdrawn {
    Trust,
    /// The certificate's time is over.
    Certificate,
    /// The agreed period is over.
    Period,
    Identity,
    Network,
    Grant,
    Frozen,
}

impl Withdrawn {
    /// For metrics.
    const fn code(self) -> &'static str {
        match self {
            Withdrawn::Trust => "trust-withdrawn",
            Withdrawn::Certificate => "certificate-expired",
            Withdrawn::Period => "partner-not-valid",
            Withdrawn::Identity => "identity-withdrawn",
            Withdrawn::Network => "network-withdrawn",
            Withdrawn::Grant => "grant-withdrawn",
            Withdrawn::Frozen => "partner-frozen",
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

    /// Answers one request. While the gateway stops, it says that it is the last one here: a client that knows sends the
    /// next one elsewhere, and none is lost in a connection that closes.
    async fn answer(self: Rc<Self>, request: Request<Incoming>) -> Response<Body> {
        let mut response = super::handle(request, self.clone()).await;
        if self.gateway().is_draining() && !self.http2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether the first request of a client, which has its handshake behind it and knows nothing, may be on its way here.
    /// HTTP/2 needs no such time: its clients are told which streams were not looked at (RFC 9113 section 6.8).
    fn may_still_ask(&self, since: Instant, http: &Http) -> bool {
        let begun = self.wire.unfinished_since().is_some();
        let awaited = since.max(self.idle_since.get()).elapsed() < FIRST_REQUEST_WITHIN.min(http.head_timeout);
        !self.http2 && !self.ever.get() && (begun || awaited)
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
            head_bytes_max: settings.http.head_bytes_max,
        }
    }

    /// Who sends this connection's requests, as of now.
    pub fn sender<'a>(&'a self, snapshot: &Snapshot, now: Timestamp) -> Sender<'a> {
        let partner = self.identify(snapshot, now);
        let standing = partner.map_or(Standing::Open, |id| snapshot.state(id).standing(now));
        Sender { now, source: self.source, credential: &self.client.credential, standing }
    }

    /// Whose the certificate is. Whoever it is found to be the first time owns the connection, and loses it with
    /// whatever it stood on.
    fn identify(&self, snapshot: &Snapshot, now: Timestamp) -> Option<PartnerId> {
        let id = snapshot.policy.identify(&self.client.credential, now)?;
        let (partner, state) = (snapshot.policy.partner(id), snapshot.state(id));
        if self.owner.get().is_none() {
            let _ = self.owner.set((partner.name.clone(), state.clone()));
            // What was withdrawn before it asked for anything, nothing of it stood on.
            self.held_against.set(snapshot.generation);
            self.place_in_policy.set(id);
        }
        // From somewhere else a stolen certificate takes none of its places: there it gets refusals and nothing else.
        if !self.was_admitted() && is_admitted(partner, self.source, now) {
            self.gateway().metrics.partner_certificate(&partner.name, self.client.credential.not_after);
            match state.connect(partner.limits.connections_max, partner.limits.shadow) {
                Some(place) => drop(self.place.set(place)),
                None => self.over_capacity.set(true),
            }
        }
        Some(id)
    }

    /// Whether it was ever somebody's who might come in: what never had a place lost none, and is to hear its refusal.
    fn was_admitted(&self) -> bool {
        self.place.get().is_some() || self.over_capacity.get()
    }

    /// Whether the certificate that was verified in the handshake would pass today's trust as well.
    pub fn still_trusted(&self, snapshot: &Snapshot, now: Timestamp) -> Result<(), Reason> {
        let verified = snapshot.trust.still_holds(&self.client, self.verified.get(), now);
        match verified {
            Ok(verified) => {
                self.verified.set(verified);
                Ok(())
            }
            Err(_) if self.client.credential.not_after < now => Err(Reason::CertificateExpired),
            Err(_) => Err(Reason::TrustWithdrawn),
        }
    }

    /// What this connection lost since it was looked at last, by a change or by a date. Its requests are held to that at
    /// once; the connection itself is told at the next tick, which spreads the work of a new generation over a second.
    /// Without one this compares dates and finds an address, no more: ten thousand idle connections do it each second.
    fn withdrawn(&self) -> Option<Withdrawn> {
        let (snapshot, now) = (self.gateway().snapshot(), self.gateway().clock.now());
        if self.client.credential.not_after < now {
            return Some(Withdrawn::Certificate);
        }
        // Before all else, and for nobody's connections as well: such a certificate may be a partner's at the next reload.
        if self.still_trusted(&snapshot, now).is_err() {
            return Some(Withdrawn::Trust);
        }
        let (name, state) = self.owner.get()?;
        if state.standing(now) == Standing::Frozen {
            return Some(Withdrawn::Frozen);
        }
        let before = self.held_against.replace(snapshot.generation);
        if before != snapshot.generation {
            let id = snapshot.policy.identify(&self.client.credential, now);
            let Some(id) = id.filter(|id| snapshot.policy.partner(*id).name == *name) else {
                return Some(Withdrawn::Identity);
            };
            self.place_in_policy.set(id);
            if state.narrowed() > before {
                return Some(Withdrawn::Grant);
            }
        }
        let partner = snapshot.policy.partner(self.place_in_policy.get());
        if !self.was_admitted() || is_admitted(partner, self.source, now) {
            return None;
        }
        Some(if partner.is_valid(now) { Withdrawn::Network } else { Withdrawn::Period })
    }

    /// Takes a group of charges from a partner's state, all or none but for those in shadow. Nobody pays nothing.
    pub fn charge<'c>(
        &self,
        snapshot: &Snapshot,
        partner: Option<PartnerId>,
        charges: impl Iterator<Item = Charge<'c>> + Clone,
        shadow: Shadow,
        now: Timestamp,
    ) -> (Receipt, Hold) {
        let Some(partner) = partner else { return (Receipt::Paid, Hold::default()) };
        let entries_max = snapshot.settings.limiter_entries_max;
        snapshot.state(partner).charge(charges, shadow, entries_max, now, &mut self.ledger())
    }

    /// What this worker's requests used up and is not kept yet.
    pub fn ledger(&self) -> RefMut<'_, Ledger> {
        self.worker.ledger.borrow_mut()
    }

    /// Sees to it that what was used up is not forgotten with the process.
    pub fn keep(&self) -> Result<(), Reason> {
        self.gateway().keep(&mut self.ledger()).map_err(|_| Reason::StateUnavailable)
    }

    /// What its certificate says, for the audit.
    pub fn certified(&self) -> Option<Arc<Certified>> {
        Some(self.certified.clone())
    }

    /// SHA-256 of its certificate in hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn over_capacity(&self) -> Option<Reason> {
        self.over_capacity.get().then_some(Reason::ConnectionsPartner)
    }

    /// What would have been refused on this connection, were its partner's maximum of them not in shadow.
    pub fn shadow(&self) -> Shadow {
        self.place.get().map(state::Connection::shadow).unwrap_or_default()
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
    pub fn closes_after(&self, reason: Reason, body: &Unread) -> bool {
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
                | Reason::TrustWithdrawn
                | Reason::ConnectionsPartner
                | Reason::PartnerNotValid
                | Reason::NetworkNotAllowed
                | Reason::NetworkExpired
        );
        if unsafe_to_go_on && self.http2 && reason != Reason::BodyIncomplete {
            // HTTP/2 has no such header (RFC 9113 section 8.2.2): its connections end by GOAWAY. A body that ends early
            // is no reason: there it is a stream that was reset, which is how a client takes an upload back.
            self.leave.notify_one();
        }
        (unsafe_to_go_on || body.is_long()) && !self.http2
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
        let mut watched = self.watched.borrow_mut();
        if watched.len() >= WATCHED_MAX {
            watched.retain(|(_, remains)| !remains.gone());
        }
        watched.push((deadline, body.remains()));
    }

    fn expire_answers(&self) {
        let now = Instant::now();
        let mut watched = self.watched.borrow_mut();
        watched.retain(|(deadline, remains)| {
            if *deadline <= now {
                remains.expire();
            }
            *deadline > now && !remains.gone()
        });
        if !watched.is_empty() {
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
        if idle { Silence::Idle } else { Silence::No }
    }
}

/// The audit's entry of a certificate.
fn certified(client: &Client, fingerprint: &str, now: Timestamp) -> Certified {
    let Credential { issuer, uris, dns_names, spki, fingerprint: digest, not_after } = &client.credential;
    let mut entry = event::Credential {
        v: event::VERSION,
        time: now,
        fingerprint: fingerprint.into(),
        spki: hex(spki).into(),
        issuer: (&**issuer).into(),
        subject: event::clipped(&client.subject).into(),
        uris: uris.iter().map(Into::into).collect(),
        dns_names: dns_names.iter().map(Into::into).collect(),
        not_after: *not_after,
    };
    let whole = Event::Credential(entry.clone()).to_json();
    if whole.len() <= ENTRY_BYTES_MAX {
        return Certified { fingerprint: *digest, entry: whole };
    }
    // Thousands of names: no entry could hold them. Its fingerprint still says which one it was.
    (entry.uris, entry.dns_names) = (Vec::new(), Vec::new());
    Certified { fingerprint: *digest, entry: Event::Credential(entry).to_json() }
}

/// Whether the partner may come in from there at all; the agreed hours aside, whose end takes no trust away: what was
/// begun in time may end.
fn is_admitted(partner: &Partner, source: IpAddr, now: Timestamp) -> bool {
    partner.is_valid(now) && partner.networks.find(source, now).lets_in()
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
        frames: FrameLimits {
            resets,
            header_block_bytes_max: 2 * http.head_bytes_max as u64,
            ..FrameLimits::default()
        },
        write_rate_min: rate,
        write_grace: http.rate_grace,
    }
}
