//! Opens the Unix sockets that kubelet and driver dial.
//!
//! A socket is bound under a temporary name in its directory, gets mode 0600, starts to listen, and
//! only then is renamed to its real name. So nobody connects before the mode is set (a bound socket
//! that does not listen refuses), a dead predecessor is replaced without a moment in which there is
//! no socket, and a client that finds the file finds somebody behind it. A socket at which another
//! keyferry answers is taken over the same way: it keeps its connections until it stops, new ones
//! reach us. That is an upgrade without a gap. The live socket of anybody else stays.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::time::{Instant, sleep_until};

use super::dial;
use super::service::RUNTIME_NAME;

/// Longest path of a Unix socket: `sun_path` has 108 bytes, one of them the closing zero.
const MAX_PATH: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Time that a live socket has to say who answers there.
const ASK: Duration = Duration::from_secs(2);
/// First wait for a foreign socket to go away; doubles up to [`MOST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MOST_WAIT: Duration = Duration::from_secs(1);
/// Tries to get the lock of a directory, and the wait between two.
const LOCK_TRIES: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(5);

/// As [`listen`], but waits until `end` for a foreign provider to leave the path.
pub async fn listen_until(path: &Path, end: Instant) -> Result<(UnixListener, Guard), SocketError> {
    let mut pause = FIRST_WAIT;
    loop {
        match listen(path).await {
            Err(SocketError::Live { path, who }) if Instant::now() < end => {
                if pause == FIRST_WAIT {
                    let (socket, wait) = (path.display(), end.duration_since(Instant::now()));
                    tracing::warn!(%socket, %who, ?wait, "another provider answers here; waiting for it to go");
                }
                sleep_until(end.min(Instant::now() + pause)).await;
                pause = (pause * 2).min(MOST_WAIT);
            }
            other => return other,
        }
    }
}

/// Listens at `path`, replacing a dead socket or one of another keyferry; a missing directory is made.
///
/// The socket file is removed when the [`Guard`] is released or dropped.
///
/// # Errors
///
/// If the path is unfit, taken by the live socket of another provider or by another kind of file, or the
/// directory cannot be written to. Nothing is left behind then.
pub async fn listen(path: &Path) -> Result<(UnixListener, Guard), SocketError> {
    let place = Place::of(path)?;
    make_directory(place.directory)?;
    check_free(path).await?;
    remove_stale(&place).await;
    place.bind()
}

/// Removes the socket file when dropped, if it is still the one that was bound.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    /// Keeps the inode from being given to another file, so that equal numbers mean the same file.
    file: OwnedFd,
}

impl Guard {
    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the socket file, if it is still the one that was bound.
    pub fn release(&self) {
        let _lock = Lock::take(self.path.parent().unwrap_or(Path::new(".")));
        if self.holds() {
            // Best effort: a file left behind is a dead socket, which the next start replaces.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Whether the file at the path is still the one that was bound.
    pub fn holds(&self) -> bool {
        let (Ok(bound), Ok(found)) = (rustix::fs::fstat(&self.file), rustix::fs::lstat(&self.path)) else {
            return false;
        };
        (bound.st_dev, bound.st_ino) == (found.st_dev, found.st_ino)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
    }
}

/// The lock of a directory, held while a socket file is looked at and then replaced or removed: so one
/// that stops never removes the file of a successor that starts.
struct Lock(#[expect(dead_code, reason = "closing it unlocks")] OwnedFd);

impl Lock {
    /// Waits a second at most; a lock that a stranger holds must not keep us from starting or stopping.
    fn take(directory: &Path) -> Option<Self> {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
        for _ in 0..LOCK_TRIES {
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Some(Self(file));
            }
            std::thread::sleep(LOCK_WAIT);
        }
        None
    }
}

/// Why there is no listening socket: one line each, with what to do.
#[derive(Debug)]
pub enum SocketError {
    /// The path does not end in a file name.
    NoName {
        /// Path asked for.
        path: PathBuf,
    },
    /// The path does not fit into a socket address.
    TooLong {
        /// Path asked for.
        path: PathBuf,
    },
    /// A process that is no keyferry answers at the path.
    Live {
        /// Path asked for.
        path: PathBuf,
        /// What it says it is, or that it says nothing.
        who: String,
    },
    /// Something other than a socket is at the path.
    NotSocket {
        /// Path asked for.
        path: PathBuf,
    },
    /// The directory's owner and mode keep this process from writing.
    Unwritable {
        /// Directory of the socket, or the nearest one that exists.
        directory: PathBuf,
        /// User the directory belongs to.
        owner: u32,
        /// Permission bits of the directory.
        mode: u32,
        /// User this process runs as.
        uid: u32,
    },
    /// The directory is on a read-only file system.
    ReadOnly {
        /// Directory of the socket, or the nearest one that exists.
        directory: PathBuf,
    },
    /// Anything else the operating system refused.
    Io {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// The answer.
        error: io::Error,
    },
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName { path } => {
                write!(f, "socket path '{}' has no file name: give the path of a file", path.display())
            }
            Self::TooLong { path } => write!(
                f,
                "socket path {} has {} bytes, a Unix socket's at most {MAX_PATH}: choose a shorter path",
                path.display(),
                path.as_os_str().len()
            ),
            Self::Live { path, who } => write!(
                f,
                "another process answers on socket {} ({who}): stop that provider, give this one another \
                 --socket-dir, or wait for it with --wait-for-socket",
                path.display()
            ),
            Self::NotSocket { path } => {
                write!(f, "{} exists and is not a socket: remove it, or give another path", path.display())
            }
            Self::Unwritable { directory, owner, mode, uid } => write!(
                f,
                "socket directory {} (owner uid {owner}, mode {mode:04o}) is not writable for uid {uid}: \
                 set securityContext.runAsUser to {owner}, or give the directory to uid {uid}; \
                 if the owner already matches, look for dropped capabilities or SELinux",
                directory.display()
            ),
            Self::ReadOnly { directory } => write!(
                f,
                "socket directory {} is read-only: remove readOnly from its volumeMount",
                directory.display()
            ),
            Self::Io { step, path, error } => {
                write!(f, "cannot {step} {}: {error}; check the path and its volume", path.display())
            }
        }
    }
}

