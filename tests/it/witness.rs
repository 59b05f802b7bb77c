//! Who else signs how large the log was? Witnesses good and bad, and receivers of copies, against the real sender.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dwarpal::audit::note::{Checkpoint, Note, Signature, Signer, Vkey};
use dwarpal::audit::tree::{self, Hash};
use dwarpal::audit::witness::Dispatcher;
use dwarpal::config::settings::{AuditCopies, Endpoint, Witness};
use dwarpal::metrics::Metrics;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tempfile::TempDir;

use super::world::backend::{Backend, Exchange, one_person};
use super::world::pki::{Authority, pki};
use super::world::{Setup, World, eventually};

const ORIGIN: &str = "gateway.test/dwarpal";

fn log_key() -> Signer {
    Signer::from_seed(ORIGIN, &[1; 32]).expect("a key")
}

fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(|at| tree::leaf_hash(&at.to_be_bytes())).collect()
}

fn checkpoint(size: u64) -> Note {
    let root = tree::root_of(&leaves(size));
    Checkpoint { origin: ORIGIN.to_owned(), size, root, extensions: Vec::new() }.sign(&log_key()).expect("a note")
}

/// From an earlier size of the log to this one.
fn proof(old: u64, size: u64) -> Result<Vec<Hash>, tree::ProofError<Infallible>> {
    let leaves = leaves(size);
    tree::consistency_proof(old, size, |level, index| {
        let width = tree::TILE_WIDTH.pow(level.into());
        let from = index as usize * width;
        Ok(tree::root_of(&leaves[from..from + width]))
    })
}

/// A witness by the specification: it signs what is signed by the log and continues what it has signed.
struct FakeWitness {
    key: Signer,
    /// Whose log it signs for; `None`: anybody's.
    log: Option<Vkey>,
    size: u64,
    root: Hash,
    /// Sizes from which it was shown a proof.
    asked: Vec<u64>,
}

impl FakeWitness {
    fn new(seed: u8) -> FakeWitness {
        let key = Signer::from_seed(&format!("witness.test/{seed}"), &[seed; 32]).expect("a key");
        FakeWitness { key, log: Some(log_key().vkey()), size: 0, root: tree::empty_root(), asked: Vec::new() }
    }

    fn add_checkpoint(&mut self, body: &str) -> (u16, String) {
        let (head, note) = body.split_once("\n\n").expect("an empty line");
        let mut lines = head.lines();
        let old =
            lines.next().and_then(|line| line.strip_prefix("old ")).and_then(|old| old.parse().ok()).expect("old");
        let proof: Vec<_> = lines.map(|line| Hash::parse(line).expect("a hash")).collect();
        self.asked.push(old);
        let parsed = Note::parse(note.as_bytes()).expect("a note");
        let new = match &self.log {
            Some(log) => Checkpoint::verified(note.as_bytes(), log),
            None => Checkpoint::parse(parsed.text()),
        };
        let Ok(new) = new else { return (403, String::new()) };
        if old != self.size {
            return (409, format!("{}\n", self.size));
        }
        let continues = old == 0 && proof.is_empty()
            || tree::verify_consistency(old, &self.root, new.size, &new.root, &proof).is_ok();
        if !continues {
            return (422, String::new());
        }
        (self.size, self.root) = (new.size, new.root);
        // Others of its keys sign as well.
        let other = Signer::from_seed("witness.test/other", &[99; 32]).expect("a key");
        (
            200,
            format!(
                "{}\n{}\n",
                other.cosign(parsed.text(), 1_800_000_000),
                self.key.cosign(parsed.text(), 1_800_000_000)
            ),
        )
    }
}

/// A witness behind TLS.
fn serve_witness_by_tls(address: &str, witness: Arc<Mutex<FakeWitness>>) -> SocketAddr {
    serve_tls(address, move |body| witness.lock().expect("witness").add_checkpoint(body))
}

fn endpoint(address: SocketAddr, tls: bool, path: &str) -> Endpoint {
    let url = format!("{}://{address}{path}", if tls { "https" } else { "http" });
    Endpoint { url: url.into(), tls, host: address.ip().to_string(), port: address.port(), path: path.to_owned() }
}

fn witness(name: &str, key: &Signer, url: Endpoint) -> Witness {
    Witness { name: name.into(), vkey: key.cosigner_vkey(), url, ca: None }
}

/// A server on loopback whose answers a function of target and body gives.
fn serve(answer: impl Fn(&str, &str) -> (u16, String) + Send + Sync + 'static) -> Backend {
    Backend::start(move |exchange: &mut Exchange| {
        exchange.read_body();
        let body = String::from_utf8_lossy(&exchange.request.body).into_owned();
        let (status, text) = answer(exchange.request.target(), &body);
        exchange.answer(&format!("{status} Said"), "", text.as_bytes());
    })
}

