//! How do entries come to the disk, and who waits for that? A bounded queue, and the thread that empties it.
//!
//! Workers put entries in, the writer takes all there are and appends them with one write and one flush. So the more lookups
//! wait, the more share the disk's time. Whoever has to wait is told when its entry is durable, or that it is not.

use std::collections::{HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::event::{self, Event, VERSION};
use super::journal::Journal;
use super::layout::{ENTRY_BYTES_MAX, SEGMENT};
use crate::clock::{Clock, Timestamp};

/// What an entry is to those who wait, and how much of the queue and of the disk it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Without it no lookup is answered: it may have all the room there is.
    Disclosure,
    /// What the gateway and its operators do.
    Other,
    /// How an answer ended.
    Closed,
    /// A flood of refusals must leave room for the others.
    Denied,
}

impl Class {
    const ALL: [Class; 4] = [Class::Disclosure, Class::Other, Class::Closed, Class::Denied];

    /// For metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Disclosure => "disclosure",
            Class::Other => "other",
            Class::Closed => "closed",
            Class::Denied => "denied",
        }
    }
}

/// The entry was not taken, or did not get to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// A certificate that requests name; its own entry comes before theirs.
#[derive(Debug)]
pub struct Certified {
    pub fingerprint: [u8; 32],
    pub entry: Vec<u8>,
}

pub struct Queue {
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    filled: Condvar,
    /// Entries that are on the disk.
    durable: AtomicU64,
    /// Too little room on the disk for refusals.
    disk_short: AtomicBool,
    failures: AtomicU64,
    pub clock: Clock,
}

#[derive(Default)]
struct Waiting {
    entries: VecDeque<Entry>,
    bytes: usize,
    /// How many wait for the disk, and how many did for the batch before: they are likely to come again, and may share a flush.
    hurry: usize,
    hurried: usize,
    /// Since when the writer has been at work on what it took.
    writing_since: Option<Instant>,
    state: State,
    lost: Lost,
    /// Since the start, by class.
    lost_ever: [u64; 4],
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// Nothing is taken before the log is open.
    #[default]
    Broken,
    Open,
    /// The gateway stops; what was taken is still written.
    Closed,
}

struct Entry {
    json: Vec<u8>,
    class: Class,
    certified: Option<Arc<Certified>>,
    done: Option<oneshot::Sender<()>>,
}

/// What is missing in the log since it was last told so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    since: Timestamp,
    cause: &'static str,
    pub lookups_refused: u64,
    pub disclosures: u64,
    pub denied: u64,
    pub closed: u64,
    pub others: u64,
}

impl Lost {
    fn is_empty(&self) -> bool {
        self.lookups_refused + self.disclosures + self.denied + self.closed + self.others == 0
    }

    /// `was_answered`: nobody waited for the entry, so that its answer has left.
    fn count(&mut self, class: Class, was_answered: bool, cause: &'static str, now: Timestamp) {
        if self.is_empty() {
            (self.since, self.cause) = (now, cause);
        }
        match class {
            Class::Disclosure if was_answered => self.disclosures += 1,
            Class::Disclosure => self.lookups_refused += 1,
            Class::Denied => self.denied += 1,
            Class::Closed => self.closed += 1,
            Class::Other => self.others += 1,
        }
    }
}

impl Waiting {
    /// How many are worth waiting for. One who came alone is likely to be alone again; of several there may be more, since
    /// those who came during the last flush are waiting already.
    fn expected(&self) -> usize {
        if self.hurried > 1 { 2 * self.hurried } else { 1 }
    }

    fn disk_hangs(&self) -> bool {
        self.writing_since.is_some_and(|since| since.elapsed() > WRITE_TIMEOUT)
    }

    /// Who handed the entry in is told that it was not taken.
    fn refuse(&mut self, class: Class, cause: &'static str, now: Timestamp) {
        self.lost.count(class, false, cause, now);
        self.lost_ever[class as usize] += 1;
    }

