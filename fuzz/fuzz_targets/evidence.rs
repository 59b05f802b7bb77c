//! Does what an auditor is given have one reading: notes, checkpoints, keys, proofs, bundles, frames and entries?
//!
//! The first byte says as what the rest is read.
#![no_main]

use dwarpal::audit::event::Event;
use dwarpal::audit::index::{Index, Key};
use dwarpal::audit::layout::{decode_bundle, push_frame, push_to_bundle, read_frame};
use dwarpal::audit::note::{Checkpoint, Note, Vkey};
use dwarpal::audit::proof::Proof;
use dwarpal::subject::Mark;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [kind, bytes @ ..] = data else { return };
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    match kind % 8 {
        0 => {
            if let Ok(note) = Note::parse(bytes) {
                assert_eq!(note.to_string().as_bytes(), bytes, "a note has one form");
            }
        }
        1 => {
            if let Ok(checkpoint) = Checkpoint::parse(text) {
                assert_eq!(checkpoint.to_string(), text, "a checkpoint has one form");
            }
        }
        2 => {
            if let Ok(key) = Vkey::parse(text) {
                assert_eq!(Vkey::parse(&key.to_string()).map(|key| key.to_string()), Ok(key.to_string()));
            }
        }
        3 => {
            if let Ok(proof) = Proof::parse(text) {
                assert_eq!(proof.to_string(), text, "a proof has one form");
            }
        }
        4 => {
            let [count, bundle @ ..] = bytes else { return };
            if let Ok(entries) = decode_bundle(bundle, usize::from(*count)) {
                assert_eq!(entries.len(), usize::from(*count));
                let mut again = Vec::new();
                entries.iter().for_each(|entry| push_to_bundle(&mut again, entry).expect("it was in one"));
                assert_eq!(again, bundle, "a bundle has one form");
            }
        }
        5 => {
            if let Ok(frame) = read_frame(bytes) {
                let forms = [false, true].map(|begins| {
                    let mut again = Vec::new();
                    push_frame(&mut again, frame.entry, begins).expect("it was in one");
                    again
                });
                assert!(forms.iter().any(|form| bytes.starts_with(form)), "a frame has one form");
            }
        }
        6 => match Event::from_json(bytes) {
            Ok(Event::Unknown) | Err(_) => {}
            Ok(event) => {
                let json = event.to_json();
                assert_eq!(Event::from_json(&json).ok().as_ref(), Some(&event), "an entry is read as it was written");
            }
        },
        _ => {
            // A damaged index is an error or finds what is in it, and never ends the process.
            if let Ok(index) = Index::from_bytes(0, bytes.to_vec()) {
                let _ = index.candidates(Key::Token(Mark::from_bytes([0x51; 16])));
            }
        }
    }
});
