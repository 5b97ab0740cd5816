//! What ingest, worker and the operator's commands must agree on: the typed
//! event and change, how they look on the bus, where they go, and how a
//! service is configured, observed and stopped.

pub mod broker;
pub mod causes;
pub mod change;
pub mod config;
pub mod dead_letter;
pub mod envelope;
pub mod event;
pub mod health_probe;
pub mod metrics;
pub mod service;
pub mod shutdown;
pub mod streams;
pub mod subject;
pub mod telemetry;
pub mod timestamp;
pub mod trace;
