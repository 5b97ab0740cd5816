//! The command line: a role or a command.

use std::{
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use anyhow::Result;
use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind, parser::ValueSource,
};
use ingest::{Ingest, settings::IngestArgs};
use reactor::{Reactor, process, settings::ReactorArgs};
use service::{
    operator::OperatorArgs,
    role::{self, CommonArgs, CommonSettings, Role},
    settings::{Problems, SettingsError, Shown},
};

use crate::{
    CRATES,
    commands::{
        create_streams::{self, CreateStreamsArgs},
        dead_letters::{self, DeadLettersArgs},
        doctor::{self, DoctorArgs},
        health, output,
        register::{self, RegisterArgs},
        schema::{self, Subject},
        send::{self, SendArgs},
        sync::{self, SyncArgs},
        tail::{self, TailArgs},
    },
    local::{
        nats_server::launch::{self, LaunchArgs},
        up::{self, UpArgs},
    },
    page,
    worker_side::WorkerSideArgs,
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
    /// Receive Gitea's issue webhooks, keep each durably, publish typed events
    Ingest(Box<Settings<IngestArgs>>),
    /// Compare events with what was known and publish the changes
    Worker(Box<Settings<WorkerSideArgs>>),
    /// Run a command or call an address while an issue is open and assigned, as rules say
    ///
    /// SIGHUP has it read the rules again.
    React(Box<Settings<ReactorArgs>>),
    /// Sign a realistic delivery and send it to ingest
    Send(Box<SendArgs>),
    /// Compare issues with Gitea at once, and tell what differs
    ///
    /// Exit code 3: something differs.
    Sync(Box<SyncArgs>),
    /// Show changes as they happen
    Tail(Box<TailArgs>),
    /// List, show and redrive events that could not be handled
    DeadLetters(Box<DeadLettersArgs>),
    /// Make the webhooks in Gitea, or put them right
    Register(Box<RegisterArgs>),
    /// Create streams, bucket and consumers, for a broker where roles may create nothing
    CreateStreams(Box<CreateStreamsArgs>),
    /// Check the whole chain from Gitea to a change, with the remedy for what is wrong
    Doctor(Box<DoctorArgs>),
    /// Ask the role on this machine for its health, for container health checks
    Health(OperatorArgs),
    /// Print the JSON Schema of an event or a change, or the AsyncAPI document of all messages
    Schema {
        /// Which of them
        #[arg(value_enum)]
        subject: Subject,
    },
    /// Become nats-server
    #[command(name = launch::COMMAND, hide = true)]
    RunNatsServer(LaunchArgs),
}

/// Settings of a role: the common ones, and its own.
#[derive(clap::Args, Debug)]
struct Settings<T: clap::Args> {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    own: T,
    /// Check the settings, print each as it is understood, and exit
    #[arg(long)]
    check: bool,
}

impl<T: clap::Args> Settings<T> {
    fn check<S>(
        &self,
        check: impl FnOnce(&T, CommonSettings, &mut Problems) -> S,
    ) -> Result<(CommonSettings, S)> {
        let mut problems = Problems::default();
        let common = self.common.check(&mut problems);
        let own = check(&self.own, common.clone(), &mut problems);
        Ok(problems.finish((common, own))?)
    }

    /// Prints each setting with its value, the role's own ones as `own` gives them.
    fn print(&self, own: impl FnOnce(&T) -> Vec<Shown>) -> Result<()> {
        let all = [self.common.shown(), own(&self.own)].concat();
        all.iter().try_for_each(|setting| output::line(&setting.to_string()))?;
        Ok(())
    }
}

/// Runs the command line of this process, and returns the exit code. Call it on the
/// main thread: see [`NatsServer::start`](crate::nats_server::NatsServer::start).
pub fn main() -> ExitCode {
    service::private::restrict_new_files();
    if let Some(code) = process::supervise(std::env::args_os()) {
        return code;
    }
    main_from(std::env::args_os())
}

