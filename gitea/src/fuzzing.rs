//! Entry point for the fuzzer in `fuzz/`. It is part of no other build.

use serde_json::Value;

use crate::json_values::{Bounds, Form, Values};

const WIDE: Bounds = Bounds { answer: 1 << 20, value: 1 << 20, string: 1 << 20 };
const NARROW: Bounds = Bounds { answer: 1 << 20, value: 1 << 20, string: 12 };

/// Input: a byte that parts the answer, and the answer.
pub fn answer(data: &[u8]) {
    let Some((part, answer)) = data.split_first() else { return };
    let part = 1 + usize::from(*part);
    let read = serde_json::from_slice::<Option<Vec<Value>>>(answer);
    for bounds in [WIDE, NARROW] {
        let whole = values(Form::List, bounds, answer, answer.len().max(1));
        assert_eq!(whole, values(Form::List, bounds, answer, part), "however it is parted");
        let Ok(expected) = &read else { continue };
        let expected = expected.as_deref().unwrap_or_default();
        let found = whole.expect("a list of JSON is read");
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let value: Value = serde_json::from_slice(found).expect("a value stays a value");
            // A long string may be a name too, of which the beginning is kept.
            if bounds == WIDE {
                assert_eq!(&value, expected);
            }
        }
    }
    if let Ok(expected) = serde_json::from_slice::<Value>(answer) {
        let one = values(Form::One, WIDE, answer, part).expect("a value of JSON is read");
        assert_eq!(serde_json::from_slice::<Value>(&one[0]).expect("JSON"), expected);
    }
}

/// The values of an answer that comes in parts of `part` bytes. None if it is refused.
fn values(form: Form, bounds: Bounds, answer: &[u8], part: usize) -> Option<Vec<Vec<u8>>> {
    let (mut reader, mut found) = (Values::new(form, bounds), Vec::new());
    let mut each = |value: &[u8]| {
        found.push(value.to_vec());
        Ok(())
    };
    for part in answer.chunks(part) {
        reader.read(part, &mut each).ok()?;
    }
    reader.finish(&mut each).ok()?;
    Some(found)
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_of_the_fuzzer_hold() {
        for text in [
            "",
            "null",
            " [ ] ",
            r#"[{"a":"\u0041\"é漢","b":[1,-2.5e3,true,null]},"x",7]"#,
            r#"{"a":{"b":"0123456789012345678901234567890"}}"#,
            r#"[1,]"#,
            "[\"\\ud83d\\ude00 0123456789\"]",
        ] {
            for part in [0, 1, 6, 255] {
                super::answer(&[&[part], text.as_bytes()].concat());
            }
        }
    }
}
