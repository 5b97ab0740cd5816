//! Tests the properties of the comparison on random stories.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};

use contract::{
    event::{Action, IssueEvent, SyncCause, Synced},
    timestamp::Timestamp,
};

use super::{
    Judgement, judge,
    laws::{Sketch, check_end, snapshot, story},
};
use crate::issue::state::IssueState;

fn sketch() -> impl Strategy<Value = Sketch> {
    any::<[u8; 3]>().prop_map(Sketch::of_bytes)
}

fn known_second() -> impl Strategy<Value = Sketch> {
    sketch().prop_map(|sketch| Sketch { second: sketch.second.or(Some(0)), ..sketch })
}

/// The events of one issue in their true order. Time never goes back, but one second can have
/// several changes.
fn history(longest_pause: u8) -> impl Strategy<Value = Vec<Sketch>> {
    let shortest_pause = u8::from(longest_pause > 1);
    vec((sketch(), shortest_pause..=longest_pause), 1..16).prop_map(|steps| {
        let mut second = 0;
        let timed = steps.into_iter().map(|(sketch, pause)| {
            second += pause;
            Sketch { second: Some(second), ..sketch }
        });
        timed.collect()
    })
}

/// A history that lost its last part. The rest is delivered in any order, and several times.
fn delivered(longest_pause: u8) -> impl Strategy<Value = (Vec<Sketch>, Vec<Sketch>)> {
    history(longest_pause)
        .prop_flat_map(|history| {
            let kept = 1..=history.len();
            (Just(history), kept)
        })
        .prop_flat_map(|(mut history, kept)| {
            history.truncate(kept);
            let copies = vec(0..history.len(), 0..16);
            (Just(history), copies)
        })
        .prop_flat_map(|(history, copies)| {
            let copies = copies.into_iter().map(|n| history[n].clone());
            let all: Vec<_> = history.iter().cloned().chain(copies).collect();
            (Just(history), Just(all).prop_shuffle())
        })
}

/// Any events, including bodies without a time and repeated bodies.
fn any_delivered() -> impl Strategy<Value = Vec<Sketch>> {
    (vec(sketch(), 1..24), vec(any::<prop::sample::Index>(), 0..24)).prop_flat_map(
        |(events, copies)| {
            let copies = copies.iter().map(|n| n.get(&events).clone());
            Just(events.iter().cloned().chain(copies).collect::<Vec<_>>()).prop_shuffle()
        },
    )
}

proptest! {
    #[test]
    fn any_events_at_all_end_in_the_newest_or_in_doubt(delivered in any_delivered()) {
        check_end(&delivered, story(&delivered).state.as_ref());
    }

    #[test]
    fn any_order_any_copies_and_a_lost_end_do_no_harm((history, delivered) in delivered(1)) {
        let end = story(&delivered).state;
        check_end(&delivered, end.as_ref());
        let (end, last) = (end.expect("a state"), &history[history.len() - 1]);
        let deleted = delivered.iter().any(|sketch| sketch.action == "deleted");
        prop_assert!(deleted || end.in_doubt || snapshot(&end) == last.snapshot());
    }

    #[test]
    fn changes_a_second_apart_leave_no_doubt((history, delivered) in delivered(3)) {
        let end = story(&delivered).state.expect("a state");
        let last = &history[history.len() - 1];
        let deleted = delivered.iter().any(|sketch| sketch.action == "deleted");
        prop_assert!(!end.in_doubt);
        prop_assert!(deleted || snapshot(&end) == last.snapshot());
    }

    #[test]
    fn a_body_that_comes_again_tells_nothing(delivered in vec(known_second(), 0..40)) {
        let mut bodies = HashSet::new();
        let firsts: Vec<_> =
            delivered.iter().filter(|sketch| bodies.insert(*sketch)).cloned().collect();
        let tell = |delivered: &[Sketch]| -> Vec<_> {
            let told = story(delivered).told;
            told.iter().map(|decided| (decided.kind, decided.added.clone(), decided.in_doubt)).collect()
        };
        prop_assert_eq!(tell(&delivered), tell(&firsts));
    }

}

/// What Gitea's API says of an issue in the state of `sketch`, asked after `known`.
fn answer(
    sketch: &Sketch,
    known: Option<&IssueState>,
    answered_at: Option<Timestamp>,
) -> IssueEvent {
    let mut event = sketch.event(0);
    event.action = Action::Synced;
    event.delivery.id = "an answer".into();
    event.synced = Some(Box::new(Synced {
        cause: SyncCause::Doubt,
        known: known.map(|state| state.delivery_id.clone()).unwrap_or_default(),
        answered_at,
        raised_by: None,
        history: false,
        acts: Vec::new(),
    }));
    event
}

proptest! {
    #[test]
    fn an_answer_is_the_truth_whatever_was_delivered_and_however_late_the_rest_comes(
        (history, delivered) in delivered(1),
        late in vec(any::<prop::sample::Index>(), 0..6),
        at in 0..3_i64,
    ) {
        let is_deletion = |sketch: &Sketch| sketch.action == "deleted";
        prop_assume!(!history.iter().any(is_deletion));
        let truth = &history[history.len() - 1];
        let known = story(&delivered).state;
        let second = truth.event(0).issue.updated_at.expect("a time").unix_micros() / 1_000_000;
        let answered_at = Timestamp::from_unix_micros((second + 1 + at) * 1_000_000);
        let event = answer(truth, known.as_ref(), Some(answered_at));
        let (changes, mut state) = match judge(known.as_ref(), &event) {
            Judgement::New { changes, next } => (changes, *next),
            other => panic!("{other:?}"),
        };
        prop_assert!(!state.in_doubt && changes.iter().all(|change| !change.in_doubt));
        prop_assert_eq!(snapshot(&state), truth.snapshot());
        // What comes late of the same history changes nothing, and is asked about at most.
        for index in late {
            match judge(Some(&state), &index.get(&history).event(99)) {
                Judgement::New { changes, next } => {
                    prop_assert!(changes.is_empty() && !next.in_doubt);
                    state = *next;
                }
                Judgement::Stale { .. } | Judgement::NothingNew => {}
                Judgement::Outrun => panic!("a webhook is never outrun"),
            }
            prop_assert_eq!(snapshot(&state), truth.snapshot());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn more_bodies_in_a_second_than_are_remembered(bytes in vec(any::<[u8; 3]>(), 300..400)) {
        let one_second = |bytes| Sketch { second: Some(3), ..Sketch::of_bytes(bytes) };
        let delivered: Vec<_> = bytes.into_iter().map(one_second).collect();
        check_end(&delivered, story(&delivered).state.as_ref());
    }
}
