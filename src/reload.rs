//! How does a changed configuration come into a running gateway? Read, build, run the cases, swap; else nothing changes.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use crate::audit::event::{self, Event};
use crate::config;
use crate::config::problem::Problem;
use crate::config::settings::Settings;
use crate::explain::case_failure;
use crate::gateway::Gateway;
use crate::policy::entitle::Grant;
use crate::policy::networks::Note;
use crate::policy::{Partner, Policy};
use crate::snapshot::Snapshot;
use crate::{sandbox, service};

/// What came of a reload.
#[derive(Debug)]
pub enum Reload {
    /// The new configuration is served.
    Swapped { generation: u64, changed: Vec<String>, warnings: Vec<Problem> },
    /// It was refused; the old one goes on. Certificates and lists that the old one names were read anew all the same, as far
    /// as they could be (`renewed`): a mistake in somebody's file must not hold up a revocation.
    Refused { problems: Vec<Problem>, renewed: Option<u64> },
}

/// How often files are looked at. A change counts once it has been still for as long, so that a file that is being
/// written is not read by half: half an allowlist is a valid one.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Changed partners, or problems, that an entry of the audit names.
const TOLD_MAX: usize = 20;

impl Gateway {
    /// Reads the configuration again and serves it, or says why not.
    pub fn reload(&self) -> Reload {
        let mut looked_at = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        service::reloading();
        let before = self.fingerprint();
        let old = self.snapshot();
        let next = old.generation + 1;
        let reload = match self.build(&old) {
            Ok((snapshot, warnings)) => {
                let changed = changed_partners(&old.policy, &snapshot.policy);
                for (partner, state) in snapshot.policy.partners.iter().zip(&snapshot.states) {
                    let before = old.policy.partners.iter().find(|before| before.name == partner.name);
                    if before.is_some_and(|before| is_narrower(&old.policy, before, &snapshot.policy, partner)) {
                        state.set_narrowed(next);
                    }
                }
                self.swap(snapshot.numbered(next));
                Reload::Swapped { generation: next, changed, warnings }
            }
            Err(mut problems) => {
                sandbox::explain(&mut problems);
                let renewed = old.renewed(self.state()).map(|snapshot| {
                    self.swap(snapshot.numbered(next));
                    next
                });
                Reload::Refused { problems, renewed }
            }
        };
        self.report(&reload);
        // The new configuration may name other files. One that changed while it was read is read again.
        *looked_at = Some(if fingerprint_of(&self.files_of(&old)) == before { self.fingerprint() } else { before });
        reload
    }

    fn build(&self, old: &Snapshot) -> Result<(Snapshot, Vec<Problem>), Vec<Problem>> {
        let config = config::load_with(&self.origin.directory, &self.origin.overrides, Snapshot::file_problems)?;
        let now = self.clock.now();
        let file = self.origin.directory.join("gateway.toml");
        let mut problems = immovable(&file.display().to_string(), &old.settings, &config.settings);
        let mut warnings = Vec::new();
        for case in &config.cases {
            let Some(why) = case_failure(case, &config.policy, &config.settings, now) else { continue };
            // Time passes: an entry that expired may fail a case of today's configuration too. That is no reason to
            // hold up a revocation.
            let known = old.cases.iter().any(|known| known.same(case))
                && case_failure(case, &old.policy, &old.settings, now).is_some();
            let problem = Problem::error(&*case.place.file, "case", why).at_line(case.place.line as usize);
            let problem = problem.with_value(&*case.name);
            if known { &mut warnings } else { &mut problems }.push(problem);
        }
        match Snapshot::build(config, self.state()) {
            Ok(snapshot) if problems.is_empty() => Ok((snapshot, warnings)),
            Ok(_) => Err(problems),
            Err(more) => {
                problems.extend(more);
                Err(problems)
            }
        }
    }

