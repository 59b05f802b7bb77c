//! What holds of the whole? One integration binary; these modules are its table of contents.

/// What operators are told: a real Alertmanager, webhooks that verify, fail, hang and are full.
mod alerts;
/// A log that was written here, verified by Go's transparency log.
mod audit_go;
/// Several servers, one of them down; a zoo of answers that no partner may see; TLS and HTTP/2 to the backend.
mod backends;
/// Balancers that say for whom they connect, HAProxy among them.
mod balancer;
/// Different people in an hour, and people disclosed: at once, after a kill, at the end.
mod budgets;
/// Real clients: curl, Python, Node, over HTTP/1.1 and HTTP/2.
mod clients;
/// Who vouches for the system's clock: chrony, and nobody, from within the sandbox.
mod clock;
/// The shipped configuration, and what a mistaken one is told.
mod configuration;
/// Partners and actors that an operator holds back: commands, expiry, restarts, the shape and the time of refusals.
mod containment;
/// What evidence holds: a sweep, one by one and in parallel, through crashes and until it is released.
mod detection;
/// Keys that follow each other while people are counted as before, and keys that are destroyed.
mod epochs;
/// The log as strangers read it: commands over directories that a gateway's code has written, whole and damaged.
mod evidence;
/// What reaches a backend that records every byte, and what comes back of what it answers.
mod forwarding;
/// Hostile callers: bytes, frames, slowness and floods, row by row.
mod hostile;
/// Starting, confined, watched, under pressure, through steps of the clock, to the end.
mod life;
/// Caps, rates, deadlines, floods; the metrics listener; starting and stopping.
mod limits;
/// Everything that may change, while requests come at a constant rate and none may be lost.
mod load;
/// Random policies and requests against a straight-line oracle of the rules.
mod properties;
/// What changes while it runs: reload, revocation, freeze, restart.
mod reload;
/// Traces of lookups: whole, by the line, cut short, altered where nobody may look, and malformed.
mod replay;
/// Limits and networks on trial: what they would refuse passes, is counted and told.
mod shadow;
/// The edges of the house: who may import what, and what every file owes its reader.
mod tidy;
/// Certificates made by openssl: who gets in, who does not, and for what reason.
mod tls;
/// Checkpoints that leave the machine, and witnesses that sign them: good ones, and every other kind.
mod witness;
/// A whole gateway in one call.
mod world;
/// Every kind of certificate, sound and unsound: accepted as whom, or refused for what reason.
mod zoo;
