//! What does HTTP/2 look like, frame by frame? For tests that say what no library would (RFC 9113 section 4.1).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::World;
use super::line::{self, Line};
use super::pki::Leaf;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITISED: u8 = 0x20;

/// What a connection begins with (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// SETTINGS_HEADER_TABLE_SIZE, SETTINGS_INITIAL_WINDOW_SIZE.
pub const TABLE_SIZE: u16 = 1;
pub const WINDOW_SIZE: u16 = 4;

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    let mut frame = vec![high, middle, low, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Fields as literals that are neither indexed nor compressed (RFC 7541 section 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A string that is not compressed (RFC 7541 section 5.2).
pub fn text(text: &str) -> Vec<u8> {
    [integer(0, 7, text.len()), text.as_bytes().to_vec()].concat()
}

/// A number behind the high bits of its first byte (RFC 7541 section 5.1).
pub fn integer(high: u8, prefix_bits: u8, value: usize) -> Vec<u8> {
    let prefix = (1 << prefix_bits) - 1;
    if value < prefix {
        return vec![high | value as u8];
    }
    let mut bytes = vec![high | prefix as u8];
    let mut rest = value - prefix;
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// A compressed string (RFC 7541 appendix B) of small letters, digits and dashes.
pub fn huffman(text: &str) -> Vec<u8> {
    // The letters of each length, in the order of their codes, and the first code. `~` is a letter that is not used.
    const CODES: [(&[u8], u32, u32); 3] =
        [(b"012aceiost", 5, 0x00), (b"~~-~~3456789~~~bdfghlmnpru", 6, 0x14), (b"jkqvwxyz", 7, 0x74)];
    let code = |letter: u8| {
        let found = CODES.iter().find_map(|(letters, length, first)| {
            let at = letters.iter().position(|other| *other == letter)?;
            Some((first + at as u32, *length))
        });
        found.expect("a small letter, a digit or a dash")
    };
    let mut bits: Vec<bool> = text.bytes().map(code).flat_map(|(code, length)| bits(code, length)).collect();
    bits.resize(bits.len().next_multiple_of(8), true);
    let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    let bytes: Vec<u8> = bits.chunks(8).map(byte).collect();
    [integer(0x80, 7, bytes.len()), bytes].concat()
}

fn bits(code: u32, length: u32) -> impl Iterator<Item = bool> {
    (0..length).rev().map(move |at| code >> at & 1 == 1)
}

pub fn settings(parameters: &[(u16, u32)]) -> Vec<u8> {
    let bytes = parameters.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    frame(SETTINGS, 0, 0, &bytes.collect::<Vec<_>>())
}

pub fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RESET, 0, stream, &code.to_be_bytes())
}

/// The head of a request without a body.
pub fn request(stream: u32, method: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)];
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields))
}

/// A connection after its preface. Answers are not to be put into a table, so that each can be read by itself.
pub fn connect(world: &World, leaf: &Leaf, source: Ipv4Addr) -> Line {
    let mut line = line::connect(world.address, leaf, source, b"h2");
    line.send(PREFACE);
    line.send(settings(&[(TABLE_SIZE, 0)]));
    line
}

/// Reads the next frame: its type, flags, stream and payload. `None` at the end of the connection.
pub fn next(line: &mut Line) -> Option<(u8, u8, u32, Vec<u8>)> {
    let header = line.exactly(9)?;
    let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
    let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
    Some((header[3], header[4], stream, line.exactly(length)?))
}

/// What the gateway said on a connection so far.
#[derive(Debug, Default)]
pub struct Heard {
    pub streams: BTreeMap<u32, Stream>,
    /// Error code of the last GOAWAY.
    pub goaway: Option<u32>,
    pub settings_acks: usize,
    /// Payloads of answered PINGs.
    pub pongs: Vec<Vec<u8>>,
    pub closed: bool,
}

#[derive(Debug, Default)]
pub struct Stream {
    pub status: u16,
    pub body: Vec<u8>,
    /// Error code of a RST_STREAM.
    pub reset: Option<u32>,
    pub ended: bool,
}

impl Heard {
    /// Reads frames, and answers pings, until something holds, or the connection ends.
    pub fn until(&mut self, line: &mut Line, holds: impl Fn(&Heard) -> bool) {
        while !self.closed && !holds(self) {
            self.frame(line);
        }
    }

    /// Nothing more will be said on this stream.
    pub fn is_over(&self, stream: u32) -> bool {
        self.streams.get(&stream).is_some_and(|stream| stream.ended || stream.reset.is_some())
    }

    fn frame(&mut self, line: &mut Line) {
        let Some((kind, flags, stream, payload)) = next(line) else {
            line.until_closed();
            self.closed = true;
            return;
        };
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        match kind {
            DATA | HEADERS | RESET => {
                let stream = self.streams.entry(stream).or_default();
                match kind {
                    DATA => stream.body.extend(&payload),
                    HEADERS => stream.status = status(&payload),
                    _ => stream.reset = Some(number(0)),
                }
                stream.ended |= kind != RESET && flags & END_STREAM != 0;
            }
            SETTINGS if flags & ACK != 0 => self.settings_acks += 1,
            PING if flags & ACK != 0 => self.pongs.push(payload),
            // By its answer a goodbye is complete. The gateway may have closed already.
            PING => drop(line.try_send(frame(PING, ACK, 0, &payload))),
            GOAWAY => self.goaway = Some(number(4)),
            _ => {}
        }
    }
}

/// `:status` of a block, which stands first in it. Its digits may be compressed.
fn status(block: &[u8]) -> u16 {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // Updates of the table's size go before.
    let block = &block[block.iter().take_while(|byte| **byte >> 5 == 1).count()..];
    match *block {
        [indexed @ 0x88..=0x8e, ..] => STATIC[usize::from(indexed - 0x88)],
        [0x48 | 0x08 | 0x18, length, ref text @ ..] if length & 0x80 != 0 => {
            let text = &text[..usize::from(length & 0x7f)];
            let mut bits = text.iter().flat_map(|byte| bits(u32::from(*byte), 8));
            let mut take = |count: usize| bits.by_ref().take(count).fold(0, |code, bit| code << 1 | u16::from(bit));
            // 0, 1 and 2 have codes of five bits, 3 to 9 of six.
            let mut digit = || match take(5) {
                code @ 0..=2 => code,
                code => (code << 1 | take(1)) - 0x19 + 3,
            };
            (digit() * 10 + digit()) * 10 + digit()
        }
        [0x48 | 0x08 | 0x18, 3, ref text @ ..] => {
            std::str::from_utf8(&text[..3]).ok().and_then(|text| text.parse().ok()).expect("a status")
        }
        _ => panic!("no status first: {block:x?}"),
    }
}
