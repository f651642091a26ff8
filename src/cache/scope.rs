//! Scopes, the name spaces of a cache, and the methods by which layers use it.

use super::handle::Handle;
use crate::{
    error::Error,
    store::{
        Begun, Edit, Entry, Event, Found, Hit, Key, Kind, Life, LineTransition, Listed, Moment, Pending, Reached,
        RowTransition, ScopeId, Subject, Table, WakeUps, Weight, scope_mark,
    },
};
use std::{fmt, future::Future, sync::Arc};

/// A name space of a [`Cache`](super::Cache). A layer takes a scope, so that no two layers share by accident.
///
/// Kinds never meet either: a throttle and a barrier of one scope and name are two things.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<ScopeInner>,
}

struct ScopeInner {
    handle: Arc<Handle>,
    name: Arc<str>,
    id: ScopeId,
}

impl Scope {
    pub(super) fn new(handle: &Arc<Handle>, name: &str) -> Scope {
        let id = handle.shared.secret.scope(name);
        Scope { inner: Arc::new(ScopeInner { handle: handle.clone(), name: name.into(), id }) }
    }

    /// The scope's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Drops every stored answer of this scope, in every process, from the moment this resolves. Throttle cells and
    /// locks stay.
    ///
    /// # Errors
    ///
    /// As [`Cache::evict`](super::Cache::evict).
    pub async fn clear(&self) -> Result<(), Error> {
        self.handle().purge(Subject::Scope(self.inner.id), false).await
    }

    pub(crate) fn shared_name(&self) -> &Arc<str> {
        &self.inner.name
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.inner.handle
    }

    pub(crate) fn key(&self, kind: Kind, name: &[u8]) -> Key {
        self.handle().shared.secret.key(kind, &self.inner.id, name)
    }

    pub(crate) fn tag(&self, tag: &str) -> u64 {
        self.handle().shared.secret.tag(tag)
    }

    pub(crate) fn note(&self, event: Event) {
        self.handle().shared.events.note(event, &self.inner.name);
    }

    /// See `State::update`.
    pub(crate) fn update<R: Send + 'static, G: Send + 'static>(
        &self,
        table: Table,
        key: Key,
        transition: impl RowTransition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G> {
        let (handle, clock) = (self.handle(), self.handle().clone());
        handle.settled(handle.shared.state.update(table, key, move || clock.now(), transition, settle))
    }

    /// See `State::read_recent`.
    pub(crate) fn read_recent<T>(&self, key: &Key, f: impl FnOnce(Found<'_>, u64) -> T) -> Option<T> {
        let handle = self.handle();
        handle.shared.state.read_recent(key, |found| f(found, handle.now()))
    }

    /// See `State::update_line`.
    #[inline]
    pub(crate) fn update_line<R: Send + 'static, G: Send + 'static>(
        &self,
        table: Table,
        key: Key,
        transition: impl LineTransition<R>,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G> {
        let (handle, clock) = (self.handle(), self.handle().clone());
        handle.settled(handle.shared.state.update_line(table, key, move || clock.now(), transition, settle))
    }

    /// As [`post_then`](Scope::post_then), without anything that follows.
    pub(crate) fn post_line(&self, table: Table, key: Key, transition: impl LineTransition<()>) {
        self.post_then(table, key, transition, drop);
    }

    /// See `Env::is_orphaned`.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.handle().shared.state.queue.env.is_orphaned()
    }

    /// See `State::post_then`.
    pub(crate) fn post_then<R: Send + 'static>(
        &self,
        table: Table,
        key: Key,
        transition: impl LineTransition<R>,
        then: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        let (state, clock) = (&self.handle().shared.state, self.handle().clone());
        let post = |settled| state.post_then(table, key, move || clock.now(), transition, followed_by(then, settled));
        self.handle().posted(post);
    }

    /// See `State::post_as_holder`.
    pub(crate) fn post_as_holder<R: Send + 'static>(
        &self,
        key: Key,
        transition: impl LineTransition<R>,
        then: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        let (state, clock) = (&self.handle().shared.state, self.handle().clone());
        let post = |settled| state.post_as_holder(key, move || clock.now(), transition, followed_by(then, settled));
        self.handle().posted(post);
    }

    /// The last commit to `state/`, by any process. `None`: `state/` was found damaged.
    pub(crate) fn last_commit(&self) -> Option<u64> {
        let env = &self.handle().shared.state.queue.env;
        env.look_if_due();
        env.is_sound().then(|| env.last_transaction())
    }

    /// Lists the locks of all scopes, see `State::list_locks`.
    pub(crate) fn list_locks<T: Send + 'static>(
        &self,
        after: Option<[u8; 16]>,
        most: usize,
        f: impl FnMut(Listed<'_>) -> Option<T> + Send + 'static,
    ) -> Pending<Result<(Vec<T>, Option<[u8; 16]>), Error>> {
        let handle = self.handle();
        handle.settled(handle.shared.state.list_locks(after, most, f))
    }

    /// Whether a key is one of this scope.
    pub(crate) fn has_key(&self, key: &[u8; 16]) -> bool {
        scope_mark(key) == scope_mark(&self.key(Kind::Lock, b"").hash)
    }

    /// The number of this opening of the directory, see `Instances::instance`.
    pub(crate) fn instance(&self) -> Option<u64> {
        self.handle().shared.instances.instance()
    }

    /// Whether an opening is gone for good, see `Instances::is_dead`.
    pub(crate) fn is_dead(&self, instance: u64) -> bool {
        self.handle().shared.instances.is_dead(instance)
    }

