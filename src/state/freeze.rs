//! Who was frozen by hand, since when, by whom and why? A small file of its own: a freeze must not hang on a journal.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::store::{StoreError, replace};
use crate::clock::Timestamp;

/// A partner's freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freeze {
    pub since: Timestamp,
    /// The operator, as the kernel knows it.
    pub by: String,
    pub reason: String,
}

/// All freezes, by partner. One of a partner that is not configured any more stays: it may come back.
#[derive(Debug, Default)]
pub struct Freezes(BTreeMap<Arc<str>, Freeze>);

const FILE: &str = "freezes.json";

impl Freezes {
    pub fn load(directory: &Path) -> Result<Freezes, StoreError> {
        let path = directory.join(FILE);
        let failed = |what: String| StoreError {
            path: path.clone(),
            what,
            hint: "mend it, or remove it and freeze again whoever has to be",
        };
        match fs::read_to_string(&path) {
            Ok(text) => parse(&text).ok_or_else(|| failed("it is not what this gateway wrote".to_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Freezes::default()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// As [`save`] writes it.
    pub fn document(&self) -> Value {
        let freezes = self.0.iter().map(|(partner, freeze)| {
            let Freeze { since, by, reason } = freeze;
            json!({ "partner": &**partner, "since": since.to_string(), "by": by, "reason": reason })
        });
        json!({ "version": 1, "frozen": freezes.collect::<Vec<_>>() })
    }

    pub fn of(&self, partner: &str) -> Option<&Freeze> {
        self.0.get(partner)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Freeze)> {
        self.0.iter()
    }

    pub fn set(&mut self, partner: &Arc<str>, freeze: Option<Freeze>) {
        match freeze {
            Some(freeze) => drop(self.0.insert(partner.clone(), freeze)),
            None => drop(self.0.remove(partner)),
        }
    }
}

pub fn save(directory: &Path, document: &Value) -> io::Result<()> {
    replace(&directory.join(FILE), format!("{document:#}\n").as_bytes())
}

/// `None` for anything but what [`save`] writes: half of it would thaw the other half.
fn parse(text: &str) -> Option<Freezes> {
    let document: Value = serde_json::from_str(text).ok()?;
    if document["version"] != 1 {
        return None;
    }
    let freeze = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().map(str::to_owned);
        let since = Timestamp::parse(entry["since"].as_str()?)?;
        Some((text("partner")?.into(), Freeze { since, by: text("by")?, reason: text("reason")? }))
    };
    document["frozen"].as_array()?.iter().map(freeze).collect::<Option<_>>().map(Freezes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_whole_stops_the_start() {
        let home = tempfile::TempDir::new().expect("directory");
        let mut freezes = Freezes::default();
        let freeze = Freeze { since: Timestamp::from_unix_seconds(1), by: "uid 0".into(), reason: "a \"test\"".into() };
        freezes.set(&"icmr".into(), Some(freeze.clone()));
        save(home.path(), &freezes.document()).expect("saved");
        assert_eq!(Freezes::load(home.path()).expect("loaded").of("icmr"), Some(&freeze));
        let path = home.path().join(FILE);
        let whole = fs::read_to_string(&path).expect("text");
        for bad in ["", "{}", &whole[..whole.len() / 2], &whole.replace("since", "when"), &whole.replace(": 1", ": 2")]
        {
            fs::write(&path, bad).expect("written");
            let error = Freezes::load(home.path()).expect_err(bad).to_string();
            assert!(error.contains("freezes.json: it is not"), "{error}");
        }
    }
}
