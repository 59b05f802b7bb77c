//! How many different people does anybody get? Through real sockets: all at once, twice, after a kill.

use std::sync::Barrier;

use super::world::backend::{Exchange, one_person};
use super::world::line::Line;
use super::world::{Setup, World, eventually};

fn lookup(route: &str, number: u32, actor: &str) -> String {
    let body = format!(r#"{{"mobile":"{}","purpose":"care"}}"#, 6_400_000_000u64 + u64::from(number));
    let head = format!(
        "POST /v1/{route} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nx-actor: {actor}\r\n"
    );
    format!("{head}content-length: {}\r\n\r\n{body}", body.len())
}

fn ask(world: &World, number: u32) -> u16 {
    world.ask(lookup("mobile", number, "a-1")).status
}

fn budgets(text: &str) -> Setup {
    Setup::new().partner("alpha", "people_per_day = 300000\n", &format!("people_per_day = 300000\n[budgets]\n{text}\n"))
}

#[test]
fn as_many_streams_at_once_get_no_more_people_than_the_budget() {
    // A process of its own: both ends together would need more descriptors than one may have.
    let world = budgets("partner = { hour = 50 }")
        .partner("alpha", "\nconnections_max = 1000", "\nconnections_max = 1000\nshadow = [\"containment\"]")
        .gateway("workers = 1", "workers = 2")
        .spawn(one_person);
    let lines: Vec<_> = (0..256).map(|number| (number, world.alpha())).collect();
    let together = Barrier::new(lines.len());
    let answered: Vec<u16> = std::thread::scope(|scope| {
        let ask = |(number, mut line): (u32, Line)| {
            let together = &together;
            scope.spawn(move || {
                together.wait();
                line.ask(lookup("mobile", number, "a-1")).status
            })
        };
        let threads: Vec<_> = lines.into_iter().map(ask).collect();
        threads.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    let count = |status| answered.iter().filter(|other| **other == status).count();
    assert_eq!((count(200), count(429), world.backend.count()), (50, 206, 50));
    // Who was asked for goes on, by another route too; nobody new does, and is told when.
    let known = answered.iter().position(|status| *status == 200).expect("one of them") as u32;
    assert_eq!(ask(&world, known), 200);
    let query = |number: u32| {
        format!("GET /v1/query?mobile={} HTTP/1.1\r\nhost: localhost\r\n\r\n", 6_400_000_000u64 + u64::from(number))
    };
    assert_eq!(world.ask(query(known)).status, 200);
    let refused = world.ask(query(300));
    refused.assert_refused(429, "budget-spent");
    let wait: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((3_500..=3_660).contains(&wait), "{wait}");
    eventually("it is shown", || {
        let shown = |what: &str| {
            world.metric(&format!("dwarpal_budget_{what}{{budget=\"partner\",partner=\"alpha\",window=\"hour\"}}"))
        };
        (shown("used"), shown("left")) == (50.0, 0.0)
    });
}

#[test]
fn a_budget_outlives_a_kill_and_a_rotation() {
    let mut world = budgets("partner = { day = 2 }\nactor = { day = 1 }").spawn(one_person);
    let by = |world: &World, number, actor| world.ask(lookup("mobile", number, actor)).status;
    assert_eq!([by(&world, 1, "a-1"), by(&world, 2, "a-1"), by(&world, 2, "a-2")], [200, 429, 200]);
    let (code, said, _) = world.command(&["audit", "epochs", "rotate", "--reason", "the quarter is over"]);
    assert_eq!(code, 0, "{said}");
    for _ in 0..2 {
        assert_eq!([by(&world, 1, "a-1"), by(&world, 2, "a-1"), by(&world, 2, "a-2")], [200, 429, 200]);
        assert_eq!(by(&world, 3, "a-3"), 429);
        world.kill_and_restart();
    }
}

#[test]
fn people_are_reserved_and_given_back() {
    // Six may come, one does: six places are enough for one after the other.
    let world = budgets("people = { day = 8 }").start(one_person);
    assert_eq!([ask(&world, 1), ask(&world, 2), ask(&world, 3)], [200, 200, 200]);
    world.ask(lookup("mobile", 4, "a-1")).assert_refused(429, "budget-spent");
    eventually("it is shown", || {
        world.metric("dwarpal_budget_used{budget=\"people\",partner=\"alpha\",window=\"day\"}") == 3.0
    });
    // More than were reserved are nobody's.
    let family = |exchange: &mut Exchange| {
        exchange.read_body();
        exchange.answer("200 OK", "content-type: application/json\r\n", br#"{"people":[{"a":1},{"a":2},{"a":3}]}"#);
    };
    let world = budgets("people = { day = 8 }")
        .gateway(
            "records = \"/people\"\nmiss = [404]\nanswer_bytes_max",
            "records = \"/people\"\nmax_people = 2\nmiss = [404]\nanswer_bytes_max",
        )
        .start(family);
    world.ask(lookup("mobile", 1, "a-1")).assert_refused(502, "backend-failed");
}

#[test]
fn a_budget_in_shadow_and_one_of_a_route() {
    let world = budgets("partner = { hour = 1 }\nshadow = [\"partner\"]").start(one_person);
    assert_eq!([ask(&world, 1), ask(&world, 2)], [200, 200]);
    let line = "route = \"mobile\"\n";
    let world = Setup::new().partner("alpha", line, &format!("{line}budgets = {{ hour = 1 }}\n")).start(one_person);
    assert_eq!([ask(&world, 1), ask(&world, 2), ask(&world, 1)], [200, 429, 200]);
    let query = "GET /v1/query?mobile=6400000002 HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert_eq!(world.ask(query).status, 200);
}
