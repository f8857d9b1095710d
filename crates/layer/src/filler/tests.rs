use super::*;
use cooper_cache::{CacheConfig, CacheManager, ImmutableRef, RecordOptions};
use cooper_content::{Descriptor, MemoryContentStore, digest_of};
use cooper_progress::{Collect, Event};
use cooper_snapshot::NativeSnapshotter;
use cooper_store::Store;
use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;
use tokio::io::AsyncRead;
use tokio::sync::Barrier;

/// Has blobs, and says them as it is told.
#[derive(Default)]
struct Place {
    blobs: HashMap<String, Vec<u8>>,
    /// Ends each body after so many bytes.
    cut: Option<usize>,
    /// All bodies but those of these many first ones wait for each other.
    together: Option<Arc<Barrier>>,
    asked: AtomicUsize,
    offsets: Mutex<Vec<u64>>,
}

#[async_trait]
impl Fetch for Place {
    async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>, ContentError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.offsets.lock().unwrap().push(offset);
        let digest = descriptor.digest();
        let blob = self.blobs.get(digest.as_ref());
        let blob = blob.ok_or_else(|| ContentError::NotFound {
            digest: digest.clone(),
        })?;
        if let Some(barrier) = &self.together {
            barrier.wait().await;
        }
        let mut rest = blob[usize::try_from(offset).unwrap()..].to_vec();
        if let Some(cut) = self.cut {
            rest.truncate(cut);
        }
        Ok(Box::new(std::io::Cursor::new(rest)))
    }
}

struct Places(Vec<Arc<Place>>);

impl FetchFor for Places {
    fn fetch_for(&self, _: &Layer) -> Vec<Arc<dyn Fetch>> {
        let places = self.0.iter().cloned();
        places.map(|place| place as Arc<dyn Fetch>).collect()
    }
}

