//! How do operators hear of what detectors say? By the log, metrics, the audit, webhooks and Alertmanagers.
//!
//! [`Alerts::raise`] waits for nobody: it hands over to a thread of its own, which finds out what is news (`active`), words it
//! (`text`) and sends it (`deliver`). What goes on and what nobody has taken yet is kept in a file, so that a restart neither
//! forgets nor repeats. What finds no room is counted and logged by whoever raised it.

pub mod active;
mod deliver;
pub mod secret;
mod text;

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::audit::event::{self, Event};
use crate::clock::Clock;
use crate::config::settings::{ActorNames, ReceiverKind};
use crate::detect::Alert;
use crate::gateway::Gateway;
use crate::log::LogLimit;
use crate::proxy::headers::decision as new_id;
use crate::state::store;
use crate::subject::mentions_subject;
use active::{Active, Change, Ledger, Moved, Pace};
use deliver::{Deliveries, Post, Sent};

/// Where alerts are handed in.
#[derive(Debug)]
pub struct Alerts {
    told: Sender<Told>,
    dropped: AtomicU64,
    dropped_lines: LogLimit,
    clock: Clock,
}

/// What the thread is told.
#[derive(Debug)]
enum Told {
    Raised(Box<Alert>, Option<Uuid>),
    Released { partner: Arc<str>, actor: Option<String> },
}

/// The thread's end.
#[derive(Debug)]
pub struct Inbox(Receiver<Told>);

/// Reasons that are told of one alert, each of bounded length.
const REASONS_MAX: usize = 8;
/// How often the thread looks whether something is over, if nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two writes of what must not be lost: a kill may take the news of so long, however many come.
const KEEP_GAP: Duration = Duration::from_millis(100);
/// How long a gateway that stops goes on telling.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

impl Alerts {
    /// With room for so many that were raised and not looked at yet.
    pub fn new(queue_max: usize, clock: Clock) -> (Alerts, Inbox) {
        let (told, inbox) = mpsc::channel(queue_max.max(1));
        let dropped_lines = LogLimit::of_connections();
        (Alerts { told, dropped: AtomicU64::new(0), dropped_lines, clock }, Inbox(inbox))
    }

    /// Tells operators of something, with the decision that it came with. Never waits.
    pub fn raise(&self, alert: Alert, decision: Option<Uuid>) {
        let Err(error) = self.told.try_send(Told::Raised(Box::new(alert), decision)) else { return };
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let (mpsc::error::TrySendError::Full(told) | mpsc::error::TrySendError::Closed(told)) = error;
        let Told::Raised(alert, _) = told else { return };
        self.dropped_lines.note(self.clock.now(), |unlogged| {
            let Alert { partner, detector, severity, .. } = &*alert;
            let severity = text::severity(*severity);
            tracing::error!(%partner, detector, severity, unlogged, "an alert found no room: it is told nowhere else");
        });
    }

    /// A partner, or an actor of it, was let off the ladder before its time: what held it there is over.
    pub fn release(&self, partner: &Arc<str>, actor: Option<&str>) {
        // What is lost here ends by itself when its time is over; an operator who released sees that it goes on until then.
        let _ = self.told.try_send(Told::Released { partner: partner.clone(), actor: actor.map(str::to_owned) });
    }

    /// Alerts that were raised and not looked at yet.
    pub fn waiting(&self) -> usize {
        self.told.max_capacity() - self.told.capacity()
    }

