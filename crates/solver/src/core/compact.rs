//! Small in memory: of most things a vertex has exactly one.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

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