fn serve_witness(witness: &Arc<Mutex<FakeWitness>>) -> Backend {
    let witness = witness.clone();
    serve(move |target, body| {
        assert_eq!(target, "/w/add-checkpoint");
        witness.lock().expect("witness").add_checkpoint(body)
    })
}

struct Sender {
    dispatcher: Dispatcher,
    metrics: Metrics,
    runtime: tokio::runtime::Runtime,
}

impl Sender {
    fn new(copies: &AuditCopies) -> Sender {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        Sender { dispatcher: Dispatcher::new(copies), metrics: Metrics::new().expect("metrics"), runtime }
    }

    fn publish(&mut self, size: u64) -> Vec<Signature> {
        let checkpoint = checkpoint(size);
        let published = self.dispatcher.publish(&checkpoint, &self.metrics, |old| proof(old, size));
        self.runtime.block_on(published)
    }

    /// Whether this many results of that kind were counted.
    fn counted(&self, labels: &str, metric: &str) -> f64 {
        let page = self.page();
        let line = page.lines().find_map(|line| line.strip_prefix(&format!("{metric}{{{labels}}} ")));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    fn page(&self) -> String {
        String::from_utf8(self.metrics.page()).expect("a text")
    }

    fn witness(&self, name: &str, result: &str) -> f64 {
        self.counted(&format!("result=\"{result}\",witness=\"{name}\""), "dwarpal_audit_witness_total")
    }

    fn copy(&self, target: &str, result: &str) -> f64 {
        self.counted(&format!("result=\"{result}\",target=\"{target}\""), "dwarpal_audit_copy_total")
    }
}

fn signed(size: u64, signatures: &[Signature], key: &Vkey) -> bool {
    let mut note = checkpoint(size);
    signatures.iter().for_each(|signature| note.add(signature.clone()).expect("room"));
    note.verified_by(key).is_ok_and(|verified| verified.time == Some(1_800_000_000))
}

#[test]
fn a_witness_signs_what_continues_what_it_signed_over_restarts_of_the_log() {
    let fake = Arc::new(Mutex::new(FakeWitness::new(7)));
    let server = serve_witness(&fake);
    let key = fake.lock().expect("witness").key.cosigner_vkey();
    let one = witness("one", &fake.lock().expect("witness").key, endpoint(server.address, false, "/w"));
    let copies = AuditCopies { witnesses: vec![one], ..AuditCopies::default() };
    let mut sender = Sender::new(&copies);
    for size in [1, 7, 8, 300] {
        assert!(signed(size, &sender.publish(size), &key), "{size}");
    }
    assert_eq!(sender.witness("one", "ok"), 4.0);
    // A reload forgets nothing; a restart does, and the witness says what it has signed.
    sender.dispatcher.configure(&copies);
    assert!(signed(301, &sender.publish(301), &key));
    let mut again = Sender::new(&copies);
    assert!(signed(512, &again.publish(512), &key));
    assert_eq!(fake.lock().expect("witness").asked, [0, 1, 7, 8, 300, 0, 301]);
    // The same once more is signed once more; a log that was set back is not.
    assert!(signed(512, &again.publish(512), &key));
    assert!(again.publish(100).is_empty());
    assert_eq!((again.witness("one", "ok"), again.witness("one", "conflict")), (2.0, 1.0));
    // A log that was written anew.
    let mut fake = fake.lock().expect("witness");
    fake.root = tree::leaf_hash(b"another");
    drop(fake);
    assert!(again.publish(600).is_empty());
    assert_eq!(again.witness("one", "rejected"), 1.0);
}

#[test]
fn a_witness_that_does_not_sign_this_is_told_apart_and_holds_up_no_other() {
    let good = Arc::new(Mutex::new(FakeWitness::new(7)));
    let good_server = serve_witness(&good);
    let key = || Signer::from_seed("witness.test/8", &[8; 32]).expect("a key");
    let other_key = Signer::from_seed("witness.test/8", &[9; 32]).expect("a key");
    let cosigned = |key: &Signer, size| format!("{}\n", key.cosign(checkpoint(size).text(), 1_800_000_000));
    let (another, wrong, log) = (cosigned(&key(), 6), cosigned(&other_key, 5), key().sign(checkpoint(5).text()));
    let endless = another.trim_end().to_owned();
    let answers: Vec<(&str, u16, String)> = vec![
        ("invalid", 200, another),
        ("invalid", 200, wrong),
        ("invalid", 200, endless),
        ("invalid", 200, format!("{log}\n")),
        ("invalid", 200, String::new()),
        ("invalid", 200, "\u{2014} garbage\n".to_owned()),
        ("failed", 200, "x".repeat(1 << 20)),
        ("failed", 409, "many\n".to_owned()),
        ("failed", 409, String::new()),
        ("conflict", 409, "6\n".to_owned()),
        ("conflict", 409, "3\n".to_owned()),
        ("refused", 403, String::new()),
        ("unknown", 404, String::new()),
        ("rejected", 422, String::new()),
        ("failed", 500, String::new()),
        ("failed", 302, cosigned(&key(), 5)),
    ];
    let mut servers = Vec::new();
    let mut witnesses =
        vec![witness("good", &good.lock().expect("witness").key, endpoint(good_server.address, false, "/w"))];
    let mut expected = Vec::new();
    for (at, (result, status, text)) in answers.into_iter().enumerate() {
        let name = format!("bad-{at}");
        let server = serve(move |_, _| (status, text.clone()));
        witnesses.push(witness(&name, &key(), endpoint(server.address, false, "")));
        expected.push((name, result));
        servers.push(server);
    }
    let silent = Backend::start(|exchange| exchange.hold());
    witnesses.push(witness("silent", &key(), endpoint(silent.address, false, "")));
    let garbage = Backend::start(|exchange| {
        exchange.read_body();
        exchange.write("not HTTP at all\r\n\r\n");
        exchange.close();
    });
    witnesses.push(witness("garbage", &key(), endpoint(garbage.address, false, "")));
    let nobody = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    witnesses.push(witness("nobody", &key(), endpoint(nobody, false, "")));
    expected.extend(["silent", "garbage", "nobody"].map(|name| (name.to_owned(), "failed")));

    let mut sender = Sender::new(&AuditCopies { witnesses, ..AuditCopies::default() });
    let signatures = sender.publish(5);
    assert_eq!(signatures.len(), 1);
    assert!(signed(5, &signatures, &good.lock().expect("witness").key.cosigner_vkey()));
    let untold: Vec<_> = expected.iter().filter(|(name, result)| sender.witness(name, result) != 1.0).collect();
    assert!(untold.is_empty(), "{untold:?}\n{}", sender.page());
    silent.stop();
}

/// A server behind TLS, with the certificate of the tests' gateway: for localhost and 127.0.0.1. `answer` gets each body.
pub fn serve_tls(address: &str, answer: impl Fn(&str) -> (u16, String) + Send + 'static) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let pem = |name: &str| pki().directory.join(name);
    let chain = CertificateDer::pem_file_iter(pem("gateway.pem")).expect("pem").map(|one| one.expect("pem")).collect();
    let key = PrivateKeyDer::from_pem_file(pem("gateway.key")).expect("key");
    let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain, key).expect("certificate"));
    let listener = TcpListener::bind((address, 0)).expect("bind");
    let bound = listener.local_addr().expect("address");
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let session = ServerConnection::new(config.clone()).expect("session");
            let mut reader = BufReader::new(StreamOwned::new(session, stream));
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                if let Some(text) = line.trim_end().strip_prefix("content-length: ") {
                    length = text.parse().expect("a length");
                }
                line.clear();
            }
            let mut body = vec![0; length];
            if length == 0 || reader.read_exact(&mut body).is_err() {
                continue;
            }
            let (status, text) = answer(&String::from_utf8(body).expect("a text"));
            let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            let _ = reader.get_mut().write_all(answer.as_bytes());
        }
    });
    bound
}

