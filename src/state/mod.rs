//! What outlives a snapshot of the configuration: what each partner has used up, and how each server behind the gateway is;
//! keyed by names and absolute time.

pub mod backends;
pub mod budgets;
pub mod latencies;
pub mod orders;
mod rates;
pub mod store;
pub mod watched;

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::detect::Watch;
use crate::policy::admit::Standing;
use crate::policy::charge::{Charge, Receipt, Scope, SubjectKey};
use crate::policy::containment::{Footing, Level};
use crate::policy::contract::Window;
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;
use crate::subject::Mark;
use backends::Backends;
use budgets::{Budgets, KeptSeen, Stamp};
use latencies::Latencies;
use orders::{Freeze, Held, Order, Orders};
use rates::{FullAt, at_most_empty, take};
use store::{Fact, Ledger, Recovered, Store, StoreError, Whose};

/// The state of all partners and backends, found by name so that it survives a change of the configuration.
#[derive(Debug, Default)]
pub struct State {
    partners: Mutex<HashMap<Arc<str>, Arc<PartnerState>>>,
    /// How the servers behind the gateway are.
    pub backends: Backends,
    /// By the name of the route.
    latencies: Mutex<HashMap<Arc<str>, Arc<Latencies>>>,
    orders: Mutex<Orders>,
    keeping_orders: Mutex<()>,
    /// Entries of the audit whose lookups the evidence on the disk has.
    evidence_folded: AtomicU64,
    /// `None`: it ends with the process, as for `explain`.
    store: Option<Store>,
}

/// What one partner has used up. One lock a partner: its limits are exact on all cores together, and partners do not
/// wait for each other. The lock is held for the arithmetic of one group of charges, never across IO.
#[derive(Debug)]
pub struct PartnerState {
    name: Arc<str>,
    frozen: AtomicBool,
    /// What operators ordered beside a freeze; `None` for nearly everybody, and then it costs a load.
    held: ArcSwapOption<orders::Hold>,
    /// Refusals of those who are held that have not been given yet.
    waiting: AtomicU32,
    /// Generation of the configuration that took something from this partner last; 0 for none.
    narrowed: AtomicU64,
    used: Mutex<Used>,
    /// Taken before `used`, never after it.
    watch: Mutex<Watch>,
    /// Whether it asked for anybody since its evidence was kept.
    asked: AtomicBool,
}

#[derive(Debug, Default)]
struct Used {
    requests: FullAt,
    in_flight: Places,
    connections: Places,
    /// One entry for each route that a grant limits; entries stay, so that a [`Hold`] can name one by its index.
    routes: Vec<RouteUsed>,
    sources: HashMap<IpAddr, FullAt>,
    subjects: HashMap<SubjectKey, FullAt>,
    budgets: Budgets,
    /// When a network let this partner in last, in Unix seconds; only networks that ever did.
    matches: HashMap<IpNet, u32>,
    knocks: Knocks,
    swept: Timestamp,
}

/// What a partner's state leaves on the disk. Copied under the lock and written outside of it: putting a million people into
/// lines takes half a second, in which their partner must not stand still.
struct Kept {
    requests: Option<FullAt>,
    routes: Vec<(Box<str>, FullAt)>,
    sources: Vec<(IpAddr, FullAt)>,
    subjects: Vec<(SubjectKey, FullAt)>,
    matches: Vec<(IpNet, u32)>,
    budgets: Vec<KeptSeen>,
}

impl Kept {
    fn note(&self, partner: &str, ledger: &mut Ledger) {
        let mut note = |fact, bucket: &FullAt| ledger.note(partner, fact, bucket.time());
        self.requests.iter().for_each(|bucket| note(Fact::Requests, bucket));
        self.routes.iter().for_each(|(name, bucket)| note(Fact::Route(name), bucket));
        self.sources.iter().for_each(|(source, bucket)| note(Fact::Source(*source), bucket));
        self.subjects.iter().for_each(|(subject, bucket)| note(Fact::Subject(*subject), bucket));
        for (network, seconds) in &self.matches {
            ledger.note(partner, Fact::Network(*network), Timestamp::from_unix_seconds(u64::from(*seconds)));
        }
        for (fact, stamp) in self.budgets.iter().flat_map(KeptSeen::facts) {
            ledger.note(partner, fact, stamp.time());
        }
    }
}

/// Handshakes of a frozen partner.
#[derive(Debug, Default)]
struct Knocks {
    count: u32,
    last: Timestamp,
    waiting: u32,
}

/// A refused handshake that is made to wait; dropping it gives the place back.
#[derive(Debug)]
#[must_use]
pub struct Knock {
    partner: Arc<PartnerState>,
    pub delay: Duration,
}

