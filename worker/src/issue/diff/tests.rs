use super::*;
use contract::{event, event::User, timestamp::Timestamp};

use crate::issue::{
    state::MessageId,
    step::{Step, step},
};

/// Short form of an event: `action [assignees] state second #body`. An assignee is a login, or a
/// login and an id: `bot:7`. Second `-` is unknown. The text after `#` stands for the digest, by
/// default the whole short form.
pub(super) fn event(short: &str) -> IssueEvent {
    let (short, body) = short.split_once(" #").unwrap_or((short, short));
    let (action, rest) = short.split_once(" [").expect(short);
    let (logins, rest) = rest.split_once("] ").expect(short);
    let (state, second) = rest.split_once(' ').expect(short);
    let mut event = event::example();
    event.action = Action::from(action.to_owned());
    event.issue.assignees = logins.split_whitespace().map(user).collect();
    event.issue.state = if state == "open" { State::Open } else { State::Closed };
    event.issue.updated_at =
        second.parse::<i64>().ok().map(|s| Timestamp::from_unix_micros(s * 1_000_000));
    let digest: u64 = body.bytes().fold(7, |hash, byte| hash * 31 % 1_000_003 + u64::from(byte));
    event.delivery.body_sha256 = format!("{digest:064}").chars().rev().collect();
    event
}

fn user(short: &str) -> User {
    let (login, id) = match short.split_once(':') {
        Some((login, id)) => (login, id.parse().expect(short)),
        None => (short, 100 + short.bytes().map(i64::from).sum::<i64>()),
    };
    User { id, login: login.into() }
}

/// The changes in short form: `?` is in doubt, `*` is first seen.
pub(super) fn short(changes: &[Decided]) -> String {
    let example = event::example();
    let short = changes.iter().map(|decided| {
        let doubt = if decided.in_doubt { "?" } else { "" };
        let first = if decided.first_seen { "*" } else { "" };
        format!("{}{doubt}{first}", decided.change(&example).summary())
    });
    short.collect::<Vec<_>>().join(", ")
}

