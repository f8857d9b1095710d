//! The patterns of `.dockerignore` files and of include and exclude lists, with the meaning that
//! moby/patternmatcher gives them; wildcards as Go's `path.Match` has them; clean paths.

use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;

use crate::SessionError;

/// A list of patterns. Later ones decide; a pattern that begins with `!` takes back what earlier
/// ones matched.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
    exceptions: bool,
}

/// One pattern of a [`Matcher`].
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    exception: bool,
    kind: Kind,
}

/// How a pattern is compared: a regular expression only where nothing cheaper does.
#[derive(Debug, Clone)]
enum Kind {
    Exact,
    /// Ends in `**`.
    Prefix,
    /// Begins with `**`.
    Suffix,
    Regex(Regex),
}

/// Which patterns matched a directory, for the paths below it.
#[derive(Debug, Clone)]
pub struct Matched(Vec<bool>);

impl Matcher {
    /// Reads patterns; empty ones are left out.
    ///
    /// # Errors
    /// A pattern that cannot be understood.
    pub fn new<I>(patterns: I) -> Result<Self, SessionError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        let mut matcher = Self::default();
        for given in patterns {
            let given = given.as_ref().trim();
            if given.is_empty() {
                continue;
            }
            let bad = || SessionError::Pattern {
                pattern: given.to_owned(),
            };
            let cleaned = clean(given);
            let (text, exception) = match cleaned.strip_prefix('!') {
                Some("") => {
                    let text = "illegal exclusion pattern: \"!\"";
                    return Err(SessionError::Protocol(text.to_owned()));
                }
                Some(rest) => (rest.to_owned(), true),
                None => (cleaned, false),
            };
            parse_glob(&text).ok_or_else(bad)?;
            let kind = compile(&text).ok_or_else(bad)?;
            matcher.exceptions |= exception;
            matcher.patterns.push(Pattern {
                text,
                exception,
                kind,
            });
        }
        Ok(matcher)
    }

    /// Whether the slash-separated path, or a directory that it is in, is matched.
    pub fn is_match(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            // A pattern matters only if it would change the answer.
            if pattern.exception == matched && pattern.covers(path) {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// Whether the path itself is matched; the directories that it is in do not count.
    pub fn is_exact_match(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.exception == matched && pattern.matches(path) {
                matched = !pattern.exception;
            }
        }
        matched
    }

    /// As [`is_match`](Self::is_match), for a walk that has the answer for the directory that
    /// `path` is in; and the answer for the paths below this one.
    pub fn step(&self, path: &str, parent: Option<&Matched>) -> (bool, Matched) {
        let mut matched = false;
        let mut all = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let above = parent.is_some_and(|parent| parent.0.get(index) == Some(&true));
            let hit = above
                || pattern.exception == matched
                    && match parent {
                        Some(_) => pattern.matches(path),
                        None => pattern.covers(path),
                    };
            all[index] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, Matched(all))
    }

    /// Whether a pattern begins with `!`.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    /// The patterns in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }
}

