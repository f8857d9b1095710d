//! `cooper build`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use cooper_client::{Client, ClientError, DockerConfig, Solve, Source};
use cooper_proto::control::{CacheOptions, SolveResponse};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::connect::DaemonArgs;
use crate::context::{self, Context};
use crate::progress::{self, Mode};
use crate::spec::{self, Export};
use crate::{local, report};

/// The name of the frontend that reads Dockerfiles.
const FRONTEND: &str = "dockerfile.v0";

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// The directory to build, the URL of a repository or an archive, or `-` for an archive or
    /// a Dockerfile on standard input.
    #[arg(value_name = "DIR|URL|-")]
    context: String,
    /// The Dockerfile; `-` for standard input. Default: DIR/Dockerfile.
    #[arg(short, long, value_name = "FILE")]
    file: Option<String>,
    /// The image's name, NAME[:TAG].
    #[arg(short, long = "tag", value_name = "NAME")]
    tags: Vec<String>,
    /// Where the result goes: type=local|tar|oci|docker|image,dest=PATH,...; a directory; or
    /// `-` for a tar archive on standard output.
    #[arg(short, long = "output", value_name = "SPEC")]
    outputs: Vec<String>,
    /// The stage to build.
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Sets a build argument, NAME=VALUE; NAME alone takes the value from the environment.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// Offers a directory or an image to the Dockerfile by a name, NAME=PATH|docker-image://...
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    build_contexts: Vec<String>,
    /// Sets a label of the image, NAME=VALUE.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t, env = "BUILDKIT_PROGRESS")]
    progress: Mode,
    /// Shows nothing but the image's digest at the end.
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Where a build in this process keeps its cache.
    #[arg(long, value_name = "DIR", env = "COOPER_ROOT", conflicts_with = "addr")]
    root: Option<PathBuf>,
    /// Runs every step, whatever the cache holds.
    #[arg(long)]
    no_cache: bool,
    /// Runs every step of these stages.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    no_cache_filter: Vec<String>,
    /// Looks for newer versions of the images that the build is based on.
    #[arg(long)]
    pull: bool,
    /// The platform to build for, OS/ARCH[/VARIANT].
    #[arg(long = "platform", value_name = "PLATFORM", value_delimiter = ',')]
    platforms: Vec<String>,
    /// Offers a secret to the build: id=ID[,src=FILE|,env=NAME].
    #[arg(long = "secret", value_name = "SPEC")]
    secrets: Vec<String>,
    /// Offers an ssh agent to the build: default or ID=SOCKET.
    #[arg(long = "ssh", value_name = "SPEC")]
    ssh: Vec<String>,
    /// Network of the RUN instructions: default, none or host.
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// Adds a host to the build's hosts file, NAME:IP.
    #[arg(long = "add-host", value_name = "NAME:IP")]
    hosts: Vec<String>,
    /// Size of /dev/shm of the RUN instructions, in bytes.
    #[arg(long, value_name = "BYTES")]
    shm_size: Option<String>,
    /// Limits of the RUN instructions, NAME=SOFT[:HARD].
    #[arg(long = "ulimit", value_name = "SPEC")]
    ulimits: Vec<String>,
    /// Allows what builds may not do else: network.host, security.insecure.
    #[arg(long = "allow", value_name = "ENTITLEMENT")]
    allow: Vec<String>,
    /// Where caches are imported from: type=registry,ref=NAME or NAME.
    #[arg(long = "cache-from", value_name = "SPEC")]
    cache_from: Vec<String>,
    /// Where the cache is exported to.
    #[arg(long = "cache-to", value_name = "SPEC")]
    cache_to: Vec<String>,
    /// Pushes the image: as --output type=image,push=true.
    #[arg(long)]
    push: bool,
    /// Writes what the exporters answered into a file, as JSON.
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Writes the image's digest into a file.
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
}

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
    let context = context::find(&args.context, args.file.as_deref())?;
    let solve = solve(&args, &context)?;
    let interrupted = solve.cancelled.clone();
    let signals = interrupt(interrupted.clone());
    let building = async {
        let response = match &args.daemon.addr {
            Some(address) => {
                let tls = args.daemon.tls()?;
                let client = Client::connect_with(address, &tls).await?;
                build(&client, solve, &args).await?
            }
            None => {
                let work = async |client| build(&client, solve, &args).await;
                local::with(args.root.as_deref(), work).await??
            }
        };
        Ok(response)
    };
    let result: Result<SolveResponse, Failure> = tokio::select! {
        result = Box::pin(building) => result,
        error = signals => Err(error),
    };
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

async fn build(
    client: &Client,
    solve: Solve,
    args: &BuildArgs,
) -> Result<SolveResponse, ClientError> {
    let mode = if args.quiet {
        Mode::Quiet
    } else {
        args.progress
    };
    let (updates, shown) = mpsc::unbounded_channel();
    let solving = async move {
        // The display ends when the sender is dropped, after the last update.
        let mut show = |update| drop(updates.send(update));
        client.solve(solve, &mut show).await
    };
    let (result, ()) = tokio::join!(Box::pin(solving), progress::show(mode, shown));
    result
}

