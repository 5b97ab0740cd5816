//! `coordinator dead-letters`: what was given up, and trying it again.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::{
    HeaderMap,
    jetstream::{
        self,
        consumer::pull::OrderedConfig,
        message::{PublishMessage, StreamMessage},
        stream::{RawMessageErrorKind, Stream},
    },
};
use futures::StreamExt;
use serde_json::{Map, Value, json};
use shared::{dead_letter, streams, timestamp::Timestamp};
use tokio::time::timeout;

use crate::{broker::BrokerArgs, output, tail::is_missing};

/// How long the next one of a list may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What to do.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct DeadLettersArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Print each as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// List them (the default)
    List,
    /// Show one with its headers and payload
    Show {
        /// Its sequence, as listed
        sequence: u64,
    },
    /// Publish again what was given up, and remove it from the dead letters
    Redrive {
        /// Its sequence, as listed
        #[arg(required_unless_present = "all")]
        sequence: Option<u64>,
        /// All that are there now
        #[arg(long, conflicts_with = "sequence")]
        all: bool,
    },
}

/// Does it.
pub(crate) async fn main(args: &DeadLettersArgs) -> Result<()> {
    let (_broker, session) = args.broker.connect("coordinator-dead-letters").await?;
    let js = &session.jetstream;
    let stream = match js.get_stream(streams::DEAD_LETTERS).await {
        Ok(stream) => Some(stream),
        // It comes with the first worker.
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error).context("look up the stream of dead letters"),
    };
    match args.command.as_ref().unwrap_or(&Command::List) {
        Command::List => print_list(&list(stream.as_ref()).await?, args.json),
        Command::Show { sequence } => {
            let message = message(stream.as_ref(), *sequence).await?;
            output::line(&if args.json {
                full_json(&message).to_string()
            } else {
                full(&message)
            })?;
            Ok(())
        }
        Command::Redrive { sequence: Some(sequence), .. } => {
            redrive(js, stream.as_ref(), *sequence, args.json).await
        }
        Command::Redrive { sequence: None, .. } => {
            // Taken before, so that what fails again is not tried without end.
            let letters = list(stream.as_ref()).await?;
            for letter in &letters {
                redrive(js, stream.as_ref(), letter.sequence, args.json).await?;
            }
            if letters.is_empty() && !args.json {
                output::line("no dead letters")?;
            }
            Ok(())
        }
    }
}

/// What a list tells of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Letter {
    sequence: u64,
    time: Timestamp,
    subject: String,
    error: String,
    attempts: String,
    message_id: String,
}

impl Letter {
    fn new(sequence: u64, time: Timestamp, subject: &str, headers: &HeaderMap) -> Self {
        let header = |name| headers.get(name).map(|value| value.as_str().to_owned());
        Self {
            sequence,
            time,
            subject: header(dead_letter::ORIGINAL_SUBJECT).unwrap_or_else(|| subject.to_owned()),
            error: header(dead_letter::ERROR).unwrap_or_default(),
            attempts: header(dead_letter::ATTEMPTS).unwrap_or_default(),
            message_id: header(dead_letter::ORIGINAL_MESSAGE_ID).unwrap_or_default(),
        }
    }

    fn line(&self) -> String {
        format!(
            "{}  {}  {}  after {} attempts: {}",
            self.sequence,
            output::time(self.time),
            self.subject,
            self.attempts,
            self.error
        )
    }

