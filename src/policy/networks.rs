//! Is this address on a list of networks, and on whose word? One list a partner, and the union of all lists.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::iter;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;

use ipnet::IpNet;

use crate::clock::Timestamp;

/// The widest prefixes that need no `wide = true`.
pub const V4_PREFIX_MIN: u8 = 24;
pub const V6_PREFIX_MIN: u8 = 56;

/// Entries of one list, so that every index fits in 32 bits.
const ENTRIES_MAX: usize = u32::MAX as usize - 1;

/// Position in the list that answered, `0..len()`: IPv4 before IPv6, then by address, the wider first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(u32);

/// Who asked for a network and until when. Entries with equal notes share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Note {
    pub owner: String,
    pub ticket: String,
    pub reason: String,
    /// The first instant at which the entry no longer counts; `None` for never.
    pub expires: Option<Timestamp>,
    /// Its removal is being tried: it lets in what nothing else does, and that is counted.
    pub shadow: bool,
    pub file: Arc<str>,
}

/// A note of the builder that interned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NoteId(u32);

/// One entry: the network, its note and the line of `note.file` it stands on (from 1).
#[derive(Clone, Copy, Debug)]
pub struct Network<'a> {
    pub cidr: IpNet,
    pub note: &'a Note,
    pub line: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Match {
    /// The innermost entry that covers the address, has not expired and is not in shadow.
    Found(NetworkId),
    /// Only entries in shadow would let it in: the innermost of them.
    Shadow(NetworkId),
    /// Entries cover the address and all have expired: the innermost of them.
    Expired(NetworkId),
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkError {
    /// Bits are set below the prefix; holds the network that was probably meant.
    HostBits(IpNet),
    /// `::ffff:a.b.c.d/n` with n below 96 mixes IPv4 and IPv6.
    MappedPrefix,
    Full,
}

#[derive(Default)]
pub struct NetworksBuilder {
    v4: Vec<Line<u32>>,
    v6: Vec<Line<u128>>,
    /// Numbered from 0 in order of arrival; a million lines usually share a handful.
    notes: HashMap<Note, NoteId>,
}

/// One partner's list. The empty list finds nobody.
#[derive(Default)]
pub struct Networks {
    v4: Family<u32>,
    v6: Family<u128>,
    notes: Vec<Note>,
}

/// Every address that some list would find, without saying which; asked before TLS.
#[derive(Default)]
pub struct Union {
    v4: Segments<u32>,
    v6: Segments<u128>,
}

impl Match {
    pub fn lets_in(self) -> bool {
        matches!(self, Match::Found(_) | Match::Shadow(_))
    }
}

impl NetworkId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl NoteId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl NetworksBuilder {
    pub fn new() -> NetworksBuilder {
        NetworksBuilder::default()
    }

    /// Equal notes have the same id.
    pub fn intern(&mut self, note: Note) -> NoteId {
        let next = NoteId(self.notes.len() as u32);
        *self.notes.entry(note).or_insert(next)
    }

    /// Adds one entry with a note interned by this builder. Of entries with the same CIDR the one that expires last
    /// answers, and those in shadow after the others; all stay in the list. Refuses what `canonical` refuses, and more than 2^32 - 2 entries.
    pub fn add(&mut self, cidr: IpNet, note: NoteId, line: u32) -> Result<(), NetworkError> {
        let cidr = canonical(cidr)?;
        if self.v4.len() + self.v6.len() >= ENTRIES_MAX {
            return Err(NetworkError::Full);
        }
        match cidr {
            IpNet::V4(net) => self.v4.push(Line { start: net.addr().into(), prefix: net.prefix_len(), note, line }),
            IpNet::V6(net) => self.v6.push(Line { start: net.addr().into(), prefix: net.prefix_len(), note, line }),
        }
        Ok(())
    }

    pub fn build(self) -> Networks {
        let mut notes: Vec<(Note, NoteId)> = self.notes.into_iter().collect();
        notes.sort_unstable_by_key(|(_, id)| *id);
        let notes: Vec<Note> = notes.into_iter().map(|(note, _)| note).collect();
        Networks { v4: Family::build(self.v4, &notes), v6: Family::build(self.v6, &notes), notes }
    }
}

impl Networks {
    /// IPv4-mapped IPv6 addresses are looked up as IPv4; `::/0` covers no IPv4 address.
    pub fn find(&self, addr: IpAddr, now: Timestamp) -> Match {
        match addr.to_canonical() {
            IpAddr::V4(v4) => self.v4.find(v4.into(), now, &self.notes, 0),
            IpAddr::V6(v6) => self.v6.find(v6.into(), now, &self.notes, self.v4.len()),
        }
    }

    /// `id` must come from this list.
    pub fn network(&self, id: NetworkId) -> Network<'_> {
        let v4 = self.v4.len();
        let (addr, entry) = match id.index().checked_sub(v4) {
            None => (Ipv4Addr::from(self.v4.start(id.index())).into(), self.v4.entry(id.index())),
            Some(i) => (Ipv6Addr::from(self.v6.start(i)).into(), self.v6.entry(i)),
        };
        // The prefix was read from a network of the same family.
        let cidr = IpNet::new(addr, entry.prefix).expect("prefix of the same family");
        Network { cidr, note: &self.notes[entry.note.index()], line: entry.line }
    }

    pub fn iter(&self) -> impl Iterator<Item = (NetworkId, Network<'_>)> {
        (0..self.len()).map(|i| NetworkId(i as u32)).map(|id| (id, self.network(id)))
    }

    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Union {
    pub fn build(lists: &[&Networks]) -> Union {
        Union {
            v4: Segments::build(&lists.iter().map(|list| (&list.v4, &*list.notes)).collect::<Vec<_>>()),
            v6: Segments::build(&lists.iter().map(|list| (&list.v6, &*list.notes)).collect::<Vec<_>>()),
        }
    }

    /// True exactly when one of the lists answers `Found` or `Shadow` for the same address and instant.
    pub fn contains(&self, addr: IpAddr, now: Timestamp) -> bool {
        match addr.to_canonical() {
            IpAddr::V4(v4) => now < self.v4.until(v4.into()),
            IpAddr::V6(v6) => now < self.v6.until(v6.into()),
        }
    }
}

impl fmt::Debug for Union {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Union")
            .field("segments", &(self.v4.ranges.pairs.len() + self.v6.ranges.pairs.len()))
            .finish_non_exhaustive()
    }
}

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NetworkError::HostBits(_) => "host bits set below the prefix",
            NetworkError::MappedPrefix => "IPv4-mapped network with a prefix below /96",
            NetworkError::Full => "too many networks in one list",
        })
    }
}

