//! Does this HTTP/2 client send more control frames than honest clients do? A meter over the frame headers.
//!
//! h2 answers each SETTINGS and PING, opens a stream for each HEADERS, and asks no price for the rest. The floods of
//! CVE-2019-9511 to 9518, CVE-2023-44487 (rapid reset) and VU#421644 (CONTINUATION) are all made of such frames, so
//! each kind has an allowance that fills again with time. Payloads are skipped; what they say is h2's to judge.

use super::Violation;
use crate::clock::Timestamp;

const PREFACE_BYTES: u64 = 24;
const FRAME_HEADER_BYTES: usize = 9;
/// SETTINGS_MAX_FRAME_SIZE as announced: the default (RFC 9113 §6.5.2).
const FRAME_BYTES_MAX: u64 = 16_384;
/// So many bytes sent to the client earn one WINDOW_UPDATE. The busiest honest client answers each small DATA frame by
/// two updates, one for the stream and one for the connection.
const SENT_BYTES_PER_UPDATE: u64 = 256;
/// Credit for updates stops growing here, so that a long download does not pay for a flood afterwards.
const SENT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How many frames at once, and how many more each second. Zero and zero refuses every frame of the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    pub burst: u32,
    pub per_second: u32,
}

/// What one HTTP/2 connection may send. The defaults are far above curl, nghttp2, Go, Node and Python clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// HEADERS frames: a request each, or its trailers.
    pub headers: Allowance,
    /// HEADERS and CONTINUATION payloads of one header block, still compressed.
    pub header_block_bytes_max: u64,
    /// CONTINUATION frames of one header block.
    pub continuations_max: u32,
    /// SETTINGS without ACK.
    pub settings: Allowance,
    /// PING without ACK.
    pub pings: Allowance,
    /// SETTINGS and PING with ACK: answers to frames of ours.
    pub acks: Allowance,
    pub resets: Allowance,
    pub priorities: Allowance,
    /// WINDOW_UPDATE frames beyond those that bytes sent to the client have earned.
    pub window_updates: Allowance,
    /// DATA frames of length zero that do not end their stream.
    pub empty_data: Allowance,
    /// Every other type, GOAWAY and PUSH_PROMISE among them.
    pub others: Allowance,
}

impl Default for FrameLimits {
    fn default() -> FrameLimits {
        FrameLimits {
            headers: Allowance { burst: 10_000, per_second: 10_000 },
            header_block_bytes_max: 32 * 1024,
            continuations_max: 8,
            settings: Allowance { burst: 10, per_second: 1 },
            pings: Allowance { burst: 20, per_second: 2 },
            acks: Allowance { burst: 100, per_second: 20 },
            resets: Allowance { burst: 100, per_second: 20 },
            priorities: Allowance { burst: 100, per_second: 20 },
            window_updates: Allowance { burst: 2_000, per_second: 1_000 },
            empty_data: Allowance { burst: 100, per_second: 10 },
            others: Allowance { burst: 100, per_second: 20 },
        }
    }
}

/// The counts of one connection. `now` may be of any clock that does not go back.
pub struct Meter {
    /// Bytes until the next frame header: what is left of the preface or of a payload.
    skip: u64,
    header: [u8; FRAME_HEADER_BYTES],
    header_filled: usize,
    header_block_bytes: u64,
    header_block_bytes_max: u64,
    continuations: u32,
    continuations_max: u32,
    sent_bytes: u64,
    headers: Bucket,
    settings: Bucket,
    pings: Bucket,
    acks: Bucket,
    resets: Bucket,
    priorities: Bucket,
    window_updates: Bucket,
    empty_data: Bucket,
    others: Bucket,
    violation: Option<Violation>,
}

