//! Work that users see as a vertex of its own although it is none of the graph: looking for an
//! image's configuration, exporting.

use std::error::Error;
use std::sync::Arc;
use std::time::SystemTime;

use cooper_progress::{Digest, Event, Sink, Vertex, VertexProgress};
use cooper_solver::error_chain;

/// A vertex that is shown while something goes on. Dropping it shows that it was given up.
pub(crate) struct Shown {
    vertex: Vertex,
    sink: Arc<dyn Sink>,
}

impl Shown {
    /// Begins: `name` is what users read; the vertex's digest is made of `id`, as BuildKit
    /// makes it.
    pub(crate) fn begin(sink: Arc<dyn Sink>, id: &str, name: &str) -> Self {
        let vertex = Vertex {
            digest: digest_of(id),
            inputs: Vec::new(),
            name: name.to_owned(),
            cached: false,
            started: Some(SystemTime::now()),
            completed: None,
            error: String::new(),
            progress_group: None,
        };
        sink.emit(Event::Vertex(vertex.clone()));
        Self { vertex, sink }
    }

    /// Speaks for the vertex.
    pub(crate) fn progress(&self) -> VertexProgress {
        VertexProgress::new(self.vertex.digest.clone(), self.sink.clone())
    }

    /// Ends as `result` says, and gives it back.
    pub(crate) fn end<T, E: Error + 'static>(mut self, result: Result<T, E>) -> Result<T, E> {
        let error = result.as_ref().err().map(|error| error_chain(error));
        self.complete(error.unwrap_or_default());
        result
    }

    fn complete(&mut self, error: String) {
        self.vertex.completed = Some(SystemTime::now());
        self.vertex.error = error;
        self.sink.emit(Event::Vertex(self.vertex.clone()));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if self.vertex.completed.is_none() {
            self.complete("context canceled".to_owned());
        }
    }
}

fn digest_of(id: &str) -> Digest {
    cooper_llb::digest_of(id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_progress::Collect;

    fn last(sink: &Collect) -> (bool, String) {
        match sink.take().pop().unwrap() {
            Event::Vertex(vertex) => (vertex.completed.is_some(), vertex.error),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_began_is_shown_to_end_in_any_way() {
        let sink = Arc::new(Collect::default());
        let begin = || Shown::begin(sink.clone(), "id", "name");
        let shown = begin();
        assert_eq!(last(&sink), (false, String::new()));
        shown.end(Ok::<_, std::fmt::Error>(())).unwrap();
        assert_eq!(last(&sink), (true, String::new()));
        begin()
            .end(Err::<(), _>(std::io::Error::other("oops")))
            .unwrap_err();
        assert_eq!(last(&sink), (true, "oops".into()));
        drop(begin());
        assert_eq!(last(&sink), (true, "context canceled".into()));
    }
}
