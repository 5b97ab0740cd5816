//! Settings of the worker.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use clap::Args;
use shared::config::{CommonConfig, Problems};

/// Settings as they were given.
#[derive(Args, Clone, Debug, Default)]
pub struct WorkerArgs {
    /// Address of the worker's health and metrics [default: 0.0.0.0]
    #[arg(long, env = "WORKER_HOST", value_name = "ADDRESS")]
    pub worker_host: Option<String>,
    /// Port of the worker's health and metrics; 0 for any [default: 8001]
    #[arg(long, env = "WORKER_PORT", value_name = "PORT")]
    pub worker_port: Option<String>,
    /// After how long a dead worker's message is given to another [default: 30]
    #[arg(long, env = "ACK_WAIT_SECS", value_name = "N")]
    pub ack_wait_secs: Option<String>,
    /// How often an event is tried before it is parked as a dead letter [default: 10]
    #[arg(long, env = "MAX_ATTEMPTS", value_name = "N")]
    pub max_attempts: Option<String>,
    /// How long stopping a worker may take [default: 20]
    #[arg(long, env = "WORKER_DRAIN_TIMEOUT_SECS", value_name = "N")]
    pub worker_drain_timeout_secs: Option<String>,
}

/// Settings of the worker, checked.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// What every service has.
    pub common: CommonConfig,
    /// Address of health and metrics.
    pub host: IpAddr,
    /// Port of health and metrics; 0 lets the system choose.
    pub port: u16,
    /// After how long an unsettled message comes again.
    pub ack_wait: Duration,
    /// Attempts before a message is parked.
    pub max_attempts: u64,
    /// How long stopping may take.
    pub drain_timeout: Duration,
}

impl WorkerArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub fn check(&self, common: CommonConfig, problems: &mut Problems) -> WorkerConfig {
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        WorkerConfig {
            common,
            host: problems.parse("WORKER_HOST", &self.worker_host, "an IP address", any),
            port: problems.parse("WORKER_PORT", &self.worker_port, "a port", 8001),
            ack_wait: problems.secs("ACK_WAIT_SECS", &self.ack_wait_secs, 30, 1, 3600),
            max_attempts: problems.number("MAX_ATTEMPTS", &self.max_attempts, 10, 1, 1_000_000),
            drain_timeout: problems.secs(
                "WORKER_DRAIN_TIMEOUT_SECS",
                &self.worker_drain_timeout_secs,
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

    #[test]
    fn what_is_wrong_is_named_and_the_rest_has_defaults() {
        let mut problems = Problems::default();
        let common = CommonArgs { gitea_url: Some("http://h".into()), ..CommonArgs::default() };
        let common = common.check(&mut problems);
        let args = WorkerArgs {
            worker_port: Some("x".into()),
            ack_wait_secs: Some("0".into()),
            ..WorkerArgs::default()
        };
        let config = args.check(common, &mut problems);
        assert_eq!((config.max_attempts, config.drain_timeout), (10, Duration::from_secs(20)));
        let line = problems.finish(()).expect_err("two are wrong").to_string();
        assert_eq!(line, "WORKER_PORT is not a port; ACK_WAIT_SECS is not a number from 1 to 3600");
    }
}
