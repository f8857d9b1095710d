//! Chains of toy steps that change from one build to the next.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cooper_progress::{Collect, Event};
use oci_spec::image::Digest;

use super::*;
use crate::{
    CacheDep, CacheMap, ContentKey, Domain, Edge, MemoryKeyStore, MemoryResults, Op, OpContext,
    OpError, Solver, SolverConfig, Vertex, VertexOptions,
};

struct Texts;
impl Domain for Texts {
    /// Files: a path and its content for each line.
    type Output = Arc<str>;
    type Job = ();
}

fn digest(text: &str) -> Digest {
    use sha2::Digest as _;
    let hash = hex::encode(sha2::Sha256::digest(text.as_bytes()));
    format!("sha256:{hash}").parse().unwrap()
}

/// A step: `source NAME FILES…`, `run NAME KEY=VALUE…`, `copy NAME`.
#[derive(Clone)]
struct Step {
    kind: &'static str,
    name: String,
    parts: Vec<(String, String)>,
    files: String,
    volatile: bool,
}

fn step(kind: &'static str, name: &str) -> Step {
    Step {
        kind,
        name: name.to_owned(),
        parts: Vec::new(),
        files: String::new(),
        volatile: false,
    }
}

impl Step {
    fn with(mut self, name: &str, value: &str) -> Self {
        self.parts.push((name.to_owned(), value.to_owned()));
        self
    }

    fn files(mut self, files: &str) -> Self {
        self.files = files.to_owned();
        self.volatile = true;
        self
    }

    fn text(&self) -> String {
        format!(
            "{} {} {:?} {}",
            self.kind, self.name, self.parts, self.files
        )
    }
}

#[async_trait]
impl Op<Texts> for Step {
    async fn cache_map(&self, cx: &OpContext<Texts>, _: usize) -> Result<CacheMap<Texts>, OpError> {
        let inputs = cx.vertex().inputs.len();
        let by_content = self.kind == "copy";
        let dep = || CacheDep {
            selector: None,
            content: by_content.then(|| Arc::new(Content) as _),
        };
        Ok(CacheMap {
            digest: digest(&self.text()),
            deps: (0..inputs).map(|_| dep()).collect(),
            last: true,
        })
    }

    fn describe(&self, _: &Vertex<Texts>) -> Option<Description> {
        let mut description = Description::new(self.kind, without_position(&self.name));
        for (name, value) in &self.parts {
            description.part(name, value);
        }
        description.volatile = self.volatile;
        Some(description)
    }

    async fn execute(
        &self,
        _: &OpContext<Texts>,
        inputs: &[Arc<str>],
    ) -> Result<Vec<Arc<str>>, OpError> {
        let below = inputs.first().map(|text| &**text).unwrap_or_default();
        let all = match self.kind {
            "copy" => below.to_owned(),
            "run" => format!("{below}{}\n", self.text()),
            _ => self.files.clone(),
        };
        Ok(vec![all.into()])
    }
}

struct Content;

#[async_trait]
impl ContentKey<Texts> for Content {
    async fn content_key(&self, _: &OpContext<Texts>, input: &Arc<str>) -> Result<Digest, OpError> {
        Ok(digest(input))
    }

    async fn files(&self, _: &OpContext<Texts>, input: &Arc<str>) -> Option<FileList> {
        let entry = |line: &str| {
            let (path, content) = line.split_once(' ').unwrap();
            FileEntry {
                path: path.to_owned(),
                digest: u64::from_str_radix(&short_digest(content.as_bytes()), 16).unwrap(),
                mode: None,
                closed: false,
            }
        };
        FileList::new(input.lines().map(entry))
    }
}

struct World {
    solver: Solver<Texts>,
    keys: Arc<MemoryKeyStore>,
}

impl World {
    fn new() -> Self {
        let keys = Arc::new(MemoryKeyStore::with_journal());
        let solver = Solver::new(SolverConfig {
            keys: keys.clone(),
            results: Arc::new(MemoryResults::default()),
        });
        Self { solver, keys }
    }

    /// Builds a chain, and says why its steps were not cached, each with its name.
    async fn build(&self, chain: &[Step]) -> Vec<String> {
        self.with(chain, &[]).await
    }

