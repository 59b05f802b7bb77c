//! What has to hold of the evidence of every gateway in these tests, whatever was done to it: its log can be read, every
//! recorded verdict follows again from the recorded facts, and nothing on the disk holds an identifier in any notation.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use dwarpal::audit::event::{Event, Request};
use dwarpal::audit::journal::Journal;
use dwarpal::audit::read::{Fault, Log};
use dwarpal::audit::replay;
use dwarpal::config;
use dwarpal::config::settings::Overrides;
use dwarpal::policy::identify::Credential;

/// The entries of a log that nobody writes to any more, in order.
pub fn entries(audit: &Path) -> Vec<Vec<u8>> {
    Journal::open(audit, 0).expect("the log can be opened");
    let mut entries = Vec::new();
    let read = Log::open(audit).and_then(|mut log| {
        log.each::<Fault>(0..u64::MAX, |_, entry| {
            entries.push(entry.to_vec());
            Ok(())
        })
    });
    read.expect("the log can be read");
    entries
}

/// Looks at all that a gateway with its configuration in `directory` left behind.
pub fn inspect(directory: &Path) {
    let audit = directory.join("data/audit");
    if audit.join("journal").exists() {
        replay_all(directory, &entries(&audit));
    }
    search(&directory.join("data"));
}

/// Every verdict under the configuration that is there now follows from what was recorded.
fn replay_all(directory: &Path, entries: &[Vec<u8>]) {
    let Ok(config) = config::load(directory, &Overrides::default()) else { return };
    let digest = config::digest(directory, &config.files);
    let mut served = false;
    let mut credentials: HashMap<String, Credential> = HashMap::new();
    for json in entries {
        let text = String::from_utf8_lossy(json);
        match Event::from_json(json).unwrap_or_else(|error| panic!("{error}: {text}")) {
            Event::Start(start) => served = start.digest == digest,
            Event::Reload(reload) => served = reload.digest == digest,
            Event::Credential(entry) => {
                let credential = replay::credential(&entry).unwrap_or_else(|| panic!("{text}"));
                credentials.insert(entry.fingerprint.to_string(), credential);
            }
            Event::Disclosure(request) | Event::Denied(request) if served => {
                let credential = credentials.get(&*request.credential);
                let credential = credential.unwrap_or_else(|| panic!("no certificate before it: {text}"));
                let replayed = replay::replay(&config.policy, &request, credential);
                let Request { verdict, reason, .. } = *request;
                assert_eq!(replayed, Ok((verdict, reason)), "{text}");
            }
            Event::Unknown => panic!("{text}"),
            _ => {}
        }
    }
}

/// No file below a directory holds an identifier of these tests.
pub fn search(directory: &Path) {
    let Ok(found) = fs::read_dir(directory) else { return };
    for path in found.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            search(&path);
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if let Some(found) = identifier_in(&bytes) {
                panic!("{} holds {found}", path.display());
            }
        }
    }
}

/// An identifier in any notation that a program might write it in, by what it was found.
pub fn identifier_in(bytes: &[u8]) -> Option<String> {
    let plain: Vec<u8> = bytes.iter().copied().filter(|byte| !b" -.()".contains(byte)).collect();
    let unescaped: Vec<u8> = percent_encoding::percent_decode(bytes).collect();
    let readings = [Cow::Borrowed(bytes), plain.into(), unescaped.into()];
    readings.iter().find_map(|bytes| needles().find_in(bytes).or_else(|| standing_alone(bytes)))
}

/// A number that stands by itself and reads like an identifier, whether or not a source has it.
fn standing_alone(bytes: &[u8]) -> Option<String> {
    let words = bytes.split(|byte| !byte.is_ascii_alphanumeric());
    let digits = words.filter(|word| matches!(word.len(), 10 | 12) && word.iter().all(u8::is_ascii_digit));
    digits.map(|word| String::from_utf8_lossy(word).into_owned()).find(|word| is_fixture(word))
}

