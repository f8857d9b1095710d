//! A Dockerfile to a graph and an image configuration (`frontend/dockerfile/dockerfile2llb`).
//!
//! A conversion reads the text, makes a stage of each `FROM` (and of each image that is copied
//! from), finds out which stages the target needs, resolves their base images, and then walks
//! through their instructions in order.
//!
//! Modules in reading order: `stage` (what is known of one), `args` (variables before the first
//! stage), `plan` (which stages there are and what they need), `resolve` (base images), `walk`
//! (instruction by instruction), `expand`, `config`, `expose`, `run`, `mounts`, `copy` (what each
//! does), `names` (what a user reads), `checks` (warnings).

mod args;
mod checks;
mod config;
mod copy;
mod epoch;
mod expand;
mod expose;
mod ignored;
mod mounts;
mod names;
mod outline;
mod plan;
mod resolve;
mod run;
mod signal;
mod stage;
mod walk;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cooper_dockerfile::{Arg, Lex, Span, parse, program};
use cooper_frontend::FrontendError;
use cooper_llb::build::{Deferred, EnvList, MarshalOptions, State};
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_session::pattern::Matcher;

pub(crate) use outline::Outline;

use crate::context::{Request, TOP};
use crate::image::Image;
use crate::lint::{self, Lint, LintConfig};
use crate::named::PendingLocal;
use crate::source::Source;

use outline::Capture;
use stage::StageState;

type Result<T, E = FrontendError> = std::result::Result<T, E>;

/// What stands for bytes that are no text, in UTF-8.
const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// What a conversion gives.
pub(crate) struct Converted {
    pub(crate) definition: pb::Definition,
    pub(crate) image: Image,
    /// The base image's own configuration.
    pub(crate) base: Option<Image>,
    /// Seconds since 1970 that it is dated by.
    pub(crate) epoch: Option<i64>,
}

/// The platforms of one conversion.
#[derive(Clone, Debug)]
pub(crate) struct Platforms {
    pub(crate) build: pb::Platform,
    pub(crate) target: pb::Platform,
    /// Nobody asked for the target: it is the builder's own.
    pub(crate) implicit: bool,
}

/// One conversion.
pub(crate) struct Converter<'a> {
    request: &'a Request,
    source: &'a Source,
    platforms: Platforms,
    /// Build everything, for the sake of warnings.
    all_stages: bool,
    lint: &'a mut Lint,
    lex: Lex,
    /// The client's arguments, which an epoch may have been resolved in.
    build_args: BTreeMap<String, String>,
    global_args: EnvList,
    /// Seconds since 1970 that everything is dated by.
    epoch: Option<i64>,
    proxy: Option<pb::ProxyEnv>,
    stages: Vec<StageState>,
    by_name: HashMap<String, usize>,
    context: Deferred,
    ignore: Option<Matcher>,
    pending: Vec<PendingLocal>,
    capture: Capture,
}

/// The configuration of the checks: the client's, or that of the `check` directive.
pub(crate) fn lint_config(request: &Request, source: &Source) -> Result<LintConfig> {
    if let Some(config) = &request.options.lint {
        return Ok(config.clone());
    }
    let directive = cooper_dockerfile::directive("check", source.text());
    let text = directive.map(|found| found.value).unwrap_or_default();
    LintConfig::parse(&text)
        .map_err(|error| FrontendError::invalid(format!("failed to parse check options: {error}")))
}

impl<'a> Converter<'a> {
    pub(crate) fn new(
        request: &'a Request,
        source: &'a Source,
        target: Option<&pb::Platform>,
        lint: &'a mut Lint,
    ) -> Self {
        let options = &request.options;
        Self {
            request,
            source,
            platforms: Platforms {
                build: options.build_platform.clone(),
                target: target.unwrap_or(&options.build_platform).clone(),
                implicit: target.is_none(),
            },
            all_stages: false,
            lint,
            lex: Lex::new('\\'),
            build_args: options.build_args.clone(),
            global_args: EnvList::default(),
            epoch: None,
            proxy: args::proxy(&options.build_args),
            stages: Vec::new(),
            by_name: HashMap::new(),
            context: Deferred::default(),
            ignore: None,
            pending: Vec::new(),
            capture: Capture::default(),
        }
    }

    /// Also builds what the target does not need.
    pub(crate) fn all_stages(mut self, all: bool) -> Self {
        self.all_stages = all;
        self
    }

