//! What exactly was said on the wire? A TLS connection whose every byte is the test's own.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::PATIENCE;
use super::pki::{Leaf, pki};

/// A connection to the gateway after its handshake.
pub struct Line {
    stream: StreamOwned<ClientConnection, TcpStream>,
    /// Read but not taken.
    pending: Vec<u8>,
}

/// An answer as it came.
#[derive(Debug, Default)]
pub struct Answer {
    pub version: String,
    pub status: u16,
    /// Statuses of the 1xx answers before.
    pub interim: Vec<u16>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The body came to the end that was announced.
    pub whole: bool,
}

impl Answer {
    /// The value of a header that stands once.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name} stands once in {:?}", self.headers);
        values[0]
    }

    pub fn values(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(other, _)| other == name).map(|(_, value)| value.as_str()).collect()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The public code of a refusal; empty where it is none.
    pub fn problem(&self) -> String {
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        document["type"].as_str().unwrap_or_default().replace("urn:dwarpal:reason:", "")
    }

    /// Checks every mark of a refusal: status and public code, problem document, decision id, proxy status.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.problem().as_str()), (status, code), "{self:?}\n{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.header("cache-control"), "no-store");
        let document = self.json();
        assert_eq!(document["status"], status);
        assert!(document["title"].as_str().is_some_and(|title| !title.is_empty()), "{document}");
        let decision = self.header("x-decision-id");
        assert_eq!(document["instance"], format!("urn:uuid:{decision}"));
        assert_decision(decision);
        if code != "no-match" {
            let (error, details) = self.header("proxy-status").split_once("; details=").expect("two parameters");
            assert!(error.starts_with("dwarpal; error="), "{error}");
            assert_eq!(details, format!("\"{code}\""));
        }
    }
}

/// A decision id is a UUIDv7 (RFC 9562 section 5.7) of this hour.
#[track_caller]
pub fn assert_decision(text: &str) {
    let id = uuid::Uuid::parse_str(text).expect("a UUID");
    assert_eq!((id.get_version_num(), text), (7, id.hyphenated().to_string().as_str()));
    let (seconds, _) = id.get_timestamp().expect("a time").to_unix();
    let now = dwarpal::clock::Clock::system().now().unix_seconds();
    assert!(now.abs_diff(seconds) < 3_600, "{text}");
}

/// A TCP connection from one of the loopback addresses. Reads and writes give up when patience does.
pub fn tcp(source: Ipv4Addr, to: SocketAddr) -> io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        socket.connect(to).await?.into_std()
    })?;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Connects and completes the handshake.
#[track_caller]
pub fn connect(gateway: SocketAddr, leaf: &Leaf, source: Ipv4Addr, protocol: &[u8]) -> Line {
    attempt(gateway, Some(leaf), source, protocol, rustls::crypto::aws_lc_rs::default_provider())
        .unwrap_or_else(|error| panic!("handshake: {error}"))
}

/// Tries a handshake with or without a certificate.
pub fn attempt(
    gateway: SocketAddr,
    leaf: Option<&Leaf>,
    source: Ipv4Addr,
    protocol: &[u8],
    provider: CryptoProvider,
) -> io::Result<Line> {
    over(tcp(source, gateway)?, leaf, protocol, provider)
}

/// Tries a handshake on a connection that is there already.
pub fn over(stream: TcpStream, leaf: Option<&Leaf>, protocol: &[u8], provider: CryptoProvider) -> io::Result<Line> {
    let shown = leaf.map(|leaf| {
        let chain = CertificateDer::pem_file_iter(&leaf.certificate).expect("certificate");
        let chain = chain.collect::<Result<_, _>>().expect("certificate");
        (chain, PrivateKeyDer::from_pem_file(&leaf.key).expect("key"))
    });
    show(stream, shown, protocol, provider)
}

/// Tries a handshake with any bytes in the place of a certificate: they are not looked at on this side.
pub fn show(
    stream: TcpStream,
    shown: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    protocol: &[u8],
    provider: CryptoProvider,
) -> io::Result<Line> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_file(pki().partners.certificate()).expect("root");
    roots.add(root).expect("root");
    let keys = provider.key_provider;
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_root_certificates(roots);
    let mut config = match shown {
        Some((chain, key)) => {
            let key = CertifiedKey::new(chain, keys.load_private_key(key).expect("key"));
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").expect("name");
    let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Line { stream, pending: Vec::new() })
}

