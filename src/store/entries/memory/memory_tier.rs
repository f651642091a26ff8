//! The memory tier: answers that are read often, decoded once and kept in memory, in front of the files.
//!
//! An item is tagged with the transaction whose snapshot it was read from. As long as no process has committed since, a
//! read would find the same; this takes some nanoseconds to see. Otherwise a read transaction compares it with its row
//! and the purges, and tags it with its own snapshot: never with the last commit, which runs ahead of what a
//! transaction sees.

use super::read_rate::ReadRate;
use crate::store::{
    entries::entry::{Entry, RowDigest},
    record::key::Key,
};
use quick_cache::{Weighter, sync};
use std::{
    any::Any,
    fmt,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

/// Bytes that an item takes besides its name, its payload and what its decoded value needs, roughly.
const OVERHEAD: usize = 1024;
/// One item may take this part of the memory tier: an eighth.
const SHARE: usize = 8;

/// The items of one opening.
pub(crate) struct MemoryTier {
    items: Option<sync::Cache<[u8; 16], Arc<Item>, Weigh, AsIs>>,
    bytes: usize,
}

/// A decoded value, which is kept beside the bytes that it was made of.
pub trait Weight {
    /// Bytes that it takes besides those that it shares with the payload.
    fn weight(&self) -> usize;
}

impl Weight for () {
    fn weight(&self) -> usize {
        0
    }
}

pub(crate) struct Item {
    /// Compared beside the key, whose hash may be that of another name.
    echo: u64,
    name: Box<[u8]>,
    pub(crate) entry: Entry,
    pub(crate) value: Arc<dyn Any + Send + Sync>,
    /// The digest of the row it was read from.
    pub(crate) row: RowDigest,
    /// The last transaction whose snapshot contained it.
    seen: AtomicU64,
    pub(crate) reads: Arc<ReadRate>,
    weight: usize,
}

impl Item {
    pub(crate) fn new<T: Weight + Send + Sync + 'static>(
        key: &Key,
        name: &[u8],
        (entry, row, seen): (Entry, RowDigest, u64),
        value: Arc<T>,
        reads: Arc<ReadRate>,
    ) -> Item {
        let weight = OVERHEAD + name.len() + entry.payload.len() + value.weight();
        Item { echo: key.echo, name: name.into(), entry, value, row, seen: AtomicU64::new(seen), reads, weight }
    }

    pub(crate) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether nothing was committed since it was seen.
    pub(crate) fn is_current(&self, last: u64) -> bool {
        self.seen.load(SeqCst) == last
    }

    pub(crate) fn was_seen_by(&self, transaction: u64) {
        self.seen.fetch_max(transaction, SeqCst);
    }
}

impl MemoryTier {
    /// A memory tier with room for this many bytes; with 0 bytes there is none.
    pub(crate) fn new(bytes: usize) -> MemoryTier {
        let items = (bytes > 0).then(|| {
            let lifecycle = sync::DefaultLifecycle::default();
            sync::Cache::with(bytes / OVERHEAD / 2, bytes as u64, Weigh, AsIs, lifecycle)
        });
        MemoryTier { items, bytes }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.items.is_some()
    }

    pub(crate) fn get(&self, key: &Key, name: &[u8]) -> Option<Arc<Item>> {
        self.items.as_ref()?.get(&key.hash).filter(|item| item.echo == key.echo && *item.name == *name)
    }

    pub(crate) fn put(&self, key: &Key, item: Item) {
        if let Some(items) = &self.items
            && item.weight <= self.bytes / SHARE
        {
            items.insert(key.hash, Arc::new(item));
        }
    }

    pub(crate) fn remove(&self, key: &Key) {
        if let Some(items) = &self.items {
            items.remove(&key.hash);
        }
    }

    #[cfg(test)]
    pub(crate) fn weight(&self) -> u64 {
        self.items.as_ref().map_or(0, sync::Cache::weight)
    }
}

impl fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTier").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Weigh;

impl Weighter<[u8; 16], Arc<Item>> for Weigh {
    fn weight(&self, _: &[u8; 16], item: &Arc<Item>) -> u64 {
        item.weight as u64
    }
}

/// The keys are keyed hashes already.
#[derive(Clone, Default)]
struct AsIs;

impl BuildHasher for AsIs {
    type Hasher = First;

    fn build_hasher(&self) -> First {
        First(0)
    }
}

struct First(u64);

impl Hasher for First {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    // The length of a key.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests;
