//! Is there room for one more connection? When file descriptors or memory run short, new connections are turned away
//! first, and whoever is connected goes on being served.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::settings::Settings;

/// What is scarce, as of the last look.
#[derive(Debug)]
pub struct Pressure {
    /// Descriptors from this number on are kept for backends, files and the metrics. The kernel gives out the lowest number
    /// that is free, so a connection's own number says how many there are.
    descriptors_max: u64,
    descriptors_short: AtomicBool,
    /// Connections that memory has room for; `room` is how that is known, and only looking locks it.
    connections_max: AtomicUsize,
    room: Mutex<Room>,
    /// In thousandths of the tightest limit.
    memory_used: AtomicU32,
    memory: Memory,
}

/// Besides one for each backend connection: the data directory, certificates during a reload, scrapes, the log.
const DESCRIPTORS_KEPT: u64 = 64;

impl Pressure {
    pub fn of(settings: &Settings) -> Pressure {
        let allowed = rlimit::Resource::NOFILE.get_soft().unwrap_or(u64::MAX);
        let of_worker = settings.backends.iter().map(|backend| backend.connections_max * backend.servers.len());
        let kept = (of_worker.sum::<usize>() * settings.listen.workers) as u64 + DESCRIPTORS_KEPT;
        Pressure {
            descriptors_max: allowed - kept.min(allowed / 2),
            descriptors_short: AtomicBool::new(false),
            connections_max: AtomicUsize::new(usize::MAX),
            room: Mutex::default(),
            memory_used: AtomicU32::new(0),
            memory: Memory::open(settings.memory_max),
        }
    }

    /// Why a connection with this descriptor is one too many, beside so many others.
    pub fn refuses(&self, descriptor: RawFd, open: usize) -> Option<&'static str> {
        if descriptor as u64 >= self.descriptors_max {
            self.descriptors_short.store(true, Ordering::Relaxed);
            return Some("fd-pressure");
        }
        (open >= self.connections_max.load(Ordering::Relaxed)).then_some("memory-pressure")
    }

    pub fn descriptors_short(&self) -> bool {
        self.descriptors_short.load(Ordering::Relaxed)
    }

    /// Whether new connections would be refused for want of memory, beside so many others.
    pub fn memory_short(&self, open: usize) -> bool {
        open >= self.connections_max.load(Ordering::Relaxed)
    }

    /// Memory in use as a share of the tightest limit; 0 where there is none.
    pub fn memory_used(&self) -> f64 {
        f64::from(self.memory_used.load(Ordering::Relaxed)) / 1_000.0
    }

    /// Looks anew, with so many connections open.
    pub fn look(&self, open: usize) {
        // The number that the next connection would get.
        if let Some(status) = &self.memory.status
            && let Ok(next) = status.try_clone()
        {
            let short = next.as_raw_fd() as u64 >= self.descriptors_max;
            self.descriptors_short.store(short, Ordering::Relaxed);
        }
        let used = self.memory.used();
        self.memory_used.store(used, Ordering::Relaxed);
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.after(used, open);
        if self.connections_max.swap(room.connections_max, Ordering::Relaxed) != room.connections_max {
            match room.connections_max {
                usize::MAX => tracing::info!("memory pressure is over"),
                connections_max => {
                    tracing::warn!(connections_max, open, "memory pressure: no more connections than this")
                }
            }
        }
    }
}

// ---- memory

/// In thousandths of a limit: where shedding begins, how much worse makes it stricter, and where it ends.
const HIGH: u32 = 900;
const STEP: u32 = 10;
const LOW: u32 = 800;

/// Connections that are let in whatever memory says: it may be short for other reasons, and a gateway that lets nobody in
/// is of no use.
const CONNECTIONS_MIN: usize = 8;

/// How many connections memory has room for, learnt from how it went.
///
/// Memory that connections leave is used for the next ones, but the allocator may never give it back to the system. A
/// gateway that waited for that would turn everybody away for ever. So under pressure the number of connections is what is
/// held below what it was when the pressure began.
#[derive(Debug)]
struct Room {
    connections_max: usize,
    lowered_at: u32,
}

impl Default for Room {
    fn default() -> Room {
        Room { connections_max: usize::MAX, lowered_at: 0 }
    }
}

impl Room {
    fn after(&mut self, used: u32, open: usize) {
        if used < LOW {
            *self = Room::default();
        } else if used >= HIGH && used >= self.lowered_at + STEP {
            let fewer = open.min(self.connections_max) / 10 * 9;
            *self = Room { connections_max: fewer.max(CONNECTIONS_MIN), lowered_at: used };
        }
    }
}

/// The process's own memory and limit, and those of the control groups that it is in. The files stay open: the sandbox may
/// not let them be opened again.
#[derive(Debug)]
struct Memory {
    status: Option<File>,
    bytes_max: Option<u64>,
    groups: Vec<Group>,
}

