//! Whom does a balancer speak for? The PROXY protocol, version 2, as its specification has it: bytes in, address out.
//!
//! <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>, section 2.2. Version 1, the text form, is not read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far the bytes lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes in all are needed to go on. Never more than the header has: what follows it is not ours to read.
    NeedMore(usize),
    Header {
        source: IpAddr,
        /// How many bytes the header has.
        length: usize,
    },
}

/// Why there will be no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Something else was sent: TLS straight away, or the text form.
    Signature,
    Version,
    /// The balancer speaks for itself, as in its health checks: nobody is calling.
    Local,
    Command,
    /// Not TCP over IPv4 or IPv6.
    Family,
    /// Shorter than its own addresses.
    Length,
    TooLong,
    /// An attachment that reaches beyond the header, or a checksum of the wrong size or given twice.
    Attachment,
    Checksum,
}

impl Refusal {
    pub const ALL: [Refusal; 9] = {
        use Refusal::*;
        [Signature, Version, Local, Command, Family, Length, TooLong, Attachment, Checksum]
    };

    /// The label in metrics and log.
    pub fn code(self) -> &'static str {
        match self {
            Refusal::Signature => "proxy-signature",
            Refusal::Version => "proxy-version",
            Refusal::Local => "proxy-local",
            Refusal::Command => "proxy-command",
            Refusal::Family => "proxy-family",
            Refusal::Length => "proxy-length",
            Refusal::TooLong => "proxy-too-long",
            Refusal::Attachment => "proxy-attachment",
            Refusal::Checksum => "proxy-checksum",
        }
    }
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family and protocol, length of the rest.
const FIXED: usize = 16;
/// An attachment's type and length.
const ATTACHMENT_HEAD: usize = 3;
const PP2_TYPE_CRC32C: u8 = 0x03;

/// Reads a header of at most so many bytes from what has come so far.
///
/// What cannot become a header any more is refused at its first wrong byte, so that nobody has to wait for the rest.
pub fn parse(bytes: &[u8], bytes_max: usize) -> Result<Progress, Refusal> {
    let begun = bytes.len().min(SIGNATURE.len());
    if bytes[..begun] != SIGNATURE[..begun] {
        return Err(Refusal::Signature);
    }
    let Some((fixed, _)) = bytes.split_first_chunk::<FIXED>() else { return Ok(Progress::NeedMore(FIXED)) };
    let [.., command, family, length_high, length_low] = *fixed;
    match command {
        0x21 => {}
        0x20 => return Err(Refusal::Local),
        _ if command >> 4 == 2 => return Err(Refusal::Command),
        _ => return Err(Refusal::Version),
    }
    // Two addresses and two ports.
    let addresses = match family {
        0x11 => 2 * 4 + 2 * 2,
        0x21 => 2 * 16 + 2 * 2,
        _ => return Err(Refusal::Family),
    };
    let rest = usize::from(u16::from_be_bytes([length_high, length_low]));
    let length = FIXED + rest;
    if length > bytes_max {
        return Err(Refusal::TooLong);
    }
    if rest < addresses {
        return Err(Refusal::Length);
    }
    let Some(header) = bytes.get(..length) else { return Ok(Progress::NeedMore(length)) };
    verify(header, FIXED + addresses)?;
    let source = &header[FIXED..];
    let source = match source.first_chunk::<16>() {
        Some(&octets) if family == 0x21 => IpAddr::V6(Ipv6Addr::from(octets)),
        _ => IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3])),
    };
    Ok(Progress::Header { source: source.to_canonical(), length })
}

