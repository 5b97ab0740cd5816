//! What Gitea sends, and nothing of how it is answered: headers, signature, payload.

pub(crate) mod content_type;
pub(crate) mod headers;
pub(crate) mod payload;
pub(crate) mod signature;
