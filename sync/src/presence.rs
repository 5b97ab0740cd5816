//! Whether Gitea still shows what is there. A 404 says nothing while it does not: a proxy may answer
//! it for everything, and a token may have lost its rights.

use std::time::{Duration, Instant};

use gitea::{ApiError, IssueLine, IssueQuery};
use thiserror::Error;
use tokio::sync::Mutex;

use crate::context::Context;

/// Age up to which a check before a look counts.
const BEFORE: Duration = Duration::from_secs(60);
/// Issues that are listed for a check.
const LISTED: u32 = 50;
/// Issues that are tried, each of another repository.
const TRIED: usize = 5;

/// Checks that are shared by all looks.
#[derive(Debug, Default)]
pub struct Presence {
    /// When the last check that passed was begun.
    passed: Mutex<Option<Instant>>,
}

/// Why a 404 proves nothing now.
#[derive(Debug, Error)]
pub enum PresenceError {
    /// A request of the same kind fails as well.
    #[error("look at an issue that is there")]
    Gitea(#[from] ApiError),
    /// Gitea lists no issue at all.
    #[error("Gitea lists no issue at all")]
    SeesNothing,
    /// Gitea lists an issue and does not show it.
    #[error("Gitea lists an issue, and does not show it")]
    NotShown,
}

impl Presence {
    /// Checks, unless a check was begun within the last minute.
    ///
    /// # Errors
    /// If Gitea does not show what is there.
    pub async fn before(&self, context: &Context) -> Result<(), PresenceError> {
        let oldest = Instant::now().checked_sub(BEFORE);
        self.since(context, oldest.unwrap_or_else(Instant::now)).await
    }

    /// Checks, unless a check was begun after `looked`.
    ///
    /// # Errors
    /// If Gitea does not show what is there.
    pub async fn since(&self, context: &Context, looked: Instant) -> Result<(), PresenceError> {
        let mut passed = self.passed.lock().await;
        if passed.is_some_and(|begun| begun >= looked) {
            return Ok(());
        }
        let begun = Instant::now();
        check(context).await?;
        *passed = Some(begun);
        Ok(())
    }
}

/// Looks for any issue, and at it by its own path, as at one that may be gone. Gitea also lists issues
/// of repositories that show none any more, so some are tried.
async fn check(context: &Context) -> Result<(), PresenceError> {
    let mut lines: Vec<IssueLine> = Vec::new();
    let query = IssueQuery { limit: LISTED, ..IssueQuery::default() };
    let request = context.client.search(&query, |line| {
        if lines.iter().all(|other| other.repository.id != line.repository.id) {
            lines.push(line);
        }
    });
    request.await?;
    // A Gitea that was restored empty, or is another one, shows none.
    if lines.is_empty() {
        return Err(PresenceError::SeesNothing);
    }
    for line in lines.iter().take(TRIED) {
        let repository = &line.repository;
        let request = context.client.issue(&repository.owner, &repository.name, line.number);
        match request.await {
            Ok(found) if found.value.line.id == line.id => return Ok(()),
            Ok(_) | Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(PresenceError::NotShown)
}
