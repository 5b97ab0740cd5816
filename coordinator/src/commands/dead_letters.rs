//! `coordinator dead-letters`: lists, shows and redrives messages that were given up.

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{
    message::StreamMessage,
    stream::{RawMessageErrorKind, Stream},
};
use contract::{dead_letter, envelope::Headers, names, timestamp::Timestamp};
use serde_json::{Map, Value, json};
use service::{
    broker::{
        Session,
        dead_letters::{self, DeadLetterError},
        message::headers,
        streams::is_missing,
    },
    printable,
};

use super::{connect::BrokerArgs, output};

/// Arguments of `dead-letters`.
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
    /// Publish dead letters again, and then remove them
    Redrive {
        /// Its sequence, as listed
        #[arg(required_unless_present = "all")]
        sequence: Option<u64>,
        /// All dead letters that are there now
        #[arg(long, conflicts_with = "sequence")]
        all: bool,
    },
}

/// Runs the command.
pub(crate) async fn main(args: &DeadLettersArgs) -> Result<()> {
    let (_broker, session) = args.broker.connect("coordinator-dead-letters").await?;
    let js = &session.jetstream;
    let stream = match js.get_stream(names::DEAD_LETTERS).await {
        Ok(stream) => Some(stream),
        // The first worker creates the stream.
        Err(error) if is_missing(&error) => None,
        Err(error) => return Err(error).context("look up the stream of dead letters"),
    };
    match args.command.as_ref().unwrap_or(&Command::List) {
        Command::List => print_list(&list(stream.as_ref()).await?, args.json),
        Command::Show { sequence } => {
            let message = message(&session, stream.as_ref(), *sequence).await?;
            if args.json {
                output::json_line(&full_json(&message))?;
            } else {
                output::lines(&full(&message))?;
            }
            Ok(())
        }
        Command::Redrive { sequence: Some(sequence), .. } => {
            redrive(&session, stream.as_ref(), *sequence, args.json).await
        }
        Command::Redrive { sequence: None, .. } => {
            // Listed before, so that a message that fails again is not redriven without end.
            let letters = list(stream.as_ref()).await?;
            let mut refused = 0;
            for letter in &letters {
                let redriven = redrive(&session, stream.as_ref(), letter.sequence, args.json).await;
                // One that is refused leaves the others.
                match redriven {
                    Err(error) if is_refused(&error) => {
                        output::error_line(&format!("{error:#}"));
                        refused += 1;
                    }
                    redriven => redriven?,
                }
            }
            if refused > 0 {
                bail!("{refused} of {} dead letters are not published again", letters.len());
            }
            if letters.is_empty() && !args.json {
                output::line("no dead letters")?;
            }
            Ok(())
        }
    }
}

/// What a list shows of a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Letter {
    sequence: u64,
    time: Timestamp,
    subject: String,
    /// Its sequence in the stream of events.
    event_sequence: String,
    error: String,
    attempts: String,
    message_id: String,
}

impl Letter {
    fn of(message: &StreamMessage) -> Self {
        let headers = headers(Some(&message.headers));
        let header = |name| headers.get(name).map(str::to_owned);
        Self {
            sequence: message.sequence,
            time: timestamp(message.time.unix_timestamp_nanos()),
            subject: header(dead_letter::ORIGINAL_SUBJECT)
                .unwrap_or_else(|| message.subject.to_string()),
            event_sequence: header(dead_letter::SEQUENCE).unwrap_or_default(),
            error: header(dead_letter::ERROR).unwrap_or_default(),
            attempts: header(dead_letter::ATTEMPTS).unwrap_or_default(),
            message_id: header(dead_letter::ORIGINAL_MESSAGE_ID).unwrap_or_default(),
        }
    }

    fn line(&self) -> String {
        format!(
            "{}  {}  {}  message {}  after {} attempts: {}",
            self.sequence,
            output::time(self.time),
            self.subject,
            self.event_sequence,
            self.attempts,
            self.error
        )
    }

