//! The stampede cache without tower: a value under a name, computed by one of all callers that want it.

use super::{
    codec::{Access, SentRequest, Serde},
    core::{Core, Runs},
    plan::Plan,
    serve::Call,
};
use crate::{
    cache::{Cache, Scope},
    store::{Kind, block_on},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    future::{Future, IntoFuture},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// A value about to be read, or computed and stored: choose how, then await it, or [`wait`](Fill::wait) on a plain thread.
///
/// Whatever goes wrong with the cache, the value is computed and given.
#[derive(Clone)]
#[must_use = "nothing is read or computed until it is awaited"]
pub struct Fill<F> {
    core: Core<Serde>,
    name: Box<[u8]>,
    compute: F,
}

impl<F> fmt::Debug for Fill<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fill").field("scope", &self.core.scope.name()).finish_non_exhaustive()
    }
}

impl Scope {
    /// The value under a name or, if there is none, what `compute` makes of it, kept for `life`. Of all callers that
    /// want it at the same time, on the whole machine, one computes it. Before it ends, one refreshes it in the
    /// background (XFetch). Everything that [`StampedeCacheLayer`](crate::StampedeCacheLayer) does for requests, it
    /// does for values.
    ///
    /// `compute` answers a future of a `Result` if this is awaited, and a `Result` if it is [waited](Fill::wait) for. Errors
    /// are not kept. The value is the one that [`get`](Scope::get) and [`insert`](Scope::insert) know by this name; one that is
    /// no `T` is computed anew.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use std::{io, time::Duration};
    /// # let cache = tower_floodgate::Cache::temporary()?;
    /// let minute = Duration::from_secs(60);
    /// let rate = || async { Ok::<_, io::Error>(1.08) }; // asks a slow server, say
    /// assert_eq!(cache.get_or_fill("eur-usd", minute, rate).stale_if_error(60 * minute).await?, 1.08);
    /// assert_eq!(cache.get_or_fill("eur-usd", minute, rate).await?, 1.08); // asks nobody
    ///
    /// # std::thread::spawn(move || -> io::Result<()> {
    /// let report = cache.get_or_fill("report", minute, || std::fs::read_to_string("/etc/hostname")).wait()?;
    /// # let _ = report; Ok(()) }).join().unwrap()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    ///
    /// If `life` is zero.
    #[track_caller]
    pub fn get_or_fill<F>(&self, name: &str, life: Duration, compute: F) -> Fill<F> {
        assert!(!life.is_zero(), "{name:?} needs a life above zero, not {life:?}");
        Fill { core: Core::new(self.clone(), Kind::Value, life, Serde), name: name.as_bytes().into(), compute }
    }
}

impl Cache {
    /// [`Scope::get_or_fill`] of the [root](Cache::root) scope.
    ///
    /// # Panics
    ///
    /// If `life` is zero.
    #[track_caller]
    pub fn get_or_fill<F>(&self, name: &str, life: Duration, compute: F) -> Fill<F> {
        self.root().get_or_fill(name, life, compute)
    }
}

impl<F> Fill<F> {
    core_setters!(core);

    /// Blocks the thread until the value is there; it needs no runtime. An early refresh gets a thread of its own. A thread that
    /// computes itself cannot be stopped by a [`soft_timeout`](Self::soft_timeout). Not for a runtime's threads.
    ///
    /// # Errors
    ///
    /// What `compute` fails with.
    ///
    /// # Panics
    ///
    /// If `compute` does.
    pub fn wait<T, E>(mut self) -> Result<T, E>
    where
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Send + 'static,
    {
        self.core.runs = Runs::OnThreads;
        let Fill { core, name, compute } = self;
        block_on(fill(core, name, move || async { compute() }))
    }
}

impl<F, C, T, E> IntoFuture for Fill<F>
where
    F: FnOnce() -> C + Send + 'static,
    C: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    type Output = Result<T, E>;
    type IntoFuture = Filling<T, E>;

    fn into_future(self) -> Filling<T, E> {
        let Fill { core, name, compute } = self;
        Filling(Box::pin(fill(core, name, compute)))
    }
}

/// The future of a [`Fill`].
#[must_use = "futures do nothing unless polled"]
pub struct Filling<T, E>(Pin<Box<dyn Future<Output = Result<T, E>> + Send>>);

impl<T, E> Future for Filling<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<T, E> fmt::Debug for Filling<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filling").finish_non_exhaustive()
    }
}

async fn fill<F, C, T, E>(core: Core<Serde>, name: Box<[u8]>, compute: F) -> Result<T, E>
where
    F: FnOnce() -> C + Send + 'static,
    C: Future<Output = Result<T, E>> + Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
    E: Send + 'static,
{
    let sent = SentRequest { access: Access::Shared, bodiless: false, kept: () };
    match core.plan::<(), T>(&name, &sent.as_asked()) {
        Plan::Refresh(value, computation) => {
            let refreshing = core.clone().refresh_later::<(), T, E>(computation, name, sent, Compute(compute));
            if let Err(refreshing) = core.in_background(Box::pin(refreshing)) {
                refreshing.await;
            }
            Ok(value)
        }
        plan => core.serve::<(), T, E>(name, sent, plan, Compute(compute)).await,
    }
}

struct Compute<F>(F);

impl<F, C, T, E> Call<T, E> for Compute<F>
where
    F: FnOnce() -> C + Send + 'static,
    C: Future<Output = Result<T, E>> + Send + 'static,
{
    type Computing = C;

    async fn call(self, _: bool) -> Result<C, E> {
        Ok((self.0)())
    }
}
