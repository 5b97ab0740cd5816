//! The sweep that somebody asks for: over a part of Gitea, at once, with what differs as its result.

use std::{collections::HashSet, sync::Arc, time::Duration};

use contract::{
    event::SyncCause,
    issue_state::{KnownIssue, Lifecycle},
};
use gitea::{ApiError, ClientError, IssueLine, IssueQuery, StateFilter};
use opentelemetry::global;
use service::{
    broker::{Broker, streams::StreamsSettings},
    causes::Causes,
    question::Question,
};
use thiserror::Error;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{
    answer::{self, AnswerError, Answered, Found, Mode},
    context::{Context, StoresError},
    difference::{Difference, difference},
    instruments::Instruments,
    missed::{question, second},
    presence::{Presence, PresenceError},
    settings::AccessSettings,
    states::{Placed, StateError, States},
    windows::{PAGE, Walk},
};

/// Time between the two looks at an issue that may be gone, where somebody waits for the answer.
pub const GONE_AFTER: Duration = Duration::from_secs(10);

/// Issues that could not be compared, after which no more are tried: Gitea is away.
const MAX_UNCLEAR: usize = 20;

/// The part of Gitea that is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Login of the owner of the repositories.
    pub owner: Option<String>,
    /// Name of the repository, with its owner.
    pub repository: Option<String>,
    /// Number of the issue, with its repository.
    pub number: Option<u64>,
    /// Issues that changed since then. Without it: all that Gitea has in this part.
    pub since: Option<OffsetDateTime>,
}

/// Something that was compared, for who shows the progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many issues of Gitea are compared, of so many as far as is known.
    Listed(u64, Option<u64>),
    /// So many of the issues that differed, or that Gitea did not list, are looked at, of so many.
    Looked(u64, u64),
    /// Issues that Gitea does not show are looked at again after this time.
    Waits(Duration),
}

/// What is different.
#[derive(Clone, Debug)]
pub struct Row {
    /// `owner/name#number`.
    pub issue: String,
    /// What was known. None if the issue was never seen.
    pub known: Option<KnownIssue>,
    /// What Gitea says: who is assigned, by login.
    pub assignees: Vec<String>,
    /// What Gitea says: open, closed or gone.
    pub state: Lifecycle,
    /// The id of the event that tells it.
    pub event_id: String,
}

/// Result of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What differs.
    pub rows: Vec<Row>,
    /// Issues that were compared.
    pub compared: u64,
    /// Issues that nobody had seen, with nobody assigned. They are no difference for subscribers.
    pub unknown: u64,
    /// Whether there is anything in the scope: Gitea shows it, or something is known of it.
    pub exists: bool,
    /// Issues that Gitea does not show, and that are not taken for gone, with the reason.
    pub unclear: Vec<(String, String)>,
}

impl Report {
    fn cannot_compare(&mut self, question: &Question, error: &OnDemandError) {
        self.unclear.push((question.issue_ref(), Causes(error).to_string()));
    }
}

