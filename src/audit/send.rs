//! How do checkpoints leave the publisher's thread? By one of their own, so that no witness is ever waited for.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::note::{Checkpoint, Note, Signature};
use super::read::Log;
use super::tree::consistency_proof;
use super::witness::Dispatcher;
use crate::gateway::Gateway;

/// The publisher's end.
#[derive(Debug)]
pub struct Outbox {
    newest: watch::Sender<Option<Note>>,
    signed: Arc<Mutex<Option<Signed>>>,
}

/// What witnesses said of a checkpoint of this text.
#[derive(Debug)]
pub struct Signed {
    pub text: String,
    pub signatures: Vec<Signature>,
}

/// The sending thread's end.
#[derive(Debug)]
pub struct Sending {
    newest: watch::Receiver<Option<Note>>,
    signed: Arc<Mutex<Option<Signed>>>,
}

/// How long a gateway that stops waits for its last checkpoint to arrive.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(3);

pub fn outbox() -> (Outbox, Sending) {
    let (sender, newest) = watch::channel(None);
    let signed = Arc::default();
    (Outbox { newest: sender, signed: Arc::clone(&signed) }, Sending { newest, signed })
}

impl Outbox {
    /// Has a checkpoint sent. Where the last one is still being sent, those between are left out: the newest says it all.
    pub fn put(&self, checkpoint: &Note) {
        self.newest.send_replace(Some(checkpoint.clone()));
    }

    /// What came back since, once.
    pub fn take(&self) -> Option<Signed> {
        self.signed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Sending {
    /// Sends until the publisher's end is gone, and its last checkpoint sent.
    pub fn run(mut self, gateway: &Gateway) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut dispatcher = Dispatcher::default();
        runtime.block_on(async {
            let ended = async {
                gateway.drained().await;
                tokio::time::sleep(FAREWELL_TIMEOUT).await;
            };
            tokio::pin!(ended);
            while self.newest.changed().await.is_ok() {
                let Some(note) = self.newest.borrow_and_update().clone() else { continue };
                tokio::select! {
                    () = self.send(&mut dispatcher, gateway, &note) => {}
                    () = &mut ended => {
                        tracing::warn!("the last checkpoint was not sent everywhere before the end");
                        return;
                    }
                }
            }
        });
        // A file that hangs must not hold up the end.
        runtime.shutdown_background();
        Ok(())
    }

    async fn send(&self, dispatcher: &mut Dispatcher, gateway: &Gateway, note: &Note) {
        let settings = &gateway.snapshot().settings;
        dispatcher.configure(&settings.audit.copies);
        let Ok(size) = Checkpoint::parse(note.text()).map(|checkpoint| checkpoint.size) else { return };
        let directory = settings.audit_directory();
        let proof = |old| {
            let mut log = Log::open(&directory).map_err(|fault| fault.to_string())?;
            consistency_proof(old, size, |level, index| log.hash(level, index)).map_err(|error| error.to_string())
        };
        let signatures = dispatcher.publish(note, &gateway.metrics, proof).await;
        if !signatures.is_empty() {
            let signed = Signed { text: note.text().to_owned(), signatures };
            *self.signed.lock().unwrap_or_else(PoisonError::into_inner) = Some(signed);
        }
    }
}