    fn json(&self) -> Map<String, Value> {
        let fields = [
            ("sequence", json!(self.sequence)),
            ("time", json!(self.time)),
            ("subject", json!(self.subject)),
            ("error", json!(self.error)),
            ("attempts", json!(self.attempts.parse::<u64>().ok())),
            ("message_id", json!(self.message_id)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

async fn list(stream: Option<&Stream>) -> Result<Vec<Letter>> {
    let Some(stream) = stream else { return Ok(Vec::new()) };
    if stream.cached_info().state.messages == 0 {
        return Ok(Vec::new());
    }
    let config = OrderedConfig {
        description: Some("coordinator dead-letters".into()),
        headers_only: true,
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.context("create a consumer")?;
    let mut messages = consumer.messages().await.context("read the dead letters")?;
    let mut letters = Vec::new();
    loop {
        let next = timeout(READ_TIMEOUT, messages.next()).await;
        let message = next
            .context("the broker does not answer")?
            .context("the broker ended it")?
            .context("read the dead letters")?;
        let (sequence, time, pending) = {
            let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
            (info.stream_sequence, timestamp(info.published.unix_timestamp_nanos()), info.pending)
        };
        let headers = message.headers.clone().unwrap_or_default();
        letters.push(Letter::new(sequence, time, &message.subject, &headers));
        if pending == 0 {
            return Ok(letters);
        }
    }
}

fn print_list(letters: &[Letter], json: bool) -> Result<()> {
    for letter in letters {
        output::line(&if json { Value::Object(letter.json()).to_string() } else { letter.line() })?;
    }
    if letters.is_empty() && !json {
        output::line("no dead letters")?;
    }
    Ok(())
}

async fn message(stream: Option<&Stream>, sequence: u64) -> Result<StreamMessage> {
    let Some(stream) = stream else { bail!("there is no dead letter {sequence}") };
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok(message),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
            bail!("there is no dead letter {sequence}")
        }
        Err(error) => Err(error).with_context(|| format!("read dead letter {sequence}")),
    }
}

fn letter(message: &StreamMessage) -> Letter {
    let time = timestamp(message.time.unix_timestamp_nanos());
    Letter::new(message.sequence, time, &message.subject, &message.headers)
}

fn full_json(message: &StreamMessage) -> Value {
    let mut letter = letter(message).json();
    let headers: Map<String, Value> =
        headers(&message.headers).map(|(name, value)| (name, json!(value))).collect();
    letter.insert("headers".into(), headers.into());
    letter.insert("payload".into(), output::json(&message.payload));
    letter.into()
}

fn full(message: &StreamMessage) -> String {
    let mut lines = vec![letter(message).line(), String::new()];
    lines.extend(headers(&message.headers).map(|(name, value)| format!("{name}: {value}")));
    lines.push(String::new());
    lines.push(match output::json(&message.payload) {
        Value::String(text) => text,
        json => format!("{json:#}"),
    });
    lines.join("\n")
}

fn headers(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    let mut pairs: Vec<_> = headers
        .iter()
        .flat_map(|(name, values)| {
            values.iter().map(move |value| (name.to_string(), value.to_string()))
        })
        .collect();
    pairs.sort();
    pairs.into_iter()
}

/// Publishes it where it came from, and only then removes it. A crash between
/// leaves both; doing it again stores no second one, since the message id is the same.
async fn redrive(
    js: &jetstream::Context,
    stream: Option<&Stream>,
    sequence: u64,
    json: bool,
) -> Result<()> {
    let dead = message(stream, sequence).await?;
    let Some(envelope) = dead_letter::redrive(&dead.headers, dead.payload.to_vec(), sequence)
    else {
        bail!("dead letter {sequence} does not say where it came from");
    };
    let publish = PublishMessage::build()
        .headers(envelope.headers)
        .payload(envelope.payload.into())
        .expected_stream(streams::EVENTS);
    let failed = || format!("publish dead letter {sequence} on {}", envelope.subject);
    let ack = js
        .send_publish(envelope.subject.clone(), publish)
        .await
        .with_context(failed)?
        .await
        .with_context(failed)?;
    if let Some(stream) = stream {
        stream
            .delete_message(sequence)
            .await
            .with_context(|| format!("remove dead letter {sequence}, which was published again"))?;
    }
    output::line(&if json {
        json!({ "redriven": sequence, "subject": envelope.subject, "sequence": ack.sequence })
            .to_string()
    } else {
        format!("redriven {sequence} to {} as {}", envelope.subject, ack.sequence)
    })?;
    Ok(())
}

fn timestamp(unix_nanos: i128) -> Timestamp {
    Timestamp::from_unix_micros(i64::try_from(unix_nanos / 1_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::dead_letter::{Reason, park};

    fn dead() -> StreamMessage {
        let mut original = HeaderMap::new();
        original.insert("Nats-Msg-Id", "d-1");
        let reason = Reason {
            error: "decode: not JSON".into(),
            attempts: 3,
            stream: "GITEA_ISSUES".into(),
            sequence: 42,
        };
        let envelope =
            park("gitea.issues.closed.a.w.1.9", &original, b"{\"a\":1}".to_vec(), &reason);
        StreamMessage {
            subject: envelope.subject.into(),
            sequence: 7,
            headers: envelope.headers,
            payload: envelope.payload.into(),
            time: std::time::UNIX_EPOCH.into(),
        }
    }

    #[test]
    fn a_dead_letter_is_told_by_where_it_came_from_and_why() {
        let line = letter(&dead()).line();
        assert_eq!(
            line,
            "7  1970-01-01T00:00:00Z  gitea.issues.closed.a.w.1.9  after 3 attempts: decode: not JSON"
        );
        let json = full_json(&dead());
        assert_eq!(json["payload"]["a"], 1);
        assert_eq!(json["attempts"], 3);
        assert_eq!(json["message_id"], "d-1");
        assert_eq!(json["headers"]["Coordinator-Sequence"], "42");
        let text = full(&dead());
        assert!(text.contains("Coordinator-Stream: GITEA_ISSUES") && text.contains("\"a\": 1"));
    }

    #[tokio::test]
    async fn without_a_stream_there_are_none() {
        assert_eq!(list(None).await.expect("none"), []);
        let error = message(None, 3).await.expect_err("none");
        assert_eq!(error.to_string(), "there is no dead letter 3");
    }
}
