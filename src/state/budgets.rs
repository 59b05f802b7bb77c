//! Whom has a partner asked for, and how many people did it get? Exact counts over rolling windows.
//!
//! For each person there is one [`Stamp`]: when it was asked for last and what it counts for. A person is in a window as long
//! as its stamp is, so a repeat costs nothing and one stamp serves every window. Beside them stand the sums of each step of
//! each window: a charge looks at sums and moves one stamp.
//!
//! Stamps only go up, whoever makes them and in whatever order they are read: that is what the journal asks of them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::store::{Fact, Whose};
use crate::clock::Timestamp;
use crate::policy::charge::{Person, Scope, SubjectKey};
use crate::policy::contract::{Budget, Window};
use crate::policy::reason::Reason;

/// Minute of the last lookup (32 bits), number of the change within that minute (16), and what it counts for (16). Later is
/// greater; of two that are as late, the one that counts for more. One that counts for nothing says that it is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    fn new(minute: u32, change: u16, weight: u16) -> Stamp {
        Stamp(u64::from(minute) << 32 | u64::from(change) << 16 | u64::from(weight))
    }

    fn minute(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn weight(self) -> u16 {
        self.0 as u16
    }

    /// The stamp after this one.
    fn then(self, minute: u32, weight: u16) -> Stamp {
        let (last, change) = (self.minute(), (self.0 >> 16) as u16);
        if minute > last { Stamp::new(minute, 0, weight) } else { Stamp::new(last, change.saturating_add(1), weight) }
    }

    /// As it is kept on disk, where everything is a number that goes up.
    pub fn time(self) -> Timestamp {
        Timestamp::from_nanos(self.0)
    }

    pub fn at(time: Timestamp) -> Stamp {
        Stamp(time.as_nanos())
    }
}

/// The people of one budget.
#[derive(Debug, Default)]
pub struct Seen {
    stamps: HashMap<SubjectKey, Stamp>,
    spent: [Spent; 3],
    /// The latest minute that anything happened in. Time is read before the lock is taken, so it comes a little out of order.
    clock: u32,
    /// The longest window that is asked about; `None`: nobody asked yet, and all is kept.
    horizon: Option<Window>,
    /// Reservations under way. Few: each has a request in flight.
    reserved: HashMap<SubjectKey, Reserved>,
}

/// What one window holds: the weight of each step, oldest first, and the sum.
#[derive(Debug, Default)]
struct Spent {
    steps: VecDeque<(u32, u64)>,
    sum: u64,
}

/// Reservations for one person.
#[derive(Clone, Copy, Debug, Default)]
struct Reserved {
    count: u32,
    /// What it counts for when all of them are settled.
    floor: u16,
}

/// All budgets of one partner.
#[derive(Debug, Default)]
pub struct Budgets {
    pub partner: Seen,
    pub people: Seen,
    /// One entry for each route that a grant has a budget for.
    grants: Vec<(Box<str>, Seen)>,
    actors: HashMap<SubjectKey, Seen>,
    /// People of all actors together: whoever invents actors must not fill the memory.
    actors_people: usize,
    swept: Timestamp,
}

/// What is kept of one budget.
pub struct KeptSeen {
    whose: KeptWhose,
    stamps: Vec<(SubjectKey, Stamp)>,
}

enum KeptWhose {
    Partner,
    People,
    Grant(Box<str>),
    Actor(SubjectKey),
}

/// A full map is swept at most this often.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How far time may run back: a request takes so long at the most. Beyond that, the clock of an earlier run was wrong.
const BACK_MAX: u32 = 60;

pub fn minute(now: Timestamp) -> u32 {
    u32::try_from(now.unix_seconds() / 60).unwrap_or(u32::MAX)
}

fn is_within(window: Window, minute: u32, now: u32) -> bool {
    (now / window.step()).saturating_sub(minute / window.step()) <= window.steps()
}

