//! Who is at the other end? Mutual TLS: trust, revocation, and what a client certificate proves.
//!
//! Each connection gets a verifier of its own ([`Attempt`]), for two reasons. What was verified, and under which named
//! issuer, is known only inside the verifier; and so is what was refused, which is worth a log line with the subject.
//! Sessions are never resumed: a resumed session would skip this verifier and with it revocation (rustls keeps the
//! old chain), so there is neither a session store nor a ticketer.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::time_provider::TimeProvider;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, VerifiedPath,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::clock::{Clock, Timestamp};
use crate::config::settings::Revocation;
use crate::policy::identify::Credential;

/// Everything a handshake needs: the gateway's key and the issuers of its partners. Belongs to one snapshot.
#[derive(Debug)]
pub struct Trust {
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) versions: Vec<&'static SupportedProtocolVersion>,
    pub(crate) key: Arc<SingleCertAndKey>,
    pub(crate) issuers: Vec<Arc<TrustedIssuer>>,
    pub(crate) hints: Vec<DistinguishedName>,
    /// Of all that a client certificate is verified by. A connection that was verified by another has to be verified anew.
    pub(crate) digest: [u8; 32],
}

/// A named issuer: its trust anchors and revocation lists.
#[derive(Debug)]
pub struct TrustedIssuer {
    pub name: Arc<str>,
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    /// When each of them expires: webpki takes an anchor as it is.
    pub(crate) anchors_not_after: Vec<Timestamp>,
    /// Newest first: webpki believes the first list that covers a certificate.
    pub(crate) lists: Vec<Arc<RevocationList>>,
    pub(crate) grace: Duration,
    pub(crate) revocation: Revocation,
    /// When the first of its certificates expires.
    pub not_after: Timestamp,
}

#[derive(Debug)]
pub struct RevocationList {
    /// Where it was read from; empty for one that came as bytes.
    pub path: PathBuf,
    /// The name of its file, for metrics.
    pub file: Arc<str>,
    pub this_update: Timestamp,
    pub next_update: Timestamp,
    pub(crate) digest: [u8; 32],
    pub(crate) list: CertRevocationList<'static>,
}

/// Why a handshake came to nothing. The codes are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    CertificateMissing,
    CertificateMalformed,
    CertificateExpired,
    CertificateNotYetValid,
    CertificateRevoked,
    RevocationUnknown,
    IssuerUnknown,
    PurposeWrong,
    SignatureInvalid,
    ChainInvalid,
    PartnerFrozen,
    ProtocolUnsupported,
    Timeout,
    Busy,
    Closed,
    Other,
}

impl Refusal {
    pub const fn code(self) -> &'static str {
        match self {
            Refusal::CertificateMissing => "certificate-missing",
            Refusal::CertificateMalformed => "certificate-malformed",
            Refusal::CertificateExpired => "certificate-expired",
            Refusal::CertificateNotYetValid => "certificate-not-yet-valid",
            Refusal::CertificateRevoked => "certificate-revoked",
            Refusal::RevocationUnknown => "revocation-unknown",
            Refusal::IssuerUnknown => "issuer-unknown",
            Refusal::PurposeWrong => "purpose-wrong",
            Refusal::SignatureInvalid => "signature-invalid",
            Refusal::ChainInvalid => "chain-invalid",
            Refusal::PartnerFrozen => "partner-frozen",
            Refusal::ProtocolUnsupported => "protocol-unsupported",
            Refusal::Timeout => "timeout",
            Refusal::Busy => "busy",
            Refusal::Closed => "closed",
            Refusal::Other => "other",
        }
    }
}

/// What a certificate says of itself; for the log, also when it was refused. Names are those of organisations' systems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    pub subject: String,
    pub serial: String,
    pub issuer: String,
}

/// A client certificate that passed.
#[derive(Debug)]
pub struct Client {
    pub credential: Credential,
    pub subject: String,
    pub certificate: CertificateDer<'static>,
    intermediates: Vec<CertificateDer<'static>>,
    verified: Verified,
}

/// By what a chain was verified, and for how long that holds if nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    trust: [u8; 32],
    until: Timestamp,
}

/// An open connection's chain is verified anew after this time at the latest.
const VERIFIED_FOR_MAX: Duration = Duration::from_secs(3_600);

