//! What do the contracts of a world allow? A folder with `partners.json`, `protected.json` and `canaries.json` made into a policy,
//! by what ships for each class and nothing else.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::Replay;
use crate::clock::Timestamp;
use crate::detect::{Class, Interest, Params, Profile};
use crate::policy::charge::Rate;
use crate::policy::entitle::Grant;
use crate::policy::identify::{Credential, Identities, Identity, Proof};
use crate::policy::networks::{NetworksBuilder, Note};
use crate::policy::route::{Location, LookupRoute, Pattern, Place, Route, RouteId, RouteKind, Router};
use crate::policy::{Limits, Partner, Policy, contract};
use crate::subject::{Kind, Subject};

/// As many people as one answer may name.
const PEOPLE_MAX: u16 = 6;

#[derive(Deserialize)]
struct Contracts {
    partners: Vec<Contract>,
}

#[derive(Deserialize)]
struct Contract {
    name: String,
    /// What sort of organisation it is.
    kind: String,
    cidrs: Vec<String>,
    routes: Vec<String>,
    #[serde(default)]
    actors: bool,
    #[serde(default)]
    contracted_per_day: u32,
    #[serde(default)]
    consent_required: bool,
    #[serde(default)]
    critical: bool,
}

#[derive(Deserialize)]
struct People {
    subjects: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    kind: String,
    id: String,
}

/// Reads a world; every error names the file, and the key with its value.
pub fn open(directory: &Path, params: Params) -> Result<Replay, String> {
    let path = directory.join("partners.json");
    let Contracts { partners } = read(&path)?;
    if partners.len() > usize::from(u16::MAX) {
        return Err(format!("{}: partners: more than {}", path.display(), u16::MAX));
    }
    let params = Arc::new(params);
    let routes = routes(&partners)?;
    let file: Arc<str> = path.display().to_string().into();
    let mut made = Vec::new();
    let mut parties = Vec::new();
    for contract in &partners {
        made.push(partner(contract, &routes, &file)?);
        parties.push((credential(&contract.name), profile(contract, &params)));
    }
    let identities = Identities::build(&made).map_err(|_| format!("{file}: partners: two have the same name"))?;
    let router =
        Router::build(&routes, &|_, _| true).map_err(|_| format!("{file}: routes: two cannot be told apart"))?;
    let policy = Policy { partners: made, routes, router, identities, hosts: Vec::new() };
    let protected = people(&directory.join("protected.json"), Interest::Watched)?;
    let canaries = people(&directory.join("canaries.json"), Interest::Canary(None))?;
    Ok(Replay::new(policy, parties, protected.into_iter().chain(canaries), ENTRIES_MAX))
}

/// As in the reference configuration.
const ENTRIES_MAX: usize = 1_000_000;
const ISSUER: &str = "world";

/// What ships for a partner of whose class nothing more is known. Requests are bounded well above what people do; whom they ask
/// for is what counts. A client that repeats one person every few seconds while the backend is away is not refused.
const LIMITS: Limits = Limits {
    requests: Rate { count: 50, period: Duration::from_secs(1), burst: 200 },
    source: Rate { count: 50, period: Duration::from_secs(1), burst: 200 },
    subject: Rate { count: 30, period: Duration::from_secs(60), burst: 60 },
    in_flight_max: 256,
    connections_max: 64,
    shadow: crate::policy::shadow::Shadow::NONE,
};

fn class(kind: &str) -> Class {
    match kind {
        "citizen-app" => Class::CitizenApp,
        "state-portal" | "hospital" | "insurer" | "investigation" => Class::Interactive,
        "research" | "laboratory" | "airline" => Class::Batch,
        _ => Class::Unknown,
    }
}

fn profile(contract: &Contract, params: &Arc<Params>) -> Profile {
    Profile {
        name: contract.name.as_str().into(),
        class: class(&contract.kind),
        people_per_day: contract.contracted_per_day,
        consent_required: contract.consent_required,
        actors: contract.actors,
        critical: contract.critical,
        params: params.clone(),
    }
}

