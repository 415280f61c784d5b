//! A client for a Unix socket that speaks gRPC: our own probe and `keyferry mount --socket`.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::UnixStream;
use tonic::body::Body;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

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

/// Asks every socket for its health over a new connection; the error names those that fail.
pub async fn healthy(sockets: &[PathBuf], limit: Duration) -> Result<(), String> {
    let probes = sockets.iter().map(|path| async move {
        let probe = async {
            let channel = connect(path).await.map_err(|error| error.to_string())?;
            let mut client = HealthClient::with_origin(channel, origin());
            client.check(HealthCheckRequest::default()).await.map_err(|status| status.message().to_owned())
        };
        match tokio::time::timeout(limit, probe).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(format!("{}: {error}", path.display())),
            Err(_) => Some(format!("{}: no answer in {limit:?}", path.display())),
        }
    });
    let failed: Vec<_> = futures_util::future::join_all(probes).await.into_iter().flatten().collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}
