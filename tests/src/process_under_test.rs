//! The product's one binary, under a name of this package: cargo tells a test
//! where binaries of its own package are.

fn main() -> std::process::ExitCode {
    coordinator::cli::main()
}
