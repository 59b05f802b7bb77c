//! What does the second synthetic backend, the vaccine stock of facilities, answer?

use std::collections::BTreeMap;

use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::IgnoredAny;

use super::backend::{Answer, draw, is_digits, json, refusal, wrong_method};

/// Of a list of movements. A larger body is refused with 413.
pub const BODY_BYTES_MAX: usize = 1 << 20;

#[derive(Serialize)]
struct Stock<'a> {
    facility_id: &'a str,
    updated: String,
    cold_chain_celsius: f64,
    vaccines: Vec<Vaccine>,
}

#[derive(Serialize)]
struct Vaccine {
    vaccine: &'static str,
    batch: String,
    expires: String,
    doses_available: u32,
}

#[derive(Serialize)]
struct Receipt {
    accepted: usize,
}

/// `/v1/facilities/{id}/stock` with an id of 3 to 10 digits: GET 200, POST of a JSON list of objects 202 with their
/// number. Otherwise 400, 404 or 405. No stock changes by a movement: the same question has the same answer always.
pub fn respond(head: &Parts, body: &[u8]) -> Response<Answer> {
    let path: Vec<&str> = head.uri.path().split('/').collect();
    let ["", "v1", "facilities", id, "stock"] = path.as_slice() else {
        return refusal(StatusCode::NOT_FOUND, "not found");
    };
    if !is_digits(id, 3..=10) {
        return refusal(StatusCode::NOT_FOUND, "not found");
    }
    match head.method {
        Method::GET => json(StatusCode::OK, &stock(id)),
        Method::POST => accept(body),
        _ => wrong_method("GET, POST"),
    }
}

fn accept(body: &[u8]) -> Response<Answer> {
    // A movement is any object: this backend counts, it does not keep books.
    match serde_json::from_slice::<Vec<BTreeMap<String, IgnoredAny>>>(body) {
        Ok(movements) => json(StatusCode::ACCEPTED, &Receipt { accepted: movements.len() }),
        Err(_) => refusal(StatusCode::BAD_REQUEST, "body is not a list of movements"),
    }
}

fn stock(id: &str) -> Stock<'_> {
    let drawn = draw(&["stock", id]);
    let vaccine = |index: usize, vaccine: &'static str| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|offset| drawn[8 + 4 * index + offset]);
        Vaccine {
            vaccine,
            batch: format!("SYN{:05}", u16::from_be_bytes([a, b])),
            expires: format!("2022-{:02}-{:02}", 1 + c % 12, 1 + d % 28),
            doses_available: 10 * u32::from(a ^ c),
        }
    };
    Stock {
        facility_id: id,
        updated: format!("2021-{:02}-{:02}", 7 + drawn[0] % 6, 1 + drawn[1] % 28),
        // Between 2.0 and 8.0, the cold chain of these vaccines.
        cold_chain_celsius: f64::from(20 + drawn[2] % 61) / 10.0,
        vaccines: vec![vaccine(0, "COVISHIELD"), vaccine(1, "COVAXIN"), vaccine(2, "CORBEVAX")],
    }
}

#[cfg(test)]
mod tests {
    use super::super::backend::Site;
    use super::super::backend::tests::ask;

    fn ask_stock(method: &str, target: &str, body: &str) -> (u16, String) {
        let (status, _, body) = ask(Site::Stock, method, target, body.as_bytes());
        (status.as_u16(), String::from_utf8(body.to_vec()).unwrap())
    }

    #[test]
    fn table() {
        let stock = "/v1/facilities/70012/stock";
        let table = [
            ("GET", stock, "", 200),
            ("GET", "/v1/facilities/700/stock?day=1", "", 200),
            ("GET", "/v1/facilities/1234567890/stock", "", 200),
            ("GET", "/v1/facilities/12/stock", "", 404),
            ("GET", "/v1/facilities/12345678901/stock", "", 404),
            ("GET", "/v1/facilities/7001x/stock", "", 404),
            ("GET", "/v1/facilities/70012/stock/", "", 404),
            ("GET", "/v1/facilities", "", 404),
            ("GET", "/v1/lookup/mobile", "", 404),
            ("DELETE", stock, "", 405),
            ("POST", stock, "", 400),
            ("POST", stock, "{}", 400),
            ("POST", stock, "[1]", 400),
            ("POST", stock, "[{}] x", 400),
            ("POST", stock, "[]", 202),
        ];
        for (method, target, body, expected) in table {
            assert_eq!(ask_stock(method, target, body).0, expected, "{method} {target} {body}");
        }
    }

    #[test]
    fn movements_are_counted() {
        let list = r#"[{"batch":"B1","doses":-10},{"batch":"B2","doses":5,"note":["]","}"]},{}]"#;
        assert_eq!(ask_stock("POST", "/v1/facilities/70012/stock", list), (202, r#"{"accepted":3}"#.to_owned()));
    }

    #[test]
    fn stock_follows_from_the_id() {
        let (_, first) = ask_stock("GET", "/v1/facilities/70012/stock", "");
        assert_eq!(ask_stock("GET", "/v1/facilities/70012/stock", "").1, first);
        assert_ne!(ask_stock("GET", "/v1/facilities/70013/stock", "").1, first);
        let parsed: serde_json::Value = serde_json::from_str(&first).unwrap();
        assert_eq!(parsed["facility_id"], "70012");
        assert!((2.0..=8.0).contains(&parsed["cold_chain_celsius"].as_f64().unwrap()));
        assert_eq!(parsed["vaccines"].as_array().unwrap().len(), 3);
        assert!(parsed["vaccines"][0]["doses_available"].is_u64() && parsed["updated"].is_string());
    }
}
