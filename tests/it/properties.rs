//! What holds of every policy and every request? Random small worlds against a straight-line oracle of the rules.
//!
//! A world is written out as a configuration and read back, so that reading is a part of what is tested.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use dwarpal::clock::Timestamp;
use dwarpal::config::cases::Question;
use dwarpal::config::problem::Problem;
use dwarpal::config::settings::Overrides;
use dwarpal::config::{self, Config};
use dwarpal::explain::explain;
use dwarpal::policy::admit::Standing;
use dwarpal::policy::charge::{Charge, Person, Receipt};
use dwarpal::policy::head::{Target, host_of, method_allowed};
use dwarpal::policy::identify::{Credential, Proof};
use dwarpal::policy::lookup::{self, Actor, Asked, HeaderValue, Lookup};
use dwarpal::policy::path::CanonicalPath;
use dwarpal::policy::reason::Reason;
use dwarpal::policy::route::{Place, RouteKind};
use dwarpal::policy::shadow::Shadow;
use dwarpal::policy::trail::{Note, Trail};
use dwarpal::policy::{Denial, Head, PartnerId, Policy, Sender, WHOAMI_PATH};
use dwarpal::state::store::Ledger;
use dwarpal::state::{Hold, State};
use dwarpal::subject::{EpochKey, Kind, Subject};

/// A small configuration.
#[derive(Clone, Debug)]
struct World {
    hosts: Vec<&'static str>,
    ways: Vec<Way>,
    callers: Vec<Caller>,
}

/// A route.
#[derive(Clone, Debug)]
struct Way {
    path: String,
    methods: Vec<&'static str>,
    hosts: Vec<&'static str>,
    lookup: Option<Declared>,
}

/// Where a lookup route reads from, as the configuration says it.
#[derive(Clone, Debug)]
struct Declared {
    kind: Kind,
    subject: String,
    purpose: Option<&'static str>,
    actor: Option<&'static str>,
}

/// A partner.
#[derive(Clone, Debug)]
struct Caller {
    identities: Vec<Proof>,
    networks: Vec<Network>,
    from: Option<u64>,
    until: Option<u64>,
    hours: Option<Open>,
    actor_required: bool,
    grants: Vec<Right>,
}

#[derive(Clone, Debug)]
struct Network {
    cidr: IpNet,
    expires: Option<u64>,
    shadow: bool,
}

#[derive(Clone, Debug)]
struct Open {
    days: Vec<&'static str>,
    from: u16,
    to: u16,
    offset: i16,
}

/// A grant.
#[derive(Clone, Debug)]
struct Right {
    way: usize,
    purposes: Vec<&'static str>,
}

#[derive(Clone, Debug)]
struct Request {
    credential: Credential,
    now: u64,
    source: IpAddr,
    host: &'static str,
    method: &'static str,
    /// In canonical form, unless it has dot segments.
    path: String,
    /// Whether it is sent with an escape that is not needed.
    escaped: bool,
    query: Vec<(&'static str, String)>,
    headers: BTreeMap<String, String>,
    body: Body,
}

#[derive(Clone, Debug)]
enum Body {
    Absent,
    Members(Vec<(&'static str, String)>),
    NotJson,
}

const HOSTS: [&str; 3] = ["a.test", "b.test", "c.test"];
const METHODS: [&str; 3] = ["GET", "POST", "PUT"];
const PURPOSES: [&str; 3] = ["care", "study", "audit"];
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const ISSUERS: [&str; 2] = ["one", "two"];
const KINDS: [Kind; 3] = [Kind::Mobile, Kind::Aadhaar, Kind::Beneficiary];
/// Monday 2026-03-02T02:30:00Z, which is 08:00 in India.
const MONDAY: u64 = 1_772_418_600;
const TIMES: [u64; 6] =
    [MONDAY, MONDAY - 1, MONDAY + 6 * 3_600, MONDAY + 17 * 3_600, MONDAY + 5 * 86_400, MONDAY + 30 * 86_400];
/// Nested, so that the innermost one, expiries and removals matter; shared between partners by chance.
const CIDRS: [&str; 8] = [
    "10.0.0.0/24",
    "10.0.0.0/28",
    "10.0.0.7/32",
    "10.0.0.0/16",
    "10.0.0.128/25",
    "2001:db8::/56",
    "2001:db8::/64",
    "10.0.1.0/24",
];
const SOURCES: [&str; 5] = ["10.0.0.7", "10.0.0.200", "10.0.9.9", "2001:db8:0:1::1", "192.0.2.1"];

/// Of each partner and each grant; the limits are there to be replaced as a whole.
const LIMITS: &str = "[contract]\nclass = \"batch\"\npeople_per_day = 9\n[limits]\nrequests = \"9/s\"\nsource = \"9/s\"\nsubject = \"9/s\"\nin_flight_max = 9\n";
const GRANT_LIMITS: &str = "in_flight_max = 1";

/// Choices that proptest draws and shrinks: zero is the first and plainest of each.
struct Dice<'a>(std::slice::Iter<'a, u8>);

impl Dice<'_> {
    fn below(&mut self, sides: usize) -> usize {
        usize::from(*self.0.next().unwrap_or(&0)) % sides.max(1)
    }

    /// True once in so many throws.
    fn rarely(&mut self, sides: usize) -> bool {
        self.below(sides) + 1 == sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    fn some<T: Clone>(&mut self, from: &[T]) -> Vec<T> {
        from.iter().filter(|_| self.below(2) == 0).cloned().collect()
    }

    /// Never empty.
    fn several<T: Clone>(&mut self, from: &[T]) -> Vec<T> {
        let some = self.some(from);
        if some.is_empty() { from[..1].to_vec() } else { some }
    }

    fn maybe<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let one = self.pick(from);
        self.rarely(2).then_some(one)
    }
}

// === Worlds ===

impl World {
    fn draw(dice: &mut Dice) -> World {
        let hosts = dice.several(&HOSTS);
        let mut ways: Vec<Way> = Vec::new();
        for _ in 0..2 + dice.below(5) {
            let way = Way::draw(dice);
            if !ways.iter().any(|other| other.rivals(&way)) {
                ways.push(way);
            }
        }
        let count = 2 + dice.below(3);
        let mut callers: Vec<_> = (0..count).map(|at| Caller::draw(dice, at, &ways)).collect();
        for proof in proofs() {
            // Many identities of one partner, and certificates that show those of two.
            if let Some(caller) = callers.get_mut(dice.below(count + 1)) {
                caller.identities.push(proof);
            }
        }
        World { hosts, ways, callers }
    }

    /// Every file of the configuration by its name.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::from([("gateway.toml".to_owned(), self.gateway())]);
        for (at, caller) in self.callers.iter().enumerate() {
            let (toml, networks) = caller.text(at);
            files.insert(format!("partners/p{at}.toml"), toml);
            files.insert(format!("partners/p{at}.networks"), networks);
        }
        files
    }

    fn load(&self) -> Result<Config, Vec<Problem>> {
        load(&self.files())
    }

    fn gateway(&self) -> String {
        let mut text = format!(
            "version = 1\n[listen]\naddress = \"127.0.0.1:1\"\nhosts = {:?}\n\
             [tls]\ncertificate = \"c\"\nkey = \"k\"\n[metrics]\naddress = \"127.0.0.1:2\"\nnetworks = [\"127.0.0.1/32\"]\n\
             [data]\ndirectory = \"d\"\n[[backend]]\nname = \"registry\"\naddress = \"127.0.0.1:3\"\nhost = \"r.test\"\n",
            self.hosts
        );
        for issuer in ISSUERS {
            let _ = writeln!(text, "[[issuer]]\nname = {issuer:?}\ncertificates = \"c\"\ncrls = [\"l\"]");
        }
        for (at, way) in self.ways.iter().enumerate() {
            let (methods, path) = (&way.methods, &way.path);
            let _ = writeln!(
                text,
                "[[route]]\nname = \"r{at}\"\nbackend = \"registry\"\nmethods = {methods:?}\npath = {path:?}"
            );
            if !way.hosts.is_empty() {
                let _ = writeln!(text, "hosts = {:?}", way.hosts);
            }
            match &way.lookup {
                Some(declared) => text.push_str(&declared.text()),
                None => text.push_str("[route.pass]\n"),
            }
            for (name, required) in way.parameters() {
                let table = if way.lookup.is_some() { "lookup" } else { "pass" };
                let _ = writeln!(text, "[[route.{table}.parameters]]\nname = {name:?}\n{}", string(required));
            }
        }
        text
    }
}

