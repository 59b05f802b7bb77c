//! How does the process live? What the service manager hears, what the sandbox forbids, pressure, clock steps, the end.

use std::fs::File;
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use dwarpal::clock::Clock;
use dwarpal::config;
use dwarpal::config::problem::Problem;
use dwarpal::config::settings::Overrides;
use dwarpal::sandbox;
use rustls::crypto::aws_lc_rs::default_provider;
use tempfile::TempDir;

use crate::world::backend::one_person;
use crate::world::frames;
use crate::world::line;
use crate::world::pki::pki;
use crate::world::process::{run, tracing};
use crate::world::{ALPHA, ALPHA_TOO, PATIENCE, Process, Setup, World, dwarpal, eventually, package, read_to_close};

const WHOAMI: &str = "GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n";
const REST: &str = "GET /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Where a service manager would listen.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _directory: TempDir,
}

impl Manager {
    fn new() -> Manager {
        let directory = TempDir::new().expect("directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("bind");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        Manager { socket, path: path.display().to_string(), _directory: directory }
    }

    /// The next message.
    #[track_caller]
    fn told(&self) -> String {
        let mut message = [0; 4_096];
        let length = self.socket.recv(&mut message).expect("a message");
        String::from_utf8(message[..length].to_vec()).expect("text")
    }
}

#[test]
fn the_service_manager_hears_of_the_beginning_and_the_end() {
    let manager = Manager::new();
    let setup = Setup::new().gateway("drain_timeout = \"0s\"", "drain_timeout = \"3s\"");
    let mut world = setup.spawn_under(&[], &[("NOTIFY_SOCKET", &manager.path)], one_person);
    let ready = manager.told();
    assert!(ready.starts_with(&format!("READY=1\nSTATUS=serving {}", world.address)), "{ready}");
    world.process().terminate();
    assert_eq!(manager.told(), "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=13000000\n");
    assert_eq!(world.process().ended(), Some(0));
}

#[test]
fn the_watchdog_is_told_for_as_long_as_all_workers_live() {
    let manager = Manager::new();
    let setup = Setup::new().gateway("workers = 1", "workers = 2");
    let environment = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "1500000")];
    let mut world = setup.spawn_under(&[], &environment, one_person);
    assert!(manager.told().starts_with("READY=1\n"));
    let begun = Instant::now();
    for _ in 0..2 {
        assert_eq!(manager.told(), "WATCHDOG=1\n");
    }
    assert!(begun.elapsed() < Duration::from_millis(2_600), "at half of the time: {:?}", begun.elapsed());

    // For some seconds strace holds this one thread at its next system call, and nothing else of the process.
    let worker = world.thread("worker-1");
    let calls = "?epoll_wait,?epoll_pwait";
    let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:delay_enter=60000000"));
    let strace = ["timeout", "8", "strace", "-o", "/dev/null", "-p", &worker, "-e", &trace, "-e", &inject];
    let hold = [tracing(), &strace].concat();
    let mut hold =
        Command::new(hold[0]).args(&hold[1..]).stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
    world.process().logged(|line| line["message"].as_str().is_some_and(|text| text.starts_with("a worker hangs")));
    // What was said before the worker hung may still be there to be read.
    manager.socket.set_nonblocking(true).expect("nonblocking");
    let mut message = [0; 64];
    while manager.socket.recv(&mut message).is_ok() {}
    manager.socket.set_nonblocking(false).expect("blocking");
    manager.socket.set_read_timeout(Some(Duration::from_millis(1_600))).expect("timeout");
    assert!(manager.socket.recv(&mut message).is_err(), "all is well, though a worker hangs");
    let _ = hold.wait();
    manager.socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    assert_eq!(manager.told(), "WATCHDOG=1\n", "it goes on when the worker does");
}

