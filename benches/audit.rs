//! What does an entry cost? Making it durable, publishing it, sealing and storing it; and a start with a hundred segments.
//!
//! `cargo bench --bench audit`; in the directory `TMPDIR`, whose disk is what is measured.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use dwarpal::audit::journal::Journal;
use dwarpal::audit::layout::SEGMENT;
use dwarpal::audit::note::Signer;
use dwarpal::audit::publish::{Publisher, Settings};
use flate2::Compression;
use flate2::write::GzEncoder;

/// Segments of the start that is measured.
const SEGMENTS: u64 = 100;

fn main() {
    let random = Random::new();
    append(random.clone());
    coding(random.clone());
    publish(random.clone());
    start(random);
}

/// Seven hundred bytes of JSON, of which two hundred are as good as random: token, receipt, digest, ids.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(0x9e37_79b9_7f4a_7c15)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// 16 characters that hold 12 bytes.
    fn text(&mut self) -> String {
        const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        (0..16).map(|_| char::from(ALPHABET[(self.next() >> 58) as usize])).collect()
    }

    fn entry(&mut self, number: u64) -> Vec<u8> {
        let random: Vec<String> = (0..17).map(|_| self.text()).collect();
        let text = |from: usize, to: usize| random[from..to].concat();
        let entry = format!(
            concat!(
                "{{\"v\":1,\"event\":\"disclosure\",\"time\":\"2026-03-01T09:{:02}:{:02}.{:06}Z\",\"id\":\"{}\",\"partner\":\"icmr\",",
                "\"identity\":\"{}\",\"source\":\"10.20.0.{}\",\"actor\":\"{}\",\"route\":\"lookup-by-mobile\",\"purpose\":\"care\",",
                "\"epoch\":\"630dcd29\",\"token\":\"{}\",\"verdict\":\"allow\",\"generation\":{},\"status\":200,\"people\":1,",
                "\"digest\":\"{}\",\"receipts\":\"{}\",\"latency_us\":{{\"gateway\":{},\"backend\":{}}},\"phase\":\"answer\"}}"
            ),
            number / 60 % 60,
            number % 60,
            self.next() % 1_000_000,
            text(0, 2),
            text(2, 5),
            self.next() % 250,
            text(5, 6),
            text(6, 9),
            number / 100_000,
            text(9, 12),
            text(12, 17),
            self.next() % 900,
            self.next() % 9_000,
        );
        entry.into_bytes()
    }

    fn entries(&mut self, from: u64, count: u64) -> Vec<Vec<u8>> {
        (from..from + count).map(|number| self.entry(number)).collect()
    }
}

fn append(mut random: Random) {
    for batch in [1, 16, 64] {
        let home = tempfile::TempDir::new().expect("a directory");
        let (mut journal, _) = Journal::open(home.path(), 0).expect("fresh");
        let entries = random.entries(0, batch);
        let bytes = entries.iter().map(Vec::len).sum::<usize>() / entries.len();
        let mut times = Vec::new();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let begun = Instant::now();
            journal.append(&entries).expect("durable");
            times.push(begun.elapsed());
        }
        let rate = journal.size() as f64 / begun.elapsed().as_secs_f64();
        times.sort();
        let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!("append {batch:>2} entries of {bytes} bytes: {rate:>6.0} entries/s, p50 {half:?}, p99 {most:?}");
    }
}

/// Of the levels of compression, on bundles.
fn coding(mut random: Random) {
    let bundles: Vec<Vec<u8>> = (0..40).map(|bundle| random.entries(bundle * 256, 256).concat()).collect();
    let bytes: usize = bundles.iter().map(Vec::len).sum();
    for level in [1, 2, 3, 4, 5, 6, 9] {
        let begun = Instant::now();
        let packed: usize = bundles
            .iter()
            .map(|bundle| {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
                std::io::Write::write_all(&mut encoder, bundle).expect("memory");
                encoder.finish().expect("memory").len()
            })
            .sum();
        let each = begun.elapsed() / (40 * 256);
        println!(
            "gzip level {level}: {:.1} % of {bytes} bytes, {each:?} an entry",
            100.0 * packed as f64 / bytes as f64
        );
    }
}

