//! The webhooks in Gitea that post to us, as far as the token may see them.

use std::{collections::BTreeSet, fmt};

use gitea::{Account, ApiError, Client, Hook, HookScope};
use reqwest::Url;
use service::{causes::Causes, settings::text};

use super::{DoctorArgs, report::Check};
use crate::commands::{gitea_access::HOOK_KINDS, register::listing::default_hooks};

/// Repositories and owners whose hooks are looked at, so that the look has an end.
const MOST_REPOSITORIES: usize = 20;
const MOST_OWNERS: usize = 10;
/// Pages of hooks that are read of each.
const MOST_PAGES: u32 = 3;
/// Path of the webhook.
const PATH: &str = "/webhook/gitea";
/// What has to be sent. `issues_only` reads back as `issues`.
const NEEDED: [&str; 2] = ["issues", "issue_assign"];

/// A hook that posts to us.
pub(super) struct Found {
    pub(super) scope: HookScope,
    pub(super) hook: Hook,
}

/// Whose hooks are looked at.
pub(super) struct Wanted {
    repositories: Vec<(String, String)>,
    owners: Vec<String>,
    account: Option<Account>,
    /// Where hooks have to post to, if that was said.
    url: Option<String>,
}

/// What could be seen.
#[derive(Default)]
struct Seen {
    found: Vec<Found>,
    /// How many lists could be read.
    lists: usize,
    /// Why others could not, each once.
    unseen: Vec<String>,
    /// Ids of the default hooks.
    defaults: BTreeSet<i64>,
}

impl Wanted {
    /// `seen` are the repositories of which the token sees issues.
    pub(super) fn new(
        args: &DoctorArgs,
        seen: Vec<(String, String)>,
        account: Option<Account>,
    ) -> Self {
        let mut repositories = if args.repo.is_empty() { seen } else { args.repo.clone() };
        repositories.truncate(MOST_REPOSITORIES);
        let mut owners = args.org.clone();
        if owners.is_empty() {
            owners = repositories.iter().map(|(owner, _)| owner.clone()).collect();
            owners.sort();
            owners.dedup();
        }
        owners.truncate(MOST_OWNERS);
        Self { repositories, owners, account, url: text(&args.url).map(str::to_owned) }
    }

    /// Looks at the hooks, and returns those that post to us.
    pub(super) async fn check(&self, client: &Client, checks: &mut Vec<Check>) -> Vec<Found> {
        let mut seen = Seen::default();
        match self.look(client, &mut seen).await {
            Ok(()) => checks.push(self.all_told(&seen)),
            Err(error) => checks.push(Check::wrong(
                "hooks",
                format!("they cannot be listed: {}", Causes(&error)),
                "see Gitea's log",
            )),
        }
        checks.extend(seen.found.iter().map(|found| self.one_told(found, &seen.defaults)));
        seen.found
    }

