//! Dockerfiles: from text to a syntax tree with the lines it came from, from the tree to typed
//! instructions, and the expansion of words.
//!
//! Three steps, each usable alone. [`parse`] cuts the text into [`Node`]s: directives, comments,
//! continued lines, flags, JSON forms and here-documents are known, the instructions' meaning is
//! not. [`program`] makes typed [`Instruction`]s of the nodes and sorts them into [`Stage`]s.
//! [`Lex`] expands `$variables` and quotes in a word the way that `docker build` does.
//!
//! This crate refuses to know build graphs, images, files and what an instruction does: it reads
//! no file and opens no socket.
//!
//! The grammar and the wording of the errors are those of BuildKit's `frontend/dockerfile`.
//!
//! ```
//! use cooper_dockerfile::{Instruction, parse, program};
//!
//! let text = b"# syntax=docker/dockerfile:1\nFROM alpine AS base\nRUN echo \\\n  hello\n";
//! let dockerfile = parse(text)?;
//! assert_eq!(dockerfile.directive("syntax"), Some("docker/dockerfile:1"));
//!
//! let program = program(&dockerfile)?;
//! let stage = &program.stages[0];
//! assert_eq!((stage.base.as_str(), stage.name.as_str()), ("alpine", "base"));
//! let Instruction::Run(run) = &stage.commands[0].instruction else { panic!("not RUN") };
//! assert_eq!(run.line.args, ["echo   hello"]);
//! assert_eq!((stage.commands[0].span.start, stage.commands[0].span.end), (3, 4));
//!
//! let error = cooper_dockerfile::program(&parse(b"FROM scratch\nCOPPY . /\n")?).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "dockerfile parse error on line 2: unknown instruction: COPPY (did you mean COPY?)"
//! );
//! # Ok::<_, cooper_dockerfile::ParseError>(())
//! ```
//!
//! Modules in reading order: `span`, `parser` (lines to nodes), `shell` (words), `instructions`
//! (nodes to instructions), [`suggest`], [`duration`], [`csv`].
#![forbid(unsafe_code)]

pub mod csv;
pub mod duration;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod instructions;
mod parser;
mod shell;
mod span;
pub mod suggest;

pub use error::ParseError;
pub use instructions::{
    Add, Arg, CacheSharing, Command, CommandLine, Copy, Expander, Healthcheck, InlineFile,
    Instruction, KeyValue, Mount, MountKind, Program, Run, SourceContent, SourcesAndDest, Stage,
    command, parse_mount, program,
};
pub use parser::{
    Directive, Dockerfile, Heredoc, Node, chomp, detect_syntax, directive, parse, parse_heredoc,
};
pub use shell::{Env, ExpandError, Expansion, Lex};
pub use span::{Position, Range, Span};
