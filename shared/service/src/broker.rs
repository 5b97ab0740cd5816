//! The connection to NATS. A lost connection is replaced by a new one while a [`Broker`] exists.

pub mod batch;
pub mod bucket;
pub mod consumers;
pub mod create;
pub mod dead_letters;
pub mod findings;
pub mod message;
pub mod refusal;
pub mod repartition;
mod servers;
mod session;
pub mod streams;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::ServerAddr;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, info, warn};

pub use self::{servers::Servers, session::Session};
use self::{
    servers::place,
    session::{Heard, SessionError},
};
use crate::{
    backoff::Backoff,
    causes::Causes,
    log_limit::Line,
    secret::Secret,
    settings::{Problems, any, certificates, credentials, path, private_key, secret, text},
};

/// Waits between attempts to connect.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// How long a denial counts. What is denied is asked for again within that time: the longest wait is
/// that of the check of what stands on the broker.
const DENIAL_LASTS: Duration = Duration::from_secs(90);

/// How long a connection has to stand before the waits begin anew.
const STABLE: Duration = Duration::from_secs(1);

crate::settings! {
    /// Address of the broker, and our credentials.
    pub struct BrokerArgs => BrokerTexts {
        nats_url: Servers = "NATS_URL" or "nats://127.0.0.1:4222" = Servers::default(), servers::servers,
            "URL of NATS, or several with commas between";
        nats_user: Option<String> = "NATS_USER", any, "User at NATS";
        nats_password: Option<Secret> = "NATS_PASSWORD", secret, "Password at NATS";
        nats_password_file: Option<PathBuf> = "NATS_PASSWORD_FILE", path, "File that holds the password at NATS; or the password in NATS_PASSWORD";
        nats_creds_file: Option<PathBuf> = "NATS_CREDS_FILE", credentials, "Credentials file (.creds) for NATS";
        nats_ca_file: Option<PathBuf> = "NATS_CA_FILE", certificates,
            "Certificates to trust at NATS, PEM; asks for TLS";
        nats_cert_file: Option<PathBuf> = "NATS_CERT_FILE", certificates, "Our own certificate for NATS, PEM";
        nats_key_file: Option<PathBuf> = "NATS_KEY_FILE", private_key, "The key to our own certificate, PEM";
        nats_inbox_prefix: String = "NATS_INBOX_PREFIX" or "_INBOX" = "_INBOX".into(), inbox_prefix,
            "Prefix of reply subjects at NATS";
    }
}

/// Reads a prefix of reply subjects. The client takes any text, and the broker then hangs up.
fn inbox_prefix(text: &str) -> Result<String, String> {
    let is_token = |token: &str| {
        let forbidden = |c: char| c == '*' || c == '>' || c.is_whitespace() || c.is_control();
        !token.is_empty() && !token.contains(forbidden)
    };
    if text.split('.').all(is_token) {
        Ok(text.to_owned())
    } else {
        Err("is not a subject without wildcards, such as _INBOX_ingest".into())
    }
}

/// Address of the broker, and our credentials.
#[derive(Clone, Debug, Default)]
pub struct BrokerSettings {
    /// Addresses of one server or of the nodes of a cluster.
    pub servers: Servers,
    /// User and password, unless the URL holds them.
    pub user: Option<(String, Secret)>,
    /// File with a JWT and its key, as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// File with the certificates to trust, in PEM.
    pub ca_file: Option<PathBuf>,
    /// Files with our own certificate and key, in PEM.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Prefix of reply subjects, where permissions require a prefix of our own.
    pub inbox_prefix: Option<String>,
}

