//! The helper: a process of one thread that makes containers for the program that started it.
//!
//! It ends when the program does: then there is nobody at the other end of its socket.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use cooper_sys::process::reset_signals;
use cooper_sys::{Clone, Cloned};
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::request::{Reply, Request, check, check_process, namespaces};
use crate::seccomp::Filter;
use crate::status::Reporter;
use crate::{init, join, wire};

/// The first argument of a program that is to be the helper.
pub(crate) const ARGUMENT: &str = "oci-runtime-helper";

/// Whether this program can be its own helper.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Becomes the helper, if this process was started to be it, and does not return then.
///
/// A program that makes containers with itself as the helper calls this first in its `main`,
/// while it has one thread and nothing of its own.
pub fn enter_if_asked() {
    let mut args = std::env::args_os();
    if args.nth(1).is_some_and(|arg| arg == ARGUMENT) && args.next().is_none() {
        std::process::exit(match serve_standard_input() {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("oci-runtime-helper: {error}");
                1
            }
        });
    }
    ASKED.store(true, Ordering::Relaxed);
}

/// Whether [`enter_if_asked`] was called.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

fn serve_standard_input() -> io::Result<()> {
    reset_signals();
    // What this process is made of is not for those in containers: not its memory, and not its
    // program to write to (CVE-2019-5736). Until it runs another program none of them can open
    // its files in /proc.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"oci-runtime")?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    drop(null);
    Helper::default().serve(&socket)
}

/// What the helper keeps between requests.
#[derive(Default)]
struct Helper {
    /// The filter made last, and from what: it hardly ever changes.
    filter: Option<(LinuxSeccomp, Filter)>,
    /// Its own process namespace, opened when it has to come back to it.
    own_pid_namespace: Option<OwnedFd>,
}

impl Helper {
    /// Answers requests until the other end is closed.
    fn serve(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while self.answer(socket)? {}
        Ok(())
    }

    /// Answers one request; false at the end.
    fn answer(&mut self, socket: &OwnedFd) -> io::Result<bool> {
        let Some((bytes, fds)) = wire::receive(socket)? else {
            return Ok(false);
        };
        let result = match serde_json::from_slice(&bytes) {
            Ok(request) => self.handle(request, fds),
            Err(error) => Err(format!("read a request: {error}")),
        };
        match result {
            Ok(cloned) => {
                let reply = Reply::Started { pid: cloned.pid };
                wire::send(socket, &encode(&reply)?, &[cloned.pidfd.as_fd()])?;
            }
            Err(message) => wire::send(socket, &encode(&Reply::Failed { message })?, &[])?,
        }
        Ok(true)
    }

    fn handle(&mut self, request: Request<'_>, fds: Vec<OwnedFd>) -> Result<Cloned, String> {
        let mut fds = fds.into_iter();
        let mut take = || fds.next().ok_or("a descriptor is missing".to_owned());
        match request {
            Request::Create {
                spec,
                groups,
                cgroup,
            } => {
                let status = Reporter::new(take()?);
                let cgroup = cgroup.then(&mut take).transpose()?;
                let stdio = fds.collect();
                self.create(&spec, &groups, cgroup, status, stdio)
            }
            Request::Exec {
                process,
                seccomp,
                namespaces,
                groups,
                cgroup,
            } => {
                let status = Reporter::new(take()?);
                let container = take()?;
                let cgroup = cgroup.then(&mut take).transpose()?;
                let exec = join::Exec {
                    process: &process,
                    filter: self.filter(seccomp.as_deref())?,
                    container: container.as_fd(),
                    namespaces: UnshareFlags::from_bits_retain(namespaces),
                    groups: &groups,
                    status: &status,
                    stdio: fds.collect(),
                };
                self.exec(exec, cgroup)
            }
            Request::Park { groups } => self.park(&groups, take()?),
        }
    }

    fn filter(&mut self, profile: Option<&LinuxSeccomp>) -> Result<Option<Filter>, String> {
        let Some(profile) = profile else {
            return Ok(None);
        };
        if let Some((known, filter)) = &self.filter
            && known == profile
        {
            return Ok(Some(filter.clone()));
        }
        let filter = Filter::compile(profile, std::env::consts::ARCH);
        let filter = filter.map_err(|error| error.to_string())?;
        self.filter = Some((profile.clone(), filter.clone()));
        Ok(Some(filter))
    }

