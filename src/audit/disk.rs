//! Every change that the log makes on the disk. They are all here so that tests can have each of them fail, or be the last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Unit tests lose power by their own account of what was synced: the disk itself does not have to be waited for.
const REAL: bool = !cfg!(test);

/// A directory and those above it, for this user alone, and on the disk: what lies in a directory that is not named by the one
/// above is gone after a crash, however well it was synced.
pub fn make_directory(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists() && *path != Path::new("")).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    missing.into_iter().rev().try_for_each(|made| sync_directory(above(made)))
}

/// A new file to append to, in the place of one that was there.
pub fn create(path: &Path) -> io::Result<File> {
    hook::step(hook::Kind::Create, path, || {
        OpenOptions::new().append(true).create(true).truncate(false).mode(0o600).open(path).and_then(|file| {
            file.set_len(0)?;
            Ok(file)
        })
    })
}

pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// All of it, with one call where the kernel takes it.
pub fn write(mut file: &File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    hook::write(path, bytes, |bytes| file.write_all(bytes))
}

pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    hook::step(hook::Kind::Sync, path, || if REAL { file.sync_data() } else { Ok(()) })
}

pub fn cut(file: &File, path: &Path, bytes: u64) -> io::Result<()> {
    hook::step(hook::Kind::Cut, path, || file.set_len(bytes))
}

pub fn sync_directory(path: &Path) -> io::Result<()> {
    hook::step(hook::Kind::SyncDirectory, path, || {
        let folder = File::open(path)?;
        if REAL { folder.sync_all() } else { Ok(()) }
    })
}

pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    hook::step(hook::Kind::Rename(from), to, || fs::rename(from, to))
}

/// Nothing happens where there is no file.
pub fn remove(path: &Path) -> io::Result<()> {
    hook::step(hook::Kind::Remove, path, || match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    })
}

/// Puts a file in the place of another: who reads sees the old one or the new one. It may be gone after a crash of the
/// machine; the file's directories are made.
pub fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    place(path, bytes, |_, _| Ok(()))
}

/// As [`put`], but on the disk when it returns.
pub fn put_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    place(path, bytes, sync)?;
    sync_directory(above(path))
}

fn place(path: &Path, bytes: &[u8], finish: impl Fn(&File, &Path) -> io::Result<()>) -> io::Result<()> {
    let new = not_yet(path);
    let file = match create(&new) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            make_directory(above(path))?;
            create(&new)?
        }
        created => created?,
    };
    write(&file, &new, bytes)?;
    finish(&file, &new)?;
    rename(&new, path)
}

