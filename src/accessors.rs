//! What every service of this crate has.

/// `get_ref`, `get_mut` and `into_inner`; the text warns of what calling the inner service leaves out.
macro_rules! inner_service_accessors {
    ($bypass:literal) => {
        /// The inner service.
        pub fn get_ref(&self) -> &S {
            &self.inner
        }

        /// The inner service.
        #[doc = $bypass]
        pub fn get_mut(&mut self) -> &mut S {
            &mut self.inner
        }

        /// The inner service.
        pub fn into_inner(self) -> S {
            self.inner
        }
    };
}

/// A clone that is called after a wait. Both it and the instance give up their readiness: a waiting request must not
/// hold a permit, and a caller that keeps the instance would hold the one that the clone will need.
pub(crate) fn to_call_later<S: Clone>(inner: &mut S) -> S {
    let later = inner.clone();
    *inner = later.clone();
    later
}
