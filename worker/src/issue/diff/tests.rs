use super::*;
use contract::{event, event::User, timestamp::Timestamp};

/// Short form of an event: `action [assignees] state second #body`. Second `-` is unknown. The text
/// after `#` stands for the digest, by default the whole short form.
fn event(short: &str) -> IssueEvent {
    let (short, body) = short.split_once(" #").unwrap_or((short, short));
    let (action, rest) = short.split_once(" [").expect(short);
    let (logins, rest) = rest.split_once("] ").expect(short);
    let (state, second) = rest.split_once(' ').expect(short);
    let mut event = event::example();
    event.action = Action::from(action.to_owned());
    event.issue.assignees =
        logins.split_whitespace().map(|login| User { id: 1, login: login.into() }).collect();
    event.issue.state = if state == "open" { State::Open } else { State::Closed };
    event.issue.updated_at =
        second.parse::<i64>().ok().map(|s| Timestamp::from_unix_micros(s * 1_000_000));
    let digest: u64 = body.bytes().fold(7, |hash, byte| hash * 31 % 1_000_003 + u64::from(byte));
    event.delivery.body_sha256 = format!("{digest:064}").chars().rev().collect();
    event
}

/// Judges the events one by one, and returns the result of each in short form.
fn story(events: &[&str]) -> Vec<String> {
    let mut known: Option<IssueState> = None;
    events
        .iter()
        .map(|short| match judge(known.as_ref(), &event(short)) {
            Judgement::Stale => "stale".into(),
            Judgement::NothingNew => "nothing new".into(),
            Judgement::New { changes, next } => {
                let told: Vec<String> = changes
                    .iter()
                    .map(|change| {
                        let doubt = if change.in_doubt { "?" } else { "" };
                        let first = if change.first_seen { "*" } else { "" };
                        format!("{}{doubt}{first}", change.summary())
                    })
                    .collect();
                let doubt = if next.in_doubt { " (in doubt)" } else { "" };
                known = Some(next);
                format!("{}{doubt}", told.join(", "))
            }
        })
        .collect()
}

fn check(rows: &[(&str, &str)]) {
    let (events, expected): (Vec<&str>, Vec<&str>) = rows.iter().copied().unzip();
    assert_eq!(story(&events), expected);
}

#[test]
fn what_is_newer_is_told_as_the_difference() {
    check(&[
        ("opened [] open 0", ""),
        ("assigned [bot] open 1", "assigned +bot"),
        ("assigned [bot tom] open 2", "assigned +tom"),
        ("edited [tom bot] open 3", ""),
        ("unassigned [tom] open 4", "unassigned -bot"),
        ("closed [tom] closed 5", "closed"),
        ("reopened [tom] open 6", "reopened"),
        ("edited [maria] closed 7", "unassigned -tom, closed, assigned +maria"),
        ("assigned [bot] open 8", "unassigned -maria, reopened, assigned +bot"),
    ]);
}

#[test]
fn a_login_that_is_listed_twice_is_told_once() {
    check(&[
        ("assigned [bot bot] open 1", "assigned +bot*"),
        ("assigned [bot tom tom] open 2", "assigned +tom"),
        ("unassigned [bot] open 3", "unassigned -tom"),
        ("assigned [bot tom tom] open 4", "assigned +tom"),
        ("unassigned [] open 5", "unassigned -bot -tom"),
    ]);
}

#[test]
fn a_missed_event_is_made_good_by_the_next_whatever_its_action() {
    check(&[("opened [] open 0", ""), ("label_updated [bot] closed 9", "closed, assigned +bot")]);
}

#[test]
fn of_an_issue_never_seen_the_action_is_believed_as_well() {
    for (event, expected) in [
        ("opened [] open 0", ""),
        ("opened [bot] open 0", "assigned +bot*"),
        ("edited [bot tom] closed 0", "closed*, assigned +bot +tom*"),
        ("unassigned [] open 0", "unassigned*"),
        ("unassigned [tom] closed 0", "unassigned*, closed*, assigned +tom*"),
        ("reopened [] open 0", "reopened*"),
        ("reopened [bot] open 0", "reopened*, assigned +bot*"),
        ("closed [] closed 0", "closed*"),
        // If a snapshot contradicts its action, the snapshot is believed.
        ("reopened [] closed 0", "closed*"),
        ("closed [] open 0", ""),
        ("assigned [] open 0", ""),
    ] {
        assert_eq!(story(&[event]), [expected], "{event}");
    }
}

#[test]
fn older_is_stale_and_the_same_body_is_nothing_new_whatever_came_between() {
    check(&[
        ("assigned [bot] open 5", "assigned +bot*"),
        ("opened [] open 4", "stale"),
        ("assigned [bot] open 5", "nothing new"),
        ("closed [bot] closed 6", "closed"),
        ("assigned [bot] open 5", "stale"),
    ]);
}

