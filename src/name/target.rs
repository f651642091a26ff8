use std::{cmp::Ordering, sync::Arc};

use http::{
    HeaderMap, HeaderName, Method, Request,
    header::{ACCEPT, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

use super::{
    body::BodyDigest,
    buf::NameBuf,
    header::{header_name, push_header},
    traits::{Name, Named},
};

/// Queries of up to this many parameters are sorted on the stack.
const INLINE_PARAMETERS: usize = 32;

/// Names an HTTP request by what it asks for: the default name of an HTTP cache.
///
/// The name reads `GET https://host/path?a=1&b=2`. It is made of
///
/// - the method: only GET and HEAD have a name, all others [pass](Named::Pass), and so does a GET or HEAD that says it
///   has content, since the name would not tell one content from another. Where a
///   [`BodyDigestLayer`](crate::stampede::BodyDigestLayer) has read the content, they have one, too, and its digest ends it;
/// - the scheme, if the URI has one;
/// - the host in lower case, without the default port of the scheme: the authority of the URI, else the `Host` header.
///   Where a request names several hosts that differ, all of them count;
/// - the path as it is. Within axum's `Router::nest` it has lost its prefix: put the layer around the nest, or give each
///   nested router a scope of its own;
/// - the query, with its parameters sorted by name. Parameters of one name keep their order, and frameworks differ in
///   what they take for one name: so percent-encoding, letter case, punctuation and whatever follows a `[` make no
///   difference to the order. A query with a `;` in it, which some take for a separator, is left as it is;
/// - the headers that were asked for with [`vary`](Self::vary) and [`typed`](Self::typed).
///
/// No request can produce another's name by what it puts into these parts. Whatever else an answer depends on, such as
/// who is logged in, must be named beside it: `(Target::new(), extension(|user: &User| user.id))`.
#[derive(Clone, Debug, Default)]
pub struct Target {
    ignored: Arc<[Box<str>]>,
    vary: Arc<[HeaderName]>,
}

impl Target {
    /// By method, scheme, host, path and the whole query.
    pub fn new() -> Self {
        Self::default()
    }

    /// Leaves query parameters of these names out, in whatever percent-encoded spelling; a name that ends in `*`
    /// stands for all that begin so (`utm_*`). Adds to what was ignored before.
    ///
    /// This is about query parameters only: no header is part of the name unless it is asked for. A query with a `;`
    /// in it is never cut, since what looks like one parameter here may be two to the service.
    #[must_use]
    pub fn ignore<S: AsRef<str>>(mut self, parameters: impl IntoIterator<Item = S>) -> Self {
        self.ignored = self.ignored.iter().cloned().chain(parameters.into_iter().map(|p| p.as_ref().into())).collect();
        self
    }

    /// Adds all values of these request headers to the name, byte by byte. Adds to what was asked for before.
    ///
    /// # Panics
    ///
    /// If one of them is not a valid name of a header.
    #[must_use]
    pub fn vary<S: AsRef<str>>(mut self, headers: impl IntoIterator<Item = S>) -> Self {
        let more = headers.into_iter().map(|header| header_name(header.as_ref()));
        let mut all: Vec<HeaderName> = self.vary.iter().cloned().chain(more).collect();
        // Sorted, so that processes which list them in another order still agree.
        all.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        all.dedup();
        self.vary = all.into();
        self
    }

    /// Adds the `Accept` header to the name: requests for different types of content have different names.
    #[must_use]
    pub fn typed(self) -> Self {
        self.vary([ACCEPT])
    }

    fn is_ignored(&self, parameter: &[u8]) -> bool {
        self.ignored.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => {
                let mut spelled = decoded(name_part(parameter));
                prefix.bytes().all(|byte| spelled.next() == Some(byte))
            }
            None => decoded(name_part(parameter)).eq(pattern.bytes()),
        })
    }

    fn push_query(&self, query: &str, name: &mut NameBuf) {
        let query = query.as_bytes();
        if query.contains(&b';') {
            name.push_byte(b'?');
            name.push_bytes(query);
            return;
        }
        let kept = || query.split(|&byte| byte == b'&').filter(|parameter| !self.is_ignored(parameter));
        let mut inline = [(0, &[][..]); INLINE_PARAMETERS];
        let mut count = 0;
        for parameter in kept() {
            if let Some(slot) = inline.get_mut(count) {
                *slot = (count, parameter);
            }
            count += 1;
        }
        if let Some(parameters) = inline.get_mut(..count) {
            push_sorted(parameters, name);
        } else {
            push_sorted(&mut kept().enumerate().collect::<Vec<_>>(), name);
        }
    }
}

