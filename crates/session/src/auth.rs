//! A client's registry credentials, and the tokens that it fetches itself so that it need not
//! give them away.

use std::time::Duration;

use cooper_proto::MAX_MESSAGE_SIZE;
use cooper_proto::auth::auth_client::AuthClient;
use cooper_proto::auth::{
    CredentialsRequest, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    VerifyTokenAuthorityRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Request};

use crate::{Session, SessionError};

pub(crate) const CREDENTIALS: &str = "/moby.filesync.v1.Auth/Credentials";
pub(crate) const FETCH_TOKEN: &str = "/moby.filesync.v1.Auth/FetchToken";
pub(crate) const GET_AUTHORITY: &str = "/moby.filesync.v1.Auth/GetTokenAuthority";
pub(crate) const VERIFY_AUTHORITY: &str = "/moby.filesync.v1.Auth/VerifyTokenAuthority";

/// How long a client may take: it may ask its user (BuildKit's value).
const TIMEOUT: Duration = Duration::from_secs(60);

/// What a client gives for a registry. Debug output does not show the secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Empty: the secret is a refresh token.
    pub username: String,
    /// A password, or a refresh token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The client's credentials for `host` (`registry-1.docker.io` for Docker Hub); `None` when it
/// has none, or gives none at all.
///
/// # Cancel safety
/// Cancel safe.
pub async fn credentials(
    session: &Session,
    host: &str,
) -> Result<Option<Credentials>, SessionError> {
    if !session.supports(CREDENTIALS) {
        return Ok(None);
    }
    let request = CredentialsRequest { host: host.into() };
    let answer = client(session).credentials(limited(request)).await;
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unimplemented => return Ok(None),
        Err(status) => return Err(SessionError::call(CREDENTIALS)(status)),
    };
    let found = Credentials {
        username: answer.username,
        secret: answer.secret,
    };
    Ok(Some(found).filter(|found| *found != Credentials::default()))
}

/// Lets the client fetch a token.
///
/// # Cancel safety
/// Cancel safe.
pub async fn fetch_token(
    session: &Session,
    request: FetchTokenRequest,
) -> Result<FetchTokenResponse, SessionError> {
    session.require(FETCH_TOKEN)?;
    let answer = client(session).fetch_token(limited(request)).await;
    Ok(answer
        .map_err(SessionError::call(FETCH_TOKEN))?
        .into_inner())
}

/// The public key (Ed25519) that stands for the client's credentials for `host`; `None` when
/// the client does not fetch tokens itself.
///
/// # Cancel safety
/// Cancel safe.
pub async fn token_authority(
    session: &Session,
    host: &str,
    salt: &[u8],
) -> Result<Option<Vec<u8>>, SessionError> {
    if !session.supports(GET_AUTHORITY) {
        return Ok(None);
    }
    let request = GetTokenAuthorityRequest {
        host: host.into(),
        salt: salt.into(),
    };
    match client(session).get_token_authority(limited(request)).await {
        Ok(answer) => Ok(Some(answer.into_inner().public_key)),
        Err(status) if matches!(status.code(), Code::Unimplemented | Code::Unavailable) => Ok(None),
        Err(status) => Err(SessionError::call(GET_AUTHORITY)(status)),
    }
}

/// `payload` signed with the key that [`token_authority`] gave the public half of (NaCl's
/// `crypto_sign`: the signature, then the payload).
///
/// # Cancel safety
/// Cancel safe.
pub async fn verify_token_authority(
    session: &Session,
    host: &str,
    payload: &[u8],
    salt: &[u8],
) -> Result<Vec<u8>, SessionError> {
    session.require(VERIFY_AUTHORITY)?;
    let request = VerifyTokenAuthorityRequest {
        host: host.into(),
        payload: payload.into(),
        salt: salt.into(),
    };
    let answer = client(session)
        .verify_token_authority(limited(request))
        .await;
    let answer = answer.map_err(SessionError::call(VERIFY_AUTHORITY))?;
    Ok(answer.into_inner().signed)
}

fn client(session: &Session) -> AuthClient<Channel> {
    AuthClient::new(session.channel())
        .max_decoding_message_size(MAX_MESSAGE_SIZE)
        .max_encoding_message_size(MAX_MESSAGE_SIZE)
}

fn limited<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}
