//! The direct use of a cache: serde values under names, as in diskcache.

use super::{cache::Cache, scope::Scope};
use crate::{
    error::Error,
    store::{Begun, Edit, Entry, Kind, Life, Moment, Pending, ScopeId, TAGS_MAX},
    time::nanos,
};
use hyper::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

/// As good as for ever: some five centuries would overflow the clock.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The stored form of a value: MessagePack, structs with their field names, so that fields can be added.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Error> {
    rmp_serde::to_vec_named(value).map_err(|error| Error::Codec(error.to_string()))
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    rmp_serde::from_slice(bytes).map_err(|error| Error::Codec(error.to_string()))
}

/// Machine time `life` from now, in ns.
pub(crate) fn after(now: u64, life: Duration) -> u64 {
    now.saturating_add(nanos(life.min(FOR_EVER)))
}

/// An entry with another payload, which keeps its life and tags; or one that lives for ever.
pub(super) fn replaced(old: Option<&Entry>, payload: Bytes, scope: ScopeId, moment: Moment) -> Entry {
    match old {
        Some(old) => Entry { payload, sequence: moment.sequence, ..old.clone() },
        None => Entry {
            life: Life::without_grace(moment.now, after(moment.now, FOR_EVER)),
            cost: 0,
            spread: 0,
            sequence: moment.sequence,
            scope,
            tags: Vec::new(),
            family: 0,
            payload,
            is_mark: false,
        },
    }
}

/// A write to the cache: await it, or [`wait`](Write::wait) for it on a plain thread. Dropped before it resolves, it
/// may or may not happen.
#[derive(Debug)]
#[must_use = "a write that is not awaited may not happen"]
pub struct Write<T>(Pending<Result<T, Error>>);

impl<T> From<Pending<Result<T, Error>>> for Write<T> {
    fn from(pending: Pending<Result<T, Error>>) -> Self {
        Write(pending)
    }
}

impl<T> Write<T> {
    /// Blocks the thread until the write is committed. Not for a runtime's threads.
    ///
    /// # Errors
    ///
    /// As awaiting it.
    pub fn wait(self) -> Result<T, Error> {
        self.0.wait()
    }
}

impl<T> Future for Write<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx)
    }
}

/// A value about to be stored: set its life and tags, then await it, or [`wait`](Insert::wait) on a plain thread.
#[derive(Debug)]
#[must_use = "nothing is stored until it is awaited"]
pub struct Insert {
    scope: Scope,
    name: Vec<u8>,
    payload: Result<Vec<u8>, Error>,
    life: Duration,
    tags: Vec<u64>,
    only_if_absent: bool,
}

impl Insert {
    /// How long the value lives: for ever unless said otherwise.
    pub fn expire(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    /// A tag, by which [`Cache::evict`] finds it; up to 64, further ones are an error.
    pub fn tag(mut self, tag: &str) -> Self {
        self.tags.push(self.scope.tag(tag));
        self
    }

    /// Blocks the thread until the value is committed. Not for a runtime's threads.
    ///
    /// # Errors
    ///
    /// As awaiting it.
    pub fn wait(self) -> Result<bool, Error> {
        self.into_future().wait()
    }

    fn begin(self) -> Result<Pending<Result<bool, Error>>, Error> {
        let Insert { scope, name, payload, life, tags, only_if_absent } = self;
        let payload = Bytes::from(payload?);
        let limit = scope.largest();
        if payload.len() > limit {
            return Err(Error::TooLarge { size: payload.len(), limit });
        }
        if tags.len() > TAGS_MAX {
            return Err(Error::Codec(format!("{} tags, at most {} fit", tags.len(), TAGS_MAX)));
        }
        let (key, id) = (scope.key(Kind::Value, &name), scope.id());
        let lives = move |now| Life::without_grace(now, after(now, life));
        let entry = Entry {
            life: lives(0),
            cost: 0,
            spread: 0,
            sequence: 0,
            scope: id,
            tags,
            family: 0,
            payload,
            is_mark: false,
        };
        if !only_if_absent {
            return Ok(scope.store(key, &name, (entry, Begun::Now), lives, true));
        }
        Ok(scope.edit_of_size(key, &name, entry.payload.len(), move |old, moment| match old {
            Some(_) => (Ok(false), Edit::Keep),
            None => {
                let entry = Entry { life: lives(moment.now), sequence: moment.sequence, ..entry.clone() };
                (Ok(true), Edit::Store(entry))
            }
        }))
    }
}

impl IntoFuture for Insert {
    type Output = Result<bool, Error>;
    type IntoFuture = Write<bool>;

