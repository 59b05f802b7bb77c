//! Is every damage found? Bits, files and entries that are changed, gone or moved, up to a checkpoint that is held elsewhere.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use dwarpal::audit::event::{Event, Pruned, VERSION};
use dwarpal::audit::layout::{self, SEGMENT};
use dwarpal::audit::note::{Checkpoint, Signer};
use dwarpal::audit::tiles::compress;
use dwarpal::audit::tree::{self, Edge};
use dwarpal::audit::verify::{Question, Report, verify};
use flate2::read::GzDecoder;
use proptest::prelude::*;

use super::generate::{Crowd, Log, signer, time_of};
use super::{Home, LARGE, PENDING, SIGNED, Said};

fn unpacked(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    GzDecoder::new(&fs::read(path).expect("a file")[..]).read_to_end(&mut bytes).expect("gzip");
    bytes
}

/// A log with a sealed segment, one thing changed, and what has to be said about it.
#[test]
fn every_kind_of_damage_is_named_with_its_file_and_entry() {
    type Change = fn(&Home);
    let cases: [(&str, Change, &str); 14] = [
        (
            "a bit of a sealed entry",
            |home| {
                home.replace("tile/entries/003.gz", |bytes| {
                    let path = LARGE.log().join("tile/entries/003.gz");
                    let mut plain = unpacked(&path);
                    plain[5_000] ^= 1;
                    *bytes = compress(&plain).expect("packed");
                });
            },
            "tile/entries/003.gz: entry 7",
        ),
        (
            "a bit of its packed form",
            |home| home.replace("tile/entries/003.gz", |bytes| bytes[3_000] ^= 4),
            "tile/entries/003.gz: ",
        ),
        (
            "a bit of a tile",
            |home| home.replace("tile/0/004", |bytes| bytes[32 * 9] ^= 1),
            "tile/0/004: entry 1033: its hash here is not that of the entry, which the tile above confirms",
        ),
        (
            "a bit of an upper tile",
            |home| home.replace("tile/1/000", |bytes| bytes[32 * 9] ^= 1),
            "tile/1/000: its hash of tile/0/009 is not",
        ),
        ("a bit of the checkpoint", |home| home.replace("checkpoint", |bytes| bytes[30] ^= 1), "checkpoint: "),
        ("a bit of an index", |home| home.replace("index/0000000000", |bytes| bytes[5_000] ^= 1), "index/0000000000: "),
        (
            "an index of others",
            |home| home.replace("index/0000000000", |bytes| *bytes = dwarpal::audit::index::build(0, &[])),
            "index/0000000000: is not the index of its entries",
        ),
        (
            "a bit of the journal",
            |home| home.replace("journal/0000000001", |bytes| bytes[9_000] ^= 1),
            "journal/0000000001: entry 655",
        ),
        (
            "a missing bundle",
            |home| fs::remove_file(home.log().join("tile/entries/100.gz")).expect("removed"),
            "tile/entries/100.gz: entry 25600: is missing up to entry 25855",
        ),
        (
            "a missing tile",
            |home| fs::remove_file(home.log().join("tile/0/100")).expect("removed"),
            "tile/0/100: is missing",
        ),
        (
            "a missing journal",
            |home| fs::remove_file(home.log().join("journal/0000000001")).expect("removed"),
            "journal: has no file",
        ),
        (
            "a missing checkpoint",
            |home| fs::remove_file(home.log().join("checkpoint")).expect("removed"),
            "checkpoint: is missing",
        ),
        (
            "swapped bundles",
            |home| {
                let (a, b) = (home.log().join("tile/entries/010.gz"), home.log().join("tile/entries/011.gz"));
                let c = home.data().join("c");
                fs::rename(&a, &c).expect("renamed");
                fs::rename(&b, &a).expect("renamed");
                fs::rename(&c, &b).expect("renamed");
            },
            "tile/entries/010.gz: entry 2560: is not the entry that was logged",
        ),
        (
            "a cut journal",
            |home| home.replace("journal/0000000001", |bytes| bytes.truncate(9_000)),
            "journal/0000000001: entry 655",
        ),
    ];
    for (name, change, expected) in cases {
        let twin = LARGE.twin();
        change(&twin);
        let ran = twin.audit(&["verify", "@", "--key", "@key", "--since", "held"], "");
        assert_eq!(ran.code, Some(1), "{name}: {}{}", ran.said(), ran.complained());
        assert!(ran.said().contains(&format!("damaged: {expected}")), "{name}: {}", ran.said());
        assert!(!ran.said().contains("\nwhole"), "{name}: {}", ran.said());
    }
}