#[test]
fn same_second_and_different_is_in_doubt_until_a_newer_one_comes() {
    check(&[
        ("assigned [bot] open 5", "assigned +bot*"),
        ("label_updated [bot] open 5", ""),
        ("unassigned [] open 5", "unassigned -bot? (in doubt)"),
        ("label_cleared [] open 5", " (in doubt)"),
        ("assigned [bot] open 5", "nothing new"),
        ("label_updated [bot] open 5 #other", "assigned +bot? (in doubt)"),
        ("opened [] open 4", "stale"),
        ("edited [bot] open 6", ""),
        ("closed [bot] closed 7", "closed"),
    ]);
}

#[test]
fn three_at_once_as_1_25_and_as_1_27_tell_it() {
    check(&[
        ("opened [] open 0", ""),
        ("assigned [li-wei] open 9", "assigned +li-wei"),
        ("assigned [li-wei bot] open 9", "assigned +bot? (in doubt)"),
        ("assigned [li-wei bot tom] open 9", "assigned +tom? (in doubt)"),
    ]);
    check(&[
        ("opened [] open 0", ""),
        ("assigned [bot tom li-wei] open 9", "assigned +bot +tom +li-wei"),
        ("assigned [bot tom li-wei] open 9", "nothing new"),
        ("assigned [bot tom li-wei] open 9", "nothing new"),
        ("unassigned [maria] open 10", "unassigned -bot -tom -li-wei, assigned +maria"),
        ("unassigned [maria] open 10", "nothing new"),
        ("assigned [maria] open 10", ""),
    ]);
}

#[test]
fn unknown_time_is_never_oldest() {
    // An issue is created with assignees on Gitea 1.25. Both `assigned` events precede `opened` and
    // have no time.
    check(&[
        ("assigned [bot] open -", "assigned +bot*"),
        ("assigned [bot tom] open -", "assigned +tom? (in doubt)"),
        ("opened [bot tom] open 1", ""),
        ("assigned [bot] open - #late", "unassigned -tom? (in doubt)"),
        ("assigned [bot] open - #late", "nothing new"),
        ("edited [bot tom] open 0", "stale"),
        ("edited [bot tom] open 2", "assigned +tom"),
        // Redelivered by another webhook, or by a worker that was suspended while others continued.
        ("assigned [bot] open - #late", "nothing new"),
        ("assigned [bot] open -", "nothing new"),
    ]);
}

#[test]
fn the_recorded_deliveries_out_of_order_end_in_doubt() {
    check(&[
        ("closed [bot] closed 33", "closed*, assigned +bot*"),
        ("reopened [bot] open 34", "reopened"),
        ("reopened [bot] open 33", "stale"),
        ("closed [bot] closed 33", "stale"),
        ("reopened [bot] open 34", "nothing new"),
        ("closed [bot] closed 34", "closed? (in doubt)"),
    ]);
}

#[test]
fn the_bodies_of_a_second_are_remembered_up_to_a_limit() {
    let mut known = None;
    for n in 0..2 * SEEN_MAX {
        let event = event(&format!("edited [] open 5 #{n}"));
        match judge(known.as_ref(), &event) {
            Judgement::New { next, .. } => known = Some(next),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(known.expect("a state").seen.len(), SEEN_MAX);
}

#[test]
fn what_was_told_before_a_failure_is_remembered_and_no_more() {
    let Judgement::New { next, .. } = judge(None, &event("opened [tom] open 0")) else {
        panic!("judged");
    };
    let Judgement::New { changes, .. } = judge(Some(&next), &event("edited [bot] closed 1")) else {
        panic!("judged");
    };
    assert_eq!(told_so_far(Some(&next), &[]), next);
    let after_one = told_so_far(Some(&next), &changes[..1]);
    assert_eq!((after_one.assignees.len(), after_one.state), (0, State::Open));
    assert_eq!(after_one.updated_at, next.updated_at, "the event itself is still to be judged");
    let after_all = told_so_far(Some(&next), &changes);
    assert_eq!((after_all.assignees, after_all.state), (vec!["bot".into()], State::Closed));
}

#[test]
fn what_is_left_of_a_first_event_is_told_as_of_a_first_event() {
    for (short, expected) in [
        ("edited [bot] closed 1", "assigned +bot"),
        ("edited [bot] closed -", "assigned +bot"),
        ("unassigned [tom] closed 1", "closed, assigned +tom"),
        ("reopened [tom] open -", "assigned +tom"),
    ] {
        let event = event(short);
        let Judgement::New { changes, .. } = judge(None, &event) else { panic!("judged") };
        let part = told_so_far(None, &changes[..1]);
        let Judgement::New { changes, .. } = judge(Some(&part), &event) else { panic!("judged") };
        let summaries: Vec<_> = changes.iter().map(Change::summary).collect();
        assert_eq!(summaries.join(", "), expected, "{short}");
        assert!(changes.iter().all(|change| change.first_seen && !change.in_doubt), "{short}");
    }
}
