//! The trace of a build.

use std::collections::BTreeMap;

use cooper_testkit::{Client, Context, Registry, leak, push_busybox};
use serde_json::Value;

use crate::read;

#[test]
fn a_trace_says_how_long_each_part_of_a_step_took() {
    let watch = leak::Watch::begin();
    let registry = Registry::start();
    let base = push_busybox(&registry);
    let context = Context::new()
        .file(
            "Dockerfile",
            format!(
                "FROM {base}\nRUN --mount=type=secret,id=s,env=S sleep 0.3 && test -n \"$S\"\n"
            ),
        )
        .file("secret", "a-value-of-nobody-else");
    let out = tempfile::tempdir().unwrap();
    let trace = out.path().join("trace.json");
    let client = Client::alone();
    let secret = format!("id=s,src={}", context.path().join("secret").display());
    let args = ["--trace", trace.to_str().unwrap(), "--secret", &secret];
    client.build(&context, &args).success();
    let text = read(&trace);
    assert!(!text.contains("a-value-of-nobody-else"));
    let events: Vec<Value> = serde_json::from_str(&text).unwrap();
    // When each span was first entered and last left, in microseconds.
    let mut spans: BTreeMap<&str, [f64; 2]> = BTreeMap::new();
    for event in &events {
        let (Some(name), Some(at)) = (event["name"].as_str(), event["ts"].as_f64()) else {
            continue;
        };
        let span = spans.entry(name).or_insert([at, at]);
        *span = [span[0].min(at), span[1].max(at)];
    }
    let took = |name: &str| {
        let span = spans.get(name);
        let [begin, end] = span.unwrap_or_else(|| panic!("no {name} in {text}"));
        end - begin
    };
    for part in [
        "inputs",
        "prepare mounts",
        "start",
        "mount root",
        "create",
        "commit",
    ] {
        assert!(took(part) <= took("exec"), "{part}: {text}");
    }
    assert!(took("run") > 250_000.0, "{text}");
    assert!(took("exec") > took("run"), "{text}");
    assert!(events.iter().any(|event| {
        let args = event["args"]["args"].as_str();
        args.is_some_and(|args| args.contains("sleep 0.3"))
    }));
    drop((client, registry, context, out));
    watch.check();
}
