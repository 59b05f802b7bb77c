//! Facts and the verdict on them: the tests of a configuration, kept beside it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::reader::Reader;
use crate::clock::Timestamp;
use crate::policy::reason::Reason;
use crate::policy::route::Place;

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub question: Question,
    pub expect: Expect,
    pub place: Place,
}

impl Case {
    /// The same question with the same verdict, wherever it stands.
    pub fn same(&self, other: &Case) -> bool {
        (&self.name, &self.question, self.expect) == (&other.name, &other.question, other.expect)
    }
}

/// The facts of one request, as `cases/*.toml` and `explain` state them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub partner: String,
    /// Which of the partner's identities is shown; the first is 0.
    pub identity: usize,
    pub source: IpAddr,
    /// The gateway's first host if absent.
    pub host: Option<String>,
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Lower-case names.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Allow,
    /// For this reason, if one is given.
    Deny(Option<Reason>),
}

pub fn read(root: &Reader) -> Vec<Case> {
    root.tables("case", case)
}

fn case(table: &Reader) -> Option<Case> {
    let name = table.need_text("name");
    let partner = table.need_text("partner");
    let identity = table.integer("identity", 0..=1_000, Some(0));
    let source = table.need("source", |text| text.parse().map_err(|_| "it is an IP address".to_owned()));
    let host = table.want_text("host");
    let request = table.need("request", |text| {
        let (method, target) =
            text.split_once(' ').ok_or("it is a method and a path such as \"GET /v1/x\"".to_owned())?;
        Ok((method.to_owned(), target.to_owned()))
    });
    let headers = headers(table);
    let body = table.want_text("body");
    let at = table
        .want("at", |text| Timestamp::parse(text).ok_or("it is a time such as \"2026-03-01T09:00:00Z\"".to_owned()));
    let reason = table.want("reason", |text| Reason::parse(text).ok_or("no such reason; README lists them".to_owned()));
    let verdict = table.need("expect", |text| match text {
        "allow" => Ok(true),
        "deny" => Ok(false),
        _ => Err("it is \"allow\" or \"deny\"".to_owned()),
    });
    let (verdict, reason) = (verdict?, reason?);
    if verdict && reason.is_some() {
        table.problem("reason", "an allowed request has no reason", "remove it, or expect \"deny\"");
    }
    let (method, target) = request?;
    let question = Question {
        partner: partner?,
        identity: identity? as usize,
        source: source?,
        host: host?,
        method,
        target,
        headers: headers?,
        body: body?.unwrap_or_default(),
        at: at?,
    };
    let expect = if verdict { Expect::Allow } else { Expect::Deny(reason) };
    Some(Case { name: name?, question, expect, place: table.place() })
}

fn headers(table: &Reader) -> Option<BTreeMap<String, String>> {
    table
        .want_map("headers")
        .map(|headers| headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
}
