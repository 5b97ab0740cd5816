//! Running a nats-server as a child process.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use service::{private, secret::Secret};
use thiserror::Error;
use tokio::{
    fs::{self, OpenOptions},
    net::TcpListener,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::launch;

/// How often to check whether the server is ready or has ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// How long the server of an earlier run may take to end.
const EARLIER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// At this size the server starts a new log file, and keeps one older file.
const LOG_SIZE_LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct NatsServerOptions {
    /// The nats-server, from [`find_or_fetch`](super::find_or_fetch).
    pub binary: PathBuf,
    /// Absolute path of an existing directory, for store, configuration, log and pid file.
    pub dir: PathBuf,
    /// Port on loopback; 0 for any.
    pub port: u16,
    /// The one user. Every user of the machine can connect to a port on loopback.
    pub login: Login,
    /// Our own executable. It makes the server die with this process, also after a
    /// SIGKILL of this process. None runs the server directly, killed when dropped.
    pub launcher: Option<PathBuf>,
}

/// The one user of a nats-server. Neither name nor password has characters that are special in its
/// configuration.
#[derive(Clone, Debug)]
pub struct Login {
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// A running nats-server on loopback.
#[derive(Debug)]
pub struct NatsServer {
    child: Child,
    pid: Pid,
    port: u16,
    files: Files,
    /// Where this run begins in the log, in bytes.
    log_start: u64,
}

/// Why nats-server could not be started.
#[derive(Debug, Error)]
pub enum StartError {
    /// Another process listens on the port.
    #[error("port {0} of 127.0.0.1 is taken, and nats-server needs it")]
    PortTaken(u16),
    /// The server of an earlier run is still running.
    #[error("nats-server of an earlier run (process {0}) is still there; stop it and try again")]
    Earlier(i32),
    /// The server ended before it was ready.
    #[error("nats-server ended at its start ({status}): {reason}")]
    Ended {
        /// Exit status.
        status: ExitStatus,
        /// Last error in its log.
        reason: String,
    },
    /// A file operation failed.
    #[error("{0} {1}")]
    File(&'static str, PathBuf, #[source] io::Error),
    /// The server cannot be run.
    #[error("run nats-server")]
    Run(#[source] io::Error),
}

#[derive(Clone, Debug)]
struct Files {
    store: PathBuf,
    config: PathBuf,
    log: PathBuf,
    pid: PathBuf,
}

impl Files {
    fn in_dir(dir: &Path) -> Self {
        Self {
            store: dir.join("nats"),
            config: dir.join("nats-server.conf"),
            log: dir.join("nats-server.log"),
            pid: dir.join("nats-server.pid"),
        }
    }

    fn config_text(&self, port: u16, login: &Login) -> String {
        let port = if port == 0 { -1 } else { i32::from(port) };
        let quoted = |path: &Path| format!("{:?}", path.to_string_lossy());
        format!(
            "# Written at every start.\n\
             listen: \"127.0.0.1:{port}\"\n\
             authorization {{ user: \"{user}\", password: \"{password}\" }}\n\
             jetstream {{ store_dir: {store} }}\n\
             ports_file_dir: {store}\n\
             pid_file: {pid}\n\
             log_file: {log}\n\
             logfile_size_limit: {LOG_SIZE_LIMIT_BYTES}\n\
             logfile_max_num: 2\n",
            user = login.user,
            password = login.password.expose_text(),
            store = quoted(&self.store),
            pid = quoted(&self.pid),
            log = quoted(&self.log),
        )
    }
}

impl NatsServer {
    /// Starts a server. It listens a moment later: see [`NatsServer::ready`].
    ///
    /// With a launcher, call this on the process's main thread: in the future given
    /// to `block_on`, not in a spawned task. The system signals the server when the
    /// *thread* that started it ends, not when the process ends.
    pub async fn start(options: &NatsServerOptions) -> Result<Self, StartError> {
        let files = Files::in_dir(&options.dir);
        earlier_gone(&files).await?;
        port_free(options.port).await?;
        prepare(&files, files.config_text(options.port, &options.login)).await?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&files.log)
            .await
            .map_err(file_error("open", &files.log))?;
        let log_start = log.metadata().await.map_err(file_error("read", &files.log))?.len();
        let mut command = match &options.launcher {
            Some(launcher) => {
                let mut command = Command::new(launcher);
                command.arg(launch::COMMAND).arg(std::process::id().to_string());
                command.arg(&options.binary);
                command
            }
            None => Command::new(&options.binary),
        };
        let child = command
            .arg("--config")
            .arg(&files.config)
            // Ctrl-C on the terminal must reach this process only: the server is stopped last.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Output of the server before it has read the path of its log.
            .stderr(log.into_std().await)
            .kill_on_drop(true)
            .spawn()
            .map_err(StartError::Run)?;
        let pid = child
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()))
            .ok_or_else(|| StartError::Run(io::Error::other("it has no process id")))?;
        Ok(Self { child, pid, port: options.port, files, log_start })
    }

    /// Waits until the server listens and its streams are there, which takes a while
    /// for a large store. If the port is 0, call this before anything else.
    pub async fn ready(&mut self) -> Result<(), StartError> {
        loop {
            if let Some(port) = self.port_told().await {
                self.port = port;
                return Ok(());
            }
            if let Some(status) = self.child.try_wait().map_err(StartError::Run)? {
                return Err(StartError::Ended { status, reason: self.last_words().await });
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Path of its log.
    pub fn log_file(&self) -> &Path {
        &self.files.log
    }

    /// Waits until the server has ended by itself, and returns its exit status.
    pub async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Stops the server, by SIGKILL if SIGTERM takes too long.
    pub async fn stop(mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            kill_process(self.pid, Signal::TERM)?;
            if timeout(STOP_TIMEOUT, self.child.wait()).await.is_err() {
                self.child.kill().await?;
            }
        }
        // The process has ended, so a pid file that stays would mean nothing.
        let _ = fs::remove_file(&self.files.pid).await;
        Ok(())
    }

    /// The port, from the file that the server writes when it is ready.
    async fn port_told(&self) -> Option<u16> {
        let name = format!("nats-server_{}.ports", self.pid());
        let text = fs::read(self.files.store.join(name)).await.ok()?;
        let ports: serde_json::Value = serde_json::from_slice(&text).ok()?;
        ports["nats"][0].as_str()?.rsplit_once(':')?.1.parse().ok()
    }

    async fn last_words(&self) -> String {
        let log = fs::read(&self.files.log).await.unwrap_or_default();
        let start = usize::try_from(self.log_start).unwrap_or(0).min(log.len());
        last_error(&String::from_utf8_lossy(&log[start..]))
    }
}

/// The message of the last error in a log, without the prefix of its line. Without an
/// error, the last line.
fn last_error(log: &str) -> String {
    let lines = || log.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find_map(|line| ["[FTL] ", "[ERR] "].iter().find_map(|mark| line.split_once(mark)))
        .map(|(_, message)| message)
        .or_else(|| lines().next())
        .unwrap_or("its log says nothing")
        .to_owned()
}

async fn prepare(files: &Files, config: String) -> Result<(), StartError> {
    let store = files.store.clone();
    blocking(move || private::make_directory(&store))
        .await
        .map_err(file_error("create", &files.store))?;
    // A killed server leaves this file, and process ids are reused.
    let mut entries = fs::read_dir(&files.store).await.map_err(file_error("read", &files.store))?;
    while let Some(entry) = entries.next_entry().await.map_err(file_error("read", &files.store))? {
        if entry.path().extension().is_some_and(|extension| extension == "ports") {
            let _ = fs::remove_file(entry.path()).await;
        }
    }
    let file = files.config.clone();
    blocking(move || private::write(&file, config.as_bytes()))
        .await
        .map_err(file_error("write", &files.config))
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Waits until the server of an earlier run has ended: two servers would ruin the store.
/// After a `kill -9` of its parent, the server needs a moment to end.
async fn earlier_gone(files: &Files) -> Result<(), StartError> {
    let deadline = Instant::now() + EARLIER_TIMEOUT;
    while let Some(pid) = earlier(files).await {
        if Instant::now() > deadline {
            return Err(StartError::Earlier(pid));
        }
        sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

async fn earlier(files: &Files) -> Option<i32> {
    let text = fs::read_to_string(&files.pid).await.ok()?;
    let pid: i32 = text.trim().parse().ok()?;
    runs_with(pid, &files.config).await.then_some(pid)
}

/// Whether process `pid` is a server with this configuration: process ids are reused.
#[cfg(target_os = "linux")]
async fn runs_with(pid: i32, config: &Path) -> bool {
    let Ok(command) = fs::read(format!("/proc/{pid}/cmdline")).await else { return false };
    let config = config.as_os_str().as_encoded_bytes();
    command.split(|byte| *byte == 0).any(|arg| arg == config)
}

#[cfg(not(target_os = "linux"))]
async fn runs_with(pid: i32, _config: &Path) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Checked before the start, since nats-server reports a taken port only in its log.
async fn port_free(port: u16) -> Result<(), StartError> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(StartError::PortTaken(port)),
        Err(error) => Err(StartError::Run(error)),
    }
}

fn file_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |error| StartError::File(operation, path.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_in_the_log() {
        for (log, expected) in [
            ("[1] 2026/11/24 [INF] Starting\n[1] 2026/11/24 [FTL] no space\n", "no space"),
            ("[1] [ERR] first\n[1] [ERR] second\n[1] [INF] Exiting\n", "second"),
            ("nats-server: bad.conf:1:1: unexpected\n\n", "nats-server: bad.conf:1:1: unexpected"),
            ("", "its log says nothing"),
        ] {
            assert_eq!(last_error(log), expected);
        }
    }

    async fn options(dir: &Path) -> NatsServerOptions {
        let binary = super::super::find_or_fetch(|_| {}).await.expect("a nats-server");
        let login = Login { user: "local".into(), password: Secret::new("0123abcd") };
        NatsServerOptions { binary, dir: dir.to_owned(), port: 0, login, launcher: None }
    }

    #[tokio::test]
    async fn it_starts_on_any_port_stops_and_starts_again() {
        let dir = tempfile::tempdir().expect("directory");
        let options = options(dir.path()).await;
        for _ in 0..2 {
            let mut server = NatsServer::start(&options).await.expect("start");
            server.ready().await.expect("ready");
            async_nats::connect(server.url()).await.expect_err("nobody in particular");
            let login = async_nats::ConnectOptions::with_user_and_password(
                options.login.user.clone(),
                options.login.password.expose_text().into_owned(),
            );
            let client = login.connect(server.url()).await.expect("connect");
            async_nats::jetstream::new(client).query_account().await.expect("JetStream");
            server.stop().await.expect("stop");
        }
    }

    #[tokio::test]
    async fn what_hinders_a_start_is_told() {
        let dir = tempfile::tempdir().expect("directory");
        let mut options = options(dir.path()).await;
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        options.port = taken.local_addr().expect("address").port();
        let error = NatsServer::start(&options).await.expect_err("taken");
        assert!(matches!(error, StartError::PortTaken(port) if port == options.port));

        options.port = 0;
        std::fs::create_dir_all(dir.path().join("nats")).expect("directory");
        std::fs::write(dir.path().join("nats").join("jetstream"), "").expect("write");
        let mut server = NatsServer::start(&options).await.expect("start");
        let error = server.ready().await.expect_err("no store");
        assert!(matches!(error, StartError::Ended { .. }), "{error}");
        assert!(error.to_string().contains("storage directory"), "{error}");
    }
}
