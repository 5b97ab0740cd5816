//! What Gitea says of an issue now, against what subscribers know.

use contract::issue_state::{KnownIssue, Lifecycle, Person};
use gitea::{Answer, ApiError, Issue, IssueState};
use maud::{Markup, html};
use service::causes::Causes;

use super::{super::text, known};

/// The comparison.
pub(super) fn compared(
    asked: Result<Answer<Issue>, ApiError>,
    known: Option<&KnownIssue>,
) -> Markup {
    match asked {
        Err(error) => html! {
            div.note.warn role="status" {
                p { "Gitea did not show it: " (text::line(&Causes(&error).to_string(), text::ERROR)) }
                @if matches!(error, ApiError::NotFound { .. }) {
                    p { "This alone proves nothing of the issue." }
                }
            }
        },
        Ok(answer) => {
            let issue = answer.value.line;
            let people: Vec<_> = issue
                .assignees
                .iter()
                .map(|user| Person { id: user.id, login: user.login.clone() })
                .collect();
            let state = match issue.state {
                IssueState::Open => Lifecycle::Open,
                IssueState::Closed => Lifecycle::Closed,
            };
            let is_same = known.is_some_and(|known| is_same(known, state, &people));
            html! {
                div class=(if is_same { "note good" } else { "note warn" }) role="status" {
                    @match (known, is_same) {
                        (_, true) => p { "Gitea says the same." },
                        (None, _) => p { "Nothing was known of it here." },
                        (Some(_), false) => p {
                            "Gitea says otherwise. With the next event, or the next sweep, it is told: "
                            code { "coordinator sync --issue" } " tells it at once."
                        },
                    }
                    dl {
                        dt { "Title" } dd { (text::line(&issue.title, text::TITLE)) }
                        dt { "State" } dd { (known::state(state)) }
                        dt { "Assigned" } dd { (text::people(people.iter().map(|person| &person.login))) }
                    }
                }
            }
        }
    }
}

/// Whether both have the same state and the same people.
fn is_same(known: &KnownIssue, state: Lifecycle, people: &[Person]) -> bool {
    let has = |all: &[Person], one: &Person| all.iter().any(|person| person.is(one));
    known.state == state
        && known.assignees.iter().all(|person| has(people, person))
        && people.iter().all(|person| has(&known.assignees, person))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_state_are_compared_and_nothing_else() {
        let person = |id, login: &str| Person { id, login: login.into() };
        let known = KnownIssue {
            assignees: vec![person(1, "bot"), person(0, "tom")],
            title: "another".into(),
            ..KnownIssue::default()
        };
        let there = [person(2, "tom"), person(1, "renamed")];
        assert!(is_same(&known, Lifecycle::Open, &there));
        assert!(!is_same(&known, Lifecycle::Closed, &there));
        assert!(!is_same(&known, Lifecycle::Open, &there[..1]));
        assert!(!is_same(
            &known,
            Lifecycle::Open,
            &[there[0].clone(), there[1].clone(), person(9, "x")]
        ));
    }
}
