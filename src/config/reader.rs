//! One table of a TOML file, read key by key: every mistake is kept with its line, and a key that nobody asked for is one.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use crate::clock::Timestamp;
use crate::policy::route::Place;

/// A file's name and text, and the problems found so far.
pub struct Source<'a> {
    pub file: Arc<str>,
    pub text: &'a str,
    pub problems: &'a RefCell<Vec<Problem>>,
}

/// One table. Reading a key returns `None` after noting a problem, so that reading goes on to the next mistake.
pub struct Reader<'a> {
    source: &'a Source<'a>,
    path: String,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    asked: RefCell<BTreeSet<&'static str>>,
}

impl Source<'_> {
    /// Line of a byte offset, counted from 1.
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes()[..at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count()
    }

    /// Parses the file and reads its root table; syntax errors are problems, and keys that nobody asked for.
    pub fn read<T>(&self, read: impl FnOnce(&Reader) -> Option<T>) -> Option<T> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let problem = Problem::error(&*self.file, "", error.message()).with_hint("this is not valid TOML");
            let line = error.span().map(|span| self.line(span.start));
            self.problems.borrow_mut().push(match line {
                Some(line) => problem.at_line(line),
                None => problem,
            });
        }
        if !errors.is_empty() {
            return None;
        }
        let root = Reader::new(self, String::new(), table.get_ref(), table.span());
        let value = read(&root);
        root.finish();
        value
    }

    /// For somebody who wants to know one thing, and does not judge the rest: not even its syntax.
    pub fn glance<T>(&self, read: impl FnOnce(&Reader) -> Option<T>) -> Option<T> {
        let (table, _) = DeTable::parse_recoverable(self.text);
        read(&Reader::new(self, String::new(), table.get_ref(), table.span()))
    }
}

