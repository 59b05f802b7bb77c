//! Does a PROXY protocol header mean one thing, whatever follows it and however it arrives?
//!
//! The first byte says how long a header may be; the rest is the stream.
#![no_main]

use std::net::IpAddr;

use dwarpal::proxy::proxy_protocol::{Progress, Refusal, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let [bound, stream @ ..] = data else { return };
    let bytes_max = 16 + 4 * usize::from(*bound);
    let end = all_prefixes(stream, bytes_max);
    // Few streams come by a right checksum by chance: the same stream with its checksums put right.
    if end == Some(Err(Refusal::Checksum)) {
        let mut right = stream.to_vec();
        put_right(&mut right);
        assert!(matches!(all_prefixes(&right, bytes_max), Some(Ok(_))), "a right checksum is refused");
    }
});

/// The answer to the whole, after every prefix was asked about as it would be while the stream arrives. `None`: more is
/// needed.
fn all_prefixes(stream: &[u8], bytes_max: usize) -> Option<Result<(IpAddr, usize), Refusal>> {
    let mut answer = None;
    let mut needed = 0;
    for end in 0..=stream.len().min(bytes_max + 2) {
        let now = match parse(&stream[..end], bytes_max) {
            Ok(Progress::NeedMore(count)) => {
                assert!(count > end, "what is needed has not come yet");
                assert!(count <= bytes_max, "what is needed is within the bound");
                assert!(count >= needed, "what is needed does not shrink");
                needed = count;
                None
            }
            Ok(Progress::Header { source, length }) => {
                assert!(length <= end && length <= bytes_max);
                assert!(needed <= length, "more was asked for than the header has");
                assert_eq!(source, reference(&stream[..length]));
                Some(Ok((source, length)))
            }
            Err(refusal) => Some(Err(refusal)),
        };
        if answer.is_some() {
            assert_eq!(now, answer, "an answer is final");
        }
        answer = now;
    }
    assert!(answer.is_some() || stream.len() < bytes_max, "within the bound there is an answer");
    answer
}

/// The address by the offsets of the specification.
fn reference(header: &[u8]) -> IpAddr {
    assert_eq!(&header[..13], b"\r\n\r\n\0\r\nQUIT\n\x21");
    let source = match header[13] {
        0x11 => IpAddr::from(<[u8; 4]>::try_from(&header[16..20]).expect("four bytes")),
        0x21 => IpAddr::from(<[u8; 16]>::try_from(&header[16..32]).expect("sixteen bytes")),
        other => panic!("neither TCP over IPv4 nor over IPv6: {other:#x}"),
    };
    source.to_canonical()
}

/// Computes the checksum of a header that has one.
fn put_right(stream: &mut [u8]) {
    let length = 16 + usize::from(u16::from_be_bytes([stream[14], stream[15]]));
    let header = &mut stream[..length];
    let mut at = if header[13] == 0x11 { 16 + 12 } else { 16 + 36 };
    while header[at] != 3 {
        at += 3 + usize::from(u16::from_be_bytes([header[at + 1], header[at + 2]]));
    }
    header[at + 3..at + 7].fill(0);
    let sum = crc32c::crc32c(header);
    header[at + 3..at + 7].copy_from_slice(&sum.to_be_bytes());
}
