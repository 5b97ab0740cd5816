//! Looks at all issues once: at the start and after the rules or the bucket of runs have changed, since
//! no change tells of an issue that was assigned before.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use service::backoff::Backoff;
use tracing::debug;

use crate::{context::Context, look, rules::Want, run::RunKey, store::StoreError};

/// Pauses while the broker fails.
const RETRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Looks at all issues at the start, and whenever that is asked for.
pub(crate) async fn run(context: Arc<Context>) {
    loop {
        tokio::select! {
            _ = context.broker.connected() => {}
            () = context.stop.cancelled() => return,
        }
        sweep(&context).await;
        tokio::select! {
            () = context.sweep.notified() => {}
            () = context.stop.cancelled() => return,
        }
    }
}

/// Looks at all issues for which a rule wants a run and there is none. Begins anew where the broker
/// fails.
async fn sweep(context: &Arc<Context>) {
    let mut pause = RETRY;
    loop {
        let began = Instant::now();
        let swept = tokio::select! {
            swept = through(context) => swept,
            () = context.stop.cancelled() => return,
        };
        match swept {
            Ok(looked_at) => return debug!(looked_at, "all issues were looked at"),
            Err(error) => context.failed(began, &error, "not all issues could be looked at"),
        }
        tokio::select! {
            () = pause.wait() => {}
            () = context.stop.cancelled() => return,
        }
    }
}

async fn through(context: &Arc<Context>) -> Result<u64, StoreError> {
    context.refresh().await?;
    let store = context.store().await?;
    let (mut revision, mut looked_at) = (1, 0);
    while let Some(((repository_id, number), known, found)) = store.next_issue(revision).await? {
        revision = found + 1;
        let Some(known) = known else { continue };
        let rules = context.rules();
        let is_missing = rules.iter().any(|rule| {
            let key = RunKey { repository_id, number, rule: rule.name.clone() };
            let want = rule.wants(&known.issue, known.labels(), false);
            matches!(want, Want::Yes(_)) && !context.view(|view| view.knows(&key))
        });
        if is_missing {
            look::at_issue(context, (repository_id, number), None).await?;
            looked_at += 1;
        }
    }
    Ok(looked_at)
}