/// Runs the command line `args`, whose first item is the program's name.
pub fn main_from(args: impl Iterator<Item = OsString>) -> ExitCode {
    let parsed = command().try_get_matches_from(args);
    if let Ok(matches) = &parsed {
        let problems = secret_flags(&command(), matches);
        if !problems.is_empty() {
            return ended(&Err(SettingsError(problems).into()));
        }
    }
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => {
            let problems = not_utf8(&command(), std::env::vars_os());
            if error.kind() != ErrorKind::InvalidUtf8 || problems.is_empty() {
                error.exit();
            }
            return ended(&Err(SettingsError(problems).into()));
        }
    };
    ended(&match cli.command.unwrap_or_else(|| Command::Up(Box::new(cli.up))) {
        Command::RunNatsServer(args) => return launch::run(&args),
        Command::Up(args) => up::main(&args),
        Command::Ingest(args) => run_ingest(&args),
        Command::Worker(args) => run_worker(&args),
        Command::React(args) => run_reactor(&args),
        Command::Send(args) => block_on(send::main(&args)),
        Command::Sync(args) => match block_on(sync::main(&args)) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Tail(args) => block_on(tail::main(&args)),
        Command::DeadLetters(args) => block_on(dead_letters::main(&args)),
        Command::Register(args) => block_on(register::main(&args)),
        Command::CreateStreams(args) => block_on(create_streams::main(&args)),
        Command::Doctor(args) => {
            let here = doctor::look_here(&args);
            block_on(doctor::main(&args, here))
        }
        Command::Health(args) => health::main(&args),
        Command::Schema { subject } => schema::main(subject),
    })
}

/// Prints an error on one line, and returns the exit code.
fn ended(result: &Result<()>) -> ExitCode {
    match result {
        Err(error) if output::reader_is_gone(error) => return ExitCode::SUCCESS,
        Err(error) => output::error_line(&format!("{error:#}").replace(['\r', '\n'], " ")),
        Ok(()) => {}
    }
    role::exit_code(result)
}

/// The secrets among the flags, which everybody on the machine can see while the process runs.
fn secret_flags(command: &clap::Command, matches: &clap::ArgMatches) -> Vec<String> {
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let text = |id: &str| matches.try_get_one::<String>(id).ok().flatten();
    let mut problems = Vec::new();
    for setting in command.get_arguments() {
        let (Some(variable), Some(flag)) = (setting.get_env(), setting.get_long()) else {
            continue;
        };
        let (variable, id) = (variable.display(), setting.get_id().as_str());
        if !is_given(id) {
            continue;
        }
        if setting.is_hide_set() {
            problems.push(format!(
                "--{flag} shows a secret to everybody on this machine; set {variable} or {variable}_FILE"
            ));
        } else if text(id).is_some_and(|text| holds_login(setting, text)) {
            problems.push(format!(
                "--{flag} holds a login that everybody on this machine can see; set {variable}"
            ));
        }
    }
    if let Some((name, matches)) = matches.subcommand()
        && let Some(command) = command.find_subcommand(name)
    {
        problems.extend(secret_flags(command, matches));
    }
    problems
}

/// Whether the text of a setting is a URL with a login.
fn holds_login(setting: &clap::Arg, text: &str) -> bool {
    let variable = setting.get_env().and_then(OsStr::to_str).unwrap_or_default();
    text.contains('@') && (text.contains("://") || variable.ends_with("_URL"))
}

