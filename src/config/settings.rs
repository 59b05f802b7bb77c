//! How does this gateway run? Everything in `gateway.toml` that is not policy.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::audit::note::Vkey;
use crate::lists;
use crate::policy::route::{Durability, Place};
use crate::subject::epochs::Keyring;

#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Listen,
    pub tls: Tls,
    pub http: Http,
    pub metrics: Metrics,
    pub log: Log,
    pub sandbox: Sandbox,
    /// Resident memory near which new connections are shed, beside the limit of the control group.
    pub memory_max: Option<u64>,
    /// Where everything is kept that outlives the process.
    pub directory: PathBuf,
    pub audit: Audit,
    pub epochs: Epochs,
    pub alerts: Alerts,
    pub clock: ClockSources,
    pub lists: lists::Files,
    pub backends: Vec<Backend>,
    /// Keys that the state may remember for one partner: source addresses and people together.
    pub limiter_entries_max: usize,
}

#[derive(Clone, Debug)]
pub struct Listen {
    pub address: SocketAddr,
    /// Worker threads, each with a runtime, a listener and upstream pools of its own.
    pub workers: usize,
    pub connections_max: usize,
    pub connections_per_source_max: usize,
    pub proxy_protocol: ProxyProtocol,
}

/// Balancers that say for whom they connect. Nobody, unless they are named.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    pub from: Vec<IpNet>,
    pub header_timeout: Duration,
    pub header_bytes_max: usize,
    /// Connections of all balancers whose header has not come yet.
    pub waiting_max: usize,
}

#[derive(Clone, Debug)]
pub struct Tls {
    /// The gateway's own chain and key, PEM.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// TLS 1.2 is spoken too.
    pub tls12: bool,
    pub handshake_timeout: Duration,
    pub handshakes_max: usize,
    pub handshakes_per_source_max: usize,
    pub issuers: Vec<Issuer>,
    pub place: Place,
}

/// A named set of trust anchors with their revocation lists.
#[derive(Clone, Debug)]
pub struct Issuer {
    pub name: Arc<str>,
    pub certificates: PathBuf,
    pub crls: Vec<PathBuf>,
    /// How long after its `nextUpdate` a revocation list still counts.
    pub crl_grace: Duration,
    pub revocation: Revocation,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// Every certificate of the chain needs a current list of its issuer.
    Chain,
    /// Only the leaf does.
    Leaf,
    /// Nothing is checked; `check` says so.
    Off,
}

/// Bounds on what a partner may do to a connection.
#[derive(Clone, Debug)]
pub struct Http {
    /// From the first byte waited for to a complete head; also how long a connection may idle between requests.
    pub head_timeout: Duration,
    pub idle_timeout: Duration,
    pub head_bytes_max: usize,
    pub fields_max: usize,
    pub target_bytes_max: usize,
    /// Bodies, both ways, have to move at this many bytes a second on average after `rate_grace`.
    pub rate_min: u32,
    pub rate_grace: Duration,
    /// Concurrent HTTP/2 streams of a connection.
    pub streams_max: u32,
    /// HTTP/2 resets that a connection may have pending.
    pub resets_max: usize,
    /// Longest life of one request, head to last byte.
    pub request_timeout: Duration,
    /// How long a stopping gateway waits for requests that are under way.
    pub drain_timeout: Duration,
}

/// The log of who was told about whom.
#[derive(Clone, Debug)]
pub struct Audit {
    /// Where the log lies; `None`: in the data directory.
    pub directory: Option<PathBuf>,
    /// The log's name in checkpoints, and its key's.
    pub origin: String,
    /// Of routes that do not say.
    pub durability: Durability,
    /// How long what nobody waits for may stay off the disk.
    pub interval: Duration,
    pub checkpoint_interval: Duration,
    /// Entries that wait for the disk.
    pub queue_bytes_max: usize,
    /// Free room on the disk that is kept for lookups: with less, refusals are counted instead of recorded.
    pub reserve_bytes: u64,
    /// How long entries are kept.
    pub retain: Duration,
    pub copies: AuditCopies,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub address: SocketAddr,
    pub networks: Vec<IpNet>,
}

/// What the process takes away from itself before it serves.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub landlock: Confinement,
    pub seccomp: Confinement,
    /// Directories that may be read besides those of the files that the configuration names.
    pub read: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confinement {
    /// Without it the gateway does not start.
    Required,
    /// Where the kernel has it.
    On,
    Off,
}

