//! Does anybody notice that the key changed under which people are counted? And is a destroyed one gone?

use std::path::Path;
use std::time::Duration;

use dwarpal::clock::Clock;
use dwarpal::subject::epochs::Keyring;
use dwarpal::subject::{Kind, Subject};
use tempfile::TempDir;

use super::world::backend::one_person;
use super::world::{Setup, World, eventually};

const DAY: Duration = Duration::from_secs(86_400);

fn lookup(number: &str) -> String {
    let body = format!(r#"{{"mobile":"{number}","purpose":"care"}}"#);
    let head = "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

fn epochs(world: &World, arguments: &[&str]) -> (i32, String) {
    let (code, stdout, stderr) = world.command(&[&["audit", "epochs"], arguments].concat());
    (code, stdout + &stderr)
}

fn listed(world: &World) -> Vec<serde_json::Value> {
    let (code, text) = epochs(world, &["list", "--json"]);
    assert_eq!(code, 0, "{text}");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn people_are_counted_through_a_rotation_and_a_kill() {
    let mut world = Setup::new().partner("alpha", "subject = \"100000/s\"", "subject = \"3/d\"").spawn(one_person);
    let ask = |world: &World, number: &str| world.ask(lookup(number)).status;
    assert_eq!([ask(&world, "6412345678"), ask(&world, "6412345678")], [200, 200]);
    let (code, text) = epochs(&world, &["rotate", "--reason", "the quarter is over"]);
    assert_eq!(
        (code, text.starts_with("epoch 2 has begun; people are counted under the one before")),
        (0, true),
        "{text}"
    );
    for (what, number) in [("epoch created", 2), ("epoch retired", 1)] {
        let told = world.process().logged(|line| line["message"] == what && line["epoch"] == number);
        assert_eq!(told["reason"], "the quarter is over", "{told}");
        assert!(told["by"].as_str().is_some_and(|by| by.starts_with("uid ")), "{told}");
    }
    // One is left, whatever the key is; and somebody else has all of theirs.
    assert_eq!([ask(&world, "6412345678"), ask(&world, "6412345678")], [200, 429]);
    assert_eq!(ask(&world, "6412345679"), 200);
    assert_eq!(world.metric("dwarpal_limiter_entries{kind=\"subject\",partner=\"alpha\"}"), 2.0);
    world.kill_and_restart();
    assert_eq!([ask(&world, "6412345678"), ask(&world, "6412345679"), ask(&world, "6412345679")], [429, 200, 200]);
    assert_eq!(ask(&world, "6412345679"), 429);

    let list = listed(&world);
    let states: Vec<_> = list.iter().map(|epoch| (&epoch["number"], &epoch["state"])).collect();
    assert_eq!(states, [(&1.into(), &"overlap".into()), (&2.into(), &"current".into())]);
    assert_eq!(list[0]["retired"], list[1]["created"]);
    assert_ne!(list[0]["id"], list[1]["id"]);
    for (arguments, complaint) in [
        (&["rotate"][..], "epoch 2 is still counted together with the one before"),
        (&["destroy", "1", "--reason", "R"], "epoch 1 is still counted under"),
        (&["destroy", "2", "--reason", "R"], "epoch 2 is the current one; rotate first"),
        (&["destroy", "9", "--reason", "R"], "no epoch 9; there are: 1, 2"),
    ] {
        let (code, text) = epochs(&world, arguments);
        assert_eq!(code, 1, "{text}");
        assert!(text.starts_with(complaint), "{text}");
    }
    assert_eq!(epochs(&world, &["destroy", "1"]).0, 2, "a reason is wanted");
}

/// Whether a key of these finds who was hidden under this token.
fn finds(directory: &Path, token: &dwarpal::subject::Token) -> bool {
    let keys = Keyring::new(&directory.join("data"), None).read().expect("keys");
    let subject = Subject::parse(Kind::Mobile, "6412345678").expect("a mobile");
    keys.all().any(|key| key.token(&subject) == *token)
}

#[test]
fn a_key_is_replaced_when_its_time_has_come_and_destroyed_when_told() {
    let clock = Clock::manual(Clock::system().now());
    let setup = Setup::new().section("\n[epochs]\nrotate = \"90d\"\noverlap = \"31d\"\n");
    let world = setup.start_by(clock.clone(), one_person);
    let first = world.gateway().epochs();
    let subject = Subject::parse(Kind::Mobile, "6412345678").expect("a mobile");
    let token = first.current().token(&subject);
    clock.advance(90 * DAY);
    eventually("the next epoch begins", || world.gateway().epochs().current().number() == 2);
    assert_eq!(epochs(&world, &["destroy", "1", "--reason", "over"]).0, 1);
    clock.advance(32 * DAY);
    assert!(finds(world.directory(), &token));
    let (code, text) = epochs(&world, &["destroy", "1", "--reason", "kept for long enough"]);
    assert_eq!((code, &*text), (0, "the key of epoch 1 is destroyed: its tokens name nobody any more\n"));
    assert!(!finds(world.directory(), &token));
    assert!(world.gateway().epochs().all().all(|key| key.token(&subject) != token));
    let list = listed(&world);
    assert_eq!(
        (&list[0]["state"], &list[0]["destroyed"]["reason"]),
        (&"destroyed".into(), &"kept for long enough".into())
    );
    let (_, text) = epochs(&world, &["list"]);
    let (first, second) = text.split_once('\n').expect("a line each");
    assert!(first.starts_with("epoch 1 (") && first.ends_with(": kept for long enough"), "{text}");
    assert!(second.starts_with("epoch 2 (") && second.trim().ends_with(": current"), "{text}");
    assert_eq!(epochs(&world, &["destroy", "1", "--reason", "again"]).0, 1);
}

#[test]
fn the_key_of_an_earlier_version_is_epoch_1_of_a_confined_gateway() {
    use std::os::unix::fs::PermissionsExt;
    let line = "dwarpal-epoch-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n";
    let (keys, config) = (TempDir::new().expect("directory"), TempDir::new().expect("directory"));
    let real = keys.path().join("real.key");
    std::fs::write(&real, line).expect("write");
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o600)).expect("mode");
    let data = config.path().join("data");
    std::fs::create_dir(&data).expect("directory");
    std::os::unix::fs::symlink(&real, data.join("epoch.key")).expect("link");
    let setup = Setup::new().gateway("directory = \"data\"", &format!("directory = \"{}\"", data.display()));
    let mut world = setup.spawn(one_person);
    for _ in 0..2 {
        assert_eq!((&listed(&world)[0]["id"], listed(&world).len()), (&"630dcd29".into(), 1));
        assert_eq!(world.ask(lookup("6412345678")).status, 200);
        // The link is where the next start looks for it.
        world.kill_and_restart();
    }
}

#[test]
fn keys_may_be_credentials_of_the_unit() {
    use std::os::unix::fs::PermissionsExt;
    let given = TempDir::new().expect("directory");
    let key = given.path().join("epoch-0001.key");
    std::fs::write(&key, "dwarpal-epoch-key-v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").expect("write");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o400)).expect("mode");
    let setup = Setup::new().section("\n[epochs]\ncredentials = true\n");
    let directory = given.path().display().to_string();
    let world = setup.spawn_under(&[], &[("CREDENTIALS_DIRECTORY", &directory)], one_person);
    assert_eq!(listed(&world)[0]["id"], "630dcd29");
    assert_eq!(world.ask(lookup("6412345678")).status, 200);
    assert!(!world.directory().join("data/epochs/0001.key").exists());
    let (code, text) = epochs(&world, &["rotate"]);
    assert_eq!(code, 4, "{text}");
    assert!(text.contains("add the credential epoch-NNNN.key"), "{text}");
}
