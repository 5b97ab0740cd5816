//! `coordinator tail`: changes, or events, as they happen.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use async_nats::jetstream::{
    self,
    consumer::{
        DeliverPolicy,
        pull::{Ordered, OrderedConfig},
    },
    stream::Stream,
};
use contract::{
    change::{Change, ChangeKind},
    envelope::{read_change, read_event},
    event::IssueEvent,
    names::{CHANGES, CHANGES_PREFIX, EVENTS, EVENTS_PREFIX},
    subject::escape,
};
use futures::StreamExt;
use service::{
    broker::{Broker, Session, streams::is_missing},
    printable,
    role::signal_received,
    terminal::{Color, Colors, WIDTH, cut, issue_ref, short_id},
};
use tokio::time::sleep;

use super::{connect::BrokerArgs, output, send::owner_and_name};

/// How often to look for a stream that is not there yet.
const STREAM_LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Wait before reading again: without it the client spins on a broker that is just coming back.
const RESUME_DELAY: Duration = Duration::from_millis(500);

/// The most columns for what happened, so that there is room for whether it is in doubt.
const MAX_WHAT: usize = 60;

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct TailArgs {
    /// Show events, which are what Gitea sent, instead of changes
    #[arg(long)]
    events: bool,
    /// Print each payload as one line of JSON
    #[arg(long)]
    json: bool,
    /// Only this kind of change (or action of an event), several by repeating it
    #[arg(long, value_name = "KIND")]
    kind: Vec<String>,
    /// Only this repository
    #[arg(long, value_name = "OWNER/NAME", value_parser = owner_and_name)]
    repo: Option<(String, String)>,
    /// Only this issue's number
    #[arg(long, value_name = "N")]
    number: Option<u64>,
    /// Begin this long ago: 90s, 30m, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// Begin with the oldest that is kept
    #[arg(long, conflicts_with = "since")]
    all: bool,
    /// Anything here means no colors on a terminal
    #[arg(long, env = "NO_COLOR", value_name = "VALUE", hide_env_values = true)]
    no_color: Option<String>,
    #[command(flatten)]
    broker: BrokerArgs,
}

/// Shows messages until a signal, or until nobody reads the output.
pub(crate) async fn main(args: &TailArgs) -> Result<()> {
    let filters = args.filters()?;
    let (broker, session) = args.broker.connect("coordinator-tail").await?;
    tokio::select! {
        result = args.follow(&broker, session, &filters) => result,
        signal = signal_received() => signal.map(drop).context("listen to signals"),
    }
}

