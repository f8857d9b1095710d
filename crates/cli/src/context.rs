//! What is built: a directory, a remote place, or standard input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cooper_session::Tree;
use cooper_session::content::LAYOUT;
use cooper_session::serve::{Layout, Services};
use tempfile::TempDir;

/// The largest Dockerfile on standard input, in bytes.
const MOST: u64 = 16 << 20;
/// How an uploaded archive is named to the daemon.
const UPLOAD_URL: &str = "http://buildkit-session/";

/// What is built.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    /// A name to show.
    pub(crate) name: String,
    /// What tells this directory from others, for the next build.
    pub(crate) shared_key: String,
    /// Directories that the session offers.
    pub(crate) dirs: BTreeMap<String, Tree>,
    /// Files that the session offers.
    pub(crate) uploads: BTreeMap<String, PathBuf>,
    /// What the frontend has to know.
    pub(crate) attrs: BTreeMap<String, String>,
    /// What came from standard input, until the build has ended.
    temporary: Option<Arc<TempDir>>,
}

/// Finds the context and the Dockerfile.
pub(crate) fn find(context: &str, file: Option<&str>) -> Result<Context> {
    if context == "-" {
        return from_stdin(file);
    }
    let mut found = Context::default();
    if is_remote(context) {
        found.attrs.insert("context".into(), context.into());
        found.name = context.to_owned();
        match file {
            Some("-") => dockerfile_from(&mut found, &mut io::stdin().lock())?,
            // In the remote place.
            Some(file) => drop(found.attrs.insert("filename".into(), file.into())),
            None => {}
        }
        return Ok(found);
    }
    let dir = Path::new(context);
    if !dir.is_dir() {
        bail!("unable to prepare context: path {context:?} not found");
    }
    let dir = dir
        .canonicalize()
        .with_context(|| format!("unable to prepare context: path {context:?}"))?;
    let name = dir.file_name().unwrap_or_default();
    found.name = name.to_string_lossy().into_owned();
    found.shared_key = shared_key(&dir);
    found
        .dirs
        .insert("context".into(), Tree::new(&dir).owned_by_root());
    match file {
        Some("-") => dockerfile_from(&mut found, &mut io::stdin().lock())?,
        Some(file) => dockerfile_at(&mut found, Path::new(file))?,
        None => dockerfile_at(&mut found, &dir.join("Dockerfile"))?,
    }
    Ok(found)
}

/// A named context: what the frontend is told of it. A directory is offered by the session.
pub(crate) fn named(name: &str, source: &str, services: &mut Services) -> Result<String> {
    if let Some(layout) = source.strip_prefix("oci-layout://") {
        return oci_layout(name, layout, services);
    }
    let schemes = ["docker-image://", "target:", "http://", "https://", "git@"];
    if schemes.iter().any(|scheme| source.starts_with(scheme)) || is_remote(source) {
        return Ok(source.to_owned());
    }
    let dir = Path::new(source);
    if !dir.is_dir() {
        bail!("failed to get build context {name}: path {source:?} not found");
    }
    services
        .dirs
        .insert(name.to_owned(), Tree::new(dir).owned_by_root());
    Ok(format!("local:{name}"))
}

/// Offers the image layout `PATH[:TAG][@DIGEST]` under a name that no other has.
fn oci_layout(name: &str, layout: &str, services: &mut Services) -> Result<String> {
    let (rest, digest) = match layout.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.to_owned())),
        None => (layout, None),
    };
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let dir = Path::new(path);
    if !dir.is_dir() {
        bail!("failed to get build context {name}: path {path:?} not found");
    }
    let digest = match digest {
        Some(digest) => digest,
        None => cooper_client::layout::digest(dir, tag)
            .with_context(|| format!("failed to get build context {name}"))?,
    };
    let store = format!("layout-{}", services.layouts.len());
    let layout = Layout {
        dir: dir.to_owned(),
        writable: false,
    };
    services.layouts.insert(format!("{LAYOUT}{store}"), layout);
    Ok(format!("oci-layout://{store}@{digest}"))
}

/// Whether the daemon gets it itself: a repository, or a file on the web.
fn is_remote(context: &str) -> bool {
    let prefixes = [
        "http://",
        "https://",
        "git://",
        "ssh://",
        "git@",
        "github.com/",
    ];
    prefixes.iter().any(|prefix| context.starts_with(prefix))
}

/// Offers the directory of the Dockerfile at `path`.
fn dockerfile_at(found: &mut Context, path: &Path) -> Result<()> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .with_context(|| format!("{} names no Dockerfile", path.display()))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir = dir
        .canonicalize()
        .with_context(|| format!("unable to prepare context: path {:?}", dir.display()))?;
    found.attrs.insert("filename".into(), name.to_owned());
    found
        .dirs
        .insert("dockerfile".into(), Tree::new(dir).owned_by_root());
    Ok(())
}

