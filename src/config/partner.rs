//! Reads `partners/*.toml`: one partner, its identities, networks, limits and grants.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::gateway::{name, told, version};
use super::network_file::{self, Defaults, parse_cidr};
use super::problem::Problem;
use super::reader::Reader;
use super::settings::Issuer;
use crate::clock::Timestamp;
use crate::policy::admit::Hours;
use crate::policy::charge::Rate;
use crate::policy::contract::{BUDGET_MAX, Budget, Budgets, Class, Contract, Window};
use crate::policy::entitle::Grant;
use crate::policy::identify::{Identity, Proof};
use crate::policy::networks::{Networks, NetworksBuilder, Note, is_wide};
use crate::policy::reason::Reason;
use crate::policy::route::{Place, Route, RouteId, RouteKind};
use crate::policy::shadow::Shadow;
use crate::policy::{Limits, Partner};

/// What a partner's file may refer to.
pub struct Known<'a> {
    pub issuers: &'a [Issuer],
    pub routes: &'a [Route],
    /// Every declared name; `None` where `gateway.toml` could not be read at all.
    pub issuer_names: Option<&'a [String]>,
    pub route_names: Option<&'a [String]>,
    /// Directory of the partner's file, and how it is shown in problems.
    pub directory: &'a Path,
    pub shown_directory: &'a str,
    /// Takes the files that are read beside the partner's own.
    pub files: &'a RefCell<Vec<PathBuf>>,
}

/// `problems` takes those of the network files, which are not TOML.
pub fn read(root: &Reader, known: &Known, problems: &mut Vec<Problem>) -> Option<Partner> {
    version(root);
    let partner_name = root.need("name", name);
    let actor_required = root.want("actor", |text| match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err("it is \"required\" or \"optional\"".to_owned()),
    });
    let valid_from = root.want_time("valid_from", parse_start);
    let valid_until = root.want_expiry("valid_until");
    let hours = root.want_table("hours", hours);
    let identities = root.tables("identity", |table| identity(table, known));
    if !root.has("identity") {
        root.problem(
            "identity",
            "no identity: the partner could never be recognised",
            "add [[identity]] with uri, dns or spki",
        );
    }
    let networks = networks(root, known, problems);
    let limits = root.table("limits", |table| Some((limits(table)?, table.place())));
    let contract = root.want_table("contract", contract);
    let budgets = root.want_table("budgets", |table| budgets(table, contract.flatten()));
    let grants = root.tables("grant", |table| grant(table, known));
    for (at, grant) in grants.iter().enumerate() {
        if grants[..at].iter().any(|other| other.route == grant.route) {
            let route = &known.routes[usize::from(grant.route.0)].name;
            root.problem("grant", format!("two grants for route {route}"), "merge them");
        }
    }
    let (limits, limits_place): (Limits, Place) = limits?;
    let (contract, budgets) = (contract?, budgets?);
    let budgets = budgets.or(contract.map(|contract| contract.budgets())).unwrap_or_default();
    let is_lookup = |grant: &Grant| matches!(known.routes[usize::from(grant.route.0)].kind, RouteKind::Lookup(_));
    if grants.iter().any(is_lookup) && budgets.partner.is_none() {
        let hint = "add [contract] with class and people_per_day, or [budgets] with partner = { day = 100 }";
        root.problem("contract", "a partner that may look people up says how many of them", hint);
    }
    Some(Partner {
        name: partner_name?.into(),
        identities,
        networks,
        valid_from: valid_from?,
        valid_until: valid_until?,
        hours: hours?,
        actor_required: actor_required?.unwrap_or(false),
        limits,
        limits_place,
        contract,
        budgets,
        grants,
        place: root.place(),
    })
}

fn identity(table: &Reader, known: &Known) -> Option<Identity> {
    let issuer = || {
        table.reference("issuer", "issuer", known.issuer_names, |text| {
            let found = known.issuers.iter().find(|issuer| *issuer.name == *text);
            found.map(|issuer| issuer.name.clone())
        })
    };
    let claims = ["uri", "dns", "spki"].map(|key| table.has(key));
    if claims.iter().filter(|claimed| **claimed).count() != 1 {
        table.problem("uri", "an identity is exactly one of uri, dns and spki", "write one [[identity]] for each");
        table.has("issuer");
        return None;
    }
    let proof = if claims[2] {
        let digest = table.need("spki", |text| {
            let digest = text.strip_prefix("sha256:").and_then(|text| BASE64_STANDARD.decode(text).ok());
            let digest = digest.and_then(|digest| <[u8; 32]>::try_from(digest).ok());
            digest.ok_or("it is \"sha256:\" and the base64 of 32 bytes".to_owned())
        });
        let issuer = if table.has("issuer") { Some(issuer()?) } else { None };
        Proof::Spki { digest: digest?, issuer }
    } else if claims[0] {
        let uri = table.need("uri", |text| {
            let (scheme, rest) = text.split_once("://").unwrap_or_default();
            let fits = !scheme.is_empty() && !rest.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            if fits { Ok(text.to_owned()) } else { Err("it is a URI such as \"spiffe://example.org/icmr\"".to_owned()) }
        });
        let issuer = issuer();
        Proof::Uri { issuer: issuer?, uri: uri? }
    } else {
        let name = table.need("dns", |text| {
            let fits = !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'));
            if fits { Ok(text.to_ascii_lowercase()) } else { Err("it is a DNS name; wildcards are nobody".to_owned()) }
        });
        let issuer = issuer();
        Proof::Dns { issuer: issuer?, name: name? }
    };
    Some(Identity { proof, place: table.place() })
}

