//! Which ingests have looked into their journals for a delivery, and which have not answered.

use service::peers::{Answered, Journaled, Reply};

use super::super::text;

/// The ingests that were asked for a delivery, as people call them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Journals {
    /// They have looked.
    pub(super) looked: Vec<String>,
    /// They have answered before, and not now.
    pub(super) silent: Vec<String>,
    /// They have said why they could not look.
    pub(super) refused: Vec<String>,
}

impl Journals {
    /// Who has looked, and what the first one holds that holds something.
    pub(super) fn of(answered: Answered) -> (Self, Option<Journaled>) {
        let mut journals =
            Self { silent: answered.silent.iter().map(text::process).collect(), ..Self::default() };
        let mut journaled = None;
        for answer in answered.answers {
            let name = text::process(&answer.instance);
            match answer.reply {
                Reply::Delivery(found) => {
                    journals.looked.push(name);
                    journaled = journaled.or(found.map(|found| *found));
                }
                Reply::Refused(why) => {
                    journals.refused.push(format!("{name}: {}", text::line(&why, text::ERROR)));
                }
                _ => {}
            }
        }
        (journals, journaled)
    }

    /// Whether one may hold the delivery that none of those holds who have looked, as far as it is
    /// known who there is.
    pub(super) fn are_missing(&self) -> bool {
        self.looked.is_empty() || !self.silent.is_empty() || !self.refused.is_empty()
    }

    /// What it means that nobody has found the delivery. An ingest that this process has never heard
    /// of may be away too.
    pub(super) fn absence(&self) -> String {
        let looked = match &self.looked[..] {
            [] => "No ingest has looked into its journal.".to_owned(),
            looked => {
                format!("Of the ingests that answered ({}), none holds it.", text::people(looked))
            }
        };
        let away = match &self.silent[..] {
            [] => "One that is away may hold it.".to_owned(),
            silent => format!("{} did not answer and may hold it.", text::people(silent)),
        };
        format!("{looked} {away}")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use contract::timestamp::Timestamp;
    use service::peers::{Answer, Instance};

    use super::*;

    /// An ingest on this host.
    pub(in super::super) fn instance(host: &str) -> Instance {
        Instance {
            id: host.into(),
            roles: vec!["ingest".into()],
            host: host.into(),
            pid: 7,
            version: String::new(),
            started_at: Timestamp::from_unix_micros(0),
        }
    }

    #[test]
    fn that_nobody_has_found_it_says_who_has_looked_and_who_has_not() {
        let answer = |host: &str, reply| Answer { instance: instance(host), reply };
        let of = |answers, silent: &[&str]| {
            let silent = silent.iter().map(|host| instance(host)).collect();
            Journals::of(Answered { answers, silent }).0
        };
        let journals = of(vec![answer("a", Reply::Delivery(None))], &[]);
        assert!(!journals.are_missing());
        assert_eq!(
            journals.absence(),
            "Of the ingests that answered (a (7)), none holds it. One that is away may hold it."
        );
        let journals = of(vec![answer("a", Reply::Delivery(None))], &["b", "<b>"]);
        assert!(journals.are_missing());
        assert!(journals.absence().ends_with("b (7), <b> (7) did not answer and may hold it."));
        let journals = of(vec![answer("a", Reply::Refused("busy\u{202e}".into()))], &[]);
        assert!(journals.are_missing() && journals.absence().starts_with("No ingest has looked"));
        assert_eq!(journals.refused, ["a (7): busy\\u{202e}"]);
        assert!(of(Vec::new(), &[]).are_missing());
    }
}