    /// An entry that was taken does not come to the disk.
    fn lose(&mut self, entry: &Entry, cause: &'static str, now: Timestamp) {
        self.lost.count(entry.class, entry.done.is_none(), cause, now);
        self.lost_ever[entry.class as usize] += 1;
    }
}

/// Without anybody waiting, so many bytes are reason enough to write.
const BATCH_BYTES: usize = 1 << 20;
/// How often the writer looks after what nobody asks for: a gap to tell of, the room on the disk, a broken log.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long those who wait give others to come along, where others did the time before. A flush of the disk takes about as long,
/// and a good part of that is a processor's: one for each of them would cost more than it is worth.
const GATHER: Duration = Duration::from_millis(1);
/// A disk that takes longer for a batch does not answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// What an entry takes beside its bytes.
const ENTRY_OVERHEAD: usize = 128;

impl Queue {
    pub fn new(bytes_max: usize, clock: Clock) -> Queue {
        let (waiting, filled) = (Mutex::default(), Condvar::new());
        let (durable, failures) = (AtomicU64::new(0), AtomicU64::new(0));
        Queue { bytes_max, waiting, filled, durable, disk_short: AtomicBool::new(false), failures, clock }
    }

    /// Takes an entry that nobody waits for. What is refused is counted, and told in a `gap` once there is room.
    pub fn put(&self, class: Class, certified: Option<Arc<Certified>>, event: &Event) -> Result<(), Unavailable> {
        self.take_in(Entry { json: event.to_json(), class, certified, done: None })
    }

    /// Takes an entry and comes back when it is on the disk.
    pub async fn keep(
        &self,
        class: Class,
        certified: Option<Arc<Certified>>,
        event: &Event<'_>,
    ) -> Result<(), Unavailable> {
        let (done, kept) = oneshot::channel();
        self.take_in(Entry { json: event.to_json(), class, certified, done: Some(done) })?;
        kept.await.map_err(|_| Unavailable)
    }

    /// The same for a thread that may stand still.
    pub fn keep_blocking(&self, class: Class, event: &Event) -> Result<(), Unavailable> {
        let (done, kept) = oneshot::channel();
        self.take_in(Entry { json: event.to_json(), class, certified: None, done: Some(done) })?;
        kept.blocking_recv().map_err(|_| Unavailable)
    }

