//! What is said to the broker about a message, and where.

use bytes::Bytes;

/// The message is done.
pub(crate) const ACK: Bytes = Bytes::from_static(b"+ACK");
/// The message is to be given out again.
pub(crate) const NAK: Bytes = Bytes::from_static(b"-NAK");
/// The message is being worked on.
pub(crate) const IN_PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// Most bytes of a reason.
const MOST_REASON: usize = 200;

/// The end of a message that can never be handled, with the reason for the broker's advisory.
pub(crate) fn term(reason: &str) -> Bytes {
    let words: Vec<&str> = reason.split_whitespace().collect();
    let line = words.join(" ");
    let ends = line.char_indices().map(|(start, letter)| start + letter.len_utf8());
    let cut = ends.take_while(|end| *end <= MOST_REASON).last().unwrap_or(0);
    format!("+TERM {}", &line[..cut]).into()
}

/// The place of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// How often the message was delivered, this time included.
    pub(crate) delivered: u64,
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// The consumer's count of deliveries.
    pub(crate) count: u64,
}

impl Place {
    /// Reads the subject of an ack.
    pub(crate) fn parse(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.split('.').collect();
        let first = match tokens[..] {
            ["$JS", "ACK", ..] if tokens.len() == 9 => 4,
            // With a domain and a hash of the account before the stream.
            ["$JS", "ACK", ..] if tokens.len() >= 11 => 6,
            _ => return None,
        };
        let number = |place: usize| tokens.get(place)?.parse().ok();
        Some(Self {
            delivered: number(first)?,
            sequence: number(first + 1)?,
            count: number(first + 2)?,
        })
    }
}

/// Subject that asks for a message that was delivered and did not get here. The broker looks at the
/// sequence, and whether the count of the delivery can be right. It ignores a message that is not
/// out at all.
pub(crate) fn of_lost(stream: &str, durable: &str, sequence: u64, count: u64) -> String {
    format!("$JS.ACK.{stream}.{durable}.1.{sequence}.{count}.0.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_read_with_a_domain_and_without() {
        let place = Some(Place { delivered: 2, sequence: 30, count: 40 });
        for (reply, expected) in [
            ("$JS.ACK.S.c.2.30.40.1700000000.5", place),
            ("$JS.ACK.domain.hash.S.c.2.30.40.1700000000.5", place),
            ("$JS.ACK.domain.hash.S.c.2.30.40.1700000000.5.token", place),
            ("$JS.ACK.S.c.2.x.40.1700000000.5", None),
            ("$JS.ACK.S.c.2", None),
            ("_INBOX.a.b", None),
        ] {
            assert_eq!(Place::parse(reply), expected, "{reply}");
        }
        assert_eq!(Place::parse(&of_lost("S", "c", 7, 9)).expect("a place").sequence, 7);
    }

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(term("two\n lines"), "+TERM two lines");
        assert_eq!(term(&"é".repeat(300)).len(), "+TERM ".len() + MOST_REASON);
    }
}
