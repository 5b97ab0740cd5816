//! A message's payload: the event or change that it is, and the message made of that again.
#![no_main]

use contract::{
    change::{Change, ChangeKind},
    envelope::{Envelope, EnvelopeError, read_change, read_event},
    event::IssueEvent,
    partitions::Partitions,
    subject::EventSubject,
};

const SOURCE: &str = "http://localhost:3000";
const PARENT: &str = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(event) = read_event(data) {
        let parent = PARENT.parse().expect("a traceparent");
        if let Some(envelope) =
            made(Envelope::of_event(&event, SOURCE, &parent, Partitions::DEFAULT))
        {
            assert_eq!(
                EventSubject::parse(&envelope.subject),
                Ok(EventSubject::of(&event, Partitions::DEFAULT))
            );
            let back = read_event(&envelope.payload).expect("own payload");
            assert_eq!(without_changes(back), without_changes(event.clone()));
        }
        for kind in ChangeKind::ALL {
            change(&Change::from_event(kind, &event));
        }
    }
    if let Ok(read) = read_change(data) {
        change(&read);
    }
});

fn change(change: &Change) {
    let parent = PARENT.parse().expect("a traceparent");
    if let Some(envelope) = made(Envelope::of_change(change, SOURCE, &parent)) {
        assert_eq!(envelope.subject.split('.').filter(|token| !token.is_empty()).count(), 6);
        assert_eq!(&read_change(&envelope.payload).expect("own payload"), change);
    }
}

/// A message, unless its id cannot be one.
fn made(envelope: Result<Envelope, EnvelopeError>) -> Option<Envelope> {
    let envelope = match envelope {
        Ok(envelope) => envelope,
        Err(EnvelopeError::Id) => return None,
        Err(error) => panic!("{error}"),
    };
    for (name, value) in &envelope.headers.0 {
        if name.starts_with("ce-") {
            assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b)), "{name}: {value:?}");
        }
    }
    Some(envelope)
}

/// A number in Gitea's own `changes` may lose its last digit on each way.
fn without_changes(event: IssueEvent) -> IssueEvent {
    IssueEvent { changes: None, ..event }
}
