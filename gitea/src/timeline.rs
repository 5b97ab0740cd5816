//! An issue's timeline: who changed its assignees and its state, in which order.

use std::collections::VecDeque;

use serde::Deserialize;
use time::OffsetDateTime;

use crate::{
    answer::Answer,
    client::{Client, Question},
    error::ApiError,
    fields, times,
    users::User,
};

/// Entries of a timeline that are kept: the last ones.
pub const TIMELINE_LIMIT: usize = 256;
/// Entries a page, of any type.
const PAGE: u32 = 50;
/// Pages that are read at most.
const MAX_PAGES: u32 = 40;

/// A change of an issue's assignees or state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineEntry {
    /// Number of the entry. Later entries have greater ones.
    pub id: i64,
    /// What happened.
    pub kind: TimelineKind,
    /// Who did it.
    pub by: User,
    /// Who was assigned or unassigned, if the account still exists.
    pub assignee: Option<User>,
    /// When, to the second.
    pub at: Option<OffsetDateTime>,
}

/// What happened to an issue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimelineKind {
    /// Someone was assigned.
    Assigned,
    /// Someone was unassigned.
    Unassigned,
    /// It was closed.
    Closed,
    /// It was opened again.
    Reopened,
}

/// An entry of any type.
#[derive(Deserialize)]
struct Written {
    id: i64,
    #[serde(default, rename = "type", deserialize_with = "fields::or_default")]
    kind: String,
    #[serde(default = "User::ghost", deserialize_with = "fields::someone")]
    user: User,
    #[serde(default)]
    assignee: Option<User>,
    #[serde(default, deserialize_with = "fields::or_default")]
    removed_assignee: bool,
    #[serde(default, deserialize_with = "times::optional")]
    created_at: Option<OffsetDateTime>,
}

impl Written {
    fn entry(self) -> Option<TimelineEntry> {
        let kind = match self.kind.as_str() {
            "assignees" if self.removed_assignee => TimelineKind::Unassigned,
            "assignees" => TimelineKind::Assigned,
            "close" => TimelineKind::Closed,
            "reopen" => TimelineKind::Reopened,
            _ => return None,
        };
        let Self { id, user: by, assignee, created_at: at, .. } = self;
        Some(TimelineEntry { id, kind, by, assignee, at })
    }
}

