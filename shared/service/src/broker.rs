//! The connection to NATS. A lost connection is replaced by a new one while a [`Broker`] exists.

pub mod message;
pub mod refusal;
mod session;
pub mod streams;

use std::{
    collections::HashMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use async_nats::ServerAddr;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

pub use self::session::Session;
use self::session::{LastDenial, SessionError};
use crate::{
    backoff::Backoff,
    causes::Causes,
    secret::Secret,
    settings::{Problems, any, text},
};

/// Default URL of NATS.
pub const DEFAULT_NATS_URL: &str = "nats://127.0.0.1:4222";

/// Waits between attempts to connect.
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));

/// How long a connection has to stand before the waits begin anew.
const STABLE: Duration = Duration::from_secs(1);

crate::settings! {
    /// Address of the broker, and our credentials.
    pub struct BrokerArgs => BrokerTexts {
        nats_url: Option<String> = "NATS_URL", any,
            "URL of NATS, or several with commas between [default: nats://127.0.0.1:4222]";
        nats_user: Option<String> = "NATS_USER", any, "User at NATS";
        nats_password: Option<String> = "NATS_PASSWORD", any, "Password at NATS";
        nats_password_file: Option<String> = "NATS_PASSWORD_FILE", any, "File that holds the password at NATS";
        nats_creds_file: Option<String> = "NATS_CREDS_FILE", any, "Credentials file (.creds) for NATS";
        nats_ca_file: Option<String> = "NATS_CA_FILE", any,
            "Certificates to trust at NATS, PEM; asks for TLS";
        nats_cert_file: Option<String> = "NATS_CERT_FILE", any, "Our own certificate for NATS, PEM";
        nats_key_file: Option<String> = "NATS_KEY_FILE", any, "The key to our own certificate, PEM";
        nats_inbox_prefix: Option<String> = "NATS_INBOX_PREFIX", any,
            "Prefix of reply subjects at NATS [default: _INBOX]";
    }
}

/// Address of the broker, and our credentials.
#[derive(Clone, Debug, Default)]
pub struct BrokerSettings {
    /// Addresses of one server or of the nodes of a cluster.
    pub servers: Vec<ServerAddr>,
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
        let urls = texts.nats_url.as_deref().unwrap_or(DEFAULT_NATS_URL);
        let servers = urls.split(',').map(|url| url.trim().parse()).collect::<Result<Vec<_>, _>>();
        let password =
            problems.secret("NATS_PASSWORD", &self.nats_password, &self.nats_password_file);
        if texts.nats_user.is_some() != password.is_some() {
            problems.add("NATS_USER and NATS_PASSWORD go together");
        }
        let (certificate, key) = (texts.nats_cert_file, texts.nats_key_file);
        if certificate.is_some() != key.is_some() {
            problems.add("NATS_CERT_FILE and NATS_KEY_FILE go together");
        }
        BrokerSettings {
            servers: servers.unwrap_or_else(|_| {
                problems.add("NATS_URL is not a URL such as nats://host:4222");
                Vec::new()
            }),
            user: texts.nats_user.zip(password),
            credentials_file: texts.nats_creds_file.map(Into::into),
            ca_file: texts.nats_ca_file.map(Into::into),
            client_certificate: certificate.map(Into::into).zip(key.map(Into::into)),
            inbox_prefix: texts.nats_inbox_prefix,
        }
    }

    /// Whether a URL of NATS is set.
    pub fn names_a_server(&self) -> bool {
        text(&self.nats_url).is_some()
    }
}

/// Access to the current connection. A connection that is lost is replaced by a new one.
#[derive(Clone, Debug)]
pub struct Broker {
    current: watch::Receiver<Option<Session>>,
    last_denial: LastDenial,
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
        if let Some(path) = &settings.credentials_file {
            tokio::fs::metadata(path).await.map_err(ConnectError::Credentials)?;
        }
        let (sender, current) = watch::channel(None);
        let last_denial = LastDenial::default();
        let keeper = Keeper {
            servers: settings.servers.clone(),
            settings: settings.clone(),
            name: name.to_owned(),
            denials: LastDenial::clone(&last_denial),
            reported: HashMap::new(),
        };
        Ok((Self { current, last_denial }, keeper.run(sender)))
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

    /// The `cause` of a failure that began at `since`, together with what the broker has
    /// denied since then. A user that lacks a permission sees only a timeout otherwise.
    pub fn explain(&self, since: Instant, cause: String) -> String {
        match self.last_denial.lock().ok().and_then(|last| last.clone()) {
            Some((at, denial)) if at >= since => format!("{cause}; NATS denies: {denial}"),
            _ => cause,
        }
    }
}

/// Opens a new session when the last one has ended.
struct Keeper {
    settings: BrokerSettings,
    name: String,
    /// Servers from the settings, and servers that the last session announced.
    servers: Vec<ServerAddr>,
    denials: LastDenial,
    /// Why attempts failed, by server. A reason is logged once, and again when it changes.
    reported: HashMap<String, String>,
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
        let mut turn = fastrand::usize(..self.servers.len().max(1));
        let (mut number, mut backoff) = (0, RECONNECT);
        loop {
            let Some(server) = self.servers.get(turn % self.servers.len().max(1)).cloned() else {
                return warn!("there is no NATS server to connect to");
            };
            let (settings, name) = (&self.settings, &self.name);
            match Session::connect(settings, &server, name, number + 1, &self.denials).await {
                Ok((session, end)) => {
                    number += 1;
                    let since = Instant::now();
                    self.reported.clear();
                    self.discover(&session);
                    info!("connected to NATS");
                    current.send_replace(Some(session.clone()));
                    session.until_end(end).await;
                    warn!("lost the connection to NATS, reconnecting");
                    current.send_replace(None);
                    // A server that accepts and then hangs up is not called without end.
                    if since.elapsed() > STABLE {
                        backoff.reset();
                    }
                }
                Err(error) => self.report(&server, &error),
            }
            turn += 1;
            backoff.wait().await;
        }
    }

    /// Takes over the servers that the cluster has now. Former ones are dropped, since addresses of
    /// containers change.
    fn discover(&mut self, session: &Session) {
        let found = session.client.server_info().connect_urls;
        self.servers.clone_from(&self.settings.servers);
        for server in found.iter().filter_map(|url| url.parse::<ServerAddr>().ok()) {
            let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
            if !self.servers.iter().any(|known| place(known) == place(&server)) {
                self.servers.push(server);
            }
        }
    }

    fn report(&mut self, server: &ServerAddr, error: &SessionError) {
        let place = format!("{}:{}", server.host(), server.port());
        let reason = Causes(error).to_string();
        if self.reported.get(&place) != Some(&reason) {
            warn!(error = format!("{place}: {reason}"), "cannot connect to NATS, trying on");
            self.reported.insert(place, reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_names_everything_that_is_wrong() {
        let some = |text: &str| Some(text.to_owned());
        let args = BrokerArgs {
            nats_url: some("nats://a b"),
            nats_user: some("ingest"),
            nats_cert_file: some("cert.pem"),
            ..BrokerArgs::default()
        };
        let mut problems = Problems::default();
        args.settings(&mut problems);
        assert_eq!(
            problems.finish(()).expect_err("three are wrong").to_string(),
            "NATS_USER and NATS_PASSWORD go together; NATS_CERT_FILE and NATS_KEY_FILE go together; \
             NATS_URL is not a URL such as nats://host:4222"
        );
    }
}
