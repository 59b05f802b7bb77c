//! What detectors know of a partner, folded under one lock with what it pays.

use std::mem;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::PartnerState;
use crate::clock::Timestamp;
use crate::detect::{Alert, Asked, Outcome, Profile, Ruling, Ticket, Watch};
use crate::policy::charge::Receipt;
use crate::policy::reason::Reason;
use crate::policy::shadow::Shadow;

/// An allowed lookup whose outcome is not known yet. Dropped without one, it counts as a lookup that found somebody: whether
/// the answer arrived cannot be known.
#[derive(Debug, Default)]
#[must_use]
pub struct Pending(Option<Question>);

#[derive(Debug)]
struct Question {
    partner: Arc<PartnerState>,
    profile: Arc<Profile>,
    ticket: Ticket,
    asked: Timestamp,
}

impl PartnerState {
    /// The asked half. `pay` takes the charges, and is not called for what is held. Evidence, verdict and charges are one step
    /// to all other lookups of this partner. Where containment is in shadow, what it would hold passes; nothing is learned from
    /// its outcome, as if it had been held.
    pub fn ask(
        self: &Arc<Self>,
        profile: &Arc<Profile>,
        shadow: Shadow,
        asked: &Asked,
        pay: impl FnOnce() -> Receipt,
    ) -> (Receipt, Pending, Vec<Alert>) {
        let mut watch = self.watch();
        let Ruling { verdict, mut alerts } = watch.asked(profile, asked);
        let ticket = match verdict {
            Ok(ticket) => ticket,
            Err(reason) if shadow.contains(Reason::HeldPartner) && asked.subject.is_ok() => {
                let passed = |others: Shadow| Receipt::Passed(others.reasons().chain([Reason::HeldPartner]).collect());
                let receipt = match pay() {
                    Receipt::Paid => passed(Shadow::default()),
                    Receipt::Passed(others) => passed(others),
                    refused => refused,
                };
                tracing::debug!(reason = reason.code(), "held, but for the shadow");
                return (receipt, Pending::default(), alerts);
            }
            Err(reason) => {
                return (Receipt::Refused { reason, retry_after: Duration::ZERO }, Pending::default(), alerts);
            }
        };
        let receipt = pay();
        if let Receipt::Refused { .. } = receipt {
            alerts.extend(watch.answered(profile, ticket, Outcome::Unavailable, asked.now));
            return (receipt, Pending::default(), alerts);
        }
        let (partner, profile) = (self.clone(), profile.clone());
        (receipt, Pending(Some(Question { partner, profile, ticket, asked: asked.now })), alerts)
    }

    pub fn watch(&self) -> MutexGuard<'_, Watch> {
        // Folding does not panic; if it did, what was folded before still is the best that is known.
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// The answered half. Only the first outcome counts.
    pub fn answered(&mut self, outcome: Outcome, now: Timestamp) -> Vec<Alert> {
        let Some(Question { partner, profile, ticket, .. }) = mem::take(&mut self.0) else { return Vec::new() };
        partner.watch().answered(&profile, ticket, outcome, now)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(Question { asked, .. }) = &self.0 {
            let asked = *asked;
            let _ = self.answered(Outcome::Found { people: 1 }, asked);
        }
    }
}
