//! What lies in a log's directory, and does it hash to what is above it? Tiles that do not are rebuilt from what is below.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use super::disk;
use super::journal::{Damage, RESTORE};
use super::layout::{self, BUNDLE, BUNDLE_BYTES_MAX};
use super::tree::{self, Edge, Hash, TILE_WIDTH, TileId};

/// Full and partial tiles and bundles of a log.
#[derive(Clone, Debug)]
pub struct Tiles {
    directory: PathBuf,
}

/// From what a tile is rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Below {
    /// The tiles of the level below, where they are.
    Tiles,
    Entries,
}

/// The next level packs to 41 instead of 43 of a hundred bytes for three times the time (`cargo bench --bench audit`), which
/// is taken from the same processors as requests.
const COMPRESSION: Compression = Compression::new(1);

impl Tiles {
    pub fn new(directory: &Path) -> Tiles {
        Tiles { directory: directory.into() }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, tile: TileId) -> PathBuf {
        self.directory.join(layout::tile_path(tile))
    }

    pub fn bundle_path(&self, bundle: u64) -> PathBuf {
        self.directory.join(layout::bundle_path(bundle))
    }

    /// The hashes of a full tile, as they are there.
    pub fn read(&self, tile: TileId) -> Result<Vec<Hash>, Damage> {
        self.decode(&self.path(tile), TILE_WIDTH)
    }

    /// The hashes of a tile that is not full, as they are there.
    pub fn read_partial(&self, tile: TileId, width: usize) -> Result<Vec<Hash>, Damage> {
        self.decode(&self.directory.join(layout::partial_tile_path(tile, width)), width)
    }

    fn decode(&self, path: &Path, width: usize) -> Result<Vec<Hash>, Damage> {
        let bytes = fs::read(path).map_err(Damage::io(path))?;
        layout::decode_tile(&bytes, width).map_err(|flaw| Damage::new(path, flaw, RESTORE))
    }

    /// A full bundle, decompressed: entries with their lengths. That it is a bundle is not known yet.
    pub fn read_bundle(&self, bundle: u64) -> Result<Vec<u8>, Damage> {
        let path = self.bundle_path(bundle);
        let packed = fs::read(&path).map_err(Damage::io(&path))?;
        let mut bytes = Vec::new();
        let mut decoder = GzDecoder::new(&packed[..]);
        let read = (&mut decoder).take(BUNDLE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| Damage::new(&path, error, RESTORE))?;
        match decoder.into_inner().is_empty() {
            true => Ok(bytes),
            false => Err(Damage::new(&path, "there is something behind its end", RESTORE)),
        }
    }

    /// The hashes of a full bundle's entries, by the entries that are there.
    pub fn leaves(&self, bundle: u64) -> Result<Vec<Hash>, Damage> {
        let bytes = self.read_bundle(bundle)?;
        let entries = layout::decode_bundle(&bytes, BUNDLE as usize);
        let entries = entries.map_err(|flaw| Damage::new(&self.bundle_path(bundle), flaw, RESTORE))?;
        Ok(entries.into_iter().map(tree::leaf_hash).collect())
    }

    /// Makes a full tile what it should be. What is there already is only looked at.
    pub fn put(&self, tile: TileId, hashes: &[Hash]) -> Result<(), Damage> {
        put(&self.path(tile), &layout::encode_tile(hashes))
    }

    pub fn put_partial(&self, tile: TileId, hashes: &[Hash]) -> Result<PathBuf, Damage> {
        let path = self.directory.join(layout::partial_tile_path(tile, hashes.len()));
        put(&path, &layout::encode_tile(hashes))?;
        Ok(path)
    }

    /// Makes a full bundle what it should be, in what is decompressed.
    pub fn put_bundle(&self, bundle: u64, bytes: &[u8]) -> Result<(), Damage> {
        let path = self.bundle_path(bundle);
        let there = path.exists();
        if there && self.read_bundle(bundle).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        if there {
            rebuilt(&path, &"it is not what the journal says");
        }
        let packed = compress(bytes).and_then(|packed| disk::put(&path, &packed));
        packed.map_err(Damage::io(&path))
    }

    pub fn put_partial_bundle(&self, bundle: u64, width: usize, bytes: &[u8]) -> Result<PathBuf, Damage> {
        let path = self.directory.join(layout::partial_bundle_path(bundle, width));
        put(&path, bytes)?;
        Ok(path)
    }

    /// Brings a file that was put to the disk, but for its name: that takes [`disk::sync_directory`].
    pub fn sync(&self, path: &Path) -> Result<(), Damage> {
        let file = File::open(path).map_err(Damage::io(path))?;
        disk::sync(&file, path).map_err(Damage::io(path))
    }

    /// A full tile by what is below it.
    pub fn rebuild(&self, tile: TileId, from: Below) -> Result<Vec<Hash>, Damage> {
        if tile.level == 0 {
            return self.leaves(tile.index);
        }
        let children = (0..TILE_WIDTH as u64).map(|place| {
            let child = TileId { level: tile.level - 1, index: tile.index * TILE_WIDTH as u64 + place };
            let there = if from == Below::Tiles { self.read(child).ok() } else { None };
            let hashes = there.map_or_else(|| self.rebuild(child, from), Ok);
            hashes.map(|hashes| tree::root_of(&hashes))
        });
        children.collect()
    }

    /// The hashes of a full tile, which together have to be `expected`. One that is damaged or missing is rebuilt, as far as what
    /// is below still hashes to that.
    pub fn verified(&self, tile: TileId, expected: &Hash) -> Result<Vec<Hash>, Damage> {
        let path = self.path(tile);
        let problem = match self.read(tile) {
            Ok(hashes) if tree::root_of(&hashes) == *expected => return Ok(hashes),
            Ok(_) => "it does not hash to what is above it".to_owned(),
            Err(damage) => damage.what,
        };
        for from in [Below::Tiles, Below::Entries] {
            if let Ok(hashes) = self.rebuild(tile, from)
                && tree::root_of(&hashes) == *expected
            {
                rebuilt(&path, &problem);
                disk::put_durably(&path, &layout::encode_tile(&hashes)).map_err(Damage::io(&path))?;
                return Ok(hashes);
            }
        }
        Err(Damage::new(&path, format!("{problem}, nor do the entries below it"), RESTORE))
    }

    /// A stored hash that the edge vouches for, through the tiles between.
    pub fn trusted(&self, edge: &Edge, level: u8, index: u64) -> Result<Hash, Damage> {
        if let Some(hash) = edge.hash(level, index) {
            return Ok(hash);
        }
        let tile = TileId { level, index: index / TILE_WIDTH as u64 };
        if level >= tree::LEVELS - 1 || tile.width(edge.size()) < TILE_WIDTH {
            return Err(Damage::new(&self.path(tile), "the log is not that large", RESTORE));
        }
        let expected = self.trusted(edge, level + 1, tile.index)?;
        Ok(self.verified(tile, &expected)?[(index % TILE_WIDTH as u64) as usize])
    }
}

/// The same bytes give the same file: no time and no name is in it.
pub fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 2), COMPRESSION);
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Damage> {
    match fs::read(path) {
        Ok(there) if there == bytes => return Ok(()),
        Ok(_) => rebuilt(path, &"it is not what the journal says"),
        Err(_) => {}
    }
    disk::put(path, bytes).map_err(Damage::io(path))
}

fn rebuilt(path: &Path, problem: &dyn std::fmt::Display) {
    tracing::warn!(path = %path.display(), %problem, "a file of the audit log was damaged and is rebuilt");
}
