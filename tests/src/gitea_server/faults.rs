//! Requests that go wrong, on a test's order.

use std::{io, mem, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    http::{StatusCode, header},
    response::Response,
};
use futures::stream;

use super::{
    GiteaServer, lock,
    reply::{Refusal, Reply},
};

/// How a request goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// 404 in Gitea's JSON form, as if it were gone or not to be seen.
    NotFound,
    /// 404 with a page of HTML, as by a proxy that does not know where Gitea is.
    ProxyNotFound,
    /// 500 with a message of Gitea's.
    ServerError,
    /// 401, as if the token were revoked.
    Unauthorized,
    /// 429 with a `Retry-After` of so many seconds.
    TooManyRequests(u64),
    /// 503 with a page of HTML and a `Retry-After` of so many seconds.
    Unavailable(u64),
    /// No answer, ever. The connection stays open.
    Hang,
    /// The right answer, so much later.
    Slow(Duration),
    /// 200 with bytes that are no JSON, although the header says so.
    Garbage,
    /// The first half of the answer, as if it were all of it.
    Truncated,
    /// The first half of the answer, then the connection ends.
    CutOff,
    /// The connection ends without an answer.
    Closed,
}

/// The faults that are switched on, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Ordered>);

#[derive(Debug)]
struct Ordered {
    fault: Fault,
    path_contains: String,
    remaining: usize,
}

impl GiteaServer {
    /// From now on, requests whose path and query contain `path` go wrong. All do if it is empty.
    pub fn fail(&self, fault: Fault, path: &str) {
        self.fail_next(usize::MAX, fault, path);
    }

    /// The next so many requests whose path and query contain `path` go wrong. Of several
    /// faults that fit a request, the one that was ordered first applies.
    pub fn fail_next(&self, times: usize, fault: Fault, path: &str) {
        lock(&self.shared.faults).add(fault, path, times);
    }

    /// Ends all faults. A request that hangs goes on hanging.
    pub fn repair(&self) {
        lock(&self.shared.faults).repair();
    }
}

impl Faults {
    pub fn add(&mut self, fault: Fault, path: &str, times: usize) {
        self.0.push(Ordered { fault, path_contains: path.into(), remaining: times });
    }

    pub fn repair(&mut self) {
        self.0.clear();
    }

    /// What is to happen to a request for this path and query.
    pub fn next(&mut self, path: &str) -> Option<Fault> {
        self.0.retain(|ordered| ordered.remaining > 0);
        let fits = |ordered: &&mut Ordered| path.contains(&ordered.path_contains);
        let ordered = self.0.iter_mut().find(fits)?;
        ordered.remaining -= 1;
        Some(ordered.fault.clone())
    }
}

impl Fault {
    /// The answer in place of the right one, by a Gitea with this `ROOT_URL`. None where
    /// the right one is made first.
    pub(super) fn reply(&self, root_url: &str) -> Option<Reply> {
        let page = |text| format!("<html><body><h1>{text}</h1></body></html>\n");
        Some(match self {
            Self::NotFound => Refusal::NotFound.reply(root_url),
            Self::ProxyNotFound => Reply::html(StatusCode::NOT_FOUND, page("404 Not Found")),
            Self::ServerError => {
                let message = "database is locked".to_owned();
                Refusal::Message(StatusCode::INTERNAL_SERVER_ERROR, message).reply(root_url)
            }
            Self::Unauthorized => super::access::bad_token().reply(root_url),
            Self::TooManyRequests(secs) => {
                let page = page("429 Too Many Requests");
                retry_after(Reply::html(StatusCode::TOO_MANY_REQUESTS, page), *secs)
            }
            Self::Unavailable(secs) => {
                let page = page("503 Service Unavailable");
                retry_after(Reply::html(StatusCode::SERVICE_UNAVAILABLE, page), *secs)
            }
            Self::Garbage => {
                let bytes = b"\x00\xff{]<not JSON".repeat(64);
                Reply::typed(StatusCode::OK, "application/json;charset=utf-8", bytes)
            }
            Self::Closed => Reply::empty(StatusCode::OK),
            Self::Hang | Self::Slow(_) | Self::Truncated | Self::CutOff => return None,
        })
    }

    /// What becomes of an answer on its way.
    pub(super) async fn distort(self, response: Response) -> Response {
        let (mut head, body) = response.into_parts();
        let body = match self {
            Self::Truncated => Body::from(first_half(body).await.0),
            Self::CutOff => {
                let (half, whole) = first_half(body).await;
                head.headers.insert(header::CONTENT_LENGTH, whole.into());
                ends_after(half)
            }
            // The server ends the connection before it has sent the head.
            Self::Closed => Body::from_stream(stream::iter([Err::<Bytes, _>(broken())])),
            _ => body,
        };
        Response::from_parts(head, body)
    }
}

fn retry_after(mut reply: Reply, secs: u64) -> Reply {
    reply.headers.push(("Retry-After", secs.to_string()));
    reply
}

/// The first half of a body, and the length of all of it.
async fn first_half(body: Body) -> (Bytes, usize) {
    let whole = to_bytes(body, usize::MAX).await.expect("a body in memory");
    (whole.slice(..whole.len() / 2), whole.len())
}

/// A body that breaks off after these bytes have been sent.
fn ends_after(bytes: Bytes) -> Body {
    Body::from_stream(stream::unfold(bytes, async |mut left| {
        if left.is_empty() {
            // What was written before is flushed while this waits.
            tokio::task::yield_now().await;
            return Some((Err(broken()), left));
        }
        Some((Ok(mem::take(&mut left)), left))
    }))
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}
