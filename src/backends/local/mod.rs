//! The `local` store: a directory tree in which a file is a secret and a folder of numbered files
//! its versions. For first steps, tests, homelabs and air-gapped clusters.
//!
//! The kernel keeps every read below the root (`openat2`, RESOLVE_BENEATH): neither `..` nor a link
//! leads out. Edits are seen at the next read that the ages of the engine allow.

mod params;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Backend, Login};
use crate::call::Call;
use crate::entry::Dialect;
use crate::error::{Kind, Problem};
use crate::plan::{Account, Credential, Form, Plan, Reading};
use crate::policy::Reach;
use crate::secret::SecretBytes;

/// Greatest file that is read; the driver takes 4 MiB in all.
const MOST_BYTES: u64 = 4 << 20;

/// The backend.
pub struct Local {
    root: Arc<PathBuf>,
}

impl Local {
    /// Serves the files below `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root: Arc::new(root) }
    }
}

/// One file, or one version of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Read {
    name: String,
    version: Option<u64>,
}

impl Backend for Local {
    const NAME: &'static str = "local";
    const ERROR_PREFIX: &'static str = "";
    const DIALECT: Dialect = Dialect { parameters: &params::PARAMETERS, entry: &params::ENTRY, array: false };
    type Target = ();
    type Read = Read;
    type Session = ();

    fn plan(&self, call: &Call) -> (Plan<Self>, Vec<Problem>) {
        params::plan(call)
    }

    fn explain(&self, plan: &Plan<Self>) -> Account {
        let request = |read: &Read| match read.version {
            Some(version) => format!("read {}/{version} below --local-root", read.name),
            None => format!("read {} below --local-root, the newest version if it is a folder", read.name),
        };
        Account {
            identity: "the node: whoever may mount the class reads these files".to_owned(),
            logins: Vec::new(),
            requests: plan.reads.iter().map(request).collect(),
            permissions: vec!["the server's user reads the files".to_owned()],
        }
    }

    fn reach(plan: &Plan<Self>) -> Reach {
        let addresses = plan.reads.iter().map(|read| read.name.clone()).collect();
        Reach { addresses, identity: "node".to_owned(), caseless: false }
    }

    async fn login(&self, _: &(), _: &Credential) -> Result<Login<()>, Problem> {
        // The tree has one owner: the node. Which classes may use it is the cluster's policy.
        Ok(Login { session: (), principal: "node".to_owned(), lasts: Duration::from_secs(3600) })
    }

    async fn read(&self, _: &(), _: &(), read: &Read) -> Result<Reading, Problem> {
        let (root, read) = (self.root.clone(), read.clone());
        tokio::task::spawn_blocking(move || open(&root, &read))
            .await
            .unwrap_or_else(|_| Err(Problem::new(Kind::Bug, "reading a file panicked")))
    }
}

fn open(root: &Path, read: &Read) -> Result<Reading, Problem> {
    let failed = |name: &str, error: rustix::io::Errno| refuse(root, name, error);
    let dir = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| {
            Problem::new(Kind::Unavailable, format!("cannot open the local root {}: {error}", root.display()))
                .hint("see --local-root of the server")
        })?;
    let beneath = |name: &str, flags: OFlags| {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&dir, name, flags | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), how)
    };
    let found = beneath(&read.name, OFlags::RDONLY).map_err(|error| failed(&read.name, error))?;
    let kind = rustix::fs::fstat(&found).map_err(|error| failed(&read.name, error))?;
    if !rustix::fs::FileType::from_raw_mode(kind.st_mode).is_dir() {
        return match read.version {
            None => contents(found.into(), &read.name, None),
            Some(version) => Err(Problem::new(
                Kind::NotFound,
                format!("{:?} has no versions: it is a file, and version {version} is asked", read.name),
            )
            .hint("leave out version, or make it a folder of numbered files")),
        };
    }
    let version = match read.version {
        Some(version) => version,
        None => newest(found, &read.name)?,
    };
    let name = format!("{}/{version}", read.name);
    let file = beneath(&name, OFlags::RDONLY).map_err(|error| failed(&name, error))?;
    contents(file.into(), &name, Some(version))
}

