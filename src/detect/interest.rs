//! People of interest: the operator's watch list, and rows that are nobody's. A health worker meets a minister once in years;
//! who works off a list, or answers strangers, meets several in a day.

use super::Interest;
use super::evidence::{Part, Unit};
use super::params::Params;

/// Folds a first contact without consent, or any touch of a canary: a watched person who consented explains itself, and a
/// canary cannot consent.
pub fn fold(params: &Params, unit: &mut Unit, interest: &Interest, first: bool) {
    if !params.on.interest {
        return;
    }
    match interest {
        Interest::None if first => {
            unit.fold(params, Part::Watched, ((1.0 - params.watched_hunt) / (1.0 - params.watched_honest)).ln());
        }
        Interest::Watched if first => {
            unit.fold(params, Part::Watched, (params.watched_hunt / params.watched_honest).ln())
        }
        Interest::None | Interest::Watched => {}
        Interest::Canary(_) => {
            unit.fold(params, Part::Canary, params.canary);
            unit.canaries = unit.canaries.saturating_add(1);
        }
    }
}
