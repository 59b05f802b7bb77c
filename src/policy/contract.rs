//! How many people may a partner look up? What its contract says, and the budgets that are stated or follow from it.

use std::fmt;
use std::time::Duration;

use super::shadow::Shadow;

/// What kind of caller a partner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// People for themselves, each with consent.
    CitizenApp,
    /// Named staff at a desk.
    Interactive,
    /// A system without people in front of it.
    Batch,
}

/// What the partner's contract says of its lookups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contract {
    pub class: Class,
    /// Distinct people a day that the contract plans; at least 1.
    pub people_per_day: u32,
    pub consent_required: bool,
    /// Never frozen automatically.
    pub critical: bool,
}

/// A rolling stretch of time that people are counted in. It moves in steps, and what was counted in a step counts until the
/// whole step is out: an hour is 60 to 61 minutes, a day 24 to 24.5 hours, a month 30 to 30.5 days; never less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Window {
    Hour,
    Day,
    /// Thirty days.
    Month,
}

impl Window {
    pub const ALL: [Window; 3] = [Window::Hour, Window::Day, Window::Month];

    /// As its key in the configuration and its label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Window::Hour => "hour",
            Window::Day => "day",
            Window::Month => "month",
        }
    }

    /// Minutes of a step.
    pub const fn step(self) -> u32 {
        match self {
            Window::Hour => 1,
            Window::Day => 30,
            Window::Month => 720,
        }
    }

    /// Steps of the whole.
    pub const fn steps(self) -> u32 {
        match self {
            Window::Hour | Window::Month => 60,
            Window::Day => 48,
        }
    }

    /// How long somebody is counted at the most.
    pub fn longest(self) -> Duration {
        Duration::from_secs(60 * u64::from(self.step() * (self.steps() + 1)))
    }
}

/// So many in each window; `None`: that window is not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    pub most: [Option<u32>; 3],
}

impl Budget {
    pub const fn new(hour: u32, day: u32, month: u32) -> Budget {
        Budget { most: [Some(hour), Some(day), Some(month)] }
    }

    /// The windows that are counted, and the most of each.
    pub fn windows(self) -> impl Iterator<Item = (Window, u32)> {
        Window::ALL.into_iter().zip(self.most).filter_map(|(window, most)| Some((window, most?)))
    }

    /// The longest window that is counted.
    pub fn horizon(self) -> Option<Window> {
        self.windows().map(|(window, _)| window).last()
    }

    pub fn largest(self) -> u32 {
        self.windows().map(|(_, most)| most).max().unwrap_or_default()
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (window, most)) in self.windows().enumerate() {
            write!(f, "{}{most}/{}", if at > 0 { " " } else { "" }, window.as_str())?;
        }
        Ok(())
    }
}

/// A partner's budgets; those of single routes are with its grants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budgets {
    /// Distinct subjects of the whole partner.
    pub partner: Option<Budget>,
    /// Distinct subjects of each of its actors.
    pub actor: Option<Budget>,
    /// People disclosed: one subject may answer with several.
    pub people: Option<Budget>,
    /// Which of these are only watched.
    pub shadow: Shadow,
}

/// A contract of fewer people than this gets the defaults of this many: an office that plans for three a day has a busy one too.
const PLANNED_MIN: u32 = 20;
/// People in one answer, over a whole day: families share a mobile number, most of them small.
const PEOPLE_PER_SUBJECT: u32 = 3;
/// The most that a budget can say: what is remembered for it has to fit into memory.
pub const BUDGET_MAX: u32 = 10_000_000;

impl Contract {
    /// The budgets that follow from it. They bound what a partner can take if nothing else notices, so an honest peak stays
    /// within them: a back-fill of twenty days' people in one day, half of it in one hour. Over thirty days twice the contract
    /// is left. Detectors, not budgets, are meant to be quick.
    pub fn budgets(&self) -> Budgets {
        let planned = self.people_per_day.max(PLANNED_MIN);
        let of = |factor: u32| planned.saturating_mul(factor).min(BUDGET_MAX);
        let partner = Budget::new(of(12), of(25), of(60));
        let people = Budget {
            most: partner.most.map(|most| most.map(|most| most.saturating_mul(PEOPLE_PER_SUBJECT).min(BUDGET_MAX))),
        };
        let actor = match self.class {
            // A user and those whom a user cares for.
            Class::CitizenApp => Some(Budget::new(50, 100, 300)),
            // Somebody at a desk, on the busiest day: a camp, or all of the partner's work alone.
            Class::Interactive => Some(Budget::new(of(1).max(300), of(2).max(600), of(20).max(6_000))),
            // Nobody sits there: what a system names as its actor is the partner itself.
            Class::Batch => None,
        };
        Budgets { partner: Some(partner), actor, people: Some(people), shadow: Shadow::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_peak_is_within_the_defaults() {
        for (class, planned) in [(Class::CitizenApp, 8_310), (Class::Interactive, 3), (Class::Batch, 7_900)] {
            let contract = Contract { class, people_per_day: planned, consent_required: false, critical: false };
            let Budgets { partner, actor, people, .. } = contract.budgets();
            let [hour, day, month] = partner.expect("a budget").most.map(|most| most.expect("each window"));
            assert!(hour >= 10 * planned && day >= 20 * planned && month >= 30 * planned + 20 * planned);
            assert!(people.expect("a budget").windows().all(|(_, most)| most <= BUDGET_MAX));
            assert_eq!(actor.is_none(), class == Class::Batch);
        }
        let most = Contract { class: Class::Batch, people_per_day: u32::MAX, consent_required: false, critical: false };
        assert_eq!(most.budgets().partner.expect("a budget").largest(), BUDGET_MAX);
    }

    #[test]
    fn a_window_is_its_steps() {
        assert_eq!(Window::Hour.step() * Window::Hour.steps(), 60);
        assert_eq!(Window::Day.step() * Window::Day.steps(), 24 * 60);
        assert_eq!(Window::Month.step() * Window::Month.steps(), 30 * 24 * 60);
    }
}
