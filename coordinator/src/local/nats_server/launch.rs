//! Becomes nats-server, in a way that makes it die with its parent process.
//!
//! Only a process itself can ask for a signal at its parent's death. Doing so
//! between fork and exec would need unsafe code. So Coordinator starts itself
//! again with a hidden command, which asks for the signal and then becomes
//! nats-server. The request survives exec.

use std::{
    ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command,
    process::ExitCode,
};

use rustix::process::getppid;

/// Name of the hidden command.
pub(crate) const COMMAND: &str = "run-nats-server";

/// Arguments of the hidden command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LaunchArgs {
    /// Process id of the parent
    parent: u32,
    /// The nats-server
    binary: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Becomes nats-server. Returns only if that fails.
pub(crate) fn run(args: &LaunchArgs) -> ExitCode {
    if let Err(error) = die_with_parent() {
        eprintln!("{COMMAND}: ask for a signal at the parent's death: {error}");
        return ExitCode::FAILURE;
    }
    // The system sends no signal for a parent that died before the request above.
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

/// There is no such signal on this system. After a `kill -9` nats-server keeps running, and the
/// next start reports it.
#[cfg(not(target_os = "linux"))]
fn die_with_parent() -> rustix::io::Result<()> {
    Ok(())
}
