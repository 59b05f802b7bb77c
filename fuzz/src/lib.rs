//! What do several targets need? Cuts of a stream, and a directory for what is read from files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A stream in pieces of these two lengths in turn.
pub fn pieces(stream: &[u8], lengths: [usize; 2]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = stream;
    for length in lengths.into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at(length.clamp(1, rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// A directory of this process, below TMPDIR. libFuzzer ends without any clean-up: fuzz/run removes it.
pub struct Scratch(TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(tempfile::tempdir().expect("a directory for temporary files"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file of the directory, and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        let folder = path.parent().expect("below the directory");
        std::fs::create_dir_all(folder).expect("a folder for the file");
        std::fs::write(&path, bytes).expect("a file can be written");
        path
    }
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}
