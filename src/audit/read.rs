//! What does the log say, as it lies in a directory, also while a gateway writes to it? Entries, the hashes of the tree, and
//! who is in it. Nothing here is believed or checked against the checkpoint: that is `verify`.
//!
//! An entry is in a full bundle once that is published, in the journal until its segment is sealed, and in a partial bundle
//! as of the last checkpoint. Files come before those that they stand in for go, so a file that has vanished has a successor.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::index::{Header, Index, IndexError, Key};
use super::layout::{self, BUNDLE, BUNDLE_BYTES_MAX, Flaw, SEGMENT};
use super::note::{Checkpoint, NOTE_BYTES_MAX, Note};
use super::tree::{self, Hash, TILE_WIDTH, TileId};
use super::{index, journal};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// From the log's directory.
    pub file: String,
    pub entry: Option<u64>,
    pub what: String,
}

impl Fault {
    pub fn new(file: impl Into<String>, what: impl fmt::Display) -> Fault {
        Fault { file: file.into(), entry: None, what: what.to_string() }
    }

    pub fn of_entry(file: impl Into<String>, entry: u64, what: impl fmt::Display) -> Fault {
        Fault { file: file.into(), entry: Some(entry), what: what.to_string() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry {
            Some(entry) => write!(f, "{}: entry {entry}: {}", self.file, self.what),
            None => write!(f, "{}: {}", self.file, self.what),
        }
    }
}

impl std::error::Error for Fault {}

/// Neighbouring entries, at most a bundle of them.
#[derive(Debug)]
pub struct Bundle {
    pub first: u64,
    bytes: Vec<u8>,
    entries: Vec<Range<usize>>,
}

impl Bundle {
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = (u64, &[u8])> + ExactSizeIterator {
        let entry = |(place, range): (usize, &Range<usize>)| (self.first + place as u64, &self.bytes[range.clone()]);
        self.entries.iter().enumerate().map(entry)
    }

    pub fn entry(&self, index: u64) -> Option<&[u8]> {
        let place = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.entries.get(place).map(|range| &self.bytes[range.clone()])
    }

