//! What is asked of the daemon, and what the session offers for it.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use cooper_client::{DockerConfig, Solve};
use cooper_proto::control::{CacheOptions, Exporter};
use cooper_session::Tree;
use cooper_session::content::{EXPORT, LAYOUT};
use cooper_session::serve::Layout;

use crate::args::BuildArgs;
use crate::context::{self, Context};
use crate::spec::{self, Export};
use crate::{graph, policy};

/// The name of the frontend that reads Dockerfiles.
const FRONTEND: &str = "dockerfile.v0";
/// What asks the daemon why steps are not cached.
const EXPLAIN: &str = "build-arg:COOPER_EXPLAIN";
/// The right to the machine's network.
const HOST_NETWORK: &str = "network.host";

/// The request of the options. Without a context and a frontend a build graph is read from
/// standard input.
pub(crate) fn solve(args: &BuildArgs, context: Option<&Context>) -> Result<Solve> {
    let tls = spec::registry_tls(&args.registry_tls)?;
    let config = DockerConfig::load()?.with_tls(tls);
    let mut solve = Solve::default();
    solve.request.r#ref = uuid::Uuid::new_v4().simple().to_string();
    for (name, dir) in named("local", &args.locals)? {
        if !Path::new(dir).is_dir() {
            bail!("invalid local: {name}: {dir} is no directory");
        }
        let tree = Tree::new(dir).owned_by_root();
        solve.services.dirs.insert(name.to_owned(), tree);
    }
    for (name, dir) in named("oci-layout", &args.oci_layouts)? {
        if !Path::new(dir).is_dir() {
            bail!("--oci-layout {name}={dir}: no such directory");
        }
        let layout = Layout {
            dir: dir.into(),
            writable: false,
        };
        let layouts = &mut solve.services.layouts;
        layouts.insert(format!("{LAYOUT}{name}"), layout);
    }
    match (context, &args.frontend) {
        (Some(context), frontend) => {
            solve.name.clone_from(&context.name);
            solve.shared_key.clone_from(&context.shared_key);
            let attrs = &mut solve.request.frontend_attrs;
            attrs.extend(context.attrs.clone());
            // Docker's clients give these to every build.
            let proxies = config.proxies().into_iter();
            attrs.extend(proxies.map(|(name, value)| (format!("build-arg:{name}"), value)));
            solve.services.dirs.extend(context.dirs.clone());
            solve.services.uploads.extend(context.uploads.clone());
            let frontend = frontend.as_deref().unwrap_or(FRONTEND);
            solve.request.frontend = frontend.to_owned();
        }
        (None, Some(frontend)) => solve.request.frontend.clone_from(frontend),
        (None, None) => {
            let mut stdin = std::io::stdin().lock();
            if stdin.is_terminal() {
                bail!("please specify a directory, --frontend or pipe an LLB definition to stdin");
            }
            let definition = graph::read(&mut stdin, args.no_cache)?;
            graph::check(&definition, |name| solve.services.dirs.contains_key(name))?;
            solve.request.definition = Some(definition);
        }
    }
    if !solve.request.frontend.is_empty() {
        frontend(args, &mut solve)?;
    }
    if args.explain {
        let attrs = &mut solve.request.frontend_attrs;
        attrs.insert(EXPLAIN.to_owned(), "1".to_owned());
    }
    exports(args, &mut solve)?;
    solve.request.cache = Some(CacheOptions {
        imports: spec::caches(&args.cache_from)?,
        exports: spec::caches(&args.cache_to)?,
        ..CacheOptions::default()
    });
    if let Some(path) = &args.source_policy_file {
        solve.request.source_policy = Some(policy::read(path)?);
    }
    solve.request.entitlements.clone_from(&args.allow);
    let host = HOST_NETWORK.to_owned();
    if args.network.as_deref() == Some("host") && !args.allow.contains(&host) {
        solve.request.entitlements.push(host);
    }
    solve.services.auth = Some(Arc::new(config));
    let secrets = spec::secrets(&args.secrets)?;
    if !secrets.0.is_empty() {
        solve.services.secrets = Some(Arc::new(secrets));
    }
    solve.services.ssh = spec::agents(&args.ssh)?;
    Ok(solve)
}

/// `NAME=VALUE` of an option that may be repeated.
fn named<'a>(option: &str, given: &'a [String]) -> Result<Vec<(&'a str, &'a str)>> {
    let pairs = given.iter().map(|text| {
        let pair = text.split_once('=');
        pair.with_context(|| format!("invalid {option}: invalid value {text}"))
    });
    pairs.collect()
}

/// A host as the frontend wants it, `NAME=IP`: in an address there are colons, too, perhaps in
/// brackets.
fn extra_host(text: &str) -> String {
    let pair = text.split_once('=').or_else(|| text.split_once(':'));
    let Some((name, ip)) = pair else {
        return text.to_owned();
    };
    let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    format!("{name}={}", bare.unwrap_or(ip))
}

