//! Becoming nats-server, in a way that it dies with whoever started it.
//!
//! Only a process itself can ask for a signal at its parent's death, and doing
//! so between fork and exec would take unsafe code. So Coordinator starts
//! itself again with a hidden command, which asks for the signal and then
//! becomes nats-server: the request survives exec.

use std::{
    ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command,
    process::ExitCode,
};

use rustix::process::getppid;

/// Name of the hidden command.
pub(crate) const COMMAND: &str = "run-nats-server";

/// What to become.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Process id of whoever started us
    parent: u32,
    /// The nats-server
    binary: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Becomes nats-server. Returns only if that failed.
pub(crate) fn run(args: &LaunchArgs) -> ExitCode {
    if let Err(error) = die_with_parent() {
        eprintln!("{COMMAND}: ask for a signal at the parent's death: {error}");
        return ExitCode::FAILURE;
    }
    // A parent that died before the line above is never told of.
    if getppid().map(|pid| pid.as_raw_pid().unsigned_abs()) != Some(args.parent) {
        return ExitCode::FAILURE;
    }
    let error = Command::new(&args.binary).args(&args.args).exec();
    eprintln!("{COMMAND}: run {}: {error}", args.binary.display());
    ExitCode::FAILURE
}

#[cfg(target_os = "linux")]
fn die_with_parent() -> rustix::io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
}

/// There is no such signal here: after a `kill -9` nats-server stays, and the next start says so.
#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> rustix::io::Result<()> {
    Ok(())
}