/// Value of a key of the unit, or the values where it stands more than once.
fn unit(key: &str) -> Vec<String> {
    let unit = std::fs::read_to_string(package("config/systemd/dwarpal.service")).expect("the unit");
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

#[test]
fn the_unit_asks_for_what_the_gateway_does_and_takes_the_rest_away() {
    for (key, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "2 3"),
        ("DynamicUser", "yes"),
        ("StateDirectory", "dwarpal"),
        ("RuntimeDirectory", "dwarpal"),
        ("NoNewPrivileges", "yes"),
        ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
        ("ProtectSystem", "strict"),
        ("MemoryDenyWriteExecute", "yes"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
        ("SystemCallArchitectures", "native"),
        ("LimitCORE", "0"),
        ("UMask", "0077"),
    ] {
        assert_eq!(unit(key), [value], "{key}");
    }
    let credential = unit("LoadCredential").concat();
    assert!(credential.starts_with("gateway.key:/etc/dwarpal/"), "{credential}");
    let number = |key: &str| unit(key).concat().parse::<u64>().expect(key);
    assert!(number("WatchdogSec") >= 5, "a loaded machine is not a hung worker");
    assert!(number("LimitNOFILE") >= 2 * 10_000 + 64, "two for each of connections_max");
    assert!(number("TimeoutStopSec") > 20, "longer than drain_timeout");
    // Its command lines are those that the binary takes: one complains of the configuration, one that nobody listens.
    let empty = TempDir::new().expect("directory");
    for (key, code) in [("ExecStart", 3), ("ExecReload", 4)] {
        let line = unit(key).concat();
        let nowhere = |word: &str| {
            let places = ["/etc/dwarpal", "/var/lib/dwarpal"];
            places.iter().fold(word.to_owned(), |word, place| word.replace(place, &empty.path().display().to_string()))
        };
        let words: Vec<String> = line.split(' ').skip(1).map(nowhere).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let (exit, _, stderr) = dwarpal(&words, empty.path());
        assert_eq!(exit, code, "{line}: {stderr}");
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let analyze = |arguments: &[&str]| {
        let mut command = Command::new("systemd-analyze");
        command.args(arguments).stdin(Stdio::null()).output().ok()
    };
    if analyze(&["--version"]).is_none() {
        // The other test of the unit holds everywhere; this one where systemd is.
        return;
    }
    let directory = TempDir::new().expect("directory");
    let file = directory.path().join("dwarpal.service");
    let text = std::fs::read_to_string(package("config/systemd/dwarpal.service")).expect("the unit");
    std::fs::write(&file, text.replace("/usr/local/bin/dwarpal", env!("CARGO_BIN_EXE_dwarpal"))).expect("write");
    let file = file.display().to_string();
    let verified = analyze(&["verify", "--man=no", &file]).expect("it runs");
    let complaints = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !complaints.contains("dwarpal.service"), "{complaints}");
    // Exposure of at most 2 in 10.
    let judged = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager", &file]).expect("it runs");
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
}

#[test]
fn the_process_confines_itself_and_says_so() {
    let manager = Manager::new();
    let setup = Setup::new().gateway("workers = 1", "workers = 2");
    let mut world = setup.spawn_under(&[], &[("NOTIFY_SOCKET", &manager.path)], one_person);
    let serving = world.process().logged(|line| line["message"] == "serving");
    let landlock = landlock_here().to_string();
    assert_eq!((&serving["landlock"], &serving["seccomp"]), (&landlock.as_str().into(), &"enforced".into()));
    assert!(manager.told().contains(&format!("; landlock {landlock}, seccomp enforced\n")));
    for (feature, active) in [("landlock", landlock_here().is_active()), ("seccomp", true)] {
        assert_eq!(world.metric(&format!("dwarpal_sandbox{{feature=\"{feature}\"}}")), f64::from(active));
    }
    let tasks = format!("/proc/{}/task", world.process().child.id());
    let mut threads = 0;
    for task in std::fs::read_dir(tasks).expect("threads") {
        let status = std::fs::read_to_string(task.expect("a thread").path().join("status")).expect("status");
        let is = |wanted: &str| status.lines().any(|line| line == wanted);
        assert!(is("Seccomp:\t2") && is("Seccomp_filters:\t2") && is("NoNewPrivs:\t1"), "{status}");
        threads += 1;
    }
    assert!(threads >= 4, "the main thread, two workers and the observer, not {threads}");
    assert_eq!(world.ask(WHOAMI).status, 200);
}

#[test]
fn a_kernel_without_it_is_told_of_or_refused() {
    let starter = |call: &str| {
        let inject = format!("inject={call}:error=ENOSYS");
        ["strace", "-D", "-qq", "-o", "/dev/null", "-e"]
            .map(str::to_owned)
            .into_iter()
            .chain([inject])
            .collect::<Vec<_>>()
    };
    let landlock = landlock_here().to_string();
    for (feature, other, force, call) in [
        ("landlock", "seccomp", "enforced", "landlock_create_ruleset"),
        ("seccomp", "landlock", landlock.as_str(), "seccomp"),
    ] {
        let starter = starter(call);
        let starter: Vec<&str> = starter.iter().map(String::as_str).collect();
        let mut world = Setup::new().spawn_under(&starter, &[], one_person);
        let serving = world.process().logged(|line| line["message"] == "serving");
        assert_eq!((&serving[feature], &serving[other]), (&"unsupported".into(), &force.into()));
        assert_eq!(world.metric(&format!("dwarpal_sandbox{{feature=\"{feature}\"}}")), 0.0);
        assert_eq!(world.ask(WHOAMI).status, 200);

        let directory = TempDir::new().expect("directory");
        Setup::new().section(&format!("\n[sandbox]\n{feature} = \"required\"\n")).write(directory.path(), None);
        let mut command = Command::new(starter[0]);
        command.args(&starter[1..]).args([env!("CARGO_BIN_EXE_dwarpal"), "serve", "--config"]).arg(directory.path());
        let ran = run(&mut command, b"");
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.code, Some(4), "{stderr}");
        let complaint = format!("sandbox.{feature} is \"required\", but this kernel has no {feature}");
        assert!(stderr.contains(&complaint), "{stderr}");
    }
    let mut world = Setup::new().section("\n[sandbox]\nlandlock = \"off\"\nseccomp = \"off\"\n").spawn(one_person);
    let serving = world.process().logged(|line| line["message"] == "serving");
    assert_eq!((&serving["landlock"], &serving["seccomp"]), (&"off".into(), &"off".into()));
    let status = format!("/proc/{}/status", world.process().child.id());
    assert!(std::fs::read_to_string(status).expect("status").contains("\nSeccomp:\t0\n"));
}

