//! What is known of an issue, and what follows from an event.

pub(crate) mod diff;
pub(crate) mod state;
