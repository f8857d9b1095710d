//! Parser directives: `# syntax=`, `# escape=`, `# check=` at the top of a file.

use crate::{ParseError, Span};

const KNOWN: &[&str] = &["syntax", "escape", "check"];

/// A parser directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// What stands behind the `=`.
    pub value: String,
    /// The line.
    pub span: Span,
}

/// Directives end with the first line that is none.
pub(super) struct DirectiveParser {
    comment: &'static str,
    line: u32,
    done: bool,
    pub(super) seen: Vec<Directive>,
}

impl DirectiveParser {
    pub(super) fn new(comment: &'static str, line: u32) -> Self {
        Self {
            comment,
            line,
            done: false,
            seen: Vec::new(),
        }
    }

    /// The directive on the next line, if that is one.
    pub(super) fn line(&mut self, line: &str) -> Result<Option<Directive>, ParseError> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = line.strip_prefix(self.comment).and_then(split) else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.iter().any(|directive| directive.name == name) {
            return Err(ParseError::new(format!(
                "only one {name} parser directive can be used"
            )));
        }
        let directive = Directive {
            name,
            value: value.to_owned(),
            span: Span::line(self.line),
        };
        self.seen.push(directive.clone());
        Ok(Some(directive))
    }
}

/// `name = value`, of a known name.
fn split(text: &str) -> Option<(String, &str)> {
    let (name, value) = text.split_once('=')?;
    let name = name.trim().to_ascii_lowercase();
    let value = value.trim();
    (KNOWN.contains(&name.as_str()) && !value.is_empty()).then_some((name, value))
}

/// The value of the directive `name` in any text that begins with lines of comment.
pub fn directive(name: &str, text: &[u8]) -> Option<Directive> {
    find(name, text, false)
}

/// Which frontend a text wants to be built by: `# syntax=`, `// syntax=` or `{"syntax": …}` at
/// the top, after a byte-order mark and a `#!` line. The value may have arguments behind it.
pub fn detect_syntax(text: &[u8]) -> Option<Directive> {
    find("syntax", text, true)
}

fn find(name: &str, text: &[u8], any_format: bool) -> Option<Directive> {
    let text = String::from_utf8_lossy(text);
    let mut text = text.strip_prefix(super::BOM).unwrap_or(&text);
    let mut line = 0;
    if text.starts_with("#!") {
        text = text.split_once('\n').map_or("", |(_, rest)| rest);
        line = 1;
    }
    let comments: &[&'static str] = if any_format { &["#", "//"] } else { &["#"] };
    for comment in comments {
        let mut parser = DirectiveParser::new(comment, line);
        for line in text.lines() {
            if parser.line(line).is_err() || parser.done {
                break;
            }
        }
        let found = parser.seen.into_iter().find(|found| found.name == name);
        if found.is_some() {
            return found;
        }
    }
    if !any_format {
        return None;
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let value = object.get(name)?.as_str()?;
    Some(Directive {
        name: name.to_owned(),
        value: value.to_owned(),
        span: Span::line(line),
    })
}
