//! Does the shipped configuration hold, and is a mistake in it told with its place, its key and a way out?

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use dwarpal::clock::Timestamp;
use dwarpal::config::problem::{Problem, Severity};
use dwarpal::config::settings::Overrides;
use dwarpal::config::{self, Config, hygiene};
use dwarpal::explain::explain;

use Line::{Changed, Of};

/// A time at which nothing in the shipped configuration has expired or is about to.
const NOW: &str = "2026-03-02T09:00:00Z";

/// A copy of the shipped configuration that a test may spoil.
struct Copy {
    folder: TempDir,
}

impl Copy {
    fn new() -> Copy {
        let copy = Copy { folder: tempfile::tempdir().expect("a temporary directory") };
        copy_directory(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config"), &copy.directory());
        copy
    }

    fn directory(&self) -> std::path::PathBuf {
        self.folder.path().join("config")
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.directory().join(file)).expect(file)
    }

    /// Replaces the first occurrence of a text, or adds to the end where there is no text to replace.
    fn change(&self, file: &str, from: &str, to: &str) {
        let text = self.text(file);
        assert!(text.contains(from), "{file} has no {from:?}");
        let changed = if from.is_empty() { text + to } else { text.replacen(from, to, 1) };
        fs::write(self.directory().join(file), changed).expect(file);
    }

    fn load(&self) -> Result<Config, Vec<Problem>> {
        config::load(&self.directory(), &Overrides::default())
    }

    /// The problems as lines, without the directory before the file's name.
    fn problems(&self) -> Vec<String> {
        let prefix = format!("{}/", self.directory().display());
        let problems = self.load().err().unwrap_or_default();
        assert!(problems.iter().all(|problem| problem.severity == Severity::Error));
        problems.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a directory");
    for entry in fs::read_dir(from).expect("the shipped configuration") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy_directory(&path, &to) } else { _ = fs::copy(&path, to).expect("a copy") }
    }
}

fn at(time: &str) -> Timestamp {
    Timestamp::parse(time).expect(time)
}

#[test]
fn the_shipped_configuration_is_right_about_all_its_cases() {
    let config = Copy::new().load().unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert!(config.cases.len() >= 9);
    for case in &config.cases {
        let explained = explain(&config.policy, &config.settings, &case.question, at(NOW)).expect(&case.name);
        let lines = explained.trail.lines(&config.policy);
        assert!(explained.is(case.expect), "{} ({}): {:?}, {lines:#?}", case.name, case.place, explained.denied);
    }
}

#[test]
fn the_shipped_configuration_warns_of_nothing_until_its_networks_expire() {
    let copy = Copy::new();
    let config = copy.load().expect("it loads");
    let warnings = |now: &str| -> Vec<String> {
        let found = hygiene::warnings(&config, at(now));
        assert!(found.iter().all(|problem| problem.severity == Severity::Warning));
        let prefix = format!("{}/", copy.directory().display());
        found.iter().map(|problem| problem.to_string().replace(&prefix, "")).collect()
    };
    assert_eq!(warnings(NOW), [""; 0]);
    let soon = warnings("2098-03-15T00:00:00Z");
    assert_eq!(soon.len(), 6, "{soon:#?}");
    for start in [
        "partners/icmr.toml:18: cidr = \"10.20.0.0/24\": expires at 2098-04-01T00:00:00Z; owner icmr-netops, ticket NET-1042",
        "partners/icmr.networks:2: cidr = \"10.20.16.0/24\": expires at 2098-04-01T00:00:00Z; owner icmr-netops, ticket NET-1077",
        "partners/icmr.networks:4: cidr = \"2001:db8:20::/56\": expires at",
        "partners/state-health.toml:10: cidr = \"10.30.0.0/24\": expires at",
        "partners/travel-desk.toml:16: cidr = \"10.40.0.0/28\": expires at",
    ] {
        assert!(soon.iter().any(|warning| warning.starts_with(start)), "{start}\n{soon:#?}");
    }
    assert!(warnings("2098-04-01T00:00:00Z").iter().any(|warning| warning.contains("expired at 2098-04-01")));
}

/// A text in a file of the shipped configuration, what it is replaced by, and how the one problem is told that this
/// makes: its line, its key with the value, and some of its words.
type Mistake = (&'static str, &'static str, &'static str, Line, &'static str, &'static [&'static str]);

