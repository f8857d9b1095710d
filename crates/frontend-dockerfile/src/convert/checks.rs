//! What can be built and should not be written so.

use std::collections::BTreeSet;

use cooper_dockerfile::{Command, Expansion, Instruction, KeyValue, Program, Span, Stage, suggest};
use cooper_llb::platform;
use cooper_proto::pb;
use cooper_registry::Reference;

use super::Converter;
use super::args::Vars;
use super::stage::StageState;
use crate::lint::{self, Lint};

const SECRETS: &[&str] = &[
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];
const NO_SECRETS: &[&str] = &["public", "file", "version"];

/// Names that a misspelt image may have been meant to have.
pub(super) fn common_images() -> Vec<String> {
    let names = [
        "alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora",
    ];
    names
        .iter()
        .flat_map(|name| [(*name).to_owned(), format!("{name}:latest")])
        .collect()
}

/// What the text alone shows.
pub(super) fn program(program: &Program, lint: &mut Lint) {
    let commands = || program.stages.iter().flat_map(|stage| &stage.commands);
    for argument in &program.arguments {
        descriptions(argument, lint);
    }
    for stage in &program.stages {
        stage_names(stage, lint);
        for command in &stage.commands {
            descriptions(command, lint);
            if matches!(command.instruction, Instruction::Maintainer(_)) {
                lint.warn_below(
                    &command.comments,
                    &lint::MAINTAINER_DEPRECATED,
                    command.span,
                    "Maintainer instruction is deprecated in favor of using label",
                );
            }
        }
    }
    let mut seen = BTreeSet::new();
    for stage in program.stages.iter().filter(|stage| !stage.name.is_empty()) {
        let name = &stage.name;
        if matches!(name.as_str(), "context" | "scratch") {
            lint.warn(
                &lint::RESERVED_STAGE_NAME,
                stage.span,
                format!("Stage name should not use the same name as reserved stage {name:?}"),
            );
        }
        if !seen.insert(name) {
            lint.warn(
                &lint::DUPLICATE_STAGE_NAME,
                stage.span,
                format!("Duplicate stage name {name:?}, stage names should be unique"),
            );
        }
    }
    let stages = program.stages.iter();
    let words: Vec<(&str, Span)> = stages
        .map(|stage| (stage.from.as_str(), stage.span))
        .chain(commands().map(|command| (command.name.as_str(), command.span)))
        .collect();
    casing(&words, lint);
}

fn stage_names(stage: &Stage, lint: &mut Lint) {
    let mut warn = |rule, message: String| {
        lint.warn_below(&stage.comments, rule, stage.span, message);
    };
    if stage.written_name != stage.name {
        warn(
            &lint::STAGE_NAME_CASING,
            format!("Stage name '{}' should be lowercase", stage.written_name),
        );
    }
    let lower = |word: &str| word.to_lowercase() == word;
    let upper = |word: &str| word.to_uppercase() == word;
    let (from, keyword) = (stage.from.as_str(), stage.keyword_as.as_str());
    // One that is neither is complained of as it is.
    let differ = (lower(from) && !lower(keyword)) || (upper(from) && !upper(keyword));
    if differ {
        warn(
            &lint::FROM_AS_CASING,
            format!("'{keyword}' and '{from}' keywords' casing do not match"),
        );
    }
    let name = [stage.name.as_str()];
    let named = if stage.name.is_empty() {
        &[][..]
    } else {
        &name
    };
    if let Some(message) = undescribed("FROM", named, &stage.comments) {
        warn(&lint::INVALID_DEFINITION_DESCRIPTION, message);
    }
}

/// A comment right above that describes none of `names`.
fn undescribed(instruction: &str, names: &[&str], comments: &[String]) -> Option<String> {
    let first = comments.last()?.split(' ').next().unwrap_or_default();
    if names.contains(&first) {
        return None;
    }
    let example = match names {
        [] => return None,
        [name] => name,
        _ => "<arg_key>",
    };
    Some(format!(
        "Comment for {instruction} should follow the format: `# {example} <description>`"
    ))
}

