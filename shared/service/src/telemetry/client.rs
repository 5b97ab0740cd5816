//! The HTTP client of the OTLP exporters where their own would not do.

use std::{io, thread, time::Duration};

use reqwest::blocking::Client;

use super::TelemetryError;
use crate::settings::is_loopback;

/// How long one export may take: the default of the exporters.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A client that passes over the proxy of `HTTP_PROXY`, for a receiver on this machine. A proxy
/// would look for it on its own machine. None for all others: the exporters' own client will do.
pub(super) fn direct_client(endpoint: &str) -> Result<Option<Client>, TelemetryError> {
    if !is_loopback(endpoint) {
        return Ok(None);
    }
    // The blocking client has a runtime of its own, which cannot be made within another. The
    // exporters make theirs on a thread as well.
    let building = thread::Builder::new()
        .spawn(|| Client::builder().no_proxy().timeout(TIMEOUT).build())
        .map_err(TelemetryError::Thread)?;
    let client = building
        .join()
        .map_err(|_| TelemetryError::Thread(io::Error::other("the thread panicked")))?;
    client.map(Some).map_err(TelemetryError::Client)
}
