//! Lists of issues: their filters, their order, their pages.

use std::{cmp::Reverse, collections::HashSet, ops::RangeInclusive};

use axum::http::StatusCode;
use contract::timestamp::Timestamp;

use super::{
    access::Viewer,
    reply::Refusal,
    world::{Found, Issue, World},
};

/// `max_response_items` of `/settings/api`.
pub(super) const MAX_RESPONSE_ITEMS: usize = 50;
/// `default_paging_num` of `/settings/api`.
pub(super) const DEFAULT_PAGING_NUM: usize = 30;

/// The parameters of a request.
pub(super) struct Query(Vec<(String, String)>);

/// A part of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    page: usize,
    limit: usize,
}

/// Which issues are wanted.
#[derive(Debug)]
pub(super) struct Filter {
    pub repository: Option<i64>,
    owner: Option<i64>,
    closed: Option<bool>,
    assignee: Option<i64>,
    author: Option<i64>,
    updated: RangeInclusive<i64>,
    /// Pull requests alone, of which there are none.
    pulls: bool,
    page: Page,
}

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// A parameter that is not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, value)| known == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str) -> usize {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or_default()
    }

    /// A time in seconds since 1970. What is below a second is ignored.
    pub fn time(&self, name: &str) -> Result<Option<i64>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let time = Timestamp::parse(text).map_err(|_| {
            Refusal::unprocessable(format!(
                "parsing time \"{text}\" as \"2006-01-02T15:04:05Z07:00\": \
                 cannot parse \"{text}\" as \"2006\""
            ))
        })?;
        Ok(Some(time.unix_micros().div_euclid(1_000_000)))
    }

    /// Times from `since` to `before`.
    pub fn window(&self) -> Result<RangeInclusive<i64>, Refusal> {
        let (since, before) = (self.time("since")?, self.time("before")?);
        Ok(since.unwrap_or(i64::MIN)..=before.unwrap_or(i64::MAX))
    }

    /// The page. A limit above the server's maximum is taken for the maximum.
    pub fn page(&self) -> Page {
        let limit = match self.number("limit") {
            0 => DEFAULT_PAGING_NUM,
            limit => limit.min(MAX_RESPONSE_ITEMS),
        };
        Page { page: self.number("page").max(1), limit }
    }
}

impl Page {
    /// The part of a list that is on the page.
    pub fn of<T>(self, all: &[T]) -> &[T] {
        let from = (self.page - 1).saturating_mul(self.limit).min(all.len());
        &all[from..from.saturating_add(self.limit).min(all.len())]
    }
}

impl Filter {
    /// The filter of a search in all repositories.
    pub fn of_search(world: &World, viewer: &Viewer, query: &Query) -> Result<Self, Refusal> {
        let own = |name| query.get(name).filter(|v| *v == "true").and(viewer.user).map(|u| u.id);
        let owner = match query.get("owner") {
            None => None,
            Some(owner) => Some(account(world, owner).ok_or_else(|| {
                let message = format!("user does not exist [uid: 0, name: {owner}]");
                Refusal::Message(StatusCode::BAD_REQUEST, message)
            })?),
        };
        let filter = Self::of(query)?;
        Ok(Self { owner, assignee: own("assigned"), author: own("created"), ..filter })
    }

    /// The filter of a list of a repository's issues.
    pub fn of_repository(world: &World, repository: i64, query: &Query) -> Result<Self, Refusal> {
        let named = |name| match query.get(name) {
            None => Ok(None),
            Some(login) => account(world, login).map(Some).ok_or(Refusal::NotFound),
        };
        let (assignee, author) = (named("assigned_by")?, named("created_by")?);
        Ok(Self { repository: Some(repository), assignee, author, ..Self::of(query)? })
    }

    fn of(query: &Query) -> Result<Self, Refusal> {
        Ok(Self {
            repository: None,
            owner: None,
            closed: match query.get("state") {
                Some("all") => None,
                Some("closed") => Some(true),
                _ => Some(false),
            },
            assignee: None,
            author: None,
            updated: query.window()?,
            pulls: query.get("type") == Some("pulls"),
            page: query.page(),
        })
    }

    fn takes(&self, issue: &Issue) -> bool {
        !self.pulls
            && self.updated.contains(&issue.updated)
            && self.closed.is_none_or(|closed| closed == issue.closed.is_some())
            && self.assignee.is_none_or(|user| issue.assignees.contains(&user))
            && self.author.is_none_or(|user| issue.author == user)
    }
}

impl World {
    /// A page of the issues that a filter takes and the viewer may see, and how many
    /// there are in all. The newest that was made comes first, whatever was updated.
    pub fn search(&self, viewer: &Viewer, filter: &Filter) -> (Vec<&Issue>, usize) {
        let mut found: Vec<&Issue> = match filter.repository {
            Some(id) => {
                let ids = self.repositories[&id].issues.values();
                ids.map(|id| &*self.issues[id]).filter(|issue| filter.takes(issue)).collect()
            }
            None => {
                let repositories = self.repositories.values().filter(|repository| {
                    filter.owner.is_none_or(|owner| repository.owner == owner)
                        && viewer.reads(self, repository)
                });
                let repositories: HashSet<i64> = repositories.map(|r| r.id).collect();
                let (since, before) = (*filter.updated.start(), *filter.updated.end());
                let from = (since, i64::MIN);
                let updates = self.by_update.range(from..).take_while(|(at, _)| *at <= before);
                updates
                    .map(|(_, id)| &*self.issues[id])
                    .filter(|issue| repositories.contains(&issue.repository))
                    .filter(|issue| filter.takes(issue))
                    .collect()
            }
        };
        found.sort_unstable_by_key(|issue| Reverse((issue.created, issue.id)));
        (filter.page.of(&found).to_vec(), found.len())
    }
}

fn account(world: &World, login: &str) -> Option<i64> {
    match world.find_account(login) {
        Found::Here(account) => Some(account.id),
        _ => None,
    }
}