    fn of_bundle_file(number: u64, bytes: Vec<u8>, count: usize) -> Result<Bundle, Flaw> {
        let start = bytes.as_ptr() as usize;
        let entries = layout::decode_bundle(&bytes, count)?;
        let ranges = entries.iter().map(|entry| {
            let at = entry.as_ptr() as usize - start;
            at..at + entry.len()
        });
        let entries = ranges.collect();
        Ok(Bundle { first: number * BUNDLE, bytes, entries })
    }
}

/// A log's directory, opened to read.
pub struct Log {
    directory: PathBuf,
    /// The journal that was read last.
    tail: Option<Tail>,
    /// Full tiles that were read, as many as [`TILES_KEPT`].
    tiles: HashMap<TileId, Vec<Hash>>,
    /// Indexes of segments that have none of their own, with as many entries as they had.
    built: BTreeMap<u64, (u64, Vec<u8>)>,
    /// Indexes that could not be used.
    unusable: Vec<Fault>,
}

/// 8 KiB each.
const TILES_KEPT: usize = 256;

/// More than two tables of 65,536 records and a header have.
pub(super) const INDEX_BYTES_MAX: usize = 16 << 20;

/// Up to 2 MB each.
const BUILT_KEPT: usize = 64;

impl Log {
    /// Fails where the directory holds no log.
    pub fn open(directory: &Path) -> Result<Log, Fault> {
        let holds = |name: &str| directory.join(name).exists();
        if !holds(layout::CHECKPOINT) && !holds(layout::JOURNAL) {
            let what = "is no log: it has neither a checkpoint nor a journal";
            return Err(Fault::new(directory.display().to_string(), what));
        }
        Ok(Log {
            directory: directory.into(),
            tail: None,
            tiles: HashMap::new(),
            built: BTreeMap::new(),
            unusable: Vec::new(),
        })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The newest checkpoint, as it was published. Its signature is not checked.
    pub fn checkpoint(&self) -> Result<Option<(Checkpoint, Vec<u8>)>, Fault> {
        let Some(bytes) = whole(&self.directory, layout::CHECKPOINT, NOTE_BYTES_MAX)? else { return Ok(None) };
        let flawed = |flaw: super::note::Flaw| Fault::new(layout::CHECKPOINT, flaw);
        let checkpoint = Checkpoint::parse(Note::parse(&bytes).map_err(flawed)?.text()).map_err(flawed)?;
        Ok(Some((checkpoint, bytes)))
    }

    /// Entries, those included that no checkpoint covers yet.
    pub fn size(&mut self) -> Result<u64, Fault> {
        let signed = self.checkpoint()?.map_or(0, |(checkpoint, _)| checkpoint.size);
        // Twice, since a segment may be sealed and its journal removed in between.
        for _ in 0..2 {
            let Some(last) = journals(&self.directory)?.last().copied() else { break };
            // A gateway that starts writes the last journal anew.
            if self.tail.as_ref().is_some_and(|tail| !tail.is_in(&self.directory)) {
                self.tail = None;
            }
            if let Some(tail) = self.tail(last)? {
                tail.grow()?;
                return Ok(signed.max(last * SEGMENT + tail.entries()));
            }
        }
        Ok(signed)
    }

    /// The entries of a bundle, as many as there are; `None` where there are none: never written, or removed.
    pub fn bundle(&mut self, number: u64) -> Result<Option<Bundle>, Fault> {
        for _ in 0..2 {
            if let Some(bundle) = full_bundle(&self.directory, number)? {
                return Ok(Some(bundle));
            }
            if let Some(bundle) = self.journalled(number)? {
                return Ok(Some(bundle));
            }
        }
        // A copy of what is published has no journal.
        let size = self.checkpoint()?.map_or(0, |(checkpoint, _)| checkpoint.size);
        let width = size.saturating_sub(number * BUNDLE).min(BUNDLE) as usize;
        match width {
            0 => Ok(None),
            _ => partial_bundle(&self.directory, number, width),
        }
    }

    pub fn entry(&mut self, index: u64) -> Result<Option<Vec<u8>>, Fault> {
        let bundle = self.bundle(index / BUNDLE)?;
        Ok(bundle.and_then(|bundle| bundle.entry(index).map(<[u8]>::to_vec)))
    }

    /// Entries of `range` in order, until there are no more or `each` says to stop. Those that were removed are passed over.
    pub fn each<E: From<Fault>>(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = range.end.min(self.size()?);
        for number in range.start / BUNDLE..end.div_ceil(BUNDLE) {
            let Some(bundle) = self.bundle(number)? else { continue };
            for (index, entry) in bundle.entries().filter(|(index, _)| range.contains(index)) {
                each(index, entry)?;
            }
        }
        Ok(())
    }

    /// What is in a segment; `None` where none of its entries are here.
    pub fn header(&mut self, segment: u64) -> Result<Option<Header>, Fault> {
        Ok(self.index(segment)?.map(|index| index.header().clone()))
    }

    /// Entries with this key in some segments, in order.
    pub fn find(&mut self, key: Key, segments: Range<u64>) -> Result<Vec<(u64, Vec<u8>)>, Fault> {
        let mut found = Vec::new();
        for segment in segments {
            found.extend(self.find_in(key, segment)?);
        }
        Ok(found)
    }

    /// Entries of one segment with this key, in order.
    pub fn find_in(&mut self, key: Key, segment: u64) -> Result<Vec<(u64, Vec<u8>)>, Fault> {
        let Some(index) = self.index(segment)? else { return Ok(Vec::new()) };
        let places = match index.candidates(key) {
            Ok(places) => places,
            Err(error) => {
                self.unusable.push(Fault::new(layout::index_path(segment), error));
                let Some(index) = self.build(segment)? else { return Ok(Vec::new()) };
                let asked = index.candidates(key);
                asked.map_err(|error| Fault::new(layout::index_path(segment), error))?
            }
        };
        let mut found = Vec::new();
        let mut bundle: Option<Bundle> = None;
        for place in places {
            let at = segment * SEGMENT + u64::from(place);
            if bundle.as_ref().is_none_or(|bundle| bundle.first != at / BUNDLE * BUNDLE) {
                bundle = self.bundle(at / BUNDLE)?;
            }
            match bundle.as_ref().and_then(|bundle| bundle.entry(at)) {
                Some(entry) if key.is_in(entry) => found.push((at, entry.to_vec())),
                Some(_) => {}
                None => {
                    let what = "the index has it, but its bundle is missing";
                    return Err(Fault::of_entry(layout::bundle_path(at / BUNDLE), at, what));
                }
            }
        }
        Ok(found)
    }

    /// Indexes that were damaged, so that entries were read in their place.
    pub fn unusable_indexes(&self) -> &[Fault] {
        &self.unusable
    }

    /// The index of a segment: its file, or what its entries give.
    fn index(&mut self, segment: u64) -> Result<Option<Index>, Fault> {
        let path = layout::index_path(segment);
        let usable = !self.unusable.iter().any(|fault| fault.file == path);
        if usable && let Some(file) = open(&self.directory, &path)? {
            match Index::open(segment, file) {
                Ok(index) => return Ok(Some(index)),
                Err(error) => self.unusable.push(Fault::new(path, error)),
            }
        }
        self.build(segment)
    }

    fn build(&mut self, segment: u64) -> Result<Option<Index>, Fault> {
        let first = segment * SEGMENT;
        let size = self.size()?.saturating_sub(first).min(SEGMENT);
        if let Some((entries, bytes)) = self.built.get(&segment)
            && *entries == size
        {
            return index_of(segment, bytes.clone()).map(Some);
        }
        let mut builder = index::Builder::new(segment);
        let mut entries = 0;
        let mut missing = None;
        for number in first / BUNDLE..(first + size).div_ceil(BUNDLE) {
            let Some(bundle) = self.bundle(number)? else {
                missing.get_or_insert(number);
                continue;
            };
            // What was written since is for the next time.
            for (_, entry) in bundle.entries().take_while(|(index, _)| *index < first + size) {
                builder.push(entry);
                entries += 1;
            }
        }
        match missing {
            _ if entries == 0 => return Ok(None),
            Some(number) => {
                return Err(Fault::new(
                    layout::bundle_path(number),
                    "is missing, though others of its segment are here",
                ));
            }
            None => {}
        }
        let bytes = builder.finish();
        if self.built.len() >= BUILT_KEPT {
            self.built.pop_first();
        }
        self.built.insert(segment, (size, bytes.clone()));
        index_of(segment, bytes).map(Some)
    }

    /// Makes the index of a sealed segment again, where its file is not what its entries give. Whether it was made.
    pub fn rebuild_index(&mut self, segment: u64) -> Result<bool, Fault> {
        let mut builder = index::Builder::new(segment);
        for number in segment * SEGMENT / BUNDLE..(segment + 1) * SEGMENT / BUNDLE {
            let Some(bundle) = full_bundle(&self.directory, number)? else {
                return Err(Fault::new(layout::bundle_path(number), "is missing"));
            };
            bundle.entries().for_each(|(_, entry)| builder.push(entry));
        }
        let (path, bytes) = (layout::index_path(segment), builder.finish());
        // What is larger than any index is none.
        if whole(&self.directory, &path, INDEX_BYTES_MAX).is_ok_and(|there| there.is_some_and(|there| there == bytes)) {
            return Ok(false);
        }
        let written = super::disk::put_durably(&self.directory.join(&path), &bytes);
        written.map_err(|error| Fault::new(path, format!("cannot be written: {error}")))?;
        Ok(true)
    }

    /// Segments that are sealed and not pruned: those that have to have an index.
    pub fn sealed(&mut self) -> Result<Vec<u64>, Fault> {
        let size = self.size()?;
        let sealed = journals(&self.directory)?.first().copied().unwrap_or(size / SEGMENT);
        let here = |segment: &u64| self.directory.join(layout::bundle_path(segment * SEGMENT / BUNDLE)).exists();
        Ok((0..sealed).filter(here).collect())
    }

    /// A hash of the tree: from its tile, from entries, or from the hashes below it. For proofs of any size.
    pub fn hash(&mut self, level: u8, index: u64) -> Result<Hash, Fault> {
        let tile = TileId { level, index: index / TILE_WIDTH as u64 };
        let place = (index % TILE_WIDTH as u64) as usize;
        if let Some(hash) = self.tiles.get(&tile).and_then(|hashes| hashes.get(place)) {
            return Ok(*hash);
        }
        // A partial tile is kept, too: what it has never changes.
        if let Some(hashes) = self.tile_or_leaves(tile, place)? {
            let hash = hashes[place];
            if self.tiles.len() >= TILES_KEPT {
                self.tiles.clear();
            }
            self.tiles.insert(tile, hashes);
            return Ok(hash);
        }
        if level == 0 {
            return Err(Fault::of_entry(layout::tile_path(tile), index, "its hash is missing, and so is the entry"));
        }
        let first = index * TILE_WIDTH as u64;
        let below = (first..first + TILE_WIDTH as u64).map(|index| self.hash(level - 1, index));
        Ok(tree::root_of(&below.collect::<Result<Vec<_>, _>>()?))
    }

    /// A tile with at least `place + 1` hashes, made from entries where nobody has published it yet.
    fn tile_or_leaves(&mut self, tile: TileId, place: usize) -> Result<Option<Vec<Hash>>, Fault> {
        if let Some((_, hashes)) = read_tile(&self.directory, tile, place + 1)? {
            return Ok(Some(hashes));
        }
        if tile.level > 0 {
            return Ok(None);
        }
        let Some(bundle) = self.bundle(tile.index)? else { return Ok(None) };
        let hashes: Vec<_> = bundle.entries().map(|(_, entry)| tree::leaf_hash(entry)).collect();
        Ok((hashes.len() > place).then_some(hashes))
    }

    fn journalled(&mut self, number: u64) -> Result<Option<Bundle>, Fault> {
        let first = number * BUNDLE;
        let Some(tail) = self.tail(first / SEGMENT)? else { return Ok(None) };
        if tail.entries() < first % SEGMENT + BUNDLE {
            tail.grow()?;
        }
        tail.bundle(first)
    }

    /// The journal of a segment, kept open: also a removed one can be read on.
    fn tail(&mut self, segment: u64) -> Result<Option<&mut Tail>, Fault> {
        if self.tail.as_ref().is_none_or(|tail| tail.segment != segment) {
            let Some(tail) = Tail::open(&self.directory, segment)? else { return Ok(None) };
            self.tail = Some(tail);
        }
        Ok(self.tail.as_mut())
    }
}

fn index_of(segment: u64, bytes: Vec<u8>) -> Result<Index, Fault> {
    Index::from_bytes(segment, bytes).map_err(|error: IndexError| Fault::new(layout::index_path(segment), error))
}

/// A journal and where its entries begin.
pub(super) struct Tail {
    segment: u64,
    file: File,
    /// Where each entry begins, and where the last one ends.
    starts: Vec<u64>,
    /// Why the reading ended, where there is more.
    pub stopped: Option<Stopped>,
}

/// Bytes after the last whole entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stopped {
    pub bytes: u64,
    pub flaw: Flaw,
}

const READ_BYTES: usize = 1 << 20;

impl Tail {
    pub fn open(directory: &Path, segment: u64) -> Result<Option<Tail>, Fault> {
        let Some(file) = open(directory, &layout::journal_path(segment))? else { return Ok(None) };
        Ok(Some(Tail { segment, file, starts: vec![0], stopped: None }))
    }

