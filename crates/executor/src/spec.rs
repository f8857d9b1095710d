//! The configuration of an OCI runtime: containerd's defaults with BuildKit's changes.

use std::path::{Component, Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Box as ConsoleSize, BoxBuilder, Linux, LinuxBuilder, LinuxCpuBuilder, LinuxMemoryBuilder,
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources,
    LinuxResourcesBuilder, Mount as OciMount, MountBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, Process as OciProcess, ProcessBuilder, RootBuilder, Spec, SpecBuilder,
    UserBuilder,
};

use crate::{
    Capabilities, ContainerSpec, DEFAULT_HOSTNAME, ExecError, OtherCalls, Process, Resources,
    SecurityMode, TtySize, Ulimit, User, devices, rootless, seccomp,
};

const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Destination, type, source and options of what every container has. `/run` is not among it:
/// it is the image's (BuildKit, issue 429).
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        "nosuid,strictatime,mode=755,size=65536k",
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5",
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        "nosuid,noexec,nodev,mode=1777,size=65536k",
    ),
    ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
    ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        "ro,nosuid,noexec,nodev",
    ),
];

/// What a container's configuration depends on besides the container itself: the machine and
/// the executor.
#[derive(Clone, Debug)]
pub struct SpecContext {
    /// The container's id.
    pub id: String,
    /// Where its root file system is mounted on the host.
    pub root: PathBuf,
    /// The file that is its `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// The file that is its `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// Its other mounts ([`crate::Attached`]).
    pub mounts: Vec<OciMount>,
    /// Whether it shares the host's network. If not it has its own, in which there is nothing
    /// but loopback, or that of [`Self::network_namespace`].
    pub host_network: bool,
    /// The network namespace that it joins, a file on the host.
    pub network_namespace: Option<PathBuf>,
    /// The control group above its own, unless it says another.
    pub cgroup_parent: String,
    /// In a user namespace: the control group that was handed over, above all of containers;
    /// `None` when there are none then.
    pub cgroup_delegated: Option<String>,
    /// Whether the machine has control groups of version 2 only: then the container has a
    /// namespace for them.
    pub cgroup_namespace: bool,
    /// The profile of AppArmor for confined containers; empty for none.
    pub apparmor_profile: String,
    /// Where the kernel filters system calls (seccomp(2)), what it takes of those of other
    /// architectures; confined containers then have a filter.
    pub seccomp: Option<OtherCalls>,
    /// How ready the kernel is to kill it for want of memory.
    pub oom_score_adj: Option<i32>,
    /// What an unconfined container gets: all that the daemon has.
    pub capabilities: Capabilities,
    /// How many loop devices an unconfined container gets.
    pub loop_devices: u32,
    /// How many files its processes may have open, soft and hard, unless the container says;
    /// `None` for what the runtime has.
    pub open_files: Option<(u64, u64)>,
    /// Whether this is for a runtime in a user namespace: then there are no control groups but
    /// those that were handed over, the host's `/sys` cannot be shown, and groups may be missing.
    pub user_namespace: bool,
    /// Whether it shares the host's process namespace and its `/proc`: where an ordinary user's
    /// container may not mount one of its own.
    pub no_process_sandbox: bool,
}

impl SpecContext {
    /// A context of defaults for the container `id` with its root file system in `root`.
    pub fn new(id: impl Into<String>, root: &Path) -> Self {
        Self {
            id: id.into(),
            root: root.to_owned(),
            resolv_conf: None,
            hosts: None,
            mounts: Vec::new(),
            host_network: false,
            network_namespace: None,
            cgroup_parent: String::new(),
            cgroup_delegated: None,
            cgroup_namespace: false,
            apparmor_profile: String::new(),
            seccomp: None,
            oom_score_adj: None,
            capabilities: Capabilities::default(),
            loop_devices: 0,
            open_files: None,
            user_namespace: false,
            no_process_sandbox: false,
        }
    }

