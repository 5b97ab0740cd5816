//! The product's binary, as a binary of this package: cargo gives a test the
//! paths of the binaries of its own package only.

fn main() -> std::process::ExitCode {
    coordinator::cli::main()
}
