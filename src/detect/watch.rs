//! One partner's memory, and the two halves of a lookup.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contacts::{Contact, Contacts};
use super::evidence::{INTEREST, Part, Sum, Unit};
use super::identifiers::{self, Space};
use super::key_use::{Hours, Sources};
use super::ladder::{Hold, step_up};
use super::leeway::Leeway;
use super::misses::Misses;
use super::novelty::{Novelty, Place};
use super::params::Params;
use super::pending::Pending;
use super::volume::{Limits, Pace};
use super::{Actor, Alert, Asked, Interest, Level, Outcome, Profile, Ruling, Severity, Step, interest};
use crate::clock::Timestamp;
use crate::policy::charge::Person;
use crate::policy::containment::{self, Footing};
use crate::policy::reason::Reason;
use crate::subject::{Kind, Mark};

/// An allowed lookup under way; its outcome is folded with it.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    asked: Timestamp,
    /// Whom it was never asked for before, and whether with consent.
    unknown: Option<(Person, bool)>,
    kind: Kind,
    /// A first contact without consent: what evidence is made of.
    first: bool,
    pending: bool,
    series: Place,
    neighbours: u32,
    source: std::net::IpAddr,
    /// Somebody was held, and this looked like ordinary work.
    by_leave: bool,
    actor: Option<(Mark, Box<str>)>,
}

/// All that is remembered of how one partner asks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Watch {
    began: Option<Timestamp>,
    aged: Timestamp,
    partner: Unit,
    actors: HashMap<Mark, Unit>,
    sources: Sources,
    contacts: Contacts,
    misses: Misses,
    space: Space,
    novelty: Novelty,
    hours: Hours,
    /// Of the whole partner, for each kind of identifier: a list is of one kind.
    kinds: [Pace; Kind::ALL.len()],
    /// Mean daily tops of actors, from which a newcomer is judged.
    actor_fast: f32,
    actor_slow: f32,
    #[serde(skip)]
    pending: Pending,
}

/// Where a partner and its actors stand now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    pub level: Level,
    pub until: Option<Timestamp>,
    pub by_operator: bool,
    /// Those that are not open.
    pub actors: Vec<(Mark, Hold)>,
}

/// Whom evidence is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Partner,
    Actor,
    Source,
}

impl Watch {
    /// The asked half: folds what shows before an outcome is known, and rules.
    pub fn asked(&mut self, profile: &Profile, asked: &Asked) -> Ruling {
        self.asked_under(Footing::default(), profile, asked)
    }

    /// Whether the partner knew this person before there was evidence.
    pub fn knows(&self, person: &Person) -> bool {
        self.contacts.find(person) == Contact::Known
    }

