//! Unpacks an image from an OCI layout and runs it, or another command in it.
use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use cooper_executor::{ContainerSpec, Executor, Process};
use cooper_executor_runc::{RuncConfig, RuncExecutor};
use cooper_layer::unpack::{Limits, unpack};
use cooper_snapshot::Mount;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // Before there are threads: the built-in runtime runs this program again, as its helper.
    cooper_executor_runc::enter_if_asked();
    let mut args = std::env::args().skip(1);
    let layout = args.next().ok_or("usage: run-an-image LAYOUT [COMMAND…]")?;
    let scratch = tempfile::tempdir()?;
    let root = scratch.path().join("root");
    std::fs::create_dir(&root)?;
    let image = unpack_image(layout.as_ref(), &root)?;
    let state = scratch.path().join("state");
    let running = run(&image, args.collect(), &root, &state);
    tokio::runtime::Runtime::new()?.block_on(running)
}

/// Unpacks the first image of the layout that is for this machine, and returns its configuration.
fn unpack_image(layout: &Path, root: &Path) -> Result<ImageConfiguration, Box<dyn Error>> {
    let open = |blob: &Descriptor| {
        let digest = blob.digest();
        File::open(
            layout
                .join("blobs")
                .join(digest.algorithm().as_ref())
                .join(digest.digest()),
        )
    };
    let mut index = ImageIndex::from_file(layout.join("index.json"))?;
    let manifest = loop {
        let ours = |entry: &&Descriptor| {
            let platform = entry.platform().as_ref();
            platform.is_none_or(|platform| *platform.architecture() == Default::default())
        };
        let entry = index
            .manifests()
            .iter()
            .find(ours)
            .ok_or("no image for this machine")?;
        match entry.media_type() {
            MediaType::ImageIndex => index = ImageIndex::from_reader(open(entry)?)?,
            _ => break ImageManifest::from_reader(open(entry)?)?,
        }
    };
    let image = ImageConfiguration::from_reader(open(manifest.config())?)?;
    for (layer, diff_id) in manifest.layers().iter().zip(image.rootfs().diff_ids()) {
        let unpacked = unpack(
            open(layer)?,
            &[Mount::bind(root, false)],
            &Limits::default(),
        )?;
        eprintln!(
            "run-an-image: {} entries of {}",
            unpacked.entries,
            layer.digest()
        );
        if unpacked.diff_id.as_ref() != diff_id {
            return Err(format!("{} is not what the image says", layer.digest()).into());
        }
    }
    Ok(image)
}

/// Runs a command, or what the image was made for, as the image says.
async fn run(
    image: &ImageConfiguration,
    command: Vec<String>,
    root: &Path,
    state: &Path,
) -> Result<ExitCode, Box<dyn Error>> {
    let config = image.config().clone().unwrap_or_default();
    let mut args = config.entrypoint().clone().unwrap_or_default();
    match command.is_empty() {
        true => args.extend(config.cmd().iter().flatten().cloned()),
        false => args.extend(command),
    }
    let mut process = Process::new(args).with_own_streams()?;
    process.env = config.env().clone().unwrap_or_default();
    process.cwd = config.working_dir().clone().unwrap_or_default();
    process.user = config.user().clone().unwrap_or_default();
    let executor = RuncExecutor::new(RuncConfig::new(state))?;
    let running = executor
        .start(ContainerSpec::in_folder(root), process)
        .await?;
    let exit = running.wait().await?;
    executor.close().await;
    eprintln!("run-an-image: {exit}");
    Ok(ExitCode::from(u8::try_from(exit.code)?))
}
