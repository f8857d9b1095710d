//! What a process is, for the cache: BuildKit's rules and bytes
//! (`solver/llbsolver/ops/exec.go`).

use cooper_llb::gojson::Object;
use cooper_proto::pb;
use cooper_session::pattern;

use crate::OpsError;
use crate::content::{Selector, dedupe_paths};

const CACHE_TYPE: &str = "buildkit.exec.v0";
/// A mount that takes nothing, or gives nothing.
const NONE: i64 = -1;

/// The text of the process without its inputs, whose digest is its key. Addresses of extra hosts,
/// the proxy and what of the inputs is mounted do not change it.
pub(super) fn json(op: &pb::ExecOp, platform: &pb::Platform) -> String {
    let mut op = op.clone();
    if let Some(meta) = &mut op.meta {
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
        meta.proxy_env = None;
    }
    for mount in &mut op.mounts {
        mount.selector.clear();
        if let Some(cache) = &mut mount.cache_opt
            && !is_default_cache(cache, &mount.dest)
        {
            *cache = pb::CacheOpt::default();
        }
    }
    // Versions of BuildKit before 0.4 left all mounts out: the simplest case stays as it was.
    if let [only] = op.mounts.as_slice()
        && only.dest == "/"
        && !only.readonly
        && only.mount_type() == pb::MountType::Bind
        && only.cache_opt.is_none()
        && only.ssh_opt.is_none()
        && only.secret_opt.is_none()
        && only.result_id.is_empty()
    {
        op.mounts.clear();
    }
    Object::write(|object| {
        object.field("Type", CACHE_TYPE);
        object.field("Exec", &op);
        object.field("OS", &platform.os);
        object.field("Arch", &platform.architecture);
        object.omit_empty("Variant", &platform.variant);
        object.omit_empty("OSVersion", &platform.os_version);
        object.omit_empty("OSFeatures", &platform.os_features);
    })
}

/// Whether it is what a Dockerfile's `--mount=type=cache` says with no options: kept in the key
/// so that caches from before ids were left out still hit.
fn is_default_cache(cache: &pb::CacheOpt, dest: &str) -> bool {
    let id = &cache.id;
    let namespaced = id.split_once('/').is_some_and(|(_, rest)| rest == dest);
    cache.sharing() == pb::CacheSharingOpt::Shared && (id == dest || namespaced)
}

/// How a process looks at one input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Dep {
    /// The paths that are mounted.
    selectors: Vec<String>,
    /// Whether only their content matters.
    pub(super) content_based: bool,
}

impl Dep {
    /// The text whose digest is the selector.
    pub(super) fn selector(&self) -> Option<String> {
        (!self.selectors.is_empty()).then(|| self.selectors.join("\0"))
    }

    /// The paths whose content matters; none for all.
    pub(super) fn content_selectors(&self) -> Vec<Selector> {
        let paths = dedupe_paths(&self.selectors);
        if paths.iter().any(|path| path == "/") {
            return Vec::new();
        }
        let select = |path| Selector {
            path,
            follow_links: true,
            ..Selector::default()
        };
        paths.into_iter().map(select).collect()
    }
}