/// Where the audit's checkpoints go besides its own directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditCopies {
    /// Appended to.
    pub files: Vec<PathBuf>,
    pub urls: Vec<Endpoint>,
    /// The only CAs that may vouch for the servers of `urls`, PEM.
    pub ca: Option<PathBuf>,
    pub witnesses: Vec<Witness>,
}

/// Somebody who signs checkpoints that continue all they signed before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    pub name: Arc<str>,
    pub vkey: Vkey,
    pub url: Endpoint,
    pub ca: Option<PathBuf>,
}

/// Where to post something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// As it is written in the configuration.
    pub url: Arc<str>,
    /// Plain text goes to loopback addresses only.
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// Without a slash at its end.
    pub path: String,
}

/// Whom alerts are told, besides the log, the metrics and the audit.
#[derive(Clone, Debug)]
pub struct Alerts {
    pub actors: ActorNames,
    /// An alert that goes on is told again after so long; in between it is counted.
    pub repeat: Duration,
    /// An alert that did not come again for so long is over, unless it holds somebody on the ladder.
    pub quiet: Duration,
    /// How often Alertmanagers are told of what goes on.
    pub resend: Duration,
    /// Alerts that wait to be looked at, and messages that wait for one receiver.
    pub queue_max: usize,
    pub receivers: Vec<Receiver>,
}

/// What actors are called outside of the audit, where they are always marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorNames {
    /// As their partner calls them.
    Clear,
    /// By their mark under the epoch's key.
    Token,
}

/// Somebody who is told of alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    pub name: Arc<str>,
    pub url: Endpoint,
    /// The only CAs that may vouch for its server, PEM.
    pub ca: Option<PathBuf>,
    pub kind: ReceiverKind,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReceiverKind {
    /// Gets each message once, signed with the secret in this file (Standard Webhooks).
    Webhook { secret: PathBuf },
    /// Gets all alerts that go on, again and again.
    Alertmanager,
}

/// Who is asked about the system's clock, in this order; then the kernel is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockSources {
    /// Where chrony takes commands.
    pub chrony: Option<SocketAddr>,
    pub ntp: Option<SocketAddr>,
}

/// How long people are hidden under one key.
#[derive(Clone, Debug)]
pub struct Epochs {
    /// `None`: until an operator says so.
    pub rotate: Option<Duration>,
    /// How long people are still counted under the epoch before as well.
    pub overlap: Duration,
    /// Where keys are that the service manager gave to this process; `None`: they are made and kept in the data directory.
    pub credentials: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Human,
}

/// What is logged: refusals and worse, every request as well, or details for debugging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

/// One service behind the gateway: servers that are asked for the same.
#[derive(Clone, Debug)]
pub struct Backend {
    pub name: Arc<str>,
    /// At least one.
    pub servers: Vec<SocketAddr>,
    /// What the backend sees as `Host`.
    pub host: String,
    pub protocol: Protocol,
    /// `None` is plain text.
    pub tls: Option<BackendTls>,
    /// Connections of one worker to one server; of HTTP/2, requests at the same time.
    pub connections_max: usize,
    /// Requests of one worker that may wait for such a place; the next is refused at once.
    pub pending_max: usize,
    /// For TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the last byte of the request to the head of the answer.
    pub answer_timeout: Duration,
    /// How long an idle connection is kept for the next request.
    pub idle_timeout: Duration,
    /// `None` asks no server how it is: it is taken for well until requests fail.
    pub health: Option<Health>,
    pub ejection: Ejection,
    /// How long a server that came back gets less than its share. Zero is its whole share at once.
    pub slow_start: Duration,
    /// `None` never refuses a request before it was tried.
    pub circuit: Option<Circuit>,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// With prior knowledge in plain text, by ALPN over TLS; nothing else is spoken then.
    Http2,
}

/// TLS to the servers of a backend.
#[derive(Clone, Debug)]
pub struct BackendTls {
    /// The only CAs that may vouch for a server, PEM.
    pub ca: PathBuf,
    /// What a server's certificate has to be valid for, and what is sent as SNI.
    pub name: String,
    /// The gateway's own certificate and key towards the servers, PEM.
    pub client: Option<ClientCertificate>,
}

#[derive(Clone, Debug)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Active health checks: a GET now and then.
#[derive(Clone, Debug)]
pub struct Health {
    pub path: String,
    pub interval: Duration,
    /// Of one check; at most `interval`.
    pub timeout: Duration,
    /// Checks in a row that bring a server back, and that take it out.
    pub healthy_after: u32,
    pub unhealthy_after: u32,
    /// The only status that is well.
    pub status: u16,
}

