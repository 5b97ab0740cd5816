//! System calls as on a bad disk, by strace.

use std::process::{Child, Command, Stdio};

/// What happens to a system call.
#[derive(Clone, Copy, Debug)]
pub enum Spoiled {
    /// Each fsync takes this many microseconds longer.
    Slow(u32),
    /// Each fsync fails.
    Failing,
    /// Each write to a file finds no room.
    NoRoom,
}

/// Whether strace is installed.
pub fn can_be_spoiled() -> bool {
    let mut version = Command::new("strace");
    version.arg("-V").stdout(Stdio::null()).stderr(Stdio::null());
    version.status().is_ok_and(|status| status.success())
}

/// Spoils the system calls of a process until dropped.
pub struct Spoiler(Child);

impl Spoiler {
    /// Starts strace on the process.
    pub fn start(pid: u32, how: Spoiled) -> Self {
        let inject = match how {
            Spoiled::Slow(micros) => format!("inject=fsync,fdatasync:delay_enter={micros}"),
            Spoiled::Failing => "inject=fsync,fdatasync:error=EIO".into(),
            Spoiled::NoRoom => "inject=pwrite64,fallocate:error=ENOSPC".into(),
        };
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", &inject, "-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start strace");
        Self(child)
    }
}

impl Drop for Spoiler {
    fn drop(&mut self) {
        // On SIGTERM strace detaches from the process. On SIGKILL it leaves the process stopped.
        // strace ends by itself when the process has ended.
        if matches!(self.0.try_wait(), Ok(None)) {
            tests::process::signal(self.0.id(), "TERM");
        }
        let _ = self.0.wait();
    }
}
