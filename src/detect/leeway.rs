//! Leeway: what somebody held by evidence may still ask. Nearly all that a hold would hurt is the honest work that goes on beside
//! the misuse, or after it. What looks like that work in every respect passes, at the pace that it ordinarily has; where its
//! outcomes look like misuse again, the leeway is gone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

/// A bucket that fills at the unit's ordinary pace, from the begin of the hold on.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Leeway {
    tokens: f32,
    at: Timestamp,
    /// In nats, a CUSUM over what passed.
    doubt: f32,
}

impl Leeway {
    /// Empty: who was just caught waits.
    pub fn begin(now: Timestamp) -> Leeway {
        Leeway { at: now, ..Leeway::default() }
    }

    /// What the outcome of a lookup that passed says against it. From `most` on the leeway is gone, until the hold ends.
    pub fn outcome(&mut self, nats: f32, most: f32) {
        if self.doubt < most {
            self.doubt = (self.doubt + nats).max(0.0);
        }
    }

    /// Lets time pass, at `per_hour` first contacts an hour; saves up no more than `most`.
    pub fn fill(&mut self, per_hour: f32, most: f32, now: Timestamp) {
        let gap = now.since(self.at);
        if gap > Duration::ZERO {
            self.at = now;
            self.tokens = (self.tokens + gap.as_secs_f32() / 3_600.0 * per_hour).min(most.max(1.0));
        }
    }

    pub fn has(&self, most: f32) -> bool {
        self.doubt < most && self.tokens >= 1.0
    }

    pub fn take(&mut self) {
        self.tokens -= 1.0;
    }
}
