//! Reads `gateway.toml`: settings, hosts and routes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::alerts::{alerts, default_alerts};
use super::copies::copies;
use super::network_file::parse_cidr;
use super::reader::{Reader, parse_bytes};
use super::settings::*;
use crate::lists::Files;
use crate::policy::fields::is_reserved;
use crate::policy::networks::is_wide;
use crate::policy::route::{Durability, Location, LookupRoute, PassRoute, Pattern, Route, RouteKind};
use crate::policy::shape::{Accepts, Field, Shape, parse_pointer};
use crate::subject::Kind;

/// What `gateway.toml` holds, as far as it could be read: partners' files are checked against it all the same.
pub struct Gateway {
    pub settings: Option<Settings>,
    pub hosts: Vec<String>,
    pub issuers: Vec<Issuer>,
    pub routes: Vec<Route>,
    /// Every name that is declared, readable or not.
    pub issuer_names: Vec<String>,
    pub route_names: Vec<String>,
}

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

pub fn read(root: &Reader, directory: &Path) -> Gateway {
    version(root);
    let listen = root.table("listen", listen);
    if !root.has("issuer") {
        root.problem("issuer", "no issuer: no client certificate could be trusted", "add [[issuer]] with certificates");
    }
    let issuers = root.tables("issuer", |table| issuer(table, directory));
    unique(root, "issuer", issuers.iter().map(|issuer| &issuer.name));
    let tls = root.table("tls", |table| tls(table, directory));
    let http = root.want_table("http", http);
    let metrics = root.table("metrics", metrics);
    let log = root.want_table("log", log);
    let memory_max = root.want_table("pressure", memory_max);
    let sandbox = root.want_table("sandbox", |table| sandbox(table, directory));
    let data = root.table("data", |table| data(table, directory));
    let audit = root.want_table("audit", |table| audit(table, directory));
    let epochs = root.want_table("epochs", epochs);
    let alerts = root.want_table("alerts", |table| alerts(table, directory));
    let clock = root.want_table("clock", clock);
    let lists = root.want_table("lists", |table| lists(table, directory));
    let entries_max = |table: &Reader| table.integer("limiter_entries_max", 1_000..=100_000_000, Some(ENTRIES_MAX));
    let entries_max = root.want_table("state", entries_max);
    let backends = root.tables("backend", |table| backend(table, directory));
    unique(root, "backend", backends.iter().map(|backend| &backend.name));
    let backend_names = root.declared("backend");
    let routes = root.tables("route", |table| route(table, &backends, &backend_names));
    let hosts = listen.as_ref().map(|(_, hosts)| hosts.clone()).unwrap_or_default();
    // A table that could not be read stands in its default here, so that what the others name is looked at as well; the
    // configuration is refused for it.
    let settings = || {
        Some(Settings {
            listen: listen?.0,
            tls: Tls { issuers: issuers.clone(), ..tls? },
            http: http.flatten().unwrap_or_else(default_http),
            metrics: metrics?,
            log: log.flatten().unwrap_or(Log { format: LogFormat::Json, level: LogLevel::Info }),
            sandbox: sandbox.flatten().unwrap_or_else(default_sandbox),
            memory_max: memory_max.flatten().flatten(),
            audit: named_after(audit.flatten().unwrap_or_else(default_audit), &hosts),
            directory: data?,
            epochs: epochs.flatten().unwrap_or_else(default_epochs),
            alerts: alerts.flatten().unwrap_or_else(default_alerts),
            clock: clock.flatten().unwrap_or_else(default_clock),
            lists: lists.flatten().unwrap_or_default(),
            backends,
            limiter_entries_max: entries_max.flatten().unwrap_or(ENTRIES_MAX) as usize,
        })
    };
    let (issuer_names, route_names) = (root.declared("issuer"), root.declared("route"));
    Gateway { settings: settings(), hosts, issuers, routes, issuer_names, route_names }
}

fn unique<'a>(root: &Reader, key: &'static str, names: impl Iterator<Item = &'a Arc<str>>) {
    let mut seen: Vec<&str> = Vec::new();
    for name in names {
        if seen.contains(&&**name) {
            root.problem(key, format!("two {key}s are called {name}"), "give each its own name");
        }
        seen.push(name);
    }
}

pub fn data(table: &Reader, directory: &Path) -> Option<PathBuf> {
    Some(directory.join(table.need_text("directory")?))
}

