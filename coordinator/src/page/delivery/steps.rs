//! The fate of a delivery as steps, each with what became of it.

use contract::{event::SyncCause, issue_state::Lifecycle, timestamp::Timestamp};

use super::{super::text, fate::Fate};

/// How a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Done,
    /// It is under way or comes later.
    Waits,
    Failed,
    Unknown,
}

/// A line of a step, with a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) words: String,
    /// Address and words.
    pub(super) link: Option<(String, String)>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) how: How,
    pub(super) word: &'static str,
    pub(super) at: Option<Timestamp>,
    pub(super) lines: Vec<Line>,
}

impl Step {
    fn new(name: &'static str, how: How, word: &'static str) -> Self {
        Self { name, how, word, at: None, lines: Vec::new() }
    }

    fn at(mut self, at: Option<Timestamp>) -> Self {
        self.at = at;
        self
    }

    fn line(mut self, words: impl Into<String>) -> Self {
        self.lines.push(Line { words: words.into(), link: None });
        self
    }

    fn link(mut self, words: impl Into<String>, address: String, label: impl Into<String>) -> Self {
        self.lines.push(Line { words: words.into(), link: Some((address, label.into())) });
        self
    }
}

/// The steps, in the order of a delivery's way.
pub(super) fn of(fate: &Fate) -> Vec<Step> {
    let mut steps = vec![received(fate), kept(fate), published(fate), handled(fate)];
    steps.push(changes(fate));
    steps.extend(fate.dead.iter().map(|dead| {
        let attempts = text::attempts(&dead.attempts);
        Step::new("Given up", How::Failed, "a dead letter").at(Some(dead.at)).link(
            format!("After {attempts}: {}", dead.error),
            format!("/dead-letters/{}", dead.sequence),
            format!("dead letter {}", dead.sequence),
        )
    }));
    steps.extend(doubt(fate));
    steps
}

fn received(fate: &Fate) -> Step {
    let event = fate.event();
    let synced = event.as_ref().and_then(|event| event.synced.as_deref());
    let received_at = fate.journaled.as_ref().map(|journaled| journaled.received_at);
    let at = received_at.or_else(|| event.as_ref().map(|event| event.delivery.received_at));
    if let Some(synced) = synced {
        let why = match synced.cause {
            SyncCause::Doubt => "because events contradicted each other",
            SyncCause::Missed => "because the issue was changed and no webhook told it",
            SyncCause::Repair => "by the repair",
            SyncCause::Gone => "and the issue is not there any more",
            SyncCause::Asked => "by coordinator sync",
            SyncCause::Other => "for a cause that this version does not know",
        };
        let step = Step::new("Received", How::Done, "from Gitea's API").at(at);
        let step = step.line(format!("No webhook brought it. Gitea was asked {why}."));
        return match &synced.raised_by {
            Some(id) => step.link("The doubt was raised by", format!("/deliveries/{id}"), id),
            None => step,
        };
    }
    if at.is_none() && fate.spans.is_empty() {
        let step =
            Step::new("Received", How::Unknown, "not known here").line(fate.journals.absence());
        let step = step.line(if fate.events_read {
            "The newest events are not of this id, and no process that answered has spans of it."
        } else {
            "The events could not be looked through. No process that answered has spans of it."
        });
        let address = format!("/deliveries/{}?wait=1", fate.id);
        return step.link("Whoever is slow may know it:", address, "look with more patience").line(
            "Gitea's own page says what it was answered; a delivery that was refused or ignored \
                 is in the log alone.",
        );
    }
    let step = Step::new("Received", How::Done, "received and verified").at(at);
    let hook = fate.journaled.as_ref().and_then(|journaled| journaled.hook.clone());
    match hook.or_else(|| event.and_then(|event| event.delivery.hook)) {
        Some(hook) => {
            step.line(format!("By a hook of the kind {}.", text::line(&hook, text::NAME)))
        }
        None => step,
    }
}

fn kept(fate: &Fate) -> Step {
    let name = "Kept";
    match &fate.journaled {
        Some(journaled) => match &journaled.set_aside {
            Some(why) => Step::new(name, How::Failed, "set aside").link(
                format!("No broker takes it: {why}. The journal keeps it for ever."),
                "/runbook/coordinatorsetaside".into(),
                "what to do",
            ),
            None => Step::new(name, How::Done, "in the journal"),
        },
        None if fate.journals.are_missing() => {
            Step::new(name, How::Unknown, "not known").line(fate.journals.absence())
        }
        None => Step::new(name, How::Unknown, "not in a journal").line(fate.journals.absence()).line(
            "Journals keep what was published for a day (JOURNAL_RETENTION_SECS). A synced event was \
             never in one.",
        ),
    }
}

