//! Does the house keep its edges? Who may import what, and what every file owes its reader.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use dwarpal::policy::reason::Reason;

/// A file of the repository: its path from the root, and its text.
struct File {
    path: String,
    text: String,
}

/// Files below some folders or files of the root that have one of these endings; what is not there is left out.
fn files(places: &[&str], endings: &[&str]) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut left: Vec<PathBuf> = places.iter().map(|place| root.join(place)).collect();
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).expect("a readable folder").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|end| endings.iter().any(|ending| end == *ending)) && path.exists() {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let path = path.strip_prefix(root).expect("below the root").display().to_string();
            files.push(File { path, text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The files of a folder that have no ending, and may be no text: seeds and dictionaries of the fuzz targets.
fn unnamed(folder: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(root.join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let read = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        let text = String::from_utf8_lossy(&fs::read(&path).expect("a readable file")).into_owned();
        File { path: path.strip_prefix(root).expect("below the root").display().to_string(), text }
    });
    read.collect()
}

fn sources() -> Vec<File> {
    let sources = files(&["src"], &["rs"]);
    assert!(sources.len() > 20, "the walk lost its way");
    sources
}

impl File {
    /// Its lines without comments, counted from 1. A `//` counts where a space is before it, so that URLs stay.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| {
            let start = if line.trim_start().starts_with("//") { Some(0) } else { line.find(" //") };
            (at + 1, &line[..start.unwrap_or(line.len())])
        })
    }

    fn is_in(&self, places: &[&str]) -> bool {
        places.iter().any(|place| self.path == *place || (place.ends_with('/') && self.path.starts_with(place)))
    }

    /// Where a word stands in the code.
    fn uses(&self, word: &str) -> Vec<String> {
        let lines = self.code().filter(|(_, line)| has_word(line, word));
        lines.map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim())).collect()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether a text stands in a line with no letter, digit or `_` at either end.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let (before, after) = (line[..at].chars().next_back(), line[at + word.len()..].chars().next());
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// That a list of what is wrong is empty.
fn none(wrong: &[String], why: &str) {
    assert!(wrong.is_empty(), "{why}:\n{}", wrong.join("\n"));
}

#[test]
fn a_crate_is_imported_only_where_it_belongs() {
    const WIRE: &[&str] = &["src/proxy/", "src/net/", "src/snapshot.rs", "src/demo/"];
    let sources = sources();
    for (name, places) in [
        ("governor", &["src/state/rates.rs"][..]),
        ("prometheus", &["src/metrics.rs"]),
        ("landlock", &["src/sandbox.rs"]),
        ("seccompiler", &["src/sandbox.rs"]),
        ("libc", &["src/sandbox.rs", "src/proxy/listen.rs"]),
        ("rlimit", &["src/cli/serve.rs", "src/pressure.rs"]),
        ("sd_notify", &["src/service.rs"]),
        ("rtime_clock", &["src/audit/clock_sync.rs"]),
        ("rustix", &["src/audit/queue.rs"]),
        ("crc32c", &["src/audit/index.rs", "src/audit/layout.rs", "src/proxy/proxy_protocol.rs", "src/state/store.rs"]),
        ("redis", &[]),
        ("flate2", &["src/audit/read.rs", "src/audit/tiles.rs"]),
        // Oracles of tests.
        ("tlog_tiles", &["src/audit/publish.rs", "src/audit/tree.rs"]),
        ("signed_note", &["src/audit/note.rs"]),
        ("h2", &["src/proxy/upstream/pool.rs"]),
        ("socket2", &["src/proxy/upstream/socket.rs"]),
        ("hyper", WIRE),
        ("hyper_util", WIRE),
        ("rustls", WIRE),
        ("tokio_rustls", WIRE),
    ] {
        let import = |line: &str| {
            let path = [format!("{name}::"), format!("use {name};"), format!("use {name} as")];
            path.iter().any(|path| line.match_indices(path).any(|(at, _)| !line[..at].ends_with(is_word)))
        };
        let elsewhere = sources.iter().filter(|file| !file.is_in(places));
        let wrong: Vec<_> = elsewhere
            .flat_map(|file| file.code().map(move |(number, line)| (file, number, line)))
            .filter(|(_, _, line)| import(line))
            .map(|(file, number, line)| format!("{}:{number}: {}", file.path, line.trim()))
            .collect();
        none(&wrong, &format!("{name} belongs to {places:?}"));
    }
}

