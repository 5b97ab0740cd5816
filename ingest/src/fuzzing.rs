//! Entry points for the fuzzer in `fuzz/`. They are part of no other build.
//!
//! The expected results are computed here a second time, where possible by other means than in the
//! product.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use contract::{
    envelope::{self, Envelope},
    event::{IssueEvent, State},
    partitions::Partitions,
    subject::EventSubject,
};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use service::secret::Secret;
use sha2::Sha256;

use crate::{
    delivery::{Delivery, Family},
    gitea::{
        content_type::ContentType,
        headers::Headers,
        old_secret::without_secret,
        payload::{self, IgnoreReason, Parsed, PayloadError},
        signature::{SecretUsed, SignatureError, Verifier},
    },
    journal::packed::{self, Packed},
};

const SECRETS: [(&str, SecretUsed); 2] =
    [("s3cr3t", SecretUsed::Current), ("f0rm3r", SecretUsed::Previous)];
const GITEA: &str = "x-gitea-signature";
const HUB: &str = "x-hub-signature-256";
const PARENT: &str = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";

/// A packed text of the journal, damaged in any way; and any text packed and unpacked.
pub fn journal(data: &[u8]) {
    if let Ok(text) = packed::unpack(data) {
        assert!(text.len() <= data.len() * 255);
        assert_eq!(packed::unpack(&Packed::new(&text).lz4).expect("own packing"), text);
    }
    assert_eq!(packed::unpack(&Packed::new(data).lz4).expect("own packing"), data);
}

/// Input: header lines, an empty line, the body.
pub fn verify(data: &[u8]) {
    let end = data.windows(2).position(|two| two == b"\n\n");
    let (head, body) = end.map_or((data, &[][..]), |end| (&data[..end], &data[end + 2..]));
    let mut headers = headers(head);
    let Some(content_type) = Headers::of(&headers).content_type else { return };
    let text = match content_type {
        ContentType::Json => body.to_vec(),
        ContentType::Form => first_payload(body),
    };
    let verifier = Verifier::new(&Secret::new(SECRETS[0].0), Some(&Secret::new(SECRETS[1].0)));
    let decide = |headers: &HeaderMap| {
        let verified = Headers::of(headers).signature.and_then(|signature| {
            verifier.verify(content_type, &signature, bytes::Bytes::copy_from_slice(body))
        });
        if let Ok(verified) = &verified {
            assert_eq!(verified.text(), &text, "what is verified is what is signed");
            check_parsed(payload::parse(verified, &delivery()), &text);
        }
        verified.map(|verified| verified.secret_used())
    };

    let right = SECRETS.iter().find(|(secret, _)| claimed(&headers) == Some(sign(secret, &text)));
    match decide(&headers) {
        Ok(used) => assert_eq!(Some(used), right.map(|(_, used)| *used)),
        Err(_) => assert_eq!(right, None),
    }
    // The length selects the secret, the header and the digit to corrupt, because each variant
    // takes time.
    let (secret, used) = SECRETS[data.len() & 1];
    let (name, prefix) = [(GITEA, ""), (HUB, "sha256=")][data.len() >> 1 & 1];
    headers.remove(GITEA);
    headers.remove(HUB);
    let mut signature = sign(secret, &text).into_bytes();
    headers.insert(name, signed(prefix, &signature));
    assert_eq!(decide(&headers).ok(), Some(used), "a right one");
    let at = data.len() >> 2 & 63;
    signature[at] = if signature[at] == b'0' { b'1' } else { b'0' };
    headers.insert(name, signed(prefix, &signature));
    assert_eq!(decide(&headers).err(), Some(SignatureError::Mismatch));
}

/// Input: the JSON text of an issue event.
pub fn parse(data: &[u8]) {
    check_parsed(payload::read(data, &delivery()), data);
    check_has_no_secret(data);
}

/// Checks what is journaled against what another JSON parser finds in it.
fn check_has_no_secret(text: &[u8]) {
    let clean = without_secret(text);
    let Ok(Value::Object(mut expected)) = serde_json::from_slice(text) else { return };
    let journaled: Value = serde_json::from_slice(clean.as_deref().unwrap_or(text)).expect("JSON");
    // A name that is written with escapes is not Gitea's.
    if clean.is_some()
        && let Some(secret) = expected.get_mut("secret")
    {
        *secret = "".into();
    }
    assert_eq!(journaled, Value::Object(expected));
}

fn delivery() -> Delivery {
    Delivery {
        id: uuid::Uuid::from_u128(1),
        family: Family::Issues,
        received_at: contract::timestamp::Timestamp::now(),
        hook: None,
        body_sha256: [0; 32],
    }
}

fn headers(head: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            let _ = headers.try_append(name, value);
        }
    }
    headers
}

