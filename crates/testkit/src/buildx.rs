//! The client that everybody has: `docker buildx`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::run::run;
use crate::{Context, Daemon, Engine, Ran, peer};

/// The variable with the program to use instead of the machine's.
const PROGRAM: &str = "COOPER_TEST_BUILDX";
/// Debian's release whose package is taken when the machine has no buildx.
const RELEASE: &str = "trixie";

/// buildx with a configuration folder and a builder of its own.
#[derive(Debug)]
pub struct Buildx {
    program: PathBuf,
    config: tempfile::TempDir,
    /// The builder's name, and the engine's address when it is that of an engine.
    builder: (&'static str, Option<String>),
}

impl Buildx {
    /// Makes the builder, a `remote` one on the daemon's socket; an engine has its own.
    #[track_caller]
    pub fn new(daemon: &Daemon) -> Self {
        match daemon.engine() {
            Some(engine) => Self::of_engine(Self::program(), engine),
            None => Self::remote(Self::program(), &daemon.address()),
        }
    }

    /// The same with another program.
    #[track_caller]
    pub fn remote(program: &Path, address: &str) -> Self {
        Self::remote_with(program, address, "")
    }

    /// A `remote` builder on an address, with options of the driver (`cacert=…,cert=…`).
    #[track_caller]
    pub fn with_driver_options(address: &str, options: &str) -> Self {
        Self::remote_with(Self::program(), address, options)
    }

    #[track_caller]
    fn remote_with(program: &Path, address: &str, options: &str) -> Self {
        let buildx = Self::at(program, ("cooper", None));
        let mut create = buildx.command();
        create.args(["create", "--name", "cooper", "--driver", "remote"]);
        if !options.is_empty() {
            create.args(["--driver-opt", options]);
        }
        run(create.arg(address)).success();
        buildx
    }

    /// The builder that is inside `engine`.
    pub fn of_engine(program: &Path, engine: &Engine) -> Self {
        Self::at(program, ("default", Some(engine.address())))
    }

    fn at(program: &Path, builder: (&'static str, Option<String>)) -> Self {
        let config = tempfile::Builder::new()
            .prefix("cooper-buildx-")
            .tempdir()
            .unwrap();
        Self {
            program: program.to_owned(),
            config,
            builder,
        }
    }

    /// The plug-in, which also runs by itself: the machine's, else the one of a Debian package
    /// that is unpacked once beside the build output. `COOPER_TEST_BUILDX` names another one.
    #[track_caller]
    pub fn program() -> &'static Path {
        static CHOSEN: OnceLock<PathBuf> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            if let Some(program) = std::env::var_os(PROGRAM) {
                return program.into();
            }
            let home = std::env::var("HOME").unwrap_or_default();
            let own = format!("{home}/.docker/cli-plugins");
            let folders = [
                own.as_str(),
                "/usr/local/lib/docker/cli-plugins",
                "/usr/local/libexec/docker/cli-plugins",
                "/usr/lib/docker/cli-plugins",
                "/usr/libexec/docker/cli-plugins",
            ];
            let found = folders
                .iter()
                .map(|dir| Path::new(dir).join("docker-buildx"));
            found
                .into_iter()
                .find(|path| path.exists())
                .unwrap_or_else(|| of_release(RELEASE).unwrap_or_else(|error| panic!("{error}")))
        })
    }

    /// The newest buildx that Debian has.
    ///
    /// # Errors
    ///
    /// Why it could not be had.
    pub fn newest() -> Result<PathBuf, String> {
        of_release(peer::NEWEST)
    }

    /// `buildx build --progress=plain ARGS… CONTEXT`, to its end.
    #[track_caller]
    pub fn build(&self, context: &Context, args: &[&str]) -> Ran {
        run(&mut self.build_command(context.path(), args))
    }

    /// The same, not started yet.
    pub fn build_command(&self, context: &Path, args: &[&str]) -> Command {
        let mut command = self.command();
        command.args(["build", "--builder", self.builder.0, "--progress=plain"]);
        if self.builder.1.is_some() {
            // The engines of tests have no bridge for steps.
            command.arg("--network=host");
        }
        command.args(args).arg(context);
        command
    }

    /// The folder that it keeps its configuration in.
    pub fn config(&self) -> &Path {
        self.config.path()
    }

    /// `buildx` with this configuration; add a subcommand.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(host) = &self.builder.1 {
            command.env("DOCKER_HOST", host);
        }
        command
            .env("DOCKER_CONFIG", self.config.path())
            .env("BUILDX_CONFIG", self.config.path().join("buildx"))
            .stdin(Stdio::null());
        command
    }
}

/// The buildx of Debian's `release`.
fn of_release(release: &str) -> Result<PathBuf, String> {
    let name = format!("buildx-{release}");
    let tree = peer::unpacked(&name, Some(release), &["docker-buildx"])?;
    Ok(tree.join("usr/libexec/docker/cli-plugins/docker-buildx"))
}
