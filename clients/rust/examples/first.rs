//! Prints each change.
//!
//! ```sh
//! NATS_USER=local NATS_PASSWORD_FILE=data/nats-password \
//!     cargo run -p coordinator-client --example first
//! ```

use coordinator_client::{Error, Settings, changes};

#[tokio::main]
async fn main() -> Result<(), Error> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let subscription = changes("first", |change| async move {
        let (kind, issue) = (change.kind, change.issue_ref());
        println!("{kind} {issue} +{:?} -{:?}", change.added, change.removed);
        Ok(())
    });
    subscription.run(Settings::from_variables(std::env::vars())).await
}
