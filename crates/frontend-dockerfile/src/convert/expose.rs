//! `EXPOSE`.

use std::net::IpAddr;

use cooper_dockerfile::Command;
use cooper_frontend::FrontendError;

use super::args::Vars;
use super::{Converter, Result};
use crate::gotext;
use crate::image::Empty;
use crate::lint;

impl Converter<'_> {
    pub(super) fn expose(
        &mut self,
        place: usize,
        command: &Command,
        words: &[String],
    ) -> Result<()> {
        let env = self.stages[place].state.env().clone();
        let mut ports = Vec::new();
        for word in words {
            let expanded = self
                .lex
                .expand(word, &Vars(&env))
                .map_err(|error| FrontendError::invalid(error.to_string()))?;
            self.check_unmatched(place, command, expanded.unmatched);
            for spec in expanded.words {
                self.check_port(command, &spec);
                ports.extend(port_spec(&spec).map_err(FrontendError::invalid)?);
            }
        }
        let stage = &mut self.stages[place];
        stage.commit(format!("EXPOSE {}", gotext::list(&ports)), false, false);
        let ports = ports.into_iter().map(|port| (port, Empty {}));
        stage.image.config.exposed_ports.extend(ports);
        Ok(())
    }

    fn check_port(&mut self, command: &Command, spec: &str) {
        let (host_ip, host_port, container) = parts(spec);
        if !host_ip.is_empty() || !host_port.is_empty() {
            self.lint.warn_below(
                &command.comments,
                &lint::EXPOSE_INVALID_FORMAT,
                command.span,
                format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{spec}'"),
            );
        }
        if let Some((_, protocol)) = container.split_once('/')
            && protocol.to_lowercase() != protocol
        {
            self.lint.warn_below(
                &command.comments,
                &lint::EXPOSE_PROTO_CASING,
                command.span,
                format!("Defined protocol '{spec}' in EXPOSE instruction should be lowercase"),
            );
        }
    }
}

/// Address, port of the host, port of the container.
fn parts(spec: &str) -> (&str, &str, &str) {
    match spec.rsplit_once(':') {
        None => ("", "", spec),
        Some((front, container)) => match front.rsplit_once(':') {
            None => ("", front, container),
            Some((ip, host)) => (ip, host, container),
        },
    }
}

/// The ports of a text such as `80`, `53/udp`, `8000-8002/tcp`.
fn port_spec(spec: &str) -> Result<Vec<String>, String> {
    let (ip, host, container) = parts(spec);
    let (port, protocol) = container.split_once('/').unwrap_or((container, ""));
    if port.is_empty() {
        return Err(format!("no port specified: {container}<empty>"));
    }
    let protocol = match protocol.to_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        other => return Err(format!("invalid proto: {other}")),
    };
    let address = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let address = address.unwrap_or(ip);
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address: {address}"));
    }
    let (start, end) = port_range(port).ok_or_else(|| format!("invalid containerPort: {port}"))?;
    if !host.is_empty() {
        let (from, to) = port_range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if end - start != to - from && end != start {
            return Err(format!(
                "invalid ranges specified for container and host Ports: {port} and {host}"
            ));
        }
    }
    Ok((start..=end)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    let (start, end) = text.split_once('-').unwrap_or((text, text));
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (spec, expected) in [
            ("80", vec!["80/tcp"]),
            ("53/UDP", vec!["53/udp"]),
            ("80-82", vec!["80/tcp", "81/tcp", "82/tcp"]),
            ("8080:80", vec!["80/tcp"]),
            ("127.0.0.1:8080:80/tcp", vec!["80/tcp"]),
            ("[::1]:1:2", vec!["2/tcp"]),
            ("8000-8010:80", vec!["80/tcp"]),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(port_spec(spec), Ok(expected), "{spec}");
        }
        for (spec, error) in [
            ("", "no port specified: <empty>"),
            ("x", "invalid containerPort: x"),
            ("80/foo", "invalid proto: foo"),
            ("99999", "invalid containerPort: 99999"),
            ("82-80", "invalid containerPort: 82-80"),
            ("x:80", "invalid hostPort: x"),
            ("x:1:80", "invalid IP address: x"),
            (
                "1-3:1-2",
                "invalid ranges specified for container and host Ports: 1-2 and 1-3",
            ),
        ] {
            assert_eq!(port_spec(spec), Err(error.to_owned()), "{spec}");
        }
    }
}
