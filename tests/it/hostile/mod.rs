//! What do callers get who do not keep to the rules? Tables of hostile bytes and frames, each row with its class, its
//! answer, and exactly what the backend may see of it.

/// The cases of h2spec, and the comparison with the rows.
mod h2spec;
/// Raw bytes over HTTP/1.1: framing, fields, targets, identity, paths, queries, bodies.
mod http1;
/// Frames of HTTP/2, and what is said in them.
mod http2;
/// Slow callers and floods, with a well-behaved partner beside them.
mod slow;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::world::backend::Recorded;
use crate::world::line::{Answer, Line, assert_decision};
use crate::world::pki::pki;
use crate::world::{GAMMA, World};

/// What kind of attack a row is, as others know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A rule of an RFC, by number and section.
    Rfc(u16, &'static str),
    /// A hole that somebody else's software had.
    Cve(&'static str),
    /// A weakness that has a name but no one place.
    Cwe(u16),
    /// Where it was first described.
    Research(&'static str),
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Rfc(number, section) => {
                write!(f, "https://www.rfc-editor.org/rfc/rfc{number}.html#section-{section}")
            }
            Class::Cve(id) => write!(f, "https://www.cve.org/CVERecord?id=CVE-{id}"),
            Class::Cwe(number) => write!(f, "https://cwe.mitre.org/data/definitions/{number}.html"),
            Class::Research(link) => f.write_str(link),
        }
    }
}

/// Checks that rows have names of their own and classes that lead somewhere.
fn assert_a_table<'a>(rows: impl Iterator<Item = (&'a str, Class)>, at_least: usize) {
    let rows: Vec<_> = rows.collect();
    assert!(rows.len() >= at_least, "{} rows of {at_least}", rows.len());
    let mut names: Vec<_> = rows.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    names.windows(2).for_each(|two| assert_ne!(two[0], two[1], "two rows of one name"));
    for (name, class) in rows {
        let fits = match class {
            Class::Rfc(number, section) => {
                number > 1_000 && section.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.'))
            }
            Class::Cve(id) => id.split_once('-').is_some_and(|(year, number)| year.len() == 4 && number.len() >= 4),
            Class::Cwe(number) => number > 0,
            Class::Research(link) => link.starts_with("https://"),
        };
        assert!(fits, "{name}: {class}");
    }
}

/// What the backend is to get of a request: nothing besides is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Method, target and version.
    pub line: String,
    /// Fields besides those that the gateway sets on every request. Names in lower case, sorted.
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Expected {
    pub fn new(line: &str, fields: &[(&str, &str)], body: &[u8]) -> Expected {
        let line = format!("{line} HTTP/1.1");
        let mut fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        fields.sort();
        Expected { line, fields, body: body.into() }
    }

    /// What was recorded, without what the gateway alone says; that is checked here, to the byte where it is known.
    pub fn of(recorded: &Recorded, partner: &str) -> Expected {
        for (name, value) in [
            ("x-partner", partner),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "localhost"),
            ("host", "registry.internal"),
            ("x-client-dn", &format!("O=Test, CN={partner}")),
            ("x-forwarded-for", &if partner == "gamma" { GAMMA } else { crate::world::ALPHA }.to_string()),
        ] {
            assert_eq!(recorded.header(name), value, "{name}");
        }
        assert_decision(recorded.header("x-decision-id"));
        let trace: Vec<_> = recorded.header("traceparent").split('-').map(str::len).collect();
        assert_eq!(trace, [2, 32, 16, 2]);
        if partner == "alpha" {
            let certificate = recorded.header("client-cert").trim_matches(':');
            assert_eq!(BASE64_STANDARD.decode(certificate).as_deref(), Ok(&*alpha_der()));
        }
        const OWN: [&str; 9] = [
            "x-partner",
            "x-forwarded-proto",
            "x-forwarded-host",
            "x-forwarded-for",
            "host",
            "x-client-dn",
            "x-decision-id",
            "traceparent",
            "client-cert",
        ];
        let fields = recorded.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        let mut fields: Vec<_> = fields.filter(|(name, _)| !OWN.contains(&name.as_str())).collect();
        fields.sort();
        // Every byte of the head is accounted for: nothing hides between the lines.
        let head: String = recorded.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{}\r\n{head}\r\n", recorded.line);
        assert!(recorded.raw.starts_with(head.as_bytes()), "{}", recorded.text());
        if recorded.values("transfer-encoding").is_empty() {
            assert_eq!(recorded.raw.len(), head.len() + recorded.body.len(), "{}", recorded.text());
        }
        Expected { line: recorded.line.clone(), fields, body: recorded.body.clone() }
    }
}

fn alpha_der() -> Vec<u8> {
    use std::sync::OnceLock;
    static DER: OnceLock<Vec<u8>> = OnceLock::new();
    DER.get_or_init(|| pki().alpha.der()).clone()
}

/// A partner who keeps to the rules, on a connection that stays open.
pub struct WellBehaved(Line);

const WELL: &str = "/rest/well-behaved";

impl WellBehaved {
    pub fn new(world: &World) -> WellBehaved {
        WellBehaved(world.line(&pki().gamma, GAMMA))
    }

    /// Asks for something that the backend has to answer.
    #[track_caller]
    pub fn is_served(&mut self) {
        let answer: Answer = self.0.ask(format!("GET {WELL} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        assert_eq!((answer.status, answer.text().as_str(), answer.whole), (200, "0", true), "{answer:?}");
    }
}

/// Takes what the backend recorded of a row: all of it, in the order of its coming, without the well-behaved partner's.
pub fn seen_by_backend(world: &World) -> Vec<Expected> {
    let mut seen = Vec::new();
    for recorded in world.backend.requests(world.backend.count()) {
        let own = recorded.target() == WELL && recorded.header("x-partner") == "gamma";
        let expected = Expected::of(&recorded, if own { "gamma" } else { "alpha" });
        if !own {
            seen.push(expected);
        }
    }
    world.backend.forget();
    seen
}

/// Runs every row, also after one that failed, and then names those that failed.
pub fn drive<T>(rows: &[T], name: impl Fn(&T) -> String, mut run: impl FnMut(&T)) {
    let mut failed = Vec::new();
    for row in rows {
        if catch_unwind(AssertUnwindSafe(|| run(row))).is_err() {
            eprintln!("that was: {}", name(row));
            failed.push(name(row));
        }
    }
    assert!(failed.is_empty(), "{} of {} rows failed:\n{}", failed.len(), rows.len(), failed.join("\n"));
}
