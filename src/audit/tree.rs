//! Which hash stands for a list of entries, and what proves that an entry or an earlier list is in it? RFC 6962 and 9162, in
//! tiles of 256 hashes as C2SP's tlog-tiles has them. Pure: hashes come from a function and go to another.
//!
//! A stored hash is named by level and index: at level L it stands for 256^L entries, from entry index * 256^L on.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Hashes of a full tile.
pub const TILE_WIDTH: usize = 256;

/// Levels of tiles, and the most entries that they hold: numbers in paths stay short and arithmetic never overflows.
pub const LEVELS: u8 = 6;
pub const SIZE_MAX: u64 = 1 << (8 * LEVELS as u32);

/// SHA-256 of a leaf or a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// From base64 with padding, as checkpoints and proofs write it.
    pub fn parse(text: &str) -> Option<Hash> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Hash)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The root of no entries.
pub fn empty_root() -> Hash {
    sha256(digest(&SHA256, b"").as_ref())
}

pub fn leaf_hash(entry: &[u8]) -> Hash {
    let mut context = Context::new(&SHA256);
    context.update(&[0]);
    context.update(entry);
    sha256(context.finish().as_ref())
}

pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    // One update of 65 bytes is faster than three.
    let mut bytes = [1; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    sha256(digest(&SHA256, &bytes).as_ref())
}

/// The root over neighbouring hashes of one level; of none, that of an empty tree.
///
/// Of a full tile it is the hash that stands for the tile one level up.
pub fn root_of(hashes: &[Hash]) -> Hash {
    fold(hashes, None).unwrap_or_else(empty_root)
}

/// Joins the complete trees that `hashes` make up with what is to the right of them.
fn fold(mut hashes: &[Hash], mut right: Option<Hash>) -> Option<Hash> {
    while !hashes.is_empty() {
        let (rest, last) = hashes.split_at(hashes.len() - (1 << hashes.len().trailing_zeros()));
        let left = complete(last);
        right = Some(right.map_or(left, |right| node_hash(&left, &right)));
        hashes = rest;
    }
    right
}

/// The root of a power of two of hashes, at least one.
fn complete(hashes: &[Hash]) -> Hash {
    if let [hash] = hashes {
        return *hash;
    }
    let (left, right) = hashes.split_at(hashes.len() / 2);
    node_hash(&complete(left), &complete(right))
}

/// A tile: hashes `index * 256` and on of its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileId {
    pub level: u8,
    pub index: u64,
}

impl TileId {
    /// Hashes that this tile has in a tree of that size.
    pub fn width(self, size: u64) -> usize {
        let hashes = size.checked_shr(8 * u32::from(self.level)).unwrap_or(0);
        hashes.saturating_sub(self.index.saturating_mul(TILE_WIDTH as u64)).min(TILE_WIDTH as u64) as usize
    }
}

/// The right edge of a growing tree: for each level the hashes of the tile that is not full yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    size: u64,
    levels: [Vec<Hash>; LEVELS as usize],
}

/// The tree cannot grow any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log has {SIZE_MAX} entries, the most there can be")
    }
}

impl std::error::Error for Full {}

impl Default for Edge {
    fn default() -> Edge {
        Edge { size: 0, levels: std::array::from_fn(|_| Vec::new()) }
    }
}

