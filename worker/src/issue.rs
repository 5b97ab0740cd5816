//! The known state of an issue, and the changes that follow from an event.

pub(crate) mod diff;
pub(crate) mod state;