fn default_audit() -> Audit {
    Audit {
        directory: None,
        origin: String::new(),
        durability: Durability::BeforeAnswer,
        interval: Duration::from_millis(200),
        checkpoint_interval: 10 * SECOND,
        queue_bytes_max: 32 << 20,
        reserve_bytes: 256 << 20,
        retain: 365 * DAY,
        copies: AuditCopies::default(),
    }
}

/// Where no name is given, the log has that of the first host.
fn named_after(audit: Audit, hosts: &[String]) -> Audit {
    match (audit.origin.as_str(), hosts.first()) {
        ("", Some(host)) => Audit { origin: format!("{host}/dwarpal"), ..audit },
        _ => audit,
    }
}

/// What incident law asks for at the least, in India (CERT-In, directions of April 2022).
const RETAIN_MIN: Duration = Duration::from_secs(180 * 86_400);

fn audit(table: &Reader, directory: &Path) -> Option<Audit> {
    let default = default_audit();
    let path = table.want("directory", |text| match text {
        "" => Err("it is a directory such as \"/var/lib/dwarpal-audit\"".to_owned()),
        _ => Ok(directory.join(text)),
    });
    let origin = table.want("origin", |text| {
        let fits = (1..=200).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'+' && byte != b'"');
        let hint = "it is a name without spaces and '+', such as \"gateway.example/dwarpal\"";
        if fits { Ok(text.to_owned()) } else { Err(hint.to_owned()) }
    });
    let durability = table.want("durability", Durability::parse);
    let interval = table.duration("interval", Duration::from_millis(1)..=60 * SECOND, default.interval);
    let every = table.duration("checkpoint_interval", Duration::from_millis(100)..=DAY, default.checkpoint_interval);
    let queue_bytes_max = table.bytes("queue_bytes_max", 1 << 20..=1 << 30, default.queue_bytes_max as u64);
    let reserve_bytes = table.bytes("reserve_bytes", 0..=1 << 50, default.reserve_bytes);
    let retain = table.duration("retain", DAY..=36_500 * DAY, default.retain);
    let short = table.boolean("retain_less_than_180d", false);
    if retain.is_some_and(|retain| retain < RETAIN_MIN) && short == Some(false) {
        let hint = "keep it for 180d at the least, or add retain_less_than_180d = true if your law allows less";
        table.problem("retain", "shorter than incident law asks for", hint);
    }
    let copies = copies(table, directory);
    Some(Audit {
        directory: path?,
        origin: origin?.unwrap_or_default(),
        durability: durability?.unwrap_or(default.durability),
        interval: interval?,
        checkpoint_interval: every?,
        queue_bytes_max: queue_bytes_max? as usize,
        reserve_bytes: reserve_bytes?,
        retain: retain?,
        copies: copies?,
    })
}

fn default_clock() -> ClockSources {
    let here = |port| Some(SocketAddr::from(([127, 0, 0, 1], port)));
    ClockSources { chrony: here(323), ntp: here(123) }
}

fn clock(table: &Reader) -> Option<ClockSources> {
    let source = |text: &str| match text {
        "off" => Ok(None),
        _ => address(text).map(Some).map_err(|what| format!("{what}, or \"off\"")),
    };
    let (chrony, ntp) = (table.want("chrony", source), table.want("ntp", source));
    let default = default_clock();
    Some(ClockSources { chrony: chrony?.unwrap_or(default.chrony), ntp: ntp?.unwrap_or(default.ntp) })
}

fn default_epochs() -> Epochs {
    Epochs { rotate: None, overlap: 31 * DAY, credentials: None }
}

fn epochs(table: &Reader) -> Option<Epochs> {
    let default = default_epochs();
    let rotate = table.duration("rotate", Duration::ZERO..=EPOCH_MAX, Duration::ZERO);
    let overlap = table.duration("overlap", Duration::ZERO..=EPOCH_MAX, default.overlap);
    let credentials = table.boolean("credentials", false);
    let (rotate, overlap) = (rotate?, overlap?);
    if !rotate.is_zero() && rotate < overlap {
        let hint = format!("people are counted under two epochs at the most; it is at least {}", shown(overlap));
        table.problem("rotate", "the next epoch would begin before the overlap with the last is over", hint);
        return None;
    }
    let credentials = credentials?;
    if credentials && !rotate.is_zero() {
        let hint = "no key is made where keys are credentials: remove one of the two";
        table.problem("rotate", "epochs.credentials is set", hint);
        return None;
    }
    // Who only checks the configuration has none; a gateway then finds no key there, and says so.
    let given = || std::env::var_os(CREDENTIALS).unwrap_or_else(|| format!("${CREDENTIALS}").into());
    let credentials = credentials.then(given).map(PathBuf::from);
    Some(Epochs { rotate: Some(rotate).filter(|rotate| !rotate.is_zero()), overlap, credentials })
}

