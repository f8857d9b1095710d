//! The program's side: starting the helper and asking it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use cooper_sys::PidFd;
use cooper_sys::process::inherit_nothing;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::helper::{ARGUMENT, asked, lend};
use crate::request::{Reply, Request, check, check_process, namespaces};
use crate::sealed::sealed;
use crate::status::{self, Status};
use crate::{Group, RuntimeError, wire};

/// How long the helper may take for an answer before it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes containers by way of a helper, which is started when it is first needed and again
/// after it has died. All calls block.
///
/// The processes of containers are children of this process. When the value is dropped those
/// that still run are killed.
#[derive(Debug)]
pub struct Runtime {
    program: PathBuf,
    helper: Mutex<Option<Helper>>,
    /// Starts helpers. A thread of its own, because the kernel takes the end of the thread that
    /// has started a process for the end of its parent.
    starter: Mutex<mpsc::Sender<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Debug)]
struct Helper {
    socket: OwnedFd,
    child: Child,
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A control group that a container can be put in without waiting.
#[derive(Debug)]
pub struct Prepared {
    /// The group.
    pub group: Group,
    parked: Option<Parked>,
}

/// A process that waits in a control group of version 1.
#[derive(Debug)]
struct Parked {
    socket: Option<OwnedFd>,
    process: PidFd,
    ready: bool,
}

impl Drop for Parked {
    fn drop(&mut self) {
        // It ends by itself when it has answered or nobody can ask it any more.
        self.socket.take();
        let _ = self.process.signal(9);
        let _ = self.process.reap();
    }
}

/// A process that was started. Dropping this leaves it running.
#[derive(Debug)]
pub struct Started {
    /// Its number.
    pub pid: u32,
    /// The process, a child of this one; whoever holds this must take its status
    /// ([`PidFd::reap`]).
    pub process: PidFd,
    status: OwnedFd,
    /// What it was made from has ended or is about to.
    parked: Option<Parked>,
}

impl Started {
    /// What happens while it starts, and the process.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn status(self) -> io::Result<(PidFd, Status)> {
        let Self {
            process,
            status,
            parked,
            ..
        } = self;
        drop(parked);
        Ok((process, Status::new(status)?))
    }
}

impl Runtime {
    /// A runtime whose helper is this program itself.
    ///
    /// # Errors
    /// [`RuntimeError::NoHelper`] if its main does not begin with [`crate::enter_if_asked`];
    /// [`RuntimeError::Kernel`] if the kernel or the user's privileges do not suffice.
    pub fn of_this_program() -> Result<Self, RuntimeError> {
        if !asked() {
            return Err(RuntimeError::NoHelper);
        }
        Self::with_helper("/proc/self/exe")
    }

