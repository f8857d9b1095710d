//! containerd's filters (`pkg/filters`): `id==x`, `labels.name!=value`, `id~=expression`, a bare
//! field for its presence, joined by commas. A list of filters matches what one of them matches.

use regex::Regex;

/// All its conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
struct Condition {
    field: Vec<String>,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A filter that cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filters: parse error in {filter:?} at {position}: {reason}")]
pub struct FilterError {
    /// The filter.
    pub filter: String,
    /// Where, in bytes.
    pub position: usize,
    /// What is wrong.
    pub reason: String,
}

impl Filter {
    /// Reads a filter; an empty one matches everything.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let mut parser = Parser { text, position: 0 };
        let mut conditions = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self { conditions });
        }
        loop {
            conditions.push(parser.condition()?);
            if parser.rest().is_empty() {
                return Ok(Self { conditions });
            }
            parser.expect(",")?;
        }
    }

    /// Whether all conditions hold for something whose fields `field` gives, by path; `None` for
    /// a field that it does not have.
    pub fn matches<'a>(&self, field: impl Fn(&[String]) -> Option<&'a str>) -> bool {
        self.conditions.iter().all(|condition| {
            let value = field(&condition.field);
            // What is not there is empty, but for being equal to that.
            let text = value.unwrap_or_default();
            match &condition.test {
                Test::Present => value.is_some(),
                Test::Equal(expected) => value == Some(expected),
                Test::NotEqual(expected) => text != expected,
                Test::Matches(expression) => expression.is_match(text),
            }
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    position: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.position..]
    }

    fn error(&self, reason: impl Into<String>) -> FilterError {
        FilterError {
            filter: self.text.to_owned(),
            position: self.position,
            reason: reason.into(),
        }
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.position += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), FilterError> {
        if self.take(token) {
            return Ok(());
        }
        Err(self.error(format!("expected {token:?}")))
    }

    fn condition(&mut self) -> Result<Condition, FilterError> {
        let mut field = vec![self.word()?];
        while self.take(".") {
            field.push(self.word()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::NotEqual(self.value()?)
        } else if self.take("~=") {
            let value = self.value()?;
            Test::Matches(Regex::new(&value).map_err(|error| self.error(error.to_string()))?)
        } else {
            Test::Present
        };
        Ok(Condition { field, test })
    }

    fn word(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-');
        let word = rest[..end.unwrap_or(rest.len())].to_owned();
        if word.is_empty() {
            return Err(self.error("expected a field"));
        }
        self.position += word.len();
        Ok(word)
    }

    fn value(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted();
        }
        let rest = self.rest();
        let value = rest[..rest.find(',').unwrap_or(rest.len())].to_owned();
        self.position += value.len();
        Ok(value)
    }

    fn quoted(&mut self) -> Result<String, FilterError> {
        let mut value = String::new();
        let mut escaped = false;
        let rest = self.rest().to_owned();
        for (place, c) in rest.char_indices().skip(1) {
            match c {
                _ if escaped => {
                    value.push(c);
                    escaped = false;
                }
                '\\' => escaped = true,
                '"' => {
                    self.position += place + 1;
                    return Ok(value);
                }
                _ => value.push(c),
            }
        }
        Err(self.error("the quotation does not end"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn matches(filter: &str) -> bool {
        Filter::parse(filter).unwrap().matches(|path| {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            match path[..] {
                ["id"] => Some("abc"),
                ["labels", "a.b"] => Some("x,y"),
                ["labels", "c"] => Some(""),
                _ => None,
            }
        })
    }

    #[test]
    fn filters_hold_as_containerds_do() {
        for (filter, expected) in [
            ("", true),
            ("id==abc", true),
            ("id==ab", false),
            ("id!=abc", false),
            ("id~=^a.c$", true),
            ("id~=b$", false),
            ("labels.\"a.b\"==\"x,y\"", true),
            ("labels.c", true),
            ("labels.d", false),
            ("labels.d!=x", true),
            ("labels.d!=\"\"", false),
            ("labels.d==\"\"", false),
            ("labels.d~=^$", true),
            ("labels.d~=x", false),
            ("id==abc,labels.c", true),
            ("id==abc,labels.d", false),
        ] {
            assert_eq!(matches(filter), expected, "{filter}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for filter in ["==x", "id==abc,", "id=abc", "labels.\"x", "id~=("] {
            assert!(Filter::parse(filter).is_err(), "{filter}");
        }
    }
}
