//! `RUN`.

use cooper_dockerfile::{Arg, Command, Env, Run, chomp, csv, parse_heredoc};
use cooper_frontend::FrontendError;
use cooper_llb::build::{Constraints, Exec, FileAction, MountKind, MountSpec, State};
use cooper_proto::pb;

use super::args::Vars;
use super::config::with_shell;
use super::names::shown;
use super::{Converter, Result};
use crate::context::internal;
use crate::source::ranges;

/// Where a document that is a script is mounted.
const DOCUMENTS: &str = "/dev/pipes/";

/// A command line whose documents are dealt with.
struct Line {
    args: Vec<String>,
    mount: Option<MountSpec>,
    /// What the step's name says of the document.
    summary: Option<String>,
}

impl Converter<'_> {
    pub(super) fn run_command(
        &mut self,
        place: usize,
        command: &Command,
        run: &Run,
        sources: &[Option<usize>],
    ) -> Result<()> {
        // What a command reads is not known.
        self.stages[place].use_path("/");
        let Line {
            mut args,
            mount,
            summary,
        } = self.line(place, run)?;
        if run.line.shell {
            args = with_shell(&self.stages[place].image, &args);
        }
        let hook = self.request.options.extra.entrypoint.iter().cloned();
        args.splice(0..0, hook);
        let mut exec = Exec {
            args: args.clone(),
            mounts: mount.into_iter().collect(),
            proxy: self.proxy.clone(),
            ..Exec::default()
        };
        let masked = self.mounts(place, command, run, sources, &mut exec)?;
        match run.security.as_str() {
            "insecure" => exec.security = pb::SecurityMode::Insecure,
            _ => exec.security = pb::SecurityMode::Sandbox,
        }
        exec.network = match run.network.as_str() {
            "host" => Some(pb::NetMode::Host),
            "none" => Some(pb::NetMode::None),
            _ => None,
        };
        let options = &self.request.options;
        exec.extra_hosts.clone_from(&options.extra_hosts);
        if self.has_cap("exec.meta.ulimit") {
            exec.ulimits.clone_from(&options.ulimits);
        }
        if self.has_cap("exec.mount.tmpfs.size") && options.shm_size > 0 {
            exec.mounts.push(MountSpec {
                target: "/dev/shm".into(),
                source: State::scratch(),
                selector: String::new(),
                read_only: false,
                no_output: false,
                kind: MountKind::Tmpfs {
                    size: options.shm_size,
                },
            });
        }
        if self.has_cap("exec.meta.cgroup.parent") {
            exec.cgroup_parent.clone_from(&options.cgroup_parent);
        }
        exec.devices = devices(&run.devices)?;
        if !self.has_cap("exec.meta.cdi") {
            // There are none. A step that can do without them does.
            let mut devices = std::mem::take(&mut exec.devices).into_iter();
            if let Some(device) = devices.find(|device| !device.optional) {
                return Err(FrontendError::invalid(format!(
                    "required device {:?} is not registered",
                    device.name
                )));
            }
        }

        let mut code = command.code.clone();
        if let Some(summary) = summary {
            code = format!("{code} ({summary})");
        }
        let mut lex = self.lex.clone();
        lex.raw_quotes = true;
        lex.skip_unset_env = true;
        let env = self.stages[place].state.env().clone();
        let text = shown(&lex, &code, &Masked(Vars(&env), &masked));
        let name = self.prefixed(place, &text);
        let limited = self.has_cap("exec.meta.linux.resources");
        let stage = &mut self.stages[place];
        exec.constraints = Constraints::named(name)
            .describe("com.docker.dockerfile.v1.command", command.code.as_str())
            .location(&self.source.map, ranges(command.span))
            .ignore_cache(stage.ignore_cache);
        if limited {
            let resources = self.request.options.resources.clone();
            exec.constraints = exec.constraints.resources(resources);
        }
        stage.state = stage.state.run(exec);
        let message = format!("RUN {}", with_args(&stage.args, &Vars(&env), &args));
        stage.commit(message, true, true);
        Ok(())
    }

    /// Documents: one that begins with `#!` is a file that is run; another one alone is the
    /// command; more, or one among words, are left to the shell.
    fn line(&self, place: usize, run: &Run) -> Result<Line> {
        let args = run.line.args.clone();
        let plain = |args| Line {
            args,
            mount: None,
            summary: None,
        };
        let Some(first) = run.line.files.first() else {
            return Ok(plain(args));
        };
        let [text] = args.as_slice() else {
            return Err(FrontendError::invalid(format!(
                "parsing produced an invalid run command: {}",
                crate::gotext::list(&args)
            )));
        };
        if parse_heredoc(text).is_none() {
            let mut whole = text.clone();
            for file in &run.line.files {
                whole.push('\n');
                whole.push_str(&file.data);
                whole.push_str(&file.name);
            }
            return Ok(plain(vec![whole]));
        }
        let data = if first.chomp {
            chomp(&first.data)
        } else {
            first.data.clone()
        };
        let summary = Some(summarize(&first.data));
        let stage = &self.stages[place];
        if stage.image.os == "windows" || !data.starts_with("#!") {
            return Ok(Line {
                args: vec![data],
                mount: None,
                summary,
            });
        }
        let platform = stage.platform(&self.platforms.target).clone();
        let file = FileAction::Mkfile {
            path: first.name.clone(),
            mode: 0o755,
            data: data.into_bytes(),
            owner: None,
            created: None,
        };
        let source = State::scratch().file(
            vec![file],
            internal("preparing inline document").platform(platform),
        );
        Ok(Line {
            args: vec![format!("{DOCUMENTS}{}", first.name)],
            mount: Some(MountSpec {
                target: DOCUMENTS.into(),
                source,
                selector: "/".into(),
                read_only: true,
                no_output: false,
                kind: MountKind::Bind,
            }),
            summary,
        })
    }
}

