//! Where events go.

use std::sync::{Mutex, PoisonError};

use crate::Event;

/// Carries events to whoever shows or keeps them.
///
/// Emitting never blocks and never fails: a slow listener must not slow a build down, so an
/// implementation queues, merges or drops.
pub trait Sink: Send + Sync {
    /// Takes one event. Events of one vertex arrive in order.
    fn emit(&self, event: Event);
}

/// A sink that nobody looks at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Discard;

impl Sink for Discard {
    fn emit(&self, _: Event) {}
}

/// A sink that keeps everything, for tests and small programs.
#[derive(Debug, Default)]
pub struct Collect {
    events: Mutex<Vec<Event>>,
}

impl Collect {
    /// Everything since the last call, in order.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Sink for Collect {
    fn emit(&self, event: Event) {
        self.events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }
}
