//! What outlives a snapshot of the configuration: what each partner has used up, and how each server behind the gateway is;
//! keyed by names and absolute time.

pub mod backends;
mod rates;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::policy::charge::{Charge, Receipt, SubjectKey};
use backends::Backends;
use rates::{FullAt, take};

/// The state of all partners and backends, found by name so that it survives a change of the configuration.
#[derive(Debug, Default)]
pub struct State {
    partners: Mutex<HashMap<Arc<str>, Arc<PartnerState>>>,
    /// How the servers behind the gateway are.
    pub backends: Backends,
}

/// What one partner has used up. One lock a partner: its limits are exact on all cores together, and partners do not
/// wait for each other. The lock is held for the arithmetic of one group of charges, never across IO.
#[derive(Debug)]
pub struct PartnerState {
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    requests: FullAt,
    in_flight: u32,
    connections: u32,
    /// One entry for each route that a grant limits; entries stay, so that a [`Hold`] can name one by its index.
    routes: Vec<RouteUsed>,
    sources: HashMap<IpAddr, FullAt>,
    subjects: HashMap<SubjectKey, FullAt>,
    swept: Timestamp,
}

#[derive(Debug)]
struct RouteUsed {
    name: Box<str>,
    requests: FullAt,
    in_flight: u32,
}

/// In-flight places taken by one request; dropping it gives them back.
#[derive(Debug, Default)]
#[must_use]
pub struct Hold {
    /// `None` until a place was taken.
    partner: Option<Arc<PartnerState>>,
    request: bool,
    route: Option<usize>,
}

/// One of a partner's connections; dropping it gives the place back.
#[derive(Debug)]
#[must_use]
pub struct Connection {
    partner: Arc<PartnerState>,
}

/// A full map is swept at most this often: a flood of new keys must not make each request walk all the others.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

impl State {
    /// The state of a partner; a name seen for the first time starts with nothing used.
    pub fn partner(&self, name: &Arc<str>) -> Arc<PartnerState> {
        let mut partners = self.partners.lock().unwrap_or_else(PoisonError::into_inner);
        partners.entry(name.clone()).or_insert_with(|| Arc::new(PartnerState { used: Mutex::default() })).clone()
    }

    /// Forgets what has been paid back everywhere. Call it now and then.
    pub fn sweep(&self, now: Timestamp) {
        let partners: Vec<_> = {
            let partners = self.partners.lock().unwrap_or_else(PoisonError::into_inner);
            partners.values().cloned().collect()
        };
        for partner in partners {
            partner.lock().sweep(now);
        }
    }
}

