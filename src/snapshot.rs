//! One generation of everything that a request is decided on. Built whole from the configuration, then swapped in.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use webpki::{BorrowedCertRevocationList, CertRevocationList, anchor_from_trusted_cert};
use x509_parser::prelude::{CertificateRevocationList, FromDer, GeneralName, X509Certificate};

use crate::alerts::secret::Secret;
use crate::clock::Timestamp;
use crate::config::cases::Case;
use crate::config::problem::Problem;
use crate::config::settings::{Issuer, ReceiverKind, Settings, Tls};
use crate::config::{self, Config};
use crate::demo::pki::is_development_ca;
use crate::detect::{Class, Profile};
use crate::lists::Lists;
use crate::log::LogLimit;
use crate::net::client;
use crate::policy::contract::{self, Contract};
use crate::policy::networks::{NetworkId, Networks, Union};
use crate::policy::route::{Place, RouteId};
use crate::policy::{Partner, PartnerId, Policy};
use crate::proxy::tls::{RevocationList, Trust, TrustedIssuer, sha256};
use crate::proxy::upstream::Upstream;
use crate::state::latencies::Latencies;
use crate::state::store::Ledger;
use crate::state::{PartnerState, State};

/// A request takes one snapshot at its beginning and looks at no other.
#[derive(Debug)]
pub struct Snapshot {
    read: Read,
    pub trust: Arc<Trust>,
    /// In the order of the settings' backends.
    pub upstreams: Vec<Arc<Upstream>>,
    /// State of each partner, in the policy's order.
    pub states: Vec<Arc<PartnerState>>,
    /// What detectors may know of each partner's contract.
    pub profiles: Vec<Arc<Profile>>,
    /// How long the answers of each route took lately, in the policy's order.
    latencies: Vec<Arc<Latencies>>,
    /// People whose lookups are told of.
    lists: Lists,
    /// Log lines of each partner's refused requests: one partner's flood hides nobody else's.
    request_lines: Vec<LogLimit>,
    last_match: Vec<Matches>,
    own: Own,
    /// Hosts of the listener for which the gateway's certificate is not valid.
    unnamed_hosts: Vec<String>,
}

/// What comes from the configuration's own files: stays as it is when only certificates and lists are read anew.
#[derive(Clone, Debug)]
pub struct Read {
    /// Counted from 1 at the start; whatever is swapped in has the next.
    pub generation: u64,
    pub settings: Arc<Settings>,
    pub policy: Arc<Policy>,
    /// The cases that this configuration was to pass.
    pub cases: Arc<[Case]>,
    /// Every file that was read, certificates and lists included.
    pub files: Arc<[PathBuf]>,
    /// All partners' networks; gates the accept.
    pub union: Arc<Union>,
    /// SHA-256 over the configuration's own files, in hex: what the audit knows it by.
    pub digest: Arc<str>,
}

impl Deref for Snapshot {
    type Target = Read;

    fn deref(&self) -> &Read {
        &self.read
    }
}

/// When each network of one partner let somebody in.
#[derive(Debug)]
struct Matches {
    /// Unix seconds, 0 for never.
    last: Box<[AtomicU32]>,
    /// How many ever did: counting them at each scrape would walk a million entries.
    ever: AtomicUsize,
}

impl Matches {
    /// What the state remembers of a partner's networks.
    fn of(networks: &Networks, state: &PartnerState) -> Matches {
        let last: Box<[AtomicU32]> = if state.ever_matched() {
            networks.iter().map(|(_, network)| AtomicU32::new(state.last_match(&network.cidr))).collect()
        } else {
            (0..networks.len()).map(|_| AtomicU32::new(0)).collect()
        };
        let ever = last.iter().filter(|seconds| seconds.load(Ordering::Relaxed) != 0).count();
        Matches { last, ever: AtomicUsize::new(ever) }
    }
}

/// What detectors may know of a partner.
pub fn profile(partner: &Partner) -> Profile {
    let (name, actors) = (partner.name.clone(), partner.actor_required);
    let Some(contract) = &partner.contract else { return Profile { name, actors, ..Profile::default() } };
    let class = match contract.class {
        contract::Class::CitizenApp => Class::CitizenApp,
        contract::Class::Interactive => Class::Interactive,
        contract::Class::Batch => Class::Batch,
    };
    let Contract { people_per_day, consent_required, critical, .. } = *contract;
    Profile { name, class, people_per_day, consent_required, actors, critical, ..Profile::default() }
}

