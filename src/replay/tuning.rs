//! What if a detector were off, or a number another one? For ablation and sensitivity; a gateway has no such switches.

use std::time::Duration;

use crate::detect::Params;

/// Switches a detector off.
pub fn without(params: &mut Params, detector: &str) -> Result<(), String> {
    let on = &mut params.on;
    let switch = match detector {
        "misses" => &mut on.misses,
        "identifiers" => &mut on.identifiers,
        "novelty" => &mut on.novelty,
        "volume" => &mut on.volume,
        "interest" => &mut on.interest,
        "key-use" => &mut on.key_use,
        "heat" => &mut on.heat,
        _ => {
            return Err(
                "no such detector; there are: misses, identifiers, novelty, volume, interest, key-use, heat".to_owned()
            );
        }
    };
    *switch = false;
    Ok(())
}

/// Sets a number, as `contain=14`; durations are in seconds.
pub fn set(params: &mut Params, assignment: &str) -> Result<(), String> {
    let (name, text) = assignment.split_once('=').ok_or("it is NAME=NUMBER")?;
    let value: f32 =
        text.parse().ok().filter(|value: &f32| value.is_finite() && *value >= 0.0).ok_or("it is NAME=NUMBER")?;
    let seconds = Duration::try_from_secs_f32(value).map_err(|_| "it is NAME=NUMBER")?;
    let p = params;
    match name {
        "warn" => p.warn = value,
        "contain" => p.contain = value,
        "contain-partner" => p.contain_partner = value,
        "contain-whole-staff" => p.contain_whole_staff = value,
        "noise" => p.noise = value,
        "half-life" => p.half_life = seconds,
        "interest-half-life" => p.interest_half_life = seconds,
        "hold" => p.hold = seconds,
        "hold-partner" => p.hold_partner = seconds,
        "hold-most" => p.hold_most = seconds,
        "doubt" => p.doubt = value,
        "pressed" => p.pressed = value,
        "pressed-pace" => p.pressed_pace = value,
        "crowding" => p.crowding = value,
        "relapse" => p.relapse = value,
        "relapse-for" => p.relapse_for = seconds,
        "known-after" => p.known_after = seconds,
        "learn-for" => p.learn_for = seconds,
        "source-new-for" => p.source_new_for = seconds,
        "miss-guess" => p.miss.guess = value,
        "miss-stale-above" => p.miss.stale_above = value,
        "miss-honest-least" => p.miss.honest_least = value,
        "miss-honest-most" => p.miss.honest_most = value,
        "miss-stale-most" => p.miss.stale_most = value,
        "invalid-honest" => p.invalid_honest = value,
        "invalid-guess" => p.invalid_guess = value,
        "invalid-most" => p.invalid_most = value,
        "neighbour-most" => p.neighbour_most = value,
        "series-most" => p.series_most = value,
        "hour-most" => p.hour_most = value,
        "source-most" => p.source_most = value,
        "volume-slope" => p.volume_slope = value,
        "volume-small" => p.volume_small = value,
        "volume-large" => p.volume_large = value,
        "volume-steep" => p.volume_steep = value,
        "in-rows" => p.in_rows = value,
        "colleagues" => p.colleagues = value,
        "volume-most" => p.volume_most = value,
        "watched-honest" => p.watched_honest = value,
        "watched-hunt" => p.watched_hunt = value,
        "canary" => p.canary = value,
        "peak-margin" => p.peak_margin = value,
        "peak-growth" => p.peak_growth = value,
        "known-explains" => p.known_explains = value,
        "pending-partner" => p.pending_partner = value as u32,
        "pending-actor" => p.pending_actor = value as u32,
        _ => return Err(format!("no number {name}; they are the fields of detect::Params, with hyphens")),
    }
    Ok(())
}
