//! How does the process live? What the service manager hears, what the sandbox forbids, pressure, clock steps, the end.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::world::backend::one_person;
use crate::world::{PATIENCE, Setup, World, dwarpal, package};

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

    // strace stops this one thread at its next system call, and nothing else of the process.
    let worker = thread(&mut world, "worker-1");
    let mut hold = Command::new("strace");
    hold.args(["-p", &worker, "-e", "trace=epoll_wait,epoll_pwait"]);
    hold.args(["-e", "inject=epoll_wait,epoll_pwait:delay_enter=60000000", "-o", "/dev/null"]);
    let mut hold = hold.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("strace");
    world.process().logged(|line| line["message"].as_str().is_some_and(|text| text.starts_with("a worker hangs")));
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).expect("timeout");
    let mut message = [0; 64];
    // What was said before the worker hung may still be read.
    let heard = (0..6).map(|_| manager.socket.recv(&mut message)).take_while(Result::is_ok).count();
    assert!(heard < 4, "{heard} messages, though a worker hangs");
    let _ = hold.kill();
    let _ = hold.wait();
    manager.socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    assert_eq!(manager.told(), "WATCHDOG=1\n", "it goes on when the worker does");
}

/// The id of one of the gateway's threads.
fn thread(world: &mut World, name: &str) -> String {
    let tasks = format!("/proc/{}/task", world.process().child.id());
    let tasks = std::fs::read_dir(&tasks).expect("threads").map(|task| task.expect("a thread").path());
    let named =
        |path: &std::path::PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let found = tasks.into_iter().find(named).unwrap_or_else(|| panic!("no thread {name}"));
    found.file_name().expect("an id").to_string_lossy().into_owned()
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
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
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
    // The command line is one that the binary takes: it complains of the configuration only.
    let start = unit("ExecStart").concat();
    let arguments: Vec<&str> = start.split(' ').skip(1).collect();
    let empty = TempDir::new().expect("directory");
    let nowhere = |argument: &&str| argument.replace("/etc/dwarpal", &empty.path().display().to_string());
    let arguments: Vec<String> = arguments.iter().map(nowhere).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    assert_eq!(dwarpal(&arguments, empty.path()).0, 3, "{arguments:?}");
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
