//! What reached the backend? A TCP server that records every byte it was sent and answers by a script.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;

pub struct Backend {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    requests: Mutex<Vec<Recorded>>,
    arrived: Condvar,
    connections: AtomicUsize,
    open: AtomicUsize,
    stopped: AtomicBool,
}

/// One request as it came.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Method, target and version.
    pub line: String,
    /// Names as they were written.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Head and body, byte for byte, framing included.
    pub raw: Vec<u8>,
}

/// One request at the backend, whose answer the script gives. Its body is read when the script says so.
pub struct Exchange {
    pub request: Recorded,
    reader: BufReader<TcpStream>,
    at: usize,
    shared: Arc<Shared>,
    open: bool,
    /// The body was read, or its reading failed.
    read: bool,
}

pub const ONE_PERSON: &str = r#"{"people":[{"name":"A Test","birth_year":"1970"}]}"#;

/// The usual script: finds one person, whoever is asked for; echoes uploads by their length.
pub fn one_person(exchange: &mut Exchange) {
    exchange.read_body();
    match exchange.request.line.as_str() {
        line if line.starts_with("HEAD ") => {
            exchange.write("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 12345\r\n\r\n");
        }
        line if line.starts_with("GET /files/megabyte") => exchange.answer("200 OK", "", &megabyte()),
        line if line.contains(" /v1/") => {
            exchange.answer("200 OK", "content-type: application/json\r\n", ONE_PERSON.as_bytes());
        }
        _ => {
            let length = exchange.request.body.len().to_string();
            exchange.answer("200 OK", "content-type: text/plain\r\n", length.as_bytes());
        }
    }
}

/// A mebibyte in which no two neighbouring blocks are the same.
pub fn megabyte() -> Vec<u8> {
    (0u32..1 << 18).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

impl Backend {
    pub fn start(script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        let (shared, script) = (Arc::<Shared>::default(), Arc::new(script));
        let server = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.stopped.load(Ordering::SeqCst) {
                    return;
                }
                server.connections.fetch_add(1, Ordering::SeqCst);
                let (shared, script) = (server.clone(), script.clone());
                shared.open.fetch_add(1, Ordering::SeqCst);
                thread::spawn(move || {
                    converse(stream, &shared, &*script);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Backend { address, shared }
    }

    /// Waits until so many requests have come, and returns all of them.
    #[track_caller]
    pub fn requests(&self, count: usize) -> Vec<Recorded> {
        let requests = self.shared.requests.lock().expect("requests");
        let few = |requests: &mut Vec<Recorded>| requests.len() < count;
        let (requests, _) = self.shared.arrived.wait_timeout_while(requests, PATIENCE, few).expect("requests");
        assert_eq!(requests.len(), count, "requests at the backend");
        requests.clone()
    }

    /// The only request that ever came.
    #[track_caller]
    pub fn only(&self) -> Recorded {
        self.requests(1).remove(0)
    }

    pub fn count(&self) -> usize {
        self.shared.requests.lock().expect("requests").len()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that have not ended.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    pub fn forget(&self) {
        self.shared.requests.lock().expect("requests").clear();
    }

    /// Not so much as a connection was made.
    #[track_caller]
    pub fn assert_untouched(&self) {
        let requests = self.shared.requests.lock().expect("requests");
        assert_eq!((self.connections(), requests.as_slice().len()), (0, 0), "{requests:?}");
    }

    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        // Wakes the listener, which then sees that it is over.
        drop(TcpStream::connect(self.address));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stop();
    }
}

fn converse(stream: TcpStream, shared: &Arc<Shared>, script: &dyn Fn(&mut Exchange)) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream);
    loop {
        let Some(request) = read_head(&mut reader) else { return };
        let mut requests = shared.requests.lock().expect("requests");
        let at = requests.len();
        requests.push(request.clone());
        drop(requests);
        shared.arrived.notify_all();
        let mut exchange = Exchange { request, reader, at, shared: shared.clone(), open: true, read: false };
        script(&mut exchange);
        if !exchange.open {
            return;
        }
        reader = exchange.reader;
    }
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Recorded> {
    let mut request = Recorded::default();
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).ok()?;
        request.raw.extend_from_slice(&line);
        let text = String::from_utf8_lossy(line.strip_suffix(b"\r\n")?).into_owned();
        match text.split_once(':') {
            _ if request.line.is_empty() => request.line = text,
            Some((name, value)) => request.headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Some(request),
        }
    }
}

