//! What of the state survives the process? Limits and last matches in a journal, freezes in a file of their own.
//!
//! Everything in the journal is a point in time that moves forward, so a fact that is read twice, late or out of order does
//! no harm: the latest counts. (A limit that is raised may set a bucket back; one that is read from before is an empty one.) A charge is appended before its request goes on, with one `write`, which the
//! kernel keeps though the process is killed; the disk has it a second later. Now and then the whole state is written
//! anew and the journal begins again, so that reading it takes no longer with age.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::policy::charge::SubjectKey;

/// What a point in time is kept for: when a bucket is full again, or when a network let somebody in last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    Requests,
    Route(&'a str),
    Source(IpAddr),
    Subject(SubjectKey),
    Network(IpNet),
    /// A person in a budget; its time is a stamp of `budgets`, which goes up like one.
    Seen(Whose<'a>, SubjectKey),
}

/// Whose budget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    Partner,
    People,
    Grant(&'a str),
    Actor(SubjectKey),
}

/// Facts that are not in the journal yet. Each worker has one, so that requests which run at the same time share a write.
#[derive(Debug, Default)]
pub struct Ledger(Vec<u8>);

/// The files of one gateway's state. While it exists, no other gateway can have the same directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    journal: ArcSwap<Journal>,
    snapshot_bytes: AtomicU64,
    /// Earlier runs left journals, which only a new snapshot ends: else they would pile up over crashes.
    inherited: AtomicBool,
    failures: AtomicU64,
    /// A write failed, and what follows it in the file could not be read: only [`Store::rewrite`] ends this.
    broken: AtomicBool,
    _lock: File,
}

#[derive(Debug)]
struct Journal {
    file: File,
    path: PathBuf,
    number: u64,
    bytes: AtomicU64,
    unsynced: AtomicBool,
}

/// Why the state of an earlier run cannot be used. Starting without it would forget what partners have used up.
#[derive(Debug)]
pub struct StoreError {
    pub path: PathBuf,
    pub what: String,
    pub hint: &'static str,
}

/// What was found of an earlier run.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub facts: usize,
    /// Bytes at the ends of journals that are no whole fact: a crash of the machine, never of the process.
    pub torn_bytes: usize,
}

const SNAPSHOT: &str = "limits.snapshot";
const JOURNAL_PREFIX: &str = "limits.";
const JOURNAL_SUFFIX: &str = ".journal";
/// The state is written anew when the journal is as long as the last snapshot, and at least this: a start then reads twice
/// the state at the most.
const JOURNAL_BYTES_MIN: u64 = 32 << 20;

impl Ledger {
    pub fn note(&mut self, partner: &str, fact: Fact, at: Timestamp) {
        // Nine bytes for the checksum, which is known when the line is.
        let start = self.0.len();
        self.0.extend_from_slice(b"00000000 ");
        // Writing to a vector cannot fail.
        let _ = writeln!(self.0, "{partner} {fact} {}", at.as_nanos());
        let checksum = crc32c::crc32c(&self.0[start + 9..]);
        let _ = write!(&mut self.0[start..start + 8], "{checksum:08x}");
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        // A burst leaves no large buffer behind.
        self.0.clear();
        self.0.shrink_to(4 << 10);
    }
}