impl BrokerArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn settings(&self, problems: &mut Problems) -> BrokerSettings {
        let texts = self.check(problems);
        let password =
            problems.secret("NATS_PASSWORD", &self.nats_password, &self.nats_password_file);
        problems.check_placeholder(
            "NATS_PASSWORD",
            password.as_ref(),
            "make one with `openssl rand -hex 32`",
        );
        let is_set = |value: &Option<String>| text(value).is_some();
        let has_password = is_set(&self.nats_password) || is_set(&self.nats_password_file);
        if is_set(&self.nats_user) != has_password {
            problems.add("NATS_USER and NATS_PASSWORD go together");
        }
        if is_set(&self.nats_cert_file) != is_set(&self.nats_key_file) {
            problems.add("NATS_CERT_FILE and NATS_KEY_FILE go together");
        }
        BrokerSettings {
            servers: texts.nats_url,
            user: texts.nats_user.zip(password),
            credentials_file: texts.nats_creds_file,
            ca_file: texts.nats_ca_file,
            client_certificate: texts.nats_cert_file.zip(texts.nats_key_file),
            inbox_prefix: Some(texts.nats_inbox_prefix),
        }
    }

    /// Whether a URL of NATS is set.
    pub fn names_a_server(&self) -> bool {
        text(&self.nats_url).is_some()
    }

    /// Whether credentials are set.
    pub fn names_a_user(&self) -> bool {
        let Self { nats_user, nats_password, nats_password_file, nats_creds_file, .. } = self;
        let credentials = [nats_user, nats_password, nats_password_file, nats_creds_file];
        credentials.into_iter().any(|value| text(value).is_some())
    }
}

/// Access to the current connection. A connection that is lost is replaced by a new one.
#[derive(Clone, Debug)]
pub struct Broker {
    current: watch::Receiver<Option<Session>>,
    heard: Heard,
}

/// Why no connection can be tried. A broker that is down is not such an error.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The credentials file cannot be read.
    #[error("read the NATS credentials file")]
    Credentials(#[source] std::io::Error),
}

impl Broker {
    /// A broker, and the task that keeps a connection to it under the client name `name`. The task
    /// ends once no [`Broker`] is left. The broker may be down.
    ///
    /// # Errors
    /// If a file of the settings cannot be read.
    pub async fn new(
        settings: &BrokerSettings,
        name: &str,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), ConnectError> {
        Self::with(settings, name, Heard::of_client(name)).await
    }

    /// Like [`Broker::new`], for a connection beside those of the roles: what happens to it is told
    /// at `debug` only, and it does not get what it publishes itself.
    ///
    /// # Errors
    /// If a file of the settings cannot be read.
    pub async fn quiet(
        settings: &BrokerSettings,
        name: &str,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), ConnectError> {
        Self::with(settings, name, Heard { quiet: true, ..Heard::of_client(name) }).await
    }

    async fn with(
        settings: &BrokerSettings,
        name: &str,
        heard: Heard,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), ConnectError> {
        if let Some(path) = &settings.credentials_file {
            tokio::fs::metadata(path).await.map_err(ConnectError::Credentials)?;
        }
        let (sender, current) = watch::channel(None);
        let keeper = Keeper {
            servers: settings.servers.without_login(),
            settings: settings.clone(),
            name: name.to_owned(),
            heard: heard.clone(),
        };
        Ok((Self { current, heard }, keeper.run(sender)))
    }

    /// The current connection. None while there is none.
    pub fn session(&self) -> Option<Session> {
        self.current.borrow().clone().filter(|session| !session.is_over())
    }

    /// Whether there is a connection right now.
    pub fn is_connected(&self) -> bool {
        self.session().is_some()
    }

