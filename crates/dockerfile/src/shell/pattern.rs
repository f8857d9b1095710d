//! The patterns of `#`, `%` and `/`: `?` is any character, `*` any text, a backslash escapes.

use regex::Regex;

enum Part {
    Any,
    Star,
    Is(char),
}

fn parts(pattern: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        parts.push(match c {
            '*' => Part::Star,
            '?' => Part::Any,
            '\\' => match chars.peek() {
                // Escaped for the sake of the braces around, not for the pattern.
                Some('}' | '/') => continue,
                Some(&c @ ('*' | '?' | '\\')) => {
                    chars.next();
                    Part::Is(c)
                }
                other => {
                    let c = other.copied().unwrap_or('\u{fffd}');
                    return Err(format!(
                        "invalid pattern ({pattern}) in substitution: invalid escape '\\{c}'"
                    ));
                }
            },
            c => Part::Is(c),
        });
    }
    Ok(parts)
}

fn regex<'a>(
    pattern: &str,
    parts: impl Iterator<Item = &'a Part>,
    longest: bool,
    anchored: bool,
) -> Result<Regex, String> {
    let mut text = String::new();
    if anchored {
        text.push('^');
    }
    for part in parts {
        match part {
            Part::Any => text.push('.'),
            Part::Star if longest => text.push_str(".*"),
            Part::Star => text.push_str(".*?"),
            Part::Is(c) => text.push_str(&regex::escape(c.encode_utf8(&mut [0; 4]))),
        }
    }
    Regex::new(&text)
        .map_err(|_| format!("invalid pattern ({pattern}) in substitution: it is too large"))
}

/// `value` without the shortest or longest beginning that matches.
pub(super) fn strip_prefix(pattern: &str, value: &str, longest: bool) -> Result<String, String> {
    let parts = parts(pattern)?;
    let found = regex(pattern, parts.iter(), longest, true)?
        .find(value)
        .map_or(0, |found| found.end());
    Ok(value[found..].to_owned())
}

/// `value` without the shortest or longest end that matches: the beginning of the reverse.
pub(super) fn strip_suffix(pattern: &str, value: &str, longest: bool) -> Result<String, String> {
    let parts = parts(pattern)?;
    let reversed: String = value.chars().rev().collect();
    let found = regex(pattern, parts.iter().rev(), longest, true)?
        .find(&reversed)
        .map_or(0, |found| found.end());
    Ok(reversed[found..].chars().rev().collect())
}

/// `value` with the first or all of what matches replaced; as much as possible each time.
pub(super) fn replace(
    pattern: &str,
    value: &str,
    replacement: &str,
    all: bool,
) -> Result<String, String> {
    let parts = parts(pattern)?;
    let regex = regex(pattern, parts.iter(), true, false)?;
    let limit = if all { 0 } else { 1 };
    Ok(regex
        .replacen(value, limit, regex::NoExpand(replacement))
        .into_owned())
}
