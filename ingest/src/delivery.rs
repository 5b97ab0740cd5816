//! A delivery: one HTTP request of Gitea with a correct signature.

use contract::{event, timestamp::Timestamp};
use strum::{EnumString, IntoStaticStr};
use uuid::Uuid;

/// Event family, by Gitea's name (`X-Gitea-Event`). The journal stores it, so that an entry can be
/// parsed again by the parser of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Family {
    /// All actions on an issue.
    Issues,
}

/// Facts about a delivery, without its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Gitea's id, or a random one if Gitea's is missing or invalid. It is also the trace id.
    pub(crate) id: Uuid,
    pub(crate) family: Family,
    pub(crate) received_at: Timestamp,
    /// What the webhook is installed on. Newer Gitea only.
    pub(crate) hook: Option<String>,
    /// SHA-256 of the signed JSON text.
    pub(crate) body_sha256: [u8; 32],
}

impl Delivery {
    /// The form of these facts in an event.
    pub(crate) fn in_event(&self) -> event::Delivery {
        event::Delivery {
            id: self.id.to_string(),
            received_at: self.received_at,
            body_sha256: hex::encode(self.body_sha256),
            hook: self.hook.clone(),
        }
    }
}

#[cfg(test)]
pub(crate) fn example(id: u128) -> Delivery {
    Delivery {
        id: Uuid::from_u128(id),
        family: Family::Issues,
        received_at: Timestamp::now(),
        hook: None,
        body_sha256: [0; 32],
    }
}