/// What a file is called until it is whole.
pub fn not_yet(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// The directory that a path is in.
pub fn above(path: &Path) -> &Path {
    path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

/// Nothing stands between the program and the disk.
#[cfg(not(test))]
mod hook {
    use std::io;
    use std::path::Path;

    pub enum Kind<'a> {
        Create,
        Sync,
        Cut,
        SyncDirectory,
        Rename(#[expect(dead_code, reason = "tests look at it")] &'a Path),
        Remove,
    }

    pub fn step<T>(_: Kind, _: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        act()
    }

    pub fn write(_: &Path, bytes: &[u8], act: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        act(bytes)
    }
}

/// What tests do to the disk of their thread: one step fails, or nothing happens from one on; and what a machine that loses
/// its power forgets.
#[cfg(test)]
pub mod hook {
    use std::cell::RefCell;
    use std::cmp::Ordering;
    use std::collections::BTreeMap;
    use std::fs::{self, File};
    use std::io;
    use std::path::{Path, PathBuf};

    pub enum Kind<'a> {
        Create,
        Sync,
        Cut,
        SyncDirectory,
        Rename(&'a Path),
        Remove,
    }

    /// How much of a step that fails has happened all the same.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Share {
        Nothing,
        /// Of a write; of everything else nothing.
        Half,
        All,
    }

    #[derive(Clone, Copy, Debug)]
    pub struct Fault {
        /// Steps before it.
        pub after: usize,
        pub share: Share,
        /// Whether every later step fails as well, and nothing of it happens: the process is dead.
        pub dead: bool,
    }

    #[derive(Default)]
    struct State {
        faults: Vec<Fault>,
        steps: usize,
        /// Files with bytes that no sync has brought to the disk, and how many are there.
        unsynced: BTreeMap<PathBuf, u64>,
        /// What was at a path before its directory was changed, since the directory was synced.
        before: BTreeMap<PathBuf, Option<Vec<u8>>>,
        watched: bool,
    }

    thread_local! {
        static STATE: RefCell<State> = RefCell::default();
    }

    /// Counts steps from here on; what was written before counts as being on the disk.
    pub fn begin(faults: &[Fault]) {
        let faults = faults.to_vec();
        STATE.with_borrow_mut(|state| *state = State { faults, watched: true, ..State::default() });
    }

    /// The steps since [`begin`]. From here on nothing fails.
    pub fn end() -> usize {
        STATE.with_borrow_mut(|state| {
            state.faults.clear();
            state.watched = false;
            state.steps
        })
    }

    /// The machine lost its power: what was not synced is gone, where `gone` says so of a path.
    pub fn lose_power(mut gone: impl FnMut(&Path) -> bool) {
        let (unsynced, before) = STATE.with_borrow_mut(|state| {
            state.faults.clear();
            state.watched = false;
            (std::mem::take(&mut state.unsynced), std::mem::take(&mut state.before))
        });
        for (path, bytes) in unsynced {
            if path.exists() && gone(&path) {
                let file = File::options().write(true).open(&path).expect("a file");
                let length = file.metadata().expect("a length").len();
                file.set_len(bytes.min(length)).expect("cut");
            }
        }
        for (path, before) in before {
            match before {
                _ if !gone(&path) => {}
                Some(bytes) => {
                    // Its directory may have been removed since.
                    fs::create_dir_all(super::above(&path)).expect("a directory");
                    fs::write(&path, bytes).expect("written");
                }
                None => drop(fs::remove_file(&path)),
            }
        }
    }

    fn injected() -> io::Error {
        io::Error::other("injected")
    }

    /// Whether the next step fails, and how much of it happens.
    fn next() -> Option<Share> {
        STATE.with_borrow_mut(|state| {
            let step = state.steps;
            state.steps += 1;
            state.faults.iter().find_map(|fault| match step.cmp(&fault.after) {
                Ordering::Less => None,
                Ordering::Equal => Some(fault.share),
                Ordering::Greater => fault.dead.then_some(Share::Nothing),
            })
        })
    }

    pub fn step<T>(kind: Kind, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let failure = next();
        if matches!(failure, Some(Share::Nothing | Share::Half)) {
            return Err(injected());
        }
        watch(&kind, path);
        let done = act()?;
        match failure {
            Some(_) => Err(injected()),
            None => Ok(done),
        }
    }

    pub fn write(path: &Path, bytes: &[u8], act: impl FnOnce(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let failure = next();
        STATE.with_borrow_mut(|state| {
            if state.watched && !state.unsynced.contains_key(path) {
                let length = fs::metadata(path).map_or(0, |file| file.len());
                state.unsynced.insert(path.into(), length);
            }
        });
        match failure {
            None => act(bytes),
            Some(Share::Nothing) => Err(injected()),
            Some(Share::Half) => act(&bytes[..bytes.len() / 2]).and(Err(injected())),
            Some(Share::All) => act(bytes).and(Err(injected())),
        }
    }

    /// Notes what a loss of power after this step would undo.
    fn watch(kind: &Kind, path: &Path) {
        STATE.with_borrow_mut(|state| {
            if !state.watched {
                return;
            }
            let mut remember = |path: &Path| {
                if !state.before.contains_key(path) {
                    state.before.insert(path.into(), fs::read(path).ok());
                }
            };
            match kind {
                Kind::Create | Kind::Remove => remember(path),
                Kind::Rename(from) => {
                    remember(path);
                    remember(from);
                    if let Some(bytes) = state.unsynced.remove(*from) {
                        state.unsynced.insert(path.into(), bytes);
                    }
                }
                Kind::Cut => {}
                Kind::Sync => drop(state.unsynced.remove(path)),
                Kind::SyncDirectory => state.before.retain(|changed, _| changed.parent() != Some(path)),
            }
        });
    }
}
