//! Small in memory: of most things a vertex has exactly one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use sha2::Digest as _;

use super::{CacheId, EdgeId, RequestId};

/// What a vertex is called: short, and different for different digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name(u128);

impl Name {
    /// The first half of the digest's own hash: nobody finds another digest with the same.
    pub(crate) fn of(digest: &str) -> Self {
        let hash = sha2::Sha256::digest(digest.as_bytes());
        let (half, _) = hash.split_at(16);
        Self(
            half.iter()
                .fold(0, |name, byte| name << 8 | u128::from(*byte)),
        )
    }
}

/// By numbers that this crate gives: they are all different in their low bits, and no client
/// chooses them.
pub(crate) type ByNumber<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// Spreads numbers (Fibonacci hashing).
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

/// Adds one to a list that mostly has one: no room is made for more before there are.
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) {
    insert(list, list.len(), value);
}

/// The same at a place.
pub(crate) fn insert<T>(list: &mut Vec<T>, place: usize, value: T) {
    if list.capacity() == 0 {
        list.reserve_exact(1);
    }
    list.insert(place, value);
}

/// What few edges have.
#[derive(Default)]
pub(super) struct Rare {
    /// Results that turned out to be gone, the last one perhaps not yet.
    pub(super) tried: Vec<(Option<CacheId>, Arc<str>)>,
    /// Edges that take its result.
    pub(super) followers: Vec<EdgeId>,
    /// Those who wait for its result.
    pub(super) requests: Vec<RequestId>,
}

static NOTHING_RARE: Rare = Rare {
    tried: Vec::new(),
    followers: Vec::new(),
    requests: Vec::new(),
};

/// A [`Rare`] that takes no room before there is something in it.
#[derive(Default)]
pub(super) struct Seldom(Option<Box<Rare>>);

impl Seldom {
    pub(super) fn get(&self) -> &Rare {
        self.0.as_deref().unwrap_or(&NOTHING_RARE)
    }

    pub(super) fn make(&mut self) -> &mut Rare {
        self.0.get_or_insert_default()
    }

    /// `None` when there is nothing in it.
    pub(super) fn made(&mut self) -> Option<&mut Rare> {
        self.0.as_deref_mut()
    }
}
