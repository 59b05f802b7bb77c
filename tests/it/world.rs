//! How does a test get a whole gateway? Configuration as text, a PKI by openssl, a recording backend, and a way to call.

pub mod backend;
pub mod evidence;
pub mod frames;
pub mod line;
pub mod mortal;
pub mod pki;
pub mod process;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use dwarpal::clock::Clock;
use dwarpal::config;
use dwarpal::config::settings::Overrides;
use dwarpal::gateway::{Gateway, Running};
use tempfile::TempDir;

use backend::{Backend, Exchange};
use line::{Answer, Line};
use pki::{Leaf, pki};

/// Longer than anything under test takes, shorter than anybody would wait.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Who calls from where, by default.
pub const ALPHA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
pub const ALPHA_TOO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub const BETA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
pub const GAMMA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);
/// An address in no partner's network.
pub const NOWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);

const GATEWAY: &str = r#"version = 1
[listen]
address = "127.0.0.1:0"
hosts = ["localhost", "127.0.0.1"]
workers = 1
connections_max = 1000
connections_per_source_max = 500
[tls]
certificate = "PKI/gateway.pem"
key = "PKI/gateway.key"
min_version = "1.3"
handshake_timeout = "10s"
[[issuer]]
name = "partners"
certificates = "PKI/partners/ca.pem"
crls = ["PKI/partners/current.crl"]
crl_grace = "24h"
revocation = "chain"
[metrics]
address = "127.0.0.1:0"
networks = ["127.0.0.1/32"]
[data]
directory = "data"
[http]
head_timeout = "10s"
idle_timeout = "30s"
request_timeout = "30s"
drain_timeout = "0s"
rate_min = "256B"
rate_grace = "10s"
resets_max = 64
[log]
level = "info"
[[backend]]
name = "registry"
address = "BACKEND"
host = "registry.internal"
connections_max = 64
answer_timeout = "10s"
idle_timeout = "30s"

[[route]]
name = "mobile"
backend = "registry"
methods = ["POST"]
path = "/v1/mobile"
[route.lookup]
kind = "mobile"
subject = "body:/mobile"
purpose = "body:/purpose"
actor = "header:x-actor"
records = "/people"
miss = [404]
answer_bytes_max = "64KiB"
members = [
  { pointer = "/mobile", type = "string", length_max = 24 },
  { pointer = "/purpose", type = "string", length_max = 16 },
  { pointer = "/case", type = "string", length_max = 64, optional = true },
]

[[route]]
name = "aadhaar"
backend = "registry"
methods = ["POST"]
path = "/v1/aadhaar"
[route.lookup]
kind = "aadhaar"
subject = "body:/aadhaar"
purpose = "body:/purpose"
records = "/people"
miss = [404]
members = [
  { pointer = "/aadhaar", type = "string", length_max = 24 },
  { pointer = "/purpose", type = "string", length_max = 16 },
]

[[route]]
name = "reference"
backend = "registry"
methods = ["GET", "HEAD"]
path = "/v1/people/{reference}"
[route.lookup]
kind = "beneficiary"
subject = "path:reference"
purpose = "header:x-purpose"
miss = [404]

[[route]]
name = "query"
backend = "registry"
methods = ["GET"]
path = "/v1/query"
[route.lookup]
kind = "mobile"
subject = "query:mobile"
query_ok = true
records = "/people"
parameters = [{ name = "mobile", type = "string", length_max = 24 }]

[[route]]
name = "files"
backend = "registry"
methods = ["GET", "HEAD", "POST", "PUT"]
path = "/files/{name}"
[route.pass]
body_bytes_max = "8MiB"
answer_bytes_max = "2MiB"
headers = ["x-kept", "x-case"]
parameters = [{ name = "since", type = "string", length_max = 10, optional = true }]

[[route]]
name = "rest"
backend = "registry"
methods = ["GET", "POST"]
path = "/rest/**"
[route.pass]
headers = ["x-kept", "x-case"]
"#;

const PARTNER: &str = r#"version = 1
name = "NAME"
actor = "optional"
[[identity]]
IDENTITY
NETWORKS
[contract]
class = "batch"
people_per_day = 300000
[limits]
requests = "100000/s"
source = "100000/s"
subject = "100000/s"
in_flight_max = 1000
connections_max = 1000
"#;

