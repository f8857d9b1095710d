use super::flags::{Flags, Kind};
use super::{
    Add, Arg, Command, CommandLine, Copy, InlineFile, Instruction, KeyValue, Run, SourceContent,
    SourcesAndDest, Stage, health, mount,
};
use crate::parser::{Node, chomp, parse_heredoc};
use crate::{ParseError, suggest};

const NAMES: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What a node can be.
pub(super) enum Parsed {
    Stage(Box<Stage>),
    Command(Box<Command>),
}

/// The instruction of a node that is no `FROM`: what an `ONBUILD` left to do.
pub fn command(node: &Node) -> Result<Command, ParseError> {
    match self::node(node).map_err(|error| error.at(node.span))? {
        Parsed::Command(command) => Ok(*command),
        Parsed::Stage(_) => {
            Err(ParseError::new("*instructions.Stage is not a command type").at(node.span))
        }
    }
}

pub(super) fn node(node: &Node) -> Result<Parsed, ParseError> {
    let instruction = match node.name.to_ascii_lowercase().as_str() {
        "from" => return from(node).map(|stage| Parsed::Stage(Box::new(stage))),
        "add" => Instruction::Add(add(node)?),
        "arg" => Instruction::Arg(arg(node)?),
        "cmd" => Instruction::Cmd(command_line(node)?),
        "copy" => Instruction::Copy(copy(node)?),
        "entrypoint" => Instruction::Entrypoint(command_line(node)?),
        "env" => Instruction::Env(key_values(node, "ENV")?),
        "expose" => {
            let mut ports = at_least_one(node, "EXPOSE")?;
            ports.sort();
            Instruction::Expose(ports)
        }
        "healthcheck" => Instruction::Healthcheck(health::healthcheck(node)?),
        "label" => Instruction::Label(key_values(node, "LABEL")?),
        "maintainer" => Instruction::Maintainer(exactly_one(node, "MAINTAINER")?),
        "onbuild" => Instruction::Onbuild(onbuild(node)?),
        "run" => Instruction::Run(run(node)?),
        "shell" => Instruction::Shell(shell(node)?),
        "stopsignal" => Instruction::StopSignal(exactly_one(node, "STOPSIGNAL")?),
        "user" => Instruction::User(exactly_one(node, "USER")?),
        "volume" => Instruction::Volume(volume(node)?),
        "workdir" => Instruction::Workdir(exactly_one(node, "WORKDIR")?),
        _ => {
            return Err(ParseError::new(suggest::with_suggestion(
                format!("unknown instruction: {}", node.name),
                &node.name,
                NAMES.iter().copied(),
                false,
            )));
        }
    };
    Ok(Parsed::Command(Box::new(Command {
        name: node.name.clone(),
        code: node.original.trim().to_owned(),
        span: node.span,
        comments: node.comments.clone(),
        instruction,
    })))
}

fn no_flags(node: &Node) -> Result<(), ParseError> {
    Flags::parse(&node.flags, &[]).map(|_| ())
}

fn exactly_one(node: &Node, name: &str) -> Result<String, ParseError> {
    let [arg] = node.args.as_slice() else {
        return Err(ParseError::new(format!(
            "{name} requires exactly one argument"
        )));
    };
    no_flags(node)?;
    Ok(arg.clone())
}

fn at_least_one(node: &Node, name: &str) -> Result<Vec<String>, ParseError> {
    if node.args.is_empty() {
        return Err(ParseError::new(format!(
            "{name} requires at least one argument"
        )));
    }
    no_flags(node)?;
    Ok(node.args.clone())
}

fn blank(name: &str) -> ParseError {
    ParseError::new(format!("{name} names can not be blank"))
}

fn key_values(node: &Node, name: &str) -> Result<Vec<KeyValue>, ParseError> {
    no_flags(node)?;
    at_least_one(node, name)?
        .chunks(3)
        .map(|chunk| match chunk {
            [key, ..] if key.is_empty() => Err(blank(name)),
            [key, value, delimiter] => Ok(KeyValue {
                key: key.clone(),
                value: value.clone(),
                no_delimiter: delimiter.is_empty(),
            }),
            _ => Err(ParseError::new(format!(
                "Bad input to {name}, too many arguments"
            ))),
        })
        .collect()
}