impl std::error::Error for SocketError {}

/// A socket path taken apart.
struct Place<'a> {
    path: &'a Path,
    directory: &'a Path,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Result<Self, SocketError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(SocketError::TooLong { path: path.into() });
        }
        let (Some(name), Some(parent)) = (path.file_name(), path.parent()) else {
            return Err(SocketError::NoName { path: path.into() });
        };
        let directory = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok(Self { path, directory, name })
    }

    /// What temporary names start with; the process id follows.
    fn temporary_prefix(&self) -> OsString {
        let mut prefix = OsString::from(".");
        prefix.push(self.name);
        prefix.push(".");
        prefix
    }

    fn temporary(&self) -> PathBuf {
        let mut name = self.temporary_prefix();
        name.push(std::process::id().to_string());
        self.directory.join(name)
    }

    fn bind(&self) -> Result<(UnixListener, Guard), SocketError> {
        let temporary = self.temporary();
        let failed = |step| move |error| refused(step, self.path, self.directory, error);
        let socket = UnixSocket::new_stream().map_err(failed("make"))?;
        bind_at(&socket, self.directory, &temporary).map_err(failed("bind"))?;
        let mut guard = guard_of(temporary).map_err(failed("open"))?;
        fs::set_permissions(&guard.path, Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
        let listener = socket.listen(BACKLOG).map_err(failed("listen at"))?;
        let _lock = Lock::take(self.directory);
        fs::rename(&guard.path, self.path).map_err(failed("rename to"))?;
        guard.path = self.path.into();
        Ok((listener, guard))
    }
}

/// Binds, through a handle of the directory if the temporary name makes the path too long.
fn bind_at(socket: &UnixSocket, directory: &Path, path: &Path) -> io::Result<()> {
    if path.as_os_str().len() <= MAX_PATH {
        return socket.bind(path);
    }
    let handle =
        rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let through = Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string());
    socket.bind(through.join(path.file_name().unwrap_or_default()))
}

/// Takes charge of the file just bound; if that fails, removes it.
fn guard_of(path: PathBuf) -> io::Result<Guard> {
    match rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => Ok(Guard { path, file }),
        Err(error) => {
            let _ = fs::remove_file(&path);
            Err(error.into())
        }
    }
}

fn make_directory(directory: &Path) -> Result<(), SocketError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)
        .map_err(|error| refused("make directory", directory, nearest(directory), error))
}

/// The directory itself or the nearest one above that exists.
fn nearest(directory: &Path) -> &Path {
    directory.ancestors().find(|above| above.is_dir()).unwrap_or(directory)
}

/// Passes if nothing is at `path`, a dead socket, or one of another keyferry.
async fn check_free(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SocketError::Io { step: "look at", path: path.into(), error }),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotSocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if is_dead(&error) => Ok(()),
        // A full queue of waiting connections is a sign of life too.
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            Err(SocketError::Io { step: "find out whether a process answers on", path: path.into(), error })
        }
        _ => check_kin(path).await,
    }
}

