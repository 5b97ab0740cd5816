//! The commands, one file each.

pub(crate) mod connect;
pub(crate) mod create_streams;
pub(crate) mod dead_letters;
pub(crate) mod doctor;
pub(crate) mod gitea_access;
pub(crate) mod health;
pub(crate) mod output;
pub(crate) mod progress;
pub(crate) mod register;
pub(crate) mod schema;
pub(crate) mod send;
pub(crate) mod sync;
pub(crate) mod tail;
pub(crate) mod webhook_secret;
