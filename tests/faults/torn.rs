//! What a power cut may do to a journal: any byte of its write-ahead log that
//! no completed fsync covers may be missing or have another value.

use std::{
    collections::HashSet,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use fastrand::Rng;
use rusqlite::Connection;
use uuid::Uuid;

const FILE: &str = "journal.db";
const HEADER: u64 = 32;
const FRAME_HEADER: u64 = 24;
/// Offset of the salt in the log's header, which identifies the log's round.
const LOG_SALT: usize = 16;
/// Offset of the same salt in the log's index.
const INDEX_SALT: usize = 32;
/// Offset in the log's index of the last frame that may have been checkpointed into the file.
const BACKFILL_ATTEMPTED: usize = 128;
/// Number of transactions that are examined, from the end.
const LOOK_BACK: usize = 4;

/// Tears the end of the journal in `dir`, which nobody has open, at a random byte
/// among those that may be lost. `kept` are the deliveries that were answered, so a
/// commit that holds one of them was synced. Returns a description for people.
pub fn tear(dir: &Path, kept: &HashSet<String>, rng: &mut Rng) -> io::Result<String> {
    let wal = dir.join(format!("{FILE}-wal"));
    let Ok(log) = fs::read(&wal) else { return Ok("there is no log to tear".into()) };
    let Some((commits, written)) = frames(&log) else { return Ok("the log is empty".into()) };
    let synced = synced(dir, &commits, kept)?.max(moved(dir, &log)?).min(written);
    let mut file = fs::OpenOptions::new().write(true).open(&wal)?;
    if synced == written {
        // All that was written is synced. The bytes behind it may be anything.
        file.seek(SeekFrom::Start(written))?;
        file.write_all(&noise(rng, 5000))?;
        return Ok("nothing but synced commits; noise behind them".into());
    }
    let at = rng.u64(synced..written);
    let lost = written - at;
    if rng.bool() {
        file.set_len(at)?;
        return Ok(format!("cut at byte {at}, {lost} before the end of what was written"));
    }
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&noise(rng, lost as usize))?;
    Ok(format!("noise from byte {at} on, {lost} before the end of what was written"))
}

fn noise(rng: &mut Rng, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    // Zeros occur, too: blocks that were allocated and never written.
    if rng.bool() {
        rng.fill(&mut noise);
    }
    noise
}

fn number(bytes: &[u8], at: u64) -> u32 {
    let at = at as usize;
    bytes.get(at..at + 4).map_or(0, |four| u32::from_be_bytes(four.try_into().expect("four")))
}

fn frame_bytes(log: &[u8]) -> u64 {
    FRAME_HEADER + u64::from(number(log, 8))
}

/// Where each commit of the log ends, and where the last frame of its current round ends.
fn frames(log: &[u8]) -> Option<(Vec<u64>, u64)> {
    let salt = log.get(LOG_SALT..LOG_SALT + 8)?;
    let frame = frame_bytes(log);
    let mut commits = vec![HEADER];
    let mut at = HEADER;
    while at + frame <= log.len() as u64 && log[at as usize + 8..at as usize + 16] == *salt {
        let commits_here = number(log, at + 4) > 0;
        at += frame;
        if commits_here {
            commits.push(at);
        }
    }
    // Frames after the last commit were written, too.
    (at > HEADER).then_some((commits, at))
}

/// The end of the last commit that must have been synced.
fn synced(dir: &Path, commits: &[u64], kept: &HashSet<String>) -> io::Result<u64> {
    let mut later = ids(dir, *commits.last().expect("the header counts as one"))?;
    for pair in commits.windows(2).rev().take(LOOK_BACK) {
        // A log that can no longer be read was checkpointed up to here, and so was synced.
        let earlier = ids(dir, pair[0]).unwrap_or_default();
        if later.difference(&earlier).any(|id| kept.contains(id)) {
            return Ok(pair[1]);
        }
        later = earlier;
    }
    Ok(commits[commits.len().saturating_sub(LOOK_BACK + 1)])
}

/// Where the frames end that may have been checkpointed into the file. That happens only after a
/// sync.
fn moved(dir: &Path, log: &[u8]) -> io::Result<u64> {
    let mut index = [0; BACKFILL_ATTEMPTED + 4];
    fs::File::open(dir.join(format!("{FILE}-shm")))?.read_exact(&mut index)?;
    // The index is in a new round, which begins after all of this round was checkpointed.
    if index[INDEX_SALT..INDEX_SALT + 8] != log[LOG_SALT..LOG_SALT + 8] {
        return Ok(u64::MAX);
    }
    let frames = index[BACKFILL_ATTEMPTED..].try_into().expect("four bytes");
    Ok(HEADER + u64::from(u32::from_ne_bytes(frames)) * frame_bytes(log))
}

/// Ids of the deliveries in a copy of the journal whose log ends at `end`.
fn ids(dir: &Path, end: u64) -> io::Result<HashSet<String>> {
    let copy = tests::temp_dir();
    let file: PathBuf = copy.path().join(FILE);
    fs::copy(dir.join(FILE), &file)?;
    let wal = copy.path().join(format!("{FILE}-wal"));
    fs::copy(dir.join(format!("{FILE}-wal")), &wal)?;
    fs::OpenOptions::new().write(true).open(&wal)?.set_len(end)?;
    read_ids(&file).map_err(io::Error::other)
}

fn read_ids(file: &Path) -> rusqlite::Result<HashSet<String>> {
    let connection = Connection::open(file)?;
    let mut statement = connection.prepare("SELECT delivery_id FROM deliveries")?;
    let ids = statement.query_map((), |row| row.get::<_, [u8; 16]>(0))?;
    ids.map(|id| Ok(Uuid::from_bytes(id?).to_string())).collect()
}