/// One connection's verifier, and what it saw.
pub struct Attempt {
    trust: Arc<Trust>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    presented: Option<Presented>,
    refused: Option<Refusal>,
    client: Option<Arc<Client>>,
}

impl Trust {
    /// The configuration of one handshake, which goes by this clock, and where its outcome can be read afterwards.
    pub fn attempt(self: &Arc<Trust>, clock: &Clock) -> Result<(Arc<ServerConfig>, Arc<Attempt>), Error> {
        let attempt = Arc::new(Attempt { trust: self.clone(), seen: Mutex::default() });
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), Arc::new(clock.clone()))
            .with_protocol_versions(&self.versions)?
            .with_client_cert_verifier(attempt.clone())
            .with_cert_resolver(self.key.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((Arc::new(config), attempt))
    }

    /// Whether a chain that passed once still does: lists may have come since, or gone out of date. Cheap while neither
    /// can be; the names it proves have to stand under the same issuer as before.
    pub fn still_holds(&self, client: &Client, verified: Verified, now: Timestamp) -> Result<Verified, Refusal> {
        if verified.trust == self.digest && now < verified.until {
            return Ok(verified);
        }
        let leaf = EndEntityCert::try_from(&client.certificate).map_err(refusal_of)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(now.unix_seconds()));
        let issuer = self.verify(&leaf, &client.intermediates, time)?;
        if issuer.name != client.credential.issuer {
            return Err(Refusal::IssuerUnknown);
        }
        Ok(self.verified(now))
    }

    /// A verdict of this moment, and how long it lasts: to the next date in a list or an anchor, and never for long, since
    /// intermediate certificates have dates as well.
    fn verified(&self, now: Timestamp) -> Verified {
        let lists = self.issuers.iter().flat_map(|issuer| {
            issuer.lists.iter().map(|list| list.next_update.plus(issuer.grace)).chain(issuer.anchors_not_after.clone())
        });
        let until = lists.filter(|date| *date > now).min().unwrap_or(now.plus(VERIFIED_FOR_MAX));
        Verified { trust: self.digest, until: until.min(now.plus(VERIFIED_FOR_MAX)) }
    }

    pub fn issuers(&self) -> &[Arc<TrustedIssuer>] {
        &self.issuers
    }

    fn algorithms(&self) -> &WebPkiSupportedAlgorithms {
        &self.provider.signature_verification_algorithms
    }

    /// Verifies a chain under each issuer in turn. The most telling refusal is kept.
    fn verify(
        &self,
        leaf: &EndEntityCert,
        intermediates: &[CertificateDer],
        now: UnixTime,
    ) -> Result<&TrustedIssuer, Refusal> {
        let mut refusal = Refusal::IssuerUnknown;
        let mut vouching = None;
        for issuer in &self.issuers {
            match issuer.verify(leaf, intermediates, self.algorithms(), now) {
                Ok(()) => vouching = vouching.or(Some(&**issuer)),
                // Revoked is revoked, whatever another issuer with the same CA and an older list, or none, would say.
                Err(Refusal::CertificateRevoked) => return Err(Refusal::CertificateRevoked),
                Err(Refusal::IssuerUnknown) => {}
                Err(other) => refusal = other,
            }
        }
        vouching.ok_or(refusal)
    }
}

/// Certificates are judged by the same clock as everything else, which never goes back.
impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now().unix_seconds())))
    }
}

impl Client {
    /// By what it was verified in the handshake.
    pub fn verified(&self) -> Verified {
        self.verified
    }
}

impl TrustedIssuer {
    pub fn lists(&self) -> &[Arc<RevocationList>] {
        &self.lists
    }

