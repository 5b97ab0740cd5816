//! The processing of one message, from decoding to settlement.

pub(crate) mod attempt;
mod dead_letter;
mod doubt;
#[cfg(test)]
mod model;
pub(crate) mod outcome;
mod ports;
pub(crate) mod process;
pub(crate) mod settle;
