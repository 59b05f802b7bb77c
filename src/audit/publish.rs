//! How does the journal become a tree that others can check? Bundles and tiles as entries become durable, a signed checkpoint
//! now and then, segments that are sealed and, long after, pruned.
//!
//! The journal is the truth for what is not sealed: tiles and bundles of it are written without waiting for the disk, and
//! compared with the journal at the next start and again when their segment is sealed. Only then, when all of them are on the
//! disk, is the journal's file removed. So the first journal's number says how many segments are sealed.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::disk;
use super::journal::{self, Damage, Follower, RESTORE};
use super::layout::{self, BUNDLE, SEGMENT};
use super::note::{Checkpoint, Note, Signature, Signer, Vkey};
use super::tiles::{Below, Tiles};
use super::tree::{self, Edge, Hash, ProofError, TILE_WIDTH, TileId};
use crate::clock::Timestamp;

/// Where a log is, and who signs for it.
#[derive(Debug)]
pub struct Settings {
    pub directory: PathBuf,
    /// A copy of the last checkpoint, outside the log: a log that was emptied or put back does not go unnoticed.
    pub remembered: PathBuf,
    pub signer: Signer,
    pub index: BuildIndex,
}

/// Makes the index of a segment from its entries.
pub type BuildIndex = fn(segment: u64, entries: &[&[u8]]) -> Vec<u8>;

/// Makes the tree of a log. One thread owns it.
#[derive(Debug)]
pub struct Publisher {
    settings: Settings,
    follower: Follower,
    growing: Growing,
    last: Published,
    /// Segments that are sealed, and how many of them have no entries any more.
    sealed: u64,
    pruned: u64,
    /// The bundle that is looked at next.
    scrub: u64,
}

/// A checkpoint with its signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedCheckpoint {
    pub checkpoint: Checkpoint,
    pub note: Note,
}

#[derive(Debug)]
struct Published {
    signed: SignedCheckpoint,
    /// Files that are of this checkpoint alone.
    partials: BTreeSet<PathBuf>,
}

/// The tree up to where the journal was read, and what of it is not written yet.
#[derive(Debug)]
struct Growing {
    tiles: Tiles,
    edge: Edge,
    /// The entries of the bundle that is not full, with their lengths.
    bundle: Vec<u8>,
    /// What became full and waits to be written: nothing more is read before it is.
    pending: Vec<Pending>,
}

#[derive(Debug)]
enum Pending {
    Bundle(u64, Vec<u8>),
    Tile(TileId, Vec<Hash>),
}

/// A bundle that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scrubbed {
    pub bundle: u64,
    /// It was the last one: the next look begins anew.
    pub round_ended: bool,
}

const PRUNED: &str = "pruned";

/// Sealed segments, the newest, whose files a start asks for. The scrub comes to the others.
const SEGMENTS_ASKED_FOR: u64 = 16;

/// Segments that are pruned at once.
const SEGMENTS_PRUNED_MAX: u64 = 64;

/// The checkpoints that are there of an earlier run, the largest last: the log's own and the one remembered elsewhere. The
/// journal has to have as many entries.
pub fn claims(directory: &Path, remembered: &Path, key: &Vkey) -> Result<Vec<SignedCheckpoint>, Damage> {
    let mut claims = Vec::new();
    for path in [directory.join(layout::CHECKPOINT), remembered.into()] {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(Damage::io(&path)(error)),
        };
        let read = Checkpoint::verified(&bytes, key)
            .and_then(|checkpoint| Ok(SignedCheckpoint { checkpoint, note: Note::parse(&bytes)? }));
        claims.push(read.map_err(|flaw| {
            Damage::new(&path, flaw, "restore it or the key that signed it; a new log needs a new directory and key")
        })?);
    }
    claims.sort_by_key(|claim: &SignedCheckpoint| claim.checkpoint.size);
    Ok(claims)
}

impl Publisher {
    /// Goes on with what is there. `durable` is the size of the journal, which is open.
    ///
    /// Every checkpoint that was remembered has to be of this tree, and everything that is not sealed is compared with the
    /// journal. Of what is sealed only the tiles up to the root are read, and the newest segments' files asked for.
    pub fn open(settings: Settings, durable: u64) -> Result<Publisher, Damage> {
        let directory = settings.directory.clone();
        let claims = claims(&directory, &settings.remembered, &settings.signer.vkey())?;
        let sealed = journal::segments(&directory)?.first().copied().unwrap_or(0);
        let newest = claims.last().map(|claim| claim.checkpoint.clone()).unwrap_or_else(|| Checkpoint {
            origin: settings.signer.vkey().name().to_owned(),
            size: 0,
            root: tree::empty_root(),
            extensions: Vec::new(),
        });
        if newest.size < sealed * SEGMENT || newest.size > durable {
            let what = format!(
                "the newest checkpoint is of {} entries, but {} are sealed and {durable} are there",
                newest.size,
                sealed * SEGMENT
            );
            return Err(Damage::new(&directory.join(layout::CHECKPOINT), what, RESTORE));
        }
        let tile = directory.join(layout::TILE);
        if claims.is_empty() && durable == 0 && tile.exists() {
            return Err(Damage::new(&tile, "there are tiles, but neither a journal nor a checkpoint", RESTORE));
        }
        let tiles = Tiles::new(&directory);
        let edge = sealed_edge(&tiles, sealed, &newest)?;
        let signed =
            Checkpoint::sign(&newest, &settings.signer).map_err(|flaw| Damage::new(&directory, flaw, RESTORE))?;
        let mut publisher = Publisher {
            follower: Follower::new(&directory, sealed),
            growing: Growing { tiles, edge, bundle: Vec::new(), pending: Vec::new() },
            last: Published {
                signed: SignedCheckpoint { checkpoint: newest, note: signed },
                partials: BTreeSet::new(),
            },
            sealed,
            pruned: 0,
            scrub: 0,
            settings,
        };
        publisher.finish_pruning()?;
        publisher.ask_for_files()?;
        publisher.catch_up(durable)?;
        for claim in &claims {
            publisher.is_of_this_tree(&claim.checkpoint)?;
        }
        publisher.sweep();
        let vkey = directory.join(layout::VKEY);
        let text = format!("{}\n", publisher.settings.signer.vkey());
        if fs::read(&vkey).ok().as_deref() != Some(text.as_bytes()) {
            disk::put_durably(&vkey, text.as_bytes()).map_err(Damage::io(&vkey))?;
        }
        // Cosignatures of one that is not superseded are kept.
        let kept = claims.into_iter().rfind(|claim| claim.checkpoint.size == durable);
        publisher.publish(kept.map(|claim| claim.note))?;
        Ok(publisher)
    }

    /// Entries that are in the tree.
    pub fn size(&self) -> u64 {
        self.growing.edge.size()
    }

