//! The configuration file, by the names of buildkitd.toml (`cmd/buildkitd/config`, and
//! docs/buildkitd.toml.md there). Every name that BuildKit knows is taken; an unknown one is an
//! error. [`Config::without_effect`] lists what was set and does nothing yet.

mod effect;
mod gc;
mod quantity;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cooper_history::Limits;
use serde::Deserialize;

pub(crate) use gc::{Disk, policies};
pub use quantity::{DiskSpace, Period};

use crate::DaemonError;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct Config {
    pub debug: bool,
    pub trace: bool,
    /// Where everything is kept.
    pub root: PathBuf,
    /// Rights that clients may ask for: `network.host`, `security.insecure`, `device`.
    #[serde(rename = "insecure-entitlements")]
    pub insecure_entitlements: Vec<String>,
    #[serde(rename = "proxyNetwork")]
    pub proxy_network: Option<toml::Value>,
    pub log: LogConfig,
    pub grpc: GrpcConfig,
    pub otel: OtelConfig,
    pub cdi: CdiConfig,
    pub worker: WorkersConfig,
    pub registry: BTreeMap<String, RegistryConfig>,
    pub dns: DnsSection,
    pub history: HistoryConfig,
    pub frontend: BTreeMap<String, FrontendConfig>,
    pub system: SystemConfig,
    #[serde(rename = "provenanceEnvDir")]
    pub provenance_env_dir: String,
    pub ghacache: Option<toml::Value>,
    /// Whether it is kept what cache keys are made of. A flag alone says so.
    #[serde(skip)]
    pub save_cache_debug: bool,
}

/// `[log]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: String,
    /// The level by name, over `debug` and `trace`; only a flag says it.
    #[serde(skip)]
    pub level: Option<String>,
}

/// `[grpc]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct GrpcConfig {
    /// `unix://PATH`, `tcp://HOST:PORT`, `fd://NAME`.
    pub address: Vec<String>,
    /// `HOST:PORT`, `tcp://HOST:PORT`, `unix://PATH`; empty for no debug handlers.
    #[serde(rename = "debugAddress")]
    pub debug_address: String,
    /// Owner of the sockets.
    pub uid: Option<u32>,
    /// Group of the sockets.
    pub gid: Option<u32>,
    #[serde(rename = "securityDescriptor")]
    pub security_descriptor: String,
    pub tls: TlsConfig,
    pub max_recv_message_size: Option<u64>,
    pub max_send_message_size: Option<u64>,
}

/// `[grpc.tls]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct TlsConfig {
    pub cert: String,
    pub key: String,
    pub ca: String,
}

/// `[otel]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct OtelConfig {
    #[serde(rename = "socketPath")]
    pub socket_path: String,
}

/// `[cdi]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct CdiConfig {
    pub disabled: Option<bool>,
    #[serde(rename = "specDirs")]
    pub spec_dirs: Vec<String>,
    #[serde(rename = "autoAllowed")]
    pub auto_allowed: Vec<String>,
}

/// `[worker]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct WorkersConfig {
    pub oci: WorkerConfig,
    pub containerd: WorkerConfig,
}

/// `[worker.oci]` and `[worker.containerd]`: one set of names, of which each takes its own
/// ([`Config::load`] refuses the other's).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct WorkerConfig {
    /// `None`: if it can work here.
    pub enabled: Option<bool>,
    pub labels: BTreeMap<String, String>,
    pub platforms: Vec<String>,
    pub snapshotter: String,
    pub rootless: bool,
    #[serde(rename = "noProcessSandbox")]
    pub no_process_sandbox: bool,
    pub gc: Option<bool>,
    pub gckeepstorage: DiskSpace,
    #[serde(rename = "reservedSpace")]
    pub reserved_space: DiskSpace,
    #[serde(rename = "maxUsedSpace")]
    pub max_used_space: DiskSpace,
    #[serde(rename = "minFreeSpace")]
    pub min_free_space: DiskSpace,
    pub gcpolicy: Vec<GcPolicy>,
    /// Bytes that one step may write at most; none is no limit. BuildKit has no such name.
    #[serde(rename = "maxStepBytes")]
    pub max_step_bytes: DiskSpace,
    #[serde(rename = "networkMode")]
    pub network_mode: String,
    #[serde(rename = "cniConfigPath")]
    pub cni_config_path: String,
    #[serde(rename = "cniBinaryPath")]
    pub cni_binary_path: String,
    #[serde(rename = "cniPoolSize")]
    pub cni_pool_size: i64,
    #[serde(rename = "bridgeName")]
    pub bridge_name: String,
    #[serde(rename = "bridgeSubnet")]
    pub bridge_subnet: String,
    #[serde(rename = "userRemapUnsupported")]
    pub user_remap_unsupported: String,
    pub binary: String,
    #[serde(rename = "proxySnapshotterPath")]
    pub proxy_snapshotter_path: String,
    #[serde(rename = "defaultCgroupParent")]
    pub default_cgroup_parent: String,
    #[serde(rename = "isolateCgroups")]
    pub isolate_cgroups: bool,
    #[serde(rename = "stargzSnapshotter")]
    pub stargz_snapshotter: Option<toml::Value>,
    #[serde(rename = "apparmor-profile")]
    pub apparmor_profile: String,
    pub selinux: bool,
    #[serde(rename = "max-parallelism")]
    pub max_parallelism: i64,
    // containerd's own.
    pub address: String,
    pub namespace: String,
    pub runtime: RuntimeConfig,
}