impl Pattern {
    /// The clean pattern, without `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it takes back what earlier ones matched.
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// The pattern without a trailing `/*` or `/**`.
    pub fn without_trailing_glob(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    /// Whether it is a plain path, but for a trailing `/*` or `/**`: what it can match is below
    /// that path.
    pub fn is_prefix(&self) -> bool {
        !self
            .without_trailing_glob()
            .contains(['*', '[', ']', '?', '^', '\\'])
    }

    fn matches(&self, path: &str) -> bool {
        match &self.kind {
            Kind::Exact => path == self.text,
            Kind::Prefix => path.starts_with(&self.text[..self.text.len() - 2]),
            Kind::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            Kind::Regex(regex) => regex.is_match(path),
        }
    }

    /// Whether it matches the path or a directory that the path is in.
    pub fn covers(&self, path: &str) -> bool {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        self.matches(path) || parents.into_iter().any(|parent| self.matches(parent))
    }
}

/// Chooses how to compare. `**` stands for any number of directories, `*` and `?` for what has
/// no slash.
fn compile(text: &str) -> Option<Kind> {
    let mut regex = String::from("^");
    let mut kind = Kind::Exact;
    let mut needs_regex = false;
    let mut in_class = false;
    let mut chars = text.chars().peekable();
    let mut first = true;
    while let Some(char) = chars.next() {
        match char {
            '*' if !in_class && chars.next_if_eq(&'*').is_some() => {
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    regex.push_str("(.*/)?");
                    needs_regex = true;
                } else if matches!(kind, Kind::Exact) && !needs_regex {
                    kind = Kind::Prefix;
                } else {
                    regex.push_str(".*");
                    needs_regex = true;
                }
                if first {
                    kind = Kind::Suffix;
                    needs_regex = false;
                }
            }
            '*' if !in_class => {
                regex.push_str("[^/]*");
                needs_regex = true;
            }
            '?' if !in_class => {
                regex.push_str("[^/]");
                needs_regex = true;
            }
            '\\' => {
                regex.push_str(&regex::escape(&chars.next()?.to_string()));
                needs_regex = true;
            }
            '[' if !in_class => {
                regex.push('[');
                if chars.next_if_eq(&'^').is_some() {
                    regex.push('^');
                }
                in_class = true;
                needs_regex = true;
            }
            ']' => {
                regex.push_str(if in_class { "]" } else { "\\]" });
                in_class = false;
                needs_regex = true;
            }
            // Inside a class, what this regex dialect would read as set operations.
            '-' if in_class => regex.push('-'),
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
        first = false;
    }
    if !needs_regex {
        return Some(kind);
    }
    regex.push('$');
    Regex::new(&regex).ok().map(Kind::Regex)
}

/// A piece of a wildcard.
enum Glob {
    Star,
    Any,
    Char(char),
    Class(bool, Vec<(char, char)>),
}

/// Whether `name` matches the whole of `pattern`, as Go's `path.Match`: `*` and `?` do not match
/// a slash.
///
/// # Errors
/// The pattern is malformed.
pub fn wildcard_match(pattern: &str, name: &str) -> Result<bool, SessionError> {
    let globs = parse_glob(pattern).ok_or_else(|| SessionError::Pattern {
        pattern: pattern.to_owned(),
    })?;
    let name: Vec<char> = name.chars().collect();
    let (mut glob, mut at) = (0, 0);
    // Where to go on when something after the last star did not match.
    let mut again: Option<(usize, usize)> = None;
    loop {
        let step = match (globs.get(glob), name.get(at)) {
            (None, None) => return Ok(true),
            (Some(Glob::Star), _) => {
                again = Some((glob, at));
                glob += 1;
                continue;
            }
            (Some(Glob::Any), Some(char)) => *char != '/',
            (Some(Glob::Char(wanted)), Some(char)) => wanted == char,
            (Some(Glob::Class(negated, ranges)), Some(char)) => {
                ranges.iter().any(|(low, high)| low <= char && char <= high) != *negated
            }
            _ => false,
        };
        if step {
            glob += 1;
            at += 1;
            continue;
        }
        match again {
            Some((star, from)) if name.get(from).is_some_and(|char| *char != '/') => {
                again = Some((star, from + 1));
                glob = star + 1;
                at = from + 1;
            }
            _ => return Ok(false),
        }
    }
}

/// Whether the text holds a wildcard that is not escaped.
pub fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

fn parse_glob(pattern: &str) -> Option<Vec<Glob>> {
    let mut chars = pattern.chars().peekable();
    let mut globs = Vec::new();
    while let Some(char) = chars.next() {
        globs.push(match char {
            '*' => Glob::Star,
            '?' => Glob::Any,
            '\\' => Glob::Char(chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                while ranges.is_empty() || chars.next_if_eq(&']').is_none() {
                    let low = class_char(&mut chars)?;
                    let high = match chars.next_if_eq(&'-') {
                        Some(_) => class_char(&mut chars)?,
                        None => low,
                    };
                    ranges.push((low, high));
                }
                Glob::Class(negated, ranges)
            }
            other => Glob::Char(other),
        });
    }
    Some(globs)
}

fn class_char(chars: &mut Peekable<Chars<'_>>) -> Option<char> {
    let char = match chars.next()? {
        '-' | ']' => return None,
        '\\' => chars.next()?,
        other => other,
    };
    chars.peek().map(|_| char)
}

/// The shortest path of the same meaning, as Go's `path.Clean`; never empty.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// The patterns in a `.dockerignore` file: without comments, cleaned, with no leading slash.
pub fn read_ignore_file(text: &[u8]) -> Vec<String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let text = String::from_utf8_lossy(text);
    let mut patterns = Vec::new();
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (exception, rest) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut pattern = rest.to_owned();
        if !pattern.is_empty() {
            pattern = clean(rest);
            if pattern.len() > 1 {
                pattern = pattern.trim_start_matches('/').to_owned();
            }
        }
        patterns.push(if exception {
            format!("!{pattern}")
        } else {
            pattern
        });
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_match(pattern: &str, path: &str) -> bool {
        Matcher::new([pattern]).unwrap().is_match(path)
    }

