//! Where does the log's private key come from? A file of its own outside the log, in Go's note format, made on first start.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;

use super::note::{self, Signer};

/// A whole file has some hundred bytes; reading stops well above that whatever the path leads to.
const FILE_BYTES_MAX: u64 = 1024;

/// The key in the file at `path`, which is made first if there is none. It has to be called `name`, the log's origin.
///
/// Of several processes that start at once, one makes the key and all use it. Nobody but the owner may read or write it.
pub fn load_or_create(path: &Path, name: &str) -> Result<Signer, KeyError> {
    let wrong = |what| KeyError { path: path.into(), what };
    note::is_name(name).map_err(|flaw| wrong(What::Name { origin: name.to_owned(), flaw }))?;
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => create(path, name).map_err(|e| wrong(What::Create(e)))?,
        _ => {}
    }
    let signer = load(path)?;
    let vkey = signer.vkey();
    match vkey.name() == name {
        true => Ok(signer),
        false => Err(wrong(What::OtherName { key: vkey.name().to_owned(), origin: name.to_owned() })),
    }
}

/// The same for a log that may be there already: `checkpoints` are what its key has signed. Another key would be of no use to
/// it, so none is made where there are any.
pub fn of_log(path: &Path, name: &str, checkpoints: [&Path; 2]) -> Result<Signer, KeyError> {
    let is_missing = fs::metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound);
    match checkpoints.into_iter().find(|checkpoint| is_missing && checkpoint.exists()) {
        Some(signed) => Err(KeyError { path: path.into(), what: What::Missing { signed: signed.into() } }),
        None => load_or_create(path, name),
    }
}

/// Why there is no key. Says what the operator should do; never shows what the file holds.
#[derive(Debug)]
pub struct KeyError {
    pub path: PathBuf,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Create(io::Error),
    Missing {
        signed: PathBuf,
    },
    Read(io::Error),
    /// The path leads to a directory, a pipe or a device.
    NotAFile,
    /// Group or others may read or write it: its permission bits.
    Exposed(u32),
    Malformed(&'static str),
    Name {
        origin: String,
        flaw: note::Flaw,
    },
    OtherName {
        key: String,
        origin: String,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.what {
            What::Create(error) => {
                write!(f, "audit key {path} could not be created: {error}; make its directory writable for this user")
            }
            What::Missing { signed } => write!(
                f,
                "audit key {path} is missing, but it has signed {}; restore it from a copy, or move that log away to begin a \
                 new one",
                signed.display()
            ),
            What::Read(error) => write!(
                f,
                "audit key {path} could not be read: {error}; check its owner and that no link on the way is broken"
            ),
            What::NotAFile => write!(f, "audit key {path} is not a regular file; name a file"),
            What::Exposed(mode) => write!(
                f,
                "audit key {path} has mode {mode:04o}, so others than its owner may sign for the log; run chmod 600 {path} \
                 and consider a new log with a new key"
            ),
            What::Malformed(flaw) => {
                write!(
                    f,
                    "audit key {path} {flaw}; restore it from a copy, or move key and log away to begin a new one"
                )
            }
            What::Name { origin, flaw } => write!(f, "audit.origin {origin:?} is no name of a log: {flaw}"),
            What::OtherName { key, origin } => write!(
                f,
                "audit key {path} is that of the log {key}, but audit.origin is {origin}; set audit.origin to {key}, or move \
                 key and log away to begin a new one"
            ),
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.what {
            What::Create(error) | What::Read(error) => Some(error),
            What::Name { flaw, .. } => Some(flaw),
            What::Missing { .. } | What::NotAFile | What::Exposed(_) | What::Malformed(_) | What::OtherName { .. } => {
                None
            }
        }
    }
}

fn load(path: &Path) -> Result<Signer, KeyError> {
    let wrong = |what| KeyError { path: path.into(), what };
    // Asked before opening, because opening a pipe waits for a writer.
    if !fs::metadata(path).map_err(|error| wrong(What::Read(error)))?.is_file() {
        return Err(wrong(What::NotAFile));
    }
    let file = File::open(path).map_err(|error| wrong(What::Read(error)))?;
    let mode = file.metadata().map_err(|error| wrong(What::Read(error)))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(wrong(What::Exposed(mode)));
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|error| wrong(What::Read(error)))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong(What::Malformed("is not text")))?.trim_ascii_end();
    if text.is_empty() {
        return Err(wrong(What::Malformed("is empty")));
    }
    Signer::parse(text).map_err(|note::Flaw(flaw)| wrong(What::Malformed(flaw)))
}

