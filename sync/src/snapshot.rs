//! Makes the event of what Gitea's API says.

use contract::{
    event::{
        Act, ActKind, Action, Delivery, EVENT_VERSION, Issue, IssueEvent, Repository, State,
        SyncCause, Synced, User,
    },
    issue_state::Lifecycle,
    timestamp::Timestamp,
};
use gitea::{IssueLine, TimelineEntry, TimelineKind};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{difference::state, states::Entry};

/// Acts of a timeline that an event holds at most.
const MAX_ACTS: usize = 64;

/// What an event is made from, beside the issue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) cause: SyncCause,
    /// The entry that was read before Gitea was asked.
    pub(crate) entry: Option<&'a Entry>,
    pub(crate) raised_by: Option<&'a str>,
    pub(crate) answered_at: Option<OffsetDateTime>,
    /// Whether the first sweep found it.
    pub(crate) history: bool,
    /// `GITEA_URL`.
    pub(crate) source: &'a str,
}

/// The event of an issue as Gitea has it. `body` is None where it was not read; `cut` says that it is
/// not whole.
pub(crate) fn of_issue(
    asked: Asked<'_>,
    line: &IssueLine,
    body: Option<(&str, bool)>,
    timeline: &[TimelineEntry],
) -> IssueEvent {
    let acts = acts(timeline);
    let known = asked.entry.and_then(Entry::last_event);
    let known = known.filter(|event| event.repository.id == line.repository.id);
    let (owner, name) = (line.repository.owner.clone(), line.repository.name.clone());
    let url = repository_url(&line.html_url)
        .unwrap_or_else(|| format!("{}/{owner}/{name}", asked.source));
    let repository = Repository {
        id: line.repository.id,
        clone_url: format!("{url}.git"),
        default_branch: known.map(|k| k.repository.default_branch.clone()).unwrap_or_default(),
        url,
        owner,
        name,
    };
    let issue = Issue {
        id: line.id,
        number: line.number,
        title: line.title.clone(),
        body: body.map(|(text, _)| text.to_owned()).unwrap_or_default(),
        url: line.html_url.clone(),
        state: state(line),
        assignees: line.assignees.iter().map(user).collect(),
        labels: line.labels.clone(),
        milestone: line.milestone.clone(),
        author: user(&line.author),
        created_at: line.created_at.map(timestamp),
        updated_at: line.updated_at.map(timestamp),
        closed_at: line.closed_at.map(timestamp),
        due_date: line.due_date.map(timestamp),
    };
    let cut = body.is_none_or(|(_, cut)| cut);
    event(asked, issue, repository, acts, cut)
}

/// The event of an issue that is not there any more, as it was last known. None if nothing is known.
pub(crate) fn of_gone(
    asked: Asked<'_>,
    (repository_id, owner, name, number): (i64, &str, &str, u64),
) -> Option<IssueEvent> {
    let entry = asked.entry.filter(|entry| !entry.known.delivery_id.is_empty())?;
    let url = format!("{}/{owner}/{name}", asked.source);
    let (issue, repository) = match entry.last_event() {
        Some(event) => (event.issue.clone(), event.repository.clone()),
        None => {
            let issue = Issue {
                id: entry.known.issue_id,
                number,
                title: entry.known.title.clone(),
                body: String::new(),
                url: format!("{url}/issues/{number}"),
                state: match entry.known.state {
                    Lifecycle::Open => State::Open,
                    Lifecycle::Closed | Lifecycle::Deleted | Lifecycle::Other => State::Closed,
                },
                assignees: Vec::new(),
                labels: Vec::new(),
                milestone: None,
                author: nobody(),
                created_at: None,
                updated_at: entry.known.updated_at,
                closed_at: None,
                due_date: None,
            };
            let repository = Repository {
                id: repository_id,
                owner: owner.to_owned(),
                name: name.to_owned(),
                clone_url: format!("{url}.git"),
                default_branch: String::new(),
                url,
            };
            (issue, repository)
        }
    };
    Some(event(Asked { cause: SyncCause::Gone, ..asked }, issue, repository, Vec::new(), true))
}

