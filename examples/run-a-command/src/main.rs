//! Runs a command in a container whose root file system is a folder.
use std::{error::Error, process::ExitCode};

use cooper_executor::{ContainerSpec, Executor, Process};
use cooper_executor_runc::{RuncConfig, RuncExecutor};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // Before there are threads: the built-in runtime runs this program again, as its helper.
    cooper_executor_runc::enter_if_asked();
    tokio::runtime::Runtime::new()?.block_on(run())
}

async fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: run-a-command FOLDER COMMAND [ARGUMENT…]";
    let folder = args.next().ok_or(usage)?;
    let state = tempfile::tempdir()?;
    let executor = RuncExecutor::new(RuncConfig::new(state.path()))?;
    let mut process = Process::new(args).with_own_streams()?;
    process.env = vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()];
    let running = executor
        .start(ContainerSpec::in_folder(folder), process)
        .await?;
    let exit = running.wait().await?;
    executor.close().await;
    eprintln!("run-a-command: {exit}");
    Ok(ExitCode::from(u8::try_from(exit.code)?))
}
