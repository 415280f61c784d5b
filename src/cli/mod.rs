//! The command line: parse, resolve, run, exit code.

mod args;
mod check;
mod kubectl;
mod mount;
mod schema;
mod serve;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};

/// Why a command failed: its exit code and what to tell the user.
#[derive(Debug)]
pub(crate) struct Failed {
    code: u8,
    text: String,
}

impl Failed {
    /// The user's files or flags are wrong.
    pub(crate) fn input(text: impl Into<String>) -> Self {
        Self { code: 2, text: text.into() }
    }

    /// Something outside failed: a store, a server, the disk.
    pub(crate) fn outside(text: impl Into<String>) -> Self {
        Self { code: 1, text: text.into() }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let plugin = kubectl::called(std::env::args_os().next().as_deref());
    let result = if plugin { kubectl::run() } else { run(Args::parse().command) };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            say_error(&failed.text);
            ExitCode::from(failed.code)
        }
    }
}

fn run(command: Command) -> Result<(), Failed> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Check(args) => check::run(args),
        Command::Schema { name } => schema::run(&name),
        Command::Version => {
            say(concat!("keyferry v", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "keyferry", &mut std::io::stdout());
            Ok(())
        }
    }
}

#[expect(clippy::print_stderr, reason = "the command line's own voice")]
pub(crate) fn say_error(text: &str) {
    eprintln!("keyferry: {text}");
}

#[expect(clippy::print_stdout, reason = "the command line's own voice")]
pub(crate) fn say(text: &str) {
    print!("{text}");
}