impl Recorded {
    pub fn values(&self, name: &str) -> Vec<&str> {
        let same = |other: &str| other.eq_ignore_ascii_case(name);
        self.headers.iter().filter(|(other, _)| same(other)).map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a header that stands once.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name} stands once in {:?}", self.headers);
        values[0]
    }

    /// Names of all headers, sorted, in lower case.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.sort();
        names
    }

    /// Path and query.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    /// All bytes as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw).into_owned()
    }
}

impl Exchange {
    /// Reads the whole body, once; `false` where it does not come to its end.
    pub fn read_body(&mut self) -> bool {
        if std::mem::replace(&mut self.read, true) {
            return true;
        }
        let whole = if self.request.values("transfer-encoding").is_empty() {
            let length = self.request.values("content-length").first().and_then(|text| text.parse().ok());
            self.read_exactly(length.unwrap_or(0), true)
        } else {
            self.read_chunks()
        };
        let mut requests = self.shared.requests.lock().expect("requests");
        // A test that forgets its requests forgets those under way too.
        if let Some(request) = requests.get_mut(self.at) {
            *request = self.request.clone();
        }
        whole
    }

    fn read_chunks(&mut self) -> bool {
        loop {
            let Some(line) = self.read_line() else { return false };
            let Ok(size) = usize::from_str_radix(line.trim(), 16) else { return false };
            if size == 0 {
                // Trailers, if there are any, are recorded in `raw`.
                while let Some(line) = self.read_line() {
                    if line == "\r\n" {
                        return true;
                    }
                }
                return false;
            }
            if !self.read_exactly(size, true) || !self.read_exactly(2, false) {
                return false;
            }
        }
    }

    fn read_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        self.request.raw.extend_from_slice(&line);
        String::from_utf8(line).ok().filter(|line| line.ends_with('\n'))
    }

    fn read_exactly(&mut self, count: usize, body: bool) -> bool {
        let mut bytes = Vec::new();
        let read = (&mut self.reader).take(count as u64).read_to_end(&mut bytes).unwrap_or(0);
        self.request.raw.extend_from_slice(&bytes);
        if body {
            self.request.body.extend_from_slice(&bytes);
        }
        read == count
    }

    /// Writes bytes as they are.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) {
        if self.reader.get_mut().write_all(bytes.as_ref()).is_err() {
            self.open = false;
        }
    }

    /// An answer with a length. `fields` are lines of headers, each with its CRLF.
    pub fn answer(&mut self, status: &str, fields: &str, body: &[u8]) {
        let head = format!("HTTP/1.1 {status}\r\n{fields}content-length: {}\r\n\r\n", body.len());
        self.write([head.as_bytes(), body].concat());
    }

    /// Writes the same again and again, with a pause if there is one, until the gateway ends the connection.
    pub fn flood(&mut self, bytes: &[u8], pause: Duration) {
        let stream = self.reader.get_mut();
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        let begun = Instant::now();
        while stream.write_all(bytes).is_ok() {
            assert!(begun.elapsed() < PATIENCE, "the gateway takes it for ever");
            if !pause.is_zero() {
                thread::park_timeout(pause);
            }
        }
        self.open = false;
    }

    /// Says no more, and waits for the gateway to end the connection.
    pub fn hold(&mut self) {
        self.reader.get_mut().set_read_timeout(Some(PATIENCE)).expect("timeout");
        let _ = self.reader.read_to_end(&mut Vec::new());
        self.open = false;
    }

    /// Ends the connection by a reset.
    pub fn reset(&mut self) {
        let stream = self.reader.get_ref();
        socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).expect("linger");
        self.open = false;
    }

    /// Ends this side of the connection, and waits for the gateway to end the other.
    pub fn close_and_wait(&mut self) {
        let _ = self.reader.get_mut().shutdown(Shutdown::Write);
        let _ = self.reader.read_to_end(&mut Vec::new());
        self.open = false;
    }

    /// Ends the connection.
    pub fn close(&mut self) {
        let _ = self.reader.get_mut().shutdown(Shutdown::Both);
        self.open = false;
    }
}
