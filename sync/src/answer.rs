//! Asks Gitea about one issue, and publishes what differs from what is known.
//!
//! The order is what makes the answer right: the issue's entry is read first, then Gitea is asked. The
//! event names the delivery that the entry had, and the worker takes it only if that is still the
//! last one.

use std::time::{Duration, Instant};

use contract::{
    event::{IssueEvent, SyncCause},
    issue_state::KnownIssue,
};
use gitea::{Answer, ApiError, Issue};
use service::{causes::Causes, question::Question};
use thiserror::Error;
use time::OffsetDateTime;
use tracing::debug;

use crate::{
    context::Context,
    difference::{Difference, difference},
    entries::EntryError,
    listed::{self, Wanted},
    missed,
    publish::{self, EventError},
    shown::ShownError,
    snapshot::{self, Asked},
    states::{Entry, StateError, States},
};

/// How long before the last known second a burst may have begun.
const BURST_SECS: i64 = 600;
/// How long to wait where the second of the issue's last change is not over by Gitea's clock. What
/// follows within that second could not be told from what the answer holds.
const SECOND: Duration = Duration::from_millis(1100);

/// What came of a question.
#[derive(Debug)]
pub enum Answered {
    /// Gitea says what is known.
    Same,
    /// It differs, and the event that says so is published, unless only a look was asked for.
    Differs(Box<Found>),
    /// Gitea says that it is not there, of a repository that it never showed to this token.
    Unseen,
    /// Gitea says that it is not there. That alone proves nothing.
    Missing(Box<Missing>),
}

/// A difference.
#[derive(Debug)]
pub struct Found {
    /// What was known. None if the issue was never seen.
    pub known: Option<KnownIssue>,
    /// The event with what Gitea says.
    pub event: IssueEvent,
}

