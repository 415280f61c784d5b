//! The client against small servers.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use futures_util::future::join_all;
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Name of every test server.
const NAME: &str = "store.test";
/// Requests the servers take at the same time on one HTTP/2 connection.
const STREAMS: u32 = 20;

struct Server {
    address: SocketAddr,
    pem: Vec<u8>,
    /// Requests at work at the same time, highest.
    peak: Arc<AtomicUsize>,
    /// Makes the open connections say GOAWAY.
    bye: Arc<Notify>,
}

fn identity() -> (Vec<u8>, rustls::ServerConfig) {
    let made = rcgen::generate_simple_self_signed(vec![NAME.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem().into_bytes(), config)
}

async fn answer(
    request: Request<Incoming>,
    now: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    let body = match request.uri().path() {
        "/hang" => std::future::pending().await,
        "/big" => Full::from(vec![b'x'; 70_000]).boxed(),
        "/stream" => {
            let chunks = (0..70).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 1000]))));
            StreamBody::new(tokio_stream::iter(chunks)).boxed()
        }
        "/half" => {
            use tokio_stream::StreamExt;
            let first = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"half"))));
            StreamBody::new(first.chain(tokio_stream::pending())).boxed()
        }
        "/host" => {
            let host = request.headers().get(HOST).map(|v| v.to_str().unwrap().to_owned());
            let seen = host.or_else(|| request.uri().authority().map(ToString::to_string));
            Full::from(seen.unwrap_or_default()).boxed()
        }
        _ => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Full::from([b"ok ", &body[..]].concat()).boxed()
        }
    };
    now.fetch_sub(1, Ordering::SeqCst);
    Ok(Response::new(body))
}

/// TLS server with these protocols; plain HTTP if there are none.
async fn serve(alpn: &[&str]) -> Server {
    let (pem, mut config) = identity();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    let acceptor = (!alpn.is_empty()).then(|| TlsAcceptor::from(Arc::new(config)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let peak = Arc::new(AtomicUsize::new(0));
    let bye = Arc::new(Notify::new());
    let server = Server { address, pem, peak: Arc::clone(&peak), bye: Arc::clone(&bye) };
    let now = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, bye) = (acceptor.clone(), Arc::clone(&bye));
            let (now, peak) = (Arc::clone(&now), Arc::clone(&peak));
            tokio::spawn(async move {
                let wire: connect::Wire = match acceptor {
                    Some(acceptor) => match acceptor.accept(tcp).await {
                        Ok(tls) => Box::new(tls),
                        Err(_) => return,
                    },
                    None => Box::new(tcp),
                };
                let service = service_fn(move |r| answer(r, Arc::clone(&now), Arc::clone(&peak)));
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http2().max_concurrent_streams(STREAMS);
                let mut connection = pin!(server.serve_connection(TokioIo::new(wire), service));
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = bye.notified() => connection.as_mut().graceful_shutdown(),
                }
                connection.await.unwrap_or_default();
            });
        }
    });
    server
}

/// Listener that hands every connection, with its number, to `work`.
async fn raw<F, W>(work: F) -> SocketAddr
where
    F: Fn(usize, TcpStream) -> W + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut number = 0;
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(work(number, tcp));
            number += 1;
        }
    });
    address
}

async fn head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tcp.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn settings(server: &Server) -> Settings {
    Settings {
        connect_to: vec![(NAME.to_owned(), server.address)],
        roots: Roots::Pem(server.pem.clone()),
        ..Settings::default()
    }
}

fn get(url: &str) -> Request<Bytes> {
    Request::get(url).body(Bytes::new()).unwrap()
}

async fn text(http: &Http, url: &str) -> String {
    let answer = http.send(get(url)).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    String::from_utf8(answer.body.expose().to_vec()).unwrap()
}

async fn failure(http: &Http, url: &str) -> Failure {
    http.send(get(url)).await.unwrap_err()
}

