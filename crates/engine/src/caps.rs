//! What this builder advertises. A capability stands here only when what it means works: a
//! client that misses one does without, and one that finds it relies on it.

use cooper_llb::CapSet;

/// What graphs may use.
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
    "source.http",
    "source.http.auth",
    "source.http.checksum",
    "source.http.perm",
    "soruce.http.uidgid",
    "source.http.header",
    "source.ocilayout",
    "exec.meta.base",
    "exec.meta.cgroup.parent",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
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
    "mergeop",
    "diffop",
    "passthroughop",
    "exporter.image.annotations",
    "exporter.sourcedateepoch",
    "exporter.multiple",
    "gc.freespacefilter",
];

/// What frontends may ask for.
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
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
];

/// [`LLB`] as a set.
pub fn llb() -> CapSet {
    LLB.iter().copied().collect()
}

/// [`GATEWAY`] as a set.
pub fn gateway() -> CapSet {
    GATEWAY.iter().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_of_buildkits_in_its_order() {
        for (own, all) in [
            (LLB, cooper_llb::caps::LLB),
            (GATEWAY, cooper_llb::caps::GATEWAY),
        ] {
            let places: Vec<_> = own
                .iter()
                .map(|name| all.iter().position(|known| known == name).unwrap())
                .collect();
            assert!(places.is_sorted(), "{places:?}");
        }
        // What clients would rely on, and what does not work.
        for absent in ["exporter.image.attestations", "history.filter"] {
            assert!(!llb().contains(absent), "{absent}");
        }
    }
}
