use std::collections::BTreeSet;

use super::{Env, Lex, pattern};

/// How deep `${a:-${b:-…}}` may go: the text is a stranger's, and each level costs stack.
const MAX_DEPTH: usize = 128;
/// How many bytes an expansion may add: a few lines can ask for any number by doubling.
const MAX_GROWTH: usize = 1 << 20;

type Result<T> = std::result::Result<T, String>;

/// One expansion.
pub(super) struct Lexer<'a, E: ?Sized> {
    lex: &'a Lex,
    env: &'a E,
    chars: Vec<char>,
    at: usize,
    depth: usize,
    /// Bytes that variables may still add.
    room: usize,
    raw_escapes: bool,
    pub(super) matched: BTreeSet<String>,
    pub(super) unmatched: BTreeSet<String>,
}

/// Splits what is added at white space.
#[derive(Default)]
struct Words {
    word: String,
    words: Vec<String>,
    in_word: bool,
}

impl Words {
    fn add(&mut self, c: char) {
        if !c.is_whitespace() {
            self.add_raw(c);
        } else if self.in_word && !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
            self.in_word = false;
        }
    }

    fn add_raw(&mut self, c: char) {
        self.word.push(c);
        self.in_word = true;
    }

    fn add_raw_text(&mut self, text: &str) {
        self.word.push_str(text);
        self.in_word = true;
    }

    fn finish(mut self) -> Vec<String> {
        if !self.word.is_empty() {
            self.words.push(self.word);
        }
        self.words
    }
}

impl<'a, E: Env + ?Sized> Lexer<'a, E> {
    pub(super) fn new(lex: &'a Lex, word: &str, env: &'a E) -> Self {
        Self {
            lex,
            env,
            chars: word.chars().collect(),
            at: 0,
            depth: 0,
            room: MAX_GROWTH,
            raw_escapes: lex.raw_escapes,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        }
    }