    fn json(&self) -> Map<String, Value> {
        let fields = [
            ("sequence", json!(self.sequence)),
            ("time", json!(self.time)),
            ("subject", json!(self.subject)),
            ("event_sequence", json!(self.event_sequence.parse::<u64>().ok())),
            ("error", json!(self.error)),
            ("attempts", json!(self.attempts.parse::<u64>().ok())),
            ("message_id", json!(self.message_id)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// All dead letters, read one by one: this needs no permission to create a consumer.
async fn list(stream: Option<&Stream>) -> Result<Vec<Letter>> {
    let Some(stream) = stream else { return Ok(Vec::new()) };
    let last = stream.cached_info().state.last_sequence;
    let mut next = stream.cached_info().state.first_sequence;
    let mut letters = Vec::new();
    while next <= last {
        match stream.get_first_raw_message_by_subject(">", next).await {
            Ok(message) => {
                next = message.sequence + 1;
                letters.push(Letter::of(&message));
            }
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => break,
            Err(error) => return Err(error).context("read the dead letters"),
        }
    }
    Ok(letters)
}

fn print_list(letters: &[Letter], json: bool) -> Result<()> {
    for letter in letters {
        if json {
            output::json_line(&letter.json().into())?;
        } else {
            output::line(&letter.line())?;
        }
    }
    if letters.is_empty() && !json {
        output::line("no dead letters")?;
    }
    Ok(())
}

async fn message(
    session: &Session,
    stream: Option<&Stream>,
    sequence: u64,
) -> Result<StreamMessage, DeadLetterError> {
    if stream.is_none() {
        return Err(DeadLetterError::NotThere(sequence));
    }
    dead_letters::message(session, sequence).await
}

fn full_json(message: &StreamMessage) -> Value {
    let mut letter = Letter::of(message).json();
    let headers: Map<String, Value> =
        pairs(&headers(Some(&message.headers))).map(|(name, value)| (name, json!(value))).collect();
    letter.insert("headers".into(), headers.into());
    letter.insert("payload".into(), output::json(&message.payload));
    letter.into()
}

fn full(message: &StreamMessage) -> String {
    let mut lines = vec![Letter::of(message).line(), String::new()];
    lines.extend(
        pairs(&headers(Some(&message.headers))).map(|(name, value)| format!("{name}: {value}")),
    );
    lines.push(String::new());
    lines.push(match output::json(&message.payload) {
        Value::String(text) => text,
        json => printable::json(&format!("{json:#}")).into_owned(),
    });
    lines.join("\n")
}

fn pairs(headers: &Headers) -> impl Iterator<Item = (String, String)> {
    let pairs = headers.0.iter().map(|(name, value)| (name.to_string(), value.clone()));
    let mut pairs: Vec<_> = pairs.collect();
    pairs.sort();
    pairs.into_iter()
}

/// Publishes a dead letter on its original subject, and only then removes it. A crash in
/// between leaves both. A second redrive stores nothing new, since the message id is the same.
async fn redrive(
    session: &Session,
    stream: Option<&Stream>,
    sequence: u64,
    json: bool,
) -> Result<()> {
    let Some(stream) = stream else { return Err(DeadLetterError::NotThere(sequence).into()) };
    let redriven = dead_letters::redrive(session, sequence).await?;
    stream
        .delete_message(sequence)
        .await
        .with_context(|| format!("remove dead letter {sequence}, which was published again"))?;
    let (subject, stored_as) = (redriven.subject, redriven.sequence);
    if json {
        let redriven = json!({ "redriven": sequence, "subject": subject, "sequence": stored_as });
        output::json_line(&redriven)?;
    } else {
        output::line(&format!("redriven {sequence} to {subject} as {stored_as}"))?;
    }
    Ok(())
}

/// Whether a dead letter is no event's message.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(DeadLetterError::Refused(..)))
}

fn timestamp(unix_nanos: i128) -> Timestamp {
    Timestamp::from_unix_micros(i64::try_from(unix_nanos / 1_000).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::HeaderMap;
    use contract::dead_letter::{History, park};

    fn dead() -> StreamMessage {
        let mut original = Headers::default();
        original.push("Nats-Msg-Id", "d-1");
        let history = History {
            error: "decode: not JSON".into(),
            attempts: 3,
            stream: "GITEA_ISSUES".into(),
            sequence: 42,
        };
        let envelope =
            park("gitea.issues.closed.a.w.1.9", &original, b"{\"a\":1}".to_vec(), &history);
        let mut headers = HeaderMap::new();
        for (name, value) in &envelope.headers.0 {
            headers.insert(&**name, value.as_str());
        }
        StreamMessage {
            subject: envelope.subject.into(),
            sequence: 7,
            headers,
            payload: envelope.payload.into(),
            time: std::time::UNIX_EPOCH.into(),
        }
    }

    #[test]
    fn a_dead_letter_is_told_by_where_it_came_from_and_why() {
        let line = Letter::of(&dead()).line();
        assert_eq!(
            line,
            "7  1970-01-01T00:00:00Z  gitea.issues.closed.a.w.1.9  message 42  after 3 attempts: decode: not JSON"
        );
        let json = full_json(&dead());
        assert_eq!(json["payload"]["a"], 1);
        assert_eq!((&json["attempts"], &json["event_sequence"]), (&json!(3), &json!(42)));
        assert_eq!(json["message_id"], "d-1");
        assert_eq!(json["headers"]["Coordinator-Sequence"], "42");
        let text = full(&dead());
        assert!(text.contains("Coordinator-Stream: GITEA_ISSUES") && text.contains("\"a\": 1"));
    }

    #[tokio::test]
    async fn without_a_stream_there_are_none() {
        assert_eq!(list(None).await.expect("none"), []);
    }
}
