//! Doing the actions of a file operation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cooper_cache::{ImmutableRef, LocalRef, MountedDir, MutableRef, RecordOptions, Written};
use cooper_proto::pb::{self, file_action::Action, user_opt::User};
use cooper_solver::OpContext;
use cooper_sys::Root;
use futures::future::try_join_all;

use super::act::{Scene, act, owner};
use super::paths::{Failure, reason};
use super::plan::{Plan, plan};
use super::{FileOp, owner as owners};
use crate::env::{Build, Output, localize, sessions};
use crate::{FailedFiles, FileActionError, OpsError};

/// A state on the way.
enum State {
    /// It may be read and built upon.
    Done(ImmutableRef, LocalRef),
    /// The next action changes it.
    Open(MutableRef),
}

impl FileOp {
    pub(super) async fn run(
        &self,
        cx: &OpContext<Build>,
        inputs: &[Output],
    ) -> Result<Vec<Output>, OpsError> {
        let plan = plan(&self.op.actions, inputs.len())?;
        let inputs = try_join_all(
            inputs
                .iter()
                .enumerate()
                .map(|(index, input)| localize(&self.env, cx, &self.inputs, index, input)),
        )
        .await?;
        let _leave = self.env.acquire().await;
        let mut work = Work {
            op: self,
            cx,
            inputs,
            states: self.op.actions.iter().map(|_| None).collect(),
        };
        for place in &plan.order {
            let state = work.action(*place, &plan).await?;
            work.states[*place] = Some(state);
        }
        plan.outputs
            .iter()
            .map(|place| match &work.states[*place] {
                Some(State::Done(output, _)) => Ok(Some(output.clone())),
                _ => Err(OpsError::invalid("an output was not made")),
            })
            .collect()
    }
}

struct Work<'a> {
    op: &'a FileOp,
    cx: &'a OpContext<Build>,
    inputs: Vec<Option<LocalRef>>,
    states: Vec<Option<State>>,
}

