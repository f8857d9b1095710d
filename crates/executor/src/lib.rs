//! Running a process in a container: the trait, what a container and a process are, and what
//! every implementation needs to turn them into an OCI runtime's configuration: users, hosts
//! and resolv.conf, the mounts' places on the host, the clean-up of mount points, control groups
//! and the moving of output.
//!
//! This crate refuses to know how a container is made, where its files come from, and what it
//! is run for. A process that ends with another code than zero is no error here.
//!
//! ```
//! use cooper_executor::{ContainerSpec, Process, SpecContext, User, oci_spec};
//!
//! let container = ContainerSpec::default();
//! let process = Process::new(["/bin/sh", "-c", "true"]);
//! let context = SpecContext::new("some-id", "/root/fs".as_ref());
//! let spec = oci_spec(&container, &process, &User::default(), &context)?;
//! assert_eq!(spec.hostname().as_deref(), Some("buildkitsandbox"));
//! # Ok::<_, cooper_executor::ExecError>(())
//! ```
#![forbid(unsafe_code)]

mod apparmor;
mod attach;
mod bundle;
mod capabilities;
pub mod cni;
mod container;
mod devices;
mod ended;
mod error;
mod executor;
mod group;
mod hosts;
mod machine;
mod path;
mod process;
pub mod pump;
mod resolv;
mod rootless;
mod seccomp;
mod spec;
mod strays;
mod stubs;
#[cfg(feature = "testsuite")]
pub mod testsuite;
mod user;

pub use apparmor::unconfinable;
pub use attach::Attached;
pub use bundle::{Bundle, remove_left};
pub use capabilities::Capabilities;
pub use container::{
    ContainerMount, ContainerSpec, DEFAULT_HOSTNAME, HostIp, NetworkMode, Resources, SecurityMode,
    Ulimit, container_id,
};
pub use cooper_sys::cgroup::Usage;
pub use ended::Ended;
pub use error::ExecError;
pub use executor::{Executor, Running};
pub use group::{Group, is_of_systemd, process_ended, process_ended_blocking};
pub use hosts::hosts_file;
pub use machine::{Common, Machine};
pub use path::{check_root, make_cwd, real_path};
pub use process::{Exit, Input, Output, Process, TtySize};
pub use resolv::{DnsConfig, resolv_conf, resolv_conf_of_host};
pub use seccomp::OtherCalls;
pub use spec::{SpecContext, exec_process, oci_spec};
pub use strays::processes_with;
pub use stubs::MountStubs;
pub use user::{User, find_user};
