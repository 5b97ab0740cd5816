//! Everything on one machine: a nats-server as a child process, and all roles in this process.

mod banner;
pub(crate) mod data_dir;
pub mod nats_server;
pub(crate) mod settings;
pub(crate) mod up;
