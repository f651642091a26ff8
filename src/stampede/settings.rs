//! What a stampede cache's layer was told.

use super::core::Core;

/// What a stampede cache's layer was told.
#[derive(Clone, Debug)]
pub(super) struct Settings<N, C> {
    pub(super) core: Core<C>,
    pub(super) name: N,
}
