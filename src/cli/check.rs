//! `dwarpal check`: may this configuration be served? Errors, cases, then what should be looked at.

use std::path::PathBuf;

use clap::Args;

use super::{NO, OverrideArguments, YES, complain, counted};
use crate::clock::Clock;
use crate::config::{self, hygiene};
use crate::explain::case_failure;
use crate::snapshot::Snapshot;
use crate::state::State;

#[derive(Args)]
pub struct Arguments {
    /// Directory with gateway.toml, partners/ and cases/
    #[arg(default_value = "config", value_name = "DIRECTORY")]
    config: PathBuf,
    /// Fail on warnings too
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    overrides: OverrideArguments,
}

pub fn run(arguments: Arguments) -> u8 {
    let config = match config::load_with(&arguments.config, &arguments.overrides.overrides(), Snapshot::file_problems) {
        Ok(config) => config,
        Err(problems) => return complain(&problems),
    };
    let now = Clock::system().now();
    let mut failed = 0;
    for case in &config.cases {
        if let Some(why) = case_failure(case, &config.policy, &config.settings, now) {
            failed += 1;
            eprintln!("failed: {}: {}: {why}", case.place, case.name);
        }
    }
    let mut warnings = hygiene::warnings(&config, now);
    let (partners, routes) = (config.policy.partners.len(), config.policy.routes.len());
    let networks: usize = config.policy.partners.iter().map(|partner| partner.networks.len()).sum();
    let cases = config.cases.len();
    // Last, since it takes the configuration: certificates, keys and lists.
    match Snapshot::build(config, &State::default()) {
        Ok(snapshot) => warnings.extend(snapshot.warnings(now)),
        Err(problems) => return complain(&problems),
    }
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    println!(
        "{}, {}, {}; {cases} cases, {failed} failed; {}",
        counted(partners, "partner"),
        counted(routes, "route"),
        counted(networks, "network"),
        counted(warnings.len(), "warning"),
    );
    if failed > 0 || (arguments.strict && !warnings.is_empty()) { NO } else { YES }
}
