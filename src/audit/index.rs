//! Which entries of a segment speak of this person, or of this decision? A small file beside each sealed segment, which is
//! the same bytes whenever it is made from the same entries, and is made again where it is missing or damaged.
//!
//! Magic, length and checksum of the header, the header (JSON), then two sorted tables in pages: of tokens and of decisions.
//! A record is eight bytes of the key and the entry's place in its segment. Each page ends with a checksum of itself and its
//! place, so that a lookup reads a few pages and believes none of them unchecked. Lookups give candidates: eight bytes may
//! be equal by chance.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::clock::Timestamp;
use crate::subject::Mark;

/// What is in a segment, by its entries' own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub segment: u64,
    pub entries: u32,
    /// Earliest and latest time of an entry; entries are not in the order of their times.
    pub first: Timestamp,
    pub last: Timestamp,
    /// How many entries of each event.
    pub events: BTreeMap<String, u32>,
    /// Entries that are no entry of any version.
    pub unreadable: u32,
    pub partners: BTreeSet<String>,
    /// Ids of the epoch keys that people are hidden under.
    pub epochs: BTreeSet<String>,
    /// Places of the entries that say what is missing: `gap`, `pruned` and `epoch`.
    pub notable: Vec<u16>,
    tokens: u32,
    decisions: u32,
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Token(Mark),
    Decision(Uuid),
}

/// The index of these entries, in their order. At most 65,536 of them.
pub fn build(segment: u64, entries: &[&[u8]]) -> Vec<u8> {
    let mut builder = Builder::new(segment);
    entries.iter().for_each(|entry| builder.push(entry));
    builder.finish()
}

/// [`build`], entry by entry.
pub struct Builder {
    header: Header,
    tokens: Vec<Record>,
    decisions: Vec<Record>,
}

/// Eight bytes of a key, and a place in the segment.
type Record = ([u8; 8], u16);

impl Builder {
    pub fn new(segment: u64) -> Builder {
        let header = Header {
            segment,
            entries: 0,
            first: Timestamp::default(),
            last: Timestamp::default(),
            events: BTreeMap::new(),
            unreadable: 0,
            partners: BTreeSet::new(),
            epochs: BTreeSet::new(),
            notable: Vec::new(),
            tokens: 0,
            decisions: 0,
        };
        Builder { header, tokens: Vec::new(), decisions: Vec::new() }
    }

    pub fn push(&mut self, entry: &[u8]) {
        // A segment has 65,536 entries, whose places are all the numbers of 16 bits.
        let place = self.header.entries as u16;
        let header = &mut self.header;
        header.entries += 1;
        let Ok(glance) = Glance::of(entry) else {
            header.unreadable += 1;
            return;
        };
        if let Some(time) = glance.time {
            header.first = if header.first == Timestamp::default() { time } else { header.first.min(time) };
            header.last = header.last.max(time);
        }
        match header.events.get_mut(&*glance.event) {
            Some(count) => *count += 1,
            None => drop(header.events.insert(glance.event.to_string(), 1)),
        }
        if let Some(partner) = &glance.partner
            && !header.partners.contains(&**partner)
        {
            header.partners.insert(partner.to_string());
        }
        if matches!(&*glance.event, "gap" | "pruned" | "epoch") {
            header.notable.push(place);
        }
        for (epoch, token) in glance.tokens() {
            if !header.epochs.contains(epoch) {
                header.epochs.insert(epoch.to_owned());
            }
            self.tokens.push((Key::Token(token).short(), place));
        }
        if let Some(id) = glance.id {
            self.decisions.push((Key::Decision(id).short(), place));
        }
    }

    /// The latest time so far.
    pub fn newest(&self) -> Option<Timestamp> {
        Some(self.header.last).filter(|time| *time != Timestamp::default())
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.tokens.sort_unstable();
        self.decisions.sort_unstable();
        self.header.tokens = self.tokens.len() as u32;
        self.header.decisions = self.decisions.len() as u32;
        // It has no map with keys that are no texts, so it can be written.
        let json = serde_json::to_vec(&self.header).unwrap_or_default();
        let mut bytes = Vec::with_capacity(json.len() + 11 * (self.tokens.len() + self.decisions.len()) + 64);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&(json.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&crc32c::crc32c(&json).to_be_bytes());
        bytes.extend_from_slice(&json);
        for (table, records) in [(Table::Tokens, &self.tokens), (Table::Decisions, &self.decisions)] {
            for (number, page) in records.chunks(PAGE_RECORDS).enumerate() {
                let start = bytes.len();
                for (key, place) in page {
                    bytes.extend_from_slice(key);
                    bytes.extend_from_slice(&place.to_be_bytes());
                }
                let sum = page_checksum(self.header.segment, table, number, &bytes[start..]);
                bytes.extend_from_slice(&sum.to_be_bytes());
            }
        }
        bytes
    }
}