    /// The same, where operators have put the partner or the actor on a step. What they hold back is folded like what evidence
    /// holds back, and makes nobody known.
    pub fn asked_under(&mut self, ordered: Footing, profile: &Profile, asked: &Asked) -> Ruling {
        let params = &*profile.params;
        let now = asked.now;
        let began = *self.began.get_or_insert(now);
        if now.since(self.aged) >= Duration::from_secs(3_600) {
            self.aged = now;
            self.contacts.age(now, params.known_after);
            self.forget_actors(params);
        }
        let mut alerts = Vec::new();
        let place = self.sources.place(asked.source, now, params.sources_max);
        let new_source = self.sources.is_new(params, place, began, now);
        let contact = asked.subject.as_ref().map(|subject| self.contacts.find(&subject.person));

        // An actor is remembered once there is something to remember: the users of a citizen app are not.
        let tell =
            asked.subject.is_err() || !asked.consent || profile.consent_required && contact == Ok(Contact::First);
        let actor = asked.actor.filter(|actor| tell || self.actors.contains_key(&actor.mark));
        if let Some(actor) = actor {
            self.meet(&actor);
        }
        self.pass(profile, actor.as_ref(), place, now);
        let calm = self.partner.is_calm(params);
        self.kinds[asked.kind as usize].pass(params, now, calm);
        self.hours.learn(now);

        let subject = match &asked.subject {
            Ok(subject) => subject,
            Err(reason) => {
                let nats = identifiers::invalid(params, asked.kind, false);
                let mark = actor.map(|actor| actor.mark);
                let held = self.refusal(mark, place, Contact::First, false, now);
                self.each_charged(held, mark, place, |unit| unit.fold(params, Part::Invalid, nats));
                if held.is_none() {
                    self.judge(profile, asked.kind, actor.map(|a| (a.mark, a.name)), asked.source, now, &mut alerts);
                }
                return Ruling { verdict: Err(*reason), alerts };
            }
        };
        let contact = contact.unwrap_or(Contact::First);
        let first = contact == Contact::First && !asked.consent;
        let series = Place::of(subject.features.series, subject.previous_series);
        let neighbours = if first { self.space.neighbours(&subject.features) } else { 0 };
        let mark = actor.map(|actor| actor.mark);

        let by_order = containment::held(ordered, asked.consent, contact == Contact::Known).err();
        let stands = self.refusal(mark, place, contact, asked.consent, now);
        let held = by_order.or_else(|| {
            let ordinary = !new_source
                && (neighbours == 0 || identifiers::in_rows(asked.kind))
                && subject.interest == Interest::None
                && self.novelty.is_ordinary(params, asked.kind, series)
                && self.hours.say(params, now) <= 0.0;
            let passes = stands.is_some()
                && match contact {
                    _ if self.is_held_by_order(mark, place) => false,
                    // Who was asked for lately is no new disclosure.
                    Contact::Recent => true,
                    Contact::First => first && ordinary && self.leeway(profile, mark, place, asked.kind, now),
                    Contact::Known => false,
                };
            stands.filter(|_| !passes)
        });
        if first {
            let novelty = self.novelty.say(params, asked.kind, series);
            let space = self.space.say(params, asked.kind, neighbours);
            let hour = self.hours.say(params, now);
            let source = self.sources.say(params, new_source);
            // People who come together with numbers in a row are one event more than many.
            let weight = if identifiers::in_rows(asked.kind) && neighbours >= 2 { params.in_rows } else { 1.0 };
            if held.is_none() || self.partner.hold.is_some() {
                self.kinds[asked.kind as usize].first_contact(weight);
            }
            self.each_charged(held, mark, place, |unit| {
                unit.pace.first_contact(weight);
                unit.contacts = unit.contacts.saturating_add(1);
                unit.fold(params, Part::Series, novelty);
                unit.fold(params, Part::Neighbour, space);
                unit.fold(params, Part::Hour, hour);
                unit.fold(params, Part::Source, source);
            });
            self.space.add(&subject.features);
        } else if contact == Contact::Known {
            self.kinds[asked.kind as usize].known();
            self.each(mark, place, |_, unit| unit.pace.known());
        }
        if first || subject.interest != Interest::None {
            self.each_charged(held, mark, place, |unit| interest::fold(params, unit, &subject.interest, first));
        }
        if contact == Contact::First {
            let valid = identifiers::invalid(params, asked.kind, true);
            self.each_charged(held, mark, place, |unit| unit.fold(params, Part::Invalid, valid));
        }
        if subject.interest != Interest::None {
            alerts.extend(self.told(profile, asked, &subject.interest));
        }
        if let Some(reason) = held {
            return Ruling { verdict: Err(reason), alerts };
        }
        if first || subject.interest != Interest::None {
            self.judge(profile, asked.kind, actor.map(|a| (a.mark, a.name)), asked.source, now, &mut alerts);
            if stands.is_none()
                && let Some(reason) = self.refusal(mark, place, contact, asked.consent, now)
            {
                return Ruling { verdict: Err(reason), alerts };
            }
        }
        if first {
            let full = |count: u32, most: u32| count >= most;
            if full(self.pending.count(None, now), params.pending_partner)
                || mark.is_some() && full(self.pending.count(mark, now), params.pending_actor)
            {
                return Ruling { verdict: Err(Reason::HeldPending), alerts };
            }
            self.pending.begin(mark, now);
        }
        self.sources.learn(new_source);
        let ticket = Ticket {
            asked: now,
            unknown: (contact == Contact::First).then_some((subject.person, asked.consent)),
            kind: asked.kind,
            first: contact == Contact::First && (!asked.consent || profile.consent_required),
            pending: first,
            series,
            neighbours,
            source: asked.source,
            by_leave: first && stands.is_some(),
            actor: actor.map(|actor| (actor.mark, actor.name.into())),
        };
        Ruling { verdict: Ok(ticket), alerts }
    }

    /// Remembers whom an allowed lookup asked for, once its charges are taken: nobody gets to know people by what budgets refuse.
    pub fn paid(&mut self, profile: &Profile, ticket: &Ticket) {
        if let Some((person, consent)) = &ticket.unknown {
            self.contacts.add(person, *consent, ticket.asked, profile.params.people_max);
        }
    }

