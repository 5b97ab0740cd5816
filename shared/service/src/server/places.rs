//! The places of a listener: which connections have one, and which one is closed for a newer one.
//!
//! A connection is *quiet* while it has no request in hand: it has sent no whole head yet, or it
//! rests after an answer. When places run out, the one that has been quiet for longest goes.
//! Strangers go before connections that brought something signed, so that silence keeps nobody out
//! who knows the secret. No address holds more than its share.
//!
//! Architecture invariant: a request takes no lock here. A connection notes in its own [`Place`]
//! what it does; the order of all of them is put right when one has to go.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, Ipv6Addr},
    ops::Bound,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::Context,
    time::Instant,
};

use futures::task::AtomicWaker;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter},
};
use tokio::sync::Notify;
use tracing::warn;

use crate::log_limit::LogLimit;

/// Why a connection was closed for a newer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// All places were taken.
    Full,
    /// Its address had all of its share.
    Share,
    /// The newer one itself: all others of its address had a request in hand.
    Refused,
}

impl Reason {
    const ALL: [Self; 3] = [Self::Full, Self::Share, Self::Refused];

    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Share => "address_share",
            Self::Refused => "address_busy",
        }
    }
}

/// Whose connections share a limit: an IPv4 address, or the /64 that one IPv6 host may choose its
/// addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
            v4 => v4,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(v6) => write!(f, "{v6}/64"),
        }
    }
}

/// The connection has brought something signed.
const KNOWN: u64 = 1 << 63;
/// The connection has to go.
const SHED: u64 = 1 << 62;
/// Since when it has been quiet, in microseconds of the listener's clock; 0 with a request in hand.
const SINCE: u64 = SHED - 1;

/// The place of one connection.
pub(super) struct Place {
    id: u64,
    origin: Origin,
    /// [`KNOWN`], [`SHED`] and [`SINCE`]. Without `SHED` it orders the quiet connections.
    state: AtomicU64,
    /// The rank under which the book has it. It never exceeds the actual rank, since that only
    /// grows. Changed under the book's lock.
    filed: AtomicU64,
    waker: AtomicWaker,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({}, {})", self.id, self.origin)
    }
}

impl Place {
    fn is_shed(&self) -> bool {
        self.state.load(SeqCst) & SHED != 0
    }

    /// Whether the connection has to go. If not, `cx` is woken once it has to.
    pub(super) fn must_go(&self, cx: &mut Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.is_shed()
    }

    fn key(&self) -> Key {
        (self.filed.load(SeqCst), self.id)
    }

    /// Looks at it for a victim that was filed under `rank`.
    fn look(&self, rank: u64, now: u64) -> Look {
        let state = self.state.load(SeqCst);
        if state & SINCE == 0 {
            // Once it is quiet, it will be so since now at the earliest.
            return Look::Later((state & KNOWN) | now);
        }
        if state != rank {
            return Look::Later(state);
        }
        match self.state.compare_exchange(state, state | SHED, SeqCst, SeqCst) {
            Ok(_) => Look::Shed,
            Err(_) => Look::Later((state & KNOWN) | now),
        }
    }
}

enum Look {
    Shed,
    /// Its rank is this one at least.
    Later(u64),
}

/// Rank and id.
type Key = (u64, u64);
type Order = BTreeMap<Key, Arc<Place>>;

#[derive(Debug, Default)]
struct Book {
    last_id: u64,
    all: Order,
    by_origin: HashMap<Origin, Order>,
    /// The one that was told to go, and has not gone yet.
    leaving: Option<(Arc<Place>, Reason)>,
}

enum Entry {
    Taken(Arc<Place>),
    /// Another one was told to go.
    Shed(Reason),
    /// One was told to go, and is about to.
    Leaving,
    /// All have a request in hand.
    AllBusy,
    Refused,
}

