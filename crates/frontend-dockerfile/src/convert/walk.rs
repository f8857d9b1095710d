//! Instruction by instruction.

use std::collections::BTreeSet;

use cooper_dockerfile::Instruction;
use cooper_frontend::FrontendError;
use cooper_llb::build::default_path;
use cooper_session::pattern::{Matcher, clean};

use super::copy::CopyOrAdd;
use super::stage::StageCommand;
use super::{Converter, Result};
use crate::image::key_value;

impl Converter<'_> {
    /// Walks through the stages that are needed, in the order of the file.
    pub(super) async fn walk(&mut self, reachable: &BTreeSet<usize>) -> Result<()> {
        let patterns = self.request.ignore_patterns().await?;
        if !patterns.is_empty() {
            let matcher = Matcher::new(patterns.iter()).map_err(|error| {
                FrontendError::bridge("failed to read dockerignore patterns", error)
            })?;
            self.ignore = Some(matcher);
        }
        for place in 0..self.stages.len() {
            let needed = self.all_stages || reachable.contains(&place);
            if needed && !self.stages[place].dispatched {
                self.walk_stage(place)?;
            }
        }
        Ok(())
    }

    fn walk_stage(&mut self, place: usize) -> Result<()> {
        if let Some(base) = self.stages[place].base {
            self.inherit(place, base);
        }
        self.environment(place);
        let commands = self.stages[place].commands.clone();
        for command in commands {
            let span = command.command.span;
            self.dispatch(place, command)
                .map_err(|error| error.at(self.source.location(span)))?;
        }
        Ok(())
    }

    /// What the image says of how commands run.
    fn environment(&mut self, place: usize) {
        let options = &self.request.options;
        let stage = &mut self.stages[place];
        stage.dispatched = true;
        let platform = stage
            .platform
            .get_or_insert_with(|| self.platforms.target.clone())
            .clone();
        let has_path = stage
            .image
            .config
            .env
            .iter()
            .any(|line| key_value(line).0 == "PATH");
        // Windows knows its own.
        if !has_path && platform.os != "windows" {
            let path = format!("PATH={}", default_path(&platform.os));
            stage.image.config.env.push(path);
        }
        let mut state = stage.state.clone();
        for line in &stage.image.config.env {
            let (key, value) = key_value(line);
            state = state.add_env(key, value);
        }
        if !options.hostname.is_empty() {
            state = state.hostname(&options.hostname);
        }
        if !stage.image.config.working_dir.is_empty() {
            let dir = super::config::workdir("", &stage.image.config.working_dir);
            state = state.dir(&dir);
            stage.image.config.working_dir = dir;
        }
        if !stage.image.config.user.is_empty() {
            state = state.user(&stage.image.config.user);
        }
        stage.state = state.network(options.network);
    }

    fn dispatch(&mut self, place: usize, command: StageCommand) -> Result<()> {
        let StageCommand {
            mut command,
            sources,
            on_build,
        } = command;
        self.stages[place].in_onbuild = on_build;
        // ARG expands only the default that counts.
        if !matches!(command.instruction, Instruction::Arg(_)) {
            self.expand(place, &mut command)?;
        }
        match command.instruction.clone() {
            Instruction::Maintainer(name) => {
                let stage = &mut self.stages[place];
                stage.image.author.clone_from(&name);
                stage.commit(format!("MAINTAINER {name}"), false, false);
                Ok(())
            }
            Instruction::Env(pairs) => self.env(place, &command, &pairs),
            Instruction::Label(pairs) => self.label(place, &command, pairs),
            Instruction::Arg(args) => self.arg(place, &command, args),
            Instruction::Run(run) => self.run_command(place, &command, &run, &sources),
            Instruction::Workdir(path) => self.workdir(place, &command, &path),
            Instruction::Copy(copy) => self.copy_command(place, &command, copy, &sources),
            Instruction::Add(add) => {
                let paths = add.sources.paths.clone();
                let cfg = CopyOrAdd::add(add, self.context_state());
                self.copy(place, &command, cfg)?;
                let stage = &mut self.stages[place];
                for path in paths {
                    if !path.starts_with("http://") && !path.starts_with("https://") {
                        stage.context_paths.insert(rooted(&path));
                    }
                }
                Ok(())
            }
            Instruction::Onbuild(text) => {
                self.stages[place].image.config.on_build.push(text);
                Ok(())
            }
            Instruction::Cmd(line) => self.cmd(place, &command, line),
            Instruction::Entrypoint(line) => self.entrypoint(place, &command, line),
            Instruction::Healthcheck(health) => self.healthcheck(place, &command, health),
            Instruction::Expose(ports) => self.expose(place, &command, &ports),
            Instruction::User(user) => {
                let stage = &mut self.stages[place];
                stage.state = stage.state.clone().user(&user);
                stage.image.config.user.clone_from(&user);
                stage.commit(format!("USER {user}"), false, false);
                Ok(())
            }
            Instruction::Volume(volumes) => self.volume(place, volumes),
            Instruction::StopSignal(signal) => self.stop_signal(place, signal),
            Instruction::Shell(shell) => {
                let stage = &mut self.stages[place];
                stage.commit(
                    format!("SHELL {}", crate::gotext::list(&shell)),
                    false,
                    false,
                );
                stage.image.config.shell = shell;
                Ok(())
            }
        }
    }

    fn copy_command(
        &mut self,
        place: usize,
        command: &cooper_dockerfile::Command,
        copy: cooper_dockerfile::Copy,
        sources: &[Option<usize>],
    ) -> Result<()> {
        let from = sources.first().copied().flatten();
        let source = match from {
            None => self.context_state(),
            Some(from) => {
                if !self.stages[from].dispatched {
                    return Err(FrontendError::invalid(format!(
                        "cannot copy from stage {:?}, it needs to be defined before current stage {:?}",
                        copy.from, self.stages[place].name
                    )));
                }
                self.stages[from].state.clone()
            }
        };
        let paths: Vec<_> = copy.sources.paths.iter().map(|path| rooted(path)).collect();
        let cfg = CopyOrAdd::copy(copy, source, from.is_none());
        self.copy(place, command, cfg)?;
        match from {
            None => self.stages[place].context_paths.extend(paths),
            Some(from) => paths
                .iter()
                .for_each(|path| self.stages[from].use_path(path)),
        }
        Ok(())
    }
}

/// A path from the root, clean.
pub(super) fn rooted(path: &str) -> String {
    clean(&format!("/{path}"))
}
