//! `coordinator register`: the webhooks in Gitea.

pub(super) mod listing;
mod plan;
mod refusal;
mod registrar;
mod target;

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use futures::{StreamExt, stream};
use gitea::{HookScope, Repository, Token};
use service::settings::{Problems, http_url, text};

use self::{
    listing::Repositories,
    plan::{Event, Events, Wanted},
    refusal::{Asked, explained},
    registrar::{Outcome, Registrar, Report},
    target::Target,
};
use super::{
    connect::DataDirArg,
    gitea_access::{self, GiteaAccessArgs},
    output,
    progress::Progress,
    send::owner_and_name,
    webhook_secret::WebhookSecretArgs,
};
use crate::local::data_dir::Instance;

/// What is said after hooks that were there have been looked at.
const UNSEEN: &str = "Of hooks that were there, Gitea shows neither the secret nor the HTTP method. \
                      If deliveries are answered 401 or 405, run this again with --replace.";

/// Whose hooks, and what they are to be.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    whose: WhoseArgs,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Make the hook anew, with the secret of now, and remove those at its address after that
    #[arg(long)]
    replace: bool,
    /// Address that Gitea posts to [default: that of the Coordinator on this machine]
    #[arg(long, env = "WEBHOOK_URL")]
    url: Option<String>,
    /// Events to send, and no others [default: issues_only and issue_assign; a hook that sends
    /// labels or milestones besides goes on doing that]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "EVENT")]
    events: Vec<Event>,
    #[command(flatten)]
    gitea: GiteaAccessArgs,
    #[command(flatten)]
    secret: WebhookSecretArgs,
    #[command(flatten)]
    data_dir: DataDirArg,
}

#[derive(clap::Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct WhoseArgs {
    /// A repository [token: write:repository]
    #[arg(long, value_name = "OWNER/NAME", value_parser = owner_and_name)]
    repo: Option<(String, String)>,
    /// All repositories of an organisation, with one hook [token: write:organization]
    #[arg(long, value_name = "NAME")]
    org: Option<String>,
    /// All repositories of the token's user, with one hook [token: write:user]
    #[arg(long)]
    user: bool,
    /// All repositories of the site, with one hook [token: write:admin, of an administrator]
    #[arg(long)]
    system: bool,
    /// Each repository of a user or an organisation, with a hook of its own, but for those that
    /// are archived or have no issues [token: read:user, write:repository]
    #[arg(long, value_name = "OWNER")]
    all_repos_of: Option<String>,
}

/// Whose hooks.
enum Whose {
    One(HookScope),
    EachRepositoryOf(String),
}

impl WhoseArgs {
    fn whose(&self) -> Whose {
        Whose::One(match self {
            Self { all_repos_of: Some(owner), .. } => {
                return Whose::EachRepositoryOf(owner.clone());
            }
            Self { repo: Some((owner, repo)), .. } => {
                HookScope::Repository { owner: owner.clone(), repo: repo.clone() }
            }
            Self { org: Some(name), .. } => HookScope::Organization(name.clone()),
            Self { user: true, .. } => HookScope::User,
            // One of them is given.
            Self { .. } => HookScope::System,
        })
    }
}

/// Makes the hooks or puts them right, and says what was done. Fails if something could not be done.
pub(crate) async fn main(args: &RegisterArgs) -> Result<()> {
    let instance = Instance::read(args.data_dir.path())?;
    let mut problems = Problems::default();
    let access = args.gitea.settings(instance.as_ref(), &mut problems);
    let target = args.target(instance.as_ref(), &mut problems);
    let (target, access) = (problems.finish(target)?, access);
    let (secret, is_short) = args.secret(instance.as_ref())?;
    let Some(target) = target else { bail!("no address of the webhook") };

    output::line(&format!("to {target}"))?;
    for warning in target.warnings(&access.url) {
        output::line(&format!("warning: {warning}"))?;
    }
    if is_short {
        output::line(
            "warning: the secret is shorter than 16 bytes, which ingest takes only with \
             ALLOW_SHORT_SECRET=true",
        )?;
    }
    let events = match &args.events[..] {
        [] => Events::Needed,
        events => Events::Exactly(events.iter().copied().collect()),
    };
    let registrar = Registrar {
        client: gitea_access::client(&access)?,
        wanted: Wanted { target, events, replace: args.replace },
        secret,
        dry_run: args.dry_run,
    };
    match args.whose.whose() {
        Whose::One(scope) => {
            let report = registrar.register(&scope).await?;
            print(&report)?;
            if matches!(report.outcome, Outcome::AsWanted | Outcome::PutRight) {
                output::line(UNSEEN)?;
            }
            Ok(())
        }
        Whose::EachRepositoryOf(owner) => each(&registrar, &owner, access.at_once).await,
    }
}

impl RegisterArgs {
    /// The address that hooks are to send to.
    fn target(&self, instance: Option<&Instance>, problems: &mut Problems) -> Option<Target> {
        let local = instance.map(|instance| instance.webhook_url.clone());
        let url = text(&self.url).map(str::to_owned).or(local);
        if url.is_none() {
            problems.add(
                "WEBHOOK_URL (--url), the address that Gitea posts to, is required, since no \
                 Coordinator runs in DATA_DIR",
            );
        }
        let url = problems.read_optional("WEBHOOK_URL", &url, http_url)?;
        let target =
            Target::parse(&url).map_err(|error| format!("WEBHOOK_URL is no URL ({error})"));
        target.map_err(|problem| problems.add(problem)).ok()
    }

