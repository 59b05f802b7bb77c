//! What does a request cost? Charges are named here and paid in `state/`; a group is paid as a whole or not at all.

use std::net::IpAddr;
use std::time::Duration;

use super::contract::Budget;
use super::reason::Reason;
use super::shadow::Shadow;

/// So many per period, with a burst: a GCRA quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many in `period`, at least 1.
    pub count: u32,
    pub period: Duration,
    /// How many at once after a pause, at least 1.
    pub burst: u32,
}

impl Rate {
    /// How long it takes at most until nothing of it is used up any more.
    pub fn refill(&self) -> Duration {
        (self.period / self.count.max(1)).saturating_mul(self.burst)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let period = match self.period.as_secs() {
            1 => "s".to_owned(),
            60 => "min".to_owned(),
            3_600 => "h".to_owned(),
            86_400 => "d".to_owned(),
            seconds => format!("{seconds}s"),
        };
        write!(f, "{}/{period} burst {}", self.count, self.burst)
    }
}

/// Whom an address stands for where each source has a limit of its own: itself, and of IPv6 its /64. Nobody has less than
/// that, and so nobody gets more by using all of it.
pub fn site(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
    }
}

/// The first 16 bytes of a subject's token: enough to tell people apart, half the memory.
pub type SubjectKey = [u8; 16];

/// A person as counted, or an actor: under this epoch's key and, while the overlap lasts, also as counted under the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Person {
    pub key: SubjectKey,
    pub previous: Option<SubjectKey>,
}

impl From<SubjectKey> for Person {
    fn from(key: SubjectKey) -> Person {
        Person { key, previous: None }
    }
}

/// One thing that a request uses up, always of the partner that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charge<'p> {
    RequestRate(Rate),
    RouteRate(&'p str, Rate),
    SourceRate(IpAddr, Rate),
    SubjectRate(Person, Rate),
    /// Given back when the answer has ended.
    InFlight(u32),
    RouteInFlight(&'p str, u32),
    /// Of a rolling window's people; free for a person who is in it already.
    Budget(Scope<'p>, Person, Budget),
}

/// Whose budget a person is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'p> {
    /// Subjects of the partner, over all routes and kinds.
    Partner,
    /// Subjects of one of its actors, as counted under one epoch's key or two.
    Actor(Person),
    /// Subjects of one route.
    Grant(&'p str),
    /// People disclosed: so many are reserved until the outcome is in.
    People(u16),
}

impl Scope<'_> {
    pub fn refusal(self) -> Reason {
        match self {
            Scope::Partner => Reason::BudgetPartner,
            Scope::Actor(_) => Reason::BudgetActor,
            Scope::Grant(_) => Reason::BudgetGrant,
            Scope::People(_) => Reason::BudgetPeople,
        }
    }
}

impl Charge<'_> {
    /// Why a request is refused that cannot pay this.
    pub fn refusal(&self) -> Reason {
        match self {
            Charge::RequestRate(_) => Reason::RatePartner,
            Charge::RouteRate(..) => Reason::RateRoute,
            Charge::SourceRate(..) => Reason::RateSource,
            Charge::SubjectRate(..) => Reason::RateSubject,
            Charge::InFlight(_) => Reason::InFlightPartner,
            Charge::RouteInFlight(..) => Reason::InFlightRoute,
            Charge::Budget(scope, ..) => scope.refusal(),
        }
    }
}

/// What came of asking for a group of charges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Receipt {
    /// All of them were taken.
    Paid,
    /// All that are enforced were taken, and those in shadow but for these, which would have refused.
    Passed(Shadow),
    /// None was taken: this one could not be, and would be again after `retry_after`.
    Refused { reason: Reason, retry_after: Duration },
}
