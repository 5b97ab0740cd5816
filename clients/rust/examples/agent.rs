//! Starts a process when the bot is assigned to an issue, and ends it when it is unassigned or the
//! issue is closed or deleted.
//!
//! ```sh
//! NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… \
//!     cargo run -p coordinator-client --example agent LOGIN COMMAND [ARGUMENT …]
//! ```
//!
//! The change comes as JSON on the process's standard input. One process an issue. It is killed,
//! without its children; and none is started again by itself after this program was stopped.

use std::{collections::HashMap, process::Stdio, sync::Arc};

use anyhow::{Context, Result, ensure};
use coordinator_client::{
    Received, Settings, Start,
    change::{Change, ChangeKind},
    changes,
    event::State,
};
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    sync::Mutex,
};

struct Agents {
    login: String,
    command: Vec<String>,
    running: Mutex<HashMap<i64, Child>>,
}

impl Agents {
    fn has(&self, logins: &[String]) -> bool {
        logins.iter().any(|login| login.eq_ignore_ascii_case(&self.login))
    }

    /// Compares what should be with what is, so that the same change again does nothing.
    async fn handle(&self, change: &Received<Change>) -> Result<()> {
        let open = change.issue.state == State::Open && change.kind != ChangeKind::Deleted;
        let wanted = open && self.has(&change.assignees);
        let begins = self.has(&change.added) || change.kind == ChangeKind::Reopened;
        let mut running = self.running.lock().await;
        let there = match running.get_mut(&change.issue.id) {
            Some(child) => child.try_wait()?.is_none(),
            None => false,
        };
        if wanted && begins && !there {
            let child = self.start(change).await?;
            println!("started {:?} for {}", child.id(), change.issue_ref());
            running.insert(change.issue.id, child);
        } else if !wanted && let Some(mut child) = running.remove(&change.issue.id) {
            child.kill().await?;
            println!("ended it for {}", change.issue_ref());
        }
        Ok(())
    }

    /// The title and the body are somebody else's text: on the input, never in arguments.
    async fn start(&self, change: &Received<Change>) -> Result<Child> {
        let mut child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .env("COORDINATOR_ISSUE", change.issue_ref())
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the command")?;
        if let Some(mut stdin) = child.stdin.take() {
            let payload = change.message.payload.clone();
            // It may read nothing.
            tokio::spawn(async move { stdin.write_all(&payload).await });
        }
        Ok(child)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut arguments = std::env::args().skip(1);
    let login = arguments.next().context("usage: agent LOGIN COMMAND [ARGUMENT …]")?;
    let command: Vec<String> = arguments.collect();
    ensure!(!command.is_empty(), "usage: agent LOGIN COMMAND [ARGUMENT …]");
    let agents = Arc::new(Agents { login, command, running: Mutex::default() });
    let subscription = changes("agent", move |change| {
        let agents = Arc::clone(&agents);
        async move { Ok(agents.handle(&change).await?) }
    })
    .start(Start::New);
    Ok(subscription.run(Settings::from_variables(std::env::vars())).await?)
}
