use std::ops::Deref;

use super::*;
use contract::event;

use crate::delivery;

/// A journal in its own directory, with its writer.
struct Opened {
    journal: Journal,
    tasks: Tasks,
}

impl Deref for Opened {
    type Target = Journal;

    fn deref(&self) -> &Journal {
        &self.journal
    }
}

impl Opened {
    async fn open(settings: &JournalSettings) -> Result<Self, JournalError> {
        let mut tasks = Tasks::default();
        let journal = Journal::open(settings, &mut tasks).await?;
        Ok(Self { journal, tasks })
    }

    async fn append(&self, entry: NewEntry) -> Result<Kept, AppendError> {
        self.journal.append(entry)?.await
    }

    fn settle(&self, seqs: std::ops::RangeInclusive<i64>) {
        for seq in seqs {
            self.window().offer(seq);
            self.window().confirm(seq, contract::timestamp::Timestamp::now());
        }
    }

    async fn close(mut self) {
        self.journal.close().await;
        assert_eq!(self.tasks.finish(WRITER, Duration::from_secs(60)).await, Ok(true));
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn settings(directory: &tempfile::TempDir) -> JournalSettings {
    JournalSettings {
        dir: directory.path().to_owned(),
        max_bytes: 1 << 30,
        retention: Duration::from_secs(3600),
        retention_bytes: 1 << 30,
    }
}

fn entry(id: u128, text: &[u8]) -> NewEntry {
    let mut event = Box::new(event::example());
    event.repository.id = 3;
    event.issue.number = 7;
    let mut delivery = delivery::example(id);
    delivery.body_sha256 = [text.len() as u8; 32];
    NewEntry {
        delivery,
        traceparent: "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01".parse().unwrap(),
        packed: Packed::new(text),
        event,
        _memory: None,
    }
}

fn text(entry: &Entry) -> &[u8] {
    match &entry.content {
        Content::Text(text) => text,
        Content::Event(_) | Content::Unreadable(_) => panic!("another content"),
    }
}

async fn entries(journal: &Opened) -> Vec<i64> {
    let reader = journal.reader().await.unwrap();
    reader.after(0, 1000, usize::MAX).unwrap().iter().map(|entry| entry.seq).collect()
}

#[tokio::test]
async fn an_entry_is_kept_once_and_read_back_after_a_restart() {
    let directory = directory();
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    assert_eq!(journal.append(entry(1, b"one")).await, Ok(Kept::New));
    assert_eq!(journal.append(entry(1, b"one")).await, Ok(Kept::Before));
    assert_eq!(journal.append(entry(1, b"other")).await, Err(AppendError::IdReused));
    assert_eq!(journal.append(entry(2, b"two")).await, Ok(Kept::New));
    assert_eq!(journal.status().depth(), 2);
    journal.settle(1..=1);
    journal.close().await;

    let journal = Opened::open(&settings(&directory)).await.unwrap();
    assert_eq!((journal.status().depth(), journal.window().low_water_mark()), (1, 1));
    let reader = journal.reader().await.unwrap();
    let read = reader.after(0, 10, usize::MAX).unwrap();
    assert_eq!(
        read.iter().map(|e| (e.seq, text(e))).collect::<Vec<_>>(),
        [(1, &b"one"[..]), (2, b"two")]
    );
    assert_eq!(read[0].traceparent, Some(entry(1, b"").traceparent));
    assert_eq!(read[0].issue, Issue { repository_id: 3, number: 7 });
    assert_eq!(
        reader.after(0, 10, 1).unwrap().len(),
        1,
        "the byte limit lets the first one through"
    );
    journal.close().await;
}

#[tokio::test]
async fn a_directory_is_used_by_one_instance() {
    let directory = directory();
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    assert!(matches!(Opened::open(&settings(&directory)).await, Err(JournalError::InUse)));
    journal.close().await;
    Opened::open(&settings(&directory)).await.unwrap().close().await;
}

#[tokio::test]
async fn many_at_once_share_commits_and_keep_their_order_of_arrival() {
    let directory = directory();
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    let appends = (1..=500).map(|id| journal.append(entry(id, b"x")));
    for kept in futures::future::join_all(appends).await {
        assert_eq!(kept, Ok(Kept::New));
    }
    assert_eq!(entries(&journal).await, (1..=500).collect::<Vec<i64>>());
    journal.close().await;
}

#[tokio::test]
async fn what_is_published_goes_after_its_time_and_sequences_never_come_twice() {
    let directory = directory();
    let settings = JournalSettings { retention: Duration::ZERO, ..settings(&directory) };
    let journal = Opened::open(&settings).await.unwrap();
    for id in 1..=3 {
        journal.append(entry(id, b"x")).await.unwrap();
    }
    journal.settle(1..=1);
    journal.window().offer(2);
    journal.set_aside(2, Uuid::nil(), "no broker takes it".into()).await.unwrap();
    journal.settle(3..=3);
    journal.upkeep().await.unwrap();
    assert_eq!(journal.reader().await.unwrap().count(), 1);
    assert_eq!((journal.status().set_aside(), journal.status().depth()), (1, 0));
    journal.close().await;
    let journal = Opened::open(&settings).await.unwrap();
    journal.append(entry(4, b"x")).await.unwrap();
    assert_eq!(entries(&journal).await, [4]);
    journal.close().await;
}

#[tokio::test]
async fn a_journal_at_its_limit_refuses_and_takes_again_once_there_is_room() {
    let directory = directory();
    let settings =
        JournalSettings { max_bytes: 1 << 20, retention_bytes: 1 << 19, ..settings(&directory) };
    let journal = Opened::open(&settings).await.unwrap();
    // Noise, which LZ4 cannot compress.
    let mut state = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(100_000)
    .collect();
    let mut kept = 0;
    let refused = loop {
        match journal.append(entry(kept + 1, &noise)).await {
            Ok(_) => kept += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((refused, kept), (AppendError::Full, 10));
    assert!(!journal.status().can_keep());
    journal.settle(1..=10);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while journal.append(entry(100, b"x")).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "no room was made");
        journal.upkeep().await.unwrap();
    }
    assert!(journal.status().can_keep());
    journal.close().await;
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_left_alone() {
    let directory = directory();
    Opened::open(&settings(&directory)).await.unwrap().close().await;
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let opened = Opened::open(&settings(&directory)).await;
    assert!(matches!(opened, Err(JournalError::NewerSchema { found: 99, known: 3 })));
}

/// More ids than are collected before a merge.
const MANY: u128 = 20_000;

async fn keep(journal: &Opened, ids: impl Iterator<Item = u128>) -> Vec<Result<Kept, AppendError>> {
    futures::future::join_all(ids.map(|id| journal.append(entry(id, b"x")))).await
}

fn rows(directory: &tempfile::TempDir, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    connection.query_row(sql, (), |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_old_delivery_is_known_before_and_after_a_restart_and_until_it_is_cleared() {
    let directory = directory();
    let mut settings = settings(&directory);
    let journal = Opened::open(&settings).await.unwrap();
    for first in (1..=MANY).step_by(10_000) {
        let kept = keep(&journal, first..first + 10_000).await;
        assert!(kept.iter().all(|kept| *kept == Ok(Kept::New)));
    }
    let again = [1, 8_192, 8_193, 16_385, MANY];
    assert_eq!(keep(&journal, again.into_iter()).await, [Ok(Kept::Before); 5]);
    assert_eq!(journal.append(entry(2, b"other")).await, Err(AppendError::IdReused));
    journal.close().await;

    settings.retention = Duration::ZERO;
    let journal = Opened::open(&settings).await.unwrap();
    assert_eq!(keep(&journal, again.into_iter()).await, [Ok(Kept::Before); 5]);
    journal.settle(1..=8_999);
    journal.window().offer(9_000);
    journal.set_aside(9_000, Uuid::nil(), "no broker takes it".into()).await.unwrap();
    journal.settle(9_001..=MANY as i64);
    while rows(&directory, "SELECT count(*) FROM deliveries") > 1 {
        journal.upkeep().await.unwrap();
    }
    assert_eq!(journal.append(entry(9_000, b"x")).await, Ok(Kept::Before), "set aside");
    assert_eq!(journal.append(entry(1, b"x")).await, Ok(Kept::New), "it is gone");
    journal.close().await;
}

#[tokio::test]
async fn what_was_settled_too_long_ago_is_not_offered_whatever_the_file_holds() {
    let directory = directory();
    let settings = settings(&directory);
    let journal = Opened::open(&settings).await.unwrap();
    keep(&journal, 1..=3).await;
    let now = contract::timestamp::Timestamp::now();
    for (seq, secs_ago) in [(1, 3000), (2, 2000)] {
        let stored_at = now.unix_micros() - secs_ago * 1_000_000;
        journal.window().offer(seq);
        journal.window().confirm(seq, contract::timestamp::Timestamp::from_unix_micros(stored_at));
        journal.upkeep().await.unwrap();
    }
    let reader = journal.reader().await.unwrap();
    for (dedup_window_secs, expected) in [(90_000, 0), (2500, 1), (1000, 2)] {
        let (_, expired) = reader.expired(Duration::from_secs(dedup_window_secs)).unwrap();
        assert_eq!(expired, expected, "{dedup_window_secs}");
    }
    // Each settled entry has a storage time, and an unsettled entry has none.
    let known: Vec<bool> =
        reader.after(0, 9, usize::MAX).unwrap().iter().map(|e| e.stored_at.is_some()).collect();
    assert_eq!(known, [true, true, false]);
    journal.close().await;
}

#[tokio::test]
async fn a_damaged_body_holds_up_no_other() {
    let directory = directory();
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    keep(&journal, 1..=3).await;
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    connection.execute("UPDATE bodies SET lz4 = x'ff' WHERE seq = 2", ()).unwrap();
    let reader = journal.reader().await.unwrap();
    let read = reader.after(0, 10, usize::MAX).unwrap();
    let damaged = |entry: &Entry| matches!(entry.content, Content::Unreadable(_));
    assert_eq!(read.iter().map(damaged).collect::<Vec<_>>(), [false, true, false]);
    journal.close().await;
}

#[tokio::test]
async fn a_journal_of_the_first_version_is_taken_over() {
    let directory = directory();
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    keep(&journal, 1..=10).await;
    journal.close().await;
    let connection = rusqlite::Connection::open(directory.path().join(FILE)).unwrap();
    let sql = "ALTER TABLE deliveries DROP COLUMN family;
               ALTER TABLE deliveries ADD COLUMN event_type TEXT; PRAGMA user_version = 1";
    connection.execute_batch(sql).unwrap();
    drop(connection);
    let journal = Opened::open(&settings(&directory)).await.unwrap();
    assert_eq!(keep(&journal, [1, 10].into_iter()).await, [Ok(Kept::Before); 2]);
    assert_eq!(entries(&journal).await.len(), 10);
    journal.close().await;
}

#[tokio::test]
async fn a_directory_named_like_a_uri_of_sqlite_holds_a_file_all_the_same() {
    // Relative, since an absolute path is never taken as a URI.
    let parent = tempfile::Builder::new().prefix("file:").tempdir_in(".").unwrap();
    let name = std::path::Path::new(parent.path().file_name().unwrap());
    let dir = name.join("?mode=memory&x=");
    let settings = JournalSettings { dir: dir.clone(), ..settings(&parent) };
    let journal = Opened::open(&settings).await.unwrap();
    journal.append(entry(1, b"{}")).await.unwrap();
    assert!(dir.join(FILE).is_file());
    journal.close().await;
}

#[tokio::test]
async fn a_journal_is_not_begun_below_another_one() {
    let dir = directory();
    let above = settings(&dir);
    let below = JournalSettings { dir: dir.path().join("journal"), ..above.clone() };
    Opened::open(&above).await.expect("a journal").close().await;
    let refused = Opened::open(&below).await.map(|_| ());
    assert!(matches!(refused, Err(JournalError::Above(..))), "{refused:?}");
    std::fs::create_dir_all(&below.dir).expect("directory");
    std::fs::rename(above.dir.join(FILE), below.dir.join(FILE)).expect("moved");
    Opened::open(&below).await.expect("a journal").close().await;
}
