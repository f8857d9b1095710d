//! What any process of a container does to itself before it runs the program that was asked
//! for.

use std::convert::Infallible;
use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use cooper_sys::process::{close_on_exec_from, filter_system_calls, join_session_keyring};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process};
use rustix::fs::{Access, FileType, Gid, Mode, Uid, makedev};
use rustix::process::{Resource, Rlimit, Signal};

use crate::mounts::words;
use crate::seccomp::Filter;
use crate::status::Reporter;
use crate::{capabilities, user};

/// Does what needs the host's files, which are still there: the session, standard input and
/// output, and what is said by way of the host's proc.
pub(crate) fn begin(process: &Process, stdio: &[OwnedFd]) -> Result<(), String> {
    rustix::process::setsid().map_err(|error| format!("setsid: {error}"))?;
    if let [input, output, error] = stdio {
        let connect = || {
            nix::unistd::dup2_stdin(input)?;
            nix::unistd::dup2_stdout(output)?;
            nix::unistd::dup2_stderr(error)
        };
        connect().map_err(|error| format!("connect standard input and output: {error}"))?;
    } else if !process.terminal().unwrap_or_default() {
        return Err("standard input and output are missing".to_owned());
    }
    join_session_keyring(c"_ses.cooper")
        .map_err(|error| format!("unable to join session keyring: {error}"))?;
    if let Some(adjustment) = process.oom_score_adj() {
        std::fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .map_err(|error| format!("write oom_score_adj: {error}"))?;
    }
    let profile = process.apparmor_profile().as_deref().unwrap_or_default();
    if !profile.is_empty() {
        apparmor(profile)
            .map_err(|error| format!("unable to apply apparmor profile {profile:?}: {error}"))?;
    }
    Ok(())
}

/// The profile that begins with the next program (apparmor(7)).
fn apparmor(profile: &str) -> io::Result<()> {
    let text = format!("exec {profile}");
    match std::fs::write("/proc/self/attr/apparmor/exec", &text) {
        // Before Linux 5.8 modules shared one folder.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::write("/proc/self/attr/exec", &text)
        }
        result => result,
    }
}

/// Confines this process and runs the program. `outer` is the outer end of its terminal.
pub(crate) fn run(
    process: &Process,
    filter: Option<&Filter>,
    status: &Reporter,
    outer: Option<OwnedFd>,
) -> Result<Infallible, String> {
    let start = |message| format!("unable to start container process: {message}");
    let confined = confine(process, filter).map_err(start)?;
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().ok_or("no args")?;
    let env = user::with_home(
        process.env().as_deref().unwrap_or_default(),
        process.user().uid(),
    );
    let program = look_up(name, &env).map_err(|why| start(format!("exec: {name:?}: {why}")))?;
    let strings = |list: &[String]| {
        let list = list.iter().map(|text| CString::new(text.as_str()));
        list.collect::<Result<Vec<_>, _>>()
            .map_err(|_| start("a NUL byte in the arguments or the environment".to_owned()))
    };
    let (args, env) = (strings(args)?, strings(&env)?);
    let path = CString::new(program.as_os_str().as_encoded_bytes());
    let path = path.map_err(|_| start("a NUL byte in the program's path".to_owned()))?;
    if let Some(outer) = outer {
        let sent = status.terminal(outer);
        sent.map_err(|error| start(format!("send the terminal: {error}")))?;
    }
    // The last that this process does for itself: a kill of the program that wants this
    // container ends it, unless it has gained privileges since, and then the next start does.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| start(format!("set the parent's death signal: {error}")))?;
    close_on_exec_from(3).map_err(|error| start(format!("close descriptors: {error}")))?;
    if let Some(filter) = confined.late {
        load(filter).map_err(start)?;
    }
    let Err(error) = nix::unistd::execve(&path, &args, &env);
    Err(format!(
        "exec {}: {}",
        program.display(),
        words(&error.into())
    ))
}

/// What is left to be done as late as can be.
struct Confined<'a> {
    late: Option<&'a Filter>,
}

fn confine<'a>(process: &Process, filter: Option<&'a Filter>) -> Result<Confined<'a>, String> {
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        set_limit(limit)
            .map_err(|error| format!("error setting rlimit {}: {error}", limit.typ()))?;
    }
    let wanted = process.user();
    own_stdio(Uid::from_raw(wanted.uid()))
        .map_err(|error| format!("unable to own standard input and output: {error}"))?;
    let unprivileged = process.no_new_privileges().unwrap_or_default();
    if unprivileged {
        rustix::thread::set_no_new_privs(true)
            .map_err(|error| format!("set no_new_privs: {error}"))?;
    }
    // Without no_new_privs a filter needs a privilege that is about to be dropped.
    let late = filter.filter(|_| unprivileged);
    if let (Some(filter), None) = (filter, late) {
        load(filter)?;
    }
    // A directory that only root reaches, or one that only the user does (on NFS).
    let cwd = process.cwd();
    let before = rustix::process::chdir(cwd);
    let capabilities = capabilities::Sets::of(process)?;
    capabilities
        .bound()
        .and_then(|()| rustix::thread::set_keep_capabilities(true))
        .map_err(|error| format!("unable to apply bounding set: {error}"))?;
    become_user(process).map_err(|error| format!("unable to setup user: {error}"))?;
    rustix::thread::set_keep_capabilities(false)
        .and_then(|()| capabilities.apply())
        .map_err(|error| format!("unable to apply caps: {error}"))?;
    before
        .or_else(|_| rustix::process::chdir(cwd))
        .map_err(|error| {
            let error = words(&error.into());
            format!("chdir to cwd ({cwd:?}) set in config.json failed: {error}")
        })?;
    inside()?;
    let umask = wanted.umask().unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(umask));
    Ok(Confined { late })
}

