//! Novelty: a partner serves people of its own region and trade, and so asks for numbers from the same series again and
//! again. A list from elsewhere shows as first contacts in series that are rare with it. Says nothing of partners that serve the
//! whole country: what is usual is learned.
//!
//! A log-likelihood ratio: the partner's own mix of series, seen ones by their counts and all others by the share of newcomers
//! (Good and Turing), against one to which all series are alike. Part of every list is from the partner's region, so the mix it
//! is held against is partly the partner's own.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::params::Params;
use crate::subject::{Kind, Mark};

#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Novelty {
    kinds: [Series; Kind::ALL.len()],
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Series {
    /// First contacts in each series, by the beginning of its mark.
    counts: HashMap<u32, u16>,
    total: u32,
    /// The share of first contacts in a series that was not met before.
    strange: Option<f32>,
}

/// Where a first contact lies, under the key of its epoch and, while they overlap, under the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    now: u32,
    before: Option<u32>,
}

impl Place {
    pub fn of(series: Mark, before: Option<Mark>) -> Place {
        let short = |mark: Mark| u32::from_le_bytes(mark.as_bytes()[..4].try_into().unwrap_or_default());
        Place { now: short(series), before: before.map(short) }
    }
}

/// First contacts of a kind before anything is said.
const TOTAL_LEAST: u32 = 200;
/// Then all counts are halved: what is usual changes, and memory is bounded.
const TOTAL_MOST: u32 = 50_000;
const SERIES_MAX: usize = 16_384;
const RATE: f32 = 0.01;
/// What is added to each count: few first contacts in a series are an accident as well.
const SMOOTH: f32 = 1.0;
/// In nats: where counts are small, the estimate errs a little in favour of the list.
const MARGIN: f32 = 0.05;
/// Of a list, what is not from the partner's region.
const FOREIGN: f32 = 0.6;

/// How many series numbers of a kind come from, about. Too many weakens what is said, and wrongs nobody.
const fn series(kind: Kind) -> Option<f32> {
    match kind {
        Kind::Mobile => Some(2_500.0),
        Kind::Beneficiary => Some(1_000.0),
        _ => None,
    }
}

impl Series {
    fn count(&self, place: Place) -> u16 {
        let of = |short: u32| self.counts.get(&short).copied().unwrap_or_default();
        of(place.now).max(place.before.map_or(0, of))
    }
}

impl Novelty {
    /// Whether its series is one of the partner's own, as far as that says anything: who serves the whole country has none.
    pub fn is_ordinary(&self, params: &Params, kind: Kind, place: Place) -> bool {
        self.kinds[kind as usize].total >= TOTAL_LEAST && self.say(params, kind, place) <= 0.0
    }

    pub fn say(&self, params: &Params, kind: Kind, place: Place) -> f32 {
        let known = &self.kinds[kind as usize];
        let Some(all) = series(kind).filter(|_| params.on.novelty && known.total >= TOTAL_LEAST) else { return 0.0 };
        let strange = known.strange.unwrap_or(1.0).clamp(0.01, 0.99);
        let ratio = match known.count(place) {
            0 => (1.0 - known.counts.len() as f32 / all).max(0.01) / strange,
            count => {
                let met = known.counts.len() as f32;
                (known.total as f32 + SMOOTH * met) / (all * (f32::from(count) + SMOOTH) * (1.0 - strange))
            }
        };
        (FOREIGN * ratio + 1.0 - FOREIGN).ln().min(2.5) - MARGIN
    }

    /// Only from quiet times, and only from people who exist.
    pub fn learn(&mut self, kind: Kind, place: Place) {
        let known = &mut self.kinds[kind as usize];
        let count = known.count(place);
        let met = if count == 0 { 1.0 } else { 0.0 };
        // The first ones are all strange and say nothing of later ones.
        let share = known.strange.get_or_insert(met);
        let rate = RATE.max(1.0 / (1.0 + known.total as f32));
        *share += rate * (met - *share);
        if known.counts.len() < SERIES_MAX || count > 0 {
            known.counts.insert(place.now, count.saturating_add(1));
            known.total += 1;
        }
        if known.total >= TOTAL_MOST {
            known.counts.retain(|_, count| {
                *count /= 2;
                *count > 0
            });
            known.total = known.counts.values().map(|count| u32::from(*count)).sum();
        }
    }
}
