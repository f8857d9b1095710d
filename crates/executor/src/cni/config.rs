//! Which plug-ins make a network.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::CniError;

/// Where BuildKit looks for the list of plug-ins.
const DEFAULT_PATH: &str = "/etc/buildkit/cni.json";

/// Where plug-ins are by convention, and where Debian puts them.
const DEFAULT_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// The version that is spoken with plug-ins.
const VERSION: &str = "1.0.0";

/// The settings of a network, with the meaning that they have in buildkitd.toml. What is empty
/// is as BuildKit has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniConfig {
    /// The list of plug-ins (`cniConfigPath`).
    pub config_path: String,
    /// Where plug-ins are (`cniBinaryPath`).
    pub binary_path: String,
    /// How many namespaces are kept ready (`cniPoolSize`).
    pub pool_size: usize,
    /// The name of the bridge (`bridgeName`).
    pub bridge_name: String,
    /// The addresses on it (`bridgeSubnet`).
    pub bridge_subnet: String,
}

/// A network: its plug-ins in order.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Network {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) plugins: Vec<Value>,
}

impl CniConfig {
    /// Whether there is a list of plug-ins: then `auto` takes it.
    pub fn is_configured(&self) -> bool {
        self.path().is_file()
    }

    fn path(&self) -> &Path {
        match self.config_path.as_str() {
            "" => Path::new(DEFAULT_PATH),
            path => Path::new(path),
        }
    }

    /// Where plug-ins are.
    pub(super) fn dir(&self) -> PathBuf {
        match self.binary_path.as_str() {
            "" => {
                let mut there = DEFAULT_DIRS.iter().map(Path::new);
                let found = there.find(|dir| dir.is_dir());
                found.unwrap_or(Path::new(DEFAULT_DIRS[0])).to_owned()
            }
            dir => dir.into(),
        }
    }

    /// The network of the list.
    pub(super) fn listed(&self) -> Result<Network, CniError> {
        let path = self.path();
        let failed = |reason: String| CniError::Config {
            path: path.display().to_string(),
            reason,
        };
        let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let config = serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
        network(config).map_err(failed)
    }

    /// The network of a bridge of its own: what leaves the machine has the machine's address,
    /// and other bridges cannot be reached.
    pub(super) fn bridge(&self) -> Network {
        let or = |text: &str, default: &str| match text {
            "" => default.to_owned(),
            text => text.to_owned(),
        };
        let bridge = json!({
            "type": "bridge",
            "bridge": or(&self.bridge_name, "buildkit0"),
            "isDefaultGateway": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": or(&self.bridge_subnet, "10.10.0.0/16") }]],
            },
        });
        let firewall = json!({ "type": "firewall", "ingressPolicy": "same-bridge" });
        Network {
            name: "buildkit".into(),
            version: VERSION.into(),
            plugins: vec![bridge, firewall],
        }
    }

    /// What every namespace has.
    pub(super) fn loopback() -> Network {
        Network {
            name: "cni-loopback".into(),
            version: VERSION.into(),
            plugins: vec![json!({ "type": "loopback" })],
        }
    }
}

/// A list of plug-ins, or a single one.
fn network(config: Value) -> Result<Network, String> {
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let name = text("name").ok_or("it has no name")?.to_owned();
    let version = text("cniVersion").unwrap_or(VERSION).to_owned();
    let plugins = match config.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        Some(_) => return Err("plugins is no list".into()),
        None => vec![config.clone()],
    };
    let named = |plugin: &Value| plugin.get("type").is_some_and(Value::is_string);
    if plugins.is_empty() || !plugins.iter().all(named) {
        return Err("a plug-in has no type".into());
    }
    Ok(Network {
        name,
        version,
        plugins,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list = json!({"cniVersion": "0.4.0", "name": "n", "plugins": [{"type": "ptp"}]});
        let read = network(list).unwrap();
        assert_eq!((read.name.as_str(), read.version.as_str()), ("n", "0.4.0"));
        assert_eq!(read.plugins, [json!({"type": "ptp"})]);
        let single = json!({"name": "n", "type": "ptp", "x": 1});
        assert_eq!(network(single.clone()).unwrap().plugins, [single]);
        for bad in [
            json!({}),
            json!({"name": "n", "plugins": []}),
            json!({"name": "n"}),
        ] {
            assert!(network(bad).is_err());
        }
        let missing = CniConfig {
            config_path: "/no/such/list".into(),
            ..CniConfig::default()
        };
        assert!(!missing.is_configured());
        let error = missing.listed().unwrap_err().to_string();
        assert!(error.contains("/no/such/list"), "{error}");
    }

    #[test]
    fn a_bridge_has_a_name_and_addresses() {
        let bridge = CniConfig::default().bridge();
        assert_eq!(bridge.plugins[0]["bridge"], "buildkit0");
        let own = CniConfig {
            bridge_name: "b1".into(),
            bridge_subnet: "10.9.0.0/24".into(),
            ..CniConfig::default()
        };
        let bridge = own.bridge().plugins[0].clone();
        assert_eq!(bridge["bridge"], "b1");
        assert_eq!(bridge["ipam"]["ranges"][0][0]["subnet"], "10.9.0.0/24");
    }
}