    /// Whether its name still leads to it.
    fn is_in(&self, directory: &Path) -> bool {
        let same = |named: fs::Metadata, held: fs::Metadata| (named.dev(), named.ino()) == (held.dev(), held.ino());
        let named = fs::metadata(directory.join(self.path()));
        named.is_ok_and(|named| self.file.metadata().is_ok_and(|held| same(named, held)))
    }

    pub fn entries(&self) -> u64 {
        self.starts.len() as u64 - 1
    }

    /// Where the last whole entry ends.
    pub fn end(&self) -> u64 {
        self.starts.last().copied().unwrap_or_default()
    }

    /// Finds the entries that were added.
    pub fn grow(&mut self) -> Result<(), Fault> {
        // A batch that failed was cut off again.
        if self.file.metadata().map_err(|error| self.fault(error))?.len() < self.end() {
            self.starts.truncate(1);
        }
        let mut buffer = vec![0; READ_BYTES];
        let mut held = 0;
        self.stopped = None;
        loop {
            let offset = self.end() + held as u64;
            let count = self.file.read_at(&mut buffer[held..], offset).map_err(|error| self.fault(error))?;
            held += count;
            let mut used = 0;
            let flaw = loop {
                if self.entries() == SEGMENT {
                    break Flaw("there is more than a segment");
                }
                match layout::read_frame(&buffer[used..held]) {
                    Ok(frame) => {
                        used += frame.bytes;
                        self.starts.push(self.end() + frame.bytes as u64);
                    }
                    Err(flaw) => break flaw,
                }
            };
            buffer.copy_within(used..held, 0);
            held -= used;
            // Nothing more to read, or nothing gained by it: a frame is far smaller than the buffer.
            if count == 0 || (used == 0 && held > layout::FRAME_HEAD + layout::ENTRY_BYTES_MAX) {
                if held > 0 {
                    let length = self.file.metadata().map_err(|error| self.fault(error))?.len();
                    self.stopped = Some(Stopped { bytes: length.saturating_sub(self.end()), flaw });
                }
                return Ok(());
            }
        }
    }

