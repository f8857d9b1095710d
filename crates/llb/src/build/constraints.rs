use std::collections::BTreeSet;
use std::sync::Arc;

use cooper_proto::pb;

use crate::name::CUSTOM_NAME;

/// A file that operations come from.
#[derive(Clone, Debug)]
pub struct SourceMap {
    /// The file.
    pub info: Arc<pb::SourceInfo>,
}

/// What is said of an operation and is not part of it, but for the platform.
#[derive(Clone, Debug, Default)]
pub struct Constraints {
    /// The platform; that of the state, or of the whole graph, when there is none.
    pub platform: Option<pb::Platform>,
    pub(super) metadata: pb::OpMetadata,
    pub(super) caps: BTreeSet<&'static str>,
    pub(super) locations: Vec<(Arc<pb::SourceInfo>, Vec<pb::Range>)>,
}

impl Constraints {
    /// Constraints that name the vertex.
    pub fn named(name: impl Into<String>) -> Self {
        Self::default().name(name)
    }

    /// What a user reads instead of a name made of the operation.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.describe(CUSTOM_NAME, name)
    }

    /// A note, such as the Dockerfile's command in `com.docker.dockerfile.v1.command`.
    #[must_use]
    pub fn describe(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.description.insert(key.into(), value.into());
        self
    }

    /// The platform.
    #[must_use]
    pub fn platform(mut self, platform: pb::Platform) -> Self {
        self.platform = Some(platform);
        self
    }

    /// Build it anew.
    #[must_use]
    pub fn ignore_cache(mut self, ignore: bool) -> Self {
        self.metadata.ignore_cache |= ignore;
        self
    }

    /// Show it as a part of the group `id`; a weak part gives the group no name.
    #[must_use]
    pub fn progress_group(mut self, id: &str, name: &str, weak: bool) -> Self {
        self.metadata.progress_group = Some(pb::ProgressGroup {
            id: id.to_owned(),
            name: name.to_owned(),
            weak,
        });
        self
    }

    /// What its container may use of the machine; nothing for no limits.
    #[must_use]
    pub fn resources(mut self, resources: pb::LinuxResources) -> Self {
        if resources != pb::LinuxResources::default() {
            self.metadata.linux_resources = Some(resources);
            self.caps.insert("exec.meta.linux.resources");
        }
        self
    }

    /// Where it comes from.
    #[must_use]
    pub fn location(mut self, map: &SourceMap, ranges: Vec<pb::Range>) -> Self {
        self.locations.push((map.info.clone(), ranges));
        self
    }

    pub(super) fn cap(&mut self, name: &'static str) {
        self.caps.insert(name);
    }
}
