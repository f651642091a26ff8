//! What proxies say in headers about the client, read from the right.
//!
//! Each proxy adds its entry on the right, so whatever a client sent itself lies to the left of what the first own
//! proxy said. Nothing here therefore ever depends on what is left of the entry that is looked for.

use std::{
    borrow::Cow,
    iter::Rev,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{FORWARDED, ValueIter},
};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// How many entries are looked at, from the right: more proxies than anybody has one behind the other.
pub(super) const MAX_ENTRIES: usize = 64;

/// How many bytes are looked at, from the right, over all fields.
pub(super) const MAX_BYTES: usize = 8 << 10;

/// The header that is read.
#[derive(Clone, Debug)]
pub(super) enum Source {
    XForwardedFor,
    /// RFC 7239.
    Forwarded,
    /// A header that holds one address and is set, not added to, by the proxy.
    Single(HeaderName),
}

impl Source {
    pub(super) fn header(&self) -> &HeaderName {
        match self {
            Self::XForwardedFor => &X_FORWARDED_FOR,
            Self::Forwarded => &FORWARDED,
            Self::Single(header) => header,
        }
    }

    /// The address in the first entry from the right that `passes` does not pass over. Empty entries are entries: to
    /// step over one would be to believe the entry before it, which no proxy vouches for.
    pub(super) fn client(&self, headers: &HeaderMap, mut passes: impl FnMut(Option<IpAddr>) -> bool) -> Option<IpAddr> {
        let mut fields = headers.get_all(self.header()).iter();
        if let Self::Single(_) = self {
            return match (fields.next(), fields.next()) {
                (Some(only), None) => address(only.to_str().ok()?.trim_matches(OWS)),
                _ => None,
            };
        }
        for entry in FromRight::new(fields) {
            let address = self.read(entry)?;
            if !passes(address) {
                return address;
            }
        }
        None
    }

    /// The address in one entry, if there is one. `None`: where the entry begins and ends cannot be told.
    fn read(&self, entry: &[u8]) -> Option<Option<IpAddr>> {
        let entry = std::str::from_utf8(entry).map(|entry| entry.trim_matches(OWS));
        match self {
            // Entries without quotes end at their commas, whatever they hold.
            Self::XForwardedFor | Self::Single(_) => Some(entry.ok().and_then(address)),
            Self::Forwarded => Some(node(entry.ok()?)?.as_deref().and_then(address)),
        }
    }
}

/// The entries of a list from its last to its first, over all fields of the header, and within limits.
///
/// It cuts at every comma, also within quotes: a quoted string is only told from the outside when it is read from the
/// left, through what the client sent. The cut leaves an odd number of quotes on its right, which is no well-formed
/// element, and reading ends there. So `for="a` in front of a proxy's element does not swallow it, and
/// `ext="a, for=192.0.2.1, b"` in a proxy's element does not pass for three. No parameter that is in use has a comma.
struct FromRight<'a> {
    fields: Rev<ValueIter<'a, HeaderValue>>,
    rest: Option<&'a [u8]>,
    entries: usize,
    bytes: usize,
}

impl<'a> FromRight<'a> {
    fn new(fields: ValueIter<'a, HeaderValue>) -> Self {
        Self { fields: fields.rev(), rest: None, entries: MAX_ENTRIES, bytes: MAX_BYTES }
    }
}

impl<'a> Iterator for FromRight<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.entries = self.entries.checked_sub(1)?;
        let field = match self.rest.take() {
            Some(rest) => rest,
            None => self.fields.next()?.as_bytes(),
        };
        let (unseen, seen) = field.split_at(field.len().saturating_sub(self.bytes));
        let entry = match seen.iter().rposition(|&byte| byte == b',') {
            Some(comma) => {
                self.rest = Some(&field[..unseen.len() + comma]);
                &seen[comma + 1..]
            }
            None if unseen.is_empty() => seen,
            None => {
                self.entries = 0;
                return None;
            }
        };
        self.bytes = self.bytes.saturating_sub(entry.len() + 1);
        Some(entry)
    }
}

/// Optional whitespace (RFC 9110, section 5.6.3).
const OWS: [char; 2] = [' ', '\t'];

/// The value of `for` in an element of `Forwarded`, if it has one. `None`: the element is not well-formed, or has two.
///
/// More is taken than RFC 7239 allows where nothing is unclear: blanks around `;`, and colons and brackets without
/// quotes.
fn node(element: &str) -> Option<Option<Cow<'_, str>>> {
    let mut node = None;
    let mut rest = element;
    loop {
        rest = rest.trim_start_matches(OWS);
        if rest.is_empty() {
            return Some(node);
        }
        if let Some(next) = rest.strip_prefix(';') {
            rest = next;
            continue;
        }
        let (name, after) = rest.split_once('=')?;
        if name.is_empty() || !name.bytes().all(is_token) {
            return None;
        }
        let value;
        (value, rest) = match after.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None => {
                let end = after.find(|c: char| c == ';' || OWS.contains(&c)).unwrap_or(after.len());
                let (value, rest) = after.split_at(end);
                let fits = !value.is_empty() && value.bytes().all(|byte| is_token(byte) || b":[]".contains(&byte));
                (fits.then_some(Cow::Borrowed(value))?, rest)
            }
        };
        if name.eq_ignore_ascii_case("for") && node.replace(value).is_some() {
            return None;
        }
        rest = rest.trim_start_matches(OWS);
        if !rest.is_empty() && !rest.starts_with(';') {
            return None;
        }
    }
}

