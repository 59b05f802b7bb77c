//! Is this HTTP/1 byte stream framed in exactly one way? A gate that releases only what every reader reads alike.
//!
//! hyper and httparse are lenient on purpose: a bare LF ends a line, empty lines may precede a request, a Content-Length
//! beside a Transfer-Encoding is dropped, equal Content-Lengths are merged, chunk extensions are skipped, a fragment is
//! cut off the target. Each is a place where another reader on the path may see another message (RFC 9112 §11.2), so the
//! gate refuses all of them. It passes a subset of what hyper takes, and never alters a byte.

use std::mem;

use hyper::Uri;

use super::Violation;

/// The method of the head that stands in for a refused one. No partner can send it: the gate passes capitals only.
pub const REFUSED_METHOD: &str = "refused";

const REFUSED_HEAD: &[u8] = b"refused / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
const METHOD_BYTES_MAX: usize = 20;
const NAME_BYTES_MAX: usize = 256;
/// 18 digits always fit in a u64, and are five orders of magnitude above any body that will be sent.
const LENGTH_DIGITS_MAX: usize = 18;
/// 16 hexadecimal digits are exactly a u64.
const CHUNK_DIGITS_MAX: u8 = 16;
const TRAILER_FIELDS_MAX: usize = 16;
const TRAILER_BYTES_MAX: usize = 4096;

/// Bounds of a request head. hyper's `max_headers` has to be at least `fields_max` and its `max_buf_size` at least
/// `head_bytes_max`, or hyper refuses first and without a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Request line, fields and the empty line together, line ends included.
    pub head_bytes_max: usize,
    pub target_bytes_max: usize,
    pub fields_max: usize,
}

impl Default for HeadLimits {
    fn default() -> HeadLimits {
        HeadLimits { head_bytes_max: 16 * 1024, target_bytes_max: 8 * 1024, fields_max: 64 }
    }
}

/// What has become of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Open,
    /// A head was refused. A head with [`REFUSED_METHOD`] was released in its place, and nothing follows it.
    Refused(Violation),
    /// A body was refused. Its clean beginning was released, and reading on has to fail.
    Broken(Violation),
}

/// The state of one connection's request stream.
///
/// A head, and likewise a trailer section, is released whole or not at all. A head that arrives in one piece is examined
/// where it lies; only an unfinished one is copied here, up to `head_bytes_max` and one read.
pub struct Gate {
    limits: HeadLimits,
    state: State,
    fate: Fate,
    /// Released bytes that wait to be taken (`..ready`), then the head or trailer section that is still unfinished.
    held: Vec<u8>,
    ready: usize,
}

impl Gate {
    pub fn new(limits: HeadLimits) -> Gate {
        Gate { limits, state: State::start(), fate: Fate::Open, held: Vec::new(), ready: 0 }
    }

    /// Examines the next bytes of the stream, and says how many of them, from the first, are released where they lie.
    /// The gate has kept the rest. To be called when [`Gate::ready`] is empty: what is ready goes before these bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        if self.fate != Fate::Open {
            return 0;
        }
        let mut in_place = 0;
        if self.held.is_empty() {
            in_place = self.walk(bytes);
            self.held.extend_from_slice(&bytes[in_place..]);
        } else {
            let mut held = mem::take(&mut self.held);
            held.extend_from_slice(bytes);
            self.ready += self.walk(&held[self.ready..]);
            self.held = held;
        }
        if self.fate != Fate::Open {
            self.held.truncate(self.ready);
        }
        if let Fate::Refused(_) = self.fate {
            self.held.extend_from_slice(REFUSED_HEAD);
            self.ready = self.held.len();
        }
        in_place
    }

    /// Released bytes that the gate keeps, to be delivered before anything else.
    pub fn ready(&self) -> &[u8] {
        &self.held[..self.ready]
    }

    /// Forgets the first `count` bytes of [`Gate::ready`].
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.ready);
        self.held.drain(..count);
        self.ready -= count;
        if self.held.is_empty() {
            // An idle connection holds no buffer.
            self.held = Vec::new();
        }
    }

    /// A head or trailer section has begun and is not complete.
    pub fn is_unfinished(&self) -> bool {
        self.held.len() > self.ready
    }

    pub fn fate(&self) -> Fate {
        self.fate
    }

    /// Returns the length of the clean beginning of `bytes`, which starts where the last clean byte ended.
    fn walk(&mut self, bytes: &[u8]) -> usize {
        let mut clean = 0;
        loop {
            match self.state.step(&bytes[clean..], &self.limits) {
                Ok(0) => return clean,
                Ok(passed) => clean += passed,
                Err(violation) => {
                    self.fate = match self.state {
                        State::Head(_) => Fate::Refused(violation),
                        _ => Fate::Broken(violation),
                    };
                    return clean;
                }
            }
        }
    }
}