    /// The secret of hooks that are made, and whether it is a short one.
    fn secret(&self, instance: Option<&Instance>) -> Result<(Token, bool)> {
        const NAME: &str = "GITEA_WEBHOOK_SECRET";
        let secret = self.secret.read(self.data_dir.path(), instance)?;
        let mut problems = Problems::default();
        let is_short = problems.check_strength(NAME, Some(&secret), true);
        let text = std::str::from_utf8(secret.expose());
        if text.is_err() {
            problems.add(format!("{NAME} is not UTF-8, and so cannot be given to Gitea's API"));
        }
        problems.finish(())?;
        Ok((Token::new(text.unwrap_or_default()), is_short))
    }
}

/// Registers each repository of an owner. A failure at one does not keep the others from it.
async fn each(registrar: &Registrar, owner: &str, at_once: usize) -> Result<()> {
    let Repositories { seen, unseen } =
        listing::repositories(&registrar.client, owner).await.map_err(|error| {
            let operation = format!("list the repositories of {owner}");
            explained(&operation, Asked::RepositoriesOf(owner), error)
        })?;
    let total = seen.len();
    let mut counts = BTreeMap::new();
    let mut progress = Progress::new();
    progress.bar(0, total);
    let mut reports = stream::iter(seen)
        .map(async |repository| (name(&repository), of(registrar, &repository).await))
        .buffered(at_once);
    let mut done = 0;
    while let Some((name, result)) = reports.next().await {
        done += 1;
        let outcome = progress.without(|| match result {
            Ok(report) => print(&report).map(|()| report.outcome),
            Err(error) => {
                output::line(&format!("{name}: failed: {error:#}"))?;
                Ok(Outcome::Failed)
            }
        })?;
        progress.bar(done, total);
        *counts.entry(outcome).or_insert(0) += 1;
    }
    drop(progress);
    let count = |outcome| counts.get(&outcome).copied().unwrap_or(0);
    output::line(&summary(owner, total, &counts, registrar.dry_run))?;
    if unseen > 0 {
        output::line(&format!(
            "{owner} has {unseen} more that the token's user may not see, or that came meanwhile"
        ))?;
    }
    if count(Outcome::AsWanted) + count(Outcome::PutRight) > 0 {
        output::line(UNSEEN)?;
    }
    match count(Outcome::Failed) {
        0 => Ok(()),
        failed => bail!("{failed} of {total} repositories failed"),
    }
}

/// Registers a repository, unless nothing can happen to an issue of it.
async fn of(registrar: &Registrar, repository: &Repository) -> Result<Report> {
    let reason = match repository {
        Repository { is_archived: true, .. } => "it is archived",
        Repository { has_issues: false, .. } => "it has no issues in Gitea",
        Repository { owner, name, .. } => {
            let scope = HookScope::Repository { owner: owner.login.clone(), repo: name.clone() };
            return registrar.register(&scope).await;
        }
    };
    let line = format!("{}: skipped, {reason}", name(repository));
    Ok(Report { outcome: Outcome::Skipped, line, notes: Vec::new() })
}

fn name(repository: &Repository) -> String {
    format!("{}/{}", repository.owner.login, repository.name)
}

fn print(report: &Report) -> Result<()> {
    output::line(&report.line)?;
    for note in &report.notes {
        output::line(&format!("  {note}"))?;
    }
    Ok(())
}

fn summary(
    owner: &str,
    total: usize,
    counts: &BTreeMap<Outcome, usize>,
    is_dry_run: bool,
) -> String {
    let what = |outcome: &Outcome| match outcome {
        Outcome::Made if is_dry_run => "to make",
        Outcome::Made => "made",
        Outcome::Replaced if is_dry_run => "to replace",
        Outcome::Replaced => "replaced",
        Outcome::PutRight if is_dry_run => "to put right",
        Outcome::PutRight => "put right",
        Outcome::AsWanted => "as wanted",
        Outcome::Skipped => "skipped",
        Outcome::Failed => "failed",
    };
    let noun = if total == 1 { "repository" } else { "repositories" };
    let mut summary = format!("{total} {noun} of {owner}");
    for (index, (outcome, count)) in counts.iter().enumerate() {
        let separator = if index == 0 { ": " } else { ", " };
        summary.push_str(&format!("{separator}{count} {}", what(outcome)));
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_what_was_done_or_would_be() {
        for (counts, is_dry_run, expected) in [
            (&[][..], false, "0 repositories of acme"),
            (&[(Outcome::Failed, 1)], false, "1 repository of acme: 1 failed"),
            (
                &[(Outcome::Skipped, 1), (Outcome::Made, 2), (Outcome::AsWanted, 3)],
                false,
                "6 repositories of acme: 2 made, 3 as wanted, 1 skipped",
            ),
            (
                &[(Outcome::PutRight, 1), (Outcome::Made, 2), (Outcome::Replaced, 3)],
                true,
                "6 repositories of acme: 2 to make, 3 to replace, 1 to put right",
            ),
        ] {
            let total = counts.iter().map(|(_, count)| count).sum();
            let counts = counts.iter().copied().collect();
            assert_eq!(summary("acme", total, &counts, is_dry_run), expected);
        }
    }
}
