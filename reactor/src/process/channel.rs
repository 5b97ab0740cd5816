//! What a reactor and the supervisor of a run tell each other, over a socket of theirs.
//!
//! The reactor begins with a [`Description`] and what the command reads, and goes on with
//! [`Order`]s. The supervisor answers with [`Report`]s, one a line. Either knows that the other has
//! ended when the socket is closed.

use std::{
    io::{self, Read},
    path::PathBuf,
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{Ended, Limits};

/// Largest description, in bytes. The system takes no larger arguments and environment either.
const MOST: usize = 8 * 1024 * 1024;

/// What is to be run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) argv: Vec<String>,
    pub(super) directory: Option<PathBuf>,
    pub(super) user: Option<String>,
    pub(super) environment: Vec<(String, String)>,
    pub(super) limits: Limits,
    /// By [`monotonic`], as in [`Order::Renew`].
    pub(super) lease_until: u64,
    /// Bytes for standard input. They follow.
    pub(super) stdin_bytes: usize,
    /// The reactor's own part of the marker: see `marker`.
    pub(super) reactor: String,
    /// How many open files the command may have, if not as many as the supervisor.
    pub(super) descriptors: Option<u64>,
}

impl Description {
    /// The bytes that go over the socket, without what the command reads.
    pub(super) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let json = serde_json::to_vec(self)?;
        let length = u32::try_from(json.len()).ok().filter(|_| json.len() <= MOST);
        let length =
            length.ok_or_else(|| io::Error::other("arguments and environment are too large"))?;
        Ok([&length.to_be_bytes(), &json[..]].concat())
    }

    /// Reads a description, and what the command reads.
    pub(super) fn read(socket: &mut impl Read) -> io::Result<(Self, Vec<u8>)> {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        let mut json = Vec::new();
        socket.by_ref().take(length.into()).read_to_end(&mut json)?;
        let description: Self = serde_json::from_slice(&json)?;
        let mut stdin = vec![0; description.stdin_bytes];
        socket.read_exact(&mut stdin)?;
        Ok((description, stdin))
    }
}

/// What a reactor orders while a command runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// End the run.
    Stop,
    /// The lease ends at this time, by [`monotonic`].
    Renew(u64),
}

impl Order {
    /// Length of an order in bytes.
    pub(super) const BYTES: usize = 9;

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let (kind, time) = match self {
            Self::Stop => (b's', 0),
            Self::Renew(until) => (b'r', until),
        };
        let mut bytes = [kind; Self::BYTES];
        bytes[1..].copy_from_slice(&time.to_be_bytes());
        bytes
    }

    /// The order that stands first in `bytes`. None if there is no whole one yet.
    pub(super) fn first(bytes: &[u8]) -> Option<Self> {
        let (kind, time) = bytes.first_chunk::<{ Self::BYTES }>()?.split_first()?;
        let time = u64::from_be_bytes(*time.first_chunk()?);
        Some(if *kind == b'r' { Self::Renew(time) } else { Self::Stop })
    }
}

/// What a supervisor reports.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// The command runs.
    Started,
    /// The command could not be started, and nothing of it runs.
    Refused(String),
    /// The lease was over before the command was started.
    LeaseOver,
    /// Nothing of the run is left.
    Ended(Ended),
}

/// Nanoseconds on the clock that all processes of a machine share and nobody sets.
pub(super) fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// An instant by [`monotonic`]. A pause of this process in here makes it earlier, never later.
pub(super) fn to_monotonic(instant: Instant) -> u64 {
    let now = monotonic();
    let left = instant.saturating_duration_since(Instant::now()).as_nanos();
    now.saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn orders_are_read_as_they_were_written() {
        for order in [Order::Stop, Order::Renew(0), Order::Renew(u64::MAX - 1)] {
            let bytes = order.to_bytes();
            assert_eq!(Order::first(&bytes), Some(order));
            assert_eq!(Order::first(&[&bytes[..], &[1; 4]].concat()), Some(order));
            assert_eq!(Order::first(&bytes[..8]), None);
        }
    }

    #[test]
    fn a_description_that_breaks_off_or_is_no_json_is_an_error() {
        let description = Description {
            argv: vec!["true".into()],
            directory: None,
            user: None,
            environment: Vec::new(),
            limits: Limits {
                time: None,
                memory_bytes: None,
                output_bytes: 1,
                grace: Duration::from_secs(1),
            },
            lease_until: 7,
            stdin_bytes: 3,
            reactor: "r".into(),
            descriptors: None,
        };
        let bytes = [&description.to_bytes().expect("bytes")[..], b"abc"].concat();
        let (read, stdin) = Description::read(&mut &bytes[..]).expect("a description");
        assert_eq!((read.argv, read.lease_until, &stdin[..]), (description.argv, 7, &b"abc"[..]));
        for end in 0..bytes.len() {
            assert!(Description::read(&mut &bytes[..end]).is_err(), "{end}");
        }
        assert!(Description::read(&mut &[0, 0, 0, 2, b'{', b'x'][..]).is_err());
    }

    #[test]
    fn a_time_that_is_over_is_now() {
        let before = monotonic();
        let past = Instant::now().checked_sub(Duration::from_secs(1)).expect("an instant");
        let now = to_monotonic(past);
        assert!((before..=monotonic()).contains(&now));
        let later = to_monotonic(Instant::now() + Duration::from_secs(9));
        assert!(later > before + 8_900_000_000 && later <= monotonic() + 9_000_000_000);
    }
}
