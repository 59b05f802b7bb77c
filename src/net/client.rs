//! A small HTTP client: one request, one connection. With a client certificate for the demo's tour, without one for the
//! audit's checkpoints and for alerts.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;

use crate::config::settings::Endpoint;

/// How far a request came. A refusal in the handshake is news, not an error.
#[derive(Debug)]
pub enum Reply {
    Answer(Response<Bytes>),
    /// Closed before or during the handshake, with what the other side said.
    Refused(String),
}

/// Whole time for one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A TLS configuration that trusts one CA file and shows one certificate.
pub fn identity(ca: &Path, certificate: &Path, key: &Path) -> Result<Arc<ClientConfig>, String> {
    let roots = roots(ca)?;
    let chain = CertificateDer::pem_file_iter(certificate).map_err(named(certificate))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(named(certificate))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(named(key))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("{}: {error}", certificate.display()))?;
    Ok(Arc::new(config))
}

/// A TLS configuration that trusts one CA file and shows nothing.
fn trust(ca: &Path) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The CAs of a file, of which there has to be one.
pub fn roots(ca: &Path) -> Result<rustls::RootCertStore, String> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).map_err(named(ca))? {
        roots.add(root.map_err(named(ca))?).map_err(|error| format!("{}: {error}", ca.display()))?;
    }
    if roots.is_empty() {
        return Err(format!("{}: no certificate", ca.display()));
    }
    Ok(roots)
}

fn named(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// What is posted, and what is said of it.
#[derive(Debug)]
pub struct Message {
    pub content_type: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Message {
    pub fn text(body: String) -> Message {
        Message { content_type: "text/plain; charset=utf-8", headers: Vec::new(), body }
    }

    pub fn json(body: String) -> Message {
        Message { content_type: "application/json", headers: Vec::new(), body }
    }
}

/// Posts a message and reads the answer: its status, and its body of at most so many bytes. `ca` is for an endpoint with TLS.
pub async fn post(
    to: &Endpoint,
    path: &str,
    ca: Option<&Path>,
    Message { content_type, headers, body }: Message,
    bytes_max: usize,
) -> Result<(u16, Bytes), String> {
    let posted = async {
        let stream =
            TcpStream::connect((&*to.host, to.port)).await.map_err(|error| format!("no connection: {error}"))?;
        let host = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.clone() };
        let target = format!("{}{path}", to.path);
        let mut request = Request::post(if target.is_empty() { "/" } else { &target })
            .header("host", format!("{host}:{}", to.port))
            .header("content-type", content_type);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())?;
        let response = match (to.tls, ca) {
            (false, _) => on(stream, request, bytes_max).await,
            (true, None) => return Err("no CA for https".to_owned()),
            (true, Some(ca)) => {
                let name = ServerName::try_from(to.host.clone()).map_err(|error| error.to_string())?;
                let tls = TlsConnector::from(trust(ca)?).connect(name, stream).await;
                on(tls.map_err(|error| error.to_string())?, request, bytes_max).await
            }
        };
        let response = response.map_err(|error| innermost(&*error))?;
        Ok((response.status().as_u16(), response.into_body()))
    };
    tokio::time::timeout(TIMEOUT, posted).await.map_err(|_| "no answer in time".to_owned())?
}

/// Sends one request from a source address of this machine and reads the whole answer.
pub async fn send(
    identity: &Arc<ClientConfig>,
    source: IpAddr,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Reply, String> {
    tokio::time::timeout(TIMEOUT, exchange(identity, source, to, request))
        .await
        .map_err(|_| "no answer in time".to_owned())?
}

async fn exchange(
    identity: &Arc<ClientConfig>,
    source: IpAddr,
    to: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Reply, String> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| format!("socket: {error}"))?;
    socket.bind(SocketAddr::new(source, 0)).map_err(|error| format!("cannot send from {source}: {error}"))?;
    let stream = socket.connect(to).await.map_err(|error| format!("cannot connect to {to}: {error}"))?;
    // Small writes must not wait for the acknowledgement of the last.
    let _ = stream.set_nodelay(true);
    let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
    let tls = match TlsConnector::from(identity.clone()).connect(name, stream).await {
        Ok(tls) => tls,
        Err(error) => return Ok(Reply::Refused(error.to_string())),
    };
    // A TLS 1.3 client is done before the server has looked at its certificate: a refusal comes with the first read.
    match on(tls, request, usize::MAX).await {
        Ok(response) => Ok(Reply::Answer(response)),
        Err(error) => Ok(Reply::Refused(innermost(&*error))),
    }
}

/// One request over a connection, and its answer.
async fn on(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Full<Bytes>>,
    bytes_max: usize,
) -> Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let (response, ended) = tokio::join!(
        async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, bytes_max).collect().await?.to_bytes();
            drop(sender);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::from_parts(parts, body))
        },
        connection
    );
    match (response, ended) {
        (Ok(response), _) => Ok(response),
        (Err(_), Err(error)) => Err(error.into()),
        (Err(error), Ok(())) => Err(error),
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