fn lists(table: &Reader, directory: &Path) -> Option<Files> {
    let file = |key| if table.has(key) { path(table, key, directory).map(Some) } else { Some(None) };
    let (watched, canaries) = (file("watched"), file("canaries"));
    Some(Files { watched: watched?, canaries: canaries? })
}

/// Set by systemd.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Longer than any rate takes to be full again.
const EPOCH_MAX: Duration = DAY.saturating_mul(101 * 366);

/// A duration as it is written down: in days where it is some.
pub fn shown(duration: Duration) -> String {
    let (days, seconds) = (duration.as_secs() / DAY.as_secs(), duration.as_secs());
    match duration.is_zero() || duration > days as u32 * DAY {
        true => format!("{}s", seconds + u64::from(duration.subsec_nanos() > 0)),
        false => format!("{days}d"),
    }
}

const ENTRIES_MAX: i64 = 1_000_000;

/// Registries let so many people share a mobile number.
const PEOPLE_OF_ONE_ANSWER: u16 = 6;

pub fn version(root: &Reader) {
    root.integer("version", 1..=1, None);
}

fn listen(table: &Reader) -> Option<(Listen, Vec<String>)> {
    let hosts = table.texts("hosts", host);
    if hosts.as_ref().is_some_and(Vec::is_empty) {
        table.problem("hosts", "nobody could reach the gateway", "name the hosts that partners use, without port");
    }
    let address = table.need("address", address);
    let workers = table.integer("workers", 0..=1024, Some(0));
    let connections_max = table.integer("connections_max", 1..=10_000_000, Some(10_000));
    let per_source = table.integer("connections_per_source_max", 1..=10_000_000, Some(500));
    let proxy_protocol = table.want_table("proxy_protocol", proxy_protocol);
    let workers = match workers? {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers as usize,
    };
    let listen = Listen {
        address: address?,
        workers,
        connections_max: connections_max? as usize,
        connections_per_source_max: per_source? as usize,
        proxy_protocol: proxy_protocol?.unwrap_or_else(default_proxy_protocol),
    };
    Some((listen, hosts?))
}

fn default_proxy_protocol() -> ProxyProtocol {
    ProxyProtocol { from: Vec::new(), header_timeout: 2 * SECOND, header_bytes_max: 1 << 10, waiting_max: 512 }
}

fn proxy_protocol(table: &Reader) -> Option<ProxyProtocol> {
    let default = default_proxy_protocol();
    let from = table.texts("from", |text| {
        let network = parse_cidr(text, "", "").map_err(|problem| told(&problem))?;
        // Whoever is in it can claim any address, and so be in any partner's network.
        if is_wide(&network) { Err("it is at most a /24 or /56: name the balancers".to_owned()) } else { Ok(network) }
    });
    let timeout = table.duration("header_timeout", Duration::from_millis(1)..=60 * SECOND, default.header_timeout);
    let bytes_max = table.bytes("header_bytes_max", 52..=16 << 10, default.header_bytes_max as u64);
    let waiting_max = table.integer("waiting_max", 1..=1_000_000, Some(default.waiting_max as i64));
    Some(ProxyProtocol {
        from: from?,
        header_timeout: timeout?,
        header_bytes_max: bytes_max? as usize,
        waiting_max: waiting_max? as usize,
    })
}

fn tls(table: &Reader, directory: &Path) -> Option<Tls> {
    let certificate = path(table, "certificate", directory);
    let key = path(table, "key", directory);
    let version = table.want("min_version", |text| match text {
        "1.3" => Ok(false),
        "1.2" => Ok(true),
        _ => Err("it is \"1.3\" or \"1.2\"".to_owned()),
    });
    let timeout = table.duration("handshake_timeout", SECOND..=60 * SECOND, 5 * SECOND);
    let handshakes_max = table.integer("handshakes_max", 1..=1_000_000, Some(512));
    let handshakes_per_source_max = table.integer("handshakes_per_source_max", 1..=1_000_000, Some(64));
    Some(Tls {
        certificate: certificate?,
        key: key?,
        tls12: version?.unwrap_or(false),
        handshake_timeout: timeout?,
        handshakes_max: handshakes_max? as usize,
        handshakes_per_source_max: handshakes_per_source_max? as usize,
        issuers: Vec::new(),
        place: table.place(),
    })
}

