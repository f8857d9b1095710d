//! Fetches the programs of others that end-to-end cases are run with on request, and says what
//! they are: `peers buildx` for the newest buildx, `peers docker` for Docker's engine. The path is
//! printed on standard output, all else on standard error.
//!
//! It ends with 3 when there is no such program to be had: that is nobody's fault.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, ExitCode};

use cooper_testkit::{Buildx, Engine, peer, run};

fn main() -> ExitCode {
    let kind = std::env::args().nth(1).unwrap_or_default();
    let found = match kind.as_str() {
        "buildx" => Buildx::newest().inspect(|program| eprintln!("buildx: {}", version(program))),
        "docker" => Engine::newest().inspect(|tree| {
            let of = |package| peer::version(tree, package).unwrap_or_default();
            eprintln!(
                "Docker's engine: docker.io {} with containerd {}; buildx: {}",
                of("docker.io"),
                of("containerd"),
                version(Buildx::program())
            );
        }),
        _ => {
            eprintln!("usage: peers buildx|docker");
            return ExitCode::from(2);
        }
    };
    match found {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("not to be had: {error}");
            ExitCode::from(3)
        }
    }
}

fn version(buildx: &Path) -> String {
    let printed = run(Command::new(buildx).arg("version"));
    printed.output.trim().to_owned()
}
