//! The numbers that detectors decide by, in one place: `Default` is what ships, ablation and sensitivity vary them.

use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// Evidence is counted in nats: the logarithm of how much likelier misuse makes what was seen than honest work does.
#[derive(Clone, Debug, PartialEq)]
pub struct Params {
    /// Each detector can be left out, for ablation.
    pub on: Detectors,
    /// Evidence from which an operator is warned.
    pub warn: f32,
    /// Evidence from which an actor, or a source that is new, is contained.
    pub contain: f32,
    /// Evidence from which a whole partner is contained: it hurts more people, most of all where staff is named.
    pub contain_partner: f32,
    pub contain_whole_staff: f32,
    /// What each line of evidence reaches on an ordinary day now and then; only what is above it adds up.
    pub noise: f32,
    /// All evidence halves in this time.
    pub half_life: Duration,
    /// Watched people and canaries stay suspicious for longer.
    pub interest_half_life: Duration,
    /// How long a step on the ladder lasts, unless evidence goes on: of an actor or a new source, and of a whole partner.
    pub hold: Duration,
    pub hold_partner: Duration,
    /// A hold doubles with each relapse, up to this.
    pub hold_most: Duration,
    /// Evidence from the outcomes of what passed by leeway, from which there is none.
    pub doubt: f32,
    /// Evidence from what was asked for while held, from which the hold goes on.
    pub pressed: f32,
    /// Likewise, from this share of the first contacts that would be ordinary over a day.
    pub pressed_pace: f32,
    /// A unit that was held before falls back sooner, for so long.
    pub relapse: f32,
    pub relapse_for: Duration,
    /// A first contact counts as known when it is older than this.
    pub known_after: Duration,
    /// Peaks, hours and sources are not judged before a partner is this old.
    pub learn_for: Duration,
    /// A source counts as new for so long.
    pub source_new_for: Duration,
    pub miss: Misses,
    /// Share of ids that do not parse, at an honest partner and at a guesser.
    pub invalid_honest: f32,
    pub invalid_guess: f32,
    pub invalid_most: f32,
    pub neighbour_most: f32,
    /// How much novelty alone may say; likewise below.
    pub series_most: f32,
    pub hour_most: f32,
    pub source_most: f32,
    pub volume_most: f32,
    /// Nats for each peak's worth above the ordinary, up to `volume_small`; alone it suffices only far above `volume_large` peaks.
    pub volume_slope: f32,
    pub volume_small: f32,
    pub volume_large: f32,
    /// Nats for each peak's worth above that.
    pub volume_steep: f32,
    /// What a person counts for the volume who comes with others whose numbers are in a row.
    pub in_rows: f32,
    /// An actor may do so many times what its colleagues do on average.
    pub colleagues: f32,
    /// Canaries contain a whole partner only when it asks so many times what is usual at this hour: otherwise most of those
    /// refused would be honest.
    pub crowding: f32,
    /// Shares of first contacts that are watched, at an honest partner and at one who is after them.
    pub watched_honest: f32,
    pub watched_hunt: f32,
    pub canary: f32,
    /// How much more than the highest of past days is still ordinary.
    pub peak_margin: f32,
    /// A peak grows by no more than this share in a day, so that a slow ramp does not become the rule.
    pub peak_growth: f32,
    /// First contacts that each known person asked for explains: a back-fill meets new people too.
    pub known_explains: f32,
    /// First contacts whose outcome is still out, of a partner and of an actor.
    pub pending_partner: u32,
    pub pending_actor: u32,
    /// Memory.
    pub actors_max: usize,
    pub sources_max: usize,
    pub people_max: u64,
    /// Automatic freezes an hour in the whole fleet.
    pub freezes_per_hour: u32,
}

/// How likely a miss is at a guesser. Two are looked for at a time: one who guesses, and one with a stale list.
#[derive(Clone, Debug, PartialEq)]
pub struct Misses {
    pub guess: f32,
    /// A stale list misses so much more often than the partner does.
    pub stale_above: f32,
    /// The honest share of misses is learned between these.
    pub honest_least: f32,
    pub honest_most: f32,
    pub stale_most: f32,
}

/// Which detectors take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detectors {
    pub misses: bool,
    pub identifiers: bool,
    pub novelty: bool,
    pub volume: bool,
    pub interest: bool,
    pub key_use: bool,
    pub heat: bool,
}

impl Default for Detectors {
    fn default() -> Detectors {
        Detectors {
            misses: true,
            identifiers: true,
            novelty: true,
            volume: true,
            interest: true,
            key_use: true,
            heat: true,
        }
    }
}

impl Default for Params {
    fn default() -> Params {
        Params {
            on: Detectors::default(),
            warn: 10.5,
            contain: 10.5,
            contain_partner: 14.0,
            contain_whole_staff: 17.0,
            noise: 1.5,
            half_life: 12 * HOUR,
            interest_half_life: 48 * HOUR,
            hold: 12 * HOUR,
            hold_partner: Duration::from_secs(1_800),
            hold_most: 2 * DAY,
            doubt: 3.5,
            pressed: 6.0,
            pressed_pace: 0.4,
            relapse: 5.0,
            relapse_for: 7 * DAY,
            known_after: DAY,
            learn_for: 7 * DAY,
            source_new_for: 3 * DAY,
            miss: Misses { guess: 0.75, stale_above: 0.25, honest_least: 0.05, honest_most: 0.3, stale_most: 10.0 },
            invalid_honest: 0.05,
            invalid_guess: 0.9,
            invalid_most: 10.0,
            neighbour_most: 20.0,
            series_most: 12.0,
            hour_most: 5.0,
            source_most: 5.0,
            volume_most: 20.0,
            volume_slope: 8.0,
            volume_small: 6.0,
            volume_large: 1.5,
            volume_steep: 5.0,
            in_rows: 0.1,
            colleagues: 1.7,
            crowding: 1.5,
            watched_honest: 0.0005,
            watched_hunt: 0.04,
            canary: 10.0,
            peak_margin: 1.2,
            peak_growth: 0.25,
            known_explains: 0.2,
            pending_partner: 64,
            pending_actor: 16,
            actors_max: 20_000,
            sources_max: 64,
            people_max: 10_000_000,
            freezes_per_hour: 2,
        }
    }
}
