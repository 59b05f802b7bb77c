//! What may this process still do? Landlock and seccomp, put on before its second thread and its first connection.
//!
//! Both are taken away for good, from this thread and all that it starts. What an attacker who runs code in here should
//! not get: other files, other programs, other processes' memory, more of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use crate::config::Config;
use crate::config::problem::Problem;
use crate::config::settings::{Confinement, Settings};
use crate::pressure;

/// What became of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub landlock: State,
    pub seccomp: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Enforced,
    /// The kernel is older than what this program asks for, and enforces the part that it knows.
    Partly,
    Unsupported,
    Off,
}

impl State {
    pub fn is_active(self) -> bool {
        matches!(self, State::Enforced | State::Partly)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Enforced => "enforced",
            State::Partly => "partly enforced",
            State::Unsupported => "unsupported",
            State::Off => "off",
        })
    }
}

/// Confines the calling thread, and with it every thread that it will start. `directory` is where the configuration was
/// read from.
pub fn enter(config: &Config, directory: &Path) -> Result<Sandbox, String> {
    let settings = &config.settings.sandbox;
    let landlock = match settings.landlock {
        Confinement::Off => State::Off,
        wanted => settle("landlock", wanted, restrict(&Grants::of(config, directory))?)?,
    };
    let seccomp = match settings.seccomp {
        Confinement::Off => State::Off,
        wanted => settle("seccomp", wanted, filter_system_calls()?)?,
    };
    Ok(Sandbox { landlock, seccomp })
}

/// Adds to problems that the sandbox made what is to be done about them. A file that a later configuration names may lie
/// where this process could read only before it was confined; so does one whose directory was replaced by another.
/// Parents are not granted for that: the parent of `/etc/dwarpal` is `/etc`.
pub fn explain(problems: &mut [Problem]) {
    // Everybody may open the root directory who is not confined.
    if File::open("/").is_ok() {
        return;
    }
    for problem in problems.iter_mut().filter(|problem| problem.message.contains("Permission denied")) {
        "the sandbox keeps to the directories that were named at the start, and another in the place of one is not that \
         one: restart; if it is to be replaced again, add its parent to sandbox.read before"
            .clone_into(&mut problem.hint);
    }
}

fn settle(feature: &str, wanted: Confinement, state: State) -> Result<State, String> {
    if wanted == Confinement::Required && !state.is_active() {
        return Err(format!("sandbox.{feature} is \"required\", but this kernel has no {feature}"));
    }
    Ok(state)
}

// ---- Landlock

/// The rights of the kernel's version 6.12 that are asked for; an older kernel enforces what it knows of them.
const RIGHTS: ABI = ABI::V6;

/// What Landlock leaves. The one list: whatever else the process comes to need is added here.
#[derive(Debug, Default)]
struct Grants {
    /// Directories whose files may be read.
    read: BTreeSet<PathBuf>,
    /// Files that may be read, of directories that are not granted.
    files: BTreeSet<PathBuf>,
    /// Directories in which files may be made and written to, but neither removed nor renamed.
    append: BTreeSet<PathBuf>,
    /// Directories in which files, directories and sockets may also be made, changed and removed.
    write: BTreeSet<PathBuf>,
    /// TCP ports that may be listened on. Connecting stays free: a reload may name other backends.
    listen: Vec<u16>,
}

impl Grants {
    fn of(config: &Config, directory: &Path) -> Grants {
        let Settings { listen, metrics, directory: data, sandbox, .. } = &config.settings;
        let mut grants = Grants::default();
        grants.read.insert(directory.to_owned());
        for file in config.settings.files().chain(config.settings.keyring().files()) {
            grants.read.extend(directories(&file));
        }
        let mut before = None;
        for (_, network) in config.policy.partners.iter().flat_map(|partner| partner.networks.iter()) {
            if before.replace(network.note.file.clone()).is_none_or(|file| file != network.note.file) {
                grants.read.extend(directories(Path::new(&*network.note.file)));
            }
        }
        grants.read.extend(config.settings.epochs.credentials.iter().filter(|given| given.is_dir()).cloned());
        let copies = &config.settings.audit.copies;
        grants.read.extend(copies.authorities().flat_map(|file| directories(file)));
        // What is not there, such as a file system that is not mounted, is told with the first checkpoint.
        let folders = copies.files.iter().flat_map(|file| directories(file));
        grants.append.extend(folders.filter(|folder| folder.is_dir()));
        grants.read.extend(config.settings.alerts.files().flat_map(|file| directories(file)));
        if copies.has_names() || config.settings.alerts.has_names() {
            let there = RESOLVER.iter().map(Path::new).filter(|file| file.exists());
            grants.files.extend(there.clone().map(Path::to_owned));
            // A resolver that writes its file anew does so where the link leads, to another file of that directory.
            let linked = there.filter(|file| file.is_symlink());
            grants.read.extend(linked.flat_map(|file| file.canonicalize().ok()?.parent().map(Path::to_owned)));
        }
        grants.read.extend(sandbox.read.iter().cloned());
        grants.read.extend(pressure::directories());
        grants.write.insert(data.clone());
        grants.write.insert(config.settings.audit_directory());
        grants.listen = vec![listen.address.port(), metrics.address.port()];
        grants
    }
}