/// Why nothing can be compared.
#[derive(Debug, Error)]
pub enum OnDemandError {
    /// The address or the token cannot be used.
    #[error("set up the client of Gitea's API")]
    Client(#[from] ClientError),
    /// The broker.
    #[error(transparent)]
    Stores(#[from] StoresError),
    /// An issue's entry.
    #[error(transparent)]
    State(#[from] StateError),
    /// Gitea.
    #[error("list issues")]
    Gitea(#[from] ApiError),
    /// One issue.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// Gitea's answer has no `Date`.
    #[error("Gitea's answer has no Date")]
    NoDate,
}

/// A comparison.
pub struct OnDemand {
    context: Context,
    presence: Presence,
    mode: Mode,
}

impl OnDemand {
    /// A comparison on `broker`. With `dry_run` nothing is published.
    ///
    /// # Errors
    /// If Gitea's address or the token cannot be used.
    pub fn new(
        broker: Broker,
        access: &AccessSettings,
        streams: &StreamsSettings,
        dry_run: bool,
    ) -> Result<Self, OnDemandError> {
        // Nobody reads the metrics of a command.
        let instruments = Arc::new(Instruments::new(&global::meter("sync")));
        let context = Context::new(broker, access, streams, instruments)?;
        let mode = if dry_run { Mode::Look } else { Mode::PublishAgain };
        Ok(Self { context, presence: Presence::default(), mode })
    }

    /// Compares all of `scope`.
    ///
    /// # Errors
    /// If Gitea or the broker fails. What was found before is told already.
    pub async fn run(
        &self,
        scope: &Scope,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<Report, OnDemandError> {
        let states = self.context.existing_states().await?;
        let mut report = Report::default();
        let mut questions = Vec::new();
        let mut same = HashSet::new();
        if scope.number.is_none() {
            self.list(&states, scope, &mut report, &mut questions, &mut same, &mut progress)
                .await?;
        }
        self.unlisted(&states, scope, &same, &mut questions).await?;
        let (mut missing, all) = (Vec::new(), questions.len() as u64);
        report.exists |= all > 0;
        let is_new =
            |question: &&Question| !same.contains(&(question.repository_id, question.number));
        report.compared += questions.iter().filter(is_new).count() as u64;
        for (n, question) in questions.into_iter().enumerate() {
            progress(Progress::Looked(n as u64, all));
            match self.look(&states, &question, false).await {
                Ok(Looked::Row(row)) => report.rows.push(row),
                Ok(Looked::Same) => {}
                Ok(Looked::Missing) => missing.push(question),
                Ok(Looked::Unclear(why)) => report.unclear.push((question.issue_ref(), why)),
                Err(error) => report.cannot_compare(&question, &error),
            }
            if report.unclear.len() >= MAX_UNCLEAR {
                return Ok(report);
            }
        }
        if !missing.is_empty() {
            progress(Progress::Waits(GONE_AFTER));
            tokio::time::sleep(GONE_AFTER).await;
        }
        let all = missing.len() as u64;
        for (n, question) in missing.into_iter().enumerate() {
            progress(Progress::Looked(n as u64, all));
            match self.look(&states, &question, true).await {
                Ok(Looked::Row(row)) => report.rows.push(row),
                Ok(Looked::Same | Looked::Missing) => {}
                Ok(Looked::Unclear(why)) => report.unclear.push((question.issue_ref(), why)),
                Err(error) => report.cannot_compare(&question, &error),
            }
            if report.unclear.len() >= MAX_UNCLEAR {
                return Ok(report);
            }
        }
        Ok(report)
    }

    /// Compares what Gitea lists. What differs becomes a question; `same` gets the others.
    async fn list(
        &self,
        states: &States,
        scope: &Scope,
        report: &mut Report,
        questions: &mut Vec<Question>,
        same: &mut HashSet<(i64, u64)>,
        progress: &mut (impl FnMut(Progress) + Send),
    ) -> Result<(), OnDemandError> {
        let since = scope.since.map_or(0, OffsetDateTime::unix_timestamp);
        let first = self.page(scope, &IssueQuery { since: scope.since, ..query() }).await?;
        let Some(first) = first else { return Ok(()) };
        report.exists = true;
        let until = first.date.ok_or(OnDemandError::NoDate)?.unix_timestamp();
        let total = first.total;
        let mut walk = Walk::new(since, until, total.unwrap_or(first.received), first.received);
        while let Some(window) = walk.window() {
            let query = IssueQuery {
                since: second(window.since),
                before: second(window.before),
                page: window.page,
                ..query()
            };
            let Some(page) = self.page(scope, &query).await? else { return Ok(()) };
            if !walk.received(page.received, page.total) {
                continue;
            }
            for line in page.lines {
                let key = (line.repository.id, line.number);
                if !same.insert(key) {
                    continue;
                }
                report.compared += 1;
                self.context.shown.remember(key.0);
                let entry = match states.get(key.0, key.1).await {
                    Ok(entry) => entry,
                    Err(error @ StateError::Decode(_)) => {
                        report.cannot_compare(&question(&line, SyncCause::Asked), &error.into());
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                match difference(entry.as_ref().map(|entry| &entry.known), &line) {
                    Difference::None => {}
                    Difference::Unknown => report.unknown += 1,
                    _ => questions.push(question(&line, SyncCause::Asked)),
                }
            }
            progress(Progress::Listed(report.compared, total));
        }
        Ok(())
    }

    /// A page of issues. None if there is no such owner or repository.
    async fn page(&self, scope: &Scope, query: &IssueQuery) -> Result<Option<Page>, OnDemandError> {
        let client = &self.context.client;
        let mut lines = Vec::new();
        let each = |line| lines.push(line);
        let answer = match (&scope.owner, &scope.repository) {
            (Some(owner), Some(name)) => client.repository_issues(owner, name, query, each).await,
            (owner, _) => {
                let query = IssueQuery { owner: owner.clone(), ..query.clone() };
                client.search(&query, each).await
            }
        };
        match answer {
            Ok(answer) => Ok(Some(Page {
                lines,
                date: answer.date,
                total: answer.value.total,
                received: answer.value.received,
            })),
            // An owner that is not there (400), or a repository.
            Err(
                ApiError::NotFound { is_giteas: true } | ApiError::Unexpected { status: 400, .. },
            ) if scope.owner.is_some() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Known issues of `scope` that Gitea did not list, and on which somebody may be at work.
    async fn unlisted(
        &self,
        states: &States,
        scope: &Scope,
        listed: &HashSet<(i64, u64)>,
        questions: &mut Vec<Question>,
    ) -> Result<(), OnDemandError> {
        // With a time, Gitea lists what changed; silent changes are not asked for.
        if scope.since.is_some() && scope.number.is_none() {
            return Ok(());
        }
        let mut revision = 1;
        let mut is_known = false;
        while let Some(found) = states.next(revision).await? {
            revision = found.revision + 1;
            let is_new = !listed.contains(&(found.repository_id, found.number));
            if !is_new || !scope.holds(&found) {
                continue;
            }
            is_known = true;
            let known = &found.entry.known;
            if known.state == Lifecycle::Deleted && scope.number.is_none() {
                continue;
            }
            questions.extend(found.question(SyncCause::Asked));
        }
        if !is_known
            && let (Some(owner), Some(name), Some(number)) =
                (&scope.owner, &scope.repository, scope.number)
        {
            match self.context.client.issue(owner, name, number).await {
                Ok(found) => questions.push(question(&found.value.line, SyncCause::Asked)),
                Err(ApiError::NotFound { is_giteas: true }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn look(
        &self,
        states: &States,
        question: &Question,
        again: bool,
    ) -> Result<Looked, OnDemandError> {
        if again && let Err(why) = self.presence.before(&self.context).await {
            return unclear(why);
        }
        let looked = Instant::now();
        let answered = answer::answer(&self.context, states, question, self.mode).await?;
        let missing = match answered {
            Answered::Same => return Ok(Looked::Same),
            Answered::Unseen => {
                let why = "its repository was never shown to this token";
                return Ok(Looked::Unclear(why.into()));
            }
            Answered::Differs(found) => return Ok(Looked::Row(row(*found))),
            Answered::Missing(missing) if !missing.matters() => return Ok(Looked::Same),
            Answered::Missing(_) if !again => return Ok(Looked::Missing),
            Answered::Missing(missing) => missing,
        };
        if let Err(why) = self.presence.since(&self.context, looked.into_std()).await {
            return unclear(why);
        }
        let told = answer::tell_gone(&self.context, states, question, *missing, self.mode).await?;
        Ok(match told {
            Answered::Differs(found) => Looked::Row(row(*found)),
            Answered::Same | Answered::Unseen | Answered::Missing(_) => Looked::Same,
        })
    }
}

/// What came of a look.
enum Looked {
    Row(Row),
    Same,
    Missing,
    Unclear(String),
}

/// A page of issues.
struct Page {
    lines: Vec<IssueLine>,
    date: Option<OffsetDateTime>,
    total: Option<u64>,
    received: u64,
}

impl Scope {
    /// Whether a known issue is part of it, by the name that its repository had last.
    fn holds(&self, placed: &Placed) -> bool {
        let Some((owner, name, number)) = placed.entry.known.place() else { return false };
        // Gitea's names differ in more than their case.
        let is = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(found))
        };
        is(&self.owner, owner)
            && is(&self.repository, name)
            && self.number.is_none_or(|wanted| wanted == number)
    }
}

fn unclear(why: PresenceError) -> Result<Looked, OnDemandError> {
    Ok(Looked::Unclear(Causes(&why).to_string()))
}

fn query() -> IssueQuery {
    IssueQuery { state: StateFilter::All, limit: PAGE, ..IssueQuery::default() }
}

fn row(found: Found) -> Row {
    let Found { known, event } = found;
    let is_gone = event.is_deletion();
    Row {
        issue: event.issue_ref(),
        known,
        assignees: if is_gone { Vec::new() } else { event.issue.assignee_logins() },
        state: if is_gone { Lifecycle::Deleted } else { event.issue.state.into() },
        event_id: event.delivery.id,
    }
}