fn event(
    asked: Asked<'_>,
    issue: Issue,
    repository: Repository,
    acts: Vec<Act>,
    cut: bool,
) -> IssueEvent {
    let known = asked.entry.map(|entry| entry.known.delivery_id.clone()).unwrap_or_default();
    let digest = digest(asked.cause, &issue);
    // An act from before what is known is no reason of a difference, as of one that leaves no trace.
    let known_at = asked.entry.and_then(|entry| entry.known.updated_at);
    let since = known_at.map(|at| issue.updated_at.map_or(at, |changed| changed.min(at)));
    let new = acts.iter().filter(|act| act.at >= since);
    let sender = new.max_by_key(|act| act.at).map_or_else(nobody, |act| act.by.clone());
    let id = delivery_id(repository.id, issue.number, &known, &digest);
    IssueEvent {
        version: EVENT_VERSION,
        delivery: Delivery {
            id: id.to_string(),
            received_at: Timestamp::now(),
            body_sha256: hex::encode(digest),
            hook: None,
        },
        action: Action::Synced,
        issue,
        repository,
        sender,
        commit_id: None,
        changes: None,
        cut,
        synced: Some(Box::new(Synced {
            cause: asked.cause,
            known,
            answered_at: asked.answered_at.map(timestamp),
            raised_by: asked.raised_by.map(str::to_owned),
            history: asked.history,
            acts,
        })),
    }
}

/// What subscribers are told where Gitea does not say who it was.
fn nobody() -> User {
    User { id: 0, login: String::new() }
}

/// SHA-256 of what is compared. It stands for the bytes of an answer, which hold much that is not.
fn digest(cause: SyncCause, issue: &Issue) -> [u8; 32] {
    let mut people: Vec<i64> = issue.assignees.iter().map(|user| user.id).collect();
    people.sort_unstable();
    let gone = cause == SyncCause::Gone;
    let updated_at = issue.updated_at.map(Timestamp::unix_micros);
    let text = format!("{gone} {people:?} {:?} {updated_at:?} {}", issue.state, issue.title);
    Sha256::digest(text).into()
}

/// The id of an answer. It follows from what was known and from what Gitea says, so that another
/// worker which finds the same difference publishes the same event.
fn delivery_id(repository_id: i64, number: u64, known: &str, digest: &[u8; 32]) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(format!("synced {repository_id} {number} {known} "));
    hash.update(digest);
    of_hash(hash.finalize().into())
}

fn of_hash(hash: [u8; 32]) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    // RFC 9562, version 8: bits of our own.
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// An id for an answer that is told once more. Where the first one did take effect, the worker finds this
/// one outrun, and nothing comes of it.
pub(crate) fn another_id(delivery: &Delivery) -> String {
    let text = format!("again {} {}", delivery.id, delivery.received_at.unix_micros());
    of_hash(Sha256::digest(text).into()).to_string()
}

/// The last act of each kind and person, in their order.
fn acts(timeline: &[TimelineEntry]) -> Vec<Act> {
    let mut acts: Vec<Act> = Vec::new();
    for entry in timeline.iter().rev() {
        let kind = match entry.kind {
            TimelineKind::Assigned => ActKind::Assigned,
            TimelineKind::Unassigned => ActKind::Unassigned,
            TimelineKind::Closed => ActKind::Closed,
            TimelineKind::Reopened => ActKind::Reopened,
        };
        let whom = entry.assignee.as_ref().map(user);
        let id = |user: &Option<User>| user.as_ref().map(|user| user.id);
        let is_there = acts.iter().any(|act| act.kind == kind && id(&act.whom) == id(&whom));
        if !is_there && acts.len() < MAX_ACTS {
            acts.push(Act { kind, whom, by: user(&entry.by), at: entry.at.map(timestamp) });
        }
    }
    acts.reverse();
    acts
}

fn user(user: &gitea::User) -> User {
    User { id: user.id, login: user.login.clone() }
}

pub(crate) fn timestamp(time: OffsetDateTime) -> Timestamp {
    Timestamp::from_unix_micros(time.unix_timestamp().saturating_mul(1_000_000))
}

