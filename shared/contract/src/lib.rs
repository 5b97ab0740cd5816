//! The contract with subscribers of Coordinator: typed events and changes, and
//! their form in NATS messages.
//!
//! Architecture invariant: this crate does no IO, knows no HTTP and nothing
//! asynchronous, and depends on no NATS client.

pub mod change;
pub mod dead_letter;
pub mod envelope;
pub mod event;
pub mod issue_state;
pub mod names;
pub mod partitions;
pub mod subject;
pub mod timestamp;
pub mod traceparent;
