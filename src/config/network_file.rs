//! What does an allowlist file say? One network a line, with the words of whoever asked for it.
//!
//! ```text
//! 10.20.0.0/24   # owner=icmr-netops ticket=NET-1042 expires=2027-03-31 reason=lab network in Pune
//! 10.30.0.0/20   # ticket=NET-7 wide=true reason="two data centres" owner=icmr-netops
//! 192.0.2.7      # shadow=true
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use time::Date;
use time::macros::format_description;

use crate::clock::Timestamp;
use crate::config::problem::Problem;
use crate::policy::networks::{self, NetworkError, NetworksBuilder, Note, NoteId};

/// Longest line, without its end.
const LINE_BYTES_MAX: usize = 4096;
/// Problems shown of one file. A file of the wrong kind has one a line.
const PROBLEMS_MAX: usize = 100;
/// Texts remembered while a file is read: 64 MiB if each fills its line, 1 or 2 MiB in practice.
const SEEN_MAX: usize = 16_384;

/// What a line that does not say otherwise means, from the partner's TOML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    pub owner: Option<String>,
    pub ticket: Option<String>,
    pub reason: Option<String>,
    pub expires: Option<Timestamp>,
    pub shadow: bool,
}

/// Adds the networks of the file at `path` to `into`. Each line that cannot be kept whole is an error in `problems`,
/// under the name `shown_as`; the caller refuses the configuration when there is one. A network wider than /24 (IPv4)
/// or /56 (IPv6) needs `wide=true` and its reason on its own line: a default is no reason for an exception.
pub fn read(path: &Path, shown_as: &str, defaults: &Defaults, into: &mut NetworksBuilder, problems: &mut Vec<Problem>) {
    let problems_before = problems.len();
    let mut unshown = 0usize;
    let mut report = |problem: Problem| {
        if problems.len() - problems_before < PROBLEMS_MAX { problems.push(problem) } else { unshown += 1 }
    };
    let mut reader = Reader { file: shown_as.into(), defaults, into, seen: HashMap::new() };
    let mut number = 0usize;
    let read = open(path).and_then(|mut lines| {
        let mut line = Vec::with_capacity(LINE_BYTES_MAX + 2);
        while next_line(&mut lines, &mut line)? {
            number += 1;
            if let Err(found) = reader.take(&line, number) {
                found.into_iter().for_each(|problem| report(problem.at_line(number)));
            }
        }
        Ok(())
    });
    if let Err(e) = read {
        report(Problem::error(shown_as, "", format!("cannot be read: {e}")));
    }
    if unshown > 0 {
        problems.push(Problem::error(shown_as, "", format!("… and {unshown} more")));
    }
}

/// Reads a network, or an address that stands for itself alone. The problem carries `file`, `key` and the text.
pub fn parse_cidr(text: &str, file: &str, key: &str) -> Result<IpNet, Box<Problem>> {
    let problem =
        |message: &str, hint: &str| Box::new(Problem::error(file, key, message).with_value(text).with_hint(hint));
    let cidr = split_cidr(text)
        .ok_or_else(|| problem("not an address or network", "write it as 192.0.2.0/24 or 2001:db8::/56"))?;
    networks::canonical(cidr).map_err(|e| {
        let hint = match e {
            NetworkError::HostBits(meant) => {
                format!("write {meant} for the network, or {} for the one address", cidr.addr().to_canonical())
            }
            NetworkError::MappedPrefix | NetworkError::Full => "write the IPv4 network itself".to_owned(),
        };
        problem(&e.to_string(), &hint)
    })
}

/// Reads the end of validity: `2027-03-31` is valid through that day in UTC, an RFC 3339 date-time until that instant.
/// `None` for anything else and for times a `Timestamp` cannot hold.
pub fn parse_expiry(text: &str) -> Option<Timestamp> {
    if text.len() != "2027-03-31".len() {
        return Timestamp::parse(text);
    }
    let day = Date::parse(text, format_description!("[year]-[month]-[day]")).ok()?;
    let nanos = day.next_day()?.midnight().assume_utc().unix_timestamp_nanos();
    u64::try_from(nanos).ok().map(Timestamp::from_nanos)
}

/// A directory, a device or a pipe is refused before it is opened: reading it might never end.
fn open(path: &Path) -> io::Result<BufReader<File>> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(BufReader::with_capacity(1 << 16, File::open(path)?))
}

