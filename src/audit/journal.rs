//! Which entries are durable? A file a segment, appended to in batches: one write, one `fdatasync`, and only then is a batch
//! acknowledged.
//!
//! After anything failed nothing more is written until [`Journal::recover`] has gone through the code that a start goes
//! through. What a failed `fdatasync` leaves is not known: the kernel may have dropped the pages and call them clean (Rebello
//! et al., "Can Applications Recover from fsync Failures?", 2020). So it is never tried again. What was acknowledged before is
//! on the disk, what was not is cut off; and a start, which does not know what an earlier process acknowledged, writes the
//! last file anew.

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disk;
use super::layout::{self, Flaw, SEGMENT};

/// The journal of a log. While it exists, no other process can have the same directory.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    tail: Option<Tail>,
    size: u64,
    broken: bool,
    /// Kept from batch to batch.
    buffer: Vec<u8>,
    _lock: Lock,
}

/// The file that is appended to.
#[derive(Debug)]
struct Tail {
    file: File,
    segment: u64,
    /// How much of it is durable.
    bytes: u64,
}

/// What was found of an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Entries of the log, those in sealed segments included.
    pub size: u64,
    /// Bytes at the end that were no whole batch, and are gone: nobody had been told that they were durable.
    pub torn_bytes: u64,
}

/// Why a log cannot be used as it is. Says which file, and what to do.
#[derive(Debug)]
pub struct Damage {
    pub path: PathBuf,
    pub what: String,
    pub hint: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path.display(), self.what, self.hint)
    }
}

impl std::error::Error for Damage {}

impl Damage {
    pub(super) fn new(path: &Path, what: impl fmt::Display, hint: &'static str) -> Damage {
        Damage { path: path.into(), what: what.to_string(), hint }
    }

    /// The system refused something.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Damage {
        move |error| Damage::new(path, error, SEE_TO_IT)
    }
}

const SEE_TO_IT: &str = "see to it and start again";
pub(super) const RESTORE: &str =
    "restore it from a copy; without one, keep this directory as it is, move it away, and begin a new log";

/// How far the journal is known to be durable.
enum Durable {
    /// As far as a checkpoint says, in entries; of the rest nothing is known.
    AtLeast(u64),
    /// So many bytes of the file of this segment, and what is before: all that was acknowledged, and nothing else counts.
    Exactly(Option<(u64, u64)>),
}

impl Journal {
    /// Opens or makes the journal below a log's directory. `floor` is the size that a checkpoint claims: fewer entries are an
    /// error.
    pub fn open(directory: &Path, floor: u64) -> Result<(Journal, Recovered), Damage> {
        let journal = directory.join(layout::JOURNAL);
        disk::make_directory(&journal).map_err(Damage::io(&journal))?;
        let lock = lock(&directory.join(layout::LOCK))?;
        let (tail, recovered) = restore(directory, Durable::AtLeast(floor))?;
        let journal = Journal {
            directory: directory.into(),
            tail,
            size: recovered.size,
            broken: false,
            buffer: Vec::new(),
            _lock: lock,
        };
        Ok((journal, recovered))
    }

