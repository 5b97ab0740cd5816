//! One connection to NATS, from its start to its end.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectOptions, Event, ReconnectToServer, ServerAddr, ServerError, Subscriber,
    connection::State, jetstream,
};
use futures::StreamExt;
use percent_encoding::percent_decode_str;
use thiserror::Error;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::BrokerSettings;
use crate::log_limit::LogLimit;

/// How often a silent connection is pinged. After three pings without an answer
/// it counts as lost.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// How long an answer of the broker (a PubAck, an API call) may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// No server has this address.
const NOWHERE: &str = "nats://127.0.0.1:0";

/// One connection. It is never resumed: once it is lost, nothing more is sent on
/// it. This includes messages that were waiting before the loss was noticed.
///
/// A client that reconnects by itself would send the waiting messages to the broker
/// that it reaches then. A broker that lost the tail of its store, or was restored,
/// is another broker. It must not receive messages that follow from the answers of
/// the former one.
#[derive(Clone, Debug)]
pub struct Session {
    /// The core NATS client.
    pub client: Client,
    /// JetStream on this connection.
    pub jetstream: jetstream::Context,
    number: u64,
    began: Instant,
    ended: CancellationToken,
    suspicion: Arc<Notify>,
}

/// What the sessions of a broker have heard from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// Which role of the process they are of.
    pub(super) role: Arc<str>,
    /// Why the last attempt to connect failed. None once there is a connection.
    pub(super) last_failure: Arc<Mutex<Option<String>>>,
    /// The last denial of our user, and its time.
    pub(super) last_denial: Arc<Mutex<Option<(Instant, String)>>>,
    /// The last denial of something that is needed, for everybody to see, and its time.
    pub(super) last_problem: Arc<Mutex<Option<(Instant, String)>>>,
    /// Limits the lines about it.
    pub(super) lines: Arc<LogLimit>,
    /// Raised when something on the broker may not be as needed.
    pub(super) suspicion: Arc<Notify>,
    /// Whether lines about it are for `debug` only, since another connection tells the same.
    pub(super) quiet: bool,
}

impl Heard {
    /// What the sessions of a client hear. `name` is its name at the broker, `coordinator-<role>`.
    pub(super) fn of_client(name: &str) -> Self {
        let role = name.strip_prefix("coordinator-").unwrap_or(name).into();
        Self { role, ..Self::default() }
    }

    fn note_denial(&self, denial: String) {
        let now = Instant::now();
        if let (Some(problem), Ok(mut last)) = (problem(&denial), self.last_problem.lock()) {
            *last = Some((now, problem));
        }
        if let Ok(mut last) = self.last_denial.lock() {
            *last = Some((now, denial));
        }
    }

