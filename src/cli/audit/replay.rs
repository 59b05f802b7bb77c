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

/// Requests that were decided under a generation before the entry of its reload was written.
const EARLY_MAX: usize = 10_000;

/// So many differences are shown one by one.
const SHOWN_MAX: usize = 20;

/// Asks the core of this configuration again about every request that was decided under the very same files.
pub fn run(arguments: Replay) -> Answer {
    let directory = &arguments.place.gateway.config;
    let config = config::load(directory, &Overrides::default())?;
    let digest = config::digest(directory, &config.files);
    let mut log = arguments.place.open()?;
    let mut credentials: HashMap<String, Credential> = HashMap::new();
    let mut generations: HashMap<u64, bool> = HashMap::new();
    let mut early: Vec<(u64, Vec<u8>)> = Vec::new();
    let (mut same, mut others, mut differences) = (0usize, 0usize, Vec::new());
    let judge = |is_served: bool, request: &Request, credentials: &HashMap<String, Credential>| {
        is_served.then(|| difference(&config.policy, request, credentials))
    };
    let mut settle = |index, judged: Option<Option<String>>| match judged {
        None => others += 1,
        Some(None) => same += 1,
        Some(Some(what)) => differences.push((index, what)),
    };
    log.each::<Failure>(0..u64::MAX, |index, json| {
        // `verify` says what cannot be read.
        let Ok(event) = Event::from_json(json) else { return Ok(()) };
        match event {
            Event::Start(start) => {
                // Those of the run before, whose reload never got into the log.
                early.drain(..).for_each(|(index, _)| settle(index, None));
                generations = HashMap::from([(start.generation, start.digest == digest)]);
            }
            Event::Reload(reload) => {
                let is_served = reload.digest == digest;
                generations.insert(reload.generation, is_served);
                for (index, json) in std::mem::take(&mut early) {
                    match Event::from_json(&json) {
                        Ok(Event::Disclosure(request) | Event::Denied(request))
                            if request.generation == reload.generation =>
                        {
                            settle(index, judge(is_served, &request, &credentials));
                        }
                        _ => early.push((index, json)),
                    }
                }
            }
            Event::Credential(entry) => {
                let credential = replay::credential(&entry);
                credentials.extend(credential.map(|credential| (entry.fingerprint.into_owned(), credential)));
            }
            Event::Disclosure(request) | Event::Denied(request) => match generations.get(&request.generation) {
                Some(is_served) => settle(index, judge(*is_served, &request, &credentials)),
                None if early.len() < EARLY_MAX => early.push((index, json.to_vec())),
                None => settle(index, None),
            },
            _ => {}
        }
        Ok(())
    })?;
    others += early.len();
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
