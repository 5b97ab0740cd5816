//! Finds what became of a delivery: in a journal, in the streams, in its issue's entry and among spans.

use std::time::Duration;

use async_nats::jetstream::consumer;
use contract::{
    change::{Change, ChangeKind},
    dead_letter, envelope,
    event::IssueEvent,
    issue_state::KnownIssue,
    names::{CHANGES, CHANGES_PREFIX, DEAD_LETTERS, EVENTS, EVENTS_PREFIX},
    subject::{self, EventSubject},
    timestamp::Timestamp,
};
use futures::future::{join, join_all};
use service::{
    peers::{Asked, Journaled, Question, Reply},
    telemetry::span_store::StoredSpan,
};
use uuid::Uuid;

use super::{
    super::{
        reads::{Found, Message, ReadError, Reads, Stream},
        state::Shared,
        text,
    },
    event_of,
    journals::Journals,
};

/// By how much clocks of different machines may differ.
const CLOCKS: i64 = 5_000_000;
/// Messages behind its event that are looked through for its event published again.
const MOST_EVENTS: usize = 64;
/// Dead letters of one delivery that are shown.
const MOST_DEAD: usize = 64;
/// Newest events that are looked through for a delivery of which nobody knows the issue.
const NEWEST: u64 = 2_000;

/// How long is waited for a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// For other processes.
    pub(super) peers: Duration,
    /// For the broker.
    pub(super) broker: Duration,
}

/// A change that was told.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    pub(super) change: Change,
}

/// A dead letter of the delivery.
#[derive(Clone, Debug)]
pub(super) struct Dead {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    pub(super) error: String,
    pub(super) attempts: String,
}

/// What is known of a delivery.
#[derive(Debug, Default)]
pub(super) struct Fate {
    pub(super) id: String,
    /// The ingests that were asked for it.
    pub(super) journals: Journals,
    pub(super) journaled: Option<Journaled>,
    /// Its messages in the stream of events: as it came, and published again.
    pub(super) events: Vec<Message>,
    /// Whether the stream of events could be looked through.
    pub(super) events_read: bool,
    /// The consumer of its partition.
    pub(super) consumer: Option<consumer::Info>,
    pub(super) told: Vec<Told>,
    /// Whether the stream of changes could be looked through.
    pub(super) told_read: bool,
    pub(super) dead: Vec<Dead>,
    /// Whether the dead letters could be looked through.
    pub(super) dead_read: bool,
    /// The state of its issue.
    pub(super) issue: Option<KnownIssue>,
    pub(super) spans: Vec<StoredSpan>,
    /// What could not be looked at.
    pub(super) notes: Vec<String>,
}

