//! What is left when the process is killed under load? Every answer that anybody got, and all that was used up and forbidden.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dwarpal::audit::read::Log;

use super::running::{assert_verified, entries_from, log_of, mobile, of};
use crate::world::backend::one_person;
use crate::world::line::Answer;
use crate::world::pki::pki;
use crate::world::{GAMMA, PATIENCE, Setup, World, eventually};

/// Kills, unless the environment says how many.
const KILLS: u64 = 4;
const CLIENTS: u64 = 4;
/// A lookup of each is asked for once.
const PEOPLE_A_CLIENT: u64 = 10_000_000;

#[test]
fn whenever_it_is_killed_every_answer_is_in_the_log_once_and_nothing_is_forgotten() {
    let kills = std::env::var("DWARPAL_KILLS").map_or(KILLS, |text| text.parse().expect("a number of kills"));
    let setup = Setup::new()
        .gateway("workers = 1", "workers = 2")
        .partner("alpha", "subject = \"100000/s\"", "subject = \"1/d burst 1\"\nshadow = [\"containment\"]")
        .section("\n[audit]\ncheckpoint_interval = \"100ms\"\n");
    let mut world = setup.spawn(one_person);
    assert_eq!(world.command(&["freeze", "gamma", "--reason", "a test"]).0, 0);
    // Checkpoints that somebody else holds, oldest first.
    let held = tempfile::TempDir::new().expect("directory");
    let held_at = |kill: u64| held.path().join(kill.to_string());
    let mut known = Known::default();
    let mut next = [0; CLIENTS as usize].map(|_| 0);
    let (mut slowest, mut answers) = (Duration::ZERO, 0);
    for kill in 0..kills {
        let got = under_load(&mut world, &mut next, kill);
        answers += got.len();
        fs::copy(log_of(&world).join("checkpoint"), held_at(kill)).expect("a checkpoint was made");
        let begun = Instant::now();
        world.restart();
        slowest = slowest.max(begun.elapsed());

        known.learn(&world);
        for (_, decision) in &got {
            assert_eq!(known.disclosures.get(decision), Some(&1), "{decision} was answered");
        }
        let starts = &known.starts;
        assert_eq!(starts.len() as u64, kill + 2);
        assert!(!starts[0] && starts[1..].iter().all(|after_crash| *after_crash), "{starts:?}");
        let since = [kill.checked_sub(1), Some(kill)].into_iter().flatten();
        since.for_each(|held| assert_verified(&world, &log_of(&world), Some(&held_at(held))));

        // What was used up stays so, and who was shut out.
        let mut line = world.alpha();
        for (number, _) in got.iter().rev().take(20) {
            line.ask(mobile(number)).assert_refused(429, "rate-limited");
        }
        world.line(&pki().gamma, GAMMA).assert_closed();
    }
    assert!(answers as u64 > kills * 20, "{answers} answers are no load");
    eprintln!("{kills} kills, {answers} answers, {} entries; the slowest restart took {slowest:?}", known.read);
    assert!(slowest < PATIENCE / 2, "{slowest:?}");
}

/// What the log said so far. What is under a checkpoint that is held elsewhere is not read again.
#[derive(Default)]
struct Known {
    read: u64,
    disclosures: BTreeMap<String, u64>,
    /// Whether each start came after a crash.
    starts: Vec<bool>,
}

impl Known {
    fn learn(&mut self, world: &World) {
        let entries = entries_from(&log_of(world), self.read);
        self.read += entries.len() as u64;
        for disclosure in of(&entries, "disclosure") {
            *self.disclosures.entry(disclosure["id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
        self.starts.extend(of(&entries, "start").iter().map(|start| start["after_crash"] == true));
    }
}

/// Kills the gateway at some instant while all clients ask: who was answered, by which decision.
fn under_load(world: &mut World, next: &mut [u64; CLIENTS as usize], kill: u64) -> Vec<(u64, String)> {
    let pid = world.process().child.id().to_string();
    let (asked, signed) = (world.backend.count(), signed(world));
    // Somewhere in the course of a request, a batch, a checkpoint.
    let random = RandomState::new().build_hasher().finish();
    let (requests, moment) = (20 + (random % 300) as usize, Duration::from_micros((random >> 32) % 20_000));
    let world = &*world;
    thread::scope(|scope| {
        let clients = (0..).zip(next.iter_mut()).map(|(nth, next)| {
            let mut line = world.alpha();
            scope.spawn(move || {
                let mut got = Vec::new();
                loop {
                    let number = 6_400_000_000 + nth * PEOPLE_A_CLIENT + *next;
                    *next += 1;
                    if line.try_send(mobile(number)).is_err() || !line.arrives() {
                        return got;
                    }
                    // The head is an answer, whatever comes of its body.
                    let Answer { status, headers, .. } = line.head();
                    assert_eq!(status, 200);
                    let decision = headers.iter().find(|(name, _)| name == "x-decision-id").expect("a decision");
                    let length = headers.iter().find(|(name, _)| name == "content-length").expect("a length");
                    got.push((number, decision.1.clone()));
                    if line.exactly(length.1.parse().expect("a number")).is_none() {
                        return got;
                    }
                }
            })
        });
        let clients: Vec<_> = clients.collect();
        eventually("requests are answered, and a checkpoint is made", || {
            world.backend.count() > asked + requests && self::signed(world) > signed
        });
        thread::park_timeout(moment);
        assert!(Command::new("kill").args(["-KILL", &pid]).status().expect("kill").success());
        let got: Vec<_> = clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
        let distinct: BTreeSet<_> = got.iter().map(|(_, decision)| decision).collect();
        assert_eq!(distinct.len(), got.len(), "kill {kill}");
        got
    })
}

/// Entries under the newest checkpoint.
fn signed(world: &World) -> u64 {
    let checkpoint =
        Log::open(&log_of(world)).and_then(|log| log.checkpoint()).unwrap_or_else(|fault| panic!("{fault}"));
    checkpoint.map_or(0, |(checkpoint, _)| checkpoint.size)
}
