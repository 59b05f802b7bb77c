//! What does HTTP/2 look like, frame by frame? For tests that say what no library would (RFC 9113 section 4.1).

use std::net::Ipv4Addr;

use super::World;
use super::line::{self, Line};
use super::pki::Leaf;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    let mut frame = vec![high, middle, low, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as literals that are neither indexed nor compressed (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "one byte of length");
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// The head of a request without a body.
pub fn request(stream: u32, method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

/// A connection after its preface.
pub fn connect(world: &World, leaf: &Leaf, source: Ipv4Addr) -> Line {
    let mut line = line::connect(world.address, leaf, source, b"h2");
    line.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    line.send(frame(SETTINGS, 0, 0, &[]));
    line
}

/// Reads the next frame: its type, flags, stream and payload. `None` at the end of the connection.
pub fn next(line: &mut Line) -> Option<(u8, u8, u32, Vec<u8>)> {
    let header = line.exactly(9)?;
    let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
    Some((header[3], header[4], stream, line.exactly(length)?))
}
