//! What the partner gets: a body that keeps what it uses until it is gone, or a problem document.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::json;
use tokio::time::Instant;
use uuid::Uuid;

use super::headers::DECISION_ID;
use super::paced::{Fault, Paced, Unread};
use super::upstream::Lease;
use crate::audit::event::{self, Answer, EndedBy, Event, Step};
use crate::audit::queue::Class;
use crate::gateway::Gateway;
use crate::policy::Denial;
use crate::policy::reason::{Reason, Retry};
use crate::state::Hold;
use crate::subject::{Digester, EpochKey};

/// An answer's body. It can be taken away from outside (see [`Remains`]): a peer that stops reading an HTTP/2 stream
/// is not polled for more, so no timer inside the body would ever fire.
pub struct Body(Rc<RefCell<Slot>>);

/// A handle that drops what a body still holds, once its time is over.
pub struct Remains(Weak<RefCell<Slot>>);

enum Slot {
    Empty,
    Whole {
        bytes: Bytes,
        held: Option<Held>,
        unread: Option<Unread>,
    },
    /// All was sent; the request's own body is still coming.
    Ending(Unread),
    Streamed {
        paced: Paced,
        lease: Option<Box<Lease>>,
        held: Held,
    },
    Expired,
}

/// What an answer keeps until its last byte is on its way: its place in flight, and who is to be told of its end.
pub struct Held {
    _hold: Hold,
    gateway: Arc<Gateway>,
    route: Arc<str>,
    complete: bool,
    /// Of a lookup's answer, once its `disclosure` is in the audit.
    closing: Option<Box<Closing>>,
}

/// What the audit will be told when an answer has ended.
pub struct Closing {
    gateway: Arc<Gateway>,
    decision: Uuid,
    partner: Option<Arc<str>>,
    begun: Instant,
    bytes: u64,
    /// Of a body that was not known before.
    digest: Option<Digester>,
    by: EndedBy,
}

impl Closing {
    pub fn new(
        gateway: Arc<Gateway>,
        decision: Uuid,
        partner: Option<Arc<str>>,
        begun: Instant,
        digest: Option<Digester>,
    ) -> Closing {
        Closing { gateway, decision, partner, begun, bytes: 0, digest, by: EndedBy::Partner }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let closed = event::Closed {
            v: event::VERSION,
            time: self.gateway.clock.now(),
            id: self.decision,
            partner: self.partner.as_deref().map(Into::into),
            by: self.by,
            step: Step::Answer,
            bytes: self.bytes,
            digest: self.digest.take().map(Digester::finish),
            total_us: self.begun.elapsed().as_micros() as u64,
        };
        // What does not fit is counted there, and a disclosure without its end counts as whole.
        let _ = self.gateway.audit.queue.put(Class::Closed, None, &Event::Closed(closed));
    }
}

/// Most of a whole body that is handed over at once. HTTP/2 takes what it is given and keeps it while the peer does not
/// read, so a larger piece would escape the deadline and the cap on requests in flight.
const PIECE_BYTES_MAX: usize = 16 << 10;

impl Body {
    pub fn empty() -> Body {
        Body(Rc::new(RefCell::new(Slot::Empty)))
    }

    /// `held` counts as in flight until the bytes are on their way.
    pub fn whole(bytes: Bytes, mut held: Option<Held>) -> Body {
        if let Some(held) = &mut held {
            held.complete = bytes.is_empty();
        }
        let slot = if bytes.is_empty() { Slot::Empty } else { Slot::Whole { bytes, held, unread: None } };
        Body(Rc::new(RefCell::new(slot)))
    }

    /// A refusal, whose request may not be over.
    fn refusal(bytes: Bytes, unread: Unread) -> Body {
        Body(Rc::new(RefCell::new(Slot::Whole { bytes, held: None, unread: Some(unread) })))
    }

    /// The backend connection is given back when the body was read to its end.
    pub fn streamed(paced: Paced, lease: Lease, mut held: Held) -> Body {
        held.complete = paced.is_end_stream();
        if held.complete {
            lease.give_back();
            return Body::empty();
        }
        Body(Rc::new(RefCell::new(Slot::Streamed { paced, lease: Some(Box::new(lease)), held })))
    }

    /// What the partner will get, where all of it is here.
    pub fn answer(&self, key: &EpochKey) -> Option<Answer> {
        let answer = |bytes: &[u8]| Some(Answer { bytes: bytes.len() as u64, digest: key.digest(bytes) });
        match &*self.0.borrow() {
            Slot::Whole { bytes, .. } => answer(bytes),
            Slot::Empty => answer(&[]),
            _ => None,
        }
    }

    /// Tells the audit of this answer's end, from now on.
    pub fn close_with(&mut self, mut closing: Closing) {
        match &mut *self.0.borrow_mut() {
            Slot::Whole { held: Some(held), .. } | Slot::Streamed { held, .. } => {
                held.closing = Some(Box::new(closing))
            }
            // A miss: nothing of the backend's is kept for it.
            Slot::Whole { held, .. } => {
                let mut own = Held::new(Hold::default(), closing.gateway.clone(), "".into());
                own.closing = Some(Box::new(closing));
                *held = Some(own);
            }
            _ => closing.by = EndedBy::Complete,
        }
    }

    /// Takes back an answer that must not be given.
    pub fn withdraw(&mut self) {
        let slot = self.0.replace(Slot::Empty);
        if let Slot::Whole { held: Some(mut held), .. } | Slot::Streamed { mut held, .. } = slot {
            held.complete = true;
        }
    }

    pub fn remains(&self) -> Remains {
        Remains(Rc::downgrade(&self.0))
    }
}

