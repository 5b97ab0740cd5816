//! Parses a verified payload into the typed event, or gives the reason why there is none.
//!
//! Gitea's versions differ. So unknown fields are ignored, and fields that are not needed may be
//! missing. If a needed field is missing, the refusal names it.

use std::borrow::Cow;

use contract::{
    event::{self, Action, EVENT_VERSION, IssueEvent, State},
    timestamp::Timestamp,
};
use serde::{Deserialize, Deserializer};
use strum::IntoStaticStr;
use thiserror::Error;

use super::signature::Verified;
use crate::delivery::{Delivery, Family};

/// Longest login, owner, repository name or action, in bytes. Gitea allows 40 for a login and 100
/// for a repository name. Subjects and issue states must stay within the broker's limits.
const MAX_NAME_BYTES: usize = 255;
/// Most assignees of an issue. The event must fit into a message even when its texts are cut.
const MAX_ASSIGNEES: usize = 1000;

/// Content of a verified delivery.
#[derive(Debug, PartialEq)]
pub(crate) enum Parsed {
    Event(Box<IssueEvent>),
    /// A delivery that ingest does not publish.
    Ignored(IgnoreReason),
}

/// Why a verified delivery is not published.
#[derive(Clone, Copy, Debug, IntoStaticStr, PartialEq, Eq)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum IgnoreReason {
    /// A family other than `issues`, such as a comment or a push. The test button sends a push.
    NotAnIssueEvent,
    /// An issue event about a pull request.
    PullRequest,
}

/// What is wrong with a payload, and where.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field} {problem}")]
pub(crate) struct PayloadError {
    /// A path such as `issue.assignees[1].login`, or `payload` for the whole payload.
    pub(crate) field: String,
    problem: String,
}

impl PayloadError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// Family of a delivery, from its event header.
pub(crate) fn family(event: Option<&str>) -> Result<Result<Family, IgnoreReason>, PayloadError> {
    let event = event.ok_or_else(|| missing("X-Gitea-Event"))?;
    Ok(event.parse().map_err(|_| IgnoreReason::NotAnIssueEvent))
}

/// Parses a verified payload. `delivery` holds the facts about the request itself.
pub(crate) fn parse(verified: &Verified, delivery: &Delivery) -> Result<Parsed, PayloadError> {
    read(verified.text(), delivery)
}

/// Parses a text that was verified before it was written to the journal.
pub(crate) fn read(text: &[u8], delivery: &Delivery) -> Result<Parsed, PayloadError> {
    match delivery.family {
        Family::Issues => issue_event(text, delivery.in_event()),
    }
}

fn issue_event(text: &[u8], delivery: event::Delivery) -> Result<Parsed, PayloadError> {
    let text =
        std::str::from_utf8(text).map_err(|_| PayloadError::new("payload", "is not UTF-8"))?;
    let payload: Payload<'_> = serde_json::from_str(text).map_err(|error| named(text, &error))?;
    let issue = payload.issue.ok_or_else(|| missing("issue"))?;
    if issue.pull_request.is_some() {
        return Ok(Parsed::Ignored(IgnoreReason::PullRequest));
    }
    let repository = payload.repository.ok_or_else(|| missing("repository"))?;
    let action = name("action", payload.action)?;
    Ok(Parsed::Event(Box::new(IssueEvent {
        version: EVENT_VERSION,
        delivery,
        action: Action::from(action),
        issue: issue.into_event()?,
        repository: repository.into_event()?,
        sender: payload.sender.unwrap_or_default().into_event("sender")?,
        commit_id: payload.commit_id.filter(|id| !id.is_empty()).map(Cow::into_owned),
        changes: payload.changes,
        cut: false,
        synced: None,
    })))
}

