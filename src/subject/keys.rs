//! Under which key are subjects hidden, and where does that key come from?

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::{digest, hmac, rand};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Mark, Subject};

/// HMAC-SHA-256 of kind, a zero byte and canonical id under an epoch key: the only form of a subject that rests.
///
/// A plain hash would not do: all mobile numbers are hashed in seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token([u8; 32]);

impl Token {
    pub const fn from_bytes(bytes: [u8; 32]) -> Token {
        Token(bytes)
    }

    /// The first 16 bytes: enough to tell people apart, half the memory.
    pub fn key(&self) -> [u8; 16] {
        let mut key = [0; 16];
        key.copy_from_slice(&self.0[..16]);
        key
    }

    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The first sixteen bytes in lower-case hex: enough to be unique among all people, short enough for a line of log.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..16].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The secret of one epoch. Whoever holds it and the audit can find out who was asked for, so the file lies elsewhere
/// than the audit does.
#[derive(Clone)]
pub struct EpochKey {
    number: u32,
    id: String,
    key: hmac::Key,
}

const KEY_BYTES: usize = 32;
const FILE_PREFIX: &str = "dwarpal-epoch-key-v1:";

/// A whole file is 66 bytes; reading stops well above that whatever the path leads to.
const FILE_BYTES_MAX: u64 = 1024;

impl EpochKey {
    /// A key that ends with the process: for tests, demos and rehearsals.
    pub fn ephemeral() -> EpochKey {
        EpochKey::from_secret(&random())
    }

    /// The same key always, so that a replay can be repeated to the letter. It hides nobody: nothing under it may rest.
    pub fn of_replays() -> EpochKey {
        EpochKey::from_secret(&[0x5a; KEY_BYTES])
    }

    /// The key in the file at `path`, which is made first if there is none.
    ///
    /// The file is one line, `dwarpal-epoch-key-v1:` and 32 bytes in base64, and nobody but its owner may read or write
    /// it. Of several processes that start at once, one makes the key and all use it. Errors name the path.
    pub(crate) fn load_or_create(path: &Path) -> Result<EpochKey, KeyError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create(path).map_err(|source| KeyError::Create { path: path.into(), source })?;
            }
            _ => {}
        }
        EpochKey::load(path)
    }

    pub(crate) fn load(path: &Path) -> Result<EpochKey, KeyError> {
        load(path)
    }

    pub(super) fn numbered(self, number: u32) -> EpochKey {
        EpochKey { number, ..self }
    }

    /// Of its epoch, counted from 1; 0 for one that ends with the process.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Eight hex digits that name the key: the beginning of its SHA-256.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// One HMAC, no allocation.
    pub fn token(&self, subject: &Subject) -> Token {
        Token(self.mac(&[subject.kind().as_str().as_bytes(), subject.expose().as_bytes()]))
    }

    /// A keyed name of an actor, as the partner calls it.
    pub fn actor(&self, actor: &str) -> Mark {
        Mark::of(self.mac(&[ACTOR.as_bytes(), actor.as_bytes()]))
    }

    /// A keyed digest of a whole body.
    pub fn digest(&self, bytes: &[u8]) -> Mark {
        let mut digest = self.digester();
        digest.update(bytes);
        digest.finish()
    }

    /// The same, piece by piece.
    pub fn digester(&self) -> Digester {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(BODY.as_bytes());
        context.update(&[0]);
        Digester(context)
    }

    /// HMAC-SHA-256 of the parts with a zero byte between them. Only the last part of a domain may contain one, so no two
    /// lists collide.
    pub(super) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.key);
        for (place, part) in parts.iter().enumerate() {
            if place > 0 {
                context.update(&[0]);
            }
            context.update(part);
        }
        tag(context)
    }

    fn from_secret(secret: &[u8; KEY_BYTES]) -> EpochKey {
        EpochKey {
            number: 0,
            id: hex(&digest::digest(&digest::SHA256, secret).as_ref()[..4]),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
        }
    }
}

