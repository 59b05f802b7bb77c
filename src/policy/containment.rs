//! What may somebody still ask who stands on the ladder of containment?

use serde::{Deserialize, Serialize};

use super::reason::Reason;

/// Where a partner or an actor stands; each step lets through less than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    #[default]
    Open,
    /// Only lookups with consent, and of people whom it knew before there was evidence.
    KnownOnly,
    ConsentOnly,
    Frozen,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::Open, Level::KnownOnly, Level::ConsentOnly, Level::Frozen];

    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Open => "open",
            Level::KnownOnly => "known-only",
            Level::ConsentOnly => "consent-only",
            Level::Frozen => "frozen",
        }
    }

    /// Reads a level as commands name it.
    pub fn parse(text: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.as_str() == text)
    }

    const fn lets_through(self, consent: bool, known: bool) -> bool {
        match self {
            Level::Open => true,
            Level::KnownOnly => consent || known,
            Level::ConsentOnly => consent,
            Level::Frozen => false,
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where those stand who ask: the partner, and the actor whom it names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footing {
    pub partner: Level,
    pub actor: Level,
}

impl Footing {
    pub fn is_open(&self) -> bool {
        *self == Footing::default()
    }

    /// The stricter of two, each for itself: what operators say and what evidence says loosen nothing of one another.
    #[must_use]
    pub fn stricter(self, other: Footing) -> Footing {
        Footing { partner: self.partner.max(other.partner), actor: self.actor.max(other.actor) }
    }
}

/// Whether a lookup may go on that came with a verified consent or without, of a person who was known before or not.
pub fn held(footing: Footing, consent: bool, known: bool) -> Result<(), Reason> {
    if !footing.partner.lets_through(consent, known) {
        return Err(Reason::HeldPartner);
    }
    if footing.actor.lets_through(consent, known) { Ok(()) } else { Err(Reason::HeldActor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_lets_through_less() {
        use Level::*;
        let cases = [(false, false), (false, true), (true, false), (true, true)];
        for (level, passes) in [
            (Open, [true, true, true, true]),
            (KnownOnly, [false, true, true, true]),
            (ConsentOnly, [false, false, true, true]),
            (Frozen, [false, false, false, false]),
        ] {
            for ((consent, known), passes) in cases.into_iter().zip(passes) {
                let of = |partner, actor| held(Footing { partner, actor }, consent, known).err();
                let refusal = |reason| (!passes).then_some(reason);
                assert_eq!(of(level, Open), refusal(Reason::HeldPartner), "{level} {consent} {known}");
                assert_eq!(of(Open, level), refusal(Reason::HeldActor), "{level} {consent} {known}");
            }
        }
    }

    #[test]
    fn a_stricter_step_never_lets_through_what_a_milder_one_holds() {
        for partner in Level::ALL {
            for actor in Level::ALL {
                for other in Level::ALL {
                    let (mild, more) = (Footing { partner, actor }, Footing { partner: other, actor: other });
                    for (consent, known) in [(false, false), (false, true), (true, false), (true, true)] {
                        let passes = held(mild.stricter(more), consent, known).is_ok();
                        assert!(!passes || held(mild, consent, known).is_ok());
                        assert!(!passes || held(more, consent, known).is_ok());
                    }
                }
            }
        }
    }

    #[test]
    fn levels_are_read_as_they_are_written() {
        for level in Level::ALL {
            assert_eq!(Level::parse(level.as_str()), Some(level));
            assert_eq!(serde_json::to_value(level).expect("json"), level.as_str());
        }
        assert_eq!(Level::parse("Frozen"), None);
    }
}
