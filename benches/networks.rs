//! What does an allowlist of a million entries cost? Seconds to load, memory, nanoseconds a lookup.

use std::fs;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use dwarpal::clock::Timestamp;
use dwarpal::config::network_file::{self, Defaults};
use dwarpal::policy::networks::{Match, Networks, NetworksBuilder, Union};

const LINES: u32 = 1_000_000;
const LOOKUPS: usize = 1_000_000;
/// Addresses that keep calling, whose entries stay in the cache; over all the million, memory sets the pace.
const CALLERS: usize = 1_000;
/// Each with its own expiry; a line belongs to one of them at random, the worst order for a cache.
const TICKETS: u32 = 5_000;

fn main() {
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut out = BufWriter::new(&file);
    for _ in 0..LINES {
        let prefix = 24 + random.next() % 9;
        let addr = Ipv4Addr::from(random.next() & (u32::MAX << (32 - prefix)));
        let ticket = random.next() % TICKETS;
        let month = 1 + ticket % 12;
        writeln!(out, "{addr}/{prefix}  # owner=icmr-netops ticket=NET-{ticket} expires=2027-{month:02}-01 reason=lab network in Pune")
            .expect("write");
    }
    out.flush().expect("flush");
    drop(out);

    let before = resident_bytes();
    let start = Instant::now();
    let mut builder = NetworksBuilder::new();
    let mut problems = Vec::new();
    network_file::read(file.path(), "networks.txt", &Defaults::default(), &mut builder, &mut problems);
    let read = start.elapsed();
    let list = builder.build();
    let built = start.elapsed();
    let list_bytes = resident_bytes() - before;
    let union = Union::build(&[&list]);
    let loaded = start.elapsed();
    let all_bytes = resident_bytes() - before;
    assert!(problems.is_empty(), "{}", problems[0]);
    assert_eq!(list.len(), LINES as usize);

    println!("file     {:>9.1} MiB, {LINES} lines", mib(file.path().metadata().expect("metadata").len() as usize));
    println!(
        "load     {:>9.3} s (read {read:.3?}, list {:.3?}, union {:.3?})",
        loaded.as_secs_f64(),
        built - read,
        loaded - built
    );
    println!(
        "memory   {:>9.1} MiB (list {:.1}), peak of the process {:.1}",
        mib(all_bytes),
        mib(list_bytes),
        mib(peak_bytes())
    );

    let now = Timestamp::parse("2026-06-01T00:00:00Z").expect("instant");
    let (hits, misses) = addresses(&list, &mut random, now);
    for (name, addrs) in [("hit", &hits), ("miss", &misses)] {
        for callers in [CALLERS, LOOKUPS] {
            let find = nanos(&addrs[..callers], |addr| list.find(addr, now) != Match::Absent);
            let contains = nanos(&addrs[..callers], |addr| union.contains(addr, now));
            println!("{name:<8} {find:>9.1} ns find, {contains:.1} ns contains, of {callers} addresses");
        }
    }
}

/// The first address of random entries, and random addresses outside all of them.
fn addresses(list: &Networks, random: &mut Random, now: Timestamp) -> (Vec<IpAddr>, Vec<IpAddr>) {
    let starts: Vec<IpAddr> = list.iter().map(|(_, network)| network.cidr.network()).collect();
    let hits = (0..LOOKUPS).map(|_| starts[random.next() as usize % starts.len()]).collect();
    let misses = std::iter::repeat_with(|| IpAddr::from(Ipv4Addr::from(random.next())))
        .filter(|addr| list.find(*addr, now) == Match::Absent)
        .take(LOOKUPS)
        .collect();
    (hits, misses)
}

/// Mean over `LOOKUPS` lookups, going round `addrs`.
fn nanos(addrs: &[IpAddr], ask: impl Fn(IpAddr) -> bool) -> f64 {
    let start = Instant::now();
    for addr in addrs.iter().cycle().take(LOOKUPS) {
        black_box(ask(black_box(*addr)));
    }
    start.elapsed().as_nanos() as f64 / LOOKUPS as f64
}

/// Second column of `/proc/self/statm`, in pages of 4096 bytes.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("procfs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("resident pages") * 4096
}

fn peak_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("procfs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("kibibytes") * 1024
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Xorshift: the same addresses on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