/// The page of the repository of an issue: `…/acme/widgets` of `…/acme/widgets/issues/7`.
fn repository_url(issue_url: &str) -> Option<String> {
    let (url, _) = issue_url.rsplit_once("/issues/")?;
    Some(url.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use gitea::{IssueState, RepositoryRef};

    use super::*;

    pub(crate) fn line(
        repository: RepositoryRef,
        assignees: Vec<gitea::User>,
        state: IssueState,
    ) -> IssueLine {
        let at = OffsetDateTime::from_unix_timestamp(1_795_477_502).ok();
        IssueLine {
            id: 11,
            number: 7,
            html_url: format!("http://h/{}/{}/issues/7", repository.owner, repository.name),
            api_url: String::new(),
            repository,
            title: "t".into(),
            state,
            assignees,
            labels: vec!["bug".into()],
            milestone: None,
            author: gitea::User { id: 1, login: "maria".into() },
            is_pull_request: false,
            created_at: at,
            updated_at: at,
            closed_at: None,
            due_date: None,
        }
    }

    fn asked(entry: Option<&Entry>) -> Asked<'_> {
        let answered_at = OffsetDateTime::from_unix_timestamp(1_795_477_600).ok();
        let (cause, raised_by) = (SyncCause::Doubt, Some("r"));
        Asked { cause, entry, raised_by, answered_at, history: false, source: "http://h" }
    }

    fn entry(json: &str) -> Entry {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn an_answer_has_an_id_that_follows_from_what_was_known_and_what_gitea_says() {
        let repository = RepositoryRef { id: 3, owner: "acme".into(), name: "docs.site".into() };
        let user = |id, login: &str| gitea::User { id, login: login.into() };
        let here = line(repository.clone(), vec![user(4, "bot"), user(5, "tom")], IssueState::Open);
        let entry = entry(r#"{"assignees":[],"state":"open","delivery_id":"d1"}"#);
        let event = of_issue(asked(Some(&entry)), &here, Some(("text", false)), &[]);
        assert_eq!(event.issue_ref(), "acme/docs.site#7");
        assert_eq!(event.repository.clone_url, "http://h/acme/docs.site.git");
        let synced = event.synced.as_deref().expect("an answer");
        assert_eq!((synced.known.as_str(), synced.raised_by.as_deref()), ("d1", Some("r")));
        assert!(!event.cut && event.issue.body == "text");

        let mut turned = here.clone();
        turned.assignees.reverse();
        let again = of_issue(asked(Some(&entry)), &turned, None, &[]);
        assert!(again.cut, "without its body");
        assert_eq!(again.delivery.id, event.delivery.id);
        let closed = line(repository, vec![], IssueState::Closed);
        let others = [
            of_issue(asked(None), &here, None, &[]),
            of_issue(asked(Some(&entry)), &closed, None, &[]),
        ];
        assert!(others.iter().all(|other| other.delivery.id != event.delivery.id));
        let id = Uuid::try_parse(&event.delivery.id).expect("a UUID");
        assert_eq!(id.get_version_num(), 8);
    }

    #[test]
    fn of_a_timeline_the_last_act_of_each_kind_and_person_is_kept() {
        let user = |id| gitea::User { id, login: format!("u{id}") };
        let entry = |id, kind, by, whom: Option<i64>| TimelineEntry {
            id,
            kind,
            by: user(by),
            assignee: whom.map(user),
            at: OffsetDateTime::from_unix_timestamp(id).ok(),
        };
        let timeline = [
            entry(1, TimelineKind::Assigned, 1, Some(4)),
            entry(2, TimelineKind::Closed, 1, None),
            entry(3, TimelineKind::Assigned, 2, Some(4)),
            entry(4, TimelineKind::Assigned, 2, Some(5)),
        ];
        let found: Vec<_> = acts(&timeline)
            .into_iter()
            .map(|act| (act.kind, act.whom.map(|user| user.id), act.by.id))
            .collect();
        assert_eq!(
            found,
            [
                (ActKind::Closed, None, 1),
                (ActKind::Assigned, Some(4), 2),
                (ActKind::Assigned, Some(5), 2),
            ]
        );
        let event = of_issue(
            asked(None),
            &line(
                RepositoryRef { id: 3, owner: "a".into(), name: "b".into() },
                vec![],
                IssueState::Open,
            ),
            None,
            &timeline,
        );
        assert_eq!(event.sender.id, 2, "who acted last");
    }

    #[test]
    fn of_what_is_gone_the_last_event_is_told_or_what_little_is_known() {
        let place = (3, "acme", "widgets", 7);
        assert!(of_gone(asked(None), place).is_none());
        let marked = entry(r#"{"assignees":[],"state":"open"}"#);
        assert!(of_gone(asked(Some(&marked)), place).is_none());
        let least = entry(r#"{"assignees":["bot"],"state":"open","delivery_id":"d"}"#);
        let event = of_gone(asked(Some(&least)), place).expect("an event");
        assert_eq!(event.issue.url, "http://h/acme/widgets/issues/7");
        assert!(event.is_deletion() && event.cut);
    }
}
