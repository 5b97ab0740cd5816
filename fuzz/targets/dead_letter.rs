//! A message that is parked, changed by somebody, and redriven. Input: header lines, an empty line,
//! the payload. The first header's name is the subject.
#![no_main]

use contract::{
    dead_letter::{History, ORIGINAL_SUBJECT, park, redrive},
    envelope::{HEADERS, Headers, MESSAGE_ID, read_event},
    names::EVENTS,
    partitions::Partitions,
    subject::EventSubject,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, payload) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 2..]));
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split('\n');
    let subject = lines.next().unwrap_or_default();
    let mut headers = Headers::default();
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        headers.push(name.to_owned(), value);
    }
    let history =
        History { error: "e\r\n".into(), attempts: 3, stream: EVENTS.into(), sequence: 42 };
    let dead = park(subject, &headers, payload.to_vec(), &history);
    assert_eq!(dead.payload, payload);
    assert_eq!(dead.headers.get(ORIGINAL_SUBJECT), Some(subject));
    check(&dead.headers, payload);
    // What somebody writes who may write dead letters.
    check(&headers, payload);
});

fn check(dead: &Headers, payload: &[u8]) {
    for partitions in ["1", "64", "255"] {
        let partitions: Partitions = partitions.parse().expect("a number");
        let Ok(again) = redrive(dead, payload.to_vec(), 7, partitions) else { continue };
        let subject = EventSubject::parse(&again.subject).expect("the subject of an event");
        assert_eq!(subject.to_string(), again.subject);
        assert!(partitions.all().contains(&subject.partition));
        assert_eq!(again.payload, payload);
        assert!(again.headers.0.iter().all(|(name, _)| HEADERS.contains(&&**name)));
        let ids = again.headers.0.iter().filter(|(name, _)| name == MESSAGE_ID).count();
        assert_eq!(ids, 1);
        if let Ok(event) = read_event(payload) {
            assert_eq!(subject, EventSubject::of(&event, partitions));
        }
    }
}
