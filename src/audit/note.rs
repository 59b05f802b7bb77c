//! Who says that the log was so large, with this root? C2SP signed notes (signed-note, tlog-checkpoint) with Ed25519, and the
//! timestamped cosignatures of witnesses (tlog-cosignature). Pure: bytes and keys in, values out.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::tree::{self, Hash};

/// A checkpoint has some hundred bytes, and each cosignature less than four hundred.
pub const NOTE_BYTES_MAX: usize = 64 << 10;
pub const SIGNATURES_MAX: usize = 100;
pub const NAME_BYTES_MAX: usize = 255;

/// A text and who signed it. That a signature is there does not mean that it is right: see [`Note::verified_by`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

/// A line below a note. What its bytes mean depends on the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    name: String,
    key_id: u32,
    bytes: Vec<u8>,
}

/// Why something is no note, key or checkpoint, or not signed. Never shows what was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw(pub &'static str);

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Flaw {}

const SIGNATURE_START: &str = "\u{2014} ";

impl Note {
    /// A note that nobody has signed yet.
    pub fn new(text: &str) -> Result<Note, Flaw> {
        is_text(text)?;
        Ok(Note { text: text.to_owned(), signatures: Vec::new() })
    }

    pub fn parse(bytes: &[u8]) -> Result<Note, Flaw> {
        if bytes.len() > NOTE_BYTES_MAX {
            return Err(Flaw("the note is too long"));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| Flaw("the note is not UTF-8"))?;
        let end = whole.rfind("\n\n").ok_or(Flaw("the note has no blank line before its signatures"))?;
        let (text, lines) = (&whole[..=end], &whole[end + 2..]);
        is_text(text)?;
        let lines = lines.strip_suffix('\n').ok_or(Flaw("the note's last line has no end"))?;
        let signatures = lines.split('\n').map(Signature::parse).collect::<Result<Vec<_>, _>>()?;
        if signatures.len() > SIGNATURES_MAX {
            return Err(Flaw("the note has too many signatures"));
        }
        Ok(Note { text: text.to_owned(), signatures })
    }

    /// What is signed, with the end of its last line.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn signatures(&self) -> &[Signature] {
        &self.signatures
    }

    /// Adds a signature, in the place of an earlier one by the same key.
    pub fn add(&mut self, signature: Signature) -> Result<(), Flaw> {
        let same = |other: &Signature| other.name == signature.name && other.key_id == signature.key_id;
        match self.signatures.iter().position(same) {
            Some(place) => self.signatures[place] = signature,
            None if self.signatures.len() < SIGNATURES_MAX => self.signatures.push(signature),
            None => return Err(Flaw("the note has too many signatures")),
        }
        Ok(())
    }

    /// That this key has signed the text, and when, where it says so. Every signature that names the key has to be right.
    pub fn verified_by(&self, key: &Vkey) -> Result<Verified, Flaw> {
        let by = |signature: &&Signature| signature.name == key.name && signature.key_id == key.key_id();
        let mut found = None;
        for signature in self.signatures.iter().filter(by) {
            found = Some(key.verify(&self.text, &signature.bytes)?);
        }
        found.ok_or(Flaw("the note is not signed by this key"))
    }
}

/// The note as it is written; without signatures it is none yet.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

/// A signature that is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Verified {
    /// Unix seconds, of a cosignature.
    pub time: Option<u64>,
}

impl Signature {
    /// A line of a note, without its end; also what a witness answers.
    pub fn parse(line: &str) -> Result<Signature, Flaw> {
        let rest = line.strip_prefix(SIGNATURE_START).ok_or(Flaw("a signature does not begin with a dash"))?;
        let (name, encoded) = rest.split_once(' ').ok_or(Flaw("a signature has no name"))?;
        is_name(name)?;
        let bytes = STANDARD.decode(encoded).map_err(|_| Flaw("a signature is not base64"))?;
        match bytes.split_first_chunk() {
            Some((id, bytes)) if !bytes.is_empty() => {
                Ok(Signature { name: name.to_owned(), key_id: u32::from_be_bytes(*id), bytes: bytes.to_vec() })
            }
            _ => Err(Flaw("a signature is too short")),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn key_id(&self) -> u32 {
        self.key_id
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id.to_be_bytes()[..], &self.bytes].concat();
        write!(f, "{SIGNATURE_START}{} {}", self.name, STANDARD.encode(bytes))
    }
}

/// What a key's signatures are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The note's text: logs.
    Ed25519 = 0x01,
    /// The time, and the note's text: witnesses.
    CosignatureV1 = 0x04,
}