/// An index that can be asked: a file, or one that was just built.
pub struct Index {
    bytes: Bytes,
    header: Header,
    /// Where the pages begin.
    pages: u64,
}

enum Bytes {
    File(File),
    Memory(Vec<u8>),
}

/// Why an index cannot be believed.
#[derive(Debug)]
pub enum IndexError {
    Read(io::Error),
    Damaged(&'static str),
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexError::Read(error) => error.fmt(f),
            IndexError::Damaged(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for IndexError {}

impl From<io::Error> for IndexError {
    fn from(error: io::Error) -> IndexError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => IndexError::Damaged("it is cut off"),
            _ => IndexError::Read(error),
        }
    }
}

impl Index {
    /// Of this segment, from its file.
    pub fn open(segment: u64, file: File) -> Result<Index, IndexError> {
        Index::of(segment, Bytes::File(file))
    }

    /// Of this segment, from what [`build`] made.
    pub fn from_bytes(segment: u64, bytes: Vec<u8>) -> Result<Index, IndexError> {
        Index::of(segment, Bytes::Memory(bytes))
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Places in the segment of entries that may have this key, in order.
    pub fn candidates(&self, key: Key) -> Result<Vec<u16>, IndexError> {
        let (table, count) = match key {
            Key::Token(_) => (Table::Tokens, self.header.tokens),
            Key::Decision(_) => (Table::Decisions, self.header.decisions),
        };
        let key = key.short();
        let pages = (count as usize).div_ceil(PAGE_RECORDS);
        // The first page that ends with this key or a larger one.
        let (mut low, mut high) = (0, pages);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.page(table, middle)?.last() {
                Some((last, _)) if *last >= key => high = middle,
                _ => low = middle + 1,
            }
        }
        let mut found = Vec::new();
        for number in low..pages {
            let page = self.page(table, number)?;
            let start = page.partition_point(|(other, _)| *other < key);
            let equal = page[start..].iter().take_while(|(other, _)| *other == key);
            let before = found.len();
            found.extend(equal.map(|(_, place)| *place));
            if start + (found.len() - before) < page.len() {
                break;
            }
        }
        // An entry with two tokens that begin alike would be there twice.
        found.dedup();
        Ok(found)
    }

    fn of(segment: u64, bytes: Bytes) -> Result<Index, IndexError> {
        let mut head = [0; HEAD_BYTES];
        bytes.read_exact_at(&mut head, 0)?;
        let (magic, rest) = head.split_at(MAGIC.len());
        let (length, sum) = rest.split_at(4);
        if magic != MAGIC {
            return Err(IndexError::Damaged("it does not begin as an index"));
        }
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        let (length, sum) = (word(length), word(sum));
        if length > HEADER_BYTES_MAX {
            return Err(IndexError::Damaged("its header's length is impossible"));
        }
        let mut json = vec![0; length as usize];
        bytes.read_exact_at(&mut json, HEAD_BYTES as u64)?;
        if crc32c::crc32c(&json) != sum {
            return Err(IndexError::Damaged("its header's checksum is wrong"));
        }
        let header: Header =
            serde_json::from_slice(&json).map_err(|_| IndexError::Damaged("its header is of another version"))?;
        match header.segment == segment {
            true => Ok(Index { bytes, header, pages: HEAD_BYTES as u64 + u64::from(length) }),
            false => Err(IndexError::Damaged("it is of another segment")),
        }
    }

    fn page(&self, table: Table, number: usize) -> Result<Vec<Record>, IndexError> {
        let (start, count) = match table {
            Table::Tokens => (self.pages, self.header.tokens),
            Table::Decisions => (self.pages + table_bytes(self.header.tokens), self.header.decisions),
        };
        let records = (count as usize - number * PAGE_RECORDS).min(PAGE_RECORDS);
        let mut bytes = vec![0; records * RECORD_BYTES + 4];
        self.bytes.read_exact_at(&mut bytes, start + (number * PAGE_BYTES) as u64)?;
        let (bytes, sum) = bytes.split_at(records * RECORD_BYTES);
        if page_checksum(self.header.segment, table, number, bytes).to_be_bytes() != sum {
            return Err(IndexError::Damaged("a page's checksum is wrong"));
        }
        let (records, _) = bytes.as_chunks::<RECORD_BYTES>();
        Ok(records
            .iter()
            .map(|[a, b, c, d, e, f, g, h, x, y]| ([*a, *b, *c, *d, *e, *f, *g, *h], u16::from_be_bytes([*x, *y])))
            .collect())
    }
}

impl Bytes {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Bytes::File(file) => file.read_exact_at(into, offset),
            Bytes::Memory(bytes) => {
                let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)?.get(..into.len()));
                into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

impl Key {
    /// Of a token its beginning; of an id its end, because those of one moment begin alike.
    fn short(self) -> [u8; 8] {
        let mut short = [0; 8];
        match self {
            Key::Token(token) => short.copy_from_slice(&token.as_bytes()[..8]),
            Key::Decision(id) => short.copy_from_slice(&id.as_bytes()[8..]),
        }
        short
    }

