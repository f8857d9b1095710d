//! Another process in a container.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;

use oci_spec::runtime::Process;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags};

use crate::seccomp::Filter;
use crate::status::Reporter;
use crate::{console, helper, process};

/// What the process needs to know, put together before it is there.
pub(crate) struct Exec<'a> {
    pub(crate) process: &'a Process,
    pub(crate) filter: Option<Filter>,
    /// The first process of the container.
    pub(crate) container: BorrowedFd<'a>,
    pub(crate) namespaces: UnshareFlags,
    pub(crate) groups: &'a [PathBuf],
    pub(crate) status: &'a Reporter,
    pub(crate) stdio: Vec<OwnedFd>,
}

impl Exec<'_> {
    /// Runs the program; returns only if that fails.
    pub(crate) fn run(&self) -> u8 {
        let Err(message) = self.try_run();
        self.status.failed(&message);
        1
    }

    fn try_run(&self) -> Result<std::convert::Infallible, String> {
        crate::request::check_process(self.process).map_err(|error| error.to_string())?;
        helper::enter_groups(self.groups)?;
        process::begin(self.process, &self.stdio)?;
        // This process was born in the process namespace.
        let others = self.namespaces - UnshareFlags::NEWPID;
        let others = ThreadNameSpaceType::from_bits_retain(others.bits());
        rustix::thread::move_into_thread_name_spaces(self.container, others)
            .map_err(|error| format!("enter the container: {error}"))?;
        let mut outer = None;
        if self.process.terminal().unwrap_or_default() {
            outer = Some(console::open_inside(self.process)?);
        }
        process::run(self.process, self.filter.as_ref(), self.status, outer)
    }
}