    fn take_in(&self, entry: Entry) -> Result<(), Unavailable> {
        let size = entry.json.len() + ENTRY_OVERHEAD;
        let room = match entry.class {
            Class::Disclosure => self.bytes_max,
            Class::Other | Class::Closed => self.bytes_max / 4 * 3,
            Class::Denied => self.bytes_max / 2,
        };
        let mut waiting = self.lock();
        let cause = match waiting.state {
            _ if entry.json.len() > ENTRY_BYTES_MAX => Some("an entry was too long"),
            State::Broken => Some("the log cannot be written"),
            State::Closed => Some("the gateway stops"),
            State::Open if entry.class == Class::Disclosure && waiting.disk_hangs() => Some("the disk does not answer"),
            State::Open if waiting.bytes + size > room => Some("the queue is full"),
            State::Open if entry.class == Class::Denied && self.disk_short.load(Ordering::Relaxed) => Some(DISK_SHORT),
            State::Open => None,
        };
        if let Some(cause) = cause {
            waiting.refuse(entry.class, cause, self.clock.now());
            return Err(Unavailable);
        }
        let hurries = entry.done.is_some();
        waiting.hurry += usize::from(hurries);
        // The writer sleeps until there is anything, then until somebody waits, and then for those who are expected.
        let wakes = waiting.entries.is_empty()
            || hurries && (waiting.hurry == 1 || waiting.hurry == waiting.expected())
            || waiting.bytes < BATCH_BYTES && waiting.bytes + size >= BATCH_BYTES;
        waiting.bytes += size;
        waiting.entries.push_back(entry);
        drop(waiting);
        if wakes {
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Entries on the disk.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether no lookup can be answered now, for want of a record: the disk refuses it, or does not come back.
    pub fn is_broken(&self) -> bool {
        let waiting = self.lock();
        waiting.state == State::Broken || waiting.disk_hangs()
    }

    fn is_closed(&self) -> bool {
        self.lock().state == State::Closed
    }

    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Writes that failed since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// What was lost and not told of yet.
    pub fn lost(&self) -> Lost {
        self.lock().lost
    }

    /// What was lost since the start.
    pub fn lost_ever(&self) -> impl Iterator<Item = (Class, u64)> {
        let lost = self.lock().lost_ever;
        Class::ALL.into_iter().map(move |class| (class, lost[class as usize]))
    }

    /// Takes nothing more. The writer ends when all is written.
    pub fn close(&self) {
        self.lock().state = State::Closed;
        self.filled.notify_one();
    }

    /// The log is open, with so many entries.
    pub fn open(&self, size: u64) {
        self.durable.store(size, Ordering::Release);
        let mut waiting = self.lock();
        if waiting.state == State::Broken {
            waiting.state = State::Open;
        }
    }

    /// From now on nothing is taken; what waited is lost, and whoever waited for it is told.
    fn fail(&self, entries: Vec<Entry>) {
        let now = self.clock.now();
        let mut waiting = self.lock();
        let more = std::mem::take(&mut waiting.entries);
        for entry in entries.into_iter().chain(more) {
            waiting.lose(&entry, "the log could not be written", now);
        }
        (waiting.bytes, waiting.hurry, waiting.hurried) = (0, 0, 0);
        if waiting.state == State::Open {
            waiting.state = State::Broken;
        }
    }

    /// Waits for a batch: for the first entry, then for the interval or somebody in a hurry. Empty where there is something
    /// else to look after; `None` at the end.
    fn take(&self, interval: Duration) -> Option<Vec<Entry>> {
        let mut waiting = self.lock();
        waiting.writing_since = None;
        if waiting.entries.is_empty() && waiting.state != State::Closed {
            waiting = self.filled.wait_timeout(waiting, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        let begun = Instant::now();
        while !waiting.entries.is_empty() && waiting.bytes < BATCH_BYTES && waiting.state == State::Open {
            let patience = match waiting.hurry {
                0 => interval,
                few if few < waiting.expected() => GATHER,
                _ => break,
            };
            let Some(left) = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else { break };
            waiting = self.filled.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if waiting.entries.is_empty() && waiting.state == State::Closed {
            return None;
        }
        (waiting.hurried, waiting.hurry, waiting.bytes) = (waiting.hurry, 0, 0);
        waiting.writing_since = Some(Instant::now());
        Some(std::mem::take(&mut waiting.entries).into())
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock, and every write leaves whole values behind.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const DISK_SHORT: &str = "too little room on the disk for refusals";

/// The writer: the only one that appends.
pub struct Writer<'q> {
    pub queue: &'q Queue,
    pub directory: &'q Path,
    pub interval: Duration,
    /// Free room that is kept for lookups.
    pub reserve_bytes: u64,
    /// Told after each batch how long it took, and what it held.
    pub written: &'q dyn Fn(Duration, u64),
}

impl Writer<'_> {
    /// Writes until the queue is closed and empty.
    pub fn run(&self, mut journal: Journal) {
        let _end = End(self.queue);
        let mut segment = Segment::default();
        let mut told_of_gap = None::<Instant>;
        while let Some(batch) = self.queue.take(self.interval) {
            if journal.is_broken() && !self.mend(&mut journal) {
                self.queue.fail(batch);
                continue;
            }
            let batch = self.leave_the_reserve(batch);
            // With room for lookups only, the sum of it is told afterwards; at the end there is no afterwards.
            let may_tell = !self.queue.disk_short.load(Ordering::Relaxed)
                && told_of_gap.is_none_or(|told| told.elapsed() >= LOOK_EVERY);
            let tells = may_tell || self.queue.is_closed();
            let gap = tells.then(|| self.gap()).flatten();
            let entries = segment.lay_out(journal.size(), &batch, gap.as_ref().map(|(json, _)| json.as_slice()));
            if entries.is_empty() {
                continue;
            }
            let begun = Instant::now();
            if let Err(error) = journal.append(&entries) {
                let directory = self.directory.display();
                tracing::error!(%error, %directory, "the audit cannot be written: no lookup is answered until it can");
                self.queue.failures.fetch_add(1, Ordering::Relaxed);
                segment = Segment::default();
                self.queue.fail(batch);
                continue;
            }
            self.queue.durable.store(journal.size(), Ordering::Release);
            (self.written)(begun.elapsed(), entries.len() as u64);
            if let Some((_, told)) = gap {
                told_of_gap = Some(begun);
                self.queue.told(told);
            }
            for done in batch.into_iter().filter_map(|entry| entry.done) {
                // Who asked may have gone away meanwhile.
                let _ = done.send(());
            }
        }
    }

    /// Goes back to what was acknowledged, and sees whether the disk takes an entry: the one that tells of the gap.
    fn mend(&self, journal: &mut Journal) -> bool {
        let mended = journal.recover().map_err(|damage| damage.to_string()).and_then(|_| {
            let Some((gap, told)) = self.gap() else { return Ok(()) };
            journal.append(&[gap]).map_err(|error| error.to_string())?;
            self.queue.told(told);
            Ok(())
        });
        if let Err(error) = mended {
            tracing::debug!(error, "the audit cannot be written yet");
            return false;
        }
        tracing::info!(size = journal.size(), "the audit can be written again");
        self.queue.open(journal.size());
        true
    }

    /// Takes refusals out of a batch when the disk has room for lookups only.
    fn leave_the_reserve(&self, batch: Vec<Entry>) -> Vec<Entry> {
        let short = free_bytes(self.directory).is_some_and(|free| free < self.reserve_bytes);
        if self.queue.disk_short.swap(short, Ordering::Relaxed) != short {
            let (reserve_bytes, directory) = (self.reserve_bytes, self.directory.display().to_string());
            if short {
                tracing::error!(
                    reserve_bytes,
                    directory,
                    "the audit's disk is nearly full: refusals are counted, not recorded"
                );
            } else {
                tracing::info!(reserve_bytes, directory, "the audit's disk has room again");
            }
        }
        if !short {
            return batch;
        }
        let now = self.queue.clock.now();
        let (denied, rest) = batch.into_iter().partition::<Vec<_>, _>(|entry| entry.class == Class::Denied);
        let mut waiting = self.queue.lock();
        denied.iter().for_each(|entry| waiting.lose(entry, DISK_SHORT, now));
        rest
    }

    /// The entry that tells of what is missing, if anything is.
    fn gap(&self) -> Option<(Vec<u8>, Lost)> {
        let lost = self.queue.lost();
        if lost.is_empty() {
            return None;
        }
        let Lost { since, cause, lookups_refused, disclosures, denied, closed, others } = lost;
        let (time, cause) = (self.queue.clock.now(), cause.into());
        let gap = event::Gap { v: VERSION, time, since, cause, lookups_refused, disclosures, denied, closed, others };
        Some((Event::Gap(gap).to_json(), lost))
    }
}

impl Queue {
    /// So much of what was lost is told of.
    fn told(&self, told: Lost) {
        let mut waiting = self.lock();
        let lost = &mut waiting.lost;
        lost.lookups_refused -= told.lookups_refused;
        lost.disclosures -= told.disclosures;
        lost.denied -= told.denied;
        lost.closed -= told.closed;
        lost.others -= told.others;
        lost.since = self.clock.now();
    }
}

/// Without its writer a queue takes nothing: not even a panic leaves anybody waiting.
struct End<'q>(&'q Queue);

impl Drop for End<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(Vec::new());
        }
    }
}

/// Certificates that the segment which is written to tells of already.
#[derive(Default)]
struct Segment {
    number: u64,
    certified: HashSet<[u8; 32]>,
}

impl Segment {
    /// The entries of a batch in their order, each certificate before the first request of its segment.
    fn lay_out<'b>(&mut self, size: u64, batch: &'b [Entry], gap: Option<&'b [u8]>) -> Vec<&'b [u8]> {
        let mut entries: Vec<&[u8]> = gap.into_iter().collect();
        for entry in batch {
            if let Some(certified) = &entry.certified {
                // Twice where its own entry is the last of a segment.
                while self.is_new(size + entries.len() as u64, certified.fingerprint) {
                    entries.push(&certified.entry);
                }
            }
            entries.push(&entry.json);
        }
        entries
    }