/// The settings among `variables` that are no text. clap refuses them without saying which.
fn not_utf8(
    command: &clap::Command,
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Vec<String> {
    let commands = || std::iter::once(command).chain(command.get_subcommands());
    let is_setting = |name: &OsString| {
        let mut arguments = commands().flat_map(clap::Command::get_arguments);
        arguments.any(|argument| argument.get_env() == Some(name))
    };
    variables
        .filter(|(name, value)| value.to_str().is_none() && is_setting(name))
        .map(|(name, _)| format!("{} is not UTF-8", name.display()))
        .collect()
}

fn run_ingest(args: &Settings<IngestArgs>) -> Result<()> {
    let (common, settings) = args.check(IngestArgs::settings)?;
    if args.check {
        return args.print(IngestArgs::shown);
    }
    let start =
        async |host: &_| Ok(vec![Box::new(Ingest::start(&settings, host).await?) as Box<dyn Role>]);
    let pages = |peers: &_, common: &_| page::router(peers, common, None);
    role::run("ingest", CRATES, &common, start, pages, async |_, _| Ok(()))
}

fn run_worker(args: &Settings<WorkerSideArgs>) -> Result<()> {
    let (common, settings) = args.check(WorkerSideArgs::settings)?;
    if args.check {
        return args.print(WorkerSideArgs::shown);
    }
    let start = async |host: &_| {
        let mut roles: Vec<Box<dyn Role>> = Vec::new();
        settings.start(host, &mut roles).await?;
        Ok(roles)
    };
    let pages = |peers: &_, common: &_| page::router(peers, common, Some(&settings.sync.access));
    role::run("worker", CRATES, &common, start, pages, async |_, _| Ok(()))
}

fn run_reactor(args: &Settings<ReactorArgs>) -> Result<()> {
    let check =
        |own: &ReactorArgs, common, problems: &mut _| own.settings(common, environment(), problems);
    let (common, settings) = args.check(check)?;
    if args.check {
        return args.print(ReactorArgs::shown);
    }
    let start = async |host: &_| {
        let reactor = Reactor::start(&settings, host, true).await?;
        Ok(vec![Box::new(reactor) as Box<dyn Role>])
    };
    let pages = |peers: &_, common: &_| page::router(peers, common, None);
    role::run("reactor", CRATES, &common, start, pages, async |_, _| Ok(()))
}

/// The environment of this process, of which runs get what their rules list.
pub(crate) fn environment() -> Vec<(String, String)> {
    let all = std::env::vars_os();
    all.filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// `dead-letters` takes its flags after `show` and `redrive` too.
fn command() -> clap::Command {
    Cli::command()
        .mut_subcommand("dead-letters", |command| command.mut_args(|arg| arg.global(true)))
}

/// Runs a command on this thread alone.
fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(command);
    // The runtime must not wait for a DNS look-up that hangs.
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
    fn a_variable_that_is_no_text_is_named() {
        use std::os::unix::ffi::OsStringExt;

        let bad = || OsString::from_vec(b"s3\xff".to_vec());
        let variables = [
            ("GITEA_WEBHOOK_SECRET", bad()),
            ("NATS_PORT", bad()),
            ("LS_COLORS", bad()),
            ("PORT", "1".into()),
        ];
        let variables = variables.map(|(name, value)| (OsString::from(name), value));
        assert_eq!(
            not_utf8(&command(), variables.into_iter()),
            ["GITEA_WEBHOOK_SECRET is not UTF-8", "NATS_PORT is not UTF-8"]
        );
    }

    #[test]
    fn a_secret_among_the_flags_is_refused_wherever_it_stands() {
        for (args, expected) in [
            (&["ingest", "--gitea-webhook-secret", "s"][..], Some("set GITEA_WEBHOOK_SECRET or")),
            (&["--gitea-webhook-secret", "s"], Some("--gitea-webhook-secret shows a secret")),
            (&["up", "--nats-password", "s"], Some("set NATS_PASSWORD or NATS_PASSWORD_FILE")),
            (&["tail", "--nats-url", "nats://u:p@h"], Some("--nats-url holds a login")),
            (&["dead-letters", "list", "--nats-password", "s"], Some("set NATS_PASSWORD or")),
            (&["ingest", "--gitea-webhook-secret-file", "s@b", "--nats-url", "nats://h"], None),
            (&["tail", "--nats-url", "u:p@h"], Some("--nats-url holds a login")),
            (&["register", "--user", "--gitea-token", "s"], Some("set GITEA_TOKEN or")),
            (&["register", "--user", "--url", "http://u:p@h"], Some("--url holds a login")),
        ] {
            let args = [&["coordinator"], args].concat();
            let matches = command().try_get_matches_from(args).expect("good arguments");
            let problems = secret_flags(&command(), &matches);
            match expected {
                None => assert_eq!(problems, [""; 0]),
                Some(part) => {
                    let line = problems.join("; ");
                    assert!(line.contains(part), "{line}");
                }
            }
        }
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
            &["ingest"],
            &["send", "assigned"],
            &["tail"],
            &["sync", "--dry-run"],
            &["dead-letters"],
            &["dead-letters", "list"],
            &["dead-letters", "show", "3"],
            &["dead-letters", "redrive", "--all"],
            &["create-streams"],
            &["register", "--user"],
            &["doctor"],
        ] {
            let cli = parse(&[args, &["--data-dir", "/d"]].concat());
            let command = format!("{:?}", cli.command);
            let takes_it = ["Some(\"/d\")", "DATA_DIR: (set)"].iter().any(|t| command.contains(t));
            assert!(takes_it, "{command}");
        }
    }
}
