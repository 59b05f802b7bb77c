//! Who is in the synthetic registry, and what does it answer? Everything follows from the id that was asked for.

use http_body_util::Full;
use hyper::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::backend::{Answer, draw, is_digits, json, refusal, wrong_method};
use super::certificate::Certificate;

/// Of any request. A larger body is refused with 413.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Two people answer to this mobile number; its prefix is not allocated to any operator.
pub const MOBILE_OF_TWO: &str = "6412345678";
/// People answer to this one too; the tour leaves it alone, for whoever tries afterwards.
pub const MOBILE_TO_TRY: &str = "6512345678";
/// Nobody answers to this one.
pub const MOBILE_OF_NOBODY: &str = "6412300001";
/// UIDAI's published test numbers; one person answers to each.
pub const AADHAAR_OF_ONE: [&str; 3] = ["999941057058", "999971658847", "999933119405"];
/// Beneficiary references that exist.
pub const REFERENCES: [&str; 2] = ["12345678901234", "1234567890123"];

/// A beneficiary in the shape that clients of the real registry read. Ids are masked but for the reference.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Person {
    pub beneficiary_reference_id: String,
    pub name: String,
    pub birth_year: String,
    pub gender: &'static str,
    pub mobile_number: String,
    pub photo_id_type: &'static str,
    pub photo_id_number: String,
    pub comorbidity_ind: &'static str,
    pub vaccination_status: &'static str,
    pub vaccine: &'static str,
    pub dose1_date: String,
    pub dose2_date: String,
    pub appointments: Vec<Appointment>,
}

#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct Appointment {
    pub appointment_id: String,
    pub center_id: u32,
    pub name: String,
    pub state_name: &'static str,
    pub district_name: &'static str,
    pub block_name: &'static str,
    pub pincode: u32,
    pub dose: u8,
    pub session_id: String,
    pub date: String,
    pub slot: &'static str,
}

/// The answer to one request:
///
/// - `POST /v1/lookup/mobile` `{"mobile":"<10 digits>"}` and `POST /v1/lookup/aadhaar` `{"aadhaar":"<12 digits>"}`;
///   other members are ignored. 200 `{"beneficiaries":[…]}`, 404 for nobody, 400 for any other body
/// - `GET /v1/beneficiaries/{reference}`, 13 or 14 digits: the same with one person
/// - `GET` and `HEAD` `/v1/certificates/{reference}`: a PDF of some 100 KiB in chunks, or 404
/// - 405 for another method on these, 404 for all else
pub fn respond(head: &Parts, body: &[u8]) -> Response<Answer> {
    let path: Vec<&str> = head.uri.path().split('/').collect();
    match (path.as_slice(), &head.method) {
        (["", "v1", "lookup", "mobile"], &Method::POST) => match serde_json::from_slice(body) {
            Ok(ByMobile { mobile }) if is_digits(&mobile, 10..=10) => people(by_mobile(&mobile)),
            _ => refusal(StatusCode::BAD_REQUEST, "body is not a lookup by mobile"),
        },
        (["", "v1", "lookup", "aadhaar"], &Method::POST) => match serde_json::from_slice(body) {
            Ok(ByAadhaar { aadhaar }) if is_digits(&aadhaar, 12..=12) => people(by_aadhaar(&aadhaar)),
            _ => refusal(StatusCode::BAD_REQUEST, "body is not a lookup by aadhaar"),
        },
        (["", "v1", "lookup", "mobile" | "aadhaar"], _) => wrong_method("POST"),
        (["", "v1", "beneficiaries", reference], &Method::GET) => people(person(reference).into_iter().collect()),
        (["", "v1", "beneficiaries", _], _) => wrong_method("GET"),
        (["", "v1", "certificates", reference], &Method::GET | &Method::HEAD) => match person(reference) {
            Some(person) => certificate(&person, &head.method),
            None => refusal(StatusCode::NOT_FOUND, "no beneficiary"),
        },
        (["", "v1", "certificates", _], _) => wrong_method("GET, HEAD"),
        _ => refusal(StatusCode::NOT_FOUND, "not found"),
    }
}

/// The person of a beneficiary reference; `None` for one that is not 13 or 14 digits, and for about every second one.
pub fn person(reference: &str) -> Option<Person> {
    exists(reference).then(|| describe(reference))
}

