//! Gitea, its clock, and what its token is good for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use contract::timestamp::Timestamp;
use gitea::{Account, Answer, ApiError, Client, IssueLine, IssueQuery, NoObserver, Options};
use service::causes::Causes;

use super::{
    DoctorArgs, GiteaFound,
    clock::{self, Told},
    hooks,
    report::Check,
    settings::Read,
};

/// How long one answer may take here. A Gitea that is slower answers webhooks in vain as well.
const DEADLINE: Duration = Duration::from_secs(5);
/// Least version: its answers are those that the client reads.
const LEAST: (u32, u32) = (1, 19);
/// What follows a token that works. Names of checks.
const NAMES: [&str; 4] = ["token's scopes", "token's user", "root url", "hooks"];

pub(super) async fn check(
    args: &DoctorArgs,
    read: &Read,
    checks: &mut Vec<Check>,
) -> Option<GiteaFound> {
    let found = look(args, read, checks).await;
    if found.is_none() {
        for name in ["gitea version", "clock of Gitea", "token"].iter().chain(&NAMES) {
            if !checks.iter().any(|check| check.name == *name) {
                let token_failed = checks.iter().any(|check| check.name == "token");
                checks.push(Check::needs(*name, if token_failed { "token" } else { "gitea" }));
            }
        }
    }
    found
}

async fn look(args: &DoctorArgs, read: &Read, checks: &mut Vec<Check>) -> Option<GiteaFound> {
    if !read.gitea_is_good {
        checks.push(Check::needs("gitea", "settings"));
        return None;
    }
    // A token that is refused is refused also where none is needed.
    let made = [false, true].map(|with_token| client(read, with_token));
    let [anonymous, client] = match made {
        [Ok(anonymous), Ok(client)] => [anonymous, client],
        [Err(error), _] | [_, Err(error)] => {
            checks.push(Check::wrong("gitea", Causes(&error).to_string(), "set GITEA_URL"));
            return None;
        }
    };
    let asked = Timestamp::now();
    let version = anonymous.version().await;
    let answered = Timestamp::now();
    reached(&read.common.gitea_url, version, [asked, answered], checks)?;

    if read.access.token.is_none() {
        let why = "GITEA_TOKEN and GITEA_TOKEN_FILE are not set: doubts stay, and what no webhook told is not found";
        checks.push(Check::skipped("token", why));
        return None;
    }
    let issues = issues(&client).await;
    checks.push(token_told(&issues));
    if matches!(issues, Err(ApiError::Unauthorized { .. })) {
        return None;
    }
    checks.push(scopes_told(&issues));
    let account = client.user().await.map(|answer| answer.value);
    checks.push(user_told(&account));
    let lines = issues.map(|seen| seen.lines).unwrap_or_default();
    checks.push(root_url(&client, args, &read.common.gitea_url, &lines).await);
    let wanted = hooks::Wanted::new(args, repositories(&lines), account.ok());
    let hooks = wanted.check(&client, checks).await;
    Some(GiteaFound { client, hooks })
}

fn client(read: &Read, with_token: bool) -> Result<Client, gitea::ClientError> {
    Client::new(Options {
        url: read.access.url.clone(),
        token: read.access.token.clone().filter(|_| with_token),
        per_second: read.access.per_second as f64,
        at_once: read.access.at_once,
        deadline: DEADLINE.min(read.access.timeout),
        user_agent: concat!("coordinator-doctor/", env!("CARGO_PKG_VERSION")).into(),
        observer: Arc::new(NoObserver),
    })
}

