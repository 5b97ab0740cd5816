//! The answer to each request.

use axum::{
    body::Bytes,
    http::{StatusCode, Uri},
};
use serde_json::json;

use super::{
    access::{Access, Viewer},
    hooks,
    reply::{Refusal, Reply},
    route::{FullName, Route},
    search::{DEFAULT_PAGING_NUM, Filter, MAX_RESPONSE_ITEMS, Query},
    world::{Found, Issue, Repository, World},
};

/// A request.
pub(super) struct Call {
    pub uri: Uri,
    pub route: Route,
    /// The secret of its token.
    pub secret: Option<String>,
    pub body: Bytes,
}

/// The answer to a request.
pub(super) fn answer(world: &mut World, call: &Call) -> Reply {
    let answer = match &call.route {
        Route::Hooks(of, what) => hooks::answer(world, call, of, *what),
        _ => read(world, call),
    };
    answer.unwrap_or_else(|refusal| refusal.reply(&world.root_url))
}

fn read(world: &World, call: &Call) -> Result<Reply, Refusal> {
    let viewer = &world.viewer(call.secret.as_deref())?;
    let query = Query::parse(call.uri.query());
    let ok = |json: String| Ok(Reply::json(StatusCode::OK, json));
    match &call.route {
        Route::Version => ok(json!({ "version": "development" }).to_string()),
        Route::Settings => ok(json!({
            "max_response_items": MAX_RESPONSE_ITEMS,
            "default_paging_num": DEFAULT_PAGING_NUM,
            "default_git_trees_per_page": 1000,
            "default_max_blob_size": 10_485_760,
            "default_max_response_size": 104_857_600,
        })
        .to_string()),
        Route::User => {
            viewer.needs(Access::Read, "user")?;
            ok(world.user_json(viewer.signed_in()?.id, viewer))
        }
        Route::Search => {
            viewer.needs(Access::Read, "issue")?;
            Ok(list(world, viewer, &Filter::of_search(world, viewer, &query)?))
        }
        Route::RepositoryIssues(name) => {
            viewer.needs(Access::Read, "issue")?;
            let repository = with_issues(world.visible(viewer, name, call)?)?;
            Ok(list(world, viewer, &Filter::of_repository(world, repository.id, &query)?))
        }
        Route::Issue(name, number) => {
            viewer.needs(Access::Read, "issue")?;
            let repository = with_issues(world.visible(viewer, name, call)?)?;
            let issue = world.issue_in(repository, *number).ok_or(Refusal::NotFound)?;
            ok(world.issue_json(issue, viewer))
        }
        Route::Timeline(name, number) => {
            viewer.needs(Access::Read, "issue")?;
            let repository = with_issues(world.visible(viewer, name, call)?)?;
            timeline(world, repository, *number, &query)
        }
        Route::Repository(name) => {
            viewer.needs(Access::Read, "repository")?;
            ok(world.repository_json(world.visible(viewer, name, call)?, viewer))
        }
        Route::RepositoryById(id) => {
            viewer.needs(Access::Read, "repository")?;
            let repository = world.repositories.get(id).filter(|r| viewer.reads(world, r));
            ok(world.repository_json(repository.ok_or(Refusal::NotFound)?, viewer))
        }
        Route::RepositoriesOf { owner, organization } => {
            if *organization {
                viewer.needs(Access::Read, "organization")?;
            } else {
                viewer.needs(Access::Read, "user")?;
                viewer.needs(Access::Read, "repository")?;
            }
            repositories_of(world, viewer, owner, *organization, &query, call)
        }
        Route::Hooks(..) | Route::Unknown => Err(Refusal::NotFound),
    }
}

fn with_issues(repository: &Repository) -> Result<&Repository, Refusal> {
    repository.has_issues.then_some(repository).ok_or(Refusal::NotFound)
}

