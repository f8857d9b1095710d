//! Some of the inputs, once all of them are there: by it a result depends on what is not in it
//! (`solver/llbsolver/ops/passthrough.go` in BuildKit).

use std::sync::Arc;

use async_trait::async_trait;
use cooper_proto::pb;
use cooper_solver::{CacheMap, Description, Op, OpContext, OpError, Vertex};

use crate::OpsError;
use crate::env::{Build, Env, Output};
use crate::numbers::{cache_map, described, text};

const PASSTHROUGH: &str = "buildkit.passthrough.v0";

/// Gives inputs on as they are.
pub(crate) struct PassthroughOp {
    pub(crate) env: Arc<Env>,
    pub(crate) op: pb::PassthroughOp,
    /// How many there are.
    pub(crate) inputs: usize,
}

#[async_trait]
impl Op<Build> for PassthroughOp {
    async fn cache_map(&self, _: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let text = text(PASSTHROUGH, "Passthrough", &self.op);
        Ok(cache_map(&self.env, &text, self.inputs))
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        let text = text(PASSTHROUGH, "Passthrough", &self.op);
        Some(described("passthrough", &text, vertex))
    }

    async fn execute(
        &self,
        _: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpError> {
        let given = |index: &i64| {
            let input = usize::try_from(*index).ok();
            let input = input.and_then(|index| inputs.get(index));
            input.cloned().ok_or_else(|| {
                OpsError::invalid(format!("invalid passthrough output input index {index}"))
            })
        };
        let outputs = self.op.outputs.iter().map(given);
        Ok(outputs.collect::<Result<Vec<_>, OpsError>>()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_go() {
        let op = pb::PassthroughOp {
            id: "a".into(),
            outputs: vec![0, 2],
        };
        assert_eq!(
            text(PASSTHROUGH, "Passthrough", &op),
            r#"{"Type":"buildkit.passthrough.v0","Passthrough":{"id":"a","outputs":[0,2]}}"#
        );
    }
}
