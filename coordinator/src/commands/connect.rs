//! Connects the operator's commands to the broker.

use std::{path::Path, time::Duration};

use anyhow::{Result, bail};
use service::{
    broker::{Broker, BrokerArgs as Settings, BrokerSettings, Session},
    settings::{Problems, text},
};
use tokio::time::timeout;

use crate::local::data_dir::{DEFAULT_DATA_DIR, Instance};

/// How long a command waits for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where the data of a Coordinator on this machine is.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct DataDirArg {
    /// Data directory of the Coordinator on this machine, which holds its addresses [default: data]
    #[arg(long, env = "DATA_DIR", value_name = "DIR")]
    data_dir: Option<String>,
}

impl DataDirArg {
    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        Path::new(text(&self.data_dir).unwrap_or(DEFAULT_DATA_DIR))
    }
}

/// Address of NATS, and our credentials: from the settings that the roles take, else from the data
/// directory of the Coordinator on this machine.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct BrokerArgs {
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    data_dir: DataDirArg,
}

impl BrokerArgs {
    /// The data directory of the Coordinator on this machine.
    pub(crate) fn data_dir(&self) -> &Path {
        self.data_dir.path()
    }

    /// Checks the settings and connects.
    pub(crate) async fn connect(&self, name: &str) -> Result<(Broker, Session)> {
        let mut problems = Problems::default();
        let config = self.settings(&mut problems)?;
        problems.finish(())?;
        let (broker, keeper) = Broker::new(&config, name).await?;
        tokio::spawn(keeper);
        let Ok(session) = timeout(CONNECT_TIMEOUT, broker.connected()).await else {
            bail!(
                "no connection to NATS at {} within {} s; is it running (cargo run), and are user and password right?",
                config.servers,
                CONNECT_TIMEOUT.as_secs()
            );
        };
        Ok((broker, session))
    }

    /// Checks the settings and notes in `problems` what is wrong.
    ///
    /// # Errors
    /// If what the data directory says cannot be read.
    pub(crate) fn settings(&self, problems: &mut Problems) -> Result<BrokerSettings> {
        let settings = or_those_of_instance(self.settings.clone(), self.data_dir.path())?;
        Ok(settings.settings(problems))
    }
}

/// The settings, or where they name no server those of the Coordinator of a data directory.
///
/// # Errors
/// If what the data directory says cannot be read.
pub(crate) fn or_those_of_instance(mut settings: Settings, data_dir: &Path) -> Result<Settings> {
    if !settings.names_a_server()
        && let Some(instance) = Instance::read(data_dir)?
    {
        settings.nats_url = Some(instance.nats_url);
        // Where nothing runs any more, somebody else may listen.
        if let Some(login) = instance.nats_login
            && !settings.names_a_user()
            && Instance::is_running(data_dir)?
        {
            settings.nats_user = Some(login.user);
            settings.nats_password_file = Some(login.password_file.display().to_string());
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::data_dir::{DataDir, NatsLogin};

    fn args(nats_url: Option<&str>, data_dir: &Path) -> BrokerArgs {
        BrokerArgs {
            settings: Settings { nats_url: nats_url.map(Into::into), ..Settings::default() },
            data_dir: DataDirArg { data_dir: data_dir.to_str().map(Into::into) },
        }
    }

    fn config(args: &BrokerArgs) -> Result<BrokerSettings> {
        let mut problems = Problems::default();
        let config = args.settings(&mut problems)?;
        Ok(problems.finish(config)?)
    }

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (url, shown) in [
            ("nats://user:secret@host:4223", "nats://host:4223"),
            ("nats://token@a,tls://b", "nats://a:4222,tls://b:4222"),
            ("localhost", "nats://localhost:4222"),
            ("nats://[::1]:5", "nats://[::1]:5"),
        ] {
            let config = config(&args(Some(url), Path::new(""))).expect(url);
            assert_eq!(config.servers.to_string(), shown);
        }
    }

    #[tokio::test]
    async fn a_setting_comes_before_the_running_instance_and_that_before_the_default() {
        let dir = tempfile::tempdir().expect("directory");
        let found = |nats_url| {
            let config = config(&args(nats_url, dir.path()));
            config.map(|config| config.servers.to_string()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(found(None), Ok("nats://127.0.0.1:4222".into()));
        let instance = Instance {
            webhook_url: String::new(),
            operator_url: String::new(),
            nats_url: "nats://127.0.0.1:14222".into(),
            nats_login: None,
            secret_file: None,
            gitea_url: None,
            pid: 1,
        };
        instance.write(dir.path()).await.expect("write");
        assert_eq!(found(None), Ok("nats://127.0.0.1:14222".into()));
        assert_eq!(found(Some("nats://n")), Ok("nats://n:4222".into()));
        assert!(found(Some("nats://a b")).is_err_and(|error| error.contains("NATS_URL")));
    }

    #[tokio::test]
    async fn the_login_of_a_running_instance_is_used_unless_another_is_set() {
        let dir = tempfile::tempdir().expect("directory");
        let data = DataDir::open(dir.path()).expect("open");
        let password_file = data.nats_password_file().expect("password");
        let instance = Instance {
            webhook_url: String::new(),
            operator_url: String::new(),
            nats_url: "nats://127.0.0.1:14222".into(),
            nats_login: Some(NatsLogin { user: "local".into(), password_file }),
            secret_file: None,
            gitea_url: None,
            pid: 1,
        };
        instance.write(dir.path()).await.expect("write");
        let user = |args: &BrokerArgs| config(args).expect("good").user.map(|(user, _)| user);
        let here = args(None, dir.path());
        assert_eq!(user(&here).as_deref(), Some("local"));
        let mut own = here.clone();
        own.settings.nats_user = Some("me".into());
        own.settings.nats_password = Some("mine".into());
        assert_eq!(user(&own).as_deref(), Some("me"));
        assert_eq!(user(&args(Some("nats://h"), dir.path())), None, "another server");
        drop(data);
        assert_eq!(user(&here), None, "a password for whoever listens now");
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_told() {
        let error = args(Some("nats://127.0.0.1:1"), Path::new(""))
            .connect("test")
            .await
            .expect_err("nothing listens on port 1");
        assert!(
            error.to_string().starts_with("no connection to NATS at nats://127.0.0.1:1 "),
            "{error}"
        );
    }
}