/// Names the invalid field. The path is tracked only here, because errors are rare.
fn named(text: &str, error: &serde_json::Error) -> PayloadError {
    let mut reader = serde_json::Deserializer::from_str(text);
    let path = match serde_path_to_error::deserialize::<_, Payload<'_>>(&mut reader) {
        Err(error) if !error.inner().is_syntax() && !error.inner().is_eof() => {
            error.path().to_string()
        }
        _ => ".".into(),
    };
    if let Some(key) = repeated_key(error) {
        let path = if path.starts_with('.') { key.to_owned() } else { format!("{path}.{key}") };
        return PayloadError::new(path, "is there more than once");
    }
    if path.starts_with(['.', '[']) {
        let at = format!("is not valid JSON (line {}, column {})", error.line(), error.column());
        return PayloadError::new("payload", at);
    }
    PayloadError::new(path, "has an unexpected type or value")
}

/// The key that an object holds twice. serde tells it in words alone.
fn repeated_key(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let (key, _) = text.strip_prefix("duplicate field `")?.split_once('`')?;
    Some(key.to_owned())
}

fn missing(field: &str) -> PayloadError {
    PayloadError::new(field, "is missing")
}

fn name(field: &str, value: Option<Cow<'_, str>>) -> Result<String, PayloadError> {
    match value {
        Some(name) if name.is_empty() => Err(PayloadError::new(field, "is empty")),
        Some(name) if name.len() > MAX_NAME_BYTES => {
            Err(PayloadError::new(field, "is longer than 255 bytes"))
        }
        Some(name) => Ok(name.into_owned()),
        None => Err(missing(field)),
    }
}

/// The time that decides which of two events is the newer one. A wrong order would be told as wrong
/// changes, so what cannot be read is refused.
fn version(field: &str, value: Option<Cow<'_, str>>) -> Result<Option<Timestamp>, PayloadError> {
    match value.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => match Timestamp::parse(text) {
            Ok(time) => Ok(Some(time).filter(|time| !time.is_zero())),
            Err(_) => Err(PayloadError::new(field, "is not an RFC 3339 time")),
        },
    }
}

/// A time that is only reported. One that cannot be read is no reason to lose a delivery.
#[derive(Default)]
struct ReportedTime(Option<Timestamp>);

impl<'de> Deserialize<'de> for ReportedTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let time = value.as_str().and_then(|text| Timestamp::parse(text).ok());
        Ok(Self(time.filter(|time| !time.is_zero())))
    }
}

/// The payload as Gitea writes it (modules/structs/hook.go, `IssuePayload`). All fields are
/// optional here, so that a refusal can name the missing one.
#[derive(Deserialize)]
struct Payload<'a> {
    #[serde(borrow)]
    action: Option<Cow<'a, str>>,
    #[serde(borrow)]
    issue: Option<Issue<'a>>,
    #[serde(borrow)]
    repository: Option<Repository<'a>>,
    #[serde(borrow)]
    sender: Option<User<'a>>,
    #[serde(borrow)]
    commit_id: Option<Cow<'a, str>>,
    changes: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Issue<'a> {
    id: Option<i64>,
    number: Option<u64>,
    #[serde(borrow)]
    title: Option<Cow<'a, str>>,
    #[serde(borrow)]
    body: Option<Cow<'a, str>>,
    #[serde(borrow)]
    html_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    state: Option<Cow<'a, str>>,
    #[serde(borrow)]
    assignees: Option<Vec<User<'a>>>,
    /// The first of them. Gogs and the oldest Gitea have this one alone.
    #[serde(borrow)]
    assignee: Option<User<'a>>,
    #[serde(borrow)]
    labels: Option<Vec<Label<'a>>>,
    #[serde(borrow)]
    milestone: Option<Milestone<'a>>,
    #[serde(borrow)]
    user: Option<User<'a>>,
    #[serde(default)]
    created_at: ReportedTime,
    #[serde(borrow)]
    updated_at: Option<Cow<'a, str>>,
    #[serde(default)]
    closed_at: ReportedTime,
    #[serde(default)]
    due_date: ReportedTime,
    pull_request: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct User<'a> {
    id: Option<i64>,
    #[serde(borrow)]
    login: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Label<'a> {
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Milestone<'a> {
    #[serde(borrow)]
    title: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Repository<'a> {
    id: Option<i64>,
    #[serde(borrow)]
    owner: Option<User<'a>>,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    html_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    clone_url: Option<Cow<'a, str>>,
    #[serde(borrow)]
    default_branch: Option<Cow<'a, str>>,
}

