//! Reading a request's body under limits: size, time, and the memory that all
//! bodies together may take.

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

/// What bodies may use up.
#[derive(Clone, Debug)]
pub struct BodySettings {
    /// Largest body, in bytes.
    pub max_bytes: usize,
    /// Bytes of bodies in memory at once.
    pub max_in_flight_bytes: usize,
    /// How long a body may take.
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

/// Room made at once for a body that claims to be long; more is made as it arrives.
const FIRST_ALLOCATION: usize = 16 * 1024;

/// What is still read, and thrown away, of a body that was refused: a sender
/// that is cut off while it writes sees a broken connection instead of its answer.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// Reads bodies within their limits, which all connections share.
#[derive(Clone, Debug)]
pub(crate) struct Bodies {
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

impl Bodies {
    pub(crate) fn new(settings: &BodySettings) -> Self {
        let BodySettings { max_bytes, max_in_flight_bytes, timeout } = *settings;
        let memory = Arc::new(Semaphore::new(max_in_flight_bytes.min(Semaphore::MAX_PERMITS)));
        let for_small =
            (max_in_flight_bytes / 4).min(max_in_flight_bytes.saturating_sub(max_bytes));
        Self { max_bytes, timeout, memory, for_small }
    }

    /// Reads `body` to its end.
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
            // What is late is late, and the connection of no further use.
            reading.await.map_err(|_| BodyError::TooSlow)?
        };
        if read.is_err() {
            self.discard(headers, body);
        }
        read
    }

    /// Lets the sender of a refused body write on for a while. Its connection
    /// stays open meanwhile, and counts.
    pub(crate) fn discard(&self, headers: &Headers, body: Body) {
        // One that waits to be asked for its body has nothing on its way.
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

    /// Memory for `more` bytes of a body of which `read` are there. Memory is counted as bytes
    /// arrive and not as they are claimed: a sender that claims much and sends little takes
    /// nothing from others.
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
