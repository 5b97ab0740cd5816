//! Tests of what Gitea's API says, beside what webhooks bring.

use contract::event::{Act, ActKind, SyncCause, Synced, User};
use contract::timestamp::Timestamp;

use super::{
    tests::{event, short},
    *,
};

/// The event of a row. `cause@known@second@first: event` is an answer of the first sweep, and
/// `cause@known@second: event` is an answer of Gitea's clock at that second, asked
/// when the row of number `known` was the last one that had been handled (0: none). Other rows are
/// webhooks. The delivery is the number of the row.
fn row(n: usize, text: &str) -> IssueEvent {
    let name = |n: usize| if n == 0 { String::new() } else { format!("d{n}") };
    let (answer, rest) = text.split_once(": ").map_or((None, text), |(a, rest)| (Some(a), rest));
    let mut event = event(rest);
    event.delivery.id = name(n);
    if let Some(answer) = answer {
        let parts: Vec<&str> = answer.split('@').collect();
        let second: i64 = parts[2].parse().expect(text);
        event.action = Action::Synced;
        event.synced = Some(Box::new(Synced {
            cause: serde_json::from_value(parts[0].into()).expect(text),
            known: name(parts[1].parse().expect(text)),
            answered_at: Some(Timestamp::from_unix_micros(second * 1_000_000)),
            raised_by: None,
            history: parts.len() > 3,
            acts: Vec::new(),
        }));
    }
    event
}

fn check(rows: &[(&str, &str)]) -> Option<IssueState> {
    let mut known: Option<IssueState> = None;
    for (n, (text, expected)) in rows.iter().enumerate() {
        let event = row(n + 1, text);
        let found = match judge(known.as_ref(), &event) {
            Judgement::Stale { asks: true } => "asks".into(),
            Judgement::Stale { asks: false } => "over".into(),
            Judgement::NothingNew => "nothing new".into(),
            Judgement::Outrun => "outrun".into(),
            Judgement::New { changes, next } => {
                let doubt = if next.in_doubt { " (in doubt)" } else { "" };
                if event.synced.is_some() {
                    let again = judge(Some(&next), &event);
                    assert_eq!(again, Judgement::NothingNew, "{text}, delivered again");
                }
                known = Some(*next);
                format!("{}{doubt}", short(&changes))
            }
        };
        assert_eq!(found, *expected, "row {}: {text}", n + 1);
    }
    known
}

#[test]
fn an_answer_settles_a_doubt_and_what_comes_late_of_that_second_is_no_doubt_again() {
    let state = check(&[
        ("assigned [bot] open 5", "assigned +bot*"),
        ("assigned [tom] open 5", "unassigned -bot?, assigned +tom? (in doubt)"),
        ("doubt@2@7: synced [bot] open 5", "unassigned -tom, assigned +bot"),
        ("assigned [tom] open 5", "nothing new"),
        ("unassigned [] open 5", "asks"),
        ("edited [bot] open 5", ""),
        ("closed [bot] closed 6", "closed"),
        ("unassigned [] open 4", "asks"),
    ]);
    assert!(!state.expect("a state").in_doubt);
}

#[test]
fn an_answer_of_the_second_that_it_is_about_leaves_that_second_open() {
    check(&[
        ("assigned [bot] open 5", "assigned +bot*"),
        ("missed@1@5: synced [tom] open 5", "unassigned -bot, assigned +tom"),
        ("assigned [tom bot] open 5", "assigned +bot? (in doubt)"),
    ]);
}

#[test]
fn what_was_sent_while_an_issue_was_created_and_comes_after_an_answer_is_no_doubt() {
    check(&[
        ("opened [bot] open 5", "assigned +bot*"),
        ("missed@1@9: synced [] open 7", "unassigned -bot"),
        ("assigned [bot] open -", "asks"),
    ]);
}

#[test]
fn an_answer_that_was_asked_before_the_last_delivery_is_outrun() {
    check(&[
        ("missed@3@1: synced [bot] open 1", "outrun"),
        ("assigned [bot] open 5", "assigned +bot*"),
        ("closed [bot] closed 6", "closed"),
        ("doubt@2@5: synced [bot] open 5", "outrun"),
        ("missed@0@5: synced [bot] open 5", "outrun"),
        ("doubt@3@9: synced [bot] open 8", "reopened"),
    ]);
}

