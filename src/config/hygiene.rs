//! What is allowed but should be looked at: entries that expire, overlap, or are of no use. Warnings only.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use super::Config;
use super::problem::Problem;
use super::settings::{Revocation, Settings};
use crate::clock::Timestamp;
use crate::policy::networks::{address_count, is_wide, overlaps};
use crate::policy::route::{RouteId, RouteKind};

/// An entry that expires within this time is worth a warning.
const SOON: Duration = Duration::from_secs(30 * 86_400);
/// Warnings of one kind for one pair of partners or one list; the rest is counted.
const SHOWN_MAX: usize = 20;

pub fn warnings(config: &Config, now: Timestamp) -> Vec<Problem> {
    let mut found = Vec::new();
    for partner in &config.policy.partners {
        networks(partner, now, &mut found);
        let file = || &*partner.place.file;
        if partner.networks.is_empty() {
            let problem = Problem::warning(file(), "network", "no network: nobody can call as this partner");
            found.push(problem.with_hint("add [[network]] with its addresses"));
        }
        if partner.grants.is_empty() {
            found.push(Problem::warning(file(), "grant", "no grant: this partner may call nothing but whoami"));
        }
        if let (Some(from), Some(until)) = (partner.valid_from, partner.valid_until)
            && until <= from
        {
            found.push(Problem::warning(file(), "valid_until", "not after valid_from: the agreed period is empty"));
        }
        if let Some(until) = partner.valid_until.filter(|until| *until < now.plus(SOON)) {
            let message = if until <= now { "the agreed period is over" } else { "the agreed period ends soon" };
            found.push(Problem::warning(file(), "valid_until", message).with_value(until.to_string()));
        }
    }
    pairs(config, &mut found);
    for (at, route) in config.policy.routes.iter().enumerate() {
        let granted = config.policy.partners.iter().flat_map(|partner| &partner.grants);
        if !granted.into_iter().any(|grant| usize::from(grant.route.0) == at) {
            let problem = Problem::warning(&*route.place.file, "route", "granted to nobody");
            found.push(problem.at_line(route.place.line as usize).with_value(&*route.name));
        }
        for host in route.hosts.iter().filter(|host| !config.policy.hosts.contains(host)) {
            let problem =
                Problem::warning(&*route.place.file, "route.hosts", "not one of listen.hosts, so never asked for");
            found.push(problem.at_line(route.place.line as usize).with_value(host));
        }
        for lookup in config.policy.router.beside(RouteId(at as u16)) {
            let lookup = config.policy.route(*lookup);
            let message =
                format!("covers paths that a lenient backend may take for {} ({})", lookup.name, lookup.place);
            let problem = Problem::warning(&*route.place.file, "route.path", message);
            let problem = problem.at_line(route.place.line as usize).with_value(route.pattern.to_string());
            found.push(
                problem.with_hint("such paths are refused; write narrower patterns, so that none looks like it passes"),
            );
        }
        let unsafe_query = matches!(&route.kind, RouteKind::Lookup(lookup)
            if matches!(lookup.subject, crate::policy::route::Location::Query(_)));
        if unsafe_query {
            let problem =
                Problem::warning(&*route.place.file, "route.lookup.subject", "identifiers travel in the query");
            found.push(
                problem.at_line(route.place.line as usize).with_hint("see that no log of the backend keeps them"),
            );
        }
    }
    settings(&config.settings, &mut found);
    found
}

fn networks(partner: &crate::policy::Partner, now: Timestamp, found: &mut Vec<Problem>) {
    let mut shown = 0;
    for (_, network) in partner.networks.iter() {
        let (key, message) = match network.note.expires {
            Some(expires) if expires <= now => ("cidr", format!("expired at {expires}")),
            Some(expires) if expires <= now.plus(SOON) => ("cidr", format!("expires at {expires}")),
            None if network.note.expires.is_none() && !is_wide(&network.cidr) => continue,
            None => ("cidr", format!("{} addresses, and it never expires", address_count(&network.cidr))),
            Some(_) => continue,
        };
        shown += 1;
        if shown > SHOWN_MAX {
            continue;
        }
        let hint = format!("owner {}, ticket {}", network.note.owner, network.note.ticket);
        let problem = Problem::warning(&*network.note.file, key, message).at_line(network.line as usize);
        found.push(problem.with_value(network.cidr.to_string()).with_hint(hint));
    }
    if shown > SHOWN_MAX {
        let message = format!("{} more networks that expired, expire soon or are wide", shown - SHOWN_MAX);
        found.push(Problem::warning(&*partner.place.file, "network", message));
    }
    let endless = partner.networks.iter().filter(|(_, network)| network.note.expires.is_none()).count();
    if endless > 0 {
        let message = format!("{endless} of {} networks never expire", partner.networks.len());
        let problem = Problem::warning(&*partner.place.file, "network", message);
        found.push(problem.with_hint("give each an expires date, so that somebody looks at it again"));
    }
}

fn pairs(config: &Config, found: &mut Vec<Problem>) {
    let partners = &config.policy.partners;
    for (at, one) in partners.iter().enumerate() {
        for other in &partners[at + 1..] {
            for (a, b) in overlaps(&one.networks, &other.networks, SHOWN_MAX) {
                let (a, b) = (one.networks.network(a), other.networks.network(b));
                let message = format!("overlaps {} of {} ({}:{})", b.cidr, other.name, b.note.file, b.line);
                let problem = Problem::warning(&*a.note.file, "network", message).at_line(a.line as usize);
                let hint = "one machine could then call as either, given both certificates";
                found.push(problem.with_value(a.cidr.to_string()).with_hint(hint));
            }
        }
    }
}

fn settings(settings: &Settings, found: &mut Vec<Problem>) {
    for issuer in &settings.tls.issuers {
        if issuer.revocation == Revocation::Off {
            let problem = Problem::warning(&*issuer.place.file, "issuer.revocation", "revocation is not checked");
            let hint = "fine for certificates that live for days; otherwise list the issuer's CRLs";
            found.push(problem.at_line(issuer.place.line as usize).with_value(&*issuer.name).with_hint(hint));
        }
    }
    for backend in &settings.backends {
        let open = backend.servers.iter().find(|server| !server.ip().is_loopback());
        if let (None, Some(server)) = (&backend.tls, open) {
            let problem =
                Problem::warning(&*backend.place.file, "backend.servers", "is sent plain text over a network");
            let hint = "people's identifiers can be read on the way: add [backend.tls]";
            found.push(problem.at_line(backend.place.line as usize).with_value(server.to_string()).with_hint(hint));
        }
    }
    let epoch_keys = settings.keyring().files();
    let epoch_keys = epoch_keys.iter().map(|path| ("data.directory", path.as_path()));
    let own = [("tls.key", settings.tls.key.as_path())].into_iter().chain(epoch_keys);
    let clients = settings.backends.iter().filter_map(|backend| backend.tls.as_ref()?.client.as_ref());
    for (key, path) in own.chain(clients.map(|client| ("backend.tls.key", client.key.as_path()))) {
        if let Some(mode) = exposed(path) {
            let message = format!("readable by others (mode {mode:04o})");
            let hint = format!("chmod 600 {}", path.display());
            found.push(Problem::warning(path.display().to_string(), key, message).with_hint(hint));
        }
    }
}

/// The mode of a file that group or others may read.
fn exposed(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}
