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

/// Address of NATS: from the settings that the roles take, else from the data
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
    /// Checks the settings and connects.
    pub(crate) async fn connect(&self, name: &str) -> Result<(Broker, Session)> {
        let config = self.config()?;
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

    fn config(&self) -> Result<BrokerSettings> {
        let mut settings = self.settings.clone();
        if !settings.names_a_server() {
            let instance = Instance::read(self.data_dir.path())?;
            settings.nats_url = instance.map(|instance| instance.nats_url);
        }
        let mut problems = Problems::default();
        let config = settings.settings(&mut problems);
        Ok(problems.finish(config)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(nats_url: Option<&str>, data_dir: &Path) -> BrokerArgs {
        BrokerArgs {
            settings: Settings { nats_url: nats_url.map(Into::into), ..Settings::default() },
            data_dir: DataDirArg { data_dir: data_dir.to_str().map(Into::into) },
        }
    }

    #[test]
    fn a_url_is_shown_without_its_user() {
        for (url, shown) in [
            ("nats://user:secret@host:4223", "nats://host:4223"),
            ("nats://token@a,tls://b", "nats://a:4222,tls://b:4222"),
            ("localhost", "nats://localhost:4222"),
            ("nats://[::1]:5", "nats://[::1]:5"),
        ] {
            let config = args(Some(url), Path::new("")).config().expect(url);
            assert_eq!(config.servers.to_string(), shown);
        }
    }

    #[tokio::test]
    async fn a_setting_comes_before_the_running_instance_and_that_before_the_default() {
        let dir = tempfile::tempdir().expect("directory");
        let found = |nats_url| {
            let config = args(nats_url, dir.path()).config();
            config.map(|config| config.servers.to_string()).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(found(None), Ok("nats://127.0.0.1:4222".into()));
        let instance = Instance {
            webhook_url: String::new(),
            operator_url: String::new(),
            nats_url: "nats://127.0.0.1:14222".into(),
            secret_file: None,
            pid: 1,
        };
        instance.write(dir.path()).await.expect("write");
        assert_eq!(found(None), Ok("nats://127.0.0.1:14222".into()));
        assert_eq!(found(Some("nats://n")), Ok("nats://n:4222".into()));
        assert!(found(Some("nats://a b")).is_err_and(|error| error.contains("NATS_URL")));
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
