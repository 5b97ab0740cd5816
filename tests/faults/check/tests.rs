//! A sound log passes. Each kind of violation that is inserted into it is found.

use super::*;
use crate::records::{Change, Seen, Sent, State};

/// Four issues' deliveries, and all that must follow from them.
fn sound() -> Records {
    let mut records = Records::default();
    for (number, action, logins, state, second) in [
        (1, "opened", "", "open", Some(0)),
        (1, "assigned", "bot", "open", Some(1)),
        (2, "assigned", "ann", "open", None),
        (2, "opened", "ann", "open", Some(2)),
        (1, "assigned", "bot tom", "open", Some(3)),
        (1, "unassigned", "tom", "open", Some(4)),
        (2, "closed", "ann", "closed", Some(5)),
        // Another event of the same second: in doubt.
        (2, "reopened", "ann", "open", Some(5)),
        (1, "closed", "tom", "closed", Some(6)),
        (1, "reopened", "tom", "open", Some(7)),
        (3, "assigned", "ann bot", "closed", Some(8)),
        // The deletion is the end, whatever its time and whoever is in it.
        (3, "deleted", "ann", "closed", Some(6)),
        (3, "edited", "tom", "open", Some(9)),
        (3, "deleted", "tom", "open", Some(10)),
        // Nothing was known of this one.
        (4, "deleted", "tom", "closed", Some(11)),
        (4, "assigned", "ann tom", "open", Some(12)),
    ] {
        deliver(&mut records, number, (action, logins, state, second));
    }
    for (delivery, number, kind, added, removed, flags) in [
        (1, 1, "assigned", "bot", "", ""),
        (2, 2, "assigned", "ann", "", "first"),
        (4, 1, "assigned", "tom", "", ""),
        (5, 1, "unassigned", "", "bot", ""),
        (6, 2, "closed", "", "", ""),
        (7, 2, "reopened", "", "", "doubt"),
        (8, 1, "closed", "", "", ""),
        (9, 1, "reopened", "", "", ""),
        (10, 3, "closed", "", "", "first"),
        (10, 3, "assigned", "ann bot", "", "first"),
        (11, 3, "unassigned", "", "ann bot", ""),
        (11, 3, "deleted", "", "", ""),
        (14, 4, "unassigned", "", "tom", "first"),
        (14, 4, "deleted", "", "", "first"),
    ] {
        tell(&mut records, (delivery, number), kind, (added, removed), flags);
    }
    for (number, logins, state, second, in_doubt) in [
        (1, "tom", "open", 7, false),
        (2, "ann", "open", 5, true),
        (3, "", "deleted", 8, false),
        (4, "", "deleted", 11, false),
    ] {
        records.states.push(State {
            key: format!("1.{number}"),
            assignees: split(logins),
            state: state.into(),
            updated_at: Some(second),
            in_doubt,
        });
    }
    records
}

fn split(logins: &str) -> Vec<String> {
    logins.split_whitespace().map(str::to_owned).collect()
}

fn deliver(
    records: &mut Records,
    number: u64,
    (action, logins, state, updated_at): (&str, &str, &str, Option<i64>),
) {
    let n = records.sent.len();
    let snapshot = Snapshot {
        repository: 1,
        number,
        digest: format!("digest {n}"),
        action: action.into(),
        assignees: split(logins),
        state: state.into(),
        updated_at,
    };
    let at = 10 * n as i64;
    records.sent.push(Sent {
        id: format!("d{n}"),
        snapshot: snapshot.clone(),
        sent_at: at,
        ended_at: at + 5,
        status: 200,
        ..Sent::default()
    });
    records.events.push(Event {
        seq: 1 + n as u64,
        stored_at: at + 6,
        subject: format!("gitea.issues.{action}.acme.r1.{number}.{number}"),
        message_id: format!("d{n}"),
        delivery: format!("d{n}"),
        snapshot,
    });
}

