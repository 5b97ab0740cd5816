//! The ingest service. See `ingest::cli`.

fn main() -> std::process::ExitCode {
    ingest::cli::main()
}
