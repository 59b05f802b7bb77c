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

use journal::{Damage, Journal, Recovered};
use publish::{Publisher, Settings};

/// Opens or begins a log: the journal for the thread that writes, the publisher for the one that makes the tree. Every start
/// comes this way, after whatever end.
pub fn open(settings: Settings) -> Result<(Journal, Recovered, Publisher), Damage> {
    let claims = publish::claims(&settings.directory, &settings.remembered, &settings.signer.vkey())?;
    let floor = claims.last().map_or(0, |claim| claim.checkpoint.size);
    let (journal, recovered) = Journal::open(&settings.directory, floor)?;
    let publisher = Publisher::open(settings, journal.size())?;
    Ok((journal, recovered, publisher))
}