fn networks(root: &Reader, known: &Known, problems: &mut Vec<Problem>) -> Networks {
    let mut builder = NetworksBuilder::new();
    root.tables("network", |table| {
        let place = table.place();
        let cidr = table.need("cidr", |text| parse_cidr(text, "", "").map_err(|problem| told(&problem)));
        let owner = table.need_text("owner");
        let ticket = table.need_text("ticket");
        let reason = table.need_text("reason");
        let expires = table.want_expiry("expires");
        let wide = table.boolean("wide", false);
        let shadow = table.boolean("shadow", false);
        let cidr = cidr?;
        if is_wide(&cidr) && wide != Some(true) {
            table.problem(
                "cidr",
                "wider than /24 (IPv4) or /56 (IPv6)",
                "narrow it, or add wide = true with the reason",
            );
        }
        let (owner, ticket, reason, expires) = (owner?, ticket?, reason?, expires?);
        let note = builder.intern(Note { owner, ticket, reason, expires, shadow: shadow?, file: place.file });
        if let Err(error) = builder.add(cidr, note, place.line) {
            table.problem("cidr", error.to_string(), "");
        }
        Some(())
    });
    root.tables("network_file", |table| {
        let path = table.need_text("path");
        let owner = table.want_text("owner");
        let ticket = table.want_text("ticket");
        let reason = table.want_text("reason");
        let expires = table.want_expiry("expires");
        let shadow = table.boolean("shadow", false);
        let (owner, ticket, reason, expires) = (owner?, ticket?, reason?, expires?);
        let defaults = Defaults { owner, ticket, reason, expires, shadow: shadow? };
        let path = path?;
        let shown = format!("{}/{path}", known.shown_directory);
        let file = known.directory.join(&path);
        known.files.borrow_mut().push(file.clone());
        if let Err(error) = std::fs::metadata(&file) {
            table.problem("path", format!("cannot be read: {error}"), "the path is relative to the partner's file");
            return None;
        }
        network_file::read(&file, &shown, &defaults, &mut builder, problems);
        Some(())
    });
    builder.build()
}

fn limits(table: &Reader) -> Option<Limits> {
    let requests = table.need("requests", parse_rate);
    let source = table.need("source", parse_rate);
    let subject = table.need("subject", parse_rate);
    let in_flight_max = table.integer("in_flight_max", 1..=1_000_000, None);
    let connections_max = table.integer("connections_max", 1..=1_000_000, Some(100));
    let shadow = shadow(table, &PARTNER_LIMITS);
    Some(Limits {
        requests: requests?,
        source: source?,
        subject: subject?,
        in_flight_max: in_flight_max? as u32,
        connections_max: connections_max? as u32,
        shadow: shadow?,
    })
}

/// Limits by their keys, with the reason that each refuses for.
pub const PARTNER_LIMITS: [(&str, Reason); 6] = [
    ("requests", Reason::RatePartner),
    ("source", Reason::RateSource),
    ("subject", Reason::RateSubject),
    ("containment", Reason::HeldPartner),
    ("in_flight_max", Reason::InFlightPartner),
    ("connections_max", Reason::ConnectionsPartner),
];
pub const GRANT_LIMITS: [(&str, Reason); 3] =
    [("requests", Reason::RateRoute), ("in_flight_max", Reason::InFlightRoute), ("budgets", Reason::BudgetGrant)];
pub const PARTNER_BUDGETS: [(&str, Reason); 3] =
    [("partner", Reason::BudgetPartner), ("actor", Reason::BudgetActor), ("people", Reason::BudgetPeople)];

