//! Warnings about a Dockerfile that can be built (`frontend/dockerfile/linter`).

mod rules;

use std::collections::BTreeSet;

use cooper_dockerfile::Span;

pub(crate) use rules::*;

use crate::gotext::parse_bool;

/// Which rules hold: `skip=A,B;error=true`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LintConfig {
    skip: BTreeSet<String>,
    skip_all: bool,
    experimental: BTreeSet<String>,
    experimental_all: bool,
    pub(crate) error: bool,
}

impl LintConfig {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        let text = text.trim();
        for part in text.split(';').filter(|_| !text.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {part:?}"));
            };
            let value = value.trim();
            let names = || {
                value
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect()
            };
            match (key.trim(), value) {
                ("skip", "all") => config.skip_all = true,
                ("skip", _) => config.skip = names(),
                ("experimental", "all") => config.experimental_all = true,
                ("experimental", _) => config.experimental = names(),
                ("error", _) => {
                    config.error = parse_bool(value).ok_or_else(|| {
                        format!("failed to parse check option {part:?}: invalid boolean value: {value:?}")
                    })?;
                }
                (key, _) => return Err(format!("invalid check option {key:?}")),
            }
        }
        Ok(config)
    }

    fn holds(&self, rule: &Rule) -> bool {
        if rule.experimental {
            return self.experimental_all || self.experimental.contains(rule.name);
        }
        !self.skip_all && !self.skip.contains(rule.name)
    }

    /// With what a `# check=skip=…` comment above an instruction adds.
    fn with_comments(&self, comments: &[String]) -> Self {
        let mut config = self.clone();
        for comment in comments {
            if let Some(text) = comment.strip_prefix("check=")
                && let Ok(more) = Self::parse(text)
            {
                config.skip.extend(more.skip);
                config.skip_all |= more.skip_all;
                config.experimental.extend(more.experimental);
                config.experimental_all |= more.experimental_all;
            }
        }
        config
    }
}

/// A rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    /// Where more is said; empty for nowhere.
    pub(crate) url: &'static str,
    pub(crate) experimental: bool,
}

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LintWarning {
    pub(crate) rule: &'static Rule,
    pub(crate) message: String,
    pub(crate) span: Span,
}

impl LintWarning {
    /// One line for a user.
    pub(crate) fn short(&self) -> String {
        let (name, message) = (self.rule.name, &self.message);
        match self.span.start {
            0 => format!("{name}: {message}"),
            line => format!("{name}: {message} (line {line})"),
        }
    }
}

/// Collects warnings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lint {
    enabled: bool,
    config: LintConfig,
    pub(crate) warnings: Vec<LintWarning>,
}

impl Lint {
    pub(crate) fn new(config: LintConfig, enabled: bool) -> Self {
        Self {
            enabled,
            config,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn warn(&mut self, rule: &'static Rule, span: Span, message: impl Into<String>) {
        self.warn_below(&[], rule, span, message);
    }

    /// A warning about an instruction with these comments above.
    pub(crate) fn warn_below(
        &mut self,
        comments: &[String],
        rule: &'static Rule,
        span: Span,
        message: impl Into<String>,
    ) {
        if self.enabled && self.config.with_comments(comments).holds(rule) {
            self.warnings.push(LintWarning {
                rule,
                message: message.into(),
                span,
            });
        }
    }

    /// The sentence that the build fails with, if warnings are to be errors.
    pub(crate) fn error(&self) -> Option<String> {
        if !self.config.error || self.warnings.is_empty() {
            return None;
        }
        let rules: BTreeSet<_> = self.warnings.iter().map(|w| w.rule.name).collect();
        let rules: Vec<_> = rules.into_iter().collect();
        Some(format!(
            "lint violation found for rules: {}",
            rules.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn configurations() {
        let config = LintConfig::parse("skip=StageNameCasing, A;error=true").unwrap();
        assert!(config.error);
        assert!(!config.holds(&STAGE_NAME_CASING));
        assert!(config.holds(&FROM_AS_CASING));
        assert!(
            !LintConfig::parse("skip=all")
                .unwrap()
                .holds(&FROM_AS_CASING)
        );
        let experimental = LintConfig::parse("experimental=all").unwrap();
        assert!(experimental.holds(&INVALID_DEFINITION_DESCRIPTION));
        assert!(!config.holds(&INVALID_DEFINITION_DESCRIPTION));
        for (text, error) in [
            ("x", "invalid check option \"x\""),
            ("x=y", "invalid check option \"x\""),
            (
                "error=x",
                "failed to parse check option \"error=x\": invalid boolean value: \"x\"",
            ),
        ] {
            assert_eq!(LintConfig::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn warnings_may_be_errors() {
        let mut lint = Lint::new(LintConfig::parse("error=true").unwrap(), true);
        assert_eq!(lint.error(), None);
        lint.warn(&STAGE_NAME_CASING, Span::line(3), "x");
        let comments = ["check=skip=FromAsCasing".to_owned()];
        lint.warn_below(&comments, &FROM_AS_CASING, Span::line(3), "x");
        assert_eq!(
            lint.error().unwrap(),
            "lint violation found for rules: StageNameCasing"
        );
        assert_eq!(lint.warnings[0].short(), "StageNameCasing: x (line 3)");
    }
}
