//! `dwarpal audit replay`: do the recorded verdicts follow from the recorded facts?

use std::collections::HashMap;
use std::io::Write;

use clap::Args;
use serde_json::json;

use super::super::{NO, YES, counted};
use super::{Answer, Failure, Place, stdout};
use crate::audit::event::{Event, Request};
use crate::audit::replay;
use crate::config;
use crate::config::settings::Overrides;
use crate::policy::identify::Credential;

#[derive(Args)]
pub struct Replay {
    #[command(flatten)]
    place: Place,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// So many differences are shown one by one.
const SHOWN_MAX: usize = 20;

/// Asks the core of this configuration again about every request that was decided under the very same files.
pub fn run(arguments: Replay) -> Answer {
    let directory = &arguments.place.gateway.config;
    let config = config::load(directory, &Overrides::default())?;
    let digest = config::digest(directory, &config.files);
    let mut log = arguments.place.open()?;
    let mut credentials: HashMap<String, Credential> = HashMap::new();
    let (mut served, mut same, mut others, mut differences) = (false, 0usize, 0usize, Vec::new());
    log.each::<Failure>(0..u64::MAX, |index, json| {
        // `verify` says what cannot be read.
        let Ok(event) = Event::from_json(json) else { return Ok(()) };
        match event {
            Event::Start(start) => served = start.digest == digest,
            Event::Reload(reload) => served = reload.digest == digest,
            Event::Credential(entry) => {
                let credential = replay::credential(&entry);
                credentials.extend(credential.map(|credential| (entry.fingerprint.into_owned(), credential)));
            }
            Event::Disclosure(_) | Event::Denied(_) if !served => others += 1,
            Event::Disclosure(request) | Event::Denied(request) => {
                match difference(&config.policy, &request, &credentials) {
                    None => same += 1,
                    Some(what) => differences.push((index, what)),
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let mut out = stdout();
    if arguments.json {
        let shown: Vec<_> = differences.iter().map(|(index, what)| json!({ "index": index, "what": what })).collect();
        let answer = json!({ "digest": digest, "same": same, "differences": shown, "of_other_configurations": others });
        writeln!(out, "{answer}")?;
    } else {
        for (index, what) in differences.iter().take(SHOWN_MAX) {
            writeln!(out, "entry {index}: {what}")?;
        }
        writeln!(out, "{} of this configuration follow again from what was recorded", counted(same, "verdict"))?;
        if !differences.is_empty() {
            writeln!(out, "{} do not", counted(differences.len(), "verdict"))?;
        }
        if others > 0 {
            writeln!(out, "{} were made under other files, and were not looked at", counted(others, "verdict"))?;
        }
    }
    out.flush()?;
    Ok(if differences.is_empty() { YES } else { NO })
}

fn difference(
    policy: &crate::policy::Policy,
    request: &Request,
    credentials: &HashMap<String, Credential>,
) -> Option<String> {
    let Some(credential) = credentials.get(&*request.credential) else {
        return Some("its client certificate is not in the log before it".to_owned());
    };
    match replay::replay(policy, request, credential) {
        Ok((verdict, reason)) if (verdict, reason) == (request.verdict, request.reason) => None,
        Ok((verdict, reason)) => {
            let said = |reason: Option<crate::policy::reason::Reason>| reason.map_or("", |reason| reason.code());
            let (recorded, now) = (request.verdict.as_str(), verdict.as_str());
            Some(format!("recorded {recorded} {}, but {now} {} follows", said(request.reason), said(reason)))
        }
        Err(unknown) => Some(unknown),
    }
}