fn published(fate: &Fate) -> Step {
    let name = "Published";
    if let Some(first) = fate.events.first() {
        let mut step = Step::new(name, How::Done, "in the stream of events").at(Some(first.time));
        for message in &fate.events {
            let again = if message.id() == fate.id { "" } else { ", published again" };
            step = step.line(format!("Message {} on {}{again}", message.sequence, message.subject));
        }
        return step;
    }
    match &fate.journaled {
        Some(journaled) if journaled.set_aside.is_some() => Step::new(name, How::Failed, "never"),
        Some(journaled) if !journaled.published => Step::new(
            name,
            How::Waits,
            "waits for the broker",
        )
        .link("", "/runbook/coordinatorunpublishedold".into(), "what to do if it stays so"),
        Some(_) => {
            let step = Step::new(name, How::Done, "the broker has confirmed it");
            if fate.events_read {
                step.line("The stream does not hold it any more, or not where it was looked for.")
            } else {
                step
            }
        }
        None => Step::new(name, How::Unknown, "not found"),
    }
}

fn handled(fate: &Fate) -> Step {
    let name = "Handled";
    let spans = fate.spans.iter().filter(|span| span.kind == "consumer");
    let mut attempts: Vec<_> = spans.collect();
    attempts.sort_by_key(|span| span.ended_at);
    let ended = attempts
        .last()
        .map(|span| Timestamp::from_unix_micros(i64::try_from(span.ended_at / 1_000).unwrap_or(0)));
    let verdict = attempts.last().and_then(|span| {
        let found = span.attributes.iter().find(|(name, _)| name == "coordinator.verdict");
        found.map(|(_, verdict)| verdict.clone())
    });
    let details = |mut step: Step| {
        if attempts.len() > 1 {
            step = step.line(format!("{} attempts.", attempts.len()));
        }
        if let Some(verdict) = &verdict {
            step = step.line(format!("Verdict: {verdict}{}.", meaning(verdict)));
        }
        for error in attempts.iter().filter_map(|span| span.error.as_deref()).take(5) {
            step = step.line(format!("An attempt failed: {error}"));
        }
        step
    };
    let handled = |is_over: bool| {
        let is_told = !fate.told.is_empty() || verdict.as_deref().is_some_and(is_handled);
        if !fate.dead.is_empty() {
            Step::new(name, How::Failed, "given up")
        } else if is_told || (is_over && fate.dead_read) {
            Step::new(name, How::Done, "handled")
        } else if is_over {
            Step::new(name, How::Unknown, "handled, or given up")
                .line("Not all dead letters of its issue were looked at.")
        } else {
            Step::new(name, How::Unknown, "not known")
        }
    };
    let (Some(first), Some(last), Some(consumer)) =
        (fate.events.first(), fate.events.last(), &fate.consumer)
    else {
        return details(handled(ended.is_some()).at(ended));
    };
    // One message of a partition is in hand at a time, so all below the floor is handled.
    let floor = consumer.ack_floor.stream_sequence;
    let step = if floor >= last.sequence {
        handled(true).at(ended)
    } else if floor >= first.sequence {
        Step::new(name, How::Waits, "handled, and waits to be handled again").at(ended)
    } else if consumer.delivered.stream_sequence >= first.sequence && consumer.num_ack_pending > 0 {
        Step::new(name, How::Waits, "in hand of a worker")
    } else {
        let waits = consumer.num_pending + consumer.num_ack_pending as u64;
        let step = Step::new(name, How::Waits, "waits for a worker");
        let step = match waits {
            0 | 1 => step.line("Nothing else waits in its partition."),
            _ => {
                let waits = text::number(waits);
                step.line(format!("{waits} events wait in its partition, it among them."))
            }
        };
        step.link("", "/runbook/coordinatorlag".into(), "what to do if it stays so")
    };
    details(step).line(format!("Consumer {}", consumer.name))
}

/// Whether a worker that came to this verdict was through with the event, and did not give it up.
fn is_handled(verdict: &str) -> bool {
    matches!(verdict, "stale" | "nothing_new" | "outrun" | "unchanged" | "changed")
}

/// What a verdict of a worker means, for who asks why nobody was told.
fn meaning(verdict: &str) -> &'static str {
    match verdict {
        "stale" => ", older than what was known of the issue",
        "nothing_new" => ", it was handled before",
        "unchanged" => ", subscribers knew all that it says",
        "outrun" => ", newer deliveries came before Gitea's answer",
        _ => "",
    }
}

