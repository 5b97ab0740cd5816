//! Becomes the command of a run.
//!
//! Some of what a command needs can only be set by a process itself: a session of its own, another
//! user, the signal at its supervisor's death. Doing so between fork and exec would need unsafe
//! code. So the supervisor starts its own executable once more, which does it and then becomes the
//! command.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    fs::Gid,
    io::fcntl_dupfd_cloexec,
    process::{
        Resource, Rlimit, Signal, geteuid, getppid, getrlimit, set_parent_process_death_signal,
        setrlimit, setsid,
    },
    thread::{set_no_new_privs, set_thread_gid, set_thread_groups, set_thread_uid},
};
use serde::{Deserialize, Serialize};

use super::{channel::monotonic, group, user::User};

/// How much sooner than others the system ends a run when memory is short, of 1000.
const OUT_OF_MEMORY_SCORE: &str = "500";

/// What to do before. It is an argument, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Preparation {
    pub(super) supervisor: u32,
    pub(super) directory: Option<PathBuf>,
    pub(super) user: Option<User>,
    pub(super) lease_until: u64,
    /// Directory of the control group of the run, where there is one.
    pub(super) group: Option<PathBuf>,
    pub(super) descriptors: Option<u64>,
}

/// What the supervisor is told if the lease is over, instead of a problem for people.
pub(super) const LEASE_OVER: &str = "lease over";

/// Becomes the command. Returns only if that fails.
///
/// Standard input and output are the command's. Standard error is a pipe to the supervisor: closed
/// by the system as the command begins, or else with the reason before.
pub(super) fn main(preparation: &OsStr, argv: &[OsString]) -> ExitCode {
    // Closes on exec, while standard error becomes the command's.
    let Ok(told) = fcntl_dupfd_cloexec(io::stderr().as_fd(), 3) else { return ExitCode::FAILURE };
    let problem = match replace(preparation, argv) {
        Err(problem) => problem,
        Ok(never) => match never {},
    };
    // A supervisor that has ended needs no reason.
    let _ = File::from(told).write_all(problem.as_bytes());
    ExitCode::FAILURE
}

fn replace(preparation: &OsStr, argv: &[OsString]) -> Result<std::convert::Infallible, String> {
    let preparation: Preparation = serde_json::from_slice(preparation.as_encoded_bytes())
        .map_err(|error| format!("read what to do: {error}"))?;
    let [program, args @ ..] = argv else { return Err("there is no program".into()) };
    setsid().map_err(|error| format!("begin a session: {error}"))?;
    // Before the change of user, who could not. Without it the run goes on.
    if let Some(group) = &preparation.group {
        let _ = group::join(group);
    }
    // Only the system may refuse it, and the run goes on without.
    let _ = std::fs::write("/proc/self/oom_score_adj", OUT_OF_MEMORY_SCORE);
    if !geteuid().is_root() {
        // A process that became another user's could not be ended.
        set_no_new_privs(true).map_err(|error| format!("forbid other users: {error}"))?;
    }
    if let Some(most) = preparation.descriptors {
        let limit = Rlimit { current: Some(most), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, limit).map_err(|error| format!("limit open files: {error}"))?;
    }
    if let Some(user) = &preparation.user {
        switch(user).map_err(|error| format!("become user {}: {error}", user.id))?;
    }
    if let Some(directory) = &preparation.directory {
        rustix::process::chdir(directory)
            .map_err(|error| format!("go to directory {}: {error}", directory.display()))?;
    }
    // After the change of user, which would reset it.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| format!("ask for a signal at the supervisor's death: {error}"))?;
    let parent = getppid().map(|pid| pid.as_raw_pid().unsigned_abs());
    if parent != Some(preparation.supervisor) {
        return Err("the supervisor has ended".into());
    }
    let output = io::stdout().as_fd().try_clone_to_owned();
    let output = output.map_err(|error| format!("share the output: {error}"))?;
    if monotonic() >= preparation.lease_until {
        return Err(LEASE_OVER.into());
    }
    Err(Command::new(program).args(args).stderr(Stdio::from(output)).exec().to_string())
}

/// This process has one thread, so that what is the thread's is the process's.
fn switch(user: &User) -> rustix::io::Result<()> {
    let groups: Vec<_> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    set_thread_groups(&groups)?;
    set_thread_gid(Gid::from_raw(user.group))?;
    set_thread_uid(rustix::fs::Uid::from_raw(user.id))
}
