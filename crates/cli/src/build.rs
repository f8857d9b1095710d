//! `cooper build`.

use std::io::IsTerminal;

use anyhow::Result;
use cooper_client::{Client, ClientError, Solve, Source};
use cooper_proto::control::SolveResponse;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::args::BuildArgs;
use crate::progress::{self, Mode};
use crate::{context, local, report, request};

/// Why a build did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    /// The lines that are at fault.
    pub(crate) sources: Vec<Source>,
    pub(crate) interrupted: bool,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self {
            error: error.context("failed to build"),
            sources: Vec::new(),
            interrupted: false,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self {
            sources: error.sources(),
            interrupted: error.is_cancelled(),
            ..anyhow::Error::from(error).into()
        }
    }
}

/// Builds.
pub(crate) async fn run(args: BuildArgs) -> Result<(), Failure> {
    let mode = match args.quiet {
        true => Mode::Quiet,
        false => args.progress.fit(std::io::stderr().is_terminal())?,
    };
    let context = match &args.context {
        Some(context) => Some(context::find(context, args.file.as_deref())?),
        None => None,
    };
    let solve = request::solve(&args, context.as_ref())?;
    let reference = solve.request.r#ref.clone();
    let interrupted = solve.cancelled.clone();
    let signals = interrupt(interrupted.clone());
    let building = async {
        let response = match &args.daemon.addr {
            Some(address) => {
                let tls = args.daemon.tls()?;
                let client = Client::connect_with(address, &tls).await?;
                build(&client, solve, mode).await?
            }
            None => {
                let work = async |client| build(&client, solve, mode).await;
                local::with(args.root.as_deref(), work).await??
            }
        };
        Ok(response)
    };
    let result: Result<SolveResponse, Failure> = tokio::select! {
        result = Box::pin(building) => result,
        error = signals => Err(error),
    };
    if let Some(path) = &args.ref_file {
        // A build that failed has a name, too.
        report::put(path, &reference)?;
    }
    let response = result.map_err(|failure| Failure {
        interrupted: failure.interrupted || interrupted.is_cancelled(),
        ..failure
    })?;
    report::write(
        &response,
        args.metadata_file.as_deref(),
        args.iidfile.as_deref(),
    )?;
    if args.quiet
        && let Some(id) = report::image_id(&response)
    {
        println!("{id}");
    }
    Ok(())
}

/// The first signal gives the build up, the second one the waiting for its end.
async fn interrupt(cancelled: CancellationToken) -> Failure {
    use tokio::signal::unix::{SignalKind, signal};
    let handlers = signal(SignalKind::interrupt())
        .and_then(|interrupt| Ok((interrupt, signal(SignalKind::terminate())?)));
    let (mut interrupt, mut terminate) = match handlers {
        Ok(handlers) => handlers,
        Err(error) => return anyhow::Error::from(error).into(),
    };
    for _ in 0..2 {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if cancelled.is_cancelled() {
            break;
        }
        cancelled.cancel();
    }
    ClientError::Cancelled.into()
}

async fn build(client: &Client, solve: Solve, mode: Mode) -> Result<SolveResponse, ClientError> {
    let (updates, shown) = mpsc::unbounded_channel();
    let solving = async move {
        // The display ends when the sender is dropped, after the last update.
        let mut show = |update| drop(updates.send(update));
        client.solve(solve, &mut show).await
    };
    let (result, ()) = tokio::join!(Box::pin(solving), progress::show(mode, shown));
    result
}