    /// Entries that are durable.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether nothing can be appended before [`Journal::recover`].
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Adds a batch, all of it or nothing. On `Ok` it is durable; on an error it is not in the log, and the journal is broken
    /// unless an entry was too long.
    pub fn append(&mut self, entries: &[impl AsRef<[u8]>]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("an earlier write to the journal failed"));
        }
        if entries.iter().any(|entry| entry.as_ref().len() > layout::ENTRY_BYTES_MAX) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "an entry is longer than 65,535 bytes"));
        }
        self.broken = true;
        let mut rest = entries;
        let mut size = self.size;
        let mut fresh = None;
        while !rest.is_empty() {
            let room = (SEGMENT - size % SEGMENT) as usize;
            let (batch, later) = rest.split_at(room.min(rest.len()));
            if size.is_multiple_of(SEGMENT) {
                fresh = Some(begin(&self.directory, size / SEGMENT)?);
            }
            let tail = fresh.as_mut().or(self.tail.as_mut()).ok_or(ErrorKind::NotFound)?;
            self.buffer.clear();
            for (place, entry) in batch.iter().enumerate() {
                layout::push_frame(&mut self.buffer, entry.as_ref(), place == 0).map_err(io::Error::other)?;
            }
            let path = self.directory.join(layout::journal_path(tail.segment));
            disk::write(&tail.file, &path, &self.buffer)?;
            disk::sync(&tail.file, &path)?;
            // The last file of the batch is the tail from now on; of one before it, nobody asks again.
            if let Some(tail) = &mut fresh {
                // A file that the directory does not name is not there after a crash, however well it was synced.
                disk::sync_directory(&self.directory.join(layout::JOURNAL))?;
                tail.bytes = self.buffer.len() as u64;
            }
            size += batch.len() as u64;
            rest = later;
        }
        match fresh {
            Some(fresh) => self.tail = Some(fresh),
            None if !entries.is_empty() => {
                self.tail.iter_mut().for_each(|tail| tail.bytes += self.buffer.len() as u64);
            }
            None => {}
        }
        self.size = size;
        self.broken = false;
        // A burst leaves no large buffer behind.
        self.buffer.shrink_to(1 << 20);
        Ok(())
    }

    /// Makes a broken journal usable again: what was acknowledged is read back, anything after it is cut off. Needs no room on
    /// the disk. May be tried again and again.
    pub fn recover(&mut self) -> Result<Recovered, Damage> {
        self.broken = true;
        let durable = Durable::Exactly(self.tail.as_ref().map(|tail| (tail.segment, tail.bytes)));
        let (tail, recovered) = restore(&self.directory, durable)?;
        if recovered.size != self.size {
            let what = format!("it has {} entries, but {} were written and synced", recovered.size, self.size);
            return Err(Damage::new(&self.directory.join(layout::JOURNAL), what, RESTORE));
        }
        self.tail = tail;
        self.broken = false;
        Ok(recovered)
    }
}

/// The segments that have a journal, in order.
pub fn segments(directory: &Path) -> Result<Vec<u64>, Damage> {
    let path = directory.join(layout::JOURNAL);
    let mut segments = Vec::new();
    for entry in fs::read_dir(&path).map_err(Damage::io(&path))? {
        let name = entry.map_err(Damage::io(&path))?.file_name();
        segments.extend(name.to_str().and_then(layout::segment_of_name));
    }
    segments.sort_unstable();
    Ok(segments)
}

/// Reads a journal from some segment on, also while it grows.
#[derive(Debug)]
pub struct Follower {
    directory: PathBuf,
    /// The entry that comes next, and where it begins in its file.
    next: u64,
    offset: u64,
    buffer: Vec<u8>,
}

/// How much is read at once; more where an entry is larger.
const READ_BYTES: usize = 1 << 20;

impl Follower {
    /// From the first entry of a segment.
    pub fn new(directory: &Path, segment: u64) -> Follower {
        Follower { directory: directory.into(), next: segment * SEGMENT, offset: 0, buffer: Vec::new() }
    }

    /// The entry that comes next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Hands out all entries before `until`, which have to be durable: what is behind them may still be cut off. After an
    /// error it goes on with the entry that it came to.
    pub fn read<E: From<Damage>>(
        &mut self,
        until: u64,
        mut entry: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while self.next < until {
            let segment = self.next / SEGMENT;
            let path = self.directory.join(layout::journal_path(segment));
            let file = File::open(&path).map_err(Damage::io(&path))?;
            let end = until.min((segment + 1) * SEGMENT);
            while self.next < end {
                self.fill(&file).map_err(Damage::io(&path))?;
                let mut used = 0;
                while self.next < end {
                    match layout::read_frame(&self.buffer[used..]) {
                        Ok(frame) => {
                            entry(frame.entry)?;
                            (used, self.next) = (used + frame.bytes, self.next + 1);
                            self.offset += frame.bytes as u64;
                        }
                        // The rest of it comes with the next read.
                        Err(_) if used > 0 => break,
                        Err(flaw) => {
                            let what = format!("entry {}, at byte {}, cannot be read: {flaw}", self.next, self.offset);
                            return Err(Damage::new(&path, what, RESTORE).into());
                        }
                    }
                }
            }
            if self.next.is_multiple_of(SEGMENT) {
                self.offset = 0;
            }
        }
        Ok(())
    }

