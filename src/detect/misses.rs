//! Miss evidence: who guesses, or works off a stale list, asks for people whom the backend does not know.
//!
//! Two reset-at-zero CUSUMs of log-likelihood ratios over first contacts (Jung et al., threshold random walk, but without
//! its absorbing "benign" bound, which would let an attacker buy credit). A repeat is no new evidence either way.

use serde::{Deserialize, Serialize};

use super::params::Params;
use crate::subject::Kind;

/// The share of first contacts that an honest day misses, for each kind.
#[derive(Debug, Serialize, Deserialize)]
pub struct Misses {
    honest: [f32; Kind::ALL.len()],
}

impl Default for Misses {
    fn default() -> Misses {
        Misses { honest: [PRIOR; Kind::ALL.len()] }
    }
}

/// Before anything is learned: typing errors and people who are not registered.
const PRIOR: f32 = 0.15;
/// A miss moves what is learned by this much: some three hundred first contacts count.
const RATE: f32 = 0.003;

/// What one outcome says, in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Said {
    pub guess: f32,
    pub stale: f32,
}

impl Misses {
    pub fn say(&self, params: &Params, kind: Kind, hit: bool) -> Said {
        if !params.on.misses {
            return Said::default();
        }
        let honest = self.honest(params, kind);
        let stale = (honest + params.miss.stale_above).min(0.6);
        let ratio = |other: f32| if hit { ((1.0 - other) / (1.0 - honest)).ln() } else { (other / honest).ln() };
        Said { guess: ratio(params.miss.guess), stale: ratio(stale) }
    }

    /// Only from quiet times. Bounded, so that nobody teaches the detector that guessing is normal.
    pub fn learn(&mut self, kind: Kind, hit: bool) {
        let share = &mut self.honest[kind as usize];
        *share += RATE * (if hit { 0.0 } else { 1.0 } - *share);
    }

    pub fn honest(&self, params: &Params, kind: Kind) -> f32 {
        self.honest[kind as usize].clamp(params.miss.honest_least, params.miss.honest_most)
    }
}