/// `[worker.containerd.runtime]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// `io.containerd.runc.v2`, or another that containerd knows.
    pub name: String,
    /// The program of its shim.
    pub path: String,
    /// What the runtime itself takes.
    pub options: toml::Table,
}

impl RuntimeConfig {
    fn is_set(&self) -> bool {
        !self.name.is_empty() || !self.path.is_empty() || !self.options.is_empty()
    }
}

/// `[[worker.….gcpolicy]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct GcPolicy {
    pub all: bool,
    pub filters: Vec<String>,
    #[serde(rename = "keepDuration")]
    pub keep_duration: Period,
    #[serde(rename = "keepBytes")]
    pub keep_bytes: DiskSpace,
    #[serde(rename = "reservedSpace")]
    pub reserved_space: DiskSpace,
    #[serde(rename = "maxUsedSpace")]
    pub max_used_space: DiskSpace,
    #[serde(rename = "minFreeSpace")]
    pub min_free_space: DiskSpace,
}

/// `[registry."…"]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct RegistryConfig {
    pub mirrors: Vec<String>,
    pub http: Option<bool>,
    pub insecure: Option<bool>,
    pub ca: Vec<PathBuf>,
    pub keypair: Vec<KeyPairConfig>,
    pub tlsconfigdir: Vec<PathBuf>,
    #[serde(rename = "maxRegistryConcurrency")]
    pub max_registry_concurrency: Option<i64>,
}

/// `[[registry."…".keypair]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct KeyPairConfig {
    pub key: PathBuf,
    pub cert: PathBuf,
}

/// `[dns]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct DnsSection {
    pub nameservers: Vec<String>,
    pub options: Vec<String>,
    #[serde(rename = "searchDomains")]
    pub search_domains: Vec<String>,
}

/// `[history]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct HistoryConfig {
    #[serde(rename = "maxAge")]
    pub max_age: Option<Period>,
    #[serde(rename = "maxEntries")]
    pub max_entries: Option<i64>,
}

impl HistoryConfig {
    /// How long records stay; `None` when none are kept. As in BuildKit, a section that names one of
    /// the two has nothing of the other: `maxAge` alone removes whatever is older, `maxEntries` alone
    /// whatever is more. No entries at all, or fewer, is no history.
    pub fn limits(&self) -> Option<Limits> {
        match (self.max_age, self.max_entries) {
            (None, None) => Some(Limits::default()),
            (_, Some(..=0)) => None,
            (max_age, max_entries) => Some(Limits {
                max_age: max_age.unwrap_or_default().0,
                max_entries: usize::try_from(max_entries.unwrap_or(0)).unwrap_or(usize::MAX),
            }),
        }
    }
}

/// `[frontend."…"]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct FrontendConfig {
    pub enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    pub allowed_repositories: Vec<String>,
}

/// `[system]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[allow(missing_docs)]
pub struct SystemConfig {
    #[serde(rename = "platformsCacheMaxAge")]
    pub platforms_cache_max_age: Option<Period>,
}

impl Config {
    /// Where the file is when nobody says so.
    pub const DEFAULT_PATH: &str = "/etc/buildkit/buildkitd.toml";