    /// The bundle that begins with this entry, as far as it goes.
    pub fn bundle(&self, first: u64) -> Result<Option<Bundle>, Fault> {
        let from = (first % SEGMENT) as usize;
        let Some(starts) = self.starts.get(from..) else { return Ok(None) };
        let count = (starts.len() - 1).min(BUNDLE as usize);
        if count == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; (starts[count] - starts[0]) as usize];
        self.file.read_exact_at(&mut bytes, starts[0]).map_err(|error| self.fault(error))?;
        let mut entries = Vec::with_capacity(count);
        let mut at = 0;
        for place in 0..count as u64 {
            let frame = layout::read_frame(&bytes[at..]);
            let frame = frame.map_err(|flaw| Fault::of_entry(self.path(), first + place, flaw))?;
            entries.push(at + layout::FRAME_HEAD..at + frame.bytes);
            at += frame.bytes;
        }
        Ok(Some(Bundle { first, bytes, entries }))
    }

    /// Whether a batch begins after the entry that could not be read: then it was damaged after it had been durable.
    pub fn is_followed_by_a_batch(&self) -> Result<bool, Fault> {
        let Some(stopped) = self.stopped else { return Ok(false) };
        let mut rest = vec![0; stopped.bytes as usize];
        self.file.read_exact_at(&mut rest, self.end()).map_err(|error| self.fault(error))?;
        Ok(journal::is_followed_by_a_batch(&rest, 0))
    }

