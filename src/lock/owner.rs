//! The owner of a lock, and its form as an HTTP header: a token that only processes of one cache can write.

use crate::{cache::Scope, store::Kind};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{fmt, time::Duration};

/// The random token of a lock's holder.
///
/// [`RLock`](crate::RLock) mints one for each outermost request and leaves it in the request's extensions. A handler
/// that makes a nested request passes it on:
/// `nested.extensions_mut().insert(request.extensions().get::<Owner>().unwrap().clone())`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Owner(pub(crate) u128);

impl Owner {
    /// A new token, unlike all others.
    pub fn random() -> Self {
        Owner(rand::random())
    }

    /// A token of the user's own, for input that is trusted: any caller that knows it may enter as this owner.
    pub fn from_u128(token: u128) -> Self {
        Owner(token)
    }
}

impl fmt::Debug for Owner {
    /// Hides the token, since knowing it is enough to enter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}

/// How long a token is valid, in ns. A nested call that was under way for longer waits like any other.
const GOOD_FOR: u64 = Duration::from_secs(300).as_nanos() as u64;

/// Owner, machine time and proof, in hexadecimal.
const LEN: usize = 32 + 16 + 32;

impl Owner {
    /// The owner as the value of a header, for a nested call that arrives at another process of the same cache: a
    /// [barrier](crate::BarrierLayer::owner_header) of the same scope there lets it in as this owner.
    ///
    /// - Only a process that can read the cache's directory can make such a value: it ends in a proof (SipHash-2-4, 128
    ///   bits) under the cache's secret. A value that is altered, of another scope or of another cache is no owner.
    /// - A client can neither choose one nor learn one: barriers take the header off requests, and never put it on
    ///   responses.
    /// - A party that sees one may, for five minutes from now, enter the scope's locks beside this owner, stay there
    ///   when it has left, and let several requests of its own in at once. So send it only to processes of the cache,
    ///   over networks that are trusted, and keep it out of logs; the value is [sensitive](HeaderValue::is_sensitive).
    /// - It is good for nothing else: it frees no lock, and tells nothing of what is in the cache.
    /// - A barrier that does not expect the header leaves it on the request: only put it on requests to one that does.
    pub fn to_header(&self, scope: &Scope) -> HeaderValue {
        let issued = scope.handle().now();
        let text = format!("{:032x}{issued:016x}{:032x}", self.0, proof(scope, self.0, issued));
        let mut value = HeaderValue::try_from(text).expect("digits");
        value.set_sensitive(true);
        value
    }

    /// The owner that [`to_header`](Owner::to_header) wrote, for this scope and at most five minutes ago; `None` if there
    /// is none, several, or something else.
    pub fn from_headers(headers: &HeaderMap, name: &HeaderName, scope: &Scope) -> Option<Owner> {
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let (owner, issued, shown) = read(value.as_bytes())?;
        let is_ours = is_same(shown, proof(scope, owner, issued));
        (is_ours && scope.handle().now().abs_diff(issued) <= GOOD_FOR).then_some(Owner(owner))
    }
}

fn proof(scope: &Scope, owner: u128, issued: u64) -> u128 {
    let mut message = [0; 24];
    message[..16].copy_from_slice(&owner.to_le_bytes());
    message[16..].copy_from_slice(&issued.to_le_bytes());
    scope.handle().shared.secret.mac(Kind::Owner, &scope.id(), &message)
}

/// Takes as long whatever the numbers are: how much of a guess was right must not show.
fn is_same(a: u128, b: u128) -> bool {
    std::hint::black_box(a ^ b) == 0
}

fn read(text: &[u8]) -> Option<(u128, u64, u128)> {
    let hex = |digits: &[u8]| {
        digits
            .iter()
            .try_fold(0, |number: u128, digit| Some(number << 4 | u128::from(char::from(*digit).to_digit(16)?)))
    };
    let (owner, rest) = text.split_at_checked(32)?;
    let (issued, shown) = rest.split_at_checked(16)?;
    let is_whole = text.len() == LEN && !text.iter().any(u8::is_ascii_uppercase);
    is_whole.then_some((hex(owner)?, u64::try_from(hex(issued)?).ok()?, hex(shown)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use http::header::COOKIE;
    use proptest::{prelude::*, test_runner::RngSeed};
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    };

    fn headers_with(value: &[u8]) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_bytes(value).unwrap())])
    }

    fn cache(time: &Arc<AtomicU64>) -> Cache {
        let time = time.clone();
        let clock = crate::time::clock_fn(move || Duration::from_secs(time.load(SeqCst)), |_| std::future::pending());
        Cache::builder_temporary().state_size(1 << 20).clock(clock).open().unwrap()
    }

    #[test]
    fn a_token_is_good_in_its_own_scope_for_five_minutes() {
        let time = Arc::new(AtomicU64::new(1_000));
        let cache = cache(&time);
        let (scope, owner) = (cache.scope("a"), Owner::random());
        let value = owner.to_header(&scope);
        assert!(value.is_sensitive() && value.len() == LEN);
        let headers = headers_with(value.as_bytes());
        let read = |scope: &Scope| Owner::from_headers(&headers, &COOKIE, scope);
        assert_eq!(read(&scope), Some(owner));
        assert_eq!(read(&cache.scope("b")), None, "another scope");
        assert_eq!(read(&self::cache(&time).scope("a")), None, "another cache");
        for (at, good) in [(1_300, true), (1_301, false), (700, true), (699, false)] {
            time.store(at, SeqCst);
            assert_eq!(read(&scope).is_some(), good, "{at}");
        }
    }

    #[test]
    fn one_value_as_it_was_written_is_an_owner_and_nothing_else() {
        let cache = cache(&Arc::new(AtomicU64::new(0xabc)));
        let (scope, owner) = (cache.root(), Owner::from_u128(0xabcdef));
        let value = owner.to_header(scope);
        let text = value.to_str().unwrap();
        let read = |headers: &HeaderMap| Owner::from_headers(headers, &COOKIE, scope);
        assert_eq!(read(&HeaderMap::new()), None);
        let mut twice = headers_with(text.as_bytes());
        twice.append(COOKIE, value.clone());
        assert_eq!(read(&twice), None);
        for other in [String::new(), text.to_uppercase(), format!("{text}0"), format!(" {text}"), text[1..].to_owned()]
        {
            assert_eq!(read(&headers_with(other.as_bytes())), None, "{other}");
        }
        for at in 0..LEN {
            let mut altered = text.as_bytes().to_vec();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(read(&headers_with(&altered)), None, "{at}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Default::default() })]

        #[test]
        fn what_is_written_is_read(owner: u128, issued: u64, shown: u128) {
            let text = format!("{owner:032x}{issued:016x}{shown:032x}");
            prop_assert_eq!(read(text.as_bytes()), Some((owner, issued, shown)));
        }

        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..100), digits in "[0-9a-f+xé]{76,82}") {
            let _ = (read(&bytes), read(digits.as_bytes()));
        }
    }
}