/// Such a wait before anybody was answered.
const WAIT_UNTOLD: Duration = Duration::from_millis(40);
/// A certificate that expires within this time, or a revocation list, is worth a warning.
const CERTIFICATE_SOON: Duration = Duration::from_secs(30 * 86_400);
const LIST_SOON: Duration = Duration::from_secs(86_400);

/// The gateway's own key and what its certificate says.
#[derive(Clone, Debug)]
struct Own {
    key: Arc<SingleCertAndKey>,
    not_after: Timestamp,
    names: Vec<String>,
    digest: [u8; 32],
}

impl Snapshot {
    /// Reads the certificates and lists that the configuration names. Every mistake is returned at once.
    pub fn build(config: Config, state: &State) -> Result<Snapshot, Vec<Problem>> {
        let Config { settings, policy, cases, files, origin } = config;
        let material = Material::load(&settings, state, None)?;
        let lists: Vec<_> = policy.partners.iter().map(|partner| &partner.networks).collect();
        let union = Arc::new(Union::build(&lists));
        let digest = config::digest(&origin.directory, &files).into();
        let files = files.into_iter().chain(settings.files()).collect();
        let (settings, policy) = (Arc::new(settings), Arc::new(policy));
        let read = Read { generation: 1, settings, policy, cases: cases.into(), files, union, digest };
        Ok(Snapshot::assemble(read, material, state))
    }

    /// What is wrong with the files that these settings name, for a configuration that is refused in any case.
    pub fn file_problems(settings: &Settings) -> Vec<Problem> {
        Material::load(settings, &State::default(), None).err().unwrap_or_default()
    }

    /// The same configuration with its certificates, keys and lists read anew, as far as they can be read: one bad file must
    /// not hold up a revocation in another. `None` where nothing has changed.
    pub fn renewed(&self, state: &State) -> Option<Snapshot> {
        let material = Material::load(&self.read.settings, state, Some(self)).ok()?;
        let renewed = Snapshot::assemble(self.read.clone(), material, state);
        (!renewed.trusts_as(self)).then_some(renewed)
    }

    fn assemble(read: Read, material: Material, state: &State) -> Snapshot {
        let Material { trust, own, upstreams, lists } = material;
        let policy = &read.policy;
        let states: Vec<_> = policy.partners.iter().map(|partner| state.partner(&partner.name)).collect();
        let partners = policy.partners.iter().zip(&states);
        let latencies = policy.routes.iter().map(|route| state.latencies(&route.name)).collect();
        let profiles = policy.partners.iter().map(|partner| Arc::new(profile(partner))).collect();
        let last_match = partners.map(|(partner, state)| Matches::of(&partner.networks, state)).collect();
        let request_lines = policy.partners.iter().map(|_| LogLimit::of_requests()).collect();
        let unnamed_hosts = policy.hosts.iter().filter(|host| !own.names.contains(host)).cloned().collect();
        Snapshot {
            read,
            trust,
            upstreams,
            states,
            profiles,
            latencies,
            lists,
            request_lines,
            last_match,
            own,
            unnamed_hosts,
        }
    }

    /// What should be looked at before it fails: certificates and lists that are, or will soon be, out of date.
    pub fn warnings(&self, now: Timestamp) -> Vec<Problem> {
        let mut found = Vec::new();
        let tls = &self.settings.tls;
        let file = |path: &Path| tidy(path);
        let mut expiry = |file: String, key: &str, not_after: Timestamp, soon: Duration| {
            if not_after <= now.plus(soon) {
                let when = if not_after <= now { "out of date since" } else { "out of date from" };
                found.push(Problem::warning(file, key, format!("{when} {not_after}")));
            }
        };
        expiry(file(&tls.certificate), "tls.certificate", self.own.not_after, CERTIFICATE_SOON);
        for (issuer, trusted) in tls.issuers.iter().zip(self.trust.issuers()) {
            expiry(file(&issuer.certificates), "issuer.certificates", trusted.not_after, CERTIFICATE_SOON);
            for list in trusted.lists() {
                expiry(list.file.to_string(), "issuer.crls", list.next_update, LIST_SOON);
            }
        }
        for upstream in &self.upstreams {
            if let (Some(tls), Some(settings)) = (&upstream.tls, &upstream.settings.tls) {
                expiry(file(&settings.ca), "backend.tls.ca", tls.ca_not_after, CERTIFICATE_SOON);
                if let (Some(not_after), Some(client)) = (tls.client_not_after, &settings.client) {
                    expiry(file(&client.certificate), "backend.tls.certificate", not_after, CERTIFICATE_SOON);
                }
            }
        }
        for host in &self.unnamed_hosts {
            let problem =
                Problem::warning(file(&tls.certificate), "tls.certificate", "is not valid for a host of the listener");
            found
                .push(problem.with_value(host).with_hint("partners that ask for this host will not trust the gateway"));
        }
        found
    }

