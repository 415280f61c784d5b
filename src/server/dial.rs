//! A client for a Unix socket that speaks gRPC: our own probe and `keyferry mount --socket`.

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;

use super::service::CONTRACT;
use crate::proto::VersionRequest;
use crate::proto::csi_driver_provider_client::CsiDriverProviderClient;

/// One connection, as a service that tonic's clients take.
#[derive(Clone)]
pub struct Channel(SendRequest<Body>);

/// Connects to the socket at `path`.
pub async fn connect(path: &Path) -> std::io::Result<Channel> {
    let stream = UnixStream::connect(path).await?;
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    // The connection ends with its last sender; its error is seen by the call that is under way.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Channel(sender))
}

impl tower::Service<http::Request<Body>> for Channel {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

/// The origin that the driver names.
pub fn origin() -> Uri {
    Uri::from_static("http://localhost")
}

/// Asks the server at `path` who it is: the `runtime_name` of its `Version`, over a new connection.
pub async fn who(path: &Path, limit: Duration) -> Result<String, String> {
    let ask = async {
        let channel = connect(path).await.map_err(|error| error.to_string())?;
        let mut client = CsiDriverProviderClient::with_origin(channel, origin());
        let answer = client.version(VersionRequest { version: CONTRACT.to_owned() }).await;
        answer.map(|version| version.into_inner().runtime_name).map_err(|status| status.message().to_owned())
    };
    tokio::time::timeout(limit, ask).await.unwrap_or_else(|_| Err(format!("no answer in {limit:?}")))
}
