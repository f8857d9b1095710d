//! `cooper`: builds container images, with a daemon or in its own process.
#![forbid(unsafe_code)]

mod args;
mod build;
mod connect;
mod context;
mod disk;
mod graph;
mod history;
mod local;
mod policy;
mod progress;
mod report;
mod request;
mod spec;
mod trace;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use cooper_sys::userns;

use crate::args::BuildArgs;
use crate::build::Failure;
use crate::disk::{DuArgs, PruneArgs};
use crate::history::{HistoryCommand, PruneHistoriesArgs};

/// The exit code of a build that was interrupted: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Builds container images.
#[derive(Debug, Parser)]
#[command(name = "cooper", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Builds an image from a Dockerfile, with another frontend, or from a build graph.
    // As with other clients' options: the last one counts.
    #[command(args_override_self = true)]
    Build(Box<BuildArgs>),
    /// Shows what the build cache takes.
    #[command(args_override_self = true)]
    Du(Box<DuArgs>),
    /// Removes from the build cache what nobody uses.
    #[command(args_override_self = true)]
    Prune(Box<PruneArgs>),
    /// Shows builds that run and builds that have ended.
    #[command(subcommand)]
    History(HistoryCommand),
    /// Removes the records of builds that are not pinned.
    #[command(args_override_self = true)]
    PruneHistories(Box<PruneHistoriesArgs>),
    /// Shows the version.
    Version,
}

fn main() -> ExitCode {
    // Before anything else: this may be the built-in runtime's helper.
    cooper_daemon::enter_if_asked();
    let cli = Cli::parse();
    // Before there are threads.
    let local = match &cli.command {
        Command::Build(args) => args.daemon.addr.is_none(),
        Command::Du(args) => args.place.is_local(),
        Command::Prune(args) => args.place.is_local(),
        Command::History(command) => command.is_local(),
        Command::PruneHistories(args) => args.place.is_local(),
        Command::Version => false,
    };
    if local && let Err(error) = become_root() {
        eprintln!("ERROR: failed to start: {error:#}");
        return ExitCode::FAILURE;
    }
    let traced = match &cli.command {
        Command::Build(args) => args.trace.as_deref(),
        _ => None,
    };
    // Its end writes the rest of the file.
    let _trace = match trace::begin(traced) {
        Ok(trace) => trace,
        Err(error) => {
            eprintln!("ERROR: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = match cli.command {
        Command::Version => {
            println!("cooper {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Command::Build(args) => run(build::run(*args)),
        Command::Du(args) => run(disk::du(*args)),
        Command::Prune(args) => run(disk::prune(*args)),
        Command::History(command) => run(history::run(command)),
        Command::PruneHistories(args) => run(history::prune(*args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for source in &failure.sources {
                eprint!("{source}");
            }
            eprintln!("ERROR: {:#}", failure.error);
            if failure.interrupted {
                ExitCode::from(INTERRUPTED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// An ordinary user builds as root of a user namespace.
fn become_root() -> anyhow::Result<()> {
    if !userns::is_needed() {
        return Ok(());
    }
    let missing = userns::enter();
    let missing = missing.context(
        "failed to become root of a user namespace; a daemon that runs \
         already can be used with --addr",
    )?;
    if let Some(missing) = missing {
        eprintln!("WARNING: {missing}");
    }
    Ok(())
}

fn run(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let result = runtime.block_on(Box::pin(work));
    // A blocking read of a terminal's input must not hold the process.
    runtime.shutdown_background();
    result
}
