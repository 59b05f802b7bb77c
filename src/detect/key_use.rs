//! Key use: the partner's credential from an address it never used, or at hours when it never works.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::evidence::Unit;
use super::params::Params;
use crate::clock::Timestamp;
use crate::policy::charge::site;

/// When a partner works: hours of weekdays and of weekends, the newest days weighing most.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hours {
    weight: Vec<f32>,
    total: f32,
    today: u32,
}

impl Default for Hours {
    fn default() -> Hours {
        Hours { weight: vec![0.0; 48], total: 0.0, today: 0 }
    }
}

const TOTAL_LEAST: f32 = 200.0;
const FADE: f32 = 0.95;
/// The share of a day's lookups in an hour that is unusual.
const UNUSUAL: f32 = 0.012;

fn slot(now: Timestamp) -> (usize, usize) {
    let hours = now.unix_seconds() / 3_600;
    // The first of January 1970 was a Thursday.
    let weekend = (hours / 24 + 3) % 7 >= 5;
    ((hours % 24) as usize, if weekend { 24 } else { 0 })
}

impl Hours {
    pub fn say(&self, params: &Params, now: Timestamp) -> f32 {
        if !params.on.key_use || self.total < TOTAL_LEAST {
            return 0.0;
        }
        let (hour, half) = slot(now);
        // Weekends are seldom: what is usual on a weekday is not strange on one.
        let at = |hour: usize| self.weight[hour % 24] + self.weight[24 + hour % 24];
        let near = at(hour).max(0.5 * at(hour + 1)).max(0.5 * at(hour + 23)).max(2.0 * self.weight[half + hour]);
        (UNUSUAL / (near / self.total + 0.0005)).ln().clamp(-1.0, 1.5)
    }

    /// Lookups that this hour has on an ordinary day.
    pub fn expected(&self, now: Timestamp) -> f32 {
        let (hour, half) = slot(now);
        let days = if half == 0 { 5.0 / 7.0 } else { 2.0 / 7.0 };
        // A day that is gone weighs FADE less than the one after it.
        self.weight[half + hour] * (1.0 - FADE) / days
    }

    pub fn learn(&mut self, now: Timestamp) {
        let day = (now.unix_seconds() / 86_400) as u32;
        if day > self.today {
            self.today = day;
            self.weight.iter_mut().for_each(|weight| *weight *= FADE);
            self.total *= FADE;
        }
        let (hour, half) = slot(now);
        self.weight[half + hour] += 1.0;
        self.total += 1.0;
    }
}

/// Where a partner calls from. Bounded: the one unused for longest makes room.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Sources {
    all: Vec<Source>,
    /// The share of calls from a new source in quiet times: high where callers roam.
    roaming: f32,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Source {
    pub address: IpAddr,
    pub since: Timestamp,
    last: Timestamp,
    pub unit: Unit,
}

const ROAMING_LEAST: f32 = 0.02;
const RATE: f32 = 0.001;

impl Sources {
    /// The place of the source of this call.
    pub fn place(&mut self, address: IpAddr, now: Timestamp, most: usize) -> usize {
        let address = site(address);
        if let Some(place) = self.all.iter().position(|source| source.address == address) {
            self.all[place].last = now;
            return place;
        }
        let fresh = Source { address, since: now, last: now, unit: Unit::default() };
        if self.all.len() < most {
            self.all.push(fresh);
            return self.all.len() - 1;
        }
        let oldest = (0..self.all.len()).min_by_key(|place| self.all[*place].last).unwrap_or_default();
        self.all[oldest] = fresh;
        oldest
    }

    pub fn at(&mut self, place: usize) -> &mut Source {
        &mut self.all[place]
    }

    pub fn is_new(&self, params: &Params, place: usize, began: Timestamp, now: Timestamp) -> bool {
        let source = &self.all[place];
        params.on.key_use && now.since(began) >= params.learn_for && now.since(source.since) < params.source_new_for
    }

    pub fn say(&self, params: &Params, new: bool) -> f32 {
        if !params.on.key_use {
            return 0.0;
        }
        if new { (0.5 / self.roaming.max(ROAMING_LEAST)).ln().clamp(0.0, 1.2) } else { -0.5 }
    }

    pub fn learn(&mut self, new: bool) {
        self.roaming += RATE * (if new { 1.0 } else { 0.0 } - self.roaming);
    }

    pub fn all(&self) -> &[Source] {
        &self.all
    }
}