#[derive(Deserialize)]
struct ByMobile {
    mobile: String,
}

#[derive(Deserialize)]
struct ByAadhaar {
    aadhaar: String,
}

#[derive(Serialize)]
struct Beneficiaries {
    beneficiaries: Vec<Person>,
}

const GIVEN_NAMES: [(&str, &str); 24] = [
    ("Aarav", "Male"),
    ("Aditi", "Female"),
    ("Amit", "Male"),
    ("Ananya", "Female"),
    ("Arjun", "Male"),
    ("Asha", "Female"),
    ("Deepak", "Male"),
    ("Divya", "Female"),
    ("Farhan", "Male"),
    ("Fatima", "Female"),
    ("Gurpreet", "Male"),
    ("Harpreet", "Female"),
    ("Joseph", "Male"),
    ("Kavita", "Female"),
    ("Manoj", "Male"),
    ("Lakshmi", "Female"),
    ("Rahul", "Male"),
    ("Meena", "Female"),
    ("Sanjay", "Male"),
    ("Mary", "Female"),
    ("Suresh", "Male"),
    ("Priya", "Female"),
    ("Vikram", "Male"),
    ("Sunita", "Female"),
];
const FAMILY_NAMES: [&str; 20] = [
    "Ahmed",
    "Bose",
    "Chatterjee",
    "Das",
    "Fernandes",
    "Gupta",
    "Iyer",
    "Joshi",
    "Khan",
    "Kumar",
    "Mehta",
    "Nair",
    "Patel",
    "Rao",
    "Reddy",
    "Sharma",
    "Singh",
    "Thomas",
    "Verma",
    "Yadav",
];
/// State, district, block, postal code.
const PLACES: [(&str, &str, &str, u32); 8] = [
    ("Bihar", "Patna", "Danapur", 801_503),
    ("Delhi", "New Delhi", "Karol Bagh", 110_005),
    ("Karnataka", "Mysuru", "Nanjangud", 571_301),
    ("Kerala", "Ernakulam", "Aluva", 683_101),
    ("Maharashtra", "Pune", "Haveli", 411_028),
    ("Rajasthan", "Jaipur", "Amber", 302_028),
    ("Tamil Nadu", "Madurai", "Melur", 625_106),
    ("West Bengal", "Hooghly", "Chinsurah", 712_101),
];
const VACCINES: [&str; 3] = ["COVISHIELD", "COVAXIN", "CORBEVAX"];
const SLOTS: [&str; 4] = ["09:00AM-11:00AM", "11:00AM-01:00PM", "01:00PM-03:00PM", "03:00PM-06:00PM"];

fn people(beneficiaries: Vec<Person>) -> Response<Answer> {
    if beneficiaries.is_empty() {
        return refusal(StatusCode::NOT_FOUND, "no beneficiary");
    }
    json(StatusCode::OK, &Beneficiaries { beneficiaries })
}

fn certificate(person: &Person, method: &Method) -> Response<Answer> {
    let body = match *method {
        Method::HEAD => Answer::Whole(Full::default()),
        _ => Answer::Certificate(Certificate::of(person)),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/pdf"));
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"certificate.pdf\""));
    response
}

/// Nobody for one number in four, else up to six people: the real registry's cap, and mostly far fewer.
fn by_mobile(mobile: &str) -> Vec<Person> {
    let drawn = draw(&["mobile", mobile]);
    let count = match mobile {
        MOBILE_OF_TWO => 2,
        MOBILE_OF_NOBODY => 0,
        _ => match drawn[0] {
            0..=63 => 0,
            64..=159 => 1,
            160..=207 => 2,
            208..=231 => 3,
            232..=243 => 4,
            244..=249 => 5,
            250..=255 => 6,
        },
    };
    (0..count)
        .map(|index| {
            let aadhaar_tail = u16::from_be_bytes([drawn[1 + 2 * index], drawn[2 + 2 * index]]) % 10_000;
            describe(&reference(&format!("mobile {mobile} {index}"), &format!("{aadhaar_tail:04}"), &mobile[6..]))
        })
        .collect()
}

