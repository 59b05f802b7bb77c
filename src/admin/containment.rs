//! What is answered to commands about who stands where?

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Outcome, waited};
use crate::clock::Timestamp;
use crate::containment::{By, Moved};
use crate::detect::Standing;
use crate::gateway::Gateway;
use crate::policy::containment::Level;
use crate::policy::lookup::Actor;
use crate::state::PartnerState;
use crate::state::orders::{Freeze, Held, Order};
use crate::subject::Mark;

/// When a step falls back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// After so many milliseconds, by the gateway's clock.
    After(u64),
    At(Timestamp),
}

/// Whom a command is about.
pub struct Whom<'a> {
    pub partner: &'a str,
    /// In clear, as asserted by the partner.
    pub actor: Option<&'a str>,
}

pub async fn contain(
    whom: Whom<'_>,
    level: Level,
    end: End,
    reason: String,
    by: String,
    gateway: Arc<Gateway>,
) -> Answer {
    let snapshot = gateway.snapshot();
    let known = snapshot.policy.partners.iter().find(|known| *known.name == *whom.partner);
    let Some(partner) = known.map(|known| known.name.clone()) else { return nobody(whom.partner, &gateway) };
    let marks = match marks(whom.actor, &gateway) {
        Ok(marks) => marks,
        Err(line) => return denied(line),
    };
    let since = gateway.clock.now();
    let until = match end {
        End::After(millis) => since.plus(Duration::from_millis(millis)),
        End::At(time) => time,
    };
    if level == Level::Open {
        return denied("open is no step that holds anybody: `dwarpal release` takes one back".to_owned());
    }
    if until <= since {
        return denied(format!("{until} is over: name a time that is still to come, or --for"));
    }
    let overlap = snapshot.settings.epochs.overlap;
    if marks.is_some() && until > since.plus(overlap) {
        let days = overlap.as_secs() / 86_400;
        return denied(format!(
            "an actor is known by a mark that outlives its key by epochs.overlap ({days}d): contain it for less, and again then"
        ));
    }
    // Of the two marks of an overlap only the new one is used from now on.
    let before = marks.and_then(|(_, previous)| gateway.state().set_order(&(partner.clone(), Some(previous?)), None));
    let held: Held = (partner.clone(), marks.map(|(mark, _)| mark));
    let order = Order { level, since, until, by: by.clone(), reason: reason.clone() };
    let before = gateway.state().set_order(&held, Some(order)).or(before).filter(|order| order.until > since);
    let from = before.map_or(Level::Open, |order| order.level);
    gateway.moved(&Moved {
        partner: &partner,
        actor: held.1,
        from,
        to: level,
        until: Some(until),
        by: By::Operator(&by),
        reason: &reason,
    });
    let name = named(&partner, held.1);
    let mut lines = vec![format!("{name}: {level} (was {from}) until {}", second(until))];
    if gateway.state().freeze_of(&partner).is_some() {
        lines.push(format!("{partner} is frozen beside that, until it is thawed"));
    }
    kept(lines, gateway).await
}

pub async fn release(whom: Whom<'_>, reason: String, by: String, gateway: Arc<Gateway>) -> Answer {
    let marks = match marks(whom.actor, &gateway) {
        Ok(marks) => marks,
        Err(line) => return denied(line),
    };
    let configured = gateway.snapshot().policy.partners.iter().any(|known| *known.name == *whom.partner);
    let ordered = gateway.state().ordered();
    // One that was contained and then taken out of the configuration can still be released.
    if !configured && !ordered.iter().any(|((partner, _), _)| **partner == *whom.partner) {
        return nobody(whom.partner, &gateway);
    }
    let partner: Arc<str> = whom.partner.into();
    let now = gateway.clock.now();
    let mut lines = Vec::new();
    let all = match marks {
        None => vec![None],
        Some((mark, previous)) => [Some(mark), previous].into_iter().flatten().map(Some).collect(),
    };
    for actor in all {
        let before = gateway.state().set_order(&(partner.clone(), actor), None).filter(|order| order.until > now);
        let ordered = before.map_or(Level::Open, |order| order.level);
        let state = gateway.state().partner(&partner);
        let found = automatic(&state, now).into_iter().find(|(held, ..)| *held == actor);
        // What evidence took is given back as well, and the evidence begins anew.
        if found.is_some() {
            state.watch().release(actor, now);
        }
        let (from, to) = (ordered.max(found.map_or(Level::Open, |(_, level, _)| level)), Level::Open);
        if from == to {
            continue;
        }
        gateway.moved(&Moved {
            partner: &partner,
            actor,
            from,
            to,
            until: None,
            by: By::Operator(&by),
            reason: &reason,
        });
        lines.push(format!("{}: open (was {from})", named(&partner, actor)));
    }
    gateway.alerts.release(&partner, whom.actor);
    if lines.is_empty() {
        lines.push(format!("{} was not contained", named(&partner, marks.map(|(mark, _)| mark))));
    }
    if gateway.state().freeze_of(&partner).is_some() {
        lines.push(format!("{partner} is still frozen; `dwarpal thaw {partner}` ends that"));
    }
    kept(lines, gateway).await
}

