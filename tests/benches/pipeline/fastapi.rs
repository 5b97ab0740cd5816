//! The Python that the FastAPI receiver runs on: a virtual environment of its own.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What is installed, and what the table's caption names.
pub const PINNED: [&str; 6] = [
    "fastapi==0.165.0",
    "starlette==1.10.0",
    "pydantic==2.14.4",
    "uvicorn[standard]==0.54.0",
    "uvloop==0.23.0",
    "httptools==0.9.0",
];

/// The environment's interpreter. The first call creates it under cargo's target
/// directory, and later calls use it from there.
pub fn python() -> Result<PathBuf, String> {
    // Each list of versions has its own environment.
    let name = PINNED.join("-").replace(['[', ']', '='], "_");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let (python, made) = (dir.join("bin/python"), dir.join("made"));
    if !made.exists() {
        run(Command::new("python3").args(["-I", "-m", "venv", "--clear"]).arg(&dir))?;
        run(Command::new(&python).args(["-I", "-m", "pip", "install", "--quiet"]).args(PINNED))?;
        std::fs::write(made, "").map_err(|error| error.to_string())?;
    }
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} ended with {status}")),
        Err(error) => Err(format!("{command:?}: {error}")),
    }
}
