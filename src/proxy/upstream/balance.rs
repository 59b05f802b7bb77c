//! Which of a backend's servers is asked next? The one with the fewest requests under way, for its share.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::state::backends::ServerState;

/// The place of the server to ask. Where no server is usable all are tried, as if nothing were known against them: what
/// checks and failures say of every server at once may be the fault of the network, and a refusal helps nobody.
/// `start` goes round with every request, so that equals take turns. There are few servers: a scan is enough.
pub fn first(servers: &[Arc<ServerState>], slow_start: Duration, now: Timestamp, start: usize) -> usize {
    let usable = |at: &usize| servers[*at].is_usable(now);
    least(servers, slow_start, now, start, usable)
        .or_else(|| least(servers, slow_start, now, start, |_| true))
        .unwrap_or(0)
}

/// The place of another server for a request that did not reach the one at `not`, if one is usable.
pub fn another(servers: &[Arc<ServerState>], slow_start: Duration, now: Timestamp, not: usize) -> Option<usize> {
    least(servers, slow_start, now, not + 1, |at| *at != not && servers[*at].is_usable(now))
}

fn least(
    servers: &[Arc<ServerState>],
    slow_start: Duration,
    now: Timestamp,
    start: usize,
    among: impl Fn(&usize) -> bool,
) -> Option<usize> {
    let count = servers.len();
    let order = (0..count).map(|step| (start + step) % count).filter(among);
    let loads = order.map(|at| (at, servers[at].load(now, slow_start)));
    loads.min_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{Ejection, Health};
    use crate::state::State;

    const NOW: Timestamp = Timestamp::from_unix_seconds(1_000);

    fn servers(count: u16) -> Vec<Arc<ServerState>> {
        let backend = State::default().backends.backend(&"registry".into());
        (1..=count).map(|port| backend.server(([127, 0, 0, 1], port).into())).collect()
    }

    fn take_out(server: &ServerState) {
        let health = Health {
            path: "/".to_owned(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy_after: 1,
            unhealthy_after: 1,
            status: 200,
        };
        server.checked(false, &health, NOW);
    }

    #[test]
    fn the_least_busy_is_asked_and_equals_take_turns() {
        let all = servers(3);
        let choice = |start| first(&all, Duration::ZERO, NOW, start);
        assert_eq!([choice(0), choice(1), choice(2), choice(3)], [0, 1, 2, 0]);
        let _busy = (all[0].begin(), all[0].begin(), all[2].begin());
        assert_eq!([choice(0), choice(1), choice(2)], [1, 1, 1]);
        let _busier = (all[1].begin(), all[1].begin());
        assert_eq!([choice(0), choice(1), choice(2)], [2, 2, 2]);
    }

    #[test]
    fn a_server_that_is_out_is_not_asked_unless_all_are() {
        let all = servers(3);
        take_out(&all[1]);
        let choice = |start| first(&all, Duration::ZERO, NOW, start);
        assert_eq!([choice(0), choice(1), choice(2)], [0, 2, 2]);
        assert_eq!(another(&all, Duration::ZERO, NOW, 0), Some(2));
        assert_eq!(another(&all, Duration::ZERO, NOW, 2), Some(0));
        take_out(&all[0]);
        take_out(&all[2]);
        assert_eq!([choice(0), choice(1), choice(2)], [0, 1, 2]);
        assert_eq!(another(&all, Duration::ZERO, NOW, 0), None);
    }

    #[test]
    fn a_server_that_is_back_is_asked_less_at_first() {
        let all = servers(2);
        let backend = State::default().backends.backend(&"registry".into());
        let ejection = Ejection { after: 1, time: Duration::from_secs(10), percent_max: 50 };
        assert!(backend.failed(&all[0], &all, &ejection, NOW));
        let slow = Duration::from_secs(100);
        let choice = |after: u64, start| first(&all, slow, NOW.plus(Duration::from_secs(after)), start);
        assert_eq!([choice(9, 0), choice(9, 1)], [1, 1], "ejected");
        // A tenth of its share: one request at the other weighs as much as a tenth of one here.
        let others: Vec<_> = (0..8).map(|_| all[1].begin()).collect();
        assert_eq!([choice(10, 0), choice(10, 1)], [1, 1]);
        let _more = (all[1].begin(), all[1].begin());
        assert_eq!([choice(10, 0), choice(10, 1)], [0, 0]);
        drop(others);
        assert_eq!([choice(20, 0), choice(20, 1)], [1, 1]);
        assert_eq!([choice(110, 0), choice(110, 1)], [0, 0], "its whole share");
    }
}
