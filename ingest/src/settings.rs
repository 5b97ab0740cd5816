//! Settings of ingest.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use service::{
    role::CommonSettings,
    secret::Secret,
    server::Limits,
    settings::{Problems, address, directory, number, path, port, secret, secs, switch, text},
};

use crate::{
    http::body::BodySettings,
    journal::{self, JournalSettings, window},
};

/// Default directory of the journal.
const DEFAULT_DATA_DIR: &str = "data";
const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;
const DAY_SECS: u64 = 86_400;
const TEN_SECS: Duration = Duration::from_secs(10);

service::settings! {
    /// Settings of ingest.
    pub struct IngestArgs => IngestTexts {
        host: IpAddr = "HOST" or "0.0.0.0" = Ipv4Addr::UNSPECIFIED.into(), address,
            "Address that the webhook listens on";
        port: u16 = "PORT" or "8000" = 8000, port, "Port that the webhook listens on; 0 for any";
        gitea_webhook_secret: Option<Secret> = "GITEA_WEBHOOK_SECRET", secret, "Secret of the webhook in Gitea";
        gitea_webhook_secret_file: Option<PathBuf> = "GITEA_WEBHOOK_SECRET_FILE", path, "File that holds the secret; or the secret in GITEA_WEBHOOK_SECRET";
        gitea_webhook_secret_previous: Option<Secret> = "GITEA_WEBHOOK_SECRET_PREVIOUS", secret,
            "Former secret, still taken during a rotation";
        gitea_webhook_secret_previous_file: Option<PathBuf> = "GITEA_WEBHOOK_SECRET_PREVIOUS_FILE", path,
            "File that holds the former secret";
        allow_short_secret: bool = "ALLOW_SHORT_SECRET" or "false" = false, switch,
            "Take a secret of fewer than 16 bytes, for an old webhook";
        data_dir: PathBuf = "DATA_DIR" or "data" = DEFAULT_DATA_DIR.into(), data_dir, "Directory of the journal";
        max_body_bytes: usize = "MAX_BODY_BYTES" or "16777216" = 16 * MIB as usize, number(1024, GIB as usize),
            "Largest body of a delivery, in bytes";
        max_in_flight_bytes: usize = "MAX_IN_FLIGHT_BYTES" or "33554432" = 32 * MIB as usize, number(1024, 64 * GIB as usize),
            "Bytes of bodies in memory at once; beyond it deliveries get 503";
        max_connections: usize = "MAX_CONNECTIONS" or "1024" = 1024, number(1, 1 << 20),
            "Connections at once; for a newer one the one goes that has been silent for longest";
        max_connections_per_address: Option<usize> = "MAX_CONNECTIONS_PER_ADDRESS", number(0, 1 << 20),
            "Connections of one address at once, half of MAX_CONNECTIONS if unset; 0 for no limit, as behind a proxy";
        header_timeout_secs: Duration = "HEADER_TIMEOUT_SECS" or "10" = TEN_SECS, secs(1, 3600),
            "How long a request's headers may take, and how long a stranger's connection may rest";
        body_timeout_secs: Duration = "BODY_TIMEOUT_SECS" or "10" = TEN_SECS, secs(1, 3600),
            "How long a request's body may take";
        write_timeout_secs: Duration = "WRITE_TIMEOUT_SECS" or "10" = TEN_SECS, secs(1, 3600),
            "How long a client may leave an answer unread";
        idle_timeout_secs: Duration = "IDLE_TIMEOUT_SECS" or "120" = Duration::from_secs(120), secs(1, 3600),
            "How long a connection may rest on which a signed delivery came; longer than the client's own limit, which is 90 in Go";
        replayed_after_secs: Duration = "REPLAYED_AFTER_SECS" or "600" = Duration::from_secs(600), secs(1, 30 * DAY_SECS),
            "After how long a body that comes again under a new delivery id counts as replayed";
        journal_max_bytes: u64 = "JOURNAL_MAX_BYTES" or "4294967296" = 4 * GIB, number(MIB, u64::MAX),
            "Size of the journal at which deliveries get 503";
        journal_retention_secs: Duration = "JOURNAL_RETENTION_SECS" or "86400" = Duration::from_secs(DAY_SECS), secs(1, 365 * DAY_SECS),
            "How long published deliveries stay in the journal and are offered again";
        journal_retention_bytes: u64 = "JOURNAL_RETENTION_BYTES" or "1073741824" = GIB, number(0, u64::MAX),
            "Size of the journal above which published deliveries go earlier";
    }
}

/// Reads the path of the journal's directory. It may not exist yet.
fn data_dir(text: &str) -> Result<PathBuf, String> {
    let path = directory(text)?;
    service::private::check(&path, &[journal::FILES])?;
    Ok(path)
}

/// Checked settings of ingest.
#[derive(Clone, Debug)]
pub struct IngestSettings {
    /// Settings that all roles share.
    pub common: CommonSettings,
    /// Where the webhook listens; port 0 lets the system choose.
    pub address: SocketAddr,
    /// The webhook's secret.
    pub secret: Secret,
    /// The former secret, during a rotation.
    pub previous_secret: Option<Secret>,
    /// Whether one of them is so short that it can be found by trying.
    pub takes_short_secret: bool,
    /// Limits on clients.
    pub limits: Limits,
    /// Limits on request bodies.
    pub bodies: BodySettings,
    /// After how long a body that comes again under a new delivery id counts as replayed.
    pub replayed_after: Duration,
    /// Location and limits of the journal.
    pub journal: JournalSettings,
}

