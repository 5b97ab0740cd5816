//! Pages that stay up to date by server-sent events. One task renders for all who watch, only while
//! somebody does.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension,
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::{Stream, StreamExt, stream};
use service::{peers::Peers, server::GoesOn};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch};

use super::{
    failure::{Answer, Failure},
    now::{self, Facts},
    security::Viewer,
    state::Shared,
};

/// Who may watch at once. All requests of operators share 64 connections.
const VIEWERS: usize = 16;
/// Time between two renderings.
const EVERY: Duration = Duration::from_secs(2);
/// How old what was read of the broker may be. Looking at all consumers costs it some milliseconds.
const FRESH: Duration = Duration::from_secs(10);
/// How long one connection lasts. Whether somebody may watch is looked at once for each.
const LASTS: Duration = Duration::from_secs(600);
/// How long a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);

/// What is live.
pub(super) struct Live {
    viewers: Arc<Semaphore>,
    /// What was rendered last. The task that renders lives as long as somebody receives.
    rendered: Mutex<Option<watch::Receiver<Arc<str>>>>,
    facts: Mutex<Option<(Instant, Arc<Facts>)>>,
}

impl Live {
    pub(super) fn new() -> Self {
        let viewers = Arc::new(Semaphore::new(VIEWERS));
        Self { viewers, rendered: Mutex::default(), facts: Mutex::default() }
    }

    /// What the broker says, as old as `fresh` at most. Several who ask at once share one look.
    pub(super) async fn facts(&self, peers: &Peers, fresh: Duration) -> Arc<Facts> {
        let mut kept = self.facts.lock().await;
        if let Some((at, facts)) = kept.as_ref()
            && at.elapsed() < fresh
            && facts.connected == peers.broker().is_connected()
        {
            return Arc::clone(facts);
        }
        let facts = Arc::new(Facts::read(peers).await);
        *kept = Some((Instant::now(), Arc::clone(&facts)));
        facts
    }

    /// A place for one who watches. None if there are too many.
    pub(super) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.viewers).try_acquire_owned().ok()
    }

    /// What is rendered. Begins to render if nobody watched before.
    async fn watch(self: &Arc<Self>, shared: &Arc<Shared>) -> watch::Receiver<Arc<str>> {
        let mut rendered = self.rendered.lock().await;
        if let Some(receiver) = rendered.as_ref().filter(|receiver| receiver.has_changed().is_ok())
        {
            return receiver.clone();
        }
        let (sender, mut receiver) = watch::channel(Arc::from(""));
        receiver.mark_unchanged();
        tokio::spawn(render(Arc::clone(shared), sender));
        // Only those who watch keep the task, so the receiver that is kept here does not count.
        *rendered = Some(receiver.clone());
        receiver
    }
}

/// Renders until nobody watches.
async fn render(shared: Arc<Shared>, sender: watch::Sender<Arc<str>>) {
    loop {
        let region = now::live_region(&shared, FRESH).await;
        sender.send_replace(region.into());
        tokio::time::sleep(EVERY).await;
        let mut kept = shared.live.rendered.lock().await;
        // The one that is kept is no viewer.
        if sender.receiver_count() <= 1 {
            *kept = None;
            return;
        }
    }
}

/// The region of the first page, again and again.
pub(super) async fn now(
    State(shared): State<Arc<Shared>>,
    Extension(_): Extension<Viewer>,
) -> Answer {
    let place = place(&shared)?;
    let receiver = shared.live.watch(&shared).await;
    let events = stream::unfold((receiver, place), async |(mut receiver, place)| {
        receiver.changed().await.ok()?;
        let region = receiver.borrow_and_update().to_string();
        Some((region_event(&region), (receiver, place)))
    });
    Ok(answer(events))
}

/// A place for one who watches.
pub(super) fn place(shared: &Shared) -> Result<OwnedSemaphorePermit, Failure> {
    let place = shared.live.place();
    place.ok_or_else(|| Failure::TooMany("Too many watch at once.".into()))
}

/// An event that replaces the inside of a region.
pub(super) fn region_event(region: &str) -> Event {
    Event::default().event("region").retry(RETRY).data(region)
}

/// An event that says that nothing more comes.
pub(super) fn end_event() -> Event {
    Event::default().event("end").data("ended")
}

/// The answer that goes on, for a while.
pub(super) fn answer(events: impl Stream<Item = Event> + Send + 'static) -> Response {
    let events = events.take_until(tokio::time::sleep(LASTS)).map(Ok::<_, Infallible>);
    let mut response = Sse::new(events).keep_alive(KeepAlive::default()).into_response();
    response.extensions_mut().insert(GoesOn);
    response
}
