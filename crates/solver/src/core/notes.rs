//! What is told of an edge to who explains why it was not found.

use std::sync::Arc;

use super::{Content, Core, EdgeId, InputState, VertexId};
use crate::explain::{Note, Noted, Operations};
use crate::keys::KeyId;
use crate::shared::JobId;

impl<O: Clone, E: Clone> Core<O, E> {
    /// What an edge is made of whose vertex was carried out just now.
    pub(super) fn noted(&self, id: EdgeId) -> Option<Arc<Noted>> {
        let vertex = self.edge(id).vertex;
        let (_, draft) = self.draft.as_ref().filter(|(of, _)| *of == vertex)?;
        let mut note = Note {
            name: draft.name.clone(),
            digest: draft.digest.clone(),
            description: draft.description.clone(),
            inputs: Vec::new(),
            pruned: None,
        };
        let inputs = self.inputs(vertex);
        for (index, input) in inputs.iter().enumerate() {
            for key in &input.keys {
                note.add_key(index, key, false);
            }
            if let Some(key) = &input.content {
                note.add_key(index, key, true);
            }
        }
        for (index, files) in &draft.files {
            if let Some(input) = note.inputs.get_mut(*index) {
                input.files = Some(files.name());
            }
        }
        let files = draft.files.iter().map(|(_, files)| files.clone()).collect();
        Some(Arc::new(Noted { note, files }))
    }

    /// The operations of all that a job needs, as far as they are known.
    pub(crate) fn operations(&self, job: JobId) -> Operations {
        let vertices = self.vertices.values();
        let of_job = vertices.filter(|vertex| vertex.jobs.contains(&job));
        let maps = of_job.filter_map(|vertex| vertex.maps.first());
        let mut operations = Operations::default();
        maps.for_each(|map| operations.add(&map.digest));
        operations
    }

    /// The keys of all outputs of a vertex that somebody asked for.
    pub(crate) fn keys_of(&self, vertex: VertexId) -> impl Iterator<Item = &KeyId> {
        let state = self.vertices.get(&vertex);
        let edges = state.into_iter().flat_map(|state| &state.edges);
        let keys = edges.flat_map(|(_, edge)| &self.edge(*edge).ids);
        keys.map(|key| &key.id)
    }

    /// What is known of the inputs of a vertex that has an edge.
    pub(crate) fn inputs(&self, vertex: VertexId) -> Vec<InputState> {
        let state = self.vertex(vertex);
        let Some((_, edge)) = state.edges.first() else {
            return Vec::new();
        };
        let deps = self.edge(*edge).deps.iter().enumerate();
        deps.map(|(place, dep)| {
            let anew = self.built_anew(dep.edge);
            let input = self.edge(dep.edge);
            InputState {
                vertex: input.vertex,
                keys: input.ids.iter().map(|key| key.id.clone()).collect(),
                counts: !anew && input.ids.iter().any(|key| key.valid),
                content: match state.content(place) {
                    Content::Known(key) => Some(key.clone()),
                    _ => None,
                },
            }
        })
        .collect()
    }
}