    /// Alerts that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// What a receiver said to a test.
pub struct Tested {
    pub receiver: Arc<str>,
    pub url: Arc<str>,
    /// Its status, or why it did not take it.
    pub outcome: Result<u16, String>,
}

/// Sends a test to every receiver, once, and waits for what each says: no longer than the client's timeout.
pub async fn test(gateway: &Gateway) -> Vec<Tested> {
    let snapshot = gateway.snapshot();
    let (now, name) = (gateway.clock.now(), &snapshot.settings.audit.origin);
    let until = now.plus(snapshot.settings.alerts.believed_for());
    let tests = snapshot.settings.alerts.receivers.iter().map(|receiver| {
        let (receiver, name) = (receiver.clone(), name.clone());
        tokio::spawn(async move {
            let sent = match &receiver.kind {
                ReceiverKind::Webhook { .. } => {
                    let id = format!("msg_{}", new_id(now).0.simple());
                    deliver::webhook(&receiver, &id, text::webhook_test(&name, now), now).await
                }
                ReceiverKind::Alertmanager => {
                    let test = text::alertmanager_test(&name, now, until);
                    deliver::alertmanager(&receiver, test).await
                }
            };
            (receiver, sent)
        })
    });
    let tests: Vec<_> = tests.collect();
    let mut tested = Vec::new();
    for test in tests {
        let Ok((receiver, sent)) = test.await else { continue };
        gateway.metrics.alert_delivery(&receiver.name, sent.as_str());
        let outcome = match sent {
            Sent::Taken(status) => Ok(status),
            Sent::Refused(why) | Sent::Failed(why) => Err(why),
        };
        tested.push(Tested { receiver: receiver.name, url: receiver.url.url, outcome });
    }
    tested
}

/// The thread: looks at what was raised, and tells, until the gateway ends.
pub fn run(gateway: &Gateway, Inbox(mut inbox): Inbox) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut desk = Desk::open(gateway);
        loop {
            desk.go_on();
            let wake = desk.wake();
            tokio::select! {
                told = inbox.recv() => {
                    let Some(told) = told else { return };
                    desk.take(told);
                    // What waits is looked at together: sending begins with what is worst of it.
                    while let Ok(told) = inbox.try_recv() {
                        desk.take(told);
                    }
                }
                Some((name, sent)) = desk.deliveries.sent(), if !desk.deliveries.is_idle() => desk.conclude(&name, &sent),
                () = tokio::time::sleep_until(wake) => {}
                () = gateway.drained() => break,
            }
        }
        while let Ok(told) = inbox.try_recv() {
            desk.take(told);
        }
        desk.say_farewell().await;
    });
    // A file or a receiver that hangs must not hold up the end.
    runtime.shutdown_background();
    Ok(())
}

/// What the thread knows.
struct Desk<'g> {
    gateway: &'g Gateway,
    generation: u64,
    ledger: Ledger,
    deliveries: Deliveries,
    kept: Kept,
}

/// What of it is on the disk.
#[derive(Default)]
struct Kept {
    /// Something is new since the last write began; `urgent` if it must not be lost.
    changed: bool,
    urgent: bool,
    under_way: Option<JoinHandle<()>>,
    last: Option<Instant>,
    /// Whether the last write failed.
    failing: Arc<AtomicBool>,
}

/// The file's contents.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u8,
    alerts: Ledger,
    /// Messages that wait, by receiver.
    waiting: BTreeMap<String, VecDeque<Post>>,
}

const VERSION: u8 = 1;

