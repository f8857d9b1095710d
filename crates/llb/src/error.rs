use crate::CapError;

/// Why a definition is not a build graph. The wording is BuildKit's where clients see it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlbError {
    /// There is no operation at all.
    #[error("invalid empty definition")]
    Empty,
    /// A definition has at least an operation and the pointer to it.
    #[error("invalid LLB with {count} vertexes")]
    TooFew {
        /// How many operations there are.
        count: usize,
    },
    /// More operations, or larger ones, than a graph may have.
    #[error("invalid LLB: {what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The largest allowed.
        limit: usize,
    },
    /// The bytes are not an operation.
    #[error("failed to parse llb proto op")]
    Parse(#[source] prost::DecodeError),
    /// The last operation points at nothing.
    #[error("invalid LLB with no inputs on last vertex")]
    NoOutput,
    /// An input is not part of the definition.
    #[error("invalid missing input digest {digest}")]
    MissingInput {
        /// The digest that nothing has.
        digest: String,
    },
    /// An operation takes its own output, through others or directly. (Digests make this
    /// impossible to write, but not to claim.)
    #[error("invalid LLB: {digest} depends on itself")]
    Cycle {
        /// One vertex of the cycle.
        digest: String,
    },
    /// The fields of an operation contradict each other.
    #[error("{reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The client says that the graph needs something that is not supported.
    #[error(transparent)]
    Capability(#[from] CapError),
    /// The graph needs a right that the build was not given.
    #[error("{entitlement} is not allowed")]
    Entitlement {
        /// The right.
        entitlement: &'static str,
    },
    /// The source policy refused a source, or failed.
    #[error("error evaluating the source policy")]
    Policy(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl LlbError {
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid {
            reason: reason.into(),
        }
    }
}
