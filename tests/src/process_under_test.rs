//! `process-under-test ingest|worker|coordinator …`: one of the three binaries
//! of the workspace. Cargo tells a test where binaries of its own package are.

use std::process::ExitCode;

fn main() -> ExitCode {
    // The first argument says which; the services read the rest as usual.
    if let Some(ended) = tests::services::named_by_first_argument() {
        return ended;
    }
    match std::env::args().nth(1).as_deref() {
        Some("coordinator") => coordinator::cli::main_from(std::env::args_os().skip(1)),
        // The coordinator starts itself again to run its nats-server.
        Some(_) => coordinator::cli::main_from(std::env::args_os()),
        None => ExitCode::FAILURE,
    }
}
