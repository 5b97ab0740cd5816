//! Settings of ingest.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use shared::config::{CommonConfig, Problems, Secret, text};

use crate::{journal::JournalConfig, server::Limits};

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const DAY_SECS: u64 = 86_400;

/// Settings as they were given.
#[derive(Args, Clone, Debug, Default)]
pub struct IngestArgs {
    /// Address that ingest listens on [default: 0.0.0.0]
    #[arg(long, env = "HOST", value_name = "ADDRESS")]
    pub host: Option<String>,
    /// Port that ingest listens on; 0 for any [default: 8000]
    #[arg(long, env = "PORT")]
    pub port: Option<String>,
    /// Secret of the webhook in Gitea
    #[arg(long, env = "GITEA_WEBHOOK_SECRET", value_name = "SECRET", hide_env_values = true)]
    pub gitea_webhook_secret: Option<String>,
    /// File that holds the secret
    #[arg(long, env = "GITEA_WEBHOOK_SECRET_FILE", value_name = "FILE")]
    pub gitea_webhook_secret_file: Option<String>,
    /// Former secret, still taken during a rotation
    #[arg(
        long,
        env = "GITEA_WEBHOOK_SECRET_PREVIOUS",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub gitea_webhook_secret_previous: Option<String>,
    /// File that holds the former secret
    #[arg(long, env = "GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", value_name = "FILE")]
    pub gitea_webhook_secret_previous_file: Option<String>,
    /// Directory of the journal [default: data]
    #[arg(long, env = "DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Largest body of a delivery, in bytes [default: 16777216]
    #[arg(long, env = "MAX_BODY_BYTES", value_name = "N")]
    pub max_body_bytes: Option<String>,
    /// How long a request's headers may take, and how long a connection may rest [default: 10]
    #[arg(long, env = "HEADER_TIMEOUT_SECS", value_name = "N")]
    pub header_timeout_secs: Option<String>,
    /// How long a request's body may take [default: 10]
    #[arg(long, env = "BODY_TIMEOUT_SECS", value_name = "N")]
    pub body_timeout_secs: Option<String>,
    /// Connections at once; more wait to be accepted [default: 1024]
    #[arg(long, env = "MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<String>,
    /// Bytes of bodies in memory at once; beyond it deliveries get 503 [default: 33554432]
    #[arg(long, env = "MAX_IN_FLIGHT_BYTES", value_name = "N")]
    pub max_in_flight_bytes: Option<String>,
    /// Size of the journal at which deliveries get 503 [default: 4294967296]
    #[arg(long, env = "JOURNAL_MAX_BYTES", value_name = "N")]
    pub journal_max_bytes: Option<String>,
    /// How long published deliveries stay in the journal [default: 86400]
    #[arg(long, env = "JOURNAL_RETENTION_SECS", value_name = "N")]
    pub journal_retention_secs: Option<String>,
    /// Size of the journal above which published deliveries go earlier [default: 1073741824]
    #[arg(long, env = "JOURNAL_RETENTION_BYTES", value_name = "N")]
    pub journal_retention_bytes: Option<String>,
    /// How long stopping may take [default: 20]
    #[arg(long, env = "DRAIN_TIMEOUT_SECS", value_name = "N")]
    pub drain_timeout_secs: Option<String>,
}

/// Settings of ingest, checked.
#[derive(Clone, Debug)]
pub struct IngestConfig {
    /// What every service has.
    pub common: CommonConfig,
    /// Address to listen on.
    pub host: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// The webhook's secret.
    pub secret: Secret,
    /// The former secret, during a rotation.
    pub previous_secret: Option<Secret>,
    /// What a sender may use up.
    pub limits: Limits,
    /// Where deliveries are kept, and how many.
    pub journal: JournalConfig,
    /// How long each part of stopping may take.
    pub drain_timeout: Duration,
}

