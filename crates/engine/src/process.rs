//! Processes in a client's containers: one stream of messages carries the input, the output and
//! the signals of any number of them (`ExecProcess` of BuildKit's gateway).

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use cooper_executor::{Exit, Input, Output, Process, Running, TtySize};
use cooper_proto::gateway::exec_message::Input as Message;
use cooper_proto::gateway::{self as api, ExecMessage};
use cooper_proto::{pb, rpc};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::StreamReader;

use crate::EngineError;
use crate::build::Build;
use crate::container::{Container, Containers};

/// The code of a process of which no other is known (BuildKit's `UnknownExitStatus`).
const UNKNOWN: u32 = 255;
pub(crate) const SIGKILL: i32 = 9;
/// Messages that wait for a process or for the client: enough to keep a pipe busy.
const QUEUE: usize = 16;
/// Bytes of one message of output.
const PIECE: usize = 32 << 10;

/// How errors are told in a message.
pub(crate) type Describe = fn(&EngineError) -> rpc::Status;

/// Carries out what the messages of `incoming` say until it ends and all its processes have.
///
/// # Cancel safety
/// Dropping the future kills the processes that it started in containers that run already, and
/// leaves the containers.
pub(crate) async fn serve(
    build: &Build,
    containers: &Containers,
    incoming: impl Stream<Item = ExecMessage> + Send,
    outgoing: mpsc::Sender<ExecMessage>,
    describe: Describe,
) -> Result<(), EngineError> {
    let mut incoming = pin!(incoming);
    let mut known: HashMap<String, Controls> = HashMap::new();
    let mut running = FuturesUnordered::new();
    let mut open = true;
    // What a message waits for must not keep the processes from going on.
    let mut feeding = None;
    loop {
        if !open && feeding.is_none() && running.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(ended) = running.next(), if !running.is_empty() => ended?,
            () = async { if let Some(feed) = feeding.as_mut() { feed.await } }, if feeding.is_some() => {
                feeding = None;
            }
            message = incoming.next(), if open && feeding.is_none() => {
                let Some(message) = message else {
                    open = false;
                    // Nothing more can be said to anybody.
                    known.clear();
                    continue;
                };
                let id = message.process_id;
                if id.is_empty() {
                    return Err(EngineError::InvalidMessage("ProcessID required".to_owned()));
                }
                match (message.input, known.get_mut(&id)) {
                    (Some(Message::Init(init)), None) => {
                        let (controls, process) = begin(build, containers, &id, init)?;
                        known.insert(id, controls);
                        running.push(process.run(outgoing.clone(), describe));
                    }
                    (Some(Message::Init(_)), Some(_)) => {
                        return Err(EngineError::ProcessExists { id });
                    }
                    (Some(_), None) => return Err(EngineError::NoProcess { id }),
                    (Some(Message::File(file)), Some(controls)) => {
                        feeding = controls.feed(file)?;
                    }
                    (Some(Message::Resize(size)), Some(controls)) => {
                        let number = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
                        let size = TtySize {
                            rows: number(size.rows),
                            columns: number(size.cols),
                        };
                        controls.size.send_replace(size);
                    }
                    (Some(Message::Signal(signal)), Some(controls)) => {
                        let number = number_of(&signal.name).ok_or_else(|| {
                            let message = format!("Unknown signal {}", signal.name);
                            EngineError::InvalidMessage(message)
                        })?;
                        // A process that has ended hears nothing.
                        let _ = controls.signals.send(number);
                    }
                    // What only daemons say.
                    (Some(_) | None, Some(_)) | (None, None) => {}
                }
            }
        }
    }
}

/// What can be said to a process.
struct Controls {
    /// Its standard input, while it is open.
    stdin: Option<mpsc::Sender<Bytes>>,
    has_stdin: bool,
    size: watch::Sender<TtySize>,
    signals: mpsc::UnboundedSender<i32>,
}

impl Controls {
    /// Passes input on: the future waits until there is room for it.
    fn feed(
        &mut self,
        file: api::FdMessage,
    ) -> Result<Option<futures::future::BoxFuture<'static, ()>>, EngineError> {
        if file.fd != 0 || !self.has_stdin {
            return Err(EngineError::NoDescriptor { fd: file.fd });
        }
        let sender = match file.eof {
            true => self.stdin.take(),
            false => self.stdin.clone(),
        };
        let data = file.data;
        let (Some(sender), false) = (sender, data.is_empty()) else {
            return Ok(None);
        };
        Ok(Some(Box::pin(async move {
            // A process that reads no more, or has ended, does not matter here.
            let _ = sender.send(data.into()).await;
        })))
    }
}