/// A public key with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vkey {
    name: String,
    algorithm: Algorithm,
    key: [u8; 32],
}

impl Vkey {
    /// From `NAME+ID+BASE64`.
    pub fn parse(text: &str) -> Result<Vkey, Flaw> {
        let (name, id, encoded) = in_three(text).ok_or(Flaw("the key is not NAME+ID+BASE64"))?;
        let bytes = STANDARD.decode(encoded).map_err(|_| Flaw("the key is not base64"))?;
        let (algorithm, key) = algorithm_and_key(&bytes)?;
        let vkey = Vkey { name: name.to_owned(), algorithm, key };
        match id == format!("{:08x}", vkey.key_id()) {
            true => Ok(vkey),
            false => Err(Flaw("the key's id is not that of its name and bytes")),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn key_id(&self) -> u32 {
        let bytes = [self.name.as_bytes(), b"\n", &[self.algorithm as u8], &self.key].concat();
        let hash = digest(&SHA256, &bytes);
        hash.as_ref().first_chunk().map_or(0, |id| u32::from_be_bytes(*id))
    }

    fn verify(&self, text: &str, signature: &[u8]) -> Result<Verified, Flaw> {
        let (signed, signature, time) = match self.algorithm {
            Algorithm::Ed25519 => (text.to_owned(), signature, None),
            Algorithm::CosignatureV1 => {
                let (time, signature) = signature.split_first_chunk().ok_or(Flaw("a cosignature is too short"))?;
                let time = u64::from_be_bytes(*time);
                (cosigned(text, time), signature, Some(time))
            }
        };
        let key = UnparsedPublicKey::new(&ED25519, &self.key);
        key.verify(signed.as_bytes(), signature).map_err(|_| Flaw("the signature by this key is wrong"))?;
        Ok(Verified { time })
    }
}

impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&[self.algorithm as u8][..], &self.key].concat();
        write!(f, "{}+{:08x}+{}", self.name, self.key_id(), STANDARD.encode(bytes))
    }
}

/// A private key with its name.
pub struct Signer {
    name: String,
    pair: Ed25519KeyPair,
}

const PRIVATE_START: &str = "PRIVATE+KEY+";

impl Signer {
    /// From `PRIVATE+KEY+NAME+ID+BASE64`, as Go's `note.GenerateKey` writes it.
    pub fn parse(text: &str) -> Result<Signer, Flaw> {
        let rest = text.strip_prefix(PRIVATE_START).ok_or(Flaw("does not begin with PRIVATE+KEY+"))?;
        let (name, id, encoded) = in_three(rest).ok_or(Flaw("is not PRIVATE+KEY+NAME+ID+BASE64"))?;
        let bytes = STANDARD.decode(encoded).map_err(|_| Flaw("is not valid base64"))?;
        let (Algorithm::Ed25519, seed) = algorithm_and_key(&bytes)? else {
            return Err(Flaw("is a key for something else than signing notes"));
        };
        let signer = Signer::from_seed(name, &seed)?;
        match id == format!("{:08x}", signer.vkey().key_id()) {
            true => Ok(signer),
            false => Err(Flaw("has an id that is not that of its name and bytes")),
        }
    }

    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Signer, Flaw> {
        is_name(name)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| Flaw("is no Ed25519 key"))?;
        Ok(Signer { name: name.to_owned(), pair })
    }

    pub fn vkey(&self) -> Vkey {
        self.public(Algorithm::Ed25519)
    }

    pub fn sign(&self, text: &str) -> Signature {
        let bytes = self.pair.sign(text.as_bytes()).as_ref().to_vec();
        Signature { name: self.name.clone(), key_id: self.vkey().key_id(), bytes }
    }

    /// The key of this one's cosignatures. A key is either a log's or a witness's.
    pub fn cosigner_vkey(&self) -> Vkey {
        self.public(Algorithm::CosignatureV1)
    }

    /// What a witness adds to a checkpoint that is consistent with all it saw before, at a time in Unix seconds.
    pub fn cosign(&self, text: &str, time: u64) -> Signature {
        let signature = self.pair.sign(cosigned(text, time).as_bytes());
        let bytes = [&time.to_be_bytes()[..], signature.as_ref()].concat();
        Signature { name: self.name.clone(), key_id: self.cosigner_vkey().key_id(), bytes }
    }

    /// The private key as [`Signer::parse`] reads it: for its file alone.
    pub fn expose(name: &str, seed: &[u8; 32]) -> Result<String, Flaw> {
        let id = Signer::from_seed(name, seed)?.vkey().key_id();
        let bytes = [&[Algorithm::Ed25519 as u8][..], seed].concat();
        Ok(format!("{PRIVATE_START}{name}+{id:08x}+{}", STANDARD.encode(bytes)))
    }

    fn public(&self, algorithm: Algorithm) -> Vkey {
        // An Ed25519 public key always has 32 bytes.
        let mut key = [0; 32];
        key.copy_from_slice(self.pair.public_key().as_ref());
        Vkey { name: self.name.clone(), algorithm, key }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.vkey())
    }
}