    pub fn sealed_segments(&self) -> u64 {
        self.sealed
    }

    pub fn pruned_segments(&self) -> u64 {
        self.pruned
    }

    pub fn last(&self) -> &SignedCheckpoint {
        &self.last.signed
    }

    /// Takes in what has become durable, and writes the bundles and tiles that are full. May be tried again after an error.
    pub fn catch_up(&mut self, durable: u64) -> Result<(), Damage> {
        let growing = &mut self.growing;
        self.follower.read(durable, |entry| {
            growing.flush()?;
            growing.add(entry)
        })?;
        self.growing.flush()
    }

    /// Signs and publishes the tree as it is. Without new entries it is the last checkpoint.
    pub fn checkpoint(&mut self) -> Result<&SignedCheckpoint, Damage> {
        if self.last.signed.checkpoint.size != self.size() {
            self.publish(None)?;
        }
        Ok(&self.last.signed)
    }

    /// Adds witnesses' signatures to the last checkpoint, where it still is the one that they signed.
    pub fn add_signatures(&mut self, text: &str, signatures: Vec<Signature>) -> Result<bool, Damage> {
        if self.last.signed.note.text() != text {
            return Ok(false);
        }
        let path = self.settings.directory.join(layout::CHECKPOINT);
        let mut note = self.last.signed.note.clone();
        for signature in signatures {
            note.add(signature).map_err(|flaw| Damage::new(&path, flaw, "name fewer witnesses"))?;
        }
        self.keep(&note)?;
        self.last.signed.note = note;
        Ok(true)
    }

    /// Seals the next segment that is complete; `None` where there is none. It takes a checkpoint beyond its end: then the next
    /// journal has a durable entry, and both copies of the checkpoint say more than what is sealed.
    pub fn seal(&mut self) -> Result<Option<u64>, Damage> {
        let segment = self.sealed;
        if self.last.signed.checkpoint.size <= (segment + 1) * SEGMENT {
            return Ok(None);
        }
        let directory = self.settings.directory.clone();
        let folder = directory.join(layout::JOURNAL);
        // Of a removal before, in case that could not be synced: journals go in their order, also over a crash.
        disk::sync_directory(&folder).map_err(Damage::io(&folder))?;
        let journal = directory.join(layout::journal_path(segment));
        let bytes = fs::read(&journal).map_err(Damage::io(&journal))?;
        let entries = all_entries(&bytes).map_err(|flaw| Damage::new(&journal, flaw, RESTORE))?;
        let leaves: Vec<Hash> = entries.iter().map(|entry| tree::leaf_hash(entry)).collect();
        let roots: Vec<Hash> = leaves.chunks(TILE_WIDTH).map(tree::root_of).collect();
        let tiles = &self.growing.tiles;
        if tiles.trusted(&self.growing.edge, 2, segment)? != tree::root_of(&roots) {
            return Err(Damage::new(&journal, "its entries do not hash to what was published of them", RESTORE));
        }

        // What was written of the segment while it grew may have been lost or torn since: the journal says what it should be.
        // A crash up to the removal of the journal leaves the journal, and the next start does all of this again.
        let mut files = Vec::new();
        for (place, (entries, leaves)) in (0..).zip(entries.chunks(BUNDLE as usize).zip(leaves.chunks(TILE_WIDTH))) {
            let number = segment * TILE_WIDTH as u64 + place;
            let tile = TileId { level: 0, index: number };
            tiles.put(tile, leaves)?;
            tiles.put_bundle(number, &encode(entries).map_err(|flaw| Damage::new(&journal, flaw, RESTORE))?)?;
            files.extend([tiles.path(tile), tiles.bundle_path(number)]);
        }
        let mut tile = TileId { level: 1, index: segment };
        tiles.put(tile, &roots)?;
        files.push(tiles.path(tile));
        // The tiles above that this segment made full.
        while tile.index % TILE_WIDTH as u64 == TILE_WIDTH as u64 - 1 {
            tile = TileId { level: tile.level + 1, index: tile.index / TILE_WIDTH as u64 };
            let expected = tiles.trusted(&self.growing.edge, tile.level + 1, tile.index)?;
            tiles.verified(tile, &expected)?;
            files.push(tiles.path(tile));
        }
        let mut folders = BTreeSet::new();
        for file in &files {
            tiles.sync(file)?;
            folders.extend(
                file.ancestors().skip(1).take_while(|folder| folder.starts_with(&directory)).map(Path::to_owned),
            );
        }
        // From the innermost out: a folder is named by the one above.
        for folder in folders.iter().rev() {
            disk::sync_directory(folder).map_err(Damage::io(folder))?;
        }
        let index = directory.join(layout::index_path(segment));
        disk::put_durably(&index, &(self.settings.index)(segment, &entries)).map_err(Damage::io(&index))?;
        // Everything is on the disk. A crash after this finds the segment sealed; that the removal itself is not on the disk
        // only means that the next start finds it complete and seals it again.
        disk::remove(&journal).map_err(Damage::io(&journal))?;
        self.sealed += 1;
        disk::sync_directory(&folder).map_err(Damage::io(&folder))?;
        Ok(Some(segment))
    }

    /// The oldest sealed segments whose newest entry is older than `before`, by the times that the entries of its last bundle
    /// say: without any, the segment stays. They are pruned by [`Publisher::prune`], after the log itself says that they are.
    pub fn prunable(
        &self,
        before: Timestamp,
        time_of: impl Fn(&[u8]) -> Option<Timestamp>,
    ) -> Result<Range<u64>, Damage> {
        let mut end = self.pruned;
        while end < self.sealed.min(self.pruned + SEGMENTS_PRUNED_MAX) {
            let bundle = (end + 1) * TILE_WIDTH as u64 - 1;
            let bytes = self.growing.tiles.read_bundle(bundle)?;
            let entries = layout::decode_bundle(&bytes, BUNDLE as usize);
            let path = self.growing.tiles.bundle_path(bundle);
            let entries = entries.map_err(|flaw| Damage::new(&path, flaw, RESTORE))?;
            match entries.into_iter().filter_map(&time_of).max() {
                Some(time) if time < before => end += 1,
                _ => break,
            }
        }
        Ok(self.pruned..end)
    }

    /// Removes the entries and indexes of segments. Their hashes stay, so that every proof goes on.
    ///
    /// Call it only when an entry that says so is durable.
    pub fn prune(&mut self, segments: Range<u64>) -> Result<(), Damage> {
        let path = self.settings.directory.join(PRUNED);
        if segments.start != self.pruned || segments.end > self.sealed {
            return Err(Damage::new(
                &path,
                "only the oldest sealed segments can be pruned",
                "ask again which those are",
            ));
        }
        // First the note of what is going: a start that finds it removes what a crash has left of them.
        let text = format!("{} {}\n", segments.start, segments.end);
        disk::put_durably(&path, text.as_bytes()).map_err(Damage::io(&path))?;
        self.finish_pruning()
    }