impl Book {
    fn enter(&mut self, origin: Origin, max: usize, share: usize, now: u64) -> Entry {
        if self.leaving.as_ref().is_some_and(|(place, _)| place.is_shed()) {
            return Entry::Leaving;
        }
        self.leaving = None;
        let held = self.by_origin.get(&origin).map_or(0, Order::len);
        let reason = if held >= share {
            Reason::Share
        } else if self.all.len() >= max {
            Reason::Full
        } else {
            return Entry::Taken(self.take(origin, now));
        };
        match self.shed(reason, origin, now) {
            Some(place) => {
                place.waker.wake();
                self.leaving = Some((place, reason));
                Entry::Shed(reason)
            }
            None if reason == Reason::Share => Entry::Refused,
            None => Entry::AllBusy,
        }
    }

    fn take(&mut self, origin: Origin, now: u64) -> Arc<Place> {
        self.last_id += 1;
        let place = Arc::new(Place {
            id: self.last_id,
            origin,
            state: now.into(),
            filed: now.into(),
            waker: AtomicWaker::new(),
        });
        self.file(&place);
        place
    }

    fn file(&mut self, place: &Arc<Place>) {
        self.all.insert(place.key(), Arc::clone(place));
        let order = self.by_origin.entry(place.origin).or_default();
        order.insert(place.key(), Arc::clone(place));
    }

    fn unfile(&mut self, place: &Place) {
        self.all.remove(&place.key());
        if let Some(order) = self.by_origin.get_mut(&place.origin) {
            order.remove(&place.key());
            if order.is_empty() {
                self.by_origin.remove(&place.origin);
            }
        }
    }

    /// The one that has been quiet for longest, of all or of one origin. Each that is met before
    /// has done something since it was filed, and is filed anew. So the search costs a request
    /// O(log n) at most, and is paid for by the newer connection.
    fn shed(&mut self, reason: Reason, origin: Origin, now: u64) -> Option<Arc<Place>> {
        let mut passed = (0, 0);
        loop {
            let order = match reason {
                Reason::Full => &self.all,
                _ => self.by_origin.get(&origin)?,
            };
            let beyond = (Bound::Excluded(passed), Bound::Unbounded);
            let (&key, place) = order.range(beyond).next()?;
            passed = key;
            match place.look(key.0, now) {
                Look::Shed => return Some(Arc::clone(place)),
                Look::Later(rank) if rank > key.0 => {
                    let place = Arc::clone(place);
                    self.unfile(&place);
                    place.filed.store(rank, SeqCst);
                    self.file(&place);
                }
                Look::Later(_) => {}
            }
        }
    }

    /// Why it was told to go, if it was.
    fn leave(&mut self, place: &Place) -> Option<Reason> {
        self.unfile(place);
        let (leaving, reason) = self.leaving.take_if(|(leaving, _)| leaving.id == place.id)?;
        leaving.is_shed().then_some(reason)
    }

    /// The origin with most places, and their number.
    fn fullest(&self) -> Option<(Origin, usize)> {
        let held = self.by_origin.iter().map(|(origin, order)| (*origin, order.len()));
        held.max_by_key(|(_, held)| *held)
    }
}

/// The places of a listener.
#[derive(Debug)]
pub(super) struct Places {
    listener: &'static str,
    max: usize,
    share: usize,
    book: Mutex<Book>,
    /// A place is free, or a connection has become quiet while one is wanted.
    changed: Notify,
    /// A newer connection waits, since all others have a request in hand.
    wanted: AtomicBool,
    started: Instant,
    shed: Counter<u64>,
    lines: LogLimit,
}

impl Places {
    /// `share` is the most places of one address.
    pub(super) fn new(listener: &'static str, max: usize, share: usize, meter: &Meter) -> Self {
        let shed = meter
            .u64_counter("coordinator.connections.shed")
            .with_description("Connections closed for newer ones, by reason")
            .build();
        let places = Self {
            listener,
            max,
            share,
            book: Mutex::default(),
            changed: Notify::new(),
            wanted: AtomicBool::new(false),
            started: Instant::now(),
            shed,
            lines: LogLimit::new(),
        };
        // `increase()` misses the first increment of a series that does not begin at zero.
        for reason in Reason::ALL {
            places.count(reason, 0);
        }
        places
    }

