//! How far off is the system's clock, and who says so? chrony, else an NTP server, else the kernel.
//!
//! chrony is asked over the socket that chronyc uses, an NTP server as any client asks it. What is not a whole answer to
//! exactly what was asked is waited past.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand;
use rtime_clock::adjtime::{Timex, adjtimex};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::config::settings::ClockSources;

/// What is known of the system's clock. The default, where nobody knows, is a clock that nobody vouches for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClockStatus {
    pub synchronised: bool,
    /// Seconds that would have to be added to the clock: above zero it is behind.
    pub offset: Option<f64>,
    /// Seconds that it is off at the most, as far as its source knows.
    pub max_error: Option<f64>,
    /// Steps from a reference clock, 1 to 15.
    pub stratum: Option<u8>,
    pub source: Source,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    Chrony,
    Ntp,
    Kernel,
    #[default]
    Nobody,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Chrony => "chrony",
            Source::Ntp => "ntp",
            Source::Kernel => "kernel",
            Source::Nobody => "nobody",
        }
    }
}

/// On this machine an answer comes within a millisecond.
const TIMEOUT: Duration = Duration::from_millis(500);

/// Asks one after the other until somebody answers. Takes two timeouts at the most.
pub async fn look(sources: &ClockSources) -> ClockStatus {
    if let Some(status) = ask_chrony(sources.chrony).await {
        return status;
    }
    if let Some(status) = ask_ntp(sources.ntp).await {
        return status;
    }
    kernel().unwrap_or_default()
}

/// One datagram to a peer, and its first answer that can be read.
async fn ask<T>(to: SocketAddr, request: &[u8], read: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let exchange = async {
        let socket = UdpSocket::bind(any).await.ok()?;
        // Only what this peer sends is received then, and its absence is told at once.
        socket.connect(to).await.ok()?;
        socket.send(request).await.ok()?;
        let mut buffer = [0; 1024];
        loop {
            let length = socket.recv(&mut buffer).await.ok()?;
            if let Some(answer) = read(&buffer[..length]) {
                return Some(answer);
            }
        }
    };
    timeout(TIMEOUT, exchange).await.ok().flatten()
}

// ---- chrony: protocol 6 of its candm.h, as chronyc speaks it since 2.0

const CHRONY_VERSION: u8 = 6;
const COMMAND_TRACKING: [u8; 2] = 33_u16.to_be_bytes();
const REPLY_TRACKING: [u8; 2] = 5_u16.to_be_bytes();
/// A request is as long as its answer, or chrony does not give one.
const TRACKING_BYTES: usize = 104;
const NOT_SYNCHRONISED: u16 = 3;

async fn ask_chrony(address: Option<SocketAddr>) -> Option<ClockStatus> {
    let mut sequence = [0; 4];
    rand::fill(&mut sequence).ok()?;
    ask(address?, &chrony_request(sequence), |answer| read_chrony(answer, sequence)).await
}

fn chrony_request(sequence: [u8; 4]) -> [u8; TRACKING_BYTES] {
    let mut request = [0; TRACKING_BYTES];
    request[0] = CHRONY_VERSION;
    request[1] = 1;
    request[4..6].copy_from_slice(&COMMAND_TRACKING);
    request[8..12].copy_from_slice(&sequence);
    request
}