impl Way {
    fn draw(dice: &mut Dice) -> Way {
        let mut path = "/v1".to_owned();
        for at in 2..3 + dice.below(3) {
            let segment = dice.pick(&["{}", "a", "b", "{}", "**"]);
            path.push('/');
            path.push_str(&segment.replace("{}", &format!("{{x{at}}}")));
            if segment == "**" {
                break;
            }
        }
        let capture = path.split_once("{x").map(|(_, rest)| format!("path:x{}", &rest[..1]));
        let mut subjects = ["body:/subject", "header:x-subject", "query:subject"].map(str::to_owned).to_vec();
        subjects.extend(capture);
        let lookup = (!dice.rarely(3)).then(|| Declared {
            kind: dice.pick(&KINDS),
            subject: dice.pick(&subjects),
            purpose: dice.pick(&[Some("header:x-purpose"), Some("body:/purpose"), None]),
            actor: dice.pick(&[Some("header:x-actor"), Some("body:/actor"), None]),
        });
        // A lookup's path has no room for anything but the identifier.
        let closed = |declared: &Declared| {
            let keep = |segment: &str| match segment {
                "**" => "b".to_owned(),
                _ if segment.starts_with('{')
                    && declared.subject != format!("path:{}", segment.trim_matches(['{', '}'])) =>
                {
                    "a".to_owned()
                }
                _ => segment.to_owned(),
            };
            path.split('/').map(keep).collect::<Vec<_>>().join("/")
        };
        let path = lookup.as_ref().map(closed).unwrap_or_else(|| path.clone());
        let hosts = if dice.rarely(2) { dice.several(&HOSTS) } else { Vec::new() };
        Way { path, methods: dice.several(&METHODS), hosts, lookup }
    }

    /// Whether some request would match both, and neither is the more specific.
    fn rivals(&self, other: &Way) -> bool {
        let share = |a: &[&str], b: &[&str]| a.iter().any(|text| b.contains(text));
        let anywhere = self.hosts.is_empty() || other.hosts.is_empty();
        self.path.split('/').map(rank_and_text).eq(other.path.split('/').map(rank_and_text))
            && share(&self.methods, &other.methods)
            && (anywhere || share(&self.hosts, &other.hosts))
    }

    /// Declared members of the body and whether each is required.
    fn members(&self) -> Vec<(&str, bool)> {
        let Some(declared) = &self.lookup else { return Vec::new() };
        let places =
            [Some((&*declared.subject, true)), declared.purpose.zip(Some(false)), declared.actor.zip(Some(false))];
        let in_body = |(place, required): (_, _)| str::strip_prefix(place, "body:/").zip(Some(required));
        let mut members: Vec<_> = places.into_iter().flatten().filter_map(in_body).collect();
        if !members.is_empty() {
            members.push(("case", false));
        }
        members
    }

    /// Declared parameters of the query, likewise.
    fn parameters(&self) -> Vec<(&str, bool)> {
        match &self.lookup {
            Some(declared) => declared.subject.strip_prefix("query:").zip(Some(true)).into_iter().collect(),
            None => vec![("since", false)],
        }
    }
}

/// Sorts segments by precedence: plain, capture, rest.
fn rank_and_text(segment: &str) -> (u8, &str) {
    match segment {
        "**" => (2, ""),
        _ if segment.starts_with('{') => (1, ""),
        _ => (0, segment),
    }
}

fn string(required: bool) -> String {
    format!("type = \"string\"\nlength_max = 24\noptional = {}", !required)
}

impl Declared {
    fn text(&self) -> String {
        let Declared { kind, subject, purpose, actor } = self;
        let mut text = format!("[route.lookup]\nkind = {:?}\nsubject = {subject:?}\nquery_ok = true\n", kind.as_str());
        for (key, place) in [("purpose", purpose), ("actor", actor)] {
            if let Some(place) = place {
                let _ = writeln!(text, "{key} = {place:?}");
            }
        }
        let whole = Way { path: String::new(), methods: vec![], hosts: vec![], lookup: Some(self.clone()) };
        for (name, required) in whole.members() {
            let _ = writeln!(text, "[[route.lookup.members]]\npointer = \"/{name}\"\n{}", string(required));
        }
        text
    }
}

impl Caller {
    fn draw(dice: &mut Dice, at: usize, ways: &[Way]) -> Caller {
        let own = Proof::Uri { issuer: ISSUERS[0].into(), uri: format!("spiffe://t.test/own-{at}") };
        let actor_required = dice.rarely(3);
        let cidrs = dice.some(&CIDRS);
        let network = |cidr: &str| {
            let (cidr, expires) = (cidr.parse().expect(cidr), dice.maybe(&TIMES));
            Network { cidr, expires, shadow: dice.rarely(3) }
        };
        let networks = cidrs.into_iter().map(network).collect();
        let rarely = |dice: &mut Dice| dice.rarely(10).then(|| dice.pick(&TIMES));
        let (from, until) = (rarely(dice), rarely(dice));
        let hours = dice.rarely(4).then(|| {
            let (from, to) = dice.pick(&[(0, 24 * 60), (8 * 60, 20 * 60), (0, 8 * 60), (8 * 60, 8 * 60 + 1)]);
            Open { days: dice.several(&DAYS), from, to, offset: dice.pick(&[330, 0, -180]) }
        });
        let mut grants = Vec::new();
        for (way, route) in ways.iter().enumerate().filter(|_| dice.below(3) < 2).collect::<Vec<_>>() {
            let mut purposes = dice.several(&PURPOSES);
            match &route.lookup {
                None => purposes.clear(),
                Some(declared) if actor_required && declared.actor.is_none() => continue,
                Some(declared) if declared.purpose.is_none() => purposes.truncate(1),
                Some(_) => {}
            }
            grants.push(Right { way, purposes });
        }
        Caller { identities: vec![own], networks, from, until, hours, actor_required, grants }
    }

    /// The partner's file, and the file that every other network stands in.
    fn text(&self, at: usize) -> (String, String) {
        let actor = if self.actor_required { "required" } else { "optional" };
        let mut text = format!("version = 1\nname = \"p{at}\"\nactor = {actor:?}\n");
        for (key, time) in [("valid_from", self.from), ("valid_until", self.until)] {
            if let Some(time) = time {
                let _ = writeln!(text, "{key} = \"{}\"", instant(time));
            }
        }
        text.push_str(LIMITS);
        if let Some(Open { days, from, to, offset }) = &self.hours {
            let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            let sign = if *offset < 0 { '-' } else { '+' };
            let (from, to, offset) = (clock(*from), clock(*to), clock(offset.unsigned_abs()));
            let _ = writeln!(
                text,
                "[hours]\ndays = {days:?}\nfrom = \"{from}\"\nto = \"{to}\"\nutc_offset = \"{sign}{offset}\""
            );
        }
        for proof in &self.identities {
            let (claim, issuer) = match proof {
                Proof::Uri { issuer, uri } => (format!("uri = {uri:?}"), Some(issuer)),
                Proof::Dns { issuer, name } => (format!("dns = {name:?}"), Some(issuer)),
                Proof::Spki { digest, issuer } => {
                    (format!("spki = \"sha256:{}\"", BASE64_STANDARD.encode(digest)), issuer.as_ref())
                }
            };
            let issuer = issuer.map(|issuer| format!("issuer = {issuer:?}\n")).unwrap_or_default();
            let _ = write!(text, "[[identity]]\n{claim}\n{issuer}");
        }
        let mut lines = "# one network a line\n".to_owned();
        for (at, Network { cidr, expires, shadow }) in self.networks.iter().enumerate() {
            let wide = cidr.prefix_len() < 24;
            let expires = expires.map(|at| format!("expires={}", instant(at))).unwrap_or_default();
            if at % 2 == 0 {
                let expires = expires.replace('=', " = ");
                let _ = writeln!(text, "[[network]]\ncidr = \"{cidr}\"\nowner = \"o\"\nticket = \"t\"\nreason = \"r\"");
                let _ = writeln!(text, "wide = {wide}\nshadow = {shadow}\n{expires}");
            } else {
                let _ = writeln!(lines, "{cidr} # owner=o ticket=t {expires} wide={wide} shadow={shadow} reason=r");
            }
        }
        let _ = writeln!(text, "[[network_file]]\npath = \"p{at}.networks\"");
        for Right { way, purposes } in &self.grants {
            let _ = writeln!(text, "[[grant]]\nroute = \"r{way}\"\npurposes = {purposes:?}\n{GRANT_LIMITS}");
        }
        (text, lines)
    }
}

fn proofs() -> Vec<Proof> {
    let mut proofs = Vec::new();
    for issuer in ISSUERS {
        proofs.push(Proof::Uri { issuer: issuer.into(), uri: "spiffe://t.test/shared".to_owned() });
        proofs.push(Proof::Dns { issuer: issuer.into(), name: "shared.test".to_owned() });
        proofs.push(Proof::Spki { digest: [1; 32], issuer: Some(issuer.into()) });
    }
    proofs.push(Proof::Spki { digest: [1; 32], issuer: None });
    proofs.push(Proof::Spki { digest: [2; 32], issuer: None });
    proofs
}

