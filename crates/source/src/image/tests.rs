use std::collections::BTreeMap;
use std::sync::Arc;

use cooper_content::digest_of;
use cooper_llb::platform;
use cooper_progress::{Collect, Event, VertexProgress};
use cooper_registry::{HostConfig, Registry};
use serde_json::json;

use super::*;
use crate::testing::{Answer, Place, Server, nobody, place};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image with two layers whose blobs nobody asks for.
struct Image {
    index: Digest,
    diff_ids: Vec<Digest>,
}

/// Serves the image `app:latest` as an index for amd64; `salt` changes the index alone.
fn publish(server: &Server, salt: &str) -> Image {
    let blob = |name: &str| digest_of(name.as_bytes());
    let diff_ids = vec![blob("diff-1"), blob("diff-2")];
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string();
    let config_digest = digest_of(config.as_bytes());
    let layer = |name| json!({"mediaType": LAYER, "digest": blob(name), "size": 10});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest,
            "size": config.len(),
        },
        "layers": [layer("blob-1"), layer("blob-2")],
    })
    .to_string();
    let manifest_digest = digest_of(manifest.as_bytes());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "annotations": {"salt": salt},
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": manifest_digest,
            "size": manifest.len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    })
    .to_string();
    let index_digest = digest_of(index.as_bytes());
    let put = |path: String, media_type: &str, text: &str| {
        let digest = digest_of(text.as_bytes());
        let answer = Answer::ok(text)
            .with("Content-Type", media_type)
            .with("Docker-Content-Digest", digest.as_ref());
        server.put(&format!("/v2/app/{path}"), answer);
    };
    put("manifests/latest".into(), INDEX, &index);
    put(format!("manifests/{index_digest}"), INDEX, &index);
    put(format!("manifests/{manifest_digest}"), MANIFEST, &manifest);
    put(
        format!("blobs/{config_digest}"),
        "application/octet-stream",
        &config,
    );
    Image {
        index: index_digest,
        diff_ids,
    }
}

fn resolver(place: &Place, server: &Server) -> ImageResolver {
    let host = HostConfig {
        http: Some(true),
        ..HostConfig::default()
    };
    let registry = Registry::new(BTreeMap::from([(server.host.clone(), host)]));
    ImageResolver::new(registry, place.content.clone())
}

fn open(
    place: &Place,
    server: &Server,
    name: &str,
    attrs: &[(&str, &str)],
) -> Result<Arc<dyn Instance>, SourceError> {
    let source = ImageSource::new(place.cache.clone(), resolver(place, server));
    let attrs = attrs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let id = Identifier::parse(
        &format!("docker-image://{}/{name}", server.host),
        attrs.collect(),
        platform::parse("linux/amd64").unwrap(),
    );
    source.open(id?)
}

#[tokio::test]
async fn equal_images_have_another_first_key_and_the_same_second() {
    let (place, server) = (place().await, Server::start().await);
    let image = publish(&server, "a");
    let first = open(&place, &server, "app:latest", &[]).unwrap();
    let sink = Arc::new(Collect::default());
    let cx = SourceContext {
        progress: VertexProgress::new(digest_of(b"vertex"), sink.clone()),
        ..nobody()
    };
    let keys = [
        first.cache_key(&cx, 0).await.unwrap(),
        first.cache_key(&cx, 1).await.unwrap(),
    ];
    assert!(!keys[0].last && keys[1].last);
    assert_eq!(keys[0].pin, image.index.to_string());
    let text = format!(
        r#"{{"Digest":"{}","OS":"linux","Arch":"amd64"}}"#,
        image.index
    );
    assert_eq!(keys[0].key, digest_of(text.as_bytes()).to_string());
    let chain = chain_id(&image.diff_ids).unwrap();
    assert_eq!(keys[1].key, chain.to_string());
    let shown: Vec<_> = sink
        .take()
        .into_iter()
        .filter_map(|event| match event {
            Event::Status(status) => Some((status.id, status.completed.is_some())),
            _ => None,
        })
        .collect();
    let id = format!("resolve {}/app:latest", server.host);
    assert_eq!(shown, [(id.clone(), false), (id, true)]);

    let output = first.snapshot(&cx).await.unwrap().unwrap();
    assert!(!output.is_local());
    assert_eq!(output.chain().len(), 2);
    let layer = output.layer().unwrap();
    assert_eq!(layer.diff_id, image.diff_ids[1]);
    let source = format!("{}/app:latest@{}", server.host, image.index);
    assert_eq!(layer.sources, [source]);

    publish(&server, "b");
    let second = open(&place, &server, "app:latest", &[]).unwrap();
    assert_ne!(second.cache_key(&cx, 0).await.unwrap().key, keys[0].key);
    assert_eq!(second.cache_key(&cx, 1).await.unwrap().key, keys[1].key);
    assert_eq!(second.snapshot(&cx).await.unwrap().unwrap(), output);
    place.cache.close().await;
}