/// The text of a quoted string whose first quote is gone, without its backslashes, and what follows the last quote.
fn unquoted(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut escaped = false;
    let end = text.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    })?;
    let (inside, rest) = (text.get(..end)?, text.get(end + 1..)?);
    if !inside.contains('\\') {
        return Some((Cow::Borrowed(inside), rest));
    }
    let mut symbols = inside.chars();
    let mut plain = String::with_capacity(inside.len());
    while let Some(symbol) = symbols.next() {
        plain.extend(if symbol == '\\' { symbols.next() } else { Some(symbol) });
    }
    Some((Cow::Owned(plain), rest))
}

/// A character of a token (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// An address as proxies write it: alone, an IPv6 one in brackets too, and with a port. `unknown`, obfuscated
/// identifiers (`_x`) and zones (`%eth0`) are not.
fn address(text: &str) -> Option<IpAddr> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, port) = bracketed.split_once(']')?;
        let ends = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return ends.then(|| host.parse::<Ipv6Addr>().ok())?.map(IpAddr::V6);
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => {
            is_port(port).then(|| host.parse::<Ipv4Addr>().ok())?.map(IpAddr::V4)
        }
        _ => text.parse().ok(),
    }
}

/// A port, or an obfuscated one (RFC 7239, section 6).
fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(hidden) => {
            !hidden.is_empty() && hidden.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
        None => (1..=5).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_proxies_write_them() {
        let v4 = ["192.0.2.1", "192.0.2.1:80", "192.0.2.1:47111", "192.0.2.1:_a.b-c_"];
        for text in v4 {
            assert_eq!(address(text), Some(IpAddr::from([192, 0, 2, 1])), "{text}");
        }
        let v6 = ["2001:db8::1", "[2001:db8::1]", "[2001:db8::1]:443", "[2001:db8::1]:_x", "[2001:DB8:0:0::1]"];
        for text in v6 {
            assert_eq!(address(text), "2001:db8::1".parse().ok(), "{text}");
        }
        let none = [
            "",
            "unknown",
            "_gazonk",
            "fe80::1%eth0",
            "fe80::1%1",
            "[fe80::1%1]",
            "[fe80::1%1]:80",
            "[192.0.2.1]",
            "[2001:db8::1",
            "2001:db8::1]",
            "[2001:db8::1]80",
            "[2001:db8::1]:",
            "[[2001:db8::1]]",
            "192.0.2.1:",
            "192.0.2.1:_",
            "192.0.2.1:+80",
            "192.0.2.1:123456",
            "192.0.2.01",
            "192.0.2",
            "0xc0000201",
            "3221225985",
            "192.0.2.1/32",
            "192.0.2.1 80",
            "192.0.2.1\u{660}",
            "\"192.0.2.1\"",
        ];
        for text in none {
            assert_eq!(address(text), None, "{text}");
        }
    }

    #[test]
    fn elements_of_forwarded() {
        let found = [
            ("for=192.0.2.1", "192.0.2.1"),
            ("For=\"[2001:db8::17]:4711\"", "[2001:db8::17]:4711"),
            ("for=192.0.2.60;proto=http;by=203.0.113.43", "192.0.2.60"),
            ("by=203.0.113.43 ;\tfOr=_SEVKISEK; host=\"a;for=b\"", "_SEVKISEK"),
            (";;for=unknown;", "unknown"),
            (r#"ext="\"\\";for="1\9\2.0.2.1""#, "192.0.2.1"),
            ("for=[2001:db8::1]:80", "[2001:db8::1]:80"),
            ("for=\"\"", ""),
        ];
        for (element, value) in found {
            assert_eq!(node(element).unwrap().unwrap(), value, "{element}");
        }
        for element in ["", " ", ";", "proto=https", "fore=192.0.2.1"] {
            assert_eq!(node(element), Some(None), "{element}");
        }
        let malformed = [
            "192.0.2.1",
            "for",
            "for=",
            "=192.0.2.1",
            "for=a;for=b",
            "for=a;For=\"b\"",
            "for=\"a",
            "for=a\"",
            "for=\"a\"b",
            "for=\"a\\\"",
            "for=a b",
            "for =a",
            "for= a",
            "for=a/b",
            "\"for\"=a",
            "for=a;b",
        ];
        for element in malformed {
            assert_eq!(node(element), None, "{element}");
        }
    }

    #[test]
    fn lists_are_read_from_the_right_and_within_limits() {
        let mut headers = HeaderMap::new();
        let mut entries = |values: &[String]| {
            headers.clear();
            for value in values {
                headers.append(FORWARDED, value.parse().unwrap());
            }
            let read = FromRight::new(headers.get_all(FORWARDED).iter());
            read.map(|entry| String::from_utf8(entry.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        let long = |length: usize| "x".repeat(length);
        assert_eq!(entries(&["a,b".into(), "".into(), ",c, d".into()]), [" d", "c", "", "", "b", "a"]);
        assert_eq!(entries(&[",".repeat(1_000)]), [""; MAX_ENTRIES]);
        assert_eq!(entries(&vec![String::new(); 1_000]), [""; MAX_ENTRIES]);
        assert_eq!(entries(&[long(MAX_BYTES)]), [long(MAX_BYTES)]);
        assert!(entries(&["a".into(), long(MAX_BYTES + 1)]).is_empty());
        assert_eq!(entries(&["a".into(), long(MAX_BYTES - 2), "b".into()]), ["b", &long(MAX_BYTES - 2)]);
        assert_eq!(entries(&[format!("{},b", long(MAX_BYTES))]), ["b"]);
    }
}
