//! What time is it? One value type for every module, and the two clocks that make it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A point in time: nanoseconds since the Unix epoch, UTC. Lasts until the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    pub const fn from_nanos(nanos: u64) -> Timestamp {
        Timestamp(nanos)
    }

    pub const fn from_unix_seconds(seconds: u64) -> Timestamp {
        Timestamp(seconds.saturating_mul(1_000_000_000))
    }

    /// Reads RFC 3339, such as `2026-03-01T09:00:00Z`. `None` also for times before 1970.
    pub fn parse(text: &str) -> Option<Timestamp> {
        let nanos = OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos();
        u64::try_from(nanos).ok().map(Timestamp)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    pub const fn unix_seconds(self) -> u64 {
        self.0 / 1_000_000_000
    }

    /// Time since `earlier`; zero when `earlier` is later.
    pub const fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    pub const fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(duration.as_nanos() as u64))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .ok()
            .and_then(|time| time.format(&Rfc3339).ok());
        f.write_str(text.as_deref().unwrap_or("out of range"))
    }
}

/// As text, in RFC 3339: to the nanosecond, which numbers of JSON are not.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Timestamp::parse(&text).ok_or_else(|| D::Error::custom("not a time in RFC 3339"))
    }
}

/// Where `now` comes from. The manual one belongs to tests and to `explain --at`.
#[derive(Clone, Debug)]
pub enum Clock {
    /// Wall time at construction plus monotonic time since: a system clock that is stepped back moves no limit.
    System {
        started: Instant,
        wall_at_start: Arc<AtomicU64>,
    },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn system() -> Clock {
        Clock::System { started: Instant::now(), wall_at_start: Arc::new(AtomicU64::new(wall().0)) }
    }

    pub fn manual(at: Timestamp) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(at.0)))
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System { started, wall_at_start } => {
                Timestamp(wall_at_start.load(Ordering::Relaxed)).plus(started.elapsed())
            }
            Clock::Manual(nanos) => Timestamp(nanos.load(Ordering::Relaxed)),
        }
    }

    /// Follows the system's clock where that has gone forward, as when it was first set after the start: expiries and
    /// hours must not be judged by a date of the past. It never goes back: what has expired stays so. How far it went.
    pub fn follow(&self) -> Duration {
        let Clock::System { started, wall_at_start } = self else { return Duration::ZERO };
        let start = wall().0.saturating_sub(started.elapsed().as_nanos() as u64);
        let before = wall_at_start.fetch_max(start, Ordering::Relaxed);
        Duration::from_nanos(start.saturating_sub(before))
    }

    /// How far it is ahead of the system's clock, because that was set back.
    pub fn ahead(&self) -> Duration {
        match self {
            Clock::System { .. } => self.now().since(wall()),
            Clock::Manual(_) => Duration::ZERO,
        }
    }

    /// Moves a manual clock; a system clock stays as it is.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(nanos) = self {
            nanos.fetch_add(by.as_nanos() as u64, Ordering::Relaxed);
        }
    }
}

fn wall() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    fn begun_at(wall: Timestamp) -> Clock {
        Clock::System { started: Instant::now(), wall_at_start: Arc::new(AtomicU64::new(wall.0)) }
    }

    #[test]
    fn the_systems_clock_is_followed_forward_and_never_back() {
        let near = |clock: &Clock, time: Timestamp| {
            let now = clock.now();
            now.since(time).max(time.since(now)) < Duration::from_secs(60)
        };
        // Set after the start, as on a machine without a battery.
        let early = begun_at(Timestamp::from_unix_seconds(0));
        assert!(near(&early, Timestamp::default()));
        assert!(early.follow() > 1_000 * HOUR);
        assert!(near(&early, wall()) && early.ahead() < Duration::from_secs(60));
        // Set back since the start: what was over stays over.
        let ahead = wall().plus(HOUR);
        let late = begun_at(ahead);
        assert_eq!(late.follow(), Duration::ZERO);
        assert!(near(&late, ahead));
        assert!((HOUR - Duration::from_secs(60)..=HOUR).contains(&late.ahead()), "{:?}", late.ahead());
        let before = late.now();
        assert!(late.now() >= before);
    }

    #[test]
    fn a_manual_clock_goes_when_it_is_told_to() {
        let clock = Clock::manual(Timestamp::from_unix_seconds(1));
        assert_eq!((clock.follow(), clock.ahead()), (Duration::ZERO, Duration::ZERO));
        assert_eq!(clock.now(), Timestamp::from_unix_seconds(1));
        clock.clone().advance(HOUR);
        assert_eq!(clock.now(), Timestamp::from_unix_seconds(3_601));
        let system = begun_at(Timestamp::default());
        system.advance(HOUR);
        assert!(system.now() < Timestamp::default().plus(HOUR));
    }
}
