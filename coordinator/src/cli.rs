//! The command line.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use shared::config::{ConfigError, EXIT_USAGE};

use crate::{
    dead_letters::{self, DeadLettersArgs},
    nats_server::launch::{self, LaunchArgs},
    output,
    schema::{self, Subject},
    send::{self, SendArgs},
    tail::{self, TailArgs},
    up::{self, UpArgs},
};

/// Gitea's issue webhooks, kept and turned into typed events and changes
///
/// Without a command: starts nats-server, ingest and worker on this machine.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    up: UpArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start nats-server, ingest and worker on this machine (the default)
    Up(Box<UpArgs>),
    /// Sign a realistic delivery and send it to ingest
    Send(Box<SendArgs>),
    /// Show changes as they happen
    Tail(Box<TailArgs>),
    /// List, show and redrive what could not be handled
    DeadLetters(Box<DeadLettersArgs>),
    /// Print the JSON Schema of an event or a change
    Schema {
        /// Of what
        #[arg(value_enum)]
        subject: Subject,
    },
    /// Become nats-server
    #[command(name = launch::COMMAND, hide = true)]
    RunNatsServer(LaunchArgs),
}

/// Runs what this process was asked to do, and returns its exit code. To be
/// called on the main thread: see [`NatsServer::start`](crate::nats_server::NatsServer::start).
pub fn main() -> ExitCode {
    main_from(std::env::args_os())
}

/// Runs what these arguments ask for, the program's name first.
pub fn main_from(args: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches_from(args)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let result = match cli.command.unwrap_or_else(|| Command::Up(Box::new(cli.up))) {
        Command::RunNatsServer(args) => return launch::run(&args),
        Command::Up(args) => up::main(&args),
        Command::Send(args) => block_on(send::main(&args)),
        Command::Tail(args) => block_on(tail::main(&args)),
        Command::DeadLetters(args) => block_on(dead_letters::main(&args)),
        Command::Schema { subject } => schema::main(subject),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if output::reader_is_gone(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coordinator: {}", format!("{error:#}").replace(['\r', '\n'], " "));
            let usage = error.chain().any(|cause| cause.is::<ConfigError>());
            if usage { ExitCode::from(EXIT_USAGE) } else { ExitCode::FAILURE }
        }
    }
}

/// The commands that only read NATS take the services' settings, since they
/// share a user's environment, but show those alone that matter to them.
fn command() -> clap::Command {
    let mut command = Cli::command();
    for name in ["tail", "dead-letters"] {
        command = command.mut_subcommand(name, |subcommand| {
            subcommand.mut_args(|arg| {
                let hidden = SERVICE_SETTINGS.contains(&arg.get_id().as_str());
                // Flags may stand behind `show` and `redrive` too.
                arg.hide(hidden).global(name == "dead-letters")
            })
        });
    }
    command
}

const SERVICE_SETTINGS: [&str; 8] = [
    "gitea_url",
    "stream_replicas",
    "stream_max_age_secs",
    "dedup_window_secs",
    "log_level",
    "log_format",
    "otlp_endpoint",
    "trace_ratio",
];

/// Runs a command on this thread alone.
fn block_on(command: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // A look-up of a name that hangs is not waited for.
    runtime.shutdown_background();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        command().debug_assert();
    }

    fn parse(args: &[&str]) -> Cli {
        let args = [&["coordinator"], args].concat();
        let matches = command().try_get_matches_from(args).expect("good arguments");
        Cli::from_arg_matches(&matches).expect("a command")
    }

    #[test]
    fn flags_of_the_default_command_need_no_name_of_it() {
        for args in [&["--port", "1"][..], &["up", "--port", "1"]] {
            let cli = parse(args);
            let up = match cli.command {
                Some(Command::Up(up)) => *up,
                None => cli.up,
                other => panic!("{other:?}"),
            };
            assert_eq!(up.ingest.port.as_deref(), Some("1"));
        }
    }

    #[test]
    fn every_command_takes_the_data_directory() {
        for args in [
            &["up"][..],
            &["send", "assigned"],
            &["tail"],
            &["dead-letters"],
            &["dead-letters", "list"],
            &["dead-letters", "show", "3"],
            &["dead-letters", "redrive", "--all"],
        ] {
            let cli = parse(&[args, &["--data-dir", "/d"]].concat());
            let command = format!("{:?}", cli.command);
            assert!(command.contains("Some(\"/d\")"), "{command}");
        }
    }
}
