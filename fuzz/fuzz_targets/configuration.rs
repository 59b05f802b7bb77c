//! Is any configuration either refused with something to say, or one that lets nobody in whom it does not name?
//!
//! The input is gateway.toml, a partner, that partner's list of networks and a file of cases, with lines `####` between.
#![no_main]

use std::net::IpAddr;
use std::sync::LazyLock;

use dwarpal::clock::Timestamp;
use dwarpal::config::problem::Problem;
use dwarpal::config::settings::Overrides;
use dwarpal::config::{Config, hygiene};
use dwarpal::policy::admit::Standing;
use dwarpal::policy::charge::Receipt;
use dwarpal::policy::identify::Credential;
use dwarpal::policy::path::CanonicalPath;
use dwarpal::policy::{Head, Policy, Sender, WHOAMI_PATH};
use dwarpal_fuzz::Scratch;
use libfuzzer_sys::fuzz_target;

static SCRATCH: LazyLock<Scratch> = LazyLock::new(Scratch::new);
const FILES: [&str; 4] = ["gateway.toml", "partners/partner.toml", "partners/partner.networks", "cases/cases.toml"];

fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == b'\n').collect::<Vec<_>>();
    // A last line without its end is a line.
    parts.pop_if(|last| last.is_empty());
    let mut parts = parts.split(|line| *line == b"####");
    for file in FILES {
        let text = parts.next().map_or_else(Vec::new, |lines| lines.join(&b'\n'));
        SCRATCH.write(file, &text);
    }
    let now = Timestamp::from_unix_seconds(1_800_000_000);
    match dwarpal::config::load(SCRATCH.path(), &Overrides::default()) {
        Ok(config) => {
            hygiene::warnings(&config, now).iter().for_each(says_something);
            nobody_else(&config, now);
        }
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            problems.iter().for_each(says_something);
        }
    }
});

fn says_something(problem: &Problem) {
    assert!(!problem.message.trim().is_empty() && !problem.file.is_empty());
    let line = problem.to_string();
    assert!(!line.contains(char::is_control), "a problem is one line of text");
    assert!(problem.line != Some(0), "lines are counted from 1");
}

/// Credentials that prove nothing, or what no partner is known by, open no route, from wherever.
fn nobody_else(config: &Config, now: Timestamp) {
    let policy = &config.policy;
    let issuers = config.settings.tls.issuers.iter().map(|issuer| issuer.name.clone());
    let mut sources: Vec<IpAddr> = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from([0; 16])];
    for partner in &policy.partners {
        sources.extend(partner.networks.iter().take(8).map(|(_, network)| network.cidr.addr()));
    }
    for issuer in issuers.chain(["".into()]) {
        let not_after = Timestamp::from_unix_seconds(u64::MAX);
        let (spki, fingerprint) = ([0x5a; 32], [0; 32]);
        let nothing =
            Credential { issuer: issuer.clone(), uris: vec![], dns_names: vec![], spki, fingerprint, not_after };
        let names = vec![String::new(), "nobody\u{1}".to_owned()];
        let unknown = Credential { uris: names.clone(), dns_names: names, ..nothing.clone() };
        // What a partner is known by, but under an issuer that does not exist.
        let mut borrowed = Credential { issuer: "\u{1}".into(), ..nothing.clone() };
        for identity in policy.partners.iter().flat_map(|partner| &partner.identities) {
            use dwarpal::policy::identify::Proof;
            match &identity.proof {
                Proof::Uri { uri, .. } => borrowed.uris.push(uri.clone()),
                Proof::Dns { name, .. } => borrowed.dns_names.push(name.clone()),
                Proof::Spki { .. } => {}
            }
        }
        for credential in [&nothing, &unknown, &borrowed] {
            assert_eq!(policy.identify(credential, now), None);
            sources.iter().for_each(|source| denied(policy, credential, *source, now));
        }
    }
}

fn denied(policy: &Policy, credential: &Credential, source: IpAddr, now: Timestamp) {
    let sender = Sender { now, source, credential, standing: Standing::Open };
    let routes = policy.routes.iter().map(|route| {
        let pattern = route.pattern.to_string();
        let segments = pattern.split('/').map(|part| if part.starts_with(['{', '*']) { "a" } else { part });
        (route.methods.first().map_or("GET", String::as_str), segments.collect::<Vec<_>>().join("/"))
    });
    for (method, path) in routes.chain([("GET", WHOAMI_PATH.to_owned())]) {
        let path = CanonicalPath::parse(&path).expect("a pattern is canonical");
        for host in policy.hosts.iter().take(4) {
            let plan = policy.plan_head(&Head { sender, host, method, path: &path });
            assert_eq!(plan.partner(), None);
            assert_eq!(plan.charges().count(), 0);
            assert!(plan.settle(Receipt::Paid).is_err(), "somebody got in");
        }
    }
}
