//! How long do answers take? What was measured last, so that those who are held wait as long as those who are not.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

/// The last few answers of one route. Written and read without a lock: a value that is overtaken is as good.
#[derive(Debug)]
pub struct Latencies {
    /// Microseconds; 0 for none yet.
    last: [AtomicU32; KEPT],
    next: AtomicUsize,
}

const KEPT: usize = 64;

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { last: [const { AtomicU32::new(0) }; KEPT], next: AtomicUsize::new(0) }
    }
}

impl Latencies {
    pub fn note(&self, time: Duration) {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX).max(1);
        let at = self.next.fetch_add(1, Ordering::Relaxed) % KEPT;
        self.last[at].store(micros, Ordering::Relaxed);
    }

    /// One of them by chance, and a little beside it, since no two answers take the same; `None` before there is any.
    pub fn draw(&self) -> Option<Duration> {
        let random = RandomState::new().hash_one(0);
        let filled = self.next.load(Ordering::Relaxed).min(KEPT);
        let at = (random % filled.max(1) as u64) as usize;
        let micros = match self.last[at].load(Ordering::Relaxed) {
            0 => return None,
            micros => u64::from(micros) * 1_000,
        };
        // Between 15/16 and 17/16.
        let beside = (micros / 8 * (random >> 48)) >> 16;
        Some(Duration::from_nanos(micros - micros / 16 + beside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_like_one_of_the_last_answers() {
        let latencies = Latencies::default();
        assert_eq!(latencies.draw(), None);
        let near = |time: Duration, drawn: Duration| {
            let sixteenth = time / 16;
            drawn + sixteenth >= time && drawn <= time + sixteenth
        };
        latencies.note(Duration::from_millis(8));
        let drawn: Vec<_> = (0..100).filter_map(|_| latencies.draw()).collect();
        assert!(drawn.len() == 100 && drawn.iter().all(|drawn| near(Duration::from_millis(8), *drawn)), "{drawn:?}");
        assert!(drawn.iter().any(|one| *one != drawn[0]), "nobody is told by its exact time");
        latencies.note(Duration::from_millis(800));
        let drawn: Vec<_> = (0..200).filter_map(|_| latencies.draw()).collect();
        let of = |millis| drawn.iter().filter(|drawn| near(Duration::from_millis(millis), **drawn)).count();
        assert!(of(8) > 20 && of(800) > 20 && of(8) + of(800) == 200, "{drawn:?}");
        // Old ones are forgotten.
        (0..KEPT).for_each(|_| latencies.note(Duration::from_millis(30)));
        assert!((0..100).all(|_| near(Duration::from_millis(30), latencies.draw().expect("there are some"))));
        latencies.note(Duration::MAX);
        latencies.note(Duration::ZERO);
        assert!(latencies.draw().is_some());
    }
}
