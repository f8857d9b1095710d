//! Jobs as their users see them: sharing, giving up, failing, panicking.
#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use cooper_progress::{Collect, Discard, Event};
use cooper_solver::{
    CacheDep, CacheMap, ContentKey, Digest, Domain, Edge, Job, Op, OpContext, OpError, SolveError,
    Solver, SolverConfig, Vertex, VertexOptions,
};
use tokio::sync::Notify;

struct Words;

impl Domain for Words {
    type Output = String;
    type Job = &'static str;
}

/// What a test sees of an operation, and how it lets it go on.
#[derive(Default)]
struct Stage {
    begun: AtomicUsize,
    dropped: AtomicUsize,
    entered: Notify,
    go: Notify,
}

enum Act {
    Say(&'static str),
    Wait(Arc<Stage>),
    Fail,
    Panic,
    NameJobs,
}

struct Step(Act);

/// The content of a text is its length, as far as these tests care.
struct Text;

#[async_trait]
impl ContentKey<Words> for Text {
    async fn content_key(&self, _: &OpContext<Words>, input: &String) -> Result<Digest, OpError> {
        Ok(format!("sha256:{:064x}", input.len()).parse()?)
    }
}

struct OnDrop<'a>(&'a Stage);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Op<Words> for Step {
    async fn cache_map(&self, cx: &OpContext<Words>, _: usize) -> Result<CacheMap<Words>, OpError> {
        let by_content = |_| CacheDep {
            content: Some(Arc::new(Text) as Arc<dyn ContentKey<Words>>),
            selector: None,
        };
        Ok(CacheMap {
            digest: cx.vertex().digest.clone(),
            deps: cx.vertex().inputs.iter().map(by_content).collect(),
            last: true,
        })
    }

    async fn execute(
        &self,
        cx: &OpContext<Words>,
        inputs: &[String],
    ) -> Result<Vec<String>, OpError> {
        let mut words = inputs.to_vec();
        match &self.0 {
            Act::Say(word) => words.push((*word).to_owned()),
            Act::Wait(stage) => {
                stage.begun.fetch_add(1, Ordering::SeqCst);
                let _guard = OnDrop(stage);
                stage.entered.notify_one();
                stage.go.notified().await;
                words.push("waited".to_owned());
            }
            Act::Fail => return Err("no luck".into()),
            Act::Panic => panic!("on purpose"),
            Act::NameJobs => {
                words.extend(cx.jobs().iter().map(|job| job.to_string()));
            }
        }
        Ok(vec![words.join(" ")])
    }
}

fn vertex(letter: char, act: Act, inputs: &[&Arc<Vertex<Words>>]) -> Arc<Vertex<Words>> {
    let digest: Digest = format!("sha256:{}", letter.to_string().repeat(64))
        .parse()
        .unwrap();
    let edge = |input: &&Arc<Vertex<Words>>| Edge {
        vertex: input.digest.clone(),
        index: 0,
    };
    Arc::new(Vertex {
        digest,
        name: letter.to_string(),
        inputs: inputs.iter().map(edge).collect(),
        op: Arc::new(Step(act)),
        options: VertexOptions::default(),
    })
}

async fn build(job: &Job<Words>, graph: &[Arc<Vertex<Words>>]) -> Result<String, SolveError> {
    let edge = Edge {
        vertex: graph.last().unwrap().digest.clone(),
        index: 0,
    };
    job.build(graph.to_vec(), edge).await
}

fn solver() -> Solver<Words> {
    Solver::new(SolverConfig::in_memory())
}

#[tokio::test]
async fn two_jobs_share_an_execution_and_one_may_leave() {
    let (solver, stage) = (solver(), Arc::new(Stage::default()));
    let graph = [vertex('a', Act::Wait(stage.clone()), &[])];
    let first = solver.job("first", Arc::new(Discard));
    let second = solver.job("second", Arc::new(Discard));
    let leaver = tokio::spawn({
        let graph = graph.clone();
        async move { build(&first, &graph).await }
    });
    stage.entered.notified().await;
    let stayer = build(&second, &graph);
    tokio::pin!(stayer);
    assert!(is_pending(&mut stayer).await, "it waits");
    leaver.abort();
    assert!(leaver.await.unwrap_err().is_cancelled());
    stage.go.notify_one();
    assert_eq!(stayer.await.unwrap(), "waited");
    assert_eq!(stage.begun.load(Ordering::SeqCst), 1);
}

