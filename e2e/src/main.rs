//! A one-node cluster on one machine, and what users do with keyferry on it.
//!
//! Everything runs in namespaces of its own: processes, mounts, network. The whole cluster dies with the
//! first process in there, whatever happened, and the kernel takes its mounts, addresses and files along.
//! Only control groups outlive it; [`outside`] removes them.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is what it is for")]

mod binaries;
mod cases;
mod cluster;
mod inside;
mod outside;
mod report;
#[path = "../../tests/standins/mod.rs"]
mod standins;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "keyferry-e2e", about = "A one-node cluster and what users do with keyferry on it")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the cases
    Run(Run),
    /// Print the names of the cases
    List,
    /// Start a cluster to try things on; it stays until `down`
    Up(Parts),
    /// Remove the cluster of `up`, every trace of it
    Down,
    /// Run a command inside the cluster of `up`, with its kubectl
    In {
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The first process of the namespaces
    #[command(hide = true)]
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The cases, inside the namespaces
    #[command(hide = true)]
    InsideRun(Run),
    /// The cluster of `up`, inside the namespaces
    #[command(hide = true)]
    InsideUp(Parts),
    /// Wait until standard input ends, then remove what is left
    #[command(hide = true)]
    Sweep { id: String },
}

/// What the cluster is made of.
#[derive(Args, Clone)]
struct Parts {
    /// keyferry's image, an archive that containerd imports
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Helm
    #[arg(long, value_name = "FILE")]
    helm: PathBuf,
    /// The clone, for chart and examples
    #[arg(long, value_name = "DIR", default_value = ".")]
    clone: PathBuf,
    /// Where logs are kept
    #[arg(long, value_name = "DIR")]
    logs: PathBuf,
}

#[derive(Args, Clone)]
struct Run {
    #[command(flatten)]
    parts: Parts,
    /// Only cases whose name has one of these in it
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Run(run) => outside::run(&run),
        Command::List => {
            cases::all().iter().for_each(|case| println!("{}", case.name));
            Ok(ExitCode::SUCCESS)
        }
        Command::Up(parts) => outside::up(&parts),
        Command::Down => outside::down(),
        Command::In { arguments } => outside::inside(&arguments),
        Command::Init { arguments } => inside::init(&arguments),
        Command::InsideRun(run) => inside::run(run),
        Command::InsideUp(parts) => inside::up(&parts),
        Command::Sweep { id } => outside::sweep(&id),
    };
    done.unwrap_or_else(|error| {
        eprintln!("e2e: {error:#}");
        ExitCode::FAILURE
    })
}