/// The request, and what the session offers for it.
fn solve(args: &BuildArgs, context: &Context) -> Result<Solve> {
    let mut solve = Solve {
        name: context.name.clone(),
        shared_key: context.shared_key.clone(),
        ..Solve::default()
    };
    let attrs = &mut solve.request.frontend_attrs;
    attrs.extend(context.attrs.clone());
    let mut set = |name: &str, value: String| {
        attrs.insert(name.to_owned(), value);
    };
    if let Some(target) = &args.target {
        set("target", target.clone());
    }
    for (name, value) in arguments(&args.build_args) {
        set(&format!("build-arg:{name}"), value);
    }
    for label in &args.labels {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        set(&format!("label:{name}"), value.to_owned());
    }
    if !args.platforms.is_empty() {
        set("platform", args.platforms.join(","));
    }
    if args.no_cache {
        set("no-cache", String::new());
    } else if !args.no_cache_filter.is_empty() {
        set("no-cache", args.no_cache_filter.join(","));
    }
    if args.pull {
        set("image-resolve-mode", "pull".to_owned());
    }
    match args.network.as_deref() {
        None | Some("" | "default") => {}
        Some(mode @ ("host" | "none")) => set("force-network-mode", mode.to_owned()),
        Some(mode) => bail!("network mode {mode:?} not supported by buildkit"),
    }
    if !args.hosts.is_empty() {
        set("add-hosts", args.hosts.join(",").replace('=', ":"));
    }
    if let Some(size) = &args.shm_size {
        set("shm-size", size.clone());
    }
    if !args.ulimits.is_empty() {
        set("ulimit", args.ulimits.join(","));
    }
    for given in &args.build_contexts {
        let (name, source) = given
            .split_once('=')
            .with_context(|| format!("invalid context value: {given}, expected key=value"))?;
        let source = context::named(name, source, &mut solve.services)?;
        set(&format!("context:{name}"), source);
    }
    let exports = spec::exports(&args.outputs, &args.tags, args.push)?;
    for (index, export) in exports.into_iter().enumerate() {
        let Export {
            kind,
            attrs,
            output,
        } = export;
        if index == 0 {
            // Daemons of before there were several read these.
            solve.request.exporter_deprecated.clone_from(&kind);
            solve.request.exporter_attrs_deprecated.clone_from(&attrs);
        }
        if let Some(output) = output {
            solve.services.outputs.insert(index, output);
        }
        solve
            .request
            .exporters
            .push(cooper_proto::control::Exporter {
                r#type: kind,
                attrs,
            });
    }
    solve.request.frontend = FRONTEND.to_owned();
    solve.request.cache = Some(CacheOptions {
        imports: spec::caches(&args.cache_from)?,
        exports: spec::caches(&args.cache_to)?,
        ..CacheOptions::default()
    });
    solve.request.entitlements.clone_from(&args.allow);
    if args.network.as_deref() == Some("host") {
        let host = "network.host".to_owned();
        if !solve.request.entitlements.contains(&host) {
            solve.request.entitlements.push(host);
        }
    }
    solve.services.dirs.extend(context.dirs.clone());
    solve.services.uploads.extend(context.uploads.clone());
    solve.services.auth = Some(Arc::new(DockerConfig::load()?));
    let secrets = spec::secrets(&args.secrets)?;
    if !secrets.0.is_empty() {
        solve.services.secrets = Some(Arc::new(secrets));
    }
    solve.services.ssh = spec::agents(&args.ssh)?;
    Ok(solve)
}

/// Build arguments; one without a value takes it from the environment, if it is there.
fn arguments(given: &[String]) -> BTreeMap<String, String> {
    let pairs = given.iter().filter_map(|text| match text.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((text.clone(), std::env::var(text).ok()?)),
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BuildArgs,
    }

    fn request(dir: &std::path::Path, options: &[&str]) -> Result<Solve> {
        let dir = dir.to_str().expect("a temporary directory's name is text");
        let line = ["build", dir].into_iter().chain(options.iter().copied());
        let args = Line::parse_from(line).args;
        let context = context::find(&args.context, args.file.as_deref())?;
        solve(&args, &context)
    }

    #[test]
    fn options_become_attributes_of_the_frontend() {
        let dir = tempfile::tempdir().unwrap();
        let options = "--target=t --build-arg A=1=2 --build-arg PATH --build-arg NOT_SET_AT_ALL \
                       --label l=v --platform linux/amd64,linux/arm64 --no-cache --pull \
                       --network host --add-host a:1.2.3.4 -t name";
        let options: Vec<&str> = options.split_whitespace().collect();
        let solve = request(dir.path(), &options).unwrap();
        let attrs = &solve.request.frontend_attrs;
        let path = std::env::var("PATH").unwrap();
        let expected = [
            ("filename", "Dockerfile"),
            ("target", "t"),
            ("build-arg:A", "1=2"),
            ("build-arg:PATH", &*path),
            ("label:l", "v"),
            ("platform", "linux/amd64,linux/arm64"),
            ("no-cache", ""),
            ("image-resolve-mode", "pull"),
            ("force-network-mode", "host"),
            ("add-hosts", "a:1.2.3.4"),
        ];
        for (name, value) in expected {
            assert_eq!(attrs.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(attrs.len(), expected.len(), "{attrs:?}");
        assert_eq!(solve.request.entitlements, ["network.host"]);
        assert_eq!(solve.request.exporters[0].attrs["name"], "name");
        let dirs: Vec<_> = solve.services.dirs.keys().collect();
        assert_eq!(dirs, ["context", "dockerfile"]);
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&[&str], &str); 4] = [
            (&["--network", "bridge"], "network mode"),
            (&["--build-context", "x"], "invalid context value"),
            (&["-o", "type=local"], "dest is required"),
            (&["--secret", "src=x"], "missing"),
        ];
        for (options, expected) in cases {
            let error = request(dir.path(), options).unwrap_err().to_string();
            assert!(error.contains(expected), "{options:?}: {error}");
        }
    }
}
