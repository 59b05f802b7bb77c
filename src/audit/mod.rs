//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `tree`, `note`, `layout`. On the disk: `journal` makes entries durable, `publish` makes the tree of them.

pub mod clock_sync;
mod disk;
pub mod journal;
pub mod key;
pub mod layout;
pub mod note;
pub mod tree;
pub mod witness;
