//! Abusive senders at a separate ingest process, while good senders go on.

use std::{
    collections::BTreeSet,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::jetstream;
use contract::names;
use futures::future::join_all;
use serde_json::{Value, json};
use tests::{
    bus,
    gitea::{Delivery, Issue},
    nats::Nats,
    process::Process,
    services::ingest_with,
    system::{System, total, try_send},
    temp_dir,
    usage::{Usage, allow_descriptors_up_to},
    wait,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::interval,
};

const IDLE: usize = 10_000;
/// Number of addresses of this machine that senders connect from.
const ADDRESSES: usize = 20;
/// Descriptors that are left for everything else in the tests' process.
const SPARE_DESCRIPTORS: usize = 4_000;
/// Default timeout of a head and of a body.
const PATIENCE: Duration = Duration::from_secs(10);
const MIB: usize = 1024 * 1024;
const LARGEST: usize = 16 * MIB;
/// Bytes that abuse may take beyond what the process had before: all bodies in flight (32 MiB), some of
/// them twice while they are parsed, and ten thousand connections. What it had before is its program,
/// too, which grows with the product.
const MAX_GROWTH: u64 = 80_000_000;
/// Bytes that the allocator may keep after ten thousand connections are closed.
const MEMORY_KEPT: u64 = 32_000_000;
/// Threads that may remain: a thread for blocking work stays for ten seconds, for the next work.
const RESTING_THREADS: usize = 2;
/// Rounds of idle connections. A kilobyte kept of each would exceed [`MEMORY_KEPT`].
const ROUNDS: usize = 4;
/// Pace of the slow senders, and of each good sender.
const SLOW: Duration = Duration::from_millis(200);
const PACE: Duration = Duration::from_millis(20);
const GOOD_SENDERS: usize = 4;

/// What a sender does after it has connected.
enum Sends {
    /// Sends this, and then waits.
    All(Vec<u8>),
    /// Sends this, and then ends its side.
    AndBreaksOff(Vec<u8>),
    /// Sends this, and then a byte now and then.
    AndTrickles(Vec<u8>),
    /// Sends the first, and then the second over and over, as fast as it is accepted.
    Endlessly(Vec<u8>, Vec<u8>),
}

/// The outcome that is expected.
#[derive(Debug)]
enum Fate {
    /// One of these answers at once: status and code.
    Answered(&'static [(u16, &'static str)]),
    /// A 422 that names this field.
    Invalid(&'static str),
    /// 408, after the timeout.
    TimedOut,
    /// Hyper's own refusal of a head: a status without a body.
    NoRequest(u16),
    /// Closed without an answer.
    HungUp,
    /// Closed without an answer, after the timeout.
    Closed,
    /// This many answers, all 200.
    Served(usize),
}

struct Abuser {
    what: &'static str,
    sends: Sends,
    fate: Fate,
}

fn abuser(what: &'static str, sends: Sends, fate: Fate) -> Abuser {
    Abuser { what, sends, fate }
}

/// A request's head with everything that Gitea sends, and one more line.
fn head(delivery: &Delivery, line: &str) -> Vec<u8> {
    let headers: String =
        delivery.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\n{headers}{line}\r\n\r\n").into()
}

fn whole(delivery: &Delivery) -> Vec<u8> {
    let length = format!("Content-Length: {}", delivery.body.len());
    [head(delivery, &length), delivery.body.clone()].concat()
}

fn signed(body: impl Into<Vec<u8>>) -> Delivery {
    Delivery::signed_text(body.into(), "issues")
}

fn unsigned(mut delivery: Delivery) -> Delivery {
    delivery = delivery.without_header("X-Hub-Signature-256");
    delivery.with_header("X-Gitea-Signature", &"0".repeat(64))
}

fn opened(number: u64) -> Delivery {
    Issue::new(1, number).delivery("opened")
}

/// A good delivery with a body of exactly this length.
fn of_length(number: u64, bytes: usize) -> Delivery {
    let mut body = Issue::new(1, number).payload("opened").to_string().into_bytes();
    body.resize(bytes, b' ');
    signed(body)
}