/// A configuration as text, before it is served.
#[derive(Clone)]
pub struct Setup {
    gateway: String,
    partners: BTreeMap<&'static str, String>,
}

impl Setup {
    /// Partners alpha (by URI, may do everything), beta (by DNS name, may read people and files) and gamma (by its public
    /// key, may use the rest).
    pub fn new() -> Setup {
        let pki = pki();
        let partner = |name: &str, identity: &str, sources: &[Ipv4Addr], grants: &str| {
            let network = |source| {
                format!("[[network]]\ncidr = \"{source}/32\"\nowner = \"o\"\nticket = \"T-1\"\nreason = \"a test\"\n")
            };
            let networks: String = sources.iter().map(network).collect();
            let text = PARTNER.replace("NAME", name).replace("IDENTITY", identity).replace("NETWORKS", &networks);
            text + grants
        };
        let care = |route| format!("[[grant]]\nroute = \"{route}\"\npurposes = [\"care\"]\n");
        let pass = |route| format!("[[grant]]\nroute = \"{route}\"\n");
        let all = [
            "[[grant]]\nroute = \"mobile\"\npurposes = [\"care\", \"public-health\"]\n".to_owned(),
            care("aadhaar"),
            care("reference"),
            care("query"),
            pass("files"),
            pass("rest"),
        ];
        let uri = "uri = \"spiffe://partners.test/alpha\"\nissuer = \"partners\"";
        let dns = "dns = \"beta.partners.test\"\nissuer = \"partners\"";
        let pin = format!("spki = \"sha256:{}\"", pki.gamma.pin());
        let partners = BTreeMap::from([
            ("alpha", partner("alpha", uri, &[ALPHA, ALPHA_TOO], &all.concat())),
            ("beta", partner("beta", dns, &[BETA], &(care("reference") + &pass("files")))),
            ("gamma", partner("gamma", &pin, &[GAMMA], &pass("rest"))),
        ]);
        Setup { gateway: GATEWAY.replace("PKI", &pki.directory.display().to_string()), partners }
    }

    /// Replaces what stands once in `gateway.toml`.
    pub fn gateway(mut self, from: &str, to: &str) -> Setup {
        self.gateway = replaced(&self.gateway, from, to);
        self
    }

    /// Replaces what stands once in a partner's file.
    pub fn partner(mut self, name: &'static str, from: &str, to: &str) -> Setup {
        self.partners.insert(name, replaced(&self.partners[name], from, to));
        self
    }

    /// Adds a `[[section]]` at the end of `gateway.toml`.
    pub fn section(mut self, text: &str) -> Setup {
        self.gateway.push_str(text);
        self
    }

    /// Writes the configuration, with a backend if there is one to name.
    pub fn write(&self, directory: &Path, backend: Option<SocketAddr>) {
        let backend = backend.map_or("127.0.0.1:1".to_owned(), |address| address.to_string());
        std::fs::create_dir_all(directory.join("partners")).expect("directory");
        std::fs::write(directory.join("gateway.toml"), self.gateway.replace("BACKEND", &backend)).expect("write");
        for (name, text) in &self.partners {
            std::fs::write(directory.join(format!("partners/{name}.toml")), text).expect("write");
        }
    }

