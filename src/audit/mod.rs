//! What happened, so that strangers can check it? One tamper-evident log of a gateway, a C2SP tiled transparency log.
//!
//! Pure: `tree`, `note`, `layout`. On the disk: `journal` makes entries durable, `publish` makes the tree of them.

mod disk;
pub mod journal;
pub mod key;
pub mod layout;
pub mod note;
pub mod publish;
pub mod tiles;
pub mod tree;

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