    /// The cases of moby/patternmatcher's own table that tell implementations apart.
    #[test]
    fn patterns_match_what_moby_matches() {
        let cases = [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/", "dir/file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dirx", false),
            ("dir/**/", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/file", true),
            ("**file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/file.txt", true),
            ("a[b-d]e", "ae", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcdef", false),
            ("abc.def", "abc.def", true),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abc/def", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a\\\\", "a\\", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/foo/bar", true),
            ("abc/**", "abc", false),
            ("abc/**", "abc/def", true),
            ("**/.foo", ".foo", true),
            ("**/.foo", "bar.foo", false),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("docs", "docs/a/b", true),
            ("./docs/", "docs/a", true),
            ("[[]x", "[x", true),
            ("[a&&b]", "&", true),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(is_match(pattern, path), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn exceptions_take_back_and_order_decides() {
        let cases: [(&[&str], &str, bool); 8] = [
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/x", true),
            (&["!docs/README.md", "docs"], "docs/README.md", true),
            (&["*", "!a"], "a/b", false),
            (&["*", "!a", "a/b"], "a/b/c", true),
            (&["**", "!**/*.go"], "x/y.go", false),
            (&["", " # "], "x", false),
            (
                &["*.md", "!README*.md", "README-secret.md"],
                "README-secret.md",
                true,
            ),
        ];
        for (patterns, path, expected) in cases {
            let matcher = Matcher::new(patterns).unwrap();
            assert_eq!(matcher.is_match(path), expected, "{patterns:?} on {path}");
            // Walking down from the top gives the same answer.
            let mut above = None;
            let mut answer = false;
            let ends = path
                .match_indices('/')
                .map(|(at, _)| at)
                .chain([path.len()]);
            for end in ends {
                let (hit, matched) = matcher.step(&path[..end], above.as_ref());
                (answer, above) = (hit, Some(matched));
            }
            assert_eq!(answer, expected, "{patterns:?} walked to {path}");
        }
    }

    #[test]
    fn malformed_patterns_are_errors() {
        for pattern in ["!", "[", "a[", "a[]", "a[b-", "a[-]", "x\\"] {
            assert!(Matcher::new([pattern]).is_err(), "{pattern}");
        }
    }

    #[test]
    fn wildcards_are_those_of_go() {
        let cases = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[^e-g]", "abc", true),
            ("[\\]a]", "]", true),
            ("a???b", "a☺☻☹b", true),
            ("*x", "xxx", true),
            ("", "", true),
        ];
        for (pattern, name, expected) in cases {
            let found = wildcard_match(pattern, name).unwrap();
            assert_eq!(found, expected, "{pattern} on {name}");
        }
        assert!(has_wildcards("a*") && !has_wildcards("a\\*"));
    }

    #[test]
    fn ignore_files_are_cleaned() {
        let text =
            b"\xef\xbb\xbf# comment\n/abs\n\n  a/./b/  \n! x/../y\n!\n#again\n/\n # no comment\r\n";
        let expected = ["abs", "a/b", "!y", "!", "/", "# no comment"];
        assert_eq!(read_ignore_file(text), expected);
    }

    #[test]
    fn clean_paths_are_those_of_go() {
        let cases = [
            ("", "."),
            ("a//b/", "a/b"),
            ("../../a", "../../a"),
            ("/../a", "/a"),
            ("a/../..", ".."),
            ("./a/.", "a"),
            ("/", "/"),
        ];
        for (path, expected) in cases {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
