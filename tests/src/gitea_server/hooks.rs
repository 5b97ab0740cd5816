//! Webhooks: their endpoints, with Gitea's oddities.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde::Deserialize;

use super::{
    GiteaServer,
    access::{Access, Viewer},
    answers::{Call, moved_account},
    deliveries::Outgoing,
    json,
    reply::{Refusal, Reply},
    route::{HookCall, HooksOf},
    search::Query,
    world::{Found, IdOf, World},
};

/// A hook.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub id: i64,
    owner: Owner,
    pub kind: String,
    pub url: String,
    pub content_type: String,
    pub secret: String,
    pub events: Vec<&'static str>,
    pub branch_filter: String,
    pub authorization_header: String,
    pub active: bool,
    pub created: i64,
    pub updated: i64,
}

/// Whose hook it is, and so which repositories it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Repository(i64),
    Account(i64),
    /// All repositories.
    System,
    /// None: it is copied to repositories that are made later.
    Default,
}

/// What a client asks for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wish {
    r#type: String,
    config: BTreeMap<String, String>,
    events: Vec<String>,
    active: Option<bool>,
    branch_filter: Option<String>,
    authorization_header: Option<String>,
}

impl GiteaServer {
    /// Whether `GET /admin/hooks` shows system hooks, which it does at the start. Not every
    /// Gitea does.
    pub fn list_site_hooks(&self, shown: bool) {
        self.change(|world| world.lists_site_hooks = shown);
    }

    /// The secret of a hook, which the API does not tell. None if there is no such hook.
    pub fn hook_secret(&self, id: i64) -> Option<String> {
        self.read(|world| world.hooks.get(&id).map(|hook| hook.secret.clone()))
    }

    /// Ids of all hooks, also of those that the API does not show.
    pub fn hook_ids(&self) -> Vec<i64> {
        self.read(|world| world.hooks.keys().copied().collect())
    }
}

impl Hook {
    pub fn is_of_repository(&self, id: i64) -> bool {
        self.owner == Owner::Repository(id)
    }

    /// Whether events of a repository of this owner go to it.
    pub fn is_for(&self, repository: i64, owner: i64) -> bool {
        match self.owner {
            Owner::Repository(id) => id == repository,
            Owner::Account(id) => id == owner,
            Owner::System => true,
            Owner::Default => false,
        }
    }

    /// The value of `X-Gitea-Hook-Installation-Target-Type`.
    pub fn target_type(&self, world: &World) -> &'static str {
        match self.owner {
            Owner::Repository(_) => "repository",
            Owner::Account(id) if world.accounts[&id].is_organization => "organization",
            Owner::Account(_) => "user",
            Owner::System => "system",
            Owner::Default => "default",
        }
    }
}

pub(super) fn answer(
    world: &mut World,
    call: &Call,
    of: &HooksOf,
    what: HookCall,
) -> Result<Reply, Refusal> {
    let viewer = world.viewer(call.secret.as_deref())?;
    let owner = owner(world, &viewer, call, of, what)?;
    let tester = viewer.signed_in()?.id;
    // The site's hooks are of two kinds, and one id leads to either.
    let is_theirs = |hook: &Hook| match owner {
        Owner::System => matches!(hook.owner, Owner::System | Owner::Default),
        owner => hook.owner == owner,
    };
    let existing = |world: &World, id: i64| match world.hooks.get(&id) {
        Some(hook) if is_theirs(hook) => Ok(hook.clone()),
        _ => Err(Refusal::NotFound),
    };
    let shown = |status, hook: &Hook| Ok(Reply::json(status, json::hook(hook)));
    match what {
        HookCall::List => {
            let query = Query::parse(call.uri.query());
            let listed: Vec<String> = world
                .hooks
                .values()
                .filter(|hook| is_theirs(hook) && world.lists(hook, &query))
                .map(json::hook)
                .collect();
            Ok(Reply::list(query.page().of(&listed), listed.len()))
        }
        HookCall::Create => {
            let (wish, now) = (wish(call)?, world.now());
            let mut hook = create(owner, wish, now)?;
            hook.id = world.next_id(IdOf::Hook);
            world.hooks.insert(hook.id, hook.clone());
            shown(StatusCode::CREATED, &hook)
        }
        HookCall::Get(id) => shown(StatusCode::OK, &existing(world, id)?),
        HookCall::Edit(id) => {
            let hook = edit(existing(world, id)?, wish(call)?, world.now())?;
            world.hooks.insert(id, hook.clone());
            shown(StatusCode::OK, &hook)
        }
        HookCall::Delete(id) => {
            existing(world, id)?;
            world.hooks.remove(&id);
            Ok(Reply::empty(StatusCode::NO_CONTENT))
        }
        HookCall::Test(id) => {
            let hook = existing(world, id)?;
            world.test(&hook, tester);
            Ok(Reply::empty(StatusCode::NO_CONTENT))
        }
    }
}