impl Desk<'_> {
    fn open(gateway: &Gateway) -> Desk<'_> {
        let snapshot = gateway.snapshot();
        let (settings, path) = (&snapshot.settings.alerts, snapshot.settings.alerts_file());
        // What cannot be read is no reason to let nobody in: it is said, and alerts begin anew.
        let document = read(&path).unwrap_or_else(|why| {
            tracing::error!(file = %path.display(), why, "alerts of an earlier run are lost");
            Document::default()
        });
        let Document { version: _, alerts: ledger, waiting } = document;
        let mut deliveries = Deliveries::new();
        deliveries.configure(settings);
        waiting.into_iter().for_each(|(name, posts)| deliveries.put_back(&name, posts));
        Desk { gateway, generation: snapshot.generation, ledger, deliveries, kept: Kept::default() }
    }

    fn pace(&self) -> Pace {
        let settings = &self.gateway.snapshot().settings.alerts;
        Pace { repeat: settings.repeat, quiet: settings.quiet }
    }

    /// Ends what is over, and sends and keeps what is due.
    fn go_on(&mut self) {
        let snapshot = self.gateway.snapshot();
        if snapshot.generation != self.generation {
            self.generation = snapshot.generation;
            self.deliveries.configure(&snapshot.settings.alerts);
        }
        let now = self.gateway.clock.now();
        let over = self.ledger.end(self.pace(), now);
        over.into_iter().for_each(|(change, alert)| self.tell(change, &alert));
        let (name, ledger) = (&snapshot.settings.audit.origin, &self.ledger);
        let until = now.plus(snapshot.settings.alerts.believed_for());
        let list = || (!ledger.is_empty()).then(|| text::alertmanager(name, ledger, until));
        for receiver in self.deliveries.start(now, list) {
            self.gateway.metrics.alert_delivery(&receiver, "expired");
            tracing::warn!(%receiver, "a receiver of alerts has not taken one for a day: it is given up");
            (self.kept.changed, self.kept.urgent) = (true, true);
        }
        for (receiver, posts) in self.deliveries.waiting() {
            self.gateway.metrics.alerts_waiting(receiver, posts.len());
        }
        self.keep();
    }

    fn wake(&self) -> Instant {
        let look = Instant::now() + if self.kept.urgent { KEEP_GAP } else { LOOK_EVERY };
        self.deliveries.wake().map_or(look, |wake| wake.min(look))
    }

    fn take(&mut self, told: Told) {
        match told {
            Told::Raised(alert, decision) => {
                self.gateway.metrics.alert(&alert.partner, alert.detector, text::severity(alert.severity));
                let said = self.worded(*alert, decision);
                self.kept.changed = true;
                if let Some((change, alert)) = self.ledger.fold(said, self.pace()) {
                    self.tell(change, &alert);
                }
            }
            Told::Released { partner, actor } => {
                let actor = actor.map(|actor| self.named(&actor).0);
                let over = self.ledger.release(&partner, actor.as_deref(), self.gateway.clock.now());
                over.into_iter().for_each(|(change, alert)| self.tell(change, &alert));
            }
        }
    }

    /// What an actor is called here, and its mark.
    fn named(&self, actor: &str) -> (String, crate::subject::Mark) {
        let mark = self.gateway.epochs().current().actor(actor);
        match self.gateway.snapshot().settings.alerts.actors {
            ActorNames::Clear => (actor.to_owned(), mark),
            ActorNames::Token => (mark.to_string(), mark),
        }
    }

    /// An alert as it may be told and kept.
    fn worded(&self, alert: Alert, decision: Option<Uuid>) -> Active {
        let Alert { time, partner, actor, detector, severity, why, moved, exposed } = alert;
        let named = actor.as_deref().map(|actor| self.named(actor));
        let why = why.iter().take(REASONS_MAX).map(|reason| {
            let reason = event::clipped(reason);
            match (&actor, &named) {
                // No detector should; what stands here is kept, and sent far.
                _ if mentions_subject(reason) => "(left out: a person's number could be read in it)".to_owned(),
                (Some(actor), Some((name, _))) => renamed(reason, actor, name),
                _ => reason.to_owned(),
            }
        });
        Active {
            partner: partner.to_string(),
            why: why.collect(),
            mark: named.as_ref().map(|(_, mark)| *mark),
            actor: named.map(|(name, _)| name),
            detector: detector.to_owned(),
            severity,
            moved: moved.map(|step| Moved { from: step.from, to: step.to, until: step.until }),
            exposed,
            decision,
            first: time,
            last: time,
            told: time,
            count: 1,
        }
    }

    /// By log and audit, and what is news to receivers.
    fn tell(&mut self, change: Change, alert: &Active) {
        let now = self.gateway.clock.now();
        log(change, alert);
        self.gateway.audit.note(&Event::Alert(entry(change, alert, now)));
        if change == Change::Counted {
            return;
        }
        let id = format!("msg_{}", new_id(now).0.simple());
        let name = &self.gateway.snapshot().settings.audit.origin;
        let post = Post { id, body: text::webhook(name, change, alert, now), severity: alert.severity, since: now };
        for receiver in self.deliveries.put(&post) {
            self.gateway.metrics.alert_delivery(&receiver, "dropped");
            tracing::error!(%receiver, "more alerts wait for a receiver than queue_max: one is given up");
        }
        self.deliveries.list_changed();
        (self.kept.changed, self.kept.urgent) = (true, true);
    }

    fn conclude(&mut self, receiver: &str, sent: &Sent) {
        self.gateway.metrics.alert_delivery(receiver, sent.as_str());
        let wait = self.deliveries.conclude(receiver, sent).unwrap_or_default();
        match sent {
            Sent::Taken(_) => tracing::debug!(receiver, "alerts were taken"),
            Sent::Refused(why) => tracing::warn!(receiver, why, "a receiver refuses an alert: it is given up"),
            Sent::Failed(why) => {
                tracing::warn!(receiver, why, again_seconds = wait.as_secs_f32(), "a receiver has not taken an alert");
            }
        }
        (self.kept.changed, self.kept.urgent) = (true, true);
    }

    /// Has the file written, where something is new: soon what must not be lost, once a second what is only counted. On a
    /// thread that may hang with its disk; the next write waits for it, nobody else does.
    fn keep(&mut self) {
        let Kept { changed, urgent, under_way, last, failing } = &mut self.kept;
        if under_way.as_ref().is_some_and(|write| !write.is_finished()) {
            return;
        }
        let failed = failing.load(Ordering::Relaxed);
        let gap = if *urgent && !failed { KEEP_GAP } else { LOOK_EVERY };
        if !(*changed || failed) || last.is_some_and(|last| last.elapsed() < gap) {
            return;
        }
        let waiting = self.deliveries.waiting().map(|(name, posts)| (name.to_string(), posts.clone())).collect();
        let document = Document { version: VERSION, alerts: self.ledger.clone(), waiting };
        let path = self.gateway.snapshot().settings.alerts_file();
        (*changed, *urgent, *last) = (false, false, Some(Instant::now()));
        let failing = failing.clone();
        *under_way = Some(tokio::task::spawn_blocking(move || {
            let written = serde_json::to_vec(&document).map_err(io::Error::other);
            let written = written.and_then(|text| store::replace(&path, &text));
            let failed_before = failing.swap(written.is_err(), Ordering::Relaxed);
            if let Err(error) = written
                && !failed_before
            {
                tracing::error!(file = %path.display(), %error, "alerts cannot be kept: a restart would forget them");
            }
        }));
    }

    /// Waits for the write that is under way.
    async fn kept(&mut self) {
        if let Some(write) = self.kept.under_way.take() {
            let _ = write.await;
        }
    }

    /// A last try for everybody, and the file as it is then.
    async fn say_farewell(&mut self) {
        let last = async {
            self.go_on();
            while let Some((name, sent)) = self.deliveries.sent().await {
                self.conclude(&name, &sent);
                // Not what has just failed: that waits, longer than we do.
                self.go_on();
            }
            self.kept().await;
            self.kept.last = None;
            self.keep();
            self.kept().await;
        };
        if tokio::time::timeout(FAREWELL_TIMEOUT, last).await.is_err() {
            tracing::warn!("not every receiver was told of the last alerts before the end");
        }
    }
}