fn descriptions(command: &Command, lint: &mut Lint) {
    let Instruction::Arg(args) = &command.instruction else {
        return;
    };
    let names: Vec<_> = args.iter().map(|arg| arg.key.as_str()).collect();
    if let Some(message) = undescribed("ARG", &names, &command.comments) {
        lint.warn_below(
            &command.comments,
            &lint::INVALID_DEFINITION_DESCRIPTION,
            command.span,
            message,
        );
    }
}

/// All instructions have the case of most of them.
fn casing(words: &[(&str, Span)], lint: &mut Lint) {
    let lower = words
        .iter()
        .filter(|(word, _)| word.to_lowercase() == *word);
    let upper = words
        .iter()
        .filter(|(word, _)| word.to_uppercase() == *word);
    let (fold, name): (fn(&str) -> String, _) = if lower.count() > upper.count() {
        (str::to_lowercase, "lowercase")
    } else {
        (str::to_uppercase, "uppercase")
    };
    for (word, span) in words {
        if fold(word) != *word {
            lint.warn(
                &lint::CONSISTENT_INSTRUCTION_CASING,
                *span,
                format!("Command '{word}' should match the case of the command majority ({name})"),
            );
        }
    }
}

/// Of what only the last counts: the place of the one that does not.
pub(super) fn once(lint: &mut Lint, command: &Command, before: Option<Span>) {
    if let Some(before) = before {
        let name = &command.name;
        lint.warn_below(
            &command.comments,
            &lint::MULTIPLE_INSTRUCTIONS_DISALLOWED,
            before,
            format!("Multiple {name} instructions should not be used in the same stage because only the last one will be used"),
        );
    }
}

/// A stage that needs itself, and the lines that say so.
pub(super) fn cycle(stages: &[StageState]) -> Option<(usize, Vec<Span>)> {
    // An explicit stack: the depth is the author's. `open` are the stages on it.
    let mut done = vec![false; stages.len()];
    for start in 0..stages.len() {
        let mut open: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((place, next)) = open.pop() {
            if done[place] {
                continue;
            }
            let Some((dep, _)) = stages[place].deps.get(next).copied() else {
                done[place] = true;
                continue;
            };
            open.push((place, next + 1));
            if open.iter().any(|(other, _)| *other == dep) {
                let spans = open
                    .iter()
                    .map(|&(place, next)| stages[place].deps[next - 1].1);
                return Some((start, spans.collect()));
            }
            open.push((dep, 0));
        }
    }
    None
}

