//! A mean that many processes add to.

use super::{
    cache::Cache,
    scope::Scope,
    values::{Write, decode, encode, replaced},
};
use crate::{
    error::Error,
    store::{Edit, Entry, Kind, Moment},
};
use hyper::body::Bytes;

/// A running mean of numbers, kept in the cache; every task, thread and process may add to it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_floodgate::Error> {
/// let cache = tower_floodgate::Cache::temporary()?;
/// let latency = cache.averager("latency");
/// latency.add(0.080).await?;
/// latency.add(0.120).await?;
/// assert_eq!(latency.get()?, Some(0.1));
/// assert_eq!(latency.pop().await?, Some(0.1));
/// assert_eq!(latency.get()?, None);
/// # Ok(()) }
/// ```
///
/// It is a value of its scope like others: it may be dropped for room, or with [`Scope::clear`], and then begins anew.
#[derive(Clone, Debug)]
pub struct Averager {
    scope: Scope,
    name: Box<str>,
}

/// What is stored: the sum, and of how many.
type Stored = (f64, u64);

impl Averager {
    /// Adds a number and resolves to the mean.
    ///
    /// # Errors
    ///
    /// [`Error::Codec`] if something else is stored under the name; otherwise as [`Scope::remove`].
    pub fn add(&self, number: f64) -> Write<f64> {
        let scope = self.scope.id();
        self.edit(move |old, moment| {
            let (sum, count) = stored(old)?.unwrap_or_default();
            let (sum, count) = (sum + number, count.saturating_add(1));
            let payload = Bytes::from(encode(&(sum, count))?);
            Ok((mean((sum, count)), Edit::Store(replaced(old, payload, scope, moment))))
        })
    }

    /// The mean; `None` if nothing was added.
    ///
    /// # Errors
    ///
    /// As [`add`](Averager::add).
    pub fn get(&self) -> Result<Option<f64>, Error> {
        Ok(self.scope.get(&self.name)?.map(mean))
    }

    /// The mean; from now on it begins anew. What others add meanwhile counts in one of the two.
    ///
    /// # Errors
    ///
    /// As [`add`](Averager::add).
    pub fn pop(&self) -> Write<Option<f64>> {
        self.edit(|old, _| Ok((stored(old)?.map(mean), if old.is_some() { Edit::Remove } else { Edit::Keep })))
    }

    fn edit<R: Send + 'static>(
        &self,
        edit: impl Fn(Option<&Entry>, Moment) -> Result<(R, Edit), Error> + Send + 'static,
    ) -> Write<R> {
        let name = self.name.as_bytes();
        let edited =
            self.scope.edit(self.scope.key(Kind::Value, name), name, move |old, moment| match edit(old, moment) {
                Ok((result, edit)) => (Ok(result), edit),
                Err(error) => (Err(error), Edit::Keep),
            });
        Write::from(edited)
    }
}

fn stored(entry: Option<&Entry>) -> Result<Option<Stored>, Error> {
    entry.map(|entry| decode(&entry.payload)).transpose()
}

fn mean((sum, count): Stored) -> f64 {
    sum / count.max(1) as f64
}

impl Scope {
    /// A running mean of this scope, by name.
    pub fn averager(&self, name: &str) -> Averager {
        Averager { scope: self.clone(), name: name.into() }
    }
}

impl Cache {
    /// [`Scope::averager`] of the [root](Cache::root) scope.
    pub fn averager(&self, name: &str) -> Averager {
        self.root().averager(name)
    }
}
