//! Does anybody notice? Reloads, a new certificate, a new CA, a dead server, a freeze and a revocation, while requests
//! come at a constant rate.
//!
//! `DWARPAL_LOAD="2000 30"` makes it so many requests a second for so many seconds, and `DWARPAL_BINARY` names the binary
//! that takes them; `tests/run --full` does both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::default_provider;

use crate::world::backend::one_person;
use crate::world::line::{self, Line};
use crate::world::mortal::Mortal;
use crate::world::pki::{Authority, FARTHER_AWAY, LONG_AGO, Leaf, client, pki};
use crate::world::{ALPHA, BETA, GAMMA, Setup, World, eventually};

const CUT_WITHIN: Duration = Duration::from_secs(2);
const CLIENTS: usize = 12;

/// Requests a second, and for how long.
fn amount() -> (f64, Duration) {
    let text = std::env::var("DWARPAL_LOAD").unwrap_or_else(|_| "300 6".to_owned());
    let (rate, seconds) = text.split_once(' ').expect("DWARPAL_LOAD is \"RATE SECONDS\"");
    (rate.parse().expect("a rate"), Duration::from_secs(seconds.parse().expect("seconds")))
}

/// An authority in a directory of this test's own, with the certificates that it issues to alpha and beta.
struct Rotation {
    authority: Authority,
    alpha: Leaf,
    beta: Leaf,
}

impl Rotation {
    fn of(directory: &Path, name: &str) -> Rotation {
        let authority = Authority::root(directory, name);
        let alpha = authority.client("alpha", "URI:spiffe://partners.test/alpha");
        let beta = authority.client("beta", "DNS:beta.partners.test");
        authority.list("current", LONG_AGO, FARTHER_AWAY);
        Rotation { authority, alpha, beta }
    }

    fn list(&self) -> PathBuf {
        self.authority.directory.join("current.crl")
    }
}

/// What clients of one partner do until they are told to stop, and what became of it.
struct Traffic<'a> {
    world: &'a World,
    /// Which of the two authorities' certificates is shown.
    new: &'a AtomicBool,
    stop: &'a AtomicBool,
    /// Clients that show the new one.
    changed: &'a AtomicUsize,
    answered: AtomicUsize,
    /// Decision ids of refusals, and what else went wrong.
    refused: Mutex<BTreeSet<String>>,
    wrong: Mutex<Vec<String>>,
}

impl Traffic<'_> {
    /// Asks at a constant rate. An answer that is late does not put the next request off (no coordinated omission).
    fn ask(&self, leaves: [&Leaf; 2], source: std::net::Ipv4Addr, request: &str, nth: usize, every: Duration) {
        let begun = Instant::now();
        let mut line: Option<(bool, Line)> = None;
        let mut changed = false;
        for turn in 0.. {
            let due = begun + every.mul_f64(turn as f64 + nth as f64 / CLIENTS as f64);
            while Instant::now() < due {
                thread::park_timeout(due - Instant::now());
            }
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let new = self.new.load(Ordering::SeqCst);
            let (_, open) = match line.take() {
                Some((was, open)) if was == new => line.insert((was, open)),
                _ => {
                    if new && !std::mem::replace(&mut changed, true) {
                        self.changed.fetch_add(1, Ordering::SeqCst);
                    }
                    line.insert((new, self.world.line(leaves[usize::from(new)], source)))
                }
            };
            if open.try_send(request).is_err() || !open.arrives() {
                self.wrong.lock().expect("wrong").push("the connection ended without an answer".to_owned());
                line = None;
                continue;
            }
            let answer = open.answer(false);
            match answer.status {
                200 => _ = self.answered.fetch_add(1, Ordering::SeqCst),
                502 => _ = self.refused.lock().expect("refused").insert(answer.header("x-decision-id").to_owned()),
                _ => self.wrong.lock().expect("wrong").push(format!("{} {}", answer.status, answer.text())),
            }
            if answer.values("connection").contains(&"close") {
                line = None;
            }
        }
    }
}

