//! A real nats-server with JetStream. Each test has its own.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use async_nats::{Client, ConnectOptions};
use tokio::sync::OnceCell;

use crate::{process::signal, wait};

static BINARY: OnceCell<PathBuf> = OnceCell::const_new();

/// A nats-server on its own port and directory. Killed when dropped.
pub struct Nats {
    child: Option<Child>,
    port: u16,
    store: PathBuf,
    extra: String,
    options: Arc<dyn Fn() -> ConnectOptions + Send + Sync>,
    _dir: tempfile::TempDir,
}

impl Nats {
    /// Starts a server.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a server with more lines in its configuration.
    pub async fn start_with(extra: &str) -> Self {
        let mut nats = Self::prepared(extra);
        nats.restart().await;
        nats
    }

    /// Starts a server with more lines in its configuration. Clients with these
    /// options may do everything.
    pub async fn start_secured(
        extra: &str,
        options: impl Fn() -> ConnectOptions + Send + Sync + 'static,
    ) -> Self {
        let mut nats = Self::prepared(extra);
        nats.set_options(options);
        nats.restart().await;
        nats
    }

    /// Sets the options with which a client may do everything.
    pub fn set_options(&mut self, options: impl Fn() -> ConnectOptions + Send + Sync + 'static) {
        self.options = Arc::new(options);
    }

    /// A server that is not running yet. Its port stays the same.
    pub fn prepared(extra: &str) -> Self {
        let dir = crate::temp_dir();
        Self {
            child: None,
            port: crate::free_port(),
            store: dir.path().join("store"),
            extra: extra.into(),
            options: Arc::new(ConnectOptions::new),
            _dir: dir,
        }
    }

    /// URL of the server.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the server keeps its streams.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").id()
    }

    /// Sets more lines of the configuration, from the next start on.
    pub fn set_extra(&mut self, extra: &str) {
        self.extra = extra.into();
    }

    /// Starts the server, always on the same port and directory. Kills it before if it runs.
    pub async fn restart(&mut self) {
        // Otherwise the limits of streams, and lines about them, depend on the free disk.
        let room = format!("store_dir: {:?}, max_file_store: 100GB", self.store);
        self.start_process(&format!("jetstream {{ {room} }}")).await;
        // JetStream answers only a moment after the port is open.
        let client = self.client().await;
        let jetstream = async_nats::jetstream::new(client);
        wait::until("JetStream to answer", || async { jetstream.query_account().await.ok() }).await;
    }

    /// Like [`Nats::restart`], with core NATS alone.
    pub async fn restart_without_jetstream(&mut self) {
        self.start_process("").await;
        self.client().await;
    }

    async fn start_process(&mut self, jetstream: &str) {
        self.kill();
        let config = self.store.with_extension("conf");
        let text = format!("listen: \"127.0.0.1:{}\"\n{jetstream}\n{}\n", self.port, self.extra);
        std::fs::write(&config, text).expect("write the configuration");
        let log = std::fs::File::create(self.store.with_extension("log")).expect("log file");
        let child = Command::new(binary().await)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start nats-server");
        self.child = Some(child);
    }

    /// Ends the server with SIGTERM, as an operator does. It keeps all that it knows.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stop(&mut self) {
        let mut child = self.child.take().expect("it is running");
        signal(child.id(), "TERM");
        child.wait().expect("it ends");
    }

    /// Kills the server with SIGKILL, if it runs.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A connected client of the server.
    pub async fn client(&self) -> Client {
        let url = self.url();
        wait::until("a connection to nats-server", || async {
            (self.options)().connect(&url).await.ok()
        })
        .await
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The nats-server that `cargo run` would use.
pub async fn binary() -> &'static Path {
    BINARY
        .get_or_init(|| async {
            coordinator::nats_server::find_or_fetch(|line| eprintln!("{line}"))
                .await
                .expect("a nats-server")
        })
        .await
}
