//! Whether another program uses the same durable consumer.
//!
//! What was lost on the way is asked for by its sequence. What another program has in hand must not
//! be: both would handle it at once. The broker says neither who is there nor who has what, but how
//! many requests for messages wait. So it is asked that once a second.

use crate::hand::Standing;

/// Looks in a row without a sign of another program after which it is gone. A request of ours over a
/// connection that the broker does not know to be dead waits for 30 s.
const MANY: u32 = 45;

/// What was seen of other programs.
#[derive(Debug)]
pub(crate) struct Sharing {
    /// Looks in a row without a sign of one.
    quiet: u32,
}

impl Sharing {
    pub(crate) fn new() -> Self {
        Self { quiet: MANY }
    }

    /// Whether no other program has anything in hand, as far as was seen.
    pub(crate) fn is_alone(&self) -> bool {
        self.quiet >= MANY
    }

    /// Takes in what the broker says, while at most `mine` requests of ours wait there, and `here`
    /// of what it has given out is in hand. Returns whether another program is new.
    pub(crate) fn look(&mut self, standing: &Standing, mine: u64, here: u64) -> bool {
        if standing.waiting > mine {
            let was_alone = self.is_alone();
            self.quiet = 0;
            return was_alone;
        }
        // It may hold something without asking for more.
        if standing.unacked <= here {
            self.quiet = self.quiet.saturating_add(1);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_one_is_seen_by_its_request_and_gone_after_many_looks_without() {
        let standing = |waiting, unacked| Standing {
            waiting,
            unacked,
            last_sequence: 5,
            ..Default::default()
        };
        let mut sharing = Sharing::new();
        assert!(sharing.is_alone());
        assert!(!sharing.look(&standing(1, 0), 1, 0), "a request of ours");
        assert!(sharing.look(&standing(2, 0), 1, 0), "it is new");
        assert!(!sharing.look(&standing(1, 0), 0, 0), "it is known");
        for _ in 0..44 {
            assert!(!sharing.look(&standing(1, 0), 1, 0));
        }
        // It asks for nothing, and has something.
        assert!(!sharing.look(&standing(0, 2), 1, 1));
        assert!(!sharing.is_alone());
        assert!(!sharing.look(&standing(0, 1), 1, 1));
        assert!(sharing.is_alone());
    }
}
