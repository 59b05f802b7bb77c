//! What does a backend get as a request's body, and how far has it come?

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::Instant;

use super::super::paced::{Fault, Paced};
use crate::policy::reason::Reason;
use crate::state::backends::Body;

/// The body that a backend gets.
pub enum Outgoing {
    Empty,
    Whole(Option<Bytes>),
    Streamed { paced: Paced, upload: Upload },
}

/// How far a streamed request body has come; shared by the body and the request that waits for the answer.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    progress: Rc<Cell<Progress>>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Progress {
    /// Nothing is streamed, or nothing was yet.
    #[default]
    Whole,
    Streaming,
    Ended(Instant),
    Failed(Reason),
}

impl Upload {
    pub(super) fn progress(&self) -> Progress {
        self.progress.get()
    }

    /// When to stop waiting for the head of an answer that was asked for at `begun`: the backend's time runs from the end
    /// of the request, since a slow upload is the partner's.
    pub(super) fn patience(&self, begun: Instant, answer_timeout: Duration) -> Instant {
        let from = match self.progress.get() {
            Progress::Whole | Progress::Failed(_) => begun,
            Progress::Ended(at) => at,
            Progress::Streaming => Instant::now(),
        };
        from + answer_timeout
    }

    /// Still coming, or ended so lately that the backend has time left.
    pub(super) fn is_moving(&self, answer_timeout: Duration) -> bool {
        match self.progress.get() {
            Progress::Streaming => true,
            Progress::Ended(at) => at.elapsed() < answer_timeout,
            Progress::Whole | Progress::Failed(_) => false,
        }
    }

    /// When a streamed body ended.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        match self.progress.get() {
            Progress::Ended(at) => Some(at),
            Progress::Whole | Progress::Streaming | Progress::Failed(_) => None,
        }
    }

    /// The request's body is with the backend, to its end.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.progress.get(), Progress::Whole | Progress::Ended(_))
    }
}

impl Outgoing {
    pub fn streamed(paced: Paced, upload: Upload) -> Outgoing {
        upload.progress.set(Progress::Streaming);
        Outgoing::Streamed { paced, upload }
    }

    /// How it comes, in the eyes of the circuit breaker.
    pub(super) fn kind(&self) -> Body {
        match self {
            Outgoing::Empty | Outgoing::Whole(_) => Body::Whole,
            Outgoing::Streamed { .. } => Body::Streamed,
        }
    }

    /// The same body for another try, if it is one that can be had twice.
    pub(super) fn again(&self) -> Option<Outgoing> {
        match self {
            Outgoing::Empty => Some(Outgoing::Empty),
            Outgoing::Whole(bytes) => Some(Outgoing::Whole(bytes.clone())),
            Outgoing::Streamed { .. } => None,
        }
    }
}

/// The reason for refusing a request whose body ended early.
pub fn body_fault(fault: &Fault) -> Reason {
    match fault {
        Fault::TooLarge => Reason::BodyTooLarge,
        Fault::TooSlow => Reason::BodyTimeout,
        Fault::Broken(_) => Reason::BodyIncomplete,
    }
}

impl hyper::body::Body for Outgoing {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let (paced, upload) = match self.get_mut() {
            Outgoing::Empty => return Poll::Ready(None),
            Outgoing::Whole(bytes) => return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Streamed { paced, upload } => (paced, upload),
        };
        let piece = std::task::ready!(paced.poll_piece(cx));
        match &piece {
            Some(Err(fault)) => upload.progress.set(Progress::Failed(body_fault(fault))),
            // hyper does not ask for more than the announced length: the last byte is the end too.
            Some(Ok(_)) if !paced.is_end_stream() => {}
            Some(Ok(_)) | None => upload.progress.set(Progress::Ended(Instant::now())),
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Empty => true,
            Outgoing::Whole(bytes) => bytes.is_none(),
            // Not even at the end before it was polled: `Ended` is noted when the end is read.
            Outgoing::Streamed { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Empty => SizeHint::with_exact(0),
            Outgoing::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Outgoing::Streamed { paced, .. } => paced.size_hint(),
        }
    }
}
