//! An image from a registry: lazy until somebody reads it, and shown where users look for it.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use cooper_llb::digest_of;
use cooper_progress::Event;
use cooper_proto::pb;
use cooper_registry::{HostConfig, Registry};
use cooper_source::{ImageResolver, ImageSource, SourceRegistry};

use super::{Bench, Graph, action, bench, copy, files, mkfile};
use crate::Env;

/// Serves `app:latest` with one layer; the second value is what was asked for so far.
fn serve() -> (String, Arc<Mutex<Vec<String>>>) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "dir/file", &b"hello"[..])
        .unwrap();
    let tar = tar.into_inner().unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar).unwrap();
    let blob = gzip.finish().unwrap();
    let config = format!(
        r#"{{"rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest_of(&tar)
    );
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = |kind: &str, bytes: &[u8]| {
        let (digest, size) = (digest_of(bytes), bytes.len());
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
        )
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{manifest_type}","config":{},"layers":[{}]}}"#,
        descriptor("config.v1+json", config.as_bytes()),
        descriptor("layer.v1.tar+gzip", &blob),
    );
    let answers = HashMap::from([
        (
            format!("/v2/app/manifests/{}", digest_of(manifest.as_bytes())),
            manifest.clone().into_bytes(),
        ),
        ("/v2/app/manifests/latest".to_owned(), manifest.into_bytes()),
        (
            format!("/v2/app/blobs/{}", digest_of(config.as_bytes())),
            config.into_bytes(),
        ),
        (format!("/v2/app/blobs/{}", digest_of(&blob)), blob),
    ]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    // Ends with the process of the test.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(first)) = lines.next() else {
                continue;
            };
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let mut words = first.split(' ');
            let (method, path) = (words.next().unwrap(), words.next().unwrap());
            log.lock().unwrap().push(path.to_owned());
            let (status, body) = match answers.get(path) {
                Some(body) => (200, body.as_slice()),
                None => (404, &b""[..]),
            };
            let head = format!(
                "HTTP/1.1 {status} x\r\nConnection: close\r\nContent-Type: {manifest_type}\r\n\
                 Docker-Content-Digest: {}\r\nContent-Length: {}\r\n\r\n",
                digest_of(body),
                body.len()
            );
            let body = if method == "HEAD" { &b""[..] } else { body };
            let _ = stream.write_all(&[head.as_bytes(), body].concat());
        }
    });
    (host, asked)
}

/// With the source of images, from that registry.
async fn bench_of(host: &str) -> Bench {
    let mut bench = bench().await;
    let config = HostConfig {
        http: Some(true),
        ..HostConfig::default()
    };
    let registry = Registry::new(BTreeMap::from([(host.to_owned(), config)]));
    let old = Arc::try_unwrap(bench.env).unwrap_or_else(|_| panic!("nobody else has it yet"));
    let resolver = ImageResolver::new(registry.clone(), old.content.clone());
    let images = ImageSource::new(old.cache.clone(), resolver);
    bench.env = Arc::new(Env {
        registry,
        sources: SourceRegistry::new([Arc::new(images) as _]),
        ..old
    });
    bench
}

fn image(graph: &mut Graph, host: &str) -> usize {
    let source = pb::SourceOp {
        identifier: format!("docker-image://{host}/app:latest"),
        ..pb::SourceOp::default()
    };
    graph.add(pb::op::Op::Source(source), &[])
}

#[tokio::test]
async fn layers_are_fetched_when_they_are_read_and_shown_at_the_image() {
    let (host, asked) = serve();
    let bench = bench_of(&host).await;
    let mut graph = Graph::default();
    let image = image(&mut graph, &host);
    let digest = digest_of(&graph.0[image]);
    let copied = graph.file(vec![action(-1, 0, 0, copy("/dir/*", "/out/"))], &[image]);
    let found = bench.solve(&graph, copied).await.unwrap();
    assert_eq!(found, files(&[("out/file", "hello")]));
    assert_eq!(asked.lock().unwrap().len(), 4, "{asked:?}");

    let events = bench.sink.take();
    let of_the_image = events.iter().filter_map(|event| match event {
        Event::Status(status) if status.vertex == digest && status.completed.is_some() => {
            Some(status.id.clone())
        }
        _ => None,
    });
    let statuses: Vec<_> = of_the_image.collect();
    assert_eq!(statuses[0], format!("resolve {host}/app:latest"));
    assert!(
        statuses[1..].iter().any(|id| id.contains("sha256:")),
        "{statuses:?}"
    );
    let last = events.iter().rev().find_map(|event| match event {
        Event::Vertex(vertex) if vertex.digest == digest => Some(vertex.clone()),
        _ => None,
    });
    assert!(last.unwrap().completed.is_some());
}

/// What nobody reads stays where it is, whatever it is laid over and taken apart from.
#[tokio::test]
async fn layers_that_nobody_reads_are_only_described() {
    let (host, asked) = serve();
    let bench = bench_of(&host).await;
    let mut graph = Graph::default();
    let image = image(&mut graph, &host);
    let file = graph.file(vec![action(-1, -1, 0, mkfile("/one", "1"))], &[]);
    let merge = pb::MergeOp {
        inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }],
    };
    let merged = graph.add(pb::op::Op::Merge(merge), &[(file, 0), (image, 0)]);
    let diff = pb::DiffOp {
        lower: Some(pb::LowerDiffInput { input: 0 }),
        upper: Some(pb::UpperDiffInput { input: 1 }),
    };
    let apart = graph.add(pb::op::Op::Diff(diff), &[(file, 0), (merged, 0)]);
    let (merged, apart) = (
        bench.output(&graph, merged).await.unwrap(),
        bench.output(&graph, apart).await.unwrap(),
    );
    let alone = bench.output(&graph, image).await.unwrap();
    assert_eq!(apart, alone, "it is the image again");
    let layers = bench.layers(&merged).await;
    let of_image = bench.layers(&alone).await;
    assert_eq!(layers.len(), 2);
    assert_eq!(layers[1..], of_image[..]);
    let source = &of_image[0].sources[0];
    assert!(
        source.starts_with(&format!("{host}/app:latest@")),
        "{source}"
    );
    let blobs = || {
        let asked = asked.lock().unwrap();
        asked.iter().filter(|path| path.contains("/blobs/")).count()
    };
    // The image's configuration.
    assert_eq!(blobs(), 1);
    let found = bench.read(merged.as_ref().unwrap()).await;
    assert_eq!(found, files(&[("dir/file", "hello"), ("one", "1")]));
    assert_eq!(blobs(), 2);
}
