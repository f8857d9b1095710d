//! From a graph to the solver's vertices.

use std::sync::Arc;

use cooper_llb as llb;
use cooper_progress::ProgressGroup;
use cooper_solver::{Edge, Op, Vertex, VertexOptions};

use crate::OpsError;
use crate::env::{Build, Env, InputVertex, InputVertices};
use crate::exec::ExecOp;
use crate::file::FileOp;
use crate::merge::{DiffOp, Layers, MergeOp};
use crate::passthrough::PassthroughOp;
use crate::source::SourceOp;

/// What a job of the solver is given to build.
pub type Vertices = Vec<Arc<Vertex<Build>>>;

/// The vertices of `graph`, and the edge to build.
///
/// # Errors
/// An operation that this builder does not have, or a source that cannot be understood.
pub fn vertices(graph: &llb::Graph, env: &Arc<Env>) -> Result<(Vertices, Edge), OpsError> {
    let edge = |output: &llb::Output| Edge {
        vertex: graph.vertex(output.vertex).digest.clone(),
        index: output.index,
    };
    let mut vertices = Vec::with_capacity(graph.vertices().len());
    for vertex in graph.vertices() {
        vertices.push(Arc::new(Vertex {
            digest: vertex.digest.clone(),
            name: vertex.name.clone(),
            inputs: vertex.inputs.iter().map(edge).collect(),
            op: op(graph, vertex, env)?,
            options: options(vertex),
        }));
    }
    Ok((vertices, edge(&graph.root())))
}

fn op(
    graph: &llb::Graph,
    vertex: &llb::Vertex,
    env: &Arc<Env>,
) -> Result<Arc<dyn Op<Build>>, OpsError> {
    let env = env.clone();
    let inputs = inputs(graph, vertex);
    Ok(match &vertex.op {
        llb::Op::Source(source) => Arc::new(SourceOp {
            instance: env.sources.open(source, &vertex.platform)?,
            env,
        }),
        llb::Op::Exec(exec) => Arc::new(ExecOp::new(
            env,
            exec.clone(),
            vertex.platform.clone(),
            inputs,
        )?),
        llb::Op::File(file) => {
            Arc::new(FileOp::new(env, file.clone(), vertex.name.clone(), inputs))
        }
        llb::Op::Merge(merge) => Arc::new(MergeOp {
            layers: layers(env, vertex, inputs),
            op: merge.clone(),
        }),
        llb::Op::Diff(diff) => Arc::new(DiffOp {
            layers: layers(env, vertex, inputs),
            op: *diff,
        }),
        llb::Op::Passthrough(passthrough) => Arc::new(PassthroughOp {
            env: env.clone(),
            op: passthrough.clone(),
            inputs: inputs.len(),
        }),
        llb::Op::Build(_) => return Err(OpsError::invalid("build op is not supported")),
    })
}

/// Makes the caches begin anew that steps mount which are to be built anew.
///
/// # Cancel safety
/// When the future is dropped some may have been forgotten.
pub async fn forget_caches(graph: &llb::Graph, env: &Env) -> Result<(), OpsError> {
    let anew = graph
        .vertices()
        .iter()
        .filter(|vertex| vertex.ignore_cache());
    let mounts = anew.flat_map(|vertex| match &vertex.op {
        llb::Op::Exec(exec) => exec.mounts.as_slice(),
        _ => &[],
    });
    let ids = mounts.filter_map(|mount| Some(mount.cache_opt.as_ref()?.id.as_str()));
    let ids: Vec<_> = ids.collect();
    if !ids.is_empty() {
        env.mounts.forget_caches(&ids).await?;
    }
    Ok(())
}

fn layers(env: Arc<Env>, vertex: &llb::Vertex, inputs: InputVertices) -> Layers {
    Layers {
        env,
        name: vertex.name.clone(),
        inputs,
    }
}

fn inputs(graph: &llb::Graph, vertex: &llb::Vertex) -> InputVertices {
    let show = |input: &llb::Input| {
        let vertex = graph.vertex(input.vertex);
        let of = |input: &llb::Input| graph.vertex(input.vertex).digest.clone();
        let mut inputs: Vec<_> = vertex.inputs.iter().map(of).collect();
        inputs.dedup();
        InputVertex {
            digest: vertex.digest.clone(),
            name: vertex.name.clone(),
            inputs,
            progress_group: progress_group(vertex),
        }
    };
    vertex.inputs.iter().map(show).collect()
}

fn progress_group(vertex: &llb::Vertex) -> Option<ProgressGroup> {
    let group = vertex.metadata.progress_group.as_ref()?;
    Some(ProgressGroup {
        id: group.id.clone(),
        name: group.name.clone(),
        weak: group.weak,
    })
}

fn options(vertex: &llb::Vertex) -> VertexOptions {
    VertexOptions {
        ignore_cache: vertex.ignore_cache(),
        export_cache: vertex.export_cache(),
        description: vertex.metadata.description.clone(),
        progress_group: progress_group(vertex),
    }
}
