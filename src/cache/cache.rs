//! The cache itself: a handle of a directory.

use super::{handle::Handle, scope::Scope};
use crate::{error::Error, store::Subject};
use std::{fmt, path::Path, sync::Arc};

/// A handle of a cache's directory. Clones are cheap and share everything.
#[derive(Clone)]
pub struct Cache {
    handle: Arc<Handle>,
    root: Scope,
}

impl Cache {
    pub(super) fn new(handle: Arc<Handle>) -> Cache {
        let root = Scope::new(&handle, "");
        Cache { handle, root }
    }

    /// A name space of the cache: equal names share everything, others nothing.
    pub fn scope(&self, name: &str) -> Scope {
        Scope::new(&self.handle, name)
    }

    /// The scope without a name, in which the methods of the cache itself work.
    pub fn root(&self) -> &Scope {
        &self.root
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.handle.shared.path()
    }

    /// Drops every stored answer that carries the tag, in every process, from the moment this resolves; answers being
    /// computed right now will not be stored. Throttle cells with the tag are full again. A held lock is never freed.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if the cache could not be written in time; the purge may then have happened in part.
    pub async fn evict(&self, tag: &str) -> Result<(), Error> {
        let tag = self.handle.shared.secret.tag(tag);
        self.handle.purge(Subject::Tag(tag), false).await?;
        self.reset_cells(move |cell| cell == tag).await
    }

    /// Drops every stored answer and throttle cell of all scopes. A held lock is never freed.
    ///
    /// # Errors
    ///
    /// As [`evict`](Cache::evict).
    pub async fn clear(&self) -> Result<(), Error> {
        self.handle.purge(Subject::All, false).await?;
        self.reset_cells(|_| true).await
    }

    async fn reset_cells(&self, wanted: impl Fn(u64) -> bool + Clone + Send + 'static) -> Result<(), Error> {
        let mut after = None;
        loop {
            after = self.handle.settled(self.handle.shared.state.evict_some(after, wanted.clone())).await?;
            if after.is_none() {
                return Ok(());
            }
            yield_once().await;
        }
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }
}

/// Lets other tasks of the thread run.
async fn yield_once() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("path", &self.path()).finish_non_exhaustive()
    }
}
