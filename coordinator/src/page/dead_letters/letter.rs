//! A dead letter, as a list shows it, and which ones match.

use contract::{dead_letter, subject::EventSubject, timestamp::Timestamp};

use super::super::{delivery::event_of, fields::Fields, reads::Message};

/// A dead letter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Letter {
    pub(super) sequence: u64,
    pub(super) at: Timestamp,
    /// Subject of the event.
    pub(super) subject: String,
    /// Sequence of the event in its stream.
    pub(super) original: String,
    /// Message id of the event.
    message_id: String,
    pub(super) error: String,
    pub(super) attempts: String,
    /// None if it cannot be read.
    pub(super) event: Option<Short>,
}

/// What is shown of its event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Short {
    pub(super) action: String,
    pub(super) issue: String,
    pub(super) place: (String, String, u64),
    pub(super) repository_id: i64,
    pub(super) sender: String,
    pub(super) updated_at: Option<Timestamp>,
    /// Logins of all who are in it.
    logins: Vec<String>,
    title: String,
}

impl Letter {
    pub(super) fn of(message: &Message) -> Self {
        let header = |name| message.headers.get(name).map(str::to_owned);
        let event = event_of(&message.payload).map(|event| Short {
            action: event.action.as_str().to_owned(),
            issue: event.issue_ref(),
            place: (
                event.repository.owner.clone(),
                event.repository.name.clone(),
                event.issue.number,
            ),
            repository_id: event.repository.id,
            sender: event.sender.login.clone(),
            updated_at: event.issue.updated_at,
            logins: event.issue.assignee_logins(),
            title: event.issue.title,
        });
        Self {
            sequence: message.sequence,
            at: message.time,
            subject: header(dead_letter::ORIGINAL_SUBJECT)
                .unwrap_or_else(|| message.subject.clone()),
            original: header(dead_letter::SEQUENCE).unwrap_or_default(),
            message_id: header(dead_letter::ORIGINAL_MESSAGE_ID).unwrap_or_default(),
            error: header(dead_letter::ERROR).unwrap_or_default(),
            attempts: header(dead_letter::ATTEMPTS).unwrap_or_default(),
            event,
        }
    }

    /// The delivery that it came from, whose event may have been redriven before.
    pub(super) fn delivery(&self) -> &str {
        self.message_id.split('#').next().unwrap_or_default()
    }

    /// Owner, repository and number of its issue, as its event or its subject says it.
    pub(super) fn place(&self) -> Option<(String, String, u64)> {
        if let Some(event) = &self.event {
            return Some(event.place.clone());
        }
        let subject = EventSubject::parse(&self.subject).ok()?;
        Some((subject.owner, subject.repository, subject.number))
    }

    /// The beginning of its error, which letters with the same reason share.
    pub(super) fn reason(&self) -> &str {
        self.error.split(':').next().unwrap_or_default().trim()
    }

    /// Letters of one issue are redriven in their order. They share this.
    pub(super) fn lane(&self) -> String {
        match &self.event {
            Some(event) => format!("{}.{}", event.repository_id, event.place.2),
            None => self.subject.clone(),
        }
    }
}

/// Which letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    /// Part of a subject, id, error, login or title, in any letters.
    pub(super) text: String,
    /// The beginning of the error.
    pub(super) reason: String,
}

impl Filter {
    pub(super) fn of(fields: &Fields) -> Self {
        let cut = |text: &str| text.chars().take(200).collect();
        Self { text: cut(fields.get("q")), reason: cut(fields.get("reason")) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.reason.is_empty()
    }

    pub(super) fn matches(&self, letter: &Letter) -> bool {
        let text = self.text.to_lowercase();
        let has = |part: &str| part.to_lowercase().contains(&text);
        let in_event = |event: &Short| {
            has(&event.issue)
                || has(&event.sender)
                || has(&event.title)
                || event.logins.iter().any(|login| has(login))
        };
        let has_text = text.is_empty()
            || has(&letter.subject)
            || has(&letter.error)
            || has(&letter.message_id)
            || letter.event.as_ref().is_some_and(in_event);
        has_text && letter.error.to_lowercase().starts_with(&self.reason.to_lowercase())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use contract::{envelope::Headers, event};

    use super::*;

    /// The dead letter of an event.
    pub(in super::super) fn letter(sequence: u64, error: &str, payload: Option<Vec<u8>>) -> Letter {
        let event = event::example();
        let mut original = Headers::default();
        original.push("Nats-Msg-Id", event.delivery.id.as_str());
        let history = dead_letter::History {
            error: error.into(),
            attempts: 3,
            stream: "GITEA_ISSUES".into(),
            sequence: 42,
        };
        let payload = payload.unwrap_or_else(|| serde_json::to_vec(&event).expect("json"));
        let subject = "gitea.issues.assigned.acme.widgets.1.9";
        let envelope = dead_letter::park(subject, &original, payload, &history);
        Letter::of(&Message {
            sequence,
            time: Timestamp::from_unix_micros(0),
            subject: envelope.subject,
            headers: envelope.headers,
            payload: envelope.payload.into(),
        })
    }

    #[test]
    fn a_letter_is_found_by_all_that_people_know_of_it() {
        let known = letter(7, "decode: not JSON", None);
        assert_eq!((known.reason(), known.lane().as_str()), ("decode", "1.1"));
        assert_eq!(known.delivery(), event::example().delivery.id);
        let filter = |text: &str, reason: &str| Filter { text: text.into(), reason: reason.into() };
        for (text, reason, expected) in [
            ("", "", true),
            ("ACME/widgets#1", "", true),
            ("maria", "", true),
            ("BOT", "", true),
            ("login page", "", true),
            ("b60f8ed3", "", true),
            ("not json", "", true),
            ("", "Decode", true),
            ("bot", "decode: not", true),
            ("bot", "json", false),
            ("nobody", "", false),
        ] {
            assert_eq!(filter(text, reason).matches(&known), expected, "{text} {reason}");
        }
        let unreadable = letter(8, "decode", Some(b"{".to_vec()));
        assert!(unreadable.event.is_none() && filter("widgets", "").matches(&unreadable));
        assert!(!filter("maria", "").matches(&unreadable));
        let place = Some(("acme".to_owned(), "widgets".to_owned(), 1));
        assert_eq!((known.place(), unreadable.place()), (place.clone(), place));
    }
}
