//! One connection to the broker, which is never resumed: after a break there is a new one.
//!
//! The client would reconnect by itself, and send then what has waited meanwhile: requests for
//! messages that nobody waits for any more, and acks that belong to deliveries of another broker.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, ReconnectToServer, ServerAddr};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tracing::debug;

use crate::{Error, Settings, consumer::NotNow};

/// How often a silent connection is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long an attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// No server has this address.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// Why there is no connection, or no session on it.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It is tried again.
    NotNow(NotNow),
    /// A file that the settings name cannot be read.
    File(Error),
    /// It can never work.
    Fatal(Error),
}

impl From<NotNow> for Trouble {
    fn from(error: NotNow) -> Self {
        Self::NotNow(error)
    }
}

/// Connects once, to one of the servers: the next one with each attempt.
pub(crate) async fn connect(settings: &Settings, attempt: usize) -> Result<Client, Trouble> {
    let servers = settings.servers().map_err(Trouble::Fatal)?;
    let server = servers[attempt % servers.len()].clone();
    let nowhere: ServerAddr = NOWHERE.parse().map_err(|_| NotNow::new("an address"))?;
    let (first, leads) = (AtomicBool::new(true), [server, nowhere]);
    let pool = leads.clone();
    let options = options(settings, &servers)
        .await?
        .name(&settings.name)
        .connection_timeout(CONNECT_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        // The client has no option to never reconnect. So it gets one attempt, at an address that no
        // server has.
        .ignore_discovered_servers()
        .max_reconnects(1)
        .reconnect_to_server_callback(move |_, _| {
            let addr = leads[usize::from(!first.swap(false, Ordering::Relaxed))].clone();
            async move { Some(ReconnectToServer { addr, delay: Some(Duration::ZERO) }) }
        })
        .event_callback(|event| {
            debug!(%event, "NATS client event");
            async {}
        });
    match timeout(CONNECT_TIMEOUT + Duration::from_secs(1), options.connect(&pool[..])).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => Err(NotNow::new(format!("connect: {error}")).into()),
        Err(_) => Err(NotNow::new("connect: it takes too long").into()),
    }
}

/// Our credentials, and the certificates that we trust.
async fn options(settings: &Settings, servers: &[ServerAddr]) -> Result<ConnectOptions, Trouble> {
    let unread = |file: &std::path::Path| {
        let file = file.to_owned();
        |source| Trouble::File(Error::File { file, source })
    };
    let mut options = match &settings.creds_file {
        Some(file) => ConnectOptions::with_credentials_file(file).await.map_err(unread(file))?,
        None => ConnectOptions::new(),
    };
    if let Some(user) = &settings.user {
        let password = match &settings.password_file {
            Some(file) => {
                let text = tokio::fs::read_to_string(file).await.map_err(unread(file))?;
                text.trim().to_owned()
            }
            None => settings.password.clone().unwrap_or_default(),
        };
        options = options.user_and_password(user.clone(), password);
    } else if let Some(token) = &settings.token {
        options = options.token(token.clone());
    } else if let Some(login) = login_in_url(servers) {
        options = match login {
            (user, Some(password)) => options.user_and_password(user, password),
            (token, None) => options.token(token),
        };
    }
    let files = settings.ca_file.is_some() || settings.cert_file.is_some();
    if files || servers.iter().any(ServerAddr::tls_required) {
        options = options.require_tls(true);
    }
    if let Some(file) = &settings.ca_file {
        options = options.add_root_certificates(file.clone());
    }
    if let (Some(certificate), Some(key)) = (&settings.cert_file, &settings.key_file) {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

/// User and password, or a token alone, of the first URL that holds one.
fn login_in_url(servers: &[ServerAddr]) -> Option<(String, Option<String>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    servers
        .iter()
        .find_map(|server| Some((decoded(server.username()?), server.password().map(decoded))))
}
