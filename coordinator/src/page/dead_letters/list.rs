//! Reads dead letters: the newest for the list, or all that match for a job.

use std::sync::atomic::{AtomicU64, Ordering};

use contract::names::DEAD_LETTERS;

use super::{
    super::reads::{ReadError, Reads, Stream},
    letter::{Filter, Letter},
};

/// Sequences of a first piece that is read at once. Later ones grow where they hold little.
const PIECE: u64 = 512;
/// Sequences of a piece at most, which bounds the letters in memory.
const LARGEST_PIECE: u64 = 1 << 16;
/// Letters of a piece, below which the next one is larger.
const FEW: u64 = 64;

/// Sequences of the piece after one that held this many letters.
fn next_piece(piece: u64, looked_at: u64) -> u64 {
    if looked_at < FEW { (piece * 8).min(LARGEST_PIECE) } else { PIECE }
}

/// The letters of one piece that match, in order: from `low` to before `high`. Sets how large the next
/// `piece` is.
async fn matching(
    reads: &Reads,
    stream: &Stream,
    (low, high): (u64, u64),
    filter: &Filter,
    piece: &mut u64,
) -> Result<Vec<Letter>, ReadError> {
    let looked_at = AtomicU64::new(0);
    let keep = |message| {
        looked_at.fetch_add(1, Ordering::Relaxed);
        Some(Letter::of(&message)).filter(|letter| filter.matches(letter))
    };
    let found = reads.range(stream, low, high, keep).await;
    if let Some(error) = found.cut_short {
        return Err(error);
    }
    *piece = next_piece(*piece, looked_at.into_inner());
    Ok(found.items)
}

/// Letters of the list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) letters: Vec<Letter>,
    /// All that the stream holds. None if it could not be asked.
    pub(super) in_stream: Option<u64>,
    /// The sequence before which there are more.
    pub(super) older: Option<u64>,
    pub(super) cut_short: Option<ReadError>,
}

impl Listed {
    /// Reasons of the letters that are listed, each once.
    pub(super) fn reasons(&self) -> Vec<&str> {
        let mut reasons: Vec<_> = self.letters.iter().map(Letter::reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        reasons.truncate(20);
        reasons
    }
}

/// The newest letters before `before` that match, the newest first.
pub(super) async fn newest(
    reads: &Reads,
    filter: &Filter,
    before: Option<u64>,
    most: usize,
) -> Listed {
    let mut listed = Listed { letters: Vec::new(), in_stream: None, older: None, cut_short: None };
    if let Err(error) = read_newest(reads, filter, before, most, &mut listed).await {
        listed.cut_short = Some(error);
    }
    if listed.letters.len() > most {
        listed.letters.truncate(most);
        listed.older = listed.letters.last().map(|letter| letter.sequence);
    }
    listed
}

async fn read_newest(
    reads: &Reads,
    filter: &Filter,
    before: Option<u64>,
    most: usize,
    listed: &mut Listed,
) -> Result<(), ReadError> {
    let info = reads.info(DEAD_LETTERS).await?;
    listed.in_stream = Some(info.as_ref().map_or(0, |info| info.state.messages));
    let Some(info) = info else { return Ok(()) };
    let stream = reads.stream(DEAD_LETTERS).await?;
    let first = info.state.first_sequence;
    let mut high = before.unwrap_or(u64::MAX).min(info.state.last_sequence + 1);
    let mut piece = PIECE;
    while high > first && listed.letters.len() <= most {
        let low = high.saturating_sub(piece).max(first);
        let letters = matching(reads, &stream, (low, high), filter, &mut piece).await?;
        listed.letters.extend(letters.into_iter().rev());
        high = low;
    }
    Ok(())
}

/// The oldest letters up to `through` that match, in order, `most` of them.
///
/// # Errors
/// If not all that there may be could be looked at.
pub(super) async fn oldest(
    reads: &Reads,
    filter: &Filter,
    through: u64,
    most: usize,
) -> Result<Vec<Letter>, ReadError> {
    let Some(info) = reads.info(DEAD_LETTERS).await? else { return Ok(Vec::new()) };
    let stream = reads.stream(DEAD_LETTERS).await?;
    let end = through.min(info.state.last_sequence).saturating_add(1);
    let (mut low, mut piece, mut letters) = (info.state.first_sequence, PIECE, Vec::new());
    while low < end && letters.len() < most {
        let high = low.saturating_add(piece).min(end);
        letters.extend(matching(reads, &stream, (low, high), filter, &mut piece).await?);
        low = high;
    }
    letters.truncate(most);
    Ok(letters)
}

/// The letters with these sequences that are there.
///
/// # Errors
/// If the broker does not answer.
pub(super) async fn chosen(reads: &Reads, sequences: &[u64]) -> Result<Vec<Letter>, ReadError> {
    if sequences.is_empty() || reads.info(DEAD_LETTERS).await?.is_none() {
        return Ok(Vec::new());
    }
    let stream = reads.stream(DEAD_LETTERS).await?;
    let all = sequences.iter().map(|sequence| reads.message(&stream, *sequence));
    let found: Result<Vec<_>, _> = futures::future::join_all(all).await.into_iter().collect();
    Ok(found?.into_iter().flatten().map(|message| Letter::of(&message)).collect())
}
