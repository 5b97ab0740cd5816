//! Reads the rules again. A file that is wrong changes nothing.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{error, info, warn};

use contract::timestamp::Timestamp;
use service::backoff::Backoff;

use crate::{
    context::Context,
    look,
    reconcile::{Look, Step, reconcile},
    rules::{self, RULE_GONE, Rule, Rules, Want},
    run::RunKey,
    store::StoreError,
};

/// Pauses while runs of rules that have changed cannot be looked at.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// The signal that has the rules read again.
pub(crate) fn hangups() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// Reads the rules again at each signal.
pub(crate) async fn on_hangup(context: Arc<Context>, file: PathBuf, mut hangups: Signal) {
    let (mut changed, mut is_settled) = (BTreeSet::new(), true);
    loop {
        tokio::select! {
            _ = hangups.recv() => {}
            // It takes as long as the broker is away, and the next signal does not wait for it.
            () = settle(&context, &changed), if !is_settled => {
                changed.clear();
                is_settled = true;
                continue;
            }
            () = context.stop.cancelled() => return,
        }
        let path = file.clone();
        let read = tokio::task::spawn_blocking(move || rules::read(&path)).await;
        match read {
            Ok(Ok(rules)) => {
                changed.extend(put_in_place(&context, rules));
                is_settled = false;
            }
            Ok(Err(error)) => {
                context.set_wrong_rules(Some(error.to_string()));
                error!(%error, "the rules are wrong; the former ones stay in place");
            }
            Err(_) => warn!("the rules cannot be read; the former ones stay in place"),
        }
    }
}

/// Returns the names of the former rules that are gone, or for others than before.
fn put_in_place(context: &Arc<Context>, rules: Rules) -> BTreeSet<String> {
    rules.iter().for_each(|rule| context.instruments.has_rule(&rule.name));
    let count = rules.count();
    let former = context.set_rules(rules);
    context.set_wrong_rules(None);
    info!(rules = count, "the rules were read again");
    context.room.notify_one();
    changed(&former, &context.rules())
}

/// Names of the rules of `former` that are not in `rules`, or for others there.
fn changed(former: &Rules, rules: &Rules) -> BTreeSet<String> {
    let is_same = |rule: &Rule| rules.get(&rule.name).is_some_and(|now| now.who == rule.who);
    former.iter().filter(|rule| !is_same(rule)).map(|rule| rule.name.clone()).collect()
}

/// Ends what runs by rules that are gone, or that do not want it any more. Then all issues are looked at
/// for new ones.
async fn settle(context: &Arc<Context>, changed: &BTreeSet<String>) {
    let mut pause = RETRY;
    loop {
        let began = Instant::now();
        let Err(error) = look_at(context, changed).await else { break };
        context.failed(began, &error, "a run of a rule that has changed cannot be looked at");
        pause.wait().await;
    }
    context.sweep.notify_one();
}

/// Looks at the runs of rules that have changed. A run that is queued by the former rules after this
/// reading is given back when it is to begin.
async fn look_at(context: &Arc<Context>, changed: &BTreeSet<String>) -> Result<(), StoreError> {
    context.refresh().await?;
    let rules = context.rules();
    let mut issues = BTreeSet::new();
    for rule in changed {
        for key in context.view(|view| view.of_rule(rule)) {
            // One may be there again by now.
            if rules.get(rule).is_some() {
                issues.insert((key.repository_id, key.number));
            } else {
                context.unless_unreadable(end(context, &key).await)?;
            }
        }
    }
    for issue in issues {
        look::at_issue(context, issue, None).await?;
    }
    Ok(())
}

/// Ends a run whose rule is gone.
async fn end(context: &Arc<Context>, key: &RunKey) -> Result<(), StoreError> {
    let store = context.store().await?;
    loop {
        let (Some(run), revision) = store.run(key).await? else { return Ok(()) };
        let look = Look {
            want: &Want::No(RULE_GONE),
            rule: None,
            bucket: None,
            issue: &run.issue,
            delivery_id: &run.delivery_id,
            told: None,
            now: Timestamp::now(),
        };
        let Step::Write(next) = reconcile(Some(&run), &look) else { return Ok(()) };
        match store.write(key, &next, revision).await {
            Ok(revision) => {
                look::written(context, &store, key, (*next, revision), None, None).await;
                return Ok(());
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_gone_or_for_others_have_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let rules = |rules: &[(&str, &str, &str)]| {
            let rule = |(name, who, program): &(&str, &str, &str)| {
                format!(
                    "[[rule]]\nname = \"{name}\"\nwho = {{ {who} }}\n\
                     run = {{ argv = [\"{program}\"] }}\n"
                )
            };
            let file = dir.path().join("rules.toml");
            std::fs::write(&file, rules.iter().map(rule).collect::<String>()).expect("write");
            rules::read(&file).expect("rules")
        };
        let (bot, label) = ("login = \"bot\"", "login = \"bot\", label = \"x\"");
        let former = rules(&[("a", bot, "true"), ("b", bot, "true"), ("c", bot, "true")]);
        let now = rules(&[("a", bot, "false"), ("c", label, "true"), ("d", bot, "true")]);
        assert_eq!(changed(&former, &now), BTreeSet::from(["b".to_owned(), "c".into()]));
    }
}
