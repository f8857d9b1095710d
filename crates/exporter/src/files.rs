//! The exporters `local` and `tar`: the files of a result, in a folder of the client's or in one
//! tar.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use cooper_cache::{ImmutableRef, MountedDir, MutableRef, RecordOptions};
use cooper_progress::StatusGuard;
use cooper_session::filesync::{self, Watch};
use cooper_session::{Session, Tree};
use futures::future::try_join_all;
use time::OffsetDateTime;

use crate::attrs::{Attrs, Epoch, parse_bool};
use crate::platforms::{self, Platform};
use crate::{ExportContext, ExportError, ExportInput, Exporter, Response, manifest, stream, tree};

/// What both have in common.
#[derive(Debug)]
struct FileOptions {
    epoch: Epoch,
    /// One folder for each platform; when nothing is said, if there is more than one.
    split: Option<bool>,
}

impl FileOptions {
    fn take(attrs: &mut Attrs, split: &str) -> Result<Self, ExportError> {
        let epoch = Epoch::take(attrs)?;
        let split = match attrs.remove(split) {
            Some(value) => Some(parse_bool(split, &value)?),
            None => None,
        };
        Ok(Self { epoch, split })
    }
}

/// Sends files into a folder of the client's.
#[derive(Debug)]
pub(crate) struct LocalExporter {
    options: FileOptions,
    index: usize,
    /// The client removes what it has and is not sent: all has to come at once.
    delete: bool,
}

impl LocalExporter {
    pub(crate) fn new(mut attrs: Attrs, index: usize) -> Result<Self, ExportError> {
        let options = FileOptions::take(&mut attrs, "platform-split")?;
        let mode = attrs.remove("mode").unwrap_or_default();
        let delete = match mode.trim().to_lowercase().as_str() {
            "" | "copy" => false,
            "delete" => true,
            _ => return Err(ExportError::Mode { mode }),
        };
        Ok(Self {
            options,
            index,
            delete,
        })
    }
}

#[async_trait]
impl Exporter for LocalExporter {
    fn name(&self) -> &'static str {
        "exporting to client directory"
    }

    fn kind(&self) -> &'static str {
        "local"
    }

    async fn export(
        &self,
        input: ExportInput,
        cx: &ExportContext,
    ) -> Result<Response, ExportError> {
        let session = stream::session(cx).await?;
        let multi = !input.references.is_empty();
        let platforms = platforms::of(&input)?;
        if !multi && platforms.len() > 1 {
            return Err(ExportError::result(
                "unable to export multiple platforms without map",
            ));
        }
        let split = self.options.split.unwrap_or(multi);
        let mut states = Vec::new();
        for platform in sources(&platforms) {
            let epoch = self.options.epoch.resolve(&input.metadata, platform)?;
            states.push(State::mount(platform, &input, epoch, cx).await?);
        }
        if !split && states.len() > 1 {
            refuse_overwriting(&states).await?;
        }
        if self.delete {
            // In the order of their names.
            states.sort_by_key(State::folder);
            let trees = states.iter().map(|state| tree_of(state, split)).collect();
            let label = "copying files".to_owned();
            self.send(&session, trees, label, cx).await?;
            return states
                .into_iter()
                .try_for_each(State::close)
                .map(|()| Response::new());
        }
        let sent = states.iter().map(|state| {
            let label = match split {
                true => format!("copying files {}", state.id),
                false => "copying files".to_owned(),
            };
            self.send(&session, vec![tree_of(state, split)], label, cx)
        });
        try_join_all(sent).await?;
        for state in states {
            state.close()?;
        }
        Ok(Response::new())
    }
}

impl LocalExporter {
    async fn send(
        &self,
        session: &Session,
        trees: Vec<Tree>,
        label: String,
        cx: &ExportContext,
    ) -> Result<(), ExportError> {
        let watch = Arc::new(Progress::new(cx.progress.status(&label, "transferring")));
        filesync::send_dir(session, self.index, trees, self.delete, watch)
            .await
            .map_err(ExportError::session)
    }
}

/// What a client is sent of a platform's files.
fn tree_of(state: &State, split: bool) -> Tree {
    let mut tree = Tree::new(state.path());
    if split {
        tree.under = state.folder();
    }
    if let Some(epoch) = state.epoch {
        let time = i64::try_from(epoch.unix_timestamp_nanos()).unwrap_or(i64::MAX);
        tree.map = Some(Arc::new(move |stat| stat.mod_time = time));
    }
    tree
}

/// Says how much was sent, ten times in a second at most.
struct Progress {
    status: Option<StatusGuard>,
    last: std::sync::Mutex<(Instant, u64)>,
    bytes: AtomicU64,
}

impl Progress {
    fn new(status: StatusGuard) -> Self {
        Self {
            status: Some(status),
            last: std::sync::Mutex::new((Instant::now(), 0)),
            bytes: AtomicU64::new(0),
        }
    }
}

impl Drop for Progress {
    /// Says the last amount, which may have come too soon after the one before.
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        if let Some(status) = self.status.take() {
            status.finish(i64::try_from(bytes).unwrap_or(i64::MAX), 0);
        }
    }
}

impl Watch for Progress {
    fn transferred(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        if bytes > last.1 && (last.1 == 0 || now.duration_since(last.0).as_millis() >= 100) {
            *last = (now, bytes);
            if let Some(status) = &self.status {
                status.set(i64::try_from(bytes).unwrap_or(i64::MAX), 0);
            }
        }
    }
}