    fn fill(&mut self, file: &File) -> io::Result<()> {
        self.buffer.resize(READ_BYTES, 0);
        let mut filled = 0;
        while filled < self.buffer.len() {
            match file.read_at(&mut self.buffer[filled..], self.offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.buffer.truncate(filled);
        Ok(())
    }
}

/// One gateway a directory.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file would not do while a child that has not yet become another program still has it.
        let _ = self.0.unlock();
    }
}

fn lock(path: &Path) -> Result<Lock, Damage> {
    let lock = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let lock = lock.map_err(Damage::io(path))?;
    match lock.try_lock() {
        Ok(()) => Ok(Lock(lock)),
        Err(TryLockError::WouldBlock) => {
            Err(Damage::new(path, "another gateway uses this log", "stop it, or give this one its own audit.directory"))
        }
        Err(TryLockError::Error(error)) => Err(Damage::io(path)(error)),
    }
}

fn begin(directory: &Path, segment: u64) -> io::Result<Tail> {
    let file = disk::create(&directory.join(layout::journal_path(segment)))?;
    Ok(Tail { file, segment, bytes: 0 })
}

/// Reads all journals and leaves them so that they can be appended to.
fn restore(directory: &Path, durable: Durable) -> Result<(Option<Tail>, Recovered), Damage> {
    let folder = directory.join(layout::JOURNAL);
    let at = |segment: u64| directory.join(layout::journal_path(segment));
    let mut segments = segments(directory)?;
    if let Durable::Exactly(tail) = durable {
        // Of a batch that was not acknowledged: files after the durable one, and the end of that one.
        while let Some(segment) = segments.pop_if(|segment| tail.is_none_or(|(last, _)| *segment > last)) {
            disk::remove(&at(segment)).map_err(Damage::io(&at(segment)))?;
        }
        if let Some((segment, bytes)) = tail {
            let file = disk::open(&at(segment)).map_err(Damage::io(&at(segment)))?;
            if file.metadata().map_err(Damage::io(&at(segment)))?.len() > bytes {
                disk::cut(&file, &at(segment), bytes).map_err(Damage::io(&at(segment)))?;
            }
            disk::sync(&file, &at(segment)).map_err(Damage::io(&at(segment)))?;
        }
        disk::sync_directory(&folder).map_err(Damage::io(&folder))?;
    }
    let floor = match durable {
        Durable::AtLeast(floor) => floor,
        Durable::Exactly(_) => 0,
    };
    let Some((&last, earlier)) = segments.split_last() else {
        return match floor {
            0 => Ok((None, Recovered::default())),
            _ => Err(Damage::new(
                &folder,
                format!("there is no journal, but a checkpoint says {floor} entries"),
                RESTORE,
            )),
        };
    };
    for (expected, segment) in (segments[0]..).zip(&segments) {
        if *segment != expected {
            return Err(Damage::new(&at(expected), "the journal of this segment is missing", RESTORE));
        }
    }
    // A segment's file is complete and synced before the next one is made.
    for segment in earlier {
        let bytes = fs::read(at(*segment)).map_err(Damage::io(&at(*segment)))?;
        let scan = Scan::of(&bytes);
        if scan.entries != SEGMENT || scan.end != bytes.len() {
            return Err(scan.damage(&at(*segment), *segment));
        }
    }
    let path = at(last);
    let bytes = fs::read(&path).map_err(Damage::io(&path))?;
    let scan = Scan::of(&bytes);
    if scan.entries == SEGMENT && scan.end < bytes.len() || is_followed_by_a_batch(&bytes, scan.end) {
        return Err(scan.damage(&path, last));
    }
    let size = last * SEGMENT + scan.entries;
    if size < floor {
        let what = format!("the journal ends with {size} entries (byte {}), but a checkpoint says {floor}", scan.end);
        return Err(Damage::new(&path, what, RESTORE));
    }
    let recovered = Recovered { size, torn_bytes: (bytes.len() - scan.end) as u64 };
    let file = match durable {
        Durable::AtLeast(_) => rewrite(&folder, &path, &bytes[..scan.end]).map_err(Damage::io(&path))?,
        Durable::Exactly(Some((segment, durable))) if (segment, durable) == (last, scan.end as u64) => {
            disk::open(&path).map_err(Damage::io(&path))?
        }
        Durable::Exactly(_) => return Err(scan.damage(&path, last)),
    };
    Ok((Some(Tail { file, segment: last, bytes: scan.end as u64 }), recovered))
}

