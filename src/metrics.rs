//! What is counted? The only file that knows prometheus.
//!
//! Labels come from the configuration and from closed lists, never from a request: `none` where nobody was identified
//! or no route was found.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily, MetricType};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

use crate::alerts::Alerts;
use crate::audit::clock_sync::ClockStatus;
use crate::audit::queue::Queue;
use crate::clock::Timestamp;
use crate::log;
use crate::policy::PartnerId;
use crate::policy::admit::Standing;
use crate::policy::containment::Level;
use crate::policy::reason::Reason;
use crate::pressure::Pressure;
use crate::snapshot::Snapshot;
use crate::state::backends::Phase;

/// All metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    shadow_refusals: IntCounterVec,
    containment_level: IntGaugeVec,
    containment_steps: IntCounterVec,
    gateway_seconds: HistogramVec,
    backend_seconds: HistogramVec,
    handshakes: IntCounterVec,
    connections_refused: IntCounterVec,
    connections: IntGauge,
    partner_connections: IntGaugeVec,
    in_flight: IntGaugeVec,
    limiter_entries: IntGaugeVec,
    budget_used: IntGaugeVec,
    budget_left: IntGaugeVec,
    identifier_checks: IntCounterVec,
    answers: IntCounterVec,
    people: IntCounterVec,
    network_last_match: GaugeVec,
    networks: IntGaugeVec,
    certificate_not_after: GaugeVec,
    crl_next_update: GaugeVec,
    backend_up: IntGaugeVec,
    backend_in_flight: IntGaugeVec,
    backend_circuit: IntGaugeVec,
    backend_failures: IntCounterVec,
    backend_retries: IntCounterVec,
    backend_ejections: IntCounterVec,
    backend_checks: IntCounterVec,
    connections_cut: IntCounterVec,
    answers_cut: IntCounterVec,
    reloads: IntCounterVec,
    generation: IntGauge,
    frozen: IntGaugeVec,
    audit_commit_seconds: Histogram,
    audit_entries: IntCounter,
    audit_lost: IntCounterVec,
    audit: IntGaugeVec,
    audit_checkpoint: Gauge,
    audit_failures: IntCounter,
    audit_damages: IntCounter,
    state_kept: IntGauge,
    state_failures: IntCounter,
    sandbox: IntGaugeVec,
    pressure: IntGaugeVec,
    memory_used: Gauge,
    clock_ahead: Gauge,
    audit_witness: IntCounterVec,
    audit_copy: IntCounterVec,
    clock_synchronised: IntGauge,
    clock_offset: Gauge,
    clock_max_error: Gauge,
    clock_stratum: IntGauge,
    alerts: IntCounterVec,
    alert_deliveries: IntCounterVec,
    alerts_waiting: IntGaugeVec,
    alerts_dropped: IntCounter,
    log_lines_lost: IntCounter,
    series: IntGauge,
}

/// Networks of one partner that are shown one by one; longer lists only by how many of them were ever used.
const NETWORKS_SHOWN_MAX: usize = 100;

/// Seconds; the gateway's own part is tens of microseconds, a backend's is milliseconds.
const GATEWAY_BUCKETS: &[f64] = &[0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];
const BACKEND_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How an identifier was found; the rest of the label values are the private codes of its refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identifier {
    Valid,
    /// Well-formed, but of a number series that is not allocated.
    Unallocated,
    Refused(Reason),
}

/// What a backend said of a lookup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Hit { people: u32 },
    Miss,
    Error,
}