enum Line {
    /// Where the text was replaced.
    Changed,
    /// The first line of a file that has this text.
    Of(&'static str, &'static str),
}

const GATEWAY: &str = "gateway.toml";
const ICMR: &str = "partners/icmr.toml";
const NETWORKS: &str = "partners/icmr.networks";
const STATE: &str = "partners/state-health.toml";
const CASES: &str = "cases/lookups.toml";

#[rustfmt::skip]
const MISTAKES: &[Mistake] = &[
    // Unknown keys, wrong types, what is missing.
    (GATEWAY, "# connect_timeout = \"1s\"", "connect_timout = \"1s\"", Changed, "backend[0].connect_timout", &["unknown key", "did you mean connect_timeout?"]),
    (GATEWAY, "# workers = 0", "threads = 0", Changed, "listen.threads", &["unknown key", "known here: address, "]),
    (ICMR, "actor = \"required\"", "aktor = \"required\"", Changed, "aktor", &["unknown key", "did you mean actor?"]),
    (CASES, "expect = \"allow\"", "expect = \"allow\"\nreasons = \"no-grant\"", Of(CASES, "reasons ="), "case[0].reasons", &["unknown key", "did you mean reason?"]),
    (ICMR, "in_flight_max = 64", "in_flight_max = \"64\"", Changed, "limits.in_flight_max = \"64\"", &["a whole number from 1"]),
    (ICMR, "expires = 2098-12-31", "expires = 2098", Changed, "network[1].expires = \"2098\"", &["a date such as"]),
    (ICMR, "purposes = [\"public-health\"]", "purposes = \"public-health\"", Changed, "grant[1].purposes = \"public-health\"", &["a list"]),
    (GATEWAY, "miss = [404]", "miss = [\"404\"]", Changed, "route[0].lookup.miss", &["a whole number from 400 to 499"]),
    (GATEWAY, "[metrics]", "[[metrics]]", Changed, "metrics", &["not a table", "write it as [metrics]"]),
    (ICMR, "[[network_file]]", "[network_file]", Changed, "network_file", &["not an array of tables", "write each as [[network_file]]"]),
    (GATEWAY, "# answer_bytes_max = \"16MiB\"", "parameters = 1", Changed, "route[5].pass.parameters = \"1\"", &["not an array of tables", "write each as [[route.pass.parameters]]"]),
    (ICMR, "subject = \"6/h burst 3\"", "", Of(ICMR, "[limits]"), "limits.subject", &["missing", "required"]),
    (ICMR, "name = \"icmr\"", "", Of(ICMR, ""), "name", &["missing", "required"]),
    (ICMR, "version = 1", "", Of(ICMR, ""), "version", &["missing", "required"]),
    (ICMR, "version = 1", "version = 2", Changed, "version = \"2\"", &["a whole number from 1 to 1"]),
    (GATEWAY, "key = \"../certs/dev/gateway.key\"", "", Of(GATEWAY, "[tls]"), "tls.key", &["missing", "required"]),
    (GATEWAY, "[data]\ndirectory = \"../data\"", "", Of(GATEWAY, ""), "data", &["missing", "add a table [data]"]),
    (ICMR, "ticket = \"NET-1042\"", "", Of(ICMR, "[[network]]"), "network[0].ticket", &["missing", "required"]),
    (CASES, "source = \"10.20.0.5\"", "", Of(CASES, "[[case]]"), "case[0].source", &["missing", "required"]),
    // Values.
    (ICMR, "\"50/s burst 100\"", "\"50 a second\"", Changed, "limits.requests = \"50 a second\"", &["a rate such as \"50/s\""]),
    (ICMR, "\"50/s burst 100\"", "\"0/s\"", Changed, "limits.requests = \"0/s\"", &["a rate such as \"50/s\""]),
    (ICMR, "\"50/s burst 100\"", "\"+50/s\"", Changed, "limits.requests = \"+50/s\"", &["a rate such as \"50/s\""]),
    (ICMR, "\"20/s burst 40\"", "\"20/fortnight\"", Changed, "grant[0].requests = \"20/fortnight\"", &["periods are s, min, h and d"]),
    (GATEWAY, "# handshake_timeout = \"5s\"", "handshake_timeout = \"5 parsecs\"", Changed, "tls.handshake_timeout = \"5 parsecs\"", &["a duration such as"]),
    (GATEWAY, "# handshake_timeout = \"5s\"", "handshake_timeout = \"2h\"", Changed, "tls.handshake_timeout = \"2h\"", &["between 1s and 60s"]),
    (GATEWAY, "# min_version = \"1.3\"", "min_version = \"1.1\"", Changed, "tls.min_version = \"1.1\"", &["\"1.3\" or \"1.2\""]),
    (GATEWAY, "\"127.0.0.1:8443\"", "\"localhost:8443\"", Changed, "listen.address = \"localhost:8443\"", &["an address and port"]),
    (GATEWAY, "\"localhost\"", "\"localhost:8443\"", Changed, "listen.hosts", &["without port"]),
    (GATEWAY, "hosts = [\"localhost\", \"127.0.0.1\", \"gateway.dwarpal.test\"]", "hosts = []", Changed, "listen.hosts", &["nobody could reach", "name the hosts"]),
    (GATEWAY, "\"127.0.0.0/8\"", "\"127.0.0.1/8\"", Changed, "metrics.networks", &["host bits"]),
    (GATEWAY, "methods = [\"GET\", \"HEAD\"]", "methods = []", Changed, "route[3].methods", &["no method", "name its methods"]),
    (GATEWAY, "methods = [\"GET\", \"HEAD\"]", "methods = [\"GET\", \"TRACE\"]", Changed, "route[3].methods", &["CONNECT and TRACE are never let through"]),
    (GATEWAY, "# level = \"info\"", "[log]\nlevel = \"loud\"", Of(GATEWAY, "\"loud\""), "log.level = \"loud\"", &["\"warn\""]),
    (GATEWAY, "type = \"string\", length_max = 64,", "type = \"text\", length_max = 64,", Changed, "route[0].lookup.members[2].type = \"text\"", &["\"string\", \"integer\" or \"boolean\""]),
    (GATEWAY, "# answer_bytes_max = \"16MiB\"", "parameters = [{ name = \"since\", type = \"boolean\" }, { name = \"since\", type = \"boolean\" }]", Changed, "route[5].pass.parameters[1].name = \"since\"", &["declared twice"]),
    (GATEWAY, "\"/case\"", "\"/mobile\"", Changed, "route[0].lookup.members[2].pointer = \"/mobile\"", &["declared twice", "once"]),
    (GATEWAY, "/v1/certificates/{reference}", "/v1/../{reference}", Changed, "route[3].path = \"/v1/../{reference}\"", &["canonical form"]),
    (ICMR, "10.20.0.0/24", "10.20.0.1/24", Changed, "network[0].cidr = \"10.20.0.1/24\"", &["host bits", "write 10.20.0.0/24"]),
    (ICMR, "10.20.0.0/24", "10.20.0.0/20", Changed, "network[0].cidr = \"10.20.0.0/20\"", &["wider than /24", "wide = true"]),
    (ICMR, "10.20.0.0/24\"", "10.20.0.0/20\"\nwide = false", Changed, "network[0].cidr = \"10.20.0.0/20\"", &["wider than /24", "wide = true"]),
    (ICMR, "10.20.0.0/24", "10.20.0", Changed, "network[0].cidr = \"10.20.0\"", &["write it as 192.0.2.0/24"]),
    (ICMR, "actor = \"required\"", "actor = \"sometimes\"", Changed, "actor = \"sometimes\"", &["\"required\" or \"optional\""]),
    (ICMR, "name = \"icmr\"", "name = \"ICMR\"", Changed, "name = \"ICMR\"", &["lower-case letters"]),
    (ICMR, "name = \"icmr\"", "name = \"other\"", Changed, "name = \"other\"", &["not other, none or unknown"]),
    (ICMR, "", "[hours]\ndays = [\"mo\"]\nfrom = \"08:00\"\nto = \"20:00\"\nutc_offset = \"+05:30\"\n", Of(ICMR, "days = [\"mo\"]"), "hours.days", &["days are mon, tue"]),
    (ICMR, "", "[hours]\ndays = [\"mon\"]\nfrom = \"20:00\"\nto = \"08:00\"\nutc_offset = \"+05:30\"\n", Of(ICMR, "to = \"08:00\""), "hours.to = \"08:00\"", &["not after from"]),
    (ICMR, "", "[hours]\ndays = [\"mon\"]\nfrom = \"+8:00\"\nto = \"20:00\"\nutc_offset = \"+05:30\"\n", Of(ICMR, "\"+8:00\""), "hours.from = \"+8:00\"", &["a time such as"]),
    (ICMR, "spiffe://partners.dwarpal.test/icmr", "icmr", Changed, "identity[0].uri = \"icmr\"", &["a URI such as"]),
    (ICMR, "issuer = \"partners\"", "issuer = \"partners\"\ndns = \"icmr.example\"", Of(ICMR, "uri = "), "identity[0].uri", &["exactly one of", "one [[identity]] for each"]),
    (GATEWAY, "crls = [\"../certs/dev/crl.pem\"]", "", Of(GATEWAY, "[[issuer]]"), "issuer[0].crls", &["no revocation list", "revocation = \"off\""]),
    (GATEWAY, "crls = [\"../certs/dev/crl.pem\"]", "crls = []", Changed, "issuer[0].crls", &["no revocation list", "revocation = \"off\""]),
    (GATEWAY, "# revocation = \"chain\"", "revocation = \"off\"", Changed, "issuer[0].revocation = \"off\"", &["yet crls are listed", "remove one"]),
    (CASES, "expect = \"allow\"", "expect = \"perhaps\"", Changed, "case[0].expect = \"perhaps\"", &["\"allow\" or \"deny\""]),
    (CASES, "expect = \"allow\"", "expect = \"allow\"\nreason = \"no-grant\"", Of(CASES, "reason = \"no-grant\""), "case[0].reason = \"no-grant\"", &["allowed request has no reason"]),
    (CASES, "reason = \"no-grant\"", "reason = \"no-grnat\"", Changed, "case[5].reason = \"no-grnat\"", &["no such reason"]),
    (ICMR, "# shadow = [\"subject\"] ", "shadow = [\"person\"] ", Changed, "limits.shadow", &["limits of this table, which are: requests, source, subject, containment, in_flight_max, connections_max"]),
    (ICMR, "# shadow = [\"subject\"] ", "shadow = \"subject\" ", Changed, "limits.shadow = \"subject\"", &["a list"]),
    (ICMR, "# shadow = [\"requests\", \"in_flight_max\"]", "shadow = [\"subject\"]", Changed, "grant[0].shadow", &["limits of this table, which are: requests, in_flight_max"]),
    (ICMR, "route = \"lookup-by-aadhaar\"", "route = \"lookup-by-aadhaar\"\nshadow = [\"requests\"]", Of(ICMR, "shadow = [\"requests\"]\n"), "grant[1].shadow", &["there is no requests here", "add requests"]),
    (ICMR, "# shadow = true ", "shadow = \"true\" ", Changed, "network[0].shadow = \"true\"", &["true or false, without quotes"]),
    (NETWORKS, "10.20.17.64/26    # ", "10.20.17.64/26    # shadow=1 ", Changed, "shadow = \"1\"", &["neither true nor false", "write shadow=true"]),
    (GATEWAY, "# rotate = \"0d\"", "[epochs]\nrotate = \"30d\"", Of(GATEWAY, "rotate = \"30d\""), "epochs.rotate = \"30d\"", &["before the overlap with the last is over", "at least 31d"]),
    (GATEWAY, "# overlap = \"31d\"", "[epochs]\noverlap = \"45min\"", Of("partners/travel-desk.toml", "[limits]"), "limits.subject = \"3/h burst 3\"", &["takes 3600s", "longer than epochs.overlap (2700s)", "at least 3600s"]),
    (ICMR, "subject = \"6/h burst 3\"", "subject = \"1/d burst 40\"", Of(ICMR, "[limits]"), "limits.subject = \"1/d burst 40\"", &["takes 40d", "longer than epochs.overlap (31d)", "at least 40d"]),
    (GATEWAY, "# credentials = false", "[epochs]\nrotate = \"90d\"\ncredentials = true", Of(GATEWAY, "rotate = \"90d\""), "epochs.rotate = \"90d\"", &["epochs.credentials is set", "remove one"]),
    (GATEWAY, "# chrony = \"127.0.0.1:323\"", "[clock]\nchrony = \"localhost\"", Of(GATEWAY, "chrony = \"localhost\""), "clock.chrony = \"localhost\"", &["an address and port", "or \"off\""]),
    (GATEWAY, "#   checkpoint_urls = [\"https://10.0.0.9/checkpoints\"]", "[audit]\ncheckpoint_urls = [\"http://10.0.0.9/checkpoints\"]", Of(GATEWAY, "checkpoint_urls = [\"http:"), "audit.checkpoint_urls", &["https://HOST", "only to a loopback address"]),
    (GATEWAY, "#   checkpoint_urls = [\"https://10.0.0.9/checkpoints\"]", "[audit]\ncheckpoint_urls = [\"https://10.0.0.9/checkpoints\"]", Of(GATEWAY, "checkpoint_urls = [\"https:"), "audit.checkpoint_urls", &["https without a CA", "in checkpoint_ca"]),
    (GATEWAY, "#   [[audit.witness]] ", "[[audit.witness]]\nname = \"w\"\nvkey = \"witness\"\nurl = \"http://127.0.0.1/\"\n#", Of(GATEWAY, "vkey = \"witness\""), "audit.witness[0].vkey = \"witness\"", &["NAME+ID+BASE64"]),
    (GATEWAY, "# actors = \"clear\"", "[alerts]\nactors = \"both\"", Of(GATEWAY, "actors = \"both\""), "alerts.actors = \"both\"", &["\"clear\" or \"token\""]),
    (GATEWAY, "#   [[alerts.webhook]] ", "[[alerts.webhook]]\nname = \"w\"\nurl = \"http://127.0.0.1/\"\n#", Of(GATEWAY, "[[alerts.webhook]]"), "alerts.webhook[0].secret", &["missing"]),
    (GATEWAY, "#   [[alerts.alertmanager]] ", "[[alerts.alertmanager]]\nname = \"a\"\nurl = \"http://10.0.0.9:9093\"\n#", Of(GATEWAY, "url = \"http://10.0.0.9:9093\""), "alerts.alertmanager[0].url", &["https://HOST", "only to a loopback address"]),
    (GATEWAY, "#   [[alerts.alertmanager]] ", "[[alerts.alertmanager]]\nname = \"a\"\nurl = \"http://127.0.0.1/\"\n[[alerts.alertmanager]]\nname = \"a\"\nurl = \"http://127.0.0.2/\"\n#", Of(GATEWAY, "[[alerts.alertmanager]]"), "alerts.alertmanager", &["two receivers are called a", "its own name"]),
    // Names: unknown, taken, or for the same thing.
    (ICMR, "issuer = \"partners\"", "issuer = \"partner\"", Changed, "identity[0].issuer = \"partner\"", &["no such [[issuer]]; there are: partners"]),
    (ICMR, "route = \"lookup-by-aadhaar\"", "route = \"lookup-by-adhaar\"", Changed, "grant[1].route = \"lookup-by-adhaar\"", &["no such [[route]]; there are: lookup-by-mobile, "]),
    (GATEWAY, "backend = \"stock\"", "backend = \"stocks\"", Changed, "route[4].backend = \"stocks\"", &["no such [[backend]]; there are: registry, stock"]),
    (ICMR, "route = \"lookup-by-aadhaar\"", "route = \"lookup-by-mobile\"", Of(ICMR, "[[grant]]"), "grant", &["two grants for route lookup-by-mobile", "merge"]),
    (STATE, "partners.dwarpal.test/state-health", "partners.dwarpal.test/icmr", Of(STATE, "[[identity]]"), "identity = \"spiffe://partners.dwarpal.test/icmr under issuer partners\"", &["claimed twice", "one partner, once"]),
    (ICMR, "[[network]]", "[[identity]]\nuri = \"spiffe://partners.dwarpal.test/icmr\"\nissuer = \"partners\"\n[[network]]", Changed, "identity = \"spiffe:", &["claimed twice", "one partner, once"]),
    (STATE, "name = \"state-health\"", "name = \"icmr\"", Of(STATE, ""), "name = \"icmr\"", &["partners/icmr.toml has the same name", "a partner is one file"]),
    (GATEWAY, "", "\n[[route]]\nname = \"certificate\"\nbackend = \"registry\"\nmethods = [\"GET\"]\npath = \"/v1/x\"\n", Changed, "route.name = \"certificate\"", &["gateway.toml:", " has the same name", "its own name"]),
    (GATEWAY, "[[route]]", "[[backend]]\nname = \"stock\"\naddress = \"127.0.0.1:1\"\nhost = \"x\"\n[[route]]", Of(GATEWAY, "[[backend]]"), "backend", &["two backends are called stock", "its own name"]),
    (GATEWAY, "/v1/certificates/{reference}", "/v1/beneficiaries/{reference}", Of(GATEWAY, "[[route]]\nname = \"certificate\""), "route.path", &["the same requests as beneficiary-by-reference (gateway.toml:", "differ"]),
    // Lookups.
    (GATEWAY, "kind = \"mobile\"", "kind = \"phone\"", Changed, "route[0].lookup.kind = \"phone\"", &["the kinds are: mobile, aadhaar, "]),
    (GATEWAY, "subject = \"body:/mobile\"", "subject = \"body:/phone\"", Changed, "route[0].lookup.subject = \"body:/phone\"", &["not declared in members"]),
    (GATEWAY, "\"/mobile\", type = \"string\", length_max = 24", "\"/mobile\", type = \"integer\", min = 0, max = 9", Of(GATEWAY, "subject = \"body:/mobile\""), "route[0].lookup.subject = \"body:/mobile\"", &["has to be \"string\""]),
    (GATEWAY, "subject = \"path:reference\"", "subject = \"path:id\"", Changed, "route[2].lookup.subject = \"path:id\"", &["no such {name}"]),
    (GATEWAY, "subject = \"path:reference\"", "subject = \"query:id\"\nparameters = [{ name = \"id\", type = \"string\", length_max = 20 }]", Changed, "route[2].lookup.subject = \"query:id\"", &["every log along the way", "query_ok = true"]),
    (GATEWAY, "actor = \"header:x-actor\"", "actor = \"cookie:actor\"", Changed, "route[0].lookup.actor = \"cookie:actor\"", &["header:NAME"]),
    (GATEWAY, "actor = \"header:x-actor\" ", "# ", Of(ICMR, "[[grant]]"), "grant", &["lookup-by-mobile has no place for the actor", "declare actor"]),
    (GATEWAY, "purpose = \"body:/purpose\"", "", Of(ICMR, "purposes = "), "grant[0].purposes", &["no place to name one", "declare purpose"]),
    (GATEWAY, "answer_bytes_max = \"4MiB\"", "[route.pass]", Changed, "route[3].pass", &["either a lookup or passed through", "remove [route.pass]"]),
    (ICMR, "purposes = [\"care\", \"public-health\"]", "", Of(ICMR, "[[grant]]"), "grant[0].purposes", &["names its purposes", "add purposes"]),
    (ICMR, "purposes = [\"care\", \"public-health\"]", "purposes = []", Changed, "grant[0].purposes", &["names its purposes", "add purposes"]),
    (STATE, "route = \"stock-read\"", "purposes = [\"care\"]\nroute = \"stock-read\"", Changed, "grant[2].purposes", &["passed through has no purposes", "remove"]),
    // Files of networks.
    (NETWORKS, "10.20.17.64/26 ", "10.20.17.65/26 ", Changed, "cidr = \"10.20.17.65/26\"", &["host bits", "write 10.20.17.64/26"]),
    (NETWORKS, "ticket=NET-1102 ", "", Changed, "ticket", &["missing", "add ticket="]),
    (NETWORKS, "expires=2098-03-31 reason=regional laboratory, Dib", "expires=31.3.2098 reason=regional laboratory, Dib", Changed, "expires = \"31.3.2098\"", &["not a date", "2027-03-31"]),
    (NETWORKS, "10.20.16.0/24 ", "10.20.16.0/22 ", Changed, "cidr = \"10.20.16.0/22\"", &["wider than /24", "wide=true"]),
    (ICMR, "path = \"icmr.networks\"", "path = \"absent.networks\"", Changed, "network_file[0].path = \"absent.networks\"", &["cannot be read", "; "]),
    // TOML itself has no keys where it is broken.
    (ICMR, "actor = \"required\"", "actor = required", Changed, "", &["must be quoted", "not valid TOML"]),
    (GATEWAY, "[tls]", "[tls", Changed, "", &["unclosed table", "not valid TOML"]),
    (STATE, "actor = \"optional\"", "name = \"state\"", Changed, "", &["duplicate key", "not valid TOML"]),
    (CASES, "body = '{\"mobile\":\"6412345678\",\"purpose\":\"care\"}'", "body = \"{\"mobile\"}\"", Changed, "", &["not valid TOML"]),
];

