//! What the whole promises, on made-up partners.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const START: Timestamp = Timestamp::from_unix_seconds(1_772_409_600);

fn mark(domain: u8, number: u64) -> Mark {
    // Spread as a keyed hash would.
    let hash =
        (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835) ^ (u128::from(domain) << 64);
    Mark::from_bytes((hash ^ (hash >> 61)).wrapping_mul(0xd134_2543_de82_ef95_2545_f491_4f6c_dd1d).to_le_bytes())
}

fn subject(number: u64) -> Subject {
    let block = number / 1_000;
    Subject {
        person: Person::from(*mark(1, number).as_bytes()),
        features: Features {
            block: mark(2, block),
            before: mark(2, block - 1),
            after: mark(2, block + 1),
            offset: (number % 1_000) as u16,
            series: mark(3, number / 100_000),
            allocated: Some(true),
            check_digit: None,
        },
        previous_series: None,
        interest: Interest::None,
    }
}

fn asked(now: Timestamp, number: u64) -> Asked<'static> {
    let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Asked { now, kind: Kind::Mobile, subject: Ok(subject(number)), actor: None, source, consent: false }
}

fn worker(now: Timestamp, number: u64) -> Asked<'static> {
    Asked { actor: Some(Actor { mark: mark(9, 1), previous: None, name: "hw-1" }), ..asked(now, number) }
}

/// Folds both halves; whether it was allowed.
fn look(watch: &mut Watch, profile: &Profile, asked: &Asked, hit: bool) -> (Result<(), Reason>, Vec<Alert>) {
    let Ruling { verdict, mut alerts } = watch.asked(profile, asked);
    let outcome = if hit { Outcome::Found { people: 1 } } else { Outcome::NotFound };
    let verdict = verdict.map(|ticket| {
        watch.paid(profile, &ticket);
        alerts.extend(watch.answered(profile, ticket, outcome, asked.now))
    });
    (verdict, alerts)
}

