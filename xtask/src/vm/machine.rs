//! The guest: qemu, the script that it runs, and the cord that can be pulled.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::image::Image;

/// What the guest says when its script has ended.
const EXIT: &str = "vm-run: exit ";

/// A virtual machine that is not running.
#[derive(Debug)]
pub(super) struct Machine {
    image: Image,
    /// What it says and what it is told.
    dir: PathBuf,
}

/// How the script of a boot ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this code.
    Exit(i32),
    /// The machine was stopped before.
    Cut,
}

/// How a guest is booted.
#[derive(Debug)]
pub(super) struct Boot<'a> {
    pub(super) systemd: bool,
    /// Its second disk.
    pub(super) data: &'a Path,
    /// Whether that keeps what is written to it.
    pub(super) keep: bool,
    /// What it runs, with `bash` in the root of that disk.
    pub(super) script: String,
    /// When it has not ended by then, it is stopped and has failed.
    pub(super) limit: Duration,
}

impl Machine {
    pub(super) fn new(image: Image, dir: &Path) -> Self {
        Self {
            image,
            dir: dir.to_owned(),
        }
    }

    /// Boots it and hands each line of the script's output to `line`, which may answer with a
    /// time after which the power is cut.
    ///
    /// A cut is the end of qemu: what the guest has in its page cache is lost. What it has
    /// written to its disk is there when it is booted again, whether it has asked for it to be
    /// flushed or not: with `cache=unsafe` it is in the page cache of this machine, which goes
    /// on, and nothing else is between the two.
    pub(super) fn run(
        &self,
        boot: &Boot<'_>,
        mut line: impl FnMut(&str) -> Option<Duration>,
    ) -> Result<End> {
        let script = self.dir.join("script");
        let mut text = boot.script.as_bytes().to_vec();
        // A disk has whole sectors.
        text.resize(text.len().next_multiple_of(512), b'\n');
        std::fs::write(&script, text).context("write the guest's script")?;
        let console = self.dir.join("console");
        let mut guest = self.start(boot, &script, &console)?;
        let lines = read(&mut guest)?;
        let mut deadline = Instant::now() + boot.limit;
        let mut cutting = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(text) => match text.strip_prefix(EXIT) {
                    Some(code) => {
                        guest.wait()?;
                        return Ok(End::Exit(code.trim().parse().context("read its end")?));
                    }
                    None => {
                        if let Some(after) = line(&text) {
                            deadline = Instant::now() + after;
                            cutting = true;
                        }
                    }
                },
                Err(RecvTimeoutError::Timeout) if cutting => return Ok(End::Cut),
                Err(RecvTimeoutError::Timeout) => {
                    bail!("the guest has not ended after {} s", boot.limit.as_secs())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let text = std::fs::read(&console).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let tail: Vec<_> = text.lines().rev().take(30).collect();
                    let tail: Vec<_> = tail.into_iter().rev().collect();
                    bail!("the guest stopped; its console:\n{}", tail.join("\n"));
                }
            }
        }
    }

    fn start(&self, boot: &Boot<'_>, script: &Path, console: &Path) -> Result<Guest> {
        let drive = |path: &Path, more: &str| {
            let path = path.display().to_string().replace(',', ",,");
            format!("file={path},format=raw,if=virtio,cache=unsafe,{more}")
        };
        let systemd = if boot.systemd { " vm.systemd" } else { "" };
        // Emulated where the processor or this machine's own machine has no KVM.
        let kvm = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .is_ok();
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kvm = kvm
            && flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm");
        // The guest does not outlive this program.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-machine", "q35", "-cpu", "max", "-m", "2048", "-smp", "2"])
            .args(["-accel", if kvm { "kvm" } else { "tcg" }])
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .arg("-append")
            .arg(format!("console=ttyS0 quiet panic=-1{systemd}"))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .arg("-drive")
            .arg(drive(&self.image.root, "snapshot=on"))
            .arg("-drive")
            .arg(drive(
                boot.data,
                if boot.keep {
                    "discard=unmap"
                } else {
                    "snapshot=on"
                },
            ))
            .arg("-drive")
            .arg(drive(script, "readonly=on"))
            .env("TMPDIR", &self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        Ok(Guest(command.spawn().context("start qemu")?))
    }
}

/// A machine that runs; stopped when dropped, as when its cord is pulled.
struct Guest(Child);

impl Guest {
    /// Waits until it has turned itself off.
    fn wait(&mut self) -> Result<()> {
        let begin = Instant::now();
        while self.0.try_wait()?.is_none() {
            if begin.elapsed() > Duration::from_secs(60) {
                bail!("the guest does not turn itself off");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that the script prints, from a thread that ends with the guest.
fn read(guest: &mut Guest) -> Result<Receiver<String>> {
    let output = guest.0.stdout.take().context("qemu's output is a pipe")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    Ok(lines)
}