/// What is hashed under a key begins with a domain and a zero byte: the name of a kind for tokens, else one of these. They
/// are the names of no kind, so nothing of one domain equals anything of another.
const ACTOR: &str = "actor";
const BODY: &str = "body";

/// A keyed digest under way.
pub struct Digester(hmac::Context);

impl Digester {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub fn finish(self) -> Mark {
        Mark::of(tag(self.0))
    }
}

/// The tag of SHA-256 is always 32 bytes.
fn tag(context: hmac::Context) -> [u8; 32] {
    let mut tag = [0; 32];
    tag.copy_from_slice(context.sign().as_ref());
    tag
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochKey({})", self.id)
    }
}

/// Why there is no epoch key. Says what the operator should do; never shows what the file holds.
#[derive(Debug)]
pub enum KeyError {
    Create {
        path: PathBuf,
        source: io::Error,
    },
    Read {
        path: PathBuf,
        source: io::Error,
    },
    /// The path leads to a directory, a pipe or a device.
    NotAFile {
        path: PathBuf,
    },
    /// Group or others may read or write it: `mode` is its permission bits.
    Exposed {
        path: PathBuf,
        mode: u32,
    },
    Malformed {
        path: PathBuf,
        flaw: &'static str,
    },
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyError::Create { path, source } => write!(
                f,
                "epoch key {} could not be created: {source}; make its directory writable for this user",
                path.display()
            ),
            KeyError::Read { path, source } => write!(
                f,
                "epoch key {} could not be read: {source}; check its owner and that no link on the way is broken",
                path.display()
            ),
            KeyError::NotAFile { path } => {
                write!(f, "epoch key {} is not a regular file; name a file", path.display())
            }
            KeyError::Exposed { path, mode } => write!(
                f,
                "epoch key {path} has mode {mode:04o}, so others than its owner may use it; run chmod 600 {path} \
                 and consider the key known to them",
                path = path.display()
            ),
            KeyError::Malformed { path, flaw } => {
                write!(f, "epoch key {} {flaw}; restore it from a copy", path.display())
            }
        }
    }
}

impl std::error::Error for KeyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            KeyError::Create { source, .. } | KeyError::Read { source, .. } => Some(source),
            KeyError::NotAFile { .. } | KeyError::Exposed { .. } | KeyError::Malformed { .. } => None,
        }
    }
}

fn load(path: &Path) -> Result<EpochKey, KeyError> {
    let unreadable = |source| KeyError::Read { path: path.into(), source };
    let malformed = |flaw| KeyError::Malformed { path: path.into(), flaw };

    // Asked before opening, because opening a pipe waits for a writer.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(KeyError::NotAFile { path: path.into() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Exposed { path: path.into(), mode });
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(unreadable)?;

    let line = bytes.trim_ascii_end();
    if line.is_empty() {
        return Err(malformed("is empty"));
    }
    let encoded = line.strip_prefix(FILE_PREFIX.as_bytes());
    let encoded = encoded.ok_or_else(|| malformed("does not begin with dwarpal-epoch-key-v1:"))?;
    let secret = STANDARD.decode(encoded).map_err(|_| malformed("is not valid base64"))?;
    let secret = secret.try_into().map_err(|_| malformed("does not hold 32 bytes"))?;
    Ok(EpochKey::from_secret(&secret))
}

/// Leaves a whole key file at `path`: this one, or that of another process that was faster.
///
/// A crash leaves either nothing at `path` or a whole file; beside it perhaps a temporary file with a key nobody used.
fn create(path: &Path) -> io::Result<()> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;

    let line = format!("{FILE_PREFIX}{}\n", STANDARD.encode(random::<KEY_BYTES>()));
    let temporary = directory.join(format!(".{}.{}", name.display(), hex(&random::<8>())));
    let written = publish(&temporary, path, line.as_bytes());
    let removed = fs::remove_file(&temporary);
    written?;
    removed?;
    // Also when another process was faster: it may not have come this far, and this one is about to rely on the file.
    File::open(directory)?.sync_all()
}