/// Walks the attachments, each of which uses up at least three bytes, and checks the checksum if one is among them.
fn verify(header: &[u8], attachments: usize) -> Result<(), Refusal> {
    let mut at = attachments;
    let mut checksum = None;
    while at < header.len() {
        let head = header.get(at..at + ATTACHMENT_HEAD).ok_or(Refusal::Attachment)?;
        let (kind, length) = (head[0], usize::from(u16::from_be_bytes([head[1], head[2]])));
        let value = at + ATTACHMENT_HEAD;
        let bytes = header.get(value..value + length).ok_or(Refusal::Attachment)?;
        if kind == PP2_TYPE_CRC32C {
            let stated = <[u8; 4]>::try_from(bytes).map_err(|_| Refusal::Attachment)?;
            if checksum.replace((value, u32::from_be_bytes(stated))).is_some() {
                return Err(Refusal::Attachment);
            }
        }
        at = value + length;
    }
    let Some((place, stated)) = checksum else { return Ok(()) };
    // Computed over the whole header with zeros in the place of the checksum.
    let computed = crc32c::crc32c(&header[..place]);
    let computed = crc32c::crc32c_append(computed, &[0; 4]);
    let computed = crc32c::crc32c_append(computed, &header[place + 4..]);
    if computed == stated { Ok(()) } else { Err(Refusal::Checksum) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 512;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = (rest.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn v4(attachments: &[u8]) -> Vec<u8> {
        header(0x21, 0x11, &[&[10, 20, 0, 5, 10, 0, 0, 1, 0xc0, 1, 1, 0xbb], attachments].concat())
    }

    fn v6(source: &str) -> Vec<u8> {
        let source = source.parse::<Ipv6Addr>().unwrap().octets();
        header(0x21, 0x21, &[&source[..], &[0; 16], &[0xc0, 1, 1, 0xbb]].concat())
    }

    fn read(bytes: &[u8]) -> Result<String, Refusal> {
        match parse(bytes, MAX)? {
            Progress::Header { source, length } => {
                assert!(length <= bytes.len());
                Ok(source.to_string())
            }
            Progress::NeedMore(count) => Ok(format!("needs {count}")),
        }
    }

    #[test]
    fn an_address_is_what_the_header_says() {
        assert_eq!(read(&v4(&[])), Ok("10.20.0.5".to_owned()));
        assert_eq!(read(&v6("2001:db8::5")), Ok("2001:db8::5".to_owned()));
        assert_eq!(read(&v6("::ffff:10.20.0.5")), Ok("10.20.0.5".to_owned()), "one address has one form");
        // A server name and a no-op; what follows the header does not matter.
        assert_eq!(read(&[v4(&[2, 0, 1, b'x', 4, 0, 0]), vec![22, 3, 1]].concat()), Ok("10.20.0.5".to_owned()));
    }

    #[test]
    fn what_is_not_a_header_is_refused() {
        let hello = [22, 3, 1, 2, 0, 1];
        let text = b"PROXY TCP4 10.20.0.5 10.0.0.1 49153 443\r\n";
        let unix = header(0x21, 0x31, &[0; 216]);
        for (bytes, refusal) in [
            (hello.to_vec(), Refusal::Signature),
            (text.to_vec(), Refusal::Signature),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), Refusal::Signature),
            (header(0x11, 0x11, &[0; 12]), Refusal::Version),
            (header(0x31, 0x11, &[0; 12]), Refusal::Version),
            (header(0x20, 0x00, &[]), Refusal::Local),
            (header(0x20, 0x11, &[0; 12]), Refusal::Local),
            (header(0x22, 0x11, &[0; 12]), Refusal::Command),
            (header(0x21, 0x00, &[]), Refusal::Family),
            (header(0x21, 0x01, &[0; 12]), Refusal::Family),
            (header(0x21, 0x12, &[0; 12]), Refusal::Family),
            (header(0x21, 0x22, &[0; 36]), Refusal::Family),
            (unix, Refusal::Family),
            (header(0x21, 0x11, &[0; 11]), Refusal::Length),
            (header(0x21, 0x21, &[0; 35]), Refusal::Length),
            (header(0x21, 0x11, &[0; MAX - FIXED + 1]), Refusal::TooLong),
            (v4(&[4]), Refusal::Attachment),
            (v4(&[4, 0]), Refusal::Attachment),
            (v4(&[4, 0, 2, 0]), Refusal::Attachment),
            (v4(&[4, 0xff, 0xff]), Refusal::Attachment),
            (v4(&[3, 0, 3, 0, 0, 0]), Refusal::Attachment),
            (v4(&[3, 0, 4, 0, 0, 0, 0]), Refusal::Checksum),
        ] {
            assert_eq!(read(&bytes), Err(refusal), "{bytes:02x?}");
        }
        assert_eq!(Refusal::ALL.map(Refusal::code).into_iter().collect::<std::collections::BTreeSet<_>>().len(), 9);
    }

    #[test]
    fn a_checksum_has_to_be_right() {
        let checked = |sum: [u8; 4]| v4(&[&[3, 0, 4][..], &sum, &[4, 0, 0]].concat());
        // Computed bit by bit by another program.
        let right = 0x6f47c8cb_u32.to_be_bytes();
        assert_eq!(read(&checked(right)), Ok("10.20.0.5".to_owned()));
        for bit in 0..32 {
            let wrong = (u32::from_be_bytes(right) ^ (1 << bit)).to_be_bytes();
            assert_eq!(read(&checked(wrong)), Err(Refusal::Checksum));
        }
        let twice = v4(&[[3, 0, 4, 0, 0, 0, 0], [3, 0, 4, 0, 0, 0, 0]].concat());
        assert_eq!(read(&twice), Err(Refusal::Attachment));
    }

    #[test]
    fn a_header_in_pieces_asks_for_no_more_than_itself() {
        for whole in [v4(&[4, 0, 1, 0]), v6("2001:db8::5")] {
            for end in 0..whole.len() {
                let needed = if end < FIXED { FIXED } else { whole.len() };
                assert_eq!(parse(&whole[..end], MAX), Ok(Progress::NeedMore(needed)));
            }
        }
        // Too long is known before the rest has come.
        assert_eq!(parse(&header(0x21, 0x11, &[0; 1_000])[..FIXED], MAX), Err(Refusal::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_have_one_answer(begin in 0usize..=16, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let whole = [&v4(&[])[..begin], &bytes].concat();
            let answer = parse(&whole, MAX);
            match answer {
                Ok(Progress::NeedMore(count)) => prop_assert!(count > whole.len() && count <= MAX),
                Ok(Progress::Header { length, .. }) => {
                    prop_assert!(length <= whole.len());
                    // What follows changes nothing.
                    prop_assert_eq!(parse(&whole[..length], MAX), answer);
                }
                // A refusal is final: more bytes do not heal it.
                Err(_) => prop_assert_eq!(parse(&[&whole[..], &[0; 8]].concat(), MAX).is_err(), true),
            }
        }
    }
}
