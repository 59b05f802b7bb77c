//! Is this person on one of the operator's lists? Watched people, and canaries: nobody's rows, planted in the backend.
//!
//! A list rests as tokens under a key of its own, so that it names nobody and outlives every epoch. A file's first line names that
//! key by its id; then a line a person: its kind, its token, and of canaries what else is known.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::problem::Problem;
use crate::config::settings::Settings;
use crate::detect::Interest;
use crate::policy::charge::SubjectKey;
use crate::subject::{EpochKey, Kind, Subject, hex};

/// Where the lists lie; `None`: there is none of that kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    pub watched: Option<PathBuf>,
    pub canaries: Option<PathBuf>,
}

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Watched,
    Canaries,
}

/// Both lists, found by token.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// `None` where they are empty: then no token is made.
    key: Option<EpochKey>,
    entries: HashMap<SubjectKey, Interest>,
}

/// One person of a list, as a line says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub kind: Kind,
    pub token: SubjectKey,
    /// The partner that a canary was given to.
    pub owner: Option<Arc<str>>,
    /// The month of that, such as 2026-11.
    pub month: Option<Arc<str>>,
}

/// A mistake, by its line.
pub type Mistake = (usize, &'static str);

const HEAD: &str = "dwarpal-list-v1 key=";

impl Files {
    pub fn of(&self, list: List) -> Option<&PathBuf> {
        match list {
            List::Watched => self.watched.as_ref(),
            List::Canaries => self.canaries.as_ref(),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (List, &PathBuf)> {
        List::ALL.into_iter().filter_map(|list| Some((list, self.of(list)?)))
    }
}

impl List {
    pub const ALL: [List; 2] = [List::Watched, List::Canaries];

    /// As the configuration and the commands name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            List::Watched => "watched",
            List::Canaries => "canaries",
        }
    }
}

impl Lists {
    /// Reads both. Every mistake is told with its file and line.
    pub fn load(settings: &Settings, problems: &mut Vec<Problem>) -> Option<Lists> {
        let mut lists = Lists::default();
        let before = problems.len();
        for (list, path) in settings.lists.all() {
            let file = path.display().to_string();
            let hint = "`dwarpal lists add` makes it and writes to it";
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) => {
                    problems.push(Problem::error(file, "", format!("cannot be read: {error}")).with_hint(hint));
                    continue;
                }
            };
            if lists.key.is_none() {
                match EpochKey::load(&settings.list_key()) {
                    Ok(key) => lists.key = Some(key),
                    Err(error) => {
                        let hint = "a list is of no use without the key that it was made with";
                        let key = format!("lists.{}", list.as_str());
                        problems.push(Problem::error(file, key, error.to_string()).with_hint(hint));
                        return None;
                    }
                }
            }
            let (lines, mistakes) = parse(&text, lists.key.as_ref().map_or("", EpochKey::id));
            problems.extend(
                mistakes.into_iter().map(|(line, what)| {
                    Problem::error(file.clone(), list.as_str(), what).at_line(line).with_hint(hint)
                }),
            );
            for Line { token, owner, .. } in lines {
                let interest = match list {
                    List::Watched => Interest::Watched,
                    List::Canaries => Interest::Canary(owner),
                };
                // Read last, canaries win: whoever asks for one is told of as for a canary.
                lists.entries.insert(token, interest);
            }
        }
        (problems.len() == before).then_some(lists)
    }

    /// One token and one look-up, whatever their length; nothing where they are empty.
    pub fn interest(&self, subject: &Subject) -> Interest {
        let Some(key) = self.key.as_ref().filter(|_| !self.entries.is_empty()) else { return Interest::None };
        self.entries.get(&key.token(subject).key()).cloned().unwrap_or_default()
    }

    /// Whether they say the same as others.
    pub fn is_same(&self, other: &Lists) -> bool {
        self.key.as_ref().map(EpochKey::id) == other.key.as_ref().map(EpochKey::id) && self.entries == other.entries
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Reads a list that was made with the key of this id.
pub fn parse(text: &str, key: &str) -> (Vec<Line>, Vec<Mistake>) {
    let (mut found, mut mistakes) = (Vec::new(), Vec::new());
    let mut lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    match lines.next() {
        Some((_, head)) if head.strip_prefix(HEAD) == Some(key) => {}
        Some((_, head)) if head.starts_with(HEAD) => {
            mistakes.push((1, "it was made with another key than the one that is here"));
            return (found, mistakes);
        }
        _ => {
            mistakes.push((1, "it does not begin with dwarpal-list-v1 and the id of its key"));
            return (found, mistakes);
        }
    }
    for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        // A line that is wrong may hold anything, also an id: it is not repeated.
        match read(line) {
            Ok(line) => found.push(line),
            Err(what) => mistakes.push((at, what)),
        }
    }
    (found, mistakes)
}