fn list(world: &World, viewer: &Viewer, filter: &Filter) -> Reply {
    let (issues, total) = world.search(viewer, filter);
    let issues: Vec<String> = issues.iter().map(|issue| world.issue_json(issue, viewer)).collect();
    Reply::list(&issues, total)
}

/// Entries of a timeline that nobody asked a page of: Gitea's `DEFAULT_PAGING_NUM`.
const DEFAULT_PAGE: usize = 30;

/// The first entries, unless a page is asked for. Gitea has oddities here: a missing issue is
/// an error of the server, an empty list is `null`, and the total is that of the page.
fn timeline(
    world: &World,
    repository: &Repository,
    number: u64,
    query: &Query,
) -> Result<Reply, Refusal> {
    let issue = world.issue_in(repository, number).ok_or_else(|| {
        let message =
            format!("issue does not exist [id: 0, repo_id: {}, index: {number}]", repository.id);
        Refusal::Message(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    let window = query.window()?;
    let entries = issue.timeline.iter().filter(|entry| window.contains(&entry.at));
    let entries: Vec<String> = entries.map(|entry| world.entry_json(issue, entry)).collect();
    let entries = match query.get("page") {
        Some(_) => query.page().of(&entries),
        None => &entries[..entries.len().min(DEFAULT_PAGE)],
    };
    if entries.is_empty() {
        return Ok(Reply::json(StatusCode::OK, "null".into()).of_total(0));
    }
    Ok(Reply::list(entries, entries.len()))
}

fn repositories_of(
    world: &World,
    viewer: &Viewer,
    owner: &str,
    organization: bool,
    query: &Query,
    call: &Call,
) -> Result<Reply, Refusal> {
    let account = match world.find_account(owner) {
        Found::Here(account) if account.is_organization || !organization => account,
        Found::Moved(account) => return Err(moved_account(call, owner, &account.login)),
        Found::Here(_) | Found::Missing => return Err(Refusal::NotFound),
    };
    let repositories = world.repositories.values();
    let visible = repositories.filter(|r| r.owner == account.id && viewer.reads(world, r));
    let visible: Vec<&Repository> = visible.collect();
    let page = query.page().of(&visible).iter();
    let page: Vec<String> = page.map(|r| world.repository_json(r, viewer)).collect();
    Ok(Reply::list(&page, visible.len()))
}

impl World {
    /// The repository that a path names, if the viewer may see it.
    pub fn visible(
        &self,
        viewer: &Viewer,
        name: &FullName,
        call: &Call,
    ) -> Result<&Repository, Refusal> {
        let owner = match self.find_account(&name.owner) {
            Found::Here(owner) => owner,
            Found::Moved(owner) => return Err(moved_account(call, &name.owner, &owner.login)),
            Found::Missing => return Err(Refusal::NotFound),
        };
        match self.find_repository(owner.id, &name.name) {
            Found::Here(repository) if viewer.reads(self, repository) => Ok(repository),
            Found::Moved(repository) => {
                let old = format!("/{}/{}", name.owner, name.name);
                let new = format!("/{}", self.full_name(repository));
                Err(Refusal::Moved(StatusCode::MOVED_PERMANENTLY, location(call, &old, &new)))
            }
            Found::Here(_) | Found::Missing => Err(Refusal::NotFound),
        }
    }

    fn issue_in(&self, repository: &Repository, number: u64) -> Option<&Issue> {
        repository.issues.get(&number).map(|id| &*self.issues[id])
    }
}

/// Gitea answers a renamed account with another status than a renamed repository.
pub(super) fn moved_account(call: &Call, old: &str, new: &str) -> Refusal {
    let location = location(call, &format!("/{old}/"), &format!("/{new}/"));
    Refusal::Moved(StatusCode::TEMPORARY_REDIRECT, location)
}

fn location(call: &Call, old: &str, new: &str) -> String {
    let path = call.uri.path_and_query().map_or("", |path| path.as_str());
    path.replacen(old, new, 1)
}