fn issuer(table: &Reader, directory: &Path) -> Option<Issuer> {
    let name = table.need("name", name);
    let certificates = path(table, "certificates", directory);
    let crls = table.texts("crls", |text| Ok(directory.join(text)));
    let crl_grace = table.duration("crl_grace", Duration::ZERO..=366 * DAY, DAY);
    let revocation = table.want("revocation", |text| match text {
        "chain" => Ok(Revocation::Chain),
        "leaf" => Ok(Revocation::Leaf),
        "off" => Ok(Revocation::Off),
        _ => Err("it is \"chain\", \"leaf\" or \"off\"".to_owned()),
    });
    let revocation = revocation?.unwrap_or(Revocation::Chain);
    if revocation != Revocation::Off && crls.as_ref().is_some_and(Vec::is_empty) {
        let hint = "list the issuer's CRL files, or say revocation = \"off\" if certificates live for days only";
        table.problem("crls", "no revocation list, so no certificate of this issuer could be accepted", hint);
    }
    if revocation == Revocation::Off && crls.as_ref().is_some_and(|crls| !crls.is_empty()) {
        table.problem("revocation", "off, yet crls are listed", "remove one of the two");
    }
    Some(Issuer {
        name: name?.into(),
        certificates: certificates?,
        crls: crls?,
        crl_grace: crl_grace?,
        revocation,
        place: table.place(),
    })
}

fn default_http() -> Http {
    Http {
        head_timeout: 10 * SECOND,
        idle_timeout: 60 * SECOND,
        head_bytes_max: 16 << 10,
        fields_max: 64,
        target_bytes_max: 4 << 10,
        rate_min: 256,
        rate_grace: 10 * SECOND,
        streams_max: 128,
        resets_max: 64,
        request_timeout: 60 * SECOND,
        drain_timeout: 20 * SECOND,
    }
}

fn http(table: &Reader) -> Option<Http> {
    let default = default_http();
    let long = SECOND..=3600 * SECOND;
    let head_timeout = table.duration("head_timeout", long.clone(), default.head_timeout);
    let idle_timeout = table.duration("idle_timeout", long.clone(), default.idle_timeout);
    let request_timeout = table.duration("request_timeout", long.clone(), default.request_timeout);
    let drain_timeout = table.duration("drain_timeout", Duration::ZERO..=3600 * SECOND, default.drain_timeout);
    let head_bytes_max = table.bytes("head_bytes_max", 1 << 10..=256 << 10, default.head_bytes_max as u64);
    let target_bytes_max = table.bytes("target_bytes_max", 64..=64 << 10, default.target_bytes_max as u64);
    let fields_max = table.integer("fields_max", 8..=1_000, Some(default.fields_max as i64));
    let rate_min = table.bytes("rate_min", 1..=1 << 30, u64::from(default.rate_min));
    let rate_grace = table.duration("rate_grace", long, default.rate_grace);
    let streams_max = table.integer("streams_max", 1..=10_000, Some(i64::from(default.streams_max)));
    let resets_max = table.integer("resets_max", 1..=10_000, Some(default.resets_max as i64));
    Some(Http {
        head_timeout: head_timeout?,
        idle_timeout: idle_timeout?,
        head_bytes_max: head_bytes_max? as usize,
        fields_max: fields_max? as usize,
        target_bytes_max: target_bytes_max? as usize,
        rate_min: rate_min? as u32,
        rate_grace: rate_grace?,
        streams_max: streams_max? as u32,
        resets_max: resets_max? as usize,
        request_timeout: request_timeout?,
        drain_timeout: drain_timeout?,
    })
}

fn metrics(table: &Reader) -> Option<Metrics> {
    let address = table.need("address", address);
    let networks = table.texts("networks", |text| parse_cidr(text, "", "").map_err(|problem| told(&problem)));
    if networks.as_ref().is_some_and(Vec::is_empty) {
        table.problem(
            "networks",
            "nobody could scrape",
            "name the networks of your Prometheus, such as \"127.0.0.1/32\"",
        );
    }
    Some(Metrics { address: address?, networks: networks? })
}

