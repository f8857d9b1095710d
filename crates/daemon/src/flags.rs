//! The flags, by the names of buildkitd's (`cmd/buildkitd/main*.go`). A flag goes before the
//! configuration file.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser};

use crate::config::{Config, DiskSpace, WorkerConfig};
use crate::places::Places;
use crate::{DaemonError, listen};

/// The build daemon.
#[derive(Clone, Debug, Default, Parser)]
#[command(
    name = "cooperd",
    disable_version_flag = true,
    // As Go's flags: the last one counts.
    args_override_self = true,
    rename_all = "kebab-case"
)]
#[allow(missing_docs)]
pub struct Flags {
    /// Path to the configuration file [default: /etc/buildkit/buildkitd.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Debug output in logs
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub debug: Option<bool>,
    /// Everything in logs
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub trace: Option<bool>,
    /// Path to the state directory [default: /var/lib/cooper]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Listening address: unix://PATH, tcp://HOST:PORT or fd://NAME; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub addr: Vec<String>,
    /// Log format: text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Log level: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Group (name or number) that owns the Unix sockets
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Address of the debug handlers: HOST:PORT, tcp://HOST:PORT or unix://PATH
    #[arg(long, value_name = "ADDRESS")]
    pub debugaddr: Option<String>,
    /// Certificate of the server
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<String>,
    /// Its key
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<String>,
    /// Certificate authority that clients are verified with
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<String>,
    /// Rights that clients may ask for: network.host, security.insecure, device; may be repeated
    #[arg(long, value_name = "RIGHT", value_delimiter = ',')]
    pub allow_insecure_entitlement: Vec<String>,
    /// Force build traffic through a proxy
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub proxy_network: Option<bool>,
    /// Socket of the trace collector
    #[arg(long, value_name = "PATH")]
    pub otel_socket_path: Option<String>,
    /// No CDI devices
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub cdi_disabled: Option<bool>,
    /// Directories of CDI specifications
    #[arg(long, value_name = "DIR")]
    pub cdi_spec_dir: Vec<String>,
    /// Keep what cache keys are made of, for the debug handlers
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub save_cache_debug: Option<bool>,
    /// Options for rootless containers
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL")]
    pub rootless: Option<bool>,
    /// Print the version
    #[arg(long, short = 'v')]
    pub version: bool,

    /// Run steps through an OCI runtime: true, false or auto
    #[arg(long, value_name = "true|false|auto")]
    pub oci_worker: Option<String>,
    #[arg(
        long,
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        help = "Labels of the worker; may be repeated"
    )]
    pub oci_worker_labels: Vec<String>,
    #[arg(
        long,
        value_name = "NAME",
        help = "Snapshotter: auto, overlayfs or native"
    )]
    pub oci_worker_snapshotter: Option<String>,
    #[arg(long, value_name = "PATH", help = "Socket of a proxy snapshotter")]
    pub oci_worker_proxy_snapshotter_path: Option<String>,
    #[arg(
        long,
        value_name = "PLATFORM",
        value_delimiter = ',',
        help = "Platforms instead of those of the machine"
    )]
    pub oci_worker_platform: Vec<String>,
    #[arg(
        long,
        value_name = "MODE",
        help = "Network of steps: auto, host, none, cni or bridge"
    )]
    pub oci_worker_net: Option<String>,
    #[arg(long, value_name = "FILE", help = "CNI configuration")]
    pub oci_cni_config_path: Option<String>,
    #[arg(long, value_name = "DIR", help = "CNI plug-ins")]
    pub oci_cni_binary_dir: Option<String>,
    #[arg(long, value_name = "COUNT", help = "Prepared CNI namespaces")]
    pub oci_cni_pool_size: Option<i64>,
    #[arg(long, value_name = "NAME", help = "Bridge of the built-in network")]
    pub oci_worker_bridge_name: Option<String>,
    #[arg(long, value_name = "CIDR", help = "Subnet of the built-in network")]
    pub oci_worker_bridge_subnet: Option<String>,
    #[arg(long, value_name = "PROGRAM", help = "OCI runtime")]
    pub oci_worker_binary: Option<String>,
    #[arg(long, value_name = "PROFILE", help = "AppArmor profile of steps")]
    pub oci_worker_apparmor_profile: Option<String>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "SELinux labels")]
    pub oci_worker_selinux: Option<bool>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "Rootless mode")]
    pub oci_worker_rootless: Option<bool>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "Steps share the host's process namespace")]
    pub oci_worker_no_process_sandbox: Option<bool>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "Prune the cache by itself")]
    pub oci_worker_gc: Option<bool>,
    #[arg(
        long,
        value_name = "MB",
        help = "Space that pruning leaves: RESERVED[,FREE[,MAXIMUM]]"
    )]
    pub oci_worker_gc_keepstorage: Option<String>,
    #[arg(long, value_name = "COUNT", help = "Steps at a time")]
    pub oci_max_parallelism: Option<String>,

    /// Run steps through containerd: true, false or auto
    #[arg(long, value_name = "true|false|auto")]
    pub containerd_worker: Option<String>,
    #[arg(long, value_name = "PATH", help = "containerd's socket")]
    pub containerd_worker_addr: Option<String>,
    #[arg(
        long,
        value_name = "KEY=VALUE",
        value_delimiter = ',',
        help = "Labels of the worker; may be repeated"
    )]
    pub containerd_worker_labels: Vec<String>,
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', hide = true)]
    pub containerd_worker_platform: Vec<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub containerd_worker_namespace: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub containerd_worker_runtime: Option<String>,
    #[arg(long, value_name = "MODE", help = "Network of steps")]
    pub containerd_worker_net: Option<String>,
    #[arg(long, value_name = "FILE", help = "CNI configuration")]
    pub containerd_cni_config_path: Option<String>,
    #[arg(long, value_name = "DIR", help = "CNI plug-ins")]
    pub containerd_cni_binary_dir: Option<String>,
    #[arg(long, value_name = "COUNT", help = "Prepared CNI namespaces")]
    pub containerd_cni_pool_size: Option<i64>,
    #[arg(long, value_name = "NAME", help = "Bridge of the built-in network")]
    pub containerd_worker_bridge_name: Option<String>,
    #[arg(long, value_name = "CIDR", help = "Subnet of the built-in network")]
    pub containerd_worker_bridge_subnet: Option<String>,
    #[arg(long, value_name = "NAME", help = "Snapshotter")]
    pub containerd_worker_snapshotter: Option<String>,
    #[arg(long, value_name = "PROFILE", help = "AppArmor profile of steps")]
    pub containerd_worker_apparmor_profile: Option<String>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "SELinux labels")]
    pub containerd_worker_selinux: Option<bool>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "Rootless mode")]
    pub containerd_worker_rootless: Option<bool>,
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = truth, value_name = "BOOL", help = "Prune the cache by itself")]
    pub containerd_worker_gc: Option<bool>,
    #[arg(
        long,
        value_name = "MB",
        help = "Space that pruning leaves: RESERVED[,FREE[,MAXIMUM]]"
    )]
    pub containerd_worker_gc_keepstorage: Option<String>,
    #[arg(long, value_name = "COUNT", help = "Steps at a time")]
    pub containerd_max_parallelism: Option<String>,
}