impl Line {
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("sent");
    }

    /// As [`Line::send`], for peers that may have closed already.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Answer {
        // A refusal may come, and the connection close, before all was sent.
        let _ = self.try_send(request.as_ref());
        self.answer(request.as_ref().starts_with(b"HEAD "))
    }

    /// Reads one answer. An answer to HEAD has no body, whatever it announces.
    #[track_caller]
    pub fn answer(&mut self, to_head: bool) -> Answer {
        let mut interim = Vec::new();
        loop {
            let mut answer = self.head();
            if answer.status < 200 && answer.status != 101 {
                interim.push(answer.status);
                continue;
            }
            answer.interim = interim;
            if !to_head {
                self.body(&mut answer);
            }
            return answer;
        }
    }

    /// Waits for an answer's head; `false` where the connection ends before.
    pub fn arrives(&mut self) -> bool {
        while parse_head(&self.pending).is_none() {
            if !self.more().unwrap_or(false) {
                return false;
            }
        }
        true
    }

    /// Reads one head, of an interim answer or a final one.
    #[track_caller]
    pub fn head(&mut self) -> Answer {
        loop {
            if let Some((answer, rest)) = parse_head(&self.pending) {
                self.pending = rest.to_vec();
                return answer;
            }
            let more = self.more().unwrap_or_else(|error| panic!("no head: {error}"));
            assert!(more, "closed before an answer: {:?}", String::from_utf8_lossy(&self.pending));
        }
    }

    fn body(&mut self, answer: &mut Answer) {
        let length = answer.values("content-length").first().map(|text| text.parse().expect("a length"));
        let chunked = !answer.values("transfer-encoding").is_empty();
        if matches!(answer.status, 204 | 304) {
            answer.whole = true;
        } else if chunked {
            while let Some(size) = self.until_crlf().and_then(|line| usize::from_str_radix(&line, 16).ok()) {
                let (piece, whole) = self.at_most(size);
                answer.body.extend(piece);
                if !whole || self.until_crlf().is_none() {
                    return;
                }
                if size == 0 {
                    answer.whole = true;
                    return;
                }
            }
        } else if let Some(length) = length {
            (answer.body, answer.whole) = self.at_most(length);
        } else {
            answer.whole = self.until_closed();
            answer.body = std::mem::take(&mut self.pending);
        }
    }

    fn until_crlf(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|two| two == b"\r\n") {
                let line = self.pending.drain(..end + 2).take(end).collect();
                return String::from_utf8(line).ok();
            }
            if !self.more().unwrap_or(false) {
                return None;
            }
        }
    }

    /// So many bytes; `None` where the connection ends before.
    pub fn exactly(&mut self, count: usize) -> Option<Vec<u8>> {
        let (bytes, whole) = self.at_most(count);
        whole.then_some(bytes)
    }

    fn at_most(&mut self, count: usize) -> (Vec<u8>, bool) {
        while self.pending.len() < count && self.more().unwrap_or(false) {}
        let whole = self.pending.len() >= count;
        let taken = count.min(self.pending.len());
        (self.pending.drain(..taken).collect(), whole)
    }

    /// Whether the gateway ends the connection, without another byte.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        self.until_closed();
        assert!(self.pending.is_empty(), "{:?}", String::from_utf8_lossy(&self.pending));
    }

    /// Reads on until the end; whether it came by a `close_notify`.
    #[track_caller]
    pub fn until_closed(&mut self) -> bool {
        loop {
            match self.more() {
                Ok(true) => {}
                Ok(false) => return true,
                Err(error) => {
                    let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
                    assert!(!late, "the connection stays open");
                    return false;
                }
            }
        }
    }

    /// Everything that was read and not yet taken.
    pub fn taken(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.pending)
    }

    /// Reads some bytes; `false` at the end.
    pub fn more(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let count = self.stream.read(&mut buffer)?;
        self.pending.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }

    /// Whether nothing has come, so far.
    pub fn is_silent(&mut self) -> bool {
        self.stream.sock.set_nonblocking(true).expect("nonblocking");
        let more = self.more();
        self.stream.sock.set_nonblocking(false).expect("blocking");
        self.pending.is_empty() && more.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a byte again and again, as slowly as it may, until the gateway ends the connection.
    pub fn dribble(&mut self, byte: u8) {
        let begun = std::time::Instant::now();
        self.stream.sock.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
        loop {
            assert!(begun.elapsed() < PATIENCE, "the connection stays open");
            match self.try_send([byte]).and_then(|()| self.more()) {
                Ok(true) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Ok(false) | Err(_) => return,
            }
        }
    }

    /// Ends this side of the connection; the other may go on.
    pub fn half_close(&mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
        let _ = self.stream.sock.shutdown(std::net::Shutdown::Write);
    }

    /// Has the keys of this side changed, and asks for the same of the other (RFC 8446 section 4.6.3).
    pub fn change_keys(&mut self) -> io::Result<()> {
        self.stream.conn.refresh_traffic_keys().map_err(io::Error::other)?;
        self.stream.flush()
    }

    /// Cuts the connection without a word.
    pub fn hang_up(self) {
        let _ = self.stream.sock.shutdown(std::net::Shutdown::Both);
    }

    pub fn session(&self) -> &ClientConnection {
        &self.stream.conn
    }
}

/// A complete answer head and what follows it.
pub fn parse_head(bytes: &[u8]) -> Option<(Answer, &[u8])> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (version, status) = (first.next()?.to_owned(), first.next()?.parse().ok()?);
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Some((Answer { version, status, headers, ..Answer::default() }, &bytes[end + 4..]))
}
