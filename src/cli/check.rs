//! `dwarpal check`: may this configuration be served? Errors, cases, then what should be looked at.

use std::path::PathBuf;

use clap::Args;

use super::{NO, OverrideArguments, YES, complain, counted};
use crate::clock::Clock;
use crate::config::partner::{GRANT_LIMITS, PARTNER_LIMITS};
use crate::config::{self, hygiene};
use crate::explain::case_failure;
use crate::policy::Policy;
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
    let shadows = shadows(&config.policy);
    let cases = config.cases.len();
    // Last, since it takes the configuration: certificates, keys and lists.
    match Snapshot::build(config, &State::default()) {
        Ok(snapshot) => warnings.extend(snapshot.warnings(now)),
        Err(problems) => return complain(&problems),
    }
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    for shadow in &shadows {
        println!("shadow: {shadow}");
    }
    println!(
        "{}, {}, {}; {cases} cases, {failed} failed; {}; {} in shadow",
        counted(partners, "partner"),
        counted(routes, "route"),
        counted(networks, "network"),
        counted(warnings.len(), "warning"),
        shadows.len(),
    );
    if failed > 0 || (arguments.strict && !warnings.is_empty()) { NO } else { YES }
}

/// Each limit and each network that is counted and logged, but not enforced.
fn shadows(policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    for partner in &policy.partners {
        let name = &partner.name;
        for (_, network) in partner.networks.iter().filter(|(_, network)| network.note.shadow) {
            let (note, cidr) = (network.note, network.cidr);
            let (file, line, owner, ticket) = (&note.file, network.line, &note.owner, &note.ticket);
            found.push(format!("{file}:{line}: network {cidr} of {name}, owner {owner}, ticket {ticket}"));
        }
        for (key, _) in PARTNER_LIMITS.iter().filter(|(_, reason)| partner.limits.shadow.contains(*reason)) {
            found.push(format!("{}: limits.{key} of {name}", partner.limits_place));
        }
        for grant in &partner.grants {
            let route = &policy.route(grant.route).name;
            for (key, _) in GRANT_LIMITS.iter().filter(|(_, reason)| grant.shadow.contains(*reason)) {
                found.push(format!("{}: grant.{key} of {name} for {route}", grant.place));
            }
        }
    }
    found
}
