//! Entries of a bucket that are read many at once: they are those that are read one by one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{
    HeaderMap,
    jetstream::{kv, message::StreamMessage, stream},
};
use fastrand::Rng;
use futures::StreamExt;
use service::broker::{
    Broker, BrokerSettings, Session,
    batch::{self, BatchError, MOST_ENTRIES},
    bucket,
};
use tests::{nats::Nats, wait};

const BUCKET: &str = "ENTRIES";

/// A connection of the product to `nats`.
async fn session(nats: &Nats) -> Session {
    let servers = vec![nats.url().parse().expect("an address")];
    let settings = BrokerSettings { servers: servers.into(), ..BrokerSettings::default() };
    let (broker, keeper) = Broker::new(&settings, "test").await.expect("a broker");
    tokio::spawn(keeper);
    wait::within("a connection", broker.connected()).await
}

/// A bucket that is changed after it was made.
async fn made(session: &Session, change: fn(&mut stream::Config)) -> kv::Store {
    let config = kv::Config { bucket: BUCKET.into(), history: 1, ..kv::Config::default() };
    let store = session.jetstream.create_key_value(config).await.expect("a bucket");
    let mut config = store.stream.cached_info().config.clone();
    change(&mut config);
    session.jetstream.update_stream(&config).await.expect("a change");
    session.jetstream.get_key_value(BUCKET).await.expect("the bucket")
}

/// An entry as far as it is compared.
type Entry = (u64, String, Vec<u8>, bool);

fn entry(found: &StreamMessage) -> Entry {
    let is_deletion = bucket::is_deletion(found);
    (found.sequence, found.subject.to_string(), found.payload.to_vec(), is_deletion)
}

/// All entries from `first` on, one by one.
async fn one_by_one(store: &kv::Store, mut first: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    while let Some(found) = bucket::next(store, first).await.expect("an answer") {
        first = found.sequence + 1;
        all.push(entry(&found));
    }
    all
}

/// All entries from `first` on, many at once.
async fn many_at_once(session: &Session, store: &kv::Store, mut first: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let found = batch::read(session, store, first).await.expect("an answer");
        let Some(last) = found.last() else { return all };
        assert!(found.len() <= MOST_ENTRIES, "{}", found.len());
        first = last.sequence + 1;
        all.extend(found.iter().map(entry));
    }
}

/// What entries add up to.
fn folded(all: impl IntoIterator<Item = Entry>) -> BTreeMap<String, Entry> {
    all.into_iter().map(|entry| (entry.1.clone(), entry)).collect()
}