/// What libc reads to find the address of a name.
const RESOLVER: [&str; 5] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"];

/// The directory that a file is named in, and the one that it is in, where a link leads to another.
fn directories(file: &Path) -> impl Iterator<Item = PathBuf> {
    let behind = file.canonicalize().ok();
    let parent = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    [Some(parent(file)), behind.as_deref().map(parent)].into_iter().flatten()
}

fn restrict(grants: &Grants) -> Result<State, String> {
    let failed = |error: landlock::RulesetError| format!("landlock: {error}");
    let reading = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let writing = reading
        | make_bitflags!(AccessFs::{
            WriteFile | Truncate | MakeReg | MakeDir | MakeSock | RemoveFile | RemoveDir | Refer
        });
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(|rules| rules.handle_access(AccessNet::BindTcp))
        .and_then(|rules| rules.scope(Scope::Signal))
        .and_then(Ruleset::create)
        .map_err(failed)?;
    for directory in &grants.write {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| format!("{}: cannot be made: {error}", directory.display()))?;
    }
    let appending = make_bitflags!(AccessFs::{WriteFile | MakeReg});
    let file = make_bitflags!(AccessFs::{ReadFile});
    let beneath =
        [(&grants.read, reading), (&grants.files, file), (&grants.append, appending), (&grants.write, writing)];
    for (directory, rights) in beneath.into_iter().flat_map(|(list, rights)| list.iter().map(move |one| (one, rights)))
    {
        rules = rules.add_rule(beneath_of(directory, rights)?).map_err(failed)?;
    }
    for port in &grants.listen {
        rules = rules.add_rule(NetPort::new(*port, AccessNet::BindTcp)).map_err(failed)?;
    }
    let status = rules.restrict_self().map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => State::Enforced,
        RulesetStatus::PartiallyEnforced => State::Partly,
        RulesetStatus::NotEnforced => State::Unsupported,
    })
}

fn beneath_of(directory: &Path, rights: BitFlags<AccessFs>) -> Result<PathBeneath<PathFd>, String> {
    let opened = PathFd::new(directory).map_err(|error| format!("sandbox: {error}"))?;
    Ok(PathBeneath::new(opened, rights))
}

// ---- seccomp

/// System calls that are refused with EPERM. A list of what is allowed would be shorter lived: it changes with libc, the
/// allocator and the runtime. Calls of the x32 and 32-bit ABIs are the unit's business (`SystemCallArchitectures=native`).
const REFUSED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Who this process is.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_personality,
    // Namespaces and file systems.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // The kernel and the machine.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    // `clock_adjtime` and `adjtimex` are not here: they also tell how well the clock is kept (`audit/clock_sync.rs`), and a
    // filter sees only the address of what is asked. To change anything takes CAP_SYS_TIME, which the unit takes away.
    // Large parts of the kernel that this process has no use for.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_keyctl,
    libc::SYS_request_key,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_kexec_file_load,
];

/// The gateway starts no program. Whoever tries is somebody else, and the process ends.
const FATAL: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

const FAMILIES: [libc::c_int; 3] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];

fn filter_system_calls() -> Result<State, String> {
    let failed = |error: seccompiler::BackendError| format!("seccomp: {error}");
    let Ok(architecture) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(State::Unsupported) };
    let always = |calls: &[libc::c_long]| calls.iter().map(|call| (*call, Vec::new())).collect::<BTreeMap<_, _>>();
    let mut refused = always(REFUSED);
    let other_family = FAMILIES
        .iter()
        .map(|family| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *family as u64));
    let other_family = other_family.collect::<Result<_, _>>().and_then(SeccompRule::new).map_err(failed)?;
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        refused.insert(call, vec![other_family.clone()]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    for (calls, action) in [(refused, refuse), (always(FATAL), SeccompAction::KillProcess)] {
        let filter = SeccompFilter::new(calls, SeccompAction::Allow, action, architecture).map_err(failed)?;
        let program = BpfProgram::try_from(filter).map_err(failed)?;
        match seccompiler::apply_filter(&program) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(error))
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) =>
            {
                return Ok(State::Unsupported);
            }
            Err(error) => return Err(format!("seccomp: {error}")),
        }
    }
    Ok(State::Enforced)
}
