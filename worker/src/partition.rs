//! One partition: its messages are processed one at a time, for as long as the connection lasts.

pub(crate) mod affinity;
pub(crate) mod attempts;
pub(crate) mod consume;
mod pull;
