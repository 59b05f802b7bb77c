//! Novelty: a partner serves people of its own region and trade, and so asks for numbers from the same series again and
//! again. A list from elsewhere shows as first contacts in series it never met. Says nothing of partners that serve the
//! whole country: what is usual is learned.

use serde::{Deserialize, Serialize};

use super::params::Params;
use crate::subject::{Features, Kind};

#[derive(Debug, Serialize, Deserialize)]
pub struct Novelty {
    /// A bit for each series met, by its keyed mark.
    met: Vec<u64>,
    /// The share of first contacts in a series not met before, for each kind.
    strange: [f32; Kind::ALL.len()],
    count: [u32; Kind::ALL.len()],
}

/// 16 KiB: all forty thousand mobile series and as many others fill half of it.
const WORDS: usize = 2_048;
/// First contacts of a kind before anything is said.
const COUNT_LEAST: u32 = 200;
const RATE: f32 = 0.01;

impl Default for Novelty {
    fn default() -> Novelty {
        Novelty { met: Vec::new(), strange: [1.0; Kind::ALL.len()], count: [0; Kind::ALL.len()] }
    }
}

fn place(features: &Features) -> (usize, u64) {
    let bytes = features.series.as_bytes();
    let hash = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    (hash / 64 % WORDS, 1 << (hash % 64))
}

impl Novelty {
    pub fn is_strange(&self, features: &Features) -> bool {
        let (word, bit) = place(features);
        self.met.get(word).is_none_or(|met| met & bit == 0)
    }

    pub fn say(&self, params: &Params, kind: Kind, strange: bool) -> f32 {
        if !params.on.novelty || self.count[kind as usize] < COUNT_LEAST {
            return 0.0;
        }
        let honest = self.strange[kind as usize].clamp(0.02, 0.98);
        let list = (1.0 - (1.0 - honest) / 3.0).max(0.8);
        if strange { (list / honest).ln() } else { ((1.0 - list) / (1.0 - honest)).ln() }
    }

    /// Only from quiet times, and only from people who exist.
    pub fn learn(&mut self, kind: Kind, features: &Features, strange: bool) {
        self.strange[kind as usize] += RATE * (if strange { 1.0 } else { 0.0 } - self.strange[kind as usize]);
        self.count[kind as usize] = self.count[kind as usize].saturating_add(1);
        self.met.resize(WORDS, 0);
        let (word, bit) = place(features);
        self.met[word] |= bit;
    }
}