/// Writes the file under a temporary name, then links it to `path`: unlike a rename, a link replaces nothing.
fn publish(temporary: &Path, path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(line)?;
    file.sync_all()?;
    match fs::hard_link(temporary, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // AWS-LC ends the process itself when the kernel gives no randomness; going on with zeros would be worse.
    rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::Barrier;
    use std::thread;

    use super::super::Kind;
    use super::*;

    const LINE: &str = "dwarpal-epoch-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";

    fn mobile() -> Subject {
        Subject::parse(Kind::Mobile, "6412345678").unwrap()
    }

    fn key_file(directory: &Path, text: &str, mode: u32) -> PathBuf {
        let path = directory.join("epoch.key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_token_is_the_hmac_of_kind_zero_and_id() {
        let secret: Vec<u8> = (0..32).collect();
        let key = EpochKey::from_secret(&secret.clone().try_into().unwrap());
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), b"mobile\x006412345678");
        let token = key.token(&mobile());
        assert_eq!(token.as_bytes(), tag.as_ref());
        assert_eq!(token.to_string(), hex(&tag.as_ref()[..16]));
        assert_eq!(format!("{token:?}"), token.to_string());
        assert_eq!(Token::from_bytes(*token.as_bytes()), token);
    }

    #[test]
    fn tokens_differ_by_kind_and_key() {
        let (key, other) = (EpochKey::ephemeral(), EpochKey::ephemeral());
        let subject = |kind| Subject::parse(kind, "91234567890123").unwrap();
        assert_ne!(key.token(&subject(Kind::Abha)), key.token(&subject(Kind::Beneficiary)));
        assert_ne!(key.token(&mobile()), other.token(&mobile()));
        assert_ne!(key.id(), other.id());
    }

    #[test]
    fn actors_and_bodies_are_named_apart_from_people_and_from_each_other() {
        let key = EpochKey::ephemeral();
        let parts = ["block", "series", ACTOR, BODY];
        let domains: Vec<_> = Kind::ALL.iter().map(|kind| kind.as_str()).chain(parts).collect();
        for (at, domain) in domains.iter().enumerate() {
            // A zero byte ends the domain, so that none is the beginning of another's input.
            assert!(!domain.contains('\0') && !domains[..at].contains(domain), "{domain}");
        }
        let actor = key.actor("6412345678");
        assert_ne!(actor.as_bytes()[..], key.token(&mobile()).as_bytes()[..16]);
        assert_ne!(actor, key.digest(b"6412345678"));
        assert_ne!(actor, EpochKey::ephemeral().actor("6412345678"));
        assert_eq!(actor, key.actor("6412345678"));
        // Not even a body that is written like the input of another domain.
        let body = format!("mobile\0{}", mobile().expose());
        assert_ne!(key.digest(body.as_bytes()).as_bytes()[..], key.token(&mobile()).as_bytes()[..16]);
        let tag = hmac::sign(&key.key, b"body\0one\0two");
        assert_eq!(key.digest(b"one\0two").as_bytes()[..], tag.as_ref()[..16]);
        let mut pieces = key.digester();
        ["o", "", "ne\0", "two"].iter().for_each(|piece| pieces.update(piece.as_bytes()));
        assert_eq!(pieces.finish(), key.digest(b"one\0two"));
    }

    #[test]
    fn a_new_key_is_private_kept_and_leaves_nothing_beside_it() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a/b");
        let path = directory.join("epoch.key");
        let key = EpochKey::load_or_create(&path).unwrap();
        assert_eq!((mode(&path), mode(&directory), mode(&home.path().join("a"))), (0o600, 0o700, 0o700));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert_eq!(fs::metadata(&path).unwrap().len(), LINE.len() as u64);

        let again = EpochKey::load_or_create(&path).unwrap();
        assert_eq!((again.id(), again.token(&mobile())), (key.id(), key.token(&mobile())));
    }

    #[test]
    fn all_that_race_get_one_key() {
        for _ in 0..20 {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("keys/epoch.key");
            let start = Barrier::new(8);
            let ids: Vec<String> = thread::scope(|scope| {
                let race = || {
                    start.wait();
                    EpochKey::load_or_create(&path).unwrap().id().to_owned()
                };
                let racers: Vec<_> = (0..8).map(|_| scope.spawn(race)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
            assert_eq!(fs::read_dir(home.path().join("keys")).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_slower_process_does_not_replace_the_key() {
        let home = tempfile::tempdir().unwrap();
        let path = key_file(home.path(), LINE, 0o600);
        create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), LINE);
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_owner_may_have_access() {
        let home = tempfile::tempdir().unwrap();
        for private in [0o600, 0o400] {
            let path = key_file(home.path(), LINE, private);
            assert_eq!(EpochKey::load_or_create(&path).unwrap().id(), "630dcd29", "{private:o}");
            fs::remove_file(path).unwrap();
        }
        for exposed in [0o640, 0o620, 0o604, 0o602, 0o666] {
            let path = key_file(home.path(), LINE, exposed);
            let error = EpochKey::load_or_create(&path).unwrap_err();
            assert!(matches!(error, KeyError::Exposed { mode, .. } if mode == exposed), "{error}");
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
    }

    #[test]
    fn what_is_not_a_key_is_refused_and_kept() {
        let short = LINE.replace("AAEC", "");
        let long = LINE.replace("AAEC", "AAECAAEC");
        let padding = format!("{LINE}{}", "\n".repeat(5_000));
        for (text, flaw) in [
            ("", Some("is empty")),
            ("\n", Some("is empty")),
            (&LINE[FILE_PREFIX.len()..], Some("does not begin with dwarpal-epoch-key-v1:")),
            (&LINE.replace("v1", "v2"), Some("does not begin with dwarpal-epoch-key-v1:")),
            (&LINE.replace('=', "!"), Some("is not valid base64")),
            (&format!("{LINE}{LINE}"), Some("is not valid base64")),
            (&short, Some("does not hold 32 bytes")),
            (&long, Some("does not hold 32 bytes")),
            (FILE_PREFIX, Some("does not hold 32 bytes")),
            (LINE.trim_end(), None),
            (&padding, None),
        ] {
            let home = tempfile::tempdir().unwrap();
            let path = key_file(home.path(), text, 0o600);
            let found = EpochKey::load_or_create(&path);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
            let Some(flaw) = flaw else {
                assert_eq!(found.unwrap().id(), "630dcd29");
                continue;
            };
            let message = found.unwrap_err().to_string();
            assert!(message.starts_with(&format!("epoch key {} {flaw}; restore", path.display())), "{message}");
            assert!(!message.contains("AwQF"), "{message}");
        }
    }

    #[test]
    fn links_are_followed_but_not_created_through() {
        let home = tempfile::tempdir().unwrap();
        let path = key_file(home.path(), LINE, 0o600);
        let link = home.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(EpochKey::load_or_create(&link).unwrap().id(), "630dcd29");

        fs::remove_file(&path).unwrap();
        let error = EpochKey::load_or_create(&link).unwrap_err();
        assert!(matches!(error, KeyError::Read { .. }), "{error}");
    }

    #[test]
    fn paths_that_hold_no_file_are_errors() {
        let home = tempfile::tempdir().unwrap();
        assert!(matches!(EpochKey::load_or_create(home.path()), Err(KeyError::NotAFile { .. })));
        let below_a_file = key_file(home.path(), LINE, 0o600).join("epoch.key");
        assert!(matches!(EpochKey::load_or_create(&below_a_file), Err(KeyError::Read { .. })));
        assert!(matches!(EpochKey::load_or_create(Path::new("")), Err(KeyError::Create { .. })));
    }

    #[test]
    fn debug_shows_only_the_key_id() {
        let key = EpochKey::from_secret(&std::array::from_fn(|place| place as u8));
        assert_eq!(format!("{key:?}"), "EpochKey(630dcd29)");
    }
}
