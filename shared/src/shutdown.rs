//! Being asked to stop.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Waits for SIGTERM or SIGINT (Ctrl-C) and says which it was.
///
/// # Errors
/// If the signals cannot be listened to.
pub async fn signal_received() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Cancels `shutdown` at the first signal, and says which it was.
pub async fn cancel_at_signal(shutdown: CancellationToken) {
    match signal_received().await {
        Ok(signal) => info!(signal, "stopping"),
        // Without signals it would never stop gracefully, so it does not go on.
        Err(error) => error!(%error, "cannot listen to signals; stopping"),
    }
    shutdown.cancel();
}