/// Whether Gitea answers, its version, and its clock. None if it does not answer.
fn reached(
    url: &str,
    version: Result<Answer<String>, ApiError>,
    [asked, answered]: [Timestamp; 2],
    checks: &mut Vec<Check>,
) -> Option<()> {
    match version {
        Ok(answer) => {
            checks.push(Check::ok("gitea", format!("answers at {url}")));
            checks.push(version_told(&answer.value));
            checks.push(match answer.date {
                None => Check::skipped("clock of Gitea", "its answer has no header Date"),
                Some(date) => {
                    let time = Timestamp::from_unix_micros(date.unix_timestamp() * 1_000_000);
                    let resolution = Duration::from_secs(1);
                    clock::check("Gitea", Told { asked, answered, time, resolution })
                }
            });
            Some(())
        }
        Err(ApiError::Unauthorized { .. } | ApiError::Forbidden { .. }) => {
            checks.push(Check::ok("gitea", format!("answers at {url}")));
            let why = "Gitea tells nothing without signing in (REQUIRE_SIGNIN_VIEW)";
            checks.push(Check::skipped("gitea version", why));
            checks.push(Check::skipped("clock of Gitea", why));
            Some(())
        }
        Err(error) => {
            let remedy = match &error {
                ApiError::NotFound { .. } | ApiError::Unreadable(_) => {
                    "something else answers there; set GITEA_URL to Gitea's own, with its path if it has one"
                }
                ApiError::MovedElsewhere { .. } => "set GITEA_URL to where it leads",
                _ => "start Gitea, or set GITEA_URL to where it can be reached from here",
            };
            checks.push(Check::wrong("gitea", format!("{url}: {}", Causes(&error)), remedy));
            None
        }
    }
}

fn version_told(text: &str) -> Check {
    let name = "gitea version";
    // Forgejo names the Gitea that it stands for: 7.0.0+gitea-1.22.0.
    let number = text.split_once("+gitea-").map_or(text, |(_, number)| number);
    let mut parts = number.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    match parts.next().zip(parts.next()) {
        Some(version) if version < LEAST => Check::warning(
            name,
            format!("{text}, which is older than {}.{}", LEAST.0, LEAST.1),
            "use a newer Gitea: older ones have no scopes, and other answers",
        ),
        Some(_) => Check::ok(name, text),
        None => Check::ok(name, format!("{text}, which is no number")),
    }
}

/// A page of issues that the token sees.
struct Issues {
    lines: Vec<IssueLine>,
    total: Option<u64>,
}

async fn issues(client: &Client) -> Result<Issues, ApiError> {
    let mut lines = Vec::new();
    let answer = client.search(&IssueQuery::default(), |line| lines.push(line)).await?;
    Ok(Issues { lines, total: answer.value.total })
}

fn token_told(issues: &Result<Issues, ApiError>) -> Check {
    match issues {
        Err(error @ ApiError::Unauthorized { .. }) => Check::wrong(
            "token",
            error.to_string(),
            "make a new one in Gitea (Settings, Applications), and set GITEA_TOKEN or the file of GITEA_TOKEN_FILE",
        ),
        _ => Check::ok("token", "Gitea accepts it"),
    }
}

