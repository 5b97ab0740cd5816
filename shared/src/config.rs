//! Settings: taken as text from flags or the environment by clap, checked all
//! at once here, so that one line names everything that is wrong.

use std::{borrow::Cow, fmt, path::Path, str::FromStr, time::Duration};

use clap::Args;
use thiserror::Error;

use crate::{
    broker::BrokerConfig,
    streams::StreamsConfig,
    telemetry::{LogFormat, TelemetryConfig},
};

/// Exit code for a setting that is missing or wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Where NATS is when nothing says otherwise.
pub const DEFAULT_NATS_URL: &str = "nats://127.0.0.1:4222";

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps a secret.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The secret itself. Named so that a reader stops at every use.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, for protocols that want text.
    pub fn expose_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Settings that are missing or wrong, all of them.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

/// Collects what is wrong with the settings while they are read.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Notes a problem.
    pub fn add(&mut self, problem: impl Into<String>) {
        self.0.push(problem.into());
    }

    /// A required text.
    pub fn required(&mut self, name: &str, value: &Option<String>) -> String {
        text(value).map(str::to_owned).unwrap_or_else(|| {
            self.add(format!("{name} is required"));
            String::new()
        })
    }

    /// A value of any type that can be read from text, or `default` where unset.
    pub fn parse<T: FromStr>(
        &mut self,
        name: &str,
        value: &Option<String>,
        kind: &str,
        default: T,
    ) -> T {
        let Some(text) = text(value) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.add(format!("{name} is not {kind}"));
            default
        })
    }

    /// A number within bounds, or `default` where unset.
    pub fn number(
        &mut self,
        name: &str,
        value: &Option<String>,
        default: u64,
        low: u64,
        high: u64,
    ) -> u64 {
        let Some(text) = text(value) else { return default };
        match text.parse() {
            Ok(number) if (low..=high).contains(&number) => number,
            _ => {
                self.add(format!("{name} is not a number from {low} to {high}"));
                default
            }
        }
    }

    /// A number of seconds within bounds, or `default` where unset.
    pub fn secs(
        &mut self,
        name: &str,
        value: &Option<String>,
        default: u64,
        low: u64,
        high: u64,
    ) -> Duration {
        Duration::from_secs(self.number(name, value, default, low, high))
    }

    /// A secret from a setting or from the file that its `_FILE` variant
    /// names, without the line end that editors add. Empty means unset.
    pub fn secret(
        &mut self,
        name: &str,
        value: &Option<String>,
        file: &Option<String>,
    ) -> Option<Secret> {
        let value = text(value);
        let Some(file) = text(file) else { return value.map(Secret::new) };
        if value.is_some() {
            self.add(format!("{name} and {name}_FILE are both set"));
            return None;
        }
        match std::fs::read(Path::new(file)) {
            Ok(bytes) => {
                let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
                let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
                if bytes.is_empty() {
                    self.add(format!("the file of {name}_FILE is empty"));
                    return None;
                }
                Some(Secret::new(bytes))
            }
            Err(error) => {
                self.add(format!("the file of {name}_FILE cannot be read ({error})"));
                None
            }
        }
    }

    /// The outcome: `value` if nothing was wrong.
    pub fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() { Ok(value) } else { Err(ConfigError(self.0)) }
    }
}