    async fn with(&self, chain: &[Step], anew: &[&str]) -> Vec<String> {
        let mut vertices: Vec<Arc<Vertex<Texts>>> = Vec::new();
        for step in chain {
            let below = vertices.last().map(|vertex| vertex.digest.clone());
            let id = format!("{below:?} {}", step.text());
            vertices.push(Arc::new(Vertex {
                digest: digest(&id),
                name: step.name.clone(),
                inputs: below
                    .into_iter()
                    .map(|vertex| Edge { vertex, index: 0 })
                    .collect(),
                op: Arc::new(step.clone()),
                options: VertexOptions {
                    ignore_cache: anew.contains(&step.name.as_str()),
                    ..VertexOptions::default()
                },
            }));
        }
        let edge = Edge {
            vertex: vertices.last().unwrap().digest.clone(),
            index: 0,
        };
        let seen = Arc::new(Collect::default());
        let job = self.solver.job((), seen.clone());
        job.explain();
        job.build(vertices, edge).await.unwrap();
        let told = job.explanations();
        let shown: Vec<_> = seen
            .take()
            .into_iter()
            .filter_map(|event| match event {
                Event::Status(status) => Some(status.id),
                _ => None,
            })
            .collect();
        let texts: Vec<_> = told.iter().map(|one| one.to_string()).collect();
        assert_eq!(shown, texts, "what is told is shown");
        told.iter()
            .map(|one| format!("{}: {}", one.name, one.cause))
            .collect()
    }
}

fn chain() -> Vec<Step> {
    vec![
        step("source", "[1/3] FROM a")
            .with("image", "a")
            .with("digest", "1"),
        step("run", "[2/3] RUN make").with("variable V", "1"),
        step("run", "[3/3] RUN test").with("platform", "x"),
    ]
}

