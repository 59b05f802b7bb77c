//! Which epochs are there, and where do their keys lie?
//!
//! `NNNN.key` is the secret of epoch NNNN; `NNNN.json` beside it, its record, says when it began and what became of it, and
//! holds no secret. The epoch of the highest record is the current one: a key without a record waits for its turn. A key is
//! on the disk before its record is, and its record before it is used, so a crash leaves an epoch that waits, or a whole one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::keys::{EpochKey, KeyError};
use crate::clock::Timestamp;

/// The epochs of one gateway, oldest first, of which the last is the current one. A rotation makes another value.
#[derive(Clone, Debug)]
pub struct EpochKeys {
    epochs: Vec<Epoch>,
}

#[derive(Clone, Debug)]
pub struct Epoch {
    pub number: u32,
    /// Of its key; see [`EpochKey::id`].
    pub id: String,
    pub created: Timestamp,
    /// Until when people are counted under the epoch before as well.
    pub overlap_until: Timestamp,
    pub destroyed: Option<Destroyed>,
    /// `None`: destroyed, or not to be found.
    pub key: Option<Arc<EpochKey>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destroyed {
    pub at: Timestamp,
    pub by: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochState {
    Current,
    /// The one before, while people are still counted under it.
    Overlap,
    Retired,
    Destroyed,
    /// Its key is not where it should be.
    Missing,
}

/// What happened to an epoch, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochChange {
    pub what: Change,
    pub number: u32,
    pub id: String,
    pub by: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Created,
    Retired,
    Destroyed,
}

/// What came of destroying an epoch's key. It is not used any more in either case.
#[derive(Debug)]
pub struct Destruction {
    pub keys: EpochKeys,
    /// `Err`: a file with the key is still there, and why it could not be removed.
    pub outcome: Result<EpochChange, (PathBuf, io::Error)>,
}

/// Where the epochs of a gateway lie.
#[derive(Clone, Debug)]
pub struct Keyring {
    directory: PathBuf,
    /// The only key of earlier versions, taken over as epoch 1.
    before: PathBuf,
    /// Where keys are looked for that somebody else keeps, as `epoch-NNNN.key`. No key is made then.
    credentials: Option<PathBuf>,
}

impl EpochKeys {
    /// One epoch that ends with the process.
    pub fn ephemeral() -> EpochKeys {
        let key = EpochKey::ephemeral().numbered(1);
        EpochKeys { epochs: vec![Epoch::of(1, Arc::new(key), Timestamp::default(), Timestamp::default())] }
    }

    pub fn current(&self) -> &Arc<EpochKey> {
        let last = self.epochs.last().and_then(|epoch| epoch.key.as_ref());
        last.expect("a keyring is opened with the key of its current epoch only")
    }

    /// The key of the epoch before, while people are still counted under it.
    pub fn previous(&self, now: Timestamp) -> Option<&Arc<EpochKey>> {
        let at = self.epochs.len().checked_sub(2)?;
        (self.epochs[at + 1].overlap_until > now).then_some(self.epochs[at].key.as_ref())?
    }

    /// Every key there is, newest first: for searching.
    pub fn all(&self) -> impl Iterator<Item = &Arc<EpochKey>> {
        self.epochs.iter().rev().filter_map(|epoch| epoch.key.as_ref())
    }

    /// Every epoch there ever was, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    pub fn state(&self, number: u32, now: Timestamp) -> Option<EpochState> {
        let at = self.epochs.iter().position(|epoch| epoch.number == number)?;
        let epoch = &self.epochs[at];
        let next = self.epochs.get(at + 1);
        Some(match next {
            _ if epoch.destroyed.is_some() => EpochState::Destroyed,
            _ if epoch.key.is_none() => EpochState::Missing,
            None => EpochState::Current,
            Some(next) if at + 2 == self.epochs.len() && next.overlap_until > now => EpochState::Overlap,
            Some(_) => EpochState::Retired,
        })
    }

    /// When an epoch was followed by the next.
    pub fn retired(&self, number: u32) -> Option<Timestamp> {
        let at = self.epochs.iter().position(|epoch| epoch.number == number)?;
        self.epochs.get(at + 1).map(|next| next.created)
    }

    fn last(&self) -> Option<&Epoch> {
        self.epochs.last()
    }
}

impl Epoch {
    fn of(number: u32, key: Arc<EpochKey>, created: Timestamp, overlap_until: Timestamp) -> Epoch {
        Epoch { number, id: key.id().to_owned(), created, overlap_until, destroyed: None, key: Some(key) }
    }

    fn change(&self, what: Change, by: &str, reason: &str) -> EpochChange {
        let (by, reason) = (by.to_owned(), reason.to_owned());
        EpochChange { what, number: self.number, id: self.id.clone(), by, reason }
    }
}

impl EpochState {
    pub fn as_str(self) -> &'static str {
        match self {
            EpochState::Current => "current",
            EpochState::Overlap => "overlap",
            EpochState::Retired => "retired",
            EpochState::Destroyed => "destroyed",
            EpochState::Missing => "missing",
        }
    }
}

