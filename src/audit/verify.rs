//! Is this log the one that was signed, whole and unchanged? Everything is read and hashed again; nothing in the directory is
//! believed but the checkpoint's signature.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::event::Event;
use super::index::{self, Index};
use super::layout::{self, BUNDLE, SEGMENT};
use super::note::{Checkpoint, NOTE_BYTES_MAX, Note, Vkey};
use super::read::{self, Bundle, Fault, Tail};
use super::tree::{self, Hash, LEVELS, TILE_WIDTH, TileId};
use crate::clock::Timestamp;

/// What is to be verified, against what.
pub struct Question<'a> {
    pub directory: &'a Path,
    /// The log's key, from elsewhere than the log's directory.
    pub key: &'a Vkey,
    /// A checkpoint that somebody kept elsewhere: the log has to go on from there.
    pub since: Option<&'a [u8]>,
    /// Keys of witnesses that have to have cosigned the checkpoint.
    pub witnesses: &'a [Vkey],
}

/// What was found.
#[derive(Debug)]
pub struct Report {
    /// Whose signature is right: the newest one, or that of `since` where the newest is not signed.
    pub checkpoint: Option<Checkpoint>,
    /// Time of the newest entry under it.
    pub newest: Option<Timestamp>,
    /// Size of the checkpoint that was held elsewhere, where the log goes on from it.
    pub continues: Option<u64>,
    /// Who cosigned, and when, in Unix seconds.
    pub witnesses: Vec<(String, u64)>,
    /// Entries that were removed, as a `pruned` entry says; their hashes were verified.
    pub pruned: Vec<Range<u64>>,
    /// Of these, those whose `pruned` entry comes after the checkpoint.
    pub pruned_unsigned: Vec<Range<u64>>,
    /// Indexes that were compared with what the entries give.
    pub indexes: u64,
    /// Entries after the checkpoint: whole, but nobody has signed them yet.
    pub pending: u64,
    /// Bytes at the journal's end that are no whole entry: being written, or torn by a crash. Nobody had been told that they
    /// were kept.
    pub torn_bytes: u64,
    /// In the order of files and entries, as many as [`FAULTS_MAX`].
    pub faults: Vec<Fault>,
    /// Faults that are not listed.
    pub further_faults: usize,
}

pub const FAULTS_MAX: usize = 1_000;

/// Verifies with all cores. `progress` is told bundles done, and all of them.
pub fn verify(question: &Question, progress: &(dyn Fn(u64, u64) + Sync)) -> Report {
    let mut faults = Faults::default();
    let mut report = Report {
        checkpoint: None,
        newest: None,
        continues: None,
        witnesses: Vec::new(),
        pruned: Vec::new(),
        pruned_unsigned: Vec::new(),
        indexes: 0,
        pending: 0,
        torn_bytes: 0,
        faults: Vec::new(),
        further_faults: 0,
    };
    let newest = newest_checkpoint(question, &mut report.witnesses).map_err(|fault| faults.add(fault)).ok();
    let since = question.since.and_then(|bytes| {
        let since = Checkpoint::verified(bytes, question.key);
        since.map_err(|flaw| faults.add(Fault::new("the earlier checkpoint", flaw))).ok()
    });
    vkey_file(question).unwrap_or_else(|fault| faults.add(fault));
    report.checkpoint = newest.or_else(|| since.clone());
    if let Some(checkpoint) = report.checkpoint.clone() {
        let walk = Walk::new(question.directory, checkpoint.size, progress);
        let segments = walk.segments(&mut faults);
        walk.upper_levels(&segments, &mut faults);
        let mut hashes = walk.hashes();
        if let Err(fault) = is_root(&checkpoint, "the checkpoint", &mut hashes) {
            faults.add(fault);
        }
        if let Some(since) = since {
            match continues(&since, &checkpoint, &mut hashes) {
                Ok(()) => report.continues = Some(since.size),
                Err(fault) => faults.add(fault),
            }
        }
        // What is about to be removed is said in the log first, perhaps after the checkpoint.
        let said = walk.journals(&mut report, &mut faults);
        walk.absent(&segments, said, &mut report, &mut faults);
        report.newest = segments.iter().rev().find_map(|segment| segment.newest);
        report.indexes = segments.iter().filter(|segment| segment.index_compared).count() as u64;
    }
    faults.list.sort();
    (report.faults, report.further_faults) = (faults.list, faults.further);
    report
}