/// A signed payload in which `other` replaces `text`.
fn with(text: &str, other: &str) -> Sends {
    let payload = Issue::new(1, 1).payload("opened").to_string();
    assert!(payload.contains(text), "{text}");
    Sends::All(whole(&signed(payload.replace(text, other))))
}

/// A gzip of zeros that unpacks to 158 times its size: one literal, then over and
/// over `the last byte 258 times` in 13 bits of DEFLATE's fixed code.
fn bomb(bytes: usize) -> Vec<u8> {
    let gzip = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let block = [true, true, false];
    let zero = [false, false, true, true, false, false, false, false];
    let again = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0].map(|bit| bit == 1);
    let bits = block.into_iter().chain(zero).chain(again.into_iter().cycle());
    let mut bomb = gzip.to_vec();
    let mut byte = 0;
    for (n, bit) in bits.take((bytes - gzip.len()) * 8).enumerate() {
        byte |= u8::from(bit) << (n % 8);
        if n % 8 == 7 {
            bomb.push(std::mem::take(&mut byte));
        }
    }
    bomb
}

/// Abusers whose outcome does not depend on others. They run all at once.
fn abusers() -> Vec<Abuser> {
    use Fate::{Answered, Closed, HungUp, Invalid, NoRequest, Served, TimedOut};
    use Sends::{All, AndBreaksOff, AndTrickles};
    const HEALTH: &str = "GET /health HTTP/1.1\r\nHost: ingest\r\n";
    const MISMATCH: Fate = Answered(&[(401, "signature_mismatch")]);
    const BROKEN: Fate = Answered(&[(400, "body_broken")]);
    let good = opened(1);
    let line = |line: &str| head(&good, line);
    let chunked = |chunks: &[u8]| [line("Transfer-Encoding: chunked"), chunks.to_vec()].concat();
    let many: String = (0..1000).map(|n| format!("X-{n}: 1\r\n")).collect();
    let half_head = b"POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\nX-Slow: ".to_vec();
    vec![
        abuser("a slow head", AndTrickles(half_head), Closed),
        abuser("a slow body", AndTrickles(line("Content-Length: 10000")), TimedOut),
        abuser("slow chunks", AndTrickles(chunked(b"ffff\r\n")), TimedOut),
        abuser("a body that does not come", All(line("Content-Length: 10000")), TimedOut),
        abuser("100 at once", All(format!("{HEALTH}\r\n").repeat(100).into()), Served(100)),
        abuser(
            "a long header",
            All(line(&format!("X-Long: {}", "x".repeat(64 * 1024)))),
            NoRequest(431),
        ),
        abuser("many headers", All(line(many.trim_end())), NoRequest(431)),
        abuser(
            "a long address",
            All(format!("GET /{}", "x".repeat(70_000)).into()),
            NoRequest(431),
        ),
        abuser("no HTTP", All(b"\x16\x03\x01\x02\r\n\r\n".to_vec()), NoRequest(400)),
        abuser("HTTP/2", All(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()), HungUp),
        abuser("a length below zero", All(line("Content-Length: -1")), NoRequest(400)),
        abuser("a length that is none", All(line("Content-Length: 1e3")), NoRequest(400)),
        abuser(
            "a length beyond all",
            All(line("Content-Length: 18446744073709551616")),
            NoRequest(400),
        ),
        abuser("two lengths", All(line("Content-Length: 5\r\nContent-Length: 6")), NoRequest(400)),
        abuser(
            "much claimed",
            All(line("Content-Length: 9999999999")),
            Answered(&[(413, "body_too_large")]),
        ),
        abuser(
            "too short a length",
            All([line("Content-Length: 5"), good.body.clone()].concat()),
            MISMATCH,
        ),
        abuser(
            "too long a length",
            AndBreaksOff([line("Content-Length: 9999"), good.body.clone()].concat()),
            BROKEN,
        ),
        abuser("chunks that break off", AndBreaksOff(chunked(b"5\r\nhello\r\n")), BROKEN),
        abuser("a chunk that is none", All(chunked(b"zz\r\n")), BROKEN),
        abuser("a chunk beyond all", All(chunked(b"fffffffffffffffff\r\n")), BROKEN),
        abuser(
            "a chunk's endless extension",
            All(chunked(format!("1;{}", "x".repeat(64 * 1024)).as_bytes())),
            BROKEN,
        ),
        abuser(
            "no UTF-8",
            All(whole(&signed(b"{\"action\":\"\xff\xfe\"}".to_vec()))),
            Invalid("payload"),
        ),
        abuser("half a surrogate", with("\"opened\"", r#""\ud800""#), Invalid("payload")),
        abuser(
            "a number beyond all",
            with("\"number\":1,", "\"number\":1e999,"),
            Invalid("payload"),
        ),
        abuser(
            "a number beyond u64",
            with("\"number\":1,", "\"number\":18446744073709551616,"),
            Invalid("issue.number"),
        ),
        abuser(
            "a number below zero",
            with("\"number\":1,", "\"number\":-1,"),
            Invalid("issue.number"),
        ),
        abuser(
            "an id beyond i64",
            with("\"id\":1000001,", "\"id\":9223372036854775808,"),
            Invalid("issue.id"),
        ),
    ]
}

/// Abusers for which memory must be free. They run one after the other.
fn large_ones() -> Vec<Abuser> {
    use Fate::{Answered, Invalid};
    use Sends::{All, Endlessly};
    const MISMATCH: Fate = Answered(&[(401, "signature_mismatch")]);
    const TOO_LARGE: Fate = Answered(&[(413, "body_too_large")]);
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let endless = head(&unsigned(opened(1)), "Transfer-Encoding: chunked");
    let bomb = signed(bomb(MIB / 2)).with_header("Content-Encoding", "gzip");
    let form = |delivery: Delivery| {
        delivery.with_header("Content-Type", "application/x-www-form-urlencoded")
    };
    let nested =
        |open: &str, close: &str| signed([open.repeat(MIB / 4), close.repeat(MIB / 4)].concat());
    vec![
        abuser("endless chunks", Endlessly(endless, chunk), TOO_LARGE),
        abuser("the largest", All(whole(&of_length(2, LARGEST))), Answered(&[(200, "")])),
        abuser("one byte more", All(whole(&of_length(3, LARGEST + 1))), TOO_LARGE),
        abuser(
            "the largest, of blanks",
            All(whole(&signed(vec![b' '; LARGEST]))),
            Invalid("payload"),
        ),
        abuser(
            "the largest that nobody signed",
            All(whole(&unsigned(of_length(4, LARGEST)))),
            MISMATCH,
        ),
        abuser("a bomb", All(whole(&bomb)), Invalid("payload")),
        abuser("a bomb that nobody signed", All(whole(&unsigned(bomb))), MISMATCH),
        abuser(
            "a form of escapes",
            All(whole(&form(unsigned(signed(format!("payload={}", "%FF".repeat(MIB))))))),
            MISMATCH,
        ),
        abuser("deep arrays", All(whole(&nested("[", "]"))), Invalid("payload")),
        abuser("deep objects", All(whole(&nested("{\"issue\":", "}"))), Invalid("payload")),
    ]
}

/// Six endless bodies at once. A body that does not fit any more is refused.
fn crowd() -> Vec<Abuser> {
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let fates = &[(413, "body_too_large"), (503, "overloaded")];
    (0..6)
        .map(|n| {
            let line =
                if n % 2 == 0 { "Transfer-Encoding: chunked" } else { "Content-Length: 16777216" };
            let endless = Sends::Endlessly(head(&unsigned(opened(1)), line), chunk.clone());
            // A body of the announced length is read to its end, and then its signature is checked.
            let fates: &[_] = if n % 2 == 0 {
                fates
            } else {
                &[(401, "signature_mismatch"), (503, "overloaded")]
            };
            abuser("one of a crowd", endless, Fate::Answered(fates))
        })
        .collect()
}

impl Abuser {
    /// Runs the abuser. Returns a description if the outcome is wrong.
    async fn run(self, address: SocketAddr) -> Option<String> {
        let Self { what, sends, fate } = self;
        let count = if let Fate::Served(count) = fate { count } else { 1 };
        let started = Instant::now();
        let (from, to) = connect(address, 0).await.into_split();
        let said = wait::within(what, async {
            tokio::select! {
                said = answers(from, count) => said,
                () = send(to, sends) => unreachable!("it stays until it was answered"),
            }
        })
        .await;
        let patience = started.elapsed();
        let told: Vec<_> = said.iter().map(|(status, body)| (*status, code(body))).collect();
        let right = match fate {
            Fate::Answered(fates) => told.len() == 1 && fates.contains(&told[0]),
            Fate::Invalid(field) => {
                told == [(422, "invalid_payload")] && said[0].1["field"] == field
            }
            Fate::NoRequest(status) => said == [(status, Value::Null)],
            Fate::TimedOut => told == [(408, "body_timeout")] && patience >= PATIENCE,
            Fate::HungUp => said.is_empty(),
            Fate::Closed => said.is_empty() && patience >= PATIENCE,
            Fate::Served(count) => told == vec![(200, ""); count],
        };
        (!right).then(|| format!("{what}: {fate:?} was expected; after {patience:?}: {said:?}"))
    }
}

fn code(body: &Value) -> &str {
    body["error"].as_str().unwrap_or_default()
}

/// Connects from one of many addresses, so that ports are left for others.
async fn connect(address: SocketAddr, n: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let from = Ipv4Addr::new(127, 0, 1, n as u8 + 1);
    socket.bind((from, 0).into()).expect("a port");
    wait::within("a connection", socket.connect(address)).await.expect("a connection")
}

/// Never returns, since closing its side would break the request off. Failed writes are ignored.
async fn send(mut to: OwnedWriteHalf, sends: Sends) {
    match sends {
        Sends::All(bytes) => {
            let _ = to.write_all(&bytes).await;
        }
        Sends::AndBreaksOff(bytes) => {
            let _ = to.write_all(&bytes).await;
            let _ = to.shutdown().await;
        }
        Sends::AndTrickles(begun) => {
            let mut sent = to.write_all(&begun).await;
            let mut pace = interval(SLOW);
            while sent.is_ok() {
                pace.tick().await;
                sent = to.write_all(b"x").await;
            }
        }
        Sends::Endlessly(begun, more) => {
            let mut sent = to.write_all(&begun).await;
            while sent.is_ok() {
                sent = to.write_all(&more).await;
            }
        }
    }
    pending().await
}

/// Status and body of this many answers, or of those that came until the other side closed.
async fn answers(mut from: OwnedReadHalf, count: usize) -> Vec<(u16, Value)> {
    let (mut answers, mut bytes, mut piece) = (Vec::new(), Vec::new(), vec![0; 16 * 1024]);
    while answers.len() < count {
        // A reset is an end, too. What came before it was read.
        let read = from.read(&mut piece).await.unwrap_or(0);
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&piece[..read]);
        while let Some((answer, length)) = first_answer(&bytes) {
            answers.push(answer);
            bytes.drain(..length);
        }
    }
    // Bytes sent after a request count as one more request, which is bad.
    answers.truncate(count);
    answers
}

fn first_answer(bytes: &[u8]) -> Option<((u16, Value), usize)> {
    let head_end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_end]).expect("UTF-8");
    let status = head.strip_prefix("HTTP/1.1 ").expect("HTTP/1.1")[..3].parse().expect("a status");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let end = head_end + length.map_or(0, |length| length.parse().expect("a length"));
    let body = bytes.get(head_end..end)?;
    Some(((status, serde_json::from_slice(body).unwrap_or_default()), end))
}