    /// Looks at one sealed bundle and what leads from it to the root. Damaged tiles are rebuilt; an error names what cannot be,
    /// and the next call goes on behind it. `None` where nothing is sealed.
    pub fn scrub_step(&mut self) -> Result<Option<Scrubbed>, Damage> {
        let end = self.sealed * TILE_WIDTH as u64;
        if end == 0 {
            return Ok(None);
        }
        let bundle = self.scrub % end;
        self.scrub = bundle + 1;
        let tiles = &self.growing.tiles;
        let expected = tiles.trusted(&self.growing.edge, 1, bundle)?;
        let leaves = tiles.verified(TileId { level: 0, index: bundle }, &expected)?;
        if bundle >= self.pruned * TILE_WIDTH as u64 && tiles.leaves(bundle)? != leaves {
            let path = tiles.bundle_path(bundle);
            return Err(Damage::new(&path, "its entries do not hash to what is above them", RESTORE));
        }
        Ok(Some(Scrubbed { bundle, round_ended: bundle + 1 == end }))
    }

    /// Writes the tree's checkpoint, or one of the same size that was signed before.
    fn publish(&mut self, signed: Option<Note>) -> Result<(), Damage> {
        let directory = &self.settings.directory;
        self.growing.flush()?;
        // Partial tiles first: who sees the checkpoint finds them. A crash leaves the last checkpoint with its own.
        let partials = self.growing.put_partials()?;
        let checkpoint = Checkpoint {
            origin: self.settings.signer.vkey().name().to_owned(),
            size: self.size(),
            root: self.growing.edge.root(),
            extensions: Vec::new(),
        };
        let note = match signed {
            Some(note) => note,
            None => checkpoint.sign(&self.settings.signer).map_err(|flaw| Damage::new(directory, flaw, RESTORE))?,
        };
        // Should the rest fail, the next checkpoint removes these as well.
        self.last.partials.extend(partials.iter().cloned());
        // What others may see is remembered first. A crash between the two leaves the log's own checkpoint behind the one
        // remembered; the journal has the entries of both, so the next start comes to the same tree.
        self.keep(&note)?;
        let earlier =
            std::mem::replace(&mut self.last, Published { signed: SignedCheckpoint { checkpoint, note }, partials });
        // A crash before or within this leaves partial tiles that nobody asks for; the next start sweeps.
        for path in earlier.partials.iter().filter(|path| !self.last.partials.contains(*path)).collect::<Vec<_>>() {
            if !remove_partial(path) {
                // The next checkpoint tries it again.
                self.last.partials.insert(path.clone());
            }
        }
        Ok(())
    }

    fn keep(&self, note: &Note) -> Result<(), Damage> {
        let own = self.settings.directory.join(layout::CHECKPOINT);
        for path in [&self.settings.remembered, &own] {
            disk::put_durably(path, note.to_string().as_bytes()).map_err(Damage::io(path))?;
        }
        Ok(())
    }

    /// That the log had this checkpoint.
    fn is_of_this_tree(&self, checkpoint: &Checkpoint) -> Result<(), Damage> {
        let root =
            tree::root_at(checkpoint.size, |level, index| self.growing.tiles.trusted(&self.growing.edge, level, index));
        let path = self.settings.directory.join(layout::CHECKPOINT);
        match root {
            Ok(root) if root == checkpoint.root => Ok(()),
            Ok(_) => {
                let what = format!("a checkpoint of {} entries is not of this log", checkpoint.size);
                Err(Damage::new(&path, what, RESTORE))
            }
            Err(error) => Err(damage(&path, error)),
        }
    }

    /// Removes what the note of the last pruning names.
    fn finish_pruning(&mut self) -> Result<(), Damage> {
        let path = self.settings.directory.join(PRUNED);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Damage::io(&path)(error)),
        };
        let range = text.trim_end().split_once(' ').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        let Some((from, to)) = range.filter(|(from, to): &(u64, u64)| from <= to && *to <= self.sealed) else {
            return Err(Damage::new(&path, "it does not name sealed segments", RESTORE));
        };
        let mut folders = BTreeSet::new();
        for segment in from..to {
            let bundles = segment * TILE_WIDTH as u64..(segment + 1) * TILE_WIDTH as u64;
            let bundles = bundles.map(|bundle| self.growing.tiles.bundle_path(bundle));
            for file in bundles.chain([self.settings.directory.join(layout::index_path(segment))]) {
                disk::remove(&file).map_err(Damage::io(&file))?;
                folders.insert(disk::above(&file).to_owned());
            }
        }
        for folder in folders.iter().filter(|folder| folder.exists()) {
            disk::sync_directory(folder).map_err(Damage::io(folder))?;
            // It goes only when it is empty.
            let _ = fs::remove_dir(folder);
        }
        self.pruned = to;
        Ok(())
    }

    /// That the files of the newest sealed segments are there.
    fn ask_for_files(&self) -> Result<(), Damage> {
        let tiles = &self.growing.tiles;
        let segments = self.sealed.saturating_sub(SEGMENTS_ASKED_FOR)..self.sealed;
        for number in segments.start * TILE_WIDTH as u64..segments.end * TILE_WIDTH as u64 {
            let tile = TileId { level: 0, index: number };
            if fs::metadata(tiles.path(tile)).map_or(0, |file| file.len()) != layout::TILE_BYTES as u64 {
                tiles.verified(tile, &tiles.trusted(&self.growing.edge, 1, number)?)?;
            }
            let path = tiles.bundle_path(number);
            if number >= self.pruned * TILE_WIDTH as u64 && fs::metadata(&path).map_err(Damage::io(&path))?.len() == 0 {
                return Err(Damage::new(&path, "it is empty", RESTORE));
            }
        }
        Ok(())
    }

    /// Removes partial tiles and bundles that crashes have left, of tiles that were partial in what is not sealed.
    fn sweep(&self) {
        for level in 0..tree::LEVELS {
            let tile_of = |size: u64| size >> (8 * (u32::from(level) + 1));
            for index in tile_of(self.sealed * SEGMENT)..=tile_of(self.size()) {
                let mut partial = vec![layout::partial_tile_path(TileId { level, index }, 1)];
                if level == 0 {
                    partial.push(layout::partial_bundle_path(index, 1));
                }
                for path in partial {
                    // The newest checkpoint's own are written again.
                    let _ = fs::remove_dir_all(disk::above(&self.settings.directory.join(path)));
                }
            }
        }
    }
}

