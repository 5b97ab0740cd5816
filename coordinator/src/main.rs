//! The one-machine Coordinator and the operator's commands. See `coordinator::cli`.

fn main() -> std::process::ExitCode {
    coordinator::cli::main()
}
