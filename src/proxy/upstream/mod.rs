//! How does a request get to one of a backend's servers, and its answer back? [`Pools::send`] is the way; each question on
//! it has a file: which server (`balance`), over which connection (`pool`, `socket`), with which body (`body`), by whose
//! word (`tls`), and is the answer one that can only be read in one way (`screen`). `health` asks in the background.

mod balance;
mod body;
pub mod health;
mod pool;
mod screen;
mod socket;
mod tls;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Request, Response, StatusCode, Uri};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

pub use body::{Outgoing, Upload, body_fault};
pub use pool::Pools;
pub use screen::screen;
pub use socket::Local;
pub use tls::Tls;

use crate::clock::Timestamp;
use crate::config::problem::Problem;
use crate::config::settings::{Backend, Protocol};
use crate::policy::reason::Reason;
use crate::state::backends::{Admit, BackendState, Backends, Body, InFlight, ServerState};
use pool::{Failure, Group, Link};

/// One backend of a snapshot: its settings, the files that they name, and what is known of its servers.
#[derive(Debug)]
pub struct Upstream {
    pub settings: Backend,
    /// What the backend sees as `Host`.
    pub host: HeaderValue,
    authority: Authority,
    pub tls: Option<Tls>,
    /// In the order of the settings.
    pub servers: Vec<Arc<ServerState>>,
    pub state: Arc<BackendState>,
    /// Digest of everything that a connection depends on: it is used under these settings and no others.
    made_for: [u8; 32],
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub reason: Reason,
    pub retry_after: Option<Duration>,
}

/// A connection in use by one request, and what the request holds besides. Dropping it closes the connection;
/// [`Lease::give_back`] keeps it.
pub struct Lease {
    /// `None` once it was given back.
    link: Option<Link>,
    at: usize,
    turn: Turn,
    upload: Upload,
    _place: OwnedSemaphorePermit,
    _in_flight: InFlight,
}

/// One request in the eyes of the circuit breaker.
struct Turn {
    group: Rc<Group>,
    body: Body,
    probe: bool,
    settled: bool,
}

/// A request that came back without an answer.
struct Missed {
    reason: Reason,
    /// The request, if it never reached the server.
    unsent: Option<Box<Request<Outgoing>>>,
    /// The connection had ended, or the server said that it had not begun: nothing against the server.
    stale: bool,
}

impl Upstream {
    /// Whether connections of the one could be those of the other.
    pub fn is_made_as(&self, other: &Upstream) -> bool {
        self.made_for == other.made_for
    }

    /// Reads the files that the settings name; every mistake is noted.
    pub fn build(settings: &Backend, backends: &Backends, problems: &mut Vec<Problem>) -> Option<Upstream> {
        let place = &settings.place;
        let host = HeaderValue::from_str(&settings.host).ok().zip(Authority::try_from(settings.host.as_str()).ok());
        if host.is_none() {
            let problem = Problem::error(&*place.file, "backend.host", "is no host").at_line(place.line as usize);
            problems.push(problem.with_value(&settings.host).with_hint("it is a name or address without port"));
        }
        let mut digest = digest::Context::new(&digest::SHA256);
        // Where in the file it stands does not matter to a connection.
        digest.update(format!("{:?}", Backend { place: place.nowhere(), ..settings.clone() }).as_bytes());
        let tls = match &settings.tls {
            Some(tls) => Some(Tls::load(tls, settings, &mut digest, problems)?),
            None => None,
        };
        let (host, authority) = host?;
        let state = backends.backend(&settings.name);
        let servers = settings.servers.iter().map(|address| state.server(*address)).collect();
        let mut made_for = [0; 32];
        made_for.copy_from_slice(digest.finish().as_ref());
        Some(Upstream { settings: settings.clone(), host, authority, tls, servers, state, made_for })
    }

    /// A request as HTTP/2 has it: the authority in the target instead of a header.
    fn absolute(&self, mut request: Request<Outgoing>) -> Request<Outgoing> {
        request.headers_mut().remove(header::HOST);
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP });
        parts.authority = Some(self.authority.clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        // All three parts are there: it cannot fail.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        request
    }
}

impl Pools {
    /// Sends a request and waits for the head of its answer. A request that never reached a server gets one more try, at
    /// another server if there is one, under the same deadline. One of which a byte may have been read gets none: nobody
    /// knows what the server made of it.
    pub async fn send(
        &self,
        upstream: &Arc<Upstream>,
        request: Request<Outgoing>,
        upload: Upload,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Lease), Refusal> {
        let group = self.group(upstream);
        let mut turn = Turn::begin(group.clone(), request.body().kind())?;
        let first = group.first();
        let missed = match group.ask(first, request, &upload, deadline, false).await {
            Ok(answered) => return Ok(turn.lease(first, answered, upload)),
            Err(missed) => missed,
        };
        let again = group.another(first).or_else(|| missed.stale.then_some(first));
        let reason = match (missed.unsent, again) {
            (Some(request), Some(again)) => {
                group.retries(again);
                match group.ask(again, *request, &upload, deadline, again == first).await {
                    Ok(answered) => return Ok(turn.lease(again, answered, upload)),
                    Err(missed) => missed.reason,
                }
            }
            _ => missed.reason,
        };
        if is_failure(reason, deadline) {
            turn.failed();
        }
        Err(Refusal { reason, retry_after: None })
    }
}

