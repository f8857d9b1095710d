//! The Dockerfile's text with where it came from.

use cooper_dockerfile::{ParseError, Span};
use cooper_frontend::{FrontendError, SourceLocation};
use cooper_llb::Digest;
use cooper_llb::build::SourceMap;
use cooper_proto::pb;

/// A file that was loaded.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) map: SourceMap,
    /// The vertex that it was loaded by: warnings are about that one.
    pub(crate) vertex: Option<Digest>,
}

impl Source {
    pub(crate) fn text(&self) -> &[u8] {
        &self.map.info.data
    }

    pub(crate) fn location(&self, span: Span) -> SourceLocation {
        SourceLocation {
            info: self.map.info.clone(),
            ranges: ranges(span),
        }
    }

    /// A sentence about some lines.
    pub(crate) fn invalid(&self, span: Span, message: impl Into<String>) -> FrontendError {
        FrontendError::invalid(message).at(self.location(span))
    }

    pub(crate) fn parse_error(&self, error: &ParseError) -> FrontendError {
        let span = error.span();
        let error = FrontendError::invalid(error.to_string());
        match span {
            Some(span) => error.at(self.location(span)),
            None => error,
        }
    }
}

/// Line by line, as BuildKit locates things.
pub(crate) fn ranges(span: Span) -> Vec<pb::Range> {
    let position = |position: cooper_dockerfile::Position| {
        Some(pb::Position {
            line: position.line.cast_signed(),
            character: position.character.cast_signed(),
        })
    };
    span.ranges()
        .into_iter()
        .map(|range| pb::Range {
            start: position(range.start),
            end: position(range.end),
        })
        .collect()
}
