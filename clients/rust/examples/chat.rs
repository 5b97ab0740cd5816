//! Posts each assignment to a chat that takes JSON at a webhook (Slack, Mattermost, Rocket.Chat, …).
//!
//! ```sh
//! NATS_URL=… NATS_USER=… NATS_PASSWORD_FILE=… CHAT_URL=https://chat.example.com/hooks/… \
//!     cargo run -p coordinator-client --example chat
//! ```

use std::process::Stdio;

use anyhow::{Context, Result};
use coordinator_client::{
    Failure, Handled, Received, Settings, Start,
    change::{Change, ChangeKind},
    changes,
};
use serde_json::json;
use tokio::{io::AsyncWriteExt, process::Command};

fn text(change: &Received<Change>) -> String {
    let people = if change.added.is_empty() { &change.removed } else { &change.added };
    let (issue, kind) = (change.issue_ref(), change.kind);
    let (title, url) = (&change.issue.title, &change.issue.url);
    let what = format!("{kind} {}", people.join(", "));
    format!("{issue} {title}: {} ({url})", what.trim())
}

async fn notify(url: &str, change: &Received<Change>) -> Handled {
    let payload = json!({"text": text(change)}).to_string();
    let status = post(url, &payload).await.context("post to the chat")?;
    match status {
        200..300 => Ok(()),
        // 0 is what curl says of a host that cannot be reached.
        0 | 429 | 500.. => Err(anyhow::anyhow!("the chat answers {status}").into()),
        _ => Err(Failure::never(format!("the chat answers {status}"))),
    }
}

/// Posts with curl, so that this example needs no HTTP client. The URL is a secret: it goes to
/// curl's input, since every user of the machine can see arguments.
async fn post(url: &str, payload: &str) -> Result<u16> {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    let config = format!(
        "url = \"{}\"\ndata = \"{}\"\nheader = \"Content-Type: application/json\"\n",
        quoted(url),
        quoted(payload)
    );
    let mut curl = Command::new("curl")
        .args(["--silent", "--max-time", "10", "--output", "/dev/null"])
        .args(["--write-out", "%{http_code}", "--config", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = curl.stdin.take().context("its input")?;
    stdin.write_all(config.as_bytes()).await?;
    drop(stdin);
    let answer = curl.wait_with_output().await?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim().parse().unwrap_or(0))
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let found = std::env::vars().find(|(name, _)| name == "CHAT_URL");
    let (_, url) = found.context("CHAT_URL is not set")?;
    let subscription = changes("chat", move |change| {
        let url = url.clone();
        async move { notify(&url, &change).await }
    })
    .kinds([ChangeKind::Assigned, ChangeKind::Unassigned, ChangeKind::Closed])
    .start(Start::New);
    Ok(subscription.run(Settings::from_variables(std::env::vars())).await?)
}