/// Makes one mistake; how it has to begin to be told, and how it is told.
fn make((file, from, to, line, key, _): &Mistake) -> (String, Vec<String>) {
    let copy = Copy::new();
    let before = copy.text(file);
    copy.change(file, from, to);
    let (told_in, at) = match line {
        Changed => {
            let added = to.len() - to.trim_start_matches('\n').len();
            let at = if from.is_empty() { before.len() } else { before.find(from).expect("it was changed") };
            (*file, at + added)
        }
        Of(file, text) => (*file, copy.text(file).find(text).expect(text)),
    };
    let line = 1 + copy.text(told_in)[..at].matches('\n').count();
    (format!("{told_in}:{line}: {key}"), copy.problems())
}

#[test]
fn a_mistake_is_told_with_its_place_its_key_and_a_way_out() {
    let mut untold = Vec::new();
    for mistake in MISTAKES {
        let (start, problems) = make(mistake);
        let told =
            |problem: &String| problem.starts_with(&start) && mistake.5.iter().all(|word| problem.contains(word));
        if !problems.iter().any(told) {
            untold.push(format!("{start} … {:?}\n  is not in {problems:#?}", mistake.5));
        }
    }
    assert!(untold.is_empty(), "{} of {}:\n{}", untold.len(), MISTAKES.len(), untold.join("\n"));
}