impl Converter<'_> {
    pub(super) fn check_delimiter(&mut self, command: &Command, pair: &KeyValue) {
        if pair.no_delimiter {
            let name = &command.name;
            self.lint.warn_below(
                &command.comments,
                &lint::LEGACY_KEY_VALUE_FORMAT,
                command.span,
                format!("\"{name} key=value\" should be used instead of legacy \"{name} key value\" format"),
            );
        }
    }

    pub(super) fn check_secret(&mut self, instruction: &str, command: &Command, key: &str) {
        let has = |words: &[&str]| {
            key.split('_')
                .any(|part| words.contains(&part.to_lowercase().as_str()))
        };
        if has(SECRETS) && !has(NO_SECRETS) {
            self.lint.warn_below(
                &command.comments,
                &lint::SECRETS_USED_IN_ARG_OR_ENV,
                command.span,
                format!(
                    "Do not use ARG or ENV instructions for sensitive data ({instruction} {key:?})"
                ),
            );
        }
    }

    /// Variables that are not set, unless they are arguments without a value.
    pub(super) fn check_unmatched(
        &mut self,
        place: usize,
        command: &Command,
        unmatched: BTreeSet<String>,
    ) {
        let stage = &self.stages[place];
        let names: Vec<_> = stage.state.env().iter().map(|(name, _)| name).collect();
        let mut warnings = Vec::new();
        for name in unmatched {
            let known = stage.args.iter().any(|arg| arg.key == name);
            if known || name.starts_with("BUILDKIT_SBOM_SCAN_") {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(near) = suggest::nearest(&name, names.iter().copied(), true) {
                message.push_str(&format!(" (did you mean ${near}?)"));
            }
            warnings.push(message);
        }
        for message in warnings {
            self.lint.warn_below(
                &command.comments,
                &lint::UNDEFINED_VAR,
                command.span,
                message,
            );
        }
    }

    /// Variables of a `FROM` that no global argument sets.
    pub(super) fn check_from_args(&mut self, stage: &Stage, unmatched: &BTreeSet<String>) {
        let global = self.global_args.iter().map(|(name, _)| name);
        let known: BTreeSet<&str> = global
            .chain(self.capture.args.keys().map(String::as_str))
            .collect();
        for name in unmatched {
            if known.contains(name.as_str()) {
                continue;
            }
            let message = suggest::with_suggestion(
                format!("FROM argument '{name}' is not declared"),
                name,
                known.iter().copied(),
                true,
            );
            self.lint.warn_below(
                &stage.comments,
                &lint::UNDEFINED_ARG_IN_FROM,
                stage.span,
                message,
            );
        }
    }

    pub(super) fn check_platform(&mut self, stage: &Stage, found: &Expansion) {
        const TARGET: &str = "TARGETPLATFORM";
        let only_target = found.matched.len() == 1
            && found.unmatched.is_empty()
            && found.matched.contains(TARGET);
        if only_target && self.global_args.get(TARGET) == Some(found.text.as_str()) {
            self.lint.warn_below(
                &stage.comments,
                &lint::REDUNDANT_TARGET_PLATFORM,
                stage.span,
                format!(
                    "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
                    stage.platform
                ),
            );
        }
        if found.matched.is_empty()
            && found.unmatched.is_empty()
            && let Ok(platform) = platform::parse(&found.text)
            && !stage.name.contains(&platform.os)
            && !stage.name.contains(&platform.architecture)
        {
            self.lint.warn_below(
                &stage.comments,
                &lint::FROM_PLATFORM_FLAG_CONST_DISALLOWED,
                stage.span,
                format!(
                    "FROM --platform flag should not use constant value {:?}",
                    found.text
                ),
            );
        }
    }

    /// Whether base images have names when the client gives no arguments.
    pub(super) fn check_default_bases(&mut self, program: &Program) {
        let kept = self.global_args.clone();
        let defaults = self.arguments(
            &program.arguments,
            &std::collections::BTreeMap::new(),
            false,
        );
        let args = std::mem::replace(&mut self.global_args, kept);
        // What is wrong with them is said when they count.
        if defaults.is_err() {
            return;
        }
        for stage in &program.stages {
            let Ok(expanded) = self.lex.expand(&stage.base, &Vars(&args)) else {
                return;
            };
            if Reference::parse_named(&expanded.text).is_err() {
                let base = &stage.base;
                self.lint.warn_below(
                    &stage.comments,
                    &lint::INVALID_DEFAULT_ARG_IN_FROM,
                    stage.span,
                    format!(
                        "Default value for ARG {base} results in empty or invalid base image name"
                    ),
                );
            }
        }
    }

    pub(super) fn check_base_platform(
        &mut self,
        name: &str,
        expected: &pb::Platform,
        actual: &pb::Platform,
        span: Span,
    ) {
        if expected.os == actual.os && expected.architecture == actual.architecture {
            return;
        }
        let show = |platform| platform::format_all(&platform::normalize(platform));
        self.lint.warn(
            &lint::INVALID_BASE_IMAGE_PLATFORM,
            span,
            format!(
                "Base image {name} was pulled with platform {:?}, expected {:?} for current build",
                show(actual),
                show(expected)
            ),
        );
    }
}
