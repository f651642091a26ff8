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

/// A clone to be called later, by who has to wait first. The readiness is given up, also by the instance that had it: who
/// waits must not sit on it, and a caller who keeps that instance would hold what the clone will need.
pub(crate) fn to_call_later<S: Clone>(inner: &mut S) -> S {
    let later = inner.clone();
    *inner = later.clone();
    later
}