/// Sends good deliveries until `stop`, each answered 200. Returns their ids.
async fn good_sender(address: SocketAddr, n: u64, stop: Arc<AtomicBool>) -> Vec<String> {
    let http = reqwest::Client::new();
    let mut pace = interval(PACE);
    let mut sent = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let delivery = opened(100 + sent.len() as u64 * GOOD_SENDERS as u64 + n);
        let sending = try_send(&http, address, &delivery);
        let answer = wait::within("a good delivery's answer", sending).await.expect("an answer");
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (200, &json!("accepted")),
            "{answer:?}"
        );
        sent.push(delivery.id().to_owned());
    }
    sent
}

/// Running good senders.
struct Good {
    senders: JoinSet<Vec<String>>,
    stop: Arc<AtomicBool>,
}

impl Good {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let senders =
            (0..GOOD_SENDERS as u64).map(|n| good_sender(address, n, Arc::clone(&stop))).collect();
        Self { senders, stop }
    }

    async fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.senders.join_all().await.concat()
    }
}

/// Connections that never send anything, with the moment at which each began.
async fn idle(address: SocketAddr, count: usize) -> Vec<(TcpStream, Instant)> {
    let share = |n| async move {
        let mut idle = Vec::new();
        for _ in 0..count / ADDRESSES {
            let began = Instant::now();
            idle.push((connect(address, n).await, began));
        }
        idle
    };
    (0..ADDRESSES)
        .map(share)
        .collect::<JoinSet<_>>()
        .join_all()
        .await
        .into_iter()
        .flatten()
        .collect()
}