    /// The path of the container's control group in each hierarchy: `/<parent>/buildkit/<id>`,
    /// or `<slice>:<id>` for a parent that names a slice of systemd.
    pub fn cgroup(&self, container: &ContainerSpec) -> String {
        let parent = match container.cgroup_parent.as_str() {
            "" => &self.cgroup_parent,
            own => own,
        };
        if parent.contains(".slice") && parent.ends_with(':') {
            return format!("{parent}{}", self.id);
        }
        let mut path = PathBuf::from("/");
        for component in Path::new(parent).components() {
            match component {
                Component::Normal(name) => path.push(name),
                // The parent comes from a client: it does not lead out of the hierarchy.
                Component::ParentDir => {
                    path.pop();
                }
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        path.push("buildkit");
        path.push(&self.id);
        path.display().to_string()
    }
}

/// The configuration of `process` as the first process of `container`.
///
/// # Errors
/// [`ExecError::NoArgs`], [`ExecError::Ulimit`], [`ExecError::HostName`].
pub fn oci_spec(
    container: &ContainerSpec,
    process: &Process,
    user: &User,
    context: &SpecContext,
) -> Result<Spec, ExecError> {
    if process.args.is_empty() {
        return Err(ExecError::NoArgs);
    }
    let names = container.extra_hosts.iter().map(|host| &host.host);
    for name in names.chain([&container.hostname]) {
        // A line break would add lines to the hosts file.
        if name.contains(char::is_control) {
            let name = name.clone();
            return Err(ExecError::HostName { name });
        }
    }
    let insecure = container.security == SecurityMode::Insecure;
    let mut rlimits = container
        .ulimits
        .iter()
        .map(rlimit)
        .collect::<Result<Vec<_>, _>>()?;
    let nofile = PosixRlimitType::RlimitNofile;
    if let Some((soft, hard)) = context.open_files
        && !rlimits.iter().any(|limit| limit.typ() == nofile)
    {
        let limit = PosixRlimitBuilder::default().typ(nofile);
        rlimits.push(limit.soft(soft).hard(hard).build().map_err(runtime)?);
    }
    let hostname = match container.hostname.as_str() {
        "" => DEFAULT_HOSTNAME,
        name => name,
    };
    let build = || {
        let mut spec = SpecBuilder::default()
            .version("1.0.2")
            .hostname(hostname)
            .root(
                RootBuilder::default()
                    .path(context.root.clone())
                    .readonly(container.root_read_only)
                    .build()?,
            )
            .process(init(process, user, context, insecure, rlimits)?)
            .mounts(mounts(context, insecure)?)
            .linux(linux(container, context, insecure)?)
            .build()?;
        spec.set_annotations(None);
        if context.no_process_sandbox {
            rootless::share_processes(&mut spec)?;
        }
        if context.user_namespace {
            rootless::adapt(&mut spec, context.cgroup_delegated.as_deref());
        }
        Ok::<_, OciSpecError>(spec)
    };
    build().map_err(runtime)
}

/// The configuration of another process in a container whose first one is `init`.
pub fn exec_process(process: &Process, user: Option<&User>, init: &OciProcess) -> OciProcess {
    let mut own = init.clone();
    own.set_terminal(Some(process.tty.is_some()));
    own.set_console_size(console_size(process));
    own.set_args(Some(process.args.clone()));
    if !process.cwd.is_empty() {
        own.set_cwd(process.cwd.clone().into());
    }
    if !process.env.is_empty() {
        own.set_env(Some(process.env.clone()));
    }
    if let Some(user) = user
        && let Ok(user) = oci_user(user)
    {
        own.set_user(user);
    }
    own
}

fn runtime(error: OciSpecError) -> ExecError {
    ExecError::Runtime {
        message: error.to_string(),
    }
}

fn oci_user(user: &User) -> Result<oci_spec::runtime::User, OciSpecError> {
    let mut groups = user.groups.clone();
    // The main group counts as a further one, too: a program that only looks at those finds it.
    if !groups.contains(&user.gid) {
        groups.insert(0, user.gid);
    }
    UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(groups)
        .build()
}

fn init(
    process: &Process,
    user: &User,
    context: &SpecContext,
    insecure: bool,
    rlimits: Vec<PosixRlimit>,
) -> Result<OciProcess, OciSpecError> {
    let cwd = match process.cwd.as_str() {
        "" => "/",
        cwd => cwd,
    };
    let mut built = ProcessBuilder::default()
        .terminal(process.tty.is_some())
        .user(oci_user(user)?)
        .args(process.args.clone())
        .env(process.env.clone())
        .cwd(cwd)
        .capabilities(context.capabilities.of_container(insecure)?)
        .no_new_privileges(false)
        .build()?;
    built.set_rlimits((!rlimits.is_empty()).then_some(rlimits));
    built.set_console_size(console_size(process));
    built.set_oom_score_adj(context.oom_score_adj);
    if !insecure && !context.apparmor_profile.is_empty() {
        built.set_apparmor_profile(Some(context.apparmor_profile.clone()));
    }
    Ok(built)
}

/// The terminal's size from its first moment on.
fn console_size(process: &Process) -> Option<ConsoleSize> {
    let size = process.tty.filter(|size| *size != TtySize::default())?;
    let builder = BoxBuilder::default().height(size.rows).width(size.columns);
    builder.build().ok()
}

fn rlimit(limit: &Ulimit) -> Result<PosixRlimit, ExecError> {
    use PosixRlimitType as Type;
    let kind = match limit.name.to_ascii_lowercase().as_str() {
        "as" => Type::RlimitAs,
        "core" => Type::RlimitCore,
        "cpu" => Type::RlimitCpu,
        "data" => Type::RlimitData,
        "fsize" => Type::RlimitFsize,
        "locks" => Type::RlimitLocks,
        "memlock" => Type::RlimitMemlock,
        "msgqueue" => Type::RlimitMsgqueue,
        "nice" => Type::RlimitNice,
        "nofile" => Type::RlimitNofile,
        "nproc" => Type::RlimitNproc,
        "rss" => Type::RlimitRss,
        "rtprio" => Type::RlimitRtprio,
        "rttime" => Type::RlimitRttime,
        "sigpending" => Type::RlimitSigpending,
        "stack" => Type::RlimitStack,
        _ => {
            let name = limit.name.clone();
            return Err(ExecError::Ulimit { name });
        }
    };
    PosixRlimitBuilder::default()
        .typ(kind)
        // A negative number is no limit: RLIM_INFINITY is the same bits.
        .soft(limit.soft as u64)
        .hard(limit.hard as u64)
        .build()
        .map_err(runtime)
}

fn mounts(context: &SpecContext, insecure: bool) -> Result<Vec<OciMount>, OciSpecError> {
    let mount = |dest: &str, kind: &str, source: &Path, options: &str| {
        let writable = insecure && matches!(kind, "sysfs" | "cgroup");
        let options = options.split(',').map(|option| match option {
            "ro" if writable => "rw".to_owned(),
            option => option.to_owned(),
        });
        MountBuilder::default()
            .destination(dest)
            .typ(kind)
            .source(source)
            .options(options.collect::<Vec<_>>())
            .build()
    };
    let mut mounts: Vec<OciMount> = Vec::new();
    let (cgroup, first) = MOUNTS.split_last().expect("the table is not empty");
    for (dest, kind, source, options) in first {
        mounts.push(mount(dest, kind, Path::new(source), options)?);
    }
    let files = [
        ("/etc/resolv.conf", &context.resolv_conf),
        ("/etc/hosts", &context.hosts),
    ];
    for (dest, file) in files {
        if let Some(file) = file {
            mounts.push(mount(dest, "bind", file, "nosuid,noexec,nodev,rbind,ro")?);
        }
    }
    let (dest, kind, source, options) = cgroup;
    mounts.push(mount(dest, kind, Path::new(source), options)?);
    for own in &context.mounts {
        // A mount in the place of one that is there takes its turn, too.
        match mounts
            .iter_mut()
            .find(|mount| mount.destination() == own.destination())
        {
            Some(place) => *place = own.clone(),
            None => mounts.push(own.clone()),
        }
    }
    Ok(mounts)
}

fn linux(
    container: &ContainerSpec,
    context: &SpecContext,
    insecure: bool,
) -> Result<Linux, OciSpecError> {
    let paths = |paths: &[&str]| match insecure {
        true => Vec::new(),
        false => paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    let mut linux = LinuxBuilder::default()
        .cgroups_path(context.cgroup(container))
        .resources(resources(&container.resources, insecure)?)
        .namespaces(namespaces(context)?)
        .masked_paths::<Vec<String>>(paths(&MASKED))
        .readonly_paths::<Vec<String>>(paths(&READ_ONLY))
        .build()?;
    if let (Some(others), false) = (context.seccomp, insecure) {
        linux.set_seccomp(seccomp::profile(std::env::consts::ARCH, others)?);
    }
    linux.set_devices(match insecure {
        true => Some(devices::insecure(context.loop_devices)?),
        false => None,
    });
    Ok(linux)
}

fn namespaces(context: &SpecContext) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    if !context.host_network {
        kinds.push(LinuxNamespaceType::Network);
    }
    if context.cgroup_namespace {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    let namespace = |kind| {
        let builder = LinuxNamespaceBuilder::default().typ(kind);
        match &context.network_namespace {
            Some(path) if kind == LinuxNamespaceType::Network => builder.path(path.clone()),
            _ => builder,
        }
        .build()
    };
    kinds.into_iter().map(namespace).collect()
}

fn resources(wanted: &Resources, insecure: bool) -> Result<LinuxResources, OciSpecError> {
    let mut resources = LinuxResourcesBuilder::default()
        .devices(devices::rules(insecure)?)
        .build()?;
    if wanted.memory != 0 || wanted.memory_swap != 0 {
        let mut memory = LinuxMemoryBuilder::default().build()?;
        memory.set_limit((wanted.memory != 0).then_some(wanted.memory));
        memory.set_swap((wanted.memory_swap != 0).then_some(wanted.memory_swap));
        resources.set_memory(Some(memory));
    }
    let mut cpu = LinuxCpuBuilder::default().build()?;
    cpu.set_shares((wanted.cpu_shares != 0).then_some(wanted.cpu_shares));
    cpu.set_period((wanted.cpu_period != 0).then_some(wanted.cpu_period));
    cpu.set_quota((wanted.cpu_quota != 0).then_some(wanted.cpu_quota));
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    cpu.set_cpus(text(&wanted.cpuset_cpus));
    cpu.set_mems(text(&wanted.cpuset_mems));
    if cpu != LinuxCpuBuilder::default().build()? {
        resources.set_cpu(Some(cpu));
    }
    Ok(resources)
}

#[cfg(test)]
#[path = "spec_tests.rs"]
mod tests;