#[test]
fn a_witness_behind_tls_is_believed_only_with_a_certificate_of_its_ca_and_name() {
    let home = TempDir::new().expect("directory");
    let other = Authority::root(home.path(), "other").certificate();
    let (right, absent) = (pki().partners.certificate(), home.path().join("absent.pem"));
    for (address, ca, result) in [
        ("127.0.0.1", &right, "ok"),
        ("127.0.0.1", &other, "failed"),
        ("127.0.0.1", &absent, "failed"),
        // In no name of the certificate.
        ("127.0.0.5", &right, "failed"),
    ] {
        let fake = Arc::new(Mutex::new(FakeWitness::new(7)));
        let url = endpoint(serve_witness_by_tls(address, fake.clone()), true, "");
        let one = Witness { ca: Some(ca.clone()), ..witness("one", &fake.lock().expect("witness").key, url) };
        let mut sender = Sender::new(&AuditCopies { witnesses: vec![one], ..AuditCopies::default() });
        assert_eq!(sender.publish(3).len(), usize::from(result == "ok"), "{address} {}", ca.display());
        assert_eq!(sender.witness("one", result), 1.0, "{address} {}", ca.display());
        assert_eq!(fake.lock().expect("witness").asked.len(), usize::from(result == "ok"));
    }
}