impl std::error::Error for NetworkError {}

/// The one form under which a network is kept: IPv4-mapped IPv6 becomes IPv4, as `IpAddr::to_canonical` does for
/// addresses, and no host bits are set.
pub fn canonical(cidr: IpNet) -> Result<IpNet, NetworkError> {
    let cidr = match cidr.addr().to_canonical() {
        IpAddr::V4(v4) if cidr.max_prefix_len() == 128 => {
            let prefix = cidr.prefix_len().checked_sub(96).ok_or(NetworkError::MappedPrefix)?;
            IpNet::new(v4.into(), prefix).map_err(|_| NetworkError::MappedPrefix)?
        }
        _ => cidr,
    };
    if cidr != cidr.trunc() {
        return Err(NetworkError::HostBits(cidr.trunc()));
    }
    Ok(cidr)
}

/// Wider than /24 (IPv4) or /56 (IPv6): more than one site of one organisation is likely to use.
pub fn is_wide(cidr: &IpNet) -> bool {
    match cidr {
        IpNet::V4(net) => net.prefix_len() < V4_PREFIX_MIN,
        IpNet::V6(net) => net.prefix_len() < V6_PREFIX_MIN,
    }
}

/// Addresses in the network; `u128::MAX`, one too few, for `::/0`.
pub fn address_count(cidr: &IpNet) -> u128 {
    1u128.checked_shl(u32::from(cidr.max_prefix_len() - cidr.prefix_len())).unwrap_or(u128::MAX)
}

/// Pairs of entries, expired ones too, that share addresses: equal, or one inside the other. At most `pairs_max`,
/// in order of address. Takes time linear in both lists and the answer.
pub fn overlaps(a: &Networks, b: &Networks, pairs_max: usize) -> Vec<(NetworkId, NetworkId)> {
    let mut pairs = Vec::new();
    Family::overlaps(&a.v4, &b.v4, pairs_max, &mut pairs);
    let v4_pairs = pairs.len();
    Family::overlaps(&a.v6, &b.v6, pairs_max, &mut pairs);
    let id = |i: usize, v4: usize| NetworkId((i + v4) as u32);
    let first = |n: usize, list: &Networks| if n < v4_pairs { 0 } else { list.v4.len() };
    pairs.into_iter().enumerate().map(|(n, (i, j))| (id(i, first(n, a)), id(j, first(n, b)))).collect()
}

impl Note {
    /// "Never" is the last instant a `Timestamp` can hold, so that expiries compare.
    fn until(&self) -> Timestamp {
        self.expires.unwrap_or(Timestamp::from_nanos(u64::MAX))
    }
}

/// `u32` for IPv4, `u128` for IPv6: at a million entries the wider integer for both would triple the memory.
trait Bits: Copy + Ord {
    /// The last address of the network that starts here.
    fn last(self, prefix: u8) -> Self;
    fn next(self) -> Option<Self>;
}