impl Change {
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Retired => "retired",
            Change::Destroyed => "destroyed",
        }
    }
}

/// Who changed it where nobody was asked.
const GATEWAY: &str = "gateway";

impl Keyring {
    pub fn new(data: &Path, credentials: Option<PathBuf>) -> Keyring {
        Keyring { directory: data.join("epochs"), before: data.join("epoch.key"), credentials }
    }

    /// Every file that may hold a key: where links lead is for the caller to find out.
    pub fn files(&self) -> Vec<PathBuf> {
        let keys = |places: Vec<(u32, PathBuf)>| places.into_iter().map(|(_, path)| path);
        let own = keys(numbered(&self.directory, "", ".key").unwrap_or_default());
        let others = self.credentials.iter();
        let others = others.flat_map(|directory| numbered(directory, CREDENTIAL_PREFIX, ".key").unwrap_or_default());
        own.chain(keys(others.collect())).chain([self.before.clone()]).collect()
    }

    /// The epochs as a gateway uses them. Takes over what an earlier version left, ends what a crash interrupted, and
    /// makes the first key.
    pub fn open(&self, now: Timestamp, overlap: Duration) -> Result<(EpochKeys, Vec<EpochChange>), EpochError> {
        let failed = |source| EpochError::Directory { path: self.directory.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).map_err(failed)?;
        self.remove_leftovers().map_err(failed)?;
        self.take_over()?;
        let mut changes = Vec::new();
        let mut keys = self.load()?;
        for epoch in keys.epochs.iter().filter(|epoch| epoch.destroyed.is_some()) {
            let Some(Destroyed { by, reason, .. }) = &epoch.destroyed else { continue };
            // What cannot be removed is not used either; whoever asked for it was told.
            if let Ok(true) = self.erase(epoch.number) {
                changes.push(epoch.change(Change::Destroyed, by, reason));
            }
        }
        if keys.epochs.is_empty() {
            let mut waiting = self.waiting(0)?;
            if waiting.is_empty() {
                waiting.push((1, self.make(1)?));
            }
            // Epochs without any record: nobody knows which of them people were counted under last.
            let many = waiting.len() > 1;
            for (number, key) in waiting {
                let overlap_until = if many { now.plus(overlap) } else { now };
                keys.epochs.push(self.record(Epoch::of(number, Arc::new(key), now, overlap_until))?);
            }
            changes.extend(keys.last().map(|epoch| epoch.change(Change::Created, GATEWAY, "the first epoch")));
        }
        self.check(&keys, now)?;
        let last = keys.last().map_or(0, |epoch| epoch.number);
        if !self.overlaps(&keys, now) && !self.waiting(last)?.is_empty() {
            let (rotated, made) = self.rotate(&keys, now, overlap, GATEWAY, "its key was put in place")?;
            keys = rotated;
            changes.extend(made);
        }
        Ok((keys, changes))
    }

    /// The epochs as they are, for somebody who searches: changes nothing, and takes keys that cannot be found for missing.
    pub fn read(&self) -> Result<EpochKeys, EpochError> {
        let keys = self.load()?;
        if !keys.epochs.is_empty() || !self.before.exists() {
            return Ok(keys);
        }
        // Of an earlier version, and not taken over yet.
        let key = EpochKey::load(&self.before)?.numbered(1);
        Ok(EpochKeys { epochs: vec![Epoch::of(1, Arc::new(key), Timestamp::default(), Timestamp::default())] })
    }

    /// Whether the next epoch may begin, and should: after `every`, or because its key waits.
    pub fn is_due(&self, keys: &EpochKeys, now: Timestamp, every: Option<Duration>) -> bool {
        let Some(current) = keys.last().filter(|_| !self.overlaps(keys, now)) else { return false };
        every.is_some_and(|every| now.since(current.created) >= every) || self.waits(current.number)
    }

    /// Begins the next epoch: with the key that waits for it, or with a new one.
    pub fn rotate(
        &self,
        keys: &EpochKeys,
        now: Timestamp,
        overlap: Duration,
        by: &str,
        reason: &str,
    ) -> Result<(EpochKeys, [EpochChange; 2]), EpochError> {
        let current = keys.last().ok_or_else(|| EpochError::NoKey { directory: self.directory.clone() })?;
        if self.overlaps(keys, now) {
            return Err(EpochError::Overlaps { number: current.number, until: current.overlap_until });
        }
        let (number, key) = match self.waiting(current.number)?.into_iter().next() {
            Some(waiting) => waiting,
            None => (current.number + 1, self.make(current.number + 1)?),
        };
        let next = self.record(Epoch::of(number, Arc::new(key), now, now.plus(overlap)))?;
        let changes = [next.change(Change::Created, by, reason), current.change(Change::Retired, by, reason)];
        let mut rotated = keys.clone();
        rotated.epochs.push(next);
        Ok((rotated, changes))
    }

