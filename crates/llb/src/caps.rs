//! Capabilities: what a graph may use and what a frontend may ask for.
//!
//! A builder advertises a set of them; a client marks each operation with those that it needs.
//! Which ones this builder advertises is for the engine to say: here are only the names.
//! Source: `solver/pb/caps.go` and `util/apicaps` in BuildKit.

use std::collections::BTreeSet;

/// Every capability of graphs that BuildKit registers, in its order. The misspelt
/// `soruce.http.uidgid` is what goes over the wire.
pub const LLB: &[&str] = &[
    "source.image",
    "source.image.resolvemode",
    "source.image.layerlimit",
    "source.image.checksum",
    "source.local",
    "source.local.unique",
    "source.local.sessionid",
    "source.local.includepatterns",
    "source.local.followpaths",
    "source.local.excludepatterns",
    "source.local.sharedkeyhint",
    "source.local.differ",
    "source.local.metadatatransfer",
    "source.git",
    "source.git.keepgitdir",
    "source.git.fullurl",
    "source.git.httpauth",
    "source.git.knownsshhosts",
    "source.git.mountsshsock",
    "source.git.subdir",
    "source.git.checksum",
    "source.git.skipsubmodules",
    "source.git.signatureverify",
    "source.git.mtime",
    "source.git.fetchbycommit",
    "source.git.bundle",
    "source.git.checkoutbundle",
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.perm",
    "soruce.http.uidgid",
    "source.http.header",
    "source.http.signatureverify",
    "source.imageblob",
    "source.ocilayout",
    "source.buildop.llbfilename",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.network.proxy",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.security.devices.v1",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.meta.cdi",
    "exec.meta.linux.resources",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.selector",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.mount.secret",
    "exec.mount.ssh",
    "exec.mount.cache.content",
    "exec.cgroup",
    "exec.secretenv",
    "exec.validexitcode",
    "file.base",
    "file.rm.wildcard",
    "file.copy.includeexcludepatterns",
    "file.copy.requiredpaths",
    "file.rm.nofollowsymlink",
    "file.copy.alwaysreplaceexistingdestpaths",
    "file.symlink.create",
    "constraints",
    "platform",
    "meta.ignorecache",
    "meta.description",
    "meta.exportcache",
    "cache.gha",
    "cache.s3",
    "cache.azblob",
    "mergeop",
    "diffop",
    "passthroughop",
    "exporter.image.annotations",
    "exporter.image.attestations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "exporter.session",
    "source.policy",
    "source.policy.session",
    "gc.freespacefilter",
    "history.filter",
];

/// Every capability of the gateway, in BuildKit's order (`frontend/gateway/pb/caps.go`).
pub const GATEWAY: &[&str] = &[
    "solve.base",
    "solve.inlinereturn",
    "resolveimage",
    "resolveimage.resolvemode",
    "readfile",
    "return",
    "returnmap",
    "readdir",
    "statfile",
    "importcaches",
    "proto.refarray",
    "reference.output",
    "frontend.inputs",
    "gateway.solve.metadata",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.exec.filesystem",
    "frontend.caps",
    "gateway.solve.evaluate",
    "gateway.evaluate",
    "gateway.warnings",
    "reference.attestations",
    "source.metaresolver",
    "source.metaresolver.image.attestations",
    "source.metaresolver.http.checksumrequest",
];

/// A set of capabilities.
///
/// ```
/// use cooper_llb::CapSet;
///
/// let caps: CapSet = ["file.base"].into_iter().collect();
/// assert!(caps.supports("file.base").is_ok());
/// let error = caps.supports("merge").unwrap_err();
/// assert_eq!(error.to_string(), "unknown API capability merge");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapSet {
    names: BTreeSet<String>,
}

/// A capability that the builder lacks. The wording is BuildKit's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CapError {
    /// A capability that there is, and that this builder lacks.
    #[error(
        "requested experimental feature {name}  is not supported by build server, please update buildkit"
    )]
    Unsupported {
        /// Its name.
        name: String,
    },
    /// A capability that nobody knows.
    #[error("unknown API capability {name}")]
    Unknown {
        /// Its name.
        name: String,
    },
}

impl CapSet {
    /// All that BuildKit registers.
    pub fn all_llb() -> Self {
        LLB.iter().copied().collect()
    }

    /// Whether `name` is in the set.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// [`contains`](Self::contains), as an error that a client can show.
    pub fn supports(&self, name: &str) -> Result<(), CapError> {
        if self.contains(name) {
            Ok(())
        } else if LLB.contains(&name) || GATEWAY.contains(&name) {
            Err(CapError::Unsupported {
                name: name.to_owned(),
            })
        } else {
            Err(CapError::Unknown {
                name: name.to_owned(),
            })
        }
    }

    /// The names in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

impl<S: Into<String>> FromIterator<S> for CapSet {
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self {
            names: names.into_iter().map(Into::into).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registered_names_are_buildkits() {
        assert_eq!(LLB.len(), 88);
        assert!(LLB.contains(&"soruce.http.uidgid"), "misspelt on the wire");
        for absent in [
            "exec.meta.removemountstubs.recursive",
            "file.copy.modestring",
        ] {
            assert!(!LLB.contains(&absent), "{absent} is not registered");
        }
        let unique: BTreeSet<_> = LLB.iter().collect();
        assert_eq!(unique.len(), LLB.len());
    }

    #[test]
    fn an_absent_capability_is_told_from_an_unknown_one() {
        let none = CapSet::default();
        assert_eq!(
            none.supports("mergeop").unwrap_err().to_string(),
            "requested experimental feature mergeop  is not supported by build server, please update buildkit"
        );
        assert_eq!(
            none.supports("file.copy.modestring")
                .unwrap_err()
                .to_string(),
            "unknown API capability file.copy.modestring"
        );
    }
}
