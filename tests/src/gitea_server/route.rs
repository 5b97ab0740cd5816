//! Which of the API's endpoints a request is for.

use axum::http::Method;
use percent_encoding::percent_decode_str;

use super::requests::Kind;

/// An endpoint and what its path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Version,
    Settings,
    User,
    Search,
    RepositoryById(i64),
    Repository(FullName),
    RepositoryIssues(FullName),
    Issue(FullName, u64),
    Timeline(FullName, u64),
    RepositoriesOf { owner: String, organization: bool },
    Hooks(HooksOf, HookCall),
    Unknown,
}

/// A repository's owner and name, as the path has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FullName {
    pub owner: String,
    pub name: String,
}

/// Whose hooks a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HooksOf {
    Repository(FullName),
    Organization(String),
    /// The token's own user.
    User,
    /// All of the site.
    Site,
}

/// What is to be done with hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HookCall {
    List,
    Create,
    Get(i64),
    Edit(i64),
    Delete(i64),
    Test(i64),
}

impl Route {
    /// The endpoint of a request with this method and path.
    pub fn of(method: &Method, path: &str) -> Self {
        let Some(path) = path.strip_prefix("/api/v1/") else { return Self::Unknown };
        let decoded = path.split('/').map(|part| percent_decode_str(part).decode_utf8_lossy());
        let decoded: Vec<String> = decoded.map(Into::into).collect();
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let get = *method == Method::GET;
        match parts[..] {
            ["repos", owner, name, "hooks", ref rest @ ..] => {
                hooks(HooksOf::Repository(FullName::new(owner, name)), method, rest)
            }
            ["orgs", owner, "hooks", ref rest @ ..] => {
                hooks(HooksOf::Organization(owner.into()), method, rest)
            }
            ["user", "hooks", ref rest @ ..] => hooks(HooksOf::User, method, rest),
            ["admin", "hooks", ref rest @ ..] => hooks(HooksOf::Site, method, rest),
            _ if !get => Self::Unknown,
            ["version"] => Self::Version,
            ["settings", "api"] => Self::Settings,
            ["user"] => Self::User,
            ["repos", "issues", "search"] => Self::Search,
            ["repositories", id] => Self::RepositoryById(id.parse().unwrap_or_default()),
            ["repos", owner, name] => Self::Repository(FullName::new(owner, name)),
            ["repos", owner, name, "issues"] => Self::RepositoryIssues(FullName::new(owner, name)),
            ["repos", owner, name, "issues", number] => {
                Self::Issue(FullName::new(owner, name), number.parse().unwrap_or_default())
            }
            ["repos", owner, name, "issues", number, "timeline"] => {
                Self::Timeline(FullName::new(owner, name), number.parse().unwrap_or_default())
            }
            ["orgs", owner, "repos"] => {
                Self::RepositoriesOf { owner: owner.into(), organization: true }
            }
            ["users", owner, "repos"] => {
                Self::RepositoriesOf { owner: owner.into(), organization: false }
            }
            _ => Self::Unknown,
        }
    }

    /// What it is counted as.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Version => Kind::Version,
            Self::Settings => Kind::Settings,
            Self::User => Kind::User,
            Self::Search => Kind::Search,
            Self::RepositoryById(_) => Kind::RepositoryById,
            Self::Repository(_) => Kind::Repository,
            Self::RepositoryIssues(_) => Kind::RepositoryIssues,
            Self::Issue(..) => Kind::Issue,
            Self::Timeline(..) => Kind::Timeline,
            Self::RepositoriesOf { .. } => Kind::RepositoriesOf,
            Self::Hooks(..) => Kind::Hooks,
            Self::Unknown => Kind::Unknown,
        }
    }
}

impl FullName {
    fn new(owner: &str, name: &str) -> Self {
        Self { owner: owner.into(), name: name.into() }
    }
}

fn hooks(of: HooksOf, method: &Method, rest: &[&str]) -> Route {
    let id = rest.first().and_then(|id| id.parse().ok()).unwrap_or_default();
    let call = match (method.as_str(), rest) {
        ("GET", []) => HookCall::List,
        ("POST", []) => HookCall::Create,
        ("GET", [_]) => HookCall::Get(id),
        ("PATCH", [_]) => HookCall::Edit(id),
        ("DELETE", [_]) => HookCall::Delete(id),
        // Hooks of others have no test.
        ("POST", [_, "tests"]) if matches!(of, HooksOf::Repository(_)) => HookCall::Test(id),
        _ => return Route::Unknown,
    };
    Route::Hooks(of, call)
}