impl Seen {
    /// Goes to this time: what is over leaves its window.
    pub fn advance(&mut self, now: Timestamp, horizon: Option<Window>) {
        self.horizon = horizon;
        let now = minute(now);
        if self.clock > now.saturating_add(BACK_MAX) {
            self.set_back(now);
        }
        if now > self.clock {
            self.clock = now;
            for (window, spent) in Window::ALL.into_iter().zip(&mut self.spent) {
                spent.leave(window, now);
            }
        }
    }

    /// A clock that was ahead must not count anybody for longer than a window.
    fn set_back(&mut self, now: u32) {
        self.clock = now;
        self.spent = Default::default();
        for stamp in self.stamps.values_mut() {
            *stamp = Stamp::new(stamp.minute().min(now), (stamp.0 >> 16) as u16, stamp.weight());
        }
        let Seen { stamps, spent, .. } = self;
        for stamp in stamps.values() {
            for (window, spent) in Window::ALL.into_iter().zip(&mut *spent) {
                spent.add(window, *stamp, now);
            }
        }
    }

    /// What is charged for this person if it reserves so much: never less than it counts for already.
    fn wanted(&self, key: &SubjectKey, weight: u16) -> u16 {
        weight.max(self.stamp(key).weight())
    }

    fn stamp(&self, key: &SubjectKey) -> Stamp {
        self.stamps.get(key).copied().unwrap_or_default()
    }

