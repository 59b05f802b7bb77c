//! What may a partner's bytes look like before hyper reads them? The wrapper that stands between TLS and hyper.
//!
//! HTTP/1 passes a [`http1::Gate`], HTTP/2 a [`http2::Meter`]; both are pure, and this file only carries bytes to and from
//! them. Writes are watched for a peer that does not read.

pub mod http1;
pub mod http2;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use self::http1::{Fate, Gate, HeadLimits};
use self::http2::{FrameLimits, Meter};
use crate::clock::Timestamp;

/// What a peer did that this side of the gateway does not take. A reason is for ever: it is shown and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    // HTTP/1 lines, in a head, in trailers or around a chunk.
    BareLf,
    BareCr,
    LeadingEmptyLine,
    // HTTP/1 request line.
    RequestLine,
    Method,
    TargetTooLong,
    TargetBytes,
    TargetForm,
    Version,
    // HTTP/1 fields.
    ObsFold,
    ColonMissing,
    SpaceBeforeColon,
    FieldName,
    FieldNameTooLong,
    FieldValue,
    UnderscoreName,
    TooManyFields,
    HeadTooLarge,
    // HTTP/1 framing.
    HostMissing,
    HostRepeated,
    ContentLength,
    ContentLengthRepeated,
    TransferEncoding,
    TransferEncodingRepeated,
    TransferEncodingVersion,
    LengthWithEncoding,
    // HTTP/1 bodies.
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    TrailerName,
    TrailersTooLarge,
    // HTTP/2.
    FrameTooLong,
    HeaderBlockTooLarge,
    TooManyContinuations,
    HeadersFlood,
    SettingsFlood,
    PingFlood,
    AckFlood,
    ResetFlood,
    PriorityFlood,
    WindowUpdateFlood,
    EmptyDataFlood,
    OtherFrameFlood,
    // Both.
    SlowRead,
}

impl Violation {
    /// Two parsers could disagree about where this message ends.
    pub const fn is_framing(self) -> bool {
        use Violation as V;
        matches!(
            self,
            V::ContentLength
                | V::ContentLengthRepeated
                | V::TransferEncoding
                | V::TransferEncodingRepeated
                | V::TransferEncodingVersion
                | V::LengthWithEncoding
                | V::UnderscoreName
        )
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Violation::BareLf => "bare-lf",
            Violation::BareCr => "bare-cr",
            Violation::LeadingEmptyLine => "leading-empty-line",
            Violation::RequestLine => "request-line",
            Violation::Method => "method",
            Violation::TargetTooLong => "target-too-long",
            Violation::TargetBytes => "target-bytes",
            Violation::TargetForm => "target-form",
            Violation::Version => "version",
            Violation::ObsFold => "obs-fold",
            Violation::ColonMissing => "colon-missing",
            Violation::SpaceBeforeColon => "space-before-colon",
            Violation::FieldName => "field-name",
            Violation::FieldNameTooLong => "field-name-too-long",
            Violation::FieldValue => "field-value",
            Violation::UnderscoreName => "underscore-name",
            Violation::TooManyFields => "too-many-fields",
            Violation::HeadTooLarge => "head-too-large",
            Violation::HostMissing => "host-missing",
            Violation::HostRepeated => "host-repeated",
            Violation::ContentLength => "content-length",
            Violation::ContentLengthRepeated => "content-length-repeated",
            Violation::TransferEncoding => "transfer-encoding",
            Violation::TransferEncodingRepeated => "transfer-encoding-repeated",
            Violation::TransferEncodingVersion => "transfer-encoding-version",
            Violation::LengthWithEncoding => "length-with-encoding",
            Violation::ChunkSize => "chunk-size",
            Violation::ChunkExtension => "chunk-extension",
            Violation::ChunkEnd => "chunk-end",
            Violation::TrailerName => "trailer-name",
            Violation::TrailersTooLarge => "trailers-too-large",
            Violation::FrameTooLong => "frame-too-long",
            Violation::HeaderBlockTooLarge => "header-block-too-large",
            Violation::TooManyContinuations => "too-many-continuations",
            Violation::HeadersFlood => "headers-flood",
            Violation::SettingsFlood => "settings-flood",
            Violation::PingFlood => "ping-flood",
            Violation::AckFlood => "ack-flood",
            Violation::ResetFlood => "reset-flood",
            Violation::PriorityFlood => "priority-flood",
            Violation::WindowUpdateFlood => "window-update-flood",
            Violation::EmptyDataFlood => "empty-data-flood",
            Violation::OtherFrameFlood => "other-frame-flood",
            Violation::SlowRead => "slow-read",
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "wire violation {}", self.as_str())
    }
}

