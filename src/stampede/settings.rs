//! The settings of a stampede cache, which its layer and its service share.

use super::core::Core;

/// The settings of a stampede cache.
#[derive(Clone, Debug)]
pub(super) struct Settings<N, C> {
    pub(super) core: Core<C>,
    pub(super) name: N,
}