#[derive(Default)]
struct Faults {
    list: Vec<Fault>,
    further: usize,
}

impl Faults {
    fn add(&mut self, fault: Fault) {
        match self.list.len() < FAULTS_MAX {
            true => self.list.push(fault),
            false => self.further += 1,
        }
    }
}

fn newest_checkpoint(question: &Question, witnesses: &mut Vec<(String, u64)>) -> Result<Checkpoint, Fault> {
    let fault = |what: &str| Fault::new(layout::CHECKPOINT, what);
    let bytes = read::whole(question.directory, layout::CHECKPOINT, NOTE_BYTES_MAX)?;
    let bytes = bytes.ok_or_else(|| fault("is missing, so nothing here is signed"))?;
    let checkpoint = Checkpoint::verified(&bytes, question.key).map_err(|flaw| fault(flaw.0))?;
    let note = Note::parse(&bytes).map_err(|flaw| fault(flaw.0))?;
    for witness in question.witnesses {
        let verified = note.verified_by(witness).map_err(|flaw| fault(&format!("{}: {flaw}", witness.name())))?;
        witnesses.push((witness.name().to_owned(), verified.time.unwrap_or_default()));
    }
    Ok(checkpoint)
}

/// The key beside the log is for convenience, but it must not mislead anybody.
fn vkey_file(question: &Question) -> Result<(), Fault> {
    let bytes = read::whole(question.directory, layout::VKEY, NOTE_BYTES_MAX)?;
    match bytes {
        Some(bytes) if bytes.trim_ascii_end() != question.key.to_string().as_bytes() => {
            Err(Fault::new(layout::VKEY, "is another key than the one given"))
        }
        _ => Ok(()),
    }
}

fn is_root(
    checkpoint: &Checkpoint,
    name: &str,
    hashes: &mut impl FnMut(u8, u64) -> Result<Hash, Fault>,
) -> Result<(), Fault> {
    let root = tree::root_at(checkpoint.size, hashes);
    let root = root.map_err(|error| {
        Fault::new(name, format!("the root over its {} entries cannot be computed: {error}", checkpoint.size))
    })?;
    match root == checkpoint.root {
        true => Ok(()),
        false => {
            let (size, signed) = (checkpoint.size, checkpoint.root);
            let what = format!("its root over {size} entries is {signed}, but the hashes here give {root}");
            Err(Fault::new(name, what))
        }
    }
}

/// That the log, whose first entries have been verified, began as the earlier checkpoint says: its root is computed again.
fn continues(
    since: &Checkpoint,
    checkpoint: &Checkpoint,
    hashes: &mut impl FnMut(u8, u64) -> Result<Hash, Fault>,
) -> Result<(), Fault> {
    const NAME: &str = "the earlier checkpoint";
    if since.size > checkpoint.size {
        let (was, is) = (since.size, checkpoint.size);
        return Err(Fault::new(
            NAME,
            format!("it covers {was} entries, but this log has signed only {is}: it was cut"),
        ));
    }
    is_root(since, NAME, hashes)
}

/// What the work on one segment gave.
#[derive(Default)]
struct Segment {
    number: u64,
    /// The root of its level-1 tile, where that is full: what has to be in the tile above.
    root: Option<Hash>,
    /// Bundles that are not there, as ranges of entries.
    absent: Vec<Range<u64>>,
    /// There is a bundle that cannot be read.
    unread: bool,
    /// What its `pruned` entries say.
    pruned: Vec<Range<u64>>,
    newest: Option<Timestamp>,
    index_compared: bool,
    faults: Vec<Fault>,
}