fn tell(
    records: &mut Records,
    (delivery, number): (usize, u64),
    kind: &str,
    (added, removed): (&str, &str),
    flags: &str,
) {
    let seq = 1 + records.changes.len() as u64;
    let message_id = format!("d{delivery}:{kind}");
    records.seen.push(Seen { at: 1000 + seq as i64, seq, message_id: message_id.clone() });
    records.changes.push(Change {
        seq,
        message_id,
        delivery: format!("d{delivery}"),
        repository: 1,
        number,
        kind: kind.into(),
        added: split(added),
        removed: split(removed),
        assignees: match &records.events[delivery].snapshot {
            end if end.action == "deleted" => Vec::new(),
            snapshot => snapshot.assignees.clone(),
        },
        in_doubt: flags == "doubt",
        first_seen: flags == "first",
    });
}

fn tail_lost(began_at: i64, ended_at: i64) -> Fault {
    Fault { kind: TAIL_LOST.into(), began_at, ended_at, ..Fault::default() }
}

/// Changes a sound log with `plant`, and returns what the checker finds.
fn with(plant: impl FnOnce(&mut Records)) -> Vec<String> {
    let mut records = sound();
    plant(&mut records);
    violations(&records)
}

#[track_caller]
fn finds(expected: &str, plant: impl FnOnce(&mut Records)) {
    let found = with(plant);
    assert!(found.iter().any(|one| one.contains(expected)), "{expected:?} is not in {found:#?}");
}

#[test]
fn a_sound_log_passes() {
    assert_eq!(violations(&sound()), Vec::<String>::new());
}

#[test]
fn what_was_not_promised_may_be_there_or_not() {
    for status in [0, 503] {
        assert_eq!(with(|r| r.sent[3].status = status), Vec::<String>::new());
        let absent = with(|r| {
            // This delivery leads to no change, so no change is missing without it.
            r.sent[3].status = status;
            r.events.remove(3);
            r.events[6].snapshot.updated_at = Some(5);
        });
        assert_eq!(absent, Vec::<String>::new());
    }
}

#[test]
fn a_lost_event() {
    finds("d9 was answered 200 and has no event", |r| drop(r.events.remove(9)));
}

#[test]
fn a_doubled_event() {
    finds("d3 stands in the stream twice", |r| r.events.insert(4, r.events[3].clone()));
}

#[test]
fn an_event_that_nobody_sent() {
    finds("d3 was never sent", |r| drop(r.sent.remove(3)));
}

#[test]
fn an_event_that_says_something_else() {
    let says = "d4 says something else than was sent";
    finds(says, |r| r.events[4].snapshot.assignees.clear());
    finds(says, |r| r.events[4].snapshot.state = "closed".into());
    finds(says, |r| r.events[4].snapshot.action = "edited".into());
    finds(says, |r| r.events[4].snapshot.number = 3);
    finds(says, |r| r.events[4].snapshot.updated_at = None);
    finds(says, |r| r.events[4].snapshot.digest = "x".into());
}

#[test]
fn an_event_under_the_wrong_id_subject_or_partition() {
    finds("d4 has message id x", |r| r.events[4].message_id = "x".into());
    finds("d4 stands under", |r| r.events[4].subject = "gitea.issues.edited.acme.r1.1.1".into());
    finds("d4 stands under", |r| r.events[4].subject = "gitea.issues.assigned.acme.r1.2.1".into());
    finds("issue 1#1 is in two partitions", |r| {
        r.events[4].subject = "gitea.issues.assigned.acme.r1.1.7".into();
    });
}

#[test]
fn a_refused_delivery() {
    finds("d4 was answered 422", |r| r.sent[4].status = 422);
}

#[test]
fn events_of_an_issue_out_of_order() {
    let expected = "d4 stands behind that of d5";
    finds(expected, |r| r.events.swap(4, 5));
    let told = |r: &mut Records, change: &dyn Fn(&mut Records)| {
        r.events.swap(4, 5);
        change(r);
        violations(r).iter().any(|found| found.contains(expected))
    };
    assert!(!told(&mut sound(), &|r| r.sent[5].sent_at = r.sent[4].sent_at), "sent at once");
    assert!(!told(&mut sound(), &|r| r.sent[5].ingest = 1), "sent to different ones");
    assert!(!told(&mut sound(), &|r| r.faults.push(tail_lost(45, 46))), "came again");
    assert!(told(&mut sound(), &|r| r.faults.push(tail_lost(20, 30))), "lost before");
}