    pub(super) fn run(&mut self) -> Result<(String, Vec<String>)> {
        self.until(None, self.raw_escapes)
    }

    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    /// Up to `stop`, which is consumed, or to the end of the text.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>)> {
        if self.depth == MAX_DEPTH {
            return Err("syntax error: substitutions are nested too deeply".into());
        }
        self.depth += 1;
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.scan(stop);
        self.raw_escapes = outer;
        self.depth -= 1;
        result
    }

    fn scan(&mut self, stop: Option<char>) -> Result<(String, Vec<String>)> {
        let mut text = String::new();
        let mut words = Words::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok((text, words.finish()));
            }
            match c {
                '$' => {
                    let value = self.dollar()?;
                    value.chars().for_each(|c| words.add(c));
                    text.push_str(&value);
                }
                '\'' | '"' if !self.lex.skip_quotes => {
                    let quoted = if c == '"' {
                        self.double_quote()?
                    } else {
                        self.single_quote()?
                    };
                    words.add_raw_text(&quoted);
                    text.push_str(&quoted);
                }
                c if c == self.lex.escape => {
                    self.at += 1;
                    if self.raw_escapes {
                        words.add_raw(c);
                        text.push(c);
                    }
                    let Some(escaped) = self.next() else { break };
                    words.add_raw(escaped);
                    text.push(escaped);
                }
                c => {
                    self.at += 1;
                    words.add(c);
                    text.push(c);
                }
            }
        }
        match stop {
            Some(stop) => Err(format!(
                "unexpected end of statement while looking for matching {stop}"
            )),
            None => Ok((text, words.finish())),
        }
    }

    fn quote(&mut self, text: &mut String) {
        if let Some(c) = self.next()
            && self.lex.raw_quotes
        {
            text.push(c);
        }
    }

    /// All is taken as it is.
    fn single_quote(&mut self) -> Result<String> {
        let mut text = String::new();
        self.quote(&mut text);
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote"
                            .into(),
                    );
                }
                Some('\'') => {
                    self.quote(&mut text);
                    return Ok(text);
                }
                Some(c) => {
                    self.at += 1;
                    text.push(c);
                }
            }
        }
    }

    /// Variables are expanded; `"`, `$` and the escape character can be escaped.
    fn double_quote(&mut self) -> Result<String> {
        let mut text = String::new();
        self.quote(&mut text);
        loop {
            match self.peek() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching double-quote"
                            .into(),
                    );
                }
                Some('"') => {
                    self.quote(&mut text);
                    return Ok(text);
                }
                Some('$') => text.push_str(&self.dollar()?),
                Some(c) => {
                    self.at += 1;
                    if c != self.lex.escape {
                        text.push(c);
                        continue;
                    }
                    if self.raw_escapes {
                        text.push(c);
                    }
                    match self.peek() {
                        None => {}
                        Some(next) if next == '"' || next == '$' || next == self.lex.escape => {
                            self.at += 1;
                            text.push(next);
                        }
                        Some(_) => text.push(c),
                    }
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String> {
        self.at += 1;
        if self.peek() == Some('{') {
            self.at += 1;
            return self.braces();
        }
        let name = self.name();
        if name.is_empty() {
            return Ok("$".to_owned());
        }
        match self.lookup(&name)? {
            None if self.lex.skip_unset_env => Ok(format!("${name}")),
            value => Ok(value.unwrap_or_default()),
        }
    }

    /// Behind `${`.
    fn braces(&mut self) -> Result<String> {
        match self.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        // The end of the text is written as Go writes its mark for it.
        let unsupported =
            |modifier: &str| Err(format!("unsupported modifier ({modifier}) in substitution"));
        match self.next() {
            None => unsupported("\u{fffd}"),
            Some('}') => match self.lookup(&name)? {
                None if self.lex.skip_unset_env => Ok(format!("${{{name}}}")),
                value => Ok(value.unwrap_or_default()),
            },
            Some(':') => match self.next() {
                Some(c) => self.modified(&name, c, true),
                None => unsupported(":\u{fffd}"),
            },
            Some(c @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, c, false),
            Some('/') => self.replaced(&name),
            Some(c) => unsupported(&c.to_string()),
        }
    }

    /// Turns a missing `stop` at the end of the text into the sentence for it.
    fn word_until(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((word, _)) => Ok(word),
            Err(_) if self.peek().is_none() => Err(missing.to_owned()),
            Err(error) => Err(error),
        }
    }

    fn modified(&mut self, name: &str, modifier: char, empty_is_unset: bool) -> Result<String> {
        let strip = matches!(modifier, '#' | '%');
        let word = self.word_until('}', strip, "syntax error: missing '}'")?;
        let colon = if empty_is_unset { ":" } else { "" };
        let value = self.lookup(name)?;
        if value.is_none() && self.lex.skip_unset_env {
            return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
        }
        let present = value
            .clone()
            .filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            '-' => Ok(present.unwrap_or(word)),
            '+' => Ok(present.map(|_| word).unwrap_or_default()),
            '?' => present.ok_or_else(|| {
                let state = if value.is_some() { "empty" } else { "unset" };
                if word.is_empty() {
                    format!("{name}: is not allowed to be {state}")
                } else {
                    format!("{name}: {word}")
                }
            }),
            '#' | '%' => {
                let value = value.unwrap_or_default();
                let (pattern, longest) = match word.strip_prefix(modifier) {
                    Some(rest) => (rest, true),
                    None => (word.as_str(), false),
                };
                if modifier == '#' {
                    pattern::strip_prefix(pattern, &value, longest)
                } else {
                    pattern::strip_suffix(pattern, &value, longest)
                }
            }
            other => Err(format!(
                "unsupported modifier ({colon}{other}) in substitution"
            )),
        }
    }

    fn replaced(&mut self, name: &str) -> Result<String> {
        let all = self.peek() == Some('/');
        if all {
            self.at += 1;
        }
        let pattern = self.word_until('/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.word_until('}', true, "syntax error: missing '}'")?;
        let value = self.lookup(name)?;
        if value.is_none() && self.lex.skip_unset_env {
            let slash = if all { "//" } else { "/" };
            return Ok(format!("${{{name}{slash}{pattern}/{replacement}}}"));
        }
        let value = value.unwrap_or_default();
        // Each place that it is put in has at least a character, or is between two.
        let places = if all { value.chars().count() + 1 } else { 1 };
        if replacement.len().saturating_mul(places) > MAX_GROWTH {
            return Err("the expansion is too long".into());
        }
        pattern::replace(&pattern, &value, &replacement, all)
    }

    /// A name: letters, digits and `_`; or digits alone; or one of the shell's own parameters.
    fn name(&mut self) -> String {
        let Some(first) = self.peek() else {
            return String::new();
        };
        let start = self.at;
        if first.is_numeric() {
            while self.peek().is_some_and(char::is_numeric) {
                self.at += 1;
            }
        } else if matches!(first, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
            self.at += 1;
        } else {
            while self
                .peek()
                .is_some_and(|c| c.is_alphabetic() || c.is_numeric() || c == '_')
            {
                self.at += 1;
            }
        }
        self.chars[start..self.at].iter().collect()
    }

    fn lookup(&mut self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.env.get(name) else {
            self.unmatched.insert(name.to_owned());
            return Ok(None);
        };
        self.room = self
            .room
            .checked_sub(value.len())
            .ok_or("the expansion is too long")?;
        self.matched.insert(name.to_owned());
        Ok(Some(value.to_owned()))
    }
}
