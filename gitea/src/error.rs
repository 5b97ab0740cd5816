//! Why there is no client, or no answer.

use std::time::Duration;

use thiserror::Error;

use crate::observer::Outcome;

/// Why a client cannot be made.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The address cannot be parsed.
    #[error("read the address of Gitea")]
    Address(#[source] url::ParseError),
    /// The address is one that cannot be used.
    #[error("the address of Gitea {0}")]
    Unfit(&'static str),
    /// A token or a name that cannot stand in a header.
    #[error("{0} holds characters that cannot stand in an HTTP header")]
    Header(&'static str),
    /// A budget of nothing, or no number.
    #[error("the budget of requests must be greater than 0")]
    Budget,
    /// The system has no certificates to trust, and Gitea's address is `https`.
    #[error("no certificate authorities found on this system, which https needs")]
    NoRoots(#[source] Option<rustls_native_certs::Error>),
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// The address is one for browsers, but not for requests.
    #[error("make requests of the address of Gitea")]
    Uri(#[source] hyper::http::uri::InvalidUri),
    /// The environment names a proxy that is not spoken to.
    #[error("the proxy for https has another scheme than http://")]
    Proxy,
}

/// Why a request has no answer. Holds no token. Of an answer's body it holds at most Gitea's own
/// message, cut to 200 characters.
#[derive(Debug, Error)]
pub enum ApiError {
    /// 404: it is not there, or the token may not see it. A 404 alone proves nothing.
    #[error("Gitea has no such thing, or the token may not see it (404)")]
    NotFound {
        /// The answer has the form of Gitea's API, so it is not a page of a proxy.
        is_giteas: bool,
    },
    /// 401.
    #[error("Gitea refuses the token (401): {message}")]
    Unauthorized {
        /// Gitea's message.
        message: String,
    },
    /// 403.
    #[error("Gitea forbids it (403): {message}")]
    Forbidden {
        /// Gitea's message.
        message: String,
        /// Scopes of which the token needs one, where Gitea names them.
        required: Vec<String>,
        /// Scopes that the token has, where Gitea names them.
        present: Vec<String>,
    },
    /// A redirect to another origin. It is not followed, so the token stays here.
    #[error("Gitea's address redirects to {origin}")]
    MovedElsewhere {
        /// Scheme, host and port of the target; empty if there is none that can be read.
        origin: String,
    },
    /// Redirects that do not end.
    #[error("too many redirects")]
    TooManyRedirects,
    /// 429.
    #[error("too many requests (429)")]
    TooManyRequests {
        /// How long to wait, if the answer says so. The client waits by itself.
        retry_after: Option<Duration>,
    },
    /// 5xx.
    #[error("Gitea, or a proxy before it, failed ({status}): {message}")]
    Server {
        /// The status.
        status: u16,
        /// Gitea's message; empty if there is none.
        message: String,
    },
    /// Another status: 400, 409, 422 …
    #[error("unexpected status {status}: {message}")]
    Unexpected {
        /// The status.
        status: u16,
        /// Gitea's message; empty if there is none.
        message: String,
    },
    /// The answer is not what Gitea's API answers.
    #[error("unreadable answer")]
    Unreadable(#[source] Unreadable),
    /// The answer is larger than the limit.
    #[error("the answer is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// No complete answer within the deadline.
    #[error("no complete answer within {0:?}")]
    TimedOut(Duration),
    /// No connection, or one that broke.
    #[error("Gitea cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request cannot be made.
    #[error("make the request")]
    Request(#[source] hyper::http::Error),
}

/// What is wrong with an answer. Says where, and never what stands there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    /// It is no JSON, or JSON of another form: a page of a proxy, say.
    #[error("not the JSON that was expected, at byte {0}")]
    NotJson(u64),
    /// It ends too early.
    #[error("the answer is cut off")]
    Truncated,
    /// A field is missing, or has another type.
    #[error("`{path}` is missing, or not of the expected form")]
    Field {
        /// Path of the field.
        path: String,
    },
}

impl ApiError {
    /// The label of this error for metrics.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotFound { .. } => Outcome::NotFound,
            Self::Unauthorized { .. } => Outcome::Unauthorized,
            Self::Forbidden { .. } => Outcome::Forbidden,
            Self::MovedElsewhere { .. } | Self::TooManyRedirects => Outcome::Moved,
            Self::TooManyRequests { .. } => Outcome::TooMany,
            Self::Server { .. } => Outcome::ServerError,
            Self::Unexpected { .. } => Outcome::Unexpected,
            Self::Unreadable(_) => Outcome::Unreadable,
            Self::TooLarge { .. } => Outcome::TooLarge,
            Self::TimedOut(_) => Outcome::TimedOut,
            Self::Unreachable(_) | Self::Request(_) => Outcome::Unreachable,
        }
    }
}