fn read_chrony(answer: &[u8], sequence: [u8; 4]) -> Option<ClockStatus> {
    let answer: &[u8; TRACKING_BYTES] = answer.first_chunk()?;
    let head = (answer[0], answer[1], &answer[4..6], &answer[6..8], &answer[8..10], &answer[16..20]);
    let (no_error, sequence) = ([0, 0], &sequence[..]);
    if head != (CHRONY_VERSION, 2, &COMMAND_TRACKING[..], &REPLY_TRACKING[..], &no_error[..], sequence) {
        return None;
    }
    let short = |at: usize| u16::from_be_bytes([answer[at], answer[at + 1]]);
    let float = |at: usize| chrony_float([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
    let (stratum, leap) = (short(52), short(54));
    let (correction, root_delay, root_dispersion) = (float(68), float(92), float(96));
    let stratum = u8::try_from(stratum).ok().filter(|stratum| (1..16).contains(stratum));
    Some(ClockStatus {
        synchronised: stratum.is_some() && leap < NOT_SYNCHRONISED,
        offset: Some(correction),
        max_error: Some(correction.abs() + root_dispersion + root_delay / 2.0),
        stratum,
        source: Source::Chrony,
    })
}

/// Seven bits of exponent and twenty-five of coefficient, both signed; the point is left of the coefficient.
fn chrony_float(bytes: [u8; 4]) -> f64 {
    let bits = i32::from_be_bytes(bytes);
    let (exponent, coefficient) = (bits >> 25, (bits << 7) >> 7);
    f64::from(coefficient) * f64::from(exponent - 25).exp2()
}

// ---- NTP: RFC 5905, as a client asks once

const NTP_BYTES: usize = 48;
/// From 1900 to 1970.
const NTP_TO_UNIX: u64 = 2_208_988_800;

async fn ask_ntp(address: Option<SocketAddr>) -> Option<ClockStatus> {
    // Instead of the time, which is nobody's business and can be guessed.
    let mut nonce = [0; 8];
    rand::fill(&mut nonce).ok()?;
    let mut request = [0; NTP_BYTES];
    // Version 4, mode 3.
    request[0] = 4 << 3 | 3;
    request[40..48].copy_from_slice(&nonce);
    let asked = ntp_now()?;
    ask(address?, &request, |answer| read_ntp(answer, nonce, asked, ntp_now()?)).await
}

/// Seconds since 1900 in 32 bits, and fractions of one.
fn ntp_now() -> Option<u64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Some(((now.as_secs() + NTP_TO_UNIX) << 32) + (u64::from(now.subsec_nanos()) << 32) / 1_000_000_000)
}

fn read_ntp(answer: &[u8], nonce: [u8; 8], asked: u64, answered: u64) -> Option<ClockStatus> {
    let answer: &[u8; NTP_BYTES] = answer.first_chunk()?;
    let (leap, version, mode) = (answer[0] >> 6, answer[0] >> 3 & 7, answer[0] & 7);
    let long = |at: usize| answer[at..at + 8].try_into().map_or(0, u64::from_be_bytes);
    let (received, sent) = (long(32), long(40));
    if mode != 4 || !(3..=4).contains(&version) || answer[24..32] != nonce || received == 0 || sent == 0 {
        return None;
    }
    // The difference of two times is right across the end of an era, too.
    let between = |later: u64, earlier: u64| later.wrapping_sub(earlier).cast_signed() as f64 / 32_f64.exp2();
    let short = |at: usize| answer[at..at + 4].try_into().map_or(0, u32::from_be_bytes);
    let (root_delay, root_dispersion) = (f64::from(short(4)) / 65_536.0, f64::from(short(8)) / 65_536.0);
    let way = (between(answered, asked) - between(sent, received)).max(0.0);
    let stratum = Some(answer[1]).filter(|stratum| (1..16).contains(stratum));
    let offset = f64::midpoint(between(received, asked), between(sent, answered));
    // A server that is not synchronised itself says nothing about this clock.
    let synchronised = stratum.is_some() && u16::from(leap) != NOT_SYNCHRONISED;
    Some(ClockStatus {
        synchronised,
        offset: synchronised.then_some(offset),
        max_error: synchronised.then_some(offset.abs() + root_dispersion + f64::midpoint(root_delay, way)),
        stratum,
        source: Source::Ntp,
    })
}

// ---- the kernel

/// `adjtimex` with nothing to adjust: anybody may.
fn kernel() -> Option<ClockStatus> {
    const STA_UNSYNC: i32 = 0x40;
    const STA_NANO: i32 = 0x2000;
    const TIME_ERROR: i32 = 5;
    let mut timex = Timex::new();
    let state = adjtimex(&mut timex).ok()?;
    let timex = timex.0;
    let synchronised = state != TIME_ERROR && timex.status & STA_UNSYNC == 0;
    let unit = if timex.status & STA_NANO == 0 { 1e6 } else { 1e9 };
    Some(ClockStatus {
        synchronised,
        offset: synchronised.then_some(timex.offset as f64 / unit),
        max_error: synchronised.then_some(timex.maxerror as f64 / 1e6),
        stratum: None,
        source: Source::Kernel,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const NONCE: [u8; 8] = *b"12345678";
    const SEQUENCE: [u8; 4] = *b"1234";
    const ASKED: u64 = 0xE000_0000_0000_0000;
    const SECOND: u64 = 1 << 32;

    /// chrony's own encoding, from a value.
    fn float(value: f64) -> [u8; 4] {
        let mut exponent = 0;
        let mut coefficient = value * 25_f64.exp2();
        while coefficient.abs() >= 24_f64.exp2() {
            coefficient /= 2.0;
            exponent += 1;
        }
        ((exponent << 25) as u32 | (coefficient as i32) as u32 & 0x01ff_ffff).to_be_bytes()
    }

    fn tracking() -> Vec<u8> {
        let mut answer = vec![0; TRACKING_BYTES];
        (answer[0], answer[1], answer[5], answer[7], answer[53]) = (6, 2, 33, 5, 3);
        answer[16..20].copy_from_slice(&SEQUENCE);
        answer[68..72].copy_from_slice(&float(-0.25));
        answer[92..96].copy_from_slice(&float(0.5));
        answer[96..100].copy_from_slice(&float(0.125));
        answer
    }

    fn ntp() -> Vec<u8> {
        let mut answer = vec![0; NTP_BYTES];
        (answer[0], answer[1]) = (4 << 3 | 4, 2);
        answer[4..8].copy_from_slice(&0x8000_u32.to_be_bytes());
        answer[8..12].copy_from_slice(&0x4000_u32.to_be_bytes());
        answer[24..32].copy_from_slice(&NONCE);
        answer[32..40].copy_from_slice(&(ASKED + 11 * SECOND).to_be_bytes());
        answer[40..48].copy_from_slice(&(ASKED + 12 * SECOND).to_be_bytes());
        answer
    }

    #[test]
    fn a_chrony_float_is_what_it_was() {
        for value in [0.0, 1.0, -1.0, 0.25, -0.000_061_035_156_25, 1_024.0, 0.5] {
            assert_eq!(chrony_float(float(value)), value);
        }
        // Exponent -11, coefficient 0x00d1b717.
        assert!((chrony_float([0xea, 0xd1, 0xb7, 0x17]) - 0.000_2).abs() < 1e-9);
        assert!(chrony_float([0xff; 4]).is_finite() && chrony_float([0x7f, 0xff, 0xff, 0xff]).is_finite());
    }

    #[test]
    fn chronys_answer_is_read_and_nothing_else_is() {
        let status = read_chrony(&tracking(), SEQUENCE).unwrap();
        let expected = ClockStatus {
            synchronised: true,
            offset: Some(-0.25),
            max_error: Some(0.625),
            stratum: Some(3),
            source: Source::Chrony,
        };
        assert_eq!(status, expected);
        let changed = |at: usize, to: u8| {
            let mut answer = tracking();
            answer[at] = to;
            read_chrony(&answer, SEQUENCE)
        };
        // Version, type, command, reply, status, sequence.
        for (at, to) in [(0, 5), (1, 1), (5, 34), (7, 6), (9, 1), (19, b'5')] {
            assert_eq!(changed(at, to), None, "{at}");
        }
        // Stratum, leap.
        for (at, to) in [(53, 0), (53, 16), (52, 1), (55, 3)] {
            assert!(!changed(at, to).unwrap().synchronised, "{at}");
        }
        for length in 0..TRACKING_BYTES {
            assert_eq!(read_chrony(&tracking()[..length], SEQUENCE), None);
        }
    }

    #[test]
    fn an_ntp_servers_answer_is_read_and_nothing_else_is() {
        let answered = ASKED + 3 * SECOND;
        let status = read_ntp(&ntp(), NONCE, ASKED, answered).unwrap();
        // Two seconds of way, one of thought: the clock is ten behind.
        let expected = ClockStatus {
            synchronised: true,
            offset: Some(10.0),
            max_error: Some(10.0 + 0.25 + 0.25 + 1.0),
            stratum: Some(2),
            source: Source::Ntp,
        };
        assert_eq!(status, expected);
        let changed = |range: std::ops::Range<usize>, to: u8| {
            let mut answer = ntp();
            answer[range].fill(to);
            read_ntp(&answer, NONCE, ASKED, answered)
        };
        // Mode 3, version 2, another's answer, no times.
        for (range, to) in [(0..1, 4 << 3 | 3), (0..1, 2 << 3 | 4), (31..32, 0), (32..40, 0), (40..48, 0)] {
            assert_eq!(changed(range.clone(), to), None, "{range:?}");
        }
        // Kiss of death, stratum 16, leap 3.
        for (range, to) in [(1..2, 0), (1..2, 16), (0..1, 3 << 6 | 4 << 3 | 4)] {
            let status = changed(range.clone(), to).unwrap();
            assert_eq!((status.synchronised, status.offset), (false, None), "{range:?}");
        }
        for length in 0..NTP_BYTES {
            assert_eq!(read_ntp(&ntp()[..length], NONCE, ASKED, answered), None);
        }
        // Over the end of the era in 2036.
        let mut answer = ntp();
        answer[32..48].copy_from_slice(&[&[0, 0, 0, 5, 0, 0, 0, 0][..], &[0, 0, 0, 5, 0, 0, 0, 0]].concat());
        let last = u64::MAX - SECOND + 1;
        assert_eq!(read_ntp(&answer, NONCE, last, last).unwrap().offset, Some(6.0));
    }

    /// A server on loopback that answers each datagram with these; its address.
    async fn server(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 1024];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                for answer in answers(&buffer[..length]) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        address
    }

    fn answered_ntp(request: &[u8]) -> Vec<u8> {
        let mut answer = ntp();
        answer[24..32].copy_from_slice(&request[40..48]);
        let now = ntp_now().unwrap() + 100 * SECOND;
        answer[32..40].copy_from_slice(&now.to_be_bytes());
        answer[40..48].copy_from_slice(&now.to_be_bytes());
        answer
    }

    fn block_on<T>(task: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(task)
    }

    #[test]
    fn who_does_not_answer_is_passed_over() {
        block_on(async {
            let chrony = server(|request| {
                assert_eq!((request.len(), request[0], request[5]), (TRACKING_BYTES, 6, 33));
                let mut answer = tracking();
                answer[16..20].copy_from_slice(&request[8..12]);
                // Something else first: it is waited past.
                vec![b"garbage".to_vec(), tracking(), answer]
            });
            let ntp = server(|request| vec![vec![], ntp(), answered_ntp(request)]);
            let (chrony, ntp) = (Some(chrony.await), Some(ntp.await));
            let silent = Some(server(|_| vec![]).await);
            let garbage = Some(server(|request| vec![request.to_vec(), vec![0xff; 104], vec![0; 48]]).await);
            let nobody = {
                let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
                Some(socket.local_addr().unwrap())
            };
            let found = async |chrony, ntp| look(&ClockSources { chrony, ntp }).await;
            assert_eq!(found(chrony, ntp).await.stratum, Some(3));
            for chrony in [None, nobody, silent, garbage] {
                let status = found(chrony, ntp).await;
                assert_eq!((status.source, status.stratum, status.synchronised), (Source::Ntp, Some(2), true));
                assert!((status.offset.unwrap() - 100.0).abs() < 1.0, "{status:?}");
            }
            for ntp in [None, nobody, silent, garbage] {
                let status = found(garbage, ntp).await;
                assert_ne!((status.source, status.stratum), (Source::Ntp, Some(2)));
                assert_eq!(
                    status,
                    kernel().map_or_else(ClockStatus::default, |now| ClockStatus {
                        offset: status.offset,
                        max_error: status.max_error,
                        ..now
                    })
                );
            }
            assert!(!ClockStatus::default().synchronised, "nobody vouches for it");
        });
    }
}
