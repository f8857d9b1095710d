//! What a 401 asks for (RFC 9110, 11.6.1; distribution's token specification).

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// One challenge of a `WWW-Authenticate` header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// Lower case: `basic`, `bearer`.
    pub(crate) scheme: String,
    /// Names in lower case.
    pub(crate) parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// The value of a parameter.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }
}

/// All challenges, bearer ones first: they are the ones to answer when both are offered.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut found: Vec<_> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| parse(&String::from_utf8_lossy(value.as_bytes())))
        .collect();
    found.sort_by_key(|challenge| challenge.scheme != "bearer");
    found
}

/// Reads one challenge: a scheme, and parameters whose values are tokens or quoted.
fn parse(text: &str) -> Option<Challenge> {
    let text = text.trim();
    let (scheme, mut rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    if scheme.is_empty() {
        return None;
    }
    let mut parameters = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let Some((name, after)) = rest.split_once('=') else {
            break;
        };
        let (value, after) = value(after.trim_start());
        parameters.insert(name.trim().to_ascii_lowercase(), value);
        rest = after;
    }
    Some(Challenge {
        scheme: scheme.to_ascii_lowercase(),
        parameters,
    })
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (index, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[index + 1..]),
            _ => value.push(c),
        }
    }
    // The end is missing: take what there is.
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn one(text: &str) -> Challenge {
        parse(text).unwrap()
    }

    #[test]
    fn challenges_are_read() {
        let hub = one(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push",error="insufficient_scope""#,
        );
        assert_eq!(hub.scheme, "bearer");
        assert_eq!(hub.get("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(hub.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(hub.get("error"), Some("insufficient_scope"));
        let bare = one("Basic");
        assert_eq!((bare.scheme.as_str(), bare.parameters.len()), ("basic", 0));
        let odd = one(r#"BEARER Realm = "a \"q\", b" , service=plain x="#);
        assert_eq!(odd.get("realm"), Some(r#"a "q", b"#));
        assert_eq!(odd.get("service"), Some("plain"));
        assert_eq!(odd.get("x"), Some(""));
        assert_eq!(one(r#"Bearer realm="open"#).get("realm"), Some("open"));
        assert_eq!(parse("  "), None);
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let mut headers = HeaderMap::new();
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"x\""),
        );
        headers.append(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"y\""),
        );
        let schemes: Vec<_> = challenges(&headers).into_iter().map(|c| c.scheme).collect();
        assert_eq!(schemes, ["bearer", "basic"]);
    }
}
