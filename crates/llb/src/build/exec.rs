use cooper_proto::pb;

use super::node::{Kind, Node, Output};
use super::{Constraints, State};

/// Where commands are looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `PATH` of an operating system.
pub fn default_path(os: &str) -> &'static str {
    if os == "windows" {
        "c:\\Windows\\System32;c:\\Windows"
    } else {
        DEFAULT_PATH
    }
}

/// What to run in a container.
#[derive(Clone, Debug, Default)]
pub struct Exec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Mounts besides the root.
    pub mounts: Vec<MountSpec>,
    /// Secrets.
    pub secrets: Vec<SecretSpec>,
    /// Sockets of the client's ssh agents.
    pub ssh: Vec<SshSpec>,
    /// Proxies, which are not part of the cache key.
    pub proxy: Option<pb::ProxyEnv>,
    /// The network; that of the state when there is none.
    pub network: Option<pb::NetMode>,
    /// The security mode.
    pub security: pb::SecurityMode,
    /// Names for the hosts file.
    pub extra_hosts: Vec<pb::HostIp>,
    /// Limits of resources.
    pub ulimits: Vec<pb::Ulimit>,
    /// Devices.
    pub devices: Vec<pb::CdiDevice>,
    /// The parent of the container's control group.
    pub cgroup_parent: String,
    /// The exit codes of success; none: 0 alone.
    pub valid_exit_codes: Vec<i32>,
    /// Nothing can be written to the root.
    pub read_only_root: bool,
    /// What is said of the operation.
    pub constraints: Constraints,
}

/// A mount.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where to.
    pub target: String,
    /// What; nothing for a tmpfs and for an empty cache.
    pub source: State,
    /// The path in the source; empty for all of it.
    pub selector: String,
    /// Nothing can be written.
    pub read_only: bool,
    /// What is written is thrown away.
    pub no_output: bool,
    /// The kind.
    pub kind: MountKind,
}

/// The kind of a [`MountSpec`].
#[derive(Clone, Debug, Default)]
pub enum MountKind {
    /// Files.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache {
        /// The id.
        id: String,
        /// How builds share it.
        sharing: pb::CacheSharingOpt,
    },
    /// Memory, so many bytes at most; 0 for no limit.
    Tmpfs {
        /// Bytes.
        size: i64,
    },
}

/// A secret.
#[derive(Clone, Debug, Default)]
pub struct SecretSpec {
    /// The file; `None` when it is in a variable only.
    pub target: Option<String>,
    /// The variable.
    pub env: Option<String>,
    /// What the client has to give.
    pub options: pb::SecretOpt,
}

/// A socket of an ssh agent.
#[derive(Clone, Debug, Default)]
pub struct SshSpec {
    /// Where to; a place of its own when empty.
    pub target: String,
    /// Which agent.
    pub options: pb::SshOpt,
}

#[derive(Debug)]
pub(super) struct ExecNode {
    pub(super) op: pb::ExecOp,
    /// For each bind or cache mount (the root included): the place of its source in the inputs.
    pub(super) sources: Vec<Option<usize>>,
    pub(super) has_path: bool,
}

struct Sorted {
    mount: pb::Mount,
    source: Option<Output>,
    writes: bool,
}

impl State {
    /// After a command has run on it.
    #[must_use]
    pub fn run(&self, exec: Exec) -> Self {
        let read_only = exec.read_only_root;
        let node = node(self, exec);
        if read_only {
            return self.clone();
        }
        // The root's target sorts before all others: its output is the first.
        self.with_output(Some(node.output(0)))
    }

    /// What a command that has run on it left in the mount at `target`; `None` when nothing
    /// comes out of a mount there.
    #[must_use]
    pub fn run_mounted(&self, exec: Exec, target: &str) -> Option<Self> {
        let node = node(self, exec);
        let Kind::Exec(exec) = &node.kind else {
            return None;
        };
        let mut mounts = exec.op.mounts.iter();
        let index = mounts.find(|mount| mount.dest == target)?.output;
        (index >= 0).then(|| self.with_output(Some(node.output(index))))
    }
}