fn log(table: &Reader) -> Option<Log> {
    let format = table.want("format", |text| match text {
        "json" => Ok(LogFormat::Json),
        "human" => Ok(LogFormat::Human),
        _ => Err("it is \"json\" or \"human\"".to_owned()),
    });
    let level = table.want("level", |text| match text {
        "error" => Ok(LogLevel::Error),
        "warn" => Ok(LogLevel::Warn),
        "info" => Ok(LogLevel::Info),
        "debug" => Ok(LogLevel::Debug),
        _ => Err("it is \"error\", \"warn\", \"info\" or \"debug\"".to_owned()),
    });
    Some(Log { format: format?.unwrap_or(LogFormat::Json), level: level?.unwrap_or(LogLevel::Info) })
}

/// Absent where only the control group's limit counts.
fn memory_max(table: &Reader) -> Option<Option<u64>> {
    let wanted = table.want("memory_max", |text| match text {
        "cgroup" => Ok(None),
        _ => match parse_bytes(text) {
            Some(bytes @ MEMORY_BYTES_MIN..) => Ok(Some(bytes)),
            _ => Err("it is \"cgroup\", or a size of at least 16MiB such as \"512MiB\"".to_owned()),
        },
    });
    wanted.map(Option::flatten)
}

/// Less than what an idle gateway needs.
const MEMORY_BYTES_MIN: u64 = 16 << 20;

fn default_sandbox() -> Sandbox {
    Sandbox { landlock: Confinement::On, seccomp: Confinement::On, read: Vec::new() }
}

fn sandbox(table: &Reader, directory: &Path) -> Option<Sandbox> {
    let confinement = |text: &str| match text {
        "required" => Ok(Confinement::Required),
        "on" => Ok(Confinement::On),
        "off" => Ok(Confinement::Off),
        _ => Err("it is \"required\", \"on\" (where the kernel has it) or \"off\"".to_owned()),
    };
    let (landlock, seccomp) = (table.want("landlock", confinement), table.want("seccomp", confinement));
    let read = table.texts("read", |text| Ok(directory.join(text)));
    let default = default_sandbox();
    Some(Sandbox {
        landlock: landlock?.unwrap_or(default.landlock),
        seccomp: seccomp?.unwrap_or(default.seccomp),
        read: read?,
    })
}

fn backend(table: &Reader, directory: &Path) -> Option<Backend> {
    let name = table.need("name", name);
    let servers = servers(table);
    let host = table.need("host", host);
    let protocol = table.want("protocol", |text| match text {
        "http/1.1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::Http2),
        _ => Err("it is \"http/1.1\" or \"h2\"".to_owned()),
    });
    let tls = table.want_table("tls", |table| backend_tls(table, directory));
    let connections_max = table.integer("connections_max", 1..=100_000, Some(256));
    let pending_max = table.integer("pending_max", 0..=1_000_000, Some(1_024));
    let connect_timeout = table.duration("connect_timeout", Duration::from_millis(1)..=60 * SECOND, SECOND);
    let answer_timeout = table.duration("answer_timeout", Duration::from_millis(1)..=3600 * SECOND, 10 * SECOND);
    let idle_timeout = table.duration("idle_timeout", Duration::from_millis(1)..=3600 * SECOND, 30 * SECOND);
    let health = table.want_table("health", health);
    let eject_after = table.integer("eject_after", 1..=1_000_000, Some(5));
    let eject_for = table.duration("eject_for", Duration::from_millis(1)..=DAY, 10 * SECOND);
    let eject_percent_max = table.integer("eject_percent_max", 0..=100, Some(50));
    let slow_start = table.duration("slow_start", Duration::ZERO..=DAY, Duration::ZERO);
    let circuit = table.want_table("circuit", circuit);
    let ejection = Ejection { after: eject_after? as u32, time: eject_for?, percent_max: eject_percent_max? as u32 };
    Some(Backend {
        name: name?.into(),
        servers: servers?,
        host: host?,
        protocol: protocol?.unwrap_or(Protocol::Http1),
        tls: tls?,
        connections_max: connections_max? as usize,
        pending_max: pending_max? as usize,
        connect_timeout: connect_timeout?,
        answer_timeout: answer_timeout?,
        idle_timeout: idle_timeout?,
        health: health?,
        ejection,
        slow_start: slow_start?,
        circuit: circuit?,
        place: table.place(),
    })
}

