//! The demo: one command from a fresh machine to a built image that runs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{cargo, check};
use crate::workspace;

/// Builds `examples/hello` with no daemon and no network, and runs the result.
pub(crate) fn run() -> Result<()> {
    check(&mut cargo(&["build", "--package", "cooper-cli"]))?;
    let scratch = workspace::target_dir().join("demo");
    let _ = std::fs::remove_dir_all(&scratch);
    let context = scratch.join("context");
    std::fs::create_dir_all(&context).with_context(|| format!("make {}", context.display()))?;
    copy_files(&workspace::root().join("examples/hello"), &context)?;
    // The base image is Debian's static busybox, added by the first stage.
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox
        .iter()
        .find(|path| path.exists())
        .context("busybox is not installed")?;
    std::fs::copy(busybox, context.join("busybox")).context("copy busybox into the context")?;

    let cooper = workspace::target_dir().join("debug/cooper");
    let build = |result: &str| {
        let mut command = Command::new(&cooper);
        command
            .args(["build", "--progress=plain", "--root"])
            .arg(scratch.join("root"))
            .arg("--output")
            .arg(format!(
                "type=local,dest={}",
                scratch.join(result).display()
            ))
            .arg(&context);
        command
    };
    check(&mut build("result"))?;
    let result = scratch.join("result");
    println!("\nThe last stage, as files in {}:", result.display());
    let mut names: Vec<_> = std::fs::read_dir(&result)
        .with_context(|| format!("list {}", result.display()))?
        .collect::<std::io::Result<Vec<_>>>()?;
    names.sort_by_key(std::fs::DirEntry::file_name);
    for entry in names {
        println!(
            "  {:>8} bytes  {}",
            entry.metadata()?.len(),
            entry.file_name().display()
        );
    }
    let greeting = result.join("greeting.txt");
    println!("\n{}:", greeting.display());
    print!(
        "{}",
        std::fs::read_to_string(&greeting).context("the build made no greeting.txt")?
    );
    println!("\nThe same again with another name: only what depends on it is built.");
    let begin = std::time::Instant::now();
    check(build("greeted").args(["--build-arg", "NAME=cooper"]))?;
    print!(
        "\n{} ({} ms)\n",
        std::fs::read_to_string(scratch.join("greeted/greeting.txt"))?.trim_end(),
        begin.elapsed().as_millis()
    );
    Ok(())
}

fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        std::fs::copy(entry.path(), &target)
            .with_context(|| format!("copy {}", entry.path().display()))?;
    }
    Ok(())
}