/// The working directory must be one of the container's (CVE-2024-21626).
fn inside() -> Result<(), String> {
    let cwd = rustix::process::getcwd(Vec::new());
    match cwd {
        Ok(cwd) if cwd.as_bytes().first() == Some(&b'/') => Ok(()),
        _ => Err("current working directory is outside of container mount namespace root".into()),
    }
}

fn load(filter: &Filter) -> Result<(), String> {
    filter_system_calls(&filter.program, filter.flags)
        .map_err(|error| format!("unable to init seccomp: {error}"))
}

fn become_user(process: &Process) -> Result<(), rustix::io::Errno> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    match rustix::thread::set_thread_groups(&groups) {
        // Where a user namespace has one group only, those of before stay (user_namespaces(7),
        // "/proc/pid/setgroups").
        Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
        result => result?,
    }
    let gid = Gid::from_raw(user.gid());
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    let uid = Uid::from_raw(user.uid());
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Gives standard input and output to the user, who could not open them by their names in
/// `/dev` otherwise.
fn own_stdio(user: Uid) -> io::Result<()> {
    let (input, output, error) = (io::stdin(), io::stdout(), io::stderr());
    for fd in [input.as_fd(), output.as_fd(), error.as_fd()] {
        let stat = rustix::fs::fstat(fd)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        // The null device is everybody's already.
        if stat.st_uid == user.as_raw() || (device && stat.st_rdev == makedev(1, 3)) {
            continue;
        }
        match rustix::fs::fchown(fd, Some(user), None) {
            Ok(())
            | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM | rustix::io::Errno::ROFS) => {
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn set_limit(limit: &PosixRlimit) -> Result<(), rustix::io::Errno> {
    use PosixRlimitType as Type;
    let resource = match limit.typ() {
        Type::RlimitCpu => Resource::Cpu,
        Type::RlimitFsize => Resource::Fsize,
        Type::RlimitData => Resource::Data,
        Type::RlimitStack => Resource::Stack,
        Type::RlimitCore => Resource::Core,
        Type::RlimitRss => Resource::Rss,
        Type::RlimitNproc => Resource::Nproc,
        Type::RlimitNofile => Resource::Nofile,
        Type::RlimitMemlock => Resource::Memlock,
        Type::RlimitAs => Resource::As,
        Type::RlimitLocks => Resource::Locks,
        Type::RlimitSigpending => Resource::Sigpending,
        Type::RlimitMsgqueue => Resource::Msgqueue,
        Type::RlimitNice => Resource::Nice,
        Type::RlimitRtprio => Resource::Rtprio,
        Type::RlimitRttime => Resource::Rttime,
    };
    // All bits are RLIM_INFINITY.
    let finite = |limit: u64| (limit != u64::MAX).then_some(limit);
    let new = Rlimit {
        current: finite(limit.soft()),
        maximum: finite(limit.hard()),
    };
    rustix::process::setrlimit(resource, new)
}

/// Where the program is, as Go's `exec.LookPath` says it, by which runc finds it.
fn look_up(name: &str, env: &[String]) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(name.into()),
            Err((true, error)) => Err(format!("stat {name}: {}", words(&error))),
            Err((false, error)) => Err(words(&error)),
        };
    }
    let path = env
        .iter()
        .find_map(|variable| variable.strip_prefix("PATH="));
    for dir in path.unwrap_or_default().split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let file = Path::new(dir).join(name);
        if !name.is_empty() && executable(&file).is_ok() {
            if !file.is_absolute() {
                return Err("cannot run executable found relative to current directory".into());
            }
            return Ok(file);
        }
    }
    Err("executable file not found in $PATH".to_owned())
}

/// Whether a file can be run; if not, whether that is because it is not there, and why.
fn executable(file: &Path) -> Result<(), (bool, io::Error)> {
    let stat = rustix::fs::stat(file).map_err(|error| (true, error.into()))?;
    let denied = rustix::io::Errno::ACCESS;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || stat.st_mode & 0o111 == 0 {
        return Err((false, denied.into()));
    }
    rustix::fs::access(file, Access::EXEC_OK).map_err(|error| (false, error.into()))
}

/// Reads a file of the container, whoever wrote it, up to a bound.
pub(crate) fn read_bounded(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(file)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
