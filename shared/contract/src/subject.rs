//! Writes and reads subjects. No other module spells a subject.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::{
    change::Change,
    event::IssueEvent,
    names::{CHANGES_PREFIX, DEAD_PREFIX, EVENTS_PREFIX},
    partitions::Partitions,
};

/// Everything that is not a letter, a digit, `-` or `_` is escaped as `%XX` of
/// its UTF-8 bytes: dots separate tokens, `*` and `>` are wildcards.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// The subject of an event:
/// `gitea.issues.<action>.<owner>.<repo>.<number>.<partition>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSubject {
    /// Gitea's action.
    pub action: String,
    /// Owner of the repository.
    pub owner: String,
    /// Name of the repository.
    pub repository: String,
    /// Number of the issue.
    pub number: u64,
    /// The partition.
    pub partition: u8,
}

/// Why a text is not the subject of an event.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("not an event subject: {0}")]
pub struct SubjectError(&'static str);

impl EventSubject {
    /// The subject of `event`, where there are `partitions`.
    pub fn of(event: &IssueEvent, partitions: Partitions) -> Self {
        Self {
            action: event.action.as_str().to_owned(),
            owner: event.repository.owner.clone(),
            repository: event.repository.name.clone(),
            number: event.issue.number,
            partition: partitions.of(event.repository.id, event.issue.number),
        }
    }

    /// Whether it is the subject of `event` with any partition.
    pub fn is_of(&self, event: &IssueEvent) -> bool {
        self.action == event.action.as_str()
            && self.owner == event.repository.owner
            && self.repository == event.repository.name
            && self.number == event.issue.number
    }

    /// Reads a subject back. The partition may be one of another number of partitions.
    pub fn parse(subject: &str) -> Result<Self, SubjectError> {
        let rest = subject
            .strip_prefix(EVENTS_PREFIX)
            .and_then(|rest| rest.strip_prefix('.'))
            .ok_or(SubjectError("it starts otherwise"))?;
        let tokens: Vec<&str> = rest.split('.').collect();
        let [action, owner, repository, number, partition] = tokens[..] else {
            return Err(SubjectError("it has another number of tokens"));
        };
        let partition = partition.parse().map_err(|_| SubjectError("bad partition"))?;
        Ok(Self {
            action: unescape(action)?,
            owner: unescape(owner)?,
            repository: unescape(repository)?,
            number: number.parse().map_err(|_| SubjectError("bad issue number"))?,
            partition,
        })
    }
}

impl std::fmt::Display for EventSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{EVENTS_PREFIX}.{}.{}.{}.{}.{}",
            escape(&self.action),
            escape(&self.owner),
            escape(&self.repository),
            self.number,
            self.partition
        )
    }
}

/// The subject of a change: `gitea.changes.<kind>.<owner>.<repo>.<number>`.
pub fn of_change(change: &Change) -> String {
    format!(
        "{CHANGES_PREFIX}.{}.{}.{}.{}",
        change.kind,
        escape(&change.repository.owner),
        escape(&change.repository.name),
        change.issue.number
    )
}

/// Owner, repository and number of the issue that the subject of an event or of a change is of.
pub fn issue_of(subject: &str) -> Option<(String, String, u64)> {
    if let Ok(event) = EventSubject::parse(subject) {
        return Some((event.owner, event.repository, event.number));
    }
    let rest = subject.strip_prefix(CHANGES_PREFIX)?.strip_prefix('.')?;
    let tokens: Vec<&str> = rest.split('.').collect();
    let [_, owner, repository, number] = tokens[..] else { return None };
    Some((unescape(owner).ok()?, unescape(repository).ok()?, number.parse().ok()?))
}

/// Filters for the subjects of events, and of changes, of all issues with this number.
pub fn number_filters(number: u64) -> [String; 2] {
    [format!("{EVENTS_PREFIX}.*.*.*.{number}.*"), format!("{CHANGES_PREFIX}.*.*.*.{number}")]
}

/// The subject of a dead letter whose message was on `subject`: the same subject
/// with `gitea.dead` in place of `gitea`.
pub fn of_dead_letter(subject: &str) -> String {
    format!("{DEAD_PREFIX}.{}", subject.strip_prefix("gitea.").unwrap_or(subject))
}

/// Filter for the subjects of one partition's events.
pub fn partition_filter(partition: u8) -> String {
    format!("{EVENTS_PREFIX}.*.*.*.*.{partition}")
}

