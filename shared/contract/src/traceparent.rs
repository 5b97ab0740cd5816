//! The W3C trace context, as it travels in the journal and in message headers.

use std::{fmt, str::FromStr};

use uuid::Uuid;

/// Name of the trace context's header. NATS compares header names case-sensitively, so the name
/// is lower case everywhere.
pub const TRACEPARENT: &str = "traceparent";

/// A trace context: the trace, the parent span, and whether it is sampled.
/// See <https://www.w3.org/TR/trace-context/#traceparent-header>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traceparent {
    /// The trace, never 0. A delivery's trace id is its UUID.
    pub trace_id: u128,
    /// The span that the reader's span is a child of, never 0.
    pub span_id: u64,
    /// Whether spans of the trace are exported.
    pub sampled: bool,
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, span_id, sampled } = self;
        write!(f, "00-{trace_id:032x}-{span_id:016x}-0{}", u8::from(*sampled))
    }
}

/// A text that is not a trace context.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a W3C traceparent")]
pub struct NotATraceparent;

impl FromStr for Traceparent {
    type Err = NotATraceparent;

    /// Reads version 00 and, as the recommendation asks, later versions by their first four fields.
    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        let mut fields = text.split('-');
        let mut field = |length| {
            let hex = |f: &&str| f.len() == length && f.bytes().all(|b| b.is_ascii_hexdigit());
            fields.next().filter(hex).ok_or(NotATraceparent)
        };
        let version = field(2)?;
        let trace_id = u128::from_str_radix(field(32)?, 16).map_err(|_| NotATraceparent)?;
        let span_id = u64::from_str_radix(field(16)?, 16).map_err(|_| NotATraceparent)?;
        let flags = u8::from_str_radix(field(2)?, 16).map_err(|_| NotATraceparent)?;
        let more = fields.next().is_some();
        if version == "ff" || (version == "00" && more) || trace_id == 0 || span_id == 0 {
            return Err(NotATraceparent);
        }
        Ok(Self { trace_id, span_id, sampled: flags & 1 == 1 })
    }
}

/// The trace id of a delivery as text: its UUID without the dashes.
pub fn trace_id_text(delivery_id: Uuid) -> String {
    delivery_id.as_simple().to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_traceparent_reads_back(trace_id: u128, span_id: u64, sampled: bool) {
            let parent = Traceparent { trace_id, span_id, sampled };
            let valid = trace_id != 0 && span_id != 0;
            let expected = if valid { Ok(parent) } else { Err(NotATraceparent) };
            prop_assert_eq!(parent.to_string().parse(), expected);
        }

        #[test]
        fn what_reads_as_a_traceparent_is_written_as_one_that_reads_the_same(
            text in "[0-9a-fA-F]{2}-[0-9a-fA-F]{32}-[0-9a-fA-F]{16}-[0-9a-fA-F]{2}(-.*)?",
        ) {
            if let Ok(parent) = text.parse::<Traceparent>() {
                prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            }
        }
    }

    #[test]
    fn traceparent_reads_back_and_bad_ones_are_refused() {
        let text = "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01";
        let parent: Traceparent = text.parse().expect(text);
        assert_eq!(parent.to_string(), text);
        let uuid = Uuid::parse_str("b60f8ed3-6a1a-4e58-b31e-0b00968f94cb").expect("uuid");
        assert_eq!(parent.trace_id, uuid.as_u128());
        for (text, good) in [
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-00", true),
            ("01-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01-more", true),
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01-more", false),
            ("ff-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01", false),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false),
            ("00-b60f8ed36a1a4e58b31e0b00968f94cb-0000000000000000-01", false),
            ("00-b60f8ed36a1a4e58b31e0b00968f94-00f067aa0ba902b7-01", false),
            ("00-+60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Traceparent>().is_ok(), good, "{text}");
        }
    }
}
