//! What probes are told: whether the sockets answer, whose they are, and whether we are stopping.
//!
//! In an upgrade the successor takes the paths over while we still serve our connections. Then we are
//! alive (somebody of keyferry answers) and not ready (it is not us).

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::dial;
use super::service::RUNTIME_NAME;
use super::socket::Guard;

/// Time that a socket has to answer a probe.
const PROBE: Duration = Duration::from_secs(5);

/// The sockets of this process.
#[derive(Default)]
pub struct Health {
    guards: OnceLock<Vec<Guard>>,
    stopping: AtomicBool,
}

/// One socket, as the page shows it.
#[derive(Debug, Clone)]
pub struct Socket {
    /// Its path.
    pub path: PathBuf,
    /// Whether the file at the path is the one that this process made.
    pub ours: bool,
    /// Why nobody of keyferry answers there, if so.
    pub failure: Option<String>,
}

impl Health {
    /// The sockets are open; said once.
    pub(super) fn opened(&self, guards: Vec<Guard>) {
        // A second call would mean a second door of one process; its guards are dropped.
        let _ = self.guards.set(guards);
    }

    /// From now on not ready; the socket files are removed as far as they are ours.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.guards().iter().for_each(Guard::release);
    }

    /// Whether a stop has begun.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Alive: starting, stopping, or each socket answers as keyferry, be it this process or its successor.
    pub async fn live(&self) -> Result<(), String> {
        if self.stopping() {
            return Ok(());
        }
        let failed: Vec<_> = self.sockets().await.into_iter().filter_map(|socket| socket.failure).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
    }

    /// Ready: each socket is ours and answers, and no stop has begun.
    pub async fn ready(&self) -> Result<(), String> {
        if self.stopping() {
            return Err("stopping".to_owned());
        }
        if self.guards.get().is_none() {
            return Err("starting: the sockets are not open yet".to_owned());
        }
        let trouble = |socket: Socket| {
            let path = socket.path.display().to_string();
            socket.failure.or_else(|| {
                (!socket.ours).then(|| format!("{path}: another keyferry has taken this socket over"))
            })
        };
        let failed: Vec<_> = self.sockets().await.into_iter().filter_map(trouble).collect();
        if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
    }

    /// Every socket, asked over a new connection.
    pub async fn sockets(&self) -> Vec<Socket> {
        let asked = self.guards().iter().map(|guard| async move {
            let failure = failure(guard.path()).await;
            Socket { path: guard.path().to_owned(), ours: guard.holds(), failure }
        });
        futures_util::future::join_all(asked).await
    }

    fn guards(&self) -> &[Guard] {
        self.guards.get().map_or(&[], Vec::as_slice)
    }
}

async fn failure(path: &Path) -> Option<String> {
    match dial::who(path, PROBE).await {
        Ok(name) if name == RUNTIME_NAME => None,
        Ok(name) => Some(format!("{}: {name:?} answers instead of keyferry", path.display())),
        Err(error) => Some(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::socket;

    #[tokio::test]
    async fn t49_a_deleted_socket_is_no_life() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_listener, guard) = socket::listen(&path).await.unwrap();
        let health = Health::default();
        assert!(health.live().await.is_ok() && health.ready().await.unwrap_err().contains("starting"));
        health.opened(vec![guard]);
        std::fs::remove_file(&path).unwrap();
        assert!(health.live().await.unwrap_err().contains("a.sock"));
        assert!(health.ready().await.is_err());
        health.stop();
        assert!(health.live().await.is_ok(), "a stop is no death");
        assert_eq!(health.ready().await.unwrap_err(), "stopping");
    }
}
