//! The options that clients give (`frontend/dockerui/config.go`, `attr.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use cooper_dockerfile::csv;
use cooper_frontend::{BuildOpts, CacheImport, FrontendError};
use cooper_llb::platform;
use cooper_proto::pb;
use serde::Deserialize;

use crate::extra::Extra;
use crate::gotext::parse_bool;
use crate::lint::LintConfig;

/// What a client asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// All options by name.
    pub(crate) raw: BTreeMap<String, String>,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) target: String,
    pub(crate) cache_namespace: String,
    pub(crate) cgroup_parent: String,
    pub(crate) hostname: String,
    pub(crate) resolve_mode: String,
    pub(crate) network: pb::NetMode,
    pub(crate) extra_hosts: Vec<pb::HostIp>,
    pub(crate) ulimits: Vec<pb::Ulimit>,
    /// What each step may use of the machine.
    pub(crate) resources: pb::LinuxResources,
    /// Bytes; 0 for the default.
    pub(crate) shm_size: i64,
    /// Stages to build anew; an empty list means all.
    pub(crate) no_cache: Option<Vec<String>>,
    pub(crate) cache_imports: Vec<CacheImport>,
    /// Empty means the builder's own.
    pub(crate) target_platforms: Vec<pb::Platform>,
    pub(crate) build_platform: pb::Platform,
    pub(crate) multi_platform: bool,
    /// Sessions of local sources, by the name of the source.
    pub(crate) local_sessions: BTreeMap<String, String>,
    pub(crate) lint: Option<LintConfig>,
    /// What every `RUN` gets.
    pub(crate) extra: Extra,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CacheEntry {
    #[serde(alias = "type")]
    r#type: String,
    #[serde(default, alias = "attrs")]
    attrs: Option<BTreeMap<String, String>>,
}

impl Options {
    pub(crate) fn parse(
        mut raw: BTreeMap<String, String>,
        build: &BuildOpts,
    ) -> Result<Self, FrontendError> {
        let invalid = |message: String| FrontendError::invalid(message);
        refuse_old(&raw, build)?;
        let build_platform = build
            .workers
            .first()
            .and_then(|worker| worker.platforms.first().cloned())
            .unwrap_or_else(platform::host);
        let mut target_platforms = Vec::new();
        for name in non_empty(&raw, "platform")
            .into_iter()
            .flat_map(|v| v.split(','))
        {
            let parsed = platform::parse(name).map_err(|error| FrontendError::Invalid {
                message: format!("failed to parse target platform {name}"),
                location: None,
                source: Some(Box::new(error)),
            })?;
            target_platforms.push(platform::normalize(&parsed));
        }
        if let Some(value) = non_empty(&raw, "build-arg:BUILDKIT_MULTI_PLATFORM") {
            let value = value.to_owned();
            raw.insert("multi-platform".into(), value);
        }
        let mut multi_platform = target_platforms.len() > 1;
        if let Some(value) = non_empty(&raw, "multi-platform") {
            let wanted = parse_bool(value).ok_or_else(|| {
                invalid(format!("invalid boolean value for multi-platform: {value}"))
            })?;
            if !wanted && multi_platform {
                return Err(invalid(
                    "conflicting config: returning multiple target platforms is not allowed".into(),
                ));
            }
            multi_platform = wanted;
        }
        let resolve_mode = match text(&raw, "image-resolve-mode").as_str() {
            "" => "default".to_owned(),
            mode @ ("default" | "pull" | "local") => mode.to_owned(),
            other => return Err(invalid(format!("invalid image-resolve-mode: {other}"))),
        };
        let network = match text(&raw, "force-network-mode").as_str() {
            "" | "sandbox" => pb::NetMode::Unset,
            "host" => pb::NetMode::Host,
            "none" => pb::NetMode::None,
            other => return Err(invalid(format!("invalid netmode {other}"))),
        };
        let lint = match raw.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            Some(value) => Some(LintConfig::parse(value).map_err(|error| {
                invalid(format!(
                    "failed to parse build-arg:BUILDKIT_DOCKERFILE_CHECK: {error}"
                ))
            })?),
            None => None,
        };
        if raw.keys().any(|key| key == "attest:sbom") {
            return Err(invalid(
                "attest:sbom is not supported by this builder".into(),
            ));
        }
        let hostname = non_empty(&raw, "build-arg:BUILDKIT_SANDBOX_HOSTNAME")
            .map_or_else(|| text(&raw, "hostname"), str::to_owned);
        Ok(Self {
            build_args: with_prefix(&raw, "build-arg:"),
            labels: with_prefix(&raw, "label:"),
            local_sessions: with_prefix(&raw, "local-sessionid:"),
            target: text(&raw, "target"),
            cache_namespace: text(&raw, "build-arg:BUILDKIT_CACHE_MOUNT_NS"),
            cgroup_parent: text(&raw, "cgroup-parent"),
            hostname,
            resolve_mode,
            network,
            extra_hosts: extra_hosts(&text(&raw, "add-hosts"))
                .map_err(|error| invalid(format!("failed to parse additional hosts: {error}")))?,
            ulimits: ulimits(&text(&raw, "ulimit"))
                .map_err(|error| invalid(format!("failed to parse ulimit: {error}")))?,
            resources: resources(&raw).map_err(invalid)?,
            shm_size: shm_size(&text(&raw, "shm-size"))
                .map_err(|error| invalid(format!("failed to parse shm size: {error}")))?,
            no_cache: raw.get("no-cache").map(|stages| {
                let stages = stages.split(',').filter(|stage| !stage.is_empty());
                stages.map(str::to_owned).collect()
            }),
            cache_imports: cache_imports(&raw).map_err(invalid)?,
            target_platforms,
            build_platform,
            multi_platform,
            lint,
            extra: Extra::parse(&raw)?,
            raw,
        })
    }

    /// Whether a stage is to be built anew.
    pub(crate) fn is_no_cache(&self, stage: &str) -> bool {
        self.no_cache.as_ref().is_some_and(|stages| {
            stages.is_empty() || stages.iter().any(|name| name.eq_ignore_ascii_case(stage))
        })
    }

    /// The session of a local source, if it is not that of the build.
    pub(crate) fn session<'a>(&'a self, local: &str, build: &'a BuildOpts) -> &'a str {
        self.local_sessions.get(local).unwrap_or(&build.session_id)
    }
}

