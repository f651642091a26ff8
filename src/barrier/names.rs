//! Several names of one request.

use crate::name::{IntoName, Name, NameBuf, Named};
use std::fmt;

/// The names of a request, made by [`BarrierLayer::names`](super::BarrierLayer::names).
#[derive(Clone, Copy)]
pub struct Several<F>(F);

impl<F> Several<F> {
    pub(super) fn new(names: F) -> Self {
        Several(names)
    }
}

impl<F> fmt::Debug for Several<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Several").finish_non_exhaustive()
    }
}

/// Each name is a part, see [`NameBuf::push_part`]; what passes is left out.
impl<Req, F, I> Name<Req> for Several<F>
where
    F: Fn(&Req) -> I,
    I: IntoIterator,
    I::Item: IntoName,
{
    fn name(&self, request: &Req, name: &mut NameBuf) -> Named {
        let mut named = Named::Pass;
        let mut part = NameBuf::new();
        for one in (self.0)(request) {
            part.clear();
            if one.into_name(&mut part) == Named::Yes {
                name.push_part(part.as_bytes());
                named = Named::Yes;
            }
        }
        named
    }
}

/// What [`Several`] has written; ends where it did not.
pub(super) fn parts(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let length: usize = std::str::from_utf8(&rest[..colon]).ok()?.parse().ok()?;
        let (part, behind) = rest[colon + 1..].split_at_checked(length)?;
        rest = behind.strip_prefix(b",")?;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::RngSeed};

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default() })]

        #[test]
        fn what_is_written_is_read(names in prop::collection::vec(prop::option::of(".{0,300}"), 0..5)) {
            let mut buffer = NameBuf::new();
            let named = Several::new(|names: &Vec<Option<String>>| names.clone()).name(&names, &mut buffer);
            let names: Vec<_> = names.iter().flatten().map(String::as_bytes).collect();
            prop_assert_eq!(named == Named::Pass, names.is_empty());
            prop_assert_eq!(parts(buffer.as_bytes()).collect::<Vec<_>>(), names);
        }

        #[test]
        fn any_bytes_are_read(bytes in "[0-9:,a+]{0,12}") {
            prop_assert!(parts(bytes.as_bytes()).count() <= 12);
        }
    }
}
