//! Settings of the worker.

use std::time::Duration;

use service::{
    role::CommonSettings,
    settings::{Problems, number, secs},
};

service::settings! {
    /// Settings of the worker.
    pub struct WorkerArgs => WorkerTexts {
        ack_wait_secs: Duration = "ACK_WAIT_SECS" or "30" = Duration::from_secs(30), secs(1, 3600),
            "After how long a dead worker's message is given to another";
        max_attempts: u64 = "MAX_ATTEMPTS" or "10" = 10, number(1, 1_000_000),
            "Attempts that end with the worker's death before an event is parked as a dead letter";
    }
}

/// Checked settings of the worker.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Settings that all roles share.
    pub common: CommonSettings,
    /// Time after which an unsettled message is redelivered.
    pub ack_wait: Duration,
    /// Attempts before a message is parked as a dead letter.
    pub max_attempts: u64,
    /// Whether somebody asks Gitea's API, so that doubts are raised as questions.
    pub raises_questions: bool,
}

impl WorkerArgs {
    /// Checks the settings and adds every error to `problems`.
    pub fn settings(&self, common: CommonSettings, problems: &mut Problems) -> WorkerSettings {
        let WorkerTexts { ack_wait_secs: ack_wait, max_attempts } = self.check(problems);
        WorkerSettings { common, ack_wait, max_attempts, raises_questions: false }
    }
}