impl IngestArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn check(&self, common: CommonConfig, problems: &mut Problems) -> IngestConfig {
        let secret = problems.secret(
            "GITEA_WEBHOOK_SECRET",
            &self.gitea_webhook_secret,
            &self.gitea_webhook_secret_file,
        );
        let no_secret_was_given = text(&self.gitea_webhook_secret).is_none()
            && text(&self.gitea_webhook_secret_file).is_none();
        if no_secret_was_given {
            problems.add("GITEA_WEBHOOK_SECRET is required");
        }
        let max_body_bytes =
            problems.number("MAX_BODY_BYTES", &self.max_body_bytes, 16 * MIB, 1024, GIB) as usize;
        let in_flight = problems.number(
            "MAX_IN_FLIGHT_BYTES",
            &self.max_in_flight_bytes,
            32 * MIB,
            1024,
            64 * GIB,
        );
        let max_in_flight_bytes = in_flight as usize;
        if max_in_flight_bytes < max_body_bytes {
            problems.add("MAX_IN_FLIGHT_BYTES is smaller than MAX_BODY_BYTES");
        }
        let retention = problems.secs(
            "JOURNAL_RETENTION_SECS",
            &self.journal_retention_secs,
            DAY_SECS,
            1,
            365 * DAY_SECS,
        );
        if retention > common.streams.dedup_window {
            problems.add("JOURNAL_RETENTION_SECS is larger than DEDUP_WINDOW_SECS, so what is offered again could be doubled");
        }
        let max_bytes =
            problems.number("JOURNAL_MAX_BYTES", &self.journal_max_bytes, 4 * GIB, MIB, u64::MAX);
        let retention_bytes = problems.number(
            "JOURNAL_RETENTION_BYTES",
            &self.journal_retention_bytes,
            GIB,
            0,
            u64::MAX,
        );
        IngestConfig {
            common,
            host: problems.parse(
                "HOST",
                &self.host,
                "an IP address",
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ),
            port: problems.parse("PORT", &self.port, "a port", 8000),
            secret: secret.unwrap_or_else(|| Secret::new("")),
            previous_secret: problems.secret(
                "GITEA_WEBHOOK_SECRET_PREVIOUS",
                &self.gitea_webhook_secret_previous,
                &self.gitea_webhook_secret_previous_file,
            ),
            limits: Limits {
                max_body_bytes,
                max_in_flight_bytes,
                header_timeout: problems.secs(
                    "HEADER_TIMEOUT_SECS",
                    &self.header_timeout_secs,
                    10,
                    1,
                    3600,
                ),
                body_timeout: problems.secs(
                    "BODY_TIMEOUT_SECS",
                    &self.body_timeout_secs,
                    10,
                    1,
                    3600,
                ),
                max_connections: problems.number(
                    "MAX_CONNECTIONS",
                    &self.max_connections,
                    1024,
                    1,
                    1 << 20,
                ) as usize,
            },
            journal: JournalConfig {
                dir: PathBuf::from(text(&self.data_dir).unwrap_or("data")),
                max_bytes,
                retention,
                retention_bytes: retention_bytes.min(max_bytes),
            },
            drain_timeout: problems.secs(
                "DRAIN_TIMEOUT_SECS",
                &self.drain_timeout_secs,
                20,
                1,
                3600,
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::config::CommonArgs;

    fn check(args: IngestArgs) -> Result<IngestConfig, String> {
        let mut problems = Problems::default();
        let common =
            CommonArgs { gitea_url: Some("http://localhost:3000".into()), ..CommonArgs::default() };
        let common = common.check(&mut problems);
        let config = args.check(common, &mut problems);
        problems.finish(config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_all_that_is_required() {
        assert_eq!(
            check(IngestArgs::default()).expect_err("no secret"),
            "GITEA_WEBHOOK_SECRET is required"
        );
        let config =
            check(IngestArgs { gitea_webhook_secret: Some("s".into()), ..IngestArgs::default() })
                .expect("a secret");
        assert_eq!((config.port, config.host.to_string().as_str()), (8000, "0.0.0.0"));
        assert_eq!(config.limits.max_body_bytes, 16 * 1024 * 1024);
    }

    #[test]
    fn limits_that_contradict_each_other_are_named() {
        let some = |text: &str| Some(text.to_owned());
        let line = check(IngestArgs {
            gitea_webhook_secret: some("s"),
            host: some("localhost"),
            port: some("70000"),
            max_in_flight_bytes: some("2048"),
            journal_retention_secs: some("100000"),
            ..IngestArgs::default()
        })
        .expect_err("four are wrong");
        for name in ["HOST", "PORT", "MAX_IN_FLIGHT_BYTES", "JOURNAL_RETENTION_SECS"] {
            assert!(line.contains(name), "{name} is missing in: {line}");
        }
    }
}