    fn create(
        &mut self,
        spec: &Spec,
        groups: &[PathBuf],
        cgroup: Option<OwnedFd>,
        status: Reporter,
        stdio: Vec<OwnedFd>,
    ) -> Result<Cloned, String> {
        check(spec).map_err(|error| error.to_string())?;
        let linux = spec.linux().as_ref().ok_or("no linux")?;
        let (namespaces, network) = namespaces(linux).map_err(|error| error.to_string())?;
        let container = init::Container {
            spec,
            filter: self.filter(linux.seccomp().as_ref())?,
            groups,
            namespaces,
            network: network.as_deref(),
            status: &status,
            stdio,
        };
        let clone = Clone {
            namespaces: namespaces - UnshareFlags::NEWCGROUP,
            sibling: true,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        };
        let cloned = clone.spawn(|| container.run());
        cloned.map_err(|error| format!("clone a container: {error}"))
    }

    fn exec(&mut self, exec: join::Exec<'_>, cgroup: Option<OwnedFd>) -> Result<Cloned, String> {
        // A process is born in the process namespace that was chosen for children before. It
        // enters the others by itself.
        let own = match &self.own_pid_namespace {
            Some(own) => own,
            None => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let own = rustix::fs::open("/proc/self/ns/pid", flags, Mode::empty());
                let own = own.map_err(|error| format!("open a process namespace: {error}"))?;
                self.own_pid_namespace.insert(own)
            }
        };
        enter_pid_namespace(exec.container)?;
        let clone = Clone {
            namespaces: UnshareFlags::empty(),
            sibling: true,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
        };
        let cloned = clone.spawn(|| exec.run());
        let back = enter_pid_namespace(own.as_fd());
        let cloned = cloned.map_err(|error| format!("clone a process: {error}"))?;
        if let Err(message) = back {
            // What is made next would be born in the container.
            let _ = cloned.pidfd.signal(9);
            eprintln!("oci-runtime-helper: {message}");
            std::process::exit(1);
        }
        Ok(cloned)
    }

    /// A process that is in its groups before it is known what for: for version 1 of control
    /// groups, where a move can wait milliseconds for the kernel.
    fn park(&mut self, groups: &[PathBuf], socket: OwnedFd) -> Result<Cloned, String> {
        let clone = Clone {
            namespaces: UnshareFlags::empty(),
            sibling: true,
            cgroup: None,
        };
        let mut parked = Self {
            filter: self.filter.take(),
            own_pid_namespace: None,
        };
        let cloned = clone.spawn(|| {
            let reply = match enter_groups(groups) {
                Ok(()) => Reply::Parked,
                Err(message) => Reply::Failed { message },
            };
            let sent = encode(&reply).and_then(|reply| wire::send(&socket, &reply, &[]));
            let answered = sent.and_then(|()| parked.answer(&socket));
            u8::from(answered.is_err())
        });
        self.filter = parked.filter.take();
        cloned.map_err(|error| format!("clone a process: {error}"))
    }
}

fn enter_pid_namespace(of: BorrowedFd<'_>) -> Result<(), String> {
    let kind = ThreadNameSpaceType::PROCESS_ID;
    let entered = rustix::thread::move_into_thread_name_spaces(of, kind);
    entered.map_err(|error| format!("enter a process namespace: {error}"))
}

/// Moves this process to the groups.
pub(crate) fn enter_groups(groups: &[PathBuf]) -> Result<(), String> {
    for group in groups {
        let file = group.join("cgroup.procs");
        // Zero is the one who writes (cgroups(7)).
        std::fs::write(&file, "0").map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    Ok(())
}

fn encode(reply: &Reply) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(reply)?)
}

/// Lends what a request carries.
pub(crate) fn lend<T: ToOwned + ?Sized>(value: &T) -> Cow<'_, T> {
    Cow::Borrowed(value)
}

/// The process of a configuration.
pub(crate) fn process(spec: &Spec) -> Result<&Process, String> {
    let process = spec.process().as_ref().ok_or("no process")?;
    check_process(process).map_err(|error| error.to_string())?;
    Ok(process)
}