/// Travels inside the `io::Error` of a failed read or write, where `get_ref` and a downcast find it.
impl std::error::Error for Violation {}

/// Every bound of a partner's connection that is enforced on its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub head: HeadLimits,
    pub frames: FrameLimits,
    /// Bytes a second that a peer has to take on average while this side waits for it.
    pub write_rate_min: NonZeroU32,
    /// How far a peer may fall behind `write_rate_min`. The kernel reports progress by about a third of its send buffer
    /// at a time, so an honest peer at the least rate needs that many bytes' worth of time.
    pub write_grace: Duration,
}

/// Evaluated when compiled: the unwrap cannot fail later.
const WRITE_RATE_MIN: NonZeroU32 = NonZeroU32::new(1024).unwrap();

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head: HeadLimits::default(),
            frames: FrameLimits::default(),
            write_rate_min: WRITE_RATE_MIN,
            write_grace: Duration::from_secs(30),
        }
    }
}

/// A partner's plaintext stream as hyper may see it.
pub struct Wire<S> {
    stream: S,
    side: Side,
    /// Bytes read and thrown away behind a refused head, or behind the end.
    drained: usize,
    patience: Patience,
    /// Made when a write has to wait for the first time; most connections never do.
    alarm: Option<Pin<Box<Sleep>>>,
    /// The last byte was written, and the peer was told so.
    is_shut: bool,
    started: Instant,
    shared: Rc<Shared>,
}

/// What the connection's owner and the service see of its [`Wire`]. Clones are one reference count; stays on its thread.
#[derive(Clone)]
pub struct Handle(Rc<Shared>);

impl Handle {
    /// The first violation. It may be set while an earlier request of a pipeline is still served: a service that answers
    /// for it asks only when the method is [`http1::REFUSED_METHOD`] or when reading the body failed.
    pub fn violation(&self) -> Option<Violation> {
        self.0.violation.get()
    }

    /// Bytes that came from the peer, refused ones included.
    pub fn read_bytes(&self) -> u64 {
        self.0.read_bytes.get()
    }

    /// Bytes that the stream below took for the peer.
    pub fn written_bytes(&self) -> u64 {
        self.0.written_bytes.get()
    }

    /// Since when an HTTP/1 head (or trailer section) has been arriving without being complete.
    pub fn unfinished_since(&self) -> Option<Instant> {
        self.0.unfinished_since.get()
    }
}

#[derive(Default)]
struct Shared {
    violation: Cell<Option<Violation>>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
    unfinished_since: Cell<Option<Instant>>,
}

impl Shared {
    fn violate(&self, violation: Violation, kind: io::ErrorKind) -> io::Error {
        self.note(violation);
        io::Error::new(kind, violation)
    }

    fn note(&self, violation: Violation) {
        if self.violation.get().is_none() {
            self.violation.set(Some(violation));
        }
    }
}

enum Side {
    Http1(Gate),
    Http2(Box<Meter>),
}

