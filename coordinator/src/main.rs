//! The `coordinator` binary. See `coordinator::cli`.

fn main() -> std::process::ExitCode {
    coordinator::cli::main()
}
