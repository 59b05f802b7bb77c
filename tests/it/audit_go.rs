//! Does software that is not ours agree with a log? Go's transparency log and signed notes, over a log that was written here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dwarpal::audit::layout::{self, SEGMENT};
use dwarpal::audit::note::Signer;
use dwarpal::audit::publish::Settings;
use dwarpal::audit::tree::TileId;
use tempfile::TempDir;

/// Debian's golang-golang-x-mod-dev.
const GOPATH: &str = "/usr/share/gocode";

const EARLIER: u64 = SEGMENT - 36;
const SIZE: u64 = SEGMENT + 300;

fn index(_: u64, entries: &[&[u8]]) -> Vec<u8> {
    entries.len().to_string().into_bytes()
}

fn entries(from: u64, to: u64) -> Vec<String> {
    (from..to).map(|index| format!("{{\"v\":1,\"event\":\"denied\",\"number\":{index}}}")).collect()
}

/// A log of a sealed segment and some more entries, with the checkpoint of an earlier moment beside it.
fn log(home: &Path) -> String {
    let signer = Signer::from_seed("dwarpal.example/log", &[5; 32]).expect("a key");
    let vkey = signer.vkey().to_string();
    let directory = home.join("log");
    let settings = Settings { directory, remembered: home.join("remembered"), signer, index };
    let (mut journal, _, mut publisher) = dwarpal::audit::open(settings).expect("fresh");
    for (from, to) in [(0, EARLIER), (EARLIER, SIZE)] {
        journal.append(&entries(from, to)).expect("durable");
        publisher.catch_up(to).expect("published");
        let signed = publisher.checkpoint().expect("signed").note.to_string();
        fs::write(home.join(format!("checkpoint.{to}")), signed).expect("written");
    }
    assert_eq!(publisher.seal().expect("sealed"), Some(0));
    vkey
}

fn build(home: &Path) -> PathBuf {
    assert!(Path::new(GOPATH).join("src/golang.org/x/mod").is_dir(), "install golang-golang-x-mod-dev");
    let program = home.join("verify");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/audit_go/main.go");
    let built = Command::new("go")
        .args(["build", "-o"])
        .args([&program, &source])
        .env("GOFLAGS", "-mod=mod")
        .env("GO111MODULE", "off")
        .env("GOPATH", GOPATH)
        .env("GOCACHE", home.join("cache"))
        .output()
        .expect("go is installed");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

#[test]
fn go_verifies_a_log_and_refuses_one_with_a_flipped_bit() {
    let home = TempDir::new().expect("a directory");
    let home = home.path();
    let vkey = log(home);
    let program = build(home);
    let earlier = home.join(format!("checkpoint.{EARLIER}"));
    let verify = |vkey: &str| -> Output {
        Command::new(&program).arg(home.join("log")).arg(vkey).arg(&earlier).output().expect("it runs")
    };
    let whole = verify(&vkey);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    assert_eq!(String::from_utf8_lossy(&whole.stdout), format!("{SIZE} entries\n"));

    let other = Signer::from_seed("dwarpal.example/log", &[6; 32]).expect("a key").vkey().to_string();
    assert!(!verify(&other).status.success(), "another key");
    let tile = |level, index| TileId { level, index };
    let width = (SIZE % layout::BUNDLE) as usize;
    for (path, place) in [
        ("checkpoint".to_owned(), 30),
        (layout::bundle_path(7), 300),
        (layout::partial_bundle_path(SIZE / layout::BUNDLE, width), 40),
        (layout::tile_path(tile(0, 7)), 3_000),
        (layout::tile_path(tile(1, 0)), 100),
        (layout::partial_tile_path(tile(2, 0), 1), 9),
    ] {
        let file = home.join("log").join(&path);
        let good = fs::read(&file).expect("a file");
        let mut bad = good.clone();
        bad[place] ^= 1;
        fs::write(&file, bad).expect("written");
        let refused = verify(&vkey);
        assert!(!refused.status.success(), "{path}: {}", String::from_utf8_lossy(&refused.stdout));
        fs::write(&file, good).expect("written");
    }
    assert!(verify(&vkey).status.success(), "as it was");

    // Another log's checkpoint is no earlier state of this one.
    let strange = Signer::from_seed("dwarpal.example/log", &[5; 32]).expect("a key");
    let text = fs::read_to_string(&earlier).expect("a checkpoint");
    let root = text.lines().nth(2).expect("a root");
    let text = text.split_once("\n\n").expect("a note").0.replace(root, &strange_root()) + "\n";
    fs::write(&earlier, format!("{text}\n{}\n", strange.sign(&text))).expect("written");
    assert!(!verify(&vkey).status.success(), "not consistent");
}

fn strange_root() -> String {
    dwarpal::audit::tree::leaf_hash(b"another log").to_string()
}
