//! The commands, one file each.

pub(crate) mod connect;
pub(crate) mod create_streams;
pub(crate) mod dead_letters;
pub(crate) mod health;
pub(crate) mod output;
pub(crate) mod schema;
pub(crate) mod send;
pub(crate) mod tail;