    async fn look(&self, client: &Client, seen: &mut Seen) -> Result<(), ApiError> {
        let may_be_admin = self.account.as_ref().is_none_or(|account| account.is_admin);
        if may_be_admin && self.list(client, HookScope::System, seen).await? {
            match default_hooks(client, 1..=MOST_PAGES).await {
                Ok(hooks) => seen.defaults = hooks.iter().map(|hook| hook.id).collect(),
                Err(ApiError::NotFound { .. } | ApiError::Forbidden { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.list(client, HookScope::User, seen).await?;
        for owner in &self.owners {
            // The list above has those of the token's own user.
            if !self.is_own(owner)
                && !self.list(client, HookScope::Organization(owner.clone()), seen).await?
            {
                break;
            }
        }
        for (owner, repo) in &self.repositories {
            let scope = HookScope::Repository { owner: owner.clone(), repo: repo.clone() };
            if !self.list(client, scope, seen).await? {
                break;
            }
        }
        Ok(())
    }

    fn is_own(&self, owner: &str) -> bool {
        self.account.as_ref().is_some_and(|it| it.user.login.eq_ignore_ascii_case(owner))
    }

    /// Notes the hooks of ours in a list. False if the token lacks the scope for lists of its kind.
    async fn list(
        &self,
        client: &Client,
        scope: HookScope,
        seen: &mut Seen,
    ) -> Result<bool, ApiError> {
        for page in 1..=MOST_PAGES {
            match client.hooks(&scope, page).await {
                Ok(answer) if answer.value.is_empty() => break,
                Ok(answer) => {
                    let ours = answer.value.into_iter().filter(|hook| self.is_ours(&hook.url));
                    seen.found.extend(ours.map(|hook| Found { scope: scope.clone(), hook }));
                }
                // The owner is no organisation, or it is none that the token may see.
                Err(ApiError::NotFound { .. }) => return Ok(true),
                Err(ApiError::Forbidden { required, message, .. }) => {
                    let (of, lacks_scope) = (kind(&scope), !required.is_empty());
                    let why = if lacks_scope {
                        format!("those of {of} need {}", required.join(" or "))
                    } else {
                        format!("some of {of}: {message}")
                    };
                    if !seen.unseen.contains(&why) {
                        seen.unseen.push(why);
                    }
                    return Ok(!lacks_scope);
                }
                Err(error) => return Err(error),
            }
        }
        seen.lists += 1;
        Ok(true)
    }

    fn is_ours(&self, url: &str) -> bool {
        let has_path =
            url.parse::<Url>().is_ok_and(|url| url.path().trim_end_matches('/').ends_with(PATH));
        has_path || self.url.as_deref().is_some_and(|ours| same_address(ours, url))
    }

    /// What is wrong with a hook of ours, and how to mend it.
    fn faults(&self, hook: &Hook) -> Vec<String> {
        let mut faults = Vec::new();
        if !hook.active {
            faults.push("it is not active".to_owned());
        }
        let lacks: Vec<&str> = NEEDED
            .into_iter()
            .filter(|needed| !hook.events.iter().any(|event| event == needed))
            .collect();
        if !lacks.is_empty() {
            faults.push(format!("it lacks the events {}", lacks.join(" and ")));
        }
        if hook.content_type.is_none() {
            faults.push("its content type is neither application/json nor the form".to_owned());
        }
        if !HOOK_KINDS.contains(&hook.kind.as_str()) {
            faults.push(format!("it is of the type {}, whose payload is another", hook.kind));
        }
        faults
    }

    fn is_good(&self, hook: &Hook) -> bool {
        self.faults(hook).is_empty()
    }

    fn one_told(&self, found: &Found, defaults: &BTreeSet<i64>) -> Check {
        let Found { scope, hook } = found;
        let name = format!("hook {} of {}", hook.id, Scope(scope));
        let (faults, target) = (self.faults(hook), shown(&hook.url));
        if !faults.is_empty() {
            let remedy = format!("run `coordinator register {}`, or edit it in Gitea", flag(scope));
            return Check::wrong(name, format!("{} (to {target})", faults.join("; ")), remedy);
        }
        if found.scope == HookScope::System && defaults.contains(&hook.id) {
            let found = format!(
                "to {target}; this Gitea does not tell whether it is a default hook, which sends nothing"
            );
            let remedy = "look under Site Administration, Webhooks: it belongs to System Webhooks";
            return Check::warning(name, found, remedy);
        }
        match &self.url {
            Some(url) if !same_address(url, &hook.url) => {
                let remedy = "edit its target in Gitea, or --url (WEBHOOK_URL)";
                Check::warning(name, format!("it posts to {target}, not to {}", shown(url)), remedy)
            }
            _ => Check::ok(name, format!("active, posts {} to {target}", NEEDED.join(" and "))),
        }
    }

    fn covers(&self, found: &Found, owner: &str, name: &str) -> bool {
        match &found.scope {
            HookScope::System => true,
            HookScope::User => self.is_own(owner),
            HookScope::Organization(organization) => organization.eq_ignore_ascii_case(owner),
            HookScope::Repository { owner: of, repo } => {
                of.eq_ignore_ascii_case(owner) && repo.eq_ignore_ascii_case(name)
            }
        }
    }

    fn all_told(&self, seen: &Seen) -> Check {
        let name = "hooks";
        let unseen = seen.unseen.join("; ");
        let register =
            "run `coordinator register`, or add a webhook in Gitea (README.md, Point Gitea at it)";
        if seen.found.is_empty() {
            return if seen.unseen.is_empty() {
                Check::wrong(name, "no hook posts to us, of those that Gitea lists", register)
            } else if seen.lists == 0 || self.repositories.is_empty() {
                Check::skipped(name, format!("the token may not list them: {unseen}"))
            } else {
                let found = format!("none that posts to us is seen, and not all can be: {unseen}");
                Check::warning(name, found, register)
            };
        }
        let is_covered = |(owner, name): &&(String, String)| {
            let good = seen.found.iter().filter(|found| self.is_good(&found.hook));
            good.into_iter().any(|found| self.covers(found, owner, name))
        };
        let without: Vec<String> = self
            .repositories
            .iter()
            .filter(|repository| !is_covered(repository))
            .map(|(owner, name)| format!("{owner}/{name}"))
            .collect();
        let mut found = format!(
            "{} that post to us, for {} of {} repositories",
            seen.found.len(),
            self.repositories.len() - without.len(),
            self.repositories.len()
        );
        if !unseen.is_empty() {
            found = format!("{found}; not all can be seen: {unseen}");
        }
        if without.is_empty() {
            return Check::ok(name, found);
        }
        let some = without.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
        Check::warning(name, format!("{found}; none that works is seen for {some}"), register)
    }
}

/// A scope in words.
struct Scope<'a>(&'a HookScope);

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            HookScope::Repository { owner, repo } => write!(f, "{owner}/{repo}"),
            HookScope::Organization(name) => write!(f, "organisation {name}"),
            HookScope::User => f.write_str("the token's user"),
            HookScope::System => f.write_str("the whole site"),
        }
    }
}