fn contract(table: &Reader) -> Option<Contract> {
    let class = table.need("class", |text| match text {
        "citizen-app" => Ok(Class::CitizenApp),
        "interactive" => Ok(Class::Interactive),
        "batch" => Ok(Class::Batch),
        _ => Err("it is \"citizen-app\", \"interactive\" or \"batch\"".to_owned()),
    });
    let people_per_day = table.integer("people_per_day", 1..=i64::from(BUDGET_MAX), None);
    let consent_required = table.want("consent", |text| match text {
        "required" => Ok(true),
        "optional" => Ok(false),
        _ => Err("it is \"required\" or \"optional\"".to_owned()),
    });
    let critical = table.boolean("critical", false);
    Some(Contract {
        class: class?,
        people_per_day: people_per_day? as u32,
        consent_required: consent_required?.unwrap_or(false),
        critical: critical?,
    })
}

/// What is stated, and for the rest what follows from the contract.
fn budgets(table: &Reader, contract: Option<Contract>) -> Option<Budgets> {
    let usual = contract.map(|contract| contract.budgets()).unwrap_or_default();
    let partner = table.want_table("partner", budget);
    let actor = table.want_table("actor", budget);
    let people = table.want_table("people", budget);
    let shadow = shadow(table, &PARTNER_BUDGETS);
    Some(Budgets {
        partner: partner?.or(usual.partner),
        actor: actor?.or(usual.actor),
        people: people?.or(usual.people),
        shadow: shadow?,
    })
}

/// So many people in each window; a window that is not stated is not counted.
fn budget(table: &Reader) -> Option<Budget> {
    let mut budget = Budget::default();
    for window in Window::ALL {
        if table.has(window.as_str()) {
            let most = table.integer(window.as_str(), 1..=i64::from(BUDGET_MAX), None)?;
            budget.most[window as usize] = Some(most as u32);
        }
    }
    if budget.horizon().is_none() {
        table.problem("day", "a budget without any window", "add hour, day or month, such as { day = 2000 }");
        return None;
    }
    Some(budget)
}

/// Which limits of a table are only watched.
fn shadow(table: &Reader, limits: &[(&str, Reason)]) -> Option<Shadow> {
    let reasons = table.texts("shadow", |text| {
        let limit = limits.iter().find(|(key, _)| *key == text);
        limit.map(|(_, reason)| *reason).ok_or_else(|| {
            let known = limits.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(", ");
            format!("it is a list of limits of this table, which are: {known}")
        })
    });
    Some(reasons?.into_iter().collect())
}

fn grant(table: &Reader, known: &Known) -> Option<Grant> {
    let route = table.reference("route", "route", known.route_names, |text| {
        known.routes.iter().position(|route| *route.name == *text).map(|at| RouteId(at as u16))
    });
    let purposes = table.texts("purposes", purpose);
    let requests = table.want("requests", parse_rate);
    let in_flight_max = if table.has("in_flight_max") {
        table.integer("in_flight_max", 1..=1_000_000, None).map(Some)
    } else {
        Some(None)
    };
    let budgets = table.want_table("budgets", budget);
    let max_people = people_of_one_answer(table, None);
    let shadow = shadow(table, &GRANT_LIMITS);
    for (key, reason) in GRANT_LIMITS {
        if shadow.is_some_and(|shadow| shadow.contains(reason)) && !table.has(key) {
            table.problem(
                "shadow",
                format!("there is no {key} here to be in shadow"),
                format!("add {key}, or remove it from the list"),
            );
        }
    }
    let (route, purposes) = (route?, purposes?);
    match &known.routes[usize::from(route.0)].kind {
        RouteKind::Lookup(_) if purposes.is_empty() => {
            table.problem("purposes", "a grant to look people up names its purposes", "add purposes = [\"care\"]");
        }
        RouteKind::Lookup(lookup) if lookup.purpose.is_none() && purposes.len() > 1 => {
            let hint = "declare purpose = \"body:/purpose\" on the route, or grant one purpose";
            table.problem("purposes", "several purposes, but the route has no place to name one", hint);
        }
        RouteKind::Pass(_) if table.has("budgets") || table.has("max_people") => {
            let key = if table.has("budgets") { "budgets" } else { "max_people" };
            table.problem(key, "nobody is looked up on a route that is passed through", "remove it");
        }
        RouteKind::Pass(_) if !purposes.is_empty() => {
            table.problem("purposes", "a route that is passed through has no purposes", "remove them");
        }
        _ => {}
    }
    Some(Grant {
        route,
        purposes,
        requests: requests?,
        in_flight_max: in_flight_max?.map(|max| max as u32),
        budgets: budgets?,
        max_people: max_people?,
        shadow: shadow?,
        place: table.place(),
    })
}

/// How many people one answer holds at the most, where it is said.
pub fn people_of_one_answer(table: &Reader, default: Option<u16>) -> Option<Option<u16>> {
    if !table.has("max_people") {
        return Some(default);
    }
    table.integer("max_people", 1..=10_000, None).map(|most| Some(most as u16))
}