impl TailArgs {
    async fn follow(&self, broker: &Broker, session: Session, filters: &[String]) -> Result<()> {
        let name = if self.events { EVENTS } else { CHANGES };
        let (mut stream, was_there) = stream(&session.jetstream, name).await?;
        let mut begin = if was_there { self.begin(&stream) } else { DeliverPolicy::All };
        let mut reading = false;
        let mut found_by = session.number();
        loop {
            let session = broker.connected().await;
            if session.number() != found_by {
                stream = match session.jetstream.get_stream(name).await {
                    Ok(stream) => stream,
                    // The stream was there before, so it is worth waiting for.
                    Err(_) => {
                        sleep(RESUME_DELAY).await;
                        continue;
                    }
                };
                found_by = session.number();
            }
            let mut messages = match messages(&stream, filters, begin).await {
                Ok(messages) => messages,
                // Reading has worked before, so it is worth waiting for.
                Err(_) if reading => {
                    sleep(RESUME_DELAY).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            reading = true;
            let interruption = loop {
                let message = tokio::select! {
                    message = messages.next() => message,
                    // `messages` notices a lost connection only after half a minute.
                    () = session.ended() => break None,
                };
                match message {
                    Some(Ok(message)) => {
                        if let Ok(info) = message.info() {
                            let start_sequence = info.stream_sequence + 1;
                            begin = DeliverPolicy::ByStartSequence { start_sequence };
                        }
                        self.print(&message)?;
                    }
                    Some(Err(error)) => break Some(error.to_string()),
                    None => break Some("the broker ended it".to_owned()),
                }
            };
            if let Some(cause) = interruption {
                output::error_line(&format!("reading was interrupted ({cause}); going on"));
            }
            sleep(RESUME_DELAY).await;
        }
    }

    fn begin(&self, stream: &Stream) -> DeliverPolicy {
        if self.all {
            return DeliverPolicy::All;
        }
        match self.since {
            Some(since) => DeliverPolicy::ByStartTime {
                start_time: (std::time::SystemTime::now() - since).into(),
            },
            // A sequence and not `New`, so that an interruption at the start loses nothing.
            None => DeliverPolicy::ByStartSequence {
                start_sequence: stream.cached_info().state.last_sequence + 1,
            },
        }
    }

    fn filters(&self) -> Result<Vec<String>> {
        let known = |kind: &String| ChangeKind::ALL.iter().any(|known| known.as_str() == kind);
        if let Some(kind) = self.kind.iter().find(|kind| !self.events && !known(kind)) {
            bail!(
                "there is no change {kind}; use assigned, unassigned, closed or reopened, or --events"
            );
        }
        let any = || "*".to_owned();
        let (owner, name) = self
            .repo
            .as_ref()
            .map_or_else(|| (any(), any()), |(owner, name)| (escape(owner), escape(name)));
        let number = self.number.map_or_else(any, |number| number.to_string());
        let kinds = if self.kind.is_empty() {
            vec![any()]
        } else {
            self.kind.iter().map(|kind| escape(kind)).collect()
        };
        Ok(kinds
            .iter()
            .map(|kind| {
                if self.events {
                    format!("{EVENTS_PREFIX}.{kind}.{owner}.{name}.{number}.*")
                } else {
                    format!("{CHANGES_PREFIX}.{kind}.{owner}.{name}.{number}")
                }
            })
            .collect())
    }

    fn print(&self, message: &jetstream::Message) -> io::Result<()> {
        if self.json {
            return output::json_line(&output::json(&message.payload));
        }
        let line = if self.events {
            read_event(&message.payload).map(|event| Line::of_event(&event))
        } else {
            read_change(&message.payload).map(|change| Line::of_change(&change))
        };
        match line {
            Ok(line) => line.print(self.colors()),
            Err(error) => {
                let text = format!("{} cannot be read: {error}", message.subject);
                output::line(&cut(&printable::line(&text), WIDTH))
            }
        }
    }

    fn colors(&self) -> Colors {
        Colors::new(io::stdout().is_terminal(), self.no_color.as_deref())
    }
}

/// Messages of a stream in order, from an ephemeral consumer.
async fn messages(stream: &Stream, filters: &[String], begin: DeliverPolicy) -> Result<Ordered> {
    let config = OrderedConfig {
        description: Some("coordinator tail".into()),
        filter_subjects: filters.to_vec(),
        deliver_policy: begin,
        ..OrderedConfig::default()
    };
    let consumer = stream.create_consumer(config).await.context("create a consumer")?;
    consumer.messages().await.context("read messages")
}

/// The stream, and whether it was there at once.
async fn stream(js: &jetstream::Context, name: &str) -> Result<(Stream, bool)> {
    let mut was_there = true;
    loop {
        match js.get_stream(name).await {
            Ok(stream) => return Ok((stream, was_there)),
            Err(error) if is_missing(&error) => {
                if was_there {
                    output::error_line(&format!("stream {name} is not there yet; waiting for it"));
                }
                was_there = false;
                sleep(STREAM_LOOK_INTERVAL).await;
            }
            Err(error) => return Err(error).with_context(|| format!("look up stream {name}")),
        }
    }
}

/// What a line shows of a change or an event.
struct Line {
    time: String,
    issue: String,
    what: String,
    color: Color,
    flags: String,
    title: String,
    delivery_id: String,
}

impl Line {
    fn of_change(change: &Change) -> Self {
        let flags: Vec<_> = [(change.in_doubt, "in doubt"), (change.first_seen, "first seen")]
            .iter()
            .filter_map(|(is_so, text)| is_so.then_some(*text))
            .collect();
        Self {
            time: output::short_time(change.cause.received_at),
            issue: format!("{}#{}", change.repository.full_name(), change.issue.number),
            what: change.summary(),
            color: match change.kind {
                ChangeKind::Assigned | ChangeKind::Reopened => Color::Green,
                ChangeKind::Closed | ChangeKind::Deleted => Color::Red,
                _ => Color::Yellow,
            },
            flags: if flags.is_empty() { String::new() } else { format!("({})", flags.join(", ")) },
            title: change.issue.title.clone(),
            delivery_id: change.cause.delivery_id.clone(),
        }
    }

    fn of_event(event: &IssueEvent) -> Self {
        let assignees = event.issue.assignee_logins();
        let assignees = if assignees.is_empty() { "nobody".into() } else { assignees.join(" ") };
        let state = format!("{:?}", event.issue.state).to_lowercase();
        Self {
            time: output::short_time(event.delivery.received_at),
            issue: event.issue_ref(),
            what: format!("{} by {}", event.action, event.sender.login),
            color: Color::Blue,
            flags: format!("({state}, {assignees})"),
            title: event.issue.title.clone(),
            delivery_id: event.delivery.id.clone(),
        }
    }

    /// Prints it. Texts from outside stay on this line, and a title in its quotes.
    fn print(&self, colors: Colors) -> io::Result<()> {
        let (issue, title) = (issue_ref(&self.issue), format!("{:?}", self.title));
        let parts = [
            (Some(Color::Dim), self.time.as_str()),
            (Some(Color::Cyan), &issue),
            (Some(self.color), &cut(&self.what, MAX_WHAT)),
            (Some(Color::Yellow), &self.flags),
            (None, &title),
        ];
        output::fitted_line(&parts, (Some(Color::Dim), short_id(&self.delivery_id)), colors)
    }
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let (number, secs) = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)]
        .iter()
        .find_map(|(unit, secs)| Some((text.strip_suffix(unit)?, *secs)))
        .ok_or("not a time such as 90s, 30m, 1h or 2d")?;
    let number: u32 = number.parse().map_err(|_| "not a time such as 90s, 30m, 1h or 2d")?;
    Ok(Duration::from_secs(u64::from(number) * secs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use contract::event;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TailArgs,
    }

    fn args(args: &[&str]) -> TailArgs {
        Cli::try_parse_from([&["tail"], args].concat()).expect("good arguments").args
    }

    #[test]
    fn filters_are_subjects() {
        for (flags, expected) in [
            (&[][..], &["gitea.changes.*.*.*.*"][..]),
            (&["--kind", "assigned"], &["gitea.changes.assigned.*.*.*"]),
            (
                &["--kind", "closed", "--kind", "reopened", "--number", "7"],
                &["gitea.changes.closed.*.*.7", "gitea.changes.reopened.*.*.7"],
            ),
            (&["--repo", "acme/docs.site"], &["gitea.changes.*.acme.docs%2Esite.*"]),
            (&["--events", "--kind", "edited"], &["gitea.issues.edited.*.*.*.*"]),
        ] {
            assert_eq!(args(flags).filters().expect("filters"), expected);
        }
        let error = args(&["--kind", "edited"]).filters().expect_err("no such change");
        assert!(error.to_string().contains("--events"), "{error}");
    }

    #[test]
    fn times_have_a_unit() {
        for (text, secs) in [
            ("90s", Some(90)),
            ("30m", Some(1800)),
            ("1h", Some(3600)),
            ("2d", Some(172_800)),
            ("5", None),
            ("h", None),
            ("-1h", None),
            ("1ä", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), secs, "{text}");
        }
    }

    #[test]
    fn lines_say_what_happened() {
        let mut event = event::example();
        event.issue.title = "a \u{1b}[31m title".into();
        let mut change = Change::from_event(ChangeKind::Assigned, &event);
        change.added = vec!["bot".into()];
        change.in_doubt = true;
        let line = Line::of_change(&change);
        assert_eq!(
            (&*line.issue, &*line.what, &*line.flags, &*line.title),
            ("acme/widgets#1", "assigned +bot", "(in doubt)", "a \u{1b}[31m title")
        );
        let line = Line::of_event(&event);
        assert_eq!((&*line.what, &*line.flags), ("assigned by maria", "(open, bot)"));
    }
}
