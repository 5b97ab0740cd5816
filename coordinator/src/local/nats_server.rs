//! A nats-server on this machine: where it is found, and how it is run.

mod child;
mod fetch;
mod find;
pub(crate) mod launch;
mod search_path;

pub use child::{Login, NatsServer, NatsServerOptions, StartError};
pub use find::{NatsServerError, find_or_fetch};

/// The version that is fetched. Its hashes are in `fetch.rs`.
pub(crate) const PINNED_VERSION: &str = "2.15.1";
