//! The webhook's secret for a command: from the settings that ingest takes, else from the data
//! directory of the Coordinator on this machine.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use service::{
    secret::Secret,
    settings::{Problems, SettingsError, path, secret},
};

use crate::local::data_dir::{Instance, secret_file};

const NAME: &str = "GITEA_WEBHOOK_SECRET";

service::settings! {
    /// The secret, from the settings that ingest takes.
    pub struct WebhookSecretArgs => WebhookSecretTexts {
        gitea_webhook_secret: Option<Secret> = "GITEA_WEBHOOK_SECRET", secret, "Secret of the webhook in Gitea";
        gitea_webhook_secret_file: Option<PathBuf> = "GITEA_WEBHOOK_SECRET_FILE", path, "File that holds the secret; or the secret in GITEA_WEBHOOK_SECRET";
    }
}

impl WebhookSecretArgs {
    /// The secret. `instance` is what runs in the data directory.
    ///
    /// # Errors
    /// If a setting is wrong, or there is no secret anywhere.
    pub(crate) fn read(&self, data_dir: &Path, instance: Option<&Instance>) -> Result<Secret> {
        let mut problems = Problems::default();
        let secret =
            problems.secret(NAME, &self.gitea_webhook_secret, &self.gitea_webhook_secret_file);
        if let Some(secret) = problems.finish(secret)? {
            return Ok(secret);
        }
        let file = instance
            .and_then(|instance| instance.secret_file.clone())
            .unwrap_or_else(|| secret_file(data_dir));
        of_file(&file).with_context(|| {
            format!(
                "no secret in {}; start Coordinator once with `cargo run`, or set {NAME}_FILE",
                file.display()
            )
        })
    }
}

/// The secret in a file.
///
/// # Errors
/// If it cannot be read, or is empty.
pub(crate) fn of_file(file: &Path) -> Result<Secret, SettingsError> {
    let mut problems = Problems::default();
    let secret = problems.secret(NAME, &None, &Some(file.to_string_lossy().into_owned()));
    // Without a secret there is a problem.
    problems.finish(())?;
    secret.ok_or_else(|| SettingsError(vec![format!("{NAME} is required")]))
}
