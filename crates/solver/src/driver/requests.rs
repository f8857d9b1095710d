//! What jobs ask for.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Driver, Entry, Message};
use crate::core::{ByName, CacheId, Name, One, RequestId, Spec, VertexId};
use crate::shared::{JobId, Member, Shared};
use crate::{CacheSource, Domain, Edge, SolveError, Vertex};

/// A graph that a job asks for.
pub(crate) struct Request<D: Domain> {
    job: JobId,
    id: RequestId,
    vertices: Vec<Arc<Vertex<D>>>,
    /// Those of the vertices.
    names: Vec<Name>,
    edge: Edge,
    caches: Vec<Arc<dyn CacheSource<D>>>,
    reply: oneshot::Sender<Result<D::Output, SolveError>>,
}

impl<D: Domain> Request<D> {
    /// With what can be computed before the one task that all jobs share has it.
    pub(crate) fn new(
        job: JobId,
        id: RequestId,
        vertices: Vec<Arc<Vertex<D>>>,
        edge: Edge,
        caches: Vec<Arc<dyn CacheSource<D>>>,
        reply: oneshot::Sender<Result<D::Output, SolveError>>,
    ) -> Self {
        let names = vertices.iter();
        let names = names.map(|vertex| Name::of(vertex.digest.as_ref()));
        Self {
            job,
            id,
            names: names.collect(),
            vertices,
            edge,
            caches,
            reply,
        }
    }
}

impl<D: Domain> Driver<D> {
    pub(super) fn handle(&mut self, message: Message<D>) {
        match message {
            Message::NewJob {
                id,
                job,
                sink,
                explained,
            } => {
                let member = Member {
                    id,
                    job,
                    sink,
                    explained,
                };
                self.jobs.insert(id, Arc::new(member));
            }
            Message::EndJob { id } => {
                self.asked.retain(|request| request.job != id);
                let commands = self.core.end_job(id);
                self.carry_out(commands);
                self.jobs.remove(&id);
            }
            Message::Build(request) => self.asked.push_back(request),
            Message::CancelRequest { request } => {
                self.asked.retain(|asked| asked.id != request);
                self.replies.remove(&request);
                let commands = self.core.cancel_request(request);
                self.carry_out(commands);
            }
            Message::Load { reply } => {
                let asked = self.asked.iter().map(|asked| asked.vertices.len());
                let _ = reply.send((
                    self.vertices.len() + asked.sum::<usize>(),
                    self.running.len() + self.unstarted.len(),
                ));
            }
        }
    }

    /// Takes the next graph that was asked for.
    pub(super) fn take_request(&mut self) {
        let Some(request) = self.asked.pop_front() else {
            return;
        };
        match self.load(&request) {
            Ok(vertex) => {
                self.replies.insert(request.id, request.reply);
                let (job, index) = (request.job, request.edge.index);
                let commands = self.core.request(job, request.id, vertex, index);
                self.carry_out(commands);
            }
            Err(error) => {
                let _ = request.reply.send(Err(error));
            }
        }
    }

    /// Tells the core of the vertices, inputs first as they come, and finds the one of `edge`.
    fn load(&mut self, request: &Request<D>) -> Result<VertexId, SolveError> {
        let (vertices, edge) = (&request.vertices, &request.edge);
        let caches = request.caches.iter().map(|cache| self.cache(cache));
        let caches: Vec<_> = caches.collect();
        let mut here: ByName<&str, VertexId> = ByName::default();
        here.reserve(vertices.len());
        for (vertex, name) in vertices.iter().zip(&request.names) {
            let mut inputs = One::with_capacity(vertex.inputs.len());
            for input in &vertex.inputs {
                let id = here.get(input.vertex.as_ref());
                let id = id.ok_or_else(|| SolveError::MissingVertex {
                    digest: input.vertex.clone(),
                })?;
                inputs.push((*id, input.index));
            }
            let spec = Spec {
                name: *name,
                inputs,
                ignore_cache: vertex.options.ignore_cache,
            };
            let id = self.core.add(request.job, spec, &caches);
            if !self.vertices.contains_key(&id) {
                let entry = Entry {
                    shared: Arc::new(Shared::new(vertex.clone())),
                    map: None,
                };
                self.vertices.insert(id, entry);
            }
            here.insert(vertex.digest.as_ref(), id);
            // At once: later it would have to be looked at again.
            let commands = self.core.commands();
            self.carry_out(commands);
        }
        let found = here.get(edge.vertex.as_ref());
        found.copied().ok_or_else(|| SolveError::MissingVertex {
            digest: edge.vertex.clone(),
        })
    }

    fn cache(&mut self, cache: &Arc<dyn CacheSource<D>>) -> CacheId {
        if let Some(id) = self.cache_names.get(cache.name()) {
            return *id;
        }
        self.next_cache += 1;
        self.cache_names
            .insert(cache.name().to_owned(), self.next_cache);
        self.caches.insert(self.next_cache, cache.clone());
        self.next_cache
    }
}