/// Escapes any text as one token of a subject.
pub fn escape(token: &str) -> String {
    if token.is_empty() {
        // A subject must not have an empty token. `%` alone is not the escape of any other text.
        return "%".into();
    }
    utf8_percent_encode(token, TOKEN).to_string()
}

fn unescape(token: &str) -> Result<String, SubjectError> {
    if token == "%" {
        return Ok(String::new());
    }
    percent_decode_str(token)
        .decode_utf8()
        .map(|text| text.into_owned())
        .map_err(|_| SubjectError("a token is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event;

    proptest! {
        #[test]
        fn any_texts_make_a_subject_that_reads_back(
            [action, owner, repository] in [(); 3].map(|()| "(?s).*"),
            number: u64,
            partition: u8,
        ) {
            let subject = EventSubject { action, owner, repository, number, partition };
            let text = subject.to_string();
            prop_assert_eq!(text.split('.').filter(|token| !token.is_empty()).count(), 7);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_%".contains(&b)));
            prop_assert_eq!(EventSubject::parse(&text), Ok(subject));
        }

        #[test]
        fn what_reads_as_a_subject_is_written_as_one_that_reads_the_same(
            tokens in "([%0-9A-Fa-f_+é>-]{0,6}\\.){3}[+0-9]{1,3}\\.[+0-9]{1,2}",
        ) {
            if let Ok(subject) = EventSubject::parse(&format!("{EVENTS_PREFIX}.{tokens}")) {
                prop_assert_eq!(EventSubject::parse(&subject.to_string()), Ok(subject));
            }
        }
    }

    #[test]
    fn subjects_read_back_whatever_the_names_hold() {
        for (owner, repository, text) in [
            ("acme", "widgets", "gitea.issues.assigned.acme.widgets.7.3"),
            ("acme", "docs.site", "gitea.issues.assigned.acme.docs%2Esite.7.3"),
            ("a b", "*>", "gitea.issues.assigned.a%20b.%2A%3E.7.3"),
            ("li-wei", "x_1", "gitea.issues.assigned.li-wei.x_1.7.3"),
            ("漢", "100%", "gitea.issues.assigned.%E6%BC%A2.100%25.7.3"),
            ("", "\u{0}", "gitea.issues.assigned.%.%00.7.3"),
        ] {
            let subject = EventSubject {
                action: "assigned".into(),
                owner: owner.into(),
                repository: repository.into(),
                number: 7,
                partition: 3,
            };
            assert_eq!(subject.to_string(), text);
            assert_eq!(EventSubject::parse(text), Ok(subject));
        }
    }

    #[test]
    fn a_subject_names_its_issue() {
        let issue = |owner: &str, repository: &str| Some((owner.into(), repository.into(), 7));
        for (subject, expected) in [
            ("gitea.issues.assigned.acme.docs%2Esite.7.3", issue("acme", "docs.site")),
            ("gitea.changes.assigned.acme.docs%2Esite.7", issue("acme", "docs.site")),
            ("gitea.changes.a.%.%E6%BC%A2.7", issue("", "漢")),
            ("gitea.changes.assigned.acme.widgets", None),
            ("gitea.changes.assigned.acme.widgets.7.3", None),
            ("gitea.changes.assigned.acme.%FF.7", None),
            ("gitea.dead.issues.assigned.acme.widgets.7.3", None),
        ] {
            assert_eq!(issue_of(subject), expected, "{subject}");
        }
    }

    #[test]
    fn what_is_no_event_subject_is_refused() {
        for text in [
            "",
            "gitea.issues",
            "gitea.issuesx.a.b.c.1.2",
            "gitea.changes.assigned.a.b.1",
            "gitea.issues.a.b.c.1",
            "gitea.issues.a.b.c.1.2.3",
            "gitea.issues.a.b.c.x.2",
            "gitea.issues.a.b.c.1.256",
            "gitea.issues.a.b.c.1.-1",
            "gitea.issues.%FF.b.c.1.2",
        ] {
            assert!(EventSubject::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn changes_and_dead_letters_have_subjects_of_their_own() {
        let mut event = event::example();
        event.repository.name = "docs.site".into();
        let change = Change::from_event(crate::change::ChangeKind::Closed, &event);
        assert_eq!(of_change(&change), "gitea.changes.closed.acme.docs%2Esite.1");
        assert_eq!(
            of_dead_letter("gitea.issues.closed.acme.widgets.1.9"),
            "gitea.dead.issues.closed.acme.widgets.1.9"
        );
        assert_eq!(partition_filter(9), "gitea.issues.*.*.*.*.9");
    }
}