/// Whose hooks these are, if the viewer may have them.
fn owner(
    world: &World,
    viewer: &Viewer,
    call: &Call,
    of: &HooksOf,
    what: HookCall,
) -> Result<Owner, Refusal> {
    let access = match what {
        HookCall::List | HookCall::Get(_) => Access::Read,
        _ => Access::Write,
    };
    match of {
        HooksOf::Repository(name) => {
            viewer.needs(access, "repository")?;
            let repository = world.visible(viewer, name, call)?;
            viewer.signed_in()?;
            if !viewer.administers(world, repository) {
                return Err(Refusal::forbidden(
                    "user should be an owner or a collaborator with admin write of a repository",
                ));
            }
            Ok(Owner::Repository(repository.id))
        }
        HooksOf::Organization(login) => {
            viewer.needs(access, "organization")?;
            let account = match world.find_account(login) {
                Found::Here(account) if account.is_organization => account,
                Found::Moved(account) => return Err(moved_account(call, login, &account.login)),
                Found::Here(_) | Found::Missing => return Err(Refusal::NotFound),
            };
            viewer.signed_in()?;
            if !viewer.owns(world, account.id) {
                return Err(Refusal::forbidden("Must be an organization owner"));
            }
            Ok(Owner::Account(account.id))
        }
        HooksOf::User => {
            viewer.needs(access, "user")?;
            Ok(Owner::Account(viewer.signed_in()?.id))
        }
        HooksOf::Site => {
            viewer.needs(access, "admin")?;
            viewer.signed_in()?;
            if !viewer.is_admin() {
                return Err(Refusal::forbidden("user should be the site admin"));
            }
            Ok(Owner::System)
        }
    }
}

fn wish(call: &Call) -> Result<Wish, Refusal> {
    serde_json::from_slice(&call.body).map_err(|error| Refusal::unprocessable(error.to_string()))
}

