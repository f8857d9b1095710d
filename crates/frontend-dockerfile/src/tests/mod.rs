#![allow(clippy::unwrap_used)]
//! Builds against a bridge that only remembers what it was asked.

mod config;
mod contexts;
mod errors;
mod graph;
mod requests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cooper_frontend::{
    Bridge, BuildOpts, FileRange, Frontend, FrontendError, FrontendResult, ImageOptions, Inputs,
    Reference, ResolvedImage, ResolvedSource, SolveRequest, SourceOptions, Warning, WorkerInfo,
};
use cooper_llb::{CapSet, Digest, Graph, LoadOptions, Op, Vertex, load, platform};
use cooper_proto::{fsutil, pb};

use crate::DockerfileFrontend;

pub(super) const DIGEST: &str =
    "sha256:1111111111111111111111111111111111111111111111111111111111111111";

/// What a build is given, and what it asked for.
#[derive(Default)]
pub(super) struct Fake {
    opts: BuildOpts,
    /// Files by the name of the local source.
    files: BTreeMap<String, BTreeMap<String, String>>,
    images: BTreeMap<String, String>,
    pub(super) warnings: Mutex<Vec<Warning>>,
    pub(super) solved: Mutex<Vec<String>>,
    pub(super) looked_up: Mutex<Vec<(String, ImageOptions)>>,
}

struct FakeReference {
    definition: pb::Definition,
    files: BTreeMap<String, String>,
}

#[async_trait]
impl Reference for FakeReference {
    fn id(&self) -> &str {
        "fake"
    }

    fn definition(&self) -> &pb::Definition {
        &self.definition
    }

    async fn evaluate(&self) -> Result<(), FrontendError> {
        Ok(())
    }

    async fn read_file(
        &self,
        path: &str,
        _range: Option<FileRange>,
    ) -> Result<Vec<u8>, FrontendError> {
        let missing = || FrontendError::NotFound { path: path.into() };
        Ok(self
            .files
            .get(path)
            .ok_or_else(missing)?
            .clone()
            .into_bytes())
    }

    async fn read_dir(&self, _: &str, _: &str) -> Result<Vec<fsutil::Stat>, FrontendError> {
        Ok(Vec::new())
    }

    async fn stat_file(&self, path: &str) -> Result<fsutil::Stat, FrontendError> {
        Err(FrontendError::NotFound { path: path.into() })
    }
}

#[async_trait]
impl Bridge for Fake {
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        let definition = request.definition.unwrap();
        if definition.def.is_empty() {
            return Ok(FrontendResult::default());
        }
        let options = LoadOptions {
            caps: Some(&self.opts.llb_caps),
            ..LoadOptions::default()
        };
        let graph = load(&definition, options).unwrap();
        let root = graph.vertex(graph.root().vertex);
        self.solved.lock().unwrap().push(root.name.clone());
        let files = match &root.op {
            Op::Source(source) => {
                let name = source.identifier.split("://").nth(1).unwrap_or_default();
                self.files.get(name).cloned().unwrap_or_default()
            }
            _ => BTreeMap::new(),
        };
        Ok(FrontendResult::single(Some(Arc::new(FakeReference {
            definition,
            files,
        }))))
    }

    async fn resolve_image_config(
        &self,
        reference: &str,
        options: ImageOptions,
    ) -> Result<ResolvedImage, FrontendError> {
        self.looked_up
            .lock()
            .unwrap()
            .push((reference.to_owned(), options));
        let config = self
            .images
            .get(reference)
            .ok_or_else(|| FrontendError::invalid(format!("{reference}: not found")))?;
        Ok(ResolvedImage {
            reference: reference.to_owned(),
            digest: Some(DIGEST.parse().unwrap()),
            config: config.clone().into_bytes(),
        })
    }

    async fn resolve_source_meta(
        &self,
        source: &pb::SourceOp,
        _options: SourceOptions,
    ) -> Result<ResolvedSource, FrontendError> {
        Ok(ResolvedSource {
            source: source.clone(),
            ..ResolvedSource::default()
        })
    }

    async fn warn(&self, _vertex: &Digest, warning: Warning) -> Result<(), FrontendError> {
        self.warnings.lock().unwrap().push(warning);
        Ok(())
    }

    fn build_opts(&self) -> &BuildOpts {
        &self.opts
    }
}

const ALPINE: &str = r#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:aa"]},"history":[{"created_by":"base"}]}"#;