/// A process that is about to start.
struct Starting<'a> {
    build: &'a Build,
    container: Arc<Container>,
    id: String,
    process: Process,
    secrets: Vec<pb::SecretEnv>,
    /// As it came: a number that is no mode fails the process, not all of them.
    security: i32,
    remove_mount_stubs: bool,
    outputs: Vec<(u32, pipe::Receiver)>,
    /// Descriptors that nothing ever comes from.
    silent: Vec<u32>,
    size: watch::Receiver<TtySize>,
    signals: mpsc::UnboundedReceiver<i32>,
}

fn begin<'a>(
    build: &'a Build,
    containers: &Containers,
    id: &str,
    init: api::InitMessage,
) -> Result<(Controls, Starting<'a>), EngineError> {
    let container = containers.get(&init.container_id);
    let container = container.ok_or_else(|| EngineError::ContainerGone {
        id: init.container_id.clone(),
    })?;
    let invalid = || EngineError::InvalidMessage("process without a description".to_owned());
    let security = init.security;
    let meta = init.meta.ok_or_else(invalid)?;
    let (signals, heard) = mpsc::unbounded_channel();
    let (size, sizes) = watch::channel(TtySize::default());
    let mut process = Process {
        env: environment(meta.env, container.os(), init.tty),
        args: meta.args,
        cwd: match meta.cwd.as_str() {
            "" => "/".to_owned(),
            _ => meta.cwd,
        },
        user: meta.user,
        tty: init.tty.then(TtySize::default),
        ..Process::default()
    };
    let mut stdin = None;
    let (mut outputs, mut silent) = (Vec::new(), Vec::new());
    for fd in init.fds {
        match fd {
            0 if stdin.is_none() => {
                let (sender, data) = mpsc::channel::<Bytes>(QUEUE);
                let data = ReceiverStream::new(data).map(Ok::<_, io::Error>);
                process.stdin = Input::Reader(Box::pin(StreamReader::new(data)));
                stdin = Some(sender);
            }
            1 => outputs.push((fd, output(&mut process.stdout)?)),
            2 => outputs.push((fd, output(&mut process.stderr)?)),
            _ => silent.push(fd),
        }
    }
    let controls = Controls {
        has_stdin: stdin.is_some(),
        stdin,
        size,
        signals,
    };
    let starting = Starting {
        build,
        container,
        id: id.to_owned(),
        process,
        secrets: init.secretenv,
        security,
        remove_mount_stubs: meta.remove_mount_stubs_recursive,
        outputs,
        silent,
        size: sizes,
        signals: heard,
    };
    Ok((controls, starting))
}

/// A pipe: who reads slowly slows the process, and nothing piles up in between.
pub(crate) fn output(end: &mut Output) -> Result<pipe::Receiver, EngineError> {
    let (sender, receiver) = pipe::pipe().map_err(no_pipe)?;
    let sender = sender.into_blocking_fd().map_err(no_pipe)?;
    *end = Output::Fd(Arc::new(sender));
    Ok(receiver)
}

pub(crate) fn no_pipe(error: io::Error) -> EngineError {
    EngineError::Invalid(format!("failed to make a pipe: {error}"))
}

/// What every process has that says nothing else.
fn environment(mut env: Vec<String>, os: &str, tty: bool) -> Vec<String> {
    let mut default = |name: &str, value: &str| {
        let set = |variable: &String| {
            variable
                .split_once('=')
                .map_or(variable.as_str(), |(name, _)| name)
                == name
        };
        if !env.iter().any(set) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", cooper_llb::build::default_path(os));
    if tty {
        default("TERM", "xterm");
    }
    env
}

impl Starting<'_> {
    /// Runs the process to its end, and tells the client all of it.
    async fn run(
        self,
        outgoing: mpsc::Sender<ExecMessage>,
        describe: Describe,
    ) -> Result<(), EngineError> {
        let tell = Tell {
            id: self.id.clone(),
            outgoing,
        };
        let fds: Vec<u32> = self.outputs.iter().map(|(fd, _)| *fd).collect();
        let silent = self.silent.clone();
        let released = self.container.released().clone();
        let exited = self.process(&tell).await;
        for fd in fds.into_iter().chain(silent) {
            let end = api::FdMessage {
                fd,
                eof: true,
                data: Vec::new(),
            };
            tell.say(Message::File(end)).await?;
        }
        let outcome = match exited {
            Ok(exit) if exit.success() => Ok(()),
            Ok(exit) => Err(EngineError::Exit {
                exit,
                cancelled: released.is_cancelled(),
            }),
            Err(EngineError::Cancelled) => return Err(EngineError::Cancelled),
            Err(error) => Err(error),
        };
        let code = match &outcome {
            Ok(()) => 0,
            Err(EngineError::Exit { exit, .. }) => exit.code,
            Err(_) => UNKNOWN,
        };
        let error = outcome.err().map(|error| describe(&error));
        tell.say(Message::Exit(api::ExitMessage { code, error }))
            .await?;
        tell.say(Message::Done(api::DoneMessage {})).await
    }

    async fn process(self, tell: &Tell) -> Result<Exit, EngineError> {
        let Self {
            build,
            container,
            mut process,
            secrets,
            security,
            remove_mount_stubs,
            outputs,
            size,
            signals,
            ..
        } = self;
        let found = cooper_ops::secret_variables(&secrets, &build.sessions).await;
        let started = match (found, pb::SecurityMode::try_from(security)) {
            (Ok(found), Ok(security)) => {
                process.env.extend(found);
                container
                    .start(build, security, remove_mount_stubs, process)
                    .await
            }
            (Ok(_), Err(_)) => {
                let message = format!("invalid security mode {security}");
                Err(EngineError::InvalidMessage(message))
            }
            (Err(error), _) => Err(EngineError::Operation(Box::new(error))),
        };
        // A client waits for this before it asks for an end of any kind.
        tell.say(Message::Started(api::StartedMessage {})).await?;
        let running = started?;
        let ended = watch::Sender::new(false);
        let pumps = outputs
            .into_iter()
            .map(|(fd, from)| pump(fd, from, tell, ended.subscribe()));
        let pumps = futures::future::try_join_all(pumps);
        let wait = async {
            let exit = running.wait().await;
            ended.send_replace(true);
            exit
        };
        let heard = hear(&*running, size, signals);
        let finished = async {
            let (exit, pumped) = tokio::join!(wait, pumps);
            pumped?;
            Ok::<_, EngineError>(exit?)
        };
        let killed = async {
            container.released().cancelled().await;
            // Its own end is still waited for.
            let _ = running.signal(SIGKILL).await;
            std::future::pending().await
        };
        tokio::select! {
            exit = finished => exit,
            never = heard => never,
            never = killed => never,
        }
    }
}

