//! What may a detector know of an identifier?

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};

use super::{EpochKey, Kind, Subject};

/// What detectors learn of a subject, and what the audit keeps so that evidence can be rebuilt.
///
/// An id is a *block* and an *offset* in it. The block is the canonical id without its last three digits; that of a PAN
/// is its five letters and first digit, because its serial ends before the check letter. Blocks are numbered by their
/// trailing digits: `before` and `after` are one less and one more, with the letters in front unchanged.
///
/// The last three digits rest in clear (`offset`); everything else is keyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    pub block: Mark,
    /// [`Mark::NONE`] when the digits of the block are all zero.
    pub before: Mark,
    /// [`Mark::NONE`] when the digits of the block are all nine.
    pub after: Mark,
    /// Place in the block, 0 to 999.
    pub offset: u16,
    /// The first five digits of a mobile, which is how the regulator allocates; the first four characters otherwise.
    pub series: Mark,
    /// See [`Subject::allocated`].
    pub allocated: Option<bool>,
    /// `Some(true)` for kinds with a known check digit, which every parsed subject has right; `None` for the others.
    pub check_digit: Option<bool>,
}

/// A keyed name of a part of an id: equal parts have equal marks under one epoch key, and nothing else can be read off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark([u8; 16]);

impl Mark {
    /// There is no such part. Equal to no computed mark but for a chance of 2⁻¹²⁸.
    pub const NONE: Mark = Mark([0; 16]);

    pub const fn from_bytes(bytes: [u8; 16]) -> Mark {
        Mark(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The first half of a tag.
    pub(super) fn of(tag: [u8; 32]) -> Mark {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&tag[..16]);
        Mark(bytes)
    }
}

/// Thirty-two lower-case hex digits.
impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl Serialize for Mark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mark, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let number = u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32);
        number.map(|number| Mark(number.to_be_bytes())).ok_or_else(|| D::Error::custom("not 32 hex digits"))
    }
}

impl fmt::Debug for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl EpochKey {
    /// Four HMACs, no allocation.
    pub fn features(&self, subject: &Subject) -> Features {
        let kind = subject.kind();
        let id = subject.expose().as_bytes();
        let serial = if kind == Kind::Pan { &id[..9] } else { id };
        // Every canonical id has at least eight characters, and its serial ends in three digits.
        let (block, offset) = serial.split_at(serial.len() - 3);
        let mark = |domain: &str, part: &[u8]| self.mark(domain, kind, part);
        let neighbour = |side| match neighbour(block, side) {
            Some(bytes) => mark("block", &bytes[..block.len()]),
            None => Mark::NONE,
        };
        Features {
            block: mark("block", block),
            before: neighbour(Side::Before),
            after: neighbour(Side::After),
            offset: offset.iter().fold(0, |number, digit| number * 10 + u16::from(digit - b'0')),
            series: self.series(subject),
            allocated: subject.allocated(),
            check_digit: matches!(kind, Kind::Aadhaar | Kind::Vid | Kind::Epic).then_some(true),
        }
    }

    /// The mark of its number series: of a mobile's million, for instance, which were given to one operator of one circle.
    pub fn series(&self, subject: &Subject) -> Mark {
        self.mark("series", subject.kind(), &subject.expose().as_bytes()[..4])
    }

    fn mark(&self, domain: &str, kind: Kind, part: &[u8]) -> Mark {
        Mark::of(self.mac(&[domain.as_bytes(), kind.as_str().as_bytes(), part]))
    }
}

#[derive(Clone, Copy)]
enum Side {
    Before,
    After,
}

