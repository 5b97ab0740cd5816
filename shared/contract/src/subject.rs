//! Writes and reads subjects, and computes partitions. No other module spells a subject.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use thiserror::Error;

use crate::{
    change::Change,
    event::IssueEvent,
    names::{CHANGES_PREFIX, DEAD_PREFIX, EVENTS_PREFIX, PARTITIONS},
};

/// Everything that is not a letter, a digit, `-` or `_` is escaped as `%XX` of
/// its UTF-8 bytes: dots separate tokens, `*` and `>` are wildcards.
const TOKEN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_');

/// Which of the [`PARTITIONS`] an issue belongs to: FNV-1a (64 bit) over the
/// repository's id and the issue's number, both as little-endian 64 bit.
/// The id is used rather than the name, since a repository can be renamed.
pub fn partition(repository_id: i64, number: u64) -> u8 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in repository_id.to_le_bytes().into_iter().chain(number.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // The upper half: the lowest bits of FNV depend on the lowest bits of the input only.
    ((hash >> 32) % u64::from(PARTITIONS)) as u8
}

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
    /// The subject of `event`.
    pub fn of(event: &IssueEvent) -> Self {
        Self {
            action: event.action.as_str().to_owned(),
            owner: event.repository.owner.clone(),
            repository: event.repository.name.clone(),
            number: event.issue.number,
            partition: partition(event.repository.id, event.issue.number),
        }
    }

    /// Reads a subject back.
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
        if partition >= PARTITIONS {
            return Err(SubjectError("partition out of range"));
        }
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
            partition in 0..PARTITIONS,
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
    fn what_is_no_event_subject_is_refused() {
        for text in [
            "",
            "gitea.issues",
            "gitea.issuesx.a.b.c.1.2",
            "gitea.changes.assigned.a.b.1",
            "gitea.issues.a.b.c.1",
            "gitea.issues.a.b.c.1.2.3",
            "gitea.issues.a.b.c.x.2",
            "gitea.issues.a.b.c.1.64",
            "gitea.issues.a.b.c.1.-1",
            "gitea.issues.%FF.b.c.1.2",
        ] {
            assert!(EventSubject::parse(text).is_err(), "{text}");
        }
    }

    /// The partition is stored in subjects: these values must never change.
    #[test]
    fn partitions_are_what_they_always_were() {
        for (repository_id, number, expected) in FROZEN_PARTITIONS {
            assert_eq!(partition(repository_id, number), expected, "{repository_id} #{number}");
        }
    }

    const FROZEN_PARTITIONS: [(i64, u64, u8); 5] =
        [(1, 1, 58), (1, 2, 3), (2, 1, 0), (-1, 0, 54), (i64::MAX, u64::MAX, 0)];

    #[test]
    fn issues_spread_over_all_partitions() {
        let mut counts = [0_u32; PARTITIONS as usize];
        for repository_id in 1..=16 {
            for number in 1..=400 {
                counts[usize::from(partition(repository_id, number))] += 1;
            }
        }
        assert!(counts.iter().all(|&n| (50..200).contains(&n)), "{counts:?}");
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
