//! Text to nodes.

mod directives;
mod flags;
mod heredoc;
mod line;

pub use directives::{Directive, detect_syntax, directive};
pub use heredoc::{Heredoc, chomp, parse_heredoc};

use directives::DirectiveParser;

use crate::{ParseError, Span};

/// The longest line in bytes, its end included: BuildKit's, which is that of Go's `bufio`.
const MAX_LINE: usize = 64 * 1024;
const BOM: char = '\u{feff}';

/// A Dockerfile cut into instructions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The instructions in order; at least one.
    pub nodes: Vec<Node>,
    /// The character that escapes and that continues a line: a backslash or a backquote.
    pub escape: char,
    /// The parser directives at the top.
    pub directives: Vec<Directive>,
    /// The last lines of instructions that are continued over an empty line.
    pub empty_continuations: Vec<Span>,
}

impl Dockerfile {
    /// The value of a parser directive.
    pub fn directive(&self, name: &str) -> Option<&str> {
        self.directives
            .iter()
            .find(|directive| directive.name == name)
            .map(|directive| directive.value.as_str())
    }
}

/// One instruction, not yet understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The first word, as it was written.
    pub name: String,
    /// The whole text with continued lines joined, without here-documents.
    pub original: String,
    /// Words with `--` before the arguments.
    pub flags: Vec<String>,
    /// The arguments. For `ENV` and `LABEL` each pair is three: key, value and `=` (or nothing in
    /// the old form).
    pub args: Vec<String>,
    /// The arguments came as a JSON array.
    pub json: bool,
    /// The here-documents that the text names, in order.
    pub heredocs: Vec<Heredoc>,
    /// The instruction within an `ONBUILD`.
    pub child: Option<Box<Node>>,
    /// The comment lines above, back to the last instruction or empty comment.
    pub comments: Vec<String>,
    /// The lines.
    pub span: Span,
}

impl Node {
    /// Here-documents belong to `RUN`, `COPY` and `ADD`, also within `ONBUILD`, unless in JSON.
    fn can_contain_heredoc(&self) -> bool {
        let node = match (self.name.to_ascii_lowercase().as_str(), &self.child) {
            ("onbuild", Some(child)) => child,
            _ => self,
        };
        let name = node.name.to_ascii_lowercase();
        matches!(name.as_str(), "add" | "copy" | "run") && !node.json
    }
}

/// Cuts a Dockerfile into instructions.
///
/// Bytes that are not UTF-8 are replaced by U+FFFD.
pub fn parse(text: &[u8]) -> Result<Dockerfile, ParseError> {
    let text = String::from_utf8_lossy(text);
    let mut lines = Lines::new(text.strip_prefix(BOM).unwrap_or(&text));
    let mut directives = DirectiveParser::new("#", 0);
    let mut escape = '\\';
    let mut comments: Vec<String> = Vec::new();
    let mut nodes = Vec::new();
    let mut empty_continuations = Vec::new();

    while let Some(raw) = lines.next()? {
        let start = lines.number;
        let line = trim_newline(raw).trim_start();
        let directive = directives
            .line(line)
            .map_err(|error| error.at(Span::line(start)))?;
        if let Some(directive) = directive {
            if directive.name == "escape" {
                escape =
                    escape_token(&directive.value).map_err(|error| error.at(Span::line(start)))?;
            }
            comments.clear();
            continue;
        }
        if let Some(comment) = line.strip_prefix('#') {
            match comment.trim() {
                "" => comments.clear(),
                comment => comments.push(comment.to_owned()),
            }
            continue;
        }
        let (part, mut continued) = trim_continuation(line, escape);
        if part.is_empty() && !continued {
            continue;
        }
        let mut instruction = part.to_owned();
        let mut has_empty = false;
        while continued {
            let Some(raw) = lines.next()? else { break };
            let line = trim_newline(raw);
            let trimmed = line.trim_start();
            if trimmed.starts_with('#') {
                continue;
            }
            if trimmed.is_empty() {
                has_empty = true;
                continue;
            }
            let (part, more) = trim_continuation(line, escape);
            instruction.push_str(part);
            continued = more;
        }
        let joined = Span {
            start,
            end: lines.number,
        };
        if has_empty {
            empty_continuations.push(Span::line(joined.end));
        }
        let mut node = node(&instruction, escape).map_err(|error| error.at(joined))?;
        if node.can_contain_heredoc() {
            node.heredocs = heredocs(&instruction, &mut lines, start)?;
        }
        node.comments = std::mem::take(&mut comments);
        node.span = Span {
            start,
            end: lines.number,
        };
        nodes.push(node);
    }
    if nodes.is_empty() {
        return Err(ParseError::new("file with no instructions").at(Span::line(lines.number)));
    }
    Ok(Dockerfile {
        nodes,
        escape,
        directives: directives.seen,
        empty_continuations,
    })
}