/// What could not be read, and why.
type Missing = Vec<(&'static str, ReadError)>;

impl Fate {
    /// Looks everywhere at once, for as long as `patience` allows.
    pub(super) async fn find(shared: &Shared, id: Uuid, patience: Patience) -> Self {
        let journal = Question::Delivery { id, payload: false };
        let spans = Question::Spans { trace_id: id.simple().to_string() };
        let (journals, spans) = join(
            shared.peers.ask_within(Asked::Ingest, &journal, patience.peers),
            shared.peers.ask_within(Asked::All, &spans, patience.peers),
        )
        .await;
        let (journals, journaled) = Journals::of(journals);
        let mut fate = Self { id: id.to_string(), journals, journaled, ..Self::default() };
        for answer in spans.answers {
            if let Reply::Spans { spans, truncated } = answer.reply {
                fate.spans.extend(spans);
                if truncated {
                    fate.notes.push("One process has more spans than fit into its answer.".into());
                }
            }
        }
        let missing = fate.read(&Reads::new(shared.peers.broker(), patience.broker)).await;
        fate.notes.extend(notes(&missing));
        fate.note_journals();
        fate
    }

    /// Notes what journals might say that have not been looked into, where nothing else is known.
    fn note_journals(&mut self) {
        let refused = self.journals.refused.iter();
        let refused = refused.map(|why| format!("A journal could not be read: {why}"));
        self.notes.extend(refused);
        if self.journaled.is_none() && self.events.is_empty() && self.journals.are_missing() {
            self.notes.push(self.journals.absence());
        }
    }

    /// The event, from wherever it is known.
    pub(super) fn event(&self) -> Option<IssueEvent> {
        let journaled = self.journaled.as_ref().and_then(|journaled| journaled.event.as_deref());
        let of_message = || self.events.iter().find_map(|message| event_of(&message.payload));
        journaled.cloned().or_else(of_message)
    }

    /// Owner, repository and number of its issue.
    pub(super) fn issue(&self) -> Option<(String, String, u64)> {
        let of_event =
            |event: IssueEvent| (event.repository.owner, event.repository.name, event.issue.number);
        let of_subject = || {
            let subject = EventSubject::parse(&self.subject()?).ok()?;
            Some((subject.owner, subject.repository, subject.number))
        };
        self.event().map(of_event).or_else(of_subject)
    }

    /// Its subject in the stream of events, as the journal, a message or a span says it.
    fn subject(&self) -> Option<String> {
        let journaled = self.journaled.as_ref().and_then(|journaled| journaled.subject.clone());
        let of_message = || self.events.first().map(|message| message.subject.clone());
        let of_span = || {
            let attributes = self.spans.iter().flat_map(|span| &span.attributes);
            let mut subjects = attributes
                .filter(|(name, _)| name == "messaging.destination.name")
                .map(|(_, subject)| subject);
            subjects.find(|subject| subject.starts_with(EVENTS_PREFIX)).cloned()
        };
        journaled.or_else(of_message).or_else(of_span)
    }

    /// The time from which on there may be something of it.
    fn begin(&self) -> Option<Timestamp> {
        let received = self.journaled.as_ref().map(|journaled| journaled.received_at);
        let message = self.events.first().map(|message| message.time);
        let span = self.spans.iter().map(|span| span.started_at).min();
        let span = span
            .map(|nanos| Timestamp::from_unix_micros(i64::try_from(nanos / 1_000).unwrap_or(0)));
        // Each is of another clock.
        let begin = [received, message, span].into_iter().flatten().min()?;
        Some(Timestamp::from_unix_micros(begin.unix_micros() - CLOCKS))
    }

    /// Reads what the broker has of it. Returns what could not be read.
    async fn read(&mut self, reads: &Reads) -> Missing {
        let mut missing = Missing::new();
        let is_placed = self.subject().is_some() && self.begin().is_some();
        if !is_placed {
            let newest = newest_events(reads, &self.id).await;
            (self.events, self.events_read) = taken(&mut missing, "the newest events", newest);
        }
        let (Some(subject), Some(begin)) = (self.subject(), self.begin()) else { return missing };
        let (id, issue, known) = (self.id.clone(), self.issue(), self.event());
        let entry_of = async |event: IssueEvent| {
            reads.issue_entry(event.repository.id, event.issue.number).await
        };
        let events = async {
            if is_placed {
                read_events(reads, &id, &subject, begin).await
            } else {
                Ok(Found::nothing())
            }
        };
        let events = async {
            if let Some(event) = known {
                return join(events, entry_of(event)).await;
            }
            let events = events.await;
            let messages = events.iter().flat_map(|found| &found.items);
            let event = messages.filter_map(|message| event_of(&message.payload)).next();
            let entry = match event {
                Some(event) => entry_of(event).await,
                None => Ok(None),
            };
            (events, entry)
        };
        let consumer = async {
            match EventSubject::parse(&subject) {
                Ok(subject) => reads.consumer(subject.partition).await,
                Err(_) => Ok(None),
            }
        };
        let told = read_changes(reads, &id, issue, begin);
        let dead = read_dead(reads, &id, &subject, begin);
        // At once, since each may take all of the time.
        let (((events, entry), consumer), (told, dead)) =
            join(join(events, consumer), join(told, dead)).await;
        if is_placed {
            (self.events, self.events_read) = taken(&mut missing, "events of its issue", events);
        }
        (self.told, self.told_read) = taken(&mut missing, "changes of its issue", told);
        (self.dead, self.dead_read) = taken(&mut missing, "dead letters of its issue", dead);
        self.consumer = noted(&mut missing, "the consumer of its partition", consumer).flatten();
        let entry = noted(&mut missing, "the state of its issue", entry).flatten();
        self.issue = entry.and_then(|entry| serde_json::from_slice(&entry.payload).ok());
        missing
    }
}

/// What was read. What was not is put to what is missing.
fn noted<T>(missing: &mut Missing, what: &'static str, read: Result<T, ReadError>) -> Option<T> {
    read.map_err(|error| missing.push((what, error))).ok()
}

/// What was found, and whether it is all. What is not goes to what is missing.
fn taken<T>(
    missing: &mut Missing,
    what: &'static str,
    read: Result<Found<T>, ReadError>,
) -> (Vec<T>, bool) {
    let Some(found) = noted(missing, what, read) else { return (Vec::new(), false) };
    let is_all = found.cut_short.is_none();
    missing.extend(found.cut_short.map(|error| (what, error)));
    (found.items, is_all)
}

/// One line for each reason.
fn notes(missing: &Missing) -> Vec<String> {
    let mut reasons: Vec<&ReadError> = Vec::new();
    for (_, error) in missing {
        if !reasons.contains(&error) {
            reasons.push(error);
        }
    }
    let line = |reason: &ReadError| {
        let of_it = missing.iter().filter(|(_, error)| error == reason);
        let what: Vec<_> = of_it.map(|(what, _)| *what).collect();
        let reason = text::line(&reason.to_string(), text::ERROR);
        format!("Not all was looked at ({}): {reason}.", what.join(", "))
    };
    reasons.into_iter().map(line).collect()
}

/// A stream, and the sequence from which on something may be of this time or later. None if there is no
/// such stream, or nothing in it.
async fn open(
    reads: &Reads,
    name: &str,
    begin: Timestamp,
) -> Result<Option<(Stream, u64)>, ReadError> {
    let info = reads.info(name).await?.filter(|info| info.state.messages > 0);
    let Some(info) = info else { return Ok(None) };
    let stream = reads.stream(name).await?;
    let from = reads.since(&stream, &info.state, begin).await?;
    Ok(Some((stream, from)))
}

/// Its messages on its subject: the first, and those published again soon after.
async fn read_events(
    reads: &Reads,
    id: &str,
    subject: &str,
    begin: Timestamp,
) -> Result<Found<Message>, ReadError> {
    let Some((stream, from)) = open(reads, EVENTS, begin).await? else {
        return Ok(Found::nothing());
    };
    let is_of = |message: Message| message.is_event_of(id).then_some(message);
    let mut found = reads.follow(&stream, subject, from, 1, is_of).await;
    if let Some(next) = found.items.first().map(|first| first.sequence + 1) {
        match reads.walk(&stream, subject, next, MOST_EVENTS, |_| false).await {
            Ok(later) => found.items.extend(later.into_iter().filter_map(is_of)),
            Err(error) => found.cut_short = Some(error),
        }
    }
    Ok(found)
}

/// Looks through the newest events, whatever their issue.
async fn newest_events(reads: &Reads, id: &str) -> Result<Found<Message>, ReadError> {
    let is_of = |message: Message| message.is_event_of(id).then_some(message);
    Ok(reads.newest_of_all(EVENTS, NEWEST, is_of).await?.0)
}

/// The changes that follow from the delivery: one of a kind at most.
async fn read_changes(
    reads: &Reads,
    id: &str,
    issue: Option<(String, String, u64)>,
    begin: Timestamp,
) -> Result<Found<Told>, ReadError> {
    let Some((owner, repository, number)) = issue else { return Ok(Found::nothing()) };
    let Some((stream, from)) = open(reads, CHANGES, begin).await? else {
        return Ok(Found::nothing());
    };
    let place = format!("{}.{}.{number}", subject::escape(&owner), subject::escape(&repository));
    let of_kinds = ChangeKind::ALL.map(|kind| {
        let (subject, id) = (format!("{CHANGES_PREFIX}.{kind}.{place}"), format!("{id}:{kind}"));
        let stream = &stream;
        let is_it = move |message: Message| (message.id() == id).then_some(message);
        async move { reads.follow(stream, &subject, from, 1, is_it).await }
    });
    let mut all = Found::nothing();
    for found in join_all(of_kinds).await {
        all.cut_short = all.cut_short.or(found.cut_short);
        all.items.extend(found.items.into_iter().filter_map(|message| {
            let change = envelope::read_change(&message.payload).ok()?;
            Some(Told { sequence: message.sequence, at: message.time, change })
        }));
    }
    all.items.sort_by_key(|told| told.sequence);
    Ok(all)
}

/// The dead letters of the delivery. There may be many of its issue.
async fn read_dead(
    reads: &Reads,
    id: &str,
    subject: &str,
    begin: Timestamp,
) -> Result<Found<Dead>, ReadError> {
    let Some((stream, from)) = open(reads, DEAD_LETTERS, begin).await? else {
        return Ok(Found::nothing());
    };
    let of_it = |message: Message| {
        let header = |name| message.headers.get(name).map(str::to_owned).unwrap_or_default();
        let original = header(dead_letter::ORIGINAL_MESSAGE_ID);
        let rest = original.strip_prefix(id)?;
        (rest.is_empty() || rest.starts_with('#')).then(|| Dead {
            sequence: message.sequence,
            at: message.time,
            error: header(dead_letter::ERROR),
            attempts: header(dead_letter::ATTEMPTS),
        })
    };
    Ok(reads.follow(&stream, &subject::of_dead_letter(subject), from, MOST_DEAD, of_it).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: &str) -> Message {
        let mut headers = envelope::Headers::default();
        headers.push(envelope::MESSAGE_ID, id);
        Message {
            sequence: 7,
            time: Timestamp::from_unix_micros(0),
            subject: String::new(),
            headers,
            payload: axum::body::Bytes::new(),
        }
    }

    #[test]
    fn what_was_cut_short_is_named_also_where_something_was_found() {
        let mut missing = Missing::new();
        let newest =
            Found { items: vec![message("a")], cut_short: Some(ReadError::TooLate), from: 1 };
        let (events, events_read) = taken(&mut missing, "the newest events", Ok(newest));
        assert_eq!((events.len(), events_read), (1, false));
        let dead = Found { items: vec![1], cut_short: Some(ReadError::TooLate), from: 1 };
        assert_eq!(taken(&mut missing, "dead letters", Ok(dead)), (vec![1], false));
        let whole = Found { items: vec![2], cut_short: None, from: 1 };
        assert_eq!(taken(&mut missing, "changes", Ok(whole)), (vec![2], true));
        noted::<()>(&mut missing, "its state", Err(ReadError::NoConnection));
        assert_eq!(
            notes(&missing),
            [
                "Not all was looked at (the newest events, dead letters): NATS did not answer in time.",
                "Not all was looked at (its state): there is no connection to NATS.",
            ]
        );
    }

    #[test]
    fn an_ingest_that_did_not_answer_is_noted_unless_all_is_known_without_it() {
        let journals =
            Journals { looked: vec!["a".into()], silent: vec!["b".into()], ..Default::default() };
        let mut fate = Fate { journals: journals.clone(), ..Fate::default() };
        fate.note_journals();
        assert_eq!(fate.notes, [journals.absence()]);
        let mut found = Fate { journals, events: vec![message("a")], ..Fate::default() };
        found.note_journals();
        assert_eq!(found.notes, [""; 0]);
    }
}
