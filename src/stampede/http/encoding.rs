//! The stored form of an HTTP response: status, headers, body, trailers, and which requests it answers.
//!
//! ```text
//! version u8 | flags u8 | status u16 | age u32 | vary | headers | [trailers] | length | body
//! vary:     count u32, then (name, 0 | length + 1, selecting value) each
//! headers:  count u32, then (name, length, value) each
//! name:     index into FREQUENT u8, or 255, length, text
//! ```
//!
//! Fixed integers are little-endian, lengths are LEB128. Any change of this form takes a new version: entries of
//! another version are misses.

use std::ops::Range;

use crate::{store::Weight, varint};
use http::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use http::status::StatusCode;
use hyper::body::Bytes;

const VERSION: u8 = 2;
const PUBLIC: u8 = 1;
const TRAILERS: u8 = 2;
const BODILESS: u8 = 4;

/// The selecting fields of a stored response: each name that its `Vary` lists, with the value in the request it was
/// stored for (see [`selects`]), `None` if that request had no such field.
pub(crate) type Selecting = Vec<(HeaderName, Option<Bytes>)>;

/// A stored response.
#[derive(Debug)]
pub struct Stored {
    /// Its status.
    pub(crate) status: StatusCode,
    /// Its headers without those of one connection, `Age` and `Cache-Status`.
    pub(crate) headers: HeaderMap,
    /// Its body: a slice of the bytes it was decoded from.
    pub(crate) body: Bytes,
    /// Its trailers, if it had any.
    pub(crate) trailers: Option<HeaderMap>,
    /// It may serve requests that identify their caller.
    pub(crate) public: bool,
    /// It answered a `HEAD`.
    pub(crate) bodiless: bool,
    /// Its age in seconds when it was stored.
    pub(crate) age: u32,
    /// Which requests it answers; ask [`selects`].
    pub(crate) vary: Selecting,
}

/// A response about to be stored, borrowed; the fields are those of [`Stored`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) body: &'a [u8],
    pub(crate) trailers: Option<&'a HeaderMap>,
    pub(crate) public: bool,
    pub(crate) bodiless: bool,
    pub(crate) age: u32,
    /// The field names of its `Vary`.
    pub(crate) vary: &'a [HeaderName],
    /// The headers of the request it answers, as they came in.
    pub(crate) request: &'a HeaderMap,
}

/// Appends the stored form of a response to `out`.
///
/// Left out are the fields that belong to one connection (`Connection`, those it names, and those known to), and `Age`
/// and `Cache-Status`, which every reader says anew.
pub(crate) fn encode(out: &mut Vec<u8>, parts: &Parts<'_>) {
    let public = if parts.public { PUBLIC } else { 0 };
    let trailers = if parts.trailers.is_some() { TRAILERS } else { 0 };
    // A guess that makes one growth do for most responses.
    out.reserve(64 + 48 * parts.headers.len() + parts.body.len());
    let bodiless = if parts.bodiless { BODILESS } else { 0 };
    out.extend_from_slice(&[VERSION, public | trailers | bodiless]);
    out.extend_from_slice(&parts.status.as_u16().to_le_bytes());
    out.extend_from_slice(&parts.age.to_le_bytes());
    put_vary(out, parts.vary, parts.request);
    put_fields(out, parts.headers);
    if let Some(trailers) = parts.trailers {
        put_fields(out, trailers);
    }
    put_bytes(out, parts.body);
}

