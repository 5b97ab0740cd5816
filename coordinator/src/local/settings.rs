//! Settings of the one-machine default: those of ingest and worker, with
//! defaults for what they require.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ingest::settings::{IngestArgs, IngestSettings};
use reactor::settings::{ReactorArgs, ReactorSettings};
use service::{
    broker::{BrokerSettings, Servers},
    role::CommonArgs,
    secret::Secret,
    settings::{Problems, SettingsError, port, text},
};

use super::{
    data_dir::{DEFAULT_DATA_DIR, NatsLogin},
    nats_server::Login,
};
use crate::{
    cli::environment,
    worker_side::{WorkerSide, WorkerSideArgs},
};

/// Gitea's own default.
pub(crate) const DEFAULT_GITEA_URL: &str = "http://localhost:3000";
const DEFAULT_NATS_PORT: u16 = 4222;
/// The one user of the nats-server that is started.
const NATS_USER: &str = "local";

/// Settings as they were given.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) common: CommonArgs,
    #[command(flatten)]
    pub(crate) ingest: IngestArgs,
    #[command(flatten)]
    pub(crate) worker: WorkerSideArgs,
    #[command(flatten)]
    pub(crate) reactor: ReactorArgs,
    /// Port of the nats-server that is started when NATS_URL is not set; 0 for any [default: 4222]
    #[arg(long, env = "NATS_PORT", value_name = "PORT")]
    pub(crate) nats_port: Option<String>,
}

/// Settings, checked.
#[derive(Clone, Debug)]
pub(crate) struct UpSettings {
    pub(crate) ingest: IngestSettings,
    pub(crate) worker: WorkerSide,
    /// None without a file of rules.
    pub(crate) reactor: Option<ReactorSettings>,
    /// Port of the nats-server to start. None uses the configured NATS.
    pub(crate) own_nats_port: Option<u16>,
    pub(crate) data_dir: PathBuf,
    /// The webhook's secret is set, so none is generated.
    pub(crate) secret_is_given: bool,
    /// The file with the secret, if the secret is in a file.
    pub(crate) secret_file: Option<PathBuf>,
}

impl UpArgs {
    /// Checks all settings, without side effects.
    pub(crate) fn check(&self) -> Result<UpSettings, SettingsError> {
        let mut problems = Problems::default();
        let own_nats_port = self.own_nats_port(&mut problems);
        let mut common = self.common.clone();
        if text(&common.own.gitea_url).is_none() {
            common.own.gitea_url = Some(DEFAULT_GITEA_URL.into());
        }
        let mut ingest = self.ingest.clone();
        let given_file = text(&ingest.gitea_webhook_secret_file).map(PathBuf::from);
        let secret_is_given = text(&ingest.gitea_webhook_secret).is_some() || given_file.is_some();
        if !secret_is_given {
            // Replaced by the secret of the data directory before anything starts.
            ingest.gitea_webhook_secret = Some("replaced before the start".into());
        }
        let common = common.check(&mut problems);
        let config = UpSettings {
            worker: self.worker.settings(common.clone(), &mut problems),
            reactor: self
                .reactor
                .has_rules()
                .then(|| self.reactor.settings(common.clone(), environment(), &mut problems)),
            ingest: ingest.settings(common, &mut problems),
            own_nats_port,
            data_dir: text(&ingest.data_dir).unwrap_or(DEFAULT_DATA_DIR).into(),
            secret_is_given,
            secret_file: given_file.and_then(|file| std::path::absolute(file).ok()),
        };
        problems.finish(config)
    }

    fn own_nats_port(&self, problems: &mut Problems) -> Option<u16> {
        let broker = &self.common.broker;
        // Kubernetes sets NATS_PORT beside a Service named nats. It matters only where it is used.
        if broker.names_a_server() {
            return None;
        }
        let port = problems.read("NATS_PORT", &self.nats_port, DEFAULT_NATS_PORT, port);
        for (name, value) in [
            ("NATS_USER", &broker.nats_user),
            ("NATS_CREDS_FILE", &broker.nats_creds_file),
            ("NATS_CA_FILE", &broker.nats_ca_file),
            ("NATS_CERT_FILE", &broker.nats_cert_file),
        ] {
            if text(value).is_some() {
                problems.add(format!("{name} is for a NATS of yours, but NATS_URL is not set"));
            }
        }
        if text(&self.common.streams.stream_replicas).is_some_and(|replicas| replicas != "1") {
            problems.add("STREAM_REPLICAS is for a cluster, but NATS_URL is not set");
        }
        Some(port)
    }
}

impl UpSettings {
    /// Takes the webhook's secret from a file.
    pub(crate) fn use_secret_file(&mut self, file: &Path) -> Result<()> {
        self.ingest.secret = read_secret("GITEA_WEBHOOK_SECRET", file)?;
        self.secret_file = Some(file.to_owned());
        Ok(())
    }