/// A partner whose head was refused may still be sending its body, and closing upon unread bytes makes TCP reset the
/// connection, which can destroy the answer on its way (RFC 9112 §9.6). So much is read and thrown away.
const DRAIN_BYTES_MAX: usize = 64 * 1024;
/// The same of a whole connection: after its last answer a peer may go on sending for so long, however much comes. One that
/// sends fast is the one that would miss the answer.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Reads in one go, so that others on the thread have their turn.
const LINGER_READS_MAX: usize = 64;

impl<S> Wire<S> {
    pub fn http1(stream: S, limits: &Limits) -> (Wire<S>, Handle) {
        Wire::new(stream, Side::Http1(Gate::new(limits.head)), limits)
    }

    pub fn http2(stream: S, limits: &Limits) -> (Wire<S>, Handle) {
        Wire::new(stream, Side::Http2(Box::new(Meter::new(&limits.frames))), limits)
    }

    /// The other way round: a server's stream, which begins without the client's preface.
    pub fn http2_of_server(stream: S, limits: &Limits) -> (Wire<S>, Handle) {
        Wire::new(stream, Side::Http2(Box::new(Meter::of_server(&limits.frames))), limits)
    }

    fn new(stream: S, side: Side, limits: &Limits) -> (Wire<S>, Handle) {
        let shared = Rc::new(Shared::default());
        let wire = Wire {
            stream,
            side,
            drained: 0,
            patience: Patience::new(limits.write_rate_min, limits.write_grace),
            alarm: None,
            is_shut: false,
            started: Instant::now(),
            shared: shared.clone(),
        };
        (wire, Handle(shared))
    }

