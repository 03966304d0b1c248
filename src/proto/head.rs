//! A request head, borrowed from wherever its bytes are, and the strict reading of its framing.
//!
//! RFC 9112 with every doubt decided against the sender: whoever reads a length differently from us (a proxy in front) must
//! never be possible. Shared by both protocols; HTTP/2 has no framing fields of its own to check.

use smallvec::SmallVec;

use crate::limits;

/// The HTTP/2 connection preface; a cleartext client that knows starts with it (RFC 9113 section 3.3).
pub const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Other,
}

impl Method {
    pub fn parse(text: &[u8]) -> Self {
        match text {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// How long the body is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// `Content-Length`, or 0 without any framing field.
    Length(u64),
    Chunked,
    /// HTTP/2: until END_STREAM; the length if announced.
    Stream(Option<u64>),
}

/// Why a request cannot be read. Each becomes one problem, or none where nobody would read it, and the connection closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// The head or body breaks the grammar.
    Syntax(&'static str),
    HeadTooLarge,
    TargetTooLong,
    HeadTimeout,
    BodyTimeout,
    /// A body whose bytes come at less than `http.body_bytes_per_s_min`.
    BodyTooSlow,
    BodyTooLarge,
    /// The body is not what its `Content-Encoding` says.
    Coding(&'static str),
    /// What decompressing the body takes of memory is not there.
    NoRoom,
    /// An `Expect` we cannot meet.
    Expectation,
    /// The first line is of another protocol: whoever sent it could not read an answer.
    Foreign,
    /// The client left in the middle: nobody to answer.
    Cut,
}

/// A field of the head.
pub type Field<'a> = (&'a [u8], &'a [u8]);

/// See the module text.
#[derive(Debug)]
pub struct Head<'a> {
    pub method: Method,
    pub version: Version,
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub fields: SmallVec<[Field<'a>; 24]>,
    pub framing: Framing,
    /// The connection may carry another request after this one.
    pub keep_alive: bool,
    pub expects_continue: bool,
    /// `TE: trailers` was said: an HTTP/1.1 client reads trailer fields. HTTP/2 has a reset for what they are for here.
    pub takes_trailers: bool,
}

impl<'a> Head<'a> {
    /// The first field of that name (lower-case).
    pub fn field(&self, name: &str) -> Option<&'a [u8]> {
        self.fields_named(name).next()
    }

    pub fn fields_named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a [u8]> + 's {
        self.fields.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
    }
}

/// Parses an HTTP/1 head and gives it, and how many bytes it took, to `take`; `None` when more bytes are needed. A head is large, and
/// returning it would copy it four times.
pub fn parse_h1<T>(
    bytes: &[u8],
    head_bytes_max: usize,
    target_bytes_max: usize,
    take: impl FnOnce(&Head<'_>, usize) -> T,
) -> Result<Option<T>, Malformed> {
    let mut slots = [const { std::mem::MaybeUninit::uninit() }; limits::HEAD_FIELDS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut slots);
    let len = match parsed {
        Ok(httparse::Status::Complete(len)) if len <= head_bytes_max => len,
        Ok(httparse::Status::Complete(_)) => return Err(too_large(bytes, target_bytes_max)),
        Ok(httparse::Status::Partial) if bytes.len() > head_bytes_max => {
            return Err(too_large(bytes, target_bytes_max));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::HeadTooLarge),
        Err(error) => {
            return match first_line(bytes) {
                FirstLine::Http => Err(Malformed::Syntax(syntax_of(error))),
                // Of too little nobody can tell; too much is too much.
                FirstLine::Begun if bytes.len() <= head_bytes_max => Ok(None),
                FirstLine::Begun | FirstLine::Foreign => Err(Malformed::Foreign),
            };
        }
    };
    let head = &bytes[..len];
    if memchr::memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r') {
        return Err(Malformed::Syntax("a line ends in a bare LF"));
    }
    let target = request.path.unwrap_or_default().as_bytes();
    if target.len() > target_bytes_max {
        return Err(Malformed::TargetTooLong);
    }
    let method = Method::parse(request.method.unwrap_or_default().as_bytes());
    // The options of the server as a whole (RFC 9112 section 3.2.4).
    let is_asterisk = method == Method::Options && target == b"*";
    let (path, query) = if is_asterisk { (target, None) } else { split_target(target)? };
    let mut head = Head {
        method,
        version: if request.version == Some(0) { Version::Http10 } else { Version::Http11 },
        path,
        query,
        fields: SmallVec::new(),
        framing: Framing::Length(0),
        keep_alive: request.version == Some(1),
        expects_continue: false,
        takes_trailers: false,
    };
    head.fields.extend(request.headers.iter().map(|h| (h.name.as_bytes(), h.value)));
    read_framing(&mut head)?;
    Ok(Some(take(&head, len)))
}

/// The long part decides the answer: a request line over the target's limit is 414, anything else 431. One endless word is no
/// request line.
fn too_large(bytes: &[u8], target_bytes_max: usize) -> Malformed {
    let line = memchr::memchr(b'\n', bytes).unwrap_or(bytes.len());
    match bytes[..line].split(|b| *b == b' ').nth(1) {
        Some(target) if target.len() > target_bytes_max => Malformed::TargetTooLong,
        None if line == bytes.len() => Malformed::Foreign,
        _ => Malformed::HeadTooLarge,
    }
}

/// What the first line of bytes that are no request head looks like.
#[derive(PartialEq, Eq, Debug)]
enum FirstLine {
    /// It ends in `HTTP/1.x`: whoever sent it reads an answer.
    Http,
    /// Its end has not come.
    Begun,
    /// TLS, SSH, HTTP/2 without its preface: an answer would be noise.
    Foreign,
}

fn first_line(bytes: &[u8]) -> FirstLine {
    let blank = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    let bytes = &bytes[blank..];
    let Some(end) = memchr::memchr(b'\n', bytes) else {
        let method = bytes.split(|b| *b == b' ').next().unwrap_or_default();
        let is_text = method.iter().all(|b| matches!(b, b'\t' | b'\r' | 0x21..=0x7e));
        return if is_text { FirstLine::Begun } else { FirstLine::Foreign };
    };
    match bytes[..end].trim_ascii_end().last_chunk::<8>() {
        Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9']) => FirstLine::Http,
        _ => FirstLine::Foreign,
    }
}

fn syntax_of(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a field name is not a token",
        httparse::Error::HeaderValue => "a field value holds a forbidden byte",
        httparse::Error::NewLine => "a line does not end in CRLF",
        httparse::Error::Token => "the method is not a token",
        httparse::Error::Version => "the version is not HTTP/1.0 or HTTP/1.1",
        _ => "the head breaks the grammar of RFC 9112",
    }
}

