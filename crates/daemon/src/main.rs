//! `cooperd`, the build daemon.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use anyhow::Context as _;
use cooper_daemon::{Config, Daemon, Flags, Listener, listen, logging, notify};
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;

/// Any kind of connection.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
type Connections = SelectAll<BoxStream<'static, io::Result<Box<dyn Connection>>>>;

fn main() -> ExitCode {
    // Before anything else: this may be the built-in runtime's helper.
    cooper_daemon::enter_if_asked();
    let flags = match Flags::read(std::env::args_os()) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    if flags.version {
        println!("{}", cooper_daemon::version());
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cooperd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> anyhow::Result<()> {
    let config = flags.config()?;
    logging::init(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(Box::pin(daemon(&config)))
}

async fn daemon(config: &Config) -> anyhow::Result<()> {
    // Before anything else: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("failed to await signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to await signals")?;
    let daemon = Daemon::assemble(config).await?;
    let owner = (config.grpc.uid, config.grpc.gid);
    let mut connections = Connections::new();
    // Kept: a socket's file goes when the daemon does.
    let mut files = Vec::new();
    for address in &config.grpc.address {
        match listen(address, owner).await? {
            Listener::Unix(listener, file) => {
                files.push(file);
                let stream = UnixListenerStream::new(listener);
                connections.push(stream.map(|io| io.map(boxed)).boxed());
            }
            Listener::Tcp(listener) => {
                let stream = TcpListenerStream::new(listener);
                connections.push(stream.map(|io| io.map(boxed)).boxed());
            }
        }
        tracing::info!("running server on {address}");
    }
    notify::notify("READY=1");
    let stop = CancellationToken::new();
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping server");
        notify::notify("STOPPING=1");
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let served = tokio::select! {
        served = daemon.serve(connections, stop.clone()) => served,
        () = stopped => Ok(()),
    };
    daemon.close().await;
    drop(files);
    served.map_err(Into::into)
}

fn boxed<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: T) -> Box<dyn Connection> {
    Box::new(io)
}
