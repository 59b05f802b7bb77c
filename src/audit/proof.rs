//! How does somebody carry away that an entry is in the log? C2SP tlog-proof: the entry's place, the hashes up to the root, and
//! the checkpoint that signs it. Pure.

use std::fmt;

use super::note::{Checkpoint, Flaw, Vkey};
use super::tree::{self, Hash};

/// Proves one entry, which itself is not in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    pub index: u64,
    /// From the leaf's sibling up to the root's child.
    pub hashes: Vec<Hash>,
    /// The signed checkpoint, as it was published.
    pub checkpoint: String,
}

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// A path in the largest tree there can be.
const HASHES_MAX: usize = 64;

impl Proof {
    pub fn parse(text: &str) -> Result<Proof, Flaw> {
        let (head, checkpoint) = text.split_once("\n\n").ok_or(Flaw("the proof has no empty line in it"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(FIRST_LINE) {
            return Err(Flaw("the first line is not that of a tlog-proof"));
        }
        // Nobody has signed it, so nobody should believe it.
        lines.next_if(|line| line.starts_with("extra "));
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = index.ok_or(Flaw("the proof has no index"))?;
        let hashes: Option<Vec<_>> = lines.map(Hash::parse).collect();
        let hashes = hashes.ok_or(Flaw("a line of the proof is no hash"))?;
        if hashes.len() > HASHES_MAX {
            return Err(Flaw("the proof has too many hashes"));
        }
        Ok(Proof { index, hashes, checkpoint: checkpoint.to_owned() })
    }

    /// That this entry is where the proof says, in a log that this key has signed for.
    pub fn verify(&self, entry: &[u8], key: &Vkey) -> Result<Checkpoint, Flaw> {
        let checkpoint = Checkpoint::verified(self.checkpoint.as_bytes(), key)?;
        let leaf = tree::leaf_hash(entry);
        tree::verify_inclusion(&leaf, self.index, checkpoint.size, &self.hashes, &checkpoint.root)
            .map_err(|refuted| Flaw(refuted.0))?;
        Ok(checkpoint)
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}\nindex {}", self.index)?;
        self.hashes.iter().try_for_each(|hash| writeln!(f, "{hash}"))?;
        write!(f, "\n{}", self.checkpoint)
    }
}

/// Digits without a sign or leading zeros.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::super::note::Signer;
    use super::*;

    const NAME: &str = "dwarpal.example/log";

    fn proof_of(index: u64, size: u64) -> (Proof, Vec<u8>, Vkey) {
        let entry = |index| format!("entry {index}").into_bytes();
        let leaves: Vec<_> = (0..size).map(|index| tree::leaf_hash(&entry(index))).collect();
        // All of it is below the first tile.
        let hash = |level: u8, index: u64| {
            assert_eq!(level, 0);
            Ok::<_, Infallible>(leaves[index as usize])
        };
        let root = tree::root_at(size, hash).expect("a root");
        let signer = Signer::from_seed(NAME, &[7; 32]).expect("a key");
        let checkpoint = Checkpoint { origin: NAME.to_owned(), size, root, extensions: Vec::new() };
        let checkpoint = checkpoint.sign(&signer).expect("signed").to_string();
        let hashes = tree::inclusion_proof(index, size, hash).expect("a proof");
        (Proof { index, hashes, checkpoint }, entry(index), signer.vkey())
    }

    #[test]
    fn the_form_is_that_of_the_specification() {
        let (proof, ..) = proof_of(2, 3);
        let text = proof.to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[..2], ["c2sp.org/tlog-proof@v1", "index 2"]);
        assert_eq!((lines[2].len(), lines[3], lines[4], lines[5]), (44, "", NAME, "3"));
        let extra = text.replace("\nindex", "\nextra YWJj\nindex");
        assert_eq!(Proof::parse(&extra), Ok(proof));
        for bad in [
            text.replace("v1", "v2"),
            text.replace("index 2", "index 02"),
            text.replace("index 2", "index"),
            text.replace("index 2\n", "index 2\n!\n"),
            String::new(),
        ] {
            assert!(Proof::parse(&bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_proof_holds_for_its_entry_alone(size in 1..200u64, index in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
            let index = index.index(size as usize) as u64;
            let (proof, entry, key) = proof_of(index, size);
            let text = proof.to_string();
            prop_assert_eq!(Proof::parse(&text), Ok(proof.clone()));
            prop_assert_eq!(proof.verify(&entry, &key).expect("proved").size, size);
            prop_assert!(proof.verify(b"another", &key).is_err());
            let mut flipped = text.into_bytes();
            let place = flip.index(8 * flipped.len());
            flipped[place / 8] ^= 1 << (place % 8);
            let passes = String::from_utf8(flipped).ok().and_then(|text| Proof::parse(&text).ok()).is_some_and(|proof| proof.verify(&entry, &key).is_ok());
            prop_assert!(!passes);
        }

        #[test]
        fn no_text_makes_it_panic(text: String, hashes in "(c2sp.org/tlog-proof@v1\n)?(index [0-9]{0,3}\n)?([A-Za-z=]{0,44}\n){0,3}\n.{0,20}") {
            let _ = (Proof::parse(&text), Proof::parse(&hashes));
        }
    }
}
