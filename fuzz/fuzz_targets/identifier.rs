//! Has every identifier one canonical form, and does nothing of it show where it must not?
#![no_main]

use std::sync::LazyLock;

use dwarpal::policy::lookup::Actor;
use dwarpal::subject::{EpochKey, Kind, Subject, resembles_subject};
use libfuzzer_sys::fuzz_target;

static KEY: LazyLock<EpochKey> = LazyLock::new(EpochKey::ephemeral);

fuzz_target!(|text: &str| {
    let mut resembles = false;
    for kind in Kind::ALL {
        assert_eq!(Subject::parse(kind, &text.to_ascii_lowercase()), Subject::parse(kind, text), "case does not count");
        match Subject::parse(kind, text) {
            Ok(subject) => {
                resembles = true;
                one_form(kind, text, &subject);
            }
            // What is said of it is one of a few sentences: no run of its digits is in there.
            Err(invalid) => {
                let said = format!("{invalid} {invalid:?} {}", invalid.as_str());
                let longest = said.split(|c: char| !c.is_ascii_digit()).map(str::len).max();
                assert!(longest <= Some(2), "an error shows digits");
                assert!(said.is_ascii(), "an error shows what is not its own");
            }
        }
    }
    // It notices more than whole ids: numbers inside longer values, and digits of other scripts.
    assert!(!resembles || resembles_subject(text), "an id is not noticed");
    let resembles = resembles_subject(text);
    match Actor::parse(text) {
        Some(actor) => {
            assert!(!resembles, "an actor's id may be a person's");
            assert_eq!(actor.as_str(), text);
        }
        None => assert!(
            resembles
                || text.is_empty()
                || text.len() > 64
                || text.contains(|c: char| !c.is_alphanumeric() || !c.is_ascii())
        ),
    }
});

fn one_form(kind: Kind, text: &str, subject: &Subject) {
    let id = subject.expose();
    assert!((8..=16).contains(&id.len()));
    assert!(id.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()));
    assert_eq!(subject.kind(), kind);
    assert_eq!(Subject::parse(kind, id), Ok(*subject), "the canonical form is a fixed point");
    // Nothing was made up: the canonical form is the end of what was given, in capitals and without separators.
    let given: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
    assert!(given.to_ascii_uppercase().ends_with(id), "the id is what was asked for");

    let spaced: Vec<String> = id.chars().map(String::from).collect();
    let spaced = format!(" {}\t", spaced.join(" -"));
    let again = Subject::parse(kind, &spaced).expect("separators do not count");
    assert_eq!(again, *subject);
    assert_eq!(KEY.token(&again), KEY.token(subject), "one person has one token");
    assert!(!format!("{subject:?} {:?}", KEY.token(subject)).contains(id), "an id is shown");

    let features = KEY.features(subject);
    assert!(features.offset < 1000);
    assert!(features.block != features.before && features.block != features.after);
    assert_eq!(subject.allocated().is_some(), kind == Kind::Mobile);
}