impl Fake {
    pub(super) fn new(dockerfile: &str) -> Self {
        let mut fake = Self {
            opts: BuildOpts {
                workers: vec![WorkerInfo {
                    platforms: vec![platform::parse("linux/amd64").unwrap()],
                    ..WorkerInfo::default()
                }],
                session_id: "session".into(),
                llb_caps: CapSet::all_llb(),
                gateway_caps: cooper_llb::caps::GATEWAY.iter().copied().collect(),
                ..BuildOpts::default()
            },
            ..Self::default()
        }
        .file("dockerfile", "Dockerfile", dockerfile);
        for name in ["alpine", "busybox"] {
            fake = fake.image(name, ALPINE);
        }
        fake
    }

    pub(super) fn file(mut self, local: &str, path: &str, text: &str) -> Self {
        self.files
            .entry(local.into())
            .or_default()
            .insert(path.into(), text.into());
        self
    }

    pub(super) fn image(mut self, name: &str, config: &str) -> Self {
        let reference = format!("docker.io/library/{name}:latest");
        self.images.insert(reference, config.into());
        self
    }

    pub(super) fn without_cap(mut self, name: &str) -> Self {
        let caps = self.opts.llb_caps.iter().filter(|cap| *cap != name);
        self.opts.llb_caps = caps.collect();
        self
    }

    pub(super) fn run(self, opts: &[(&str, &str)]) -> Outcome {
        let opts = opts
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let fake = Arc::new(self);
        let solve = DockerfileFrontend.solve(fake.clone(), opts, Inputs::new());
        let result = futures::executor::block_on(solve);
        Outcome { fake, result }
    }
}

pub(super) struct Outcome {
    pub(super) fake: Arc<Fake>,
    pub(super) result: Result<FrontendResult, FrontendError>,
}

impl Outcome {
    pub(super) fn definition(&self) -> pb::Definition {
        match &self.result.as_ref().unwrap().reference {
            Some(reference) => reference.definition().clone(),
            None => pb::Definition::default(),
        }
    }

    pub(super) fn graph(&self) -> Graph {
        load(&self.definition(), LoadOptions::default()).unwrap()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let graph = self.graph();
        graph.vertices().iter().map(|v| v.name.clone()).collect()
    }

    /// The last vertex whose name holds `text`: sources have the names of what they are for.
    pub(super) fn vertex(&self, text: &str) -> Vertex {
        let graph = self.graph();
        let found = graph.vertices().iter().rfind(|v| v.name.contains(text));
        found
            .unwrap_or_else(|| panic!("no {text} in {:?}", self.names()))
            .clone()
    }

    pub(super) fn exec(&self, text: &str) -> pb::ExecOp {
        match self.vertex(text).op {
            Op::Exec(exec) => exec,
            _ => panic!("{text} is not an exec"),
        }
    }

    pub(super) fn copy(&self, text: &str) -> pb::FileActionCopy {
        let Op::File(file) = self.vertex(text).op else {
            panic!("{text} is not a file op")
        };
        match file.actions[0].action.clone() {
            Some(pb::file_action::Action::Copy(copy)) => copy,
            other => panic!("{other:?} is not a copy"),
        }
    }

    pub(super) fn attrs(&self, identifier: &str) -> BTreeMap<String, String> {
        let graph = self.graph();
        let sources = graph.vertices().iter().filter_map(|v| match &v.op {
            Op::Source(source) => Some(source.clone()),
            _ => None,
        });
        let found = sources
            .into_iter()
            .find(|s| s.identifier.starts_with(identifier));
        found.unwrap_or_else(|| panic!("no {identifier}")).attrs
    }

    pub(super) fn metadata(&self, key: &str) -> String {
        let metadata = &self.result.as_ref().unwrap().metadata;
        String::from_utf8(metadata[key].clone()).unwrap()
    }

    pub(super) fn image(&self) -> serde_json::Value {
        serde_json::from_str(&self.metadata("containerimage.config")).unwrap()
    }

    pub(super) fn history(&self) -> Vec<String> {
        let image = self.image();
        let history = image["history"].as_array().unwrap();
        let lines = history
            .iter()
            .map(|h| h["created_by"].as_str().unwrap().to_owned());
        lines.collect()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let warnings = self.fake.warnings.lock().unwrap();
        warnings
            .iter()
            .map(|warning| warning.short.clone())
            .collect()
    }

    /// The error with all that it came from, and the first line that it is about.
    pub(super) fn error(&self) -> (String, Option<i32>) {
        let error = self.result.as_ref().unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        let line = error
            .location()
            .and_then(|location| location.ranges.first()?.start.map(|start| start.line));
        (text, line)
    }
}

pub(super) fn build(dockerfile: &str, opts: &[(&str, &str)]) -> Outcome {
    Fake::new(dockerfile).run(opts)
}