/// One control group, version 2.
#[derive(Debug)]
struct Group {
    current: File,
    stat: File,
    limits: [File; 2],
}

/// Directories that [`Pressure::of`] opens files in.
pub fn directories() -> Vec<PathBuf> {
    let mut directories = groups();
    directories.push(PathBuf::from("/proc/self"));
    directories
}

/// The directories of this process's control groups, innermost first.
fn groups() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(own) = text.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(own);
    let up = own.ancestors().take_while(|directory| directory.starts_with(root));
    up.filter(|directory| directory.join("memory.current").exists()).map(Path::to_owned).collect()
}

impl Memory {
    fn open(bytes_max: Option<u64>) -> Memory {
        let groups = groups().iter().filter_map(|directory| Group::open(directory)).collect();
        Memory { status: File::open("/proc/self/status").ok(), bytes_max, groups }
    }

    /// In thousandths of the limit that is nearest.
    fn used(&self) -> u32 {
        let resident = self.status.as_ref().and_then(|status| value(&text(status), "VmRSS:")).map(|kib| kib << 10);
        let own = self.bytes_max.zip(resident).map(|(limit, used)| share(used, limit));
        self.groups.iter().filter_map(Group::used).chain(own).max().unwrap_or(0)
    }
}

impl Group {
    fn open(directory: &Path) -> Option<Group> {
        let open = |file: &str| File::open(directory.join(file)).ok();
        let limits = [open("memory.max")?, open("memory.high")?];
        Some(Group { current: open("memory.current")?, stat: open("memory.stat")?, limits })
    }

    fn used(&self) -> Option<u32> {
        // "max" is no number: no limit.
        let limit = self.limits.iter().filter_map(|file| text(file).trim().parse().ok()).min()?;
        let current: u64 = text(&self.current).trim().parse().ok()?;
        // Pages of files that nobody looked at lately go first when memory is wanted.
        let idle = value(&text(&self.stat), "inactive_file").unwrap_or(0);
        Some(share(current.saturating_sub(idle), limit))
    }
}

fn share(used: u64, limit: u64) -> u32 {
    (u128::from(used) * 1_000 / u128::from(limit.max(1))).try_into().unwrap_or(u32::MAX)
}

/// A file of the kernel's, from its beginning; empty where it cannot be read.
fn text(file: &File) -> String {
    let mut bytes = vec![0; 16 << 10];
    let length = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// The number behind a name at the beginning of a line.
fn value(text: &str, name: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace();
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn under_pressure_connections_are_held_below_what_they_were() {
        let mut room = Room::default();
        for (used, open, connections_max) in [
            (0, 5_000, usize::MAX),
            (899, 5_000, usize::MAX),
            (900, 1_000, 900),
            // No worse: those that leave make room for others.
            (905, 900, 900),
            (900, 0, 900),
            // Worse: fewer, of those that are open or of the last limit, whichever is less.
            (910, 850, 765),
            (925, 2_000, 684),
            (924, 600, 684),
            (1_200, 600, 540),
            // Lifted only well below.
            (800, 100, 540),
            (799, 100, usize::MAX),
            (950, 3, CONNECTIONS_MIN),
        ] {
            room.after(used, open);
            assert_eq!(room.connections_max, connections_max, "at {used} with {open}");
        }
    }

    #[test]
    fn a_control_group_is_as_full_as_its_lower_limit_says() {
        let directory = tempfile::TempDir::new().unwrap();
        let write = |file: &str, text: &str| fs::write(directory.path().join(file), text).unwrap();
        write("memory.current", "1000000\n");
        write("memory.stat", "anon 700000\ninactive_file 200000\nactive_file 100000\n");
        write("memory.max", "max\n");
        assert!(Group::open(directory.path()).is_none(), "the root group has no limits");
        write("memory.high", "max\n");
        let group = Group::open(directory.path()).unwrap();
        assert_eq!(group.used(), None);
        // The files stay open, and what changes in them is seen.
        write("memory.max", "1600000\n");
        assert_eq!(group.used(), Some(500));
        write("memory.high", "1000000\n");
        assert_eq!(group.used(), Some(800));
        write("memory.current", "1100000\n");
        assert_eq!(group.used(), Some(900));
    }

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(value("VmPeak:\t  1 kB\nVmRSS:\t   2048 kB\n", "VmRSS:"), Some(2_048));
        assert_eq!(value("active_file 7\ninactive_file 5\n", "inactive_file"), Some(5));
        assert_eq!(value("VmRSS:\n", "VmRSS:"), None);
        assert_eq!(share(900, 1_000), 900);
        assert_eq!(share(u64::MAX, 0), u32::MAX);
        // This process has megabytes; twice the limit is twice the limit.
        let memory = Memory::open(Some(1 << 20));
        assert!(memory.used() > 1_000, "{}", memory.used());
        assert!(Memory { bytes_max: None, groups: Vec::new(), ..memory }.used() == 0);
    }
}
