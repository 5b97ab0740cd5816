//! Does what the plan says with the hooks of one scope.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail};
use gitea::{ApiError, Client, ContentType, Hook, HookScope, NewHook, Token};
use tokio::time::sleep;

use super::{
    listing::{self, Hooks},
    plan::{self, Edit, Plan, Step, Wanted, plan},
    refusal::{Asked, explained, name},
    target::Likeness,
};

/// How often, and how long after each other, it is looked whether another run has removed its hook.
const LOOKS: u32 = 10;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Makes hooks, or puts them right.
#[derive(Debug)]
pub(super) struct Registrar {
    pub(super) client: Client,
    pub(super) wanted: Wanted,
    pub(super) secret: Token,
    /// Say what would be done, and change nothing.
    pub(super) dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Made,
    Replaced,
    PutRight,
    AsWanted,
    /// It needs no hook.
    Skipped,
    Failed,
}

/// What was done for a scope, and what its operator has to know.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) outcome: Outcome,
    pub(super) line: String,
    pub(super) notes: Vec<String>,
}

/// A hook that was just made, and what became of it.
struct Made {
    id: i64,
    /// The hook that another run made at the same time, and which stays in place of this one.
    other: Option<i64>,
    notes: Vec<String>,
}

impl Registrar {
    /// Sees to it that there is one hook of ours, and that it is as wanted.
    ///
    /// # Errors
    /// If Gitea refuses something, or does not do what it says it did.
    pub(super) async fn register(&self, scope: &HookScope) -> Result<Report> {
        let found = self.hooks(scope).await?;
        let plan = plan(&found.hooks, &self.wanted);
        let mut notes = self.notes(&found, &plan);
        let whose = name(scope);
        let (outcome, line) = match plan.step {
            Step::Keep(id) => (Outcome::AsWanted, format!("{whose}: hook {id} is as wanted")),
            Step::Edit(edit) => {
                let why = edit.differences.iter().map(ToString::to_string).collect::<Vec<_>>();
                let (id, why) = (edit.hook.id, why.join("; "));
                let line = if self.dry_run {
                    format!("{whose}: hook {id} would be put right: {why}")
                } else {
                    self.edit(scope, &edit).await?;
                    format!("{whose}: hook {id} was put right: {why}")
                };
                (Outcome::PutRight, line)
            }
            Step::Create if self.dry_run => {
                (Outcome::Made, format!("{whose}: a hook would be made"))
            }
            Step::Replace(old) if self.dry_run => {
                let line = format!(
                    "{whose}: a hook would be made, and {} removed after that",
                    numbered(&ids(&old))
                );
                (Outcome::Replaced, line)
            }
            Step::Create => {
                let made = self.make(scope, &found.hooks, &[]).await?;
                notes.extend(made.notes);
                let line = match made.other {
                    None => format!("{whose}: hook {} was made", made.id),
                    Some(other) => format!(
                        "{whose}: hook {other} was made by another run at the same time; that of \
                         this run, {}, was removed",
                        made.id
                    ),
                };
                (Outcome::Made, line)
            }
            Step::Replace(old) => {
                let made = self.make(scope, &found.hooks, &old).await?;
                notes.extend(made.notes);
                if let Some(other) = made.other {
                    bail!(
                        "{whose}: another run made hook {other} at the same time, so that of this \
                         run was removed, and nothing was replaced; run this again"
                    );
                }
                // Not before: what happens between two hooks is told by neither.
                for hook in &old {
                    self.delete(scope, hook.id).await.with_context(|| {
                        format!("hook {} was made, but those before it remain", made.id)
                    })?;
                }
                let old = numbered(&ids(&old));
                let line = format!("{whose}: hook {} was made, then {old} removed", made.id);
                (Outcome::Replaced, line)
            }
        };
        Ok(Report { outcome, line, notes })
    }

    async fn hooks(&self, scope: &HookScope) -> Result<Hooks> {
        let operation = || format!("list the hooks of {}", name(scope));
        listing::hooks(&self.client, scope)
            .await
            .map_err(|error| explained(&operation(), Asked::HooksOf(scope), error))
    }

    /// What was found that is left as it is.
    fn notes(&self, found: &Hooks, plan: &Plan) -> Vec<String> {
        let mut notes = Vec::new();
        if !plan.surplus.is_empty() {
            notes.push(format!(
                "{} to the same address too, so each event comes more than once, which does no \
                 harm; remove what is too much in Gitea under Settings, Webhooks, or with \
                 --replace, which makes one hook anew and removes the others",
                sends(&plan.surplus)
            ));
        }
        for (id, kind) in &plan.of_other_types {
            notes.push(format!(
                "hook {id} sends to the same address as one for {kind}, which ingest refuses; it \
                 is left as it is"
            ));
        }
        let at_target = |hook: &&Hook| self.wanted.target.likeness(&hook.url) != Likeness::Other;
        for hook in found.defaults.iter().filter(at_target) {
            notes.push(format!(
                "hook {} with the same address is a default hook: Gitea copies it to each new \
                 repository, so that events of those come more than once, which does no harm",
                hook.id
            ));
        }
        let ours = plan::ours(&found.hooks, &self.wanted.target);
        let unknown: Vec<i64> = found.of_unknown_kind.intersection(&ours).copied().collect();
        if !unknown.is_empty() {
            notes.push(format!(
                "this Gitea does not say of which kind {} is: of the whole site, or a default hook, \
                 which does not send by itself; if nothing arrives, run this again with --replace",
                numbered(&unknown)
            ));
        }
        notes
    }

