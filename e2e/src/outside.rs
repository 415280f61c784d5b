//! On the machine itself: starts the namespaces and removes what outlives them.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::binaries::Binaries;
use crate::cluster::DIRECTORY;
use crate::{Parts, Run};

/// Namespaces, with a first process that dies when `unshare` does, which dies when we do.
const NAMESPACES: [&str; 12] = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount",
    "--net",
    "--uts",
    "--ipc",
    "--mount-proc",
];
/// Name of the control groups of a cluster; its id follows.
const GROUP: &str = "keyferry-e2e-";
/// Time for `up` to be ready: images are packed and ten processes started.
const START: Duration = Duration::from_secs(120);

/// Runs the cases; the exit code is theirs.
pub(crate) fn run(run: &Run) -> Result<ExitCode> {
    let mut arguments = vec!["inside-run".to_owned()];
    arguments.extend(parts_as_arguments(&run.parts)?);
    arguments.extend(run.filter.iter().cloned());
    let id = std::process::id().to_string();
    let mut sweeper = start_sweeper(&id)?;
    let status = namespaces(&id, &arguments)?.status().context("unshare")?;
    drop(sweeper.stdin.take());
    sweeper.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Starts a cluster that stays.
pub(crate) fn up(parts: &Parts) -> Result<ExitCode> {
    if let Ok(state) = State::read() {
        ensure!(!state.alive(), "a cluster is up already: e2e/down removes it");
        down()?;
    }
    let id = "up";
    let mut arguments = vec!["inside-up".to_owned()];
    arguments.extend(parts_as_arguments(parts)?);
    fs::create_dir_all(&parts.logs)?;
    let log = fs::File::create(parts.logs.join("up.log"))?;
    // No death signal here: this process ends and the cluster stays.
    let mut child = Command::new("setsid")
        .args(&NAMESPACES[3..])
        .args(init_arguments(id, &arguments)?)
        .env("KEYFERRY_E2E_ID", id)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("unshare")?;
    let begun = Instant::now();
    let mut ready = String::new();
    let mut output = child.stdout.take().context("no output")?;
    let mut bytes = [0; 1];
    while !ready.ends_with('\n') && output.read(&mut bytes)? == 1 {
        ready.push(char::from(bytes[0]));
    }
    if ready != "ready\n" {
        bail!("the cluster did not start: see {}", parts.logs.display());
    }
    ensure!(begun.elapsed() < START, "the cluster took longer than {START:?}");
    let first = first_process(child.id())?;
    State { first, logs: parts.logs.clone() }.write()?;
    println!("A one-node cluster is up after {:.1} s.", begun.elapsed().as_secs_f64());
    println!("  e2e/in kubectl apply -f e2e/example.yaml     a first pod");
    println!("  e2e/in kubectl exec -n demo web -- cat /mnt/secrets-store/db-password");
    println!("  e2e/in bash                                  a shell on the node");
    println!("  e2e/down                                     removes every trace");
    println!("Logs: {}", parts.logs.display());
    Ok(ExitCode::SUCCESS)
}

/// Ends the cluster of `up` and removes what outlives it.
pub(crate) fn down() -> Result<ExitCode> {
    match State::read() {
        Ok(state) => {
            if state.alive() {
                kill(state.first)?;
            }
            remove_groups("up")?;
            fs::remove_file(State::path())?;
            println!("The cluster is gone.");
        }
        Err(_) => println!("No cluster is up."),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command inside the namespaces of `up`.
pub(crate) fn inside(arguments: &[String]) -> Result<ExitCode> {
    let state = State::read().context("no cluster is up: e2e/up starts one")?;
    ensure!(state.alive(), "the cluster of e2e/up is dead: e2e/down cleans up");
    let binaries = Binaries::find()?;
    let path = format!("{}:{}", binaries.path("bin").display(), std::env::var("PATH").unwrap_or_default());
    let namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"];
    let status = Command::new("nsenter")
        .args(["--target", &state.first.to_string()])
        .args(namespaces)
        .arg(format!("--wd={}", std::env::current_dir()?.display()))
        .arg("--")
        .args(arguments)
        .env("KUBECONFIG", format!("{DIRECTORY}/kubeconfig/admin"))
        .env("PATH", path)
        .status()
        .context("nsenter")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Waits for the end of standard input, that is of its parent, then removes the control groups.
pub(crate) fn sweep(id: &str) -> Result<ExitCode> {
    std::io::stdin().read_to_end(&mut Vec::new())?;
    remove_groups(id)?;
    Ok(ExitCode::SUCCESS)
}

/// A process that outlives us only to clean up, in a session of its own so that no terminal ends it.
fn start_sweeper(id: &str) -> Result<Child> {
    Command::new("setsid")
        .arg(std::env::current_exe()?)
        .args(["sweep", id])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start the process that cleans up")
}

fn namespaces(id: &str, arguments: &[String]) -> Result<Command> {
    let mut command = Command::new(NAMESPACES[0]);
    command.args(&NAMESPACES[1..]).args(init_arguments(id, arguments)?);
    command.env("KEYFERRY_E2E_ID", id);
    Ok(command)
}

fn init_arguments(id: &str, arguments: &[String]) -> Result<Vec<String>> {
    make_groups(id)?;
    let mut all = vec![std::env::current_exe()?.display().to_string(), "init".to_owned(), "--".to_owned()];
    all.extend(arguments.iter().cloned());
    Ok(all)
}

fn parts_as_arguments(parts: &Parts) -> Result<Vec<String>> {
    let Parts { image, helm, clone, logs } = parts;
    fs::create_dir_all(logs)?;
    let mut arguments = Vec::new();
    for (flag, path) in [("--image", image), ("--helm", helm), ("--clone", clone), ("--logs", logs)] {
        let path = path.canonicalize().with_context(|| format!("{flag} {}", path.display()))?;
        arguments.extend([flag.to_owned(), path.display().to_string()]);
    }
    Ok(arguments)
}

/// The process that `unshare` forked: the first of the namespaces.
fn first_process(unshare: u32) -> Result<i32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    children.split_whitespace().next().context("unshare has no child")?.parse().context("children")
}

fn kill(pid: i32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(pid).context("not a process id")?;
    rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
    while rustix::process::test_kill_process(pid).is_ok() {
        sleep(Duration::from_millis(20));
    }
    Ok(())
}

// === control groups ===

/// The hierarchies: one under version 2, one for each controller under version 1.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let folders = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    folders.filter(|path| path.join("cgroup.procs").exists()).collect()
}

fn make_groups(id: &str) -> Result<()> {
    remove_groups(id)?;
    for hierarchy in hierarchies() {
        let group = hierarchy.join(format!("{GROUP}{id}"));
        fs::create_dir(&group).with_context(|| group.display().to_string())?;
        // A new set of processors is empty under version 1 until it is told its parent's.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(parents) = fs::read_to_string(hierarchy.join(file)) {
                // Version 2 inherits, and may refuse; the kubelet then says what it misses.
                let _ = fs::write(group.join(file), parents);
            }
        }
    }
    Ok(())
}