    /// Destroys the key of an epoch that is over, and with it what its tokens say. What was asked for is on the disk first,
    /// so that a crash cannot leave the key in use.
    pub fn destroy(
        &self,
        keys: &EpochKeys,
        number: u32,
        now: Timestamp,
        by: &str,
        reason: &str,
    ) -> Result<Destruction, EpochError> {
        match keys.state(number, now) {
            None => {
                let known = keys.epochs.iter().map(|epoch| epoch.number).collect();
                return Err(EpochError::Unknown { number, known });
            }
            Some(EpochState::Current) => return Err(EpochError::IsCurrent { number }),
            Some(EpochState::Overlap) => {
                let until = keys.last().map_or(now, |next| next.overlap_until);
                return Err(EpochError::IsCounted { number, until });
            }
            Some(EpochState::Retired | EpochState::Missing | EpochState::Destroyed) => {}
        }
        let mut keys = keys.clone();
        let Some(epoch) = keys.epochs.iter_mut().find(|epoch| epoch.number == number) else {
            return Err(EpochError::Unknown { number, known: Vec::new() });
        };
        let asked_before = epoch.destroyed.is_some();
        if !asked_before {
            epoch.destroyed = Some(Destroyed { at: now, by: by.to_owned(), reason: reason.to_owned() });
            *epoch = self.record(epoch.clone())?;
            epoch.key = None;
        }
        let change = epoch.change(Change::Destroyed, by, reason);
        let outcome = match (self.erase(number), self.credential(number).filter(|path| path.exists())) {
            (Err(remains), _) => Err(remains),
            (Ok(_), Some(path)) => Err((
                path,
                io::Error::new(ErrorKind::PermissionDenied, "it is kept by whoever gave it to this process"),
            )),
            (Ok(false), None) if asked_before => return Err(EpochError::IsDestroyed { number }),
            (Ok(_), None) => Ok(change),
        };
        Ok(Destruction { keys, outcome })
    }

    fn waits(&self, after: u32) -> bool {
        let is_later = |places: io::Result<Vec<(u32, PathBuf)>>| {
            places.is_ok_and(|places| places.last().is_some_and(|(number, _)| *number > after))
        };
        is_later(numbered(&self.directory, "", ".key"))
            || self.credentials.iter().any(|directory| is_later(numbered(directory, CREDENTIAL_PREFIX, ".key")))
    }

    fn overlaps(&self, keys: &EpochKeys, now: Timestamp) -> bool {
        keys.epochs.len() > 1 && keys.last().is_some_and(|current| current.overlap_until > now)
    }

    /// Every epoch that has a record, with its key where that can be found.
    fn load(&self) -> Result<EpochKeys, EpochError> {
        let listed = |directory: &Path, prefix, suffix| {
            numbered(directory, prefix, suffix)
                .map_err(|source| EpochError::Directory { path: directory.to_owned(), source })
        };
        let mut epochs = Vec::new();
        for (number, path) in listed(&self.directory, "", ".json")? {
            let mut epoch = read_record(&path, number)?;
            if epoch.destroyed.is_none() {
                epoch.key = self.find(number)?.map(Arc::new);
            }
            if let Some(key) = epoch.key.as_ref().filter(|key| key.id() != epoch.id) {
                let (found, expected) = (key.id().to_owned(), epoch.id);
                return Err(EpochError::Another { path: self.key_path(number), found, expected });
            }
            epochs.push(epoch);
        }
        Ok(EpochKeys { epochs })
    }

    /// Whether everybody can be counted: under the current epoch, and under the one before while that is asked for.
    fn check(&self, keys: &EpochKeys, now: Timestamp) -> Result<(), EpochError> {
        let counted = if self.overlaps(keys, now) { 2 } else { 1 };
        for epoch in keys.epochs.iter().rev().take(counted) {
            if epoch.key.is_none() {
                return Err(EpochError::IsMissing { number: epoch.number, path: self.key_path(epoch.number) });
            }
        }
        Ok(())
    }

    /// Keys after this number, in order. They have no record yet.
    fn waiting(&self, after: u32) -> Result<Vec<(u32, EpochKey)>, EpochError> {
        let mut numbers = BTreeMap::new();
        let places = [(Some(&self.directory), ""), (self.credentials.as_ref(), CREDENTIAL_PREFIX)];
        for (directory, prefix) in places {
            let Some(directory) = directory else { continue };
            let found = numbered(directory, prefix, ".key");
            let found = found.map_err(|source| EpochError::Directory { path: directory.clone(), source })?;
            numbers.extend(found.into_iter().filter(|(number, _)| *number > after));
        }
        let mut keys = Vec::new();
        if after == 0 && self.before.exists() {
            numbers.insert(1, self.before.clone());
        }
        for number in numbers.into_keys() {
            keys.extend(self.find(number)?.map(|key| (number, key)));
        }
        Ok(keys)
    }

