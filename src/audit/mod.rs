//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `event`, `replay`, `tree`, `note`, `layout`, `proof`. On the way to the disk: `queue` is where entries wait, `journal` makes
//! them durable, `publish` makes the tree of them; `keeper` holds the threads that do so. Afterwards: `index` finds people and
//! decisions, `read` opens a directory to read, `verify` believes none of it.

pub mod clock_sync;
pub mod connections;
mod disk;
pub mod event;
pub mod index;
pub mod journal;
pub mod keeper;
pub mod key;
pub mod layout;
pub mod note;
pub mod proof;
pub mod publish;
pub mod queue;
pub mod read;
pub mod replay;
pub mod send;
pub mod tiles;
pub mod tree;
pub mod verify;
pub mod witness;

pub use keeper::{Audit, Keeper};
