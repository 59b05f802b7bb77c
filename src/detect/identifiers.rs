//! Identifier space: a scan shows in the ids themselves. Wrong check digits, numbers next to each other, blocks that fill up.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::params::Params;
use crate::subject::{Features, Kind, Mark};

/// Where the last first contacts of a partner lay, whoever asked: rotating actors or sources does not hide a scan.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Space {
    spots: VecDeque<Spot>,
    /// The share of first contacts that have two neighbours or more in quiet times, learned.
    crowded: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Spot {
    block: u64,
    offset: u16,
}

const SPOTS_MAX: usize = 512;
/// Nearer than this is next to each other.
const NEAR: i32 = 100;
const CROWDED_LEAST: f32 = 0.01;
const CROWDED_MOST: f32 = 0.3;
const CROWDED_SCAN: f32 = 0.9;
const RATE: f32 = 0.005;

fn short(mark: Mark) -> u64 {
    u64::from_le_bytes(mark.as_bytes()[..8].try_into().unwrap_or_default())
}

impl Space {
    /// How many of the last first contacts lie near this one. People correct a mistyped number, so one says little.
    pub fn neighbours(&self, features: &Features) -> u32 {
        let (block, before, after) = (short(features.block), short(features.before), short(features.after));
        let here = i32::from(features.offset);
        let near = |spot: &&Spot| {
            let there = i32::from(spot.offset);
            let distance = match spot.block {
                b if b == block => there - here,
                b if b == before => there - 1_000 - here,
                b if b == after => there + 1_000 - here,
                _ => return false,
            };
            (1..=NEAR).contains(&distance.abs())
        };
        self.spots.iter().filter(near).count() as u32
    }

    pub fn add(&mut self, features: &Features) {
        if self.spots.len() >= SPOTS_MAX {
            self.spots.pop_front();
        }
        self.spots.push_back(Spot { block: short(features.block), offset: features.offset });
    }

    /// Beneficiary numbers are given out in a row, at a camp for instance, and asked for in a row: nothing follows from that.
    pub fn say(&self, params: &Params, kind: Kind, neighbours: u32) -> f32 {
        if !params.on.identifiers || in_rows(kind) {
            return 0.0;
        }
        let honest = self.crowded.clamp(CROWDED_LEAST, CROWDED_MOST);
        match neighbours {
            0 => ((1.0 - CROWDED_SCAN) / (1.0 - honest)).ln().max(-1.0),
            1 => 0.5,
            // A handful of colleagues with numbers in a row is not yet a scan.
            _ => (CROWDED_SCAN / honest).ln().min(2.5),
        }
    }

    pub fn learn(&mut self, kind: Kind, neighbours: u32) {
        if !in_rows(kind) {
            self.crowded += RATE * (if neighbours >= 2 { 1.0 } else { 0.0 } - self.crowded);
        }
    }
}

/// Whether ids of this kind are handed out one after the other to people who come together.
pub fn in_rows(kind: Kind) -> bool {
    matches!(kind, Kind::Beneficiary)
}

/// What an id says that does, or does not, parse. Who guesses without the check digit is wrong nine times in ten.
pub fn invalid(params: &Params, kind: Kind, valid: bool) -> f32 {
    if !params.on.identifiers {
        return 0.0;
    }
    let (honest, guess) = (params.invalid_honest, params.invalid_guess);
    match (valid, matches!(kind, Kind::Aadhaar | Kind::Vid | Kind::Epic)) {
        (false, _) => (guess / honest).ln(),
        (true, true) => ((1.0 - guess) / (1.0 - honest)).ln(),
        // Nearly every number of such a kind parses: that one does says nothing.
        (true, false) => -0.5,
    }
}