fn instant(seconds: u64) -> String {
    Timestamp::from_unix_seconds(seconds).to_string()
}

fn load(files: &BTreeMap<String, String>) -> Result<Config, Vec<Problem>> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir(folder.path().join("partners")).expect("a directory");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect(name);
    }
    config::load(folder.path(), &Overrides::default())
}

// === Requests ===

impl Request {
    /// Meant for one grant of one partner; every fact may miss.
    fn draw(dice: &mut Dice, world: &World) -> Request {
        let caller = dice.pick(&world.callers);
        let granted = if caller.grants.is_empty() || dice.rarely(6) {
            dice.below(world.ways.len())
        } else {
            dice.pick(&caller.grants).way
        };
        let way = &world.ways[granted];
        let now = dice.pick(&TIMES);
        let mut credential = show(&dice.pick(&caller.identities), now);
        if dice.rarely(10) {
            also_show(&mut credential, &dice.pick(&proofs()));
        }
        if dice.rarely(32) {
            credential.not_after = Timestamp::from_unix_seconds(now - 1);
        }
        let inside = |cidr: IpNet, last: bool| if last { cidr.broadcast() } else { cidr.network() };
        let mut source = match caller.networks.is_empty() || dice.rarely(8) {
            true => dice.pick(&SOURCES).parse().expect("an address"),
            false => inside(dice.pick(&caller.networks).cidr, dice.rarely(2)),
        };
        if let (IpAddr::V4(v4), true) = (source, dice.rarely(6)) {
            source = v4.to_ipv6_mapped().into();
        }
        let answering: Vec<_> = way.hosts.iter().filter(|host| world.hosts.contains(*host)).copied().collect();
        let hosts = if answering.is_empty() || dice.rarely(5) { &world.hosts } else { &answering };
        let host = dice.pick(hosts);
        let host = if dice.rarely(24) { "elsewhere.test" } else { host };
        let method =
            if dice.rarely(12) { dice.pick(&["GET", "POST", "DELETE", "TRACE"]) } else { dice.pick(&way.methods) };
        let mut request = Request {
            credential,
            now,
            source,
            host,
            method,
            path: way.path.clone(),
            escaped: dice.rarely(8),
            query: Vec::new(),
            headers: BTreeMap::new(),
            body: Body::Absent,
        };
        let purposes = caller.grants.iter().find(|grant| grant.way == granted).map(|grant| &*grant.purposes);
        request.fill(dice, way, purposes.unwrap_or(&PURPOSES));
        if dice.rarely(20) {
            request.path = dice.pick(&[WHOAMI_PATH, "/v2/a", "/v1/a/../b", "/v1/a/b/a/b"]).to_owned();
        }
        request
    }

    fn fill(&mut self, dice: &mut Dice, way: &Way, purposes: &[&'static str]) {
        if way.members().is_empty() {
            self.body = if dice.rarely(12) { Body::NotJson } else { Body::Absent };
        } else {
            self.body = Body::Members(Vec::new());
        }
        if let Some(declared) = &way.lookup {
            let kind = if dice.rarely(16) { dice.pick(&KINDS) } else { declared.kind };
            let subject = match kind {
                Kind::Mobile => ["6412345678", "+91 64123-45678", "5412345678"],
                Kind::Aadhaar => ["999941057058", "9999 4105 7058", "999941057059"],
                _ => ["12345678901234", "1234 5678901234", "1234567890123X"],
            };
            let subject = if dice.rarely(8) { subject[2] } else { dice.pick(&subject[..2]) };
            if !dice.rarely(24) {
                self.put(&declared.subject, subject);
            }
            let purpose = if dice.rarely(8) || purposes.is_empty() { PURPOSES[2] } else { dice.pick(purposes) };
            if let Some(place) = declared.purpose.filter(|_| !dice.rarely(12)) {
                self.put(place, purpose);
            }
            let actor = if dice.rarely(12) { dice.pick(&["6412345678", "two words"]) } else { "hw-1042" };
            if let Some(place) = declared.actor.filter(|_| !dice.rarely(5)) {
                self.put(place, actor);
            }
        }
        let rest = dice.pick(&["a", "a/b", "b/a", "a.c/B%20", "b%3Fc/a"]);
        let names = ["a", "b", "c", "A.", "b.c", "a%3Fc", "%20"];
        let filled = self.path.split('/').map(|segment| match segment {
            "**" => rest,
            _ if segment.starts_with('{') => dice.pick(&names),
            _ => segment,
        });
        self.path = filled.collect::<Vec<_>>().join("/");
        if dice.rarely(8) {
            let stray = dice.pick(&["case", "since", "subject", "aadhaar"]);
            match &mut self.body {
                Body::Members(members) if dice.rarely(2) => members.push((stray, "x".to_owned())),
                body if dice.rarely(4) => *body = Body::NotJson,
                _ => self.query.push((stray, "x".to_owned())),
            }
        }
    }

    /// Puts a text where a location says. In a path, spaces travel escaped.
    fn put(&mut self, place: &str, text: &str) {
        match place.split_once(':').expect("a location") {
            ("body", "/subject") => self.member("subject", text),
            ("body", "/purpose") => self.member("purpose", text),
            ("body", _) => self.member("actor", text),
            ("query", _) => self.query.push(("subject", text.to_owned())),
            ("path", name) => self.path = self.path.replace(&format!("{{{name}}}"), &text.replace(' ', "%20")),
            (_, name) => _ = self.headers.insert(name.to_owned(), text.to_owned()),
        }
    }

    fn member(&mut self, name: &'static str, text: &str) {
        if let Body::Members(members) = &mut self.body {
            members.push((name, text.to_owned()));
        }
    }

    /// The text at a location.
    fn at(&self, place: &str) -> Option<String> {
        match (place.split_once(':').expect("a location"), &self.body) {
            (("body", pointer), Body::Members(members)) => {
                members.iter().find(|(name, _)| *name == &pointer[1..]).map(|(_, text)| text.clone())
            }
            (("body", _), _) => None,
            (("query", name), _) => self.query.iter().find(|(other, _)| *other == name).map(|(_, text)| text.clone()),
            // A capture is called after its position.
            (("path", name), _) => {
                self.path.split('/').nth(name[1..].parse().ok()?).map(|text| text.replace("%20", " "))
            }
            ((_, name), _) => self.headers.get(name).cloned(),
        }
    }

    fn target(&self) -> String {
        let path = if self.escaped { self.path.replace('a', "%61") } else { self.path.clone() };
        let pairs: Vec<_> = self.query.iter().map(|(name, text)| format!("{name}={}", form(text))).collect();
        if pairs.is_empty() { path } else { format!("{path}?{}", pairs.join("&")) }
    }

    fn body(&self) -> String {
        match &self.body {
            Body::Absent => String::new(),
            Body::NotJson => "subject=6412345678".to_owned(),
            Body::Members(members) => {
                let pairs: Vec<_> = members.iter().map(|(name, text)| format!("{name:?}: {text:?}")).collect();
                format!("{{{}}}", pairs.join(", "))
            }
        }
    }
}

fn form(text: &str) -> String {
    text.replace('+', "%2B").replace(' ', "+")
}

/// A credential that shows one proof and nothing else.
fn show(proof: &Proof, now: u64) -> Credential {
    let mut credential = Credential {
        issuer: ISSUERS[0].into(),
        uris: Vec::new(),
        dns_names: Vec::new(),
        spki: [0; 32],
        fingerprint: [0; 32],
        not_after: Timestamp::from_unix_seconds(now + 86_400),
    };
    match proof {
        Proof::Uri { issuer, .. } | Proof::Dns { issuer, .. } | Proof::Spki { issuer: Some(issuer), .. } => {
            credential.issuer = issuer.clone();
        }
        Proof::Spki { issuer: None, .. } => {}
    }
    also_show(&mut credential, proof);
    credential
}

/// Adds a name or key, whoever issued it.
fn also_show(credential: &mut Credential, proof: &Proof) {
    match proof {
        Proof::Uri { uri, .. } => credential.uris.push(uri.clone()),
        Proof::Dns { name, .. } => credential.dns_names.push(name.clone()),
        Proof::Spki { digest, .. } => credential.spki = *digest,
    }
}

// === The gateway's own answer, by hand ===

struct Outcome {
    denied: Option<Reason>,
    trail: Trail,
    /// What was read of a lookup that got so far.
    lookup: Option<Lookup>,
    purpose: Option<String>,
    charges: Vec<String>,
}

/// Takes a group of charges from a partner, those in a shadow apart.
type Pay<'a> = dyn FnMut(PartnerId, Vec<Charge>, Shadow) -> Receipt + 'a;

/// The steps of the decision core, one after the other, as the first request ever: every charge is paid.
fn decide(policy: &Policy, request: &Request, key: &EpochKey) -> Outcome {
    decide_paying(policy, request, key, &mut |_, _, _| Receipt::Paid)
}

fn decide_paying(policy: &Policy, request: &Request, key: &EpochKey, pay: &mut Pay) -> Outcome {
    let mut outcome =
        Outcome { denied: None, trail: Trail::default(), lookup: None, purpose: None, charges: Vec::new() };
    match steps(policy, request, key, pay, &mut outcome) {
        Ok(trail) => Outcome { trail, ..outcome },
        Err(denial) => Outcome { denied: Some(denial.reason), trail: denial.trail, ..outcome },
    }
}

fn steps(
    policy: &Policy,
    request: &Request,
    key: &EpochKey,
    pay: &mut Pay,
    outcome: &mut Outcome,
) -> Result<Trail, Denial> {
    let (text, body) = (request.target(), request.body());
    let target = method_allowed(request.method).and_then(|()| Target::parse(&text, 4_096));
    let host = host_of(request.host).expect("a well-formed host");
    let now = Timestamp::from_unix_seconds(request.now);
    let sender = Sender {
        now,
        source: request.source.to_canonical(),
        credential: &request.credential,
        standing: Standing::Open,
    };
    let plan = match &target {
        Ok(target) => policy.plan_head(&Head { sender, host: &host, method: request.method, path: &target.path }),
        Err(reason) => policy.plan_refused(&sender, *reason),
    };
    outcome.charges.extend(plan.charges().map(|charge| format!("{charge:?}")));
    let mut pay = |partner: Option<PartnerId>, charges, shadow| match partner {
        Some(partner) => pay(partner, charges, shadow),
        None => Receipt::Paid,
    };
    let partner = plan.partner();
    let receipt = pay(partner, plan.charges().collect(), plan.shadow());
    let admission = plan.settle(receipt)?;
    let Some(route) = admission.route() else { return Ok(admission.trail().clone()) };
    let target = target.expect("a refused head is not admitted");
    let plan = match &route.kind {
        RouteKind::Pass(pass) => {
            admission.plan_pass(lookup::pass_target(&pass.parameters, &target.path, target.query).map(drop))
        }
        RouteKind::Lookup(declared) => {
            let header = |name: &str| match request.headers.get(name) {
                Some(text) => HeaderValue::Text(text),
                None if name == "content-type" => HeaderValue::Text("application/json"),
                None => HeaderValue::Absent,
            };
            let captures = admission.captures().to_vec();
            let (path, query, body) = (&target.path, target.query, body.as_bytes());
            let asked = Asked { path, captures: &captures, query, header: &header, body };
            let readable = lookup::body_readable(declared, !body.is_empty(), &header);
            let read = readable
                .and_then(|()| lookup::read(declared, route, &asked, key, None).map_err(|misread| misread.reason));
            let plan = admission.plan_lookup(read.as_ref().map(Lookup::facts).map_err(|reason| *reason));
            outcome.lookup = read.ok();
            plan
        }
    };
    outcome.charges.extend(plan.charges().map(|charge| format!("{charge:?}")));
    let receipt = pay(partner, plan.charges().collect(), plan.shadow());
    let permit = plan.settle(receipt)?;
    outcome.purpose = permit.purpose().map(str::to_owned);
    Ok(permit.trail().clone())
}

// === The oracle ===

/// What an allowed request stands on, by index.
struct Ground<'w> {
    caller: usize,
    network: &'w Network,
    /// `None`: the gateway's own route.
    way: Option<usize>,
    purpose: Option<String>,
}