#[derive(Debug)]
struct RouteUsed {
    name: Box<str>,
    requests: FullAt,
    in_flight: Places,
}

/// Places that are taken for as long as something lasts.
#[derive(Debug, Default)]
struct Places {
    within: u32,
    /// Taken when a maximum in shadow was reached. They leave the others to those whom it would have let in.
    beyond: u32,
}

/// On which side of a maximum a place was taken; beyond it only where it is in shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Within,
    Beyond,
}

/// In-flight places taken by one request, which dropping it gives back, and people reserved for it, which it does not.
#[derive(Debug, Default)]
#[must_use]
pub struct Hold {
    /// `None` until a place was taken.
    partner: Option<Arc<PartnerState>>,
    request: Option<Side>,
    route: Option<(usize, Side)>,
    /// People that are reserved until [`Hold::disclosed`] says how many there were.
    people: Option<(SubjectKey, u16)>,
}

/// A refusal that waits as long as an answer would take; dropping it gives the place back.
#[derive(Debug)]
#[must_use]
pub struct Waiting(Arc<PartnerState>);

/// One of a partner's connections; dropping it gives the place back.
#[derive(Debug)]
#[must_use]
pub struct Connection {
    partner: Arc<PartnerState>,
    side: Side,
}

/// A full map is swept at most this often: a flood of new keys must not make each request walk all the others.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The first refused handshake of a frozen partner waits so long, each further one twice as long as the one before.
const KNOCK_DELAY: Duration = Duration::from_millis(250);
const KNOCK_DELAY_MAX: Duration = Duration::from_secs(30);
/// After so long without one, the delay begins again.
const KNOCKS_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Refused handshakes of one partner that may wait at the same time; more are closed at once, or a frozen partner could
/// hold every place for connections.
const KNOCKS_WAITING_MAX: u32 = 16;

/// Refusals of one partner that may wait at the same time. Those of lookups have a place in flight each; this is for the rest.
const WAITING_MAX: u32 = 1_024;

impl State {
    /// The state that was left in `directory`, to be kept there from now on.
    pub fn open(directory: &Path) -> Result<(State, Recovered), StoreError> {
        let mut state = State { orders: Mutex::new(Orders::load(directory)?), ..State::default() };
        let (store, recovered) = Store::open(directory, |partner, fact, at| {
            state.partner(&partner.into()).lock().recall(fact, at);
        })?;
        state.store = Some(store);
        state.recall_evidence(directory)?;
        Ok((state, recovered))
    }