#[test]
fn a_lost_change() {
    finds("change 0 must be assigned", |r| drop(r.changes.remove(0)));
    finds("must be reopened", |r| drop(r.changes.remove(7)));
    finds("its changes add up to", |r| drop(r.changes.remove(2)));
    // The missing pair adds up to nothing.
    finds("change 3 must be closed", |r| r.changes.truncate(6));
}

#[test]
fn a_doubled_change() {
    finds("change d1:assigned is told twice", |r| r.changes.insert(1, r.changes[0].clone()));
}

#[test]
fn a_change_that_follows_from_nothing() {
    finds("follows from no event", |r| r.changes[0].delivery = "x".into());
    finds("issue 1#9 has changes and no event", |r| r.changes[0].number = 9);
    finds("has the wrong message id", |r| r.changes[0].message_id = "d1:closed".into());
    finds("says something else than its event", |r| r.changes[0].assignees.clear());
    finds("must be none and is assigned", |r| {
        tell(r, (9, 1), "assigned", ("li-wei", ""), "");
    });
}

#[test]
fn a_change_that_cannot_be() {
    finds("adds bot, who is there", |r| r.changes[2].added = split("bot"));
    finds("removes ann, who is not there", |r| r.changes[3].removed = split("ann"));
    finds("says closed of what was so before", |r| r.changes[7].kind = "closed".into());
    finds("says reopened of what was so before", |r| r.changes[6].kind = "reopened".into());
}

#[test]
fn changes_of_an_issue_out_of_order() {
    finds("change d4:assigned comes after d5:unassigned", |r| r.changes.swap(2, 3));
    finds("change d9:closed comes after d9:assigned", |r| {
        tell(r, (9, 1), "assigned", ("li-wei", ""), "");
        tell(r, (9, 1), "closed", ("", ""), "");
    });
}

#[test]
fn a_change_that_does_not_tell_of_its_doubt_or_novelty() {
    finds("in doubt of delivery d7 and is reopened", |r| r.changes[5].in_doubt = false);
    finds("must be closed +[] -[] of delivery d8", |r| r.changes[6].in_doubt = true);
    finds("first seen of delivery d2 and is assigned", |r| r.changes[1].first_seen = false);
}

#[test]
fn a_wrong_end() {
    finds("issue 1#1 has events and no state", |r| drop(r.states.remove(0)));
    finds("issue 1#1 ends as", |r| r.states[0].assignees = split("bot"));
    finds("issue 1#1 ends as", |r| r.states[0].state = "closed".into());
    finds("issue 1#1 ends as", |r| r.states[0].updated_at = Some(6));
    finds("issue 1#1 ends as", |r| r.states[0].in_doubt = true);
    finds("issue 2#2 has events and no state", |r| {
        r.events[9].snapshot.repository = 2;
        r.events[9].snapshot.number = 2;
    });
    finds("state 1.7 has no event", |r| r.states[0].key = "1.7".into());
}

#[test]
fn a_deletion_that_is_not_told() {
    finds("change 3 must be deleted +[] -[] of delivery d11 and is none", |r| {
        drop(r.changes.remove(11));
    });
    finds("change 1 must be deleted +[] -[] first seen of delivery d14 and is none", |r| {
        drop(r.changes.remove(13));
    });
    finds("issue 1#3: its changes add up to", |r| drop(r.changes.remove(11)));
}

#[test]
fn a_change_after_a_deletion() {
    let found = with(|r| tell(r, (12, 3), "assigned", ("tom", ""), ""));
    for expected in [
        "change d12:assigned follows the deletion of its issue",
        "issue 1#3: change 4 must be none",
    ] {
        assert!(found.iter().any(|one| one.contains(expected)), "{expected:?}: {found:#?}");
    }
    finds("change d13:deleted follows the deletion", |r| tell(r, (13, 3), "deleted", ("", ""), ""));
    finds("change d11:unassigned follows the deletion", |r| r.changes.swap(10, 11));
    finds("change d11:unassigned comes after d11:deleted", |r| r.changes.swap(10, 11));
}

