//! Base images: their digests and configurations.

use std::collections::BTreeSet;

use cooper_dockerfile::{Dockerfile, Instruction, command, parse, suggest};
use cooper_frontend::{FrontendError, ImageOptions};
use cooper_llb::build::{Constraints, EnvList, Image as ImageSource, State};
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_registry::Reference;
use futures::future::try_join_all;

use super::stage::StageState;
use super::{Converter, Result, checks, plan};
use crate::image::Image;
use crate::named::{Loaded, PendingLocal};
use crate::source::ranges;

/// What a look-up found out.
struct Found {
    kind: Kind,
    pending: Option<PendingLocal>,
}

enum Kind {
    /// A context stands in for the whole stage.
    Stage { state: State, image: Option<Image> },
    /// A context stands in for the base.
    Base { state: State, image: Image },
    /// An image.
    Image {
        reference: String,
        image: Box<Image>,
        platform: pb::Platform,
    },
    /// An image that nothing needs: only its name was looked at.
    Unneeded { reference: String },
}

impl Converter<'_> {
    /// Looks up the base images of what `target` needs, until no `ONBUILD` of one needs more.
    pub(super) async fn resolve(&mut self, target: usize) -> Result<BTreeSet<usize>> {
        loop {
            let reachable = plan::reachable(&self.stages, target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for place in reachable.iter().copied() {
                more |= self.begin(place)?;
            }
            if !more {
                return Ok(reachable);
            }
        }
    }

    async fn resolve_bases(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let mut lookups = Vec::new();
        for place in 0..self.stages.len() {
            let needed = self.all_stages || reachable.contains(&place);
            let stage = &mut self.stages[place];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.stage.base == "scratch" && stage.named.is_none() {
                stage.state = State::scratch();
                stage.image = Image::empty(&self.platforms.target);
                stage.platform = Some(self.platforms.target.clone());
                stage.dispatched |= stage.unregistered;
                continue;
            }
            lookups.push((place, needed));
        }
        let this = &*self;
        let found = try_join_all(lookups.iter().map(|&(place, needed)| async move {
            let stage = &this.stages[place];
            let found = this.look_up(stage, needed).await;
            found.map_err(|error| match stage.unregistered {
                // No `FROM` names it.
                true => error,
                false => error.at(this.source.location(stage.stage.span)),
            })
        }))
        .await?;
        for ((place, needed), found) in lookups.into_iter().zip(found) {
            self.take(place, needed, found);
        }
        Ok(())
    }

    async fn look_up(&self, stage: &StageState, needed: bool) -> Result<Found> {
        let name = stage.stage.base.as_str();
        let reference = Reference::parse(name).map_err(|error| FrontendError::Invalid {
            message: format!("failed to parse stage name {name:?}"),
            location: None,
            source: Some(Box::new(error)),
        })?;
        if !needed {
            return Ok(Found {
                kind: Kind::Unneeded {
                    reference: reference.to_string(),
                },
                pending: None,
            });
        }
        if let Some(named) = &stage.named {
            let Loaded {
                state,
                image,
                pending,
            } = self.request.load_named(named, &stage.paths).await?;
            return Ok(Found {
                kind: Kind::Stage { state, image },
                pending,
            });
        }
        let platform = stage.platform(&self.platforms.target);
        let full = reference.to_string();
        if let Some(named) = self.request.named_context(&full, Some(platform))? {
            let Loaded {
                state,
                image,
                pending,
            } = self.request.load_named(&named, &stage.paths).await?;
            let image = image.unwrap_or_else(|| Image::empty(platform));
            return Ok(Found {
                kind: Kind::Base { state, image },
                pending,
            });
        }
        let prefix = if self.request.options.multi_platform {
            format!("[{} internal]", platform::format_all(platform))
        } else {
            "[internal]".to_owned()
        };
        let resolved = self
            .request
            .image(
                &full,
                ImageOptions {
                    log_name: format!("{prefix} load metadata for {full}"),
                    platform: Some(platform.clone()),
                    resolve_mode: self.request.options.resolve_mode.clone(),
                    ..ImageOptions::default()
                },
            )
            .await
            .map_err(|error| self.unresolved(name, error))?;
        let mut reference = reference;
        if resolved.reference != full {
            reference = Reference::parse_named(&resolved.reference).map_err(|error| {
                FrontendError::bridge(
                    format!("failed to parse ref {:?}", resolved.reference),
                    error,
                )
            })?;
        }
        let image: Image = serde_json::from_slice(&resolved.config)
            .map_err(|error| FrontendError::bridge("failed to parse image config", error))?;
        let platform = self.detected(stage, &image, platform);
        if let Some(digest) = &resolved.digest {
            reference = reference.with_digest(digest);
        }
        Ok(Found {
            kind: Kind::Image {
                reference: reference.to_string(),
                image: Box::new(image),
                platform,
            },
            pending: None,
        })
    }

    /// A look-up failed: perhaps a stage or a well-known image was meant.
    fn unresolved(&self, name: &str, error: FrontendError) -> FrontendError {
        let stages = self.stages.iter().map(|stage| stage.name.as_str());
        let known = checks::common_images();
        let options = stages
            .filter(|name| !name.is_empty())
            .chain(known.iter().map(String::as_str));
        match suggest::nearest(name, options, true) {
            None => FrontendError::bridge(name, error),
            Some(near) => FrontendError::bridge(name, Suggested { error, near }),
        }
    }

    /// The platform of an image that nobody asked a platform of.
    fn detected(&self, stage: &StageState, image: &Image, platform: &pb::Platform) -> pb::Platform {
        let build = &self.platforms.build;
        let is =
            |other: &pb::Platform| other.os == image.os && other.architecture == image.architecture;
        if stage.platform.is_none() && self.platforms.implicit && !is(platform) && is(build) {
            return build.clone();
        }
        platform.clone()
    }

    fn take(&mut self, place: usize, needed: bool, found: Found) {
        self.pending.extend(found.pending);
        let multi = self.request.options.multi_platform;
        let target = self.platforms.target.clone();
        let resolve_mode = self.request.options.resolve_mode.clone();
        let written = self.stages[place].stage.base.clone();
        let stage = &mut self.stages[place];
        stage.dispatched |= stage.unregistered;
        let (reference, platform) = match found.kind {
            Kind::Stage { state, image } => {
                stage.dispatched = true;
                stage.state = state;
                if let Some(mut image) = image {
                    image.created = None;
                    if !image.architecture.is_empty() && !image.os.is_empty() {
                        stage.platform = Some(image.platform());
                    }
                    stage.image = image;
                }
                return;
            }
            Kind::Base { state, mut image } => {
                let platform = stage.platform(&target).clone();
                stage.base_image = Some(image.clone());
                image.created = None;
                stage.image = image;
                stage.state = state.platform(&platform);
                stage.platform = Some(platform);
                return;
            }
            Kind::Unneeded { reference } => (reference, stage.platform(&target).clone()),
            Kind::Image {
                reference,
                mut image,
                platform,
            } => {
                stage.base_image = Some((*image).clone());
                image.created = None;
                stage.image = *image;
                (reference, platform)
            }
        };
        stage.stage.base.clone_from(&reference);
        if needed && stage.image.has_no_layers() {
            stage.state = State::scratch();
        } else {
            // What nothing needs is named again if an ONBUILD comes to need it.
            let steps = stage.step;
            let name = stage.prefixed(
                &format!("FROM {reference}"),
                multi,
                Some(&platform),
                &EnvList::default(),
            );
            if !needed {
                stage.step = steps;
            }
            let constraints = Constraints::named(name)
                .platform(platform.clone())
                .describe(
                    "com.docker.dockerfile.v1.command",
                    stage.stage.code.as_str(),
                )
                .location(&self.source.map, ranges(stage.stage.span));
            let image = ImageSource {
                resolve_mode,
                ..ImageSource::default()
            };
            stage.state = State::image(&reference, image, constraints);
            if needed {
                let (actual, span) = (stage.image.platform(), stage.stage.span);
                stage.platform = Some(platform.clone());
                self.check_base_platform(&written, &platform, &actual, span);
                return;
            }
        }
        // An unneeded stage stays without a platform of its own making.
        if needed {
            stage.platform = Some(platform);
        }
    }

    /// Takes over what a stage inherits, and the instructions that its base left to do. Says
    /// whether these need other stages.
    fn begin(&mut self, place: usize) -> Result<bool> {
        let mut triggers = std::mem::take(&mut self.stages[place].image.config.on_build);
        if let Some(base) = self.stages[place].base {
            self.inherit(place, base);
            if !self.stages[place].onbuild_done {
                let commands = &self.stages[base].commands;
                triggers.extend(commands.iter().filter_map(|command| {
                    match &command.command.instruction {
                        Instruction::Onbuild(text) => Some(text.clone()),
                        _ => None,
                    }
                }));
                self.stages[place].onbuild_done = true;
            }
        }
        if triggers.is_empty() {
            return Ok(false);
        }
        self.add_triggers(place, &triggers)
    }

    pub(super) fn inherit(&mut self, place: usize, base: usize) {
        let mut stage = std::mem::take(&mut self.stages[place]);
        stage.inherit(&self.stages[base]);
        self.stages[place] = stage;
    }

    fn add_triggers(&mut self, place: usize, triggers: &[String]) -> Result<bool> {
        let span = self.stages[place].stage.span;
        let failed = |message: String| self.source.invalid(span, message);
        let mut parsed = Vec::new();
        for trigger in triggers {
            let Dockerfile { mut nodes, .. } =
                parse(trigger.as_bytes()).map_err(|error| failed(error.to_string()))?;
            if nodes.len() != 1 {
                return Err(failed(
                    "onbuild trigger should be a single expression".into(),
                ));
            }
            let mut node = nodes.remove(0);
            // It has no line in this file: the stage's has to stand for it.
            node.span = span;
            parsed.push(command(&node).map_err(|error| failed(error.to_string()))?);
        }
        let mut commands = Vec::new();
        let mut more = false;
        for command in parsed {
            let command = self.connect_command(place, command, true)?;
            more |= !command.sources.is_empty();
            commands.push(command);
        }
        let stage = &mut self.stages[place];
        stage.steps += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        Ok(more)
    }
}

/// An error with the name that may have been meant behind all of its causes.
#[derive(Debug)]
struct Suggested {
    error: FrontendError,
    near: String,
}

impl std::fmt::Display for Suggested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.error)?;
        let mut source = std::error::Error::source(&self.error);
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        write!(f, " (did you mean {}?)", self.near)
    }
}

impl std::error::Error for Suggested {}