    /// Whether there is room for this person in every window; else how long until there is. Call [`Seen::advance`] first.
    pub fn fits(&self, key: &SubjectKey, weight: u16, budget: Budget) -> Result<(), Duration> {
        let (stamp, wanted) = (self.stamp(key), u64::from(self.wanted(key, weight)));
        let mut wait = Duration::ZERO;
        for (window, most) in budget.windows() {
            let spent = &self.spent[window as usize];
            let already = if is_within(window, stamp.minute(), self.clock) { u64::from(stamp.weight()) } else { 0 };
            let after = spent.sum - already.min(spent.sum) + wanted;
            if wanted > already && after > u64::from(most) {
                wait = wait.max(spent.wait(window, after - u64::from(most), self.clock));
            }
        }
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    /// Whether this person is new here.
    pub fn is_new(&self, key: &SubjectKey) -> bool {
        !self.stamps.contains_key(key)
    }

    /// Counts this person now. `None`: that changes nothing.
    pub fn touch(&mut self, key: SubjectKey, weight: u16) -> Option<Stamp> {
        let (before, wanted) = (self.stamp(&key), self.wanted(&key, weight));
        if before.weight() == wanted && before.minute() >= self.clock {
            return None;
        }
        let after = before.then(self.clock, wanted);
        self.set(key, after);
        Some(after)
    }

    /// Counts this person now, until [`Seen::settle`] says what came of it.
    pub fn reserve(&mut self, key: SubjectKey, weight: u16) -> Option<Stamp> {
        let floor = self.stamp(&key).weight();
        self.reserved.entry(key).or_insert(Reserved { count: 0, floor }).count += 1;
        self.touch(key, weight)
    }

    /// One reservation for this person is over: so much of it was used. With the last one, what nobody used is given back.
    pub fn settle(&mut self, key: SubjectKey, used: u16) -> Option<Stamp> {
        let reserved = self.reserved.get_mut(&key)?;
        reserved.floor = reserved.floor.max(used);
        reserved.count -= 1;
        if reserved.count > 0 {
            return None;
        }
        let floor = self.reserved.remove(&key)?.floor;
        // An epoch that began meanwhile took it away: it is counted as reserved, under the other key.
        let before = *self.stamps.get(&key).filter(|stamp| stamp.weight() > floor)?;
        let after = before.then(before.minute(), floor);
        self.set(key, after);
        Some(after)
    }

    /// Nobody will say what came of one reservation: all that is reserved for this person counts, as it does on the disk.
    pub fn abandon(&mut self, key: SubjectKey) {
        let _ = self.settle(key, self.stamp(&key).weight());
    }

    /// A person that was counted under the key of the epoch before goes on under this one. What has to be kept of that: the
    /// old key's stamp says that it is gone.
    pub fn rename(&mut self, person: Person) -> Option<[(SubjectKey, Stamp); 2]> {
        let previous = person.previous?;
        let before = *self.stamps.get(&previous).filter(|stamp| stamp.weight() > 0)?;
        let gone = before.then(before.minute(), 0);
        self.set(previous, gone);
        let after = before.max(self.stamp(&person.key));
        self.set(person.key, after);
        Some([(previous, gone), (person.key, after)])
    }

    /// Takes over what an earlier run left, or another key of the same budget; the latest counts.
    pub fn recall(&mut self, key: SubjectKey, stamp: Stamp) {
        if stamp.minute() > self.clock {
            self.clock = stamp.minute();
            for (window, spent) in Window::ALL.into_iter().zip(&mut self.spent) {
                spent.leave(window, stamp.minute());
            }
        }
        if stamp > self.stamp(&key) {
            self.set(key, stamp);
        }
    }

    fn set(&mut self, key: SubjectKey, after: Stamp) {
        let before = self.stamps.insert(key, after).unwrap_or_default();
        for (window, spent) in Window::ALL.into_iter().zip(&mut self.spent) {
            spent.remove(window, before);
            spent.add(window, after, self.clock);
        }
    }

    /// Forgets who is in no window any more.
    pub fn sweep(&mut self, now: Timestamp) {
        self.advance(now, self.horizon);
        let (clock, window) = (self.clock, self.horizon.unwrap_or(Window::Month));
        // A stamp that is gone was perhaps not read yet by who has an older time.
        let Seen { stamps, spent, .. } = self;
        stamps.retain(|_, stamp| {
            let stays = match stamp.weight() {
                0 => clock.saturating_sub(stamp.minute()) <= BACK_MAX,
                _ => is_within(window, stamp.minute(), clock),
            };
            if !stays {
                // Nobody asks about longer windows now; were they asked about later, they would count whom they do not know.
                Window::ALL.into_iter().zip(&mut *spent).for_each(|(window, spent)| spent.remove(window, *stamp));
            }
            stays
        });
        if self.stamps.capacity() > 4 * self.stamps.len().max(16) {
            self.stamps.shrink_to(2 * self.stamps.len());
        }
    }

    pub fn len(&self) -> usize {
        self.stamps.len()
    }

    pub fn is_empty(&self) -> bool {
        self.stamps.is_empty()
    }

    /// What a window holds at this time.
    pub fn used(&mut self, window: Window, now: Timestamp) -> u64 {
        self.advance(now, self.horizon);
        self.spent[window as usize].sum
    }

    pub fn stamps(&self) -> impl Iterator<Item = (SubjectKey, Stamp)> {
        self.stamps.iter().map(|(key, stamp)| (*key, *stamp))
    }
}

impl Budgets {
    /// Whether a person can be counted; else why not, and for how long. What changes of keys left behind has to be kept
    /// whatever the verdict is, and is put into `moved`.
    ///
    /// No more is remembered than the budget allows, or `entries_max` where that is more (people who were not found count for
    /// nothing, but are remembered for an hour). Where there is no room, nobody new gets in.
    pub fn stage<'p>(
        &mut self,
        scope: Scope<'p>,
        person: Person,
        budget: Budget,
        entries_max: usize,
        now: Timestamp,
        moved: &mut Vec<(Fact<'p>, Stamp)>,
    ) -> Result<(), (Reason, Duration)> {
        if let Scope::Actor(actor) = scope {
            self.rename_actor(actor);
        }
        if !self.has_room(scope, person, budget, entries_max) && now.since(self.swept) >= SWEEP_EVERY {
            self.sweep(now);
        }
        let has_room = self.has_room(scope, person, budget, entries_max);
        let (seen, weight, whose) = self.seen(scope);
        seen.advance(now, budget.horizon());
        let count = seen.len();
        // Whoever is moved was counted already.
        let renamed = seen.rename(person);
        let has_room = has_room || renamed.is_some();
        if let Some(both) = renamed {
            moved.extend(both.map(|(key, stamp)| (Fact::Seen(whose, key), stamp)));
        }
        let fits = seen.fits(&person.key, weight, budget);
        let more = seen.len() - count;
        if matches!(scope, Scope::Actor(_)) {
            self.actors_people += more;
        }
        match fits {
            Err(wait) => Err((scope.refusal(), wait)),
            Ok(()) if !has_room => Err((Reason::LimiterFull, Duration::from_secs(1))),
            Ok(()) => Ok(()),
        }
    }