fn by_aadhaar(aadhaar: &str) -> Vec<Person> {
    let drawn = draw(&["aadhaar", aadhaar]);
    let [a, b, c, d, ..] = drawn;
    if !AADHAAR_OF_ONE.contains(&aadhaar) && u16::from_be_bytes([a, b]) % 100 != 0 {
        return Vec::new();
    }
    let mobile_tail = format!("{:04}", u16::from_be_bytes([c, d]) % 10_000);
    vec![describe(&reference(&format!("aadhaar {aadhaar}"), &aadhaar[8..], &mobile_tail))]
}

/// A reference that exists and ends in the last four digits of both ids, so that a person found by an id and then by
/// the reference is one and the same, with nothing kept anywhere.
fn reference(seed: &str, aadhaar_tail: &str, mobile_tail: &str) -> String {
    // Every second number exists: a search this long fails once in 2^64, and then a known person answers.
    (0..64)
        .map(|attempt| {
            let [a, b, c, d, ..] = draw(&["reference", seed, &attempt.to_string()]);
            let number = 100_000 + u32::from_be_bytes([a, b, c, d]) % 900_000;
            format!("{number}{aadhaar_tail}{mobile_tail}")
        })
        .find(|reference| exists(reference))
        .unwrap_or_else(|| REFERENCES[0].to_owned())
}

fn exists(reference: &str) -> bool {
    if !is_digits(reference, 13..=14) {
        return false;
    }
    REFERENCES.contains(&reference) || draw(&["beneficiary", reference])[0].is_multiple_of(2)
}

/// `reference` has 13 or 14 digits.
fn describe(reference: &str) -> Person {
    let drawn = draw(&["person", reference]);
    let (given, gender) = GIVEN_NAMES[usize::from(drawn[0]) % GIVEN_NAMES.len()];
    let family = FAMILY_NAMES[usize::from(drawn[1]) % FAMILY_NAMES.len()];
    let (head, mobile_tail) = reference.split_at(reference.len() - 4);
    let aadhaar_tail = &head[head.len() - 4..];
    let vaccine = VACCINES[usize::from(drawn[2]) % VACCINES.len()];
    let first_month = 3 + drawn[3] % 5;
    let dose1 = format!("{:02}-{first_month:02}-2021", 1 + drawn[4] % 28);
    let dose2 = format!("{:02}-{:02}-2021", 1 + drawn[5] % 28, first_month + 3);
    let (status, vaccine, dose1_date, dose2_date) = match drawn[6] % 8 {
        0 => ("Not Vaccinated", "", String::new(), String::new()),
        1 | 2 => ("Partially Vaccinated", vaccine, dose1.clone(), String::new()),
        _ => ("Vaccinated", vaccine, dose1.clone(), dose2),
    };
    Person {
        beneficiary_reference_id: reference.to_owned(),
        name: format!("{given} {family}"),
        birth_year: (1935 + u32::from(drawn[7]) % 72).to_string(),
        gender,
        mobile_number: format!("XXXXXX{mobile_tail}"),
        photo_id_type: "Aadhaar Card",
        photo_id_number: format!("XXXXXXXX{aadhaar_tail}"),
        comorbidity_ind: if drawn[8].is_multiple_of(5) { "Y" } else { "N" },
        vaccination_status: status,
        vaccine,
        dose1_date,
        dose2_date,
        appointments: vec![appointment(&drawn, dose1)],
    }
}

/// The appointment of the first dose.
fn appointment(drawn: &[u8; 32], date: String) -> Appointment {
    let (state_name, district_name, block_name, pincode) = PLACES[usize::from(drawn[9]) % PLACES.len()];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let number = u16::from_be_bytes([drawn[10], drawn[11]]);
    Appointment {
        appointment_id: hex(&drawn[12..22]),
        center_id: 100_000 + u32::from(number),
        name: format!("{block_name} synthetic health centre {}", 1 + number % 40),
        state_name,
        district_name,
        block_name,
        pincode,
        dose: 1,
        session_id: hex(&drawn[22..32]),
        date,
        slot: SLOTS[usize::from(drawn[11]) % SLOTS.len()],
    }
}

#[cfg(test)]
mod tests {
    use hyper::body::Bytes;
    use proptest::prelude::*;
    use serde_json::Value;

    use super::super::backend::Site;
    use super::super::backend::tests::ask;
    use super::*;