impl Meter {
    pub fn new(limits: &FrameLimits) -> Meter {
        Meter {
            skip: PREFACE_BYTES,
            header: [0; FRAME_HEADER_BYTES],
            header_filled: 0,
            header_block_bytes: 0,
            header_block_bytes_max: limits.header_block_bytes_max,
            continuations: 0,
            continuations_max: limits.continuations_max,
            sent_bytes: 0,
            headers: Bucket::full(limits.headers),
            settings: Bucket::full(limits.settings),
            pings: Bucket::full(limits.pings),
            acks: Bucket::full(limits.acks),
            resets: Bucket::full(limits.resets),
            priorities: Bucket::full(limits.priorities),
            window_updates: Bucket::full(limits.window_updates),
            empty_data: Bucket::full(limits.empty_data),
            others: Bucket::full(limits.others),
            violation: None,
        }
    }

    /// For a server's stream: it has no preface but its first frame.
    pub fn of_server(limits: &FrameLimits) -> Meter {
        Meter { skip: 0, ..Meter::new(limits) }
    }

    /// Counts the frames that begin in the next bytes from the client. The first violation is the answer from then on.
    pub fn feed(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), Violation> {
        if let Some(violation) = self.violation {
            return Err(violation);
        }
        self.walk(bytes, now).inspect_err(|&violation| self.violation = Some(violation))
    }

    /// Credits bytes sent to the client: they are what WINDOW_UPDATE frames answer.
    pub fn sent(&mut self, bytes: usize) {
        self.sent_bytes = self.sent_bytes.saturating_add(bytes as u64).min(SENT_BYTES_MAX);
    }

    fn walk(&mut self, mut bytes: &[u8], now: Timestamp) -> Result<(), Violation> {
        loop {
            let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            self.skip -= skipped as u64;
            bytes = &bytes[skipped..];
            let taken = bytes.len().min(FRAME_HEADER_BYTES - self.header_filled);
            self.header[self.header_filled..self.header_filled + taken].copy_from_slice(&bytes[..taken]);
            self.header_filled += taken;
            bytes = &bytes[taken..];
            if self.header_filled < FRAME_HEADER_BYTES {
                return Ok(());
            }
            self.header_filled = 0;
            self.skip = self.frame(now)?;
        }
    }

    /// Counts the frame whose header was read (RFC 9113 §4.1), and returns the length of its payload.
    fn frame(&mut self, now: Timestamp) -> Result<u64, Violation> {
        // The stream identifier is h2's business.
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = u64::from(u32::from_be_bytes([0, high, middle, low]));
        if length > FRAME_BYTES_MAX {
            return Err(Violation::FrameTooLong);
        }
        // END_STREAM on DATA and ACK on SETTINGS and PING are the same bit.
        let is_flagged = flags & 1 == 1;
        match kind {
            0x0 if length == 0 && !is_flagged => self.empty_data.take(now, Violation::EmptyDataFlood)?,
            0x0 => {}
            0x1 => {
                self.headers.take(now, Violation::HeadersFlood)?;
                self.header_block_bytes = 0;
                self.continuations = 0;
                self.header_block(length)?;
            }
            0x2 => self.priorities.take(now, Violation::PriorityFlood)?,
            0x3 => self.resets.take(now, Violation::ResetFlood)?,
            0x4 | 0x6 if is_flagged => self.acks.take(now, Violation::AckFlood)?,
            0x4 => self.settings.take(now, Violation::SettingsFlood)?,
            0x6 => self.pings.take(now, Violation::PingFlood)?,
            0x8 if self.sent_bytes >= SENT_BYTES_PER_UPDATE => self.sent_bytes -= SENT_BYTES_PER_UPDATE,
            0x8 => self.window_updates.take(now, Violation::WindowUpdateFlood)?,
            0x9 => {
                self.continuations = self.continuations.saturating_add(1);
                if self.continuations > self.continuations_max {
                    return Err(Violation::TooManyContinuations);
                }
                self.header_block(length)?;
            }
            _ => self.others.take(now, Violation::OtherFrameFlood)?,
        }
        Ok(length)
    }

    fn header_block(&mut self, length: u64) -> Result<(), Violation> {
        self.header_block_bytes = self.header_block_bytes.saturating_add(length);
        if self.header_block_bytes > self.header_block_bytes_max {
            return Err(Violation::HeaderBlockTooLarge);
        }
        Ok(())
    }
}

const TOKEN: u64 = 1_000_000_000;

