//! The product as its users meet it: real HTTP, a real nats-server, real processes.

#[cfg(target_os = "linux")]
mod abuse;
mod affinity;
#[cfg(target_os = "linux")]
mod broker_roles;
mod broker_tls;
mod cluster;
mod coordinator;
#[cfg(target_os = "linux")]
mod deployed_cluster;
mod hostile_messages;
mod http;
mod operator;
mod outages;
#[cfg(target_os = "linux")]
mod private;
mod repartition;
mod replays;
#[cfg(target_os = "linux")]
mod role_walls;
mod services;
mod settings;
mod settling;
mod standing;
mod stories;
mod telemetry;
mod window;
