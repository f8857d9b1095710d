//! Here-documents: `<<EOF`, `<<-EOF`, `<<"EOF"`, `3<<EOF`.

use crate::ParseError;
use crate::shell::{Lex, NoEnv};

/// A here-document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// The file descriptor that stands before the `<<`; 0 when none does.
    pub descriptor: u32,
    /// The word was not quoted: variables in the content are to be expanded.
    pub expand: bool,
    /// `<<-`: tabs at the beginnings of the lines do not count.
    pub chomp: bool,
    /// The lines, with their ends and tabs.
    pub content: String,
}

/// The here-document that `word` begins, without its content.
pub fn parse_heredoc(word: &str) -> Option<Heredoc> {
    begin(word).ok().flatten()
}

/// `content` without the tabs at the beginnings of its lines.
pub fn chomp(content: &str) -> String {
    content
        .split_inclusive('\n')
        .map(|line| line.trim_start_matches('\t'))
        .collect()
}

/// The here-documents that the words of `line` begin.
pub(super) fn in_line(line: &str) -> Result<Vec<Heredoc>, ParseError> {
    let mut lex = Lex::new('\\');
    lex.raw_quotes = true;
    lex.raw_escapes = true;
    lex.skip_unset_env = true;
    let words = lex.words(line, &NoEnv).unwrap_or_default();
    let mut found = Vec::new();
    for word in &words {
        found.extend(begin(word)?);
    }
    Ok(found)
}

fn begin(word: &str) -> Result<Option<Heredoc>, ParseError> {
    let Some((descriptor, rest)) = word.split_once("<<") else {
        return Ok(None);
    };
    if !descriptor.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') || rest.ends_with('\n') {
        return Ok(None);
    }
    let mut lex = Lex::new('\\');
    lex.skip_unset_env = true;
    let split = |lex: &Lex| {
        lex.words(rest, &NoEnv)
            .map_err(|error| ParseError::new(error.to_string()))
    };
    let words = split(&lex)?;
    let [name] = words.as_slice() else {
        return Ok(None);
    };
    // Quotes that are there with the quotes kept and not without them quote the word.
    lex.raw_quotes = true;
    let raw = split(&lex)?;
    let [raw] = raw.as_slice() else {
        return Err(ParseError::new(format!(
            "internal lexing of heredoc produced inconsistent results: {rest}"
        )));
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        expand: quotes(name) == quotes(raw),
        name: name.clone(),
        descriptor: descriptor.parse().unwrap_or(0),
        chomp,
        content: String::new(),
    }))
}
