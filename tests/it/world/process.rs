//! What did another program say? Runs commands under a time limit; curl in particular.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use super::PATIENCE;
use super::line::{Answer, parse_head};
use super::pki::{Leaf, pki};

/// What a command did. `code` is absent where it was killed: by a signal, or because its time was over.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

/// Runs a command to its end, or to the end of all patience.
pub fn run(command: &mut Command, input: &[u8]) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (mut stdin, input) = (child.stdin.take().expect("piped"), input.to_vec());
    // A child that does not read its input is no fault.
    thread::spawn(move || stdin.write_all(&input));
    let stdout = collected(child.stdout.take().expect("piped"));
    let stderr = collected(child.stderr.take().expect("piped"));
    let output = stdout.recv_timeout(PATIENCE);
    if output.is_err() {
        let _ = child.kill();
    }
    let stdout = output.or_else(|_| stdout.recv()).unwrap_or_default();
    let stderr = stderr.recv().unwrap_or_default();
    Ran { code: Child::wait(&mut child).ok().and_then(|status| status.code()), stdout, stderr }
}

/// What a tracer is started by: to trace a process that is not one's child may take more rights.
pub fn tracing() -> &'static [&'static str] {
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    if root || matches!(scope.trim(), "" | "0") { &[] } else { &["sudo", "-n"] }
}

fn collected(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// What curl got: an answer, or why not.
pub struct Fetched {
    pub answer: Option<Answer>,
    pub code: i32,
    pub stderr: String,
}

impl Fetched {
    #[track_caller]
    pub fn answer(self) -> Answer {
        let Fetched { answer, code, stderr } = self;
        answer.unwrap_or_else(|| panic!("curl ended with {code}: {stderr}"))
    }
}

/// curl with this on its standard input.
pub fn curl(gateway: SocketAddr, leaf: &Leaf, target: &str, arguments: &[&str], input: &[u8]) -> Fetched {
    let port = gateway.port();
    let mut command = Command::new("curl");
    command
        .args(["--silent", "--show-error", "--include", "--max-time", "15", "--path-as-is"])
        .args(["--resolve", &format!("localhost:{port}:127.0.0.1"), "--noproxy", "*"])
        .arg("--cacert")
        .arg(pki().partners.certificate())
        .arg("--cert")
        .arg(&leaf.certificate)
        .arg("--key")
        .arg(&leaf.key)
        .args(arguments)
        .arg(format!("https://localhost:{port}{target}"));
    let ran = run(&mut command, input);
    let stderr = String::from_utf8_lossy(&ran.stderr).into_owned();
    let code = ran.code.expect("curl ends by itself");
    let (mut rest, mut interim) = (ran.stdout.as_slice(), Vec::new());
    let answer = loop {
        let Some((mut answer, body)) = parse_head(rest) else { break None };
        if answer.status < 200 {
            interim.push(answer.status);
            rest = body;
            continue;
        }
        (answer.interim, answer.body, answer.whole) = (interim, body.to_vec(), code == 0);
        break Some(answer);
    };
    Fetched { answer, code, stderr }
}