    fn report(&self, reload: &Reload) {
        let snapshot = self.snapshot();
        let (swapped, changed, problems) = match reload {
            Reload::Swapped { changed, .. } => (true, changed.as_slice(), &[][..]),
            Reload::Refused { problems, .. } => (false, &[][..], problems.as_slice()),
        };
        let told = |text: &String| event::clipped(text).to_owned().into();
        self.audit.note(&Event::Reload(event::Reload {
            v: event::VERSION,
            time: self.clock.now(),
            swapped,
            generation: snapshot.generation,
            digest: (&*snapshot.digest).into(),
            changed: changed.iter().take(TOLD_MAX).map(told).collect(),
            problems: problems.iter().take(TOLD_MAX).map(|problem| told(&problem.to_string())).collect(),
        }));
        match reload {
            Reload::Swapped { generation, changed, warnings } => {
                self.metrics.reload("swapped");
                service::reloaded(&format!("generation {generation} is served"));
                for warning in warnings {
                    tracing::warn!(%warning, "a case fails, as it did before the reload");
                }
                tracing::info!(generation, changed = changed.join(", "), "reloaded");
            }
            Reload::Refused { problems, renewed } => {
                self.metrics.reload(if renewed.is_some() { "renewed" } else { "refused" });
                for problem in problems {
                    tracing::error!(%problem, "configuration");
                }
                let generation = self.snapshot().generation;
                let certificates = if renewed.is_some() { "read anew" } else { "unchanged" };
                tracing::error!(problems = problems.len(), generation, certificates, "reload refused");
                service::reloaded(&format!("generation {generation} is served; a reload was refused"));
            }
        }
    }

    /// Asks for a reload, and waits for nothing: for signal handlers.
    pub fn ask_for_reload(&self) {
        self.reload_asked.notify_one();
    }

    /// Reloads when it is asked to, and when the configuration's files have changed; ends with the gateway. Files are read on
    /// threads of their own: one that hangs must not hold up commands.
    pub async fn watch(self: Arc<Gateway>) {
        let mut last = None;
        loop {
            let asked = tokio::select! {
                () = tokio::time::sleep(WATCH_EVERY) => false,
                () = self.reload_asked.notified() => true,
                () = self.drained() => return,
            };
            let gateway = self.clone();
            let looked = tokio::task::spawn_blocking(move || gateway.look(asked, last));
            tokio::select! {
                now = looked => last = now.ok(),
                () = self.drained() => return,
            }
        }
    }

    /// One look at the files: their fingerprint, after a reload if they have changed and then been still.
    fn look(&self, asked: bool, last: Option<u64>) -> u64 {
        let now = self.fingerprint();
        let looked_at = *self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        // At first nobody knows what the files were like when they were read, only when that was.
        let changed = looked_at.map_or_else(|| self.changed_since_start(), |looked_at| now != looked_at);
        if asked || (changed && last == Some(now)) {
            self.reload();
        }
        now
    }

    fn changed_since_start(&self) -> bool {
        let read_at = self.origin.read_at;
        let changed = |path: &PathBuf| {
            let file = std::fs::metadata(path).ok()?;
            let changed = Duration::new(u64::try_from(file.ctime()).ok()?, u32::try_from(file.ctime_nsec()).ok()?);
            Some(UNIX_EPOCH + changed > read_at)
        };
        self.files_of(&self.snapshot()).iter().any(|path| changed(path).unwrap_or(false))
    }

    fn fingerprint(&self) -> u64 {
        fingerprint_of(&self.files_of(&self.snapshot()))
    }

    fn files_of(&self, snapshot: &Snapshot) -> Vec<PathBuf> {
        let mut files = self.origin.places();
        files.extend(snapshot.files.iter().cloned());
        files
    }
}

/// Of names, sizes, times and inodes: polling sees what a watch by the kernel does not, such as a symbolic link further up
/// that leads elsewhere now.
fn fingerprint_of(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for path in files {
        path.hash(&mut hasher);
        let seen = std::fs::metadata(path).ok();
        let seen = seen.map(|file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.ctime_nsec()));
        seen.hash(&mut hasher);
    }
    hasher.finish()
}