/// The block counted one down or up, in as many bytes; `None` when its digits run out.
fn neighbour(block: &[u8], side: Side) -> Option<[u8; 16]> {
    let (edge, wrapped) = match side {
        Side::Before => (b'0', b'9'),
        Side::After => (b'9', b'0'),
    };
    let mut bytes = [0; 16];
    bytes[..block.len()].copy_from_slice(block);
    for byte in bytes[..block.len()].iter_mut().rev() {
        if !byte.is_ascii_digit() {
            return None;
        }
        if *byte != edge {
            match side {
                Side::Before => *byte -= 1,
                Side::After => *byte += 1,
            }
            return Some(bytes);
        }
        *byte = wrapped;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn features(key: &EpochKey, kind: Kind, raw: &str) -> Features {
        key.features(&Subject::parse(kind, raw).unwrap())
    }

    #[test]
    fn neighbours_count_the_trailing_digits() {
        for (block, before, after) in [
            ("6412345", Some("6412344"), Some("6412346")),
            ("6500000", Some("6499999"), Some("6500001")),
            ("9999999", Some("9999998"), None),
            ("0000000000", None, Some("0000000001")),
            ("TST1000", Some("TST0999"), Some("TST1001")),
            ("A9999", Some("A9998"), None),
            ("AAAPZ0", None, Some("AAAPZ1")),
        ] {
            for (side, expected) in [(Side::Before, before), (Side::After, after)] {
                let found = neighbour(block.as_bytes(), side).map(|bytes| bytes[..block.len()].to_vec());
                assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{block}");
            }
        }
    }

    #[test]
    fn each_kind_has_its_block_series_and_checks() {
        let key = EpochKey::ephemeral();
        for (kind, raw, block, series, offset, allocated, check_digit) in [
            (Kind::Mobile, "6412345678", "6412345", "6412", 678, Some(false), None),
            (Kind::Mobile, "9123456009", "9123456", "9123", 9, Some(true), None),
            (Kind::Aadhaar, "999941057058", "999941057", "9999", 58, None, Some(true)),
            (Kind::Vid, "2341234123412341", "2341234123412", "2341", 341, None, Some(true)),
            (Kind::Abha, "91234567890123", "91234567890", "9123", 123, None, None),
            (Kind::Beneficiary, "1234567890123", "1234567890", "1234", 123, None, None),
            (Kind::Epic, "TST1234566", "TST1234", "TST1", 566, None, Some(true)),
            (Kind::Passport, "A1234567", "A1234", "A123", 567, None, None),
            (Kind::Pan, "AAAPZ1234C", "AAAPZ1", "AAAP", 234, None, None),
        ] {
            let found = features(&key, kind, raw);
            assert_eq!(found.block, key.mark("block", kind, block.as_bytes()), "{raw}");
            assert_eq!(found.series, key.mark("series", kind, series.as_bytes()), "{raw}");
            assert_eq!((found.offset, found.allocated, found.check_digit), (offset, allocated, check_digit), "{raw}");
        }
    }

    #[test]
    fn the_ends_have_no_neighbour() {
        let key = EpochKey::ephemeral();
        assert_eq!(features(&key, Kind::Beneficiary, "0000000000123").before, Mark::NONE);
        assert_eq!(features(&key, Kind::Abha, "99999999999123").after, Mark::NONE);
        assert_ne!(features(&key, Kind::Abha, "99999999999123").before, Mark::NONE);
        assert_eq!(features(&key, Kind::Pan, "AAAPZ0123C").before, Mark::NONE);
    }

    #[test]
    fn marks_differ_by_domain_kind_and_key_and_show_nothing() {
        let (key, other) = (EpochKey::ephemeral(), EpochKey::ephemeral());
        let mark = key.mark("block", Kind::Abha, b"6412");
        assert_ne!(mark, key.mark("series", Kind::Abha, b"6412"));
        assert_ne!(mark, key.mark("block", Kind::Beneficiary, b"6412"));
        assert_ne!(mark, other.mark("block", Kind::Abha, b"6412"));
        assert_eq!(format!("{:?}", Mark::from_bytes([0x0a; 16])), "0a".repeat(16));
        let printed = format!("{:?}", features(&key, Kind::Mobile, "6412345678"));
        assert!(!printed.contains("64123"), "{printed}");
    }

    proptest! {
        #[test]
        fn blocks_chain(number in 6_400_000_000_u64..6_899_999_000) {
            let key = EpochKey::ephemeral();
            let here = features(&key, Kind::Mobile, &number.to_string());
            let next = features(&key, Kind::Mobile, &(number + 1_000).to_string());
            prop_assert_eq!(here.after, next.block);
            prop_assert_eq!(next.before, here.block);
            prop_assert_eq!(here.offset, next.offset);
            prop_assert_eq!(u64::from(here.offset), number % 1_000);
            prop_assert_ne!(here.block, next.block);
        }
    }
}
