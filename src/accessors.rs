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