/// Offers what is read as the Dockerfile.
fn dockerfile_from(found: &mut Context, reader: &mut dyn Read) -> Result<()> {
    let dir = temporary(found)?.path().join("dockerfile");
    std::fs::create_dir(&dir)?;
    let path = dir.join("Dockerfile");
    let mut file = File::create(&path)?;
    let mut reader = reader.take(MOST + 1);
    if io::copy(&mut reader, &mut file).context("failed to read the Dockerfile")? > MOST {
        bail!("the Dockerfile is larger than {MOST} bytes");
    }
    dockerfile_at(found, &path)
}

/// An archive is the context, anything else is a Dockerfile without one.
fn from_stdin(file: Option<&str>) -> Result<Context> {
    if file == Some("-") {
        bail!("invalid argument: can't use stdin for both build context and dockerfile");
    }
    let mut stdin = io::stdin().lock();
    let mut begin = Vec::new();
    (&mut stdin).take(512).read_to_end(&mut begin)?;
    let mut all = begin.as_slice().chain(stdin);
    let mut found = Context {
        name: "-".to_owned(),
        ..Context::default()
    };
    if is_archive(&begin) {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let path = temporary(&mut found)?.path().join("context");
        let mut target = File::create(&path)?;
        io::copy(&mut all, &mut target).context("failed to read the context")?;
        target.flush()?;
        found
            .attrs
            .insert("context".into(), format!("{UPLOAD_URL}{id}"));
        if let Some(file) = file {
            found.attrs.insert("filename".into(), file.to_owned());
        }
        found.uploads.insert(id, path);
        return Ok(found);
    }
    if file.is_some() {
        bail!("ambiguous Dockerfile source: both stdin and flag correspond to Dockerfiles");
    }
    dockerfile_from(&mut found, &mut all)?;
    let empty = temporary(&mut found)?.path().join("empty");
    std::fs::create_dir(&empty)?;
    found
        .dirs
        .insert("context".into(), Tree::new(empty).owned_by_root());
    Ok(found)
}

/// By the first bytes: gzip, bzip2, xz, zstd, or a tar header.
fn is_archive(begin: &[u8]) -> bool {
    let magics: [&[u8]; 4] = [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    magics.iter().any(|magic| begin.starts_with(magic))
        || begin.get(257..262) == Some(b"ustar".as_slice())
}

fn temporary(found: &mut Context) -> Result<Arc<TempDir>> {
    if let Some(dir) = &found.temporary {
        return Ok(dir.clone());
    }
    let dir = tempfile::Builder::new().prefix("cooper-build-").tempdir();
    let dir = Arc::new(dir.context("failed to make a temporary directory")?);
    found.temporary = Some(dir.clone());
    Ok(dir)
}

/// The machine and the path: another build of the same directory continues its copy.
fn shared_key(dir: &Path) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let key = format!("{}:{}", host.trim(), dir.display());
    URL_SAFE_NO_PAD.encode(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_offered_with_that_of_its_dockerfile() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("docker")).unwrap();
        let file = dir.path().join("docker/Dockerfile.dev");
        let context = dir.path().to_str().unwrap();
        let found = find(context, file.to_str()).unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(found.dirs["context"].path, real);
        assert_eq!(found.dirs["dockerfile"].path, real.join("docker"));
        assert_eq!(found.attrs["filename"], "Dockerfile.dev");
        let again = find(context, None).unwrap();
        assert_eq!(found.shared_key, again.shared_key);
        assert_eq!(again.attrs["filename"], "Dockerfile");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let error = find("/nonexistent/dir", None).unwrap_err().to_string();
        let expected = "unable to prepare context: path \"/nonexistent/dir\" not found";
        assert_eq!(error, expected);
        let mut services = Services::default();
        assert!(named("x", "/nonexistent", &mut services).is_err());
        let image = named("x", "docker-image://alpine", &mut services).unwrap();
        assert_eq!(image, "docker-image://alpine");
        assert_eq!(named("y", "/", &mut services).unwrap(), "local:y");
    }

    #[test]
    fn remote_places_are_left_to_the_daemon() {
        let found = find("https://example.org/x.git#main", Some("sub/Dockerfile")).unwrap();
        assert_eq!(found.attrs["context"], "https://example.org/x.git#main");
        assert_eq!(found.attrs["filename"], "sub/Dockerfile");
        assert!(found.dirs.is_empty());
    }

    #[test]
    fn archives_are_told_by_their_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(b"\x1f\x8b\x08\0"));
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b""));
    }
}
