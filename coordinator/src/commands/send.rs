//! `coordinator send`: a signed delivery to a running ingest.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use contract::{event::State, timestamp::Timestamp};
use serde_json::{Value, json};
use service::{secret::Secret, settings::is_loopback};
use uuid::Uuid;

use super::{
    connect::DataDirArg,
    output,
    webhook_secret::{self, WebhookSecretArgs},
};
use crate::{
    delivery::{ContentType, Delivery, IssueEvent, TEMPLATE_TITLE, id_of},
    local::data_dir::Instance,
};

const DEFAULT_URL: &str = "http://127.0.0.1:8000/webhook/gitea";

/// What to send, and where.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct SendArgs {
    /// What happened to the issue
    #[arg(value_enum)]
    action: Action,
    /// Send this file as it is, instead of a generated payload
    #[arg(long, value_name = "FILE", conflicts_with_all = ["repo", "number", "assignee", "title", "sender", "updated_at"])]
    file: Option<PathBuf>,
    /// Repository
    #[arg(long, value_name = "OWNER/NAME", default_value = "acme/widgets", value_parser = owner_and_name)]
    repo: (String, String),
    /// Number of the issue; with the repository it says which issue this is
    #[arg(long, value_name = "N", default_value_t = 1)]
    number: u64,
    /// Who is assigned after the event, several by repeating it [default: bot with assigned, else
    /// nobody]
    ///
    /// Gitea sends who is assigned after the event, not who was added or removed. So with
    /// unassigned, closed and the other actions, name the assignees who remain.
    #[arg(long, value_name = "LOGIN")]
    assignee: Vec<String>,
    /// Title of the issue
    #[arg(long, default_value = TEMPLATE_TITLE)]
    title: String,
    /// Who did it
    #[arg(long, value_name = "LOGIN", default_value = "maria")]
    sender: String,
    /// When it happened, to the second [default: the next second, which is waited for]
    ///
    /// Of two events of an issue within the same second nobody can say which is the newer one.
    #[arg(long, value_name = "TIME", value_parser = time)]
    updated_at: Option<Timestamp>,
    /// URL of the webhook [default: that of the Coordinator on this machine]
    #[arg(long)]
    url: Option<String>,
    /// File with the webhook's secret [default: GITEA_WEBHOOK_SECRET, or the one in the data
    /// directory]
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    #[command(flatten)]
    data_dir: DataDirArg,
    /// Send it as a form, as a hook with that content type does
    #[arg(long)]
    form: bool,
    /// Id of the delivery [default: a random one]
    #[arg(long, value_name = "UUID")]
    delivery: Option<Uuid>,
    /// Print the answer as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    secret: WebhookSecretArgs,
}

/// The actions that can be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// The issue was opened
    Opened,
    /// Somebody was assigned
    Assigned,
    /// Somebody is no longer assigned
    Unassigned,
    /// The issue was closed
    Closed,
    /// The issue was opened again
    Reopened,
    /// The title was edited
    Edited,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Assigned => "assigned",
            Self::Unassigned => "unassigned",
            Self::Closed => "closed",
            Self::Reopened => "reopened",
            Self::Edited => "edited",
        }
    }
}

/// Sends the delivery and prints the answer.
pub(crate) async fn main(args: &SendArgs) -> Result<()> {
    let instance = Instance::read(args.data_dir.path())?;
    let url = args
        .url
        .clone()
        .or_else(|| instance.as_ref().map(|instance| instance.webhook_url.clone()))
        .unwrap_or_else(|| DEFAULT_URL.into());
    let secret = args.secret(instance.as_ref())?;
    let delivery = args.delivery(&secret).await?;
    let answer = post(&url, &delivery).await?;
    if args.json {
        output::json_line(&answer.json(&delivery))?;
    } else {
        output::lines(&answer.lines(&delivery, &url))?;
    }
    match answer.status {
        200..300 => Ok(()),
        status => bail!("ingest did not take the delivery: {status} {}", answer.message()),
    }
}

