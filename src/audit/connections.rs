//! Who came to no request? Refused connections and handshakes, summed up by minute, reason and prefix.
//!
//! Anybody on the network makes these, as many as they like: what they can write is bounded, by entries and so by bytes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use super::event::{self, Event, VERSION};
use crate::clock::Timestamp;

/// Prefixes of a minute that are told apart; the rest is summed up by reason alone. An entry is some 150 bytes.
pub const PREFIXES_MAX: usize = 256;

#[derive(Debug, Default)]
pub struct RefusedConnections(Mutex<HashMap<(&'static str, Option<IpAddr>), u64>>);

impl RefusedConnections {
    /// `reason` is a code of a closed list.
    pub fn count(&self, reason: &'static str, source: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = Some(prefix(source));
        let known = counts.len() < PREFIXES_MAX || counts.contains_key(&(reason, prefix));
        let count = counts.entry((reason, prefix.filter(|_| known))).or_default();
        *count = count.saturating_add(1);
    }

    /// What came since the last call, in a stable order; `since` is when that was.
    pub fn take(&self, since: Timestamp) -> Vec<Event<'static>> {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort();
        let event = |((reason, prefix), count): ((&'static str, Option<IpAddr>), u64)| {
            let prefix = prefix.map(|prefix| format!("{prefix}/{}", if prefix.is_ipv4() { 24 } else { 56 }).into());
            Event::Connections(event::Connections { v: VERSION, time: since, reason: reason.into(), prefix, count })
        };
        counts.into_iter().map(event).collect()
    }
}

/// The /24 or /56 of an address: one site, as a rule.
fn prefix(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() >> 8 << 8)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 72 << 72)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(refused: &RefusedConnections) -> Vec<(String, Option<String>, u64)> {
        let found = refused.take(Timestamp::default()).into_iter().map(|event| match event {
            Event::Connections(entry) => {
                (entry.reason.into_owned(), entry.prefix.map(std::borrow::Cow::into_owned), entry.count)
            }
            other => panic!("{other:?}"),
        });
        found.collect()
    }

    #[test]
    fn they_are_summed_up_by_reason_and_prefix() {
        let refused = RefusedConnections::default();
        for source in ["10.20.30.1", "10.20.30.255", "10.20.31.1", "2001:db8:1:2ff::1", "2001:db8:1:200::"] {
            refused.count("network", source.parse().expect(source));
        }
        refused.count("tls", IpAddr::from([10, 20, 30, 9]));
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            ("network".to_owned(), text("10.20.30.0/24"), 2),
            ("network".to_owned(), text("10.20.31.0/24"), 1),
            ("network".to_owned(), text("2001:db8:1:200::/56"), 2),
            ("tls".to_owned(), text("10.20.30.0/24"), 1),
        ];
        assert_eq!(counts(&refused), expected);
        assert_eq!(counts(&refused), []);
    }

    #[test]
    fn a_flood_from_everywhere_takes_so_many_entries_and_loses_no_count() {
        let refused = RefusedConnections::default();
        for number in 0..100_000u32 {
            refused.count("network", IpAddr::from(Ipv4Addr::from_bits(number << 8)));
        }
        let counts = counts(&refused);
        assert_eq!(counts.len(), PREFIXES_MAX + 1);
        assert_eq!(counts.iter().map(|(.., count)| count).sum::<u64>(), 100_000);
        assert_eq!(counts.iter().filter(|(_, prefix, _)| prefix.is_none()).count(), 1);
    }
}
