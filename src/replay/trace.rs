//! How does a line of a trace read? JSON Lines in version 1 of the format; members that it does not know are passed over.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use crate::clock::Timestamp;

/// One lookup.
#[derive(Debug, Deserialize)]
pub struct Event<'a> {
    pub seq: u64,
    pub time: Timestamp,
    #[serde(borrow)]
    pub partner: Cow<'a, str>,
    #[serde(borrow, default)]
    pub actor: Option<Cow<'a, str>>,
    pub source: IpAddr,
    #[serde(borrow)]
    pub route: Cow<'a, str>,
    #[serde(borrow)]
    pub subject: Asked<'a>,
    /// The verified outcome; what is not known is none.
    #[serde(default, deserialize_with = "or_not")]
    pub consent: bool,
    #[serde(default)]
    pub backend: Option<Backend>,
}

#[derive(Debug, Deserialize)]
pub struct Asked<'a> {
    #[serde(borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

/// What the backend answers, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Backend {
    pub status: u16,
    pub records: u32,
}

/// What follows an event that came without an answer, and was allowed.
#[derive(Debug, Deserialize)]
pub struct Answer {
    pub seq: u64,
    pub backend: Backend,
}

fn or_not<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::<bool>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads a line; the error names the key and what is wrong, and quotes nothing of the line: a person may be in it.
pub fn event(line: &str) -> Result<Event<'_>, String> {
    serde_json::from_str(line).map_err(|error| {
        complaint(
            line,
            &error,
            &[
                ("seq", Value::is_u64, "a whole number"),
                ("time", |value| read::<Timestamp>(value), "a time in RFC 3339, as \"2026-03-01T09:00:00.123Z\""),
                ("partner", Value::is_string, "text"),
                ("actor", |value| value.is_null() || value.is_string(), "text or null"),
                ("source", |value| read::<IpAddr>(value), "an IP address"),
                ("route", Value::is_string, "text"),
                ("subject", Value::is_object, "an object with kind and id"),
                ("subject.kind", Value::is_string, "text"),
                ("subject.id", Value::is_string, "text"),
                ("consent", |value| value.is_null() || value.is_boolean(), "true, false or null"),
                ("backend", |value| value.is_null() || read::<Backend>(value), "an object with status and records"),
            ],
        )
    })
}

/// Reads the answer to an event.
pub fn answer(line: &str) -> Result<Answer, String> {
    serde_json::from_str(line).map_err(|error| {
        complaint(
            line,
            &error,
            &[
                ("seq", Value::is_u64, "a whole number"),
                ("backend", |value| read::<Backend>(value), "an object with status and records"),
            ],
        )
    })
}

fn read<'de, T: Deserialize<'de>>(value: &'de Value) -> bool {
    T::deserialize(value).is_ok()
}

type Rule = (&'static str, fn(&Value) -> bool, &'static str);

fn complaint(line: &str, error: &serde_json::Error, rules: &[Rule]) -> String {
    let Ok(value) = serde_json::from_str::<Value>(line) else {
        return format!("not one JSON object: it stops to be JSON at column {}", error.column());
    };
    if !value.is_object() {
        return "not a JSON object".to_owned();
    }
    for (key, is_right, wanted) in rules {
        let found = key.split('.').try_fold(&value, |value, name| value.get(name));
        match found {
            None if matches!(*key, "actor" | "consent" | "backend") && rules.len() > 2 => {}
            None => return format!("{key}: missing; it is {wanted}"),
            Some(found) if !is_right(found) => return format!("{key}: not {wanted}"),
            Some(_) => {}
        }
    }
    "a key stands twice".to_owned()
}
