//! Ids of messages that were handled, so that nothing is done twice.

use std::sync::{Mutex, PoisonError};

use futures::future::{BoxFuture, FutureExt};
use hashlink::LinkedHashMap;

use crate::BoxError;

/// Keeps ids of handled messages.
///
/// The broker delivers at least once. An effect and its id are kept together where a handler writes
/// the id ([`Message::id`](crate::Message::id)) in the transaction of its effect; then
/// [`Memory::keep`] has nothing left to do.
pub trait Memory: Send + Sync + 'static {
    /// Whether the message was handled before. Then it is acked, and not handled. After an error
    /// it is asked again later.
    fn seen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, BoxError>>;

    /// Keeps the id. Called after the handler has returned, and before the ack. After an error the
    /// handler is called again.
    fn keep<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), BoxError>>;
}

/// The last ids, as long as the process lives.
#[derive(Debug)]
pub struct InMemory {
    most: usize,
    ids: Mutex<LinkedHashMap<String, ()>>,
}

impl InMemory {
    /// Keeps `most` ids, of some 150 bytes each.
    pub fn new(most: usize) -> Self {
        Self { most, ids: Mutex::default() }
    }
}

impl Default for InMemory {
    /// Keeps 100,000 ids.
    fn default() -> Self {
        Self::new(100_000)
    }
}

impl Memory for InMemory {
    fn seen<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<bool, BoxError>> {
        let seen = self.ids.lock().unwrap_or_else(PoisonError::into_inner).contains_key(id);
        futures::future::ready(Ok(seen)).boxed()
    }

    fn keep<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), BoxError>> {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.insert(id.to_owned(), ());
        while ids.len() > self.most {
            ids.pop_front();
        }
        futures::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_id_is_forgotten_first() {
        let memory = InMemory::new(2);
        for id in ["a", "b", "c"] {
            memory.keep(id).await.expect("keep");
        }
        for (id, seen) in [("a", false), ("b", true), ("c", true)] {
            assert_eq!(memory.seen(id).await.expect("seen"), seen, "{id}");
        }
    }
}
