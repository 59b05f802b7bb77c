//! How much of a rate is used up? The only file that knows governor.
//!
//! governor does the arithmetic (GCRA). Where the state lives is ours: a theoretical arrival time in nanoseconds since
//! the Unix epoch, so that it outlives the limiter that measured it, can be staged before a group of charges is
//! committed, and tells by itself when it may be forgotten.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::Quota;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, RateLimiter, StateStore};

use crate::clock::Timestamp;
use crate::policy::charge::Rate;

/// When a bucket will be full again (governor's theoretical arrival time). In the past: it is full, and forgetting it
/// gives nothing back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FullAt(Timestamp);

impl FullAt {
    pub fn is_full(self, now: Timestamp) -> bool {
        self.0 <= now
    }

    /// As it is kept on disk.
    pub fn time(self) -> Timestamp {
        self.0
    }

    pub fn at(time: Timestamp) -> FullAt {
        FullAt(time)
    }
}

/// Takes one from a bucket: its new state, or how long until one can be taken.
pub fn take(rate: Rate, bucket: FullAt, now: Timestamp) -> Result<FullAt, Duration> {
    let Some(quota) = quota(rate) else { return Err(Duration::MAX) };
    // The limiter calls the clock once at its making, when it stands at zero: its times are then absolute.
    let clock = At(Cell::new(0));
    let limiter = Limiter::new(quota, Staged(Cell::new(bucket)), &clock);
    clock.0.set(now.as_nanos());
    limiter.check().map_err(|not_until| not_until.wait_time_from(Nanos::from(now.as_nanos())))?;
    Ok(limiter.into_state_store().0.get())
}

/// The bucket as this rate sees it. None is emptier than empty: what a slower rate left behind, or a clock that was wrong
/// before a restart, must not outlast a whole refill. To be stored, or the refill would begin anew each time.
pub fn at_most_empty(rate: Rate, bucket: FullAt, now: Timestamp) -> FullAt {
    quota(rate).map_or(bucket, |quota| bucket.min(FullAt(now.plus(quota.burst_size_replenished_in()))))
}

/// `None` for a rate that lets nothing through.
fn quota(rate: Rate) -> Option<Quota> {
    let per_one = rate.period.checked_div(rate.count)?;
    Some(Quota::with_period(per_one)?.allow_burst(NonZeroU32::new(rate.burst)?))
}

type Limiter<'a> = RateLimiter<NotKeyed, Staged, &'a At, NoOpMiddleware<Nanos>>;

/// A clock that stands where it is put.
#[derive(Debug)]
struct At(Cell<u64>);

impl Clock for &At {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::from(self.0.get())
    }
}

/// One bucket, outside the store until the whole group is paid.
#[derive(Debug)]
struct Staged(Cell<FullAt>);

impl StateStore for Staged {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let before = self.0.get().0.as_nanos();
        let (outcome, after) = measure((before > 0).then_some(Nanos::from(before)))?;
        self.0.set(FullAt(Timestamp::from_nanos(after.as_u64())));
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// GCRA as its paper has it (ITU-T I.371, virtual scheduling), in plain arithmetic.
    fn model(rate: Rate, full_at: u64, now: u64) -> Result<u64, u64> {
        let one = (rate.period / rate.count).as_nanos() as u64;
        let tolerance = one * u64::from(rate.burst - 1);
        let earliest = full_at.saturating_sub(tolerance);
        if now < earliest { Err(earliest - now) } else { Ok(full_at.max(now) + one) }
    }

    proptest! {
        #[test]
        fn the_limiter_is_the_model(
            count in 1u32..1_000, seconds in 1u64..100_000, burst in 1u32..50, gaps in proptest::collection::vec(0u64..20_000_000_000, 1..200),
        ) {
            let rate = Rate { count, period: Duration::from_secs(seconds), burst };
            let mut now = 1_780_000_000_000_000_000;
            let mut bucket = FullAt::default();
            for gap in gaps {
                now += gap;
                let at = Timestamp::from_nanos(now);
                let expected = model(rate, bucket.0.as_nanos(), now);
                match take(rate, bucket, at) {
                    Ok(after) => {
                        prop_assert_eq!(Ok(after.0.as_nanos()), expected);
                        prop_assert!(!after.is_full(at));
                        bucket = after;
                    }
                    Err(wait) => {
                        prop_assert_eq!(Err(wait.as_nanos() as u64), expected);
                        prop_assert!(take(rate, bucket, at.plus(wait)).is_ok());
                        prop_assert!(take(rate, bucket, at.plus(wait - Duration::from_nanos(1))).is_err());
                    }
                }
            }
        }

        #[test]
        fn a_full_bucket_may_be_forgotten(count in 1u32..100, burst in 1u32..20, ago in 0u64..10_000_000_000) {
            let rate = Rate { count, period: Duration::from_secs(1), burst };
            let now = Timestamp::from_nanos(1_780_000_000_000_000_000);
            let full_at = FullAt(Timestamp::from_nanos(now.as_nanos() - ago));
            prop_assert!(full_at.is_full(now));
            prop_assert_eq!(take(rate, full_at, now), take(rate, FullAt::default(), now));
        }
    }

    #[test]
    fn a_rate_that_was_raised_holds_at_once() {
        let rate = |seconds| Rate { count: 1, period: Duration::from_secs(seconds), burst: 1 };
        let now = Timestamp::from_unix_seconds(1_780_000_000);
        let bucket = take(rate(86_400), FullAt::default(), now).expect("first");
        assert_eq!(at_most_empty(rate(86_400), bucket, now), bucket);
        let raised = at_most_empty(rate(10), bucket, now);
        assert_eq!(take(rate(10), raised, now), Err(Duration::from_secs(10)));
        assert!(take(rate(10), raised, now.plus(Duration::from_secs(10))).is_ok());
    }

    #[test]
    fn times_are_absolute_whenever_the_limiter_was_made() {
        let rate = Rate { count: 1, period: Duration::from_secs(3_600), burst: 1 };
        let start = Timestamp::from_unix_seconds(1_780_000_000);
        let bucket = take(rate, FullAt::default(), start).expect("first");
        assert_eq!(bucket.0, start.plus(rate.period));
        // Another limiter, made later, as after a restart: the hour is not over.
        assert_eq!(take(rate, bucket, start.plus(Duration::from_secs(3_000))), Err(Duration::from_secs(600)));
        assert!(take(rate, bucket, start.plus(rate.period)).is_ok());
    }
}