/// An issue that Gitea does not show.
#[derive(Debug)]
pub struct Missing {
    entry: Option<Entry>,
    asked_at: Instant,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AnswerError {
    /// Gitea, or what is between.
    #[error("ask Gitea about an issue")]
    Gitea(#[from] ApiError),
    /// A 404 that is not Gitea's own.
    #[error("something before Gitea answers 404")]
    NotGiteas,
    /// A 404 for an issue that is there.
    #[error("Gitea lists an issue, and does not show it")]
    Listed,
    /// The answer is so old that another worker may have asked since: this one was suspended.
    #[error("an answer of Gitea came too late to be told")]
    Late,
    /// What the jobs keep.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The issue's entry.
    #[error(transparent)]
    State(#[from] StateError),
    /// The event.
    #[error(transparent)]
    Event(#[from] EventError),
}

impl From<ShownError> for AnswerError {
    fn from(error: ShownError) -> Self {
        match error {
            ShownError::Entry(error) => error.into(),
            ShownError::Gitea(error) => error.into(),
        }
    }
}

/// Whether what differs is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Publish,
    /// It is, also if the stream has had the same event within its dedup window: what that led to may be
    /// lost.
    PublishAgain,
    /// Only a look.
    Look,
}

/// Answers a question.
///
/// # Errors
/// If Gitea or the broker fails. Nothing is known then.
pub async fn answer(
    context: &Context,
    states: &States,
    question: &Question,
    mode: Mode,
) -> Result<Answered, AnswerError> {
    let (repository_id, number) = (question.repository_id, question.number);
    for attempt in 0.. {
        let asked_at = Instant::now();
        let entry = states.get(repository_id, number).await?;
        let issue = match find(context, question, entry.as_ref()).await? {
            Place::Found(issue) => issue,
            Place::Hidden => return Ok(Answered::Same),
            Place::Missing if !context.was_shown(states, repository_id).await? => {
                return Ok(Answered::Unseen);
            }
            Place::Missing => {
                return Ok(Answered::Missing(Box::new(Missing { entry, asked_at })));
            }
        };
        let Answer { value: issue, date, .. } = *issue;
        match mode {
            Mode::Publish | Mode::PublishAgain => {
                context.note_shown(states, repository_id).await?;
            }
            Mode::Look => context.shown.remember(repository_id),
        }
        let known = entry.as_ref().map(|entry| &entry.known);
        if difference(known, &issue.line) == Difference::None {
            return Ok(Answered::Same);
        }
        let is_open_second =
            matches!((issue.line.updated_at, date), (Some(at), Some(now)) if at >= now);
        // Gitea's clock may have been set back, so this is no condition.
        if is_open_second && attempt == 0 && mode != Mode::Look {
            tokio::time::sleep(SECOND).await;
            continue;
        }
        let timeline = timeline(context, &issue, known).await?;
        let asked = Asked {
            cause: question.cause,
            entry: entry.as_ref(),
            raised_by: question.raised_by.as_deref(),
            answered_at: date,
            history: false,
            source: &context.source,
        };
        let body = Some((issue.body.as_str(), issue.body_cut));
        let event = snapshot::of_issue(asked, &issue.line, body, &timeline);
        let known = entry.map(|entry| entry.known);
        if context.is_late(asked_at) {
            return Err(AnswerError::Late);
        }
        return tell(context, states, question, mode, Found { known, event }).await;
    }
    Ok(Answered::Same)
}

/// Tells that an issue is gone, once that is certain.
///
/// # Errors
/// If Gitea or the broker fails.
pub async fn tell_gone(
    context: &Context,
    states: &States,
    question: &Question,
    missing: Missing,
    mode: Mode,
) -> Result<Answered, AnswerError> {
    if context.is_late(missing.asked_at) {
        return Err(AnswerError::Late);
    }
    let asked = Asked {
        cause: SyncCause::Gone,
        entry: missing.entry.as_ref(),
        raised_by: question.raised_by.as_deref(),
        answered_at: None,
        history: false,
        source: &context.source,
    };
    let Question { repository_id, owner, repository, number, .. } = question;
    let place = (*repository_id, owner.as_str(), repository.as_str(), *number);
    match snapshot::of_gone(asked, place) {
        Some(event) => {
            let known = missing.entry.map(|entry| entry.known);
            tell(context, states, question, mode, Found { known, event }).await
        }
        None => Ok(Answered::Same),
    }
}

impl Missing {
    /// Whether its end would have to be told: something is known, and not that it has ended.
    pub fn matters(&self) -> bool {
        self.entry.as_ref().is_some_and(|entry| {
            let known = &entry.known;
            !known.delivery_id.is_empty()
                && known.state != contract::issue_state::Lifecycle::Deleted
        })
    }
}

async fn tell(
    context: &Context,
    states: &States,
    question: &Question,
    mode: Mode,
    mut found: Found,
) -> Result<Answered, AnswerError> {
    if mode != Mode::Look {
        let in_trace = question.raised_by.is_some();
        let publish = |event| publish::publish(context, &states.session, event, in_trace);
        let mut is_new = publish(found.event.clone()).await?;
        if !is_new && mode == Mode::PublishAgain {
            found.event.delivery.id = snapshot::another_id(&found.event.delivery);
            is_new = publish(found.event.clone()).await?;
        }
        if is_new {
            context.instruments.told(&found.event);
        }
    }
    Ok(Answered::Differs(Box::new(found)))
}

/// Where an issue is.
enum Place {
    Found(Box<Answer<Issue>>),
    /// Its repository shows no issues at present. They are kept, and come back.
    Hidden,
    Missing,
}

/// The issue, wherever its repository is now.
async fn find(
    context: &Context,
    question: &Question,
    entry: Option<&Entry>,
) -> Result<Place, AnswerError> {
    let number = question.number;
    let place = entry.and_then(|entry| entry.known.place());
    let (owner, name) = place
        .map_or((question.owner.as_str(), question.repository.as_str()), |(owner, name, _)| {
            (owner, name)
        });
    let is_ours = |found: &Answer<Issue>| found.value.line.repository.id == question.repository_id;
    if let Some(found) = ask(context, owner, name, number).await?
        && is_ours(&found)
    {
        return Ok(Place::Found(Box::new(found)));
    }
    // The repository may have a new name or owner, and its old name may be another's.
    let request = context.client.repository(question.repository_id);
    let repository = match request.await {
        Ok(found) => found.value,
        Err(ApiError::NotFound { is_giteas: true }) => return Ok(Place::Missing),
        Err(ApiError::NotFound { is_giteas: false }) => return Err(AnswerError::NotGiteas),
        // The token may read issues alone. Gitea redirects from former names, as long as nobody else
        // has them. A repository that shows no list, or another one, may be there.
        Err(ApiError::Forbidden { .. }) => {
            return listed_or_missing(context, question, (owner, name), false).await;
        }
        Err(error) => return Err(error.into()),
    };
    if !repository.has_issues {
        return Ok(Place::Hidden);
    }
    let (owner_now, name_now) = (repository.owner.login.as_str(), repository.name.as_str());
    if (owner_now, name_now) != (owner, name) {
        let found = ask(context, owner_now, name_now, number).await?;
        if let Some(found) = found.filter(is_ours) {
            return Ok(Place::Found(Box::new(found)));
        }
    }
    listed_or_missing(context, question, (owner_now, name_now), true).await
}

/// An issue that Gitea does not show, of a repository that it does not deny, is missing only if the
/// repository's list has a place for it and leaves it out.
async fn listed_or_missing(
    context: &Context,
    question: &Question,
    (owner, repository): (&str, &str),
    is_named: bool,
) -> Result<Place, AnswerError> {
    let Question { repository_id, number, .. } = *question;
    let wanted = Wanted { owner, repository, repository_id, number, is_named };
    match listed::is_listed(context, wanted).await? {
        Some(true) => Err(AnswerError::Listed),
        Some(false) => Ok(Place::Missing),
        None => Ok(Place::Hidden),
    }
}

async fn ask(
    context: &Context,
    owner: &str,
    name: &str,
    number: u64,
) -> Result<Option<Answer<Issue>>, AnswerError> {
    let request = context.client.issue(owner, name, number);
    match request.await {
        Ok(found) => Ok(Some(found)),
        Err(ApiError::NotFound { is_giteas: true }) => Ok(None),
        Err(ApiError::NotFound { is_giteas: false }) => Err(AnswerError::NotGiteas),
        Err(error) => Err(error.into()),
    }
}

/// Who did what. Empty if Gitea cannot say it: the issue's own answer is what counts, and must not
/// wait for that. An error means that Gitea cannot be asked now.
async fn timeline(
    context: &Context,
    issue: &Issue,
    known: Option<&KnownIssue>,
) -> Result<Vec<gitea::TimelineEntry>, AnswerError> {
    let repository = &issue.line.repository;
    // What is known is of that time, but for the burst before it.
    // Where Gitea's clock was set back, its own time is older.
    let known_at = known.and_then(|known| known.updated_at).map(|at| at.unix_micros() / 1_000_000);
    let changed_at = issue.line.updated_at.map(OffsetDateTime::unix_timestamp);
    let since = known_at.map(|at| at.min(changed_at.unwrap_or(at)) - BURST_SECS);
    let since = since.and_then(missed::second);
    let (owner, name, number) = (&repository.owner, &repository.name, issue.line.number);
    let request = context.client.timeline(owner, name, number, since);
    match request.await {
        Ok(found) => Ok(found.value),
        Err(
            error @ (ApiError::Unauthorized { .. }
            | ApiError::TooManyRequests { .. }
            | ApiError::TimedOut(_)
            | ApiError::Unreachable(_)),
        ) => Err(error.into()),
        Err(error) => {
            debug!(error = %Causes(&error), "nobody is named, since the timeline cannot be read");
            Ok(Vec::new())
        }
    }
}
