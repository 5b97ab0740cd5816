//! A small HTTP server for tests, on a port of its own. It answers as it is told and remembers what
//! it was asked.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    client::Client,
    observer::{Observer, Outcome},
    options::{Options, Token},
};

/// The token of clients in tests.
pub(crate) const TOKEN: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Method and target: `GET /api/v1/version`.
    pub(crate) line: String,
    /// Headers, their names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn has_token(&self) -> bool {
        self.headers.get("authorization") == Some(&format!("token {TOKEN}"))
    }
}

/// What to answer.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Body,
}

enum Body {
    Whole(Bytes),
    Pieces(Box<dyn Iterator<Item = Bytes> + Send>),
    /// A byte now and then, without an end.
    Trickle,
    /// It breaks off.
    Broken(Bytes),
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(body.into()) }
    }

    pub(crate) fn pieces(
        status: u16,
        pieces: impl Iterator<Item = Bytes> + Send + 'static,
    ) -> Self {
        Self { status, headers: Vec::new(), body: Body::Pieces(Box::new(pieces)) }
    }

    pub(crate) fn trickle() -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Trickle }
    }

    pub(crate) fn broken(body: &'static str) -> Self {
        Self { status: 200, headers: Vec::new(), body: Body::Broken(body.into()) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// The server. It ends when it is dropped.
pub(crate) struct Responder {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    accepting: JoinHandle<()>,
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Responder {
    pub(crate) async fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (asked.clone(), Arc::new(answer));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (log.clone(), answer.clone());
                tokio::spawn(async move { serve(stream, &log, &*answer).await });
            }
        });
        Self { url, asked, accepting }
    }

    /// A server that answers everything with a status and a body.
    pub(crate) async fn of(status: u16, body: &'static [u8]) -> Self {
        Self::start(move |_| Reply::new(status, body)).await
    }

    /// What was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }

    /// The request lines so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|asked| asked.line).collect()
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(options(&self.url)).expect("a client")
    }
}

/// Options of a client of `url`, with a token and a budget that no test uses up.
pub(crate) fn options(url: &str) -> Options {
    Options {
        url: url.to_owned(),
        token: Some(Token::new(TOKEN)),
        per_second: 1e6,
        at_once: 100,
        deadline: Duration::from_secs(20),
        user_agent: "test".to_owned(),
        observer: Arc::new(Seen::default()),
    }
}

/// Remembers how requests ended.
#[derive(Debug, Default)]
pub(crate) struct Seen(Mutex<Vec<(&'static str, Outcome)>>);

impl Seen {
    pub(crate) fn all(&self) -> Vec<(&'static str, Outcome)> {
        self.0.lock().expect("no panic").clone()
    }
}

impl Observer for Seen {
    fn asked(&self, operation: &'static str, outcome: Outcome, _: Duration) {
        self.0.lock().expect("no panic").push((operation, outcome));
    }
}

/// Serves a connection until its client hangs up.
async fn serve(
    stream: TcpStream,
    log: &Mutex<Vec<Asked>>,
    answer: &(dyn Fn(&Asked) -> Reply + Sync),
) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read(&mut stream).await {
        let reply = answer(&asked);
        log.lock().expect("no panic").push(asked);
        if write(stream.get_mut(), reply).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("a head in ASCII");
    let mut lines = head.lines();
    let line = lines.next().expect("a request line").trim_end_matches(" HTTP/1.1").to_owned();
    let headers: BTreeMap<_, _> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("digits"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { line, headers, body })
}

async fn write(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match &reply.body {
        Body::Whole(_) if reply.status == 204 => {}
        Body::Whole(body) => head += &format!("Content-Length: {}\r\n", body.len()),
        Body::Broken(_) => head += "Content-Length: 1000000\r\n",
        Body::Pieces(_) | Body::Trickle => head += "Transfer-Encoding: chunked\r\n",
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await?;
    match reply.body {
        Body::Whole(body) => stream.write_all(&body).await,
        Body::Broken(body) => {
            stream.write_all(&body).await?;
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        Body::Pieces(pieces) => {
            for piece in pieces {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
                stream.write_all(&piece).await?;
                stream.write_all(b"\r\n").await?;
            }
            stream.write_all(b"0\r\n\r\n").await
        }
        Body::Trickle => {
            let mut space = "1\r\n[\r\n";
            loop {
                stream.write_all(space.as_bytes()).await?;
                space = "1\r\n \r\n";
                sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