fn after(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn scattered(place: u64) -> u64 {
    6_400_000_000 + (place * 7_919_317) % 400_000_000
}

#[test]
fn a_sequential_scan_is_over_in_tens_of_lookups_and_its_actor_is_named() {
    let profile = Profile { actors: true, ..Profile::default() };
    let mut watch = Watch::default();
    let mut told = Vec::new();
    let allowed = (0..200).filter(|place| {
        let (verdict, alerts) =
            look(&mut watch, &profile, &worker(after(*place), 6_412_345_000 + place), place % 4 == 0);
        told.extend(alerts);
        verdict.is_ok()
    });
    assert!(allowed.count() <= 20);
    let alert = told.iter().find(|alert| alert.moved.is_some()).unwrap();
    assert_eq!(alert.actor.as_deref(), Some("hw-1"));
    assert!(alert.why[0].contains("as asserted by"), "{:?}", alert.why);
    // Somebody else at the same partner works on.
    assert!(look(&mut watch, &profile, &asked(after(300), scattered(1)), true).0.is_ok());
}

#[test]
fn honest_work_is_left_alone() {
    let profile = Profile { people_per_day: 2_000, ..Profile::default() };
    let mut watch = Watch::default();
    for place in 0..10_000 {
        let (verdict, alerts) = look(&mut watch, &profile, &asked(after(place * 90), scattered(place)), place % 9 != 0);
        assert_eq!((verdict, alerts.len()), (Ok(()), 0), "{place}");
    }
}

#[test]
fn the_second_canary_of_an_actor_contains_it() {
    let profile = Profile { actors: true, ..Profile::default() };
    let mut watch = Watch::default();
    for (place, expected) in [(1, true), (2, false)] {
        let mut asked = worker(after(place * 60), scattered(place));
        asked.subject = Ok(Subject { interest: Interest::Canary(None), ..subject(scattered(place)) });
        let (verdict, alerts) = look(&mut watch, &profile, &asked, true);
        assert_eq!(verdict.is_ok(), expected);
        assert_eq!((alerts[0].detector, alerts[0].severity), ("canary", Severity::Warning));
    }
}

#[test]
fn who_is_known_stays_reachable_and_consent_passes() {
    let profile = Profile::default();
    let mut watch = Watch::default();
    assert!(look(&mut watch, &profile, &asked(after(0), scattered(1)), true).0.is_ok());
    let later = 3 * 86_400;
    watch.contain(None, Level::KnownOnly, None, after(later));
    assert!(look(&mut watch, &profile, &asked(after(later), scattered(1)), true).0.is_ok());
    assert_eq!(look(&mut watch, &profile, &asked(after(later), scattered(2)), true).0, Err(Reason::HeldPartner));
    let consented = Asked { consent: true, ..asked(after(later), scattered(2)) };
    assert!(look(&mut watch, &profile, &consented, true).0.is_ok());
    watch.contain(None, Level::ConsentOnly, None, after(later));
    assert!(look(&mut watch, &profile, &asked(after(later), scattered(1)), true).0.is_err());
    watch.contain(None, Level::Frozen, None, after(later));
    assert!(look(&mut watch, &profile, &consented, true).0.is_err());
    watch.release(None, after(later));
    assert_eq!(watch.standing(after(later)), Standing::default());
    assert!(look(&mut watch, &profile, &asked(after(later), scattered(3)), true).0.is_ok());
}

#[test]
fn first_contacts_in_flight_are_capped_until_their_outcomes_are_in() {
    let profile = Profile::default();
    let mut watch = Watch::default();
    let most = profile.params.pending_partner as u64;
    let mut tickets: Vec<Ticket> =
        (0..most).map(|place| watch.asked(&profile, &asked(START, scattered(place))).verdict.unwrap()).collect();
    assert_eq!(watch.asked(&profile, &asked(START, scattered(most))).verdict.unwrap_err(), Reason::HeldPending);
    // A repeat is no first contact.
    watch.paid(&profile, &tickets[0]);
    let repeat = watch.asked(&profile, &asked(START, scattered(0))).verdict.unwrap();
    let _ = watch.answered(&profile, repeat, Outcome::Unavailable, START);
    let _ = watch.answered(&profile, tickets.pop().unwrap(), Outcome::Unavailable, START);
    assert!(watch.asked(&profile, &asked(START, scattered(most))).verdict.is_ok());
}

/// One lookup of a made-up day: seconds since the one before, which number, whether in a row, whether the backend knows it,
/// whether it is a canary.
fn steps() -> impl Strategy<Value = Vec<(u64, u64, bool, bool, bool)>> {
    prop::collection::vec(
        (0..600_u64, 0..5_000_u64, any::<bool>(), prop::bool::weighted(0.6), prop::bool::weighted(0.02)),
        1..150,
    )
}

fn made_up(now: Timestamp, number: u64, row: bool, canary: bool) -> Asked<'static> {
    let number = if row { 6_412_345_000 + number % 300 } else { scattered(number) };
    let interest = if canary { Interest::Canary(None) } else { Interest::None };
    Asked { subject: Ok(Subject { interest, ..subject(number) }), ..worker(now, number) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_watch_that_was_stored_rules_alike(steps in steps(), cut in 0..150_usize) {
        let profile = Profile { actors: true, ..Profile::default() };
        let (mut one, mut other) = (Watch::default(), Watch::default());
        let mut now = START;
        for (place, (gap, number, row, hit, canary)) in steps.into_iter().enumerate() {
            now = now.plus(Duration::from_secs(gap));
            if place == cut {
                other = serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap();
            }
            let asked = made_up(now, number, row, canary);
            prop_assert_eq!(look(&mut one, &profile, &asked, hit), look(&mut other, &profile, &asked, hit));
        }
    }

    #[test]
    fn a_hold_never_opens_before_its_time(steps in steps()) {
        let profile = Profile { actors: true, ..Profile::default() };
        let mut watch = Watch::default();
        let (mut now, mut held) = (START, None);
        for (place, (gap, number, row, hit, canary)) in steps.into_iter().enumerate() {
            now = now.plus(Duration::from_secs(gap));
            let (verdict, alerts) = look(&mut watch, &profile, &made_up(now, number, row, canary), hit);
            let until = alerts.iter().filter_map(|alert| alert.moved).filter_map(|step| step.until).max();
            held = held.max(until);
            if held.is_some_and(|until| now < until) {
                let stranger = made_up(now, 10_000 + place as u64, false, false);
                prop_assert!(watch.asked(&profile, &stranger).verdict.is_err());
                prop_assert!(!watch.standing(now).actors.is_empty());
            } else if held.is_none() {
                prop_assert!(verdict.is_ok());
            }
        }
    }

    #[test]
    fn more_evidence_never_lowers_the_step(steps in steps(), worse in 0..150_usize) {
        let profile = Profile { actors: true, ..Profile::default() };
        let (mut less, mut more) = (Watch::default(), Watch::default());
        let mut now = START;
        for (place, (gap, number, row, hit, _)) in steps.into_iter().enumerate() {
            // Within the shortest hold, so that neither ends by itself.
            now = now.plus(Duration::from_secs(gap % 10));
            let _ = look(&mut less, &profile, &made_up(now, number, row, false), hit);
            let _ = look(&mut more, &profile, &made_up(now, number, row, place == worse), hit);
            let level = |watch: &Watch| watch.standing(now).actors.first().map_or(Level::Open, |(_, hold)| hold.level);
            prop_assert!(level(&more) >= level(&less));
        }
    }
}

#[test]
fn whoever_was_asked_for_is_found_again_and_few_strangers_are() {
    use contacts::{Contact, Contacts};
    let person = |number: u64| Person::from(*mark(1, number).as_bytes());
    let mut contacts = Contacts::default();
    let people = 1_000_000;
    for number in 0..people {
        contacts.add(&person(number), false, START, 10_000_000);
    }
    assert!((0..people).step_by(97).all(|number| contacts.find(&person(number)) != Contact::First));
    let strangers =
        (people..people + 100_000).filter(|number| contacts.find(&person(*number)) != Contact::First).count();
    assert!(strangers < 3_000, "{strangers} of 100000 strangers were taken for known");
    let bits = contacts.bytes() as f64 * 8.0 / people as f64;
    // Filters grow fourfold: twelve bits a person when the last is full, four times that when it was just begun.
    assert!(bits < 48.0, "{bits} bits a person");
}

#[test]
fn a_partner_that_grew_slowly_takes_few_strangers_for_known_too() {
    use contacts::{Contact, Contacts};
    let person = |number: u64| Person::from(*mark(1, number).as_bytes());
    let mut contacts = Contacts::default();
    let (a_day, days) = (2_000, 30);
    for number in 0..a_day * days {
        let now = after(number * 86_400 / a_day);
        contacts.age(now, Params::default().known_after);
        contacts.add(&person(number), false, now, 10_000_000);
    }
    let known = (0..a_day * (days - 2)).all(|number| contacts.find(&person(number)) == Contact::Known);
    assert!(known);
    let strangers = (1_000_000..1_100_000).filter(|number| contacts.find(&person(*number)) != Contact::First).count();
    assert!(strangers < 1_500, "{strangers} of 100000 strangers were taken for known");
}

#[test]
fn nobody_gets_to_know_people_by_what_budgets_refuse() {
    let profile = Profile::default();
    let mut watch = Watch::default();
    let ticket = watch.asked(&profile, &asked(after(0), scattered(1))).verdict.unwrap();
    let _ = watch.answered(&profile, ticket, Outcome::Unavailable, after(0));
    assert!(!watch.knows(&subject(scattered(1)).person));
    watch.contain(None, Level::KnownOnly, None, after(3 * 86_400));
    let verdict = look(&mut watch, &profile, &asked(after(3 * 86_400), scattered(1)), true).0;
    assert_eq!(verdict, Err(Reason::HeldPartner));
}

/// Its own region: twenty series of the sixty that it could ask about.
fn of_region(place: u64) -> u64 {
    6_400_000_000 + (place % 20) * 1_000_000 + (place * 7_919_317) % 1_000_000
}

fn in_series(now: Timestamp, number: u64) -> Asked<'static> {
    let features = Features { series: mark(3, number / 1_000_000), ..subject(number).features };
    Asked { subject: Ok(Subject { features, ..subject(number) }), ..asked(now, number) }
}

