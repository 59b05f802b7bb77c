//! First contacts whose outcome is not in. Evidence of a burst comes only with its outcomes, so the burst is kept short.

use std::collections::HashMap;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::subject::Mark;

/// Not kept over a restart, which ends what is in flight.
#[derive(Debug, Default)]
pub struct Pending {
    all: HashMap<Option<Mark>, Vec<Timestamp>>,
}

/// A ticket that never comes back (its connection died in a way nobody told) counts no longer than this.
const LOST_AFTER: Duration = Duration::from_secs(120);

impl Pending {
    pub fn count(&mut self, actor: Option<Mark>, now: Timestamp) -> u32 {
        let Some(times) = self.all.get_mut(&actor) else { return 0 };
        times.retain(|time| now.since(*time) < LOST_AFTER);
        times.len() as u32
    }

    /// Bounded by the caps that are checked before.
    pub fn begin(&mut self, actor: Option<Mark>, now: Timestamp) {
        self.all.entry(None).or_default().push(now);
        if actor.is_some() {
            self.all.entry(actor).or_default().push(now);
        }
    }

    pub fn end(&mut self, actor: Option<Mark>, began: Timestamp) {
        for key in [None, actor].into_iter().take(1 + usize::from(actor.is_some())) {
            if let Some(times) = self.all.get_mut(&key) {
                if let Some(place) = times.iter().position(|time| *time == began) {
                    times.swap_remove(place);
                }
                if times.is_empty() {
                    self.all.remove(&key);
                }
            }
        }
    }
}