fn changes(fate: &Fate) -> Step {
    let name = "Told";
    if let Some(first) = fate.told.first() {
        let mut step = Step::new(name, How::Done, "changes were told").at(Some(first.at));
        for told in &fate.told {
            let doubt = if told.change.in_doubt { ", in doubt" } else { "" };
            let seen = if told.change.first_seen { ", the issue was not known before" } else { "" };
            step = step.line(format!(
                "{}{doubt}{seen} (message {}, {})",
                told.change.summary(),
                told.sequence,
                told.change.message_id()
            ));
        }
        return step;
    }
    if !fate.told_read {
        return Step::new(name, How::Unknown, "not known");
    }
    if !fate.dead.is_empty() {
        return Step::new(name, How::Failed, "not told")
            .line("It was given up. What follows from it is told once it is redriven.");
    }
    let is_over = fate
        .consumer
        .as_ref()
        .zip(fate.events.last())
        .is_some_and(|(consumer, event)| consumer.ack_floor.stream_sequence >= event.sequence);
    match (is_over, fate.dead_read) {
        (true, true) => Step::new(name, How::Done, "nothing")
            .line("Nothing follows from it. The verdict says why, as long as its spans are kept."),
        (true, false) => Step::new(name, How::Unknown, "nothing that is known")
            .line("Not all dead letters of its issue were looked at."),
        (false, _) => Step::new(name, How::Unknown, "nothing yet"),
    }
}

fn doubt(fate: &Fate) -> Option<Step> {
    let issue = fate.issue.as_ref()?;
    let is_last = issue.delivery_id == fate.id;
    if issue.in_doubt {
        let step = Step::new("Doubt", How::Waits, "its issue is in doubt");
        let step = if is_last { step.line("Since this delivery.") } else { step };
        return Some(step.link(
            "Events of one second contradict each other. With a token Gitea is asked.",
            "/runbook/coordinatordoubtstays".into(),
            "what to do if it stays so",
        ));
    }
    let state = match issue.state {
        Lifecycle::Open => "open",
        Lifecycle::Closed => "closed",
        Lifecycle::Deleted => "deleted",
        Lifecycle::Other => "in a state that this version does not know",
    };
    let people = text::people(issue.assignees.iter().map(|person| &person.login));
    is_last.then(|| {
        Step::new("State", How::Done, "the issue is as this delivery left it")
            .line(format!("{state}, assigned: {people}"))
    })
}

#[cfg(test)]
mod tests {
    use contract::{
        change::{Change, ChangeKind},
        event,
    };
    use service::peers::Journaled;

    use super::{
        super::{
            super::reads::Message,
            fate::{Dead, Told},
            journals::Journals,
        },
        *,
    };

    /// One ingest has looked.
    fn looked() -> Journals {
        Journals { looked: vec!["a".into()], ..Journals::default() }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_unix_micros(1_795_477_502_000_000 + secs * 1_000_000)
    }

    fn journaled() -> Journaled {
        Journaled {
            received_at: at(0),
            hook: Some("repository".into()),
            published: false,
            set_aside: None,
            subject: None,
            event: Some(Box::new(event::example())),
            payload: None,
        }
    }

    fn words(fate: &Fate) -> Vec<(&'static str, &'static str)> {
        of(fate).into_iter().map(|step| (step.name, step.word)).collect()
    }

    #[test]
    fn a_delivery_that_nobody_knows_is_no_failure_of_the_page() {
        let fate =
            Fate { id: "x".into(), journals: looked(), events_read: true, ..Fate::default() };
        assert_eq!(
            words(&fate),
            [
                ("Received", "not known here"),
                ("Kept", "not in a journal"),
                ("Published", "not found"),
                ("Handled", "not known"),
                ("Told", "not known"),
            ]
        );
        let received = &of(&fate)[0];
        assert!(received.lines[0].words.starts_with("Of the ingests that answered (a), none"));
        assert_eq!(received.lines[2].link.as_ref().expect("a link").0, "/deliveries/x?wait=1");
    }

    #[test]
    fn a_journal_that_was_not_looked_into_may_hold_it() {
        let mut fate = Fate { journals: looked(), ..Fate::default() };
        fate.journals.silent.push("b".into());
        for journals in [fate.journals.clone(), Journals::default()] {
            fate.journals = journals;
            let steps = of(&fate);
            assert_eq!((steps[1].name, steps[1].word), ("Kept", "not known"));
            for step in &steps[..2] {
                assert!(step.lines[0].words.ends_with("may hold it."), "{step:?}");
            }
        }
    }

    /// An event that the consumer of its partition is through with.
    fn over() -> Fate {
        let consumer = serde_json::json!({
            "stream_name": "s", "name": "c", "created": "2026-01-01T00:00:00Z",
            "config": {"ack_policy": "explicit", "deliver_policy": "all", "replay_policy": "instant"},
            "delivered": {"consumer_seq": 9, "stream_seq": 9},
            "ack_floor": {"consumer_seq": 9, "stream_seq": 9},
            "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 1, "num_pending": 0,
        });
        let message = Message {
            sequence: 9,
            time: at(0),
            subject: String::new(),
            headers: Default::default(),
            payload: Default::default(),
        };
        Fate {
            events: vec![message],
            consumer: Some(serde_json::from_value(consumer).expect("a consumer")),
            told_read: true,
            dead_read: true,
            ..Fate::default()
        }
    }