/// `servers`, or `address` where there is only one.
fn servers(table: &Reader) -> Option<Vec<SocketAddr>> {
    if !table.has("servers") {
        return table.need("address", address).map(|address| vec![address]);
    }
    if table.has("address") {
        table.problem("address", "servers are listed too", "remove one of the two");
        return None;
    }
    let servers = table.texts("servers", address)?;
    let twice = servers.iter().enumerate().any(|(at, server)| servers[..at].contains(server));
    if servers.is_empty() {
        table.problem("servers", "no server: nothing could be asked", "list each as \"10.0.0.1:9001\"");
    } else if twice {
        table.problem("servers", "the same server twice", "list each once");
    }
    (!servers.is_empty() && !twice).then_some(servers)
}

fn backend_tls(table: &Reader, directory: &Path) -> Option<BackendTls> {
    let ca = path(table, "ca", directory);
    let name = table.need("name", host);
    let client = if table.has("certificate") || table.has("key") {
        let (certificate, key) = (path(table, "certificate", directory), path(table, "key", directory));
        certificate.zip(key).map(|(certificate, key)| Some(ClientCertificate { certificate, key }))
    } else {
        Some(None)
    };
    Some(BackendTls { ca: ca?, name: name?, client: client? })
}

fn health(table: &Reader) -> Option<Health> {
    let path = table.need("path", |text| {
        let fits = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        if fits { Ok(text.to_owned()) } else { Err("it is a path such as \"/health\"".to_owned()) }
    });
    let interval = table.duration("interval", Duration::from_millis(50)..=3600 * SECOND, 5 * SECOND);
    let timeout = table.duration("timeout", Duration::from_millis(1)..=60 * SECOND, 2 * SECOND);
    let healthy_after = table.integer("healthy_after", 1..=1_000, Some(2));
    let unhealthy_after = table.integer("unhealthy_after", 1..=1_000, Some(3));
    let status = table.integer("status", 200..=599, Some(200));
    let (interval, timeout) = (interval?, timeout?);
    if timeout > interval {
        table.problem("timeout", "longer than interval", "a check has to be over before the next begins");
        return None;
    }
    Some(Health {
        path: path?,
        interval,
        timeout,
        healthy_after: healthy_after? as u32,
        unhealthy_after: unhealthy_after? as u32,
        status: status? as u16,
    })
}

fn circuit(table: &Reader) -> Option<Circuit> {
    let failure_percent = table.integer("failure_percent", 1..=100, Some(50));
    let requests_min = table.integer("requests_min", 1..=1_000_000, Some(20));
    let window = table.duration("window", Duration::from_millis(10)..=DAY, 10 * SECOND);
    let open_for = table.duration("open_for", Duration::from_millis(10)..=DAY, 5 * SECOND);
    Some(Circuit {
        failure_percent: failure_percent? as u32,
        requests_min: requests_min? as u32,
        window: window?,
        open_time: open_for?,
    })
}

fn route(table: &Reader, backends: &[Backend], backend_names: &[String]) -> Option<Route> {
    let name = table.need("name", name);
    let backend = table.reference("backend", "backend", Some(backend_names), |text| {
        backends.iter().position(|backend| *backend.name == *text)
    });
    let methods = table.texts("methods", |text| {
        let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
        match text {
            "CONNECT" | "TRACE" => Err("CONNECT and TRACE are never let through".to_owned()),
            _ if fits => Ok(text.to_owned()),
            _ => Err("a method is upper case, such as \"GET\"".to_owned()),
        }
    });
    if methods.as_ref().is_some_and(Vec::is_empty) {
        table.problem("methods", "no method: the route could never be used", "name its methods, such as [\"POST\"]");
    }
    let hosts = table.texts("hosts", host);
    if table.has("hosts") && hosts.as_ref().is_some_and(Vec::is_empty) {
        let hint = "name its hosts, or remove the key for all of the listener's";
        table.problem("hosts", "no host: the route could never be used", hint);
    }
    let pattern = table.need("path", |text| Pattern::parse(text).map_err(str::to_owned));
    if table.has("lookup") && table.has("pass") {
        table.problem("pass", "a route is either a lookup or passed through", "remove [route.pass]");
    }
    let kind = if table.has("lookup") {
        let pattern = pattern.as_ref();
        table.table("lookup", |table| lookup(table, pattern)).map(|lookup| RouteKind::Lookup(Box::new(lookup)))
    } else {
        table.want_table("pass", pass).map(|pass| RouteKind::Pass(pass.unwrap_or_else(default_pass)))
    };
    Some(Route {
        name: name?.into(),
        backend: backend?,
        methods: methods?,
        hosts: hosts?,
        pattern: pattern?,
        kind: kind?,
        place: table.place(),
    })
}

