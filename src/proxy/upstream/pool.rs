//! Over which connection? Those of one worker: a pool for each server, capped; HTTP/1.1 connections are used by one request
//! at a time, an HTTP/2 connection by many.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::error::Error as _;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper::rt::Executor as _;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::body::Progress;
use super::socket::{Allowed, HeadAllowance, Socket, Tasks, dial};
use super::{Outgoing, Upload, Upstream};
use crate::clock::Clock;
use crate::config::settings::{Backend, Protocol};
use crate::gateway::Gateway;
use crate::policy::reason::Reason;
use crate::proxy::wire::http2::{Allowance, FrameLimits};
use crate::proxy::wire::{Limits, Wire};
use crate::snapshot::Snapshot;

/// The pools of one worker.
pub struct Pools {
    gateway: Arc<Gateway>,
    /// By backend. One whose settings or files have changed gets new connections.
    groups: RefCell<HashMap<Arc<str>, Rc<Group>>>,
}

/// One worker's connections to one backend, under one set of settings.
pub(super) struct Group {
    pub upstream: Arc<Upstream>,
    pub gateway: Arc<Gateway>,
    /// In the order of the servers.
    pub pools: Vec<Pool>,
    turns: Cell<usize>,
}

/// Connections to one server.
pub(super) struct Pool {
    /// The one that was used last is at the back, so that a quiet pool shrinks.
    idle: RefCell<VecDeque<Idle>>,
    /// HTTP/2 connections, whether in use or not.
    shared: RefCell<Vec<Rc<Shared>>>,
    /// Requests under way. There are never more connections than that: a new one is made only when none is idle.
    places: Arc<Semaphore>,
    waiting: Cell<usize>,
}

struct Idle {
    link: Single,
    since: Instant,
}

/// What one request sends on.
pub(super) enum Link {
    Single(Single),
    Shared(Stream),
}

/// An HTTP/1.1 connection. Dropping it ends its task, and with that the socket and whatever body it still holds: a server
/// that stops reading must not keep a partner's upload for ever.
pub(super) struct Single {
    sender: http1::SendRequest<Outgoing>,
    socket: Socket,
    allowance: HeadAllowance,
    task: AbortHandle,
}

/// An HTTP/2 connection. Dropped by the pool and by the last request, it ends its tasks, and with them whatever they hold.
struct Shared {
    sender: http2::SendRequest<Outgoing>,
    socket: Socket,
    tasks: Tasks,
    streams: Cell<usize>,
    idle_since: Cell<Instant>,
    /// A request on it failed: those under way may go on, new ones get another.
    retired: Cell<bool>,
}

/// One request's part of an HTTP/2 connection.
pub(super) struct Stream(Rc<Shared>);

/// Why there was no answer.
pub(super) enum Failure {
    /// It never reached the server.
    Unsent(Box<Request<Outgoing>>),
    /// It did, and the server says that it made nothing of it.
    Untouched(Box<Request<Outgoing>>),
    /// A byte of it may have been read.
    Sent(Reason),
}

/// A pool keeps at most this many idle connections; more are closed when they are given back.
const IDLE_MAX: usize = 128;
/// An answer's head. Its fields are counted too: hyper takes a hundred.
const HEAD_BYTES_MAX: usize = 64 << 10;
const BUFFER_BYTES_MAX: usize = 128 << 10;
/// Interim answers, the head, and what hyper reads ahead of the body before the head is noted: two buffers.
const HEAD_READ_BYTES_MAX: usize = HEAD_BYTES_MAX + 2 * BUFFER_BYTES_MAX;
/// Requests at the same time on one HTTP/2 connection: what every server should allow (RFC 9113 section 6.5.2). hyper
/// holds back what a server does not.
const STREAMS_MAX: usize = 100;
/// A server that does not answer an HTTP/2 PING for so long while requests are open is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);

impl Pools {
    pub fn of(gateway: Arc<Gateway>) -> Pools {
        Pools { gateway, groups: RefCell::default() }
    }

    /// The connections of a backend as its settings are in the request's snapshot.
    pub(super) fn group(&self, upstream: &Arc<Upstream>) -> Rc<Group> {
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(&upstream.settings.name)
            && group.upstream.made_for == upstream.made_for
        {
            return group.clone();
        }
        // What is left of the old group goes with its last request.
        let group = Rc::new(Group::of(upstream.clone(), self.gateway.clone()));
        groups.insert(upstream.settings.name.clone(), group.clone());
        group
    }

    /// Closes what has been idle for too long, or is not configured any more.
    pub fn trim(&self, snapshot: &Snapshot) {
        self.groups.borrow_mut().retain(|_, group| {
            let current = |upstream: &Arc<Upstream>| upstream.made_for == group.upstream.made_for;
            group.pools.iter().for_each(|pool| pool.trim(group.upstream.settings.idle_timeout));
            snapshot.upstreams.iter().any(current)
        });
    }
}