#[test]
fn somebody_who_is_still_assigned_after_a_deletion() {
    finds("change d11:deleted ends an issue with {\"ann\", \"bot\"} assigned", |r| {
        drop(r.changes.remove(10));
    });
    // The last snapshot says nothing of this one.
    finds("change d11:deleted ends an issue with {\"bot\"} assigned", |r| {
        r.changes[10].removed = split("ann");
    });
    finds("change 0 must be unassigned +[] -[\"tom\"] first seen of delivery d14", |r| {
        drop(r.changes.remove(12));
    });
    finds("change d11:deleted says something else than its event", |r| {
        r.changes[11].assignees = split("ann");
    });
    finds("issue 1#3 is deleted", |r| r.states[2].assignees = split("ann"));
}

#[test]
fn a_wrong_tombstone() {
    finds("issue 1#3 has events and no state", |r| drop(r.states.remove(2)));
    finds("issue 1#3 is deleted", |r| r.states[2].state = "closed".into());
    finds("issue 1#3 is deleted", |r| r.states[2].in_doubt = true);
    finds("issue 1#3 is deleted", |r| r.states[2].updated_at = Some(6));
    finds("issue 1#3 is deleted", |r| r.states[2].updated_at = Some(9));
    finds("issue 1#1 ends as", |r| r.states[0].state = "deleted".into());
}

#[test]
fn a_deletion_in_doubt() {
    finds("change 3 must be deleted +[] -[] of delivery d11", |r| r.changes[11].in_doubt = true);
}

#[test]
fn a_doubt_that_is_not_told() {
    finds("issue 1#2 ends as", |r| r.states[1].in_doubt = false);
}

#[test]
fn what_a_subscriber_missed_or_got_wrongly() {
    finds("no subscriber got change d9:reopened", |r| drop(r.seen.remove(7)));
    finds("got change d1:assigned after the later d2:assigned", |r| r.seen.swap(0, 1));
    finds("got change d1:assigned under two sequences", |r| {
        let seq = 99;
        r.seen.push(Seen { seq, ..r.seen[0].clone() });
    });
    finds("which is not in the stream", |r| r.seen[0].message_id = "x".into());
    // The same change under the same sequence is a redelivery.
    assert_eq!(with(|r| r.seen.push(r.seen[0].clone())), Vec::<String>::new());
}

#[test]
fn what_was_told_before_a_lost_tail_may_be_gone_or_told_again() {
    let again = with(|r| {
        r.faults.push(tail_lost(1100, 1200));
        for n in 4..14 {
            r.seen.push(Seen { at: 1300 + n as i64, ..r.seen[n].clone() });
        }
    });
    assert_eq!(again, Vec::<String>::new());
    let gone = with(|r| {
        r.faults.push(tail_lost(1100, 1200));
        r.seen.push(Seen { at: 1050, seq: 15, message_id: "gone".into() });
    });
    assert_eq!(gone, Vec::<String>::new());
}

#[test]
fn a_dead_letter() {
    finds("delivery d3 is a dead letter", |r| r.dead.push("d3".into()));
}

#[test]
fn what_is_written_reads_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let records = sound();
    let write = |name: &str, lines: Vec<serde_json::Value>| {
        let mut file = crate::records::Lines::create(&dir.path().join(name)).expect("a file");
        lines.iter().for_each(|line| file.add(line).expect("a line"));
        file.flush().expect("on disk");
    };
    let values = |value: serde_json::Value| value.as_array().expect("an array").clone();
    for (name, value) in [
        ("sent.jsonl", serde_json::to_value(&records.sent)),
        ("events.jsonl", serde_json::to_value(&records.events)),
        ("changes.jsonl", serde_json::to_value(&records.changes)),
        ("seen.jsonl", serde_json::to_value(&records.seen)),
        ("states.jsonl", serde_json::to_value(&records.states)),
        ("dead.jsonl", serde_json::to_value(&records.dead)),
        ("faults.jsonl", serde_json::to_value(&records.faults)),
    ] {
        write(name, values(value.expect("JSON")));
    }
    let read = Records::read(dir.path()).expect("the records");
    assert_eq!((read.sent, read.events), (records.sent, records.events));
    assert_eq!((read.changes, read.seen), (records.changes, records.seen));
    assert_eq!((read.states, read.dead), (records.states, records.dead));
}
