//! The webhook's HTTP endpoint.

pub(crate) mod body;
mod receiving;
mod replays;
pub(crate) mod reply;
mod stray;
pub(crate) mod webhook;

/// Path that Gitea posts deliveries to.
pub(crate) const WEBHOOK: &str = "/webhook/gitea";