/// Origin form, or absolute form reduced to it (RFC 9112 section 3.2.2).
pub fn split_target(target: &[u8]) -> Result<(&[u8], Option<&[u8]>), Malformed> {
    let origin = if target.starts_with(b"/") { target } else { without_authority(target)? };
    if !origin.iter().all(|b| (0x21..=0x7e).contains(b) && *b != b'#') {
        return Err(Malformed::Syntax("the request target holds a byte RFC 3986 forbids"));
    }
    let (path, query) =
        memchr::memchr(b'?', origin).map_or((origin, None), |at| (&origin[..at], Some(&origin[at + 1..])));
    Ok((if path.is_empty() { b"/" } else { path }, query))
}

fn without_authority(target: &[u8]) -> Result<&[u8], Malformed> {
    let rest = [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let (found, rest) = target.split_at_checked(scheme.len())?;
        found.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let rest = rest.ok_or(Malformed::Syntax("the request target is not in origin form"))?;
    let end = rest.iter().position(|b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
    if end == 0 || !is_host(&rest[..end]) {
        return Err(Malformed::Syntax("the request target names no host"));
    }
    Ok(&rest[end..])
}

/// What a token is made of (RFC 9110 section 5.6.2).
pub fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether this can be `uri-host [ ":" port ]`; it may be empty (RFC 9112 section 3.2).
fn is_host(value: &[u8]) -> bool {
    value.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(b))
}

fn read_framing(head: &mut Head<'_>) -> Result<(), Malformed> {
    let (mut length, mut hosts, mut chunked) = (None, 0, false);
    for (name, value) in &head.fields {
        match name.len() {
            2 if name.eq_ignore_ascii_case(b"te") => head.takes_trailers |= names_trailers(value),
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                if !is_host(value) {
                    return Err(Malformed::Syntax("Host is not a host"));
                }
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Malformed::Expectation);
                }
                head.expects_continue = head.version == Version::Http11;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        head.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") && head.version == Version::Http10 {
                        head.keep_alive = true;
                    }
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.is_some() {
                    return Err(Malformed::Syntax("Content-Length is repeated"));
                }
                length = Some(parse_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !value.eq_ignore_ascii_case(b"chunked") || head.version == Version::Http10 {
                    return Err(Malformed::Syntax("Transfer-Encoding is not exactly chunked"));
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && head.version == Version::Http11) {
        return Err(Malformed::Syntax("exactly one Host field is required"));
    }
    head.framing = match (chunked, length) {
        (true, Some(_)) => return Err(Malformed::Syntax("Content-Length stands beside Transfer-Encoding")),
        (true, None) => Framing::Chunked,
        (false, length) => Framing::Length(length.unwrap_or(0)),
    };
    Ok(())
}

/// Whether `trailers` is in a list of transfer codings (RFC 9110 section 10.1.4).
fn names_trailers(value: &[u8]) -> bool {
    value.split(|b| *b == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Digits only: no sign, no white space inside, no list.
pub fn parse_length(value: &[u8]) -> Result<u64, Malformed> {
    let wrong = Malformed::Syntax("Content-Length is not a number");
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(wrong);
    }
    Ok(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Framing, Malformed> {
        let framing =
            parse_h1(text.as_bytes(), limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, |head, _| head.framing)?;
        Ok(framing.expect("the head is whole"))
    }

    #[test]
    fn lengths_are_read_one_way_only() {
        let ok = |fields: &str| parse(&format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
        assert_eq!(ok("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(ok("Transfer-Encoding: chunked\r\n"), Ok(Framing::Chunked));
        for bad in [
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length:\r\n",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Content-Length : 5\r\n",
            "A: b\r\n c\r\n",
            "A: b\nC: d\r\n",
            "A: \0\r\n",
            "Host: y\r\n",
        ] {
            assert!(matches!(ok(bad), Err(Malformed::Syntax(_))), "{bad:?}");
        }
    }

    #[test]
    fn targets_are_reduced_to_a_path() {
        for (target, path, query) in [
            ("/a?b", "/a", Some("b")),
            ("http://h/a?b=/c", "/a", Some("b=/c")),
            ("HTTPS://h:1?b=/c", "/", Some("b=/c")),
            ("http://[::1]", "/", None),
            ("//a", "//a", None),
        ] {
            let split = split_target(target.as_bytes());
            assert_eq!(split, Ok((path.as_bytes(), query.map(str::as_bytes))), "{target}");
        }
        for target in ["", "*", "a", "http:/h/", "http:///a", "http://u@h/", "http://h#f", "ftp://h/", "h:443"] {
            assert!(split_target(target.as_bytes()).is_err(), "{target}");
        }
    }

    #[test]
    fn another_protocol_is_told_from_a_mistake() {
        for (text, expected) in [
            ("\x16\x03\x01\x02\0\x01", Malformed::Foreign),
            ("SSH-2.0-OpenSSH_9.2\r\n", Malformed::Foreign),
            ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", Malformed::Foreign),
            ("GET /\r\n", Malformed::Foreign),
            ("GET / http/1.1\r\n", Malformed::Foreign),
            (&"a".repeat(5_000), Malformed::Foreign),
            ("\r\nG(T / HTTP/1.1\r\n", Malformed::Syntax("the method is not a token")),
            ("GET / HTTP/1.2\r\n", Malformed::Syntax("the version is not HTTP/1.0 or HTTP/1.1")),
            (&format!("GET /{} HTTP/1.1\r\nA: b\r\n", "a".repeat(4_100)), Malformed::TargetTooLong),
        ] {
            let short = &text[..text.len().min(30)];
            let parsed =
                parse_h1(text.as_bytes(), limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, |head, _| head.framing);
            assert_eq!(parsed, Err(expected), "{short:?}");
        }
        for begun in ["", "\r\n", "G(T", "G(T /\u{e9}", "S"] {
            let parsed =
                parse_h1(begun.as_bytes(), limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, |head, _| head.framing);
            assert_eq!(parsed, Ok(None), "{begun:?}");
        }
    }

    #[test]
    fn trailers_are_taken_when_they_are_named() {
        let takes = |field: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\n{field}\r\n");
            let head = |head: &Head<'_>, _| head.takes_trailers;
            parse_h1(text.as_bytes(), limits::HEAD_BYTES_MAX, limits::TARGET_BYTES_MAX, head)
        };
        for yes in ["TE: trailers\r\n", "te: gzip;q=0.5 , Trailers\r\n", "TE: gzip\r\nTE: trailers\r\n"] {
            assert_eq!(takes(yes), Ok(Some(true)), "{yes:?}");
        }
        for no in ["", "TE: \r\n", "TE: gzip\r\n", "TE: xtrailers\r\n", "X-TE: trailers\r\n"] {
            assert_eq!(takes(no), Ok(Some(false)), "{no:?}");
        }
    }

    #[test]
    fn the_long_part_decides_between_414_and_431() {
        let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(2_100));
        assert_eq!(parse(&long_target), Err(Malformed::TargetTooLong));
        let long_head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(4_100));
        assert_eq!(parse(&long_head), Err(Malformed::HeadTooLarge));
        let endless_target = "GET /".to_owned() + &"a".repeat(4_200);
        assert_eq!(parse(&endless_target), Err(Malformed::TargetTooLong));
    }
}