/// Puts the next line without its end into `line`, at most two bytes over the limit; false after the last.
fn next_line(lines: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let with_end = LINE_BYTES_MAX + "\r\n".len();
    if lines.by_ref().take(with_end as u64).read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
        line.pop_if(|end| *end == b'\r');
    } else if line.len() == with_end {
        lines.skip_until(b'\n')?;
    }
    Ok(true)
}

struct Reader<'a> {
    file: Arc<str>,
    defaults: &'a Defaults,
    into: &'a mut NetworksBuilder,
    /// What follows the `#`, as first read: of a million lines most repeat it, and need not be split again.
    seen: HashMap<String, Terms>,
}

/// What a line says about its network.
#[derive(Clone, Copy)]
struct Terms {
    note: NoteId,
    wide_allowed: bool,
}

impl Reader<'_> {
    fn take(&mut self, line: &[u8], number: usize) -> Result<(), Vec<Problem>> {
        if line.len() > LINE_BYTES_MAX {
            let message = format!("line of more than {LINE_BYTES_MAX} bytes");
            return Err(vec![self.problem("", message).with_hint("write one network a line")]);
        }
        let Ok(text) = str::from_utf8(line) else {
            let problem = self.problem("", "not UTF-8").with_value(String::from_utf8_lossy(line));
            return Err(vec![problem.with_hint("save the file as UTF-8")]);
        };
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            return Ok(());
        }
        let (cidr_text, terms_text) = text.split_once('#').unwrap_or((text, ""));
        let cidr_text = cidr_text.trim();
        let (cidr, terms) = match (parse_cidr(cidr_text, &self.file, "cidr"), self.terms(terms_text)) {
            (Ok(cidr), Ok(terms)) => (cidr, terms),
            (cidr, terms) => {
                let cidr = cidr.err().map(|problem| *problem);
                return Err(cidr.into_iter().chain(terms.err().unwrap_or_default()).collect());
            }
        };
        if networks::is_wide(&cidr) && !terms.wide_allowed {
            let narrow = if cidr.max_prefix_len() == 32 { networks::V4_PREFIX_MIN } else { networks::V6_PREFIX_MIN };
            let problem = self.problem("cidr", format!("wider than /{narrow}")).with_value(cidr_text);
            return Err(vec![problem.with_hint("add wide=true and a reason to the line, or narrow it")]);
        }
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        self.into.add(cidr, terms.note, number).map_err(|e| vec![self.problem("cidr", e.to_string())])
    }

    fn terms(&mut self, text: &str) -> Result<Terms, Vec<Problem>> {
        if let Some(terms) = self.seen.get(text) {
            return Ok(*terms);
        }
        let (note, wide_allowed) = self.parse_terms(text)?;
        let terms = Terms { note: self.into.intern(note), wide_allowed };
        if self.seen.len() < SEEN_MAX {
            self.seen.insert(text.to_owned(), terms);
        }
        Ok(terms)
    }

    fn parse_terms(&self, text: &str) -> Result<(Note, bool), Vec<Problem>> {
        let mut problems = Vec::new();
        let fields = Fields::parse(text, &self.file, &mut problems);
        let mut word = |key: &str, given: Option<&str>, default: &Option<String>| {
            let word = given.or(default.as_deref()).unwrap_or_default().trim();
            if word.is_empty() {
                let hint = format!("add {key}=… after a # on the line, or a default for the file");
                problems.push(self.problem(key, "missing").with_hint(hint));
            }
            word.to_owned()
        };
        let owner = word("owner", fields.owner, &self.defaults.owner);
        let ticket = word("ticket", fields.ticket, &self.defaults.ticket);
        let reason = word("reason", fields.reason, &self.defaults.reason);
        let expires = match fields.expires {
            None => self.defaults.expires,
            Some(text) => parse_expiry(text).or_else(|| {
                let problem = self.problem("expires", "not a date").with_value(text);
                problems.push(problem.with_hint("write 2027-03-31 or 2027-03-31T18:30:00Z, or leave it out for never"));
                None
            }),
        };
        if fields.wide.is_some_and(|text| text != "true" && text != "false") {
            let problem = self.problem("wide", "neither true nor false").with_value(fields.wide.unwrap_or_default());
            problems.push(problem.with_hint("write wide=true, or leave it out"));
        }
        if fields.shadow.is_some_and(|text| text != "true" && text != "false") {
            let value = fields.shadow.unwrap_or_default();
            let problem = self.problem("shadow", "neither true nor false").with_value(value);
            problems.push(problem.with_hint("write shadow=true, or leave it out"));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let wide_allowed = fields.wide == Some("true") && fields.reason.is_some();
        let shadow = fields.shadow.map_or(self.defaults.shadow, |text| text == "true");
        Ok((Note { owner, ticket, reason, expires, shadow, file: self.file.clone() }, wide_allowed))
    }

    fn problem(&self, key: &str, message: impl Into<String>) -> Problem {
        Problem::error(&*self.file, key, message)
    }
}

