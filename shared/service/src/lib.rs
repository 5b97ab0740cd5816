//! The common part of all roles: how a process starts, is configured, observed
//! and stopped, and how it reaches the broker.
//!
//! Architecture invariant: nothing here knows of a particular role, of Gitea's
//! HTTP or of the file formats of a role.

pub mod backoff;
pub mod broker;
pub mod causes;
pub mod jobs;
pub mod log_limit;
pub mod operator;
pub mod peers;
pub mod printable;
pub mod private;
pub mod question;
pub mod role;
pub mod secret;
pub mod server;
pub mod settings;
pub mod shell;
pub mod tasks;
pub mod telemetry;
pub mod terminal;