/// What this machine's kernel makes of the rights that are asked for; those are of version 6.12.
fn landlock_here() -> sandbox::State {
    let modules = std::fs::read_to_string("/sys/kernel/security/lsm");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map(|number| number.trim().parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    match version {
        _ if modules.is_ok_and(|modules| !modules.contains("landlock")) => sandbox::State::Unsupported,
        (6, 12..) | (7.., _) => sandbox::State::Enforced,
        (5, 13..) | (6, _) => sandbox::State::Partly,
        _ => sandbox::State::Unsupported,
    }
}

/// A thread confines itself and no other, so that this can be tried here.
#[test]
fn the_sandbox_leaves_its_own_files_and_ports_and_nothing_else() {
    if landlock_here() != sandbox::State::Enforced {
        // An older kernel forbids less; the other tests say what it enforces.
        return;
    }
    let (directory, elsewhere) = (TempDir::new().expect("directory"), TempDir::new().expect("directory"));
    let other = elsewhere.path().join("other");
    std::fs::create_dir(&other).expect("directory");
    for name in ["extra", "epoch.key", "list"] {
        std::fs::write(other.join(name), "text").expect("write");
    }
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("address").port();
    let granted = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let setup = Setup::new()
        .gateway("address = \"127.0.0.1:0\"\nhosts", &format!("address = \"{granted}\"\nhosts"))
        .section(&format!("\n[sandbox]\nread = [\"{}\"]\n", elsewhere.path().join("later").display()));
    std::fs::create_dir(elsewhere.path().join("later")).expect("directory");
    std::fs::write(elsewhere.path().join("later/list"), "text").expect("write");
    setup.write(directory.path(), None);
    // The key is a link to a file in a directory that the configuration does not name.
    let keys = elsewhere.path().join("keys");
    std::fs::create_dir_all(directory.path().join("data")).expect("directory");
    std::fs::create_dir(&keys).expect("directory");
    std::fs::write(keys.join("real.key"), "text").expect("write");
    std::os::unix::fs::symlink(keys.join("real.key"), directory.path().join("data/epoch.key")).expect("link");
    let config = config::load(directory.path(), &Overrides::default()).unwrap_or_else(|wrong| panic!("{wrong:#?}"));
    let (root, outside) = (directory.path().to_owned(), elsewhere.path().to_owned());
    let confined = std::thread::spawn(move || {
        let entered = sandbox::enter(&config, &root).expect("no mistake");
        assert_eq!((entered.landlock, entered.seccomp), (sandbox::State::Enforced, sandbox::State::Enforced));
        let refused = |result: io::Result<()>| {
            assert_eq!(result.map_err(|error| error.kind()), Err(io::ErrorKind::PermissionDenied));
        };
        // Files.
        let data = root.join("data");
        let readable = [root.join("gateway.toml"), root.join("partners/alpha.toml"), data.join("epoch.key")];
        for file in readable.into_iter().chain([pki().directory.join("gateway.key"), outside.join("later/list")]) {
            std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        }
        std::fs::write(data.join("one"), "text").expect("data may be written");
        std::fs::hard_link(data.join("one"), data.join("two")).expect("and linked");
        std::fs::rename(data.join("two"), data.join("three")).expect("and renamed");
        std::fs::remove_file(data.join("one")).expect("and removed");
        UnixDatagram::bind(data.join("socket")).expect("and listened in");
        refused(std::fs::read(outside.join("other/extra")).map(drop));
        refused(std::fs::read("/etc/hostname").map(drop));
        refused(std::fs::read_dir("/").map(drop));
        refused(std::fs::write(root.join("gateway.toml"), "text"));
        refused(std::fs::write(root.join("partners/mallory.toml"), "text"));
        refused(std::fs::write(outside.join("other/new"), "text"));
        refused(std::fs::remove_file(outside.join("later/list")));
        refused(std::fs::write(outside.join("keys/real.key"), "text"));
        // Ports: its own, and whichever are free for the metrics; every backend.
        TcpListener::bind(granted).expect("its own");
        TcpListener::bind("127.0.0.1:0").expect("port 0 is configured for the metrics");
        refused(TcpListener::bind(("127.0.0.2", port)).map(drop));
        TcpStream::connect(("127.0.0.1", port)).expect("a backend of a later configuration");
        // Programs: the child is ended at its first word.
        let child = Command::new("/bin/true").status().expect("a child");
        assert_eq!(child.signal(), Some(SIGSYS));
        refused(std::os::unix::fs::chroot("/"));
        // What a later configuration names elsewhere is told with what to do.
        let named = format!("../{}/other/list", outside.file_name().expect("a name").to_string_lossy());
        let error = std::fs::read(root.join(named)).expect_err("outside");
        let mut problems = [Problem::error("gateway.toml", "issuer.crls", format!("cannot be read: {error}"))];
        sandbox::explain(&mut problems);
        assert!(problems[0].hint.contains("sandbox.read"), "{}", problems[0]);
    });
    confined.join().expect("every check held");
    let mut untouched = [Problem::error("gateway.toml", "", "Permission denied")];
    sandbox::explain(&mut untouched);
    assert_eq!(untouched[0].hint, "", "here nobody is confined");
}

/// The same on the real process: it cannot read what its operator can.
#[test]
fn a_reload_reads_only_where_the_sandbox_lets_it() {
    if !landlock_here().is_active() {
        return;
    }
    let manager = Manager::new();
    let (elsewhere, later) = (TempDir::new().expect("directory"), TempDir::new().expect("directory"));
    let current = pki().partners.directory.join("current.crl");
    let read = format!("\n[sandbox]\nread = [\"{}\"]\n", later.path().display());
    let mut world = Setup::new().section(&read).spawn_under(&[], &[("NOTIFY_SOCKET", &manager.path)], one_person);
    assert!(manager.told().starts_with("READY=1\n"));
    let mut change = |directory: &TempDir| {
        let list = directory.path().join("list.crl");
        std::fs::copy(&current, &list).expect("copy");
        let file = world.directory().join("gateway.toml");
        let text = std::fs::read_to_string(&file).expect("the configuration");
        let from = text.lines().find(|line| line.starts_with("crls = ")).expect("lists").to_owned();
        std::fs::write(file, text.replace(&from, &format!("crls = [\"{}\"]", list.display()))).expect("write");
        world.process().hang_up();
        let reloading = manager.told();
        let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(time.trim().parse::<u64>().is_ok_and(|time| time > 0), "{reloading}");
        manager.told()
    };
    let told = change(&elsewhere);
    assert!(told.starts_with("READY=1\nSTATUS=generation 1 is served; a reload was refused"), "{told}");
    let told = change(&later);
    assert!(told.starts_with("READY=1\nSTATUS=generation 2 is served"), "{told}");
    let why = world.process().logged(|line| line["message"] == "configuration");
    let why = why["problem"].as_str().expect("a problem");
    assert!(why.contains("list.crl") && why.contains("Permission denied") && why.contains("sandbox.read"), "{why}");
    assert_eq!(world.ask(WHOAMI).status, 200);
}

/// Landlock's rules hold for the directories themselves, not for their names.
#[test]
fn what_is_replaced_within_a_granted_directory_is_read_and_the_directory_itself_is_not() {
    if !landlock_here().is_active() {
        return;
    }
    let current = pki().partners.directory.join("current.crl");
    for parent_granted in [false, true] {
        let parent = TempDir::new().expect("directory");
        let lists = parent.path().join("lists");
        let make = |version: &str| {
            std::fs::create_dir_all(lists.join(version)).expect("directory");
            std::fs::copy(&current, lists.join(version).join("list.crl")).expect("copy");
            std::os::unix::fs::symlink(version, lists.join("..next")).expect("link");
            std::fs::rename(lists.join("..next"), lists.join("..data")).expect("rename");
        };
        // As in a volume of Kubernetes: names are links into what another link leads to.
        make("..first");
        let named = lists.join("list.crl");
        std::os::unix::fs::symlink("..data/list.crl", &named).expect("link");
        let mut setup = Setup::new().gateway(&current.display().to_string(), &named.display().to_string());
        if parent_granted {
            setup = setup.section(&format!("\n[sandbox]\nread = [\"{}\"]\n", parent.path().display()));
        }
        let world = setup.spawn(one_person);
        make("..second");
        let (code, _, stderr) = world.command(&["reload"]);
        assert_eq!(code, 0, "{stderr}");
        // Another directory of the same name.
        std::fs::rename(&lists, parent.path().join("before")).expect("rename");
        std::fs::create_dir(&lists).expect("directory");
        std::fs::copy(&current, &named).expect("copy");
        let (code, _, stderr) = world.command(&["reload"]);
        assert_eq!(code, if parent_granted { 0 } else { 3 }, "{stderr}");
        if !parent_granted {
            assert!(stderr.contains("Permission denied") && stderr.contains("its parent to sandbox.read"), "{stderr}");
        }
        assert_eq!(world.ask(WHOAMI).status, 200);
    }
}

/// Sent to whoever makes a system call that ends it; of this number on every architecture but MIPS.
const SIGSYS: i32 = 31;

// ---- pressure

/// A gateway that may have 128 files open, of which half are kept for backends; its requests to `/rest/held` wait for `gate`.
fn with_few_descriptors(gate: &Arc<RwLock<()>>, backend_connections_max: usize) -> World {
    let gate = gate.clone();
    let setup = Setup::new().gateway("handshake_timeout = \"10s\"", "handshake_timeout = \"60s\"");
    let setup = setup.gateway("connections_max = 64", &format!("connections_max = {backend_connections_max}"));
    setup.spawn_under(&["prlimit", "--nofile=128"], &[], move |exchange| {
        exchange.read_body();
        if exchange.request.target() == "/rest/held" {
            drop(gate.read());
        }
        exchange.answer("200 OK", "", b"x");
    })
}

fn refused(world: &World, reason: &str) -> f64 {
    world.metric(&format!("dwarpal_connections_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn short_of_descriptors_new_connections_go_first() {
    let world = with_few_descriptors(&Arc::default(), 64);
    let mut partner = world.alpha();
    assert_eq!(partner.ask(REST).status, 200);
    assert_eq!(world.observe(ALPHA, "/readyz").map(|(status, _)| status), Some(200));
    let crowd: Vec<TcpStream> = (0..300).map(|_| line::tcp(ALPHA_TOO, world.address).expect("accepted")).collect();
    eventually("most are turned away", || refused(&world, "fd-pressure") > 200.0);
    assert_eq!(world.metric("dwarpal_pressure{resource=\"descriptors\"}"), 1.0);
    let (status, why) = world.observe(ALPHA, "/readyz").expect("it answers");
    assert!(status == 503 && why.contains("file descriptors"), "{status} {why}");
    // Who is connected goes on, with as many backend connections as it takes.
    for _ in 0..20 {
        assert_eq!(partner.ask(REST).status, 200);
    }
    assert_eq!(refused(&world, "accept-failed"), 0.0, "there was always one left");
    drop(crowd);
    eventually("it recovers", || world.observe(ALPHA, "/readyz").is_some_and(|(status, _)| status == 200));
    assert_eq!(world.alpha().ask(REST).status, 200);
    assert_eq!(world.metric("dwarpal_pressure{resource=\"descriptors\"}"), 0.0);
}

#[test]
fn without_any_descriptor_nobody_is_left_waiting() {
    let gate = Arc::<RwLock<()>>::default();
    let world = with_few_descriptors(&gate, 128);
    let closed = gate.write().expect("gate");
    let mut partner = frames::connect(&world, &pki().alpha, ALPHA);
    let mut crowd: Vec<TcpStream> = (0..100).map(|_| line::tcp(ALPHA_TOO, world.address).expect("accepted")).collect();
    eventually("half is taken", || refused(&world, "fd-pressure") > 0.0);
    // A request each takes a descriptor of those that are kept, until there is none.
    partner.send((0..100).flat_map(|n| frames::request(1 + 2 * n, "GET", "/rest/held")).collect::<Vec<u8>>());
    let mut refused_streams = 0;
    while refused_streams == 0 {
        let (kind, ..) = frames::next(&mut partner).expect("an answer");
        refused_streams += usize::from(kind == frames::HEADERS);
    }
    // No descriptor is left. Whoever comes now is told so, by closing, and not kept in a queue.
    for _ in 0..20 {
        let mut late = line::tcp(ALPHA_TOO, world.address).expect("the kernel accepts");
        match read_to_close(&mut late) {
            Ok(bytes) => assert_eq!(bytes, b""),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }
    drop(closed);
    crowd.clear();
    eventually("it recovers", || world.observe(ALPHA, "/readyz").is_some_and(|(status, _)| status == 200));
    assert!(refused(&world, "accept-failed") >= 20.0);
    assert_eq!(world.ask(REST).status, 200);
}

#[test]
fn short_of_memory_new_connections_go_first() {
    let resident = |world: &mut World| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", world.process().child.id())).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("resident memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    let idle = resident(&mut Setup::new().spawn(one_person));
    let limit = format!("\n[pressure]\nmemory_max = \"{}B\"\n", idle + (8 << 20));
    let setup = Setup::new().section(&limit).gateway("connections_max = 1000", "connections_max = 5000");
    let setup = setup.gateway("connections_per_source_max = 500", "connections_per_source_max = 5000");
    let world = setup.partner("alpha", "connections_max = 1000", "connections_max = 5000").spawn(one_person);
    let mut partner = world.alpha();
    assert_eq!(partner.ask(REST).status, 200);
    assert!((0.1..0.9).contains(&world.metric("dwarpal_memory_used_ratio")), "{}", world.metrics());
    let mut crowd = Vec::new();
    let attempt = || line::attempt(world.address, Some(&pki().alpha), ALPHA_TOO, b"http/1.1", default_provider());
    while let Ok(line) = attempt() {
        crowd.push(line);
        assert!(crowd.len() < 4_000, "memory never runs short");
    }
    assert!(refused(&world, "memory-pressure") >= 1.0, "{}", world.metrics());
    assert_eq!(world.metric("dwarpal_pressure{resource=\"memory\"}"), 1.0);
    let (status, why) = world.observe(ALPHA, "/readyz").expect("it answers");
    assert!(status == 503 && why.contains("memory"), "{status} {why}");
    assert_eq!(partner.ask(REST).status, 200, "who is connected goes on");
    // The allocator may keep what the crowd leaves; there is room for others all the same.
    drop(crowd);
    eventually("it recovers", || world.observe(ALPHA, "/readyz").is_some_and(|(status, _)| status == 200));
    assert_eq!(world.ask(REST).status, 200);
    assert_eq!(partner.ask(REST).status, 200);
}

// ---- the end

/// A gateway whose backend does not answer while `gate` is held.
fn with_a_slow_backend(gate: &Arc<RwLock<()>>, drain_timeout: &str) -> World {
    let gate = gate.clone();
    let setup = Setup::new().gateway("drain_timeout = \"0s\"", &format!("drain_timeout = \"{drain_timeout}\""));
    setup.spawn(move |exchange| {
        exchange.read_body();
        drop(gate.read());
        exchange.answer("200 OK", "", b"late");
    })
}

fn with_a_request_under_way(world: &World) -> line::Line {
    let mut busy = world.alpha();
    busy.send(REST);
    world.backend.requests(1);
    busy
}

/// A process whose start waits in the middle of its configuration, for as long as it takes to send it a signal.
fn signalled_during_the_start(directory: &TempDir, send: impl Fn(&Process)) -> Process {
    Setup::new().write(directory.path(), None);
    let (file, whole) = (directory.path().join("gateway.toml"), directory.path().join("whole"));
    let text = std::fs::read(&file).expect("the configuration");
    std::fs::rename(&file, &whole).expect("rename");
    assert_eq!(run(Command::new("mkfifo").arg(&file), b"").code, Some(0));
    let process = Process::begin(directory.path(), &[], &[]);
    let mut pipe = None;
    eventually("it reads its configuration", || {
        // Without a reader, there is nothing to open.
        pipe = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&file).ok();
        pipe.is_some()
    });
    send(&process);
    std::fs::rename(&whole, &file).expect("rename");
    pipe.expect("open").write_all(&text).expect("written");
    process
}

#[test]
fn a_sighup_during_the_start_is_a_reload_after_it() {
    let directory = TempDir::new().expect("directory");
    let mut process = signalled_during_the_start(&directory, Process::hang_up);
    let reloaded = process.logged(|line| line["message"] == "reloaded");
    assert_eq!(reloaded["generation"], 2);
    process.terminate();
    assert_eq!(process.ended(), Some(0));
    assert_eq!(process.log().matches("\"reloaded\"").count(), 1, "{}", process.log());
}

#[test]
fn a_sigterm_during_the_start_ends_it_in_order() {
    let directory = TempDir::new().expect("directory");
    let mut process = signalled_during_the_start(&directory, Process::terminate);
    process.logged(|line| line["message"] == "draining");
    assert_eq!(process.ended(), Some(0));
}

#[test]
fn draining_has_an_end() {
    let gate = Arc::<RwLock<()>>::default();
    let mut world = with_a_slow_backend(&gate, "1s");
    let closed = gate.write().expect("gate");
    let mut busy = with_a_request_under_way(&world);
    let begun = Instant::now();
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    assert!((1_000..8_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    let warned = world.process().logged(|line| line["message"] == "drain timeout: connections are closed");
    assert_eq!((&warned["level"], &warned["connections"]), (&"WARN".into(), &1.into()));
    busy.assert_closed();
    drop(closed);
}

#[test]
fn a_stop_loses_no_request_of_a_client_that_connected_before_it() {
    let drain = |setup: Setup| setup.gateway("drain_timeout = \"0s\"", "drain_timeout = \"15s\"");
    for _ in 0..4 {
        let setup = drain(Setup::new()).gateway("workers = 1", "workers = 2");
        let mut world = setup.spawn(one_person);
        let address = world.address;
        let answered = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..6)
                .map(|pause_ms| {
                    scope.spawn(move || {
                        // Each request on a connection of its own, until there is nobody to connect to.
                        for count in 0.. {
                            let attempt =
                                line::attempt(address, Some(&pki().alpha), ALPHA, b"http/1.1", default_provider());
                            let Ok(mut line) = attempt else { return count };
                            // Some are farther away.
                            std::thread::park_timeout(Duration::from_millis(10 * pause_ms));
                            assert!(line.try_send(REST).is_ok() && line.arrives(), "a request is lost");
                            let answer = line.answer(false);
                            assert_eq!(answer.status, 200);
                        }
                        0
                    })
                })
                .collect();
            eventually("requests are answered", || world.backend.count() > 60);
            world.process().terminate();
            clients.into_iter().map(|client| client.join().expect("a client")).sum::<usize>()
        });
        assert_eq!(world.process().ended(), Some(0));
        assert!(answered > 60, "{answered}");
    }
}

#[test]
fn a_stop_serves_who_waits_to_be_accepted_or_has_yet_to_ask() {
    let setup = Setup::new().gateway("drain_timeout = \"0s\"", "drain_timeout = \"15s\"");
    let mut world = setup.spawn(one_person);
    let pid = world.process().child.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
    let mut idle = world.alpha();
    assert_eq!(idle.ask(REST).status, 200);
    let mut silent = world.alpha();
    signal("-STOP");
    let queue: Vec<_> = (0..64).map(|_| line::tcp(ALPHA, world.address).expect("the kernel connects")).collect();
    signal("-TERM");
    signal("-CONT");
    world.process().logged(|line| line["message"] == "draining");
    let begun = Instant::now();
    idle.assert_closed();
    assert!(begun.elapsed() < Duration::from_millis(700), "not at a tick, but at once: {:?}", begun.elapsed());
    for stream in queue {
        let mut line = line::over(stream, Some(&pki().alpha), b"http/1.1", default_provider()).expect("a handshake");
        let answer = line.ask(REST);
        assert_eq!((answer.status, answer.header("connection")), (200, "close"));
        line.assert_closed();
    }
    // Who never asks does not hold the end up.
    silent.assert_closed();
    assert_eq!(world.process().ended(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let gate = Arc::<RwLock<()>>::default();
    let mut world = with_a_slow_backend(&gate, "60s");
    let closed = gate.write().expect("gate");
    let mut busy = with_a_request_under_way(&world);
    world.process().terminate();
    world.process().logged(|line| line["message"] == "draining");
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(4));
    busy.assert_closed();
    drop(closed);
}

/// Standard error is a pipe, and who is at its other end may sleep.
#[test]
fn nobody_waits_for_who_reads_the_log() {
    let mut world = Setup::new().gateway("level = \"info\"", "level = \"debug\"").spawn(one_person);
    let lines = world.process().lines();
    let unread = lines.0.lock().expect("lines");
    let mut partner = world.alpha();
    let lost = |world: &World| world.metric("dwarpal_log_lines_lost_total");
    assert_eq!(lost(&world), 0.0);
    eventually("the pipe and the queue are full", || {
        for _ in 0..200 {
            assert_eq!(partner.ask("GET /nowhere HTTP/1.1\r\nhost: localhost\r\n\r\n").status, 403);
            assert_eq!(partner.ask(REST).status, 200);
        }
        lost(&world) > 0.0
    });
    assert_eq!(world.ask(WHOAMI).status, 200);
    let (code, _, stderr) = world.command(&["freeze", "beta", "--reason", "T-1"]);
    assert_eq!(code, 0, "{stderr}");
    let begun = Instant::now();
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(unread);
}

#[test]
fn who_reads_the_log_late_is_told_how_much_is_missing() {
    let mut world = Setup::new().gateway("level = \"info\"", "level = \"debug\"").spawn(one_person);
    let lines = world.process().lines();
    let unread = lines.0.lock().expect("lines");
    let mut partner = world.alpha();
    eventually("lines are lost", || {
        assert_eq!([0; 400].map(|_| partner.ask(REST).status), [200; 400]);
        world.metric("dwarpal_log_lines_lost_total") > 0.0
    });
    drop(unread);
    let told = world.process().logged(|line| line["message"].as_str().is_some_and(|text| text.contains("were lost")));
    assert!(told["lines"].as_u64().is_some_and(|lines| lines > 0), "{told}");
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    world.process().logged(|line| line["message"] == "draining");
}

// ---- the clock

/// The system's clock as one process sees it, by libfaketime.
struct Steps {
    directory: TempDir,
    library: String,
    file: String,
}

impl Steps {
    fn new() -> Steps {
        let places = std::fs::read_dir("/usr/lib").expect("libraries").map(|place| place.expect("a place").path());
        let candidates = places.map(|place| place.join("faketime/libfaketimeMT.so.1"));
        let library = candidates.into_iter().find(|library| library.exists()).expect("install the package faketime");
        let directory = TempDir::new().expect("directory");
        let file = directory.path().join("clock").display().to_string();
        let steps = Steps { directory, library: library.display().to_string(), file };
        steps.to("+0");
        steps
    }

    fn environment(&self) -> [(&str, &str); 4] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_NO_CACHE", "1"),
            // Steps of the date never are steps of this clock.
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]
    }

    /// Sets the clock this far from the real one.
    fn to(&self, offset: &str) {
        let next = self.directory.path().join("next");
        std::fs::write(&next, format!("{offset}\n")).expect("write");
        std::fs::rename(next, &self.file).expect("rename");
    }
}

#[test]
fn a_step_of_the_clock_hurts_nothing() {
    let steps = Steps::new();
    let gate = Arc::<RwLock<()>>::default();
    let held = gate.clone();
    // One network is valid for another hour, and one route may be asked for three times a day.
    let expires = Clock::system().now().plus(Duration::from_secs(3_600)).to_string();
    let setup = Setup::new()
        .section(&format!("\n[sandbox]\nread = [\"{}\"]\n", steps.directory.path().display()))
        .partner("alpha", &format!("{ALPHA_TOO}/32\""), &format!("{ALPHA_TOO}/32\"\nexpires = \"{expires}\""))
        .partner("alpha", "route = \"files\"", "route = \"files\"\nrequests = \"1/d burst 3\"");
    let mut world = setup.spawn_under(&[], &steps.environment(), move |exchange| {
        exchange.read_body();
        if exchange.request.target() == "/rest/held" {
            drop(held.read());
        }
        exchange.answer("200 OK", "", b"x");
    });
    let files = "GET /files/x HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let wait = |world: &World| {
        let refused = world.ask(files);
        assert_eq!((refused.status, refused.problem().as_str()), (429, "rate-limited"));
        refused.header("retry-after").parse::<u64>().expect("seconds")
    };
    let day = 86_400;
    let mut guest = world.line(&pki().alpha, ALPHA_TOO);
    assert_eq!(guest.ask(REST).status, 200);
    assert_eq!([0; 3].map(|_| world.ask(files).status), [200; 3]);
    assert!((day - 60..=day).contains(&wait(&world)));
    let closed = gate.write().expect("gate");
    let mut busy = world.alpha();
    busy.send(REST.replace("/rest/x", "/rest/held"));
    let mut idle = world.alpha();
    assert_eq!(idle.ask(REST).status, 200);

    // Forward, by two hours: what expires in the meantime has expired, and the rate has gained two hours.
    steps.to("+7200");
    let stepped = |line: &serde_json::Value, how: &str| line["message"].as_str().is_some_and(|text| text.contains(how));
    let line = world.process().logged(|line| stepped(line, "went forward"));
    assert!((7_190..=7_200).contains(&line["seconds"].as_u64().expect("seconds")), "{line}");
    // Refused, or cut already at the tick of a second at which its connection finds the same.
    let _ = guest.try_send(REST);
    if guest.arrives() {
        assert_eq!(guest.answer(false).problem(), "network-not-allowed");
    } else {
        assert_eq!(world.metric("dwarpal_connections_cut_total{reason=\"network-withdrawn\"}"), 1.0);
    }
    assert!((day - 7_260..=day - 7_200).contains(&wait(&world)));
    assert_eq!(idle.ask(REST).status, 200, "an idle connection is not old by a date");
    assert_eq!(world.metric("dwarpal_clock_ahead_seconds"), 0.0);

    // Back, by a day and more: nothing comes to life again, and nobody waits longer.
    steps.to("-90000");
    let line = world.process().logged(|line| stepped(line, "was set back"));
    assert!((97_190..=97_260).contains(&line["seconds"].as_u64().expect("seconds")), "{line}");
    let stranger = line::attempt(world.address, Some(&pki().alpha), ALPHA_TOO, b"http/1.1", default_provider());
    assert!(stranger.is_err() && refused(&world, "network-unknown") == 1.0, "its network stays expired");
    assert!((day - 7_320..=day - 7_200).contains(&wait(&world)));
    assert_eq!(idle.ask(REST).status, 200);
    assert_eq!(world.ask(REST).status, 200, "new connections as well");
    assert!(world.metric("dwarpal_clock_ahead_seconds") > 97_000.0);
    drop(closed);
    let answer = busy.answer(false);
    assert_eq!((answer.status, answer.text().as_str()), (200, "x"), "what was under way ends as it would have");

    // A restart goes by the real clock, which is behind the one before, and keeps the limit: for no longer than a refill.
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    world.restart();
    assert!((day - 7_320..=3 * day).contains(&wait(&world)));
    assert_eq!(world.line(&pki().alpha, ALPHA_TOO).ask(REST).status, 200, "by this clock it is still valid");
}
