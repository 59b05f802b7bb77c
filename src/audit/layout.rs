//! Where does an entry lie, and in which bytes? Paths of C2SP's tlog-tiles, entry bundles, and the frames of the journal. Pure.

use std::fmt;

use super::tree::{Hash, TILE_WIDTH, TileId};

/// Entries of a full bundle.
pub const BUNDLE: u64 = 256;

/// Entries of a segment: what is sealed, indexed and pruned as one. A full tile of level 1 stands for it.
pub const SEGMENT: u64 = 65_536;

/// The most bytes that an entry may have: its length in a bundle has 16 bits.
pub const ENTRY_BYTES_MAX: usize = u16::MAX as usize;

/// The most bytes that a bundle may have.
pub const BUNDLE_BYTES_MAX: usize = BUNDLE as usize * (2 + ENTRY_BYTES_MAX);

/// Bytes of a full tile.
pub const TILE_BYTES: usize = 32 * TILE_WIDTH;

/// Bytes before each entry in the journal.
pub const FRAME_HEAD: usize = 8;

// Files and directories of a log's directory.
pub const CHECKPOINT: &str = "checkpoint";
pub const VKEY: &str = "vkey";
pub const LOCK: &str = "lock";
pub const JOURNAL: &str = "journal";
pub const INDEX: &str = "index";
pub const TILE: &str = "tile";
pub const ENTRIES: &str = "tile/entries";

/// The bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw(pub &'static str);

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Flaw {}

/// Path of a full tile, from the log's directory.
pub fn tile_path(tile: TileId) -> String {
    format!("{TILE}/{}/{}", tile.level, number(tile.index))
}

/// Path of a tile that has only `width` hashes yet.
pub fn partial_tile_path(tile: TileId, width: usize) -> String {
    format!("{}.p/{width}", tile_path(tile))
}

/// Path of a full bundle, which is compressed.
pub fn bundle_path(bundle: u64) -> String {
    format!("{ENTRIES}/{}.gz", number(bundle))
}

/// Path of a bundle that has only `width` entries yet; it is not compressed.
pub fn partial_bundle_path(bundle: u64, width: usize) -> String {
    format!("{ENTRIES}/{}.p/{width}", number(bundle))
}

pub fn journal_path(segment: u64) -> String {
    format!("{JOURNAL}/{segment:010}")
}

pub fn index_path(segment: u64) -> String {
    format!("{INDEX}/{segment:010}")
}

/// The segment that a file of `journal/` or `index/` is named by.
pub fn segment_of_name(name: &str) -> Option<u64> {
    let digits = name.len() == 10 && name.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| name.parse().ok()).flatten()
}

/// Groups of three digits, all but the last with an x: 1234067 is x001/x234/067.
fn number(index: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    text
}

pub fn encode_tile(hashes: &[Hash]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The hashes of a tile that should have `width` of them.
pub fn decode_tile(bytes: &[u8], width: usize) -> Result<Vec<Hash>, Flaw> {
    if bytes.len() != 32 * width {
        return Err(Flaw("the tile has the wrong length"));
    }
    let (hashes, _) = bytes.as_chunks();
    Ok(hashes.iter().map(|hash| Hash(*hash)).collect())
}

/// Adds an entry to a bundle.
pub fn push_to_bundle(bundle: &mut Vec<u8>, entry: &[u8]) -> Result<(), Flaw> {
    let length = u16::try_from(entry.len()).map_err(|_| TOO_LONG)?;
    bundle.extend_from_slice(&length.to_be_bytes());
    bundle.extend_from_slice(entry);
    Ok(())
}

/// The entries of a bundle that should have `count` of them.
pub fn decode_bundle(mut bytes: &[u8], count: usize) -> Result<Vec<&[u8]>, Flaw> {
    let mut entries = Vec::with_capacity(count.min(BUNDLE as usize));
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk().ok_or(Flaw("the bundle ends within a length"))?;
        let length = usize::from(u16::from_be_bytes(*length));
        let (entry, rest) = rest.split_at_checked(length).ok_or(Flaw("the bundle ends within an entry"))?;
        entries.push(entry);
        bytes = rest;
    }
    match entries.len() == count {
        true => Ok(entries),
        false => Err(Flaw("the bundle has the wrong number of entries")),
    }
}

/// An entry of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub entry: &'a [u8],
    /// Whether a batch begins with it. All batches before have been made durable then, and this one perhaps not.
    pub begins_batch: bool,
    /// Bytes that it takes in the journal.
    pub bytes: usize,
}

const BEGINS_BATCH: u32 = 1 << 31;

