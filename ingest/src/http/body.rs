//! Reads request bodies under three limits: size, time, and the memory of all bodies together.

use std::{sync::Arc, time::Duration};

use axum::body::{Body, Bytes, HttpBody};
use http_body_util::BodyExt;
use strum::IntoStaticStr;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    gitea::headers::Headers,
    large::buffer::{Buffer, SMALL_BYTES},
};

/// Limits on request bodies.
#[derive(Clone, Debug)]
pub struct BodySettings {
    /// Largest body, in bytes.
    pub max_bytes: usize,
    /// Bytes that all bodies together may hold in memory.
    pub max_in_flight_bytes: usize,
    /// How long the reading of one body may take.
    pub timeout: Duration,
}

/// Why a body was not read to its end.
#[derive(Clone, Copy, Debug, Error, IntoStaticStr, PartialEq, Eq)]
pub(crate) enum BodyError {
    #[strum(serialize = "body_too_large")]
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[strum(serialize = "body_timeout")]
    #[error("the body did not arrive in time")]
    TooSlow,
    #[strum(serialize = "body_broken")]
    #[error("the body broke off or is malformed")]
    Broken,
    #[strum(serialize = "overloaded")]
    #[error("too much is being received at once")]
    Overloaded,
}

/// Upper limit of the first allocation, because a `Content-Length` proves nothing. The buffer grows
/// as bytes arrive.
const FIRST_ALLOCATION: usize = 16 * 1024;

/// Bytes of a refused body that are still read and discarded. If the connection closed while the
/// sender writes, the sender would see a connection error instead of the answer.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// Reads bodies within the limits. All connections share the memory limit.
#[derive(Clone, Debug)]
pub(crate) struct Bodies {
    max_bytes: usize,
    timeout: Duration,
    memory: Arc<Semaphore>,
    /// Bytes of `memory` that are reserved for small bodies. A sender without the secret can send
    /// large bodies, and a few of them must not block all other deliveries.
    for_small: usize,
}

/// A body and its permits of the shared memory limit. Dropping it releases the permits.
#[derive(Debug)]
pub(crate) struct HeldBody {
    pub(crate) bytes: Buffer,
    pub(crate) memory: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(settings: &BodySettings) -> Self {
        let BodySettings { max_bytes, max_in_flight_bytes, timeout } = *settings;
        let memory = Arc::new(Semaphore::new(max_in_flight_bytes.min(Semaphore::MAX_PERMITS)));
        let for_small =
            (max_in_flight_bytes / 4).min(max_in_flight_bytes.saturating_sub(max_bytes));
        Self { max_bytes, timeout, memory, for_small }
    }

    pub(crate) async fn read(
        &self,
        headers: &Headers,
        mut body: Body,
    ) -> Result<HeldBody, BodyError> {
        let claimed = headers.content_length;
        let read = if claimed.is_some_and(|bytes| bytes > self.max_bytes) {
            Err(BodyError::TooLarge(self.max_bytes))
        } else {
            let reading = tokio::time::timeout(self.timeout, self.read_all(claimed, &mut body));
            // A body that timed out is not discarded below, because its connection is closed
            // anyway.
            reading.await.map_err(|_| BodyError::TooSlow)?
        };
        if read.is_err() {
            self.discard(headers, body);
        }
        read
    }

    /// Reads and discards a refused body for a while. Meanwhile its connection stays open and
    /// counts towards the connection limit.
    pub(crate) fn discard(&self, headers: &Headers, body: Body) {
        // A client that sends `Expect` has not sent its body yet.
        if !body.is_end_stream() && !headers.expects {
            tokio::spawn(tokio::time::timeout(self.timeout, read_and_forget(body)));
        }
    }

    async fn read_all(
        &self,
        claimed: Option<usize>,
        body: &mut Body,
    ) -> Result<HeldBody, BodyError> {
        let mut bytes = Buffer::with_capacity(claimed.unwrap_or(0).min(FIRST_ALLOCATION));
        let mut memory: Option<OwnedSemaphorePermit> = None;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| BodyError::Broken)?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.max_bytes {
                return Err(BodyError::TooLarge(self.max_bytes));
            }
            let share = self.share(bytes.len(), data.len()).ok_or(BodyError::Overloaded)?;
            match &mut memory {
                Some(memory) => memory.merge(share),
                None => memory = Some(share),
            }
            let most = claimed.unwrap_or(self.max_bytes);
            bytes.extend(&data, most).map_err(|_| BodyError::Overloaded)?;
        }
        Ok(HeldBody { bytes, memory })
    }

    /// Takes permits for the next `more` bytes of a body of which `read` bytes have arrived. Memory
    /// is counted by the bytes received and not by `Content-Length`. So a sender that announces
    /// much and sends little does not reduce the memory for others.
    fn share(&self, read: usize, more: usize) -> Option<OwnedSemaphorePermit> {
        let small = read + more <= SMALL_BYTES;
        if !small && self.memory.available_permits() < more + self.for_small {
            return None;
        }
        Arc::clone(&self.memory).try_acquire_many_owned(u32::try_from(more).ok()?).ok()
    }
}

async fn read_and_forget(mut body: Body) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}
