//! A client's session that serves credentials and tokens, spoken by hand: what the real client
//! serves besides its files.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cooper_proto::auth::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityResponse,
};
use cooper_session::{Group, Manager, SessionMeta};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// What the client does when it is asked.
#[derive(Clone, Default)]
pub(crate) struct Client {
    /// Whether it fetches tokens itself.
    pub(crate) fetches: bool,
    pub(crate) username: String,
    pub(crate) secret: String,
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) tokens: Arc<Mutex<Vec<FetchTokenRequest>>>,
}

impl Client {
    /// Opens a session, and gives the group of it.
    pub(crate) async fn connect(&self) -> Group {
        let (near, far) = tokio::io::duplex(64 << 10);
        let client = self.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| client.clone().answer(request));
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(far), service)
                .await
        });
        let manager = Manager::new();
        let methods = ["Credentials", "FetchToken", "GetTokenAuthority"];
        let meta = SessionMeta {
            id: "s".into(),
            methods: methods
                .map(|method| format!("/moby.filesync.v1.Auth/{method}"))
                .to_vec(),
            ..SessionMeta::default()
        };
        let serving = manager.clone();
        tokio::spawn(async move { serving.serve(near, meta).await });
        manager.get("s", Duration::from_secs(5)).await.unwrap();
        Group::new(manager, ["s"])
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible>
    {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let message = body.get(5..).unwrap_or_default().to_vec();
        let name = path.rsplit('/').next().unwrap().to_owned();
        self.asked.lock().unwrap().push(name.clone());
        let answer = match name.as_str() {
            "Credentials" => {
                CredentialsRequest::decode(&message[..]).unwrap();
                Some(
                    CredentialsResponse {
                        username: self.username.clone(),
                        secret: self.secret.clone(),
                    }
                    .encode_to_vec(),
                )
            }
            "GetTokenAuthority" if self.fetches => Some(
                GetTokenAuthorityResponse {
                    public_key: vec![1; 32],
                }
                .encode_to_vec(),
            ),
            "FetchToken" => {
                let request = FetchTokenRequest::decode(&message[..]).unwrap();
                self.tokens.lock().unwrap().push(request);
                let token = "client-token".into();
                Some(
                    FetchTokenResponse {
                        token,
                        expires_in: 300,
                        issued_at: 0,
                    }
                    .encode_to_vec(),
                )
            }
            _ => None,
        };
        let mut trailers = HeaderMap::new();
        let mut frames = Vec::new();
        match answer {
            Some(answer) => {
                let mut framed = vec![0];
                framed.extend(u32::try_from(answer.len()).unwrap().to_be_bytes());
                framed.extend(answer);
                frames.push(Frame::data(Bytes::from(framed)));
                trailers.insert("grpc-status", "0".parse().unwrap());
            }
            // Unimplemented.
            None => {
                trailers.insert("grpc-status", "12".parse().unwrap());
            }
        }
        frames.push(Frame::trailers(trailers));
        let body = StreamBody::new(futures::stream::iter(frames.into_iter().map(Ok)));
        let response = Response::builder().header("content-type", "application/grpc");
        Ok(response.body(body).unwrap())
    }
}