/// Every file of the log is as it was but for one bit: that is found, or no entry of the log reads differently for it.
fn verified(home: &Home) -> Report {
    let held = fs::read(home.data().join("held")).expect("held");
    let key = signer().vkey();
    let question = Question { directory: &home.log(), key: &key, since: Some(&held), witnesses: &[] };
    verify(&question, &|_, _| {})
}

/// What verifying stands on: journal, tiles, bundles, checkpoint, key.
fn files(home: &Home) -> Vec<PathBuf> {
    let (mut left, mut files) = (vec![home.log()], Vec::new());
    while let Some(path) = left.pop() {
        match path.is_dir() {
            true => left.extend(fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path())),
            false => files.push(path.strip_prefix(home.log()).expect("below").to_owned()),
        }
    }
    // One gateway's, without a byte in it.
    files.retain(|file| file != Path::new(layout::LOCK));
    files.sort();
    files
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// What is packed has a few bits that no reader sees: where one of those is flipped, every entry is as it was.
    #[test]
    fn any_flipped_bit_up_to_a_checkpoint_held_elsewhere_is_found(file in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>()) {
        static SMALL: std::sync::LazyLock<Home> = std::sync::LazyLock::new(|| Home::small(600));
        let files = files(&SMALL);
        prop_assert!(verified(&SMALL).faults.is_empty());
        let file = &files[file.index(files.len())];
        let twin = SMALL.twin();
        twin.replace(file.to_str().expect("a name"), |bytes| {
            let bit = bit.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
        });
        let unseen = file.extension().is_some_and(|end| end == "gz") && {
            let path = twin.log().join(file);
            let mut bytes = Vec::new();
            let packed = fs::read(path).expect("a file");
            GzDecoder::new(&packed[..]).read_to_end(&mut bytes).is_ok() && bytes == unpacked(&SMALL.log().join(file))
        };
        prop_assert!(unseen || !verified(&twin).faults.is_empty(), "{}", file.display());
    }

    /// Whoever has the gateway's key can sign another history, and makes a whole log of it. The checkpoint held elsewhere says
    /// that it is another one.
    #[test]
    fn another_history_by_the_same_key_is_found(removed in prop::option::of(0..300usize), moved in (0..300usize, 0..300usize)) {
        let home = Home::small(300);
        let crowd = Crowd::of(home.data(), 20);
        let mut entries: Vec<_> = (0..300).map(|index| crowd.entry(index).to_json()).collect();
        match removed {
            Some(place) => drop(entries.remove(place)),
            None => entries.swap(moved.0, moved.1),
        }
        entries.push(crowd.entry(300).to_json());
        let changed = removed.is_some() || moved.0 != moved.1;
        fs::remove_dir_all(home.log()).expect("removed");
        fs::remove_file(home.data().join("audit.checkpoint")).expect("removed");
        let mut log = Log::open(home.data());
        log.append(&entries);
        log.publish();
        let report = verified(&home);
        prop_assert_eq!(report.faults.iter().any(|fault| fault.file == "the earlier checkpoint"), changed, "{:?}", report.faults);
        prop_assert_eq!(report.faults.is_empty(), !changed);
    }
}

#[test]
fn any_file_that_is_gone_is_found() {
    let home = Home::small(600);
    // The key beside the log is a convenience.
    for file in files(&home).into_iter().filter(|file| file != Path::new(layout::VKEY)) {
        let twin = home.twin();
        fs::remove_file(twin.log().join(&file)).expect("removed");
        assert!(!verified(&twin).faults.is_empty(), "{}", file.display());
    }
}

#[test]
fn a_log_that_was_put_back_is_found() {
    let home = Home::small(400);
    let twin = home.twin();
    Log::open(home.data()).fill(700, &Crowd::of(home.data(), 20));
    fs::copy(home.log().join("checkpoint"), twin.data().join("newer")).expect("copied");
    let ran = twin.audit(&["verify", "@", "--key", "@key", "--since", "newer"], "");
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.said().contains("it covers 700 entries, but this log has signed only 400: it was cut"),
        "{}",
        ran.said()
    );
}

