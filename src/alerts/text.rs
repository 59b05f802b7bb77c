//! What do operators read? One alert as a line, as a text that can be forwarded, and as JSON for the two kinds of receivers.

use std::fmt::Write;

use serde_json::{Value, json};

use super::active::{Active, Change, Ledger, Moved};
use crate::clock::Timestamp;
use crate::detect::{Level, Severity};

/// What Alertmanagers call alerts about partners, and the one of a test.
const ALERT_NAME: &str = "DwarpalPartnerMisuse";
const TEST_NAME: &str = "DwarpalTest";

pub const fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

pub const fn level(level: Level) -> &'static str {
    match level {
        Level::Open => "open",
        Level::KnownOnly => "known-only",
        Level::ConsentOnly => "consent-only",
        Level::Frozen => "frozen",
    }
}

/// To the second: nobody reads more.
fn moment(time: Timestamp) -> Timestamp {
    Timestamp::from_unix_seconds(time.unix_seconds())
}

fn who(alert: &Active) -> String {
    match &alert.actor {
        Some(actor) => format!("actor {actor} (as asserted by {})", alert.partner),
        None => format!("partner {}", alert.partner),
    }
}

fn step(moved: &Moved) -> String {
    let until = match moved.until {
        Some(until) => format!("until {}", moment(until)),
        None => "until an operator releases it".to_owned(),
    };
    match moved.to {
        Level::Open => "open again".to_owned(),
        to => format!("{} {until}", level(to)),
    }
}

/// One line: who, what, and what the gateway did.
pub fn summary(change: Change, alert: &Active) -> String {
    let word = match change {
        Change::Resolved => "over: ",
        Change::Repeated => "still: ",
        Change::Raised | Change::Escalated | Change::Counted => "",
    };
    let did = alert.moved.as_ref().map_or(String::new(), |moved| format!("; {}", step(moved)));
    format!("{word}{}: {}, {}{did}", who(alert), alert.detector, severity(alert.severity))
}

/// A text that says everything to somebody who has not heard of it.
pub fn description(change: Change, alert: &Active) -> String {
    let Active { partner, detector, why, moved, exposed, decision, first, last, count, .. } = alert;
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut line = |line: &str| _ = writeln!(text, "{line}");
    line(&match &alert.actor {
        Some(actor) => {
            format!(
                "Who: actor {actor} of partner {partner}, as asserted by {partner}; the gateway does not know who that is."
            )
        }
        None => format!("Who: partner {partner}."),
    });
    let times = match count {
        1 => format!("at {}", moment(*first)),
        count => format!("{count} times from {} to {}", moment(*first), moment(*last)),
    };
    line(&format!("What: {detector}, {}, {times}.", severity(alert.severity)));
    line("Why:");
    why.iter().for_each(|reason| line(&format!("- {reason}")));
    line(&match moved {
        Some(moved) => format!("What the gateway did: from {} to {}.", level(moved.from), step(moved)),
        None => "What the gateway did: nothing; it only tells.".to_owned(),
    });
    if let Some(people) = exposed {
        line(&format!("Exposed: the data of {people} people were disclosed since this began."));
    }
    if change == Change::Resolved {
        line("It is over: it did not come again, and holds nobody any more.");
    }
    line("To look further:");
    line(&format!("  dwarpal standing {partner}"));
    line(&format!("  dwarpal audit tail --partner {partner} --lines 100"));
    if let Some(decision) = decision {
        line(&format!("  dwarpal audit show {decision}"));
    }
    text
}

/// The body of a webhook's message.
pub fn webhook(gateway: &str, change: Change, alert: &Active, now: Timestamp) -> String {
    let data = json!({
        "gateway": gateway,
        "partner": alert.partner,
        "actor": alert.actor,
        "actor_asserted_by": alert.actor.as_ref().map(|_| &alert.partner),
        "detector": alert.detector,
        "severity": severity(alert.severity),
        "why": alert.why,
        "moved": alert.moved,
        "exposed": alert.exposed,
        "decision": alert.decision,
        "first": alert.first,
        "last": alert.last,
        "count": alert.count,
        "summary": summary(change, alert),
        "text": description(change, alert),
    });
    json!({ "type": format!("alert.{}", change.as_str()), "timestamp": now, "data": data }).to_string()
}

/// The body of a webhook's test.
pub fn webhook_test(gateway: &str, now: Timestamp) -> String {
    let data = json!({ "gateway": gateway, "summary": TEST_SUMMARY, "text": TEST_SUMMARY });
    json!({ "type": "alert.test", "timestamp": now, "data": data }).to_string()
}