    /// The answered half. Every ticket comes back once, also one whose answer never came (`Unavailable`).
    pub fn answered(&mut self, profile: &Profile, ticket: Ticket, outcome: Outcome, now: Timestamp) -> Vec<Alert> {
        let params = &*profile.params;
        let mut alerts = Vec::new();
        let mark = ticket.actor.as_ref().map(|(mark, _)| *mark);
        if ticket.pending {
            self.pending.end(mark, ticket.asked);
        }
        let people = match outcome {
            Outcome::Found { people } => people,
            Outcome::NotFound | Outcome::Invalid => 0,
            Outcome::Unavailable => return alerts,
        };
        if !ticket.first {
            return alerts;
        }
        let place = self.sources.place(ticket.source, now, params.sources_max);
        let hit = people > 0;
        let said = self.misses.say(params, ticket.kind, hit);
        let mut calm = true;
        self.each(mark, place, |who, unit| {
            unit.exposed = unit.exposed.saturating_add(people);
            unit.fold(params, Part::Guess, said.guess);
            unit.fold(params, Part::Stale, said.stale);
            if ticket.by_leave && unit.hold.is_some() {
                let said = if who == Who::Partner { said.guess } else { said.guess.max(said.stale) };
                unit.leeway.outcome(said, doubt_most(params, who));
            }
            calm &= unit.hold.is_none();
        });
        let mark_name = ticket.actor.as_ref().map(|(mark, name)| (*mark, &**name));
        let most = self.judge(profile, ticket.kind, mark_name, ticket.source, now, &mut alerts);
        if calm && most < params.warn / 2.0 {
            self.misses.learn(ticket.kind, hit);
            self.space.learn(ticket.kind, ticket.neighbours);
            if hit {
                self.novelty.learn(ticket.kind, ticket.series);
            }
        }
        alerts
    }

    /// An operator puts the partner, or one actor, on a step; until it is released if no time is given.
    pub fn contain(&mut self, actor: Option<Mark>, level: Level, until: Option<Timestamp>, now: Timestamp) {
        let unit = match actor {
            None => &mut self.partner,
            Some(mark) => self.actors.entry(mark).or_default(),
        };
        unit.hold = Some(Hold { level, until, by_operator: true });
        if unit.since == Timestamp::default() {
            unit.since = now;
        }
    }

    /// Lets go at once, and starts from no evidence.
    pub fn release(&mut self, actor: Option<Mark>, _now: Timestamp) {
        let unit = match actor {
            None => Some(&mut self.partner),
            Some(mark) => self.actors.get_mut(&mark),
        };
        if let Some(unit) = unit {
            unit.hold = None;
            unit.start_over();
            // Its word counts for more than what was seen before: no relapse.
            (unit.freed, unit.holds) = (Timestamp::default(), 0);
        }
    }

    pub fn standing(&self, now: Timestamp) -> Standing {
        let current = |unit: &Unit| unit.hold.filter(|hold| !hold.is_over(now));
        let mut actors: Vec<_> = self.actors.iter().filter_map(|(mark, unit)| Some((*mark, current(unit)?))).collect();
        actors.sort_by_key(|(mark, _)| *mark);
        let hold = current(&self.partner);
        Standing {
            level: hold.map_or(Level::Open, |hold| hold.level),
            until: hold.and_then(|hold| hold.until),
            by_operator: hold.is_some_and(|hold| hold.by_operator),
            actors,
        }
    }

    /// People remembered, for metrics.
    pub fn people(&self) -> u64 {
        self.contacts.people()
    }

    fn meet(&mut self, actor: &Actor) {
        if !self.actors.contains_key(&actor.mark) {
            let before = actor.previous.and_then(|previous| self.actors.remove(&previous));
            self.actors.insert(actor.mark, before.unwrap_or_default());
        }
    }

    /// Those longest quiet make room, a tenth at a time. Held ones stay.
    fn forget_actors(&mut self, params: &Params) {
        if self.actors.len() <= params.actors_max {
            return;
        }
        let mut idle: Vec<_> =
            self.actors.iter().filter(|(_, unit)| unit.hold.is_none()).map(|(mark, unit)| (unit.at(), *mark)).collect();
        idle.sort();
        let excess = self.actors.len() - params.actors_max + params.actors_max / 10;
        for (_, mark) in idle.into_iter().take(excess) {
            self.actors.remove(&mark);
        }
    }