/// The first line, and whether there are more.
fn summarize(text: &str) -> String {
    let text = text.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}

/// Variables that hold secrets show as stars.
struct Masked<'a>(Vars<'a>, &'a [String]);

impl Env for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.1.iter().any(|masked| masked == name) {
            return Some("****");
        }
        self.0.get(name)
    }

    fn names(&self) -> Vec<&str> {
        self.0.names()
    }
}

/// The command with the arguments that it was run with before it: `|1 A=b /bin/sh -c …`.
fn with_args(build: &[Arg], env: &Vars<'_>, args: &[String]) -> String {
    let mut set: Vec<(&str, String)> = Vec::new();
    for arg in build {
        let value = env.get(&arg.key).map(str::to_owned);
        let value = value.or_else(|| arg.value.clone()).unwrap_or_default();
        let text = format!("{}={value}", arg.key);
        match set.iter_mut().find(|(key, _)| *key == arg.key) {
            Some((_, old)) => *old = text,
            None => set.push((&arg.key, text)),
        }
    }
    let mut words = Vec::new();
    if !set.is_empty() {
        words.push(format!("|{}", set.len()));
        words.extend(set.into_iter().map(|(_, text)| text));
    }
    words.extend(args.iter().cloned());
    words.join(" ")
}

/// `--device` values: a name, and whether the step can do without it.
fn devices(values: &[String]) -> Result<Vec<pb::CdiDevice>> {
    values
        .iter()
        .map(|value| {
            let fields = csv::fields(value)
                .map_err(|error| FrontendError::bridge("failed to parse csv devices", error))?;
            let mut device = pb::CdiDevice {
                optional: true,
                ..pb::CdiDevice::default()
            };
            for (i, field) in fields.iter().enumerate() {
                match field.split_once('=').unwrap_or((field, "true")) {
                    ("name", name) => device.name = name.to_owned(),
                    ("required", required) => {
                        let required = crate::gotext::parse_bool(required).ok_or_else(|| {
                            FrontendError::invalid(format!(
                                "invalid value for required: {required}"
                            ))
                        })?;
                        device.optional = !required;
                    }
                    // `vendor/class=name` is one name.
                    _ if i == 0 => field.clone_into(&mut device.name),
                    (key, _) => {
                        return Err(FrontendError::invalid(format!(
                            "unexpected key '{key}' in '{field}'"
                        )));
                    }
                }
            }
            Ok(device)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_summarized() {
        assert_eq!(summarize("\n a\r\nb\n"), "a...");
        assert_eq!(summarize("a\n"), "a");
    }
}
