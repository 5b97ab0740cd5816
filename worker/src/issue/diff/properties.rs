//! Tests the properties of the comparison on random stories.

use std::collections::HashSet;

use proptest::{collection::vec, prelude::*};

use super::laws::{Sketch, check_end, snapshot, story};

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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn more_bodies_in_a_second_than_are_remembered(bytes in vec(any::<[u8; 3]>(), 300..400)) {
        let one_second = |bytes| Sketch { second: Some(3), ..Sketch::of_bytes(bytes) };
        let delivered: Vec<_> = bytes.into_iter().map(one_second).collect();
        check_end(&delivered, story(&delivered).state.as_ref());
    }
}
