//! Text to policy and settings, or every error at once. Reads files; opens nothing, spawns nothing, changes nothing.

pub mod alerts;
pub mod cases;
pub mod copies;
pub mod gateway;
pub mod hygiene;
pub mod network_file;
pub mod partner;
pub mod problem;
pub mod reader;
pub mod settings;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest;

use crate::policy::identify::Identities;
use crate::policy::route::{Route, RouteKind, Router};
use crate::policy::{Partner, Policy};
use crate::subject::hex;
use cases::Case;
use partner::Known;
use problem::{Problem, Severity};
use reader::Source;
use settings::{Backend, Overrides, Settings};

/// A configuration that may be served.
#[derive(Debug)]
pub struct Config {
    pub settings: Settings,
    pub policy: Policy,
    pub cases: Vec<Case>,
    /// Every file that was read.
    pub files: Vec<PathBuf>,
    pub origin: Origin,
}

/// Where a configuration comes from: enough to read it again.
#[derive(Clone, Debug)]
pub struct Origin {
    pub directory: PathBuf,
    pub overrides: Overrides,
    /// When reading began: what changes afterwards is another configuration.
    pub read_at: SystemTime,
}

impl Origin {
    /// The files and folders in which a change may be one of the configuration, beside [`Config::files`].
    pub fn places(&self) -> Vec<PathBuf> {
        let folders = ["partners", "cases"].map(|name| self.directory.join(name));
        let problems = RefCell::default();
        let files = folders.iter().flat_map(|folder| toml_files(folder, &problems));
        files.chain(folders.clone()).chain([self.directory.join("gateway.toml")]).collect()
    }
}

/// Reads `gateway.toml`, `partners/*.toml` and `cases/*.toml` below `directory`.
pub fn load(directory: &Path, overrides: &Overrides) -> Result<Config, Vec<Problem>> {
    load_with(directory, overrides, |_| Vec::new())
}

/// The same; where the configuration is refused, `files` adds what is wrong with the files that the settings name, as far
/// as these could be read: all mistakes at once.
pub fn load_with(
    directory: &Path,
    overrides: &Overrides,
    files: impl FnOnce(&Settings) -> Vec<Problem>,
) -> Result<Config, Vec<Problem>> {
    let read_at = SystemTime::now();
    let problems = RefCell::new(Vec::new());
    let (settings, rest) = read_all(directory, overrides, &problems);
    let mut problems = problems.into_inner();
    match (settings, rest) {
        (Some(settings), Some(rest)) if !problems.iter().any(|problem| problem.severity == Severity::Error) => {
            let origin = Origin { directory: directory.to_path_buf(), overrides: overrides.clone(), read_at };
            let (policy, cases, read) = rest;
            Ok(Config { settings, policy, cases, files: read, origin })
        }
        (settings, _) => {
            problems.extend(settings.as_ref().map(files).unwrap_or_default());
            problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
            Err(problems)
        }
    }
}

/// SHA-256 over the files of a configuration with their names below its directory, in hex. Not of certificates and keys, which
/// are renewed without it. A file that has gone counts as empty.
pub fn digest(directory: &Path, files: &[PathBuf]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in files {
        let name = file.strip_prefix(directory).unwrap_or(file).display().to_string();
        let bytes = std::fs::read(file).unwrap_or_default();
        for part in [name.as_bytes(), &bytes] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
    }
    hex(context.finish().as_ref())
}

/// The data directory alone, whatever else is wrong with the configuration.
pub fn data_directory(directory: &Path) -> Result<PathBuf, Vec<Problem>> {
    let problems = RefCell::new(Vec::new());
    let found = with_file(&directory.join("gateway.toml"), &problems, |source| {
        source.glance(|root| root.table("data", |table| gateway::data(table, directory)))
    });
    found.ok_or_else(|| {
        let mut problems = problems.into_inner();
        problems.iter_mut().for_each(|problem| "say where it is with --data".clone_into(&mut problem.hint));
        problems
    })
}

/// Where the audit's log lies, whatever else is wrong with the configuration; `data` stands for the data directory that it names.
pub fn audit_directory(directory: &Path, data: Option<&Path>) -> Result<PathBuf, Vec<Problem>> {
    let problems = RefCell::default();
    let named = with_file(&directory.join("gateway.toml"), &problems, |source| {
        source.glance(|root| root.want_table("audit", |table| table.want("directory", |text| Ok(directory.join(text)))))
    });
    match (named.flatten().flatten(), data) {
        (Some(named), _) => Ok(named),
        (None, Some(data)) => Ok(data.join(settings::AUDIT)),
        (None, None) => Ok(data_directory(directory)?.join(settings::AUDIT)),
    }
}