impl Growing {
    fn add(&mut self, entry: &[u8]) -> Result<(), Damage> {
        let path = self.tiles.bundle_path(self.edge.size() / BUNDLE);
        let pending = &mut self.pending;
        let full = &mut |tile: TileId, hashes: &[Hash]| pending.push(Pending::Tile(tile, hashes.to_vec()));
        self.edge.append(tree::leaf_hash(entry), full).map_err(|full| Damage::new(&path, full, "begin a new log"))?;
        layout::push_to_bundle(&mut self.bundle, entry).map_err(|flaw| Damage::new(&path, flaw, RESTORE))?;
        if self.edge.size().is_multiple_of(BUNDLE) {
            let bundle = std::mem::take(&mut self.bundle);
            self.pending.push(Pending::Bundle(self.edge.size() / BUNDLE - 1, bundle));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Damage> {
        while let Some(pending) = self.pending.last() {
            match pending {
                Pending::Bundle(number, bytes) => self.tiles.put_bundle(*number, bytes)?,
                Pending::Tile(tile, hashes) => self.tiles.put(*tile, hashes)?,
            }
            self.pending.pop();
        }
        Ok(())
    }

    fn put_partials(&self) -> Result<BTreeSet<PathBuf>, Damage> {
        let mut partials = BTreeSet::new();
        for (tile, hashes) in self.edge.partial() {
            partials.insert(self.tiles.put_partial(tile, hashes)?);
        }
        let width = (self.edge.size() % BUNDLE) as usize;
        if width > 0 {
            partials.insert(self.tiles.put_partial_bundle(self.edge.size() / BUNDLE, width, &self.bundle)?);
        }
        Ok(partials)
    }
}

/// The edge of what is sealed, from tiles that with the journal's entries have the root of the newest checkpoint.
///
/// What is damaged is found by the partial tiles of that checkpoint, where those have its root, and else by trying: with the
/// tiles as they are, with those that the tiles below make up, and with those that the entries do.
fn sealed_edge(tiles: &Tiles, sealed: u64, newest: &Checkpoint) -> Result<Edge, Damage> {
    let vouched = partial_edge(tiles, newest);
    for attempt in [None, Some(Below::Tiles), Some(Below::Entries)] {
        let edge = Edge::restore(sealed * SEGMENT, |level, index| {
            // A multiple of a segment has no hashes below level 2.
            let tile = TileId { level: level - 1, index };
            if let Some(hash) = vouched.as_ref().and_then(|edge| edge.hash(level, index)) {
                return tiles.verified(tile, &hash).map(|_| hash);
            }
            let there = if attempt.is_none() { tiles.read(tile).ok() } else { None };
            let hashes = there.map_or_else(|| tiles.rebuild(tile, attempt.unwrap_or(Below::Tiles)), Ok);
            hashes.map(|hashes| tree::root_of(&hashes))
        });
        let edge = edge.map_err(|error| damage(&tiles.path(TileId { level: 1, index: 0 }), error))?;
        let mut grown = edge.clone();
        let mut wrong = None;
        Follower::new(tiles.directory(), sealed).read(newest.size, |entry| {
            let (at, leaf) = (grown.size(), tree::leaf_hash(entry));
            let vouched = vouched.as_ref().and_then(|edge| edge.hash(0, at));
            wrong = wrong.or(vouched.filter(|hash| *hash != leaf).map(|_| at));
            grown
                .append(leaf, &mut |tile, hashes| {
                    let other = tiles.read(tile).ok().filter(|_| tile.level == 0);
                    let place =
                        other.and_then(|other| other.iter().zip(hashes).position(|(other, hash)| other != hash));
                    wrong = wrong.or(place.map(|place| tile.index * BUNDLE + place as u64));
                })
                .map_err(|full| Damage::new(tiles.directory(), full, "begin a new log"))
        })?;
        if grown.root() == newest.root {
            // Now every hash of the edge is vouched for: what had to be rebuilt is written.
            for (tile, hashes) in edge.partial() {
                for (index, hash) in (tile.index * TILE_WIDTH as u64..).zip(hashes) {
                    tiles.verified(TileId { level: tile.level - 1, index }, hash)?;
                }
            }
            return Ok(edge);
        }
        if vouched.is_some() || sealed == 0 {
            let segment = wrong.unwrap_or(newest.size.saturating_sub(1)) / SEGMENT;
            let path = tiles.directory().join(layout::journal_path(segment));
            let place = wrong.map_or("some entry".to_owned(), |at| format!("entry {at}"));
            let what = format!("{place} is not the one that the checkpoint of {} entries is about", newest.size);
            return Err(Damage::new(&path, what, RESTORE));
        }
    }
    let what = format!("the entries do not have the root that it says of {} entries", newest.size);
    Err(Damage::new(&tiles.directory().join(layout::CHECKPOINT), what, RESTORE))
}

/// The edge by the partial tiles of a checkpoint, if they have its root.
fn partial_edge(tiles: &Tiles, checkpoint: &Checkpoint) -> Option<Edge> {
    let mut read: Option<(TileId, Vec<Hash>)> = None;
    let edge = Edge::restore(checkpoint.size, |level, index| {
        let tile = TileId { level, index: index / TILE_WIDTH as u64 };
        if read.as_ref().is_none_or(|(there, _)| *there != tile) {
            read = Some((tile, tiles.read_partial(tile, tile.width(checkpoint.size))?));
        }
        let place = (index % TILE_WIDTH as u64) as usize;
        let hash = read.as_ref().and_then(|(_, hashes)| hashes.get(place));
        hash.copied().ok_or_else(|| Damage::new(&tiles.path(tile), "it is too short", RESTORE))
    });
    edge.ok().filter(|edge| edge.root() == checkpoint.root)
}

fn damage(path: &Path, error: ProofError<Damage>) -> Damage {
    match error {
        ProofError::Source(damage) => damage,
        ProofError::OutOfRange(what) => Damage::new(path, what, RESTORE),
    }
}

/// The entries of a segment's journal, which is complete.
fn all_entries(bytes: &[u8]) -> Result<Vec<&[u8]>, layout::Flaw> {
    let mut entries = Vec::with_capacity(SEGMENT as usize);
    let mut rest = bytes;
    while !rest.is_empty() {
        let frame = layout::read_frame(rest)?;
        entries.push(frame.entry);
        rest = &rest[frame.bytes..];
    }
    match entries.len() as u64 == SEGMENT {
        true => Ok(entries),
        false => Err(layout::Flaw("it does not have the entries of one segment")),
    }
}

fn encode(entries: &[&[u8]]) -> Result<Vec<u8>, layout::Flaw> {
    let mut bundle = Vec::new();
    entries.iter().try_for_each(|entry| layout::push_to_bundle(&mut bundle, entry))?;
    Ok(bundle)
}

/// Removes a partial file, and the directory of such files where it was the last one. Nothing depends on
/// it.
fn remove_partial(path: &Path) -> bool {
    let removed = disk::remove(path).is_ok();
    let _ = fs::remove_dir(disk::above(path));
    removed
}

#[cfg(test)]
mod tests {
    use super::super::journal::tests::copy;
    use std::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use tempfile::TempDir;
    use tlog_tiles::tlog;

    use super::super::disk::hook::{self, Fault, Share};
    use super::super::journal::Journal;
    use super::*;

    const NAME: &str = "dwarpal.example/log";

    fn signer() -> Signer {
        Signer::from_seed(NAME, &[3; 32]).expect("a key")
    }

    fn index(segment: u64, entries: &[&[u8]]) -> Vec<u8> {
        format!("{segment} {}", entries.len()).into_bytes()
    }

    fn entry(index: u64) -> String {
        format!("{{\"entry\":{index}}}")
    }

    fn entries(range: Range<u64>) -> Vec<String> {
        range.map(entry).collect()
    }

    /// The log is in `log`, what is remembered beside it.
    fn settings(home: &Path) -> Settings {
        Settings { directory: home.join("log"), remembered: home.join("remembered"), signer: signer(), index }
    }

    fn open(home: &Path) -> Result<(Journal, Publisher), Damage> {
        super::super::open(settings(home)).map(|(journal, _, publisher)| (journal, publisher))
    }

    /// Everything that a log's directory holds.
    fn files(home: &Path) -> Vec<PathBuf> {
        let mut left = vec![home.to_owned()];
        let mut files = Vec::new();
        while let Some(path) = left.pop() {
            match path.is_dir() {
                true => {
                    left.extend(fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path()))
                }
                false => files.push(path.strip_prefix(home).expect("below").to_owned()),
            }
        }
        files.sort();
        files
    }

    /// Another implementation's root of the first entries.
    fn oracle_root(size: u64) -> Hash {
        struct Stored<'a>(&'a RefCell<Vec<tlog::Hash>>);
        impl tlog::HashReader for Stored<'_> {
            fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
                Ok(indexes.iter().map(|index| self.0.borrow()[*index as usize]).collect())
            }
        }
        thread_local! {
            static HASHES: RefCell<(u64, Vec<tlog::Hash>)> = RefCell::default();
        }
        HASHES.with_borrow_mut(|(count, hashes)| {
            let stored = RefCell::new(std::mem::take(hashes));
            while *count < size {
                let more = tlog::stored_hashes(*count, entry(*count).as_bytes(), &Stored(&stored)).expect("hashes");
                stored.borrow_mut().extend(more);
                *count += 1;
            }
            let root = tlog::tree_hash(size, &Stored(&stored)).expect("a root");
            *hashes = stored.into_inner();
            Hash(root.0)
        })
    }

    /// Recomputes a log from its entries alone, against a checkpoint that somebody holds; then that the tiles are those of the
    /// entries. `None` where anything is missing or wrong.
    fn recompute(home: &Path, held: &Checkpoint) -> Option<()> {
        let directory = home.join("log");
        let tiles = Tiles::new(&directory);
        let sealed = journal::segments(&directory).ok()?.first().copied()?;
        let mut edge = Edge::default();
        let mut right = Some(());
        let mut add = |entry: &[u8]| {
            let mut same = |tile: TileId, hashes: &[Hash]| {
                right = right.filter(|()| tiles.read(tile).is_ok_and(|there| there == hashes));
            };
            edge.append(tree::leaf_hash(entry), &mut same).expect("room");
            Ok::<(), Damage>(())
        };
        for bundle in 0..(sealed * TILE_WIDTH as u64).min(held.size / BUNDLE) {
            let bytes = tiles.read_bundle(bundle).ok()?;
            layout::decode_bundle(&bytes, BUNDLE as usize).ok()?.into_iter().try_for_each(&mut add).ok()?;
        }
        Follower::new(&directory, sealed).read(held.size, &mut add).ok()?;
        right.filter(|()| edge.size() == held.size && edge.root() == held.root)
    }

    /// All that must hold of a log of so many entries whose last checkpoint is of all of them.
    fn check(home: &Path, size: u64) {
        let directory = home.join("log");
        let bytes = fs::read(directory.join(layout::CHECKPOINT)).expect("a checkpoint");
        assert_eq!(fs::read(home.join("remembered")).expect("a checkpoint"), bytes);
        let checkpoint = Checkpoint::verified(&bytes, &signer().vkey()).expect("signed");
        assert_eq!((checkpoint.size, checkpoint.root), (size, oracle_root(size)));
        recompute(home, &checkpoint).expect("entries and tiles are whole");
        // Bundles of what is not sealed are those of the journal.
        let tiles = Tiles::new(&directory);
        for bundle in 0..size / BUNDLE {
            let bytes = tiles.read_bundle(bundle).expect("a bundle");
            let there = layout::decode_bundle(&bytes, BUNDLE as usize).expect("a bundle");
            assert!(there.iter().zip(bundle * BUNDLE..).all(|(there, index)| *there == entry(index).as_bytes()));
        }
        // Partial tiles and bundles are those of the checkpoint, and no others are left.
        let partial: Vec<_> =
            files(&directory).into_iter().filter(|path| path.to_string_lossy().contains(".p/")).collect();
        let mut expected: Vec<PathBuf> = (0..tree::LEVELS)
            .map(|level| TileId { level, index: size >> (8 * (u32::from(level) + 1)) })
            .map(|tile| (tile, tile.width(size)))
            .filter(|(_, width)| *width > 0)
            .map(|(tile, width)| layout::partial_tile_path(tile, width).into())
            .collect();
        let width = (size % BUNDLE) as usize;
        if width > 0 {
            expected.push(layout::partial_bundle_path(size / BUNDLE, width).into());
        }
        expected.sort();
        assert_eq!(partial, expected);
        assert!(partial_edge(&tiles, &checkpoint).is_some(), "the partial tiles have the root");
        assert!(!files(home).iter().any(|path| path.extension().is_some_and(|end| end == "new")), "left over");
    }

    const SIZE: u64 = 2 * SEGMENT + 300;

    /// A log of two sealed segments and some more.
    static SEALED: LazyLock<TempDir> = LazyLock::new(|| {
        let home = TempDir::new().expect("a directory");
        let (mut journal, mut publisher) = open(home.path()).expect("fresh");
        journal.append(&entries(0..SIZE)).expect("durable");
        publisher.catch_up(SIZE).expect("read");
        publisher.checkpoint().expect("signed");
        assert_eq!(publisher.seal().expect("sealed"), Some(0));
        assert_eq!(publisher.seal().expect("sealed"), Some(1));
        assert_eq!(publisher.seal().expect("nothing"), None);
        home
    });

    fn tile(level: u8, index: u64) -> TileId {
        TileId { level, index }
    }

    #[test]
    fn a_log_is_published_sealed_and_opened_again() {
        let home = copy(SEALED.path());
        check(home.path(), SIZE);
        let there = files(&home.path().join("log"));
        let journals: Vec<_> = there.iter().filter(|path| path.starts_with("journal")).collect();
        assert_eq!(journals, [Path::new("journal/0000000002")]);
        assert_eq!(fs::read(home.path().join("log/index/0000000001")).expect("an index"), b"1 65536");
        assert_eq!(fs::read_to_string(home.path().join("log/vkey")).expect("a key"), format!("{}\n", signer().vkey()));
        let (mut journal, mut publisher) = open(home.path()).expect("opened");
        assert_eq!((publisher.size(), publisher.sealed_segments()), (SIZE, 2));
        let mut size = SIZE;
        for more in [1, 255, 256, 511, 1] {
            let first = publisher.last().clone();
            journal.append(&entries(size..size + more)).expect("durable");
            publisher.catch_up(size + more).expect("read");
            assert_eq!(*publisher.last(), first);
            size += more;
            assert_eq!(publisher.checkpoint().expect("signed").checkpoint.size, size);
            check(home.path(), size);
        }
        let last = publisher.checkpoint().expect("the same").clone();
        assert_eq!(*publisher.last(), last);
        drop((journal, publisher));
        let (_journal, publisher) = open(home.path()).expect("opened");
        assert_eq!(*publisher.last(), last);
        check(home.path(), size);
    }

    #[test]
    fn an_empty_log_has_a_checkpoint() {
        let home = TempDir::new().expect("a directory");
        open(home.path()).expect("fresh");
        let bytes = fs::read(home.path().join("log/checkpoint")).expect("a checkpoint");
        assert_eq!(Checkpoint::verified(&bytes, &signer().vkey()).expect("signed").root, tree::empty_root());
        open(home.path()).expect("again");
    }

    #[test]
    fn witnesses_signatures_stay_with_their_checkpoint() {
        let home = copy(SEALED.path());
        let (mut journal, mut publisher) = open(home.path()).expect("opened");
        let witness = Signer::from_seed("witness.example/w", &[9; 32]).expect("a key");
        let text = publisher.last().note.text().to_owned();
        let signed = witness.cosign(&text, 1_780_000_000);
        assert!(publisher.add_signatures(&text, vec![signed.clone()]).expect("kept"));
        drop((journal, publisher));
        (journal, publisher) = open(home.path()).expect("opened");
        let note = Note::parse(&fs::read(home.path().join("log/checkpoint")).expect("a file")).expect("a note");
        let _ = note.verified_by(&witness.cosigner_vkey()).expect("kept over a start");
        assert_eq!(note, publisher.last().note);
        journal.append(&entries(SIZE..SIZE + 1)).expect("durable");
        publisher.catch_up(SIZE + 1).expect("read");
        publisher.checkpoint().expect("signed");
        assert!(!publisher.add_signatures(&text, vec![signed]).expect("too late"));
        assert_eq!(publisher.last().note.signatures().len(), 1);
    }

    /// What happens to a log before, during and after a crash.
    struct Story {
        before: TempDir,
        /// Entries when it crashed, and what was done then.
        size: u64,
        act: fn(&mut Publisher) -> Result<(), Damage>,
    }

    impl Story {
        fn new(before: u64, published: bool, size: u64, act: fn(&mut Publisher) -> Result<(), Damage>) -> Story {
            let home = TempDir::new().expect("a directory");
            let (mut journal, mut publisher) = open(home.path()).expect("fresh");
            journal.append(&entries(0..before)).expect("durable");
            publisher.catch_up(before).expect("read");
            publisher.checkpoint().expect("signed");
            journal.append(&entries(before..size)).expect("durable");
            if published {
                publisher.catch_up(size).expect("read");
                publisher.checkpoint().expect("signed");
            }
            Story { before: home, size, act }
        }

        /// Dies at a step, goes on with a new start, and ends as if nothing had happened. Whether the step was reached.
        fn dies(&self, after: usize, share: Share, gone: fn(usize) -> bool) -> bool {
            let home = copy(self.before.path());
            let (journal, mut publisher) = open_without_publishing(home.path());
            hook::begin(&[Fault { after, share, dead: true }]);
            let _ = (self.act)(&mut publisher);
            let reached = hook::end() > after;
            drop((journal, publisher));
            let mut place = 0;
            hook::lose_power(|_| {
                place += 1;
                gone(place)
            });
            let (journal, mut publisher) =
                open(home.path()).unwrap_or_else(|damage| panic!("step {after}, {share:?}: {damage}"));
            assert_eq!(journal.size(), self.size);
            publisher.catch_up(self.size).expect("read");
            publisher.checkpoint().expect("signed");
            while publisher.seal().expect("sealed").is_some() {}
            check(home.path(), self.size);
            let sealed = (self.size - 1) / SEGMENT;
            assert_eq!(publisher.sealed_segments(), sealed);
            reached
        }

        /// At every step of the first and the last, and some between: most are the same for each of 256 tiles.
        fn dies_everywhere(&self, all: bool) {
            let steps = {
                let home = copy(self.before.path());
                let (_journal, mut publisher) = open_without_publishing(home.path());
                hook::begin(&[]);
                (self.act)(&mut publisher).expect("done");
                hook::end()
            };
            let chosen = (0..steps).filter(|step| all || *step < 4 || *step + 9 > steps || step % 499 == 0);
            for (step, turn) in chosen.zip(0..) {
                let (share, gone): (_, fn(usize) -> bool) = match turn % 4 {
                    0 => (Share::Nothing, |_| false),
                    1 => (Share::All, |_| true),
                    2 => (Share::Half, |place| place % 2 == 0),
                    _ => (Share::Nothing, |place| place % 3 != 0),
                };
                assert!(self.dies(step, share, gone), "{step} of {steps}");
                if all {
                    self.dies(step, Share::All, |_| false);
                    self.dies(step, Share::Nothing, |_| true);
                }
            }
        }
    }

    /// A publisher as it was before what a story is about: a start would do some of it.
    fn open_without_publishing(home: &Path) -> (Journal, Publisher) {
        let settings = settings(home);
        let claims = claims(&settings.directory, &settings.remembered, &signer().vkey()).expect("claims");
        let size = claims.last().map_or(0, |claim| claim.checkpoint.size);
        let (journal, _) = Journal::open(&settings.directory, size).expect("opened");
        let publisher = Publisher::open(settings, size).expect("opened");
        (journal, publisher)
    }

    #[test]
    fn whenever_it_dies_while_it_publishes_a_start_goes_on() {
        let story = Story::new(300, false, 900, |publisher| {
            publisher.catch_up(900)?;
            publisher.checkpoint().map(drop)
        });
        story.dies_everywhere(true);
    }

    #[test]
    fn whenever_it_dies_while_it_seals_a_start_goes_on() {
        let story = Story::new(SEGMENT - 3, true, SEGMENT + 5, |publisher| publisher.seal().map(drop));
        story.dies_everywhere(false);
    }

    /// One step fails and the next try goes on, in the same process.
    #[test]
    fn whatever_fails_while_it_publishes_is_tried_again() {
        let story = Story::new(300, false, 900, |_| Ok(()));
        for after in 0..60 {
            for share in [Share::Nothing, Share::Half, Share::All] {
                let home = copy(story.before.path());
                let (mut journal, mut publisher) = open_without_publishing(home.path());
                hook::begin(&[Fault { after, share, dead: false }]);
                while publisher.catch_up(900).is_err() {}
                while publisher.checkpoint().is_err() {}
                hook::end();
                assert_eq!(publisher.last().checkpoint.root, oracle_root(900));
                journal.append(&entries(900..901)).expect("durable");
                publisher.catch_up(901).expect("read");
                publisher.checkpoint().expect("signed");
                check(home.path(), 901);
            }
        }
    }

    /// As a loss of power leaves it, or somebody's hand: tiles are rebuilt from what is below.
    #[test]
    fn what_the_entries_can_repair_is_repaired() {
        for (why, harm) in damages() {
            let home = copy(SEALED.path());
            let log = home.path().join("log");
            harm(&log);
            let (_journal, mut publisher) = open(home.path()).unwrap_or_else(|damage| panic!("{why}: {damage}"));
            while !publisher
                .scrub_step()
                .unwrap_or_else(|damage| panic!("{why}: {damage}"))
                .expect("sealed")
                .round_ended
            {}
            check(home.path(), SIZE);
        }
    }

    type Harm = Box<dyn Fn(&Path)>;

    fn flip(path: impl Into<PathBuf>) -> Harm {
        let path = path.into();
        Box::new(move |log: &Path| {
            let mut bytes = fs::read(log.join(&path)).expect("a file");
            let place = bytes.len() / 2;
            bytes[place] ^= 16;
            fs::write(log.join(&path), bytes).expect("written");
        })
    }

    fn remove(path: impl Into<PathBuf>) -> Harm {
        let path = path.into();
        Box::new(move |log: &Path| fs::remove_file(log.join(&path)).expect("removed"))
    }

    fn both(first: Harm, second: Harm) -> Harm {
        Box::new(move |log: &Path| {
            first(log);
            second(log);
        })
    }

    fn damages() -> Vec<(&'static str, Harm)> {
        let partial = || layout::partial_tile_path(tile(2, 0), 2);
        vec![
            ("a tile of level 1", flip(layout::tile_path(tile(1, 1)))),
            ("without a partial tile above", both(flip(layout::tile_path(tile(1, 1))), remove(partial()))),
            ("with a damaged one", both(remove(layout::tile_path(tile(1, 0))), flip(partial()))),
            ("with a tile below", both(remove(layout::tile_path(tile(1, 0))), flip(layout::tile_path(tile(0, 7))))),
            (
                "and no partial tile",
                both(remove(partial()), both(flip(layout::tile_path(tile(1, 0))), flip(layout::tile_path(tile(0, 7))))),
            ),
            ("a tile of level 0", flip(layout::tile_path(tile(0, 300)))),
            ("a missing tile", remove(layout::tile_path(tile(0, 511)))),
            ("a tile that is not sealed", flip(layout::tile_path(tile(0, 512)))),
            ("a bundle that is not sealed", flip(layout::bundle_path(512))),
            ("a missing bundle that is not sealed", remove(layout::bundle_path(512))),
            ("a partial bundle", flip(layout::partial_bundle_path(513, 44))),
            ("the checkpoint, remembered elsewhere", remove(layout::CHECKPOINT)),
            ("the public key", flip(layout::VKEY)),
        ]
    }

    #[test]
    fn what_the_entries_cannot_repair_stops_the_start_or_is_found_later() {
        let start: Vec<(&str, Harm, &str)> = vec![
            ("a sealed bundle", remove(layout::bundle_path(300)), "entries/300.gz"),
            ("the journal", remove(layout::journal_path(2)), "there is no journal"),
            ("the checkpoint", flip(layout::CHECKPOINT), "checkpoint:"),
            ("all", Box::new(|log| fs::remove_dir_all(log).expect("removed")), "there is no journal"),
            (
                "all but the tiles, also what was remembered",
                Box::new(|log| {
                    fs::remove_dir_all(log.join(layout::JOURNAL)).expect("removed");
                    fs::remove_file(log.join(layout::CHECKPOINT)).expect("removed");
                    fs::remove_file(log.with_file_name("remembered")).expect("removed");
                }),
                "neither a journal nor a checkpoint",
            ),
            (
                "another journal of the same length",
                Box::new(|log| {
                    let path = log.join(layout::journal_path(2));
                    let mut bytes = Vec::new();
                    for index in 2 * SEGMENT..SIZE {
                        let other = if index == 2 * SEGMENT + 280 { entry(0) } else { entry(index) };
                        layout::push_frame(&mut bytes, other.as_bytes(), true).expect("fits");
                    }
                    fs::write(path, bytes).expect("written");
                }),
                "0000000002: entry 131352 is not the one",
            ),
            (
                "tile and entries",
                both(
                    flip(layout::tile_path(tile(1, 1))),
                    both(remove(layout::bundle_path(300)), remove(layout::tile_path(tile(0, 300)))),
                ),
                "tile/1/001",
            ),
        ];
        for (why, harm, expected) in start {
            let home = copy(SEALED.path());
            harm(&home.path().join("log"));
            let message = open(home.path()).expect_err(why).to_string();
            assert!(message.contains(expected), "{why}: {message}");
        }
        // The scrub comes to what no start looks at.
        for harm in [
            flip(layout::bundle_path(3)),
            Box::new(|log: &Path| {
                fs::copy(log.join(layout::bundle_path(4)), log.join(layout::bundle_path(3))).map(drop).expect("copied")
            }),
        ] {
            let home = copy(SEALED.path());
            harm(&home.path().join("log"));
            let (_journal, mut publisher) = open(home.path()).expect("opened");
            let found: Vec<String> =
                (0..512).filter_map(|_| publisher.scrub_step().err()).map(|damage| damage.to_string()).collect();
            assert!(found.len() == 1 && found[0].contains("entries/003.gz"), "{found:?}");
        }
    }

    /// A log that was put back to an earlier state, whole in itself, is not the one that is remembered.
    #[test]
    fn a_log_that_was_put_back_is_refused() {
        let home = copy(SEALED.path());
        let earlier = copy(home.path());
        let (mut journal, mut publisher) = open(home.path()).expect("opened");
        journal.append(&entries(SIZE..SIZE + 10)).expect("durable");
        publisher.catch_up(SIZE + 10).expect("read");
        publisher.checkpoint().expect("signed");
        drop((journal, publisher));
        fs::remove_dir_all(home.path().join("log")).expect("removed");
        fs::rename(earlier.path().join("log"), home.path().join("log")).expect("put back");
        let message = open(home.path()).expect_err("put back").to_string();
        assert!(message.contains("but a checkpoint says 131382"), "{message}");
        // Nor another of the same size.
        let (mut journal, _) = Journal::open(&home.path().join("log"), 0).expect("opened");
        journal.append(&entries(0..10)).expect("durable");
        drop(journal);
        let message = open(home.path()).expect_err("another").to_string();
        assert!(message.contains("do not have the root that it says of 131382 entries"), "{message}");
    }

    #[test]
    fn pruning_keeps_every_hash_and_survives_a_crash_at_every_step() {
        let time = |entry: &[u8]| {
            let text = std::str::from_utf8(entry).expect("text");
            Some(Timestamp::from_unix_seconds(text[9..text.len() - 1].parse().expect("a number")))
        };
        let at = Timestamp::from_unix_seconds;
        let home = copy(SEALED.path());
        let (journal, publisher) = open(home.path()).expect("opened");
        assert_eq!(publisher.prunable(at(SEGMENT - 1), time).expect("read"), 0..0);
        assert_eq!(publisher.prunable(at(SEGMENT), time).expect("read"), 0..1);
        assert_eq!(publisher.prunable(at(u64::MAX), time).expect("read"), 0..2);
        assert_eq!(publisher.prunable(at(u64::MAX), |_| None).expect("read"), 0..0, "no time, no end");
        drop((journal, publisher));
        for after in [0, 1, 2, 3, 4, 5, 6, 100, 260, 261, 262, 263] {
            let home = copy(home.path());
            let (journal, mut publisher) = open(home.path()).expect("opened");
            publisher.prune(1..2).expect_err("not the oldest");
            publisher.prune(0..3).expect_err("not sealed");
            hook::begin(&[Fault { after, share: Share::Nothing, dead: true }]);
            let _ = publisher.prune(0..1);
            drop((journal, publisher));
            hook::lose_power(|_| after % 2 == 0);
            let (_journal, mut publisher) = open(home.path()).expect("opened");
            if publisher.pruned_segments() == 0 {
                publisher.prune(0..1).expect("pruned");
            }
            assert_eq!(publisher.pruned_segments(), 1);
            let there = files(&home.path().join("log"));
            let bundles = there
                .iter()
                .filter(|path| path.starts_with("tile/entries") && path.extension().is_some_and(|end| end == "gz"));
            assert_eq!(bundles.count(), 257, "{after}");
            assert!(!there.contains(&"index/0000000000".into()));
            while !publisher.scrub_step().expect("whole").expect("sealed").round_ended {}
            let trusted = |level, index| publisher.growing.tiles.trusted(&publisher.growing.edge, level, index);
            let proof = tree::inclusion_proof(5, SIZE, trusted).expect("a proof");
            let leaf = tree::leaf_hash(entry(5).as_bytes());
            tree::verify_inclusion(&leaf, 5, SIZE, &proof, &publisher.last().checkpoint.root).expect("included");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

        /// Whatever is done to the files of a log: recomputing it does not lead to a checkpoint that somebody holds, or nothing of
        /// what that is about has changed.
        #[test]
        fn no_change_goes_unnoticed_by_who_holds_a_checkpoint(
            file in any::<prop::sample::Index>(), other in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), kind in 0..5,
        ) {
            let home = copy(SEALED.path());
            let log = home.path().join("log");
            let held = Checkpoint::verified(&fs::read(log.join(layout::CHECKPOINT)).expect("a file"), &signer().vkey()).expect("signed");
            let about = |path: &PathBuf| {
                let text = path.to_string_lossy().into_owned();
                // What is sealed, and the journal: the rest is made of these.
                text.starts_with("journal") || (text.starts_with("tile/") && !text.contains(".p/") && !text.starts_with("tile/entries/512"))
            };
            let files: Vec<PathBuf> = files(&log).into_iter().filter(about).collect();
            let file = log.join(file.get(&files));
            let other = log.join(other.get(&files));
            let bytes = fs::read(&file).expect("a file");
            let mut harmless = false;
            match kind {
                0 => {
                    let mut flipped = bytes.clone();
                    let bit = place.index(8 * bytes.len());
                    flipped[bit / 8] ^= 1 << (bit % 8);
                    fs::write(&file, flipped).expect("written");
                    // The head of a gzip file and the bits behind its end say nothing about entries.
                    if file.extension().is_some_and(|end| end == "gz") {
                        harmless = bit < 80 || bit >= 8 * (bytes.len() - 9);
                    }
                }
                1 => fs::remove_file(&file).expect("removed"),
                2 => {
                    harmless = fs::read(&other).expect("a file") == bytes;
                    fs::rename(&file, home.path().join("swap")).expect("renamed");
                    fs::rename(&other, &file).unwrap_or_default();
                    fs::rename(home.path().join("swap"), &other).expect("renamed");
                }
                3 => fs::write(&file, &bytes[..place.index(bytes.len())]).expect("written"),
                _ => {
                    // Two entries of a bundle or of the journal change places, with checksums that are right.
                    let mut entries = entries(2 * SEGMENT..SIZE);
                    let first = place.index(entries.len() - 1);
                    entries.swap(first, first + 1);
                    let mut journal = Vec::new();
                    entries.iter().for_each(|entry| layout::push_frame(&mut journal, entry.as_bytes(), true).expect("fits"));
                    fs::write(log.join(layout::journal_path(2)), journal).expect("written");
                }
            }
            let noticed = recompute(home.path(), &held).is_none();
            if harmless {
                // Then it is the same log, or it is noticed all the same.
                prop_assert!(noticed || oracle_root(SIZE) == held.root);
            } else {
                prop_assert!(noticed, "{} {kind}", file.display());
            }
        }
    }

    #[test]
    fn a_proof_of_every_kind_comes_from_tiles() {
        let home = copy(SEALED.path());
        let (_journal, publisher) = open(home.path()).expect("opened");
        let mut cache: HashMap<(u8, u64), Hash> = HashMap::new();
        let mut trusted = |level, index| {
            let hash = publisher.growing.tiles.trusted(&publisher.growing.edge, level, index)?;
            cache.insert((level, index), hash);
            Ok::<Hash, Damage>(hash)
        };
        for size in [1, 256, 65_536, 65_537, 131_072, SIZE] {
            assert_eq!(tree::root_at(size, &mut trusted).expect("a root"), oracle_root(size));
            let proof = tree::consistency_proof(size, SIZE, &mut trusted).expect("a proof");
            tree::verify_consistency(size, &oracle_root(size), SIZE, &oracle_root(SIZE), &proof).expect("consistent");
        }
        assert!(tree::root_at(SIZE + 1, &mut trusted).is_err());
    }
}