#[tokio::test]
async fn http2_requests_share_one_connection() {
    let server = serve(&["h2", "http/1.1"]).await;
    let http = Http::new(settings(&server));
    let all = join_all((0..50).map(|_| text(&http, "https://store.test/ok"))).await;
    assert!(all.iter().all(|body| body == "ok "));
    assert_eq!(http.stats(), Stats { opened: 1, dropped_silent: 0, requests: 50 });
    assert!((10..=20).contains(&server.peak.load(Ordering::SeqCst)));
    assert_eq!(text(&http, "https://store.test/host").await, "store.test");
}

#[tokio::test]
async fn http1_requests_queue_for_connections() {
    for alpn in [&["http/1.1"][..], &[]] {
        let server = serve(alpn).await;
        let http = Http::new(Settings { max_connections: 7, ..settings(&server) });
        let url = if alpn.is_empty() { "http://store.test/ok" } else { "https://store.test/ok" };
        let all = join_all((0..100).map(|_| text(&http, url))).await;
        assert!(all.iter().all(|body| body == "ok "));
        assert!((2..=7).contains(&http.stats().opened), "{:?}", http.stats());
        assert_eq!(server.peak.load(Ordering::SeqCst), 7);
    }
}

#[tokio::test]
async fn bodies_are_sent() {
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let http = Http::new(settings(&serve(alpn).await));
        for body in ["", "{}"] {
            let request = Request::post("https://store.test/ok").body(Bytes::from(body)).unwrap();
            let answer = http.send(request).await.unwrap();
            assert_eq!(answer.body.expose(), format!("ok {body}").as_bytes());
        }
        assert_eq!(http.stats().opened, 1);
    }
}

#[tokio::test]
async fn answers_are_limited() {
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let server = serve(alpn).await;
        let http = Http::new(Settings { max_response: 69_999, ..settings(&server) });
        for path in ["big", "stream"] {
            let failure = failure(&http, &format!("https://store.test/{path}")).await;
            assert_eq!(failure.kind, FailureKind::TooLarge, "{failure}");
        }
        assert_eq!(text(&http, "https://store.test/ok").await, "ok ");
        let http = Http::new(Settings { max_response: 70_000, ..settings(&server) });
        for path in ["big", "stream"] {
            assert_eq!(text(&http, &format!("https://store.test/{path}")).await.len(), 70_000);
        }
    }
}

#[tokio::test]
async fn silent_connections_are_replaced() {
    let silent = async |alpn, path| {
        let server = serve(alpn).await;
        // Long enough for a right answer of a machine under load; the four waits are side by side.
        let try_timeout = Duration::from_secs(3);
        let http = Http::new(Settings { try_timeout, ..settings(&server) });
        assert_eq!(text(&http, "https://store.test/ok").await, "ok ");
        let failure = failure(&http, &format!("https://store.test/{path}")).await;
        assert_eq!(failure.kind, FailureKind::Silent, "{failure}");
        assert_eq!(failure.address, Some(server.address));
        assert_eq!(http.stats(), Stats { opened: 1, dropped_silent: 1, requests: 2 });
        assert_eq!(text(&http, "https://store.test/ok").await, "ok ");
        assert_eq!(http.stats().opened, 2);
    };
    let [two, one] = [&["h2"][..], &["http/1.1"]];
    tokio::join!(silent(two, "hang"), silent(two, "half"), silent(one, "hang"), silent(one, "half"));
}

#[tokio::test]
async fn frozen_before_tls_is_silent() {
    let address = raw(|_, tcp| async move {
        let _open = tcp;
        std::future::pending().await
    })
    .await;
    let server = serve(&["h2"]).await;
    let connect_timeout = Duration::from_millis(200);
    let connect_to = vec![(NAME.to_owned(), address)];
    let http = Http::new(Settings { connect_timeout, connect_to, ..settings(&server) });
    let all = join_all((0..5).map(|_| failure(&http, "https://store.test/ok"))).await;
    for failure in all {
        assert_eq!(failure.kind, FailureKind::Silent, "{failure}");
        assert!(failure.to_string().starts_with(&format!("store.test ({address}): accepted")), "{failure}");
        assert!(failure.after < Duration::from_secs(2), "{failure}");
    }
    assert_eq!(http.stats().opened, 1);
}

