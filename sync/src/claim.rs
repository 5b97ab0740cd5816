//! The claim to ask Gitea: one worker has it at a time, so the budget of requests is one for all.
//!
//! The claim is an entry of a bucket that its holder renews. No clock of another machine is compared:
//! whoever wants the claim takes it once the entry has kept its revision for [`LEASE`] by its own
//! clock. A holder that was suspended finds another revision, and stops. What it still does then
//! is harmless, since an answer of Gitea is judged by what was known when it was asked.

use std::time::{Duration, Instant};

use service::{backoff::Backoff, causes::Causes};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    context::{Context, StoresError},
    entries,
};

/// Key of the claim.
const KEY: &str = "claim";
/// Time between two renewals.
const RENEWAL: Duration = Duration::from_secs(2);
/// Time without a renewal after which another worker takes the claim.
const LEASE: Duration = Duration::from_secs(10);
/// Time without a renewal after which the holder stops by itself, sooner than another may begin.
const HOLD: Duration = Duration::from_secs(7);
/// Time between two looks at the claim of another worker.
const LOOK: Duration = Duration::from_secs(1);
/// Pauses while the broker fails.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// The claim as it is written. Nobody has it if `holder` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Written {
    holder: String,
    /// So that each renewal is a new revision with another content.
    renewals: u64,
}

/// Why the claim cannot be renewed.
#[derive(Debug, Error)]
enum ClaimError {
    #[error("another worker has taken the claim")]
    Taken,
    #[error(transparent)]
    Entry(#[from] entries::EntryError),
    #[error(transparent)]
    Stores(#[from] StoresError),
}

/// The claim, held until [`Claim::lost`].
#[derive(Debug)]
pub(crate) struct Claim {
    holder: String,
    renewals: u64,
    revision: u64,
    renewed: Instant,
}

impl Claim {
    /// Waits until the claim is ours. None if `stop` comes first.
    pub(crate) async fn win(
        context: &Context,
        holder: &str,
        stop: &CancellationToken,
    ) -> Option<Self> {
        let mut pause = RETRY;
        let mut seen: Option<(u64, Instant)> = None;
        while !stop.is_cancelled() {
            let is_taken = match Self::attempt(context, holder, &mut seen).await {
                Ok(Some(claim)) => return Some(claim),
                Ok(None) => {
                    pause.reset();
                    true
                }
                // The broker's keeper says so.
                Err(ClaimError::Stores(StoresError::NoConnection)) => false,
                Err(error) => {
                    let error = Causes(&error).to_string();
                    context.trouble.failed(&error, "the claim to ask Gitea cannot be looked at");
                    false
                }
            };
            let rest = async {
                if is_taken { tokio::time::sleep(LOOK).await } else { pause.wait().await }
            };
            tokio::select! {
                () = rest => {}
                () = stop.cancelled() => {}
            }
        }
        None
    }

    /// Takes the claim if it is free, or if its entry has not changed for long.
    async fn attempt(
        context: &Context,
        holder: &str,
        seen: &mut Option<(u64, Instant)>,
    ) -> Result<Option<Self>, ClaimError> {
        let stores = context.stores().await?;
        let found = entries::get::<Written>(&stores.states, KEY).await?;
        let (written, revision) = found.unwrap_or_default();
        let is_free = written.holder.is_empty() || written.holder == holder;
        match *seen {
            _ if is_free => {}
            Some((known, since)) if known == revision => {
                if since.elapsed() < LEASE {
                    return Ok(None);
                }
            }
            _ => {
                *seen = Some((revision, Instant::now()));
                return Ok(None);
            }
        }
        let mut claim = Self {
            holder: holder.to_owned(),
            renewals: written.renewals,
            revision,
            renewed: Instant::now(),
        };
        match claim.renew(context).await {
            Ok(()) => {
                info!(from = written.holder, "this worker asks Gitea now");
                Ok(Some(claim))
            }
            Err(ClaimError::Taken) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn renew(&mut self, context: &Context) -> Result<(), ClaimError> {
        let begun = Instant::now();
        let stores = context.stores().await?;
        let written = Written { holder: self.holder.clone(), renewals: self.renewals + 1 };
        match entries::replace(&stores.states, KEY, &written, self.revision).await {
            Ok(revision) => {
                (self.revision, self.renewals, self.renewed) = (revision, written.renewals, begun);
                Ok(())
            }
            Err(error) if error.is_conflict() => {
                // A write whose confirmation was lost.
                match entries::get::<Written>(&stores.states, KEY).await? {
                    Some((found, revision)) if found == written => {
                        (self.revision, self.renewals) = (revision, written.renewals);
                        self.renewed = begun;
                        Ok(())
                    }
                    _ => Err(ClaimError::Taken),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Renews the claim until it is lost, or until `stop`.
    pub(crate) async fn lost(&mut self, context: &Context, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEWAL) => {}
                () = stop.cancelled() => return,
            }
            let left = HOLD.saturating_sub(self.renewed.elapsed());
            let renewed = tokio::time::timeout(left, self.renew(context)).await;
            match renewed {
                Ok(Ok(())) => {}
                Ok(Err(ClaimError::Taken)) => return info!("another worker asks Gitea now"),
                Ok(Err(error)) => debug!(error = %Causes(&error), "cannot renew the claim"),
                Err(_) => {}
            }
            if self.renewed.elapsed() >= HOLD {
                return info!("the claim could not be renewed, so this worker asks Gitea no more");
            }
        }
    }

    /// Gives the claim back, so that nobody has to wait for its end.
    pub(crate) async fn give_back(self, context: &Context) {
        let free = Written { holder: String::new(), renewals: self.renewals + 1 };
        if let Ok(stores) = context.stores().await {
            // Otherwise the others wait.
            let _ = entries::replace(&stores.states, KEY, &free, self.revision).await;
        }
    }
}