    /// The key of an epoch, wherever it lies.
    fn find(&self, number: u32) -> Result<Option<EpochKey>, EpochError> {
        let mut key: Option<EpochKey> = None;
        for path in self.own_places(number).chain(self.credential(number)) {
            if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                continue;
            }
            let found = EpochKey::load(&path)?.numbered(number);
            if let Some(other) = key.as_ref().filter(|other| other.id() != found.id()) {
                let (expected, found) = (other.id().to_owned(), found.id().to_owned());
                return Err(EpochError::Another { path, found, expected });
            }
            key = Some(found);
        }
        Ok(key)
    }

    fn make(&self, number: u32) -> Result<EpochKey, EpochError> {
        match &self.credentials {
            Some(directory) => Err(EpochError::NoKey { directory: directory.clone() }),
            None => Ok(EpochKey::load_or_create(&self.key_path(number))?.numbered(number)),
        }
    }

    fn record(&self, epoch: Epoch) -> Result<Epoch, EpochError> {
        let path = self.directory.join(format!("{:04}.json", epoch.number));
        write_record(&self.directory, &path, &epoch).map_err(|source| EpochError::Record { path, source })?;
        Ok(epoch)
    }

    fn key_path(&self, number: u32) -> PathBuf {
        self.directory.join(format!("{number:04}.key"))
    }

    /// Where a key of this number may lie that is ours to keep.
    fn own_places(&self, number: u32) -> impl Iterator<Item = PathBuf> {
        [self.key_path(number)].into_iter().chain((number == 1).then(|| self.before.clone()))
    }

    /// Whether there was a key to remove; or where one is still.
    fn erase(&self, number: u32) -> Result<bool, (PathBuf, io::Error)> {
        let mut was_there = false;
        for path in self.own_places(number) {
            was_there |= erase(&path).map_err(|error| (path, error))?;
        }
        Ok(was_there)
    }

    fn credential(&self, number: u32) -> Option<PathBuf> {
        self.credentials.as_ref().map(|directory| directory.join(format!("{CREDENTIAL_PREFIX}{number:04}.key")))
    }

    /// What a crash left half written: a record, or a key that nobody has used.
    fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden && path.is_file() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Makes the key of earlier versions that of epoch 1. A link stays where it is: what it leads to is somebody else's.
    fn take_over(&self) -> Result<(), EpochError> {
        let failed = |source| EpochError::Directory { path: self.before.clone(), source };
        match fs::symlink_metadata(&self.before) {
            Ok(file) if file.is_symlink() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
        let (before, own) = (EpochKey::load(&self.before)?, self.key_path(1));
        match fs::hard_link(&self.before, &own) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let (found, expected) = (before.id().to_owned(), EpochKey::load(&own)?.id().to_owned());
                if found != expected {
                    return Err(EpochError::Another { path: self.before.clone(), found, expected });
                }
            }
            linked => linked.map_err(failed)?,
        }
        let data = self.before.parent().unwrap_or(Path::new("."));
        sync(&self.directory).and_then(|()| fs::remove_file(&self.before)).and_then(|()| sync(data)).map_err(failed)
    }
}

const CREDENTIAL_PREFIX: &str = "epoch-";

/// Why epochs cannot be read or changed.
#[derive(Debug)]
pub enum EpochError {
    Key(KeyError),
    Directory {
        path: PathBuf,
        source: io::Error,
    },
    Record {
        path: PathBuf,
        source: io::Error,
    },
    Malformed {
        path: PathBuf,
        flaw: String,
    },
    /// The key is not the one that its record, or another file of it, names.
    Another {
        path: PathBuf,
        found: String,
        expected: String,
    },
    IsMissing {
        number: u32,
        path: PathBuf,
    },
    /// Keys come from this directory, and there is none that could be used.
    NoKey {
        directory: PathBuf,
    },
    Unknown {
        number: u32,
        known: Vec<u32>,
    },
    Overlaps {
        number: u32,
        until: Timestamp,
    },
    IsCurrent {
        number: u32,
    },
    IsCounted {
        number: u32,
        until: Timestamp,
    },
    IsDestroyed {
        number: u32,
    },
}

impl From<KeyError> for EpochError {
    fn from(error: KeyError) -> EpochError {
        EpochError::Key(error)
    }
}

