//! Reads the headers of a delivery, once.

use std::str::FromStr;

use axum::http::{HeaderMap, header};
use uuid::Uuid;

use super::{
    content_type::ContentType,
    signature::{self, SignatureError},
};

/// Headers of a delivery. The signature does not cover them.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    /// A missing or invalid id is replaced by a random UUID, so that every delivery can be found.
    pub(crate) delivery_id: Uuid,
    /// Event family, by Gitea's name.
    pub(crate) event: Option<String>,
    /// What the webhook is installed on. Newer Gitea only.
    pub(crate) hook: Option<String>,
    /// None if it is missing or unsupported.
    pub(crate) content_type: Option<ContentType>,
    pub(crate) signature: Result<[u8; 32], SignatureError>,
    pub(crate) content_length: Option<usize>,
    /// Whether the client waits for a request to send the body (`Expect`).
    pub(crate) expects: bool,
}

impl Headers {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let first = |names: [&str; 3]| names.into_iter().find_map(text);
        let delivery_id = first(["x-gitea-delivery", "x-forgejo-delivery", "x-gogs-delivery"])
            .filter(|id| id.len() == uuid::fmt::Hyphenated::LENGTH)
            .and_then(|id| Uuid::from_str(id).ok())
            .filter(|id| !id.is_nil());
        Self {
            delivery_id: delivery_id.unwrap_or_else(Uuid::new_v4),
            // Gitea also sends X-GitHub-* headers, but their values mean other things.
            event: first(["x-gitea-event", "x-forgejo-event", "x-gogs-event"]).map(str::to_owned),
            hook: text("x-gitea-hook-installation-target-type").map(str::to_owned),
            content_type: text(header::CONTENT_TYPE.as_str()).and_then(ContentType::of),
            signature: signature::claimed(headers),
            content_length: text(header::CONTENT_LENGTH.as_str()).and_then(|n| n.parse().ok()),
            expects: headers.contains_key(header::EXPECT),
        }
    }
}