    /// Uses the server at `url`, and drops all other settings of the broker.
    pub(crate) fn use_nats(&mut self, url: &str, login: Login) -> Result<()> {
        let server = url.parse().context("read nats-server's URL")?;
        let broker = BrokerSettings {
            servers: Servers::from(vec![server]),
            user: Some((login.user, login.password)),
            ..BrokerSettings::default()
        };
        self.ingest.common.broker = broker.clone();
        self.worker.worker.common.broker = broker.clone();
        if let Some(reactor) = &mut self.reactor {
            reactor.common.broker = broker.clone();
        }
        self.worker.sync.common.broker = broker;
        Ok(())
    }
}

/// User and password at the nats-server that is started, with the password from `file`: once for
/// ourselves, and once for the commands.
pub(crate) fn nats_login(file: PathBuf) -> Result<(Login, NatsLogin)> {
    let password = read_secret("NATS_PASSWORD", &file)?;
    // It goes into nats-server's configuration, where other characters may mean something.
    if !password.expose().iter().all(u8::is_ascii_alphanumeric) {
        bail!(
            "the password in {} has other characters than letters and digits; remove the file, and a new one is made",
            file.display()
        );
    }
    let user = NATS_USER.to_owned();
    Ok((Login { user: user.clone(), password }, NatsLogin { user, password_file: file }))
}

fn read_secret(name: &str, file: &Path) -> Result<Secret> {
    let mut problems = Problems::default();
    let path = Some(file.to_string_lossy().into_owned());
    let secret = problems.secret(name, &None, &path);
    problems.finish(()).with_context(|| format!("read {}", file.display()))?;
    secret.context("the secret is empty")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn nothing_has_to_be_set() {
        let empty = some(" ");
        for gitea_url in [None, empty] {
            let mut args = UpArgs::default();
            args.common.own.gitea_url = gitea_url;
            let config = args.check().expect("defaults");
            assert_eq!(config.ingest.common.gitea_url, "http://localhost:3000");
            assert_eq!(config.worker.worker.common.gitea_url, "http://localhost:3000");
            assert_eq!(config.own_nats_port, Some(4222));
            assert_eq!(config.data_dir, Path::new("data"));
            assert!(!config.secret_is_given);
        }
    }

    #[test]
    fn what_is_given_is_used() {
        let mut args = UpArgs {
            ingest: IngestArgs {
                gitea_webhook_secret: some("0123456789abcdef"),
                data_dir: some("/d"),
                ..IngestArgs::default()
            },
            ..UpArgs::default()
        };
        args.common.broker.nats_url = some("nats://n:1");
        let config = args.check().expect("good");
        assert_eq!((config.own_nats_port, config.secret_is_given), (None, true));
        assert_eq!(
            (config.ingest.secret.expose(), config.secret_file),
            (&b"0123456789abcdef"[..], None)
        );
        assert_eq!(config.data_dir, Path::new("/d"));
        assert_eq!(config.ingest.journal.dir, Path::new("/d"));
    }

    #[test]
    fn settings_of_a_nats_that_is_not_named_are_told_with_all_else_that_is_wrong() {
        let mut args = UpArgs { nats_port: some("70000"), ..UpArgs::default() };
        args.common.broker.nats_creds_file = some("/not/there.creds");
        args.common.streams.stream_replicas = some("3");
        args.common.telemetry.log_level = some("loud");
        let line = args.check().expect_err("four are wrong").to_string();
        for name in ["NATS_CREDS_FILE", "STREAM_REPLICAS", "LOG_LEVEL", "NATS_PORT"] {
            assert!(line.contains(name), "{name} is missing in: {line}");
        }
    }

    #[test]
    fn a_port_that_kubernetes_sets_is_told_where_it_would_be_used() {
        let mut args = UpArgs { nats_port: some("tcp://10.0.0.1:4222"), ..UpArgs::default() };
        let line = args.check().expect_err("no port").to_string();
        assert!(
            line.starts_with("NATS_PORT is a URL") && line.contains("enableServiceLinks: false")
        );
        args.common.broker.nats_url = some("nats://n:1");
        assert_eq!(args.check().expect("another server").own_nats_port, None);
    }

    #[test]
    fn the_secret_comes_from_the_data_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("webhook-secret");
        std::fs::write(&file, "abc\n").expect("write");
        let mut config = UpArgs::default().check().expect("defaults");
        config.use_secret_file(&file).expect("secret");
        assert_eq!(config.ingest.secret.expose(), b"abc");
        assert_eq!(config.secret_file.as_ref(), Some(&file));
        let (login, told) = nats_login(file.clone()).expect("password");
        assert_eq!((told.user.as_str(), &told.password_file), ("local", &file));
        config.use_nats("nats://127.0.0.1:5", login).expect("url");
        let broker = config.worker.worker.common.broker;
        assert_eq!(broker.servers[0].port(), 5);
        assert_eq!(broker.user, Some(("local".into(), Secret::new("abc"))));
        std::fs::write(&file, "a\"b").expect("write");
        let error = nats_login(file).expect_err("a quote").to_string();
        assert!(error.contains("letters and digits") && !error.contains("a\"b"), "{error}");
    }
}