    /// Whether certificates, keys and lists are those of another snapshot.
    fn trusts_as(&self, other: &Snapshot) -> bool {
        let upstreams = self.upstreams.iter().zip(&other.upstreams);
        self.trust.digest == other.trust.digest
            && self.own.digest == other.own.digest
            && self.lists.is_same(&other.lists)
            && upstreams.into_iter().all(|(mine, theirs)| mine.is_made_as(theirs))
    }

    /// When the gateway's own certificate expires.
    pub fn certificate_not_after(&self) -> Timestamp {
        self.own.not_after
    }

    /// As the successor of another.
    pub fn numbered(mut self, generation: u64) -> Snapshot {
        self.read.generation = generation;
        self
    }

    pub fn request_lines(&self, partner: Option<PartnerId>) -> Option<&LogLimit> {
        self.request_lines.get(usize::from(partner?.0))
    }

    pub fn state(&self, partner: PartnerId) -> &Arc<PartnerState> {
        &self.states[usize::from(partner.0)]
    }

    pub fn lists(&self) -> &Lists {
        &self.lists
    }

    pub fn latencies(&self, route: RouteId) -> &Latencies {
        &self.latencies[usize::from(route.0)]
    }

    /// How long somebody waits who is refused as if there were an answer: as long as one of this route took, or of any other
    /// where nothing is known of it.
    pub fn wait_as_answered(&self, route: Option<RouteId>) -> Duration {
        let own = route.and_then(|route| self.latencies(route).draw());
        own.or_else(|| self.latencies.iter().find_map(|latencies| latencies.draw())).unwrap_or(WAIT_UNTOLD)
    }

    pub fn profile(&self, partner: PartnerId) -> &Arc<Profile> {
        &self.profiles[usize::from(partner.0)]
    }

    /// Notes that a network let a request in.
    pub fn matched(&self, partner: PartnerId, network: NetworkId, now: Timestamp, ledger: &mut Ledger) {
        let matches = &self.last_match[usize::from(partner.0)];
        let slot = &matches.last[network.index()];
        let seconds = now.unix_seconds() as u32;
        // A load is cheaper than a store to a line that other cores read; once a second is exact enough.
        if slot.load(Ordering::Relaxed) == seconds {
            return;
        }
        let before = slot.swap(seconds, Ordering::Relaxed);
        if before == 0 {
            matches.ever.fetch_add(1, Ordering::Relaxed);
        }
        if before != seconds {
            let cidr = self.policy.partner(partner).networks.network(network).cidr;
            self.state(partner).matched(cidr, seconds, ledger);
        }
    }

    pub fn last_match(&self, partner: PartnerId, network: NetworkId) -> Option<Timestamp> {
        let seconds = self.last_match[usize::from(partner.0)].last[network.index()].load(Ordering::Relaxed);
        (seconds != 0).then(|| Timestamp::from_unix_seconds(u64::from(seconds)))
    }

    /// How many networks of a partner let somebody in since the start.
    pub fn ever_matched(&self, partner: PartnerId) -> usize {
        self.last_match[usize::from(partner.0)].ever.load(Ordering::Relaxed)
    }
}

/// What comes from the files of certificates, keys and lists that the settings name.
struct Material {
    trust: Arc<Trust>,
    own: Own,
    upstreams: Vec<Arc<Upstream>>,
    lists: Lists,
}

