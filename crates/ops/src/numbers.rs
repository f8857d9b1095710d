//! Operations that have nothing in them but which of their inputs they take: what they are to the
//! cache, and to people.

use cooper_content::PlaintextKind;
use cooper_llb::gojson::{Object, Value};
use cooper_solver::{CacheDep, CacheMap, Description, Vertex};

use crate::describe;
use crate::env::{Build, Env};

/// BuildKit's text of an operation that has only numbers of inputs in it.
pub(crate) fn text<V: Value>(kind: &str, name: &str, op: &V) -> String {
    Object::write(|object| {
        object.field("Type", kind);
        object.field(name, op);
    })
}

/// What people are told of an operation with that text.
pub(crate) fn described(kind: &str, text: &str, vertex: &Vertex<Build>) -> Description {
    let mut description = describe::begin(kind, vertex);
    describe::other(text, &mut description);
    description
}

/// The identity of an operation with that text.
pub(crate) fn cache_map(env: &Env, text: &str, inputs: usize) -> CacheMap<Build> {
    CacheMap {
        digest: env.key_digest(PlaintextKind::Json, text.as_bytes()),
        deps: (0..inputs).map(|_| CacheDep::default()).collect(),
        last: true,
    }
}