fn open(home: &Path) -> (Journal, Publisher) {
    let signer = Signer::from_seed("dwarpal.example/log", &[1; 32]).expect("a key");
    let settings = Settings {
        directory: home.join("log"),
        remembered: home.join("remembered"),
        signer,
        index: |_, entries| entries.len().to_string().into_bytes(),
    };
    let (journal, _, publisher) = dwarpal::audit::open(settings).expect("opened");
    (journal, publisher)
}

fn bytes_below(path: &Path) -> u64 {
    let entries = fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry"));
    entries
        .map(|entry| match entry.path().is_dir() {
            true => bytes_below(&entry.path()),
            false => entry.metadata().expect("a file").len(),
        })
        .sum()
}

fn publish(mut random: Random) {
    let home = tempfile::TempDir::new().expect("a directory");
    let (mut journal, mut publisher) = open(home.path());
    let size = SEGMENT + 1;
    for from in (0..size).step_by(4096) {
        journal.append(&random.entries(from, 4096.min(size - from))).expect("durable");
    }
    let begun = (Instant::now(), cpu());
    publisher.catch_up(size).expect("read");
    let (took, used) = (begun.0.elapsed() / size as u32, (cpu() - begun.1) / size as u32);
    println!("publish: {took:?} an entry, {used:?} of it CPU");
    let begun = Instant::now();
    publisher.checkpoint().expect("signed");
    println!("checkpoint: {:?}", begun.elapsed());
    let begun = (Instant::now(), cpu());
    publisher.seal().expect("sealed");
    println!("seal a segment: {:?}, {:?} of it CPU", begun.0.elapsed(), cpu() - begun.1);
    let log = home.path().join("log");
    let whole = bytes_below(&log) - bytes_below(&log.join("journal"));
    println!("on the disk without the index: {:.0} bytes an entry", whole as f64 / SEGMENT as f64);
    let begun = Instant::now();
    for _ in 0..256 {
        publisher.scrub_step().expect("whole");
    }
    println!("scrub a segment: {:?}", begun.elapsed());
    drop((journal, publisher));
    let begun = Instant::now();
    let _ = open(home.path());
    println!("start with one sealed segment: {:?}", begun.elapsed());
}

fn start(mut random: Random) {
    let home = tempfile::TempDir::new().expect("a directory");
    let (mut journal, mut publisher) = open(home.path());
    // Small entries: how many files there are is what counts.
    for segment in 0..=SEGMENTS {
        let count = if segment == SEGMENTS { 1 } else { SEGMENT };
        let entries: Vec<String> = (0..count).map(|_| random.next().to_string()).collect();
        journal.append(&entries).expect("durable");
        publisher.catch_up(journal.size()).expect("read");
        publisher.checkpoint().expect("signed");
        publisher.seal().expect("sealed");
    }
    // And an unsealed segment that is almost full.
    for from in (1..SEGMENT - 1).step_by(4096) {
        journal.append(&random.entries(from, 4096.min(SEGMENT - 1 - from))).expect("durable");
    }
    publisher.catch_up(journal.size()).expect("read");
    publisher.checkpoint().expect("signed");
    assert_eq!(publisher.sealed_segments(), SEGMENTS);
    drop((journal, publisher));
    for _ in 0..3 {
        let begun = Instant::now();
        let (journal, publisher) = open(home.path());
        println!("start with {SEGMENTS} sealed segments and 65,535 entries more: {:?}", begun.elapsed());
        drop((journal, publisher));
    }
}

/// Time of all processors that this process has used, in hundredths of a second.
fn cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = text.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(10 * ticks)
}
