//! Issues: one, and lists of many.

use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;

use crate::{
    answer::Answer,
    client::{Client, Question, decode},
    error::{ApiError, Unreadable},
    fields, times,
    users::User,
};

/// Bytes of an issue's body that are kept.
pub const BODY_LIMIT: usize = 64 * 1024;

/// As many bytes of a string in JSON hold more than [`BODY_LIMIT`] bytes of text, however they are
/// escaped: `\u0041` is one.
const WRITTEN_BODY_LIMIT: usize = 6 * (BODY_LIMIT + 1);

/// An issue without its body.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct IssueLine {
    /// Number of the issue in all of Gitea.
    pub id: i64,
    /// Number of the issue in its repository.
    pub number: u64,
    /// Where it is.
    pub repository: RepositoryRef,
    /// Title.
    #[serde(default, deserialize_with = "fields::or_default")]
    pub title: String,
    /// Whether it is open.
    pub state: IssueState,
    /// Who is assigned.
    #[serde(default, deserialize_with = "fields::people")]
    pub assignees: Vec<User>,
    /// Names of its labels.
    #[serde(default, deserialize_with = "fields::names")]
    pub labels: Vec<String>,
    /// Title of its milestone.
    #[serde(default, deserialize_with = "fields::title")]
    pub milestone: Option<String>,
    /// Who opened it.
    #[serde(default = "User::ghost", rename = "user", deserialize_with = "fields::someone")]
    pub author: User,
    /// Its page. Newer versions name it by the address that was asked.
    #[serde(default, deserialize_with = "fields::or_default")]
    pub html_url: String,
    /// It in the API, by `ROOT_URL`.
    #[serde(default, rename = "url", deserialize_with = "fields::or_default")]
    pub api_url: String,
    /// Whether it is a pull request. Lists hold none.
    #[serde(default, rename = "pull_request", deserialize_with = "fields::is_some")]
    pub is_pull_request: bool,
    /// When it was opened.
    #[serde(default, deserialize_with = "times::optional")]
    pub created_at: Option<OffsetDateTime>,
    /// When it was last changed, to the second. Gitea's silent changes leave it as it is.
    #[serde(default, deserialize_with = "times::optional")]
    pub updated_at: Option<OffsetDateTime>,
    /// When it was closed.
    #[serde(default, deserialize_with = "times::optional")]
    pub closed_at: Option<OffsetDateTime>,
    /// When it is due.
    #[serde(default, deserialize_with = "times::optional")]
    pub due_date: Option<OffsetDateTime>,
}

/// A repository as an issue names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
pub struct RepositoryRef {
    /// Number of the repository. It stays when the name or the owner changes.
    pub id: i64,
    /// Login of its owner.
    pub owner: String,
    /// Its name.
    pub name: String,
}

/// Whether an issue is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssueState {
    /// Open.
    Open,
    /// Closed.
    Closed,
}

/// An issue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// The issue without its body.
    pub line: IssueLine,
    /// The body, or its first [`BODY_LIMIT`] bytes.
    pub body: String,
    /// Whether the body was longer.
    pub body_cut: bool,
}

impl Issue {
    fn decode(bytes: &[u8]) -> Result<Self, ApiError> {
        #[derive(Deserialize)]
        struct Written {
            #[serde(default, deserialize_with = "fields::or_default")]
            body: String,
        }
        let Written { mut body } = decode(bytes)?;
        let body_cut = body.len() > BODY_LIMIT;
        if body_cut {
            let end = (0..=BODY_LIMIT).rev().find(|end| body.is_char_boundary(*end));
            body.truncate(end.unwrap_or_default());
        }
        Ok(Self { line: decode(bytes)?, body, body_cut })
    }
}

