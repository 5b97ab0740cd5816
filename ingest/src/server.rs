//! Connections and their limits. HTTP/1.1 only: that is what Gitea speaks.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Largest head of a request, in bytes. Gitea's are below 1 kB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Connections that the system may hold until they are accepted; it takes less where it
/// knows better. Of what is beyond, packets are dropped and come again after seconds.
const BACKLOG: u32 = 4096;
/// How long to look once more at a connection whose time to say something is over.
const LAST_LOOK: Duration = Duration::from_millis(100);
/// How long to leave a full file table alone before accepting again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What senders may use up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Bytes of bodies in memory at once.
    pub max_in_flight_bytes: usize,
    /// How long a request's head may take, and how long a connection may rest.
    pub header_timeout: Duration,
    /// How long a body may take.
    pub body_timeout: Duration,
    /// Connections at once.
    pub max_connections: usize,
}

/// A bound port.
#[derive(Debug)]
pub(crate) struct Server {
    listener: TcpListener,
    address: SocketAddr,
    limits: Limits,
}

impl Server {
    pub(crate) async fn bind(address: SocketAddr, limits: Limits) -> std::io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // As std and tokio do: a restart need not wait for connections of the former process.
        #[cfg(unix)]
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, limits })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then lets requests that have begun end, for `drain_timeout` at most.
    pub(crate) async fn run_until(
        self,
        router: Router,
        shutdown: CancellationToken,
        drain_timeout: Duration,
    ) {
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES);
        let service = TowerToHyperService::new(router);
        let graceful = GracefulShutdown::new();
        let places = Arc::new(Semaphore::new(self.limits.max_connections));
        while let Some((stream, place)) = self.next_connection(&places, &shutdown).await {
            let (http, service, watcher) = (http.clone(), service.clone(), graceful.watcher());
            let (patience, shutdown) = (self.limits.header_timeout, shutdown.clone());
            tokio::spawn(async move {
                // Who says nothing costs a socket, and no buffers.
                let spoken = shutdown.run_until_cancelled(speaks(&stream, patience)).await;
                if spoken != Some(true) {
                    return;
                }
                let serve = || watcher.watch(http.serve_connection(TokioIo::new(stream), service));
                let connection = Box::pin(serve());
                if let Err(error) = connection.await {
                    debug!(%error, "a connection broke off");
                }
                drop(place);
            });
        }
        drop(self.listener);
        if tokio::time::timeout(drain_timeout, graceful.shutdown()).await.is_err() {
            warn!("requests did not end in time");
        }
    }

    /// The next connection, once there is a place for it. None at shutdown.
    async fn next_connection(
        &self,
        places: &Arc<Semaphore>,
        shutdown: &CancellationToken,
    ) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
        let accept = async {
            let place = Arc::clone(places).acquire_owned().await.ok()?;
            loop {
                match self.listener.accept().await {
                    Ok((stream, _)) => {
                        // An answer is one small packet; waiting for more would cost 40 ms.
                        let _ = stream.set_nodelay(true);
                        return Some((stream, place));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        tokio::select! {
            accepted = accept => accepted,
            () = shutdown.cancelled() => None,
        }
    }
}

/// Whether the other side begins to say something in time. A look, since a
/// socket that was just accepted counts as readable in any case.
async fn speaks(stream: &TcpStream, patience: Duration) -> bool {
    let look = async || stream.peek(&mut [0]).await.is_ok_and(|bytes| bytes == 1);
    match tokio::time::timeout(patience, look()).await {
        Ok(spoken) => spoken,
        // If it was this process that stood still, timers are noticed before all that has arrived.
        Err(_) => tokio::time::timeout(LAST_LOOK, look()).await.unwrap_or(false),
    }
}