impl Store {
    /// Opens or makes the directory, and calls `found` with every fact of an earlier run: partner, fact, time.
    pub fn open(
        directory: &Path,
        mut found: impl FnMut(&str, Fact, Timestamp),
    ) -> Result<(Store, Recovered), StoreError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |error: io::Error| StoreError { path, what: error.to_string(), hint: "see to it and start again" }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
        let lock_path = directory.join("lock");
        let lock = private().write(true).create(true).truncate(false).open(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = "another gateway uses this directory".to_owned();
                return Err(StoreError { path: lock_path, what, hint: "stop it, or give this one its own --data" });
            }
            Err(TryLockError::Error(error)) => return Err(failed(&lock_path)(error)),
        }
        let mut recovered = Recovered::default();
        let snapshot = directory.join(SNAPSHOT);
        let snapshot_bytes = AtomicU64::new(fs::metadata(&snapshot).map_or(0, |file| file.len()));
        match fs::read(&snapshot) {
            Ok(bytes) => recovered.facts += whole_snapshot(&snapshot, &bytes, &mut found)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&snapshot)(error)),
        }
        let journals = journals(directory).map_err(failed(directory))?;
        for (_, path) in &journals {
            let bytes = fs::read(path).map_err(failed(path))?;
            let (facts, read) = read_facts(&bytes, &mut found);
            recovered.facts += facts;
            recovered.torn_bytes += bytes.len() - read;
        }
        let number = journals.last().map_or(1, |(number, _)| number + 1);
        let journal = Journal::create(directory, number).map_err(failed(directory))?;
        let (journal, broken) = (ArcSwap::from_pointee(journal), AtomicBool::new(false));
        let store = Store {
            directory: directory.to_path_buf(),
            journal,
            snapshot_bytes,
            inherited: AtomicBool::new(!journals.is_empty()),
            failures: AtomicU64::new(0),
            broken,
            _lock: lock,
        };
        Ok((store, recovered))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Hands the ledger's facts to the kernel, and empties it. On an error they are not kept, though the state in memory
    /// is right: whoever asked must not go on.
    pub fn append(&self, ledger: &mut Ledger) -> io::Result<()> {
        if ledger.is_empty() {
            return Ok(());
        }
        let written = self.write(&ledger.0);
        ledger.clear();
        written
    }

    fn write(&self, lines: &[u8]) -> io::Result<()> {
        if self.broken.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier write to the journal failed"));
        }
        let journal = self.journal.load();
        // One call: with O_APPEND, lines of several workers never mix.
        let written = match (&journal.file).write(lines) {
            Ok(count) if count == lines.len() => Ok(()),
            Ok(_) => Err(io::Error::from(ErrorKind::StorageFull)),
            Err(error) if error.kind() == ErrorKind::Interrupted => return self.write(lines),
            Err(error) => Err(error),
        };
        if let Err(error) = &written {
            self.fail(error);
        }
        journal.bytes.fetch_add(lines.len() as u64, Ordering::Relaxed);
        journal.unsynced.store(true, Ordering::Release);
        written
    }

    fn fail(&self, error: &io::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.broken.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the state cannot be kept: nobody is let in until it can");
        }
    }

    /// Writes that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Whether the state should be written anew: the journal is long, or broken, or not the only one.
    pub fn is_due(&self) -> bool {
        let most = self.snapshot_bytes.load(Ordering::Relaxed).max(JOURNAL_BYTES_MIN);
        let due = self.is_broken() || self.inherited.load(Ordering::Relaxed);
        due || self.journal.load().bytes.load(Ordering::Relaxed) > most
    }

    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Brings the journal from the kernel to the disk. To be called every second.
    pub fn sync(&self) -> io::Result<()> {
        let journal = self.journal.load_full();
        if !journal.unsynced.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // What the kernel could not write it may have dropped: only all of it, written anew, is sure.
        journal.file.sync_data().inspect_err(|error| self.fail(error))
    }

    /// Writes the whole state, which `dump` notes in a ledger, and begins the journal again.
    ///
    /// Who charges changes the state in memory first and appends after that. So what went to the old journal is in memory
    /// before the dump, since the new journal was put in its place before; a crash at any point leaves either the old
    /// files or the new snapshot, and perhaps both, which is harmless.
    pub fn rewrite(&self, dump: impl FnOnce(&mut Ledger)) -> io::Result<()> {
        let old = self.journal.load_full();
        let next = Journal::create(&self.directory, old.number + 1)?;
        self.journal.store(Arc::new(next));
        let mut whole = Ledger::default();
        dump(&mut whole);
        let end = format!("end {:08x} {}\n", crc32c::crc32c(&whole.0), whole.0.len());
        whole.0.extend_from_slice(end.as_bytes());
        replace(&self.directory.join(SNAPSHOT), &whole.0)?;
        self.snapshot_bytes.store(whole.0.len() as u64, Ordering::Relaxed);
        // Only now: writes may fail between here and there, and must not be taken for whole.
        self.broken.store(false, Ordering::Release);
        for (number, path) in journals(&self.directory)? {
            if number <= old.number {
                fs::remove_file(path)?;
            }
        }
        self.inherited.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Journal {
    fn create(directory: &Path, number: u64) -> io::Result<Journal> {
        let path = directory.join(format!("{JOURNAL_PREFIX}{number}{JOURNAL_SUFFIX}"));
        let file = private().append(true).create_new(true).open(&path)?;
        Ok(Journal { file, path, number, bytes: AtomicU64::new(0), unsynced: AtomicBool::new(false) })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // An empty one says nothing; restarts would pile them up.
        if self.bytes.load(Ordering::Relaxed) == 0 {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Puts a file in the place of another: a crash leaves the one or the other, whole and on the disk.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = private().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// The journals of a directory, oldest first.
fn journals(directory: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(JOURNAL_PREFIX).and_then(|rest| rest.strip_suffix(JOURNAL_SUFFIX));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}

/// A snapshot is whole, or it is not what this gateway wrote.
fn whole_snapshot(
    path: &Path,
    bytes: &[u8],
    found: &mut impl FnMut(&str, Fact, Timestamp),
) -> Result<usize, StoreError> {
    let damaged = |what: &str| StoreError {
        path: path.to_path_buf(),
        what: what.to_owned(),
        hint: "restore it from a backup, or move it away: then nobody has used up anything",
    };
    let text = bytes.strip_suffix(b"\n").ok_or_else(|| damaged("it is cut short"))?;
    let start = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let end = std::str::from_utf8(&text[start..]).unwrap_or_default();
    if end != format!("end {:08x} {start}", crc32c::crc32c(&bytes[..start])) {
        return Err(damaged("it is damaged: its checksum does not match"));
    }
    match read_facts(&bytes[..start], found) {
        (facts, read) if read == start => Ok(facts),
        _ => Err(damaged("it holds a line that is not understood")),
    }
}

/// Reads facts to the first line that is none: how many, and the bytes they take.
fn read_facts(bytes: &[u8], found: &mut impl FnMut(&str, Fact, Timestamp)) -> (usize, usize) {
    let (mut facts, mut read) = (0, 0);
    while let Some(length) = bytes[read..].iter().position(|byte| *byte == b'\n') {
        let line = &bytes[read..read + length + 1];
        let Some((partner, fact, at)) = parse(line) else { break };
        found(partner, fact, at);
        facts += 1;
        read += length + 1;
    }
    (facts, read)
}

fn parse(line: &[u8]) -> Option<(&str, Fact<'_>, Timestamp)> {
    let line = std::str::from_utf8(line).ok()?;
    let (checksum, rest) = line.split_once(' ')?;
    if checksum.len() != 8 || u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(rest.as_bytes()) {
        return None;
    }
    let mut words = rest.trim_end_matches('\n').split(' ');
    let partner = words.next()?;
    let fact = match (words.next()?, words.clone().count()) {
        ("requests", 1) => Fact::Requests,
        ("route", 2) => Fact::Route(words.next()?),
        ("source", 2) => Fact::Source(words.next()?.parse().ok()?),
        ("subject", 2) => Fact::Subject(key(words.next()?)?),
        ("network", 2) => Fact::Network(words.next()?.parse().ok()?),
        ("seen", 3) => {
            let whose = match words.next()? {
                "partner" => Whose::Partner,
                "people" => Whose::People,
                _ => return None,
            };
            Fact::Seen(whose, key(words.next()?)?)
        }
        ("seen", 4) => {
            let whose = match (words.next()?, words.next()?) {
                ("grant", route) => Whose::Grant(route),
                ("actor", actor) => Whose::Actor(key(actor)?),
                _ => return None,
            };
            Fact::Seen(whose, key(words.next()?)?)
        }
        _ => return None,
    };
    Some((partner, fact, Timestamp::from_nanos(words.next()?.parse().ok()?)))
}

fn key(hex: &str) -> Option<SubjectKey> {
    Some(u128::from_str_radix(hex, 16).ok()?.to_be_bytes())
}

impl fmt::Display for Fact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fact::Requests => f.write_str("requests"),
            Fact::Route(name) => write!(f, "route {name}"),
            Fact::Source(source) => write!(f, "source {source}"),
            Fact::Subject(key) => write!(f, "subject {:032x}", u128::from_be_bytes(*key)),
            Fact::Network(cidr) => write!(f, "network {cidr}"),
            Fact::Seen(whose, key) => {
                let key = u128::from_be_bytes(*key);
                match whose {
                    Whose::Partner => write!(f, "seen partner {key:032x}"),
                    Whose::People => write!(f, "seen people {key:032x}"),
                    Whose::Grant(route) => write!(f, "seen grant {route} {key:032x}"),
                    Whose::Actor(actor) => write!(f, "seen actor {:032x} {key:032x}", u128::from_be_bytes(*actor)),
                }
            }
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.what, self.hint)
    }
}

impl std::error::Error for StoreError {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tempfile::TempDir;

    type Found = Vec<(String, String, u64)>;

    fn open(directory: &Path) -> Result<(Store, Recovered, Found), StoreError> {
        let mut found = Found::new();
        let (store, recovered) = Store::open(directory, |partner, fact, at| {
            found.push((partner.to_owned(), fact.to_string(), at.as_nanos()));
        })?;
        Ok((store, recovered, found))
    }

    const FACTS: [Fact; 9] = [
        Fact::Requests,
        Fact::Route("lookup-by-mobile"),
        Fact::Source(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)),
        Fact::Subject([7; 16]),
        Fact::Network(IpNet::V4(ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 20, 0, 0), 24))),
        Fact::Seen(Whose::Partner, [1; 16]),
        Fact::Seen(Whose::People, [2; 16]),
        Fact::Seen(Whose::Grant("lookup-by-mobile"), [3; 16]),
        Fact::Seen(Whose::Actor([0; 16]), [4; 16]),
    ];

    fn ledger(partner: &str) -> Ledger {
        let mut ledger = Ledger::default();
        for (at, fact) in FACTS.into_iter().enumerate() {
            ledger.note(partner, fact, Timestamp::from_nanos(at as u64));
        }
        ledger
    }

    fn expected(partner: &str) -> Found {
        FACTS.iter().enumerate().map(|(at, fact)| (partner.to_owned(), fact.to_string(), at as u64)).collect()
    }

    #[test]
    fn what_was_appended_is_found_without_a_farewell() {
        let home = TempDir::new().expect("directory");
        let (store, recovered, found) = open(home.path()).expect("fresh");
        assert_eq!((recovered, found), (Recovered::default(), Found::new()));
        store.append(&mut ledger("icmr")).expect("written");
        // As after a SIGKILL: nothing of the store's own is run.
        let copy = TempDir::new().expect("directory");
        fs::copy(&store.journal.load().path, copy.path().join("limits.1.journal")).expect("copied");
        let (_, recovered, found) = open(copy.path()).expect("again");
        assert_eq!((recovered.facts, recovered.torn_bytes, found), (FACTS.len(), 0, expected("icmr")));
    }

    #[test]
    fn a_rewrite_begins_the_journal_again() {
        let home = TempDir::new().expect("directory");
        let (store, ..) = open(home.path()).expect("fresh");
        store.append(&mut ledger("old")).expect("written");
        store.rewrite(|whole| *whole = ledger("icmr")).expect("rewritten");
        store.append(&mut ledger("new")).expect("written");
        drop(store);
        assert_eq!(journals(home.path()).expect("listed").len(), 1);
        let (_, _, found) = open(home.path()).expect("again");
        assert_eq!(found, [expected("icmr"), expected("new")].concat());
    }

    #[test]
    fn one_gateway_a_directory() {
        let home = TempDir::new().expect("directory");
        let (first, ..) = open(home.path()).expect("fresh");
        let error = open(home.path()).expect_err("locked").to_string();
        assert!(error.contains("another gateway uses this directory"), "{error}");
        drop(first);
        assert!(open(home.path()).is_ok());
    }

    #[test]
    fn a_journal_ends_at_its_first_torn_line_and_a_snapshot_must_be_whole() {
        let whole = ledger("icmr").0;
        let home = TempDir::new().expect("directory");
        for length in 0..=whole.len() {
            fs::write(home.path().join("limits.1.journal"), &whole[..length]).expect("written");
            let (store, recovered, found) = open(home.path()).expect("a torn end is no reason to stop");
            assert_eq!(found, expected("icmr")[..found.len()]);
            assert_eq!(recovered.torn_bytes == 0, length == 0 || whole[length - 1] == b'\n');
            drop(store);
        }
        fs::remove_file(home.path().join("limits.1.journal")).expect("removed");
        let (store, ..) = open(home.path()).expect("fresh");
        store.rewrite(|dump| *dump = ledger("icmr")).expect("rewritten");
        drop(store);
        let path = home.path().join(SNAPSHOT);
        let good = fs::read(&path).expect("snapshot");
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            fs::write(&path, &bad).expect("written");
            let error = open(home.path()).expect_err("a flipped bit").to_string();
            assert!(error.contains("limits.snapshot: it"), "{error}");
            fs::write(&path, &good[..at]).expect("written");
            assert!(open(home.path()).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn after_a_failed_write_nothing_is_taken_until_all_is_written_anew() {
        let home = TempDir::new().expect("directory");
        let (store, ..) = open(home.path()).expect("fresh");
        // A journal that cannot be written, as on a full disk.
        let number = store.journal.load().number;
        let file = OpenOptions::new().write(true).open("/dev/full").expect("the device");
        let (bytes, unsynced) = (AtomicU64::new(1), AtomicBool::new(false));
        store.journal.store(Arc::new(Journal { file, path: home.path().join("x"), number, bytes, unsynced }));
        assert!(!store.is_due());
        assert!(store.append(&mut ledger("icmr")).is_err());
        assert!(store.is_broken() && store.is_due());
        assert!(store.append(&mut ledger("icmr")).is_err());
        store.rewrite(|dump| *dump = ledger("icmr")).expect("rewritten");
        assert!(!store.is_broken());
        store.append(&mut ledger("new")).expect("written");
        drop(store);
        let (_, recovered, found) = open(home.path()).expect("again");
        assert_eq!((recovered.torn_bytes, found), (0, [expected("icmr"), expected("new")].concat()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (_, read) = read_facts(&bytes, &mut |_, _, _| {});
            prop_assert!(read <= bytes.len());
        }
    }
}
