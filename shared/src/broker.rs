//! Reaching NATS: one connection after the other, for as long as somebody needs one.

mod session;

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
use crate::{causes::Causes, config::Secret};

/// Longest wait between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// Where the broker is and who we are to it.
#[derive(Clone, Debug, Default)]
pub struct BrokerConfig {
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
    /// Prefix of reply subjects, where permissions ask for one of our own.
    pub inbox_prefix: Option<String>,
}

/// Whatever connection stands. When it is lost a new one is made.
#[derive(Clone, Debug)]
pub struct Broker {
    current: watch::Receiver<Option<Session>>,
    last_denial: LastDenial,
}

/// Why connecting makes no sense. A broker that is down is no such reason.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The credentials file.
    #[error("read the NATS credentials file")]
    Credentials(#[source] std::io::Error),
}

impl Broker {
    /// Connects as `name` in the background: returns at once, whether or not the broker is there.
    pub async fn connect(config: &BrokerConfig, name: &str) -> Result<Self, ConnectError> {
        if let Some(path) = &config.credentials_file {
            tokio::fs::metadata(path).await.map_err(ConnectError::Credentials)?;
        }
        let (sender, current) = watch::channel(None);
        let last_denial = LastDenial::default();
        let keeper = Keeper {
            servers: config.servers.clone(),
            config: config.clone(),
            name: name.to_owned(),
            denials: LastDenial::clone(&last_denial),
            told: HashMap::new(),
        };
        tokio::spawn(keeper.run(sender));
        Ok(Self { current, last_denial })
    }

    /// The connection that stands right now.
    pub fn session(&self) -> Option<Session> {
        self.current.borrow().clone().filter(|session| !session.is_over())
    }

    /// Whether a connection stands right now.
    pub fn is_connected(&self) -> bool {
        self.session().is_some()
    }

    /// Returns once a connection stands.
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

    /// `cause` of a failure that began at `since`, and with it what the broker
    /// denied meanwhile: whoever lacks a permission sees no more than a timeout.
    pub fn explain(&self, since: Instant, cause: String) -> String {
        match self.last_denial.lock().ok().and_then(|last| last.clone()) {
            Some((at, denial)) if at >= since => format!("{cause}; NATS denies: {denial}"),
            _ => cause,
        }
    }
}

/// Makes one session after the other.
struct Keeper {
    config: BrokerConfig,
    name: String,
    /// Those of the settings, and those that the last one had told of.
    servers: Vec<ServerAddr>,
    denials: LastDenial,
    /// Why attempts failed, by server: told once, and once more when it changes.
    told: HashMap<String, String>,
}

impl Keeper {
    /// Runs until nobody needs a connection any more.
    async fn run(mut self, current: watch::Sender<Option<Session>>) {
        tokio::select! {
            () = self.keep(&current) => {}
            () = current.closed() => {}
        }
    }

    async fn keep(&mut self, current: &watch::Sender<Option<Session>>) {
        let mut turn = fastrand::usize(..self.servers.len().max(1));
        let (mut number, mut failed) = (0, 0);
        loop {
            let Some(server) = self.servers.get(turn % self.servers.len().max(1)).cloned() else {
                return warn!("there is no NATS server to connect to");
            };
            let (config, name) = (&self.config, &self.name);
            match Session::connect(config, &server, name, number + 1, &self.denials).await {
                Ok((session, end)) => {
                    (number, failed) = (number + 1, 0);
                    self.told.clear();
                    self.discover(&session);
                    info!("connected to NATS");
                    current.send_replace(Some(session.clone()));
                    session.until_end(end).await;
                    warn!("lost the connection to NATS, reconnecting");
                    current.send_replace(None);
                }
                Err(error) => self.tell(&server, &error),
            }
            turn += 1;
            tokio::time::sleep(reconnect_delay(failed)).await;
            failed += 1;
        }
    }

    /// Of a cluster's servers only those count that it has now: addresses of containers come and go.
    fn discover(&mut self, session: &Session) {
        let found = session.client.server_info().connect_urls;
        self.servers.clone_from(&self.config.servers);
        for server in found.iter().filter_map(|url| url.parse::<ServerAddr>().ok()) {
            let place = |server: &ServerAddr| (server.host().to_owned(), server.port());
            if !self.servers.iter().any(|known| place(known) == place(&server)) {
                self.servers.push(server);
            }
        }
    }

    fn tell(&mut self, server: &ServerAddr, error: &SessionError) {
        let place = format!("{}:{}", server.host(), server.port());
        let reason = Causes(error).to_string();
        if self.told.get(&place) != Some(&reason) {
            warn!(error = format!("{place}: {reason}"), "cannot connect to NATS, trying on");
            self.told.insert(place, reason);
        }
    }
}

fn reconnect_delay(failed: u32) -> Duration {
    let ceiling = Duration::from_millis(20)
        .saturating_mul(1_u32.checked_shl(failed.min(16)).unwrap_or(u32::MAX))
        .min(RECONNECT_DELAY_MAX);
    ceiling.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delays_grow_to_a_second_and_no_further() {
        for failed in [0, 1, 5, 6, 40, u32::MAX] {
            let delay = reconnect_delay(failed);
            assert!(
                delay >= Duration::from_millis(10) && delay <= RECONNECT_DELAY_MAX,
                "{failed}: {delay:?}"
            );
        }
    }
}
