//! The client that everybody has: `docker buildx`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::run::run;
use crate::{Context, Daemon, Ran};

/// Debian's release whose package is taken when the machine has no buildx.
const RELEASE: &str = "trixie";

/// buildx with a configuration folder and a builder of its own.
#[derive(Debug)]
pub struct Buildx {
    config: tempfile::TempDir,
}

impl Buildx {
    /// Makes the builder, a `remote` one on the daemon's socket.
    #[track_caller]
    pub fn new(daemon: &Daemon) -> Self {
        let config = tempfile::Builder::new()
            .prefix("cooper-buildx-")
            .tempdir()
            .unwrap();
        let buildx = Self { config };
        let address = daemon.address();
        run(buildx
            .command()
            .args(["create", "--name", "cooper", "--driver", "remote", &address]))
        .success();
        buildx
    }

    /// `buildx build --progress=plain ARGS… CONTEXT`, to its end.
    #[track_caller]
    pub fn build(&self, context: &Context, args: &[&str]) -> Ran {
        run(&mut self.build_command(context.path(), args))
    }

    /// The same, not started yet.
    pub fn build_command(&self, context: &Path, args: &[&str]) -> Command {
        let mut command = self.command();
        command
            .args(["build", "--builder", "cooper", "--progress=plain"])
            .args(args)
            .arg(context);
        command
    }

    /// The folder that it keeps its configuration in.
    pub fn config(&self) -> &Path {
        self.config.path()
    }

    /// `buildx` with this configuration; add a subcommand.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command
            .env("DOCKER_CONFIG", self.config.path())
            .env("BUILDX_CONFIG", self.config.path().join("buildx"))
            .stdin(Stdio::null());
        command
    }
}

/// The plug-in, which also runs by itself: the machine's, else the one of a Debian package
/// that is unpacked once beside the build output.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
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
            .unwrap_or_else(unpack)
    })
}

fn unpack() -> PathBuf {
    let cache = crate::run::bin("testkit").join("buildx");
    let program = cache.join("docker-buildx");
    if program.exists() {
        return program;
    }
    let state = cache.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        std::fs::create_dir_all(state.join(folder)).unwrap();
    }
    // The mirror that this machine itself uses, with another release.
    let targets = run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(ORIGIN) $(COMPONENT) $(SITE) $(SIGNED_BY)",
        "Created-By: Packages",
    ]))
    .success();
    let site = targets
        .output
        .lines()
        .filter_map(|line| line.strip_prefix("Debian main "))
        .filter_map(|rest| rest.split(' ').next())
        .find(|site| !site.ends_with("-security"))
        .expect("apt knows a Debian mirror (`apt-get update` first)");
    let list = state.join("sources.list");
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    std::fs::write(
        &list,
        format!("deb [signed-by={key}] {site} {RELEASE} main\n"),
    )
    .unwrap();
    let apt = || {
        let mut command = Command::new("apt-get");
        command.current_dir(&state).arg("--quiet=2");
        let set = |name: &str, value: &Path| format!("{name}={}", value.display());
        for option in [
            set("Dir::Etc::sourcelist", &list),
            set("Dir::Etc::sourceparts", Path::new("-")),
            set("Dir::State::lists", &state.join("lists")),
            set("Dir::Cache", &state.join("cache")),
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    };
    run(apt().arg("update")).success();
    run(apt().args(["download", "docker-buildx"])).success();
    let package = std::fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .expect("apt-get downloaded a package");
    let tree = cache.join("tree");
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&tree)).success();
    std::fs::rename(
        tree.join("usr/libexec/docker/cli-plugins/docker-buildx"),
        &program,
    )
    .unwrap();
    program
}
