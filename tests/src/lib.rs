//! The common part of tests and benchmarks: real servers, real processes, real
//! deliveries, and waiting on conditions with a deadline.

pub mod browser;
pub mod bus;
pub mod certificates;
pub mod check;
pub mod door;
pub mod gitea;
pub mod gitea_server;
pub mod load;
pub mod nats;
pub mod otlp;
pub mod process;
pub mod runners;
pub mod services;
pub mod synced;
pub mod system;
#[cfg(target_os = "linux")]
pub mod usage;
pub mod wait;

use std::{
    fs::Permissions,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
};

/// A port for a server that cannot choose one by itself. It is bound and released
/// here. The server binds it a moment later, and again after each restart.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
}

/// A private directory that is removed when dropped.
pub fn temp_dir() -> tempfile::TempDir {
    let private = Permissions::from_mode(0o700);
    let mut builder = tempfile::Builder::new();
    builder.prefix("coordinator-test-").permissions(private);
    builder.tempdir().expect("create a directory")
}