    fn each(&mut self, actor: Option<Mark>, source: usize, mut fold: impl FnMut(Who, &mut Unit)) {
        fold(Who::Partner, &mut self.partner);
        if let Some(unit) = actor.and_then(|mark| self.actors.get_mut(&mark)) {
            fold(Who::Actor, unit);
        }
        fold(Who::Source, &mut self.sources.at(source).unit);
    }

    /// Those whose evidence a lookup is: when some of them are held for it, the others have no part in it.
    fn each_charged(
        &mut self,
        held: Option<Reason>,
        actor: Option<Mark>,
        source: usize,
        mut fold: impl FnMut(&mut Unit),
    ) {
        self.each(actor, source, |who, unit| {
            if held.is_none() || unit.hold.is_some() || (who == Who::Actor && held == Some(Reason::HeldPartner)) {
                fold(unit);
            }
        });
    }

    /// Time passes for the units of this lookup: evidence fades, holds end or go on.
    fn pass(&mut self, profile: &Profile, actor: Option<&Actor>, source: usize, now: Timestamp) {
        let params = &*profile.params;
        let mut tops = None;
        let usual = self.hours.expected(now);
        let ordinary = [Who::Partner, Who::Actor, Who::Source].map(|who| {
            let unit = match who {
                Who::Partner => Some(&self.partner),
                Who::Actor => actor.and_then(|actor| self.actors.get(&actor.mark)),
                Who::Source => self.sources.all().get(source).map(|source| &source.unit),
            };
            unit.map(|unit| self.limits(profile, who, unit, now))
        });
        self.each(actor.map(|actor| actor.mark), source, |who, unit| {
            if let Some(hold) = unit.hold.filter(|hold| hold.is_over(now)) {
                unit.pass(params, now);
                // What it asked for while held says whether it goes on.
                // A partner's nightly run may fall into the hour; an actor has the day before it.
                let share = if who == Who::Partner { 1.0 } else { params.pressed_pace };
                let many = ordinary[who as usize].is_some_and(|limits| unit.pace.is_many(share, limits));
                let few = who == Who::Partner && unit.pace.per_hour() < params.crowding * usual;
                let goes_on = !hold.by_operator && !few && (many || unit.asked_sum() >= params.pressed);
                let time = hold_time(params, who, unit);
                unit.hold = goes_on.then(|| Hold { until: Some(now.plus(time)), ..hold });
                unit.start_over();
                unit.freed = now;
            }
            let day = unit.pass(params, now);
            if who == Who::Actor {
                tops = day;
            }
        });
        if self.partner.freed == now {
            self.kinds.iter_mut().for_each(Pace::start_over);
        }
        if let Some((fast, slow)) = tops {
            // One of them alone, at a back-fill for instance, must not lift what all may.
            let most = |mean: f32| 3.0 * mean + 4.0;
            self.actor_fast += 0.05 * (fast.min(most(self.actor_fast)) - self.actor_fast);
            self.actor_slow += 0.05 * (slow.min(most(self.actor_slow)) - self.actor_slow);
        }
    }

    fn kind_limits(&self, params: &Params, kind: Kind, now: Timestamp) -> Limits {
        let pace = &self.kinds[kind as usize];
        let own = |peak: f32| peak * params.peak_margin + 10.0;
        match self.began.is_some_and(|began| now.since(began) >= params.learn_for) {
            true => Limits { burst: own(pace.peak_burst), fast: own(pace.peak_fast), slow: own(pace.peak_slow) },
            false => Limits { burst: f32::MAX, fast: f32::MAX, slow: f32::MAX },
        }
    }

    fn limits(&self, profile: &Profile, who: Who, unit: &Unit, now: Timestamp) -> Limits {
        let params = &*profile.params;
        let contract = if profile.people_per_day > 0 { profile.people_per_day as f32 } else { f32::MAX };
        let old = self.began.is_some_and(|began| now.since(began) >= params.learn_for);
        let own = |peak: f32, slack: f32| peak * params.peak_margin + slack;
        match who {
            _ if !old => Limits { burst: f32::MAX, fast: f32::MAX, slow: contract.max(20.0) },
            Who::Partner => Limits {
                burst: own(unit.pace.peak_burst, 10.0),
                fast: own(unit.pace.peak_fast, 10.0),
                slow: own(unit.pace.peak_slow, 10.0).min(contract.max(20.0)),
            },
            Who::Source => Limits { burst: f32::MAX, fast: f32::MAX, slow: f32::MAX },
            Who::Actor => Limits {
                burst: f32::MAX,
                fast: own(unit.pace.peak_fast, 4.0).max(params.colleagues * self.actor_fast + 4.0),
                slow: own(unit.pace.peak_slow, 4.0).max(params.colleagues * self.actor_slow + 4.0),
            },
        }
    }