impl SendArgs {
    fn secret(&self, instance: Option<&Instance>) -> Result<Secret> {
        match &self.secret_file {
            Some(file) => Ok(webhook_secret::of_file(file)?),
            None => self.secret.read(self.data_dir.path(), instance),
        }
    }

    async fn delivery(&self, secret: &Secret) -> Result<Delivery> {
        let payload = match &self.file {
            Some(file) => {
                tokio::fs::read(file).await.with_context(|| format!("read {}", file.display()))?
            }
            None => {
                let updated_at = match self.updated_at {
                    Some(time) => time,
                    None => next_second().await,
                };
                self.event(updated_at).payload()?
            }
        };
        let id = self.delivery.unwrap_or_else(Uuid::new_v4);
        let content_type = if self.form { ContentType::Form } else { ContentType::Json };
        Ok(Delivery::sign(id, self.action.as_str(), &payload, content_type, secret))
    }

    fn event(&self, updated_at: Timestamp) -> IssueEvent {
        let (owner, repository) = self.repo.clone();
        let assignees = if self.assignee.is_empty() && self.action == Action::Assigned {
            vec!["bot".into()]
        } else {
            self.assignee.clone()
        };
        IssueEvent {
            action: self.action.as_str().into(),
            repository_id: id_of(&format!("{owner}/{repository}").to_lowercase()),
            owner,
            repository,
            number: self.number,
            title: self.title.clone(),
            assignees,
            state: if self.action == Action::Closed { State::Closed } else { State::Open },
            sender: self.sender.clone(),
            updated_at,
        }
    }
}

/// The second that begins next, once it has begun. So commands that follow each other have a second
/// each, whoever sends them.
async fn next_second() -> Timestamp {
    const SECOND: i64 = 1_000_000;
    let next = (Timestamp::now().unix_micros() / SECOND + 1) * SECOND;
    loop {
        let left = next - Timestamp::now().unix_micros();
        // A clock that is set back must not make it wait for longer.
        let Some(left) = u64::try_from(left).ok().filter(|left| (1..=1_000_000).contains(left))
        else {
            return Timestamp::from_unix_micros(next);
        };
        tokio::time::sleep(Duration::from_micros(left)).await;
    }
}

fn time(text: &str) -> Result<Timestamp, &'static str> {
    Timestamp::parse(text).map_err(|_| "not a time such as 2026-11-23T23:45:00Z")
}

pub(crate) fn owner_and_name(text: &str) -> Result<(String, String), &'static str> {
    match text.split('/').collect::<Vec<_>>()[..] {
        [owner, name] if !owner.is_empty() && !name.is_empty() => {
            Ok((owner.to_owned(), name.to_owned()))
        }
        _ => Err("not of the form owner/name"),
    }
}

async fn post(url: &str, delivery: &Delivery) -> Result<Answer> {
    let client = reqwest::Client::builder();
    // A proxy looks for loopback on its own machine.
    let client = if is_loopback(url) { client.no_proxy() } else { client };
    let client = client.build().context("set up the HTTP client")?;
    let mut request = client.post(url).body(delivery.body.clone());
    for (name, value) in &delivery.headers {
        request = request.header(*name, value);
    }
    let response = request.send().await.map_err(|error| {
        if error.is_connect() {
            anyhow!("nothing listens at {url}; is it running? Start it with: cargo run")
        } else {
            anyhow::Error::new(error).context(format!("send to {url}"))
        }
    })?;
    let status = response.status().as_u16();
    let body = response.text().await.with_context(|| format!("read the answer of {url}"))?;
    Ok(Answer { status, body })
}