impl Group {
    fn of(upstream: Arc<Upstream>, gateway: Arc<Gateway>) -> Group {
        let pools = upstream.servers.iter().map(|_| Pool::of(upstream.settings.connections_max)).collect();
        Group { upstream, gateway, pools, turns: Cell::new(0) }
    }

    /// Goes round with every request.
    pub fn next_start(&self) -> usize {
        self.turns.replace(self.turns.get().wrapping_add(1)) % self.pools.len().max(1)
    }
}

impl Pool {
    fn of(connections_max: usize) -> Pool {
        let places = Arc::new(Semaphore::new(connections_max));
        Pool { idle: RefCell::default(), shared: RefCell::default(), places, waiting: Cell::new(0) }
    }

    /// A place for one more request, waited for no longer than a connection would be.
    pub async fn place(&self, settings: &Backend, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        if self.waiting.get() >= settings.pending_max {
            return None;
        }
        let _waiting = Waiting::begin(&self.waiting);
        let until = deadline.min(Instant::now() + settings.connect_timeout);
        timeout_at(until, self.places.clone().acquire_owned()).await.ok()?.ok()
    }

    /// A connection that is there.
    pub async fn take(&self, settings: &Backend) -> Option<Link> {
        if settings.protocol == Protocol::Http2 {
            let mut shared = self.shared.borrow_mut();
            shared.retain(|link| link.is_good());
            let free = shared.iter().find(|link| link.streams.get() < STREAMS_MAX);
            return free.map(|link| Link::Shared(Stream::on(link)));
        }
        loop {
            let Idle { mut link, since } = self.idle.borrow_mut().pop_back()?;
            if since.elapsed() >= settings.idle_timeout || link.sender.is_closed() || !link.socket.is_quiet() {
                continue;
            }
            // It nearly always is at once; not where the server answered before it had read the request.
            if link.sender.is_ready()
                || matches!(timeout(settings.connect_timeout, link.sender.ready()).await, Ok(Ok(())))
            {
                return Some(Link::Single(link));
            }
        }
    }

    pub async fn connect(
        &self,
        upstream: &Upstream,
        at: usize,
        clock: &Clock,
        deadline: Instant,
    ) -> Result<Link, Reason> {
        let dialled = timeout_at(deadline, dial(upstream, at, clock)).await;
        let (stream, socket) = dialled.unwrap_or(Err(Reason::BackendConnectTimeout))?;
        match upstream.settings.protocol {
            Protocol::Http1 => {
                let allowance = HeadAllowance::default();
                let allowed = Allowed { stream, allowance: allowance.clone() };
                let mut builder = http1::Builder::new();
                builder.max_buf_size(BUFFER_BYTES_MAX).max_header_size(HEAD_BYTES_MAX);
                let handshake = builder.handshake(TokioIo::new(allowed)).await;
                let (sender, connection) = handshake.map_err(|_| Reason::BackendUnreachable)?;
                let task = tokio::task::spawn_local(async move {
                    // Its errors reach the request that is waiting; an idle connection may end as it likes.
                    let _ = connection.await;
                });
                let mut link = Single { sender, socket, allowance, task: task.abort_handle() };
                link.sender.ready().await.map_err(|_| Reason::BackendUnreachable)?;
                Ok(Link::Single(link))
            }
            Protocol::Http2 => {
                let (wire, _) = Wire::http2_of_server(stream, &frames());
                let tasks = Tasks::default();
                let mut builder = http2::Builder::new(tasks.clone());
                builder
                    .timer(TokioTimer::new())
                    .max_header_list_size(HEAD_BYTES_MAX as u32)
                    .max_send_buf_size(64 << 10)
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(upstream.settings.answer_timeout);
                let handshake = builder.handshake(TokioIo::new(wire)).await;
                let (sender, connection) = handshake.map_err(|_| Reason::BackendUnreachable)?;
                // Its errors reach the requests that are waiting.
                tasks.execute(connection);
                let (streams, retired) = (Cell::new(0), Cell::new(false));
                let link =
                    Rc::new(Shared { sender, socket, tasks, streams, idle_since: Cell::new(Instant::now()), retired });
                self.shared.borrow_mut().push(link.clone());
                Ok(Link::Shared(Stream::on(&link)))
            }
        }
    }

    /// Keeps a connection for the next request.
    pub fn keep(&self, link: Link) {
        if let Link::Single(link) = link {
            let mut idle = self.idle.borrow_mut();
            if !link.sender.is_closed() && idle.len() < IDLE_MAX {
                idle.push_back(Idle { link, since: Instant::now() });
            }
        }
    }

    fn trim(&self, idle_timeout: Duration) {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() < idle_timeout && !idle.link.sender.is_closed());
        self.shared.borrow_mut().retain(|link| {
            link.is_good() && (link.streams.get() > 0 || link.idle_since.get().elapsed() < idle_timeout)
        });
    }
}

struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a Cell<usize>) -> Waiting<'a> {
        waiting.set(waiting.get() + 1);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Shared {
    fn is_good(&self) -> bool {
        !self.retired.get() && !self.sender.is_closed() && !self.socket.has_ended()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tasks.end();
    }
}

