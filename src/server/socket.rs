//! Binds the node's sockets: only root may connect, from the first moment.
//!
//! A socket is bound under a temporary name, gets its mode, and is renamed to its own: there is no
//! moment in which others can connect, and none without a socket when a new process takes over.

use std::fmt;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// Longest path that the kernel takes for a socket.
const MOST_PATH: usize = 107;

/// Why a socket cannot be bound, with the next step.
#[derive(Debug)]
pub struct SocketError(String);

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SocketError {}

/// Removes a socket when dropped, if it is still the one that was bound.
#[derive(Debug)]
pub struct Guard {
    path: PathBuf,
    inode: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode) {
            // A file that is already gone is what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds the socket at `path` with mode 0600. A dead socket there is replaced.
///
/// # Errors
/// A live socket, a file that is no socket, a directory that cannot be made or written.
pub async fn listen(path: &Path) -> Result<(UnixListener, Guard), SocketError> {
    let shown = path.display();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("socket");
    let draft = directory.join(format!(".{name}.{}", std::process::id()));
    if draft.as_os_str().len() > MOST_PATH {
        return Err(SocketError(format!(
            "{shown}: the path is too long for a socket (with room for a temporary name at most {MOST_PATH} bytes); \
             use a shorter --socket-dir"
        )));
    }
    std::fs::create_dir_all(directory).map_err(|error| refused(directory, &error))?;
    vacant(path).await?;
    clean(directory, name);
    let listener = UnixListener::bind(&draft).map_err(|error| refused(directory, &error))?;
    let finish = || {
        std::fs::set_permissions(&draft, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&draft, path)?;
        Ok(std::fs::symlink_metadata(path)?.ino())
    };
    let inode = finish().map_err(|error: std::io::Error| {
        // The draft is ours and useless now.
        let _ = std::fs::remove_file(&draft);
        refused(directory, &error)
    })?;
    Ok((listener, Guard { path: path.to_owned(), inode }))
}

/// Makes sure that nobody listens at `path` and that nothing else is lost by replacing it.
async fn vacant(path: &Path) -> Result<(), SocketError> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(path, &error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError(format!("{shown} exists and is no socket; move it away")));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError(format!(
            "{shown}: another process listens there; stop that provider first, or choose another --socket-dir"
        ))),
        Err(_) => Ok(()),
    }
}

/// Removes temporary names that a killed process left.
fn clean(directory: &Path, name: &str) {
    let prefix = format!(".{name}.");
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.filter_map(Result::ok) {
        let pid = entry.file_name().to_str().and_then(|n| n.strip_prefix(&prefix)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists() || pid == std::process::id()) {
            // What cannot be removed does no harm.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn refused(directory: &Path, error: &std::io::Error) -> SocketError {
    let uid = rustix::process::geteuid().as_raw();
    let state = std::fs::metadata(directory).map_or("it does not exist".to_owned(), |meta| {
        format!("its owner is uid {} and its mode {:04o}", meta.uid(), meta.mode() & 0o7777)
    });
    SocketError(format!(
        "cannot make a socket in {}: {error}; {state}, this process runs as uid {uid}; run as that owner, or give \
         --socket-dir a directory that uid {uid} may write",
        directory.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_owner_may_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/azure.sock");
        let (_listener, guard) = listen(&path).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(guard);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn t47_a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("azure.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (live, _guard) = listen(&path).await.unwrap();
        let text = listen(&path).await.unwrap_err().to_string();
        assert!(text.contains("another process listens") && text.contains("azure.sock"), "{text}");
        drop(live);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("azure.sock");
        std::fs::write(&path, "x").unwrap();
        assert!(listen(&path).await.unwrap_err().to_string().contains("no socket"));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_successor_keeps_its_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("azure.sock");
        let (old, old_guard) = listen(&path).await.unwrap();
        drop(old);
        let (_new, _new_guard) = listen(&path).await.unwrap();
        drop(old_guard);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_long_path_is_explained() {
        let path = Path::new("/tmp").join("x".repeat(120)).join("azure.sock");
        assert!(listen(&path).await.unwrap_err().to_string().contains("too long"));
    }
}