impl Work<'_> {
    /// Does one action on the state that it takes.
    async fn action(&mut self, place: usize, plan: &Plan) -> Result<State, OpsError> {
        let file_action = &self.op.op.actions[place];
        let action = file_action
            .action
            .clone()
            .ok_or_else(|| OpsError::invalid("invalid action type <nil>"))?;
        let mut roots = Roots::default();
        if let Action::Copy(_) = &action {
            roots.source = Some(self.mount(file_action.secondary_input).await?);
        }
        for input in names(owner(&action)) {
            // A name without an input is an error that is worded where it is looked up.
            if input >= 0 {
                let mounted = self.mount(input).await?;
                roots.owners.insert(input, mounted);
            }
        }
        let target = self.target(file_action.input).await?;
        let target = self.change(place, target, roots, action).await?;
        if !plan.keep[place] {
            return Ok(State::Open(target));
        }
        let done = target.commit().await?;
        let cx = self.cx;
        let env = &self.op.env;
        let local = env.localize(&done, &sessions(cx), cx.progress()).await?;
        Ok(State::Done(done, local))
    }

    /// What an action is done to: a new state over the one that it takes, or that one itself.
    async fn target(&mut self, input: i64) -> Result<MutableRef, OpsError> {
        if let Ok(index) = usize::try_from(input)
            && let Some(place) = index.checked_sub(self.inputs.len())
            && let Some(State::Open(_)) = self.states[place]
            && let Some(State::Open(open)) = self.states[place].take()
        {
            return Ok(open);
        }
        let options = RecordOptions {
            description: self.op.name.clone(),
            ..RecordOptions::default()
        };
        let parent = self.local(input)?;
        let cache = &self.op.env.cache;
        Ok(cache.new_mutable(parent, options).await?)
    }

    /// The state with this number; `None` is scratch.
    fn local(&self, index: i64) -> Result<Option<&LocalRef>, OpsError> {
        let Ok(index) = usize::try_from(index) else {
            return Ok(None);
        };
        if let Some(input) = self.inputs.get(index) {
            return Ok(input.as_ref());
        }
        match self.states.get(index - self.inputs.len()) {
            Some(Some(State::Done(_, local))) => Ok(Some(local)),
            _ => Err(OpsError::invalid(format!("invalid input index {index}"))),
        }
    }

    /// A state that is read.
    async fn mount(&self, index: i64) -> Result<Mounted, OpsError> {
        if let Some(local) = self.local(index)? {
            return Ok(Mounted {
                dir: local.mount().await?,
                _empty: None,
            });
        }
        let cache = &self.op.env.cache;
        let empty = cache.new_mutable(None, RecordOptions::default()).await?;
        Ok(Mounted {
            dir: empty.mount().await?,
            _empty: Some(empty),
        })
    }

    /// Does the action on a thread that may block. What it works with goes along and comes
    /// back: if nobody waits any more the thread ends it, not we behind its back.
    async fn change(
        &self,
        place: usize,
        target: MutableRef,
        roots: Roots,
        action: Action,
    ) -> Result<MutableRef, OpsError> {
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let flag = stop.0.clone();
        let mounted = target.mount().await?;
        let written = Written::to([&target]);
        let work = move || {
            let done = roots.change(&mounted, &action, &flag);
            drop((roots, mounted));
            (target, done)
        };
        let changing = tokio::task::spawn_blocking(work);
        let aborted = |_| OpsError::Aborted {
            attempt: "changing files",
        };
        tokio::pin!(changing);
        let (target, done) = tokio::select! {
            done = &mut changing => done.map_err(aborted)?,
            outgrown = written.outgrown() => {
                stop.0.store(true, Ordering::Relaxed);
                // Its file system is not mounted any more when it has ended.
                drop(changing.await.map_err(aborted)?);
                return Err(outgrown.into());
            }
        };
        // That tells more than how the action failed for it.
        written.check().await?;
        match done {
            Ok(()) => Ok(target),
            Err(message) => Err(self.failed(place, message, target).await.into()),
        }
    }

    /// What the operation took, and what the action left of what it worked on. That it failed is
    /// what matters: what cannot be kept is left out.
    async fn failed(&self, index: usize, message: Failure, target: MutableRef) -> FileActionError {
        let inputs = self.inputs.iter();
        let mut files = FailedFiles {
            inputs: inputs.map(|input| input.as_deref().cloned()).collect(),
            mounts: vec![None; self.states.len()],
        };
        // A state of the same operation that it read, too.
        let read = self.op.op.actions[index].secondary_input;
        let read = usize::try_from(read).ok();
        let read = read.and_then(|read| read.checked_sub(self.inputs.len()));
        if let Some(read) = read
            && let Some(Some(State::Done(done, _))) = self.states.get(read)
        {
            files.mounts[read] = Some(done.clone());
        }
        match target.commit().await {
            Ok(left) => files.mounts[index] = Some(left),
            Err(error) => tracing::warn!(%error, "the files of a failed action were not kept"),
        }
        FileActionError {
            index,
            message,
            files: Box::new(files),
        }
    }
}

/// Inputs in which owners are looked up.
fn names(owner: Option<&pb::ChownOpt>) -> Vec<i64> {
    let both = owner.into_iter().flat_map(|o| [&o.user, &o.group]);
    both.filter_map(|name| match name.as_ref()?.user.as_ref()? {
        User::ByName(name) => Some(name.input),
        User::ById(_) => None,
    })
    .collect()
}

/// A state that is read.
struct Mounted {
    dir: MountedDir,
    /// Scratch has nothing in it: a state of its own that goes with it.
    _empty: Option<MutableRef>,
}

/// What an action reads.
#[derive(Default)]
struct Roots {
    source: Option<Mounted>,
    owners: BTreeMap<i64, Mounted>,
}

impl Roots {
    fn change(
        &self,
        target: &MountedDir,
        action: &Action,
        stop: &AtomicBool,
    ) -> Result<(), Failure> {
        let target = open(target)?;
        let source = match &self.source {
            Some(mounted) => Some(open(&mounted.dir)?),
            None => None,
        };
        let mut owner_roots = BTreeMap::new();
        for (input, mounted) in &self.owners {
            owner_roots.insert(*input, open(&mounted.dir)?);
        }
        let owner = match owner(action) {
            Some(owner) => Some(owners::ids(owner, |input| owner_roots.get(&input))?),
            None => None,
        };
        let scene = Scene {
            target: &target,
            source: source.as_ref(),
            owner,
            stop,
        };
        act(&scene, action)
    }
}

fn open(dir: &MountedDir) -> Result<Root, Failure> {
    Root::open(dir.path()).map_err(|error| format!("open /: {}", reason(&error)))
}

/// Tells the thread that nobody waits for it any more.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
