//! Requests named by their bodies.

use super::{
    buf::NameBuf,
    traits::{Name, Named},
};
use http::{HeaderMap, Request, header};
use hyper::body::Bytes;
use sha2::{Digest, Sha256};
use std::fmt;

/// The digest of a request's body, and the name by it.
///
/// [`BodyDigestLayer`](crate::stampede::BodyDigestLayer) puts it into the extensions of the requests whose body it has read,
/// and [`Target`](super::Target) makes it part of the name. Other names take [`ByBody`] beside them.
///
/// It is the SHA-256 of the body, its trailers, and what they mean: `Content-Type`, `Content-Encoding` and `grpc-encoding`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BodyDigest([u8; 32]);

impl BodyDigest {
    pub(crate) fn of(headers: &HeaderMap, body: &Bytes, trailers: Option<&HeaderMap>) -> BodyDigest {
        let mut digest = Sha256::new();
        // Each part with its length, so that none runs into the next.
        let mut part = |part: &[u8]| {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        };
        part(body);
        for name in [header::CONTENT_TYPE.as_str(), header::CONTENT_ENCODING.as_str(), "grpc-encoding"] {
            headers.get_all(name).iter().for_each(|value| {
                part(name.as_bytes());
                part(value.as_bytes());
            });
        }
        for (name, value) in trailers.into_iter().flatten() {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        BodyDigest(digest.finalize().into())
    }

    pub(super) fn push(&self, name: &mut NameBuf) {
        self.0.iter().for_each(|byte| name.push_fmt(format_args!("{byte:02x}")));
    }
}

/// Names a request by the [`BodyDigest`] in its extensions; one without, since its body was too large for instance, passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByBody;

impl<B> Name<Request<B>> for ByBody {
    fn name(&self, request: &Request<B>, name: &mut NameBuf) -> Named {
        match request.extensions().get::<BodyDigest>() {
            Some(digest) => {
                digest.push(name);
                Named::Yes
            }
            None => Named::Pass,
        }
    }
}

impl fmt::Debug for BodyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyDigest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn what_a_body_means_is_part_of_its_digest_and_parts_never_run_into_each_other() {
        let headers = |lines: &[(&'static str, &'static str)]| {
            lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>()
        };
        let none = headers(&[]);
        let of = |lines, body: &'static str, trailers: Option<&HeaderMap>| {
            BodyDigest::of(&headers(lines), &Bytes::from_static(body.as_bytes()), trailers).0
        };
        let digests = [
            of(&[], "", None),
            of(&[], "a", None),
            of(&[], "ab", None),
            of(&[("content-type", "text/plain")], "a", None),
            of(&[("content-type", "text/html")], "a", None),
            of(&[("content-encoding", "gzip")], "a", None),
            of(&[("grpc-encoding", "gzip")], "a", None),
            of(&[], "a", Some(&headers(&[("x", "1")]))),
            of(&[], "a", Some(&headers(&[("x", "12")]))),
        ];
        assert_eq!(digests.iter().collect::<HashSet<_>>().len(), digests.len());
        assert_eq!(of(&[("accept", "*/*")], "a", Some(&none)), of(&[], "a", None));
    }

    #[test]
    fn a_request_without_one_passes() {
        let mut name = NameBuf::new();
        let mut request = Request::new(());
        assert_eq!(ByBody.name(&request, &mut name), Named::Pass);
        request.extensions_mut().insert(BodyDigest::of(&HeaderMap::new(), &Bytes::new(), None));
        assert_eq!(ByBody.name(&request, &mut name), Named::Yes);
        assert_eq!(name.as_bytes().len(), 64);
    }
}