/// What a comment line says of `name`: it begins with the name.
fn description(comments: &[String], name: &str) -> String {
    comments
        .iter()
        .filter(|_| !name.is_empty())
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_default()
        .to_owned()
}

fn arg(node: &Node) -> Result<Vec<Arg>, ParseError> {
    if node.args.is_empty() {
        return Err(ParseError::new("ARG requires at least one argument"));
    }
    node.args
        .iter()
        .map(|text| {
            let (key, value) = match text.split_once('=') {
                Some(("", _)) => return Err(blank("ARG")),
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (text.as_str(), None),
            };
            Ok(Arg {
                key: key.to_owned(),
                value,
                description: description(&node.comments, key),
            })
        })
        .collect()
}

fn from(node: &Node) -> Result<Stage, ParseError> {
    let (written_name, keyword_as) = match node.args.as_slice() {
        [_] => (String::new(), String::new()),
        [_, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let mut bytes = lower.bytes();
            let valid = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
                && bytes.all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.')
                });
            if !valid {
                return Err(ParseError::new(format!(
                    "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
                )));
            }
            (name.clone(), keyword.clone())
        }
        _ => {
            return Err(ParseError::new(
                "FROM requires either one or three arguments",
            ));
        }
    };
    let mut flags = Flags::parse(&node.flags, &[("platform", Kind::Text)])?;
    let name = written_name.to_lowercase();
    Ok(Stage {
        description: description(&node.comments, &name),
        name,
        written_name,
        base: node.args[0].clone(),
        from: node.name.clone(),
        keyword_as,
        platform: flags.text("platform"),
        code: node.original.trim().to_owned(),
        comments: node.comments.clone(),
        span: node.span,
        commands: Vec::new(),
    })
}

fn sources(node: &Node, name: &str) -> Result<SourcesAndDest, ParseError> {
    let Some((dest, paths)) = node
        .args
        .split_last()
        .filter(|(_, paths)| !paths.is_empty())
    else {
        return Err(ParseError::new(format!(
            "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
        )));
    };
    if parse_heredoc(dest).is_some() {
        return Err(ParseError::new(format!(
            "{name} cannot accept a heredoc as a destination"
        )));
    }
    let mut sources = SourcesAndDest {
        dest: dest.clone(),
        ..SourcesAndDest::default()
    };
    for path in paths {
        let Some(found) = parse_heredoc(path) else {
            sources.paths.push(path.clone());
            continue;
        };
        // Two documents of one name: the later one counts.
        let content = node
            .heredocs
            .iter()
            .rfind(|heredoc| heredoc.name == found.name)
            .map(|heredoc| heredoc.content.as_str())
            .unwrap_or_default();
        sources.contents.push(SourceContent {
            path: found.name,
            data: if found.chomp {
                chomp(content)
            } else {
                content.to_owned()
            },
            expand: found.expand,
        });
    }
    Ok(sources)
}

fn add(node: &Node) -> Result<Add, ParseError> {
    // The number of arguments is complained of before the flags are.
    let counted = sources(node, "ADD");
    if node.args.len() < 2 {
        counted?;
        return Ok(Add::default());
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("chmod", Kind::Text),
            ("chown", Kind::Text),
            ("link", Kind::Bool),
            ("keep-git-dir", Kind::Bool),
            ("checksum", Kind::Text),
            ("unpack", Kind::Bool),
            ("exclude", Kind::List),
        ],
    )?;
    Ok(Add {
        sources: counted?,
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link"),
        exclude: flags.list("exclude"),
        keep_git_dir: flags.optional_bool("keep-git-dir"),
        checksum: flags.text("checksum"),
        unpack: flags.optional_bool("unpack"),
    })
}