impl Bits for u32 {
    fn last(self, prefix: u8) -> u32 {
        self | u32::MAX.checked_shr(prefix.into()).unwrap_or(0)
    }

    fn next(self) -> Option<u32> {
        self.checked_add(1)
    }
}

impl Bits for u128 {
    fn last(self, prefix: u8) -> u128 {
        self | u128::MAX.checked_shr(prefix.into()).unwrap_or(0)
    }

    fn next(self) -> Option<u128> {
        self.checked_add(1)
    }
}

/// An entry as it was added.
struct Line<T> {
    start: T,
    prefix: u8,
    note: NoteId,
    line: u32,
}

/// The networks of one address family, sorted by start, then the wider first, then those in shadow, then the one that
/// expires first.
///
/// Two CIDRs are nested or disjoint. So the last entry that starts at or before an address either covers it or lies
/// inside everything that does, and following parents from there meets every covering network, innermost first.
#[derive(Default)]
struct Family<T> {
    entries: Sorted<T, Entry>,
}

struct Entry {
    note: NoteId,
    line: u32,
    /// How many entries back the next strictly wider network stands, in its longest-lived entry; before it, the
    /// longest-lived in shadow of this one. Skipping equal networks bounds a walk by twice the prefix length, however
    /// often a file repeats a line.
    parent: Option<NonZeroU32>,
    prefix: u8,
}

impl<T: Bits> Family<T> {
    fn build(mut lines: Vec<Line<T>>, notes: &[Note]) -> Family<T> {
        let until = |line: &Line<T>| notes[line.note.index()].until();
        let rank = |line: &Line<T>| (line.prefix, !notes[line.note.index()].shadow);
        lines.sort_unstable_by(|a, b| {
            (a.start, rank(a)).cmp(&(b.start, rank(b))).then_with(|| (until(a), a.line).cmp(&(until(b), b.line)))
        });
        let mut entries = Vec::with_capacity(lines.len());
        let mut around: Vec<usize> = Vec::new();
        for (i, own @ Line { start, prefix, note, line }) in lines.iter().enumerate() {
            around.truncate(covering(&around, |&j| {
                rank(&lines[j]) < rank(own) && *start <= lines[j].start.last(lines[j].prefix)
            }));
            let parent = around.last().and_then(|j| NonZeroU32::new((i - j) as u32));
            entries.push((*start, Entry { note: *note, line: *line, parent, prefix: *prefix }));
            around.push(i);
        }
        Family { entries: Sorted::new(entries) }
    }

    /// `first` is the id of this family's first entry.
    fn find(&self, addr: T, now: Timestamp, notes: &[Note], first: usize) -> Match {
        let nearest = self.entries.at_or_before(addr);
        let covering = iter::successors(nearest, |&i| Some(i - self.entry(i).parent?.get() as usize))
            .skip_while(|&i| self.last(i) < addr);
        let mut answer = Match::Absent;
        for i in covering {
            let id = NetworkId((first + i) as u32);
            let note = &notes[self.entry(i).note.index()];
            match (now < note.until(), answer) {
                (true, _) if !note.shadow => return Match::Found(id),
                (true, Match::Absent | Match::Expired(_)) => answer = Match::Shadow(id),
                (false, Match::Absent) => answer = Match::Expired(id),
                _ => {}
            }
        }
        answer
    }

    fn len(&self) -> usize {
        self.entries.pairs.len()
    }

    fn start(&self, i: usize) -> T {
        self.entries.pairs[i].0
    }

    fn entry(&self, i: usize) -> &Entry {
        &self.entries.pairs[i].1
    }

    fn key(&self, i: usize) -> (T, u8) {
        (self.start(i), self.entry(i).prefix)
    }

    fn last(&self, i: usize) -> T {
        self.start(i).last(self.entry(i).prefix)
    }

    fn overlaps(a: &Family<T>, b: &Family<T>, pairs_max: usize, pairs: &mut Vec<(usize, usize)>) {
        let (mut i, mut j) = (0, 0);
        let (mut around_a, mut around_b) = (Vec::new(), Vec::new());
        while pairs.len() < pairs_max && (i < a.len() || j < b.len()) {
            let a_first = j == b.len() || (i < a.len() && a.key(i) <= b.key(j));
            let start = if a_first { a.start(i) } else { b.start(j) };
            around_a.truncate(covering(&around_a, |&k| start <= a.last(k)));
            around_b.truncate(covering(&around_b, |&k| start <= b.last(k)));
            let room = pairs_max - pairs.len();
            if a_first {
                pairs.extend(around_b.iter().take(room).map(|&k| (i, k)));
                around_a.push(i);
                i += 1;
            } else {
                pairs.extend(around_a.iter().take(room).map(|&k| (k, j)));
                around_b.push(j);
                j += 1;
            }
        }
    }
}