/// What a server answered, and what the exchange holds.
struct Exchanged {
    response: Response<Incoming>,
    link: Link,
    place: OwnedSemaphorePermit,
    in_flight: InFlight,
}

impl Group {
    fn first(&self) -> usize {
        let servers = &self.upstream.servers;
        if servers.len() == 1 {
            return 0;
        }
        balance::first(servers, self.upstream.settings.slow_start, self.now(), self.next_start())
    }

    fn another(&self, not: usize) -> Option<usize> {
        let servers = &self.upstream.servers;
        balance::another(servers, self.upstream.settings.slow_start, self.now(), not)
    }

    /// Asks one server, on a connection of the pool or a new one.
    async fn ask(
        &self,
        at: usize,
        request: Request<Outgoing>,
        upload: &Upload,
        deadline: Instant,
        fresh: bool,
    ) -> Result<Exchanged, Missed> {
        let (upstream, pool) = (&self.upstream, &self.pools[at]);
        let in_flight = upstream.servers[at].begin();
        let Some(place) = pool.place(&upstream.settings, deadline).await else {
            return Err(Missed { reason: Reason::BackendBusy, unsent: None, stale: false });
        };
        // Of HTTP/2, what was at fault is not in the pool any more.
        let fresh = fresh && upstream.settings.protocol == Protocol::Http1;
        let pooled = if fresh { None } else { pool.take(&upstream.settings).await };
        let was_pooled = pooled.is_some();
        let mut link = match pooled {
            Some(link) => link,
            None => match pool.connect(upstream, at, &self.gateway.clock, deadline).await {
                Ok(link) => link,
                Err(reason) => {
                    if is_failure(reason, deadline) {
                        self.failed(at, reason);
                    }
                    return Err(Missed { reason, unsent: Some(Box::new(request)), stale: false });
                }
            },
        };
        let missed = match link.exchange(request, upload, upstream, deadline).await {
            Ok(response) => return Ok(Exchanged { response, link, place, in_flight }),
            Err(Failure::Unsent(request)) => {
                Missed { reason: Reason::BackendUnreachable, unsent: Some(request), stale: was_pooled }
            }
            Err(Failure::Untouched(request)) => {
                Missed { reason: Reason::BackendUnreachable, unsent: Some(request), stale: true }
            }
            Err(Failure::Sent(reason)) => Missed { reason, unsent: None, stale: false },
        };
        if is_failure(missed.reason, deadline) && !missed.stale {
            self.failed(at, missed.reason);
        }
        Err(missed)
    }

    fn now(&self) -> Timestamp {
        self.gateway.clock.now()
    }

    fn retries(&self, at: usize) {
        let settings = &self.upstream.settings;
        self.gateway.metrics.backend_retry(&settings.name, &self.upstream.servers[at].label);
    }

    /// Counts a failure against a server.
    fn failed(&self, at: usize, reason: Reason) {
        let (upstream, metrics) = (&self.upstream, &self.gateway.metrics);
        let (name, server) = (&*upstream.settings.name, &upstream.servers[at]);
        metrics.backend_failure(name, &server.label, reason.code());
        if upstream.state.failed(server, &upstream.servers, &upstream.settings.ejection, self.now()) {
            metrics.backend_ejection(name, &server.label);
            let (seconds, last) = (upstream.settings.ejection.time.as_secs_f64(), reason.code());
            tracing::warn!(backend = name, server = &*server.label, seconds, last, "server ejected");
        }
    }
}

impl Turn {
    fn begin(group: Rc<Group>, body: Body) -> Result<Turn, Refusal> {
        let upstream = &group.upstream;
        let probe = match upstream.settings.circuit {
            None => false,
            Some(_) => match upstream.state.breaker.admit(body, || group.now()) {
                Admit::Pass => false,
                Admit::Probe => true,
                Admit::Wait(wait) => {
                    return Err(Refusal { reason: Reason::BackendCircuitOpen, retry_after: Some(wait) });
                }
            },
        };
        Ok(Turn { group, body, probe, settled: false })
    }

    fn lease(self, at: usize, answered: Exchanged, upload: Upload) -> (Response<Incoming>, Lease) {
        let Exchanged { response, link, place, in_flight } = answered;
        (response, Lease { link: Some(link), at, turn: self, upload, _place: place, _in_flight: in_flight })
    }

    fn settle_probe(&self) {
        if let Some(circuit) = &self.group.upstream.settings.circuit {
            self.group.upstream.state.breaker.succeeded(true, circuit, || self.group.now());
        }
    }

    fn succeeded(&mut self) {
        if let Some(circuit) = &self.group.upstream.settings.circuit {
            self.group.upstream.state.breaker.succeeded(self.probe, circuit, || self.group.now());
        }
        self.settled = true;
    }