/// Whether a path that `way` passes through may be the lookup `other` to a backend that is lenient about case, slashes at
/// the end, what follows, and what it cuts off a segment or, from an escaped `?` on, off the path.
fn is_disguised(other: &Way, way: &Way, path: &str) -> bool {
    let shape = |way: &Way| {
        way.path.split('/').map(rank_and_text).map(|(rank, text)| (rank, text.to_owned())).collect::<Vec<_>>()
    };
    if other.lookup.is_none() || shape(other) == shape(way) {
        return false;
    }
    let (cut, deeper) = (path.split("%3F").next().unwrap_or_default(), way.path.ends_with("**"));
    may_be_asked(&other.path, path, deeper) || may_be_asked(&other.path, cut, deeper)
}

fn may_be_asked(pattern: &str, path: &str, deeper: bool) -> bool {
    let lenient = |segment: &str| {
        let text = segment.split("%3F").next().unwrap_or_default().replace("%20", " ");
        text.trim_end_matches(['.', ' ']).to_lowercase()
    };
    let path = path.trim_end_matches('/').split('/').map(lenient).collect::<Vec<_>>().join("/");
    // Of a blank last segment some backends make nothing, others a blank.
    [path.as_str(), path.trim_end_matches('/')].iter().any(|path| names(pattern, path, deeper))
}

fn names(pattern: &str, path: &str, deeper: bool) -> bool {
    let (mut asked, mut wanted) = (path.split('/'), pattern.split('/').peekable());
    while let Some(segment) = wanted.next() {
        let segment = segment.to_lowercase();
        match (&*segment, asked.next()) {
            ("**", Some(_)) => return true,
            (_, None) => return false,
            (segment, Some(_)) if segment.starts_with('{') => {}
            (segment, Some(asked)) if segment == asked => {}
            (segment, Some(asked)) if wanted.peek().is_none() && asked.starts_with(&format!("{segment}.")) => {}
            _ => return false,
        }
    }
    deeper || asked.next().is_none()
}

/// The rules, one after the other. The error has every reason that holds in the first step that refuses.
fn oracle<'w>(world: &'w World, request: &Request) -> Result<Ground<'w>, Vec<Reason>> {
    use Reason::*;
    let now = request.now;
    let shows = |caller: &Caller| caller.identities.iter().any(|proof| shown(&request.credential, proof));
    let owners: Vec<usize> = (0..world.callers.len()).filter(|at| shows(&world.callers[*at])).collect();
    step(&[
        (now <= request.credential.not_after.unix_seconds(), CertificateExpired),
        (!owners.is_empty(), IdentityUnknown),
        (owners.len() < 2, IdentityAmbiguous),
    ])?;

    let caller = &world.callers[owners[0]];
    let source = request.source.to_canonical();
    let covering: Vec<_> = caller.networks.iter().filter(|network| network.cidr.contains(&source)).collect();
    let current = covering.iter().filter(|network| network.expires.is_none_or(|at| now < at));
    let innermost = current.max_by_key(|network| (!network.shadow, network.cidr.prefix_len()));
    step(&[
        (caller.from.is_none_or(|from| from <= now) && caller.until.is_none_or(|until| now < until), PartnerNotValid),
        (!covering.is_empty(), NetworkNotAllowed),
        (covering.is_empty() || innermost.is_some(), NetworkExpired),
        (caller.hours.as_ref().is_none_or(|hours| hours.open(now)), OutsideHours),
    ])?;
    step(&[
        (!["CONNECT", "TRACE"].contains(&request.method), MethodRefused),
        (!request.path.contains(".."), BadPath),
        (world.hosts.contains(&request.host), HostMismatch),
    ])?;
    let (owner, network) = (owners[0], *innermost.expect("one was just required"));
    if ["GET", "HEAD"].contains(&request.method) && request.path == WHOAMI_PATH {
        return Ok(Ground { caller: owner, network, way: None, purpose: None });
    }

    let answers = |way: &Way| {
        way.methods.contains(&request.method)
            && (way.hosts.is_empty() || way.hosts.contains(&request.host))
            && matches(&way.path, &request.path)
    };
    let best = world.ways.iter().enumerate().filter(|(_, way)| answers(way));
    let best =
        best.min_by_key(|(_, way)| way.path.split('/').map(|segment| rank_and_text(segment).0).collect::<Vec<_>>());
    let (at, way) = best.ok_or(vec![NoRoute])?;
    if way.lookup.is_none() && world.ways.iter().any(|other| is_disguised(other, way, &request.path)) {
        return Err(vec![NoRoute]);
    }
    let grant = caller.grants.iter().find(|grant| grant.way == at).ok_or(vec![NoGrant])?;

    if way.lookup.is_some() && way.members().is_empty() && !matches!(request.body, Body::Absent) {
        return Err(vec![BodyNotExpected]);
    }
    let asked: Vec<&str> = request.query.iter().map(|(name, _)| *name).collect();
    step(&declared_once(&asked, &way.parameters(), [ParameterUndeclared, ParameterDuplicate, ParameterMissing]))?;
    let ground = |purpose| Ok(Ground { caller: owner, network, way: Some(at), purpose });
    let Some(declared) = &way.lookup else { return ground(None) };
    if !way.members().is_empty() {
        let Body::Members(members) = &request.body else { return Err(vec![BodyNotJson]) };
        let sent: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
        step(&declared_once(&sent, &way.members(), [MemberUndeclared, MemberDuplicate, MemberMissing]))?;
    }
    let actor = declared.actor.and_then(|place| request.at(place));
    let subject = request.at(&declared.subject).ok_or(IdentifierMissing);
    let subject = subject.and_then(|text| Subject::parse(declared.kind, &text).map_err(lookup::refusal));
    step(&[
        (subject.is_ok(), subject.err().unwrap_or(Internal)),
        (actor.as_ref().is_none_or(|actor| Actor::parse(actor).is_some()), ActorInvalid),
    ])?;

    let purpose = match declared.purpose {
        Some(place) => request.at(place),
        None => grant.purposes.first().map(|only| (*only).to_owned()),
    };
    step(&[
        (purpose.is_some(), PurposeMissing),
        (purpose.as_ref().is_none_or(|purpose| grant.purposes.contains(&purpose.as_str())), PurposeNotGranted),
        (!caller.actor_required || actor.is_some(), ActorMissing),
    ])?;
    ground(purpose)
}