/// A setting's text. Compose files set unset variables to nothing, so empty means unset.
pub fn text(value: &Option<String>) -> Option<&str> {
    value.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Settings of every service.
#[derive(Args, Clone, Debug, Default)]
pub struct CommonArgs {
    /// URL of Gitea: the source of every event, and where its API is
    #[arg(long, env = "GITEA_URL", value_name = "URL")]
    pub gitea_url: Option<String>,
    /// URL of NATS, or several with commas between [default: nats://127.0.0.1:4222]
    #[arg(long, env = "NATS_URL", value_name = "URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// User at NATS
    #[arg(long, env = "NATS_USER")]
    pub nats_user: Option<String>,
    /// Password at NATS
    #[arg(long, env = "NATS_PASSWORD", hide_env_values = true)]
    pub nats_password: Option<String>,
    /// File that holds the password at NATS
    #[arg(long, env = "NATS_PASSWORD_FILE", value_name = "FILE")]
    pub nats_password_file: Option<String>,
    /// Credentials file (.creds) for NATS
    #[arg(long, env = "NATS_CREDS_FILE", value_name = "FILE")]
    pub nats_creds_file: Option<String>,
    /// Certificates to trust at NATS, PEM; asks for TLS
    #[arg(long, env = "NATS_CA_FILE", value_name = "FILE")]
    pub nats_ca_file: Option<String>,
    /// Our own certificate for NATS, PEM
    #[arg(long, env = "NATS_CERT_FILE", value_name = "FILE")]
    pub nats_cert_file: Option<String>,
    /// The key to our own certificate, PEM
    #[arg(long, env = "NATS_KEY_FILE", value_name = "FILE")]
    pub nats_key_file: Option<String>,
    /// Prefix of reply subjects at NATS [default: _INBOX]
    #[arg(long, env = "NATS_INBOX_PREFIX", value_name = "SUBJECT")]
    pub nats_inbox_prefix: Option<String>,
    /// Copies that the broker keeps of streams and state: 1, 3 or 5 [default: 1]
    #[arg(long, env = "STREAM_REPLICAS", value_name = "N")]
    pub stream_replicas: Option<String>,
    /// How long the broker keeps events, changes and dead letters [default: 1209600, 14 days]
    #[arg(long, env = "STREAM_MAX_AGE_SECS", value_name = "N")]
    pub stream_max_age_secs: Option<String>,
    /// How long the broker remembers message ids; covers the journal's retention [default: 90000, 25 hours]
    #[arg(long, env = "DEDUP_WINDOW_SECS", value_name = "N")]
    pub dedup_window_secs: Option<String>,
    /// debug, info, warning or error [default: info]
    #[arg(long, env = "LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text on a terminal, else json]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Where to send traces and metrics over OTLP/HTTP; nowhere when unset
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of deliveries that are traced, from 0 to 1 [default: 1]
    #[arg(long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO")]
    pub trace_ratio: Option<String>,
}

/// Settings of every service, checked.
#[derive(Clone, Debug)]
pub struct CommonConfig {
    /// Gitea's URL without a slash at its end.
    pub gitea_url: String,
    /// The broker.
    pub broker: BrokerConfig,
    /// What is created there.
    pub streams: StreamsConfig,
    /// Logs, traces and metrics.
    pub telemetry: TelemetryConfig,
}

impl CommonArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn check(&self, problems: &mut Problems) -> CommonConfig {
        let gitea_url = problems.required("GITEA_URL", &self.gitea_url);
        if !gitea_url.is_empty() && !is_http_url(&gitea_url) {
            problems.add("GITEA_URL is not an http:// or https:// URL");
        }
        let max_age = problems.secs(
            "STREAM_MAX_AGE_SECS",
            &self.stream_max_age_secs,
            1_209_600,
            60,
            u32::MAX.into(),
        );
        let dedup_window = problems.secs(
            "DEDUP_WINDOW_SECS",
            &self.dedup_window_secs,
            90_000,
            10,
            u32::MAX.into(),
        );
        if dedup_window > max_age {
            problems.add("DEDUP_WINDOW_SECS is larger than STREAM_MAX_AGE_SECS");
        }
        let replicas = problems.number("STREAM_REPLICAS", &self.stream_replicas, 1, 1, 5) as usize;
        if replicas.is_multiple_of(2) {
            problems.add("STREAM_REPLICAS is not 1, 3 or 5");
        }
        CommonConfig {
            gitea_url: gitea_url.trim_end_matches('/').to_owned(),
            broker: self.check_broker(problems),
            streams: StreamsConfig { replicas, max_age, dedup_window },
            telemetry: self.check_telemetry(problems),
        }
    }

    /// Checks the part that says where NATS is, for commands that need no more.
    pub fn check_broker(&self, problems: &mut Problems) -> BrokerConfig {
        let urls = text(&self.nats_url).unwrap_or(DEFAULT_NATS_URL);
        let servers = urls.split(',').map(|url| url.trim().parse()).collect::<Result<Vec<_>, _>>();
        let password =
            problems.secret("NATS_PASSWORD", &self.nats_password, &self.nats_password_file);
        let user = text(&self.nats_user).map(str::to_owned);
        if user.is_some() != password.is_some() {
            problems.add("NATS_USER and NATS_PASSWORD go together");
        }
        let path = |value| text(value).map(Into::into);
        let certificate = path(&self.nats_cert_file);
        let key = path(&self.nats_key_file);
        if certificate.is_some() != key.is_some() {
            problems.add("NATS_CERT_FILE and NATS_KEY_FILE go together");
        }
        BrokerConfig {
            servers: servers.unwrap_or_else(|_| {
                problems.add("NATS_URL is not a URL such as nats://host:4222");
                Vec::new()
            }),
            user: user.zip(password),
            credentials_file: path(&self.nats_creds_file),
            ca_file: path(&self.nats_ca_file),
            client_certificate: certificate.zip(key),
            inbox_prefix: text(&self.nats_inbox_prefix).map(str::to_owned),
        }
    }

    fn check_telemetry(&self, problems: &mut Problems) -> TelemetryConfig {
        let level = match text(&self.log_level).map(str::to_ascii_lowercase).as_deref() {
            None | Some("info") => tracing::Level::INFO,
            Some("debug") => tracing::Level::DEBUG,
            Some("warning" | "warn") => tracing::Level::WARN,
            Some("error") => tracing::Level::ERROR,
            Some(_) => {
                problems.add("LOG_LEVEL is not debug, info, warning or error");
                tracing::Level::INFO
            }
        };
        let format = match text(&self.log_format) {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(_) => {
                problems.add("LOG_FORMAT is not text or json");
                None
            }
        };
        let otlp_endpoint =
            text(&self.otlp_endpoint).map(|url| url.trim_end_matches('/').to_owned());
        if otlp_endpoint.as_deref().is_some_and(|url| !is_http_url(url)) {
            problems.add("OTEL_EXPORTER_OTLP_ENDPOINT is not an http:// or https:// URL");
        }
        let sample_ratio = problems.parse(
            "OTEL_TRACES_SAMPLER_ARG",
            &self.trace_ratio,
            "a number from 0 to 1",
            1.0,
        );
        if !(0.0..=1.0).contains(&sample_ratio) {
            problems.add("OTEL_TRACES_SAMPLER_ARG is not a number from 0 to 1");
        }
        TelemetryConfig { level, format, otlp_endpoint, sample_ratio }
    }
}

