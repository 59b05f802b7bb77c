//! Is each server well? Asked on a thread of its own, over the connections that requests would be sent on.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::header::{self, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{sleep, timeout};

use super::Upstream;
use super::socket::dial;
use crate::clock::{Clock, Timestamp};
use crate::config::settings::{Health, Protocol};
use crate::gateway::Gateway;
use crate::state::backends::Change;

/// How soon a new snapshot is noticed where no check is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Checks the servers of whatever snapshot is current, until the gateway ends.
pub async fn watch(gateway: Arc<Gateway>) {
    loop {
        let next = begin_due(&gateway);
        let pause = next.since(gateway.clock.now()).clamp(Duration::from_millis(1), LOOK_EVERY);
        tokio::select! {
            () = sleep(pause) => {}
            () = gateway.drained() => return,
        }
    }
}

/// Begins the checks that are due; says when the next one is.
fn begin_due(gateway: &Arc<Gateway>) -> Timestamp {
    let snapshot = gateway.snapshot();
    let now = gateway.clock.now();
    let mut next = now.plus(LOOK_EVERY);
    for upstream in &snapshot.upstreams {
        let Some(health) = &upstream.settings.health else {
            upstream.servers.iter().for_each(|server| server.unchecked());
            continue;
        };
        for (at, server) in upstream.servers.iter().enumerate() {
            match server.check_due(now, health.interval) {
                Ok(()) => {
                    next = next.min(now.plus(health.interval));
                    tokio::spawn(check(gateway.clone(), upstream.clone(), at));
                }
                Err(due) => next = next.min(due),
            }
        }
    }
    next
}

async fn check(gateway: Arc<Gateway>, upstream: Arc<Upstream>, at: usize) {
    let Some(health) = &upstream.settings.health else { return };
    let (name, server) = (&*upstream.settings.name, &upstream.servers[at]);
    let well = timeout(health.timeout, is_well(&upstream, at, health, &gateway.clock)).await.unwrap_or(false);
    gateway.metrics.backend_check(name, &server.label, if well { "ok" } else { "failed" });
    match server.checked(well, health, gateway.clock.now()) {
        Change::None => {}
        Change::Up => tracing::warn!(backend = name, server = &*server.label, "server is well again"),
        Change::Down => tracing::warn!(backend = name, server = &*server.label, "server is not well: its checks fail"),
    }
}

async fn is_well(upstream: &Upstream, at: usize, health: &Health, clock: &Clock) -> bool {
    ask(upstream, at, health, clock).await.is_some_and(|answer| answer.status().as_u16() == health.status)
}

/// One request on a connection of its own, which ends with it.
async fn ask(upstream: &Upstream, at: usize, health: &Health, clock: &Clock) -> Option<Response<Incoming>> {
    let (stream, _) = dial(upstream, at, clock).await.ok()?;
    let mut request = Request::new(Empty::<Bytes>::new());
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("dwarpal-health"));
    match upstream.settings.protocol {
        Protocol::Http1 => {
            *request.uri_mut() = health.path.parse().ok()?;
            request.headers_mut().insert(header::HOST, upstream.host.clone());
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            alongside(sender.send_request(request), connection).await
        }
        Protocol::Http2 => {
            let scheme = if upstream.tls.is_some() { "https" } else { "http" };
            *request.uri_mut() = format!("{scheme}://{}{}", upstream.authority, health.path).parse().ok()?;
            let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.ok()?;
            alongside(sender.send_request(request), connection).await
        }
    }
}

/// Waits for an answer while its connection is driven. The connection may be over in the moment in which it gives the
/// answer.
async fn alongside(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Option<Response<Incoming>> {
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer.ok(),
        _ = connection => answer.await.ok(),
    }
}