/// Which issues are listed. Pull requests are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssueQuery {
    /// Open ones, closed ones, or all.
    pub state: StateFilter,
    /// Changed at this second or later.
    pub since: Option<OffsetDateTime>,
    /// Changed at this second or before.
    pub before: Option<OffsetDateTime>,
    /// Page, from 1. The order is that of creation, so pages shift while issues are opened.
    pub page: u32,
    /// Issues a page. Gitea clamps it to [`Limits::max_response_items`](crate::Limits).
    pub limit: u32,
    /// Login of the owner of the repositories to search. Not for the list of one repository.
    pub owner: Option<String>,
}

impl Default for IssueQuery {
    fn default() -> Self {
        Self { state: StateFilter::All, since: None, before: None, page: 1, limit: 50, owner: None }
    }
}

/// Which issues are listed, by their state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum StateFilter {
    /// Open ones and closed ones.
    All,
    /// Open ones.
    Open,
    /// Closed ones.
    Closed,
}

/// What a page of issues says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// Issues on all pages, where Gitea says it. A first page that holds fewer was not all, also
    /// where it holds fewer than the limit: Gitea clamps that.
    pub total: Option<u64>,
    /// Issues on this page.
    pub received: u64,
    /// Of these, issues that could not be read, and were passed over: one of them must not hide the
    /// others.
    pub unreadable: u64,
}

/// An issue in a list, whatever its form.
struct Listed(Option<IssueLine>);

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(Self(IssueLine::deserialize(value).ok()))
    }
}

impl IssueQuery {
    fn pairs(&self) -> Vec<(&'static str, String)> {
        let state: &str = self.state.into();
        let mut pairs = vec![
            ("type", "issues".to_owned()),
            ("state", state.to_owned()),
            ("page", self.page.to_string()),
            ("limit", self.limit.to_string()),
        ];
        pairs.extend(self.since.map(|since| ("since", times::for_query(since))));
        pairs.extend(self.before.map(|before| ("before", times::for_query(before))));
        pairs
    }
}

/// Issues of a page from which on it is another API's, or another version's, if none can be read. One that
/// cannot must not hide those of other pages.
const LEAST_UNREADABLE: u64 = 10;