fn copy(node: &Node) -> Result<Copy, ParseError> {
    let counted = sources(node, "COPY");
    if node.args.len() < 2 {
        counted?;
        return Ok(Copy::default());
    }
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("chmod", Kind::Text),
            ("chown", Kind::Text),
            ("from", Kind::Text),
            ("link", Kind::Bool),
            ("parents", Kind::Bool),
            ("exclude", Kind::List),
        ],
    )?;
    Ok(Copy {
        sources: counted?,
        from: flags.text("from"),
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.bool("link"),
        parents: flags.bool("parents"),
        exclude: flags.list("exclude"),
    })
}

/// A JSON array as it is; otherwise all in one argument, unless there is nothing.
pub(super) fn shell_args(args: &[String], json: bool) -> Vec<String> {
    if json || args.is_empty() {
        args.to_vec()
    } else {
        vec![args.join(" ")]
    }
}

fn line(node: &Node) -> CommandLine {
    CommandLine {
        args: shell_args(&node.args, node.json),
        files: node
            .heredocs
            .iter()
            .map(|heredoc| InlineFile {
                name: heredoc.name.clone(),
                data: heredoc.content.clone(),
                chomp: heredoc.chomp,
            })
            .collect(),
        shell: !node.json,
    }
}

fn command_line(node: &Node) -> Result<CommandLine, ParseError> {
    no_flags(node)?;
    Ok(line(node))
}

fn run(node: &Node) -> Result<Run, ParseError> {
    let mut flags = Flags::parse(
        &node.flags,
        &[
            ("mount", Kind::List),
            ("network", Kind::Text),
            ("security", Kind::Text),
            ("device", Kind::List),
        ],
    )?;
    let run = Run {
        line: line(node),
        mounts: flags.list("mount"),
        network: one_of(
            flags.text("network"),
            "network",
            &["default", "none", "host"],
        )?,
        security: one_of(flags.text("security"), "security", &["sandbox", "insecure"])?,
        devices: flags.list("device"),
    };
    for mount in &run.mounts {
        mount::parse_mount(mount, None)?;
    }
    Ok(run)
}

/// The first option when nothing is given.
fn one_of(value: String, flag: &str, options: &[&str]) -> Result<String, ParseError> {
    if value.is_empty() {
        return Ok(options[0].to_owned());
    }
    if options.contains(&value.as_str()) {
        return Ok(value);
    }
    let message = match flag {
        "network" => format!("invalid network mode {value:?}"),
        _ => format!("security {value:?} is not valid"),
    };
    Err(ParseError::new(message))
}

fn shell(node: &Node) -> Result<Vec<String>, ParseError> {
    no_flags(node)?;
    if node.args.is_empty() {
        return Err(ParseError::new("SHELL requires at least one argument"));
    }
    if !node.json {
        return Err(ParseError::new(
            "SHELL requires the arguments to be in JSON form",
        ));
    }
    Ok(node.args.clone())
}

fn volume(node: &Node) -> Result<Vec<String>, ParseError> {
    at_least_one(node, "VOLUME")?
        .iter()
        .map(|volume| match volume.trim() {
            "" => Err(ParseError::new(
                "VOLUME specified can not be an empty string",
            )),
            volume => Ok(volume.to_owned()),
        })
        .collect()
}

fn onbuild(node: &Node) -> Result<String, ParseError> {
    let trigger = at_least_one(node, "ONBUILD")?[0].trim().to_uppercase();
    match trigger.as_str() {
        "ONBUILD" => {
            return Err(ParseError::new(
                "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
            ));
        }
        "MAINTAINER" | "FROM" => {
            return Err(ParseError::new(format!(
                "{trigger} isn't allowed as an ONBUILD trigger"
            )));
        }
        _ => {}
    }
    let text = node.original.trim_start();
    let text = text.get(node.name.len()..).unwrap_or_default().trim_start();
    let mut expression = text.to_owned();
    for heredoc in &node.heredocs {
        expression.push('\n');
        expression.push_str(&heredoc.content);
        expression.push_str(&heredoc.name);
    }
    Ok(expression)
}