#[test]
fn beside_a_held_scan_ordinary_work_goes_on_and_what_was_answered_is_answered_again() {
    let profile = Profile { people_per_day: 5_000, ..Profile::default() };
    let mut watch = Watch::default();
    let mut now = 0;
    for place in 0..6_000 {
        now += 120;
        assert_eq!(look(&mut watch, &profile, &in_series(after(now), of_region(place)), true).0, Ok(()));
    }
    // A scan, far from all that this partner asks for.
    let far = 6_800_000_000;
    for place in 0..40 {
        now += 1;
        let _ = look(&mut watch, &profile, &in_series(after(now), far + place), place % 8 == 0);
    }
    assert_eq!(watch.standing(after(now)).level, Level::KnownOnly);
    // While it goes on nobody can tell one from the other.
    assert!(look(&mut watch, &profile, &in_series(after(now + 1), of_region(6_999)), true).0.is_err());
    now += 900;
    let mut passed = 0;
    for place in 0..6 {
        now += 150;
        passed +=
            u32::from(look(&mut watch, &profile, &in_series(after(now), of_region(7_000 + place)), true).0.is_ok());
        let scan = in_series(after(now + 1), far + 1_000 + place);
        assert_eq!(look(&mut watch, &profile, &scan, true).0, Err(Reason::HeldPartner));
    }
    assert!(passed >= 4, "{passed} of 6");
    assert_eq!(look(&mut watch, &profile, &in_series(after(now), of_region(5_999)), true).0, Ok(()), "asked before");
}

#[test]
fn a_list_from_elsewhere_is_novel_to_who_serves_a_region_and_not_to_who_serves_all() {
    use super::novelty::{Novelty, Place};
    let params = Params::default();
    let place = |series: u64| Place::of(mark(3, series), None);
    let (mut regional, mut national) = (Novelty::default(), Novelty::default());
    for count in 0..6_000 {
        regional.learn(Kind::Mobile, place(count % 60));
        national.learn(Kind::Mobile, place(count * 7_919 % 2_500));
    }
    let drift =
        |novelty: &Novelty| (0..2_500).map(|s| novelty.say(&params, Kind::Mobile, place(s))).sum::<f32>() / 2_500.0;
    assert!(drift(&regional) > 1.0, "{}", drift(&regional));
    assert!(drift(&national) <= 0.0, "{}", drift(&national));
    assert!(regional.say(&params, Kind::Mobile, place(7)) < 0.0);
    // Under the next epoch's key it is still its own, and is learned anew.
    let next = Place::of(mark(4, 7), Some(mark(3, 7)));
    assert!(regional.say(&params, Kind::Mobile, next) < 0.0);
    assert_eq!(regional.say(&params, Kind::Aadhaar, place(7)), 0.0);
}
