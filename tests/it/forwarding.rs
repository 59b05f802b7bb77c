//! What gets through to the backend, and what comes back of its answer?

use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use crate::world::backend::{Exchange, ONE_PERSON, one_person};
use crate::world::line::assert_decision;
use crate::world::pki::pki;
use crate::world::{ALPHA_TOO, BETA, PATIENCE, Setup, World, eventually};

fn get(target: &str, fields: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n")
}

fn post(target: &str, fields: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n{fields}\r\n{body}")
}

fn lookup(target: &str, body: &str) -> String {
    post(target, "content-type: application/json\r\n", body)
}

const CARE: &str = "x-purpose: care\r\n";

// ---- lookups: what goes up

#[test]
fn a_lookup_goes_up_in_one_form_whatever_its_notation() {
    let notations = [
        ("6412345678", "6412345678"),
        ("+91 64123 45678", "6412345678"),
        ("06412345678", "6412345678"),
        ("0091-6412345678", "6412345678"),
        ("91 6412345678", "6412345678"),
        ("(64123) 45678", "6412345678"),
    ];
    let world = World::new();
    let mut line = world.alpha();
    for (at, (written, canonical)) in notations.into_iter().enumerate() {
        // White space, escapes and the order of members are the partner's, not the backend's.
        let escaped = written.replacen('6', "\\u0036", 1);
        let body = format!("{{ \"purpose\" : \"care\",\n\t\"mobile\":\"{escaped}\" }}");
        assert_eq!(line.ask(lookup("/v1/mobile", &body)).status, 200, "{written}");
        let request = world.backend.requests(at + 1).remove(at);
        assert_eq!(request.text().matches(canonical).count(), 1, "{}", request.text());
        let body = format!("{{\"mobile\":\"{canonical}\",\"purpose\":\"care\"}}");
        assert_eq!(String::from_utf8_lossy(&request.body), body);
    }
    world.backend.forget();
    assert_eq!(line.ask(lookup("/v1/aadhaar", r#"{"aadhaar":"9999 4105 7058","purpose":"care"}"#)).status, 200);
    assert_eq!(world.backend.only().body, br#"{"aadhaar":"999941057058","purpose":"care"}"#);
    world.backend.forget();
    assert_eq!(line.ask(get("/v1/people/1234%35678901234", CARE)).status, 200);
    assert_eq!(world.backend.only().line, "GET /v1/people/12345678901234 HTTP/1.1");
    world.backend.forget();
    assert_eq!(line.ask(get("/v1/query?mobile=%2B91+64123+45678", "")).status, 200);
    assert_eq!(world.backend.only().line, "GET /v1/query?mobile=6412345678 HTTP/1.1");
}

#[test]
fn no_header_of_the_partner_goes_up_with_a_lookup() {
    let world = World::new();
    let fields = "content-type: application/json; charset=utf-8\r\nUser-Agent: theirs\r\nCookie: theirs\r\n\
                  Authorization: theirs\r\nAccept: theirs/theirs\r\nAccept-Encoding: theirs\r\nRange: bytes=0-5\r\n\
                  If-None-Match: theirs\r\nX-Api-Key: theirs\r\nX-Partner: theirs\r\nX-Forwarded-For: 6.6.6.6\r\n\
                  X-Purpose: theirs\r\nX-Actor: hw-1042\r\nConnection: keep-alive\r\nTE: theirs\r\n";
    let answer = world.ask(post("/v1/mobile", fields, r#"{"mobile":"6412345678","purpose":"care"}"#));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let request = world.backend.only();
    assert!(!request.text().contains("theirs") && !request.text().contains("6.6.6.6"), "{}", request.text());
    let expected = [
        "accept",
        "client-cert",
        "content-length",
        "content-type",
        "host",
        "traceparent",
        "x-actor",
        "x-client-dn",
        "x-decision-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-partner",
        "x-purpose",
    ];
    assert_eq!(request.names(), expected);
    for (name, value) in [
        ("accept", "application/json"),
        ("content-type", "application/json"),
        ("host", "registry.internal"),
        ("x-actor", "hw-1042"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "localhost"),
        ("x-forwarded-proto", "https"),
        ("x-partner", "alpha"),
        ("x-purpose", "care"),
        ("x-decision-id", answer.header("x-decision-id")),
    ] {
        assert_eq!(request.header(name), value, "{name}");
    }
}

#[test]
fn what_a_lookup_does_not_declare_is_refused_before_the_backend_hears_of_it() {
    let long = "x".repeat(5_000);
    let table: &[(&str, &str, u16, &str)] = &[
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care","extra":1}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care","aadhaar":"999941057058"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","mobile":"6512345678","purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","mobile":"6412345678","purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","m\u006fbile":"6512345678","purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"Mobile":"6412345678","mobile":"6512345678","purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"Mobile":"6412345678","purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":["6412345678","6512345678"],"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":["6412345678"],"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":{"mobile":"6412345678"},"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":6412345678,"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":null,"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"[{"mobile":"6412345678","purpose":"care"}]"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}{"mobile":"6512345678"}"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"} x"#, 400, "body-invalid"),
        ("/v1/mobile", r#"{"purpose":"care"}"#, 400, "body-invalid"),
        ("/v1/mobile", "", 400, "body-invalid"),
        ("/v1/mobile", "mobile=6412345678&purpose=care", 400, "body-invalid"),
        ("/v1/mobile", &long, 413, "body-too-large"),
        ("/v1/mobile?mobile=6512345678", r#"{"mobile":"6412345678","purpose":"care"}"#, 400, "query-invalid"),
        ("/v1/mobile?debug=true", r#"{"mobile":"6412345678","purpose":"care"}"#, 400, "query-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678, 6512345678","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/mobile", r#"{"mobile":"5412345678","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/mobile", r#"{"mobile":"६४१२३४५६७८","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/mobile", r#"{"mobile":"","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":"marketing"}"#, 403, "purpose-not-granted"),
        ("/v1/mobile", r#"{"mobile":"6412345678","purpose":""}"#, 403, "purpose-not-granted"),
        ("/v1/aadhaar", r#"{"aadhaar":"999941057059","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/aadhaar", r#"{"aadhaar":"XXXXXXXX7058","purpose":"care"}"#, 422, "identifier-invalid"),
        ("/v1/aadhaar", r#"{"aadhaar":"6412345678","purpose":"care"}"#, 422, "identifier-invalid"),
    ];
    let world = World::new();
    for (target, body, status, code) in table {
        let answer = world.ask(lookup(target, body));
        answer.assert_refused(*status, code);
        for digits in ["6412345678", "6512345678", "999941057058"] {
            assert!(!format!("{answer:?}{}", answer.text()).contains(digits), "an identifier is never echoed");
        }
    }
    for (request, status, code) in [
        (get("/v1/query?mobile=6412345678&mobile=6512345678", ""), 400, "query-invalid"),
        (get("/v1/query?mobile=6412345678&aadhaar=999941057058", ""), 400, "query-invalid"),
        (get("/v1/query?Mobile=6412345678", ""), 400, "query-invalid"),
        (get("/v1/query?mobile[]=6412345678", ""), 400, "query-invalid"),
        (get("/v1/query?mobile=6412345678;mobile=6512345678", ""), 400, "query-invalid"),
        (get("/v1/query", ""), 400, "query-invalid"),
        (get("/v1/query?mobile", ""), 400, "bad-request"),
        (get("/v1/people/12345678901234?x=1", CARE), 400, "query-invalid"),
        (get("/v1/people/12345678901234,12345678901235", CARE), 422, "identifier-invalid"),
        (get("/v1/people/12345678901234/12345678901235", CARE), 403, "no-grant"),
        (get("/v1/people/12345678901234", ""), 400, "purpose-missing"),
        (get("/v1/people/12345678901234", "x-purpose: care\r\nx-purpose: travel\r\n"), 400, "bad-request"),
        (get("/v1/people/12345678901234", "x-purpose: care\r\ncontent-length: 2\r\n") + "{}", 400, "body-invalid"),
        (
            post("/v1/mobile", "content-type: text/plain\r\n", r#"{"mobile":"6412345678","purpose":"care"}"#),
            415,
            "content-type",
        ),
        (
            post("/v1/mobile", "content-type: application/json; charset=utf-16\r\n", r#"{"mobile":"6412345678"}"#),
            415,
            "content-type",
        ),
        (
            post("/v1/mobile", "content-type: application/json\r\ncontent-encoding: gzip\r\n", "x"),
            415,
            "content-encoding",
        ),
        (
            post(
                "/v1/mobile",
                "content-type: application/json\r\nx-actor: 6512345678\r\n",
                r#"{"mobile":"6412345678","purpose":"care"}"#,
            ),
            400,
            "actor-invalid",
        ),
        (get("/v1/mobile", ""), 403, "no-grant"),
        ("TRACE /rest/x HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 405, "method-refused"),
        ("GET /rest/x HTTP/1.1\r\nhost: elsewhere.test\r\n\r\n".to_owned(), 421, "host-mismatch"),
        (get("/rest/x", "connection: upgrade\r\nupgrade: websocket\r\n"), 400, "upgrade-refused"),
        (get("/rest/x", "expect: 200-maybe\r\n"), 417, "expectation-refused"),
    ] {
        world.ask(request).assert_refused(status, code);
    }
    // Another partner has no grant for what alpha may do.
    world.line(&pki().beta, BETA).ask(get("/rest/x", "")).assert_refused(403, "no-grant");
    world.backend.assert_untouched();
}

// ---- pass routes: what goes up

/// Everything by which one backend or another learns who is calling.
const SPOOFED: &[&str] = &[
    "X-Partner",
    "x_partner",
    "X_Partner",
    "x-PARTNER-id",
    "X-Partner-Name",
    "Client-Cert",
    "client_cert",
    "Client-Cert-Chain",
    "X-Client-Cert",
    "X-Client-DN",
    "X_Client_DN",
    "X-Client-Verify",
    "X-SSL-Client-Cert",
    "X-SSL-Client-S-DN",
    "SSL_CLIENT_S_DN",
    "ssl-client-verify",
    "X-Forwarded-Client-Cert",
    "X-ARR-ClientCert",
    "X-Amzn-Mtls-Clientcert",
    "X-Forwarded-For",
    "X_Forwarded_For",
    "x-forwarded_for",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-User",
    "Forwarded",
    "X-Real-IP",
    "X_Real_IP",
    "True-Client-IP",
    "CF-Connecting-IP",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Originating-IP",
    "X-Remote-IP",
    "X-Remote-Addr",
    "X-Remote-User",
    "Remote-User",
    "REMOTE_USER",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "X-HTTP-Method",
    "X-Envoy-External-Address",
    "X-Actor",
    "X-Purpose",
    "x_purpose",
    "X-Decision-Id",
    "X_Decision_Id",
    "traceparent",
    "Tracestate",
    "Baggage",
    "Via",
    "X-Dwarpal-Verified",
    "X-TLS-Client-Subject",
];

#[test]
fn only_the_gateway_says_who_is_calling() {
    let world = World::new();
    let mut line = world.line(&pki().alpha, ALPHA_TOO);
    for (at, names) in SPOOFED.chunks(40).enumerate() {
        let fields: String = names.iter().map(|name| format!("{name}: spoofed-{name}\r\n")).collect();
        let answer = line.ask(get("/rest/x", &format!("{fields}x-case: mine\r\naccept: text/plain\r\n")));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let request = world.backend.requests(at + 1).remove(at);
        assert!(!request.text().contains("spoofed"), "{}", request.text());
        let expected = [
            "accept",
            "client-cert",
            "host",
            "traceparent",
            "x-case",
            "x-client-dn",
            "x-decision-id",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-partner",
        ];
        assert_eq!(request.names(), expected);
        assert_eq!(request.header("x-forwarded-for"), "127.0.0.2", "exactly the source");
        assert_eq!(request.header("x-partner"), "alpha");
        assert_eq!(request.header("host"), "registry.internal");
        assert_eq!(request.header("x-client-dn"), "O=Test, CN=alpha");
        assert_eq!(request.header("x-decision-id"), answer.header("x-decision-id"));
        assert_decision(request.header("x-decision-id"));
    }
}

#[test]
fn trailers_say_nothing_to_the_backend() {
    let world = World::new();
    let fields: String = SPOOFED.iter().take(15).map(|name| format!("{name}: spoofed\r\n")).collect();
    let head = "POST /rest/x HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ntrailer: x-partner\r\n\r\n";
    let answer = world.ask(format!("{head}5\r\nhello\r\n0\r\n{fields}\r\n"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "5"));
    let request = world.backend.only();
    assert!(!request.text().contains("spoofed"), "{}", request.text());
    assert!(request.values("trailer").is_empty());
    // Framing in trailers is an attack on whoever merges them into the head.
    let answer = world.ask(format!("{head}5\r\nhello\r\n0\r\ncontent-length: 0\r\n\r\n"));
    answer.assert_refused(400, "bad-request");
}

#[test]
fn fields_of_this_hop_stay_on_it() {
    let world = World::new();
    let fields = "Connection: keep-alive, X-Mine, x-unheard-of\r\nX-Mine: hop\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\n\
                  Trailer: x-later\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic aG9w\r\n\
                  HTTP2-Settings: aG9w\r\nMax-Forwards: 5\r\nx-kept: yes\r\n";
    let answer = world.ask(get("/rest/x", fields));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let request = world.backend.only();
    assert_eq!(request.header("x-kept"), "yes");
    for name in [
        "connection",
        "x-mine",
        "keep-alive",
        "te",
        "trailer",
        "proxy-connection",
        "proxy-authorization",
        "http2-settings",
        "max-forwards",
    ] {
        assert!(request.values(name).is_empty(), "{name}: {}", request.text());
    }
    for nominated in ["X-Partner", "close, x-forwarded-for", "CLIENT-CERT", "host", "x_partner", "content-length"] {
        let answer = world.ask(post("/rest/x", &format!("connection: {nominated}\r\n"), "hello"));
        answer.assert_refused(400, "bad-request");
    }
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn the_client_certificate_goes_up_as_rfc_9440_has_it() {
    let world = World::new();
    world.ask(get("/rest/x", "client-cert: :AAAA:\r\n"));
    let request = world.backend.only();
    let encoded = request.header("client-cert").strip_prefix(':').and_then(|text| text.strip_suffix(':'));
    let encoded = encoded.expect("a byte sequence of RFC 9651");
    let der = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, encoded).expect("base64");
    assert_eq!(der, pki().alpha.der());
}

#[test]
fn a_trace_goes_on_and_else_begins() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let world = World::new();
    let mut line = world.alpha();
    let mut traced = |fields: &str| {
        world.backend.forget();
        line.ask(get("/rest/x", fields));
        let request = world.backend.only();
        assert!(request.values("tracestate").is_empty() && request.values("baggage").is_empty());
        let parts: Vec<_> = request.header("traceparent").split('-').map(str::to_owned).collect();
        let [version, trace, span, flags] = parts.try_into().expect("four parts");
        assert_eq!((version.as_str(), trace.len(), span.len(), flags.len()), ("00", 32, 16, 2));
        (trace, span, flags)
    };
    let parent =
        format!("traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\ntracestate: a=b\r\nbaggage: id=6412345678\r\n");
    let (trace, span, flags) = traced(&parent);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_ne!(span, "00f067aa0ba902b7", "a span of the gateway's own");
    let mut begun = Vec::new();
    for invalid in [
        String::new(),
        format!("traceparent: 00-{}-00f067aa0ba902b7-01\r\n", "0".repeat(32)),
        format!("traceparent: 00-{}-00f067aa0ba902b7-01\r\n", TRACE.to_uppercase()),
        format!("{parent}traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"),
    ] {
        let (trace, ..) = traced(&invalid);
        assert!(trace != TRACE && !begun.contains(&trace), "{invalid}");
        begun.push(trace);
    }
}

#[test]
fn the_backend_sees_the_path_that_was_decided_on() {
    let world = World::new();
    let mut line = world.alpha();
    for (at, (asked, forwarded)) in [
        ("/rest/a", "/rest/a"),
        ("/rest/a/b/", "/rest/a/b/"),
        ("/rest/%61%7e%2D", "/rest/a~-"),
        ("/%72est/a", "/rest/a"),
        ("/rest/a%20b%c3%a9", "/rest/a%20b%C3%A9"),
        ("/rest/@a:b+c,d=e", "/rest/@a:b+c,d=e"),
        ("/files/a?since=2026", "/files/a?since=2026"),
        ("/files/a?s%69nce=%32026", "/files/a?since=2026"),
        ("/files/a?since=a+b", "/files/a?since=a%20b"),
        ("/files/a?", "/files/a"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(line.ask(get(asked, "")).status, 200, "{asked}");
        assert_eq!(world.backend.requests(at + 1)[at].target(), forwarded, "{asked}");
    }
    let known = world.backend.count();
    for (asked, status, code) in [
        ("/rest/../v1/query", 400, "bad-request"),
        ("/rest/./a", 400, "bad-request"),
        ("/rest/%2e%2e/a", 400, "bad-request"),
        ("/rest/.%2E/a", 400, "bad-request"),
        ("/rest//a", 400, "bad-request"),
        ("//rest/a", 400, "bad-request"),
        ("/rest/a%2fb", 400, "bad-request"),
        ("/rest/a%5cb", 400, "bad-request"),
        ("/rest/a%00", 400, "bad-request"),
        ("/rest/a;b=c", 400, "bad-request"),
        ("/rest/a%3bb", 400, "bad-request"),
        ("/rest/a%252e", 400, "bad-request"),
        ("/rest/a%0d%0aX-Partner:%20b", 400, "bad-request"),
        ("/rest/a%zz", 400, "bad-request"),
        ("/rest/a\\b", 400, "bad-request"),
        ("/rest/a#b", 400, "bad-request"),
        ("/rest", 403, "no-grant"),
        ("/REST/a", 403, "no-grant"),
        ("/files/a/b", 403, "no-grant"),
        ("/files/a/", 403, "no-grant"),
        ("/rest/a?x=1", 400, "query-invalid"),
        ("/files/a?since=1&since=2", 400, "query-invalid"),
        ("/files/a?since=12345678901", 400, "query-invalid"),
        ("/files/a?since=%zz", 400, "bad-request"),
    ] {
        world.ask(get(asked, "")).assert_refused(status, code);
    }
    assert_eq!(world.backend.count(), known);
}

// ---- what comes back

/// A gateway before a backend that answers by a script.
fn before(script: impl Fn(&mut Exchange) + Send + Sync + 'static) -> World {
    Setup::new().gateway("answer_timeout = \"10s\"", "answer_timeout = \"400ms\"").start(script)
}

#[test]
fn an_early_answer_comes_through_although_the_upload_goes_on() {
    let world = Setup::new().start(|exchange| {
        // Nothing of the body is read first.
        exchange.answer("409 Conflict", "content-type: text/plain\r\n", b"seen enough");
        exchange.read_body();
        exchange.close();
    });
    let mut line = world.alpha();
    line.send("POST /files/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4000000\r\n\r\n");
    line.send(vec![b'x'; 100_000]);
    let answer = line.answer(false);
    assert_eq!((answer.status, answer.text().as_str()), (409, "seen enough"));
}

#[test]
fn the_gateway_says_100_continue_when_it_wants_the_body_and_not_before() {
    let world = World::new();
    let mut line = world.alpha();
    let head = "POST /rest/x HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    line.send(head);
    assert_eq!(line.head().status, 100);
    line.send("hello");
    assert_eq!(line.answer(false).text(), "5");
    assert!(world.backend.only().values("expect").is_empty());
    // A refusal comes at once, and no 100 before it.
    let mut line = world.alpha();
    line.send(head.replace("/rest", "/nowhere"));
    let refusal = line.answer(false);
    assert_eq!(refusal.interim, [0; 0]);
    refusal.assert_refused(403, "no-grant");
    assert_eq!(world.backend.count(), 1);
}

#[test]
fn interim_answers_of_the_backend_stay_behind() {
    let world = before(|exchange| {
        exchange.read_body();
        exchange.write("HTTP/1.1 103 Early Hints\r\nlink: </secret>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
        one_person(exchange);
    });
    let mut line = world.alpha();
    let answer = line.ask(get("/rest/x", ""));
    assert_eq!((answer.interim.as_slice(), answer.status), (&[][..], 200));
    let answer = line.ask(lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#));
    assert_eq!((answer.interim.as_slice(), answer.text().as_str()), (&[][..], ONE_PERSON));
}

#[test]
fn a_failing_backend_is_a_clean_problem_document_with_nothing_of_its_own() {
    const LARGE: &str =
        "HTTP/1.1 200 OK\r\nx-secret: 1\r\ncontent-type: application/json\r\ncontent-length: 9000000\r\n\r\n{\"secret";
    // What the backend sends, and what it does then: it closes, or keeps silent.
    let table: &[(&str, bool, u16, &str)] = &[
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: secret\r\nconnection: upgrade\r\n\r\nsecret",
            true,
            502,
            "backend-failed",
        ),
        ("secret garbage\r\n\r\n", true, 502, "backend-failed"),
        ("HTTP/9.9 200 OK\r\nx-secret: 1\r\n\r\n", true, 502, "backend-failed"),
        ("HTTP/1.1 99999 secret\r\n\r\n", true, 502, "backend-failed"),
        ("HTTP/1.1 200 OK\r\nx-sec", true, 502, "backend-failed"),
        ("HTTP/1.1 200 OK\r\nx-sec", false, 504, "backend-timeout"),
        ("", true, 502, "backend-failed"),
        ("", false, 504, "backend-timeout"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nsecret", true, 502, "backend-failed"),
        ("HTTP/1.1 500 Secret\r\nx-secret: 1\r\ncontent-length: 6\r\n\r\nsecret", true, 502, "backend-failed"),
        ("HTTP/1.1 503 Secret\r\nretry-after: 5\r\nx-secret: 1\r\n\r\nsecret", true, 502, "backend-failed"),
        (LARGE, true, 502, "backend-failed"),
    ];
    for route in ["/rest/x", "/v1/mobile"] {
        for (bytes, closes, status, code) in table.iter().copied() {
            let (_over, held) = mpsc::channel::<()>();
            let held = Mutex::new(held);
            let world = Setup::new()
                .gateway("answer_timeout = \"10s\"", "answer_timeout = \"400ms\"")
                .gateway(
                    "path = \"/rest/**\"\n[route.pass]\n",
                    "path = \"/rest/**\"\n[route.pass]\nanswer_bytes_max = \"1MiB\"\n",
                )
                .start(move |exchange| {
                    exchange.read_body();
                    exchange.write(bytes);
                    if !closes {
                        let _ = held.lock().expect("held").recv_timeout(Duration::from_secs(5));
                    }
                    exchange.close();
                });
            let answer = world.ask(lookup(route, r#"{"mobile":"6412345678","purpose":"care"}"#));
            answer.assert_refused(status, code);
            assert_eq!(answer.values("x-secret").len() + answer.values("upgrade").len(), 0);
            assert!(!format!("{answer:?}{}", answer.text()).contains("ecret"), "{route} {bytes}: {answer:?}");
            drop(_over);
            assert_eq!(world.backend.only().target(), route, "a failed request is not repeated");
        }
    }
}

#[test]
fn a_lookup_answer_that_is_not_what_the_route_declares_is_withheld() {
    let person = format!("{ONE_PERSON} ");
    let padded = ONE_PERSON.replace("A Test", &"secret".repeat(12_000));
    let table: Vec<(&str, String, u16, &str)> = vec![
        // Closed in mid-body.
        ("200 OK\r\ncontent-length: 500", "{\"people\":[\"secret".into(), 502, "backend-failed"),
        ("200 OK\r\ntransfer-encoding: chunked", "ff\r\n{\"people\":[\"secret".into(), 502, "backend-failed"),
        // Too large, announced or not.
        ("200 OK\r\nx-close: 1", padded.clone(), 502, "backend-failed"),
        ("200 OK\r\ncontent-length: 70000", padded, 502, "backend-failed"),
        ("200 OK\r\nx-close: 1", "<html>secret</html>".into(), 502, "backend-failed"),
        ("200 OK\r\nx-close: 1", r#"{"secret":[{"name":"secret"}]}"#.into(), 502, "backend-failed"),
        ("200 OK\r\ncontent-encoding: gzip", "secret".into(), 502, "backend-failed"),
        ("302 Found\r\nlocation: http://secret", String::new(), 502, "backend-failed"),
        ("206 Partial Content", person.clone(), 502, "backend-failed"),
        ("403 Forbidden", r#"{"secret":1}"#.into(), 502, "backend-failed"),
        ("404 Not Found", r#"{"secret":1}"#.into(), 404, "no-match"),
        ("200 OK\r\nx-close: 1", r#"{"people":[]}"#.into(), 404, "no-match"),
    ];
    for (head, body, status, code) in table {
        let bytes = format!("HTTP/1.1 {head}\r\ncontent-type: application/json\r\nx-secret: 1\r\n\r\n{body}");
        let world = Setup::new().start(move |exchange| {
            exchange.read_body();
            exchange.write(&bytes);
            exchange.close();
        });
        let answer = world.ask(lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#));
        answer.assert_refused(status, code);
        assert!(!format!("{answer:?}{}", answer.text()).contains("secret"), "{head}: {answer:?}");
    }
}

#[test]
fn a_passed_answer_that_breaks_off_is_not_made_to_look_whole() {
    // Announced, chunked, and over the cap of two mebibytes without having announced it.
    let large = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(3 << 20));
    for bytes in [
        "HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nhalf".to_owned(),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nff\r\n".to_owned(),
        large,
    ] {
        let world = Setup::new().start(move |exchange| {
            exchange.read_body();
            exchange.write(&bytes);
            exchange.close();
        });
        let mut line = world.alpha();
        line.send(get("/files/a", ""));
        let answer = line.answer(false);
        assert!(answer.status == 200 && !answer.whole && answer.body.len() <= 2 << 20, "{}", answer.body.len());
        line.assert_closed();
        // HTTP/2 says so by a reset of the stream.
        let fetched = world.curl("/files/a", &["--http2"]);
        assert!(matches!(fetched.code, 92 | 18), "{}: {}", fetched.code, fetched.stderr);
    }
}

#[test]
fn a_backend_that_is_down_is_a_502() {
    // A port that is taken and does not listen.
    let taken = tokio::net::TcpSocket::new_v4().expect("socket");
    taken.bind(([127, 0, 0, 1], 0).into()).expect("bind");
    let address = format!("address = \"{}\"", taken.local_addr().expect("address"));
    let world = Setup::new().gateway("address = \"BACKEND\"", &address).start(one_person);
    world.ask(get("/rest/x", "")).assert_refused(502, "backend-failed");
    world
        .ask(lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#))
        .assert_refused(502, "backend-failed");
}

#[test]
fn a_pooled_connection_that_the_backend_closed_costs_nobody_a_request() {
    let (closed, gone) = mpsc::channel();
    let closed = Mutex::new(closed);
    let world = Setup::new().start(move |exchange| {
        one_person(exchange);
        // Says nothing of closing, and closes.
        exchange.close_and_wait();
        closed.lock().expect("closed").send(()).expect("sent");
    });
    let mut line = world.alpha();
    for round in 0..20 {
        let answer = line.ask(lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#));
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        gone.recv_timeout(PATIENCE).expect("the gateway closes its side");
    }
    assert_eq!(world.backend.connections(), 20);
    assert_eq!(world.backend.count(), 20, "none was sent twice");
}

#[test]
fn connections_to_the_backend_are_used_again() {
    let world = World::new();
    let mut line = world.alpha();
    for _ in 0..3 {
        assert_eq!(line.ask(lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#)).status, 200);
        assert_eq!(line.ask(get("/files/megabyte", "")).body.len(), 1 << 20);
        assert_eq!(line.ask(post("/rest/x", "", "hello")).text(), "5");
    }
    world.backend.requests(9);
    assert_eq!(world.backend.connections(), 1);
}

#[test]
fn an_answer_speaks_for_the_backend_only() {
    let world = Setup::new().start(|exchange| {
        exchange.read_body();
        let fields = "Connection: keep-alive, X-Hop\r\nX-Hop: hop\r\nKeep-Alive: hop\r\nProxy-Authenticate: hop\r\n\
                      Upgrade: hop\r\nTrailer: hop\r\nProxy-Status: hop\r\nAlt-Svc: hop\r\nX-Decision-Id: hop\r\n\
                      X-Partner: hop\r\nStrict-Transport-Security: hop\r\nETag: \"kept\"\r\nSet-Cookie: a=kept\r\n\
                      Set-Cookie: b=kept\r\nContent-Type: text/kept\r\nCache-Control: max-age=5\r\n";
        exchange.answer("201 Created", fields, b"kept");
    });
    let answer = world.ask(post("/files/a", "", "hello"));
    assert_eq!((answer.status, answer.text().as_str()), (201, "kept"));
    assert!(!format!("{:?}", answer.headers).contains("hop"), "{:?}", answer.headers);
    assert_eq!(answer.values("set-cookie"), ["a=kept", "b=kept"]);
    assert_eq!(answer.header("etag"), "\"kept\"");
    assert_eq!(answer.header("cache-control"), "max-age=5");
    assert_decision(answer.header("x-decision-id"));
}

#[test]
fn a_lookup_answers_with_known_headers_only() {
    let world = Setup::new().start(|exchange| {
        exchange.read_body();
        let fields = "Content-Type: application/json\r\nContent-Language: hi\r\nContent-Disposition: inline\r\n\
                      Cache-Control: public, max-age=600\r\nExpires: secret\r\nETag: \"secret\"\r\nLast-Modified: secret\r\n\
                      Set-Cookie: secret\r\nServer: secret\r\nX-Debug: secret\r\nLocation: secret\r\nVary: secret\r\n\
                      Access-Control-Allow-Origin: *\r\nLink: </secret>\r\n";
        exchange.answer("200 OK", fields, ONE_PERSON.as_bytes());
    });
    let mut line = world.alpha();
    for request in
        [lookup("/v1/mobile", r#"{"mobile":"6412345678","purpose":"care"}"#), get("/v1/people/12345678901234", CARE)]
    {
        let answer = line.ask(request);
        assert_eq!((answer.status, answer.text().as_str()), (200, ONE_PERSON));
        let mut names: Vec<_> = answer.headers.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.retain(|name| !matches!(*name, "content-length" | "transfer-encoding" | "date"));
        assert_eq!(
            names,
            ["cache-control", "content-disposition", "content-language", "content-type", "x-decision-id"]
        );
        assert_eq!(answer.header("cache-control"), "no-store");
    }
}

// ---- what is counted

#[test]
fn a_person_is_counted_once_whatever_the_notation_and_the_partner_is_told_when_to_come_back() {
    let setup = Setup::new().partner("alpha", "subject = \"100000/s\"", "subject = \"6/h burst 2\"");
    let world = setup.start(one_person);
    let mut line = world.alpha();
    let mut ask =
        |mobile: &str| line.ask(lookup("/v1/mobile", &format!(r#"{{"mobile":"{mobile}","purpose":"care"}}"#)));
    assert_eq!(ask("6412345678").status, 200);
    assert_eq!(ask("+91 64123 45678").status, 200);
    let refused = ask("06412345678");
    refused.assert_refused(429, "rate-limited");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((590..=600).contains(&wait), "{wait}");
    assert_eq!(ask("6512345678").status, 200, "another person");
    // The same person by another route is the same person.
    world.ask(get("/v1/query?mobile=6412345678", "")).assert_refused(429, "rate-limited");
    assert_eq!(world.backend.count(), 3);
}

#[test]
fn a_request_that_is_under_way_takes_a_place_and_gives_it_back_when_its_partner_leaves() {
    for (file, from, to) in [
        ("alpha", "in_flight_max = 1000", "in_flight_max = 1"),
        ("alpha", "route = \"rest\"\n", "route = \"rest\"\nin_flight_max = 1\n"),
    ] {
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        let world = Setup::new().partner(file, from, to).start(move |exchange| {
            exchange.read_body();
            if exchange.request.target() == "/rest/held" {
                let _ = held.lock().expect("held").recv_timeout(Duration::from_secs(15));
            }
            exchange.answer("200 OK", "", b"done");
        });
        let mut waiting = world.alpha();
        waiting.send(get("/rest/held", ""));
        world.backend.requests(1);
        let refused = world.ask(get("/rest/x", ""));
        refused.assert_refused(429, "too-many-in-flight");
        assert!(refused.header("retry-after").parse::<u64>().expect("seconds") >= 1);
        world.backend.requests(1);
        // The backend still works on it; the partner is gone.
        waiting.hang_up();
        eventually("the place comes back", || world.ask(get("/rest/x", "")).status == 200);
        assert_eq!(world.metric("dwarpal_requests_in_flight{partner=\"alpha\"}"), 0.0);
        drop(release);
    }
}

#[test]
fn an_answer_that_is_not_read_to_its_end_takes_its_place_until_then() {
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let setup = Setup::new().partner("alpha", "in_flight_max = 1000", "in_flight_max = 1");
    let world = setup.start(move |exchange| {
        exchange.write("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf");
        let _ = held.lock().expect("held").recv_timeout(Duration::from_secs(15));
        exchange.write("half");
    });
    let mut waiting = world.alpha();
    waiting.send(get("/rest/held", ""));
    let head = waiting.head();
    assert_eq!(head.status, 200);
    world.ask(get("/rest/x", "")).assert_refused(429, "too-many-in-flight");
    drop(release);
    while waiting.taken().is_empty() {
        assert!(waiting.more().expect("more"));
    }
    eventually("the place comes back", || world.ask(get("/rest/x", "")).status == 200);
}

/// A backend that is lenient about case, slashes at the end or what follows would take such a path for a lookup, and
/// somebody would be looked up uncounted.
#[test]
fn a_pass_route_is_no_way_around_a_lookup() {
    // The same server under one name or two, through an open route and through narrow ones.
    let twin = "\n[[backend]]\nname = \"twin\"\naddress = \"BACKEND\"\nhost = \"twin.internal\"\n";
    for (backend, section) in [("registry", ""), ("twin", twin)] {
        let route = |name: &str, methods: &str, path: &str| {
            format!("\n[[route]]\nname = {name:?}\nbackend = {backend:?}\nmethods = {methods}\npath = {path:?}\n")
        };
        let open = route("all", "[\"GET\", \"POST\"]", "/v1/**");
        let narrow = route("one", "[\"POST\"]", "/{y}/{x}") + &route("slash", "[\"POST\"]", "/v1/{x}/");
        is_no_way_around(section, &open, &["all"]);
        is_no_way_around(section, &narrow, &["one", "slash"]);
    }
}

fn is_no_way_around(section: &str, routes: &str, names: &[&str]) {
    let grant = "[[grant]]\nroute = \"rest\"\n";
    let grants: String = names.iter().map(|name| format!("[[grant]]\nroute = \"{name}\"\n")).collect();
    let anchor = "\n[[route]]\nname = \"mobile\"";
    let setup = Setup::new().gateway(anchor, &format!("{section}{anchor}"));
    let world = setup.section(routes).partner("alpha", grant, &format!("{grant}{grants}")).start(one_person);
    let body = r#"{"mobile":"6412345678","purpose":"care"}"#;
    let length = body.len();
    let post = |path: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
        world.ask(format!("{head}content-length: {length}\r\n\r\n{body}"))
    };
    for path in [
        "/v1/mobile/",
        "/v1/mobile//",
        "/v1/Mobile",
        "/v1/MOBILE/",
        "/v1/mobile/x",
        "/v1/%4dobile",
        "/v1/mob%C4%B0le",
        "/v1/mobile.",
        "/v1/mobile%20",
        "/v1/mobile%2e%20/",
        "/v1/mobile%3Fa=b",
        "/v1/mobile%23",
        "/v1/mobile;x",
        "/v1/mobile%3bx",
        "/v1/mobile.json",
        "/v1/Mobile.json/",
        "/V1/mobile",
    ] {
        let refused = post(path);
        assert!(matches!(refused.status, 400 | 403), "{path} of {routes}: {refused:?}");
    }
    for path in ["/v1/mobile", "/v1/people/12345678901234/", "/v1/people/12345678901234/x", "/v1/People/12345678901234"]
    {
        world.ask(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n")).assert_refused(403, "no-grant");
    }
    world.backend.assert_untouched();
    assert_eq!((post("/v1/mobiles").status, world.backend.count()), (200, 1));
}