impl Flags {
    /// Reads a command line, the program's name first. One dash is as good as two, as with Go's
    /// flags.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let long = |arg: OsString| match arg.to_str() {
            Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
                format!("-{text}").into()
            }
            _ => arg,
        };
        Self::try_parse_from(args.into_iter().map(long))
    }

    /// The configuration file that they name, or the usual one if it is there, with the flags
    /// over it and the defaults under it.
    pub fn config(&self) -> Result<Config, DaemonError> {
        let mut config = match &self.config {
            Some(path) => Config::load(path)?,
            None => match Config::load(Config::DEFAULT_PATH.as_ref()) {
                Err(DaemonError::ReadConfig { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Config::default()
                }
                loaded => loaded?,
            },
        };
        self.apply(&mut config)?;
        let places = Places::of_this_user();
        if config.root.as_os_str().is_empty() {
            config.root = places.root;
        }
        if config.grpc.address.is_empty() {
            config.grpc.address = vec![format!("unix://{}", places.socket.display())];
        }
        Ok(config)
    }

    fn apply(&self, config: &mut Config) -> Result<(), DaemonError> {
        put(&mut config.debug, self.debug);
        put(&mut config.trace, self.trace);
        put(&mut config.root, self.root.clone());
        put(&mut config.log.format, self.log_format.clone());
        if self.log_level.is_some() {
            config.log.level.clone_from(&self.log_level);
        }
        if !self.addr.is_empty() {
            config.grpc.address.clone_from(&self.addr);
        }
        if let Some(group) = &self.group {
            config.grpc.gid = Some(listen::group_id(group)?);
        }
        put(&mut config.grpc.debug_address, self.debugaddr.clone());
        put(&mut config.save_cache_debug, self.save_cache_debug);
        put(&mut config.grpc.tls.cert, self.tlscert.clone());
        put(&mut config.grpc.tls.key, self.tlskey.clone());
        put(&mut config.grpc.tls.ca, self.tlscacert.clone());
        if !self.allow_insecure_entitlement.is_empty() {
            config
                .insecure_entitlements
                .clone_from(&self.allow_insecure_entitlement);
        }
        if self.proxy_network == Some(true) {
            config.proxy_network = Some(toml::Value::Boolean(true));
        }
        put(&mut config.otel.socket_path, self.otel_socket_path.clone());
        if self.cdi_disabled.is_some() {
            config.cdi.disabled = self.cdi_disabled;
        }
        if !self.cdi_spec_dir.is_empty() {
            config.cdi.spec_dirs.clone_from(&self.cdi_spec_dir);
        }
        self.apply_oci(&mut config.worker.oci)?;
        self.apply_containerd(&mut config.worker.containerd)
    }

    fn apply_oci(&self, worker: &mut WorkerConfig) -> Result<(), DaemonError> {
        enabled(
            &mut worker.enabled,
            "oci-worker",
            self.oci_worker.as_deref(),
        )?;
        labels(worker, "oci-worker-labels", &self.oci_worker_labels)?;
        put(&mut worker.snapshotter, self.oci_worker_snapshotter.clone());
        put(
            &mut worker.proxy_snapshotter_path,
            self.oci_worker_proxy_snapshotter_path.clone(),
        );
        if !self.oci_worker_platform.is_empty() {
            worker.platforms.clone_from(&self.oci_worker_platform);
        }
        put(&mut worker.network_mode, self.oci_worker_net.clone());
        put(
            &mut worker.cni_config_path,
            self.oci_cni_config_path.clone(),
        );
        put(&mut worker.cni_binary_path, self.oci_cni_binary_dir.clone());
        put(&mut worker.cni_pool_size, self.oci_cni_pool_size);
        put(&mut worker.bridge_name, self.oci_worker_bridge_name.clone());
        put(
            &mut worker.bridge_subnet,
            self.oci_worker_bridge_subnet.clone(),
        );
        put(&mut worker.binary, self.oci_worker_binary.clone());
        put(
            &mut worker.apparmor_profile,
            self.oci_worker_apparmor_profile.clone(),
        );
        put(&mut worker.selinux, self.oci_worker_selinux);
        put(&mut worker.rootless, self.rootless);
        put(&mut worker.rootless, self.oci_worker_rootless);
        put(
            &mut worker.no_process_sandbox,
            self.oci_worker_no_process_sandbox,
        );
        if self.oci_worker_gc.is_some() {
            worker.gc = self.oci_worker_gc;
        }
        let keep = self.oci_worker_gc_keepstorage.as_deref();
        keep_storage(worker, "oci-worker-gc-keepstorage", keep)?;
        let limit = self.oci_max_parallelism.as_deref();
        parallelism(worker, "oci-max-parallelism", limit)
    }

    fn apply_containerd(&self, worker: &mut WorkerConfig) -> Result<(), DaemonError> {
        enabled(
            &mut worker.enabled,
            "containerd-worker",
            self.containerd_worker.as_deref(),
        )?;
        labels(
            worker,
            "containerd-worker-labels",
            &self.containerd_worker_labels,
        )?;
        put(&mut worker.address, self.containerd_worker_addr.clone());
        if !self.containerd_worker_platform.is_empty() {
            worker
                .platforms
                .clone_from(&self.containerd_worker_platform);
        }
        put(
            &mut worker.namespace,
            self.containerd_worker_namespace.clone(),
        );
        put(
            &mut worker.runtime.name,
            self.containerd_worker_runtime.clone(),
        );
        put(&mut worker.network_mode, self.containerd_worker_net.clone());
        put(
            &mut worker.cni_config_path,
            self.containerd_cni_config_path.clone(),
        );
        put(
            &mut worker.cni_binary_path,
            self.containerd_cni_binary_dir.clone(),
        );
        put(&mut worker.cni_pool_size, self.containerd_cni_pool_size);
        put(
            &mut worker.bridge_name,
            self.containerd_worker_bridge_name.clone(),
        );
        put(
            &mut worker.bridge_subnet,
            self.containerd_worker_bridge_subnet.clone(),
        );
        put(
            &mut worker.snapshotter,
            self.containerd_worker_snapshotter.clone(),
        );
        put(
            &mut worker.apparmor_profile,
            self.containerd_worker_apparmor_profile.clone(),
        );
        put(&mut worker.selinux, self.containerd_worker_selinux);
        put(&mut worker.rootless, self.rootless);
        put(&mut worker.rootless, self.containerd_worker_rootless);
        if self.containerd_worker_gc.is_some() {
            worker.gc = self.containerd_worker_gc;
        }
        let keep = self.containerd_worker_gc_keepstorage.as_deref();
        keep_storage(worker, "containerd-worker-gc-keepstorage", keep)?;
        let limit = self.containerd_max_parallelism.as_deref();
        parallelism(worker, "containerd-max-parallelism", limit)
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn invalid(flag: &'static str, value: &str, reason: &str) -> DaemonError {
    DaemonError::Flag {
        flag,
        value: value.to_owned(),
        reason: reason.to_owned(),
    }
}

fn enabled(
    place: &mut Option<bool>,
    flag: &'static str,
    value: Option<&str>,
) -> Result<(), DaemonError> {
    match value {
        None => {}
        Some(auto) if auto.is_empty() || auto.eq_ignore_ascii_case("auto") => *place = None,
        Some(other) => match truth(other) {
            Ok(value) => *place = Some(value),
            Err(_) => return Err(invalid(flag, other, "true, false and auto are known")),
        },
    }
    Ok(())
}

/// Truth values as Go's flags take them (`strconv.ParseBool`).
fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true and false are known".to_owned()),
    }
}