fn default_pass() -> PassRoute {
    PassRoute { body_bytes_max: 1 << 20, answer_bytes_max: 16 << 20, parameters: Vec::new(), headers: Vec::new() }
}

fn pass(table: &Reader) -> Option<PassRoute> {
    let default = default_pass();
    let body_bytes_max = table.bytes("body_bytes_max", 0..=1 << 40, default.body_bytes_max);
    let answer_bytes_max = table.bytes("answer_bytes_max", 0..=1 << 40, default.answer_bytes_max);
    let parameters = fields(table);
    let headers = table.texts("headers", |text| match field_name(text)? {
        name if is_reserved(&name) => Err(format!("{name} is the gateway's own, or for one hop only")),
        name => Ok(name),
    });
    let (body_bytes_max, answer_bytes_max) = (body_bytes_max?, answer_bytes_max?);
    Some(PassRoute { body_bytes_max, answer_bytes_max, parameters, headers: headers? })
}

fn lookup(table: &Reader, pattern: Option<&Pattern>) -> Option<LookupRoute> {
    let kind = table.need("kind", |text| {
        let known = || Kind::ALL.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(", ");
        Kind::parse(text).ok_or_else(|| format!("the kinds are: {}", known()))
    });
    let subject = table.need("subject", location);
    let purpose = table.want("purpose", location);
    let actor = table.want("actor", location);
    let query_ok = table.boolean("query_ok", false);
    let body_bytes_max = table.bytes("body_bytes_max", 2..=1 << 20, 4 << 10);
    let answer_bytes_max = table.bytes("answer_bytes_max", 1..=1 << 30, 1 << 20);
    let records = table.want("records", |text| {
        parse_pointer(text).ok_or("it is a JSON pointer such as \"/beneficiaries\"".to_owned())
    });
    // An answer that is one person is one; of one that has a list, nobody knows before it is there.
    let usual = if table.has("records") { PEOPLE_OF_ONE_ANSWER } else { 1 };
    let max_people = super::partner::people_of_one_answer(table, Some(usual));
    let miss = table.integers("miss", 400..=499);
    let durability = table.want("durability", Durability::parse);
    let parameters = fields(table);
    let mut shape = Shape::default();
    let members = table.tables("members", |table| {
        let pointer = table
            .need("pointer", |text| parse_pointer(text).ok_or("it is a JSON pointer such as \"/mobile\"".to_owned()));
        let accepted = accepts(table);
        let pointer = pointer?;
        let (accepts, required) = accepted?;
        if let Err(why) = shape.declare(&pointer, accepts, required) {
            table.problem("pointer", why, "declare each value once");
        }
        Some((pointer, accepts))
    });
    let (subject, purpose, actor) = (subject?, purpose?, actor?);
    let places = [("subject", Some(&subject)), ("purpose", purpose.as_ref()), ("actor", actor.as_ref())];
    let placed: Vec<_> = places.into_iter().filter_map(|(key, location)| Some((key, location?))).collect();
    let mut fine = true;
    for &(key, location) in &placed {
        let problem = match location {
            Location::Body(pointer) => match members.iter().find(|(member, _)| member == pointer) {
                None => Some("the member is not declared in members"),
                Some((_, Accepts::Text { .. })) => None,
                Some(_) => Some("the member's type has to be \"string\""),
            },
            Location::Query(name) => match parameters.iter().find(|field| field.name == *name) {
                None => Some("the parameter is not declared in parameters"),
                Some(Field { accepts: Accepts::Text { .. }, .. }) => None,
                Some(_) => Some("the parameter's type has to be \"string\""),
            },
            Location::Path(name) => {
                let absent = pattern.is_some_and(|pattern| pattern.capture(name).is_none());
                absent.then_some("the path pattern has no such {name}")
            }
            Location::Header(_) => None,
        };
        if let Some(problem) = problem {
            fine = false;
            table.problem(key, problem, "a lookup declares everything that it accepts");
        }
    }
    for (at, (key, location)) in placed.iter().enumerate() {
        if placed[..at].iter().any(|(_, other)| other == location) {
            table.problem(
                key,
                "the same place as another of subject, purpose and actor",
                "give each a place of its own",
            );
        }
    }
    if matches!(&subject, Location::Header(name) if is_reserved(name)) {
        table.problem(
            "subject",
            "this header is the gateway's own, or for one hop only",
            "use a name such as header:x-subject",
        );
    }
    let open = pattern.filter(|_| fine).is_some_and(|pattern| {
        let read = |name: &str| placed.iter().any(|(_, location)| **location == Location::Path(name.to_owned()));
        pattern.is_open() || !pattern.captures().all(read)
    });
    if matches!(subject, Location::Query(_)) && query_ok == Some(false) {
        let hint = "move it to the body, or set query_ok = true if the backend's logs may hold it";
        table.problem("subject", "an identifier in a query lands in every log along the way", hint);
    } else if open {
        let hint = "a lookup's path holds the subject, purpose or actor, and nothing that is not declared";
        table.problem("subject", "the path pattern lets more through than the identifier", hint);
    }
    Some(LookupRoute {
        kind: kind?,
        subject,
        purpose,
        actor,
        body: (!members.is_empty()).then_some(shape),
        parameters,
        body_bytes_max: body_bytes_max?,
        answer_bytes_max: answer_bytes_max?,
        records: records?,
        max_people: max_people?.unwrap_or(usual),
        miss: miss?.into_iter().map(|status| status as u16).collect(),
        durability: durability?,
    })
}