impl Material {
    /// With an `old` snapshot of the same settings, its pieces stand in for those that cannot be read.
    fn load(settings: &Settings, state: &State, old: Option<&Snapshot>) -> Result<Material, Vec<Problem>> {
        let mut problems = Vec::new();
        let own = certified_key(&settings.tls, &mut problems).or_else(|| Some(old?.own.clone()));
        let issuers = settings.tls.issuers.iter().enumerate().filter_map(|(nth, issuer)| {
            let old = old.and_then(|old| old.trust.issuers().get(nth));
            trusted_issuer(issuer, old.map(|old| &**old), &mut problems).map(Arc::new)
        });
        let issuers: Vec<_> = issuers.collect();
        let upstreams = settings.backends.iter().enumerate().filter_map(|(nth, backend)| {
            let built = Upstream::build(backend, &state.backends, &mut problems).map(Arc::new);
            built.or_else(|| old?.upstreams.get(nth).cloned())
        });
        let upstreams = upstreams.collect();
        let lists = Lists::load(settings, &mut problems).or_else(|| Some(old?.lists.clone()));
        let address = settings.listen.address;
        if !address.ip().is_loopback() {
            let development = settings.tls.issuers.iter().filter(|issuer| is_development(issuer));
            problems.extend(development.map(|issuer| {
                let message = format!("the development CA is trusted, but the gateway listens on {address}");
                let hint = "whoever has certs/dev can be any partner: name your own CA, or listen on 127.0.0.1";
                at(&issuer.place, "issuer.certificates", &issuer.certificates, message).with_hint(hint)
            }));
        }
        problems.extend(receiver_problems(settings));
        let shared = shared_anchors(&settings.tls.issuers, &issuers);
        // That one CA now stands under two issuers is nothing that an old piece could mend.
        let usable = shared.is_empty() && (old.is_some() || problems.is_empty());
        problems.extend(shared);
        let (Some(own), Some(lists), true) = (own, lists, usable) else { return Err(problems) };

        let versions = if settings.tls.tls12 { rustls::ALL_VERSIONS.to_vec() } else { vec![&rustls::version::TLS13] };
        let hints = issuers.iter().flat_map(|issuer| &issuer.anchors).map(|anchor| anchor.subject.as_ref());
        let hints = hints.map(rustls::DistinguishedName::in_sequence).collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let digest = digest(&issuers);
        let trust = Trust { provider, versions, key: own.key.clone(), issuers, hints, digest };
        Ok(Material { trust: Arc::new(trust), own, upstreams, lists })
    }
}

/// What is wrong with the files by which alerts are sent. They are read again for each message: nothing of them is kept.
fn receiver_problems(settings: &Settings) -> Vec<Problem> {
    let mut problems = Vec::new();
    for receiver in &settings.alerts.receivers {
        if let ReceiverKind::Webhook { secret } = &receiver.kind
            && let Err(why) = Secret::load(secret)
        {
            problems.push(at(&receiver.place, "alerts.webhook.secret", secret, why));
        }
        if let Some(ca) = &receiver.ca
            && let Err(why) = client::roots(ca)
        {
            problems.push(at(&receiver.place, "alerts.ca", ca, why));
        }
    }
    problems
}

/// A CA stands under one issuer: whom its certificates name would otherwise hang on the order of the issuers.
fn shared_anchors(settings: &[Issuer], issuers: &[Arc<TrustedIssuer>]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (nth, issuer) in issuers.iter().enumerate() {
        let shares = |other: &&Arc<TrustedIssuer>| {
            let key = |anchor: &TrustAnchor| (anchor.subject.to_vec(), anchor.subject_public_key_info.to_vec());
            other.anchors.iter().any(|anchor| issuer.anchors.iter().any(|mine| key(mine) == key(anchor)))
        };
        let Some(other) = issuers[..nth].iter().find(shares) else { continue };
        let Some(declared) = settings.iter().find(|declared| declared.name == issuer.name) else { continue };
        let message = format!("holds a CA that issuer {} holds as well", other.name);
        let problem = at(&declared.place, "issuer.certificates", &declared.certificates, message);
        problems.push(problem.with_hint("name each CA under one issuer; several partners may refer to it"));
    }
    problems
}

/// Of everything by which a client's chain is judged.
fn digest(issuers: &[Arc<TrustedIssuer>]) -> [u8; 32] {
    let mut text = String::new();
    for issuer in issuers {
        let _ = write!(text, "{:?}", (&issuer.name, &issuer.anchors, &issuer.anchors_not_after));
        let _ = write!(text, "{:?}", (issuer.grace, issuer.revocation));
        for list in &issuer.lists {
            let _ = write!(text, "{:?}", (list.next_update, list.digest));
        }
    }
    sha256(text.as_bytes())
}

