//! Processes in containers.

mod key;
mod run;

pub use run::secret_variables;

use std::sync::Arc;

use async_trait::async_trait;
use cooper_content::PlaintextKind;
use cooper_proto::pb;
use cooper_solver::{CacheDep, CacheMap, Description, Op, OpContext, OpError, Vertex};

use crate::content::ContentHash;
use crate::env::{Build, Env, InputVertices, Output};
use crate::{OpsError, describe};

pub(crate) struct ExecOp {
    env: Arc<Env>,
    op: pb::ExecOp,
    platform: pb::Platform,
    inputs: InputVertices,
}

impl ExecOp {
    pub(crate) fn new(
        env: Arc<Env>,
        op: pb::ExecOp,
        platform: pb::Platform,
        inputs: InputVertices,
    ) -> Result<Self, OpsError> {
        // Told when the graph is loaded and not only when it is too late.
        key::mount_deps(&op, inputs.len())?;
        Ok(Self {
            env,
            op,
            platform,
            inputs,
        })
    }

    fn meta(&self) -> &pb::Meta {
        self.op
            .meta
            .as_ref()
            .expect("a graph without it is not loaded")
    }
}

#[async_trait]
impl Op<Build> for ExecOp {
    async fn cache_map(&self, _: &OpContext<Build>, _: usize) -> Result<CacheMap<Build>, OpError> {
        let deps = key::mount_deps(&self.op, self.inputs.len())?;
        let deps = deps.into_iter().enumerate().map(|(input, dep)| CacheDep {
            selector: dep.selector().map(|text| {
                self.env
                    .key_digest(PlaintextKind::StringList, text.as_bytes())
            }),
            content: dep.content_based.then(|| {
                Arc::new(ContentHash {
                    env: self.env.clone(),
                    vertices: self.inputs.clone(),
                    input,
                    selectors: dep.content_selectors(),
                }) as _
            }),
        });
        Ok(CacheMap {
            digest: self.env.key_digest(
                PlaintextKind::Json,
                key::json(&self.op, &self.platform).as_bytes(),
            ),
            deps: deps.collect(),
            last: true,
        })
    }

    fn describe(&self, vertex: &Vertex<Build>) -> Option<Description> {
        let mut description = describe::begin("exec", vertex);
        describe::exec(&key::json(&self.op, &self.platform), &mut description);
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