fn read(line: &str) -> Result<Line, &'static str> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next().and_then(Kind::parse).ok_or("its first word is no kind of identifier")?;
    let token = words.next().filter(|token| token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let token = token.and_then(|token| u128::from_str_radix(token, 16).ok());
    let token = token.ok_or("its second word is no token of 32 hex digits")?.to_be_bytes();
    let (mut owner, mut month) = (None, None);
    for word in words {
        let place = match word.split_once('=') {
            Some(("owner", name)) if !name.is_empty() => (&mut owner, name),
            Some(("month", name)) if is_month(name) => (&mut month, name),
            _ => return Err("after the token come owner=PARTNER and month=2026-11 only"),
        };
        *place.0 = Some(place.1.into());
    }
    Ok(Line { kind, token, owner, month })
}

/// Such as 2026-11.
pub fn is_month(text: &str) -> bool {
    let digits = |part: &str, count| part.len() == count && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('-').is_some_and(|(year, month)| {
        digits(year, 4) && digits(month, 2) && (1..=12).contains(&month.parse::<u8>().unwrap_or_default())
    })
}

/// A list's text with more people on it: `text` is what it holds so far. Also how many of them are new.
pub fn extended(
    text: &str,
    key: &EpochKey,
    people: &[Subject],
    owner: Option<&str>,
    month: Option<&str>,
) -> Result<(String, usize), Vec<Mistake>> {
    let mut whole = if text.is_empty() { format!("{HEAD}{}\n", key.id()) } else { text.to_owned() };
    let (lines, mistakes) = parse(&whole, key.id());
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    if !whole.ends_with('\n') {
        whole.push('\n');
    }
    let mut known: std::collections::HashSet<SubjectKey> = lines.into_iter().map(|line| line.token).collect();
    let mut added = 0;
    for subject in people {
        let token = key.token(subject).key();
        if !known.insert(token) {
            continue;
        }
        added += 1;
        let _ = write!(whole, "{} {}", subject.kind().as_str(), hex(&token));
        for (name, value) in [("owner", owner), ("month", month)] {
            let _ = value.map(|value| write!(whole, " {name}={value}"));
        }
        whole.push('\n');
    }
    Ok((whole, added))
}

/// Where the key of the lists lies.
pub fn key_path(data: &Path, credentials: Option<&Path>) -> PathBuf {
    credentials.unwrap_or(data).join("list.key")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(raw: &str) -> Subject {
        Subject::parse(Kind::Mobile, raw).expect("a mobile")
    }

    #[test]
    fn what_was_added_is_found_and_names_nobody() {
        let key = EpochKey::ephemeral();
        let people = [subject("6412345678"), subject("6412345679"), subject("6412345678")];
        let (text, added) = extended("", &key, &people, Some("icmr"), Some("2026-11")).expect("whole");
        assert_eq!((added, text.contains("64123"), text.lines().count()), (2, false, 3));
        let (again, added) = extended(&text, &key, &people, None, None).expect("whole");
        assert_eq!((again == text, added), (true, 0));
        let (lines, mistakes) = parse(&text, key.id());
        assert!(mistakes.is_empty());
        let owner: Arc<str> = "icmr".into();
        assert!(
            lines.iter().all(|line| line.owner.as_ref() == Some(&owner) && line.month.as_deref() == Some("2026-11"))
        );
        let mut lists = Lists { key: Some(key), ..Lists::default() };
        for Line { token, owner, .. } in lines {
            lists.entries.insert(token, Interest::Canary(owner));
        }
        assert_eq!(lists.interest(&subject("6412345679")), Interest::Canary(Some(owner)));
        assert_eq!(lists.interest(&subject("6412345670")), Interest::None);
        assert_eq!(Lists::default().interest(&subject("6412345679")), Interest::None);
    }

    #[test]
    fn a_mistake_is_told_by_its_line_and_not_repeated() {
        let token = "0123456789abcdef0123456789abcdef";
        for (line, what) in [
            ("mobile 6412345678", "32 hex digits"),
            ("phone 0123456789abcdef0123456789abcdef", "no kind"),
            ("6412345678", "no kind"),
            ("mobile +123456789abcdef0123456789abcdef0", "32 hex digits"),
            (&format!("mobile {token} month=2026-13"), "month=2026-11 only"),
            (&format!("mobile {token} owner="), "owner=PARTNER"),
            (&format!("mobile {token} {token}"), "owner=PARTNER"),
        ] {
            let (lines, mistakes) =
                parse(&format!("{HEAD}a1b2c3d4\n# a comment\n\nmobile {token}\n{line}\n"), "a1b2c3d4");
            assert_eq!((lines.len(), mistakes.len(), mistakes[0].0), (1, 1, 5), "{line}");
            assert!(mistakes[0].1.contains(what), "{line}: {}", mistakes[0].1);
        }
        for (head, what) in
            [("", "does not begin"), ("mobile x", "does not begin"), ("dwarpal-list-v1 key=ffffffff", "another key")]
        {
            let (lines, mistakes) = parse(&format!("{head}\nmobile {token}\n"), "a1b2c3d4");
            assert!(lines.is_empty() && mistakes[0].0 == 1 && mistakes[0].1.contains(what), "{head}");
        }
        assert!(parse("", "a1b2c3d4").1.len() == 1, "an empty file is none");
    }
}