/// Reads a stored response back; `None` for anything that [`encode`] did not write.
///
/// Header values and the body are slices of `bytes` and keep all of it alive.
pub(crate) fn decode(bytes: &Bytes) -> Option<Stored> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.byte()? != VERSION {
        return None;
    }
    let flags = reader.byte()?;
    if flags & !(PUBLIC | TRAILERS | BODILESS) != 0 {
        return None;
    }
    let status = StatusCode::from_u16(u16::from_le_bytes(reader.array()?)).ok()?;
    let age = u32::from_le_bytes(reader.array()?);
    let vary = reader.vary()?;
    let headers = reader.fields()?;
    let trailers = match flags & TRAILERS {
        0 => None,
        _ => Some(reader.fields()?),
    };
    let length = reader.length()?;
    let body = reader.slice(length)?;
    (reader.at == bytes.len()).then_some(Stored {
        status,
        headers,
        body,
        trailers,
        public: flags & PUBLIC != 0,
        bodiless: flags & BODILESS != 0,
        age,
        vary,
    })
}

impl Weight for Stored {
    /// The values of fields, and the body, are slices of the payload.
    fn weight(&self) -> usize {
        let selecting = self.vary.capacity() * size_of::<(HeaderName, Option<Bytes>)>();
        map_weight(&self.headers) + self.trailers.as_ref().map_or(0, map_weight) + selecting
    }
}

/// A map has a place in its index, and one for a field, for each field that it has room for. Names are allocated unless
/// they are well known.
fn map_weight(map: &HeaderMap) -> usize {
    const ALLOCATED: usize = 48;
    let names: usize = map.keys().map(|name| name.as_str().len() + ALLOCATED).sum();
    let field = size_of::<(HeaderName, HeaderValue)>() + 6 * size_of::<usize>();
    map.capacity() * field + names
}

/// Whether a stored response answers this request: each field that its `Vary` lists has the value it had in the request
/// it was stored for.
///
/// The value of a field is all its lines, trimmed, joined by `", "`. No field and an empty one differ.
pub(crate) fn selects(vary: &[(HeaderName, Option<Bytes>)], request: &HeaderMap) -> bool {
    vary.iter().all(|(name, stored)| {
        let mut pieces = selecting_value(request, name).peekable();
        match stored {
            None => pieces.peek().is_none(),
            Some(_) if pieces.peek().is_none() => false,
            Some(stored) => {
                pieces.try_fold(&stored[..], |rest, piece| rest.strip_prefix(piece)).is_some_and(<[u8]>::is_empty)
            }
        }
    })
}

/// The pieces that make up the value of a request's field; none if it has no such field.
fn selecting_value<'a>(request: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = request.get_all(name).into_iter().enumerate();
    lines.flat_map(|(at, line)| {
        let separator: &[u8] = if at == 0 { b"" } else { b", " };
        [separator, line.as_bytes().trim_ascii()]
    })
}

fn named_by_connection(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let lines = headers.get_all(CONNECTION).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

fn put_vary(out: &mut Vec<u8>, vary: &[HeaderName], request: &HeaderMap) {
    out.extend_from_slice(&(vary.len() as u32).to_le_bytes());
    for name in vary {
        put_name(out, name);
        if request.contains_key(name) {
            let length: usize = selecting_value(request, name).map(<[u8]>::len).sum();
            put_length(out, 1 + length);
            selecting_value(request, name).for_each(|piece| out.extend_from_slice(piece));
        } else {
            put_length(out, 0);
        }
    }
}

fn put_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    let counted = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut count = 0u32;
    let connection = fields.contains_key(CONNECTION);
    for (name, value) in fields {
        let named = || named_by_connection(fields).any(|n| n.eq_ignore_ascii_case(name.as_ref()));
        if NOT_STORED.contains(name) || (connection && named()) {
            continue;
        }
        put_name(out, name);
        put_bytes(out, value.as_bytes());
        count += 1;
    }
    out[counted..counted + 4].copy_from_slice(&count.to_le_bytes());
}

fn put_name(out: &mut Vec<u8>, name: &HeaderName) {
    let index = index(name);
    out.push(index.unwrap_or(SPELLED));
    if index.is_none() {
        put_bytes(out, name.as_ref());
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    varint::put(out, length as u64);
}

struct Reader<'a> {
    bytes: &'a Bytes,
    at: usize,
}

