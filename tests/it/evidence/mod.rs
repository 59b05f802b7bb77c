//! What do strangers get out of a log that a gateway's code has written? The commands, on whole and on damaged directories.

mod commands;
mod crash;
mod damage;
mod events;
mod generate;
mod live;
pub mod running;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

use self::generate::{Crowd, Log, signer};
use super::world::process::{Ran, run};

/// A data directory that the log of a test is in.
struct Home {
    directory: TempDir,
}

/// Entries of the large log: a sealed segment, a full bundle after it, a partial one, and some after the checkpoint.
const SIGNED: u64 = 65_536 + 256 + 44;
const PENDING: u64 = 7;

static LARGE: LazyLock<Home> = LazyLock::new(|| {
    let home = Home { directory: TempDir::new().expect("a directory") };
    let crowd = Crowd::of(home.data(), 500);
    let mut log = Log::open(home.data());
    log.fill(1_000, &crowd);
    fs::copy(home.log().join("checkpoint"), home.data().join("held")).expect("copied");
    log.fill(SIGNED, &crowd);
    log.append(&(SIGNED..SIGNED + PENDING).map(|index| crowd.entry(index).to_json()).collect::<Vec<_>>());
    home
});

impl Home {
    /// A small log under one checkpoint, whose end is held elsewhere.
    fn small(entries: u64) -> Home {
        let home = Home { directory: TempDir::new().expect("a directory") };
        Log::open(home.data()).fill(entries, &Crowd::of(home.data(), 20));
        fs::copy(home.log().join("checkpoint"), home.data().join("held")).expect("copied");
        home
    }

    /// The same files; none may be written to, only replaced.
    fn twin(&self) -> Home {
        fn below(from: &Path, to: &Path) {
            fs::create_dir_all(to).expect("a directory");
            for entry in fs::read_dir(from).expect("a directory").map(|entry| entry.expect("an entry")) {
                let to = to.join(entry.file_name());
                match entry.path().is_dir() {
                    true => below(&entry.path(), &to),
                    false => fs::hard_link(entry.path(), &to).expect("linked"),
                }
            }
        }
        let twin = Home { directory: TempDir::new().expect("a directory") };
        below(self.data(), twin.data());
        twin
    }

    fn data(&self) -> &Path {
        self.directory.path()
    }

    fn log(&self) -> PathBuf {
        self.data().join("audit")
    }

    /// A file that is the twin's own.
    fn replace(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.log().join(file);
        let mut bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        change(&mut bytes);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, bytes).expect("written");
    }

    /// `dwarpal audit` with these arguments, and with this log where `@` stands.
    fn audit(&self, arguments: &[&str], input: &str) -> Ran {
        let key = signer().vkey().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwarpal"));
        command.arg("audit").current_dir(self.data());
        for argument in arguments {
            match *argument {
                "@" => command.arg(self.log()),
                "@data" => command.arg(self.data()),
                "@key" => command.arg(&key),
                other => command.arg(other),
            };
        }
        run(&mut command, input.as_bytes())
    }
}

trait Said {
    fn said(&self) -> String;
    fn complained(&self) -> String;
}

impl Said for Ran {
    fn said(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn complained(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
