//! Many entries of a bucket with one request, in the order in which they were written.
//!
//! It is the batched direct get of nats-server 2.11. Any node that holds the bucket may answer it,
//! also one that has not received the newest writes yet. So the end that it shows is that of one
//! node: the leader alone knows what is last ([`bucket::next`](super::bucket::next)).

use std::time::Duration;

use async_nats::{
    HeaderMap, PublishError, StatusCode, SubscribeError,
    header::NATS_LAST_SEQUENCE,
    jetstream::{
        kv,
        message::{StreamMessage, StreamMessageError},
    },
};
use futures::StreamExt;
use thiserror::Error;
use tokio::time::{Instant, timeout_at};

use super::Session;

/// Entries of an answer at most.
pub const MOST_ENTRIES: usize = 256;
/// Bytes of an answer after which the server sends no further entry.
const MOST_BYTES: usize = 1 << 20;
/// How long a whole answer may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Header of each message of such an answer. A server that does not know the request sends one entry,
/// without this header, and nothing more.
const PENDING: &str = "Nats-Num-Pending";
/// Status of the message that ends an answer.
const END: u16 = 204;

/// Why entries cannot be read with one request. One by one they may still be.
#[derive(Debug, Error)]
pub enum BatchError {
    /// There is no subject for the answer.
    #[error("subscribe to a reply subject")]
    Subscribe(#[source] SubscribeError),
    /// The request was not sent.
    #[error("ask for entries")]
    Ask(#[source] PublishError),
    /// The answer did not come, or broke off. So it is where our user may not ask.
    #[error("a request for several entries is not answered")]
    Silent,
    /// The server is older than 2.11, or the bucket has no direct get.
    #[error("the server does not serve requests for several entries")]
    NotServed,
    /// The server says no.
    #[error("the server refuses a request for several entries: {0}")]
    Refused(String),
    /// A message of the answer is missing.
    #[error("an entry between {0} and {1} is missing in an answer")]
    Gap(u64, u64),
    /// A message of the answer is not as it has to be.
    #[error("read an entry of an answer")]
    Unreadable(#[source] StreamMessageError),
    /// The connection has ended.
    #[error("the connection is gone")]
    Closed,
}

/// The first entries whose revision is at least `first`, with markers of deletions: at most
/// [`MOST_ENTRIES`] of them, and about a megabyte. None where the node that answers has none.
///
/// # Errors
/// If the answer does not come as a whole.
pub async fn read(
    session: &Session,
    store: &kv::Store,
    first: u64,
) -> Result<Vec<StreamMessage>, BatchError> {
    let client = &session.client;
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await.map_err(BatchError::Subscribe)?;
    // nats-server's `JSApiMsgGetRequest`. The stream has no other subjects than the bucket's.
    let request = format!(
        "{{\"seq\":{first},\"next_by_subj\":\">\",\"batch\":{MOST_ENTRIES},\"max_bytes\":{MOST_BYTES}}}"
    );
    let subject = format!("$JS.API.DIRECT.GET.{}", store.stream_name);
    let asked = client.publish_with_reply(subject, inbox, request.into()).await;
    asked.map_err(BatchError::Ask)?;
    let until = Instant::now() + DEADLINE;
    let (mut entries, mut last) = (Vec::new(), 0);
    loop {
        let reply = timeout_at(until, replies.next()).await.map_err(|_| BatchError::Silent)?;
        let reply = reply.ok_or(BatchError::Closed)?;
        let before = reply.headers.as_ref().and_then(previous);
        match reply.status {
            None => {
                // An answer of such a server ends here.
                if reply.headers.as_ref().is_none_or(|headers| headers.get(PENDING).is_none()) {
                    return Err(BatchError::NotServed);
                }
                let entry = StreamMessage::try_from(reply).map_err(BatchError::Unreadable)?;
                let is_next = before == Some(last) && entry.sequence >= first.max(last + 1);
                if !is_next || entries.len() == MOST_ENTRIES {
                    return Err(BatchError::Gap(last, entry.sequence));
                }
                last = entry.sequence;
                entries.push(entry);
            }
            Some(status) if status.as_u16() == END => {
                return match before {
                    Some(before) if before == last => Ok(entries),
                    before => Err(BatchError::Gap(last, before.unwrap_or(0))),
                };
            }
            Some(StatusCode::NOT_FOUND) if entries.is_empty() => return Ok(entries),
            Some(StatusCode::NO_RESPONDERS) => return Err(BatchError::NotServed),
            Some(status) => {
                let reason = reply.description.map(|text| text.to_string());
                return Err(BatchError::Refused(reason.unwrap_or_else(|| status.to_string())));
            }
        }
    }
}

/// The sequence of the message before, which the server names in each message of an answer. 0 before
/// the first.
fn previous(headers: &HeaderMap) -> Option<u64> {
    headers.get(NATS_LAST_SEQUENCE)?.as_str().parse().ok()
}
