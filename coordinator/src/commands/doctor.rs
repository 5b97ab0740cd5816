//! `coordinator doctor`: checks the whole chain from Gitea to a change, and says what to do about
//! what is wrong. It changes nothing, unless a test delivery is asked for.

mod broker;
mod clock;
mod delivery;
mod files;
mod gitea;
mod hooks;
mod http;
mod ingest;
mod report;
mod settings;
mod target;

use std::time::Duration;

use ::gitea::Client;
use ::ingest::settings::IngestArgs;
use anyhow::{Result, bail};
use service::role::CommonArgs;
use tokio::time::timeout;

use self::{
    report::{Check, Outcome},
    settings::Read,
};
use super::send::owner_and_name;
use crate::worker_side::WorkerSideArgs;

/// How long the checks of one part of the chain may take together. Parts are checked at once.
const PART: Duration = Duration::from_secs(25);

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DoctorArgs {
    /// Send a signed test delivery to ingest and follow it to a change, and let Gitea test a hook
    #[arg(long)]
    deliver: bool,
    /// URL of the webhook as Gitea is to reach it [default: that of the Coordinator on this machine]
    #[arg(long, env = "WEBHOOK_URL", value_name = "URL")]
    url: Option<String>,
    /// Repository whose hooks are looked at, several by repeating it [default: those of the issues
    /// that the token sees]
    #[arg(long, value_name = "OWNER/NAME", value_parser = owner_and_name)]
    repo: Vec<(String, String)>,
    /// Organisation whose hooks are looked at, several by repeating it [default: the owners of
    /// those repositories]
    #[arg(long, value_name = "NAME")]
    org: Vec<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    ingest: IngestArgs,
    #[command(flatten)]
    worker: WorkerSideArgs,
}

/// What was found on this machine, without asking anybody.
pub(crate) struct Here {
    read: Read,
    checks: Vec<Check>,
}

/// Reads settings and looks at files. Blocks, so it runs before there is a runtime.
pub(crate) fn look_here(args: &DoctorArgs) -> Here {
    let (read, mut checks) = Read::new(args);
    files::check(&read, &mut checks);
    Here { read, checks }
}

/// Asks everybody, prints what was found, and fails if something is wrong.
pub(crate) async fn main(args: &DoctorArgs, here: Here) -> Result<()> {
    let Here { read, mut checks } = here;
    let (ingest, broker, gitea) = tokio::join!(
        part("ingest", async |checks| ingest::check(&read, checks).await),
        part("nats", async |checks| broker::check(&read, checks).await),
        part("gitea", async |checks| gitea::check(args, &read, checks).await),
    );
    let mut take = |of_part: Vec<Check>| checks.extend(of_part);
    take(ingest.1);
    take(broker.1);
    take(gitea.1);
    let (ingest, broker, gitea) = (ingest.0, broker.0.flatten(), gitea.0.flatten());
    let mut arrived = None;
    if args.deliver {
        let (ingest, broker, gitea) = (ingest.as_ref(), broker.as_ref(), gitea.as_ref());
        let (ours, giteas) = tokio::join!(
            part("delivery", async |checks| delivery::ours(&read, ingest, broker, checks).await),
            part("delivery of gitea", async |checks| {
                delivery::giteas(ingest, gitea, checks).await
            }),
        );
        take(ours.1);
        take(giteas.1);
        arrived = giteas.0.flatten();
    }
    let hooks = gitea.as_ref().map_or(&[][..], |gitea| &gitea.hooks);
    let targets = target::Targets { args, gitea_url: &read.common.gitea_url, hooks, arrived };
    take(part("target", async |checks| targets.check(checks).await).await.1);
    report::print(&checks, args.json)?;
    match checks.iter().filter(|check| check.outcome == Outcome::Wrong).count() {
        0 => Ok(()),
        1 => bail!("1 check is wrong"),
        several => bail!("{several} checks are wrong"),
    }
}

/// The checks of a part of the chain, and what later parts need of it. Each check has a deadline of
/// its own; this one is for all of a part.
async fn part<T>(
    name: &str,
    run: impl AsyncFnOnce(&mut Vec<Check>) -> T,
) -> (Option<T>, Vec<Check>) {
    let mut checks = Vec::new();
    let found = timeout(PART, run(&mut checks)).await.ok();
    if found.is_none() {
        let told = format!("not through after {} s", PART.as_secs());
        checks.push(Check::wrong(name, told, "see whether it is overloaded, or answers slowly"));
    }
    (found, checks)
}

/// Where Gitea is asked, and what was found there.
struct GiteaFound {
    client: Client,
    hooks: Vec<hooks::Found>,
}
