//! A client's secrets.

use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::secrets::GetSecretRequest;
use cooper_proto::secrets::secrets_client::SecretsClient;
use tonic::Code;

use crate::{Session, SessionError};

pub(crate) const GET_SECRET: &str = "/moby.buildkit.secrets.v1.Secrets/GetSecret";

/// The largest secret in bytes (BuildKit's value).
pub const MAX_SECRET_SIZE: usize = 500 << 10;

/// The secret `id`; `None` when the client does not have it, or gives none at all.
///
/// # Errors
/// The client's error; or the secret is larger than [`MAX_SECRET_SIZE`].
///
/// # Cancel safety
/// Cancel safe.
pub async fn get(session: &Session, id: &str) -> Result<Option<Vec<u8>>, SessionError> {
    if !session.supports(GET_SECRET) {
        return Ok(None);
    }
    let mut client =
        SecretsClient::new(session.channel()).max_decoding_message_size(MAX_MESSAGE_SIZE);
    let request = GetSecretRequest {
        id: id.into(),
        ..GetSecretRequest::default()
    };
    match client.get_secret(request).await {
        Ok(answer) => {
            let data = answer.into_inner().data;
            if data.len() > MAX_SECRET_SIZE {
                let text = format!("invalid secret size {}", data.len());
                return Err(SessionError::Protocol(text));
            }
            Ok(Some(data))
        }
        Err(status) if matches!(status.code(), Code::NotFound | Code::Unimplemented) => Ok(None),
        Err(status) => Err(SessionError::call(GET_SECRET)(status)),
    }
}
