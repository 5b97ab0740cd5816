//! What Gitea sends: headers, signature and payload. The answers are not part of this module.

pub(crate) mod content_type;
pub(crate) mod headers;
pub(crate) mod old_secret;
pub(crate) mod payload;
pub(crate) mod signature;
