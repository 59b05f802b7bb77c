//! Connections to the backends: one pool a worker and backend, HTTP/1.1, capped.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::paced::{Fault, Paced};
use crate::config::settings::Backend;
use crate::policy::reason::Reason;

/// The pools of one worker.
#[derive(Default)]
pub struct Pools {
    /// By backend, and by its address too: one that moved gets new connections.
    pools: RefCell<HashMap<Destination, Rc<Pool>>>,
}

type Destination = (Arc<str>, SocketAddr);

struct Pool {
    idle: RefCell<VecDeque<Idle>>,
    /// Requests under way. There are never more connections than that: a new one is made only when none is idle.
    places: Arc<Semaphore>,
    idle_max: usize,
}

struct Idle {
    link: Link,
    since: Instant,
}

/// One connection. Dropping it ends its task, and with that the socket and whatever body it still holds: a backend that
/// stops reading must not keep a partner's upload for ever.
struct Link {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
}

/// A connection in use by one request. Dropping it closes the connection; [`Lease::give_back`] keeps it.
pub struct Lease {
    link: Link,
    pool: Rc<Pool>,
    upload: Upload,
    _place: OwnedSemaphorePermit,
}

/// The body that a backend gets.
pub enum Outgoing {
    Empty,
    Whole(Option<Bytes>),
    Streamed { paced: Paced, upload: Upload },
}

/// How far a streamed request body has come; shared by the body and the request that waits for the answer.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    progress: Rc<Cell<Progress>>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Progress {
    /// Nothing is streamed, or nothing was yet.
    #[default]
    Whole,
    Streaming,
    Ended(Instant),
    Failed(Reason),
}

/// A message that came back for another try never reached a backend.
enum Failure {
    Unsent(Box<Request<Outgoing>>),
    Sent,
    Slow,
}

/// A pool keeps at most this many idle connections; more are closed when they are given back.
const IDLE_MAX: usize = 128;

impl Pools {
    /// Sends a request and waits for the head of its answer. A pooled connection that turns out to be closed before
    /// the request was written is replaced once.
    pub async fn send(
        &self,
        backend: &Backend,
        mut request: Request<Outgoing>,
        upload: Upload,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let pool = self.pool(backend);
        let place = timeout(backend.connect_timeout, pool.places.clone().acquire_owned()).await;
        let place = place.ok().and_then(Result::ok).ok_or(Reason::BackendBusy)?;
        if let Some(link) = pool.take_idle(backend.idle_timeout).await {
            let mut lease = Lease { link, pool: pool.clone(), upload: upload.clone(), _place: place };
            match lease.exchange(request, backend, deadline).await {
                Ok(answer) => return Ok((answer, lease)),
                Err(Failure::Unsent(unsent)) => request = *unsent,
                Err(failure) => return Err(upload.reason(failure)),
            }
            let Lease { _place: place, .. } = lease;
            return pool.fresh(request, backend, upload, place, deadline).await;
        }
        pool.fresh(request, backend, upload, place, deadline).await
    }

    fn pool(&self, backend: &Backend) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let new = || {
            let places = Arc::new(Semaphore::new(backend.connections_max));
            Rc::new(Pool { idle: RefCell::default(), places, idle_max: IDLE_MAX.min(backend.connections_max) })
        };
        pools.entry((backend.name.clone(), backend.address)).or_insert_with(new).clone()
    }
}

impl Pool {
    /// The connection that was used last, so that a quiet pool shrinks.
    async fn take_idle(&self, idle_timeout: Duration) -> Option<Link> {
        self.idle.borrow_mut().retain(|idle| idle.since.elapsed() < idle_timeout && !idle.link.sender.is_closed());
        loop {
            let Idle { mut link, .. } = self.idle.borrow_mut().pop_back()?;
            if link.sender.ready().await.is_ok() {
                return Some(link);
            }
        }
    }

    /// Sends on a connection of its own.
    async fn fresh(
        self: Rc<Self>,
        request: Request<Outgoing>,
        backend: &Backend,
        upload: Upload,
        place: OwnedSemaphorePermit,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let link = connect(backend).await?;
        let mut lease = Lease { link, pool: self, upload: upload.clone(), _place: place };
        match lease.exchange(request, backend, deadline).await {
            Ok(answer) => Ok((answer, lease)),
            Err(failure) => Err(upload.reason(failure)),
        }
    }
}