    /// A runtime whose helper is the program at `path`, which begins with
    /// [`crate::enter_if_asked`].
    pub fn with_helper(path: impl Into<PathBuf>) -> Result<Self, RuntimeError> {
        let program = path.into();
        // What no kernel before 5.12 has, and nobody without privileges may.
        sealed(&program).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RuntimeError::Start { source },
            _ => RuntimeError::Kernel {
                call: "mount_setattr(2) for this user",
                source,
            },
        })?;
        let (starter, commands) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name("oci-runtime".to_owned());
        thread
            .spawn(move || commands.into_iter().for_each(|command| command()))
            .map_err(|source| RuntimeError::Start { source })?;
        Ok(Self {
            program,
            helper: Mutex::new(None),
            starter: Mutex::new(starter),
        })
    }

    /// Makes the group of a container, and with version 1 a process that waits in it.
    pub fn prepare(&self, group: Group) -> Result<Prepared, RuntimeError> {
        if group.unified() {
            return Ok(Prepared {
                group,
                parked: None,
            });
        }
        let (own, other) = pair()?;
        let request = Request::Park {
            groups: lend(group.directories()),
        };
        let (_, process) = self.ask(&request, &[other.as_fd()])?;
        let parked = Some(Parked {
            socket: Some(own),
            process,
            ready: false,
        });
        Ok(Prepared { group, parked })
    }

    /// Makes a container and starts its first process.
    ///
    /// Without a terminal `stdio` is its standard input, output and error.
    ///
    /// # Errors
    /// What is refused ([`RuntimeError::Unsupported`]) and failures of the helper. What is
    /// wrong with the container itself comes as an [`crate::Event`].
    pub fn create(
        &self,
        spec: &Spec,
        stdio: Option<[BorrowedFd<'_>; 3]>,
        prepared: Prepared,
    ) -> Result<Started, RuntimeError> {
        check(spec)?;
        let Prepared { group, parked } = prepared;
        let (own, other) = status::pair().map_err(lost)?;
        let cgroup = born_in(&group)?;
        let request = Request::Create {
            spec: lend(spec),
            groups: lend(group.directories()),
            cgroup: cgroup.is_some(),
        };
        let mut fds = vec![other.as_fd()];
        fds.extend(cgroup.as_ref().map(AsFd::as_fd));
        fds.extend(stdio.into_iter().flatten());
        let mut parked = parked;
        let (pid, process) = match &mut parked {
            Some(parked) => parked.ask(&request, &fds)?,
            None => self.ask(&request, &fds)?,
        };
        Ok(Started {
            pid,
            process,
            status: own,
            parked,
        })
    }

    /// Starts another process in the container that was made of `spec` and whose first process
    /// is `container`.
    pub fn exec(
        &self,
        spec: &Spec,
        process: &Process,
        container: &PidFd,
        stdio: Option<[BorrowedFd<'_>; 3]>,
        group: &Group,
    ) -> Result<Started, RuntimeError> {
        check_process(process)?;
        let linux = spec.linux().as_ref();
        let linux = linux.ok_or(RuntimeError::Missing { what: "linux" })?;
        let (flags, network) = namespaces(linux)?;
        let flags = match network {
            Some(_) => flags | rustix::thread::UnshareFlags::NEWNET,
            None => flags,
        };
        let (own, other) = status::pair().map_err(lost)?;
        let cgroup = born_in(group)?;
        let moves = if cgroup.is_some() {
            &[]
        } else {
            group.directories()
        };
        let request = Request::Exec {
            process: lend(process),
            seccomp: linux.seccomp().as_ref().map(lend),
            namespaces: flags.bits(),
            groups: lend(moves),
            cgroup: cgroup.is_some(),
        };
        let mut fds = vec![other.as_fd(), container.as_fd()];
        fds.extend(cgroup.as_ref().map(AsFd::as_fd));
        fds.extend(stdio.into_iter().flatten());
        let (pid, process) = self.ask(&request, &fds)?;
        Ok(Started {
            pid,
            process,
            status: own,
            parked: None,
        })
    }

    /// Asks the helper; if it has died meanwhile, a new one.
    fn ask(
        &self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(u32, PidFd), RuntimeError> {
        let mut helper = self.lock();
        let fresh = helper.is_none();
        let result = ask(&self.socket(&mut helper)?, request, fds);
        let Err(RuntimeError::Lost { source }) = result else {
            return result;
        };
        helper.take();
        // A helper that was dead before has not seen the request.
        if fresh || source.kind() != io::ErrorKind::BrokenPipe {
            return Err(RuntimeError::Lost { source });
        }
        ask(&self.socket(&mut helper)?, request, fds)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Helper>> {
        self.helper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket<'a>(&self, helper: &'a mut Option<Helper>) -> Result<BorrowedFd<'a>, RuntimeError> {
        let helper = match helper {
            Some(helper) => helper,
            None => helper.insert(self.start()?),
        };
        Ok(helper.socket.as_fd())
    }

    fn start(&self) -> Result<Helper, RuntimeError> {
        let program = self.program.clone();
        let (sender, receiver) = mpsc::channel();
        let command: Job = Box::new(move || {
            let _ = sender.send(start(&program));
        });
        let starter = self.starter.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = || io::Error::other("the thread that starts it has ended");
        let sent = starter.send(command);
        let started = sent.map_err(|_| gone()).and_then(|()| {
            let received = receiver.recv();
            received.unwrap_or_else(|_| Err(gone()))
        });
        started.map_err(|source| RuntimeError::Start { source })
    }
}

impl Parked {
    fn ask(
        &mut self,
        request: &Request<'_>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(u32, PidFd), RuntimeError> {
        let socket = self.socket.take();
        let socket = socket.ok_or_else(|| lost(io::ErrorKind::NotConnected.into()))?;
        if !self.ready {
            match answer(&socket)? {
                (Reply::Parked, _) => self.ready = true,
                (Reply::Failed { message }, _) => return Err(RuntimeError::Helper { message }),
                (Reply::Started { .. }, _) => return Err(lost(io::ErrorKind::InvalidData.into())),
            }
        }
        ask(&socket, request, fds)
    }
}

/// The directory for a process to be born in.
fn born_in(group: &Group) -> Result<Option<OwnedFd>, RuntimeError> {
    if !group.unified() {
        return Ok(None);
    }
    let Some(directory) = group.directories().first() else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::open(directory, flags, Mode::empty());
    let open = open.map_err(|error| RuntimeError::group("open", directory)(error.into()))?;
    Ok(Some(open))
}

fn pair() -> Result<(OwnedFd, OwnedFd), RuntimeError> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    let pair = || {
        let (own, other) = rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?;
        set_socket_timeout(&own, Timeout::Recv, Some(PATIENCE))?;
        Ok((own, other))
    };
    pair().map_err(|error: rustix::io::Errno| lost(error.into()))
}

fn lost(source: io::Error) -> RuntimeError {
    RuntimeError::Lost { source }
}

fn ask(
    socket: &impl AsFd,
    request: &Request<'_>,
    fds: &[BorrowedFd<'_>],
) -> Result<(u32, PidFd), RuntimeError> {
    let request = serde_json::to_vec(request).map_err(|error| lost(error.into()))?;
    wire::send(socket, &request, fds).map_err(lost)?;
    match answer(socket)? {
        (Reply::Started { pid }, Some(process)) => Ok((pid, PidFd::from(process))),
        (Reply::Failed { message }, _) => Err(RuntimeError::Helper { message }),
        _ => Err(lost(io::ErrorKind::InvalidData.into())),
    }
}

fn answer(socket: &impl AsFd) -> Result<(Reply, Option<OwnedFd>), RuntimeError> {
    let received = wire::receive(socket).map_err(lost)?;
    let (bytes, mut fds) = received.ok_or_else(|| lost(io::ErrorKind::UnexpectedEof.into()))?;
    let reply = serde_json::from_slice(&bytes).map_err(|error| lost(error.into()))?;
    Ok((reply, fds.pop()))
}

fn start(program: &Path) -> io::Result<Helper> {
    let (own, other) = pair().map_err(io::Error::other)?;
    let sealed = sealed(program)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
    command
        .arg0("oci-runtime")
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::from(other))
        .stdout(Stdio::null())
        // Signals of a terminal that we are started from are for us.
        .process_group(0);
    inherit_nothing(&mut command);
    Ok(Helper {
        child: command.spawn()?,
        socket: own,
    })
}