/// Polls once and lets everything else run; whether it is still pending.
async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
    let pending = tokio::time::timeout(Duration::from_millis(50), future);
    pending.await.is_err()
}

#[tokio::test]
async fn branches_that_meet_one_by_one_are_built_at_the_same_time() {
    let solver = solver();
    let stages = [Arc::new(Stage::default()), Arc::new(Stage::default())];
    let a = vertex('a', Act::Wait(stages[0].clone()), &[]);
    let b = vertex('b', Act::Wait(stages[1].clone()), &[]);
    let first = vertex('c', Act::Say("first"), &[&a]);
    let both = vertex('d', Act::Say("both"), &[&first, &b]);
    let job = solver.job("only", Arc::new(Discard));
    let graph = [a, b, first, both];
    let meet = async {
        for stage in &stages {
            stage.entered.notified().await;
        }
        for stage in &stages {
            stage.go.notify_one();
        }
    };
    let limit = Duration::from_secs(10);
    let met = tokio::time::timeout(limit, async { tokio::join!(build(&job, &graph), meet) });
    let (built, ()) = met.await.expect("neither waits for the other");
    assert_eq!(built.unwrap(), "waited first waited both");
}

/// Waits until an operation of the stage was dropped so often.
async fn given_up(stage: &Stage, times: usize) {
    let gone = async {
        while stage.dropped.load(Ordering::SeqCst) < times {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone)
        .await
        .expect("what nobody needs is given up");
}

#[tokio::test]
async fn a_job_that_ends_takes_its_execution_with_it() {
    let (solver, stage) = (solver(), Arc::new(Stage::default()));
    let graph = [vertex('a', Act::Wait(stage.clone()), &[])];
    let job = solver.job("only", Arc::new(Discard));
    let building = tokio::spawn(async move { build(&job, &graph).await });
    stage.entered.notified().await;
    building.abort();
    given_up(&stage, 1).await;
    while solver.load().await != (0, 0) {
        tokio::task::yield_now().await;
    }
}

/// How a vertex was last seen.
fn last_seen(sink: &Collect, name: &str) -> cooper_progress::Vertex {
    let seen = sink.take().into_iter().filter_map(|event| match event {
        Event::Vertex(vertex) if vertex.name == name => Some(vertex),
        _ => None,
    });
    seen.last().unwrap()
}

/// A job goes on that brought the same vertex and asked for something else: it sees that the
/// vertex was given up, and may still have it built.
#[tokio::test]
async fn what_is_only_listed_by_another_job_is_given_up() {
    let (solver, stage) = (solver(), Arc::new(Stage::default()));
    let waits = vertex('a', Act::Wait(stage.clone()), &[]);
    let other = vertex('b', Act::Say("other"), &[]);
    let seen = Arc::new(Collect::default());
    let lists = solver.job("lists", seen.clone());
    let both = [waits.clone(), other];
    assert_eq!(build(&lists, &both).await.unwrap(), "other");
    let asks = solver.job("asks", Arc::new(Discard));
    let graph = [waits.clone()];
    let asking = tokio::spawn(async move { build(&asks, &graph).await });
    stage.entered.notified().await;
    asking.abort();
    given_up(&stage, 1).await;
    assert_eq!(solver.load().await, (2, 0), "listed still");
    assert_eq!(last_seen(&seen, "a").error, "context canceled");
    stage.go.notify_one();
    assert_eq!(build(&lists, &[waits]).await.unwrap(), "waited");
    let vertex = last_seen(&seen, "a");
    assert!(vertex.completed.is_some() && vertex.error.is_empty());
    assert_eq!(stage.begun.load(Ordering::SeqCst), 2);
}

/// A request of several of one job: what the others need goes on.
#[tokio::test]
async fn a_request_that_is_dropped_takes_only_what_it_alone_needs() {
    let (solver, alone, shared) = (solver(), Arc::<Stage>::default(), Arc::<Stage>::default());
    let both = vertex('a', Act::Wait(shared.clone()), &[]);
    let one = vertex('b', Act::Wait(alone.clone()), &[]);
    let first = [
        both.clone(),
        one.clone(),
        vertex('c', Act::Say("first"), &[&both, &one]),
    ];
    let second = [both.clone(), vertex('d', Act::Say("second"), &[&both])];
    let job = solver.job("only", Arc::new(Discard));
    let stays = build(&job, &second);
    tokio::pin!(stays);
    {
        let goes = build(&job, &first);
        tokio::pin!(goes);
        assert!(is_pending(&mut goes).await && is_pending(&mut stays).await);
    }
    given_up(&alone, 1).await;
    assert_eq!(shared.dropped.load(Ordering::SeqCst), 0);
    shared.go.notify_one();
    assert_eq!(stays.await.unwrap(), "waited second");
    // Asked for again it is begun again, and the rest is there.
    alone.go.notify_one();
    assert_eq!(build(&job, &first).await.unwrap(), "waited waited first");
    assert_eq!(alone.begun.load(Ordering::SeqCst), 2);
    assert_eq!(shared.begun.load(Ordering::SeqCst), 1);
}

/// One of two inputs fails: the other one is not carried out for nothing, although another job
/// that failed too keeps the vertices.
#[tokio::test]
async fn a_failure_gives_up_what_was_begun_beside_it() {
    let (solver, stage) = (solver(), Arc::new(Stage::default()));
    let waits = vertex('a', Act::Wait(stage.clone()), &[]);
    let fails = vertex('b', Act::Fail, &[]);
    let top = vertex('c', Act::Say("top"), &[&waits, &fails]);
    let job = solver.job("only", Arc::new(Discard));
    let error = build(&job, &[waits.clone(), fails, top]).await.unwrap_err();
    assert_eq!(error.to_string(), "no luck");
    let begun = stage.begun.load(Ordering::SeqCst);
    given_up(&stage, begun).await;
    assert_eq!(solver.load().await, (3, 0));
    stage.go.notify_one();
    assert_eq!(build(&job, &[waits]).await.unwrap(), "waited");
}

#[tokio::test]
async fn a_failure_names_the_vertex_and_those_who_wait_for_it_see_it() {
    let solver = solver();
    let fails = vertex('a', Act::Fail, &[]);
    let next = vertex('b', Act::Say("never"), &[&fails]);
    let sink = Arc::new(Collect::default());
    let job = solver.job("job", sink.clone());
    let error = build(&job, &[fails.clone(), next]).await.unwrap_err();
    let SolveError::Op { vertex, source, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(
        (vertex, source.to_string()),
        (fails.digest.clone(), "no luck".into())
    );
    let shown = sink.take().into_iter().any(|event| {
        matches!(event, Event::Vertex(shown) if shown.digest == fails.digest
            && shown.error == "no luck" && shown.completed.is_some())
    });
    assert!(shown, "the user sees it");
}

#[tokio::test]
async fn a_panic_fails_its_build_and_no_other() {
    let solver = solver();
    let job = solver.job("job", Arc::new(Discard));
    let error = build(&job, &[vertex('a', Act::Panic, &[])])
        .await
        .unwrap_err();
    assert!(matches!(error, SolveError::Op { .. }), "{error}");
    let other = vertex('b', Act::Say("fine"), &[]);
    assert_eq!(build(&job, &[other]).await.unwrap(), "fine");
}

#[tokio::test]
async fn an_operation_sees_who_needs_it() {
    let solver = solver();
    let job = solver.job("me", Arc::new(Discard));
    let named = build(&job, &[vertex('a', Act::NameJobs, &[])]).await;
    assert_eq!(named.unwrap(), "me");
}

#[tokio::test]
async fn a_graph_without_its_input_is_refused() {
    let solver = solver();
    let job = solver.job("job", Arc::new(Discard));
    let input = vertex('a', Act::Say("x"), &[]);
    let output = vertex('b', Act::Say("y"), &[&input]);
    let error = build(&job, &[output]).await.unwrap_err();
    assert!(matches!(error, SolveError::MissingVertex { digest } if digest == input.digest));
}