    /// Counts a person for whom [`Budgets::stage`] found room. What has to be kept of it, if anything changed.
    pub fn commit(&mut self, scope: Scope, person: Person) -> Option<Stamp> {
        let (seen, weight, _) = self.seen(scope);
        let count = seen.len();
        let stamp = match scope {
            Scope::People(_) => seen.reserve(person.key, weight),
            _ => seen.touch(person.key, weight),
        };
        let more = seen.len() - count;
        if matches!(scope, Scope::Actor(_)) {
            self.actors_people += more;
        }
        stamp
    }

    pub fn recall(&mut self, whose: Whose, key: SubjectKey, stamp: Stamp) {
        match whose {
            Whose::Partner => self.partner.recall(key, stamp),
            Whose::People => self.people.recall(key, stamp),
            Whose::Grant(route) => self.grant(route).recall(key, stamp),
            Whose::Actor(actor) => {
                let seen = self.actors.entry(actor).or_default();
                self.actors_people += usize::from(seen.is_new(&key));
                seen.recall(key, stamp);
            }
        }
    }

    fn seen<'p>(&mut self, scope: Scope<'p>) -> (&mut Seen, u16, Whose<'p>) {
        match scope {
            Scope::Partner => (&mut self.partner, 1, Whose::Partner),
            Scope::People(most) => (&mut self.people, most, Whose::People),
            Scope::Grant(route) => (self.grant(route), 1, Whose::Grant(route)),
            Scope::Actor(actor) => (self.actors.entry(actor.key).or_default(), 1, Whose::Actor(actor.key)),
        }
    }

    fn grant(&mut self, route: &str) -> &mut Seen {
        let known = self.grants.iter().position(|(name, _)| **name == *route);
        let at = known.unwrap_or_else(|| {
            self.grants.push((route.into(), Seen::default()));
            self.grants.len() - 1
        });
        &mut self.grants[at].1
    }

    fn has_room(&mut self, scope: Scope, person: Person, budget: Budget, entries_max: usize) -> bool {
        let known = |seen: &Seen| !seen.is_new(&person.key);
        if let Scope::Actor(actor) = scope {
            let taken = self.actors_people.max(self.actors.len());
            return taken < entries_max || self.actors.get(&actor.key).is_some_and(known);
        }
        let (seen, ..) = self.seen(scope);
        known(seen) || seen.len() < entries_max.max(budget.largest() as usize)
    }

    /// An actor that was known under the key of the epoch before goes on under this one. Nothing has to be kept of that: what
    /// comes back after a kill is moved again.
    fn rename_actor(&mut self, actor: Person) {
        let Some(before) = actor.previous.and_then(|previous| self.actors.remove(&previous)) else { return };
        let seen = self.actors.entry(actor.key).or_default();
        self.actors_people -= before.len() + seen.len();
        before.stamps().for_each(|(key, stamp)| seen.recall(key, stamp));
        self.actors_people += seen.len();
    }

    pub fn sweep(&mut self, now: Timestamp) {
        self.partner.sweep(now);
        self.people.sweep(now);
        self.grants.iter_mut().for_each(|(_, seen)| seen.sweep(now));
        self.actors.values_mut().for_each(|seen| seen.sweep(now));
        self.actors.retain(|_, seen| !seen.is_empty());
        self.actors.shrink_to(2 * self.actors.len());
        self.actors_people = self.actors.values().map(Seen::len).sum();
        self.swept = now;
    }