/// Leaves a whole key file at `path`: this one, or that of another process that was faster.
///
/// It is written under another name and then linked: unlike a rename, a link replaces nothing. A crash leaves nothing at
/// `path` or a whole file; beside it perhaps a temporary file with a key nobody used.
fn create(path: &Path, name: &str) -> io::Result<()> {
    let file_name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let directory = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;

    let private = Signer::expose(name, &random()).map_err(io::Error::other)?;
    let tag: u64 = u64::from_ne_bytes(random());
    let temporary = directory.join(format!(".{}.{tag:016x}", file_name.display()));
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{private}\n").as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    };
    let written = write();
    let removed = fs::remove_file(&temporary);
    written?;
    removed?;
    File::open(directory)?.sync_all()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // AWS-LC ends the process itself when the kernel gives no randomness; going on with zeros would be worse.
    rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "dwarpal.example/log";

    fn refused(path: &Path) -> String {
        load_or_create(path, NAME).expect_err("refused").to_string()
    }

    #[test]
    fn a_key_is_made_once_and_is_nobody_elses() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("data/audit.key");
        let first = load_or_create(&path, NAME).expect("made");
        let second = load_or_create(&path, NAME).expect("read");
        assert_eq!(first.vkey(), second.vkey());
        assert_eq!(fs::metadata(&path).expect("a file").permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            fs::read_dir(path.parent().expect("a directory")).expect("readable").count(),
            1,
            "nothing beside it"
        );
        let other = load_or_create(&path, "other").expect_err("another name").to_string();
        assert!(other.contains("is that of the log dwarpal.example/log"), "{other}");
        assert!(load_or_create(&home.path().join("new"), "no name").is_err());
        assert!(!home.path().join("new").exists());
    }

    #[test]
    fn no_key_is_made_for_a_log_that_has_one() {
        let home = tempfile::tempdir().expect("a directory");
        let [path, signed, remembered] = ["audit.key", "checkpoint", "remembered"].map(|name| home.path().join(name));
        let first = of_log(&path, NAME, [&signed, &remembered]).expect("made");
        for checkpoint in [&signed, &remembered] {
            fs::write(checkpoint, "a checkpoint").expect("written");
            let again = of_log(&path, NAME, [&signed, &remembered]).expect("read");
            assert_eq!(first.vkey(), again.vkey());
            let kept = fs::read(&path).expect("a key");
            fs::remove_file(&path).expect("removed");
            let message = of_log(&path, NAME, [&signed, &remembered]).expect_err("missing").to_string();
            assert!(message.contains(&format!("has signed {}; restore it", checkpoint.display())), "{message}");
            assert!(!path.exists());
            fs::write(&path, kept)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
                .expect("put back");
            fs::remove_file(checkpoint).expect("removed");
        }
    }

    #[test]
    fn what_is_exposed_or_broken_is_refused_without_showing_it() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("audit.key");
        load_or_create(&path, NAME).expect("made");
        let text = fs::read_to_string(&path).expect("text");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("set");
        assert!(refused(&path).contains("has mode 0640"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
        let secret = text.trim_end().rsplit_once('+').expect("parts").1;
        for (bad, why) in [
            (String::new(), "is empty"),
            (text[1..].to_owned(), "does not begin with"),
            (text.replace(NAME, "else"), "has an id"),
            (text[..text.len() - 8].to_owned(), "base64"),
        ] {
            fs::write(&path, bad).expect("written");
            let message = refused(&path);
            assert!(message.contains(why) && !message.contains(secret), "{message}");
        }
        assert!(refused(home.path()).contains("is not a regular file"));
        assert!(refused(&path.join("below")).contains("could not be"));
    }
}
