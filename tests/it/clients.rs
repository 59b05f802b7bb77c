//! Do the clients that partners really use get on with the gateway? curl, Python and Node, unmodified.

use std::process::Command;

use dwarpal::proxy::tls::sha256;
use serde_json::{Value, json};

use crate::world::backend::{ONE_PERSON, megabyte};
use crate::world::line::{Answer, assert_decision};
use crate::world::pki::pki;
use crate::world::process::{curl, run};
use crate::world::{GAMMA, World};

const WHOAMI: &str = "/.well-known/dwarpal/whoami";
const JSON: [&str; 2] = ["--header", "content-type: application/json"];
const LOOKUP: &str = r#"{"mobile":"+91 64123 45678","purpose":"care"}"#;
const UNDECLARED: &str = r#"{"mobile":"6412345678","purpose":"care","aadhaar":"999941057058"}"#;
/// Bytes of the streamed upload, and of one of its pieces.
const UPLOAD: usize = 300_000;

/// Each prints one JSON object a step: name, status, headers, body as text, and the SHA-256 of its bytes.
const PYTHON: &str = r#"
import hashlib, http.client, json, ssl, sys
port, ca, cert, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(cert, key)
connection = http.client.HTTPSConnection("localhost", int(port), context=context, timeout=15)
connection.connect()
def step(name, method, path, body=None, headers={}, **more):
    connection.request(method, path, body=body, headers=headers, **more)
    answer = connection.getresponse()
    content = answer.read()
    print(json.dumps({"name": name, "status": answer.status, "headers": {k.lower(): v for k, v in answer.getheaders()},
        "body": content[:4096].decode("latin-1"), "sha256": hashlib.sha256(content).hexdigest()}))
whoami = "/.well-known/dwarpal/whoami"
typed = {"content-type": "application/json"}
step("whoami", "GET", whoami)
step("lookup", "POST", "/v1/mobile", sys.stdin.readline().strip(), typed)
step("refusal", "POST", "/v1/mobile", sys.stdin.readline().strip(), typed)
step("head", "HEAD", "/v1/people/12345678901234", headers={"x-purpose": "care"})
step("upload", "PUT", "/files/upload", (b"x" * 1000 for _ in range(300)), encode_chunked=True)
step("download", "GET", "/files/megabyte")
step("again", "GET", whoami)
"#;

