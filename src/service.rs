//! What is the service manager told? Readiness, reloads, the end, and that every worker is alive: systemd's protocol.
//!
//! Without `NOTIFY_SOCKET` in the environment each of these does nothing.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::gateway::Gateway;

/// Everything is bound and confined; `status` is for people.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read anew. [`reloaded`] has to follow, whether that worked or not.
pub fn reloading() {
    // systemd asks for the time, so that it can tell this reload from the one before.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "no monotonic clock for the service manager"),
    }
}

/// The reload is over; `status` says how it went.
pub fn reloaded(status: &str) {
    ready(status);
}

/// Requests under way are being finished, which may take as long as this.
pub fn stopping(drain_timeout: Duration) {
    let enough = (drain_timeout + STOP_MARGIN).as_micros().try_into().unwrap_or(u32::MAX);
    tell(&[NotifyState::Stopping, NotifyState::Status("draining"), NotifyState::ExtendTimeoutUsec(enough)]);
}

/// What the end takes besides draining: joining threads and writing what has to be kept.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Tells the service manager that all is well for as long as every worker makes progress; ends with the gateway. One
/// that hangs ends the messages, and the service manager ends the process.
pub async fn watchdog(gateway: Arc<Gateway>) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut beats = gateway.load.beats();
    loop {
        tokio::select! {
            () = tokio::time::sleep(timeout / 2) => {}
            () = gateway.drained() => return,
        }
        let before = std::mem::replace(&mut beats, gateway.load.beats());
        match hung(&before, &beats) {
            None => tell(&[NotifyState::Watchdog]),
            Some(worker) => tracing::error!(worker, "a worker hangs; the watchdog is not told that all is well"),
        }
    }
}

/// The first worker whose heart has not beaten since.
fn hung(before: &[u64], now: &[u64]) -> Option<usize> {
    before.iter().zip(now).position(|(before, now)| before == now)
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_that_hangs_is_enough() {
        assert_eq!(hung(&[3, 7], &[4, 8]), None);
        assert_eq!(hung(&[3, 7], &[4, 7]), Some(1));
        assert_eq!(hung(&[3, 7], &[3, 9]), Some(0));
    }
}
