//! The operator's page: what comes in, waits, is handled and fails, and the fate of each delivery. It
//! is on the operator's listener of every role.
//!
//! What another process knows is asked of it over the broker; what is stored there is read from
//! streams and buckets. Nothing is kept for the page alone.
//!
//! Architecture invariant: whatever comes from outside of this program goes through `text`, and
//! only requests by POST that `security` lets through change anything.

mod assets;
mod chart;
mod dead_letters;
mod delivery;
mod failure;
mod fields;
mod find;
mod issue;
mod layout;
mod live;
mod now;
mod of_path;
mod reads;
mod router;
mod runbook;
mod runs;
mod security;
mod state;
mod text;
mod trace;
mod waterfall;

pub(crate) use self::router::router;