const NODE_HTTPS: &str = r#"
const https = require("https"), fs = require("fs"), crypto = require("crypto");
const [port, ca, cert, key] = process.argv.slice(1);
const [lookup, undeclared] = fs.readFileSync(0, "utf8").split("\n");
const agent = new https.Agent({ keepAlive: true, maxSockets: 1 });
const tls = { ca: fs.readFileSync(ca), cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
function step(name, method, path, body, headers) {
  return new Promise((resolve, reject) => {
    const options = { host: "localhost", family: 4, port, method, path, headers, agent, timeout: 15000, ...tls };
    const request = https.request(options, (answer) => {
      const pieces = [];
      answer.on("data", (piece) => pieces.push(piece));
      answer.on("error", reject);
      answer.on("end", () => {
        const content = Buffer.concat(pieces);
        console.log(JSON.stringify({ name, status: answer.statusCode, headers: answer.headers,
          body: content.subarray(0, 4096).toString("latin1"),
          sha256: crypto.createHash("sha256").update(content).digest("hex") }));
        resolve();
      });
    });
    request.on("error", reject);
    for (const piece of Array.isArray(body) ? body : []) request.write(piece);
    request.end(Array.isArray(body) ? undefined : body);
  });
}
(async () => {
  const whoami = "/.well-known/dwarpal/whoami", typed = { "content-type": "application/json" };
  await step("whoami", "GET", whoami);
  await step("lookup", "POST", "/v1/mobile", lookup, typed);
  await step("refusal", "POST", "/v1/mobile", undeclared, typed);
  await step("head", "HEAD", "/v1/people/12345678901234", undefined, { "x-purpose": "care" });
  await step("upload", "PUT", "/files/upload", Array(300).fill("x".repeat(1000)));
  await step("download", "GET", "/files/megabyte");
  await step("again", "GET", whoami);
  agent.destroy();
})().catch((error) => { console.error(error); process.exit(1); });
"#;

const NODE_HTTP2: &str = r#"
const http2 = require("http2"), fs = require("fs"), crypto = require("crypto");
const [port, ca, cert, key] = process.argv.slice(1);
const [lookup, undeclared] = fs.readFileSync(0, "utf8").split("\n");
const session = http2.connect("https://localhost:" + port, {
  ca: fs.readFileSync(ca), cert: fs.readFileSync(cert), key: fs.readFileSync(key), host: "127.0.0.1",
  lookup: (name, options, found) => found(null, options.all ? [{ address: "127.0.0.1", family: 4 }] : "127.0.0.1", 4),
});
session.on("error", (error) => { console.error(error); process.exit(1); });
function step(name, method, path, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const stream = session.request({ ":method": method, ":path": path, ...headers }, { endStream: body === undefined });
    const pieces = [];
    let answer;
    stream.on("response", (headers) => { answer = headers; });
    stream.on("data", (piece) => pieces.push(piece));
    stream.on("error", reject);
    stream.on("end", () => {
      const content = Buffer.concat(pieces), { ":status": status, ...headers } = answer;
      console.log(JSON.stringify({ name, status, headers, body: content.subarray(0, 4096).toString("latin1"),
        sha256: crypto.createHash("sha256").update(content).digest("hex") }));
      resolve();
    });
    for (const piece of Array.isArray(body) ? body : []) stream.write(piece);
    if (body !== undefined) stream.end(Array.isArray(body) ? undefined : body);
  });
}
(async () => {
  const whoami = "/.well-known/dwarpal/whoami", typed = { "content-type": "application/json" };
  await step("whoami", "GET", whoami);
  await step("lookup", "POST", "/v1/mobile", lookup, typed);
  await step("refusal", "POST", "/v1/mobile", undeclared, typed);
  await step("head", "HEAD", "/v1/people/12345678901234", undefined, { "x-purpose": "care" });
  await step("upload", "PUT", "/files/upload", Array(300).fill("x".repeat(1000)));
  await step("download", "GET", "/files/megabyte");
  await step("again", "GET", whoami);
  session.close();
})().catch((error) => { console.error(error); process.exit(1); });
"#;

#[test]
fn python_gets_on() {
    let world = World::new();
    judge(&world, &converse(&world, Command::new("python3").args(["-c", PYTHON])));
    assert_eq!(world.metric("dwarpal_handshakes_total{result=\"ok\"}"), 1.0, "one connection served all");
}

#[test]
fn node_over_http1_gets_on() {
    let world = World::new();
    judge(&world, &converse(&world, Command::new("node").args(["-e", NODE_HTTPS])));
    assert_eq!(world.metric("dwarpal_handshakes_total{result=\"ok\"}"), 1.0, "one connection served all");
}

#[test]
fn node_over_http2_gets_on() {
    let world = World::new();
    judge(&world, &converse(&world, Command::new("node").args(["-e", NODE_HTTP2])));
    assert_eq!(world.metric("dwarpal_handshakes_total{result=\"ok\"}"), 1.0, "one connection served all");
}

#[test]
fn curl_over_http1_gets_on() {
    curl_gets_on("--http1.1", "HTTP/1.1", &["--header", "transfer-encoding: chunked"]);
}

#[test]
fn curl_over_http2_gets_on() {
    curl_gets_on("--http2", "HTTP/2", &[]);
}

