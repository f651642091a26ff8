use http::{HeaderMap, HeaderName, Request, header::AUTHORIZATION};
use sha2::{Digest, Sha256};

use super::{
    buf::NameBuf,
    header::{header_name, push_header_name},
    traits::{Name, Named},
};

/// Names an HTTP request by a secret that it carries, of which only a digest is written.
///
/// The name reads `x-api-key=` and the first 128 bits of the key's SHA-256 (FIPS 180-4) in hexadecimal, as
/// `printf %s KEY | sha256sum | cut -c1-32` prints them: what is stored and logged under it never holds the key. A key
/// that could be guessed could also be found by its digest, so this is for long random ones.
///
/// Requests from which one key cannot be told share one name, that of no key: those without the header, with an empty
/// one or with several, and where blanks or commas are within the key. A service might take a part of it, and then each
/// spelling of the rest would be a new name for one key.
///
/// A key that was never issued has a name of its own too. Let the layer come after authentication, or limit by
/// [`ClientIp`](super::ClientIp) before it.
///
/// ```
/// use http::Request;
/// use tower_floodgate::name::{ApiKey, Name, NameBuf, Named};
///
/// let req = Request::get("/").header("authorization", "Bearer abc").body(()).unwrap();
/// let mut buf = NameBuf::new();
/// assert_eq!(ApiKey::bearer().name(&req, &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"authorization=ba7816bf8f01cfea414140de5dae2223");
/// ```
#[derive(Clone, Debug)]
pub struct ApiKey {
    header: HeaderName,
    bearer: bool,
}

impl ApiKey {
    /// By the value of the header of this name, in any case of letters.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[track_caller]
    pub fn header(header: impl AsRef<str>) -> Self {
        Self { header: header_name(header.as_ref()), bearer: false }
    }

    /// By the token of `Authorization: Bearer` (RFC 6750, section 2.1). Other schemes count as no key.
    pub fn bearer() -> Self {
        Self { header: AUTHORIZATION, bearer: true }
    }

    fn key<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        let mut values = headers.get_all(&self.header).iter();
        let (Some(only), None) = (values.next(), values.next()) else {
            return None;
        };
        let mut key = only.as_bytes().trim_ascii();
        if self.bearer {
            let (scheme, token) = key.split_at_checked("Bearer ".len())?;
            key = scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii_start())?;
        }
        let one = !key.is_empty() && !key.iter().any(|byte| b" \t,".contains(byte));
        one.then_some(key)
    }
}

impl<B> Name<Request<B>> for ApiKey {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        push_header_name(&self.header, name);
        if let Some(key) = self.key(req.headers()) {
            let digest: [u8; 32] = Sha256::digest(key).into();
            let half = u128::from_be_bytes(std::array::from_fn(|at| digest[at]));
            name.push_fmt(format_args!("{half:032x}"));
        }
        Named::Yes
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, test_runner::RngSeed};

    use super::{super::tests::name_of, *};

    /// The digest of `abc`, from FIPS 180-4's examples.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223";

    fn req(header: &'static str, values: &[&str]) -> Request<()> {
        let mut req = Request::new(());
        for value in values {
            req.headers_mut().append(header, value.parse().unwrap());
        }
        req
    }

    #[test]
    fn a_key_is_named_by_its_digest() {
        let by_header = |values: &[&str]| name_of(&ApiKey::header("X-Api-Key"), &req("x-api-key", values)).unwrap();
        assert_eq!(by_header(&["abc"]), format!("x-api-key={ABC}"));
        assert_eq!(by_header(&["\tabc "]), by_header(&["abc"]));
        assert_ne!(by_header(&["Abc"]), by_header(&["abc"]));
        // A client does not get two names by sending its key in many ways.
        let unclear: [&[&str]; 8] =
            [&[], &[""], &[" "], &["abc", "abc"], &["abc", "x"], &["abc,x"], &["abc, x"], &["abc x"]];
        for values in unclear {
            assert_eq!(by_header(values), "x-api-key=", "{values:?}");
        }
    }

    #[test]
    fn a_bearer_is_named_by_the_digest_of_the_token() {
        let by_token = |values: &[&str]| name_of(&ApiKey::bearer(), &req("authorization", values)).unwrap();
        for value in ["Bearer abc", "bearer abc", "BEARER   abc ", "Bearer \tabc"] {
            assert_eq!(by_token(&[value]), format!("authorization={ABC}"), "{value}");
        }
        let unclear: [&[&str]; 10] = [
            &[],
            &["abc"],
            &["Bearer"],
            &["Bearer "],
            &["Bearerabc"],
            &["Basic YTpi"],
            &["Bearer abc x"],
            &["Bearer abc,Bearer x"],
            &["Bearer abc", "Bearer abc"],
            &["Basic YTpi", "Bearer abc"],
        ];
        for values in unclear {
            assert_eq!(by_token(values), "authorization=", "{values:?}");
        }
    }

    #[test]
    #[should_panic(expected = "not the name of a header: \"x key\"")]
    fn a_bad_header_name_panics() {
        let _ = ApiKey::header("x key");
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: RngSeed::Fixed(6750),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn any_bytes_are_answered_and_none_are_shown(value in prop::collection::vec(33u8..=255, 1..60)) {
            prop_assume!(!value.contains(&b',') && !value.contains(&127));
            let mut req = Request::new(());
            req.headers_mut().insert("x-api-key", http::HeaderValue::from_bytes(&value).unwrap());
            let name = name_of(&ApiKey::header("x-api-key"), &req).unwrap();
            let digest = name.strip_prefix("x-api-key=").unwrap();
            prop_assert!(digest.len() == 32 && digest.bytes().all(|digit| digit.is_ascii_hexdigit()));
        }
    }
}
