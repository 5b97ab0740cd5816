//! Gitea before 1.14 puts the webhook's own secret into each payload, as the member `secret` at its
//! top. It belongs neither into the journal nor to whoever reads it.

use std::ops::Range;

/// The name of the member, as Gitea writes it.
const NAME: &[u8] = b"\"secret\"";
const EMPTY: &[u8] = b"\"\"";

/// The JSON text `text` with an empty value for the member `secret` at its top, and all else byte
/// for byte. None if there is no such member, which costs a search for its name. `text` has been
/// parsed before.
pub(crate) fn without_secret(text: &[u8]) -> Option<Vec<u8>> {
    let name = std::str::from_utf8(NAME).ok()?;
    // The search in a `str` takes many bytes at a time.
    if !std::str::from_utf8(text).ok()?.contains(name) {
        return None;
    }
    let values = values_of_secret(text);
    values.first()?;
    let (mut rest, mut clean) = (0, Vec::with_capacity(text.len()));
    for value in values {
        clean.extend_from_slice(text.get(rest..value.start)?);
        clean.extend_from_slice(EMPTY);
        rest = value.end;
    }
    clean.extend_from_slice(text.get(rest..)?);
    Some(clean)
}

/// Where the values of the member are. A name that stands there twice has two.
fn values_of_secret(text: &[u8]) -> Vec<Range<usize>> {
    let (mut at, mut depth, mut values) = (0, 0_usize, Vec::new());
    while let Some(&byte) = text.get(at) {
        let end = token_end(text, at);
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let is_name = depth == 1 && text.get(at..end) == Some(NAME);
        let colon = if is_name { after_space(text, end) } else { end };
        at = end;
        if is_name && text.get(colon) == Some(&b':') {
            let start = after_space(text, colon + 1);
            at = value_end(text, start);
            values.push(start..at);
        }
    }
    values
}

/// The end of a string, or of a single byte that is not in a string.
fn token_end(text: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    if text.get(start) != Some(&b'"') {
        return at;
    }
    while let Some(&byte) = text.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The end of a value of any kind.
fn value_end(text: &[u8], start: usize) -> usize {
    let (mut at, mut depth) = (start, 0_usize);
    while let Some(&byte) = text.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n' if depth == 0 => return at,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at = token_end(text, at);
    }
    text.len()
}

fn after_space(text: &[u8], start: usize) -> usize {
    let rest = text.get(start..).unwrap_or_default();
    start + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_member_at_the_top_goes_and_all_else_stays_as_it_is() {
        for (text, expected) in [
            (r#"{"secret":"s3"}"#, Some(r#"{"secret":""}"#)),
            (
                "{\n  \"secret\": \"s3\",\n  \"a\": 1\n}",
                Some("{\n  \"secret\": \"\",\n  \"a\": 1\n}"),
            ),
            (
                r#"{"a":{"b":["}"]},"secret" : "s3\"}\\", "c":2}"#,
                Some(r#"{"a":{"b":["}"]},"secret" : "", "c":2}"#),
            ),
            (
                r#"{"secret":"s3","a":"secret","secret":"s4"}"#,
                Some(r#"{"secret":"","a":"secret","secret":""}"#),
            ),
            (r#"{"secret":{"a":["s3",{}]},"b":1}"#, Some(r#"{"secret":"","b":1}"#)),
            (r#"{"secret":null }"#, Some(r#"{"secret":"" }"#)),
            (r#"{"secret":""}"#, Some(r#"{"secret":""}"#)),
            (r#"{"issue":{"secret":"x"}}"#, None),
            (r#"{"issue":{"title":"secret"}}"#, None),
            (r#"{"issue":{"body":"\"secret\":\"x\""}}"#, None),
            (r#"{"issue":{"body":"\\"},"a":"secret"}"#, None),
            (r#"{"a":"\"secret\": 1"}"#, None),
            (r#"{"labels":["secret"],"a":[{"secret":1}]}"#, None),
            (r#"["secret"]"#, None),
            ("{}", None),
            ("", None),
            // None of these is JSON: there is no panic.
            (r#"{"secret":"#, Some(r#"{"secret":"""#)),
            (r#"{"secret"#, None),
            (r#"{"secret""#, None),
            (r#"{"secret":"\"#, Some(r#"{"secret":"""#)),
            (r#"}}"secret":1"#, None),
        ] {
            let clean = without_secret(text.as_bytes());
            let clean = clean.map(|clean| String::from_utf8(clean).expect("UTF-8"));
            assert_eq!(clean.as_deref(), expected, "{text}");
        }
    }
}
