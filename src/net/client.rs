//! A small HTTPS client with a client certificate: one request, one connection. For the demo's tour.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

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
    let named = |path: &Path| {
        let path = path.display().to_string();
        move |error: rustls::pki_types::pem::Error| format!("{path}: {error}")
    };
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(ca).map_err(named(ca))? {
        roots.add(root.map_err(named(ca))?).map_err(|error| format!("{}: {error}", ca.display()))?;
    }
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
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let (response, ended) = tokio::join!(
        async {
            let response = sender.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            drop(sender);
            Ok::<_, hyper::Error>(Response::from_parts(parts, body))
        },
        connection
    );
    match (response, ended) {
        (Ok(response), _) => Ok(Reply::Answer(response)),
        (Err(_), Err(error)) | (Err(error), Ok(())) => Ok(Reply::Refused(innermost(&error))),
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
