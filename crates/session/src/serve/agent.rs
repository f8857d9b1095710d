//! Forwarding of ssh agents.

use std::collections::BTreeMap;
use std::io;

use cooper_proto::ssh::ssh_server;
use cooper_proto::ssh::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::filesync::values;
use crate::ssh::{DEFAULT_ID, ID};
use crate::{SessionError, Tunnel};

use super::SshAgent;
use super::answers::{Answer, driven};

/// Messages of the agent protocol (draft-miller-ssh-agent, section 5.1).
const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const SIGN_REQUEST: u8 = 13;
/// The largest message in bytes that OpenSSH's agent takes.
const MOST: u32 = 256 << 10;

pub(super) struct Agents(pub(super) BTreeMap<String, SshAgent>);

impl Agents {
    fn find(&self, id: &str) -> Result<&SshAgent, Status> {
        let id = if id.is_empty() { DEFAULT_ID } else { id };
        let unset = || Status::unknown(format!("unset ssh forward key {id}"));
        self.0.get(id).ok_or_else(unset)
    }
}

#[async_trait]
impl ssh_server::Ssh for Agents {
    type ForwardAgentStream = Answer<BytesMessage>;

    async fn check_agent(
        &self,
        request: Request<CheckAgentRequest>,
    ) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.get_ref().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Answer<BytesMessage>>, Status> {
        let id = values(request.metadata(), ID).into_iter().next();
        let agent = self.find(&id.unwrap_or_default())?;
        let path = agent.socket.display();
        let mut socket = UnixStream::connect(&agent.socket)
            .await
            .map_err(|error| Status::unknown(format!("failed to connect to {path}: {error}")))?;
        let raw = agent.raw;
        let (mut tunnel, messages) = Tunnel::new(request.into_inner());
        let work = async move {
            let forwarded = if raw {
                let both = tokio::io::copy_bidirectional(&mut tunnel, &mut socket).await;
                both.map(drop)
            } else {
                limited(&mut tunnel, &mut socket).await
            };
            // Either end may just hang up.
            if let Err(error) = forwarded {
                tracing::debug!(%error, "an ssh agent's connection ended");
            }
            Ok::<_, SessionError>(())
        };
        Ok(Response::new(driven(messages, work)))
    }
}

/// Passes on the listing of keys and the signing; everything else is answered with a failure:
/// a build has no business changing an agent.
async fn limited<A, B>(tunnel: &mut A, agent: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(request) = frame(tunnel).await? {
        match request.first() {
            Some(&(REQUEST_IDENTITIES | SIGN_REQUEST)) => {
                put(agent, &request).await?;
                let answer = frame(agent).await?;
                let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
                put(tunnel, &answer).await?;
            }
            _ => put(tunnel, &[FAILURE]).await?,
        }
    }
    Ok(())
}

async fn frame<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<Vec<u8>>> {
    let length = match reader.read_u32().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut frame = vec![0; length as usize];
    reader.read_exact(&mut frame).await?;
    Ok(Some(frame))
}

async fn put<W: AsyncWrite + Unpin>(writer: &mut W, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(frame);
    writer.write_all(&message).await?;
    writer.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_listing_and_signing_reach_the_agent() {
        let (mut user, mut tunnel) = tokio::io::duplex(1024);
        let (mut near, mut agent) = tokio::io::duplex(1024);
        let agent = async move {
            while let Some(request) = frame(&mut agent).await.unwrap() {
                assert_ne!(request[0], 17, "an identity must not be added");
                put(&mut agent, &[request[0] + 1, 42]).await.unwrap();
            }
        };
        let user = async move {
            for (request, answer) in [(11, vec![12, 42]), (17, vec![5]), (13, vec![14, 42])] {
                put(&mut user, &[request, 1, 2]).await.unwrap();
                assert_eq!(frame(&mut user).await.unwrap(), Some(answer));
            }
        };
        let forward = async move {
            limited(&mut tunnel, &mut near).await.unwrap();
        };
        tokio::join!(agent, user, forward);
    }
}
