//! Words: quotes, escapes and `$variables`, as `docker build` expands them.

mod lexer;
mod pattern;

use std::collections::{BTreeMap, BTreeSet};

use lexer::Lexer;

/// Variables to expand.
pub trait Env {
    /// The value of `name`, if it is set.
    fn get(&self, name: &str) -> Option<&str>;

    /// The names.
    fn names(&self) -> Vec<&str>;
}

/// No variables.
pub(crate) struct NoEnv;

impl Env for NoEnv {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }

    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
}

impl Env for BTreeMap<String, String> {
    fn get(&self, name: &str) -> Option<&str> {
        BTreeMap::get(self, name).map(String::as_str)
    }

    fn names(&self) -> Vec<&str> {
        self.keys().map(String::as_str).collect()
    }
}

/// A later pair of a name hides an earlier one.
impl Env for [(String, String)] {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn names(&self) -> Vec<&str> {
        self.iter().map(|(key, _)| key.as_str()).collect()
    }
}

/// What an expansion gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The word.
    pub text: String,
    /// The word split at white space that neither quotes nor escapes protect.
    pub words: Vec<String>,
    /// Variables that were set.
    pub matched: BTreeSet<String>,
    /// Variables that were not.
    pub unmatched: BTreeSet<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {word:?}: {reason}")]
pub struct ExpandError {
    /// The word.
    pub word: String,
    /// What is wrong.
    pub reason: String,
    /// Variables that were met before and are not set.
    pub unmatched: BTreeSet<String>,
}

/// How to expand words.
///
/// ```
/// use std::collections::BTreeMap;
/// use cooper_dockerfile::Lex;
///
/// let env = BTreeMap::from([("V".to_owned(), "1.2.3".to_owned())]);
/// let lex = Lex::new('\\');
/// assert_eq!(lex.expand("v${V%.*} ${X:-none}", &env)?.text, "v1.2 none");
/// # Ok::<_, cooper_dockerfile::ExpandError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lex {
    escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Quotes are characters like others.
    pub skip_quotes: bool,
    /// Leave variables that are not set as they are written.
    pub skip_unset_env: bool,
}

impl Lex {
    /// An expander with this escape character.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            skip_unset_env: false,
        }
    }

    /// Expands a word.
    pub fn expand<E: Env + ?Sized>(&self, word: &str, env: &E) -> Result<Expansion, ExpandError> {
        let mut lexer = Lexer::new(self, word, env);
        match lexer.run() {
            Ok((text, words)) => Ok(Expansion {
                text,
                words,
                matched: lexer.matched,
                unmatched: lexer.unmatched,
            }),
            Err(reason) => Err(ExpandError {
                word: word.to_owned(),
                reason,
                unmatched: lexer.unmatched,
            }),
        }
    }

    /// The words of [`expand`](Self::expand).
    pub fn words<E: Env + ?Sized>(&self, word: &str, env: &E) -> Result<Vec<String>, ExpandError> {
        Ok(self.expand(word, env)?.words)
    }
}

#[cfg(test)]
mod tests;
