//! Laying states over one another, and the changes between two of them.
//!
//! Both are made of the refs that their inputs stand on: a merge puts the changes of each on top
//! of each other, and the changes between two states are those of the refs that one has more than
//! the other. So they are lazy: nothing is read or written before somebody reads the result.

use std::sync::Arc;

use async_trait::async_trait;
use cooper_cache::{CacheManager, ImmutableRef, RecordOptions};
use cooper_layer::{CompressionOptions, pack};
use cooper_proto::pb;
use cooper_solver::{CacheMap, Description, Op, OpContext, OpError, Vertex};

use crate::OpsError;
use crate::env::{Build, Env, InputVertices, Output, localize};
use crate::numbers::{cache_map, described, text};

const MERGE: &str = "buildkit.merge.v0";
const DIFF: &str = "buildkit.diff.v0";

/// What both work with.
pub(crate) struct Layers {
    pub(crate) env: Arc<Env>,
    pub(crate) name: String,
    pub(crate) inputs: InputVertices,
}

impl Layers {
    fn options(&self) -> RecordOptions {
        RecordOptions {
            description: self.name.clone(),
            ..RecordOptions::default()
        }
    }

    /// The changes of each of `states`, one after the other, on top of `state`.
    async fn on(&self, mut state: Output, states: &[ImmutableRef]) -> Result<Output, OpsError> {
        let cache: &CacheManager = &self.env.cache;
        for over in states {
            state = Some(cache.stack(state.as_ref(), over, self.options()).await?);
        }
        Ok(state)
    }
}

/// Lays its inputs over one another: later ones win.
pub(crate) struct MergeOp {
    pub(crate) layers: Layers,
    pub(crate) op: pb::MergeOp,
}

#[async_trait]
impl Op<Build> for MergeOp {
    async fn cache_map(&self, _: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let text = text(MERGE, "Merge", &self.op);
        Ok(cache_map(&self.layers.env, &text, self.layers.inputs.len()))
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        let text = text(MERGE, "Merge", &self.op);
        Some(described("merge", &text, vertex))
    }

    async fn execute(
        &self,
        _: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpError> {
        let mut states = inputs.iter().flatten();
        let mut merged = states.next().cloned();
        for state in states {
            merged = self.layers.on(merged, &state.chain()).await?;
        }
        Ok(vec![merged])
    }
}

/// The changes from one input to another.
pub(crate) struct DiffOp {
    pub(crate) layers: Layers,
    pub(crate) op: pb::DiffOp,
}

impl DiffOp {
    async fn diff(&self, cx: &OpContext<Build>, inputs: &[Output]) -> Result<Output, OpsError> {
        let index = |input: Option<i64>| input.and_then(|index| usize::try_from(index).ok());
        let lower_index = index(self.op.lower.as_ref().map(|lower| lower.input));
        let upper_index = index(self.op.upper.as_ref().map(|upper| upper.input));
        let state = |index: Option<usize>| index.and_then(|index| inputs.get(index)?.as_ref());
        let (lower, upper) = (state(lower_index), state(upper_index));
        let Some(lower) = lower else {
            return Ok(upper.cloned());
        };
        if let Some(upper) = upper {
            let chain = upper.chain();
            if let Some(place) = chain.iter().position(|below| below == lower) {
                return self.layers.on(None, &chain[place + 1..]).await;
            }
        }
        // Strangers: only their files tell what differs.
        let _leave = self.layers.env.acquire().await;
        let (env, vertices) = (&self.layers.env, &self.layers.inputs);
        let bring = |index: Option<usize>, state: Option<&ImmutableRef>| {
            let state = state.cloned();
            async move { localize(env, cx, vertices, index.unwrap_or(0), &state).await }
        };
        let (lower, upper) = (
            bring(lower_index, Some(lower)).await?,
            bring(upper_index, upper).await?,
        );
        let nothing = env
            .cache
            .new_mutable(None, RecordOptions::default())
            .await?;
        let mounts = |state: Option<cooper_cache::LocalRef>| {
            let nothing = &nothing;
            async move {
                match &state {
                    Some(state) => state.mounts().await,
                    None => nothing.mounts().await,
                }
                .map(|mounts| (mounts, state))
            }
        };
        // The states are held as long as their mounts are used.
        let (lower_mounts, _lower) = mounts(lower).await?;
        let (upper_mounts, _upper) = mounts(upper).await?;
        let name = format!("diff-{}", nothing.id());
        let options = CompressionOptions::default();
        // Where a process that is killed here has its mounts swept.
        let scratch = env.cache.mounts_dir();
        let (lower, upper) = (lower_mounts, upper_mounts);
        let layer = pack::pack_in(&env.content, &name, lower, upper, &options, scratch).await?;
        let made = env.cache.get_by_blob(None, layer, self.layers.options());
        Ok(Some(made.await?))
    }
}

#[async_trait]
impl Op<Build> for DiffOp {
    async fn cache_map(&self, _: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let text = text(DIFF, "Diff", &self.op);
        Ok(cache_map(&self.layers.env, &text, self.layers.inputs.len()))
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        let text = text(DIFF, "Diff", &self.op);
        Some(described("diff", &text, vertex))
    }

    async fn execute(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpError> {
        Ok(vec![self.diff(cx, inputs).await?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_go() {
        let merge = pb::MergeOp {
            inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
        };
        let expected = r#"{"Type":"buildkit.merge.v0","Merge":{"inputs":[{},{"input":1}]}}"#;
        assert_eq!(text(MERGE, "Merge", &merge), expected);
        let diff = pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: 0 }),
            upper: Some(pb::UpperDiffInput { input: 1 }),
        };
        let expected = r#"{"Type":"buildkit.diff.v0","Diff":{"lower":{},"upper":{"input":1}}}"#;
        assert_eq!(text(DIFF, "Diff", &diff), expected);
    }
}
