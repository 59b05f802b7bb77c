//! Whose word does the gateway take for a backend's servers, and how does it show who it is itself?

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::clock::{Clock, Timestamp};
use crate::config::problem::Problem;
use crate::config::settings::{Backend, BackendTls, ClientCertificate, Protocol};
use crate::snapshot::{at, certificates, may_sign, unreadable, validity_end};

/// TLS towards one backend. Belongs to one snapshot.
#[derive(Debug)]
pub struct Tls {
    config: ClientConfig,
    pub name: ServerName<'static>,
    /// When the gateway's own certificate towards the servers expires.
    pub client_not_after: Option<Timestamp>,
    /// When the first of the CAs does.
    pub ca_not_after: Timestamp,
}

impl Tls {
    /// For one handshake, which goes by this clock.
    pub fn connector(&self, clock: &Clock) -> TlsConnector {
        let mut config = self.config.clone();
        config.time_provider = Arc::new(clock.clone());
        TlsConnector::from(Arc::new(config))
    }

    /// Reads the files; every mistake is noted, and what was read goes into the digest.
    pub fn load(
        tls: &BackendTls,
        backend: &Backend,
        digest: &mut digest::Context,
        problems: &mut Vec<Problem>,
    ) -> Option<Tls> {
        let (place, before) = (&backend.place, problems.len());
        let mut roots = RootCertStore::empty();
        let mut not_after = Vec::new();
        for root in certificates(&tls.ca, place, "backend.tls.ca", problems).unwrap_or_default() {
            digest.update(&root);
            let end = validity_end(&root);
            if !may_sign(&root) || end.is_none() || roots.add(root).is_err() {
                let problem = at(place, "backend.tls.ca", &tls.ca, "holds a certificate that is not a CA's".to_owned());
                problems.push(problem.with_hint("list the CA that signs the servers' certificates, not those"));
            }
            not_after.extend(end);
        }
        let bare = tls.name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|_| {
            let problem = Problem::error(&*place.file, "backend.tls.name", "is no name").at_line(place.line as usize);
            problems
                .push(problem.with_value(&tls.name).with_hint("it is a DNS name or an address of the certificates"));
        });
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.ok()?.with_root_certificates(roots);
        let (mut config, client_not_after) = match &tls.client {
            None => (builder.with_no_client_auth(), None),
            Some(ClientCertificate { certificate, key }) => {
                let chain = certificates(certificate, place, "backend.tls.certificate", problems);
                let key_read = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                    let hint = "it is a private key in PEM (PKCS #8, PKCS #1 or SEC1)";
                    problems.push(unreadable(key, place, "backend.tls.key", &error, hint));
                });
                let (chain, key_read) = (chain?, key_read.ok()?);
                chain.iter().for_each(|certificate| digest.update(certificate));
                digest.update(key_read.secret_der());
                let end = chain.first().and_then(validity_end);
                let config = builder.with_client_auth_cert(chain, key_read).map_err(|error| {
                    let message = match &error {
                        rustls::Error::InconsistentKeys(_) => "does not belong to backend.tls.key".to_owned(),
                        other => other.to_string(),
                    };
                    problems.push(at(place, "backend.tls.certificate", certificate, message));
                });
                (config.ok()?, end)
            }
        };
        config.alpn_protocols = match backend.protocol {
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
        };
        // Connections are kept, so handshakes are rare; a resumed session would not look at the certificate again.
        config.resumption = Resumption::disabled();
        let ca_not_after = not_after.into_iter().min().unwrap_or_default();
        (problems.len() == before).then_some(())?;
        Some(Tls { config, name: name.ok()?, client_not_after, ca_not_after })
    }
}