/// A token bucket in billionths of a frame, so that a nanosecond at one frame a second is one unit. Kept here rather than
/// taken from governor: nine of them live in every connection, unshared, and `now` is handed in.
struct Bucket {
    allowance: Allowance,
    level: u64,
    at: Timestamp,
}

impl Bucket {
    fn full(allowance: Allowance) -> Bucket {
        Bucket { allowance, level: u64::from(allowance.burst) * TOKEN, at: Timestamp::default() }
    }

    fn take(&mut self, now: Timestamp, excess: Violation) -> Result<(), Violation> {
        let elapsed_nanos = now.as_nanos().saturating_sub(self.at.as_nanos());
        let refill = elapsed_nanos.saturating_mul(u64::from(self.allowance.per_second));
        let level = self.level.saturating_add(refill).min(u64::from(self.allowance.burst) * TOKEN);
        self.at = self.at.max(now);
        self.level = level.checked_sub(TOKEN).ok_or(excess)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PRIORITY: u8 = 2;
    const RESET: u8 = 3;
    const SETTINGS: u8 = 4;
    const PUSH_PROMISE: u8 = 5;
    const PING: u8 = 6;
    const GOAWAY: u8 = 7;
    const WINDOW_UPDATE: u8 = 8;
    const CONTINUATION: u8 = 9;
    const PRIORITY_UPDATE: u8 = 16;
    const ACK: u8 = 1;
    const END_STREAM: u8 = 1;

    /// A payload of 0xff would read as frames of forbidden length if it were not skipped.
    fn frame(kind: u8, flags: u8, length: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER_BYTES + length, 0xff);
        frame
    }

    fn second(at: u64) -> Timestamp {
        Timestamp::from_unix_seconds(at)
    }

    fn started(limits: &FrameLimits) -> Meter {
        let mut meter = Meter::new(limits);
        meter.feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", second(0)).unwrap();
        meter
    }

    fn feed_times(meter: &mut Meter, frame: &[u8], count: usize, now: Timestamp) -> Result<(), Violation> {
        (0..count).try_for_each(|_| meter.feed(frame, now))
    }

    #[test]
    fn each_kind_has_its_burst_and_fills_again() {
        // Kind, flags, length, burst, frames a second afterwards, violation.
        let table = [
            (HEADERS, END_STREAM, 30, 10_000, 10_000, Violation::HeadersFlood),
            (SETTINGS, 0, 12, 10, 1, Violation::SettingsFlood),
            (PING, 0, 8, 20, 2, Violation::PingFlood),
            (SETTINGS, ACK, 0, 100, 20, Violation::AckFlood),
            (PING, ACK, 8, 100, 20, Violation::AckFlood),
            (RESET, 0, 4, 100, 20, Violation::ResetFlood),
            (PRIORITY, 0, 5, 100, 20, Violation::PriorityFlood),
            (WINDOW_UPDATE, 0, 4, 2_000, 1_000, Violation::WindowUpdateFlood),
            (DATA, 0, 0, 100, 10, Violation::EmptyDataFlood),
            (PUSH_PROMISE, 0, 4, 100, 20, Violation::OtherFrameFlood),
            (GOAWAY, 0, 8, 100, 20, Violation::OtherFrameFlood),
            (PRIORITY_UPDATE, 0, 9, 100, 20, Violation::OtherFrameFlood),
            (0xff, 0xff, 0, 100, 20, Violation::OtherFrameFlood),
        ];
        for (kind, flags, length, burst, per_second, violation) in table {
            let frame = frame(kind, flags, length);
            let mut meter = started(&FrameLimits::default());
            assert_eq!(feed_times(&mut meter, &frame, burst, second(5)), Ok(()), "{violation}");
            assert_eq!(feed_times(&mut meter, &frame, per_second, second(6)), Ok(()), "{violation}");
            assert_eq!(meter.feed(&frame, second(6)), Err(violation));
            assert_eq!(meter.feed(&[], second(60)), Err(violation), "the first violation is the answer from then on");
            let mut meter = started(&FrameLimits::default());
            assert_eq!(feed_times(&mut meter, &frame, burst, second(5)), Ok(()), "{violation}");
            assert_eq!(meter.feed(&frame, second(4)), Err(violation), "a clock that goes back gives nothing");
        }
    }

