//! Settings of the jobs that ask Gitea.

use std::{path::PathBuf, sync::Arc, time::Duration};

use gitea::{Client, ClientError, Observer, Options, Token};
use service::{
    role::CommonSettings,
    secret::Secret,
    settings::{Problems, number, path, secret, secs},
};
use sha2::{Digest, Sha256};

service::settings! {
    /// Access to Gitea's API.
    pub struct AccessArgs => AccessTexts {
        gitea_token: Option<Secret> = "GITEA_TOKEN", secret, "Token for Gitea's API";
        gitea_token_file: Option<PathBuf> = "GITEA_TOKEN_FILE", path,
            "File that holds the token for Gitea's API; or the token in GITEA_TOKEN";
        gitea_requests_per_second: u64 = "GITEA_REQUESTS_PER_SECOND" or "10" = 10, number(1, 1000),
            "Requests a second to Gitea's API, over all workers";
        gitea_requests_at_once: usize = "GITEA_REQUESTS_AT_ONCE" or "4" = 4, number(1, 100),
            "Requests to Gitea's API at once, over all workers";
        gitea_timeout_secs: Duration = "GITEA_TIMEOUT_SECS" or "60" = Duration::from_secs(60), secs(1, 600),
            "How long one answer of Gitea's API may take";
    }
}

service::settings! {
    /// When Gitea is asked.
    pub struct SyncArgs => SyncTexts {
        sync_interval_secs: Duration = "SYNC_INTERVAL_SECS" or "300" = Duration::from_secs(300), secs(1, 86_400),
            "Time between two sweeps for what no webhook told";
        sync_history_secs: Duration = "SYNC_HISTORY_SECS" or "2592000, 30 days" = Duration::from_secs(2_592_000), secs(0, u32::MAX.into()),
            "How far back the first sweep looks, beside all open issues";
        repair_interval_secs: Duration = "REPAIR_INTERVAL_SECS" or "86400" = Duration::from_secs(86_400), secs(1, 31_536_000),
            "Over how long all issues with somebody assigned are compared with Gitea once";
        gone_after_secs: Duration = "GONE_AFTER_SECS" or "300" = Duration::from_secs(300), secs(1, 86_400),
            "Time between the two looks after which an issue counts as gone";
    }
}

/// Access to Gitea's API, checked.
#[derive(Clone, Debug)]
pub struct AccessSettings {
    /// Address of Gitea.
    pub url: String,
    /// None: nothing is asked.
    pub token: Option<Token>,
    /// Tells tokens apart, and nothing of them. Empty without one.
    pub token_id: String,
    /// Requests a second.
    pub per_second: u64,
    /// Requests at once.
    pub at_once: usize,
    /// How long one answer may take.
    pub timeout: Duration,
}

/// Settings of the jobs that ask Gitea, checked.
#[derive(Clone, Debug)]
pub struct SyncSettings {
    /// Settings that all roles share.
    pub common: CommonSettings,
    /// Access to Gitea's API.
    pub access: AccessSettings,
    /// Time between two sweeps.
    pub interval: Duration,
    /// How far back the first sweep looks.
    pub history: Duration,
    /// Over how long the repair spreads.
    pub repair_interval: Duration,
    /// Time between the two looks after which an issue counts as gone.
    pub gone_after: Duration,
}

impl AccessArgs {
    /// Checks the settings and notes in `problems` what is wrong. `url` is `GITEA_URL`.
    pub fn settings(&self, url: &str, problems: &mut Problems) -> AccessSettings {
        let texts = self.check(problems);
        let token = problems.secret("GITEA_TOKEN", &self.gitea_token, &self.gitea_token_file);
        problems.check_placeholder(
            "GITEA_TOKEN",
            token.as_ref(),
            "make one in Gitea, Settings → Applications",
        );
        AccessSettings {
            url: url.to_owned(),
            token_id: token.as_ref().map(token_id).unwrap_or_default(),
            token: token.map(|token| Token::new(token.expose_text().trim())),
            per_second: texts.gitea_requests_per_second,
            at_once: texts.gitea_requests_at_once,
            timeout: texts.gitea_timeout_secs,
        }
    }
}

impl AccessSettings {
    /// A client of Gitea's API. `observer` is told of each request.
    ///
    /// # Errors
    /// If the address or the token cannot be used.
    pub fn client(&self, observer: Arc<dyn Observer>) -> Result<Client, ClientError> {
        Client::new(Options {
            url: self.url.clone(),
            token: self.token.clone(),
            per_second: self.per_second as f64,
            at_once: self.at_once,
            deadline: self.timeout,
            user_agent: concat!("coordinator/", env!("CARGO_PKG_VERSION")).into(),
            observer,
        })
    }
}

impl SyncArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn settings(
        &self,
        access: &AccessArgs,
        common: CommonSettings,
        problems: &mut Problems,
    ) -> SyncSettings {
        let texts = self.check(problems);
        let access = access.settings(&common.gitea_url, problems);
        // The question of the second look would be gone before.
        if texts.gone_after_secs >= common.streams.stream_max_age_secs {
            problems.add("GONE_AFTER_SECS is not less than STREAM_MAX_AGE_SECS");
        }
        SyncSettings {
            common,
            access,
            interval: texts.sync_interval_secs,
            history: texts.sync_history_secs,
            repair_interval: texts.repair_interval_secs,
            gone_after: texts.gone_after_secs,
        }
    }
}

/// The beginning of the token's SHA-256. A token has more bits than can be tried.
fn token_id(token: &Secret) -> String {
    hex::encode(&Sha256::digest(token.expose())[..8])
}