impl Held {
    pub fn new(hold: Hold, gateway: Arc<Gateway>, route: Arc<str>) -> Held {
        // Until there is a body to send, nothing can be cut short.
        Held { _hold: hold, gateway, route, complete: true, closing: None }
    }

    /// So much more is on its way.
    fn sent(&mut self, piece: &[u8]) {
        if let Some(closing) = &mut self.closing {
            closing.bytes += piece.len() as u64;
            if let Some(digest) = &mut closing.digest {
                digest.update(piece);
            }
        }
    }

    fn completed(&mut self) {
        self.complete = true;
        self.ended(EndedBy::Complete);
    }

    fn cut(&mut self, reason: &str, by: EndedBy) {
        if !std::mem::replace(&mut self.complete, true) {
            self.gateway.metrics.answer_cut(&self.route, reason);
            self.ended(by);
        }
    }

    fn ended(&mut self, by: EndedBy) {
        if let Some(mut closing) = self.closing.take() {
            closing.by = by;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cut("partner-gone", EndedBy::Partner);
    }
}

impl Remains {
    /// Whether the body is gone already.
    pub fn gone(&self) -> bool {
        self.0.upgrade().is_none_or(|slot| matches!(*slot.borrow(), Slot::Empty))
    }

    pub fn expire(&self) {
        if let Some(slot) = self.0.upgrade()
            && let Slot::Streamed { mut held, .. } | Slot::Whole { held: Some(mut held), .. } =
                slot.replace(Slot::Expired)
        {
            held.cut("deadline", EndedBy::Gateway);
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Fault;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let mut slot = self.0.borrow_mut();
        match &mut *slot {
            Slot::Empty => Poll::Ready(None),
            Slot::Expired => Poll::Ready(Some(Err(Fault::TooSlow))),
            Slot::Ending(unread) => {
                std::task::ready!(unread.poll_drained(cx));
                *slot = Slot::Empty;
                Poll::Ready(None)
            }
            Slot::Whole { bytes, held, unread } => {
                if let Some(unread) = unread.as_mut().filter(|unread| !unread.ends_late()) {
                    std::task::ready!(unread.poll_drained(cx));
                }
                let piece = bytes.split_to(bytes.len().min(PIECE_BYTES_MAX));
                if let Some(held) = held {
                    held.sent(&piece);
                }
                if bytes.is_empty() {
                    if let Some(held) = held {
                        held.completed();
                    }
                    *slot = match unread.take() {
                        Some(unread) if unread.ends_late() => Slot::Ending(unread),
                        _ => Slot::Empty,
                    };
                }
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Slot::Streamed { paced, lease, held } => {
                let piece = std::task::ready!(paced.poll_piece(cx));
                if let Some(Ok(piece)) = &piece {
                    held.sent(piece);
                }
                // The end may be known with the last piece: HTTP/1 does not ask again after a length is reached.
                if matches!(piece, None | Some(Ok(_))) && paced.is_end_stream() {
                    held.completed();
                    if let Some(lease) = lease.take() {
                        lease.give_back();
                    }
                }
                match piece {
                    Some(Ok(piece)) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                    Some(Err(fault)) => {
                        if let (Some(lease), Fault::Broken(_)) = (lease, &fault) {
                            lease.fail(Reason::BackendIncomplete);
                        }
                        let by = if matches!(fault, Fault::Broken(_)) { EndedBy::Backend } else { EndedBy::Gateway };
                        held.cut(fault.code(), by);
                        *slot = Slot::Expired;
                        Poll::Ready(Some(Err(fault)))
                    }
                    None => {
                        held.completed();
                        *slot = Slot::Empty;
                        Poll::Ready(None)
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&*self.0.borrow(), Slot::Empty)
    }

    fn size_hint(&self) -> SizeHint {
        match &*self.0.borrow() {
            Slot::Empty | Slot::Ending(_) => SizeHint::with_exact(0),
            Slot::Expired => SizeHint::default(),
            Slot::Whole { bytes, .. } => SizeHint::with_exact(bytes.len() as u64),
            Slot::Streamed { paced, .. } => paced.size_hint(),
        }
    }
}

/// A refusal as a problem document (RFC 9457), with `Proxy-Status` (RFC 9209) so that it is never taken for the
/// backend's. It holds the public code and nothing that the request brought.
pub fn refuse(denial: &Denial, decision: Uuid, close: bool, unread: Unread) -> Response<Body> {
    let row = denial.reason.row();
    let document = json!({
        "type": format!("urn:dwarpal:reason:{}", row.public),
        "title": row.text,
        "status": row.status,
        "instance": format!("urn:uuid:{decision}"),
        "retry": match row.retry { Retry::No => "no", Retry::Later => "later" },
    });
    let mut response = Response::new(Body::refusal(Bytes::from(document.to_string()), unread));
    *response.status_mut() = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(wait) = denial.retry_after.filter(|_| row.retry == Retry::Later && !denial.reason.is_held()) {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_seconds(wait)));
    }
    if denial.reason == Reason::MethodRefused {
        headers.insert(header::ALLOW, HeaderValue::from_static(""));
    }
    // A miss is an answer; and `held` tells nothing of how it came about.
    if denial.reason != Reason::NoMatch && !denial.reason.is_held() {
        let mut status = format!("dwarpal; error={}", row.proxy_error);
        let _ = write!(status, "; details=\"{}\"", row.public);
        if let Ok(status) = HeaderValue::from_str(&status) {
            headers.insert(HeaderName::from_static("proxy-status"), status);
        }
    }
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Puts the decision id on an answer.
pub fn sign(headers: &mut HeaderMap, decision: Uuid) {
    let mut text = Uuid::encode_buffer();
    let text = decision.hyphenated().encode_lower(&mut text);
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(DECISION_ID, value);
    }
}

/// Whole seconds, rounded up: a partner that waits so long is let in.
fn retry_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}
