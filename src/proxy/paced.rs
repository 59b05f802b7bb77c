//! A body that has to keep coming: capped in bytes, in the time it may be waited for, and by the request's deadline.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Incoming, SizeHint};
use hyper::http::request::Parts;
use hyper::{Version, header};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

/// What bounds a body.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub bytes_max: u64,
    /// Bytes a second, on average over the time that was spent waiting, after `grace`.
    pub rate_min: u32,
    pub grace: Duration,
    pub deadline: Instant,
}

/// A request's body before anybody asked for it. Of a request that is refused it is read and thrown away, within bounds,
/// before the answer ends: a client that is still sending may otherwise never read why it was refused.
pub struct Unread {
    /// `None` once it was taken, or read to its end.
    incoming: Option<Incoming>,
    /// The client waits for 100 (Continue). Reading would say it.
    waits: bool,
    http2: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

/// A longer body is not waited for on HTTP/1: its connection is closed.
const DRAIN_BYTES_MAX: u64 = 64 << 10;
/// How long a refused request may go on sending.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Pieces that are thrown away in one go.
const DRAIN_FRAMES_MAX: usize = 32;

impl Unread {
    pub fn new(parts: &Parts, incoming: Incoming) -> Unread {
        let waits = parts.headers.contains_key(header::EXPECT);
        Unread { incoming: Some(incoming), waits, http2: parts.version == Version::HTTP_2, timer: None }
    }

    /// HTTP/2 can end an answer after all of it was sent. On HTTP/1 an answer is over with its last byte.
    pub fn ends_late(&self) -> bool {
        self.http2
    }

    /// Whether the request announced a body.
    pub fn is_expected(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| !incoming.is_end_stream())
    }

    pub fn announces_more_than(&self, bytes: u64) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| incoming.size_hint().lower() > bytes)
    }

    /// Whether it is longer than what is thrown away, as far as that was said.
    pub fn is_long(&self) -> bool {
        self.announces_more_than(DRAIN_BYTES_MAX)
    }

    /// For somebody who passes it on.
    pub fn take(&mut self) -> Option<Incoming> {
        self.incoming.take()
    }

    /// Reads it into memory. After a fault the rest can still be thrown away.
    pub async fn collect(&mut self, bounds: Bounds) -> Result<Bytes, Fault> {
        if self.announces_more_than(bounds.bytes_max) {
            return Err(Fault::TooLarge);
        }
        let Some(incoming) = self.incoming.take() else { return Ok(Bytes::new()) };
        self.waits = false;
        let mut paced = Paced::new(incoming, bounds)?;
        let collected = paced.collect().await;
        if collected.is_err() {
            self.incoming = Some(paced.incoming);
        }
        collected
    }

    /// Throws it away, as far as its bounds allow.
    pub fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let given_up = self.waits || (self.is_long() && !self.http2);
        let Some(incoming) = self.incoming.as_mut().filter(|_| !given_up) else { return Poll::Ready(()) };
        let mut frames = 0;
        loop {
            match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(Some(Ok(_))) if frames < DRAIN_FRAMES_MAX => frames += 1,
                Poll::Ready(Some(Ok(_))) => {
                    // Others on this thread have their turn.
                    cx.waker().wake_by_ref();
                    break;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(DRAIN_TIMEOUT)));
        timer.as_mut().poll(cx)
    }
}

/// Why a body ended early.
#[derive(Debug)]
pub enum Fault {
    TooLarge,
    TooSlow,
    Broken(hyper::Error),
}

/// An incoming body within its bounds. Trailers are dropped: they would be headers that nobody checked.
pub struct Paced {
    incoming: Incoming,
    bounds: Bounds,
    taken: u64,
    /// Time spent waiting for the sender. Time in which nobody asked for more is not the sender's fault.
    waited: Duration,
    waiting_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    /// Refuses at once what announces itself as too large.
    pub fn new(incoming: Incoming, bounds: Bounds) -> Result<Paced, Fault> {
        if incoming.size_hint().lower() > bounds.bytes_max {
            return Err(Fault::TooLarge);
        }
        Ok(Paced { incoming, bounds, taken: 0, waited: Duration::ZERO, waiting_since: None, timer: None })
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        loop {
            let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
                Poll::Pending => return self.poll_patience(cx),
                Poll::Ready(frame) => frame,
            };
            if let Some(since) = self.waiting_since.take() {
                self.waited += since.elapsed();
            }
            let Some(frame) = frame else { return Poll::Ready(None) };
            let Ok(piece) = frame.map_err(Fault::Broken)?.into_data() else { continue };
            self.taken += piece.len() as u64;
            if self.taken > self.bounds.bytes_max {
                return Poll::Ready(Some(Err(Fault::TooLarge)));
            }
            return Poll::Ready(Some(Ok(piece)));
        }
    }

    /// Reads the whole body into memory.
    pub async fn collect(&mut self) -> Result<Bytes, Fault> {
        let mut whole: Option<Vec<u8>> = None;
        let mut first: Option<Bytes> = None;
        while let Some(piece) = std::future::poll_fn(|cx| self.poll_piece(cx)).await {
            let piece = piece?;
            match (&mut whole, first.take()) {
                (Some(whole), _) => whole.extend_from_slice(&piece),
                (None, Some(before)) => whole = Some([before, piece].concat()),
                // A small body comes in one piece and is not copied.
                (None, None) => first = Some(piece),
            }
        }
        Ok(whole.map_or(first.unwrap_or_default(), Bytes::from))
    }

    pub fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    pub fn taken(&self) -> u64 {
        self.taken
    }

    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let earned = Duration::from_secs_f64(self.taken as f64 / f64::from(self.bounds.rate_min.max(1)));
        let patience = (self.bounds.grace + earned).saturating_sub(self.waited);
        let until = (since + patience).min(self.bounds.deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx).map(|()| Some(Err(Fault::TooSlow)))
    }
}

impl Fault {
    /// For metrics.
    pub const fn code(&self) -> &'static str {
        match self {
            Fault::TooLarge => "too-large",
            Fault::TooSlow => "too-slow",
            Fault::Broken(_) => "broken",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::TooLarge => f.write_str("body too large"),
            Fault::TooSlow => f.write_str("body too slow"),
            Fault::Broken(error) => write!(f, "body broken: {error}"),
        }
    }
}

impl std::error::Error for Fault {}
