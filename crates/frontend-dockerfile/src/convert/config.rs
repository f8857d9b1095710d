//! Instructions that change the image's configuration.

use cooper_dockerfile::{Arg, Command, CommandLine, Healthcheck, KeyValue, duration};
use cooper_frontend::FrontendError;
use cooper_llb::build::{Constraints, FileAction, Owner, join};
use cooper_session::pattern::clean;

use super::args::Vars;
use super::outline::ArgInfo;
use super::{Converter, Result, checks, signal};
use crate::gotext;
use crate::image::{Empty, Health, Image};
use crate::lint;
use crate::source::ranges;

/// Arguments that say how to look at the result, not how to build it.
const NO_ENV: &[&str] = &["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Bytes of all variables. A kernel starts no program with more.
const MAX_ENV: usize = 2 << 20;

/// A working directory, in `current` unless it is absolute. An absolute one stays as it is
/// written, so that images come out as BuildKit's.
pub(super) fn workdir(current: &str, path: &str) -> String {
    if path.is_empty() {
        return workdir("", if current.is_empty() { "/" } else { current });
    }
    if path.starts_with('/') {
        return path.to_owned();
    }
    join(if current.is_empty() { "/" } else { current }, path)
}

/// The shell of an image, with the words behind it as one argument.
pub(super) fn with_shell(image: &Image, args: &[String]) -> Vec<String> {
    let mut shell = image.config.shell.clone();
    if shell.is_empty() {
        let default: &[&str] = match image.os.as_str() {
            "windows" => &["cmd", "/S", "/C"],
            _ => &["/bin/sh", "-c"],
        };
        shell = default.iter().map(|arg| (*arg).to_owned()).collect();
    }
    shell.push(args.join(" "));
    shell
}

fn pair(pair: &KeyValue) -> String {
    format!(" {}={}", pair.key, pair.value)
}

impl Converter<'_> {
    pub(super) fn env(
        &mut self,
        place: usize,
        command: &Command,
        pairs: &[KeyValue],
    ) -> Result<()> {
        let mut message = "ENV".to_owned();
        for env in pairs {
            self.check_delimiter(command, env);
            self.check_secret("ENV", command, &env.key);
            message.push_str(&pair(env));
            let stage = &mut self.stages[place];
            stage.state = stage.state.clone().add_env(&env.key, &env.value);
            stage.image.set_env(&env.key, &env.value);
        }
        self.stages[place].commit(message, false, false);
        self.bounded(place)
    }

    fn bounded(&self, place: usize) -> Result<()> {
        if self.stages[place].state.env().size() > MAX_ENV {
            return Err(FrontendError::invalid(format!(
                "the variables have more than {MAX_ENV} bytes"
            )));
        }
        Ok(())
    }

    pub(super) fn label(
        &mut self,
        place: usize,
        command: &Command,
        pairs: Vec<KeyValue>,
    ) -> Result<()> {
        let mut message = "LABEL".to_owned();
        for label in pairs {
            self.check_delimiter(command, &label);
            message.push_str(&pair(&label));
            let labels = &mut self.stages[place].image.config.labels;
            labels.insert(label.key, label.value);
        }
        self.stages[place].commit(message, false, false);
        Ok(())
    }

    pub(super) fn arg(&mut self, place: usize, command: &Command, args: Vec<Arg>) -> Result<()> {
        let mut texts = Vec::new();
        for mut arg in args {
            self.check_secret("ARG", command, &arg.key);
            let mut inherited = false;
            if let Some(value) = self.build_args.get(&arg.key) {
                arg.value = Some(value.clone());
            } else if let Some(default) = &arg.value {
                let env = self.stages[place].state.env().clone();
                let expanded = self.lex.expand(default, &Vars(&env));
                let unmatched = match &expanded {
                    Ok(expanded) => expanded.unmatched.clone(),
                    Err(error) => error.unmatched.clone(),
                };
                self.check_unmatched(place, command, unmatched);
                let expanded =
                    expanded.map_err(|error| FrontendError::invalid(error.to_string()))?;
                arg.value = Some(expanded.text);
            } else if let Some(value) = self.global_args.get(&arg.key) {
                arg.value = Some(value.to_owned());
                inherited = true;
            }
            let stage = &mut self.stages[place];
            let mut info = ArgInfo::new(&arg, command.span);
            let mut text = arg.key.clone();
            if let Some(value) = &arg.value {
                if !NO_ENV.contains(&arg.key.as_str()) {
                    stage.state = stage.state.clone().add_env(&arg.key, value);
                }
                info.value.clone_from(value);
                text = format!("{text}={value}");
            }
            texts.push(text);
            if !inherited {
                stage.capture.args.insert(arg.key.clone(), info);
            }
            stage.capture.used.insert(arg.key.clone());
            stage.args.push(arg);
        }
        self.stages[place].commit(format!("ARG {}", texts.join(" ")), false, false);
        self.bounded(place)
    }

    pub(super) fn workdir(&mut self, place: usize, command: &Command, path: &str) -> Result<()> {
        if !self.stages[place].workdir_set && !path.starts_with('/') {
            self.lint.warn_below(
                &command.comments,
                &lint::WORKDIR_RELATIVE_PATH,
                command.span,
                format!("Relative workdir {path:?} can have unexpected results if the base image changes"),
            );
        }
        let dir = workdir(&self.stages[place].image.config.working_dir, path);
        {
            let stage = &mut self.stages[place];
            stage.workdir_set = true;
            stage.image.config.working_dir.clone_from(&dir);
            stage.state = stage.state.clone().dir(&dir);
        }
        // The root is there already.
        let layer = dir != "/";
        if layer {
            let platform = self.stages[place].platform(&self.platforms.target).clone();
            let name = self.step_name(place, &command.code);
            let stage = &mut self.stages[place];
            let user = &stage.image.config.user;
            let owner = (!user.is_empty()).then(|| Owner::parse(user));
            stage.state = stage.state.file(
                vec![FileAction::Mkdir {
                    path: dir.clone(),
                    mode: 0o755,
                    make_parents: true,
                    owner,
                    created: stage.created(),
                }],
                Constraints::named(name)
                    .location(&self.source.map, ranges(command.span))
                    .platform(platform),
            );
        }
        self.stages[place].commit(format!("WORKDIR {dir}"), layer, false);
        Ok(())
    }

    /// The arguments of `CMD` or `ENTRYPOINT`, with a shell if they are not in JSON.
    fn shell_line(&mut self, place: usize, command: &Command, line: CommandLine) -> Vec<String> {
        if !line.shell {
            return line.args;
        }
        if self.stages[place].image.config.shell.is_empty() {
            self.lint.warn_below(
                &command.comments,
                &lint::JSON_ARGS_RECOMMENDED,
                command.span,
                format!(
                    "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                    command.name
                ),
            );
        }
        with_shell(&self.stages[place].image, &line.args)
    }

    pub(super) fn cmd(&mut self, place: usize, command: &Command, line: CommandLine) -> Result<()> {
        let before = self.stages[place].cmd.replace(command.span);
        checks::once(self.lint, command, before);
        let args = self.shell_line(place, command, line);
        let stage = &mut self.stages[place];
        stage.commit(format!("CMD {}", gotext::quote_list(&args)), false, false);
        stage.image.config.cmd = args;
        stage.image.config.args_escaped = true;
        Ok(())
    }

    pub(super) fn entrypoint(
        &mut self,
        place: usize,
        command: &Command,
        line: CommandLine,
    ) -> Result<()> {
        let before = self.stages[place].entrypoint.replace(command.span);
        checks::once(self.lint, command, before);
        let args = self.shell_line(place, command, line);
        let stage = &mut self.stages[place];
        stage.commit(
            format!("ENTRYPOINT {}", gotext::quote_list(&args)),
            false,
            false,
        );
        stage.image.config.entrypoint = args;
        // The base's arguments were meant for the base's program.
        if stage.cmd.is_none() {
            stage.image.config.cmd.clear();
        }
        Ok(())
    }

    pub(super) fn healthcheck(
        &mut self,
        place: usize,
        command: &Command,
        health: Healthcheck,
    ) -> Result<()> {
        let before = self.stages[place].healthcheck.replace(command.span);
        checks::once(self.lint, command, before);
        // As Go quotes a structure, its last number being taken for a character.
        let message = format!(
            "HEALTHCHECK &{{{} \"{}\" \"{}\" \"{}\" \"{}\" {}}}",
            gotext::quote_list(&health.test),
            duration::format(health.interval),
            duration::format(health.timeout),
            duration::format(health.start_period),
            duration::format(health.start_interval),
            gotext::quote_number(health.retries),
        );
        let stage = &mut self.stages[place];
        stage.commit(message, false, false);
        stage.image.config.healthcheck = Some(Health {
            test: health.test,
            interval: health.interval,
            timeout: health.timeout,
            start_period: health.start_period,
            start_interval: health.start_interval,
            retries: health.retries,
        });
        Ok(())
    }

    pub(super) fn volume(&mut self, place: usize, volumes: Vec<String>) -> Result<()> {
        if volumes.iter().any(String::is_empty) {
            return Err(FrontendError::invalid(
                "VOLUME specified can not be an empty string",
            ));
        }
        let stage = &mut self.stages[place];
        stage.commit(format!("VOLUME {}", gotext::list(&volumes)), false, false);
        let volumes = volumes.into_iter().map(|volume| (volume, Empty {}));
        stage.image.config.volumes.extend(volumes);
        Ok(())
    }

    pub(super) fn stop_signal(&mut self, place: usize, name: String) -> Result<()> {
        if !signal::is_signal(&name) {
            return Err(FrontendError::invalid(format!("invalid signal: {name}")));
        }
        let stage = &mut self.stages[place];
        stage.commit(format!("STOPSIGNAL {name}"), false, false);
        stage.image.config.stop_signal = name;
        Ok(())
    }

    /// A path of an instruction, from the root. A slash at the end stays.
    pub(super) fn absolute(&self, place: usize, path: &str) -> String {
        let dir = self.stages[place].state.current_dir();
        if path.starts_with('/') {
            return path.to_owned();
        }
        // Nothing means the current directory.
        let path = if path.is_empty() || path == "." {
            "./"
        } else {
            path
        };
        cooper_llb::build::normalize(dir, path, true)
    }
}

/// Whether a path is absolute once it is cleaned.
pub(super) fn is_absolute(path: &str) -> bool {
    clean(path).starts_with('/')
}
