//! Sources of COPY and ADD that the ignore file leaves out.

use cooper_dockerfile::{Command, Instruction};
use cooper_session::pattern::{Matcher, clean, has_wildcards, wildcard_match};

use super::Converter;
use super::copy::CopyOrAdd;
use crate::lint;

impl Converter<'_> {
    /// Warns of a source of which nothing is left.
    pub(super) fn check_ignored(&mut self, command: &Command, cfg: &CopyOrAdd, path: &str) {
        let Some(matcher) = self.ignore.as_ref().filter(|_| cfg.from_context) else {
            return;
        };
        let src = clean(path);
        if !is_ignored(matcher, &src) {
            return;
        }
        let verb = match command.instruction {
            Instruction::Add(_) => "Add",
            _ => "Copy",
        };
        self.lint.warn_below(
            &command.comments,
            &lint::COPY_IGNORED_FILE,
            command.span,
            format!("Attempting to {verb} file {src:?} that is excluded by .dockerignore"),
        );
    }
}

/// Whether the patterns leave nothing of a clean path.
fn is_ignored(matcher: &Matcher, src: &str) -> bool {
    let path = src.trim_start_matches('/');
    let is_root = matches!(path, "" | ".");
    let patterns = matcher.patterns();
    let is_all = |text: &str| matches!(text, "*" | "**" | "**/*");
    if is_root && !patterns.iter().any(|pattern| is_all(pattern.text())) {
        return false;
    }
    if !matcher.is_match(path) {
        return false;
    }
    // Later patterns decide: only those behind the one that leaves it out can bring back a part.
    let last = patterns
        .iter()
        .rposition(|pattern| !pattern.is_exception() && pattern.covers(path));
    let later = &patterns[last.map_or(0, |last| last + 1)..];
    let mut exceptions = later.iter().filter(|pattern| pattern.is_exception());
    !exceptions.any(|pattern| is_root || may_be_within(pattern.text(), path))
}

/// Whether a pattern can match the path or something below it.
fn may_be_within(pattern: &str, path: &str) -> bool {
    let mut parts = pattern.split('/');
    for wanted in path.split('/') {
        let Some(part) = parts.next() else {
            return false;
        };
        if part.contains("**") {
            return true;
        }
        let fits = match (has_wildcards(part), has_wildcards(wanted)) {
            (true, true) => true,
            (false, true) => wildcard_match(wanted, &part.replace('\\', "")).unwrap_or(true),
            (_, false) => wildcard_match(part, wanted).unwrap_or(true),
        };
        if !fits {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn exceptions_bring_back_what_is_behind_them() {
        for (patterns, src, expected) in [
            ("a", "a/b", true),
            ("a", "b", false),
            ("*", ".", true),
            (".*", ".", false),
            ("**\n!Dockerfile", ".", false),
            ("sub\n!sub/b.txt", "sub/a.txt", true),
            ("sub\n!sub/b.txt", "/sub/b.txt", false),
            ("sub\n!sub/b.txt", "sub", false),
            ("sub\n!sub/b.txt", "/", false),
            ("sub\n!sub/b.txt", "sub/*.txt", false),
            ("sub\n!sub/b.txt", "sub/*.md", true),
            ("sub\n!sub/*.txt", "sub/*.txt", false),
            ("sub\n!sub/*.md", "sub/a.txt", true),
            ("sub\n!other", "sub", true),
            ("!sub/b.txt\nsub", "sub/b.txt", true),
            ("!sub/b.txt\nsub", "sub", true),
            ("sub\n!**/b", "sub/c", false),
            ("su.b\n!su\\.b/keep.txt", "su.b", false),
            ("sub\n!sub/a/b", "sub/a", false),
        ] {
            let matcher = Matcher::new(patterns.lines()).unwrap();
            assert_eq!(is_ignored(&matcher, src), expected, "{patterns:?} {src}");
        }
    }
}
