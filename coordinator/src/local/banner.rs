//! The banner that is shown once everything runs: addresses, files, and a command to try.

use std::{
    fmt,
    io::Write,
    path::{Path, absolute},
};

use service::{shell::quoted, telemetry::LogFormat};
use tracing::info;

use super::{
    data_dir::{DEFAULT_DATA_DIR, Instance, NatsLogin},
    settings::UpSettings,
};

/// What the banner shows. It never shows a secret itself.
pub(super) struct Banner<'a> {
    pub(super) instance: &'a Instance,
    pub(super) settings: &'a UpSettings,
    pub(super) data_dir: &'a Path,
}

impl Banner<'_> {
    /// Prints the banner, or logs it if log lines are JSON.
    pub(super) fn show(&self, format: LogFormat) {
        match format {
            // A closed standard output is not an error.
            LogFormat::Text => drop(write!(std::io::stdout(), "{self}")),
            LogFormat::Json => info!(
                webhook_url = self.instance.webhook_url,
                secret_file = %self.secret(),
                nats_url = self.instance.nats_url,
                nats_user = self.instance.nats_login.as_ref().map(|login| login.user.as_str()),
                nats_password_file = self
                    .instance
                    .nats_login
                    .as_ref()
                    .map(|login| login.password_file.display().to_string()),
                operator_url = self.instance.operator_url,
                data_dir = %self.data_dir.display(),
                otlp_endpoint = self.otlp_endpoint(),
                "coordinator runs"
            ),
        }
    }

    fn secret(&self) -> String {
        self.instance
            .secret_file
            .as_ref()
            .map_or_else(|| "GITEA_WEBHOOK_SECRET".into(), |file| file.display().to_string())
    }

    fn otlp_endpoint(&self) -> Option<&str> {
        self.settings.ingest.common.telemetry.endpoint()
    }

    fn next_command(&self) -> String {
        let default = absolute(DEFAULT_DATA_DIR).and_then(|dir| dir.canonicalize());
        if default.is_ok_and(|default| default == self.data_dir) {
            "cargo run -- send assigned".into()
        } else {
            format!("cargo run -- send assigned --data-dir {}", quoted(self.data_dir))
        }
    }

    /// For the `nats` command line. The password is not an argument, which every user would see.
    fn nats_command(&self, login: &NatsLogin) -> String {
        format!(
            "NATS_URL={} NATS_USER={} NATS_PASSWORD=$(cat {}) nats subscribe 'gitea.changes.>'",
            self.instance.nats_url,
            login.user,
            quoted(&login.password_file)
        )
    }

    /// For nats-py.
    fn python_line(&self, login: &NatsLogin) -> String {
        format!(
            "await nats.connect({:?}, user={:?}, password=open({:?}).read().strip())",
            self.instance.nats_url, login.user, login.password_file
        )
    }
}

impl fmt::Display for Banner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nCoordinator runs.\n")?;
        writeln!(f, "  webhook   {}", self.instance.webhook_url)?;
        writeln!(f, "  secret    in {}", self.secret())?;
        writeln!(f, "  page      {}/", self.instance.operator_url)?;
        writeln!(f, "  operator  {}/health, /metrics", self.instance.operator_url)?;
        write!(f, "  NATS      {}", self.instance.nats_url)?;
        if let Some(NatsLogin { user, password_file }) = &self.instance.nats_login {
            write!(f, ", user {user}, password in {}", password_file.display())?;
        }
        writeln!(f)?;
        writeln!(f, "  data      {}", self.data_dir.display())?;
        if let Some(endpoint) = self.otlp_endpoint() {
            writeln!(f, "  traces    {endpoint}")?;
        }
        writeln!(f, "\nTry it in another terminal: {}", self.next_command())?;
        if let Some(login) = &self.instance.nats_login {
            writeln!(f, "Subscribe to what follows: {}", self.nats_command(login))?;
            writeln!(f, "or in Python: {}", self.python_line(login))?;
        }
        writeln!(f, "Stop it with Ctrl-C.\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::settings::UpArgs;

    #[test]
    fn it_tells_where_the_secret_is_and_not_what_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("webhook-secret");
        std::fs::write(&file, "s3cr3t").expect("write");
        let mut settings = UpArgs::default().check().expect("defaults");
        settings.use_secret_file(&file).expect("secret");
        settings.ingest.common.telemetry.otlp_endpoint = Some("http://localhost:4318".into());
        let instance = Instance {
            webhook_url: "http://127.0.0.1:8000/webhook/gitea".into(),
            operator_url: "http://127.0.0.1:8001".into(),
            nats_url: "nats://127.0.0.1:4222".into(),
            nats_login: Some(NatsLogin { user: "local".into(), password_file: file.clone() }),
            secret_file: settings.secret_file.clone(),
            gitea_url: None,
            pid: 1,
        };
        let banner =
            Banner { instance: &instance, settings: &settings, data_dir: dir.path() }.to_string();
        let data_dir = dir.path().display().to_string();
        for part in [
            "http://127.0.0.1:8000/webhook/gitea",
            "page      http://127.0.0.1:8001/",
            "webhook-secret",
            "nats://127.0.0.1:4222",
            "http://localhost:4318",
            &format!("cargo run -- send assigned --data-dir {data_dir}"),
            &format!(
                "NATS_URL=nats://127.0.0.1:4222 NATS_USER=local NATS_PASSWORD=$(cat {data_dir}/webhook-secret) nats sub"
            ),
            &format!(
                r#"nats.connect("nats://127.0.0.1:4222", user="local", password=open("{data_dir}/webhook-secret").read().strip())"#
            ),
        ] {
            assert!(banner.contains(part), "{part} is missing in: {banner}");
        }
        assert!(!banner.contains("s3cr3t"));
    }
}