impl PartnerState {
    /// Takes all of the charges or none. The hold is for the in-flight places among them.
    pub fn charge<'c>(
        self: &Arc<Self>,
        charges: impl Iterator<Item = Charge<'c>> + Clone,
        entries_max: usize,
        now: Timestamp,
    ) -> (Receipt, Hold) {
        let mut hold = Hold::default();
        let mut used = self.lock();
        let mut buckets = [FullAt::default(); CHARGES_MAX];
        for (charge, bucket) in charges.clone().zip(&mut buckets) {
            match used.stage(charge, entries_max, now) {
                Ok(after) => *bucket = after,
                Err(receipt) => return (receipt, hold),
            }
        }
        for (charge, bucket) in charges.zip(buckets) {
            used.commit(charge, bucket, &mut hold);
        }
        if hold.request || hold.route.is_some() {
            hold.partner = Some(self.clone());
        }
        (Receipt::Paid, hold)
    }

    /// A place for one more connection, if there is one.
    pub fn connect(self: &Arc<Self>, connections_max: u32) -> Option<Connection> {
        let mut used = self.lock();
        if used.connections >= connections_max {
            return None;
        }
        used.connections += 1;
        Some(Connection { partner: self.clone() })
    }

    /// Keys that are remembered: source addresses and people.
    pub fn entries(&self) -> (usize, usize) {
        let used = self.lock();
        (used.sources.len(), used.subjects.len())
    }

    pub fn in_flight(&self) -> u32 {
        self.lock().in_flight
    }

    pub fn connections(&self) -> u32 {
        self.lock().connections
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Nothing panics while it holds the lock, and every write leaves whole values behind.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A head's group has five charges, a person's one.
const CHARGES_MAX: usize = 6;

impl Used {
    /// What a charge would leave behind, without leaving it. In-flight charges have no bucket.
    fn stage(&mut self, charge: Charge, entries_max: usize, now: Timestamp) -> Result<FullAt, Receipt> {
        let (rate, bucket) = match charge {
            Charge::InFlight(max) => return within(self.in_flight, max, charge),
            Charge::RouteInFlight(route, max) => {
                let route = self.route(route);
                return within(self.routes[route].in_flight, max, charge);
            }
            Charge::RequestRate(rate) => (rate, self.requests),
            Charge::RouteRate(route, rate) => {
                let route = self.route(route);
                (rate, self.routes[route].requests)
            }
            Charge::SourceRate(source, rate) => match self.sources.get(&source).copied() {
                Some(bucket) => (rate, bucket),
                None => (rate, self.make_room(entries_max, now)?),
            },
            Charge::SubjectRate(subject, rate) => match self.subjects.get(&subject).copied() {
                Some(bucket) => (rate, bucket),
                None => (rate, self.make_room(entries_max, now)?),
            },
        };
        take(rate, bucket, now).map_err(|retry_after| Receipt::Refused { reason: charge.refusal(), retry_after })
    }

    fn commit(&mut self, charge: Charge, bucket: FullAt, hold: &mut Hold) {
        match charge {
            Charge::InFlight(_) => {
                self.in_flight += 1;
                hold.request = true;
            }
            Charge::RouteInFlight(route, _) => {
                let route = self.route(route);
                self.routes[route].in_flight += 1;
                hold.route = Some(route);
            }
            Charge::RequestRate(_) => self.requests = bucket,
            Charge::RouteRate(route, _) => {
                let route = self.route(route);
                self.routes[route].requests = bucket;
            }
            Charge::SourceRate(source, _) => _ = self.sources.insert(source, bucket),
            Charge::SubjectRate(subject, _) => _ = self.subjects.insert(subject, bucket),
        }
    }

    /// Room for a new key, whose bucket is full. A key that still owes is never forgotten to make room.
    fn make_room(&mut self, entries_max: usize, now: Timestamp) -> Result<FullAt, Receipt> {
        if self.entries() >= entries_max && now.since(self.swept) >= SWEEP_EVERY {
            self.sweep(now);
        }
        if self.entries() < entries_max { Ok(FullAt::default()) } else { Err(Receipt::FULL) }
    }

    fn entries(&self) -> usize {
        self.sources.len() + self.subjects.len()
    }

    fn sweep(&mut self, now: Timestamp) {
        forget_full(&mut self.sources, now);
        forget_full(&mut self.subjects, now);
        self.swept = now;
    }

    /// Index of a route by its name; names come from the configuration, so there are few.
    fn route(&mut self, name: &str) -> usize {
        let known = self.routes.iter().position(|route| *route.name == *name);
        known.unwrap_or_else(|| {
            self.routes.push(RouteUsed { name: name.into(), requests: FullAt::default(), in_flight: 0 });
            self.routes.len() - 1
        })
    }
}

fn within(taken: u32, max: u32, charge: Charge) -> Result<FullAt, Receipt> {
    // When a place gets free cannot be known; a second is the least that Retry-After can say.
    let refused = Receipt::Refused { reason: charge.refusal(), retry_after: Duration::from_secs(1) };
    if taken < max { Ok(FullAt::default()) } else { Err(refused) }
}

fn forget_full<K: Eq + Hash>(buckets: &mut HashMap<K, FullAt>, now: Timestamp) {
    buckets.retain(|_, bucket| !bucket.is_full(now));
    if buckets.capacity() > 4 * buckets.len().max(1_024) {
        buckets.shrink_to(2 * buckets.len());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(partner) = &self.partner else { return };
        let mut used = partner.lock();
        if self.request {
            used.in_flight = used.in_flight.saturating_sub(1);
        }
        if let Some(route) = self.route {
            used.routes[route].in_flight = used.routes[route].in_flight.saturating_sub(1);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut used = self.partner.lock();
        used.connections = used.connections.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::charge::Rate;
    use crate::policy::reason::Reason;

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_780_000_000);

    fn partner() -> Arc<PartnerState> {
        State::default().partner(&"icmr".into())
    }

    fn rate(count: u32, burst: u32) -> Rate {
        Rate { count, period: Duration::from_secs(1), burst }
    }

    fn pay(partner: &Arc<PartnerState>, charges: &[Charge], now: Timestamp) -> (Receipt, Hold) {
        partner.charge(charges.iter().copied(), 4, now)
    }

    fn refused(receipt: Receipt) -> Option<Reason> {
        match receipt {
            Receipt::Paid => None,
            Receipt::Refused { reason, .. } => Some(reason),
        }
    }

    #[test]
    fn a_group_is_paid_as_a_whole_or_not_at_all() {
        let partner = partner();
        let source = "10.20.0.5".parse().expect("address");
        let group = [Charge::InFlight(9), Charge::RequestRate(rate(1, 3)), Charge::SourceRate(source, rate(1, 1))];
        let (receipt, first) = pay(&partner, &group, NOW);
        assert_eq!(refused(receipt), None);
        for _ in 0..5 {
            // The source is out; the partner's own rate and places must not pay for its refusals.
            let (receipt, _hold) = pay(&partner, &group, NOW);
            assert_eq!(refused(receipt), Some(Reason::RateSource));
        }
        assert_eq!(partner.in_flight(), 1);
        drop(first);
        assert_eq!(partner.in_flight(), 0);
        for expected in [None, None, Some(Reason::RatePartner)] {
            let (receipt, _hold) = pay(&partner, &[Charge::RequestRate(rate(1, 3))], NOW);
            assert_eq!(refused(receipt), expected);
        }
    }

    #[test]
    fn places_in_flight_come_back_when_the_hold_goes() {
        let partner = partner();
        let group = [Charge::InFlight(3), Charge::RouteInFlight("lookup", 1)];
        let (receipt, hold) = pay(&partner, &group, NOW);
        assert_eq!(refused(receipt), None);
        assert_eq!(refused(pay(&partner, &group, NOW).0), Some(Reason::InFlightRoute));
        assert_eq!(refused(pay(&partner, &[Charge::RouteInFlight("other", 1)], NOW).0), None);
        drop(hold);
        assert_eq!(refused(pay(&partner, &group, NOW).0), None);
    }

    #[test]
    fn a_full_store_refuses_rather_than_forget_what_is_owed() {
        let partner = partner();
        let person =
            |id: u8| Charge::SubjectRate([id; 16], Rate { count: 1, period: Duration::from_secs(100), burst: 1 });
        for id in 0..4 {
            assert_eq!(refused(pay(&partner, &[person(id)], NOW).0), None);
        }
        let later = NOW.plus(Duration::from_secs(99));
        assert_eq!(refused(pay(&partner, &[person(4)], later).0), Some(Reason::LimiterFull));
        assert_eq!(refused(pay(&partner, &[person(0)], later).0), Some(Reason::RateSubject));
        let paid_back = NOW.plus(Duration::from_secs(101));
        assert_eq!(refused(pay(&partner, &[person(4)], paid_back).0), None);
        assert_eq!(partner.entries(), (0, 1));
    }

    #[test]
    fn state_is_found_by_name() {
        let state = State::default();
        let hold = pay(&state.partner(&"icmr".into()), &[Charge::InFlight(1)], NOW).1;
        assert_eq!(state.partner(&"icmr".into()).in_flight(), 1);
        assert_eq!(state.partner(&"other".into()).in_flight(), 0);
        drop(hold);
    }

    #[test]
    fn connections_are_capped() {
        let partner = partner();
        let first = partner.connect(1);
        assert!(first.is_some());
        assert!(partner.connect(1).is_none());
        drop(first);
        assert!(partner.connect(1).is_some());
    }

    #[test]
    fn limits_are_exact_across_threads() {
        let partner = partner();
        let paid: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..1_000)
                            .filter(|_| pay(&partner, &[Charge::RequestRate(rate(1, 777))], NOW).0 == Receipt::Paid)
                            .count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(paid, 777);
    }
}
