//! A client's ssh agents.

use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::ssh::ssh_client::SshClient;
use cooper_proto::ssh::{BytesMessage, CheckAgentRequest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;

use crate::filesync::{append, lazy};
use crate::{Session, SessionError, Tunnel};

pub(crate) const CHECK_AGENT: &str = "/moby.sshforward.v1.SSH/CheckAgent";
pub(crate) const FORWARD_AGENT: &str = "/moby.sshforward.v1.SSH/ForwardAgent";
pub(crate) const ID: &str = "buildkit.ssh.id";

/// The agent that is meant when none is named.
pub const DEFAULT_ID: &str = "default";

/// Asks whether the client forwards the agent `id`.
///
/// # Errors
/// [`SessionError::Unsupported`] when it forwards none, else its own error.
///
/// # Cancel safety
/// Cancel safe.
pub async fn check(session: &Session, id: &str) -> Result<(), SessionError> {
    session.require(CHECK_AGENT)?;
    let request = CheckAgentRequest { id: id.into() };
    let answer = client(session).check_agent(request).await;
    answer.map(drop).map_err(SessionError::call(CHECK_AGENT))
}

/// A connection to the agent `id`. It is made with the first bytes: an error comes with the
/// first read.
///
/// # Errors
/// The client forwards no agents.
pub fn forward(session: &Session, id: &str) -> Result<Tunnel<BytesMessage>, SessionError> {
    session.require(FORWARD_AGENT)?;
    let (outgoing, messages) = Tunnel::sender();
    let mut call = Request::new(messages);
    append(call.metadata_mut(), ID, &[id.to_owned()]);
    let mut client = client(session);
    let incoming = lazy(async move { client.forward_agent(call).await });
    Ok(Tunnel::join(incoming, outgoing))
}

/// Passes on what comes to a socket to the agent `id`, until it is dropped.
///
/// # Cancel safety
/// Dropping the future ends all connections.
pub async fn serve(listener: UnixListener, session: Session, id: String) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(pass_on(stream, session.clone(), id.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot take connections to the ssh agent");
                    return;
                }
            },
            // Those that have ended are taken out as they end.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass_on(mut stream: UnixStream, session: Session, id: String) {
    let mut tunnel = match forward(&session, &id) {
        Ok(tunnel) => tunnel,
        Err(error) => {
            tracing::debug!(%error, id, "the client does not forward its ssh agent");
            return;
        }
    };
    if let Err(error) = tokio::io::copy_bidirectional(&mut stream, &mut tunnel).await {
        tracing::debug!(%error, id, "a connection to the ssh agent broke");
    }
}

fn client(session: &Session) -> SshClient<Channel> {
    SshClient::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE)
}