/// When a server whose requests fail is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// Failures in a row.
    pub after: u32,
    pub time: Duration,
    /// Of a backend's servers, out at the same time.
    pub percent_max: u32,
}

/// When a backend is left alone for a while, and its requests are refused at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circuit {
    /// Of the requests in a window, which begins with a failure.
    pub failure_percent: u32,
    pub requests_min: u32,
    pub window: Duration,
    pub open_time: Duration,
}

impl Settings {
    /// Every file of certificates, keys and lists.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        self.tls
            .files()
            .chain(self.backends.iter().filter_map(|backend| backend.tls.as_ref()).flat_map(BackendTls::files))
            .chain(self.lists.all().map(|(_, path)| path.clone()))
    }

    /// Where limits, last matches and freezes are kept.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Where the audit's log lies, and nothing else.
    pub fn audit_directory(&self) -> PathBuf {
        self.audit.directory.clone().unwrap_or_else(|| self.directory.join(AUDIT))
    }

    /// The file of the key that signs the audit's checkpoints: elsewhere than what it signs.
    pub fn audit_key(&self) -> PathBuf {
        self.directory.join("audit.key")
    }

    /// The file of alerts that go on, and of messages that nobody has taken yet.
    pub fn alerts_file(&self) -> PathBuf {
        self.state_directory().join("alerts.json")
    }

    /// Where a running gateway takes commands.
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.directory)
    }

    /// The key that people on lists are hidden under: it outlives every epoch.
    pub fn list_key(&self) -> PathBuf {
        lists::key_path(&self.directory, self.epochs.credentials.as_deref())
    }

    /// Where the keys lie that turn people into tokens.
    pub fn keyring(&self) -> Keyring {
        Keyring::new(&self.directory, self.epochs.credentials.clone())
    }
}

impl AuditCopies {
    /// Every file of certificates.
    pub fn authorities(&self) -> impl Iterator<Item = &PathBuf> {
        self.ca.iter().chain(self.witnesses.iter().filter_map(|witness| witness.ca.as_ref()))
    }

    /// Whether a name has to be looked up to reach them all.
    pub fn has_names(&self) -> bool {
        let mut endpoints = self.urls.iter().chain(self.witnesses.iter().map(|witness| &witness.url));
        endpoints.any(Endpoint::is_named)
    }
}

impl Alerts {
    /// How long an Alertmanager believes an alert that it is not told again: some messages may fail.
    pub fn believed_for(&self) -> Duration {
        self.resend * 4
    }

    /// Every file of certificates and secrets.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.receivers.iter().flat_map(|receiver| {
            let secret = match &receiver.kind {
                ReceiverKind::Webhook { secret } => Some(secret),
                ReceiverKind::Alertmanager => None,
            };
            receiver.ca.iter().chain(secret)
        })
    }

    /// Whether a name has to be looked up to reach them all.
    pub fn has_names(&self) -> bool {
        self.receivers.iter().any(|receiver| receiver.url.is_named())
    }
}

impl Endpoint {
    /// Whether a name has to be looked up to reach it.
    pub fn is_named(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }
}

impl Tls {
    /// Every file that is read for handshakes.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let issuers = self.issuers.iter().flat_map(|issuer| issuer.crls.iter().chain([&issuer.certificates]));
        issuers.chain([&self.certificate, &self.key]).cloned()
    }
}

impl ProxyProtocol {
    /// Whether this address has to say for whom it connects.
    pub fn expects(&self, peer: IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(&peer))
    }
}

impl BackendTls {
    /// Every file that is read to speak with its servers.
    pub fn files(&self) -> impl Iterator<Item = PathBuf> {
        let client = self.client.iter().flat_map(|client| [&client.certificate, &client.key]);
        client.chain([&self.ca]).cloned()
    }
}

impl Metrics {
    /// Whether this address may scrape. The list is small: a scan is enough.
    pub fn allows(&self, source: IpAddr) -> bool {
        let source = source.to_canonical();
        self.networks.iter().any(|network| network.contains(&source))
    }
}

/// Below the data directory, where nothing else is said.
pub const AUDIT: &str = "audit";

/// Where the gateway with this data directory takes commands.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// What a command line puts in the place of the files' values.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub listen: Option<SocketAddr>,
    pub metrics: Option<SocketAddr>,
    pub directory: Option<PathBuf>,
    pub workers: Option<usize>,
    /// Backend name and address.
    pub backends: Vec<(String, SocketAddr)>,
}