const TEST_SUMMARY: &str = "a test of the way that alerts take: nothing happened";

/// All alerts for an Alertmanager. Those that go on end at `until`, unless they are told again before.
pub fn alertmanager(gateway: &str, ledger: &Ledger, until: Timestamp) -> String {
    let active = ledger.active().iter().map(|alert| one(gateway, Change::Raised, alert, until));
    let ended = ledger.ended().map(|(alert, end)| one(gateway, Change::Resolved, alert, *end));
    Value::Array(active.chain(ended).collect()).to_string()
}

fn one(gateway: &str, change: Change, alert: &Active, end: Timestamp) -> Value {
    let mut labels = json!({
        "alertname": ALERT_NAME,
        "gateway": gateway,
        "partner": alert.partner,
        "detector": alert.detector,
        "severity": severity(alert.severity),
    });
    if let Some(actor) = &alert.actor {
        labels["actor"] = json!(actor);
    }
    json!({
        "labels": labels,
        "annotations": { "summary": summary(change, alert), "description": description(change, alert) },
        "startsAt": alert.first,
        "endsAt": end.max(alert.first),
    })
}

/// An alert that ends by itself.
pub fn alertmanager_test(gateway: &str, now: Timestamp, until: Timestamp) -> String {
    let labels = json!({ "alertname": TEST_NAME, "gateway": gateway, "severity": "info" });
    let annotations = json!({ "summary": TEST_SUMMARY, "description": TEST_SUMMARY });
    json!([{ "labels": labels, "annotations": annotations, "startsAt": now, "endsAt": until }]).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::active::tests::{PACE, at, said};
    use super::*;

    fn contained() -> Active {
        let moved = Moved { from: Level::Open, to: Level::KnownOnly, until: Some(at(7_200)) };
        Active {
            moved: Some(moved),
            exposed: Some(18),
            decision: uuid::Uuid::try_parse("019ca8fd-4bfc-7000-80cd-1067dfbaa486").ok(),
            ..said(Some("hw-1042"), Severity::Critical, 0)
        }
    }

    #[test]
    fn an_operator_can_forward_it() {
        let alert = contained();
        assert_eq!(
            summary(Change::Raised, &alert),
            "actor hw-1042 (as asserted by icmr): miss-evidence, critical; known-only until 2027-01-15T10:00:00Z"
        );
        assert_eq!(
            description(Change::Raised, &alert),
            "Who: actor hw-1042 of partner icmr, as asserted by icmr; the gateway does not know who that is.\n\
             What: miss-evidence, critical, at 2027-01-15T08:00:00Z.\n\
             Why:\n\
             - 31 of 40 people asked for do not exist\n\
             What the gateway did: from open to known-only until 2027-01-15T10:00:00Z.\n\
             Exposed: the data of 18 people were disclosed since this began.\n\
             To look further:\n  \
               dwarpal standing icmr\n  \
               dwarpal audit tail --partner icmr --lines 100\n  \
               dwarpal audit show 019ca8fd-4bfc-7000-80cd-1067dfbaa486\n"
        );
        let quiet = Active { count: 3, last: at(60), ..said(None, Severity::Warning, 0) };
        let text = description(Change::Resolved, &quiet);
        for part in [
            "Who: partner icmr.",
            "3 times from 2027-01-15T08:00:00Z to 2027-01-15T08:01:00Z",
            "nothing; it only tells",
            "It is over",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(summary(Change::Resolved, &quiet), "over: partner icmr: miss-evidence, warning");
    }

    #[test]
    fn an_alertmanager_is_told_what_goes_on_and_what_ended() {
        let mut ledger = Ledger::default();
        let _ = ledger.fold(contained(), PACE);
        let _ = ledger.fold(said(None, Severity::Warning, 1), PACE);
        let _ = ledger.end(PACE, at(901));
        let told: Value = serde_json::from_str(&alertmanager("gateway.test", &ledger, at(1_000))).expect("JSON");
        let [on, over] = told.as_array().expect("a list").as_slice() else { panic!("{told}") };
        assert_eq!(
            on["labels"],
            json!({
                "alertname": "DwarpalPartnerMisuse", "gateway": "gateway.test", "partner": "icmr", "actor": "hw-1042",
                "detector": "miss-evidence", "severity": "critical",
            })
        );
        assert_eq!((&on["startsAt"], &on["endsAt"]), (&json!(at(0)), &json!(at(1_000))));
        assert_eq!(over["labels"].get("actor"), None);
        assert_eq!(over["endsAt"], json!(at(901)));
    }
}