    /// The graph and the configuration of the target.
    pub(crate) async fn convert(mut self) -> Result<Converted> {
        let target = self.run().await?;
        let defaults = MarshalOptions {
            platform: Some(self.platforms.target.clone()),
            ..self.request.marshal_options()
        };
        let stage = &mut self.stages[target];
        let definition = stage.state.marshal(&defaults);
        let mut ops = definition.def.iter();
        if std::str::from_utf8(self.source.text()).is_err()
            && ops.any(|op| {
                op.windows(REPLACEMENT.len())
                    .any(|part| part == REPLACEMENT)
            })
        {
            return Err(FrontendError::invalid(
                "failed to marshal LLB definition: string field contains invalid UTF-8",
            ));
        }
        Ok(Converted {
            definition,
            image: std::mem::take(&mut stage.image),
            base: stage.base_image.take(),
            epoch: self.epoch,
        })
    }

    /// What parameters the target takes.
    pub(crate) async fn outline(mut self) -> Result<Outline> {
        let target = self.run().await?;
        Ok(outline::of(&self.stages, target, self.source.text()))
    }

    /// All that only leaves warnings behind.
    pub(crate) async fn check(mut self) -> Result<()> {
        self.run().await.map(|_| ())
    }

    /// Converts, and gives the place of the target.
    async fn run(&mut self) -> Result<usize> {
        if self.source.text().is_empty() {
            return Err(FrontendError::invalid("the Dockerfile cannot be empty"));
        }
        let parsed = |error| self.source.parse_error(&error);
        let dockerfile = parse(self.source.text()).map_err(parsed)?;
        self.lex = Lex::new(dockerfile.escape);
        for span in &dockerfile.empty_continuations {
            self.lint.warn(
                &lint::NO_EMPTY_CONTINUATION,
                *span,
                "Empty continuation line",
            );
        }
        let program = program(&dockerfile).map_err(parsed)?;
        checks::program(&program, self.lint);
        let Some(last) = program.stages.last() else {
            return Err(FrontendError::invalid(
                "dockerfile contains no stages to build",
            ));
        };
        let wanted = match self.request.options.target.as_str() {
            "" => last.name.as_str(),
            target => target,
        };
        self.global_args = args::predefined(&self.platforms, &self.build_args, wanted);
        self.check_default_bases(&program);
        self.global_arguments(&program.arguments)?;
        self.resolve_epoch(&program.stages).await?;

        self.make_stages(program.stages)?;
        let target = self.target()?;
        self.connect()?;
        // What is ignored takes a trip to the client, which the registry's does not wait for.
        let request = self.request;
        let (reachable, _) = futures::try_join!(self.resolve(target), request.ignore_patterns())?;
        self.walk(&reachable).await?;
        self.finish(target).await?;
        Ok(target)
    }

    /// An error about some lines.
    fn invalid(&self, span: Span, message: impl Into<String>) -> FrontendError {
        self.source.invalid(span, message)
    }

    /// Fills in what had to wait for all stages.
    async fn finish(&mut self, target: usize) -> Result<()> {
        // All of the target is used.
        self.stages[target].use_path("/");
        let labels = self.request.options.labels.clone();
        self.stages[target].image.config.labels.extend(labels);
        if let Some(message) = self.lint.error() {
            let span = self.lint.warnings.first().map_or(TOP, |w| w.span);
            return Err(self.invalid(span, message));
        }
        let mut paths = BTreeSet::new();
        for stage in &self.stages {
            paths.extend(stage.context_paths.iter().cloned());
        }
        let follow = crate::named::follow_paths(&paths);
        let context = self.request.main_context(follow).await?;
        self.context.fill(context.output().cloned());
        for pending in self.pending.drain(..) {
            pending.finish();
        }
        let image = &mut self.stages[target].image;
        if !self.platforms.implicit {
            let wanted = &self.platforms.target;
            let same = wanted.os == image.os && wanted.architecture == image.architecture;
            image.os.clone_from(&wanted.os);
            image.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                image.variant.clone_from(&wanted.variant);
            }
            if !wanted.os_version.is_empty() || !same {
                image.os_version.clone_from(&wanted.os_version);
            }
            if !wanted.os_features.is_empty() {
                image.os_features.clone_from(&wanted.os_features);
            }
        }
        let normal = platform::normalize(&image.platform());
        image.set_platform(&normal);
        Ok(())
    }

    /// The state of the build context, which is filled in at the end.
    fn context_state(&self) -> State {
        State::deferred(&self.context)
    }

    fn has_cap(&self, name: &str) -> bool {
        self.request.build_opts().llb_caps.contains(name)
    }
}

/// Arguments of a stage with the values that they have there.
type StageArgs = Vec<Arg>;

/// Paths shared by a stage and those built on it.
type SharedPaths = Arc<std::sync::Mutex<BTreeSet<String>>>;