/// Sends the files of a result as one tar.
#[derive(Debug)]
pub(crate) struct TarExporter {
    options: FileOptions,
    index: usize,
}

impl TarExporter {
    pub(crate) fn new(mut attrs: Attrs, index: usize) -> Result<Self, ExportError> {
        let options = FileOptions::take(&mut attrs, "multi-platform")?;
        Ok(Self { options, index })
    }
}

#[async_trait]
impl Exporter for TarExporter {
    fn name(&self) -> &'static str {
        "exporting to client tarball"
    }

    fn kind(&self) -> &'static str {
        "tar"
    }

    async fn export(
        &self,
        input: ExportInput,
        cx: &ExportContext,
    ) -> Result<Response, ExportError> {
        let multi = !input.references.is_empty();
        let platforms = platforms::of(&input)?;
        let split = self.options.split.unwrap_or(multi);
        if platforms.len() > 1 && !(split && multi) {
            return Err(ExportError::result(
                "unable to export multiple platforms without map",
            ));
        }
        let mut states = Vec::new();
        for platform in sources(&platforms) {
            let epoch = self.options.epoch.resolve(&input.metadata, platform)?;
            states.push(State::mount(platform, &input, epoch, cx).await?);
        }
        let _status = cx.progress.status("sending tarball", "");
        // The thread holds the mounts: it may outlive this future by a piece.
        stream::send(cx, self.index, &Response::new(), move |out| {
            let mut tar = tree::TarWriter::new(out);
            for state in &states {
                let under = if split { state.folder() } else { String::new() };
                tar.append(state.path(), &under, state.epoch)?;
            }
            tar.finish()?;
            states.into_iter().try_for_each(State::close)
        })
        .await?;
        Ok(Response::new())
    }
}

/// The platforms to export, or the one result that belongs to none.
fn sources(platforms: &[Platform]) -> Vec<Option<&Platform>> {
    match platforms {
        [] => vec![None],
        platforms => platforms.iter().map(Some).collect(),
    }
}

/// A platform's files, mounted to be read.
struct State {
    id: String,
    epoch: Option<OffsetDateTime>,
    // Before what it shows.
    mounted: MountedDir,
    /// The empty folder that stands for no state.
    _empty: Option<MutableRef>,
}

impl State {
    async fn mount(
        platform: Option<&Platform>,
        input: &ExportInput,
        epoch: Option<OffsetDateTime>,
        cx: &ExportContext,
    ) -> Result<Self, ExportError> {
        let reference = match platform {
            Some(platform) => input.find(&platform.id),
            None => input.reference.as_ref(),
        };
        let (mounted, empty) = mount(reference, cx).await?;
        Ok(Self {
            id: platform
                .map(|platform| platform.id.clone())
                .unwrap_or_default(),
            epoch,
            mounted,
            _empty: empty,
        })
    }

    fn path(&self) -> &Path {
        self.mounted.path()
    }

    /// `linux_amd64`.
    fn folder(&self) -> String {
        self.id.replace('/', "_")
    }

    fn close(self) -> Result<(), ExportError> {
        self.mounted.close().map_err(ExportError::cache)
    }
}

async fn mount(
    reference: Option<&ImmutableRef>,
    cx: &ExportContext,
) -> Result<(MountedDir, Option<MutableRef>), ExportError> {
    let failed = ExportError::cache;
    match reference {
        Some(reference) => {
            let local = reference.localize(&manifest::filler(cx)).await;
            Ok((local.map_err(failed)?.mount().await.map_err(failed)?, None))
        }
        None => {
            let empty = cx.cache.new_mutable(None, RecordOptions::default()).await;
            let empty = empty.map_err(failed)?;
            Ok((empty.mount().await.map_err(failed)?, Some(empty)))
        }
    }
}

/// Several platforms in one folder must not have the same file.
async fn refuse_overwriting(states: &[State]) -> Result<(), ExportError> {
    let places: Vec<_> = states
        .iter()
        .map(|state| (state.id.clone(), state.path().to_owned()))
        .collect();
    let check = move || {
        let mut seen: HashMap<PathBuf, String> = HashMap::new();
        for (id, root) in places {
            for entry in tree::walk(&root)? {
                if entry.is_dir {
                    continue;
                }
                if let Some(first) = seen.insert(entry.path.clone(), id.clone()) {
                    return Err(ExportError::Overwrite {
                        path: entry.path,
                        first,
                        second: id,
                    });
                }
            }
        }
        Ok(())
    };
    let done = tokio::task::spawn_blocking(check).await;
    done.map_err(|_| ExportError::Interrupted {
        attempt: "comparing the platforms' files",
    })?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(key: &str, value: &str) -> Attrs {
        Attrs::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn attributes_are_read() {
        let split = LocalExporter::new(attrs("platform-split", "false"), 0).unwrap();
        assert_eq!(split.options.split, Some(false));
        assert!(LocalExporter::new(attrs("platform-split", "x"), 0).is_err());
        assert!(LocalExporter::new(attrs("mode", "copy"), 0).is_ok());
        let delete = |mode| LocalExporter::new(attrs("mode", mode), 0).map(|made| made.delete);
        assert!(delete(" Delete").unwrap() && !delete("").unwrap());
        assert_eq!(
            delete("backup").unwrap_err().to_string(),
            "invalid local exporter mode \"backup\""
        );
        let multi = TarExporter::new(attrs("multi-platform", "1"), 0).unwrap();
        assert_eq!(multi.options.split, Some(true));
    }
}