    fn is_new(&mut self, index: u64, fingerprint: [u8; 32]) -> bool {
        let number = index / SEGMENT;
        if number != self.number {
            self.number = number;
            self.certified.clear();
        }
        self.certified.insert(fingerprint)
    }
}

/// Room that the file system has left for this user; `None` where it does not say.
fn free_bytes(directory: &Path) -> Option<u64> {
    let room = rustix::fs::statvfs(directory).ok()?;
    Some(room.f_bavail.saturating_mul(room.f_frsize))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::disk::hook::{self, Fault, Share};
    use super::super::journal::Follower;
    use super::*;

    fn stop() -> Event<'static> {
        Event::Stop(event::Stop { v: VERSION, time: Timestamp::default() })
    }

    /// Runs the writer until the queue is empty, which was closed before, and gives what is on the disk then.
    fn written(queue: &Queue, home: &TempDir) -> Vec<String> {
        let (journal, _) = Journal::open(home.path(), 0).expect("a journal");
        let (interval, written) = (Duration::ZERO, |_: Duration, _: u64| {});
        Writer { queue, directory: home.path(), interval, reserve_bytes: 0, written: &written }.run(journal);
        let mut entries = Vec::new();
        let mut keep = |entry: &[u8]| {
            entries.push(String::from_utf8(entry.to_vec()).expect("text"));
            Ok::<(), super::super::journal::Damage>(())
        };
        Follower::new(home.path(), 0).read(queue.durable(), &mut keep).expect("readable");
        entries
    }