    /// A copy of all that has to outlive the process.
    pub fn kept(&self) -> Vec<KeptSeen> {
        let kept = |whose, seen: &Seen| KeptSeen { whose, stamps: seen.stamps().collect() };
        let mut all = vec![kept(KeptWhose::Partner, &self.partner), kept(KeptWhose::People, &self.people)];
        all.extend(self.grants.iter().map(|(route, seen)| kept(KeptWhose::Grant(route.clone()), seen)));
        all.extend(self.actors.iter().map(|(actor, seen)| kept(KeptWhose::Actor(*actor), seen)));
        all
    }
}

impl KeptSeen {
    pub fn facts(&self) -> impl Iterator<Item = (Fact<'_>, Stamp)> {
        let whose = match &self.whose {
            KeptWhose::Partner => Whose::Partner,
            KeptWhose::People => Whose::People,
            KeptWhose::Grant(route) => Whose::Grant(route),
            KeptWhose::Actor(actor) => Whose::Actor(*actor),
        };
        self.stamps.iter().map(move |(key, stamp)| (Fact::Seen(whose, *key), *stamp))
    }
}

impl Spent {
    fn leave(&mut self, window: Window, now: u32) {
        while let Some((step, weight)) = self.steps.front().copied()
            && !is_within(window, step * window.step(), now)
        {
            self.steps.pop_front();
            self.sum -= weight;
        }
    }

    fn add(&mut self, window: Window, stamp: Stamp, now: u32) {
        let (step, weight) = (stamp.minute() / window.step(), u64::from(stamp.weight()));
        if weight == 0 || !is_within(window, stamp.minute(), now) {
            return;
        }
        // Nearly always the last one, or a new one at the end.
        match self.steps.binary_search_by_key(&step, |(step, _)| *step) {
            Ok(at) => self.steps[at].1 += weight,
            Err(at) => self.steps.insert(at, (step, weight)),
        }
        self.sum += weight;
    }

    fn remove(&mut self, window: Window, stamp: Stamp) {
        let step = stamp.minute() / window.step();
        // A step that is out took its people with it.
        let Ok(at) = self.steps.binary_search_by_key(&step, |(step, _)| *step) else { return };
        let weight = u64::from(stamp.weight()).min(self.steps[at].1);
        self.steps[at].1 -= weight;
        self.sum -= weight;
        if self.steps[at].1 == 0 {
            self.steps.remove(at);
        }
    }

    /// How long until so much has left by itself, if nobody comes back; the whole window where it never will be enough.
    fn wait(&self, window: Window, much: u64, now: u32) -> Duration {
        let mut gone = 0;
        for (step, weight) in &self.steps {
            gone += weight;
            if gone >= much {
                let out = (u64::from(*step) + u64::from(window.steps()) + 1) * u64::from(window.step());
                return Duration::from_secs(60 * out.saturating_sub(u64::from(now)).max(1));
            }
        }
        window.longest()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::policy::charge::{Charge, Receipt};
    use crate::policy::shadow::Shadow;
    use crate::state::store::Ledger;
    use crate::state::{Hold, State};

    const START: u64 = 1_780_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix_seconds(START + seconds)
    }

    fn key(person: u8) -> SubjectKey {
        [person; 16]
    }

    fn open(directory: &Path) -> State {
        State::open(directory).expect("state").0
    }

    fn pay(state: &State, charges: &[Charge], shadow: Shadow, now: Timestamp) -> (Receipt, Hold) {
        let mut ledger = Ledger::default();
        let partner = state.partner(&"icmr".into());
        let paid = partner.charge(charges.iter().copied(), shadow, 1_000, now, &mut ledger);
        state.keep(&mut ledger).expect("kept");
        paid
    }

    fn ask(
        state: &State,
        scope: Scope,
        person: impl Into<Person>,
        budget: Budget,
        now: Timestamp,
    ) -> (Option<Reason>, Hold) {
        let (receipt, hold) = pay(state, &[Charge::Budget(scope, person.into(), budget)], Shadow::default(), now);
        (if let Receipt::Refused { reason, .. } = receipt { Some(reason) } else { None }, hold)
    }