fn node(state: &State, exec: Exec) -> Node {
    let mut constraints = exec.constraints;
    let mut env = (*state.env).clone();
    let mut ssh = exec.ssh;
    for (i, socket) in ssh.iter_mut().enumerate() {
        if socket.target.is_empty() {
            socket.target = format!("/run/buildkit/ssh_agent.{i}");
        }
    }
    if let Some(first) = ssh.first()
        && env.get("SSH_AUTH_SOCK").is_none()
    {
        env.set("SSH_AUTH_SOCK", first.target.as_str());
    }
    let has_path = env.get("PATH").is_some();

    let mut sorted = vec![Sorted {
        mount: pb::Mount {
            dest: "/".into(),
            readonly: exec.read_only_root,
            ..pb::Mount::default()
        },
        source: state.output.clone(),
        writes: !exec.read_only_root,
    }];
    sorted.extend(exec.mounts.into_iter().map(mount));
    sorted.sort_by(|a, b| a.mount.dest.cmp(&b.mount.dest));

    let mut inputs = Vec::new();
    let mut sources = Vec::new();
    let mut mounts = Vec::new();
    let mut outputs = 0;
    for Sorted {
        mut mount,
        source,
        writes,
    } in sorted
    {
        caps(&mount, source.is_some(), &mut constraints);
        mount.output = if writes {
            outputs += 1;
            outputs - 1
        } else {
            -1
        };
        sources.push(source.map(|source| {
            inputs.push(source);
            inputs.len() - 1
        }));
        mounts.push(mount);
    }
    let mut secret_env = Vec::new();
    for secret in exec.secrets {
        constraints.cap("exec.mount.secret");
        if let Some(name) = secret.env {
            constraints.cap("exec.secretenv");
            secret_env.push(pb::SecretEnv {
                id: secret.options.id.clone(),
                name,
                optional: secret.options.optional,
            });
        }
        if let Some(target) = secret.target {
            mounts.push(pb::Mount {
                input: -1,
                dest: target,
                mount_type: pb::MountType::Secret.into(),
                secret_opt: Some(secret.options),
                ..pb::Mount::default()
            });
        }
    }
    for socket in ssh {
        constraints.cap("exec.mount.ssh");
        mounts.push(pb::Mount {
            input: -1,
            dest: socket.target,
            mount_type: pb::MountType::Ssh.into(),
            ssh_opt: Some(socket.options),
            ..pb::Mount::default()
        });
    }
    let network = exec.network.unwrap_or(state.network);
    for (needed, cap) in [
        (!exec.ulimits.is_empty(), "exec.meta.ulimit"),
        (!exec.valid_exit_codes.is_empty(), "exec.validexitcode"),
        (!exec.devices.is_empty(), "exec.meta.cdi"),
        (network != pb::NetMode::Unset, "exec.meta.network"),
        (
            exec.security != pb::SecurityMode::Sandbox,
            "exec.meta.security",
        ),
        (exec.proxy.is_some(), "exec.meta.proxyenv"),
        (!exec.cgroup_parent.is_empty(), "exec.meta.cgroup.parent"),
        (true, "exec.meta.base"),
    ] {
        if needed {
            constraints.cap(cap);
        }
    }
    if constraints.platform.is_none() {
        constraints.platform.clone_from(&state.platform);
    }
    Node {
        kind: Kind::Exec(Box::new(ExecNode {
            op: pb::ExecOp {
                meta: Some(pb::Meta {
                    args: exec.args,
                    env: env.to_lines(),
                    cwd: state.current_dir().to_owned(),
                    user: state.user.clone(),
                    proxy_env: exec.proxy,
                    extra_hosts: exec.extra_hosts,
                    hostname: state.hostname.clone(),
                    ulimit: exec.ulimits,
                    cgroup_parent: exec.cgroup_parent,
                    remove_mount_stubs_recursive: true,
                    valid_exit_codes: exec.valid_exit_codes.clone(),
                }),
                mounts,
                network: network.into(),
                security: exec.security.into(),
                secretenv: secret_env,
                cdi_devices: exec.devices,
            },
            sources,
            has_path,
        })),
        inputs,
        constraints,
    }
}

fn mount(spec: MountSpec) -> Sorted {
    let mut mount = pb::Mount {
        dest: spec.target,
        selector: spec.selector,
        readonly: spec.read_only,
        ..pb::Mount::default()
    };
    let mut writes = !spec.read_only && !spec.no_output;
    match spec.kind {
        MountKind::Bind => {}
        MountKind::Cache { id, sharing } => {
            mount.mount_type = pb::MountType::Cache.into();
            mount.cache_opt = Some(pb::CacheOpt {
                id,
                sharing: sharing.into(),
            });
            writes = false;
        }
        MountKind::Tmpfs { size } => {
            mount.mount_type = pb::MountType::Tmpfs.into();
            mount.tmpfs_opt = Some(pb::TmpfsOpt { size });
            writes = false;
        }
    }
    Sorted {
        mount,
        source: spec.source.output,
        writes,
    }
}

fn caps(mount: &pb::Mount, has_source: bool, constraints: &mut Constraints) {
    if !mount.selector.is_empty() {
        constraints.cap("exec.mount.selector");
    }
    if mount.cache_opt.is_some() {
        constraints.cap("exec.mount.cache");
        constraints.cap("exec.mount.cache.sharing");
    } else if let Some(tmpfs) = &mount.tmpfs_opt {
        constraints.cap("exec.mount.tmpfs");
        if tmpfs.size > 0 {
            constraints.cap("exec.mount.tmpfs.size");
        }
    } else if has_source {
        constraints.cap("exec.mount.bind");
    }
}