/// How large a log was, and its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name, and its key's.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
    /// Further lines, none of them empty.
    pub extensions: Vec<String>,
}

impl Checkpoint {
    /// From a note's text.
    pub fn parse(text: &str) -> Result<Checkpoint, Flaw> {
        let text = text.strip_suffix('\n').ok_or(Flaw("the checkpoint's last line has no end"))?;
        let mut lines = text.split('\n');
        let origin = lines.next().filter(|origin| !origin.is_empty()).ok_or(Flaw("the checkpoint has no origin"))?;
        let size = lines.next().and_then(decimal).ok_or(Flaw("the checkpoint's size is not a number"))?;
        let root = lines.next().and_then(Hash::parse).ok_or(Flaw("the checkpoint's root is not a hash"))?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(Flaw("the checkpoint has an empty line"));
        }
        if size >= tree::SIZE_MAX {
            return Err(Flaw("the checkpoint's size is larger than any log"));
        }
        Ok(Checkpoint { origin: origin.to_owned(), size, root, extensions })
    }

    /// From a note that this key, which is the log's, has signed.
    pub fn verified(bytes: &[u8], key: &Vkey) -> Result<Checkpoint, Flaw> {
        let note = Note::parse(bytes)?;
        let _ = note.verified_by(key)?;
        let checkpoint = Checkpoint::parse(note.text())?;
        match checkpoint.origin == key.name() {
            true => Ok(checkpoint),
            false => Err(Flaw("the checkpoint is of another log than its key")),
        }
    }

    pub fn sign(&self, signer: &Signer) -> Result<Note, Flaw> {
        let mut note = Note::new(&self.to_string())?;
        note.add(signer.sign(&note.text))?;
        Ok(note)
    }
}

/// As the text of a note.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, self.root)?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// What names a key, or a log: not empty, no white space, no plus, no control character.
pub fn is_name(name: &str) -> Result<(), Flaw> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    match name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(strange) {
        true => Err(Flaw("a name is empty, too long, or has a space, plus or control character")),
        false => Ok(()),
    }
}

fn is_text(text: &str) -> Result<(), Flaw> {
    if !text.ends_with('\n') {
        return Err(Flaw("the note's text has no end of line at its end"));
    }
    match text.bytes().any(|byte| byte < 0x20 && byte != b'\n') {
        true => Err(Flaw("the note has a control character")),
        false => Ok(()),
    }
}