impl Issue<'_> {
    fn into_event(self) -> Result<event::Issue, PayloadError> {
        let owned = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into_owned();
        let assignees = match (self.assignees, self.assignee) {
            (Some(assignees), _) if assignees.len() > MAX_ASSIGNEES => {
                return Err(PayloadError::new("issue.assignees", "has more than 1000 entries"));
            }
            (Some(assignees), _) => assignees
                .into_iter()
                .enumerate()
                .map(|(n, user)| user.into_assignee(&format!("issue.assignees[{n}].login")))
                .collect::<Result<_, PayloadError>>()?,
            // A zero value is nobody.
            (None, Some(user)) if user.id.unwrap_or_default() == 0 => Vec::new(),
            (None, Some(user)) => vec![user.into_assignee("issue.assignee.login")?],
            (None, None) => Vec::new(),
        };
        Ok(event::Issue {
            // Gitea sends a zero-valued issue if it could not convert its own. That is not a
            // snapshot.
            id: self.id.filter(|id| *id > 0).ok_or_else(|| missing("issue.id"))?,
            number: self.number.filter(|n| *n > 0).ok_or_else(|| missing("issue.number"))?,
            title: owned(self.title),
            body: owned(self.body),
            url: owned(self.html_url),
            state: match self.state.as_deref() {
                Some("open") => State::Open,
                Some("closed") => State::Closed,
                Some(_) => {
                    return Err(PayloadError::new("issue.state", "is neither open nor closed"));
                }
                None => return Err(missing("issue.state")),
            },
            assignees,
            labels: self
                .labels
                .unwrap_or_default()
                .into_iter()
                .filter_map(|label| label.name.map(Cow::into_owned))
                .collect(),
            milestone: self.milestone.and_then(|m| m.title).map(Cow::into_owned),
            author: self.user.unwrap_or_default().into_event("issue.user")?,
            created_at: self.created_at.0,
            updated_at: version("issue.updated_at", self.updated_at)?,
            closed_at: self.closed_at.0,
            due_date: self.due_date.0,
        })
    }
}

impl User<'_> {
    /// For a user whose login decides what changed.
    fn into_assignee(self, field: &str) -> Result<event::User, PayloadError> {
        let login = name(field, self.login)?;
        Ok(event::User { id: self.id.unwrap_or_default(), login })
    }

    /// For a user who is only reported, such as the sender. The user may be missing.
    fn into_event(self, field: &str) -> Result<event::User, PayloadError> {
        let login = match self.login {
            None => String::new(),
            Some(login) if login.is_empty() => String::new(),
            login => name(&format!("{field}.login"), login)?,
        };
        Ok(event::User { id: self.id.unwrap_or_default(), login })
    }
}

