//! An instant as events, changes and issue states hold it: RFC 3339 in UTC.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339, macros::datetime};

const FIRST: OffsetDateTime = datetime!(0000-01-01 00:00:00 UTC);
const LAST: OffsetDateTime = datetime!(9999-12-31 23:59:59 UTC);

/// An instant in UTC. Written and read as RFC 3339 (`2026-11-23T23:45:00Z`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(with = "String", inline, extend("format" = "date-time"))]
pub struct Timestamp(#[schemars(skip)] OffsetDateTime);

impl Timestamp {
    /// The time of this machine's clock, in microseconds. This is precise enough to
    /// distinguish two receipts, and the journal keeps it unchanged.
    pub fn now() -> Self {
        Self::from_unix_micros(OffsetDateTime::now_utc().unix_timestamp_nanos() as i64 / 1_000)
    }

    /// An instant from microseconds since 1970. A value out of range becomes 1970.
    pub fn from_unix_micros(micros: i64) -> Self {
        Self(
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
                .ok()
                .filter(can_be_written)
                .unwrap_or(OffsetDateTime::UNIX_EPOCH),
        )
    }

    /// Microseconds since 1970.
    pub fn unix_micros(self) -> i64 {
        (self.0.unix_timestamp_nanos() / 1_000) as i64
    }

    /// Reads RFC 3339 with any offset. An offset can move an instant out of the years
    /// 0 to 9999. It then becomes the first or the last instant of that range: Gitea
    /// lets people choose the last day of 9999 as a due date.
    pub fn parse(text: &str) -> Result<Self, time::error::Parse> {
        let local = OffsetDateTime::parse(text, &Rfc3339)?;
        let utc = local.checked_to_offset(UtcOffset::UTC).filter(can_be_written);
        Ok(Self(utc.unwrap_or(if local.year() == 0 { FIRST } else { LAST })))
    }

    /// Gitea writes `0001-01-01…` and `1970-01-01…` where it has no time.
    pub fn is_zero(self) -> bool {
        self.0.unix_timestamp() <= 0
    }
}

/// RFC 3339 has four digits for a year, and no sign.
fn can_be_written(time: &OffsetDateTime) -> bool {
    (0..=9999).contains(&time.year())
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(|_| {
            serde::de::Error::invalid_value(serde::de::Unexpected::Str(&text), &"an RFC 3339 time")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_folded_into_utc_and_zero_values_are_known() {
        for (text, utc, zero) in [
            ("2026-11-23T23:45:00Z", "2026-11-23T23:45:00Z", false),
            ("2026-11-24T01:45:00+02:00", "2026-11-23T23:45:00Z", false),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", true),
            ("1970-01-01T02:00:00+02:00", "1970-01-01T00:00:00Z", true),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z", true),
            // The offset moves the instant out of the years 0 to 9999.
            ("9999-12-31T23:59:59-05:00", "9999-12-31T23:59:59Z", false),
            ("9999-12-31T23:59:59+05:00", "9999-12-31T18:59:59Z", false),
            ("0000-01-01T00:00:00+01:00", "0000-01-01T00:00:00Z", true),
        ] {
            let time = Timestamp::parse(text).expect(text);
            assert_eq!((time.to_string().as_str(), time.is_zero()), (utc, zero));
        }
        assert!(Timestamp::parse("yesterday").is_err());
    }

    #[test]
    fn microseconds_out_of_range_are_1970() {
        for micros in [i64::MIN, -62_167_219_200_000_001, 253_402_300_800_000_000, i64::MAX] {
            assert_eq!(Timestamp::from_unix_micros(micros).unix_micros(), 0, "{micros}");
        }
        for micros in [-62_167_219_200_000_000, 253_402_300_799_999_999] {
            let time = Timestamp::from_unix_micros(micros);
            assert_eq!(time.unix_micros(), micros);
            assert_eq!(Timestamp::parse(&time.to_string()).expect("own text"), time);
        }
    }

    #[test]
    fn microseconds_survive_the_round_trip() {
        let now = Timestamp::now();
        assert_eq!(Timestamp::from_unix_micros(now.unix_micros()), now);
        assert_eq!(Timestamp::parse(&now.to_string()).expect("own text"), now);
    }
}
