use super::*;
use crate::FetchFor;
use async_trait::async_trait;
use cooper_cache::{CacheConfig, CacheManager, RecordOptions};
use cooper_content::{ContentError, Descriptor, Fetch, MemoryContentStore};
use cooper_progress::VertexProgress;
use cooper_snapshot::{NativeSnapshotter, OverlaySnapshotter, Snapshotter};
use cooper_store::Store;
use std::path::Path;
use tokio::io::AsyncRead;

struct Nowhere;

impl FetchFor for Nowhere {
    fn fetch_for(&self, _: &Layer) -> Vec<Arc<dyn Fetch>> {
        Vec::new()
    }
}

/// Gives the blobs of another store.
struct From(Arc<dyn ContentStore>);

impl FetchFor for From {
    fn fetch_for(&self, _: &Layer) -> Vec<Arc<dyn Fetch>> {
        vec![Arc::new(Self(self.0.clone()))]
    }
}

#[async_trait]
impl Fetch for From {
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, ContentError> {
        let bytes = self.0.read_all(descriptor.digest(), 1 << 30).await?;
        let rest = bytes.slice(usize::try_from(offset).unwrap()..);
        Ok(Box::new(std::io::Cursor::new(rest)))
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    cache: CacheManager,
    content: Arc<dyn ContentStore>,
}

async fn bench(overlay: bool) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::in_memory().unwrap();
    let root = dir.path().join("s");
    let snapshotter: Arc<dyn Snapshotter> = if overlay {
        let options = OverlaySnapshotter::probe(&root).unwrap();
        Arc::new(OverlaySnapshotter::open(&root, store.clone(), options).unwrap())
    } else {
        Arc::new(NativeSnapshotter::open(&root, store.clone()).unwrap())
    };
    let content: Arc<dyn ContentStore> = Arc::new(MemoryContentStore::default());
    let cache = CacheManager::open(CacheConfig {
        snapshotter,
        store,
        dropped: Vec::new(),
        content: content.clone(),
        mounts: dir.path().join("mounts"),
    })
    .await
    .unwrap();
    Bench {
        _dir: dir,
        cache,
        content,
    }
}

impl Bench {
    fn context(&self, fetch: impl FetchFor + 'static) -> ExportContext {
        ExportContext {
            content: self.content.clone(),
            compression: CompressionOptions::default(),
            fill: Filler::new(
                self.content.clone(),
                Arc::new(fetch),
                VertexProgress::discard(),
            ),
        }
    }

    async fn step(&self, parent: Option<&ImmutableRef>, write: impl FnOnce(&Path)) -> ImmutableRef {
        let parent = parent.map(|parent| parent.local().unwrap());
        let options = RecordOptions::default();
        let work = self
            .cache
            .new_mutable(parent.as_ref(), options)
            .await
            .unwrap();
        let mounted = work.mount().await.unwrap();
        write(mounted.path());
        mounted.close().unwrap();
        work.commit().await.unwrap()
    }

    /// Three refs: files, a deletion, and nothing.
    async fn chain(&self) -> ImmutableRef {
        let base = self
            .step(None, |dir| {
                std::fs::create_dir(dir.join("d")).unwrap();
                std::fs::write(dir.join("d/kept"), "kept").unwrap();
                std::fs::write(dir.join("d/gone"), "gone").unwrap();
            })
            .await;
        let second = self
            .step(Some(&base), |dir| {
                std::fs::remove_file(dir.join("d/gone")).unwrap()
            })
            .await;
        self.step(Some(&second), |_| {}).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_is_exported_and_comes_back_elsewhere() {
    for overlay in [true, false] {
        let here = bench(overlay).await;
        let top = here.chain().await;
        let context = here.context(Nowhere);
        let layers = export(&top, &context).await.unwrap();
        assert_eq!(layers.len(), 3);
        assert_eq!(layers[2].diff_id.as_ref(), crate::EMPTY_DIFF_ID);
        let noted: Vec<_> = top.chain().iter().map(|one| one.layer().unwrap()).collect();
        assert_eq!(noted, layers);
        for layer in &layers {
            assert!(here.content.info(layer.descriptor.digest()).await.is_ok());
        }
        // The same again, out of what is noted.
        assert_eq!(export(&top, &context).await.unwrap(), layers);

        let there = bench(!overlay).await;
        let mut lazy: Option<ImmutableRef> = None;
        for layer in &layers {
            let next = there
                .cache
                .get_by_blob(lazy.as_ref(), layer.clone(), RecordOptions::default())
                .await;
            lazy = Some(next.unwrap());
        }
        let lazy = lazy.unwrap();
        let context = there.context(From(here.content.clone()));
        // Lazy layers are named and stay where they are.
        assert_eq!(export(&lazy, &context).await.unwrap(), layers);
        assert_eq!(there.content.walk().await.unwrap(), []);
        ensure_blob(&layers[0], &context).await.unwrap();
        assert_eq!(there.content.walk().await.unwrap().len(), 1);
        let local = lazy.localize(&context.fill).await.unwrap();
        let mounted = local.mount().await.unwrap();
        assert_eq!(
            std::fs::read(mounted.path().join("d/kept")).unwrap(),
            b"kept"
        );
        assert!(!mounted.path().join("d/gone").exists());
        drop((mounted, local, lazy, top));
        there.cache.close().await;
        here.cache.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_converted_when_that_is_forced() {
    let here = bench(true).await;
    let top = here.chain().await;
    let mut context = here.context(Nowhere);
    let gzip = export(&top, &context).await.unwrap();
    context.compression.kind = Compression::Zstd;
    assert_eq!(export(&top, &context).await.unwrap(), gzip, "not forced");
    context.compression.force = true;
    let zstd = export(&top, &context).await.unwrap();
    for (old, new) in gzip.iter().zip(&zstd) {
        assert_eq!(old.diff_id, new.diff_id);
        assert_eq!(
            Compression::of(new.descriptor.media_type()),
            Some(Compression::Zstd)
        );
        assert!(here.content.info(new.descriptor.digest()).await.is_ok());
    }
    let noted = top.layer().unwrap();
    assert_eq!(noted, gzip[2], "the ref is still known by its own layer");
    drop(top);
    here.cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_exports_make_a_layer_once() {
    let here = bench(true).await;
    let top = here.chain().await;
    let context = here.context(Nowhere);
    let (one, two) = tokio::join!(export(&top, &context), export(&top, &context));
    assert_eq!(one.unwrap(), two.unwrap());
    drop(top);
    here.cache.close().await;
}
