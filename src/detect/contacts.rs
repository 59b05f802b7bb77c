//! Whom has a partner asked for before? Generations of Bloom filters whose bits for one person lie in one cache line:
//! twelve bits a person in a full large one, twenty-one in a small one.
//!
//! A false "yes" lets a stranger pass for known (about one in two hundred for each large filter), a "no" is always true.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Timestamp;
use crate::policy::charge::{Person, SubjectKey};

/// What is remembered of a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Contact {
    /// Never asked for.
    First,
    /// Asked for, but lately, or while there was evidence against who asked.
    Recent,
    /// Asked for with consent, or long enough ago and in quiet times.
    Known,
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Contacts {
    /// With consent: known from the first day.
    consented: Vec<Filter>,
    /// Older than the horizon and untainted; merged as long as they have room.
    known: Vec<Filter>,
    /// Oldest first.
    recent: Vec<Generation>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Generation {
    began: Timestamp,
    /// Evidence showed that some of it was no honest work: none of it becomes known.
    tainted: bool,
    filter: Filter,
}

/// How long one generation collects.
const SPAN: Duration = Duration::from_secs(6 * 3_600);

/// Tainted people are remembered as asked for so long, then they are strangers again.
const TAINTED_FOR: Duration = Duration::from_secs(30 * 86_400);

impl Contacts {
    /// One cache line a filter; there are few of them.
    pub fn find(&self, person: &Person) -> Contact {
        let mut found = Contact::First;
        for key in [Some(person.key), person.previous].into_iter().flatten() {
            let hash = Hash::of(&key);
            if self.consented.iter().chain(&self.known).any(|filter| filter.has(hash)) {
                return Contact::Known;
            }
            if self.recent.iter().rev().any(|generation| generation.filter.has(hash)) {
                found = Contact::Recent;
            }
        }
        found
    }

    /// Remembers that `person` was asked for, whatever it was before; again under consent counts as consented.
    pub fn add(&mut self, person: &Person, consent: bool, now: Timestamp, most: u64) {
        let hash = Hash::of(&person.key);
        if consent {
            push(&mut self.consented, hash);
        } else {
            let fits = self.recent.last().is_some_and(|last| now.since(last.began) < SPAN && !last.filter.is_full());
            if !fits {
                // As much as the one before held, or more when that was not enough: busy partners have no row of small ones.
                let grown =
                    |filter: &Filter| if filter.is_full() { filter.count.saturating_mul(4) } else { filter.count };
                let last = self.recent.last().map_or(0, |last| grown(&last.filter));
                // Each filter errs for itself: as there are more people, they go into larger ones instead of many.
                let known: u32 = self.known.iter().map(|filter| filter.count).sum();
                let size = last.max(if known < LARGE { known / 4 } else { known / 16 });
                self.recent.push(Generation { began: now, tainted: false, filter: Filter::for_people(size) });
            }
            if let Some(last) = self.recent.last_mut() {
                last.filter.add(hash);
            }
        }
        if self.people() > most {
            self.forget_oldest();
        }
    }

    /// Nothing that was asked for since `from` becomes known.
    pub fn taint(&mut self, from: Timestamp) {
        for generation in &mut self.recent {
            generation.tainted |= generation.began.plus(SPAN) > from;
        }
    }

    /// Lets generations grow up. Cheap when there is nothing to do.
    pub fn age(&mut self, now: Timestamp, known_after: Duration) {
        while let Some(oldest) = self.recent.first() {
            let age = now.since(oldest.began);
            if age < known_after + SPAN || (oldest.tainted && age < TAINTED_FOR) {
                break;
            }
            let Generation { tainted, filter, .. } = self.recent.remove(0);
            if tainted {
                continue;
            }
            match self.known.iter_mut().find(|known| known.takes(&filter)) {
                Some(known) => known.merge(&filter),
                None => self.known.push(filter),
            }
        }
        // A tainted one must not keep those behind it young.
        let grown = |g: &Generation| !g.tainted && now.since(g.began) >= known_after + SPAN;
        while let Some(place) = self.recent.iter().position(grown) {
            let filter = self.recent.remove(place).filter;
            match self.known.iter_mut().find(|known| known.takes(&filter)) {
                Some(known) => known.merge(&filter),
                None => self.known.push(filter),
            }
        }
    }

    pub fn people(&self) -> u64 {
        self.filters().map(|filter| u64::from(filter.count)).sum()
    }

    pub fn bytes(&self) -> usize {
        self.filters().map(|filter| filter.lines.len() * size_of::<Line>()).sum()
    }

    fn filters(&self) -> impl Iterator<Item = &Filter> {
        self.consented.iter().chain(&self.known).chain(self.recent.iter().map(|generation| &generation.filter))
    }

    fn forget_oldest(&mut self) {
        if !self.known.is_empty() {
            self.known.remove(0);
        } else if !self.consented.is_empty() {
            self.consented.remove(0);
        } else if !self.recent.is_empty() {
            self.recent.remove(0);
        }
    }
}

fn push(filters: &mut Vec<Filter>, hash: Hash) {
    if filters.iter().any(|filter| filter.has(hash)) {
        return;
    }
    if filters.last().is_none_or(Filter::is_full) {
        filters.push(Filter::for_people(filters.last().map_or(0, |last| last.count.saturating_mul(4))));
    }
    if let Some(last) = filters.last_mut() {
        last.add(hash);
    }
}

type Line = [u64; 8];

/// Bits set for a person, all in one line.
const PROBES: u32 = 7;
const PEOPLE_PER_LINE: usize = 43;
/// Most partners are small, and memory for them is not what is scarce: 21 bits a person, and a tenth of the errors.
const PEOPLE_PER_SMALL_LINE: usize = 24;
const LINES_LARGE: usize = 1 << 14;
/// People from which a partner is large.
const LARGE: u32 = 400_000;
const LINES_MIN: usize = 64;
/// 8 million people; a partner with more has several.
const LINES_MAX: usize = 1 << 18;

#[derive(Debug)]
struct Filter {
    count: u32,
    lines: Vec<Line>,
}

#[derive(Clone, Copy)]
struct Hash(u64, u64);

impl Hash {
    /// Tokens are keyed and uniform already.
    fn of(key: &SubjectKey) -> Hash {
        let whole = u128::from_le_bytes(*key);
        Hash(whole as u64, (whole >> 64) as u64)
    }
}

impl Filter {
    fn for_people(people: u32) -> Filter {
        let (small, large) = (people as usize / PEOPLE_PER_SMALL_LINE, people as usize / PEOPLE_PER_LINE);
        let lines = if large < LINES_LARGE { small.clamp(1, LINES_LARGE) } else { large };
        Filter { count: 0, lines: vec![[0; 8]; lines.next_power_of_two().clamp(LINES_MIN, LINES_MAX)] }
    }

    fn room(&self) -> usize {
        self.lines.len() * if self.lines.len() < LINES_LARGE { PEOPLE_PER_SMALL_LINE } else { PEOPLE_PER_LINE }
    }

    fn is_full(&self) -> bool {
        self.count as usize >= self.room()
    }

    fn place(&self, Hash(line, _): Hash) -> usize {
        line as usize & (self.lines.len() - 1)
    }

    fn has(&self, hash: Hash) -> bool {
        let line = &self.lines[self.place(hash)];
        bits(hash).all(|bit| line[bit >> 6] & (1 << (bit & 63)) != 0)
    }

    fn add(&mut self, hash: Hash) {
        let place = self.place(hash);
        let line = &mut self.lines[place];
        let mut fresh = false;
        for bit in bits(hash) {
            fresh |= line[bit >> 6] & (1 << (bit & 63)) == 0;
            line[bit >> 6] |= 1 << (bit & 63);
        }
        self.count += u32::from(fresh);
    }

    fn takes(&self, other: &Filter) -> bool {
        self.lines.len() == other.lines.len() && (self.count + other.count) as usize <= self.room()
    }

    fn merge(&mut self, other: &Filter) {
        for (line, more) in self.lines.iter_mut().zip(&other.lines) {
            for (word, more) in line.iter_mut().zip(more) {
                *word |= more;
            }
        }
        self.count += other.count;
    }
}

/// Nine bits of the second half for each probe.
fn bits(Hash(_, bits): Hash) -> impl Iterator<Item = usize> {
    (0..PROBES).map(move |probe| (bits >> (9 * probe)) as usize & 511)
}

/// As base64, little-endian.
impl Serialize for Filter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        let bytes: Vec<u8> = self.lines.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        (self.count, base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Filter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Filter, D::Error> {
        use base64::Engine;
        use serde::de::Error;
        let (count, text) = <(u32, std::borrow::Cow<str>)>::deserialize(deserializer)?;
        let bytes =
            base64::engine::general_purpose::STANDARD_NO_PAD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let (lines, rest) = bytes.as_chunks::<64>();
        if !rest.is_empty() || !lines.len().is_power_of_two() || !(LINES_MIN..=LINES_MAX).contains(&lines.len()) {
            return Err(D::Error::custom("not a whole filter"));
        }
        let line = |bytes: &[u8; 64]| {
            let mut line = [0; 8];
            for (word, bytes) in line.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            line
        };
        Ok(Filter { count, lines: lines.iter().map(line).collect() })
    }
}