    /// Waits until there is a connection.
    pub async fn connected(&self) -> Session {
        let mut current = self.current.clone();
        loop {
            let session = current.borrow_and_update().clone();
            if let Some(session) = session.filter(|session| !session.is_over()) {
                return session;
            }
            if current.changed().await.is_err() {
                // The runtime is ending, and this task with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until a session suspects that something is missing on the broker.
    pub async fn suspected(&self) {
        self.heard.suspicion.notified().await;
    }

    /// The `cause` of a failure that began at `since`, together with what the broker has
    /// denied since then. A user that lacks a permission sees only a timeout otherwise.
    pub fn explain(&self, since: Instant, cause: String) -> String {
        match self.denial_since(since) {
            Some(denial) => format!("{cause}; NATS denies: {denial}"),
            None => cause,
        }
    }

    /// What the broker has denied our user last, if that was after `since`.
    pub fn denial_since(&self, since: Instant) -> Option<String> {
        let last = self.heard.last_denial.lock().ok()?.clone();
        last.filter(|(at, _)| *at >= since).map(|(_, denial)| denial)
    }

    /// Why the broker does not serve this client right now: the last attempt to connect failed, or
    /// our user is denied something that it needs on this connection. Names no repository.
    pub fn problem(&self) -> Option<String> {
        match self.session() {
            Some(session) => {
                let recently = Instant::now().checked_sub(DENIAL_LASTS);
                let since = recently.map_or(session.began(), |then| then.max(session.began()));
                let last = self.heard.last_problem.lock().ok()?.clone();
                last.filter(|(at, _)| *at >= since).map(|(_, problem)| problem)
            }
            None => self.heard.last_failure.lock().ok()?.clone(),
        }
    }
}

/// Opens a new session when the last one has ended.
struct Keeper {
    settings: BrokerSettings,
    name: String,
    /// Servers from the settings, and servers that the last session announced.
    servers: Vec<ServerAddr>,
    heard: Heard,
}

impl Keeper {
    /// Runs until no [`Broker`] is left.
    async fn run(mut self, current: watch::Sender<Option<Session>>) {
        tokio::select! {
            () = self.keep(&current) => {}
            () = current.closed() => {}
        }
    }

    async fn keep(&mut self, current: &watch::Sender<Option<Session>>) {
        let heard = self.heard.clone();
        let role = heard.role();
        let mut turn = fastrand::usize(..self.servers.len().max(1));
        let (mut number, mut backoff, mut stood) = (0, RECONNECT, true);
        loop {
            let Some(server) = self.servers.get(turn % self.servers.len().max(1)).cloned() else {
                return warn!(role, "there is no NATS server to connect to");
            };
            let (settings, name) = (&self.settings, &self.name);
            match Session::connect(settings, &server, name, number + 1, &self.heard).await {
                Ok((session, end)) => {
                    number += 1;
                    self.set_failure(None);
                    let since = Instant::now();
                    self.discover(&session);
                    let line = self.line(stood, "connected");
                    if self.heard.quiet {
                        debug!(role, "connected to NATS");
                    } else if let Some(Line { left_out }) = line {
                        info!(role, left_out, "connected to NATS");
                    }
                    current.send_replace(Some(session.clone()));
                    session.until_end(end).await;
                    current.send_replace(None);
                    self.set_failure(Some("the connection was lost".into()));
                    // A server that accepts and then hangs up is not called without end.
                    stood = since.elapsed() > STABLE;
                    if self.heard.quiet {
                        debug!(role, "lost the connection to NATS, reconnecting");
                    } else if let Some(Line { left_out }) = self.line(stood, "lost the connection")
                    {
                        warn!(role, left_out, "lost the connection to NATS, reconnecting");
                    }
                    if stood {
                        backoff.reset();
                    }
                }
                Err(error) => self.report(&server, &error),
            }
            turn += 1;
            backoff.wait().await;
        }
    }

    fn set_failure(&self, failure: Option<String>) {
        if let Ok(mut last) = self.heard.last_failure.lock() {
            *last = failure;
        }
    }

    /// Takes over the servers that the cluster has now. Former ones are dropped, since addresses of
    /// containers change.
    fn discover(&mut self, session: &Session) {
        let found = session.client.server_info().connect_urls;
        self.servers = self.settings.servers.without_login();
        for server in found.iter().filter_map(|url| url.parse::<ServerAddr>().ok()) {
            let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
            if !self.servers.iter().any(|known| place(known) == place(&server)) {
                self.servers.push(server);
            }
        }
    }

    /// A line about a connection. Only those that do not stand are limited.
    fn line(&self, stood: bool, cause: &str) -> Option<Line> {
        if stood { Some(Line { left_out: None }) } else { self.heard.lines.line(cause) }
    }

    fn report(&self, server: &ServerAddr, error: &SessionError) {
        let cause = Causes(error).to_string();
        let error = format!("{}: {cause}", place(server));
        self.set_failure(Some(cause));
        let role = self.heard.role();
        if self.heard.quiet {
            debug!(role, error, "cannot connect to NATS, trying on");
        } else if let Some(Line { left_out }) = self.heard.lines.line(&error) {
            warn!(role, error, left_out, "cannot connect to NATS, trying on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(args: &BrokerArgs) -> String {
        let mut problems = Problems::default();
        args.settings(&mut problems);
        problems.finish(()).err().map(|error| error.to_string()).unwrap_or_default()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn one_line_names_everything_that_is_wrong() {
        let args = BrokerArgs {
            nats_url: some("nats://a b"),
            nats_user: some("ingest"),
            nats_cert_file: some("/not/there.pem"),
            nats_inbox_prefix: some("_INBOX.>"),
            ..BrokerArgs::default()
        };
        assert_eq!(
            problems(&args),
            "NATS_URL has a space in it; several servers go with commas between; \
             NATS_CERT_FILE is /not/there.pem, which does not exist; \
             NATS_INBOX_PREFIX is not a subject without wildcards, such as _INBOX_ingest; \
             NATS_USER and NATS_PASSWORD go together; NATS_CERT_FILE and NATS_KEY_FILE go together"
        );
    }

    #[test]
    fn a_file_that_is_of_no_use_is_told_by_its_setting() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "text").expect("write");
        let file = Some(file.display().to_string());
        let of = |name: &str| {
            let (user, both) = (some("u"), BrokerArgs::default());
            match name {
                "NATS_CREDS_FILE" => BrokerArgs { nats_creds_file: file.clone(), ..both },
                "NATS_CA_FILE" => BrokerArgs { nats_ca_file: file.clone(), ..both },
                "NATS_CERT_FILE" => BrokerArgs { nats_cert_file: file.clone(), ..both },
                "NATS_KEY_FILE" => BrokerArgs { nats_key_file: file.clone(), ..both },
                _ => BrokerArgs { nats_user: user, nats_password_file: some("/not/there"), ..both },
            }
        };
        for (name, part) in [
            ("NATS_CREDS_FILE", "file, which is not a NATS credentials file"),
            ("NATS_CA_FILE", "file, which holds no certificate in PEM"),
            ("NATS_CERT_FILE", "file, which holds no certificate in PEM"),
            ("NATS_KEY_FILE", "file, which holds no private key in PEM"),
            ("NATS_PASSWORD_FILE", "NATS_PASSWORD_FILE is /not/there, which does not exist"),
        ] {
            let line = problems(&of(name));
            assert!(line.starts_with(&format!("{name} is /")) && line.contains(part), "{line}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let args = BrokerArgs {
            nats_url: some("nats://ingest:s3cr3t@h"),
            nats_user: some("ingest"),
            nats_password: some("s3cr3t"),
            ..BrokerArgs::default()
        };
        let settings = args.settings(&mut Problems::default());
        let texts = args.check(&mut Problems::default());
        let shown = args.shown().iter().map(|line| format!("{line}\n")).collect::<String>();
        for printed in
            [format!("{args:?}"), format!("{settings:?}"), format!("{texts:?}"), shown.clone()]
        {
            assert!(!printed.contains("s3cr3t"), "{printed}");
        }
        for line in ["NATS_URL=nats://ingest:(hidden)@h:4222\n", "NATS_PASSWORD=(hidden)\n"] {
            assert!(shown.contains(line), "{shown}");
        }
    }
}
