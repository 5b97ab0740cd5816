//! Subscribes to what happens to Gitea's issues, as Coordinator tells it.
//!
//! ```no_run
//! use coordinator_client::{Error, Settings, changes};
//!
//! # async fn example() -> Result<(), Error> {
//! changes("first", |change| async move {
//!     println!("{} {} {:?}", change.kind, change.issue_ref(), change.assignees);
//!     Ok(())
//! })
//! .run(Settings::new("nats://127.0.0.1:4222"))
//! .await
//! # }
//! ```
//!
//! The changes of one issue are handled one after the other in their order, those of other issues
//! at once. A change is acked after its handler has returned.

mod ack;
mod connection;
mod consumer;
mod error;
mod failure;
mod filter;
mod hand;
mod handling;
mod memory;
mod message;
mod session;
mod settings;
mod sharing;
mod subscriber;
mod subscription;

pub use contract::{change, event};
pub use error::{BoxError, Error, Unreadable};
pub use failure::{Failure, Handled};
pub use memory::{InMemory, Memory};
pub use message::{Content, Message, Received};
pub use settings::Settings;
pub use subscription::{Start, Subscription, changes, events};
