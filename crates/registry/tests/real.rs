//! Against a real registry.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cooper_content::{ContentStore, Fetch, MemoryContentStore, digest_of};
use cooper_registry::{Descriptor, MediaType, PushOptions, Pushed, Reference, Registry};
use cooper_session::Group;
use tokio::io::AsyncReadExt;

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(
        MediaType::ImageLayerGzip,
        bytes.len() as u64,
        digest_of(bytes),
    )
}

#[tokio::test]
async fn what_is_pushed_is_pulled() {
    let server = cooper_testkit::Registry::start();
    let registry = Registry::new(BTreeMap::new());
    let none = Group::none();
    let content = MemoryContentStore::default();
    let image = |name: &str| -> Reference { format!("{}/{name}", server.host()).parse().unwrap() };
    let layer: Vec<u8> = (0..3_000_000u32).map(|n| (n % 253) as u8).collect();
    content.write_all(&layer).await.unwrap();
    let blob = descriptor(&layer);

    let sent = Arc::new(AtomicU64::new(0));
    let seen = sent.clone();
    let mut options = PushOptions {
        progress: Some(Arc::new(move |bytes| seen.store(bytes, Ordering::Relaxed))),
        ..PushOptions::default()
    };
    let first = image("a/first:v1");
    let push = registry
        .push_blob(&first, &blob, &content, &none, &options)
        .await;
    assert_eq!(push.unwrap(), Pushed::Sent);
    assert_eq!(sent.load(Ordering::Relaxed), 3_000_000);
    let push = registry
        .push_blob(&first, &blob, &content, &none, &options)
        .await;
    assert_eq!(push.unwrap(), Pushed::Exists);

    // Another repository borrows it, without the bytes being here.
    options.mount_from = vec![image("b/second"), first.clone()];
    let empty = MemoryContentStore::default();
    let second = image("b/second:v2");
    let push = registry
        .push_blob(&second, &blob, &empty, &none, &options)
        .await;
    let from = "a/first".to_owned();
    assert_eq!(push.unwrap(), Pushed::Mounted { from });
    let third = image("c/third");
    assert!(
        registry
            .mount_blob(&third, blob.digest(), &second, &none)
            .await
            .unwrap()
    );
    assert!(
        registry
            .has_blob(&third, blob.digest(), &none)
            .await
            .unwrap()
    );
    let unknown = digest_of(b"unknown");
    assert!(
        !registry
            .mount_blob(&third, &unknown, &second, &none)
            .await
            .unwrap()
    );

    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    content.write_all(config).await.unwrap();
    let push = registry
        .push_blob(&first, &descriptor(config), &content, &none, &options)
        .await;
    push.unwrap();
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{oci}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"{}","digest":"{}","size":{}}}]}}"#,
        digest_of(config),
        config.len(),
        MediaType::ImageLayerGzip,
        blob.digest(),
        blob.size(),
        oci = MediaType::ImageManifest,
    );
    let bytes = Bytes::from(manifest);
    let oci = MediaType::ImageManifest;
    for _ in 0..2 {
        let pushed = registry
            .push_manifest(&first, bytes.clone(), &oci, &none)
            .await
            .unwrap();
        assert_eq!(registry.resolve(&first, &none).await.unwrap(), pushed);
        let pinned = first.clone().with_digest(pushed.digest());
        assert_eq!(registry.resolve(&pinned, &none).await.unwrap(), pushed);
        assert_eq!(
            registry.manifest(&pinned, &pushed, &none).await.unwrap(),
            bytes
        );
    }
    let untagged = first.clone().without_tag_and_digest();
    let changed = Bytes::from(String::from_utf8_lossy(&bytes).replace("{\"schema", "{ \"schema"));
    let pushed = registry
        .push_manifest(&untagged, changed, &oci, &none)
        .await
        .unwrap();
    let pinned = untagged.with_digest(pushed.digest());
    assert_eq!(registry.resolve(&pinned, &none).await.unwrap(), pushed);
    assert_ne!(
        registry.resolve(&first, &none).await.unwrap(),
        pushed,
        "the tag stays"
    );

    for offset in [0, 1_234_567, 3_000_000 - 1] {
        let fetcher = registry.fetcher(&second, &none);
        let mut bytes = Vec::new();
        let mut reader = fetcher.fetch(&blob, offset).await.unwrap();
        reader.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes == layer[usize::try_from(offset).unwrap()..]);
    }
    let missing = registry
        .resolve(&image("no/such"), &none)
        .await
        .unwrap_err();
    assert_eq!(
        missing.to_string(),
        format!("{}/no/such:latest: not found", server.host())
    );
    // With HTTPS tried first, which this server does not speak.
    let insecure = registry.insecure();
    insecure.resolve(&first, &none).await.unwrap();
    let (fourth, plain) = (image("d"), PushOptions::default());
    let push = insecure
        .push_blob(&fourth, &blob, &content, &none, &plain)
        .await;
    assert_eq!(push.unwrap(), Pushed::Sent);
}