#[test]
fn what_decides_has_no_io_no_clock_and_no_locks() {
    #[rustfmt::skip]
    let impure = [
        "std::fs", "std::io", "std::env", "std::process", "TcpStream", "TcpListener", "UdpSocket", "UnixStream",
        "tokio", "Clock", "Instant", "SystemTime", "Mutex", "RwLock", "OnceLock", "LazyLock",
    ];
    // Epoch keys are files.
    let keys = ["src/subject/keys.rs", "src/subject/epochs.rs"];
    let excused = |file: &File, word: &str| file.is_in(&keys) && ["std::fs", "std::io"].contains(&word);
    let mut wrong = Vec::new();
    for (module, may_use) in [
        ("src/policy/", &["policy", "subject", "clock"][..]),
        ("src/subject/", &["subject", "clock"]),
        ("src/detect/", &["detect", "policy", "subject", "clock"]),
        ("src/audit/tree.rs", &[]),
        ("src/audit/note.rs", &[]),
        ("src/audit/layout.rs", &[]),
    ] {
        for file in sources().iter().filter(|file| file.is_in(&[module])) {
            for word in impure.into_iter().filter(|word| !excused(file, word)) {
                wrong.extend(file.uses(word));
            }
            for (number, line) in file.code() {
                for (at, _) in line.match_indices("crate::") {
                    let rest = &line[at + "crate::".len()..];
                    let used = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
                    if !may_use.contains(&used) {
                        wrong.push(format!("{}:{number}: {}", file.path, line.trim()));
                    }
                }
            }
        }
    }
    none(&wrong, "policy, subject, detect, and the bytes of the audit are values in, values out");
}

#[test]
fn nothing_is_left_over() {
    // Put together here, so that this file does not find itself.
    let marks = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("d", "bg!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
    ];
    let mut wrong = Vec::new();
    for file in files(&["src", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets"], &["rs"]) {
        for (at, line) in file.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                wrong.push(format!("{}:{}: {}", file.path, at + 1, line.trim()));
            }
        }
    }
    for file in sources().iter().filter(|file| !file.is_in(&["src/cli/", "src/demo/", "src/main.rs"])) {
        for print in ["print!", "println!", "eprint!", "eprintln!"] {
            wrong.extend(file.uses(print));
        }
    }
    none(&wrong, "left over, or printed where nobody reads");
}

#[test]
fn every_dependency_says_why() {
    let manifests = files(&["Cargo.toml", "fuzz/Cargo.toml"], &["toml"]);
    let mut section = "";
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in manifests.iter().flat_map(|manifest| manifest.text.lines()) {
        if line.starts_with('[') {
            section = line;
        } else if section.ends_with("dependencies]") && !line.is_empty() && !line.starts_with('#') {
            count += 1;
            let reason = line.rsplit_once(" # ").map_or("", |(_, reason)| reason);
            if reason.trim().is_empty() {
                wrong.push(line.to_owned());
            }
            if line.starts_with("redis") {
                wrong.push(line.to_owned());
            }
        }
    }
    assert!(count > 20, "{count} dependencies");
    none(&wrong, "a dependency has its reason behind it");
}

#[test]
fn every_file_says_which_question_it_answers() {
    let files = files(&["src", "tests", "fuzz/src", "fuzz/fuzz_targets"], &["rs"]);
    let placed = files.iter().filter(|file| file.path != "src/main.rs");
    let silent = placed.filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone());
    none(&silent.collect::<Vec<_>>(), "the first line of a module says what it is for");
}