fn fields(table: &Reader) -> Vec<Field> {
    let mut names: Vec<String> = Vec::new();
    table.tables("parameters", |table| {
        let name = table.need_text("name");
        let accepts = accepts(table);
        let name = name?;
        if names.contains(&name) {
            table.problem("name", "declared twice", "declare each parameter once");
        }
        names.push(name.clone());
        let (accepts, required) = accepts?;
        Some(Field { name, accepts, required })
    })
}

/// The type keys of a member or parameter.
fn accepts(table: &Reader) -> Option<(Accepts, bool)> {
    let optional = table.boolean("optional", false);
    let kind = table.need("type", |text| match text {
        "string" | "integer" | "boolean" => Ok(text.to_owned()),
        _ => Err("it is \"string\", \"integer\" or \"boolean\"".to_owned()),
    });
    let Some(kind) = kind else {
        // Which of these belong here is not known now: one mistake, one problem.
        for key in ["length_max", "min", "max"] {
            table.has(key);
        }
        return None;
    };
    let accepts = match kind.as_str() {
        "string" => Accepts::Text { length_max: table.integer("length_max", 1..=65_536, None)? as u32 },
        "integer" => {
            let min = table.integer("min", i64::MIN..=i64::MAX, None);
            let max = table.integer("max", i64::MIN..=i64::MAX, None);
            Accepts::Integer { min: min?, max: max? }
        }
        _ => Accepts::Boolean,
    };
    Some((accepts, !optional?))
}

fn location(text: &str) -> Result<Location, String> {
    let wrong = || "it is body:POINTER, path:NAME, header:NAME or query:NAME".to_owned();
    let (place, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
    match place {
        "body" => parse_pointer(name).map(Location::Body).ok_or("body: is followed by a JSON pointer".to_owned()),
        "path" => Ok(Location::Path(name.to_owned())),
        "query" => Ok(Location::Query(name.to_owned())),
        "header" => field_name(name).map(Location::Header),
        _ => Err(wrong()),
    }
}

fn field_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits { Ok(text.to_ascii_lowercase()) } else { Err("a header name has letters, digits and '-' only".to_owned()) }
}

/// A name that may become a metric label and a part of a log line.
pub fn name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && text.starts_with(|first: char| first.is_ascii_lowercase());
    // `other` and `none` are what metrics say where no name applies.
    let reserved = matches!(text, "other" | "none" | "unknown");
    if !fits || reserved {
        return Err("a name is 1 to 64 lower-case letters, digits and '-', and not other, none or unknown".to_owned());
    }
    Ok(text.to_owned())
}

fn host(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'[' | b']' | b':'));
    let port = text.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
        && !text.ends_with(']');
    if !fits || port {
        return Err("a host is a name or address without port".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "it is an address and port such as \"127.0.0.1:8443\" or \"[::]:8443\"".to_owned())
}

fn path(table: &Reader, key: &'static str, directory: &Path) -> Option<PathBuf> {
    table.need_text(key).map(|text| directory.join(text))
}

/// What a CIDR should have been.
pub fn told(problem: &super::problem::Problem) -> String {
    match problem.hint.as_str() {
        "" => problem.message.clone(),
        hint => format!("{}; {hint}", problem.message),
    }
}

/// The name of a configured thing, for lists of names.
pub fn names<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> String {
    names.map(|name| &**name).collect::<Vec<_>>().join(", ")
}