    /// The role, for log lines: in one process several roles have a connection each.
    pub(super) fn role(&self) -> &str {
        &self.role
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub(super) enum SessionError {
    #[error("read the NATS credentials file")]
    Credentials(#[source] std::io::Error),
    #[error("read an address")]
    Address(#[source] std::io::Error),
    #[error(transparent)]
    Connect(#[from] async_nats::ConnectError),
    #[error("subscribe to a reply subject")]
    Subscribe(#[from] async_nats::SubscribeError),
}

impl Session {
    /// Connects to `server`, once. The subscription ends with the connection; it is for
    /// [`Session::until_end`].
    pub(super) async fn connect(
        settings: &BrokerSettings,
        server: &ServerAddr,
        name: &str,
        number: u64,
        heard: &Heard,
    ) -> Result<(Self, Subscriber), SessionError> {
        let began = Instant::now();
        let nowhere: ServerAddr = NOWHERE.parse().map_err(SessionError::Address)?;
        let (first, leads) = (AtomicBool::new(true), [server.clone(), nowhere]);
        let pool = leads.clone();
        let (heard, suspicion) = (heard.clone(), Arc::clone(&heard.suspicion));
        let mut options = options(settings).await?;
        if heard.quiet {
            options = options.no_echo();
        }
        let client = options
            .name(name)
            .connection_timeout(REQUEST_TIMEOUT)
            .ping_interval(PING_INTERVAL)
            // The client has no option to never reconnect. So it gets one attempt, at an address
            // that no server has.
            .ignore_discovered_servers()
            .max_reconnects(1)
            .reconnect_to_server_callback(move |_, _| {
                let addr = leads[usize::from(!first.swap(false, Ordering::Relaxed))].clone();
                async move { Some(ReconnectToServer { addr, delay: Some(Duration::ZERO) }) }
            })
            .event_callback(move |event| {
                log(&event, &heard);
                if let Some(denial) = denial(&event) {
                    heard.note_denial(denial);
                }
                async {}
            })
            .connect(pool.as_slice())
            .await?;
        let jetstream = jetstream::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .ack_timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        let end = client.subscribe(client.new_inbox()).await?;
        let ended = CancellationToken::new();
        Ok((Self { client, jetstream, number, began, ended, suspicion }, end))
    }

    /// Number of this session among those of its broker, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When the connection was begun.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Waits until the connection is lost.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Whether the connection is lost, as far as is known.
    pub fn is_over(&self) -> bool {
        self.ended.is_cancelled() || self.client.connection_state() != State::Connected
    }

    /// Largest payload and headers, in bytes, that the server takes.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Reports that something may be missing on the broker, so that it is looked for.
    pub fn suspect(&self) {
        self.suspicion.notify_one();
    }

    /// Whether the server serves requests for messages by their priority.
    pub fn knows_priorities(&self) -> bool {
        self.client.is_server_compatible(2, 12, 0)
    }

    /// Marks all clones of the session as ended, once `end` shows that the connection is lost.
    pub(super) async fn until_end(&self, mut end: Subscriber) {
        while end.next().await.is_some() {}
        self.ended.cancel();
    }
}

/// Our credentials, and the certificates that we trust.
async fn options(settings: &BrokerSettings) -> Result<ConnectOptions, SessionError> {
    let mut options = match &settings.credentials_file {
        Some(path) => {
            ConnectOptions::with_credentials_file(path).await.map_err(SessionError::Credentials)?
        }
        None => ConnectOptions::new(),
    };
    options = match (&settings.user, login_in_url(&settings.servers)) {
        (Some((user, password)), _) => {
            options.user_and_password(user.clone(), password.expose_text().into_owned())
        }
        (None, Some((user, Some(password)))) => options.user_and_password(user, password),
        (None, Some((token, None))) => options.token(token),
        (None, None) => options,
    };
    // Servers announce each other without a scheme: one address that asks for TLS asks for all.
    let certificates = settings.ca_file.is_some() || settings.client_certificate.is_some();
    if certificates || settings.servers.iter().any(|server| server.tls_required()) {
        options = options.require_tls(true);
    }
    if let Some(path) = &settings.ca_file {
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &settings.client_certificate {
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

/// User and password, or a token alone, of the first URL that holds one. The
/// client itself ignores them.
fn login_in_url(servers: &[ServerAddr]) -> Option<(String, Option<String>)> {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    servers
        .iter()
        .find_map(|server| Some((decoded(server.username()?), server.password().map(decoded))))
}

/// The text of nats-server about a subject that our user may not use.
fn denial(event: &Event) -> Option<String> {
    match event {
        Event::ServerError(ServerError::Other(text)) => {
            text.to_ascii_lowercase().starts_with("permissions violation").then(|| text.clone())
        }
        _ => None,
    }
}

/// What the health says of a denial. None for a change of a consumer: a worker tries it each minute, and
/// goes on without or names the consumer as unfit. Subjects that name a repository lose their end,
/// since everybody can read the health.
fn problem(denial: &str) -> Option<String> {
    const CHANGES_A_CONSUMER: [&str; 2] =
        ["$JS.API.CONSUMER.CREATE.", "$JS.API.CONSUMER.DURABLE.CREATE."];
    if CHANGES_A_CONSUMER.iter().any(|subject| denial.contains(subject)) {
        return None;
    }
    let names = denial.find("gitea.").and_then(|at| {
        let (_, end) = denial[at + "gitea.".len()..].split_once('.')?;
        Some(denial.len() - end.len())
    });
    Some(names.map_or_else(|| denial.to_owned(), |at| format!("{}…\"", &denial[..at])))
}

fn log(event: &Event, heard: &Heard) {
    let role = heard.role();
    // The keeper of the sessions logs the begin and the end of each.
    let kept = matches!(
        event,
        Event::Connected | Event::Disconnected | Event::Closed | Event::ClientError(_)
    );
    if kept || heard.quiet {
        return debug!(role, %event, "NATS client event");
    }
    let Some(line) = heard.lines.line(&event.to_string()) else { return };
    let left_out = line.left_out;
    match (denial(event), event) {
        (Some(denial), _) => {
            warn!(role, denial, left_out, "NATS denies our user a subject");
        }
        (None, Event::ServerError(error)) => {
            warn!(role, %error, left_out, "NATS refused something");
        }
        (None, other) => warn!(role, event = %other, left_out, "NATS client event"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_is_told_from_other_errors_of_the_server() {
        let denied = "Permissions Violation for Publish to \"gitea.issues.x\"";
        for (text, expected) in [(denied, Some(denied.to_owned())), ("Slow Consumer", None)] {
            let event = Event::ServerError(ServerError::Other(text.to_owned()));
            assert_eq!(denial(&event), expected);
        }
        assert_eq!(denial(&Event::Connected), None);
    }

    #[test]
    fn a_problem_is_what_is_needed_and_names_no_repository() {
        let denied = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
        for (subject, expected) in [
            ("$JS.API.STREAM.INFO.GITEA_ISSUES", Some("$JS.API.STREAM.INFO.GITEA_ISSUES")),
            ("gitea.issues.assigned.acme.widgets.7.12", Some("gitea.issues.…")),
            (
                "$JS.API.DIRECT.GET.S.gitea.changes.closed.a.w.7",
                Some("$JS.API.DIRECT.GET.S.gitea.changes.…"),
            ),
            ("$JS.API.CONSUMER.CREATE.GITEA_ISSUES.p1.gitea.issues.*.*.*.*.1", None),
        ] {
            assert_eq!(problem(&denied(subject)), expected.map(denied), "{subject}");
        }
    }

    #[test]
    fn a_url_may_hold_user_and_password_or_a_token() {
        let some = |text: &str| Some(text.to_owned());
        for (urls, login) in [
            (&["nats://h"][..], None),
            (&["nats://h", "nats://u:p%40%3A@h"], Some(("u".to_owned(), some("p@:")))),
            (&["nats://t0ken@h"], Some(("t0ken".to_owned(), None))),
        ] {
            let servers: Vec<_> = urls.iter().map(|url| url.parse().expect(url)).collect();
            assert_eq!(login_in_url(&servers), login);
        }
    }
}