    /// Whether an entry has this key.
    pub fn is_in(self, entry: &[u8]) -> bool {
        let Ok(glance) = Glance::of(entry) else { return false };
        match self {
            Key::Token(token) => glance.tokens().any(|(_, other)| other == token),
            Key::Decision(id) => glance.id == Some(id),
        }
    }
}

#[derive(Clone, Copy)]
enum Table {
    Tokens,
    Decisions,
}

const MAGIC: &[u8; 8] = b"DWINDEX1";
const HEAD_BYTES: usize = MAGIC.len() + 4 + 4;
/// All partners and all notable entries of a segment are far below this.
const HEADER_BYTES_MAX: u32 = 4 << 20;
const RECORD_BYTES: usize = 10;
const PAGE_RECORDS: usize = 400;
const PAGE_BYTES: usize = PAGE_RECORDS * RECORD_BYTES + 4;

fn table_bytes(records: u32) -> u64 {
    let pages = (records as usize).div_ceil(PAGE_RECORDS);
    (records as usize * RECORD_BYTES + pages * 4) as u64
}

fn page_checksum(segment: u64, table: Table, number: usize, records: &[u8]) -> u32 {
    let mut place = [0; 17];
    place[..8].copy_from_slice(&segment.to_be_bytes());
    place[8] = table as u8;
    place[9..].copy_from_slice(&(number as u64).to_be_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), records)
}

/// The little of an entry that is indexed. It reads what later versions write, too, as long as these members stay.
#[derive(Deserialize)]
pub struct Glance<'a> {
    #[serde(borrow)]
    pub event: Cow<'a, str>,
    #[serde(default)]
    pub time: Option<Timestamp>,
    #[serde(default, deserialize_with = "decision")]
    pub id: Option<Uuid>,
    #[serde(borrow, default)]
    pub partner: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "person")]
    subject: Option<Person<'a>>,
}

#[derive(Deserialize)]
struct Person<'a> {
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    token: Mark,
    #[serde(borrow, default)]
    previous: Option<Before<'a>>,
}

#[derive(Deserialize)]
struct Before<'a> {
    #[serde(borrow)]
    epoch: Cow<'a, str>,
    token: Mark,
}

impl<'a> Glance<'a> {
    pub fn of(entry: &'a [u8]) -> Result<Glance<'a>, serde_json::Error> {
        serde_json::from_slice(entry)
    }

    /// The person's tokens, each with the epoch that it is made under.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, Mark)> {
        let person = self.subject.as_ref();
        let before = person.and_then(|person| person.previous.as_ref()).map(|before| (&*before.epoch, before.token));
        person.map(|person| (&*person.epoch, person.token)).into_iter().chain(before)
    }
}

/// The id of an epoch is a text of its own, that of a request is its decision's.
fn decision<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
    let id: Option<Cow<'de, str>> = Option::deserialize(deserializer)?;
    Ok(id.and_then(|id| Uuid::try_parse(&id).ok()))
}

