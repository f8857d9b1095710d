//! Changes to files, without a container: copy, make, remove, link.

mod act;
mod copy;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod key;
mod mode;
mod owner;
mod paths;
mod plan;
mod run;
mod unpack;

use std::sync::Arc;

use async_trait::async_trait;
use cooper_content::PlaintextKind;
use cooper_proto::pb;
use cooper_solver::{CacheDep, CacheMap, Description, Op, OpContext, OpError, Vertex};

use crate::content::ContentHash;
use crate::describe;
use crate::env::{Build, Env, InputVertices, Output};

pub(crate) struct FileOp {
    env: Arc<Env>,
    op: pb::FileOp,
    name: String,
    inputs: InputVertices,
}

impl FileOp {
    pub(crate) fn new(env: Arc<Env>, op: pb::FileOp, name: String, inputs: InputVertices) -> Self {
        Self {
            env,
            op,
            name,
            inputs,
        }
    }
}

#[async_trait]
impl Op<Build> for FileOp {
    async fn cache_map(&self, _: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let key = key::of(&self.op, self.inputs.len())?;
        let deps = key.deps.into_iter().enumerate().map(|(input, dep)| {
            let Some(dep) = dep else {
                return CacheDep::default();
            };
            CacheDep {
                selector: Some(
                    self.env
                        .key_digest(PlaintextKind::StringList, &dep.selector),
                ),
                content: Some(Arc::new(ContentHash {
                    env: self.env.clone(),
                    vertices: self.inputs.clone(),
                    input,
                    selectors: dep.selectors,
                }) as _),
            }
        });
        Ok(CacheMap {
            digest: self
                .env
                .key_digest(PlaintextKind::Json, key.text.as_bytes()),
            deps: deps.collect(),
            last: true,
        })
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        // A copy is no other form of a new folder.
        let first = self.op.actions.first().map(describe::action_name);
        let kind = format!("file {}", first.unwrap_or_default());
        let mut description = describe::begin(&kind, vertex);
        key::describe(&self.op, self.inputs.len(), &mut description);
        Some(description)
    }

    async fn execute(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpError> {
        Ok(self.run(cx, inputs).await?)
    }
}
