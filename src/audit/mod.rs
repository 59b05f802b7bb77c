//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `tree`, `note`, `layout`, `event`. On the disk: `journal` makes entries durable, `publish` makes the tree of them.

pub mod event;
pub mod layout;
pub mod note;
pub mod tree;
