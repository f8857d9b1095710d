//! What frontends may ask of the engine, for one build.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use cooper_frontend::{
    Bridge, BuildOpts, CacheImport, FrontendError, FrontendResult, ImageOptions, Reference,
    ResolvedImage, ResolvedSource, SolveRequest, SourceOptions, Warning,
};
use cooper_progress::{
    Digest, Event, Position, SourceInfo, SourceRange, Vertex, VertexProgress, VertexWarning,
};
use cooper_proto::pb;
use futures::future::try_join_all;
use prost::Message as _;

use crate::EngineError;
use crate::build::Build;
use crate::engine::{Chosen, is_explained};
use crate::meta;
use crate::reference::LazyRef;

/// The bridge of one build.
pub(crate) struct BuildBridge {
    build: Arc<Build>,
}

impl BuildBridge {
    pub(crate) fn new(build: Arc<Build>) -> Arc<Self> {
        Arc::new(Self { build })
    }

    pub(crate) async fn solve(
        self: &Arc<Self>,
        request: SolveRequest,
    ) -> Result<FrontendResult, EngineError> {
        if request.definition.is_some() && !request.frontend.is_empty() {
            return Err(EngineError::Ambiguous);
        }
        if request
            .source_policies
            .iter()
            .any(|policy| !policy.rules.is_empty())
        {
            return Err(EngineError::SourcePolicy);
        }
        for import in &request.cache_imports {
            self.refuse_import(import);
        }
        // A client that is its own frontend names its options only here.
        if is_explained(&request.frontend_opts) {
            self.build.job.explain();
        }
        let result = if !request.frontend.is_empty() {
            let engine = &self.build.engine;
            let (options, inputs) = (request.frontend_opts, request.frontend_inputs);
            match engine.frontend(&request.frontend, &options)? {
                Chosen::BuiltIn(frontend) => {
                    let bridge: Arc<dyn Bridge> = self.clone();
                    frontend.solve(bridge, options, inputs).await?
                }
                // It comes back here for what it builds.
                Chosen::Image(images) => {
                    Box::pin(images.solve(&self.build, &options, inputs)).await?
                }
            }
        } else {
            let definition = request.definition.filter(|def| !def.def.is_empty());
            FrontendResult::single(definition.map(|definition| {
                let reference: Arc<dyn Reference> = LazyRef::new(&self.build, definition);
                reference
            }))
        };
        if request.evaluate {
            let all = result.references.values().chain([&result.reference]);
            try_join_all(all.flatten().map(|reference| reference.evaluate())).await?;
        }
        Ok(result)
    }

    /// A cache that cannot be looked into is a vertex that failed, and not a failed build.
    fn refuse_import(&self, import: &CacheImport) {
        let from = import.attrs.get("ref").or_else(|| import.attrs.get("src"));
        let from = from.unwrap_or(&import.kind);
        let name = format!("importing cache manifest from {from}");
        let now = Some(SystemTime::now());
        self.build.sink.emit(Event::Vertex(Vertex {
            digest: cooper_llb::digest_of(name.as_bytes()),
            inputs: Vec::new(),
            name,
            cached: false,
            started: now,
            completed: now,
            error: format!("unknown cache importer: {}", import.kind),
            progress_group: None,
        }));
    }
}

#[async_trait]
impl Bridge for BuildBridge {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        // A frontend that is asked for by a frontend gets a bridge of its own to keep.
        let bridge = Self::new(self.build.clone());
        match BuildBridge::solve(&bridge, request).await {
            Ok(result) => Ok(result),
            Err(EngineError::Frontend(error)) => Err(error),
            Err(error) => Err(FrontendError::bridge(error.to_string(), error)),
        }
    }

    async fn resolve_image_config(
        &self,
        reference: &str,
        options: ImageOptions,
    ) -> Result<ResolvedImage, FrontendError> {
        meta::image_config(&self.build, reference, options).await
    }

    async fn resolve_source_meta(
        &self,
        source: &pb::SourceOp,
        options: SourceOptions,
    ) -> Result<ResolvedSource, FrontendError> {
        meta::source_meta(&self.build, source, options).await
    }

    async fn warn(&self, vertex: &Digest, warning: Warning) -> Result<(), FrontendError> {
        let progress = VertexProgress::new(vertex.clone(), self.build.sink.clone());
        progress.warn(VertexWarning {
            vertex: vertex.clone(),
            level: warning.level.into(),
            short: warning.short.into(),
            detail: warning.detail.into_iter().map(Into::into).collect(),
            url: warning.url,
            info: warning.source.map(|info| Arc::new(source_info(&info))),
            ranges: warning.ranges.iter().map(source_range).collect(),
        });
        Ok(())
    }

    fn build_opts(&self) -> &BuildOpts {
        &self.build.opts
    }
}

fn source_info(info: &pb::SourceInfo) -> SourceInfo {
    let definition = info.definition.as_ref();
    SourceInfo {
        filename: info.filename.clone(),
        data: info.data.clone().into(),
        language: info.language.clone(),
        definition: definition
            .map(|definition| definition.encode_to_vec().into())
            .unwrap_or_default(),
    }
}

fn source_range(range: &pb::Range) -> SourceRange {
    let position = |position: &Option<pb::Position>| {
        let position = position.unwrap_or_default();
        Position {
            line: position.line,
            character: position.character,
        }
    };
    SourceRange {
        start: position(&range.start),
        end: position(&range.end),
    }
}
