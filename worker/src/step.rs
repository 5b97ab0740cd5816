//! One message, from what it holds to what becomes of it.

mod dead_letter;
pub(crate) mod outcome;
pub(crate) mod process;
pub(crate) mod settle;
