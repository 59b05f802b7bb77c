//! How does a synthetic backend read a request, remember it and send the answer? The two sites decide what it says.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::certificate::Certificate;
use super::{registry, stock};

/// Requests remembered, newest last; older ones are forgotten.
pub const SEEN_MAX: usize = 1000;

/// Bytes of bodies remembered over all requests. Of one body at most the first 64 KiB are kept.
pub const SEEN_BYTES_MAX: usize = 16 << 20;
const SEEN_BODY_BYTES_MAX: usize = 64 << 10;

/// Connections served at once; the next ones wait in the listener's queue.
const CONNECTIONS_MAX: usize = 1024;
/// For the head of a request, and for how long a kept-alive connection may idle (hyper counts both with one timer). A
/// pool in front should keep idle connections for less, so that it never writes to one that is being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// hyper makes answer frames until this much waits for the socket. Its own default, 400 KiB, would take in a whole
/// certificate and show a slow reader no back-pressure.
const BUFFER_BYTES_MAX: usize = 32 << 10;

/// Which backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Registry,
    Stock,
}

/// One backend: what it is and what it was asked. Its people and stocks need no memory, they follow from their ids.
pub struct World {
    site: Site,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    requests: VecDeque<SeenRequest>,
    body_bytes: usize,
}

/// A request as it arrived, header names in lower case, values lossily as text.
#[derive(Clone, PartialEq, Eq)]
pub struct SeenRequest {
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// What was read before the end, the limit or the failure.
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
}

impl World {
    pub fn new(site: Site) -> World {
        World { site, seen: Mutex::default() }
    }

    /// The last requests, oldest first: up to [`SEEN_MAX`], fewer when their bodies pass [`SEEN_BYTES_MAX`].
    pub fn seen(&self) -> Vec<SeenRequest> {
        self.lock().requests.iter().cloned().collect()
    }

    fn remember(&self, request: SeenRequest) {
        let mut seen = self.lock();
        seen.body_bytes += request.body.len();
        seen.requests.push_back(request);
        while seen.requests.len() > SEEN_MAX || seen.body_bytes > SEEN_BYTES_MAX {
            let Some(forgotten) = seen.requests.pop_front() else { break };
            seen.body_bytes -= forgotten.body.len();
        }
    }

    /// Every change under this lock is whole before the next one begins, so what a panic left behind is still sound.
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts and sizes alone: the target and the body name people.
impl fmt::Debug for SeenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SeenRequest { method, target, headers, body, trailers } = self;
        let (headers, trailers) = (headers.len(), trailers.len());
        let (target_bytes, body_bytes) = (target.len(), body.len());
        write!(f, "{method} target {target_bytes} B, {headers} headers, body {body_bytes} B, {trailers} trailers")
    }
}

/// Serves HTTP/1.1 without TLS until the future is dropped, which also cuts its connections.
pub async fn serve(listener: TcpListener, world: Arc<World>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _peer)) => drop(connections.spawn(converse(stream, Arc::clone(&world)))),
            // Out of descriptors or the like: it passes when connections end, and asking at once again would spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// What a backend answers with.
pub enum Answer {
    Whole(Full<Bytes>),
    Certificate(Certificate),
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Answer::Whole(body) => Pin::new(body).poll_frame(cx),
            Answer::Certificate(certificate) => Poll::Ready(certificate.next().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::Whole(body) => body.is_end_stream(),
            Answer::Certificate(_) => false,
        }
    }

    /// The length of a certificate is known and deliberately not told: hyper then sends chunks.
    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::Whole(body) => body.size_hint(),
            Answer::Certificate(_) => SizeHint::default(),
        }
    }
}

pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Response<Answer> {
    // Only maps with keys that are no strings fail to serialise, and no answer holds a map.
    let text = serde_json::to_vec(value).unwrap_or_default();
    let mut response = Response::new(Answer::Whole(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn refusal(status: StatusCode, error: &'static str) -> Response<Answer> {
    #[derive(Serialize)]
    struct Refusal {
        error: &'static str,
    }
    json(status, &Refusal { error })
}

pub(super) fn wrong_method(allowed: &'static str) -> Response<Answer> {
    let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

/// Is this an id of ASCII digits, so many of them?
pub(super) fn is_digits(text: &str, lengths: std::ops::RangeInclusive<usize>) -> bool {
    lengths.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// SHA-256 of the parts, each closed by a line feed: every fact of the synthetic world is drawn from one of these.
pub(super) fn draw(parts: &[&str]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(part.as_bytes());
        context.update(b"\n");
    }
    let mut drawn = [0; 32];
    drawn.copy_from_slice(context.finish().as_ref());
    drawn
}

async fn converse(stream: TcpStream, world: Arc<World>) {
    let _best_effort = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let world = Arc::clone(&world);
        async move { Ok::<_, Infallible>(handle(request, &world).await) }
    });
    let _closed_or_broken = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn handle(request: Request<Incoming>, world: &World) -> Response<Answer> {
    let (head, mut incoming) = request.into_parts();
    let body_bytes_max = match world.site {
        Site::Registry => registry::BODY_BYTES_MAX,
        Site::Stock => stock::BODY_BYTES_MAX,
    };
    let mut received = Received::default();
    let reading = received.read(&mut incoming, body_bytes_max);
    let end = tokio::time::timeout(BODY_TIMEOUT, reading).await.unwrap_or(End::Late);
    world.remember(seen(&head, &received));
    let mut response = match end {
        End::Whole => return respond(world.site, &head, &received.body),
        End::TooLarge => refusal(StatusCode::PAYLOAD_TOO_LARGE, "body too large"),
        End::Late => refusal(StatusCode::REQUEST_TIMEOUT, "body too slow"),
        End::Broken => refusal(StatusCode::BAD_REQUEST, "body broken"),
    };
    // What is left of the body would be read as the next request.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn respond(site: Site, head: &Parts, body: &[u8]) -> Response<Answer> {
    match site {
        Site::Registry => registry::respond(head, body),
        Site::Stock => stock::respond(head, body),
    }
}

#[derive(Default)]
struct Received {
    body: Vec<u8>,
    trailers: HeaderMap,
}

enum End {
    Whole,
    TooLarge,
    Late,
    Broken,
}

impl Received {
    /// Takes the body frame by frame, so that a large one is refused at the limit and not at its end.
    async fn read(&mut self, incoming: &mut Incoming, body_bytes_max: usize) -> End {
        if incoming.size_hint().lower() > body_bytes_max as u64 {
            return End::TooLarge;
        }
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else { return End::Broken };
            match frame.into_data() {
                Ok(bytes) if bytes.len() > body_bytes_max - self.body.len() => return End::TooLarge,
                Ok(bytes) => self.body.extend_from_slice(&bytes),
                Err(frame) => self.trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        End::Whole
    }
}

fn seen(head: &Parts, received: &Received) -> SeenRequest {
    let kept = received.body.len().min(SEEN_BODY_BYTES_MAX);
    SeenRequest {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: as_text(&head.headers),
        body: received.body[..kept].to_vec(),
        trailers: as_text(&received.trailers),
    }
}

fn as_text(headers: &HeaderMap) -> Vec<(String, String)> {
    let lossy = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers.iter().map(|(name, value)| (name.to_string(), lossy(value))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use hyper::client::conn::http1 as client;
    use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
    use hyper::{HeaderMap, Method};

    use super::*;

    /// Asks a site without a socket. The body of the answer is whole.
    pub(in crate::demo) fn ask(site: Site, method: &str, target: &str, body: &[u8]) -> (StatusCode, HeaderMap, Bytes) {
        let request = Request::builder().method(method).uri(target).body(()).unwrap();
        let (head, body) = respond(site, &request.into_parts().0, body).into_parts();
        (head.status, head.headers, whole(body))
    }

    fn whole(mut body: Answer) -> Bytes {
        let mut collected = Vec::new();
        let mut context = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context) {
            collected.extend_from_slice(&frame.into_data().unwrap());
        }
        Bytes::from(collected)
    }

    fn remembered(body_bytes: usize, target: usize) -> SeenRequest {
        SeenRequest {
            method: "POST".to_owned(),
            target: target.to_string(),
            headers: Vec::new(),
            body: vec![0; body_bytes],
            trailers: Vec::new(),
        }
    }

    #[test]
    fn memory_is_bounded_in_requests_and_in_bytes() {
        let table = [(0, 1500, 1000), (1 << 10, 1500, 1000), (64 << 10, 1500, 256), (64 << 10, 10, 10)];
        for (body_bytes, sent, kept) in table {
            let world = World::new(Site::Registry);
            (0..sent).for_each(|target| world.remember(remembered(body_bytes, target)));
            let seen = world.seen();
            assert_eq!(seen.len(), kept, "{sent} requests of {body_bytes} B");
            assert_eq!(seen.last().unwrap().target, (sent - 1).to_string(), "the newest stays, last");
        }
    }

    #[test]
    fn debug_names_nobody() {
        let mut request = remembered(0, 0);
        request.target = "/v1/beneficiaries/12345678901234".to_owned();
        request.body = b"{\"mobile\":\"6412345678\"}".to_vec();
        request.headers = vec![("x-subject".to_owned(), "6412345678".to_owned())];
        let text = format!("{request:?}");
        assert!(!text.contains("6412345678") && !text.contains("12345678901234"), "{text}");
    }

    struct Client {
        sender: client::SendRequest<Full<Bytes>>,
        _server: JoinSet<()>,
        world: Arc<World>,
    }

    impl Client {
        async fn connect(site: Site) -> Client {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let world = Arc::new(World::new(site));
            let mut server = JoinSet::new();
            server.spawn(serve(listener, Arc::clone(&world)));
            let (sender, connection) = client::handshake(TokioIo::new(stream)).await.unwrap();
            server.spawn(async move { drop(connection.await) });
            Client { sender, _server: server, world }
        }

        async fn send(&mut self, method: Method, target: &str, body: &[u8]) -> (StatusCode, HeaderMap, Bytes) {
            let request =
                Request::builder().method(method).uri(target).header("host", "registry").header("X-Probe", "1");
            let request = request.body(Full::from(body.to_vec())).unwrap();
            self.sender.ready().await.unwrap();
            let (head, body) = self.sender.send_request(request).await.unwrap().into_parts();
            (head.status, head.headers, body.collect().await.unwrap().to_bytes())
        }
    }

    #[tokio::test]
    async fn the_registry_answers_over_a_socket_and_remembers() {
        let mut client = Client::connect(Site::Registry).await;
        let lookup = br#"{"mobile":"6412345678"}"#;
        let (status, headers, body) = client.send(Method::POST, "/v1/lookup/mobile?trace=1", lookup).await;
        assert_eq!((status, headers[CONTENT_TYPE].as_bytes()), (StatusCode::OK, b"application/json".as_slice()));
        assert_eq!(headers[CONTENT_LENGTH].to_str().unwrap(), body.len().to_string());

        let (status, headers, body) = client.send(Method::GET, "/v1/certificates/12345678901234", b"").await;
        assert_eq!((status, headers[TRANSFER_ENCODING].as_bytes()), (StatusCode::OK, b"chunked".as_slice()));
        assert!(!headers.contains_key(CONTENT_LENGTH));
        assert!(body.starts_with(b"%PDF-") && body.len() > 100 << 10);

        let (status, headers, body) = client.send(Method::HEAD, "/v1/certificates/12345678901234", b"").await;
        assert_eq!((status, headers[CONTENT_TYPE].as_bytes()), (StatusCode::OK, b"application/pdf".as_slice()));
        assert!(!headers.contains_key(CONTENT_LENGTH), "RFC 9110 section 8.6: no length that GET would not send");
        assert!(body.is_empty());

        let (status, ..) =
            client.send(Method::POST, "/v1/lookup/mobile", &vec![b' '; registry::BODY_BYTES_MAX + 1]).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

        let seen = client.world.seen();
        assert_eq!(seen.iter().map(|request| &*request.method).collect::<Vec<_>>(), ["POST", "GET", "HEAD", "POST"]);
        assert_eq!((&*seen[0].target, &*seen[0].body), ("/v1/lookup/mobile?trace=1", lookup.as_slice()));
        assert!(seen[0].headers.contains(&("x-probe".to_owned(), "1".to_owned())));
    }

    #[tokio::test]
    async fn the_stock_takes_a_mebibyte_and_no_more() {
        let target = "/v1/facilities/70012/stock";
        let movements = |bytes: usize| {
            let mut list = br#"[{"batch":"B1","doses":-10}"#.to_vec();
            list.resize(bytes - 1, b' ');
            list.push(b']');
            list
        };
        let mut client = Client::connect(Site::Stock).await;
        let (status, _, body) = client.send(Method::POST, target, &movements(stock::BODY_BYTES_MAX)).await;
        assert_eq!((status, &*body), (StatusCode::ACCEPTED, br#"{"accepted":1}"#.as_slice()));
        assert_eq!(client.world.seen()[0].body.len(), SEEN_BODY_BYTES_MAX);
        let (status, ..) = client.send(Method::POST, target, &movements(stock::BODY_BYTES_MAX + 1)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    }

    #[tokio::test]
    async fn a_chunked_body_is_refused_at_the_limit_and_trailers_are_seen() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let world = Arc::new(World::new(Site::Registry));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&world)));

        let head = b"POST /v1/lookup/mobile HTTP/1.1\r\nhost: registry\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        stream.write_all(b"17\r\n{\"mobile\":\"6412300001\"}\r\n0\r\nx-late: 1\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        assert_eq!(world.seen()[0].trailers, [("x-late".to_owned(), "1".to_owned())]);

        // The list never ends, yet there is an answer.
        stream.write_all(head).await.unwrap();
        let chunk = [b"2000\r\n".as_slice(), &[b' '; 0x2000], b"\r\n"].concat();
        for _ in 0..=registry::BODY_BYTES_MAX / 0x2000 {
            stream.write_all(&chunk).await.unwrap();
        }
        let mut rest = Vec::new();
        while !rest.windows(12).any(|window| window == b"HTTP/1.1 413") {
            assert_ne!(stream.read_buf(&mut rest).await.unwrap(), 0, "closed without an answer");
        }
    }
}