fn read(path: &Path) -> Result<Document, String> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Document::default()),
        Err(error) => return Err(error.to_string()),
    };
    let document: Document = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    if document.version == VERSION { Ok(document) } else { Err(format!("it is of version {}", document.version)) }
}

/// A text in which somebody is called otherwise; not where the name is a part of another word.
fn renamed(text: &str, from: &str, to: &str) -> String {
    let mut renamed = String::with_capacity(text.len());
    let mut rest = 0;
    let inner = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '@');
    for (at, _) in text.match_indices(from) {
        let after = &text[at + from.len()..];
        if text[..at].ends_with(inner) || after.starts_with(inner) {
            continue;
        }
        renamed.push_str(&text[rest..at]);
        renamed.push_str(to);
        rest = at + from.len();
    }
    renamed + &text[rest..]
}

fn log(change: Change, alert: &Active) {
    let Active { partner, actor, detector, severity, why, moved, exposed, decision, count, .. } = alert;
    let (severity, why) = (text::severity(*severity), why.join("; "));
    let (step, until) = (moved.map(|moved| text::level(moved.to)), moved.and_then(|moved| moved.until));
    let until = until.map(tracing::field::display);
    let decision = decision.map(tracing::field::display);
    let (actor, change) = (actor.as_deref(), change.as_str());
    tracing::warn!(change, partner, actor, detector, severity, why, step, until, exposed, count, decision, "alert");
}

/// Of the audit: actors are marks there, whatever they are called elsewhere.
fn entry(change: Change, alert: &Active, now: crate::clock::Timestamp) -> event::Alert<'_> {
    let why = alert.why.iter().map(|reason| match (&alert.actor, alert.mark) {
        (Some(actor), Some(mark)) => renamed(reason, actor, &mark.to_string()).into(),
        _ => reason.as_str().into(),
    });
    event::Alert {
        v: event::VERSION,
        time: now,
        id: alert.decision,
        change: change.as_str().into(),
        partner: alert.partner.as_str().into(),
        actor: alert.mark,
        detector: alert.detector.as_str().into(),
        severity: text::severity(alert.severity).into(),
        why: why.collect(),
        from: alert.moved.map(|moved| text::level(moved.from).into()),
        to: alert.moved.map(|moved| text::level(moved.to).into()),
        until: alert.moved.and_then(|moved| moved.until),
        exposed: alert.exposed,
        count: alert.count,
        first: alert.first,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_another_only_where_it_stands_alone() {
        for (text, expected) in [
            ("hw-1 asked", "X asked"),
            ("by hw-1, hw-10 and xhw-1", "by X, hw-10 and xhw-1"),
            ("hw-1", "X"),
            ("'hw-1' hw-1-a", "'X' hw-1-a"),
            ("nobody", "nobody"),
        ] {
            assert_eq!(renamed(text, "hw-1", "X"), expected);
        }
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let clock = Clock::manual(crate::clock::Timestamp::from_unix_seconds(1));
        let (alerts, Inbox(mut inbox)) = Alerts::new(2, clock);
        let alert = Alert {
            time: crate::clock::Timestamp::from_unix_seconds(1),
            partner: "icmr".into(),
            actor: None,
            detector: "miss-evidence",
            severity: crate::detect::Severity::Warning,
            why: Vec::new(),
            moved: None,
            exposed: None,
        };
        (0..5).for_each(|_| alerts.raise(alert.clone(), None));
        assert_eq!((alerts.waiting(), alerts.dropped()), (2, 3));
        assert!(inbox.try_recv().is_ok());
        alerts.raise(alert.clone(), None);
        drop(inbox);
        alerts.raise(alert, None);
        assert_eq!(alerts.dropped(), 4, "also when nobody is there any more");
    }
}