    fn verify(
        &self,
        leaf: &EndEntityCert,
        intermediates: &[CertificateDer],
        algorithms: &WebPkiSupportedAlgorithms,
        now: UnixTime,
    ) -> Result<(), Refusal> {
        let in_force: Vec<&CertRevocationList> = self.in_force(now).collect();
        // webpki stops at the first list that covers a certificate. Any other list in force that names it counts as
        // well: lists may be split or arrive out of order, and being named in one is never an accident.
        let acceptable = |path: &VerifiedPath| {
            let anchor = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
            let not_after = anchor.map_or(Timestamp::default(), |at| self.anchors_not_after[at]);
            if not_after < Timestamp::from_unix_seconds(now.as_secs()) {
                let not_after = UnixTime::since_unix_epoch(Duration::from_secs(not_after.unix_seconds()));
                return Err(webpki::Error::CertExpired { time: now, not_after });
            }
            if !path.intermediate_certificates().all(may_sign_certificates) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
            if self.revocation != Revocation::Off && listed(path, self.revocation, &in_force) {
                return Err(webpki::Error::CertRevoked);
            }
            Ok(())
        };
        let revocation = match self.revocation {
            Revocation::Off => None,
            Revocation::Chain | Revocation::Leaf => {
                let depth = match self.revocation {
                    Revocation::Leaf => RevocationCheckDepth::EndEntity,
                    _ => RevocationCheckDepth::Chain,
                };
                // Expiry is enforced by `in_force`, which knows the grace; no list in force means nobody gets in.
                // A chain that belongs to another issuer must not be reported as one of unknown revocation.
                let builder = RevocationOptionsBuilder::new(&in_force).map_err(|_| {
                    let anchored = leaf.verify_for_usage(
                        algorithms.all,
                        &self.anchors,
                        intermediates,
                        now,
                        KeyUsage::client_auth(),
                        None,
                        None,
                    );
                    anchored.map_or_else(refusal_of, |_| Refusal::RevocationUnknown)
                })?;
                Some(builder.with_depth(depth).build())
            }
        };
        leaf.verify_for_usage(
            algorithms.all,
            &self.anchors,
            intermediates,
            now,
            KeyUsage::client_auth(),
            revocation,
            Some(&acceptable),
        )
        .map(drop)
        .map_err(refusal_of)
    }

    fn in_force(&self, now: UnixTime) -> impl Iterator<Item = &CertRevocationList<'static>> {
        let now = Timestamp::from_unix_seconds(now.as_secs());
        self.lists.iter().filter(move |list| now <= list.next_update.plus(self.grace)).map(|list| &list.list)
    }
}

/// Whether an authority's key usage, if it has one, lets it vouch (RFC 5280 section 4.2.1.3): webpki looks only at its
/// basic constraints.
fn may_sign_certificates(authority: &webpki::Cert) -> bool {
    let der = authority.der();
    let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
    parsed.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// Whether a certificate of the path (or only its leaf) is named by any of the lists.
fn listed(path: &VerifiedPath, revocation: Revocation, lists: &[&CertRevocationList]) -> bool {
    let named = |issuer: &[u8], serial: &[u8]| {
        // A list that cannot be searched counts as naming everything.
        lists.iter().any(|list| list.issuer() == issuer && !matches!(list.find_serial(serial), Ok(None)))
    };
    let leaf = path.end_entity();
    let chain = path.intermediate_certificates().filter(|_| revocation == Revocation::Chain);
    named(leaf.issuer(), leaf.serial()) || chain.into_iter().any(|cert| named(cert.issuer(), cert.serial()))
}

impl Attempt {
    pub fn presented(&self) -> Option<Presented> {
        self.seen().presented.clone()
    }

    pub fn client(&self) -> Option<Arc<Client>> {
        self.seen().client.clone()
    }

    /// Why a handshake failed, from what the verifier saw and else from the error.
    pub fn refusal(&self, error: &std::io::Error) -> Refusal {
        if let Some(refusal) = self.seen().refused {
            return refusal;
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::NoCertificatesPresented) => Refusal::CertificateMissing,
            Some(Error::PeerIncompatible(_) | Error::NoApplicationProtocol) => Refusal::ProtocolUnsupported,
            Some(Error::InvalidCertificate(_)) => Refusal::SignatureInvalid,
            Some(_) => Refusal::Other,
            None => Refusal::Closed,
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn examine(
        &self,
        leaf: &CertificateDer,
        intermediates: &[CertificateDer],
        now: UnixTime,
    ) -> Result<Client, Refusal> {
        let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| Refusal::CertificateMalformed)?;
        if !rest.is_empty() {
            return Err(Refusal::CertificateMalformed);
        }
        let subject = parsed.subject().to_string();
        self.seen().presented = Some(Presented {
            subject: subject.clone(),
            serial: parsed.raw_serial_as_string(),
            issuer: parsed.issuer().to_string(),
        });
        // webpki takes two of a kind of extensions that it does not know (RFC 5280 section 4.2).
        parsed.extensions_map().map_err(|_| Refusal::CertificateMalformed)?;
        let verified = EndEntityCert::try_from(leaf).map_err(refusal_of)?;
        let issuer = self.trust.verify(&verified, intermediates, now)?;
        // webpki knows nothing of key usage; a handshake is a signature (RFC 5280 section 4.2.1.3).
        let key_usage = parsed.key_usage().map_err(|_| Refusal::CertificateMalformed)?;
        if key_usage.is_some_and(|usage| !usage.value.digital_signature()) {
            return Err(Refusal::PurposeWrong);
        }
        // webpki lets a certificate without extended key usage pass for any usage; a client certificate says so.
        let usage = parsed.extended_key_usage().map_err(|_| Refusal::CertificateMalformed)?;
        if !usage.is_some_and(|usage| usage.value.client_auth) {
            return Err(Refusal::PurposeWrong);
        }
        // webpki gives the names up to the first that it cannot read; a list of names that is not one proves nothing.
        let names = parsed.subject_alternative_name().map_err(|_| Refusal::CertificateMalformed)?;
        let mut names = names.iter().flat_map(|names| &names.value.general_names);
        if names.any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(Refusal::CertificateMalformed);
        }
        let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or_default();
        let credential = Credential {
            issuer: issuer.name.clone(),
            // RFC 5280 section 4.2.1.6: what is not ASCII is no URI, and proves nothing.
            uris: verified.valid_uri_names().filter(|uri| uri.is_ascii()).map(str::to_owned).collect(),
            dns_names: verified.valid_dns_names().map(str::to_ascii_lowercase).collect(),
            spki: sha256(verified.subject_public_key_info().as_ref()),
            fingerprint: sha256(leaf),
            not_after: Timestamp::from_unix_seconds(not_after),
        };
        let certificate = leaf.clone().into_owned();
        let intermediates = intermediates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let verified = self.trust.verified(Timestamp::from_unix_seconds(now.as_secs()));
        Ok(Client { credential, subject, certificate, intermediates, verified })
    }
}