/// How a process looks at each input.
pub(super) fn mount_deps(op: &pb::ExecOp, inputs: usize) -> Result<Vec<Dep>, OpsError> {
    let mut deps = vec![Dep::default(); inputs];
    for mount in &op.mounts {
        let takes = matches!(
            mount.mount_type(),
            pb::MountType::Bind | pb::MountType::Cache
        );
        if !takes || mount.input == NONE {
            continue;
        }
        let dep = usize::try_from(mount.input)
            .ok()
            .and_then(|input| deps.get_mut(input))
            .ok_or_else(|| OpsError::invalid(format!("invalid mountinput {}", mount.input)))?;
        let path = pattern::clean(&format!("/{}", mount.selector));
        // What is not mounted would get into the result by way of the input: only if there is
        // no such result, or nothing is left out, the content of what is mounted says it all.
        let safe = mount.output == NONE || mount.readonly || path == "/";
        dep.selectors.push(path);
        dep.content_based = match mount.content_cache() {
            pb::MountContentCache::Off => false,
            pb::MountContentCache::On if !safe => {
                let dest = &mount.dest;
                return Err(OpsError::invalid(format!(
                    "invalid mount cache content {dest}"
                )));
            }
            pb::MountContentCache::On => true,
            // Hashing a whole root file system costs more than it gains.
            pb::MountContentCache::Default => safe && mount.dest != "/",
        };
    }
    Ok(deps)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(mounts: Vec<pb::Mount>) -> pb::ExecOp {
        pb::ExecOp {
            meta: Some(pb::Meta {
                args: ["/bin/sh", "-c", "a && b"].map(str::to_owned).to_vec(),
                env: vec!["PATH=/bin".into()],
                cwd: "/".into(),
                proxy_env: Some(pb::ProxyEnv {
                    http_proxy: "x".into(),
                    ..pb::ProxyEnv::default()
                }),
                extra_hosts: vec![pb::HostIp {
                    host: "h".into(),
                    ip: "1.2.3.4".into(),
                }],
                ..pb::Meta::default()
            }),
            mounts,
            ..pb::ExecOp::default()
        }
    }

    fn mount(input: i64, dest: &str, output: i64) -> pb::Mount {
        pb::Mount {
            input,
            dest: dest.into(),
            output,
            ..pb::Mount::default()
        }
    }

    fn linux() -> pb::Platform {
        cooper_llb::platform::parse("linux/amd64").unwrap()
    }

    #[test]
    fn the_bytes_are_those_of_go() {
        let meta = concat!(
            r#""meta":{"args":["/bin/sh","-c","a \u0026\u0026 b"],"env":["PATH=/bin"],"#,
            r#""cwd":"/","extraHosts":[{"Host":"h"}]}"#
        );
        let root = mount(0, "/", 0);
        assert_eq!(
            json(&op(vec![root.clone()]), &linux()),
            format!(
                r#"{{"Type":"buildkit.exec.v0","Exec":{{{meta}}},"OS":"linux","Arch":"amd64"}}"#
            )
        );
        let bind = pb::Mount {
            selector: "/src".into(),
            readonly: true,
            ..mount(1, "/in", -1)
        };
        let cache = |id: &str| pb::Mount {
            mount_type: pb::MountType::Cache.into(),
            cache_opt: Some(pb::CacheOpt {
                id: id.into(),
                ..pb::CacheOpt::default()
            }),
            ..mount(-1, "/cache", -1)
        };
        let mounts = concat!(
            r#""mounts":[{"dest":"/"},{"input":1,"dest":"/in","output":-1,"readonly":true},"#,
            r#"{"input":-1,"dest":"/cache","output":-1,"mountType":3,"cacheOpt":{"ID":"ns//cache"}},"#,
            r#"{"input":-1,"dest":"/cache","output":-1,"mountType":3,"cacheOpt":{}}]"#
        );
        assert_eq!(
            json(
                &op(vec![root, bind, cache("ns//cache"), cache("other")]),
                &cooper_llb::platform::parse("linux/arm/v7").unwrap()
            ),
            format!(
                r#"{{"Type":"buildkit.exec.v0","Exec":{{{meta},{mounts}}},"OS":"linux","Arch":"arm","Variant":"v7"}}"#
            )
        );
    }

    #[test]
    fn content_counts_where_nothing_else_gets_through() {
        let deps = |mounts| mount_deps(&op(mounts), 2);
        let selected = |output, readonly, content_cache| pb::Mount {
            selector: "sub/../dir".into(),
            readonly,
            content_cache,
            ..mount(1, "/in", output)
        };
        let root = || mount(0, "/", 0);
        for (mount, content_based) in [
            (selected(-1, false, 0), true),
            (selected(1, true, 0), true),
            (selected(1, false, 0), false),
            (selected(-1, false, 2), false),
            (mount(1, "/all", 1), true),
        ] {
            let found = deps(vec![root(), mount.clone()]).unwrap();
            assert!(!found[0].content_based);
            assert_eq!(found[0].selector(), Some("/".to_owned()));
            assert_eq!(found[1].content_based, content_based, "{mount:?}");
        }
        assert!(deps(vec![root(), selected(1, false, 1)]).is_err());
        assert!(deps(vec![mount(7, "/", 0)]).is_err());
        let found = deps(vec![root(), selected(-1, false, 0)]).unwrap();
        assert_eq!(found[1].selector(), Some("/dir".to_owned()));
        assert_eq!(found[1].content_selectors()[0].path, "/dir");
        assert_eq!(found[0].content_selectors(), []);
    }
}
