//! What holds for whatever a registry or a user may write.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};

use crate::Reference;
use crate::challenge::challenges;

/// Headers of a 401, one in each line.
pub fn challenge(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(64) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(WWW_AUTHENTICATE, value);
        }
    }
    let found = challenges(&headers);
    assert!(found.len() <= headers.len());
    for challenge in found {
        assert!(!challenge.scheme.contains(char::is_whitespace));
        assert_eq!(challenge.scheme, challenge.scheme.to_ascii_lowercase());
        for name in challenge.parameters.keys() {
            assert_eq!(*name, name.to_ascii_lowercase());
        }
    }
}

/// The name of an image.
pub fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(reference) = Reference::parse_named(text) else {
        return;
    };
    // It is what it is written as, long or short.
    for text in [reference.to_string(), reference.familiar()] {
        let again = Reference::parse_named(&text);
        assert_eq!(again.as_ref(), Ok(&reference), "{text}");
    }
    // It becomes part of addresses and paths.
    let unsafe_part = |part: &str| part.is_empty() || part == "." || part == "..";
    assert!(!reference.repository().split('/').any(unsafe_part));
    assert!(!reference.domain().contains(['/', '@', '?', '#']));
    assert!(reference.name().len() <= 255);
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_hold() {
        cooper_testkit::seeds("challenge", super::challenge);
        cooper_testkit::seeds("reference", super::reference);
    }
}