    async fn edit(&self, scope: &HookScope, edit: &Edit) -> Result<()> {
        let operation = format!("change hook {} of {}", edit.hook.id, name(scope));
        let edited = self.client.edit_hook(scope, &edit.hook, &edit.edit).await;
        let edited = edited.map_err(|error| explained(&operation, Asked::HooksOf(scope), error))?;
        self.check(&edited.value).context(operation)
    }

    /// Makes a hook, unless another run makes one at the same time.
    async fn make(&self, scope: &HookScope, before: &[Hook], replaced: &[Hook]) -> Result<Made> {
        let hook = NewHook {
            url: replaced.first().map_or_else(
                || self.wanted.target.as_str().to_owned(),
                |hook| self.wanted.target.with_user_of(&hook.url),
            ),
            content_type: ContentType::Json,
            secret: Some(self.secret.clone()),
            events: plan::names(&self.wanted.events.of_new()),
            active: true,
            authorization: replaced.iter().find_map(Hook::authorization),
        };
        let operation = format!("make a hook of {}", name(scope));
        let made = self.client.create_hook(scope, &hook).await;
        let made = made.map_err(|error| explained(&operation, Asked::HooksOf(scope), error))?.value;
        let id = made.id;
        self.check(&made).context(operation)?;
        let known = plan::ours(before, &self.wanted.target);
        self.settle(scope, id, &known)
            .await
            .with_context(|| format!("hook {id} was made; look whether another one was"))
    }

    /// Of the hooks that several runs have just made the oldest stays, and each run removes its
    /// own. So none removes the last one.
    async fn settle(&self, scope: &HookScope, id: i64, known: &BTreeSet<i64>) -> Result<Made> {
        let mut made = Made { id, other: None, notes: Vec::new() };
        for _ in 0..LOOKS {
            let now = self.hooks(scope).await?;
            let ours = plan::ours(&now.hooks, &self.wanted.target);
            let others: Vec<i64> =
                ours.difference(known).copied().filter(|other| *other != id).collect();
            let is_listed = ours.contains(&id);
            let stays = if is_listed {
                others.iter().copied().find(|other| *other < id)
            } else {
                // A run with --replace, which found this one as an old one.
                others.first().copied()
            };
            if stays.is_some() {
                self.delete(scope, id).await?;
                made.other = stays;
                return Ok(made);
            }
            if !is_listed {
                made.notes.push(format!(
                    "Gitea does not list hook {id}, which was just made, so it is not found again, \
                     and another run makes another one; remember its number"
                ));
            }
            if others.is_empty() {
                return Ok(made);
            }
            // Their runs are about to remove them.
            sleep(LOOK_AGAIN_AFTER).await;
            made.notes = vec![format!("{} to the same address too", sends(&others))];
        }
        Ok(made)
    }

    /// Removes a hook. One that is gone is removed.
    async fn delete(&self, scope: &HookScope, id: i64) -> Result<()> {
        match self.client.delete_hook(scope, id).await {
            Ok(_) | Err(ApiError::NotFound { is_giteas: true }) => Ok(()),
            Err(error) => {
                let operation = format!("remove hook {id} of {}", name(scope));
                Err(explained(&operation, Asked::HooksOf(scope), error))
            }
        }
    }

    /// Checks that a hook is as it was asked for.
    fn check(&self, hook: &Hook) -> Result<()> {
        let differences = plan::differences(hook, &self.wanted);
        if differences.is_empty() {
            return Ok(());
        }
        let lines: Vec<_> = differences.iter().map(ToString::to_string).collect();
        bail!("Gitea did not do all of it; of hook {}: {}", hook.id, lines.join("; "))
    }
}

fn ids(hooks: &[Hook]) -> Vec<i64> {
    hooks.iter().map(|hook| hook.id).collect()
}

/// `hook 1`, `hooks 1, 2`.
fn numbered(ids: &[i64]) -> String {
    let list: Vec<_> = ids.iter().map(ToString::to_string).collect();
    format!("hook{} {}", if ids.len() == 1 { "" } else { "s" }, list.join(", "))
}

fn sends(ids: &[i64]) -> String {
    format!("{} {}", numbered(ids), if ids.len() == 1 { "sends" } else { "send" })
}