/// The 64 signature digits from the headers, in lower case.
fn claimed(headers: &HeaderMap) -> Option<String> {
    let (name, prefix) = if headers.contains_key(GITEA) { (GITEA, "") } else { (HUB, "sha256=") };
    let values: Vec<_> = headers.get_all(name).iter().collect();
    let [value] = values[..] else { return None };
    Some(value.to_str().ok()?.strip_prefix(prefix)?.to_ascii_lowercase())
}

/// The first `payload` of a form, as the URL standard reads forms.
fn first_payload(body: &[u8]) -> Vec<u8> {
    for pair in body.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        let mut parts = pair.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        if decoded(name) == b"payload" {
            // The form parser replaces invalid UTF-8 and never fails, as the URL standard requires.
            let value = decoded(parts.next().unwrap_or_default());
            return String::from_utf8_lossy(&value).into_owned().into_bytes();
        }
    }
    Vec::new()
}

fn decoded(text: &[u8]) -> Vec<u8> {
    let digit = |at: usize| text.get(at).and_then(|b| char::from(*b).to_digit(16));
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(&byte) = text.get(at) {
        let escaped = if byte == b'%' { digit(at + 1).zip(digit(at + 2)) } else { None };
        bytes.push(match (byte, escaped) {
            (_, Some((high, low))) => (high * 16 + low) as u8,
            (b'+', None) => b' ',
            (other, None) => other,
        });
        at += if escaped.is_some() { 3 } else { 1 };
    }
    bytes
}

fn sign(secret: &str, text: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any key fits");
    mac.update(text);
    hex::encode(mac.finalize().into_bytes())
}

fn signed(prefix: &str, signature: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(&[prefix.as_bytes(), signature].concat()).expect("a header value")
}

fn check_parsed(parsed: Result<Parsed, PayloadError>, text: &[u8]) {
    match parsed {
        Ok(Parsed::Event(event)) => {
            check_says_the_same(&event, text);
            check_is_published(&event);
        }
        Ok(Parsed::Ignored(IgnoreReason::PullRequest | IgnoreReason::NotAnIssueEvent)) => {}
        Err(error) => {
            let field = error.field.clone();
            let ours = |b: u8| b.is_ascii_alphanumeric() || b"._-[]".contains(&b);
            assert!(!field.is_empty() && field.bytes().all(ours), "{field:?}");
            assert!(error.to_string().starts_with(&field));
        }
    }
}

/// Checks the event against what another JSON parser finds in the text.
fn check_says_the_same(event: &IssueEvent, text: &[u8]) {
    assert!(event.issue.id > 0 && event.issue.number > 0 && event.repository.id > 0);
    let repository = &event.repository;
    let names = [&repository.owner, &repository.name].into_iter();
    for name in names.chain(event.issue.assignees.iter().map(|user| &user.login)) {
        assert!((1..=255).contains(&name.len()));
    }
    // `Value` cannot be parsed where fields that do not matter here are too deep or out of range.
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return };
    let (issue, repository) = (&value["issue"], &value["repository"]);
    let no_users = Vec::new();
    let only_one = issue["assignee"].as_object().map(|user| vec![Value::Object(user.clone())]);
    let users = issue["assignees"].as_array().or(only_one.as_ref()).unwrap_or(&no_users);
    let logins: Vec<_> = users.iter().filter_map(|user| user["login"].as_str()).collect();
    assert_eq!(event.issue.assignee_logins(), logins);
    assert_eq!(value["action"], event.action.as_str());
    assert_eq!(issue["number"], event.issue.number);
    assert_eq!(issue["state"] == "closed", event.issue.state == State::Closed);
    assert_eq!(repository["id"], event.repository.id);
    assert_eq!(repository["name"], event.repository.name.as_str());
    assert_eq!(repository["owner"]["login"], event.repository.owner.as_str());
}

fn check_is_published(event: &IssueEvent) {
    let parent = PARENT.parse().expect("a traceparent");
    let envelope = Envelope::of_event(event, "http://localhost:3000", &parent, Partitions::DEFAULT)
        .expect("a message");
    assert_eq!(
        EventSubject::parse(&envelope.subject),
        Ok(EventSubject::of(event, Partitions::DEFAULT))
    );
    for (_, value) in &envelope.headers.0 {
        assert!(value.bytes().all(|b| (b' '..=b'~').contains(&b)), "{value:?}");
    }
    // A number in Gitea's own `changes` may lose its last digit in each conversion.
    let without_changes = |event: &IssueEvent| IssueEvent { changes: None, ..event.clone() };
    let back = envelope::read_event(&envelope.payload).expect("own payload");
    assert_eq!(without_changes(&back), without_changes(event));

    for limit in [1024, 16 * 1024] {
        let mut cut = event.clone();
        let fits = cut.cut_to(limit);
        assert_eq!(fits, serde_json::to_vec(&cut).expect("JSON").len() <= limit);
        assert_eq!(cut.issue.assignees, event.issue.assignees);
        assert_eq!(
            EventSubject::of(&cut, Partitions::DEFAULT),
            EventSubject::of(event, Partitions::DEFAULT)
        );
    }
}