/// Passes if the live socket is another keyferry's, or its server went away while it was asked.
async fn check_kin(path: &Path) -> Result<(), SocketError> {
    let who = match dial::who(path, ASK).await {
        Ok(name) if name == RUNTIME_NAME => {
            tracing::info!(socket = %path.display(), "taking the socket over from a running keyferry");
            return Ok(());
        }
        Ok(name) => format!("it says it is {name:?}"),
        Err(_) if UnixStream::connect(path).await.is_err_and(|error| is_dead(&error)) => return Ok(()),
        Err(error) => format!("it does not say who it is: {error}"),
    };
    Err(SocketError::Live { path: path.into(), who })
}

/// Whether the answer to a connect says that nobody listens (any more).
fn is_dead(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Removes dead sockets under temporary names, left by processes killed while they started.
///
/// Best effort: a file that cannot be removed harms nobody. Process ids say nothing here, as
/// containers that share the directory do not share their ids, so each is asked for an answer.
async fn remove_stale(place: &Place<'_>) {
    let prefix = place.temporary_prefix();
    let Ok(entries) = fs::read_dir(place.directory) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(id) = name.as_bytes().strip_prefix(prefix.as_bytes()) else { continue };
        let is_socket = entry.file_type().is_ok_and(|kind| kind.is_socket());
        if id.is_empty() || !id.iter().all(u8::is_ascii_digit) || !is_socket {
            continue;
        }
        let path = entry.path();
        if UnixStream::connect(&path).await.is_err_and(|error| is_dead(&error)) {
            let _ = fs::remove_file(&path);
        }
    }
}

