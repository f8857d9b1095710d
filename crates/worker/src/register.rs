//! Registration before `main`.

use std::future::Future;
use std::pin::Pin;

use crate::{Context, Worker, WorkerError};

/// What an initialiser returns: none when it is switched off or cannot work on this machine
/// and was not asked to by name.
pub type WorkersFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Vec<Worker>, WorkerError>> + Send + 'a>>;

/// Makes workers at start. It is only a name, a number and a function: nothing runs before
/// `main` but its insertion into a list.
pub struct WorkerInitializer {
    /// Names its settings ([`Context::settings`]), and who it is in messages.
    pub name: &'static str,
    /// Lower comes first; of equal ones the lower name.
    pub priority: i32,
    /// Makes them.
    pub init: fn(&Context) -> WorkersFuture<'_>,
}

inventory::collect!(WorkerInitializer);

/// All initialisers that are linked into this program, in the order in which they are run. The
/// order of registration means nothing.
pub fn registered() -> Vec<&'static WorkerInitializer> {
    let mut all: Vec<_> = inventory::iter::<WorkerInitializer>.into_iter().collect();
    all.sort_by_key(|known| (known.priority, known.name));
    all
}
