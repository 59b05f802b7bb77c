//! Who still has to be told, and when is it tried again?
//!
//! A webhook gets each message once, in order: one that is not taken waits, with the others behind it, and is tried again
//! later and later. An Alertmanager gets the whole list when it changes and now and then, so nothing waits for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::secret::Secret;
use crate::clock::Timestamp;
use crate::config::settings::{self, ReceiverKind};
use crate::detect::Severity;
use crate::net::client::{self, Message};

/// A message for webhooks that may have to be sent again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Post {
    /// The same with each try, so that a receiver can tell that it knows it.
    pub id: String,
    pub body: String,
    pub severity: Severity,
    pub since: Timestamp,
}

/// What came of one try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Taken, with this status.
    Taken(u16),
    /// It will not take this, however often it is asked.
    Refused(String),
    Failed(String),
}

impl Sent {
    /// For the metric.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Sent::Taken(_) => "ok",
            Sent::Refused(_) => "refused",
            Sent::Failed(_) => "failed",
        }
    }
}

/// All receivers, and what is under way to them.
pub struct Deliveries {
    receivers: Vec<Receiver>,
    queue_max: usize,
    resend: Duration,
    under_way: JoinSet<(Arc<str>, Sent)>,
}

struct Receiver {
    settings: settings::Receiver,
    /// A webhook's; the first one is tried.
    pending: VecDeque<Post>,
    busy: bool,
    /// In a row.
    failures: u32,
    /// When the last try began.
    last: Instant,
    /// Nothing is sent before; then a webhook's message if one waits, an Alertmanager's list in any case.
    next: Instant,
}

/// Between two lists for one Alertmanager, however much changes: a list may be long.
const LIST_GAP: Duration = Duration::from_millis(100);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// Whoever was away for longer has other ways to learn what was.
const POST_KEPT: Duration = Duration::from_secs(24 * 3600);
/// Of an answer, which nobody reads.
const ANSWER_BYTES_MAX: usize = 16 << 10;

impl Deliveries {
    pub fn new() -> Deliveries {
        Deliveries { receivers: Vec::new(), queue_max: 1, resend: Duration::from_secs(60), under_way: JoinSet::new() }
    }

    /// Takes over another configuration; what waits for a receiver that stays goes on waiting.
    pub fn configure(&mut self, alerts: &settings::Alerts) {
        (self.queue_max, self.resend) = (alerts.queue_max, alerts.resend);
        let mut before = std::mem::take(&mut self.receivers);
        let receivers = alerts.receivers.iter().map(|settings| {
            let kind = std::mem::discriminant(&settings.kind);
            let same = |one: &Receiver| {
                one.settings.name == settings.name && std::mem::discriminant(&one.settings.kind) == kind
            };
            match before.iter().position(same) {
                Some(at) => Receiver { settings: settings.clone(), ..before.swap_remove(at) },
                None => Receiver {
                    settings: settings.clone(),
                    pending: VecDeque::new(),
                    busy: false,
                    failures: 0,
                    last: Instant::now(),
                    next: Instant::now(),
                },
            }
        });
        self.receivers = receivers.collect();
    }

    /// Has a message sent to every webhook. For each that had no room, the least severe message is given up: returns their names.
    pub fn put(&mut self, post: &Post) -> Vec<Arc<str>> {
        let mut full = Vec::new();
        let queue_max = self.queue_max;
        for receiver in self.receivers.iter_mut().filter(|receiver| receiver.is_webhook()) {
            receiver.pending.push_back(post.clone());
            if receiver.pending.len() > queue_max {
                // The first may be on its way.
                let from = usize::from(receiver.busy);
                let least = (from..receiver.pending.len()).min_by_key(|at| receiver.pending[*at].severity);
                least.and_then(|at| receiver.pending.remove(at));
                full.push(receiver.settings.name.clone());
            }
        }
        full
    }

    /// What waits for a receiver from an earlier run.
    pub fn put_back(&mut self, name: &str, posts: VecDeque<Post>) {
        if let Some(receiver) = self.receivers.iter_mut().find(|one| one.is_webhook() && *one.settings.name == *name) {
            receiver.pending = posts;
        }
    }

    /// The list of alerts is another one.
    pub fn list_changed(&mut self) {
        // One that does not answer is not asked more often for it.
        for receiver in self.receivers.iter_mut().filter(|one| !one.is_webhook() && one.failures == 0) {
            receiver.next = receiver.next.min(receiver.last + LIST_GAP);
        }
    }

    /// Sends what is due. `list` makes an Alertmanager's message, `None` where there is nothing to tell. Returns whose messages
    /// became too old.
    pub fn start(&mut self, now: Timestamp, list: impl Fn() -> Option<String>) -> Vec<Arc<str>> {
        let mut expired = Vec::new();
        for receiver in self.receivers.iter_mut().filter(|receiver| !receiver.busy) {
            while receiver.pending.front().is_some_and(|post| post.since.plus(POST_KEPT) <= now) {
                receiver.pending.pop_front();
                expired.push(receiver.settings.name.clone());
            }
            if !receiver.is_due() {
                continue;
            }
            let (settings, name) = (receiver.settings.clone(), receiver.settings.name.clone());
            receiver.last = Instant::now();
            match receiver.pending.front().cloned() {
                Some(post) => {
                    self.under_way.spawn(async move { (name, webhook(&settings, &post.id, post.body, now).await) });
                }
                None => {
                    receiver.next = receiver.last + self.resend;
                    let Some(list) = list() else { continue };
                    self.under_way.spawn(async move { (name, alertmanager(&settings, list).await) });
                }
            }
            receiver.busy = true;
        }
        expired
    }