/// Who stands where: of everybody, or of one partner.
pub fn standing(gateway: &Gateway, only: Option<&str>, json: bool) -> Answer {
    let (snapshot, now) = (gateway.snapshot(), gateway.clock.now());
    let (mut frozen, mut ordered) = (gateway.state().frozen(), gateway.state().ordered());
    ordered.retain(|(_, order)| order.until > now);
    if let Some(only) = only {
        frozen.retain(|(partner, _)| **partner == *only);
        ordered.retain(|((partner, _), _)| **partner == *only);
        let configured = snapshot.policy.partners.iter().any(|known| *known.name == *only);
        if !configured && frozen.is_empty() && ordered.is_empty() {
            return nobody(only, gateway);
        }
    }
    let freezes = frozen.into_iter().map(|(partner, Freeze { since, by, reason })| {
        let stands = Stands { level: Level::Frozen, since: Some(since), until: None, by: Some(by), reason };
        ((partner, None), stands)
    });
    let orders = ordered.into_iter().map(|(held, Order { level, since, until, by, reason })| {
        (held, Stands { level, since: Some(since), until: Some(until), by: Some(by), reason })
    });
    let partners = snapshot.policy.partners.iter().zip(&snapshot.states);
    let partners = partners.filter(|(partner, _)| only.is_none_or(|only| *partner.name == *only));
    let evident = partners.flat_map(|(partner, state)| {
        let stands = automatic(state, now).into_iter().map(|(actor, level, until)| {
            let reason = "the evidence that its alert tells of".to_owned();
            ((partner.name.clone(), actor), Stands { level, since: None, until, by: None, reason })
        });
        stands.collect::<Vec<_>>()
    });
    let mut all: Vec<(Held, Stands)> = freezes.chain(orders).chain(evident).collect();
    all.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut lines: Vec<String> = all
        .iter()
        .map(
            |((partner, actor), stands)| {
                if json { stands.as_json(partner, *actor) } else { stands.in_words(partner, *actor) }
            },
        )
        .collect();
    if lines.is_empty() && !json {
        lines.push(match only {
            Some(partner) => format!("{partner}: open"),
            None => format!("open to all {} partners", snapshot.policy.partners.len()),
        });
    }
    Answer { outcome: Outcome::Done, lines }
}

/// Where evidence has put a partner and its actors, as far as it is not open to them.
fn automatic(state: &PartnerState, now: Timestamp) -> Vec<(Option<Mark>, Level, Option<Timestamp>)> {
    let Standing { level, until, actors, .. } = state.watch().standing(now);
    let actors = actors.into_iter().map(|(mark, hold)| (Some(mark), hold.level, hold.until));
    let all = [(None, level, until)].into_iter().chain(actors);
    all.filter(|(_, level, _)| *level != Level::Open).collect()
}

/// One line of `standing`.
struct Stands {
    level: Level,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    /// `None`: by evidence.
    by: Option<String>,
    reason: String,
}

impl Stands {
    fn in_words(&self, partner: &str, actor: Option<Mark>) -> String {
        let Stands { level, since, until, by, reason } = self;
        let until = match (until, by) {
            (Some(until), _) => second(*until),
            (None, Some(_)) => "it is thawed".to_owned(),
            (None, None) => "it is released".to_owned(),
        };
        let since = since.map_or(String::new(), |since| format!(" since {}", second(since)));
        let by = by.as_ref().map_or("automatically".to_owned(), |by| format!("by an operator ({by})"));
        format!("{}: {level}{since} until {until}, {by}: {reason}", named(partner, actor))
    }

    fn as_json(&self, partner: &str, actor: Option<Mark>) -> String {
        let Stands { level, since, until, by, reason } = self;
        let line = serde_json::json!({
            "partner": partner,
            "actor": actor,
            "level": level,
            "since": since,
            "until": until,
            "automatic": by.is_none(),
            "by": by,
            "reason": reason,
        });
        line.to_string()
    }
}

fn second(time: Timestamp) -> String {
    Timestamp::from_unix_seconds(time.unix_seconds()).to_string()
}

/// An actor is named by its mark: its name is the partner's, and rests nowhere.
fn named(partner: &str, actor: Option<Mark>) -> String {
    actor.map_or(partner.to_owned(), |actor| format!("{partner}, actor {actor} (as asserted by {partner})"))
}

/// An actor's mark, and the one by which it may be known from before.
fn marks(actor: Option<&str>, gateway: &Gateway) -> Result<Option<(Mark, Option<Mark>)>, String> {
    let Some(actor) = actor else { return Ok(None) };
    let Some(actor) = Actor::parse(actor) else {
        return Err("--actor takes an opaque id as the partner sends it: 1 to 64 letters, digits and . _ @ -, \
                    and nothing that looks like a person's number"
            .to_owned());
    };
    let keys = gateway.epochs();
    let previous = keys.previous(gateway.clock.now()).map(|key| key.actor(actor.as_str()));
    Ok(Some((keys.current().actor(actor.as_str()), previous)))
}

/// It holds. That it is on the disk, too, is what the operator waits for.
async fn kept(mut lines: Vec<String>, gateway: Arc<Gateway>) -> Answer {
    waited(move || match gateway.state().keep_orders() {
        Ok(()) => Answer { outcome: Outcome::Done, lines },
        Err(error) => {
            tracing::error!(%error, "this will not survive a restart");
            lines.push(format!("but it will not survive a restart: {error}"));
            Answer { outcome: Outcome::Failed, lines }
        }
    })
    .await
}

fn nobody(partner: &str, gateway: &Gateway) -> Answer {
    let snapshot = gateway.snapshot();
    let names: Vec<_> = snapshot.policy.partners.iter().map(|partner| &*partner.name).collect();
    Answer { outcome: Outcome::Unknown, lines: vec![format!("no partner {partner}; there are: {}", names.join(", "))] }
}

fn denied(line: String) -> Answer {
    Answer { outcome: Outcome::Denied, lines: vec![line] }
}
