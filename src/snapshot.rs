//! One generation of everything that a request is decided on. Built whole from the configuration, then swapped in.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use webpki::{BorrowedCertRevocationList, CertRevocationList, anchor_from_trusted_cert};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::clock::Timestamp;
use crate::config::Config;
use crate::config::problem::Problem;
use crate::config::settings::{Issuer, Settings, Tls};
use crate::demo::pki::is_development_ca;
use crate::policy::networks::{NetworkId, Union};
use crate::policy::{PartnerId, Policy};
use crate::proxy::tls::{RevocationList, Trust, TrustedIssuer};
use crate::state::{PartnerState, State};

/// A request takes one snapshot at its beginning and looks at no other.
#[derive(Debug)]
pub struct Snapshot {
    pub settings: Settings,
    pub policy: Policy,
    pub trust: Arc<Trust>,
    /// All partners' networks; gates the accept.
    pub union: Union,
    /// State of each partner, in the policy's order.
    pub states: Vec<Arc<PartnerState>>,
    /// When each network of each partner let somebody in: Unix seconds, 0 for never.
    last_match: Vec<Box<[AtomicU32]>>,
    /// When the gateway's own certificate expires.
    pub certificate_not_after: Timestamp,
    /// Some issuer is the development CA, whose key lies in a working directory.
    pub development: bool,
}

impl Snapshot {
    /// Reads the certificates and lists that the configuration names. Every mistake is returned at once.
    pub fn build(config: Config, state: &State) -> Result<Snapshot, Vec<Problem>> {
        let Config { settings, policy, cases: _ } = config;
        let mut problems = Vec::new();
        let own = certified_key(&settings.tls, &mut problems);
        let mut development = false;
        let issuers: Vec<_> = settings
            .tls
            .issuers
            .iter()
            .filter_map(|issuer| trusted_issuer(issuer, &mut development, &mut problems))
            .collect();
        let (Some((key, certificate_not_after)), true) = (own, problems.is_empty()) else { return Err(problems) };

        let versions = if settings.tls.tls12 { rustls::ALL_VERSIONS.to_vec() } else { vec![&rustls::version::TLS13] };
        let hints = issuers.iter().flat_map(|issuer| &issuer.anchors).map(|anchor| anchor.subject.as_ref());
        let hints = hints.map(rustls::DistinguishedName::in_sequence).collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let trust = Arc::new(Trust { provider, versions, key: Arc::new(key), issuers, hints });
        let lists: Vec<_> = policy.partners.iter().map(|partner| &partner.networks).collect();
        let union = Union::build(&lists);
        let states = policy.partners.iter().map(|partner| state.partner(&partner.name)).collect();
        let unmatched =
            |partner: &crate::policy::Partner| (0..partner.networks.len()).map(|_| AtomicU32::new(0)).collect();
        let last_match = policy.partners.iter().map(unmatched).collect();
        Ok(Snapshot { settings, policy, trust, union, states, last_match, certificate_not_after, development })
    }

    pub fn state(&self, partner: PartnerId) -> &Arc<PartnerState> {
        &self.states[usize::from(partner.0)]
    }

    /// Notes that a network let a request in.
    pub fn matched(&self, partner: PartnerId, network: NetworkId, now: Timestamp) {
        let slot = &self.last_match[usize::from(partner.0)][network.index()];
        let seconds = now.unix_seconds() as u32;
        // A load is cheaper than a store to a line that other cores read; once a second is exact enough.
        if slot.load(Ordering::Relaxed) != seconds {
            slot.store(seconds, Ordering::Relaxed);
        }
    }

    pub fn last_match(&self, partner: PartnerId, network: NetworkId) -> Option<Timestamp> {
        let seconds = self.last_match[usize::from(partner.0)][network.index()].load(Ordering::Relaxed);
        (seconds != 0).then(|| Timestamp::from_unix_seconds(u64::from(seconds)))
    }
}

