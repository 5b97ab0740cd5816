//! How a service's process runs and ends.

use std::{fmt::Display, io, process::ExitCode};

/// Runs `work` to its end on a runtime with a thread for each processor.
///
/// # Errors
/// Those of `work`, or that no runtime can be had.
pub fn block_on<E: From<io::Error>>(work: impl Future<Output = Result<(), E>>) -> Result<(), E> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// The exit code of `service`. What went wrong is told on standard error, in one line.
pub fn exit_code(service: &str, done: Result<(), impl Display>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{service}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
