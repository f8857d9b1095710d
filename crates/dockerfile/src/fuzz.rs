//! What holds for whatever a user may write.

use std::collections::BTreeMap;

use crate::{Lex, csv, parse, program};

/// A Dockerfile.
pub fn dockerfile(data: &[u8]) {
    let Ok(cut) = parse(data) else { return };
    assert!(!cut.nodes.is_empty());
    // A line break that a reader of bytes knows, and one line more than there are of them.
    let lines = String::from_utf8_lossy(data).matches('\n').count() + 1;
    let mut last = 0;
    for node in &cut.nodes {
        let (first, end) = (node.span.start, node.span.end);
        assert!(
            last < first && first <= end && end as usize <= lines,
            "{node:?} of {lines}"
        );
        last = end;
    }
    assert_eq!(parse(data).as_ref(), Ok(&cut));
    let env = BTreeMap::from([
        ("A".to_owned(), "a b".to_owned()),
        ("E".to_owned(), String::new()),
    ]);
    let lex = Lex::new(cut.escape);
    for word in cut.nodes.iter().flat_map(|node| &node.args).take(64) {
        let _ = lex.expand(word, &env);
        let _ = lex.words(word, &env);
        let _ = csv::fields(word);
    }
    let _ = program(&cut);
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("dockerfile", super::dockerfile);
    }
}
