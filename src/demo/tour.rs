//! The guided tour: real requests over real mutual TLS, what they were answered, and whether that was right.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, Response};
use rustls::ClientConfig;
use serde_json::Value;

use super::backend::World;
use super::registry::{AADHAAR_OF_ONE, MOBILE_OF_NOBODY, MOBILE_OF_TWO, REFERENCES};
use crate::net::client::{self, Reply};

/// One stop: a request, and what it has to come to.
struct Stop {
    title: &'static str,
    certificate: &'static str,
    /// Last byte of the loopback address that it is sent from.
    from: u8,
    method: &'static str,
    path: String,
    headers: &'static [(&'static str, &'static str)],
    body: String,
    expect: Expect,
}

enum Expect {
    /// This status, and the body holds this text (of a refusal: its public code).
    Answer(u16, &'static str),
    /// Closed with an error that holds this text.
    Refused(&'static str),
}

use Expect::{Answer, Refused};

const ACTOR: &[(&str, &str)] = &[("x-actor", "hw-1042"), ("content-type", "application/json")];
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const MOBILE: &str = "/v1/lookup/mobile";
const AADHAAR: &str = "/v1/lookup/aadhaar";

/// Walks the tour and prints it. `Ok(true)`: every stop gave what it should.
pub fn guide(gateway: SocketAddr, certs: &Path, registry: &World) -> Result<bool, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    println!(
        "\nThe gateway listens on https://localhost:{} and answers partners with client certificates.\n",
        gateway.port()
    );
    let stops = stops();
    let mut right = 0;
    for (at, stop) in stops.iter().enumerate() {
        let file = |end: &str| certs.join(format!("{}.{end}", stop.certificate));
        let identity = client::identity(&certs.join("ca.pem"), &file("pem"), &file("key"))?;
        println!("{:>2}. {}", at + 1, stop.title);
        println!("    {} from 127.0.0.{}: {} {} {}", stop.certificate, stop.from, stop.method, stop.path, stop.body);
        let reply = runtime.block_on(ask(&identity, gateway, stop))?;
        let as_expected = fits(&reply, &stop.expect);
        right += usize::from(as_expected);
        for line in describe(&reply) {
            println!("    {line}");
        }
        if !as_expected {
            println!("    THIS IS NOT WHAT IT SHOULD BE");
        }
        println!();
    }
    let asked: Vec<_> = registry.seen().iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect();
    println!("The registry was asked {} times, only for what was allowed: {}.", asked.len(), asked.join(", "));
    println!("{right} of {} steps gave what they should.\n", stops.len());
    Ok(right == stops.len())
}

fn stops() -> Vec<Stop> {
    let mobile = |id: &str| format!(r#"{{"mobile":"{id}","purpose":"care"}}"#);
    let aadhaar = |id: &str| format!(r#"{{"aadhaar":"{id}","purpose":"public-health"}}"#);
    let lookup = |title, path: &str, body: String, expect| Stop {
        title,
        certificate: "icmr",
        from: 1,
        method: "POST",
        path: path.to_owned(),
        headers: ACTOR,
        body,
        expect,
    };
    let get = |title, certificate, from, path: String, headers, expect| Stop {
        title,
        certificate,
        from,
        method: "GET",
        path,
        headers,
        body: String::new(),
        expect,
    };
    let whoami = || "/.well-known/dwarpal/whoami".to_owned();
    let mut stops = vec![
        get("Who does the gateway take us for?", "icmr", 1, whoami(), &[], Answer(200, r#""partner":"icmr""#)),
        lookup(
            "An allowed lookup, however the number is written",
            MOBILE,
            mobile("+91 64123-45678"),
            Answer(200, "beneficiaries"),
        ),
        lookup(
            "An allowed lookup by Aadhaar number",
            AADHAAR,
            aadhaar(AADHAAR_OF_ONE[0]),
            Answer(200, "beneficiaries"),
        ),
        lookup("Somebody who is not registered", MOBILE, mobile(MOBILE_OF_NOBODY), Answer(404, "no-match")),
        lookup("A malformed number", MOBILE, mobile("64123"), Answer(422, "identifier-invalid")),
        lookup("A bad check digit", AADHAAR, aadhaar("999941057059"), Answer(422, "identifier-invalid")),
        lookup(
            "A second identifier that nobody declared",
            MOBILE,
            format!(r#"{{"mobile":"{MOBILE_OF_TWO}","aadhaar":"{}","purpose":"care"}}"#, AADHAAR_OF_ONE[0]),
            Answer(400, "body-invalid"),
        ),
        lookup(
            "A purpose that was not granted",
            MOBILE,
            format!(r#"{{"mobile":"{MOBILE_OF_TWO}","purpose":"marketing"}}"#),
            Answer(403, "purpose-not-granted"),
        ),
        Stop {
            headers: JSON,
            ..lookup("Nobody who stands behind it", MOBILE, mobile(MOBILE_OF_TWO), Answer(400, "actor-missing"))
        },
        Stop {
            from: 2,
            ..lookup(
                "From another partner's network",
                MOBILE,
                mobile(MOBILE_OF_TWO),
                Answer(403, "network-not-allowed"),
            )
        },
        Stop {
            from: 9,
            ..lookup("From nobody's network: closed before TLS", MOBILE, mobile(MOBILE_OF_TWO), Refused(""))
        },
        Stop {
            certificate: "state-health",
            from: 2,
            ..lookup("A partner without that grant", MOBILE, mobile(MOBILE_OF_TWO), Answer(403, "no-grant"))
        },
        get("A revoked certificate", "revoked", 1, whoami(), &[], Refused("CertificateRevoked")),
        get("An expired certificate", "expired", 1, whoami(), &[], Refused("CertificateExpired")),
        get("A certificate of a foreign CA", "foreign", 1, whoami(), &[], Refused("UnknownCA")),
        get(
            "A certificate download, streamed",
            "state-health",
            3,
            format!("/v1/certificates/{}", REFERENCES[0]),
            &[("x-purpose", "certificate")],
            Answer(200, "%PDF"),
        ),
        get(
            "Facility stock from another backend",
            "state-health",
            3,
            "/v1/facilities/4711/stock".to_owned(),
            &[],
            Answer(200, "4711"),
        ),
        Stop {
            title: "A stock update, passed through",
            certificate: "state-health",
            from: 3,
            method: "POST",
            path: "/v1/facilities/4711/stock".to_owned(),
            headers: JSON,
            body: r#"[{"vaccine":"COVAXIN","doses":-3}]"#.to_owned(),
            expect: Answer(202, "accepted"),
        },
    ];
    // One of the three that icmr may ask for at once about one person is used up by the tour's second stop.
    for expect in [Answer(200, "beneficiaries"), Answer(200, "beneficiaries"), Answer(429, "rate-limited")] {
        stops.push(lookup("The same person again and again", MOBILE, mobile(MOBILE_OF_TWO), expect));
    }
    stops
}

async fn ask(identity: &Arc<ClientConfig>, gateway: SocketAddr, stop: &Stop) -> Result<Reply, String> {
    let mut request = Request::builder().method(stop.method).uri(&stop.path).header("host", "localhost");
    for (name, value) in stop.headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(stop.body.clone()))).map_err(|error| error.to_string())?;
    client::send(identity, IpAddr::V4(Ipv4Addr::new(127, 0, 0, stop.from)), gateway, request).await
}

fn fits(reply: &Reply, expect: &Expect) -> bool {
    match (reply, expect) {
        (Reply::Answer(response), Answer(status, text)) => {
            let held = response.body().windows(text.len()).any(|window| window == text.as_bytes());
            response.status().as_u16() == *status && held && response.headers().contains_key("x-decision-id")
        }
        (Reply::Refused(error), Refused(text)) => error.contains(text),
        _ => false,
    }
}

/// The answer in a line or two: of a refusal its reason, of an answer its beginning.
fn describe(reply: &Reply) -> Vec<String> {
    let response: &Response<Bytes> = match reply {
        Reply::Refused(error) => return vec![format!("-> connection refused: {error}")],
        Reply::Answer(response) => response,
    };
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let mut lines = Vec::new();
    let body = response.body();
    if header("content-type") == "application/problem+json" {
        let problem: Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |key: &str| problem[key].as_str().unwrap_or("").to_owned();
        let code = text("type").rsplit(':').next().unwrap_or("").to_owned();
        lines.push(format!("-> {} {code}: {}", response.status().as_u16(), text("title")));
        if !header("retry-after").is_empty() {
            lines.push(format!("   Retry-After: {} s", header("retry-after")));
        }
    } else {
        let kind = header("content-type");
        lines.push(format!("-> {} {kind}, {} bytes", response.status().as_u16(), body.len()));
        if kind == "application/json" {
            let text = String::from_utf8_lossy(body);
            let beginning: String = text.chars().take(100).collect();
            let more = if beginning.len() < text.len() { " …" } else { "" };
            lines.push(format!("   {beginning}{more}"));
        }
    }
    lines.push(format!("   decision {}", header("x-decision-id")));
    lines
}