/// Reads the here-documents that `instruction` names.
fn heredocs(
    instruction: &str,
    lines: &mut Lines<'_>,
    start: u32,
) -> Result<Vec<Heredoc>, ParseError> {
    let mut documents = heredoc::in_line(instruction).map_err(|error| {
        error.at(Span {
            start,
            end: lines.number,
        })
    })?;
    for document in &mut documents {
        loop {
            let Some(raw) = lines.next()? else {
                return Err(ParseError::new("unterminated heredoc").at(Span {
                    start,
                    end: lines.number,
                }));
            };
            let mut line = trim_newline(raw);
            if document.chomp {
                line = line.trim_start_matches('\t');
            }
            if line == document.name {
                break;
            }
            document.content.push_str(raw);
        }
    }
    Ok(documents)
}

/// Splits an instruction into its name, its flags and its arguments.
fn node(text: &str, escape: char) -> Result<Node, ParseError> {
    let (name, rest) = line::split_whitespace_once(text.trim());
    let (flags, rest) = match rest {
        Some(rest) => flags::extract(rest),
        None => (Vec::new(), String::new()),
    };
    let mut node = Node {
        name: name.to_owned(),
        original: text.to_owned(),
        flags,
        ..Node::default()
    };
    let rest = rest.trim();
    match name.to_ascii_lowercase().as_str() {
        "add" | "copy" | "volume" => (node.args, node.json) = line::json_or_list(rest)?,
        "cmd" | "entrypoint" | "run" | "shell" => {
            (node.args, node.json) = line::json_or_text(rest)?
        }
        "arg" => node.args = line::words(rest, escape),
        "env" => node.args = line::pairs(rest, "ENV", escape)?,
        "label" => node.args = line::pairs(rest, "LABEL", escape)?,
        "expose" | "from" => node.args = line::list(rest),
        "maintainer" | "stopsignal" | "user" | "workdir" => node.args = line::text(rest),
        "healthcheck" => (node.args, node.json) = line::health(rest)?,
        "onbuild" if !rest.is_empty() => {
            // An ONBUILD within an ONBUILD is refused later; its own child is not needed for that.
            let child = if line::split_whitespace_once(rest)
                .0
                .eq_ignore_ascii_case("onbuild")
            {
                Node {
                    name: "ONBUILD".into(),
                    ..Node::default()
                }
            } else {
                self::node(rest, escape)?
            };
            node.args.push(child.name.clone());
            node.args.extend(child.args.iter().cloned());
            node.child = Some(Box::new(child));
        }
        // Unknown ones are reported when they are to be understood.
        _ => {}
    }
    Ok(node)
}

fn escape_token(value: &str) -> Result<char, ParseError> {
    match value {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        other => Err(ParseError::new(format!(
            "invalid escape token '{other}' does not match ` or \\"
        ))),
    }
}

/// Without the escape character at the end, if that continues the line: two of them do not.
fn trim_continuation(line: &str, escape: char) -> (&str, bool) {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

fn trim_newline(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// The lines with their ends, counted.
struct Lines<'a> {
    rest: &'a str,
    /// The number of the line that came last.
    number: u32,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            rest: text,
            number: 0,
        }
    }

    fn next(&mut self) -> Result<Option<&'a str>, ParseError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let end = self.rest.find('\n').map_or(self.rest.len(), |i| i + 1);
        let (line, rest) = self.rest.split_at(end);
        if line.len() > MAX_LINE {
            return Err(ParseError::new(format!(
                "dockerfile line greater than max allowed size of {}",
                MAX_LINE - 1
            ))
            .at(Span::line(self.number)));
        }
        self.rest = rest;
        self.number += 1;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests;
