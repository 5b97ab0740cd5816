//! What all pages of a process share.

use std::sync::Arc;

use gitea::Client;
use service::peers::Peers;

use super::{dead_letters::jobs::Jobs, live::Live, security::Security};

/// What all pages of a process share.
pub(super) struct Shared {
    pub(super) peers: Peers,
    pub(super) security: Security,
    /// Gitea's URL, without a slash at its end.
    pub(super) gitea_url: String,
    /// Gitea's API, where this process has a token.
    pub(super) gitea: Option<Client>,
    /// Address of a trace in another program, with `{trace_id}` in it.
    pub(super) trace_url: Option<String>,
    pub(super) live: Arc<Live>,
    pub(super) jobs: Jobs,
}
