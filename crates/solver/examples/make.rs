//! A `make` of texts that does nothing twice: the solver with operations of one's own.
//!
//! `cargo run -p cooper-solver --example make`
//!
//! Two sources are joined, their words counted and reported. When a word is replaced by another
//! the count is the same: what comes after it is found in the cache by its content.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cooper_progress::Discard;
use cooper_solver::{
    CacheDep, CacheMap, ContentKey, Digest, Domain, Edge, Op, OpContext, OpError, SolveError,
    Solver, SolverConfig, Vertex, VertexOptions,
};
use sha2::Digest as _;

/// Results are texts, and what a job brings along is a list of what ran for it.
struct Texts;

impl Domain for Texts {
    type Output = String;
    type Job = Mutex<Vec<String>>;
}

enum Step {
    Source(String),
    Join,
    Count,
    Report,
}

fn digest(text: &str) -> Digest {
    let hash = hex::encode(sha2::Sha256::digest(text));
    let digest = format!("sha256:{hash}").parse();
    digest.expect("a hash in hexadecimal digits is a digest")
}

/// What a step sees of an input: all of its text.
struct Content;

#[async_trait]
impl ContentKey<Texts> for Content {
    async fn content_key(&self, _: &OpContext<Texts>, text: &String) -> Result<Digest, OpError> {
        Ok(digest(text))
    }
}

#[async_trait]
impl Op<Texts> for Step {
    async fn cache_map(&self, cx: &OpContext<Texts>, _: usize) -> Result<CacheMap<Texts>, OpError> {
        let what = match self {
            Self::Source(text) => format!("source {text}"),
            Self::Join => "join".to_owned(),
            Self::Count => "count".to_owned(),
            Self::Report => "report".to_owned(),
        };
        let by_content = || CacheDep {
            selector: None,
            content: Some(Arc::new(Content) as Arc<dyn ContentKey<Texts>>),
        };
        Ok(CacheMap {
            digest: digest(&what),
            deps: cx.vertex().inputs.iter().map(|_| by_content()).collect(),
            last: true,
        })
    }

    async fn execute(
        &self,
        cx: &OpContext<Texts>,
        inputs: &[String],
    ) -> Result<Vec<String>, OpError> {
        for ran in cx.jobs() {
            let mut ran = ran.lock().unwrap_or_else(PoisonError::into_inner);
            ran.push(cx.vertex().name.clone());
        }
        let text = inputs.join(" ");
        Ok(vec![match self {
            Self::Source(text) => text.clone(),
            Self::Join => text,
            Self::Count => text.split_whitespace().count().to_string(),
            Self::Report => format!("there are {text} words"),
        }])
    }
}

/// A vertex is named by the digest of what it does and of what it takes.
fn vertex(name: &str, step: Step, inputs: &[&Arc<Vertex<Texts>>]) -> Arc<Vertex<Texts>> {
    let mut id = name.to_owned();
    if let Step::Source(text) = &step {
        id.push_str(text);
    }
    let mut edges = Vec::new();
    for input in inputs {
        id.push_str(input.digest.as_ref());
        edges.push(Edge {
            vertex: input.digest.clone(),
            index: 0,
        });
    }
    Arc::new(Vertex {
        digest: digest(&id),
        name: name.to_owned(),
        inputs: edges,
        op: Arc::new(step),
        options: VertexOptions::default(),
    })
}

/// Builds the report on two texts; also says what ran for it.
async fn build(
    solver: &Solver<Texts>,
    texts: [&str; 2],
) -> Result<(String, Vec<String>), SolveError> {
    let [first, second] = texts.map(|text| Step::Source(text.to_owned()));
    let first = vertex("first", first, &[]);
    let second = vertex("second", second, &[]);
    let both = vertex("join", Step::Join, &[&first, &second]);
    let count = vertex("count", Step::Count, &[&both]);
    let report = vertex("report", Step::Report, &[&count]);
    let edge = Edge {
        vertex: report.digest.clone(),
        index: 0,
    };
    let job = solver.job(Mutex::default(), Arc::new(Discard));
    let graph = vec![first, second, both, count, report];
    let text = job.build(graph, edge).await?;
    let mut ran = job.data().lock().unwrap_or_else(PoisonError::into_inner);
    Ok((text, std::mem::take(&mut *ran)))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().build()?;
    runtime.block_on(async {
        let solver = Solver::new(SolverConfig::in_memory());
        let builds = [
            ("the first time", ["oak and", "iron"]),
            ("once more", ["oak and", "iron"]),
            ("with another word", ["oak and", "ash"]),
        ];
        let mut all = Vec::new();
        for (when, texts) in builds {
            let (text, ran) = build(&solver, texts).await?;
            println!("{when}: {text}; {} steps ran", ran.len());
            all.push(ran);
        }
        all[0].sort();
        assert_eq!(all[0], ["count", "first", "join", "report", "second"]);
        assert_eq!(all[1], [""; 0]);
        // The report is on a count, and that is the same.
        assert_eq!(all[2], ["second", "join", "count"]);
        Ok(())
    })
}