/// Every rule of a step that does not hold.
fn step(rules: &[(bool, Reason)]) -> Result<(), Vec<Reason>> {
    let broken: Vec<_> = rules.iter().filter(|(holds, _)| !holds).map(|(_, reason)| *reason).collect();
    if broken.is_empty() { Ok(()) } else { Err(broken) }
}

/// That each name is declared, is there once, and is there at all if it has to be.
fn declared_once(sent: &[&str], declared: &[(&str, bool)], reasons: [Reason; 3]) -> [(bool, Reason); 3] {
    let [undeclared, duplicate, missing] = reasons;
    [
        (sent.iter().all(|name| declared.iter().any(|(other, _)| other == name)), undeclared),
        (sent.iter().collect::<BTreeSet<_>>().len() == sent.len(), duplicate),
        (declared.iter().all(|(name, required)| !required || sent.contains(name)), missing),
    ]
}

fn shown(credential: &Credential, proof: &Proof) -> bool {
    match proof {
        Proof::Uri { issuer, uri } => credential.issuer == *issuer && credential.uris.contains(uri),
        Proof::Dns { issuer, name } => credential.issuer == *issuer && credential.dns_names.contains(name),
        Proof::Spki { digest, issuer } => {
            credential.spki == *digest && issuer.as_ref().is_none_or(|issuer| credential.issuer == *issuer)
        }
    }
}

impl Open {
    fn open(&self, now: u64) -> bool {
        let offset = time::UtcOffset::from_whole_seconds(i32::from(self.offset) * 60).expect("an offset");
        let local = time::OffsetDateTime::from_unix_timestamp(now as i64).expect("a time").to_offset(offset);
        let minute = u16::from(local.hour()) * 60 + u16::from(local.minute());
        let day = DAYS[usize::from(local.weekday().number_days_from_monday())];
        self.days.contains(&day) && self.from <= minute && minute < self.to
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some("**"), Some(rest)) => return !rest.is_empty(),
            (Some(wanted), Some(given)) if wanted == given => {}
            (Some(wanted), Some(given)) if wanted.starts_with('{') && !given.is_empty() => {}
            _ => return false,
        }
    }
}

// === What must not get wider ===

/// One way to take something away.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Narrowing {
    Identity,
    Network,
    Expiry,
    Grant,
    Purpose,
    Actor,
    Hours,
    Period,
    ListenerHost,
    RouteHost,
    RouteMethod,
}

const NARROWINGS: [Narrowing; 11] = {
    use Narrowing::*;
    [Identity, Network, Expiry, Grant, Purpose, Actor, Hours, Period, ListenerHost, RouteHost, RouteMethod]
};

/// The world with less in it; with the caller and the way that lost something. `None`: there was nothing to take.
fn narrow(world: &World, what: Narrowing, dice: &mut Dice) -> Option<(World, usize, usize)> {
    let mut narrowed = world.clone();
    let (at, way) = (dice.below(world.callers.len()), dice.below(world.ways.len()));
    let (caller, route) = (&mut narrowed.callers[at], &mut narrowed.ways[way]);
    match what {
        Narrowing::Identity => take_one(&mut caller.identities, dice)?,
        Narrowing::Network => take_one(&mut caller.networks, dice)?,
        Narrowing::Grant => take_one(&mut caller.grants, dice)?,
        Narrowing::Expiry => {
            let network = dice.below(caller.networks.len());
            caller.networks.get_mut(network)?.expires = Some(MONDAY - 86_400);
        }
        Narrowing::Purpose => {
            let grant = dice.below(caller.grants.len());
            take_one(&mut caller.grants.get_mut(grant)?.purposes, dice)?;
        }
        Narrowing::Actor => caller.actor_required = true,
        Narrowing::Period if dice.rarely(2) => caller.from = caller.from.max(Some(dice.pick(&TIMES))),
        Narrowing::Period => caller.until = Some(dice.pick(&TIMES).min(caller.until.unwrap_or(u64::MAX))),
        Narrowing::Hours => match &mut caller.hours {
            None => caller.hours = Some(Open { days: dice.several(&DAYS), from: 60, to: 1_200, offset: 330 }),
            Some(hours) if dice.rarely(2) => take_one(&mut hours.days, dice)?,
            Some(hours) => (hours.from, hours.to) = (hours.from + 30, hours.to - 30),
        },
        Narrowing::ListenerHost => take_one(&mut narrowed.hosts, dice)?,
        // Without its last host a route answers on all of them: `configuration.rs` has that.
        Narrowing::RouteHost if route.hosts.len() < 2 => return None,
        Narrowing::RouteHost => take_one(&mut route.hosts, dice)?,
        Narrowing::RouteMethod => take_one(&mut route.methods, dice)?,
    }
    Some((narrowed, at, way))
}

fn take_one<T>(from: &mut Vec<T>, dice: &mut Dice) -> Option<()> {
    let at = dice.below(from.len());
    (at < from.len()).then(|| drop(from.remove(at)))
}

// === Properties ===

/// Bytes for a world and for its requests.
fn throws() -> impl Strategy<Value = (Vec<u8>, Vec<Vec<u8>>)> {
    (vec(any::<u8>(), 200), vec(vec(any::<u8>(), 48), 32))
}

fn draw(world: &[u8], requests: &[Vec<u8>]) -> (World, Config, Vec<Request>) {
    let world = World::draw(&mut Dice(world.iter()));
    let config = world.load().unwrap_or_else(|problems| panic!("{world:#?}\n{problems:#?}"));
    let requests = requests.iter().map(|bytes| Request::draw(&mut Dice(bytes.iter()), &world)).collect();
    (world, config, requests)
}

/// The text of a file from a place on, for as long as one entry is.
fn text_at(files: &BTreeMap<String, String>, file: &str, line: usize) -> String {
    let (name, text) = files.iter().find(|(name, _)| file.ends_with(name.as_str())).expect(file);
    let entry = if name.ends_with("networks") { 1 } else { 5 };
    text.lines().skip(line - 1).take(entry).collect::<Vec<_>>().join("\n")
}

