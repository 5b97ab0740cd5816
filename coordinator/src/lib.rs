//! Coordinator on one machine: nats-server, ingest and worker started together
//! (`up`), and the commands an operator needs beside them.

mod broker;
pub mod cli;
mod data_dir;
mod dead_letters;
pub mod delivery;
pub mod nats_server;
mod output;
mod schema;
mod send;
mod tail;
mod up;