#[test]
fn only_what_the_log_says_was_removed_may_be_missing() {
    let home = LARGE.twin();
    let gone = |home: &Home| {
        for bundle in 0..256 {
            fs::remove_file(home.log().join(layout::bundle_path(bundle))).expect("removed");
        }
        fs::remove_file(home.log().join("index/0000000000")).expect("removed");
    };
    // The journal is this twin's own, so that the other logs do not grow.
    home.replace("journal/0000000001", |_| {});
    let pruned = Event::Pruned(Pruned {
        v: VERSION,
        time: time_of(SIGNED + PENDING),
        from: 0,
        until: SEGMENT,
        before: time_of(SEGMENT - 1),
    });
    let mut log = Log::open(home.data());
    log.append(&[pruned.to_json()]);
    gone(&home);
    // Said, but not signed yet.
    let ran = home.audit(&["verify", "@", "--key", "@key", "--since", "held"], "");
    assert_eq!(ran.code, Some(0), "{}", ran.said());
    assert!(ran.said().contains("removed: entries 0 to 65535; the entry that says so is not yet"), "{}", ran.said());
    log.publish();
    let ran = home.audit(&["verify", "@", "--key", "@key", "--since", "held"], "");
    assert_eq!(ran.code, Some(0), "{}", ran.said());
    assert!(ran.said().contains("removed by retention: entries 0 to 65535; their hashes are here"), "{}", ran.said());
    // People who are asked for are told so, too.
    let ran = home.audit(&["who", "--kind", "mobile", "--id", "-", "--dir", "@", "--data", "@data"], "6400000000");
    assert!(ran.said().contains("not searched: entries 0 to 65535 were removed by retention"), "{}", ran.said());

    let silent = LARGE.twin();
    gone(&silent);
    let ran = silent.audit(&["verify", "@", "--key", "@key"], "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.said().contains("entry 0: is missing up to entry 65535, and no `pruned` entry"), "{}", ran.said());
    let ran = silent.audit(&["who", "--kind", "mobile", "--id", "-", "--dir", "@", "--data", "@data"], "6400000000");
    assert!(
        ran.said().contains("not searched: entries 0 to 65535 are not here, and nothing says why"),
        "{}",
        ran.said()
    );
}

/// One log, two histories, both signed by its key: neither consistency nor `--since` takes one for the other.
#[test]
fn two_histories_of_one_size_are_told_apart() {
    let home = Home::small(10);
    let mut edge = Edge::default();
    for index in 0..10 {
        edge.append(tree::leaf_hash(format!("another {index}").as_bytes()), &mut |_, _| {}).expect("room");
    }
    let signer: Signer = signer();
    let vkey = signer.vkey();
    let other = Checkpoint { origin: vkey.name().to_owned(), size: 10, root: edge.root(), extensions: Vec::new() };
    fs::write(home.data().join("other"), other.sign(&signer).expect("signed").to_string()).expect("written");
    let ran = home.audit(&["verify", "@", "--key", "@key", "--since", "other"], "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.said().contains("damaged: the earlier checkpoint: its root over 10 entries is"), "{}", ran.said());
    let ran = home.audit(&["consistency", "other", "held", "--key", "@key", "--dir", "@"], "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.complained().contains("two logs of the same size have different roots"), "{}", ran.complained());
}

#[test]
fn it_is_read_and_verified_while_it_grows() {
    let home = Home::small(100);
    let data = home.data().to_owned();
    let crowd = Crowd::of(&data, 20);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut log = Log::open(&data);
            for until in (110..3_000).step_by(37) {
                log.fill(until, &crowd);
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut rounds = 0;
        let mut size = 0;
        while rounds < 3 || !done.load(std::sync::atomic::Ordering::Acquire) {
            let report = verified(&home);
            assert!(report.faults.is_empty(), "{:?}", report.faults);
            let mut log = dwarpal::audit::read::Log::open(&home.log()).expect("a log");
            let end = log.size().expect("a size");
            let mut next = 0;
            log.each::<dwarpal::audit::read::Fault>(0..end, |index, entry| {
                assert_eq!((index, entry), (next, &crowd.entry(index).to_json()[..]));
                next += 1;
                Ok(())
            })
            .expect("read");
            assert_eq!(next, end);
            assert!(end >= size);
            (size, rounds) = (end, rounds + 1);
        }
        writer.join().expect("written");
    });
}