impl fmt::Display for EpochError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EpochError::Key(error) => error.fmt(f),
            EpochError::Directory { path, source } => {
                write!(f, "epoch keys in {}: {source}; see to it and start again", path.display())
            }
            EpochError::Record { path, source } => {
                write!(f, "{} could not be written: {source}; make room, and its directory writable", path.display())
            }
            EpochError::Malformed { path, flaw } => {
                write!(f, "{} is no record of an epoch: {flaw}; restore it from a copy", path.display())
            }
            EpochError::Another { path, found, expected } => write!(
                f,
                "{} is the key {found} and should be {expected}; restore the right one, or everybody would be a first contact",
                path.display()
            ),
            EpochError::IsMissing { number, path } => write!(
                f,
                "the key of epoch {number} is missing at {path}; restore it from a copy, or move its directory away for \
                 a first epoch that knows nobody seen before",
                path = path.display()
            ),
            EpochError::NoKey { directory } => write!(
                f,
                "no key for the next epoch in {}, where epochs.credentials says that keys are; add the credential \
                 epoch-NNNN.key to the unit and restart",
                directory.display()
            ),
            EpochError::Unknown { number, known } => {
                let known: Vec<_> = known.iter().map(u32::to_string).collect();
                write!(f, "no epoch {number}; there are: {}", known.join(", "))
            }
            EpochError::Overlaps { number, until } => {
                write!(f, "epoch {number} is still counted together with the one before, until {until}")
            }
            EpochError::IsCurrent { number } => write!(f, "epoch {number} is the current one; rotate first"),
            EpochError::IsCounted { number, until } => {
                write!(f, "epoch {number} is still counted under, until {until}: destroying it would give limits back")
            }
            EpochError::IsDestroyed { number } => write!(f, "epoch {number} is destroyed already"),
        }
    }
}

impl std::error::Error for EpochError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            EpochError::Key(error) => Some(error),
            EpochError::Directory { source, .. } | EpochError::Record { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Files of a directory called `prefix`, four digits or more, `suffix`; by number. None where there is no directory.
fn numbered(directory: &Path, prefix: &str, suffix: &str) -> io::Result<Vec<(u32, PathBuf)>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let digits = name.strip_prefix(prefix).and_then(|name| name.strip_suffix(suffix)).unwrap_or_default();
        let number = digits.parse::<u32>().ok().filter(|number| *number > 0 && format!("{number:04}") == digits);
        found.extend(number.map(|number| (number, path)));
    }
    found.sort();
    Ok(found)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    created: String,
    overlap_until: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    destroyed: Option<DestroyedRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DestroyedRecord {
    at: String,
    by: String,
    reason: String,
}

fn read_record(path: &Path, number: u32) -> Result<Epoch, EpochError> {
    let malformed = |flaw: String| EpochError::Malformed { path: path.to_owned(), flaw };
    let text = fs::read_to_string(path).map_err(|error| malformed(error.to_string()))?;
    let Record { id, created, overlap_until, destroyed } =
        serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    let time = |text: &str| Timestamp::parse(text).ok_or_else(|| malformed(format!("{text} is no time")));
    let destroyed = match destroyed {
        Some(DestroyedRecord { at, by, reason }) => Some(Destroyed { at: time(&at)?, by, reason }),
        None => None,
    };
    let (created, overlap_until) = (time(&created)?, time(&overlap_until)?);
    Ok(Epoch { number, id, created, overlap_until, destroyed, key: None })
}

fn write_record(directory: &Path, path: &Path, epoch: &Epoch) -> io::Result<()> {
    let destroyed = epoch.destroyed.as_ref().map(|Destroyed { at, by, reason }| DestroyedRecord {
        at: at.to_string(),
        by: by.clone(),
        reason: reason.clone(),
    });
    let (created, overlap_until) = (epoch.created.to_string(), epoch.overlap_until.to_string());
    let record = Record { id: epoch.id.clone(), created, overlap_until, destroyed };
    let text = serde_json::to_string(&record).map_err(io::Error::other)? + "\n";
    let temporary = directory.join(format!(".{:04}.json", epoch.number));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync(directory)
}

