//! The purges that a user may ask for.

use super::cache::Cache;
use crate::{
    error::Error,
    store::{Kind, PREFIX_MAX, Subject, block_on},
};

/// A selection of stored answers and values to be purged, and how: see [`Cache::purge`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), tower_floodgate::Error> {
/// # use tower_floodgate::{Cache, Purge};
/// # let cache = Cache::temporary()?;
/// cache.purge(Purge::tag("report").soft()).await?;
/// cache.purge(Purge::prefix("pages", "GET https://example.com/blog/")).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is purged until `Cache::purge`"]
pub struct Purge {
    what: What,
    soft: bool,
}

#[derive(Clone, Debug)]
enum What {
    All,
    Tag(String),
    Scope(String),
    Prefix(String, String),
    Name(String, String),
}

impl Purge {
    fn new(what: What) -> Purge {
        Purge { what, soft: false }
    }

    /// Everything in all scopes.
    pub fn all() -> Purge {
        Purge::new(What::All)
    }

    /// Everything that carries a tag.
    pub fn tag(tag: &str) -> Purge {
        Purge::new(What::Tag(tag.into()))
    }

    /// Everything in a scope.
    pub fn scope(scope: &str) -> Purge {
        Purge::new(What::Scope(scope.into()))
    }

    /// Everything in a scope whose name begins with the prefix. The names of requests come from
    /// [`name_of`](crate::StampedeCacheLayer::name_of).
    ///
    /// # Panics
    ///
    /// Above 256 bytes.
    #[track_caller]
    pub fn prefix(scope: &str, prefix: &str) -> Purge {
        assert!(prefix.len() <= PREFIX_MAX, "a prefix has {PREFIX_MAX} bytes at most, and {prefix:?} has more");
        Purge::new(What::Prefix(scope.into(), prefix.into()))
    }

    /// Everything in a scope that has this name, with all its variants. The names of requests come from
    /// [`name_of`](crate::StampedeCacheLayer::name_of).
    pub fn name(scope: &str, name: &str) -> Purge {
        Purge::new(What::Name(scope.into(), name.into()))
    }

    /// Ends the life of the purged answers instead of dropping them. They may still be served while they are computed
    /// anew or cannot be, for as long as their
    /// [`stale_while_revalidate`](crate::StampedeCacheLayer::stale_while_revalidate) and
    /// [`stale_if_error`](crate::StampedeCacheLayer::stale_if_error) allow, which begin then.
    pub fn soft(mut self) -> Purge {
        self.soft = true;
        self
    }
}

impl Cache {
    /// Purges stored answers and values, in every process, from the moment this resolves; those that are being computed
    /// right now will not be stored (after a soft purge: will have ended when they are stored). Throttle cells and
    /// locks stay: see [`evict`](Cache::evict) and [`clear`](Cache::clear).
    ///
    /// Nothing else is purged, however many purges there are. Some 32,000 are remembered a shard; beyond that, answers of the
    /// same scopes (after floods of tags, of all scopes) that are being computed right now may go unstored, and a purge of
    /// a tag, prefix or scope may wait until the entries have been looked through for the ones before it.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if the cache could not be written in time; the purge may then have happened in part.
    pub async fn purge(&self, purge: Purge) -> Result<(), Error> {
        let Purge { what, soft } = purge;
        let subject = match what {
            What::All => Subject::All,
            What::Tag(tag) => Subject::Tag(self.handle().shared.secret.tag(&tag)),
            What::Scope(scope) => Subject::Scope(self.scope(&scope).id()),
            What::Prefix(scope, prefix) => Subject::Prefix(self.scope(&scope).id(), prefix.into_bytes()),
            What::Name(scope, name) => {
                let scope = self.scope(&scope);
                for kind in [Kind::Response, Kind::Memo, Kind::Value] {
                    scope.purge_name(&scope.key(kind, name.as_bytes()), soft).await?;
                }
                return Ok(());
            }
        };
        self.handle().purge(subject, soft).await
    }

    /// As [`purge`](Cache::purge), for plain threads: blocks this one.
    ///
    /// # Errors
    ///
    /// As [`purge`](Cache::purge).
    pub fn purge_blocking(&self, purge: Purge) -> Result<(), Error> {
        block_on(self.purge(purge))
    }
}