    fn open(bytes_max: usize) -> (Queue, TempDir) {
        let queue = Queue::new(bytes_max, Clock::system());
        queue.open(0);
        (queue, TempDir::new().expect("a directory"))
    }

    #[test]
    fn what_was_lost_is_told_at_the_end_too() {
        let (queue, home) = open(1 << 10);
        let taken = (0..100).filter(|_| queue.put(Class::Denied, None, &stop()).is_ok()).count() as u64;
        assert!((1..100).contains(&taken));
        queue.close();
        let entries = written(&queue, &home);
        assert_eq!(entries.len() as u64, taken + 1);
        let gap = Event::from_json(entries[0].as_bytes()).expect("an entry");
        assert!(matches!(gap, Event::Gap(gap) if gap.denied == 100 - taken), "{entries:?}");
        assert!(queue.lost().is_empty());
    }

    #[test]
    fn an_answer_that_left_without_its_record_is_not_told_as_refused() {
        let (queue, home) = open(1 << 20);
        queue.put(Class::Disclosure, None, &stop()).expect("taken");
        let event = stop();
        let mut waiting = std::pin::pin!(queue.keep(Class::Disclosure, None, &event));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        queue.close();
        hook::begin(&[Fault { after: 2, share: Share::Nothing, dead: false }]);
        assert!(written(&queue, &home).is_empty());
        hook::end();
        assert_eq!(waiting.as_mut().poll(&mut context), std::task::Poll::Ready(Err(Unavailable)));
        let Lost { lookups_refused, disclosures, .. } = queue.lost();
        assert_eq!((lookups_refused, disclosures), (1, 1));
    }
}