impl Repository<'_> {
    fn into_event(self) -> Result<event::Repository, PayloadError> {
        let owned = |text: Option<Cow<'_, str>>| text.unwrap_or_default().into_owned();
        let owner = self.owner.ok_or_else(|| missing("repository.owner"))?;
        Ok(event::Repository {
            id: self.id.filter(|id| *id > 0).ok_or_else(|| missing("repository.id"))?,
            owner: name("repository.owner.login", owner.login)?,
            name: name("repository.name", self.name)?,
            url: owned(self.html_url),
            clone_url: owned(self.clone_url),
            default_branch: owned(self.default_branch),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn delivery() -> event::Delivery {
        event::example().delivery
    }

    fn payload() -> Value {
        json!({
            "action": "assigned",
            "number": 7,
            "issue": {
                "id": 70, "number": 7, "title": "T", "body": "B", "state": "open",
                "html_url": "http://h/acme/w/issues/7",
                "user": {"id": 1, "login": "maria"},
                "assignee": {"id": 4, "login": "bot"},
                "assignees": [{"id": 4, "login": "bot", "email": "x"}, {"id": -2, "login": "tom"}],
                "labels": [{"id": 1, "name": "bug"}],
                "milestone": {"title": "1.0"},
                "created_at": "2026-11-24T00:45:00+01:00",
                "updated_at": "2026-11-23T23:45:02Z",
                "closed_at": null, "due_date": null, "pull_request": null
            },
            "repository": {"id": 3, "name": "docs.site", "owner": {"id": 5, "login": "acme"}},
            "sender": {"id": 1, "login": "maria"},
            "commit_id": ""
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut payload = payload();
        *payload.pointer_mut(pointer).expect(pointer) = value;
        payload
    }

    fn without(parent: &str, field: &str) -> Value {
        let mut payload = payload();
        let object = payload.pointer_mut(parent).and_then(Value::as_object_mut).expect(parent);
        object.remove(field).expect(field);
        payload
    }

    fn event(payload: &Value) -> IssueEvent {
        match issue_event(payload.to_string().as_bytes(), delivery()) {
            Ok(Parsed::Event(event)) => *event,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_issue_event_is_read_as_it_is() {
        let event = event(&payload());
        assert_eq!(event.issue_ref(), "acme/docs.site#7");
        assert_eq!(event.issue.assignee_logins(), ["bot", "tom"]);
        assert_eq!(
            (event.issue.labels, event.issue.milestone),
            (vec!["bug".into()], Some("1.0".into()))
        );
        assert_eq!(
            event.issue.created_at.map(|t| t.to_string()),
            Some("2026-11-23T23:45:00Z".into())
        );
        assert_eq!((event.commit_id, event.changes), (None, None));
    }

    #[test]
    fn an_assignee_alone_is_the_only_one() {
        for (assignees, assignee, expected) in [
            (None, Some(json!({"id": 4, "login": "bot"})), &["bot"][..]),
            (Some(Value::Null), Some(json!({"id": 4, "login": "bot"})), &["bot"]),
            (Some(Value::Null), Some(Value::Null), &[]),
            (None, None, &[]),
            (Some(json!([])), Some(json!({"login": "bot"})), &[]),
            (Some(json!([{"login": "tom"}])), Some(json!({"login": "bot"})), &["tom"]),
            (Some(json!([{"login": "tom"}])), None, &["tom"]),
        ] {
            let mut payload = payload();
            let issue = payload["issue"].as_object_mut().expect("an issue");
            for (name, value) in [("assignees", assignees), ("assignee", assignee)] {
                issue.remove(name);
                issue.extend(value.map(|value| (name.to_owned(), value)));
            }
            assert_eq!(event(&payload).issue.assignee_logins(), expected, "{payload}");
        }
    }

    #[test]
    fn what_gitea_leaves_out_or_nulls_is_no_fault() {
        for (payload, check) in [
            (with("/issue/updated_at", json!("1970-01-01T00:00:00Z")), "updated"),
            (with("/issue/updated_at", json!("0001-01-01T00:00:00Z")), "updated"),
            (without("/issue", "updated_at"), "updated"),
            (without("", "sender"), "sender"),
            (with("/issue/labels", Value::Null), "labels"),
        ] {
            let event = event(&payload);
            match check {
                "updated" => assert_eq!(event.issue.updated_at, None),
                "sender" => assert_eq!(event.sender.login, ""),
                _ => assert!(event.issue.labels.is_empty()),
            }
        }
    }

    #[test]
    fn the_last_day_that_there_is_is_a_due_date_whatever_the_servers_zone() {
        let event = event(&with("/issue/due_date", json!("9999-12-31T23:59:59-05:00")));
        let due_date = event.issue.due_date.map(|time| time.to_string());
        assert_eq!(due_date.as_deref(), Some("9999-12-31T23:59:59Z"));
    }

    #[test]
    fn a_time_that_is_only_reported_is_none_if_it_cannot_be_read() {
        for field in ["created_at", "closed_at", "due_date"] {
            for value in [
                json!("soon"),
                json!("0001-01-01T00:00:00Z"),
                json!("10000-01-01T00:00:00Z"),
                json!(""),
                json!(1_764_000_000),
                json!({"at": ["x"]}),
                Value::Null,
            ] {
                let event = event(&with(&format!("/issue/{field}"), value.clone()));
                let times = [event.issue.created_at, event.issue.closed_at, event.issue.due_date];
                let expected = usize::from(field != "created_at");
                assert_eq!(times.iter().flatten().count(), expected, "{field}: {value}");
            }
        }
    }

    #[test]
    fn a_key_that_is_there_twice_is_named() {
        for (before, key, field) in [
            ("\"sender\":", "\"action\":\"closed\",", "action"),
            ("\"title\":", "\"due_date\":null,", "issue.due_date"),
            ("\"id\":4", "\"login\":\"bot\",", "issue.assignee.login"),
        ] {
            let text = payload().to_string().replacen(before, &format!("{key}{before}"), 1);
            let error = issue_event(text.as_bytes(), delivery()).expect_err(field);
            assert_eq!(error, PayloadError::new(field, "is there more than once"), "{text}");
        }
    }

    #[test]
    fn a_pull_request_is_not_an_issue() {
        let payload = with("/issue/pull_request", json!({"merged": false}));
        assert_eq!(
            issue_event(payload.to_string().as_bytes(), delivery()),
            Ok(Parsed::Ignored(IgnoreReason::PullRequest))
        );
    }

    #[test]
    fn a_bad_payload_is_refused_by_the_name_of_the_field() {
        let long = "x".repeat(256);
        for (text, field) in [
            (String::new(), "payload"),
            ("[]".into(), "payload"),
            ("{\"action\":".into(), "payload"),
            (format!("{}{}", "[".repeat(200), "]".repeat(200)), "payload"),
            ("{}".into(), "issue"),
            (without("", "issue").to_string(), "issue"),
            (with("/issue", Value::Null).to_string(), "issue"),
            (with("/repository", Value::Null).to_string(), "repository"),
            (without("", "action").to_string(), "action"),
            (with("/action", json!("")).to_string(), "action"),
            (with("/action", json!(1)).to_string(), "action"),
            (with("/action", json!(long)).to_string(), "action"),
            (with("/issue/id", json!(0)).to_string(), "issue.id"),
            (with("/issue/number", json!(0)).to_string(), "issue.number"),
            (with("/issue/number", json!(-1)).to_string(), "issue.number"),
            (with("/issue/number", json!(1e300)).to_string(), "issue.number"),
            (without("/issue", "state").to_string(), "issue.state"),
            (with("/issue/state", json!("ajar")).to_string(), "issue.state"),
            (with("/issue/updated_at", json!("soon")).to_string(), "issue.updated_at"),
            (with("/issue/assignees/1/login", json!("")).to_string(), "issue.assignees[1].login"),
            (with("/issue/assignees/0/id", json!("4")).to_string(), "issue.assignees[0].id"),
            (
                with("/issue/assignees", Value::Null).to_string().replace("bot", ""),
                "issue.assignee.login",
            ),
            (
                with("/issue/assignees", json!(vec![json!({"login": "a"}); 1001])).to_string(),
                "issue.assignees",
            ),
            (with("/repository/id", json!(0)).to_string(), "repository.id"),
            (without("/repository", "owner").to_string(), "repository.owner"),
            (with("/repository/owner/login", json!("")).to_string(), "repository.owner.login"),
            (without("/repository", "name").to_string(), "repository.name"),
        ] {
            let error = issue_event(text.as_bytes(), delivery()).expect_err(field);
            assert_eq!(error.field, field, "{error:?}");
            let message = error.to_string();
            assert!(!message.contains("ajar") && !message.contains("soon"));
        }
        let error = issue_event(b"{\"action\":\"\xff\"}", delivery()).expect_err("not UTF-8");
        assert_eq!(error.field, "payload");
    }
}
