//! The keys of rows: keyed digests of kind, scope and name.

use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};
use std::hash::Hasher;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Kinds of rows; part of every key, so that a throttle and a barrier of one name never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Scope = 0,
    Tag = 1,
    Throttle = 2,
    Lock = 3,
    Response = 4,
    Value = 5,
    Memo = 6,
    Variant = 7,
    Owner = 8,
    Claim = 9,
    Mark = 10,
}

/// The 16-byte key of a row, with a second, independent digest that is compared with the one in the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) hash: [u8; 16],
    pub(crate) echo: u64,
}

impl Key {
    /// Tells the entries that belong to the name of this key, such as the variants of a response, from those of others.
    pub(crate) fn family(&self) -> u64 {
        self.echo.max(1)
    }
}

/// A scope's share in a key.
pub(crate) type ScopeId = [u8; 16];

/// The random keys of the hashes. Names come from requests: without a secret, collisions can be made on purpose.
#[derive(Clone, Copy)]
pub(crate) struct Secret {
    row: [u8; 16],
    echo: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(crate) const LEN: usize = 32;

    pub(crate) fn new(bytes: [u8; Self::LEN]) -> Self {
        let (row, echo) = bytes.split_at(16);
        let echo: [u8; 16] = echo.try_into().expect("16 bytes");
        let [low, high] = halves(&echo);
        Secret { row: row.try_into().expect("16 bytes"), echo: low ^ high }
    }

    pub(crate) fn scope(&self, name: &str) -> ScopeId {
        self.key(Kind::Scope, &[0; 16], name.as_bytes()).hash
    }

    pub(crate) fn tag(&self, tag: &str) -> u64 {
        // Zero says "no tag".
        (digest(&self.row, Kind::Tag, &[0; 16], tag.as_bytes()) as u64).max(1)
    }

    pub(crate) fn key(&self, kind: Kind, scope: &ScopeId, name: &[u8]) -> Key {
        // A different function altogether: names that collide in one do not collide in the other.
        let [scope_half, _] = halves(scope);
        let echo = xxh3_64_with_seed(name, self.echo ^ scope_half ^ kind as u64);
        let mut hash = digest(&self.row, kind, scope, name).to_le_bytes();
        // The last bytes of a scope's own key are zero; the first bytes tell it from other scopes.
        hash[SCOPE_MARK..].copy_from_slice(&scope[..16 - SCOPE_MARK]);
        Key { hash, echo }
    }

    /// A code that proves that a message was written by a process that knows the secret: SipHash-2-4 of 128 bits, under
    /// a key of its own for each kind and scope.
    pub(crate) fn mac(&self, kind: Kind, scope: &ScopeId, message: &[u8]) -> u128 {
        let key = digest(&self.row, kind, scope, b"").to_le_bytes();
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(message);
        hasher.finish128().as_u128()
    }
}

/// The last bytes of a key tell scopes apart. The order of the keys is that of names, whatever their scope.
const SCOPE_MARK: usize = 12;

/// The part that the keys of one scope have in common, and those of two scopes do not.
pub(crate) fn scope_mark(key: &[u8; 16]) -> &[u8] {
    &key[SCOPE_MARK..]
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*bytes);
    [whole as u64, (whole >> 64) as u64]
}

fn digest(key: &[u8; 16], kind: Kind, scope: &ScopeId, name: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new_with_key(key);
    let mut head = [0; 17];
    head[0] = kind as u8;
    head[1..].copy_from_slice(scope);
    hasher.write(&head);
    hasher.write(name);
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests;