impl Client {
    /// An issue. Follows the redirects of a repository or an owner with a new name. Needs
    /// `read:issue`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn issue(
        &self,
        owner: &str,
        repository: &str,
        number: u64,
    ) -> Result<Answer<Issue>, ApiError> {
        let number = number.to_string();
        let path = ["repos", owner, repository, "issues", &number];
        self.one_with(Question::get("issue", &path), WRITTEN_BODY_LIMIT, Issue::decode).await
    }

    /// A page of the issues of all repositories that the token may read. Each goes to `each` while
    /// the answer comes in, also if the answer turns out to be broken later. Needs `read:issue`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal, or breaks off.
    pub async fn search(
        &self,
        query: &IssueQuery,
        each: impl FnMut(IssueLine) + Send,
    ) -> Result<Answer<PageInfo>, ApiError> {
        let mut pairs = query.pairs();
        pairs.extend(query.owner.clone().map(|owner| ("owner", owner)));
        let question = Question::get("search", &["repos", "issues", "search"]).with(&pairs);
        self.page(question, each).await
    }

    /// A page of a repository's issues, as [`search`](Self::search).
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal, or breaks off.
    pub async fn repository_issues(
        &self,
        owner: &str,
        repository: &str,
        query: &IssueQuery,
        each: impl FnMut(IssueLine) + Send,
    ) -> Result<Answer<PageInfo>, ApiError> {
        let pairs = query.pairs();
        let path = ["repos", owner, repository, "issues"];
        self.page(Question::get("repository_issues", &path).with(&pairs), each).await
    }

    async fn page(
        &self,
        question: Question<'_>,
        mut each: impl FnMut(IssueLine) + Send,
    ) -> Result<Answer<PageInfo>, ApiError> {
        let (mut received, mut unreadable) = (0, 0);
        let counted = |Listed(issue)| {
            received += 1;
            match issue {
                Some(issue) => each(issue),
                None => unreadable += 1,
            }
        };
        let answer = self.each(question, counted).await?;
        if received >= LEAST_UNREADABLE && unreadable == received {
            // Another API, or another version of it.
            let path = "each issue of the list".to_owned();
            return Err(ApiError::Unreadable(Unreadable::Field { path }));
        }
        let total = answer.total;
        Ok(answer.map(|()| PageInfo { total, received, unreadable }))
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::responder::{Reply, Responder};

    const ISSUE: &[u8] = include_bytes!("../fixtures/issue.body");
    const WINDOW: &[u8] = include_bytes!("../fixtures/search-window.body");

    fn user(id: i64, login: &str) -> User {
        User { id, login: login.to_owned() }
    }

    /// The issues of an answer, and what it says of the page.
    async fn search(
        reply: fn() -> Reply,
        query: &IssueQuery,
    ) -> (Vec<IssueLine>, PageInfo, String) {
        let gitea = Responder::start(move |_| reply()).await;
        let mut issues = Vec::new();
        let answer = gitea.client().search(query, |issue| issues.push(issue)).await.unwrap();
        (issues, answer.value, gitea.lines().remove(0))
    }

    #[tokio::test]
    async fn an_issue_is_read() {
        let gitea = Responder::of(200, ISSUE).await;
        let issue = gitea.client().issue("acme", "widgets", 1).await.unwrap().value;
        assert_eq!(gitea.lines(), ["GET /api/v1/repos/acme/widgets/issues/1"]);
        let expected = IssueLine {
            id: 1,
            number: 1,
            repository: RepositoryRef {
                id: 1,
                owner: "acme".to_owned(),
                name: "widgets".to_owned(),
            },
            title: "Login page returns 500 after upgrade ✓ 登录".to_owned(),
            state: IssueState::Closed,
            assignees: vec![],
            labels: vec![],
            milestone: None,
            author: user(1, "maria"),
            html_url: "http://localhost:3127/acme/widgets/issues/1".to_owned(),
            api_url: "http://localhost:3127/api/v1/repos/acme/widgets/issues/1".to_owned(),
            is_pull_request: false,
            created_at: Some(datetime!(2026-11-26 11:37:44 UTC)),
            updated_at: Some(datetime!(2026-11-26 11:38:06 UTC)),
            closed_at: Some(datetime!(2026-11-26 11:38:05 UTC)),
            due_date: Some(datetime!(2027-01-15 23:59:59 UTC)),
        };
        let expected = Issue { line: expected, body: "A new body".to_owned(), body_cut: false };
        assert_eq!(issue, expected);
    }

    #[test]
    fn missing_and_null_fields_are_accepted() {
        let least =
            r#"{"id":3,"number":2,"state":"open","repository":{"id":1,"owner":"a","name":"b"}}"#;
        let nulls = r#"{"id":3,"number":2,"state":"open","repository":{"id":1,"owner":"a","name":"b"},
            "title":null,"body":null,"assignees":null,"labels":null,"milestone":null,"user":null,
            "html_url":null,"pull_request":null,"created_at":null,"due_date":null,"new":{"x":[1]}}"#;
        for json in [least, nulls] {
            let issue = Issue::decode(json.as_bytes()).unwrap();
            assert_eq!(issue.line.author, User::ghost());
            assert!(issue.line.assignees.is_empty() && issue.line.labels.is_empty());
            assert_eq!((issue.line.title.as_str(), issue.body.as_str()), ("", ""));
        }
        let full = r#"{"id":3,"number":2,"state":"open","repository":{"id":1,"owner":"a","name":"b"},
            "assignees":[{"id":3,"login":"bot"},null],"labels":[{"id":1,"name":"bug"}],
            "milestone":{"id":1,"title":"1.0"},"pull_request":{"merged":false}}"#;
        let issue = Issue::decode(full.as_bytes()).unwrap().line;
        assert_eq!(issue.assignees, [user(3, "bot")]);
        assert_eq!(
            (issue.labels, issue.milestone),
            (vec!["bug".to_owned()], Some("1.0".to_owned()))
        );
        assert!(issue.is_pull_request);
    }

    #[test]
    fn what_is_missing_is_named_and_not_what_stands_there() {
        for (json, field) in [
            (r#"{"id":3,"number":2,"state":"secret"}"#, "state"),
            (r#"{"id":3,"number":2,"state":"open","repository":{"id":"secret"}}"#, "repository.id"),
            (
                r#"{"id":3,"number":2,"state":"open","repository":{"id":1,"owner":"a","name":"b"},"assignees":[{"id":"secret"}]}"#,
                "assignees[0].id",
            ),
        ] {
            let error = Issue::decode(json.as_bytes()).unwrap_err();
            let ApiError::Unreadable(source) = &error else { panic!("{error:?}") };
            assert!(source.to_string().contains(&format!("`{field}`")), "{source}");
            assert!(!format!("{error:?} {error} {source}").contains("secret"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn pages_are_read_element_by_element() {
        let query = IssueQuery {
            since: Some(datetime!(2026-11-26 11:42 UTC)),
            before: Some(datetime!(2026-11-26 12:43:00.5 +1)),
            ..IssueQuery::default()
        };
        let reply = || Reply::new(200, WINDOW).with("X-Total-Count", "30");
        let (issues, info, line) = search(reply, &query).await;
        assert_eq!(info, PageInfo { total: Some(30), received: 30, unreadable: 0 });
        let window = query.since.unwrap()..=query.before.unwrap();
        assert!(issues.iter().all(|issue| window.contains(&issue.updated_at.unwrap())));
        let expected = "GET /api/v1/repos/issues/search?type=issues&state=all&page=1&limit=50\
            &since=2026-11-26T11%3A42%3A00Z&before=2026-11-26T11%3A43%3A00Z";
        assert_eq!(line, expected);
    }

    #[tokio::test]
    async fn an_issue_of_another_form_hides_no_other() {
        let reply = || {
            let issue = String::from_utf8_lossy(ISSUE);
            let body = format!(r#"[{issue},{{"id":"x"}},7,{issue}]"#);
            Reply::new(200, body.into_bytes()).with("X-Total-Count", "4")
        };
        let (issues, info, _) = search(reply, &IssueQuery::default()).await;
        assert_eq!((issues.len(), info.received, info.unreadable), (2, 4, 2));
        let nothing = |_| panic!("an issue");
        // One alone on its page, as sweeps mostly find it.
        let gitea = Responder::start(|_| Reply::new(200, r#"[{"id":1}]"#)).await;
        let answer = gitea.client().search(&IssueQuery::default(), nothing).await.unwrap();
        assert_eq!((answer.value.received, answer.value.unreadable), (1, 1));
        let page = format!("[{}]", [r#"{"id":1}"#; LEAST_UNREADABLE as usize].join(","));
        let gitea = Responder::start(move |_| Reply::new(200, page.clone())).await;
        let error = gitea.client().search(&IssueQuery::default(), nothing).await.unwrap_err();
        assert!(matches!(error, ApiError::Unreadable(_)), "{error}");
    }

    #[tokio::test]
    async fn a_clamped_page_tells_by_its_total() {
        let query =
            IssueQuery { limit: 1000, owner: Some("acme".to_owned()), ..IssueQuery::default() };
        let reply = || {
            let body: &[u8] = include_bytes!("../fixtures/search-first-page.body");
            Reply::new(200, body).with("X-Total-Count", "86")
        };
        let (issues, info, line) = search(reply, &query).await;
        assert_eq!(info, PageInfo { total: Some(86), received: 3, unreadable: 0 });
        assert_eq!(issues.iter().map(|issue| issue.number).collect::<Vec<_>>(), [58, 57, 56]);
        assert_eq!(issues[0].assignees, [user(3, "bot")]);
        assert!(line.contains("&limit=1000") && line.ends_with("&owner=acme"), "{line}");
    }

    #[tokio::test]
    async fn other_versions_and_empty_pages_are_read() {
        let query = IssueQuery::default();
        let reply = || {
            let body: &[u8] = include_bytes!("../fixtures/search-1.25.body");
            Reply::new(200, body)
        };
        let (issues, info, _) = search(reply, &query).await;
        assert!(!issues.is_empty());
        assert_eq!(info, PageInfo { total: None, received: issues.len() as u64, unreadable: 0 });
        for body in [include_bytes!("../fixtures/search-past-the-end.body"), &b"null\n"[..]] {
            let gitea = Responder::of(200, body).await;
            let each = |issue| panic!("{issue:?}");
            let answer = gitea.client().search(&query, each).await.unwrap();
            assert_eq!(answer.value.received, 0);
        }
    }

    #[tokio::test]
    async fn a_repository_has_pages_too() {
        let gitea = Responder::of(200, include_bytes!("../fixtures/repo-issues-page.body")).await;
        let query = IssueQuery { state: StateFilter::Open, page: 2, ..IssueQuery::default() };
        let mut numbers = Vec::new();
        let each = |issue: IssueLine| numbers.push(issue.number);
        gitea.client().repository_issues("acme", "widgets", &query, each).await.unwrap();
        assert_eq!(numbers.len(), 3);
        let expected =
            "GET /api/v1/repos/acme/widgets/issues?type=issues&state=open&page=2&limit=50";
        assert_eq!(gitea.lines(), [expected]);
    }

    #[tokio::test]
    async fn a_long_body_is_cut() {
        for (piece, count, is_cut) in [
            ("x", BODY_LIMIT, false),
            ("x", BODY_LIMIT + 1, true),
            ("\\u0041", BODY_LIMIT, false),
            ("\\u0041", BODY_LIMIT + 1, true),
            ("é", 1 << 20, true),
            ("\\ud83d\\ude00", 1 << 20, true),
        ] {
            let gitea = Responder::start(move |_| {
                let text = std::str::from_utf8(ISSUE).unwrap();
                Reply::new(200, text.replace("A new body", &piece.repeat(count)))
            })
            .await;
            let issue = gitea.client().issue("acme", "widgets", 1).await.unwrap().value;
            assert_eq!(issue.body_cut, is_cut, "{piece} {count}");
            let cut_at = BODY_LIMIT - 3..=BODY_LIMIT;
            assert!(cut_at.contains(&issue.body.len()), "{piece}: {}", issue.body.len());
        }
    }

    #[tokio::test]
    async fn a_page_with_large_bodies_is_a_stream() {
        let gitea = Responder::start(|_| {
            let issue = std::str::from_utf8(ISSUE).unwrap().trim();
            let (before, after) = issue.split_once("A new body").unwrap();
            let (before, after) = (before.to_owned(), format!("{after},"));
            let body = std::iter::repeat_n(bytes::Bytes::from("\\n<b>".repeat(1 << 10)), 205);
            let issue = move || {
                [before.clone().into()]
                    .into_iter()
                    .chain(body.clone())
                    .chain([after.clone().into()])
            };
            let issues = (0..49).flat_map(move |_| issue());
            let last = [bytes::Bytes::from(ISSUE), "]".into()];
            Reply::pieces(200, ["[".into()].into_iter().chain(issues).chain(last))
        })
        .await;
        let mut received = 0;
        let (query, client) = (IssueQuery::default(), gitea.client());
        let info = client.search(&query, |issue| {
            assert_eq!(issue.number, 1);
            received += 1;
        });
        assert_eq!(info.await.unwrap().value.received, 50);
        assert_eq!(received, 50);
    }
}
