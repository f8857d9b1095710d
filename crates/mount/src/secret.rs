//! A secret as a file in memory.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cooper_proto::pb::SecretOpt;
use cooper_session::{Group, Session, secrets};
use cooper_snapshot::Mount;
use cooper_sys::MountGuard;

use crate::MountError;
use crate::error::io;
use crate::manager::Place;

/// A secret on a file system of its own that is never written to a disk (a tmpfs may be
/// swapped). Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct SecretFile {
    file: PathBuf,
    // Unmounted before its place is removed.
    _mount: MountGuard,
    _place: Place,
}

/// Asks the clients for the secret. `None` when it may be missing and is.
pub(crate) async fn fetch(
    options: &SecretOpt,
    sessions: &Group,
) -> Result<Option<Vec<u8>>, MountError> {
    if options.id.is_empty() {
        return Err(MountError::NoSecretId);
    }
    let not_found = || MountError::SecretNotFound {
        id: options.id.clone(),
    };
    // A client that does not have it: perhaps the next one does.
    let ask = |session: Session| async move {
        let found = secrets::get(&session, &options.id).await?;
        found.ok_or_else(not_found)
    };
    match sessions.any(ask).await {
        Ok(data) => Ok(Some(data)),
        Err(MountError::SecretNotFound { .. }) if options.optional => Ok(None),
        Err(error) => Err(error),
    }
}

impl SecretFile {
    /// Writes the secret down. Blocks.
    pub(crate) fn write(
        place: Place,
        data: &[u8],
        options: &SecretOpt,
    ) -> Result<Self, MountError> {
        let flags = ["nodev", "nosuid", "noexec", "mode=700"].map(str::to_owned);
        let mount = MountGuard::mount("tmpfs", Path::new("tmpfs"), &flags, place.path())
            .map_err(io("mount a tmpfs on", place.path()))?;
        let file = place.path().join("secret");
        let write = || {
            let mut new = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&file)?;
            new.write_all(data)?;
            std::os::unix::fs::fchown(&new, Some(options.uid), Some(options.gid))?;
            new.set_permissions(std::fs::Permissions::from_mode(options.mode & 0o777))
        };
        write().map_err(io("write the secret", &file))?;
        Ok(Self {
            file,
            _mount: mount,
            _place: place,
        })
    }

    pub(crate) fn mount(&self) -> Mount {
        let options = ["ro", "rbind", "nodev", "nosuid", "noexec"];
        Mount {
            kind: "bind".into(),
            source: self.file.clone(),
            options: options.map(str::to_owned).to_vec(),
        }
    }
}
