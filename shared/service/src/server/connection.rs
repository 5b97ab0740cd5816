//! A connection that is closed when its client is too slow to send a head, to
//! send anything at all, or to read its answers, and when its place is needed.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::{RecvFlags, recv};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    Limits,
    places::{Place, Taken},
};

/// How long a connection is still read after its timeout. After a stall of this process, timers
/// fire before the process sees the bytes that have arrived.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// What a connection waits for, and until when. Shared by its requests and its socket.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) place: Taken,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    waits: Mutex<Waits>,
}

/// What the next bytes of the client will be.
#[derive(Clone, Copy, Debug)]
enum Waits {
    /// The rest of a head.
    Head { until: Instant },
    /// The first byte of the next request.
    Rest { until: Instant },
    /// A body, whose reader has its own limit, or nothing.
    Request,
}

impl Phase {
    pub(super) fn new(limits: &Limits, place: Taken) -> Self {
        Self {
            place,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            write_timeout: limits.write_timeout,
            waits: Mutex::new(Waits::Head { until: Instant::now() + limits.header_timeout }),
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin_request(&self) {
        self.place.begin_request();
        *self.waits() = Waits::Request;
    }

    pub(super) fn end_request(&self, may_rest: bool) {
        if may_rest {
            self.place.is_known();
        }
        let patience = if may_rest { self.idle_timeout } else { self.header_timeout };
        *self.waits() = Waits::Rest { until: Instant::now() + patience };
    }

    fn bytes_arrived(&self) {
        let mut waits = self.waits();
        if let Waits::Rest { .. } = *waits {
            *waits = Waits::Head { until: Instant::now() + self.header_timeout };
        }
    }

    /// Nothing is left to write. Returns until when the connection may be idle.
    fn flushed(&self) -> Option<Instant> {
        let until = self.until();
        if until.is_some() {
            self.place.rest();
        }
        until
    }

    fn until(&self) -> Option<Instant> {
        match *self.waits() {
            Waits::Head { until } | Waits::Rest { until } => Some(until),
            Waits::Request => None,
        }
    }
}

/// A socket with the limits of its [`Phase`].
pub(super) struct Connection {
    stream: TcpStream,
    phase: Arc<Phase>,
    reading: Timer,
    writing: Timer,
    /// When the client must have read all that is being written.
    write_until: Option<Instant>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, phase: Arc<Phase>) -> Self {
        let (reading, writing) = Default::default();
        Self { stream, phase, reading, writing, write_until: None }
    }

    /// The result of a write, or a timeout if the client has not read for too long.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_pending() {
            let timeout = self.phase.write_timeout;
            let until = *self.write_until.get_or_insert_with(|| Instant::now() + timeout);
            ready!(self.writing.poll(cx, until));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        done
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buf) {
            if buf.filled().len() > before {
                this.phase.bytes_arrived();
            }
            return Poll::Ready(read);
        }
        if this.phase.place.place().must_go(cx) && !has_bytes(&this.stream) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let Some(until) = this.phase.until() else { return Poll::Pending };
        ready!(this.reading.poll(cx, until + LAST_LOOK));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.written(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.written(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called when nothing is left to write. An answer that was ready at once has changed the
    /// phase since the last read, so the timer is set here too.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.write_until = None;
        if let Some(until) = this.phase.flushed() {
            let _ = this.reading.poll(cx, until + LAST_LOOK);
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// A timer that is created when it is first needed.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        pin!(sleep).poll(cx)
    }
}

/// Whether the client begins to send in time, and before its place is needed. It peeks, since a
/// socket that was just accepted counts as readable in any case.
pub(super) async fn speaks(stream: &TcpStream, place: &Place, patience: Duration) -> bool {
    let look = async || stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes == 1);
    let must_go = poll_fn(|cx| if place.must_go(cx) { Poll::Ready(()) } else { Poll::Pending });
    tokio::select! {
        biased;
        spoken = tokio::time::timeout(patience, look()) => match spoken {
            Ok(spoken) => spoken,
            Err(_) => tokio::time::timeout(LAST_LOOK, look()).await.unwrap_or(false),
        },
        () = must_go => has_bytes(stream),
    }
}

/// Whether bytes have arrived that were not read. It asks the system, since the runtime learns of
/// them a moment later.
fn has_bytes(stream: &TcpStream) -> bool {
    recv(stream, &mut [0], RecvFlags::PEEK).is_ok_and(|(_, bytes)| bytes > 0)
}