fn certified_key(tls: &Tls, problems: &mut Vec<Problem>) -> Option<Own> {
    let chain = certificates(&tls.certificate, &tls.place, "tls.certificate", problems);
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| {
        let hint = "it is a private key in PEM (PKCS #8, PKCS #1 or SEC1)";
        problems.push(unreadable(&tls.key, &tls.place, "tls.key", &error, hint));
    });
    let (chain, key) = (chain?, key.ok()?);
    let Some((not_after, names)) = chain.first().and_then(|leaf| Some((validity_end(leaf)?, host_names(leaf)))) else {
        let hint = "it is the gateway's certificate in PEM, with those of its chain behind it";
        problems.push(unreadable(&tls.certificate, &tls.place, "tls.certificate", &"not a certificate", hint));
        return None;
    };
    let digest = sha256(&chain.iter().flat_map(|certificate| certificate.to_vec()).collect::<Vec<u8>>());
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
        let message = match &error {
            rustls::Error::InconsistentKeys(_) => "this certificate does not belong to tls.key".to_owned(),
            other => other.to_string(),
        };
        let problem = at(&tls.place, "tls.certificate", &tls.certificate, message);
        problems.push(problem.with_hint(format!("the key is {}", tidy(&tls.key))));
    });
    Some(Own { key: Arc::new(SingleCertAndKey::from(certified.ok()?)), not_after, names, digest })
}

/// `None` where something cannot be read and nothing `old` stands in for it.
fn trusted_issuer(issuer: &Issuer, old: Option<&TrustedIssuer>, problems: &mut Vec<Problem>) -> Option<TrustedIssuer> {
    let (anchors, anchors_not_after) = match anchors(issuer, problems) {
        Some(read) => read,
        None => old.map(|old| (old.anchors.clone(), old.anchors_not_after.clone()))?,
    };
    let mut lists = Vec::new();
    for path in &issuer.crls {
        match revocation_lists(path, issuer, problems) {
            Some(read) => {
                lists.extend(read.into_iter().map(|list| Arc::new(RevocationList { path: path.clone(), ..list })))
            }
            None => lists.extend(old?.lists.iter().filter(|list| list.path == *path).cloned()),
        }
    }
    lists.sort_by_key(|list| std::cmp::Reverse(list.this_update));
    Some(TrustedIssuer {
        name: issuer.name.clone(),
        not_after: anchors_not_after.iter().copied().min().unwrap_or_default(),
        anchors,
        anchors_not_after,
        lists,
        grace: issuer.crl_grace,
        revocation: issuer.revocation,
    })
}

/// An issuer's CAs, and when each expires.
fn anchors(issuer: &Issuer, problems: &mut Vec<Problem>) -> Option<(Vec<TrustAnchor<'static>>, Vec<Timestamp>)> {
    let (key, path) = ("issuer.certificates", &issuer.certificates);
    let certificates = certificates(path, &issuer.place, key, problems)?;
    let read = certificates.iter().map(|certificate| {
        let anchor = anchor_from_trusted_cert(certificate).ok().filter(|_| may_sign(certificate))?;
        Some((anchor.to_owned(), validity_end(certificate)?))
    });
    let read: Option<(Vec<_>, Vec<_>)> = read.collect::<Option<Vec<_>>>().map(|read| read.into_iter().unzip());
    if read.is_none() {
        let hint = "an issuer's certificate has basicConstraints CA:TRUE, and keyCertSign if it states a key usage";
        let message = "holds a certificate that is not a CA's".to_owned();
        problems.push(at(&issuer.place, key, path, message).with_hint(hint));
    }
    read
}

pub(crate) fn certificates(
    path: &Path,
    place: &Place,
    key: &str,
    problems: &mut Vec<Problem>,
) -> Option<Vec<CertificateDer<'static>>> {
    let hint = "it is one or more certificates in PEM";
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            problems.push(unreadable(path, place, key, &"holds no certificate", hint));
            None
        }
        Ok(certificates) => Some(certificates),
        Err(error) => {
            problems.push(unreadable(path, place, key, &error, hint));
            None
        }
    }
}

