//! Webhooks.

use std::{collections::BTreeMap, fmt};

use hyper::Method;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{
    answer::Answer,
    client::{Client, Question, Reading},
    error::ApiError,
    fields,
    options::Token,
    times,
};

/// Whose hooks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HookScope {
    /// Of a repository. Needs `read:repository` or `write:repository`.
    Repository {
        /// Login of its owner.
        owner: String,
        /// Its name.
        repo: String,
    },
    /// Of all repositories of an organisation. Needs `read:organization` or `write:organization`.
    Organization(String),
    /// Of all repositories of the token's own user. Needs `read:user` or `write:user`.
    User,
    /// Of all that Gitea has. Needs an administrator's `read:admin` or `write:admin`.
    System,
}

/// A webhook. Its secret is never answered.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Written")]
pub struct Hook {
    /// Number of the hook.
    pub id: i64,
    /// Its type: `gitea`, `slack` …
    pub kind: String,
    /// Where it sends to.
    pub url: String,
    /// How it sends; `None` for a form that is not known.
    pub content_type: Option<ContentType>,
    /// What it sends, sorted. `issues_only` reads back as `issues`.
    pub events: Vec<String>,
    /// Whether it sends.
    pub active: bool,
    /// Branches whose pushes it sends.
    pub branch_filter: String,
    /// When it was made.
    pub created_at: Option<OffsetDateTime>,
    /// When it was last changed.
    pub updated_at: Option<OffsetDateTime>,
    /// The header `Authorization` that it sends. An edit has to say it again.
    authorization_header: String,
}

impl Hook {
    /// The header `Authorization` that it sends, for a hook in its place.
    pub fn authorization(&self) -> Option<Token> {
        let is_set = !self.authorization_header.is_empty();
        is_set.then(|| Token::new(&*self.authorization_header))
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("content_type", &self.content_type)
            .field("events", &self.events)
            .field("active", &self.active)
            // Addresses of chats hold credentials.
            .finish_non_exhaustive()
    }
}

/// How a hook sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentType {
    /// The payload as the body.
    Json,
    /// The payload as the field of a form.
    Form,
}

/// A webhook to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewHook {
    /// Where it sends to.
    pub url: String,
    /// How it sends.
    pub content_type: ContentType,
    /// Key of its signatures.
    pub secret: Option<Token>,
    /// What it sends.
    pub events: Vec<String>,
    /// Whether it sends.
    pub active: bool,
    /// The header `Authorization` that it sends.
    pub authorization: Option<Token>,
}

/// What a webhook is to be. The secret cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookEdit {
    /// Where it sends to; `None` leaves that as it is.
    pub url: Option<String>,
    /// How it sends.
    pub content_type: ContentType,
    /// What it sends.
    pub events: Vec<String>,
    /// Whether it sends.
    pub active: bool,
}

#[derive(Deserialize)]
struct Written {
    id: i64,
    #[serde(default, rename = "type", deserialize_with = "fields::or_default")]
    kind: String,
    #[serde(default, deserialize_with = "fields::or_default")]
    config: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "fields::or_default")]
    events: Vec<String>,
    #[serde(default, deserialize_with = "fields::or_default")]
    active: bool,
    #[serde(default, deserialize_with = "fields::or_default")]
    branch_filter: String,
    #[serde(default, deserialize_with = "fields::or_default")]
    authorization_header: String,
    #[serde(default, deserialize_with = "times::optional")]
    created_at: Option<OffsetDateTime>,
    #[serde(default, deserialize_with = "times::optional")]
    updated_at: Option<OffsetDateTime>,
}

impl From<Written> for Hook {
    fn from(mut written: Written) -> Self {
        written.events.sort();
        Self {
            id: written.id,
            kind: written.kind,
            url: written.config.remove("url").unwrap_or_default(),
            content_type: match written.config.get("content_type").map(String::as_str) {
                Some("json") => Some(ContentType::Json),
                Some("form") => Some(ContentType::Form),
                _ => None,
            },
            events: written.events,
            active: written.active,
            branch_filter: written.branch_filter,
            created_at: written.created_at,
            updated_at: written.updated_at,
            authorization_header: written.authorization_header,
        }
    }
}