/// What follows from a mistake is not another one: the rest of the lines would send their reader elsewhere.
#[test]
fn a_mistake_makes_one_problem() {
    let noisy: Vec<_> = MISTAKES.iter().map(make).filter(|(_, problems)| problems.len() > 1).collect();
    let shown: Vec<_> = noisy
        .iter()
        .map(|(start, problems)| format!("{start} makes {}, such as {:#?}", problems.len(), &problems[..2]))
        .collect();
    assert!(noisy.is_empty(), "{} of {}:\n{}", noisy.len(), MISTAKES.len(), shown.join("\n"));
}

/// `file:line: rest` as `file: rest`: lines are held by the mistakes one by one, and move with the shipped files.
fn without_line(problem: &str) -> String {
    let (file, rest) = problem.split_once(':').expect("a file");
    let (line, rest) = rest.split_once(':').expect("a line");
    assert!(line.parse::<usize>().is_ok(), "{problem}");
    format!("{file}:{rest}")
}

#[test]
fn every_mistake_of_every_file_is_told_at_once() {
    let copy = Copy::new();
    copy.change(GATEWAY, "kind = \"aadhaar\"", "kind = \"adhaar\"");
    copy.change(GATEWAY, "miss = [404]", "miss = [200]");
    copy.change(GATEWAY, "# workers = 0", "worker = 0");
    copy.change(ICMR, "\"50/s burst 100\"", "\"fast\"");
    copy.change(ICMR, "10.20.0.0/24", "10.20.0.9/24");
    copy.change(NETWORKS, "10.20.16.0/24", "10.20.16.0/33");
    copy.change(NETWORKS, "ticket=NET-1102 ", "");
    copy.change(STATE, "cidr = \"10.30.0.0/24\"", "cdir = \"10.30.0.0/24\"");
    copy.change("partners/travel-desk.toml", "in_flight_max = 4", "in_flight_max = 0");
    copy.change(CASES, "expect = \"allow\"", "expect = \"maybe\"");
    let problems = copy.problems();
    for start in [
        "cases/lookups.toml: case[0].expect",
        "gateway.toml: listen.worker: unknown key",
        "gateway.toml: route[0].lookup.miss",
        "gateway.toml: route[1].lookup.kind",
        "partners/icmr.networks: cidr",
        "partners/icmr.networks: ticket",
        "partners/icmr.toml: network[0].cidr",
        "partners/icmr.toml: limits.requests",
        "partners/state-health.toml: network[0].cidr: missing",
        "partners/state-health.toml: network[0].cdir: unknown key; did you mean cidr?",
        "partners/travel-desk.toml: limits.in_flight_max = \"0\"",
    ] {
        assert!(problems.iter().any(|problem| without_line(problem).starts_with(start)), "{start}\n{problems:#?}");
    }
    let files: Vec<_> = problems.iter().map(|problem| problem.split(':').next()).collect();
    assert!(files.is_sorted(), "{problems:#?}");
}

