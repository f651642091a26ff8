//! Listings of the locks and their waiters, for people to look at.

use super::{
    holders::{self, HolderRow},
    sequence,
    state::State,
    tables::{LOCKS, row_key},
    update::Local,
    waiting_line::{self, Waiter},
};
use crate::{
    error::Error,
    store::{
        commit::{operation::Operation, pending::Pending},
        lmdb::transaction::Txn,
        record::{
            key::Key,
            row::{Row, decode_any_row},
        },
    },
};
use std::{ops::Bound, sync::Arc};

/// Rows in one transaction at most.
const ROWS: usize = 100;

/// One lock of a listing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'a> {
    pub(crate) key: &'a [u8; 16],
    /// `None`: damaged.
    pub(crate) row: Option<Row<'a>>,
    /// The first waiters; none for a damaged row.
    pub(crate) waiters: &'a [Waiter],
    /// Some of the holders that do not stand in the row.
    pub(crate) holders: &'a [HolderRow],
}

impl State {
    /// Shows `f` at most 100 locks behind the key `after` (`None`: from the first on) with at most `most` waiters and
    /// holders' rows each, all in one snapshot. Returns the answers of `f`, and the last key if there are more. `f` runs in
    /// a transaction, once for each lock or, if that fails, more often.
    pub(crate) fn list_locks<T: Send + 'static>(
        &self,
        after: Option<[u8; 16]>,
        most: usize,
        f: impl FnMut(Listed<'_>) -> Option<T> + Send + 'static,
    ) -> Pending<Result<(Vec<T>, Option<[u8; 16]>), Error>> {
        let listing = Listing {
            local: self.local.clone(),
            after: after.unwrap_or(sequence::KEY),
            most,
            f,
            listed: Vec::new(),
            last: None,
        };
        self.queue.submit(listing, |listing| listing.map(|listing| (listing.listed, listing.last)))
    }
}

struct Listing<F, T> {
    local: Arc<Local>,
    after: [u8; 16],
    most: usize,
    f: F,
    listed: Vec<T>,
    last: Option<[u8; 16]>,
}

impl<F: FnMut(Listed<'_>) -> Option<T>, T> Operation for Listing<F, T> {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        let (txn, after) = (&*txn, self.after);
        let rows = txn.rows(LOCKS, Bound::Excluded(&after[..]), ROWS, |key, bytes| {
            let key = row_key::<16>(key);
            (self.show(txn, &key, bytes), key)
        })?;
        self.last = rows.get(ROWS - 1).map(|row| row.1);
        let listed: Result<Vec<_>, Error> = rows.into_iter().map(|row| row.0).collect();
        self.listed = listed?.into_iter().flatten().collect();
        Ok(false)
    }
}

impl<F: FnMut(Listed<'_>) -> Option<T>, T> Listing<F, T> {
    fn show(&mut self, txn: &Txn<'_>, key: &[u8; 16], bytes: &[u8]) -> Result<Option<T>, Error> {
        let found = decode_any_row(bytes);
        let (waiters, holders) = match found {
            Some((echo, _)) => {
                let key = Key { hash: *key, echo };
                let waiters = waiting_line::read(txn, &key, Bound::Unbounded, self.most, &self.local.damaged)?;
                (waiters, holders::rows(txn, &key, None, self.most)?.into_iter().flatten().collect())
            }
            None => (Vec::new(), Vec::new()),
        };
        Ok((self.f)(Listed { key, row: found.map(|(_, row)| row), waiters: &waiters, holders: &holders }))
    }
}

#[cfg(test)]
mod tests;