    #[test]
    fn what_was_given_up_is_neither_handled_nor_without_changes() {
        let of_it = |fate: &Fate| {
            let steps = of(fate);
            let step = |name| steps.iter().find(|step| step.name == name).expect("a step");
            let (handled, told) = (step("Handled"), step("Told"));
            ((handled.how, handled.word), (told.how, told.word))
        };
        let mut fate = over();
        assert_eq!(of_it(&fate), ((How::Done, "handled"), (How::Done, "nothing")));
        // Not all dead letters were looked at.
        fate.dead_read = false;
        assert_eq!(
            of_it(&fate),
            ((How::Unknown, "handled, or given up"), (How::Unknown, "nothing that is known"))
        );
        fate.dead = vec![Dead { sequence: 3, at: at(2), error: "e".into(), attempts: "4".into() }];
        let given_up = ((How::Failed, "given up"), (How::Failed, "not told"));
        assert_eq!(of_it(&fate), given_up);
        fate.dead_read = true;
        assert_eq!(of_it(&fate), given_up);
        // Its events are too old to be there.
        fate.events.clear();
        assert_eq!(of_it(&fate), given_up);
        fate.told_read = false;
        assert_eq!(of_it(&fate).1, (How::Unknown, "not known"));
    }

    #[test]
    fn a_delivery_that_waits_is_told_from_one_that_no_broker_takes() {
        let mut fate = Fate { journaled: Some(journaled()), journals: looked(), ..Fate::default() };
        let steps = words(&fate);
        assert_eq!(steps[0], ("Received", "received and verified"));
        assert_eq!(steps[1], ("Kept", "in the journal"));
        assert_eq!(steps[2], ("Published", "waits for the broker"));
        fate.journaled.as_mut().expect("journaled").set_aside = Some("too large".into());
        let steps = of(&fate);
        assert_eq!((steps[1].how, steps[1].word), (How::Failed, "set aside"));
        assert!(steps[1].lines[0].words.contains("too large"));
        assert_eq!(steps[2].word, "never");
    }

    #[test]
    fn what_was_told_and_what_was_given_up_are_named_with_their_messages() {
        let mut change = Change::from_event(ChangeKind::Assigned, &event::example());
        change.added = vec!["bot".into()];
        change.in_doubt = true;
        let fate = Fate {
            id: event::example().delivery.id,
            told: vec![Told { sequence: 7, at: at(1), change }],
            told_read: true,
            dead: vec![Dead { sequence: 3, at: at(2), error: "e".into(), attempts: "4".into() }],
            ..Fate::default()
        };
        let steps = of(&fate);
        let told = steps.iter().find(|step| step.name == "Told").expect("told");
        assert_eq!(
            told.lines[0].words,
            "assigned +bot, in doubt (message 7, b60f8ed3-6a1a-4e58-b31e-0b00968f94cb:assigned)"
        );
        let dead = steps.iter().find(|step| step.name == "Given up").expect("given up");
        assert_eq!(dead.lines[0].link.as_ref().expect("a link").0, "/dead-letters/3");
    }

    #[test]
    fn the_last_attempt_says_why_nobody_was_told() {
        let attempt = |id: &str, ended_at, verdict: &str| {
            let mut span = super::super::super::waterfall::tests::span(id, None, 1, ended_at);
            span.kind = "consumer".into();
            span.attributes = vec![("coordinator.verdict".into(), verdict.into())];
            span
        };
        let spans = vec![attempt("a", 9, "stale"), attempt("b", 5, "failed")];
        let steps = of(&Fate { spans, ..Fate::default() });
        let handled = steps.iter().find(|step| step.name == "Handled").expect("a step");
        let words: Vec<_> = handled.lines.iter().map(|line| line.words.as_str()).collect();
        assert_eq!(
            words,
            ["2 attempts.", "Verdict: stale, older than what was known of the issue."]
        );
    }

    #[test]
    fn a_state_in_doubt_says_so_and_one_that_follows_from_the_delivery_too() {
        let issue = contract::issue_state::KnownIssue { in_doubt: true, ..Default::default() };
        let mut fate = Fate { issue: Some(issue), ..Fate::default() };
        assert_eq!(words(&fate).last(), Some(&("Doubt", "its issue is in doubt")));
        let issue = fate.issue.as_mut().expect("an issue");
        (issue.in_doubt, issue.delivery_id) = (false, "another".into());
        assert_eq!(words(&fate).last().expect("a step").0, "Told");
        fate.id = "another".into();
        assert_eq!(words(&fate).last().expect("a step").0, "State");
    }
}