/// Writes, replaces, deletes and purges entries at random, and writes some that are soon removed.
async fn written(store: &kv::Store, rng: &mut Rng, times: usize) {
    for _ in 0..times {
        let key = format!("1.{}.fix", rng.u32(..400));
        match rng.u32(..20) {
            0 => store.delete(&key).await.expect("delete"),
            1 => store.purge(&key).await.expect("purge"),
            _ => {
                let value = vec![b'x'; rng.usize(..2_000)];
                store.put(&key, value.into()).await.expect("put");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_are_read_many_at_once_are_those_that_are_read_one_by_one() {
    let nats = Nats::start().await;
    let session = session(&nats).await;
    let store = made(&session, |config| config.allow_message_ttl = true).await;
    assert_eq!(many_at_once(&session, &store, 1).await, []);
    let mut rng = Rng::with_seed(7);
    written(&store, &mut rng, 2_000).await;
    // What the broker removes by its age leaves no marker, also at the end.
    for number in 0..20 {
        let key = format!("1.{number}.soon");
        let ttl = Duration::from_secs(1);
        let written = bucket::replace_for(&session, &store, &key, b"{}".into(), 0, ttl).await;
        assert!(written.is_ok(), "{written:?}");
    }
    let all = wait::until("entries to be removed", || async {
        let all = one_by_one(&store, 1).await;
        (!all.iter().any(|(_, key, ..)| key.ends_with(".soon"))).then_some(all)
    })
    .await;
    assert!(all.len() > MOST_ENTRIES && all.iter().any(|(.., is_deletion)| *is_deletion));
    assert_eq!(many_at_once(&session, &store, 1).await, all);
    let middle = all[all.len() / 2].0;
    for first in [middle, middle + 1, all[all.len() - 1].0] {
        assert_eq!(many_at_once(&session, &store, first).await, one_by_one(&store, first).await);
    }
    // While others write, what is read on adds up to what is there in the end.
    let is_over = AtomicBool::new(false);
    let writing = async {
        written(&store, &mut rng, 3_000).await;
        is_over.store(true, Ordering::Release);
    };
    let reading = async {
        let (mut all, mut answers) = (Vec::new(), 0);
        loop {
            // Whatever is written after this look is read in the next round.
            let was_over = is_over.load(Ordering::Acquire);
            let first = all.last().map_or(1, |(last, ..): &Entry| last + 1);
            let more = many_at_once(&session, &store, first).await;
            answers += 1;
            all.extend(more);
            if was_over {
                return (all, answers);
            }
        }
    };
    let ((), (read, answers)) = tokio::join!(writing, reading);
    assert!(answers > 2, "it was read while others wrote");
    assert!(read.is_sorted_by_key(|(revision, ..)| *revision));
    assert_eq!(folded(read), folded(one_by_one(&store, 1).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_no_larger_than_it_may_be() {
    let nats = Nats::start().await;
    let session = session(&nats).await;
    let store = made(&session, |_| {}).await;
    for key in 0..12 {
        store.put(format!("1.{key}.fix"), vec![b'x'; 300_000].into()).await.expect("put");
    }
    let found = batch::read(&session, &store, 1).await.expect("an answer");
    assert_eq!(found.len(), 4, "a megabyte, and the entry with which it is reached");
    assert_eq!(many_at_once(&session, &store, 1).await.len(), 12);
}

/// How a server answers that is not as it has to be.
#[derive(Clone, Copy, Debug)]
enum Answers {
    /// As one before 2.11: one entry.
    One,
    /// Two of three entries.
    WithGap,
    /// An entry, and no end.
    WithoutEnd,
}

/// Answers requests for many entries in the server's place.
async fn answer(nats: &Nats, how: Arc<Mutex<Answers>>) {
    let client = nats.client().await;
    let subject = format!("$JS.API.DIRECT.GET.KV_{BUCKET}");
    let mut requests = client.subscribe(subject).await.expect("subscribe");
    client.flush().await.expect("flush");
    let message = |sequence: &str, more: &[(&str, &str)]| {
        let mut headers = HeaderMap::new();
        let own = [
            ("Nats-Stream", "KV_ENTRIES"),
            ("Nats-Subject", "$KV.ENTRIES.1.1.fix"),
            ("Nats-Sequence", sequence),
            ("Nats-Time-Stamp", "2026-11-27T10:00:00Z"),
        ];
        for (name, value) in own.iter().chain(more) {
            headers.insert(*name, *value);
        }
        headers
    };
    let first = message("1", &[("Nats-Num-Pending", "2"), ("Nats-Last-Sequence", "0")]);
    let third = message("3", &[("Nats-Num-Pending", "0"), ("Nats-Last-Sequence", "2")]);
    let only = message("1", &[]);
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let reply = request.reply.expect("a reply subject");
            let how = *how.lock().expect("no panic");
            let all = match how {
                Answers::One => vec![only.clone()],
                Answers::WithGap => vec![first.clone(), third.clone()],
                Answers::WithoutEnd => vec![first.clone()],
            };
            for headers in all {
                let sent = client.publish_with_headers(reply.clone(), headers, "{}".into()).await;
                sent.expect("publish");
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_whole_answer_is_an_error_and_never_awaited_for_ever() {
    let nats = Nats::start().await;
    let session = session(&nats).await;
    // The server leaves requests to whoever else answers.
    let store = made(&session, |config| config.allow_direct = false).await;
    store.put("1.1.fix", "{}".into()).await.expect("put");
    let error = || async {
        let read = wait::within("an end", batch::read(&session, &store, 1)).await;
        read.expect_err("no whole answer")
    };
    assert!(matches!(error().await, BatchError::NotServed), "nobody answers");
    let how = Arc::new(Mutex::new(Answers::One));
    answer(&nats, Arc::clone(&how)).await;
    assert!(matches!(error().await, BatchError::NotServed), "an older server");
    *how.lock().expect("no panic") = Answers::WithGap;
    assert!(matches!(error().await, BatchError::Gap(1, 3)));
    *how.lock().expect("no panic") = Answers::WithoutEnd;
    assert!(matches!(error().await, BatchError::Silent));
}