    fn ask_registry(method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, headers, body) = ask(Site::Registry, method, target, body.as_bytes());
        assert_eq!(headers[CONTENT_TYPE], "application/json", "{method} {target}");
        (status.as_u16(), serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn routes() {
        let mobile = "/v1/lookup/mobile";
        let aadhaar = "/v1/lookup/aadhaar";
        let table = [
            ("POST", mobile, r#"{"mobile":"6412345678"}"#, 200),
            ("POST", mobile, r#"{"mobile":"6412345678","purpose":"care","aadhaar":"999941057058"}"#, 200),
            ("POST", mobile, r#"{"mobile":"6412300001"}"#, 404),
            ("POST", mobile, r#"{"mobile":"6412300001","aadhaar":"999941057058"}"#, 404),
            ("POST", mobile, r#"{"aadhaar":"999941057058"}"#, 400),
            ("POST", mobile, r#"{"mobile":"6412345678","mobile":"6412345678"}"#, 400),
            ("POST", mobile, r#"{"mobile":["6412345678"]}"#, 400),
            ("POST", mobile, r#"{"mobile":6412345678}"#, 400),
            ("POST", mobile, r#"{"mobile":"+916412345678"}"#, 400),
            ("POST", mobile, r#"{"mobile":"६४१२३४५६७८"}"#, 400),
            ("POST", mobile, "mobile=6412345678", 400),
            ("POST", mobile, "", 400),
            ("GET", mobile, "", 405),
            ("POST", "/v1/lookup/mobile/", r#"{"mobile":"6412345678"}"#, 404),
            ("POST", "/v1/lookup/pan", "{}", 404),
            ("POST", aadhaar, r#"{"aadhaar":"999941057058"}"#, 200),
            ("POST", aadhaar, r#"{"aadhaar":"999971658847"}"#, 200),
            ("POST", aadhaar, r#"{"aadhaar":"999933119405"}"#, 200),
            ("POST", aadhaar, r#"{"aadhaar":"9999 4105 7058"}"#, 400),
            ("POST", aadhaar, r#"{"mobile":"6412345678"}"#, 400),
            ("PUT", aadhaar, "", 405),
            ("GET", "/v1/beneficiaries/12345678901234", "", 200),
            ("GET", "/v1/beneficiaries/1234567890123?x=1", "", 200),
            ("GET", "/v1/beneficiaries/123456789012", "", 404),
            ("GET", "/v1/beneficiaries/123456789012345", "", 404),
            ("GET", "/v1/beneficiaries/%312345678901234", "", 404),
            ("GET", "/v1/beneficiaries/", "", 404),
            ("DELETE", "/v1/beneficiaries/12345678901234", "", 405),
            ("GET", "/v1/certificates/123", "", 404),
            ("POST", "/v1/certificates/12345678901234", "", 405),
            ("GET", "/", "", 404),
            ("OPTIONS", "*", "", 404),
        ];
        for (method, target, body, expected) in table {
            assert_eq!(ask_registry(method, target, body).0, expected, "{method} {target} {body}");
        }
    }

    #[test]
    fn refusals_are_json_and_echo_nothing() {
        let (status, answer) = ask_registry("POST", "/v1/lookup/mobile", r#"{"mobile":"6412300001"}"#);
        assert_eq!((status, answer), (404, serde_json::json!({"error": "no beneficiary"})));
        let (_, headers, _) = ask(Site::Registry, "GET", "/v1/lookup/mobile", b"");
        assert_eq!(headers["allow"], "POST");
        let to_try = format!(r#"{{"mobile":"{MOBILE_TO_TRY}"}}"#);
        assert_eq!(ask_registry("POST", "/v1/lookup/mobile", &to_try).0, 200);
        let (_, answer) = ask_registry("POST", "/v1/lookup/mobile", r#"{"mobile":"64123456789"}"#);
        assert!(!answer.to_string().contains("6412345678"));
    }

    #[test]
    fn a_person_is_the_same_by_every_id_and_masked_but_for_the_reference() {
        let (_, answer) = ask_registry("POST", "/v1/lookup/mobile", r#"{"mobile":"6412345678"}"#);
        let people = answer["beneficiaries"].as_array().unwrap();
        assert_eq!(people.len(), 2);
        assert_ne!(people[0], people[1]);
        let (_, answer) = ask_registry("POST", "/v1/lookup/aadhaar", r#"{"aadhaar":"999941057058"}"#);
        let by_aadhaar = &answer["beneficiaries"][0];
        assert_eq!(by_aadhaar["photo_id_number"], "XXXXXXXX7058");
        for person in people.iter().chain([by_aadhaar]) {
            let reference = person["beneficiary_reference_id"].as_str().unwrap();
            let (status, again) = ask_registry("GET", &format!("/v1/beneficiaries/{reference}"), "");
            assert_eq!((status, &again["beneficiaries"][0]), (200, person));
        }
        assert!(people.iter().all(|person| person["mobile_number"] == "XXXXXX5678"));
        let text = serde_json::to_string(people).unwrap();
        assert!(!text.contains("6412345678"));
    }

    #[test]
    fn a_record_has_the_fields_and_the_size_of_a_real_one() {
        for number in 0..200 {
            let person = describe(&format!("{}", 20_000_000_000_000u64 + number));
            let text = serde_json::to_string(&person).unwrap();
            assert!((500..=750).contains(&text.len()), "{} bytes", text.len());
        }
        let person = serde_json::to_value(describe(REFERENCES[0])).unwrap();
        let fields = "beneficiary_reference_id name birth_year gender mobile_number photo_id_type photo_id_number \
                      comorbidity_ind vaccination_status vaccine dose1_date dose2_date";
        assert!(fields.split_whitespace().all(|field| person[field].is_string()), "{person}");
        let fields =
            "appointment_id center_id name state_name district_name block_name pincode dose session_id date slot";
        assert!(fields.split(' ').all(|field| !person["appointments"][0][field].is_null()), "{person}");
    }

    #[test]
    fn the_promised_shares_of_ids_exist() {
        let mobiles: Vec<usize> =
            (0..4000).map(|number| by_mobile(&(6_410_000_000u64 + number * 7919).to_string()).len()).collect();
        let found = mobiles.iter().filter(|&&people| people > 0).count();
        assert!((2850..=3150).contains(&found), "{found} of 4000 mobiles");
        assert!((1..=6).all(|people| mobiles.contains(&people)) && mobiles.iter().all(|&people| people <= 6));
        let aadhaar = (0..10_000).filter(|number| !by_aadhaar(&format!("9999{number:08}")).is_empty()).count();
        assert!((60..=140).contains(&aadhaar), "{aadhaar} of 10000 aadhaar numbers");
        let references = (0..4000).filter(|number| exists(&format!("5{number:013}"))).count();
        assert!((1850..=2150).contains(&references), "{references} of 4000 references");
    }

    #[test]
    fn a_certificate_is_a_pdf_and_its_head_the_same_without_one() {
        let target = "/v1/certificates/12345678901234";
        let (status, headers, body) = ask(Site::Registry, "GET", target, b"");
        assert_eq!((status, &headers[CONTENT_TYPE]), (StatusCode::OK, &HeaderValue::from_static("application/pdf")));
        assert!(headers[CONTENT_DISPOSITION].to_str().unwrap().starts_with("attachment; filename="));
        assert!(body.starts_with(b"%PDF-1.4\n") && (100 << 10..110 << 10).contains(&body.len()));
        let (head_status, head_headers, body) = ask(Site::Registry, "HEAD", target, b"");
        assert_eq!((head_status, head_headers, body), (status, headers, Bytes::new()));
    }

    proptest! {
        #[test]
        fn any_request_gets_one_of_the_known_answers_always_the_same(
            method in "GET|HEAD|POST|PUT|OPTIONS",
            path in "/v1/(lookup/(mobile|aadhaar)|beneficiaries/[0-9]{12,15}|certificates/[0-9a-z%]{0,15})(/[a-z]{0,3})?",
            body in prop_oneof![
                any::<Vec<u8>>(),
                r#"\{"(mobile|aadhaar)":"[0-9]{9,13}"\}"#.prop_map(String::into_bytes),
            ],
        ) {
            let answer = ask(Site::Registry, &method, &path, &body);
            prop_assert!([200, 400, 404, 405].contains(&answer.0.as_u16()));
            prop_assert_eq!(answer, ask(Site::Registry, &method, &path, &body));
        }
    }
}
