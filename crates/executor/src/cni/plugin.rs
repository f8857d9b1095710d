//! Calling plug-ins: a program for each, the configuration on its standard input, the result on
//! its standard output.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::CniError;
use super::config::Network;

/// Calls the plug-ins of one namespace.
pub(super) struct Caller<'a> {
    /// Where they are.
    pub(super) dir: &'a Path,
    /// How they call the container.
    pub(super) id: &'a str,
    /// The file of the namespace.
    pub(super) namespace: &'a Path,
    /// The name of the interface inside.
    pub(super) interface: &'a str,
}

impl Caller<'_> {
    /// Sets `network` up and returns what the last plug-in says. Blocks.
    pub(super) fn add(&self, network: &Network) -> Result<Value, CniError> {
        let mut result = Value::Null;
        for plugin in &network.plugins {
            result = self.call("ADD", network, plugin, &result)?;
        }
        Ok(result)
    }

    /// Takes `network` down, whose last plug-in said `result`: all that can be taken down goes,
    /// and the first failure is returned. Blocks.
    pub(super) fn delete(&self, network: &Network, result: &Value) -> Result<(), CniError> {
        let mut failed = Ok(());
        for plugin in network.plugins.iter().rev() {
            let deleted = self.call("DEL", network, plugin, result);
            failed = failed.and(deleted.map(drop));
        }
        failed
    }

    fn call(
        &self,
        command: &'static str,
        network: &Network,
        plugin: &Value,
        result: &Value,
    ) -> Result<Value, CniError> {
        let name = plugin["type"].as_str().unwrap_or_default();
        let failed = |message: String| CniError::Plugin {
            name: name.to_owned(),
            command,
            message,
        };
        let mut config = plugin.clone();
        config["name"] = network.name.clone().into();
        config["cniVersion"] = network.version.clone().into();
        if !result.is_null() {
            config["prevResult"] = result.clone();
        }
        let mut child = Command::new(self.find(name)?)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", self.id)
            .env("CNI_NETNS", self.namespace)
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", self.dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        if let Some(mut input) = child.stdin.take() {
            // One that does not read it says why.
            let _ = input.write_all(config.to_string().as_bytes());
        }
        let output = child.wait_with_output();
        let output = output.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let text = |name: &str| said[name].as_str().unwrap_or_default().to_owned();
            let message = match (text("msg"), text("details")) {
                (message, _) if message.is_empty() => {
                    String::from_utf8_lossy(&output.stderr).trim().to_owned()
                }
                (message, details) if details.is_empty() => message,
                (message, details) => format!("{message}: {details}"),
            };
            return Err(failed(message));
        }
        if command == "DEL" || output.stdout.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
    }

    /// BuildKit's images have plug-ins under names of their own.
    fn find(&self, name: &str) -> Result<PathBuf, CniError> {
        let plain = !name.is_empty() && !name.contains('/');
        let names = [format!("buildkit-cni-{name}"), name.to_owned()];
        let mut files = names.iter().map(|name| self.dir.join(name));
        let found = files.find(|file| plain && file.is_file());
        found.ok_or_else(|| CniError::NoPlugin {
            name: name.to_owned(),
            dir: self.dir.display().to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn network(kinds: &[&str]) -> Network {
        Network {
            name: "net".into(),
            version: "1.0.0".into(),
            plugins: kinds.iter().map(|kind| json!({ "type": kind })).collect(),
        }
    }

    #[test]
    fn plugins_are_called_in_order_with_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let plugin = |name: &str, script: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        };
        let log = dir.path().join("log");
        let note = format!(
            "echo $0 $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $(cat) >> {}",
            log.display()
        );
        plugin("one", &format!("{note}; echo '{{\"is\": 1}}'"));
        plugin("two", &format!("{note}; echo '{{\"is\": 2}}'"));
        plugin(
            "bad",
            "echo '{\"code\": 7, \"msg\": \"no\", \"details\": \"way\"}'; exit 1",
        );
        let caller = Caller {
            dir: dir.path(),
            id: "id",
            namespace: Path::new("/run/ns"),
            interface: "eth0",
        };
        let both = network(&["one", "two"]);
        let result = caller.add(&both).unwrap();
        assert_eq!(result, json!({"is": 2}));
        caller.delete(&both, &result).unwrap();
        let log = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<_> = log.lines().collect();
        assert!(lines[0].contains("/one ADD id eth0"), "{log}");
        assert!(!lines[0].contains("prevResult"), "{log}");
        assert!(lines[1].contains("/two ADD") && lines[1].contains(r#""prevResult":{"is":1}"#));
        assert!(lines[2].contains("/two DEL") && lines[2].contains(r#""prevResult":{"is":2}"#));
        assert!(lines[3].contains("/one DEL"), "{log}");
        let error = caller.add(&network(&["bad"])).unwrap_err();
        let expected = "network plug-in bad failed to ADD: no: way";
        assert_eq!(error.to_string(), expected);
        for missing in ["none", "../one"] {
            let error = caller.add(&network(&[missing])).unwrap_err();
            assert!(matches!(error, CniError::NoPlugin { .. }), "{error}");
        }
    }
}