impl Stream {
    fn on(link: &Rc<Shared>) -> Stream {
        link.streams.set(link.streams.get() + 1);
        Stream(link.clone())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.idle_since.set(Instant::now());
    }
}

impl Drop for Single {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Sees to it that the connection ends with the requests that are on it. One of HTTP/1.1 does anyway.
    pub fn retire(&self) {
        if let Link::Shared(stream) = self {
            stream.0.retired.set(true);
        }
    }

    pub async fn exchange(
        &mut self,
        request: Request<Outgoing>,
        upload: &Upload,
        upstream: &Upstream,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let answer_timeout = upstream.settings.answer_timeout;
        match self {
            Link::Single(link) => {
                link.allowance.begin(HEAD_READ_BYTES_MAX);
                let answer = link.sender.try_send_request(request);
                let answer = awaited(answer, upload, answer_timeout, deadline).await;
                link.allowance.end();
                answer.map_err(|error| match error {
                    Some(mut error) => match error.take_message() {
                        Some(request) => Failure::Unsent(Box::new(request)),
                        None => Failure::Sent(upload.blamed(sent_reason(&error.into_error()))),
                    },
                    None => Failure::Sent(upload.blamed(Reason::BackendTimeout)),
                })
            }
            Link::Shared(stream) => {
                let request = upstream.absolute(request);
                // hyper gives a request back only before it was begun; what the server says it has not touched
                // (RFC 9113 section 8.7) has to be kept here.
                let copy = again(&request);
                let mut sender = stream.0.sender.clone();
                let answer = sender.try_send_request(request);
                let answer = awaited(answer, upload, answer_timeout, deadline).await;
                answer.map_err(|error| {
                    let said = error.as_ref().and_then(of_http2);
                    // A stream that was reset says nothing about the others.
                    if !said.is_some_and(h2::Error::is_reset) {
                        stream.0.retired.set(true);
                    }
                    let untouched = said.is_some_and(is_untouched);
                    match error {
                        Some(mut error) => match (error.take_message(), copy) {
                            (Some(request), _) => Failure::Unsent(Box::new(request)),
                            (None, Some(request)) if untouched => Failure::Untouched(Box::new(request)),
                            _ => Failure::Sent(upload.blamed(sent_reason(&error.into_error()))),
                        },
                        None => Failure::Sent(upload.blamed(Reason::BackendTimeout)),
                    }
                })
            }
        }
    }
}

type Trial = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>;

/// Waits for the head of an answer; `Err(None)` where it was too late.
async fn awaited(
    answer: impl Future<Output = Trial>,
    upload: &Upload,
    answer_timeout: Duration,
    deadline: Instant,
) -> Result<Response<Incoming>, Option<TrySendError<Request<Outgoing>>>> {
    let mut answer = std::pin::pin!(answer);
    let begun = Instant::now();
    loop {
        match timeout_at(upload.patience(begun, answer_timeout).min(deadline), &mut answer).await {
            Ok(answer) => return answer.map_err(Some),
            Err(_) if Instant::now() < deadline && upload.is_moving(answer_timeout) => {}
            Err(_) => return Err(None),
        }
    }
}

impl Upload {
    /// The reason to give: the partner's body may be at fault, whatever the connection made of it.
    fn blamed(&self, reason: Reason) -> Reason {
        match self.progress() {
            Progress::Failed(reason) => reason,
            _ => reason,
        }
    }
}

/// The same request once more, if its body can be had twice.
fn again(request: &Request<Outgoing>) -> Option<Request<Outgoing>> {
    let mut copy = Request::new(request.body().again()?);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Refused before anything was made of it: the stream alone, or by a GOAWAY that names an earlier stream as the last. h2
/// gives the streams up to that one another error.
fn is_untouched(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

fn of_http2(error: &TrySendError<Request<Outgoing>>) -> Option<&h2::Error> {
    error.error().source()?.downcast_ref()
}

/// A server that does not like the gateway's certificate says so after the handshake (TLS 1.3).
fn sent_reason(error: &hyper::Error) -> Reason {
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.downcast_ref::<io::Error>().and_then(|error| error.get_ref());
        if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return Reason::BackendTls;
        }
        source = error.source();
    }
    Reason::BackendProtocol
}

/// An honest server sends a head for each request, resets what it likes, and may ask by a PING with every DATA frame how
/// much the line carries. These only end floods, which hyper would keep in memory until somebody reads them.
fn frames() -> Limits {
    let many = Allowance { burst: 2_000, per_second: 2_000 };
    let frames = FrameLimits {
        headers: Allowance { burst: 20_000, per_second: 30_000 },
        header_block_bytes_max: 2 * HEAD_BYTES_MAX as u64,
        settings: Allowance { burst: 100, per_second: 10 },
        pings: many,
        acks: many,
        resets: many,
        window_updates: Allowance { burst: 20_000, per_second: 20_000 },
        empty_data: many,
        ..FrameLimits::default()
    };
    Limits { frames, ..Limits::default() }
}