/// Removes the groups of a cluster, as soon as its processes are gone.
fn remove_groups(id: &str) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    for hierarchy in hierarchies() {
        let group = hierarchy.join(format!("{GROUP}{id}"));
        while group.exists() && remove_group(&group).is_err() {
            ensure!(Instant::now() < until, "{} still has processes", group.display());
            sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

fn remove_group(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Name of the control group that the kubelet is to use.
pub(crate) fn group_of(id: &str) -> String {
    format!("/{GROUP}{id}")
}

// === the cluster of `up` ===

struct State {
    first: i32,
    logs: PathBuf,
}

impl State {
    fn path() -> PathBuf {
        std::env::temp_dir().join("keyferry-e2e-up")
    }

    fn read() -> Result<Self> {
        let text = fs::read_to_string(Self::path())?;
        let (first, logs) = text.trim().split_once(' ').context("not a state file")?;
        Ok(Self { first: first.parse()?, logs: logs.into() })
    }

    fn write(&self) -> Result<()> {
        let mut file = fs::File::create(Self::path())?;
        writeln!(file, "{} {}", self.first, self.logs.display())?;
        Ok(())
    }

    /// Whether the first process is still ours: process ids are used again.
    fn alive(&self) -> bool {
        fs::read_to_string(format!("/proc/{}/cmdline", self.first))
            .is_ok_and(|line| line.contains("inside-up"))
    }
}
