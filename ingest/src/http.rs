//! The webhook over HTTP: a request from its head to its answer.

pub(crate) mod body;
mod receiving;
pub(crate) mod reply;
pub(crate) mod webhook;

/// Where Gitea posts to.
pub(crate) const WEBHOOK: &str = "/webhook/gitea";
