use std::collections::BTreeSet;
use std::sync::PoisonError;

use cooper_dockerfile::{Command, Span, Stage};
use cooper_llb::build::State;
use cooper_proto::pb;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::outline::Capture;
use super::{SharedPaths, StageArgs};
use crate::image::{History, Image};
use crate::named::NamedContext;

const COMMENT: &str = "buildkit.dockerfile.v0";

/// A stage, or an image that is copied from, and how far it is built.
#[derive(Default)]
pub(super) struct StageState {
    /// The stage; the base has its variables expanded.
    pub(super) stage: Stage,
    /// The name that is shown.
    pub(super) name: String,
    pub(super) state: State,
    pub(super) image: Image,
    pub(super) base_image: Option<Image>,
    /// The context that stands in for the stage.
    pub(super) named: Option<NamedContext>,
    pub(super) platform: Option<pb::Platform>,
    /// The stage that it is built on.
    pub(super) base: Option<usize>,
    /// Its instructions were walked through.
    pub(super) dispatched: bool,
    /// Its base image was looked up.
    pub(super) resolved: bool,
    pub(super) onbuild_done: bool,
    /// Stages that it takes files of, and where it says so.
    pub(super) deps: Vec<(usize, Span)>,
    pub(super) args: StageArgs,
    pub(super) commands: Vec<StageCommand>,
    /// Paths of the build context that it uses.
    pub(super) context_paths: BTreeSet<String>,
    /// Paths of its files that are used.
    pub(super) paths: SharedPaths,
    pub(super) ignore_cache: bool,
    /// No stage of the file: an image that is copied from.
    pub(super) unregistered: bool,
    /// Steps that were named, and how many there will be.
    pub(super) step: usize,
    pub(super) steps: usize,
    pub(super) in_onbuild: bool,
    pub(super) capture: Capture,
    /// Seconds since 1970.
    pub(super) epoch: Option<i64>,
    pub(super) workdir_set: bool,
    /// Where the last of each was, for what may be there only once.
    pub(super) entrypoint: Option<Span>,
    pub(super) cmd: Option<Span>,
    pub(super) healthcheck: Option<Span>,
}

/// An instruction of a stage with the stages that it takes files of.
#[derive(Clone)]
pub(super) struct StageCommand {
    pub(super) command: Command,
    /// One for each mount of a `RUN`, one for a `COPY --from`.
    pub(super) sources: Vec<Option<usize>>,
    pub(super) on_build: bool,
}

impl StageState {
    /// An image that is copied from.
    pub(super) fn unregistered(base: &str, span: Span) -> Self {
        Self {
            stage: Stage {
                base: base.to_owned(),
                span,
                ..Stage::default()
            },
            unregistered: true,
            ..Self::default()
        }
    }

    /// Notes that files at a path are used.
    pub(super) fn use_path(&self, path: &str) {
        self.paths
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned());
    }

    /// Begins a stage from what the one that it is built on has become.
    pub(super) fn inherit(&mut self, base: &Self) {
        self.state = base.state.clone();
        self.platform.clone_from(&base.platform);
        self.image = base.image.clone();
        self.image.config.on_build.clear();
        self.base_image.clone_from(&base.base_image);
        self.paths = base.paths.clone();
        self.workdir_set = base.workdir_set;
        self.args.clone_from(&base.args);
    }

    /// Nanoseconds that files are dated by.
    pub(super) fn created(&self) -> Option<i64> {
        self.epoch
            .map(|seconds| seconds.saturating_mul(1_000_000_000))
    }

    /// A line of the image's history. One of a step that ran in the builder says so.
    pub(super) fn commit(&mut self, message: impl Into<String>, layer: bool, built: bool) {
        let mut created_by = message.into();
        if built {
            created_by.push_str(" # buildkit");
        }
        self.image.history.push(History {
            created: self.epoch.and_then(|seconds| {
                let time = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
                time.format(&Rfc3339).ok()
            }),
            created_by,
            author: String::new(),
            comment: COMMENT.into(),
            empty_layer: !layer,
        });
    }

    /// The platform, which is known once the base is.
    pub(super) fn platform<'a>(&'a self, target: &'a pb::Platform) -> &'a pb::Platform {
        self.platform.as_ref().unwrap_or(target)
    }
}