impl Edge {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The edge of a tree of that size, from its stored hashes: those of level L that are in no full tile.
    pub fn restore<E>(size: u64, mut hash: impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Edge, ProofError<E>> {
        within(size)?;
        let mut edge = Edge { size, ..Edge::default() };
        for level in 0..LEVELS {
            let count = size >> (8 * u32::from(level));
            let full = count / TILE_WIDTH as u64 * TILE_WIDTH as u64;
            for index in full..count {
                edge.levels[usize::from(level)].push(hash(level, index).map_err(ProofError::Source)?);
            }
        }
        Ok(edge)
    }

    /// Adds a leaf; every tile that becomes full goes to `full`, lower levels first.
    pub fn append(&mut self, leaf: Hash, full: &mut impl FnMut(TileId, &[Hash])) -> Result<(), Full> {
        // One less than the maximum, so that the topmost tile never is full.
        if self.size >= SIZE_MAX - 1 {
            return Err(Full);
        }
        self.size += 1;
        let mut hash = leaf;
        for (level, hashes) in (0..).zip(&mut self.levels) {
            hashes.push(hash);
            if hashes.len() < TILE_WIDTH {
                break;
            }
            full(TileId { level, index: (self.size >> (8 * (u32::from(level) + 1))) - 1 }, hashes);
            hash = complete(hashes);
            hashes.clear();
        }
        Ok(())
    }

    /// A stored hash, if it is in no full tile yet.
    pub fn hash(&self, level: u8, index: u64) -> Option<Hash> {
        let first = (self.size >> (8 * (u32::from(level.min(LEVELS)) + 1))) * TILE_WIDTH as u64;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        self.levels.get(usize::from(level))?.get(place).copied()
    }

    pub fn root(&self) -> Hash {
        let right = self.levels.iter().fold(None, |right, hashes| fold(hashes, right));
        right.unwrap_or_else(empty_root)
    }

    /// The tiles that are not full, and not empty.
    pub fn partial(&self) -> impl Iterator<Item = (TileId, &[Hash])> {
        (0u8..).zip(&self.levels).filter(|(_, hashes)| !hashes.is_empty()).map(|(level, hashes)| {
            (TileId { level, index: self.size >> (8 * (u32::from(level) + 1)) }, hashes.as_slice())
        })
    }
}

/// Why there is no root or proof.
#[derive(Debug, PartialEq, Eq)]
pub enum ProofError<E> {
    /// What was asked for cannot be in a tree of that size.
    OutOfRange(&'static str),
    /// The source of hashes failed.
    Source(E),
}

impl<E: fmt::Display> fmt::Display for ProofError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProofError::OutOfRange(what) => f.write_str(what),
            ProofError::Source(error) => error.fmt(f),
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for ProofError<E> {}

/// The root of the first `size` entries.
pub fn root_at<E>(size: u64, mut hash: impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Hash, ProofError<E>> {
    within(size)?;
    match size {
        0 => Ok(empty_root()),
        _ => range(0, size, &mut hash).map_err(ProofError::Source),
    }
}

/// What proves that entry `index` is in the tree of that size, from the leaf up.
pub fn inclusion_proof<E>(
    index: u64,
    size: u64,
    mut hash: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, ProofError<E>> {
    within(size)?;
    if index >= size {
        return Err(ProofError::OutOfRange("the entry is not in a log of that size"));
    }
    let mut proof = Vec::new();
    let (mut from, mut to) = (0, size);
    while to - from > 1 {
        let split = from + split(to - from);
        let sibling = if index < split { (split, to) } else { (from, split) };
        proof.push(range(sibling.0, sibling.1, &mut hash).map_err(ProofError::Source)?);
        (from, to) = if index < split { (from, split) } else { (split, to) };
    }
    proof.reverse();
    Ok(proof)
}

/// What proves that the tree of size `old` is the beginning of the one of size `new`.
pub fn consistency_proof<E>(
    old: u64,
    new: u64,
    mut hash: impl FnMut(u8, u64) -> Result<Hash, E>,
) -> Result<Vec<Hash>, ProofError<E>> {
    within(new)?;
    if old > new {
        return Err(ProofError::OutOfRange("the earlier log is larger than the later one"));
    }
    let mut proof = Vec::new();
    if old == 0 || old == new {
        return Ok(proof);
    }
    let (mut from, mut to) = (0, new);
    // Until the range is one of the complete trees that make up the old one.
    while to != old {
        let split = from + split(to - from);
        let sibling = if old <= split { (split, to) } else { (from, split) };
        proof.push(range(sibling.0, sibling.1, &mut hash).map_err(ProofError::Source)?);
        (from, to) = if old <= split { (from, split) } else { (split, to) };
    }
    if from > 0 {
        proof.push(range(from, to, &mut hash).map_err(ProofError::Source)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Something does not prove what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refuted(pub &'static str);

impl fmt::Display for Refuted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refuted {}

/// RFC 9162, 2.1.3.2.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), Refuted> {
    if index >= size {
        return Err(Refuted("the entry is not in a log of that size"));
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(Refuted("the inclusion proof is too long"));
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match last == 0 {
        false => Err(Refuted("the inclusion proof is too short")),
        true if hash != *root => Err(Refuted("the inclusion proof does not lead to the root")),
        true => Ok(()),
    }
}

/// RFC 9162, 2.1.4.2, with the cases that it leaves out: an empty earlier log, and two of the same size.
pub fn verify_consistency(old: u64, old_root: &Hash, new: u64, new_root: &Hash, proof: &[Hash]) -> Result<(), Refuted> {
    if old > new {
        return Err(Refuted("the earlier log is larger than the later one"));
    }
    if old == new || old == 0 {
        return match proof {
            _ if old == 0 && *old_root != empty_root() => Err(Refuted("an empty log has another root")),
            _ if old == new && old_root != new_root => Err(Refuted("two logs of the same size have different roots")),
            [] => Ok(()),
            _ => Err(Refuted("the consistency proof is too long")),
        };
    }
    let mut proof = proof.iter();
    let start = match old.is_power_of_two() {
        true => *old_root,
        false => *proof.next().ok_or(Refuted("the consistency proof is too short"))?,
    };
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        (node, last) = (node >> 1, last >> 1);
    }
    let (mut before, mut after) = (start, start);
    for sibling in proof {
        if last == 0 {
            return Err(Refuted("the consistency proof is too long"));
        }
        if node & 1 == 1 || node == last {
            before = node_hash(sibling, &before);
            after = node_hash(sibling, &after);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            after = node_hash(&after, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    match last == 0 {
        false => Err(Refuted("the consistency proof is too short")),
        true if before != *old_root => Err(Refuted("the consistency proof does not lead to the earlier root")),
        true if after != *new_root => Err(Refuted("the consistency proof does not lead to the later root")),
        true => Ok(()),
    }
}

fn within<E>(size: u64) -> Result<(), ProofError<E>> {
    match size < SIZE_MAX {
        true => Ok(()),
        false => Err(ProofError::OutOfRange("no log is that large")),
    }
}

/// The largest power of two below `count`, which is at least two.
fn split(count: u64) -> u64 {
    1 << (count - 1).ilog2()
}

/// The root over a range that RFC 6962's recursion comes to: not empty, and aligned to the power of two above its length.
fn range<E>(from: u64, to: u64, hash: &mut impl FnMut(u8, u64) -> Result<Hash, E>) -> Result<Hash, E> {
    let count = to - from;
    if !count.is_power_of_two() {
        let split = from + split(count);
        return Ok(node_hash(&range(from, split, hash)?, &range(split, to, hash)?));
    }
    let level = count.ilog2() / 8;
    let stride = 1 << (8 * level);
    let hashes = (from / stride..to / stride).map(|index| hash(level as u8, index));
    Ok(complete(&hashes.collect::<Result<Vec<_>, E>>()?))
}

fn sha256(bytes: &[u8]) -> Hash {
    // A SHA-256 digest always has 32 bytes.
    let mut hash = [0; 32];
    hash.copy_from_slice(bytes);
    Hash(hash)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use proptest::prelude::*;
    use tlog_tiles::tlog;

    use super::*;

    /// A tree whose stored hashes are all kept, and the same one by the oracle.
    #[derive(Default)]
    struct Pair {
        edge: Edge,
        tiles: HashMap<(u8, u64), Hash>,
        roots: Vec<Hash>,
        leaves: Vec<Hash>,
        oracle: Oracle,
    }

    #[derive(Default)]
    struct Oracle(Vec<tlog::Hash>);

    impl tlog::HashReader for Oracle {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<tlog::Hash>, tlog::Error> {
            Ok(indexes.iter().map(|index| self.0[*index as usize]).collect())
        }
    }

    impl Pair {
        fn of(size: u64) -> Pair {
            let mut pair = Pair::default();
            pair.roots.push(pair.edge.root());
            for index in 0..size {
                let entry = format!("entry {index}");
                let leaf = leaf_hash(entry.as_bytes());
                pair.tiles.insert((0, index), leaf);
                pair.leaves.push(leaf);
                let tiles = &mut pair.tiles;
                let mut keep = |tile: TileId, hashes: &[Hash]| {
                    assert_eq!(hashes.len(), TILE_WIDTH);
                    tiles.insert((tile.level + 1, tile.index), root_of(hashes));
                };
                pair.edge.append(leaf, &mut keep).expect("room");
                pair.roots.push(pair.edge.root());
                let hashes = tlog::stored_hashes(index, entry.as_bytes(), &pair.oracle).expect("hashes");
                pair.oracle.0.extend(hashes);
            }
            pair
        }

        fn hash(&self, level: u8, index: u64) -> Result<Hash, Infallible> {
            Ok(self.tiles[&(level, index)])
        }
    }

    fn theirs(proof: &[Hash]) -> Vec<tlog::Hash> {
        proof.iter().map(|hash| tlog::Hash(hash.0)).collect()
    }

    #[test]
    fn known_answers_of_rfc_6962() {
        assert_eq!(empty_root().to_string(), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
        assert_eq!(Hash::parse(&empty_root().to_string()), Some(empty_root()));
        assert_eq!(Hash::parse("47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"), None, "without padding");
        assert_eq!(leaf_hash(b"").to_string(), "bjQLnP+zepicpUTmu3gKLHiQHT+zNzh2hRGjBhevoB0=");
        assert_eq!(root_of(&[]), empty_root());
    }

    /// Every size around the places where a tile fills, and some others.
    #[test]
    fn roots_and_proofs_are_those_of_another_implementation() {
        let pair = Pair::of(66_200);
        let sizes = [1, 2, 3, 7, 8, 255, 256, 257, 511, 512, 513, 65_535, 65_536, 65_537, 65_793, 66_048, 66_200];
        for size in sizes {
            let root = tlog::tree_hash(size, &pair.oracle).expect("a root");
            assert_eq!(pair.roots[size as usize].0, root.0, "{size}");
            let ours = root_at(size, |level, index| pair.hash(level, index)).expect("a root");
            assert_eq!(ours.0, root.0, "{size}");
            for index in [0, 1, 2, size / 3, size / 2, size.saturating_sub(256), size - 1] {
                let index = index.min(size - 1);
                let proof = inclusion_proof(index, size, |level, index| pair.hash(level, index)).expect("a proof");
                let oracle = tlog::prove_record(size, index, &pair.oracle).expect("a proof");
                assert_eq!(theirs(&proof), oracle, "{index} in {size}");
                verify_inclusion(&pair.leaves[index as usize], index, size, &proof, &ours).expect("included");
            }
            for old in sizes.into_iter().chain([size / 2, size - 1]).filter(|old| (1..=size).contains(old)) {
                let proof = consistency_proof(old, size, |level, index| pair.hash(level, index)).expect("a proof");
                let oracle = tlog::prove_tree(size, old, &pair.oracle).expect("a proof");
                assert_eq!(theirs(&proof), oracle, "{old} to {size}");
                verify_consistency(old, &pair.roots[old as usize], size, &ours, &proof).expect("consistent");
            }
        }
    }

    #[test]
    fn an_edge_is_restored_from_stored_hashes() {
        let pair = Pair::of(1_000);
        for size in [0, 1, 255, 256, 257, 512, 767, 768, 1_000] {
            let mut edge = Edge::restore(size, |level, index| pair.hash(level, index)).expect("an edge");
            assert_eq!(edge.root(), pair.roots[size as usize]);
            let widths: Vec<_> = edge.partial().map(|(tile, hashes)| (tile, hashes.len())).collect();
            let kept = (0..LEVELS).flat_map(|level| (0..1_100).map(move |index| (level, index)));
            for (level, index) in kept.filter(|(level, index)| edge.hash(*level, *index).is_some()) {
                assert_eq!(edge.hash(level, index), Some(pair.tiles[&(level, index)]));
            }
            assert!(widths.iter().all(|(tile, width)| tile.width(size) == *width), "{size}: {widths:?}");
            for leaf in &pair.leaves[size as usize..] {
                edge.append(*leaf, &mut |_, _| {}).expect("room");
            }
            assert_eq!(edge, pair.edge);
        }
    }

    #[test]
    fn what_cannot_be_is_an_error() {
        let none = |_, _| -> Result<Hash, Infallible> { unreachable!("nothing is read") };
        assert!(matches!(root_at(SIZE_MAX, none), Err(ProofError::OutOfRange(_))));
        assert!(matches!(inclusion_proof(0, 0, none), Err(ProofError::OutOfRange(_))));
        assert!(matches!(inclusion_proof(7, 7, none), Err(ProofError::OutOfRange(_))));
        assert!(matches!(inclusion_proof(0, u64::MAX, none), Err(ProofError::OutOfRange(_))));
        assert!(matches!(consistency_proof(8, 7, none), Err(ProofError::OutOfRange(_))));
        assert!(matches!(Edge::restore(u64::MAX, none), Err(ProofError::OutOfRange(_))));
        assert_eq!(inclusion_proof(1, 9, |_, _| Err("unreadable")), Err(ProofError::Source("unreadable")));
        let mut full = Edge { size: SIZE_MAX - 1, ..Edge::default() };
        assert_eq!(full.append(empty_root(), &mut |_, _| {}), Err(Full));
        let tile = TileId { level: u8::MAX, index: u64::MAX };
        assert_eq!(tile.width(u64::MAX), 0);
    }

    proptest! {
        /// A proof proves one thing: that of any other place, size or hash, cut, lengthened or changed, is refused.
        #[test]
        fn a_proof_proves_one_thing(size in 1u64..600, at in any::<prop::sample::Index>(), old in any::<prop::sample::Index>(),
                                    other in 0u64..600, bit in 0usize..256, place in any::<prop::sample::Index>()) {
            let pair = Pair::of(600);
            let index = at.index(size as usize) as u64;
            let (leaf, root) = (pair.leaves[index as usize], pair.roots[size as usize]);
            let read = |level, index| pair.hash(level, index);
            let flip = |hash: &Hash| {
                let mut bytes = hash.0;
                bytes[bit / 8] ^= 1 << (bit % 8);
                Hash(bytes)
            };
            let proof = inclusion_proof(index, size, read).expect("a proof");
            verify_inclusion(&leaf, index, size, &proof, &root).expect("included");
            prop_assert_eq!(verify_inclusion(&leaf, other, size, &proof, &root).is_ok(), other == index);
            prop_assert!(verify_inclusion(&flip(&leaf), index, size, &proof, &root).is_err());
            prop_assert!(verify_inclusion(&leaf, index, size, &proof, &flip(&root)).is_err());
            prop_assert!(verify_inclusion(&leaf, index, size, &[&proof[..], &[root]].concat(), &root).is_err());
            for changed in changes(&proof, place, flip) {
                prop_assert!(verify_inclusion(&leaf, index, size, &changed, &root).is_err());
            }

            let old = old.index(size as usize + 1) as u64;
            let earlier = pair.roots[old as usize];
            let proof = consistency_proof(old, size, read).expect("a proof");
            verify_consistency(old, &earlier, size, &root, &proof).expect("consistent");
            prop_assert!(verify_consistency(old, &flip(&earlier), size, &root, &proof).is_err());
            // From nothing, anything can have grown.
            prop_assert!(old == 0 || verify_consistency(old, &earlier, size, &flip(&root), &proof).is_err());
            prop_assert!(verify_consistency(old, &earlier, size, &root, &[&proof[..], &[root]].concat()).is_err());
            for changed in changes(&proof, place, flip) {
                prop_assert!(verify_consistency(old, &earlier, size, &root, &changed).is_err());
            }
        }

        #[test]
        fn no_proof_makes_a_verifier_panic(index: u64, size: u64, hashes in prop::collection::vec(any::<[u8; 32]>(), 0..70)) {
            let hashes: Vec<Hash> = hashes.into_iter().map(Hash).collect();
            let root = empty_root();
            prop_assert!(verify_inclusion(&root, index, size, &hashes, &Hash([7; 32])).is_err());
            prop_assert!(verify_consistency(index, &root, size, &Hash([7; 32]), &hashes).is_err() || index == 0);
        }
    }

    /// The proof without its last hash, and with one bit flipped.
    fn changes(proof: &[Hash], place: prop::sample::Index, flip: impl Fn(&Hash) -> Hash) -> Vec<Vec<Hash>> {
        if proof.is_empty() {
            return Vec::new();
        }
        let mut flipped = proof.to_vec();
        let place = place.index(proof.len());
        flipped[place] = flip(&flipped[place]);
        vec![proof[..proof.len() - 1].to_vec(), flipped]
    }
}