impl<B> Name<Request<B>> for Target {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        let (method, uri, headers) = (req.method(), req.uri(), req.headers());
        let digest = match !matches!(*method, Method::GET | Method::HEAD) || announces_body(headers) {
            false => None,
            true => match req.extensions().get::<BodyDigest>() {
                None => return Named::Pass,
                digest => digest,
            },
        };
        name.push_str(method.as_str());
        name.push_byte(b' ');
        let scheme = uri.scheme_str();
        if let Some(scheme) = scheme {
            name.push_lower(scheme.as_bytes());
            name.push_byte(b':');
        }
        // The slashes stay where there is no scheme, so that a host cannot pass for one.
        name.push_str("//");
        push_hosts(uri.authority().map(|authority| authority.as_str().as_bytes()), headers, scheme, name);
        name.push_str(uri.path());
        if let Some(query) = uri.query() {
            self.push_query(query, name);
        }
        for header in self.vary.iter() {
            name.push_byte(b' ');
            push_header(headers, header, name);
        }
        if let Some(digest) = digest {
            name.push_str(" body=");
            digest.push(name);
        }
        Named::Yes
    }
}

/// Whether a request says that it has a body.
pub(crate) fn announces_body(headers: &HeaderMap) -> bool {
    headers.contains_key(TRANSFER_ENCODING) || headers.get_all(CONTENT_LENGTH).iter().any(|length| length != "0")
}

/// One host, mostly. Else the authority of the URI (nothing, if it has none) and each `Host`, with commas between:
/// services differ in which of them they believe.
fn push_hosts(authority: Option<&[u8]>, headers: &HeaderMap, scheme: Option<&str>, name: &mut NameBuf) {
    let authority = authority.map(|authority| without_default_port(authority, scheme));
    let mut hosts = headers.get_all(HOST).iter().map(|host| without_default_port(host.as_bytes(), scheme));
    match (authority, hosts.next(), hosts.next()) {
        (Some(only), None, _) | (None, Some(only), None) => push_host(only, name),
        (Some(one), Some(other), None) if one.eq_ignore_ascii_case(other) => push_host(one, name),
        (None, None, _) => {}
        _ => {
            push_host(authority.unwrap_or_default(), name);
            for host in headers.get_all(HOST) {
                name.push_byte(b',');
                push_host(without_default_port(host.as_bytes(), scheme), name);
            }
        }
    }
}

fn without_default_port<'a>(host: &'a [u8], scheme: Option<&str>) -> &'a [u8] {
    let port: &[u8] = match scheme {
        Some(scheme) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("ws") => b":80",
        Some(scheme) if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("wss") => b":443",
        _ => b":",
    };
    let bare = host.strip_suffix(port).or_else(|| host.strip_suffix(b":"));
    // A colon before it makes this an IPv6 address without its brackets, or nonsense: leave it alone.
    bare.filter(|bare| bare.ends_with(b"]") || !bare.contains(&b':')).unwrap_or(host)
}

/// In lower case, and percent-encoded where it holds what no host has: a `Host` header may say anything, such as a `/`.
fn push_host(host: &[u8], name: &mut NameBuf) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]@".contains(&byte);
    for run in host.chunk_by(|&a, &b| plain(a) && plain(b)) {
        match *run {
            [byte] if !plain(byte) => name.push_fmt(format_args!("%{byte:02x}")),
            _ => name.push_lower(run),
        }
    }
}

/// Sorts parameters, which come with their places in the query, and appends them.
fn push_sorted(parameters: &mut [(usize, &[u8])], name: &mut NameBuf) {
    // By place in the end: as stable as a stable sort, which might allocate.
    parameters.sort_unstable_by(|a, b| by_name(a.1, b.1).then(a.0.cmp(&b.0)));
    for (i, (_, parameter)) in parameters.iter().enumerate() {
        name.push_byte(if i == 0 { b'?' } else { b'&' });
        name.push_bytes(parameter);
    }
}

fn by_name(a: &[u8], b: &[u8]) -> Ordering {
    folded(a).cmp(folded(b))
}

/// What parameters are sorted by: equal for all names that some framework takes for one, and so perhaps for some that
/// none does. Those only keep their order.
fn folded(parameter: &[u8]) -> impl Iterator<Item = u8> {
    decoded(name_part(parameter))
        .take_while(|&byte| byte != b'[' && byte != 0)
        .filter(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii())
        .map(|byte| byte.to_ascii_lowercase())
}

/// The name of a `name=value`.
fn name_part(parameter: &[u8]) -> &[u8] {
    parameter.split(|&byte| byte == b'=').next().unwrap_or_default()
}

/// Undoes percent-encoding, and `+` for a space.
fn decoded(mut text: &[u8]) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || match *text {
        [b'%', high, low, ref rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
            text = rest;
            Some(hex(high) << 4 | hex(low))
        }
        [byte, ref rest @ ..] => {
            text = rest;
            Some(if byte == b'+' { b' ' } else { byte })
        }
        [] => None,
    })
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    (digit & 0x0f) + if digit.is_ascii_alphabetic() { 9 } else { 0 }
}

#[cfg(test)]
mod tests;