/// What the next unreleased byte belongs to (RFC 9112 §6 and §7.1).
enum State {
    Head(Head),
    /// Bytes of a sized body that are still to come; never zero.
    Length(u64),
    ChunkSize {
        digits: u8,
        size: u64,
    },
    ChunkSizeLf(u64),
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers(Trailers),
}

impl State {
    fn start() -> State {
        State::Head(Head::default())
    }

    fn chunk_size() -> State {
        State::ChunkSize { digits: 0, size: 0 }
    }

    /// Passes some bytes, at least one, or none when more are needed to judge.
    fn step(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<usize, Violation> {
        let Some(&first) = bytes.first() else { return Ok(0) };
        let mut passed = 1;
        let next = match self {
            State::Head(head) => match head.read(bytes, limits)? {
                Some((length, body)) => {
                    passed = length;
                    body
                }
                None => return Ok(0),
            },
            State::Length(left) => {
                passed = at_most(*left, bytes);
                match *left - passed as u64 {
                    0 => State::start(),
                    left => State::Length(left),
                }
            }
            State::ChunkSize { digits, size } => match (char::from(first).to_digit(16), first) {
                (Some(_), _) if *digits == CHUNK_DIGITS_MAX => return Err(Violation::ChunkSize),
                (Some(digit), _) => State::ChunkSize { digits: *digits + 1, size: *size << 4 | u64::from(digit) },
                (None, b'\r') if *digits > 0 => State::ChunkSizeLf(*size),
                (None, b';') if *digits > 0 => return Err(Violation::ChunkExtension),
                (None, b'\n') => return Err(Violation::BareLf),
                (None, _) => return Err(Violation::ChunkSize),
            },
            State::ChunkSizeLf(size) => match (first, *size) {
                (b'\n', 0) => State::Trailers(Trailers::default()),
                (b'\n', size) => State::Chunk(size),
                _ => return Err(Violation::BareCr),
            },
            State::Chunk(left) => {
                passed = at_most(*left, bytes);
                match *left - passed as u64 {
                    0 => State::ChunkCr,
                    left => State::Chunk(left),
                }
            }
            State::ChunkCr if first == b'\r' => State::ChunkLf,
            State::ChunkLf if first == b'\n' => State::chunk_size(),
            State::ChunkCr | State::ChunkLf => return Err(Violation::ChunkEnd),
            State::Trailers(trailers) => match trailers.read(bytes)? {
                Some(length) => {
                    passed = length;
                    State::start()
                }
                None => return Ok(0),
            },
        };
        *self = next;
        Ok(passed)
    }
}

fn at_most(left: u64, bytes: &[u8]) -> usize {
    usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
}

/// A request head that may still be growing.
#[derive(Default)]
struct Head {
    lines: Lines,
    version: Option<Version>,
    fields: usize,
    hosts: usize,
    length: Option<u64>,
    coding: Option<Chunked>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// The only transfer coding that is understood.
struct Chunked;

impl Head {
    /// The length of the finished head and what follows it; `None` while it is unfinished.
    fn read(&mut self, bytes: &[u8], limits: &HeadLimits) -> Result<Option<(usize, State)>, Violation> {
        // Lines beyond the limit are not looked at, so that the answer does not depend on how much arrived at once.
        let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
        while let Some(line) = self.lines.next(window)? {
            match self.version {
                None => self.version = Some(request_line(line, limits)?),
                Some(version) if line.is_empty() => return Ok(Some((self.lines.start, self.body(version)?))),
                Some(version) => self.field(line, version, limits)?,
            }
        }
        match (bytes.len() >= limits.head_bytes_max, self.version) {
            (false, _) => Ok(None),
            (true, None) => Err(Violation::TargetTooLong),
            (true, Some(_)) => Err(Violation::HeadTooLarge),
        }
    }