async fn connect(backend: &Backend) -> Result<Link, Reason> {
    let stream = timeout(backend.connect_timeout, TcpStream::connect(backend.address)).await;
    let stream = stream.map_err(|_| Reason::BackendConnectTimeout)?.map_err(|_| Reason::BackendUnreachable)?;
    // Without it, small requests wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let mut builder = hyper::client::conn::http1::Builder::new();
    builder.max_buf_size(128 << 10);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| Reason::BackendUnreachable)?;
    let task = tokio::task::spawn_local(async move {
        // Its errors reach the request that is waiting; an idle connection may end as it likes.
        let _ = connection.await;
    });
    let mut link = Link { sender, task: task.abort_handle() };
    link.sender.ready().await.map_err(|_| Reason::BackendUnreachable)?;
    Ok(link)
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Lease {
    async fn exchange(
        &mut self,
        request: Request<Outgoing>,
        backend: &Backend,
        deadline: Instant,
    ) -> Result<Response<Incoming>, Failure> {
        let mut answer = std::pin::pin!(self.link.sender.try_send_request(request));
        let begun = Instant::now();
        loop {
            // The backend's time runs from the end of the request; a slow upload is the partner's.
            let until = match self.upload.progress.get() {
                Progress::Whole | Progress::Failed(_) => begun + backend.answer_timeout,
                Progress::Ended(at) => at + backend.answer_timeout,
                Progress::Streaming => Instant::now() + backend.answer_timeout,
            };
            match timeout_at(until.min(deadline), &mut answer).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(mut error)) => {
                    let unsent = error.take_message();
                    return Err(unsent.map_or(Failure::Sent, |request| Failure::Unsent(Box::new(request))));
                }
                Err(_) if Instant::now() < deadline && self.upload.streaming(backend) => {}
                Err(_) => return Err(Failure::Slow),
            }
        }
    }

    /// Keeps the connection for the next request. Call it only when the answer was read to its end.
    pub fn give_back(self) {
        let Lease { link, pool, upload, .. } = self;
        let clean = matches!(upload.progress.get(), Progress::Whole | Progress::Ended(_));
        let mut idle = pool.idle.borrow_mut();
        if clean && !link.sender.is_closed() && idle.len() < pool.idle_max {
            idle.push_back(Idle { link, since: Instant::now() });
        }
    }

    /// When the request was sent whole, if its body was streamed.
    pub fn sent_at(&self) -> Option<Instant> {
        match self.upload.progress.get() {
            Progress::Ended(at) => Some(at),
            Progress::Whole | Progress::Streaming | Progress::Failed(_) => None,
        }
    }
}

impl Upload {
    /// Still coming, or ended so lately that the backend has time left.
    fn streaming(&self, backend: &Backend) -> bool {
        match self.progress.get() {
            Progress::Streaming => true,
            Progress::Ended(at) => at.elapsed() < backend.answer_timeout,
            Progress::Whole | Progress::Failed(_) => false,
        }
    }

    fn reason(&self, failure: Failure) -> Reason {
        match (self.progress.get(), failure) {
            // The partner's body was at fault, whatever the connection made of it.
            (Progress::Failed(reason), _) => reason,
            (_, Failure::Slow) => Reason::BackendTimeout,
            (_, Failure::Unsent(_)) => Reason::BackendUnreachable,
            (_, Failure::Sent) => Reason::BackendProtocol,
        }
    }
}

impl Outgoing {
    pub fn streamed(paced: Paced, upload: Upload) -> Outgoing {
        upload.progress.set(Progress::Streaming);
        Outgoing::Streamed { paced, upload }
    }
}

/// The reason for refusing a request whose body ended early.
pub fn body_fault(fault: &Fault) -> Reason {
    match fault {
        Fault::TooLarge => Reason::BodyTooLarge,
        Fault::TooSlow => Reason::BodyTimeout,
        Fault::Broken(_) => Reason::BodyIncomplete,
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let (paced, upload) = match self.get_mut() {
            Outgoing::Empty => return Poll::Ready(None),
            Outgoing::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Streamed { paced, upload } => (paced, upload),
        };
        let piece = std::task::ready!(paced.poll_piece(cx));
        match &piece {
            Some(Err(fault)) => upload.progress.set(Progress::Failed(body_fault(fault))),
            // hyper does not ask for more than the announced length: the last byte is the end too.
            Some(Ok(_)) if !paced.is_end_stream() => {}
            Some(Ok(_)) | None => upload.progress.set(Progress::Ended(Instant::now())),
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Whole(bytes) => bytes.is_none(),
            // Not even at the end before it was polled: `Ended` is noted when the end is read.
            Outgoing::Streamed { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Empty => SizeHint::with_exact(0),
            Outgoing::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Outgoing::Streamed { paced, .. } => paced.size_hint(),
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}
