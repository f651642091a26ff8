//! The setters of what has a `core`, with their documentation.

/// The settings that requests and values have in common, as methods.
macro_rules! core_setters {
    ($($core:tt)+) => {
        /// How eagerly answers are refreshed before they end: 1 unless said otherwise, more is earlier, 0 is never.
        ///
        /// # Panics
        ///
        /// If it is negative or not finite.
        #[track_caller]
        pub fn beta(mut self, beta: f64) -> Self {
            self.$($core)+.set_beta(beta);
            self
        }

        /// Refreshes by the measured cost and how often an answer is read in this process, instead of by a fixed
        /// [`beta`](Self::beta): as late as leaves this chance that an answer ends before the next one is there, 0.01
        /// for instance. What is read too rarely for that to be of use is not refreshed early, and nothing is where
        /// [`Builder::memory`](crate::Builder::memory) is zero.
        ///
        /// # Panics
        ///
        /// If the chance is not between 0 and 1.
        #[track_caller]
        pub fn tuned(mut self, miss: f64) -> Self {
            self.$($core)+.set_tuned(miss);
            self
        }

        /// How long past its end an answer may be served while a new one is computed in the background: not at all
        /// unless said otherwise. Then no request waits for an answer that is asked for again in time, however rarely
        /// that is.
        ///
        /// Over HTTP it applies to responses that do not say themselves (`stale-while-revalidate`, RFC 5861), and never to
        /// those that say `must-revalidate`, `proxy-revalidate` or `s-maxage`.
        pub fn stale_while_revalidate(mut self, grace: std::time::Duration) -> Self {
            self.$($core)+.lives.revalidate = grace;
            self
        }

        /// How long past its end an answer may be served where the service fails, or is slower than
        /// [`soft_timeout`](Self::soft_timeout): not at all unless said otherwise. A service has failed by an
        /// error, a panic, a status from 500 on, 408, 425 or 429, a gRPC status that says so, or a body that breaks off.
        ///
        /// After a failure the service is asked again by one request of the whole machine: after a second, then after two,
        /// four and so on up to thirty.
        ///
        /// Over HTTP it applies to responses that do not say themselves (`stale-if-error`, RFC 5861), and never to those that say
        /// `must-revalidate`, `proxy-revalidate` or `s-maxage`.
        pub fn stale_if_error(mut self, grace: std::time::Duration) -> Self {
            self.$($core)+.lives.if_error = grace;
            self
        }

        /// Serves an answer that has ended, within [`stale_if_error`](Self::stale_if_error), once the service has
        /// taken this long; the computation goes on in the background. Without an executor it is waited for. No limit unless
        /// said otherwise.
        pub fn soft_timeout(mut self, patience: std::time::Duration) -> Self {
            self.$($core)+.soft_timeout = Some(patience);
            self
        }

        /// How long a request waits for another's computation, in this process or another one, before it calls the service
        /// itself: a minute unless said otherwise. A computation that is older gathers no more followers in its process.
        pub fn follow_at_most(mut self, patience: std::time::Duration) -> Self {
            self.$($core)+.follow_at_most = patience;
            self
        }

        /// Errors of the service are shared: all requests of this process that wait for the same answer get them,
        /// instead of trying one after the other.
        pub fn share_errors<E: Clone + Send + Sync + 'static>(mut self) -> Self {
            self.$($core)+.error_sharing = Some(crate::stampede::core::ErrorSharing::errors::<E>());
            self
        }

        /// Shortens each life by a random share of up to this, so that what was stored together does not end together: 0 unless
        /// said otherwise.
        ///
        /// # Panics
        ///
        /// If it is not from 0 to 1.
        #[track_caller]
        pub fn jitter(mut self, share: f64) -> Self {
            self.$($core)+.set_jitter(share);
            self
        }

        /// A tag, by which [`Cache::evict`](crate::Cache::evict) drops what is kept. May be given several times.
        ///
        /// # Panics
        ///
        /// Beyond 16 tags: responses bring theirs, and 64 fit.
        #[track_caller]
        pub fn tag(mut self, tag: &str) -> Self {
            self.$($core)+.add_tag(tag);
            self
        }
    };
}
