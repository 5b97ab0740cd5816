//! Which messages a subscriber wants: at the broker by subject, here by person.

use std::collections::BTreeSet;

use contract::subject::escape;

use crate::{Content, Error};

/// All conditions hold at once; within one, any of its values. An empty one matches any.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) kinds: BTreeSet<String>,
    pub(crate) owners: BTreeSet<String>,
    pub(crate) repositories: BTreeSet<String>,
    pub(crate) login: Option<String>,
    pub(crate) user_id: Option<i64>,
}

impl Filter {
    /// Filters for the consumer. They do not overlap, as the broker demands.
    pub(crate) fn subjects(&self, prefix: &str) -> Result<Vec<String>, Error> {
        if !self.owners.is_empty() && self.repositories.iter().any(|name| name.contains('/')) {
            let text = "name the owner with the repository or by itself, not both";
            return Err(Error::Settings(text.into()));
        }
        let places: BTreeSet<(Option<&str>, Option<&str>)> = any(&self.owners)
            .into_iter()
            .flat_map(|owner| any(&self.repositories).into_iter().map(move |name| (owner, name)))
            .map(|(owner, name)| match name.and_then(|name| name.split_once('/')) {
                Some((owner, name)) => (Some(owner), Some(name)),
                None => (owner, name),
            })
            .collect();
        // A repository of any owner covers the same one of one owner.
        let wide: Vec<_> = places
            .iter()
            .filter(|(owner, name)| owner.is_none() || !places.contains(&(None, *name)))
            .collect();
        let mut subjects: Vec<String> = any(&self.kinds)
            .into_iter()
            .flat_map(|kind| {
                wide.iter().map(move |(owner, name)| pattern(prefix, [kind, *owner, *name]))
            })
            .collect();
        subjects.sort();
        Ok(subjects)
    }

    /// Whether a message concerns the person, if one is named.
    pub(crate) fn wants_people(&self, content: &impl Content) -> bool {
        if self.login.is_none() && self.user_id.is_none() {
            return true;
        }
        content.people().into_iter().any(|(id, login)| {
            self.user_id.is_none_or(|wanted| wanted == id)
                && self
                    .login
                    .as_ref()
                    .is_none_or(|wanted| wanted.to_lowercase() == login.to_lowercase())
        })
    }
}

fn any(names: &BTreeSet<String>) -> Vec<Option<&str>> {
    if names.is_empty() {
        return vec![None];
    }
    names.iter().map(|name| Some(name.as_str())).collect()
}

fn pattern(prefix: &str, tokens: [Option<&str>; 3]) -> String {
    let known = tokens.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let mut subject = prefix.to_owned();
    for token in &tokens[..known] {
        subject.push('.');
        subject.push_str(&token.map_or_else(|| "*".into(), escape));
    }
    subject.push_str(".>");
    subject
}

/// Whether every subject that `narrow` matches is matched by `wide` as well.
pub(crate) fn covers(wide: &str, narrow: &str) -> bool {
    let mut theirs = narrow.split('.');
    for token in wide.split('.') {
        match (token, theirs.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            (_, Some(">")) => return false,
            (token, Some(other)) if token != "*" && token != other => return false,
            _ => {}
        }
    }
    theirs.next().is_none()
}

#[cfg(test)]
mod tests {
    use contract::change::{Change, ChangeKind};

    use super::*;

    fn filter(kinds: &[&str], owners: &[&str], repositories: &[&str]) -> Filter {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Filter {
            kinds: names(kinds),
            owners: names(owners),
            repositories: names(repositories),
            ..Filter::default()
        }
    }

    #[test]
    fn filters_become_subjects_that_do_not_overlap() {
        for (filter, subjects) in [
            (filter(&[], &[], &[]), vec!["p.>"]),
            (filter(&["closed"], &[], &[]), vec!["p.closed.>"]),
            (filter(&[], &["acme"], &[]), vec!["p.*.acme.>"]),
            (filter(&[], &["ACME"], &[]), vec!["p.*.ACME.>"]),
            (filter(&[], &["acme"], &["docs.site"]), vec!["p.*.acme.docs%2Esite.>"]),
            (filter(&["a", "b"], &[], &["o/x"]), vec!["p.a.o.x.>", "p.b.o.x.>"]),
            (filter(&[], &[], &["o/x", "x", "o/y"]), vec!["p.*.*.x.>", "p.*.o.y.>"]),
        ] {
            assert_eq!(filter.subjects("p").expect("subjects"), subjects);
        }
        assert!(filter(&[], &["acme"], &["acme/widgets"]).subjects("p").is_err());
    }

    #[test]
    fn a_subject_covers_what_it_matches_and_no_more() {
        for (wide, narrow, expected) in [
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            ("a.*.c", "a.b.c", true),
            ("a.*.c", "a.*.c", true),
            ("a.b.c", "a.*.c", false),
            ("a.*", "a.>", false),
            ("a.>", "a.b.>", true),
            ("a.b", "a.b.c", false),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn an_assignment_concerns_who_was_assigned_and_another_change_the_assignees() {
        let event: contract::event::IssueEvent =
            serde_json::from_value(example()).expect("an event");
        let mut change = Change::from_event(ChangeKind::Assigned, &event);
        (change.added, change.added_ids) = (vec!["Tom".into()], vec![9]);
        let wants = |login: Option<&str>, user_id: Option<i64>, change: &Change| {
            let login = login.map(str::to_owned);
            Filter { login, user_id, ..Filter::default() }.wants_people(change)
        };
        assert!(wants(None, None, &change));
        assert!(wants(Some("tom"), Some(9), &change));
        assert!(!wants(Some("tom"), Some(4), &change));
        assert!(!wants(Some("bot"), None, &change), "assigned before");
        change.added_ids.clear();
        assert!(wants(Some("tom"), None, &change), "an old change without ids");
        let closed = Change::from_event(ChangeKind::Closed, &event);
        assert!(wants(Some("BOT"), Some(4), &closed));
        assert!(!wants(Some("tom"), None, &closed));
    }

    fn example() -> serde_json::Value {
        let bot = serde_json::json!({"id": 4, "login": "bot"});
        serde_json::json!({
            "version": 1, "action": "closed", "sender": bot,
            "delivery": {"id": "d", "received_at": "2026-11-23T23:45:00Z", "body_sha256": ""},
            "issue": {"id": 1, "number": 7, "title": "", "body": "", "url": "", "state": "closed",
                "assignees": [bot], "labels": [], "author": bot},
            "repository": {"id": 1, "owner": "acme", "name": "widgets", "url": "",
                "clone_url": "", "default_branch": "main"},
        })
    }
}