/// Ingest's answer.
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn body(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| json!(self.body))
    }

    fn json(&self, delivery: &Delivery) -> Value {
        json!({ "status": self.status, "delivery_id": delivery.id.to_string(), "body": self.body() })
    }

    fn lines(&self, delivery: &Delivery, url: &str) -> String {
        let mut lines = vec![
            format!("{} from {url}", self.status),
            format!("  answer    {}", self.body.trim_end()),
            format!("  delivery  {}", delivery.id),
        ];
        if let Some(trace_id) = self.body()["trace_id"].as_str() {
            lines.push(format!("  trace     {trace_id}"));
        }
        lines.join("\n")
    }

    fn message(&self) -> String {
        let body = self.body();
        body["message"].as_str().unwrap_or(self.body.trim()).to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SendArgs,
    }

    fn args(args: &[&str]) -> Result<SendArgs, clap::Error> {
        Cli::try_parse_from([&["send"], args].concat()).map(|cli| cli.args)
    }

    #[test]
    fn an_event_is_what_was_asked_for() {
        for (flags, assignees, state, repository_id) in [
            (&["assigned"][..], &["bot"][..], State::Open, 1),
            (&["assigned", "--assignee", "a", "--assignee", "b"], &["a", "b"], State::Open, 1),
            (&["unassigned"], &[], State::Open, 1),
            (&["unassigned", "--repo", "Acme/Widgets"], &[], State::Open, 1),
            (&["closed", "--assignee", "tom"], &["tom"], State::Closed, 1),
            (&["reopened", "--repo", "acme/docs"], &[], State::Open, id_of("acme/docs")),
        ] {
            let event = args(flags).expect("good arguments").event(Timestamp::now());
            assert_eq!(event.action, flags[0]);
            assert_eq!(
                (&event.assignees[..], event.state),
                (&assignees.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()[..], state)
            );
            assert_eq!(event.repository_id, repository_id, "{flags:?}");
        }
        for flags in
            [&["deleted"][..], &["closed", "--repo", "acme"], &["closed", "--repo", "a/b/c"]]
        {
            assert!(args(flags).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn the_secret_is_the_one_named_else_the_one_of_the_data_directory() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let data_dir = ["closed", "--data-dir", &path("")];
        let secret = |more: &[&str]| {
            args(&[&data_dir[..], more].concat()).expect("good arguments").secret(None)
        };
        let error = secret(&[]).expect_err("none there");
        assert!(error.to_string().contains("start Coordinator once"), "{error}");
        std::fs::write(path("webhook-secret"), "own\n").expect("write");
        std::fs::write(path("other"), "other").expect("write");
        assert_eq!(secret(&[]).expect("own"), Secret::new("own"));
        assert_eq!(secret(&["--gitea-webhook-secret", "set"]).expect("set"), Secret::new("set"));
        let named = ["--gitea-webhook-secret", "set", "--secret-file", &path("other")];
        assert_eq!(secret(&named).expect("named"), Secret::new("other"));
    }

    #[tokio::test]
    async fn a_file_is_sent_as_it_is() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("body");
        std::fs::write(&file, "{ not even JSON").expect("write");
        let args = args(&["closed", "--file", &file.display().to_string()]).expect("arguments");
        let delivery = args.delivery(&Secret::new("s")).await.expect("delivery");
        assert_eq!(delivery.body, b"{ not even JSON");
    }

    #[test]
    fn the_answer_is_told_with_the_ids() {
        let delivery = Delivery { id: Uuid::nil(), headers: Vec::new(), body: Vec::new() };
        let answer =
            Answer { status: 200, body: r#"{"status":"accepted","trace_id":"abc"}"#.into() };
        let lines = answer.lines(&delivery, "http://h");
        assert!(lines.contains("trace     abc") && lines.contains(&Uuid::nil().to_string()));
        let refused = Answer { status: 401, body: r#"{"error":"e","message":"wrong"}"#.into() };
        assert_eq!(refused.message(), "wrong");
        assert_eq!(Answer { status: 502, body: "gateway\n".into() }.message(), "gateway");
    }
}