/// Runs a client that knows the conversation, and reads what it got.
fn converse(world: &World, client: &mut Command) -> Vec<Value> {
    let leaf = &pki().alpha;
    client.arg(world.address.port().to_string()).arg(pki().partners.certificate());
    let ran = run(client.arg(&leaf.certificate).arg(&leaf.key), format!("{LOOKUP}\n{UNDECLARED}\n").as_bytes());
    assert_eq!(ran.code, Some(0), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = String::from_utf8(ran.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The same conversation by curl, one process a step.
fn curl_gets_on(protocol: &str, version: &str, chunked: &[&str]) {
    let world = World::new();
    let step = |name: &str, target: &str, arguments: &[&str], input: &[u8]| {
        let arguments = [&[protocol][..], arguments].concat();
        let answer = curl(world.address, &pki().alpha, target, &arguments, input).answer();
        assert_eq!((answer.version.as_str(), answer.whole), (version, true), "{name}");
        let Answer { status, headers, body, .. } = answer;
        let headers: serde_json::Map<_, _> = headers.into_iter().map(|(name, value)| (name, json!(value))).collect();
        let text = String::from_utf8_lossy(&body[..body.len().min(4_096)]).into_owned();
        json!({ "name": name, "status": status, "headers": headers, "body": text, "sha256": hex(&sha256(&body)) })
    };
    let upload = "x".repeat(UPLOAD);
    judge(
        &world,
        &[
            step("whoami", WHOAMI, &[], b""),
            step("lookup", "/v1/mobile", &[&JSON[..], &["--data", LOOKUP]].concat(), b""),
            step("refusal", "/v1/mobile", &[&JSON[..], &["--data", UNDECLARED]].concat(), b""),
            step("head", "/v1/people/12345678901234", &["--head", "--header", "x-purpose: care"], b""),
            step("upload", "/files/upload", &[&["--upload-file", "-"][..], chunked].concat(), upload.as_bytes()),
            step("download", "/files/megabyte", &[], b""),
            step("again", WHOAMI, &[], b""),
        ],
    );
}

/// What every client has to have seen, and what the backend has.
fn judge(world: &World, steps: &[Value]) {
    let names: Vec<_> = steps.iter().map(|step| step["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["whoami", "lookup", "refusal", "head", "upload", "download", "again"]);
    let [whoami, lookup, refusal, head, upload, download, again] = steps else { panic!("seven steps") };
    for step in steps {
        let expected = if step["name"] == "refusal" { 400 } else { 200 };
        assert_eq!(step["status"], expected, "{step}");
        assert_decision(header(step, "x-decision-id"));
    }
    for step in [whoami, again] {
        let answer: Value = serde_json::from_str(step["body"].as_str().expect("text")).expect("JSON");
        assert_eq!(answer["partner"], "alpha");
        assert_eq!(answer["source"], "127.0.0.1");
        assert_eq!(answer["network"]["cidr"], "127.0.0.1/32");
        let identity = answer["identity"].as_str().expect("an identity");
        assert!(identity.contains("spiffe://partners.test/alpha"), "{identity}");
    }
    assert_eq!(lookup["body"], ONE_PERSON);
    assert_eq!(header(lookup, "content-type"), "application/json");

    let problem: Value = serde_json::from_str(refusal["body"].as_str().expect("text")).expect("JSON");
    assert_eq!(header(refusal, "content-type"), "application/problem+json");
    assert_eq!(problem["type"], "urn:dwarpal:reason:body-invalid");
    assert_eq!(problem["status"], 400);
    assert!(problem["title"].as_str().is_some_and(|title| !title.is_empty()));
    assert_eq!(problem["instance"], format!("urn:uuid:{}", header(refusal, "x-decision-id")));
    assert_eq!(header(refusal, "proxy-status"), "dwarpal; error=http_request_error; details=\"body-invalid\"");

    assert_eq!((head["body"].as_str(), header(head, "content-length")), (Some(""), "12345"));
    assert_eq!(upload["body"], UPLOAD.to_string(), "bytes that the backend got");
    assert_eq!(download["sha256"], hex(&sha256(&megabyte())));

    let requests = world.backend.requests(4);
    assert_eq!(requests[0].body, br#"{"mobile":"6412345678","purpose":"care"}"#);
    assert_eq!(requests[1].line, "HEAD /v1/people/12345678901234 HTTP/1.1");
    assert!(requests[2].body.iter().all(|byte| *byte == b'x'));
}

fn header<'a>(step: &'a Value, name: &str) -> &'a str {
    step["headers"][name].as_str().unwrap_or_else(|| panic!("{name} in {step}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn curl_waits_for_100_continue_and_gets_it_only_where_its_body_is_wanted() {
    let world = World::new();
    let file = world.directory().join("large");
    std::fs::write(&file, vec![b'x'; 2 << 20]).expect("write");
    let body = format!("@{}", file.display());
    let arguments = ["--http1.1", "--expect100-timeout", "15", "--data-binary", &body];
    let allowed = world.curl("/files/large", &arguments).answer();
    assert_eq!((allowed.interim.as_slice(), allowed.status, allowed.text()), (&[100][..], 200, (2 << 20).to_string()));
    let request = world.backend.only();
    assert!(request.values("expect").is_empty(), "an expectation is met by the hop that it was sent to");

    let refused = world.curl("/nowhere/large", &arguments).answer();
    assert_eq!(refused.interim, [0; 0]);
    refused.assert_refused(403, "no-grant");
    // What announces itself as too large is not asked for either.
    std::fs::write(&file, vec![b'x'; 9 << 20]).expect("write");
    let large = world.curl("/files/large", &arguments).answer();
    assert_eq!(large.interim, [0; 0]);
    large.assert_refused(413, "body-too-large");
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn curl_keeps_its_connection_alive() {
    for protocol in ["--http1.1", "--http2"] {
        let world = World::new();
        let first = format!("https://localhost:{}{WHOAMI}", world.address.port());
        let both = world.curl(WHOAMI, &[protocol, &first]).answer();
        assert_eq!((both.status, both.text().matches("\"partner\":\"alpha\"").count()), (200, 2), "{}", both.text());
        assert_eq!(world.metric("dwarpal_handshakes_total{result=\"ok\"}"), 1.0);
    }
}

#[test]
fn curl_calls_from_another_address_with_another_certificate() {
    let world = World::new();
    let gamma = &pki().gamma;
    let source = GAMMA.to_string();
    let answer = world.curl_as(gamma, WHOAMI, &["--interface", &source]).answer().json();
    assert_eq!((&answer["partner"], &answer["source"]), (&json!("gamma"), &json!(source)));
    let misplaced = world.curl_as(gamma, WHOAMI, &[]).answer();
    misplaced.assert_refused(403, "network-not-allowed");
}

/// A client that is still sending when it is refused has to read why, and not a reset.
#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() {
    let world = World::new();
    let file = |name: &str, bytes: usize| {
        let path = world.directory().join(name);
        std::fs::write(&path, vec![b'x'; bytes]).expect("write");
        format!("@{}", path.display())
    };
    let (small, large) = (file("small", 60), file("large", 3 << 20));
    let json = ["-H", "content-type: application/json"];
    for protocol in ["--http1.1", "--http2"] {
        // No Expect: the body is on its way before anybody could say no.
        let send = |target: &str, more: &[&str], body: &str| {
            let arguments = [&[protocol, "-H", "expect:"], more, &["--data-binary", body]].concat();
            world.curl(target, &arguments).answer()
        };
        for _ in 0..10 {
            send("/nowhere", &[], &small).assert_refused(403, "no-grant");
            send("/v1/mobile", &["-H", "content-type: text/plain"], &small).assert_refused(415, "content-type");
            send("/v1/mobile", &json, &large).assert_refused(413, "body-too-large");
            let chunked = [&json[..], &["-H", "transfer-encoding: chunked"]].concat();
            send("/v1/mobile", &chunked, &large).assert_refused(413, "body-too-large");
            let stranger = ["--http1.1", "-H", "expect:", "--data-binary", &large];
            let stranger = world.curl_as(&pki().stranger, "/v1/mobile", &stranger).answer();
            stranger.assert_refused(403, "identity-unknown");
        }
    }
    // A small body does not cost the connection.
    let mut line = world.alpha();
    for _ in 0..3 {
        let refused = line.ask("POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhello");
        refused.assert_refused(403, "no-grant");
        assert_eq!(refused.values("connection"), [""; 0]);
    }
    // Nor does one that never comes hold the answer up for long.
    let begun = std::time::Instant::now();
    line.ask("POST /nowhere HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhel")
        .assert_refused(403, "no-grant");
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    world.backend.assert_untouched();
}
