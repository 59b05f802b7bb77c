//! What is only watched? A limit or a network in shadow is asked like any other, but what it would refuse passes.

use std::fmt;

use super::reason::Reason;

/// Limits that are in shadow, or what they and networks in shadow would have refused: a set of the reasons for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shadow(u16);

/// Every reason that can be in a shadow. `LimiterFull` is no limit of its own, but what one of them can refuse with;
/// `HeldPartner` stands for all that evidence holds.
const REASONS: [Reason; 14] = [
    Reason::NetworkNotAllowed,
    Reason::ConnectionsPartner,
    Reason::RateSource,
    Reason::InFlightPartner,
    Reason::RatePartner,
    Reason::RateRoute,
    Reason::InFlightRoute,
    Reason::RateSubject,
    Reason::HeldPartner,
    Reason::BudgetPartner,
    Reason::BudgetActor,
    Reason::BudgetGrant,
    Reason::BudgetPeople,
    Reason::LimiterFull,
];

impl Shadow {
    pub const NONE: Shadow = Shadow(0);

    pub fn insert(&mut self, reason: Reason) {
        self.0 |= bit(reason);
    }

    pub fn join(&mut self, other: Shadow) {
        self.0 |= other.0;
    }

    pub fn contains(self, reason: Reason) -> bool {
        // Nearly always there is none at all, on the path of every request.
        !self.is_empty() && self.0 & bit(reason) != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn reasons(self) -> impl Iterator<Item = Reason> {
        REASONS.into_iter().filter(move |reason| self.contains(*reason))
    }
}

impl FromIterator<Reason> for Shadow {
    fn from_iter<I: IntoIterator<Item = Reason>>(reasons: I) -> Shadow {
        let mut shadow = Shadow::default();
        reasons.into_iter().for_each(|reason| shadow.insert(reason));
        shadow
    }
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reasons().map(Reason::code).collect::<Vec<_>>().join(", "))
    }
}

/// Zero for what cannot be in a shadow: it is enforced.
fn bit(reason: Reason) -> u16 {
    REASONS.iter().position(|other| *other == reason).map_or(0, |at| 1 << at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shadow_holds_what_was_put_in_and_nothing_that_is_no_limit() {
        let mut shadow: Shadow = [Reason::RateSubject, Reason::NetworkNotAllowed].into_iter().collect();
        shadow.insert(Reason::PartnerFrozen);
        assert_eq!(shadow.to_string(), "network-not-allowed, rate-subject");
        shadow.join(REASONS.into_iter().collect());
        assert!(Reason::ALL.iter().all(|reason| shadow.contains(*reason) == REASONS.contains(reason)));
        assert!(Shadow::default().is_empty() && !shadow.is_empty());
    }
}