fn labels(
    worker: &mut WorkerConfig,
    flag: &'static str,
    pairs: &[String],
) -> Result<(), DaemonError> {
    for pair in pairs {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| invalid(flag, pair, "it is not KEY=VALUE"))?;
        worker.labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(())
}

/// `RESERVED[,FREE[,MAXIMUM]]`: plain numbers are megabytes.
fn keep_storage(
    worker: &mut WorkerConfig,
    flag: &'static str,
    value: Option<&str>,
) -> Result<(), DaemonError> {
    let Some(value) = value else {
        return Ok(());
    };
    let places = [
        &mut worker.reserved_space,
        &mut worker.min_free_space,
        &mut worker.max_used_space,
    ];
    for (place, part) in places.into_iter().zip(value.split(',')) {
        let part = match part.trim().parse::<u64>() {
            Ok(megabytes) => format!("{megabytes}000000"),
            Err(_) => part.to_owned(),
        };
        *place = DiskSpace::parse(&part)
            .ok_or_else(|| invalid(flag, value, "it is not a number of megabytes or a size"))?;
    }
    Ok(())
}

/// A number, or `num-cpu`.
fn parallelism(
    worker: &mut WorkerConfig,
    flag: &'static str,
    value: Option<&str>,
) -> Result<(), DaemonError> {
    worker.max_parallelism = match value {
        None => return Ok(()),
        Some("num-cpu") => {
            let count = std::thread::available_parallelism();
            count.map_or(1, |count| i64::try_from(count.get()).unwrap_or(1))
        }
        Some(text) => text
            .parse()
            .map_err(|_| invalid(flag, text, "it is not a number"))?,
    };
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(args: &[&str]) -> Config {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let file = empty.path().to_str().unwrap().to_owned();
        let all = ["cooperd", "--config", &file]
            .into_iter()
            .chain(args.iter().copied());
        let flags = Flags::read(all.map(OsString::from)).unwrap();
        flags.config().unwrap()
    }

    #[test]
    fn the_line_that_test_suites_use_is_read() {
        let config = config(&[
            "--oci-worker=true",
            "--containerd-worker=false",
            "--oci-worker-gc=false",
            "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
            "--root",
            "/tmp/r",
            "--addr",
            "unix:///tmp/s.sock",
            "--debug",
        ]);
        let worker = &config.worker;
        assert_eq!(
            (worker.oci.enabled, worker.containerd.enabled),
            (Some(true), Some(false))
        );
        assert_eq!(worker.oci.gc, Some(false));
        assert_eq!(
            worker.oci.labels["org.mobyproject.buildkit.worker.sandbox"],
            "true"
        );
        assert!(config.debug);
        assert_eq!(config.grpc.address, ["unix:///tmp/s.sock"]);
        assert_eq!(config.without_effect(), [""; 0]);
    }

    #[test]
    fn forms_of_flags() {
        let config = config(&[
            "-root=/y",
            "-root=/x",
            "--debug=F",
            "--trace=0",
            "--oci-worker",
            "AUTO",
            "--oci-worker-labels",
            "a=b,c=d",
            "--addr=tcp://127.0.0.1:1",
            "--addr",
            "unix:///y",
            "--oci-worker-gc-keepstorage=100,10%",
            "--oci-max-parallelism=num-cpu",
        ]);
        assert_eq!(config.root, PathBuf::from("/x"));
        assert!(!config.debug);
        assert_eq!(config.worker.oci.labels.len(), 2);
        assert_eq!(config.grpc.address.len(), 2);
        assert_eq!(config.worker.oci.reserved_space.bytes, 100_000_000);
        assert_eq!(config.worker.oci.min_free_space.percentage, 10);
        assert!(config.worker.oci.max_parallelism >= 1);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for flag in ["--no-such-flag", "--debug=perhaps", "--oci-cni-pool-size=x"] {
            assert!(Flags::read(["cooperd", flag].map(OsString::from)).is_err());
        }
        for args in [
            ["cooperd", "--oci-worker=maybe"],
            ["cooperd", "--oci-worker-labels=x"],
            ["cooperd", "--group=no-such-group-at-all"],
        ] {
            let flags = Flags::read(args.map(OsString::from)).unwrap();
            assert!(matches!(flags.config(), Err(DaemonError::Flag { .. })));
        }
    }
}