/// The settings, and the policy with its cases and every file that was read.
type Whole = (Option<Settings>, Option<(Policy, Vec<Case>, Vec<PathBuf>)>);

fn read_all(directory: &Path, overrides: &Overrides, problems: &RefCell<Vec<Problem>>) -> Whole {
    let shown = directory.display().to_string();
    let shown = shown.trim_end_matches('/');
    let gateway = with_file(&directory.join("gateway.toml"), problems, |source| {
        source.read(|root| Some(gateway::read(root, directory)))
    });
    // Partners are read all the same when the gateway's file is broken: their own mistakes are worth saying at once.
    let (issuers, routes) = match &gateway {
        Some(gateway) => (gateway.issuers.as_slice(), gateway.routes.as_slice()),
        None => (&[][..], &[][..]),
    };
    let mut partners: Vec<Partner> = Vec::new();
    let files = RefCell::new(vec![directory.join("gateway.toml")]);
    let partners_directory = directory.join("partners");
    if gateway.is_some() && !partners_directory.is_dir() {
        let problem = Problem::error(partners_directory.display().to_string(), "", "no such directory");
        problems.borrow_mut().push(problem.with_hint("each partner is a file in it; without partners nobody gets in"));
    }
    for path in toml_files(&partners_directory, problems) {
        let shown_directory = format!("{shown}/partners");
        let known = Known {
            issuers,
            routes,
            issuer_names: gateway.as_ref().map(|gateway| gateway.issuer_names.as_slice()),
            route_names: gateway.as_ref().map(|gateway| gateway.route_names.as_slice()),
            directory: &partners_directory,
            shown_directory: &shown_directory,
            files: &files,
        };
        files.borrow_mut().push(path.clone());
        let mut found = Vec::new();
        let partner = with_file(&path, problems, |source| source.read(|root| partner::read(root, &known, &mut found)));
        problems.borrow_mut().append(&mut found);
        partners.extend(partner);
    }
    let mut cases = Vec::new();
    for path in toml_files(&directory.join("cases"), problems) {
        files.borrow_mut().push(path.clone());
        let read = with_file(&path, problems, |source| source.read(|root| Some(cases::read(root))));
        cases.extend(read.into_iter().flatten());
    }
    let Some(gateway) = gateway else {
        // Without routes and issuers only the names can be compared.
        same_names(&partners, &mut problems.borrow_mut());
        return (None, None);
    };
    if partners.len() > usize::from(u16::MAX) || gateway.routes.len() > usize::from(u16::MAX) {
        problems.borrow_mut().push(Problem::error(shown, "", "more than 65,535 partners or routes"));
        return (gateway.settings, None);
    }
    let mut settings = gateway.settings;
    if let Some(settings) = &mut settings {
        override_settings(settings, overrides, problems);
        overlap_fits(settings, &partners, &mut problems.borrow_mut());
    }
    let backends = settings.as_ref().map_or(&[][..], |settings| &settings.backends);
    let policy = assemble(partners, gateway.routes, backends, gateway.hosts, problems);
    (settings, policy.map(|policy| (policy, cases, files.into_inner())))
}

/// Checks what only the whole can show: names, identities and routes that two files claim.
fn assemble(
    partners: Vec<Partner>,
    routes: Vec<Route>,
    backends: &[Backend],
    hosts: Vec<String>,
    problems: &RefCell<Vec<Problem>>,
) -> Option<Policy> {
    let mut problems = problems.borrow_mut();
    let before = problems.len();
    same_names(&partners, &mut problems);
    for (at, route) in routes.iter().enumerate() {
        if let Some(other) = routes[..at].iter().find(|other| other.name == route.name) {
            let message = format!("the route at {} has the same name", other.place);
            let problem = Problem::error(&*route.place.file, "route.name", message).at_line(route.place.line as usize);
            problems.push(problem.with_value(&*route.name).with_hint("give each its own name"));
        }
    }
    // Two backends may be two names for one server, where each gets what the other must not.
    let servers = |at: usize| {
        let addresses = backends.get(at).into_iter().flat_map(|backend| &backend.servers);
        addresses.map(|address| (address.ip().to_canonical(), address.port()))
    };
    let share_server =
        |one: usize, other: usize| one == other || servers(one).any(|server| servers(other).any(|same| same == server));
    let router = Router::build(&routes, &share_server).map_err(|rivals| {
        for (first, second) in rivals {
            let [first, second] = [first, second].map(|id| &routes[usize::from(id.0)]);
            let message = format!("matches the same requests as {} ({})", first.name, first.place);
            let problem =
                Problem::error(&*second.place.file, "route.path", message).at_line(second.place.line as usize);
            problems.push(problem.with_hint("make their hosts, methods or paths differ"));
        }
    });
    let identities = Identities::build(&partners).map_err(|rivals| {
        for (partner, identity) in rivals {
            let identity = &partners[usize::from(partner.0)].identities[usize::from(identity)];
            let problem = Problem::error(&*identity.place.file, "identity", "claimed twice");
            let problem = problem.at_line(identity.place.line as usize).with_value(identity.proof.to_string());
            problems.push(problem.with_hint("an identity belongs to one partner, once"));
        }
    });
    for partner in &partners {
        for grant in &partner.grants {
            let route = &routes[usize::from(grant.route.0)];
            let RouteKind::Lookup(lookup) = &route.kind else { continue };
            if partner.actor_required && lookup.actor.is_none() {
                let message = format!("route {} has no place for the actor that this partner must name", route.name);
                let problem = Problem::error(&*grant.place.file, "grant", message).at_line(grant.place.line as usize);
                problems.push(problem.with_hint("declare actor = \"header:x-actor\" on the route"));
            }
        }
    }
    let (router, identities) = (router.ok()?, identities.ok()?);
    (problems.len() == before).then_some(Policy { partners, routes, router, identities, hosts })
}

