//! The worker of a process and, where there is a token of Gitea, the jobs that ask it.

use anyhow::Result;
use service::{
    role::{CommonSettings, Host, Role},
    settings::{Problems, Shown},
};
use sync::{
    Sync,
    settings::{AccessArgs, SyncArgs, SyncSettings},
};
use tracing::info;
use worker::{
    Worker,
    settings::{WorkerArgs, WorkerSettings},
};

/// Settings of the worker and of the jobs that ask Gitea, as given.
#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub(crate) struct WorkerSideArgs {
    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    #[command(flatten)]
    pub(crate) sync: SyncArgs,
}

/// Settings of the worker and of the jobs that ask Gitea, checked.
#[derive(Clone, Debug)]
pub(crate) struct WorkerSide {
    pub(crate) worker: WorkerSettings,
    pub(crate) sync: SyncSettings,
}

impl WorkerSideArgs {
    /// Checks the settings and notes in `problems` what is wrong.
    pub(crate) fn settings(&self, common: CommonSettings, problems: &mut Problems) -> WorkerSide {
        let sync = self.sync.settings(&self.access, common.clone(), problems);
        let mut worker = self.worker.settings(common, problems);
        worker.raises_questions = sync.access.token.is_some();
        WorkerSide { worker, sync }
    }

    /// Each setting as it is understood.
    pub(crate) fn shown(&self) -> Vec<Shown> {
        [self.worker.shown(), self.access.shown(), self.sync.shown()].concat()
    }
}

impl WorkerSide {
    /// Starts the worker and, with a token, the jobs. What is in `roles` at an error has started.
    pub(crate) async fn start(&self, host: &Host, roles: &mut Vec<Box<dyn Role>>) -> Result<()> {
        roles.push(Box::new(Worker::start(&self.worker, host).await?));
        if self.sync.access.token.is_some() {
            roles.push(Box::new(Sync::start(&self.sync, host).await?));
        } else {
            info!(
                "without GITEA_TOKEN nobody asks Gitea: doubts stay, and what no webhook \
                 tells is not found"
            );
        }
        Ok(())
    }
}
