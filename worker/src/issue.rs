//! What is known of an issue, and what follows from an event.

pub(crate) mod bucket;
pub(crate) mod diff;
pub(crate) mod memory;
pub(crate) mod state;
pub(crate) mod step;
