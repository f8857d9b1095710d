//! Children that do not outlive their parent.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Makes the kernel kill the child when the *thread* that spawns it ends (prctl(2),
/// `PR_SET_PDEATHSIG`), and with the last thread the process: spawn it from a thread that lives
/// as long as the child may.
pub fn die_with_parent(command: &mut Command) {
    let set = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_ends_with_the_thread_that_spawned_it() {
        let spawned = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            die_with_parent(&mut command);
            command.arg("100").spawn().unwrap()
        });
        let status = spawned.join().unwrap().wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}