fn cosigned(text: &str, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

fn in_three(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once('+')?;
    is_name(name).ok()?;
    let (id, encoded) = rest.split_once('+')?;
    Some((name, id, encoded))
}

fn algorithm_and_key(bytes: &[u8]) -> Result<(Algorithm, [u8; 32]), Flaw> {
    let (algorithm, key) = bytes.split_first().ok_or(Flaw("the key is empty"))?;
    let algorithm = match algorithm {
        0x01 => Algorithm::Ed25519,
        0x04 => Algorithm::CosignatureV1,
        _ => return Err(Flaw("the key is of an unknown kind")),
    };
    Ok((algorithm, key.try_into().map_err(|_| Flaw("the key does not have 32 bytes"))?))
}

/// Digits without a sign or leading zeros.
fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use signed_note::{Signer as _, Verifier as _};

    use super::*;

    const SEED: [u8; 32] = [7; 32];
    const NAME: &str = "dwarpal.example/log";

    fn signer() -> Signer {
        Signer::from_seed(NAME, &SEED).expect("a key")
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint { origin: NAME.to_owned(), size: 20_852_163, root: tree::leaf_hash(b"x"), extensions: Vec::new() }
    }

    /// The example of Go's documentation (golang.org/x/mod/sumdb/note).
    #[test]
    fn gos_example_is_read() {
        let key = Vkey::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").expect("a key");
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let line = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let note = Note::parse(format!("{text}\n{line}").as_bytes()).expect("a note");
        assert_eq!(note.verified_by(&key), Ok(Verified { time: None }));
        assert_eq!(note.to_string(), format!("{text}\n{line}"));
        let forged = Note::parse(format!("{}\n{line}", text.replace("know", "knew")).as_bytes()).expect("a note");
        assert_eq!(forged.verified_by(&key), Err(Flaw("the signature by this key is wrong")));
        assert_eq!(note.verified_by(&signer().vkey()), Err(Flaw("the note is not signed by this key")));
    }

    #[test]
    fn what_is_no_note_is_refused() {
        let good = checkpoint().sign(&signer()).expect("a note").to_string();
        assert!(Note::parse(good.as_bytes()).is_ok());
        let line = good.lines().last().expect("a line");
        let many = format!("text\n\n{}", format!("{line}\n").repeat(SIGNATURES_MAX + 1));
        for (why, bad) in [
            ("empty", String::new()),
            ("no blank line", good.replace("\n\n", "\n")),
            ("no signature", good.split_once("\n\n").expect("a blank line").0.to_owned() + "\n\n"),
            ("no end", good.trim_end().to_owned()),
            ("a blank line behind", good.clone() + "\n"),
            ("another dash", good.replace('\u{2014}', "-")),
            ("no name", good.replace(&format!("\u{2014} {NAME}"), "\u{2014} ")),
            ("a plus in the name", good.replace(&format!("\u{2014} {NAME}"), "\u{2014} a+b")),
            ("no base64", good.replace(line, &format!("{line}!"))),
            ("a short signature", good.replace(line, "\u{2014} a AAAAAA==")),
            ("a control character", good.replace("20852163", "20852163\r")),
            ("too many signatures", many),
            ("too long", format!("{}{good}", "x\n".repeat(NOTE_BYTES_MAX / 2))),
        ] {
            assert!(Note::parse(bad.as_bytes()).is_err(), "{why}");
        }
        assert!(Note::parse(b"\xff\n\n\n").is_err());
        assert!(Note::new("no end of line").is_err());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let good = signer().vkey().to_string();
        assert_eq!(Vkey::parse(&good).expect("a key").to_string(), good);
        let (name_and_id, key) = good.rsplit_once('+').expect("three parts");
        let id = &name_and_id[NAME.len() + 1..];
        let upper = id.to_uppercase();
        for bad in [
            "".to_owned(),
            good.replacen(NAME, "other", 1),
            good.replacen(NAME, "", 1),
            good.replacen(id, "00000000", 1),
            good.replacen(id, if upper == id { "x" } else { &upper }, 1),
            good.replacen(key, &STANDARD.encode([2; 33]), 1),
            good.replacen(key, &STANDARD.encode([1; 32]), 1),
            good.clone() + "=",
            good.clone() + "\n",
        ] {
            assert!(Vkey::parse(&bad).is_err(), "{bad}");
        }
        let private = Signer::expose(NAME, &SEED).expect("a key");
        for bad in [good.clone(), private.replacen(NAME, "other", 1), private.clone() + "\n", private[8..].to_owned()] {
            assert!(Signer::parse(&bad).is_err(), "{bad}");
        }
        assert!(!format!("{:?}", signer()).contains(&STANDARD.encode([&[1][..], &SEED].concat())));
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let good = Checkpoint { extensions: vec!["more".to_owned()], ..checkpoint() };
        let text = good.to_string();
        assert_eq!(Checkpoint::parse(&text), Ok(good.clone()));
        let root = good.root.to_string();
        for bad in [
            text.replace("20852163", "020852163"),
            text.replace("20852163", "+20852163"),
            text.replace("20852163", ""),
            text.replace("20852163", "-1"),
            text.replace("20852163", "18446744073709551616"),
            text.replace("20852163", "18446744073709551615"),
            text.replace(&root, &root[1..]),
            text.replace(NAME, ""),
            text.replace("more", ""),
            text.trim_end().to_owned(),
            String::new(),
        ] {
            assert!(Checkpoint::parse(&bad).is_err(), "{bad}");
        }
        let other = Checkpoint { origin: "other".to_owned(), ..good }.sign(&signer()).expect("a note").to_string();
        assert!(Checkpoint::verified(other.as_bytes(), &signer().vkey()).is_err(), "the origin is the key's name");
    }

    #[test]
    fn a_witness_says_when() {
        let witness = Signer::from_seed("witness.example/w", &[9; 32]).expect("a key");
        let mut note = checkpoint().sign(&signer()).expect("a note");
        let line = witness.cosign(note.text(), 1_780_000_000).to_string();
        note.add(Signature::parse(&line).expect("a signature")).expect("room");
        let key = Vkey::parse(&witness.cosigner_vkey().to_string()).expect("a key");
        assert_eq!(key.algorithm(), Algorithm::CosignatureV1);
        let note = Note::parse(note.to_string().as_bytes()).expect("a note");
        assert_eq!(note.verified_by(&key), Ok(Verified { time: Some(1_780_000_000) }));
        assert_eq!(note.verified_by(&witness.vkey()), Err(Flaw("the note is not signed by this key")));
        // Another time is another statement.
        let mut bytes = note.signatures()[1].clone();
        bytes.bytes[7] ^= 1;
        let mut forged = note.clone();
        forged.add(bytes).expect("in its place");
        assert_eq!(forged.signatures().len(), 2);
        assert!(forged.verified_by(&key).is_err());
        // The definition, written out.
        let signed = format!("cosignature/v1\ntime 1780000000\n{}", note.text());
        let plain = UnparsedPublicKey::new(&ED25519, key.key);
        plain.verify(signed.as_bytes(), &note.signatures()[1].bytes[8..]).expect("as tlog-cosignature says");
    }

    /// One right signature does not cover up for a wrong one by the same key.
    #[test]
    fn every_signature_by_a_key_has_to_be_right() {
        let note = checkpoint().sign(&signer()).expect("a note");
        let mut wrong = note.signatures()[0].clone();
        wrong.bytes[0] ^= 1;
        let both = format!("{note}{wrong}\n");
        assert!(Note::parse(both.as_bytes()).expect("a note").verified_by(&signer().vkey()).is_err());
    }

    proptest! {
        #[test]
        fn keys_and_notes_are_those_of_another_implementation(
            seed: [u8; 32], name in "[a-z./0-9-]{1,20}", text in "([ -~]{0,30}\n){1,4}", flip in any::<prop::sample::Index>(),
        ) {
            let private = Signer::expose(&name, &seed).expect("a key");
            let ours = Signer::parse(&private).expect("a key");
            let theirs = signed_note::StandardSigner::new(&private).expect("a key");
            let vkey = ours.vkey();
            let verifier = signed_note::StandardVerifier::new(&vkey.to_string()).expect("a key");
            prop_assert_eq!(verifier.key_id(), vkey.key_id());
            prop_assert_eq!(Vkey::parse(&vkey.to_string()).expect("a key"), vkey.clone());

            let mut note = Note::new(&text).expect("a text");
            note.add(ours.sign(&text)).expect("room");
            let mut other = signed_note::Note::new(text.as_bytes(), &[]).expect("a note");
            other.add_sigs(&[&theirs as &dyn signed_note::Signer]).expect("signed");
            let bytes = note.to_string().into_bytes();
            prop_assert_eq!(&bytes, &other.to_bytes());
            prop_assert_eq!(theirs.name(), &name[..]);
            let _ = Note::parse(&bytes).expect("a note").verified_by(&vkey).expect("signed");

            // Nothing that is flipped passes for signed.
            let mut flipped = bytes.clone();
            let place = flip.index(8 * bytes.len());
            flipped[place / 8] ^= 1 << (place % 8);
            let passes = Note::parse(&flipped).is_ok_and(|note| note.verified_by(&vkey).is_ok());
            prop_assert!(!passes);
        }

        #[test]
        fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), text: String) {
            let _ = Note::parse(&bytes);
            let _ = (Note::parse(text.as_bytes()), Vkey::parse(&text), Signer::parse(&text), Checkpoint::parse(&text), Signature::parse(&text));
        }
    }
}
