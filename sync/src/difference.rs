//! Compares what is known of an issue with what Gitea says.

use contract::{
    event::State,
    issue_state::{KnownIssue, Lifecycle, Person},
};
use gitea::{IssueLine, IssueState};

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing.
    None,
    /// The issue was never seen, and nobody is assigned.
    Unknown,
    /// The issue was never seen, and somebody is assigned.
    UnknownAssigned,
    /// Events contradicted each other.
    InDoubt,
    /// It is known as gone, and it is there.
    Back,
    /// Who is assigned, or whether it is open.
    Changed,
}

/// Compares. None means that nothing is known about the issue.
pub fn difference(known: Option<&KnownIssue>, issue: &IssueLine) -> Difference {
    let Some(known) = known.filter(|known| !known.delivery_id.is_empty()) else {
        let is_assigned = !issue.assignees.is_empty();
        return if is_assigned { Difference::UnknownAssigned } else { Difference::Unknown };
    };
    match known.state {
        // A deletion that was delivered is final.
        Lifecycle::Deleted if known.gone => return Difference::Back,
        Lifecycle::Deleted => return Difference::None,
        _ if known.in_doubt => return Difference::InDoubt,
        _ => {}
    }
    let now: Vec<Person> = issue
        .assignees
        .iter()
        .map(|user| Person { id: user.id, login: user.login.clone() })
        .collect();
    let all_within = |some: &[Person], others: &[Person]| {
        some.iter().all(|person| others.iter().any(|other| other.is(person)))
    };
    let is_same = all_within(&now, &known.assignees)
        && all_within(&known.assignees, &now)
        && known.state == Lifecycle::from(state(issue));
    if is_same { Difference::None } else { Difference::Changed }
}

/// The state of an issue in the words of events.
pub(crate) fn state(issue: &IssueLine) -> State {
    match issue.state {
        IssueState::Open => State::Open,
        IssueState::Closed => State::Closed,
    }
}

#[cfg(test)]
mod tests {
    use gitea::{RepositoryRef, User};

    use super::*;

    fn line(assignees: &[(i64, &str)], is_open: bool) -> IssueLine {
        let user = |(id, login): &(i64, &str)| User { id: *id, login: (*login).into() };
        crate::snapshot::tests::line(
            RepositoryRef { id: 1, owner: "acme".into(), name: "widgets".into() },
            assignees.iter().map(user).collect(),
            if is_open { IssueState::Open } else { IssueState::Closed },
        )
    }

    #[test]
    fn people_and_state_are_compared_and_nothing_else() {
        let bot = |id| Person { id, login: "bot".into() };
        let known = |assignees, state| KnownIssue {
            assignees,
            state,
            delivery_id: "d".into(),
            ..KnownIssue::default()
        };
        use Difference::{Back, Changed, InDoubt, None as Same, Unknown, UnknownAssigned};
        let doubt = KnownIssue { in_doubt: true, ..known(vec![bot(4)], Lifecycle::Open) };
        let gone = KnownIssue { gone: true, ..known(vec![], Lifecycle::Deleted) };
        let marked = KnownIssue { delivery_id: String::new(), ..KnownIssue::default() };
        for (known, assignees, is_open, expected) in [
            (None, &[][..], true, Unknown),
            (None, &[], false, Unknown),
            (None, &[(4, "bot")], true, UnknownAssigned),
            (Some(marked), &[], true, Unknown),
            (Some(known(vec![bot(4)], Lifecycle::Open)), &[(4, "robot")], true, Same),
            (Some(known(vec![bot(4)], Lifecycle::Open)), &[(5, "bot")], true, Changed),
            (Some(known(vec![bot(0)], Lifecycle::Open)), &[(5, "bot")], true, Same),
            (Some(known(vec![bot(4)], Lifecycle::Open)), &[(4, "bot")], false, Changed),
            (Some(known(vec![bot(4)], Lifecycle::Closed)), &[], false, Changed),
            (Some(known(vec![], Lifecycle::Closed)), &[], false, Same),
            (Some(known(vec![], Lifecycle::Deleted)), &[(4, "bot")], true, Same),
            (Some(gone), &[], true, Back),
            (Some(doubt), &[(4, "bot")], true, InDoubt),
        ] {
            let found = difference(known.as_ref(), &line(assignees, is_open));
            assert_eq!(found, expected, "{known:?} {assignees:?} {is_open}");
        }
    }
}