/// The notes of a file of copies.
fn notes(path: &Path) -> Vec<Note> {
    let text = std::fs::read_to_string(path).expect("copies");
    let parts: Vec<&str> = text.split("\n\n").filter(|part| !part.trim().is_empty()).collect();
    parts
        .chunks(2)
        .map(|pair| Note::parse(format!("{}\n\n{}\n", pair[0], pair[1]).as_bytes()).expect("a note"))
        .collect()
}

#[test]
fn copies_leave_the_machine_and_one_that_cannot_holds_up_no_other() {
    let home = TempDir::new().expect("directory");
    let file = |name: &str| home.path().join(name);
    let (written, barred) = (file("checkpoints"), file("absent/checkpoints"));
    std::fs::write(&written, "").expect("write");
    let received = serve(|target, _| (if target == "/copies" { 200 } else { 503 }, String::new()));
    let urls = vec![endpoint(received.address, false, "/copies"), endpoint(received.address, false, "/other")];
    let names: Vec<_> = urls.iter().map(|url| url.url.to_string()).collect();
    let copies = AuditCopies { files: vec![barred.clone(), written.clone()], urls, ..AuditCopies::default() };
    let mut sender = Sender::new(&copies);
    for size in [1, 2, 3] {
        assert!(sender.publish(size).is_empty());
    }
    assert_eq!(notes(&written), [1, 2, 3].map(checkpoint));
    let posted = received.requests(6);
    for (size, pair) in posted.chunks(2).enumerate() {
        for request in pair {
            assert_eq!(String::from_utf8_lossy(&request.body), checkpoint(size as u64 + 1).to_string());
            assert_eq!(request.header("content-type"), "text/plain; charset=utf-8");
            assert_eq!(request.header("host"), received.address.to_string());
        }
    }
    let copied = |path: &PathBuf, result| sender.copy(&path.display().to_string(), result);
    assert_eq!((copied(&written, "ok"), copied(&written, "failed")), (3.0, 0.0));
    assert_eq!((copied(&barred, "ok"), copied(&barred, "failed")), (0.0, 3.0));
    assert_eq!((sender.copy(&names[0], "ok"), sender.copy(&names[1], "failed")), (3.0, 3.0));
    // Once it can be written it is, after an empty line: what stands before may be half a checkpoint.
    std::fs::create_dir(file("absent")).expect("directory");
    std::fs::write(&barred, "half a che").expect("write");
    sender.publish(4);
    let text = std::fs::read_to_string(&barred).expect("copies");
    assert_eq!(text, format!("half a che\n\n{}\n", checkpoint(4)));
}

#[test]
fn a_confined_gateways_checkpoints_arrive_and_come_back_signed() {
    let fake = Arc::new(Mutex::new(FakeWitness { log: None, ..FakeWitness::new(7) }));
    // By name: its address is found from within the sandbox.
    let server = serve_witness_by_tls("127.0.0.1", fake.clone());
    let (elsewhere, key) = (TempDir::new().expect("directory"), fake.lock().expect("witness").key.cosigner_vkey());
    let copies = elsewhere.path().join("checkpoints");
    let audit = format!(
        "checkpoint_interval = \"100ms\"\ncheckpoint_files = [\"{}\"]\n[[audit.witness]]\nname = \"one\"\nvkey = \"{key}\"\n\
         url = \"https://localhost:{}/w\"\nca = \"{}\"\n",
        copies.display(),
        server.port(),
        pki().partners.certificate().display()
    );
    let mut world = Setup::new().section(&format!("\n[audit]\n{audit}")).spawn(one_person);
    let signed = |world: &World| {
        let note = std::fs::read(world.directory().join("data/audit/checkpoint")).ok();
        note.and_then(|note| Note::parse(&note).ok()).is_some_and(|note| note.verified_by(&key).is_ok())
    };
    eventually("the checkpoint is cosigned", || signed(&world));
    let before = fake.lock().expect("witness").size;
    assert_eq!(world.ask("GET /.well-known/dwarpal/whoami HTTP/1.1\r\nhost: localhost\r\n\r\n").status, 200);
    // After a kill nobody knows what the witness has signed, but the witness.
    world.kill_and_restart();
    eventually("it is cosigned again", || signed(&world) && fake.lock().expect("witness").size > before);
    assert!(world.metric("dwarpal_audit_witness_total{result=\"ok\",witness=\"one\"}") >= 1.0);
    let target = copies.display();
    assert!(world.metric(&format!("dwarpal_audit_copy_total{{result=\"ok\",target=\"{target}\"}}")) >= 1.0);
    // The last one of all comes with the end.
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    let last = std::fs::read(world.directory().join("data/audit/checkpoint")).expect("a checkpoint");
    let last = Note::parse(&last).expect("a note");
    assert_eq!(notes(&copies).last().map(|note| note.text().to_owned()), Some(last.text().to_owned()));
}
