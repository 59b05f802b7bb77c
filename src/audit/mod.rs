//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `event`, `tree`, `note`, `layout`. On the disk: `journal` makes entries durable, `publish` makes the tree of them;
//! `index` finds people and decisions, `read` opens a directory to read, `verify` believes none of it.

mod disk;
pub mod event;
pub mod index;
pub mod journal;
pub mod key;
pub mod layout;
pub mod note;
pub mod proof;
pub mod publish;
pub mod read;
pub mod tiles;
pub mod tree;
pub mod verify;