fn refuse_old(raw: &BTreeMap<String, String>, build: &BuildOpts) -> Result<(), FrontendError> {
    if let Err(error) = build.llb_caps.supports("file.base") {
        return Err(FrontendError::Invalid {
            message: "needs BuildKit 0.5 or later".into(),
            location: None,
            source: Some(Box::new(error)),
        });
    }
    if non_empty(raw, "override-copy-image").is_some() {
        return Err(FrontendError::invalid(
            "support for \"override-copy-image\" was removed in BuildKit 0.11",
        ));
    }
    if non_empty(raw, "build-arg:BUILDKIT_DISABLE_FILEOP").and_then(parse_bool) == Some(true) {
        return Err(FrontendError::invalid(
            "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
        ));
    }
    Ok(())
}

fn non_empty<'a>(raw: &'a BTreeMap<String, String>, key: &str) -> Option<&'a str> {
    raw.get(key).map(String::as_str).filter(|v| !v.is_empty())
}

fn text(raw: &BTreeMap<String, String>, key: &str) -> String {
    raw.get(key).cloned().unwrap_or_default()
}

fn with_prefix(raw: &BTreeMap<String, String>, prefix: &str) -> BTreeMap<String, String> {
    raw.iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())))
        .collect()
}

fn fields(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    csv::fields(text).map_err(|error| error.to_string())
}

fn extra_hosts(text: &str) -> Result<Vec<pb::HostIp>, String> {
    fields(text)?
        .iter()
        .map(|field| {
            let field = field.to_lowercase();
            let (host, ip) = field
                .split_once('=')
                .ok_or_else(|| format!("invalid key-value pair {field}"))?;
            let address: IpAddr = ip.parse().map_err(|_| format!("failed to parse IP {ip}"))?;
            Ok(pb::HostIp {
                host: host.to_owned(),
                ip: address.to_string(),
            })
        })
        .collect()
}

fn shm_size(text: &str) -> Result<i64, String> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse()
        .map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
}

/// The limits of steps, by the names of the classic builder's options or by the short ones of
/// its API.
fn resources(raw: &BTreeMap<String, String>) -> Result<pb::LinuxResources, String> {
    let value = |names: [&str; 2]| names.iter().find_map(|name| non_empty(raw, name));
    let number = |names: [&str; 2]| match value(names) {
        None => Ok(0),
        Some(text) => text.parse::<i64>().map_err(|_| {
            let name = names[0];
            format!("failed to parse {name}: strconv.ParseInt: parsing {text:?}: invalid syntax")
        }),
    };
    let list = |names| value(names).unwrap_or_default().to_owned();
    Ok(pb::LinuxResources {
        memory: number(["memory", "memory"])?,
        memory_swap: number(["memory-swap", "memswap"])?,
        cpu_shares: number(["cpu-shares", "cpushares"])?,
        cpu_period: number(["cpu-period", "cpuperiod"])?,
        cpu_quota: number(["cpu-quota", "cpuquota"])?,
        cpuset_cpus: list(["cpuset-cpus", "cpusetcpus"]),
        cpuset_mems: list(["cpuset-mems", "cpusetmems"]),
    })
}

const ULIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn ulimits(text: &str) -> Result<Vec<pb::Ulimit>, String> {
    fields(text)?.iter().map(|field| ulimit(field)).collect()
}

fn ulimit(field: &str) -> Result<pb::Ulimit, String> {
    let invalid = || format!("invalid ulimit argument: {field}");
    let (name, limits) = field.split_once('=').ok_or_else(invalid)?;
    if !ULIMITS.contains(&name) {
        return Err(format!("invalid ulimit type: {name}"));
    }
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
    };
    let (soft, hard) = (number(soft)?, number(hard)?);
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(format!(
            "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
        ));
    }
    Ok(pb::Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    })
}

fn cache_imports(raw: &BTreeMap<String, String>) -> Result<Vec<CacheImport>, String> {
    let mut imports = Vec::new();
    if let Some(text) = non_empty(raw, "cache-imports") {
        let entries: Vec<CacheEntry> = serde_json::from_str(text)
            .map_err(|error| format!("failed to unmarshal cache-imports ({text:?}): {error}"))?;
        imports.extend(entries.into_iter().map(|entry| CacheImport {
            kind: entry.r#type,
            attrs: entry.attrs.unwrap_or_default(),
        }));
    }
    // The old form is for registries only.
    let old = non_empty(raw, "cache-from").into_iter();
    imports.extend(
        old.flat_map(|refs| refs.split(','))
            .map(|reference| CacheImport {
                kind: "registry".into(),
                attrs: BTreeMap::from([("ref".into(), reference.into())]),
            }),
    );
    Ok(imports)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use cooper_llb::CapSet;

    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options, String> {
        let raw = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        let build = BuildOpts {
            llb_caps: CapSet::all_llb(),
            session_id: "main".into(),
            ..BuildOpts::default()
        };
        Options::parse(raw, &build).map_err(|error| error.to_string())
    }

    #[test]
    fn options_are_read() {
        let options = parse(&[
            ("build-arg:A", "1"),
            ("label:l", "v"),
            ("platform", "linux/amd64,linux/aarch64"),
            ("add-hosts", "a=1.2.3.4,B=::1"),
            ("ulimit", "nofile=1:2,nproc=5"),
            ("no-cache", ""),
            (
                "cache-imports",
                r#"[{"Type":"registry","Attrs":{"ref":"x"}}]"#,
            ),
            ("cache-from", "y,z"),
            ("local-sessionid:context", "other"),
        ])
        .unwrap();
        assert_eq!(options.build_args["A"], "1");
        assert!(options.multi_platform);
        assert_eq!(options.target_platforms[1].architecture, "arm64");
        assert_eq!(
            (
                options.extra_hosts[1].host.as_str(),
                options.extra_hosts[1].ip.as_str()
            ),
            ("b", "::1")
        );
        assert_eq!(
            (
                options.ulimits[0].soft,
                options.ulimits[0].hard,
                options.ulimits[1].hard
            ),
            (1, 2, 5)
        );
        assert!(options.is_no_cache("x"));
        assert_eq!(options.cache_imports.len(), 3);
        let build = BuildOpts::default();
        assert_eq!(options.session("context", &build), "other");
        assert!(!parse(&[("no-cache", "A,b")]).unwrap().is_no_cache("c"));
        assert!(parse(&[("no-cache", "A,b")]).unwrap().is_no_cache("a"));
    }

    #[test]
    fn mistakes_are_explained() {
        for (key, value, error) in [
            (
                "platform",
                "a/b/c/d",
                "failed to parse target platform a/b/c/d",
            ),
            (
                "multi-platform",
                "x",
                "invalid boolean value for multi-platform: x",
            ),
            ("image-resolve-mode", "x", "invalid image-resolve-mode: x"),
            ("force-network-mode", "x", "invalid netmode x"),
            (
                "add-hosts",
                "a",
                "failed to parse additional hosts: invalid key-value pair a",
            ),
            (
                "add-hosts",
                "a=b",
                "failed to parse additional hosts: failed to parse IP b",
            ),
            (
                "ulimit",
                "x=1",
                "failed to parse ulimit: invalid ulimit type: x",
            ),
            (
                "ulimit",
                "nofile=2:1",
                "failed to parse ulimit: ulimit soft limit must be less than or equal to hard limit: 2 > 1",
            ),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap_err(), error);
        }
    }
}