/// Writes a journal to a new file and puts that in the place of the old one: the kernel may show bytes of the old one that
/// are not on the disk and that it will not write again.
fn rewrite(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<File> {
    let new = disk::not_yet(path);
    // One that an earlier crash left is written over.
    let file = disk::create(&new)?;
    disk::write(&file, &new, bytes)?;
    disk::sync(&file, &new)?;
    disk::rename(&new, path)?;
    // A crash before this leaves the old file or the new one, with the same entries.
    disk::sync_directory(folder)?;
    Ok(file)
}

/// The whole frames at the beginning of a journal.
struct Scan {
    entries: u64,
    /// Where they end.
    end: usize,
    flaw: Flaw,
}

impl Scan {
    fn of(bytes: &[u8]) -> Scan {
        let mut scan = Scan { entries: 0, end: 0, flaw: Flaw("the journal has more entries than a segment") };
        while scan.entries < SEGMENT {
            match layout::read_frame(&bytes[scan.end..]) {
                Ok(frame) => scan.end += frame.bytes,
                Err(flaw) => return Scan { flaw, ..scan },
            }
            scan.entries += 1;
        }
        scan
    }

    fn damage(&self, path: &Path, segment: u64) -> Damage {
        let entry = segment * SEGMENT + self.entries;
        Damage::new(path, format!("entry {entry}, at byte {}, is damaged: {}", self.end, self.flaw), RESTORE)
    }
}

/// Whether a batch begins somewhere after a bad frame. It was not begun before the bad frame's batch was durable, so that one
/// was damaged later. Without one, the bad frame belongs to the last batch: pages of a write reach the disk in any order.
pub(super) fn is_followed_by_a_batch(bytes: &[u8], end: usize) -> bool {
    (end + 1..bytes.len()).any(|at| layout::read_frame(&bytes[at..]).is_ok_and(|frame| frame.begins_batch))
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::super::disk::hook::{self, Fault, Share};
    use super::*;

    /// Copies a log's directory, as a crash at this moment would leave it.
    pub fn copy(from: &Path) -> TempDir {
        fn below(from: &Path, to: &Path) {
            fs::create_dir_all(to).expect("a directory");
            for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
                let to = to.join(entry.file_name());
                match entry.path().is_dir() {
                    true => below(&entry.path(), &to),
                    false => drop(fs::copy(entry.path(), &to).expect("copied")),
                }
            }
        }
        let home = TempDir::new().expect("a directory");
        below(from, home.path());
        home
    }

    static ENTRIES: LazyLock<Vec<String>> =
        LazyLock::new(|| (0..4 * SEGMENT).map(|index| format!("entry {index}")).collect());

    fn batch(from: u64, count: u64) -> &'static [String] {
        &ENTRIES[from as usize..(from + count) as usize]
    }

    /// That the journal has these entries, once and in order.
    fn same(directory: &Path, size: u64) {
        let mut expected = ENTRIES.iter();
        let mut follower = Follower::new(directory, 0);
        let mut compare = |entry: &[u8]| {
            assert_eq!(Some(entry), expected.next().map(String::as_bytes));
            Ok::<(), Damage>(())
        };
        follower.read(size, &mut compare).expect("readable");
    }

    /// Seven entries before the end of the first segment.
    const START: u64 = SEGMENT - 7;

    fn start() -> TempDir {
        let home = TempDir::new().expect("a directory");
        let (mut journal, recovered) = Journal::open(home.path(), 0).expect("fresh");
        assert_eq!(recovered, Recovered::default());
        journal.append(batch(0, START)).expect("durable");
        home
    }

    /// One batch within the file, one over its end, one in the next.
    const BATCHES: [u64; 4] = [4, 5, 3, 1];

    #[test]
    fn a_log_that_was_closed_is_free_whoever_inherited_its_files() {
        let directory = tempfile::TempDir::new().expect("directory");
        let path = directory.path().join("lock");
        let held = lock(&path).expect("free");
        let inherited = held.0.try_clone().expect("a second descriptor");
        assert!(lock(&path).is_err());
        drop(held);
        assert!(lock(&path).is_ok());
        drop(inherited);
    }

    #[test]
    fn entries_are_read_back_in_order_and_files_begin_at_segments() {
        let home = start();
        let (mut journal, _) = Journal::open(home.path(), START).expect("opened");
        for count in BATCHES {
            journal.append(batch(journal.size(), count)).expect("durable");
        }
        journal.append(&[] as &[&str]).expect("nothing");
        let size = START + BATCHES.iter().sum::<u64>();
        assert_eq!(journal.size(), size);
        assert_eq!(segments(home.path()).expect("segments"), [0, 1]);
        same(home.path(), size);
        let again = Journal::open(home.path(), 0).expect_err("in use").to_string();
        assert!(again.contains("another gateway uses this log"), "{again}");
        drop(journal);
        let (journal, recovered) = Journal::open(home.path(), size).expect("opened");
        assert_eq!((recovered.size, recovered.torn_bytes, journal.size()), (size, 0, size));
        same(home.path(), size);
    }

    #[test]
    fn a_batch_of_more_than_a_segment_is_durable() {
        let home = TempDir::new().expect("a directory");
        let (mut journal, _) = Journal::open(home.path(), 0).expect("fresh");
        journal.append(batch(0, 2 * SEGMENT + 3)).expect("durable");
        journal.append(batch(2 * SEGMENT + 3, 1)).expect("durable");
        same(home.path(), 2 * SEGMENT + 4);
        let long = vec![b'x'; layout::ENTRY_BYTES_MAX + 1];
        assert_eq!(journal.append(&[long]).expect_err("too long").kind(), ErrorKind::InvalidInput);
        assert!(!journal.is_broken());
    }

    /// Every step fails, in three ways; after recovery everything is there once and in order.
    #[test]
    fn whatever_fails_nothing_is_lost_and_nothing_is_there_twice() {
        let origin = start();
        let run = |faults: &[Fault]| {
            let home = copy(origin.path());
            let (mut journal, _) = Journal::open(home.path(), START).expect("opened");
            hook::begin(faults);
            let mut failures = 0;
            for count in BATCHES {
                let batch = batch(journal.size(), count);
                while journal.append(batch).is_err() {
                    failures += 1;
                    assert!(journal.is_broken() && journal.append(batch).is_err(), "nothing before recovery");
                    while journal.recover().is_err() {
                        assert!(journal.append(batch).is_err(), "nothing before recovery");
                    }
                }
            }
            let steps = hook::end();
            let size = START + BATCHES.iter().sum::<u64>();
            assert_eq!(journal.size(), size);
            same(home.path(), size);
            drop(journal);
            let (_, recovered) = Journal::open(home.path(), size).expect("opened");
            assert_eq!(recovered, Recovered { size, torn_bytes: 0 });
            (steps, failures)
        };
        let (steps, failures) = run(&[]);
        assert!(steps >= 11 && failures == 0, "{steps}");
        for after in 0..steps {
            for share in [Share::Nothing, Share::Half, Share::All] {
                let fault = Fault { after, share, dead: false };
                assert_eq!(run(&[fault]).1, 1, "{fault:?}");
                // Recovery fails as well, at each of its steps.
                for next in 1..4 {
                    run(&[fault, Fault { after: after + next, share, dead: false }]);
                }
            }
        }
    }

    /// The process or the machine dies at every step: a start finds everything that was acknowledged, and of the rest a
    /// beginning.
    #[test]
    fn whenever_it_dies_a_start_finds_what_was_acknowledged() {
        let origin = start();
        let mut step = 0;
        loop {
            let mut whole = false;
            for (share, lost) in [Share::Nothing, Share::Half, Share::All]
                .into_iter()
                .flat_map(|share| [(share, 0), (share, 1), (share, 2)])
            {
                let home = copy(origin.path());
                let (mut journal, _) = Journal::open(home.path(), START).expect("opened");
                hook::begin(&[Fault { after: step, share, dead: true }]);
                let mut failed = false;
                for count in BATCHES {
                    failed = failed || journal.append(batch(journal.size(), count)).is_err();
                }
                let acknowledged = journal.size();
                drop(journal);
                // All that was not synced is lost, or nothing, or the one file and not the other.
                let mut place = 0;
                hook::lose_power(|_| {
                    place += 1;
                    lost == 1 || lost == 2 && place % 2 == 0
                });
                let (mut journal, recovered) = Journal::open(home.path(), acknowledged).expect("opened");
                assert!(recovered.size >= acknowledged, "{step} {share:?} {lost}");
                same(home.path(), recovered.size);
                journal.append(batch(recovered.size, 9)).expect("goes on");
                same(home.path(), recovered.size + 9);
                whole = !failed;
            }
            if whole {
                break;
            }
            step += 1;
        }
        assert!(step >= 11, "{step}");
    }

    /// A start fails at every step: the next one finds all.
    #[test]
    fn a_start_that_fails_harms_nothing() {
        let origin = start();
        for after in 0..4 {
            for share in [Share::Nothing, Share::Half, Share::All] {
                let home = copy(origin.path());
                hook::begin(&[Fault { after, share, dead: true }]);
                Journal::open(home.path(), START).expect_err("injected");
                hook::lose_power(|_| true);
                Journal::open(home.path(), START).expect("opened");
                same(home.path(), START);
            }
        }
    }

    #[test]
    fn a_torn_end_is_cut_and_said() {
        let origin = start();
        let path = Path::new("journal/0000000000");
        let length = fs::metadata(origin.path().join(path)).expect("a file").len();
        let (mut journal, _) = Journal::open(origin.path(), 0).expect("opened");
        journal.append(batch(START, 3)).expect("durable");
        drop(journal);
        let whole = fs::read(origin.path().join(path)).expect("a file");
        let first = length as usize;
        let frame = (whole.len() - first) / 3;
        for (why, bytes, size) in [
            ("cut in the first frame", whole[..first + 5].to_vec(), START),
            ("cut in the third frame", whole[..whole.len() - 1].to_vec(), START + 2),
            ("zeros behind", [&whole[..first], &[0; 9000]].concat(), START),
            // Pages of one write reach the disk in any order: what follows the hole is of the same batch.
            (
                "a hole in the batch",
                [&whole[..first + 2], &vec![0; frame], &whole[first + 2 + frame..]].concat(),
                START,
            ),
        ] {
            let home = copy(origin.path());
            fs::write(home.path().join(path), &bytes).expect("written");
            let (_, recovered) = Journal::open(home.path(), START).expect(why);
            assert_eq!(recovered.size, size, "{why}");
            assert!(recovered.torn_bytes > 0, "{why}");
            same(home.path(), size);
            let (_, recovered) = Journal::open(home.path(), START).expect(why);
            assert_eq!(recovered, Recovered { size, torn_bytes: 0 }, "{why}");
        }
    }

    #[test]
    fn damage_is_refused_with_file_and_place() {
        let origin = start();
        let (mut journal, _) = Journal::open(origin.path(), 0).expect("opened");
        for _ in 0..3 {
            journal.append(batch(journal.size(), SEGMENT)).expect("durable");
        }
        journal.append(batch(journal.size(), 1)).expect("durable");
        let size = journal.size();
        drop(journal);
        let refused = |why: &str, harm: &dyn Fn(&Path), expected: &[&str]| {
            let home = copy(origin.path());
            harm(home.path());
            let message = Journal::open(home.path(), size).expect_err(why).to_string();
            for part in expected.iter().chain(&["restore it"]) {
                assert!(message.contains(part), "{why}: {message}");
            }
            let again = Journal::open(home.path(), size).expect_err(why).to_string();
            assert_eq!(message, again, "nothing was changed");
        };
        let flip = |name: &'static str, place: usize| {
            move |home: &Path| {
                let path = home.join("journal").join(name);
                let mut bytes = fs::read(&path).expect("a file");
                bytes[place] ^= 4;
                fs::write(&path, bytes).expect("written");
            }
        };
        let remove = |name: &'static str| move |home: &Path| fs::remove_file(home.join(name)).expect("removed");
        refused("a flipped byte", &flip("0000000000", 20), &["0000000000: entry 1, at byte 15, is damaged"]);
        refused("in the last file", &flip("0000000003", 9), &["0000000003: entry 196608, at byte 0,"]);
        refused(
            "a missing file",
            &remove("journal/0000000001"),
            &["0000000001: the journal of this segment is missing"],
        );
        refused(
            "the last is missing",
            &remove("journal/0000000003"),
            &["0000000002: the journal ends with", "checkpoint says 262138"],
        );
        refused(
            "no file",
            &|home| fs::remove_dir_all(home.join("journal")).expect("removed"),
            &["there is no journal"],
        );
        refused(
            "another file's name",
            &|home| {
                fs::copy(home.join("journal/0000000003"), home.join("journal/0000000002")).map(drop).expect("copied")
            },
            &["0000000002: entry"],
        );
        refused(
            "one entry more",
            &|home| {
                let path = home.join("journal/0000000001");
                let mut bytes = fs::read(&path).expect("a file");
                layout::push_frame(&mut bytes, b"more", true).expect("fits");
                fs::write(path, bytes).expect("written");
            },
            &["0000000001: entry 131072", "more entries than a segment"],
        );
    }

    /// What a batch that failed has left is never read, also by one who follows the journal.
    #[test]
    fn who_follows_never_sees_what_was_cut() {
        let home = TempDir::new().expect("a directory");
        let (mut journal, _) = Journal::open(home.path(), 0).expect("fresh");
        let mut follower = Follower::new(home.path(), 0);
        let mut seen = Vec::new();
        let mut follow = |size: u64| {
            let mut keep = |entry: &[u8]| {
                seen.push(String::from_utf8(entry.to_vec()).expect("text"));
                Ok::<(), Damage>(())
            };
            follower.read(size, &mut keep).expect("readable");
            seen.clone()
        };
        journal.append(&["first"]).expect("durable");
        hook::begin(&[Fault { after: 1, share: Share::All, dead: false }]);
        journal.append(&["withdrawn, and longer"]).expect_err("the sync failed");
        assert_eq!(follow(1), ["first"]);
        journal.recover().expect("recovered");
        journal.append(&["second"]).expect("durable");
        hook::end();
        assert_eq!(follow(2), ["first", "second"]);
    }

    proptest! {
        /// Any bytes at the end of a journal are cut or refused; what is before is never touched.
        #[test]
        fn any_end_is_cut_or_refused(end in prop::collection::vec(any::<u8>(), 0..200)) {
            let home = TempDir::new().expect("a directory");
            let (mut journal, _) = Journal::open(home.path(), 0).expect("fresh");
            journal.append(batch(0, 5)).expect("durable");
            drop(journal);
            let path = home.path().join(layout::journal_path(0));
            let whole = fs::read(&path).expect("a file");
            fs::write(&path, [&whole[..], &end].concat()).expect("written");
            let (_, recovered) = Journal::open(home.path(), 5).expect("random bytes are no frame");
            prop_assert_eq!(recovered, Recovered { size: 5, torn_bytes: end.len() as u64 });
            prop_assert_eq!(fs::read(&path).expect("a file"), whole);
        }
    }
}