#[tokio::test]
async fn a_digest_that_is_known_needs_no_registry() {
    let (place, server) = (place().await, Server::start().await);
    let image = publish(&server, "a");
    let resolver = resolver(&place, &server);
    let amd64 = platform::parse("linux/amd64").unwrap();
    let none = nobody().sessions;
    let name = format!("{}/app:latest", server.host);
    let config = |name: String| {
        let (resolver, amd64, none) = (&resolver, &amd64, &none);
        async move {
            let mode = ResolveMode::Default;
            resolver.config(&name, amd64, mode, none).await
        }
    };
    let (one, other) = tokio::join!(config(name.clone()), config(name.clone()));
    let found = one.unwrap();
    assert_eq!(found, other.unwrap());
    assert_eq!(found.digest, image.index);
    assert!(String::from_utf8_lossy(&found.config).contains("PATH=/bin"));
    let asked = server.requests();
    let of_the_tag = asked.iter().filter(|request| request.ends_with("/latest"));
    assert_eq!(of_the_tag.count(), 1, "one request for both: {asked:?}");

    let pinned = config(format!("{name}@{}", image.index)).await.unwrap();
    assert_eq!(pinned, found);
    assert!(server.requests().is_empty());

    let arm = platform::parse("linux/arm64").unwrap();
    let mode = ResolveMode::Default;
    let error = resolver.config(&name, &arm, mode, &none).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no match for platform in manifest")
    );
    let missing = format!("{}/app:missing", server.host);
    assert!(config(missing).await.unwrap_err().is_not_found());
    place.cache.close().await;
}

#[tokio::test]
async fn attributes_limit_pin_and_are_checked() {
    let (place, server) = (place().await, Server::start().await);
    let image = publish(&server, "a");
    let limited = open(&place, &server, "app", &[(LAYER_LIMIT, "1")]).unwrap();
    let key = limited.cache_key(&nobody(), 1).await.unwrap();
    assert_eq!(key.key, image.diff_ids[0].to_string());
    let output = limited.snapshot(&nobody()).await.unwrap().unwrap();
    assert_eq!(output.chain().len(), 1);
    let too_many = open(&place, &server, "app", &[(LAYER_LIMIT, "3")]).unwrap();
    let error = too_many.cache_key(&nobody(), 0).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer limit 3 is greater than the number of layers in the image 2"
    );
    let wrong = digest_of(b"wrong").to_string();
    let pinned = open(&place, &server, "app", &[(CHECKSUM, &wrong)]).unwrap();
    let error = pinned.cache_key(&nobody(), 0).await.unwrap_err();
    assert!(error.to_string().contains("does not match"), "{error}");
    let right = image.index.to_string();
    let pinned = open(&place, &server, "app", &[(CHECKSUM, &right)]).unwrap();
    assert!(pinned.cache_key(&nobody(), 0).await.is_ok());
    for attr in [
        (LAYER_LIMIT, "0"),
        (LAYER_LIMIT, "x"),
        (RESOLVE_MODE, "never"),
        (RECORD_TYPE, "other"),
        (CHECKSUM, "abc"),
    ] {
        assert!(open(&place, &server, "app", &[attr]).is_err(), "{attr:?}");
    }
    place.cache.close().await;
}

#[test]
fn chains_are_those_of_the_specification() {
    let digest = |byte: u8| digest_of(&[byte]);
    assert_eq!(chain_id([]), None);
    assert_eq!(chain_id([&digest(1)]), Some(digest(1)));
    let both = digest_of(format!("{} {}", digest(1), digest(2)).as_bytes());
    assert_eq!(chain_id([&digest(1), &digest(2)]), Some(both));
}
