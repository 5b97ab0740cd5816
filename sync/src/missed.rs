//! The sweep for what no webhook told: all that Gitea says was updated since the last complete sweep.

use std::{sync::Arc, time::Duration};

use contract::event::SyncCause;
use futures::{StreamExt, stream};
use gitea::{ApiError, IssueLine, IssueQuery, IssueState, PageInfo, StateFilter};
use serde::{Deserialize, Serialize};
use service::{
    backoff::Backoff,
    broker::refusal::Refusal,
    causes::Causes,
    question::{Question, QuestionError},
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    context::{Context, Stores, StoresError},
    difference::{Difference, difference},
    entries::{self, EntryError},
    instruments::now,
    publish::{self, EventError},
    snapshot::{self, Asked},
    states::StateError,
    windows::{PAGE, Walk},
};

/// Key of what is kept of the sweeps.
const KEY: &str = "missed";
/// Seconds before the last complete sweep that are swept again. A change has the time at which it
/// began, and may be written later.
const OVERLAP: i64 = 120;
/// Seconds by which the clock of `Date` is taken to be ahead at most.
const MOST_AHEAD: i64 = 3600;
/// Issues of a page that are compared at once.
const AT_ONCE: usize = 8;
/// Questions that may wait while a sweep raises more.
const MAX_WAITING: u64 = 10_000;
/// Pause of a sweep while more are waiting.
const PAUSE: Duration = Duration::from_secs(2);
/// Pauses while a sweep fails.
const RETRY: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(60));

/// What is kept of the sweeps. Times are seconds of Gitea's clock but for `swept_at`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// All that was updated before this second was compared.
    #[serde(default)]
    complete_until: Option<i64>,
    /// When that was so, by the clock of the worker that did it.
    #[serde(default)]
    swept_at: Option<i64>,
    /// Whose sweeps they were. Another token may see more.
    #[serde(default)]
    token_id: String,
    /// The sweep that is under way.
    #[serde(default)]
    under_way: Option<UnderWay>,
}

/// A sweep of several requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct UnderWay {
    /// The walks that are left, the first one is under way.
    walks: Vec<Part>,
    /// The second up to which all is complete at the end.
    until: i64,
    /// Whether it is the first of this Gitea.
    #[serde(default)]
    first: bool,
    /// Issues compared so far.
    #[serde(default)]
    compared: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    walk: Walk,
    /// Open issues alone.
    open: bool,
}