    /// Reads the file `path`.
    pub fn load(path: &Path) -> Result<Self, DaemonError> {
        let text = std::fs::read_to_string(path).map_err(|source| DaemonError::ReadConfig {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|reason| DaemonError::Config {
            path: path.to_owned(),
            reason,
        })
    }

    /// Reads a file that is there already; the error says where it is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        let (oci, containerd) = (&config.worker.oci, &config.worker.containerd);
        let foreign = [
            ("worker.oci.address", !oci.address.is_empty()),
            ("worker.oci.namespace", !oci.namespace.is_empty()),
            ("worker.oci.runtime", oci.runtime.is_set()),
            ("worker.containerd.binary", !containerd.binary.is_empty()),
            (
                "worker.containerd.noProcessSandbox",
                containerd.no_process_sandbox,
            ),
            (
                "worker.containerd.proxySnapshotterPath",
                !containerd.proxy_snapshotter_path.is_empty(),
            ),
        ];
        match foreign.iter().find(|(_, set)| *set) {
            Some((name, _)) => Err(format!("unknown key {name}")),
            None => Ok(config),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_history_is_as_long_as_it_says() {
        let limits = |text: &str| Config::parse(text).unwrap().history.limits();
        let of = |seconds, max_entries| {
            Some(Limits {
                max_age: std::time::Duration::from_secs(seconds),
                max_entries,
            })
        };
        assert_eq!(limits(""), of(48 * 3600, 50));
        assert_eq!(limits("[history]"), of(48 * 3600, 50));
        let both = "[history]\nmaxAge = \"2h\"\nmaxEntries = 7";
        assert_eq!(limits(both), of(7200, 7));
        assert_eq!(limits("[history]\nmaxAge = 172800"), of(172_800, 0));
        assert_eq!(limits("[history]\nmaxEntries = 7"), of(0, 7));
        for none in ["0", "-1"] {
            assert_eq!(limits(&format!("[history]\nmaxEntries = {none}")), None);
        }
    }

    const FULL: &str = r#"
debug = true
root = "/var/lib/x"
insecure-entitlements = [ "network.host", "security.insecure" ]
[log]
  format = "json"
[dns]
  nameservers=["1.1.1.1"]
  options=["edns0"]
  searchDomains=["example.com"]
[grpc]
  address = [ "tcp://0.0.0.0:1234" ]
  debugAddress = "0.0.0.0:6060"
  uid = 0
  gid = 0
  [grpc.tls]
    cert = "/c"
    key = "/k"
    ca = "/a"
[otel]
  socketPath = "/run/x.sock"
[cdi]
  disabled = true
  specDirs = ["/etc/cdi"]
[history]
  maxAge = 172800
  maxEntries = 50
[worker.oci]
  enabled = true
  platforms = [ "linux/amd64", "linux/arm64" ]
  snapshotter = "auto"
  rootless = false
  noProcessSandbox = false
  gc = true
  reservedSpace = "30%"
  maxUsedSpace = "60%"
  minFreeSpace = "20GB"
  binary = ""
  apparmor-profile = ""
  max-parallelism = 4
  networkMode = "host"
  cniConfigPath = "/etc/cni.json"
  cniPoolSize = 16
  [worker.oci.labels]
    "foo" = "bar"
  [[worker.oci.gcpolicy]]
    reservedSpace = "512MB"
    keepDuration = "48h"
    filters = [ "type==source.local" ]
  [[worker.oci.gcpolicy]]
    all = true
    reservedSpace = 1024000000
[worker.containerd]
  address = "/run/containerd/containerd.sock"
  enabled = false
  namespace = "buildkit"
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
[registry."docker.io"]
  mirrors = ["hub.docker.io", "core.harbor.domain/proxy"]
  http = true
  insecure = true
  ca=["/etc/config/myca.pem"]
  [[registry."docker.io".keypair]]
    key="/etc/config/key.pem"
    cert="/etc/config/cert.pem"
[frontend."dockerfile.v0"]
  enabled = true
[frontend."gateway.v0"]
  enabled = true
  allowedRepositories = []
[system]
  platformsCacheMaxAge = "1h"
"#;

    #[test]
    fn all_that_buildkit_documents_is_read() {
        let config = Config::parse(FULL).unwrap();
        assert_eq!(config.worker.oci.max_parallelism, 4);
        assert_eq!(config.worker.oci.labels["foo"], "bar");
        assert_eq!(config.worker.oci.gcpolicy.len(), 2);
        assert_eq!(config.registry["docker.io"].mirrors.len(), 2);
        assert_eq!(config.dns.search_domains, ["example.com"]);
    }

    #[test]
    fn an_unknown_name_is_an_error_that_names_it() {
        for (text, name) in [
            ("debgu = true", "debgu"),
            ("[worker.oci]\nmax-paralelism = 1", "max-paralelism"),
            ("[worker.oci]\nnamespace = \"x\"", "worker.oci.namespace"),
            (
                "[worker.containerd]\nbinary = \"x\"",
                "worker.containerd.binary",
            ),
            ("[registry.\"a\"]\nmirror = []", "mirror"),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(error.contains(name), "{text}: {error}");
        }
    }
}