/// How many networks of a nest, outermost first, still cover what comes next.
fn covering<N>(around: &[N], covers: impl Fn(&N) -> bool) -> usize {
    around.iter().rposition(covers).map_or(0, |innermost| innermost + 1)
}

/// Disjoint ranges, each up to the start of the next, with the instant until which some list covers them.
/// Kept in full nanoseconds: a coarser expiry would disagree with the lists.
#[derive(Default)]
struct Segments<T> {
    ranges: Sorted<T, Timestamp>,
}

impl<T: Bits> Segments<T> {
    /// Merges the sorted lists without a copy of them.
    fn build(families: &[(&Family<T>, &[Note])]) -> Segments<T> {
        let head = |list: usize, i: usize| {
            let family = families[list].0;
            (i < family.len()).then(|| Reverse((family.key(i), list, i)))
        };
        let mut heads: BinaryHeap<_> = (0..families.len()).filter_map(|list| head(list, 0)).collect();
        // An entry opens one range, and where it ends another.
        let mut ranges = Vec::with_capacity(2 * families.iter().map(|(family, _)| family.len()).sum::<usize>());
        let mut around: Vec<(T, Timestamp)> = Vec::new();
        while let Some(Reverse(((start, prefix), list, i))) = heads.pop() {
            heads.extend(head(list, i + 1));
            close(&mut around, Some(start), &mut ranges);
            let (family, notes) = families[list];
            let own = notes[family.entry(i).note.index()].until();
            let until = around.last().map_or(own, |(_, outer)| own.max(*outer));
            open(start, until, &mut ranges);
            around.push((start.last(prefix), until));
        }
        close(&mut around, None, &mut ranges);
        ranges.shrink_to_fit();
        Segments { ranges: Sorted::new(ranges) }
    }

    fn until(&self, addr: T) -> Timestamp {
        self.ranges.at_or_before(addr).map_or(NEVER_VALID, |i| self.ranges.pairs[i].1)
    }
}

/// Leaves the networks that end before `next`, or all. What follows each belongs to the one around it, or to nobody.
fn close<T: Bits>(around: &mut Vec<(T, Timestamp)>, next: Option<T>, ranges: &mut Vec<(T, Timestamp)>) {
    while let Some((last, _)) = around.pop_if(|(last, _)| next.is_none_or(|next| *last < next)) {
        if let Some(after) = last.next() {
            open(after, around.last().map_or(NEVER_VALID, |(_, until)| *until), ranges);
        }
    }
}

/// The last word about a start counts; a range that says the same as the one before it is left out.
fn open<T: Bits>(start: T, until: Timestamp, ranges: &mut Vec<(T, Timestamp)>) {
    ranges.pop_if(|(previous, _)| *previous == start);
    if ranges.last().map_or(NEVER_VALID, |(_, before)| *before) != until {
        ranges.push((start, until));
    }
}

/// Pairs sorted by key, and every 16th key again, level upon level: a search reads a few neighbouring bytes of each
/// level, where a binary search over a million pairs would wait for memory a dozen times.
struct Sorted<T, V> {
    pairs: Vec<(T, V)>,
    /// From the largest level to one of at most `FANOUT` keys.
    levels: Vec<Vec<T>>,
}

const FANOUT: usize = 16;

impl<T: Bits, V> Sorted<T, V> {
    fn new(pairs: Vec<(T, V)>) -> Sorted<T, V> {
        let mut levels = Vec::new();
        let mut level: Vec<T> = pairs.iter().map(|(key, _)| *key).step_by(FANOUT).collect();
        while level.len() > FANOUT {
            let above = level.iter().step_by(FANOUT).copied().collect();
            levels.push(mem::replace(&mut level, above));
        }
        levels.push(level);
        Sorted { pairs, levels }
    }

    /// The last position whose key is `addr` or below.
    fn at_or_before(&self, addr: T) -> Option<usize> {
        let mut at = 0;
        for level in self.levels.iter().rev() {
            at += level[at..].iter().take(FANOUT).filter(|key| **key <= addr).count().checked_sub(1)?;
            at *= FANOUT;
        }
        let node = self.pairs[at..].iter().take(FANOUT);
        Some(at + node.filter(|(key, _)| *key <= addr).count().checked_sub(1)?)
    }
}

// Derived, it would ask for a default `V`.
impl<T, V> Default for Sorted<T, V> {
    fn default() -> Sorted<T, V> {
        Sorted { pairs: Vec::new(), levels: Vec::new() }
    }
}