    fn disclosed(state: &State, hold: &mut Hold, people: u32) {
        let mut ledger = Ledger::default();
        hold.disclosed(people, &mut ledger);
        state.keep(&mut ledger).expect("kept");
    }

    /// The naive one: when everybody was asked for last, and nothing else.
    #[derive(Default)]
    struct Log(BTreeMap<u8, u64>);

    impl Log {
        fn is_in(window: Window, then: u64, now: u64) -> bool {
            let step = 60 * u64::from(window.step());
            (now / step).saturating_sub(then / step) <= u64::from(window.steps())
        }

        fn ask(&mut self, person: u8, budget: Budget, now: u64) -> bool {
            let fits = budget.windows().all(|(window, most)| {
                let mut inside: Vec<u8> = self
                    .0
                    .iter()
                    .filter(|(_, then)| Log::is_in(window, **then, now))
                    .map(|(person, _)| *person)
                    .collect();
                let known = inside.contains(&person);
                inside.retain(|other| *other != person);
                known || inside.len() < most as usize
            });
            if fits {
                self.0.insert(person, now);
            }
            fits
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Ask {
            person: u8,
            after: u64,
        },
        Restart {
            in_order: bool,
        },
        /// Everybody has another key from now on.
        Rotate,
        Sweep,
    }

    fn event() -> impl Strategy<Value = Event> {
        let after = prop_oneof![0u64..100, 0u64..4_000, 0u64..90_000, 0u64..2_700_000];
        prop_oneof![
            20 => (0u8..8, after).prop_map(|(person, after)| Event::Ask { person, after }),
            2 => any::<bool>().prop_map(|in_order| Event::Restart { in_order }),
            1 => Just(Event::Rotate),
            1 => Just(Event::Sweep),
        ]
    }

