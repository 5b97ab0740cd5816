//! Ingest, worker and coordinator as separate processes, which can be killed for real.

use std::{
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use crate::wait;

/// A process whose output goes to its own file. Killed when dropped.
pub struct Process {
    child: Child,
    output: tempfile::NamedTempFile,
}

impl Process {
    /// Starts `exe <service> <flags>` with this environment, and few variables of the caller's.
    pub fn start(exe: &Path, service: &str, flags: &[&str], environment: &[(&str, &str)]) -> Self {
        // A file and not a pipe: reading a pipe would cost processor time during measurements.
        Self::spawn(exe, service, flags, environment, appending_to)
    }

    /// Like [`Process::start`], but nobody reads its standard output.
    pub fn start_unread(
        exe: &Path,
        service: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::spawn(exe, service, flags, environment, |_| Stdio::piped())
    }

    fn spawn(
        exe: &Path,
        service: &str,
        flags: &[&str],
        environment: &[(&str, &str)],
        stdout: fn(&Path) -> Stdio,
    ) -> Self {
        let mut command = Command::new(exe);
        command.arg(service).args(flags).env_clear();
        for (name, value) in std::env::vars_os() {
            // Variables that a process needs to run, and that coverage needs to be written.
            let kept = ["PATH", "HOME", "XDG_CACHE_HOME", "LLVM_PROFILE_FILE", "TMPDIR"];
            if kept.iter().any(|kept| name == *kept) {
                command.env(name, value);
            }
        }
        command.envs(environment.iter().copied());
        let output = tempfile::NamedTempFile::new().expect("a file for its output");
        command.stdin(Stdio::null());
        command.stdout(stdout(output.path())).stderr(appending_to(output.path()));
        let child = command.spawn().expect("start the process");
        Self { child, output }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that it printed so far, both streams.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.output.path()).expect("its output")
    }

    /// Waits for a line that contains `text` and returns it.
    ///
    /// # Panics
    /// At the deadline, with the last lines that the process printed.
    pub async fn line_with(&self, text: &str) -> String {
        let line = wait::try_until(|| async {
            self.output().lines().find(|line| line.contains(text)).map(str::to_owned)
        });
        line.await.unwrap_or_else(|| {
            let output = self.output();
            let last = output.lines().rev().take(20).collect::<Vec<_>>();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            panic!("waited in vain for a line with {text:?}; the process printed last:\n{last}")
        })
    }

    /// The address in the JSON log line with `message`.
    pub async fn address_in(&self, message: &str) -> std::net::SocketAddr {
        let line = self.line_with(message).await;
        let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON log line");
        line["address"].as_str().expect("address").parse().expect("an address")
    }

    /// Sends a signal by name: KILL, TERM, STOP, CONT.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits until the process has ended.
    pub async fn exited(&mut self) -> ExitStatus {
        let mut status = None;
        let child = &mut self.child;
        let started = std::time::Instant::now();
        while status.is_none() {
            status = child.try_wait().expect("wait for the process");
            assert!(started.elapsed() < wait::DEADLINE, "the process does not end");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        status.expect("a status")
    }

    /// Kills the process with SIGKILL and waits until it has ended.
    pub async fn kill(&mut self) {
        self.signal("KILL");
        self.exited().await;
    }
}

fn appending_to(path: &Path) -> Stdio {
    let file = std::fs::OpenOptions::new().append(true).open(path);
    file.expect("open the file").into()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal by name to a process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(status.expect("run kill").success(), "kill -{name} {pid}");
}