impl<'a> Reader<'a> {
    fn new(source: &'a Source<'a>, path: String, table: &'a DeTable<'a>, span: Range<usize>) -> Reader<'a> {
        Reader { source, path, table, span, asked: RefCell::default() }
    }

    /// Where this table stands.
    pub fn place(&self) -> Place {
        Place { file: self.source.file.clone(), line: self.source.line(self.span.start) as u32 }
    }

    /// Notes a problem with the value of `key`.
    pub fn problem(&self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        let mut problem = Problem::error(&*self.source.file, self.name(key), message).with_hint(hint);
        match self.table.get(key) {
            Some(value) => {
                problem = problem.at_line(self.source.line(value.span().start));
                if let Some(shown) = shown(value.get_ref()) {
                    problem = problem.with_value(shown);
                }
            }
            None => problem = problem.at_line(self.source.line(self.span.start)),
        }
        self.source.problems.borrow_mut().push(problem);
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.asked.borrow_mut().insert(key);
        self.table.contains_key(key)
    }

    /// A required value; `read` says what it should have been.
    pub fn need<T>(&self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.need_value(key, |value| text_of(value).and_then(read))
    }

    /// An optional value; the outer `None` is a problem, the inner an absence.
    pub fn want<T>(&self, key: &'static str, read: impl FnOnce(&str) -> Result<T, String>) -> Option<Option<T>> {
        if self.has(key) { self.need(key, read).map(Some) } else { Some(None) }
    }

    pub fn need_text(&self, key: &'static str) -> Option<String> {
        self.need(
            key,
            |text| if text.is_empty() { Err("it must not be empty".to_owned()) } else { Ok(text.to_owned()) },
        )
    }

    pub fn want_text(&self, key: &'static str) -> Option<Option<String>> {
        if self.has(key) { self.need_text(key).map(Some) } else { Some(None) }
    }

    pub fn boolean(&self, key: &'static str, default: bool) -> Option<bool> {
        if !self.has(key) {
            return Some(default);
        }
        self.need_value(key, |value| value.as_bool().ok_or("it is true or false, without quotes".to_owned()))
    }

    /// A whole number within bounds, both included; `default` where the key is absent, and needed where there is none.
    pub fn integer(
        &self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<i64>,
        default: Option<i64>,
    ) -> Option<i64> {
        if let (false, Some(default)) = (self.has(key), default) {
            return Some(default);
        }
        self.need_value(key, |value| integer_of(value, bounds))
    }

    /// The name of something that is declared elsewhere. `declared` holds every name there, readable or not: what is
    /// declared but broken was reported there, and `None` (nothing could be read there) is no reason to complain here.
    pub fn reference<T>(
        &self,
        key: &'static str,
        what: &str,
        declared: Option<&[String]>,
        find: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let name = self.need_text(key)?;
        let found = find(&name);
        if let (None, Some(declared)) = (&found, declared)
            && !declared.contains(&name)
        {
            self.problem(key, format!("no such [[{what}]]"), format!("there are: {}", declared.join(", ")));
        }
        found
    }

    /// The names in an array of tables, also of those that cannot be read otherwise.
    pub fn declared(&self, key: &'static str) -> Vec<String> {
        let tables = self.table.get(key).and_then(|value| value.get_ref().as_array());
        let name =
            |item: &Spanned<DeValue>| Some(item.get_ref().as_table()?.get("name")?.get_ref().as_str()?.to_owned());
        tables.into_iter().flatten().filter_map(name).collect()
    }

    /// A number of bytes such as `16KiB`, or a plain number.
    pub fn bytes(&self, key: &'static str, bounds: std::ops::RangeInclusive<u64>, default: u64) -> Option<u64> {
        if !self.has(key) {
            return Some(default);
        }
        self.need_value(key, |value| {
            let bytes = match value {
                DeValue::Integer(_) => integer_of(value, 0..=i64::MAX)? as u64,
                _ => parse_bytes(text_of(value)?).ok_or("it is a size such as \"16KiB\" or \"2MiB\"")?,
            };
            bounds
                .contains(&bytes)
                .then_some(bytes)
                .ok_or_else(|| format!("it is between {} and {} bytes", bounds.start(), bounds.end()))
        })
    }

    /// A duration such as `5s`.
    pub fn duration(
        &self,
        key: &'static str,
        bounds: std::ops::RangeInclusive<Duration>,
        default: Duration,
    ) -> Option<Duration> {
        if !self.has(key) {
            return Some(default);
        }
        self.need(key, |text| {
            let duration = parse_duration(text)
                .ok_or("it is a duration such as \"500ms\", \"5s\", \"2min\", \"24h\" or \"7d\"")?;
            bounds
                .contains(&duration)
                .then_some(duration)
                .ok_or_else(|| format!("it is between {:?} and {:?}", bounds.start(), bounds.end()))
        })
    }

    /// A date or a date-time, with or without quotes. `read` says what instant a date is.
    pub fn want_time(
        &self,
        key: &'static str,
        read: impl FnOnce(&str) -> Option<Timestamp>,
    ) -> Option<Option<Timestamp>> {
        if !self.has(key) {
            return Some(None);
        }
        self.need_value(key, |value| {
            let text = value.as_datetime().map(ToString::to_string).or_else(|| value.as_str().map(str::to_owned));
            let time = text.as_deref().and_then(read);
            time.map(Some).ok_or("it is a date such as 2027-03-31 or a time such as 2027-03-31T18:00:00Z".to_owned())
        })
    }

    /// A time until which something holds; a date means through its end.
    pub fn want_expiry(&self, key: &'static str) -> Option<Option<Timestamp>> {
        self.want_time(key, super::network_file::parse_expiry)
    }

    /// A list of texts, each read by `read`; absent is empty.
    pub fn texts<T>(&self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<Vec<T>> {
        if !self.has(key) {
            return Some(Vec::new());
        }
        self.need_value(key, |value| {
            let list = value.as_array().ok_or("it is a list: [\"…\", \"…\"]")?;
            list.iter().map(|item| text_of(item.get_ref()).and_then(&read)).collect()
        })
    }

    /// A table of names and texts, whatever the names are; absent is empty.
    pub fn want_map(&self, key: &'static str) -> Option<Vec<(String, String)>> {
        if !self.has(key) {
            return Some(Vec::new());
        }
        self.need_value(key, |value| {
            let table = value.as_table().ok_or("it is a table: { name = \"value\" }")?;
            let pair = |(name, value): (&Spanned<_>, &Spanned<DeValue>)| {
                let name: &std::borrow::Cow<str> = name.get_ref();
                Ok((name.to_string(), text_of(value.get_ref())?.to_owned()))
            };
            table.iter().map(pair).collect()
        })
    }

    /// A list of whole numbers within bounds; absent is empty.
    pub fn integers(&self, key: &'static str, bounds: std::ops::RangeInclusive<i64>) -> Option<Vec<i64>> {
        if !self.has(key) {
            return Some(Vec::new());
        }
        self.need_value(key, |value| {
            let list = value.as_array().ok_or("it is a list: [404]")?;
            list.iter().map(|item| integer_of(item.get_ref(), bounds.clone())).collect()
        })
    }

    /// A required table.
    pub fn table<T>(&self, key: &'static str, read: impl FnOnce(&Reader) -> Option<T>) -> Option<T> {
        if !self.has(key) {
            self.problem(key, "missing", format!("add a table [{}]", plain(&self.name(key))));
            return None;
        }
        self.want_table(key, read).flatten()
    }

    /// An optional table.
    pub fn want_table<T>(&self, key: &'static str, read: impl FnOnce(&Reader) -> Option<T>) -> Option<Option<T>> {
        if !self.has(key) {
            return Some(None);
        }
        let value = self.table.get(key)?;
        let Some(table) = value.get_ref().as_table() else {
            self.problem(key, "not a table", format!("write it as [{}]", plain(&self.name(key))));
            return None;
        };
        let inner = Reader::new(self.source, self.name(key), table, value.span());
        let read = read(&inner);
        inner.finish();
        read.map(Some)
    }

    /// An array of tables, `[[key]]` or `key = [{…}]`; those that could not be read are left out.
    pub fn tables<T>(&self, key: &'static str, mut read: impl FnMut(&Reader) -> Option<T>) -> Vec<T> {
        if !self.has(key) {
            return Vec::new();
        }
        let Some(list) = self.table.get(key).and_then(|value| value.get_ref().as_array()) else {
            self.problem(key, "not an array of tables", format!("write each as [[{}]]", plain(&self.name(key))));
            return Vec::new();
        };
        let mut values = Vec::new();
        for (at, item) in list.iter().enumerate() {
            let Some(table) = item.get_ref().as_table() else {
                self.problem(key, "not an array of tables", format!("write each as [[{}]]", plain(&self.name(key))));
                continue;
            };
            let inner = Reader::new(self.source, format!("{}[{at}]", self.name(key)), table, item.span());
            values.extend(read(&inner));
            inner.finish();
        }
        values
    }

    fn need_value<T>(&self, key: &'static str, read: impl FnOnce(&DeValue) -> Result<T, String>) -> Option<T> {
        self.asked.borrow_mut().insert(key);
        let Some(value) = self.table.get(key) else {
            self.problem(key, "missing", "this key is required");
            return None;
        };
        match read(value.get_ref()) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.problem(key, "not a value that this key takes", expected);
                None
            }
        }
    }

    /// Notes every key that was not asked for.
    fn finish(&self) {
        let asked = self.asked.borrow();
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if asked.contains(name) {
                continue;
            }
            let near =
                asked.iter().min_by_key(|known| distance(known, name)).filter(|known| distance(known, name) <= 3);
            let known = asked.iter().copied().collect::<Vec<_>>().join(", ");
            let hint = near.map_or(format!("known here: {known}"), |near| format!("did you mean {near}?"));
            let problem = Problem::error(&*self.source.file, self.name(name), "unknown key").with_hint(hint);
            self.source.problems.borrow_mut().push(problem.at_line(self.source.line(key.span().start)));
        }
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// A key path as TOML has it: without the indices of arrays.
fn plain(path: &str) -> String {
    let mut inside = false;
    let outside = |c: &char| {
        inside = (inside || *c == '[') && *c != ']';
        !inside && *c != ']'
    };
    path.chars().filter(outside).collect()
}

