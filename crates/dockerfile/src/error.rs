use crate::Span;

/// Why a text is not a Dockerfile. The wording is BuildKit's; the places are kept beside it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParseError {
    message: String,
    span: Option<Span>,
}

impl ParseError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            span: None,
        }
    }

    /// The same error at these lines, unless a more precise place is known already.
    #[must_use]
    pub fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    pub(crate) fn map(mut self, message: impl FnOnce(&str) -> String) -> Self {
        self.message = message(&self.message);
        self
    }

    /// The lines that it is about.
    pub fn span(&self) -> Option<Span> {
        self.span
    }
}

impl From<crate::ExpandError> for ParseError {
    fn from(error: crate::ExpandError) -> Self {
        Self::new(error.to_string())
    }
}