    /// What a kill leaves, with its lines put into another order: they are read late, twice and mixed up.
    fn shuffle(directory: &Path) {
        for entry in std::fs::read_dir(directory).expect("listed") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|end| end == "journal") {
                let text = std::fs::read_to_string(&path).expect("read");
                let lines: Vec<_> = text.lines().rev().chain(text.lines().take(3)).collect();
                std::fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
                    .expect("written");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.min(300), ..ProptestConfig::default() })]
        #[test]
        fn windows_are_those_of_a_naive_log(events in proptest::collection::vec(event(), 1..80), most in proptest::array::uniform3(proptest::option::of(1u32..6))) {
            let budget = Budget { most };
            let home = TempDir::new().expect("directory");
            let (mut state, mut log, mut now, mut epoch) = (Some(open(home.path())), Log::default(), START, 0u8);
            for event in events {
                match event {
                    Event::Ask { person, after } => {
                        now += after;
                        let under = |epoch: u8| key(16 * epoch + person);
                        let asked = Person { key: under(epoch), previous: epoch.checked_sub(1).map(under) };
                        let expected = log.ask(person, budget, now);
                        let state = state.as_ref().expect("open");
                        for (scope, refusal) in [(Scope::Partner, Reason::BudgetPartner), (Scope::Grant("mobile"), Reason::BudgetGrant), (Scope::Actor(key(200).into()), Reason::BudgetActor)] {
                            let (refused, _) = ask(state, scope, asked, budget, Timestamp::from_unix_seconds(now));
                            prop_assert_eq!(refused, (!expected).then_some(refusal), "{} at {}", person, now);
                        }
                    }
                    Event::Restart { in_order } => {
                        let before = state.take().expect("open");
                        if in_order {
                            before.rewrite(Timestamp::from_unix_seconds(now)).expect("kept");
                        }
                        drop(before);
                        shuffle(home.path());
                        state = Some(open(home.path()));
                    }
                    // Everybody has to be asked for within the overlap, or is out of every window: once is enough here.
                    Event::Rotate => epoch = 1,
                    Event::Sweep => state.as_ref().expect("open").sweep(Timestamp::from_unix_seconds(now)),
                }
            }
        }

        #[test]
        fn people_are_never_more_than_the_budget_and_less_by_what_came_to_nothing(
            asks in proptest::collection::vec((0u8..6, 1u16..7, 0u32..7, 0u8..4), 1..60), most in 6u32..20,
        ) {
            let home = TempDir::new().expect("directory");
            let mut state = open(home.path());
            let budget = Budget { most: [None, Some(most), None] };
            // The most that anybody can have got: what was settled, and whole reservations that were not.
            let mut got = BTreeMap::<u8, u32>::new();
            let mut pending: Vec<(u8, u32, u32, Hold)> = Vec::new();
            let (mut exact, mut alone) = (true, true);
            for (at_second, (person, reserve, people, then)) in asks.into_iter().enumerate() {
                let now = at(at_second as u64);
                alone &= !pending.iter().any(|(other, ..)| *other == person);
                let (refused, hold) = ask(&state, Scope::People(reserve), key(person), budget, now);
                if refused.is_none() {
                    pending.push((person, people.min(u32::from(reserve)), u32::from(reserve), hold));
                }
                match then {
                    // The first outcome is in, or its partner went away.
                    0 | 1 if !pending.is_empty() => {
                        let (person, people, reserve, mut hold) = pending.remove(0);
                        let known = got.entry(person).or_default();
                        if then == 0 {
                            disclosed(&state, &mut hold, people);
                            *known = (*known).max(people);
                        } else {
                            // With others under way it counts as the most of them.
                            exact &= !pending.iter().any(|(other, ..)| *other == person) && alone;
                            *known = (*known).max(reserve);
                        }
                    }
                    // Killed: what was under way counts as reserved, a person with the most of its reservations.
                    2 => {
                        exact &= pending.is_empty();
                        for (person, _, reserve, hold) in pending.drain(..) {
                            let known = got.entry(person).or_default();
                            *known = (*known).max(reserve);
                            std::mem::forget(hold);
                        }
                        drop(state);
                        shuffle(home.path());
                        state = open(home.path());
                    }
                    _ => {}
                }
                let (_, used) = state.partner(&"icmr".into()).budgets_used(Window::Day, now);
                let sure: u32 = got.values().sum();
                prop_assert!(used <= u64::from(most) && used >= u64::from(sure), "{} of {}, of which {}", used, most, sure);
                if exact && pending.is_empty() {
                    prop_assert_eq!(used, u64::from(sure));
                }
            }
        }
    }

    #[test]
    fn so_many_threads_get_exactly_what_is_left() {
        let state = State::default();
        let budget = Budget::new(100, 200, 300);
        let partner = state.partner(&"icmr".into());
        let (allowed, holds): (Vec<usize>, Vec<_>) = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..256u32)
                .map(|thread| {
                    let partner = &partner;
                    scope.spawn(move || {
                        let mut holds = Vec::new();
                        for person in 0..20u32 {
                            // Each person is asked for by four threads.
                            let mut key = [0; 16];
                            key[..4].copy_from_slice(&(1 + thread / 4 * 20 + person).to_be_bytes());
                            let person = Person::from(key);
                            let charges = [
                                Charge::Budget(Scope::Partner, person, budget),
                                Charge::Budget(Scope::People(3), person, Budget::new(270, 1_000, 1_000)),
                            ];
                            let (receipt, hold) = partner.charge(
                                charges.into_iter(),
                                Shadow::default(),
                                9_999,
                                at(0),
                                &mut Ledger::default(),
                            );
                            if receipt == Receipt::Paid {
                                holds.push((key, hold));
                            }
                        }
                        let people: std::collections::HashSet<_> = holds.iter().map(|(key, _)| *key).collect();
                        (people, holds)
                    })
                })
                .collect();
            let mut all = std::collections::HashSet::new();
            let mut kept = Vec::new();
            for thread in threads {
                let (people, holds) = thread.join().expect("no panic");
                all.extend(people);
                kept.extend(holds);
            }
            (vec![all.len()], kept)
        });
        // Ninety people of three each: the people budget is the smaller one.
        assert_eq!(allowed, [90]);
        assert_eq!(partner.budgets_used(Window::Hour, at(0)), (90, 270));
        for (_, mut hold) in holds {
            hold.disclosed(1, &mut Ledger::default());
        }
        assert_eq!(partner.budgets_used(Window::Hour, at(0)), (90, 90));
    }

    #[test]
    fn a_repeat_is_free_and_a_refusal_says_when() {
        let state = State::default();
        let budget = Budget { most: [Some(2), None, Some(3)] };
        let charge = |person| [Charge::Budget(Scope::Partner, key(person).into(), budget)];
        let pay = |person, now| pay(&state, &charge(person), Shadow::default(), now).0;
        assert_eq!((pay(1, at(0)), pay(2, at(600)), pay(1, at(1_200))), (Receipt::Paid, Receipt::Paid, Receipt::Paid));
        let Receipt::Refused { reason, retry_after } = pay(3, at(1_260)) else { panic!("a third one") };
        assert_eq!(reason, Reason::BudgetPartner);
        // The second person leaves first: the first was asked for again.
        assert!((2_880..=3_000).contains(&retry_after.as_secs()), "{retry_after:?}");
        assert_eq!((pay(1, at(1_260)), pay(3, at(1_260).plus(retry_after))), (Receipt::Paid, Receipt::Paid));
        let Receipt::Refused { retry_after, .. } = pay(4, at(90_000)) else { panic!("a fourth one in thirty days") };
        assert!(retry_after > Duration::from_secs(28 * 86_400), "{retry_after:?}");
        assert_eq!(pay(4, at(90_000).plus(retry_after)), Receipt::Paid);
    }

    #[test]
    fn a_budget_in_shadow_passes_is_named_and_takes_nothing() {
        let state = State::default();
        let (one, many) = (Budget::new(1, 1, 1), Budget::new(9, 9, 9));
        let watched = Shadow::from_iter([Reason::BudgetPartner]);
        let charges = |person| {
            [
                Charge::Budget(Scope::Partner, key(person).into(), one),
                Charge::Budget(Scope::Grant("mobile"), key(person).into(), many),
            ]
        };
        assert_eq!(pay(&state, &charges(1), watched, at(0)).0, Receipt::Paid);
        assert_eq!(pay(&state, &charges(2), watched, at(0)).0, Receipt::Passed(watched));
        let used = state.partner(&"icmr".into()).budgets_used(Window::Day, at(0)).0;
        assert_eq!(used, 1);
    }

    #[test]
    fn invented_actors_fill_no_memory_and_an_actor_keeps_its_people_through_a_rotation() {
        let state = State::default();
        let budget = Budget::new(2, 2, 2);
        let actor = |n: u32| {
            let mut key = [9; 16];
            key[..4].copy_from_slice(&n.to_be_bytes());
            key
        };
        let ask = |actor: Person, person| ask(&state, Scope::Actor(actor), key(person), budget, at(0)).0;
        let (before, after) = (actor(1), Person { key: actor(2), previous: Some(actor(1)) });
        assert_eq!(
            (ask(before.into(), 1), ask(before.into(), 2), ask(before.into(), 3)),
            (None, None, Some(Reason::BudgetActor))
        );
        assert_eq!((ask(after, 1), ask(after, 3)), (None, Some(Reason::BudgetActor)));
        let refused: Vec<_> = (10..2_000).filter_map(|other| ask(actor(other).into(), 1)).collect();
        assert_eq!((refused.len(), refused[0]), (1_990 - 998, Reason::LimiterFull));
    }

    #[test]
    fn a_clock_that_was_ahead_counts_nobody_for_longer_than_a_window() {
        let home = TempDir::new().expect("directory");
        let budget = Budget::new(1, 9, 9);
        let year = Timestamp::from_unix_seconds(START + 366 * 86_400);
        assert_eq!(ask(&open(home.path()), Scope::Partner, key(1), budget, year).0, None);
        let state = open(home.path());
        assert_eq!(ask(&state, Scope::Partner, key(2), budget, at(0)).0, Some(Reason::BudgetPartner));
        assert_eq!(ask(&state, Scope::Partner, key(2), budget, at(3_700)).0, None);
    }
}