    fn field(&mut self, line: &[u8], version: Version, limits: &HeadLimits) -> Result<(), Violation> {
        self.fields += 1;
        if self.fields > limits.fields_max {
            return Err(Violation::TooManyFields);
        }
        let (name, value) = field(line)?;
        match Framing::of(name)? {
            None => {}
            Some(Framing::Host) => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return Err(Violation::HostRepeated);
                }
            }
            Some(Framing::ContentLength) => {
                if self.length.is_some() {
                    return Err(Violation::ContentLengthRepeated);
                }
                self.length = Some(content_length(value)?);
            }
            Some(Framing::TransferEncoding) => {
                if self.coding.is_some() {
                    return Err(Violation::TransferEncodingRepeated);
                }
                if version == Version::Http10 {
                    return Err(Violation::TransferEncodingVersion);
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Violation::TransferEncoding);
                }
                self.coding = Some(Chunked);
            }
        }
        if self.length.is_some() && self.coding.is_some() {
            return Err(Violation::LengthWithEncoding);
        }
        Ok(())
    }

    fn body(&self, version: Version) -> Result<State, Violation> {
        if version == Version::Http11 && self.hosts == 0 {
            return Err(Violation::HostMissing);
        }
        Ok(match (&self.coding, self.length) {
            (Some(Chunked), _) => State::chunk_size(),
            (None, None | Some(0)) => State::start(),
            (None, Some(length)) => State::Length(length),
        })
    }
}

/// A trailer section that may still be growing (RFC 9112 §7.1.2).
#[derive(Default)]
struct Trailers {
    lines: Lines,
    fields: usize,
}

impl Trailers {
    /// The length of the finished section; `None` while it is unfinished.
    fn read(&mut self, bytes: &[u8]) -> Result<Option<usize>, Violation> {
        let window = &bytes[..bytes.len().min(TRAILER_BYTES_MAX)];
        while let Some(line) = self.lines.next(window)? {
            if line.is_empty() {
                return Ok(Some(self.lines.start));
            }
            self.fields += 1;
            if self.fields > TRAILER_FIELDS_MAX {
                return Err(Violation::TrailersTooLarge);
            }
            let (name, _) = field(line)?;
            // A reader that merges trailers into the head would frame the message anew (RFC 9110 §6.5.1).
            if Framing::of(name)?.is_some() {
                return Err(Violation::TrailerName);
            }
        }
        if bytes.len() >= TRAILER_BYTES_MAX {
            return Err(Violation::TrailersTooLarge);
        }
        Ok(None)
    }
}

/// Cuts a growing section into its CRLF lines. No byte is searched twice, however small the pieces it arrives in.
#[derive(Default)]
struct Lines {
    /// Where the line that is being read begins; the end of the section once its empty line was read.
    start: usize,
    /// Before this there is no line end beyond `start`.
    searched: usize,
}

impl Lines {
    /// The next line without its CRLF; `None` when it is unfinished. `section` always begins at the same byte.
    fn next<'a>(&mut self, section: &'a [u8]) -> Result<Option<&'a [u8]>, Violation> {
        let Some(offset) = section[self.searched..].iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            self.searched = section.len();
            return Ok(None);
        };
        let end = self.searched + offset;
        self.searched = end;
        match (section[end], section.get(end + 1)) {
            (b'\n', _) => Err(Violation::BareLf),
            (_, None) => Ok(None),
            (_, Some(b'\n')) => {
                let line = &section[self.start..end];
                self.start = end + 2;
                self.searched = self.start;
                Ok(Some(line))
            }
            (_, Some(_)) => Err(Violation::BareCr),
        }
    }
}

/// `METHOD SP target SP HTTP-version` (RFC 9112 §3), one space each.
fn request_line(line: &[u8], limits: &HeadLimits) -> Result<Version, Violation> {
    if line.is_empty() {
        return Err(Violation::LeadingEmptyLine);
    }
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Violation::RequestLine);
    };
    if method.is_empty()
        || method.len() > METHOD_BYTES_MAX
        || !method.iter().all(|byte| matches!(byte, b'A'..=b'Z' | b'-'))
    {
        return Err(Violation::Method);
    }
    if target.len() > limits.target_bytes_max {
        return Err(Violation::TargetTooLong);
    }
    if target.is_empty() || !target.iter().all(u8::is_ascii_graphic) {
        return Err(Violation::TargetBytes);
    }
    if !is_one_reading(method, target) {
        return Err(Violation::TargetForm);
    }
    match version {
        b"HTTP/1.0" => Ok(Version::Http10),
        b"HTTP/1.1" => Ok(Version::Http11),
        _ => Err(Violation::Version),
    }
}

/// Origin-form, `*` for OPTIONS, authority-form for CONNECT (the service answers that method by 405). Absolute-form names
/// a second host beside the Host field, and this is no forward proxy: refused. hyper's own parser reads the target as
/// well and has to give back every byte: it would cut a fragment off and go on without it.
fn is_one_reading(method: &[u8], target: &[u8]) -> bool {
    let Ok(uri) = Uri::try_from(target) else { return false };
    if method == b"CONNECT" {
        return !target.contains(&b'@')
            && uri.authority().is_some_and(|authority| authority.as_str().as_bytes() == target);
    }
    (target.starts_with(b"/") || (method == b"OPTIONS" && target == b"*"))
        && uri.path_and_query().is_some_and(|path| path.as_str().as_bytes() == target)
}

