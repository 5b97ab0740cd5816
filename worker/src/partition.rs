//! One partition: its messages, one at a time, for as long as a connection stands.

pub(crate) mod consume;
mod pull;
