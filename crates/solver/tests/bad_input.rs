//! Graphs and operations that are wrong: a clear error, and the rest goes on.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cooper_progress::Discard;
use cooper_solver::{
    CacheDep, CacheMap, ContentKey, Digest, Domain, Edge, Op, OpContext, OpError, SolveError,
    Solver, SolverConfig, Vertex, VertexOptions,
};

struct Numbers;

impl Domain for Numbers {
    type Output = u64;
    type Job = ();
}

/// Where an operation panics.
#[derive(Clone, Copy, PartialEq)]
enum Panics {
    Nowhere,
    Map,
    Content,
    Execute,
}

/// Adds its inputs and one.
struct Add {
    outputs: usize,
    panics: Panics,
}

struct Content(bool);

#[async_trait]
impl ContentKey<Numbers> for Content {
    async fn content_key(&self, _: &OpContext<Numbers>, input: &u64) -> Result<Digest, OpError> {
        assert!(!self.0, "on purpose");
        Ok(digest(*input))
    }
}

#[async_trait]
impl Op<Numbers> for Add {
    async fn cache_map(
        &self,
        cx: &OpContext<Numbers>,
        _: usize,
    ) -> Result<CacheMap<Numbers>, OpError> {
        assert!(self.panics != Panics::Map, "on purpose");
        let content = || -> Arc<dyn ContentKey<Numbers>> {
            Arc::new(Content(self.panics == Panics::Content))
        };
        let selector = Some(digest(7));
        let inputs = cx.vertex().inputs.iter();
        let deps = inputs.map(|_| CacheDep {
            selector: selector.clone(),
            content: Some(content()),
        });
        Ok(CacheMap {
            digest: cx.vertex().digest.clone(),
            deps: deps.collect(),
            last: true,
        })
    }

    async fn execute(&self, _: &OpContext<Numbers>, inputs: &[u64]) -> Result<Vec<u64>, OpError> {
        assert!(self.panics != Panics::Execute, "on purpose");
        Ok(vec![inputs.iter().sum::<u64>() + 1; self.outputs])
    }
}

fn digest(number: u64) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

fn edge(number: u64, index: usize) -> Edge {
    Edge {
        vertex: digest(number),
        index,
    }
}

fn vertex(number: u64, inputs: Vec<Edge>, outputs: usize, panics: Panics) -> Arc<Vertex<Numbers>> {
    Arc::new(Vertex {
        digest: digest(number),
        name: format!("step {number}"),
        inputs,
        op: Arc::new(Add { outputs, panics }),
        options: VertexOptions::default(),
    })
}

fn sound(number: u64, inputs: Vec<Edge>) -> Arc<Vertex<Numbers>> {
    vertex(number, inputs, 1, Panics::Nowhere)
}

/// What is wrong with the build of output `index` of the last vertex; another job, which shares
/// the solver, builds something sound at the same time, and the first one does afterwards.
async fn error(graph: Vec<Arc<Vertex<Numbers>>>, index: usize) -> SolveError {
    let solver = Solver::new(SolverConfig::in_memory());
    let wrong = solver.job((), Arc::new(Discard));
    let right = solver.job((), Arc::new(Discard));
    let last = graph.last().unwrap().digest.clone();
    let other = vec![sound(900, vec![]), sound(901, vec![edge(900, 0)])];
    let both = async {
        let wrong = wrong.build(
            graph,
            Edge {
                vertex: last,
                index,
            },
        );
        tokio::join!(wrong, right.build(other.clone(), edge(901, 0)))
    };
    let limit = Duration::from_secs(20);
    let (failed, built) = tokio::time::timeout(limit, both).await.expect("it ends");
    assert_eq!(built.unwrap(), 2);
    assert_eq!(wrong.build(other, edge(901, 0)).await.unwrap(), 2);
    drop((wrong, right));
    while solver.load().await != (0, 0) {
        tokio::task::yield_now().await;
    }
    failed.unwrap_err()
}

