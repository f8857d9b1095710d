//! The ways in which users build.

use std::path::Path;
use std::process::Command;

use crate::run::{TEMPORARY, cooper, run};
use crate::{Buildx, Context, Daemon, Ran, Started, leak};

/// One way to build.
#[derive(Debug)]
pub enum Client {
    /// `docker buildx build` with a daemon.
    Buildx(Buildx),
    /// `cooper build --addr` with a daemon.
    Cooper {
        /// The daemon's address.
        address: String,
        /// The configuration folder.
        home: tempfile::TempDir,
    },
    /// `cooper build` with no daemon.
    Alone {
        /// The configuration folder, and the root of the builds.
        home: tempfile::TempDir,
    },
}

impl Client {
    /// `docker buildx` on `daemon`.
    #[track_caller]
    pub fn buildx(daemon: &Daemon) -> Self {
        Self::Buildx(Buildx::new(daemon))
    }

    /// The command line of the house on `daemon`.
    pub fn cooper(daemon: &Daemon) -> Self {
        Self::Cooper {
            address: daemon.address(),
            home: home(),
        }
    }

    /// The command line of the house with no daemon, with a root of its own.
    pub fn alone() -> Self {
        Self::Alone { home: home() }
    }

    /// Both clients of `daemon`. An engine is reached by buildx alone: twice.
    #[track_caller]
    pub fn of(daemon: &Daemon) -> [Self; 2] {
        let second = match daemon.engine() {
            Some(_) => Self::buildx(daemon),
            None => Self::cooper(daemon),
        };
        [Self::buildx(daemon), second]
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Buildx(_) => "buildx",
            Self::Cooper { .. } => "cooper --addr",
            Self::Alone { .. } => "cooper",
        }
    }

    /// `build --progress=plain ARGS… CONTEXT`, not started yet.
    pub fn command(&self, context: &Path, args: &[&str]) -> Command {
        let (mut command, home) = match self {
            Self::Buildx(buildx) => return buildx.build_command(context, args),
            Self::Cooper { home, .. } | Self::Alone { home } => (cooper(home.path()), home),
        };
        command.args(["build", "--progress=plain"]);
        match self {
            Self::Cooper { address, .. } => command.args(["--addr", address]),
            _ => command.arg("--root").arg(home.path().join("root")),
        };
        command.args(args).arg(context);
        command
    }

    /// Builds to the end. Fails the test when the command line of the house leaves temporary
    /// files behind, or something unfinished in a root of its own.
    #[track_caller]
    pub fn build(&self, context: &Context, args: &[&str]) -> Ran {
        let ran = run(&mut self.command(context.path(), args));
        let mut left = Vec::new();
        if let Self::Cooper { home, .. } | Self::Alone { home } = self {
            left.extend(leak::temporary(&home.path().join(TEMPORARY)));
            left.extend(leak::in_root(&home.path().join("root")));
        }
        assert!(
            left.is_empty(),
            "`{}` left behind:\n  {}\n{}",
            ran.command,
            left.join("\n  "),
            ran.output
        );
        ran
    }

    /// Begins to build.
    #[track_caller]
    pub fn start(&self, context: &Context, args: &[&str]) -> Started {
        Started::new(&mut self.command(context.path(), args))
    }
}

fn home() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("cooper-home-")
        .tempdir()
        .unwrap()
}
