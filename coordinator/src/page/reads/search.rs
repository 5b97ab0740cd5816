//! Finds messages without an index: by time, by subject, the newest, or all of a range.

use std::ops::Range;

use async_nats::jetstream::stream::State;
use contract::timestamp::Timestamp;
use futures::{StreamExt, stream};

use super::{Message, ReadError, Reads, Stream};

/// Requests at once of one look.
const AT_ONCE: usize = 32;

/// What was found of something that was sought.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) items: Vec<T>,
    /// Why not all that there may be was looked at.
    pub(crate) cut_short: Option<ReadError>,
    /// The sequence from which on all was looked at.
    pub(crate) from: u64,
}

impl<T> Found<T> {
    /// Nothing, and nowhere to look.
    pub(crate) fn nothing() -> Self {
        Self { items: Vec::new(), cut_short: None, from: 0 }
    }
}

impl Reads {
    /// A sequence before which no message is younger than `time`: the first message of that time or
    /// later, by halving. One past the last if there is none.
    pub(crate) async fn since(
        &self,
        stream: &Stream,
        state: &State,
        time: Timestamp,
    ) -> Result<u64, ReadError> {
        let (mut low, mut high) = (state.first_sequence, state.last_sequence + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            // Sequences may be missing, so the next message stands for all before it.
            match self.next(stream, ">", middle).await? {
                Some(message) if message.time < time => low = message.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low)
    }

    /// Messages on `subject` from `sequence` on, until `is_last` or `most` of them.
    pub(crate) async fn walk(
        &self,
        stream: &Stream,
        subject: &str,
        sequence: u64,
        most: usize,
        mut is_last: impl FnMut(&Message) -> bool,
    ) -> Result<Vec<Message>, ReadError> {
        let (mut next, mut messages) = (sequence, Vec::new());
        while messages.len() < most {
            let Some(message) = self.next(stream, subject, next).await? else { break };
            next = message.sequence + 1;
            let ends = is_last(&message);
            messages.push(message);
            if ends {
                break;
            }
        }
        Ok(messages)
    }

    /// What `keep` keeps of the messages on `subject` from `sequence` on, `most` of it at most. It goes
    /// on until time is up, and no message is held for longer than it takes to look at it.
    pub(crate) async fn follow<T>(
        &self,
        stream: &Stream,
        subject: &str,
        sequence: u64,
        most: usize,
        keep: impl Fn(Message) -> Option<T>,
    ) -> Found<T> {
        self.look_through(stream, subject, sequence..u64::MAX, most, &keep).await
    }

    /// What `keep` keeps of the messages on `subject` with these sequences, `most` of it at most.
    async fn look_through<T>(
        &self,
        stream: &Stream,
        subject: &str,
        sequences: Range<u64>,
        most: usize,
        keep: &impl Fn(Message) -> Option<T>,
    ) -> Found<T> {
        let mut found = Found { from: sequences.start, ..Found::nothing() };
        let mut next = sequences.start;
        while next < sequences.end && found.items.len() < most {
            match self.next(stream, subject, next).await {
                Ok(Some(message)) if message.sequence < sequences.end => {
                    next = message.sequence + 1;
                    found.items.extend(keep(message));
                }
                Ok(_) => break,
                Err(error) => {
                    found.cut_short = Some(error);
                    break;
                }
            }
        }
        found
    }

    /// The newest messages on `subject` before the sequence `before`, the newest first. Looks at
    /// ever larger pieces of the stream from its end, since the broker only walks forward.
    pub(crate) async fn newest(
        &self,
        stream: &Stream,
        state: &State,
        subject: &str,
        before: Option<u64>,
        most: usize,
    ) -> Found<Message> {
        let mut high = before.unwrap_or(u64::MAX).min(state.last_sequence + 1);
        let (first, mut width) = (state.first_sequence.max(1), 1_024);
        let mut found = Found { items: Vec::new(), cut_short: None, from: 0 };
        while found.items.len() < most && high > first {
            let low = high.saturating_sub(width).max(first);
            let piece =
                self.walk(stream, subject, low, 2 * most, |message| message.sequence >= high);
            match piece.await {
                Ok(mut piece) => {
                    let is_whole =
                        piece.len() < 2 * most || piece.last().is_some_and(|m| m.sequence >= high);
                    if !is_whole && width > 1 {
                        width = (width / 8).max(1);
                        continue;
                    }
                    piece.retain(|message| message.sequence < high);
                    found.items.extend(piece.into_iter().rev());
                    (high, width) = (low, width.saturating_mul(8));
                }
                Err(error) => {
                    found.cut_short = Some(error);
                    break;
                }
            }
        }
        found.items.truncate(most);
        found.from = high;
        found
    }

    /// What `keep` keeps of the `most` newest messages of a stream, in order, and how many there are of
    /// them.
    pub(crate) async fn newest_of_all<T>(
        &self,
        name: &str,
        most: u64,
        keep: impl Fn(Message) -> Option<T>,
    ) -> Result<(Found<T>, u64), ReadError> {
        let Some(info) = self.info(name).await? else { return Ok((Found::nothing(), 0)) };
        let end = info.state.last_sequence + 1;
        let begin = end.saturating_sub(most).max(info.state.first_sequence);
        let stream = self.stream(name).await?;
        let found = self.range(&stream, begin, end, keep).await;
        Ok((found, end.saturating_sub(begin).min(info.state.messages)))
    }

    /// What `keep` keeps of all messages from `low` to before `high`, in order. Several parts are
    /// read at once, and no message longer than it takes to look at it.
    pub(crate) async fn range<T>(
        &self,
        stream: &Stream,
        low: u64,
        high: u64,
        keep: impl Fn(Message) -> Option<T>,
    ) -> Found<T> {
        let length = high.saturating_sub(low);
        let part = length.div_ceil(AT_ONCE as u64).max(1);
        let keep = &keep;
        let parts = (0..length.div_ceil(part)).map(|index| {
            let sequences = low + index * part..(low + (index + 1) * part).min(high);
            self.look_through(stream, ">", sequences, usize::MAX, keep)
        });
        let mut read = stream::iter(parts).buffered(AT_ONCE);
        let mut found = Found { from: low, ..Found::nothing() };
        while let Some(of_part) = read.next().await {
            found.items.extend(of_part.items);
            found.cut_short = found.cut_short.or(of_part.cut_short);
        }
        found
    }
}