/// A hook that has no id yet.
fn create(owner: Owner, mut wish: Wish, now: i64) -> Result<Hook, Refusal> {
    if !["gitea", "gogs", "slack", "discord", "telegram"].contains(&wish.r#type.as_str()) {
        return Err(Refusal::unprocessable(format!("Invalid hook type: {}", wish.r#type)));
    }
    let mut config = |name: &str| {
        let missing = || Refusal::unprocessable(format!("Missing config option: {name}"));
        wish.config.remove(name).ok_or_else(missing)
    };
    let (url, content_type) = (valid_url(config("url")?)?, valid_type(config("content_type")?)?);
    let (secret, is_system) = (config("secret"), config("is_system_webhook"));
    let owner = match owner {
        // A text, and not a boolean.
        Owner::System if is_system.is_ok_and(|text| text == "true") => Owner::System,
        Owner::System => Owner::Default,
        owner => owner,
    };
    Ok(Hook {
        id: 0,
        owner,
        kind: wish.r#type,
        url,
        content_type,
        secret: secret.unwrap_or_default(),
        events: events(&wish.events),
        branch_filter: wish.branch_filter.unwrap_or_default(),
        authorization_header: wish.authorization_header.unwrap_or_default(),
        active: wish.active.unwrap_or(false),
        created: now,
        updated: now,
    })
}

/// The secret stays, whatever is asked for. Events that are not named are reset.
fn edit(hook: Hook, mut wish: Wish, now: i64) -> Result<Hook, Refusal> {
    Ok(Hook {
        url: wish.config.remove("url").map_or(Ok(hook.url), valid_url)?,
        content_type: wish
            .config
            .remove("content_type")
            .map_or(Ok(hook.content_type), valid_type)?,
        events: events(&wish.events),
        branch_filter: wish.branch_filter.unwrap_or(hook.branch_filter),
        authorization_header: wish.authorization_header.unwrap_or(hook.authorization_header),
        active: wish.active.unwrap_or(hook.active),
        updated: now,
        ..hook
    })
}

fn valid_url(url: String) -> Result<String, Refusal> {
    let valid = url.parse::<reqwest::Url>().is_ok_and(|url| url.scheme().starts_with("http"));
    if valid { Ok(url) } else { Err(Refusal::unprocessable("Invalid url")) }
}

fn valid_type(content_type: String) -> Result<String, Refusal> {
    let valid = ["json", "form"].contains(&content_type.as_str());
    if valid { Ok(content_type) } else { Err(Refusal::unprocessable("Invalid content type")) }
}

/// The events as they are read back: `issues` and `pull_request` are asked for as groups,
/// their `_only` forms read back without it, and the order is not that of the request.
fn events(asked: &[String]) -> Vec<&'static str> {
    const PLAIN: [&str; 9] =
        ["create", "delete", "fork", "push", "release", "repository", "wiki", "package", "status"];
    const OF_ISSUES: [&str; 4] =
        ["issue_assign", "issue_label", "issue_milestone", "issue_comment"];
    const OF_PULL_REQUESTS: [&str; 7] = [
        "pull_request_assign",
        "pull_request_label",
        "pull_request_milestone",
        "pull_request_comment",
        "pull_request_review",
        "pull_request_review_request",
        "pull_request_sync",
    ];
    let has = |event: &str| asked.iter().any(|asked| asked == event);
    let mut events = Vec::new();
    for (group, only, others) in [
        ("issues", "issues_only", &OF_ISSUES[..]),
        ("pull_request", "pull_request_only", &OF_PULL_REQUESTS[..]),
    ] {
        events.extend(others.iter().filter(|event| has(group) || has(event)));
        if has(group) || has(only) {
            events.push(group);
        }
    }
    events.extend(PLAIN.iter().filter(|event| has(event) || asked.is_empty() && **event == "push"));
    events
}

impl World {
    /// Whether a list has this hook in it. Of the site's it has one kind.
    fn lists(&self, hook: &Hook, query: &Query) -> bool {
        match (hook.owner, query.get("type")) {
            (Owner::System | Owner::Default, _) if !self.lists_site_hooks => false,
            (Owner::System | Owner::Default, Some("all")) => true,
            (Owner::Default, kind) => kind == Some("default"),
            (Owner::System, kind) => kind != Some("default"),
            _ => true,
        }
    }

    /// Sends a push, unless there is no commit that could have been pushed, or the hook sends none.
    fn test(&mut self, hook: &Hook, by: i64) {
        let Owner::Repository(id) = hook.owner else { return };
        let repository = &self.repositories[&id];
        if !repository.empty && hook.events.contains(&"push") {
            let payload = self.push_payload(repository, &self.accounts[&by]);
            let outgoing = Outgoing::to_hook(self, hook, "push", "push", payload);
            self.outbox.push(outgoing);
        }
    }
}
