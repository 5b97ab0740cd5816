//! Settings of the runner.

use std::{path::PathBuf, time::Duration};

use service::{
    role::CommonSettings,
    settings::{Problems, number, path, secs},
};

use crate::rules::{self, Rules};

/// A day, in seconds.
const DAY_SECS: u64 = 24 * 3600;

service::settings! {
    /// What the runner runs.
    pub struct ReactorArgs => ReactorTexts {
        reactor_rules: Option<PathBuf> = "REACTOR_RULES", path,
            "File of the rules: who has to be assigned, and what then runs";
        reactor_lease_secs: Duration = "REACTOR_LEASE_SECS" or "30" = Duration::from_secs(30), secs(2, 600),
            "How long a runner may be cut off from the broker before its runs end and others take them, the same for all runners";
        reactor_runs_kept_days: u64 = "REACTOR_RUNS_KEPT_DAYS" or "30" = 30, number(1, 3650),
            "Days for which the broker keeps the entry of a run that is over and not wanted any more";
    }
}

/// What the runner runs, checked.
#[derive(Clone, Debug)]
pub struct ReactorSettings {
    /// Settings that all roles share.
    pub common: CommonSettings,
    /// The file of the rules.
    pub rules_file: PathBuf,
    /// The rules in it at the start.
    pub rules: Rules,
    /// Time without a renewal after which another runner takes a run.
    pub lease: Duration,
    /// How long the broker keeps the entry of a run that is over and not wanted any more.
    pub kept: Duration,
    /// The role's own environment, of which runs get what their rules list.
    pub environment: Vec<(String, String)>,
}

impl ReactorArgs {
    /// Checks the settings and notes in `problems` what is wrong, with all mistakes in the rules.
    /// `environment` is the role's own.
    pub fn settings(
        &self,
        common: CommonSettings,
        environment: Vec<(String, String)>,
        problems: &mut Problems,
    ) -> ReactorSettings {
        let texts = self.check(problems);
        let mut settings = ReactorSettings {
            common,
            rules_file: texts.reactor_rules.clone().unwrap_or_default(),
            rules: Rules::default(),
            lease: texts.reactor_lease_secs,
            kept: Duration::from_secs(texts.reactor_runs_kept_days * DAY_SECS),
            environment,
        };
        match texts.reactor_rules.map(|file| rules::read(&file)) {
            Some(Ok(rules)) => settings.rules = rules,
            Some(Err(error)) => problems.add(error.to_string()),
            None => problems.add("REACTOR_RULES is required; it is the file of the rules"),
        }
        settings
    }

    /// Whether there is a file of rules.
    pub fn has_rules(&self) -> bool {
        service::settings::text(&self.reactor_rules).is_some()
    }
}
