//! One server relieves another at the same sockets, while clients that keep their connections, as the
//! driver does, mount all the time.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use keyferry::proto::csi_driver_provider_client::CsiDriverProviderClient;
use keyferry::proto::{MountRequest, MountResponse, VersionRequest};
use keyferry::server::dial;
use tonic::Status;
use tonic::transport::Channel;
use tower::Service;

use crate::support::server::{Server, client, fresh, get, request};

/// Mounts with the driver's retry policy: three attempts where the connection failed under the call
/// (driver.md 1.3). An answer of the server is never tried again.
async fn mount(
    client: &mut CsiDriverProviderClient<Channel>,
    request: &MountRequest,
) -> Result<MountResponse, Status> {
    let mut attempts = 1;
    loop {
        match client.mount(request.clone()).await {
            Err(status)
                if attempts < 3 && status.source().is_some_and(|e| e.is::<tonic::transport::Error>()) =>
            {
                attempts += 1;
            }
            answer => return answer.map(tonic::Response::into_inner),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t47_hundreds_of_mounts_during_upgrades_and_none_fails() {
    let dir = fresh();
    let socket = dir.path().join("sockets/local.sock");
    let mut servers = vec![Server::start(dir.path(), "log-0", &[])];
    servers[0].wait_for("ready");
    let (done, mounted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (mut client, done, mounted) = (client(&socket), done.clone(), mounted.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let request = request("shop", &format!("p{n}"), "c", "- name: db");
                    let answer = mount(&mut client, &request).await.unwrap();
                    assert_eq!(answer.files[0].contents.as_ref(), b"marker-value");
                    mounted.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |count: usize| {
        let want = mounted.load(Ordering::Relaxed) + count;
        while mounted.load(Ordering::Relaxed) < want && !clients.iter().any(|c| c.is_finished()) {
            tokio::task::yield_now().await;
        }
    };
    for turn in 1..=3 {
        more(100).await;
        let new = Server::start(dir.path(), &format!("log-{turn}"), &[]);
        new.wait_for("ready");
        new.wait_for("taking the socket over");
        more(100).await;
        let mut old = servers.pop().unwrap();
        old.terminate();
        assert_eq!(old.code(), Some(0), "{}", old.log());
        servers.push(new);
        more(100).await;
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(servers[0].log().matches("mounted").count() >= 100, "the clients reached the last server");
}

#[test]
fn an_old_server_is_alive_and_no_longer_ready_once_it_is_relieved() {
    let dir = fresh();
    let old = Server::start(dir.path(), "old", &["--metrics-addr", "127.0.0.1:0"]);
    let probes = old.address("metrics");
    assert_eq!((get(probes, "/healthz").0, get(probes, "/readyz").0), (200, 200));
    assert_eq!(get(probes, "/metrics").0, 200);
    assert_eq!((get(probes, "/").0, get(probes, "/status.json").0), (404, 404));
    let new = Server::start(dir.path(), "new", &[]);
    let admin = new.address("admin");
    assert_eq!((get(admin, "/healthz").0, get(admin, "/readyz").0), (200, 200));
    let (status, text) = get(probes, "/readyz");
    assert_eq!((get(probes, "/healthz").0, status), (200, 503));
    assert!(text.contains("taken this socket over"), "{text}");
    std::fs::remove_file(dir.path().join("sockets/local.sock")).unwrap();
    assert_eq!((get(probes, "/healthz").0, get(admin, "/healthz").0), (503, 503));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stops_is_not_ready_at_once_and_alive_to_the_end() {
    let dir = fresh();
    let mut server = Server::start(dir.path(), "log", &["--grace", "1h"]);
    let admin = server.address("admin");
    // A call whose request never ends keeps the server from its end.
    let channel = dial::connect(&dir.path().join("sockets/local.sock")).await.unwrap();
    let body = tonic::body::Body::new(StreamBody::new(futures_util::stream::pending::<
        Result<Frame<Bytes>, Status>,
    >()));
    let request = ::http::Request::post("http://localhost/v1alpha1.CSIDriverProvider/Mount");
    let request =
        request.header("content-type", "application/grpc").header("te", "trailers").body(body).unwrap();
    let call = tokio::spawn({
        let mut channel = channel.clone();
        async move { channel.call(request).await.map(drop) }
    });
    // The next call is answered after the one before it has arrived.
    let mut client = CsiDriverProviderClient::with_origin(channel, dial::origin());
    client.version(VersionRequest::default()).await.unwrap();
    server.terminate();
    server.wait_for("stopping");
    let ready = loop {
        let (status, text) = get(admin, "/readyz");
        if status != 200 {
            break text;
        }
    };
    assert!(ready.contains("stopping"), "{ready}");
    assert_eq!(get(admin, "/healthz").0, 200);
    assert!(!dir.path().join("sockets/local.sock").exists());
    call.abort();
    drop(client);
    assert_eq!(server.code(), Some(0));
}

#[test]
fn two_processes_may_listen_at_one_address() {
    let dir = fresh();
    let old = Server::start(dir.path(), "old", &["--metrics-addr", "127.0.0.1:0"]);
    let at = old.address("metrics").to_string();
    let new = Server::start(dir.path(), "new", &["--metrics-addr", &at]);
    assert_eq!(new.address("metrics").to_string(), at);
}

#[test]
fn t47_a_foreign_provider_is_an_error_or_waited_for_until_a_signal() {
    let dir = fresh();
    std::fs::create_dir(dir.path().join("sockets")).unwrap();
    let socket = dir.path().join("sockets/local.sock");
    // It takes connections and drops them, so it never says that it is keyferry.
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let mut refused = Server::start(dir.path(), "refused", &[]);
    assert_eq!(refused.code(), Some(1));
    assert!(refused.log().contains(&format!("another process answers on socket {}", socket.display())));
    let mut waiting = Server::start(dir.path(), "waiting", &["--wait-for-socket", "1h"]);
    waiting.wait_for("waiting for it to go");
    waiting.terminate();
    assert_eq!(waiting.code(), Some(0));
    assert!(socket.exists());
}

#[test]
fn a_public_admin_listener_is_refused() {
    let dir = fresh();
    let mut server = Server::start(dir.path(), "log", &["--admin-addr", "0.0.0.0:0"]);
    assert_eq!(server.code(), Some(2));
    assert!(server.log().contains("--metrics-addr"), "{}", server.log());
}
