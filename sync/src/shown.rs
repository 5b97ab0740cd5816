//! Which repositories Gitea has shown to this token. A 404 of one that it never showed says nothing:
//! the token's user may not see it, and it is there.
//!
//! An admin's token is shown all that there is.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use gitea::{ApiError, Client};
use serde::{Deserialize, Serialize};

use crate::{
    entries::{self, EntryError},
    states::States,
};

/// What is known of this token.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Names the token in keys, and tells nothing of it.
    token_id: String,
    noted: Mutex<HashSet<i64>>,
    is_admin: tokio::sync::Mutex<Option<bool>>,
}

/// The entry of a repository.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    shown: bool,
}

impl Shown {
    pub(crate) fn new(token_id: &str) -> Self {
        Self {
            token_id: token_id.to_owned(),
            noted: Mutex::default(),
            is_admin: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) fn token_id(&self) -> &str {
        &self.token_id
    }

    fn key(&self, repository_id: i64) -> String {
        format!("shown.{}.{repository_id}", self.token_id)
    }

    fn is_noted(&self, repository_id: i64) -> bool {
        let noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.contains(&repository_id)
    }

    /// Notes it for this process alone.
    pub(crate) fn remember(&self, repository_id: i64) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        noted.insert(repository_id);
    }

    /// Has everything noted once more: the bucket may be another one.
    pub(crate) fn forget(&self) {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Notes that Gitea has shown a repository, once.
    pub(crate) async fn note(&self, states: &States, repository_id: i64) -> Result<(), EntryError> {
        if self.is_noted(repository_id) {
            return Ok(());
        }
        let key = self.key(repository_id);
        match entries::replace(states, &key, &Note { shown: true }, 0).await {
            // It was noted before.
            Err(error) if !error.is_conflict() => return Err(error),
            _ => self.remember(repository_id),
        }
        Ok(())
    }

    /// Whether Gitea has shown a repository to this token, or would.
    pub(crate) async fn was_shown(
        &self,
        client: &Client,
        states: &States,
        repository_id: i64,
    ) -> Result<bool, ShownError> {
        if self.is_noted(repository_id) {
            return Ok(true);
        }
        let found = entries::get::<Note>(states, &self.key(repository_id)).await?;
        if found.is_some_and(|(note, _)| note.shown) {
            self.remember(repository_id);
            return Ok(true);
        }
        let mut is_admin = self.is_admin.lock().await;
        if is_admin.is_none() {
            *is_admin = Some(match client.user().await {
                Ok(user) => user.value.is_admin,
                // The scope does not reach that far, so nobody knows.
                Err(ApiError::Forbidden { .. }) => false,
                Err(error) => return Err(error.into()),
            });
        }
        Ok(is_admin.unwrap_or_default())
    }
}

/// Why it is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShownError {
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Gitea(#[from] ApiError),
}