impl Reader<'_> {
    fn range(&mut self, length: usize) -> Option<Range<usize>> {
        let end = self.at.checked_add(length)?;
        let range = self.at..end;
        (end <= self.bytes.len()).then(|| self.at = end)?;
        Some(range)
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let range = self.range(N)?;
        self.bytes[range].try_into().ok()
    }

    fn slice(&mut self, length: usize) -> Option<Bytes> {
        Some(self.bytes.slice(self.range(length)?))
    }

    fn length(&mut self) -> Option<usize> {
        let mut rest = self.bytes.get(self.at..)?;
        let length = varint::take(&mut rest)?;
        self.at = self.bytes.len() - rest.len();
        length.try_into().ok()
    }

    /// A count of items of at least two bytes each, so that what is allocated for them is bounded by what is there.
    fn count(&mut self) -> Option<usize> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        (count <= (self.bytes.len() - self.at) / 2).then_some(count)
    }

    fn name(&mut self) -> Option<HeaderName> {
        match self.byte()? {
            SPELLED => {
                let length = self.length()?;
                let range = self.range(length)?;
                HeaderName::from_lowercase(&self.bytes[range]).ok()
            }
            index => FREQUENT.get(usize::from(index)).cloned(),
        }
    }

    fn vary(&mut self) -> Option<Selecting> {
        let count = self.count()?;
        let mut vary = Vec::with_capacity(count);
        for _ in 0..count {
            let name = self.name()?;
            let value = match self.length()? {
                0 => None,
                more => Some(self.slice(more - 1)?),
            };
            vary.push((name, value));
        }
        Some(vary)
    }

    fn fields(&mut self) -> Option<HeaderMap> {
        let count = self.count()?;
        // One name may have many values, so a count past what a map can index is no fault.
        let mut fields = HeaderMap::try_with_capacity(count.min(1024)).ok()?;
        for _ in 0..count {
            let name = self.name()?;
            let length = self.length()?;
            let value = HeaderValue::from_maybe_shared(self.slice(length)?).ok()?;
            fields.try_append(name, value).ok()?;
        }
        Some(fields)
    }
}

/// Stands for a name written in full where an index would be.
const SPELLED: u8 = 255;

macro_rules! names {
    ($($text:literal)*) => {
        [$(HeaderName::from_static($text)),*]
    };
}

/// Fields that are left out: those of one connection or proxy (RFC 9110 section 7.6.1, RFC 9111 section 3.1), and two that
/// every reader says anew.
static NOT_STORED: [HeaderName; 12] = names! {
    "connection" "keep-alive" "proxy-authenticate" "proxy-authentication-info"
    "proxy-authorization" "proxy-connection" "te" "trailer" "transfer-encoding" "upgrade"
    "age" "cache-status"
};

/// Frequent names, which are written as one byte, their index here: to parse a name takes longer than all else that is done
/// with a field when it is read. Append only: another order is another version.
static FREQUENT: [HeaderName; 48] = names! {
    "accept" "accept-encoding" "accept-language" "accept-ranges" "access-control-allow-credentials"
    "access-control-allow-headers" "access-control-allow-methods" "access-control-allow-origin"
    "access-control-expose-headers" "alt-svc" "authorization" "cache-control" "cache-tag"
    "content-disposition" "content-encoding" "content-language" "content-length"
    "content-security-policy" "content-type" "cookie" "cross-origin-resource-policy" "date" "etag"
    "expires" "grpc-message" "grpc-status" "last-modified" "link" "location" "nel" "origin"
    "permissions-policy" "pragma" "referrer-policy" "report-to" "server" "server-timing"
    "strict-transport-security" "surrogate-key" "timing-allow-origin" "user-agent" "vary" "via"
    "x-cache" "x-content-type-options" "x-frame-options" "x-powered-by" "x-request-id"
};

fn index(name: &HeaderName) -> Option<u8> {
    FREQUENT.iter().position(|frequent| frequent == name).map(|index| index as u8)
}

#[cfg(test)]
mod tests;
