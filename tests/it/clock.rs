//! Who vouches for the system's clock, and is that told? With a real chronyd that touches no clock.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::world::backend::one_person;
use super::world::{Setup, World, eventually};

/// chronyd on free ports of loopback, as a server that takes this machine's clock for right; ends when it is dropped.
struct Chronyd {
    child: Child,
    _directory: TempDir,
}

impl Chronyd {
    fn start(commands: SocketAddr, ntp: SocketAddr) -> Chronyd {
        let directory = TempDir::new().expect("directory");
        let home = directory.path().display();
        // Nothing is written where another chronyd might look; nobody else may ask.
        let lines = [
            "local stratum 5".to_owned(),
            "allow 127.0.0.1".to_owned(),
            format!("port {}", ntp.port()),
            "bindaddress 127.0.0.1".to_owned(),
            format!("cmdport {}", commands.port()),
            "bindcmdaddress 127.0.0.1".to_owned(),
            "bindcmdaddress /".to_owned(),
            format!("pidfile {home}/pid"),
            format!("user {}", user()),
        ];
        // -x leaves the clock alone, -d stays in the foreground.
        let mut command = Command::new("chronyd");
        command.args(["-x", "-d", "-F", "0"]).args(&lines);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Chronyd { child: child.expect("chronyd"), _directory: directory }
    }
}

impl Drop for Chronyd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn user() -> String {
    let named = Command::new("id").arg("-un").output().expect("id");
    String::from_utf8_lossy(&named.stdout).trim().to_owned()
}

/// An address that is free now.
fn free() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

fn answers(address: SocketAddr) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut chronyc = Command::new("chronyc");
    chronyc.env("PATH", format!("{path}:/usr/sbin:/usr/local/sbin"));
    let port = address.port().to_string();
    let asked = chronyc.args(["-n", "-h", "127.0.0.1", "-p", &port, "tracking"]).output().expect("chronyc");
    String::from_utf8_lossy(&asked.stdout).contains("Leap status     : Normal")
}

fn world(chrony: &str, ntp: &str) -> World {
    Setup::new().section(&format!("\n[clock]\nchrony = \"{chrony}\"\nntp = \"{ntp}\"\n")).spawn(one_person)
}

fn told(world: &mut World) -> serde_json::Value {
    world
        .process()
        .logged(|line| line["message"].as_str().is_some_and(|said| said.starts_with("the system's clock is")))
}

#[test]
fn chrony_vouches_for_the_clock_by_its_commands_or_as_a_server() {
    let (commands, ntp) = (free(), free());
    let _chronyd = Chronyd::start(commands, ntp);
    eventually("chronyd answers", || answers(commands));
    for (chrony, server, source) in [
        (commands.to_string(), "off".to_owned(), "chrony"),
        (commands.to_string(), ntp.to_string(), "chrony"),
        ("off".to_owned(), ntp.to_string(), "ntp"),
        (free().to_string(), ntp.to_string(), "ntp"),
    ] {
        let mut world = world(&chrony, &server);
        let line = told(&mut world);
        assert_eq!((&line["source"], &line["level"], &line["stratum"]), (&source.into(), &"INFO".into(), &5.into()));
        let metric = |name: &str| world.metric(&format!("dwarpal_clock_{name}"));
        assert_eq!((metric("synchronised"), metric("stratum")), (1.0, 5.0), "{source}");
        assert!(metric("offset_seconds").abs() < 1.0 && metric("max_error_seconds") < 1.0, "{source}");
    }
}

#[test]
fn without_a_server_the_kernel_is_asked_from_within_the_sandbox() {
    let mut world = world("off", &free().to_string());
    let serving = world.process().logged(|line| line["message"] == "serving");
    assert_eq!(serving["seccomp"], "enforced");
    let line = told(&mut world);
    assert_eq!(line["source"], "kernel");
    let synchronised = line["level"] == "INFO";
    assert_eq!(world.metric("dwarpal_clock_synchronised"), f64::from(u8::from(synchronised)));
    assert_eq!(world.metric("dwarpal_clock_stratum"), 0.0);
    assert_eq!(world.metric("dwarpal_clock_offset_seconds").is_nan(), !synchronised);
}