fn hours(table: &Reader) -> Option<Hours> {
    const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let named = table.texts("days", |text| {
        NAMES.iter().position(|name| *name == text).ok_or("days are mon, tue, wed, thu, fri, sat and sun".to_owned())
    });
    let from = table.need("from", parse_minute);
    let to = table.need("to", parse_minute);
    let utc_offset_minutes = table.need("utc_offset", |text| {
        let sign = if text.starts_with('-') { -1 } else { 1 };
        let minutes = text
            .strip_prefix(['+', '-'])
            .ok_or(())
            .and_then(|text| parse_minute(text).map_err(drop))
            .map_err(|()| "it is an offset such as \"+05:30\"".to_owned())?;
        Ok(sign * minutes as i16)
    });
    let (from, to) = (from?, to?);
    if from >= to {
        table.problem("to", "not after from", "hours lie within one day");
    }
    let mut days = [false; 7];
    for day in named? {
        days[day] = true;
    }
    Some(Hours { days, from, to, utc_offset_minutes: utc_offset_minutes? })
}

fn parse_minute(text: &str) -> Result<u16, String> {
    let parsed = text.split_once(':').and_then(|(hour, minute)| {
        let two = |text: &str| (text.len() == 2).then(|| number(text)).flatten().map(|number| number as u16);
        Some((two(hour)?, two(minute)?))
    });
    match parsed {
        Some((hour, minute)) if minute < 60 && (hour < 24 || (hour, minute) == (24, 0)) => Ok(hour * 60 + minute),
        _ => Err("it is a time such as \"08:00\", at the latest \"24:00\"".to_owned()),
    }
}

/// Reads a rate such as `50/s burst 100`; without a burst, one period's worth.
pub fn parse_rate(text: &str) -> Result<Rate, String> {
    let wrong = || "it is a rate such as \"50/s\", \"6/h burst 3\"; periods are s, min, h and d".to_owned();
    let (rate, burst) = text.split_once(" burst ").map_or((text, None), |(rate, burst)| (rate, Some(burst)));
    let (count, period) = rate.split_once('/').ok_or_else(wrong)?;
    let number = |text: &str| number(text).filter(|number| (1..=1_000_000_000).contains(number));
    let count = number(count.trim()).ok_or_else(wrong)?;
    let seconds = match period.trim() {
        "s" => 1,
        "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let burst = burst.map_or(Some(count), |burst| number(burst.trim())).ok_or_else(wrong)?;
    let period = Duration::from_secs(seconds);
    // A full bucket may be at most 100 years of the rate: the limiter counts nanoseconds in 64 bits.
    let fits = (period / count).as_nanos() * u128::from(burst) <= Duration::from_secs(100 * 366 * 86_400).as_nanos();
    if !fits {
        return Err("the burst is more than a hundred years of the rate".to_owned());
    }
    Ok(Rate { count, period, burst })
}

/// Digits and nothing else: `parse` would take a sign.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A purpose as partners' systems code it, such as `care` or `PUBHLTH`; compared letter by letter.
fn purpose(text: &str) -> Result<Arc<str>, String> {
    let fits = (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if fits { Ok(text.into()) } else { Err("a purpose is 1 to 64 letters, digits and '-', '_', '.'".to_owned()) }
}

/// A time from which something holds; a date means from its beginning.
fn parse_start(text: &str) -> Option<Timestamp> {
    Timestamp::parse(text).or_else(|| Timestamp::parse(&format!("{text}T00:00:00Z")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_state_their_period() {
        let rate = |count, seconds, burst| Some(Rate { count, period: Duration::from_secs(seconds), burst });
        for (text, parsed) in [
            ("50/s", rate(50, 1, 50)),
            ("50/s burst 100", rate(50, 1, 100)),
            ("6/h burst 3", rate(6, 3_600, 3)),
            ("1/d", rate(1, 86_400, 1)),
            ("2/min burst 1", rate(2, 60, 1)),
            ("0/s", None),
            ("5/s burst 0", None),
            ("1/d burst 300000", None),
            ("+5/s", None),
            ("5", None),
            ("5/m", None),
            ("-5/s", None),
            ("5/s burst", None),
            ("", None),
        ] {
            assert_eq!(parse_rate(text).ok(), parsed, "{text}");
        }
    }

    #[test]
    fn minutes_of_a_day() {
        for (text, minute) in [
            ("00:00", Some(0)),
            ("08:30", Some(510)),
            ("24:00", Some(1440)),
            ("24:01", None),
            ("8:30", None),
            ("08:60", None),
            ("", None),
        ] {
            assert_eq!(parse_minute(text).ok(), minute, "{text}");
        }
    }
}
