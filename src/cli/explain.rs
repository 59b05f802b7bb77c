//! `dwarpal explain`: what would the gateway decide on one request, and by which line of the configuration?

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::{NO, SENSELESS, YES, complain};
use crate::clock::{Clock, Timestamp};
use crate::config;
use crate::config::cases::Question;
use crate::config::settings::Overrides;
use crate::explain::explain;

#[derive(Args)]
pub struct Arguments {
    /// Directory with gateway.toml and partners/
    #[arg(long, default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// Who calls
    #[arg(long)]
    partner: String,
    /// Which of the partner's identities is shown, from 0
    #[arg(long, default_value_t = 0)]
    identity: usize,
    /// Address that the call comes from
    #[arg(long)]
    source: IpAddr,
    /// Host that is asked; the gateway's first by default
    #[arg(long)]
    host: Option<String>,
    /// A header, as curl has it; may be repeated
    #[arg(long, short = 'H', value_name = "NAME: VALUE", value_parser = header)]
    header: Vec<(String, String)>,
    /// The body
    #[arg(long, short = 'd', default_value = "", hide_default_value = true)]
    body: String,
    /// The time to decide at, such as 2026-03-01T09:00:00Z; now by default
    #[arg(long, value_parser = time)]
    at: Option<Timestamp>,
    /// Method, such as POST
    method: String,
    /// Path and query
    target: String,
}

pub fn run(arguments: Arguments) -> u8 {
    let config = match config::load(&arguments.config, &Overrides::default()) {
        Ok(config) => config,
        Err(problems) => return complain(&problems),
    };
    let mut headers = BTreeMap::new();
    for (name, value) in arguments.header {
        if headers.insert(name.clone(), value).is_some() {
            eprintln!("error: header {name} is given twice");
            return SENSELESS;
        }
    }
    let question = Question {
        partner: arguments.partner,
        identity: arguments.identity,
        source: arguments.source,
        host: arguments.host,
        method: arguments.method,
        target: arguments.target,
        headers,
        body: arguments.body,
        at: arguments.at,
    };
    let explanation = match explain(&config.policy, &config.settings, &question, Clock::system().now()) {
        Ok(explanation) => explanation,
        Err(why) => {
            eprintln!("error: {why}");
            return SENSELESS;
        }
    };
    for (step, found) in explanation.trail.lines(&config.policy) {
        println!("{step:<9} {found}");
    }
    if let Some(forwarded) = &explanation.forwarded {
        println!("{:<9} {forwarded}", "forward");
    }
    println!("{:<9} {}", "verdict", explanation.verdict());
    if explanation.denied.is_none() { YES } else { NO }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("it is \"NAME: VALUE\"")?;
    match name.trim().to_ascii_lowercase().as_str() {
        "host" => return Err("the host is --host".to_owned()),
        "content-length" | "transfer-encoding" => return Err("the body's length is that of --body".to_owned()),
        _ => {}
    }
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).ok_or("it is a time such as 2026-03-01T09:00:00Z".to_owned())
}