/// The greatest number among the names of a folder.
fn newest(folder: rustix::fd::OwnedFd, name: &str) -> Result<u64, Problem> {
    let entries = rustix::fs::Dir::read_from(&folder).map_err(|error| {
        Problem::new(Kind::Unavailable, format!("cannot list {name:?} in the local root: {error}"))
    })?;
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str().ok()?.parse().ok())
        .max()
        .ok_or_else(|| {
            Problem::new(Kind::NotFound, format!("{name:?} is a folder without numbered files"))
                .hint("its versions are files named 1, 2, 3, ...")
        })
}

fn contents(mut file: std::fs::File, name: &str, version: Option<u64>) -> Result<Reading, Problem> {
    let broken = |error: std::io::Error| {
        Problem::new(Kind::Unavailable, format!("cannot read {name:?} in the local root: {error}"))
    };
    let meta = file.metadata().map_err(broken)?;
    if !meta.is_file() {
        return Err(Problem::new(Kind::Shape, format!("{name:?} in the local root is not a regular file")));
    }
    if meta.len() > MOST_BYTES {
        return Err(Problem::new(
            Kind::Shape,
            format!("{name:?} has {} bytes, at most 4 MiB fit", meta.len()),
        ));
    }
    // Room for the whole file at once: a vector that grows would leave copies behind.
    let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1));
    file.by_ref().take(MOST_BYTES).read_to_end(&mut bytes).map_err(broken)?;
    let version = match version {
        Some(number) => number.to_string(),
        None => stamp(&meta),
    };
    let value = SecretBytes::new(std::mem::take(&mut *bytes));
    Ok(Reading { value, version, form: Form::Plain, pinned: false })
}

/// Changes when the file does, and tells nothing about what is in it.
fn stamp(meta: &std::fs::Metadata) -> String {
    use std::os::unix::fs::MetadataExt;
    format!("{}.{:09}-{}", meta.mtime(), meta.mtime_nsec(), meta.ino())
}

fn refuse(root: &Path, name: &str, error: rustix::io::Errno) -> Problem {
    use rustix::io::Errno;
    let root = root.display();
    match error {
        Errno::NOENT | Errno::NOTDIR => {
            Problem::new(Kind::NotFound, format!("secret {name:?} not found in the local root {root}"))
                .hint("create the file, correct the name, or mark the entry optional")
        }
        Errno::XDEV | Errno::LOOP => Problem::new(
            Kind::Denied,
            format!("secret {name:?} is or passes a link that leads out of {root}"),
        )
        .hint("put the file itself below the root"),
        Errno::ACCESS | Errno::PERM => Problem::new(
            Kind::Denied,
            format!("secret {name:?} in {root} may not be read by this process: {error}"),
        )
        .hint("give the server's user the right to read it"),
        other => Problem::new(Kind::Unavailable, format!("cannot open secret {name:?} in {root}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, version: Option<u64>) -> Read {
        Read { name: name.into(), version }
    }

    #[test]
    fn a_folder_of_numbers_gives_the_newest() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("db")).unwrap();
        for n in ["1", "2", "10", "note"] {
            std::fs::write(root.path().join("db").join(n), n).unwrap();
        }
        let newest = open(root.path(), &read("db", None)).unwrap();
        assert_eq!((newest.value.expose(), newest.version.as_str()), (&b"10"[..], "10"));
        assert_eq!(open(root.path(), &read("db", Some(2))).unwrap().value.expose(), b"2");
        assert_eq!(open(root.path(), &read("db", Some(7))).unwrap_err().kind, Kind::NotFound);
    }

    #[test]
    fn links_that_lead_out_are_refused() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("key"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path().join("key"), root.path().join("abs")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("dir")).unwrap();
        std::fs::write(root.path().join("real"), "y").unwrap();
        std::os::unix::fs::symlink("real", root.path().join("in")).unwrap();
        assert_eq!(open(root.path(), &read("abs", None)).unwrap_err().kind, Kind::Denied);
        assert_eq!(open(root.path(), &read("dir/key", None)).unwrap_err().kind, Kind::Denied);
        assert_eq!(open(root.path(), &read("in", None)).unwrap().value.expose(), b"y");
    }
}