    fn path(&self) -> String {
        layout::journal_path(self.segment)
    }

    fn fault(&self, error: io::Error) -> Fault {
        unreadable(&self.path(), &error)
    }
}

/// Segments that have a journal, in order.
pub(super) fn journals(directory: &Path) -> Result<Vec<u64>, Fault> {
    match directory.join(layout::JOURNAL).exists() {
        true => journal::segments(directory).map_err(|damage| Fault::new(layout::JOURNAL, damage.what)),
        false => Ok(Vec::new()),
    }
}

/// A full bundle.
pub(super) fn full_bundle(directory: &Path, number: u64) -> Result<Option<Bundle>, Fault> {
    let path = layout::bundle_path(number);
    let Some(packed) = whole(directory, &path, BUNDLE_BYTES_MAX)? else { return Ok(None) };
    let bytes = unpack(&packed).map_err(|what| Fault::new(&path, what))?;
    let bundle = Bundle::of_bundle_file(number, bytes, BUNDLE as usize);
    bundle.map(Some).map_err(|flaw| Fault::new(path, flaw))
}

/// The first `width` entries of a bundle that is not full, from any file that has as many.
pub(super) fn partial_bundle(directory: &Path, number: u64, width: usize) -> Result<Option<Bundle>, Fault> {
    let folder = format!("{}.p", layout::bundle_path(number).trim_end_matches(".gz"));
    let read = |width| {
        let path = layout::partial_bundle_path(number, width);
        let Some(bytes) = whole(directory, &path, BUNDLE_BYTES_MAX)? else { return Ok(None) };
        Bundle::of_bundle_file(number, bytes, width).map(Some).map_err(|flaw| Fault::new(path, flaw))
    };
    let found = at_least(directory, &folder, width, read)?;
    Ok(found.map(|mut bundle| {
        bundle.entries.truncate(width);
        bundle
    }))
}