/// Passes on what a client says until the process ends.
async fn hear<T>(
    running: &dyn Running,
    mut size: watch::Receiver<TtySize>,
    mut signals: mpsc::UnboundedReceiver<i32>,
) -> T {
    let sizes = async {
        while size.changed().await.is_ok() {
            let TtySize { rows, columns } = *size.borrow_and_update();
            if let Err(error) = running.resize(rows, columns).await {
                tracing::debug!(%error, "cannot resize a terminal");
            }
        }
    };
    let signals = async {
        while let Some(signal) = signals.recv().await {
            if let Err(error) = running.signal(signal).await {
                tracing::debug!(%error, signal, "cannot signal a process");
            }
        }
    };
    tokio::join!(sizes, signals);
    std::future::pending().await
}

/// Sends what comes out of the pipe, until its end or, once the process has ended, until it is
/// empty: what the process left behind may keep the other end open.
async fn pump(
    fd: u32,
    from: pipe::Receiver,
    tell: &Tell,
    mut ended: watch::Receiver<bool>,
) -> Result<(), EngineError> {
    let mut buffer = vec![0; PIECE];
    loop {
        let read = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if *ended.borrow() {
                    return Ok(());
                }
                tokio::select! {
                    // An error shows in the next attempt.
                    _ = from.readable() => {}
                    _ = ended.wait_for(|ended| *ended) => {}
                }
                continue;
            }
            Err(error) => {
                tracing::debug!(%error, fd, "cannot read the output of a process");
                return Ok(());
            }
        };
        let piece = api::FdMessage {
            fd,
            eof: false,
            data: buffer[..read].to_vec(),
        };
        tell.say(Message::File(piece)).await?;
    }
}

/// Speaks to the client about one process.
struct Tell {
    id: String,
    outgoing: mpsc::Sender<ExecMessage>,
}

impl Tell {
    async fn say(&self, input: Message) -> Result<(), EngineError> {
        let message = ExecMessage {
            process_id: self.id.clone(),
            input: Some(input),
        };
        // A client that left is told nothing.
        let sent = self.outgoing.send(message).await;
        sent.map_err(|_| EngineError::Cancelled)
    }
}

/// Signals of Linux by name, with or without `SIG`.
fn number_of(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        name => name,
    };
    let place = NAMES.iter().position(|known| *known == name)?;
    i32::try_from(place + 1).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        for (name, number) in [
            ("HUP", 1),
            ("SIGKILL", 9),
            ("TERM", 15),
            ("CHLD", 17),
            ("SYS", 31),
        ] {
            assert_eq!(number_of(name), Some(number), "{name}");
        }
        assert_eq!(number_of("NOTHING"), None);
    }

    #[test]
    fn what_a_process_has_is_not_set_again() {
        let env = environment(vec!["PATH=/x".into()], "linux", true);
        assert_eq!(env, ["PATH=/x", "TERM=xterm"]);
        let env = environment(vec!["PATHS=/x".into()], "linux", false);
        assert!(env[1].starts_with("PATH=/usr/local/sbin:"), "{env:?}");
    }
}
