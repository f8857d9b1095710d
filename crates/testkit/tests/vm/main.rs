//! Cases that need a machine for themselves: `cargo xtask test-vm` runs them in a virtual one,
//! with control groups of version 2 alone, AppArmor and systemd.
#![allow(clippy::unwrap_used, missing_docs)]

mod apparmor;
/// What the end-to-end cases have in common, of which these need a part.
#[allow(dead_code)]
#[path = "../e2e/client.rs"]
mod client;
mod cuts;
mod limits;
#[path = "../e2e/power.rs"]
#[allow(dead_code)]
mod power;
mod systemd;
mod users;
