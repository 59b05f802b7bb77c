//! What is wrong with the configuration, and what would put it right? One line of text for each problem.

use std::fmt::{self, Write};

/// How much of a value is shown, in characters; a line stays readable and a pasted secret stays mostly unprinted.
const SHOWN_CHARS_MAX: usize = 80;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Warning,
    /// The configuration is refused.
    Error,
}

/// Shown as `file:line: key = "value": message; hint`; empty parts are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub file: String,
    /// Counted from 1.
    pub line: Option<usize>,
    pub key: String,
    pub value: Option<String>,
    pub message: String,
    pub hint: String,
}

impl Problem {
    pub fn error(file: impl Into<String>, key: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::new(Severity::Error, file.into(), key.into(), message.into())
    }

    pub fn warning(file: impl Into<String>, key: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem::new(Severity::Warning, file.into(), key.into(), message.into())
    }

    pub fn at_line(mut self, line: usize) -> Problem {
        self.line = Some(line);
        self
    }

    pub fn with_value(mut self, value: impl Into<String>) -> Problem {
        self.value = Some(value.into());
        self
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = hint.into();
        self
    }

    fn new(severity: Severity, file: String, key: String, message: String) -> Problem {
        Problem { severity, file, line: None, key, value: None, message, hint: String::new() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escaped(f, &self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        f.write_str(": ")?;
        escaped(f, &truncated(&self.key))?;
        if let Some(value) = &self.value {
            let equals = if self.key.is_empty() { "" } else { " = " };
            write!(f, "{equals}{:?}", truncated(value))?;
        }
        if !self.key.is_empty() || self.value.is_some() {
            f.write_str(": ")?;
        }
        escaped(f, &self.message)?;
        if !self.hint.is_empty() {
            f.write_str("; ")?;
            escaped(f, &self.hint)?;
        }
        Ok(())
    }
}

fn truncated(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A file can hold a newline or a terminal sequence; neither may forge a second line of output.
fn escaped(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        if c.is_control() { write!(f, "{}", c.escape_default())? } else { f.write_char(c)? }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_shown_in_order_and_left_out_when_empty() {
        let long = "x".repeat(81);
        let cases = [
            (
                Problem::error("config/partners/icmr.toml", "networks[0].cidr", "wider than /24")
                    .at_line(12)
                    .with_value("10.0.0.0/4")
                    .with_hint("narrow it"),
                r#"config/partners/icmr.toml:12: networks[0].cidr = "10.0.0.0/4": wider than /24; narrow it"#
                    .to_owned(),
            ),
            (Problem::error("a.toml", "owner", "missing"), "a.toml: owner: missing".to_owned()),
            (Problem::warning("a.toml", "", "unreadable"), "a.toml: unreadable".to_owned()),
            (Problem::error("a", "", "odd").with_value("v"), r#"a: "v": odd"#.to_owned()),
            (Problem::error("a", "k", "odd").with_value(&long[..80]), format!("a: k = \"{}\": odd", &long[..80])),
            (Problem::error("a", "k", "odd").with_value(long.clone()), format!("a: k = \"{}…\": odd", &long[..80])),
            (
                Problem::error("a\nb", "k\u{1b}", "m\r").with_value("v\n\"\u{202e}\0").with_hint("h\t"),
                r#"a\nb: k\u{1b} = "v\n\"\u{202e}\0": m\r; h\t"#.to_owned(),
            ),
        ];
        for (problem, shown) in cases {
            assert_eq!(problem.to_string(), shown);
        }
    }
}
