//! The metrics listener: `/metrics`, `/livez`, `/readyz`, for its own allowlist.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::audit::clock_sync::{self, ClockStatus};
use crate::gateway::Gateway;
use crate::proxy::upstream::health;
use crate::service;

/// Scrapers and balancers at the same time; more wait.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The listener's thread; also looks after what is nobody else's. Ends with the gateway.
pub fn run(runtime: tokio::runtime::Runtime, gateway: Arc<Gateway>, listener: std::net::TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        tokio::spawn({
            let gateway = gateway.clone();
            async move { gateway.sweep().await }
        });
        tokio::spawn(service::watchdog(gateway.clone()));
        tokio::spawn(look_around(gateway.clone()));
        tokio::spawn(look_at_clock(gateway.clone()));
        tokio::spawn(health::watch(gateway.clone()));
        tokio::select! {
            () = serve(listener, &gateway) => {}
            () = gateway.drained() => {}
        }
        Ok(())
    })
}

/// What time is it, and what is short? Ends with the gateway.
async fn look_around(gateway: Arc<Gateway>) {
    let mut set_back = false;
    loop {
        let (forward, ahead) = (gateway.clock.follow(), gateway.clock.ahead());
        if forward > STEP {
            tracing::warn!(seconds = forward.as_secs(), "the system's clock went forward, and the gateway's with it");
        }
        if ahead > STEP && !set_back {
            tracing::warn!(
                seconds = ahead.as_secs(),
                "the system's clock was set back; the gateway's goes on from where it was"
            );
        }
        set_back = ahead > STEP;
        gateway.metrics.clock_ahead(ahead);
        gateway.pressure.look(gateway.load.open());
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = gateway.drained() => return,
        }
    }
}

/// Who vouches for the system's clock? Ends with the gateway.
async fn look_at_clock(gateway: Arc<Gateway>) {
    let mut last = None;
    loop {
        let sources = gateway.snapshot().settings.clock;
        let status = clock_sync::look(&sources).await;
        gateway.metrics.clock_status(&status);
        gateway.clock_status.store(Arc::new(status));
        let ClockStatus { synchronised, offset, max_error, stratum, source } = status;
        if last != Some((synchronised, source)) {
            let source = source.as_str();
            if synchronised {
                tracing::info!(source, stratum, offset, max_error, "the system's clock is synchronised");
            } else {
                tracing::warn!(source, stratum, "the system's clock is not known to be synchronised");
            }
        }
        last = Some((synchronised, source));
        tokio::select! {
            () = tokio::time::sleep(CLOCK_EVERY) => {}
            () = gateway.drained() => return,
        }
    }
}

/// As often as an NTP client asks its servers when it is in a hurry.
const CLOCK_EVERY: Duration = Duration::from_secs(16);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// More than a clock is slewed by in a second: somebody set it.
const STEP: Duration = Duration::from_secs(5);

async fn serve(listener: TcpListener, gateway: &Arc<Gateway>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, address)) = listener.accept().await else {
            // Out of file descriptors: it may get better.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if !gateway.snapshot().settings.metrics.allows(address.ip()) {
            continue;
        }
        let gateway = gateway.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &gateway);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn respond(request: &Request<Incoming>, gateway: &Gateway) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into());
    }
    match request.uri().path() {
        "/metrics" => {
            let (open, now) = (gateway.load.open(), gateway.clock.now());
            gateway.metrics.audit_queue(&gateway.audit.queue);
            gateway.metrics.alerts_raised(&gateway.alerts);
            gateway.metrics.state_kept(!gateway.state().is_broken(), gateway.state().failures());
            let rendered = gateway.metrics.render(&gateway.snapshot(), open, &gateway.pressure, now);
            let mut response = text(StatusCode::OK, rendered.into());
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
            response
        }
        "/livez" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => match gateway.readiness() {
            Ok(()) => text(StatusCode::OK, "ok\n".into()),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n").into()),
        },
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /livez and /readyz\n".into()),
    }
}

fn text(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
