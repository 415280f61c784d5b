//! A program that runs beside us, its output kept in a file.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// A running program; it is killed when dropped.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with its output appended to `<logs>/<name>.log`.
    pub(crate) fn start(logs: &Path, name: &str, program: &Path, arguments: &[String]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments);
        Self::run(logs, name, command)
    }

    /// Starts a command that is set up already.
    pub(crate) fn run(logs: &Path, name: &str, mut command: Command) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("cannot end {}", self.name))
    }

    /// Fails if it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => {
                let text = format!("{} ended with {status}: see {}", self.name, self.log.display());
                Err(Ended(text).into())
            }
            None => Ok(()),
        }
    }
}

/// A program ended that should have gone on: no use in waiting.
#[derive(Debug)]
struct Ended(String);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Ended {}

/// Asks until the answer is something, at most for `limit`; the error is that of the last try.
pub(crate) async fn until<T>(
    limit: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= end || error.is::<Ended>() => {
                return Err(error.context(format!("{what}: not after {limit:?}")));
            }
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}