/// The address is read by the standard library, which refuses leading zeros: elsewhere they mean octal.
fn split_cidr(text: &str) -> Option<IpNet> {
    let Some((addr, prefix)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    if !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    IpNet::new(addr.parse().ok()?, prefix.parse().ok()?).ok()
}

/// The `key=value` words after the `#`, as written.
#[derive(Default)]
struct Fields<'a> {
    owner: Option<&'a str>,
    ticket: Option<&'a str>,
    reason: Option<&'a str>,
    expires: Option<&'a str>,
    wide: Option<&'a str>,
    shadow: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str, file: &str, problems: &mut Vec<Problem>) -> Fields<'a> {
        let mut fields = Fields::default();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (key, value, after) = match next_field(rest) {
                Ok(field) => field,
                Err((message, hint)) => {
                    problems.push(Problem::error(file, "", message).with_value(rest).with_hint(hint));
                    break;
                }
            };
            rest = after.trim_start();
            let field = match key {
                "owner" => &mut fields.owner,
                "ticket" => &mut fields.ticket,
                "reason" => &mut fields.reason,
                "expires" => &mut fields.expires,
                "wide" => &mut fields.wide,
                "shadow" => &mut fields.shadow,
                _ => {
                    let hint = "the keys are owner, ticket, reason, expires, wide, shadow";
                    problems.push(Problem::error(file, key, "unknown key").with_value(value).with_hint(hint));
                    continue;
                }
            };
            if field.replace(value).is_some() {
                problems.push(Problem::error(file, key, "given twice").with_value(value).with_hint("keep one of them"));
            }
        }
        fields
    }
}