impl Metrics {
    pub fn new() -> Result<Metrics, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let float = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, GaugeVec::new(Opts::new(name, help), labels)?)
        };
        let histogram = |name: &str, help: &str, label: &str, buckets: &[f64]| {
            register(&registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &[label])?)
        };
        let build_info = gauge("dwarpal_build_info", "Always 1; the labels say what is running.", &["version"])?;
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Metrics {
            requests: counter(
                "dwarpal_requests_total",
                "Requests by partner, route, verdict (allow, deny, failed, aborted) and reason.",
                &["partner", "route", "verdict", "reason"],
            )?,
            shadow_refusals: counter(
                "dwarpal_shadow_refusals_total",
                "What limits and networks in shadow would have refused, by partner and the reason for it.",
                &["partner", "reason"],
            )?,
            containment_level: gauge(
                "dwarpal_containment_level",
                "Where a partner stands, by evidence or an operator's order: 0 open, 1 known-only, 2 consent-only, 3 frozen.",
                &["partner"],
            )?,
            containment_steps: counter(
                "dwarpal_containment_steps_total",
                "Steps of a partner or of its actors on the ladder, by where to and by whom: operator, automatic, expiry.",
                &["partner", "to", "by"],
            )?,
            gateway_seconds: histogram(
                "dwarpal_gateway_seconds",
                "Time from a request's head to its answer's head, without the backend's part and the wait for the body.",
                "route",
                GATEWAY_BUCKETS,
            )?,
            backend_seconds: histogram(
                "dwarpal_backend_seconds",
                "Time from asking a backend to the head of its answer, or to its end where the answer is read whole.",
                "route",
                BACKEND_BUCKETS,
            )?,
            handshakes: counter("dwarpal_handshakes_total", "TLS handshakes by result: ok, or why not.", &["result"])?,
            connections_refused: counter(
                "dwarpal_connections_refused_total",
                "Connections closed before TLS, by reason.",
                &["reason"],
            )?,
            connections: {
                let gauge = IntGauge::new("dwarpal_connections", "Connections that are open.")?;
                register(&registry, gauge)?
            },
            partner_connections: gauge("dwarpal_partner_connections", "Open connections of a partner.", &["partner"])?,
            in_flight: gauge("dwarpal_requests_in_flight", "Requests of a partner under way.", &["partner"])?,
            limiter_entries: gauge(
                "dwarpal_limiter_entries",
                "Keys that the limiter remembers, by partner and kind (source, subject).",
                &["partner", "kind"],
            )?,
            budget_used: gauge(
                "dwarpal_budget_used",
                "What a partner used of its budgets, by budget (partner: different people asked for, people: disclosed) and window (hour, day, month).",
                &["partner", "budget", "window"],
            )?,
            budget_left: gauge(
                "dwarpal_budget_left",
                "What is left of a partner's budgets, by budget and window.",
                &["partner", "budget", "window"],
            )?,
            identifier_checks: counter(
                "dwarpal_identifier_checks_total",
                "Identifiers read from lookups, by partner, kind and result.",
                &["partner", "kind", "result"],
            )?,
            answers: counter(
                "dwarpal_answers_total",
                "Answers to allowed lookups, by partner, kind and outcome (hit, miss, error).",
                &["partner", "kind", "outcome"],
            )?,
            people: counter("dwarpal_people_answered_total", "People in answers to lookups.", &["partner", "kind"])?,
            network_last_match: float(
                "dwarpal_network_last_match_timestamp_seconds",
                "When an allowlist entry last let a request in; 0 for never.",
                &["partner", "network"],
            )?,
            networks: gauge(
                "dwarpal_networks",
                "Allowlist entries of a partner by use: matched at least once, or unmatched.",
                &["partner", "use"],
            )?,
            certificate_not_after: float(
                "dwarpal_certificate_not_after_timestamp_seconds",
                "When a certificate expires: the gateway's (also towards a backend), an issuer's first, or the one a partner showed last.",
                &["holder", "name"],
            )?,
            crl_next_update: float(
                "dwarpal_crl_next_update_timestamp_seconds",
                "When a revocation list is out of date (before the grace).",
                &["issuer", "file"],
            )?,
            backend_up: gauge(
                "dwarpal_backend_up",
                "1 for a server that is asked; 0 while its checks fail or it is ejected.",
                &["backend", "server"],
            )?,
            backend_in_flight: gauge(
                "dwarpal_backend_requests_in_flight",
                "Requests under way at a server.",
                &["backend", "server"],
            )?,
            backend_circuit: gauge(
                "dwarpal_backend_circuit",
                "A backend's circuit breaker: 0 closed, 1 half-open, 2 open.",
                &["backend"],
            )?,
            backend_failures: counter(
                "dwarpal_backend_failures_total",
                "Requests that a server failed, by reason.",
                &["backend", "server", "reason"],
            )?,
            backend_retries: counter(
                "dwarpal_backend_retries_total",
                "Second tries, at this server, of requests that had reached none.",
                &["backend", "server"],
            )?,
            backend_ejections: counter(
                "dwarpal_backend_ejections_total",
                "Times that a server was left alone because its requests failed.",
                &["backend", "server"],
            )?,
            backend_checks: counter(
                "dwarpal_backend_checks_total",
                "Health checks by result: ok, failed.",
                &["backend", "server", "result"],
            )?,
            connections_cut: counter(
                "dwarpal_connections_cut_total",
                "Connections that the gateway ended because of what the peer did, by reason.",
                &["reason"],
            )?,
            answers_cut: counter(
                "dwarpal_answers_cut_total",
                "Streamed answers that ended early: too-large, too-slow, broken (backend), deadline, partner-gone.",
                &["route", "reason"],
            )?,
            reloads: counter(
                "dwarpal_reloads_total",
                "Reloads by result: swapped, refused, or renewed (refused, but certificates and lists were read anew).",
                &["result"],
            )?,
            generation: {
                let gauge = IntGauge::new("dwarpal_generation", "Generation of what is served, from 1 at the start.")?;
                register(&registry, gauge)?
            },
            frozen: gauge("dwarpal_partner_frozen", "1 while an operator has frozen the partner.", &["partner"])?,
            audit_entries: {
                let name = "dwarpal_audit_entries_total";
                register(&registry, IntCounter::new(name, "Entries of the audit that were brought to the disk.")?)?
            },
            audit_commit_seconds: {
                let name = "dwarpal_audit_commit_seconds";
                let help = "Seconds in which a batch of the audit's entries came to the disk.";
                let options = HistogramOpts::new(name, help).buckets(BACKEND_BUCKETS.to_vec());
                register(&registry, Histogram::with_opts(options)?)?
            },
            audit_lost: counter(
                "dwarpal_audit_lost_total",
                "What found no room in the audit, by event: lookups were refused for it, the others are counted in a gap.",
                &["event"],
            )?,
            audit: gauge(
                "dwarpal_audit",
                "The audit: entries on the disk (size), under the newest checkpoint (checkpoint_size), bytes that wait (queue_bytes), 1 while it can be written (writable).",
                &["figure"],
            )?,
            audit_checkpoint: {
                let name = "dwarpal_audit_checkpoint_timestamp_seconds";
                register(&registry, Gauge::new(name, "When the newest checkpoint was signed, Unix seconds.")?)?
            },
            audit_damages: {
                let name = "dwarpal_audit_damages_total";
                let help = "Files of the audit that were found missing or damaged, or could not be written.";
                register(&registry, IntCounter::new(name, help)?)?
            },
            audit_failures: {
                let name = "dwarpal_audit_failures_total";
                register(&registry, IntCounter::new(name, "Writes of the audit to the disk that failed.")?)?
            },
            state_failures: {
                let name = "dwarpal_state_failures_total";
                register(&registry, IntCounter::new(name, "Writes of the state to the disk that failed.")?)?
            },
            state_kept: {
                let gauge = IntGauge::new(
                    "dwarpal_state_kept",
                    "1 while what partners use up can be kept on the disk; otherwise nobody is let in.",
                )?;
                gauge.set(1);
                register(&registry, gauge)?
            },
            sandbox: gauge(
                "dwarpal_sandbox",
                "What confines the process (landlock, seccomp): 1 where it is in force.",
                &["feature"],
            )?,
            pressure: gauge(
                "dwarpal_pressure",
                "What is short (descriptors, memory): 1 where new connections are shed for it.",
                &["resource"],
            )?,
            clock_ahead: {
                let help = "How far the gateway's clock is ahead of the system's, which was set back.";
                register(&registry, Gauge::new("dwarpal_clock_ahead_seconds", help)?)?
            },
            audit_witness: counter(
                "dwarpal_audit_witness_total",
                "Checkpoints that a witness was asked to sign, by result.",
                &["witness", "result"],
            )?,
            audit_copy: counter(
                "dwarpal_audit_copy_total",
                "Checkpoints copied off the machine, by file or URL and result.",
                &["target", "result"],
            )?,
            clock_synchronised: {
                let help = "1 while chrony, an NTP server or the kernel says that the system's clock is synchronised.";
                register(&registry, IntGauge::new("dwarpal_clock_synchronised", help)?)?
            },
            clock_offset: {
                let help = "What would have to be added to the system's clock; NaN where nobody knows.";
                register(&registry, Gauge::new("dwarpal_clock_offset_seconds", help)?)?
            },
            clock_max_error: {
                let help = "How far the system's clock is off at the most; NaN where nobody knows.";
                register(&registry, Gauge::new("dwarpal_clock_max_error_seconds", help)?)?
            },
            clock_stratum: {
                let help = "Steps from a reference clock to the system's clock; 0 where nobody knows.";
                register(&registry, IntGauge::new("dwarpal_clock_stratum", help)?)?
            },
            alerts: counter(
                "dwarpal_alerts_total",
                "Alerts by partner, detector and severity, those that were no news included.",
                &["partner", "detector", "severity"],
            )?,
            alert_deliveries: counter(
                "dwarpal_alert_deliveries_total",
                "Tries to tell a receiver of alerts, by result, and messages that were given up.",
                &["receiver", "result"],
            )?,
            alerts_waiting: gauge(
                "dwarpal_alerts_waiting",
                "Messages that wait for a receiver, and alerts that nobody has looked at yet, under (raised).",
                &["receiver"],
            )?,
            alerts_dropped: {
                let help =
                    "Alerts that found no room where they were raised: they are in the log, and told nowhere else.";
                register(&registry, IntCounter::new("dwarpal_alerts_dropped_total", help)?)?
            },
            log_lines_lost: {
                let help = "Log lines that were lost because standard error was not read fast enough, or not at all.";
                register(&registry, IntCounter::new("dwarpal_log_lines_lost_total", help)?)?
            },
            memory_used: {
                let help = "Memory in use as a share of the tightest limit; 0 where there is none.";
                register(&registry, Gauge::new("dwarpal_memory_used_ratio", help)?)?
            },
            series: {
                let gauge =
                    IntGauge::new("dwarpal_series", "Time series that this endpoint exports, itself included.")?;
                register(&registry, gauge)?
            },
            registry,
        })
    }

    pub fn request(&self, partner: &str, route: &str, verdict: &str, reason: &str) {
        self.requests.with_label_values(&[partner, route, verdict, reason]).inc();
    }

    pub fn shadow_refusal(&self, partner: &str, reason: Reason) {
        self.shadow_refusals.with_label_values(&[partner, reason.code()]).inc();
    }

    /// A partner's, or one of its actors'.
    pub fn containment_step(&self, partner: &str, to: Level, by: &str) {
        self.containment_steps.with_label_values(&[partner, to.as_str(), by]).inc();
    }

    pub fn latency(&self, route: &str, gateway: Duration, backend: Option<Duration>) {
        self.gateway_seconds.with_label_values(&[route]).observe(gateway.as_secs_f64());
        if let Some(backend) = backend {
            self.backend_seconds.with_label_values(&[route]).observe(backend.as_secs_f64());
        }
    }

    pub fn handshake(&self, result: &str) {
        self.handshakes.with_label_values(&[result]).inc();
    }

    pub fn connection_refused(&self, reason: &str) {
        self.connections_refused.with_label_values(&[reason]).inc();
    }

    pub fn connection_cut(&self, reason: &str) {
        self.connections_cut.with_label_values(&[reason]).inc();
    }

    pub fn answer_cut(&self, route: &str, reason: &str) {
        self.answers_cut.with_label_values(&[route, reason]).inc();
    }

    pub fn clock_ahead(&self, ahead: Duration) {
        self.clock_ahead.set(ahead.as_secs_f64());
    }

    pub fn audit_witness(&self, witness: &str, result: &str) {
        self.audit_witness.with_label_values(&[witness, result]).inc();
    }

    pub fn audit_copy(&self, target: &str, result: &str) {
        self.audit_copy.with_label_values(&[target, result]).inc();
    }

    /// A detector said something.
    pub fn alert(&self, partner: &str, detector: &str, severity: &str) {
        self.alerts.with_label_values(&[partner, detector, severity]).inc();
    }

    pub fn alert_delivery(&self, receiver: &str, result: &str) {
        self.alert_deliveries.with_label_values(&[receiver, result]).inc();
    }

    pub fn alerts_waiting(&self, receiver: &str, count: usize) {
        self.alerts_waiting.with_label_values(&[receiver]).set(count as i64);
    }

    /// Where alerts are raised, as of now.
    pub fn alerts_raised(&self, alerts: &Alerts) {
        self.alerts_waiting("(raised)", alerts.waiting());
        self.alerts_dropped.inc_by(alerts.dropped().saturating_sub(self.alerts_dropped.get()));
    }

    pub fn clock_status(&self, status: &ClockStatus) {
        self.clock_synchronised.set(i64::from(status.synchronised));
        self.clock_offset.set(status.offset.unwrap_or(f64::NAN));
        self.clock_max_error.set(status.max_error.unwrap_or(f64::NAN));
        self.clock_stratum.set(status.stratum.map_or(0, i64::from));
    }

    pub fn sandbox(&self, feature: &str, active: bool) {
        self.sandbox.with_label_values(&[feature]).set(i64::from(active));
    }

    pub fn backend_failure(&self, backend: &str, server: &str, reason: &str) {
        self.backend_failures.with_label_values(&[backend, server, reason]).inc();
    }

    pub fn backend_retry(&self, backend: &str, server: &str) {
        self.backend_retries.with_label_values(&[backend, server]).inc();
    }

    pub fn backend_ejection(&self, backend: &str, server: &str) {
        self.backend_ejections.with_label_values(&[backend, server]).inc();
    }

    pub fn backend_check(&self, backend: &str, server: &str, result: &str) {
        self.backend_checks.with_label_values(&[backend, server, result]).inc();
    }

    pub fn partner_certificate(&self, partner: &str, not_after: Timestamp) {
        self.certificate_not_after.with_label_values(&["partner", partner]).set(not_after.unix_seconds() as f64);
    }

    pub fn identifier(&self, partner: &str, kind: &str, result: Identifier) {
        let result = match result {
            Identifier::Valid => "valid",
            Identifier::Unallocated => "unallocated",
            Identifier::Refused(reason) => reason.code(),
        };
        self.identifier_checks.with_label_values(&[partner, kind, result]).inc();
    }

    pub fn answer(&self, partner: &str, kind: &str, outcome: Outcome) {
        let (label, people) = match outcome {
            Outcome::Hit { people } => ("hit", people),
            Outcome::Miss => ("miss", 0),
            Outcome::Error => ("error", 0),
        };
        self.answers.with_label_values(&[partner, kind, label]).inc();
        if people > 0 {
            self.people_counter(partner, kind).inc_by(u64::from(people));
        }
    }

    fn people_counter(&self, partner: &str, kind: &str) -> IntCounter {
        self.people.with_label_values(&[partner, kind])
    }

    pub fn reload(&self, result: &str) {
        self.reloads.with_label_values(&[result]).inc();
    }

    /// A batch of the audit's entries is on the disk.
    pub fn audit_written(&self, took: Duration, entries: u64) {
        self.audit_commit_seconds.observe(took.as_secs_f64());
        self.audit_entries.inc_by(entries);
    }

    /// A checkpoint over so many entries was signed.
    pub fn audit_checkpoint(&self, size: u64, now: Timestamp) {
        self.audit.with_label_values(&["checkpoint_size"]).set(size as i64);
        self.audit_checkpoint.set(now.unix_seconds() as f64);
    }

    /// Something of the audit's files is wrong.
    pub fn audit_damage(&self) {
        self.audit_damages.inc();
    }

    /// The queue to the audit as it is now.
    pub fn audit_queue(&self, queue: &Queue) {
        let figures = [
            ("size", queue.durable() as i64),
            ("queue_bytes", queue.bytes() as i64),
            ("writable", i64::from(!queue.is_broken())),
        ];
        for (figure, value) in figures {
            self.audit.with_label_values(&[figure]).set(value);
        }
        for (class, lost) in queue.lost_ever() {
            let counter = self.audit_lost.with_label_values(&[class.as_str()]);
            counter.inc_by(lost.saturating_sub(counter.get()));
        }
        self.audit_failures.inc_by(queue.failures().saturating_sub(self.audit_failures.get()));
    }

    /// As of now: whether the disk takes what partners use up what partners use up, and how often it did not.
    pub fn state_kept(&self, kept: bool, failures: u64) {
        self.state_kept.set(i64::from(kept));
        self.state_failures.inc_by(failures.saturating_sub(self.state_failures.get()));
    }

    /// Everything in Prometheus' text format 0.0.4. What only the snapshot and the state know is read now.
    pub fn render(&self, snapshot: &Snapshot, connections: usize, pressure: &Pressure, now: Timestamp) -> Vec<u8> {
        self.observe(snapshot, connections, now);
        let short = [("descriptors", pressure.descriptors_short()), ("memory", pressure.memory_short(connections))];
        for (resource, short) in short {
            self.pressure.with_label_values(&[resource]).set(i64::from(short));
        }
        self.memory_used.set(pressure.memory_used());
        self.log_lines_lost.inc_by(log::lines_lost().saturating_sub(self.log_lines_lost.get()));
        let families = self.registry.gather();
        let series: usize = families.iter().map(series_of).sum();
        self.series.set(series as i64);
        self.page()
    }

    /// What was counted so far, without what is looked up when somebody asks.
    pub fn page(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(32 << 10);
        // Writing to a vector fails for a metric without name or with two types only, which `new` would have refused.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        text
    }

    fn observe(&self, snapshot: &Snapshot, connections: usize, now: Timestamp) {
        self.connections.set(connections as i64);
        self.generation.set(snapshot.generation as i64);
        // What is no longer configured must not be exported with its last value for ever.
        let partners = [&self.partner_connections, &self.in_flight, &self.limiter_entries, &self.networks];
        for gauge in partners.into_iter().chain([&self.frozen, &self.containment_level]) {
            gauge.reset();
        }
        self.budget_used.reset();
        self.budget_left.reset();
        self.network_last_match.reset();
        self.crl_next_update.reset();
        let seconds = |time: Timestamp| time.unix_seconds() as f64;
        self.certificate_not_after
            .with_label_values(&["gateway", "gateway"])
            .set(seconds(snapshot.certificate_not_after()));
        for issuer in snapshot.trust.issuers() {
            self.certificate_not_after.with_label_values(&["issuer", &issuer.name]).set(seconds(issuer.not_after));
            for list in issuer.lists() {
                self.crl_next_update.with_label_values(&[&*issuer.name, &*list.file]).set(seconds(list.next_update));
            }
        }
        self.observe_backends(snapshot, now);
        for (at, partner) in snapshot.policy.partners.iter().enumerate() {
            let id = PartnerId(at as u16);
            let (name, state) = (&*partner.name, snapshot.state(id));
            self.in_flight.with_label_values(&[name]).set(i64::from(state.in_flight()));
            self.partner_connections.with_label_values(&[name]).set(i64::from(state.connections()));
            let frozen = state.standing(now) == Standing::Frozen;
            let evident = state.watch().standing(now).level;
            let level = if frozen { Level::Frozen } else { state.hold(None, None, now).partner.max(evident) };
            self.frozen.with_label_values(&[name]).set(i64::from(frozen));
            self.containment_level.with_label_values(&[name]).set(level as i64);
            let budgets = [("partner", partner.budgets.partner), ("people", partner.budgets.people)];
            for (budget, most) in budgets.into_iter().filter_map(|(label, budget)| Some((label, budget?))) {
                for (window, most) in most.windows() {
                    let (subjects, people) = state.budgets_used(window, now);
                    let used = if budget == "people" { people } else { subjects };
                    let labels = [name, budget, window.as_str()];
                    self.budget_used.with_label_values(&labels).set(used as i64);
                    self.budget_left.with_label_values(&labels).set(u64::from(most).saturating_sub(used) as i64);
                }
            }
            let (sources, subjects) = state.entries();
            self.limiter_entries.with_label_values(&[name, "source"]).set(sources as i64);
            self.limiter_entries.with_label_values(&[name, "subject"]).set(subjects as i64);
            let (networks, matched) = (partner.networks.len() as i64, snapshot.ever_matched(id) as i64);
            if partner.networks.len() <= NETWORKS_SHOWN_MAX {
                let mut shown: BTreeMap<String, f64> = BTreeMap::new();
                for (network, entry) in partner.networks.iter() {
                    // The same CIDR may stand twice; the one that answers is the one that was matched.
                    let last = shown.entry(entry.cidr.to_string()).or_default();
                    *last = last.max(snapshot.last_match(id, network).map_or(0.0, seconds));
                }
                for (cidr, last) in shown {
                    self.network_last_match.with_label_values(&[name, &cidr]).set(last);
                }
            }
            self.networks.with_label_values(&[name, "matched"]).set(matched);
            self.networks.with_label_values(&[name, "unmatched"]).set(networks - matched);
        }
    }

    fn observe_backends(&self, snapshot: &Snapshot, now: Timestamp) {
        // Servers that are no longer configured are no longer shown.
        for gauge in [&self.backend_up, &self.backend_in_flight, &self.backend_circuit] {
            gauge.reset();
        }
        for upstream in &snapshot.upstreams {
            let name = &*upstream.settings.name;
            for server in &upstream.servers {
                let labels = [name, &*server.label];
                self.backend_up.with_label_values(&labels).set(i64::from(server.is_usable(now)));
                self.backend_in_flight.with_label_values(&labels).set(i64::from(server.in_flight()));
            }
            let circuit = match upstream.state.breaker.phase() {
                Phase::Closed => 0,
                Phase::HalfOpen => 1,
                Phase::Open => 2,
            };
            self.backend_circuit.with_label_values(&[name]).set(circuit);
            if let Some(not_after) = upstream.tls.as_ref().and_then(|tls| tls.client_not_after) {
                let not_after = not_after.unix_seconds() as f64;
                self.certificate_not_after.with_label_values(&["backend", name]).set(not_after);
            }
        }
    }
}

/// A histogram is a series for each bucket, one for the rest, the sum and the count.
fn series_of(family: &MetricFamily) -> usize {
    let of_one = |metric: &Metric| match family.get_field_type() {
        MetricType::HISTOGRAM => metric.get_histogram().get_bucket().len() + 3,
        _ => 1,
    };
    family.get_metric().iter().map(of_one).sum()
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
