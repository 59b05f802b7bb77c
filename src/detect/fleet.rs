//! Across partners: one person or one block asked for by several of them, which only alerts, and the brake on freezes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::params::Params;
use super::{Alert, Asked, Profile, Severity};
use crate::clock::Timestamp;

/// A partner's limit per person would let one partner deny care at another: what is shared is told, never refused.
#[derive(Debug, Default)]
pub struct Fleet {
    day: u64,
    /// Which partners asked for a person today, by a short keyed hash.
    asked: HashMap<u64, Vec<u16>>,
    names: Vec<Arc<str>>,
    told: Vec<u64>,
    freezes: VecDeque<Timestamp>,
}

/// People kept a day; about 64 bytes each. Beyond it new ones are not counted.
const PEOPLE_MAX: usize = 1_000_000;
const PARTNERS_HOT: usize = 5;
const TOLD_MAX: usize = 1_000;

impl Fleet {
    /// Folds a lookup that was allowed.
    pub fn asked(&mut self, profile: &Profile, asked: &Asked) -> Vec<Alert> {
        let Ok(subject) = &asked.subject else { return Vec::new() };
        if asked.consent || !profile.params.on.heat {
            return Vec::new();
        }
        let day = asked.now.unix_seconds() / 86_400;
        if day != self.day {
            *self = Fleet {
                day,
                freezes: std::mem::take(&mut self.freezes),
                names: std::mem::take(&mut self.names),
                ..Fleet::default()
            };
        }
        let name = match self.names.iter().position(|name| *name == profile.name) {
            Some(place) => place as u16,
            None if self.names.len() < usize::from(u16::MAX) => {
                self.names.push(profile.name.clone());
                (self.names.len() - 1) as u16
            }
            None => return Vec::new(),
        };
        let hash = u64::from_le_bytes(subject.person.key[..8].try_into().unwrap_or_default());
        if self.asked.len() >= PEOPLE_MAX && !self.asked.contains_key(&hash) {
            return Vec::new();
        }
        let partners = self.asked.entry(hash).or_default();
        if partners.contains(&name) {
            return Vec::new();
        }
        partners.push(name);
        if partners.len() != PARTNERS_HOT || self.told.contains(&hash) || self.told.len() >= TOLD_MAX {
            return Vec::new();
        }
        self.told.push(hash);
        vec![Alert {
            time: asked.now,
            partner: profile.name.clone(),
            actor: None,
            detector: "shared-heat",
            severity: Severity::Info,
            why: vec![format!("one person was asked for by {PARTNERS_HOT} partners today, without consent")],
            moved: None,
            exposed: None,
        }]
    }

    /// Whether one more automatic freeze may happen now; counts it if so. Milder steps are never braked.
    pub fn may_freeze(&mut self, params: &Params, now: Timestamp) -> bool {
        while self.freezes.front().is_some_and(|time| now.since(*time) >= Duration::from_secs(3_600)) {
            self.freezes.pop_front();
        }
        let may = self.freezes.len() < params.freezes_per_hour as usize;
        if may {
            self.freezes.push_back(now);
        }
        may
    }
}