fn same_names(partners: &[Partner], problems: &mut Vec<Problem>) {
    for (at, partner) in partners.iter().enumerate() {
        if let Some(other) = partners[..at].iter().find(|other| other.name == partner.name) {
            let message = format!("{} has the same name", other.place.file);
            let problem = Problem::error(&*partner.place.file, "name", message).at_line(partner.place.line as usize);
            problems.push(problem.with_value(&*partner.name).with_hint("a partner is one file"));
        }
    }
}

/// An overlap that ends before somebody's count is paid back would give it back.
fn overlap_fits(settings: &Settings, partners: &[Partner], problems: &mut Vec<Problem>) {
    let overlap = settings.epochs.overlap;
    for partner in partners.iter().filter(|partner| partner.limits.subject.refill() > overlap) {
        let (rate, place) = (partner.limits.subject, &partner.limits_place);
        let (needed, overlap) = (gateway::shown(rate.refill()), gateway::shown(overlap));
        let message =
            format!("takes {needed} to be full again, longer than epochs.overlap ({overlap}) in gateway.toml");
        let problem = Problem::error(&*place.file, "limits.subject", message).at_line(place.line as usize);
        let hint = format!("a change of epochs would give it back: let epochs.overlap be at least {needed}");
        problems.push(problem.with_value(rate.to_string()).with_hint(hint));
    }
}

fn override_settings(settings: &mut Settings, overrides: &Overrides, problems: &RefCell<Vec<Problem>>) {
    if let Some(address) = overrides.listen {
        settings.listen.address = address;
    }
    if let Some(address) = overrides.metrics {
        settings.metrics.address = address;
    }
    if let Some(workers) = overrides.workers {
        settings.listen.workers = workers;
    }
    if let Some(directory) = &overrides.directory {
        settings.directory.clone_from(directory);
    }
    for (name, address) in &overrides.backends {
        match settings.backends.iter_mut().find(|backend| *backend.name == **name) {
            Some(backend) => backend.servers = vec![*address],
            None => {
                let known = gateway::names(settings.backends.iter().map(|backend| &backend.name));
                let problem = Problem::error("--backend", name.clone(), "no such backend");
                problems.borrow_mut().push(problem.with_hint(format!("there are: {known}")));
            }
        }
    }
}

fn with_file<T>(path: &Path, problems: &RefCell<Vec<Problem>>, read: impl FnOnce(&Source) -> Option<T>) -> Option<T> {
    let file = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => read(&Source { file: file.into(), text: &text, problems }),
        Err(error) => {
            problems.borrow_mut().push(Problem::error(file, "", format!("cannot be read: {error}")));
            None
        }
    }
}

/// The `.toml` files of a directory in order of name. A directory that is not there is empty; one that cannot be read
/// is a problem, since partners would be missing from it.
fn toml_files(directory: &Path, problems: &RefCell<Vec<Problem>>) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(directory).and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect());
    let paths: Vec<PathBuf> = match listed {
        Ok(paths) => paths,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            let message = format!("cannot be listed: {error}");
            problems.borrow_mut().push(Problem::error(directory.display().to_string(), "", message));
            return Vec::new();
        }
    };
    let mut paths: Vec<_> =
        paths.into_iter().filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    paths.sort();
    paths
}
