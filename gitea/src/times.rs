//! Instants as Gitea writes them: RFC 3339 in JSON and queries, RFC 9110 in headers.

use std::borrow::Cow;

use serde::{Deserialize, Deserializer, de};
use time::{
    OffsetDateTime, UtcOffset,
    format_description::well_known::{Rfc2822, Rfc3339},
};

/// Reads a field that may be missing or `null`. Gitea writes `0001-01-01…` and `1970-01-01…` where
/// it has no time.
pub(crate) fn optional<'de, D>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error>
where
    D: Deserializer<'de>,
{
    let Some(text) = Option::<Cow<'de, str>>::deserialize(deserializer)? else { return Ok(None) };
    if text.is_empty() {
        return Ok(None);
    }
    let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(de::Error::custom)?;
    // An offset can move the last day of 9999, a due date people choose, out of all calendars.
    let time = time.checked_to_offset(UtcOffset::UTC).unwrap_or(time);
    Ok(Some(time).filter(|time| time.unix_timestamp() > 0))
}

/// An instant for a query, to the second, as Gitea compares it.
pub(crate) fn for_query(time: OffsetDateTime) -> String {
    let utc = time.checked_to_offset(UtcOffset::UTC).unwrap_or(time);
    let seconds = utc.replace_nanosecond(0).unwrap_or(utc);
    // RFC 3339 has no years beyond 9999 and before 0. No issue has them either.
    seconds.format(&Rfc3339).unwrap_or_default()
}

/// Reads a date of a header, such as `Thu, 26 Nov 2026 12:55:31 GMT`.
pub(crate) fn of_header(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc2822).ok()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[derive(Deserialize)]
    struct Row {
        #[serde(default, deserialize_with = "optional")]
        at: Option<OffsetDateTime>,
    }

    #[test]
    fn zeros_are_none() {
        for (json, expected) in [
            (r#"{}"#, None),
            (r#"{"at":null}"#, None),
            (r#"{"at":""}"#, None),
            (r#"{"at":"0001-01-01T00:00:00Z"}"#, None),
            (r#"{"at":"1970-01-01T00:00:00Z"}"#, None),
            (r#"{"at":"1970-01-01T01:00:00+01:00"}"#, None),
            (r#"{"at":"2026-11-26T12:55:31Z"}"#, Some(datetime!(2026-11-26 12:55:31 UTC))),
            (r#"{"at":"2026-11-26T13:55:31+01:00"}"#, Some(datetime!(2026-11-26 12:55:31 UTC))),
            (r#"{"at":"9999-12-31T23:59:59-01:00"}"#, Some(datetime!(9999-12-31 23:59:59 -1))),
        ] {
            let row: Row = serde_json::from_str(json).unwrap();
            assert_eq!(row.at, expected, "{json}");
        }
        assert!(serde_json::from_str::<Row>(r#"{"at":"yesterday"}"#).is_err());
    }

    #[test]
    fn queries_are_to_the_second_and_in_utc() {
        let time = datetime!(2026-11-26 13:55:31.999 +1);
        assert_eq!(for_query(time), "2026-11-26T12:55:31Z");
    }

    #[test]
    fn headers_are_read() {
        let expected = Some(datetime!(2026-11-26 12:55:31 UTC));
        assert_eq!(of_header("Thu, 26 Nov 2026 12:55:31 GMT"), expected);
        assert_eq!(of_header("soon"), None);
    }
}