/// Adds an entry to what will be written to the journal: length, checksum of length and entry, both little-endian, entry. The
/// length's highest bit says that a batch begins.
pub fn push_frame(out: &mut Vec<u8>, entry: &[u8], begins_batch: bool) -> Result<(), Flaw> {
    let length = u16::try_from(entry.len()).map_err(|_| TOO_LONG)?;
    let length = (u32::from(length) | if begins_batch { BEGINS_BATCH } else { 0 }).to_le_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&checksum(length, entry).to_le_bytes());
    out.extend_from_slice(entry);
    Ok(())
}

/// The frame at the beginning of `bytes`.
pub fn read_frame(bytes: &[u8]) -> Result<Frame<'_>, Flaw> {
    let cut = Flaw("the frame is cut off");
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or(cut)?;
    let (sum, rest) = rest.split_first_chunk::<4>().ok_or(cut)?;
    let word = u32::from_le_bytes(*length);
    let count = (word & !BEGINS_BATCH) as usize;
    if count > ENTRY_BYTES_MAX {
        return Err(Flaw("the frame's length is impossible"));
    }
    let entry = rest.get(..count).ok_or(cut)?;
    match checksum(*length, entry) == u32::from_le_bytes(*sum) {
        true => Ok(Frame { entry, begins_batch: word & BEGINS_BATCH != 0, bytes: FRAME_HEAD + count }),
        false => Err(Flaw("the frame's checksum is wrong")),
    }
}

const TOO_LONG: Flaw = Flaw("an entry is longer than 65,535 bytes");

fn checksum(length: [u8; 4], entry: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), entry)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_c2sps() {
        let tile = |level, index| TileId { level, index };
        assert_eq!(tile_path(tile(0, 0)), "tile/0/000");
        assert_eq!(tile_path(tile(0, 999)), "tile/0/999");
        assert_eq!(tile_path(tile(1, 1000)), "tile/1/x001/000");
        assert_eq!(tile_path(tile(2, 1_234_067)), "tile/2/x001/x234/067");
        assert_eq!(partial_tile_path(tile(0, 1_234_067), 8), "tile/0/x001/x234/067.p/8");
        assert_eq!(bundle_path(1_234_067), "tile/entries/x001/x234/067.gz");
        assert_eq!(partial_bundle_path(5, 255), "tile/entries/005.p/255");
        assert_eq!(journal_path(7), "journal/0000000007");
        assert_eq!(segment_of_name("0000000007"), Some(7));
        for bad in ["", "7", "+000000007", "0000000007.new", "00000000007", "000000000x"] {
            assert_eq!(segment_of_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let long = vec![b'x'; ENTRY_BYTES_MAX + 1];
        assert_eq!(push_frame(&mut Vec::new(), &long, true), Err(TOO_LONG));
        assert_eq!(push_to_bundle(&mut Vec::new(), &long), Err(TOO_LONG));
        push_frame(&mut Vec::new(), &long[1..], true).expect("fits");
        assert!(decode_tile(&[0; 33], 1).is_err());
        assert!(decode_tile(&[0; 32], 2).is_err());
    }

    proptest! {
        #[test]
        fn bundles_and_frames_are_read_as_they_were_written(
            entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..20), flip in any::<prop::sample::Index>(),
        ) {
            let (mut bundle, mut journal) = (Vec::new(), Vec::new());
            for (place, entry) in entries.iter().enumerate() {
                push_to_bundle(&mut bundle, entry).expect("fits");
                push_frame(&mut journal, entry, place % 3 == 0).expect("fits");
            }
            prop_assert_eq!(decode_bundle(&bundle, entries.len()).expect("a bundle"), entries.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert!(decode_bundle(&bundle, entries.len() + 1).is_err());
            prop_assert!(decode_bundle(&bundle[..bundle.len() - 1], entries.len()).is_err() || entries.last().is_some_and(Vec::is_empty));
            let mut rest = &journal[..];
            for (place, entry) in entries.iter().enumerate() {
                let frame = read_frame(rest).expect("a frame");
                prop_assert_eq!((frame.entry, frame.begins_batch), (&entry[..], place % 3 == 0));
                for cut in 0..frame.bytes {
                    prop_assert!(read_frame(&rest[..cut]).is_err());
                }
                let mut flipped = rest[..frame.bytes].to_vec();
                let bit = flip.index(8 * flipped.len());
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(read_frame(&flipped).is_err());
                rest = &rest[frame.bytes..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (read_frame(&bytes), decode_bundle(&bytes, 3), decode_tile(&bytes, 2));
        }
    }
}
