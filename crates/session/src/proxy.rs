//! The proxies that the environment names, as Go's programs read it
//! (`golang.org/x/net/http/httpproxy`): what is reached through them in one process of a build is
//! reached through them in all.

/// Proxies for requests of HTTP. A value may hold a password; it is not shown by `Debug`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// The URL of the proxy for `http://` addresses.
    pub http: Option<String>,
    /// The same for `https://` addresses.
    pub https: Option<String>,
    /// What is reached without a proxy, in the form of `NO_PROXY`: hosts, domains, addresses and
    /// networks, with commas between them. This machine itself is always among them.
    pub without: String,
}

impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxies")
            .field("without", &self.without)
            .finish_non_exhaustive()
    }
}

impl Proxies {
    /// Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, each in capitals or else in
    /// small letters. A program that answers web requests (`REQUEST_METHOD`) takes no
    /// `HTTP_PROXY` in capitals: there that is a header of whoever asks.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let either = |name: &str| set(name).or_else(|| set(&name.to_lowercase()));
        let url = |value: String| match value.contains("://") {
            true => value,
            false => format!("http://{value}"),
        };
        let all = either("ALL_PROXY");
        let http = match set("REQUEST_METHOD") {
            Some(_) => set("http_proxy"),
            None => either("HTTP_PROXY"),
        };
        let mut without = "localhost,127.0.0.0/8,::1".to_owned();
        if let Some(more) = either("NO_PROXY") {
            without = format!("{without},{more}");
        }
        Self {
            http: http.or_else(|| all.clone()).map(url),
            https: either("HTTPS_PROXY").or(all).map(url),
            without,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Proxies {
        Proxies::from_env(|name| {
            let mut found = variables.iter().filter(|(known, _)| *known == name);
            found.next().map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn both_cases_are_read_and_capitals_go_first() {
        let found = read(&[
            ("HTTP_PROXY", "proxy:3128"),
            ("http_proxy", "http://other"),
            ("https_proxy", "socks5://tunnel:1080"),
            ("no_proxy", "example.com,10.0.0.0/8"),
        ]);
        assert_eq!(found.http.as_deref(), Some("http://proxy:3128"));
        assert_eq!(found.https.as_deref(), Some("socks5://tunnel:1080"));
        assert!(found.without.ends_with(",example.com,10.0.0.0/8"));
        assert!(found.without.starts_with("localhost,127."));
    }

    #[test]
    fn a_header_is_no_proxy() {
        let found = read(&[("HTTP_PROXY", "http://evil"), ("REQUEST_METHOD", "GET")]);
        assert_eq!(found.http, None);
        assert_eq!(read(&[("HTTP_PROXY", "")]).http, None);
        let all = read(&[("all_proxy", "http://user:secret@proxy")]);
        assert_eq!(all.http, all.https);
        assert!(!format!("{all:?}").contains("secret"));
    }
}