/// The kind of a scope, in words.
fn kind(scope: &HookScope) -> &'static str {
    match scope {
        HookScope::Repository { .. } => "repositories",
        HookScope::Organization(_) => "organisations",
        HookScope::User => "the token's user",
        HookScope::System => "the whole site",
    }
}

/// The flag of `coordinator register` for a scope.
fn flag(scope: &HookScope) -> String {
    match scope {
        HookScope::Repository { owner, repo } => format!("--repo {owner}/{repo}"),
        HookScope::Organization(name) => format!("--org {name}"),
        HookScope::User => "--user".into(),
        HookScope::System => "--system".into(),
    }
}

/// Whether two URLs lead to the same place: case of scheme and host, a port that is the default, and
/// a slash at the end make no difference.
pub(super) fn same_address(one: &str, other: &str) -> bool {
    let place = |text: &str| {
        let url = text.parse::<Url>().ok()?;
        let path = url.path().trim_end_matches('/').to_owned();
        Some((
            url.scheme().to_owned(),
            url.host_str()?.to_owned(),
            url.port_or_known_default(),
            path,
        ))
    };
    match (place(one), place(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

/// An address without what may be secret in it: login and query.
pub(super) fn shown(url: &str) -> String {
    let Ok(mut url) = url.parse::<Url>() else { return "an address that cannot be read".into() };
    // Only addresses without a host take no login, and those hold none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use gitea::User;
    use serde_json::json;

    use super::{super::report::Outcome, *};

    const URL: &str = "http://ingest:8000/webhook/gitea";

    fn hook(events: &[&str], active: bool, content_type: &str) -> Hook {
        let hook = json!({
            "id": 6, "type": "gitea", "active": active, "events": events,
            "config": { "url": URL, "content_type": content_type },
        });
        serde_json::from_value(hook).expect("a hook")
    }

    fn good() -> Hook {
        hook(&["issue_assign", "issues"], true, "json")
    }

    fn wanted() -> Wanted {
        let name = |owner: &str, name: &str| (owner.to_owned(), name.to_owned());
        Wanted {
            repositories: vec![name("acme", "widgets"), name("maria", "notes")],
            owners: vec!["acme".into(), "maria".into()],
            account: Some(Account { user: User { id: 1, login: "maria".into() }, is_admin: false }),
            url: None,
        }
    }

    fn of_repository(owner: &str, repo: &str) -> HookScope {
        HookScope::Repository { owner: owner.into(), repo: repo.into() }
    }

    #[test]
    fn a_hook_is_active_and_sends_what_is_needed() {
        let wanted = wanted();
        for (hook, expected, part) in [
            (good(), Outcome::Ok, "active"),
            (hook(&["issue_assign", "issues", "push"], true, "form"), Outcome::Ok, "active"),
            (hook(&["issue_assign", "issues"], false, "json"), Outcome::Wrong, "not active"),
            (hook(&["issues"], true, "json"), Outcome::Wrong, "lacks the events issue_assign"),
            (hook(&["push"], true, "json"), Outcome::Wrong, "issues and issue_assign"),
            (hook(&["issue_assign", "issues"], true, "xml"), Outcome::Wrong, "content type"),
        ] {
            let found = Found { scope: of_repository("acme", "widgets"), hook };
            let check = wanted.one_told(&found, &BTreeSet::new());
            assert_eq!(check.outcome, expected, "{}", check.found);
            assert!(check.found.contains(part), "{}", check.found);
        }
        let elsewhere = Wanted { url: Some("https://ingest/webhook/gitea".into()), ..wanted };
        let of_system = Found { scope: HookScope::System, hook: good() };
        let check = elsewhere.one_told(&of_system, &BTreeSet::new());
        assert_eq!(check.outcome, Outcome::Warning, "{}", check.found);
        // A version that lists default hooks with those of the system.
        let check = elsewhere.one_told(&of_system, &[of_system.hook.id].into());
        assert!(check.found.contains("default hook"), "{}", check.found);
        assert_eq!(check.outcome, Outcome::Warning, "{}", check.found);
    }

    #[test]
    fn each_repository_has_a_hook_of_its_own_or_of_its_owner() {
        let wanted = wanted();
        let inactive = || hook(&["issue_assign", "issues"], false, "json");
        for (scopes, unseen, expected) in [
            (vec![(HookScope::System, good())], "", Outcome::Ok),
            (
                vec![(HookScope::Organization("Acme".into()), good()), (HookScope::User, good())],
                "",
                Outcome::Ok,
            ),
            (vec![(of_repository("acme", "Widgets"), good())], "", Outcome::Warning),
            (vec![(HookScope::System, inactive())], "", Outcome::Warning),
            (vec![], "", Outcome::Wrong),
            (vec![], "those of organisations", Outcome::Warning),
        ] {
            let found = scopes.into_iter().map(|(scope, hook)| Found { scope, hook }).collect();
            let unseen = Some(unseen.to_owned()).filter(|unseen| !unseen.is_empty());
            let unseen = unseen.into_iter().collect();
            let seen = Seen { found, lists: 1, unseen, ..Seen::default() };
            let check = wanted.all_told(&seen);
            assert_eq!(check.outcome, expected, "{}", check.found);
        }
        let blind = Seen { unseen: vec!["x".into()], ..Seen::default() };
        assert_eq!(wanted.all_told(&blind).outcome, Outcome::Skipped);
    }

    #[test]
    fn a_hook_is_ours_by_its_path_or_its_address() {
        let mut wanted = wanted();
        for (url, ours, expected) in [
            (URL, None, true),
            ("https://example.com/x/webhook/gitea/", None, true),
            ("https://example.com/hook", None, false),
            ("https://example.com/hook", Some("HTTPS://Example.com:443/hook/"), true),
            ("https://example.com/webhook/gitea2", None, false),
            ("no address", None, false),
        ] {
            wanted.url = ours.map(str::to_owned);
            assert_eq!(wanted.is_ours(url), expected, "{url}");
        }
    }

    #[test]
    fn addresses_are_compared_by_where_they_lead() {
        for (one, other, expected) in [
            ("http://h:80/x", "http://H/x/", true),
            ("http://h/", "http://h", true),
            ("http://h", "https://h", false),
            ("http://h/x", "http://h/y", false),
            ("http://h:3000", "http://h", false),
        ] {
            assert_eq!(same_address(one, other), expected, "{one} {other}");
        }
        assert_eq!(shown("http://u:s3cr3t@h/x?token=s3cr3t#y"), "http://h/x");
    }
}