/// Overwrites a key and removes it, and the link to it if there is one. `false`: there was none.
///
/// A file system that writes elsewhere, or a disk that does, may keep the old bytes: where that matters the disk is
/// encrypted, or keys are somebody else's to keep.
fn erase(path: &Path) -> io::Result<bool> {
    let is_link = match fs::symlink_metadata(path) {
        Ok(file) => file.is_symlink(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match path.canonicalize() {
        Ok(target) => {
            let mut file = OpenOptions::new().write(true).open(&target)?;
            let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(64 << 10);
            file.write_all(&vec![0; length])?;
            file.sync_all()?;
            fs::remove_file(&target)?;
            sync(target.parent().unwrap_or(Path::new("/")))?;
        }
        // The link leads nowhere: somebody has removed the key already.
        Err(error) if error.kind() == ErrorKind::NotFound && is_link => {}
        Err(error) => return Err(error),
    }
    if is_link {
        fs::remove_file(path)?;
        sync(path.parent().unwrap_or(Path::new(".")))?;
    }
    Ok(true)
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::{Kind, Subject};
    use super::*;

    const LINE: &str = "dwarpal-epoch-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    const OTHER: &str = "dwarpal-epoch-key-v1:HwECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHgA=\n";
    const ID: &str = "630dcd29";
    const DAY: Duration = Duration::from_secs(86_400);
    const OVERLAP: Duration = Duration::from_secs(31 * 86_400);

    fn at(day: u32) -> Timestamp {
        Timestamp::from_unix_seconds(1_800_000_000).plus(DAY * day)
    }

    fn place(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn ring(home: &Path) -> Keyring {
        Keyring::new(home, None)
    }

    fn opened(ring: &Keyring, day: u32) -> (EpochKeys, Vec<(Change, u32)>) {
        let (keys, changes) = ring.open(at(day), OVERLAP).unwrap_or_else(|error| panic!("{error}"));
        (keys, changes.into_iter().map(|change| (change.what, change.number)).collect())
    }

    fn rotated(ring: &Keyring, keys: &EpochKeys, day: u32) -> EpochKeys {
        ring.rotate(keys, at(day), OVERLAP, "uid 0", "a test").unwrap_or_else(|error| panic!("{error}")).0
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn person() -> Subject {
        Subject::parse(Kind::Mobile, "6412345678").unwrap()
    }

    #[test]
    fn the_first_epoch_is_made_and_stays() {
        let home = tempfile::tempdir().unwrap();
        let (keys, changes) = opened(&ring(home.path()), 0);
        assert_eq!(changes, [(Change::Created, 1)]);
        assert_eq!(names(&home.path().join("epochs")), ["0001.json", "0001.key"]);
        for name in ["0001.json", "0001.key"] {
            let mode = fs::metadata(home.path().join("epochs").join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let (again, changes) = opened(&ring(home.path()), 100);
        assert_eq!((again.current().id(), changes), (keys.current().id(), vec![]));
        assert_eq!((again.current().number(), again.epochs()[0].created), (1, at(0)));
        assert!(again.previous(at(100)).is_none());
    }

    #[test]
    fn a_key_of_an_earlier_version_becomes_epoch_1_and_names_everybody_as_before() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for is_link in [false, true] {
            let data = home.path().join(format!("{is_link}"));
            let before = data.join("epoch.key");
            let real = if is_link { elsewhere.path().join("real.key") } else { before.clone() };
            place(&real, LINE);
            if is_link {
                fs::create_dir_all(&data).unwrap();
                symlink(&real, &before).unwrap();
            }
            let token = EpochKey::load(&before).unwrap().token(&person());
            assert_eq!(ring(&data).read().unwrap().current().token(&person()), token, "before anything is changed");
            let (keys, changes) = opened(&ring(&data), 3);
            assert_eq!(changes, [(Change::Created, 1)]);
            assert_eq!((keys.current().token(&person()), keys.current().number()), (token, 1));
            if is_link {
                assert_eq!(
                    (names(&data), opened(&ring(&data), 4).0.current().id()),
                    (vec!["epoch.key".to_owned(), "epochs".to_owned()], ID)
                );
                let keys = rotated(&ring(&data), &keys, 5);
                ring(&data).destroy(&keys, 1, at(60), "uid 0", "over").unwrap().outcome.unwrap();
                assert_eq!((names(&data), real.exists()), (vec!["epochs".to_owned()], false));
                continue;
            }
            assert_eq!(names(&data), ["epochs"]);
            // As a crash between the two names leaves it.
            place(&before, LINE);
            assert_eq!(opened(&ring(&data), 4).0.current().id(), ID);
            assert_eq!(names(&data), ["epochs"]);
            // Somebody went back to the earlier version, which made a key of its own.
            place(&before, OTHER);
            let error = ring(&data).open(at(5), OVERLAP).unwrap_err();
            assert!(matches!(&error, EpochError::Another { expected, .. } if expected == ID), "{error}");
            assert_eq!(fs::read_to_string(&before).unwrap(), OTHER);
        }
    }

    #[test]
    fn a_rotation_counts_under_both_until_the_overlap_is_over() {
        let home = tempfile::tempdir().unwrap();
        let ring = ring(home.path());
        let (first, _) = opened(&ring, 0);
        assert!(!ring.is_due(&first, at(89), Some(90 * DAY)) && ring.is_due(&first, at(90), Some(90 * DAY)));
        assert!(!ring.is_due(&first, at(9_000), None));
        let (second, changes) = ring.rotate(&first, at(90), OVERLAP, "uid 0", "a test").unwrap();
        let told: Vec<_> = changes.iter().map(|change| (change.what, change.number, &*change.id)).collect();
        let ids = (first.current().id().to_owned(), second.current().id().to_owned());
        assert_ne!(ids.0, ids.1);
        assert_eq!(told, [(Change::Created, 2, &*ids.1), (Change::Retired, 1, &*ids.0)]);
        assert!(changes.iter().all(|change| change.by == "uid 0" && change.reason == "a test"));
        for keys in [&second, &opened(&ring, 91).0, &ring.read().unwrap()] {
            let previous = |day| keys.previous(at(day)).map(|key| key.id());
            assert_eq!((keys.current().id(), previous(90), previous(120)), (&*ids.1, Some(&*ids.0), Some(&*ids.0)));
            assert_eq!((previous(121), keys.retired(1), keys.retired(2)), (None, Some(at(90)), None));
            let states = |day| [1, 2].map(|number| keys.state(number, at(day)).unwrap().as_str());
            assert_eq!((states(100), states(121)), (["overlap", "current"], ["retired", "current"]));
            assert_eq!(keys.all().map(|key| key.number()).collect::<Vec<_>>(), [2, 1]);
        }
        let error = ring.rotate(&second, at(120), OVERLAP, "uid 0", "").unwrap_err();
        assert!(matches!(error, EpochError::Overlaps { number: 2, .. }), "{error}");
        assert!(!ring.is_due(&second, at(120), Some(DAY)) && ring.is_due(&second, at(121), Some(DAY)));
        assert_eq!(rotated(&ring, &second, 121).current().number(), 3);
    }

    #[test]
    fn a_crash_on_the_way_leaves_an_epoch_that_waits_or_a_whole_one() {
        let home = tempfile::tempdir().unwrap();
        let (epochs, ring) = (home.path().join("epochs"), ring(home.path()));
        // A key without its record, half a record beside it, and a key under its temporary name.
        place(&epochs.join("0001.key"), LINE);
        place(&epochs.join(".0001.json"), "{\"id\":");
        place(&epochs.join(".0001.key.0123456789abcdef"), OTHER);
        let (keys, changes) = opened(&ring, 0);
        assert_eq!((keys.current().id(), changes), (ID, vec![(Change::Created, 1)]));
        assert_eq!(names(&epochs), ["0001.json", "0001.key"]);

        let second = rotated(&ring, &keys, 10);
        let written = fs::read_to_string(epochs.join("0002.key")).unwrap();
        fs::remove_file(epochs.join("0002.json")).unwrap();
        let (keys, changes) = opened(&ring, 20);
        assert_eq!(changes, [(Change::Created, 2), (Change::Retired, 1)]);
        assert_eq!(fs::read_to_string(epochs.join("0002.key")).unwrap(), written);
        assert_eq!((keys.current().id(), keys.previous(at(50)).unwrap().id()), (second.current().id(), ID));

        // One that waits while two are counted stays behind them.
        place(&epochs.join("0005.key"), &OTHER.replace("HwEC", "HwED"));
        let (keys, changes) = opened(&ring, 30);
        assert_eq!((keys.current().number(), changes), (2, vec![]));
        assert!(!ring.is_due(&keys, at(50), None) && ring.is_due(&keys, at(51), None));
        assert_eq!(rotated(&ring, &keys, 51).current().number(), 5);
    }

    #[test]
    fn a_destroyed_key_finds_nobody() {
        let home = tempfile::tempdir().unwrap();
        let (epochs, ring) = (home.path().join("epochs"), ring(home.path()));
        let (first, _) = opened(&ring, 0);
        let token = first.current().token(&person());
        let keys = rotated(&ring, &first, 10);
        let finds = |keys: &EpochKeys| keys.all().any(|key| key.token(&person()) == token);
        let refused = |keys: &EpochKeys, number, day| {
            ring.destroy(keys, number, at(day), "uid 0", "the time to keep it is over").unwrap_err()
        };
        assert!(matches!(refused(&keys, 2, 60), EpochError::IsCurrent { number: 2 }));
        assert!(matches!(refused(&keys, 1, 40), EpochError::IsCounted { number: 1, .. }));
        assert!(matches!(refused(&keys, 3, 60), EpochError::Unknown { number: 3, known } if known == [1, 2]));
        assert!(finds(&keys) && finds(&opened(&ring, 41).0));

        // Another name of the same file shows what became of its bytes.
        let witness = home.path().join("witness");
        fs::hard_link(epochs.join("0001.key"), &witness).unwrap();
        let destruction = ring.destroy(&keys, 1, at(41), "uid 0", "the time to keep it is over").unwrap();
        let change = destruction.outcome.unwrap();
        assert_eq!((change.what, change.number, &*change.id), (Change::Destroyed, 1, first.current().id()));
        assert!(fs::read(&witness).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(names(&epochs), ["0001.json", "0002.json", "0002.key"]);
        for keys in [&destruction.keys, &opened(&ring, 42).0, &ring.read().unwrap()] {
            assert!(!finds(keys));
            assert_eq!(keys.state(1, at(42)), Some(EpochState::Destroyed));
            let destroyed = keys.epochs()[0].destroyed.as_ref().unwrap();
            assert_eq!((destroyed.at, &*destroyed.by), (at(41), "uid 0"));
            assert!(matches!(refused(keys, 1, 43), EpochError::IsDestroyed { number: 1 }));
        }
        assert_eq!(rotated(&ring, &destruction.keys, 50).current().number(), 3);
    }

    #[test]
    fn a_crash_while_a_key_is_destroyed_leaves_it_destroyed() {
        let home = tempfile::tempdir().unwrap();
        let (epochs, ring) = (home.path().join("epochs"), ring(home.path()));
        let (first, _) = opened(&ring, 0);
        let secret = fs::read_to_string(epochs.join("0001.key")).unwrap();
        let keys = rotated(&ring, &first, 10);
        ring.destroy(&keys, 1, at(50), "uid 7", "over").unwrap().outcome.unwrap();
        place(&epochs.join("0001.key"), &secret);
        assert!(ring.read().unwrap().all().all(|key| key.number() == 2));
        let (keys, changes) = ring.open(at(51), OVERLAP).unwrap();
        assert_eq!((changes.len(), changes[0].what, &*changes[0].by), (1, Change::Destroyed, "uid 7"));
        assert_eq!(keys.all().count(), 1);
        assert!(!epochs.join("0001.key").exists());
    }

    #[test]
    fn a_key_that_lies_elsewhere_is_destroyed_there_or_said_to_remain() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (epochs, ring) = (home.path().join("epochs"), ring(home.path()));
        let real = elsewhere.path().join("real.key");
        place(&real, LINE);
        fs::create_dir(&epochs).unwrap();
        symlink(&real, epochs.join("0001.key")).unwrap();
        let (first, _) = opened(&ring, 0);
        let keys = rotated(&ring, &first, 10);
        // What cannot be opened for writing: a directory stands for a file system that is read-only, also for root.
        fs::remove_file(epochs.join("0001.key")).unwrap();
        symlink(elsewhere.path(), epochs.join("0001.key")).unwrap();
        let destruction = ring.destroy(&keys, 1, at(50), "uid 0", "over").unwrap();
        assert!(destruction.outcome.is_err());
        assert_eq!(destruction.keys.all().count(), 1);
        // Seen to; said again.
        fs::remove_file(epochs.join("0001.key")).unwrap();
        symlink(&real, epochs.join("0001.key")).unwrap();
        assert!(ring.destroy(&destruction.keys, 1, at(51), "uid 0", "over").unwrap().outcome.is_ok());
        assert!(!real.exists() && !epochs.join("0001.key").exists());
    }

    #[test]
    fn credentials_are_used_as_they_come_and_no_key_is_made() {
        let (home, given) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ring = Keyring::new(home.path(), Some(given.path().to_owned()));
        let error = ring.open(at(0), OVERLAP).unwrap_err();
        assert!(matches!(error, EpochError::NoKey { .. }), "{error}");
        place(&given.path().join("epoch-0001.key"), LINE);
        place(&given.path().join("gateway.key"), "another credential");
        let (keys, _) = opened(&ring, 0);
        assert_eq!(keys.current().id(), ID);
        assert!(matches!(ring.rotate(&keys, at(1), OVERLAP, "", ""), Err(EpochError::NoKey { .. })));
        place(&given.path().join("epoch-0002.key"), OTHER);
        let (keys, changes) = opened(&ring, 1);
        assert_eq!((keys.current().number(), changes.len()), (2, 2));
        assert_eq!(keys.previous(at(31)).unwrap().id(), ID);
        assert_eq!(names(&home.path().join("epochs")), ["0001.json", "0002.json"]);
        // It is not ours to remove; but it is used no more.
        let destruction = ring.destroy(&keys, 1, at(40), "uid 0", "over").unwrap();
        assert!(destruction.outcome.is_err() && destruction.keys.all().count() == 1);
        assert!(given.path().join("epoch-0001.key").exists());
        fs::remove_file(given.path().join("epoch-0001.key")).unwrap();
        let again = ring.destroy(&destruction.keys, 1, at(40), "uid 0", "over");
        assert!(matches!(again, Err(EpochError::IsDestroyed { .. })));
    }

    #[test]
    fn what_does_not_fit_together_is_refused_and_kept() {
        let record = |id: &str, more: &str| {
            format!(
                "{{\"id\":\"{id}\",\"created\":\"2027-01-15T08:00:00Z\",\"overlap_until\":\"2027-01-15T08:00:00Z\"{more}}}"
            )
        };
        type Check = fn(&EpochError) -> bool;
        let cases: [(&str, String, &str, Check); 6] = [
            ("another key", record("00000000", ""), LINE, |error| matches!(error, EpochError::Another { .. })),
            ("no key", record(ID, ""), "", |error| matches!(error, EpochError::IsMissing { number: 1, .. })),
            ("no record", "{}".to_owned(), LINE, |error| matches!(error, EpochError::Malformed { .. })),
            ("more", record(ID, ",\"more\":1"), LINE, |error| matches!(error, EpochError::Malformed { .. })),
            ("no time", record(ID, "").replace("2027-01-15T", "x"), LINE, |error| {
                matches!(error, EpochError::Malformed { .. })
            }),
            ("no key file", record(ID, ""), "dwarpal-epoch-key-v1:", |error| matches!(error, EpochError::Key(_))),
        ];
        for (what, record, key, expected) in cases {
            let home = tempfile::tempdir().unwrap();
            let epochs = home.path().join("epochs");
            place(&epochs.join("0001.json"), &record);
            if !key.is_empty() {
                place(&epochs.join("0001.key"), key);
            }
            let before = names(&epochs);
            let error = ring(home.path()).open(at(0), OVERLAP).unwrap_err();
            assert!(expected(&error), "{what}: {error}");
            assert!(error.to_string().contains("epochs"), "{what}: {error}");
            assert!(!error.to_string().contains("AAEC"), "{what}: {error}");
            assert_eq!(names(&epochs), before, "{what}");
        }
    }
}