    /// A place for a connection from `address`, as soon as one is free. None if the address has all
    /// of its share in use.
    pub(super) async fn take(self: &Arc<Self>, address: IpAddr) -> Option<Taken> {
        let origin = Origin::of(address);
        let taken = loop {
            let entry = self.book().enter(origin, self.max, self.share, self.now());
            match entry {
                Entry::Taken(place) => break Some(Taken { places: Arc::clone(self), place }),
                Entry::Refused => {
                    self.count(Reason::Refused, 1);
                    self.tell(Reason::Refused);
                    break None;
                }
                // One that becomes quiet after the next look sees that it is wanted.
                Entry::AllBusy if !self.wanted.swap(true, SeqCst) => continue,
                Entry::Shed(reason) => self.tell(reason),
                Entry::Leaving | Entry::AllBusy => {}
            }
            self.changed.notified().await;
        };
        self.wanted.store(false, SeqCst);
        taken
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(SeqCst)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never 0, which stands for a request in hand.
    fn now(&self) -> u64 {
        (self.started.elapsed().as_micros() as u64 & SINCE).max(1)
    }

    fn count(&self, reason: Reason, connections: u64) {
        let attributes =
            [KeyValue::new("listener", self.listener), KeyValue::new("reason", reason.as_str())];
        self.shed.add(connections, &attributes);
    }

    fn tell(&self, reason: Reason) {
        let reason = reason.as_str();
        let Some(line) = self.lines.line(reason) else { return };
        let Some((address, places)) = self.book().fullest() else { return };
        warn!(
            listener = self.listener,
            reason,
            client.address = %address,
            places,
            limit = self.max,
            left_out = line.left_out,
            "places run out: connections are closed for newer ones; \
             `client.address` has most of the places"
        );
    }
}

/// A place that a connection has. Dropping it leaves the place to the next one.
#[derive(Debug)]
pub(super) struct Taken {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Taken {
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// A whole head has arrived.
    pub(super) fn begin_request(&self) {
        let before = self.place.state.fetch_and(KNOWN, SeqCst);
        if before & SHED != 0 {
            // It was told to go just now. Another one has to.
            self.places.changed.notify_one();
        }
    }

    /// The client has authenticated itself.
    pub(super) fn is_known(&self) {
        self.place.state.fetch_or(KNOWN, SeqCst);
    }

    /// The answer is written, and there is no request in hand.
    pub(super) fn rest(&self) {
        if self.place.state.load(SeqCst) & SINCE != 0 {
            return;
        }
        self.place.state.fetch_or(self.places.now(), SeqCst);
        if self.places.is_wanted() {
            self.places.changed.notify_one();
        }
    }

