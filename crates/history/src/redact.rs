//! Taking secrets out of what clients say of their builds.

use std::collections::BTreeMap;

use serde_json::Value;

/// What stands for a secret (BuildKit's mask).
const MASK: &str = "xxxxx";
/// The option in which clients name the caches to import, as JSON.
const CACHE_IMPORTS: &str = "cache-imports";
/// Words in the names of attributes whose values are secrets: those of the caches in object stores.
const SECRET_WORDS: [&str; 4] = ["secret", "token", "password", "account_key"];

/// Options without credentials: those in addresses, and those of caches.
pub(crate) fn options(options: &mut BTreeMap<String, String>) {
    for (name, value) in options {
        if name == CACHE_IMPORTS
            && let Ok(mut imports) = serde_json::from_str::<Value>(value)
        {
            mask_secrets(&mut imports);
            *value = imports.to_string();
        }
        if value.contains("://") {
            *value = addresses(value);
        }
    }
}

fn mask_secrets(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let name = name.to_ascii_lowercase();
                if value.is_string() && SECRET_WORDS.iter().any(|word| name.contains(word)) {
                    *value = MASK.into();
                } else {
                    mask_secrets(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(mask_secrets),
        _ => {}
    }
}

/// A text with no credentials in its addresses. A user without a password is one only where nobody
/// logs in by name: `ssh://git@host` says nothing, `https://TOKEN@host` does.
fn addresses(text: &str) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find("://") {
        let (before, after) = rest.split_at(place + 3);
        redacted.push_str(before);
        let end = after
            .find(|c: char| matches!(c, '/' | '?' | '#' | ',' | '"' | '\'') || c.is_whitespace());
        let authority = &after[..end.unwrap_or(after.len())];
        rest = after;
        let Some((user, _)) = authority.rsplit_once('@') else {
            continue;
        };
        let web = before.ends_with("http://") || before.ends_with("https://");
        if user.contains(':') {
            redacted.push_str(MASK);
            redacted.push(':');
        }
        match web || user.contains(':') {
            true => redacted.push_str(MASK),
            false => redacted.push_str(user),
        }
        rest = &after[user.len()..];
    }
    redacted.push_str(rest);
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_addresses_are_masked() {
        for (text, expected) in [
            ("https://u:p@host/x?y#z", "https://xxxxx:xxxxx@host/x?y#z"),
            ("https://token@host/x", "https://xxxxx@host/x"),
            ("ssh://git@host/x", "ssh://git@host/x"),
            ("ssh://git:word@host/x", "ssh://xxxxx:xxxxx@host/x"),
            ("https://host/a@b", "https://host/a@b"),
            (
                "a://b c=http://u:p@h,d=\"https://t@h\"",
                "a://b c=http://xxxxx:xxxxx@h,d=\"https://xxxxx@h\"",
            ),
            ("https://u:p@q@host", "https://xxxxx:xxxxx@host"),
            ("docker-image://x@sha256:1", "docker-image://x@sha256:1"),
            ("://", "://"),
        ] {
            assert_eq!(addresses(text), expected);
        }
    }

    #[test]
    fn caches_have_no_secrets_in_them() {
        let imports =
            r#"[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"k","session_token":"t"}}]"#;
        let mut attrs = BTreeMap::from([
            (CACHE_IMPORTS.to_owned(), imports.to_owned()),
            ("build-arg:A".to_owned(), "secret".to_owned()),
        ]);
        options(&mut attrs);
        let shown = &attrs[CACHE_IMPORTS];
        assert!(shown.contains(r#""bucket":"b""#), "{shown}");
        assert!(shown.contains(r#""secret_access_key":"xxxxx""#), "{shown}");
        assert!(shown.contains(r#""session_token":"xxxxx""#), "{shown}");
        assert_eq!(attrs["build-arg:A"], "secret");
    }
}
