//! Messages as Go's clients bear them.
//!
//! In a map of messages, prost leaves a value out that is the default. Go's generated code gives
//! a nil pointer for that, which BuildKit's client does not expect.

use cooper_proto::gateway::Ref;
use cooper_proto::pb;

/// A graph without entries that say nothing.
pub(crate) fn definition(mut definition: pb::Definition) -> pb::Definition {
    let metadata = &mut definition.metadata;
    metadata.retain(|_, metadata| *metadata != pb::OpMetadata::default());
    if let Some(source) = &mut definition.source {
        let locations = &mut source.locations;
        locations.retain(|_, locations| !locations.locations.is_empty());
    }
    definition
}

/// The reference of a result that has no files, which a map can carry.
pub(crate) fn nothing() -> Ref {
    Ref {
        id: String::new(),
        def: Some(pb::Definition::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cooper_proto::gateway::RefMap;
    use prost::Message as _;

    #[test]
    fn no_value_of_a_map_is_left_out() {
        let refs = RefMap {
            refs: [("linux/amd64".to_owned(), nothing())].into(),
        };
        let entry = &refs.encode_to_vec()[2..];
        // The key is field 1, the value field 2 with an empty graph in it.
        assert_eq!(&entry[..2], [0x0a, 11]);
        assert_eq!(&entry[13..], [0x12, 2, 0x12, 0]);

        let empty = pb::Definition {
            metadata: [("a".to_owned(), pb::OpMetadata::default())].into(),
            source: Some(pb::Source {
                locations: [("a".to_owned(), pb::Locations::default())].into(),
                ..pb::Source::default()
            }),
            ..pb::Definition::default()
        };
        let sent = definition(empty);
        assert!(sent.metadata.is_empty() && sent.source.unwrap().locations.is_empty());
    }
}