/// What the options say to the frontend.
fn frontend(args: &BuildArgs, solve: &mut Solve) -> Result<()> {
    let attrs = &mut solve.request.frontend_attrs;
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
        let hosts: Vec<String> = args.hosts.iter().map(|host| extra_host(host)).collect();
        set("add-hosts", hosts.join(","));
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
    // In the frontend's own words, over what other options say.
    for (name, value) in named("opt", &args.opts)? {
        set(name, value.to_owned());
    }
    Ok(())
}

fn exports(args: &BuildArgs, solve: &mut Solve) -> Result<()> {
    let exports = spec::exports(&args.outputs, &args.tags, args.push)?;
    for (index, export) in exports.into_iter().enumerate() {
        let Export {
            kind,
            attrs,
            output,
            layout,
        } = export;
        if index == 0 {
            // Daemons of before there were several read these.
            solve.request.exporter_deprecated.clone_from(&kind);
            solve.request.exporter_attrs_deprecated.clone_from(&attrs);
        }
        if let Some(output) = output {
            solve.services.outputs.insert(index, output);
        }
        if let Some(dir) = layout {
            let writable = true;
            let layout = Layout { dir, writable };
            let layouts = &mut solve.services.layouts;
            if layouts.insert(EXPORT.to_owned(), layout).is_some() {
                bail!("only one output can be written with tar=false");
            }
        }
        solve.request.exporters.push(Exporter {
            r#type: kind,
            attrs,
        });
    }
    Ok(())
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

    fn request(dir: Option<&Path>, options: &[&str]) -> Result<Solve> {
        let dir = dir.map(|dir| dir.to_str().expect("a temporary directory's name is text"));
        let line = ["build"].into_iter().chain(dir);
        let args = Line::parse_from(line.chain(options.iter().copied())).args;
        let context = args.context.as_deref();
        let context = context.map(|context| context::find(context, args.file.as_deref()));
        solve(&args, context.transpose()?.as_ref())
    }

    #[test]
    fn options_become_attributes_of_the_frontend() {
        let dir = tempfile::tempdir().unwrap();
        let options = "--target=t --build-arg A=1=2 --build-arg PATH --build-arg NOT_SET_AT_ALL \
                       --label l=v --platform linux/amd64,linux/arm64 --no-cache --pull \
                       --network host --add-host a:1.2.3.4 -t name";
        let options: Vec<&str> = options.split_whitespace().collect();
        let solve = request(Some(dir.path()), &options).unwrap();
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
            ("add-hosts", "a=1.2.3.4"),
        ];
        for (name, value) in expected {
            assert_eq!(attrs.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(solve.request.frontend, "dockerfile.v0");
        assert_eq!(solve.request.entitlements, ["network.host"]);
        assert_eq!(solve.request.exporters[0].attrs["name"], "name");
        let dirs: Vec<_> = solve.services.dirs.keys().collect();
        assert_eq!(dirs, ["context", "dockerfile"]);
    }

    #[test]
    fn a_frontend_is_told_what_buildctl_tells_it() {
        let dir = tempfile::tempdir().unwrap();
        let local = format!("--local=context={}", dir.path().display());
        let options = [
            "--frontend=dockerfile.v0",
            &local,
            "--opt=target=a=b",
            "--frontend-opt=build-arg:X=1",
            "--no-cache",
            "--output=type=image,name=x,push=true",
            "--import-cache=type=registry,ref=example.org/cache",
            "--allow=security.insecure",
        ];
        let solve = request(None, &options).unwrap();
        let attrs = &solve.request.frontend_attrs;
        assert_eq!((&*attrs["target"], &*attrs["build-arg:X"]), ("a=b", "1"));
        assert_eq!((&*attrs["no-cache"], attrs.len()), ("", 3));
        assert_eq!(solve.services.dirs["context"].path, dir.path());
        assert_eq!(solve.request.exporters[0].attrs["push"], "true");
        let cache = solve.request.cache.unwrap();
        assert_eq!(cache.imports[0].attrs["ref"], "example.org/cache");
        assert_eq!(solve.request.entitlements, ["security.insecure"]);
        assert!(solve.request.definition.is_none() && !solve.request.r#ref.is_empty());
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let cases: [(&[&str], &str); 10] = [
            (&["--network", "bridge"], "network mode"),
            (&["--build-context", "x"], "invalid context value"),
            (&["-o", "type=local"], "dest is required"),
            (&["--secret", "src=x"], "missing"),
            (&["--opt", "x"], "invalid opt"),
            (&["--local", "x"], "invalid local"),
            (
                &["--local", "x=/no/such/dir"],
                "/no/such/dir is no directory",
            ),
            (&["--oci-layout", "x=/none"], "no such directory"),
            (&["--registry-auth-tlscontext", "ca=x"], "requires host="),
            (&["--source-policy-file", "/no/such/file"], "/no/such/file"),
        ];
        for (options, expected) in cases {
            let error = request(Some(dir.path()), options).unwrap_err();
            let error = format!("{error:#}");
            assert!(error.contains(expected), "{options:?}: {error}");
        }
    }
}
