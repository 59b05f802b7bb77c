//! What does a million people cost? Keeping what was paid for them, and reading it back at the next start.
//!
//! `cargo bench --bench state`

use std::sync::Arc;
use std::time::{Duration, Instant};

use dwarpal::clock::Timestamp;
use dwarpal::policy::charge::{Charge, Rate, Scope};
use dwarpal::policy::contract::Budget;
use dwarpal::policy::shadow::Shadow;
use dwarpal::state::State;
use dwarpal::state::store::Ledger;

const PEOPLE: u32 = 1_000_000;
const ROUNDS: usize = 5;

fn main() {
    let home = tempfile::TempDir::new().expect("a directory");
    let now = Timestamp::from_unix_seconds(1_780_000_000);
    let day = Rate { count: 1, period: Duration::from_secs(86_400), burst: 1 };
    let name: Arc<str> = "partner".into();
    let (state, _) = State::open(home.path()).expect("fresh");
    let partner = state.partner(&name);
    let mut ledger = Ledger::default();
    let begun = Instant::now();
    for person in 0..PEOPLE {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&person.to_be_bytes());
        let charges = [Charge::SubjectRate(key.into(), day)];
        let _ = partner.charge(charges.iter().copied(), Shadow::default(), PEOPLE as usize, now, &mut ledger);
        state.keep(&mut ledger).expect("kept");
    }
    println!("charge and keep, each: {:?}", begun.elapsed() / PEOPLE);
    budgets(now);
    let mut written = Vec::new();
    let mut read = Vec::new();
    let mut state = state;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        state.rewrite(now).expect("written");
        written.push(begun.elapsed());
        drop(state);
        let begun = Instant::now();
        let (again, recovered) = State::open(home.path()).expect("read");
        read.push(begun.elapsed());
        assert_eq!(recovered.facts, PEOPLE as usize);
        state = again;
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let bytes = std::fs::metadata(home.path().join("limits.snapshot")).expect("a file").len();
    println!("{PEOPLE} people: {} MiB on the disk", bytes >> 20);
    println!("write all: {:?} (median of {ROUNDS})", median(&mut written));
    println!("read all:  {:?} (median of {ROUNDS})", median(&mut read));
}

/// A million different people in one budget, in memory alone.
fn budgets(now: Timestamp) {
    let budget = Budget::new(PEOPLE, PEOPLE, PEOPLE);
    let partner = State::default().partner(&"partner".into());
    let mut ledger = Ledger::default();
    let before = resident();
    let begun = Instant::now();
    for person in 0..PEOPLE {
        let mut key = [0; 16];
        key[..4].copy_from_slice(&person.to_be_bytes());
        let charge = Charge::Budget(Scope::Partner, key.into(), budget);
        let _ = partner.charge(std::iter::once(charge), Shadow::default(), PEOPLE as usize, now, &mut ledger);
        ledger.clear();
    }
    println!("charge a budget, each: {:?}", begun.elapsed() / PEOPLE);
    println!("{PEOPLE} people in a budget: {} MiB in memory", resident().saturating_sub(before) >> 20);
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4_096
}