#[tokio::test]
async fn the_first_difference_is_named_and_where_it_is() {
    type Change = fn(&mut Vec<Step>);
    let input = |step: &str, root: &str| format!("its input changed: {step}: {root}");
    let variable = r#"variable V changed from "1" to "2""#;
    let image = r#"digest changed from "1" to "2""#;
    let cases: Vec<(Change, Vec<String>)> = vec![
        (|_| {}, vec![]),
        (
            |c| c[2].parts[0].1 = "y".into(),
            vec![r#"[3/3] RUN test: platform changed from "x" to "y""#.into()],
        ),
        (
            |c| c[1].parts[0].1 = "2".into(),
            vec![
                format!("[2/3] RUN make: {variable}"),
                format!("[3/3] RUN test: {}", input("[2/3] RUN make", variable)),
            ],
        ),
        (
            |c| c[0].parts[1].1 = "2".into(),
            vec![
                format!("[1/3] FROM a: {image}"),
                format!("[2/3] RUN make: {}", input("[1/3] FROM a", image)),
                format!("[3/3] RUN test: {}", input("[1/3] FROM a", image)),
            ],
        ),
        (
            |c| c.insert(1, step("run", "[2/3] RUN quite another thing")),
            vec![
                "[2/3] RUN quite another thing: no earlier record of this step".into(),
                format!(
                    "[2/3] RUN make: {}",
                    input(
                        "[2/3] RUN quite another thing",
                        "no earlier record of this step"
                    )
                ),
                format!(
                    "[3/3] RUN test: {}",
                    input(
                        "[2/3] RUN quite another thing",
                        "no earlier record of this step"
                    )
                ),
            ],
        ),
        (
            |c| c.swap(1, 2),
            vec![
                "[3/3] RUN test: the order of steps changed: it came after [2/3] RUN make, it comes \
                 after [1/3] FROM a"
                    .into(),
                "[2/3] RUN make: the order of steps changed: it came after [1/3] FROM a, it comes \
                 after [3/3] RUN test"
                    .into(),
            ],
        ),
        (
            |c| drop(c.remove(1)),
            vec![
                "[3/3] RUN test: the order of steps changed: it came after [2/3] RUN make, it comes \
                 after [1/3] FROM a"
                    .into(),
            ],
        ),
    ];
    for (change, expected) in cases {
        let world = World::new();
        assert_eq!(world.build(&chain()).await.len(), 3);
        let mut changed = chain();
        change(&mut changed);
        assert_eq!(world.build(&changed).await, expected);
    }
}

#[tokio::test]
async fn what_was_pruned_and_what_is_built_anew_is_said() {
    let world = World::new();
    world.build(&chain()).await;
    // The results are named by their numbers.
    world.keys.prune("2", "the policy keepDuration");
    let told = world.build(&chain()).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let begin = "[3/3] RUN test: its record was pruned on ";
    let end = " UTC by the policy keepDuration";
    assert!(
        told[0].starts_with(begin) && told[0].ends_with(end),
        "{told:?}"
    );

    let told = world.with(&chain(), &["[2/3] RUN make"]).await;
    let anew = "the cache is not to be used for it (no-cache)";
    let expected = [
        format!("[2/3] RUN make: {anew}"),
        format!("[3/3] RUN test: its input changed: [2/3] RUN make: {anew}"),
    ];
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_file_that_changed_is_named() {
    let files = |files: &str| {
        vec![
            step("local", "files").files(files),
            step("copy", "[1/1] COPY . /"),
        ]
    };
    let world = World::new();
    let told = world.build(&files("/a 1\n/b 1")).await;
    assert_eq!(told, ["[1/1] COPY . /: no earlier record of this step"]);
    assert_eq!(world.build(&files("/a 1\n/b 1")).await, [""; 0]);
    let told = world.build(&files("/a 1\n/b 2")).await;
    assert_eq!(told, ["[1/1] COPY . /: file /b changed"]);
    let told = world.build(&files("/b 2\n/c 3")).await;
    assert_eq!(told, ["[1/1] COPY . /: file /a was removed, and 1 more"]);
}

#[tokio::test]
async fn who_did_not_ask_is_not_told() {
    let world = World::new();
    let all = Mutex::new(Vec::<String>::new());
    let chain = chain();
    let vertices: Vec<_> = chain
        .iter()
        .take(1)
        .map(|step| {
            Arc::new(Vertex {
                digest: digest(&step.text()),
                name: step.name.clone(),
                inputs: Vec::new(),
                op: Arc::new(step.clone()) as Arc<dyn Op<Texts>>,
                options: VertexOptions::default(),
            })
        })
        .collect();
    let seen = Arc::new(Collect::default());
    let job = world.solver.job((), seen.clone());
    let edge = Edge {
        vertex: vertices[0].digest.clone(),
        index: 0,
    };
    job.build(vertices, edge).await.unwrap();
    all.lock()
        .unwrap()
        .extend(seen.take().into_iter().filter_map(|event| match event {
            Event::Status(status) => Some(status.id),
            _ => None,
        }));
    assert!(all.lock().unwrap().is_empty());
    assert!(job.explanations().is_empty());
}

#[test]
fn long_values_stay_apart_and_many_parts_are_bounded() {
    let mut one = Description::new("run", &"s".repeat(5000));
    assert!(one.subject.len() <= MAX_VALUE + 24);
    one.part("empty", "");
    assert!(one.parts.is_empty());
    let long = "ä".repeat(1000);
    one.part("a", &format!("{long}1"));
    one.part("b", &format!("{long}2"));
    assert_ne!(one.parts[0].value, one.parts[1].value);
    for number in 0..10_000 {
        one.part(format!("part {number}"), "x");
    }
    let mut other = one.clone();
    assert_eq!(one.parts.len(), MAX_PARTS);
    other.part("one more", "y");
    assert_ne!(one.parts.last(), other.parts.last());
}

#[test]
fn positions_are_those_of_dockerfiles() {
    for (name, expected, rest) in [
        ("[2/5] RUN make", Some("2"), "RUN make"),
        ("[build 2/5] RUN make", Some("build 2"), "RUN make"),
        (
            "[linux/amd64 build 2/5] RUN a/b]",
            Some("linux/amd64 build 2"),
            "RUN a/b]",
        ),
        (
            "[internal] load build context",
            None,
            "[internal] load build context",
        ),
        ("[ -e /x ] && y", None, "[ -e /x ] && y"),
        ("make", None, "make"),
    ] {
        assert_eq!(position(name), expected, "{name}");
        assert_eq!(without_position(name), rest, "{name}");
    }
}

#[test]
fn times_are_those_that_users_read() {
    assert_eq!(date(1_780_495_323), "3 June 2026 at 14:02 UTC");
}