    /// Passes the outcome of a write on, which is the number of bytes taken, unless the peer was waited for too long.
    fn paced(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(taken)) => {
                self.shared.written_bytes.set(self.shared.written_bytes.get() + taken as u64);
                if let Side::Http2(meter) = &mut self.side {
                    meter.sent(taken);
                }
                if self.patience.is_tried() {
                    self.patience.took(taken, since(self.started));
                }
                outcome
            }
            Poll::Ready(Err(_)) => outcome,
            Poll::Pending => {
                let now = since(self.started);
                let end = self.patience.wait(now);
                let deadline = self.started + end.since(Timestamp::default());
                let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                if alarm.deadline() != deadline {
                    alarm.as_mut().reset(deadline);
                }
                if end <= now || alarm.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Err(self.shared.violate(Violation::SlowRead, io::ErrorKind::TimedOut)));
                }
                Poll::Pending
            }
        }
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// Reads from the stream into `buf`, and returns where the new bytes begin.
    fn poll_fill(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<usize>> {
        let start = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = buf.filled().len() - start;
        self.shared.read_bytes.set(self.shared.read_bytes.get() + read as u64);
        Poll::Ready(Ok(start))
    }

    /// After a refused head. End of stream would be true, but hyper takes it for a partner that is gone and drops the
    /// answer that it is about to give; so it waits, and closes by itself after the answer, as the stand-in head asks.
    fn poll_drain(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.drained < DRAIN_BYTES_MAX {
            let start = ready!(self.poll_fill(cx, buf))?;
            let read = buf.filled().len() - start;
            buf.set_filled(start);
            if read == 0 {
                self.drained = DRAIN_BYTES_MAX;
            }
            self.drained += read;
        }
        Poll::Pending
    }

    /// After the last byte was written: until the peer ends its side as well, or has been waited for too long.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep(LINGER_TIMEOUT)));
        if alarm.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut buf = [0; 4096];
        for _ in 0..LINGER_READS_MAX {
            let mut buf = ReadBuf::new(&mut buf);
            match ready!(self.poll_fill(cx, &mut buf)) {
                Ok(_) if !buf.filled().is_empty() => {}
                _ => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Side::Http1(gate) = &mut this.side {
                if !gate.ready().is_empty() {
                    let count = gate.ready().len().min(buf.remaining());
                    buf.put_slice(&gate.ready()[..count]);
                    gate.consume(count);
                    return Poll::Ready(Ok(()));
                }
                match gate.fate() {
                    Fate::Open => {}
                    Fate::Refused(_) => return this.poll_drain(cx, buf),
                    Fate::Broken(violation) => {
                        return Poll::Ready(Err(this.shared.violate(violation, io::ErrorKind::InvalidData)));
                    }
                }
            }
            let start = ready!(this.poll_fill(cx, buf))?;
            let fresh = &buf.filled()[start..];
            if fresh.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match &mut this.side {
                Side::Http1(gate) => {
                    let released = gate.feed(fresh);
                    buf.set_filled(start + released);
                    let since = this.shared.unfinished_since.get();
                    this.shared.unfinished_since.set(gate.is_unfinished().then(|| since.unwrap_or_else(Instant::now)));
                    if let Fate::Refused(violation) | Fate::Broken(violation) = gate.fate() {
                        this.shared.note(violation);
                    }
                    if released > 0 {
                        return Poll::Ready(Ok(()));
                    }
                    // No bytes would mean the end to hyper, and nobody has asked to be woken yet: read on.
                }
                Side::Http2(meter) => {
                    return Poll::Ready(meter.feed(fresh, since(this.started)).map_err(|violation| {
                        buf.set_filled(start);
                        this.shared.violate(violation, io::ErrorKind::InvalidData)
                    }));
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.paced(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.paced(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_flush(cx).map_ok(|()| 0);
        this.paced(cx, outcome).map_ok(|_| ())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            let outcome = Pin::new(&mut this.stream).poll_shutdown(cx).map_ok(|()| 0);
            ready!(this.paced(cx, outcome))?;
            this.is_shut = true;
            this.alarm = None;
        }
        this.poll_linger(cx).map(Ok)
    }
}

/// Now, on a clock that began with the connection.
fn since(started: Instant) -> Timestamp {
    Timestamp::default().plus(started.elapsed())
}

/// How long a peer may still be waited for. Waiting spends it, bytes that the peer takes earn it back at the least rate,
/// and there is never more than the grace: neither a trickle nor a fast beginning buys a long stall.
///
/// An HTTP/2 peer that stalls by flow control keeps nothing pending here; it is for the service's timeouts.
struct Patience {
    rate_min: NonZeroU32,
    grace: Duration,
    left: Duration,
    /// When it ends, while it is being spent.
    end: Option<Timestamp>,
}

impl Patience {
    fn new(rate_min: NonZeroU32, grace: Duration) -> Patience {
        Patience { rate_min, grace, left: grace, end: None }
    }

    /// Whether [`Patience::took`] would change anything: not so for a peer that has never been waited for.
    fn is_tried(&self) -> bool {
        self.end.is_some() || self.left < self.grace
    }

    /// Spends from `now` until the next [`Patience::took`], and says when nothing is left.
    fn wait(&mut self, now: Timestamp) -> Timestamp {
        *self.end.get_or_insert(now.plus(self.left))
    }

    fn took(&mut self, bytes: usize, now: Timestamp) {
        if let Some(end) = self.end.take() {
            self.left = end.since(now);
        }
        let earned = (bytes as u64).saturating_mul(1_000_000_000) / u64::from(self.rate_min.get());
        self.left = self.left.saturating_add(Duration::from_nanos(earned)).min(self.grace);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::error::Error;

    use http_body_util::{BodyExt, Full};
    use hyper::body::{Bytes, Incoming};
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response, StatusCode};
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::http1::REFUSED_METHOD;
    use super::http1::cases::{CASES, Expected};
    use super::http2::Allowance;
    use super::*;

    /// A peer that sends these pieces, one a read, then ends its side, and takes every answer.
    struct Pieces(VecDeque<Vec<u8>>);

    impl Pieces {
        fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Pieces {
            // An empty piece would be the end.
            Pieces(pieces.into_iter().filter(|piece| !piece.is_empty()).map(<[u8]>::to_vec).collect())
        }
    }

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if let Some(mut piece) = self.0.pop_front() {
                let rest = piece.split_off(piece.len().min(buf.remaining()));
                buf.put_slice(&piece);
                if !rest.is_empty() {
                    self.0.push_front(rest);
                }
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Pieces {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What the service saw: method, path, and the body or the violation that ended it (none for a mere end of stream).
    #[derive(Debug, PartialEq, Eq)]
    struct Call {
        method: String,
        path: String,
        body: Result<Vec<u8>, Option<Violation>>,
    }

    fn violation_in(error: &(dyn Error + 'static)) -> Option<Violation> {
        let io = error.source()?.downcast_ref::<io::Error>()?;
        io.get_ref()?.downcast_ref::<Violation>().copied()
    }

    async fn serve(
        request: Request<Incoming>,
        calls: Rc<RefCell<Vec<Call>>>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        // An answer that takes time, as all do: hyper reads on meanwhile.
        yield_now().await;
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes().to_vec()).map_err(|error| violation_in(&error));
        let mut response = Response::new(Full::new(Bytes::from_static(b"seen")));
        if head.method == REFUSED_METHOD || body.is_err() {
            *response.status_mut() = StatusCode::BAD_REQUEST;
        }
        calls.borrow_mut().push(Call { method: head.method.to_string(), path: head.uri.to_string(), body });
        Ok(response)
    }

    enum EndOfStream {
        Aborts,
        HalfCloses,
    }

    async fn http1_server<S>(stream: S, calls: Rc<RefCell<Vec<Call>>>, end: EndOfStream) -> Handle
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (wire, handle) = Wire::http1(stream, &Limits::default());
        let service = service_fn(move |request| serve(request, calls.clone()));
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.half_close(matches!(end, EndOfStream::HalfCloses));
        let _ = builder.serve_connection(TokioIo::new(wire), service).await;
        handle
    }

    fn run_http1<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Call>, Handle) {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let handle = runtime.block_on(http1_server(Pieces::new(pieces), calls.clone(), EndOfStream::HalfCloses));
        (calls.take(), handle)
    }

    #[test]
    fn hyper_sees_no_more_of_each_case_than_the_gate_does() {
        for case in CASES {
            let stream = [case.passed, case.withheld].concat();
            let text = stream.escape_ascii();
            let (whole, handle) = run_http1([&stream[..]]);
            assert_eq!(run_http1(stream.chunks(1)).0, whole, "byte by byte: {text}");
            assert!(whole.iter().all(|call| !call.path.contains("smuggled")), "{text}: {whole:?}");
            let refusals = whole.iter().filter(|call| call.method == REFUSED_METHOD).count();
            let last = whole.last();
            match case.expected {
                Expected::Clean => {
                    assert_eq!((refusals, handle.violation()), (0, None), "{text}");
                    assert_eq!(last.is_none(), case.passed.is_empty(), "hyper has to take what is released: {text}");
                }
                Expected::Refused(violation) => {
                    assert_eq!((refusals, handle.violation()), (1, Some(violation)), "{text}");
                    assert_eq!(last.map(|call| &*call.method), Some(REFUSED_METHOD), "{text}");
                }
                Expected::Broken(violation) => {
                    assert_eq!((refusals, handle.violation()), (0, Some(violation)), "{text}");
                    assert_eq!(last.map(|call| &call.body), Some(&Err(Some(violation))), "{text}");
                }
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Body {
        None,
        Sized(Vec<u8>),
        Chunked(Vec<Vec<u8>>, Vec<String>),
    }

    fn body() -> impl Strategy<Value = Body> {
        let bytes = || {
            prop_oneof![
                prop::collection::vec(any::<u8>(), 1..50),
                Just(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n".to_vec())
            ]
        };
        prop_oneof![
            Just(Body::None),
            bytes().prop_map(Body::Sized),
            (prop::collection::vec(bytes(), 0..4), prop::collection::vec("[a-z]{1,9}: [ -~]{0,20}", 0..3))
                .prop_map(|(chunks, trailers)| Body::Chunked(chunks, trailers)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn hyper_frames_every_pipeline_as_the_gate_does(
            bodies in prop::collection::vec(body(), 1..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (number, body) in bodies.into_iter().enumerate() {
                let path = format!("/{number}");
                stream.extend(format!("POST {path} HTTP/1.1\r\nHost: a\r\n").bytes());
                let body = match body {
                    Body::None => {
                        stream.extend(b"\r\n");
                        Vec::new()
                    }
                    Body::Sized(body) => {
                        stream.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
                        stream.extend(&body);
                        body
                    }
                    Body::Chunked(chunks, trailers) => {
                        stream.extend(b"Transfer-Encoding: chunked\r\n\r\n");
                        for chunk in &chunks {
                            stream.extend(format!("{:x}\r\n", chunk.len()).bytes());
                            stream.extend(chunk);
                            stream.extend(b"\r\n");
                        }
                        stream.extend(b"0\r\n");
                        trailers.iter().for_each(|field| stream.extend(format!("{field}\r\n").bytes()));
                        stream.extend(b"\r\n");
                        chunks.concat()
                    }
                };
                expected.push(Call { method: "POST".into(), path, body: Ok(body) });
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let (calls, handle) = run_http1(cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]));
            prop_assert_eq!(calls, expected);
            prop_assert_eq!(handle.violation(), None);
            prop_assert_eq!(handle.read_bytes(), stream.len() as u64);
        }
    }

    /// Sends the pieces with time for the server in between, and reads until it closes or has answered `answers` times.
    async fn talk(pieces: &[&str], answers: usize) -> (Vec<Call>, String, Handle) {
        let calls = Rc::new(RefCell::new(Vec::new()));
        let (mut client, server) = duplex(64 * 1024);
        let server = spawn_local(http1_server(server, calls.clone(), EndOfStream::Aborts));
        for piece in pieces {
            client.write_all(piece.as_bytes()).await.unwrap();
            for _ in 0..10 {
                yield_now().await;
            }
        }
        let mut answer = Vec::new();
        while String::from_utf8_lossy(&answer).matches("seen").count() < answers {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0, "closed after {}", answer.escape_ascii());
        }
        drop(client);
        let handle = server.await.unwrap();
        (calls.take(), String::from_utf8(answer).unwrap(), handle)
    }

    fn call(method: &str, path: &str, body: &str) -> Call {
        Call { method: method.into(), path: path.into(), body: Ok(body.into()) }
    }

    #[tokio::test]
    async fn keep_alive_and_chunked_uploads_work_behind_the_gate() {
        let pieces = [
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST /2 HT",
            "TP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
            "lo\r\n6\r\n world\r\n0\r\nDigest: x\r",
            "\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        let (calls, answer, handle) = LocalSet::new().run_until(talk(&pieces, 3)).await;
        assert_eq!(calls, [call("GET", "/1", ""), call("POST", "/2", "hello world"), call("GET", "/3", "")]);
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3);
        assert_eq!(handle.violation(), None);
        assert_eq!(handle.read_bytes(), pieces.concat().len() as u64);
        assert_eq!(handle.written_bytes(), answer.len() as u64);
    }

    #[tokio::test]
    async fn a_refused_head_is_one_call_and_one_answer() {
        let pieces = [
            "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n",
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
        ];
        let (calls, answer, handle) = LocalSet::new().run_until(talk(&pieces, 2)).await;
        assert_eq!(calls, [call("GET", "/1", ""), call(REFUSED_METHOD, "/", "")]);
        assert!(answer.contains("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"), "{answer}");
        assert_eq!(handle.violation(), Some(Violation::LengthWithEncoding));
    }

    #[tokio::test]
    async fn a_broken_body_fails_its_reader_and_is_answered() {
        let pieces = ["POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "0;x\r\n\r\n"];
        let (calls, answer, handle) = LocalSet::new().run_until(talk(&pieces, 1)).await;
        assert_eq!(calls.len(), 1);
        assert_eq!(calls[0].body, Err(Some(Violation::ChunkExtension)));
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
        assert_eq!(handle.violation(), Some(Violation::ChunkExtension));
    }

    #[tokio::test]
    async fn what_follows_a_refusal_is_drained_up_to_a_bound() {
        let mut stream = vec![b'\n'];
        stream.resize(4 * DRAIN_BYTES_MAX, b'x');
        let (mut wire, handle) = Wire::http1(Pieces::new(stream.chunks(1000)), &Limits::default());
        let mut buf = [0; 1000];
        assert!(wire.read(&mut buf).await.unwrap() > 0);
        let mut buf = ReadBuf::new(&mut buf);
        let read = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut wire).poll_read(cx, &mut buf))).await;
        assert!(read.is_pending());
        assert!(buf.filled().is_empty());
        assert!(handle.read_bytes() <= DRAIN_BYTES_MAX as u64 + 2000);
    }

    #[tokio::test]
    async fn what_is_behind_the_last_answer_is_drained_for_a_time() {
        // A peer that ends its side, one that has much to send, and one that keeps silent.
        let end = duplex(64);
        let (mut wire, handle) = Wire::http1(end.1, &Limits::default());
        let mut peer = end.0;
        peer.write_all(b"GARBAGE").await.unwrap();
        drop(peer);
        wire.shutdown().await.unwrap();
        assert_eq!(handle.read_bytes(), 7);

        let much = vec![b'x'; 2 << 20];
        let (mut wire, handle) = Wire::http2(Pieces::new(much.chunks(4096)), &Limits::default());
        wire.shutdown().await.unwrap();
        assert_eq!(handle.read_bytes(), 2 << 20);

        let (_silent, stream) = duplex(64);
        let (mut wire, _) = Wire::http1(stream, &Limits::default());
        let begun = Instant::now();
        wire.shutdown().await.unwrap();
        assert!(begun.elapsed() >= LINGER_TIMEOUT);
    }

    #[tokio::test]
    async fn a_frame_flood_fails_the_read_for_good() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0].repeat(11);
        let (mut wire, handle) = Wire::http2(Pieces::new([&preface[..], &settings]), &Limits::default());
        let mut buf = [0; 1000];
        assert_eq!(wire.read(&mut buf).await.unwrap(), preface.len());
        let error = wire.read(&mut buf).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(error.to_string(), "wire violation settings-flood");
        assert_eq!(handle.violation(), Some(Violation::SettingsFlood));
    }

    #[tokio::test]
    async fn what_was_written_pays_for_window_updates() {
        let none = Allowance { burst: 0, per_second: 0 };
        let limits =
            Limits { frames: FrameLimits { window_updates: none, ..FrameLimits::default() }, ..Limits::default() };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let (mut wire, handle) = Wire::http2(Pieces::new([&preface[..], &update, &update]), &limits);
        let mut buf = [0; 100];
        wire.write_all(&[0; 256]).await.unwrap();
        assert_eq!(wire.read(&mut buf).await.unwrap(), preface.len());
        assert_eq!(wire.read(&mut buf).await.unwrap(), update.len());
        assert_eq!(wire.read(&mut buf).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(handle.violation(), Some(Violation::WindowUpdateFlood));
    }

    #[derive(Clone)]
    struct LocalExecutor;

    impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for LocalExecutor {
        fn execute(&self, future: F) {
            spawn_local(future);
        }
    }

    #[tokio::test]
    async fn an_honest_http2_client_is_never_cut() {
        const BODY_BYTES: usize = 4 * 1024 * 1024;
        let exchange = async {
            let (client, server) = duplex(64 * 1024);
            let (wire, handle) = Wire::http2(server, &Limits::default());
            let service = service_fn(|request: Request<Incoming>| async {
                let body = request.into_body().collect().await?.to_bytes();
                Ok::<_, hyper::Error>(Response::new(Full::new(body)))
            });
            spawn_local(
                hyper::server::conn::http2::Builder::new(LocalExecutor).serve_connection(TokioIo::new(wire), service),
            );
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(client)).await.unwrap();
            spawn_local(connection);
            for length in [BODY_BYTES, 0, 1].into_iter().chain([100; 500]) {
                sender.ready().await.unwrap();
                let request = Request::builder().method(Method::POST).uri("http://a/");
                let request = request.body(Full::new(Bytes::from(vec![b'x'; length]))).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), length);
            }
            handle
        };
        let handle = LocalSet::new().run_until(exchange).await;
        assert_eq!(handle.violation(), None);
        assert!(handle.read_bytes() > BODY_BYTES as u64 && handle.written_bytes() > BODY_BYTES as u64);
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_given_up() {
        let (_peer, stream) = duplex(16);
        let limits = Limits { write_grace: Duration::ZERO, ..Limits::default() };
        let (mut wire, handle) = Wire::http1(stream, &limits);
        assert_eq!(wire.write(&[0; 20]).await.unwrap(), 16, "nothing is waited for yet");
        let error = wire.write(&[0; 4]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(handle.violation(), Some(Violation::SlowRead));
        assert_eq!(handle.written_bytes(), 16);
    }

    #[tokio::test]
    async fn the_alarm_wakes_a_writer_that_nothing_else_would() {
        let (_peer, stream) = duplex(16);
        let limits = Limits { write_grace: Duration::from_millis(1), ..Limits::default() };
        let (mut wire, handle) = Wire::http1(stream, &limits);
        assert_eq!(wire.write_all(&[0; 20]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(handle.violation(), Some(Violation::SlowRead));
    }

    #[test]
    fn patience_is_an_average_that_no_trickle_and_no_fast_beginning_beats() {
        let at = Timestamp::from_unix_seconds;
        let begun = || Patience::new(NonZeroU32::new(100).unwrap(), Duration::from_secs(10));

        let mut patience = begun();
        assert!(!patience.is_tried());
        assert_eq!(patience.wait(at(100)), at(110));
        assert_eq!(patience.wait(at(105)), at(110), "asking again does not put it off");

        // One byte every nine seconds: the second wait ends a second later.
        patience.took(1, at(109));
        assert_eq!(patience.wait(at(109)), at(110).plus(Duration::from_millis(10)));

        // At the least rate it lasts for ever.
        let mut patience = begun();
        for now in (0..1_000).step_by(8) {
            assert!(patience.wait(at(now)) >= at(now + 8));
            patience.took(800, at(now + 8));
        }
        // And below it, not.
        let mut patience = begun();
        let mut now = 0;
        while patience.wait(at(now)) >= at(now + 8) {
            now += 8;
            patience.took(400, at(now));
        }
        assert_eq!(now, 8);

        // A fast beginning and time without waiting neither spend nor save.
        let mut patience = begun();
        patience.took(1_000_000, at(0));
        assert_eq!(patience.wait(at(1_000)), at(1_010));
        patience.took(0, at(1_020));
        assert_eq!(patience.wait(at(1_020)), at(1_020), "all is spent");
    }

    #[test]
    fn every_name_is_kebab_case() {
        for case in CASES {
            if let Expected::Refused(violation) | Expected::Broken(violation) = case.expected {
                let debug = format!("{violation:?}").to_lowercase();
                assert_eq!(violation.as_str().replace('-', ""), debug);
                assert!(violation.as_str().bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'-')));
            }
        }
    }
}