/// A mobile of 64 to 68, or an Aadhaar for tests.
fn is_fixture(digits: &str) -> bool {
    let mobile = || digits.starts_with('6') && (b'4'..=b'8').contains(&digits.as_bytes()[1]);
    digits.len() == 10 && mobile() || digits.len() == 12 && digits.starts_with("9999")
}

/// The identifiers that stand in the sources of these tests, in many notations, found by their first eight bytes.
struct Needles(HashMap<[u8; 8], Vec<(Vec<u8>, String)>>);

impl Needles {
    fn find_in(&self, bytes: &[u8]) -> Option<String> {
        bytes.windows(8).enumerate().find_map(|(at, window)| {
            let window: [u8; 8] = window.try_into().ok()?;
            let candidates = self.0.get(&window)?;
            candidates.iter().find(|(needle, _)| bytes[at..].starts_with(needle)).map(|(_, what)| what.clone())
        })
    }
}

fn needles() -> &'static Needles {
    static NEEDLES: OnceLock<Needles> = OnceLock::new();
    NEEDLES.get_or_init(|| {
        let mut needles: HashMap<[u8; 8], Vec<(Vec<u8>, String)>> = HashMap::new();
        for id in identifiers() {
            for (notation, needle) in notations(&id) {
                let first = needle[..8].try_into().expect("at least eight bytes");
                needles.entry(first).or_default().push((needle, format!("{id} ({notation})")));
            }
        }
        Needles(needles)
    })
}

/// Every number in the sources of the tests that reads like a mobile of 64 to 68 or a test Aadhaar; but for round ones, which
/// the nanoseconds of a whole second end in.
fn identifiers() -> HashSet<String> {
    fn walk(directory: &Path, found: &mut HashSet<String>) {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(directory).expect("sources").flatten().map(|entry| entry.path()).collect();
        while let Some(path) = paths.pop() {
            if path.is_dir() {
                walk(&path, found);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap_or_default();
            let runs = text.split(|c: char| !c.is_ascii_digit());
            found.extend(runs.filter(|run| is_fixture(run) && !run.ends_with("00000")).map(str::to_owned));
        }
    }
    let mut found = HashSet::new();
    walk(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it")), &mut found);
    assert!(found.contains("6412345678") && found.len() > 3, "the identifiers of the tests were not found");
    found
}

fn notations(id: &str) -> Vec<(&'static str, Vec<u8>)> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, id.as_bytes());
    let escaped: String = id.bytes().map(|digit| format!("\\u{:04x}", digit)).collect();
    let reversed: String = id.chars().rev().collect();
    let mut notations = vec![
        ("plain", id.into()),
        ("hex", hex(id.as_bytes()).into()),
        ("JSON escapes", escaped.into()),
        ("reversed", reversed.into()),
        ("hash", hex(hash.as_ref())[..16].into()),
        ("hash in base64", BASE64_STANDARD_NO_PAD.encode(hash).into()),
        ("hash in base64url", BASE64_URL_SAFE_NO_PAD.encode(hash).into()),
        ("a number's eight bytes", {
            let number: u64 = id.parse().expect("digits");
            // Its zeros at the ends would be found everywhere.
            hex(&number.to_be_bytes())[6..].into()
        }),
    ];
    for (at, notation) in
        ["base64", "base64 from the second byte", "base64 from the third byte"].into_iter().enumerate()
    {
        // Where a text has other bytes before it, its middle is the same in one of three ways.
        let encoded = BASE64_STANDARD_NO_PAD.encode([&b"xx"[..at], id.as_bytes()].concat());
        let inner = &encoded[if at == 0 { 0 } else { 4 }..encoded.len() - 2];
        notations.push((notation, inner.into()));
    }
    notations
}

#[test]
fn the_search_finds_what_it_is_for() {
    for (text, found) in [
        ("{\"mobile\":\"6412345678\"}", true),
        ("+91 64123-45678", true),
        ("/v1/%36412345678?x", true),
        ("...NjQxMjM0NTY3OA==...", true),
        ("dXNlcj02NDEyMzQ1Njc4", true),
        ("36343132333435363738", true),
        ("5112345678, 64123456", false),
    ] {
        assert_eq!(identifier_in(text.as_bytes()).is_some(), found, "{text}");
    }
}