    fn into_future(self) -> Write<bool> {
        Write(self.begin().unwrap_or_else(|error| Pending::ready(Err(error))))
    }
}

impl Scope {
    /// The value under a name, if it is there and alive. A read costs about a microsecond and never waits; a large value
    /// takes as long as it takes to copy, some milliseconds for each ten MiB.
    ///
    /// # Errors
    ///
    /// [`Error::Codec`] if the stored value is no `T`; others if the files cannot be read.
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        let name = name.as_bytes();
        match self.entry(&self.key(Kind::Value, name), name)? {
            Ok((entry, now)) if entry.life.is_fresh(now) => decode(&entry.payload).map(Some),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Stores a value under a name, in place of an older one. Resolves to `true` after the commit.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] above a quarter of the cache's size a shard, [`Error::Codec`] if it cannot be serialised,
    /// [`Error::Busy`] or [`Error::Full`] if it could not be written.
    pub fn insert<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Insert {
        Insert {
            scope: self.clone(),
            name: name.into(),
            payload: encode(value),
            life: FOR_EVER,
            tags: Vec::new(),
            only_if_absent: false,
        }
    }

    /// As [`insert`](Scope::insert), but only where there is nothing: resolves to whether it was stored. Of any number
    /// of callers on the machine, one gets `true`.
    ///
    /// # Errors
    ///
    /// As [`insert`](Scope::insert).
    pub fn add<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Insert {
        Insert { only_if_absent: true, ..self.insert(name, value) }
    }

    /// Removes a value; resolves to whether there was one.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] or [`Error::Full`] if it could not be written.
    pub fn remove(&self, name: &str) -> Write<bool> {
        let name = name.as_bytes();
        Write(self.edit(self.key(Kind::Value, name), name, |old, _| (Ok(old.is_some()), Edit::Remove)))
    }

    /// Gives a living value a new life from now on, `None`: for ever. Resolves to whether there was one.
    ///
    /// # Errors
    ///
    /// As [`remove`](Scope::remove).
    pub fn touch(&self, name: &str, life: Option<Duration>) -> Write<bool> {
        let name = name.as_bytes();
        Write(self.edit(self.key(Kind::Value, name), name, move |old, moment| match old {
            Some(old) => {
                let life = Life::without_grace(old.life.stored, after(moment.now, life.unwrap_or(FOR_EVER)));
                (Ok(true), Edit::Store(Entry { life, sequence: moment.sequence, ..old.clone() }))
            }
            None => (Ok(false), Edit::Keep),
        }))
    }

    /// Adds to a number, 0 where there is none, and resolves to the sum. The value keeps its life and tags. Saturates.
    ///
    /// # Errors
    ///
    /// [`Error::Codec`] if the stored value is no integer; otherwise as [`remove`](Scope::remove).
    pub fn incr(&self, name: &str, delta: i64) -> Write<i64> {
        let (name, id) = (name.as_bytes(), self.id());
        Write(self.edit(self.key(Kind::Value, name), name, move |old, moment| {
            let before = match old.map(|old| decode::<i64>(&old.payload)) {
                None => 0,
                Some(Ok(number)) => number,
                Some(Err(error)) => return (Err(error), Edit::Keep),
            };
            let sum = before.saturating_add(delta);
            let payload = match encode(&sum) {
                Ok(payload) => Bytes::from(payload),
                Err(error) => return (Err(error), Edit::Keep),
            };
            (Ok(sum), Edit::Store(replaced(old, payload, id, moment)))
        }))
    }
}

impl Cache {
    /// [`Scope::get`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::get`].
    pub fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Error> {
        self.root().get(name)
    }

    /// [`Scope::insert`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::insert`].
    pub fn insert<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Insert {
        self.root().insert(name, value)
    }

    /// [`Scope::add`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::insert`].
    pub fn add<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Insert {
        self.root().add(name, value)
    }

    /// [`Scope::remove`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::remove`].
    pub fn remove(&self, name: &str) -> Write<bool> {
        self.root().remove(name)
    }

    /// [`Scope::touch`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::remove`].
    pub fn touch(&self, name: &str, life: Option<Duration>) -> Write<bool> {
        self.root().touch(name, life)
    }

    /// [`Scope::incr`] of the [root](Cache::root) scope.
    ///
    /// # Errors
    ///
    /// As [`Scope::incr`].
    pub fn incr(&self, name: &str, delta: i64) -> Write<i64> {
        self.root().incr(name, delta)
    }
}

#[cfg(test)]
mod tests;