fn place_text(files: &BTreeMap<String, String>, place: &Place) -> String {
    text_at(files, &place.file, place.line as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_verdict_is_the_oracles((world, requests) in throws()) {
        let (world, config, requests) = draw(&world, &requests);
        let key = EpochKey::ephemeral();
        for request in &requests {
            let outcome = decide(&config.policy, request, &key);
            match (outcome.denied, oracle(&world, request)) {
                (None, Ok(ground)) => {
                    assert_eq!(outcome.purpose, ground.purpose, "{:#?}\n{:#?}", world, request);
                    let shadow = ground.network.shadow.then_some(Reason::NetworkNotAllowed);
                    assert_eq!(outcome.trail.shadow(), Shadow::from_iter(shadow), "{:#?}\n{:#?}", world, request);
                }
                (Some(reason), Err(reasons)) if reasons.contains(&reason) => {
                    assert_eq!(outcome.trail.notes().last(), Some(Note::Refused(reason)));
                }
                (denied, oracle) => {
                    let expected = oracle.map(|_| "allow");
                    panic!("{denied:?}, oracle {expected:?}\n{world:#?}\n{request:#?}");
                }
            }
        }
    }

    #[test]
    fn an_allowed_request_names_what_it_stands_on((world, requests) in throws()) {
        let (world, config, requests) = draw(&world, &requests);
        let (policy, key, files) = (&config.policy, EpochKey::ephemeral(), world.files());
        for request in &requests {
            let outcome = decide(policy, request, &key);
            let (None, Ok(ground)) = (outcome.denied, oracle(&world, request)) else { continue };
            let notes: Vec<_> = outcome.trail.notes().collect();
            let lines = outcome.trail.lines(policy);
            let said = |step: &str| lines.iter().find(|(name, _)| *name == step).map_or("", |(_, text)| text.as_str());

            let [Note::Identified { partner: id, identity }, Note::Admitted { partner, network }, ..] = notes[..] else {
                panic!("{notes:?}")
            };
            assert_eq!((usize::from(id.0), id), (ground.caller, partner));
            let partner = policy.partner(id);
            let identity = &partner.identities[usize::from(identity)];
            assert!(shown(&request.credential, &identity.proof));
            assert!(said("identify").contains(&format!(" is p{} (", ground.caller)));
            assert!(place_text(&files, &identity.place).starts_with("[[identity]]\n"));

            let network = partner.networks.network(network);
            let expires = network.note.expires.map(Timestamp::unix_seconds);
            assert_eq!((network.cidr, expires), (ground.network.cidr, ground.network.expires));
            let shadow = if ground.network.shadow { " in shadow" } else { "" };
            assert!(said("admit").contains(&format!("network {}{shadow}, owner o, ticket t", network.cidr)));
            let stands = text_at(&files, &network.note.file, network.line as usize);
            assert!(stands.contains(&network.cidr.to_string()), "{}", stands);

            let Some(way) = ground.way else {
                assert!(matches!(notes[2..], [Note::OwnRoute, Note::RequestCharged { .. }]), "{:?}", notes);
                continue;
            };
            let Note::Entitled { partner, route, grant } = notes[2] else { panic!("{notes:?}") };
            let granted = &policy.partner(partner).grants[usize::from(grant)];
            assert_eq!((partner, usize::from(route.0), granted.route), (id, way, route));
            assert!(said("entitle").starts_with(&format!("route r{way} (")));
            assert!(place_text(&files, &granted.place).starts_with(&format!("[[grant]]\nroute = \"r{way}\"\n")));
            let declared = place_text(&files, &policy.route(route).place);
            assert!(declared.starts_with(&format!("[[route]]\nname = \"r{way}\"\n")), "{}", declared);

            let lookup = outcome.lookup.as_ref().map(|lookup| lookup.subject.kind());
            assert_eq!(lookup, world.ways[way].lookup.as_ref().map(|declared| declared.kind));
            match (&notes[3..], lookup) {
                ([Note::RequestCharged { charges: 4, .. }], None) => {}
                ([Note::RequestCharged { charges: 4, .. }, Note::LookedUp { kind, .. }, Note::SubjectCharged { .. }], Some(read)) => {
                    assert_eq!(*kind, read);
                }
                (rest, _) => panic!("{rest:?}"),
            }
        }
    }

    #[test]
    fn what_no_rule_names_is_denied((world, requests) in throws()) {
        let (world, config, requests) = draw(&world, &requests);
        let key = EpochKey::ephemeral();
        let ungranted = {
            let mut world = world.clone();
            world.callers.iter_mut().for_each(|caller| caller.grants.clear());
            world.load().expect("a world without grants")
        };
        let empty = World { hosts: HOSTS.to_vec(), ways: Vec::new(), callers: Vec::new() }.load().expect("an empty world");
        for request in requests {
            assert!(decide(&empty.policy, &request, &key).denied.is_some(), "{:#?}", request);
            if decide(&config.policy, &request, &key).denied.is_some() {
                continue;
            }
            let allowed = |change: &dyn Fn(&mut Request)| {
                let mut request = request.clone();
                change(&mut request);
                decide(&config.policy, &request, &key).denied
            };
            let stranger = Proof::Uri { issuer: "one".into(), uri: "spiffe://t.test/stranger".to_owned() };
            assert_eq!(allowed(&|_| ()), None);
            assert_eq!(allowed(&|request| request.credential = show(&stranger, request.now)), Some(Reason::IdentityUnknown));
            assert_eq!(
                allowed(&|request| { request.credential.issuer = "three".into(); request.credential.spki = [0; 32] }),
                Some(Reason::IdentityUnknown)
            );
            assert_eq!(allowed(&|request| request.source = [192, 0, 2, 1].into()), Some(Reason::NetworkNotAllowed));
            assert_eq!(allowed(&|request| request.host = "elsewhere.test"), Some(Reason::HostMismatch));
            assert_eq!(allowed(&|request| request.path = "/v2/a".to_owned()), Some(Reason::NoRoute));
            assert_eq!(allowed(&|request| request.method = "DELETE"), Some(Reason::NoRoute));
            let own = request.path == WHOAMI_PATH;
            assert_eq!(decide(&ungranted.policy, &request, &key).denied, (!own).then_some(Reason::NoGrant));
        }
    }

    #[test]
    fn explain_says_what_the_steps_decide((world, requests) in throws()) {
        let (world, config, requests) = draw(&world, &requests);
        let key = EpochKey::ephemeral();
        // Another instance of the same policy: its maps are seeded anew.
        let again = world.load().expect("it was loaded before");
        for (nth, mut request) in requests.into_iter().enumerate() {
            let caller = nth % world.callers.len();
            let proofs = &world.callers[caller].identities;
            let identity = nth % proofs.len();
            request.credential = show(&proofs[identity], request.now);
            let question = Question {
                partner: format!("p{caller}"),
                identity,
                source: request.source,
                host: Some(request.host.to_ascii_uppercase() + ":8443"),
                method: request.method.to_owned(),
                target: request.target(),
                headers: request.headers.clone(),
                body: request.body(),
                at: Some(Timestamp::from_unix_seconds(request.now)),
            };
            let by_hand = decide(&config.policy, &request, &key);
            let elsewhere = Timestamp::default();
            let explained = explain(&config.policy, &config.settings, &question, elsewhere).expect("it exists");
            assert_eq!(explained.denied, by_hand.denied, "{:#?}\n{:#?}", world, request);
            assert_eq!(&explained.trail, &by_hand.trail);
            let forwarded = by_hand.denied.is_none() && by_hand.trail.route().is_some();
            assert_eq!(explained.forwarded.is_some(), forwarded);

            let repeated = decide(&again.policy, &request, &key);
            assert_eq!(repeated.denied, by_hand.denied);
            assert_eq!((repeated.trail, repeated.charges), (by_hand.trail, by_hand.charges));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Two claims are weaker, and have to be. A certificate that shows two partners is nobody until one of them gives
    /// up the identity: then it is the other. And a route that no longer answers may uncover a less specific one; it
    /// must not itself answer more than before.
    #[test]
    fn taking_something_away_allows_nothing_more(
        (world, requests) in throws(), what in proptest::sample::select(&NARROWINGS[..]), which in vec(any::<u8>(), 16),
    ) {
        let (world, config, requests) = draw(&world, &requests);
        let key = EpochKey::ephemeral();
        let Some((narrowed, caller, way)) = narrow(&world, what, &mut Dice(which.iter())) else { return Ok(()) };
        // A configuration that is refused allows nothing.
        let Ok(less) = narrowed.load() else { return Ok(()) };
        for request in &requests {
            let (before, after) = (decide(&config.policy, request, &key), decide(&less.policy, request, &key));
            let (Some(reason), None) = (before.denied, after.denied) else { continue };
            let partner = after.trail.partner().map(|id| usize::from(id.0));
            let route = |trail: &Trail| trail.route().map(|id| usize::from(id.0));
            let excused = match what {
                Narrowing::Identity => reason == Reason::IdentityAmbiguous && partner != Some(caller),
                Narrowing::RouteHost | Narrowing::RouteMethod => {
                    route(&before.trail) == Some(way) && route(&after.trail) != Some(way)
                }
                _ => false,
            };
            assert!(excused, "{what:?} turned {reason} into an allow\n{world:#?}\n{narrowed:#?}\n{request:#?}");
        }
    }
}

// === What is only watched ===

/// The limits of a world: of each partner, and of each grant.
const LIMITED: [(&str, Reason); 6] = [
    ("requests", Reason::RatePartner),
    ("source", Reason::RateSource),
    ("subject", Reason::RateSubject),
    ("in_flight_max", Reason::InFlightPartner),
    ("requests", Reason::RateRoute),
    ("in_flight_max", Reason::InFlightRoute),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Enforced,
    Shadow,
    Boundless,
}

/// How tight each limit is, and which of them are in shadow.
fn limits() -> impl Strategy<Value = [(u32, bool); 6]> {
    proptest::array::uniform6((1..4u32, any::<bool>()))
}

/// The same world, but for its limits: those that are not chosen are enforced, and the others as is said.
fn limited(world: &World, limits: &[(u32, bool); 6], chosen: Manner) -> Config {
    let stated = |at: usize| {
        let (tight, shadow) = limits[at];
        let manner = if shadow { chosen } else { Manner::Enforced };
        let max = if manner == Manner::Boundless { 1_000_000 } else { tight };
        let key = LIMITED[at].0;
        let text = if key == "in_flight_max" { format!("{key} = {max}") } else { format!("{key} = \"{max}/d\"") };
        (text, (manner == Manner::Shadow).then_some(key))
    };
    let table = |range: std::ops::Range<usize>| {
        let (lines, shadow): (Vec<_>, Vec<_>) = range.map(stated).unzip();
        format!("{}\nshadow = {:?}\n", lines.join("\n"), shadow.into_iter().flatten().collect::<Vec<_>>())
    };
    let mut files = world.files();
    for text in files.values_mut() {
        *text = text
            .replace(GRANT_LIMITS, &table(4..6))
            .replace(LIMITS, &LIMITS.replace(LIMITS.split_once("[limits]\n").expect("a table").1, &table(0..4)));
    }
    load(&files).unwrap_or_else(|problems| panic!("{files:#?}\n{problems:#?}"))
}

/// What requests used up, one after the other. Their answers never end.
#[derive(Default)]
struct Till {
    state: State,
    holds: Vec<Hold>,
}

impl Till {
    fn decide(&mut self, policy: &Policy, request: &Request, key: &EpochKey) -> Outcome {
        let now = Timestamp::from_unix_seconds(request.now);
        decide_paying(policy, request, key, &mut |partner, charges, shadow| {
            let state = self.state.partner(&policy.partner(partner).name);
            let (receipt, hold) = state.charge(charges.into_iter(), shadow, 1_000, now, &mut Ledger::default());
            self.holds.push(hold);
            receipt
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As if it were not there: all that is refused, now and later, is refused by others.
    #[test]
    fn a_limit_in_shadow_changes_no_verdict((world, requests) in throws(), limits in limits()) {
        let (world, _, mut requests) = draw(&world, &requests);
        // After a step back of the clock even the largest bucket is taken for empty.
        requests.sort_by_key(|request| request.now);
        let key = EpochKey::ephemeral();
        let (shadow, boundless) = (limited(&world, &limits, Manner::Shadow), limited(&world, &limits, Manner::Boundless));
        let (mut till, mut other) = (Till::default(), Till::default());
        for request in &requests {
            let outcome = till.decide(&shadow.policy, request, &key);
            let expected = other.decide(&boundless.policy, request, &key);
            assert_eq!(outcome.denied, expected.denied, "{world:#?}\n{request:#?}");
            for ((_, reason), (_, shadow)) in LIMITED.iter().zip(limits) {
                assert!(!(shadow && outcome.denied == Some(*reason)), "{reason}");
                assert!(shadow || !outcome.trail.shadow().contains(*reason), "{reason}");
            }
        }
    }

    /// After whatever came before: what shadow says of a request is what becomes of it without.
    #[test]
    fn what_leaves_the_shadow_refuses_what_was_said((world, requests) in throws(), limits in limits()) {
        let (world, _, mut requests) = draw(&world, &requests);
        requests.truncate(12);
        let key = EpochKey::ephemeral();
        let without = {
            let mut world = world.clone();
            world.callers.iter_mut().for_each(|caller| caller.networks.retain(|network| !network.shadow));
            world
        };
        let (shadow, enforced) = (limited(&world, &limits, Manner::Shadow), limited(&without, &limits, Manner::Enforced));
        for (at, request) in requests.iter().enumerate() {
            let (mut till, mut other) = (Till::default(), Till::default());
            for earlier in &requests[..at] {
                till.decide(&shadow.policy, earlier, &key);
                other.decide(&shadow.policy, earlier, &key);
            }
            let said = till.decide(&shadow.policy, request, &key);
            let done = other.decide(&enforced.policy, request, &key);
            let expected = said.denied.is_some() || !said.trail.shadow().is_empty();
            assert_eq!(done.denied.is_some(), expected, "{:?} {:?} {:?}\n{world:#?}\n{request:#?}", said.denied, said.trail, done.denied);
        }
    }

    #[test]
    fn a_network_in_shadow_changes_no_verdict((world, requests) in throws()) {
        let (world, config, requests) = draw(&world, &requests);
        let key = EpochKey::ephemeral();
        let mut plain = world.clone();
        plain.callers.iter_mut().flat_map(|caller| &mut caller.networks).for_each(|network| network.shadow = false);
        let plain = plain.load().expect("a world without shadow");
        for request in &requests {
            let (outcome, expected) = (decide(&config.policy, request, &key), decide(&plain.policy, request, &key));
            assert_eq!(outcome.denied, expected.denied, "{world:#?}\n{request:#?}");
            assert!(expected.trail.shadow().is_empty());
        }
    }
}

/// Properties of what is in shadow are empty unless each limit would refuse something in it, and not refuse everything.
#[test]
fn the_draws_reach_every_shadow() {
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let key = EpochKey::ephemeral();
    for _ in 0..64 {
        let (world, requests) = throws().new_tree(&mut runner).expect("bytes").current();
        let (world, _, requests) = draw(&world, &requests);
        let config = limited(&world, &[(2, true); 6], Manner::Shadow);
        let mut till = Till::default();
        for request in &requests {
            let outcome = till.decide(&config.policy, request, &key);
            let shadow = outcome.trail.shadow();
            let clear = (outcome.denied.is_none() && shadow.is_empty()).then_some("clear");
            for name in shadow.reasons().map(Reason::code).chain(clear) {
                *counts.entry(name).or_default() += 1;
            }
        }
    }
    let wanted = LIMITED.iter().map(|(_, reason)| reason.code()).chain(["network-not-allowed", "clear"]);
    for name in wanted {
        assert!(counts.get(name).is_some_and(|count| *count > 20), "{name} is hardly ever drawn: {counts:?}");
    }
}

/// Properties of requests that never get far are empty: the draws have to reach every rule, and what is allowed.
#[test]
fn the_draws_reach_every_rule() {
    let mut runner = TestRunner::deterministic();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut total, mut lookups) = (0, 0);
    let key = EpochKey::ephemeral();
    for _ in 0..256 {
        let (world, requests) = throws().new_tree(&mut runner).expect("bytes").current();
        let (_, config, requests) = draw(&world, &requests);
        for request in &requests {
            let outcome = decide(&config.policy, request, &key);
            *counts.entry(outcome.denied.map_or("allow", Reason::code)).or_default() += 1;
            total += 1;
            lookups += usize::from(outcome.denied.is_none() && outcome.lookup.is_some());
        }
    }
    use Reason::*;
    #[rustfmt::skip]
    let wanted = [
        BadPath, HostMismatch, MethodRefused, IdentityUnknown, IdentityAmbiguous, CertificateExpired,
        PartnerNotValid, OutsideHours, NetworkNotAllowed, NetworkExpired, NoRoute, NoGrant, BodyNotJson, BodyNotExpected,
        MemberUndeclared, MemberDuplicate, MemberMissing, ParameterUndeclared, ParameterDuplicate, ParameterMissing,
        IdentifierMissing, IdentifierFormat, IdentifierPrefix, IdentifierCheckDigit, IdentifierMasked,
        PurposeMissing, PurposeNotGranted, ActorMissing, ActorInvalid,
    ];
    for reason in wanted {
        assert!(counts.contains_key(reason.code()), "{reason} is never drawn: {counts:?}");
    }
    assert!(counts["allow"] * 8 > total && lookups * 16 > total, "{lookups} of {total}: {counts:?}");
}

// === Who the backend is asked for ===

/// Each lookup route has its identifier in another place.
const LOOKUPS: &str = r#"
[[route]]
name = "nested"
backend = "registry"
methods = ["POST"]
path = "/v1/nested"
[route.lookup]
kind = "mobile"
subject = "body:/who/mobile"
purpose = "body:/purpose"
members = [
  { pointer = "/who/mobile", type = "string", length_max = 40 },
  { pointer = "/who/age", type = "integer", min = 0, max = 150, optional = true },
  { pointer = "/purpose", type = "string", length_max = 16 },
  { pointer = "/mobile", type = "string", length_max = 40, optional = true },
]
[[route]]
name = "query"
backend = "registry"
methods = ["POST"]
path = "/v1/query"
[route.lookup]
kind = "mobile"
subject = "query:mobile"
query_ok = true
parameters = [
  { name = "page", type = "integer", min = 0, max = 9, optional = true },
  { name = "mobile", type = "string", length_max = 40 },
]
[[route]]
name = "path"
backend = "registry"
methods = ["POST"]
path = "/v1/people/{mobile}/doses/2"
[route.lookup]
kind = "mobile"
subject = "path:mobile"
"#;

fn lookups() -> Config {
    let way = Way { path: "/".to_owned(), methods: vec!["GET"], hosts: vec![], lookup: None };
    let world = World { hosts: HOSTS.to_vec(), ways: vec![way], callers: vec![plain_caller()] };
    let mut files = world.files();
    files.get_mut("gateway.toml").expect("it is written").push_str(LOOKUPS);
    let partner = files.get_mut("partners/p0.toml").expect("it is written");
    for route in ["nested", "query", "path"] {
        let _ = writeln!(partner, "[[grant]]\nroute = {route:?}\npurposes = [\"care\"]");
    }
    load(&files).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// Known by one name, from one network, at any time.
fn plain_caller() -> Caller {
    let uri = "spiffe://t.test/plain".to_owned();
    Caller {
        identities: vec![Proof::Uri { issuer: "one".into(), uri }],
        networks: vec![Network { cidr: "10.0.0.0/24".parse().expect("a network"), expires: None, shadow: false }],
        from: None,
        until: None,
        hours: None,
        actor_required: false,
        grants: Vec::new(),
    }
}

/// A permitted lookup: the token it is charged under, and what the backend gets.
struct Permitted {
    charged: Person,
    lookup: Lookup,
}

fn permitted(policy: &Policy, target: &str, body: &str, key: &EpochKey) -> Option<Permitted> {
    let target = Target::parse(target, 4_096).ok()?;
    let credential = show(&plain_caller().identities[0], MONDAY);
    let sender = Sender {
        now: Timestamp::from_unix_seconds(MONDAY),
        source: [10, 0, 0, 9].into(),
        credential: &credential,
        standing: Standing::Open,
    };
    let head = Head { sender, host: "a.test", method: "POST", path: &target.path };
    let admission = policy.plan_head(&head).settle(Receipt::Paid).ok()?;
    let (route, captures) = (admission.route()?, admission.captures().to_vec());
    let RouteKind::Lookup(declared) = &route.kind else { return None };
    let header = |_: &str| HeaderValue::Absent;
    let (path, query) = (&target.path, target.query);
    let asked = Asked { path, captures: &captures, query, header: &header, body: body.as_bytes() };
    let lookup = lookup::read(declared, route, &asked, key, None).ok()?;
    let plan = admission.plan_lookup(Ok(lookup.facts()));
    let charges: Vec<_> = plan.charges().collect();
    let permit = plan.settle(Receipt::Paid).ok()?;
    assert_eq!((permit.purpose(), &*permit.route().name), (Some("care"), &*route.name));
    let [Charge::SubjectRate(charged, _), ref budgets @ ..] = charges[..] else { panic!("{charges:?}") };
    assert!(!budgets.is_empty());
    assert!(budgets.iter().all(|charge| matches!(charge, Charge::Budget(_, person, _) if *person == charged)));
    Some(Permitted { charged, lookup })
}

/// Whether `text` is the canonical name of the very person that the lookup is charged for.
fn is_charged(permitted: &Permitted, text: &str, key: &EpochKey) -> bool {
    let subject = Subject::parse(Kind::Mobile, text).expect("the backend gets an identifier");
    subject.expose() == text
        && key.token(&subject) == permitted.lookup.token
        && Person::from(key.token(&subject).key()) == permitted.charged
        && subject == permitted.lookup.subject
}

/// Spellings of mobile numbers, most of them of one person, some of none.
fn number() -> impl Strategy<Value = String> {
    proptest::sample::select(
        &[
            "6412345678",
            "+91 64123-45678",
            "\\u0036412345678",
            "06412345678",
            "6712345678",
            " 64123 45678 ",
            "641234567",
            "6412345678\\u0000",
        ][..],
    )
    .prop_map(str::to_owned)
}

/// JSON objects that a careless reader and a careful one could read differently.
fn object() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        6 => number().prop_map(|number| format!("\"{number}\"")),
        3 => proptest::sample::select(&["\"care\"", "\"c\\u0061re\"", "7", "null", "[\"6712345678\"]", "1e1"][..]).prop_map(str::to_owned),
    ];
    let who = vec(
        (proptest::sample::select(&["mobile", "age", "m\\u006fbile", "Mobile", "mobile "][..]), value.clone()),
        0..3,
    )
    .prop_map(|members| braced(members.iter().map(|(name, value)| (*name, value.as_str()))));
    let good = Just(r#"{"mobile":"+91 64123 45678"}"#.to_owned());
    let who = prop_oneof![3 => good, 2 => number().prop_map(|number| format!("{{\"mobile\":\"{number}\",\"age\":7}}")), 2 => who];
    let other =
        (proptest::sample::select(&["mobile", "purpose", "who", "\\u0077ho", "aadhaar", "who/mobile"][..]), value);
    (who, vec(other, 0..2), 0..4usize, proptest::sample::select(&["", "", "", " ", "x", "{}"][..])).prop_map(
        |(who, others, first, end)| {
            let mut members = vec![("who", who.as_str()), ("purpose", "\"care\"")];
            for (name, value) in &others {
                members.insert(first.min(members.len()), (name, value));
            }
            braced(members.into_iter()) + end
        },
    )
}

fn braced<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let members: Vec<_> = members.map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", members.join(","))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn the_person_in_the_body_is_the_one_charged(bodies in vec(object(), 400)) {
        let (config, key) = (lookups(), EpochKey::ephemeral());
        let mut permits = 0;
        for body in &bodies {
            let Some(permitted) = permitted(&config.policy, "/v1/nested", body, &key) else { continue };
            permits += 1;
            let sent: serde_json::Value = serde_json::from_slice(permitted.lookup.body.as_ref().expect("a body")).expect("JSON");
            let who = sent["who"]["mobile"].as_str().expect("a declared member");
            assert!(is_charged(&permitted, who, &key), "{}", body);
            assert_eq!(&permitted.lookup.target, "/v1/nested");
            let names = |value: &serde_json::Value| value.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
            assert!(names(&sent).iter().all(|name| ["who", "purpose", "mobile"].contains(&name.as_str())), "{}", sent);
            assert!(names(&sent["who"]).iter().all(|name| ["mobile", "age"].contains(&name.as_str())), "{}", sent);
            // But for the canonical number, the backend reads what any reader reads in the body that was sent.
            let mut received: serde_json::Value = serde_json::from_str(body).expect("JSON");
            received["who"]["mobile"] = who.into();
            assert_eq!(received, sent);
        }
        assert!(permits * 20 > bodies.len(), "{} permits", permits);
    }

    #[test]
    fn the_person_in_the_target_is_the_one_charged(numbers in vec((number(), 0..6usize, any::<bool>()), 400)) {
        let (config, key) = (lookups(), EpochKey::ephemeral());
        let mut permits = 0;
        for (number, form, encoded) in &numbers {
            let number: String = match encoded {
                true => number.bytes().map(|byte| format!("%{byte:02x}")).collect(),
                false => number.replace(' ', "%20"),
            };
            let target = match form {
                0 => format!("/v1/query?mobile={number}"),
                1 => format!("/v1/query?page=1&mob%69le={number}"),
                2 => format!("/v1/query?mobile={number}&mobile=6712345678"),
                3 => format!("/v1/query?mobile={number}&m%6fbile=6712345678"),
                4 => format!("/v1/people/{number}/doses/2"),
                _ => format!("/v1/people/{number}/doses/6712345678"),
            };
            let Some(permitted) = permitted(&config.policy, &target, "", &key) else { continue };
            permits += 1;
            assert_eq!(&permitted.lookup.body, &None);
            let (path, query) = permitted.lookup.target.split_once('?').unwrap_or((&permitted.lookup.target, ""));
            assert!(CanonicalPath::parse(path).is_some_and(|canonical| canonical.as_str() == path));
            let who = match form {
                0 | 1 => query.strip_prefix("page=1&").unwrap_or(query).strip_prefix("mobile="),
                // A second identifier, wherever: never permitted.
                2 | 3 | 5.. => None,
                4 => path.strip_prefix("/v1/people/").and_then(|rest| rest.split_once("/doses/")).map(|(who, _)| who),
            };
            assert!(who.is_some_and(|who| is_charged(&permitted, who, &key)), "{}", target);
        }
        assert!(permits * 8 > numbers.len(), "{} permits", permits);
    }
}
