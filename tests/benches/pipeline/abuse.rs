//! Abusive senders, at a pace that they can hold for long. They run in a separate
//! process, so that their effect on ingest is measured, and not their effect on
//! the load generator.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tests::gitea::{SECRET, sign};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

/// Silent connections: several times as many as there are places.
const SILENT: u32 = 4_000;
/// Addresses that they come from, so that no share of an address holds them back.
const ADDRESSES: u32 = 20;
/// How long each is kept: a little less than ingest waits for a head.
const KEPT: Duration = Duration::from_secs(9);
const SLOW: usize = 100;
const ENDLESS: usize = 6;
const MIB: usize = 1024 * 1024;

/// The process of all abusive senders. Killed when dropped.
pub struct Abuse(Child);

impl Abuse {
    /// Starts them. Returns once the silent ones are connected.
    pub fn start(address: SocketAddr) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("own path"))
            .args(["abusers", &address.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the abusers");
        let stdout = child.stdout.take().expect("stdout");
        BufReader::new(stdout).read_line(&mut String::new()).expect("a line");
        Self(child)
    }
}

impl Drop for Abuse {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs in the process. Prints a line when each silent one was connected, and ends only when killed.
pub async fn abuse(address: SocketAddr) {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    for n in 0..SILENT {
        tasks.spawn(silence(address, n, started + KEPT * n / SILENT));
    }
    sleep_until(started + KEPT).await;
    let head = |line: &str| head("0".repeat(64).as_str(), line);
    for _ in 0..SLOW {
        tasks.spawn(trickle(address, "POST /webhook/gitea HTTP/1.1\r\nX-Slow: ".into()));
        tasks.spawn(trickle(address, head("Content-Length: 10000")));
    }
    let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
    let endless = head("Transfer-Encoding: chunked").into_bytes();
    for _ in 0..ENDLESS {
        tasks.spawn(endlessly(address, endless.clone(), chunk.clone()));
    }
    let deep = signed([vec![b'['; MIB / 4], vec![b']'; MIB / 4]].concat());
    let largest = signed(vec![b' '; 16 * MIB]);
    let one_more = head("Content-Length: 16777217").into_bytes();
    let long = head(&format!("X-Long: {}", "x".repeat(64 * 1024))).into_bytes();
    let no_http = b"\x16\x03\x01\x02\r\n\r\n".to_vec();
    for (millis, request) in
        [(50, deep), (2000, largest), (50, one_more), (20, long), (20, no_http)]
    {
        tasks.spawn(again_and_again(address, Duration::from_millis(millis), request));
    }
    println!("at work");
    tasks.join_all().await;
}

fn head(signature: &str, line: &str) -> String {
    format!(
        "POST /webhook/gitea HTTP/1.1\r\nHost: ingest\r\nContent-Type: application/json\r\n\
         X-Gitea-Event: issues\r\nX-Gitea-Signature: {signature}\r\n{line}\r\n\r\n"
    )
}

fn signed(body: Vec<u8>) -> Vec<u8> {
    let head = head(&sign(SECRET, &body), &format!("Content-Length: {}", body.len()));
    [head.into_bytes(), body].concat()
}

/// Holds a silent connection, and renews it whether or not it was closed. It connects from another
/// address than the senders: with so many ports in use at an address, the kernel takes milliseconds
/// to find a free one, and delays all others.
async fn silence(address: SocketAddr, n: u32, mut next: Instant) {
    let from = Ipv4Addr::new(127, 0, 1, (n % ADDRESSES) as u8 + 1);
    loop {
        sleep_until(next).await;
        next += KEPT;
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((from, 0).into()).expect("a port");
        let stream = socket.connect(address).await.expect("connect");
        sleep_until(next).await;
        drop(stream);
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("connect")
}

async fn trickle(address: SocketAddr, begun: String) {
    let mut pace = interval(Duration::from_millis(200));
    loop {
        let mut stream = connect(address).await;
        let mut sent = stream.write_all(begun.as_bytes()).await;
        while sent.is_ok() {
            pace.tick().await;
            sent = stream.write_all(b"x").await;
        }
    }
}

/// Sends 3 MB a second.
async fn endlessly(address: SocketAddr, head: Vec<u8>, chunk: Vec<u8>) {
    let mut pace = interval(Duration::from_millis(20));
    loop {
        let mut stream = connect(address).await;
        let mut sent = stream.write_all(&head).await;
        while sent.is_ok() {
            pace.tick().await;
            sent = stream.write_all(&chunk).await;
        }
    }
}

async fn again_and_again(address: SocketAddr, pause: Duration, request: Vec<u8>) {
    let mut pace = interval(pause);
    loop {
        pace.tick().await;
        let mut stream = connect(address).await;
        // The connection may be closed before all is written. One answer is enough.
        let _ = stream.write_all(&request).await;
        let _ = stream.read(&mut [0; 1024]).await;
    }
}