/// Reads a duration: a whole number and `ms`, `s`, `min`, `h` or `d`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split_number(text)?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

pub fn parse_bytes(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let factor = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(factor)
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim()))
}

fn text_of<'v>(value: &'v DeValue) -> Result<&'v str, String> {
    value.as_str().ok_or("it is text in quotes".to_owned())
}

fn integer_of(value: &DeValue, bounds: std::ops::RangeInclusive<i64>) -> Result<i64, String> {
    let number = value.as_integer().and_then(|number| i64::from_str_radix(number.as_str(), number.radix()).ok());
    number.filter(|number| bounds.contains(number)).ok_or_else(|| {
        let upper = if *bounds.end() == i64::MAX { "up".to_owned() } else { bounds.end().to_string() };
        format!("it is a whole number from {} to {upper}", bounds.start())
    })
}

/// A value as it is shown in a problem. Tables are too long to show.
fn shown(value: &DeValue) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(truth) => Some(truth.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Edit distance, for `did you mean`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str, read: impl FnOnce(&Reader)) -> Vec<String> {
        let problems = RefCell::default();
        let source = Source { file: "x.toml".into(), text, problems: &problems };
        source.read(|reader| {
            read(reader);
            Some(())
        });
        problems.into_inner().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_said_at_once_with_its_place() {
        let text =
            "name = 7\nwait = \"5 parsecs\"\n[inner]\nsize = \"3GiB\"\nwidht = 1\n[[list]]\nid = \"a\"\nbogus = 1\n";
        let found = problems(text, |reader| {
            reader.need_text("name");
            reader.need_text("title");
            reader.duration("wait", Duration::ZERO..=Duration::from_secs(60), Duration::ZERO);
            reader.table("inner", |inner| {
                inner.bytes("size", 0..=1024, 0);
                inner.integer("width", 0..=3, Some(1))
            });
            reader.tables("list", |item| item.need_text("id"));
        });
        let lines: Vec<_> =
            found.iter().map(|line| line.split_once("; ").map_or(line.as_str(), |(head, _)| head)).collect();
        assert_eq!(
            lines,
            [
                "x.toml:1: name = \"7\": not a value that this key takes",
                "x.toml:1: title: missing",
                "x.toml:2: wait = \"5 parsecs\": not a value that this key takes",
                "x.toml:4: inner.size = \"3GiB\": not a value that this key takes",
                "x.toml:5: inner.widht: unknown key",
                "x.toml:8: list[0].bogus: unknown key",
            ]
        );
        assert!(found[4].ends_with("did you mean width?"), "{}", found[4]);
    }

    #[test]
    fn broken_toml_is_said_with_its_line() {
        let found = problems("a = 1\nb = = 2\n", |_| {});
        assert!(found[0].starts_with("x.toml:2: "), "{found:?}");
    }

    #[test]
    fn units_are_required_and_known() {
        for (text, millis) in [
            ("500ms", Some(500)),
            ("5s", Some(5_000)),
            ("2min", Some(120_000)),
            ("24h", Some(86_400_000)),
            ("1d", Some(86_400_000)),
            ("5", None),
            ("s", None),
            ("-5s", None),
            ("5m", None),
            ("", None),
            ("99999999999999999999d", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
