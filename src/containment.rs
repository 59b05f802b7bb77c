//! Who moved on the ladder of containment? Every step goes to the audit, the metrics and the log, whoever took it.

use crate::audit::event::{self, Event};
use crate::clock::Timestamp;
use crate::gateway::Gateway;
use crate::policy::containment::Level;
use crate::state::orders::Order;
use crate::subject::Mark;

/// A step up or down.
pub struct Moved<'a> {
    pub partner: &'a str,
    /// `None`: the partner itself.
    pub actor: Option<Mark>,
    pub from: Level,
    pub to: Level,
    /// When it falls back by itself.
    pub until: Option<Timestamp>,
    pub by: By<'a>,
    pub reason: &'a str,
}

/// Who took a step.
#[derive(Clone, Copy)]
pub enum By<'a> {
    /// As the kernel knows it.
    Operator(&'a str),
    /// Evidence.
    Automatic,
    /// The clock.
    Expiry,
}

impl By<'_> {
    /// For metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            By::Operator(_) => "operator",
            By::Automatic => "automatic",
            By::Expiry => "expiry",
        }
    }
}

impl Gateway {
    /// Tells of a step.
    pub fn moved(&self, moved: &Moved) {
        let Moved { partner, actor, from, to, until, by, reason } = moved;
        let name = match by {
            By::Operator(name) => name,
            By::Automatic | By::Expiry => "gateway",
        };
        self.audit.note(&Event::Containment(event::Containment {
            v: event::VERSION,
            time: self.clock.now(),
            partner: (*partner).into(),
            actor: *actor,
            from: *from,
            to: *to,
            until: *until,
            by: name.into(),
            automatic: !matches!(by, By::Operator(_)),
            reason: event::clipped(reason).into(),
        }));
        self.metrics.containment_step(partner, *to, by.as_str());
        let (actor, until) = (actor.map(|actor| actor.to_string()), until.map(|until| until.to_string()));
        tracing::warn!(partner, actor, %from, %to, until, by = name, reason, "containment");
    }

    /// Ends the orders whose time is over, and tells of it: they hold nobody since then. To be called every second.
    pub(crate) fn expire_orders(&self) {
        let over = self.state().expire_orders(self.clock.now());
        for ((partner, actor), Order { level, .. }) in &over {
            let (from, to, reason) = (*level, Level::Open, "its time is over");
            self.moved(&Moved { partner, actor: *actor, from, to, until: None, by: By::Expiry, reason });
        }
        // What stays in the file is over all the same.
        if !over.is_empty()
            && let Err(error) = self.state().keep_orders()
        {
            tracing::warn!(%error, "orders that are over could not be removed from the disk");
        }
    }
}
