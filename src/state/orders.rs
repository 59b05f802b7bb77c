//! What did operators order, since when, until when, by whom and why? Freezes, and steps of the ladder for a partner or for one
//! of its actors. A small file of its own: an order must not hang on a journal.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::store::{StoreError, replace};
use crate::clock::Timestamp;
use crate::policy::containment::{Footing, Level};
use crate::subject::Mark;

/// A partner's freeze: it lasts until it is thawed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    pub since: Timestamp,
    /// The operator, as the kernel knows it.
    pub by: String,
    pub reason: String,
}

/// That somebody is to stand on a step of the ladder, for a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub level: Level,
    pub since: Timestamp,
    /// The first instant at which it is over.
    pub until: Timestamp,
    pub by: String,
    pub reason: String,
}

/// Whom an order holds: a partner, or one of its actors by the mark under the key of the epoch in which it was given.
pub type Held = (Arc<str>, Option<Mark>);

/// All of them, by name. One of a partner that is not configured any more stays: it may come back.
#[derive(Debug, Default)]
pub struct Orders {
    freezes: BTreeMap<Arc<str>, Freeze>,
    orders: BTreeMap<Held, Order>,
}

/// What orders say of one partner, for its requests.
#[derive(Debug, Default)]
pub struct Hold {
    partner: Option<(Level, Timestamp)>,
    actors: HashMap<Mark, (Level, Timestamp)>,
}

const FILE: &str = "freezes.json";
/// Version 1 knew freezes only.
const VERSION: u64 = 2;

impl Hold {
    /// The strictest that holds the partner, and the actor under either of its marks.
    pub fn footing(&self, actor: Option<Mark>, previous: Option<Mark>, now: Timestamp) -> Footing {
        let level = |order: Option<&(Level, Timestamp)>| match order {
            Some((level, until)) if *until > now => *level,
            _ => Level::Open,
        };
        let of = |mark: Option<Mark>| level(mark.and_then(|mark| self.actors.get(&mark)));
        Footing { partner: level(self.partner.as_ref()), actor: of(actor).max(of(previous)) }
    }
}

