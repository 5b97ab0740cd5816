//! The product as its users meet it: real HTTP, a real nats-server, real processes.

#[cfg(target_os = "linux")]
mod abuse;
mod affinity;
mod batches;
#[cfg(target_os = "linux")]
mod broker_roles;
mod broker_tls;
mod browser;
mod client_rust;
mod client_rust_sharing;
mod cluster;
mod coordinator;
#[cfg(target_os = "linux")]
mod deployed_cluster;
mod doctor;
mod hostile_messages;
mod http;
mod live_gitea;
mod log_fields;
mod operator;
mod outages;
mod page;
mod page_gaps;
mod page_live;
#[cfg(target_os = "linux")]
mod page_runs;
#[cfg(target_os = "linux")]
mod peers;
#[cfg(target_os = "linux")]
mod private;
#[cfg(target_os = "linux")]
mod react;
mod register;
mod repartition;
mod replays;
#[cfg(target_os = "linux")]
mod role_walls;
mod services;
mod settings;
mod settling;
mod standing;
mod stories;
mod sync_doubt;
mod sync_failing_gitea;
mod sync_gone;
mod sync_missed;
mod sync_on_demand;
mod sync_repair;
mod sync_takeover;
mod telemetry;
mod window;