#[test]
fn an_answer_is_right_whatever_the_clocks_say() {
    check(&[
        ("assigned [bot] open 500", "assigned +bot*"),
        // Gitea's clock was set back.
        ("closed [bot] closed 5", "asks"),
        ("doubt@1@7: synced [bot] closed 5", "closed"),
        ("reopened [bot] open 6", "asks"),
        ("doubt@3@8: synced [bot] open 6", "reopened"),
    ]);
}

#[test]
fn of_history_only_those_who_are_assigned_are_told() {
    for (text, expected) in [
        ("missed@0@9@first: synced [] open 5", ""),
        ("missed@0@9@first: synced [] closed 5", ""),
        ("missed@0@9@first: synced [bot] closed 5", "closed*, assigned +bot*"),
        ("missed@0@9: synced [] open 5", ""),
        ("missed@0@9: synced [] closed 5", "closed*"),
        ("missed@0@9: synced [bot] open 5", "assigned +bot*"),
        ("missed@0@9: synced [bot] closed 5", "closed*, assigned +bot*"),
        ("gone@0@9: synced [] open 5", "nothing new"),
    ] {
        check(&[(text, expected)]);
    }
    // What was remembered is known later on.
    check(&[
        ("missed@0@9@first: synced [] closed 5", ""),
        ("edited [] closed 9", ""),
        ("reopened [] open 10", "reopened"),
        ("assigned [bot] open 11", "assigned +bot"),
    ]);
}

#[test]
fn a_silent_change_is_told_although_no_time_has_passed() {
    check(&[
        ("assigned [bot tom] open 5", "assigned +bot +tom*"),
        ("repair@1@9: synced [tom] open 5", "unassigned -bot"),
    ]);
}

#[test]
fn what_is_gone_ends_as_a_deleted_issue_does_and_comes_back_only_by_an_answer() {
    let gone = [
        ("assigned [bot tom] open 5", "assigned +bot +tom*"),
        ("gone@1@9: synced [bot tom] open 5", "unassigned -bot -tom, deleted"),
        ("gone@2@9: synced [] open 5", "nothing new"),
        ("closed [bot] closed 6", "asks"),
        ("asked@2@11: synced [bot] closed 6", "closed*, assigned +bot*"),
        ("reopened [bot] open 12", "reopened"),
    ];
    let state = check(&gone[..3]).expect("a tombstone");
    assert!(state.gone && state.assignees.is_empty() && state.state == Lifecycle::Deleted);
    assert!(!check(&gone).expect("a state").gone);
    check(&[
        ("deleted [bot] open 5", "unassigned -bot*, deleted*"),
        ("asked@1@11: synced [bot] open 6", "over"),
        ("gone@1@11: synced [] open 6", "over"),
    ]);
}

#[test]
fn the_timeline_says_by_whom() {
    let user = |id, login: &str| User { id, login: login.into() };
    let mut event = row(2, "missed@0@9: synced [bot:7 tom:8] closed 5");
    let act = |kind, whom, by| Act { kind, whom, by, at: None };
    let synced = event.synced.as_mut().expect("an answer");
    synced.acts = vec![
        act(ActKind::Assigned, Some(user(7, "bot")), user(2, "li-wei")),
        act(ActKind::Closed, None, user(3, "jo")),
        act(ActKind::Assigned, Some(user(7, "bot")), user(1, "maria")),
        act(ActKind::Unassigned, Some(user(8, "tom")), user(1, "maria")),
    ];
    let Judgement::New { changes, .. } = judge(None, &event) else { panic!("nothing new") };
    let told: Vec<_> = changes.iter().map(|decided| decided.change(&event)).collect();
    assert_eq!(told[0].by, [Some(user(3, "jo"))]);
    assert_eq!(
        (&told[1].added[..], &told[1].by[..]),
        (&["bot".to_owned(), "tom".to_owned()][..], &[Some(user(1, "maria")), None][..],)
    );
    assert_eq!(told[1].cause.synced, Some(SyncCause::Missed));
    event.synced.as_mut().expect("an answer").acts.clear();
    assert!(changes.iter().all(|decided| decided.change(&event).by.is_empty()));
}