    /// The state of a partner; a name seen for the first time starts with nothing used.
    pub fn partner(&self, name: &Arc<str>) -> Arc<PartnerState> {
        let mut partners = self.partners.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let orders = self.orders();
            let frozen = AtomicBool::new(orders.freeze_of(name).is_some());
            let held = ArcSwapOption::from(orders.hold(name).map(Arc::new));
            let (name, used, watch) = (name.clone(), Mutex::default(), Mutex::default());
            let asked = AtomicBool::default();
            let waiting = AtomicU32::new(0);
            Arc::new(PartnerState { name, frozen, held, waiting, narrowed: AtomicU64::new(0), used, watch, asked })
        };
        partners.entry(name.clone()).or_insert_with(new).clone()
    }

    /// How long a route's answers took lately.
    pub fn latencies(&self, route: &Arc<str>) -> Arc<Latencies> {
        let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        latencies.entry(route.clone()).or_default().clone()
    }

    /// Freezes a partner or thaws it, from now on; [`State::keep_orders`] sees to it that a restart changes nothing about it.
    pub fn set_freeze(&self, partner: &Arc<str>, freeze: Option<Freeze>) {
        let state = self.partner(partner);
        let mut orders = self.orders();
        state.frozen.store(freeze.is_some(), Ordering::Release);
        orders.freeze(partner, freeze);
    }

    /// Has a partner or an actor stand on a step of the ladder from now on, or takes that back. Returns the order before.
    pub fn set_order(&self, held: &Held, order: Option<Order>) -> Option<Order> {
        let state = self.partner(&held.0);
        let mut orders = self.orders();
        let before = orders.set(held, order);
        state.held.store(orders.hold(&held.0).map(Arc::new));
        before
    }

    /// Takes out the orders whose time is over. They hold nobody since then, whenever this is called.
    pub fn expire_orders(&self, now: Timestamp) -> Vec<(Held, Order)> {
        let over = self.orders().expire(now);
        for ((partner, _), _) in &over {
            let state = self.partner(partner);
            let orders = self.orders();
            state.held.store(orders.hold(partner).map(Arc::new));
        }
        over
    }

    /// Brings all orders to the disk. Waits for it, but holds nothing up meanwhile.
    pub fn keep_orders(&self) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        // In turns, each with what holds then, so that the last one writes the last word.
        let _one = self.keeping_orders.lock().unwrap_or_else(PoisonError::into_inner);
        let document = self.orders().document();
        orders::save(store.directory(), &document)
    }

    pub fn freeze_of(&self, partner: &str) -> Option<Freeze> {
        self.orders().freeze_of(partner).cloned()
    }

    /// Every partner that is frozen until it is thawed, by name.
    pub fn frozen(&self) -> Vec<(Arc<str>, Freeze)> {
        self.orders().freezes().map(|(partner, freeze)| (partner.clone(), freeze.clone())).collect()
    }

    /// Every order for a time, by partner; its own before those of its actors.
    pub fn ordered(&self) -> Vec<(Held, Order)> {
        self.orders().iter().map(|(held, order)| (held.clone(), order.clone())).collect()
    }

    /// Keeps what the ledger holds; whoever asked must not go on after an error.
    pub fn keep(&self, ledger: &mut Ledger) -> io::Result<()> {
        match &self.store {
            Some(store) => store.append(ledger),
            None => {
                ledger.clear();
                Ok(())
            }
        }
    }

    /// What the disk has to be brought every second: the journal, or the whole state where that is due. Also ends the
    /// time in which nothing could be kept, once the disk takes it again.
    pub fn persist(&self, now: Timestamp) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        if store.is_due() { self.rewrite(now) } else { store.sync() }
    }

    /// Writes everything anew. To be called when the gateway stops, too: the next start then reads one short file.
    pub fn rewrite(&self, now: Timestamp) -> io::Result<()> {
        let Some(store) = &self.store else { return Ok(()) };
        store.rewrite(|ledger| {
            for partner in self.partners() {
                let kept = partner.lock().kept(now);
                kept.note(&partner.name, ledger);
            }
        })
    }

    /// Writes that failed since the start.
    pub fn failures(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::failures)
    }

    /// Whether charges cannot be kept, and so nobody is let in.
    pub fn is_broken(&self) -> bool {
        self.store.as_ref().is_some_and(Store::is_broken)
    }

    /// Forgets what has been paid back everywhere. Call it now and then.
    pub fn sweep(&self, now: Timestamp) {
        for partner in self.partners() {
            partner.lock().sweep(now);
        }
    }

    fn partners(&self) -> Vec<Arc<PartnerState>> {
        self.partners.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Taken after `partners`, never before it.
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartnerState {
    /// Takes all of the charges or none, where those in shadow do not count: one that cannot be taken is left. The hold is
    /// for the in-flight places among them; what has to outlive the process is noted in the ledger.
    pub fn charge<'c>(
        self: &Arc<Self>,
        charges: impl Iterator<Item = Charge<'c>> + Clone,
        shadow: Shadow,
        entries_max: usize,
        now: Timestamp,
        ledger: &mut Ledger,
    ) -> (Receipt, Hold) {
        let mut hold = Hold::default();
        let mut used = self.lock();
        let mut buckets = [Some(FullAt::default()); CHARGES_MAX];
        let mut passed = Shadow::default();
        let mut moved = Vec::new();
        let mut refused = None;
        for (charge, bucket) in charges.clone().zip(&mut buckets) {
            let watched = shadow.contains(charge.refusal());
            match used.stage(charge, watched, entries_max, now, &mut moved) {
                Ok(after) => *bucket = Some(after),
                Err((reason, _)) if watched => {
                    passed.insert(reason);
                    *bucket = None;
                }
                Err((reason, retry_after)) => {
                    refused = Some(Receipt::Refused { reason, retry_after });
                    break;
                }
            }
        }
        for (fact, stamp) in moved {
            ledger.note(&self.name, fact, stamp.time());
        }
        if let Some(refused) = refused {
            return (refused, hold);
        }
        for (charge, bucket) in charges.clone().zip(&mut buckets) {
            used.commit(charge, bucket, &mut hold);
        }
        drop(used);
        for (charge, bucket) in charges.zip(buckets) {
            let Some(bucket) = bucket else { continue };
            let fact = match charge {
                Charge::RequestRate(_) => Fact::Requests,
                Charge::RouteRate(route, _) => Fact::Route(route),
                Charge::SourceRate(source, _) => Fact::Source(source),
                Charge::SubjectRate(person, _) => Fact::Subject(person.key),
                Charge::Budget(Scope::Partner, person, _) => Fact::Seen(Whose::Partner, person.key),
                Charge::Budget(Scope::People(_), person, _) => Fact::Seen(Whose::People, person.key),
                Charge::Budget(Scope::Grant(route), person, _) => Fact::Seen(Whose::Grant(route), person.key),
                Charge::Budget(Scope::Actor(actor), person, _) => Fact::Seen(Whose::Actor(actor.key), person.key),
                Charge::InFlight(_) | Charge::RouteInFlight(..) => continue,
            };
            ledger.note(&self.name, fact, bucket.time());
        }
        if hold.request.is_some() || hold.route.is_some() || hold.people.is_some() {
            hold.partner = Some(self.clone());
        }
        (if passed.is_empty() { Receipt::Paid } else { Receipt::Passed(passed) }, hold)
    }

    /// A place for one more connection, if there is one, or if the maximum is in shadow.
    pub fn connect(self: &Arc<Self>, connections_max: u32, shadow: Shadow) -> Option<Connection> {
        let watched = shadow.contains(Reason::ConnectionsPartner);
        let places = &mut self.lock().connections;
        let side = match places.has_room(connections_max, watched) {
            true => Side::Within,
            false if watched => Side::Beyond,
            false => return None,
        };
        places.take(side);
        Some(Connection { partner: self.clone(), side })
    }

    /// Keys that are remembered: source addresses and people.
    pub fn entries(&self) -> (usize, usize) {
        let used = self.lock();
        (used.sources.len(), used.subjects.len())
    }

    /// What the windows of this partner's own budgets hold: of its subjects, and of people disclosed.
    pub fn budgets_used(&self, window: Window, now: Timestamp) -> (u64, u64) {
        let mut used = self.lock();
        (used.budgets.partner.used(window, now), used.budgets.people.used(window, now))
    }

    pub fn in_flight(&self) -> u32 {
        self.lock().in_flight.taken()
    }

    pub fn connections(&self) -> u32 {
        self.lock().connections.taken()
    }

    pub fn standing(&self, now: Timestamp) -> Standing {
        let frozen = self.frozen.load(Ordering::Acquire) || self.hold(None, None, now).partner == Level::Frozen;
        if frozen { Standing::Frozen } else { Standing::Open }
    }

    /// Where operators have put this partner and an actor of it, who may have been named under the key of the epoch before.
    pub fn hold(&self, actor: Option<Mark>, previous: Option<Mark>, now: Timestamp) -> Footing {
        let held = self.held.load();
        held.as_ref().map_or_else(Footing::default, |held| held.footing(actor, previous, now))
    }

    /// A place to wait for a refusal that is to come as late as an answer; `None`: enough of them wait already.
    pub fn wait(self: &Arc<Self>) -> Option<Waiting> {
        let waiting = Waiting(self.clone());
        (self.waiting.fetch_add(1, Ordering::Relaxed) < WAITING_MAX).then_some(waiting)
    }

    /// Generation of the configuration that took something from this partner last; 0 for none since the start.
    pub fn narrowed(&self) -> u64 {
        self.narrowed.load(Ordering::Acquire)
    }

    pub fn set_narrowed(&self, generation: u64) {
        self.narrowed.store(generation, Ordering::Release);
    }

    /// A handshake of this partner was refused because it is frozen. `None`: enough of them wait already.
    pub fn knock(self: &Arc<Self>, now: Timestamp) -> Option<Knock> {
        let mut used = self.lock();
        let knocks = &mut used.knocks;
        if now.since(knocks.last) > KNOCKS_FORGOTTEN_AFTER {
            knocks.count = 0;
        }
        let delay = KNOCK_DELAY.saturating_mul(1 << knocks.count.min(16)).min(KNOCK_DELAY_MAX);
        knocks.count = knocks.count.saturating_add(1);
        knocks.last = now;
        if knocks.waiting >= KNOCKS_WAITING_MAX {
            return None;
        }
        knocks.waiting += 1;
        Some(Knock { partner: self.clone(), delay })
    }

    /// Remembers that a network let this partner in. Kept on disk once a minute for each network.
    pub fn matched(&self, network: IpNet, seconds: u32, ledger: &mut Ledger) {
        let before = self.lock().matches.insert(network, seconds).unwrap_or_default();
        if before / 60 != seconds / 60 {
            let at = Timestamp::from_unix_seconds(u64::from(seconds));
            ledger.note(&self.name, Fact::Network(network), at);
        }
    }

    /// When a network let this partner in last, in Unix seconds; 0 for never.
    pub fn last_match(&self, network: &IpNet) -> u32 {
        self.lock().matches.get(network).copied().unwrap_or_default()
    }

    /// Whether any network ever did: most lists are asked about at once.
    pub fn ever_matched(&self) -> bool {
        !self.lock().matches.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Nothing panics while it holds the lock, and every write leaves whole values behind.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A head's group has five charges, and so has a person's.
const CHARGES_MAX: usize = 5;

impl Used {
    /// What a charge would leave behind, without leaving it; or why it cannot be taken, and for how long. In-flight charges
    /// have no bucket.
    fn stage<'c>(
        &mut self,
        charge: Charge<'c>,
        watched: bool,
        entries_max: usize,
        now: Timestamp,
        moved: &mut Vec<(Fact<'c>, Stamp)>,
    ) -> Result<FullAt, (Reason, Duration)> {
        let place = |places: &Places, max| match places.has_room(max, watched) {
            true => Ok(FullAt::default()),
            // When a place gets free cannot be known; a second is the least that Retry-After can say.
            false => Err((charge.refusal(), Duration::from_secs(1))),
        };
        let (rate, bucket) = match charge {
            Charge::InFlight(max) => return place(&self.in_flight, max),
            Charge::RouteInFlight(route, max) => {
                let route = self.route(route);
                return place(&self.routes[route].in_flight, max);
            }
            Charge::Budget(scope, person, budget) => {
                let staged = self.budgets.stage(scope, person, budget, entries_max, now, moved);
                return staged.map(|()| FullAt::default());
            }
            Charge::RequestRate(rate) => (rate, Some(&mut self.requests)),
            Charge::RouteRate(route, rate) => {
                let route = self.route(route);
                (rate, Some(&mut self.routes[route].requests))
            }
            Charge::SourceRate(source, rate) => (rate, self.sources.get_mut(&source)),
            Charge::SubjectRate(person, rate) => {
                if let Some(before) = person.previous.and_then(|key| self.subjects.remove(&key)) {
                    // Of the two counts of an overlap the later is the true one. It needs no room: it takes the other's.
                    let bucket = self.subjects.entry(person.key).or_default();
                    *bucket = before.max(*bucket);
                }
                (rate, self.subjects.get_mut(&person.key))
            }
        };
        let bucket = match bucket {
            Some(bucket) => {
                *bucket = at_most_empty(rate, *bucket, now);
                *bucket
            }
            None => self.make_room(charge, entries_max, now)?,
        };
        take(rate, bucket, now).map_err(|retry_after| (charge.refusal(), retry_after))
    }

    /// Leaves behind what was staged; `None` for a charge in shadow that could not be taken. Of a budget, `bucket` becomes
    /// what has to be kept.
    fn commit(&mut self, charge: Charge, bucket: &mut Option<FullAt>, hold: &mut Hold) {
        let side = if bucket.is_some() { Side::Within } else { Side::Beyond };
        match (charge, *bucket) {
            (Charge::Budget(scope, person, _), Some(_)) => {
                *bucket = self.budgets.commit(scope, person).map(|stamp| FullAt::at(stamp.time()));
                if let Scope::People(most) = scope {
                    hold.people = Some((person.key, most));
                }
            }
            (Charge::InFlight(_), _) => {
                self.in_flight.take(side);
                hold.request = Some(side);
            }
            (Charge::RouteInFlight(route, _), _) => {
                let route = self.route(route);
                self.routes[route].in_flight.take(side);
                hold.route = Some((route, side));
            }
            (Charge::RequestRate(_), Some(bucket)) => self.requests = bucket,
            (Charge::RouteRate(route, _), Some(bucket)) => {
                let route = self.route(route);
                self.routes[route].requests = bucket;
            }
            (Charge::SourceRate(source, _), Some(bucket)) => _ = self.sources.insert(source, bucket),
            (Charge::SubjectRate(person, _), Some(bucket)) => _ = self.subjects.insert(person.key, bucket),
            (_, None) => {}
        }
    }

    /// Room for a new key, whose bucket is full. A key that still owes is never forgotten to make room. Addresses and
    /// people have rooms of their own, so that those of a limit in shadow crowd out nothing that is enforced.
    fn make_room(&mut self, charge: Charge, entries_max: usize, now: Timestamp) -> Result<FullAt, (Reason, Duration)> {
        let is_full = |used: &Used| match charge {
            Charge::SubjectRate(..) => used.subjects.len() >= entries_max,
            _ => used.sources.len() >= entries_max,
        };
        if is_full(self) && now.since(self.swept) >= SWEEP_EVERY {
            self.sweep(now);
        }
        if is_full(self) { Err((Reason::LimiterFull, Duration::from_secs(1))) } else { Ok(FullAt::default()) }
    }

    /// Takes over what an earlier run left. The latest counts, in whatever order they come.
    fn recall(&mut self, fact: Fact, at: Timestamp) {
        let bucket = match fact {
            Fact::Requests => &mut self.requests,
            Fact::Route(name) => {
                let route = self.route(name);
                &mut self.routes[route].requests
            }
            Fact::Source(source) => self.sources.entry(source).or_default(),
            Fact::Subject(subject) => self.subjects.entry(subject).or_default(),
            Fact::Seen(whose, subject) => return self.budgets.recall(whose, subject, Stamp::at(at)),
            Fact::Network(network) => {
                let last = self.matches.entry(network).or_default();
                *last = (*last).max(u32::try_from(at.unix_seconds()).unwrap_or_default());
                return;
            }
        };
        *bucket = (*bucket).max(FullAt::at(at));
    }

    /// A copy of all that has to outlive the process. A full bucket is what an unknown one would be.
    fn kept(&self, now: Timestamp) -> Kept {
        let owes = |bucket: &FullAt| !bucket.is_full(now);
        let routes = self.routes.iter().filter(|route| owes(&route.requests));
        let sources = self.sources.iter().filter(|(_, bucket)| owes(bucket));
        let subjects = self.subjects.iter().filter(|(_, bucket)| owes(bucket));
        Kept {
            requests: Some(self.requests).filter(owes),
            routes: routes.map(|route| (route.name.clone(), route.requests)).collect(),
            sources: sources.map(|(source, bucket)| (*source, *bucket)).collect(),
            subjects: subjects.map(|(subject, bucket)| (*subject, *bucket)).collect(),
            matches: self.matches.iter().map(|(network, seconds)| (*network, *seconds)).collect(),
            budgets: self.budgets.kept(),
        }
    }

    fn sweep(&mut self, now: Timestamp) {
        forget_full(&mut self.sources, now);
        forget_full(&mut self.subjects, now);
        self.budgets.sweep(now);
        self.swept = now;
    }

    /// Index of a route by its name; names come from the configuration, so there are few.
    fn route(&mut self, name: &str) -> usize {
        let known = self.routes.iter().position(|route| *route.name == *name);
        known.unwrap_or_else(|| {
            self.routes.push(RouteUsed {
                name: name.into(),
                requests: FullAt::default(),
                in_flight: Places::default(),
            });
            self.routes.len() - 1
        })
    }
}

impl Places {
    fn taken(&self) -> u32 {
        self.within + self.beyond
    }

    /// A maximum that is enforced counts those, too, that were let in while it was not.
    fn has_room(&self, max: u32, watched: bool) -> bool {
        if watched { self.within < max } else { self.taken() < max }
    }

    fn take(&mut self, side: Side) {
        *self.count(side) += 1;
    }

    fn give_back(&mut self, side: Side) {
        let count = self.count(side);
        *count = count.saturating_sub(1);
    }

    fn count(&mut self, side: Side) -> &mut u32 {
        match side {
            Side::Within => &mut self.within,
            Side::Beyond => &mut self.beyond,
        }
    }
}

impl Connection {
    /// What would have been refused, were the maximum not in shadow.
    pub fn shadow(&self) -> Shadow {
        match self.side {
            Side::Within => Shadow::default(),
            Side::Beyond => Shadow::from_iter([Reason::ConnectionsPartner]),
        }
    }
}

fn forget_full<K: Eq + Hash>(buckets: &mut HashMap<K, FullAt>, now: Timestamp) {
    buckets.retain(|_, bucket| !bucket.is_full(now));
    if buckets.capacity() > 4 * buckets.len().max(1_024) {
        buckets.shrink_to(2 * buckets.len());
    }
}

impl Hold {
    /// The most people that may be disclosed on it; `None`: no budget counts them.
    pub fn people_max(&self) -> Option<u32> {
        self.people.map(|(_, most)| u32::from(most))
    }

    /// So many people were disclosed, or none; what was reserved beyond that is given back. Without this, all counts as
    /// disclosed: who goes away before the outcome is in may have got it.
    pub fn disclosed(&mut self, people: u32, ledger: &mut Ledger) {
        let (Some(partner), Some((key, most))) = (&self.partner, self.people.take()) else { return };
        let used = u16::try_from(people).unwrap_or(u16::MAX).min(most);
        let stamp = partner.lock().budgets.people.settle(key, used);
        if let Some(stamp) = stamp {
            ledger.note(&partner.name, Fact::Seen(Whose::People, key), stamp.time());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(partner) = &self.partner else { return };
        let mut used = partner.lock();
        if let Some((key, _)) = self.people {
            used.budgets.people.abandon(key);
        }
        if let Some(side) = self.request {
            used.in_flight.give_back(side);
        }
        if let Some((route, side)) = self.route {
            used.routes[route].in_flight.give_back(side);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.partner.lock().connections.give_back(self.side);
    }
}

impl Drop for Knock {
    fn drop(&mut self) {
        let mut used = self.partner.lock();
        used.knocks.waiting = used.knocks.waiting.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::charge::Rate;

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_780_000_000);

    fn partner() -> Arc<PartnerState> {
        State::default().partner(&"icmr".into())
    }

    fn rate(count: u32, burst: u32) -> Rate {
        Rate { count, period: Duration::from_secs(1), burst }
    }

    fn pay(partner: &Arc<PartnerState>, charges: &[Charge], now: Timestamp) -> (Receipt, Hold) {
        pay_beside(partner, charges, Shadow::default(), now)
    }

    fn pay_beside(partner: &Arc<PartnerState>, charges: &[Charge], shadow: Shadow, now: Timestamp) -> (Receipt, Hold) {
        partner.charge(charges.iter().copied(), shadow, 4, now, &mut Ledger::default())
    }

    fn refused(receipt: Receipt) -> Option<Reason> {
        match receipt {
            Receipt::Paid | Receipt::Passed(_) => None,
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
        let person = |id: u8| {
            Charge::SubjectRate([id; 16].into(), Rate { count: 1, period: Duration::from_secs(100), burst: 1 })
        };
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
    fn what_is_in_shadow_passes_is_named_and_takes_nothing_from_the_rest() {
        use Reason::*;
        let source: IpAddr = "10.20.0.5".parse().expect("address");
        let group = [
            Charge::SourceRate(source, rate(1, 1)),
            Charge::InFlight(2),
            Charge::RequestRate(rate(1, 3)),
            Charge::RouteRate("lookup", rate(1, 5)),
            Charge::RouteInFlight("lookup", 4),
        ];
        let shadow = Shadow::from_iter([RateSource, InFlightPartner, InFlightRoute]);
        let partner = partner();
        // The partner's own rate is enforced: it is taken from three times, whatever the others would have said.
        let mut holds = Vec::new();
        for expected in [&[][..], &[RateSource], &[RateSource, InFlightPartner]] {
            let (receipt, hold) = pay_beside(&partner, &group, shadow, NOW);
            let passed = Shadow::from_iter(expected.iter().copied());
            assert_eq!(receipt, if passed.is_empty() { Receipt::Paid } else { Receipt::Passed(passed) });
            holds.push(hold);
        }
        // Refused, nothing is taken from either kind.
        let (receipt, _hold) = pay_beside(&partner, &group, shadow, NOW);
        assert_eq!((refused(receipt), partner.in_flight()), (Some(RatePartner), 3));
        let route = [Charge::RouteRate("lookup", rate(1, 5))];
        for expected in [None, None, Some(RateRoute)] {
            assert_eq!(refused(pay(&partner, &route, NOW).0), expected);
        }
        // What was beyond a maximum in shadow gives no place back to those within it.
        drop(holds.pop());
        let in_flight = [Charge::InFlight(2)];
        let again = || pay_beside(&partner, &in_flight, shadow, NOW);
        assert_eq!(again().0, Receipt::Passed(Shadow::from_iter([InFlightPartner])));
        drop(holds.pop());
        let (receipt, hold) = again();
        assert_eq!((receipt, partner.in_flight()), (Receipt::Paid, 2));
        drop((hold, holds));
        assert_eq!(partner.in_flight(), 0);
    }

    #[test]
    fn a_maximum_that_leaves_its_shadow_counts_those_beyond_it() {
        let partner = partner();
        let shadow = Shadow::from_iter([Reason::InFlightPartner, Reason::ConnectionsPartner]);
        let charge = [Charge::InFlight(1)];
        let (first, second) =
            (pay_beside(&partner, &charge, shadow, NOW).1, pay_beside(&partner, &charge, shadow, NOW).1);
        drop(first);
        assert_eq!(refused(pay(&partner, &charge, NOW).0), Some(Reason::InFlightPartner));
        drop(second);
        assert_eq!(refused(pay(&partner, &charge, NOW).0), None);

        let connect = |shadow| partner.connect(1, shadow);
        let (first, second) = (connect(shadow).expect("within"), connect(shadow).expect("beyond"));
        assert_eq!(
            (first.shadow(), second.shadow().to_string()),
            (Shadow::default(), "connections-partner".to_owned())
        );
        assert_eq!(partner.connections(), 2);
        drop(first);
        assert!(connect(Shadow::default()).is_none());
        assert_eq!(connect(shadow).expect("within again").shadow(), Shadow::default());
        drop(second);
        assert!(connect(Shadow::default()).is_some());
    }

    #[test]
    fn people_in_shadow_crowd_out_no_address() {
        let partner = partner();
        let slow = Rate { count: 1, period: Duration::from_secs(100), burst: 1 };
        let shadow = Shadow::from_iter([Reason::RateSubject]);
        let person = |id: u8| pay_beside(&partner, &[Charge::SubjectRate([id; 16].into(), slow)], shadow, NOW).0;
        for id in 0..4 {
            assert_eq!(person(id), Receipt::Paid);
        }
        assert_eq!(person(0), Receipt::Passed(shadow));
        assert_eq!(person(4), Receipt::Passed(Shadow::from_iter([Reason::LimiterFull])));
        for last in 0..4 {
            assert_eq!(pay(&partner, &[Charge::SourceRate([10, 0, 0, last].into(), slow)], NOW).0, Receipt::Paid);
        }
        assert_eq!(partner.entries(), (4, 4));
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
        let connect = || partner.connect(1, Shadow::default());
        let first = connect();
        assert!(first.is_some());
        assert!(connect().is_none());
        drop(first);
        assert!(connect().is_some());
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

    #[test]
    fn what_was_paid_outlives_the_process_and_nothing_else_does() {
        let home = tempfile::TempDir::new().expect("directory");
        let source: IpAddr = "10.20.0.5".parse().expect("address");
        let network: IpNet = "10.20.0.0/24".parse().expect("network");
        let slow = Rate { count: 1, period: Duration::from_secs(3_600), burst: 1 };
        let group = [
            Charge::InFlight(9),
            Charge::RequestRate(slow),
            Charge::RouteRate("lookup", slow),
            Charge::SourceRate(source, slow),
        ];
        let person = [Charge::SubjectRate([7; 16].into(), slow)];
        let name: Arc<str> = "icmr".into();
        let charge = |state: &State, charges: &[Charge], now| {
            let mut ledger = Ledger::default();
            let charges = charges.iter().copied();
            let (receipt, hold) = state.partner(&name).charge(charges, Shadow::default(), 4, now, &mut ledger);
            state.keep(&mut ledger).expect("kept");
            (refused(receipt), hold)
        };
        let check = |state: &State| {
            for alone in &group[1..] {
                assert_eq!(charge(state, &[*alone], NOW).0, Some(alone.refusal()));
            }
            assert_eq!(charge(state, &person, NOW).0, Some(Reason::RateSubject));
            let partner = state.partner(&name);
            assert_eq!((partner.in_flight(), partner.last_match(&network)), (0, NOW.unix_seconds() as u32));
            assert_eq!(partner.standing(NOW), Standing::Frozen);
            assert_eq!(state.freeze_of("icmr").expect("frozen").reason, "it asks too much");
        };
        {
            let (state, _) = State::open(home.path()).expect("fresh");
            assert_eq!(charge(&state, &group, NOW).0, None);
            assert_eq!(charge(&state, &person, NOW).0, None);
            let mut ledger = Ledger::default();
            state.partner(&name).matched(network, NOW.unix_seconds() as u32, &mut ledger);
            state.keep(&mut ledger).expect("kept");
            let freeze = Freeze { since: NOW, by: "uid 0".to_owned(), reason: "it asks too much".to_owned() };
            state.set_freeze(&name, Some(freeze));
            state.keep_orders().expect("kept");
            // Dropped without a farewell.
        }
        let (state, recovered) = State::open(home.path()).expect("again");
        assert_eq!(recovered.facts, 5);
        check(&state);
        state.rewrite(NOW).expect("rewritten");
        drop(state);
        let (state, _) = State::open(home.path()).expect("once more");
        check(&state);
        state.set_freeze(&name, None);
        state.keep_orders().expect("kept");
        assert_eq!(charge(&state, &group, NOW.plus(slow.period)).0, None);
        drop(state);
        assert_eq!(State::open(home.path()).expect("thawed").0.partner(&name).standing(NOW), Standing::Open);
    }

    #[test]
    fn each_knock_of_a_frozen_partner_waits_longer() {
        let partner = partner();
        let delays: Vec<_> = (0..9).filter_map(|_| partner.knock(NOW)).map(|knock| knock.delay.as_millis()).collect();
        assert_eq!(delays, [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        let waiting: Vec<_> = (0..20).filter_map(|_| partner.knock(NOW)).collect();
        assert_eq!(waiting.len(), 16);
        drop(waiting);
        let later = NOW.plus(Duration::from_secs(601));
        assert_eq!(partner.knock(later).expect("a place").delay, KNOCK_DELAY);
    }
}
