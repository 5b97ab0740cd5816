//! The slow sweep over all issues that are known as open and assigned. Gitea changes some of them
//! without a trace: whoever can no longer be assigned is taken off, a repository is deleted. Neither
//! `updated_at` nor a webhook tells that.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use contract::{event::SyncCause, issue_state::Lifecycle};
use gitea::{ApiError, IssueLine, IssueQuery, StateFilter};
use serde::{Deserialize, Serialize};
use service::{backoff::Backoff, causes::Causes, question::QuestionError};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::{
    context::{Context, Stores, StoresError},
    difference::{Difference, difference},
    entries::{self, EntryError},
    instruments::now,
    states::{Placed, StateError},
    windows::PAGE,
};

/// Key of what is kept of the repair.
const KEY: &str = "repair";
/// Parts that a round is divided into at most, so that its requests spread over its time.
const PARTS: u64 = 200;
/// Least number of entries that are read at once.
const LEAST: u64 = 200;
/// Issues of one repository from which on its list is asked for.
const LISTED_FROM: usize = 3;
/// Pauses while the repair fails.
const RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(120));

/// What is kept of the repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// First revision of the bucket of states that is not looked at.
    #[serde(default)]
    next: u64,
    /// Last revision of the round. What is written later is new.
    #[serde(default)]
    last: u64,
    /// When the round began, in seconds since 1970, by the clock of the worker that began it.
    #[serde(default)]
    began_at: i64,
    /// Whether the round is complete.
    #[serde(default)]
    complete: bool,
}

/// What a part of the bucket holds of one repository.
#[derive(Debug, Default)]
struct Known {
    /// Open issues with somebody assigned, and those in doubt.
    worked_on: Vec<Placed>,
    /// The others that are not known as deleted. They matter only if the repository is gone.
    others: Vec<Placed>,
    /// Those that were taken for gone. They matter only if the repository is there.
    gone: Vec<Placed>,
}

