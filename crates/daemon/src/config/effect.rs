//! What was set and does nothing yet.

use super::{Config, WorkerConfig};

impl Config {
    /// The names of the settings that were set, that BuildKit acts on and this daemon does not.
    pub fn without_effect(&self) -> Vec<String> {
        let mut found: Vec<&str> = Vec::new();
        let mut add = |name, set| {
            if set {
                found.push(name);
            }
        };
        add("proxyNetwork", self.proxy_network.is_some());
        add(
            "grpc.securityDescriptor",
            !self.grpc.security_descriptor.is_empty(),
        );
        add(
            "grpc.max_recv_message_size",
            self.grpc.max_recv_message_size.is_some(),
        );
        add(
            "grpc.max_send_message_size",
            self.grpc.max_send_message_size.is_some(),
        );
        add("otel.socketPath", !self.otel.socket_path.is_empty());
        add("cdi.specDirs", !self.cdi.spec_dirs.is_empty());
        add("cdi.autoAllowed", !self.cdi.auto_allowed.is_empty());
        add(
            "system.platformsCacheMaxAge",
            self.system.platforms_cache_max_age.is_some(),
        );
        add("provenanceEnvDir", !self.provenance_env_dir.is_empty());
        add("ghacache", self.ghacache.is_some());
        let limited = self.registry.values();
        let limited = limited.filter(|registry| registry.max_registry_concurrency.is_some());
        add("registry.*.maxRegistryConcurrency", limited.count() > 0);
        let mut found: Vec<String> = found.into_iter().map(str::to_owned).collect();
        worker("worker.oci", &self.worker.oci, &mut found);
        // Of a worker that nobody asked for, nobody expects an effect.
        if self.worker.containerd.enabled == Some(true) {
            worker("worker.containerd", &self.worker.containerd, &mut found);
        }
        found
    }
}

fn worker(section: &str, config: &WorkerConfig, found: &mut Vec<String>) {
    let set = [
        (
            "userRemapUnsupported",
            !config.user_remap_unsupported.is_empty(),
        ),
        (
            "proxySnapshotterPath",
            !config.proxy_snapshotter_path.is_empty(),
        ),
        ("isolateCgroups", config.isolate_cgroups),
        ("stargzSnapshotter", config.stargz_snapshotter.is_some()),
        ("selinux", config.selinux),
    ];
    let set = set.iter().filter(|(_, set)| *set);
    found.extend(set.map(|(name, _)| format!("{section}.{name}")));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_does_nothing_is_named_and_what_works_is_not() {
        let text = r#"
            debug = true
            insecure-entitlements = ["network.host"]
            [otel]
            socketPath = "/x"
            [worker.oci]
            networkMode = "cni"
            cniConfigPath = "/c"
            selinux = true
            max-parallelism = 3
        "#;
        let config = Config::parse(text).unwrap();
        assert_eq!(
            config.without_effect(),
            ["otel.socketPath", "worker.oci.selinux"]
        );
        assert_eq!(Config::default().without_effect(), [""; 0]);
    }
}
