//! Do operators hear of it? A real Alertmanager, and webhooks good and bad, before whole gateways.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dwarpal::clock::{Clock, Timestamp};
use dwarpal::config;
use dwarpal::config::settings::Overrides;
use dwarpal::detect::{Alert, Level, Severity, Step};
use dwarpal::gateway::{Gateway, Running};
use serde_json::Value;
use tempfile::TempDir;

use super::witness::serve_tls;
use super::world::backend::{Backend, Exchange, Recorded, one_person};
use super::world::pki::pki;
use super::world::{Setup, World, eventually, process};

const SECRET: [u8; 32] = [7; 32];
/// What a partner calls one of its end users.
const ACTOR: &str = "hw-1042";

/// A receiver's secret on the disk, and what stands in front of every configuration here.
struct Home {
    directory: TempDir,
}

impl Home {
    fn new() -> Home {
        let directory = TempDir::new().expect("directory");
        let path = directory.path().join("secret");
        std::fs::write(&path, format!("whsec_{}\n", STANDARD.encode(SECRET))).expect("written");
        private(&path);
        Home { directory }
    }

    fn webhook(&self, name: &str, address: SocketAddr) -> String {
        let secret = self.directory.path().join("secret");
        format!(
            "[[alerts.webhook]]\nname = \"{name}\"\nurl = \"http://{address}/hook\"\nsecret = \"{}\"\n",
            secret.display()
        )
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("mode");
}

fn alertmanager(name: &str, address: SocketAddr) -> String {
    format!("[[alerts.alertmanager]]\nname = \"{name}\"\nurl = \"http://{address}\"\n")
}

fn setup(keys: &str, receivers: &[String]) -> Setup {
    Setup::new().section(&format!("\n[alerts]\n{keys}\n{}", receivers.concat()))
}

fn alert(actor: Option<&str>, severity: Severity) -> Alert {
    Alert {
        time: Clock::system().now(),
        partner: "alpha".into(),
        actor: actor.map(str::to_owned),
        detector: "miss-evidence",
        severity,
        why: vec![match actor {
            Some(actor) => format!("31 of 40 people whom {actor} asked for do not exist"),
            None => "31 of 40 people asked for do not exist".to_owned(),
        }],
        moved: None,
        exposed: None,
    }
}

fn contained(actor: Option<&str>, until: Option<Timestamp>) -> Alert {
    let moved = Some(Step { from: Level::Open, to: Level::KnownOnly, until });
    Alert { moved, exposed: Some(18), ..alert(actor, Severity::Critical) }
}

/// A receiver that records what it gets whole, and answers as a function of how many it got before.
struct Hook {
    address: SocketAddr,
    posts: Arc<Mutex<Vec<Recorded>>>,
    _backend: Backend,
}

fn receiver(status: impl Fn(usize) -> &'static str + Send + Sync + 'static) -> Hook {
    let posts: Arc<Mutex<Vec<Recorded>>> = Arc::default();
    let got = posts.clone();
    let backend = Backend::start(move |exchange: &mut Exchange| {
        exchange.read_body();
        let mut got = got.lock().expect("posts");
        got.push(exchange.request.clone());
        exchange.answer(status(got.len() - 1), "", b"");
    });
    Hook { address: backend.address, posts, _backend: backend }
}

impl Hook {
    /// Waits until so many came, and returns all.
    fn posts(&self, count: usize) -> Vec<Recorded> {
        eventually("so many posts came", || self.count() >= count);
        self.posts.lock().expect("posts").clone()
    }