/// Turns a refusal into an error that says what to change, if the directory is the reason.
fn refused(step: &'static str, path: &Path, directory: &Path, error: io::Error) -> SocketError {
    match (error.kind(), fs::metadata(directory)) {
        (io::ErrorKind::PermissionDenied, Ok(found)) => SocketError::Unwritable {
            directory: directory.into(),
            owner: found.uid(),
            mode: found.mode() & 0o7777,
            uid: rustix::process::geteuid().as_raw(),
        },
        (io::ErrorKind::ReadOnlyFilesystem, _) => SocketError::ReadOnly { directory: directory.into() },
        _ => SocketError::Io { step, path: path.into(), error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener as StdListener;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    async fn error_at(path: &Path) -> String {
        let text = listen(path).await.unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[tokio::test]
    async fn listens_with_mode_0600_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (listener, guard) = listen(&path).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(guard.path(), path);
        assert_eq!(names(dir.path()), ["a.sock"]);
        let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(&path));
        accepted.unwrap();
        connected.unwrap();
        drop(guard);
        assert!(names(dir.path()).is_empty());
    }

    #[tokio::test]
    async fn dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(StdListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _guard) = listen(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
    }

    /// Answers `Version` as `name` for as long as the handle lives.
    fn provider(listener: UnixListener, name: &'static str) -> tokio::task::JoinHandle<()> {
        use crate::proto::csi_driver_provider_server::{CsiDriverProvider, CsiDriverProviderServer};
        use crate::proto::{MountRequest, MountResponse, VersionRequest, VersionResponse};
        use tonic::{Request, Response, Status};

        struct Named(&'static str);

        #[tonic::async_trait]
        impl CsiDriverProvider for Named {
            async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
                let runtime_name = self.0.to_owned();
                Ok(Response::new(VersionResponse { runtime_name, ..Default::default() }))
            }

            async fn mount(&self, _: Request<MountRequest>) -> Result<Response<MountResponse>, Status> {
                Err(Status::internal("mounts nothing"))
            }
        }

        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        let server = tonic::transport::Server::builder()
            .add_service(CsiDriverProviderServer::new(Named(name)))
            .serve_with_incoming(incoming);
        tokio::spawn(async move { server.await.unwrap() })
    }

    #[tokio::test]
    async fn t47_a_live_foreign_socket_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let foreign = provider(UnixListener::bind(&path).unwrap(), "other-provider");
        let text = error_at(&path).await;
        for part in [path.to_str().unwrap(), "stop that provider", "other-provider", "--wait-for-socket"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        UnixStream::connect(&path).await.unwrap();
        assert_eq!(names(dir.path()), ["a.sock"]);
        foreign.abort();
    }

    #[tokio::test]
    async fn t47_a_foreign_socket_that_goes_away_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let foreign = provider(UnixListener::bind(&path).unwrap(), "other-provider");
        let waiting = tokio::spawn({
            let path = path.clone();
            async move { listen_until(&path, Instant::now() + Duration::from_secs(600)).await }
        });
        // It was asked once, so it is being waited for.
        while dial::who(&path, ASK).await.is_err() {}
        assert!(!waiting.is_finished());
        foreign.abort();
        let (_listener, guard) = waiting.await.unwrap().unwrap();
        assert!(guard.holds());
    }

    #[tokio::test]
    async fn a_socket_of_another_keyferry_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (listener, old) = listen(&path).await.unwrap();
        let server = provider(listener, RUNTIME_NAME);
        let (_listener, new) = listen(&path).await.unwrap();
        assert!(new.holds() && !old.holds());
        drop(old);
        assert!(new.holds(), "the old one removes nothing that is not its own");
        assert_eq!(names(dir.path()), ["a.sock"]);
        server.abort();
    }

    #[tokio::test]
    async fn other_kinds_of_file_are_an_error_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for path in [&file, &link] {
            assert!(error_at(path).await.contains("is not a socket"));
        }
        assert_eq!(names(dir.path()), ["file", "link"]);
    }

    #[tokio::test]
    async fn missing_directory_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b/c/a.sock");
        let (_listener, _guard) = listen(&path).await.unwrap();
        // The process's umask may only take bits away.
        assert_eq!(fs::metadata(dir.path().join("b/c")).unwrap().mode() & 0o7777 & !0o755, 0);
    }

    #[tokio::test]
    async fn file_in_place_of_the_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        assert!(error_at(&dir.path().join("file/a.sock")).await.contains("make directory"));
    }

    #[tokio::test]
    async fn unwritable_directory_names_owner_mode_and_own_user() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o555)).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        // The superuser may write everywhere, so there only the message can be tested.
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let texts = if uid == 0 {
            vec![refused("bind", &dir.path().join("a.sock"), dir.path(), denied()).to_string()]
        } else {
            vec![error_at(&dir.path().join("a.sock")).await, error_at(&dir.path().join("b/a.sock")).await]
        };
        for text in texts {
            let facts = format!("{} (owner uid {uid}, mode 0555)", dir.path().display());
            assert!(text.contains(&facts), "{text}");
            assert!(text.contains(&format!("not writable for uid {uid}: set ")), "{text}");
        }
    }

    #[test]
    fn read_only_volume_is_named() {
        let error = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
        let text = refused("bind", Path::new("/x/a.sock"), Path::new("/x"), error).to_string();
        assert_eq!(text, "socket directory /x is read-only: remove readOnly from its volumeMount");
    }

    #[tokio::test]
    async fn path_length_is_limited_at_107_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let used = dir.path().as_os_str().len() + "//a.sock".len();
        let fits = dir.path().join("d".repeat(MAX_PATH - used)).join("a.sock");
        assert_eq!(fits.as_os_str().len(), MAX_PATH);
        let (_listener, _guard) = listen(&fits).await.unwrap();
        UnixStream::connect(&fits).await.unwrap();
        let longer = dir.path().join("d".repeat(MAX_PATH + 1 - used)).join("a.sock");
        let text = error_at(&longer).await;
        assert!(text.contains("108 bytes") && text.contains("at most 107"), "{text}");
    }

    #[tokio::test]
    async fn path_without_a_name_is_an_error() {
        for path in ["", "/", ".."] {
            assert!(error_at(Path::new(path)).await.contains("no file name"));
        }
    }

    #[tokio::test]
    async fn guard_leaves_the_socket_of_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (listener, guard) = listen(&path).await.unwrap();
        drop(listener);
        let (_successor, successor_guard) = listen(&path).await.unwrap();
        drop(guard);
        UnixStream::connect(&path).await.unwrap();
        drop(successor_guard);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn stale_temporary_names_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let own = format!(".a.sock.{}", std::process::id());
        for dead in [".a.sock.1", &own, ".a.sock.x", ".b.sock.1"] {
            drop(StdListener::bind(dir.path().join(dead)).unwrap());
        }
        let _live = StdListener::bind(dir.path().join(".a.sock.2")).unwrap();
        fs::write(dir.path().join(".a.sock.3"), "no socket").unwrap();
        let (_listener, _guard) = listen(&dir.path().join("a.sock")).await.unwrap();
        let left = [".a.sock.2", ".a.sock.3", ".a.sock.x", ".b.sock.1", "a.sock"];
        assert_eq!(names(dir.path()), left);
    }
}