/// A certificate's subject is a text, a lookup's is a person.
fn person<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Person<'de>>, D::Error> {
    struct PersonOrText;
    impl<'de> Visitor<'de> for PersonOrText {
        type Value = Option<Person<'de>>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a person or a text")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Option<Person<'de>>, A::Error> {
            Person::deserialize(MapAccessDeserializer::new(map)).map(Some)
        }

        fn visit_str<E>(self, _: &str) -> Result<Option<Person<'de>>, E> {
            Ok(None)
        }

        fn visit_unit<E>(self) -> Result<Option<Person<'de>>, E> {
            Ok(None)
        }
    }
    deserializer.deserialize_any(PersonOrText)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// People are numbered, and so are decisions.
    fn entry(person: Option<u8>, decision: u8) -> Vec<u8> {
        let subject = person.map_or("null".to_owned(), |person| {
            let before = Mark::from_bytes([person ^ 0x80; 16]);
            let token = Mark::from_bytes([person; 16]);
            format!(
                r#"{{"kind":"mobile","epoch":"new","token":"{token}","previous":{{"epoch":"old","token":"{before}"}}}}"#
            )
        });
        let (id, minute) = (Uuid::from_u128(decision.into()), decision % 60);
        format!(r#"{{"event":"denied","v":1,"time":"2026-03-01T09:{minute:02}:00Z","id":"{id}","partner":"p{}","subject":{subject},"reason":"of-tomorrow"}}"#, decision % 2)
            .into_bytes()
    }

    fn slices(entries: &[Vec<u8>]) -> Vec<&[u8]> {
        entries.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn the_header_sums_up_its_segment() {
        let entries = [
            entry(Some(1), 9),
            entry(None, 4),
            br#"{"event":"credential","v":1,"time":"2026-03-01T09:30:00Z","subject":"CN=x"}"#.to_vec(),
            br#"{"event":"pruned","v":1,"time":"2026-03-01T09:31:00Z","from":0,"until":65536}"#.to_vec(),
            br#"{"event":"epoch","v":1,"time":"2026-03-01T09:05:00Z","change":"created","number":1,"id":"be7f7921","by":"gateway","reason":"the first"}"#.to_vec(),
            br#"{"event":"telepathy","v":9,"mood":{"deep":[1]}}"#.to_vec(),
            b"not json".to_vec(),
        ];
        let index = Index::from_bytes(7, build(7, &slices(&entries))).expect("an index");
        let header = index.header();
        let minute = |minute: u64| {
            Timestamp::parse("2026-03-01T09:00:00Z").expect("a time").as_nanos() + minute * 60_000_000_000
        };
        assert_eq!((header.segment, header.entries, header.unreadable), (7, 7, 1));
        assert_eq!((header.first.as_nanos(), header.last.as_nanos()), (minute(4), minute(31)));
        assert_eq!(header.events["denied"], 2);
        assert_eq!(header.events["telepathy"], 1);
        assert_eq!(header.partners, ["p0", "p1"].map(str::to_owned).into());
        assert_eq!(header.epochs, ["new", "old"].map(str::to_owned).into());
        assert_eq!(header.notable, [3, 4]);
        assert!(Index::from_bytes(8, build(7, &slices(&entries))).is_err(), "of another segment");
    }

    #[test]
    fn an_index_of_nothing_finds_nothing() {
        let index = Index::from_bytes(0, build(0, &[])).expect("an index");
        assert!(index.candidates(Key::Token(Mark::NONE)).expect("asked").is_empty());
        assert!(index.candidates(Key::Decision(Uuid::nil())).expect("asked").is_empty());
    }

    /// More equal keys than a page has records.
    #[test]
    fn a_person_may_fill_several_pages() {
        let entries: Vec<_> =
            (0..3_000).map(|n| entry(Some(if n % 3 == 0 { 9 } else { (n % 7) as u8 }), n as u8)).collect();
        let index = Index::from_bytes(0, build(0, &slices(&entries))).expect("an index");
        let found = index.candidates(Key::Token(Mark::from_bytes([9; 16]))).expect("asked");
        assert_eq!(found, (0..3_000).step_by(3).collect::<Vec<u16>>());
    }

    proptest! {
        #[test]
        fn all_that_is_there_is_found_and_nothing_else(
            drawn in prop::collection::vec((prop::option::of(0..6u8), 0..20u8), 0..900), asked in 0..8u8,
        ) {
            let entries: Vec<_> = drawn.iter().map(|(person, decision)| entry(*person, *decision)).collect();
            let index = Index::from_bytes(3, build(3, &slices(&entries))).expect("an index");
            for key in [
                Key::Token(Mark::from_bytes([asked; 16])),
                Key::Token(Mark::from_bytes([asked ^ 0x80; 16])),
                Key::Decision(Uuid::from_u128(asked.into())),
            ] {
                let expected: Vec<u16> = (0u16..).zip(&entries).filter(|(_, entry)| key.is_in(entry)).map(|(place, _)| place).collect();
                prop_assert_eq!(index.candidates(key).expect("asked"), expected);
            }
        }

        /// A lookup in a damaged index fails or is right.
        #[test]
        fn no_flipped_bit_hides_anybody(flip in any::<prop::sample::Index>(), asked in 0..6u8) {
            let entries: Vec<_> = (0..1_000u32).map(|n| entry(Some((n % 6) as u8), n as u8)).collect();
            let mut bytes = build(3, &slices(&entries));
            let key = Key::Token(Mark::from_bytes([asked; 16]));
            let right = Index::from_bytes(3, bytes.clone()).expect("an index").candidates(key).expect("asked");
            let place = flip.index(8 * bytes.len());
            bytes[place / 8] ^= 1 << (place % 8);
            if let Ok(found) = Index::from_bytes(3, bytes.clone()).and_then(|index| index.candidates(key)) {
                prop_assert_eq!(found, right);
            }
            bytes.truncate(place / 8);
            if let Ok(index) = Index::from_bytes(3, bytes) {
                let _ = index.candidates(key);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Index::from_bytes(0, [&MAGIC[..], &bytes].concat());
            let _ = build(0, &[&bytes[..]]);
        }
    }
}