/// `lookup-by-KIND` takes people of that kind. What has another name takes any: one route for each kind, of the same name.
fn routes(contracts: &[Contract]) -> Result<Vec<Route>, String> {
    let mut routes: Vec<Route> = Vec::new();
    for name in contracts.iter().flat_map(|contract| &contract.routes) {
        if routes.iter().any(|route| *route.name == **name) {
            continue;
        }
        let kind = name.strip_prefix("lookup-by-").and_then(Kind::parse);
        let kinds = kind.as_ref().map_or(&Kind::ALL[..], std::slice::from_ref);
        for kind in kinds {
            let at = routes.len();
            let pattern = Pattern::parse(&format!("/{at}/{{id}}")).map_err(str::to_owned)?;
            let kind = RouteKind::Lookup(Box::new(LookupRoute {
                kind: *kind,
                subject: Location::Path("id".to_owned()),
                purpose: None,
                actor: Some(Location::Header("x-actor".to_owned())),
                body: None,
                parameters: Vec::new(),
                max_people: PEOPLE_MAX,
                body_bytes_max: 0,
                answer_bytes_max: 0,
                records: None,
                miss: vec![404],
                durability: None,
            }));
            let place = Place { file: "partners.json".into(), line: 0 };
            let methods = vec!["GET".to_owned()];
            routes.push(Route {
                name: name.as_str().into(),
                backend: 0,
                methods,
                hosts: Vec::new(),
                pattern,
                kind,
                place,
            });
        }
    }
    if routes.len() > usize::from(u16::MAX) {
        return Err(format!("partners.json: routes: more than {}", u16::MAX));
    }
    Ok(routes)
}

fn partner(contract: &Contract, routes: &[Route], file: &Arc<str>) -> Result<Partner, String> {
    let place = Place { file: file.clone(), line: 0 };
    let mut networks = NetworksBuilder::new();
    let (owner, ticket, reason) = (contract.name.to_string(), String::new(), "contract".to_owned());
    let note = networks.intern(Note { owner, ticket, reason, expires: None, shadow: false, file: file.clone() });
    for cidr in &contract.cidrs {
        let wrong = || format!("{file}: {}: cidrs: {cidr:?} is no network; write it as 10.20.0.0/27", contract.name);
        let network: IpNet = cidr.parse().map_err(|_| wrong())?;
        networks.add(network, note, 0).map_err(|_| wrong())?;
    }
    let granted =
        routes.iter().enumerate().filter(|(_, route)| contract.routes.iter().any(|name| **name == *route.name));
    let grants = granted.map(|(at, _)| Grant {
        route: RouteId(at as u16),
        purposes: vec!["contract".into()],
        requests: None,
        in_flight_max: None,
        budgets: None,
        max_people: None,
        shadow: Default::default(),
        place: place.clone(),
    });
    let name = contract.name.as_str();
    let contract = (contract.contracted_per_day > 0).then(|| contract::Contract {
        class: match class(&contract.kind) {
            Class::CitizenApp => contract::Class::CitizenApp,
            // Of the unknown the strictest that honours what it may ask in a day.
            Class::Interactive | Class::Unknown => contract::Class::Interactive,
            Class::Batch => contract::Class::Batch,
        },
        people_per_day: contract.contracted_per_day,
        consent_required: contract.consent_required,
        critical: contract.critical,
    });
    Ok(Partner {
        name: name.into(),
        identities: vec![Identity { proof: proof(name), place: place.clone() }],
        networks: networks.build(),
        valid_from: None,
        valid_until: None,
        hours: None,
        // Systems of the partner's own ask beside its staff.
        actor_required: false,
        limits: LIMITS,
        limits_place: place.clone(),
        grants: grants.collect(),
        contract,
        budgets: contract.map(|contract| contract.budgets()).unwrap_or_default(),
        place,
    })
}

fn proof(name: &str) -> Proof {
    Proof::Dns { issuer: ISSUER.into(), name: name.to_owned() }
}

fn credential(name: &str) -> Credential {
    Credential {
        issuer: ISSUER.into(),
        uris: Vec::new(),
        dns_names: vec![name.to_owned()],
        spki: [0; 32],
        fingerprint: [0; 32],
        not_after: Timestamp::from_nanos(u64::MAX),
    }
}

fn people(path: &Path, interest: Interest) -> Result<Vec<(Subject, Interest)>, String> {
    let People { subjects } = read(path)?;
    let parsed = subjects.iter().enumerate().map(|(at, Listed { kind, id })| {
        let wrong = |why: String| format!("{}: subjects[{at}]: {why}", path.display());
        let kind = Kind::parse(kind).ok_or_else(|| wrong(format!("kind: there is no kind {kind:?}")))?;
        // Nobody can be asked for by an id that does not parse; listed, it harms nobody.
        Ok(Subject::parse(kind, id).ok().map(|subject| (subject, interest.clone())))
    });
    parsed.filter_map(Result::transpose).collect()
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}
