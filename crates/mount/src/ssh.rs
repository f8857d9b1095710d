//! A socket that leads to an ssh agent of the client.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use cooper_proto::pb::SshOpt;
use cooper_session::{Group, Session, SessionError, ssh};
use cooper_snapshot::Mount;
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use crate::MountError;
use crate::error::io;
use crate::manager::Place;

/// The socket, and the tasks that pass on what comes. Dropping it ends them and removes it.
#[derive(Debug)]
pub(crate) struct SshSocket {
    path: PathBuf,
    _tasks: JoinSet<()>,
    _place: Place,
}

/// Looks for a client that forwards the agent. `None` when it may be missing and is.
pub(crate) async fn find(
    options: &SshOpt,
    sessions: &Group,
) -> Result<Option<Session>, MountError> {
    let ask = |session: Session| async move {
        match ssh::check(&session, &options.id).await {
            Ok(()) => Ok(Some(session)),
            Err(_) if options.optional => Ok(None),
            Err(error) => Err(error),
        }
    };
    let result: Result<_, SessionError> = sessions.any(ask).await;
    result.map_err(|error| {
        if error.is_unimplemented() {
            let id = options.id.clone();
            MountError::NoSsh { id }
        } else {
            error.into()
        }
    })
}

impl SshSocket {
    pub(crate) fn listen(
        place: Place,
        options: &SshOpt,
        session: Session,
    ) -> Result<Self, MountError> {
        let path = place.path().join("agent");
        let listen = || {
            // By descriptor, because the name of a socket is short (unix(7)).
            let dir = std::fs::File::open(place.path())?;
            let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
            let listener = UnixListener::bind(format!("/proc/self/fd/{fd}/agent"))?;
            std::os::unix::fs::lchown(&path, Some(options.uid), Some(options.gid))?;
            let mode = std::fs::Permissions::from_mode(options.mode & 0o777);
            std::fs::set_permissions(&path, mode)?;
            Ok(listener)
        };
        let listener = listen().map_err(io("listen on", &path))?;
        let mut tasks = JoinSet::new();
        tasks.spawn(ssh::serve(listener, session, options.id.clone()));
        Ok(Self {
            path,
            _tasks: tasks,
            _place: place,
        })
    }

    pub(crate) fn mount(&self) -> Mount {
        Mount {
            kind: "bind".into(),
            source: self.path.clone(),
            options: vec!["rbind".into()],
        }
    }
}

impl Drop for SshSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