    fn is_held_by_order(&mut self, actor: Option<Mark>, source: usize) -> bool {
        let mut any = false;
        self.each(actor, source, |_, unit| any |= unit.hold.is_some_and(|hold| hold.by_operator));
        any
    }

    /// Whether those held by evidence may ask for this person all the same, as one of their ordinary lookups.
    fn leeway(&mut self, profile: &Profile, actor: Option<Mark>, source: usize, kind: Kind, now: Timestamp) -> bool {
        let params = &*profile.params;
        let usual = self.hours.expected(now);
        let mut all = true;
        let pace = &self.kinds[kind as usize];
        let busy = pace.is_fast(self.kind_limits(params, kind, now));
        let limits = actor.and_then(|mark| self.actors.get(&mark));
        let limits = limits.map(|unit| self.limits(profile, Who::Actor, unit, now));
        self.each(actor, source, |who, unit| {
            if unit.hold.is_some_and(|hold| !hold.is_over(now)) {
                let (per_hour, most, fast, against) = match (who, limits) {
                    (Who::Partner, _) => (1.5 * usual, 0.5 * usual, busy, 0.0),
                    // What an actor asks for in vain speaks against all of its work; with a partner, mostly somebody else's.
                    (Who::Actor, Some(of)) => (of.slow / 12.0, of.slow / 2.0, unit.pace.is_fast(of), unit.asked_sum()),
                    (Who::Actor, None) | (Who::Source, _) => (0.0, 0.0, true, 0.0),
                };
                unit.leeway.fill(per_hour, most, now);
                let doubt = doubt_most(params, who) - against;
                all &= unit.leeway.has(doubt) && !fast;
            }
        });
        if all {
            self.each(actor, source, |_, unit| {
                if unit.hold.is_some() {
                    unit.leeway.take();
                }
            });
        }
        all
    }

    /// Why this lookup is refused as things stand.
    fn refusal(
        &self,
        actor: Option<Mark>,
        source: usize,
        contact: Contact,
        consent: bool,
        now: Timestamp,
    ) -> Option<Reason> {
        let holds = |unit: &Unit| unit.hold.is_some_and(|hold| !hold.is_over(now) && !hold.passes(contact, consent));
        if actor.and_then(|mark| self.actors.get(&mark)).is_some_and(holds) {
            return Some(Reason::HeldActor);
        }
        (holds(&self.partner) || holds(&self.sources.all()[source].unit)).then_some(Reason::HeldPartner)
    }

    /// Sums up the evidence and, where it suffices, takes the next step. Returns the highest sum.
    fn judge(
        &mut self,
        profile: &Profile,
        kind: Kind,
        actor: Option<(Mark, &str)>,
        address: std::net::IpAddr,
        now: Timestamp,
        alerts: &mut Vec<Alert>,
    ) -> f32 {
        let params = &*profile.params;
        let began = self.began.unwrap_or(now);
        let place = self.sources.place(address, now, params.sources_max);
        let mut most = 0.0_f32;
        let mut laid = false;
        if let Some((mark, name)) = actor
            && let Some(unit) = self.actors.get(&mark)
        {
            let sum = unit.sum(params, unit.pace.say(params, self.limits(profile, Who::Actor, unit, now)));
            most = most.max(sum.nats);
            if let Some(unit) = self.actors.get_mut(&mark) {
                laid |=
                    act(profile, unit, Who::Actor, Some(name), &sum, params.contain, now, alerts, &mut self.contacts);
            }
        }
        if self.sources.is_new(params, place, began, now) {
            let sum = self.sources.at(place).unit.sum(params, 0.0);
            most = most.max(sum.nats);
            let unit = &mut self.sources.at(place).unit;
            laid |= act(profile, unit, Who::Source, None, &sum, params.contain, now, alerts, &mut self.contacts);
        }
        if laid {
            // The evidence is theirs, not the partner's: it starts anew.
            self.partner.start_over();
            self.kinds.iter_mut().for_each(Pace::start_over);
            return most;
        }
        let volume = self.partner.pace.say(params, self.limits(profile, Who::Partner, &self.partner, now));
        let of_kind = self.kinds[kind as usize].say(params, self.kind_limits(params, kind, now));
        let sum = self.partner.sum(params, volume.max(of_kind));
        most = most.max(sum.nats);
        let bar = if profile.actors { params.contain_whole_staff } else { params.contain_partner };
        // Where honest work goes on beside it, a list with canaries is for an operator to stop.
        let listed = sum.top.first().is_some_and(|(name, _)| *name == INTEREST);
        let crowded = self.partner.pace.per_hour() > params.crowding * self.hours.expected(now);
        let bar = if listed && !crowded { f32::MAX } else { bar };
        if act(profile, &mut self.partner, Who::Partner, None, &sum, bar, now, alerts, &mut self.contacts) {
            self.kinds.iter_mut().for_each(Pace::start_over);
        }
        most
    }