/// Splits `key=value` off the front of `text`, which does not start with a space: key, value, what is left.
/// The error is a message and a hint.
fn next_field(text: &str) -> Result<(&str, &str, &str), (&'static str, &'static str)> {
    let not_a_field = ("not key=value", "put a value that has spaces in double quotes, or a reason last");
    let (key, value) = text.split_once('=').ok_or(not_a_field)?;
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(not_a_field);
    }
    if let Some(quoted) = value.strip_prefix('"') {
        let (value, rest) = quoted.split_once('"').ok_or(("unclosed quote", "end the value with a double quote"))?;
        if rest.starts_with(|c: char| !c.is_whitespace()) {
            return Err(("text after a closing quote", "put a space between fields; a value holds no double quote"));
        }
        return Ok((key, value, rest));
    }
    if key != "reason" {
        let (value, rest) = value.split_once(char::is_whitespace).unwrap_or((value, ""));
        return Ok((key, value, rest));
    }
    // `reason=lab expires=2027-03-31` would lose the expiry in the reason and leave the network open for ever.
    if value.contains('=') {
        return Err(("an = in an unquoted reason", "put the reason last, or in double quotes"));
    }
    Ok((key, value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::networks::{Match, Networks};

    const NOW: Timestamp = Timestamp::from_unix_seconds(0);

    fn defaults() -> Defaults {
        let word = |text: &str| Some(text.to_owned());
        let (owner, ticket, reason) = (word("noc"), word("NET-1"), word("office"));
        Defaults { owner, ticket, reason, expires: None, shadow: false }
    }

    fn load(contents: impl AsRef<[u8]>, defaults: &Defaults) -> (Networks, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lab.networks");
        fs::write(&path, contents).unwrap();
        load_path(&path, defaults)
    }

    fn load_path(path: &Path, defaults: &Defaults) -> (Networks, Vec<String>) {
        let (mut builder, mut problems) = (NetworksBuilder::new(), Vec::new());
        read(path, "lab.networks", defaults, &mut builder, &mut problems);
        (builder.build(), problems.iter().map(Problem::to_string).collect())
    }

    #[test]
    fn a_good_line_becomes_one_network_with_its_note() {
        let full = "owner=icmr-netops ticket=NET-1042 expires=2027-03-31 wide=true reason=lab network in Pune";
        let cases = [
            ("10.20.0.0/24", "10.20.0.0/24", "noc/NET-1/office/None"),
            ("10.20.0.7", "10.20.0.7/32", "noc/NET-1/office/None"),
            ("2001:db8::1", "2001:db8::1/128", "noc/NET-1/office/None"),
            ("2001:db8::/56 #", "2001:db8::/56", "noc/NET-1/office/None"),
            ("::ffff:10.1.2.3", "10.1.2.3/32", "noc/NET-1/office/None"),
            ("::ffff:10.1.2.0/120", "10.1.2.0/24", "noc/NET-1/office/None"),
            (
                &*format!("10.0.0.0/8  # {full}"),
                "10.0.0.0/8",
                "icmr-netops/NET-1042/lab network in Pune/Some(2027-04-01T00:00:00Z)",
            ),
            (
                &*format!("::ffff:10.0.0.0/104 # {full}"),
                "10.0.0.0/8",
                "icmr-netops/NET-1042/lab network in Pune/Some(2027-04-01T00:00:00Z)",
            ),
            (&*format!("::/0 # {full}"), "::/0", "icmr-netops/NET-1042/lab network in Pune/Some(2027-04-01T00:00:00Z)"),
            (
                &*format!("0.0.0.0/0#{full}"),
                "0.0.0.0/0",
                "icmr-netops/NET-1042/lab network in Pune/Some(2027-04-01T00:00:00Z)",
            ),
            ("10.0.0.0/24 # reason=a \"c\" #12", "10.0.0.0/24", "noc/NET-1/a \"c\" #12/None"),
            ("10.0.0.0/24 # reason=\"a wide=true\"\towner=x", "10.0.0.0/24", "x/NET-1/a wide=true/None"),
            (
                "10.0.0.0/24 # wide=false expires=2027-03-31T23:30:00+05:30",
                "10.0.0.0/24",
                "noc/NET-1/office/Some(2027-03-31T18:00:00Z)",
            ),
        ];
        for (line, cidr, note) in cases {
            let (networks, problems) = load(line, &defaults());
            assert_eq!(problems, [""; 0], "{line}");
            let (_, network) = networks.iter().next().unwrap();
            let Note { owner, ticket, reason, expires, shadow: _, file } = network.note;
            let expires = expires.map(|at| at.to_string());
            let expires = expires.map_or("None".to_owned(), |at| format!("Some({at})"));
            assert_eq!((networks.len(), network.line, network.cidr.to_string()), (1, 1, cidr.to_owned()), "{line}");
            assert_eq!(format!("{owner}/{ticket}/{reason}/{expires}"), note, "{line}");
            assert_eq!(&**file, "lab.networks");
        }
    }

    #[test]
    fn a_bad_line_is_a_problem_and_adds_nothing() {
        let cases: [(&str, &[&str]); 25] = [
            (
                "10.0.0.0/33",
                &[r#"cidr = "10.0.0.0/33": not an address or network; write it as 192.0.2.0/24 or 2001:db8::/56"#],
            ),
            ("10.0.0.0/+8", &[r#"cidr = "10.0.0.0/+8": not an address"#]),
            ("10.0.0.0/", &[r#"cidr = "10.0.0.0/": not an address"#]),
            ("010.0.0.0/24", &[r#"cidr = "010.0.0.0/24": not an address"#]),
            ("10.0.0.0/24 lab", &[r#"cidr = "10.0.0.0/24 lab": not an address"#]),
            ("lab.example.org", &[r#"cidr = "lab.example.org": not an address"#]),
            ("\u{1b}[2J", &[r#"cidr = "\u{1b}[2J": not an address"#]),
            (
                "10.0.0.1/8",
                &[
                    r#"cidr = "10.0.0.1/8": host bits set below the prefix; write 10.0.0.0/8 for the network, or 10.0.0.1 for the one address"#,
                ],
            ),
            (
                "::ffff:10.0.0.1/104",
                &[r#"cidr = "::ffff:10.0.0.1/104": host bits set below the prefix; write 10.0.0.0/8 for"#],
            ),
            (
                "::ffff:0.0.0.0/95",
                &[r#"cidr = "::ffff:0.0.0.0/95": IPv4-mapped network with a prefix below /96; write the IPv4"#],
            ),
            (
                "10.0.0.0/23",
                &[r#"cidr = "10.0.0.0/23": wider than /24; add wide=true and a reason to the line, or narrow it"#],
            ),
            ("2001:db8::/55 # reason=campus", &[r#"cidr = "2001:db8::/55": wider than /56"#]),
            ("10.0.0.0/23 # wide=true", &[r#"cidr = "10.0.0.0/23": wider than /24"#]),
            (
                "10.0.0.0/23 # reason=campus wide=true",
                &[r#""reason=campus wide=true": an = in an unquoted reason; put"#],
            ),
            ("10.0.0.0/23 # wide=false reason=campus", &[r#"cidr = "10.0.0.0/23": wider than /24"#]),
            ("10.0.0.0/24 # reason=lab expires = 2027-03-31", &[r#""reason=lab expires = 2027-03-31": an = in an"#]),
            ("10.0.0.0/24 # wide=yes", &[r#"wide = "yes": neither true nor false"#]),
            (
                "10.0.0.0/24 # port=443",
                &[r#"port = "443": unknown key; the keys are owner, ticket, reason, expires, wide, shadow"#],
            ),
            ("10.0.0.0/24 # ticket=A ticket=A", &[r#"ticket = "A": given twice"#]),
            ("10.0.0.0/24 # owner= reason=\"  \"", &["owner: missing; add owner=…", "reason: missing; add reason=…"]),
            ("10.0.0.0/24 # expires=2027-02-29", &[r#"expires = "2027-02-29": not a date; write 2027-03-31 or"#]),
            ("10.0.0.0/24 # the lab in Pune", &[r#""the lab in Pune": not key=value"#]),
            ("10.0.0.0/24 # reason=\"lab", &[r#""reason=\"lab": unclosed quote"#]),
            ("10.0.0.0/24 # reason=\"lab\"owner=x", &[r#""reason=\"lab\"owner=x": text after a closing quote"#]),
            ("10.0.0.0/99 # a=b expires=soon", &["cidr = ", "a = ", "expires = "]),
        ];
        for (line, expected) in cases {
            let (networks, problems) = load(line, &defaults());
            assert!(networks.is_empty(), "{line}");
            assert_eq!(problems.len(), expected.len(), "{line}: {problems:?}");
            for (problem, start) in problems.iter().zip(expected) {
                let start = format!("lab.networks:1: {start}");
                assert!(problem.starts_with(&start), "{problem}\ndoes not start with\n{start}");
            }
        }
    }

    #[test]
    fn owner_ticket_and_reason_are_required_after_defaults() {
        let (networks, problems) = load("10.0.0.0/24", &Defaults::default());
        assert!(networks.is_empty());
        let keys = problems.iter().map(|p| p.split(": ").nth(1).unwrap());
        assert_eq!(keys.collect::<Vec<_>>(), ["owner", "ticket", "reason"]);

        let blank = Defaults { owner: Some(" ".to_owned()), ..defaults() };
        assert_eq!(load("10.0.0.0/24", &blank).1.len(), 1);
    }

    #[test]
    fn a_line_in_shadow_is_so_alone_unless_the_file_is() {
        let text = "10.0.0.1 # shadow=true\n10.0.0.2 # shadow=false\n10.0.0.3\n10.0.0.4 # shadow=yes";
        let (networks, problems) = load(text, &defaults());
        let shadows = |networks: Networks| networks.iter().map(|(_, n)| n.note.shadow).collect::<Vec<_>>();
        assert_eq!(shadows(networks), [true, false, false]);
        assert_eq!(shadows(load(text, &Defaults { shadow: true, ..defaults() }).0), [true, false, true]);
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert!(problem.starts_with("lab.networks:4: shadow = \"yes\": neither true nor false"), "{problem}");
    }

    #[test]
    fn a_default_expiry_holds_unless_the_line_has_its_own() {
        let until = Timestamp::parse("2026-01-01T00:00:00Z").unwrap();
        let defaults = Defaults { expires: Some(until), ..defaults() };
        let (networks, problems) = load("10.0.0.0/24\n10.0.1.0/24 # expires=2025-06-30", &defaults);
        assert_eq!(problems, [""; 0]);
        let own = Timestamp::parse("2025-07-01T00:00:00Z").unwrap();
        assert_eq!(networks.iter().map(|(_, n)| n.note.expires).collect::<Vec<_>>(), [Some(until), Some(own)]);
    }

    #[test]
    fn blank_lines_comments_and_both_line_ends_keep_the_line_numbers() {
        let (networks, problems) = load("# offices\r\n\r\n10.0.0.1\r\n   \n  # more\n10.0.0.2", &defaults());
        assert_eq!(problems, [""; 0]);
        assert_eq!(networks.iter().map(|(_, n)| n.line).collect::<Vec<_>>(), [3, 6]);
    }

    #[test]
    fn a_line_may_have_4096_bytes_and_no_more() {
        let line = |bytes: usize| format!("{:x<bytes$}", "10.0.0.1 # reason=");
        for end in ["", "\n", "\r\n", "\n10.0.0.2", "\r\n10.0.0.2"] {
            let after = usize::from(end.ends_with('2'));
            let (networks, problems) = load(line(4096) + end, &defaults());
            assert_eq!((networks.len(), problems), (1 + after, vec![]), "{end:?}");
            for bytes in [4097, 4098, 4099, 10_000] {
                let (networks, problems) = load(line(bytes) + end, &defaults());
                assert_eq!(networks.len(), after, "{bytes} {end:?}");
                assert_eq!(problems, ["lab.networks:1: line of more than 4096 bytes; write one network a line"]);
            }
        }
    }

    #[test]
    fn a_line_that_is_not_utf8_is_a_problem() {
        let (networks, problems) = load(b"10.0.0.1 # reason=\xff\n10.0.0.2", &defaults());
        assert_eq!(networks.len(), 1);
        assert_eq!(problems, ["lab.networks:1: \"10.0.0.1 # reason=\u{fffd}\": not UTF-8; save the file as UTF-8"]);
    }

    #[test]
    fn a_hundred_problems_are_shown_and_the_rest_counted() {
        for (lines, shown, last) in [(100, 100, "lab.networks:100: "), (101, 101, "lab.networks: … and 1 more")] {
            let (_, problems) = load("x\n".repeat(lines), &defaults());
            assert_eq!(problems.len(), shown);
            assert!(problems[shown - 1].starts_with(last), "{}", problems[shown - 1]);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("absent"), folder.path().to_owned(), "/dev/zero".into()] {
            let (networks, problems) = load_path(&path, &defaults());
            assert!(networks.is_empty());
            assert_eq!(problems.len(), 1);
            assert!(problems[0].starts_with("lab.networks: cannot be read: "), "{}", problems[0]);
        }
    }

    #[test]
    fn equal_terms_on_many_lines_share_one_note_and_never_the_wide_exception() {
        let text =
            "10.0.0.0/16 # wide=true reason=campus\n10.1.0.0/16 # wide=true reason=campus\n10.2.0.0/16 # reason=campus";
        let (networks, problems) = load(text, &defaults());
        assert_eq!(problems.len(), 1);
        let notes: Vec<&Note> = networks.iter().map(|(_, network)| network.note).collect();
        assert!(std::ptr::eq(notes[0], notes[1]));
        assert_eq!(networks.find("10.2.0.1".parse().unwrap(), NOW), Match::Absent);
    }

    #[test]
    fn expiry_dates() {
        let cases = [
            ("2027-03-31", Some("2027-04-01T00:00:00Z")),
            ("2027-12-31", Some("2028-01-01T00:00:00Z")),
            ("2028-02-29", Some("2028-03-01T00:00:00Z")),
            ("1969-12-31", Some("1970-01-01T00:00:00Z")),
            ("2027-03-31T18:30:00Z", Some("2027-03-31T18:30:00Z")),
            ("2027-03-31T18:30:00.5+05:30", Some("2027-03-31T13:00:00.5Z")),
            ("2027-02-29", None),
            ("2027-3-31", None),
            ("+2027-3-31", None),
            ("31-03-2027", None),
            ("1969-12-30", None),
            ("2600-01-01", None),
            ("9999-12-31", None),
            ("2027-03-31T18:30:00", None),
            ("never", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_expiry(text).map(|at| at.to_string()).as_deref(), expected, "{text}");
        }
    }
}
