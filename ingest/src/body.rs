//! Reading a request's body under limits: size, time, and the memory that all
//! bodies together may take.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, StatusCode, header},
};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    buffer::{Buffer, SMALL_BYTES},
    reply::Refusal,
};

/// What is set aside at once for a body that claims to be long; more comes as it arrives.
const FIRST_ALLOCATION: usize = 16 * 1024;

/// What is still read, and thrown away, of a body that was refused: a sender
/// that is cut off while it writes sees a broken connection instead of its answer.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// Limits on bodies, shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    max_bytes: usize,
    timeout: Duration,
    memory: Arc<Semaphore>,
    /// The part of it that is left to small bodies. Nobody needs the secret to
    /// send a large one, and a handful of these must not keep all others out.
    for_small: usize,
}

/// A body and the share of memory that it holds until dropped.
#[derive(Debug)]
pub(crate) struct HeldBody {
    pub(crate) bytes: Buffer,
    pub(crate) memory: Option<OwnedSemaphorePermit>,
}

impl BodyLimits {
    pub(crate) fn new(max_bytes: usize, timeout: Duration, max_in_flight_bytes: usize) -> Self {
        let memory = Arc::new(Semaphore::new(max_in_flight_bytes.min(Semaphore::MAX_PERMITS)));
        let for_small =
            (max_in_flight_bytes / 4).min(max_in_flight_bytes.saturating_sub(max_bytes));
        Self { max_bytes, timeout, memory, for_small }
    }

    /// Reads `body` to its end.
    pub(crate) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<HeldBody, Refusal> {
        let claimed = headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<usize>().ok());
        let read = if claimed.is_some_and(|bytes| bytes > self.max_bytes) {
            Err(self.too_large())
        } else {
            let reading = self.read_all(claimed, &mut body);
            tokio::time::timeout(self.timeout, reading).await.map_err(|_| {
                Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "body_timeout",
                    "the body did not arrive in time",
                )
            })?
        };
        if read.is_err() {
            self.discard(headers, body);
        }
        read
    }

    /// Lets the sender of a refused body write on for a while. Its connection
    /// stays open meanwhile, and counts.
    pub(crate) fn discard(&self, headers: &HeaderMap, body: Body) {
        // One that waits to be asked for its body has nothing on its way.
        if !body.is_end_stream() && !headers.contains_key(header::EXPECT) {
            tokio::spawn(tokio::time::timeout(self.timeout, read_and_forget(body)));
        }
    }

    async fn read_all(&self, claimed: Option<usize>, body: &mut Body) -> Result<HeldBody, Refusal> {
        let mut bytes = Buffer::with_capacity(claimed.unwrap_or(0).min(FIRST_ALLOCATION));
        let mut memory: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                Refusal::new(
                    StatusCode::BAD_REQUEST,
                    "body_broken",
                    "the body broke off or is malformed",
                )
            })?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.max_bytes {
                return Err(self.too_large());
            }
            // Counted as it arrives and not as it is claimed: a sender that
            // claims much and sends little takes nothing from others.
            let permits = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let overloaded =
                || Refusal::not_kept("overloaded", "too much is being received at once");
            let small = bytes.len() + data.len() <= SMALL_BYTES;
            if !small && self.memory.available_permits() < data.len() + self.for_small {
                return Err(overloaded());
            }
            let share = Arc::clone(&self.memory)
                .try_acquire_many_owned(permits)
                .map_err(|_| overloaded())?;
            match &mut memory {
                Some(memory) => memory.merge(share),
                None => memory = Some(share),
            }
            let most = claimed.unwrap_or(self.max_bytes);
            bytes.extend(&data, most).map_err(|_| overloaded())?;
        }
        Ok(HeldBody { bytes, memory })
    }

    fn too_large(&self) -> Refusal {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            format!("the body is larger than {} bytes", self.max_bytes),
        )
    }
}

async fn read_and_forget(mut body: Body) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
        if left == 0 {
            return;
        }
    }
}