/// Why a sweep is not complete.
#[derive(Debug, Error)]
pub enum SweepError {
    /// There is no connection, or something is missing on the broker.
    #[error(transparent)]
    Stores(#[from] StoresError),
    /// What is kept of the sweeps.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// An issue's entry.
    #[error(transparent)]
    State(#[from] StateError),
    /// Gitea does not answer.
    #[error("list issues")]
    Gitea(#[from] ApiError),
    /// An answer without a clock, from which the next sweep could begin.
    #[error("Gitea's answer has no Date")]
    NoDate,
    /// A question could not be raised.
    #[error(transparent)]
    Question(#[from] QuestionError),
    /// An issue that is only remembered.
    #[error(transparent)]
    Event(#[from] EventError),
}

/// The sweeps of the worker that asks Gitea.
#[derive(Debug)]
pub(crate) struct Missed {
    pub(crate) context: Arc<Context>,
    pub(crate) interval: Duration,
    /// How far back the first sweep looks.
    pub(crate) history: Duration,
    /// Told when a sweep is due sooner: ingest was not there for a while.
    pub(crate) gap: Arc<Notify>,
}

impl Missed {
    /// Sweeps now, after each gap of ingest, and at the interval, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut pause = RETRY;
        loop {
            let swept = tokio::select! {
                swept = self.sweep() => swept,
                () = stop.cancelled() => return,
            };
            let failed = match swept {
                Ok(()) => {
                    self.context.trouble.over();
                    pause.reset();
                    false
                }
                // The broker's keeper says so.
                Err(SweepError::Stores(StoresError::NoConnection)) => true,
                Err(error) => {
                    let error = Causes(&error).to_string();
                    self.context.trouble.failed(&error, "the sweep for what was missed fails");
                    true
                }
            };
            let rest = async {
                if failed { pause.wait().await } else { tokio::time::sleep(self.interval).await }
            };
            tokio::select! {
                () = rest => {}
                () = self.gap.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn sweep(&self) -> Result<(), SweepError> {
        let stores = self.context.stores().await?;
        let (mut kept, mut revision) =
            entries::get::<Kept>(&stores.states, KEY).await?.unwrap_or_default();
        if kept.token_id != self.context.token_id() {
            kept = Kept { token_id: self.context.token_id().to_owned(), ..Kept::default() };
        }
        if let Some(at) = kept.swept_at {
            self.context.instruments.swept(at);
        }
        if kept.under_way.is_none() {
            match self.begin(&stores, kept.complete_until.zip(kept.swept_at)).await? {
                Begun::Complete { until } => {
                    return self.complete(&stores, revision, until, None).await;
                }
                Begun::UnderWay(begun) => kept.under_way = Some(begun),
            }
        }
        let Some(mut under_way) = kept.under_way.clone() else { return Ok(()) };
        loop {
            // Also a step that found nothing is kept: another worker goes on from here.
            kept.under_way = Some(under_way.clone());
            revision = entries::replace(&stores.states, KEY, &kept, revision).await?;
            let Some(part) = under_way.walks.first_mut() else { break };
            let Some(window) = part.walk.window() else {
                under_way.walks.remove(0);
                continue;
            };
            let query = IssueQuery {
                state: if part.open { StateFilter::Open } else { StateFilter::All },
                since: second(window.since),
                before: second(window.before),
                page: window.page,
                limit: PAGE,
                owner: None,
            };
            let (lines, page, _) = list(&self.context, &query).await?;
            if part.walk.received(page.received, page.total) {
                under_way.compared += lines.len() as u64;
                self.compare_all(&stores, lines, under_way.first).await?;
            }
        }
        let (until, compared) = (under_way.until, under_way.compared);
        self.complete(&stores, revision, until, Some(compared)).await
    }

    /// Asks for what is new. If that is one page, the sweep is complete. `last` is the second up to which
    /// all was complete, and when that was so by our clock.
    async fn begin(&self, stores: &Stores, last: Option<(i64, i64)>) -> Result<Begun, SweepError> {
        let Some((complete, swept_at)) = last else {
            self.context.shown.forget();
            return self.begin_first().await;
        };
        let mut since = complete.saturating_sub(OVERLAP).max(1);
        let (mut lines, mut page, mut until) = self.list_since(since).await?;
        let passed = now().saturating_sub(swept_at).max(0);
        let back = until.saturating_sub(passed).saturating_sub(OVERLAP).max(1);
        if back.saturating_add(OVERLAP / 2) < since {
            // Gitea's clock was set back, or went slower than ours: times since then are older.
            since = back;
            (lines, page, until) = self.list_since(since).await?;
        }
        // What is older than that is history, however it was left out.
        let history = i64::try_from(self.history.as_secs()).unwrap_or(i64::MAX);
        let first = until.saturating_sub(since) > history;
        let is_whole = page.total.map_or(page.received < PAGE.into(), |t| t <= page.received);
        if is_whole {
            self.compare_all(stores, lines, first).await?;
            return Ok(Begun::Complete { until });
        }
        let issues = page.total.unwrap_or(u64::MAX);
        let part = |since, until, issues| Part {
            walk: Walk::new(since, until, issues, page.received),
            open: false,
        };
        let mut walks = vec![part(since, until, issues)];
        if until < complete {
            // Changes from before the clock was set back are in its future.
            walks.push(part(until + 1, complete + OVERLAP, 0));
        }
        Ok(Begun::UnderWay(UnderWay { walks, until, first, compared: 0 }))
    }

    /// A page of what was updated since then.
    async fn list_since(&self, since: i64) -> Result<(Vec<IssueLine>, PageInfo, i64), SweepError> {
        let query = IssueQuery { since: second(since), limit: PAGE, ..IssueQuery::default() };
        list(&self.context, &query).await
    }

    /// The first sweep of an instance: what is open, and what changed in the last time.
    async fn begin_first(&self) -> Result<Begun, SweepError> {
        let query = IssueQuery { state: StateFilter::Open, limit: PAGE, ..IssueQuery::default() };
        let (_, page, until) = list(&self.context, &query).await?;
        let history = i64::try_from(self.history.as_secs()).unwrap_or(i64::MAX);
        let recent = until.saturating_sub(history).max(1);
        let issues = page.total.unwrap_or(page.received);
        let part = |since, until, open| Part {
            walk: Walk::new(since, until, issues, page.received),
            open,
        };
        let mut walks = vec![part(recent, until, false)];
        if recent > 1 {
            walks.push(part(0, recent - 1, true));
        }
        info!(open_issues = issues, "the first sweep of this Gitea begins");
        Ok(Begun::UnderWay(UnderWay { walks, until, first: true, compared: 0 }))
    }

    async fn complete(
        &self,
        stores: &Stores,
        revision: u64,
        until: i64,
        compared: Option<u64>,
    ) -> Result<(), SweepError> {
        let token_id = self.context.token_id().to_owned();
        let swept_at = now();
        let kept = Kept {
            complete_until: Some(known_until(until, swept_at)),
            swept_at: Some(swept_at),
            token_id,
            under_way: None,
        };
        entries::replace(&stores.states, KEY, &kept, revision).await?;
        self.context.instruments.swept(swept_at);
        if let Some(compared) = compared {
            info!(compared, "a sweep for what was missed is complete");
        }
        Ok(())
    }

    async fn compare_all(
        &self,
        stores: &Stores,
        lines: Vec<IssueLine>,
        first: bool,
    ) -> Result<(), SweepError> {
        // The stream of questions has a limit, and the oldest ones would go.
        while !lines.is_empty() && stores.questions_waiting().await? > MAX_WAITING {
            tokio::time::sleep(PAUSE).await;
        }
        let compared = stream::iter(lines).map(|line| self.compare(stores, line, first));
        let mut compared = compared.buffer_unordered(AT_ONCE);
        while let Some(result) = compared.next().await {
            result?;
        }
        Ok(())
    }

    /// Compares one issue. What differs becomes a question, so that Gitea is asked by the one path.
    async fn compare(
        &self,
        stores: &Stores,
        line: IssueLine,
        first: bool,
    ) -> Result<(), SweepError> {
        let (repository_id, number) = (line.repository.id, line.number);
        self.context.note_shown(&stores.states, repository_id).await?;
        let entry = match stores.states.get(repository_id, number).await {
            Ok(entry) => entry,
            // Of a later version, or of somebody's hand. It must not keep the sweep from all others.
            Err(error @ StateError::Decode(_)) => {
                let issue = question(&line, SyncCause::Missed).issue_ref();
                let error = format!("{issue}: {}", Causes(&error));
                self.context.trouble.failed(&error, "an issue is passed over by the sweep");
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let cause = match difference(entry.as_ref().map(|entry| &entry.known), &line) {
            Difference::None => return Ok(()),
            // Nothing is told of it, so that the list says enough.
            Difference::Unknown if first || line.state == IssueState::Open => {
                let asked = Asked {
                    cause: SyncCause::Missed,
                    entry: entry.as_ref(),
                    raised_by: None,
                    answered_at: None,
                    history: first,
                    source: &self.context.source,
                };
                let event = snapshot::of_issue(asked, &line, None, &[]);
                match publish::publish(&self.context, &stores.states.session, event, false).await {
                    Err(EventError::Publish(error)) if Refusal::of(&error).is_for_good() => {
                        let error = Causes(&error).to_string();
                        self.context.trouble.failed(&error, "an issue cannot be remembered");
                    }
                    published => {
                        published?;
                        self.context.instruments.remembered();
                    }
                }
                return Ok(());
            }
            Difference::InDoubt => SyncCause::Doubt,
            Difference::Unknown
            | Difference::UnknownAssigned
            | Difference::Back
            | Difference::Changed => SyncCause::Missed,
        };
        question(&line, cause).raise_if_none_waits(&stores.states.session).await?;
        Ok(())
    }
}

/// The second up to which a sweep is taken for complete, of that which `Date` says. What answers it may be
/// a proxy whose clock is ahead of Gitea's: what came in between would never be listed. `now` is by our
/// clock. One that is far behind has the next sweep list an hour too much.
fn known_until(date: i64, now: i64) -> i64 {
    date.min(now.max(date.saturating_sub(MOST_AHEAD)))
}

/// How a sweep begins.
enum Begun {
    /// One page held all of it.
    Complete {
        until: i64,
    },
    UnderWay(UnderWay),
}

/// The question about a listed issue.
pub(crate) fn question(line: &IssueLine, cause: SyncCause) -> Question {
    let repository = &line.repository;
    let place = (repository.id, repository.owner.as_str(), repository.name.as_str());
    Question::new(place, line.number, cause)
}

/// A page of issues of all repositories, what it says of itself, and the second of Gitea's clock.
async fn list(
    context: &Context,
    query: &IssueQuery,
) -> Result<(Vec<IssueLine>, PageInfo, i64), SweepError> {
    let mut lines = Vec::new();
    let request = context.client.search(query, |line| lines.push(line));
    let answer = request.await?;
    let date = answer.date.ok_or(SweepError::NoDate)?;
    if answer.value.unreadable > 0 {
        let error = "not of the form of an issue";
        context.trouble.failed(error, "an issue in a list cannot be read, and is passed over");
    }
    Ok((lines, answer.value, date.unix_timestamp()))
}

pub(crate) fn second(second: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(second).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_ahead_of_our_clock_leaves_no_hole() {
        for (date, now, expected) in [
            (1_000_000, 1_000_000, 1_000_000),
            (1_000_000, 1_000_500, 1_000_000),
            // A proxy, or a clock of ours that is a little behind.
            (1_000_600, 1_000_000, 1_000_000),
            // A clock of ours that is a year behind.
            (1_000_000, 0, 996_400),
            (i64::MIN, 0, i64::MIN),
        ] {
            assert_eq!(known_until(date, now), expected, "{date} {now}");
        }
    }
}
