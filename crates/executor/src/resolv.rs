//! The resolv.conf of a container, made from the host's.

use std::io;
use std::net::IpAddr;

use crate::NetworkMode;

/// What systemd-resolved listens on.
const RESOLVED: &str = "127.0.0.53";

/// What is asked when the host names no server that can be reached from elsewhere: Google's,
/// as BuildKit does it.
const FALLBACK: [&str; 4] = [
    "8.8.8.8",
    "8.8.4.4",
    "2001:4860:4860::8888",
    "2001:4860:4860::8844",
];

/// What the configuration says instead of the host; empty lists say nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Addresses of servers.
    pub nameservers: Vec<String>,
    /// Options in the form of resolv.conf(5).
    pub options: Vec<String>,
    /// Domains in which names are looked up.
    pub search_domains: Vec<String>,
}

/// The text of the host's resolv.conf: with systemd-resolved the one that names the servers
/// behind it, unless the container is in the host's network. A missing file is empty.
pub fn resolv_conf_of_host(network: NetworkMode) -> io::Result<String> {
    let text = read("/etc/resolv.conf")?;
    if network != NetworkMode::Host && Parsed::new(&text).nameservers == [RESOLVED] {
        return read("/run/systemd/resolve/resolv.conf");
    }
    Ok(text)
}

fn read(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

/// The text of a container's resolv.conf. Servers on the host's loopback are left out unless
/// the container is in the host's network, and with none left [public ones](FALLBACK) are
/// named.
pub fn resolv_conf(host: &str, dns: &DnsConfig, network: NetworkMode) -> String {
    let mut parsed = Parsed::new(host);
    let replace = |own: &mut Vec<String>, configured: &[String]| {
        if !configured.is_empty() {
            *own = configured.to_vec();
        }
    };
    replace(&mut parsed.nameservers, &dns.nameservers);
    replace(&mut parsed.search, &dns.search_domains);
    replace(&mut parsed.options, &dns.options);
    if network != NetworkMode::Host || parsed.nameservers.is_empty() {
        parsed.nameservers.retain(|server| !loopback(server));
        if parsed.nameservers.is_empty() {
            parsed.nameservers = FALLBACK.map(str::to_owned).to_vec();
        }
    }
    parsed.text()
}

fn loopback(server: &str) -> bool {
    server
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

/// A resolv.conf(5) in its parts.
#[derive(Debug, Default)]
struct Parsed {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
    other: Vec<String>,
}

impl Parsed {
    fn new(text: &str) -> Self {
        let mut parsed = Self::default();
        for line in text.lines() {
            // A comment may stand after a value, too.
            let line = line.split(['#', ';']).next().unwrap_or("").trim();
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                None => {}
                Some("nameserver") => parsed.nameservers.extend(words.next()),
                // The last one counts.
                Some("search" | "domain") => parsed.search = words.collect(),
                Some("options") => parsed.options.extend(words),
                Some(_) => parsed.other.push(line.to_owned()),
            }
        }
        parsed
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        // A lone dot is how a configuration says that nothing is to be searched.
        if !self.search.is_empty() && self.search != ["."] {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        for line in &self.other {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn servers_on_loopback_only_serve_the_host() {
        let host = "# made by hand\nnameserver 127.0.0.1 # here\nnameserver ::1\n\
                    nameserver 9.9.9.9\nsearch a.b c\noptions ndots:1\nsortlist 1.2.3.4\n";
        let none = DnsConfig::default();
        let outside = resolv_conf(host, &none, NetworkMode::Default);
        assert_eq!(
            outside,
            "nameserver 9.9.9.9\nsearch a.b c\noptions ndots:1\nsortlist 1.2.3.4\n"
        );
        let inside = resolv_conf(host, &none, NetworkMode::Host);
        assert!(inside.starts_with("nameserver 127.0.0.1\nnameserver ::1\n"));
    }

    #[test]
    fn with_no_server_left_public_ones_are_named() {
        let none = DnsConfig::default();
        for (host, network) in [
            ("nameserver 127.0.0.53\n", NetworkMode::None),
            ("", NetworkMode::Host),
            ("", NetworkMode::Default),
        ] {
            let text = resolv_conf(host, &none, network);
            assert!(text.starts_with("nameserver 8.8.8.8\nnameserver 8.8.4.4\n"));
            assert!(text.contains("2001:4860:4860::8844"));
        }
    }

    #[test]
    fn the_configuration_wins_part_by_part() {
        let dns = DnsConfig {
            nameservers: words(&["1.1.1.1"]),
            options: words(&["edns0"]),
            search_domains: Vec::new(),
        };
        let host = "nameserver 9.9.9.9\ndomain d\noptions ndots:2\n";
        assert_eq!(
            resolv_conf(host, &dns, NetworkMode::Default),
            "nameserver 1.1.1.1\nsearch d\noptions edns0\n"
        );
    }
}