/// What only a new process can change.
fn immovable(file: &str, old: &Settings, new: &Settings) -> Vec<Problem> {
    let values = |settings: &Settings| {
        let Settings { listen, metrics, directory, log, sandbox, memory_max, audit, epochs, .. } = settings;
        [
            ("listen.address", listen.address.to_string()),
            ("listen.workers", listen.workers.to_string()),
            ("metrics.address", metrics.address.to_string()),
            ("data.directory", directory.display().to_string()),
            ("epochs.credentials", format!("{:?}", epochs.credentials.is_some())),
            ("log", format!("{log:?}")),
            ("sandbox", format!("{sandbox:?}")),
            ("pressure.memory_max", format!("{memory_max:?}")),
            ("audit.directory", settings.audit_directory().display().to_string()),
            ("audit.origin", audit.origin.clone()),
            ("audit.interval", format!("{:?}", audit.interval)),
            ("audit.queue_bytes_max", audit.queue_bytes_max.to_string()),
            ("audit.reserve_bytes", audit.reserve_bytes.to_string()),
        ]
    };
    let pairs = values(old).into_iter().zip(values(new)).filter(|(old, new)| old != new);
    let problem = |((key, old), (_, new))| {
        let problem = Problem::error(file, key, format!("it is {old} and cannot change while the gateway runs"));
        problem.with_value(new).with_hint("change it back, or restart")
    };
    pairs.map(problem).collect()
}

/// Names of partners that are new, gone or different.
fn changed_partners(old: &Policy, new: &Policy) -> Vec<String> {
    let unchanged = |partner: &Partner| {
        let before = old.partners.iter().find(|before| before.name == partner.name);
        before.is_some_and(|before| is_same(old, before, new, partner))
    };
    let gone = old.partners.iter().filter(|before| new.partners.iter().all(|partner| partner.name != before.name));
    let changed = gone.chain(new.partners.iter().filter(|partner| !unchanged(partner)));
    let mut names: Vec<String> = changed.map(|partner| partner.name.to_string()).collect();
    names.sort();
    names
}

/// Whether two generations mean the same partner, wherever it stands in the files.
fn is_same(old_policy: &Policy, old: &Partner, new_policy: &Policy, new: &Partner) -> bool {
    let proofs =
        |partner: &Partner| partner.identities.iter().map(|identity| identity.proof.clone()).collect::<Vec<_>>();
    let terms =
        |partner: &Partner| (partner.valid_from, partner.valid_until, partner.hours.clone(), partner.actor_required);
    let grants = |policy: &Policy, partner: &Partner| {
        let grant = |grant: &Grant| {
            let limits = (grant.requests, grant.in_flight_max, grant.shadow);
            (policy.route(grant.route).name.clone(), grant.purposes.clone(), limits)
        };
        partner.grants.iter().map(grant).collect::<Vec<_>>()
    };
    let networks = || {
        let note =
            |note: &Note| (note.owner.clone(), note.ticket.clone(), note.reason.clone(), note.expires, note.shadow);
        old.networks.len() == new.networks.len()
            && old.networks.iter().zip(new.networks.iter()).all(|((_, old), (_, new))| {
                old.cidr == new.cidr && (old.note == new.note || note(old.note) == note(new.note))
            })
    };
    proofs(old) == proofs(new)
        && terms(old) == terms(new)
        && old.limits == new.limits
        && grants(old_policy, old) == grants(new_policy, new)
        && networks()
}

/// Whether a partner lost a grant, or a purpose of one. Its connections are then not what they were made for.
fn is_narrower(old_policy: &Policy, old: &Partner, new_policy: &Policy, new: &Partner) -> bool {
    !old.grants.iter().all(|before| {
        let name = &old_policy.route(before.route).name;
        let after = new.grants.iter().find(|after| new_policy.route(after.route).name == *name);
        after.is_some_and(|after| before.purposes.iter().all(|purpose| after.purposes.contains(purpose)))
    })
}