/// Why the repair does not go on.
#[derive(Debug, Error)]
enum RepairError {
    #[error(transparent)]
    Stores(#[from] StoresError),
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("list a repository's issues")]
    Gitea(#[from] ApiError),
    #[error(transparent)]
    Question(#[from] QuestionError),
}

/// The repair of the worker that asks Gitea.
#[derive(Debug)]
pub(crate) struct Repair {
    pub(crate) context: Arc<Context>,
    /// Over how long a round spreads.
    pub(crate) interval: Duration,
    /// Repositories that were there in this round. A part of the bucket holds issues of all of them,
    /// and each is asked for once.
    pub(crate) there: HashSet<i64>,
}

impl Repair {
    /// Goes round and round until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut pause = RETRY;
        loop {
            let rest = tokio::select! {
                part = self.part() => match part {
                    Ok(rest) => {
                        pause.reset();
                        Some(rest)
                    }
                    Err(error) => {
                        let error = Causes(&error).to_string();
                        self.context.trouble.failed(&error, "the repair does not go on");
                        None
                    }
                },
                () = stop.cancelled() => return,
            };
            let rest = async {
                match rest {
                    Some(rest) => tokio::time::sleep(rest).await,
                    None => pause.wait().await,
                }
            };
            tokio::select! {
                () = rest => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Looks at one part of the bucket. Returns how long to wait for the next one.
    async fn part(&mut self) -> Result<Duration, RepairError> {
        let stores = self.context.stores().await?;
        let (mut kept, revision) =
            entries::get::<Kept>(&stores.states, KEY).await?.unwrap_or_default();
        let interval = i64::try_from(self.interval.as_secs()).unwrap_or(i64::MAX);
        if kept.complete {
            let passed = now().saturating_sub(kept.began_at);
            let left = interval.saturating_sub(passed);
            // A round that began in the future was begun by a clock that was ahead, and says nothing.
            if passed >= 0 && left > 0 {
                return Ok(Duration::from_secs(left.unsigned_abs()).min(Duration::from_secs(60)));
            }
            kept = Kept::default();
        }
        let (messages, last) = stores.states.extent().await?;
        if kept.next == 0 {
            (kept.next, kept.last, kept.began_at) = (1, last, now());
            self.there.clear();
        }
        let size = messages.div_ceil(PARTS).max(LEAST);
        let begun = Instant::now();
        let mut repositories: BTreeMap<i64, Known> = BTreeMap::new();
        for _ in 0..size {
            // What is written while the round goes on is new.
            let found = match stores.states.next(kept.next).await? {
                Some(found) if found.revision <= kept.last => found,
                _ => {
                    kept.complete = true;
                    break;
                }
            };
            kept.next = found.revision + 1;
            let repository = repositories.entry(found.repository_id).or_default();
            let known = &found.entry.known;
            if known.is_worked_on() || known.in_doubt {
                repository.worked_on.push(found);
            } else if known.gone {
                repository.gone.push(found);
            } else if known.state != Lifecycle::Deleted {
                repository.others.push(found);
            }
        }
        for (id, known) in repositories {
            let is_listed = self.compare(&stores, known.worked_on).await?;
            if is_listed {
                self.there.insert(id);
            }
            if known.others.is_empty() && known.gone.is_empty() {
                continue;
            }
            // What the token could not see for a while may be there again.
            let doubtful = if self.is_gone(id).await? { known.others } else { known.gone };
            for placed in doubtful {
                raise(&stores, &placed).await?;
            }
        }
        let complete = kept.complete;
        entries::replace(&stores.states, KEY, &kept, revision).await?;
        if complete {
            debug!("a round of the repair is complete");
            return Ok(Duration::ZERO);
        }
        let share = size as f64 / messages.max(1) as f64;
        Ok(self.interval.mul_f64(share.min(1.0)).saturating_sub(begun.elapsed()))
    }

    /// Compares issues of one repository with its list, if that is less work. Each that differs, or is
    /// not in the list, becomes a question. Returns whether the list could be had.
    async fn compare(&self, stores: &Stores, entries: Vec<Placed>) -> Result<bool, RepairError> {
        let listed = if entries.len() >= LISTED_FROM { self.list(&entries).await? } else { None };
        for placed in entries {
            let known = &placed.entry.known;
            let line = listed.as_ref().and_then(|lines| lines.get(&placed.number));
            let is_same = |line| difference(Some(known), line) == Difference::None;
            if line.is_some_and(is_same) {
                continue;
            }
            raise(stores, &placed).await?;
        }
        Ok(listed.is_some())
    }

    /// Whether Gitea does not know the repository. That alone proves nothing yet.
    async fn is_gone(&mut self, repository_id: i64) -> Result<bool, RepairError> {
        if self.there.contains(&repository_id) {
            return Ok(false);
        }
        match self.context.client.repository(repository_id).await {
            Err(ApiError::NotFound { is_giteas }) => return Ok(is_giteas),
            Ok(_) => {}
            // The token may read issues alone, or this repository is broken.
            Err(error) if is_of_one(&error) => {}
            Err(error) => return Err(error.into()),
        }
        self.there.insert(repository_id);
        Ok(false)
    }

    /// Those of `entries`, which are of one repository, that its list of open issues holds, by number.
    /// None if asking for each of them is less work, or if the list cannot be had.
    async fn list(
        &self,
        entries: &[Placed],
    ) -> Result<Option<HashMap<u64, IssueLine>>, RepairError> {
        let Some(placed) = entries.first() else { return Ok(None) };
        let Some((owner, name, _)) = placed.entry.known.place() else { return Ok(None) };
        let wanted: HashSet<u64> = entries.iter().map(|placed| placed.number).collect();
        let mut lines = HashMap::new();
        let mut is_another = false;
        for page in 1.. {
            let query =
                IssueQuery { state: StateFilter::Open, page, limit: PAGE, ..IssueQuery::default() };
            let request = self.context.client.repository_issues(owner, name, &query, |line| {
                is_another |= line.repository.id != placed.repository_id;
                if wanted.contains(&line.number) {
                    lines.insert(line.number, line);
                }
            });
            let answer = match request.await {
                Ok(answer) => answer.value,
                // Each issue's own answer tells more.
                Err(error) if is_of_one(&error) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let total = answer.total.unwrap_or(u64::MAX);
            let pages = total.div_ceil(answer.received.max(1));
            if is_another || (page == 1 && pages > wanted.len() as u64) {
                return Ok(None);
            }
            let is_found = lines.len() == wanted.len();
            if is_found || answer.received == 0 || u64::from(page) >= pages {
                break;
            }
        }
        Ok(Some(lines))
    }
}

/// Whether a failure is one of this repository, so that the others can be asked for.
fn is_of_one(error: &ApiError) -> bool {
    matches!(
        error,
        ApiError::NotFound { .. }
            | ApiError::Forbidden { .. }
            | ApiError::Server { .. }
            | ApiError::Unexpected { .. }
            | ApiError::Unreadable(_)
            | ApiError::TooLarge { .. }
    )
}

/// Raises the question about a known issue.
async fn raise(stores: &Stores, placed: &Placed) -> Result<(), QuestionError> {
    let is_in_doubt = placed.entry.known.in_doubt;
    let cause = if is_in_doubt { SyncCause::Doubt } else { SyncCause::Repair };
    match placed.question(cause) {
        Some(question) => question.raise_if_none_waits(&stores.states.session).await,
        None => Ok(()),
    }
}
