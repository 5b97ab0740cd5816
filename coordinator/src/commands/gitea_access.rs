//! Gitea's API for a command: where it is, and the token.

use std::sync::Arc;

use gitea::{Client, NoObserver};
use service::settings::{Problems, http_url};
use sync::settings::{AccessArgs, AccessSettings};

use crate::local::data_dir::Instance;

service::settings! {
    /// Where Gitea is.
    pub struct GiteaUrlArgs => GiteaUrlTexts {
        gitea_url: Option<String> = "GITEA_URL", http_url, "URL of Gitea";
    }
}

/// Types of hooks whose deliveries ingest reads: Gitea and Forgejo send the same through all of them.
pub(crate) const HOOK_KINDS: [&str; 3] = ["gitea", "gogs", "forgejo"];

/// Where Gitea's API is, and access to it.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct GiteaAccessArgs {
    #[command(flatten)]
    url: GiteaUrlArgs,
    #[command(flatten)]
    access: AccessArgs,
}

impl GiteaAccessArgs {
    /// Checks the settings and notes in `problems` what is wrong. Without a token that is, too. The
    /// address may be that of the Coordinator on this machine.
    pub(crate) fn settings(
        &self,
        instance: Option<&Instance>,
        problems: &mut Problems,
    ) -> AccessSettings {
        let is_set = service::settings::text(&self.url.gitea_url).is_some();
        let url = self.url.check(problems).gitea_url;
        let of_instance = instance.and_then(|instance| instance.gitea_url.clone());
        let url = url.or(of_instance.filter(|_| !is_set));
        if !is_set && url.is_none() {
            problems.add("GITEA_URL is required");
        }
        let is_given = [&self.access.gitea_token, &self.access.gitea_token_file]
            .iter()
            .any(|value| service::settings::text(value).is_some());
        if !is_given {
            problems.add("GITEA_TOKEN, or GITEA_TOKEN_FILE, is required");
        }
        self.access.settings(&url.unwrap_or_default(), problems)
    }
}

/// A client of Gitea's API with these settings.
///
/// # Errors
/// If the token or the address cannot be used, or TLS cannot be set up.
pub(crate) fn client(access: &AccessSettings) -> Result<Client, gitea::ClientError> {
    access.client(Arc::new(NoObserver))
}