    /// The openings among these that are gone for good.
    pub(crate) fn dead_among(&self, instances: &[u64]) -> Vec<u64> {
        instances.iter().copied().filter(|&instance| self.is_dead(instance)).collect()
    }

    /// Makes an instance that has died.
    #[cfg(test)]
    pub(crate) fn add_dead(&self, instance: u64) {
        self.handle().shared.instances.add_dead(instance);
    }

    /// The process id of an instance, see `Instances::process`.
    pub(crate) fn process(&self, instance: u64) -> Option<u32> {
        self.handle().shared.instances.process(instance)
    }

    /// Whether an instance that should have answered is gone, see
    /// `Instances::is_dead_now`.
    pub(crate) fn is_dead_now(&self, instance: u64) -> bool {
        self.handle().shared.instances.is_dead_now(instance)
    }

    /// Whether this process has a holding of the number, see `Shared::holds`.
    pub(crate) fn holds(&self, number: u64) -> bool {
        self.handle().shared.holds(number)
    }

    /// The waiters of this process.
    pub(crate) fn wake_ups(&self) -> &Arc<WakeUps> {
        &self.handle().shared.wake_ups
    }

    /// Wakes the waiter with a number in an instance, this one or another: see `WakeUps::wake`. Never blocks.
    pub(crate) fn wake(&self, instance: u64, number: u64) -> Reached {
        self.handle().shared.wake(instance, number)
    }

    /// The stored entry and the time at which it is alive, or the purge sequence that a computation starting now must
    /// carry.
    pub(crate) fn entry(&self, key: &Key, name: &[u8]) -> Result<Result<(Entry, u64), u64>, Error> {
        self.handle().shared.shard(key).get(key, name, || self.handle().now())
    }

    /// As [`entry`](Scope::entry), decoded, and from the memory tier where that is as good.
    pub(crate) fn read<T: Weight + Send + Sync + 'static>(
        &self,
        key: &Key,
        name: &[u8],
        decode: impl FnOnce(&Entry) -> Option<T>,
    ) -> Result<Result<Hit<T>, u64>, Error> {
        let shared = &self.handle().shared;
        shared.shard(key).read(&shared.tier, key, name, || self.handle().now(), decode)
    }

    /// The purge sequence that a computation starting now must carry.
    pub(crate) fn purge_sequence(&self, key: &Key) -> Result<u64, Error> {
        self.handle().shared.shard(key).purge_sequence()
    }

    /// Bytes that a stored payload may have at most.
    pub(crate) fn largest(&self) -> usize {
        self.handle().shared.entries[0].largest()
    }

    /// Stores an entry; resolves after the commit.
    pub(crate) fn commit(&self, key: Key, name: &[u8], entry: Entry) -> Pending<Result<(), Error>> {
        let life = entry.life;
        self.store(key, name, (entry, Begun::Before), move |_| life, ())
    }

    /// See `Entries::store`.
    pub(crate) fn store<R: Send + 'static>(
        &self,
        key: Key,
        name: &[u8],
        entry: (Entry, Begun),
        life: impl Fn(u64) -> Life + Send + 'static,
        stored: R,
    ) -> Pending<Result<R, Error>> {
        let (handle, clock) = (self.handle(), self.handle().clone());
        handle.settled(handle.shared.shard(&key).store(key, name, move || clock.now(), entry, life, stored))
    }

    /// Whether no purge has hit an entry that is in memory only.
    pub(crate) fn is_current(&self, key: &Key, name: &[u8], entry: &Entry) -> Result<bool, Error> {
        self.handle().shared.shard(key).is_current(key, name, entry, self.handle().now())
    }

    pub(crate) fn edit<R: Send + 'static>(
        &self,
        key: Key,
        name: &[u8],
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        self.edit_of_size(key, name, 0, edit)
    }

    /// As `edit`, for one that stores about so many bytes.
    pub(crate) fn edit_of_size<R: Send + 'static>(
        &self,
        key: Key,
        name: &[u8],
        size: usize,
        edit: impl FnMut(Option<&Entry>, Moment) -> (Result<R, Error>, Edit) + Send + 'static,
    ) -> Pending<Result<R, Error>> {
        let (handle, clock) = (self.handle(), self.handle().clone());
        handle.settled(handle.shared.shard(&key).edit(key, name, size, move || clock.now(), edit))
    }

    /// Whether an entry of so many bytes, which need not be stored, finds room among those that are about to be.
    pub(crate) fn has_room_for(&self, key: &Key, size: usize) -> bool {
        self.handle().shared.shard(key).queue.has_room_for(size)
    }

    /// From the moment this resolves, the entry of the key is gone with its [family](Key::family), and answers that are
    /// being computed for it will not be stored; after a soft purge, they have ended.
    pub(crate) fn purge_name(&self, key: &Key, soft: bool) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let handle = self.handle();
        let name = handle.purge_in(vec![handle.shared.shard_number(key)], Subject::Name(key.hash), soft);
        let family = handle.purge(Subject::Family(self.inner.id, key.family()), soft);
        async {
            name.await?;
            family.await
        }
    }

    pub(crate) fn id(&self) -> ScopeId {
        self.inner.id
    }
}

/// Does this, and then drops what the poster waits for.
fn followed_by<R>(
    then: impl FnOnce(Result<R, Error>) + Send + 'static,
    settled: impl Send + 'static,
) -> impl FnOnce(Result<R, Error>) + Send + 'static {
    move |result| {
        then(result);
        drop(settled);
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Scope").field(&self.inner.name).finish()
    }
}