fn scopes_told(issues: &Result<Issues, ApiError>) -> Check {
    let name = "token's scopes";
    match issues {
        Ok(Issues { lines, total }) => {
            let repositories: std::collections::BTreeSet<_> =
                lines.iter().map(|line| line.repository.id).collect();
            let total = total.unwrap_or(lines.len() as u64);
            let found = format!(
                "it sees {total} issues; the newest {} are in {} repositories",
                lines.len(),
                repositories.len()
            );
            if total == 0 {
                let remedy = "if there are issues, make it as a user that may read them, or as an administrator";
                Check::warning(name, found, remedy)
            } else {
                Check::ok(name, found)
            }
        }
        Err(ApiError::Forbidden { message, required, present }) => Check::wrong(
            name,
            if required.is_empty() {
                message.clone()
            } else {
                format!("it has {}, and needs {}", list(present), list(required))
            },
            "make a token with the scope read:issue; for hooks read:repository and read:organization too",
        ),
        Err(error) => Check::wrong(
            name,
            format!("issues cannot be searched: {}", Causes(error)),
            "see Gitea's log",
        ),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none that it names".into() } else { names.join(",") }
}

fn user_told(account: &Result<Account, ApiError>) -> Check {
    let name = "token's user";
    match account {
        Ok(Account { user, is_admin: true }) => {
            Check::ok(name, format!("{}, an administrator, who sees all repositories", user.login))
        }
        Ok(Account { user, .. }) => {
            Check::ok(name, format!("{}, who sees what they may read", user.login))
        }
        Err(ApiError::Forbidden { .. }) => Check::skipped(
            name,
            "the token lacks read:user, so that an administrator's is not known as one",
        ),
        Err(error) => Check::warning(name, Causes(error).to_string(), "see Gitea's log"),
    }
}

/// Compares the address that Gitea gives to things with `GITEA_URL`.
async fn root_url(
    client: &Client,
    args: &DoctorArgs,
    gitea_url: &str,
    lines: &[IssueLine],
) -> Check {
    let name = "root url";
    let of_issue = lines.iter().find_map(root_of);
    let root = match (of_issue, args.repo.first()) {
        (Some(root), _) => Some(root),
        (None, Some((owner, repository))) => {
            let answer = client.repository_by_name(owner, repository).await.ok();
            answer.and_then(|answer| {
                let place = format!("/{}/{}", answer.value.owner.login, answer.value.name);
                answer.value.html_url.strip_suffix(&place).map(str::to_owned)
            })
        }
        (None, None) => None,
    };
    match root {
        None => Check::skipped(name, "no issue is seen that names it"),
        Some(root) if hooks::same_address(&root, gitea_url) => Check::ok(name, root),
        Some(root) => Check::warning(
            name,
            format!("Gitea calls itself {root}, and GITEA_URL is {gitea_url}"),
            "make ROOT_URL ([server] in app.ini) and GITEA_URL the same, unless Gitea has another address for services: links in events lead to ROOT_URL",
        ),
    }
}

/// Gitea's address by an issue's own ones: in the API, which follows `ROOT_URL`, else that of its
/// page, which in newer versions follows the address that was asked.
fn root_of(line: &IssueLine) -> Option<String> {
    let place =
        format!("{}/{}/issues/{}", line.repository.owner, line.repository.name, line.number);
    let of =
        |url: &str, below: &str| url.strip_suffix(&format!("{below}/{place}")).map(str::to_owned);
    of(&line.api_url, "/api/v1/repos").or_else(|| of(&line.html_url, ""))
}

/// The repositories of issues, each once.
fn repositories(lines: &[IssueLine]) -> Vec<(String, String)> {
    let by_id: BTreeMap<i64, _> =
        lines.iter().map(|line| (line.repository.id, &line.repository)).collect();
    by_id.into_values().map(|it| (it.owner.clone(), it.name.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::report::Outcome, *};

    #[test]
    fn versions_are_read_also_those_of_forks() {
        for (version, expected) in [
            ("1.25.5", Outcome::Ok),
            ("1.19.0", Outcome::Ok),
            ("1.18.5", Outcome::Warning),
            ("1.27.0+dev-12-gabc", Outcome::Ok),
            ("1.26.0-rc1", Outcome::Ok),
            ("7.0.3+gitea-1.21.11", Outcome::Ok),
            ("5.0.0+gitea-1.18.0", Outcome::Warning),
            ("development", Outcome::Ok),
            ("", Outcome::Ok),
        ] {
            assert_eq!(version_told(version).outcome, expected, "{version}");
        }
    }

    #[test]
    fn a_token_without_the_scope_is_told_which_it_lacks() {
        let error = ApiError::Forbidden {
            message: "m".into(),
            required: vec!["read:issue".into()],
            present: vec!["read:user".into()],
        };
        let check = scopes_told(&Err(error));
        assert_eq!(
            (check.outcome, &*check.found),
            (Outcome::Wrong, "it has read:user, and needs read:issue")
        );
    }
}