#[test]
fn what_changes_under_load_costs_nobody_a_request_that_was_allowed() {
    let (rate, duration) = amount();
    let home = tempfile::TempDir::new().expect("directory");
    let [old, new] = ["old", "new"].map(|name| Rotation::of(home.path(), name));
    let spare = new.authority.client("spare", "URI:spiffe://partners.test/alpha");
    let file = |name: &str| home.path().join(name);
    let write_bundle = |of: &[&Rotation]| {
        let text: Vec<_> =
            of.iter().map(|one| fs::read_to_string(one.authority.certificate()).expect("read")).collect();
        fs::write(file("bundle.pem"), text.concat()).expect("written");
    };
    let new_certificate = |name: &str| {
        let extensions = "basicConstraints = CA:FALSE\nextendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost\n";
        let leaf = pki().partners.issue(name, &client(extensions));
        fs::copy(&leaf.certificate, file("gateway.pem")).expect("copied");
        fs::copy(&leaf.key, file("gateway.key")).expect("copied");
    };
    write_bundle(&[&old]);
    new_certificate("load-first");

    let any = ([127, 0, 0, 1], 0).into();
    let (mut one, other) = (Mortal::born(any), Mortal::born(any));
    let directory = pki().directory.display();
    let shown = |path: PathBuf| path.display().to_string();
    let lists = format!("\"{}\", \"{}\"", shown(old.list()), shown(new.list()));
    let servers =
        format!("servers = [\"{}\", \"{}\"]\neject_after = 3\neject_for = \"300ms\"", one.address, other.address);
    let setup = Setup::new()
        .gateway("workers = 1", "workers = 2")
        .gateway("address = \"BACKEND\"", &servers)
        .gateway(&format!("{directory}/gateway.pem"), &shown(file("gateway.pem")))
        .gateway(&format!("{directory}/gateway.key"), &shown(file("gateway.key")))
        .gateway(&format!("{directory}/partners/ca.pem"), &shown(file("bundle.pem")))
        .gateway(&format!("\"{directory}/partners/current.crl\""), &lists);
    // What the reloads change is somebody else's: gamma comes from here and there in turn.
    let moved = setup.clone().partner("gamma", "limits]\nrequests = \"100000/s\"", "limits]\nrequests = \"90000/s\"");
    let world = setup.clone().spawn(one_person);
    let body = r#"{"mobile":"6412345678","purpose":"care"}"#;
    let length = body.len();
    let lookup = format!(
        "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let (rotated, stop, changed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    let traffic = || Traffic {
        world: &world,
        new: &rotated,
        stop: &stop,
        changed: &changed,
        answered: AtomicUsize::new(0),
        refused: Mutex::default(),
        wrong: Mutex::default(),
    };
    let (alpha, beta) = (traffic(), traffic());
    let every = Duration::from_secs_f64(CLIENTS as f64 / rate);
    let begun = Instant::now();
    let mut lost = BTreeSet::new();
    let mut cuts = Vec::new();
    thread::scope(|scope| {
        for nth in 0..CLIENTS {
            let (old, new, alpha, beta, lookup) = (&old, &new, &alpha, &beta, &lookup);
            // One in four is beta's, who asks for files.
            let file = "GET /files/x HTTP/1.1\r\nhost: localhost\r\n\r\n";
            scope.spawn(move || match nth % 4 {
                0 => beta.ask([&old.beta, &new.beta], BETA, file, nth, every),
                _ => alpha.ask([&old.alpha, &new.alpha], ALPHA, lookup, nth, every),
            });
        }
        let reload = |setup: &Setup| {
            world.configure(setup);
            let (code, _, error) = world.command(&["reload"]);
            assert_eq!(code, 0, "{error}");
        };
        for step in 0..10 {
            let due = begun + duration.mul_f64(f64::from(step + 1) / 12.0);
            while Instant::now() < due {
                thread::park_timeout(due - Instant::now());
            }
            match step {
                1 => new_certificate("load-second"),
                2 => one.kill(),
                // Both authorities are trusted while partners change over.
                4 => write_bundle(&[&old, &new]),
                6 => {
                    lost.append(&mut one.lost());
                    one = Mortal::born(one.address);
                }
                8 => {
                    eventually("everybody has changed over", || changed.load(Ordering::SeqCst) >= CLIENTS);
                    write_bundle(&[&new]);
                }
                _ => {}
            }
            reload(if step % 2 == 0 { &moved } else { &setup });
            if step == 4 {
                rotated.store(true, Ordering::SeqCst);
            }
        }
        // A freeze and a revocation, each to the end of open connections and for new ones.
        let cut = |what: &str, leaf: &Leaf, source, act: &dyn Fn()| {
            let mut open: Vec<_> = (0..5).map(|_| world.line(leaf, source)).collect();
            act();
            let since = Instant::now();
            let provider = default_provider();
            let refused = line::attempt(world.address, Some(leaf), source, b"http/1.1", provider);
            let refused = refused.is_err() || refused.is_ok_and(|mut line| !line.more().unwrap_or(false));
            assert!(refused, "{what}: a new connection is let in");
            for line in &mut open {
                line.until_closed();
            }
            assert!(since.elapsed() < CUT_WITHIN, "{what}: {:?}", since.elapsed());
            format!("{what} to the end of open connections {:?}", since.elapsed())
        };
        let freeze = || {
            let (code, _, error) = world.command(&["freeze", "gamma", "--reason", "a test"]);
            assert_eq!(code, 0, "{error}");
        };
        cuts.push(cut("freeze", &pki().gamma, GAMMA, &freeze));
        let revoke = || {
            new.authority.revoke(&spare);
            new.authority.list("current", LONG_AGO, FARTHER_AWAY);
            reload(&setup);
        };
        cuts.push(cut("revocation", &spare, ALPHA, &revoke));
        while begun.elapsed() < duration {
            thread::park_timeout(duration.saturating_sub(begun.elapsed()));
        }
        stop.store(true, Ordering::SeqCst);
    });
    let count = |traffic: &Traffic| traffic.answered.load(Ordering::SeqCst);
    let (of_alpha, of_beta) = (count(&alpha), count(&beta));
    let wrong = [alpha.wrong.into_inner().expect("wrong"), beta.wrong.into_inner().expect("wrong")].concat();
    assert!(wrong.is_empty(), "{} went wrong: {wrong:#?}", wrong.len());
    // What a server had read when it was killed nobody may send again; everything else is answered.
    let refused = &alpha.refused.into_inner().expect("refused") | &beta.refused.into_inner().expect("refused");
    assert!(refused.is_subset(&lost), "lost without need: {:?}", refused.difference(&lost));
    assert!(refused.len() <= CLIENTS, "at most what was under way at the death: {}", refused.len());
    let took = begun.elapsed();
    let answered = of_alpha + of_beta;
    assert!(answered as f64 > rate * duration.as_secs_f64() / 2.0, "{answered} answers in {took:?}");
    println!(
        "{answered} answers in {took:?} ({rate}/s were due), {} lost with the killed server, 11 reloads; {}",
        refused.len(),
        cuts.join("; ")
    );
}
