use super::*;
use shared::event;

struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn directory() -> Directory {
    Directory(std::env::temp_dir().join(format!("journal-{}", Uuid::new_v4())))
}

fn config(directory: &Directory) -> JournalConfig {
    JournalConfig {
        dir: directory.0.clone(),
        max_bytes: 1 << 30,
        retention: Duration::from_secs(3600),
        retention_bytes: 1 << 30,
    }
}

fn entry(id: u128, text: &[u8]) -> NewEntry {
    let mut event = Box::new(event::example());
    event.repository.id = 3;
    event.issue.number = 7;
    NewEntry {
        delivery_id: Uuid::from_u128(id),
        event_type: Some("issue_assign".into()),
        traceparent: "00-b60f8ed36a1a4e58b31e0b00968f94cb-00f067aa0ba902b7-01".parse().unwrap(),
        body_sha256: [text.len() as u8; 32],
        packed: Packed::new(text),
        event,
        _memory: None,
    }
}

fn text(entry: &Entry) -> &[u8] {
    match &entry.content {
        Content::Text(text) => text,
        Content::Event(_) => panic!("from memory"),
    }
}

async fn entries(journal: &Journal) -> Vec<i64> {
    let reader = journal.reader().await.unwrap();
    reader.after(0, 1000, usize::MAX).unwrap().iter().map(|entry| entry.seq).collect()
}

#[tokio::test]
async fn an_entry_is_kept_once_and_read_back_after_a_restart() {
    let directory = directory();
    let journal = Journal::open(&config(&directory)).await.unwrap();
    assert_eq!(journal.append(entry(1, b"one")).await, Ok(Kept::New));
    assert_eq!(journal.append(entry(1, b"one")).await, Ok(Kept::Before));
    assert_eq!(journal.append(entry(1, b"other")).await, Err(AppendError::IdReused));
    assert_eq!(journal.append(entry(2, b"two")).await, Ok(Kept::New));
    assert_eq!(journal.status().depth(), 2);
    journal.published_through(1);
    journal.close().await;

    let journal = Journal::open(&config(&directory)).await.unwrap();
    assert_eq!((journal.status().depth(), journal.status().published_through()), (1, 1));
    let reader = journal.reader().await.unwrap();
    let read = reader.after(0, 10, usize::MAX).unwrap();
    assert_eq!(
        read.iter().map(|e| (e.seq, text(e))).collect::<Vec<_>>(),
        [(1, &b"one"[..]), (2, b"two")]
    );
    assert_eq!(read[0].traceparent, Some(entry(1, b"").traceparent));
    assert_eq!((read[0].repository_id, read[0].issue_number), (3, 7));
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
    let journal = Journal::open(&config(&directory)).await.unwrap();
    assert!(matches!(Journal::open(&config(&directory)).await, Err(JournalError::InUse)));
    journal.close().await;
    Journal::open(&config(&directory)).await.unwrap().close().await;
}