impl IngestArgs {
    /// Checks the settings and adds every error to `problems`.
    pub fn settings(&self, common: CommonSettings, problems: &mut Problems) -> IngestSettings {
        let own = self.check(problems);
        if own.gitea_webhook_secret.is_none() && own.gitea_webhook_secret_file.is_none() {
            problems.add("GITEA_WEBHOOK_SECRET is required");
        }
        if text(&self.data_dir).is_none()
            && let Err(problem) = data_dir(DEFAULT_DATA_DIR)
        {
            problems.add(format!("DATA_DIR {problem}"));
        }
        if own.max_in_flight_bytes < own.max_body_bytes {
            problems.add("MAX_IN_FLIGHT_BYTES is smaller than MAX_BODY_BYTES");
        }
        let dedup_window = common.streams.dedup_window_secs;
        if own.journal_retention_secs > window::longest_offer(dedup_window) {
            problems.add(
                "JOURNAL_RETENTION_SECS is not smaller than DEDUP_WINDOW_SECS by a 25th of that, \
                 so what is offered again could be stored twice",
            );
        }
        let [(secret, secret_is_short), (previous_secret, previous_is_short)] = [
            ("GITEA_WEBHOOK_SECRET", &self.gitea_webhook_secret, &self.gitea_webhook_secret_file),
            (
                "GITEA_WEBHOOK_SECRET_PREVIOUS",
                &self.gitea_webhook_secret_previous,
                &self.gitea_webhook_secret_previous_file,
            ),
        ]
        .map(|(name, text, file)| {
            let secret = problems.secret(name, text, file);
            let is_short = problems.check_strength(name, secret.as_ref(), own.allow_short_secret);
            (secret, is_short)
        });
        IngestSettings {
            common,
            address: SocketAddr::new(own.host, own.port),
            secret: secret.unwrap_or_else(|| Secret::new("")),
            previous_secret,
            takes_short_secret: secret_is_short || previous_is_short,
            limits: Limits {
                header_timeout: own.header_timeout_secs,
                idle_timeout: own.idle_timeout_secs,
                write_timeout: own.write_timeout_secs,
                max_connections: own.max_connections,
                max_connections_per_address: match own.max_connections_per_address {
                    None => own.max_connections.div_ceil(2),
                    Some(0) => usize::MAX,
                    Some(most) => most,
                },
            },
            bodies: BodySettings {
                max_bytes: own.max_body_bytes,
                max_in_flight_bytes: own.max_in_flight_bytes,
                timeout: own.body_timeout_secs,
            },
            replayed_after: own.replayed_after_secs,
            journal: JournalSettings {
                dir: own.data_dir,
                max_bytes: own.journal_max_bytes,
                retention: own.journal_retention_secs,
                retention_bytes: own.journal_retention_bytes.min(own.journal_max_bytes),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service::role::CommonArgs;

    fn settings(args: &IngestArgs) -> Result<IngestSettings, String> {
        let mut problems = Problems::default();
        let mut common = CommonArgs::default();
        common.own.gitea_url = Some("http://localhost:3000".into());
        let common = common.check(&mut problems);
        let settings = args.settings(common, &mut problems);
        problems.finish(settings).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_is_all_that_is_required() {
        assert_eq!(
            settings(&IngestArgs::default()).expect_err("no secret"),
            "GITEA_WEBHOOK_SECRET is required"
        );
        let args = IngestArgs {
            gitea_webhook_secret: Some("0123456789abcdef".into()),
            ..IngestArgs::default()
        };
        let settings = settings(&args).expect("a secret");
        assert_eq!(settings.address.to_string(), "0.0.0.0:8000");
        assert_eq!(settings.bodies.max_bytes, 16 * 1024 * 1024);
    }

    #[test]
    fn limits_that_contradict_each_other_are_named() {
        let some = |text: &str| Some(text.to_owned());
        let line = settings(&IngestArgs {
            gitea_webhook_secret: some("short"),
            host: some("example.com"),
            port: some("70000"),
            max_in_flight_bytes: some("2048"),
            journal_retention_secs: some("86401"),
            ..IngestArgs::default()
        })
        .expect_err("five are wrong");
        for name in ["HOST", "PORT", "MAX_IN_FLIGHT_BYTES", "JOURNAL_RETENTION_SECS", "5 bytes"] {
            assert!(line.contains(name), "{name} is missing in: {line}");
        }
    }

    #[test]
    fn a_short_secret_is_taken_only_if_that_is_said() {
        for (secret, previous, allowed, expected) in [
            ("0123456789abcdef", "", "", Ok(false)),
            ("0123456789abcdef", "old", "true", Ok(true)),
            ("old", "", "true", Ok(true)),
            ("0123456789abcdef", "old", "", Err("GITEA_WEBHOOK_SECRET_PREVIOUS has 3 bytes")),
            ("old", "", "", Err("GITEA_WEBHOOK_SECRET has 3 bytes")),
            ("CHANGE-ME", "", "true", Err("GITEA_WEBHOOK_SECRET is a placeholder")),
        ] {
            let args = IngestArgs {
                gitea_webhook_secret: Some(secret.into()),
                gitea_webhook_secret_previous: Some(previous.into()),
                allow_short_secret: Some(allowed.into()),
                ..IngestArgs::default()
            };
            match (settings(&args), expected) {
                (Ok(settings), Ok(short)) => assert_eq!(settings.takes_short_secret, short),
                (Err(line), Err(part)) => {
                    assert!(line.contains(part) && line.contains("openssl rand"), "{line}");
                }
                (found, _) => panic!("{secret} {previous}: {found:?}"),
            }
        }
    }
}