impl Orders {
    pub fn load(directory: &Path) -> Result<Orders, StoreError> {
        let path = directory.join(FILE);
        let failed = |what: String| StoreError {
            path: path.clone(),
            what,
            hint: "mend it, or remove it and freeze or contain again whoever has to be",
        };
        match fs::read_to_string(&path) {
            Ok(text) => parse(&text).ok_or_else(|| failed("it is not what this gateway wrote".to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Orders::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// As [`save`] writes it.
    pub fn document(&self) -> Value {
        let freezes = self.freezes.iter().map(|(partner, freeze)| {
            let Freeze { since, by, reason } = freeze;
            json!({ "partner": &**partner, "since": since, "by": by, "reason": reason })
        });
        let orders = self.orders.iter().map(|((partner, actor), order)| {
            let Order { level, since, until, by, reason } = order;
            json!({
                "partner": &**partner, "actor": actor, "level": level,
                "since": since, "until": until, "by": by, "reason": reason,
            })
        });
        json!({
            "version": VERSION, "frozen": freezes.collect::<Vec<_>>(), "contained": orders.collect::<Vec<_>>(),
        })
    }

    pub fn freeze_of(&self, partner: &str) -> Option<&Freeze> {
        self.freezes.get(partner)
    }

    pub fn freezes(&self) -> impl Iterator<Item = (&Arc<str>, &Freeze)> {
        self.freezes.iter()
    }

    /// Those of partners come before those of their actors.
    pub fn iter(&self) -> impl Iterator<Item = (&Held, &Order)> {
        self.orders.iter()
    }

    pub fn freeze(&mut self, partner: &Arc<str>, freeze: Option<Freeze>) {
        match freeze {
            Some(freeze) => drop(self.freezes.insert(partner.clone(), freeze)),
            None => drop(self.freezes.remove(partner)),
        }
    }

    /// Puts an order in the place of the one before, which is returned.
    pub fn set(&mut self, held: &Held, order: Option<Order>) -> Option<Order> {
        match order {
            Some(order) => self.orders.insert(held.clone(), order),
            None => self.orders.remove(held),
        }
    }

    /// Takes out what is over.
    pub fn expire(&mut self, now: Timestamp) -> Vec<(Held, Order)> {
        let over: Vec<Held> =
            self.orders.iter().filter(|(_, order)| order.until <= now).map(|(held, _)| held.clone()).collect();
        over.into_iter().filter_map(|held| self.orders.remove_entry(&held)).collect()
    }

    /// What they say of one partner; `None`: nothing.
    pub fn hold(&self, partner: &str) -> Option<Hold> {
        let mut hold = None::<Hold>;
        for ((_, actor), order) in self.orders.iter().filter(|((name, _), _)| **name == *partner) {
            let (hold, order) = (hold.get_or_insert_default(), (order.level, order.until));
            match actor {
                Some(actor) => drop(hold.actors.insert(*actor, order)),
                None => hold.partner = Some(order),
            }
        }
        hold
    }
}

pub fn save(directory: &Path, document: &Value) -> io::Result<()> {
    replace(&directory.join(FILE), format!("{document:#}\n").as_bytes())
}

/// `None` for anything but what [`save`] writes, now or in version 1: half of it would free the other half.
fn parse(text: &str) -> Option<Orders> {
    let document: Value = serde_json::from_str(text).ok()?;
    let version = document["version"].as_u64()?;
    if !(1..=VERSION).contains(&version) {
        return None;
    }
    let text = |entry: &Value, key: &str| entry[key].as_str().map(str::to_owned);
    let time = |entry: &Value, key: &str| Timestamp::parse(entry[key].as_str()?);
    let freeze = |entry: &Value| {
        let freeze = Freeze { since: time(entry, "since")?, by: text(entry, "by")?, reason: text(entry, "reason")? };
        Some((text(entry, "partner")?.into(), freeze))
    };
    let order = |entry: &Value| {
        let actor = serde_json::from_value(entry.get("actor")?.clone()).ok()?;
        let order = Order {
            level: Level::parse(entry["level"].as_str()?)?,
            since: time(entry, "since")?,
            until: time(entry, "until")?,
            by: text(entry, "by")?,
            reason: text(entry, "reason")?,
        };
        Some(((text(entry, "partner")?.into(), actor), order))
    };
    let freezes = document["frozen"].as_array()?.iter().map(freeze).collect::<Option<_>>()?;
    let orders = match version {
        1 => BTreeMap::new(),
        _ => document["contained"].as_array()?.iter().map(order).collect::<Option<_>>()?,
    };
    Some(Orders { freezes, orders })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINCE: Timestamp = Timestamp::from_unix_seconds(1);
    const UNTIL: Timestamp = Timestamp::from_unix_seconds(100);

    fn freeze() -> Freeze {
        Freeze { since: SINCE, by: "uid 0".into(), reason: "a \"test\"".into() }
    }

    fn order(level: Level) -> Order {
        Order { level, since: SINCE, until: UNTIL, by: "uid 0".into(), reason: "INC-7".into() }
    }

    fn mark(byte: u8) -> Mark {
        Mark::from_bytes([byte; 16])
    }

    fn orders() -> Orders {
        let mut orders = Orders::default();
        orders.freeze(&"icmr".into(), Some(freeze()));
        orders.set(&("icmr".into(), None), Some(order(Level::KnownOnly)));
        orders.set(&("icmr".into(), Some(mark(7))), Some(order(Level::Frozen)));
        orders.set(&("beta".into(), Some(mark(8))), Some(order(Level::ConsentOnly)));
        orders
    }

    #[test]
    fn a_file_that_is_not_whole_stops_the_start() {
        let home = tempfile::TempDir::new().expect("directory");
        save(home.path(), &orders().document()).expect("saved");
        let loaded = Orders::load(home.path()).expect("loaded");
        assert_eq!(loaded.document(), orders().document());
        assert_eq!(loaded.freeze_of("icmr"), Some(&freeze()));
        let path = home.path().join(FILE);
        let whole = fs::read_to_string(&path).expect("text");
        for bad in [
            "",
            "{}",
            &whole[..whole.len() / 2],
            &whole.replace("since", "when"),
            &whole.replace(": 2", ": 3"),
            &whole.replace("known-only", "known"),
            &whole.replace("until", "up to"),
            &whole.replace("0707", "07"),
            &whole.replace("\"contained\"", "\"held\""),
        ] {
            fs::write(&path, bad).expect("written");
            let error = Orders::load(home.path()).expect_err(bad).to_string();
            assert!(error.contains("freezes.json: it is not"), "{error}");
        }
    }

    #[test]
    fn freezes_of_version_1_are_read() {
        let home = tempfile::TempDir::new().expect("directory");
        let entry = json!({ "partner": "icmr", "since": SINCE, "by": "uid 0", "reason": "a \"test\"" });
        save(home.path(), &json!({ "version": 1, "frozen": [entry] })).expect("saved");
        let loaded = Orders::load(home.path()).expect("loaded");
        assert_eq!((loaded.freeze_of("icmr"), loaded.iter().count()), (Some(&freeze()), 0));
    }

    #[test]
    fn an_order_holds_its_partner_or_actor_until_its_end() {
        let orders = orders();
        let before = Timestamp::from_nanos(UNTIL.as_nanos() - 1);
        let hold = orders.hold("icmr").expect("held");
        let footing = |partner, actor| Footing { partner, actor };
        use Level::*;
        for (actor, previous, now, expected) in [
            (None, None, SINCE, footing(KnownOnly, Open)),
            (Some(7), None, SINCE, footing(KnownOnly, Frozen)),
            (Some(7), None, before, footing(KnownOnly, Frozen)),
            (Some(7), None, UNTIL, footing(Open, Open)),
            // Given under the key before.
            (Some(1), Some(7), SINCE, footing(KnownOnly, Frozen)),
            (Some(8), None, SINCE, footing(KnownOnly, Open)),
        ] {
            assert_eq!(hold.footing(actor.map(mark), previous.map(mark), now), expected, "{actor:?} {previous:?}");
        }
        let beta = orders.hold("beta").expect("held");
        assert_eq!(beta.footing(Some(mark(8)), None, SINCE), footing(Open, ConsentOnly));
        assert!(orders.hold("gamma").is_none());
    }

    #[test]
    fn what_is_over_is_taken_out_once() {
        let mut orders = orders();
        assert_eq!(orders.expire(Timestamp::from_unix_seconds(99)).len(), 0);
        assert_eq!(orders.expire(UNTIL).len(), 3);
        assert_eq!((orders.expire(UNTIL).len(), orders.iter().count()), (0, 0));
        assert!(orders.freeze_of("icmr").is_some(), "a freeze has no end of its own");
    }
}