/// Runs of digits of which none is a part of a longer word or number.
fn numbers(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !is_word(c) && c != '.');
    let words = words.map(|word| word.trim_matches('.'));
    words.filter(|word| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Numbers that look like somebody's. Mobiles from 64 to 68 and Aadhaar numbers from 9999 are for tests.
#[test]
fn no_number_is_somebodys() {
    /// Written down because they are refused: no person can have them.
    const NEGATIVE: [&str; 1] = ["123456789012"];
    let mut wrong = Vec::new();
    let places = ["src", "tests", "benches", "fuzz/src", "fuzz/fuzz_targets", "config", "README.md", "ARCHITECTURE.md"];
    let texts = files(&places, &["rs", "toml", "networks", "md", "json", "yml"]);
    let seeds = FUZZ_TARGETS.iter().flat_map(|target| unnamed(&format!("fuzz/seeds/{target}")));
    for file in texts.into_iter().chain(seeds).chain(unnamed("fuzz/dictionaries")) {
        if file.is_in(&["src/subject/"]) {
            continue;
        }
        for number in numbers(&file.text).filter(|number| !NEGATIVE.contains(number)) {
            // A country code or a trunk zero may stand before a mobile.
            let mobile = match number.len() {
                10 => Some(number),
                11 => number.strip_prefix('0'),
                12 => number.strip_prefix("91"),
                _ => None,
            };
            let mobile = mobile.filter(|mobile| mobile.as_bytes()[0] >= b'6');
            let fine = match mobile {
                Some(mobile) => (64..=68).contains(&mobile[..2].parse::<u32>().unwrap_or(0)),
                None => number.len() != 12 || number.starts_with("9999"),
            };
            if !fine {
                wrong.push(format!("{}: {number}", file.path));
            }
        }
    }
    none(&wrong, "numbers that could be a person's");
}

const FUZZ_TARGETS: [&str; 8] =
    ["head", "lookup", "identifier", "configuration", "proxy_header", "certificate", "journal", "evidence"];

#[test]
fn every_fuzz_target_is_run_from_a_few_seeds_and_says_what_it_holds() {
    let written = files(&["fuzz/fuzz_targets"], &["rs"]);
    let written: BTreeSet<_> = written.iter().map(|file| file.path.clone()).collect();
    let listed = FUZZ_TARGETS.iter().map(|target| format!("fuzz/fuzz_targets/{target}.rs")).collect();
    assert_eq!(written, listed);
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path);
    let run = format!("all=({})\n", FUZZ_TARGETS.join(" "));
    assert!(read("fuzz/run").contains(&run), "fuzz/run runs {run}");
    let architecture = read("ARCHITECTURE.md");
    for target in FUZZ_TARGETS {
        let seeds = unnamed(&format!("fuzz/seeds/{target}"));
        let bytes: usize = seeds.iter().map(|seed| seed.text.len()).sum();
        assert!(
            (1..=40).contains(&seeds.len()) && bytes <= 100 << 10,
            "{target}: {} seeds, {bytes} bytes",
            seeds.len()
        );
        assert!(architecture.contains(&format!("| `{target}` |")), "ARCHITECTURE.md does not say what {target} holds");
    }
}

#[test]
fn the_readme_lists_every_reason_and_every_metric() {
    let readme = files(&["README.md"], &["md"]).pop().map(|file| file.text).unwrap_or_default();
    // A metric may be shown with its labels.
    let listed = |name: &str| ["`", "{"].iter().any(|end| readme.contains(&format!("`{name}{end}")));
    let mut missing: Vec<String> = Vec::new();
    missing.extend(Reason::ALL.iter().map(|reason| reason.code().to_owned()).filter(|code| !listed(code)));
    for file in files(&["src/metrics.rs"], &["rs"]) {
        let quoted = file.text.split('"').skip(1).step_by(2);
        let metrics: BTreeSet<&str> = quoted.filter(|text| text.starts_with("dwarpal_")).collect();
        assert!(!metrics.is_empty(), "metrics are named in quotes");
        missing.extend(metrics.into_iter().map(str::to_owned).filter(|name| !listed(name)));
    }
    none(&missing, "README.md does not list");
}

/// A cell that names a test which is gone would be a promise that nobody keeps.
#[test]
fn the_table_of_failures_names_tests_that_exist() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).expect("a file");
    let (_, table) = text.split_once("## Fail closed").expect("the section");
    let (table, _) = table.split_once("\n## ").expect("the next section");
    let named: Vec<&str> = table.split('`').skip(1).step_by(2).filter_map(|code| code.strip_suffix('…')).collect();
    assert!(named.len() >= 25, "{named:?}");
    let tests = files(&["src", "tests"], &["rs"]);
    let exists = |start: &str| tests.iter().any(|file| file.text.contains(&format!("fn {start}")));
    let gone: Vec<_> =
        named.iter().map(|name| name.rsplit("::").next().unwrap_or(name)).filter(|name| !exists(name)).collect();
    none(&gone.into_iter().map(str::to_owned).collect::<Vec<_>>(), "ARCHITECTURE.md names tests that are not there");
}
