//! Subjects both ways, and the trace context that travels beside them.
#![no_main]

use contract::{
    partitions::Partitions,
    subject::{EventSubject, escape, of_dead_letter},
    traceparent::Traceparent,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    if let Ok(subject) = EventSubject::parse(&text) {
        both_ways(subject);
    }
    if let Ok(parent) = text.parse::<Traceparent>() {
        assert_eq!(parent.to_string().parse(), Ok(parent));
    }
    let token = escape(&text);
    assert!(!token.is_empty() && !token.contains(['.', '*', '>', ' ', '\r', '\n', '\t']));
    assert!(of_dead_letter(&text).starts_with("gitea.dead."));

    let mut parts = text.split('\n').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let (action, owner, repository) = (next(), next(), next());
    let number = data.iter().fold(0, |number: u64, byte| number.rotate_left(8) ^ u64::from(*byte));
    let partition = Partitions::DEFAULT.of(number as i64, number);
    both_ways(EventSubject { action, owner, repository, number, partition });
});

fn both_ways(subject: EventSubject) {
    let text = subject.to_string();
    assert_eq!(text.split('.').filter(|token| !token.is_empty()).count(), 7);
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_%".contains(&b)), "{text}");
    assert_eq!(EventSubject::parse(&text), Ok(subject));
}