    fn count(&self) -> usize {
        self.posts.lock().expect("posts").len()
    }
}

fn body(request: &Recorded) -> Value {
    serde_json::from_slice(&request.body).expect("JSON")
}

fn kinds(requests: &[Recorded]) -> Vec<String> {
    requests.iter().map(|request| body(request)["type"].as_str().expect("a type").to_owned()).collect()
}

fn deliveries(world: &World, receiver: &str, result: &str) -> f64 {
    world.metric(&format!("dwarpal_alert_deliveries_total{{receiver=\"{receiver}\",result=\"{result}\"}}"))
}

fn waiting(world: &World, receiver: &str) -> f64 {
    world.metric(&format!("dwarpal_alerts_waiting{{receiver=\"{receiver}\"}}"))
}

/// The `alert` entries of the log.
fn audited(world: &World) -> Vec<Value> {
    let (code, output, error) = world.command(&["audit", "tail", "--json", "--lines", "1000"]);
    assert_eq!(code, 0, "{error}");
    let entries = output.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let entries = entries.map(|line| if line["entry"].is_object() { line["entry"].clone() } else { line });
    entries.filter(|entry| entry["event"] == "alert").collect()
}

// ---- Alertmanager

/// Debian's Alertmanager on a free port of loopback; ends when it is dropped.
struct Alertmanager {
    child: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Alertmanager {
    fn start() -> Alertmanager {
        let directory = TempDir::new().expect("directory");
        let file = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(file("config.yml"), "route: { receiver: nobody }\nreceivers: [{ name: nobody }]\n")
            .expect("written");
        let address = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let mut command = Command::new("prometheus-alertmanager");
        command.arg(format!("--config.file={}", file("config.yml")));
        command.arg(format!("--storage.path={}", file("data")));
        command.arg(format!("--web.listen-address={address}"));
        command.arg("--cluster.listen-address=");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let alertmanager =
            Alertmanager { child: child.expect("prometheus-alertmanager"), address, _directory: directory };
        eventually("Alertmanager is ready", || alertmanager.get("/-/ready").is_some_and(|answer| answer.0 == 200));
        alertmanager
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nhost: alertmanager\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    /// The alerts that it has for going on.
    fn alerts(&self) -> Vec<Value> {
        let (status, body) = self.get("/api/v2/alerts").expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("a list")
    }

    /// Their actors and severities; partners themselves are `-`.
    fn held(&self) -> BTreeSet<String> {
        let label = |alert: &Value, name: &str| alert["labels"][name].as_str().unwrap_or("-").to_owned();
        self.alerts().iter().map(|alert| label(alert, "actor") + " " + &label(alert, "severity")).collect()
    }
}

impl Drop for Alertmanager {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_alertmanager_holds_what_goes_on_and_lets_go_of_what_is_over() {
    let (one, two) = (Alertmanager::start(), Alertmanager::start());
    let receivers = [alertmanager("one", one.address), alertmanager("two", two.address)];
    let world = setup("quiet = \"1s\"", &receivers).start(one_person);
    let gateway = world.gateway();
    gateway.raise(contained(Some(ACTOR), None), None);
    gateway.raise(contained(None, None), None);
    gateway.raise(alert(Some("hw-7"), Severity::Warning), None);
    let set = |held: &[&str]| held.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
    let actor = format!("{ACTOR} critical");
    for manager in [&one, &two] {
        eventually("it holds them", || manager.held().is_superset(&set(&["- critical", &actor])));
    }
    let alerts = one.alerts();
    let told = alerts.iter().find(|alert| alert["labels"]["actor"] == ACTOR).expect("it was there");
    for (name, value) in [
        ("alertname", "DwarpalPartnerMisuse"),
        ("partner", "alpha"),
        ("detector", "miss-evidence"),
        ("severity", "critical"),
        ("gateway", "localhost/dwarpal"),
    ] {
        assert_eq!(told["labels"][name], value, "{told}");
    }
    let said = |name: &str| told["annotations"][name].as_str().expect("a text").to_owned();
    assert!(said("summary").contains("(as asserted by alpha)"), "{told}");
    for part in
        ["31 of 40 people whom hw-1042", "to known-only until an operator", "18 people", "dwarpal standing alpha"]
    {
        assert!(said("description").contains(part), "{part}: {told}");
    }
    let ends = Timestamp::parse(told["endsAt"].as_str().expect("a time")).expect("a time");
    assert!(ends > Clock::system().now(), "it goes on: {told}");
    // What came once and holds nobody is over by itself; what holds somebody is not, until it is let go.
    for manager in [&one, &two] {
        eventually("the quiet one is over", || manager.held() == set(&["- critical", &actor]));
    }
    gateway.alerts.release(&"alpha".into(), Some(ACTOR));
    for manager in [&one, &two] {
        eventually("the actor is let go", || manager.held() == set(&["- critical"]));
    }
    gateway.alerts.release(&"alpha".into(), None);
    eventually("nobody is held", || one.held().is_empty() && two.held().is_empty());
    assert!(deliveries(&world, "one", "ok") >= 3.0, "{}", world.metrics());
    assert_eq!(deliveries(&world, "one", "failed") + deliveries(&world, "one", "refused"), 0.0);
}

#[test]
fn what_is_worse_is_another_alert_to_an_alertmanager_and_the_old_one_is_over() {
    let manager = Alertmanager::start();
    let world = setup("", &[alertmanager("one", manager.address)]).start(one_person);
    world.gateway().raise(alert(None, Severity::Warning), None);
    eventually("it is a warning", || manager.held() == BTreeSet::from(["- warning".to_owned()]));
    world.gateway().raise(alert(None, Severity::Critical), None);
    eventually("it is critical", || manager.held() == BTreeSet::from(["- critical".to_owned()]));
}

#[test]
fn what_goes_on_is_told_again_before_it_lapses_and_lapses_with_the_gateway() {
    let (manager, recorder) = (Alertmanager::start(), receiver(|_| "200 OK"));
    let receivers = [alertmanager("manager", manager.address), alertmanager("recorder", recorder.address)];
    let world = setup("resend = \"1s\"", &receivers).start(one_person);
    world.gateway().raise(contained(None, None), None);
    let ends = |request: &Recorded| {
        let list = body(request);
        Timestamp::parse(list[0]["endsAt"].as_str().expect("a time")).expect("a time")
    };
    let told = recorder.posts(4);
    assert!(told.iter().all(|request| request.line == "POST /api/v2/alerts HTTP/1.1"), "{told:?}");
    for pair in told.windows(2) {
        let (before, after) = (ends(&pair[0]), ends(&pair[1]));
        // Each says four seconds more, and comes after one.
        let later = after.since(before).as_secs_f64();
        assert!(later > 0.9, "{later}");
    }
    eventually("it is held", || manager.held() == BTreeSet::from(["- critical".to_owned()]));
    drop(world);
    eventually("nobody says so any more", || manager.held().is_empty());
}

// ---- Webhooks

/// HMAC-SHA-256 by openssl.
fn hmac(text: &[u8]) -> Vec<u8> {
    let key: String = SECRET.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new("openssl");
    command.args(["dgst", "-sha256", "-binary", "-mac", "HMAC", "-macopt", &format!("hexkey:{key}")]);
    process::run(&mut command, text).stdout
}

#[test]
fn a_webhook_gets_the_news_once_signed_in_words_that_can_be_forwarded() {
    let hook = receiver(|_| "204 No Content");
    let home = Home::new();
    let world = setup("", &[home.webhook("hook", hook.address)]).start(one_person);
    let gateway = world.gateway();
    let decision = uuid::Uuid::try_parse("019ca8fd-4bfc-7000-80cd-1067dfbaa486").ok();
    for _ in 0..20 {
        gateway.raise(alert(Some(ACTOR), Severity::Warning), decision);
    }
    hook.posts(1);
    gateway.raise(contained(Some(ACTOR), None), decision);
    gateway.raise(contained(Some(ACTOR), None), decision);
    hook.posts(2);
    gateway.alerts.release(&"alpha".into(), Some(ACTOR));
    let requests = hook.posts(3);
    assert_eq!(kinds(&requests), ["alert.raised", "alert.escalated", "alert.resolved"]);
    let ids: BTreeSet<_> = requests.iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 3, "each message has its own id");
    for request in &requests {
        assert_eq!(request.line, "POST /hook HTTP/1.1");
        assert_eq!(request.header("content-type"), "application/json");
        let (id, time) = (request.header("webhook-id"), request.header("webhook-timestamp"));
        let seconds: u64 = time.parse().expect("seconds");
        assert!(Clock::system().now().unix_seconds().abs_diff(seconds) < 60, "{time}");
        let signed = [format!("{id}.{time}.").as_bytes(), &request.body].concat();
        assert_eq!(request.header("webhook-signature"), format!("v1,{}", STANDARD.encode(hmac(&signed))));
    }
    let data = &body(&requests[1])["data"];
    for (name, value) in
        [("partner", "alpha"), ("actor", ACTOR), ("actor_asserted_by", "alpha"), ("severity", "critical")]
    {
        assert_eq!(data[name], value, "{data}");
    }
    assert_eq!(
        (&data["moved"]["to"], &data["exposed"], &data["count"]),
        (&"known-only".into(), &18.into(), &21.into())
    );
    let text = data["text"].as_str().expect("a text");
    for part in ["as asserted by alpha", "What the gateway did: from open to known-only", "dwarpal audit show 019ca8fd"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The audit has the actor's mark, and its name nowhere.
    eventually("the audit has them", || audited(&world).len() == 3);
    let entries = audited(&world);
    for (entry, change) in entries.iter().zip(["raised", "escalated", "resolved"]) {
        assert_eq!(entry["change"], change);
        assert_eq!(entry["actor"].as_str().map(str::len), Some(32), "{entry}");
        assert!(!entry.to_string().contains(ACTOR), "{entry}");
    }
    assert_eq!((&entries[1]["to"], &entries[1]["exposed"]), (&"known-only".into(), &18.into()));
    let (_, shown, _) = world.command(&["audit", "show", "--json", "019ca8fd-4bfc-7000-80cd-1067dfbaa486"]);
    assert!(shown.contains("miss-evidence"), "its decision leads to it: {shown}");
    let all = "dwarpal_alerts_total{detector=\"miss-evidence\",partner=\"alpha\",severity=";
    assert_eq!(world.metric(&format!("{all}\"warning\"}}")), 20.0);
    assert_eq!(world.metric(&format!("{all}\"critical\"}}")), 2.0);
    assert_eq!(deliveries(&world, "hook", "ok"), 3.0);
}

#[test]
fn an_actor_may_be_called_by_its_mark_everywhere() {
    let (hook, manager) = (receiver(|_| "200 OK"), receiver(|_| "200 OK"));
    let home = Home::new();
    let receivers = [home.webhook("hook", hook.address), alertmanager("manager", manager.address)];
    let world = setup("actors = \"token\"", &receivers).start(one_person);
    world.gateway().raise(contained(Some(ACTOR), None), None);
    let told = [hook.posts(1), manager.posts(1)].concat();
    let mark = body(&told[0])["data"]["actor"].as_str().expect("a mark").to_owned();
    assert_eq!(mark.len(), 32);
    for request in &told {
        assert!(!request.text().contains(ACTOR) && request.text().contains(&mark), "{}", request.text());
    }
    let kept = world.directory().join("data/state/alerts.json");
    eventually("it is kept", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(&mark)));
    assert!(!std::fs::read_to_string(&kept).expect("kept").contains(ACTOR));
    // Released by the name that operators know it by.
    world.gateway().alerts.release(&"alpha".into(), Some(ACTOR));
    assert_eq!(kinds(&hook.posts(2)), ["alert.raised", "alert.resolved"]);
}

#[test]
fn a_sentence_in_which_a_number_can_be_read_goes_nowhere() {
    let hook = receiver(|_| "200 OK");
    let home = Home::new();
    let world = setup("", &[home.webhook("hook", hook.address)]).start(one_person);
    let why = vec!["asked for 6412345678 again and again".to_owned(), "asked 40 times in 60 s".to_owned()];
    world.gateway().raise(Alert { why, ..alert(None, Severity::Info) }, None);
    let told = body(&hook.posts(1)[0]);
    assert!(!told.to_string().contains("6412345678"), "{told}");
    assert_eq!(told["data"]["why"][1], "asked 40 times in 60 s");
}

#[test]
fn what_is_not_taken_is_tried_again_with_the_same_id_and_in_order() {
    let flaky = receiver(|count| match count {
        0 => "500 Internal Server Error",
        1 => "404 Not Found",
        _ => "200 OK",
    });
    let home = Home::new();
    let world = setup("", &[home.webhook("flaky", flaky.address)]).start(one_person);
    for actor in ["hw-1", "hw-2"] {
        world.gateway().raise(alert(Some(actor), Severity::Warning), None);
    }
    let requests = flaky.posts(4);
    let seen: Vec<_> = requests.iter().map(|request| body(request)["data"]["actor"].clone()).collect();
    assert_eq!(seen, ["hw-1", "hw-1", "hw-1", "hw-2"]);
    let ids: BTreeSet<_> = requests[..3].iter().map(|request| request.header("webhook-id").to_owned()).collect();
    assert_eq!(ids.len(), 1);
    eventually("it is counted", || deliveries(&world, "flaky", "ok") == 2.0);
    assert_eq!(deliveries(&world, "flaky", "failed"), 2.0);
    eventually("nothing waits", || waiting(&world, "flaky") == 0.0);
}

#[test]
fn a_receiver_that_hangs_or_refuses_holds_up_no_other() {
    let hanging = Backend::start(|exchange| exchange.hold());
    let broken = Backend::start(|exchange| {
        exchange.read_body();
        exchange.write("not HTTP at all\r\n\r\n");
        exchange.close();
    });
    let picky = receiver(|count| if count == 0 { "400 Bad Request" } else { "200 OK" });
    let good = receiver(|_| "200 OK");
    let home = Home::new();
    let addresses =
        [("hanging", hanging.address), ("broken", broken.address), ("picky", picky.address), ("good", good.address)];
    let receivers = addresses.map(|(name, address)| home.webhook(name, address));
    let world = setup("", &receivers).start(one_person);
    world.gateway().raise(alert(Some("hw-1"), Severity::Warning), None);
    good.posts(1);
    world.gateway().raise(alert(Some("hw-2"), Severity::Warning), None);
    good.posts(2);
    // What it refuses is given up, and what comes next is not.
    let seen: Vec<_> = picky.posts(2).iter().map(|request| body(request)["data"]["actor"].clone()).collect();
    assert_eq!(seen, ["hw-1", "hw-2"]);
    eventually("the failures are counted", || deliveries(&world, "broken", "failed") >= 1.0);
    assert_eq!(deliveries(&world, "picky", "refused"), 1.0);
    eventually("what was taken waits no more", || waiting(&world, "good") == 0.0);
    assert_eq!(waiting(&world, "hanging"), 2.0);
    hanging.stop();
}

#[test]
fn a_full_queue_gives_up_the_least_severe_and_says_so() {
    let open = Arc::new(AtomicBool::new(false));
    let opened = open.clone();
    let late = receiver(move |_| if opened.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" });
    let home = Home::new();
    let world = setup("queue_max = 3", &[home.webhook("late", late.address)]).start(one_person);
    // One after the other, or there would be no room where they are raised.
    let raise = |actor: &str, severity| {
        world.gateway().raise(alert(Some(actor), severity), None);
        eventually("it was looked at", || world.gateway().alerts.waiting() == 0);
    };
    raise("hw-0", Severity::Warning);
    late.posts(1);
    eventually("it failed", || deliveries(&world, "late", "failed") >= 1.0);
    raise("hw-1", Severity::Critical);
    for number in 2..6 {
        raise(&format!("hw-{number}"), Severity::Info);
    }
    raise("hw-6", Severity::Critical);
    eventually("it is counted", || deliveries(&world, "late", "dropped") == 4.0);
    eventually("the rest waits", || waiting(&world, "late") == 3.0);
    open.store(true, Ordering::Relaxed);
    eventually("the rest is taken", || deliveries(&world, "late", "ok") == 3.0);
    let taken: BTreeSet<_> = late.posts(1).iter().map(|request| body(request)["data"]["actor"].to_string()).collect();
    assert!(["\"hw-0\"", "\"hw-1\"", "\"hw-6\""].iter().all(|actor| taken.contains(*actor)), "{taken:?}");
    assert!(!taken.contains("\"hw-3\""), "{taken:?}");
}

/// Somebody watches these people: each lookup is worth a line, and not a call at night.
#[test]
fn what_is_for_information_is_written_down_each_time_and_told_once() {
    let hook = receiver(|_| "200 OK");
    let home = Home::new();
    let world = setup("", &[home.webhook("hook", hook.address)]).start(one_person);
    let ids: Vec<_> = (1..=3).map(uuid::Uuid::from_u128).collect();
    for id in &ids {
        world.gateway().raise(alert(Some(ACTOR), Severity::Info), Some(*id));
    }
    eventually("each is in the audit", || audited(&world).len() == 3);
    let entries = audited(&world);
    let decisions: Vec<_> = entries.iter().map(|entry| entry["id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!(decisions, ids.iter().map(ToString::to_string).collect::<Vec<_>>());
    assert_eq!(entries[2]["change"], "counted");
    world.gateway().raise(alert(Some(ACTOR), Severity::Warning), None);
    assert_eq!(kinds(&hook.posts(2)), ["alert.raised", "alert.escalated"]);
}

// ---- Over a restart

/// A gateway without a backend, so that it can be started again in its directory.
fn start(directory: &Path) -> Running {
    let config = config::load(directory, &Overrides::default()).unwrap_or_else(|problems| panic!("{problems:#?}"));
    Gateway::start(config, Clock::system()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_restart_forgets_nothing_and_repeats_nothing() {
    let open = Arc::new(AtomicBool::new(false));
    let opened = open.clone();
    let away = receiver(move |_| if opened.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" });
    let manager = Alertmanager::start();
    let (home, directory) = (Home::new(), TempDir::new().expect("directory"));
    let receivers = [home.webhook("away", away.address), alertmanager("manager", manager.address)];
    setup("", &receivers).write(directory.path(), None);
    let running = start(directory.path());
    running.gateway.raise(contained(Some(ACTOR), None), None);
    let id = away.posts(1)[0].header("webhook-id").to_owned();
    running.stop().expect("stopped");
    open.store(true, Ordering::Relaxed);
    let known = away.count();

    let running = start(directory.path());
    eventually("it comes after all", || away.count() > known);
    // The same again is no news, and what is worse still is.
    running.gateway.raise(contained(Some(ACTOR), None), None);
    let worse = Step { from: Level::KnownOnly, to: Level::Frozen, until: None };
    running.gateway.raise(Alert { moved: Some(worse), ..contained(Some(ACTOR), None) }, None);
    let requests = away.posts(known + 2);
    assert_eq!(requests[known].header("webhook-id"), id);
    assert_eq!(kinds(&requests[known..]), ["alert.raised", "alert.escalated"]);
    assert_eq!(body(&requests[known + 1])["data"]["count"], 3);
    eventually("the Alertmanager has it", || manager.held().len() == 1);
    running.gateway.alerts.release(&"alpha".into(), Some(ACTOR));
    eventually("it is over", || manager.held().is_empty());
    running.stop().expect("stopped");

    // What is kept and cannot be read is said, and lets nobody down.
    std::fs::write(directory.path().join("data/state/alerts.json"), "half of i").expect("written");
    let running = start(directory.path());
    running.gateway.raise(alert(None, Severity::Warning), None);
    away.posts(known + 4);
    running.stop().expect("stopped");
}

#[test]
fn a_reload_brings_receivers_in_and_what_waits_for_one_that_stays_goes_on_waiting() {
    let open = Arc::new(AtomicBool::new(false));
    let opened = open.clone();
    let away = receiver(move |_| if opened.load(Ordering::Relaxed) { "200 OK" } else { "503 Service Unavailable" });
    let (late, list) = (receiver(|_| "200 OK"), receiver(|_| "200 OK"));
    let home = Home::new();
    let first = home.webhook("away", away.address);
    let world = setup("", std::slice::from_ref(&first)).start(one_person);
    world.gateway().raise(contained(Some(ACTOR), None), None);
    away.posts(1);
    let more = [home.webhook("late", late.address), alertmanager("list", list.address), first];
    world.configure(&setup("", &more));
    let (code, _, error) = world.command(&["reload"]);
    assert_eq!(code, 0, "{error}");
    // What goes on is told to an Alertmanager whenever it was named; a webhook gets what is news since.
    assert_eq!(body(&list.posts(1)[0])[0]["labels"]["actor"], ACTOR);
    world.gateway().raise(alert(None, Severity::Warning), None);
    assert_eq!(body(&late.posts(1)[0])["data"]["actor"], Value::Null);
    open.store(true, Ordering::Relaxed);
    eventually("both are taken", || deliveries(&world, "away", "ok") == 2.0);
    let taken = away.posts(2);
    assert_eq!(body(&taken[taken.len() - 2])["data"]["actor"], ACTOR);
}

// ---- The command

#[test]
fn a_test_says_what_each_receiver_of_a_confined_gateway_answered() {
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let hears = heard.clone();
    // By name, over TLS: address, CA and secret are found from within the sandbox.
    let hook = serve_tls("127.0.0.1", move |body| {
        hears.lock().expect("heard").push(body.to_owned());
        (202, String::new())
    });
    let manager = Alertmanager::start();
    let home = Home::new();
    let secret = home.directory.path().join("secret");
    let secure = |name: &str, ca: &str| {
        format!(
            "[[alerts.webhook]]\nname = \"{name}\"\nurl = \"https://localhost:{}/\"\nsecret = \"{}\"\n{ca}",
            hook.port(),
            secret.display()
        )
    };
    let ca = format!("ca = \"{}\"\n", pki().partners.certificate().display());
    let good = [secure("hook", &ca), alertmanager("manager", manager.address)];
    let mut world = setup("", &good).spawn(one_person);
    let (code, output, error) = world.command(&["alerts", "test"]);
    assert_eq!((code, &*error), (0, ""), "{output}");
    let url = format!("https://localhost:{}/", hook.port());
    assert_eq!(output, format!("hook: {url} answers 202\nmanager: http://{} answers 200\n", manager.address));
    let told: Value = serde_json::from_str(&heard.lock().expect("heard")[0]).expect("JSON");
    assert_eq!(told["type"], "alert.test");
    assert_eq!(manager.alerts()[0]["labels"]["alertname"], "DwarpalTest");
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));

    // Nobody vouches for that server but its own CA; a secret that is gone since the start is told as well.
    let failing = receiver(|_| "503 Service Unavailable");
    let bad = [secure("stranger", ""), home.webhook("failing", failing.address)];
    world.configure(&setup("", &bad));
    world.restart();
    let (code, _, error) = world.command(&["alerts", "test"]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains(&format!("stranger: {url} has not taken it: invalid peer certificate")), "{error}");
    assert!(error.contains("/hook has not taken it: it answers 503"), "{error}");
    std::fs::remove_file(&secret).expect("removed");
    let (_, _, error) = world.command(&["alerts", "test"]);
    assert!(error.contains("the secret is a file of its own"), "{error}");
}

#[test]
fn without_receivers_a_test_says_where_alerts_are() {
    let world = World::new();
    let (code, output, _) = world.command(&["alerts", "test"]);
    assert_eq!((code, output.contains("no receiver is configured")), (0, true), "{output}");
}

#[test]
fn a_secret_that_others_can_read_refuses_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let (home, directory) = (Home::new(), TempDir::new().expect("directory"));
    let secret = home.directory.path().join("secret");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o644)).expect("mode");
    setup("", &[home.webhook("hook", SocketAddr::from(([127, 0, 0, 1], 9)))]).write(directory.path(), None);
    let config = config::load(directory.path(), &Overrides::default()).expect("it is well-formed");
    let Err(error) = Gateway::start(config, Clock::system()) else { panic!("it started") };
    let error = error.to_string();
    assert!(error.contains("alerts.webhook.secret") && error.contains("chmod 600"), "{error}");
}
