//! The processing of one message, from decoding to settlement.

mod dead_letter;
pub(crate) mod outcome;
pub(crate) mod process;
pub(crate) mod settle;
