//! The options of `cooper build`: those of `docker buildx build` and of `buildctl build`.

use std::path::PathBuf;

use clap::Args;

use crate::connect::DaemonArgs;
use crate::progress::Mode;

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The directory to build, the URL of a repository or an archive, or `-` for an archive or
    /// a Dockerfile on standard input. Without it --frontend says what is built, or a build
    /// graph on standard input does.
    #[arg(value_name = "DIR|URL|-")]
    pub(crate) context: Option<String>,
    /// The Dockerfile; `-` for standard input. Default: DIR/Dockerfile.
    #[arg(short, long, value_name = "FILE", requires = "context")]
    pub(crate) file: Option<String>,
    /// What reads the build's definition. Default with DIR: dockerfile.v0.
    #[arg(long, value_name = "NAME")]
    pub(crate) frontend: Option<String>,
    /// Offers a directory to the build by a name, NAME=DIR.
    #[arg(long = "local", value_name = "NAME=DIR")]
    pub(crate) locals: Vec<String>,
    /// An option of the frontend, NAME=VALUE.
    #[arg(long = "opt", alias = "frontend-opt", value_name = "NAME=VALUE")]
    pub(crate) opts: Vec<String>,
    /// The image's name, NAME[:TAG].
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,
    /// Where the result goes: type=local|tar|oci|docker|image,dest=PATH,...; a directory; or
    /// `-` for a tar archive on standard output.
    #[arg(short, long = "output", value_name = "SPEC")]
    pub(crate) outputs: Vec<String>,
    /// The stage to build.
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Sets a build argument, NAME=VALUE; NAME alone takes the value from the environment.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// Offers a directory or an image to the Dockerfile by a name, NAME=PATH|docker-image://...
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    pub(crate) build_contexts: Vec<String>,
    /// Sets a label of the image, NAME=VALUE.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t, env = "BUILDKIT_PROGRESS")]
    pub(crate) progress: Mode,
    /// Shows nothing but the image's digest at the end.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
    /// Where a build in this process keeps its cache.
    #[arg(long, value_name = "DIR", env = "COOPER_ROOT", conflicts_with = "addr")]
    pub(crate) root: Option<PathBuf>,
    /// Writes how long each part of each step took, for a build in this process, as a Chrome
    /// trace: open it in Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE", conflicts_with = "addr")]
    pub(crate) trace: Option<PathBuf>,
    /// Says of each step that is not cached why not: which argument, variable, file or image
    /// changed, or when it was pruned. Other clients ask by --build-arg COOPER_EXPLAIN=1.
    #[arg(long)]
    pub(crate) explain: bool,
    /// Runs every step, whatever the cache holds.
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Runs every step of these stages.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Looks for newer versions of the images that the build is based on.
    #[arg(long)]
    pub(crate) pull: bool,
    /// The platform to build for, OS/ARCH[/VARIANT].
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    pub(crate) platforms: Vec<String>,
    /// Offers a secret to the build: id=ID[,src=FILE|,env=NAME].
    #[arg(long = "secret", value_name = "SPEC")]
    pub(crate) secrets: Vec<String>,
    /// Offers an ssh agent to the build: default or ID=SOCKET.
    #[arg(long = "ssh", value_name = "SPEC")]
    pub(crate) ssh: Vec<String>,
    /// Network of the RUN instructions: default, none or host.
    #[arg(long, value_name = "MODE")]
    pub(crate) network: Option<String>,
    /// Adds a host to the build's hosts file, NAME:IP.
    #[arg(long = "add-host", value_name = "NAME:IP")]
    pub(crate) hosts: Vec<String>,
    /// Size of /dev/shm of the RUN instructions, in bytes.
    #[arg(long, value_name = "BYTES")]
    pub(crate) shm_size: Option<String>,
    /// Limits of the RUN instructions, NAME=SOFT[:HARD].
    #[arg(long = "ulimit", value_name = "SPEC")]
    pub(crate) ulimits: Vec<String>,
    /// Allows what builds may not do else: network.host, security.insecure.
    #[arg(long = "allow", value_name = "ENTITLEMENT")]
    pub(crate) allow: Vec<String>,
    /// Where caches are imported from: type=registry,ref=NAME or NAME.
    #[arg(
        long = "cache-from",
        visible_alias = "import-cache",
        value_name = "SPEC"
    )]
    pub(crate) cache_from: Vec<String>,
    /// Where the cache is exported to.
    #[arg(long = "cache-to", visible_alias = "export-cache", value_name = "SPEC")]
    pub(crate) cache_to: Vec<String>,
    /// Rules over what a build may use, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) source_policy_file: Option<PathBuf>,
    /// Certificates for a registry's token server: host=HOST[,ca=FILE][,cert=FILE,key=FILE].
    #[arg(long = "registry-auth-tlscontext", value_name = "SPEC")]
    pub(crate) registry_tls: Vec<String>,
    /// Offers an OCI layout to the build by a name, NAME=DIR.
    #[arg(long = "oci-layout", value_name = "NAME=DIR")]
    pub(crate) oci_layouts: Vec<String>,
    /// Pushes the image: as --output type=image,push=true.
    #[arg(long)]
    pub(crate) push: bool,
    /// Writes what the exporters answered into a file, as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Writes the image's digest into a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Writes the name by which the daemon knows the build into a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) ref_file: Option<PathBuf>,
}