/// The zero denies: no instant is before it.
const NEVER_VALID: Timestamp = Timestamp::from_nanos(0);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seconds(n: u64) -> Timestamp {
        Timestamp::from_unix_seconds(n)
    }

    fn note(expires: Option<u64>) -> Note {
        let word = |text: &str| text.to_owned();
        let expires = expires.map(seconds);
        let (owner, ticket, reason) = (word("noc"), word("NET-1"), word("lab"));
        Note { owner, ticket, reason, expires, shadow: false, file: "lab.networks".into() }
    }

    fn list<C: ToString>(entries: &[(C, Option<u64>)]) -> Networks {
        list_of(entries.iter().map(|(cidr, expires)| (cidr.to_string(), *expires, false)))
    }

    /// The last of each says whether it is in shadow.
    fn list_of<C: ToString>(entries: impl IntoIterator<Item = (C, Option<u64>, bool)>) -> Networks {
        let mut builder = NetworksBuilder::new();
        for (line, (cidr, expires, shadow)) in (1..).zip(entries) {
            let note = builder.intern(Note { shadow, ..note(expires) });
            builder.add(cidr.to_string().parse().unwrap(), note, line).unwrap();
        }
        builder.build()
    }

    /// The line that answered, `Err` when it has expired.
    fn line(networks: &Networks, addr: IpAddr, now: u64) -> Answer {
        match networks.find(addr, seconds(now)) {
            Match::Found(id) => Some(Ok(networks.network(id).line)),
            Match::Shadow(id) => panic!("line {} is in no shadow", networks.network(id).line),
            Match::Expired(id) => Some(Err(networks.network(id).line)),
            Match::Absent => None,
        }
    }

    type Entries = &'static [(&'static str, Option<u64>)];
    type Answer = Option<Result<u32, u32>>;

    #[test]
    fn an_entry_in_shadow_answers_where_no_other_does() {
        let entries = [
            ("10.0.0.0/16", Some(8), false),
            ("10.0.1.0/24", None, true),
            ("10.1.0.0/16", Some(9), true),
            ("10.1.1.0/24", Some(5), true),
            ("10.2.0.0/24", Some(3), false),
            ("10.2.0.0/24", Some(6), true),
            ("10.2.0.0/24", Some(9), true),
            ("10.2.0.0/24", Some(4), false),
        ];
        let networks = list_of(entries);
        for (addr, now, expected) in [
            ("10.0.1.1", 0, "Found 1"),
            ("10.0.1.1", 8, "Shadow 2"),
            ("10.0.2.1", 8, "Expired 1"),
            ("10.1.1.1", 4, "Shadow 4"),
            ("10.1.1.1", 5, "Shadow 3"),
            ("10.1.1.1", 9, "Expired 4"),
            ("10.2.0.1", 3, "Found 8"),
            ("10.2.0.1", 4, "Shadow 7"),
            ("10.2.0.1", 9, "Expired 8"),
            ("10.3.0.1", 0, "Absent"),
        ] {
            let addr = addr.parse().unwrap();
            let line = |id| networks.network(id).line;
            let found = match networks.find(addr, seconds(now)) {
                Match::Found(id) => format!("Found {}", line(id)),
                Match::Shadow(id) => format!("Shadow {}", line(id)),
                Match::Expired(id) => format!("Expired {}", line(id)),
                Match::Absent => "Absent".to_owned(),
            };
            assert_eq!(found, expected, "{addr} at {now}");
            let admitted = found.starts_with("Found") || found.starts_with("Shadow");
            assert_eq!(Union::build(&[&networks]).contains(addr, seconds(now)), admitted, "{addr} at {now}");
        }
    }

    #[test]
    fn the_innermost_unexpired_entry_answers() {
        let nested: Entries = &[("10.0.0.0/8", Some(30)), ("10.1.0.0/16", Some(10)), ("10.1.1.0/24", Some(20))];
        let twins: Entries =
            &[("10.0.0.0/8", Some(5)), ("10.0.0.0/8", Some(9)), ("10.0.0.0/8", Some(7)), ("10.0.0.1/32", Some(2))];
        let edges: Entries =
            &[("0.0.0.0/32", None), ("255.255.255.255/32", None), ("::/128", None), ("ffff::/16", None)];
        let all: Entries = &[("0.0.0.0/0", None), ("::/0", None)];
        let neighbours: Entries = &[("10.0.0.0/25", None), ("10.0.0.128/25", Some(5))];
        let corner: Entries = &[("10.0.0.0/24", Some(9)), ("10.0.0.255/32", Some(5)), ("10.0.0.0/32", None)];
        let cases: [(Entries, &str, u64, Answer); 38] = [
            (&[], "10.0.0.1", 0, None),
            (&[], "::", 0, None),
            (nested, "9.255.255.255", 0, None),
            (nested, "10.0.0.0", 0, Some(Ok(1))),
            (nested, "10.1.0.255", 0, Some(Ok(2))),
            (nested, "10.1.1.0", 0, Some(Ok(3))),
            (nested, "10.1.1.255", 0, Some(Ok(3))),
            (nested, "10.1.2.0", 0, Some(Ok(2))),
            (nested, "10.255.255.255", 0, Some(Ok(1))),
            (nested, "11.0.0.0", 0, None),
            (nested, "10.1.2.0", 9, Some(Ok(2))),
            (nested, "10.1.2.0", 10, Some(Ok(1))),
            (nested, "10.1.1.1", 19, Some(Ok(3))),
            (nested, "10.1.1.1", 20, Some(Ok(1))),
            (nested, "10.1.1.1", 30, Some(Err(3))),
            (nested, "10.2.0.0", 30, Some(Err(1))),
            (twins, "10.0.0.0", 8, Some(Ok(2))),
            (twins, "10.0.0.0", 9, Some(Err(2))),
            (twins, "10.0.0.1", 1, Some(Ok(4))),
            (twins, "10.0.0.1", 2, Some(Ok(2))),
            (twins, "10.0.0.1", 9, Some(Err(4))),
            (edges, "0.0.0.0", 0, Some(Ok(1))),
            (edges, "0.0.0.1", 0, None),
            (edges, "255.255.255.254", 0, None),
            (edges, "255.255.255.255", 0, Some(Ok(2))),
            (edges, "::", 0, Some(Ok(3))),
            (edges, "::1", 0, None),
            (edges, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0, Some(Ok(4))),
            (edges, "::ffff:255.255.255.255", 0, Some(Ok(2))),
            (all, "255.255.255.255", 0, Some(Ok(1))),
            (all, "::ffff:0.0.0.0", 0, Some(Ok(1))),
            (all, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 0, Some(Ok(2))),
            (neighbours, "10.0.0.127", 5, Some(Ok(1))),
            (neighbours, "10.0.0.128", 5, Some(Err(2))),
            (corner, "10.0.0.255", 5, Some(Ok(1))),
            (corner, "10.0.0.255", 9, Some(Err(2))),
            (corner, "10.0.1.0", 0, None),
            (corner, "10.0.0.1", 9, Some(Err(1))),
        ];
        for (entries, addr, now, expected) in cases {
            let (networks, addr) = (list(entries), addr.parse().unwrap());
            assert_eq!(line(&networks, addr, now), expected, "{addr} at {now} in {entries:?}");
            let union = Union::build(&[&networks]);
            assert_eq!(
                union.contains(addr, seconds(now)),
                matches!(expected, Some(Ok(_))),
                "{addr} at {now} in {entries:?}"
            );
        }
        assert_eq!(list(twins).len(), 4, "equal networks stay entries of their own");
    }

    #[test]
    fn every_ipv6_address_of_all_networks_is_not_an_ipv4_address() {
        let networks = list(&[("::/0", None)]);
        for addr in ["10.0.0.1", "::ffff:10.0.0.1"] {
            assert_eq!(networks.find(addr.parse().unwrap(), seconds(0)), Match::Absent);
        }
    }

    #[test]
    fn an_expiry_counts_to_the_nanosecond() {
        let mut builder = NetworksBuilder::new();
        let note = builder.intern(Note { expires: Some(Timestamp::from_nanos(1_500_000_001)), ..note(None) });
        builder.add("10.0.0.0/24".parse().unwrap(), note, 1).unwrap();
        let networks = builder.build();
        let (union, addr) = (Union::build(&[&networks]), "10.0.0.1".parse().unwrap());
        for (nanos, valid) in [(1_500_000_000, true), (1_500_000_001, false)] {
            assert_eq!(matches!(networks.find(addr, Timestamp::from_nanos(nanos)), Match::Found(_)), valid);
            assert_eq!(union.contains(addr, Timestamp::from_nanos(nanos)), valid);
        }
    }

    #[test]
    fn networks_are_canonical() {
        let cases = [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("::ffff:10.0.0.0/104", Ok("10.0.0.0/8")),
            ("::ffff:0.0.0.0/96", Ok("0.0.0.0/0")),
            ("::ffff:10.1.2.3/128", Ok("10.1.2.3/32")),
            ("::/0", Ok("::/0")),
            ("::10.0.0.0/104", Ok("::a00:0/104")),
            ("::ffff:0.0.0.0/95", Err(NetworkError::MappedPrefix)),
            ("::ffff:10.0.0.0/8", Err(NetworkError::MappedPrefix)),
            ("10.0.0.1/8", Err(NetworkError::HostBits("10.0.0.0/8".parse().unwrap()))),
            ("::ffff:10.0.0.1/104", Err(NetworkError::HostBits("10.0.0.0/8".parse().unwrap()))),
            ("2001:db8::1/56", Err(NetworkError::HostBits("2001:db8::/56".parse().unwrap()))),
        ];
        for (given, expected) in cases {
            let given: IpNet = given.parse().unwrap();
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(canonical(given), expected, "{given}");
            let mut builder = NetworksBuilder::new();
            let id = builder.intern(note(None));
            assert_eq!(builder.add(given, id, 1), expected.map(|_| ()), "{given}");
            assert_eq!(builder.build().iter().next().map(|(_, network)| network.cidr), expected.ok(), "{given}");
        }
    }

    #[test]
    fn widths() {
        let cases = [
            ("10.0.0.0/24", false, 256),
            ("10.0.0.0/23", true, 512),
            ("10.0.0.0/32", false, 1),
            ("0.0.0.0/0", true, 1 << 32),
            ("2001:db8::/56", false, 1 << 72),
            ("2001:db8::/55", true, 1 << 73),
            ("::1/128", false, 1),
            ("::/0", true, u128::MAX),
        ];
        for (cidr, wide, addresses) in cases {
            let cidr: IpNet = cidr.parse().unwrap();
            assert_eq!((is_wide(&cidr), address_count(&cidr)), (wide, addresses), "{cidr}");
        }
    }

    #[test]
    fn equal_notes_are_kept_once() {
        let networks = list(&[("10.0.0.0/24", Some(1)), ("10.0.1.0/24", Some(2)), ("10.0.2.0/24", Some(1))]);
        assert_eq!(networks.notes.len(), 2);
        let expiries = networks.iter().map(|(_, network)| network.note.expires);
        assert_eq!(expiries.collect::<Vec<_>>(), [Some(seconds(1)), Some(seconds(2)), Some(seconds(1))]);
    }

    #[test]
    fn a_line_repeated_a_thousand_times_is_one_step_of_a_walk() {
        let mut entries = vec![("10.0.0.0/8", Some(9)); 1000];
        entries.push(("10.0.0.0/16", Some(1)));
        let networks = list(&entries);
        assert_eq!(networks.v4.entry(1000).parent, NonZeroU32::new(1));
        assert!(networks.v4.entries.pairs[..1000].iter().all(|(_, entry)| entry.parent.is_none()));
    }

    #[test]
    fn a_search_of_many_levels_equals_a_binary_search() {
        for len in [0, 1, 2, 15, 16, 17, 255, 256, 257, 272, 273, 4095, 4096, 4097, 9999] {
            // Odd keys, each third one twice.
            let pairs: Vec<(u32, ())> = (0..len).map(|i| ((i - u32::from(i % 3 == 1)) * 2 + 1, ())).collect();
            let expected = pairs.clone();
            let sorted = Sorted::new(pairs);
            for key in (0..2 * len + 3).chain([u32::MAX]) {
                let position = expected.partition_point(|(start, ())| *start <= key).checked_sub(1);
                assert_eq!(sorted.at_or_before(key), position, "{key} of {len}");
            }
        }
    }

    #[test]
    fn the_union_keeps_no_range_that_says_nothing_new() {
        let a = list(&[("10.0.0.0/25", None), ("10.0.0.128/25", None), ("10.0.0.7/32", Some(5))]);
        let b = list(&[("10.0.0.0/24", Some(5))]);
        let union = Union::build(&[&a, &b]);
        assert_eq!(union.v4.ranges.pairs.len(), 2, "one range and the end of it");
    }

    fn cidr() -> impl Strategy<Value = IpNet> {
        // Few distinct bytes and every prefix length, so that networks often nest, touch or are equal.
        let byte = prop_oneof![Just(0u8), Just(1), Just(127), Just(128), Just(255)];
        let v4 = (prop::array::uniform4(byte.clone()), prop_oneof![0..=32u8, 30..=32u8])
            .prop_map(|(b, p)| IpNet::new(b.into(), p));
        let v6 = (prop::array::uniform16(byte), prop_oneof![0..=128u8, 126..=128u8])
            .prop_map(|(b, p)| IpNet::new(b.into(), p));
        prop_oneof![v4, v6].prop_map(|net| net.unwrap().trunc()).prop_filter("canonical", |net| canonical(*net).is_ok())
    }

    type Entry = (IpNet, Option<u64>, bool);

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        prop::collection::vec((cidr(), prop::option::weighted(0.8, 0..6u64), prop::bool::weighted(0.3)), 0..60)
    }

    /// The first and last addresses of networks and those just outside, where mistakes are.
    fn probes(entries: &[Entry]) -> Vec<IpAddr> {
        let mut addrs: Vec<IpAddr> = ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
            .map(|addr| addr.parse().unwrap())
            .to_vec();
        for (net, ..) in entries {
            match (net.network(), net.broadcast()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    let (first, last) = (u32::from(first), u32::from(last));
                    let around = [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv4Addr::from);
                    addrs.extend(around.map(IpAddr::from));
                    addrs.extend(around.map(|addr| IpAddr::from(addr.to_ipv6_mapped())));
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    let (first, last) = (u128::from(first), u128::from(last));
                    let around = [first.wrapping_sub(1), first, last, last.wrapping_add(1)];
                    addrs.extend(around.map(|bits| IpAddr::from(Ipv6Addr::from(bits))));
                }
                _ => unreachable!(),
            }
        }
        addrs
    }

    /// What answers, and on which entry: its network, its expiry and whether it is in shadow.
    type Answered = (&'static str, (u8, bool, u64, IpNet));

    /// The same answer by reading every entry.
    fn scan(entries: &[Entry], addr: IpAddr, now: u64) -> Option<Answered> {
        let of = |entry: &Entry| (entry.0.prefix_len(), !entry.2, entry.1.unwrap_or(u64::MAX), entry.0);
        let covering = || entries.iter().filter(|(net, ..)| net.contains(&addr.to_canonical())).map(of);
        let current = |enforced: bool| covering().filter(move |entry| now < entry.2 && entry.1 == enforced).max();
        let found = current(true).map(|found| ("found", found));
        let shadow = current(false).map(|shadow| ("shadow", shadow));
        found.or(shadow).or_else(|| covering().max().map(|expired| ("expired", expired)))
    }

    fn admits(networks: &Networks, addr: IpAddr, now: u64) -> bool {
        networks.find(addr, seconds(now)).lets_in()
    }

    proptest! {
        #[test]
        fn find_equals_a_linear_scan(entries in entries(), now in 0..7u64) {
            let networks = list_of(entries.clone());
            prop_assert_eq!(networks.len(), entries.len());
            let answer = |name, id| {
                let Network { cidr, note, .. } = networks.network(id);
                let until = note.expires.map_or(u64::MAX, Timestamp::unix_seconds);
                Some((name, (cidr.prefix_len(), !note.shadow, until, cidr)))
            };
            for addr in probes(&entries) {
                let found = match networks.find(addr, seconds(now)) {
                    Match::Found(id) => answer("found", id),
                    Match::Shadow(id) => answer("shadow", id),
                    Match::Expired(id) => answer("expired", id),
                    Match::Absent => None,
                };
                prop_assert_eq!(found, scan(&entries, addr, now), "{}", addr);
            }
        }

        #[test]
        fn the_union_contains_what_some_list_finds(lists in prop::collection::vec(entries(), 0..4), now in 0..7u64) {
            let networks: Vec<Networks> = lists.iter().map(|entries| list_of(entries.clone())).collect();
            let union = Union::build(&networks.iter().collect::<Vec<_>>());
            for addr in lists.iter().flat_map(|entries| probes(entries)) {
                let found = networks.iter().any(|list| admits(list, addr, now));
                prop_assert_eq!(union.contains(addr, seconds(now)), found, "{}", addr);
            }
        }

        #[test]
        fn a_removed_entry_admits_nobody(entries in entries(), which: prop::sample::Index, now in 0..7u64) {
            prop_assume!(!entries.is_empty());
            let mut fewer = entries.clone();
            fewer.remove(which.index(entries.len()));
            let (before, after) = (list_of(entries.clone()), list_of(fewer));
            for addr in probes(&entries) {
                if before.find(addr, seconds(now)) == Match::Absent {
                    prop_assert_eq!(after.find(addr, seconds(now)), Match::Absent);
                }
                if admits(&after, addr, now) {
                    prop_assert!(admits(&before, addr, now));
                }
            }
        }

        #[test]
        fn shadow_says_who_would_be_missing_without_it(entries in entries(), now in 0..7u64) {
            let enforced = list_of(entries.iter().filter(|(.., shadow)| !shadow).copied());
            let never = list_of(entries.iter().map(|(net, expires, _)| (*net, *expires, false)));
            let networks = list_of(entries.clone());
            for addr in probes(&entries) {
                let found = networks.find(addr, seconds(now));
                prop_assert_eq!(matches!(found, Match::Found(_)), admits(&enforced, addr, now), "{}", addr);
                prop_assert_eq!(admits(&networks, addr, now), admits(&never, addr, now), "{}", addr);
            }
        }

        #[test]
        fn overlaps_are_the_pairs_that_share_addresses(a in entries(), b in entries(), pairs_max in 0..50usize) {
            let (a, b) = (list_of(a), list_of(b));
            let mut expected = Vec::new();
            for (i, x) in a.iter() {
                let sharing = |y: &IpNet| y.contains(&x.cidr) || x.cidr.contains(y);
                expected.extend(b.iter().filter(|(_, y)| sharing(&y.cidr)).map(|(j, _)| (i, j)));
            }
            let mut pairs = overlaps(&a, &b, usize::MAX);
            prop_assert_eq!(&overlaps(&a, &b, pairs_max)[..], &pairs[..pairs.len().min(pairs_max)]);
            pairs.sort_unstable();
            prop_assert_eq!(pairs, expected);
        }
    }
}
