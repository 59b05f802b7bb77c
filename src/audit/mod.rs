//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `tree`, `note`, `layout`, `event`, `replay`. On the way to the disk: `queue` is where entries wait, `journal` makes them
//! durable, `publish` makes the tree of them; `keeper` holds the threads that do so.

pub mod connections;
mod disk;
pub mod event;
pub mod journal;
pub mod keeper;
pub mod key;
pub mod layout;
pub mod note;
pub mod publish;
pub mod queue;
pub mod replay;
mod tiles;
pub mod tree;

pub use keeper::{Audit, Keeper};