#[test]
fn every_pair_of_rival_routes_is_told() {
    let copy = Copy::new();
    copy.change(GATEWAY, "/v1/certificates/{reference}", "/v1/beneficiaries/{reference}");
    copy.change(GATEWAY, "/v1/lookup/aadhaar", "/v1/lookup/mobile");
    let problems = copy.problems();
    for rival in ["lookup-by-mobile", "beneficiary-by-reference"] {
        assert!(problems.iter().any(|problem| problem.contains(rival)), "{rival}\n{problems:#?}");
    }
}

#[test]
fn a_directory_without_a_gateway_is_one_problem() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for directory in [folder.path().to_owned(), folder.path().join("absent")] {
        let problems = config::load(&directory, &Overrides::default()).expect_err("there is no gateway.toml");
        let [problem] = &problems[..] else { panic!("{problems:#?}") };
        let start = format!("{}: cannot be read: ", directory.join("gateway.toml").display());
        assert!(problem.to_string().starts_with(&start), "{problem}");
        assert_eq!(problem.severity, Severity::Error);
    }
}

#[test]
fn without_partners_nobody_is_known_and_nothing_is_wrong() {
    let copy = Copy::new();
    fs::remove_dir_all(copy.directory().join("partners")).expect("it is there");
    fs::remove_dir_all(copy.directory().join("cases")).expect("it is there");
    // A directory that is missing is rather a wrong path than a wish.
    assert!(copy.load().is_err_and(|problems| problems[0].message.contains("no such directory")));
    fs::create_dir(copy.directory().join("partners")).expect("it was removed");
    let config = copy.load().unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!((config.policy.partners.len(), config.cases.len()), (0, 0));
}

