//! Supervises runs, for the tests of this package, and is a reactor that can be killed.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use reactor::process::{Command, Limits, start_by, supervise};

fn main() -> ExitCode {
    if let Some(code) = supervise(std::env::args_os()) {
        return code;
    }
    match &std::env::args().collect::<Vec<_>>()[..] {
        [_, supervisor, script] => react(Path::new(supervisor), script.clone()),
        _ => ExitCode::FAILURE,
    }
}

/// Runs a shell script and prints what it writes, as long as it runs.
#[tokio::main(flavor = "current_thread")]
async fn react(supervisor: &Path, script: String) -> ExitCode {
    let command = Command {
        argv: ["sh".into(), "-c".into(), script].into(),
        directory: None,
        user: None,
        environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
        stdin: Vec::new(),
        limits: Limits {
            time: None,
            memory_bytes: None,
            output_bytes: 10_000,
            grace: Duration::from_millis(300),
        },
        lease_until: Instant::now() + Duration::from_secs(600),
    };
    let Ok(mut running) = start_by(supervisor, &command).await else { return ExitCode::FAILURE };
    let mut printed = 0;
    loop {
        let output = running.output().tail;
        print!("{}", &output[printed..]);
        let _ = std::io::Write::flush(&mut std::io::stdout());
        printed = output.len();
        tokio::select! {
            _ = running.ended() => return ExitCode::SUCCESS,
            () = tokio::time::sleep(Duration::from_millis(5)) => {}
        }
    }
}