#[tokio::test]
async fn refused_and_unknown_hosts() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let http = Http::new(Settings::default());
    let refused = failure(&http, &format!("http://{unused}/")).await;
    assert_eq!((refused.kind, refused.address), (FailureKind::Refused, Some(unused)), "{refused}");
    let unknown = failure(&http, "http://nonexistent.invalid/").await;
    // Without a working resolver the system cannot tell.
    assert!(matches!(unknown.kind, FailureKind::NoSuchHost | FailureKind::Resolver), "{unknown}");
    assert_eq!(failure(&http, "/relative").await.kind, FailureKind::Protocol);
}

#[test]
fn resolver_errors_are_told_apart() {
    let kind = |text: &str| connect::unresolved(&std::io::Error::other(text.to_owned())).kind;
    let prefix = "failed to lookup address information: ";
    for text in ["Name or service not known", "No address associated with hostname", "Name does not resolve"]
    {
        assert_eq!(kind(&format!("{prefix}{text}")), FailureKind::NoSuchHost);
    }
    for text in ["Temporary failure in name resolution", "Try again", "whatever"] {
        assert_eq!(kind(&format!("{prefix}{text}")), FailureKind::Resolver);
    }
}

#[tokio::test]
async fn certificates_are_verified() {
    let server = serve(&["h2"]).await;
    let http = Http::new(Settings { roots: Roots::Pem(identity().0), ..settings(&server) });
    let wrong = failure(&http, "https://store.test/").await;
    assert_eq!(wrong.kind, FailureKind::Tls, "{wrong}");
    assert!(wrong.detail.contains("certificate"), "{wrong}");
    let connect_to = vec![("other.test".to_owned(), server.address)];
    let http = Http::new(Settings { connect_to, ..settings(&server) });
    assert_eq!(failure(&http, "https://other.test/").await.kind, FailureKind::Tls);
    let files = vec!["/nonexistent/ca.pem".into()];
    let roots = Roots::Places { files, directories: vec![] };
    let http = Http::new(Settings { roots, ..settings(&server) });
    let unread = failure(&http, "https://store.test/").await;
    assert_eq!(unread.kind, FailureKind::Roots);
    assert!(unread.detail.contains("/nonexistent/ca.pem"), "{unread}");
}

#[tokio::test]
async fn roots_come_from_files_and_directories() {
    let server = serve(&["h2"]).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, &server.pem).unwrap();
    std::fs::write(directory.path().join("README"), "nothing").unwrap();
    let places = [(vec![file], vec![]), (vec![], vec![directory.path().to_owned()])];
    for (files, directories) in places {
        let http = Http::new(Settings { roots: Roots::Places { files, directories }, ..settings(&server) });
        assert_eq!(text(&http, "https://store.test/").await, "ok ");
    }
}

#[tokio::test]
async fn connect_to_prefers_the_port() {
    let server = serve(&["h2"]).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let connect_to = vec![(NAME.to_owned(), dead), (format!("{NAME}:8200"), server.address)];
    let http = Http::new(Settings { connect_to, ..settings(&server) });
    assert_eq!(text(&http, "https://store.test:8200/host").await, "store.test:8200");
    assert_eq!(failure(&http, "https://store.test/").await.kind, FailureKind::Refused);
}

#[tokio::test]
async fn closed_idle_connections_are_replaced() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    // Closes at once after the first answer, or at the second request without an answer.
    for late in [false, true] {
        let address = raw(move |number, mut tcp| async move {
            while !head(&mut tcp).await.is_empty() {
                tcp.write_all(OK).await.unwrap();
                if number == 0 {
                    if late {
                        head(&mut tcp).await;
                    }
                    return;
                }
            }
        })
        .await;
        let http = Http::new(Settings::default());
        for _ in 0..3 {
            assert_eq!(text(&http, &format!("http://{address}/")).await, "ok");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        assert_eq!(http.stats(), Stats { opened: 2, dropped_silent: 0, requests: 3 });
    }
}