#[tokio::test]
async fn many_at_once_share_commits_and_keep_their_order_of_arrival() {
    let directory = directory();
    let journal = Journal::open(&config(&directory)).await.unwrap();
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
    let config = JournalConfig { retention: Duration::ZERO, ..config(&directory) };
    let journal = Journal::open(&config).await.unwrap();
    for id in 1..=3 {
        journal.append(entry(id, b"x")).await.unwrap();
    }
    journal.set_aside(2, "no broker takes it".into()).await;
    journal.published_through(3);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let left = || async {
        let reader = journal.reader().await.unwrap();
        reader.count()
    };
    while left().await != 1 {
        assert!(std::time::Instant::now() < deadline, "published entries stay");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(journal.status().set_aside(), 1);
    journal.close().await;
    let journal = Journal::open(&config).await.unwrap();
    journal.append(entry(4, b"x")).await.unwrap();
    assert_eq!(entries(&journal).await, [4]);
    journal.close().await;
}

#[tokio::test]
async fn a_journal_at_its_limit_refuses_and_takes_again_once_there_is_room() {
    let directory = directory();
    let config =
        JournalConfig { max_bytes: 1 << 20, retention_bytes: 1 << 19, ..config(&directory) };
    let journal = Journal::open(&config).await.unwrap();
    // Nothing that LZ4 makes smaller.
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
    journal.published_through(10);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while journal.append(entry(100, b"x")).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "no room was made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(journal.status().can_keep());
    journal.close().await;
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_left_alone() {
    let directory = directory();
    Journal::open(&config(&directory)).await.unwrap().close().await;
    let connection = rusqlite::Connection::open(directory.0.join(FILE)).unwrap();
    connection.pragma_update(None, "user_version", 99).unwrap();
    drop(connection);
    let opened = Journal::open(&config(&directory)).await;
    assert!(matches!(opened, Err(JournalError::NewerSchema { found: 99, known: 2 })));
}

/// More than one filter of ids holds.
const MANY: u128 = 20_000;

async fn keep(
    journal: &Journal,
    ids: impl Iterator<Item = u128>,
) -> Vec<Result<Kept, AppendError>> {
    futures::future::join_all(ids.map(|id| journal.append(entry(id, b"x")))).await
}

fn rows(directory: &Directory, sql: &str) -> i64 {
    let connection = rusqlite::Connection::open(directory.0.join(FILE)).unwrap();
    connection.query_row(sql, (), |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_old_delivery_is_known_by_its_filter_before_and_after_a_restart() {
    let directory = directory();
    let journal = Journal::open(&config(&directory)).await.unwrap();
    for first in (1..=MANY).step_by(10_000) {
        let kept = keep(&journal, first..first + 10_000).await;
        assert!(kept.iter().all(|kept| *kept == Ok(Kept::New)));
    }
    let again = [1, 8_192, 8_193, 16_385, MANY];
    for _ in 0..2 {
        assert_eq!(keep(&journal, again.into_iter()).await, [Ok(Kept::Before); 5]);
        assert_eq!(journal.append(entry(2, b"other")).await, Err(AppendError::IdReused));
    }
    journal.close().await;
    assert_eq!(rows(&directory, "SELECT count(*) FROM id_filters"), 2);

    let journal = Journal::open(&config(&directory)).await.unwrap();
    assert_eq!(keep(&journal, again.into_iter()).await, [Ok(Kept::Before); 5]);
    assert_eq!(journal.append(entry(MANY + 1, b"x")).await, Ok(Kept::New));
    journal.close().await;
}

#[tokio::test]
async fn filters_go_with_their_deliveries_but_not_with_what_was_set_aside() {
    let directory = directory();
    let config = JournalConfig { retention: Duration::ZERO, ..config(&directory) };
    let journal = Journal::open(&config).await.unwrap();
    keep(&journal, 1..=10_000).await;
    keep(&journal, 10_001..=MANY).await;
    journal.set_aside(9_000, "no broker takes it".into()).await;
    journal.published_through(MANY as i64);
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut next = MANY;
    while rows(&directory, "SELECT count(*) FROM deliveries WHERE seq <= 20000") != 1 {
        assert!(std::time::Instant::now() < deadline, "published entries stay");
        // What comes in drives what goes.
        keep(&journal, next + 1..=next + 500).await;
        next += 500;
    }
    assert_eq!(journal.append(entry(9_000, b"x")).await, Ok(Kept::Before));
    assert_eq!(journal.append(entry(1, b"x")).await, Ok(Kept::New), "it is gone");
    journal.close().await;
    assert_eq!(rows(&directory, "SELECT count(*) FROM id_filters WHERE last_seq < 16384"), 0);
    assert_eq!(rows(&directory, "SELECT count(*) FROM id_filters WHERE last_seq = 16384"), 1);
    let journal = Journal::open(&config).await.unwrap();
    assert_eq!(journal.append(entry(9_000, b"x")).await, Ok(Kept::Before));
    journal.close().await;
}

#[tokio::test]
async fn a_journal_of_the_first_version_gets_its_filters() {
    let directory = directory();
    let journal = Journal::open(&config(&directory)).await.unwrap();
    keep(&journal, 1..=10_000).await;
    journal.close().await;
    let connection = rusqlite::Connection::open(directory.0.join(FILE)).unwrap();
    connection.execute_batch("DROP TABLE id_filters; PRAGMA user_version = 1").unwrap();
    drop(connection);
    let journal = Journal::open(&config(&directory)).await.unwrap();
    assert_eq!(keep(&journal, [1, 10_000].into_iter()).await, [Ok(Kept::Before); 2]);
    journal.close().await;
    assert_eq!(rows(&directory, "SELECT count(*) FROM id_filters"), 1);
}

#[test]
fn texts_of_any_size_unpack_to_what_they_were() {
    for bytes in [0, 1, 5_000, SMALL_BYTES - 1, SMALL_BYTES, SMALL_BYTES + 1, 3, 5 * SMALL_BYTES] {
        let text: Vec<u8> = (0..bytes).map(|n| (n * n / 7) as u8).collect();
        let packed = Packed::new(&text);
        assert_eq!(packed.text_bytes, bytes);
        let unpacked = lz4_flex::decompress_size_prepended(&packed.lz4).expect("an LZ4 block");
        assert!(unpacked == text, "{bytes} bytes");
    }
}
