//! Volume: more first contacts than the busiest of past days had, at a human's pace and over a day. The people of a repeat,
//! a retry or a back-fill are no first contacts.

use serde::{Deserialize, Serialize};

use super::params::Params;
use crate::clock::Timestamp;

/// Leaky counts of first contacts, and the peaks they reached on past days.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pace {
    at: Timestamp,
    burst: f32,
    fast: f32,
    slow: f32,
    /// Distinct known people asked for: work that brings some first contacts with it.
    known_burst: f32,
    known_fast: f32,
    known_slow: f32,
    today: u32,
    days: u16,
    top_burst: f32,
    top_fast: f32,
    top_slow: f32,
    pub peak_burst: f32,
    pub peak_fast: f32,
    pub peak_slow: f32,
}

/// What is ordinary.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub burst: f32,
    pub fast: f32,
    pub slow: f32,
}

const BURST: f32 = 90.0;
const FAST: f32 = 600.0;
const SLOW: f32 = 43_200.0;
const DAY: u64 = 86_400;
const PEAK_FADES: f32 = 0.98;

impl Pace {
    /// Whether a day ended, with its tops.
    pub fn pass(&mut self, params: &Params, now: Timestamp, calm: bool) -> Option<(f32, f32)> {
        let gap = now.since(self.at).as_secs_f32();
        self.at = self.at.max(now);
        if gap > 0.0 {
            let (burst, fast, slow) = ((-gap / BURST).exp(), (-gap / FAST).exp(), (-gap / SLOW).exp());
            self.burst *= burst;
            self.known_burst *= burst;
            self.fast *= fast;
            self.known_fast *= fast;
            self.slow *= slow;
            self.known_slow *= slow;
        }
        let day = (now.unix_seconds() / DAY) as u32;
        if day <= self.today {
            return None;
        }
        let began = self.today == 0;
        self.today = day;
        let (burst, tops) = (self.top_burst, (self.top_fast, self.top_slow));
        (self.top_burst, self.top_fast, self.top_slow) = (0.0, 0.0, 0.0);
        if began || tops.1 == 0.0 {
            return None;
        }
        if calm {
            let grow = |peak: f32, top: f32, young: bool| {
                let most = if young { f32::MAX } else { peak * (1.0 + params.peak_growth) + 2.0 };
                (peak * PEAK_FADES).max(top.min(most))
            };
            let young = self.days < 7;
            self.peak_burst = grow(self.peak_burst, burst, young);
            self.peak_fast = grow(self.peak_fast, tops.0, young);
            self.peak_slow = grow(self.peak_slow, tops.1, young);
            self.days = self.days.saturating_add(1);
        }
        calm.then_some(tops)
    }

    pub fn first_contact(&mut self, weight: f32) {
        self.burst += weight;
        self.fast += weight;
        self.slow += weight;
        self.top_burst = self.top_burst.max(self.burst);
        self.top_fast = self.top_fast.max(self.fast);
        self.top_slow = self.top_slow.max(self.slow);
    }

    pub fn known(&mut self) {
        self.known_burst += 1.0;
        self.known_fast += 1.0;
        self.known_slow += 1.0;
    }

    /// Whether the last minutes were busier than is ordinary.
    pub fn is_fast(&self, limits: Limits) -> bool {
        self.fast > limits.fast
    }

    pub fn start_over(&mut self) {
        self.slow = 0.0;
    }

    /// Whether what was asked for while held is more than honest work would be.
    pub fn is_many(&self, share: f32, limits: Limits) -> bool {
        self.fast > limits.fast || self.slow > share * limits.slow
    }

    /// First contacts an hour, as of the last minutes.
    pub fn per_hour(&self) -> f32 {
        self.fast * 3_600.0 / FAST
    }

    pub fn say(&self, params: &Params, limits: Limits) -> f32 {
        if !params.on.volume {
            return 0.0;
        }
        let burst = self.burst / (limits.burst + params.known_explains * self.known_burst);
        let fast = self.fast / (limits.fast + params.known_explains * self.known_fast);
        let slow = self.slow / (limits.slow + params.known_explains * self.known_slow);
        let small = |ratio: f32| (params.volume_slope * (ratio - 1.0)).clamp(0.0, params.volume_small);
        let large = |ratio: f32| (params.volume_steep * (ratio - params.volume_large)).max(0.0);
        let fast = fast.max(burst);
        (small(fast).max(small(slow)) + large(fast).max(large(slow))).min(2.0 * params.volume_most)
    }
}
