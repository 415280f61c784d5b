//! Listeners and connections: HTTP/1.1 and HTTP/2 over TLS, HTTP/1.1 without, and answers that can break.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// An answer before it is sent.
#[derive(Debug)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers beside the service's usual ones.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Bytes,
    /// The client it is for, once known.
    pub client: Option<String>,
}

impl Reply {
    /// Makes an answer without further headers.
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), client: None }
    }

    /// Makes an answer of JSON.
    pub fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::new(status, body.to_string())
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Names the client.
    pub fn client(self, client: Option<String>) -> Self {
        Self { client, ..self }
    }

    /// Makes the message; a cut one announces all of its body and gives half.
    pub fn message(self, cut: bool) -> Response<Sent> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in self.headers {
            response = response.header(name, value);
        }
        let announced = self.body.len();
        let data = if cut { self.body.slice(..announced / 2) } else { self.body };
        let rest = if cut { Rest::Pause } else { Rest::End };
        let data = Some(data).filter(|data| !data.is_empty());
        response.body(Sent { data, announced: announced as u64, rest }).unwrap()
    }
}

/// The body of an answer.
pub struct Sent {
    data: Option<Bytes>,
    announced: u64,
    rest: Rest,
}

#[derive(PartialEq)]
enum Rest {
    End,
    /// Lets what was given so far go out, then fails.
    Pause,
    Fail,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match self.rest {
            Rest::End => Poll::Ready(None),
            Rest::Pause => {
                self.rest = Rest::Fail;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Rest::Fail => Poll::Ready(Some(Err(io::Error::other("cut as armed")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.rest == Rest::End
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(if self.rest == Rest::End {
            self.data.as_ref().map_or(0, |data| data.len() as u64)
        } else {
            self.announced
        })
    }
}

/// The end of a connection (in HTTP/2 of a stream) in place of an answer.
#[derive(Debug)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed as armed")
    }
}

impl std::error::Error for Gone {}

/// The name that a client asked for in the TLS handshake; an extension of each request.
#[derive(Clone, Debug)]
pub struct ServerName(pub Option<String>);

/// Answers the requests of a listener until dropped; its connections end with it.
pub async fn listen<H, F>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    connections: Arc<AtomicU64>,
    handler: H,
) -> Infallible
where
    H: Fn(u64, Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Sent>, Gone>> + Send + 'static,
{
    let mut open = JoinSet::new();
    let tls = tls.map(TlsAcceptor::from);
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let number = connections.fetch_add(1, Ordering::Relaxed) + 1;
                open.spawn(connection(stream, tls.clone(), number, handler.clone()));
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connection<H, F>(stream: TcpStream, tls: Option<TlsAcceptor>, number: u64, handler: H)
where
    H: Fn(u64, Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Result<Response<Sent>, Gone>> + Send + 'static,
{
    if stream.set_nodelay(true).is_err() {
        return;
    }
    // A client that goes away, or that was made to, is nothing to tell.
    let Some(tls) = tls else {
        let service = service_fn(move |request| handler(number, request));
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        return;
    };
    let Ok(stream) = tls.accept(stream).await else { return };
    let name = ServerName(stream.get_ref().1.server_name().map(ToOwned::to_owned));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(name.clone());
        handler(number, request)
    });
    let stream = (stream.get_ref().1.alpn_protocol() == Some(b"h2"), TokioIo::new(stream));
    let _ = match stream {
        (true, stream) => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await,
        (false, stream) => http1::Builder::new().serve_connection(stream, service).await,
    };
}

/// Splits a query or form into its decoded pairs.
pub fn pairs(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| {
        percent_encoding::percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

/// Finds a value by name.
pub fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}