#[test]
fn what_is_commented_out_is_accepted_and_in_the_gateways_file_the_default() {
    let shipped = Copy::new();
    for file in [GATEWAY, ICMR, "partners/travel-desk.toml"] {
        let copy = Copy { folder: tempfile::tempdir().expect("a temporary directory") };
        copy_directory(&shipped.directory(), &copy.directory());
        let key = |line: &str| {
            let name = line.split_once(" = ").map_or("", |(name, _)| name);
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        let shown = |line: &str| match line.strip_prefix("# ") {
            Some(shown) if shown.starts_with('[') || key(shown) => shown.to_owned() + "\n",
            _ => line.to_owned() + "\n",
        };
        let text: String = copy.text(file).lines().map(shown).collect();
        // What is to be filled in is the only thing that may stay wrong.
        let text = text.replace("BASE64-OF-THE-SHA-256-OF-THE-SUBJECT-PUBLIC-KEY-INFO", &("A".repeat(43) + "="));
        assert_ne!(text, copy.text(file), "{file} shows nothing");
        fs::write(copy.directory().join(file), text).expect(file);
        let settings = |copy: &Copy| {
            let config = copy.load().unwrap_or_else(|_| panic!("{:#?}", copy.problems()));
            format!("{:#?}", config.settings).replace(&copy.folder.path().display().to_string(), "")
        };
        assert_eq!(settings(&copy), settings(&shipped), "{file}");
    }
}

/// What is indented in a comment is no default, but every key of it is one that exists.
#[test]
fn what_is_shown_as_an_option_is_accepted() {
    let copy = Copy::new();
    let shown = |line: &str| line.strip_prefix("#   ").unwrap_or(line).to_owned() + "\n";
    let text: String = copy.text(GATEWAY).lines().map(shown).collect();
    let text = text.replacen("address = \"127.0.0.1:9001\"\n", "", 1);
    fs::write(copy.directory().join(GATEWAY), text).expect(GATEWAY);
    let config = copy.load().unwrap_or_else(|problems| panic!("{problems:#?}"));
    let backend = &config.settings.backends[0];
    assert_eq!(backend.servers.len(), 2);
    assert!(backend.tls.as_ref().is_some_and(|tls| tls.client.is_some()), "{backend:#?}");
    assert!(backend.health.is_some() && backend.circuit.is_some(), "{backend:#?}");
}

/// Taking away must never open. A route that answers on one host and loses it from its list must not answer on all.
#[test]
fn an_empty_list_of_a_routes_hosts_is_not_every_host() {
    let copy = Copy::new();
    copy.change(GATEWAY, "path = \"/v1/lookup/mobile\"", "path = \"/v1/lookup/mobile\"\nhosts = []");
    let problems = copy.problems();
    assert!(
        problems.iter().any(|problem| without_line(problem).starts_with("gateway.toml: route[0].hosts: ")),
        "{problems:#?}"
    );
}
