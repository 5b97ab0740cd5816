//! Tells once that ingest was not there for a while: Gitea sent nothing then that is kept. Whoever
//! asks Gitea sweeps for what was missed.

use std::{sync::Arc, time::Duration};

use contract::{
    envelope::{Envelope, Headers},
    names::{GAP_SUBJECT, QUESTIONS},
};
use service::{backoff::Backoff, broker::Broker, causes::Causes};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::relay::Publisher;

/// Pauses between attempts. Where nobody asks Gitea there may be no stream of questions, ever.
const PAUSE: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));

/// Tells it until the broker has confirmed it, and then waits for `stop`.
pub(crate) async fn tell(broker: Broker, publisher: Arc<Publisher>, stop: CancellationToken) {
    let mut pause = PAUSE;
    let told = async {
        loop {
            let session = broker.connected().await;
            // Who may not see the stream of events has another trouble first.
            if publisher.check(&session).await.is_err() {
                pause.wait().await;
                continue;
            }
            let message = Envelope {
                subject: GAP_SUBJECT.into(),
                headers: Headers::default(),
                payload: Vec::new(),
            };
            match session.publish(message, QUESTIONS).await {
                Ok(_) => return,
                Err(error) => {
                    debug!(error = %Causes(&error), "nobody takes the message that ingest was away");
                }
            }
            pause.wait().await;
        }
    };
    tokio::select! {
        () = told => stop.cancelled().await,
        () = stop.cancelled() => {}
    }
}
