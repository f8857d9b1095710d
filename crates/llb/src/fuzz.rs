//! What holds for whatever a client may send.

use cooper_proto::pb;
use prost::Message;

use crate::{LoadOptions, digest_of, load, platform};

/// A definition on the wire.
pub fn definition(data: &[u8]) {
    let Ok(definition) = pb::Definition::decode(data) else {
        return;
    };
    let Ok(graph) = load(&definition, LoadOptions::default()) else {
        return;
    };
    let vertices = graph.vertices();
    assert!(vertices.len() < definition.def.len());
    for (index, vertex) in vertices.iter().enumerate() {
        // What something needs comes before it: there is no circle.
        for input in &vertex.inputs {
            assert!(input.vertex < index);
        }
        assert_eq!(graph.find(&vertex.digest), Some(index));
        // Names are of the bytes that came.
        let came = definition
            .def
            .iter()
            .any(|op| digest_of(op) == vertex.digest);
        assert!(came, "{}", vertex.digest);
    }
    assert!(graph.root().vertex < vertices.len());
    let again = load(&definition, LoadOptions::default()).expect("it was loaded");
    assert_eq!(again.outputs(), graph.outputs());
}

/// The name of a platform.
pub fn platforms(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(parsed) = platform::parse(text) else {
        return;
    };
    let normal = platform::normalize(&parsed);
    assert_eq!(platform::normalize(&normal), normal);
    // The version and the features of a system may be any text, and only some of it is read back:
    // containerd writes no more in another way.
    let readable = |text: &String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-%+()/".contains(c);
        text.chars().all(plain)
    };
    let empty = normal.os_features.iter().any(String::is_empty);
    if empty || !readable(&normal.os_version) || !normal.os_features.iter().all(readable) {
        return;
    }
    let again = platform::parse(&platform::format_all(&normal)).map(|p| platform::normalize(&p));
    assert_eq!(again.as_ref().ok(), Some(&normal), "{text}: {again:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("definition", super::definition);
        cooper_testkit::seeds("platform", super::platforms);
    }
}