/// What is sent to make a hook or to change one.
#[derive(Serialize)]
struct Sent<'a> {
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    config: Config<'a>,
    events: &'a [String],
    active: bool,
    branch_filter: &'a str,
    authorization_header: &'a str,
}

#[derive(Serialize)]
struct Config<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    content_type: ContentType,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<&'a str>,
    /// Text, since all of the configuration is.
    #[serde(skip_serializing_if = "Option::is_none")]
    is_system_webhook: Option<&'static str>,
}

impl HookScope {
    fn path(&self) -> Vec<&str> {
        match self {
            Self::Repository { owner, repo } => vec!["repos", owner, repo, "hooks"],
            Self::Organization(name) => vec!["orgs", name, "hooks"],
            Self::User => vec!["user", "hooks"],
            Self::System => vec!["admin", "hooks"],
        }
    }
}

impl Client {
    /// A page of hooks, from 1. The one after the last is empty. Not all versions list all hooks of
    /// the system, and older ones list its default hooks with them.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn hooks(&self, scope: &HookScope, page: u32) -> Result<Answer<Vec<Hook>>, ApiError> {
        self.page_of_hooks(scope, page, None).await
    }

    /// A page of the default hooks, from 1. Gitea copies them to repositories that are made later,
    /// and lets them send only as such copies. The page after the last is empty. Versions that do not tell
    /// the two kinds apart answer as [`Client::hooks`] of the system. Needs an administrator's
    /// `read:admin`.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn default_hooks(&self, page: u32) -> Result<Answer<Vec<Hook>>, ApiError> {
        self.page_of_hooks(&HookScope::System, page, Some("default")).await
    }

    async fn page_of_hooks(
        &self,
        scope: &HookScope,
        page: u32,
        kind: Option<&str>,
    ) -> Result<Answer<Vec<Hook>>, ApiError> {
        let mut query = vec![("page", page.to_string()), ("limit", "50".to_owned())];
        query.extend(kind.map(|kind| ("type", kind.to_owned())));
        let mut answer = self.list(Question::get("hooks", &scope.path()).with(&query)).await?;
        // Versions that do not count the hooks of the system give all of them on every page.
        if *scope == HookScope::System && answer.total.is_none() && page > 1 {
            answer.value.clear();
        }
        Ok(answer)
    }

    /// Makes a hook.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal: [`ApiError::Unexpected`] with 422 for an address
    /// that is none. An address that Gitea may not send to is no error here.
    pub async fn create_hook(
        &self,
        scope: &HookScope,
        hook: &NewHook,
    ) -> Result<Answer<Hook>, ApiError> {
        let sent = Sent {
            kind: Some("gitea"),
            config: Config {
                url: Some(&hook.url),
                content_type: hook.content_type,
                secret: hook.secret.as_ref().map(Token::expose),
                is_system_webhook: (*scope == HookScope::System).then_some("true"),
            },
            events: &hook.events,
            active: hook.active,
            branch_filter: "",
            authorization_header: hook.authorization.as_ref().map_or("", Token::expose),
        };
        self.send_hook("create_hook", Method::POST, &scope.path(), &sent).await
    }

    /// Changes a hook. What Gitea would reset because it is not said is said again.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn edit_hook(
        &self,
        scope: &HookScope,
        hook: &Hook,
        edit: &HookEdit,
    ) -> Result<Answer<Hook>, ApiError> {
        let sent = Sent {
            kind: None,
            config: Config {
                url: edit.url.as_deref(),
                content_type: edit.content_type,
                secret: None,
                is_system_webhook: None,
            },
            events: &edit.events,
            active: edit.active,
            branch_filter: &hook.branch_filter,
            authorization_header: &hook.authorization_header,
        };
        let id = hook.id.to_string();
        let path = [&*scope.path(), &[&id]].concat();
        self.send_hook("edit_hook", Method::PATCH, &path, &sent).await
    }

    /// Deletes a hook.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn delete_hook(&self, scope: &HookScope, id: i64) -> Result<Answer<()>, ApiError> {
        let id = id.to_string();
        let path = [&*scope.path(), &[&id]].concat();
        self.act("delete_hook", Method::DELETE, &path).await
    }

    /// Lets Gitea send a push through a hook of a repository. An empty repository sends nothing.
    /// Hooks of other scopes have no test: they answer as if they were not there.
    ///
    /// # Errors
    ///
    /// If there is no answer, or it is a refusal.
    pub async fn test_hook(&self, scope: &HookScope, id: i64) -> Result<Answer<()>, ApiError> {
        let id = id.to_string();
        let path = [&*scope.path(), &[&id, "tests"]].concat();
        self.act("test_hook", Method::POST, &path).await
    }

    async fn send_hook(
        &self,
        operation: &'static str,
        method: Method,
        path: &[&str],
        sent: &Sent<'_>,
    ) -> Result<Answer<Hook>, ApiError> {
        // Text and flags always have a form in JSON.
        let body = Some(serde_json::to_vec(sent).unwrap_or_default().into());
        self.one(Question { operation, method, path, query: &[], body }).await
    }

    async fn act(
        &self,
        operation: &'static str,
        method: Method,
        path: &[&str],
    ) -> Result<Answer<()>, ApiError> {
        let question = Question { operation, method, path, query: &[], body: None };
        self.ask(question, Reading::Status, &mut |_| Ok(())).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::responder::{Reply, Responder};

    const CREATED: &[u8] = include_bytes!("../fixtures/hook-create-repo.body");
    const LISTED: &[u8] = include_bytes!("../fixtures/hooks-of-repo.body");
    const RESET: &[u8] = include_bytes!("../fixtures/hook-patch-without-events.body");

    fn scopes() -> [(HookScope, &'static str); 4] {
        let repository =
            HookScope::Repository { owner: "acme".to_owned(), repo: "docs.site".to_owned() };
        [
            (repository, "repos/acme/docs.site/hooks"),
            (HookScope::Organization("acme".to_owned()), "orgs/acme/hooks"),
            (HookScope::User, "user/hooks"),
            (HookScope::System, "admin/hooks"),
        ]
    }

    fn new_hook() -> NewHook {
        NewHook {
            url: "http://127.0.0.1:8000/webhook/gitea".to_owned(),
            content_type: ContentType::Json,
            secret: Some(Token::new("s3cr3t")),
            events: vec!["issues_only".to_owned(), "issue_assign".to_owned()],
            active: true,
            authorization: None,
        }
    }

    #[tokio::test]
    async fn hooks_are_listed() {
        for (scope, path) in scopes() {
            let gitea = Responder::of(200, LISTED).await;
            let hooks = gitea.client().hooks(&scope, 1).await.unwrap().value;
            assert_eq!(gitea.lines(), [format!("GET /api/v1/{path}?page=1&limit=50")]);
            let [hook] = &hooks[..] else { panic!("{hooks:?}") };
            assert_eq!((hook.id, hook.kind.as_str(), hook.active), (1, "gitea", true));
            assert_eq!(hook.url, "http://127.0.0.1:8000/webhook/gitea");
            assert_eq!(hook.content_type, Some(ContentType::Json));
            assert_eq!(hook.events.len(), 14);
            assert!(hook.events.is_sorted() && hook.created_at < hook.updated_at);
        }
    }

    #[tokio::test]
    async fn paging_ends_where_old_versions_repeat_themselves() {
        let gitea = Responder::of(200, LISTED).await;
        assert_eq!(gitea.client().hooks(&HookScope::System, 2).await.unwrap().value, []);
        let counting =
            Responder::start(|_| Reply::new(200, LISTED).with("X-Total-Count", "51")).await;
        assert_eq!(counting.client().hooks(&HookScope::System, 2).await.unwrap().value.len(), 1);
    }

    #[tokio::test]
    async fn a_hook_is_made() {
        for (scope, path) in scopes() {
            let gitea = Responder::of(201, CREATED).await;
            let hook = gitea.client().create_hook(&scope, &new_hook()).await.unwrap().value;
            assert_eq!((hook.id, hook.active), (6, true));
            assert_eq!(hook.events, ["issue_assign", "issues"]);
            let asked = &gitea.asked()[0];
            assert_eq!(asked.line, format!("POST /api/v1/{path}"));
            assert_eq!(asked.headers["content-type"], "application/json");
            let sent: Value = serde_json::from_slice(&asked.body).unwrap();
            let mut expected = json!({
                "type": "gitea", "active": true, "events": ["issues_only", "issue_assign"],
                "branch_filter": "", "authorization_header": "",
                "config": {
                    "url": "http://127.0.0.1:8000/webhook/gitea", "content_type": "json",
                    "secret": "s3cr3t",
                },
            });
            if scope == HookScope::System {
                expected["config"]["is_system_webhook"] = json!("true");
            }
            assert_eq!(sent, expected);
        }
        assert!(!format!("{:?}", new_hook()).contains("s3cr3t"));
    }

    #[tokio::test]
    async fn an_edit_says_again_what_would_be_reset() {
        let gitea = Responder::of(200, RESET).await;
        let (scope, path) = &scopes()[0];
        let body = br#"{"id":6,"type":"gitea","active":false,"events":null,"config":{"url":"http://h","content_type":"form"},"branch_filter":"main","authorization_header":"Bearer hidden"}"#;
        let hook: Hook = serde_json::from_slice(body).unwrap();
        assert!(!format!("{hook:?}").contains("hidden"));
        let new = NewHook { authorization: hook.authorization(), ..new_hook() };
        assert!(!format!("{new:?}").contains("hidden"));
        gitea.client().create_hook(scope, &new).await.unwrap();
        let sent: Value = serde_json::from_slice(&gitea.asked()[0].body).unwrap();
        assert_eq!(sent["authorization_header"], "Bearer hidden");
        let edit = HookEdit {
            url: None,
            content_type: ContentType::Json,
            events: vec!["issues_only".to_owned()],
            active: true,
        };
        let edited = gitea.client().edit_hook(scope, &hook, &edit).await.unwrap().value;
        assert_eq!(edited.events, ["push"]);
        let asked = &gitea.asked()[1];
        assert_eq!(asked.line, format!("PATCH /api/v1/{path}/6"));
        let sent: Value = serde_json::from_slice(&asked.body).unwrap();
        let expected = json!({
            "active": true, "events": ["issues_only"], "branch_filter": "main",
            "authorization_header": "Bearer hidden", "config": {"content_type": "json"},
        });
        assert_eq!(sent, expected);
        let edit = HookEdit { url: Some("http://elsewhere".to_owned()), ..edit };
        gitea.client().edit_hook(scope, &hook, &edit).await.unwrap();
        let sent: Value = serde_json::from_slice(&gitea.asked()[2].body).unwrap();
        let config = json!({"content_type": "json", "url": "http://elsewhere"});
        assert_eq!(sent["config"], config);
    }

    #[tokio::test]
    async fn default_hooks_are_asked_for_by_their_kind() {
        let gitea = Responder::of(200, LISTED).await;
        assert_eq!(gitea.client().default_hooks(1).await.unwrap().value.len(), 1);
        assert_eq!(gitea.lines(), ["GET /api/v1/admin/hooks?page=1&limit=50&type=default"]);
        assert_eq!(gitea.client().default_hooks(2).await.unwrap().value, []);
    }

    #[tokio::test]
    async fn a_hook_is_tested_and_deleted() {
        let gitea = Responder::of(204, b"").await;
        let (scope, path) = &scopes()[0];
        gitea.client().test_hook(scope, 6).await.unwrap();
        gitea.client().delete_hook(scope, 6).await.unwrap();
        let expected = [format!("POST /api/v1/{path}/6/tests"), format!("DELETE /api/v1/{path}/6")];
        assert_eq!(gitea.lines(), expected);
    }
}