#[tokio::test]
async fn goaway_moves_requests_to_a_new_connection() {
    let server = serve(&["h2"]).await;
    let http = Http::new(settings(&server));
    text(&http, "https://store.test/ok").await;
    server.bye.notify_waiters();
    let all = join_all((0..10).map(|_| text(&http, "https://store.test/ok"))).await;
    assert_eq!(all.len(), 10);
    tokio::time::sleep(Duration::from_millis(50)).await;
    text(&http, "https://store.test/ok").await;
    assert_eq!(http.stats(), Stats { opened: 2, dropped_silent: 0, requests: 12 });
}

/// Relay to `to` that, when told, closes or freezes the connections it has.
async fn relay(to: SocketAddr, freeze: bool, now: Arc<Notify>) -> SocketAddr {
    raw(move |_, mut tcp| {
        let now = Arc::clone(&now);
        async move {
            let mut server = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut tcp, &mut server) => return,
                () = now.notified() => (),
            }
            if freeze {
                std::future::pending::<()>().await;
            }
        }
    })
    .await
}

fn relayed(server: &Server, relay: SocketAddr) -> Http {
    let connect_to = vec![(NAME.to_owned(), relay)];
    Http::new(Settings { connect_to, try_timeout: Duration::from_millis(300), ..settings(server) })
}

#[tokio::test]
async fn connections_lost_under_a_request_are_replaced() {
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let (server, now) = (serve(alpn).await, Arc::new(Notify::new()));
        let http = relayed(&server, relay(server.address, false, Arc::clone(&now)).await);
        text(&http, "https://store.test/ok").await;
        let cut = async {
            tokio::time::sleep(Duration::from_millis(8)).await; // the answer takes 20
            now.notify_waiters();
        };
        let (body, ()) = tokio::join!(text(&http, "https://store.test/ok"), cut);
        assert_eq!(body, "ok ");
        assert_eq!(http.stats(), Stats { opened: 2, dropped_silent: 0, requests: 2 });
    }
}

#[tokio::test]
async fn frozen_connections_cost_one_try() {
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let (server, now) = (serve(alpn).await, Arc::new(Notify::new()));
        let http = relayed(&server, relay(server.address, true, Arc::clone(&now)).await);
        text(&http, "https://store.test/ok").await;
        now.notify_waiters();
        let silent = failure(&http, "https://store.test/ok").await;
        assert_eq!(silent.kind, FailureKind::Silent, "{silent}");
        assert!(silent.to_string().contains("accepted the connection and did not answer"), "{silent}");
        assert_eq!(text(&http, "https://store.test/ok").await, "ok ");
        assert_eq!(http.stats(), Stats { opened: 2, dropped_silent: 1, requests: 3 });
    }
}

#[tokio::test]
async fn new_connections_are_not_retried() {
    let address = raw(|_, mut tcp| async move {
        head(&mut tcp).await;
    })
    .await;
    let http = Http::new(Settings::default());
    let closed = failure(&http, &format!("http://{address}/")).await;
    assert_eq!(closed.kind, FailureKind::Closed, "{closed}");
    assert_eq!(http.stats().opened, 1);
}

#[tokio::test]
async fn idle_connections_are_closed_after_a_minute() {
    for alpn in [&["h2"][..], &["http/1.1"]] {
        let server = serve(alpn).await;
        let http = Http::new(settings(&server));
        text(&http, "https://store.test/ok").await;
        tokio::time::pause();
        tokio::time::sleep(Duration::from_secs(50)).await;
        assert!(!http.inner.pool.is_empty());
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(http.inner.pool.is_empty());
        tokio::time::resume();
        text(&http, "https://store.test/ok").await;
        assert_eq!(http.stats().opened, 2);
    }
}

#[tokio::test]
async fn hosts_that_were_never_reached_are_forgotten() {
    let http = Http::new(Settings {
        connect_to: vec![("gone.test".into(), closed_port().await)],
        ..Settings::default()
    });
    let request = Request::get("https://gone.test/").body(Bytes::new()).unwrap();
    assert_eq!(http.send(request).await.unwrap_err().kind, FailureKind::Refused);
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(http.inner.pool.is_empty());
}

