//! Reads who is told of alerts, and how often.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::copies::endpoint;
use super::gateway::name;
use super::reader::Reader;
use super::settings::{ActorNames, Alerts, Receiver, ReceiverKind};

/// Each gets a message of every alert: more than anybody runs.
const RECEIVERS_MAX: usize = 16;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Where systems keep the CAs that they trust: Debian, Fedora, SUSE, Alpine.
const SYSTEM_CA: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

pub fn default_alerts() -> Alerts {
    Alerts {
        actors: ActorNames::Clear,
        repeat: 3600 * SECOND,
        quiet: 900 * SECOND,
        resend: 60 * SECOND,
        queue_max: 1_000,
        receivers: Vec::new(),
    }
}

/// From the table of alerts.
pub fn alerts(table: &Reader, directory: &Path) -> Option<Alerts> {
    let default = default_alerts();
    let actors = table.want("actors", |text| match text {
        "clear" => Ok(ActorNames::Clear),
        "token" => Ok(ActorNames::Token),
        _ => Err("it is \"clear\" or \"token\"".to_owned()),
    });
    let repeat = table.duration("repeat", SECOND..=366 * DAY, default.repeat);
    let quiet = table.duration("quiet", SECOND..=366 * DAY, default.quiet);
    let resend = table.duration("resend", SECOND..=3600 * SECOND, default.resend);
    let queue_max = table.integer("queue_max", 1..=100_000, Some(default.queue_max as i64));
    let mut receivers = table.tables("webhook", |table| {
        let secret = table.need_text("secret").map(|file| directory.join(file));
        receiver(table, directory, secret.map(|secret| ReceiverKind::Webhook { secret }))
    });
    let alertmanagers =
        table.tables("alertmanager", |table| receiver(table, directory, Some(ReceiverKind::Alertmanager)));
    receivers.extend(alertmanagers);
    for (at, one) in receivers.iter().enumerate() {
        if receivers[..at].iter().any(|other| other.name == one.name) {
            let key = if matches!(one.kind, ReceiverKind::Webhook { .. }) { "webhook" } else { "alertmanager" };
            table.problem(key, format!("two receivers are called {}", one.name), "give each its own name");
        }
    }
    if receivers.len() > RECEIVERS_MAX {
        let hint = format!("name {RECEIVERS_MAX} at the most; an Alertmanager can tell others");
        table.problem("webhook", "too many receivers", hint);
    }
    Some(Alerts {
        actors: actors?.unwrap_or(default.actors),
        repeat: repeat?,
        quiet: quiet?,
        resend: resend?,
        queue_max: queue_max? as usize,
        receivers,
    })
}

fn receiver(table: &Reader, directory: &Path, kind: Option<ReceiverKind>) -> Option<Receiver> {
    let name = table.need("name", name);
    let url = table.need("url", endpoint);
    let ca = table.want_text("ca").map(|ca| ca.map(|ca| directory.join(ca)));
    let ca = match (&url, ca?) {
        (Some(url), None) if url.tls => match system_ca() {
            Some(ca) => Some(ca),
            None => {
                let hint = "name the CA certificates that may vouch for its server";
                table.problem("ca", "missing, and this system has no list of CAs", hint);
                return None;
            }
        },
        (_, ca) => ca,
    };
    Some(Receiver { name: name?.into(), url: url?, ca, kind: kind?, place: table.place() })
}

fn system_ca() -> Option<PathBuf> {
    SYSTEM_CA.iter().map(PathBuf::from).find(|file| file.is_file())
}
