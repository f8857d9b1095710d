//! `cooperd`, the build daemon.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use cooper_daemon::listen::{self, Connections};
use cooper_daemon::{Config, Daemon, Flags, debug, logging, notify};
use cooper_sys::activation::{self, Passed};
use cooper_sys::userns;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

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
    // Before anything is opened: their numbers are taken.
    let passed = activation::passed().context("failed to take sockets of the service manager")?;
    // Before there are threads, and before anything is looked for in the user's folders.
    let missing = match userns::is_needed() {
        true => userns::enter().context("failed to become root of a user namespace")?,
        false => None,
    };
    let config = flags.config()?;
    logging::init(&config)?;
    if let Some(missing) = missing {
        tracing::warn!("{missing}");
    }
    let worker = &config.worker.oci;
    if worker.rootless && !userns::inside() {
        tracing::warn!("rootless mode is for ordinary users: root builds as root");
    }
    if worker.no_process_sandbox {
        // BuildKit's words.
        ensure!(
            worker.rootless || userns::inside(),
            "can't enable NoProcessSandbox without Rootless"
        );
        tracing::warn!("steps share the daemon's process namespace and can signal it");
    }
    if let Err(error) = cooper_sys::raise_open_files() {
        tracing::warn!(%error, "could not raise the number of files that may be open");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    runtime.block_on(Box::pin(daemon(&config, passed)))
}

async fn daemon(config: &Config, passed: Vec<Passed>) -> anyhow::Result<()> {
    // Before anything else: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate()).context("failed to await signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to await signals")?;
    let daemon = Daemon::assemble(config).await?;
    // Ends with this function.
    let _debug = match config.grpc.debug_address.as_str() {
        "" => None,
        address => {
            let listener = listen::listen_debug(address).await?;
            tracing::info!("debug handlers listening at {listener}");
            let serving = debug::serve(listener, daemon.cache_debug());
            Some(AbortOnDropHandle::new(tokio::spawn(serving)))
        }
    };
    let listeners = listen::listen(&config.grpc, passed).await?;
    for listener in &listeners {
        tracing::info!("running server on {listener}");
    }
    let connections = Connections::of(listeners);
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
    served.map_err(Into::into)
}
