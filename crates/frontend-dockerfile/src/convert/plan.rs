//! Which stages there are, and what each needs.

use std::collections::BTreeSet;

use cooper_dockerfile::{Instruction, Span, Stage, parse_mount, suggest};
use cooper_frontend::FrontendError;
use cooper_llb::platform;

use super::args::Vars;
use super::stage::{StageCommand, StageState};
use super::{Converter, Result, checks};

/// The stages that `target` needs, itself included.
pub(super) fn reachable(stages: &[StageState], target: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut left = vec![target];
    while let Some(stage) = left.pop() {
        if found.insert(stage) {
            left.extend(stages[stage].base);
            left.extend(stages[stage].deps.iter().map(|(dep, _)| *dep));
        }
    }
    found
}

impl Converter<'_> {
    /// A stage of each `FROM`.
    pub(super) fn make_stages(&mut self, stages: Vec<Stage>) -> Result<()> {
        for (index, stage) in stages.into_iter().enumerate() {
            self.make_stage(index, stage)?;
        }
        Ok(())
    }

    fn make_stage(&mut self, index: usize, mut stage: Stage) -> Result<()> {
        let span = stage.span;
        let expand = |this: &Self, text: &str| {
            this.lex
                .expand(text, &Vars(&this.global_args))
                .map_err(|error| this.invalid(span, error.to_string()))
        };
        let base = expand(self, &stage.base)?;
        self.check_from_args(&stage, &base.unmatched);
        if base.text.is_empty() {
            let message = format!("base name ({}) should not be blank", stage.base);
            return Err(self.invalid(span, message));
        }
        let mut used = base.matched;
        stage.base = base.text;

        let mut state = StageState {
            name: stage.name.clone(),
            capture: self.capture.clone(),
            epoch: self.epoch,
            ..StageState::default()
        };
        if !stage.platform.is_empty() {
            let found = expand(self, &stage.platform)?;
            self.check_from_args(&stage, &found.unmatched);
            self.check_platform(&stage, &found);
            let names: Vec<_> = self.global_args.iter().map(|(name, _)| name).collect();
            let suggested = |message: String| {
                let mut unknown = found.unmatched.iter();
                let near = unknown.find_map(|name| suggest::nearest(name, names.clone(), true));
                match near {
                    Some(near) => format!("{message} (did you mean {near}?)"),
                    None => message,
                }
            };
            if found.text.is_empty() {
                let message = format!("empty platform value from expression {}", stage.platform);
                return Err(self.invalid(span, suggested(message)));
            }
            let parsed = platform::parse(&found.text).map_err(|error| {
                let message = format!("failed to parse platform {}: {error}", stage.platform);
                self.invalid(span, suggested(message))
            })?;
            used.extend(found.matched);
            state.platform = Some(parsed);
        }
        state.stage = stage;
        if !state.stage.name.is_empty() {
            let platform = state.platform.as_ref().unwrap_or(&self.platforms.target);
            let named = self
                .request
                .named_context(&state.stage.name, Some(platform))
                .map_err(|error| error.at(self.source.location(span)))?;
            if named.is_some() {
                state.named = named;
                let place = self.add_stage(state);
                self.stages[place].base = None;
                return Ok(());
            }
        } else {
            state.name = format!("stage-{index}");
        }
        let place = self.add_stage(state);
        let no_cache = {
            let state = &mut self.stages[place];
            state.capture.used.extend(used);
            let from = state.stage.base != "scratch" && state.base.is_none();
            let commands = state.stage.commands.iter().filter(|command| {
                matches!(
                    command.instruction,
                    Instruction::Add(_)
                        | Instruction::Copy(_)
                        | Instruction::Run(_)
                        | Instruction::Workdir(_)
                )
            });
            state.steps = usize::from(from) + commands.count();
            self.request.options.is_no_cache(&state.stage.name)
        };
        self.stages[place].ignore_cache = no_cache;
        Ok(())
    }

    /// Adds a stage; one whose base is the name of an earlier stage is built on that.
    fn add_stage(&mut self, mut state: StageState) -> usize {
        let place = self.stages.len();
        if let Some(&base) = self.by_name.get(&state.stage.base) {
            state.base = Some(base);
            state.capture = self.stages[base].capture.clone();
        }
        if !state.stage.name.is_empty() {
            self.by_name.insert(state.stage.name.clone(), place);
        }
        self.stages.push(state);
        place
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    /// The stage that the client wants, or the last one.
    pub(super) fn target(&self) -> Result<usize> {
        let wanted = &self.request.options.target;
        if wanted.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.find(wanted).ok_or_else(|| {
            let names = self.stages.iter().map(|stage| stage.name.as_str());
            FrontendError::invalid(suggest::with_suggestion(
                format!("target stage {wanted:?} could not be found"),
                wanted,
                names.filter(|name| !name.is_empty()),
                true,
            ))
        })
    }

    /// Finds out which stages take files of which.
    pub(super) fn connect(&mut self) -> Result<()> {
        let mut stage = 0;
        // Images that are copied from are added while it goes on; they have no instructions.
        while stage < self.stages.len() {
            for command in self.stages[stage].stage.commands.clone() {
                let command = self.connect_command(stage, command, false)?;
                self.stages[stage].commands.push(command);
            }
            stage += 1;
        }
        if let Some((stage, spans)) = checks::cycle(&self.stages) {
            let message = format!(
                "circular dependency detected on stage: {}",
                self.stages[stage].name
            );
            let mut error = FrontendError::invalid(message);
            if let Some(span) = spans.first() {
                let mut location = self.source.location(*span);
                for span in &spans[1..] {
                    location.ranges.extend(crate::source::ranges(*span));
                }
                error = error.at(location);
            }
            return Err(error);
        }
        // A single stage needs no name. BuildKit counts the scratch that a mount is taken from.
        let has_mounts = |command: &StageCommand| match &command.command.instruction {
            Instruction::Run(run) => !run.mounts.is_empty(),
            _ => false,
        };
        if let [only] = self.stages.as_mut_slice()
            && !only.commands.iter().any(has_mounts)
        {
            only.name.clear();
        }
        Ok(())
    }

    /// An instruction with the stages that it takes files of, which are noted in `stage`.
    pub(super) fn connect_command(
        &mut self,
        stage: usize,
        mut command: cooper_dockerfile::Command,
        on_build: bool,
    ) -> Result<StageCommand> {
        let span = command.span;
        let mut sources = Vec::new();
        if let Instruction::Run(run) = &mut command.instruction {
            let extra = &self.request.options.extra.mounts;
            run.mounts.splice(0..0, extra.iter().cloned());
        }
        match &command.instruction {
            Instruction::Copy(copy) if !copy.from.is_empty() => {
                sources.push(Some(self.copy_source(&copy.from, span)?));
            }
            Instruction::Run(run) => {
                for mount in &run.mounts {
                    let mount = parse_mount(mount, None)
                        .map_err(|error| self.invalid(span, error.to_string()))?;
                    sources.push(match mount.from.as_str() {
                        "" => None,
                        from => Some(self.find_or_add(from, span)),
                    });
                }
            }
            _ => {}
        }
        for source in sources.iter().flatten() {
            self.stages[stage].deps.push((*source, span));
        }
        Ok(StageCommand {
            command,
            sources,
            on_build,
        })
    }

    fn copy_source(&mut self, from: &str, span: Span) -> Result<usize> {
        let expanded = self
            .lex
            .expand(from, &Vars(&cooper_llb::build::EnvList::default()))
            .map_err(|error| self.invalid(span, error.to_string()))?;
        if expanded.text != from {
            return Err(self.invalid(
                span,
                "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
            ));
        }
        match from.parse::<i64>() {
            Ok(index) => usize::try_from(index)
                .ok()
                .filter(|index| *index < self.stages.len())
                .ok_or_else(|| FrontendError::invalid(format!("invalid stage index {index}"))),
            Err(_) => Ok(self.find_or_add(from, span)),
        }
    }

    fn find_or_add(&mut self, from: &str, span: Span) -> usize {
        self.find(from)
            .unwrap_or_else(|| self.add_stage(StageState::unregistered(from, span)))
    }
}
