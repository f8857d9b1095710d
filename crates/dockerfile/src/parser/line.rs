//! The forms that arguments come in.

use crate::ParseError;

/// The white space that separates arguments; not that of Unicode.
fn is_separator(c: char) -> bool {
    matches!(c, '\t' | '\x0b' | '\x0c' | '\r' | ' ')
}

/// The first word, and what stands behind the white space after it.
pub(super) fn split_whitespace_once(text: &str) -> (&str, Option<&str>) {
    match text.split_once(is_separator) {
        Some((first, rest)) => (first, Some(rest.trim_start_matches(is_separator))),
        None => (text, None),
    }
}

/// One argument: all of the text.
pub(super) fn text(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        Vec::new()
    } else {
        vec![rest.to_owned()]
    }
}

/// Arguments separated by white space, quotes not heeded.
pub(super) fn list(rest: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut left = Some(rest).filter(|rest| !rest.is_empty());
    while let Some(text) = left {
        let (word, rest) = split_whitespace_once(text);
        out.push(word.to_owned());
        left = rest;
    }
    out
}

/// A JSON array of strings, or one argument.
pub(super) fn json_or_text(rest: &str) -> Result<(Vec<String>, bool), ParseError> {
    Ok(match json(rest)? {
        Some(args) => (args, true),
        None => (text(rest), false),
    })
}

/// A JSON array of strings, or arguments separated by white space.
pub(super) fn json_or_list(rest: &str) -> Result<(Vec<String>, bool), ParseError> {
    Ok(match json(rest)? {
        Some(args) => (args, true),
        None => (list(rest), false),
    })
}

/// `HEALTHCHECK`: a word, then a JSON array or one argument.
pub(super) fn health(rest: &str) -> Result<(Vec<String>, bool), ParseError> {
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (kind, rest) = rest.split_at(end);
    if kind.is_empty() {
        return Ok((Vec::new(), false));
    }
    let (args, json) = json_or_text(rest.trim_start())?;
    let mut all = vec![kind.to_owned()];
    all.extend(args);
    Ok((all, json))
}

/// `None` when it is no JSON array: then it is a text that begins like one.
fn json(rest: &str) -> Result<Option<Vec<String>>, ParseError> {
    let rest = rest.trim_start();
    if !rest.starts_with('[') {
        return Ok(None);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(rest) else {
        return Ok(None);
    };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        _ => Err(ParseError::new(
            "when using JSON array syntax, arrays must be comprised of strings only",
        )),
    });
    strings.collect::<Result<Vec<_>, _>>().map(Some)
}

/// Words separated by white space; quotes and escapes keep white space in a word, and stay.
pub(super) fn words(rest: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut quote: Option<char> = None;
    let mut was_quoted = false;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if in_word && (was_quoted || !word.is_empty()) {
                    words.push(std::mem::take(&mut word));
                }
                (in_word, was_quoted) = (false, false);
                continue;
            }
            None => {
                in_word = true;
                if c == '\'' || c == '"' {
                    (quote, was_quoted) = (Some(c), true);
                }
            }
            Some(open) if c == open => quote = None,
            Some(_) => {}
        }
        // Single quotes keep escapes as they are.
        if c == escape && quote != Some('\'') {
            // At the end of the text it is dropped.
            if let Some(next) = chars.next() {
                word.push(c);
                word.push(next);
            }
        } else {
            word.push(c);
        }
    }
    if in_word && (was_quoted || !word.is_empty()) {
        words.push(word);
    }
    words
}

/// `name=value …`, or the old `name value`: three strings for each pair.
pub(super) fn pairs(rest: &str, command: &str, escape: char) -> Result<Vec<String>, ParseError> {
    let words = words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Vec::new());
    };
    if !first.contains('=') {
        let (name, Some(value)) = split_whitespace_once(rest) else {
            return Err(ParseError::new(format!(
                "{command} must have two arguments"
            )));
        };
        return Ok(vec![name.to_owned(), value.to_owned(), String::new()]);
    }
    let mut out = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let Some((name, value)) = word.split_once('=') else {
            return Err(ParseError::new(format!(
                "Syntax error - can't find = in {word:?}. Must be of the form: name=value"
            )));
        };
        out.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(out)
}