    fn told(&self, profile: &Profile, asked: &Asked, interest: &Interest) -> Option<Alert> {
        let (detector, severity, why) = match interest {
            Interest::None => return None,
            Interest::Watched => {
                let consent = if asked.consent { "with" } else { "without" };
                (
                    "watched-person",
                    Severity::Info,
                    format!("somebody on the watch list was asked for, {consent} consent"),
                )
            }
            Interest::Canary(owner) => {
                let owner = owner.as_ref().map(|owner| format!(", planted for {owner}")).unwrap_or_default();
                ("canary", Severity::Warning, format!("a planted row that is nobody's was asked for{owner}"))
            }
        };
        Some(Alert {
            time: asked.now,
            partner: profile.name.clone(),
            actor: asked.actor.map(|actor| actor.name.to_owned()),
            detector,
            severity,
            why: vec![why],
            moved: None,
            exposed: None,
        })
    }
}

/// Longer each time that a unit relapses, up to a day.
fn hold_time(params: &Params, who: Who, unit: &Unit) -> Duration {
    let time = if who == Who::Partner { params.hold_partner } else { params.hold };
    (time * (1 << unit.holds.saturating_sub(1).min(8))).min(params.hold_most.max(time))
}

/// How much the outcomes of what passed by leeway may say against it; a partner's are of many.
fn doubt_most(params: &Params, who: Who) -> f32 {
    if who == Who::Partner { 2.0 * params.doubt } else { params.doubt }
}

/// Takes the step that the sum asks for, and tells. Whether it did.
#[allow(clippy::too_many_arguments)]
fn act(
    profile: &Profile,
    unit: &mut Unit,
    who: Who,
    actor: Option<&str>,
    sum: &Sum,
    bar: f32,
    now: Timestamp,
    alerts: &mut Vec<Alert>,
    contacts: &mut Contacts,
) -> bool {
    let params = &*profile.params;
    let held = unit.hold.filter(|hold| !hold.is_over(now));
    let relapsed = unit.freed != Timestamp::default() && now.since(unit.freed) < params.relapse_for;
    let bar = if relapsed { bar - params.relapse } else { bar };
    let contains = sum.nats >= bar && held.is_none();
    let warns =
        sum.nats >= params.warn.max(bar) && now.since(unit.warned) >= Duration::from_secs(6 * 3_600) && held.is_none();
    if !contains && !warns {
        return false;
    }
    let moved = contains.then(|| {
        unit.holds = if relapsed { unit.holds.saturating_add(1) } else { 1 };
        let time = hold_time(params, who, unit);
        let hold = Hold { level: step_up(Level::Open), until: Some(now.plus(time)), by_operator: false };
        unit.hold = Some(hold);
        unit.leeway = Leeway::begin(now);
        contacts.taint(unit.since);
        Step { from: Level::Open, to: hold.level, until: hold.until }
    });
    unit.warned = now;
    let (contacts, exposed, since) = (unit.contacts, unit.exposed, unit.since);
    if contains {
        unit.start_over();
    }
    let of = match (who, actor) {
        (_, Some(name)) => format!(" by actor {name}, as asserted by {}", profile.name),
        (Who::Source, None) => " from a source not seen before".to_owned(),
        _ => String::new(),
    };
    let mut why =
        vec![format!("{} first contacts without consent{of}, {} people disclosed since {}", contacts, exposed, since)];
    why.extend(sum.top.iter().map(|(name, nats)| format!("{name}: {nats:.1} of {:.1} nats", sum.nats)));
    alerts.push(Alert {
        time: now,
        partner: profile.name.clone(),
        actor: actor.map(str::to_owned),
        detector: sum.top.first().map_or("evidence", |(name, _)| name),
        severity: if contains { Severity::Critical } else { Severity::Warning },
        why,
        moved,
        exposed: contains.then_some(exposed),
    });
    contains
}