/// Name and trimmed value of a field line (RFC 9112 §5).
fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Violation> {
    let colon = match line.iter().position(|&byte| !is_token(byte)) {
        None => return Err(Violation::ColonMissing),
        Some(0) if matches!(line[0], b' ' | b'\t') => return Err(Violation::ObsFold),
        Some(0) => return Err(Violation::FieldName),
        Some(end) => match line[end] {
            b':' => end,
            b' ' | b'\t' => return Err(Violation::SpaceBeforeColon),
            _ => return Err(Violation::FieldName),
        },
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.len() > NAME_BYTES_MAX {
        return Err(Violation::FieldNameTooLong);
    }
    if !value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)) {
        return Err(Violation::FieldValue);
    }
    Ok((name, trim(value)))
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Optional white space is SP and HTAB only; `trim_ascii` takes more.
fn trim(value: &[u8]) -> &[u8] {
    let is_content = |byte: &u8| !matches!(byte, b' ' | b'\t');
    let Some(start) = value.iter().position(is_content) else { return &[] };
    let end = value.iter().rposition(is_content).map_or(start, |last| last + 1);
    &value[start..end]
}

/// A field that decides where the message ends or whom it is for.
enum Framing {
    Host,
    ContentLength,
    TransferEncoding,
}

impl Framing {
    /// A name that would be a framing field if `_` were `-` is refused: CGI-like readers behind take the two for one.
    fn of(name: &[u8]) -> Result<Option<Framing>, Violation> {
        if name.eq_ignore_ascii_case(b"host") {
            return Ok(Some(Framing::Host));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            return Ok(Some(Framing::ContentLength));
        }
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return Ok(Some(Framing::TransferEncoding));
        }
        if name.eq_ignore_ascii_case(b"content_length") || name.eq_ignore_ascii_case(b"transfer_encoding") {
            return Err(Violation::UnderscoreName);
        }
        Ok(None)
    }
}

fn content_length(value: &[u8]) -> Result<u64, Violation> {
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return Err(Violation::ContentLength);
    }
    Ok(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')))
}

/// Requests that any strict reader has to judge alike, for the tests here and for those against hyper.
#[cfg(test)]
pub(super) mod cases {
    use super::Violation;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Expected {
        Clean,
        Refused(Violation),
        Broken(Violation),
    }

    /// Bytes that have to be released, bytes that must not be, and why. Withheld in a clean case: an unfinished head.
    pub struct Case {
        pub passed: &'static [u8],
        pub withheld: &'static [u8],
        pub expected: Expected,
    }

    const fn clean(passed: &'static [u8]) -> Case {
        Case { passed, withheld: b"", expected: Expected::Clean }
    }

    const fn partial(passed: &'static [u8], withheld: &'static [u8]) -> Case {
        Case { passed, withheld, expected: Expected::Clean }
    }

    const fn refused(withheld: &'static [u8], violation: Violation) -> Case {
        after(b"", withheld, violation)
    }

    const fn after(passed: &'static [u8], withheld: &'static [u8], violation: Violation) -> Case {
        Case { passed, withheld, expected: Expected::Refused(violation) }
    }

    const fn broken(passed: &'static [u8], withheld: &'static [u8], violation: Violation) -> Case {
        Case { passed, withheld, expected: Expected::Broken(violation) }
    }

    /// A POST with these further field lines.
    macro_rules! post {
        ($fields:expr) => {
            concat!("POST /v1 HTTP/1.1\r\nHost: a\r\n", $fields, "\r\n\r\n").as_bytes()
        };
        ($fields:expr, $body:expr) => {
            concat!("POST /v1 HTTP/1.1\r\nHost: a\r\n", $fields, "\r\n\r\n", $body).as_bytes()
        };
    }
    macro_rules! chunked {
        ($body:expr) => {
            post!("Transfer-Encoding: chunked", $body)
        };
    }
    /// A request with this request line.
    macro_rules! line {
        ($line:expr) => {
            concat!($line, "\r\nHost: a\r\n\r\n").as_bytes()
        };
    }

