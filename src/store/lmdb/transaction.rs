//! Transactions that cannot leave the function that began them.

use super::{
    error::{from_commit, from_heed},
    gate::Gate,
};
use crate::error::Error;
use heed::{Database, RoTxn, RwTxn, types::Bytes};
use std::{marker::PhantomData, ops::Bound};

/// One table of heed's.
pub(super) type Db = Database<'static, Bytes, Bytes>;

/// A table of an environment, by its place in [`Options::tables`](super::opening::Options::tables).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table(pub(crate) usize);

/// The reads of a read transaction or of a write transaction.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'e> {
    pub(super) ro: &'e RoTxn<'e>,
    pub(super) tables: &'e [Db],
    pub(super) seen: u64,
}

/// Bits of a transaction's number within its generation.
const WITHIN: u32 = 40;

/// The number of a transaction over all generations: those of a later generation are greater.
pub(super) fn over_all(generation: u64, transaction: u64) -> u64 {
    generation << WITHIN | transaction
}

impl<'e> Reader<'e> {
    /// The last committed transaction that its snapshot contains, over all generations.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&'e [u8]>, Error> {
        self.tables[table.0].get(self.ro, key).map_err(from_heed)
    }

    /// The row of a key or, if there is none, the one before it.
    pub(crate) fn at_or_before(&self, table: Table, key: &[u8]) -> Result<Option<(&'e [u8], &'e [u8])>, Error> {
        self.tables[table.0].get_lower_than_or_equal_to(self.ro, key).map_err(from_heed)
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, Error> {
        self.tables[table.0].len(self.ro).map_err(from_heed)
    }

    #[cfg(test)]
    pub(crate) fn all(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.tables[table.0].iter(self.ro).unwrap();
        rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }
}

/// A write transaction.
pub(crate) struct Txn<'e> {
    rw: RwTxn<'e>,
    tables: &'e [Db],
    generation: u64,
    gate: &'e Gate,
    written: bool,
    /// Bytes of all rows that were put.
    put: u64,
    _this_thread: PhantomData<*const ()>,
}

impl<'e> Txn<'e> {
    pub(super) fn new(rw: RwTxn<'e>, tables: &'e [Db], generation: u64, gate: &'e Gate) -> Txn<'e> {
        Txn { rw, tables, generation, gate, written: false, put: 0, _this_thread: PhantomData }
    }

    /// Commits. Returns whether anything was written: LMDB gives no number to a transaction in which nothing was.
    pub(super) fn commit(self) -> Result<bool, Error> {
        self.rw.commit().map_err(from_commit)?;
        Ok(self.written)
    }

    /// Bytes of all rows that were put so far: the file may grow by as much.
    pub(crate) fn bytes_put(&self) -> u64 {
        self.put
    }

    /// A reader, which also sees what this transaction has written.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader { ro: &self.rw, tables: self.tables, seen: self.last() }
    }

    /// The last committed transaction that it sees. `None`: it also sees its own writes, which may never be committed.
    pub(crate) fn seen(&self) -> Option<u64> {
        (!self.written).then(|| self.last())
    }

    fn last(&self) -> u64 {
        over_all(self.generation, self.rw.id() as u64 - 1)
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.reader().get(table, key)
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.written = true;
        self.put += (key.len() + value.len()) as u64;
        self.tables[table.0].put(&mut self.rw, key, value).map_err(from_heed)
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, Error> {
        let deleted = self.tables[table.0].delete(&mut self.rw, key).map_err(from_heed)?;
        self.written |= deleted;
        Ok(deleted)
    }

    /// Up to `most` rows from `from` on, each as `f` converts it.
    pub(crate) fn rows<T>(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        most: usize,
        mut f: impl FnMut(&[u8], &[u8]) -> T,
    ) -> Result<Vec<T>, Error> {
        self.rows_within(table, (from, Bound::Unbounded), most, |key, value| Some(f(key, value)))
    }

    /// The first `most` rows of a range that `f` keeps.
    pub(crate) fn rows_within<T>(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        most: usize,
        mut f: impl FnMut(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let rows = self.tables[table.0].range(&self.rw, &range).map_err(from_heed)?;
        let kept = rows.filter_map(|row| row.map(|(key, value)| f(key, value)).map_err(from_heed).transpose());
        kept.take(most).collect()
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, Error> {
        self.reader().len(table)
    }

    /// The row under a key. If there is none, the next row, or the previous row where there is no next one.
    pub(crate) fn get_or_beside(&self, table: Table, key: &[u8]) -> Result<Option<(&[u8], &[u8])>, Error> {
        let table = &self.tables[table.0];
        match table.get_greater_than_or_equal_to(&self.rw, key).map_err(from_heed)? {
            None => table.get_lower_than(&self.rw, key).map_err(from_heed),
            found => Ok(found),
        }
    }

    /// The latest end of a lease that was ever granted in the directory, in ns of machine time.
    pub(crate) fn latest_lease_end(&self) -> u64 {
        self.gate.latest_lease_end()
    }

    /// Notes the end of a lease that this transaction grants or renews: called before its commit.
    pub(crate) fn raise_lease_end(&self, end: u64) {
        self.gate.raise_lease_end(end);
    }

    /// The generation that it changes.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// See [`Gate::grants_from`].
    pub(crate) fn grants_from(&self) -> u64 {
        self.gate.grants_from()
    }

    /// See [`Gate::spent_since`].
    pub(crate) fn spent_since(&self, now: u64) -> Option<u64> {
        self.gate.spent_since(now)
    }

    /// The last number that any transaction may have drawn.
    pub(crate) fn last_number(&self) -> u64 {
        self.gate.last_number()
    }

    /// Notes the last number that this transaction draws: called before its commit.
    pub(crate) fn raise_last_number(&self, number: u64) {
        self.gate.raise_last_number(number);
    }

    /// Pages that the rows of a table occupy.
    pub(crate) fn pages(&self, table: Table) -> Result<usize, Error> {
        let stat = self.tables[table.0].stat(&self.rw).map_err(from_heed)?;
        Ok(stat.branch_pages + stat.leaf_pages + stat.overflow_pages)
    }
}