/// The lists of a file.
fn revocation_lists(path: &Path, issuer: &Issuer, problems: &mut Vec<Problem>) -> Option<Vec<RevocationList>> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let read = std::fs::read(path).map_err(|error| error.to_string());
    let lists = read.and_then(|bytes| read_revocation_lists(&file, bytes)).map_err(|why| {
        let hint = "it is a certificate revocation list in PEM or DER";
        problems.push(unreadable(path, &issuer.place, "issuer.crls", &why, hint));
    });
    lists.ok()
}

/// The lists that a file's bytes hold, one in DER or any number in PEM; or why they cannot be relied on. They are not yet
/// believed: whoever uses one checks its signature.
pub fn read_revocation_lists(file: &str, bytes: Vec<u8>) -> Result<Vec<RevocationList>, String> {
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    let pem: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    let ders = match pem {
        Ok(ders) if !ders.is_empty() => ders,
        // DER begins with a sequence.
        Ok(_) if bytes.first() == Some(&0x30) => vec![CertificateRevocationListDer::from(bytes)],
        Ok(_) => return Err("neither PEM nor DER".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    ders.iter().map(|der| revocation_list(file, der)).collect()
}

fn revocation_list(file: &str, der: &[u8]) -> Result<RevocationList, String> {
    let list = BorrowedCertRevocationList::from_der(der).and_then(|list| list.to_owned());
    let list = list.map_err(|error| format!("not a usable list: {error}"))?;
    let (_, parsed) = CertificateRevocationList::from_der(der).map_err(|error| format!("not a list: {error}"))?;
    let time =
        |time: x509_parser::time::ASN1Time| Timestamp::from_unix_seconds(u64::try_from(time.timestamp()).unwrap_or(0));
    let next_update = parsed.next_update().ok_or("it has no nextUpdate, so nobody could say when it is out of date")?;
    Ok(RevocationList {
        path: PathBuf::new(),
        file: file.into(),
        this_update: time(parsed.last_update()),
        next_update: time(next_update),
        digest: sha256(der),
        list: CertRevocationList::from(list),
    })
}

pub(crate) fn validity_end(certificate: &CertificateDer) -> Option<Timestamp> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok().map(Timestamp::from_unix_seconds)
}

/// Whether a certificate is a CA's. webpki takes an anchor as it is: without this, the holder of a leaf that was put here
/// by mistake could sign for any partner.
pub(crate) fn may_sign(certificate: &CertificateDer) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let authority = matches!(parsed.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    let signs = match parsed.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| usage.value.key_cert_sign()),
        Err(_) => false,
    };
    authority && signs
}

/// DNS names and addresses, as the listener's hosts are written.
fn host_names(certificate: &CertificateDer) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let address = |bytes: &[u8]| match *bytes {
        [a, b, c, d] => Some(Ipv4Addr::new(a, b, c, d).to_string()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|octets| format!("[{}]", Ipv6Addr::from(octets))),
    };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    names.collect()
}

/// The development CA, or anything that it signed.
fn is_development(issuer: &Issuer) -> bool {
    let Ok(certificates) = CertificateDer::pem_file_iter(&issuer.certificates) else { return false };
    certificates.flatten().any(|certificate| {
        let Ok((_, parsed)) = X509Certificate::from_der(&certificate) else { return false };
        let organisations = parsed.subject().iter_organization().chain(parsed.issuer().iter_organization());
        organisations.into_iter().any(|name| name.as_str().is_ok_and(is_development_ca))
    })
}

/// A problem at the table that names a file.
pub(crate) fn at(place: &Place, key: &str, path: &Path, message: String) -> Problem {
    Problem::error(&*place.file, key, message).at_line(place.line as usize).with_value(tidy(path))
}

pub(crate) fn unreadable(path: &Path, place: &Place, key: &str, why: &dyn std::fmt::Display, hint: &str) -> Problem {
    let message = format!("cannot be read: {why}");
    let problem = at(place, key, path, message);
    if tidy(path).contains("certs/dev/") && !path.exists() {
        return problem.with_hint("`dwarpal pki dev` makes the development certificates");
    }
    problem.with_hint(hint)
}

/// A path as people write it: `config/../certs` is `certs`.
fn tidy(path: &Path) -> String {
    let mut parts: Vec<Component> = Vec::new();
    for part in path.components() {
        match (part, parts.last()) {
            (Component::ParentDir, Some(Component::Normal(_))) => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.iter().collect::<std::path::PathBuf>().display().to_string()
}
