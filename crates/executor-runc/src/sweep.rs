//! What an earlier process left that was killed.

use std::path::Path;
use std::sync::Arc;

use cooper_executor::{Group, process_ended_blocking, remove_left};
use cooper_sys::cgroup::Hierarchies;
use oci_spec::runtime::Spec;

use crate::builtin::CGROUP;
use crate::runtime::{remove_state, strays};

/// Kills every container that has a bundle, and removes all that belongs to it.
pub(crate) fn sweep(bundles: &Path, state: &Path, hierarchies: &Arc<Hierarchies>) {
    let Ok(entries) = std::fs::read_dir(bundles) else {
        return;
    };
    let entries: Vec<_> = entries.filter_map(Result::ok).collect();
    if entries.is_empty() {
        // A bundle is there before its runtime is started and until that has ended.
        return;
    }
    // The runtime's processes first, so that no container is just being made.
    for stray in strays(state) {
        let _ = stray.signal(9);
        let _ = process_ended_blocking(&stray);
    }
    for entry in entries {
        let id = entry.file_name().to_string_lossy().into_owned();
        if let Err(error) = remove(&entry.path(), &id, state, hierarchies) {
            tracing::warn!(id, %error, "cannot remove a container that was left");
        }
    }
}

fn remove(
    dir: &Path,
    id: &str,
    state: &Path,
    hierarchies: &Arc<Hierarchies>,
) -> std::io::Result<()> {
    let state = state.join(id);
    let group = cgroup(dir, id).map(|path| Group::new(hierarchies.clone(), &path));
    remove_left(dir, group)?;
    remove_state(&state)
}

/// The control group of a bundle. Without one nothing was started.
fn cgroup(dir: &Path, id: &str) -> Option<String> {
    let path = match std::fs::read_to_string(dir.join(CGROUP)) {
        Ok(path) => path,
        Err(_) => {
            let text = std::fs::read(dir.join("config.json")).ok()?;
            let spec: Spec = serde_json::from_slice(&text).ok()?;
            let path = spec.linux().as_ref()?.cgroups_path().as_ref()?;
            path.display().to_string()
        }
    };
    // Ours always end so; another one is not ours to kill.
    let name = path.rsplit(['/', ':']).next()?;
    (name == id).then_some(path)
}