    /// Waits for something that was sent. `None`: nothing is under way.
    pub async fn sent(&mut self) -> Option<(Arc<str>, Sent)> {
        // What panicked is taken for something that failed by itself: its receiver is never tried again.
        self.under_way.join_next().await.and_then(Result::ok)
    }

    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Takes in what came of a try: returns how long its receiver is left alone, if it is.
    pub fn conclude(&mut self, name: &str, sent: &Sent) -> Option<Duration> {
        let receiver = self.receivers.iter_mut().find(|receiver| *receiver.settings.name == *name)?;
        receiver.busy = false;
        if matches!(sent, Sent::Failed(_)) {
            let wait = backoff(receiver.failures);
            receiver.failures += 1;
            receiver.next = Instant::now() + wait;
            return Some(wait);
        }
        receiver.failures = 0;
        receiver.pending.pop_front();
        None
    }

    /// When something has to be sent next, if nothing happens before.
    pub fn wake(&self) -> Option<Instant> {
        let waiting = |receiver: &&Receiver| !receiver.busy && (!receiver.is_webhook() || !receiver.pending.is_empty());
        self.receivers.iter().filter(waiting).map(|receiver| receiver.next).min()
    }

    /// Messages that wait, by receiver.
    pub fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, &VecDeque<Post>)> {
        let webhooks = self.receivers.iter().filter(|receiver| receiver.is_webhook());
        webhooks.map(|receiver| (&receiver.settings.name, &receiver.pending))
    }
}

impl Receiver {
    fn is_webhook(&self) -> bool {
        matches!(self.settings.kind, ReceiverKind::Webhook { .. })
    }

    fn is_due(&self) -> bool {
        self.next <= Instant::now() && !(self.is_webhook() && self.pending.is_empty())
    }
}

/// Twice as long each time, to a maximum, and somewhere between half of it and all: receivers that came back together with
/// many gateways are not asked by all of them at once.
fn backoff(failures: u32) -> Duration {
    let whole = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(RETRY_MAX);
    let mut random = [0; 1];
    // The generator cannot fail once seeded (AWS-LC aborts instead); without it there is no spread, and no harm.
    let _ = rand::fill(&mut random);
    whole / 2 + whole / 2 * u32::from(random[0]) / 255
}

/// Sends one message to a webhook, signed at this time.
pub async fn webhook(to: &settings::Receiver, id: &str, body: String, now: Timestamp) -> Sent {
    let ReceiverKind::Webhook { secret } = &to.kind else { return Sent::Failed("it is no webhook".to_owned()) };
    let secret = secret.clone();
    // On a thread that may hang with its file system.
    let loaded = tokio::task::spawn_blocking(move || Secret::load(&secret)).await;
    let secret = match loaded.map_err(|error| error.to_string()).flatten() {
        Ok(secret) => secret,
        Err(why) => return Sent::Failed(why),
    };
    let seconds = now.unix_seconds();
    let headers = vec![
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", seconds.to_string()),
        ("webhook-signature", secret.sign(id, seconds, &body)),
    ];
    judge(
        client::post(&to.url, "", to.ca.as_deref(), Message { headers, ..Message::json(body) }, ANSWER_BYTES_MAX).await,
    )
}

/// Tells an Alertmanager of alerts, by version 2 of its API.
pub async fn alertmanager(to: &settings::Receiver, alerts: String) -> Sent {
    let message = Message::json(alerts);
    judge(client::post(&to.url, "/api/v2/alerts", to.ca.as_deref(), message, ANSWER_BYTES_MAX).await)
}

fn judge<B: AsRef<[u8]>>(answer: Result<(u16, B), String>) -> Sent {
    match answer {
        Ok((status @ 200..300, _)) => Sent::Taken(status),
        // What is said of the message itself. Others, such as 401 and 404, are mended at the receiver.
        Ok((status @ (400 | 410 | 413 | 415 | 422), body)) => {
            // A word of theirs, since it may say what is wrong; never more, and nothing that moves a cursor.
            let word = String::from_utf8_lossy(body.as_ref());
            let word: String = word.chars().filter(|c| !c.is_control()).take(200).collect();
            Sent::Refused(format!("it answers {status}: {word}"))
        }
        Ok((status, _)) => Sent::Failed(format!("it answers {status}")),
        Err(why) => Sent::Failed(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_its_maximum_and_is_spread() {
        for failures in 0..40 {
            let whole = RETRY_MIN.saturating_mul(1 << failures.min(16)).min(RETRY_MAX);
            let wait = backoff(failures);
            assert!((whole / 2..=whole).contains(&wait), "{failures}: {wait:?}");
        }
    }

    #[test]
    fn an_answer_about_the_message_is_final_and_others_are_not() {
        for (status, expected) in [(200, "ok"), (202, "ok"), (204, "ok"), (400, "refused"), (410, "refused")] {
            assert_eq!(judge(Ok((status, ""))).as_str(), expected, "{status}");
        }
        for status in [101, 301, 302, 401, 403, 404, 408, 425, 429, 500, 502, 503] {
            assert_eq!(judge(Ok((status, ""))).as_str(), "failed", "{status}");
        }
        assert_eq!(judge::<&str>(Err("no connection".to_owned())).as_str(), "failed");
        assert_eq!(judge(Ok((400, "bad\u{1b}[2J"))), Sent::Refused("it answers 400: bad[2J".to_owned()));
    }
}
