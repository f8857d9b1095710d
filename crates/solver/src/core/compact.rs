//! Small in memory: of most things a vertex has exactly one.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use sha2::Digest as _;
use smallvec::SmallVec;

use super::{CacheId, EdgeId, RequestId};

/// What a vertex is called: short, and different for different digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Name([u64; 2]);

impl Name {
    /// The first half of the digest's own hash: nobody finds another digest with the same.
    pub(crate) fn of(digest: &str) -> Self {
        let hash = sha2::Sha256::digest(digest.as_bytes());
        let number = |bytes: &[u8]| {
            let bytes = bytes.iter();
            bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        Self([number(&hash[..8]), number(&hash[8..16])])
    }
}

/// By numbers that this crate gives: they are all different in their low bits, and no client
/// chooses them.
pub(crate) type ByNumber<T> = HashMap<u64, T, BuildHasherDefault<NumberHasher>>;

/// By keys and links, which bring their hashes along.
pub(crate) type ByKey<K, T> = HashMap<K, T, BuildHasherDefault<NumberHasher>>;

/// By what a client may choose: the hash differs from process to process.
pub(crate) type ByName<K, T> = HashMap<K, T, foldhash::fast::RandomState>;

/// Spreads numbers (Fibonacci hashing).
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        let both = self.0.rotate_left(23) ^ number;
        let spread = both.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }
}

/// A list that mostly has one, which takes no room of its own.
pub(crate) type One<T> = SmallVec<[T; 1]>;

/// Adds one to a list that mostly has one: no room is made for more before there are.
pub(crate) fn push<T>(list: &mut Vec<T>, value: T) {
    if list.capacity() == 0 {
        list.reserve_exact(1);
    }
    list.push(value);
}

/// So many numbers that follow each other share a page.
const PAGE: usize = 16;

/// Things by numbers that are given one after the other: what is made one after the other, as
/// the vertices of a graph are, lies side by side, and is gone through in that order. That is
/// what a graph costs that is larger than the processor's cache.
///
/// A page is there as long as one of its things is. The list of pages goes from the lowest number
/// that is there to the highest, and takes half a byte for each number between them.
pub(crate) struct Numbered<T> {
    pages: VecDeque<Option<Box<Page<T>>>>,
    /// The number of the first page.
    first: u64,
    count: usize,
    given: u64,
}

struct Page<T> {
    things: [Option<T>; PAGE],
    count: usize,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            pages: VecDeque::new(),
            first: 0,
            count: 0,
            given: 0,
        }
    }
}

/// The page of a number, and its place there.
fn place(number: u64) -> (u64, usize) {
    let pages = PAGE as u64;
    let place = usize::try_from(number % pages).expect("a page is small");
    (number / pages, place)
}

impl<T> Numbered<T> {
    /// A number that was not given before.
    pub(crate) fn number(&mut self) -> u64 {
        self.given += 1;
        self.given
    }

    /// Where the page with a number is among the pages, if it is not before all of them.
    fn index(&self, page: u64) -> Option<usize> {
        usize::try_from(page.checked_sub(self.first)?).ok()
    }

    pub(crate) fn get(&self, number: &u64) -> Option<&T> {
        let (page, place) = place(*number);
        let page = self.pages.get(self.index(page)?)?.as_ref()?;
        page.things[place].as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: &u64) -> Option<&mut T> {
        let (page, place) = place(*number);
        let index = self.index(page)?;
        let page = self.pages.get_mut(index)?.as_mut()?;
        page.things[place].as_mut()
    }

    pub(crate) fn contains_key(&self, number: &u64) -> bool {
        self.get(number).is_some()
    }

    /// Nothing has the number.
    pub(crate) fn insert(&mut self, number: u64, thing: T) {
        let (page, place) = place(number);
        if self.pages.is_empty() {
            self.first = page;
        }
        while page < self.first {
            self.pages.push_front(None);
            self.first -= 1;
        }
        let index = self.index(page).expect("it is not before the first");
        if self.pages.len() <= index {
            self.pages.resize_with(index + 1, || None);
        }
        let page = self.pages[index].get_or_insert_with(|| {
            Box::new(Page {
                things: std::array::from_fn(|_| None),
                count: 0,
            })
        });
        let before = page.things[place].replace(thing);
        debug_assert!(before.is_none(), "no number is given twice");
        page.count += 1;
        self.count += 1;
    }

    pub(crate) fn remove(&mut self, number: &u64) -> Option<T> {
        let (page, place) = place(*number);
        let index = self.index(page)?;
        let slot = self.pages.get_mut(index)?;
        let page = slot.as_mut()?;
        let thing = page.things[place].take()?;
        page.count -= 1;
        self.count -= 1;
        if page.count == 0 {
            *slot = None;
            while let Some(None) = self.pages.back() {
                self.pages.pop_back();
            }
            while let Some(None) = self.pages.front() {
                self.pages.pop_front();
                self.first += 1;
            }
        }
        Some(thing)
    }

    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// In the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        let pages = (self.first..).zip(&self.pages);
        pages.flat_map(|(number, page)| {
            let things = page.iter().flat_map(|page| &page.things);
            let things = (number * PAGE as u64..).zip(things);
            things.filter_map(|(number, thing)| Some((number, thing.as_ref()?)))
        })
    }

    /// In the order of their numbers.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, thing)| thing)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0 && self.pages.is_empty()
    }
}

impl<T> std::ops::Index<&u64> for Numbered<T> {
    type Output = T;

    fn index(&self, number: &u64) -> &T {
        self.get(number).expect("it is there")
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_come_and_go_and_leave_no_pages() {
        let mut all = Numbered::default();
        let far = 10 * PAGE as u64;
        let numbers: Vec<u64> = (0..far).map(|_| all.number()).collect();
        // Not in order: a number may be used later than those after it.
        let (low, high) = numbers.split_at(numbers.len() / 2);
        for number in high.iter().chain(low) {
            assert_eq!(all.get(number), None);
            all.insert(*number, *number);
        }
        assert_eq!(all.len(), numbers.len());
        assert!(all.iter().all(|(number, thing)| number == *thing));
        assert!(all.values().eq(&numbers), "in their order");
        *all.get_mut(&1).unwrap() = 0;
        assert_eq!(all[&1], 0);
        // All but the first and the last, from the middle to both ends.
        let (first, last) = (numbers[0], far);
        let middle = low.iter().rev().chain(high);
        for number in middle.filter(|number| ![first, last].contains(number)) {
            assert_eq!(all.remove(number), Some(*number));
            assert_eq!(all.remove(number), None);
            assert!(!all.contains_key(number));
        }
        let pages = |all: &Numbered<u64>| all.pages.iter().flatten().count();
        assert_eq!(pages(&all), 2, "only those with something in them");
        assert_eq!(all.remove(&first), Some(0));
        assert_eq!(all.pages.len(), 1, "none before the first");
        assert_eq!(all.remove(&last), Some(last));
        assert!(all.is_empty());
        assert!(all.number() > last, "no number is given twice");
    }
}