/// A tile with at least `width` hashes, and its path. Of a wider one only the first `width` are given.
pub(super) fn read_tile(directory: &Path, tile: TileId, width: usize) -> Result<Option<(String, Vec<Hash>)>, Fault> {
    let read = |path: String, width| {
        // One more than there may be, so that a longer file is seen.
        let Some(bytes) = whole(directory, &path, layout::TILE_BYTES + 1)? else { return Ok(None) };
        let hashes = layout::decode_tile(&bytes, width).map_err(|flaw| Fault::new(&path, flaw))?;
        Ok(Some((path, hashes)))
    };
    if width < TILE_WIDTH {
        let folder = format!("{}.p", layout::tile_path(tile));
        let partial = |width| read(layout::partial_tile_path(tile, width), width);
        if let Some((path, mut hashes)) = at_least(directory, &folder, width, partial)? {
            hashes.truncate(width);
            return Ok(Some((path, hashes)));
        }
    }
    let full = read(layout::tile_path(tile), TILE_WIDTH)?;
    Ok(full.map(|(path, mut hashes)| {
        hashes.truncate(width);
        (path, hashes)
    }))
}

/// The partial file of just this width, or of the next larger one: they are replaced with every checkpoint.
fn at_least<T>(
    directory: &Path,
    folder: &str,
    width: usize,
    read: impl Fn(usize) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    for _ in 0..3 {
        if let Some(found) = read(width)? {
            return Ok(Some(found));
        }
        let names = match fs::read_dir(directory.join(folder)) {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(folder, &error)),
        };
        let widths = names.filter_map(|name| name.ok()?.file_name().to_str()?.parse::<usize>().ok());
        let Some(wider) = widths.filter(|wider| (width..TILE_WIDTH).contains(wider)).min() else { return Ok(None) };
        if let Some(found) = read(wider)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The bytes of a gzip file of one member, and nothing around it.
pub(super) fn unpack(packed: &[u8]) -> Result<Vec<u8>, String> {
    let mut decoder = GzDecoder::new(packed);
    let mut bytes = Vec::with_capacity(8 * packed.len());
    let read = (&mut decoder).take(BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot be unpacked: {error}"))?;
    let plain = decoder.header().is_some_and(|header| {
        header.mtime() == 0 && header.filename().is_none() && header.comment().is_none() && header.extra().is_none()
    });
    match plain && decoder.into_inner().is_empty() && bytes.len() <= BUNDLE_BYTES_MAX {
        true => Ok(bytes),
        false => Err("has something in or around its gzip member that belongs to no bundle".to_owned()),
    }
}

/// A file, if there is one.
fn open(directory: &Path, path: &str) -> Result<Option<File>, Fault> {
    match File::open(directory.join(path)) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// A file's bytes, if there is one.
pub(super) fn whole(directory: &Path, path: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, Fault> {
    let Some(file) = open(directory, path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| unreadable(path, &error))?;
    match bytes.len() <= bytes_max {
        true => Ok(Some(bytes)),
        false => Err(Fault::new(path, format!("is larger than {bytes_max} bytes"))),
    }
}

fn unreadable(path: &str, error: &io::Error) -> Fault {
    Fault::new(path, format!("cannot be read: {error}"))
}
