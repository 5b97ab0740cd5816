//! Lists that Gitea gives by page: hooks, and the repositories of an owner.

use std::collections::BTreeSet;

use gitea::{Answer, ApiError, Client, Hook, HookScope, Repository};

/// What the client asks for at most; Gitea's own limit may be lower.
const PAGE: u64 = 50;

/// The hooks of a scope.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    pub(super) hooks: Vec<Hook>,
    /// Hooks that Gitea copies to new repositories. Only of the whole site, and only those that are
    /// not among the others.
    pub(super) defaults: Vec<Hook>,
    /// Ids of hooks that may be of either kind, since this Gitea does not tell them apart.
    pub(super) of_unknown_kind: BTreeSet<i64>,
}

/// The repositories of an owner, as far as the token may see them.
#[derive(Debug)]
pub(super) struct Repositories {
    pub(super) seen: Vec<Repository>,
    /// How many there are besides.
    pub(super) unseen: u64,
}

/// Lists all hooks of a scope.
pub(super) async fn hooks(client: &Client, scope: &HookScope) -> Result<Hooks, ApiError> {
    let hooks =
        all(1.., async |page| client.hooks(scope, page).await, |hook: &Hook| hook.id).await?;
    if *scope != HookScope::System {
        return Ok(Hooks { hooks, ..Hooks::default() });
    }
    let mut defaults = default_hooks(client, 1..).await?;
    let is_among_others = |hook: &Hook| hooks.iter().any(|other| other.id == hook.id);
    let of_unknown_kind =
        defaults.iter().filter(|hook| is_among_others(hook)).map(|hook| hook.id).collect();
    defaults.retain(|hook| !is_among_others(hook));
    Ok(Hooks { hooks, defaults, of_unknown_kind })
}

/// Lists the default hooks on these pages. Older versions of Gitea have them among those of the system too.
pub(in crate::commands) async fn default_hooks(
    client: &Client,
    pages: impl Iterator<Item = u32>,
) -> Result<Vec<Hook>, ApiError> {
    all(pages, async |page| client.default_hooks(page).await, |hook: &Hook| hook.id).await
}

/// All elements of a list that has a page as long as it has elements, on these pages.
async fn all<T>(
    pages: impl Iterator<Item = u32>,
    page_of: impl AsyncFn(u32) -> Result<Answer<Vec<T>>, ApiError>,
    id: impl Fn(&T) -> i64,
) -> Result<Vec<T>, ApiError> {
    let (mut list, mut ids) = (Vec::new(), BTreeSet::new());
    for page in pages {
        let answer = page_of(page).await?;
        let before = list.len();
        list.extend(answer.value.into_iter().filter(|element| ids.insert(id(element))));
        // A server that knows no pages gives the same one again and again.
        let is_last =
            list.len() == before || answer.total.is_some_and(|total| list.len() as u64 >= total);
        if is_last {
            break;
        }
    }
    Ok(list)
}

/// Lists all repositories of a user or an organisation.
pub(super) async fn repositories(client: &Client, owner: &str) -> Result<Repositories, ApiError> {
    // Gitea takes out what may not be seen after it has cut a page, so a page says nothing of how
    // many follow.
    let size = client.limits().await?.value.max_response_items;
    let size = u64::from(size).clamp(1, PAGE);
    let (mut seen, mut ids) = (Vec::new(), BTreeSet::new());
    let mut total = 0;
    for page in 1.. {
        let answer = client.repositories_of(owner, page).await?;
        let is_empty = answer.value.is_empty();
        seen.extend(answer.value.into_iter().filter(|repository| ids.insert(repository.id)));
        total = answer.total.unwrap_or(seen.len() as u64);
        let is_last = match answer.total {
            Some(total) => u64::from(page) * size >= total,
            None => is_empty,
        };
        if is_last {
            break;
        }
    }
    Ok(Repositories { unseen: total.saturating_sub(seen.len() as u64), seen })
}