fn is_http_url(url: &str) -> bool {
    ["http://", "https://"].iter().any(|scheme| {
        url.strip_prefix(scheme).is_some_and(|rest| {
            rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
                && !rest.contains(char::is_whitespace)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn one_line_names_everything_that_is_wrong() {
        let args = CommonArgs {
            gitea_url: some("gitea.example.com"),
            nats_url: some("nats://a b"),
            nats_user: some("ingest"),
            nats_cert_file: some("cert.pem"),
            stream_replicas: some("2"),
            stream_max_age_secs: some("100"),
            dedup_window_secs: some("soon"),
            log_level: some("loud"),
            log_format: some("xml"),
            otlp_endpoint: some("localhost:4318"),
            trace_ratio: some("2"),
            ..CommonArgs::default()
        };
        let mut problems = Problems::default();
        args.check(&mut problems);
        let line = problems.finish(()).expect_err("all of it is wrong").to_string();
        for name in [
            "GITEA_URL",
            "NATS_URL",
            "NATS_USER",
            "NATS_CERT_FILE",
            "STREAM_REPLICAS",
            "DEDUP_WINDOW_SECS",
            "LOG_LEVEL",
            "LOG_FORMAT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            "OTEL_TRACES_SAMPLER_ARG",
        ] {
            assert!(line.contains(name), "{name} is missing in: {line}");
        }
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn defaults_and_names_of_the_first_version_are_understood() {
        for (level, expected) in [
            ("", tracing::Level::INFO),
            ("INFO", tracing::Level::INFO),
            ("debug", tracing::Level::DEBUG),
            ("warning", tracing::Level::WARN),
            ("warn", tracing::Level::WARN),
            ("error", tracing::Level::ERROR),
        ] {
            let args = CommonArgs {
                gitea_url: some("https://gitea.example.com/"),
                log_level: some(level),
                ..CommonArgs::default()
            };
            let mut problems = Problems::default();
            let config = args.check(&mut problems);
            assert_eq!(problems.finish(()), Ok(()));
            assert_eq!(config.gitea_url, "https://gitea.example.com");
            assert_eq!(config.telemetry.level, expected);
            assert_eq!(config.streams.replicas, 1);
        }
    }

    #[test]
    fn secrets_come_from_a_setting_or_a_file_and_are_never_printed() {
        let path = std::env::temp_dir().join(format!("secret-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, "s3cr3t\r\n").expect("write");
        let file = some(path.to_str().expect("utf-8"));
        let mut problems = Problems::default();
        let secret = problems.secret("X", &None, &file).expect("from the file");
        assert_eq!(secret, Secret::new("s3cr3t"));
        assert!(!format!("{secret:?}").contains("s3cr3t"));
        assert_eq!(problems.secret("X", &some(" "), &None), None);
        assert_eq!(problems.secret("X", &some("a"), &None), Some(Secret::new("a")));
        assert_eq!(problems.secret("X", &some("a"), &file), None);
        std::fs::write(&path, "\n").expect("write");
        assert_eq!(problems.secret("X", &None, &file), None);
        std::fs::remove_file(&path).expect("remove");
        assert_eq!(problems.secret("X", &None, &file), None);
        let line = problems.finish(()).expect_err("three are wrong").to_string();
        assert!(line.starts_with("X and X_FILE are both set; the file of X_FILE is empty; the file of X_FILE cannot be read"), "{line}");
    }
}
