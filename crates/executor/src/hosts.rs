//! The hosts file of a container.

use crate::{DEFAULT_HOSTNAME, HostIp};

/// The text of `/etc/hosts`: loopback under the names `localhost` and `hostname`, then the
/// other names. As BuildKit writes it.
pub fn hosts_file(hostname: &str, extra: &[HostIp]) -> String {
    let name = if hostname.is_empty() {
        DEFAULT_HOSTNAME
    } else {
        hostname
    };
    let mut text =
        format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for HostIp { host, ip } in extra {
        text.push_str(&format!("{ip}\t{host}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_written_as_buildkit_does() {
        assert_eq!(
            hosts_file("", &[]),
            "127.0.0.1\tlocalhost buildkitsandbox\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n"
        );
        let extra = [HostIp {
            host: "some.host".into(),
            ip: "1.2.3.4".into(),
        }];
        let text = hosts_file("name", &extra);
        assert!(text.starts_with("127.0.0.1\tlocalhost name\n"), "{text}");
        assert!(text.ends_with("\n1.2.3.4\tsome.host\n"), "{text}");
    }
}