#[tokio::test]
async fn a_cycle_is_refused() {
    let graph = vec![
        sound(1, vec![edge(2, 0)]),
        sound(2, vec![edge(1, 0)]),
        sound(3, vec![edge(2, 0)]),
    ];
    let error = error(graph, 0).await;
    assert_eq!(
        error.to_string(),
        format!("the graph has no vertex {}", digest(2))
    );
    let itself = vec![sound(1, vec![edge(1, 0)])];
    let error = self::error(itself, 0).await;
    assert!(matches!(error, SolveError::MissingVertex { .. }), "{error}");
}

/// Two steps each of which takes a part of what the other gives, chosen by a selector and with a
/// key from its content: by what they look at it is no cycle, and yet neither can begin.
#[tokio::test]
async fn a_cycle_through_selectors_is_refused() {
    let part = |number, other, part| {
        vertex(
            number,
            vec![edge(0, 0), edge(other, part)],
            2,
            Panics::Nowhere,
        )
    };
    let graph = vec![
        sound(0, vec![]),
        part(1, 2, 1),
        part(2, 1, 0),
        sound(3, vec![edge(2, 1)]),
    ];
    let error = self::error(graph.clone(), 0).await;
    assert_eq!(
        error.to_string(),
        format!("the graph has no vertex {}", digest(2))
    );
    // Also when both are there already, for a job that brought them as something else.
    let solver = Solver::new(SolverConfig::in_memory());
    let job = solver.job((), Arc::new(Discard));
    let first = vec![
        sound(0, vec![]),
        part(1, 0, 0),
        vertex(2, vec![edge(0, 0), edge(1, 0)], 2, Panics::Nowhere),
    ];
    assert_eq!(job.build(first, edge(2, 1)).await.unwrap(), 5);
    let error = job.build(graph, edge(3, 0)).await.unwrap_err();
    assert!(matches!(error, SolveError::MissingVertex { .. }), "{error}");
}

#[tokio::test]
async fn an_output_that_does_not_exist_is_named() {
    let error = error(vec![sound(1, vec![])], 3).await;
    assert_eq!(
        error.to_string(),
        "step 1 has 1 outputs, number 3 was asked for"
    );
}

#[tokio::test]
async fn an_operation_with_too_few_outputs_fails_who_takes_them() {
    let few = vertex(1, vec![], 2, Panics::Nowhere);
    let takes = sound(2, vec![edge(1, 0), edge(1, 2)]);
    let error = error(vec![few, takes], 0).await;
    assert_eq!(
        error.to_string(),
        "step 1 has 2 outputs, number 2 was asked for"
    );
    let none = vertex(1, vec![], 0, Panics::Nowhere);
    let error = self::error(vec![none], 0).await;
    assert_eq!(
        error.to_string(),
        "step 1 has 0 outputs, number 0 was asked for"
    );
}

#[tokio::test]
async fn a_panic_is_an_error_of_its_vertex_wherever_it_is() {
    for panics in [Panics::Map, Panics::Content, Panics::Execute] {
        let wrong = vertex(2, vec![edge(1, 0)], 1, panics);
        let graph = vec![sound(1, vec![]), wrong, sound(3, vec![edge(2, 0)])];
        let error = error(graph, 0).await;
        let SolveError::Op { vertex, name, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!((vertex, name.as_str()), (&digest(2), "step 2"));
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}

#[tokio::test]
async fn ten_thousand_inputs_are_no_more_than_that() {
    const COUNT: u64 = 10_000;
    let solver = Solver::new(SolverConfig::in_memory());
    let mut graph: Vec<_> = (0..COUNT).map(|number| sound(number, vec![])).collect();
    let inputs = (0..COUNT).map(|number| edge(number, 0)).collect();
    graph.push(sound(COUNT, inputs));
    // The same input often, too.
    graph.push(sound(COUNT + 1, vec![edge(COUNT, 0); 10_000]));
    for _ in 0..2 {
        let job = solver.job((), Arc::new(Discard));
        let build = job.build(graph.clone(), edge(COUNT + 1, 0));
        let built = tokio::time::timeout(Duration::from_secs(60), build).await;
        assert_eq!(built.expect("in time").unwrap(), (COUNT + 1) * COUNT + 1);
    }
}
