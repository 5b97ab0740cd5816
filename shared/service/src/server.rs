//! A listener: its connections and their limits. HTTP/1.1 only, which is what
//! Gitea, probes and Prometheus speak.

mod connection;
pub mod local_user;
mod places;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, header::CONNECTION},
};
use futures::StreamExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::TokioIo,
    server::graceful::{GracefulConnection, GracefulShutdown},
};
use opentelemetry::metrics::Meter;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;
use tracing::{debug, warn};

use self::{
    connection::{Connection, Phase},
    local_user::Ends,
    places::{Places, Taken},
};
use crate::log_limit::LogLimit;

/// Largest head of a request, in bytes. Gitea's heads are below 1 kB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Connections that the system may queue until they are accepted. The system may apply a lower
/// limit. It drops the packets of further connections, which clients repeat after seconds.
const BACKLOG: u32 = 4096;
/// Wait before accepting again when the file table is full.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long answers carry `Connection: close` before a planned stop closes idle connections.
const STOP_NOTICE: Duration = Duration::from_millis(500);

/// Limits on what clients use.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How long a head may take, and how long a connection may be idle without [`MayRest`].
    pub header_timeout: Duration,
    /// How long a connection may be idle after an answer that carries [`MayRest`].
    pub idle_timeout: Duration,
    /// How long a client may leave an answer unread.
    pub write_timeout: Duration,
    /// Connections at once. For a newer one the one goes that has been without a request for
    /// longest. While all have a request in hand, more wait to be accepted.
    pub max_connections: usize,
    /// Connections of one address at once. More are closed, those without a request first.
    pub max_connections_per_address: usize,
}

/// Extension of a response: the client has authenticated itself, so its connection may be idle for
/// long, and goes last when places run out. Other connections are closed after the header timeout.
#[derive(Clone, Copy, Debug)]
pub struct MayRest;

/// Extension of a response: its body is sent bit by bit for as long as the client wants, and until the
/// server stops. Such a connection is not idle. It is closed after the body.
#[derive(Clone, Copy, Debug)]
pub struct GoesOn;

/// A bound port.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Server {
    /// Binds `address`. Connections wait until [`Server::run_until`] accepts them. `name` is the
    /// listener's in metrics and log lines.
    ///
    /// # Errors
    /// The errors of bind and listen.
    pub async fn bind(name: &'static str, address: SocketAddr, limits: Limits) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { name, listener, address, limits })
    }

    /// The address, with the port that the system chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`. Then goes on for half a second at most, with `Connection: close` in
    /// each answer, so that a client does not send the next request into a closing connection.
    /// Then waits for requests that have begun, for `drain_timeout` at most.
    pub async fn run_until(
        self,
        router: Router,
        meter: Meter,
        stop: CancellationToken,
        drain_timeout: Duration,
    ) {
        let Self { name, listener, limits, .. } = self;
        let (most, share) = (limits.max_connections, limits.max_connections_per_address);
        let places = Arc::new(Places::new(name, most, share, &meter));
        let connections = Connections {
            router,
            graceful: GracefulShutdown::new(),
            open: TaskTracker::new(),
            closing: Arc::default(),
            noticed: stop.clone(),
            stop: CancellationToken::new(),
            limits,
        };
        tokio::select! {
            () = connections.accept(&listener, &places) => {}
            () = connections.notice_of(&stop) => {}
        }
        drop(listener);
        connections.stop.cancel();
        if tokio::time::timeout(drain_timeout, connections.graceful.shutdown()).await.is_err() {
            warn!("requests did not end in time");
        }
    }
}

struct Connections {
    router: Router,
    graceful: GracefulShutdown,
    open: TaskTracker,
    closing: Arc<AtomicBool>,
    /// Cancelled when the server is to stop.
    noticed: CancellationToken,
    /// Cancelled when no request may begin any more.
    stop: CancellationToken,
    limits: Limits,
}

impl Connections {
    async fn accept(&self, listener: &TcpListener, places: &Arc<Places>) {
        let lines = LogLimit::new();
        loop {
            let (stream, address) = accepted(listener, &lines).await;
            // An answer is one small packet. Waiting for more data to send would cost 40 ms.
            let _ = stream.set_nodelay(true);
            if let Some(place) = places.take(address.ip()).await {
                self.serve(stream, address, place);
            }
        }
    }

    async fn notice_of(&self, stop: &CancellationToken) {
        stop.cancelled().await;
        self.closing.store(true, Ordering::Relaxed);
        self.open.close();
        let _ = tokio::time::timeout(STOP_NOTICE, self.open.wait()).await;
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr, place: Taken) {
        let (router, closing) = (self.router.clone(), Arc::clone(&self.closing));
        let (watcher, stop) = (self.graceful.watcher(), self.stop.clone());
        let noticed = self.noticed.clone();
        let limits = self.limits.clone();
        self.open.spawn(async move {
            let speaks = connection::speaks(&stream, place.place(), limits.header_timeout);
            // A silent client costs a socket, but no buffers.
            if stop.run_until_cancelled(speaks).await == Some(true) {
                let http = http(stream, peer, place, &limits, router, closing, noticed);
                if let Err(error) = Box::pin(watcher.watch(http)).await {
                    debug!(%error, "a connection broke off");
                }
            }
        });
    }
}

/// Serves the requests of a connection.
fn http(
    stream: TcpStream,
    peer: SocketAddr,
    place: Taken,
    limits: &Limits,
    router: Router,
    closing: Arc<AtomicBool>,
    noticed: CancellationToken,
) -> impl GracefulConnection<Error = hyper::Error> {
    let phase = Arc::new(Phase::new(limits, place));
    let ends = stream.local_addr().ok().map(|own| Ends { own, peer });
    let io = TokioIo::new(Connection::new(stream, Arc::clone(&phase)));
    let answer = move |mut request: Request<Incoming>| {
        phase.begin_request();
        if let Some(ends) = ends {
            request.extensions_mut().insert(ends);
        }
        let (phase, closing) = (Arc::clone(&phase), Arc::clone(&closing));
        let noticed = noticed.clone();
        let response = router.clone().oneshot(request);
        async move {
            let mut response = response.await?;
            // A client that knows of the end sends its next request on another connection.
            let goes_on = response.extensions().get::<GoesOn>().is_some();
            if goes_on || closing.load(Ordering::Relaxed) || phase.place.is_wanted() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if goes_on {
                let until = noticed.cancelled_owned();
                response = response
                    .map(|body| Body::from_stream(body.into_data_stream().take_until(until)));
            } else {
                phase.end_request(response.extensions().get::<MayRest>().is_some());
            }
            Ok::<_, Infallible>(response)
        }
    };
    let mut http = http1::Builder::new();
    // Without half-closes, a request whose sender is gone by the time that it is read would be dropped
    // before its handler starts, and nothing would report it.
    http.max_buf_size(MAX_HEAD_BYTES).header_read_timeout(None).half_close(true);
    http.serve_connection(io, service_fn(answer))
}

async fn accepted(listener: &TcpListener, lines: &LogLimit) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) => {
                if let Some(line) = lines.line(&error.to_string()) {
                    warn!(%error, left_out = line.left_out, "cannot accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
