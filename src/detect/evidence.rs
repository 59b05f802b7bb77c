//! What has been folded up about a partner, an actor or a source, and how it adds up.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ladder::Hold;
use super::leeway::Leeway;
use super::params::Params;
use super::volume::Pace;
use crate::clock::Timestamp;

/// One line of evidence, kept as a CUSUM that never falls below zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Part {
    Guess,
    Stale,
    Invalid,
    Neighbour,
    Series,
    Hour,
    Source,
    Watched,
    Canary,
}

const PARTS: usize = 9;

/// The detector's name on alerts.
pub const INTEREST: &str = "people-of-interest";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Unit {
    parts: [f32; PARTS],
    at: Timestamp,
    pub pace: Pace,
    /// The change point: evidence was near zero until then.
    pub since: Timestamp,
    /// People disclosed, and first contacts, from the change point on.
    pub exposed: u32,
    pub contacts: u32,
    pub hold: Option<Hold>,
    /// While it is held by evidence.
    pub leeway: Leeway,
    pub warned: Timestamp,
    pub canaries: u32,
    /// When it was last let go.
    pub freed: Timestamp,
    /// How often it was held since it was last at peace.
    pub holds: u8,
}

/// The sum, and who contributed most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    pub nats: f32,
    pub top: Vec<(&'static str, f32)>,
}

impl Unit {
    /// Lets evidence fade. Returns the tops of a day that ended in quiet.
    pub fn pass(&mut self, params: &Params, now: Timestamp) -> Option<(f32, f32)> {
        let gap = now.since(self.at);
        self.at = self.at.max(now);
        if gap > Duration::ZERO {
            let fade = |half: Duration| (-gap.as_secs_f32() / half.as_secs_f32()).exp2();
            let (usual, slow) = (fade(params.half_life), fade(params.interest_half_life));
            for (part, value) in self.parts.iter_mut().enumerate() {
                *value *= if part >= Part::Watched as usize { slow } else { usual };
            }
        }
        let calm = self.is_calm(params);
        if self.parts.iter().sum::<f32>() < 1.0 {
            (self.since, self.exposed, self.contacts) = (now, 0, 0);
        }
        self.pace.pass(params, now, calm)
    }

    pub fn is_calm(&self, params: &Params) -> bool {
        self.parts.iter().sum::<f32>() < params.warn / 2.0 && self.hold.is_none()
    }

    pub fn fold(&mut self, params: &Params, part: Part, nats: f32) {
        let most = match part {
            Part::Guess => f32::MAX,
            Part::Stale => params.miss.stale_most,
            Part::Invalid => params.invalid_most,
            Part::Neighbour => params.neighbour_most,
            Part::Series => params.series_most,
            Part::Hour => params.hour_most,
            Part::Source => params.source_most,
            Part::Watched | Part::Canary => f32::MAX,
        };
        let value = &mut self.parts[part as usize];
        *value = (*value + nats).clamp(0.0, most.min(60.0));
    }

    /// The two kinds of miss see the same misses, so the stronger one counts.
    pub fn sum(&self, params: &Params, volume: f32) -> Sum {
        let part = |part: Part| (self.parts[part as usize] - params.noise).max(0.0);
        let mut top = [
            ("miss-evidence", part(Part::Guess).max(part(Part::Stale))),
            ("identifier-space", part(Part::Invalid) + part(Part::Neighbour)),
            ("novelty", part(Part::Series)),
            ("volume", volume),
            (INTEREST, part(Part::Watched) + part(Part::Canary)),
            ("key-use", part(Part::Hour) + part(Part::Source)),
        ];
        let nats = top.iter().map(|(_, nats)| nats).sum();
        if nats < params.warn / 2.0 {
            return Sum { nats, top: Vec::new() };
        }
        top.sort_by(|a, b| b.1.total_cmp(&a.1));
        Sum { nats, top: top.into_iter().filter(|(_, nats)| *nats > 0.5).take(3).collect() }
    }

    pub fn at(&self) -> Timestamp {
        self.at
    }

    /// Evidence that needs no outcome, which a held unit cannot have.
    pub fn asked_sum(&self) -> f32 {
        self.parts[Part::Invalid as usize..].iter().sum()
    }

    /// From no evidence: a hold began or ended, or the evidence was laid on somebody else.
    pub fn start_over(&mut self) {
        self.parts = Default::default();
        self.pace.start_over();
    }
}