    #[test]
    fn frames_and_header_blocks_are_bounded() {
        let block = |first: usize, continuations: usize, each: usize| {
            [frame(HEADERS, 0, first), frame(CONTINUATION, 0, each).repeat(continuations)].concat()
        };
        let table = [
            (frame(DATA, END_STREAM, 16_384), Ok(())),
            (frame(DATA, END_STREAM, 16_385), Err(Violation::FrameTooLong)),
            (vec![0xff; FRAME_HEADER_BYTES], Err(Violation::FrameTooLong)),
            (frame(DATA, END_STREAM, 0).repeat(1_000), Ok(())),
            (frame(DATA, 0, 1).repeat(1_000), Ok(())),
            (block(16_384, 1, 16_384), Ok(())),
            (block(16_384, 2, 8_193), Err(Violation::HeaderBlockTooLarge)),
            (block(0, 8, 0), Ok(())),
            (block(0, 9, 0), Err(Violation::TooManyContinuations)),
            (block(100, 8, 100).repeat(50), Ok(())),
            (frame(CONTINUATION, 0, 0).repeat(9), Err(Violation::TooManyContinuations)),
        ];
        for (frames, expected) in table {
            assert_eq!(started(&FrameLimits::default()).feed(&frames, second(1)), expected);
            let mut meter = started(&FrameLimits::default());
            assert_eq!(frames.chunks(1).try_for_each(|byte| meter.feed(byte, second(1))), expected, "byte by byte");
        }
    }

    #[test]
    fn bytes_sent_pay_for_window_updates_but_not_for_ever() {
        let update = frame(WINDOW_UPDATE, 0, 4);
        let mut meter = started(&FrameLimits::default());
        for _ in 0..100_000 {
            meter.sent(4_096);
            assert_eq!(feed_times(&mut meter, &update, 2, second(1)), Ok(()));
        }
        meter.sent(usize::MAX);
        let paid = (SENT_BYTES_MAX / SENT_BYTES_PER_UPDATE) as usize;
        assert_eq!(feed_times(&mut meter, &update, paid + 2_000, second(1)), Ok(()));
        assert_eq!(meter.feed(&update, second(1)), Err(Violation::WindowUpdateFlood));
    }

    #[test]
    fn a_zero_allowance_refuses() {
        let none = FrameLimits { pings: Allowance { burst: 0, per_second: 1_000 }, ..FrameLimits::default() };
        assert_eq!(started(&none).feed(&frame(PING, 0, 8), second(1_000)), Err(Violation::PingFlood));
        let once = FrameLimits { pings: Allowance { burst: 1, per_second: 0 }, ..FrameLimits::default() };
        let mut meter = started(&once);
        assert_eq!(meter.feed(&frame(PING, 0, 8), second(1)), Ok(()));
        assert_eq!(meter.feed(&frame(PING, 0, 8), second(1_000_000_000)), Err(Violation::PingFlood));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_to_the_same_end(
            frames in prop::collection::vec((0..12u8, any::<u8>(), 0..300usize, 1..30usize), 0..20),
            noise in prop::collection::vec(any::<u8>(), 0..100),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut stream = vec![b'P'; PREFACE_BYTES as usize];
            for (kind, flags, length, count) in frames {
                stream.extend(frame(kind, flags, length).repeat(count));
            }
            stream.extend(noise);
            let limits = FrameLimits::default();
            let whole = Meter::new(&limits).feed(&stream, second(1));
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut meter = Meter::new(&limits);
            let pieces = cuts.windows(2).try_for_each(|cut| meter.feed(&stream[cut[0]..cut[1]], second(1)));
            prop_assert_eq!(pieces, whole);
            let mut meter = Meter::new(&limits);
            prop_assert_eq!(stream.chunks(1).try_for_each(|byte| meter.feed(byte, second(1))), whole);
        }
    }
}
