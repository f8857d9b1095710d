use std::mem;
use std::sync::{Arc, OnceLock};

use cooper_proto::pb;

use super::Constraints;
use super::exec::ExecNode;
use super::file::FileStep;

/// One output of an operation.
#[derive(Clone, Debug)]
pub struct Output {
    pub(super) node: Arc<Node>,
    pub(super) index: i64,
}

/// An output that is filled in later: a build context whose filter is known when the last `COPY`
/// has been seen.
#[derive(Clone, Debug, Default)]
pub struct Deferred(Arc<OnceLock<Option<Output>>>);

impl Deferred {
    /// Fills it in. Only the first time counts.
    pub fn fill(&self, output: Option<Output>) {
        let _ = self.0.set(output);
    }

    /// Fills it in with what `make` gives, unless it is.
    pub fn fill_with(&self, make: impl FnOnce() -> Option<Output>) {
        self.0.get_or_init(make);
    }

    pub(super) fn get(&self) -> Option<&Output> {
        self.0.get()?.as_ref()
    }
}

/// An operation that is not yet written.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// What it takes; the kinds refer to these by place.
    pub(super) inputs: Vec<Output>,
    pub(super) constraints: Constraints,
}

#[derive(Debug)]
pub(super) enum Kind {
    Source(pb::SourceOp),
    Exec(Box<ExecNode>),
    File(Vec<FileStep>),
    Merge,
    Diff {
        lower: bool,
        upper: bool,
    },
    Deferred(Deferred),
    /// Operations that somebody else wrote, and the digest of the one that is meant.
    Written(Arc<pb::Definition>, String),
}

impl Node {
    pub(super) fn output(self, index: i64) -> Output {
        Output {
            node: Arc::new(self),
            index,
        }
    }
}

/// A chain of operations is as long as its author likes: it is taken apart in a loop.
impl Drop for Node {
    fn drop(&mut self) {
        let mut left = mem::take(&mut self.inputs);
        while let Some(output) = left.pop() {
            if let Some(mut node) = Arc::into_inner(output.node) {
                left.append(&mut node.inputs);
            }
        }
    }
}