impl ClientCertVerifier for Attempt {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.trust.hints
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.examine(leaf, intermediates, now) {
            Ok(client) => {
                self.seen().client = Some(Arc::new(client));
                Ok(ClientCertVerified::assertion())
            }
            Err(refusal) => {
                self.seen().refused = Some(refusal);
                Err(Error::InvalidCertificate(alert_of(refusal)))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, self.trust.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, self.trust.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms().supported_schemes()
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempt")
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut array = [0; 32];
    array.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    array
}

/// The canonical form of a peer's address: IPv4 is never IPv6-mapped.
pub fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn refusal_of(error: webpki::Error) -> Refusal {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } => Refusal::CertificateExpired,
        E::CertNotValidYet { .. } => Refusal::CertificateNotYetValid,
        E::CertRevoked => Refusal::CertificateRevoked,
        E::UnknownRevocationStatus | E::CrlExpired { .. } | E::InvalidCrlSignatureForPublicKey => {
            Refusal::RevocationUnknown
        }
        E::UnknownIssuer => Refusal::IssuerUnknown,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Refusal::PurposeWrong,
        E::InvalidSignatureForPublicKey => Refusal::SignatureInvalid,
        E::BadDer
        | E::BadDerTime
        | E::InvalidSerialNumber
        | E::MalformedExtensions
        | E::UnsupportedCertVersion
        | E::TrailingData(_) => Refusal::CertificateMalformed,
        _ => Refusal::ChainInvalid,
    }
}

/// What the peer is told, as the TLS alert that rustls makes of it.
fn alert_of(refusal: Refusal) -> CertificateError {
    match refusal {
        Refusal::CertificateExpired => CertificateError::Expired,
        Refusal::CertificateNotYetValid => CertificateError::NotValidYet,
        Refusal::CertificateRevoked => CertificateError::Revoked,
        Refusal::RevocationUnknown => CertificateError::UnknownRevocationStatus,
        Refusal::IssuerUnknown => CertificateError::UnknownIssuer,
        Refusal::PurposeWrong => CertificateError::InvalidPurpose,
        Refusal::SignatureInvalid => CertificateError::BadSignature,
        Refusal::CertificateMalformed => CertificateError::BadEncoding,
        _ => CertificateError::ApplicationVerificationFailure,
    }
}
