//! The builders that are compared.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cooper_testkit::{Buildx, Daemon, Engine, Store, bin, memory, peer, run};

use crate::works::Work;

/// One builder, with all that it keeps.
pub(crate) enum Builder {
    Cooper {
        daemon: Daemon,
        client: Buildx,
        /// Whether the built-in runtime makes its containers, and not runc.
        built_in: bool,
    },
    Docker {
        tree: PathBuf,
        /// The engine as it is unless told otherwise, and one with containerd's store of images:
        /// only that exports `oci`.
        engines: [(Engine, Buildx); 2],
    },
    Buildah {
        tree: PathBuf,
        dir: PathBuf,
    },
}

/// What is to come out of a build.
#[derive(Clone, Copy)]
pub(crate) enum Output<'a> {
    /// Nothing. buildah keeps an image all the same.
    Nothing,
    /// The same; an export of it comes next.
    Prepared,
    /// An image as a tar in this file.
    Archive(&'a Path),
    /// The files in this folder.
    Folder(&'a Path),
}

/// The packages of buildah, of the machine's own release so that they fit its other libraries.
const BUILDAH: &[&str] = &[
    "buildah",
    "golang-github-containers-common",
    "libassuan0",
    "libdevmapper1.02.1",
    "libgpgme11",
];

impl Builder {
    pub(crate) fn cooper(buildx: &Path, built_in: bool) -> Self {
        let daemon = match built_in {
            true => Daemon::with_config("[worker.oci]\n  binary = \"builtin\"\n"),
            false => Daemon::ordinary(),
        };
        let client = Buildx::remote(buildx, &daemon.address());
        Self::Cooper {
            daemon,
            client,
            built_in,
        }
    }

    pub(crate) fn docker(buildx: &Path) -> Result<Self, String> {
        let tree = Engine::newest()?;
        let engines = [Store::Own, Store::Containerd].map(|store| {
            let engine = Engine::start(&tree, store);
            let client = Buildx::of_engine(buildx, &engine);
            (engine, client)
        });
        Ok(Self::Docker { tree, engines })
    }

    pub(crate) fn buildah(dir: &Path) -> Result<Self, String> {
        let tree = peer::unpacked("buildah", None, BUILDAH)?;
        let dir = dir.join("buildah");
        std::fs::create_dir_all(&dir).map_err(|error| format!("make {dir:?}: {error}"))?;
        let builder = Self::Buildah { tree, dir };
        Ok(builder)
    }

    /// The column's head.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Cooper {
                built_in: false, ..
            } => "Cooper",
            Self::Cooper { built_in: true, .. } => "Cooper, built-in runtime",
            Self::Docker { .. } => "Docker's engine",
            Self::Buildah { .. } => "buildah",
        }
    }

    /// Whether it is Cooper.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Cooper { .. })
    }

    /// Whether it has anything of its own to show in `work`: the runtime matters for steps alone.
    pub(crate) fn does(&self, work: Work) -> bool {
        !matches!(self, Self::Cooper { built_in: true, .. }) || work.has_steps()
    }

    /// The name with the version that was found.
    pub(crate) fn version(&self) -> String {
        let of = |tree: &Path, package| peer::version(tree, package).unwrap_or_default();
        match self {
            Self::Cooper { .. } => {
                let printed = run(Command::new(bin("cooperd")).arg("--version")).success();
                format!("`{}`", printed.output.trim())
            }
            Self::Docker { tree, .. } => format!(
                "docker.io {} with containerd {}",
                of(tree, "docker.io"),
                of(tree, "containerd")
            ),
            Self::Buildah { tree, .. } => format!("buildah {}", of(tree, "buildah")),
        }
    }

    /// The processes that stay, whichever of them does the work.
    pub(crate) fn pids(&self) -> Vec<u32> {
        match self {
            Self::Cooper { daemon, .. } => vec![daemon.pid()],
            Self::Docker { engines, .. } => engines
                .iter()
                .flat_map(|(engine, _)| engine.pids())
                .collect(),
            Self::Buildah { .. } => Vec::new(),
        }
    }

    /// The most memory that the daemon which does `work` had since its peak was forgotten, in
    /// KiB: of an engine and its containerd the sum.
    pub(crate) fn peak(&self, work: Work) -> Option<u64> {
        let pids = match self {
            Self::Docker { engines, .. } => engines[usize::from(work.exports())].0.pids(),
            _ => self.pids(),
        };
        let peaks = pids.iter().filter_map(|pid| memory::kib(*pid, "VmHWM"));
        (!pids.is_empty()).then(|| peaks.sum())
    }

    /// Builds, and says how long that took.
    pub(crate) fn build(&self, context: &Path, nonce: &str, output: Output<'_>) -> Duration {
        let argument = format!("NONCE={nonce}");
        let client = match self {
            Self::Cooper { client, .. } => client,
            Self::Docker { engines, .. } => {
                let exports = !matches!(output, Output::Nothing);
                &engines[usize::from(exports)].1
            }
            Self::Buildah { tree, dir } => {
                return buildah_build(tree, dir, context, &argument, output);
            }
        };
        let output = match output {
            Output::Nothing | Output::Prepared => "type=cacheonly".to_owned(),
            Output::Archive(path) => format!("type=oci,dest={}", path.display()),
            Output::Folder(path) => format!("type=local,dest={}", path.display()),
        };
        let mut words = vec!["--build-arg", &argument, "--output", &output];
        if matches!(self, Self::Docker { .. }) {
            // It has no other here; Cooper's steps have the same by themselves.
            words.push("--network=host");
        }
        let mut command = client.build_command(context, &words);
        // Neither is a part of the work: an attestation, and a look for git.
        command
            .env("BUILDX_NO_DEFAULT_ATTESTATIONS", "1")
            .env("BUILDX_GIT_INFO", "false");
        run(&mut command).success().took
    }
}

