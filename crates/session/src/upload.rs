//! A file that a client streams: a build context on its standard input.

use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::upload::BytesMessage;
use cooper_proto::upload::upload_client::UploadClient;
use tokio::io::AsyncRead;
use tonic::Request;

use crate::filesync::{append, lazy};
use crate::{Session, SessionError, Tunnel};

pub(crate) const PULL: &str = "/moby.upload.v1.Upload/Pull";
pub(crate) const URL_PATH: &str = "urlpath";

/// The host of the URLs that stand for such files: `http://buildkit-session/NAME`.
pub const HOST: &str = "buildkit-session";

/// The file at the path `path` (`/NAME`) of such a URL. A client gives each of them once. An
/// error of the client comes with a read.
///
/// # Errors
/// The client offers no files.
pub fn pull(
    session: &Session,
    path: &str,
) -> Result<impl AsyncRead + Send + Unpin + use<>, SessionError> {
    session.require(PULL)?;
    let (outgoing, messages) = Tunnel::<BytesMessage>::sender();
    let mut call = Request::new(messages);
    append(call.metadata_mut(), URL_PATH, &[path.to_owned()]);
    let mut client = UploadClient::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE);
    let incoming = lazy(async move { client.pull(call).await });
    Ok(Tunnel::join(incoming, outgoing))
}