/// A layer with one file named after `number`, and its blob.
fn layer(number: usize) -> (Layer, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let content = vec![u8::try_from(number).unwrap(); 300_000];
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    let path = format!("file-{number}");
    tar.append_data(&mut header, path, &content[..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let blob = crate::compress::block(crate::Compression::Zstd, None, &tar);
    let layer = Layer {
        descriptor: Descriptor::new(
            oci_spec::image::MediaType::ImageLayerZstd,
            blob.len() as u64,
            digest_of(&blob),
        ),
        diff_id: digest_of(&tar),
        sources: Vec::new(),
    };
    (layer, blob)
}

fn place(layers: &[(Layer, Vec<u8>)]) -> Place {
    let blobs = layers
        .iter()
        .map(|(layer, blob)| (layer.descriptor.digest().to_string(), blob.clone()));
    Place {
        blobs: blobs.collect(),
        ..Place::default()
    }
}

struct Bench {
    content: Arc<dyn ContentStore>,
    sink: Arc<Collect>,
    filler: Filler,
}

fn bench(places: Vec<Arc<Place>>) -> Bench {
    let content: Arc<dyn ContentStore> = Arc::new(MemoryContentStore::default());
    let sink = Arc::new(Collect::default());
    let progress = VertexProgress::new(digest_of(b"vertex"), sink.clone());
    Bench {
        filler: Filler::new(content.clone(), Arc::new(Places(places)), progress),
        content,
        sink,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_unpacked_while_it_arrives_and_kept() {
    let layers = [layer(1)];
    let source = Arc::new(place(&layers));
    let bench = bench(vec![source.clone()]);
    for _ in 0..2 {
        let dir = tempfile::tempdir().unwrap();
        let mounts = [Mount::bind(dir.path(), false)];
        bench.filler.unpack(&layers[0].0, &mounts).await.unwrap();
        let file = std::fs::read(dir.path().join("file-1")).unwrap();
        assert_eq!(file.len(), 300_000);
    }
    assert_eq!(
        source.asked.load(Ordering::Relaxed),
        1,
        "the second time it is here"
    );
    assert!(
        bench
            .content
            .info(layers[0].0.descriptor.digest())
            .await
            .is_ok()
    );
    let digest = layers[0].0.descriptor.digest().to_string();
    let ended: Vec<_> = bench
        .sink
        .take()
        .into_iter()
        .filter_map(|event| match event {
            Event::Status(status) if status.completed.is_some() => {
                Some((status.id, status.current))
            }
            _ => None,
        })
        .collect();
    let size = i64::try_from(layers[0].1.len()).unwrap();
    let extracted = (format!("extracting {digest}"), 0);
    assert_eq!(ended, [(digest, size), extracted.clone(), extracted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_place_goes_on_where_the_last_one_broke() {
    let layers = [layer(1)];
    let broken = Arc::new(Place {
        cut: Some(5),
        ..place(&layers)
    });
    let whole = Arc::new(place(&layers));
    let bench = bench(vec![Arc::new(Place::default()), broken, whole.clone()]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [Mount::bind(dir.path(), false)];
    bench.filler.unpack(&layers[0].0, &mounts).await.unwrap();
    assert!(dir.path().join("file-1").exists());
    assert_eq!(*whole.offsets.lock().unwrap(), [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_fetched_is_used() {
    let layers = [layer(1)];
    let broken = Arc::new(Place {
        cut: Some(7),
        ..place(&layers)
    });
    let whole = Arc::new(place(&layers));
    let first = bench(vec![broken]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [Mount::bind(dir.path(), false)];
    let error = first
        .filler
        .unpack(&layers[0].0, &mounts)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("failed to copy sha256:"),
        "{error}"
    );
    let progress = VertexProgress::discard();
    let places = Arc::new(Places(vec![whole.clone()]));
    let second = Filler::new(first.content.clone(), places, progress);
    second.unpack(&layers[0].0, &mounts).await.unwrap();
    assert_eq!(*whole.offsets.lock().unwrap(), [7]);
    assert!(dir.path().join("file-1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_than_promised_are_refused_and_not_kept() {
    let (wanted, _) = layer(1);
    let (_, other) = layer(2);
    let mut lying = Place::default();
    lying
        .blobs
        .insert(wanted.descriptor.digest().to_string(), other);
    let bench = bench(vec![Arc::new(lying)]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [Mount::bind(dir.path(), false)];
    let error = bench.filler.unpack(&wanted, &mounts).await.unwrap_err();
    let text = format!("{error:?}");
    assert!(
        text.contains("DigestMismatch") || text.contains("SizeMismatch"),
        "{text}"
    );
    assert_eq!(bench.content.walk().await.unwrap(), []);

    let (mut layer, blob) = layer(3);
    let source = place(&[(layer.clone(), blob)]);
    layer.diff_id = digest_of(b"another tar");
    let bench = self::bench(vec![Arc::new(source)]);
    let error = bench.filler.unpack(&layer, &mounts).await.unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_unpacked_ends_the_download() {
    let bytes = b"not a tar at all".repeat(1000);
    let layer = Layer {
        descriptor: Descriptor::new(
            oci_spec::image::MediaType::ImageLayer,
            bytes.len() as u64,
            digest_of(&bytes),
        ),
        diff_id: digest_of(&bytes),
        sources: Vec::new(),
    };
    let bench = bench(vec![Arc::new(place(&[(layer.clone(), bytes)]))]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [Mount::bind(dir.path(), false)];
    let error = bench.filler.unpack(&layer, &mounts).await.unwrap_err();
    assert!(error.to_string().contains("invalid"), "{error}");
    let nowhere = self::bench(vec![]);
    let error = nowhere.filler.ensure_blob(&layer).await.unwrap_err();
    assert!(matches!(error, LayerError::NoSource { .. }), "{error}");
}

async fn cache(dir: &std::path::Path, content: Arc<dyn ContentStore>) -> CacheManager {
    let store = Store::in_memory().unwrap();
    let snapshotter = NativeSnapshotter::open(&dir.join("s"), store.clone()).unwrap();
    CacheManager::open(CacheConfig {
        snapshotter: Arc::new(snapshotter),
        store,
        dropped: Vec::new(),
        content,
        mounts: dir.join("mounts"),
    })
    .await
    .unwrap()
}

async fn chain(cache: &CacheManager, layers: &[(Layer, Vec<u8>)]) -> ImmutableRef {
    let mut top: Option<ImmutableRef> = None;
    for (layer, _) in layers {
        let options = RecordOptions::default();
        let next = cache
            .get_by_blob(top.as_ref(), layer.clone(), options)
            .await;
        top = Some(next.unwrap());
    }
    top.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_layers_of_a_chain_are_fetched_side_by_side() {
    let layers: Vec<_> = (1..=4).map(layer).collect();
    // None gives its first byte before all four are asked for.
    let source = Arc::new(Place {
        together: Some(Arc::new(Barrier::new(4))),
        ..place(&layers)
    });
    let bench = bench(vec![source.clone()]);
    let dir = tempfile::tempdir().unwrap();
    let cache = cache(dir.path(), bench.content.clone()).await;
    let top = chain(&cache, &layers).await;
    assert!(!top.is_local());
    let local = tokio::time::timeout(Duration::from_secs(20), top.localize(&bench.filler))
        .await
        .expect("they wait for each other")
        .unwrap();
    let mounted = local.mount().await.unwrap();
    let mut names: Vec<_> = std::fs::read_dir(mounted.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["file-1", "file-2", "file-3", "file-4"]);
    assert_eq!(source.asked.load(Ordering::Relaxed), 4, "each once");
    drop((mounted, local, top));
    cache.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_stops_the_unpacking() {
    let layers = [layer(1)];
    let never = Arc::new(Place {
        together: Some(Arc::new(Barrier::new(2))),
        ..place(&layers)
    });
    let bench = bench(vec![never]);
    let dir = tempfile::tempdir().unwrap();
    let mounts = [Mount::bind(dir.path(), false)];
    let unpacking = bench.filler.unpack(&layers[0].0, &mounts);
    assert!(
        tokio::time::timeout(Duration::from_millis(50), unpacking)
            .await
            .is_err()
    );
    // The ingest is free again, and the thread has ended: the runtime would wait for it.
    let name = Inner::name(&layers[0].0);
    let turn = tokio::time::timeout(Duration::from_secs(5), blob::turn(&name));
    drop(turn.await.unwrap());
    assert_eq!(bench.content.ingest(&name).await.unwrap().offset(), 0);
}