/// Usage of the process once it has accepted this many connections.
async fn all_accepted(ingest: &Process, count: usize) -> Usage {
    wait::until("all connections to be accepted", || async {
        let usage = Usage::of(ingest.pid());
        (usage.descriptors > count).then_some(usage)
    })
    .await
}

/// Usage while so many connections are idle. They are gone at the end.
async fn with_idle(ingest: &Process, address: SocketAddr, count: usize) -> Usage {
    let before = Usage::of(ingest.pid()).descriptors;
    let idle = idle(address, count).await;
    let usage = all_accepted(ingest, idle.len()).await;
    drop(idle);
    wait::until("the connections to be closed", || async {
        (Usage::of(ingest.pid()).descriptors <= before).then_some(())
    })
    .await;
    usage
}

/// Each must be closed after its timeout, and not before.
async fn closed(idle: Vec<(TcpStream, Instant)>) {
    wait::within("idle connections to be closed", async {
        for (mut stream, began) in idle {
            let read = stream.read(&mut [0]).await;
            assert!(matches!(read, Ok(0)), "{read:?}");
            assert!(began.elapsed() >= PATIENCE, "{:?}", began.elapsed());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_that_do_their_worst_get_what_they_deserve_and_good_ones_their_200() {
    // Built in advance: signing 16 MiB would block this runtime while others wait for it.
    let all = tokio::task::spawn_blocking(|| (abusers(), crowd(), large_ones()));
    let (abusers, crowd, large_ones) = all.await.expect("no panic");
    let allowed = allow_descriptors_up_to((IDLE + SPARE_DESCRIPTORS) as u64) as usize;
    let idle_count = IDLE.min(allowed.saturating_sub(SPARE_DESCRIPTORS));
    assert!(idle_count >= ADDRESSES, "{allowed} open files are too few to test with: `ulimit -Hn`");

    let (nats, data) = (Nats::start().await, temp_dir());
    let exe = Path::new(env!("CARGO_BIN_EXE_process-under-test"));
    // The store of spans has a limit of its own, and would fill up in some runs only.
    let flags = ["--max-connections", "12000", "--span-store-bytes", "4194304"];
    let ingest = ingest_with(exe, &nats, data.path(), &flags);
    let address = ingest.address_in("ingest listens").await;
    let js = jetstream::new(nats.client().await);

    let mut accepted = Vec::new();
    let quiet = Good::start(address);
    wait::until("the first events", || async {
        (bus::count(&js, names::EVENTS).await >= 50).then_some(())
    })
    .await;
    accepted.extend(quiet.finish().await);
    wait::until_equal("all to be published", accepted.len() as u64, || {
        bus::count(&js, names::EVENTS)
    })
    .await;
    let before = Usage::of(ingest.pid());

    let good = Good::start(address);
    let idle = idle(address, idle_count).await;
    all_accepted(&ingest, idle.len()).await;
    let run = |abuser: Abuser| abuser.run(address);
    let ((), quick, large) =
        tokio::join!(closed(idle), join_all(abusers.into_iter().map(run)), async {
            let mut wrong = join_all(crowd.into_iter().map(run)).await;
            for abuser in large_ones {
                wrong.push(run(abuser).await);
            }
            wrong
        });
    let wrong: Vec<_> = quick.into_iter().chain(large).flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let good = good.finish().await;
    assert!(good.len() > 100, "{} were sent meanwhile", good.len());
    accepted.extend(good);

    let peak = Usage::of(ingest.pid()).peak_memory;
    assert!(peak < before.memory + MAX_GROWTH, "{peak} bytes; before {before:?}");
    let given_back = wait::try_until(|| async {
        let after = Usage::of(ingest.pid());
        let back = after.descriptors <= before.descriptors
            && after.threads <= before.threads + RESTING_THREADS
            && after.memory < before.memory + MEMORY_KEPT;
        back.then_some(())
    });
    if given_back.await.is_none() {
        panic!("taken and not given back: before {before:?}, after {:?}", Usage::of(ingest.pid()));
    }

    // What a connection leaves behind would add up. A round may take more than the one before, since
    // each thread has an arena of the allocator to itself and any of them may accept.
    let first = with_idle(&ingest, address, idle_count).await;
    let mut last = first;
    for _ in 0..ROUNDS {
        last = with_idle(&ingest, address, idle_count).await;
    }
    assert!(last.memory < first.memory + MEMORY_KEPT, "{first:?} {last:?}");

    // The largest body was accepted, too, and nothing else became an event.
    let operator = ingest.address_in("operator listens").await;
    let kept = total(operator, "coordinator_deliveries_total", "outcome=\"accepted\"").await;
    assert_eq!(kept as usize, accepted.len() + 1);
    wait::until_equal("all to be published", accepted.len() as u64 + 1, || {
        bus::count(&js, names::EVENTS)
    })
    .await;
    let events: BTreeSet<_> =
        bus::events(&js).await.into_iter().map(|event| event.delivery.id).collect();
    assert!(accepted.iter().all(|id| events.contains(id)));
}

/// Default limit of connections.
const PLACES: usize = 1024;
/// Where Gitea is, while the silent ones are at 127.0.0.1.
const GITEA: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// A delivery that has to wait for a place waits for a timeout of ten seconds. Gitea gives up after
/// five.
const QUICK: Duration = Duration::from_secs(4);

/// Connections from 127.0.0.1 that send nothing, or half a head, and are made again when they end.
struct Silent(#[expect(dead_code, reason = "aborts them when dropped")] JoinSet<()>);

impl Silent {
    /// Returns once each has connected.
    async fn start(address: SocketAddr, count: usize) -> Self {
        let mut all = JoinSet::new();
        let connected = Arc::new(tokio::sync::Semaphore::new(0));
        for n in 0..count {
            let connected = Arc::clone(&connected);
            all.spawn(async move {
                loop {
                    let mut stream = TcpStream::connect(address).await.expect("a connection");
                    connected.add_permits(1);
                    if n % 2 == 0 {
                        let _ = stream.write_all(b"POST /webhook/gitea HTTP/1.1\r\nX-Slow: ").await;
                    }
                    let _ = stream.read(&mut [0]).await;
                    tokio::time::sleep(SLOW).await;
                }
            });
        }
        let all_connected = connected.acquire_many(count as u32);
        let _ = wait::within("the silent ones to connect", all_connected).await;
        Self(all)
    }
}

/// A client that opens a connection for each delivery.
fn gitea() -> reqwest::Client {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0);
    client.local_address(std::net::IpAddr::from(GITEA)).build().expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_keeps_nobody_out() {
    allow_descriptors_up_to((4 * PLACES) as u64);
    // With a share of their own the silent ones displace each other, and without one all.
    for (flags, share, reason) in [
        ([].as_slice(), PLACES / 2, "address_share"),
        (["--max-connections-per-address", "0"].as_slice(), PLACES, "full"),
    ] {
        let (nats, data) = (Nats::start().await, temp_dir());
        let exe = Path::new(env!("CARGO_BIN_EXE_process-under-test"));
        let ingest = ingest_with(exe, &nats, data.path(), flags);
        let address = ingest.address_in("ingest listens").await;
        let silent = Silent::start(address, PLACES + 100).await;
        all_accepted(&ingest, share).await;
        let http = gitea();
        let mut slowest = Duration::ZERO;
        for number in 1..=50 {
            let (started, delivery) = (Instant::now(), opened(number));
            let sending = try_send(&http, address, &delivery);
            let answer = wait::within("an answer", sending).await.expect("an answer");
            assert_eq!(answer.status, 200, "{answer:?}");
            slowest = slowest.max(started.elapsed());
        }
        assert!(slowest < QUICK, "{slowest:?}");

        let line = ingest.line_with("places run out").await;
        let line: Value = serde_json::from_str(&line).expect("a JSON log line");
        let told = (&line["client.address"], &line["reason"]);
        assert_eq!(told, (&json!("127.0.0.1"), &json!(reason)));
        let operator = ingest.address_in("operator listens").await;
        let shed = total(operator, "coordinator_connections_shed_total", reason).await;
        assert!(shed >= 100.0, "{shed}");
        drop(silent);
    }
}

/// Connects and sends these bytes.
async fn opened_with(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    // The other side may have closed already.
    let _ = stream.write_all(bytes).await;
    stream
}

/// The next bytes of the other side. Empty once it has closed.
async fn said(stream: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let read = wait::within("bytes", stream.read(&mut bytes)).await.unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// Sends a head on a connection. Its request is in hand once ingest asks for the body.
async fn begin(stream: &mut TcpStream, delivery: &Delivery) {
    let line = format!("Content-Length: {}\r\nExpect: 100-continue", delivery.body.len());
    stream.write_all(&head(delivery, &line)).await.expect("sent");
    assert!(said(stream).await.starts_with("HTTP/1.1 100 "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_hand_keeps_its_place_and_who_brought_something_signed_goes_last() {
    let flags = ["--max-connections", "4", "--max-connections-per-address", "0"];
    let system = System::start_with(&flags, &[]).await;
    let address = system.ingest.address;
    let deliveries: Vec<_> = (1..=8).map(opened).collect();
    let mut in_hand = opened_with(address, b"").await;
    begin(&mut in_hand, &deliveries[0]).await;
    let mut known = opened_with(address, &whole(&deliveries[1])).await;
    assert!(said(&mut known).await.starts_with("HTTP/1.1 200 "));

    // Many times as many as there are places. Each is closed for a later one.
    let mut silent = Vec::new();
    for n in 0..40 {
        silent.push(opened_with(address, if n % 2 == 0 { b"" } else { b"POST /web" }).await);
    }
    for stream in &mut silent[..38] {
        assert_eq!(said(stream).await, "");
    }
    in_hand.write_all(&deliveries[0].body).await.expect("its place");
    assert!(said(&mut in_hand).await.starts_with("HTTP/1.1 200 "));
    known.write_all(&whole(&deliveries[2])).await.expect("its place");
    assert!(said(&mut known).await.starts_with("HTTP/1.1 200 "));

    // All four have a request in hand. A fifth is served once one of them has its answer, which says
    // that its connection ends.
    let mut four = vec![in_hand, known, opened_with(address, b"").await];
    four.push(opened_with(address, b"").await);
    for (stream, delivery) in four.iter_mut().zip(&deliveries[3..]) {
        begin(stream, delivery).await;
    }
    let mut fifth = opened_with(address, &whole(&deliveries[7])).await;
    let answer = wait::within("an answer", async {
        let mut answer = String::new();
        for (stream, delivery) in four.iter_mut().zip(&deliveries[3..]) {
            stream.write_all(&delivery.body).await.expect("its place");
            answer = said(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        answer
    });
    let (_, said) = tokio::join!(answer, said(&mut fifth));
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    system.settled(8).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_uses_all_of_its_share_keeps_no_other_out() {
    let system = System::start_with(&["--max-connections", "4"], &[]).await;
    let address = system.ingest.address;
    // Its bodies are under way, so none of these goes.
    let mut under_way = Vec::new();
    for number in [1, 2] {
        let mut stream = opened_with(address, b"").await;
        begin(&mut stream, &opened(number)).await;
        under_way.push(stream);
    }
    for _ in 0..8 {
        let mut stream = opened_with(address, &whole(&opened(3))).await;
        assert_eq!(said(&mut stream).await, "");
    }
    let started = Instant::now();
    let answer = try_send(&gitea(), address, &opened(4)).await.expect("an answer");
    assert_eq!((answer.status, started.elapsed() < QUICK), (200, true), "{answer:?}");
    assert_eq!(system.ingest.total("coordinator_connections_shed_total", "busy").await, 8.0);
}