fn certified_key(tls: &Tls, problems: &mut Vec<Problem>) -> Option<(SingleCertAndKey, Timestamp)> {
    let chain = certificates(&tls.certificate, "tls.certificate", problems);
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| {
        problems.push(unreadable(&tls.key, "tls.key", &error, "it is a private key in PEM (PKCS #8, PKCS #1 or SEC1)"));
    });
    let (chain, key) = (chain?, key.ok()?);
    let not_after = chain.first().and_then(validity_end);
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
        let problem = Problem::error(tls.certificate.display().to_string(), "tls.certificate", error.to_string());
        problems
            .push(problem.with_hint(format!("certificate and key have to belong together ({})", tls.key.display())));
    });
    Some((SingleCertAndKey::from(certified.ok()?), not_after?))
}

fn trusted_issuer(issuer: &Issuer, development: &mut bool, problems: &mut Vec<Problem>) -> Option<TrustedIssuer> {
    let before = problems.len();
    let certificates = certificates(&issuer.certificates, "issuer.certificates", problems)?;
    let mut anchors = Vec::new();
    let mut not_after = None;
    for certificate in &certificates {
        let file = issuer.certificates.display().to_string();
        match anchor_from_trusted_cert(certificate) {
            Ok(anchor) => anchors.push(anchor.to_owned()),
            Err(error) => {
                problems.push(Problem::error(file, "issuer.certificates", format!("not a CA certificate: {error}")))
            }
        }
        not_after = [not_after, validity_end(certificate)].into_iter().flatten().min();
        *development |= organisations(certificate).iter().any(|organisation| is_development_ca(organisation));
    }
    let mut lists = Vec::new();
    for path in &issuer.crls {
        lists.extend(revocation_lists(path, problems));
    }
    lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
    (problems.len() == before).then(|| TrustedIssuer {
        name: issuer.name.clone(),
        anchors,
        lists,
        grace: issuer.crl_grace,
        revocation: issuer.revocation,
        not_after: not_after.unwrap_or_default(),
    })
}

fn certificates(path: &Path, key: &str, problems: &mut Vec<Problem>) -> Option<Vec<CertificateDer<'static>>> {
    let hint = "it is one or more certificates in PEM";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            problems.push(Problem::error(path.display().to_string(), key, "holds no certificate").with_hint(hint));
            None
        }
        Ok(certificates) => Some(certificates),
        Err(error) => {
            problems.push(unreadable(path, key, &error, hint));
            None
        }
    }
}

/// The lists of a file, PEM or DER.
fn revocation_lists(path: &Path, problems: &mut Vec<Problem>) -> Vec<RevocationList> {
    let key = "issuer.crls";
    let hint = "it is a certificate revocation list in PEM or DER";
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.push(unreadable(path, key, &error, hint));
            return Vec::new();
        }
    };
    let pem: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let ders = match pem {
        Ok(ders) if !ders.is_empty() => ders,
        Ok(_) => vec![CertificateRevocationListDer::from(bytes)],
        Err(error) => {
            problems.push(unreadable(path, key, &error, hint));
            return Vec::new();
        }
    };
    let mut lists = Vec::new();
    for der in ders {
        match revocation_list(path, &der) {
            Ok(list) => lists.push(list),
            Err(why) => problems.push(Problem::error(path.display().to_string(), key, why).with_hint(hint)),
        }
    }
    lists
}

fn revocation_list(path: &Path, der: &[u8]) -> Result<RevocationList, String> {
    let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
    let list = list.map_err(|error| format!("not a usable list: {error}"))?;
    let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|error| format!("not a list: {error}"))?;
    let time =
        |time: x509_parser::time::ASN1Time| Timestamp::from_unix_seconds(u64::try_from(time.timestamp()).unwrap_or(0));
    let next_update = parsed.next_update().ok_or("it has no nextUpdate, so nobody could say when it is out of date")?;
    Ok(RevocationList {
        file: path.file_name().unwrap_or_default().to_string_lossy().into(),
        this_update: time(parsed.last_update()),
        next_update: time(next_update),
        list: CertRevocationList::from(list),
    })
}

fn validity_end(certificate: &CertificateDer) -> Option<Timestamp> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok().map(Timestamp::from_unix_seconds)
}

fn organisations(certificate: &CertificateDer) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    parsed.subject().iter_organization().filter_map(|name| name.as_str().ok().map(str::to_owned)).collect()
}

fn unreadable(path: &Path, key: &str, error: &dyn std::fmt::Display, hint: &str) -> Problem {
    Problem::error(path.display().to_string(), key, format!("cannot be read: {error}")).with_hint(hint)
}