/// Judges the events one by one, and returns the result of each in short form.
fn story(events: &[&str]) -> Vec<String> {
    let mut known: Option<IssueState> = None;
    events
        .iter()
        .map(|text| match judge(known.as_ref(), &event(text)) {
            Judgement::Stale { asks: true } => "stale".into(),
            Judgement::Stale { asks: false } => "over".into(),
            Judgement::Outrun => "outrun".into(),
            Judgement::NothingNew => "nothing new".into(),
            Judgement::New { changes, next } => {
                let doubt = if next.in_doubt { " (in doubt)" } else { "" };
                known = Some(*next);
                format!("{}{doubt}", short(&changes))
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
        ("assigned [bot] open 5", "nothing new"),
        ("edited [bot] open 5", "stale"),
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
        ("closed [bot] closed 33", "nothing new"),
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
            Judgement::New { next, .. } => known = Some(*next),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(known.expect("a state").seen.len(), SEEN_MAX);
}

#[test]
fn a_renamed_person_is_the_same_and_a_login_that_passes_to_another_is_not() {
    check(&[
        ("opened [bot:7] open 0", "assigned +bot*"),
        ("edited [robot:7] open 1", ""),
        ("edited [robot:7 bot:8] open 2", "assigned +bot"),
        ("unassigned [bot:8] open 3", "unassigned -robot"),
        ("edited [bot:9] open 4", "unassigned -bot, assigned +bot"),
        // An id that Gitea leaves out is not compared.
        ("edited [bot:0] open 5", ""),
        ("edited [bot:9] open 6", ""),
    ]);
}

#[test]
fn people_of_a_state_without_ids_are_known_by_login_once() {
    let known: IssueState = serde_json::from_str(
        r#"{"assignees":["bot","tom"],"state":"open","delivery_id":"d","issue":"acme/widgets#1"}"#,
    )
    .expect("a state of the first form");
    let Judgement::New { changes, next } = judge(Some(&known), &event("edited [bot:7] open 1"))
    else {
        panic!("judged");
    };
    assert_eq!(short(&changes), "unassigned -tom");
    let Judgement::New { changes, .. } = judge(Some(&next), &event("edited [bot:8] open 2")) else {
        panic!("judged");
    };
    assert_eq!(short(&changes), "unassigned -bot, assigned +bot");
}

#[test]
fn a_deletion_ends_the_work_and_whatever_comes_later_is_stale() {
    check(&[
        ("opened [bot tom] open 5", "assigned +bot +tom*"),
        // A deletion does not touch `updated_at`. Its payload may be older than the last event.
        ("deleted [bot] open 4", "unassigned -bot -tom, deleted"),
        ("deleted [bot] open 4", "nothing new"),
        ("deleted [bot] open 4 #other", "over"),
        ("assigned [bot] open 9", "over"),
        ("assigned [bot] open -", "over"),
    ]);
    check(&[("deleted [bot] closed 5", "unassigned -bot*, deleted*")]);
    check(&[("deleted [] open -", "deleted*")]);
    check(&[
        ("assigned [bot] open 5", "assigned +bot*"),
        ("unassigned [] open 5", "unassigned -bot? (in doubt)"),
        ("deleted [] open 5", "deleted"),
    ]);
}

#[test]
fn a_parked_message_is_not_decided_and_leaves_an_issue_unseen() {
    let message = MessageId { sequence: 7, id: "d".into() };
    let parked = IssueState { parked: Some(message.clone()), ..IssueState::default() };
    let event = event("unassigned [] open 0");
    assert_eq!(step(Some(&parked), &event, &message), Step::Parked);
    let redriven = MessageId { sequence: 9, id: "d#r1".into() };
    let Step::Decide(state) = step(Some(&parked), &event, &redriven) else { panic!("decided") };
    assert_eq!(short(&state.decision.as_ref().expect("a decision").changes), "unassigned*");
    assert!(state.has_parked(&message), "it is remembered beyond the next event");
}

/// The state after `event`, with its decision.
fn decided(known: Option<&IssueState>, event: &IssueEvent) -> IssueState {
    match step(known, event, &MessageId::default()) {
        Step::Decide(state) => *state,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_decision_is_published_first_and_a_published_one_has_no_effect_on_the_next() {
    let first = event("opened [tom] open 0");
    let mut known = decided(None, &first);
    for event in [&first, &event("edited [bot] closed 1"), &event("deleted [] open 2")] {
        assert_eq!(step(Some(&known), event, &MessageId::default()), Step::Publish);
    }
    known.decision = None;
    known.last_changes.insert(ChangeKind::Assigned, 4);
    assert_eq!(step(Some(&known), &first, &MessageId::default()), Step::NothingNew);
    let next = decided(Some(&known), &event("edited [bot] closed 1"));
    assert_eq!(next.last_changes, known.last_changes);
    let decision = next.decision.expect("a decision");
    assert_eq!(short(&decision.changes), "unassigned -tom, closed, assigned +bot");
    assert_eq!(decision.before.assignees, known.assignees);
    let mut moved = event("edited [bot] closed 1");
    moved.repository.name = "renamed".into();
    let moved = decided(Some(&known), &moved);
    assert_eq!(moved.last_changes.len(), 0, "another name has other subjects");
}

#[test]
fn what_is_taken_back_leaves_what_was_published() {
    let known = IssueState { decision: None, ..decided(None, &event("opened [tom] open 0")) };
    let next = decided(Some(&known), &event("edited [bot] closed 1"));
    assert_eq!(next.taken_back(0), known);
    let one = next.taken_back(1);
    assert_eq!((one.assignees.len(), one.state), (0, Lifecycle::Open));
    assert_eq!(one.updated_at, known.updated_at, "the event itself is still to be judged");
    let all = next.taken_back(3);
    assert_eq!((all.assignees, all.state), (vec![Person::from(&user("bot"))], Lifecycle::Closed));
}

#[test]
fn what_is_left_of_a_first_event_is_told_as_of_a_first_event() {
    for text in [
        "edited [bot] closed 1",
        "unassigned [] open 1",
        "reopened [] open -",
        "deleted [tom] open 1",
    ] {
        let event = event(text);
        let whole = decided(None, &event);
        let again = decided(Some(&whole.taken_back(0)), &event);
        let changes = |state: IssueState| state.decision.map(|decision| decision.changes);
        assert_eq!(changes(again), changes(whole), "{text}: all of it was taken back");
    }
    for (text, expected) in [
        ("edited [bot] closed 1", "assigned +bot*"),
        ("edited [bot] closed -", "assigned +bot*"),
        ("unassigned [tom] closed 1", "closed*, assigned +tom*"),
        ("reopened [tom] open -", "assigned +tom*"),
        ("deleted [tom] open 1", "deleted*"),
    ] {
        let event = event(text);
        let part = decided(None, &event).taken_back(1);
        let Judgement::New { changes, .. } = judge(Some(&part), &event) else { panic!("judged") };
        assert_eq!(short(&changes), expected, "{text}");
    }
}