    pub const CASES: &[Case] = &[
        // Clean heads.
        clean(line!("GET / HTTP/1.1")),
        clean(line!("GET /a/b%20c?d=e&f=%2F HTTP/1.1")),
        clean(line!("OPTIONS * HTTP/1.1")),
        clean(line!("CONNECT a:443 HTTP/1.1")),
        clean(line!("M-SEARCH / HTTP/1.1")),
        clean(line!("ABCDEFGHIJKLMNOPQRST / HTTP/1.1")),
        clean(line!("GET / HTTP/1.0")),
        clean(b"GET / HTTP/1.0\r\n\r\n"),
        clean(b"GET / HTTP/1.1\r\nhOST:a\r\n\r\n"),
        clean(b"GET / HTTP/1.1\r\nHost:\t a \t\r\nEmpty:\r\nBlank: \t \r\n!#$%&'*+-.^_`|~09: \x80\xff\t~\r\n\r\n"),
        clean(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"),
        clean(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
        // Clean bodies.
        clean(post!("Content-Length: 5", "hello")),
        clean(post!("Content-Length: 0", "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length:\t5 \t\r\n\r\nhello")),
        clean(post!("Content-Length: 0005", "hello")),
        clean(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello"),
        clean(post!("Content-Length: 40", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n12345")),
        clean(chunked!("5\r\nhello\r\n0\r\n\r\n")),
        clean(chunked!("5\r\nhello\r\n000\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")),
        clean(chunked!("0000000000000005\r\n\r\n0\r\n\r\n0\r\n\r\n")),
        clean(chunked!("a\r\n0123456789\r\nA\r\n0123456789\r\n1\r\n.\r\n0\r\n\r\n")),
        clean(post!("transfer-encoding:CHUNKED", "0\r\n\r\n")),
        clean(chunked!("0\r\nDigest: x\r\nOther:\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n")),
        // Unfinished: nothing but whole heads and trailer sections goes out.
        partial(b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r"),
        partial(line!("GET / HTTP/1.1"), b"GET /smuggled HTTP/1.1\r\nHost: a\r\n"),
        partial(post!("Content-Length: 5", "hel"), b""),
        partial(chunked!("0\r\n"), b"Digest: x\r\n\r"),
        partial(b"", b"\r"),
        // Line ends.
        refused(b"GET / HTTP/1.1\nHost: a\n\n", Violation::BareLf),
        refused(b"GET / HTTP/1.1\r\nHost: a\n\r\n", Violation::BareLf),
        refused(b"GET / HTTP/1.1\r\nHost: a\r\n\n", Violation::BareLf),
        refused(b"GET / HTTP/1.1\rHost: a\r\n\r\n", Violation::BareCr),
        refused(b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", Violation::BareCr),
        refused(b"GET / HTTP/1.1\r\nHost: a\rTransfer-Encoding: chunked\r\n\r\n", Violation::BareCr),
        refused(b"GET / HTTP/1.1\r\nHost: a\r\n\rGET /smuggled", Violation::BareCr),
        refused(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Violation::LeadingEmptyLine),
        refused(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Violation::LeadingEmptyLine),
        refused(b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Violation::BareLf),
        // Request lines.
        refused(b"GET /\r\n", Violation::RequestLine),
        refused(line!("GET"), Violation::RequestLine),
        refused(line!("GET  / HTTP/1.1"), Violation::RequestLine),
        refused(line!("GET /  HTTP/1.1"), Violation::RequestLine),
        refused(line!("GET / HTTP/1.1 "), Violation::RequestLine),
        refused(line!(" GET / HTTP/1.1"), Violation::RequestLine),
        refused(line!("GET /a b HTTP/1.1"), Violation::RequestLine),
        refused(line!("GET\t/ HTTP/1.1"), Violation::RequestLine),
        refused(line!("get / HTTP/1.1"), Violation::Method),
        refused(line!("refused / HTTP/1.1"), Violation::Method),
        refused(line!("G\0ET / HTTP/1.1"), Violation::Method),
        refused(line!("GET1 / HTTP/1.1"), Violation::Method),
        refused(line!("ABCDEFGHIJKLMNOPQRSTU / HTTP/1.1"), Violation::Method),
        refused(line!(" / HTTP/1.1"), Violation::Method),
        refused(line!("GET  HTTP/1.1"), Violation::TargetBytes),
        refused(line!("GET /\t HTTP/1.1"), Violation::TargetBytes),
        refused(line!("GET /\0 HTTP/1.1"), Violation::TargetBytes),
        refused(line!("GET /\x7f HTTP/1.1"), Violation::TargetBytes),
        refused(line!("GET /\u{e9} HTTP/1.1"), Violation::TargetBytes),
        refused(line!("GET http://a/ HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET https://b/smuggled HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET a:443 HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET a HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET * HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET ?a HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET /a#b HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET /a?b#c HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET /a<b HTTP/1.1"), Violation::TargetForm),
        refused(line!("CONNECT / HTTP/1.1"), Violation::TargetForm),
        refused(line!("CONNECT b@a:443 HTTP/1.1"), Violation::TargetForm),
        refused(line!("CONNECT a:443/x HTTP/1.1"), Violation::TargetForm),
        refused(line!("GET / HTTP/0.9"), Violation::Version),
        refused(line!("GET / HTTP/1.2"), Violation::Version),
        refused(line!("GET / HTTP/2.0"), Violation::Version),
        refused(line!("GET / http/1.1"), Violation::Version),
        refused(line!("GET / HTTP/1.10"), Violation::Version),
        refused(line!("GET / HTTP/01.1"), Violation::Version),
        refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Violation::TargetForm),
        // Fields.
        refused(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Violation::ObsFold),
        refused(post!("X: 1\r\n continued"), Violation::ObsFold),
        refused(post!("Transfer-Encoding:\r\n\tchunked", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("X: 1\r\n\tTransfer-Encoding: chunked", "0\r\n\r\n"), Violation::ObsFold),
        refused(post!("Transfer-Encoding : chunked", "0\r\n\r\n"), Violation::SpaceBeforeColon),
        refused(post!("Content-Length\t: 5", "hello"), Violation::SpaceBeforeColon),
        refused(post!("X"), Violation::ColonMissing),
        refused(post!(": 1"), Violation::FieldName),
        refused(post!("X\0: 1"), Violation::FieldName),
        refused(post!("X(: 1"), Violation::FieldName),
        refused(post!("\u{212a}: 1"), Violation::FieldName),
        refused(post!("Content-Length\0: 5", "hello"), Violation::FieldName),
        refused(post!("X: \0"), Violation::FieldValue),
        refused(post!("X: a\x0bb"), Violation::FieldValue),
        refused(post!("X: \x7f"), Violation::FieldValue),
        refused(post!("Transfer-Encoding: \x0bchunked", "0\r\n\r\n"), Violation::FieldValue),
        refused(post!("content_length: 5", "hello"), Violation::UnderscoreName),
        refused(post!("Transfer_Encoding: chunked", "0\r\n\r\n"), Violation::UnderscoreName),
        // Host.
        refused(b"GET / HTTP/1.1\r\n\r\n", Violation::HostMissing),
        refused(b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Violation::HostRepeated),
        refused(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nhost: b\r\n\r\n", Violation::HostRepeated),
        refused(b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Violation::HostRepeated),
        // Content-Length.
        refused(post!("Content-Length:", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: +5", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: -5", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 5, 5", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 5,", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 0x5", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 5 0", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 5.0", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: \"5\"", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 0000000000000000005", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 18446744073709551621", "hello"), Violation::ContentLength),
        refused(post!("Content-Length: 5\r\nContent-Length: 5", "hello"), Violation::ContentLengthRepeated),
        refused(post!("Content-Length: 5\r\ncontent-length: 6", "hello!"), Violation::ContentLengthRepeated),
        // Transfer-Encoding.
        refused(post!("Transfer-Encoding: xchunked", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: identity", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: chunked, identity", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: identity, chunked", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: gzip, chunked", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: chunked, chunked", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: chunked;q=1", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding: \"chunked\"", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(post!("Transfer-Encoding:", "0\r\n\r\n"), Violation::TransferEncoding),
        refused(
            post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n"),
            Violation::TransferEncodingRepeated,
        ),
        refused(
            post!("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "0\r\n\r\n"),
            Violation::TransferEncodingRepeated,
        ),
        refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", Violation::TransferEncodingVersion),
        refused(post!("Content-Length: 6\r\nTransfer-Encoding: chunked", "0\r\n\r\nG"), Violation::LengthWithEncoding),
        refused(
            post!("Transfer-Encoding: chunked\r\nContent-Length: 3", "1\r\nA\r\n0\r\n\r\n"),
            Violation::LengthWithEncoding,
        ),
        refused(
            post!(
                "Transfer-Encoding: chunked\r\nContent-Length: 0",
                "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            ),
            Violation::LengthWithEncoding,
        ),
        // A second request after a first one: it is judged alone, and nothing of it slips out before.
        after(line!("GET / HTTP/1.1"), b"GET /smuggled HTTP/1.1\r\n\r\n", Violation::HostMissing),
        after(line!("GET / HTTP/1.1"), b"\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", Violation::LeadingEmptyLine),
        after(post!("Content-Length: 5", "hello"), b"!GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", Violation::Method),
        after(
            chunked!("0\r\n\r\n"),
            b"POST /smuggled HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Violation::LengthWithEncoding,
        ),
        // Chunks.
        broken(chunked!("5"), b"\nhello\r\n0\r\n\r\n", Violation::BareLf),
        broken(chunked!("5\r"), b"hello\r\n0\r\n\r\n", Violation::BareCr),
        broken(chunked!("5"), b";a=b\r\nhello\r\n0\r\n\r\n", Violation::ChunkExtension),
        broken(chunked!("5"), b";\nGET /smuggled HTTP/1.1\r\n", Violation::ChunkExtension),
        broken(chunked!("5"), b" \r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!("5"), b"\t;a\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!("0"), b"x5\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!(""), b"+5\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!(""), b"-1\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!(""), b" 5\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!(""), b"\r\n5\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!(""), b";a\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!("5"), b"_0\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!("0000000000000000"), b"5\r\nhello\r\n0\r\n\r\n", Violation::ChunkSize),
        broken(chunked!("5\r\nhello"), b"!\r\n0\r\n\r\n", Violation::ChunkEnd),
        broken(chunked!("5\r\nhello"), b"\n0\r\n\r\n", Violation::ChunkEnd),
        broken(chunked!("5\r\nhello\r"), b"!0\r\n\r\n", Violation::ChunkEnd),
        broken(chunked!("2\r\nhe"), b"llo\r\n0\r\n\r\n", Violation::ChunkEnd),
        // Trailers.
        broken(chunked!("0\r\n"), b"\n", Violation::BareLf),
        broken(chunked!("0\r\n"), b"X: 1\n\r\n", Violation::BareLf),
        broken(chunked!("0\r\n"), b"\rGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", Violation::BareCr),
        broken(chunked!("0\r\n"), b"X: 1\r\n folded\r\n\r\n", Violation::ObsFold),
        broken(chunked!("0\r\n"), b"X : 1\r\n\r\n", Violation::SpaceBeforeColon),
        broken(chunked!("0\r\n"), b"X: \0\r\n\r\n", Violation::FieldValue),
        broken(chunked!("0\r\n"), b"Content-Length: 5\r\n\r\n", Violation::TrailerName),
        broken(chunked!("0\r\n"), b"X: 1\r\ntransfer-encoding: chunked\r\n\r\n", Violation::TrailerName),
        broken(chunked!("0\r\n"), b"HOST: b\r\n\r\n", Violation::TrailerName),
        broken(chunked!("0\r\n"), b"Content_Length: 5\r\n\r\n", Violation::UnderscoreName),
        broken(chunked!("0\r\n"), b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", Violation::SpaceBeforeColon),
    ];
}

#[cfg(test)]
mod tests {
    use super::cases::{CASES, Expected};
    use super::*;
    use proptest::prelude::*;

    /// Everything released for these pieces, and the fate.
    fn run<'a>(limits: HeadLimits, pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Fate) {
        let mut gate = Gate::new(limits);
        let mut released = Vec::new();
        for piece in pieces {
            let in_place = gate.feed(piece);
            released.extend_from_slice(&piece[..in_place]);
            released.extend_from_slice(gate.ready());
            gate.consume(gate.ready().len());
            assert!(
                gate.held.len() < limits.head_bytes_max.max(TRAILER_BYTES_MAX),
                "only an unfinished section is held"
            );
        }
        (released, gate.fate())
    }

    /// Runs a stream whole, byte by byte and in every two pieces; all have to agree.
    fn run_every_way(limits: HeadLimits, stream: &[u8]) -> (Vec<u8>, Fate) {
        let whole = run(limits, [stream]);
        assert_eq!(run(limits, stream.chunks(1)), whole, "byte by byte: {}", stream.escape_ascii());
        for split in 0..=stream.len() {
            let (first, second) = stream.split_at(split);
            assert_eq!(run(limits, [first, second]), whole, "split at {split}: {}", stream.escape_ascii());
        }
        whole
    }

    #[test]
    fn each_case_is_judged_alike_however_it_arrives() {
        for case in CASES {
            let mut expected = case.passed.to_vec();
            let fate = match case.expected {
                Expected::Clean => Fate::Open,
                Expected::Broken(violation) => Fate::Broken(violation),
                Expected::Refused(violation) => {
                    expected.extend_from_slice(REFUSED_HEAD);
                    Fate::Refused(violation)
                }
            };
            let stream = [case.passed, case.withheld].concat();
            assert_eq!(run_every_way(HeadLimits::default(), &stream), (expected, fate), "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn bounds_hold_to_the_byte() {
        let limits = HeadLimits { head_bytes_max: 64, target_bytes_max: 10, fields_max: 2 };
        let head = |length: usize| {
            let fixed = "GET / HTTP/1.1\r\nHost: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", "a".repeat(length - fixed))
        };
        let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(length - 1));
        let table = [
            (head(64), Fate::Open),
            (head(65), Fate::Refused(Violation::HeadTooLarge)),
            (target(10), Fate::Open),
            (target(11), Fate::Refused(Violation::TargetTooLong)),
            (target(500), Fate::Refused(Violation::TargetTooLong)),
            ("A".repeat(64), Fate::Refused(Violation::TargetTooLong)),
            ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n".into(), Fate::Open),
            ("GET / HTTP/1.1\r\nHost: a\r\nX:\r\nY:\r\n\r\n".into(), Fate::Refused(Violation::TooManyFields)),
            // What lies beyond the bound does not change the reason.
            (
                format!("{}\nX: \0", "GET / HTTP/1.1\r\nHost: a".to_owned() + &"a".repeat(50)),
                Fate::Refused(Violation::HeadTooLarge),
            ),
        ];
        for (stream, fate) in table {
            assert_eq!(run_every_way(limits, stream.as_bytes()).1, fate, "{stream:?}");
        }
        assert_eq!(
            run(HeadLimits { head_bytes_max: 0, ..limits }, [&b"G"[..]]).1,
            Fate::Refused(Violation::TargetTooLong)
        );
    }

    #[test]
    fn field_names_and_trailers_are_bounded() {
        let limits = HeadLimits::default();
        let named = |length: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}: 1\r\n\r\n", "x".repeat(length));
        let trailers = |fields: usize, bytes: usize| {
            let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
            let last = "X: ".to_owned() + &"x".repeat(bytes - 2 - 6 * (fields - 1) - 5) + "\r\n";
            format!("{head}{}{last}\r\n", "X: 1\r\n".repeat(fields - 1))
        };
        let table = [
            (named(256), Fate::Open),
            (named(257), Fate::Refused(Violation::FieldNameTooLong)),
            (trailers(16, 1000), Fate::Open),
            (trailers(17, 1000), Fate::Broken(Violation::TrailersTooLarge)),
            (trailers(1, 4096), Fate::Open),
            (trailers(1, 4097), Fate::Broken(Violation::TrailersTooLarge)),
        ];
        for (stream, fate) in table {
            assert_eq!(run(limits, [stream.as_bytes()]).1, fate, "{stream:?}");
            assert_eq!(run(limits, stream.as_bytes().chunks(1)).1, fate, "byte by byte: {stream:?}");
        }
    }

    #[test]
    fn a_head_in_one_piece_is_not_copied_and_neither_is_its_body() {
        let mut gate = Gate::new(HeadLimits::default());
        let stream = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhello";
        assert_eq!(gate.feed(stream), stream.len());
        assert_eq!(gate.feed(&[b'x'; 900]), 900);
        assert_eq!(gate.held.capacity(), 0);
    }

    #[test]
    fn nothing_follows_a_refusal() {
        let mut gate = Gate::new(HeadLimits::default());
        assert_eq!(gate.feed(b"GET / HTTP/1.1\r\n\r\n"), 0);
        assert_eq!(gate.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
        assert_eq!(gate.ready(), REFUSED_HEAD);
        gate.consume(usize::MAX);
        assert_eq!(gate.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), 0);
        assert!(gate.ready().is_empty());
    }

    /// Pieces that make or break framing, so that random streams get deep into the gate.
    fn fragment() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            3 => prop::sample::select(CASES.iter().map(|case| [case.passed, case.withheld].concat()).collect::<Vec<_>>()),
            3 => prop::sample::select(vec![
                &b"GET / HTTP/1.1\r\n"[..], b"Host: a\r\n", b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b"0\r\n",
                b"5\r\nhello\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"\0", b"POST /a HTTP/1.0\r\n",
            ]).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    proptest! {
        #[test]
        fn splitting_never_changes_the_outcome(
            fragments in prop::collection::vec(fragment(), 0..6),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            head_bytes_max in prop_oneof![Just(16 * 1024), 0..80usize],
        ) {
            let mut stream = fragments.concat();
            for (at, byte) in flips {
                if !stream.is_empty() {
                    let at = at.index(stream.len());
                    stream[at] = byte;
                }
            }
            let limits = HeadLimits { head_bytes_max, ..HeadLimits::default() };
            let whole = run(limits, [&stream[..]]);
            prop_assert_eq!(&run(limits, stream.chunks(1)), &whole);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
            cuts.sort_unstable();
            let ends = cuts.iter().copied().chain([stream.len()]);
            let pieces = ends.scan(0, |start, end| Some(&stream[mem::replace(start, end)..end]));
            prop_assert_eq!(&run(limits, pieces), &whole);

            // What goes out is the beginning of what came in, and after a refusal the stand-in head.
            let own = if matches!(whole.1, Fate::Refused(_)) { REFUSED_HEAD.len() } else { 0 };
            let passed = whole.0.len() - own;
            prop_assert!(stream.starts_with(&whole.0[..passed]));
        }
    }
}