const WAIT: Duration = Duration::from_millis(50);
const WAITS_MAX: usize = 20;

struct Walk<'a> {
    directory: &'a Path,
    size: u64,
    done: AtomicU64,
    /// How often all of the work together still waits.
    waits: AtomicUsize,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Walk<'a> {
    fn new(directory: &'a Path, size: u64, progress: &'a (dyn Fn(u64, u64) + Sync)) -> Walk<'a> {
        Walk { directory, size, done: AtomicU64::new(0), waits: AtomicUsize::new(WAITS_MAX), progress }
    }

    /// All segments under the checkpoint, each on any core, one at a time in memory.
    fn segments(&self, faults: &mut Faults) -> Vec<Segment> {
        let count = self.size.div_ceil(SEGMENT);
        let next = AtomicU64::new(0);
        let found = Mutex::new(Vec::new());
        let listed = AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return;
                }
                let mut segment = self.segment(number);
                // Of a log that is wrong throughout, enough is listed, and memory stays bounded.
                let before = listed.fetch_add(segment.faults.len(), Ordering::Relaxed);
                if before > FAULTS_MAX {
                    segment.faults.truncate(1);
                }
                found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(segment);
            }
        };
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(count.max(1) as usize);
        thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        let mut segments = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        segments.sort_by_key(|segment| segment.number);
        segments.iter_mut().flat_map(|segment| segment.faults.drain(..)).for_each(|fault| faults.add(fault));
        segments
    }

    fn segment(&self, number: u64) -> Segment {
        let mut segment = Segment { number, ..Segment::default() };
        let tile = TileId { level: 1, index: number };
        let upper = self.tile(tile, &mut segment.faults);
        let first = number * SEGMENT / BUNDLE;
        let bundles = self.size.div_ceil(BUNDLE).min(first + SEGMENT / BUNDLE);
        let mut builder = index::Builder::new(number);
        for bundle in first..bundles {
            let above = upper.as_ref().and_then(|upper| upper.get((bundle - first) as usize));
            self.bundle(bundle, above, &mut builder, &mut segment);
            let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
            (self.progress)(done, self.size.div_ceil(BUNDLE));
        }
        segment.newest = builder.newest();
        if (number + 1) * SEGMENT <= self.size && segment.absent.is_empty() && !segment.unread {
            self.index(number, builder, &mut segment);
        }
        segment.root = upper.filter(|upper| upper.len() == TILE_WIDTH).map(|upper| tree::root_of(&upper));
        segment
    }

    /// A tile that the tree of this size has; nothing where it has none, or where it is at fault.
    fn tile(&self, tile: TileId, faults: &mut Vec<Fault>) -> Option<Vec<Hash>> {
        let width = tile.width(self.size);
        if width == 0 {
            return None;
        }
        match self.read_tile(tile) {
            Ok(Some((_, hashes))) => Some(hashes),
            Ok(None) => {
                faults.push(Fault::new(self.tile_path(tile), "is missing"));
                None
            }
            Err(fault) => {
                faults.push(fault);
                None
            }
        }
    }

    fn read_tile(&self, tile: TileId) -> Result<Option<(String, Vec<Hash>)>, Fault> {
        let width = tile.width(self.size);
        self.patiently(width, || read::read_tile(self.directory, tile, width))
    }

    /// A gateway that starts writes its partial files anew: one that is missing now may be there in a moment.
    fn patiently<T>(&self, width: usize, read: impl Fn() -> Result<Option<T>, Fault>) -> Result<Option<T>, Fault> {
        loop {
            let found = read()?;
            let waits =
                || self.waits.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
            if found.is_some() || width == TILE_WIDTH || !waits() {
                return Ok(found);
            }
            thread::sleep(WAIT);
        }
    }

    fn tile_path(&self, tile: TileId) -> String {
        match tile.width(self.size) {
            TILE_WIDTH => layout::tile_path(tile),
            width => layout::partial_tile_path(tile, width),
        }
    }

    /// Its entries against its tile, and both against the hash `above` that stands for them once they are 256.
    fn bundle(&self, number: u64, above: Option<&Hash>, builder: &mut index::Builder, segment: &mut Segment) {
        let tile = TileId { level: 0, index: number };
        let width = tile.width(self.size);
        let range = number * BUNDLE..number * BUNDLE + width as u64;
        let path = match width {
            TILE_WIDTH => layout::bundle_path(number),
            _ => layout::partial_bundle_path(number, width),
        };
        let bundle = match self.read_bundle(number, width) {
            Ok(Some(bundle)) => bundle,
            Ok(None) => {
                segment.absent.push(range);
                self.tile_alone(tile, above, segment);
                return;
            }
            Err(fault) => {
                segment.faults.push(fault);
                segment.unread = true;
                self.tile_alone(tile, above, segment);
                return;
            }
        };
        let leaves: Vec<Hash> = bundle.entries().take(width).map(|(_, entry)| tree::leaf_hash(entry)).collect();
        for (_, entry) in bundle.entries().take(width) {
            builder.push(entry);
            segment.pruned.extend(pruned_by(entry));
        }
        let Some(hashes) = self.tile(tile, &mut segment.faults) else {
            if above.is_some_and(|above| *above != tree::root_of(&leaves)) {
                segment.faults.push(Fault::new(path, "its entries do not give the hash that the tree has for them"));
            }
            return;
        };
        let confirmed = |hashes: &[Hash]| above.is_some_and(|above| *above == tree::root_of(hashes));
        let different: Vec<u64> = range
            .clone()
            .zip(leaves.iter().zip(&hashes))
            .filter(|(_, (a, b))| a != b)
            .map(|(index, _)| index)
            .collect();
        match different.first() {
            None if above.is_some_and(|_| !confirmed(&hashes)) => {
                let what =
                    format!("its hash of {} is not that of the entries and hashes below", layout::tile_path(tile));
                let upper = TileId { level: 1, index: segment.number };
                segment.faults.push(Fault::new(self.tile_path(upper), what));
            }
            None => {}
            Some(first) if confirmed(&leaves) => {
                let what = "its hash here is not that of the entry, which the tile above confirms";
                segment.faults.push(Fault::of_entry(self.tile_path(tile), *first, what));
            }
            Some(first) => {
                let more = different.len() - 1;
                let what = format!("is not the entry that was logged, by its hash in {}", self.tile_path(tile));
                let what = if more > 0 { format!("{what}; so are {more} more of this file") } else { what };
                segment.faults.push(Fault::of_entry(path, *first, what));
                if above.is_some_and(|_| !confirmed(&hashes)) {
                    segment.faults.push(Fault::new(self.tile_path(tile), "is not confirmed by the tile above"));
                }
            }
        }
    }

    /// What can be said of hashes whose entries are not here. Those of removed entries may be gone as well: the tile above
    /// stands for them.
    fn tile_alone(&self, tile: TileId, above: Option<&Hash>, segment: &mut Segment) {
        match self.read_tile(tile) {
            Ok(Some((path, hashes))) if above.is_some_and(|above| *above != tree::root_of(&hashes)) => {
                segment.faults.push(Fault::new(path, "is not confirmed by the tile above"));
            }
            Ok(_) => {}
            Err(fault) => segment.faults.push(fault),
        }
    }

    /// The first `width` entries of a bundle, from whichever file is there: a checkpoint that comes meanwhile replaces some.
    fn read_bundle(&self, number: u64, width: usize) -> Result<Option<Bundle>, Fault> {
        self.patiently(width, || {
            if width < BUNDLE as usize
                && let Some(bundle) = read::partial_bundle(self.directory, number, width)?
            {
                return Ok(Some(bundle));
            }
            read::full_bundle(self.directory, number)
        })
    }

    fn index(&self, number: u64, builder: index::Builder, segment: &mut Segment) {
        let path = layout::index_path(number);
        let bytes = match read::whole(self.directory, &path, read::INDEX_BYTES_MAX) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(fault) => return segment.faults.push(fault),
        };
        segment.index_compared = true;
        if bytes == builder.finish() {
            return;
        }
        let what = match Index::from_bytes(number, bytes) {
            Err(error) => format!("{error}; make it again with `dwarpal audit index`"),
            Ok(_) => "is not the index of its entries; make it again with `dwarpal audit index`".to_owned(),
        };
        segment.faults.push(Fault::new(path, what));
    }

    /// The tiles above level 1, each hash against the tile that it stands for.
    fn upper_levels(&self, segments: &[Segment], faults: &mut Faults) {
        let mut below: Vec<Option<Hash>> = segments.iter().map(|segment| segment.root).collect();
        for level in 2..LEVELS {
            let hashes = self.size >> (8 * u32::from(level));
            let mut roots = Vec::new();
            for index in 0..hashes.div_ceil(TILE_WIDTH as u64) {
                let tile = TileId { level, index };
                let mut found = Vec::new();
                let hashes = self.tile(tile, &mut found);
                found.into_iter().for_each(|fault| faults.add(fault));
                let start = index as usize * TILE_WIDTH;
                for (place, hash) in hashes.iter().flatten().enumerate() {
                    let expected = below.get(start + place).copied().flatten();
                    if expected.is_some_and(|expected| expected != *hash) {
                        let child = TileId { level: level - 1, index: (start + place) as u64 };
                        let what = format!("its hash of {} is not that of the hashes there", layout::tile_path(child));
                        faults.add(Fault::new(self.tile_path(tile), what));
                    }
                }
                let full = hashes.filter(|hashes| hashes.len() == TILE_WIDTH);
                roots.push(full.map(|hashes| tree::root_of(&hashes)));
            }
            below = roots;
        }
    }

    /// What is not there has to have been removed by a rule, as the log says: under the checkpoint, or `after` it.
    fn absent(&self, segments: &[Segment], after: Vec<Range<u64>>, report: &mut Report, faults: &mut Faults) {
        let signed = joined(segments.iter().flat_map(|segment| segment.pruned.iter().cloned()).collect());
        let after = joined(after);
        let holds = |allowed: &[Range<u64>], range: &Range<u64>| {
            allowed.iter().any(|allowed| allowed.start <= range.start && range.end <= allowed.end)
        };
        for absent in segments.iter().flat_map(|segment| joined(segment.absent.clone())) {
            match absent {
                range if holds(&signed, &range) => report.pruned.push(range),
                range if holds(&after, &range) => report.pruned_unsigned.push(range),
                range => faults.add(self.missing(&range)),
            }
        }
        report.pruned = joined(std::mem::take(&mut report.pruned));
        report.pruned_unsigned = joined(std::mem::take(&mut report.pruned_unsigned));
    }

    fn missing(&self, range: &Range<u64>) -> Fault {
        let bundle = range.start / BUNDLE;
        let path = match (TileId { level: 0, index: bundle }).width(self.size) {
            TILE_WIDTH => layout::bundle_path(bundle),
            width => layout::partial_bundle_path(bundle, width),
        };
        let last = range.end - 1;
        let what = format!("is missing up to entry {last}, and no `pruned` entry of the log says that it was removed");
        Fault::of_entry(path, range.start, what)
    }

    /// Hashes of the tree from its tiles.
    fn hashes(&self) -> impl FnMut(u8, u64) -> Result<Hash, Fault> {
        let mut tiles: HashMap<TileId, Vec<Hash>> = HashMap::new();
        move |level, index| {
            let tile = TileId { level, index: index / TILE_WIDTH as u64 };
            let hashes = match tiles.entry(tile) {
                Entry::Occupied(read) => read.into_mut(),
                Entry::Vacant(unread) => {
                    let read = self.read_tile(tile)?;
                    unread.insert(read.ok_or_else(|| Fault::new(self.tile_path(tile), "is missing"))?.1)
                }
            };
            let hash = hashes.get((index % TILE_WIDTH as u64) as usize);
            hash.copied().ok_or_else(|| Fault::new(self.tile_path(tile), "is too short"))
        }
    }

    /// The journals, against the tiles as far as the checkpoint goes.
    /// What entries after that say was removed.
    fn journals(&self, report: &mut Report, faults: &mut Faults) -> Vec<Range<u64>> {
        let mut pruned = Vec::new();
        if let Err(fault) = self.read_journals(report, &mut pruned, faults) {
            faults.add(fault);
        }
        pruned
    }

    fn read_journals(
        &self,
        report: &mut Report,
        pruned: &mut Vec<Range<u64>>,
        faults: &mut Faults,
    ) -> Result<(), Fault> {
        if !self.directory.join(layout::JOURNAL).exists() {
            return Ok(());
        }
        let journals = read::journals(self.directory)?;
        let Some(&last) = journals.last() else {
            return match self.size {
                0 => Ok(()),
                _ => Err(Fault::new(layout::JOURNAL, "has no file: entries after the checkpoint may be lost")),
            };
        };
        if self.size > 0 && last < (self.size - 1) / SEGMENT {
            let path = layout::journal_path((self.size - 1) / SEGMENT);
            return Err(Fault::new(path, "is missing: entries after the checkpoint may be lost"));
        }
        for (expected, segment) in (journals[0]..).zip(&journals) {
            if *segment != expected {
                return Err(Fault::new(layout::journal_path(expected), "is missing"));
            }
        }
        for segment in journals {
            let path = layout::journal_path(segment);
            // Sealed meanwhile, where it is gone.
            let Some(mut tail) = Tail::open(self.directory, segment)? else { continue };
            tail.grow()?;
            for first in (0..tail.entries()).step_by(BUNDLE as usize) {
                match tail.bundle(segment * SEGMENT + first) {
                    Ok(Some(bundle)) => {
                        self.journalled(&path, &bundle, faults);
                        let after = bundle.entries().filter(|(index, _)| *index >= self.size);
                        pruned.extend(after.filter_map(|(_, entry)| pruned_by(entry)));
                    }
                    Ok(None) => break,
                    Err(fault) => faults.add(fault),
                }
            }
            let end = segment * SEGMENT + tail.entries();
            report.pending = report.pending.max(end.saturating_sub(self.size));
            let short = end < self.size.min((segment + 1) * SEGMENT) || (segment < last && tail.entries() < SEGMENT);
            match tail.stopped {
                Some(stopped)
                    if short || segment < last || tail.entries() == SEGMENT || tail.is_followed_by_a_batch()? =>
                {
                    let what = format!("cannot be read, at byte {} of the file: {}", tail.end(), stopped.flaw);
                    faults.add(Fault::of_entry(path, end, what));
                }
                Some(stopped) => report.torn_bytes = stopped.bytes,
                None if short => faults.add(Fault::of_entry(path, end, "is missing: the file ends before it")),
                None => {}
            }
        }
        Ok(())
    }

    fn journalled(&self, path: &str, bundle: &Bundle, faults: &mut Faults) {
        let tile = TileId { level: 0, index: bundle.first / BUNDLE };
        let width = tile.width(self.size);
        if width == 0 {
            return;
        }
        // Where the tile is missing or damaged, that has been said.
        let Ok(Some((tile_path, hashes))) = self.read_tile(tile) else { return };
        for ((index, entry), hash) in bundle.entries().zip(&hashes) {
            if tree::leaf_hash(entry) != *hash {
                let what = format!("is not the entry that was logged, by its hash in {tile_path}");
                return faults.add(Fault::of_entry(path, index, what));
            }
        }
    }
}

/// What an entry says was removed.
fn pruned_by(entry: &[u8]) -> Option<Range<u64>> {
    const START: &[u8] = br#"{"event":"pruned""#;
    if !entry.starts_with(START) {
        return None;
    }
    match Event::from_json(entry) {
        Ok(Event::Pruned(pruned)) => Some(pruned.from..pruned.until).filter(|range| !range.is_empty()),
        _ => None,
    }
}

/// The same ranges in order, with those that touch made one.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
