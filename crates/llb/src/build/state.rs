use std::sync::Arc;

use cooper_proto::pb;

use super::node::{Kind, Node, Output};
use super::{Constraints, Deferred, EnvList, FileAction, file};
use crate::platform;

/// A file-system state and how commands run on it. Cheap to clone; methods give a new state.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) output: Option<Output>,
    pub(super) dir: Option<String>,
    pub(super) user: String,
    pub(super) env: Arc<EnvList>,
    pub(super) hostname: String,
    pub(super) network: pb::NetMode,
    pub(super) platform: Option<pb::Platform>,
}

impl State {
    /// The empty file system.
    pub fn scratch() -> Self {
        Self::default()
    }

    pub(super) fn from_node(node: Node) -> Self {
        let platform = node.constraints.platform.as_ref().map(platform::normalize);
        Self {
            output: Some(node.output(0)),
            platform,
            ..Self::default()
        }
    }

    /// What is filled into `deferred` later.
    pub fn deferred(deferred: &Deferred) -> Self {
        Self::from_node(Node {
            kind: Kind::Deferred(deferred.clone()),
            inputs: Vec::new(),
            constraints: Constraints::default(),
        })
    }

    /// The output of a definition that somebody else wrote; the empty state for an empty one.
    pub fn definition(definition: Arc<pb::Definition>) -> Result<Self, crate::LlbError> {
        use prost::Message;

        let Some(last) = definition.def.last() else {
            return Ok(Self::scratch());
        };
        let pointer = pb::Op::decode(last.as_ref()).map_err(crate::LlbError::Parse)?;
        let Some(input) = pointer.inputs.into_iter().next() else {
            return Err(crate::LlbError::NoOutput);
        };
        let node = Node {
            kind: Kind::Written(definition, input.digest),
            inputs: Vec::new(),
            constraints: Constraints::default(),
        };
        Ok(Self {
            output: Some(node.output(input.index)),
            ..Self::default()
        })
    }

    /// The output, `None` for the empty file system.
    pub fn output(&self) -> Option<&Output> {
        self.output.as_ref()
    }

    /// The same environment over another output.
    #[must_use]
    pub fn with_output(&self, output: Option<Output>) -> Self {
        Self {
            output,
            ..self.clone()
        }
    }

    /// The working directory.
    pub fn current_dir(&self) -> &str {
        self.dir.as_deref().unwrap_or("/")
    }

    /// The variables.
    pub fn env(&self) -> &EnvList {
        &self.env
    }

    /// The platform, if one is known.
    pub fn current_platform(&self) -> Option<&pb::Platform> {
        self.platform.as_ref()
    }

    /// In another working directory, relative to the current one.
    #[must_use]
    pub fn dir(mut self, path: &str) -> Self {
        self.dir = Some(if path.starts_with('/') {
            path.to_owned()
        } else {
            file::join(self.current_dir(), path)
        });
        self
    }

    /// As another user.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// With a variable.
    #[must_use]
    pub fn add_env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.env).set(key, value);
        self
    }

    /// With a host name.
    #[must_use]
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// With a network.
    #[must_use]
    pub fn network(mut self, network: pb::NetMode) -> Self {
        self.network = network;
        self
    }

    /// For a platform.
    #[must_use]
    pub fn platform(mut self, platform: &pb::Platform) -> Self {
        self.platform = Some(platform::normalize(platform));
        self
    }

    /// After these actions in order, without a container.
    #[must_use]
    pub fn file(&self, actions: Vec<FileAction>, constraints: Constraints) -> Self {
        let node = file::node(self, actions, constraints);
        self.with_output(Some(node.output(0)))
    }

    /// All layers over each other. Empty states do not count; a single one is itself.
    #[must_use]
    pub fn merge(states: &[State], mut constraints: Constraints) -> Self {
        let inputs: Vec<_> = states
            .iter()
            .filter_map(|state| state.output.clone())
            .collect();
        match inputs.len() {
            0 => Self::scratch(),
            1 => Self {
                output: inputs.into_iter().next(),
                ..Self::default()
            },
            _ => {
                constraints.cap("mergeop");
                Self::from_node(Node {
                    kind: Kind::Merge,
                    inputs,
                    constraints,
                })
            }
        }
    }

    /// What `upper` has more than `lower`.
    #[must_use]
    pub fn diff(lower: &State, upper: &State, mut constraints: Constraints) -> Self {
        if lower.output.is_none() {
            return upper.clone();
        }
        constraints.cap("diffop");
        let kind = Kind::Diff {
            lower: lower.output.is_some(),
            upper: upper.output.is_some(),
        };
        let inputs = [&lower.output, &upper.output];
        Self::from_node(Node {
            kind,
            inputs: inputs.into_iter().flatten().cloned().collect(),
            constraints,
        })
    }
}