    fn failed(&mut self) {
        self.settled = true;
        let upstream = &self.group.upstream;
        let Some(circuit) = &upstream.settings.circuit else { return };
        if upstream.state.breaker.failed(self.probe, circuit, self.group.now()) {
            let (backend, seconds) = (&*upstream.settings.name, circuit.open_time.as_secs_f64());
            tracing::warn!(backend, seconds, "circuit opened: requests are refused");
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.probe && !self.settled {
            self.group.upstream.state.breaker.abandoned(self.body);
        }
    }
}

impl Lease {
    /// The head is there and says nothing against the server. A probe is decided by that: all other requests wait for it,
    /// and a body may take long. What comes of the body counts for itself.
    pub fn begun(&mut self) {
        if std::mem::take(&mut self.turn.probe) {
            self.turn.settle_probe();
        }
    }

    /// Keeps the connection for the next request. Call it only when the answer was read to its end.
    pub fn give_back(mut self) {
        if !self.turn.settled {
            self.turn.succeeded();
            self.turn.group.upstream.servers[self.at].succeeded();
        }
        if let Some(link) = self.link.take_if(|_| self.upload.is_over()) {
            self.turn.group.pools[self.at].keep(link);
        }
    }

    /// Counts the answer as a failure of its server, once.
    pub fn fail(&mut self, reason: Reason) {
        if !self.turn.settled {
            self.turn.failed();
            self.turn.group.failed(self.at, reason);
        }
    }

    /// When the request was sent whole, if its body was streamed.
    pub fn sent_at(&self) -> Option<Instant> {
        self.upload.ended_at()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A server that answered and does not read on keeps what it was to read. That ends with the connection.
        if let (Some(link), false) = (&self.link, self.upload.is_over()) {
            link.retire();
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

/// What says something against the server, or against the backend as a whole. A full pool and a partner's body do not, nor
/// does the request's deadline: a partner that takes most of the time for its body must not be able to take servers out.
fn is_failure(reason: Reason, deadline: Instant) -> bool {
    let of_server = matches!(
        reason,
        Reason::BackendUnreachable
            | Reason::BackendTls
            | Reason::BackendConnectTimeout
            | Reason::BackendTimeout
            | Reason::BackendProtocol
    );
    of_server && Instant::now() < deadline
}

/// A status by which a server, or something before it, says that it cannot answer now. A 500 may be about the request: a
/// partner that finds one must not be able to take servers out.
pub fn is_out_of_service(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{BackendTls, ClientCertificate, Ejection};
    use crate::policy::route::Place;

    #[test]
    fn a_connection_belongs_to_the_settings_and_files_that_it_was_made_under() {
        let directory = tempfile::tempdir().unwrap();
        let make =
            || crate::demo::pki::make(&directory.path().join("pki"), crate::clock::Clock::system().now()).unwrap();
        make();
        let file = |name: &str| directory.path().join("pki").join(name);
        let client = ClientCertificate { certificate: file("icmr.pem"), key: file("icmr.key") };
        let settings = Backend {
            name: "registry".into(),
            servers: vec![([127, 0, 0, 1], 1).into()],
            host: "registry.internal".to_owned(),
            protocol: Protocol::Http1,
            tls: Some(BackendTls { ca: file("ca.pem"), name: "registry.internal".to_owned(), client: Some(client) }),
            connections_max: 1,
            pending_max: 1,
            connect_timeout: Duration::from_secs(1),
            answer_timeout: Duration::from_secs(1),
            idle_timeout: Duration::from_secs(1),
            health: None,
            ejection: Ejection { after: 1, time: Duration::from_secs(1), percent_max: 50 },
            slow_start: Duration::ZERO,
            circuit: None,
            place: Place { file: "gateway.toml".into(), line: 1 },
        };
        let backends = Backends::default();
        let built = |settings: &Backend| {
            let mut problems = Vec::new();
            let upstream = Upstream::build(settings, &backends, &mut problems);
            upstream.unwrap_or_else(|| panic!("{problems:?}"))
        };
        let changed = |change: &dyn Fn(&mut Backend)| {
            let mut settings = settings.clone();
            change(&mut settings);
            built(&settings)
        };
        let first = built(&settings);
        let moved = changed(&|settings| settings.place.line = 9);
        assert_eq!(first.made_for, moved.made_for, "the same settings at another place");
        assert!(Arc::ptr_eq(&first.servers[0], &moved.servers[0]), "what is known of a server is shared");
        let changes: [&dyn Fn(&mut Backend); 6] = [
            &|settings| settings.host = "other.internal".to_owned(),
            &|settings| settings.protocol = Protocol::Http2,
            &|settings| settings.tls = None,
            &|settings| settings.tls.as_mut().unwrap().name = "other.internal".to_owned(),
            &|settings| settings.tls.as_mut().unwrap().client = None,
            &|settings| settings.servers.push(([127, 0, 0, 1], 2).into()),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            assert_ne!(first.made_for, changed(change).made_for, "change {at}");
        }
        make();
        assert_ne!(first.made_for, built(&settings).made_for, "other files of the same names");
    }
}