    /// Whether a newer connection waits for this one's place.
    pub(super) fn is_wanted(&self) -> bool {
        self.places.is_wanted()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let reason = self.places.book().leave(&self.place);
        if let Some(reason) = reason {
            self.places.count(reason, 1);
        }
        self.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use super::*;
    use crate::telemetry::metrics::Metrics;

    const HERE: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

    fn places(max: usize, share: usize) -> Arc<Places> {
        let metrics = Metrics::new("test", None).expect("meters");
        Arc::new(Places::new("test", max, share, &metrics.meter()))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// Takes a place while the others do what they are told.
    async fn taken(places: &Arc<Places>, from: &str, others: &mut Vec<Taken>) -> Option<u64> {
        let leave = poll_fn(|cx| {
            others.retain(|other| !other.place().must_go(cx));
            Poll::<()>::Pending
        });
        let taken = tokio::select! {
            taken = places.take(address(from)) => taken,
            () = leave => unreachable!("it never ends"),
        };
        let taken = taken?;
        let id = taken.place.id;
        others.push(taken);
        Some(id)
    }

    fn ids(others: &[Taken]) -> Vec<u64> {
        others.iter().map(|taken| taken.place.id).collect()
    }

    fn answered(taken: &Taken, known: bool) {
        taken.begin_request();
        if known {
            taken.is_known();
        }
        taken.rest();
    }

    #[test]
    fn an_ipv6_host_counts_as_one_whatever_addresses_it_chooses() {
        for (one, origin) in [
            ("10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(Origin::of(address(one)).to_string(), origin);
        }
    }

    #[tokio::test]
    async fn the_one_that_has_been_quiet_for_longest_goes_and_strangers_before_others() {
        let (places, mut all) = (places(4, 4), Vec::new());
        for from in [HERE[0], HERE[1], HERE[2], HERE[0]] {
            taken(&places, from, &mut all).await.expect("a place");
        }
        answered(&all[0], true);
        answered(&all[1], false);
        all[2].begin_request();
        // 4 is the only one that has had no request. Then comes 2, which was answered, then the
        // newest ones, and last 1, which is known. 3 has a request in hand.
        for (left, new) in [(vec![1, 2, 3], 5), (vec![1, 3, 5], 6), (vec![1, 3, 6], 7)] {
            assert_eq!(taken(&places, HERE[1], &mut all).await, Some(new));
            assert_eq!(ids(&all), [left, vec![new]].concat());
        }
        all[2].begin_request();
        all[3].begin_request();
        assert_eq!(taken(&places, HERE[1], &mut all).await, Some(8));
        assert_eq!(ids(&all), [3, 6, 7, 8]);
        all[0].rest();
        all[3].begin_request();
        assert_eq!(taken(&places, HERE[1], &mut all).await, Some(9));
        assert_eq!(ids(&all), [6, 7, 8, 9]);
    }

    #[tokio::test]
    async fn an_address_with_its_share_closes_its_own_and_gets_no_more() {
        let (places, mut all) = (places(4, 2), Vec::new());
        for from in [HERE[1], HERE[0], HERE[0]] {
            taken(&places, from, &mut all).await.expect("a place");
        }
        assert_eq!(taken(&places, HERE[0], &mut all).await, Some(4));
        assert_eq!(ids(&all), [1, 3, 4]);
        all[1].begin_request();
        all[2].begin_request();
        assert_eq!(taken(&places, HERE[0], &mut all).await, None);
        assert_eq!(taken(&places, HERE[2], &mut all).await, Some(5));
        assert_eq!(places.book().fullest(), Some((Origin(address(HERE[0])), 2)));
        all.clear();
        let book = places.book();
        assert!(book.all.is_empty() && book.by_origin.is_empty() && book.leaving.is_none());
    }

    #[tokio::test]
    async fn while_all_have_a_request_in_hand_a_newer_one_waits_for_the_first_that_has_not() {
        let (places, mut all) = (places(2, 2), Vec::new());
        for from in [HERE[0], HERE[1]] {
            taken(&places, from, &mut all).await.expect("a place");
        }
        all.iter().for_each(Taken::begin_request);
        let waiting = {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.take(address(HERE[2])).await })
        };
        while !places.is_wanted() {
            tokio::task::yield_now().await;
        }
        assert!(!waiting.is_finished());
        all[1].rest();
        // It is told to go, but a request came just then: so another one has to.
        while !all[1].place.is_shed() {
            tokio::task::yield_now().await;
        }
        all[1].begin_request();
        all[0].rest();
        while !all[0].place.is_shed() {
            tokio::task::yield_now().await;
        }
        assert!(!all[1].place.is_shed());
        drop(all.remove(0));
        assert!(waiting.await.expect("no panic").is_some());
        assert!(!places.is_wanted());
    }

    #[tokio::test]
    async fn closed_connections_are_counted_by_reason() {
        let metrics = Metrics::new("test", None).expect("meters");
        let places = Arc::new(Places::new("webhook", 2, 1, &metrics.meter()));
        let mut all = Vec::new();
        for from in HERE {
            taken(&places, from, &mut all).await.expect("a place");
        }
        taken(&places, HERE[2], &mut all).await.expect("a place");
        all.iter().for_each(Taken::begin_request);
        assert_eq!(taken(&places, HERE[2], &mut all).await, None);
        let text = metrics.text().expect("text");
        for reason in ["full", "address_share", "address_busy"] {
            let line = format!(
                "coordinator_connections_shed_total{{listener=\"webhook\",reason=\"{reason}\"}} 1"
            );
            assert!(text.contains(&line), "{line} is missing in: {text}");
        }
    }
}
