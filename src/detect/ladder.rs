//! The ladder: open, known-only, consent-only, frozen. Timed, with hysteresis, reversible.

use serde::{Deserialize, Serialize};

use super::Level;
use super::contacts::Contact;
use crate::clock::Timestamp;

/// Where a unit stands and until when; `None` until somebody lets it go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    pub level: Level,
    pub until: Option<Timestamp>,
    pub by_operator: bool,
}

impl Hold {
    pub fn is_over(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| now >= until)
    }

    /// Whether a lookup may pass.
    pub fn passes(&self, contact: Contact, consent: bool) -> bool {
        match self.level {
            Level::Open => true,
            Level::KnownOnly => consent || contact >= Contact::Known,
            Level::ConsentOnly => consent,
            Level::Frozen => false,
        }
    }
}

pub fn step_up(level: Level) -> Level {
    match level {
        Level::Open => Level::KnownOnly,
        Level::KnownOnly => Level::ConsentOnly,
        Level::ConsentOnly | Level::Frozen => Level::Frozen,
    }
}
