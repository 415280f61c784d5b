//! The outgoing client against servers that misbehave.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use keyferry::http::{FailureKind, Http, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn client(most: usize) -> Http {
    Http::new(Settings {
        try_timeout: Duration::from_millis(300),
        max_response: most,
        max_connections: 4,
        ..Settings::default()
    })
}

/// Answers every request of every connection with `answer`; an empty one keeps silent.
async fn server(answer: &'static str, close: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    if stream.write_all(answer.as_bytes()).await.is_err() || close {
                        return;
                    }
                }
            });
        }
    });
    url
}

async fn fails(url: &str) -> FailureKind {
    client(100).send(Request::get(url).body(Bytes::new()).unwrap()).await.unwrap_err().kind
}

#[tokio::test]
async fn t22_a_silent_connection_is_counted_and_not_used_again() {
    let url = server("", false).await;
    let client = client(100);
    for dropped in 1..=2 {
        let failure = client.send(Request::get(&url).body(Bytes::new()).unwrap()).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Silent);
        assert!(failure.to_string().contains("not answer"), "{failure}");
        assert_eq!(client.stats().dropped_silent, dropped);
    }
}

#[tokio::test]
async fn a_cut_answer_is_closed_and_a_long_one_too_large() {
    assert_eq!(
        fails(&server("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf", true).await).await,
        FailureKind::Closed
    );
    assert_eq!(fails(&server("rubbish\r\n\r\n", true).await).await, FailureKind::Protocol);
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\nxxxx";
    assert_eq!(fails(&server(long, false).await).await, FailureKind::TooLarge);
}

#[tokio::test]
async fn a_port_without_a_server_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(fails(&url).await, FailureKind::Refused);
}

#[tokio::test]
async fn many_requests_share_few_http1_connections() {
    let url = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false).await;
    let client = client(100);
    let requests = (0..50).map(|_| client.send(Request::get(&url).body(Bytes::new()).unwrap()));
    for answer in futures_util::future::join_all(requests).await {
        assert_eq!(answer.unwrap().body.expose(), b"ok");
    }
    assert_eq!(client.stats().dropped_silent, 0);
}