fn buildah_build(
    tree: &Path,
    dir: &Path,
    context: &Path,
    argument: &str,
    output: Output<'_>,
) -> Duration {
    let command = || buildah(tree, dir);
    let policy = tree.join("etc/containers/policy.json");
    let mut build = command();
    build
        // As many stages side by side as there are, as BuildKit does.
        .args(["build", "--layers", "--jobs=0", "--network=host"])
        .args(["--runtime=runc", "--tag=bench", "--build-arg", argument])
        .arg("--signature-policy")
        .arg(&policy);
    if let Output::Folder(path) = output {
        build.arg(format!("--output=type=local,dest={}", path.display()));
    }
    let mut took = run(build.arg(context)).success().took;
    if let Output::Archive(path) = output {
        let mut push = command();
        push.args(["push", "--signature-policy"])
            .arg(&policy)
            .args(["bench", &format!("oci-archive:{}", path.display())]);
        took += run(&mut push).success().took;
    }
    took
}

fn buildah(tree: &Path, dir: &Path) -> Command {
    let mut command = Command::new(tree.join("usr/bin/buildah"));
    let libraries = ["usr/lib", "lib"].map(|folder| {
        let folder = tree
            .join(folder)
            .join(format!("{}-linux-gnu", std::env::consts::ARCH));
        folder.display().to_string()
    });
    let empty = dir.join("empty.conf");
    let _ = std::fs::write(&empty, "");
    command
        .arg("--root")
        .arg(dir.join("graph"))
        .arg("--runroot")
        .arg(dir.join("run"))
        .arg("--storage-driver=overlay")
        .env("LD_LIBRARY_PATH", libraries.join(":"))
        .env("CONTAINERS_CONF", &empty)
        .env("CONTAINERS_STORAGE_CONF", &empty)
        .env("CONTAINERS_REGISTRIES_CONF", &empty);
    command
}
