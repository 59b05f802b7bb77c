//! What evidence does on the live path: a sweep is held before many people are told of, and stays held when the process dies.

use serde_json::{Value, json};

use crate::evidence::running::{entries_from, log_of};
use crate::world::backend::one_person;
use crate::world::{Setup, World, eventually};

fn mobile(number: u64) -> String {
    let body = format!(r#"{{"mobile":"{number}","purpose":"care"}}"#);
    let head = "POST /v1/mobile HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

/// Consecutive numbers until one is held: how many were answered.
fn sweep(world: &World, from: u64, most: u64) -> Option<u64> {
    let mut line = world.alpha();
    (0..most).find(|nth| {
        let answer = line.ask(mobile(from + nth));
        if answer.status == 403 {
            assert_eq!(answer.problem(), "held");
        }
        answer.status == 403
    })
}

fn steps(world: &World) -> Vec<Value> {
    let mut entries = entries_from(&log_of(world), 0);
    entries.retain(|entry| entry["event"] == "containment");
    entries
}

#[test]
fn a_sweep_is_held_and_stays_held_through_a_crash_until_it_is_released() {
    let mut world = Setup::new().spawn(one_person);
    let told = sweep(&world, 6_400_000_000, 200).expect("it is held");
    assert!(told <= 40, "{told} people were told of before it was held");
    eventually("the step is in the log", || !steps(&world).is_empty());
    let step = &steps(&world)[0];
    assert_eq!((&step["partner"], &step["from"], &step["automatic"]), (&json!("alpha"), &json!("open"), &json!(true)));
    assert!(
        world.metric("dwarpal_containment_steps_total{by=\"automatic\",partner=\"alpha\",to=\"known-only\"}") >= 1.0
    );

    // Nothing was kept yet but what the log tells.
    world.kill_and_restart();
    assert_eq!(world.ask(mobile(6_500_000_000)).problem(), "held");
    let (code, out, error) = world.command(&["standing", "alpha"]);
    assert!(code == 0 && out.contains("automatically: the evidence"), "{out}{error}");
    // A restart in order reads what was kept then.
    world.process().terminate();
    assert_eq!(world.process().ended(), Some(0));
    world.restart();
    assert_eq!(world.ask(mobile(6_500_000_001)).problem(), "held");

    let (code, out, error) = world.command(&["release", "alpha", "--reason", "a drill"]);
    assert!(code == 0 && out.contains("alpha: open (was "), "{out}{error}");
    assert_eq!(world.ask(mobile(6_500_000_002)).status, 200);
}

#[test]
fn in_parallel_no_more_is_told_than_one_by_one() {
    let world = Setup::new().gateway("workers = 1", "workers = 2").spawn(one_person);
    let told: u64 = std::thread::scope(|scope| {
        let streams: Vec<_> = (0..64_u64)
            .map(|stream| {
                let world = &world;
                scope.spawn(move || {
                    let mut line = world.alpha();
                    (0..10).filter(|nth| line.ask(mobile(6_400_000_000 + stream * 10 + nth)).status == 200).count()
                })
            })
            .collect();
        streams.into_iter().map(|stream| stream.join().expect("stream") as u64).sum()
    });
    assert!(told <= 40, "{told} people were told of");
}