    /// The gateway inside this process. `script` answers what reaches the backend.
    pub fn start(self, script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> World {
        self.start_by(Clock::system(), script)
    }

    /// The same, by another clock.
    pub fn start_by(self, clock: Clock, script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> World {
        let (directory, backend) = self.stage(script);
        let loaded = config::load(directory.path(), &Overrides::default());
        let config = loaded.unwrap_or_else(|problems| panic!("{problems:#?}"));
        let running = Gateway::start(config, clock).unwrap_or_else(|error| panic!("{error}"));
        let (address, metrics_address) = (running.address, running.metrics_address);
        World { address, metrics_address, backend, host: Host::Here(Some(running)), directory, spoiled: false }
    }

    /// The gateway as a process of its own: the real binary.
    pub fn spawn(self, script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> World {
        self.spawn_under(&[], &[], script)
    }

    /// The same, started by another program and with more in its environment.
    pub fn spawn_under(
        self,
        starter: &[&str],
        environment: &[(&str, &str)],
        script: impl Fn(&mut Exchange) + Send + Sync + 'static,
    ) -> World {
        let (directory, backend) = self.stage(script);
        let (process, serving) = Process::serve(directory.path(), starter, environment);
        let (address, metrics_address) = addresses(&serving);
        World { address, metrics_address, backend, host: Host::Process(process), directory, spoiled: false }
    }

    fn stage(self, script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> (TempDir, Backend) {
        let backend = Backend::start(script);
        let directory = TempDir::new().expect("directory");
        self.write(directory.path(), Some(backend.address));
        (directory, backend)
    }
}

/// Where a gateway said that it listens: for partners and for metrics.
fn addresses(serving: &serde_json::Value) -> (SocketAddr, SocketAddr) {
    let address = |name: &str| serving[name].as_str().and_then(|text| text.parse().ok()).expect("an address");
    (address("address"), address("metrics"))
}

fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from} stands once in:\n{text}");
    text.replace(from, to)
}

/// A gateway that serves, and its backend. Both end when it is dropped.
pub struct World {
    pub address: SocketAddr,
    pub metrics_address: SocketAddr,
    pub backend: Backend,
    host: Host,
    directory: TempDir,
    /// The test damages what the gateway leaves on the disk: nothing of that is looked at afterwards.
    pub spoiled: bool,
}

enum Host {
    Here(Option<Running>),
    Process(Process),
}

impl World {
    /// The gateway of [`Setup::new`] in this process, before a backend that finds one person.
    pub fn new() -> World {
        Setup::new().start(backend::one_person)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Puts another configuration where the gateway read its own. It has to be told, or to look.
    pub fn configure(&self, setup: &Setup) {
        setup.write(self.directory(), Some(self.backend.address));
    }

    /// The gateway in this process.
    pub fn gateway(&self) -> &Arc<Gateway> {
        match &self.host {
            Host::Here(Some(running)) => &running.gateway,
            _ => panic!("the gateway is a process of its own"),
        }
    }

    /// One command of the binary for this gateway: exit code, standard output and standard error.
    pub fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        dwarpal(&[arguments, &["--config", "."]].concat(), self.directory())
    }

    /// Kills the gateway's process without a word, and starts it again.
    pub fn kill_and_restart(&mut self) {
        let process = self.process();
        process.child.kill().expect("killed");
        process.child.wait().expect("ended");
        self.restart();
    }

    /// Starts the gateway's process again after it has ended.
    pub fn restart(&mut self) {
        let (process, serving) = Process::serve(self.directory.path(), &[], &[]);
        (self.address, self.metrics_address) = addresses(&serving);
        self.host = Host::Process(process);
    }

    /// The gateway's process, if it has one of its own.
    pub fn process(&mut self) -> &mut Process {
        match &mut self.host {
            Host::Process(process) => process,
            Host::Here(_) => panic!("the gateway is in this process"),
        }
    }

    /// The id of one of the threads of the gateway's process.
    pub fn thread(&mut self, name: &str) -> String {
        let tasks = format!("/proc/{}/task", self.process().child.id());
        let tasks = std::fs::read_dir(&tasks).expect("threads").map(|task| task.expect("a thread").path());
        let named = |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let found = tasks.into_iter().find(named).unwrap_or_else(|| panic!("no thread {name}"));
        found.file_name().expect("an id").to_string_lossy().into_owned()
    }

    /// A connection of alpha, HTTP/1.1.
    pub fn alpha(&self) -> Line {
        self.line(&pki().alpha, ALPHA)
    }

    /// A connection with any certificate, from any loopback address; HTTP/1.1.
    pub fn line(&self, leaf: &Leaf, source: Ipv4Addr) -> Line {
        line::connect(self.address, leaf, source, b"http/1.1")
    }

    /// One request of alpha on a connection of its own.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> Answer {
        self.alpha().ask(request)
    }

    /// curl as alpha, with the name `localhost`. `target` is path and query.
    pub fn curl(&self, target: &str, arguments: &[&str]) -> process::Fetched {
        self.curl_as(&pki().alpha, target, arguments)
    }

    pub fn curl_as(&self, leaf: &Leaf, target: &str, arguments: &[&str]) -> process::Fetched {
        process::curl(self.address, leaf, target, arguments, b"")
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        self.observe(ALPHA, "/metrics").expect("the metrics listener answers").1
    }

    /// Value of one series, such as `dwarpal_connections`; 0 if it is not there yet.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.metrics();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Asks the metrics listener: status and body. `None` where it closes the connection, or listens no more.
    pub fn observe(&self, source: Ipv4Addr, path: &str) -> Option<(u16, String)> {
        let mut stream = line::tcp(source, self.metrics_address).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: metrics\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

/// Whatever a test did: the evidence holds, and nothing that was written holds an identifier.
impl Drop for World {
    fn drop(&mut self) {
        self.backend.stop();
        let mut written = Vec::new();
        match &mut self.host {
            Host::Here(running) => {
                let Some(running) = running.take() else { return };
                let snapshot = running.gateway.snapshot();
                let (pressure, clock) = (&running.gateway.pressure, &running.gateway.clock);
                written = running.gateway.metrics.render(&snapshot, 0, pressure, clock.now());
                if let Err(error) = running.stop()
                    && !std::thread::panicking()
                {
                    panic!("the gateway did not stop in order: {error}");
                }
            }
            Host::Process(process) => {
                process.kill();
                written.extend_from_slice(process.log().as_bytes());
            }
        }
        if !std::thread::panicking() && !self.spoiled {
            assert_eq!(evidence::identifier_in(&written), None, "in metrics or log lines");
            evidence::inspect(self.directory.path());
        }
    }
}

/// The real binary under `dwarpal serve`, and what it writes to standard error.
pub struct Process {
    pub child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Process {
    /// Also returns the log line by which it said that it serves.
    fn serve(config: &Path, starter: &[&str], environment: &[(&str, &str)]) -> (Process, serde_json::Value) {
        let process = Process::begin(config, starter, environment);
        let serving = process.logged(|line| line["message"] == "serving");
        (process, serving)
    }

    /// It may not serve yet.
    pub fn begin(config: &Path, starter: &[&str], environment: &[(&str, &str)]) -> Process {
        let binary = binary();
        let words = [starter, &[&binary, "serve", "--config"]].concat();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(config).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let written = log.clone();
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                written.0.lock().expect("log").push(line);
                written.1.notify_all();
            }
        });
        Process { child, log }
    }

    /// Waits for a line of the log.
    pub fn logged(&self, wanted: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let found = |lines: &[String]| {
            let parsed = lines.iter().filter_map(|line| serde_json::from_str(line).ok());
            parsed.into_iter().find(|line| wanted(line))
        };
        let lines = self.log.0.lock().expect("log");
        let unfound = |lines: &mut Vec<String>| found(lines).is_none();
        let (lines, _) = self.log.1.wait_timeout_while(lines, PATIENCE, unfound).expect("log");
        found(&lines).unwrap_or_else(|| panic!("no such line in {lines:#?}"))
    }

    pub fn log(&self) -> String {
        self.log.0.lock().expect("log").join("\n")
    }

    /// Its lines so far. While the lock on them is held, nobody reads its standard error.
    pub fn lines(&self) -> Arc<(Mutex<Vec<String>>, Condvar)> {
        self.log.clone()
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(sent.expect("kill").success());
    }

    /// Its exit code, once it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        eventually("the process ends", || match self.child.try_wait().expect("wait") {
            Some(status) => {
                code = status.code();
                true
            }
            None => false,
        });
        code
    }
}

impl Process {
    /// Ends it without a word, if it has not ended.
    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// What one command of the binary did: exit code, standard output and standard error.
pub fn dwarpal(arguments: &[&str], directory: &Path) -> (i32, String, String) {
    let mut command = Command::new(binary());
    let ran = process::run(command.args(arguments).current_dir(directory), b"");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (ran.code.expect("an exit code"), text(&ran.stdout), text(&ran.stderr))
}

/// A load may be put on the release build, which cargo does not name to tests.
fn binary() -> String {
    std::env::var("DWARPAL_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_dwarpal").to_owned())
}

/// Where this package's files are.
pub fn package(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Reads until the peer closes; `Err` where it resets the connection.
pub fn read_to_close(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}
