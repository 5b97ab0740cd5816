//! Reads all settings as the roles do, and those that a Coordinator on this machine has written
//! into its data directory.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ingest::settings::IngestSettings;
use service::{
    operator::probe::reachable,
    role::CommonSettings,
    settings::{Problems, http_url, text},
};
use sync::settings::AccessSettings;

use super::{DoctorArgs, report::Check};
use crate::{
    commands::connect::or_those_of_instance,
    local::{
        data_dir::{DEFAULT_DATA_DIR, Instance, secret_file},
        settings::DEFAULT_GITEA_URL,
    },
};

/// How messages about the secret begin.
const SECRET: &str = "GITEA_WEBHOOK_SECRET";

/// Settings, as far as they can be used.
pub(super) struct Read {
    /// Settings that all roles share.
    pub(super) common: CommonSettings,
    /// Settings of ingest. None where its secret is not known.
    pub(super) ingest: Option<IngestSettings>,
    /// Access to Gitea.
    pub(super) access: AccessSettings,
    /// Wait for an ack at the consumers.
    pub(super) ack_wait: Duration,
    /// Whether all about the broker is good.
    pub(super) broker_is_good: bool,
    /// Whether all about Gitea is good.
    pub(super) gitea_is_good: bool,
    /// URLs at which ingest may be, the likeliest first.
    pub(super) webhooks: Vec<String>,
    /// URL of the operator's listener of this machine.
    pub(super) operator: String,
    /// The data directory, if it is one.
    pub(super) data_dir: PathBuf,
    /// Files that hold secrets, by their settings.
    pub(super) secret_files: Vec<(&'static str, PathBuf)>,
}

impl Read {
    pub(super) fn new(args: &DoctorArgs) -> (Self, Vec<Check>) {
        let mut problems = Problems::default();
        let data_dir = PathBuf::from(text(&args.ingest.data_dir).unwrap_or(DEFAULT_DATA_DIR));
        let instance = Instance::read(&data_dir).unwrap_or_else(|error| {
            problems.add(format!("DATA_DIR: {error:#}"));
            None
        });
        let running = instance.filter(|_| Instance::is_running(&data_dir).unwrap_or(false));

        let mut common_args = args.common.clone();
        match or_those_of_instance(common_args.broker.clone(), &data_dir) {
            Ok(broker) => common_args.broker = broker,
            Err(error) => problems.add(format!("DATA_DIR: {error:#}")),
        }
        if text(&common_args.own.gitea_url).is_none()
            && let Some(instance) = &running
        {
            let url = instance.gitea_url.clone();
            common_args.own.gitea_url = url.or_else(|| Some(DEFAULT_GITEA_URL.into()));
        }
        let common = common_args.check(&mut problems);
        let worker = args.worker.settings(common.clone(), &mut problems);
        if let Some(url) = text(&args.url)
            && let Err(problem) = http_url(url)
        {
            problems.add(format!("WEBHOOK_URL {problem}"));
        }
        let mut checks = vec![told("settings", problems)];
        let ingest = read_ingest(args, &common, running.as_ref(), &data_dir, &mut checks);

        let is_good = |check: &dyn Fn(&mut Problems)| {
            let mut problems = Problems::default();
            check(&mut problems);
            problems.finish(()).is_ok()
        };
        let broker_is_good = is_good(&|problems| {
            common_args.broker.settings(problems);
            common_args.streams.settings(problems);
        });
        let gitea_is_good = !common.gitea_url.is_empty()
            && is_good(&|problems| drop(args.worker.access.settings("", problems)));
        let of_address = |address: SocketAddr| format!("http://{}", reachable(address));
        let own = args.ingest.check(&mut Problems::default());
        let here = running.as_ref().map_or_else(
            || format!("{}/webhook/gitea", of_address(SocketAddr::new(own.host, own.port))),
            |running| running.webhook_url.clone(),
        );
        let given = text(&args.url).and_then(|url| http_url(url).ok());
        let operator = running.as_ref().map_or_else(
            || of_address(common.operator.socket_address()),
            |running| running.operator_url.clone(),
        );
        let mut secret_files = secret_files(args, &common_args);
        if let Some(file) = running.and_then(|running| running.secret_file) {
            secret_files.push(("GITEA_WEBHOOK_SECRET_FILE", file));
        }
        let read = Self {
            common,
            ingest,
            access: worker.sync.access,
            ack_wait: worker.worker.ack_wait,
            broker_is_good,
            gitea_is_good,
            webhooks: given.into_iter().chain([here]).collect(),
            operator,
            data_dir,
            secret_files,
        };
        (read, checks)
    }
}

/// The settings of ingest, where its secret is known.
fn read_ingest(
    args: &DoctorArgs,
    common: &CommonSettings,
    running: Option<&Instance>,
    data_dir: &Path,
    checks: &mut Vec<Check>,
) -> Option<IngestSettings> {
    let mut ingest = args.ingest.clone();
    let is_set = |value: &Option<String>| text(value).is_some();
    if !is_set(&ingest.gitea_webhook_secret) && !is_set(&ingest.gitea_webhook_secret_file) {
        let own = secret_file(data_dir);
        let file = running
            .and_then(|running| running.secret_file.clone())
            .or_else(|| own.exists().then_some(own));
        let Some(file) = file else {
            checks.push(Check::skipped(
                "ingest's settings",
                "no secret here, so ingest is elsewhere",
            ));
            checks.push(Check::skipped(
                "webhook secret",
                "neither GITEA_WEBHOOK_SECRET nor GITEA_WEBHOOK_SECRET_FILE is set, and the data directory holds none",
            ));
            return None;
        };
        ingest.gitea_webhook_secret_file = Some(file.to_string_lossy().into_owned());
    }
    let mut problems = Problems::default();
    let settings = ingest.settings(common.clone(), &mut problems);
    let all = problems.finish(()).err().map(|error| error.0).unwrap_or_default();
    let (of_secret, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|problem| problem.starts_with(SECRET));
    let is_bad = !of_secret.is_empty() || settings.secret.expose().is_empty();
    checks.push(problems_told("ingest's settings", &others));
    checks.push(if is_bad {
        problems_told("webhook secret", &of_secret)
    } else if settings.takes_short_secret {
        Check::warning(
            "webhook secret",
            "shorter than 16 bytes, so it can be found by trying",
            "make one with `openssl rand -hex 32`, and set it here and in Gitea's hooks",
        )
    } else {
        Check::ok("webhook secret", "set, and long enough")
    });
    (!is_bad).then_some(settings)
}

fn told(name: &str, problems: Problems) -> Check {
    let problems = problems.finish(()).err().map(|error| error.0).unwrap_or_default();
    problems_told(name, &problems)
}

fn problems_told(name: &str, problems: &[String]) -> Check {
    if problems.is_empty() {
        Check::ok(name, "all can be read")
    } else {
        Check::wrong(name, problems.join("; "), "set what is named; README.md lists all settings")
    }
}

/// Files that hold secrets and that settings name.
fn secret_files(
    args: &DoctorArgs,
    common: &service::role::CommonArgs,
) -> Vec<(&'static str, PathBuf)> {
    [
        ("GITEA_WEBHOOK_SECRET_FILE", &args.ingest.gitea_webhook_secret_file),
        ("GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", &args.ingest.gitea_webhook_secret_previous_file),
        ("GITEA_TOKEN_FILE", &args.worker.access.gitea_token_file),
        ("NATS_PASSWORD_FILE", &common.broker.nats_password_file),
        ("NATS_CREDS_FILE", &common.broker.nats_creds_file),
        ("NATS_KEY_FILE", &common.broker.nats_key_file),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, PathBuf::from(text(value)?))))
    .collect()
}