impl Client {
    /// The changes of an issue's assignees and state, the last [`TIMELINE_LIMIT`] of them, in
    /// their order; with `since` those of that second and later. Page by page: without one Gitea gives the
    /// first 30 entries. Needs `read:issue`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal. An issue that is not there is
    /// [`ApiError::NotFound`], though Gitea answers 500: but for the message it is a failure of
    /// Gitea, and some versions show the message to administrators only.
    pub async fn timeline(
        &self,
        owner: &str,
        repository: &str,
        number: u64,
        since: Option<OffsetDateTime>,
    ) -> Result<Answer<Vec<TimelineEntry>>, ApiError> {
        let number = number.to_string();
        let path = ["repos", owner, repository, "issues", &number, "timeline"];
        let mut last = VecDeque::new();
        let mut page = 1;
        let answer = loop {
            let mut query = vec![("page", page.to_string()), ("limit", PAGE.to_string())];
            query.extend(since.map(|since| ("since", times::for_query(since))));
            let mut received = 0;
            let keep = |written: Written| {
                received += 1;
                if let Some(entry) = written.entry() {
                    if last.len() == TIMELINE_LIMIT {
                        last.pop_front();
                    }
                    last.push_back(entry);
                }
            };
            let answer = self.each(Question::get("timeline", &path).with(&query), keep).await?;
            // Gitea cuts pages before it filters them, so that one may be short before the end.
            if received < PAGE / 2 || page == MAX_PAGES {
                break answer;
            }
            page += 1;
        };
        let mut entries = Vec::from(last);
        entries.sort_by_key(|entry: &TimelineEntry| entry.id);
        Ok(answer.map(|()| entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::responder::{Reply, Responder};

    async fn timeline(status: u16, body: &'static [u8]) -> Result<Vec<TimelineEntry>, ApiError> {
        let gitea = Responder::of(status, body).await;
        let answer = gitea.client().timeline("acme", "widgets", 1, None).await;
        let line = "GET /api/v1/repos/acme/widgets/issues/1/timeline?page=1&limit=50";
        assert_eq!(gitea.lines().first().map(String::as_str), Some(line));
        answer.map(|answer| answer.value)
    }

    fn told(entries: &[TimelineEntry]) -> Vec<String> {
        let assignee = |entry: &TimelineEntry| match &entry.assignee {
            Some(user) => user.login.clone(),
            None => "-".to_owned(),
        };
        let line =
            |it: &TimelineEntry| format!("{:?} {} by {}", it.kind, assignee(it), it.by.login);
        entries.iter().map(line).collect()
    }

    #[tokio::test]
    async fn assignments_and_states_are_kept_and_the_rest_skipped() {
        let entries = timeline(200, include_bytes!("../fixtures/issue-timeline-all.body")).await;
        let entries = entries.unwrap();
        assert!(entries.is_sorted_by_key(|entry| entry.id));
        assert!(entries.iter().all(|entry| entry.at.is_some()));
        let told = told(&entries);
        assert_eq!(told, EXPECTED);
        let entries =
            timeline(200, include_bytes!("../fixtures/timeline-1.25.body")).await.unwrap();
        assert!(entries.iter().any(|entry| entry.kind == TimelineKind::Reopened));
    }

    /// What the recording's story tells.
    const EXPECTED: &[&str] = &[
        "Assigned bot by maria",
        "Assigned tom by maria",
        "Unassigned bot by maria",
        "Unassigned tom by maria",
        "Assigned bot by maria",
        "Assigned tom by maria",
        "Assigned li-wei by maria",
        "Unassigned bot by maria",
        "Unassigned tom by maria",
        "Unassigned li-wei by maria",
        "Assigned maria by maria",
        "Closed - by maria",
        "Reopened - by maria",
        "Closed - by tom",
        "Unassigned maria by maria",
    ];

    #[tokio::test]
    async fn null_is_empty_and_500_is_not_found() {
        let empty = include_bytes!("../fixtures/issue-timeline-page-empty.body");
        assert_eq!(timeline(200, empty).await.unwrap(), []);
        let error = timeline(500, include_bytes!("../fixtures/issue-timeline-missing.body")).await;
        assert!(matches!(error, Err(ApiError::NotFound { is_giteas: true })), "{error:?}");
    }

    #[tokio::test]
    async fn deleted_accounts_are_ghosts() {
        let body = br#"[{"id":7,"type":"assignees","user":null,"assignee":null,"removed_assignee":true,"created_at":"0001-01-01T00:00:00Z"},null_is_no_entry]"#;
        assert!(timeline(200, body).await.is_err());
        let body = br#"[{"id":7,"type":"assignees","user":null,"assignee":null,"removed_assignee":true,"created_at":"0001-01-01T00:00:00Z"},{"id":8,"type":null},{"id":6,"type":"close"}]"#;
        let entries = timeline(200, body).await.unwrap();
        assert_eq!(told(&entries), ["Closed - by Ghost", "Unassigned - by Ghost"]);
        assert_eq!(entries[1].at, None);
    }

    #[tokio::test]
    async fn a_long_timeline_keeps_its_end() {
        let gitea = Responder::start(|asked| {
            let page = asked.line.split("page=").nth(1).and_then(|rest| rest.split('&').next());
            let page: u32 = page.and_then(|page| page.parse().ok()).expect("a page");
            // One page is short before the end.
            let entries = (1..=if page == 3 { 30 } else { PAGE }).map(|n| {
                let text = "x".repeat(if n == 1 { 1 << 16 } else { 1 });
                format!(r#"{{"id":{},"type":"close","body":"{text}"}}"#, 100 * page + n)
            });
            let entries: Vec<String> = entries.collect();
            let body = if page > 8 { "null".into() } else { format!("[{}]", entries.join(",")) };
            Reply::new(200, body.into_bytes())
        })
        .await;
        let since = OffsetDateTime::from_unix_timestamp(0).ok();
        let answer = gitea.client().timeline("acme", "widgets", 1, since).await;
        let entries = answer.unwrap().value;
        assert_eq!((entries.len(), entries.last().map(|entry| entry.id)), (256, Some(850)));
        assert_eq!(gitea.lines().len(), 9);
        assert!(gitea.lines()[8].contains("page=9&limit=50&since=1970-01-01T00%3A00%3A00Z"));
    }
}
