//! Nodes to typed instructions, and instructions to stages.

mod flags;
mod health;
mod mount;
mod parse;

pub use mount::{CacheSharing, Expander, Mount, MountKind, parse_mount};
pub use parse::command;

use crate::{Dockerfile, ParseError, Span};

/// A Dockerfile that is understood: the arguments before the first stage, and the stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// `ARG`s before the first `FROM`.
    pub arguments: Vec<Command>,
    /// The stages in order.
    pub stages: Vec<Stage>,
}

/// Makes instructions of nodes and sorts them into stages.
pub fn program(dockerfile: &Dockerfile) -> Result<Program, ParseError> {
    let mut program = Program::default();
    for node in &dockerfile.nodes {
        let parsed = parse::node(node).map_err(|error| {
            error.at(node.span).map(|message| {
                format!(
                    "dockerfile parse error on line {}: {message}",
                    node.span.start
                )
            })
        })?;
        match (parsed, program.stages.last_mut()) {
            (parse::Parsed::Stage(stage), _) => program.stages.push(*stage),
            (parse::Parsed::Command(command), Some(stage)) => stage.commands.push(*command),
            (parse::Parsed::Command(command), None) => {
                if !matches!(command.instruction, Instruction::Arg(_)) {
                    return Err(ParseError::new("no build stage in current context").at(node.span));
                }
                program.arguments.push(*command);
            }
        }
    }
    Ok(program)
}

/// A stage: a `FROM` and what follows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// The name, in lower case; empty if there is none.
    pub name: String,
    /// The name as it was written.
    pub written_name: String,
    /// The base as it was written.
    pub base: String,
    /// `FROM`, as it was written.
    pub from: String,
    /// `AS`, as it was written; empty if there is none.
    pub keyword_as: String,
    /// The value of `--platform`.
    pub platform: String,
    /// The text of the `FROM`.
    pub code: String,
    /// What the comment above says of the stage.
    pub description: String,
    /// The comment lines above.
    pub comments: Vec<String>,
    /// The lines of the `FROM`.
    pub span: Span,
    /// The instructions.
    pub commands: Vec<Command>,
}

/// An instruction with where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The first word, as it was written.
    pub name: String,
    /// The text, here-documents excluded.
    pub code: String,
    /// The lines.
    pub span: Span,
    /// The comment lines above.
    pub comments: Vec<String>,
    /// What it says.
    pub instruction: Instruction,
}

/// What an instruction says. Variables are not yet expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// `ADD`
    Add(Add),
    /// `ARG`
    Arg(Vec<Arg>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`, sorted.
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`
    Maintainer(String),
    /// `ONBUILD`: the text of the instruction behind it.
    Onbuild(String),
    /// `RUN`
    Run(Run),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

/// A key with a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The old form, without `=`.
    pub no_delimiter: bool,
}

/// An argument that a stage takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arg {
    /// The name.
    pub key: String,
    /// The default.
    pub value: Option<String>,
    /// What the comment above says of it.
    pub description: String,
}

/// A command line that may be meant for a shell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments; one text for a shell.
    pub args: Vec<String>,
    /// The here-documents.
    pub files: Vec<InlineFile>,
    /// For a shell: it was not in JSON.
    pub shell: bool,
}

/// A here-document of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InlineFile {
    /// The word that ends it.
    pub name: String,
    /// The content.
    pub data: String,
    /// Tabs at the beginnings of the lines do not count.
    pub chomp: bool,
}

/// `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub line: CommandLine,
    /// The values of `--mount`, which [`parse_mount`] reads when variables are known.
    pub mounts: Vec<String>,
    /// `--network`: `default`, `none` or `host`.
    pub network: String,
    /// `--security`: `sandbox` or `insecure`.
    pub security: String,
    /// The values of `--device`.
    pub devices: Vec<String>,
}

/// What `COPY` and `ADD` copy, and where to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcesAndDest {
    /// Where to.
    pub dest: String,
    /// Paths, addresses and patterns.
    pub paths: Vec<String>,
    /// Here-documents.
    pub contents: Vec<SourceContent>,
}

/// A here-document that is copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceContent {
    /// The name of the file.
    pub path: String,
    /// The content.
    pub data: String,
    /// Expand variables in the content.
    pub expand: bool,
}

/// `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// What and where to.
    pub sources: SourcesAndDest,
    /// `--chown`
    pub chown: String,
    /// `--chmod`
    pub chmod: String,
    /// `--link`
    pub link: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: Option<bool>,
    /// `--checksum`
    pub checksum: String,
    /// `--unpack`
    pub unpack: Option<bool>,
}

/// `COPY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// What and where to.
    pub sources: SourcesAndDest,
    /// `--from`
    pub from: String,
    /// `--chown`
    pub chown: String,
    /// `--chmod`
    pub chmod: String,
    /// `--link`
    pub link: bool,
    /// `--parents`
    pub parents: bool,
    /// `--exclude`
    pub exclude: Vec<String>,
}

/// `HEALTHCHECK`. Durations are nanoseconds; 0 means inherited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` or `CMD-SHELL` and what to run.
    pub test: Vec<String>,
    /// Between two checks.
    pub interval: i64,
    /// Of one check.
    pub timeout: i64,
    /// In which failures do not count.
    pub start_period: i64,
    /// Between two checks in the start period.
    pub start_interval: i64,
    /// Failures before it is unhealthy.
    pub retries: i64,
}

#[cfg(test)]
mod tests;