/// An address that nobody listens at.
async fn closed_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn cancelled_requests_leave_the_pool_usable() {
    // Each request that was cut short costs HTTP/1.1 its connection, HTTP/2 nothing.
    for (alpn, opened) in [(&["h2"][..], 1), (&["http/1.1"], 3)] {
        let server = serve(alpn).await;
        let http = Http::new(Settings { max_connections: 1, ..settings(&server) });
        text(&http, "https://store.test/ok").await;
        for path in ["hang", "half"] {
            let url = format!("https://store.test/{path}");
            let work = http.send(get(&url));
            assert!(timeout(Duration::from_millis(100), work).await.is_err());
        }
        assert_eq!(text(&http, "https://store.test/ok").await, "ok ");
        assert_eq!(http.stats(), Stats { opened, dropped_silent: 0, requests: 4 });
    }
}

#[tokio::test]
async fn the_first_of_many_may_be_cancelled() {
    let server = serve(&["h2"]).await;
    let http = Http::new(settings(&server));
    let first = tokio::spawn({
        let http = http.clone();
        async move { text(&http, "https://store.test/ok").await }
    });
    tokio::task::yield_now().await;
    let others = join_all((0..10).map(|_| text(&http, "https://store.test/ok")));
    first.abort();
    assert_eq!(timeout(Duration::from_secs(5), others).await.unwrap().len(), 10);
}

/// Proxy that connects every tunnel to `to`; answers 407 without the credentials `user:pw`.
async fn proxy(to: SocketAddr, used: Arc<AtomicBool>) -> SocketAddr {
    raw(move |_, mut tcp| {
        let used = Arc::clone(&used);
        async move {
            let head = head(&mut tcp).await;
            if !head.to_lowercase().contains("proxy-authorization: basic dxnlcjpwdw==") {
                tcp.write_all(b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                return;
            }
            used.store(true, Ordering::SeqCst);
            if head.starts_with("CONNECT store.test:443 HTTP/1.1\r\n") {
                let mut server = TcpStream::connect(to).await.unwrap();
                tcp.write_all(b"HTTP/1.1 200 Go\r\n\r\n").await.unwrap();
                tokio::io::copy_bidirectional(&mut tcp, &mut server).await.unwrap_or_default();
            } else if head.starts_with("GET http://plain.test/x HTTP/1.1\r\n") {
                tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nplain").await.unwrap();
            }
        }
    })
    .await
}

fn proxied(server: &Server, user: &str, proxy: SocketAddr) -> Http {
    let matcher = Matcher::builder().all(format!("http://{user}@{proxy}")).build();
    let proxy = Proxy::Rules(Arc::new(matcher));
    Http::new(Settings { proxy, connect_to: vec![], ..settings(server) })
}

#[tokio::test]
async fn proxies_are_used() {
    let server = serve(&["h2", "http/1.1"]).await;
    let used = Arc::new(AtomicBool::new(false));
    let through = proxy(server.address, Arc::clone(&used)).await;
    let http = proxied(&server, "user:pw", through);
    let direct = raw(|_, mut tcp| async move {
        head(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ndirect").await.unwrap();
    })
    .await;
    assert_eq!(text(&http, &format!("http://{direct}/")).await, "direct");
    assert!(!used.load(Ordering::SeqCst));
    assert_eq!(text(&http, "https://store.test/host").await, "store.test");
    assert_eq!(text(&http, "http://plain.test/x").await, "plain");
    let denied = failure(&proxied(&server, "user:no", through), "https://store.test/").await;
    assert_eq!((denied.kind, denied.address), (FailureKind::Proxy, Some(through)));
    assert!(denied.detail.contains("407") && !denied.detail.contains("no@"), "{denied}");
}

#[tokio::test]
async fn nothing_secret_is_printed() {
    let http = Http::new(settings(&serve(&["h2"]).await));
    let answer = http.send(get("https://store.test/ok")).await.unwrap();
    let shown = format!("{answer:?}");
    assert!(shown.contains("200") && !shown.contains("ok "), "{shown}");
}
